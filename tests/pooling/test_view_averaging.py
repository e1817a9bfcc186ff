# SPDX-License-Identifier: BSD-3-Clause
"""Decisions averaged over views, against the classifier called view by view."""

import numpy as np
import pytest
import sklearn
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import NotFittedError, UnsetMetadataPassedError
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from skpool.pooling import ViewAggregator, ViewAveragingClassifier
from skpool.prototypes import NearestClassMeanClassifier
from skpool.stores import TokenArray

N, V, D = 60, 5, 4


@pytest.fixture(params=[2, 3], ids=["two classes", "three classes"])
def data(request):
    rng = np.random.default_rng(request.param)
    y = np.arange(N) % request.param
    centres = rng.normal(size=(request.param, D))
    X = centres[y][:, None] + rng.normal(size=(N, V, D))
    return X, np.array(["ant", "bee", "cat"])[y]


def flat(X, y, **params):
    rows, labels = X.reshape(-1, X.shape[2]), np.repeat(y, X.shape[1])
    return LogisticRegression(**params).fit(rows, labels)


@pytest.mark.parametrize("response", ["decision_function", "predict_proba"])
def test_response_is_the_mean_over_the_views(response, data):
    X, y = data
    model = ViewAveragingClassifier(LogisticRegression(), response=response).fit(X, y)
    reference = flat(X, y)
    expected = np.mean([getattr(reference, response)(X[:, v]) for v in range(V)], axis=0)
    np.testing.assert_allclose(getattr(model, response)(X), expected, rtol=1e-7, atol=1e-9)
    scores = expected if expected.ndim == 2 else np.stack([-expected, expected], axis=1)
    np.testing.assert_array_equal(model.predict(X), reference.classes_[scores.argmax(axis=1)])


def test_sum_is_the_mean_times_the_number_of_views(data):
    X, y = data
    mean = ViewAveragingClassifier(LogisticRegression()).fit(X, y)
    total = ViewAveragingClassifier(LogisticRegression(), reduce="sum").fit(X, y)
    np.testing.assert_allclose(total.decision_function(X), V * mean.decision_function(X))
    np.testing.assert_array_equal(total.predict(X), mean.predict(X))


def test_probabilities_are_a_mean_whatever_reduce_says(data):
    X, y = data
    model = ViewAveragingClassifier(
        LogisticRegression(), response="predict_proba", reduce="sum"
    ).fit(X, y)
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1)


def test_mean_of_linear_decisions_is_the_decision_of_the_mean(data):
    X, y = data
    decisions = ViewAveragingClassifier(LogisticRegression()).fit(X, y)
    features = ViewAveragingClassifier(LogisticRegression(), response="feature").fit(X, y)
    np.testing.assert_allclose(
        decisions.decision_function(X), features.decision_function(X), rtol=1e-9
    )


def test_mean_of_other_decisions_is_not_the_decision_of_the_mean(data):
    X, y = data
    decisions = ViewAveragingClassifier(SVC()).fit(X, y)
    features = ViewAveragingClassifier(SVC(), response="feature").fit(X, y)
    assert not np.allclose(decisions.decision_function(X), features.decision_function(X))


def test_averages_of_probabilities_and_of_decisions_can_disagree():
    # One sure view against two that lean the other way by little.
    class Given(ClassifierMixin, BaseEstimator):
        def fit(self, X, y):
            self.classes_ = np.unique(y)
            return self

        def decision_function(self, X):
            return X[:, 0]

        def predict_proba(self, X):
            p = 1 / (1 + np.exp(-X[:, 0]))
            return np.stack([1 - p, p], axis=1)

        def predict(self, X):
            return self.classes_[(X[:, 0] > 0).astype(int)]

    X, y = np.array([[[9.0], [-2.0], [-2.0]]]), np.array([0])
    fitted = [
        ViewAveragingClassifier(Given(), response=r).fit(np.repeat(X, 2, axis=0), [0, 1])
        for r in ("decision_function", "predict_proba")
    ]
    assert [model.predict(X)[0] for model in fitted] == [1, y[0]]


def test_feature_response_sees_the_mean_vector(data):
    X, y = data
    model = ViewAveragingClassifier(KNeighborsClassifier(), response="feature").fit(X, y)
    reference = KNeighborsClassifier().fit(X.reshape(-1, D), np.repeat(y, V))
    np.testing.assert_array_equal(model.predict(X), reference.predict(X.mean(axis=1)))
    np.testing.assert_allclose(model.predict_proba(X), reference.predict_proba(X.mean(axis=1)))


def test_one_view_is_the_classifier(data):
    X, y = data
    reference = LogisticRegression().fit(X[:, 0], y)
    for one in (X[:, :1], X[:, 0]):
        model = ViewAveragingClassifier(LogisticRegression()).fit(one, y)
        np.testing.assert_allclose(
            model.decision_function(one), reference.decision_function(X[:, 0])
        )


def test_training_on_the_first_view_alone(data):
    X, y = data
    model = ViewAveragingClassifier(LogisticRegression(), train_views="first").fit(X, y)
    reference = LogisticRegression().fit(X[:, 0], y)
    np.testing.assert_allclose(model.estimator_.coef_, reference.coef_)
    expected = np.mean([reference.decision_function(X[:, v]) for v in range(V)], axis=0)
    np.testing.assert_allclose(model.decision_function(X), expected)


def test_order_of_views_does_not_matter(data):
    X, y = data
    order = [3, 1, 4, 0, 2]
    a = ViewAveragingClassifier(GaussianNB(), response="predict_proba").fit(X, y)
    b = ViewAveragingClassifier(GaussianNB(), response="predict_proba").fit(X[:, order], y)
    np.testing.assert_allclose(a.predict_proba(X), b.predict_proba(X[:, order]), rtol=1e-8)


def test_number_of_views_may_change_between_fit_and_predict(data):
    X, y = data
    model = ViewAveragingClassifier(LogisticRegression()).fit(X, y)
    expected = np.mean([model.estimator_.decision_function(X[:, v]) for v in (0, 1)], axis=0)
    np.testing.assert_allclose(model.decision_function(X[:, :2]), expected)


# Missing views.


@pytest.mark.parametrize("response", ["decision_function", "feature"])
def test_missing_views_are_left_out_of_averages(response, data):
    X, y = data
    model = ViewAveragingClassifier(LogisticRegression(), response=response).fit(X, y)
    holed = X.copy()
    holed[7, [0, 3]] = np.nan
    holed[8, 1, 2] = np.nan
    out = model.decision_function(holed)
    for row, left in ((7, [1, 2, 4]), (8, [0, 2, 3, 4])):
        expected = model.decision_function(X[[row]][:, left])
        np.testing.assert_allclose(out[[row]], expected)


def test_missing_views_are_left_out_of_training(data):
    X, y = data
    keep = np.random.default_rng(0).random((N, V)) > 0.3
    keep[:, 0] = True
    holed = np.where(keep[..., None], X, np.nan)
    model = ViewAveragingClassifier(LogisticRegression()).fit(holed, y)
    reference = LogisticRegression().fit(X[keep], np.repeat(y, keep.sum(axis=1)))
    np.testing.assert_allclose(model.estimator_.coef_, reference.coef_, rtol=1e-6)


def test_sample_without_any_view_is_refused_by_number(data):
    X, y = data
    model = ViewAveragingClassifier(LogisticRegression()).fit(X, y)
    X[11] = np.nan
    for call in (model.predict, lambda X: clone(model).fit(X, y)):
        with pytest.raises(ValueError, match="every view of sample 11"):
            call(X)


def test_first_view_is_needed_where_it_alone_is_learned(data):
    X, y = data
    X[6, 0] = np.nan
    with pytest.raises(ValueError, match="first view of sample 6"):
        ViewAveragingClassifier(LogisticRegression(), train_views="first").fit(X, y)


def test_infinity_is_refused(data):
    X, y = data
    X[4, 1, 0] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        ViewAveragingClassifier(LogisticRegression()).fit(X, y)


# In scikit-learn.


@pytest.mark.parametrize(
    "estimator, response, remedy",
    [
        (KNeighborsClassifier(), "decision_function", "predict_proba"),
        (RidgeClassifier(), "predict_proba", "decision_function"),
    ],
)
def test_response_that_the_estimator_lacks_is_refused_with_the_remedy(
    estimator, response, remedy, data
):
    with pytest.raises(ValueError, match=f"set response='{remedy}'"):
        ViewAveragingClassifier(estimator, response=response).fit(*data)


def test_methods_are_those_of_the_response(data):
    for response, other in (
        ("decision_function", "predict_proba"),
        ("predict_proba", "decision_function"),
    ):
        model = ViewAveragingClassifier(LogisticRegression(), response=response).fit(*data)
        assert hasattr(model, response) and not hasattr(model, other)
        with pytest.raises(AttributeError):
            getattr(model, other)


def test_sample_weight_counts_for_every_view(data):
    X, y = data
    weight = np.random.default_rng(0).integers(0, 4, N)
    model = ViewAveragingClassifier(LogisticRegression(tol=1e-8)).fit(X, y, sample_weight=weight)
    rows, labels = np.repeat(X, weight, axis=0), np.repeat(y, weight)
    reference = ViewAveragingClassifier(LogisticRegression(tol=1e-8)).fit(rows, labels)
    np.testing.assert_allclose(
        model.decision_function(X), reference.decision_function(X), atol=1e-4
    )


class Remembering(LogisticRegression):
    def fit(self, X, y, sample_weight=None, groups=None, mode=None):
        self.groups_, self.mode_ = groups, mode
        return super().fit(X, y, sample_weight)


def test_metadata_is_routed_and_repeated_for_the_views(data):
    X, y = data
    with sklearn.config_context(enable_metadata_routing=True):
        inner = Remembering().set_fit_request(groups=True, sample_weight=True, mode=True)
        model = ViewAveragingClassifier(inner)
        model.fit(X, y, sample_weight=np.ones(N), groups=np.arange(N), mode="fast")
        np.testing.assert_array_equal(model.estimator_.groups_, np.repeat(np.arange(N), V))
        assert model.estimator_.mode_ == "fast"
        with pytest.raises(UnsetMetadataPassedError):
            ViewAveragingClassifier(Remembering()).fit(X, y, groups=np.arange(N))


def test_metadata_without_routing_is_refused(data):
    with pytest.raises(ValueError, match="enable_metadata_routing"):
        ViewAveragingClassifier(Remembering()).fit(*data, groups=np.arange(N))


def test_cross_validation_splits_samples(data):
    X, y = data
    model = ViewAveragingClassifier(make_pipeline(StandardScaler(), LogisticRegression()))
    assert cross_val_score(model, X, y, cv=3, error_score="raise").mean() > 0.7


def test_search_reaches_the_estimator_inside(data):
    model = ViewAveragingClassifier(LogisticRegression())
    grid = {"estimator__C": [0.1, 1.0], "reduce": ["mean", "sum"]}
    search = GridSearchCV(model, grid, cv=3, error_score="raise").fit(*data)
    assert search.best_score_ > 0.7


def test_averaged_decisions_beat_one_view(data):
    X, y = data
    one = cross_val_score(LogisticRegression(), X[:, 0], y).mean()
    assert cross_val_score(ViewAveragingClassifier(LogisticRegression()), X, y).mean() > one


def test_estimator_is_cloned_and_not_fitted(data):
    inner = LogisticRegression()
    model = ViewAveragingClassifier(inner)
    with pytest.raises(NotFittedError):
        model.predict(data[0])
    model.fit(*data)
    assert not hasattr(inner, "coef_") and model.n_features_in_ == D


def test_refused_refit_keeps_the_state(data):
    X, y = data
    model = ViewAveragingClassifier(LogisticRegression()).fit(X, y)
    before = model.decision_function(X)
    with pytest.raises(ValueError, match="labels"):
        model.fit(X[:, :, :2], y[:-1])
    np.testing.assert_array_equal(model.decision_function(X), before)


def test_other_width_is_refused(data):
    X, y = data
    model = ViewAveragingClassifier(LogisticRegression()).fit(X, y)
    with pytest.raises(ValueError, match="3 features"):
        model.predict(X[:, :, :3])


@pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 3), (2, 3, 0), (2, 2, 2, 2)])
def test_shapes_that_are_no_views_are_refused(shape):
    with pytest.raises(ValueError, match=r"shape|dim"):
        ViewAveragingClassifier(LogisticRegression()).fit(np.ones(shape), np.arange(shape[0]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_tensors_reach_a_classifier_that_takes_them(dtype, data):
    X, y = data
    tensor = torch.from_numpy(X).to(dtype)
    model = ViewAveragingClassifier(NearestClassMeanClassifier()).fit(tensor, y)
    reference = ViewAveragingClassifier(NearestClassMeanClassifier()).fit(
        tensor.double().numpy(), y
    )
    out = model.decision_function(tensor)
    assert isinstance(out, np.ndarray)
    np.testing.assert_allclose(
        out, reference.decision_function(tensor.double().numpy()), rtol=1e-3, atol=1e-4
    )


def test_masked_token_array_is_views_with_some_missing(data):
    X, y = data
    mask = np.ones((N, V), dtype=bool)
    mask[3, 1:] = False
    model = ViewAveragingClassifier(LogisticRegression()).fit(X, y)
    out = model.decision_function(TokenArray.from_array(X, mask=mask))
    np.testing.assert_allclose(out[[3]], model.decision_function(X[[3], :1]))


def test_aggregator_and_classifier_agree_where_everything_is_linear(data):
    X, y = data
    late = ViewAveragingClassifier(LogisticRegression()).fit(X, y)
    early = late.estimator_.decision_function(ViewAggregator().fit_transform(X))
    np.testing.assert_allclose(late.decision_function(X), early, rtol=1e-9)
