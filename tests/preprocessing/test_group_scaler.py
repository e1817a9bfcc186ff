# SPDX-License-Identifier: BSD-3-Clause
"""GroupStandardScaler and GroupCenterer against scikit-learn's StandardScaler, group by group."""

import pickle

import numpy as np
import pytest
import sklearn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skpool.preprocessing import GroupCenterer, GroupStandardScaler

NAMES = np.array(["north", "south", "east"])


def make(n=150, d=4, seed=0):
    """Rows of three groups, each with an offset and a spread of its own."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, n)
    spread = rng.uniform(0.5, 4, (3, d))[group]
    return rng.standard_normal((n, d)) * spread + 20 * rng.standard_normal((3, d))[group], group


@pytest.fixture
def data():
    return make()


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


# --- what it is ------------------------------------------------------------------------------


@pytest.mark.parametrize("with_std", [True, False])
def test_one_group_is_the_standard_scaler(data, with_std):
    X, _ = data
    model = GroupStandardScaler(with_std).fit(X, groups=np.zeros(len(X)))
    want = StandardScaler(with_std=with_std).fit(X)
    got = model.transform(X + 1, groups=np.zeros(len(X)))
    np.testing.assert_allclose(got, want.transform(X + 1), atol=1e-12)


def test_every_group_has_mean_0_and_variance_1(data):
    X, group = data
    Z = GroupStandardScaler().fit_transform(X, groups=NAMES[group])
    for g in range(3):
        np.testing.assert_allclose(Z[group == g].mean(0), 0.0, atol=1e-13)
        np.testing.assert_allclose(Z[group == g].var(0), 1.0, rtol=1e-12)


def test_new_rows_are_scaled_as_by_a_scaler_of_their_group(data):
    X, group = data
    new, of_new = make(seed=1)
    got = GroupStandardScaler().fit(X, groups=group).transform(new, groups=of_new)
    for g in range(3):
        want = StandardScaler().fit(X[group == g]).transform(new[of_new == g])
        np.testing.assert_allclose(got[of_new == g], want, atol=1e-11)


def test_full_shrinkage_is_pooled(data):
    X, group = data
    got = GroupStandardScaler(shrinkage=1.0).fit_transform(X, groups=group)
    np.testing.assert_allclose(got, StandardScaler().fit_transform(X), atol=1e-12)


@pytest.mark.parametrize("shrinkage", [0.3, "auto"])
def test_shrinkage_mixes_means_and_variances(data, shrinkage):
    X, group = data
    model = GroupStandardScaler(shrinkage=shrinkage).fit(X, groups=group)
    for g in range(3):
        rows = X[group == g]
        s = 10 / (10 + len(rows)) if shrinkage == "auto" else shrinkage
        np.testing.assert_allclose(model.means_[g], (1 - s) * rows.mean(0) + s * X.mean(0))
        variance = (1 - s) * rows.var(0) + s * X.var(0)
        np.testing.assert_allclose(model.scales_[g], np.sqrt(variance))


def test_attributes_of_all_rows_are_those_of_the_standard_scaler(data):
    X, group = data
    model, want = GroupStandardScaler().fit(X, groups=group), StandardScaler().fit(X)
    np.testing.assert_allclose(model.mean_, want.mean_, rtol=1e-12)
    np.testing.assert_allclose(model.scale_, want.scale_, rtol=1e-12)
    np.testing.assert_array_equal(model.groups_, [0, 1, 2])
    np.testing.assert_array_equal(model.counts_, np.bincount(group))


def test_group_can_no_more_be_told_from_rows_after_pure_offsets():
    rng = np.random.default_rng(0)
    group = np.arange(600) % 3
    X = rng.standard_normal((600, 4)) + 3 * rng.standard_normal((3, 4))[group]
    probe = LogisticRegression()
    assert cross_val_score(probe, X, group).mean() > 0.9
    Z = GroupStandardScaler().fit_transform(X, groups=group)
    # A standard error of chance (1 / 3) is .02.
    assert cross_val_score(probe, Z, group).mean() < 1 / 3 + 0.05


def test_group_centerer_subtracts_the_means_alone(data):
    X, group = data
    got = GroupCenterer().fit_transform(X, groups=group)
    for g in range(3):
        rows = X[group == g]
        np.testing.assert_allclose(got[group == g], rows - rows.mean(0), atol=1e-12)
    want = GroupStandardScaler(with_std=False).fit_transform(X, groups=group)
    np.testing.assert_array_equal(got, want)


# --- whitening -------------------------------------------------------------------------------


def correlated(seed=0):
    X, group = make(seed=seed)
    rng = np.random.default_rng(seed)
    return np.einsum("ij,ijk->ik", X, rng.standard_normal((3, 4, 4))[group]), group


def test_whitened_groups_have_the_identity_as_their_covariance():
    X, group = correlated()
    model = GroupStandardScaler(whiten=True).fit(X, groups=group)
    Z = model.transform(X, groups=group)
    for g in range(3):
        np.testing.assert_allclose(np.cov(Z[group == g].T, ddof=0), np.eye(4), atol=1e-10)
        np.testing.assert_allclose(Z[group == g].mean(0), 0.0, atol=1e-11)
    assert not hasattr(model, "scales_")
    assert not hasattr(model, "scale_")


def test_groups_are_whitened_by_the_symmetric_root_shrunk_towards_all_rows():
    X, group = correlated()
    Z = GroupStandardScaler(whiten=True, shrinkage=0.4).fit_transform(X, groups=group)
    for g in range(3):
        rows = X[group == g]
        S = 0.6 * np.cov(rows.T, ddof=0) + 0.4 * np.cov(X.T, ddof=0)
        values, vectors = np.linalg.eigh(S)
        W = vectors / np.sqrt(values) @ vectors.T
        want = (rows - 0.6 * rows.mean(0) - 0.4 * X.mean(0)) @ W
        np.testing.assert_allclose(Z[group == g], want, atol=1e-9)


def test_whitening_of_few_rows_with_shrinkage_is_finite():
    X, group = correlated()
    keep = np.r_[np.flatnonzero(group == 0), np.flatnonzero(group == 1)[:2]]
    model = GroupStandardScaler(whiten=True, shrinkage="auto").fit(X[keep], groups=group[keep])
    assert np.abs(model.transform(X, groups=np.minimum(group, 1))).max() < 1e3


def test_whitening_without_shrinkage_leaves_directions_without_variance_at_0():
    X, group = correlated()
    rows = np.flatnonzero(group == 1)[:3]
    keep = np.r_[np.flatnonzero(group == 0), rows]
    model = GroupStandardScaler(whiten=True)
    with pytest.warns(
        UserWarning, match="1 groups have no more rows than the 4 features"
    ) as caught:
        model.fit(X[keep], groups=group[keep])
    assert [warning.filename for warning in caught] == [__file__]
    Z = model.transform(X[keep], groups=group[keep])
    values = np.linalg.eigvalsh(np.cov(Z[-3:].T, ddof=0))
    np.testing.assert_allclose(values, [0, 0, 1, 1], atol=1e-9)


# --- groups of one, constants, unseen ones ---------------------------------------------------


def test_group_of_one_row_has_the_deviations_of_all_rows(data):
    X, group = data
    group = group.copy()
    group[0] = 7
    model = GroupStandardScaler().fit(X, groups=group)
    np.testing.assert_array_equal(model.scales_[3], model.scale_)
    got = model.transform(X[:1] + 2.0, groups=[7])
    np.testing.assert_allclose(got[0], 2.0 / X.std(0), rtol=1e-10)


def test_feature_constant_in_a_group_has_the_deviation_of_all_rows(data):
    X, group = data
    X[group == 1, 2] = 0.1
    model = GroupStandardScaler().fit(X, groups=group)
    assert model.scales_[1, 2] == model.scale_[2] == pytest.approx(X[:, 2].std())


def test_feature_constant_everywhere_is_not_divided(data):
    X, group = data
    X[:, 2] = 0.1
    Z = GroupStandardScaler().fit_transform(X, groups=group)
    np.testing.assert_allclose(Z[:, 2], 0.0, atol=1e-12)


def test_unseen_group_is_scaled_by_the_statistics_of_all_rows(data):
    X, group = data
    new, _ = make(20, seed=1)
    got = GroupStandardScaler().fit(X, groups=NAMES[group]).transform(new, groups=["west"] * 20)
    np.testing.assert_allclose(got, StandardScaler().fit(X).transform(new), atol=1e-11)


@pytest.mark.parametrize("whiten", [False, True])
def test_unseen_group_of_a_batch_has_statistics_of_its_own(data, whiten):
    X, group = data
    new, of_new = make(60, seed=1)
    new_names = np.where(of_new == 0, "north", "west")
    model = GroupStandardScaler(unseen="batch", whiten=whiten).fit(X, groups=NAMES[group])
    got = model.transform(new, groups=new_names)[of_new != 0]
    alone = GroupStandardScaler(whiten=whiten).fit_transform(
        new[of_new != 0], groups=np.zeros((of_new != 0).sum())
    )
    np.testing.assert_allclose(got, alone, atol=1e-10)


def test_unseen_group_is_refused_where_asked(data):
    X, group = data
    model = GroupStandardScaler(unseen="error").fit(X, groups=NAMES[group])
    with pytest.raises(ValueError, match=r"'west', which is not among the 3 groups"):
        model.transform(X[:2], groups=["north", "west"])


# --- class_weighted --------------------------------------------------------------------------


def uneven(seed=0):
    """Two groups with an offset; nine tenths of one are class 0, nine tenths of the other 1."""
    rng = np.random.default_rng(seed)
    group = np.arange(400) % 2
    y = (rng.uniform(size=400) < np.where(group == 0, 0.1, 0.9)).astype(int)
    noise = 0.3 * rng.standard_normal((400, 3))
    return noise + y[:, None] * [2.0, 0, 0] + group[:, None] * [5.0, 1, 1], y, group


def test_plain_means_take_class_signal_with_them_and_class_means_do_not():
    X, y, group = uneven()
    got = GroupCenterer(class_weighted=True).fit(X, y, groups=group)
    for g in range(2):
        means = [X[(group == g) & (y == c)].mean(0) for c in range(2)]
        np.testing.assert_allclose(got.means_[g], np.mean(means, axis=0), rtol=1e-10)
    plain = GroupCenterer().fit(X, groups=group)
    # What is taken off differs by the offset of the groups alone, which is (5, 1, 1).
    assert abs(np.diff(got.means_[:, 0])[0] - 5) < 0.1 < abs(np.diff(plain.means_[:, 0])[0] - 5)


@pytest.mark.parametrize("whiten", [False, True])
def test_spread_of_weighted_classes_equals_numpy_weights(whiten):
    X, y, group = uneven()
    model = GroupStandardScaler(class_weighted=True, whiten=whiten).fit(X, y, groups=group)
    Z = model.transform(X, groups=group)
    for rows, labels in ((Z[group == g], y[group == g]) for g in range(2)):
        weights = 1 / np.bincount(labels)[labels]
        covariance = np.cov(rows.T, aweights=weights, ddof=0)
        got = covariance if whiten else np.diag(covariance)
        np.testing.assert_allclose(got, np.eye(3) if whiten else 1.0, atol=1e-9)


def test_weighted_shrinkage_goes_to_the_weighted_statistics_of_all_rows():
    X, y, group = uneven()
    model = GroupStandardScaler(class_weighted=True, shrinkage=1.0).fit(X, y, groups=group)
    weights = 1 / np.bincount(y)[y]
    mean = np.average(X, axis=0, weights=weights)
    deviation = np.sqrt(np.average((X - mean) ** 2, axis=0, weights=weights))
    for g in range(2):
        np.testing.assert_allclose(model.means_[g], mean, rtol=1e-10)
        np.testing.assert_allclose(model.scales_[g], deviation, rtol=1e-10)


def test_weighted_classes_need_labels_of_one_kind():
    X, y, group = uneven()
    model = GroupCenterer(class_weighted=True).fit(X, y, groups=group)
    before = pickle.dumps(model)
    with pytest.raises(ValueError, match="y is of"):
        model.partial_fit(X, y.astype(str), groups=group)
    assert pickle.dumps(model) == before


def test_parameters_set_after_fit_wait_for_the_next_fit(data):
    X, group = data
    model = GroupStandardScaler().fit(X, groups=group)
    want = model.transform(X, groups=group)
    got = model.set_params(whiten=True).transform(X, groups=group)
    np.testing.assert_array_equal(got, want)


def test_weighted_classes_need_labels():
    X, _, group = uneven()
    with pytest.raises(ValueError, match="requires y to be passed"):
        GroupCenterer(class_weighted=True).fit(X, groups=group)


# --- learning in parts -----------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    cuts=st.lists(st.integers(1, 59), max_size=5),
    seed=st.integers(0, 1000),
    class_weighted=st.booleans(),
    whiten=st.booleans(),
)
def test_partial_fit_in_any_partition_equals_fit(cuts, seed, class_weighted, whiten):
    X, group = make(60, 3, seed=seed)
    y = np.random.default_rng(seed).integers(0, 2, 60)
    model = GroupStandardScaler(shrinkage=0.2, class_weighted=class_weighted, whiten=whiten)
    want = clone(model).fit(X, y, groups=NAMES[group])
    order = np.random.default_rng(seed + 1).permutation(60)
    for part in np.split(order, sorted(cuts)):
        if len(part):
            model.partial_fit(X[part], y[part], groups=NAMES[group[part]])
    np.testing.assert_array_equal(model.groups_, want.groups_)
    np.testing.assert_array_equal(model.counts_, want.counts_)
    np.testing.assert_allclose(
        model.transform(X, groups=NAMES[group]),
        want.transform(X, groups=NAMES[group]),
        atol=1e-7,
    )


def test_refused_part_changes_nothing(data):
    X, group = data
    model = GroupStandardScaler().fit(X, groups=NAMES[group])
    before = pickle.dumps(model)
    nan = X.copy()
    nan[5, 1] = np.nan
    bad = [
        (nan, NAMES[group], "row 5"),
        (X[:, :2], NAMES[group], "features"),
        (X, NAMES[group[:9]], "9; give one per row"),
        (X, group, "name them in one"),
        (X, None, "needs the group of every row"),
        (X, np.where(group == 0, np.nan, group), "without NaN"),
        (X, [None, "a"] + ["b"] * 148, "mixes text"),
    ]
    for rows, groups, message in bad:
        with pytest.raises(ValueError, match=message):
            model.partial_fit(rows, groups=groups)
    assert pickle.dumps(model) == before


def test_groups_missing_at_transform_are_asked_for(data):
    X, group = data
    model = GroupStandardScaler().fit(X, groups=group)
    with pytest.raises(ValueError, match=r"set_transform_request\(groups=True\).*group_column"):
        model.transform(X)


# --- group_column and metadata routing -------------------------------------------------------


@pytest.mark.parametrize(("column", "at"), [(0, 0), (2, 2), (-1, 4), (-5, 0)])
def test_group_column_carries_the_group(data, column, at):
    X, group = data
    carried = np.insert(X, at, group, axis=1)
    got = GroupStandardScaler(group_column=column).fit_transform(carried)
    want = GroupStandardScaler().fit_transform(X, groups=group)
    np.testing.assert_array_equal(got, want)


def test_group_column_of_a_tensor_equals_that_of_an_array(data):
    X, group = data
    carried = np.insert(X, 1, group, axis=1)
    model = GroupStandardScaler(group_column=1)
    got = model.fit_transform(torch.from_numpy(carried))
    assert isinstance(got, torch.Tensor)
    np.testing.assert_array_equal(got, model.fit_transform(carried))


def test_group_column_has_no_name_in_the_result(data):
    pd = pytest.importorskip("pandas")
    X, group = data
    frame = pd.DataFrame(np.insert(X, 1, group, axis=1), columns=list("agbcd"))
    model = GroupStandardScaler(group_column=1).set_output(transform="pandas")
    assert list(model.fit_transform(frame).columns) == list("abcd")


@pytest.mark.parametrize(
    ("column", "groups", "message"),
    [
        (4, None, "names no column"),
        (-5, None, "names no column"),
        (0, np.zeros(150), "given twice"),
    ],
)
def test_group_column_that_does_not_fit_is_refused(data, column, groups, message):
    with pytest.raises(ValueError, match=message):
        GroupStandardScaler(group_column=column).fit(data[0], groups=groups)


def test_groups_are_routed_through_a_pipeline(data, routing):
    X, group = data
    y = (X[:, 0] > np.median(X[:, 0])).astype(int)
    scaler = GroupStandardScaler().set_fit_request(groups=True).set_transform_request(groups=True)
    model = make_pipeline(scaler, LogisticRegression()).fit(X, y, groups=NAMES[group])
    Z = GroupStandardScaler().fit_transform(X, groups=NAMES[group])
    want = LogisticRegression().fit(Z, y).predict(Z)
    np.testing.assert_array_equal(model.predict(X, groups=NAMES[group]), want)


def test_group_column_works_in_a_search(data):
    X, group = data
    y = (X[:, 0] > np.median(X[:, 0])).astype(int)
    pipeline = make_pipeline(GroupStandardScaler(group_column=0), LogisticRegression())
    grid = {"groupstandardscaler__shrinkage": [0.0, 0.5, "auto"]}
    search = GridSearchCV(pipeline, grid, error_score="raise")
    search.fit(np.insert(X, 0, group, axis=1), y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


# --- containers ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("whiten", [False, True])
def test_offset_of_1000_standard_deviations_costs_no_digits(dtype, whiten):
    X, group = make(400, seed=3)
    X = ((X - X.mean(0)) / X.std(0) + 1000).astype(dtype)
    Z = GroupStandardScaler(whiten=whiten).fit_transform(X, groups=group)
    assert Z.dtype == dtype
    for g in range(3):
        rows = Z[group == g].astype(np.float64)
        np.testing.assert_allclose(rows.mean(0), 0.0, atol=1e-5)
        np.testing.assert_allclose(np.diag(np.cov(rows.T, ddof=0)), 1.0, atol=1e-5)


def test_groups_may_be_a_tensor_or_objects(data):
    X, group = data
    want = GroupCenterer().fit_transform(X, groups=NAMES[group])
    got = GroupCenterer().fit_transform(X, groups=NAMES[group].astype(object))
    np.testing.assert_array_equal(got, want)
    got = GroupCenterer().fit_transform(torch.from_numpy(X), groups=torch.from_numpy(group))
    np.testing.assert_array_equal(got, GroupCenterer().fit_transform(X, groups=group))


def test_many_rows_are_scaled_in_blocks():
    X, group = make(9000)
    Z = GroupStandardScaler().fit_transform(X, groups=group)
    for g in range(3):
        np.testing.assert_allclose(Z[group == g].std(0), 1.0, rtol=1e-10)


@pytest.mark.parametrize("options", [{"shrinkage": 1.5}, {"unseen": "mean"}, {"group_column": "g"}])
def test_options_that_do_not_fit_are_refused(data, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        GroupCenterer(**options).fit(data[0], groups=data[1])
