# SPDX-License-Identifier: BSD-3-Clause
"""NearestClassMeanClassifier against scikit-learn, refits and the laws of means."""

import pickle

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import ortho_group
from sklearn import config_context
from sklearn.covariance import OAS
from sklearn.datasets import load_digits, load_iris
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import normalize
from sklearn.utils.estimator_checks import parametrize_with_checks

from skpool.discriminant import LinearDiscriminantClassifier
from skpool.prototypes import NearestClassMeanClassifier

METRICS = ["cosine", "euclidean", "dot", "mahalanobis", "manhattan"]
ADDITIVE = ["cosine", "euclidean", "dot", "manhattan"]


@parametrize_with_checks(
    [
        NearestClassMeanClassifier(),
        NearestClassMeanClassifier("euclidean", priors="empirical"),
        NearestClassMeanClassifier("mahalanobis", shrinkage=0.1),
        NearestClassMeanClassifier("mahalanobis", shrinkage=0.1, covariance="shared_diag"),
        NearestClassMeanClassifier(normalize="l2", normalize_means=True, temperature=10),
    ]
)
def test_sklearn_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:900], y[:900], X[900:1200], y[900:1200]


@pytest.fixture(scope="module")
def small():
    rng = np.random.default_rng(5)
    y = np.repeat([0, 1, 2], [12, 17, 11])
    return rng.standard_normal((40, 6)) + np.eye(6)[y], y


@pytest.fixture(scope="module")
def noisy_digits(digits):
    # The peer warns about features that are constant within the classes.
    X, y, Q, _ = digits
    rng = np.random.default_rng(0)
    return X + rng.standard_normal(X.shape), y, Q


def test_euclidean_predictions_equal_nearest_centroid(noisy_digits):
    X, y, Q = noisy_digits
    expected = NearestCentroid().fit(X, y)
    ncm = NearestClassMeanClassifier("euclidean").fit(X, y)
    np.testing.assert_allclose(ncm.prototypes_, expected.centroids_, atol=1e-12)
    assert (ncm.predict(Q) == expected.predict(Q)).all()


def test_manhattan_prototypes_are_means_and_not_the_medians_of_scikit_learn(noisy_digits):
    X, y, _ = noisy_digits
    medians = NearestCentroid(metric="manhattan").fit(X, y).centroids_
    means = NearestClassMeanClassifier("manhattan").fit(X, y).prototypes_
    np.testing.assert_allclose(means, [X[y == c].mean(axis=0) for c in range(10)], atol=1e-12)
    assert not np.allclose(means, medians)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "manhattan"])
def test_one_shot_is_the_nearest_neighbor(digits, metric):
    X, y, Q, _ = digits
    first = [np.flatnonzero(y == c)[0] for c in range(10)]
    peer = KNeighborsClassifier(1, metric=metric, algorithm="brute").fit(X[first], y[first])
    ncm = NearestClassMeanClassifier(metric).fit(X[first], y[first])
    assert (ncm.predict(Q) == peer.predict(Q)).all()


@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
def test_mahalanobis_equals_lda_with_the_same_covariance(shrinkage):
    # Balanced classes: scikit-learn averages the covariances of the classes.
    X, y = load_iris(return_X_y=True)
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=[1 / 3] * 3)
    ncm = NearestClassMeanClassifier("mahalanobis", shrinkage=shrinkage).fit(X, y)
    np.testing.assert_allclose(
        ncm.predict_proba(X), lda.fit(X, y).predict_proba(X), rtol=1e-6, atol=1e-12
    )


def test_mahalanobis_priors_multiply_the_probabilities_of_lda():
    # scikit-learn would also weigh the covariances by its priors, so they are applied here.
    X, y = load_iris(return_X_y=True)
    priors = np.array([0.7, 0.2, 0.1])
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3, priors=[1 / 3] * 3).fit(X, y)
    expected = lda.predict_proba(X) * priors
    expected /= expected.sum(axis=1, keepdims=True)
    ncm = NearestClassMeanClassifier("mahalanobis", shrinkage=0.3, priors=priors).fit(X, y)
    np.testing.assert_allclose(ncm.predict_proba(X), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("covariance", ["shared", "shared_diag"])
def test_mahalanobis_equals_our_discriminant_with_uniform_priors(small, covariance):
    X, y = small
    options = {"shrinkage": 0.2, "priors": "uniform", "covariance": covariance}
    lda = LinearDiscriminantClassifier(**options).fit(X, y)
    ncm = NearestClassMeanClassifier("mahalanobis", **options).fit(X, y)
    np.testing.assert_allclose(ncm.predict_proba(X), lda.predict_proba(X), rtol=1e-9)
    assert (ncm.predict(X) == lda.predict(X)).all()


def test_mahalanobis_with_oas_equals_our_discriminant(small):
    X, y = small
    lda = LinearDiscriminantClassifier(priors="uniform").fit(X, y)
    ncm = NearestClassMeanClassifier("mahalanobis").fit(X, y)
    np.testing.assert_allclose(ncm.predict_proba(X), lda.predict_proba(X), rtol=1e-9)


@pytest.mark.parametrize("shrinkage", [None, 0.0, 0.4, 1.0])
def test_diagonal_mahalanobis_divides_by_pooled_variances(small, shrinkage):
    X, y = small
    ncm = NearestClassMeanClassifier("mahalanobis", covariance="shared_diag", shrinkage=shrinkage)
    ncm.fit(X, y)
    variances = ((X - np.stack([X[y == c].mean(axis=0) for c in range(3)])[y]) ** 2).mean(axis=0)
    share = shrinkage or 0.0
    variances = (1 - share) * variances + share * variances.mean()
    expected = -0.5 * cdist(X, ncm.prototypes_, "seuclidean", V=variances) ** 2
    np.testing.assert_allclose(ncm.class_scores(X), expected, rtol=1e-9)


def test_diagonal_mahalanobis_needs_a_number_as_shrinkage(small):
    ncm = NearestClassMeanClassifier("mahalanobis", covariance="shared_diag")
    with pytest.raises(ValueError, match="give a number from 0 to 1"):
        ncm.fit(*small)
    assert not hasattr(ncm, "classes_")


def test_mahalanobis_oas_covariance_equals_scikit_learn(small):
    X, y = small
    centered = X - np.stack([X[y == c].mean(axis=0) for c in range(3)])[y]
    precision = np.linalg.inv(OAS(assume_centered=True).fit(centered).covariance_)
    ncm = NearestClassMeanClassifier("mahalanobis").fit(X, y)
    delta = X[:, None] - ncm.prototypes_
    expected = -0.5 * np.einsum("ncd,de,nce->nc", delta, precision, delta)
    np.testing.assert_allclose(ncm.class_scores(X), expected, rtol=1e-8)


def test_euclidean_proba_is_lda_with_unit_covariance(small):
    X, y = small
    ncm = NearestClassMeanClassifier("euclidean", temperature=2.0).fit(X, y)
    squared = ((X[:, None] - ncm.prototypes_) ** 2).sum(axis=2)
    expected = np.exp(-2.0 / 2 * squared)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ncm.predict_proba(X), expected, rtol=1e-10)


def test_unit_rows_and_unit_means_make_cosine_and_euclidean_agree(digits):
    X, y, Q, _ = digits
    cosine = NearestClassMeanClassifier(normalize="l2").fit(X, y)
    nme = NearestClassMeanClassifier("euclidean", normalize="l2", normalize_means=True).fit(X, y)
    # |x - p|^2 = 2 - 2 cos for unit vectors.
    np.testing.assert_allclose(nme.class_scores(Q), cosine.class_scores(Q) - 1, atol=1e-12)


def test_normalize_averages_unit_rows(small):
    X, y = small
    ncm = NearestClassMeanClassifier(normalize="l2").fit(X, y)
    expected = [normalize(X[y == c]).mean(axis=0) for c in range(3)]
    np.testing.assert_allclose(ncm.prototypes_, expected, atol=1e-14)


def test_empirical_priors_are_added_as_logarithms(small):
    X, y = small
    plain = NearestClassMeanClassifier("dot", temperature=4.0).fit(X, y).predict_proba(X)
    expected = plain * np.bincount(y)
    expected /= expected.sum(axis=1, keepdims=True)
    ncm = NearestClassMeanClassifier("dot", temperature=4.0, priors="empirical").fit(X, y)
    np.testing.assert_allclose(ncm.predict_proba(X), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("priors", "message"),
    [([0.5, 0.5], "there are 3 classes"), ([0.5, 0.6, -0.1], "sum to 1"), ([1, 1, 1], "sum to 1")],
)
def test_wrong_priors_are_refused(small, priors, message):
    ncm = NearestClassMeanClassifier(priors=priors)
    with pytest.raises(ValueError, match=message):
        ncm.fit(*small)
    assert not hasattr(ncm, "classes_")


@settings(deadline=None, max_examples=40)
@given(data=st.data(), metric=st.sampled_from(METRICS), normalized=st.booleans())
def test_any_order_and_partition_equals_fit(small, data, metric, normalized):
    X, y = small
    order = np.array(data.draw(st.permutations(range(40))))
    cuts = sorted(data.draw(st.sets(st.integers(1, 39), max_size=39)))
    options = {"normalize": "l2" if normalized else None, "priors": "empirical"}
    pieces = NearestClassMeanClassifier(metric, **options)
    for rows in np.split(order, cuts):
        pieces.partial_fit(X[rows], y[rows])
    whole = NearestClassMeanClassifier(metric, **options).fit(X, y)
    assert (pieces.counts_ == whole.counts_).all()
    np.testing.assert_allclose(pieces.prototypes_, whole.prototypes_, atol=1e-13)
    np.testing.assert_allclose(pieces.class_scores(X), whole.class_scores(X), atol=1e-9)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("order", ["as it comes", "by class", "by class, backwards"])
def test_row_by_row_equals_fit(small, metric, order):
    X, y = small
    rows = {"as it comes": np.arange(40), "by class": np.argsort(y)}
    pieces = NearestClassMeanClassifier(metric)
    for i in rows.get(order, np.argsort(-y)):
        pieces.partial_fit(X[i : i + 1], y[i : i + 1])
    whole = NearestClassMeanClassifier(metric).fit(X, y)
    np.testing.assert_allclose(pieces.class_scores(X), whole.class_scores(X), atol=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_fit_moments_equals_fit(small, metric):
    X, y = small
    fitted = NearestClassMeanClassifier(metric).fit(X, y)
    taken = NearestClassMeanClassifier(metric).fit_moments(fitted.moments_)
    assert (taken.class_scores(X) == fitted.class_scores(X)).all()
    taken.partial_fit(X[:3], y[:3])
    assert fitted.counts_.sum() == 40


def test_fit_moments_without_scatter_are_refused_for_mahalanobis(small):
    moments = NearestClassMeanClassifier().fit(*small).moments_
    ncm = NearestClassMeanClassifier("mahalanobis")
    with pytest.raises(ValueError, match="cannot be computed from moments"):
        ncm.fit_moments(moments)
    assert not hasattr(ncm, "classes_")


@pytest.mark.parametrize("options", [{}, {"normalize": "l2"}, {"metric": "mahalanobis"}])
def test_certify_tells_what_is_left(small, options):
    X, y = small
    ncm = NearestClassMeanClassifier(**options).fit(X, y).forget(X[:9], y[:9])
    assert ncm.certify(X[9:], y[9:]) < 1e-12
    assert ncm.certify(X, y) > 1e-3


@pytest.mark.parametrize("metric", ADDITIVE)
def test_new_classes_leave_old_scores_unchanged(digits, metric):
    X, y, Q, _ = digits
    ncm = NearestClassMeanClassifier(metric).fit(X[y < 5], y[y < 5])
    before = ncm.class_scores(Q)
    ncm.partial_fit(X[y >= 5], y[y >= 5])
    np.testing.assert_allclose(ncm.class_scores(Q)[:, :5], before, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=30)
@given(gone=st.sets(st.integers(0, 39), min_size=1, max_size=39), metric=st.sampled_from(ADDITIVE))
def test_forget_equals_refit(small, gone, metric):
    X, y = small
    gone = sorted(gone)
    kept = np.setdiff1d(np.arange(40), gone)
    ncm = NearestClassMeanClassifier(metric).fit(X, y).forget(X[gone], y[gone])
    refit = NearestClassMeanClassifier(metric).fit(X[kept], y[kept])
    assert (ncm.classes_ == refit.classes_).all() and (ncm.counts_ == refit.counts_).all()
    np.testing.assert_allclose(ncm.class_scores(X), refit.class_scores(X), atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"normalize": "l2", "normalize_means": True}])
def test_forget_equals_refit_with_shared_covariance_and_weights(small, options):
    X, y = small
    w = np.linspace(0.5, 2, 40)
    ncm = NearestClassMeanClassifier("mahalanobis", **options).fit(X, y, sample_weight=w)
    ncm.forget(X[::3], y[::3], sample_weight=w[::3])
    kept = np.setdiff1d(np.arange(40), np.arange(0, 40, 3))
    refit = NearestClassMeanClassifier("mahalanobis", **options)
    refit.fit(X[kept], y[kept], sample_weight=w[kept])
    np.testing.assert_allclose(ncm.class_scores(X), refit.class_scores(X), rtol=1e-9)


def test_forget_class_equals_fit_without_it(small):
    X, y = small
    ncm = NearestClassMeanClassifier().fit(X, y).forget_class(1)
    refit = NearestClassMeanClassifier().fit(X[y != 1], y[y != 1])
    assert ncm.classes_.tolist() == [0, 2]
    assert (ncm.class_scores(X) == refit.class_scores(X)).all()


def test_forget_class_with_shared_covariance_asks_for_the_samples(small):
    X, y = small
    ncm = NearestClassMeanClassifier("mahalanobis").fit(X, y)
    before = joblib.hash(vars(ncm))
    with pytest.raises(ValueError, match=r"call forget\(X, y\) with them"):
        ncm.forget_class(1)
    assert joblib.hash(vars(ncm)) == before


@pytest.mark.parametrize("metric", METRICS)
def test_merge_equals_fit_on_both(small, metric):
    X, y = small
    a = NearestClassMeanClassifier(metric).fit(X[:20], y[:20])
    b = NearestClassMeanClassifier(metric).fit(X[20:], y[20:])
    whole = NearestClassMeanClassifier(metric).fit(X, y)
    np.testing.assert_allclose(a.merge(b).class_scores(X), whole.class_scores(X), rtol=1e-9)


def test_merge_of_means_of_another_kind_is_refused(small):
    a = NearestClassMeanClassifier().fit(*small)
    b = NearestClassMeanClassifier(normalize="l2").fit(*small)
    with pytest.raises(ValueError, match="merge classifiers that normalise alike"):
        a.merge(b)


@pytest.mark.parametrize("metric", METRICS)
def test_all_rows_twice_change_nothing(small, metric):
    X, y = small
    once = NearestClassMeanClassifier(metric, shrinkage=0.1).fit(X, y)
    twice = NearestClassMeanClassifier(metric, shrinkage=0.1)
    twice.fit(np.tile(X, (2, 1)), np.tile(y, 2))
    np.testing.assert_allclose(twice.class_scores(X), once.class_scores(X), rtol=1e-9)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot", "mahalanobis"])
def test_rotation_changes_nothing(small, metric):
    X, y = small
    R = ortho_group.rvs(6, random_state=0)
    plain = NearestClassMeanClassifier(metric).fit(X, y)
    turned = NearestClassMeanClassifier(metric).fit(X @ R, y)
    np.testing.assert_allclose(turned.class_scores(X @ R), plain.class_scores(X), atol=1e-9)


@pytest.mark.parametrize("metric", ["euclidean", "mahalanobis"])
def test_mean_at_a_thousand_deviations_works_in_float32(metric):
    rng = np.random.default_rng(0)
    y = np.arange(2000) % 4
    far = (1000 + rng.standard_normal((2000, 16)) + 2 * np.eye(16)[y]).astype(np.float32)
    near = far.astype(np.float64) - 1000
    a = NearestClassMeanClassifier(metric).fit(far, y).class_scores(far)
    b = NearestClassMeanClassifier(metric).fit(near, y).class_scores(near)
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("metric", "options"), [("cosine", {}), ("euclidean", {"normalize": "l2"})]
)
def test_half_precision_of_large_norm_equals_its_float32(metric, options):
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((50, 300)) * 15000).clip(-65000, 65000).astype(np.float16)
    y = np.arange(50) % 3
    half = NearestClassMeanClassifier(metric, **options).fit(X, y)
    single = NearestClassMeanClassifier(metric, **options).fit(X.astype(np.float32), y)
    scores = half.class_scores(X)
    assert scores.dtype == np.float32 and np.isfinite(scores).all()
    np.testing.assert_allclose(scores, single.class_scores(X.astype(np.float32)), atol=1e-6)


def test_small_working_memory_gives_the_same(digits):
    X, y, Q, _ = digits
    ncm = NearestClassMeanClassifier("euclidean", normalize="l2").fit(X, y)
    expected = ncm.class_scores(Q)
    with config_context(working_memory=0.01):
        blocks = NearestClassMeanClassifier("euclidean", normalize="l2").fit(X, y)
        np.testing.assert_allclose(blocks.class_scores(Q), expected, atol=1e-12)


def test_zero_row_has_uniform_probabilities_under_cosine(small):
    proba = NearestClassMeanClassifier().fit(*small).predict_proba(np.zeros((1, 6)))
    np.testing.assert_allclose(proba, np.full((1, 3), 1 / 3))


def test_zero_mean_under_cosine_scores_zero_with_a_warning():
    X = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    with pytest.warns(UserWarning, match="mean of class 'a' is zero"):
        ncm = NearestClassMeanClassifier().fit(X, ["a", "a", "b"])
    assert ncm.class_scores([[0.0, 2.0]]).tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("metric", ADDITIVE)
def test_one_class_predicts_that_class(metric):
    ncm = NearestClassMeanClassifier(metric).fit([[1.0, 2.0], [3.0, 4.0]], ["only", "only"])
    assert ncm.predict([[-5.0, 1.0]]).tolist() == ["only"]
    assert ncm.predict_proba([[-5.0, 1.0]]).tolist() == [[1.0]]
    assert ncm.decision_function([[-5.0, 1.0]]).shape == (1, 1)


def test_singular_covariance_is_refused_when_scoring_and_more_samples_mend_it(small):
    X, y = small
    ncm = NearestClassMeanClassifier("mahalanobis")
    for i in (0, 12, 29):
        ncm.partial_fit(X[i : i + 1], y[i : i + 1])
    with pytest.raises(ValueError, match="covariance of 3 samples in 3 classes is singular"):
        ncm.predict(X)
    assert ncm.partial_fit(X[1:2], y[1:2]).predict(X).shape == (40,)


def test_fewer_samples_than_features_without_shrinkage_are_refused(small):
    X, y = small
    rows = [0, 1, 12, 13, 29, 30]
    ncm = NearestClassMeanClassifier("mahalanobis", shrinkage=None).fit(X[rows], y[rows])
    with pytest.raises(ValueError, match="set shrinkage above 0"):
        ncm.class_scores(X)


def test_constant_feature_without_shrinkage_is_refused(small):
    X, y = small
    X = np.column_stack([X, np.full(40, 3.3)])
    ncm = NearestClassMeanClassifier("mahalanobis", shrinkage=0.0).fit(X, y)
    with pytest.raises(ValueError, match="is singular"):
        ncm.predict(X)


def test_announced_class_has_no_prototype_and_no_count(small):
    X, y = small
    ncm = NearestClassMeanClassifier("euclidean").partial_fit(X, y, classes=[-4, 0])
    assert ncm.classes_.tolist() == [-4, 0, 1, 2]
    assert np.isnan(ncm.prototypes_[0]).all() and ncm.counts_[0] == 0
    assert (ncm.class_scores(X)[:, 0] == -np.inf).all() and -4 not in ncm.predict(X)


@pytest.mark.parametrize("verb", ["fit", "partial_fit", "forget"])
@pytest.mark.parametrize("options", [{}, {"normalize": "l2"}])
def test_nan_is_refused_and_nothing_changes(small, verb, options):
    X, y = small
    ncm = NearestClassMeanClassifier(**options).fit(X, y)
    before = joblib.hash(vars(ncm))
    bad = X.copy()
    bad[7, 2] = np.nan
    with pytest.raises(ValueError, match="NaN in row 7"):
        getattr(ncm, verb)(bad, y)
    assert joblib.hash(vars(ncm)) == before


@pytest.mark.parametrize("verb", ["fit", "partial_fit"])
def test_failure_after_the_update_changes_nothing(small, verb):
    ncm = NearestClassMeanClassifier(priors=[0.2, 0.3, 0.5]).fit(*small)
    before = joblib.hash(vars(ncm))
    with pytest.raises(ValueError, match="give one prior per class"):
        getattr(ncm, verb)(small[0][:2], [7, 8])
    assert joblib.hash(vars(ncm)) == before


def test_forgetting_more_than_was_learned_changes_nothing(small):
    X, y = small
    ncm = NearestClassMeanClassifier().fit(X, y)
    before = joblib.hash(vars(ncm))
    with pytest.raises(ValueError, match="holds 12"):
        ncm.forget(np.tile(X[:12], (2, 1)), np.tile(y[:12], 2))
    assert joblib.hash(vars(ncm)) == before


@pytest.mark.parametrize(
    "labels", [["x", "yy", "x"], [-1, 3, -1], [True, False, True]], ids=["text", "int", "bool"]
)
def test_labels_come_back_in_their_kind(labels):
    X = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]])
    predicted = NearestClassMeanClassifier().fit(X, labels).predict(X)
    assert predicted.tolist() == labels and predicted.dtype == np.asarray(labels).dtype


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("metric", METRICS)
def test_tensors_give_what_arrays_give(digits, metric, kind):
    X, y, Q, _ = digits
    X, Q = X.astype(kind), Q.astype(kind)
    a = NearestClassMeanClassifier(metric).fit(X, y)
    b = NearestClassMeanClassifier(metric).fit(torch.from_numpy(X), torch.from_numpy(y))
    assert (a.prototypes_ == b.prototypes_).all()
    scores = b.class_scores(torch.from_numpy(Q))
    assert isinstance(scores, np.ndarray) and (scores == a.class_scores(Q)).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("metric", METRICS)
def test_gpu_gives_what_the_host_gives(digits, metric):
    X, y, Q, _ = digits
    a = NearestClassMeanClassifier(metric, normalize="l2").fit(X, y)
    b = NearestClassMeanClassifier(metric, normalize="l2")
    b.fit(torch.from_numpy(X).cuda(), torch.from_numpy(y).cuda())
    scores = b.class_scores(torch.from_numpy(Q).cuda())
    np.testing.assert_allclose(scores, a.class_scores(Q), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("metric", ADDITIVE)
@pytest.mark.parametrize(
    "options",
    [{}, {"priors": "empirical"}, {"normalize": "l2", "normalize_means": True}],
    ids=["plain", "priors", "normalized"],
)
def test_loo_scores_equal_refits(small, metric, options):
    X, y = np.vstack([small[0], [[1.0] * 6]]), np.append(small[1], 7)
    ncm = NearestClassMeanClassifier(metric, **options)
    expected = np.full((41, 4), -np.inf)
    for train, test in LeaveOneOut().split(X):
        refit = NearestClassMeanClassifier(metric, **options).fit(X[train], y[train])
        columns = np.searchsorted([0, 1, 2, 7], refit.classes_)
        expected[test[:, None], columns] = refit.class_scores(X[test])
    np.testing.assert_allclose(ncm.fit(X, y).loo_scores(X, y), expected, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"normalize": "l2"}])
def test_loo_scores_of_nan_are_refused(small, options):
    X, y = small
    ncm = NearestClassMeanClassifier(**options).fit(X, y)
    bad = X.copy()
    bad[5, 1] = np.nan
    with pytest.raises(ValueError, match="NaN in row 5"):
        ncm.loo_scores(bad, y)


def test_loo_scores_with_shared_covariance_are_refused(small):
    with pytest.raises(ValueError, match="use cross_val_predict"):
        NearestClassMeanClassifier("mahalanobis").fit(*small).loo_scores(*small)


def test_weight_two_equals_the_row_twice(small):
    X, y = small
    weights = np.random.default_rng(0).integers(0, 3, 40)
    weighted = NearestClassMeanClassifier("mahalanobis", shrinkage=0.2)
    weighted.fit(X, y, sample_weight=weights)
    repeated = NearestClassMeanClassifier("mahalanobis", shrinkage=0.2)
    repeated.fit(np.repeat(X, weights, axis=0), np.repeat(y, weights))
    np.testing.assert_allclose(weighted.class_scores(X), repeated.class_scores(X), rtol=1e-9)


@pytest.mark.parametrize("scoring", ["accuracy", "neg_log_loss", "roc_auc"])
def test_scorers_work_on_two_classes(digits, scoring):
    X, y, _, _ = digits
    rows = y < 2
    scores = cross_val_score(NearestClassMeanClassifier(), X[rows], y[rows], scoring=scoring, cv=3)
    assert np.isfinite(scores).all()


def test_pickle_predicts_the_same(digits):
    X, y, Q, _ = digits
    ncm = NearestClassMeanClassifier("mahalanobis").fit(X, y)
    loaded = pickle.loads(pickle.dumps(ncm))
    assert (loaded.class_scores(Q) == ncm.class_scores(Q)).all()
    loaded.partial_fit(X[:5], y[:5])
    assert loaded.counts_.sum() == ncm.counts_.sum() + 5


def test_real_features_reach_the_recorded_accuracy(data_dir):
    # 0.747 was measured with a public script on these features (cosine to the class mean).
    data = np.load(data_dir / "features" / "clothing_deit_tiny.npz")
    train, test = data["split"] == "train", data["split"] == "test"
    ncm = NearestClassMeanClassifier().fit(data["cls"][train], data["labels"][train])
    assert ncm.score(data["cls"][test], data["labels"][test]) == pytest.approx(0.747, abs=0.006)


def test_cosines_of_parallel_means_are_told_apart():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], 40)
    X = (rng.normal(size=(120, 16)) + 3 * np.eye(3, 16)[y] + 1000.0).astype(np.float32)
    got = NearestClassMeanClassifier().fit(X, y).class_scores(X)
    wide = X.astype(np.float64)
    want = cosine_similarity(wide, [wide[y == c].mean(axis=0) for c in range(3)])
    spread = np.ptp(want, axis=1).max()
    assert spread < 1e-4
    assert np.abs(got - want).max() < 1e-6 * spread
