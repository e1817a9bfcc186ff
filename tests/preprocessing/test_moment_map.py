# SPDX-License-Identifier: BSD-3-Clause
"""What holds for every step that keeps moments: learning in parts, forgetting and merging."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError

from skpool.pipeline import make_incremental_pipeline
from skpool.preprocessing import (
    AllButTheTop,
    CenteredL2Normalizer,
    FrozenStdLayerNormalizer,
    L2Normalizer,
    NegatedPCA,
    TokenStandardScaler,
)
from skpool.prototypes import NearestClassMeanClassifier
from skpool.stores import TokenArray

N, L, D = 16, 6, 12

MOMENTS = [
    CenteredL2Normalizer(),
    CenteredL2Normalizer(pre_l2=True),
    CenteredL2Normalizer(np.arange(12.0)),
    TokenStandardScaler(),
    TokenStandardScaler(with_mean=False),
    FrozenStdLayerNormalizer(weight=np.arange(12.0)),
    AllButTheTop(2),
    AllButTheTop(0.6),
    NegatedPCA(0.7),
    NegatedPCA(0.7, overlap=False, whiten=True),
]
ids = {"ids": lambda value: " ".join(repr(value).split())[:60] if hasattr(value, "fit") else None}


def make(n=N, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, L, D)) * np.linspace(0.5, 2, D) + 1.0).astype(dtype)


@pytest.fixture
def tokens():
    return make()


# --- learning in parts -----------------------------------------------------------------------


@pytest.mark.parametrize("step", MOMENTS, **ids)
@settings(deadline=None, max_examples=12)
@given(cuts=st.lists(st.integers(0, 30), max_size=5), seed=st.integers(0, 100))
def test_partial_fit_in_any_partition_and_order_equals_fit(step, cuts, seed):
    X = make(30, seed)
    model = clone(step)
    for part in np.split(np.random.default_rng(seed).permutation(30), sorted(cuts)):
        if len(part):
            # Tokens and vectors, in every container.
            forms = (X[part], torch.from_numpy(X[part]), list(X[part]), X[part].reshape(-1, D))
            model.partial_fit(forms[len(part) % 4])
    want = clone(step).fit(X)
    assert model.n_samples_seen_ == want.n_samples_seen_ == 30 * L
    np.testing.assert_allclose(model.transform(X), want.transform(X), atol=1e-8)


@pytest.mark.parametrize("step", MOMENTS, **ids)
def test_partial_fit_after_fit_goes_on_and_fit_starts_anew(step):
    X = make(40)
    model = clone(step).fit(X[:25]).partial_fit(X[25:])
    np.testing.assert_allclose(model.transform(X), clone(step).fit_transform(X), atol=1e-9)
    model.fit(X[:25])
    want = clone(step).fit(X[:25]).transform(X)
    np.testing.assert_array_equal(model.transform(X), want)


@pytest.mark.parametrize("step", MOMENTS, **ids)
def test_forget_equals_never_having_seen(step):
    X = make(40)
    model = clone(step).fit(X).forget(X[25:])
    assert model.n_samples_seen_ == 25 * L
    want = clone(step).fit(X[:25])
    np.testing.assert_allclose(model.transform(X), want.transform(X), atol=1e-8)


@pytest.mark.parametrize("step", MOMENTS, **ids)
def test_merge_equals_one_learner_and_leaves_the_other_alone(step):
    X = make(40)
    one, other = clone(step).fit(X[:25]), clone(step).fit(X[25:])
    before = pickle.dumps(other)
    assert one.merge(other) is one
    np.testing.assert_allclose(one.transform(X), clone(step).fit_transform(X), atol=1e-8)
    one.partial_fit(X)
    assert pickle.dumps(other) == before


@pytest.mark.parametrize("step", MOMENTS, **ids)
def test_refused_update_changes_nothing(step):
    X = make(40)
    model = clone(step).fit(X)
    before = pickle.dumps(model)
    bad = X.copy()
    bad[7, 2, 3] = np.nan
    for verb in (model.partial_fit, model.forget):
        for refused in (bad, TokenArray.from_array(bad), X[..., :5], X[:0], X[0, 0]):
            with pytest.raises(ValueError):
                verb(refused)
    with pytest.raises(ValueError, match="Cannot remove"):
        model.forget(np.concatenate([X, X]))
    narrow = clone(step).set_params(
        **{k: None for k in ("weight", "center") if k in step.get_params()}
    )
    if getattr(step, "center", None) is not None and isinstance(step.center, str):
        narrow.set_params(center=step.center)
    with pytest.raises(ValueError, match=r"(?s)5 features.*12"):
        model.merge(narrow.fit(X[..., :5]))
    with pytest.raises(TypeError, match="got L2Normalizer"):
        model.merge(L2Normalizer().fit(X))
    with pytest.raises(NotFittedError):
        model.merge(clone(step))
    assert pickle.dumps(model) == before


@pytest.mark.parametrize("step", MOMENTS, **ids)
def test_refused_first_part_leaves_it_unfitted(step):
    X = make()
    X[3, 1, 2] = np.inf
    model = clone(step)
    for verb in (model.partial_fit, model.fit):
        with pytest.raises(ValueError, match="sample 3"):
            verb(X)
    assert set(vars(model)) == set(model.get_params())
    public = [name for name in dir(type(model)) if name.endswith("_") and name[0] != "_"]
    assert not any(hasattr(model, name) for name in public)
    for verb in (model.forget, model.transform):
        with pytest.raises(NotFittedError):
            verb(make())


@pytest.mark.parametrize("step", MOMENTS, **ids)
def test_forgetting_everything_leaves_nothing_to_transform_with(step):
    X = make()
    model = clone(step).fit(X).forget(X)
    assert model.n_samples_seen_ == 0
    with pytest.raises(ValueError, match="n_samples=0"):
        model.transform(X)
    np.testing.assert_allclose(
        model.partial_fit(X).transform(X), clone(step).fit_transform(X), atol=1e-9
    )


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [
        (CenteredL2Normalizer(), CenteredL2Normalizer(pre_l2=True), "pre_l2"),
        (TokenStandardScaler(), TokenStandardScaler(per_position=True), "per_position"),
    ],
)
def test_merge_of_moments_of_different_rows_is_refused(one, other, name, tokens):
    with pytest.raises(ValueError, match=name):
        clone(one).fit(tokens).merge(clone(other).fit(tokens))


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("step", [s for s in MOMENTS if not getattr(s, "pre_l2", False)], **ids)
def test_float32_at_an_offset_equals_float64(step, offset):
    X = (make(60) + offset).astype(np.float32)
    got = clone(step).fit(X).transform(X)
    want = clone(step).fit(X.astype(np.float64)).transform(X.astype(np.float64))
    scale = np.abs(want).max()
    # The values given are rounded to 6e-5 at this offset; nothing more may be lost.
    np.testing.assert_allclose(got, want, atol=2e-5 * scale)


@pytest.mark.parametrize(
    "step",
    [
        TokenStandardScaler(),
        TokenStandardScaler(with_mean=False),
        FrozenStdLayerNormalizer(weight=np.arange(12.0), bias=np.ones(12)),
        AllButTheTop(3),
        NegatedPCA(0.7),
        NegatedPCA(0.7, whiten=True),
    ],
    **ids,
)
def test_as_affine_equals_transform(step, tokens):
    model = clone(step).fit(tokens)
    A, b = model.as_affine()
    np.testing.assert_allclose(tokens[0] @ A + b, model.transform(tokens[0]), atol=1e-10)


@pytest.mark.parametrize("step", [TokenStandardScaler(), AllButTheTop(2), NegatedPCA(0.7)], **ids)
def test_incremental_pipeline_carries_the_classifier_along(step):
    X, y = make(60)[:, 0], np.arange(60) % 3
    X += 2.0 * np.eye(D)[y]

    def pipeline() -> BaseEstimator:
        return make_incremental_pipeline(clone(step), NearestClassMeanClassifier("euclidean"))

    parts = pipeline().partial_fit(X[:20], y[:20]).partial_fit(X[20:], y[20:])
    whole = pipeline().fit(X, y)
    np.testing.assert_allclose(parts.decision_function(X), whole.decision_function(X), atol=1e-8)
