# SPDX-License-Identifier: BSD-3-Clause
"""AttentionPooling and its classifier: what they learn, from what, and what they refuse."""

import pickle

import numpy as np
import pytest
import torch
from lazy_tokens import LazySource
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags
from torch import nn

import skpool
from skpool.neighbors import WeightedKNNClassifier
from skpool.pooling import AttentionPooling, AttentionPoolingClassifier, TokenPooling
from skpool.pooling._attention_modules import MODULES
from skpool.stores import TokenArray

N, L, D = 12, 5, 8
KINDS = sorted(MODULES)
WEIGHING = [kind for kind in KINDS if kind != "latent"]


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, L, D, dtype=torch.float64, generator=generator)


@pytest.fixture
def mask():
    return torch.arange(L) < torch.tensor([5, 1, 3, 2, 4, 5, 2, 1, 3, 4, 2, 5])[:, None]


# What is learned.


def planted(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens of random classes; the one that is marked has the class of the sample; its place."""
    rng = np.random.default_rng(seed)
    classes, place = rng.integers(D - 1, size=(n, 10)), rng.integers(10, size=n)
    X = 0.3 * rng.normal(size=(n, 10, D))
    X[..., 1:] += np.eye(D - 1)[classes]
    X[np.arange(n), place, 0] += 3.0
    return X, classes[np.arange(n), place], place


@pytest.mark.parametrize(
    "pooling",
    [
        AttentionPooling(lr=0.03, epochs=20, hidden_dim=16),
        AttentionPooling("query", n_heads=1, lr=0.02, minibatch_size=32),
    ],
    ids=["gated", "query"],
)
def test_planted_token_is_found(pooling):
    X, y, _ = planted()
    pooling.fit(X, y)
    X, _, place = planted(seed=1)
    weights = pooling.attention(X)[np.arange(len(X)), 0, place]
    assert weights.mean() > 0.9


def test_classifier_finds_what_the_mean_hides():
    X, y, _ = planted()
    model = AttentionPoolingClassifier(lr=0.03, epochs=20, hidden_dim=16).fit(X, y)
    X, y, _ = planted(seed=1)
    assert model.score(X, y) > 0.9


def small(kind: str = "gated", **options) -> AttentionPooling:
    sizes = {"hidden_dim": 6, "n_latents": 3, "n_heads": 2, "epochs": 3, "lr": 0.02}
    # Sums on a GPU have no fixed order.
    return AttentionPooling(kind, **sizes | {"device": "cpu"} | options)


@pytest.fixture
def y():
    return np.arange(N) % 3


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_gives_the_same_bits(kind, x, y):
    first = small(kind, minibatch_size=4).fit(x.numpy(), y)
    again = clone(first).fit(x.numpy(), y)
    other = clone(first).set_params(random_state=1).fit(x.numpy(), y)
    np.testing.assert_array_equal(first.transform(x.numpy()), again.transform(x.numpy()))
    assert (other.transform(x.numpy()) != first.transform(x.numpy())).any()


@pytest.mark.parametrize("kind", KINDS)
def test_global_generators_are_left_alone(kind, x, y):
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()
    small(kind).fit(x.numpy(), y).transform(x.numpy())
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], legacy)


@pytest.mark.parametrize("kind", KINDS)
def test_units_of_the_features_do_not_matter(kind, x, y):
    """What is learned is the same, whatever the offset and scale of every feature."""
    X, offset = x.numpy(), np.linspace(-50, 50, D)
    scale = np.logspace(-2, 2, D)
    pooled = small(kind).fit(X, y).transform(X)
    actual = small(kind).fit(scale * X + offset, y).transform(scale * X + offset)
    expected = scale * pooled + offset if kind == "gated" else pooled
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


def test_without_standardizing_the_module_sees_the_tokens(x, y):
    weights = small(standardize=False).fit(x.numpy(), y).weights_
    assert not weights["mean"].any() and (weights["scale"] == 1).all()


def test_standardizing_takes_the_moments_of_the_real_tokens(x, y, mask):
    X = np.where(mask.numpy()[..., None], x.numpy(), np.nan)
    weights = small().fit(TokenArray.from_array(X, mask=mask.numpy()), y).weights_
    real = x.numpy()[mask.numpy()]
    np.testing.assert_allclose(weights["mean"], real.mean(0))
    np.testing.assert_allclose(weights["scale"], real.std(0))


def test_samples_without_tokens_teach_nothing(x, y, mask):
    mask[4] = False
    tokens = TokenArray.from_array(x.numpy(), mask=mask.numpy())
    others = np.delete(np.arange(N), 4)
    whole = small(empty="nan").fit(tokens, y)
    part = small().fit(tokens[others], y[others])
    np.testing.assert_array_equal(whole.weights_["score.weight"], part.weights_["score.weight"])
    assert np.isnan(whole.transform(tokens)[4]).all()


@pytest.mark.parametrize("limit", [2**30, 0])
def test_lazy_tokens_give_the_bits_of_their_array(x, y, mask, limit):
    desired = small().fit(TokenArray.from_array(x.numpy(), mask=mask.numpy()), y)
    with skpool.config_context(max_array_bytes=limit):
        actual = small().fit(TokenArray(LazySource(x.numpy(), mask.numpy())), y)
    for name, value in desired.weights_.items():
        np.testing.assert_array_equal(actual.weights_[name], value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_gpu_learns_what_the_host_does(kind, x, y):
    host = small(kind).fit(x.numpy(), y)
    lent = small(kind, device="cuda").fit(x.numpy(), y)
    there = small(kind, device="auto").fit(x.cuda(), torch.from_numpy(y).cuda())
    for pooling in (lent, there):
        for name, value in host.weights_.items():
            np.testing.assert_allclose(pooling.weights_[name], value, rtol=1e-6, atol=1e-8)
    expected = host.transform(x.numpy())
    np.testing.assert_allclose(there.transform(x.cuda()).cpu(), expected, rtol=1e-6, atol=1e-8)


def test_head_is_that_of_the_classifier(x, y):
    X = x.numpy()
    pooling = small().fit(X, y)
    model = AttentionPoolingClassifier(hidden_dim=6, n_heads=2, epochs=3, lr=0.02).fit(X, y)
    logits = pooling.transform(X) @ pooling.coef_.T + pooling.intercept_
    np.testing.assert_allclose(model.decision_function(X), logits)
    np.testing.assert_array_equal(model.predict(X), pooling.classes_[logits.argmax(1)])


def test_mse_learns_numbers():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 4, D))
    target = X.mean(axis=1) @ rng.normal(size=(D, 2)) * [1.0, 1e3] + [0.0, 5e3]
    pooling = AttentionPooling(loss="mse", lr=0.02).fit(X, target)
    predicted = pooling.transform(X) @ pooling.coef_.T + pooling.intercept_
    residual = ((predicted - target) ** 2).mean(axis=0) / target.var(axis=0)
    assert (residual < 0.1).all() and not hasattr(pooling, "classes_")


def test_one_target_may_be_a_vector(x):
    target = x.numpy()[:, 0, 0]
    one = small(loss="mse").fit(x.numpy(), target)
    column = small(loss="mse").fit(x.numpy(), target[:, None])
    np.testing.assert_array_equal(one.coef_, column.coef_)
    assert one.coef_.shape == (1, D)


def test_supcon_brings_classes_together():
    X, y, _ = planted(200)
    vectors = AttentionPooling(loss="supcon", lr=0.03, hidden_dim=16).fit(X, y).transform(X)
    knn = WeightedKNNClassifier(5)
    means = TokenPooling().transform(X)
    assert cross_val_score(knn, vectors, y).mean() > cross_val_score(knn, means, y).mean() + 0.1


def test_refit_leaves_nothing_of_another_loss(x, y):
    pooling = small().fit(x.numpy(), y)
    pooling.set_params(loss="supcon").fit(x.numpy(), y)
    assert not hasattr(pooling, "coef_") and not hasattr(pooling, "classes_")


# Shapes, types, layers.


@pytest.mark.parametrize("kind", WEIGHING)
def test_attention_has_a_row_per_query(kind, x, y, mask):
    pooling = small(kind, n_queries=2)
    tokens = TokenArray.from_array(x.numpy(), mask=mask.numpy())
    weights = pooling.fit(tokens, y).attention(tokens)
    assert weights.shape == (N, 2 if kind in ("query", "multilayer") else 1, L)
    np.testing.assert_allclose(weights.sum(axis=2), 1.0)
    assert not weights[np.broadcast_to(~mask.numpy()[:, None], weights.shape)].any()


def test_attention_of_gated_makes_the_vectors(x, y):
    pooling = small().fit(x.numpy(), y)
    weights = pooling.attention(x.numpy())
    np.testing.assert_allclose((weights @ x.numpy())[:, 0], pooling.transform(x.numpy()))


def test_attention_of_lazy_ragged_tokens_is_padded(x, y, mask):
    tokens = TokenArray.from_array(x.numpy(), mask=mask.numpy())
    pooling = small().fit(tokens, y)
    lazy = TokenArray(LazySource(x.numpy(), mask.numpy()))
    np.testing.assert_allclose(pooling.attention(lazy), pooling.attention(tokens))


def test_attention_is_over_the_tokens_in_scope(x, y):
    tokens = TokenArray.from_array(x.numpy(), n_prefix_tokens=1)
    assert small().fit(tokens, y).attention(tokens).shape == (N, 1, L - 1)
    assert small(scope="all").fit(tokens, y).attention(tokens).shape == (N, 1, L)


def test_one_token_is_returned_by_gated(x, y):
    pooling = small().fit(x.numpy(), y)
    np.testing.assert_allclose(pooling.transform(x.numpy()[:, :1]), x.numpy()[:, 0])


def test_concat_has_a_block_per_query(x, y):
    pooling = small("query", n_queries=3, query_pool="concat").fit(x.numpy(), y)
    assert pooling.transform(x.numpy()).shape == (N, 3 * D)
    assert len(pooling.get_feature_names_out()) == 3 * D


def test_multilayer_gives_unit_vectors(x, y):
    vectors = small("multilayer").fit(x.numpy(), y).transform(x.numpy())
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_fit_on_one_float_type_serves_the_others(kind, x, y):
    pooling = small(kind).fit(x.numpy().astype(np.float32), y)
    wide = pooling.transform(x.numpy())
    assert wide.dtype == np.float64
    for dtype in (np.float32, np.float16):
        vectors = pooling.transform(x.numpy().astype(dtype))
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, wide, atol=0.05)


def test_single_precision_learns_what_double_does(x, y):
    wide = small().fit(x.numpy(), y)
    single = small().fit(x.numpy().astype(np.float32), y)
    for name, value in wide.weights_.items():
        np.testing.assert_allclose(single.weights_[name], value, rtol=1e-3, atol=1e-4)


@pytest.fixture
def layers():
    """Three layers of tokens, of which the first is a class token, and a ragged mask."""
    rng = np.random.default_rng(0)
    mask = np.arange(4) < rng.integers(2, 5, size=N)[:, None]
    return rng.normal(size=(N, 3, 4, D)), mask


def means_of_layers(X: np.ndarray, mask: np.ndarray, first: int) -> np.ndarray:
    seen = mask[:, None, first:, None]
    return (X[:, :, first:] * seen).sum(axis=2) / seen.sum(axis=2)


@pytest.mark.parametrize("scope", ["patch", "all"])
@pytest.mark.parametrize("lazy", [False, True])
def test_tokens_of_layers_are_averaged_for_multilayer(layers, y, scope, lazy):
    X, mask = layers
    dirty = np.where(mask[:, None, :, None], X, np.nan)
    tokens = TokenArray.from_layers(dirty, mask=mask, n_prefix_tokens=1)
    if lazy:
        tokens._source.in_memory = False
    means = means_of_layers(X, mask, 1 if scope == "patch" else 0)
    pooling = small("multilayer", scope=scope)
    expected = pooling.fit(means, y).transform(means)
    actual = clone(pooling).fit(tokens, y).transform(tokens)
    np.testing.assert_allclose(actual, expected, rtol=1e-7, atol=1e-9)
    assert pooling.attention(tokens).shape == (N, 1, 3)


def test_other_kinds_refuse_several_layers(layers, y):
    with pytest.raises(ValueError, match="3 layers"):
        small().fit(TokenArray.from_layers(layers[0]), y)


def test_layers_of_prefix_tokens_alone_are_refused(layers, y):
    with pytest.raises(ValueError, match="scope='all'"):
        small("multilayer").fit(TokenArray.from_layers(layers[0], n_prefix_tokens=4), y)


# Refusals.


def test_one_class_is_refused(x):
    with pytest.raises(ValueError, match=r"one class, \['a'\]; AttentionPooling needs two"):
        small().fit(x.numpy(), ["a"] * N)


@pytest.mark.parametrize("loss", ["cross_entropy", "supcon", "mse"])
def test_missing_y_is_refused(x, loss):
    with pytest.raises(ValueError, match="requires y to be passed, but the target y is None"):
        small(loss=loss).fit(x.numpy())


@pytest.mark.parametrize("bad", [np.ones(N - 1), np.full(N, np.nan)])
def test_bad_targets_are_refused(x, bad):
    with pytest.raises(ValueError, match="y"):
        small(loss="mse").fit(x.numpy(), bad)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gated"])
def test_heads_that_do_not_divide_the_features_are_refused(kind, x, y):
    with pytest.raises(ValueError, match="n_heads=3 does not divide the 8 features"):
        small(kind, n_heads=3).fit(x.numpy(), y)


def test_gated_has_no_heads(x, y):
    small(n_heads=3).fit(x.numpy(), y)


def test_latent_has_no_weights_of_tokens(x, y):
    pooling = small("latent").fit(x.numpy(), y)
    with pytest.raises(ValueError, match="no weights of tokens"):
        pooling.attention(x.numpy())


def test_other_number_of_layers_is_refused(x, y):
    pooling = small("multilayer").fit(x.numpy(), y)
    with pytest.raises(ValueError, match=r"3 layers, but AttentionPooling was fitted on 5"):
        pooling.transform(x.numpy()[:, :3])
    free = small("multilayer", layer_embedding=False).fit(x.numpy(), y)
    assert free.transform(x.numpy()[:, :3]).shape == (N, D)


def test_before_fit_nothing_is_pooled(x):
    for verb in (AttentionPooling().transform, AttentionPooling().attention):
        with pytest.raises(NotFittedError):
            verb(x.numpy())
    with pytest.raises(NotFittedError):
        AttentionPoolingClassifier().predict(x.numpy())


def test_sample_without_token_is_refused_unless_asked_for(x, y, mask):
    mask[4] = False
    tokens = TokenArray.from_array(x.numpy(), mask=mask.numpy())
    with pytest.raises(ValueError, match=r"Sample 4\b"):
        small().fit(tokens, y)
    zero = small(empty="zero").fit(tokens, y)
    assert not zero.transform(tokens)[4].any() and not zero.attention(tokens)[4].any()


# The classifier.


def test_classifier_refuses_one_class_by_its_own_name(x):
    with pytest.raises(ValueError, match=r"one class, \[3\]; AttentionPoolingClassifier needs two"):
        AttentionPoolingClassifier().fit(x.numpy(), np.full(N, 3))


@pytest.mark.parametrize("names", [[7, -1, 3], ["owl", "ant", "bee"]])
def test_labels_of_any_kind_are_predicted(x, y, names):
    labels = np.array(names)[y]
    model = AttentionPoolingClassifier(epochs=3, hidden_dim=6).fit(x.numpy(), labels)
    np.testing.assert_array_equal(model.classes_, np.unique(labels))
    codes = AttentionPoolingClassifier(epochs=3, hidden_dim=6).fit(
        x.numpy(), np.unique(labels, return_inverse=True)[1]
    )
    expected = model.classes_[codes.predict(x.numpy())]
    np.testing.assert_array_equal(model.predict(x.numpy()), expected)


def test_probabilities_are_the_softmax_of_the_decisions(x, y):
    model = AttentionPoolingClassifier(epochs=3).fit(x.numpy(), y)
    expected = torch.from_numpy(model.decision_function(x.numpy())).softmax(dim=1)
    np.testing.assert_allclose(model.predict_proba(x.numpy()), expected)


def test_decision_of_two_classes_is_their_log_odds(x):
    y = np.arange(N) % 2
    model = AttentionPoolingClassifier(epochs=3).fit(x.numpy(), y)
    proba = model.predict_proba(x.numpy())
    expected = np.log(proba[:, 1] / proba[:, 0])
    np.testing.assert_allclose(model.decision_function(x.numpy()), expected)


def test_unreadable_sample_is_not_predicted(x, y):
    model = AttentionPoolingClassifier(epochs=2).fit(x.numpy(), y)
    with pytest.raises(ValueError, match="position 3"):
        model.predict(TokenArray(LazySource(x.numpy(), missing=(3,))))


def test_attention_of_the_classifier_is_that_of_its_pooling(x, y):
    model = AttentionPoolingClassifier(epochs=2).fit(x.numpy(), y)
    expected = model.pooling_.attention(x.numpy())
    np.testing.assert_array_equal(model.attention(x.numpy()), expected)


def test_multilayer_classifier_takes_layers_of_tokens(layers, y):
    X, mask = layers
    tokens = TokenArray.from_layers(X, mask=mask)
    model = AttentionPoolingClassifier("multilayer", n_heads=2, epochs=2).fit(tokens, y)
    means = means_of_layers(X, mask, 0)
    np.testing.assert_allclose(model.predict_proba(tokens), model.predict_proba(means))


# As an estimator.


def test_labels_are_required_by_tag():
    tags = get_tags(AttentionPooling())
    assert tags.target_tags.required and tags.requires_fit


def test_grid_search_chooses_a_kind():
    X, y, _ = planted(200)
    pipeline = make_pipeline(small(epochs=10, lr=0.03), WeightedKNNClassifier(5))
    grid = {"attentionpooling__kind": ["gated", "simpool"]}
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(X, y)
    assert search.best_params_ == {"attentionpooling__kind": "gated"}


@pytest.mark.parametrize("kind", KINDS)
def test_pickle_gives_the_same_and_holds_no_tensor(kind, x, y):
    pooling = small(kind).fit(x.numpy(), y)
    expected = pooling.transform(x.numpy())
    again = pickle.loads(pickle.dumps(pooling))
    np.testing.assert_array_equal(again.transform(x.numpy()), expected)
    assert all(type(value) is np.ndarray for value in again.weights_.values())
    assert not any(isinstance(value, (torch.Tensor, nn.Module)) for value in vars(again).values())


def test_refused_fit_keeps_the_fitted_weights(x, y):
    pooling = small().fit(x.numpy(), y)
    expected = pooling.transform(x.numpy())
    with pytest.raises(ValueError, match="one class"):
        pooling.fit(x.numpy(), np.zeros(N))
    np.testing.assert_array_equal(pooling.transform(x.numpy()), expected)
