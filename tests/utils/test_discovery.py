# SPDX-License-Identifier: BSD-3-Clause
"""Discovery finds what the rooms export, and nothing else."""

import pytest
from sklearn.base import ClassifierMixin, TransformerMixin

from skpool import pooling
from skpool.utils.discovery import all_estimators, all_public_objects


def test_estimators_are_sorted_pairs_of_name_and_class():
    found = all_estimators()
    assert [name for name, _ in found] == sorted(cls.__name__ for _, cls in found)


def test_every_pooling_is_found():
    exported = {name for name in pooling.__all__ if name.endswith("Pooling")} - {"BasePooling"}
    assert exported <= dict(all_estimators()).keys()


def test_bases_and_helpers_are_left_out():
    names = dict(all_estimators())
    assert not {"BasePooling", "IncrementalMixin", "TokenArray", "Backbone"} & names.keys()


@pytest.mark.parametrize(
    ("kind", "mixin"), [("classifier", ClassifierMixin), ("transformer", TransformerMixin)]
)
def test_filter_keeps_one_kind(kind, mixin):
    kept = all_estimators(kind)
    assert kept == [pair for pair in all_estimators() if issubclass(pair[1], mixin)]
    assert kept


def test_filters_join():
    joint = all_estimators(["classifier", "transformer"])
    assert joint == sorted({*all_estimators("classifier"), *all_estimators("transformer")})


def test_unknown_filter_is_refused():
    with pytest.raises(ValueError, match="holds 'pooling'; choose from"):
        all_estimators("pooling")


def test_public_objects_are_those_of_all():
    found = dict(all_public_objects())
    assert found["skpool.pooling.POOLINGS"] is pooling.POOLINGS
    assert "skpool.stores.TokenArray" in found
    assert not any(part.startswith("_") for name in found for part in name.split("."))
