# SPDX-License-Identifier: BSD-3-Clause
"""SubclassClustering: sizes, parents, centres, and clusters that are there to be found."""

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.metrics import adjusted_rand_score
from sklearn.preprocessing import normalize
from sklearn.utils.estimator_checks import parametrize_with_checks

from skpool.prototypes import SubclassClustering


@parametrize_with_checks([SubclassClustering(), SubclassClustering(3, metric="euclidean")])
def test_sklearn_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def tailed():
    """Classes of 90, 35, 12 and 7 rows."""
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat(["a", "b", "c", "d"], [90, 35, 12, 7]))
    return 1.0 + rng.standard_normal((144, 6)), y


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(("delta", "size"), [(10, 10), (3, 7)])
def test_tail_limits_clusters_to_the_smallest_class_or_delta(tailed, metric, delta, size):
    X, y = tailed
    cut = SubclassClustering(delta=delta, metric=metric, random_state=0).fit(X, y)
    assert cut.max_size_ == size
    assert np.bincount(cut.subclass_labels_).max() <= size
    names, clusters = np.unique(cut.parent_, return_counts=True)
    expected = {c: -(-n // size) for c, n in {"a": 90, "b": 35, "c": 12, "d": 7}.items()}
    assert dict(zip(names.tolist(), clusters.tolist(), strict=True)) == expected


@settings(deadline=None, max_examples=20)
@given(size=st.integers(1, 100), seed=st.integers(0, 100))
def test_no_cluster_exceeds_its_size_and_all_rows_are_assigned(tailed, size, seed):
    X, y = tailed
    cut = SubclassClustering(size, n_init=1, max_iter=5, random_state=seed).fit(X, y)
    counts = np.bincount(cut.subclass_labels_)
    assert len(counts) == len(cut.parent_) and counts.sum() == 144
    assert 1 <= counts.min() and counts.max() <= size
    assert (cut.parent_[cut.subclass_labels_] == y).all()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_centres_are_means_of_their_clusters(tailed, metric):
    X, y = tailed
    cut = SubclassClustering(20, metric=metric, random_state=0).fit(X, y)
    rows = normalize(X) if metric == "cosine" else X
    means = [rows[cut.subclass_labels_ == k].mean(axis=0) for k in range(len(cut.parent_))]
    expected = normalize(means) if metric == "cosine" else means
    np.testing.assert_allclose(cut.centers_, expected, atol=1e-12)


def test_blobs_of_a_class_are_found():
    rng = np.random.default_rng(0)
    blob = rng.permutation(np.repeat(np.arange(5), 20))
    X = np.vstack([10 * np.eye(5)[blob] + rng.standard_normal((100, 5)), rng.random((20, 5))])
    y = np.repeat([0, 1], [100, 20])
    cut = SubclassClustering(n_init=10, random_state=0).fit(X, y)
    assert cut.max_size_ == 20
    assert adjusted_rand_score(blob, cut.subclass_labels_[:100]) == 1.0


def test_class_no_larger_than_the_limit_stays_whole(tailed):
    X, y = tailed
    cut = SubclassClustering(1000).fit(X, y)
    assert cut.parent_.tolist() == ["a", "b", "c", "d"]
    assert (cut.parent_[cut.subclass_labels_] == y).all()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_predict_gives_the_nearest_centre(tailed, metric):
    X, y = tailed
    cut = SubclassClustering(8, metric=metric, random_state=0).fit(X, y)
    Q = np.random.default_rng(1).standard_normal((30, 6))
    expected = cdist(Q, cut.centers_, metric).argmin(axis=1)
    assert (cut.predict(Q) == expected).all()
    assert (cut.predict(torch.from_numpy(Q)) == expected).all()


def test_one_row_per_cluster_gives_every_row_its_own(tailed):
    X, y = tailed
    labels = SubclassClustering(1, random_state=0).fit_predict(X, y)
    assert sorted(labels) == list(range(144))


def test_same_seed_gives_the_same_clusters(tailed):
    a, b = (SubclassClustering(9, random_state=4).fit(*tailed) for _ in range(2))
    assert (a.subclass_labels_ == b.subclass_labels_).all()


def test_nan_is_refused_and_nothing_changes(tailed):
    X, y = tailed
    cut = SubclassClustering(9, random_state=0).fit(X, y)
    before = joblib.hash(vars(cut))
    bad = X.copy()
    bad[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN in row 3"):
        cut.fit(bad, y)
    assert joblib.hash(vars(cut)) == before
