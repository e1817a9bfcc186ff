# SPDX-License-Identifier: BSD-3-Clause
"""Position taken out of tokens, against scikit-learn's regressions and the analysis of variance."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import map_coordinates
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.utils._param_validation import InvalidParameterError

from skpool.pooling import (
    PositionalDebias,
    PositionalMeanRemoval,
    TokenPooling,
    position_context_decomposition,
)
from skpool.stores import TokenArray

N, H, W, D = 40, 5, 6, 12


def positions_of(height=H, width=W):
    """Rows and columns of the cells, from 0 to 1."""
    return np.array(
        [[i / (height - 1), j / (width - 1)] for i in range(height) for j in range(width)]
    )


@pytest.fixture
def maps():
    """Content that is not white, and position that enters through curves."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(D, D)) * np.linspace(0.2, 1.5, D)
    content = rng.normal(size=(N, H * W, D)) @ mixing
    place = positions_of()
    curves = np.hstack([place, np.sin(3 * place), place**2])
    tokens = content + 4 * curves @ rng.normal(size=(6, D)) + 3.0
    return tokens.reshape(N, H, W, D)


def flat(maps):
    return maps.reshape(-1, maps.shape[-1])


def targets(n=N):
    return np.tile(positions_of(), (n, 1))


def regress(rows, y, alpha):
    """R^2 and coefficients of scikit-learn's ridge regression, as the docstring defines it."""
    centred = rows - rows.mean(0)
    ridge = alpha * (centred**2).sum() / rows.shape[1]
    model = Ridge(alpha=ridge, solver="svd").fit(rows, y)
    return r2_score(y, model.predict(rows)), model.coef_


# Rounds of regression.


def test_every_round_removes_what_predicts_position(maps):
    alpha, y = 1e-6, targets()
    before = flat(maps)
    for n_rounds in range(1, 5):
        debias = PositionalDebias(n_iter=n_rounds, tol=0, alpha=alpha).fit(maps)
        after = flat(debias.transform(maps))
        _, directions = regress(before, y, alpha)
        scale = np.linalg.norm(before, axis=1).max() * np.linalg.norm(directions)
        np.testing.assert_allclose(after @ directions.T, 0.0, atol=1e-10 * scale)
        assert np.linalg.matrix_rank(debias.projection_) == D - 2 * n_rounds
        assert np.linalg.matrix_rank(after - after.mean(0), tol=1e-8 * scale) == D - 2 * n_rounds
        before = after


def test_composed_projection_is_symmetric_and_idempotent(maps):
    projection = PositionalDebias(n_iter=4, tol=0).fit(maps).projection_
    np.testing.assert_allclose(projection, projection.T, atol=1e-15)
    np.testing.assert_allclose(projection @ projection, projection, atol=5e-15)


def test_shares_of_variance_are_those_of_scikit_learn(maps):
    for alpha in (1e-6, 0.1):
        shares = PositionalDebias(n_iter=3, tol=0, alpha=alpha).fit(maps).positional_r2_
        assert shares.shape == (4,)
        for n_rounds, share in enumerate(shares):
            rows = flat(maps)
            if n_rounds:
                debias = PositionalDebias(n_iter=n_rounds, tol=0, alpha=alpha)
                rows = flat(debias.fit_transform(maps))
            expected, _ = regress(rows, targets(), alpha)
            np.testing.assert_allclose(share, expected, atol=1e-9)


def test_position_can_be_read_less_and_less():
    # White content, and position that enters along a line and, less, along curves.
    rng = np.random.default_rng(0)
    place = positions_of()
    position = 3 * place @ rng.normal(size=(2, 32))
    position += 0.3 * np.hstack([np.sin(3 * place), place**2]) @ rng.normal(size=(4, 32))
    maps = (rng.normal(size=(200, H * W, 32)) + position).reshape(200, H, W, 32)
    shares = PositionalDebias(n_iter=4, tol=0).fit(maps).positional_r2_
    assert shares[0] > 0.85 and shares[1] < 0.25 and shares[2] < 0.08
    assert (np.diff(shares) < 0).all()


def test_rounds_stop_at_the_tolerance(maps):
    shares = PositionalDebias(n_iter=5, tol=0).fit(maps).positional_r2_
    tol = (shares[2] + shares[1]) / 2
    debias = PositionalDebias(n_iter=5, tol=tol).fit(maps)
    np.testing.assert_array_equal(debias.positional_r2_, shares[:3])
    assert np.linalg.matrix_rank(debias.projection_) == D - 4


def test_tokens_without_position_stay_as_they_are():
    maps = np.random.default_rng(0).normal(size=(200, 3, 3, 2))
    debias = PositionalDebias(tol=0.05).fit(maps)
    assert len(debias.positional_r2_) == 1 and debias.positional_r2_[0] < 0.05
    np.testing.assert_array_equal(debias.projection_, np.eye(2))
    np.testing.assert_array_equal(debias.transform(maps), maps)


def test_position_along_two_directions_of_white_content_goes_in_one_round():
    rng = np.random.default_rng(0)
    # Content whose covariance with position is exactly 0 and whose own is the unit matrix.
    place = targets(100)
    content = rng.normal(size=(len(place), D))
    content -= LinearRegression().fit(place, content).predict(place)
    content /= np.sqrt(len(content))
    content @= np.linalg.inv(np.linalg.cholesky(content.T @ content)).T
    directions = rng.normal(size=(2, D))
    maps = (content + 0.5 * place @ directions).reshape(100, H, W, D)
    debias = PositionalDebias(n_iter=1, tol=0, alpha=0).fit(maps)
    orthogonal = np.linalg.qr(directions.T)[0]
    np.testing.assert_allclose(debias.projection_ @ orthogonal, 0.0, atol=1e-10)
    assert debias.positional_r2_[1] < 1e-12


def test_more_rounds_than_features_remove_everything():
    maps = np.random.default_rng(0).normal(size=(30, 3, 3, 5))
    debias = PositionalDebias(n_iter=9, tol=0).fit(maps)
    np.testing.assert_allclose(debias.projection_, 0.0, atol=1e-12)
    assert np.isfinite(debias.positional_r2_).all()


@pytest.mark.parametrize("method", ["rasa", "leace"])
@pytest.mark.parametrize("alpha", [0.0, 1e-6])
def test_features_that_depend_on_each_other_are_no_obstacle(maps, method, alpha):
    doubled = np.concatenate([maps, maps[..., :5], np.zeros_like(maps[..., :1])], axis=-1)
    debias = PositionalDebias(method, n_iter=3, tol=0, alpha=alpha).fit(doubled)
    after = flat(debias.transform(doubled))
    left = LinearRegression().fit(after, targets()).score(after, targets())
    np.testing.assert_allclose(left, debias.positional_r2_[-1], atol=1e-4)
    assert left < 0.3 < debias.positional_r2_[0]


# The one step of least change.


def test_leace_leaves_no_covariance_with_position(maps):
    debias = PositionalDebias("leace").fit(maps)
    after = flat(debias.transform(maps))
    place = targets() - targets().mean(0)
    before = flat(maps)
    scale = np.linalg.norm(before - before.mean(0)) * np.linalg.norm(place)
    assert np.abs((after - after.mean(0)).T @ place).max() < 1e-14 * scale
    assert LinearRegression().fit(after, targets()).score(after, targets()) < 1e-10
    np.testing.assert_allclose(debias.positional_r2_[0], regress(before, targets(), 0)[0])
    assert debias.positional_r2_.shape == (2,) and debias.positional_r2_[1] < 1e-10


def test_leace_keeps_the_mean_and_is_idempotent(maps):
    debias = PositionalDebias("leace").fit(maps)
    after = debias.transform(maps)
    np.testing.assert_allclose(flat(after).mean(0), flat(maps).mean(0), rtol=1e-10)
    np.testing.assert_allclose(debias.transform(after), after, atol=1e-10)
    assert np.linalg.matrix_rank(debias.projection_) == D - 2


def test_leace_changes_tokens_less_than_any_other_map_that_does_it(maps):
    before = flat(maps) - flat(maps).mean(0)
    place = targets() - targets().mean(0)
    leace = flat(PositionalDebias("leace").fit_transform(maps)) - flat(maps).mean(0)
    change = ((leace - before) ** 2).sum()
    cross = before.T @ place
    # Orthogonal projection off the covariance, and the residual of a random mixture of both.
    span = np.linalg.qr(cross)[0]
    assert change < ((before @ span @ span.T) ** 2).sum()
    rng = np.random.default_rng(0)
    for _ in range(20):
        inner = rng.normal(size=(D, D))
        inner = inner @ inner.T
        oblique = inner @ cross @ np.linalg.inv(cross.T @ inner @ cross) @ cross.T
        other = before - before @ oblique
        assert np.abs(other.T @ place).max() < 1e-6 * np.abs(cross).max()
        assert change <= ((other - before) ** 2).sum() * (1 + 1e-9)


def test_leace_depends_on_no_units_of_the_positions(maps):
    place = positions_of()
    given = PositionalDebias("leace", positions=place * [100.0, 1e-3] + 7).fit(maps)
    expected = PositionalDebias("leace").fit(maps)
    np.testing.assert_allclose(given.projection_, expected.projection_, atol=1e-10)


# Positions, prefix and masks.


def test_positions_may_be_given(maps):
    X = maps.reshape(N, H * W, D)
    given = PositionalDebias(positions=positions_of()).fit(X)
    np.testing.assert_allclose(given.projection_, PositionalDebias().fit(maps).projection_)


def test_one_coordinate_costs_one_direction_a_round():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 7, 4)) + np.arange(7)[:, None] * [1.0, 0.0, 0.0, 2.0]
    for positions in (np.arange(7), np.arange(7)[:, None], list(range(7))):
        debias = PositionalDebias(n_iter=2, tol=0, positions=positions).fit(X)
        assert np.linalg.matrix_rank(debias.projection_) == 2


def test_maps_of_one_row_have_one_coordinate():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(50, 1, 7, 4)) + np.arange(7)[:, None] * [1.0, 0.0, 0.0, 2.0]
    debias = PositionalDebias(n_iter=1, tol=0).fit(maps)
    expected = PositionalDebias(n_iter=1, tol=0, positions=np.arange(7)).fit(maps)
    np.testing.assert_allclose(debias.projection_, expected.projection_, atol=1e-12)


@pytest.mark.parametrize("step", [PositionalDebias(), PositionalMeanRemoval()])
def test_class_token_is_neither_learned_from_nor_changed(maps, step):
    patches = maps.reshape(N, H * W, D)
    extra = np.random.default_rng(1).normal(size=(N, 2, D)) * 1e6
    X = TokenArray.from_array(
        np.concatenate([extra, patches], axis=1), n_prefix_tokens=2, grid=(H, W)
    )
    out = np.asarray(step.fit_transform(X))
    np.testing.assert_array_equal(out[:, :2], extra)
    np.testing.assert_allclose(out[:, 2:], step.fit_transform(maps).reshape(N, H * W, D), atol=1e-9)


@pytest.mark.parametrize("method", ["rasa", "leace"])
def test_masked_tokens_teach_nothing(maps, method):
    X = maps.reshape(N, H * W, D)
    mask = np.random.default_rng(1).random((N, H * W)) < 0.7
    dirty = TokenArray.from_array(np.where(mask[..., None], X, np.nan), mask=mask, grid=(H, W))
    debias = PositionalDebias(method, n_iter=1, tol=0).fit(dirty)
    share, _ = regress(X[mask], np.tile(positions_of(), (N, 1, 1))[mask], 1e-6)
    np.testing.assert_allclose(debias.positional_r2_[0], share, rtol=1e-3)
    np.testing.assert_allclose(debias.mean_, X[mask].mean(0))


def test_samples_of_many_lengths_use_the_first_positions():
    rng = np.random.default_rng(0)
    samples = [
        rng.normal(size=(n, 3)) + np.arange(n)[:, None] * [2.0, 0.0, 0.0]
        for n in rng.integers(2, 9, 60)
    ]
    debias = PositionalDebias(n_iter=1, tol=0, positions=np.arange(20)).fit(samples)
    rows = np.concatenate(samples)
    place = np.concatenate([np.arange(len(sample)) for sample in samples])
    expected, direction = regress(rows, place, 1e-6)
    np.testing.assert_allclose(debias.positional_r2_[0], expected, rtol=1e-9)
    np.testing.assert_allclose(direction @ debias.projection_, 0.0, atol=1e-12)


def test_mean_far_from_zero_costs_few_digits(maps):
    shifted = (maps + 1e4).astype(np.float32)
    debias = PositionalDebias("leace").fit(shifted)
    exact = PositionalDebias("leace").fit(shifted.astype(np.float64))
    np.testing.assert_allclose(debias.projection_, exact.projection_, atol=1e-9)
    np.testing.assert_allclose(
        debias.transform(shifted), exact.transform(shifted.astype(np.float64)), rtol=1e-6
    )


@pytest.mark.parametrize("method", ["rasa", "leace"])
def test_lazy_result_is_pooled_as_the_tokens_would_be(maps, method):
    X = TokenArray.from_map(maps)
    step = PositionalDebias(method).fit(X)
    expected = step.transform(maps).reshape(N, H * W, D).mean(1)
    vectors = make_pipeline(step, TokenPooling()).fit(X).transform(X)
    np.testing.assert_allclose(vectors, expected, atol=1e-10)


@pytest.mark.parametrize(
    "X", [np.zeros((4, 6, 3)), [np.zeros((2, 3)), np.zeros((5, 3))], np.zeros((4, 3))]
)
def test_tokens_without_a_grid_need_positions(X):
    with pytest.raises(ValueError, match="no grid to take positions from"):
        PositionalDebias().fit(X)


@pytest.mark.parametrize(
    "positions",
    [np.arange(5), np.arange(7), np.zeros((6, 1, 1)), [0, 1, 2, 3, 4, np.nan], np.zeros((2, 6))],
)
def test_positions_of_other_tokens_are_refused(positions):
    with pytest.raises(ValueError, match="positions has shape"):
        PositionalDebias(positions=positions).fit(np.ones((4, 6, 3)))


def test_positions_that_are_all_equal_are_refused():
    with pytest.raises(ValueError, match="All positions are equal"):
        PositionalDebias(positions=np.ones(6)).fit(np.ones((4, 6, 3)))
    with pytest.raises(ValueError, match="All positions are equal"):
        PositionalDebias().fit(np.ones((4, 1, 1, 3)))
    mask = np.zeros((4, 6), dtype=bool)
    mask[:, 2] = True
    X = TokenArray.from_array(np.ones((4, 6, 3)), mask=mask)
    with pytest.raises(ValueError, match="at one place"):
        PositionalDebias(positions=np.arange(6) / 7).fit(X)


@pytest.mark.parametrize("step", [PositionalDebias(), PositionalMeanRemoval()])
def test_tokens_that_teach_nothing_are_refused(step):
    all_prefix = TokenArray.from_array(np.ones((4, 2, 3)), n_prefix_tokens=2)
    with pytest.raises(ValueError, match="prefix tokens"):
        step.fit(all_prefix)
    nothing = TokenArray.from_array(
        np.ones((4, 6, 3)), mask=np.zeros((4, 6), dtype=bool), grid=(2, 3)
    )
    with pytest.raises(ValueError, match="no real token"):
        step.fit(nothing)


@pytest.mark.parametrize("step", [PositionalDebias(), PositionalMeanRemoval()])
def test_transform_before_fit_is_refused(step, maps):
    with pytest.raises(NotFittedError):
        step.transform(maps)


@pytest.mark.parametrize(
    "parameters",
    [{"method": "inlp"}, {"n_iter": 0}, {"tol": -1}, {"alpha": -1e-6}, {"batch_size": 0}],
)
def test_bad_parameter_is_refused(maps, parameters):
    with pytest.raises(InvalidParameterError, match=next(iter(parameters))):
        PositionalDebias(**parameters).fit(maps)


# The analysis of variance.

TOKENS = arrays(np.float64, (4, 5, 3), elements=st.floats(-100.0, 100.0))


@settings(deadline=None, max_examples=60)
@given(h=TOKENS)
def test_parts_add_up_to_the_tokens(h):
    mean, position, context, residual = position_context_decomposition(h)
    whole = mean + position[None] + context[:, None] + residual
    np.testing.assert_allclose(whole, h, atol=1e-10)


@settings(deadline=None, max_examples=60)
@given(h=TOKENS)
def test_squares_of_the_parts_add_up(h):
    n_contexts, n_positions, _ = h.shape
    mean, position, context, residual = position_context_decomposition(h)
    total = ((h - mean) ** 2).sum()
    parts = n_contexts * (position**2).sum() + n_positions * (context**2).sum()
    np.testing.assert_allclose(parts + (residual**2).sum(), total, rtol=1e-10, atol=1e-8)


@settings(deadline=None, max_examples=40)
@given(h=TOKENS)
def test_mean_pooling_less_the_mean_is_the_context(h):
    parts = position_context_decomposition(h)
    pooled = TokenPooling().fit_transform(h)
    np.testing.assert_allclose(pooled - parts.mean, parts.context, atol=1e-11)


def test_made_up_parts_are_found_again():
    rng = np.random.default_rng(0)
    position, context = rng.normal(size=(6, 3)), rng.normal(size=(4, 3))
    position, context = position - position.mean(0), context - context.mean(0)
    h = 5.0 + position[None] + context[:, None]
    parts = position_context_decomposition(h)
    np.testing.assert_allclose(parts.mean, 5.0)
    np.testing.assert_allclose(parts.position, position, atol=1e-12)
    np.testing.assert_allclose(parts.context, context, atol=1e-12)
    np.testing.assert_allclose(parts.residual, 0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("float16", "float32"), ("float32", "float32"), ("float64", "float64"), ("int64", "float64")],
)
def test_parts_have_the_float_type_of_the_tokens(given, expected):
    h = np.arange(24).reshape(2, 4, 3).astype(given)
    parts = position_context_decomposition(h)
    assert {part.dtype for part in parts} == {np.dtype(expected)}
    np.testing.assert_allclose(parts.mean, [10.5, 11.5, 12.5])


def test_parts_of_a_tensor_are_tensors():
    h = torch.arange(24.0).reshape(2, 4, 3)
    assert all(isinstance(part, torch.Tensor) for part in position_context_decomposition(h))


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 2, 2), (0, 2, 2), (2, 0, 2)])
def test_other_shapes_are_not_decomposed(shape):
    with pytest.raises(ValueError, match="H has shape"):
        position_context_decomposition(np.ones(shape))


def test_tokens_that_are_not_finite_are_not_decomposed():
    h = np.ones((4, 2, 3))
    h[2, 1, 0] = np.nan
    with pytest.raises(ValueError, match="Input H contains NaN in row 2"):
        position_context_decomposition(h)


# Means of places.


def test_removal_leaves_context_and_residual(maps):
    X = maps.reshape(N, H * W, D)
    parts = position_context_decomposition(X)
    step = PositionalMeanRemoval().fit(X)
    np.testing.assert_allclose(step.mean_, parts.mean, rtol=1e-12)
    np.testing.assert_allclose(step.position_means_ - step.mean_, parts.position, atol=1e-12)
    expected = parts.context[:, None] + parts.residual
    np.testing.assert_allclose(step.transform(X), expected, atol=1e-11)
    pooled = make_pipeline(step, TokenPooling()).fit_transform(X)
    np.testing.assert_allclose(pooled, parts.context, atol=1e-11)


@pytest.mark.parametrize(
    ("remove", "removed"),
    [
        ("mean", lambda p: p.mean),
        (("mean",), lambda p: p.mean),
        ("position", lambda p: p.position),
        (("position", "mean"), lambda p: p.position + p.mean),
    ],
)
def test_either_part_can_be_removed(maps, remove, removed):
    X = maps.reshape(N, H * W, D)
    expected = X - removed(position_context_decomposition(X))
    np.testing.assert_allclose(PositionalMeanRemoval(remove).fit_transform(X), expected, atol=1e-11)


def test_means_are_over_the_real_tokens_of_each_place(maps):
    X = maps.reshape(N, H * W, D)
    mask = np.random.default_rng(1).random((N, H * W)) < 0.5
    mask[:, 3] = False
    tokens = TokenArray.from_array(np.where(mask[..., None], X, np.nan), mask=mask)
    step = PositionalMeanRemoval().fit(tokens)
    np.testing.assert_allclose(step.mean_, X[mask].mean(0))
    for place in range(H * W):
        real = X[mask[:, place], place]
        expected = real.mean(0) if len(real) else step.mean_
        np.testing.assert_allclose(step.position_means_[place], expected)


@pytest.mark.parametrize("size", [(5, 6), (10, 12), (3, 4), (6, 5), (1, 1), (5, 12)])
def test_means_are_interpolated_between_the_centres_of_the_cells(maps, size):
    step = PositionalMeanRemoval("position").fit(maps)
    other = np.random.default_rng(1).normal(size=(2, *size, D))
    removed = (other - step.transform(other))[0]
    centres = [(np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(size, (H, W), strict=True)]
    # Outside the outermost centres nothing is extrapolated.
    clipped = [np.clip(c, 0, m - 1) for c, m in zip(centres, (H, W), strict=True)]
    grid = np.meshgrid(*clipped, indexing="ij")
    known = (step.position_means_ - step.mean_).reshape(H, W, D)
    expected = np.stack([map_coordinates(known[..., j], grid, order=1) for j in range(D)], axis=-1)
    np.testing.assert_allclose(removed, expected, atol=1e-10)


def test_mean_alone_fits_any_number_of_tokens(maps):
    step = PositionalMeanRemoval("mean").fit(maps)
    other = np.random.default_rng(1).normal(size=(2, 17, D))
    np.testing.assert_allclose(step.transform(other), other - step.mean_)


def test_other_numbers_of_tokens_without_a_grid_are_refused(maps):
    on_grid = PositionalMeanRemoval().fit(maps)
    off_grid = PositionalMeanRemoval().fit(maps.reshape(N, H * W, D))
    for step, X in [
        (on_grid, np.zeros((2, 17, D))),
        (off_grid, np.zeros((2, 17, D))),
        (off_grid, np.zeros((2, 40, D))),
        (off_grid, np.zeros((2, 4, 4, D))),
        (on_grid, [np.zeros((4, D)), np.zeros((7, D))]),
    ]:
        with pytest.raises(ValueError, match="nothing to interpolate on"):
            step.transform(X)


def test_samples_of_many_lengths_may_be_shorter_and_not_longer():
    rng = np.random.default_rng(0)
    samples = [rng.normal(size=(n, 3)) + np.arange(n)[:, None] for n in (2, 7, 5)]
    step = PositionalMeanRemoval().fit(samples)
    assert step.position_means_.shape == (7, 3)
    short = step.transform([samples[0]])
    np.testing.assert_allclose(np.asarray(short)[0], samples[0] - step.position_means_[:2])
    with pytest.raises(ValueError, match="X has 8 patches a sample"):
        step.transform([np.zeros((8, 3)), samples[0]])


def test_means_in_float32_are_those_of_float64(maps):
    shifted = (maps + 1000).astype(np.float32)
    wide = shifted.astype(np.float64).reshape(N, H * W, D)
    step = PositionalMeanRemoval().fit(shifted)
    np.testing.assert_allclose(step.position_means_, wide.mean(0), rtol=1e-13)


@pytest.mark.parametrize("remove", [("mean", "context"), (), ("mean", 3)])
def test_tuple_with_an_unknown_part_is_refused(maps, remove):
    with pytest.raises(ValueError, match="remove="):
        PositionalMeanRemoval(remove).fit(maps)


@pytest.mark.parametrize("remove", ["context", None, ["mean"]])
def test_unknown_part_is_refused(maps, remove):
    with pytest.raises(InvalidParameterError, match="remove"):
        PositionalMeanRemoval(remove).fit(maps)
