# SPDX-License-Identifier: BSD-3-Clause
"""LogSumExpPooling against scipy's logsumexp, its limits and bounds, and scikit-learn's scaler."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import logsumexp
from sklearn.exceptions import NotFittedError
from sklearn.preprocessing import StandardScaler
from sklearn.utils._param_validation import InvalidParameterError

from skpool.pooling import LogSumExpPooling
from skpool.pooling._log_sum_exp import pool_log_sum_exp
from skpool.stores import TokenArray

N, L, D = 5, 7, 4

SIGNED = arrays(np.float64, (2, 6, 3), elements=st.floats(-100.0, 100.0))
SHARPNESS = st.floats(-50.0, 50.0)


@pytest.fixture
def tokens():
    return np.random.default_rng(0).normal(size=(N, L, D)) * [0.1, 1.0, 5.0, 30.0]


@pytest.fixture
def mask():
    mask = np.random.default_rng(1).random((N, L)) < 0.6
    mask[:, 2] = True
    return mask


def pool(x, mask=None, **options):
    mask = None if mask is None else torch.from_numpy(mask)
    return pool_log_sum_exp(torch.from_numpy(x), mask, **options).numpy()


def by_scipy(x, r):
    """The formula for the tokens (T, d) of one sample."""
    return (logsumexp(r * x, axis=0) - np.log(len(x))) / r


# The kernel.


@pytest.mark.parametrize("r", [-1000.0, -3.0, -0.1, 0.01, 1.0, 10.0, 1e4])
def test_kernel_equals_scipy_logsumexp(tokens, r):
    expected = [by_scipy(x, r) for x in tokens]
    np.testing.assert_allclose(pool(tokens, r=r), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("r", [-3.0, 1.0, 1e4])
@pytest.mark.parametrize("garbage", [0.0, 1e30, -1e30, np.nan, np.inf, -np.inf])
def test_masked_kernel_equals_scipy_on_the_real_tokens(tokens, mask, r, garbage):
    dirty = np.where(mask[..., None], tokens, garbage)
    expected = [by_scipy(x[real], r) for x, real in zip(tokens, mask, strict=True)]
    np.testing.assert_allclose(pool(dirty, mask, r=r), expected, rtol=1e-11, atol=1e-12)


def test_scale_divides_before_and_multiplies_after(tokens):
    scale = np.array([0.1, 2.0, 7.0, 1e-3])
    expected = [[by_scipy(x[:, j] / s, 3.0) * s for j, s in enumerate(scale)] for x in tokens]
    actual = pool(tokens, r=3.0, scale=torch.from_numpy(scale))
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_sharpness_zero_is_the_mean(tokens, mask):
    expected = [x[real].mean(0) for x, real in zip(tokens, mask, strict=True)]
    np.testing.assert_allclose(pool(tokens, mask, r=0.0), expected, rtol=1e-13)


@settings(deadline=None, max_examples=60)
@given(x=SIGNED, r=st.floats(1e-18, 1e-2))
def test_sharpness_near_zero_is_near_the_mean(x, r):
    # Hoeffding's lemma bounds the distance by r / 8 times the squared range.
    above = pool(x, r=r) - x.mean(1)
    assert (above >= -1e-12 * (1 + np.abs(x).max())).all()
    assert (above <= r / 8 * np.ptp(x, axis=1) ** 2 + 1e-12 * (1 + np.abs(x).max())).all()


@pytest.mark.parametrize("r", [1e-3, 1e-5, 1e-8])
def test_small_sharpness_keeps_the_digits_of_float32(tokens, r):
    x = tokens.astype(np.float32)
    np.testing.assert_allclose(pool(x, r=r), x.mean(1), atol=r * 1e4 / 8 + 1e-5)


@settings(deadline=None, max_examples=60)
@given(x=SIGNED, r=st.floats(1.0, 1e6))
def test_large_sharpness_is_near_the_maximum(x, r):
    below = x.max(1) - pool(x, r=r)
    assert (below >= -1e-9).all()
    assert (below <= np.log(x.shape[1]) / r + 1e-9).all()


@pytest.mark.parametrize(("r", "function"), [(np.inf, np.max), (-np.inf, np.min)])
def test_infinite_sharpness_is_the_extreme(tokens, r, function):
    np.testing.assert_array_equal(pool(tokens, r=r), function(tokens, axis=1))
    # More than float32 holds is infinite to it.
    x = tokens.astype(np.float32)
    np.testing.assert_array_equal(pool(x, r=np.sign(r) * 1e300), function(x, axis=1))


@settings(deadline=None, max_examples=60)
@given(x=SIGNED, r=st.tuples(SHARPNESS, SHARPNESS))
def test_result_grows_with_the_sharpness(x, r):
    low, high = (pool(x, r=value) for value in sorted(r))
    assert (low <= high + 1e-9).all()


@settings(deadline=None, max_examples=60)
@given(x=SIGNED, r=SHARPNESS, c=st.floats(-100.0, 100.0))
def test_adding_a_constant_to_the_tokens_adds_it_to_the_result(x, r, c):
    np.testing.assert_allclose(pool(x + c, r=r), pool(x, r=r) + c, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(x=SIGNED, r=SHARPNESS)
def test_negative_sharpness_is_the_soft_minimum(x, r):
    np.testing.assert_allclose(pool(x, r=-r), -pool(-x, r=r), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("r", [-20.0, 0.3, 20.0])
def test_repeating_tokens_changes_nothing(tokens, mask, r):
    twice = np.repeat(tokens, 2, axis=1), np.repeat(mask, 2, axis=1)
    np.testing.assert_allclose(pool(*twice, r=r), pool(tokens, mask, r=r), rtol=1e-12)


@pytest.mark.parametrize("r", [-10.0, 0.1, 10.0, 1e4])
def test_equal_tokens_give_that_token_however_many(r):
    for n in (1, 3, 1000):
        x = np.full((1, n, 2), [-3.0, 5.0])
        np.testing.assert_allclose(pool(x, r=r), [[-3.0, 5.0]], rtol=1e-13)


def test_order_of_tokens_does_not_matter(tokens):
    expected = pool(tokens, r=2.0)
    np.testing.assert_allclose(pool(tokens[:, ::-1].copy(), r=2.0), expected, rtol=1e-12)


@pytest.mark.parametrize("r", [1e4, -1e4, 1e20, 1e37])
@pytest.mark.parametrize("size", [1e-20, 1.0, 300.0, 1e30])
def test_float32_is_finite_for_large_sharpness(tokens, r, size):
    x = (tokens * size).astype(np.float32)
    vectors = pool(x, r=r)
    assert vectors.dtype == np.float32 and np.isfinite(vectors).all()
    assert (vectors <= x.max(1)).all() and (vectors >= x.min(1)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("r", [0.1, 10.0, 20.0])
def test_massive_activation_in_half_precision_gives_the_value_of_float64(dtype, r):
    x = torch.randn((2, 50, 3), generator=torch.Generator().manual_seed(0))
    x[:, 4, 1] = 300.0
    x = x.to(dtype)
    expected = [by_scipy(row, r) for row in x.double().numpy()]
    actual = pool_log_sum_exp(x, r=r)
    assert actual.dtype == torch.float32
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_constant_features_among_others_keep_the_digits_of_the_others():
    # The mean of the exponentials is 1 for the one and small for the other.
    x = np.random.default_rng(0).normal(size=(3, 50, 2)).astype(np.float32)
    x[:, :, 1] = 7.0
    expected = [by_scipy(row, 5.0) for row in x.astype(np.float64)]
    np.testing.assert_allclose(pool(x, r=5.0), expected, rtol=1e-5)


def test_equal_tokens_of_a_sample_cost_the_others_no_digits():
    x = np.zeros((2, 3000, 1), dtype=np.float32)
    x[1, 7] = 100.0
    np.testing.assert_allclose(pool(x, r=1.0), [[0.0], [100 - np.log(3000)]], rtol=2e-7)


def test_rows_do_not_see_each_other(tokens, mask):
    alone = [pool(tokens[[i]], mask[[i]], r=4.0)[0] for i in range(N)]
    np.testing.assert_allclose(pool(tokens, mask, r=4.0), alone, rtol=1e-13)


# The fitted scale.


def test_scale_is_that_of_scikit_learn_over_all_real_tokens(tokens, mask):
    tokens[..., 0] = 3.7  # constant
    X = TokenArray.from_array(np.where(mask[..., None], tokens, np.nan), mask=mask)
    scaler = StandardScaler().fit(tokens[mask])
    pooling = LogSumExpPooling().fit(X)
    np.testing.assert_allclose(pooling.channel_scale_, scaler.scale_, rtol=1e-12)
    assert pooling.channel_scale_[0] == 1.0


def test_pooling_acts_in_units_of_the_scale(tokens):
    deviation = tokens.std(axis=(0, 1))
    expected = [[by_scipy(x[:, j], 2.0 / deviation[j]) for j in range(D)] for x in tokens]
    actual = LogSumExpPooling(r=2.0).fit_transform(tokens)
    np.testing.assert_allclose(actual, expected, rtol=1e-11)


def test_units_of_the_features_do_not_matter(tokens):
    units = np.array([1e-6, 0.3, 1.0, 1e5])
    expected = LogSumExpPooling().fit_transform(tokens) * units
    np.testing.assert_allclose(LogSumExpPooling().fit_transform(tokens * units), expected)


def test_scale_leaves_the_class_token_out(tokens):
    X = TokenArray.from_array(tokens, n_prefix_tokens=1)
    inside = LogSumExpPooling().fit(X).channel_scale_
    np.testing.assert_allclose(inside, tokens[:, 1:].std(axis=(0, 1)), rtol=1e-12)
    whole = LogSumExpPooling(scope="all").fit(X).channel_scale_
    np.testing.assert_allclose(whole, tokens.std(axis=(0, 1)), rtol=1e-12)


def test_scale_does_not_depend_on_the_batches(tokens):
    X = tokens.astype(np.float32)
    first, *others = [LogSumExpPooling(batch_size=b).fit(X).channel_scale_ for b in (1, 2, 256)]
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_scale_far_from_zero_keeps_its_digits():
    x = np.random.default_rng(0).normal(size=(4, 20, 2)).astype(np.float32) + 1000
    expected = x.astype(np.float64).std(axis=(0, 1))
    np.testing.assert_allclose(LogSumExpPooling().fit(x).channel_scale_, expected, rtol=1e-9)


def test_without_scale_nothing_is_learned_and_results_have_a_name(tokens):
    pooling = LogSumExpPooling(r=2.0, scale=None)
    expected = [by_scipy(x, 2.0) for x in tokens]
    np.testing.assert_allclose(pooling.transform(tokens), expected, rtol=1e-11)
    assert pooling._fingerprint() is not None
    assert pooling._fingerprint() != LogSumExpPooling(r=3.0, scale=None)._fingerprint()
    assert LogSumExpPooling(r=2.0).fit(tokens)._fingerprint() is None


def test_transform_before_fit_is_refused_where_a_scale_is_learned(tokens):
    with pytest.raises(NotFittedError):
        LogSumExpPooling().transform(tokens)


def test_samples_without_tokens_teach_nothing(tokens):
    X = TokenArray.from_array(tokens, mask=np.zeros((N, L), dtype=bool))
    with pytest.raises(ValueError, match="no sample with a real token"):
        LogSumExpPooling(empty="zero").fit(X)
    mask = np.ones((N, L), dtype=bool)
    mask[1:3] = False
    fitted = LogSumExpPooling(empty="nan").fit(TokenArray.from_array(tokens, mask=mask))
    np.testing.assert_allclose(fitted.channel_scale_, tokens[mask].std(axis=0), rtol=1e-12)


def test_sharpness_that_is_not_a_number_is_refused(tokens):
    with pytest.raises(ValueError, match="r=nan is not a number"):
        LogSumExpPooling(r=np.nan).fit(tokens)


@pytest.mark.parametrize("parameters", [{"r": "10"}, {"r": None}, {"scale": "var"}, {"scale": 2.0}])
def test_bad_parameter_is_refused(tokens, parameters):
    with pytest.raises(InvalidParameterError, match=next(iter(parameters))):
        LogSumExpPooling(**parameters).fit(tokens)
