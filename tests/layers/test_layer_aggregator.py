# SPDX-License-Identifier: BSD-3-Clause
"""LayerAggregator: against numpy and one-layer poolings, on every form of layers."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import counting_backbone, token_backbone
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags

from skpool.extraction import FeatureExtractor
from skpool.layers import LAYER_POOLS, LayerAggregator
from skpool.pooling import GeMPooling, TokenPooling
from skpool.stores import TokenArray

N, K, L, D = 10, 4, 5, 6
TOKENS = np.random.default_rng(0).normal(size=(N, K, L, D))
VECTORS = TOKENS.mean(axis=2)
Y = np.arange(N) % 2
REDUCTIONS = ["last", "mean", "sum", "max"]


def tokens(**options):
    return TokenArray.from_layers(TOKENS, n_prefix_tokens=1, **options)


# Values.


@pytest.mark.parametrize("name", ["mean", "sum", "max"])
def test_vectors_are_reduced_as_numpy_does(name):
    expected = getattr(VECTORS, name)(axis=1)
    np.testing.assert_allclose(LayerAggregator(layer_pool=name).fit_transform(VECTORS), expected)


@pytest.mark.parametrize("token_pool", ["mean", "max", "min", "std", "cls"])
def test_tokens_are_pooled_as_the_pooling_does_layer_by_layer(token_pool):
    X = tokens()
    stacked = LayerAggregator(token_pool=token_pool, layer_pool="stack").fit_transform(X)
    for place in range(K):
        expected = TokenPooling(token_pool).fit_transform(X.layer(place))
        np.testing.assert_allclose(stacked[:, place], expected)


@pytest.mark.parametrize(
    "pooling",
    [
        TokenPooling("mean", scope="all"),
        TokenPooling(("cls", "mean")),
        GeMPooling(4.0, negative="signed"),
        GeMPooling(negative="shift"),
    ],
    ids=repr,
)
def test_pooling_serves_every_layer_by_itself(pooling):
    X = tokens()
    stacked = LayerAggregator(token_pool=pooling, layer_pool="stack").fit_transform(X)
    for place in range(K):
        np.testing.assert_allclose(
            stacked[:, place], clone(pooling).fit_transform(X.layer(place)), rtol=1e-12
        )


def test_mean_leaves_the_prefix_out_by_default():
    result = LayerAggregator().fit_transform(tokens())
    np.testing.assert_allclose(result, TOKENS[:, :, 1:].mean(axis=(1, 2)))


def test_class_token_of_the_last_layer_is_the_output_of_the_network():
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    backbone = token_backbone()
    several = FeatureExtractor(backbone, layers=[1, -1], n_workers=0).transform(images)
    network = FeatureExtractor(backbone, layers=-1, tokens="cls", n_workers=0).transform(images)
    aggregated = LayerAggregator([-1], token_pool="cls").fit_transform(several)
    np.testing.assert_array_equal(aggregated, network)


def test_class_tokens_of_an_extractor_need_no_pooling():
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    options = {"layers": [0, 1, -1], "n_workers": 0}
    tokens = FeatureExtractor(token_backbone(), **options).transform(images)
    vectors = FeatureExtractor(token_backbone(), tokens="cls", **options).transform(images)
    expected = LayerAggregator(token_pool="cls", layer_pool="concat").fit_transform(tokens)
    result = LayerAggregator(layer_pool="concat").fit_transform(vectors)
    np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize("X", [TOKENS, VECTORS], ids=["tokens", "vectors"])
def test_one_layer_makes_every_way_equal(X):
    for name in [*REDUCTIONS, "concat", "weighted"]:
        result = LayerAggregator([2], layer_pool=name).fit(X, Y).transform(X)
        np.testing.assert_allclose(result, VECTORS[:, 2], rtol=1e-12)


def test_concatenated_layers_can_be_cut_apart():
    result = LayerAggregator([3, 1], layer_pool="concat").fit_transform(TOKENS)
    np.testing.assert_allclose(result[:, :D], VECTORS[:, 3])
    np.testing.assert_allclose(result[:, D:], VECTORS[:, 1])


def test_weighted_without_iterations_is_the_mean():
    result = LayerAggregator(layer_pool="weighted", max_iter=0).fit(TOKENS, Y).transform(TOKENS)
    np.testing.assert_allclose(result, VECTORS.mean(axis=1))


def test_weighted_is_the_sum_with_the_weights_it_shows():
    model = LayerAggregator(layer_pool="weighted", alpha=0.1).fit(TOKENS, Y)
    assert np.ptp(model.layer_weights_) > 1e-3
    np.testing.assert_allclose(model.layer_weights_.sum(), 1)
    expected = np.einsum("k,nkd->nd", model.layer_weights_, VECTORS)
    np.testing.assert_allclose(model.transform(TOKENS), expected)


def test_noise_layer_gets_less_than_its_share():
    rng = np.random.default_rng(1)
    y = np.arange(200) % 2
    X = rng.normal(size=(200, 3, 4)) + 2 * y[:, None, None]
    X[:, 1] = rng.normal(size=(200, 4))
    model = LayerAggregator(layer_pool="weighted").fit(X, y)
    assert model.layer_weights_.argmin() == 1
    assert model.layer_weights_[1] < 1 / 3


def test_weights_are_the_same_at_every_fit_and_for_every_name_of_the_classes():
    first = LayerAggregator(layer_pool="weighted", alpha=0.1).fit(TOKENS, Y)
    second = clone(first).fit(torch.from_numpy(TOKENS), np.where(Y == 0, "a", "b"))
    np.testing.assert_array_equal(first.layer_weights_, second.layer_weights_)


def test_mean_of_layers_of_unequal_norms_needs_a_normalisation():
    X = VECTORS * np.array([1, 1, 1, 1000.0])[:, None]
    raw = LayerAggregator().fit_transform(X)
    normal = LayerAggregator(normalize="l2").fit_transform(X)
    np.testing.assert_allclose(4 * raw, X[:, 3], rtol=0.1, atol=10)
    np.testing.assert_allclose(normal, LayerAggregator(normalize="l2").fit_transform(VECTORS))


# Recipes of the literature, written out in numpy.


def test_recipe_of_dino():
    model = LayerAggregator(slice(-3, None), token_pool="cls", layer_pool="concat")
    expected = TOKENS[:, 1:, 0].reshape(N, -1)
    np.testing.assert_array_equal(model.fit_transform(tokens()), expected)


@pytest.mark.parametrize("last", [1, 3])
def test_recipe_of_dinov2(last):
    model = LayerAggregator(
        slice(-last, None), token_pool="cls", layer_pool="concat", append_patch_mean=True
    )
    expected = [*TOKENS[:, -last:, 0].swapaxes(0, 1), TOKENS[:, -1, 1:].mean(axis=1)]
    np.testing.assert_allclose(model.fit_transform(tokens()), np.hstack(expected))


def test_recipe_of_whiteningbert():
    mask = np.arange(L) < np.array([2 + i % 4 for i in range(N)])[:, None]
    X = TokenArray.from_layers(TOKENS, mask=mask)
    expected = [
        (sample[0, real] + sample[-1, real]).mean(axis=0) / 2
        for sample, real in zip(TOKENS, mask, strict=True)
    ]
    np.testing.assert_allclose(LayerAggregator([0, -1]).fit_transform(X), expected)


def test_recipe_of_earlybird_for_all_tokens_of_all_layers():
    pooling = TokenPooling("max", scope="all")
    result = LayerAggregator(token_pool=pooling, layer_pool="max").fit_transform(tokens())
    np.testing.assert_array_equal(result, TOKENS.max(axis=(1, 2)))


@pytest.mark.parametrize("norm", ["l2", "layernorm"])
def test_appended_mean_is_normalised_as_the_layers_are(norm):
    options = {"token_pool": "mean", "normalize": norm}
    appended = LayerAggregator([0, 2], append_patch_mean=True, **options)
    alone = LayerAggregator([2], **options).fit_transform(tokens())
    np.testing.assert_allclose(appended.fit_transform(tokens())[:, D:], alone)


# Which layers.


@pytest.mark.parametrize(
    ("layers", "places"),
    [
        ("all", [0, 1, 2, 3]),
        (slice(None, None, 2), [0, 2]),
        (slice(-2, None), [2, 3]),
        (1, [1]),
        (-1, [3]),
        ([3, 0], [3, 0]),
        (np.array([-1, 0]), [3, 0]),
        ((2,), [2]),
    ],
)
@pytest.mark.parametrize("X", [TOKENS, VECTORS], ids=["tokens", "vectors"])
def test_layers_are_positions_on_their_axis(layers, places, X):
    result = LayerAggregator(layers, layer_pool="stack").fit_transform(X)
    np.testing.assert_allclose(result, VECTORS[:, places])


@pytest.mark.parametrize("layers", [[4], [-5], [0, 11], [], slice(9, None), [0.5], [True], "last"])
def test_layers_that_are_not_there_are_refused(layers):
    with pytest.raises(ValueError, match="layers"):
        LayerAggregator(layers).fit(TOKENS)


@pytest.mark.parametrize("name", [*REDUCTIONS, "weighted"])
def test_layer_twice_is_refused_where_it_would_count_twice(name):
    with pytest.raises(ValueError, match="twice"):
        LayerAggregator([1, -3], layer_pool=name).fit(TOKENS, Y)


def test_layer_twice_stands_twice_in_a_concatenation():
    result = LayerAggregator([1, -3], layer_pool="concat").fit_transform(VECTORS)
    np.testing.assert_array_equal(result[:, :D], result[:, D:])


# Forms of X.


@pytest.mark.parametrize("name", [*sorted(LAYER_POOLS), "weighted"])
@pytest.mark.parametrize("norm", [None, "l2", "layernorm"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_array_tensor_and_token_array_agree(name, norm, dtype):
    model = LayerAggregator(layer_pool=name, normalize=norm, alpha=0.1)
    X = TOKENS.astype(dtype)
    expected = model.fit(X, Y).transform(X)
    tensor = torch.from_numpy(X)
    result = clone(model).fit(tensor, torch.from_numpy(Y)).transform(tensor)
    assert isinstance(result, torch.Tensor)
    assert result.dtype == tensor.dtype
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    lazy = TokenArray.from_layers(X)
    np.testing.assert_allclose(clone(model).fit(lazy, Y).transform(lazy), expected)


@pytest.mark.parametrize("X", [TOKENS, VECTORS], ids=["tokens", "vectors"])
def test_list_of_samples_equals_the_array(X):
    expected = LayerAggregator().fit_transform(X)
    np.testing.assert_array_equal(LayerAggregator().fit_transform(list(X)), expected)
    tensors = [torch.from_numpy(sample) for sample in X]
    np.testing.assert_array_equal(LayerAggregator().fit_transform(tensors), expected)


def test_half_precision_is_read_as_float32():
    X = (15_000 * TOKENS).astype(np.float16)
    result = LayerAggregator(layer_pool="sum", token_pool="sum").fit_transform(X)
    expected = X.astype(np.float64).sum(axis=(1, 2))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), token_pool=st.sampled_from(["mean", "max", "std", "last"]))
def test_masked_tokens_are_never_read(seed, token_pool):
    rng = np.random.default_rng(seed)
    mask = rng.random((N, L)) < 0.5
    mask[:, 2] = True
    model = LayerAggregator(token_pool=token_pool, layer_pool="concat")
    clean = TokenArray.from_layers(np.where(mask[:, None, :, None], TOKENS, 0), mask=mask)
    dirty = TokenArray.from_layers(np.where(mask[:, None, :, None], TOKENS, np.nan), mask=mask)
    np.testing.assert_array_equal(model.fit_transform(dirty), model.fit_transform(clean))


@pytest.mark.parametrize("layers", ["all", [1, 3]])
@pytest.mark.parametrize("token_pool", ["mean", "cls", GeMPooling(negative="shift")], ids=repr)
def test_lazy_layers_equal_their_array(computed_layers, layers, token_pool):
    X = TOKENS.astype(np.float32)
    lazy = TokenArray(computed_layers(X, n_prefix_tokens=1))
    model = LayerAggregator(layers, token_pool=token_pool, normalize="l2", layer_pool="concat")
    expected = model.fit_transform(TokenArray.from_layers(X, n_prefix_tokens=1))
    np.testing.assert_allclose(clone(model).fit_transform(lazy), expected, atol=1e-6)
    rows = [7, 0, 3]
    np.testing.assert_allclose(
        clone(model).fit(lazy).transform(lazy[rows]), expected[rows], atol=1e-6
    )


def test_all_choices_of_layers_share_one_pass(computed_layers):
    source = computed_layers(TOKENS.astype(np.float32), n_prefix_tokens=1)
    X = TokenArray(source)
    for options in (
        {"layers": "all"},
        {"layers": [-1]},
        {"layers": [0, 2], "layer_pool": "max", "normalize": "l2"},
        {"layer_pool": "concat"},
    ):
        LayerAggregator(**options).fit_transform(X)
    LayerAggregator(layer_pool="weighted", alpha=0.1).fit(X, Y).transform(X)
    assert source.n_streamed == N
    LayerAggregator(token_pool="max").fit_transform(X)
    assert source.n_streamed == 2 * N


def test_vectors_of_a_pooling_that_learned_are_kept_under_no_name(computed_layers):
    source = computed_layers(TOKENS.astype(np.float32))
    model = LayerAggregator(token_pool=GeMPooling(negative="shift"))
    model.fit(TokenArray(source)).transform(TokenArray(source))
    assert source.kept == {}


def test_store_keeps_the_patch_means_of_layers_apart(computed_layers):
    X = TokenArray(computed_layers(TOKENS.astype(np.float32), n_prefix_tokens=1))
    for place in (1, 2):
        model = LayerAggregator([place], token_pool="cls", append_patch_mean=True)
        expected = TOKENS[:, place, 1:].mean(axis=1)
        np.testing.assert_allclose(model.fit_transform(X)[:, D:], expected, atol=1e-6)


def test_unreadable_rows_are_nan_and_teach_nothing(computed_layers):
    X = TOKENS.astype(np.float32)
    lazy = TokenArray(computed_layers(X, missing=(2,)))
    others = np.delete(np.arange(N), 2)
    model = LayerAggregator(layer_pool="weighted", alpha=0.1).fit(lazy, Y)
    result = model.transform(lazy)
    assert np.isnan(result[2]).all()
    expected = clone(model).fit(X[others], Y[others])
    np.testing.assert_allclose(model.layer_weights_, expected.layer_weights_, rtol=1e-4)
    np.testing.assert_allclose(result[others], expected.transform(X[others]), rtol=1e-4)


def test_patches_alone_have_no_prefix_left():
    expected = LayerAggregator().fit_transform(tokens())
    np.testing.assert_allclose(LayerAggregator().fit_transform(tokens().patches), expected)
    with pytest.raises(ValueError, match="class token"):
        LayerAggregator(token_pool="cls").fit_transform(tokens().patches)


# Tokens that are kept.


@pytest.mark.parametrize("name", [*REDUCTIONS, "concat"])
def test_kept_tokens_are_put_together_token_by_token(name):
    out = LayerAggregator([3, 1], token_pool=None, layer_pool=name).fit_transform(tokens())
    assert isinstance(out, TokenArray)
    chosen = TOKENS[:, [3, 1]]
    expected = {
        "last": chosen[:, -1],
        "concat": np.concatenate([chosen[:, 0], chosen[:, 1]], axis=-1),
    }
    expected = expected[name] if name in expected else getattr(chosen, name)(axis=1)
    assert out.shape == expected.shape
    np.testing.assert_allclose(np.asarray(out), expected)
    np.testing.assert_allclose(np.asarray(out[[4, 1]]), expected[[4, 1]])


def test_kept_tokens_have_the_prefix_grid_and_mask_of_the_layers():
    mask = np.ones((N, L), dtype=bool)
    mask[3, 4] = False
    X = TokenArray.from_layers(TOKENS, n_prefix_tokens=1, grid=(2, 2), mask=mask)
    out = LayerAggregator(token_pool=None).fit_transform(X)
    assert (out.n_prefix_tokens, out.grid, out.cls_index) == (1, (2, 2), 0)
    np.testing.assert_array_equal(out[[3]].mask, mask[[3]])
    np.testing.assert_allclose(out.cls, TOKENS[:, :, 0].mean(axis=1))


def test_mean_of_kept_tokens_equals_the_vectors():
    out = LayerAggregator(token_pool=None).fit_transform(tokens())
    expected = LayerAggregator().fit_transform(tokens())
    np.testing.assert_allclose(TokenPooling().fit_transform(out), expected)


def test_kept_tokens_are_computed_when_they_are_used(computed_layers):
    source = computed_layers(TOKENS.astype(np.float32))
    out = LayerAggregator(token_pool=None, layer_pool="max").fit_transform(TokenArray(source))
    assert source.n_streamed == 0
    assert not out.in_memory
    np.testing.assert_allclose(np.asarray(out), TOKENS.max(axis=1), rtol=1e-6)


def test_pooled_kept_tokens_are_kept_by_all_that_made_them(computed_layers):
    source = computed_layers(TOKENS.astype(np.float32))
    X = TokenArray(source)
    expected = {"max": TOKENS.max(axis=1), "mean": TOKENS.mean(axis=1)}
    for name, values in expected.items():
        for _ in range(2):
            kept = LayerAggregator(token_pool=None, layer_pool=name).fit_transform(X)
            result = TokenPooling().fit_transform(kept)
            np.testing.assert_allclose(result, values.mean(axis=1), rtol=1e-5, atol=1e-6)
    assert source.n_streamed == 2 * N


def test_store_keeps_kept_tokens_of_other_layers_and_weights_apart(computed_layers):
    X = TokenArray(computed_layers(TOKENS.astype(np.float32)))
    for layers in ([0, 1], [2, 3]):
        kept = LayerAggregator(layers, token_pool=None).fit_transform(X)
        expected = TOKENS[:, layers].mean(axis=(1, 2))
        np.testing.assert_allclose(TokenPooling().fit_transform(kept), expected, atol=1e-6)
    for alpha in (0.01, 1.0):
        model = LayerAggregator(token_pool=None, layer_pool="weighted", alpha=alpha).fit(X, Y)
        expected = np.einsum("k,nkld->nd", model.layer_weights_, TOKENS) / L
        result = TokenPooling().fit_transform(model.transform(X))
        np.testing.assert_allclose(result, expected, atol=1e-6)


def test_weights_of_kept_tokens_are_learned_on_their_means():
    options = {"layer_pool": "weighted", "alpha": 0.1}
    kept = LayerAggregator(token_pool=None, **options).fit(tokens(), Y)
    pooled = LayerAggregator(**options).fit(tokens(), Y)
    np.testing.assert_array_equal(kept.layer_weights_, pooled.layer_weights_)
    result = TokenPooling().fit_transform(kept.transform(tokens()))
    np.testing.assert_allclose(result, pooled.transform(tokens()))


# Refusals.


def test_tokens_of_one_layer_are_refused():
    with pytest.raises(ValueError, match="one layer"):
        LayerAggregator().fit(TokenArray.from_array(TOKENS[:, 0]))


@pytest.mark.parametrize(
    "X",
    [VECTORS[:, 0], VECTORS[0, 0], TOKENS[None], TOKENS[:0], TOKENS[:, :0], [[1.0, 2.0]], "abc"],
    ids=["rank 2", "rank 1", "rank 5", "no sample", "no layer", "list of rank 2", "text"],
)
def test_other_forms_are_refused(X):
    with pytest.raises(ValueError, match="LayerAggregator"):
        LayerAggregator().fit(X)


@pytest.mark.parametrize("name", [*REDUCTIONS, "concat"])
def test_blocks_of_unequal_widths_are_refused(name):
    blocks = [np.zeros((N, 3)), np.zeros((N, 4))]
    with pytest.raises(ValueError, match="unequal"):
        LayerAggregator(layer_pool=name).fit(blocks)


def test_weighted_without_labels_is_refused():
    with pytest.raises(ValueError, match="requires y"):
        LayerAggregator(layer_pool="weighted").fit(TOKENS)


def test_weighted_with_one_class_is_refused():
    with pytest.raises(ValueError, match="one class"):
        LayerAggregator(layer_pool="weighted").fit(TOKENS, np.zeros(N))


@pytest.mark.parametrize(
    ("options", "X"),
    [
        ({}, VECTORS),
        ({"token_pool": None}, TOKENS),
        ({"layer_pool": "stack"}, TOKENS),
    ],
)
def test_patch_mean_without_place_is_refused(options, X):
    with pytest.raises(ValueError, match="append_patch_mean"):
        LayerAggregator(append_patch_mean=True, **options).fit(X)


def test_stack_of_kept_tokens_is_refused():
    with pytest.raises(ValueError, match="stack"):
        LayerAggregator(token_pool=None, layer_pool="stack").fit(TOKENS)


@pytest.mark.parametrize("X", [TOKENS, VECTORS], ids=["tokens", "vectors"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_value_names_its_sample_and_changes_nothing(X, value):
    model = LayerAggregator().fit(X)
    bad = X.copy()
    bad[5, 1, 2] = value
    state = dict(vars(model))
    for verb in (model.fit, model.transform):
        with pytest.raises(ValueError, match="sample 5"):
            verb(bad)
    assert vars(model) == state


def test_other_width_or_number_of_layers_is_refused():
    model = LayerAggregator().fit(VECTORS)
    with pytest.raises(ValueError, match="5 features, but LayerAggregator is expecting 6"):
        model.transform(VECTORS[:, :, :5])
    with pytest.raises(ValueError, match="3 layers"):
        model.transform(VECTORS[:, :3])


def test_sample_without_real_token_is_refused_by_number_or_zero():
    mask = np.ones((N, L), dtype=bool)
    mask[7] = False
    X = TokenArray.from_layers(TOKENS, mask=mask)
    with pytest.raises(ValueError, match="Sample 7"):
        LayerAggregator().fit_transform(X)
    result = LayerAggregator(token_pool=TokenPooling(empty="zero")).fit_transform(X)
    assert (result[7] == 0).all()


def test_sample_with_nothing_but_a_class_token_is_refused_by_its_number_among_many():
    mask = np.ones((400, L), dtype=bool)
    mask[300, 1:] = False
    many = TokenArray.from_layers(np.tile(TOKENS, (40, 1, 1, 1)), n_prefix_tokens=1, mask=mask)
    with pytest.raises(ValueError, match="Sample 300"):
        LayerAggregator().fit_transform(many)
    assert LayerAggregator(token_pool="cls").fit_transform(many).shape == (400, D)


def test_bad_value_is_told_from_one_under_the_mask():
    mask = np.ones((N, L), dtype=bool)
    mask[1, 3] = False
    bad = TOKENS.copy()
    bad[1, :, 3] = bad[5, 2, 0] = np.nan
    with pytest.raises(ValueError, match="sample 5"):
        LayerAggregator().fit(TokenArray.from_layers(bad, mask=mask))


def test_pooling_without_fixed_width_is_refused():
    class Growing(TokenPooling):
        def transform(self, X):
            Growing.width += 1
            return super().transform(X)[:, : Growing.width]

    Growing.width = 0
    with pytest.raises(ValueError, match="unequal widths"):
        LayerAggregator(token_pool=Growing()).fit_transform(TOKENS)


def test_few_iterations_warn():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(50, 3, 8)), np.arange(50) % 5
    with pytest.warns(ConvergenceWarning, match="max_iter=2"):
        LayerAggregator(layer_pool="weighted", alpha=1e-6, max_iter=2).fit(X, y)


# As a step of scikit-learn.


def test_nothing_to_learn_needs_no_fit():
    np.testing.assert_allclose(LayerAggregator().transform(VECTORS), VECTORS.mean(axis=1))
    for options in ({"layer_pool": "weighted"}, {"token_pool": GeMPooling(negative="shift")}):
        model = LayerAggregator(**options)
        assert get_tags(model).requires_fit
        with pytest.raises(NotFittedError):
            model.transform(TOKENS)


@pytest.mark.parametrize(
    ("options", "width"),
    [
        ({}, D),
        ({"layer_pool": "concat"}, K * D),
        ({"layers": [0, 0], "layer_pool": "concat"}, 2 * D),
        ({"token_pool": TokenPooling(("mean", "max"))}, 2 * D),
        ({"append_patch_mean": True, "layers": slice(2), "layer_pool": "concat"}, 3 * D),
    ],
)
def test_names_are_as_many_as_features(options, width):
    model = LayerAggregator(**options).fit(TOKENS)
    names = model.get_feature_names_out()
    assert model.transform(TOKENS).shape == (N, width)
    assert names.tolist() == [f"layeraggregator{i}" for i in range(width)]


def test_tables_of_vectors_and_no_tables_of_stacks():
    pd = pytest.importorskip("pandas")
    frame = LayerAggregator().set_output(transform="pandas").fit_transform(VECTORS)
    assert isinstance(frame, pd.DataFrame)
    stack = LayerAggregator(layer_pool="stack").set_output(transform="pandas")
    assert isinstance(stack.fit_transform(TOKENS), np.ndarray)
    kept = LayerAggregator(token_pool=None).set_output(transform="pandas")
    assert isinstance(kept.fit_transform(TOKENS), TokenArray)


def test_pickle_gives_the_same():
    model = LayerAggregator(layer_pool="weighted", alpha=0.1).fit(TOKENS, Y)
    back = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(back.transform(TOKENS), model.transform(TOKENS))


def test_pooling_given_stays_as_it_was():
    pooling = GeMPooling(negative="shift")
    model = LayerAggregator(token_pool=pooling).fit(TOKENS)
    assert not hasattr(pooling, "channel_min_")
    assert len(model.poolings_) == K
    assert model.get_params()["token_pool__p"] == 3.0


def test_grid_over_everything_runs_the_network_once(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    y = np.arange(12) % 2
    count = tmp_path / "count"
    extractor = FeatureExtractor(counting_backbone(count), layers=[0, -1], n_workers=0)
    pipeline = make_pipeline(extractor, LayerAggregator(), LogisticRegression(max_iter=1000))
    grid = {
        "layeraggregator__layers": ["all", [0], [-1]],
        "layeraggregator__normalize": [None, "l2"],
    }
    GridSearchCV(pipeline, grid, cv=3, error_score="raise").fit(images, y)
    assert len(count.read_bytes()) == 12


def test_fold_of_layers_stays_lazy_in_cross_validation(computed_layers):
    source = computed_layers(TOKENS.astype(np.float32))
    model = make_pipeline(LayerAggregator(), PCA(2), LogisticRegression())
    scores = cross_val_score(model, TokenArray(source), Y, cv=2, error_score="raise")
    assert scores.shape == (2,)
    assert source.n_streamed == N
