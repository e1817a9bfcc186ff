# SPDX-License-Identifier: BSD-3-Clause
"""Pooling by name is the pooling itself: vectors, names, tags, stores, searches."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from nets import counting_backbone, token_backbone
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import get_tags
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.validation import check_is_fitted

import skpool.pooling
from skpool.extraction import FeatureExtractor
from skpool.layers import LayerAggregator
from skpool.model_selection import prefetch
from skpool.pooling import (
    CovariancePooling,
    GeMPooling,
    LogSumExpPooling,
    MomentPooling,
    Pooling,
    RMACPooling,
    TokenPooling,
)
from skpool.preprocessing import L2Normalizer, PowerNormalizer
from skpool.stores import TokenArray, default_cache

N, GRID, D = 8, (2, 3), 12
Y = np.arange(N) % 2

# The class behind a name, and parameters that suit few small samples.
KINDS = {
    "gem": ("GeMPooling", {"p": 4.6}),
    "group_gem": ("GroupGeMPooling", {"n_groups": 3}),
    "lse": ("LogSumExpPooling", {"r": 2.0}),
    "spatial_pyramid": ("SpatialPyramidPooling", {"levels": (1, 2)}),
    "temporal_pyramid": ("TemporalPyramidPooling", {"levels": (1, 2)}),
    "rmac": ("RMACPooling", {"levels": 2}),
    "moment": ("MomentPooling", {"n_components": 4}),
    "cross_covariance": ("CrossCovariancePooling", {"n_components": 4}),
    "covariance": ("CovariancePooling", {"n_components": 4}),
    "bilinear": ("BilinearPooling", {}),
    "compact_bilinear": ("CompactBilinearPooling", {"n_components": 16}),
    "vlad": ("VLADPooling", {"n_clusters": 3}),
    "fisher_vector": ("FisherVectorPooling", {"n_components": 2, "pca_dim": 4}),
    "bag_of_features": ("BagOfFeaturesPooling", {"n_words": 4}),
    "attention": ("AttentionPooling", {"epochs": 1, "hidden_dim": 4, "device": "cpu"}),
}
STRATEGIES = [
    "avgmax",
    "cls",
    "first",
    "last",
    "max",
    "mean",
    "mean_sqrt_len",
    "min",
    "std",
    "sum",
    "weighted_mean",
]
ALL = [*KINDS, *STRATEGIES]


def by_class(kind):
    if kind in STRATEGIES:
        return TokenPooling(kind)
    name, parameters = KINDS[kind]
    return getattr(skpool.pooling, name)(**parameters)


def by_name(kind):
    return Pooling(kind, **KINDS[kind][1]) if kind in KINDS else Pooling(kind)


@pytest.fixture
def tokens():
    values = np.random.default_rng(0).normal(size=(N, 1 + GRID[0] * GRID[1], D))
    return TokenArray.from_array(values, n_prefix_tokens=1, grid=GRID)


@pytest.fixture
def plain():
    return np.random.default_rng(1).normal(size=(N, 6, D))


def dense(vectors):
    return vectors.toarray() if sparse.issparse(vectors) else np.asarray(vectors)


@pytest.mark.parametrize("kind", ALL)
def test_name_gives_the_vectors_of_the_class(kind, tokens):
    expected, actual = by_class(kind).fit(tokens, Y), by_name(kind).fit(tokens, Y)
    np.testing.assert_array_equal(
        dense(actual.transform(tokens)), dense(expected.transform(tokens))
    )
    assert actual.n_features_in_ == D
    np.testing.assert_array_equal(actual.get_feature_names_out(), expected.get_feature_names_out())


@pytest.mark.parametrize("kind", ALL)
def test_name_has_the_tags_and_the_fingerprint_of_the_class(kind):
    assert get_tags(by_name(kind)) == get_tags(by_class(kind))
    assert by_name(kind)._fingerprint() == by_class(kind)._fingerprint()


@pytest.mark.parametrize("kind", [k for k in ALL if not get_tags(by_class(k)).requires_fit])
def test_name_of_a_stateless_pooling_needs_no_fit(kind, tokens):
    np.testing.assert_array_equal(
        dense(by_name(kind).transform(tokens)), dense(by_class(kind).transform(tokens))
    )


def test_names_are_those_of_the_table():
    with pytest.raises(ValueError) as caught:
        Pooling("").fit(np.ones((2, 3, 4)))
    assert str(sorted(ALL)) in str(caught.value)


def test_a_kind_of_the_pooling_itself_has_a_name_of_its_own(plain):
    expected = CovariancePooling("correlation", n_components=4).fit_transform(plain)
    pooling = Pooling("covariance", covariance_kind="correlation", n_components=4)
    np.testing.assert_array_equal(pooling.fit_transform(plain), expected)
    pooling.set_params(covariance_kind="second_moment")
    expected = CovariancePooling("second_moment", n_components=4).fit_transform(plain)
    np.testing.assert_array_equal(pooling.fit_transform(plain), expected)
    assert Pooling("attention", attention_kind="query")._built().kind == "query"


# Parameters, as scikit-learn treats them.


def test_parameters_are_the_kind_and_what_was_given():
    pooling = Pooling("gem", p=4.6, negative="signed")
    assert pooling.get_params() == {"kind": "gem", "p": 4.6, "negative": "signed"}
    assert pooling.p == 4.6 and pooling.kind == "gem"
    assert Pooling().get_params() == {"kind": "mean"}


def test_float_type_of_the_result_is_a_parameter_like_others(plain):
    pooling = Pooling("gem", out_dtype="float16")
    assert pooling.out_dtype == "float16" and Pooling().out_dtype is None
    assert pooling.fit_transform(plain).dtype == np.float16


def test_set_params_takes_kind_and_parameters_in_any_order():
    pooling = Pooling()
    assert pooling.set_params(p=2.0) is pooling
    assert pooling.set_params(kind="gem").get_params() == {"kind": "gem", "p": 2.0}
    assert pooling.set_params(p=3.0, eps=1e-3).get_params() == {
        "kind": "gem",
        "p": 3.0,
        "eps": 1e-3,
    }


def test_repr_shows_what_differs():
    assert repr(Pooling()) == "Pooling()"
    assert repr(Pooling("gem", p=4.6)) == "Pooling(kind='gem', p=4.6)"
    assert "4.6" in Pooling("gem", p=4.6)._repr_html_()


def test_clone_has_the_same_parameters_and_shares_none():
    weights = np.arange(6.0)
    pooling = Pooling("weighted_mean", weights=weights)
    twin = clone(pooling)
    np.testing.assert_array_equal(twin.get_params()["weights"], weights)
    assert twin.get_params()["weights"] is not weights
    twin.set_params(weights=None)
    assert pooling.get_params()["weights"] is weights


def test_a_shallow_copy_keeps_its_parameters():
    pooling = Pooling("gem", p=2.0)
    other = copy.copy(pooling)
    pooling.set_params(p=5.0)
    assert other.p == 2.0


def test_parameters_of_an_estimator_among_the_parameters_are_reached(plain):
    maps = plain.reshape(N, *GRID, D)
    pooling = Pooling("rmac", region_transform=PowerNormalizer(0.5))
    assert pooling.get_params()["region_transform__power"] == 0.5
    assert "region_transform__power" not in pooling.get_params(deep=False)
    pooling.set_params(region_transform__power=0.25)
    expected = RMACPooling(region_transform=PowerNormalizer(0.25)).fit_transform(maps)
    np.testing.assert_array_equal(pooling.fit_transform(maps), expected)
    pooling.set_params(region_transform=L2Normalizer(), region_transform__eps=0.1)
    assert pooling.region_transform.eps == 0.1
    with pytest.raises(ValueError, match="Invalid parameter 'missing'"):
        pooling.set_params(missing__p=1)


@pytest.mark.parametrize("kind", ["gen", "GeM", "", "token", 3, None, ["mean"]])
@pytest.mark.parametrize("method", ["transform", "get_feature_names_out", "_fingerprint"])
def test_unknown_kind_is_refused_where_it_is_used(kind, method, plain):
    pooling = Pooling(kind)
    assert repr(pooling) and get_tags(pooling) is not None
    call = getattr(pooling, method)
    with pytest.raises(ValueError, match=r"is no pooling; choose from \['attention', 'avgmax'"):
        call(plain) if method == "transform" else call()


@pytest.mark.parametrize("kind", ["gen", 3, ["mean"]])
def test_unknown_kind_is_refused_by_fit(kind, plain):
    with pytest.raises(ValueError, match="kind"):
        Pooling(kind).fit(plain)


@pytest.mark.parametrize(
    ("kind", "name", "listed"),
    [
        ("mean", "p", "normalize_tokens"),
        ("gem", "levels", "negative"),
        ("mean", "strategy", "weights"),
        ("gem", "transform", "eps"),
        ("gem", "p_", "eps"),
        ("covariance", "covariance_kinds", "covariance_kind"),
    ],
)
def test_parameter_that_the_kind_lacks_is_refused_with_those_it_has(kind, name, listed, plain):
    pooling = Pooling(kind, **{name: 3})
    for method in (pooling.fit, pooling.transform):
        with pytest.raises(ValueError, match=f"has no parameter '{name}'") as caught:
            method(plain)
        assert f"'{listed}'" in str(caught.value)


def test_parameters_are_checked_by_the_pooling(plain):
    with pytest.raises(InvalidParameterError, match="'p' parameter of GeMPooling"):
        Pooling("gem", p="three").fit(plain)


def test_refused_fit_leaves_the_fitted_pooling(plain):
    pooling = Pooling("lse").fit(plain)
    expected = pooling.transform(plain)
    bad = plain.copy()
    bad[2, 1, 0] = np.nan
    with pytest.raises(ValueError, match="sample 2"):
        pooling.fit(bad)
    np.testing.assert_array_equal(pooling.transform(plain), expected)


# State.


def test_fitted_attributes_are_those_of_the_pooling(plain):
    pooling = Pooling("gem", negative="shift").fit(plain)
    expected = GeMPooling(negative="shift").fit(plain)
    np.testing.assert_array_equal(pooling.channel_min_, expected.channel_min_)
    np.testing.assert_array_equal(pooling.p_, expected.p_)
    with pytest.raises(AttributeError, match="vocabulary_"):
        _ = pooling.vocabulary_


def test_before_fit_there_are_no_fitted_attributes(plain):
    pooling = Pooling("gem", negative="shift")
    for name in ("pooling_", "n_features_in_", "feature_names_in_", "p_", "missing"):
        assert not hasattr(pooling, name)
    with pytest.raises(NotFittedError):
        check_is_fitted(pooling)
    with pytest.raises(NotFittedError):
        pooling.transform(plain)
    check_is_fitted(pooling.fit(plain))


def test_names_of_columns_are_known():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(np.ones((4, 2)), columns=["a", "b"])
    pooling = Pooling("max").fit(frame)
    assert list(pooling.feature_names_in_) == ["a", "b"]


def test_parameters_set_after_fit_take_effect_as_on_the_class(plain):
    pooling, expected = Pooling("gem", negative="shift").fit(plain), GeMPooling(negative="shift")
    expected.fit(plain).set_params(p=7.0)
    np.testing.assert_array_equal(
        pooling.set_params(p=7.0).transform(plain), expected.transform(plain)
    )
    pooling = Pooling("max").fit(plain).set_params(kind="mean")
    np.testing.assert_allclose(pooling.transform(plain), plain.mean(1), rtol=1e-12)


def test_kind_set_after_fit_needs_a_fit_where_it_learns(plain):
    with pytest.raises(NotFittedError):
        Pooling("mean").fit(plain).set_params(kind="lse").transform(plain)


def test_learning_in_parts_is_that_of_the_class(plain):
    pooling, expected = Pooling("moment", n_components=3), MomentPooling(n_components=3)
    for part in (plain[:5], plain[5:]):
        pooling.partial_fit(part)
        expected.partial_fit(part)
    np.testing.assert_array_equal(pooling.transform(plain), expected.transform(plain))


@pytest.mark.parametrize("kind", ["mean", "gem", "vlad", "gen"])
def test_what_does_not_learn_in_parts_has_no_such_method(kind):
    assert not hasattr(Pooling(kind), "partial_fit")


def test_pickle_keeps_state_and_parameters(plain):
    pooling = Pooling("lse", r=3.0).fit(plain)
    back = pickle.loads(pickle.dumps(pooling))
    assert back.get_params() == pooling.get_params()
    np.testing.assert_array_equal(back.transform(plain), pooling.transform(plain))


def test_skops_keeps_state_and_parameters(plain):
    io = pytest.importorskip("skops.io")
    pooling = Pooling("lse", r=3.0).fit(plain)
    stored = io.dumps(pooling)
    back = io.loads(stored, trusted=io.get_untrusted_types(data=stored))
    np.testing.assert_array_equal(back.transform(plain), pooling.transform(plain))


def test_tensor_gives_a_tensor(plain):
    vectors = Pooling("max").fit_transform(torch.from_numpy(plain))
    assert isinstance(vectors, torch.Tensor)


def test_frames_have_the_names_of_the_pooling(plain):
    pytest.importorskip("pandas")
    frame = Pooling("max").set_output(transform="pandas").fit_transform(plain)
    assert list(frame.columns) == [f"tokenpooling{i}" for i in range(D)]


# In a search.


@pytest.fixture
def problem():
    """Two classes that only the spread of the tokens tells apart."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 8, 3)), np.arange(60) % 2
    X[y == 1] *= 3
    return X, y


def test_search_over_kinds_finds_the_one_that_tells_the_classes_apart(problem):
    X, y = problem
    pipeline = Pipeline([("pool", Pooling()), ("classify", LogisticRegression())])
    grid = {"pool__kind": ["mean", "first", "std"]}
    search = GridSearchCV(pipeline, grid, cv=3, error_score="raise").fit(X, y)
    assert search.best_params_ == {"pool__kind": "std"} and search.best_score_ > 0.95
    steps = {"pool": [TokenPooling("mean"), TokenPooling("first"), TokenPooling("std")]}
    by_step = GridSearchCV(pipeline, steps, cv=3, error_score="raise").fit(X, y)
    np.testing.assert_array_equal(
        search.cv_results_["mean_test_score"], by_step.cv_results_["mean_test_score"]
    )


def test_kinds_with_parameters_stand_in_dicts_of_their_own(problem):
    X, y = problem
    pipeline = Pipeline([("pool", Pooling()), ("classify", LogisticRegression())])
    grid = [
        {"pool__kind": ["mean", "max"]},
        {"pool__kind": ["gem"], "pool__p": [1.0, 8.0], "pool__negative": ["signed"]},
        {"pool__kind": ["lse"], "pool__r": [1.0]},
    ]
    search = GridSearchCV(pipeline, grid, cv=3, error_score="raise").fit(X, y)
    assert len(search.cv_results_["params"]) == 5
    # The signed power mean with exponent 1 is the mean.
    scores = search.cv_results_["mean_test_score"]
    np.testing.assert_array_equal(scores[0], scores[2])


@pytest.fixture
def clean_cache():
    default_cache().clear()
    yield
    default_cache().clear()


def test_kinds_of_a_search_are_prefetched_in_one_pass(tmp_path, clean_cache):
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    extractor = FeatureExtractor(
        counting_backbone(tmp_path / "count"), store=tmp_path / "store", keep_tokens=False
    )
    pipeline = Pipeline(
        [("features", extractor), ("pool", Pooling()), ("classify", LogisticRegression())]
    )
    search = GridSearchCV(pipeline, {"pool__kind": ["cls", "mean", "gem", "rmac"]}, cv=2)
    done = prefetch(search, images)
    assert (done.n_vectors, done.n_passes, done.left_out) == (4, 1, ())
    search.fit(images, np.arange(12) % 2)
    # The classes read what the names have stored.
    for pooling in (TokenPooling("cls"), TokenPooling(), GeMPooling(), RMACPooling()):
        make_pipeline(extractor, pooling).fit_transform(images)
    assert (tmp_path / "count").stat().st_size == len(images)


def test_what_learns_is_left_out_of_prefetching_by_its_name(clean_cache):
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    done = prefetch(make_pipeline(FeatureExtractor(token_backbone()), Pooling("lse")), images)
    assert done.left_out == ("Pooling(kind='lse')",)


@pytest.mark.parametrize("kind", ["gem", "lse"])
def test_layers_are_pooled_by_name(kind):
    X = np.random.default_rng(0).normal(size=(6, 3, 5, 4))
    same = {"gem": GeMPooling(), "lse": LogSumExpPooling()}[kind]
    expected = LayerAggregator(token_pool=same).fit_transform(X)
    np.testing.assert_array_equal(
        LayerAggregator(token_pool=Pooling(kind)).fit_transform(X), expected
    )


def test_building_a_pooling_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in ALL:
            dir(by_name(kind))
