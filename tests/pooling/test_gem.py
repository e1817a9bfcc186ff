# SPDX-License-Identifier: BSD-3-Clause
"""GeMPooling and GroupGeMPooling: parameters, what is learned, and agreement with each other."""

import pickle

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.estimator_checks import parametrize_with_checks

from skpool.pooling import GeMPooling, GroupGeMPooling, TokenPooling
from skpool.stores import TokenArray

N, L, D = 6, 5, 4


@parametrize_with_checks(
    [
        GeMPooling(),
        GeMPooling(negative="shift"),
        GeMPooling(negative="signed"),
        GroupGeMPooling(n_groups=1),
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
