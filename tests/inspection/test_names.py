# SPDX-License-Identifier: BSD-3-Clause
"""Names of the values of a grid: short, readable, and never one for two things."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import StandardScaler

from skpool.inspection._names import names_of_values
from skpool.pooling import GeMPooling, GroupGeMPooling, Pooling, TokenPooling
from skpool.preprocessing import Whitening


def names_of(values, **given):
    return names_of_values(values, given)


def name(value, parameter="pool"):
    return names_of([{parameter: value}])[0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "none"),
        ("passthrough", "none"),
        ("gem", "gem"),
        (("cls", "mean"), "cls + mean"),
        (GeMPooling(), "GeM"),
        (GeMPooling(4.6), "GeM, p=4.6"),
        (GeMPooling(np.float64(2.0), negative="shift"), "GeM, p=2, negative=shift"),
        (GeMPooling(np.inf), "GeM, p=inf"),
        (GroupGeMPooling(2, p=[1.0, 3.0]), "GroupGeM, n_groups=2, p=(1, 3)"),
        (GroupGeMPooling(p=np.arange(12.0)), "GroupGeM, p=(0, 1, 2, ...)"),
        (Pooling(), "mean"),
        (Pooling("gem", p=4.6), "gem, p=4.6"),
        (Pooling("vlad", n_clusters=8, power=0.5), "vlad, n_clusters=8, power=0.5"),
        (TokenPooling(), "mean"),
        (TokenPooling("cls", scope="all"), "cls, scope=all"),
        (TokenPooling(("mean", "std")), "mean + std"),
        (Whitening(32, l2=True), "Whitening, n_components=32, l2=True"),
        (KNeighborsClassifier(3), "KNeighbors, n_neighbors=3"),
        (
            make_pipeline(StandardScaler(), LogisticRegression(C=0.01)),
            "StandardScaler + LogisticRegression, C=0.01",
        ),
        (make_union(TokenPooling("cls"), GeMPooling()), "cls & GeM"),
    ],
)
def test_value_of_a_step_has_its_name(value, expected):
    assert name(value) == expected


@pytest.mark.parametrize(
    ("parameter", "value", "expected"),
    [
        ("pool__p", 3.0, "p=3"),
        ("pool__strategy", "max", "max"),
        ("pool__strategy", ("cls", "max"), "cls + max"),
        ("whiten__n_components", None, "n_components=None"),
        ("clf__fit_prior", True, "fit_prior=True"),
        ("clf__estimator", GeMPooling(2.0), "GeM, p=2"),
    ],
)
def test_value_of_a_parameter_of_a_step_says_what_it_is(parameter, value, expected):
    assert name(value, parameter) == expected


def test_several_parameters_make_one_name():
    chosen = {"pool": GeMPooling(), "pool__p": 7.0}
    assert names_of([chosen, {"pool": None}]) == ["GeM, p=7", "none"]


def test_candidate_that_set_no_parameter_is_not_set():
    assert names_of([{}, {"pool": None}]) == ["not set", "none"]


def test_bookkeeping_is_named_only_where_nothing_else_differs():
    values = [LogisticRegression(max_iter=m, C=c) for m, c in [(50, 1.0), (60, 1.0), (70, 2.0)]]
    names = names_of([{"clf": value} for value in values])
    assert names == [
        "LogisticRegression, max_iter=50",
        "LogisticRegression, max_iter=60",
        "LogisticRegression, C=2",
    ]


def test_equal_configurations_share_a_name():
    values = [GeMPooling(3.0), GeMPooling(p=3.0), GeMPooling()]
    assert names_of([{"pool": value} for value in values]) == ["GeM"] * 3


def test_values_that_look_alike_are_numbered():
    class Whitened(Whitening):
        pass

    Whitened.__name__ = "Whitening"
    values = [Whitening(), Whitened(), Whitening(3), Whitening()]
    names = names_of([{"whiten": value} for value in values])
    assert names == [
        "Whitening (1)",
        "Whitening (2)",
        "Whitening, n_components=3",
        "Whitening (1)",
    ]


def test_two_functions_without_a_name_are_told_apart():
    values = [TokenPooling(lambda x, m: x[:, 0]), TokenPooling(lambda x, m: x[:, 1])]
    names = names_of([{"pool": value} for value in values])
    assert len(set(names)) == 2


def test_long_arrays_that_begin_alike_are_told_apart():
    exponents = np.ones((2, 12))
    exponents[1, -1] = 2.0
    names = names_of([{"pool": GroupGeMPooling(p=p)} for p in exponents])
    assert len(set(names)) == 2


def test_given_name_is_that_of_every_value_configured_alike():
    values = [GeMPooling(4.6), GeMPooling(p=4.6), GeMPooling(), None, "passthrough"]
    names = names_of([{"pool": v} for v in values], retrieval=GeMPooling(4.6), raw="passthrough")
    assert names == ["retrieval", "retrieval", "GeM", "raw", "raw"]


def test_given_name_that_another_value_has_is_numbered():
    names = names_of([{"pool": GeMPooling()}, {"pool": GeMPooling(4.6)}], GeM=GeMPooling(4.6))
    assert names == ["GeM (1)", "GeM (2)"]
