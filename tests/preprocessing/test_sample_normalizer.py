# SPDX-License-Identifier: BSD-3-Clause
"""Normalisations of a row by itself against torch, numpy and each other."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from skpool.preprocessing import (
    CompressedRMSNormalizer,
    FrozenStdLayerNormalizer,
    GroupNormalizer,
    LayerNormalizer,
    RMSNormalizer,
    SampleNormalizer,
)
from skpool.stores import TokenArray

N, D = 20, 12
WEIGHT, BIAS = np.linspace(0.5, 2, D), np.linspace(-1, 1, D)
STATELESS = [LayerNormalizer, RMSNormalizer, CompressedRMSNormalizer]


def make(n=N, d=D, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * rng.exponential(size=(n, 1)) + rng.normal(size=(n, 1))


@pytest.fixture
def X():
    return make()


def plain_layer_norm(X, eps=0.0):
    centered = X - X.mean(axis=-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + eps)


# --- against torch ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_layer_equals_torch(X, dtype, affine, eps):
    T = torch.from_numpy(X).to(dtype)
    weight, bias = (torch.from_numpy(v).to(dtype) for v in (WEIGHT, BIAS))
    want = F.layer_norm(T, (D,), *((weight, bias) if affine else (None, None)), eps)
    options = {"weight": WEIGHT, "bias": BIAS} if affine else {}
    got = LayerNormalizer(eps=eps, **options).fit_transform(T)
    torch.testing.assert_close(got, want)
    np.testing.assert_allclose(
        LayerNormalizer(eps=eps, **options).transform(T.numpy()), want, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_rms_equals_torch(X, affine, eps):
    T = torch.from_numpy(X)
    want = F.rms_norm(T, (D,), torch.from_numpy(WEIGHT) if affine else None, eps)
    model = RMSNormalizer(eps=eps, weight=WEIGHT if affine else None)
    torch.testing.assert_close(model.transform(T), want)
    shifted = RMSNormalizer(eps=eps, weight=WEIGHT, bias=BIAS).transform(T)
    torch.testing.assert_close(
        shifted, F.rms_norm(T, (D,), torch.from_numpy(WEIGHT), eps) + torch.from_numpy(BIAS)
    )


@pytest.mark.parametrize("n_groups", [1, 3, 6])
@pytest.mark.parametrize("affine", [False, True])
def test_group_equals_torch(X, n_groups, affine):
    T = torch.from_numpy(X)
    parameters = (torch.from_numpy(WEIGHT), torch.from_numpy(BIAS)) if affine else (None, None)
    want = F.group_norm(T, n_groups, *parameters, 1e-3)
    options = {"weight": WEIGHT, "bias": BIAS} if affine else {}
    got = GroupNormalizer(n_groups, eps=1e-3, **options).transform(T)
    torch.testing.assert_close(got, want)


def test_layer_and_rms_equal_their_definition(X):
    np.testing.assert_allclose(
        LayerNormalizer(eps=0.1).transform(X), plain_layer_norm(X, 0.1), rtol=1e-12
    )
    want = X / np.sqrt((X**2).mean(axis=1, keepdims=True) + 0.1)
    np.testing.assert_allclose(RMSNormalizer(eps=0.1).transform(X), want, rtol=1e-12)


@pytest.mark.parametrize("n_groups", [1, 4])
def test_swish_equals_evonorm_s0(X, n_groups):
    groups = X.reshape(N, n_groups, -1)
    std = np.sqrt(groups.var(axis=2, keepdims=True) + 1e-3)
    want = (groups * expit(groups) / std).reshape(N, D)
    got = GroupNormalizer(n_groups, eps=1e-3, activation="swish").transform(X)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    weighted = GroupNormalizer(n_groups, eps=1e-3, activation="swish", weight=WEIGHT, bias=BIAS)
    np.testing.assert_allclose(weighted.transform(X), want * WEIGHT + BIAS, rtol=1e-10)


# --- identities ------------------------------------------------------------------------------


def test_layer_is_a_unit_vector_times_the_root_of_the_width(X):
    want = np.sqrt(D) * Normalizer().transform(X - X.mean(axis=1, keepdims=True))
    np.testing.assert_allclose(LayerNormalizer(eps=0.0).transform(X), want, rtol=1e-12)


def test_products_of_layer_normalised_rows_are_correlations(X):
    Z = LayerNormalizer(eps=0.0).transform(X)
    np.testing.assert_allclose(Z @ Z.T, D * np.corrcoef(X), atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(factor=st.floats(1e-3, 1e3), shift=st.floats(-1e3, 1e3), seed=st.integers(0, 100))
def test_layer_does_not_see_scale_and_shift_of_a_row(factor, shift, seed):
    X = make(3, seed=seed)
    X /= X.std(axis=1, keepdims=True)
    model = LayerNormalizer(eps=0.0)
    np.testing.assert_allclose(model.transform(factor * X + shift), model.transform(X), atol=1e-8)


def test_rms_of_centred_rows_is_layer(X):
    centered = X - X.mean(axis=1, keepdims=True)
    got = RMSNormalizer().transform(centered)
    np.testing.assert_allclose(got, LayerNormalizer().transform(X), rtol=1e-10)


def test_rms_is_a_unit_vector_times_the_root_of_the_width(X):
    want = np.sqrt(D) * Normalizer().transform(X)
    np.testing.assert_allclose(RMSNormalizer(eps=0.0).transform(X), want, rtol=1e-13)


def test_one_group_is_layer(X):
    got = GroupNormalizer(1).transform(X)
    np.testing.assert_allclose(got, LayerNormalizer().transform(X), rtol=1e-12)


def test_groups_are_layer_normalised_on_their_own(X):
    got = GroupNormalizer(3).transform(X)
    parts = [plain_layer_norm(part, 1e-5) for part in np.split(X, 3, axis=1)]
    np.testing.assert_allclose(got, np.hstack(parts), rtol=1e-12)


# --- magnitudes ------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-10, 1.0, 1e10, 1e25, 1e37])
@pytest.mark.parametrize("center", [True, False])
def test_float32_rows_of_any_magnitude_come_out_right(X, scale, center):
    rows = (X / np.abs(X).max() * scale).astype(np.float32)
    exact = rows.astype(np.float64)
    want = exact - exact.mean(axis=1, keepdims=True) if center else exact
    want = want / np.sqrt((want**2).mean(axis=1, keepdims=True))
    model = LayerNormalizer(eps=0.0) if center else RMSNormalizer(eps=0.0)
    # Values near the smallest float have few digits themselves.
    np.testing.assert_allclose(model.transform(rows), want, atol=2e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_eps_counts_at_any_magnitude(X, scale):
    rows = (X * scale).astype(np.float32)
    exact = rows.astype(np.float64)
    for eps in (1e-5, float(scale) ** 2 if scale < 1e18 else 1.0):
        want = plain_layer_norm(exact, eps)
        got = LayerNormalizer(eps=eps).transform(rows)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
        want = exact / np.sqrt((exact**2).mean(axis=1, keepdims=True) + eps)
        got = RMSNormalizer(eps=eps).transform(rows)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_swish_and_frozen_std_of_rare_magnitudes_stay_finite(X, scale):
    rows = (X * scale).astype(np.float32)
    assert np.isfinite(GroupNormalizer(3, activation="swish").transform(rows)).all()
    got = FrozenStdLayerNormalizer().fit_transform(rows)
    want = FrozenStdLayerNormalizer().fit_transform(rows.astype(np.float64))
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e3, 1e30])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("width", [7, 768, 100_003])
def test_rows_of_equal_values_become_zero(eps, value, dtype, width):
    X = np.full((2, width), value, dtype=dtype)
    assert not LayerNormalizer(eps=eps).transform(X).any()
    assert not GroupNormalizer(1, eps=eps).transform(X).any()
    assert not CompressedRMSNormalizer(eps=eps).transform(X).any()
    assert not FrozenStdLayerNormalizer().fit_transform(X).any()


def test_single_feature_becomes_zero():
    X = np.array([[3.0], [-1.0]])
    assert not LayerNormalizer().fit_transform(X).any()
    assert not LayerNormalizer(eps=0.0).fit_transform(X).any()


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_zero_rows_stay_zero_under_rms(X, eps):
    X[3] = 0.0
    got = RMSNormalizer(eps=eps).transform(X)
    assert not got[3].any()
    assert np.isfinite(got).all()


def test_float16_with_a_massive_activation(X):
    half = X.astype(np.float16)
    half[:, 0] = 60_000
    want = plain_layer_norm(half.astype(np.float64), 1e-5)
    np.testing.assert_allclose(LayerNormalizer().transform(half), want, atol=1e-5)


def test_float32_rows_far_from_zero_keep_their_digits(X):
    far = (X / X.std(axis=1, keepdims=True) + 1000.0).astype(np.float32)
    want = plain_layer_norm(far.astype(np.float64))
    np.testing.assert_allclose(LayerNormalizer(eps=0.0).transform(far), want, atol=5e-4)


# --- compressed ------------------------------------------------------------------------------


def test_compressed_is_layer_without_the_last_entry(X):
    got = CompressedRMSNormalizer().fit_transform(X)
    np.testing.assert_allclose(got, plain_layer_norm(X, 1e-5)[:, :-1], rtol=1e-12)


def test_compressed_equals_its_formula_on_the_entries_kept(X):
    u = (X - X.mean(axis=1, keepdims=True))[:, :-1]
    total = u.sum(axis=1, keepdims=True)
    want = u / np.sqrt(((u**2).sum(axis=1, keepdims=True) + total**2) / D + 0.01)
    np.testing.assert_allclose(CompressedRMSNormalizer(eps=0.01).transform(X), want, rtol=1e-10)


@pytest.mark.parametrize("fitted", [True, False])
def test_inverse_gives_the_last_entry_back(X, fitted):
    model = CompressedRMSNormalizer()
    if fitted:
        model.fit(X)
    got = model.inverse_transform(model.transform(X))
    np.testing.assert_allclose(got, plain_layer_norm(X, 1e-5), atol=1e-13)


def test_inverse_of_tokens_stays_lazy(X):
    tokens = X.reshape(4, 5, D)
    model = CompressedRMSNormalizer().fit(tokens)
    lazy = model.inverse_transform(model.transform(TokenArray.from_array(tokens)))
    assert isinstance(lazy, TokenArray)
    np.testing.assert_allclose(np.asarray(lazy), plain_layer_norm(tokens, 1e-5), atol=1e-13)
    T = torch.from_numpy(tokens)
    assert isinstance(model.inverse_transform(model.transform(T)), torch.Tensor)


def test_inverse_refuses_rows_of_another_width(X):
    model = CompressedRMSNormalizer().fit(X)
    with pytest.raises(ValueError, match=r"12 features.*11"):
        model.inverse_transform(X)


def test_single_feature_is_not_compressed():
    with pytest.raises(ValueError, match="at least 2 features"):
        CompressedRMSNormalizer().fit(np.ones((3, 1)))


# --- frozen deviation ------------------------------------------------------------------------


def test_sigma_is_the_mean_deviation_of_the_training_rows(X):
    model = FrozenStdLayerNormalizer().fit(X)
    assert isinstance(model.sigma_, float)
    assert model.sigma_ == pytest.approx(X.std(axis=1).mean(), rel=1e-13)
    new = make(seed=1)
    want = (new - new.mean(axis=1, keepdims=True)) / X.std(axis=1).mean()
    np.testing.assert_allclose(model.transform(new), want, rtol=1e-10, atol=1e-12)


def test_frozen_is_layer_when_all_rows_deviate_alike(X):
    X = 3.0 * plain_layer_norm(X) + make(seed=2)[:, :1]
    got = FrozenStdLayerNormalizer(weight=WEIGHT, bias=BIAS).fit_transform(X)
    want = LayerNormalizer(eps=0.0, weight=WEIGHT, bias=BIAS).transform(X)
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_frozen_is_linear(X):
    model = FrozenStdLayerNormalizer().fit(X)
    a, b = X[:10], X[10:]
    np.testing.assert_allclose(
        model.transform(2 * a - 3 * b), 2 * model.transform(a) - 3 * model.transform(b), atol=1e-10
    )


@pytest.mark.parametrize("affine", [False, True])
def test_head_takes_it_in(X, affine):
    options = {"weight": WEIGHT, "bias": BIAS} if affine else {}
    model = FrozenStdLayerNormalizer(**options).fit(X)
    Z, new = model.transform(X), make(seed=1)
    head = LogisticRegression().fit(Z, np.arange(N) % 3)
    coef, intercept = model.fold_into(head.coef_, head.intercept_)
    np.testing.assert_allclose(
        new @ coef.T + intercept, head.decision_function(model.transform(new)), atol=1e-10
    )
    ridge = Ridge().fit(Z, X[:, 0])
    coef, intercept = model.fold_into(ridge.coef_, ridge.intercept_)
    assert coef.shape == (D,)
    np.testing.assert_allclose(
        new @ coef + intercept, ridge.predict(model.transform(new)), atol=1e-10
    )


def test_head_of_another_width_is_refused(X):
    model = FrozenStdLayerNormalizer().fit(X)
    with pytest.raises(ValueError, match="12 features"):
        model.fold_into(np.ones((2, 5)), np.zeros(2))


def test_folding_needs_a_fit():
    with pytest.raises(NotFittedError):
        FrozenStdLayerNormalizer().fold_into(np.ones((2, 5)), np.zeros(2))


def test_frozen_partial_fit_equals_fit(X):
    model = FrozenStdLayerNormalizer()
    for part in np.split(X, [1, 7]):
        model.partial_fit(part)
    assert model.sigma_ == pytest.approx(X.std(axis=1).mean(), rel=1e-13)
    assert model.n_samples_seen_ == N


# --- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n_groups", [5, 32])
def test_groups_that_do_not_divide_are_refused(X, n_groups):
    with pytest.raises(ValueError, match=f"n_groups={n_groups} does not divide"):
        GroupNormalizer(n_groups).fit(X)
    with pytest.raises(ValueError, match="does not divide"):
        GroupNormalizer(n_groups).transform(X)


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("value", [np.ones(5), np.ones((1, D)), np.full(D, np.nan)])
@pytest.mark.parametrize("cls", [LayerNormalizer, RMSNormalizer, FrozenStdLayerNormalizer])
def test_vectors_that_do_not_fit_are_refused(X, cls, name, value):
    with pytest.raises(ValueError, match=name):
        cls(**{name: value}).fit(X)


def test_vectors_may_be_lists_or_tensors(X):
    want = LayerNormalizer(weight=WEIGHT).transform(X)
    for weight in (WEIGHT.tolist(), torch.from_numpy(WEIGHT)):
        np.testing.assert_array_equal(LayerNormalizer(weight=weight).fit_transform(X), want)


# --- by name ---------------------------------------------------------------------------------

BY_NAME = {
    "layer": LayerNormalizer(eps=0.1, weight=WEIGHT, bias=BIAS),
    "rms": RMSNormalizer(eps=0.1, weight=WEIGHT, bias=BIAS),
    "group": GroupNormalizer(3, eps=0.1, weight=WEIGHT, bias=BIAS, activation="swish"),
    "crms": CompressedRMSNormalizer(eps=0.1),
    "frozen_layer": FrozenStdLayerNormalizer(weight=WEIGHT, bias=BIAS),
}


@pytest.mark.parametrize("method", BY_NAME)
def test_name_and_class_are_the_same_thing(X, method):
    want = BY_NAME[method].fit(X)
    options = {"eps": 0.1, "n_groups": 3} | want.get_params()
    model = SampleNormalizer(method, **options).fit(X)
    assert type(model.normalizer_) is type(want)
    np.testing.assert_array_equal(model.transform(X), want.transform(X))
    tokens = X.reshape(4, 5, D)
    np.testing.assert_array_equal(model.transform(tokens), want.transform(tokens))
    assert list(model.get_feature_names_out()) == list(want.get_feature_names_out())


@pytest.mark.parametrize("method", BY_NAME)
@pytest.mark.parametrize("options", [{"weight": WEIGHT}, {"bias": BIAS}, {"activation": "swish"}])
def test_option_that_the_class_lacks_is_refused(X, method, options):
    model = SampleNormalizer(method, n_groups=3, **options)
    (name,) = options
    if name in BY_NAME[method].get_params():
        model.fit(X)
        return
    with pytest.raises(ValueError, match=f"{name} is not defined for method='{method}'"):
        model.fit(X)
    with pytest.raises((ValueError, NotFittedError)):
        model.transform(X)


def test_only_the_frozen_one_must_be_fitted(X):
    for method in ("layer", "rms", "crms"):
        SampleNormalizer(method).transform(X)
    with pytest.raises(NotFittedError):
        SampleNormalizer("frozen_layer").transform(X)


def test_search_over_names(X):
    y = np.arange(N) % 2
    pipeline = make_pipeline(SampleNormalizer(n_groups=4), StandardScaler(), LogisticRegression())
    grid = {"samplenormalizer__method": list(BY_NAME)}
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(X, y)
    assert len(search.cv_results_["params"]) == 5


@pytest.mark.parametrize("method", ["batch", None])
def test_unknown_name_is_refused(X, method):
    with pytest.raises(ValueError, match="method"):
        SampleNormalizer(method).fit(X)


@settings(deadline=None, max_examples=50)
@given(
    arrays(np.float32, (3, 4), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.sampled_from([0.0, 1e-5]),
)
def test_any_finite_rows_give_finite_rows(X, eps):
    models = [cls(eps=eps) for cls in STATELESS]
    for model in [*models, GroupNormalizer(2, eps=eps)]:
        Z = model.transform(X)
        assert np.isfinite(Z).all()
        assert np.abs(Z).max() <= 2.0 + 1e-5
