# SPDX-License-Identifier: BSD-3-Clause
"""The ready pipelines: their steps, their parameters, and what they compute."""

import numpy as np
import pytest
from nets import token_backbone
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.svm import LinearSVC
from sklearn.utils.validation import check_is_fitted

from skpool.extraction import FeatureExtractor
from skpool.layers import LayerAggregator
from skpool.pipeline import (
    make_off_the_shelf_classifier,
    make_retrieval_postprocessor,
    make_whitening_bert,
)
from skpool.pooling import TokenPooling, ViewAveragingClassifier
from skpool.preprocessing import L2Normalizer, PowerNormalizer, Whitening

FACTORIES = {
    "retrieval": make_retrieval_postprocessor,
    "whitening_bert": make_whitening_bert,
    "off_the_shelf": make_off_the_shelf_classifier,
    "off_the_shelf_views": lambda: make_off_the_shelf_classifier(views=True),
}


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    return rng.standard_normal((90, 12)) + 2 * rng.standard_normal((3, 12))[y] + 3.0, y


@pytest.fixture
def layers():
    """Tokens of five layers, (n, layers, tokens, features)."""
    return np.random.default_rng(0).standard_normal((40, 5, 6, 8))


def steps_of(pipeline):
    return [(name, type(step)) for name, step in pipeline.steps]


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
def test_factory_gives_a_plain_pipeline_that_is_not_fitted(factory):
    pipeline = factory()
    assert type(pipeline) is Pipeline
    for _, step in pipeline.steps:
        if not isinstance(step, (L2Normalizer, PowerNormalizer, LayerAggregator, TokenPooling)):
            with pytest.raises(NotFittedError):
                check_is_fitted(step)
    assert all(not name.endswith("_") for _, step in pipeline.steps for name in vars(step))


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
def test_every_parameter_of_every_step_can_be_set(factory):
    pipeline = factory()
    deep = pipeline.get_params()
    for name, step in pipeline.steps:
        for parameter in step.get_params():
            assert f"{name}__{parameter}" in deep
    leaves = {key: value for key, value in deep.items() if "__" in key}
    assert clone(pipeline).set_params(**leaves).get_params().keys() == deep.keys()


# --- retrieval -------------------------------------------------------------------------------


def test_retrieval_has_its_steps_in_order():
    pipeline = make_retrieval_postprocessor(power=2.0)
    assert steps_of(pipeline) == [
        ("normalize", L2Normalizer),
        ("whiten", Whitening),
        ("renormalize", L2Normalizer),
        ("power", PowerNormalizer),
    ]
    assert pipeline["whiten"].n_components == "auto500"
    assert pipeline["whiten"].method == "pca"
    assert pipeline["power"].power == 2.0


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_retrieval_equals_steps_of_scikit_learn(data, power):
    X, _ = data
    got = make_retrieval_postprocessor(5, power=power).set_params(whiten__eps=0.0).fit_transform(X)
    want = make_pipeline(
        Normalizer(), PCA(5, whiten=True, svd_solver="full"), Normalizer()
    ).fit_transform(X)
    want = np.sign(want) * np.abs(want) ** power
    np.testing.assert_allclose(got, want * np.sign((got * want).sum(0)), atol=1e-9)


def test_retrieval_in_a_search_survives_folds_smaller_than_its_components(data):
    X, y = data
    pipeline = make_pipeline(make_retrieval_postprocessor(), KNeighborsClassifier())
    grid = {
        "pipeline__whiten__n_components": ["auto4", "auto500"],
        "pipeline__power": ["passthrough", PowerNormalizer(2.0)],
    }
    search = GridSearchCV(pipeline, grid, cv=3, error_score="raise").fit(X, y)
    assert search.cv_results_["mean_test_score"].min() > 0.5


def test_fold_of_few_rows_keeps_what_it_has(data):
    X, _ = data
    assert make_retrieval_postprocessor().fit_transform(X[:6]).shape == (6, 5)


# --- WhiteningBERT ---------------------------------------------------------------------------


def test_whitening_bert_has_its_steps_in_order():
    pipeline = make_whitening_bert(256)
    assert steps_of(pipeline) == [
        ("layers", LayerAggregator),
        ("pool", TokenPooling),
        ("whiten", Whitening),
        ("normalize", L2Normalizer),
    ]
    assert pipeline["layers"].layers == (1, -1)
    assert pipeline["layers"].layer_pool == "mean"
    assert pipeline["pool"].strategy == "mean"
    assert pipeline["whiten"].n_components == 256


@pytest.mark.parametrize("k", [None, 3])
def test_whitening_bert_equals_numpy_and_scikit_learn(layers, k):
    pooled = ((layers[:, 1] + layers[:, -1]) / 2).mean(axis=1)
    want = make_pipeline(PCA(k, whiten=True, svd_solver="full"), Normalizer()).fit_transform(pooled)
    got = make_whitening_bert(k).set_params(whiten__eps=0.0).fit_transform(layers)
    np.testing.assert_allclose(got, want * np.sign((got * want).sum(0)), atol=1e-8)


def test_whitening_bert_takes_the_layers_of_an_extractor():
    images = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    backbone = token_backbone()
    extractor = FeatureExtractor(backbone, layers=[0, -1], n_workers=0)
    model = make_pipeline(extractor, make_whitening_bert("auto4", layers="all"))
    pooled = np.mean(
        [
            TokenPooling().fit_transform(
                FeatureExtractor(backbone, layers=layer, n_workers=0).transform(images)
            )
            for layer in (0, -1)
        ],
        axis=0,
    )
    want = make_pipeline(Whitening("auto4"), L2Normalizer()).fit_transform(pooled)
    np.testing.assert_allclose(model.fit_transform(images), want, atol=1e-4)


def test_whitening_bert_in_a_search(layers):
    y = np.arange(40) % 2
    grid = {
        "pipeline__layers__layers": [(1, -1), (0, -1), "all"],
        "pipeline__whiten__n_components": [2, "auto256"],
    }
    model = make_pipeline(make_whitening_bert(), LogisticRegression())
    search = GridSearchCV(model, grid, cv=3, error_score="raise").fit(layers, y)
    assert len(search.cv_results_["params"]) == 6


# --- off the shelf ---------------------------------------------------------------------------


def test_off_the_shelf_has_its_steps_in_order():
    pipeline = make_off_the_shelf_classifier(C=2.0)
    assert steps_of(pipeline) == [("normalize", L2Normalizer), ("classify", LinearSVC)]
    assert pipeline["classify"].C == 2.0
    assert pipeline["classify"].multi_class == "ovr"


def test_off_the_shelf_with_views_stands_in_the_averaging_classifier():
    pipeline = make_off_the_shelf_classifier(C=2.0, views=True)
    assert steps_of(pipeline) == [("average", ViewAveragingClassifier)]
    inner = pipeline["average"].estimator
    assert steps_of(inner) == [("normalize", L2Normalizer), ("classify", LinearSVC)]
    pipeline.set_params(average__estimator__classify__C=0.1)
    assert inner["classify"].C == 0.1


def test_off_the_shelf_equals_steps_of_scikit_learn(data):
    X, y = data
    got = make_off_the_shelf_classifier().fit(X, y)
    want = make_pipeline(Normalizer(), LinearSVC(random_state=0)).fit(X, y)
    np.testing.assert_allclose(got.decision_function(X), want.decision_function(X), atol=1e-10)


def test_decisions_of_views_are_averaged(data):
    X, y = data
    views = X[:, None] + 0.1 * np.random.default_rng(1).standard_normal((90, 4, 12))
    model = make_off_the_shelf_classifier(views=True).fit(views, y)
    each = make_pipeline(Normalizer(), LinearSVC(random_state=0)).fit(
        views.reshape(-1, 12), np.repeat(y, 4)
    )
    want = each.decision_function(views.reshape(-1, 12)).reshape(90, 4, 3).mean(axis=1)
    np.testing.assert_allclose(model.decision_function(views), want, atol=1e-10)


def test_missing_views_are_left_out(data):
    X, y = data
    views = np.repeat(X[:, None], 2, axis=1)
    model = make_off_the_shelf_classifier(views=True).fit(views, y)
    gap = views.copy()
    gap[::2, 1] = np.nan
    np.testing.assert_allclose(
        model.decision_function(gap), model.decision_function(views), atol=1e-10
    )


@pytest.mark.parametrize("views", [False, True])
def test_off_the_shelf_in_a_search(data, views):
    X, y = data
    X = np.repeat(X[:, None], 2, axis=1) if views else X
    name = "average__estimator__classify__C" if views else "classify__C"
    search = GridSearchCV(
        make_off_the_shelf_classifier(views=views), {name: [0.1, 1.0]}, cv=3, error_score="raise"
    )
    assert search.fit(X, y).best_score_ > 0.7


# --- unknown options -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (make_retrieval_postprocessor, {"n_components": "all"}, "n_components='all'"),
        (make_retrieval_postprocessor, {"n_components": 0}, "n_components"),
        (make_retrieval_postprocessor, {"power": -1.0}, "power"),
        (make_whitening_bert, {"layers": 1.5}, "layers"),
        (make_whitening_bert, {"n_components": 1.5}, "n_components"),
        (make_off_the_shelf_classifier, {"C": -1.0}, "C"),
        (make_off_the_shelf_classifier, {"views": "mean"}, "views='mean'"),
    ],
)
def test_unknown_option_is_refused_by_the_factory(factory, options, message):
    with pytest.raises(ValueError, match=message):
        factory(**options)


@pytest.mark.parametrize("factory", list(FACTORIES.values())[:3])
def test_unknown_name_is_refused_by_the_factory(factory):
    with pytest.raises(TypeError, match="whitening"):
        factory(whitening=True)
