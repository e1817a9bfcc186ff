# SPDX-License-Identifier: BSD-3-Clause
"""FewShotIncrementalClassifier: its limits, its losses by hand, and what training does."""

import numpy as np
import pytest
import torch
from sklearn.base import clone

from skpool.continual import FewShotIncrementalClassifier
from skpool.continual._base_projector import (
    assigned,
    make_projector,
    mixed_classes,
    project,
    supervised_contrastive,
)
from skpool.prototypes import CalibratedPrototypeClassifier, NearestClassMeanClassifier, simplex_etf

QUICK = {"epochs": 8, "lr": 0.02}


def sessions(seed=0, d=12):
    """Base rows of five classes, and three shots of two more."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(7, d))
    y = np.concatenate([np.arange(100) % 5, [5, 5, 5, 6, 6, 6]])
    X = 2 + centres[y] + 0.6 * rng.normal(size=(106, d))
    queries = 2 + centres[np.arange(35) % 7] + 0.6 * rng.normal(size=(35, d))
    return X[:100], y[:100], X[100:], y[100:], queries


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_everything_off_is_the_nearest_class_mean():
    X, y, shots, labels, queries = sessions()
    clf = FewShotIncrementalClassifier(None).fit(X, y).partial_fit(shots, labels)
    desired = NearestClassMeanClassifier().fit(X, y).partial_fit(shots, labels)
    np.testing.assert_array_equal(clf.class_scores(queries), desired.class_scores(queries))
    np.testing.assert_array_equal(clf.predict_proba(queries), desired.predict_proba(queries))


@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_scores_are_cosines_with_means_of_projected_rows(projector):
    X, y, shots, labels, queries = sessions()
    clf = FewShotIncrementalClassifier(projector, **QUICK).fit(X, y).partial_fit(shots, labels)

    def g(rows):
        for i, (shift, matrix, offset) in enumerate(clf.layers_):
            rows = (np.maximum(rows, 0) if i else rows - shift) @ matrix + offset
        return rows

    both, both_y = np.concatenate([X, shots]), np.concatenate([y, labels])
    means = np.stack([g(both)[both_y == c].mean(axis=0) for c in range(7)])
    desired = unit(g(queries)) @ unit(means).T
    np.testing.assert_allclose(clf.class_scores(queries), desired, atol=1e-9)


def test_base_prototypes_stay_bit_by_bit():
    X, y, shots, labels, queries = sessions()
    clf = FewShotIncrementalClassifier(**QUICK).fit(X, y)
    before, scores = clf.classifier_.prototypes_, clf.class_scores(queries)
    clf.partial_fit(shots, labels)
    np.testing.assert_array_equal(clf.classifier_.prototypes_[:5], before)
    np.testing.assert_array_equal(clf.class_scores(queries)[:, :5], scores)


def test_calibration_learns_the_projected_rows():
    X, y, shots, labels, queries = sessions()
    calibration = CalibratedPrototypeClassifier(0.4)
    clf = FewShotIncrementalClassifier(calibration=calibration, **QUICK)
    clf.fit(X, y).partial_fit(shots, labels)
    g = [project(torch.tensor(rows), clf.layers_).numpy() for rows in (X, shots, queries)]
    desired = clone(calibration).fit(g[0], y).partial_fit(g[1], labels)
    np.testing.assert_allclose(clf.class_scores(queries), desired.class_scores(g[2]))
    np.testing.assert_allclose(clf.predict_proba(queries), desired.predict_proba(g[2]))


def test_training_brings_base_rows_to_their_targets():
    X, y, *_ = sessions()
    first, last = (
        FewShotIncrementalClassifier(epochs=epochs, lr=0.02).fit(X, y) for epochs in (0, 40)
    )

    def to_targets(clf):
        z = unit(project(torch.tensor(X), clf.layers_).numpy())
        return (z * clf.targets_[y]).sum(axis=1).mean()

    assert to_targets(last) > to_targets(first) + 0.3


def test_targets_are_a_simplex_with_the_base_classes_first():
    X, y, *_ = sessions()
    clf = FewShotIncrementalClassifier(n_reserved=9, **QUICK).fit(X, y)
    gram = clf.targets_ @ clf.targets_.T
    np.testing.assert_allclose(gram, np.where(np.eye(9), 1, -1 / 8), atol=1e-12)
    assert FewShotIncrementalClassifier(**QUICK).fit(X, y).targets_.shape == (13, 12)


def test_assignment_is_the_best_of_all_orders():
    from itertools import permutations

    rng = np.random.default_rng(0)
    targets, means = simplex_etf(5, 6, random_state=0), rng.normal(size=(3, 6))
    given = assigned(targets, means)
    best = max((unit(means) * targets[list(p)]).sum() for p in permutations(range(5), 3))
    np.testing.assert_allclose((unit(means) * given[:3]).sum(), best)
    np.testing.assert_allclose(np.sort(given, axis=0), np.sort(targets, axis=0))


def test_means_as_targets_are_where_classes_start():
    X, y, *_ = sessions()
    clf = FewShotIncrementalClassifier(targets="means", epochs=0).fit(X, y)
    means = np.stack([X[y == c].mean(axis=0) for c in range(5)]) - X.mean(axis=0)
    np.testing.assert_allclose(clf.targets_, unit(means), atol=1e-12)


def test_contrastive_loss_of_four_points_by_hand():
    z = unit(np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [-1.0, 0.5]]))
    y, t = [0, 0, 1, 0], 0.5
    losses = []
    for i in range(4):
        others = [a for a in range(4) if a != i]
        total = sum(np.exp(z[i] @ z[a] / t) for a in others)
        same = [a for a in others if y[a] == y[i]]
        terms = [-np.log(np.exp(z[i] @ z[p] / t) / total) for p in same]
        losses.append(np.mean(terms) if terms else 0.0)
    assert losses[2] == 0.0
    given = supervised_contrastive(torch.tensor(z), torch.tensor(y), t)
    np.testing.assert_allclose(given, losses)


def test_contrastive_loss_of_one_row_is_zero_with_a_finite_gradient():
    z = torch.ones(1, 2, requires_grad=True)
    supervised_contrastive(z, torch.tensor([0]), 0.1).sum().backward()
    assert torch.isfinite(z.grad).all()


def test_mixed_rows_lie_between_two_rows_of_different_classes():
    # Classes on the three axes, so that a mixture shows its shares and its pair.
    X, codes = np.eye(3)[np.arange(30) % 3], np.arange(30) % 3
    rng = np.random.RandomState(0)
    mixed = mixed_classes(X, codes, 3, alpha=0.5, rng=rng)
    np.testing.assert_allclose(mixed.rows.sum(axis=1), 1)
    assert np.bincount(mixed.numbers).tolist() == [10, 10, 10]
    pairs = [
        frozenset(np.flatnonzero(mixed.rows[mixed.numbers == k].any(axis=0))) for k in range(3)
    ]
    assert len(set(pairs)) == 3 and all(len(pair) == 2 for pair in pairs)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_projector_and_its_arrays_agree(kind):
    rng = np.random.default_rng(0)
    projector = make_projector(kind, rng.normal(size=6), 2.0, 4, torch.Generator().manual_seed(0))
    rows = torch.tensor(rng.normal(size=(9, 6)))
    given = project(rows, projector.as_arrays())
    np.testing.assert_allclose(given, projector(rows, None).detach(), atol=1e-12)


def test_linear_projection_starts_as_a_rotation_at_most():
    X, y, _, _, queries = sessions()
    clf = FewShotIncrementalClassifier(epochs=0).fit(X, y)
    desired = NearestClassMeanClassifier().fit(X - X.mean(axis=0), y)
    np.testing.assert_allclose(
        clf.class_scores(queries), desired.class_scores(queries - X.mean(axis=0)), atol=1e-9
    )


def test_pseudo_classes_take_targets_of_their_own():
    X, y, shots, labels, queries = sessions()
    clf = FewShotIncrementalClassifier(n_pseudo_classes=4, n_reserved=10, **QUICK).fit(X, y)
    assert clf.classes_.tolist() == [0, 1, 2, 3, 4]
    clf.partial_fit(shots, labels)
    assert (clf.predict(queries) == np.arange(35) % 7).mean() > 0.6
    with pytest.raises(ValueError, match="n_reserved=8 is less than the 9 classes"):
        clone(clf).set_params(n_reserved=8).fit(X, y)
    with pytest.raises(ValueError, match=r"n_pseudo_classes=11 .* make 10"):
        clone(clf).set_params(n_pseudo_classes=11).fit(X, y)


def test_copies_that_went_on_apart_can_be_merged():
    from copy import deepcopy

    X, y, shots, labels, queries = sessions()
    base = FewShotIncrementalClassifier(**QUICK).fit(X, y)
    one, other = deepcopy(base).forget_class(0), deepcopy(base).partial_fit(shots, labels)
    for label in range(1, 5):
        other.forget_class(label)
    merged = one.merge(other).class_scores(queries)
    desired = deepcopy(base).partial_fit(shots, labels).class_scores(queries)
    np.testing.assert_allclose(merged, desired, atol=1e-9)
    stranger = FewShotIncrementalClassifier(random_state=1, **QUICK).fit(X, y)
    with pytest.raises(ValueError, match="another projection"):
        one.merge(stranger)


def test_too_narrow_projection_is_refused():
    X, y, *_ = sessions()
    with pytest.raises(ValueError, match="n_components=3 is too narrow for 5 targets"):
        FewShotIncrementalClassifier(n_components=3).fit(X, y)
