# SPDX-License-Identifier: BSD-3-Clause
"""RunningMoments against numpy."""

import numpy as np
import pytest
import torch
from sklearn.base import clone

from skpool.statistics import ClassMoments, RunningMoments


@pytest.fixture
def X():
    rng = np.random.default_rng(0)
    return rng.standard_normal((200, 5)) @ rng.standard_normal((5, 5)) + 30.0


@pytest.mark.parametrize("ddof", [0, 1])
def test_covariance_equals_numpy(X, ddof):
    moments = RunningMoments().update(X[:70]).update(X[70:])
    np.testing.assert_allclose(moments.covariance(ddof), np.cov(X.T, ddof=ddof), rtol=1e-11)
    np.testing.assert_allclose(moments.mean_, X.mean(0), rtol=1e-13)
    assert moments.n_samples == 200


def test_diag_holds_the_variances(X):
    moments = RunningMoments("diag").update(X)
    np.testing.assert_allclose(moments.covariance(), X.var(0), rtol=1e-11)


def test_weights_equal_numpy_weights(X):
    w = np.random.default_rng(1).uniform(size=len(X))
    moments = RunningMoments().update(X, w)
    np.testing.assert_allclose(moments.covariance(), np.cov(X.T, aweights=w, ddof=0), rtol=1e-11)


def test_downdate_and_subtract_undo_update_and_merge(X):
    rest = np.cov(X[50:].T)
    a = RunningMoments().update(X).downdate(X[:50])
    b = RunningMoments().update(X) - RunningMoments().update(X[:50])
    np.testing.assert_allclose(a.covariance(1), rest, rtol=1e-10)
    np.testing.assert_allclose(b.covariance(1), rest, rtol=1e-10)


def test_merge_equals_one_pass(X):
    merged = RunningMoments().update(X[:3]) + RunningMoments().update(X[3:])
    np.testing.assert_allclose(merged.covariance(1), np.cov(X.T), rtol=1e-11)


def test_tensor_equals_array(X):
    a, b = RunningMoments().update(torch.from_numpy(X)), RunningMoments().update(X)
    np.testing.assert_array_equal(a.scatter_, b.scatter_)


def test_arrays_round_trip_is_bit_exact(X):
    moments = RunningMoments("diag").update(X)
    back = RunningMoments.from_arrays(moments.to_arrays())
    assert back.scatter == "diag"
    np.testing.assert_array_equal(back.scatter_, moments.scatter_)
    np.testing.assert_array_equal(back.mean_, moments.mean_)


def test_arrays_of_labelled_classes_are_refused(X):
    moments = RunningMoments().update(X).as_class_moments().relabel({0: 1})
    with pytest.raises(ValueError, match="labelled"):
        RunningMoments.from_arrays(moments.to_arrays())


def test_empty_moments_say_so():
    moments = RunningMoments()
    assert moments.n_samples == 0
    assert moments.mean_ is None
    with pytest.raises(ValueError, match="0 are held"):
        moments.covariance()


def test_refused_update_changes_nothing(X):
    moments = RunningMoments().update(X)
    for bad in (X[:, :2], X * np.nan, X[:0], X[0], "text"):
        with pytest.raises(ValueError):
            moments.update(bad)
    np.testing.assert_allclose(moments.covariance(1), np.cov(X.T), rtol=1e-11)


def test_clone_is_empty_with_the_same_settings(X):
    fresh = clone(RunningMoments("diag", product_dtype="float64", block_rows=9).update(X))
    assert fresh.n_samples == 0
    assert fresh.scatter == "diag"
    inside = fresh.as_class_moments()
    assert (inside.product_dtype, inside.block_rows) == ("float64", 9)


def test_copy_is_independent(X):
    moments = RunningMoments().update(X)
    moments.copy().update(X)
    assert moments.n_samples == len(X)


@pytest.mark.parametrize("kind", ["shared", "per_class", "diag", "shared_diag"])
def test_moments_of_classes_are_those_of_all_rows(X, kind):
    classes = ClassMoments(kind).update(X, np.arange(len(X)) % 3)
    moments = RunningMoments.of_classes(classes)
    want = np.cov(X.T) if moments.scatter == "full" else X.var(0, ddof=1)
    np.testing.assert_allclose(moments.covariance(1), want, rtol=1e-10)
    np.testing.assert_allclose(moments.mean_, X.mean(0), rtol=1e-12)
    assert moments.n_samples == len(X)
    moments.update(X)
    assert classes.counts_.sum() == len(X)


def test_moments_of_classes_without_a_scatter_are_refused(X):
    with pytest.raises(ValueError, match='scatter="none"'):
        RunningMoments.of_classes(ClassMoments("none").update(X, np.zeros(len(X), int)))


def test_many_blocks_in_inference_mode():
    X = torch.from_numpy(np.random.default_rng(0).normal(size=(900, 3)))
    with torch.inference_mode():
        moments = RunningMoments(block_rows=100).update(X)
    np.testing.assert_allclose(moments.covariance(), np.cov(X.T, bias=True), rtol=1e-10)
