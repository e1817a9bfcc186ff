# SPDX-License-Identifier: BSD-3-Clause
"""CovariancePooling and BilinearPooling against numpy, scikit-learn and pyRiemann."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.estimator_checks import parametrize_with_checks

from skpool.pooling import BilinearPooling, CovariancePooling
from skpool.stores import TokenArray

N, L, D = 6, 9, 5


@parametrize_with_checks(
    [
        CovariancePooling(),
        CovariancePooling("gaussian", function="log", n_components=1),
        BilinearPooling(),
    ]
)
def test_scikit_learn_check_passes(estimator, check):
    check(estimator)


@pytest.fixture
def tokens():
    rng = np.random.default_rng(0)
    return rng.normal(size=(N, L, D)) @ rng.normal(size=(D, D)) + 2


@pytest.fixture
def base():
    return pytest.importorskip("pyriemann.utils.base")


def covariances(x):
    return np.stack([np.cov(sample.T, bias=True) for sample in x])


def matrices(pooling, x):
    return pooling.inverse_vectorize(pooling.fit_transform(x))


def test_without_a_function_it_is_the_covariance_of_numpy(tokens):
    actual = matrices(CovariancePooling(function=None, l2=False), tokens)
    np.testing.assert_allclose(actual, covariances(tokens), rtol=1e-12)


def test_default_is_the_square_root_of_pyriemann_at_unit_length(tokens, base):
    expected = base.sqrtm(covariances(tokens))
    expected /= np.linalg.norm(expected, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(matrices(CovariancePooling(), tokens), expected, rtol=1e-9)


def test_logarithm_equals_pyriemann(tokens, base):
    C = covariances(tokens)
    ridge = 0.01 * np.trace(C, axis1=1, axis2=2)[:, None, None] / D * np.eye(D)
    actual = matrices(CovariancePooling(function="log", eps=0.01, l2=False), tokens)
    np.testing.assert_allclose(actual, base.logm(C + ridge), rtol=1e-9, atol=1e-12)


def test_power_equals_pyriemann(tokens, base):
    actual = matrices(CovariancePooling(function="power", alpha=0.3, l2=False), tokens)
    np.testing.assert_allclose(actual, base.powm(covariances(tokens), 0.3), rtol=1e-9, atol=1e-12)


def test_vectors_and_matrices_are_those_of_pyriemann(tokens):
    tangent = pytest.importorskip("pyriemann.utils.tangentspace")
    pooling = CovariancePooling(function=None, l2=False)
    vectors = pooling.fit_transform(tokens)
    np.testing.assert_allclose(vectors, tangent.upper(covariances(tokens)), rtol=1e-12)
    np.testing.assert_allclose(
        pooling.inverse_vectorize(vectors), tangent.unupper(vectors), rtol=1e-15
    )


def test_isqrt_takes_the_steps_it_is_told(tokens):
    one = matrices(CovariancePooling(function="isqrt", n_iter=1, l2=False), tokens)
    C = covariances(tokens)
    trace = np.trace(C, axis1=1, axis2=2)[:, None, None]
    A = C / trace
    np.testing.assert_allclose(one, np.sqrt(trace) * (3 * A - A @ A) / 2, rtol=1e-10)
    many = matrices(CovariancePooling(function="isqrt", n_iter=60, l2=False), tokens)
    np.testing.assert_allclose(many @ many, C, rtol=1e-9)


@pytest.mark.parametrize("function", ["sqrtm", "isqrt", "power", "log", "signed_sqrt", None])
@pytest.mark.parametrize("kind", ["covariance", "second_moment", "correlation", "gaussian"])
@pytest.mark.parametrize("vectorize", ["upper", "full"])
def test_vectors_have_unit_length_and_a_name_each(tokens, function, kind, vectorize):
    pooling = CovariancePooling(kind, function=function, vectorize=vectorize)
    vectors = pooling.fit_transform(tokens)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-12)
    k = D + (kind == "gaussian")
    assert vectors.shape[1] == (k * k if vectorize == "full" else k * (k + 1) // 2)
    assert len(set(pooling.get_feature_names_out())) == vectors.shape[1]


def test_signed_root_is_taken_of_entries_not_of_weights(tokens):
    C = covariances(tokens)
    expected = np.sign(C) * np.sqrt(np.abs(C))
    actual = matrices(CovariancePooling(function="signed_sqrt", l2=False), tokens)
    np.testing.assert_allclose(actual, expected, rtol=1e-10)


# The projection.


def test_components_are_those_of_pca_on_all_tokens(tokens):
    pca = PCA(3).fit(tokens.reshape(-1, D))
    pooling = CovariancePooling(function=None, n_components=3, l2=False).fit(tokens)
    np.testing.assert_allclose(pooling.mean_, pca.mean_, rtol=1e-12)
    np.testing.assert_allclose(abs(pooling.components_), abs(pca.components_), rtol=1e-8)
    projected = (tokens - pca.mean_) @ pooling.components_.T
    actual = pooling.inverse_vectorize(pooling.transform(tokens))
    np.testing.assert_allclose(actual, covariances(projected), rtol=1e-9, atol=1e-12)


def test_largest_loading_of_a_component_is_positive(tokens):
    axes = CovariancePooling(n_components=4).fit(tokens).components_
    assert (axes[np.arange(4), abs(axes).argmax(1)] > 0).all()


def test_second_moments_are_around_the_mean_of_all_training_tokens(tokens):
    pooling = BilinearPooling(2, l2=False).fit(tokens)
    z = (tokens - tokens.mean((0, 1))) @ pooling.components_.T
    M = z.transpose(0, 2, 1) @ z / L
    actual = pooling.inverse_vectorize(pooling.transform(tokens))
    np.testing.assert_allclose(actual, np.sign(M) * np.sqrt(abs(M)), rtol=1e-8, atol=1e-10)


def test_projection_is_learned_from_real_tokens_in_scope(tokens):
    mask = np.ones((N, L), dtype=bool)
    mask[:, -2:] = False
    dirty = np.where(mask[..., None], tokens, np.nan)
    X = TokenArray.from_array(dirty, mask=mask, n_prefix_tokens=2)
    pooling = CovariancePooling(n_components=2).fit(X)
    pca = PCA(2).fit(tokens[:, 2:-2].reshape(-1, D))
    np.testing.assert_allclose(abs(pooling.components_), abs(pca.components_), rtol=1e-8)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_helpings_do_not_change_a_bit_of_the_projection(tokens, batch_size):
    whole = CovariancePooling(n_components=3).fit(tokens)
    parts = CovariancePooling(n_components=3, batch_size=batch_size).fit(tokens)
    np.testing.assert_array_equal(parts.components_, whole.components_)


def test_projection_is_needed_before_transform(tokens):
    with pytest.raises(NotFittedError):
        CovariancePooling(n_components=2).transform(tokens)
    CovariancePooling().transform(tokens)


def test_refit_without_projection_forgets_it(tokens):
    pooling = CovariancePooling(n_components=2).fit(tokens)
    pooling.set_params(n_components=None).fit(tokens)
    assert not hasattr(pooling, "components_") and not hasattr(pooling, "mean_")
    np.testing.assert_array_equal(
        pooling.transform(tokens), CovariancePooling().fit_transform(tokens)
    )


@pytest.mark.parametrize("pooling", [CovariancePooling(n_components=6), BilinearPooling(6)])
def test_more_components_than_features_are_refused(tokens, pooling):
    with pytest.raises(ValueError, match=r"n_components=6 is above the 5 features"):
        pooling.fit(tokens)


def test_only_what_parameters_decide_is_named():
    pooling = CovariancePooling()
    assert pooling._fingerprint() is not None
    assert pooling._fingerprint() != clone(pooling).set_params(alpha=0.4)._fingerprint()
    assert clone(pooling).set_params(n_components=2)._fingerprint() is None


# BilinearPooling.


def test_bilinear_equals_the_formula_of_the_paper(tokens):
    M = np.einsum("nti,ntj->nij", tokens, tokens) / L
    y = (np.sign(M) * np.sqrt(abs(M))).reshape(N, -1)
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    np.testing.assert_allclose(
        BilinearPooling(vectorize="full").fit_transform(tokens), y, rtol=1e-10
    )


@pytest.mark.parametrize("n_components", [None, 3])
def test_bilinear_is_a_case_of_covariance_pooling(tokens, n_components):
    case = CovariancePooling(
        "second_moment", function="signed_sqrt", n_components=n_components
    ).fit_transform(tokens)
    np.testing.assert_array_equal(BilinearPooling(n_components).fit_transform(tokens), case)


# Containers and parameters.


def test_inverse_vectorize_gives_what_it_is_given(tokens):
    pooling = CovariancePooling()
    vectors = pooling.fit_transform(tokens)
    expected = pooling.inverse_vectorize(vectors)
    given = torch.from_numpy(vectors).float()
    assert pooling.inverse_vectorize(given).dtype == torch.float32
    np.testing.assert_allclose(pooling.inverse_vectorize(given), expected, rtol=1e-5, atol=1e-7)
    frame = pooling.set_output(transform="pandas").transform(tokens)
    np.testing.assert_array_equal(pooling.inverse_vectorize(frame), expected)


def test_inverse_vectorize_refuses_other_widths(tokens):
    with pytest.raises(ValueError, match="no upper form"):
        CovariancePooling().inverse_vectorize(np.zeros((2, D)))


@pytest.mark.parametrize(
    "parameters",
    [
        {"kind": "cov"},
        {"function": "exp"},
        {"alpha": 0.0},
        {"n_iter": 0},
        {"eps": 0.0},
        {"shrinkage": 1.5},
        {"vectorize": "lower"},
        {"n_components": 0},
        {"l2": None},
    ],
)
def test_bad_parameter_is_refused(tokens, parameters):
    with pytest.raises(InvalidParameterError, match=next(iter(parameters))):
        CovariancePooling(**parameters).fit(tokens)
