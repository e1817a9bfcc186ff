# SPDX-License-Identifier: BSD-3-Clause
"""Learning in parts on many workers is learning at once, to rounding."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from nets import counting_backbone
from nets_on_workers import make_rows, slow_rows
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.covariance import empirical_covariance
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline

from skpool.distributed import extract, fit
from skpool.exceptions import UnreadableInputError
from skpool.extraction import FeatureExtractor
from skpool.neighbors import WeightedKNNClassifier
from skpool.pipeline import make_incremental_pipeline
from skpool.pooling import GeMPooling
from skpool.preprocessing import L2Normalizer, Whitening
from skpool.prototypes import NearestClassMeanClassifier
from skpool.statistics import ClassMoments, RunningMoments
from skpool.stores import FeatureStore

# Not the bare name, which is also that of this directory.
pytest.importorskip("distributed.client", reason="dask.distributed is not installed")
dask = pytest.importorskip("dask", reason="dask is not installed")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 5)) @ RNG.normal(size=(5, 5)) + 10
# Classes that begin and end: no partition has all of them.
Y = np.sort(RNG.integers(0, 6, size=200))
W = RNG.integers(0, 4, size=200) / 2
CUTS = [0, 1, 1, 40, 95, 96, 200]
SLICES = [slice(a, b) for a, b in pairwise(CUTS)]
INCREMENTAL = make_incremental_pipeline(L2Normalizer(), NearestClassMeanClassifier())
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def parts(values):
    return [values[part] for part in SLICES]


def test_class_moments_of_numpy(client):
    moments = fit(ClassMoments("per_class"), parts(X), parts(Y), client=client)
    np.testing.assert_array_equal(moments.classes_, np.unique(Y))
    for k, label in enumerate(moments.classes_):
        rows = X[Y == label]
        np.testing.assert_allclose(moments.means_[k], rows.mean(axis=0), **EXACT)
        scatter = len(rows) * empirical_covariance(rows)
        np.testing.assert_allclose(moments.scatter_[k], scatter, **EXACT)


def test_running_moments_with_weights_of_numpy(client):
    moments = fit(RunningMoments(), parts(X), sample_weight=parts(W), client=client)
    assert moments.n_samples == W.sum()
    np.testing.assert_allclose(moments.mean_, np.average(X, axis=0, weights=W), **EXACT)
    scatter = np.cov(X.T, aweights=W, ddof=0) * W.sum()
    np.testing.assert_allclose(moments.scatter_, scatter, **EXACT)


def test_whitening_is_that_of_one_fit(client):
    whitening = fit(Whitening(eps=0.0), parts(X), client=client)
    np.testing.assert_allclose(whitening.covariance_, np.cov(X.T), **EXACT)
    np.testing.assert_allclose(np.cov(whitening.transform(X).T), np.eye(5), atol=1e-10)
    alone = Whitening(eps=0.0).fit(X)
    np.testing.assert_allclose(whitening.mean_, alone.mean_, **EXACT)
    np.testing.assert_allclose(whitening.transform(X), alone.transform(X), **EXACT)


def test_nearest_class_mean_is_that_of_scikit_learn(client):
    estimator = NearestClassMeanClassifier("euclidean")
    fitted = fit(estimator, parts(X), parts(Y), client=client)
    expected = NearestCentroid().fit(X, Y)
    np.testing.assert_allclose(fitted.prototypes_, expected.centroids_, **EXACT)
    np.testing.assert_array_equal(fitted.predict(X), expected.predict(X))
    assert not hasattr(estimator, "classes_")


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "mahalanobis"])
def test_scores_with_weights_are_those_of_one_fit(metric, client):
    estimator = NearestClassMeanClassifier(metric, priors="empirical")
    fitted = fit(estimator, parts(X), parts(Y), sample_weight=parts(W), client=client)
    alone = clone(estimator).fit(X, Y, sample_weight=W)
    np.testing.assert_allclose(fitted.class_scores(X), alone.class_scores(X), **EXACT)
    np.testing.assert_array_equal(fitted.counts_, alone.counts_)


def test_array_of_priors_needs_the_classes_announced(client):
    priors = np.arange(1, 7) / 21
    estimator = NearestClassMeanClassifier("euclidean", priors=priors)
    with pytest.raises(ValueError, match="one prior per class"):
        fit(estimator, parts(X), parts(Y), client=client)
    fitted = fit(estimator, parts(X), parts(Y), classes=range(6), client=client)
    alone = clone(estimator).fit(X, Y)
    np.testing.assert_allclose(fitted.class_scores(X), alone.class_scores(X), **EXACT)


def test_neighbours_are_those_of_one_fit(client):
    fitted = fit(WeightedKNNClassifier(3), parts(X), parts(Y), client=client)
    nearest = cdist(X[:20] + 0.1, X).argmin(axis=1)
    one = fit(WeightedKNNClassifier(1, metric="euclidean"), parts(X), parts(Y), client=client)
    np.testing.assert_array_equal(one.predict(X[:20] + 0.1), Y[nearest])
    alone = WeightedKNNClassifier(3).fit(X, Y)
    np.testing.assert_allclose(fitted.predict_proba(X), alone.predict_proba(X), **EXACT)


def test_result_depends_on_the_partitions_alone(client):
    lazy = [client.submit(slow_rows, part, seed, pure=False) for seed, part in enumerate(parts(X))]
    first, second = (fit(RunningMoments(), p, client=client) for p in (lazy, parts(X)))
    np.testing.assert_array_equal(first.scatter_, second.scatter_)


@pytest.mark.parametrize("n_parts", [1, 2, 8, 9, 65])
def test_any_number_of_partitions_gives_one_result(n_parts, client):
    moments = fit(RunningMoments(), np.array_split(X, n_parts), client=client)
    np.testing.assert_allclose(moments.covariance(ddof=1), np.cov(X.T), **EXACT)


def test_partition_of_weight_zero_counts_as_empty(client):
    weights = np.ones(200)
    weights[SLICES[2]] = 0
    ncm, kept = NearestClassMeanClassifier(), weights > 0
    fitted = fit(ncm, parts(X), parts(Y), sample_weight=parts(weights), client=client)
    alone = clone(ncm).fit(X[kept], Y[kept])
    np.testing.assert_array_equal(fitted.classes_, alone.classes_)
    np.testing.assert_allclose(fitted.prototypes_, alone.prototypes_, **EXACT)


# Where partitions come from.


def test_dask_arrays_cut_unalike(client):
    da = pytest.importorskip("dask.array", reason="dask.array is not installed")
    rows = da.from_array(X, chunks=(70, 3))
    labels = da.from_array(Y, chunks=50)
    fitted = fit(ClassMoments("shared"), rows, labels, client=client)
    alone = ClassMoments("shared").update(X, Y)
    np.testing.assert_allclose(fitted.means_, alone.means_, **EXACT)
    np.testing.assert_allclose(fitted.scatter_, alone.scatter_, **EXACT)


def test_delayed_partitions(client):
    lazy = [dask.delayed(make_rows)(n) for n in (3, 0, 20)]
    rows = np.concatenate([make_rows(n) for n in (3, 0, 20)])
    moments = fit(RunningMoments(), lazy, client=client)
    np.testing.assert_allclose(moments.mean_, rows.mean(axis=0), **EXACT)


def test_files_of_partitions(client, tmp_path):
    names = []
    for i, part in enumerate(SLICES):
        names.append(tmp_path / f"{i}.npz")
        np.savez(names[-1], X=X[part], y=Y[part], sample_weight=W[part])
        np.save(tmp_path / f"{i}.npy", X[part])
    alone = NearestClassMeanClassifier().fit(X, Y, sample_weight=W)
    fitted = fit(NearestClassMeanClassifier(), names, names, sample_weight=names, client=client)
    np.testing.assert_allclose(fitted.prototypes_, alone.prototypes_, **EXACT)
    rows = [name.with_suffix(".npy") for name in names]
    np.testing.assert_allclose(fit(RunningMoments(), rows, client=client).mean_, X.mean(0), **EXACT)


def test_file_of_objects_is_never_unpickled(client, tmp_path):
    objects = np.array([print, {}], dtype=object)
    np.save(tmp_path / "x.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "x.npz", X=objects)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(ValueError, match=r"Python objects|allow_pickle"):
            fit(RunningMoments(), [tmp_path / name], client=client)


# A pipeline, from files.


@pytest.fixture
def pipeline(tmp_path):
    extractor = FeatureExtractor(counting_backbone(tmp_path / "count"))
    return make_pipeline(
        extractor, GeMPooling(), L2Normalizer(), NearestClassMeanClassifier("euclidean")
    )


def test_pipeline_learns_from_partitions_of_files(client, files, pipeline, tmp_path):
    y = np.arange(60) // 7
    cut = [files[:11], files[11:50], files[50:]]
    fitted = fit(pipeline, cut, [y[:11], y[11:50], y[50:]], client=client)
    assert (tmp_path / "count").stat().st_size == 60
    alone = clone(pipeline).fit(files, y)
    np.testing.assert_allclose(fitted[-1].prototypes_, alone[-1].prototypes_, rtol=1e-6)
    np.testing.assert_array_equal(fitted.predict(files), alone.predict(files))


def test_unreadable_files_have_their_positions_in_all_partitions(client, files, pipeline):
    for i in (3, 41, 59):
        Path(files[i]).write_bytes(b"")
    y = np.arange(60) // 7
    cut = [files[:11], files[11:50], files[50:]]
    with pytest.raises(UnreadableInputError) as caught:
        fit(pipeline, cut, [y[:11], y[11:50], y[50:]], client=client)
    assert [(i, name) for i, name, _ in caught.value.failures] == [
        (i, files[i]) for i in (3, 41, 59)
    ]


def test_features_then_moments(client, files, pipeline, tmp_path):
    pipeline.set_params(featureextractor__store=tmp_path / "store")
    extract(pipeline, files, client=client)
    y = np.arange(60) // 7
    pipeline.fit(files, y)
    assert (tmp_path / "count").stat().st_size == 60


# What is refused.


@pytest.mark.parametrize(
    ("estimator", "arguments", "error", "match"),
    [
        (LogisticRegression(), (parts(X), parts(Y)), TypeError, "`merge`"),
        (Whitening(solver="svd"), (parts(X),), TypeError, "all rows at once"),
        (INCREMENTAL, (parts(X), parts(Y)), TypeError, "`merge`"),
        (FeatureStore, (parts(X),), TypeError, "`merge`"),
        (make_pipeline(*2 * [Whitening()]), (parts(X),), ValueError, "'whitening-1' .*learns"),
        (RunningMoments(), (X,), TypeError, "list of partitions"),
        (RunningMoments(), ([],), ValueError, "no partition"),
        (RunningMoments(), ([X[:0]],), ValueError, "All partitions of X are empty"),
        (RunningMoments(), (["rows.csv"],), ValueError, "rows.csv"),
        (ClassMoments(), (parts(X), parts(Y)[1:]), ValueError, "y has 5 partitions and X has 6"),
    ],
)
def test_what_cannot_be_learned_in_parts_is_refused(estimator, arguments, error, match, client):
    with pytest.raises(error, match=match):
        fit(estimator, *arguments, client=client)


def test_weights_that_an_estimator_does_not_take_are_refused(client):
    with pytest.raises(ValueError, match="Whitening does not take"):
        fit(Whitening(), parts(X), sample_weight=parts(W), client=client)


def test_estimator_that_was_fitted_starts_anew_and_stays(client):
    fitted = Whitening().fit(X[:50] + 5)
    mean = fitted.mean_.copy()
    again = fit(fitted, parts(X), client=client)
    np.testing.assert_allclose(again.mean_, X.mean(axis=0), **EXACT)
    np.testing.assert_array_equal(fitted.mean_, mean)
