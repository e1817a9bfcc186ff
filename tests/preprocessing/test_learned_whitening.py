# SPDX-License-Identifier: BSD-3-Clause
"""LearnedWhitening against lists of pairs, scipy, scikit-learn's LDA and the retrieval code."""

import itertools
import pickle

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

from skpool.preprocessing import LearnedWhitening

PLAIN = {"shrinkage": 0.0, "l2": False}


def make(sizes=(12, 7, 1, 20), d=6, seed=0):
    """Rows of classes of these sizes, correlated, away from the origin."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    X = rng.standard_normal((len(y), d)) + 2 * rng.standard_normal((len(sizes), d))[y]
    return X @ rng.standard_normal((d, d)) + 5.0, y


def pairs_of(y):
    """Every pair of rows of equal label, in both orders."""
    return np.array([(i, j) for i, j in itertools.permutations(range(len(y)), 2) if y[i] == y[j]])


def within_of(X, pairs):
    differences = X[pairs[:, 0]] - X[pairs[:, 1]]
    return differences.T @ differences / len(differences)


@pytest.fixture
def data():
    return make()


# --- what it is ------------------------------------------------------------------------------


@pytest.mark.parametrize("given_as", ["labels", "pairs"])
def test_differences_of_matching_rows_become_white(data, given_as):
    X, y = data
    pairs = pairs_of(y)
    model = LearnedWhitening(**PLAIN)
    model.fit(X, y) if given_as == "labels" else model.fit(X, pairs=pairs)
    np.testing.assert_allclose(within_of(model.transform(X), pairs), np.eye(6), atol=1e-10)


@pytest.mark.parametrize("mean", ["all", "pairs"])
def test_all_rows_become_uncorrelated_with_the_largest_first(data, mean):
    X, y = data
    model = LearnedWhitening(mean=mean, **PLAIN).fit(X, y)
    Z = model.transform(X)
    np.testing.assert_allclose(Z.T @ Z / (len(X) - 1), np.diag(model.eigenvalues_), atol=1e-9)
    assert (np.diff(model.eigenvalues_) <= 0).all()


@settings(deadline=None, max_examples=20)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5).filter(lambda s: max(s) > 1),
    seed=st.integers(0, 1000),
)
def test_labels_equal_the_list_of_all_their_pairs(sizes, seed):
    X, y = make(sizes, d=3, seed=seed)
    by_label = LearnedWhitening(shrinkage=0.1, l2=False).fit(X, y)
    by_pairs = LearnedWhitening(shrinkage=0.1, l2=False).fit(X, pairs=pairs_of(y))
    # Every pair stands twice in the list.
    assert 2 * by_label.n_pairs_ == by_pairs.n_pairs_
    np.testing.assert_allclose(by_label.eigenvalues_, by_pairs.eigenvalues_, rtol=1e-8)
    np.testing.assert_allclose(by_label.transform(X), by_pairs.transform(X), atol=1e-6)


@pytest.mark.parametrize("shrinkage", [0.0, 1e-4, 0.5])
def test_directions_equal_scipy(data, shrinkage):
    X, y = data
    within = within_of(X, pairs_of(y))
    within += shrinkage * np.trace(within) / 6 * np.eye(6)
    values, vectors = scipy.linalg.eigh(np.cov(X.T), within)
    model = LearnedWhitening(shrinkage=shrinkage, l2=False).fit(X, y)
    assert model.shrinkage_ == shrinkage
    np.testing.assert_allclose(model.eigenvalues_, values[::-1], rtol=1e-9)
    want = vectors[:, ::-1].T
    want *= np.sign((want * model.components_).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(model.components_, want, atol=1e-8)
    np.testing.assert_allclose(model.mean_, X.mean(0), rtol=1e-12)


def test_balanced_classes_weigh_their_covariances_equally(data):
    X, y = data
    covariances = [np.cov(X[y == c].T) for c in (0, 1, 3)]
    within = 2 * np.mean(covariances, axis=0)
    model = LearnedWhitening(class_balanced=True, **PLAIN).fit(X, y)
    W = model.components_.T
    np.testing.assert_allclose(W.T @ within @ W, np.eye(6), atol=1e-10)


def test_leading_directions_are_those_of_discriminant_analysis():
    X, y = make((15, 15, 15, 15))
    lda = LinearDiscriminantAnalysis(solver="eigen").fit(X, y)
    got = LearnedWhitening(3, **PLAIN).fit(X, y).components_
    for ours, theirs in zip(got, lda.scalings_.T[:3], strict=True):
        cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
        assert abs(cosine) == pytest.approx(1.0, abs=1e-9)


def test_two_steps_of_the_retrieval_code_give_the_same(data):
    X, y = data
    pairs = pairs_of(y)
    queries = X[pairs[:, 0]]
    # Inverse Cholesky factor of the differences, then the principal axes around the queries' mean.
    P = np.linalg.inv(np.linalg.cholesky(within_of(X, pairs)))
    projected = (X - queries.mean(0)) @ P.T
    vectors = np.linalg.eigh(projected.T @ projected)[1]
    want = (X - queries.mean(0)) @ (vectors[:, ::-1].T @ P).T
    model = LearnedWhitening(mean="pairs", **PLAIN).fit(X, pairs=pairs)
    np.testing.assert_allclose(model.mean_, queries.mean(0), rtol=1e-12)
    got = model.transform(X)
    np.testing.assert_allclose(got, want * np.sign((got * want).sum(0)), atol=1e-8)


def test_mean_of_pairs_from_labels_counts_rows_as_often_as_they_pair(data):
    X, y = data
    model = LearnedWhitening(mean="pairs").fit(X, y)
    np.testing.assert_allclose(model.mean_, X[pairs_of(y)[:, 0]].mean(0), rtol=1e-10)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000))
def test_affine_maps_of_the_rows_change_signs_at_most(seed):
    X, y = make((8, 9, 10), d=4, seed=seed)
    rng = np.random.default_rng(seed)
    # Of a condition that leaves the digits that are compared.
    A = np.linalg.qr(rng.standard_normal((4, 4)))[0] * rng.uniform(0.2, 5, 4)
    a = LearnedWhitening(**PLAIN).fit_transform(X, y)
    b = LearnedWhitening(**PLAIN).fit_transform(X @ A + rng.standard_normal(4), y)
    np.testing.assert_allclose(a, b * np.sign((a * b).sum(0)), atol=1e-6)


def test_largest_loading_of_each_direction_is_positive(data):
    W = LearnedWhitening().fit(*data).components_
    assert (W[np.arange(6), np.abs(W).argmax(axis=1)] > 0).all()


def test_labels_may_be_text(data):
    X, y = data
    got = LearnedWhitening().fit_transform(X, np.array(["a", "b", "c", "d"])[y])
    np.testing.assert_array_equal(got, LearnedWhitening().fit_transform(X, y))


# --- options ---------------------------------------------------------------------------------


def test_rows_are_scaled_to_unit_length(data):
    X, y = data
    want = make_pipeline(LearnedWhitening(l2=False), Normalizer()).fit_transform(X, y)
    np.testing.assert_allclose(LearnedWhitening().fit_transform(X, y), want, atol=1e-12)


@pytest.mark.parametrize(("k", "kept"), [(1, 1), (4, 4), ("auto4", 4), ("auto99", 5), (None, 6)])
def test_n_components_keeps_the_leading_ones(data, k, kept):
    X, y = data
    model = LearnedWhitening(k, l2=False).fit(X, y)
    assert model.components_.shape == (kept, 6)
    whole = LearnedWhitening(l2=False).fit(X, y).transform(X)
    np.testing.assert_allclose(model.transform(X), whole[:, :kept], atol=1e-12)


def test_feature_without_differences_at_all_is_left_out(data):
    X, y = data
    model = LearnedWhitening().fit(np.hstack([X, np.ones((len(X), 1))]), y)
    assert model.components_.shape == (6, 7)


def test_few_rows_give_as_many_directions_as_they_span():
    X, y = make((3, 3), d=10)
    assert LearnedWhitening().fit(X, y).components_.shape == (5, 10)


def test_max_pairs_draws_some_of_the_pairs(data):
    X, y = data
    pairs = pairs_of(y)
    model = LearnedWhitening(max_pairs=30, l2=False).fit(X, pairs=pairs)
    assert model.n_pairs_ == 30
    again = clone(model).fit(X, pairs=pairs)
    np.testing.assert_array_equal(again.components_, model.components_)
    other = clone(model).set_params(random_state=1).fit(X, pairs=pairs)
    assert not np.allclose(other.components_, model.components_)
    whole = clone(model).set_params(max_pairs=len(pairs)).fit(X, pairs=pairs)
    want = LearnedWhitening(l2=False).fit(X, pairs=pairs)
    np.testing.assert_array_equal(whole.components_, want.components_)


def test_pairs_win_over_labels(data):
    X, y = data
    pairs = pairs_of(y)[:40]
    got = LearnedWhitening().fit(X, y, pairs=pairs)
    np.testing.assert_array_equal(
        got.components_, LearnedWhitening().fit(X, pairs=pairs).components_
    )


def test_pairs_reach_it_through_a_pipeline(data):
    X, y = data
    pairs = pairs_of(y)[:40]
    model = make_pipeline(LearnedWhitening(), NearestCentroid())
    model.fit(X, y, learnedwhitening__pairs=pairs)
    want = LearnedWhitening().fit(X, pairs=pairs)
    np.testing.assert_array_equal(model[0].components_, want.components_)


def test_tensors_of_rows_and_pairs_equal_arrays(data):
    X, y = data
    pairs = pairs_of(y)
    got = LearnedWhitening().fit(torch.from_numpy(X), pairs=torch.from_numpy(pairs))
    want = LearnedWhitening().fit(X, pairs=pairs)
    np.testing.assert_array_equal(got.components_, want.components_)
    assert isinstance(got.transform(torch.from_numpy(X)), torch.Tensor)


def test_many_pairs_are_read_in_blocks():
    X, y = make((70, 60), d=3)
    pairs = pairs_of(y)
    assert len(pairs) > 2 * 4096
    model = LearnedWhitening(**PLAIN).fit(X, pairs=pairs)
    W = model.components_.T
    np.testing.assert_allclose(W.T @ within_of(X, pairs) @ W, np.eye(3), atol=1e-10)


def test_offset_of_1000_standard_deviations_costs_no_digits(data):
    X, y = data
    want = LearnedWhitening().fit(X, y)
    got = LearnedWhitening().fit(X + 1000 * X.std(), y)
    np.testing.assert_allclose(got.eigenvalues_, want.eigenvalues_, rtol=1e-8)


# --- bad input -------------------------------------------------------------------------------


def test_shrinkage_is_raised_tenfold_until_there_is_a_factor():
    X, y = make((4, 3), d=8)
    with pytest.warns(UserWarning, match=r"9 pairs do not reach all 8 features") as caught:
        model = LearnedWhitening(shrinkage=0.0).fit(X, y)
    assert [warning.filename for warning in caught] == [__file__]
    power = np.log10(model.shrinkage_)
    assert power == pytest.approx(round(power))
    assert 0 < model.shrinkage_ < 1e-4
    assert np.isfinite(model.transform(X)).all()


def test_shrinkage_that_is_enough_is_kept_without_a_warning():
    X, y = make((4, 3), d=8)
    assert LearnedWhitening(shrinkage=1e-3).fit(X, y).shrinkage_ == 1e-3


def test_scale_of_single_features_does_not_raise_the_shrinkage(data):
    X, y = data
    model = LearnedWhitening(shrinkage=0.0).fit(X * np.logspace(-9, 9, 6), y)
    assert model.shrinkage_ == 0.0


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "requires y to be passed"),
        (np.arange(40), "No class of y has 2 samples"),
        (np.zeros(39), "39 labels"),
    ],
)
def test_labels_without_a_pair_are_refused(data, y, message):
    with pytest.raises(ValueError, match=message):
        LearnedWhitening().fit(data[0], y)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (np.zeros((0, 2), int), r"\(n_pairs, 2\)"),
        (np.zeros((4, 3), int), r"\(4, 3\)"),
        (np.ones((4, 2)), "float64"),
        ([[0, 40]], r"rows of X are 0 to 39"),
        ([[-1, 3]], "pairs holds -1"),
        ([[0, 1], [7, 7]], "row 7 with itself"),
    ],
)
def test_pairs_that_are_none_are_refused(data, pairs, message):
    X, y = data
    model = LearnedWhitening().fit(X, y)
    before = pickle.dumps(model)
    with pytest.raises(ValueError, match=message):
        model.fit(X, pairs=pairs)
    assert pickle.dumps(model) == before


def test_rows_that_do_not_differ_are_refused(data):
    _, y = data
    with pytest.raises(ValueError, match="All rows of a class are equal"):
        LearnedWhitening().fit(y[:, None] * np.ones(3), y)
    with pytest.raises(ValueError, match="rows of every pair are equal"):
        LearnedWhitening().fit(np.ones((4, 2)), pairs=[[0, 1]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_components": 7}, "n_components=7 is above the rank 6"),
        ({"n_components": 0.5}, "n_components"),
        ({"n_components": "all"}, "'all' is not valid"),
        ({"shrinkage": -1.0}, "shrinkage"),
        ({"mean": "queries"}, "mean"),
        ({"max_pairs": 0}, "max_pairs"),
    ],
)
def test_options_that_do_not_fit_are_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        LearnedWhitening(**options).fit(*data)
