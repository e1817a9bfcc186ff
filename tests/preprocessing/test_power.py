# SPDX-License-Identifier: BSD-3-Clause
"""PowerNormalizer against numpy and its identities."""

import numpy as np
import pytest
import torch
from sklearn.preprocessing import Normalizer

from skpool.preprocessing import PowerNormalizer


@pytest.fixture
def X():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((20, 12))
    X[:, 4] = 0.0
    return X


@pytest.mark.parametrize("power", [0.25, 0.5, 1.0, 2.0, 3.3])
def test_equals_numpy(X, power):
    got = PowerNormalizer(power).fit_transform(X)
    np.testing.assert_allclose(got, np.sign(X) * np.abs(X) ** power, rtol=1e-13)


def test_power_one_is_the_identity(X):
    np.testing.assert_array_equal(PowerNormalizer(1.0).transform(X), X)


def test_is_odd(X):
    np.testing.assert_array_equal(PowerNormalizer().transform(-X), -PowerNormalizer().transform(X))


def test_squared_norm_of_the_root_is_the_l1_norm(X):
    Z = PowerNormalizer().transform(X)
    np.testing.assert_allclose((Z**2).sum(1), np.abs(X).sum(1), rtol=1e-13)


def test_l1_first_and_root_give_unit_length(X):
    Z = PowerNormalizer(l1_first=True).transform(X)
    np.testing.assert_allclose(np.linalg.norm(Z, axis=1), 1.0, rtol=1e-13)
    np.testing.assert_allclose(
        Z, np.sign(X) * np.sqrt(np.abs(Normalizer("l1").transform(X))), rtol=1e-12
    )


@pytest.mark.parametrize("power", [0.25, 0.5, 2.0])
def test_clip_gives_the_unsigned_power_of_what_is_not_negative(X, power):
    Z = PowerNormalizer(power, clip=True).fit_transform(X)
    np.testing.assert_allclose(Z, np.maximum(X, 0.0) ** power, rtol=1e-13)
    positive = np.abs(X)
    np.testing.assert_array_equal(
        PowerNormalizer(power, clip=True).transform(positive),
        PowerNormalizer(power).transform(positive),
    )


@pytest.mark.parametrize("options", [{"l1_first": True}, {"l2": True}])
def test_clip_comes_before_every_norm(X, options):
    Z = PowerNormalizer(clip=True, **options).transform(X)
    np.testing.assert_allclose(np.linalg.norm(Z, axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(
        Z, PowerNormalizer(**options).transform(np.maximum(X, 0.0)), rtol=1e-13
    )


def test_tokens_are_raised_one_by_one(X):
    tokens = X.reshape(4, 5, 12)
    want = np.sign(tokens) * np.sqrt(np.abs(tokens))
    np.testing.assert_allclose(PowerNormalizer().fit_transform(tokens), want, rtol=1e-13)


@pytest.mark.parametrize("l1_first", [False, True])
def test_l2_scales_to_unit_length_afterwards(X, l1_first):
    Z = PowerNormalizer(2.0, l2=True, l1_first=l1_first).transform(X)
    np.testing.assert_allclose(Z, Normalizer().transform(np.sign(X) * X**2), rtol=1e-12)


def test_l2_does_not_overflow_on_the_way(X):
    rows = (X * 1e30).astype(np.float32)
    got = PowerNormalizer(3.0, l2=True).transform(rows)
    np.testing.assert_allclose(got, Normalizer().transform(rows.astype(float) ** 3), atol=1e-6)


def test_overflow_without_l2_is_refused(X):
    with pytest.raises(ValueError, match="too large for float32"):
        PowerNormalizer(3.0).transform((X * 1e30).astype(np.float32))


def test_float16_comes_back_as_float32():
    got = PowerNormalizer(2.0).transform(np.full((1, 4), 300, dtype=np.float16))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, 90_000.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_tensor_equals_array(X, dtype):
    T = torch.from_numpy(X).to(dtype)
    model = PowerNormalizer(0.3, l2=True, l1_first=True)
    got = model.fit_transform(T)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, model.transform(T.numpy()))


@pytest.mark.parametrize("power", [0.0, -1.0, "0.5"])
def test_power_must_be_above_zero(X, power):
    with pytest.raises(ValueError, match="power"):
        PowerNormalizer(power).fit(X)
