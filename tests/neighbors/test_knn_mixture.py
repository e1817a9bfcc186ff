# SPDX-License-Identifier: BSD-3-Clause
"""KNNMixtureClassifier against its two parts, computed by scikit-learn on normalised rows."""

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

from skpool.neighbors import KNNMixtureClassifier, WeightedKNNClassifier
from skpool.neighbors._knn_mixture import mixing_scores


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:300], y[:300], X[300:400], y[300:400]


def parts(X, Q, normalization):
    mean = X.mean(axis=0) if normalization == "center_l2" else 0.0
    if normalization is None:
        return X, Q
    return normalize(X - mean), normalize(Q - mean)


def vote(temperature):
    return lambda d: np.exp(-(d**2 - d[:, :1] ** 2) / temperature)


class Recorder(ClassifierMixin, BaseEstimator):
    """A head that keeps the weights that it was given."""

    def fit(self, X, y, sample_weight=None):
        self.classes_, self.weights_ = np.unique(y), sample_weight
        return self

    def predict_proba(self, X):
        return np.full((len(X), len(self.classes_)), 1 / len(self.classes_))

    def predict(self, X):
        return self.classes_[np.zeros(len(X), dtype=int)]


@pytest.mark.parametrize("normalization", ["center_l2", "l2", None])
@pytest.mark.parametrize("mixing", [0.0, 0.3, 1.0])
def test_mixture_equals_the_sum_of_its_parts(digits, mixing, normalization):
    X, y, Q, _ = digits
    # Tenths, so that squared distances without normalisation suit the temperature.
    X, Q = X / 10, Q / 10
    Z, R = parts(X, Q, normalization)
    p_head = LogisticRegression(max_iter=1000).fit(Z, y).predict_proba(R)
    peer = KNeighborsClassifier(9, weights=vote(0.5), algorithm="brute").fit(Z, y)
    expected = mixing * peer.predict_proba(R) + (1 - mixing) * p_head
    model = KNNMixtureClassifier(
        n_neighbors=9, temperature=0.5, mixing=mixing, normalization=normalization
    )
    # A tie at the border is decided otherwise by the peer.
    distances = peer.kneighbors(R, 10)[0]
    clear = distances[:, 8] < distances[:, 9] - 1e-9
    assert clear.mean() > 0.9
    found = model.fit(X, y).predict_proba(Q)
    np.testing.assert_allclose(found[clear], expected[clear], atol=1e-8)


def test_no_share_is_the_head_and_full_share_the_neighbors_exactly(digits):
    X, y, Q, _ = digits
    head = KNNMixtureClassifier(mixing=0.0).fit(X, y)
    Z = normalize(Q - X.mean(axis=0))
    np.testing.assert_allclose(head.predict_proba(Q), head.estimator_.predict_proba(Z), atol=1e-12)
    knn = KNNMixtureClassifier(mixing=1.0).fit(X, y)
    expected = WeightedKNNClassifier(metric="euclidean", temperature=1.0).fit(
        normalize(X - X.mean(axis=0)), y
    )
    np.testing.assert_allclose(knn.predict_proba(Q), expected.predict_proba(Z), atol=1e-10)


def test_high_temperature_is_the_uniform_vote(digits):
    X, y, Q, _ = digits
    hot = KNNMixtureClassifier(mixing=1.0, temperature=1e12, n_neighbors=7).fit(X, y)
    uniform = WeightedKNNClassifier(7, weights="uniform", metric="euclidean")
    uniform.fit(normalize(X - X.mean(axis=0)), y)
    expected = uniform.predict_proba(normalize(Q - X.mean(axis=0)))
    np.testing.assert_allclose(hot.predict_proba(Q), expected, atol=1e-9)


def test_temperature_is_twice_that_of_cosine_votes(digits):
    X, y, Q, _ = digits
    mixture = KNNMixtureClassifier(mixing=1.0, temperature=0.14, normalization="l2").fit(X, y)
    expected = WeightedKNNClassifier(temperature=0.07).fit(X, y).predict_proba(Q)
    np.testing.assert_allclose(mixture.predict_proba(Q), expected, atol=1e-9)


def test_share_by_cross_validation_is_the_best_of_the_grid(digits):
    X, y, _, _ = digits
    model = KNNMixtureClassifier(mixing="cv", n_neighbors=5).fit(X, y)
    assert len(model.mixing_scores_) == 21
    assert model.mixing_scores_[model.mixing_] == max(model.mixing_scores_.values())
    Z = normalize(X - X.mean(axis=0))
    peer = KNeighborsClassifier(5, weights=vote(1.0), algorithm="brute")
    left_out = cross_val_predict(peer, Z, y, cv=LeaveOneOut()) == y
    assert model.mixing_scores_[1.0] == pytest.approx(left_out.mean(), abs=0.004)


def test_mixing_scores_equal_a_loop():
    rng = np.random.default_rng(0)
    a, b = rng.dirichlet(np.ones(3), 50), rng.dirichlet(np.ones(3), 50)
    codes = rng.integers(0, 3, 50)
    for share, score in mixing_scores(a, b, codes, (0.0, 0.25, 1.0)).items():
        right = [np.argmax(share * a[i] + (1 - share) * b[i]) == codes[i] for i in range(50)]
        assert score == pytest.approx(np.mean(right))


@pytest.mark.parametrize("weighting", ["knn", "focal"])
def test_weights_of_samples_follow_from_neighbors_left_out(digits, weighting):
    X, y, _, _ = digits
    model = KNNMixtureClassifier(
        Recorder(), n_neighbors=9, sample_weighting=weighting, alpha=0.7, gamma=1.5
    ).fit(X, y)
    peer = KNeighborsClassifier(9, weights=vote(1.0), algorithm="brute")
    Z = normalize(X - X.mean(axis=0))
    p = cross_val_predict(peer, Z, y, cv=LeaveOneOut(), method="predict_proba")
    own = p[np.arange(len(y)), y]
    with np.errstate(divide="ignore"):
        logs = np.maximum(np.log(own), -100)
    expected = 1 - 0.7 * logs if weighting == "knn" else (1 - own) ** 1.5
    np.testing.assert_allclose(model.estimator_.weights_, expected, atol=1e-8)


def test_singleton_class_has_probability_zero_and_the_clamped_weight(digits):
    X, y, _, _ = digits
    y = np.where(np.arange(len(y)) == 17, 99, y)
    model = KNNMixtureClassifier(Recorder(), sample_weighting="knn", alpha=0.5).fit(X, y)
    assert model.knn_.loo_predict_proba()[17, -1] == 0
    assert model.estimator_.weights_[17] == 1 + 0.5 * 100


def test_head_without_probabilities_gives_the_softmax_with_a_warning(digits):
    X, y, Q, _ = digits
    with pytest.warns(UserWarning, match="RidgeClassifier has no predict_proba"):
        model = KNNMixtureClassifier(RidgeClassifier(), mixing=0.0).fit(X, y)
    scores = RidgeClassifier().fit(normalize(X - X.mean(axis=0)), y)
    scores = scores.decision_function(normalize(Q - X.mean(axis=0)))
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.predict_proba(Q), expected, atol=1e-8)


def test_head_of_two_classes_without_probabilities_gives_the_sigmoid(digits):
    X, y, Q, _ = digits
    with pytest.warns(UserWarning, match="no predict_proba"):
        model = KNNMixtureClassifier(RidgeClassifier(), mixing=0.0).fit(X, y > 4)
    scores = RidgeClassifier().fit(normalize(X - X.mean(axis=0)), y > 4)
    scores = scores.decision_function(normalize(Q - X.mean(axis=0)))
    np.testing.assert_allclose(model.predict_proba(Q)[:, 1], 1 / (1 + np.exp(-scores)), atol=1e-8)


def test_weighting_a_head_that_takes_no_weights_is_refused(digits):
    X, y, _, _ = digits
    model = KNNMixtureClassifier(KNeighborsClassifier(), sample_weighting="knn")
    with pytest.raises(ValueError, match="which KNeighborsClassifier does not"):
        model.fit(X, y)
    assert not hasattr(model, "n_features_in_")


def test_focal_weights_of_sure_neighbors_are_refused():
    X = np.repeat([[1.0, 0.0], [0.0, 1.0]], 30, axis=0)
    with pytest.raises(ValueError, match="leaves no sample a weight"):
        KNNMixtureClassifier(sample_weighting="focal").fit(X, np.repeat([0, 1], 30))


def test_small_classes_are_cross_validated(digits):
    X, y, Q, _ = digits
    y = np.where(np.arange(len(y)) == 17, 99, y)
    proba = KNNMixtureClassifier(mixing="cv").fit(X, y).predict_proba(Q)
    np.testing.assert_allclose(proba.sum(axis=1), 1)


def test_tensors_give_what_arrays_give(digits):
    X, y, Q, _ = digits
    expected = KNNMixtureClassifier().fit(X, y).predict_proba(Q)
    model = KNNMixtureClassifier().fit(torch.from_numpy(X), torch.from_numpy(y))
    np.testing.assert_allclose(model.predict_proba(torch.from_numpy(Q)), expected, atol=1e-10)
