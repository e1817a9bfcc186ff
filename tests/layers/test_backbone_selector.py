# SPDX-License-Identifier: BSD-3-Clause
"""BackboneSelector: blocks of unequal widths, in every form, as layers are chosen."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skpool.layers import BackboneSelector, LayerSelector
from skpool.stores import TokenArray

N = 60
Y = np.arange(N) % 3
WIDTHS = [4, 7, 5]


def blocks(place=1):
    rng = np.random.default_rng(0)
    made = [rng.normal(size=(N, width)) for width in WIDTHS]
    made[place][:, :3] += 4 * np.eye(3)[Y]
    return made


@pytest.mark.parametrize("criterion", ["knn", "ridge", "ncm"])
@pytest.mark.parametrize("place", range(3))
def test_informative_block_is_chosen(criterion, place):
    X = blocks(place)
    model = BackboneSelector(criterion).fit(X, Y)
    assert model.best_block_ == place
    np.testing.assert_array_equal(model.transform(X), X[place])


def test_list_dict_and_wide_matrix_agree():
    X = blocks(2)
    expected = BackboneSelector().fit(X, Y).scores_
    forms = {
        "tuple": tuple(X),
        "dict": dict(zip("abc", X, strict=True)),
        "tensors": [torch.from_numpy(block) for block in X],
    }
    for form in forms.values():
        np.testing.assert_array_equal(BackboneSelector().fit(form, Y).scores_, expected)
    wide = BackboneSelector(blocks=WIDTHS).fit(np.hstack(X), Y)
    np.testing.assert_array_equal(wide.scores_, expected)
    np.testing.assert_array_equal(wide.transform(np.hstack(X)), X[2])


def test_blocks_of_one_array_are_scored_as_layers():
    X = np.random.default_rng(0).normal(size=(N, 4, 5))
    X[:, 2, :3] += np.eye(3)[Y]
    for criterion in ("knn", "rankme", "lidar"):
        np.testing.assert_array_equal(
            BackboneSelector(criterion).fit(X, Y).scores_,
            LayerSelector(criterion).fit(X, Y).scores_,
        )


def test_selected_blocks_stand_side_by_side():
    X = blocks(1)
    X[2][:, :3] += 3 * np.eye(3)[Y]
    for options in ({"rule": "top_k", "k": 2}, {"rule": "above_chance"}):
        model = BackboneSelector(**options).fit(X, Y)
        assert model.selected_.tolist() == [1, 2]
        np.testing.assert_array_equal(model.transform(X), np.hstack(X[1:]))
        assert len(model.get_feature_names_out()) == 12


def test_tensors_give_tensors_and_half_precision_float32():
    X = [torch.from_numpy(block).half() for block in blocks()]
    out = BackboneSelector().fit(X, Y).transform(X)
    assert isinstance(out, torch.Tensor)
    assert out.dtype == torch.float32


def test_feature_union_is_chosen_from_within_every_fold():
    X = np.hstack(blocks(1))
    union = FeatureUnion([("first", FunctionTransformer(lambda X: X[:, :4])), ("second", PCA(6))])
    model = make_pipeline(union, BackboneSelector(blocks=[4, 6]), LogisticRegression())
    assert cross_val_score(model, X, Y, cv=3, error_score="raise").mean() > 0.9


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ([], "give"),
        ({}, "no block"),
        ([np.zeros((4, 2)), np.zeros((5, 2))], "unequal numbers"),
        ([np.zeros((4, 2)), np.zeros((4, 0))], "shape"),
        ({"a": np.zeros(4)}, "shape"),
        ([np.zeros((4, 2)), np.full((4, 2), np.nan)], "NaN"),
        ([np.array([["a"], ["b"]])], "numbers"),
        (np.zeros((4, 2)), "blocks"),
        (TokenArray.from_array(np.zeros((4, 2, 3))), "vectors"),
    ],
)
def test_other_forms_are_refused(X, message):
    with pytest.raises(ValueError, match=message):
        BackboneSelector("rankme").fit(X)


@pytest.mark.parametrize("widths", [[4, 7], [4, 7, 6], [16, 0], [-1, 17]])
def test_widths_that_do_not_add_up_are_refused(widths):
    with pytest.raises(ValueError, match="16 features"):
        BackboneSelector(blocks=widths).fit(np.hstack(blocks()), Y)


def test_rank_of_blocks_of_unequal_widths_is_refused():
    with pytest.raises(ValueError, match="equal width"):
        BackboneSelector("rankme").fit(blocks())


def test_other_blocks_than_fitted_are_refused():
    model = BackboneSelector().fit(blocks(), Y)
    with pytest.raises(ValueError, match="expecting"):
        model.transform(blocks()[:2])
    with pytest.raises(ValueError, match="expecting"):
        model.transform(dict(zip("abc", blocks(), strict=True)))
