# SPDX-License-Identifier: BSD-3-Clause
"""FirstSessionAdapter: identities, what later sessions leave alone, and what training changes."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from skpool.continual import FirstSessionAdapter
from skpool.pipeline import IncrementalPipeline, make_incremental_pipeline
from skpool.preprocessing import L2Normalizer
from skpool.prototypes import NearestClassMeanClassifier

KINDS = ("residual_mlp", "scale_shift", "linear")


def made(n=120, d=6, n_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    return 2 * rng.normal(size=(n_classes, d))[y] + rng.normal(size=(n, d)) + 1, y


def unit(X):
    return X / np.linalg.norm(X, axis=-1, keepdims=True)


@pytest.mark.parametrize("kind", KINDS)
def test_without_epochs_it_is_the_nearest_class_mean_on_frozen_rows(kind):
    X, y = made()
    adapter = FirstSessionAdapter(kind, epochs=0)
    np.testing.assert_array_equal(adapter.fit(X, y).transform(X), np.hstack([X, X]))
    model = make_incremental_pipeline(adapter, NearestClassMeanClassifier()).fit(X, y)
    simple = NearestClassMeanClassifier().fit(X, y)
    np.testing.assert_allclose(model.decision_function(X), simple.decision_function(X), atol=1e-12)


@pytest.mark.parametrize("kind", [*KINDS, "lda", PCA(2)])
def test_later_sessions_leave_the_map_bit_identical(kind):
    X, y = made()
    first = y < 2
    adapter = FirstSessionAdapter(kind, epochs=2).partial_fit(X[first], y[first])
    before = adapter.transform(X)
    adapter.partial_fit(X[~first], y[~first])
    np.testing.assert_array_equal(adapter.transform(X), before)
    assert adapter.classes_.tolist() == [0, 1]


@pytest.mark.parametrize("refresh", ["frozen", "transport", "running"])
def test_pipeline_learns_the_adapter_from_its_first_session_alone(refresh):
    X, y = made()
    first = y < 2
    steps = [
        ("adapt", FirstSessionAdapter(epochs=3, lr=0.1)),
        ("ncm", NearestClassMeanClassifier()),
    ]
    model = IncrementalPipeline(steps, refresh=refresh)
    model.partial_fit(X[first], y[first]).partial_fit(X[~first], y[~first])
    adapter = FirstSessionAdapter(epochs=3, lr=0.1).fit(X[first], y[first])
    rows = adapter.transform(X)
    ncm = NearestClassMeanClassifier().fit(rows, y)
    np.testing.assert_allclose(model.decision_function(X), ncm.decision_function(rows), atol=1e-12)


def test_normalised_blocks_average_the_two_cosines():
    X, y = made()
    adapter = FirstSessionAdapter(lr=0.3, block_norm=True).fit(X, y)
    both, alone = adapter.transform(X), adapter.set_params(concat=False).transform(X)
    cosines = [unit(rows) @ unit(rows).T for rows in (both, X, alone)]
    np.testing.assert_allclose(cosines[0], (cosines[1] + cosines[2]) / 2, atol=1e-12)
    assert np.abs(cosines[1] - cosines[2]).max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss_and_weights_say_what_is_added(kind):
    X, y = made()
    adapter = FirstSessionAdapter(kind, lr=0.1, concat=False).fit(X, y)
    assert adapter.history_[-1, 0] < adapter.history_[0, 0]
    w = adapter.weights_
    added = {
        "residual_mlp": lambda: np.maximum(X @ w["down"].T, 0) @ w["up"].T,
        "scale_shift": lambda: w["scale"] * X + w["shift"],
        "linear": lambda: X @ w["weight"].T,
    }[kind]()
    assert np.abs(added).max() > 0.01
    np.testing.assert_allclose(adapter.transform(X), X + added, atol=1e-10)


@pytest.mark.parametrize("kind", [*KINDS, "lda"])
def test_longer_rows_give_as_much_longer_output(kind):
    X, y = made()
    one, other = (FirstSessionAdapter(kind, epochs=3, lr=0.1).fit(c * X, y) for c in (1, 64))
    np.testing.assert_allclose(other.transform(64 * X), 64 * one.transform(X), rtol=1e-8, atol=1e-8)


def test_lda_map_makes_classes_round():
    X, y = made(4000, 3)
    X = X * [1, 2, 0.7]
    Z = FirstSessionAdapter("lda", concat=False).fit(X, y).transform(X)
    within = sum(np.cov(Z[y == c].T, ddof=0) for c in range(4)) / 4
    np.testing.assert_allclose(within, within[0, 0] * np.eye(3), atol=0.02 * within[0, 0])
    lda = LinearDiscriminantAnalysis().fit(X, y)
    model = make_incremental_pipeline(
        FirstSessionAdapter("lda", concat=False), NearestClassMeanClassifier("euclidean")
    ).fit(X, y)
    assert (model.predict(X) == lda.predict(X)).mean() > 0.995


def test_transformer_is_cloned_and_fitted_to_the_first_session():
    X, y = made()
    pca = PCA(2)
    adapter = FirstSessionAdapter(pca).fit(X, y)
    assert not hasattr(pca, "components_")
    expected = np.hstack([X, PCA(2).fit_transform(X)])
    np.testing.assert_allclose(adapter.transform(X), expected)
    assert len(adapter.get_feature_names_out()) == 8


def test_rows_that_are_kept_back_end_training_early():
    X, y = made(60, 40)
    y = np.random.default_rng(1).permutation(y)
    plain, kept = (
        FirstSessionAdapter(lr=0.3, epochs=40, validation_fraction=f, concat=False).fit(X, y)
        for f in (0.0, 0.3)
    )
    away = [np.abs(model.transform(X) - X).max() for model in (plain, kept)]
    assert away[1] < away[0]
    assert np.isfinite(kept.history_).all()


def test_one_class_leaves_the_identity():
    X, _ = made()
    adapter = FirstSessionAdapter().fit(X, np.zeros(len(X)))
    np.testing.assert_array_equal(adapter.transform(X), np.hstack([X, X]))


def test_lda_of_rows_that_do_not_differ_is_refused():
    with pytest.raises(ValueError, match=r"lda.*1 sample"):
        FirstSessionAdapter("lda").fit([[1.0, 2.0]], [0])


def test_seed_decides_the_map():
    X, y = made()
    one, same, other = (
        FirstSessionAdapter(epochs=2, lr=0.1, random_state=s).fit(X, y).transform(X)
        for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-6


def test_torchs_own_generator_stays_as_it_was():
    X, y = made()
    before = torch.get_rng_state()
    FirstSessionAdapter(epochs=1).fit(X, y)
    assert torch.equal(torch.get_rng_state(), before)


def test_works_in_front_of_a_normalisation():
    X, y = made()
    model = make_incremental_pipeline(
        FirstSessionAdapter(epochs=1), L2Normalizer(), NearestClassMeanClassifier()
    )
    assert model.partial_fit(X[:60], y[:60]).partial_fit(X[60:], y[60:]).score(X, y) > 0.8
