# SPDX-License-Identifier: BSD-3-Clause
"""CosineClassifier: its limits, classes that arrive, and scikit-learn's habits."""

import pickle

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from skpool.probing import CosineClassifier
from skpool.prototypes import NearestClassMeanClassifier
from skpool.training import HeadTrainer


def unit(X):
    return X / np.linalg.norm(X, axis=1, keepdims=True)


@pytest.fixture
def data():
    X, y = make_blobs(120, n_features=8, centers=5, cluster_std=3.0, random_state=0)
    return X + 2.0, np.array(list("abcde"))[y]


# Limits.


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_without_training_it_is_the_nearest_class_mean(data, dtype):
    X, y = data[0].astype(dtype), data[1]
    ncm = NearestClassMeanClassifier(metric="cosine").fit(X, y)
    found = CosineClassifier(epochs=0, scale=1.0).fit(X, y).class_scores(X)
    atol = 1e-12 if dtype == np.float64 else 1e-6
    np.testing.assert_allclose(found, ncm.class_scores(X), atol=atol)


def test_class_means_are_weighted(data):
    X, y = data
    weights = np.arange(len(y)) % 4
    ncm = NearestClassMeanClassifier(metric="cosine").fit(X, y, sample_weight=weights)
    clf = CosineClassifier(epochs=0, scale=1.0).fit(X, y, sample_weight=weights)
    np.testing.assert_allclose(clf.class_scores(X), ncm.class_scores(X), atol=1e-12)


def test_softmax_head_minimises_the_normalised_softmax(data):
    # The minimum over directions in two dimensions, found by trying all.
    X, y = np.abs(data[0][:, :2]), (data[1] > "b").astype(int)
    clf = CosineClassifier(scale=5.0, lr=0.05, epochs=400).fit(X, y)

    def loss(angles):
        w = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        p = softmax(5 * unit(X) @ w.T, axis=1)
        return -np.log(p[np.arange(len(y)), y]).mean()

    grid = np.linspace(0, 2 * np.pi, 181)
    best = min(loss(np.array([a, b])) for a in grid for b in grid)
    p = clf.predict_proba(X)[np.arange(len(y)), y]
    assert -np.log(p).mean() == pytest.approx(best, abs=1e-3)
    assert clf.history_[-1, 0] == pytest.approx(-np.log(p).mean(), abs=1e-3)


def test_scale_changes_probabilities_and_no_decision(data):
    X, y = data
    low, high = (CosineClassifier(epochs=0, scale=s).fit(X, y) for s in (2.0, 32.0))
    np.testing.assert_array_equal(low.predict(X), high.predict(X))
    assert high.predict_proba(X).max(axis=1).mean() > low.predict_proba(X).max(axis=1).mean() + 0.1


@pytest.mark.parametrize("loss", ["cosface", "arcface"])
def test_margins_bring_samples_nearer_to_their_class(data, loss):
    X, y = data
    options = {"epochs": 100, "lr": 0.01, "scale": 30.0, "n_components": 4}

    def own_minus_others(**more):
        scores = CosineClassifier(**options, **more).fit(X, y).class_scores(X) / 30
        own = np.array(list("abcde")) == y[:, None]
        return scores[own].mean() - scores[~own].mean()

    assert own_minus_others(loss=loss, margin=0.4) > own_minus_others() + 0.1


def test_predictions_have_no_margin(data):
    X, y = data
    plain = CosineClassifier(epochs=0).fit(X, y)
    margin = CosineClassifier(epochs=0, loss="cosface", margin=0.5).fit(X, y)
    np.testing.assert_array_equal(margin.class_scores(X), plain.class_scores(X))


def test_partial_classes_learn_as_well(data):
    X, y = data
    parts = CosineClassifier(sample_ratio=0.4, lr=0.02, batch_size=2, epochs=20).fit(X, y)
    assert parts.score(X, y) >= CosineClassifier(epochs=0).fit(X, y).score(X, y)
    assert not np.allclose(
        parts.class_scores(X),
        CosineClassifier(lr=0.02, batch_size=2, epochs=20).fit(X, y).class_scores(X),
    )


def test_training_finds_what_class_means_do_not_see():
    # Large noise in ten features hides from the means what one feature says.
    rng = np.random.default_rng(0)
    y = np.arange(400) % 2
    X = rng.normal(size=(400, 12)) * np.r_[1, 1, np.full(10, 20.0)]
    X[:, 0] += np.where(y, 3, -3)

    def accuracy(*width, **options):
        clf = CosineClassifier(*width, **options).fit(X[:200], y[:200])
        return clf.score(X[200:], y[200:])

    assert accuracy(epochs=0) < 0.7
    assert accuracy(lr=0.05, epochs=100) > 0.95
    assert accuracy(2, lr=0.05, epochs=100) > 0.95


def test_proxies_serve_a_class_on_both_sides_of_another():
    rng = np.random.default_rng(0)
    angles = np.repeat([0.0, 1.0, 2.0, 1.0], 40) * np.pi / 3
    X = np.stack([np.cos(angles), np.sin(angles)], axis=1) + 0.1 * rng.normal(size=(160, 2))
    y = np.repeat([0, 1, 0, 1], 40)
    options = {"lr": 0.02, "epochs": 60, "batch_size": 40}
    assert CosineClassifier(n_proxies=2, **options).fit(X, y).score(X, y) > 0.95
    assert CosineClassifier(**options).fit(X, y).score(X, y) < 0.8


def test_adacos_raises_the_scale_with_the_classes():
    rng = np.random.default_rng(0)
    y = np.arange(300) % 60
    X = rng.normal(size=(60, 16))[y] + 0.3 * rng.normal(size=(300, 16))
    clf = CosineClassifier(scale="adacos", epochs=10).fit(X, y)
    # With cosines near 0 to the others and near 1 to the own class, the rule gives log(C - 1).
    assert clf.scale_ == pytest.approx(np.log(59), rel=0.3)


def test_learned_scales_grow_where_classes_part():
    X, y = make_blobs(60, n_features=6, centers=3, cluster_std=0.1, random_state=0)
    clf = CosineClassifier(scale="learned", lr=0.05, epochs=30).fit(X, y)
    assert clf.scale_ > 16.5


# Vectors.


@pytest.mark.parametrize("n_components", [None, 3])
def test_vectors_have_unit_length_and_give_the_scores(data, n_components):
    X, y = data
    clf = CosineClassifier(n_components, epochs=3).fit(X, y)
    vectors = clf.transform(X)
    assert vectors.shape == (120, n_components or 8)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0)
    scores = 16 * vectors @ unit(clf.weights_["weight"][:, 0]).T
    np.testing.assert_allclose(clf.class_scores(X), scores)
    assert len(clf.get_feature_names_out()) == vectors.shape[1]


def test_tensors_give_tensors(data):
    X, y = torch.as_tensor(data[0]).float(), data[1]
    vectors = CosineClassifier(epochs=1).fit(X, y).transform(X)
    assert isinstance(vectors, torch.Tensor)
    assert vectors.dtype == torch.float32


def test_zero_rows_are_learned_and_score_zero(data):
    X, y = data[0].copy(), data[1]
    X[:3] = 0
    clf = CosineClassifier(epochs=2).fit(X, y)
    assert not clf.class_scores(X[:3]).any()
    assert not clf.transform(X[:3]).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_length_of_rows_plays_no_part_in_scores(data, dtype):
    X, y = data[0].astype(dtype), data[1]
    clf = CosineClassifier(epochs=2).fit(X, y)
    tol = 1e-4 if dtype == np.float32 else 1e-10
    for size in (1e-12, 1e12):
        np.testing.assert_allclose(clf.class_scores(X * dtype(size)), clf.class_scores(X), rtol=tol)


# Classes that arrive.


def test_added_classes_are_their_means(data):
    X, y = data
    known, new = y < "d", y >= "d"
    clf = CosineClassifier(epochs=3, scale=1.0).fit(X[known], y[known])
    before = clf.class_scores(X)
    clf.add_classes(X[new], y[new])
    ncm = NearestClassMeanClassifier(metric="cosine").fit(X[new], y[new])
    # A product with more columns may round another way.
    np.testing.assert_allclose(clf.class_scores(X)[:, :3], before, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(clf.class_scores(X)[:, 3:], ncm.class_scores(X), atol=1e-12)
    np.testing.assert_array_equal(clf.classes_, list("abcde"))


def test_added_classes_take_their_place_among_the_others(data):
    X, y = data
    late = np.isin(y, ["a", "c"])
    clf = CosineClassifier(epochs=0).fit(X[~late], y[~late]).add_classes(X[late], y[late])
    at_once = CosineClassifier(epochs=0).fit(X, y)
    np.testing.assert_array_equal(clf.classes_, list("abcde"))
    np.testing.assert_allclose(clf.class_scores(X), at_once.class_scores(X))


def test_known_classes_cannot_be_added(data):
    X, y = data
    clf = CosineClassifier(epochs=0).fit(X, y)
    before = clf.class_scores(X)
    with pytest.raises(ValueError, match="'a', which is known"):
        clf.add_classes(X, np.where(y == "a", "a", "z"))
    np.testing.assert_array_equal(clf.class_scores(X), before)


def test_added_classes_can_be_trained_on(data):
    X, y = data
    early = y < "d"
    clf = CosineClassifier(bias=True).fit(X[early], y[early]).add_classes(X[~early], y[~early])
    clf.set_params(epochs_partial=20, lr=0.01).partial_fit(X, y)
    assert clf.score(X, y) > 0.7


def test_classes_of_partial_fit_start_from_their_means(data):
    X, y = data
    early = y < "d"
    steps = CosineClassifier(epochs=1, lr=1e-9).fit(X[early], y[early])
    steps.partial_fit(X[~early], y[~early])
    means = CosineClassifier(epochs=0).fit(X, y)
    np.testing.assert_allclose(steps.class_scores(X), means.class_scores(X), atol=1e-5)


def test_failed_partial_fit_changes_nothing(data):
    X, y = data
    clf = CosineClassifier(epochs=1).fit(X, y)
    before = clf.class_scores(X)
    with pytest.raises(ValueError, match="sample_weight"):
        clf.partial_fit(X[:2], ["y", "z"], sample_weight=[1, -1])
    with pytest.raises(ValueError, match="text or numbers"):
        clf.partial_fit(X[:2], [1, 2])
    np.testing.assert_array_equal(clf.class_scores(X), before)
    np.testing.assert_array_equal(clf.classes_, list("abcde"))


# scikit-learn's habits.


def test_same_seed_gives_the_same_weights_and_leaves_torch_alone(data):
    X, y = data
    clf = CosineClassifier(3, sample_ratio=0.5, feature_ratio=0.7, batch_size=16, epochs=2)
    before = torch.get_rng_state()
    first, second = clone(clf).fit(X, y), clone(clf).fit(X, y)
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in first.weights_.items():
        np.testing.assert_array_equal(second.weights_[name], value)
    other = clone(clf).set_params(random_state=1).fit(X, y)
    assert not np.allclose(other.weights_["projection"], first.weights_["projection"])


def test_interrupted_training_goes_on_as_it_would_have(data, tmp_path, monkeypatch):
    X, y = data
    options = {"scale": "adacos", "sample_ratio": 0.6, "batch_size": 16, "schedule": "constant"}
    whole = CosineClassifier(epochs=4, **options).fit(X, y)

    train = HeadTrainer.train

    def interrupted(self, *args, **options):
        def stop(epoch, *losses):
            if epoch == 1:
                raise KeyboardInterrupt

        return train(self, *args, **{**options, "on_epoch": stop})

    clf = CosineClassifier(epochs=4, checkpoint=tmp_path, **options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(HeadTrainer, "train", interrupted)
        clf.fit(X, y)
    assert any(tmp_path.iterdir())
    resumed = clf.fit(X, y)
    for name, value in whole.weights_.items():
        np.testing.assert_array_equal(resumed.weights_[name], value)


def test_checkpoint_of_another_margin_is_refused(data, tmp_path):
    X, y = data
    CosineClassifier(loss="cosface", margin=0.1, epochs=1, checkpoint=tmp_path).fit(X, y)
    with pytest.raises(ValueError, match="checkpoint"):
        CosineClassifier(loss="cosface", margin=0.2, epochs=1, checkpoint=tmp_path).fit(X, y)


def test_pickles_predict_alike(data):
    X, y = data
    clf = CosineClassifier(3, bias=True, scale="learned", epochs=2).fit(X, y)
    again = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(again.predict_proba(X), clf.predict_proba(X))


def test_cross_validation_in_two_processes(data):
    X, y = data
    clf = CosineClassifier(epochs=5)
    alone, together = (cross_val_score(clf, X, y, cv=3, n_jobs=n) for n in (None, 2))
    np.testing.assert_array_equal(together, alone)


def test_one_class_is_always_predicted():
    X = np.random.default_rng(0).normal(size=(6, 3))
    clf = CosineClassifier(scale="adacos", epochs=2).fit(X, ["only"] * 6)
    np.testing.assert_array_equal(clf.predict(X), ["only"] * 6)
    np.testing.assert_array_equal(clf.predict_proba(X), 1.0)


def test_classes_of_one_sample_are_learned():
    X = np.eye(4)
    clf = CosineClassifier(epochs=2).fit(X, [3, 1, 2, 0])
    np.testing.assert_array_equal(clf.predict(X), [3, 1, 2, 0])


def test_it_is_as_good_as_logistic_regression_on_unit_rows(data):
    X, y = data
    theirs = cross_val_score(LogisticRegression(), unit(X), y, cv=3).mean()
    ours = cross_val_score(CosineClassifier(lr=0.01), X, y, cv=3).mean()
    assert ours > theirs - 0.05


# Refusals.


def test_margins_of_the_plain_softmax_are_refused(data):
    with pytest.raises(ValueError, match=r"margin=0.3 plays no part"):
        CosineClassifier(margin=0.3).fit(*data)


def test_wider_projections_than_rows_are_refused(data):
    with pytest.raises(ValueError, match="n_components=9 is more than the 8"):
        CosineClassifier(9).fit(*data)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss", "triplet"),
        ("scale", "auto"),
        ("scale", 0),
        ("margin", -0.1),
        ("sample_ratio", 0),
        ("n_proxies", 0),
        ("init", "zeros"),
    ],
)
def test_values_out_of_range_are_refused(data, name, value):
    with pytest.raises(ValueError, match=name):
        CosineClassifier(**{name: value}).fit(*data)
