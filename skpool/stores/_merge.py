# SPDX-License-Identifier: BSD-3-Clause
"""Taking over the rows of another store: one store per machine is filled, then all become one.

A block of which this store has nothing is copied, or linked, as a file; of any other the rows that
are missing are read and put. Every block is named by a transaction of its own, so a merge that was
interrupted is finished by merging again.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from skpool.stores._blocks import DamagedBlock
from skpool.stores._index import BlockInfo
from skpool.stores._protocol import grouped

if TYPE_CHECKING:
    from skpool.stores._feature_store import FeatureStore

__all__ = ["merge"]


class _Part(NamedTuple):
    """Rows of one block of the other store."""

    info: BlockInfo
    keys: np.ndarray
    rows: np.ndarray


def merge(
    store: "FeatureStore", other: "str | os.PathLike[str] | FeatureStore", *, link: bool
) -> dict[str, Any]:
    """See `FeatureStore.merge`."""
    with ExitStack() as stack:
        if not isinstance(other, type(store)):
            other = stack.enter_context(type(store)(_existing(other)))
        other.flush()
        store.flush()
        spaces = _comparable_spaces(store, other)
        taken: dict[str, Any] = {"n_blocks": 0, "n_bytes": 0, "n_rows": {}}
        for space in spaces:
            # Again after damage: an older block may have the rows of the damaged one.
            while not _merge_space(store, other, space, link, taken):
                continue
            _merge_note(store, other, space)
    return taken


def _existing(path: str | os.PathLike[str]) -> Path:
    path = Path(path).expanduser().absolute()
    if not (path / "index.sqlite").is_file():
        raise ValueError(f"other={str(path)!r} is no feature store; give the directory of one.")
    return path


def _comparable_spaces(store: "FeatureStore", other: "FeatureStore") -> list[str]:
    """Return the other's spaces, after a check that all can be taken."""
    kinds = {}
    with other._opened() as session:
        for space in session.index.spaces():
            session.refresh(space)
            kinds[space] = session.catalogue.kind(space)
    with store._opened() as session:
        session.require_writable()
        for space, kind in kinds.items():
            if kind is not None:
                session.check_kind(space, kind)
    return [space for space, kind in kinds.items() if kind is not None]


def _merge_space(
    store: "FeatureStore", other: "FeatureStore", space: str, link: bool, taken: dict
) -> bool:
    """Take what is missing; tell whether nothing was damaged."""
    damaged = []
    for part in _missing(store, other, space):
        try:
            n_bytes = _take(store, other, space, part, link)
        except DamagedBlock as error:
            damaged.append((part.info, str(error)))
            continue
        taken["n_blocks"] += 1
        taken["n_bytes"] += n_bytes
        taken["n_rows"][space] = taken["n_rows"].get(space, 0) + len(part.rows)
    with store._opened() as session:
        store._keep_within(session, bool(taken["n_blocks"]))
    with other._opened() as session:
        session.drop(damaged)
    return not damaged


def _missing(store: "FeatureStore", other: "FeatureStore", space: str) -> Iterator[_Part]:
    """Yield the rows of a space that only the other store has, block by block."""
    with other._opened() as session:
        session.refresh(space)
        where, row = session.catalogue.places(space)
    for i, at in grouped(where):
        with other._opened() as session:
            block = session.index.block(i)
        if block is None:
            continue
        info, keys = block
        rows = np.sort(row[at])
        with store._opened() as session:
            lacking = session.locate(space, np.ascontiguousarray(keys[rows]))[0] == -1
        if lacking.any():
            yield _Part(info, keys, rows[lacking])


def _take(store: "FeatureStore", other: "FeatureStore", space: str, part: _Part, link: bool) -> int:
    """Bring some rows of one block into this store; return the bytes that they take."""
    with other._opened() as session:
        session.expect([part.info])
        theirs = session
    with store._opened() as session:
        mine = session
    keys = part.keys[part.rows]
    if len(part.rows) == part.info.n_rows:
        info, sums = mine.taken(theirs.files.path(part.info), part.info, link=link)
    else:
        theirs.files.check(part.info, part.rows)
        rows = theirs.files.get(part.info).take(part.rows)
        info, sums = mine.written(space, keys, rows)
    with store._opened() as session:
        session.name(keys, info, sums)
    return info.size


def _merge_note(store: "FeatureStore", other: "FeatureStore", space: str) -> None:
    """Take what was said about a space, unless something is said here."""
    with other._opened() as session:
        note = session.side.note(space)
    with store._opened() as session:
        if note and not session.side.note(space):
            session.side.set_note(space, note)
