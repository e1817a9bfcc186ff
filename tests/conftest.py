# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures that many rooms share: where the real data lie, and a real network made from them."""

import gc
import os
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import settings

from skpool.backbones import Backbone, ImageRecipe

# What is tried is fixed where a run decides something, and varies at a desk.
settings.register_profile("skpool", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("skpool")

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Directory of the real weights, images and features; skips where it is absent."""
    if not DATA.is_dir():
        pytest.skip("the real weights and data (../shared/data) are not on this machine")
    return DATA


@pytest.fixture(scope="session")
def deit_directory(data_dir, tmp_path_factory) -> Path:
    """DeiT-tiny as a transformers directory, by the script that lies beside its weights."""
    pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp("deit")
    sys.path.insert(0, str(data_dir / "deit_tiny"))
    try:
        import to_hf

        with warnings.catch_warnings():
            # The script leaves a file open.
            warnings.simplefilter("ignore", ResourceWarning)
            to_hf.convert().save_pretrained(directory)
            gc.collect()
    finally:
        sys.path.pop(0)
    return directory


@pytest.fixture(scope="session")
def deit(deit_directory) -> Backbone:
    """DeiT-tiny with the preprocessing that it was trained with."""
    return Backbone(f"hf:{deit_directory}", recipe=ImageRecipe())
