# SPDX-License-Identifier: BSD-3-Clause
"""Cheap configured instances of every public estimator, for the suites over all of them."""

from nets import token_backbone
from sklearn.base import BaseEstimator
from sklearn.utils import get_tags

from skpool.extraction import FeatureExtractor
from skpool.neighbors import WeightedKNNClassifier
from skpool.pipeline import IncrementalPipeline
from skpool.pooling import GeMPooling, GroupGeMPooling, TokenPooling
from skpool.preprocessing import L2Normalizer, PowerNormalizer, Whitening
from skpool.prototypes import NearestClassMeanClassifier

__all__ = ["INSTANCES", "expected_failures", "name_of", "takes_vectors"]

INSTANCES: dict[type, list[BaseEstimator]] = {
    FeatureExtractor: [
        FeatureExtractor("glyph", n_workers=2),
        FeatureExtractor(token_backbone(), layers=1, tokens="patch", output="torch", n_workers=0),
        FeatureExtractor("glyph", layers=2, tokens="cls", dtype="float16"),
    ],
    GeMPooling: [GeMPooling(), GeMPooling(negative="shift"), GeMPooling(negative="signed")],
    # scikit-learn's suite passes two features, then three.
    GroupGeMPooling: [GroupGeMPooling(n_groups=1)],
    IncrementalPipeline: [
        IncrementalPipeline(
            [("normalize", L2Normalizer()), ("classify", NearestClassMeanClassifier())]
        ),
        IncrementalPipeline(
            [
                ("whiten", Whitening(shrinkage=0.1)),
                ("classify", NearestClassMeanClassifier("euclidean")),
            ]
        ),
    ],
    L2Normalizer: [L2Normalizer()],
    NearestClassMeanClassifier: [
        NearestClassMeanClassifier(),
        NearestClassMeanClassifier("euclidean", normalize="l2", normalize_means=True),
        NearestClassMeanClassifier("mahalanobis", priors="empirical"),
    ],
    PowerNormalizer: [PowerNormalizer(), PowerNormalizer(l2=True, l1_first=True)],
    TokenPooling: [TokenPooling(), TokenPooling(("mean", "max", "std"), normalize_tokens=True)],
    WeightedKNNClassifier: [
        WeightedKNNClassifier(5),
        WeightedKNNClassifier(10, weights="rank", metric="euclidean", backend="torch"),
    ],
    Whitening: [
        Whitening(),
        Whitening(method="zca", shrinkage="oas"),
        Whitening(method="pca_cor", shrinkage="ledoit_wolf", l2=True),
    ],
}


def expected_failures(estimator: BaseEstimator) -> dict[str, str]:
    """Checks of scikit-learn's suite that an instance is not meant to pass, and why."""
    if isinstance(estimator, IncrementalPipeline):
        # scikit-learn marks the same of its own Pipeline.
        reason = "the steps of a pipeline are parameters, and fitting fits them in place"
        return {"check_estimators_overwrite_params": reason}
    if isinstance(estimator, NearestClassMeanClassifier) and estimator.metric == "mahalanobis":
        reason = "OAS shrinks by the effective number of samples, which repetition raises"
        return {"check_sample_weight_equivalence_on_dense_data": reason}
    return {}


def name_of(estimator: BaseEstimator) -> str:
    """A short name of an instance, for the ids of tests."""
    return " ".join(repr(estimator).split())[:80]


def takes_vectors(estimator: BaseEstimator) -> bool:
    """Whether scikit-learn's own suite has data for it."""
    return get_tags(estimator).input_tags.two_d_array
