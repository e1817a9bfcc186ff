# SPDX-License-Identifier: BSD-3-Clause
"""SimplexClassifier against ridge on one-hot targets, scipy's Procrustes, and its own laws."""

from itertools import permutations

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.distance import cdist
from scipy.stats import ortho_group
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils.estimator_checks import parametrize_with_checks

from skpool.linear_model import RidgeHeadClassifier
from skpool.prototypes import SimplexClassifier, fixed_polytope, simplex_vertices

SOLVERS = ["ridge", "procrustes"]


@parametrize_with_checks(
    [SimplexClassifier(16), SimplexClassifier(4, solver="procrustes", assign="hungarian")]
)
def test_sklearn_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat(np.arange(4), [25, 40, 15, 30]))
    return 2.0 + 1.5 * rng.standard_normal((4, 9))[y] + rng.standard_normal((110, 9)), y


@pytest.fixture(scope="module")
def queries():
    return 2.0 + 1.5 * np.random.default_rng(1).standard_normal((200, 9))


@pytest.mark.parametrize("K", [4, 5, 12, 100])
@pytest.mark.parametrize("rule", ["product", "cosine", "distance"])
def test_ridge_onto_vertices_predicts_as_ridge_onto_one_hot(data, queries, K, rule):
    X, y = data
    Y = LabelBinarizer().fit_transform(y)
    expected = Ridge(alpha=3.0).fit(X, Y).predict(queries).argmax(axis=1)
    clf = SimplexClassifier(K, alpha=3.0, relative=False).fit(X, y)
    Z, vertices = clf.transform(queries), simplex_vertices(K)[:4]
    if rule == "product":
        found = (Z @ vertices.T).argmax(axis=1)
    else:
        metric = "cosine" if rule == "cosine" else "euclidean"
        found = cdist(Z, vertices, metric).argmin(axis=1)
    assert (found == expected).all()
    assert (clf.predict(queries) == expected).all()


@pytest.mark.parametrize("K", [5, 12, 100])
def test_ridge_without_intercept_predicts_as_on_centred_one_hot_targets(data, queries, K):
    X, y = data
    Y = LabelBinarizer().fit_transform(y)
    shifted = Ridge(alpha=3.0, fit_intercept=False).fit(X - X.mean(axis=0), Y - Y.mean(axis=0))
    expected = shifted.predict(queries - X.mean(axis=0)).argmax(axis=1)
    clf = SimplexClassifier(K, alpha=3.0, relative=False).fit(X, y)
    Z = (queries - X.mean(axis=0)) @ clf.coef_.T
    assert ((Z @ simplex_vertices(K)[:4].T).argmax(axis=1) == expected).all()


def test_ridge_predicts_as_the_ridge_head_with_its_chosen_penalty():
    X, y = load_digits(return_X_y=True)
    head = RidgeHeadClassifier().fit(X[:900], y[:900])
    clf = SimplexClassifier(64).fit(X[:900], y[:900])
    assert clf.alpha_ == head.alpha_
    assert (clf.predict(X[900:]) == head.predict(X[900:])).all()


def test_embedding_equals_ridge_of_scikit_learn_on_the_vertices(data, queries):
    X, y = data
    S = simplex_vertices(7)
    expected = Ridge(alpha=0.5).fit(X, S[y])
    clf = SimplexClassifier(7, alpha=0.5, relative=False).fit(X, y)
    np.testing.assert_allclose(clf.transform(queries), expected.predict(queries), atol=1e-9)
    np.testing.assert_allclose(clf.coef_, expected.coef_, atol=1e-9)
    np.testing.assert_allclose(clf.intercept_, expected.intercept_, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_scores_are_products_of_embeddings_and_vertices(data, queries, solver):
    X, y = data
    clf = SimplexClassifier(6, solver=solver).fit(X, y)
    expected = clf.transform(queries) @ simplex_vertices(6)[:4].T
    np.testing.assert_allclose(clf.class_scores(queries), expected, atol=1e-9)


def centred_means(X, y):
    means = np.stack([X[y == c].mean(axis=0) for c in np.unique(y)])
    return means - means.mean(axis=0)


def test_procrustes_equals_scipy_where_the_shapes_allow_it(queries):
    rng = np.random.default_rng(3)
    y = np.arange(40) % 10
    X = rng.standard_normal((10, 9))[y] + 0.1 * rng.standard_normal((40, 9))
    means = centred_means(X, y)
    R, scale = orthogonal_procrustes(means, simplex_vertices(10))
    clf = SimplexClassifier(10, solver="procrustes").fit(X, y)
    np.testing.assert_allclose(clf.coef_.T, R, atol=1e-8)
    assert (means @ clf.coef_.T * simplex_vertices(10)).sum() == pytest.approx(scale)


@pytest.mark.parametrize("K", [4, 6, 30])
def test_procrustes_is_not_beaten_by_random_rotations(data, K):
    X, y = data
    means, S = centred_means(X, y), simplex_vertices(K)[:4]
    clf = SimplexClassifier(K, solver="procrustes").fit(X, y)
    best = (means @ clf.coef_.T * S).sum()
    assert np.linalg.svd(clf.coef_, compute_uv=False).max() < 1 + 1e-12
    d, m, rng = 9, K - 1, np.random.default_rng(0)
    for seed in range(200):
        R = ortho_group.rvs(max(d, m), random_state=seed)[:d, :m]
        assert (means @ R * S).sum() <= best + 1e-9
    # Nor by maps next to it.
    for _ in range(200):
        U, _, V = np.linalg.svd(clf.coef_.T + 0.05 * rng.standard_normal((d, m)), False)
        assert (means @ (U @ V) * S).sum() <= best + 1e-9


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("targets", ["simplex", "etf"])
def test_new_classes_leave_old_vertices_bit_identical(data, solver, targets):
    X, y = data
    clf = SimplexClassifier(10, solver=solver, targets=targets)
    clf.partial_fit(X[y < 2], y[y < 2])
    old = clf.targets_[clf.vertex_of_class_].copy()
    for label in (3, 2):
        clf.partial_fit(X[y == label], y[y == label])
    assert clf.vertex_of_class_.tolist() == [0, 1, 3, 2]
    assert (clf.targets_[clf.vertex_of_class_[:2]] == old).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_embeddings_of_rotated_copies_compare_across_models(data, solver):
    X, y = data
    R = ortho_group.rvs(9, random_state=4)
    first = SimplexClassifier(32, solver=solver).fit(X, y)
    second = SimplexClassifier(32, solver=solver).fit(X @ R, y)
    gallery, probes = first.transform(X[:60]), second.transform(X[60:] @ R)
    across = KNeighborsClassifier(1).fit(gallery, y[:60]).predict(probes)
    own = KNeighborsClassifier(1).fit(gallery, y[:60]).predict(first.transform(X[60:]))
    assert (across == own).all()
    np.testing.assert_allclose(probes, first.transform(X[60:]), atol=1e-9)


@settings(deadline=None, max_examples=25)
@given(data_=st.data(), solver=st.sampled_from(SOLVERS))
def test_scores_of_any_order_and_partition_equal_fit(data, data_, solver):
    X, y = data
    order = np.array(data_.draw(st.permutations(range(110))))
    cuts = sorted(data_.draw(st.sets(st.integers(1, 109), max_size=8)))
    options = {"solver": solver, "alpha": 0.1}
    parts = SimplexClassifier(8, **options)
    for rows in np.split(order, cuts):
        parts.partial_fit(X[rows], y[rows])
    whole = SimplexClassifier(8, **options).fit(X, y)
    np.testing.assert_allclose(parts.class_scores(X), whole.class_scores(X), atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_forget_equals_refit(data, solver):
    X, y = data
    gone = np.arange(0, 110, 3)
    kept = np.setdiff1d(np.arange(110), gone)
    clf = SimplexClassifier(8, solver=solver, alpha=0.1).fit(X, y).forget(X[gone], y[gone])
    refit = SimplexClassifier(8, solver=solver, alpha=0.1).fit(X[kept], y[kept])
    np.testing.assert_allclose(clf.transform(X), refit.transform(X), atol=1e-9)
    assert clf.certify(X[kept], y[kept]) < 1e-12


def test_forgotten_class_sets_its_vertex_free(data):
    X, y = data
    clf = SimplexClassifier(4, solver="procrustes").fit(X, y).forget_class(1)
    assert clf.vertex_of_class_.tolist() == [0, 2, 3]
    clf.partial_fit(X[y == 1], [9] * 40)
    assert clf.vertex_of_class_.tolist() == [0, 2, 3, 1]


@pytest.mark.parametrize("solver", SOLVERS)
def test_merge_keeps_own_vertices_and_places_new_labels(data, queries, solver):
    X, y = data
    a = SimplexClassifier(6, solver=solver, alpha=0.1).fit(X[y > 1], y[y > 1])
    b = SimplexClassifier(6, solver=solver, alpha=0.1).fit(X[y < 3][::2], y[y < 3][::2])
    both = np.concatenate([X[y > 1], X[y < 3][::2]]), np.concatenate([y[y > 1], y[y < 3][::2]])
    a.merge(b)
    assert a.vertex_of_class_.tolist() == [2, 3, 0, 1]
    whole = SimplexClassifier(6, solver=solver, alpha=0.1).fit(*both)
    np.testing.assert_allclose(a.class_scores(queries), whole.class_scores(queries), atol=1e-9)


def test_merge_onto_other_targets_is_refused(data):
    a, b = (SimplexClassifier(K).fit(*data) for K in (5, 6))
    before = joblib.hash(vars(a))
    with pytest.raises(ValueError, match="merge classifiers with equal targets"):
        a.merge(b)
    assert joblib.hash(vars(a)) == before


def test_fit_moments_places_the_classes_anew(data):
    X, y = data
    clf = SimplexClassifier(5).partial_fit(X[y == 3], y[y == 3])
    moments = RidgeHeadClassifier().fit(X, y).moments_
    assert clf.fit_moments(moments).vertex_of_class_.tolist() == [0, 1, 2, 3]


def test_more_classes_than_vertices_are_refused_and_nothing_changes(data):
    X, y = data
    clf = SimplexClassifier(3).partial_fit(X[y < 3], y[y < 3])
    before = joblib.hash(vars(clf))
    with pytest.raises(ValueError, match="There are 4 classes and 3 vertices"):
        clf.partial_fit(X, y)
    assert joblib.hash(vars(clf)) == before


@pytest.mark.parametrize("kind", ["orthoplex", "cube"])
def test_targets_may_be_given(data, queries, kind):
    X, y = data
    S = fixed_polytope(kind, 8)
    clf = SimplexClassifier(targets=S, alpha=0.5, relative=False).fit(X, y)
    expected = Ridge(alpha=0.5).fit(X, S[y]).predict(queries)
    np.testing.assert_allclose(clf.transform(queries), expected, atol=1e-9)


def test_targets_that_are_not_unit_rows_are_refused(data):
    with pytest.raises(ValueError, match="give unit rows"):
        SimplexClassifier(targets=2 * np.eye(4)).fit(*data)


def test_hungarian_is_the_best_assignment_of_all():
    # Targets that are not alike, so that it matters which class has which.
    rng = np.random.default_rng(0)
    angles = 2 * np.pi * np.arange(6) / 6
    S = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    y = np.arange(30) % 4
    X = 2 * rng.standard_normal((4, 5))[y] + 0.1 * rng.standard_normal((30, 5))
    means = centred_means(X, y)
    U, _, V = np.linalg.svd(means.T @ S[:4], full_matrices=False)
    totals = {p: (means @ U @ V * S[list(p)]).sum() for p in permutations(range(6), 4)}
    clf = SimplexClassifier(targets=S, solver="procrustes", assign="hungarian").fit(X, y)
    assert tuple(clf.vertex_of_class_.tolist()) == max(totals, key=totals.get)
    assert clf.vertex_of_class_.tolist() != [0, 1, 2, 3]


def test_announced_class_has_no_vertex(data):
    clf = SimplexClassifier(4).partial_fit(*data, classes=[-1])
    assert clf.vertex_of_class_.tolist() == [-1, 0, 1, 2, 3]


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_class_is_predicted(solver):
    clf = SimplexClassifier(3, solver=solver).fit([[1.0, 2.0], [3.0, 4.0]], ["a", "a"])
    assert clf.predict([[9.0, 9.0]]).tolist() == ["a"]


def test_far_from_zero_in_float32_embeddings_keep_their_digits(data):
    X, y = data
    far = (1000 + X).astype(np.float32)
    near = far.astype(np.float64) - 1000
    a = SimplexClassifier(8, alpha=0.1).fit(far, y).transform(far)
    b = SimplexClassifier(8, alpha=0.1).fit(near, y).transform(near)
    assert a.dtype == np.float32
    np.testing.assert_allclose(a, b, atol=1e-3)
