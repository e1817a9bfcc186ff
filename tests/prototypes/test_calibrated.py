# SPDX-License-Identifier: BSD-3-Clause
"""CalibratedPrototypeClassifier against the formula, its limits, and refits."""

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize
from sklearn.utils.estimator_checks import parametrize_with_checks

from skpool.prototypes import (
    CalibratedPrototypeClassifier,
    NearestClassMeanClassifier,
    calibrate_prototypes,
)


@parametrize_with_checks([CalibratedPrototypeClassifier()])
def test_sklearn_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def data():
    """Six base classes with many rows and four new ones with few."""
    rng = np.random.default_rng(0)
    y = np.concatenate([np.repeat(np.arange(6), 30), np.repeat(np.arange(6, 10), 5)])
    means = 1.0 + rng.standard_normal((10, 8))
    return means[y] + 0.7 * rng.standard_normal((200, 8)), y


@pytest.fixture(scope="module")
def queries():
    return 1.0 + np.random.default_rng(1).standard_normal((60, 8))


def sessions(X, y, parts, **options):
    clf = CalibratedPrototypeClassifier(**options)
    for labels in parts:
        rows = np.isin(y, labels)
        clf.partial_fit(X[rows], y[rows])
    return clf


BASE, NEW = list(range(6)), list(range(6, 10))


def brute_force(new, base, alpha, temperature):
    """The formula, one prototype and one base class at a time."""
    rows = []
    for p in new:
        p = p / np.sqrt(sum(p * p))
        units = [b / np.sqrt(sum(b * b)) for b in base]
        shares = np.array([np.exp(temperature * sum(p * b)) for b in units])
        delta = sum(s * b for s, b in zip(shares / shares.sum(), units, strict=True))
        rows.append((1 - alpha) * p + alpha * delta / np.sqrt(sum(delta * delta)))
    return np.array(rows)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 16.0])
def test_calibration_equals_the_formula_by_hand(alpha, temperature):
    rng = np.random.default_rng(2)
    new, base = rng.standard_normal((3, 5)), rng.standard_normal((4, 5))
    ours = calibrate_prototypes(new, base, alpha=alpha, temperature=temperature)
    np.testing.assert_allclose(ours, brute_force(new, base, alpha, temperature), atol=1e-12)


def test_classifier_calibrates_the_means_of_new_classes_alone(data):
    X, y = data
    clf = sessions(X, y, [BASE, NEW], alpha=0.3, softmax_temperature=5.0)
    means = np.stack([X[y == c].mean(axis=0) for c in range(10)])
    np.testing.assert_allclose(clf.prototypes_[:6], normalize(means[:6]), atol=1e-12)
    expected = brute_force(means[6:], means[:6], 0.3, 5.0)
    np.testing.assert_allclose(clf.prototypes_[6:], expected, atol=1e-12)
    np.testing.assert_allclose(clf.raw_prototypes_, normalize(means), atol=1e-12)
    assert clf.calibration_weights_.shape == (4, 6)
    np.testing.assert_allclose(clf.calibration_weights_.sum(axis=1), 1)


def test_later_sessions_are_calibrated_by_the_base_alone(data):
    X, y = data
    two = sessions(X, y, [BASE, [6, 7], [8, 9]])
    one = sessions(X, y, [BASE, NEW])
    np.testing.assert_allclose(two.prototypes_, one.prototypes_, atol=1e-14)
    assert two.session_of_class_.tolist() == [0] * 6 + [1, 1, 2, 2]
    assert two.base_classes_.tolist() == BASE


def test_scores_are_cosines_with_the_prototypes(data, queries):
    X, y = data
    clf = sessions(X, y, [BASE, NEW])
    expected = normalize(queries) @ normalize(clf.prototypes_).T
    np.testing.assert_allclose(clf.class_scores(queries), expected, atol=1e-12)


def test_new_labels_before_the_base_ones_keep_their_columns(data, queries):
    X, y = data
    clf = sessions(X, -y, [[0, -2, -4, -5], [-3, -1]])
    expected = normalize(queries) @ normalize(clf.prototypes_).T
    np.testing.assert_allclose(clf.class_scores(queries), expected, atol=1e-12)
    assert clf.session_of_class_.tolist() == [0, 0, 1, 0, 1, 0]


def test_alpha_zero_is_the_cosine_nearest_mean(data, queries):
    X, y = data
    clf = sessions(X, y, [BASE, NEW], alpha=0.0)
    ncm = NearestClassMeanClassifier("cosine").fit(X, y)
    np.testing.assert_allclose(clf.class_scores(queries), ncm.class_scores(queries), atol=1e-12)


def test_alpha_one_and_hot_softmax_is_the_nearest_base_prototype(data):
    X, y = data
    clf = sessions(X, y, [BASE, NEW], alpha=1.0, softmax_temperature=1e6)
    base, new = clf.raw_prototypes_[:6], clf.raw_prototypes_[6:]
    nearest = KNeighborsClassifier(1, metric="cosine", algorithm="brute").fit(base, BASE)
    np.testing.assert_allclose(clf.prototypes_[6:], base[nearest.predict(new)], atol=1e-9)


def test_alpha_one_and_flat_softmax_is_the_sum_of_base_prototypes(data):
    X, y = data
    clf = sessions(X, y, [BASE, NEW], alpha=1.0, softmax_temperature=0.0)
    expected = normalize(clf.raw_prototypes_[:6].sum(axis=0)[None])
    np.testing.assert_allclose(clf.prototypes_[6:], expected.repeat(4, axis=0), atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_base_columns_keep_their_bits_when_sessions_follow(data, queries, dtype):
    X, y = data[0].astype(dtype), data[1]
    Q = queries.astype(dtype)
    clf = sessions(X, y, [BASE])
    before = clf.class_scores(Q)
    for label in NEW:
        clf.partial_fit(X[y == label], y[y == label])
        assert (clf.class_scores(Q)[:, :6] == before).all()


@settings(deadline=None, max_examples=20)
@given(order=st.permutations(NEW), cut=st.integers(1, 3))
def test_sessions_commute(data, order, cut):
    X, y = data
    expected = sessions(X, y, [BASE, NEW])
    clf = sessions(X, y, [BASE, order[:cut], order[cut:]])
    np.testing.assert_allclose(clf.prototypes_, expected.prototypes_, atol=1e-14)


def test_rotation_turns_the_prototypes(data):
    X, y = data
    R = ortho_group.rvs(8, random_state=0)
    plain, turned = (sessions(Z, y, [BASE, NEW]) for Z in (X, X @ R))
    np.testing.assert_allclose(turned.prototypes_, plain.prototypes_ @ R, atol=1e-12)


def test_temperature_scales_probabilities_alone(data, queries):
    X, y = data
    cold, hot = (sessions(X, y, [BASE, NEW], temperature=t) for t in (1.0, 32.0))
    assert (cold.predict(queries) == hot.predict(queries)).all()
    scores = np.exp(32 * cold.class_scores(queries))
    np.testing.assert_allclose(
        hot.predict_proba(queries), scores / scores.sum(axis=1, keepdims=True), rtol=1e-9
    )


def test_later_samples_sharpen_base_and_new_prototypes(data):
    X, y = data
    half = np.arange(200) % 2 == 0
    clf = sessions(X[half], y[half], [BASE, NEW])
    clf.partial_fit(X[~half], y[~half])
    np.testing.assert_allclose(clf.prototypes_, sessions(X, y, [BASE, NEW]).prototypes_, atol=1e-12)
    assert clf.session_of_class_.tolist() == [0] * 6 + [1] * 4


def test_named_base_classes_may_come_at_any_time(data):
    X, y = data
    late = sessions(X, y, [NEW, BASE], base_classes=BASE)
    np.testing.assert_allclose(
        late.prototypes_, sessions(X, y, [BASE, NEW]).prototypes_, atol=1e-14
    )
    assert late.session_of_class_.tolist() == [1] * 6 + [0] * 4


@settings(deadline=None, max_examples=20)
@given(gone=st.sets(st.integers(0, 199), min_size=1, max_size=150))
def test_forget_equals_refit(data, gone):
    X, y = data
    gone = np.array(sorted(gone))
    kept = np.setdiff1d(np.arange(200), gone)
    clf = sessions(X, y, [BASE, NEW]).forget(X[gone], y[gone])
    if (clf.session_of_class_ == 0).sum() < 2:
        return
    refit = sessions(X[kept], y[kept], [BASE, NEW])
    np.testing.assert_allclose(clf.prototypes_, refit.prototypes_, atol=1e-12)


def test_forgotten_class_that_comes_again_is_new(data):
    X, y = data
    clf = sessions(X, y, [BASE, NEW]).forget_class(0)
    assert clf.base_classes_.tolist() == BASE[1:]
    clf.partial_fit(X[y == 0], y[y == 0])
    assert clf.session_of_class_.tolist() == [2] + [0] * 5 + [1] * 4


def test_merge_of_shards_equals_one_learner(data):
    X, y = data
    half = np.arange(200) % 2 == 0
    a, b = (sessions(X[part], y[part], [BASE, [6, 7], [8, 9]]) for part in (half, ~half))
    whole = sessions(X, y, [BASE, [6, 7], [8, 9]])
    np.testing.assert_allclose(a.merge(b).prototypes_, whole.prototypes_, atol=1e-12)
    assert (a.session_of_class_ == whole.session_of_class_).all()


def test_merge_takes_the_earlier_session(data):
    X, y = data
    a = sessions(X, y, [[0, 1], [2, 3], [4]])
    b = sessions(X, y, [[0, 3, 5], [2]])
    assert a.merge(b).session_of_class_.tolist() == [0, 0, 1, 0, 2, 0]


def test_fit_moments_makes_all_classes_base(data):
    X, y = data
    clf = sessions(X, y, [[5], [6]], alpha=0.0)
    moments = NearestClassMeanClassifier().fit(X, y).moments_
    assert clf.fit_moments(moments).session_of_class_.tolist() == [0] * 10
    assert clf.certify(X, y) < 1e-12


def test_fit_starts_a_new_base_session(data):
    X, y = data
    clf = sessions(X, y, [BASE, NEW]).fit(X, y)
    assert clf.session_of_class_.tolist() == [0] * 10
    np.testing.assert_allclose(clf.prototypes_, clf.raw_prototypes_)


def test_announced_class_has_no_session_and_no_prototype(data):
    X, y = data
    clf = CalibratedPrototypeClassifier().partial_fit(X, y, classes=[99])
    assert clf.session_of_class_[-1] == -1 and np.isnan(clf.prototypes_[-1]).all()
    assert clf.counts_.tolist() == [30] * 6 + [5] * 4 + [0]


def test_no_base_class_is_refused_when_calibrating(data):
    X, y = data
    clf = sessions(X, y, [NEW], base_classes=BASE)
    with pytest.raises(ValueError, match=r"No base class .* set alpha=0"):
        clf.predict(X)
    before = joblib.hash(vars(clf))
    with pytest.raises(ValueError, match="No base class"):
        clf.fit(X[y > 5], y[y > 5])
    assert joblib.hash(vars(clf)) == before


def test_one_base_class_warns(data):
    X, y = data
    with pytest.warns(UserWarning, match="There is one base class"):
        sessions(X, y, [[0], [1]]).predict(X)


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_alpha_outside_its_range_is_refused(data, alpha):
    with pytest.raises(ValueError, match="alpha"):
        CalibratedPrototypeClassifier(alpha).fit(*data)
    with pytest.raises(ValueError, match="from 0 to 1"):
        calibrate_prototypes([[1.0]], [[1.0]], alpha=alpha)


def test_calibration_without_base_is_refused():
    with pytest.raises(ValueError, match="at least one base prototype"):
        calibrate_prototypes(np.ones((2, 3)), np.empty((0, 3)))


def test_blocks_are_one_base_session(data):
    X, y = data
    blocks = [(X[part], y[part]) for part in np.array_split(np.arange(200), 4)]
    clf = CalibratedPrototypeClassifier().fit_blocks(blocks)
    assert clf.session_of_class_.tolist() == [0] * 10
    whole = CalibratedPrototypeClassifier().fit(X, y)
    np.testing.assert_allclose(clf.prototypes_, whole.prototypes_, atol=1e-12)
