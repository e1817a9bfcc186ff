# SPDX-License-Identifier: BSD-3-Clause
"""Rectified prototypes against the steps of the paper, row by row."""

import numpy as np
import pytest
from few_shot_episodes import draw_episode, labelled
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from skpool.few_shot import PrototypeRectification
from skpool.prototypes import NearestClassMeanClassifier


def cosine_similarity(X, Y):
    return np.array([[x @ y / np.sqrt((x @ x) * (y @ y)) for y in Y] for x in X])


def rectified(Xs, ys, Xq, *, scale, shift, n_iter):
    """Prototypes and probabilities, row by row."""
    moved = Xq + (Xs.mean(axis=0) - Xq.mean(axis=0)) if shift else Xq
    means = np.array([Xs[ys == k].mean(axis=0) for k in range(ys.max() + 1)])
    for _ in range(n_iter):
        sums, totals = np.zeros_like(means), np.zeros(len(means))
        for x, own in [*zip(Xs, ys, strict=True), *((x, None) for x in moved)]:
            cosines = cosine_similarity([x], means)[0]
            k = cosines.argmax() if own is None else own
            weight = softmax(scale * cosines)[k]
            sums[k] += weight * x
            totals[k] += weight
        means = sums / totals[:, None]
    return means, softmax(scale * cosine_similarity(moved, means), axis=1)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(0, 30),
    shift=st.booleans(),
    n_iter=st.integers(0, 3),
)
def test_equals_the_steps_of_the_paper(seed, scale, shift, n_iter):
    Xs, ys, Xq, _ = draw_episode(seed, n_query=8)
    X, y = labelled((Xs, ys, Xq, None))
    model = PrototypeRectification(scale, shift=shift, n_iter=n_iter).fit(X, y)
    means, proba = rectified(Xs, ys, Xq, scale=scale, shift=shift, n_iter=n_iter)
    np.testing.assert_allclose(model.prototypes_, means, atol=1e-9)
    np.testing.assert_allclose(model.label_distributions_[y == -1], proba, atol=1e-8)


def test_scale_0_is_the_plain_mean_of_the_rows_of_a_class():
    Xs, ys, Xq, _ = draw_episode(1)
    X, y = labelled((Xs, ys, Xq, None))
    model = PrototypeRectification(0.0, shift=False).fit(X, y)
    given_to = cosine_similarity(Xq, [Xs[ys == k].mean(axis=0) for k in range(3)]).argmax(axis=1)
    for k, prototype in enumerate(model.prototypes_):
        rows = np.vstack([Xs[ys == k], Xq[given_to == k]])
        np.testing.assert_allclose(prototype, rows.mean(axis=0), atol=1e-12)


def test_no_steps_and_no_shift_is_the_nearest_class_mean():
    Xs, ys, Xq, _ = draw_episode(2)
    model = PrototypeRectification(shift=False, n_iter=0).fit(Xs, ys)
    expected = NearestClassMeanClassifier("cosine").fit(Xs, ys).predict(Xq)
    np.testing.assert_array_equal(model.predict_transductive(Xq), expected)
    np.testing.assert_array_equal(model.predict(Xq), expected)


@pytest.mark.parametrize("unit", [1e-3, 1e4])
def test_units_of_the_features_do_not_matter(unit):
    X, y = labelled(draw_episode(3))
    plain, scaled = (PrototypeRectification().fit(rows, y) for rows in (X, unit * X))
    expected = plain.label_distributions_
    np.testing.assert_allclose(scaled.label_distributions_, expected, atol=1e-10)


def test_shift_removes_an_offset_of_all_queries():
    Xs, ys, Xq, _ = draw_episode(4)
    model = PrototypeRectification().fit(Xs, ys)
    expected = model.predict_proba_transductive(Xq)
    found = model.predict_proba_transductive(Xq + np.arange(5.0))
    np.testing.assert_allclose(found, expected, atol=1e-10)
