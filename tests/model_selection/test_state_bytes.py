# SPDX-License-Identifier: BSD-3-Clause
"""Bytes of the arrays that an estimator holds, wherever it keeps them."""

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.naive_bayes import GaussianNB

from skpool.model_selection._state_bytes import state_bytes
from skpool.pipeline import make_incremental_pipeline


class Holder(BaseEstimator):
    def __init__(self, part=None):
        self.part = part


def test_arrays_and_tensors_count_in_any_container():
    holder = Holder({"a": [np.zeros(3), (torch.zeros(5),)], "b": "text", "c": None})
    assert state_bytes(holder) == 3 * 8 + 5 * 4


def test_what_is_held_twice_counts_once():
    array = np.zeros(4)
    assert state_bytes(Holder([array, {"again": array}, Holder(array)])) == 32


def test_what_holds_itself_is_counted():
    holder = Holder(np.zeros(2))
    holder.myself_ = [holder]
    assert state_bytes(holder) == 16


def test_steps_of_a_pipeline_count():
    X, y = np.eye(4), np.arange(4)
    alone = GaussianNB().fit(X, y)
    pipeline = make_incremental_pipeline(GaussianNB()).fit(X, y)
    assert state_bytes(pipeline) == state_bytes(alone)
    fitted = [value for name, value in vars(alone).items() if isinstance(value, np.ndarray)]
    assert state_bytes(alone) == sum(array.nbytes for array in fitted)


def test_what_is_not_pickled_does_not_count():
    class Caching(Holder):
        def __getstate__(self):
            return {name: v for name, v in super().__getstate__().items() if name != "_cache"}

    holder = Caching(np.zeros(2))
    holder._cache = np.zeros(1000)
    assert state_bytes(holder) == 16
