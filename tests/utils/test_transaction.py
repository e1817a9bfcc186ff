# SPDX-License-Identifier: BSD-3-Clause
"""Calls that happen wholly or not at all."""

from types import SimpleNamespace

import pytest

from skpool.utils import unchanged_on_error


def failing(*objects, error=ValueError):
    with unchanged_on_error(*objects):
        for one in objects:
            one.kept = "changed"
            one.new = 1
            del one.lost
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_attributes_are_as_before_after_an_error(error):
    one, other = SimpleNamespace(kept=[1], lost=2), SimpleNamespace(kept=[3], lost=4)
    held = one.kept
    with pytest.raises(error):
        failing(one, other, error=error)
    assert vars(one) == {"kept": [1], "lost": 2} and vars(other) == {"kept": [3], "lost": 4}
    assert one.kept is held


def test_changes_stay_without_an_error():
    one = SimpleNamespace(kept=1)
    with unchanged_on_error(one):
        one.kept = 2
    assert one.kept == 2
