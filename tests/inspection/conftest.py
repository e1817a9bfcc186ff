# SPDX-License-Identifier: BSD-3-Clause
"""Every test of a picture leaves no figure open and matplotlib's settings as they were."""

import pytest


@pytest.fixture
def plt():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as pyplot

    assert pyplot.get_fignums() == []
    settings = dict(matplotlib.rcParams)
    yield pyplot
    pyplot.close("all")
    assert dict(matplotlib.rcParams) == settings
