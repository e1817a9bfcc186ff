# SPDX-License-Identifier: BSD-3-Clause
"""TokenSelector and SelectedTokenPooling against sorting by hand, sample by sample."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import token_backbone
from scipy.special import softmax
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import cosine_similarity, manhattan_distances, paired_distances
from sklearn.pipeline import make_pipeline
from sklearn.utils._param_validation import InvalidParameterError

from skpool.extraction import FeatureExtractor
from skpool.pooling import GeMPooling, SelectedTokenPooling, TokenPooling, TokenSelector
from skpool.stores import TokenArray

N, L, D = 6, 9, 4
QUERY = np.array([1.0, -2.0, 0.5, 0.0])


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(size=(N, L, D))


@pytest.fixture
def mask():
    """The class token and between none and all patches are real."""
    mask = np.random.default_rng(1).random((N, L)) < 0.6
    mask[:, 0] = True
    mask[0] = True
    mask[1, 1:] = False
    return mask


def tokens_of(values, mask=None, n_prefix_tokens=1):
    return TokenArray.from_array(values, mask=mask, n_prefix_tokens=n_prefix_tokens)


def scores_of(x, criterion):
    """Scores of the patches of one sample (1 + T, d) by scikit-learn."""
    cls, patches = x[:1], x[1:]
    if criterion == "cls_cosine":
        return cosine_similarity(patches, cls)[:, 0]
    if criterion == "query":
        return cosine_similarity(patches, QUERY[None])[:, 0]
    if criterion == "cls_l1":
        return -manhattan_distances(patches, cls)[:, 0]
    if criterion == "cls_l2":
        return -paired_distances(patches, np.repeat(cls, len(patches), axis=0))
    return np.sqrt((patches**2).sum(1))


CRITERIA = ["cls_cosine", "cls_l1", "cls_l2", "norm", "query"]


def make(cls, k=3, **parameters):
    query = QUERY if parameters.get("criterion") == "query" else None
    return cls(k, query=query, **parameters)


def chosen_by_hand(x, k, criterion, keep="highest"):
    """Places of the patches of one sample to keep, best first."""
    scores = scores_of(x, criterion) if len(x) > 1 else []
    best = sorted(range(len(scores)), key=lambda i: -scores[i] if keep == "highest" else scores[i])
    return [1 + i for i in best[:k]]


# What is chosen.


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("keep", ["highest", "lowest"])
def test_patches_are_chosen_by_their_scores_best_first(values, criterion, keep):
    out = make(TokenSelector, criterion=criterion, keep=keep).fit_transform(tokens_of(values))
    assert out.shape == (N, 4, D)
    for x, actual in zip(values, np.asarray(out), strict=True):
        expected = x[[0, *chosen_by_hand(x, 3, criterion, keep)]]
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_masked_patches_are_never_chosen(values, mask, criterion):
    dirty = np.where(mask[..., None], values, 1e6)
    out = make(TokenSelector, criterion=criterion).fit_transform(tokens_of(dirty, mask))
    for x, real, actual, kept in zip(values, mask, np.asarray(out), out.mask, strict=True):
        expected = x[real][[0, *chosen_by_hand(x[real], 3, criterion)]]
        assert kept.sum() == len(expected) and kept[: len(expected)].all()
        np.testing.assert_array_equal(actual[kept], expected)


@pytest.mark.parametrize("criterion", ["cls_cosine", "cls_l1", "cls_l2"])
def test_a_patch_equal_to_the_class_token_is_first(values, criterion):
    places = np.random.default_rng(2).integers(1, L, N)
    values[np.arange(N), places] = values[:, 0]
    selector = TokenSelector(1, criterion=criterion)
    np.testing.assert_array_equal(
        np.asarray(selector.fit_transform(tokens_of(values)))[:, 1], values[:, 0]
    )
    kept = selector.mask(tokens_of(values))
    np.testing.assert_array_equal(kept[:, 1:].argmax(1) + 1, places)


def test_cosine_ignores_the_length_of_the_class_token(values):
    longer = values.copy()
    longer[:, 0] *= np.array([1e-30, 1e-3, 0.5, 7.0, 1e8, 1e150])[:, None]
    selector = TokenSelector(3)
    np.testing.assert_array_equal(
        selector.mask(tokens_of(longer)), selector.mask(tokens_of(values))
    )


def test_query_may_be_of_any_length(values):
    masks = [
        TokenSelector(3, criterion="query", query=list(c * QUERY)).mask(tokens_of(values))
        for c in (1.0, 1e-200, 1e200)
    ]
    np.testing.assert_array_equal(masks[1], masks[0])
    np.testing.assert_array_equal(masks[2], masks[0])


def test_callable_scores_the_patches(values, mask):
    def third(patches, mask):
        assert patches.shape[1] == L - 1 and (mask is None or mask.shape == patches.shape[:2])
        return patches[:, :, 2]

    out = np.asarray(TokenSelector(2, criterion=third).fit_transform(tokens_of(values)))
    for x, actual in zip(values, out, strict=True):
        np.testing.assert_array_equal(actual[1:], x[1:][np.argsort(-x[1:, 2])[:2]])
    TokenSelector(2, criterion=third).fit_transform(tokens_of(values, mask)).iter_batches()


@pytest.mark.parametrize(
    "function",
    [
        lambda x, m: x.sum(1),
        lambda x, m: x,
        lambda x, m: x[..., 0].numpy(),
        lambda x, m: x[..., 0] * torch.nan,
    ],
)
def test_callable_that_gives_no_scores_is_refused(values, function):
    with pytest.raises(ValueError, match="criterion="):
        np.asarray(TokenSelector(2, criterion=function).fit_transform(tokens_of(values)))


def test_callable_may_give_infinite_scores_and_nan_to_masked_tokens(values, mask):
    def score(patches, mask):
        scores = torch.full(patches.shape[:2], -torch.inf)
        return scores if mask is None else scores.where(mask, torch.nan)

    kept = TokenSelector(3, criterion=score).mask(tokens_of(values, mask))
    assert not (kept & ~mask).any()
    np.testing.assert_array_equal(kept[:, 1:].sum(1), np.minimum(mask[:, 1:].sum(1), 3))


# Equal scores.


@settings(deadline=None, max_examples=60)
@given(data=st.data(), k=st.integers(1, 8), keep=st.sampled_from(["highest", "lowest"]))
def test_equal_scores_are_taken_by_position_in_every_float_type(data, k, keep):
    # Whole numbers that float16 holds, of which many patches share their norm.
    numbers = st.lists(st.sampled_from([-2, -1, 0, 1, 2]), min_size=24, max_size=24)
    x = np.array(data.draw(numbers), dtype=np.float64).reshape(1, 8, 3)
    squares = (x[0] ** 2).sum(1)
    order = sorted(range(8), key=lambda i: (-squares[i] if keep == "highest" else squares[i], i))
    for dtype in ("float16", "float32", "float64"):
        selector = TokenSelector(k, criterion="norm", keep=keep)
        out = selector.fit_transform(x.astype(dtype))
        np.testing.assert_array_equal(out, x[:, order[:k]])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_half_precision_chooses_as_its_wider_copies(criterion):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(20, 40, D)).astype(np.float16)
    # Permuted features: equal norms and distances that sums in float32 tell apart.
    values[:, 1::2] = values[:, ::2][..., rng.permutation(D)]
    masks = [
        make(TokenSelector, 5, criterion=criterion).mask(tokens_of(values.astype(dtype)))
        for dtype in ("float16", "float32", "float64")
    ]
    np.testing.assert_array_equal(masks[1], masks[0])
    np.testing.assert_array_equal(masks[2], masks[0])


def test_order_of_the_features_does_not_matter_to_norms():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 1, 64)).astype(np.float32)
    pairs = np.concatenate([x, x[..., rng.permutation(64)], x[..., rng.permutation(64)]], axis=1)
    kept = TokenSelector(1, criterion="norm").mask(pairs)
    np.testing.assert_array_equal(kept, np.tile([True, False, False], (200, 1)))


def test_equal_tokens_are_chosen_alike_wherever_the_row_stands(values):
    same = np.repeat(values[:1], 50, axis=0)
    kept = TokenSelector(3).mask(tokens_of(same))
    assert (kept == kept[0]).all()


# How many.


@settings(deadline=None, max_examples=100)
@given(
    k=st.one_of(st.integers(1, 12), st.floats(0.01, 1.0)),
    lengths=st.lists(st.integers(1, 10), min_size=3, max_size=3),
)
def test_share_is_of_the_real_tokens_of_each_sample(k, lengths):
    samples = [np.random.default_rng(n).normal(size=(n, 2)) for n in lengths]
    out = TokenSelector(k, criterion="norm").fit_transform(samples)
    for n, kept in zip(lengths, out.mask.sum(1), strict=True):
        assert kept == (min(k, n) if isinstance(k, int) else int(np.ceil(np.round(k * n, 8))))
    assert out.shape[1] == out.mask.sum(1).max()


@pytest.mark.parametrize(("k", "n"), [(0.07, 100), (0.55, 20), (0.14, 50), (0.7, 10), (1.0, 7)])
def test_share_that_is_a_whole_number_is_that_number(k, n):
    X = np.random.default_rng(0).normal(size=(2, n, 3))
    assert TokenSelector(k, criterion="norm").fit_transform(X).shape[1] == round(k * n)


def test_what_is_padded_is_zero(values, mask):
    for k in (3, 0.5, 100):
        out = TokenSelector(k, fuse_rest=True).fit_transform(tokens_of(values, mask))
        assert not out.mask.all()
        np.testing.assert_array_equal(np.asarray(out)[~out.mask], 0.0)


def test_share_does_not_count_padding(values):
    samples = [values[0, :4], values[1]]
    longer = [*samples, np.random.default_rng(0).normal(size=(50, D))]
    out, wide = (TokenSelector(0.5, criterion="norm").fit_transform(X) for X in (samples, longer))
    np.testing.assert_array_equal(out.mask.sum(1), [2, 5])
    np.testing.assert_array_equal(wide.mask.sum(1), [2, 5, 25])
    np.testing.assert_array_equal(np.asarray(wide)[:2, :5], np.asarray(out))


def test_more_than_there_are_keeps_all_and_masks_the_rest(values, mask):
    out = TokenSelector(100).fit_transform(tokens_of(values, mask))
    assert out.shape == (N, L, D)
    np.testing.assert_array_equal(out.mask.sum(1), mask.sum(1))
    np.testing.assert_array_equal(np.asarray(out)[~out.mask], 0.0)
    for x, real, actual, kept in zip(values, mask, np.asarray(out), out.mask, strict=True):
        np.testing.assert_array_equal(np.sort(actual[kept], axis=0), np.sort(x[real], axis=0))
    whole = TokenSelector(100).fit_transform(tokens_of(values))
    assert whole.shape == (N, L, D) and whole.mask is None


@pytest.mark.parametrize("k", [0, -1, 0.0, 1.5, -0.5, "all", None, np.nan])
def test_bad_number_is_refused(values, k):
    for cls in (TokenSelector, SelectedTokenPooling):
        with pytest.raises(InvalidParameterError, match="'k' parameter"):
            cls(k).fit(tokens_of(values))


# What is left out.


@pytest.mark.parametrize("keep", ["highest", "lowest"])
@pytest.mark.parametrize("k", [1, 3, 0.5])
def test_rest_is_fused_by_the_softmax_of_the_scores(values, mask, k, keep):
    selector = TokenSelector(k, criterion="norm", keep=keep, fuse_rest=True)
    out = selector.fit_transform(tokens_of(np.where(mask[..., None], values, np.nan), mask))
    for x, real, actual, kept in zip(values, mask, np.asarray(out), out.mask, strict=True):
        patches = x[1:][real[1:]]
        n_kept = int(kept[1:-1].sum())
        scores = np.sqrt((patches**2).sum(1)) * (1 if keep == "highest" else -1)
        rest = np.argsort(-scores)[n_kept:]
        assert kept[-1] == (len(rest) > 0)
        if len(rest):
            expected = softmax(scores[rest]) @ patches[rest]
            np.testing.assert_allclose(actual[-1], expected, rtol=1e-11)
        else:
            np.testing.assert_array_equal(actual[-1], 0.0)


def test_fused_rest_of_equal_scores_by_count_gives_the_plain_mean(values):
    patches = values / np.linalg.norm(values, axis=2, keepdims=True)
    k = 3
    out = TokenSelector(k, criterion="norm", fuse_rest=True).fit_transform(patches)
    mean = (out[:, :k].sum(1) + (L - k) * out[:, k]) / L
    np.testing.assert_allclose(mean, patches.mean(1), rtol=1e-12, atol=1e-14)


def test_without_a_rest_there_is_nothing_to_fuse(values):
    selector = TokenSelector(100, fuse_rest=True)
    assert selector.fit_transform(tokens_of(values)).shape == (N, L, D)
    assert TokenSelector(1.0, fuse_rest=True).fit_transform(tokens_of(values)).shape == (N, L, D)
    assert TokenSelector(7, fuse_rest=True).fit_transform(tokens_of(values)).shape == (N, L, D)
    assert TokenSelector(6, fuse_rest=True).fit_transform(tokens_of(values)).shape == (N, L - 1, D)


# What comes back.


def test_prefix_stays_in_front_and_does_not_compete(values):
    X = tokens_of(values, n_prefix_tokens=3)
    out = TokenSelector(2, criterion="norm").fit_transform(X)
    assert (out.n_prefix_tokens, out.cls_index, out.shape) == (3, 0, (N, 5, D))
    np.testing.assert_array_equal(np.asarray(out)[:, :3], values[:, :3])
    np.testing.assert_array_equal(out.cls, values[:, 0])


def test_grid_is_lost(values):
    X = TokenArray.from_array(values[:, 1:], grid=(2, 4))
    assert TokenSelector(8, criterion="norm").fit_transform(X).grid is None
    maps = values[:, 1:].reshape(N, 2, 4, D)
    out = TokenSelector(3, criterion="norm").fit_transform(maps)
    np.testing.assert_array_equal(
        out, TokenSelector(3, criterion="norm").fit_transform(values[:, 1:])
    )


def test_mask_tells_the_places_of_the_chosen_tokens(values, mask):
    X = tokens_of(values, mask)
    for selector in (TokenSelector(3), TokenSelector(0.5, criterion="norm", keep="lowest")):
        kept, out = selector.mask(X), selector.fit_transform(X)
        assert kept.shape == (N, L) and kept.dtype == bool
        for x, places, actual, real in zip(values, kept, np.asarray(out), out.mask, strict=True):
            assert sorted(map(tuple, x[places])) == sorted(map(tuple, actual[real]))


def test_mask_of_a_tensor_and_of_a_list_is_an_array(values):
    selector = TokenSelector(2, criterion="norm")
    expected = selector.mask(values)
    assert expected.sum() == 2 * N
    np.testing.assert_array_equal(selector.mask(torch.from_numpy(values)), expected)
    ragged = selector.mask([values[0, :4], values[1]])
    assert ragged.shape == (2, L) and not ragged[0, 4:].any()
    np.testing.assert_array_equal(ragged[1], expected[1])


def test_tokens_of_a_network_are_chosen_as_they_come():
    images = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    lazy = FeatureExtractor(token_backbone(), batch_size=3).transform(images)
    ready = tokens_of(np.asarray(lazy), n_prefix_tokens=lazy.n_prefix_tokens)
    criterion = "cls_cosine" if lazy.n_prefix_tokens else "norm"
    selector = TokenSelector(2, criterion=criterion)
    out = selector.fit_transform(lazy)
    assert isinstance(out, TokenArray) and not out.in_memory
    np.testing.assert_allclose(np.asarray(out), np.asarray(selector.transform(ready)), rtol=1e-6)
    np.testing.assert_array_equal(selector.mask(lazy), selector.mask(ready))


def test_any_pooling_may_follow(values):
    X, y = tokens_of(values), np.arange(N) % 2
    vectors = make_pipeline(TokenSelector(3), GeMPooling(p=2)).fit_transform(X)
    chosen = np.stack([x[chosen_by_hand(x, 3, "cls_cosine")] for x in values])
    expected = np.sqrt((np.maximum(chosen, 1e-6) ** 2).mean(1))
    np.testing.assert_allclose(vectors, expected, rtol=1e-6)
    model = make_pipeline(TokenSelector(3), TokenPooling(("cls", "mean")), LogisticRegression())
    assert model.fit(X, y).predict(X).shape == (N,)


def test_copies_choose_the_same(values):
    selector = TokenSelector(3, criterion="query", query=QUERY).fit(values)
    expected = selector.transform(values)
    for copy in (clone(selector), pickle.loads(pickle.dumps(selector))):
        np.testing.assert_array_equal(copy.transform(values), expected)


def test_steps_with_a_name_of_their_own_keep_it(values):
    named = TokenSelector(3, criterion="query", query=QUERY)
    assert named._fingerprint() == clone(named)._fingerprint() is not None
    assert named._fingerprint() != named.set_params(query=-QUERY)._fingerprint()
    assert TokenSelector(3, criterion=lambda x, mask: x[..., 0])._fingerprint() is None


# Refusals.


@pytest.mark.parametrize("criterion", ["cls_cosine", "cls_l1", "cls_l2"])
def test_scores_by_a_class_token_need_one(values, criterion):
    for cls in (TokenSelector, SelectedTokenPooling):
        with pytest.raises(ValueError, match=f"criterion='{criterion}' needs a class token"):
            cls(2, criterion=criterion).fit(values)
    with pytest.raises(ValueError, match="output='concat_cls' needs a class token"):
        SelectedTokenPooling(2, criterion="norm", output="concat_cls").fit(values)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (None, "give query"),
        (np.ones(D + 1), f"the {D} features"),
        (np.ones((1, D)), f"the {D} features"),
        (np.zeros(D), "a vector with a direction"),
        (np.full(D, np.nan), "a vector with a direction"),
    ],
)
def test_bad_query_is_refused(values, query, message):
    for cls in (TokenSelector, SelectedTokenPooling):
        with pytest.raises(ValueError, match=message):
            cls(2, criterion="query", query=query).fit(values)


def test_tokens_without_patches_are_refused(values):
    with pytest.raises(ValueError, match="no patch to choose"):
        TokenSelector(2).fit(tokens_of(values, n_prefix_tokens=L))


@pytest.mark.parametrize(
    "parameters",
    [{"criterion": "dot"}, {"keep": "both"}, {"fuse_rest": "yes"}, {"batch_size": 0}],
)
def test_bad_parameter_is_refused(values, parameters):
    for cls in (TokenSelector, SelectedTokenPooling):
        with pytest.raises(InvalidParameterError, match=next(iter(parameters))):
            cls(**parameters).fit(tokens_of(values))


# The pooling.


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("k", [L - 1, 100, 1.0])
def test_all_patches_give_the_plain_mean(values, criterion, k):
    vectors = make(SelectedTokenPooling, k, criterion=criterion).fit_transform(tokens_of(values))
    np.testing.assert_allclose(vectors, values[:, 1:].mean(1), rtol=1e-12)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_mean_is_that_of_the_chosen_patches(values, criterion):
    vectors = make(SelectedTokenPooling, criterion=criterion).fit_transform(tokens_of(values))
    expected = [x[chosen_by_hand(x, 3, criterion)].mean(0) for x in values]
    np.testing.assert_allclose(vectors, expected, rtol=1e-12)


def test_class_token_stands_before_the_mean(values):
    X = tokens_of(values)
    pooling = SelectedTokenPooling(3, output="concat_cls").fit(X)
    expected = np.hstack([values[:, 0], SelectedTokenPooling(3).fit_transform(X)])
    np.testing.assert_array_equal(pooling.transform(X), expected)
    assert len(pooling.get_feature_names_out()) == 2 * D


@pytest.mark.parametrize("fuse_rest", [False, True])
@pytest.mark.parametrize("k", [2, 0.5, 100])
def test_pooling_equals_the_mean_after_the_selector(values, mask, k, fuse_rest):
    mask[1] = True
    for X in (tokens_of(values), tokens_of(np.where(mask[..., None], values, np.nan), mask)):
        parameters = {"criterion": "norm", "fuse_rest": fuse_rest}
        pipeline = make_pipeline(TokenSelector(k, **parameters), TokenPooling())
        expected = pipeline.fit_transform(X)
        vectors = SelectedTokenPooling(k, **parameters).fit_transform(X)
        np.testing.assert_allclose(vectors, expected, rtol=1e-12)


def test_pooling_equals_the_mean_under_the_mask_of_the_selector(values, mask):
    mask[1] = True
    kept = TokenSelector(3).mask(tokens_of(values, mask))
    expected = TokenPooling().fit_transform(tokens_of(values, kept))
    vectors = SelectedTokenPooling(3).fit_transform(tokens_of(values, mask))
    np.testing.assert_allclose(vectors, expected, rtol=1e-12)


def test_scope_all_lets_the_class_token_compete(values):
    X = tokens_of(values)
    # Nothing is nearer to the class token than itself.
    vectors = SelectedTokenPooling(1, scope="all").fit_transform(X)
    np.testing.assert_array_equal(vectors, values[:, 0])


def test_sample_without_a_real_patch_is_refused_or_filled(values, mask):
    X = tokens_of(values, mask)
    with pytest.raises(ValueError, match="Sample 1 has no real token"):
        SelectedTokenPooling(3).fit(X)
    vectors = SelectedTokenPooling(3, empty="zero").fit_transform(X)
    np.testing.assert_array_equal(vectors[1], 0.0)
    others = [0, 2, 3, 4, 5]
    np.testing.assert_array_equal(vectors[others], SelectedTokenPooling(3).fit_transform(X[others]))


def test_vectors_count_as_one_token(values):
    for parameters in ({}, {"criterion": "norm"}, {"fuse_rest": True}):
        vectors = SelectedTokenPooling(3, **parameters).fit_transform(values[:, 0])
        np.testing.assert_array_equal(vectors, values[:, 0])
