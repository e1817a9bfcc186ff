# SPDX-License-Identifier: BSD-3-Clause
"""The kernels against loops over rows written from the formulas, and the laws they all keep."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from skpool.pooling import POOLINGS, _kernels

N, L, D = 5, 7, 6


def _gem_of_row(x):
    return np.mean(np.maximum(x, 1e-6) ** 3, axis=0) ** (1 / 3)


# The formulas, for the real tokens (T, d) of one sample.
FORMULAS = {
    "avgmax": lambda x: (x.sum(0) / len(x) + x.max(0)) / 2,
    "cls": lambda x: x[0],
    "first": lambda x: x[0],
    "gem": _gem_of_row,
    "last": lambda x: x[-1],
    "max": lambda x: np.array([max(column) for column in x.T]),
    "mean": lambda x: x.sum(0) / len(x),
    "mean_sqrt_len": lambda x: x.sum(0) / np.sqrt(len(x)),
    "min": lambda x: np.array([min(column) for column in x.T]),
    "std": lambda x: np.sqrt(((x - x.mean(0)) ** 2).sum(0) / len(x)),
    "sum": lambda x: x.sum(0),
    "weighted_mean": lambda x: (
        sum((t + 1) * x[t] for t in range(len(x))) / (len(x) * (len(x) + 1) / 2)
    ),
}
MASKABLE = sorted(set(POOLINGS) - {"cls"})
UNORDERED = sorted(set(POOLINGS) - {"cls", "first", "last", "weighted_mean"})
OF_THE_DISTRIBUTION = ["avgmax", "gem", "max", "mean", "min", "std"]

every_kernel = pytest.mark.parametrize("name", sorted(POOLINGS))
maskable_kernel = pytest.mark.parametrize("name", MASKABLE)


@pytest.fixture(params=["one block", "a row per block"])
def blocks(request, monkeypatch):
    """Both ways in which a kernel may go through its rows."""
    monkeypatch.setattr(_kernels, "_BLOCK_BYTES", 2**40 if request.param == "one block" else 0)


def make_tokens(seed=0, shape=(N, L, D)):
    return np.random.default_rng(seed).normal(size=shape)


def make_mask(seed=0, shape=(N, L)):
    mask = np.random.default_rng(seed).random(shape) < 0.6
    mask[:, 2] = True
    return mask


def pool(name, x, mask=None, **options):
    mask = None if mask is None else torch.as_tensor(mask)
    return POOLINGS[name](torch.as_tensor(x), mask, **options).numpy()


def test_formulas_cover_the_registry():
    assert set(FORMULAS) == set(POOLINGS)


@every_kernel
def test_kernel_equals_its_formula(name, blocks):
    x = make_tokens()
    expected = [FORMULAS[name](row) for row in x]
    np.testing.assert_allclose(pool(name, x), expected, rtol=1e-12)


@maskable_kernel
def test_masked_kernel_equals_its_formula_on_the_real_tokens(name, blocks):
    x, mask = make_tokens(), make_mask()
    expected = [FORMULAS[name](row[real]) for row, real in zip(x, mask, strict=True)]
    np.testing.assert_allclose(pool(name, x, mask), expected, rtol=1e-12)


def test_cls_is_the_first_token_under_any_mask():
    x, mask = make_tokens(), make_mask()
    mask[:, 0] = False
    np.testing.assert_array_equal(pool("cls", x, mask), x[:, 0])


@every_kernel
def test_full_mask_changes_nothing(name):
    x = make_tokens()
    np.testing.assert_allclose(
        pool(name, x, np.ones((N, L), dtype=bool)), pool(name, x), rtol=1e-12
    )


@maskable_kernel
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("garbage", [1e9, -1e9, np.nan, np.inf, -np.inf])
def test_padding_is_never_seen(name, side, garbage, blocks):
    x = make_tokens()
    rubbish, real = np.full((N, 3, D), garbage), np.ones((N, L), dtype=bool)
    blank = np.zeros((N, 3), dtype=bool)
    order = slice(None, None, 1 if side == "right" else -1)
    padded = np.concatenate([x, rubbish][order], axis=1)
    mask = np.concatenate([real, blank][order], axis=1)
    np.testing.assert_allclose(pool(name, padded, mask), pool(name, x), rtol=1e-12)


@pytest.mark.parametrize("negative", ["clamp", "shift", "signed"])
@pytest.mark.parametrize("p", [0.01, 1.0, 2.7, 500.0, np.inf])
def test_gem_never_sees_padding_for_any_rule(negative, p):
    x, mask = make_tokens(), make_mask()
    options = {"p": p, "negative": negative, "minimum": torch.from_numpy(x.min((0, 1)))}
    dirty = np.where(mask[..., None], x, np.nan)
    expected = np.stack(
        [pool("gem", row[real][None], **options)[0] for row, real in zip(x, mask, strict=True)]
    )
    np.testing.assert_allclose(pool("gem", dirty, mask, **options), expected, rtol=1e-10)


@pytest.mark.parametrize("name", UNORDERED)
def test_order_of_tokens_does_not_matter(name):
    x, mask = make_tokens(), make_mask()
    order = np.random.default_rng(1).permutation(L)
    np.testing.assert_allclose(
        pool(name, x[:, order], mask[:, order]), pool(name, x, mask), rtol=1e-12
    )


@pytest.mark.parametrize("name", OF_THE_DISTRIBUTION)
def test_doubling_every_token_changes_nothing(name):
    x, mask = make_tokens(), make_mask()
    twice = np.repeat(x, 2, axis=1), np.repeat(mask, 2, axis=1)
    np.testing.assert_allclose(pool(name, *twice), pool(name, x, mask), rtol=1e-12)


@pytest.mark.parametrize("name", sorted(set(POOLINGS) - {"std", "gem"}))
def test_one_token_is_returned(name):
    x = make_tokens(shape=(N, 1, D))
    np.testing.assert_allclose(pool(name, x), x[:, 0], rtol=1e-15)


def test_std_of_one_token_is_zero():
    np.testing.assert_array_equal(pool("std", make_tokens(shape=(N, 1, D))), 0.0)


@pytest.mark.parametrize("p", [-3.0, 0.0, 0.01, 1.0, 3.0, 5.0, 6.5, np.inf])
def test_gem_of_one_positive_token_is_the_token(p):
    x = abs(make_tokens(shape=(N, 1, D))) + 0.1
    np.testing.assert_allclose(pool("gem", x, p=p), x[:, 0], rtol=1e-13)


@pytest.mark.parametrize("name", sorted(set(POOLINGS) - {"std", "sum", "mean_sqrt_len"}))
def test_equal_tokens_give_that_token(name):
    x = np.repeat(abs(make_tokens(shape=(N, 1, D))) + 0.1, L, axis=1)
    np.testing.assert_allclose(pool(name, x), x[:, 0], rtol=1e-12)


@every_kernel
def test_rows_do_not_see_each_other(name, blocks):
    x, mask = make_tokens(), make_mask()
    whole = pool(name, x, mask)
    alone = np.concatenate([pool(name, x[i : i + 1], mask[i : i + 1]) for i in range(N)])
    np.testing.assert_allclose(whole, alone, rtol=1e-12)


@every_kernel
def test_nan_in_one_row_stays_in_that_row(name):
    x = make_tokens()
    x[1] = np.nan
    others = [0, 2, 3, 4]
    np.testing.assert_array_equal(pool(name, x)[others], pool(name, x[others]))


@every_kernel
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_and_returned_in_float32(name, dtype, blocks):
    x = torch.from_numpy(make_tokens()).to(dtype)
    mask = torch.from_numpy(make_mask())
    expected = POOLINGS[name](x.float(), mask)
    actual = POOLINGS[name](x, mask)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)


@every_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_is_kept(name, dtype):
    x, mask = torch.from_numpy(make_tokens()).to(dtype), torch.from_numpy(make_mask())
    assert POOLINGS[name](x, mask).dtype == dtype
    assert POOLINGS[name](x).dtype == dtype


@pytest.mark.parametrize("name", ["sum", "mean", "mean_sqrt_len", "std", "weighted_mean", "gem"])
def test_massive_activation_in_half_precision_gives_the_value_of_float64(name):
    # 300 tokens of 300 sum to 90,000, beyond the largest float16, as do their squares.
    x = np.random.default_rng(0).uniform(0.1, 1.0, (2, 300, 4)).astype(np.float16)
    x[:, :, 1] = 300.0
    x[:, ::2, 1] = 250.0
    expected = [FORMULAS[name](row) for row in x.astype(np.float64)]
    np.testing.assert_allclose(pool(name, x), expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("p", [6.0, 10.0, 20.0])
@pytest.mark.parametrize("negative", ["clamp", "signed"])
def test_gem_of_a_massive_activation_is_finite_and_right(dtype, p, negative):
    x = torch.rand((2, 50, 3), generator=torch.Generator().manual_seed(0)) + 0.1
    x[:, 4, 1] = 300.0
    x = x.to(dtype)
    expected = stats.pmean(x.double().numpy(), p, axis=1)
    actual = POOLINGS["gem"](x, p=p, negative=negative)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5)


@every_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("masked", [False, True])
def test_input_is_never_modified(name, dtype, masked):
    x = torch.from_numpy(make_tokens()).to(dtype)
    mask = torch.from_numpy(make_mask()) if masked else None
    before = x.clone(), None if mask is None else mask.clone()
    POOLINGS[name](x, mask)
    assert torch.equal(x, before[0])
    assert mask is None or torch.equal(mask, before[1])


@pytest.mark.parametrize("negative", ["clamp", "shift", "signed"])
@pytest.mark.parametrize("p", [1e-30, 0.01, 1.0, 2.0, 3.0, 4.0, 5.0, 2.7, np.inf])
def test_gem_never_modifies_positive_tokens(negative, p):
    x = torch.from_numpy(abs(make_tokens()) + 1)
    before = x.clone()
    POOLINGS["gem"](x, p=p, negative=negative, minimum=torch.zeros(D, dtype=x.dtype))
    assert torch.equal(x, before)


@every_kernel
def test_strided_tokens_equal_contiguous_ones(name, blocks):
    x = make_tokens()
    strided = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 2, 1))).transpose(1, 2)
    np.testing.assert_allclose(POOLINGS[name](strided).numpy(), pool(name, x), rtol=1e-12)


@every_kernel
def test_no_rows_give_no_vectors(name):
    assert pool(name, np.zeros((0, L, D))).shape == (0, D)


def test_long_rows_keep_their_digits():
    x = (make_tokens(shape=(1, 30_000, 2)) + 1000).astype(np.float32)
    expected = x.astype(np.float64).mean(1)
    np.testing.assert_allclose(pool("mean", x), expected, rtol=3e-7)
    mask = np.ones((1, 30_000), dtype=bool)
    np.testing.assert_allclose(pool("mean", x, mask), expected, rtol=3e-7)


def test_std_keeps_its_digits_far_from_zero():
    x = (make_tokens(shape=(2, 200, 3)) + 1e4).astype(np.float32)
    np.testing.assert_allclose(pool("std", x), x.astype(np.float64).std(1), rtol=1e-3)


def test_max_and_mean_equal_torch_adaptive_pooling():
    x = torch.from_numpy(make_tokens())
    channels = x.transpose(1, 2)
    maximum = torch.nn.functional.adaptive_max_pool1d(channels, 1)[..., 0]
    mean = torch.nn.functional.adaptive_avg_pool1d(channels, 1)[..., 0]
    torch.testing.assert_close(POOLINGS["max"](x), maximum)
    torch.testing.assert_close(POOLINGS["mean"](x), mean)


def test_weighted_mean_equals_numpy_average():
    x, weights = make_tokens(), np.arange(L) ** 2.0
    expected = np.average(x, axis=1, weights=weights)
    actual = pool("weighted_mean", x, weights=torch.from_numpy(weights))
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_weighted_mean_with_mask_equals_numpy_average_of_the_real_tokens(blocks):
    x, mask, weights = make_tokens(), make_mask(), np.arange(1.0, L + 1) ** 2
    expected = [
        np.average(row[real], axis=0, weights=weights[real])
        for row, real in zip(x, mask, strict=True)
    ]
    actual = pool("weighted_mean", x, mask, weights=torch.from_numpy(weights))
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


@settings(deadline=None, max_examples=40)
@given(
    x=arrays(np.float64, (3, 5, 2), elements=st.floats(-1e3, 1e3)),
    lengths=st.lists(st.integers(1, 5), min_size=3, max_size=3),
)
def test_last_and_weighted_mean_do_not_depend_on_the_side_of_the_padding(x, lengths):
    right, left = np.full_like(x, np.nan), np.full_like(x, np.nan)
    mask_right, mask_left = np.zeros((3, 5), bool), np.zeros((3, 5), bool)
    for i, length in enumerate(lengths):
        right[i, :length] = left[i, 5 - length :] = x[i, :length]
        mask_right[i, :length] = mask_left[i, 5 - length :] = True
    for name in ("first", "last", "weighted_mean"):
        np.testing.assert_allclose(
            pool(name, left, mask_left), pool(name, right, mask_right), rtol=1e-12, atol=1e-9
        )


# The generalized mean.

POSITIVE = arrays(np.float64, (2, 6, 3), elements=st.floats(0.01, 100.0))
SIGNED = arrays(np.float64, (2, 6, 3), elements=st.floats(-100.0, 100.0))
EXPONENTS = st.floats(-30.0, 30.0)


@settings(deadline=None, max_examples=60)
@given(x=POSITIVE, p=EXPONENTS)
def test_gem_of_positive_tokens_equals_scipy_pmean(x, p):
    # scipy takes the root of rounded powers, so its own error grows as p goes to 0.
    rtol = 1e-11 if abs(p) > 1e-3 else 1e-9 + 1e-14 / max(abs(p), 1e-12)
    expected = stats.pmean(x, p, axis=1) if abs(p) > 1e-5 else stats.gmean(x, axis=1)
    rtol = rtol if abs(p) > 1e-5 else 1e-3
    np.testing.assert_allclose(pool("gem", x, p=p), expected, rtol=rtol)


@settings(deadline=None, max_examples=40)
@given(x=POSITIVE)
def test_gem_with_p_zero_is_the_geometric_mean(x):
    np.testing.assert_allclose(pool("gem", x, p=0.0), stats.gmean(x, axis=1), rtol=1e-12)


@pytest.mark.parametrize("p", [1e-300, 1e-30, 1e-12, 1e-6, 1e-4, -1e-4, -1e-6, -1e-30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gem_tends_to_the_geometric_mean_as_p_goes_to_zero(p, dtype):
    x = np.random.default_rng(0).uniform(0.01, 10.0, (3, 50, 4)).astype(dtype)
    expected = stats.gmean(x.astype(np.float64), axis=1)
    # By the second term of the expansion the distance is p times half the variance of log x.
    rtol = 2 * abs(p) + (1e-5 if dtype == np.float32 else 1e-12)
    np.testing.assert_allclose(pool("gem", x, p=p), expected, rtol=rtol)


@pytest.mark.parametrize("p", [-0.0999, -0.03, 0.001, 0.05, 0.0999, 0.1001])
def test_gem_in_float32_keeps_its_digits_for_small_p(p):
    x = np.random.default_rng(0).uniform(-1.0, 10.0, (3, 50, 4)).astype(np.float32)
    expected = stats.pmean(np.maximum(x.astype(np.float64), np.float32(1e-6)), p, axis=1)
    np.testing.assert_allclose(pool("gem", x, p=p), expected, rtol=2e-5)


@settings(deadline=None, max_examples=60)
@given(x=SIGNED, p=st.tuples(EXPONENTS, EXPONENTS), rule=st.sampled_from(["clamp", "shift"]))
def test_gem_grows_with_p(x, p, rule):
    low, high = sorted(p)
    options = {"negative": rule, "minimum": torch.from_numpy(x.min((0, 1)))}
    smaller, larger = pool("gem", x, p=low, **options), pool("gem", x, p=high, **options)
    assert (smaller <= larger + 1e-9 * (1 + abs(larger))).all()


@settings(deadline=None, max_examples=40)
@given(x=POSITIVE, p=EXPONENTS, c=st.floats(0.01, 100.0))
def test_gem_scales_with_its_tokens(x, p, c):
    np.testing.assert_allclose(pool("gem", c * x, p=p), c * pool("gem", x, p=p), rtol=1e-9)


@settings(deadline=None, max_examples=40)
@given(x=SIGNED, c=st.floats(0.01, 100.0), p=st.sampled_from([1.0, 3.0, 20.0, np.inf]))
def test_signed_gem_is_odd_and_scales(x, c, p):
    signed = {"p": p, "negative": "signed"}
    np.testing.assert_array_equal(pool("gem", -x, **signed), -pool("gem", x, **signed))
    np.testing.assert_allclose(
        pool("gem", 4 * x, **signed), 4 * pool("gem", x, **signed), rtol=1e-9, atol=1e-300
    )


@settings(deadline=None, max_examples=40)
@given(x=SIGNED)
def test_signed_gem_with_p_one_is_the_mean(x):
    np.testing.assert_allclose(
        pool("gem", x, p=1.0, negative="signed"), x.mean(1), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("p", [0.5, 2.0, 3.0, 4.5])
def test_signed_gem_equals_its_formula(p):
    x, mask = make_tokens(), make_mask()
    expected = []
    for row, real in zip(x, mask, strict=True):
        s = np.mean(np.sign(row[real]) * abs(row[real]) ** p, axis=0)
        expected.append(np.sign(s) * abs(s) ** (1 / p))
    actual = pool("gem", x, mask, p=p, negative="signed")
    np.testing.assert_allclose(actual, expected, rtol=1e-11)


@pytest.mark.parametrize("p", [100_000.0, np.inf])
def test_signed_gem_tends_to_the_value_of_largest_magnitude(p):
    x = make_tokens()
    largest = np.take_along_axis(x, abs(x).argmax(1, keepdims=True), axis=1)[:, 0]
    np.testing.assert_allclose(pool("gem", x, p=p, negative="signed"), largest, rtol=1e-4)


def test_signed_gem_with_infinite_p_is_the_more_frequent_of_two_equal_magnitudes():
    x = np.array([[[2.0, -2.0, 2.0, 0.0], [2.0, 2.0, -2.0, 0.0], [-2.0, -2.0, 1.0, 0.0]]])
    actual = pool("gem", x, p=np.inf, negative="signed")
    np.testing.assert_array_equal(actual, [[2.0, -2.0, 0.0, 0.0]])


@settings(deadline=None, max_examples=40)
@given(x=SIGNED)
def test_shifted_gem_with_p_one_is_the_mean_of_tokens_above_the_minimum(x):
    minimum = torch.from_numpy(x.min((0, 1)))
    actual = pool("gem", x, p=1.0, negative="shift", minimum=minimum)
    np.testing.assert_allclose(actual, x.mean(1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("p", [-2.0, 0.0, 0.05, 2.0, 3.0, 7.0])
def test_shifted_gem_equals_its_formula(p):
    x, eps = make_tokens(), 0.01
    minimum = np.linspace(-1.0, 0.0, D)
    z = np.maximum(x - minimum, 0) + eps
    expected = stats.pmean(z, p, axis=1) + minimum - eps
    actual = pool("gem", x, p=p, negative="shift", eps=eps, minimum=torch.from_numpy(minimum))
    np.testing.assert_allclose(actual, expected, rtol=1e-11)


@pytest.mark.parametrize(("p", "extreme"), [(np.inf, np.max), (-np.inf, np.min)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gem_with_infinite_p_is_the_extreme(p, extreme, dtype):
    x = (abs(make_tokens()) + 0.1).astype(dtype)
    np.testing.assert_array_equal(pool("gem", x, p=p), extreme(x, axis=1))


@pytest.mark.parametrize(("p", "extreme"), [(500.0, np.max), (-500.0, np.min)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0, 1e30])
def test_gem_in_float32_is_finite_and_near_the_extreme_for_large_p(p, extreme, scale):
    x = ((abs(make_tokens()) + 0.3) * scale).astype(np.float32)
    # The power mean lies within a factor of L ** (1 / |p|) of the extreme.
    factor = L ** (1 / 500.0)
    actual, bound = pool("gem", x, p=p), extreme(x, axis=1)
    assert np.isfinite(actual).all()
    np.testing.assert_allclose(actual, bound, rtol=factor - 1 + 1e-5)
    np.testing.assert_allclose(
        actual / scale, stats.pmean(x.astype(np.float64) / scale, p, axis=1), rtol=1e-5
    )


def test_gem_with_negative_p_puts_eps_for_zeros():
    x = np.array([[[0.0], [2.0], [4.0]]])
    expected = stats.hmean([1e-3, 2.0, 4.0])
    np.testing.assert_allclose(pool("gem", x, p=-1.0, eps=1e-3), [[expected]], rtol=1e-12)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, 4.0, 5.0, 2.5])
def test_gem_of_maps_equals_lp_pooling(p):
    x = torch.from_numpy(abs(make_tokens(shape=(4, 30, 3))) + 0.01)
    maps = x.transpose(1, 2).reshape(4, 3, 5, 6)
    pooled = torch.nn.functional.lp_pool2d(maps, p, kernel_size=(5, 6))[..., 0, 0]
    torch.testing.assert_close(POOLINGS["gem"](x, p=p), pooled / 30 ** (1 / p))


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, 4.0, 5.0, 2.5])
def test_gem_equals_the_usual_one_liner(p):
    x = torch.from_numpy(make_tokens()).float()
    expected = x.clamp(min=1e-6).pow(p).mean(1).pow(1 / p)
    torch.testing.assert_close(POOLINGS["gem"](x, p=p), expected)


@pytest.mark.parametrize("negative", ["clamp", "shift", "signed"])
def test_gem_with_one_p_per_feature_equals_gem_of_each_feature(negative, blocks):
    x, mask = make_tokens(), make_mask()
    p = torch.tensor([2.0, 2.0, 1.0, 7.5, np.inf, 2.0], dtype=torch.float64)
    minimum = torch.from_numpy(x.min((0, 1)))
    actual = pool("gem", x, mask, p=p, negative=negative, minimum=minimum)
    for j in range(D):
        alone = pool(
            "gem",
            x[:, :, j : j + 1],
            mask,
            p=float(p[j]),
            negative=negative,
            minimum=minimum[j : j + 1],
        )
        np.testing.assert_allclose(actual[:, j], alone[:, 0], rtol=1e-12)
