# SPDX-License-Identifier: BSD-3-Clause
import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import token_backbone
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from skpool.extraction import FeatureExtractor
from skpool.neighbors import WeightedKNNClassifier
from skpool.pipeline import IncrementalPipeline, make_incremental_pipeline
from skpool.pooling import GeMPooling, TokenPooling
from skpool.preprocessing import L2Normalizer, Whitening
from skpool.prototypes import NearestClassMeanClassifier


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(8, 8))
    y = rng.integers(0, 6, 240)
    X = (rng.normal(size=(240, 8)) + 2 * rng.normal(size=(6, 8))[y]) @ mixing + 20
    return X, y


def _pipeline(clf=None, refresh="transport", **whitening):
    clf = clf or NearestClassMeanClassifier("euclidean")
    steps = [("l2", L2Normalizer()), ("whiten", Whitening(5, **whitening)), ("clf", clf)]
    return IncrementalPipeline(steps, refresh=refresh)


def _learn_in_parts(model, X, y, parts):
    for rows in parts:
        model.partial_fit(X[rows], y[rows])
    return model


CLASSIFIERS = {
    "euclidean": NearestClassMeanClassifier("euclidean"),
    "cosine": NearestClassMeanClassifier("cosine"),
    "mahalanobis": NearestClassMeanClassifier("mahalanobis", shrinkage=0.1),
    "knn": WeightedKNNClassifier(7, metric="euclidean", temperature=5.0),
}


@pytest.mark.parametrize("name", sorted(CLASSIFIERS))
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**16), n_parts=st.integers(2, 6))
def test_any_sequence_of_calls_equals_one_fit(name, data, seed, n_parts):
    X, y = data
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.choice(np.arange(6, 234), n_parts - 1, replace=False))
    parts = [rows for rows in np.split(rng.permutation(240), cuts) if len(rows)]
    # The first call must know of two different rows, or no whitening exists.
    in_parts = _learn_in_parts(_pipeline(clone(CLASSIFIERS[name])), X, y, parts)
    at_once = _pipeline(clone(CLASSIFIERS[name])).fit(X, y)
    np.testing.assert_array_equal(in_parts.classes_, at_once.classes_)
    np.testing.assert_allclose(
        in_parts.predict_proba(X), at_once.predict_proba(X), rtol=1e-6, atol=1e-8
    )


def test_classes_that_arrive_one_by_one_equal_a_joint_fit(data):
    X, y = data
    parts = [np.flatnonzero(y == label) for label in (4, 0, 5, 1, 3, 2)]
    in_parts = _learn_in_parts(_pipeline(), X, y, parts)
    at_once = _pipeline().fit(X, y)
    np.testing.assert_allclose(
        in_parts.decision_function(X), at_once.decision_function(X), rtol=1e-8, atol=1e-8
    )


def test_transport_equals_scikit_learns_steps_on_everything(data):
    # Whitening and nearest mean by another library, on all samples at once.
    X, y = data
    X = X / np.linalg.norm(X, axis=1, keepdims=True)
    reference = Pipeline([("pca", PCA(5, whiten=True)), ("clf", NearestCentroid())]).fit(X, y)
    model = _learn_in_parts(_pipeline(eps=0.0), *data, [np.arange(100), np.arange(100, 240)])
    np.testing.assert_array_equal(model.predict(data[0]), reference.predict(X))


def test_visible_steps_live_in_the_space_of_predictions(data):
    X, y = data
    model = _learn_in_parts(_pipeline(), X, y, [np.arange(90), np.arange(90, 240)])
    Z = model[:-1].transform(X)
    means = np.stack([Z[y == label].mean(0) for label in range(6)])
    np.testing.assert_allclose(model[-1].prototypes_, means, atol=1e-8)
    assert model[-1].n_features_in_ == 5


def test_standard_scaler_is_carried_along(data):
    X, y = data
    model = IncrementalPipeline(
        [("scale", StandardScaler()), ("clf", NearestClassMeanClassifier("euclidean"))]
    )
    _learn_in_parts(model, X, y, [np.arange(50), np.arange(50, 240)])
    whole = Pipeline([("scale", StandardScaler()), ("clf", NearestCentroid())]).fit(X, y)
    np.testing.assert_allclose(model[-1].prototypes_, whole[-1].centroids_, atol=1e-10)


def test_forget_equals_never_having_learned(data):
    X, y = data
    model = _pipeline().fit(X, y).forget(X[200:], y[200:])
    rest = _pipeline().fit(X[:200], y[:200])
    np.testing.assert_allclose(
        model.decision_function(X), rest.decision_function(X), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("refresh", ["transport", "frozen"])
def test_forgotten_class_equals_never_having_seen_it(refresh, data):
    X, y = data
    steps = [L2Normalizer(), NearestClassMeanClassifier("euclidean")]
    if refresh == "frozen":
        steps.insert(1, Whitening(5))
    model = make_incremental_pipeline(*steps, refresh=refresh)
    never = make_incremental_pipeline(*clone(steps), refresh=refresh)
    first, others = y < 3, (y >= 3) & (y != 4)
    model.partial_fit(X[first], y[first]).partial_fit(X[~first], y[~first]).forget_class(4)
    never.partial_fit(X[first], y[first]).partial_fit(X[others], y[others])
    np.testing.assert_array_equal(model.classes_, never.classes_)
    np.testing.assert_allclose(model.predict_proba(X), never.predict_proba(X), rtol=1e-10)


def test_class_in_a_moving_step_is_forgotten_by_its_samples_only(data):
    X, y = data
    model = _pipeline().fit(X, y)
    before = model.predict_proba(X)
    with pytest.raises(ValueError, match=r"'whiten' has learned .* give them to forget"):
        model.forget_class(2)
    np.testing.assert_array_equal(model.predict_proba(X), before)
    model.forget(X[y == 2], y[y == 2])
    never = _pipeline().fit(X[y != 2], y[y != 2])
    np.testing.assert_allclose(model.predict_proba(X), never.predict_proba(X), rtol=1e-6)


def test_unknown_class_is_refused_by_the_classifier(data):
    X, y = data
    model = make_incremental_pipeline(NearestClassMeanClassifier()).fit(X, y)
    with pytest.raises(ValueError, match="not a known class"):
        model.forget_class(77)


def test_frozen_keeps_the_whitening_of_the_first_call(data):
    X, y = data
    model = _learn_in_parts(
        _pipeline(refresh="frozen"), X, y, [np.arange(100), np.arange(100, 240)]
    )
    first = Pipeline([("l2", L2Normalizer()), ("whiten", Whitening(5))]).fit(X[:100])
    np.testing.assert_array_equal(model["whiten"].mean_, first["whiten"].mean_)
    Z = first.transform(X)
    reference = NearestClassMeanClassifier("euclidean").fit(Z, y)
    np.testing.assert_allclose(
        model.decision_function(X), reference.decision_function(Z), rtol=1e-9, atol=1e-9
    )
    model.forget(X[100:], y[100:])
    np.testing.assert_array_equal(model["whiten"].mean_, first["whiten"].mean_)


def test_running_moves_the_whitening_and_warns_once(data):
    X, y = data
    model = _pipeline(refresh="running").partial_fit(X[:80], y[:80])
    with pytest.warns(UserWarning, match="Step 'whiten' moves"):
        model.partial_fit(X[80:160], y[80:160])
    model.partial_fit(X[160:], y[160:])
    at_once = _pipeline().fit(X, y)
    np.testing.assert_allclose(model["whiten"].mean_, at_once["whiten"].mean_, rtol=1e-9)
    with pytest.raises(ValueError, match="refresh='running'"):
        model.forget(X[:3], y[:3])


def test_step_without_partial_fit_is_fixed_with_a_warning(data):
    X, y = data
    model = make_incremental_pipeline(PCA(3), NearestClassMeanClassifier())
    model.partial_fit(X[:100], y[:100])
    with pytest.warns(UserWarning, match="'pca' has no partial_fit"):
        model.partial_fit(X[100:], y[100:])
    np.testing.assert_allclose(model["pca"].mean_, X[:100].mean(0))
    frozen = clone(model).set_params(refresh="frozen")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _learn_in_parts(frozen, X, y, [np.arange(100), np.arange(100, 240)])


@pytest.mark.parametrize(
    ("steps", "match"),
    [
        ([("w", Whitening()), ("l2", L2Normalizer()), ("c", NearestClassMeanClassifier())], "'l2'"),
        ([("m", MinMaxScaler()), ("c", NearestClassMeanClassifier())], "'m' .*no affine map"),
        ([("w", Whitening()), ("c", SGDClassifier())], "'c' .*no.*`affine`"),
    ],
)
def test_steps_that_cannot_be_carried_along_are_refused(steps, match, data):
    X, y = data
    with pytest.raises(ValueError, match=match):
        IncrementalPipeline(steps).partial_fit(X, y)
    IncrementalPipeline(steps, refresh="frozen").partial_fit(
        X, y, **({"classes": np.unique(y)} if "c" in dict(steps) and "SGD" in repr(steps) else {})
    )


def test_failed_call_changes_nothing(data):
    X, y = data
    model = _pipeline().fit(X[:100], y[:100])
    before = model.decision_function(X)
    bad = X[100:110].copy()
    bad[3, 2] = np.nan
    labels = y[100:110].astype(object)
    labels[4] = None
    for arguments in [(bad, y[100:110]), (X[100:110], labels), (X[100:110, :3], y[100:110])]:
        with pytest.raises(ValueError):
            model.partial_fit(*arguments)
        assert model.n_calls_ == 1
        np.testing.assert_array_equal(model.decision_function(X), before)
    with pytest.raises(ValueError):
        model.forget(X[200:230], y[200:230] + 100)
    np.testing.assert_array_equal(model.decision_function(X), before)
    # And it goes on as if nothing had been.
    model.partial_fit(X[100:], y[100:])
    np.testing.assert_allclose(
        model.decision_function(X), _pipeline().fit(X, y).decision_function(X), rtol=1e-8, atol=1e-8
    )


def test_announced_classes_reach_the_classifier(data):
    X, y = data
    model = _pipeline().partial_fit(X[y < 3], y[y < 3], classes=[0, 1, 2, 9])
    assert list(model.classes_) == [0, 1, 2, 9]
    assert 9 not in model.predict(X)
    model.partial_fit(X[y >= 3], y[y >= 3])
    assert list(model.classes_) == [0, 1, 2, 3, 4, 5, 9]


def test_fit_resets_and_counts_calls(data):
    X, y = data
    model = _learn_in_parts(_pipeline(), X, y, [np.arange(100), np.arange(100, 240)])
    assert model.n_calls_ == 2
    model.fit(X[:100], y[:100])
    assert model.n_calls_ == 1
    fresh = _pipeline().fit(X[:100], y[:100])
    np.testing.assert_array_equal(model.decision_function(X), fresh.decision_function(X))


def test_clone_drops_the_state_and_pickle_keeps_it(data):
    X, y = data
    model = _pipeline().partial_fit(X[:100], y[:100])
    assert not hasattr(clone(model), "n_calls_")
    restored = pickle.loads(pickle.dumps(model))
    for one in (model, restored):
        one.partial_fit(X[100:], y[100:])
    np.testing.assert_array_equal(model.decision_function(X), restored.decision_function(X))


def test_parameters_are_handed_to_the_named_step(data):
    X, y = data
    weights = np.random.default_rng(0).integers(0, 3, len(y)).astype(float)
    model = make_incremental_pipeline(L2Normalizer(), NearestClassMeanClassifier("euclidean"))
    name = "nearestclassmeanclassifier__sample_weight"
    model.partial_fit(X[:120], y[:120], **{name: weights[:120]})
    model.partial_fit(X[120:], y[120:], **{name: weights[120:]})
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    means = [np.average(unit[y == k], axis=0, weights=weights[y == k]) for k in range(6)]
    np.testing.assert_allclose(model[-1].prototypes_, means, atol=1e-12)
    with pytest.raises(ValueError, match="'sample_weight' names no step"):
        model.partial_fit(X, y, sample_weight=weights)


def test_unknown_refresh_is_refused(data):
    with pytest.raises(ValueError, match=r"'refresh' parameter.*Got 'moving'"):
        _pipeline(refresh="moving").fit(*data)


@pytest.mark.parametrize(("first", "then"), [("transport", "frozen"), ("frozen", "transport")])
def test_refresh_changed_between_calls_is_refused(first, then, data):
    X, y = data
    model = _pipeline(refresh=first).partial_fit(X[:100], y[:100]).set_params(refresh=then)
    with pytest.raises(ValueError, match=r"`refresh` were changed .* call fit"):
        model.partial_fit(X[100:], y[100:])
    with pytest.raises(ValueError, match="call fit"):
        model.forget(X[:10], y[:10])
    expected = _pipeline(refresh=then).fit(X, y).decision_function(X)
    np.testing.assert_array_equal(model.fit(X, y).decision_function(X), expected)


def test_grid_search_tunes_it_like_any_pipeline(data):
    X, y = data
    search = GridSearchCV(
        _pipeline(), {"whiten__n_components": [2, 4], "refresh": ["transport", "frozen"]}, cv=3
    ).fit(X, y)
    assert search.best_score_ > 0.5
    # One fit is one call, so the rules do not differ.
    scores = search.cv_results_["mean_test_score"].reshape(2, 2)
    np.testing.assert_allclose(scores[0], scores[1])


def test_pipeline_of_transformers_learns_in_parts(data):
    X, _ = data
    model = make_incremental_pipeline(L2Normalizer(), Whitening(4))
    model.partial_fit(X[:100]).partial_fit(X[100:])
    expected = make_incremental_pipeline(L2Normalizer(), Whitening(4)).fit_transform(X)
    np.testing.assert_allclose(model.transform(X), expected, atol=1e-8)


def test_images_to_classes_in_parts_equal_one_fit():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    y = np.repeat([0, 1, 2], 20)
    images[y == 1] //= 2
    images[y == 2] //= 4

    def make(pooling):
        return make_incremental_pipeline(
            FeatureExtractor(token_backbone()),
            pooling,
            Whitening(4),
            NearestClassMeanClassifier("euclidean"),
        )

    for pooling in (TokenPooling(("cls", "mean")), GeMPooling(negative="signed")):
        parts = make(pooling).partial_fit(images[:40], y[:40]).partial_fit(images[40:], y[40:])
        whole = make(pooling).fit(images, y)
        np.testing.assert_allclose(
            parts.decision_function(images), whole.decision_function(images), rtol=1e-4, atol=1e-4
        )
