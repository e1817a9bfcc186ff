# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures that many rooms share: where the real data lie, and a clean in-process cache."""

from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Directory of the real weights, images and features; skips where it is absent."""
    if not DATA.is_dir():
        pytest.skip("the real weights and data (../shared/data) are not on this machine")
    return DATA
