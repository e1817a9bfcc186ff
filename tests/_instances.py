# SPDX-License-Identifier: BSD-3-Clause
"""Cheap configured instances of every public estimator, for the suites over all of them."""

from importlib.util import find_spec

from nets import token_backbone
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from text_nets import letter_backbone, shared_text_model

from skpool.continual import (
    AlignedClassifier,
    ExemplarMemory,
    FewShotIncrementalClassifier,
    FirstSessionAdapter,
    GaussianReplay,
    HerdingSelector,
    NearestMeanOfExemplarsClassifier,
    PerGroupClassifier,
    ReplayBuffer,
    ReplayClassifier,
    SubspaceEnsemblePrototypeClassifier,
)
from skpool.discriminant import GaussianClassifier, LinearDiscriminantClassifier
from skpool.extraction import (
    FeatureExtractor,
    PatchDictionaryExtractor,
    RandomFeatureExtractor,
    TestTimeAugmentation,
    TextFeatureExtractor,
)
from skpool.few_shot import (
    BaseCovarianceClassifier,
    CacheAdapterClassifier,
    EpisodicLinear,
    InformationMaximizationClassifier,
    OptimalTransportClassifier,
    PrototypeRectification,
    TransductivePrototypeClassifier,
)
from skpool.layers import BackboneSelector, LayerAggregator, LayerSelector
from skpool.linear_model import (
    BlockWeightedRidgeClassifier,
    KernelPredictionErrorClassifier,
    PredictionErrorClassifier,
    PredictionErrorNetworkClassifier,
    RandomFeatureRidgeClassifier,
    RidgeHeadClassifier,
    RidgeHeadRegressor,
)
from skpool.neighbors import (
    DiscreteKeyValueClassifier,
    KeyQuantizer,
    KNNMixtureClassifier,
    PerClassKNNClassifier,
    VectorQuantizer,
    WeightedKNNClassifier,
)
from skpool.pipeline import FitOnce, IncrementalPipeline
from skpool.pooling import (
    AttentionPooling,
    AttentionPoolingClassifier,
    BagOfFeaturesPooling,
    BilinearPooling,
    CompactBilinearPooling,
    CovariancePooling,
    CrossCovariancePooling,
    FisherVectorPooling,
    GeMPooling,
    GroupGeMPooling,
    LogSumExpPooling,
    MomentPooling,
    Pooling,
    PositionalDebias,
    PositionalMeanRemoval,
    RegionalGeM,
    RMACPooling,
    ScaleGeM,
    SelectedTokenPooling,
    SpatialPyramidPooling,
    TemporalPyramidPooling,
    TokenPooling,
    TokenSelector,
    ViewAggregator,
    ViewAveragingClassifier,
    VLADPooling,
)
from skpool.preprocessing import (
    AllButTheTop,
    CenteredL2Normalizer,
    CompressedRMSNormalizer,
    FrozenStdLayerNormalizer,
    GroupCenterer,
    GroupNormalizer,
    GroupStandardScaler,
    L2Normalizer,
    LayerNormalizer,
    LearnedWhitening,
    NegatedPCA,
    PowerNormalizer,
    RandomFeatures,
    RMSNormalizer,
    SampleNormalizer,
    TokenStandardScaler,
    Whitening,
    WhiteningColoring,
)
from skpool.probing import (
    AttentiveProbeClassifier,
    CosineClassifier,
    LinearProbeClassifier,
    LinearProbeSweepClassifier,
    MomentProbingClassifier,
)
from skpool.prototypes import (
    CalibratedPrototypeClassifier,
    MultiPrototypeClassifier,
    NearestClassMeanClassifier,
    SimplexClassifier,
    SubclassClustering,
)

__all__ = ["INSTANCES", "expected_failures", "name_of", "takes_vectors"]


def _text_models() -> list[BaseEstimator]:
    bert, llama = shared_text_model("bert"), shared_text_model("llama")
    return [
        TextFeatureExtractor(bert),
        TextFeatureExtractor(llama, pooling=None, instruction="read: "),
        TextFeatureExtractor(bert, pooling="cls", echo=True, dtype="float16"),
    ]


INSTANCES: dict[type, list[BaseEstimator]] = {
    AlignedClassifier: [
        AlignedClassifier(replay=GaussianReplay(shrinkage=0.1), n_per_class=20),
        AlignedClassifier(
            RidgeHeadClassifier(0.1),
            replay=GaussianReplay(covariance="shared", shrinkage=0.1),
            n_per_class=20,
            logit_norm=None,
        ),
    ],
    AllButTheTop: [AllButTheTop(), AllButTheTop(0.5)],
    AttentionPooling: [
        AttentionPooling(hidden_dim=8, epochs=5),
        AttentionPooling("query", n_heads=1, n_queries=2, query_pool="concat", epochs=3),
        AttentionPooling("latent", n_heads=1, n_latents=3, epochs=3),
        AttentionPooling("simpool", n_heads=1, gamma=2.0, epochs=3),
        AttentionPooling("multilayer", n_heads=1, layer_embedding=False, epochs=3),
    ],
    AttentionPoolingClassifier: [AttentionPoolingClassifier(hidden_dim=16)],
    AttentiveProbeClassifier: [
        AttentiveProbeClassifier(lr=0.05, epochs=20),
        AttentiveProbeClassifier(
            2, n_heads=1, mlp_ratio=2, qk_norm=True, standardize=False, lr=0.05, epochs=20
        ),
    ],
    BackboneSelector: [BackboneSelector("rankme")],
    BagOfFeaturesPooling: [BagOfFeaturesPooling(3), BagOfFeaturesPooling(3, assignment="soft")],
    BilinearPooling: [BilinearPooling(), BilinearPooling(1, vectorize="full")],
    BaseCovarianceClassifier: [BaseCovarianceClassifier(shrinkage=0.1)],
    BlockWeightedRidgeClassifier: [
        BlockWeightedRidgeClassifier(1),
        BlockWeightedRidgeClassifier(1, weight=3.0, alpha=0.1, class_weight="balanced"),
    ],
    CacheAdapterClassifier: [
        CacheAdapterClassifier(beta=5.5, normalize_cache=False),
        CacheAdapterClassifier(alpha="cv", beta="cv"),
        CacheAdapterClassifier(beta=5.5, train_keys=True, lr=0.01, epochs=3),
    ],
    CalibratedPrototypeClassifier: [
        CalibratedPrototypeClassifier(0.0),
        CalibratedPrototypeClassifier(),
    ],
    CenteredL2Normalizer: [CenteredL2Normalizer(), CenteredL2Normalizer("median", pre_l2=True)],
    CompactBilinearPooling: [
        CompactBilinearPooling(),
        CompactBilinearPooling(17, method="random_maclaurin", random_state=None),
    ],
    CompressedRMSNormalizer: [CompressedRMSNormalizer()],
    CosineClassifier: [
        CosineClassifier(lr=0.05),
        CosineClassifier(
            2, loss="arcface", margin=0.2, scale="learned", n_proxies=2, bias=True, lr=0.02
        ),
        CosineClassifier(
            loss="cosface", margin=0.1, scale="adacos", init="random", bias=True, lr=0.1, epochs=60
        ),
    ],
    CovariancePooling: [CovariancePooling(), CovariancePooling("correlation", n_components=1)],
    CrossCovariancePooling: [
        CrossCovariancePooling(center="scalar", projection="random", normalize="column"),
    ],
    DiscreteKeyValueClassifier: [
        DiscreteKeyValueClassifier(KeyQuantizer(3, n_keys=4, key_dim=2, random_state=0)),
    ],
    EpisodicLinear: [EpisodicLinear(), EpisodicLinear("ridge"), EpisodicLinear("svm", C=0.1)],
    # Memories and a choice of rows, which neither predict nor transform.
    ExemplarMemory: [],
    FeatureExtractor: [
        FeatureExtractor("glyph", n_workers=2),
        FeatureExtractor(token_backbone(), layers=1, tokens="patch", output="torch", n_workers=0),
        FeatureExtractor("glyph", layers=2, tokens="cls", dtype="float16"),
    ],
    FewShotIncrementalClassifier: [
        FewShotIncrementalClassifier(None),
        FewShotIncrementalClassifier(epochs=5, lr=0.01),
        FewShotIncrementalClassifier("mlp", targets="means", supcon_weight=0.0, epochs=20, lr=0.05),
    ],
    FirstSessionAdapter: [
        FirstSessionAdapter(hidden_dim=4, lr=0.3, epochs=3),
        FirstSessionAdapter("scale_shift", concat=False, lr=0.3, validation_fraction=0.3),
        FirstSessionAdapter("linear", block_norm=True, lr=0.3, epochs=3),
        FirstSessionAdapter("lda"),
    ],
    FisherVectorPooling: [FisherVectorPooling(2, power=None)],
    FrozenStdLayerNormalizer: [FrozenStdLayerNormalizer()],
    GaussianReplay: [],
    GaussianClassifier: [
        GaussianClassifier(),
        GaussianClassifier("diag", shrinkage=0.1),
        GaussianClassifier("low_rank", shrinkage=0.1, rank=3, normalize="l2"),
        GaussianClassifier("shared"),
    ],
    GeMPooling: [
        GeMPooling(),
        GeMPooling(negative="shift"),
        GeMPooling(negative="signed"),
        GeMPooling(learn_p=True, max_epochs=2),
    ],
    # scikit-learn's suite passes two features, then three.
    GroupCenterer: [GroupCenterer(group_column=0)],
    GroupGeMPooling: [GroupGeMPooling(n_groups=1), GroupGeMPooling(n_groups=1, learn_p="cv")],
    GroupNormalizer: [GroupNormalizer(1), GroupNormalizer(1, activation="swish")],
    GroupStandardScaler: [
        GroupStandardScaler(group_column=0),
        GroupStandardScaler(shrinkage="auto", group_column=0),
    ],
    FitOnce: [FitOnce(Whitening(shrinkage=0.1))],
    HerdingSelector: [],
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
    InformationMaximizationClassifier: [
        InformationMaximizationClassifier(lr=0.01, max_iter=10),
        InformationMaximizationClassifier("tsallis", lr=0.01, max_iter=5),
        InformationMaximizationClassifier(solver="adm", max_iter=5),
    ],
    KNNMixtureClassifier: [
        KNNMixtureClassifier(n_neighbors=5),
        KNNMixtureClassifier(n_neighbors=5, mixing="cv", sample_weighting="knn"),
    ],
    KernelPredictionErrorClassifier: [KernelPredictionErrorClassifier()],
    KeyQuantizer: [KeyQuantizer(3, n_keys=4, key_dim=2, random_state=0)],
    L2Normalizer: [L2Normalizer()],
    LayerAggregator: [
        LayerAggregator(normalize="l2"),
        LayerAggregator([-1, 0], layer_pool="concat", normalize="layernorm"),
        LayerAggregator(token_pool=GeMPooling(negative="shift"), layer_pool="max"),
    ],
    LayerNormalizer: [LayerNormalizer()],
    LayerSelector: [LayerSelector("rankme"), LayerSelector("rankme", rule="top_k", k=2)],
    LearnedWhitening: [LearnedWhitening(), LearnedWhitening(2, l2=False)],
    LinearDiscriminantClassifier: [
        LinearDiscriminantClassifier(),
        LinearDiscriminantClassifier(0.1, target="unit", priors="uniform"),
        LinearDiscriminantClassifier(0.1, covariance="shared_diag"),
        LinearDiscriminantClassifier("loo"),
    ],
    # Weights are compared with repeated rows to rounding.
    LinearProbeClassifier: [
        LinearProbeClassifier(tol=1e-18),
        LinearProbeClassifier("cv", Cs=[0.01, 1.0], cv=3, class_weight="balanced", tol=1e-18),
    ],
    LinearProbeSweepClassifier: [
        LinearProbeSweepClassifier([0.01, 0.1], epochs=100, batch_size=16, validation_fraction=0.3),
    ],
    LogSumExpPooling: [LogSumExpPooling(), LogSumExpPooling(r=-2.0, scale=None)],
    MomentPooling: [MomentPooling(center=None), MomentPooling((1,))],
    MomentProbingClassifier: [
        MomentProbingClassifier(
            8,
            n_heads=2,
            center=None,
            conv_layers=0,
            standardize=False,
            lr=0.1,
            epochs=20,
            warmup_epochs=0,
        ),
        MomentProbingClassifier(
            8,
            n_heads=2,
            center="scalar",
            conv_layers=0,
            lr=0.1,
            epochs=20,
            warmup_epochs=0,
        ),
    ],
    MultiPrototypeClassifier: [
        MultiPrototypeClassifier(metric="euclidean", random_state=0),
        MultiPrototypeClassifier("balanced", reduce="logsumexp", random_state=0),
    ],
    NearestClassMeanClassifier: [
        NearestClassMeanClassifier(),
        NearestClassMeanClassifier("euclidean", normalize="l2", normalize_means=True),
        NearestClassMeanClassifier("mahalanobis", priors="empirical"),
        NearestClassMeanClassifier("mahalanobis", covariance="shared_diag", shrinkage=0.1),
    ],
    NearestMeanOfExemplarsClassifier: [
        NearestMeanOfExemplarsClassifier(),
        NearestMeanOfExemplarsClassifier(ExemplarMemory(None, per_class=5), metric="cosine"),
    ],
    NegatedPCA: [NegatedPCA(), NegatedPCA(0.5, whiten=True)],
    OptimalTransportClassifier: [
        OptimalTransportClassifier(1.0),
        OptimalTransportClassifier(1.0, center="separate", marginals="uniform"),
    ],
    PatchDictionaryExtractor: [
        PatchDictionaryExtractor(n_atoms=12, patch=4),
        PatchDictionaryExtractor(n_atoms=5, patch=3, encoding="soft", pool=None, image_size=8),
    ],
    PerClassKNNClassifier: [
        PerClassKNNClassifier(),
        PerClassKNNClassifier(k=2, reduce="logmeanexp", metric="euclidean"),
    ],
    PerGroupClassifier: [
        PerGroupClassifier(),
        PerGroupClassifier(GaussianClassifier("diag", shrinkage=0.1), reduce="logsumexp"),
    ],
    Pooling: [Pooling(), Pooling("gem", p=4.6), Pooling("lse")],
    PositionalDebias: [
        PositionalDebias(positions=list(range(6))),
        PositionalDebias("leace", positions=list(range(6))),
    ],
    PositionalMeanRemoval: [PositionalMeanRemoval(), PositionalMeanRemoval("position")],
    PowerNormalizer: [
        PowerNormalizer(),
        PowerNormalizer(l2=True, l1_first=True),
        PowerNormalizer(0.25, clip=True),
    ],
    PredictionErrorClassifier: [
        PredictionErrorClassifier(),
        PredictionErrorClassifier(0.1, kernel="random_features", n_components=30, calibrate=True),
    ],
    PredictionErrorNetworkClassifier: [
        PredictionErrorNetworkClassifier(8, teacher_multiplier=4, output_dim=8)
    ],
    PrototypeRectification: [PrototypeRectification()],
    RMACPooling: [RMACPooling(1), RMACPooling(1, reduce="gem", region_transform=StandardScaler())],
    RMSNormalizer: [RMSNormalizer()],
    RandomFeatureExtractor: [
        RandomFeatureExtractor(width=8, depth=2, input_size=16, n_workers=0),
        RandomFeatureExtractor("vit", width=8, tokens="cls", calibrate=False, n_workers=0),
        RandomFeatureExtractor("mlp", width=8, init="kaiming", input_size=8, n_workers=0),
    ],
    RandomFeatureRidgeClassifier: [
        RandomFeatureRidgeClassifier(20),
        RandomFeatureRidgeClassifier(40, alpha=0.1, class_weight="balanced"),
    ],
    RandomFeatures: [
        RandomFeatures(20),
        RandomFeatures(20, activation=None, bias=True, orthogonal=True),
    ],
    RegionalGeM: [RegionalGeM(), RegionalGeM(1, size=3, pad="replicate")],
    ReplayBuffer: [],
    ReplayClassifier: [
        ReplayClassifier(
            SGDClassifier(loss="log_loss", random_state=0), buffer=ReplayBuffer(30, random_state=0)
        ),
        ReplayClassifier(
            NearestClassMeanClassifier(),
            buffer=ReplayBuffer(30, policy="class_balanced", random_state=0),
        ),
    ],
    RidgeHeadClassifier: [
        RidgeHeadClassifier(),
        RidgeHeadClassifier(0.1, class_weight="balanced", temperature=5.0),
        RidgeHeadClassifier("kfold"),
    ],
    RidgeHeadRegressor: [RidgeHeadRegressor(), RidgeHeadRegressor(0.1, relative=False)],
    SampleNormalizer: [SampleNormalizer("rms"), SampleNormalizer("frozen_layer")],
    ScaleGeM: [ScaleGeM(), ScaleGeM(10.0)],
    SelectedTokenPooling: [
        SelectedTokenPooling(3, criterion="norm"),
        SelectedTokenPooling(0.5, criterion="norm", keep="lowest", fuse_rest=True),
    ],
    SimplexClassifier: [
        SimplexClassifier(16),
        SimplexClassifier(4, solver="procrustes", assign="hungarian"),
    ],
    SpatialPyramidPooling: [
        SpatialPyramidPooling(),
        SpatialPyramidPooling((1, 2), reduce="gem", normalize_levels="l2"),
    ],
    SubclassClustering: [SubclassClustering(random_state=0)],
    SubspaceEnsemblePrototypeClassifier: [
        SubspaceEnsemblePrototypeClassifier(),
        SubspaceEnsemblePrototypeClassifier(
            per_task_block=FirstSessionAdapter("linear", concat=False, lr=0.3, epochs=3),
            base_block=0,
            beta=0.5,
        ),
    ],
    TemporalPyramidPooling: [
        TemporalPyramidPooling(),
        TemporalPyramidPooling((1, 3), reduce="mean", level_weights=(0.5, 1)),
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
    TokenSelector: [
        TokenSelector(3, criterion="norm"),
        TokenSelector(0.5, criterion="query", query=[1.0] * 12, fuse_rest=True),
    ],
    TokenStandardScaler: [TokenStandardScaler(), TokenStandardScaler(per_position=True)],
    TransductivePrototypeClassifier: [
        TransductivePrototypeClassifier(),
        TransductivePrototypeClassifier("kmodes", gamma=0.1, graph="query", rectify=True),
    ],
    VLADPooling: [VLADPooling(2), VLADPooling(2, assignment="soft", power=0.5)],
    VectorQuantizer: [VectorQuantizer(4, random_state=0)],
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
        WeightedKNNClassifier(5, method="ivf"),
    ],
    Whitening: [
        Whitening(),
        Whitening(method="zca", shrinkage="oas"),
        Whitening(method="pca_cor", shrinkage="ledoit_wolf", l2=True),
    ],
    # It transforms after `adapt` alone, which no suite calls.
    WhiteningColoring: [],
}


# Checks that learning in parts equals learning at once, for what starts from its first part.
_STARTS = (
    "check_parts_equal_whole",
    "check_first_part_may_be_one_row",
    "check_partial_fit_continues_fit",
    "check_parts_may_differ_in_container",
    "check_using_does_not_change_what_is_learned",
)
_STARTS_OF_CLASSES = (
    "check_merge_equals_one_learner",
    "check_new_classes_in_any_call",
    "check_longer_text_labels_may_follow",
    "check_announcing_is_not_needed",
)


def _quantizer_failures(estimator: BaseEstimator) -> dict[str, str]:
    """Of what gives codes, and of what stands on them."""
    if isinstance(estimator, DiscreteKeyValueClassifier):
        reason = "keys are learned from the first part; with keys given, parts equal the whole"
        return dict.fromkeys((*_STARTS, *_STARTS_OF_CLASSES), reason)
    codes = (
        "check_array_gives_array_of_its_float_type",
        "check_tensor_gives_tensor_of_its_float_type",
    )
    failures = dict.fromkeys(codes, "codes are whole numbers on the host")
    if isinstance(estimator, VectorQuantizer):
        one = ("check_output_is_finite", "check_feature_names_match_width")
        failures |= dict.fromkeys(one, "there is one code per row")
        failures |= dict.fromkeys(_STARTS, "codes start from the first part")
    return failures


def _moment_failures(estimator: BaseEstimator) -> dict[str, str]:
    """Of moments that are trained."""
    failures = {"check_batch_size_does_not_matter": "batches are those of the steps"}
    if estimator.standardize:
        reason = "tokens are standardised as they are, whatever their samples weigh"
        failures["check_sample_weight_equivalence_on_dense_data"] = reason
    return failures


# Checks that passes over parts, a few each, equal the passes over all samples.
_PASSES = (
    *_STARTS,
    "check_announced_class_is_listed_and_never_predicted",
    "check_announcing_is_not_needed",
    "check_new_classes_in_any_call",
)


def _attentive_failures(estimator: AttentiveProbeClassifier) -> dict[str, str]:
    failures = dict.fromkeys(_PASSES, "training depends on order and partition")
    failures["check_classifiers_train"] = "a normed token of two features is a sign"
    failures["check_wrong_rank_is_refused"] = "a map of tokens, even of one class, is right"
    if estimator.standardize:
        reason = "tokens are standardised as they are, whatever their samples weigh"
        failures["check_sample_weight_equivalence_on_dense_data"] = reason
    return failures


def _cosine_failures(estimator: CosineClassifier) -> dict[str, str]:
    # Without a projection, the vectors that are compared are those of X.
    names = ("check_announced_class_is_listed_and_never_predicted",)
    names = names if estimator.n_components is None else _PASSES
    failures = dict.fromkeys(names, "training depends on order and partition")
    reason = "cosines leave no class the whole space, and a bias does so in time"
    return failures | {"check_class_weight_classifiers": reason}


def _continual_failures(estimator: BaseEstimator) -> dict[str, str]:
    """Of what stands on a choice of rows, on gradients, or on what a call brings."""
    if isinstance(estimator, FirstSessionAdapter):
        names = list(_STARTS)
        if estimator.kind == "lda":
            # One row is refused, and the session after it is the first.
            names.remove("check_first_part_may_be_one_row")
        return dict.fromkeys(names, "the first session decides, and later ones change nothing")
    if isinstance(estimator, NearestMeanOfExemplarsClassifier):
        names = (*_STARTS, "check_announcing_is_not_needed")
        names = [name for name in names if name != "check_first_part_may_be_one_row"]
        bounded = estimator.memory is not None
        return dict.fromkeys(names if bounded else (), "what is kept depends on what came together")
    if isinstance(estimator, ReplayClassifier):
        names = [*_STARTS, "check_announcing_is_not_needed", "check_new_classes_in_any_call"]
        if isinstance(estimator.estimator, SGDClassifier):
            names.append("check_announced_class_is_listed_and_never_predicted")
        return dict.fromkeys(names, "rows of the memory are learned again with every batch")
    if estimator.per_task_block is None:
        names = ("failed_partial_fit_changes_nothing", "bad_calls_change_nothing")
        names = (f"check_{name}" for name in (*names, "refusals_are_one_sentence"))
        return dict.fromkeys(names, "a wider X brings a block")
    names = [*_STARTS, "check_announcing_is_not_needed", "check_new_classes_in_any_call"]
    failures = dict.fromkeys(names, "every call with new classes trains a block of its own")
    reason = "blocks are trained on samples whatever they weigh"
    return failures | {"check_sample_weight_equivalence_on_dense_data": reason}


def _weight_failure(estimator: BaseEstimator) -> str | None:
    """Why a sample of weight 2 is not two samples to it, if it is not."""
    has_metric = isinstance(estimator, NearestClassMeanClassifier)
    pools = estimator.metric == "mahalanobis" if has_metric else False
    pools = pools or isinstance(estimator, (GaussianClassifier, LinearDiscriminantClassifier))
    if pools and estimator.shrinkage == "oas":
        return "OAS shrinks by the effective number of samples, which repetition raises"
    if pools and estimator.shrinkage == "loo":
        return "a sample that is left out leaves its copies behind"
    if isinstance(estimator, LinearProbeSweepClassifier):
        return "a copy of a sample may be kept back where the sample is not"
    return None


def _projector_failures(estimator: FewShotIncrementalClassifier) -> dict[str, str]:
    """Of a projection that the first call trains."""
    if estimator.projector is None:
        return {}
    failures = dict.fromkeys(_STARTS, "the projection is trained on the first part")
    for name in ("merge_equals_one_learner", "new_classes_in_any_call", "announcing_is_not_needed"):
        failures[f"check_{name}"] = "the projection is trained on the first part"
    if estimator.supcon_weight:
        reason = "a copy of a sample is a further one of its class to the contrastive loss"
        failures["check_sample_weight_equivalence_on_dense_data"] = reason
    if estimator.targets == "etf":
        for name in (
            "dont_overwrite_parameters",
            "methods_sample_order_invariance",
            "methods_subset_invariance",
            "fit2d_predict1d",
        ):
            reason = "n_components=1, which the suite sets, has no room for three vertices"
            failures[f"check_{name}"] = reason
    return failures


# They take unlabelled rows.
_TRANSDUCTIVE = (
    InformationMaximizationClassifier,
    OptimalTransportClassifier,
    PrototypeRectification,
    TransductivePrototypeClassifier,
)


def expected_failures(estimator: BaseEstimator) -> dict[str, str]:
    """Checks of scikit-learn's suite and ours that an instance is not meant to pass, and why."""
    if isinstance(estimator, IncrementalPipeline):
        # scikit-learn marks the same of its own Pipeline.
        reason = "the steps of a pipeline are parameters, and fitting fits them in place"
        return {"check_estimators_overwrite_params": reason}
    if isinstance(estimator, _TRANSDUCTIVE):
        # scikit-learn passes over its own of this kind in the first of these.
        reason = "the label -1 says that a row has none"
        return dict.fromkeys(("check_classifiers_classes", "check_label_kinds_agree"), reason)
    weights = _weight_failure(estimator)
    if weights is not None:
        return {"check_sample_weight_equivalence_on_dense_data": weights}
    if isinstance(estimator, CalibratedPrototypeClassifier) and estimator.alpha > 0:
        checks = ("parts_equal_whole", "first_part_may_be_one_row", "new_classes_in_any_call")
        return dict.fromkeys(
            (f"check_{name}" for name in checks), "base classes are those of the first call"
        )
    if isinstance(estimator, SimplexClassifier):
        return dict.fromkeys(
            ("check_parts_equal_whole", "check_new_classes_in_any_call"),
            "the order of the classes decides whose vertex is whose; scores do not depend on it",
        )
    if isinstance(estimator, PredictionErrorNetworkClassifier):
        return dict.fromkeys(
            (*_STARTS, "check_announcing_is_not_needed"),
            "within a class, training depends on order and partition",
        )
    if isinstance(estimator, TokenStandardScaler) and estimator.per_position:
        reason = "positions have statistics of their own, and vectors have one position"
        return dict.fromkeys(
            (
                "check_tokens_are_mapped_one_by_one",
                "check_fit_on_tokens_equals_fit_on_their_vectors",
            ),
            reason,
        )
    if isinstance(estimator, (ScaleGeM, ViewAggregator)):
        reason = "a NaN stands for a view that is missing, and the others serve"
        return dict.fromkeys(
            ("check_bad_token_names_its_sample", "check_refused_refit_changes_nothing"), reason
        )
    if isinstance(estimator, (DiscreteKeyValueClassifier, KeyQuantizer, VectorQuantizer)):
        return _quantizer_failures(estimator)
    if isinstance(estimator, AttentiveProbeClassifier):
        return _attentive_failures(estimator)
    if isinstance(estimator, CosineClassifier):
        return _cosine_failures(estimator)
    if isinstance(estimator, FewShotIncrementalClassifier):
        return _projector_failures(estimator)
    if isinstance(estimator, MomentProbingClassifier):
        return _moment_failures(estimator)
    continual = (
        FirstSessionAdapter,
        NearestMeanOfExemplarsClassifier,
        ReplayClassifier,
        SubspaceEnsemblePrototypeClassifier,
    )
    if isinstance(estimator, continual):
        return _continual_failures(estimator)
    if isinstance(estimator, BackboneSelector):
        return {"check_list_equals_array": "a list holds blocks, not samples"}
    return {}


def name_of(estimator: BaseEstimator) -> str:
    """A short name of an instance, for the ids of tests."""
    return " ".join(repr(estimator).split())[:80]


def takes_vectors(estimator: BaseEstimator) -> bool:
    """Whether scikit-learn's own suite has data for it."""
    return get_tags(estimator).input_tags.two_d_array
