# SPDX-License-Identifier: BSD-3-Clause
"""GeMPooling and GroupGeMPooling: parameters, what is learned, and agreement with each other."""

import pickle

import numpy as np
import pytest
import torch
from lazy_tokens import LazySource
from scipy import stats
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.estimator_checks import parametrize_with_checks

import skpool
from skpool.pooling import GeMPooling, GroupGeMPooling, TokenPooling
from skpool.pooling._gem_learning import LearnedGeM, power_mean_with_slope
from skpool.pooling._kernels import pool_gem
from skpool.stores import TokenArray

N, L, D = 6, 5, 4


@parametrize_with_checks(
    [
        GeMPooling(),
        GeMPooling(negative="shift"),
        GeMPooling(negative="signed"),
        GroupGeMPooling(n_groups=1),
        GeMPooling(learn_p=True, max_epochs=2),
        GroupGeMPooling(n_groups=1, learn_p="cv"),
    ]
)
def test_scikit_learn_check_passes(estimator, check):
    check(estimator)


@pytest.fixture
def tokens():
    return np.random.default_rng(0).normal(size=(N, L, D))


def test_clamped_gem_equals_scipy_pmean_of_clamped_tokens(tokens):
    expected = stats.pmean(np.maximum(tokens, 0.01), 4.6, axis=1)
    np.testing.assert_allclose(
        GeMPooling(p=4.6, eps=0.01).fit_transform(tokens), expected, rtol=1e-12
    )


def test_clamp_is_the_default_and_p_is_three(tokens):
    x = torch.from_numpy(tokens)
    expected = x.clamp(min=1e-6).pow(3).mean(1).pow(1 / 3)
    np.testing.assert_allclose(GeMPooling().fit_transform(tokens), expected, rtol=1e-12)


@pytest.mark.parametrize("p", [1, 1.0, np.float32(1.0), np.int64(1)])
@pytest.mark.parametrize("negative", ["shift", "signed"])
def test_p_one_is_the_mean(tokens, p, negative):
    vectors = GeMPooling(p=p, negative=negative).fit_transform(tokens)
    np.testing.assert_allclose(vectors, tokens.mean(1), rtol=1e-9)


def test_shift_learns_the_smallest_value_of_each_feature(tokens):
    pooling = GeMPooling(negative="shift").fit(tokens)
    np.testing.assert_array_equal(pooling.channel_min_, tokens.min((0, 1)))


def test_shift_learns_from_the_tokens_in_scope_only(tokens):
    tokens[:, 0] = -100.0
    X = TokenArray.from_array(tokens, n_prefix_tokens=1)
    patch = GeMPooling(negative="shift").fit(X)
    np.testing.assert_array_equal(patch.channel_min_, tokens[:, 1:].min((0, 1)))
    whole = GeMPooling(negative="shift", scope="all").fit(X)
    np.testing.assert_array_equal(whole.channel_min_, np.full(D, -100.0))


def test_shift_does_not_learn_from_masked_tokens(tokens):
    mask = np.ones((N, L), dtype=bool)
    mask[:, 3:] = False
    pooling = GeMPooling(negative="shift").fit(TokenArray.from_array(tokens, mask=mask))
    np.testing.assert_array_equal(pooling.channel_min_, tokens[:, :3].min((0, 1)))


def test_shift_does_not_learn_from_empty_samples(tokens):
    mask = np.ones((N, L), dtype=bool)
    mask[2] = False
    X = TokenArray.from_array(tokens, mask=mask)
    pooling = GeMPooling(negative="shift", empty="zero").fit(X)
    expected = np.delete(tokens, 2, axis=0).min((0, 1))
    np.testing.assert_array_equal(pooling.channel_min_, expected)


def test_shift_refuses_to_learn_from_empty_samples_alone(tokens):
    X = TokenArray.from_array(tokens, mask=np.zeros((N, L)))
    with pytest.raises(ValueError, match="no sample with a real token"):
        GeMPooling(negative="shift", empty="zero").fit(X)


def test_shift_of_other_tokens_clips_them_at_the_fitted_minimum(tokens):
    pooling = GeMPooling(p=2, negative="shift", eps=1e-3).fit(tokens)
    low = tokens.min((0, 1))
    new = tokens - 1.0
    z = np.maximum(new - low, 0.0) + 1e-3
    expected = np.sqrt((z**2).mean(1)) + low - 1e-3
    np.testing.assert_allclose(pooling.transform(new), expected, rtol=1e-10)


def test_shift_does_not_transform_before_fit(tokens):
    with pytest.raises(NotFittedError):
        GeMPooling(negative="shift").transform(tokens)
    with pytest.raises(NotFittedError):
        GeMPooling().fit(tokens).set_params(negative="shift").transform(tokens)


@pytest.mark.parametrize("negative", ["clamp", "signed"])
def test_other_rules_transform_before_fit(tokens, negative):
    pooling = GeMPooling(negative=negative)
    np.testing.assert_array_equal(pooling.transform(tokens), clone(pooling).fit_transform(tokens))


def test_shift_keeps_half_precision_in_float32(tokens):
    X = tokens.astype(np.float16)
    vectors = GeMPooling(negative="shift").fit_transform(X)
    assert vectors.dtype == np.float32
    expected = GeMPooling(negative="shift").fit_transform(X.astype(np.float64))
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-5)


def test_shift_fitted_on_a_tensor_holds_arrays(tokens):
    pooling = GeMPooling(negative="shift").fit(torch.from_numpy(tokens))
    assert isinstance(pooling.channel_min_, np.ndarray) and isinstance(pooling.p_, np.ndarray)


def test_constant_feature_is_returned():
    X = np.ones((3, L, 2)) * [2.0, -2.0]
    for negative in ("shift", "signed"):
        vectors = GeMPooling(negative=negative).fit_transform(X)
        np.testing.assert_allclose(vectors, [[2.0, -2.0]] * 3, rtol=1e-9)


@pytest.mark.parametrize("p", [np.inf, -np.inf])
def test_infinite_p_is_accepted(tokens, p):
    X = abs(tokens) + 0.1
    expected = X.max(1) if p > 0 else X.min(1)
    np.testing.assert_array_equal(GeMPooling(p=p).fit_transform(X), expected)


# Groups.


@pytest.mark.parametrize("negative", ["clamp", "shift", "signed"])
def test_one_group_is_gem(tokens, negative):
    options = {"p": 2.5, "negative": negative}
    np.testing.assert_array_equal(
        GroupGeMPooling(1, **options).fit_transform(tokens),
        GeMPooling(**options).fit_transform(tokens),
    )


@pytest.mark.parametrize("negative", ["clamp", "shift", "signed"])
def test_as_many_groups_as_features_is_one_p_per_feature(tokens, negative):
    p = [1.0, 3.0, 3.0, 6.5]
    vectors = GroupGeMPooling(D, p=p, negative=negative).fit_transform(tokens)
    for j in range(D):
        alone = GeMPooling(p=p[j], negative=negative).fit_transform(tokens[:, :, [j]])
        np.testing.assert_allclose(vectors[:, j], alone[:, 0], rtol=1e-12)


def test_groups_are_contiguous(tokens):
    X = abs(tokens)
    vectors = GroupGeMPooling(2, p=[1.0, np.inf], negative="clamp", eps=1e-12).fit_transform(X)
    expected = np.hstack([X[:, :, :2].mean(1), X[:, :, 2:].max(1)])
    np.testing.assert_allclose(vectors, expected, rtol=1e-9)


def test_one_p_serves_all_groups(tokens):
    np.testing.assert_allclose(
        GroupGeMPooling(2, p=4.0).fit_transform(tokens),
        GeMPooling(p=4.0, negative="shift").fit_transform(tokens),
        rtol=1e-12,
    )


def test_fitted_exponents_are_one_per_group(tokens):
    np.testing.assert_array_equal(GeMPooling(p=4).fit(tokens).p_, [4.0])
    np.testing.assert_array_equal(GroupGeMPooling(2, p=4).fit(tokens).p_, [4.0, 4.0])
    np.testing.assert_array_equal(GroupGeMPooling(2, p=[1, 2]).fit(tokens).p_, [1.0, 2.0])


def test_groups_that_do_not_divide_the_features_are_refused(tokens):
    with pytest.raises(ValueError, match=r"n_groups=3 does not divide the 4 features"):
        GroupGeMPooling(3).fit(tokens)


@pytest.mark.parametrize("p", [[1.0, 2.0, 3.0], [[1.0, 2.0]], []])
def test_exponents_that_do_not_fit_the_groups_are_refused(tokens, p):
    with pytest.raises(ValueError, match="p has shape"):
        GroupGeMPooling(2, p=p).fit(tokens)


# Refusals.


@pytest.mark.parametrize(
    "pooling",
    [GeMPooling(p=np.nan), GroupGeMPooling(2, p=np.nan), GroupGeMPooling(2, p=[1, np.nan])],
)
def test_p_that_is_no_number_is_refused(tokens, pooling):
    with pytest.raises(ValueError, match="not a number"):
        pooling.fit(tokens)
    with pytest.raises(ValueError, match="not a number"):
        pooling.set_params(negative="clamp").transform(tokens)


@pytest.mark.parametrize(
    "pooling",
    [GeMPooling(p=0), GeMPooling(p=-1.0), GeMPooling(p=-np.inf), GroupGeMPooling(2, p=[1, 0])],
)
def test_signed_rule_refuses_p_that_is_not_positive(tokens, pooling):
    with pytest.raises(ValueError, match="above 0"):
        pooling.set_params(negative="signed").fit(tokens)


@pytest.mark.parametrize(
    "parameters", [{"p": "cv"}, {"p": None}, {"eps": 0.0}, {"eps": -1.0}, {"negative": "abs"}]
)
def test_bad_parameter_is_refused(tokens, parameters):
    with pytest.raises(InvalidParameterError, match=next(iter(parameters))):
        GeMPooling(**parameters).fit(tokens)


# Learned exponents.

NEGATIVE = ["clamp", "shift", "signed"]


def options_of(negative: str, tokens: np.ndarray) -> dict:
    minimum = torch.from_numpy(tokens.min((0, 1))) if negative == "shift" else None
    return {"negative": negative, "eps": 1e-3, "minimum": minimum}


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("p", [0.2, 1.0, 3.0, 7.5, 40.0])
def test_slope_is_that_of_finite_differences(tokens, p, with_mask):
    """dF/dp = F (mean(z^p ln z) / (p s) - ln(s) / p^2) with s = mean z^p."""
    z = torch.from_numpy(abs(tokens) + 0.1)
    mask = torch.arange(L) < torch.tensor([5, 1, 3, 2, 4, 5])[:, None] if with_mask else None
    mean, slope = power_mean_with_slope(z, torch.full((D,), p, dtype=torch.float64), mask)
    h = 1e-5
    high, low = (pool_gem(z, mask, p=p + step, eps=1e-9) for step in (h, -h))
    np.testing.assert_allclose(mean, pool_gem(z, mask, p=p, eps=1e-9), rtol=1e-10)
    np.testing.assert_allclose(slope, (high - low) / (2 * h), rtol=1e-4, atol=1e-7)


def test_slope_of_signed_powers_is_that_of_finite_differences(tokens):
    x = torch.from_numpy(tokens)
    mean, slope = power_mean_with_slope(
        x, torch.full((D,), 1.7, dtype=torch.float64), None, signed=True
    )
    high, low = (pool_gem(x, p=1.7 + step, negative="signed") for step in (1e-6, -1e-6))
    np.testing.assert_allclose(mean, pool_gem(x, p=1.7, negative="signed"), rtol=1e-10)
    # The sums of these tokens keep away from zero, where the root has no slope.
    np.testing.assert_allclose(slope, (high - low) / 2e-6, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("signed", [False, True])
def test_slope_of_extreme_tokens_is_finite(signed):
    x = torch.tensor([[[1e30, 1e-30, 0.0], [1e-30, 1e-30, 0.0]]])
    x = x if signed else x.clamp_min(1e-35)
    for p in (0.11, 3.0, 200.0):
        for value in power_mean_with_slope(x, torch.full((3,), p), None, signed=signed):
            assert torch.isfinite(value).all()


@pytest.mark.parametrize("negative", NEGATIVE)
def test_gradient_by_the_exponents_is_right(tokens, negative):
    module = LearnedGeM(np.array([1.5, 4.0]), D, options_of(negative, tokens))
    theta = module.theta.detach().clone().requires_grad_()

    def pooled(theta):
        arguments = (torch.from_numpy(tokens), None)
        return torch.func.functional_call(module, {"theta": theta}, arguments)

    assert torch.autograd.gradcheck(pooled, (theta,))


@pytest.mark.parametrize("negative", NEGATIVE)
@pytest.mark.parametrize("with_mask", [False, True])
def test_module_pools_as_the_kernel(tokens, negative, with_mask):
    mask = torch.arange(L) < torch.tensor([5, 1, 3, 2, 4, 5])[:, None] if with_mask else None
    x = torch.from_numpy(tokens)
    options = options_of(negative, tokens)
    module = LearnedGeM(np.array([1.5, 40.0]), D, options)
    np.testing.assert_allclose(module.exponents.detach(), [1.5, 40.0], rtol=1e-12)
    expected = pool_gem(x, mask, p=torch.tensor([1.5, 1.5, 40.0, 40.0]), **options)
    dirty = x if mask is None else x.where(mask[..., None], torch.nan)
    np.testing.assert_allclose(module(dirty, mask).detach(), expected, rtol=1e-10)


def means_of_power(true_p: float, n: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Positive tokens whose power mean of one exponent decides the class, with some noise."""
    rng = np.random.default_rng(0)
    X = rng.gamma(1.0, size=(n, 4, 1))
    power_mean = stats.pmean(X[..., 0], true_p, axis=1)
    noisy = np.log(power_mean) + 0.2 * rng.normal(size=n)
    return X, (noisy > np.median(noisy)).astype(int)


@pytest.mark.parametrize("true_p", [1.0, 8.0])
def test_learned_exponent_has_the_least_loss_of_a_logistic_regression(true_p):
    X, y = means_of_power(true_p)
    pooling = GeMPooling(learn_p=True, lr=0.1, max_epochs=30).fit(X, y)

    def loss(p: float) -> float:
        z = StandardScaler().fit_transform(GeMPooling(p=p).fit_transform(X))
        proba = LogisticRegression(C=np.inf, tol=1e-8).fit(z, y).predict_proba(z)
        return -np.log(proba[np.arange(len(y)), y]).mean()

    best = min(loss(p) for p in np.geomspace(0.2, 40, 40))
    assert loss(3.0) > best + 0.002
    assert loss(pooling.p_[0]) < best + 2e-4


@pytest.mark.parametrize("true_p", [1.0, 8.0])
def test_exponent_moves_the_right_way_from_the_first_steps(true_p):
    X, y = means_of_power(true_p)
    p = GeMPooling(learn_p=True, max_epochs=3).fit(X, y).p_[0]
    assert (p - 3.0) * (true_p - 3.0) > 0


def test_scale_of_the_tokens_does_not_matter_to_the_exponent():
    X, y = means_of_power(1.0, n=100)
    p = GeMPooling(eps=1e-9, learn_p=True).fit(X, y).p_
    np.testing.assert_allclose(GeMPooling(eps=1e-9, learn_p=True).fit(1e3 * X, y).p_, p, rtol=1e-6)


def test_groups_learn_exponents_of_their_own():
    mean_like, y = means_of_power(1.0)
    X = np.concatenate([mean_like, np.random.default_rng(1).gamma(1.0, size=mean_like.shape)], 2)
    # The second feature tells the class by its largest value.
    X[np.arange(len(y)), 0, 1] = np.where(y, 4.0, 3.0) + 3.0
    p = GroupGeMPooling(2, negative="clamp", learn_p=True, lr=0.05).fit(X, y).p_
    assert p.shape == (2,) and p[0] < 3.0 < p[1]


def test_search_takes_the_least_error_of_an_explicit_leave_one_out():
    X, y = means_of_power(6.0, n=40)
    target = 2.0 * y - 1.0

    def error(p: float, alpha: float) -> float:
        z = StandardScaler().fit_transform(GeMPooling(p=p).fit_transform(X))
        predicted = cross_val_predict(Ridge(alpha), z, target, cv=LeaveOneOut())
        return ((predicted - target) ** 2).mean()

    alphas = 40 * np.logspace(-4, 1, 6)
    errors = {p: min(error(p, alpha) for alpha in alphas) for p in (1.0, 2.0, 3.0, 4.0, 6.0, 10.0)}
    assert GeMPooling(learn_p="cv").fit(X, y).p_.tolist() == [min(errors, key=errors.get)]


def test_search_gives_groups_exponents_of_their_own():
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    X = rng.gamma(1.0, size=(200, 6, 2))
    # One feature has a larger mean beside large outliers, the other a larger maximum.
    X[..., 0] += 0.4 * y[:, None]
    X[np.arange(200), rng.integers(6, size=200), 0] += 20 * rng.random(200)
    X[np.arange(200), rng.integers(6, size=200), 1] = 6.0 + y + 0.2 * rng.normal(size=200)
    pooling = GroupGeMPooling(2, negative="clamp", learn_p="cv").fit(X, y)
    assert pooling.p_.tolist() == [1.0, 10.0]


@pytest.mark.parametrize("learn_p", [True, "cv"])
@pytest.mark.parametrize("negative", NEGATIVE)
def test_learned_exponents_are_those_of_the_kernel(tokens, learn_p, negative):
    y = np.arange(N) % 2
    learned = GroupGeMPooling(2, negative=negative, learn_p=learn_p, max_epochs=3).fit(tokens, y)
    given = GroupGeMPooling(2, p=learned.p_, negative=negative).fit(tokens)
    np.testing.assert_array_equal(learned.transform(tokens), given.transform(tokens))


@pytest.mark.parametrize("learn_p", [True, "cv"])
def test_same_seed_learns_the_same_bits(tokens, learn_p):
    y = np.arange(N) % 2
    before = torch.get_rng_state()
    pooling = GroupGeMPooling(2, learn_p=learn_p).fit(tokens, y)
    np.testing.assert_array_equal(clone(pooling).fit(tokens, y).p_, pooling.p_)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("limit", [2**30, 0])
@pytest.mark.parametrize("learn_p", [True, "cv"])
def test_lazy_tokens_learn_the_bits_of_their_array(tokens, learn_p, limit):
    y = np.arange(N) % 2
    mask = np.arange(L) < np.array([5, 1, 3, 2, 4, 5])[:, None]
    pooling = GroupGeMPooling(2, learn_p=learn_p)
    desired = pooling.fit(TokenArray.from_array(tokens, mask=mask), y).p_
    with skpool.config_context(max_array_bytes=limit):
        actual = clone(pooling).fit(TokenArray(LazySource(tokens, mask)), y).p_
    np.testing.assert_array_equal(actual, desired)


@pytest.mark.parametrize("learn_p", [True, "cv"])
def test_samples_without_tokens_teach_no_exponent(tokens, learn_p):
    y = np.arange(N) % 2
    mask = np.ones((N, L), dtype=bool)
    mask[2] = False
    others = np.delete(np.arange(N), 2)
    options = {"learn_p": learn_p, "negative": "clamp", "empty": "zero"}
    whole = GroupGeMPooling(2, **options).fit(TokenArray.from_array(tokens, mask=mask), y)
    part = GroupGeMPooling(2, **options).fit(tokens[others], y[others])
    np.testing.assert_array_equal(whole.p_, part.p_)


@pytest.mark.parametrize("learn_p", [True, "cv"])
def test_learning_needs_labels_of_two_classes(tokens, learn_p):
    pooling = GeMPooling(learn_p=learn_p)
    assert (
        get_tags(pooling).target_tags.required and not get_tags(GeMPooling()).target_tags.required
    )
    with pytest.raises(ValueError, match="requires y to be passed, but the target y is None"):
        pooling.fit(tokens)
    with pytest.raises(ValueError, match="one class"):
        pooling.fit(tokens, np.ones(N))
    with pytest.raises(NotFittedError):
        pooling.transform(tokens)


@pytest.mark.parametrize("p", [0.05, -1.0, np.inf])
def test_start_without_a_slope_is_refused(tokens, p):
    with pytest.raises(ValueError, match=r"learn_p=True starts from; give finite exponents"):
        GeMPooling(p=p, learn_p=True).fit(tokens, np.arange(N) % 2)


def test_result_of_learned_exponents_has_no_name(tokens):
    assert GeMPooling(learn_p=True)._fingerprint() is None
    assert GeMPooling(learn_p="cv")._fingerprint() is None


# What scikit-learn needs.


@pytest.mark.parametrize("pooling", [GeMPooling(negative="shift"), GroupGeMPooling(2, p=[1, 2])])
def test_pickle_gives_the_same_vectors(tokens, pooling):
    expected = pooling.fit_transform(tokens)
    again = pickle.loads(pickle.dumps(pooling))
    np.testing.assert_array_equal(again.transform(tokens), expected)


@pytest.mark.parametrize("pooling", [GeMPooling(), GroupGeMPooling(2)])
def test_there_is_a_name_for_each_output(tokens, pooling):
    frame = pooling.set_output(transform="pandas").fit_transform(tokens)
    assert list(frame.columns) == [f"{type(pooling).__name__.lower()}{j}" for j in range(D)]


def test_result_of_a_learned_pooling_is_not_named_by_its_parameters():
    class Recorder(TokenArray):
        def reduce(self, function, *, fingerprint=None, batch_size=None):
            names.append(fingerprint)
            return super().reduce(function, fingerprint=fingerprint, batch_size=batch_size)

    X = Recorder.from_array(np.random.default_rng(0).normal(size=(N, L, D)))
    poolings = [
        GeMPooling(),
        GeMPooling(p=4.0),
        GeMPooling(negative="signed"),
        GeMPooling(scope="all"),
        TokenPooling(),
        TokenPooling("max"),
        TokenPooling("weighted_mean", weights=[1, 2, 3, 4, 5]),
    ]
    names = []
    for pooling in poolings:
        pooling.transform(X)
    assert None not in names and len(set(names)) == len(poolings)
    learned = GeMPooling(negative="shift").fit(X)
    names = []
    learned.transform(X)
    TokenPooling(lambda tokens, mask: tokens[:, 0]).transform(X)
    assert names == [None, None]


def test_size_of_the_helpings_does_not_name_a_result():
    assert GeMPooling(batch_size=1)._fingerprint() == GeMPooling()._fingerprint()
