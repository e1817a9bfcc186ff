# SPDX-License-Identifier: BSD-3-Clause
"""Prototypes in spaces that arrive one by one, against the formulas of EASE by loops."""

import numpy as np
import pytest
import torch

from skpool.continual import (
    FirstSessionAdapter,
    SubspaceEnsemblePrototypeClassifier,
    complete_prototypes,
)
from skpool.prototypes import NearestClassMeanClassifier
from skpool.utils.estimator_checks import check_estimator

# Widths of three blocks, and where they end.
WIDTHS, ENDS = (5, 3, 4), np.array([5, 8, 12])


def made(n=120, n_classes=6, d=12, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    return 2 * rng.normal(size=(n_classes, d))[y] + rng.normal(size=(n, d)), y


def in_stages(X, y, ends=ENDS, **options):
    """Two classes per stage, and a block with each."""
    model = SubspaceEnsemblePrototypeClassifier(**options)
    for stage, end in enumerate(ends):
        rows = y // 2 == stage
        model.partial_fit(X[rows, :end], y[rows])
    return model


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def by_loops(X, y, ends, temperature):
    """Prototypes of all classes in all blocks: means, or mixtures of later classes."""
    starts, n_blocks = [0, *ends[:-1]], len(ends)
    found = {}
    for c in range(2 * n_blocks):
        for b in range(c // 2 + 1):
            found[b, c] = X[y == c, starts[b] : ends[b]].mean(axis=0)
    for c in range(2 * n_blocks):
        own = c // 2
        for b in range(own + 1, n_blocks):
            later = range(2 * b, 2 * n_blocks)
            weights = [np.exp(cosine(found[own, c], found[own, j]) / temperature) for j in later]
            mixed = sum(w * found[b, j] for w, j in zip(weights, later, strict=True))
            found[b, c] = mixed / sum(weights)
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_prototypes_and_scores_are_those_of_the_formulas(temperature):
    X, y = made()
    model = in_stages(X, y, alpha=0.3, softmax_temperature=temperature)
    desired, found = by_loops(X, y, ENDS, temperature), model.prototypes_
    assert found.keys() == desired.keys()
    for key, vector in desired.items():
        np.testing.assert_allclose(found[key], vector, atol=1e-12)
    starts, scores = [0, *ENDS[:-1]], np.zeros((len(X), 6))
    for i, x in enumerate(X):
        for c in range(6):
            cosines = [cosine(x[starts[b] : ENDS[b]], desired[b, c]) for b in range(3)]
            others = [cos for b, cos in enumerate(cosines) if b != c // 2]
            scores[i, c] = cosines[c // 2] + 0.3 * sum(others) / 2
    np.testing.assert_allclose(model.class_scores(X), scores, atol=1e-12)
    assert model.own_blocks_.tolist() == [0, 0, 1, 1, 2, 2]
    expected = np.arange(3)[:, None] > np.repeat([0, 1, 2], 2)
    np.testing.assert_array_equal(model.completed_, expected)


def test_base_block_counts_by_beta_and_is_nobodys_own():
    X, y = made()
    model = SubspaceEnsemblePrototypeClassifier(0.2, beta=0.7, base_block=0)
    model.partial_fit([X[y < 2, :5], X[y < 2, 5:8]], y[y < 2])
    model.partial_fit([X[y >= 2, :5], X[y >= 2, 5:8], X[y >= 2, 8:]], y[y >= 2])
    assert model.own_blocks_.tolist() == [1, 1, 2, 2, 2, 2]
    p = model.prototypes_
    for c, own, other in ((0, 1, 2), (3, 2, 1)):
        cut = {0: slice(0, 5), 1: slice(5, 8), 2: slice(8, 12)}
        score = [
            0.7 * cosine(x[cut[0]], p[0, c])
            + cosine(x[cut[own]], p[own, c])
            + 0.2 * cosine(x[cut[other]], p[other, c])
            for x in X
        ]
        np.testing.assert_allclose(model.class_scores(X)[:, c], score, atol=1e-12)


def test_one_block_is_the_cosine_nearest_class_mean():
    X, y = made()
    model = SubspaceEnsemblePrototypeClassifier().fit(X, y)
    ncm = NearestClassMeanClassifier().fit(X, y)
    np.testing.assert_allclose(model.class_scores(X), ncm.class_scores(X), atol=1e-12)


@pytest.mark.parametrize("n_blocks", [2, 4])
def test_equal_blocks_with_full_weight_multiply_the_cosine(n_blocks):
    X, y = made()
    model = SubspaceEnsemblePrototypeClassifier(n_blocks - 1).fit([X] * n_blocks, y)
    ncm = NearestClassMeanClassifier().fit(X, y)
    desired = n_blocks * ncm.class_scores(X)
    np.testing.assert_allclose(model.class_scores([X] * n_blocks), desired, atol=1e-12)


def test_real_prototypes_stay_bit_identical():
    X, y = made()
    model = SubspaceEnsemblePrototypeClassifier().partial_fit(X[y < 2, :5], y[y < 2])
    before = model.prototypes_
    model.partial_fit(X[y >= 2], y[y >= 2])
    for key, vector in before.items():
        np.testing.assert_array_equal(model.prototypes_[key], vector)


def test_scale_of_a_block_does_not_matter():
    X, y = made()
    scaled = X * np.repeat([1.0, 512.0, 0.125], WIDTHS)
    one, other = in_stages(X, y), in_stages(scaled, y)
    np.testing.assert_allclose(other.class_scores(scaled), one.class_scores(X), atol=1e-12)


def test_completion_uses_classes_that_come_later():
    X, y = made()
    model = SubspaceEnsemblePrototypeClassifier().partial_fit(X[y < 2, :5], y[y < 2])
    model.partial_fit(X[y == 2], y[y == 2])
    alone = model.prototypes_[1, 0]
    # One class to mix is that class.
    np.testing.assert_allclose(alone, X[y == 2, 5:].mean(axis=0))
    model.partial_fit(X[y > 2], y[y > 2])
    assert np.abs(model.prototypes_[1, 0] - alone).max() > 0.1


@pytest.mark.parametrize("form", ["list", "tensors", "slices"])
def test_ways_to_give_blocks_agree(form):
    X, y = made()
    desired = in_stages(X, y)
    edges = [(0, 5), slice(5, 8), (8, 12)]
    model = SubspaceEnsemblePrototypeClassifier(block_slices=edges if form == "slices" else "infer")
    for stage, end in enumerate(ENDS):
        rows = y // 2 == stage
        blocks = [X[rows, :5], X[rows, 5:8], X[rows, 8:]][: stage + 1]
        if form == "tensors":
            blocks = [torch.from_numpy(block) for block in blocks]
        model.partial_fit(X[rows, :end] if form == "slices" else blocks, y[rows])
    np.testing.assert_array_equal(model.block_slices_, desired.block_slices_)
    np.testing.assert_allclose(model.class_scores(X), desired.class_scores(X), atol=1e-12)


def test_rows_are_forgotten_in_the_blocks_that_they_came_with():
    X, y = made()
    model, never = in_stages(X, y), in_stages(X[12:], y[12:])
    for stage, end in enumerate(ENDS):
        rows = np.flatnonzero(y[:12] // 2 == stage)
        model.forget(X[rows, :end], y[rows])
    np.testing.assert_allclose(model.class_scores(X), never.class_scores(X), atol=1e-12)


def test_own_block_follows_when_the_earliest_rows_are_forgotten():
    X, y = made()
    model = in_stages(X, y)
    rows = y == 0
    model.partial_fit(X[rows], y[rows])
    assert model.own_blocks_[0] == 0
    assert not model.completed_[:, 0].any()
    model.forget(X[rows, :5], y[rows])
    assert model.own_blocks_[0] == 2


def test_merged_stages_equal_one_learner():
    X, y = made()
    halves = np.arange(len(y)) % 12 < 6
    one, other = in_stages(X[halves], y[halves]), in_stages(X[~halves], y[~halves])
    merged = one.merge(other)
    np.testing.assert_allclose(merged.class_scores(X), in_stages(X, y).class_scores(X), atol=1e-12)


def test_forgotten_class_is_no_source_of_completion():
    X, y = made()
    model = in_stages(X, y).forget_class(4)
    never = in_stages(X[y != 4], y[y != 4])
    np.testing.assert_allclose(model.class_scores(X), never.class_scores(X), atol=1e-12)


def test_block_per_task_is_the_ensemble_of_what_the_tasks_trained():
    X, y = made()
    block = FirstSessionAdapter("lda", concat=False)
    model = SubspaceEnsemblePrototypeClassifier(per_task_block=block, base_block=0, beta=0.5)
    desired = SubspaceEnsemblePrototypeClassifier(base_block=0, beta=0.5)
    trained = []
    for stage in range(3):
        rows = y // 2 == stage
        model.partial_fit(X[rows], y[rows])
        trained.append(FirstSessionAdapter("lda", concat=False).fit(X[rows], y[rows]))
        desired.partial_fit([X[rows]] + [t.transform(X[rows]) for t in trained], y[rows])
    expected = desired.class_scores([X] + [t.transform(X) for t in trained])
    np.testing.assert_allclose(model.class_scores(X), expected, atol=1e-12)
    assert len(model.transformers_) == 3
    # Rows of known classes train no block.
    assert len(model.partial_fit(X[:12], y[:12]).transformers_) == 3
    assert not hasattr(model, "forget")


@pytest.mark.parametrize(
    ("X", "match"),
    [
        (lambda X: X[:, :5], "12"),
        (lambda X: [X[:, :5], X[:, 5:12]], "known ones have"),
        (lambda X: [X[:, :5], X[:-1, 5:]], "rows"),
    ],
)
def test_missing_and_other_blocks_are_refused(X, match):
    rows, y = made()
    model = in_stages(rows, y)
    before = model.class_scores(rows)
    with pytest.raises(ValueError, match=match):
        model.partial_fit(X(rows), y)
    np.testing.assert_array_equal(model.class_scores(rows), before)


@pytest.mark.parametrize("edges", [[], [(1, 3)], [(0, 3), (4, 6)], [(0, 3), (3, 3)]])
def test_edges_are_checked(edges):
    with pytest.raises(ValueError, match="block_slices"):
        SubspaceEnsemblePrototypeClassifier(block_slices=edges).fit(*made())


def test_class_known_by_raw_features_alone_is_refused():
    X, y = made()
    with pytest.raises(ValueError, match="base_block=0"):
        SubspaceEnsemblePrototypeClassifier(base_block=0).fit(X, y)
    with pytest.raises(ValueError, match="base_block=1"):
        block = FirstSessionAdapter("lda", concat=False)
        SubspaceEnsemblePrototypeClassifier(base_block=1, per_task_block=block).fit(X, y)


def test_with_blocks_given_every_check_of_the_package_passes():
    # "infer" takes a wider X for a new block, which some of the checks do not expect.
    model = SubspaceEnsemblePrototypeClassifier(0.3, block_slices=[(0, 6), (6, 12)])
    results = check_estimator(model)
    assert {result["status"] for result in results} == {"passed"}


def test_completion_is_a_softmax_average_of_new_prototypes():
    rng = np.random.default_rng(0)
    old, new_a, new_b = rng.normal(size=(3, 5)), rng.normal(size=(4, 5)), rng.normal(size=(4, 2))
    for temperature in (0.2, 1.0):
        desired = np.zeros((3, 2))
        for i in range(3):
            weights = np.array([np.exp(cosine(old[i], p) / temperature) for p in new_a])
            desired[i] = (weights[:, None] * new_b).sum(axis=0) / weights.sum()
        found = complete_prototypes(old, new_a, new_b, temperature)
        np.testing.assert_allclose(found, desired, atol=1e-12)
