# SPDX-License-Identifier: BSD-3-Clause
"""Cheap configured instances of every public estimator, for the suites over all of them."""

from importlib.util import find_spec

from nets import token_backbone
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags
from text_nets import letter_backbone, shared_text_model

from skpool.extraction import (
    FeatureExtractor,
    PatchDictionaryExtractor,
    RandomFeatureExtractor,
    TestTimeAugmentation,
    TextFeatureExtractor,
)
from skpool.layers import BackboneSelector, LayerAggregator, LayerSelector
from skpool.neighbors import WeightedKNNClassifier
from skpool.pipeline import IncrementalPipeline
from skpool.pooling import (
    GeMPooling,
    GroupGeMPooling,
    TokenPooling,
    ViewAggregator,
    ViewAveragingClassifier,
)
from skpool.preprocessing import L2Normalizer, PowerNormalizer, Whitening
from skpool.prototypes import NearestClassMeanClassifier

__all__ = ["INSTANCES", "expected_failures", "name_of", "takes_vectors"]


def _text_models() -> list[BaseEstimator]:
    bert, llama = shared_text_model("bert"), shared_text_model("llama")
    return [
        TextFeatureExtractor(bert),
        TextFeatureExtractor(llama, pooling=None, instruction="read: "),
        TextFeatureExtractor(bert, pooling="cls", echo=True, dtype="float16"),
    ]


INSTANCES: dict[type, list[BaseEstimator]] = {
    BackboneSelector: [BackboneSelector("rankme")],
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
    LayerAggregator: [
        LayerAggregator(normalize="l2"),
        LayerAggregator([-1, 0], layer_pool="concat", normalize="layernorm"),
        LayerAggregator(token_pool=GeMPooling(negative="shift"), layer_pool="max"),
    ],
    LayerSelector: [LayerSelector("rankme"), LayerSelector("rankme", rule="top_k", k=2)],
    NearestClassMeanClassifier: [
        NearestClassMeanClassifier(),
        NearestClassMeanClassifier("euclidean", normalize="l2", normalize_means=True),
        NearestClassMeanClassifier("mahalanobis", priors="empirical"),
    ],
    PatchDictionaryExtractor: [
        PatchDictionaryExtractor(n_atoms=12, patch=4),
        PatchDictionaryExtractor(n_atoms=5, patch=3, encoding="soft", pool=None, image_size=8),
    ],
    PowerNormalizer: [PowerNormalizer(), PowerNormalizer(l2=True, l1_first=True)],
    RandomFeatureExtractor: [
        RandomFeatureExtractor(width=8, depth=2, input_size=16, n_workers=0),
        RandomFeatureExtractor("vit", width=8, tokens="cls", calibrate=False, n_workers=0),
        RandomFeatureExtractor("mlp", width=8, init="kaiming", input_size=8, n_workers=0),
    ],
    TestTimeAugmentation: [
        TestTimeAugmentation(FeatureExtractor("glyph", tokens="cls", n_workers=0)),
        TestTimeAugmentation(
            make_pipeline(FeatureExtractor("glyph", layers=0), TokenPooling()), views="five_crop"
        ),
    ],
    TextFeatureExtractor: [
        TextFeatureExtractor(letter_backbone(), layers=[0, -1], chunk=16, output="torch"),
        *([] if find_spec("transformers") is None else _text_models()),
    ],
    TokenPooling: [TokenPooling(), TokenPooling(("mean", "max", "std"), normalize_tokens=True)],
    ViewAggregator: [
        ViewAggregator(),
        ViewAggregator("median"),
        ViewAggregator("gem", normalize_views=True),
    ],
    ViewAveragingClassifier: [
        ViewAveragingClassifier(LogisticRegression(), reduce="sum"),
        ViewAveragingClassifier(LogisticRegression(), response="predict_proba"),
        ViewAveragingClassifier(NearestClassMeanClassifier(), response="feature"),
    ],
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
    """Checks of scikit-learn's suite and ours that an instance is not meant to pass, and why."""
    if isinstance(estimator, IncrementalPipeline):
        # scikit-learn marks the same of its own Pipeline.
        reason = "the steps of a pipeline are parameters, and fitting fits them in place"
        return {"check_estimators_overwrite_params": reason}
    if isinstance(estimator, NearestClassMeanClassifier) and estimator.metric == "mahalanobis":
        reason = "OAS shrinks by the effective number of samples, which repetition raises"
        return {"check_sample_weight_equivalence_on_dense_data": reason}
    if isinstance(estimator, ViewAggregator):
        reason = "a NaN stands for a view that is missing, and the others serve"
        return dict.fromkeys(
            ("check_bad_token_names_its_sample", "check_refused_refit_changes_nothing"), reason
        )
    if isinstance(estimator, BackboneSelector):
        return {"check_list_equals_array": "a list holds blocks, not samples"}
    return {}


def name_of(estimator: BaseEstimator) -> str:
    """A short name of an instance, for the ids of tests."""
    return " ".join(repr(estimator).split())[:80]


def takes_vectors(estimator: BaseEstimator) -> bool:
    """Whether scikit-learn's own suite has data for it."""
    return get_tags(estimator).input_tags.two_d_array
