# SPDX-License-Identifier: BSD-3-Clause
"""WhiteningColoring against scipy's roots and the definition of what it does."""

import pickle

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import TransformerMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from skpool.preprocessing import WhiteningColoring

EXACT = {"shrinkage": None}


def rows(n, seed, d=5):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + 10 * rng.standard_normal(d)


@pytest.fixture
def source():
    return rows(80, 0)


@pytest.fixture
def target():
    return rows(60, 1)


def root(S):
    return scipy.linalg.sqrtm(S).real


class Adapted(WhiteningColoring):
    """Adapts itself to fixed rows, so that a suite can use it like any transformer."""

    def fit(self, X, y=None):
        super().fit(X)
        d = self.n_features_in_
        return self.adapt(rows(3 * d + 2, 7, d))

    fit_transform = TransformerMixin.fit_transform


@parametrize_with_checks([Adapted(), Adapted(method="ot", direction="source_to_target")])
def test_scikit_learn_check_passes_once_adapted(estimator, check):
    check(estimator)


# --- what it is ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["zca", "ot"])
@pytest.mark.parametrize("n_groups", [1, 5])
def test_target_gets_the_mean_and_covariance_of_the_source(source, target, method, n_groups):
    model = WhiteningColoring(n_groups, method=method, **EXACT).fit(source).adapt(target)
    Z = model.transform(target)
    np.testing.assert_allclose(Z.mean(0), source.mean(0), rtol=1e-12)
    got, want = np.cov(Z.T), np.cov(source.T)
    if n_groups == 5:
        got, want = np.diag(got), np.diag(want)
    np.testing.assert_allclose(got, want, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize("method", ["zca", "ot"])
def test_source_gets_the_statistics_of_the_target_the_other_way(source, target, method):
    model = WhiteningColoring(method=method, direction="source_to_target", **EXACT)
    Z = model.fit(source).adapt(target).transform(source)
    np.testing.assert_allclose(Z.mean(0), target.mean(0), rtol=1e-12)
    np.testing.assert_allclose(np.cov(Z.T), np.cov(target.T), rtol=1e-10)


@pytest.mark.parametrize("method", ["zca", "ot"])
@pytest.mark.parametrize("shrinkage", [None, 1e-3, "oas"])
def test_own_statistics_change_nothing(source, method, shrinkage):
    model = WhiteningColoring(method=method, shrinkage=shrinkage).fit(source).adapt(source)
    np.testing.assert_allclose(model.matrix_, np.eye(5), atol=1e-11)
    np.testing.assert_allclose(model.transform(source), source, atol=1e-10)


def test_zca_of_one_group_is_correlation_alignment(source, target):
    # The formula of the paper, with the identity added to both covariances as a shrinkage.
    S, T = (np.cov(X.T) for X in (source, target))
    S, T = (0.9 * C + 0.1 * np.trace(C) / 5 * np.eye(5) for C in (S, T))
    want = (target - target.mean(0)) @ np.linalg.inv(root(T)) @ root(S) + source.mean(0)
    model = WhiteningColoring(shrinkage=0.1).fit(source).adapt(target)
    np.testing.assert_allclose(model.transform(target), want, rtol=1e-9, atol=1e-9)


def test_optimal_transport_equals_its_formula_and_is_symmetric(source, target):
    S, T = (np.cov(X.T) for X in (source, target))
    half = root(T)
    inverse = np.linalg.inv(half)
    want = inverse @ root(half @ S @ half) @ inverse
    A = WhiteningColoring(method="ot", **EXACT).fit(source).adapt(target).matrix_
    np.testing.assert_array_equal(A, A.T)
    np.testing.assert_allclose(A, want, atol=1e-9)
    assert (np.linalg.eigvalsh(A) > 0).all()


def test_optimal_transport_moves_rows_least(source, target):
    moved = {}
    for method in ("zca", "ot"):
        model = WhiteningColoring(method=method, **EXACT).fit(source).adapt(target)
        moved[method] = ((model.transform(target) - target) ** 2).sum(1).mean()
    assert moved["ot"] < moved["zca"]
    # The distance between two Gaussians (Bures), here with the divisor n - 1 of both.
    S, T = (np.cov(X.T) for X in (source, target))
    half = root(T)
    bures = np.trace(S + T - 2 * root(half @ S @ half)) * (len(target) - 1) / len(target)
    away = ((source.mean(0) - target.mean(0)) ** 2).sum()
    assert moved["ot"] == pytest.approx(bures + away, rel=1e-9)


@pytest.mark.parametrize("method", ["zca", "ot"])
def test_as_many_groups_as_features_standardise_again(source, target, method):
    model = WhiteningColoring(5, method=method, **EXACT).fit(source).adapt(target)
    want = StandardScaler().fit_transform(target) * np.sqrt(59 / 60)
    want = want * source.std(0, ddof=1) + source.mean(0)
    np.testing.assert_allclose(model.transform(target), want, rtol=1e-9)


def test_groups_are_aligned_on_their_own():
    source, target = rows(80, 0, d=6), rows(60, 1, d=6)
    model = WhiteningColoring(2, **EXACT).fit(source).adapt(target)
    got = model.transform(target)
    for part in (slice(0, 3), slice(3, 6)):
        alone = WhiteningColoring(**EXACT).fit(source[:, part]).adapt(target[:, part])
        np.testing.assert_allclose(got[:, part], alone.transform(target[:, part]), rtol=1e-9)
    assert not model.matrix_[:3, 3:].any()
    assert not model.matrix_[3:, :3].any()


def test_classifier_of_the_source_serves_an_affinely_moved_target():
    rng = np.random.default_rng(0)
    y = np.arange(400) % 2
    X = rng.standard_normal((400, 3)) + 3 * y[:, None] * [1, 0, 0]
    # A symmetric positive map is what optimal transport undoes.
    B = rng.standard_normal((3, 3))
    moved = X @ (B @ B.T + 0.2 * np.eye(3)) + 30
    model = make_pipeline(WhiteningColoring(method="ot"), LogisticRegression()).fit(X, y)
    assert model[1].score(moved, y) < 0.6
    model[0].adapt(moved)
    assert model.score(moved, y) > 0.9


# --- the order of calls ----------------------------------------------------------------------


def test_transform_before_adapt_says_so(source):
    with pytest.raises(NotFittedError, match=r"adapt\(X_target\)"):
        WhiteningColoring().fit(source).transform(source)
    for call in (WhiteningColoring().transform, WhiteningColoring().adapt):
        with pytest.raises(NotFittedError):
            call(source)


def test_fit_forgets_the_target(source, target):
    model = WhiteningColoring().fit(source).adapt(target).fit(source)
    assert not hasattr(model, "target_mean_")
    with pytest.raises(NotFittedError):
        model.transform(target)


def test_adapt_forgets_the_target_before(source, target):
    model = WhiteningColoring().fit(source).adapt(target + 9).adapt(target)
    want = WhiteningColoring().fit(source).adapt(target)
    np.testing.assert_array_equal(model.matrix_, want.matrix_)
    np.testing.assert_array_equal(model.target_mean_, want.target_mean_)


def test_fit_transform_hands_the_source_on(source):
    np.testing.assert_array_equal(WhiteningColoring().fit_transform(source), source)
    half = WhiteningColoring().fit_transform(source.astype(np.float16))
    np.testing.assert_array_equal(half, source.astype(np.float16).astype(np.float32))
    with pytest.raises(NotFittedError):
        WhiteningColoring(direction="source_to_target").fit_transform(source)


@settings(deadline=None, max_examples=15)
@given(cuts=st.lists(st.integers(1, 79), max_size=5), late=st.booleans())
def test_partial_fit_of_the_source_equals_fit(cuts, late):
    source, target = rows(80, 0), rows(60, 1)
    model = WhiteningColoring()
    for part in np.split(source, sorted(cuts)):
        if len(part):
            model.partial_fit(part)
            if late and model.source_moments_.n_samples > 1:
                model.adapt(target)
    model.adapt(target)
    want = WhiteningColoring().fit(source).adapt(target)
    np.testing.assert_allclose(model.transform(target), want.transform(target), atol=1e-8)


def test_more_of_the_source_is_followed_without_adapting_again(source, target):
    model = WhiteningColoring().fit(source[:40]).adapt(target).partial_fit(source[40:])
    want = WhiteningColoring().fit(source).adapt(target)
    np.testing.assert_allclose(model.transform(target), want.transform(target), atol=1e-9)


# --- few rows, bad rows ----------------------------------------------------------------------


def test_target_of_few_rows_is_not_blown_up_with_shrinkage():
    source, target = rows(200, 0, d=20), rows(6, 1, d=20)
    model = WhiteningColoring(shrinkage=0.1).fit(source).adapt(target)
    other = rows(50, 1, d=20)
    assert np.abs(model.transform(other) - source.mean(0)).max() < 100 * source.std()


@pytest.mark.parametrize("method", ["zca", "ot"])
def test_target_of_few_rows_without_shrinkage_warns_and_drops_directions(method):
    source, target = rows(200, 0, d=20), rows(6, 1, d=20)
    with pytest.warns(UserWarning, match="6 rows of the target in 20 features has rank 5"):
        model = WhiteningColoring(method=method, **EXACT).fit(source).adapt(target)
    Z = model.transform(target)
    assert np.linalg.matrix_rank(Z - Z.mean(0)) == 5
    assert np.isfinite(model.transform(rows(50, 1, d=20))).all()


def test_refused_calls_change_nothing(source, target):
    model = WhiteningColoring().fit(source).adapt(target)
    before = pickle.dumps(model)
    nan = target.copy()
    nan[5, 1] = np.nan
    for bad, message in ((nan, "row 5"), (target[:, :3], "features"), (target[:0], "0 sample")):
        for call in (model.adapt, model.partial_fit, model.transform):
            with pytest.raises(ValueError, match=message):
                call(bad)
    with pytest.raises(ValueError, match="target has n_samples=1"):
        model.adapt(target[:1])
    with pytest.raises(ValueError, match="source has n_samples=1"):
        model.fit(source[:1])
    assert pickle.dumps(model) == before


def test_source_of_one_row_cannot_be_adapted_to(source, target):
    with pytest.raises(ValueError, match="source has n_samples=1"):
        WhiteningColoring().partial_fit(source[:1]).adapt(target)


@pytest.mark.parametrize(
    "options", [{"n_groups": 3}, {"method": "pca"}, {"shrinkage": 2.0}, {"direction": "both"}]
)
def test_options_that_do_not_fit_are_refused(source, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        WhiteningColoring(**options).fit(source)


# --- containers ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensor_equals_array(source, target, dtype):
    s, t = (torch.from_numpy(X).to(dtype) for X in (source, target))
    wide = dtype if dtype in (torch.float64, torch.float32) else torch.float32
    got = WhiteningColoring().fit(s).adapt(t).transform(t)
    assert got.dtype == wide
    s, t = (X.to(wide).numpy() for X in (s, t))
    np.testing.assert_array_equal(got, WhiteningColoring().fit(s).adapt(t).transform(t))


def test_float32_at_an_offset_of_1000_equals_float64(source, target):
    source, target = ((X / 10 + 1000).astype(np.float32) for X in (source, target))
    got = WhiteningColoring().fit(source).adapt(target).transform(target)
    wide = [X.astype(np.float64) for X in (source, target)]
    want = WhiteningColoring().fit(wide[0]).adapt(wide[1]).transform(wide[1])
    np.testing.assert_allclose(got, want, atol=3e-4)


def test_pickle_and_clone(source, target):
    model = WhiteningColoring(method="ot").fit(source).adapt(target)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.transform(target), model.transform(target))
    assert not hasattr(clone(model), "matrix_")
