# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of the sources share: images, weights files that bite, and torchvision."""

import os
import pickle
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image


def _make_torchvision_importable() -> torch.library.Library | None:
    """Declare two operators where torchvision is installed and cannot find its compiled ones.

    That is how it stands beside a build of torch that it was not compiled for. Its models are
    plain torch and need no operator; declared, though not implemented, they let it be imported,
    so that the real code of torchvision, timm and open_clip runs in these tests.
    """
    if find_spec("torchvision") is None:
        return None
    try:
        import torchvision  # noqa: F401

        return None
    except RuntimeError:
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


# Kept alive: the operators go with it.
_OPERATORS = _make_torchvision_importable()


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)) for _ in range(3)]


class Bite:
    """Pickled, it makes a directory as soon as it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


class Malicious:
    """Writes weights files that run code when they are unpickled, and tells whether it ran."""

    def __init__(self, mark):
        self.mark = mark

    def write(self, path, form="torch"):
        content = {"weight": torch.zeros(2), "code": Bite(self.mark)}
        if form == "torch":
            torch.save(content, path)
        else:
            path.write_bytes(pickle.dumps(content))
        return path

    @property
    def ran(self):
        return self.mark.exists()


@pytest.fixture
def malicious(tmp_path):
    return Malicious(tmp_path / "bitten")
