# SPDX-License-Identifier: BSD-3-Clause
"""Dask is optional, and its absence has a remedy."""

import sys

import pytest

from skpool.distributed import extract, fit
from skpool.exceptions import MissingDependencyError
from skpool.extraction import FeatureExtractor
from skpool.statistics import RunningMoments


@pytest.mark.parametrize(
    "call",
    [
        lambda: extract(FeatureExtractor(), ["a.png"], store="features"),
        lambda: fit(RunningMoments(), [[[1.0]]]),
    ],
    ids=["extract", "fit"],
)
def test_absence_of_dask_names_the_extra(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(MissingDependencyError, match=r"skpool\[dask\]"):
        call()


def test_absence_of_a_client_has_a_remedy(monkeypatch):
    distributed = pytest.importorskip("dask.distributed", reason="dask is not installed")

    def no_client():
        raise ValueError("No global client found and no address provided")

    # Another test may have left one in this process.
    monkeypatch.setattr(distributed, "get_client", no_client)
    with pytest.raises(ValueError, match=r"client=None .* make one"):
        fit(RunningMoments(), [[[1.0]]])
