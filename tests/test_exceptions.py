# SPDX-License-Identifier: BSD-3-Clause
"""Errors with names of their own: caught by the built-in class, whole after a pickle."""

import pickle

import pytest

from skpool import exceptions
from skpool.exceptions import UnreadableInputError


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("BackboneError", ValueError),
        ("DamagedBlockWarning", UserWarning),
        ("MissingDependencyError", ImportError),
        ("StoreError", OSError),
        ("UnreadableInputError", ValueError),
    ],
)
def test_derives_from_the_built_in_class(name, base):
    assert name in exceptions.__all__
    assert issubclass(getattr(exceptions, name), base)


def test_failures_are_sorted_by_position():
    error = UnreadableInputError([(9, "b.png", "missing"), (2, "a.png", "cut short")])
    assert error.failures == [(2, "a.png", "cut short"), (9, "b.png", "missing")]


def test_message_names_every_input_and_the_remedy():
    error = UnreadableInputError([(9, "b.png", "missing"), (2, "a.png", "cut short")])
    assert "2 inputs" in str(error)
    assert "a.png: cut short; b.png: missing" in str(error)
    assert 'on_error="nan"' in str(error)


def test_one_failure_is_singular():
    assert str(UnreadableInputError([(0, "a.png", "missing")])).startswith("1 input could")


def test_long_list_is_cut_in_the_message_only():
    error = UnreadableInputError([(i, f"{i}.png", "missing") for i in range(1000)])
    assert len(error.failures) == 1000
    assert "980 more" in str(error)
    assert len(str(error)) < 2000


def test_pickle_keeps_failures_and_message():
    error = UnreadableInputError([(3, "a.png", "missing")])
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is UnreadableInputError
    assert back.failures == error.failures and str(back) == str(error)
