# SPDX-License-Identifier: BSD-3-Clause
"""LayerSelector: it finds a planted layer, scores as scikit-learn does, and leaks nothing."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    ShuffleSplit,
    StratifiedKFold,
    cross_val_score,
)
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

from skpool.layers import LayerAggregator, LayerSelector
from skpool.layers._scoring import chosen_blocks, draw_rows
from skpool.pooling import GeMPooling, TokenPooling
from skpool.stores import TokenArray

N, K, D = 90, 4, 5
Y = np.arange(N) % 3
LABELLED = ["knn", "ridge", "ncm"]


def planted(place, *, n=N, strength=4.0, seed=0):
    """Noise in every layer, and the classes in one."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, K, D))
    X[:, place, :3] += strength * np.eye(3)[np.arange(n) % 3]
    return X


def planted_tokens(place):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, K, 6, D))
    # The class token misleads, the patches tell.
    X[:, place, 1:, :3] += 4 * np.eye(3)[Y][:, None]
    return X


# The choice.


@pytest.mark.parametrize("criterion", LABELLED)
@pytest.mark.parametrize("place", range(K))
def test_informative_layer_is_chosen(criterion, place):
    X = planted(place)
    model = LayerSelector(criterion).fit(X, Y)
    assert model.best_layer_ == place
    assert model.selected_.tolist() == [place]
    np.testing.assert_array_equal(model.transform(X), X[:, place])


@pytest.mark.parametrize("form", ["array", "tensor", "tokens", "lazy"])
def test_informative_layer_of_tokens_is_chosen(form, computed_layers):
    values = planted_tokens(2).astype(np.float32)
    forms = {
        "array": values,
        "tensor": torch.from_numpy(values),
        "tokens": TokenArray.from_layers(values, n_prefix_tokens=1),
        "lazy": TokenArray(computed_layers(values, n_prefix_tokens=1)),
    }
    X = forms[form]
    model = LayerSelector().fit(X, Y)
    out = model.transform(X)
    first = 1 if form in ("tokens", "lazy") else 0
    assert model.best_layer_ == 2
    assert isinstance(out, torch.Tensor) == (form == "tensor")
    np.testing.assert_allclose(out, values[:, 2, first:].mean(axis=1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("criterion", [*LABELLED, "rankme", "lidar"])
def test_of_identical_layers_the_lowest_wins(criterion):
    X = np.repeat(planted(0)[:, :1], K, axis=1)
    model = LayerSelector(criterion).fit(X, Y)
    assert len(set(model.scores_)) == 1
    assert model.best_layer_ == 0


def test_top_k_gives_the_best_layers_side_by_side():
    X = planted(3)
    X[:, 1, :3] += 3 * np.eye(3)[Y]
    model = LayerSelector(rule="top_k", k=2).fit(X, Y)
    assert model.selected_.tolist() == [1, 3]
    np.testing.assert_array_equal(model.transform(X), np.hstack([X[:, 1], X[:, 3]]))


def test_above_chance_gives_the_mean_of_all_informative_layers():
    X = planted(3)
    X[:, 1, :3] += 3 * np.eye(3)[Y]
    model = LayerSelector(rule="above_chance").fit(X, Y)
    assert model.selected_.tolist() == [1, 3]
    np.testing.assert_allclose(model.transform(X), (X[:, 1] + X[:, 3]) / 2)


@pytest.mark.parametrize("criterion", LABELLED)
@pytest.mark.parametrize("seed", range(4))
def test_shuffled_labels_select_nothing(criterion, seed):
    X = planted(1)
    y = np.random.default_rng(seed).permutation(Y)
    model = LayerSelector(criterion, rule="above_chance")
    with pytest.warns(UserWarning, match="bound of labels at random"):
        model.fit(X, y)
    assert model.selected_.tolist() == [K - 1]


def test_independent_guesses_pass_for_better_than_chance_one_time_in_a_hundred():
    rng = np.random.default_rng(0)
    n, k, chance, passed = 100, 6, 0.3, 0
    for scores in rng.binomial(n, chance, size=(2000, k)) / n:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            chosen_blocks(scores, rule="above_chance", k=1, chance=chance, n_tested=n)
        passed += not caught
    assert 0.002 < passed / 2000 < 0.015


@settings(max_examples=50)
@given(scores=st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=1, max_size=6), data=st.data())
def test_top_k_holds_the_best_and_of_equal_ones_the_lowest(scores, data):
    k = data.draw(st.integers(1, len(scores)))
    expected = sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k])
    got = chosen_blocks(np.array(scores), rule="top_k", k=k, chance=0.5, n_tested=10)
    assert got.tolist() == expected


# The scores.


@pytest.mark.parametrize("cv", [3, 4, StratifiedKFold(5, shuffle=True, random_state=1)])
def test_knn_scores_equal_cross_val_score_of_scikit_learn(cv):
    X = planted(1, strength=1.0)
    model = KNeighborsClassifier(20, metric="cosine")
    expected = [cross_val_score(model, X[:, place], Y, cv=cv).mean() for place in range(K)]
    np.testing.assert_array_equal(LayerSelector(cv=cv).fit(X, Y).scores_, expected)


def test_random_splits_are_the_same_for_all_layers():
    X = np.repeat(planted(0, strength=1.0)[:, :1], K, axis=1)
    scores = LayerSelector(cv=ShuffleSplit(3, test_size=0.3)).fit(X, Y).scores_
    assert len(set(scores)) == 1


@pytest.mark.parametrize("criterion", LABELLED)
def test_constant_layer_scores_as_the_largest_class(criterion):
    X = planted(2)
    X[:, 1] = 7.0
    y = np.repeat([0, 1, 2], [45, 30, 15])
    model = LayerSelector(criterion).fit(X, y)
    assert model.scores_[1] == 0.5
    assert np.isfinite(model.scores_).all()


@pytest.mark.parametrize("criterion", ["rankme", "lidar"])
def test_constant_layer_has_rank_one(criterion):
    X = planted(2)
    X[:, 1] = 7.0
    np.testing.assert_allclose(LayerSelector(criterion).fit(X, Y).scores_[1], 1, rtol=1e-4)


@pytest.mark.parametrize("criterion", ["rankme", "prompt_entropy"])
def test_criteria_without_labels_ignore_y_bitwise(criterion):
    X = planted_tokens(1)
    rng = np.random.default_rng(0)
    options = {"max_samples": 40}
    reference = LayerSelector(criterion, **options).fit(X).scores_.tobytes()
    for y in (Y, rng.permutation(Y), np.full(N, np.nan), ["a"] * N, "nonsense"):
        assert LayerSelector(criterion, **options).fit(X, y).scores_.tobytes() == reference


def test_prompt_entropy_is_the_mean_over_the_samples_of_their_patches(computed_layers):
    X = planted_tokens(1).astype(np.float32)
    p = np.linalg.svd(X[:, :, 1:].astype(np.float64), compute_uv=False) ** 2
    p /= p.sum(axis=-1, keepdims=True)
    expected = -(p * np.log(p)).sum(axis=-1).mean(axis=0)
    for source in (
        TokenArray.from_layers(X, n_prefix_tokens=1),
        TokenArray(computed_layers(X, n_prefix_tokens=1)),
    ):
        model = LayerSelector("prompt_entropy").fit(source)
        np.testing.assert_allclose(model.scores_, expected)
        assert model.best_layer_ == expected.argmin()


def test_prompt_entropy_knows_masks():
    X = planted_tokens(1)
    mask = np.arange(6) < np.array([2 + i % 5 for i in range(N)])[:, None]
    garbage = np.where(mask[:, None, :, None], X, np.nan)
    scores = LayerSelector("prompt_entropy").fit(TokenArray.from_layers(garbage, mask=mask)).scores_
    samples = [
        LayerSelector("prompt_entropy").fit(x[None, :, real]).scores_
        for x, real in zip(X, mask, strict=True)
    ]
    np.testing.assert_allclose(scores, np.mean(samples, axis=0))


@pytest.mark.parametrize("greater", [True, False])
def test_direction_can_be_chosen(greater):
    X = planted(1)
    model = LayerSelector("rankme", greater_is_better=greater).fit(X)
    best = model.scores_.argmax() if greater else model.scores_.argmin()
    assert model.best_layer_ == best


def test_callable_is_given_the_vectors_and_labels_of_a_layer():
    X, calls = planted(1), []

    def criterion(layer, y):
        calls.append((layer, y))
        return -layer.mean()

    model = LayerSelector(criterion).fit(X, Y)
    np.testing.assert_array_equal(np.stack([layer for layer, _ in calls], axis=1), X)
    assert all((y == Y).all() for _, y in calls)
    assert model.best_layer_ == X.mean(axis=(0, 2)).argmin()


def test_callable_may_do_without_labels_and_take_continuous_ones():
    X = planted(1)
    assert LayerSelector(lambda layer, y: float(y is None)).fit(X).scores_.tolist() == [1] * K
    target = X[:, 2, 0] * 2
    model = LayerSelector(lambda layer, y: abs(np.corrcoef(layer[:, 0], y)[0, 1]), max_samples=50)
    assert model.fit(X, target).best_layer_ == 2


def test_lidar_takes_views_as_groups():
    # In layer 2 the views of an image agree, and images differ in many directions.
    rng = np.random.default_rng(0)
    images = np.arange(N) // 5
    X = rng.normal(size=(N, K, D))
    X[:, :, 0] *= 10
    X[:, :, 0] += 100 * (images % 2)[:, None]
    X[:, 2] = rng.normal(size=(N // 5, D))[images] + 0.01 * rng.normal(size=(N, D))
    assert LayerSelector("lidar").fit(X, images).best_layer_ == 2


# The draw.


@settings(max_examples=40)
@given(sizes=st.lists(st.integers(1, 40), min_size=2, max_size=5), data=st.data())
def test_draw_is_in_proportion_to_the_classes(sizes, data):
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    most = data.draw(st.integers(2, len(y)))
    rows = draw_rows(len(y), most, y, np.random.RandomState(0), groups=False)
    assert len(np.unique(rows)) == len(rows) == most
    drawn = np.bincount(y[rows], minlength=len(sizes))
    assert (np.abs(drawn - most * np.array(sizes) / len(y)) < 1).all()


def test_small_groups_are_drawn_whole():
    y = np.arange(200) % 50
    rows = draw_rows(200, 40, y, np.random.RandomState(0), groups=True)
    assert set(np.bincount(y[rows])) == {0, 4}
    assert len(rows) == 40


def test_scores_stand_on_the_drawn_rows():
    X = planted(1, n=300, strength=1.0)
    y = np.arange(300) % 3
    model = LayerSelector(max_samples=60, random_state=3).fit(X, y)
    rows = draw_rows(300, 60, y, np.random.RandomState(3), groups=False)
    expected = LayerSelector(max_samples=60).fit(X[rows], y[rows]).scores_
    np.testing.assert_array_equal(model.scores_, expected)
    assert (LayerSelector(max_samples=60, random_state=4).fit(X, y).scores_ != expected).any()


def test_lazy_layers_are_pooled_once_for_fit_and_transform(computed_layers):
    source = computed_layers(planted_tokens(2).astype(np.float32))
    X = TokenArray(source)
    make_pipeline(LayerSelector(), LogisticRegression()).fit(X, Y).predict(X)
    LayerSelector("ridge").fit(X, Y).transform(X)
    assert source.n_streamed == N


def test_unreadable_rows_have_no_say(computed_layers):
    X = planted_tokens(2).astype(np.float32)
    lazy = TokenArray(computed_layers(X, missing=(4, 7)))
    known = np.delete(np.arange(N), [4, 7])
    for criterion in ("knn", "rankme", "prompt_entropy"):
        model = LayerSelector(criterion).fit(lazy, Y)
        expected = LayerSelector(criterion).fit(X[known], Y[known]).scores_
        np.testing.assert_allclose(model.scores_, expected, rtol=1e-4)
    assert np.isnan(model.transform(lazy)[[4, 7]]).all()


# Poolings.


def test_pooling_decides_what_a_layer_tells():
    X = planted_tokens(2)
    X[:, 3, 0, :3] += 20 * np.eye(3)[Y]
    X = TokenArray.from_layers(X, n_prefix_tokens=1)
    assert LayerSelector(token_pool="cls").fit(X, Y).best_layer_ == 3
    assert LayerSelector(token_pool=TokenPooling("mean")).fit(X, Y).best_layer_ == 2


@pytest.mark.parametrize("rule", ["best", "top_k"])
def test_pooling_that_learns_is_kept_for_the_selected_layers(rule):
    X = planted_tokens(2)
    pooling = GeMPooling(negative="shift")
    model = LayerSelector(rule=rule, k=2, token_pool=pooling).fit(X, Y)
    expected = [clone(pooling).fit_transform(X[:, place]) for place in model.selected_]
    np.testing.assert_allclose(model.transform(X), np.hstack(expected))


def test_stacked_layers_give_what_tokens_give():
    X = TokenArray.from_layers(planted_tokens(2), n_prefix_tokens=1)
    stack = LayerAggregator(token_pool="max", layer_pool="stack")
    composed = make_pipeline(stack, LayerSelector()).fit(X, Y)
    alone = LayerSelector(token_pool="max").fit(X, Y)
    np.testing.assert_array_equal(composed[-1].scores_, alone.scores_)
    np.testing.assert_array_equal(composed.transform(X), alone.transform(X))


# Refusals.


@pytest.mark.parametrize("criterion", [*LABELLED, "lidar"])
def test_labelled_criterion_without_labels_is_refused(criterion):
    with pytest.raises(ValueError, match="requires y"):
        LayerSelector(criterion).fit(planted(0))


def test_fewer_rows_than_folds_are_refused():
    with pytest.raises(ValueError, match="5 splits"):
        LayerSelector(cv=5).fit(planted(0)[:4], [0, 0, 1, 1])


@pytest.mark.parametrize("criterion", ["rankme", "lidar", "prompt_entropy", lambda X, y: 0.0])
def test_above_chance_needs_an_accuracy(criterion):
    with pytest.raises(ValueError, match="above_chance"):
        LayerSelector(criterion, rule="above_chance").fit(planted_tokens(0), Y)


def test_more_layers_than_there_are_are_refused():
    with pytest.raises(ValueError, match="k=5"):
        LayerSelector(rule="top_k", k=5).fit(planted(0), Y)


def test_prompt_entropy_of_vectors_is_refused():
    with pytest.raises(ValueError, match="needs tokens"):
        LayerSelector("prompt_entropy").fit(planted(0))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_callable_without_a_number_is_refused(value):
    with pytest.raises(ValueError, match="finite"):
        LayerSelector(lambda X, y: value).fit(planted(0))


@pytest.mark.parametrize("X", [planted(0)[:, 0], TokenArray.from_array(planted(0))])
def test_one_layer_is_refused(X):
    with pytest.raises(ValueError, match="LayerSelector"):
        LayerSelector().fit(X, Y)


def test_labels_of_another_length_are_refused():
    for criterion in ("knn", lambda X, y: 0.0):
        with pytest.raises(ValueError, match="90"):
            LayerSelector(criterion).fit(planted(0), Y[:-1])


def test_refused_fit_leaves_the_selector_as_it_was():
    model = LayerSelector().fit(planted(1), Y)
    state = dict(vars(model))
    with pytest.raises(ValueError, match="requires y"):
        model.fit(planted(2)[:, :2])
    assert vars(model) == state


def test_transform_needs_all_layers_and_a_fit():
    with pytest.raises(NotFittedError):
        LayerSelector().transform(planted(0))
    with pytest.raises(ValueError, match="layers"):
        LayerSelector().fit(planted(0), Y).transform(planted(0)[:, :2])


# As a step of scikit-learn.


def test_selector_in_a_pipeline_chooses_within_every_fold():
    # Labels at random: the score of the best layer promises what no choice inside the folds keeps.
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 30, 3)), np.arange(60) % 2
    leaking = LayerSelector().fit(X, y).scores_.max()
    inside = make_pipeline(LayerSelector(), KNeighborsClassifier(15, metric="cosine"))
    honest = cross_val_score(inside, X, y, cv=3, error_score="raise").mean()
    assert honest < 0.6 < leaking


def test_grid_search_over_criteria_and_rules():
    pipeline = make_pipeline(LayerSelector(), PCA(2), LogisticRegression())
    grid = {"layerselector__criterion": LABELLED, "layerselector__rule": ["best", "top_k"]}
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(planted(1), Y)
    assert search.best_score_ > 0.9


@pytest.mark.parametrize(
    ("options", "width"), [({}, D), ({"rule": "top_k", "k": 3}, 3 * D), ({"criterion": "ncm"}, D)]
)
def test_names_are_as_many_as_features(options, width):
    model = LayerSelector(**options).fit(planted_tokens(1), Y)
    assert len(set(model.get_feature_names_out())) == width
    assert model.transform(planted_tokens(1)).shape == (N, width)


def test_pickle_and_clone_give_the_same():
    X = planted_tokens(1)
    model = LayerSelector("ridge").fit(X, Y)
    back = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(back.transform(X), model.transform(X))
    np.testing.assert_array_equal(clone(model).fit(X, Y).scores_, model.scores_)
