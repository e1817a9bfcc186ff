# SPDX-License-Identifier: BSD-3-Clause
"""The map from keys to places against a dict, above all where keys are alike."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skpool.stores._keymap import KeyMap


def _keys(numbers, form):
    """Keys that differ in their first half, in their second, or in either."""
    numbers = np.asarray(numbers, dtype=np.uint64).reshape(-1)
    pairs = np.zeros((len(numbers), 2), dtype=np.uint64)
    if form == "mixed":
        pairs[:, 0], pairs[:, 1] = numbers % 3, numbers // 3
    else:
        pairs[:, int(form == "tails")] = numbers
    return pairs.view("V16").ravel()


_BLOCKS = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=12), max_size=12)


@pytest.mark.parametrize("form", ["heads", "tails", "mixed"])
@given(blocks=_BLOCKS)
@settings(deadline=None, max_examples=60)
def test_what_was_added_last_is_found(form, blocks):
    found, known = KeyMap(), {}
    for block, numbers in enumerate(blocks):
        found.add([(block, _keys(numbers, form))])
        known.update({number: (block, row) for row, number in enumerate(numbers)})
    wanted = np.random.default_rng(len(blocks)).permutation(40)
    where, row = found.find(_keys(wanted, form))
    expected = [known.get(number, (-1, -1)) for number in wanted.tolist()]
    assert list(zip(where.tolist(), row.tolist(), strict=True)) == expected
    places = zip(*(a.tolist() for a in found.places()), strict=True)
    assert list(places) == sorted(known.values())


@pytest.mark.parametrize("form", ["heads", "tails", "mixed"])
@given(blocks=_BLOCKS, gone=st.sets(st.integers(0, 11)))
@settings(deadline=None, max_examples=60)
def test_removal_exposes_older_places_or_says_that_it_cannot(form, blocks, gone):
    found, known = KeyMap(), {}
    for block, numbers in enumerate(blocks):
        found.add([(block, _keys(numbers, form))])
    for block, numbers in enumerate(blocks):
        if block not in gone:
            known.update({number: (block, row) for row, number in enumerate(numbers)})
    hidden = sum(map(len, blocks)) > len(set().union(*blocks))
    removed = found.remove(np.array(sorted(gone), dtype=np.int64))
    assert removed or hidden
    if removed:
        where, row = found.find(_keys(np.arange(31), form))
        expected = [known.get(number, (-1, -1)) for number in range(31)]
        assert list(zip(where.tolist(), row.tolist(), strict=True)) == expected


def test_block_numbers_above_four_bytes_are_kept():
    found = KeyMap()
    found.add([(2**40, _keys([1, 2], "heads"))])
    found.add([(3, _keys([3], "heads"))])
    where, _ = found.find(_keys([2, 3], "heads"))
    assert where.tolist() == [2**40, 3]
