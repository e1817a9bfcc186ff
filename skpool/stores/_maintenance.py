# SPDX-License-Identifier: BSD-3-Clause
"""Work on a store as a whole: telling what it has, checking all of it, making it smaller.

Nothing here stops others from reading or writing. A block is dropped by one transaction, and only
then its file is deleted: who has it open goes on reading the right rows, who has not finds it gone
and recomputes. A compacted block is named, and the blocks that it replaces are dropped, in one
transaction too.
"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from skpool.stores._blocks import DamagedBlock
from skpool.stores._catalogue import Catalogue
from skpool.stores._checksums import PieceSums
from skpool.stores._index import FORMAT, BlockInfo
from skpool.stores._protocol import RowSet, grouped
from skpool.stores._session import Session

if TYPE_CHECKING:
    from skpool.stores._handle import StoreHandle

__all__ = ["describe", "drop_unused", "prune", "verify"]


class _Block(NamedTuple):
    id: int
    space: str
    file: str
    n_rows: int
    size: int
    used: int


def _by_use(session: Session) -> list[_Block]:
    return [_Block(*row) for row in session.side.by_use()]


# Telling.


def describe(session: Session) -> dict[str, Any]:
    """See `FeatureStore.info`."""
    totals = session.index.totals()
    return {
        "format": FORMAT,
        "n_blocks": sum(n for _, n, _, _ in totals),
        "n_bytes": sum(size for *_, size in totals),
        "n_rows": {space: n for space, _, n, _ in totals},
        "spaces": {total[0]: _describe_space(session, *total) for total in totals},
        "index_bytes": session.index.file_bytes(),
        "memory_bytes": session.catalogue.nbytes,
    }


def _describe_space(
    session: Session, space: str, n_blocks: int, n_rows: int, n_bytes: int
) -> dict[str, Any]:
    # A catalogue of its own, so that telling what is there costs no memory afterwards.
    catalogue = Catalogue(session.index)
    catalogue.refresh(space)
    kind = catalogue.kind(space)
    readable = sum(info.n_rows for info in catalogue.blocks.values())
    shapes = {info.row_shape for info in catalogue.blocks.values()}
    shape = next(iter(shapes), None) if len(shapes) < 2 else (None, *kind[2])
    return {
        "n_rows": n_rows,
        "n_duplicates": readable - len(catalogue.places(space)[0]),
        "n_blocks": n_blocks,
        "n_bytes": n_bytes,
        "dtype": None if kind is None else str(kind[0]),
        "row_shape": shape,
    }


# Checking.


def verify(store: "StoreHandle") -> list[str]:
    """See `FeatureStore.verify`."""
    with store._opened() as session:
        found = _check_index(session)
        infos, damaged = session.survey()
        session.expect(infos)
        # Blocks of older versions have no checksums of their pieces, and get them now.
        without = {info.id for info in infos if session.side.sums(info) is None}
    wrong, sums = [], {}
    for info in infos:
        try:
            session.files.check(info, None)
            if info.id in without:
                sums[info.id] = session.files.sums(info)
        except DamagedBlock as error:
            wrong.append((info, str(error)))
    with store._opened() as session:
        found += _mend_sums(session, sums)
        return sorted(set(found)) + damaged + session.drop(wrong)


def _mend_sums(session: Session, sums: dict[int, PieceSums]) -> list[str]:
    """Keep checksums of pieces that were missing or damaged; name the index for the latter."""
    if session.unwritable is not None:
        return []
    damaged = [block for block in sums if session.side.has_sums(block)]
    for block, values in sums.items():
        session.side.set_sums(block, values)
    if not damaged:
        return []
    path = str(session.index.path)
    session.warnings.append(
        f"The index {path} has damaged checksums of parts of {len(damaged)} blocks: the blocks "
        "are right, and the checksums were made anew."
    )
    return [path]


def _check_index(session: Session) -> list[str]:
    """Repair what can be repaired in the index, and say so; raise where the file is lost."""
    path = str(session.index.path)
    sound, repaired = session.index.repair()
    problems = []
    if not sound:
        state = "it was rebuilt" if repaired else "merge what can be read into a new store"
        problems.append(f"The index {path} has a damaged page: {state}.")
    for space in session.side.drop_damaged_notes():
        problems.append(f"What the index {path} said about space {space!r} is damaged: removed.")
    session.warnings.extend(problems)
    return [path] if problems else []


# Making it smaller.


def prune(store: "StoreHandle", max_bytes: int | None) -> dict[str, Any]:
    """See `FeatureStore.prune`."""
    limit = store.max_bytes if max_bytes is None else max_bytes
    with store._opened() as session:
        session.require_writable()
        session.flush()
        n_bytes, n_blocks = session.index.n_bytes(), len(session.index.ids())
        spaces = session.index.spaces() if limit is None or n_bytes > limit else []
    for space in spaces:
        _compact(store, space)
    with store._opened() as session:
        rows = {} if limit is None else drop_unused(session, limit)
        n_bytes -= session.index.n_bytes()
        n_blocks -= len(session.index.ids())
    return {"n_blocks": n_blocks, "n_bytes": n_bytes, "n_rows": rows}


def drop_unused(session: Session, max_bytes: int) -> dict[str, int]:
    """Drop the blocks that were not used for longest; return their rows by space."""
    if session.index.n_bytes() <= max_bytes:
        return {}
    session.write_uses(patient=True)
    chosen: list[_Block] = []
    # Of two processes that prune at once the second sees what the first has dropped.
    with session.index.transaction():
        excess = session.index.n_bytes() - max_bytes
        for block in _by_use(session):
            if excess <= 0:
                break
            excess -= block.size
            chosen.append(block)
        session.index.drop(block.id for block in chosen)
    _delete(session, chosen)
    rows: dict[str, int] = {}
    for block in chosen:
        rows[block.space] = rows.get(block.space, 0) + block.n_rows
    return rows


def _delete(session: Session, blocks: Iterable[_Block]) -> None:
    """Close and delete the files of blocks that the index has forgotten."""
    blocks = list(blocks)
    session.files.remove(*(block.file for block in blocks))
    session.files.forget(block.id for block in blocks)


class _Plan(NamedTuple):
    newest: int
    dead: list[_Block]
    halves: list[tuple[BlockInfo, np.ndarray, np.ndarray, _Block]]


def _plan(session: Session, space: str) -> _Plan:
    """Find the blocks of a space that are superseded, wholly or by half or more."""
    blocks = [block for block in _by_use(session) if block.space == space]
    newest = session.index.newest(space)
    catalogue = Catalogue(session.index)
    # What is damaged is not judged here: it is found, and told, when the space is read.
    damaged = {i for i, _ in catalogue.refresh(space)}
    where, row = catalogue.places(space)
    live = {i: row[at] for i, at in grouped(where)}
    dead, halves = [], []
    for block in blocks:
        rows = live.get(block.id, ())
        if not len(rows) and block.id not in damaged:
            dead.append(block)
        elif 0 < 2 * len(rows) <= block.n_rows:
            halves.append((catalogue.blocks[block.id], np.sort(rows), block))
    return _Plan(newest, dead, halves)


def _compact(store: "StoreHandle", space: str) -> None:
    """Remove the rows of a space that were put again since."""
    with store._opened() as session:
        newest, dead, halves = _plan(session, space)
        session.index.drop(block.id for block in dead)
        _delete(session, dead)
        session.expect(info for info, *_ in halves)
    for group in _joined(halves, store.block_bytes):
        newest = _rewrite(store, space, newest, group)


def _joined(halves: list, block_bytes: int) -> Iterable[list]:
    """Put blocks of one form together as long as their live rows fill no whole block."""
    forms: dict[tuple, list] = {}
    for half in halves:
        forms.setdefault(half[0].row_shape, []).append(half)
    for form in forms.values():
        group, size = [], 0
        for info, rows, block in form:
            live = math.ceil(block.size * len(rows) / block.n_rows)
            if group and size + live > block_bytes:
                yield group
                group, size = [], 0
            group.append((info, rows, block))
            size += live
        yield group


def _rewrite(store: "StoreHandle", space: str, newest: int, group: list) -> int:
    """Copy the live rows of some blocks into one new block, which takes their place."""
    with store._opened() as session:
        keys = [session.index.block(info.id) for info, *_ in group]
    sets, damaged = [], []
    for info, rows, _ in group:
        try:
            session.files.check(info, rows)
            sets.append(session.files.get(info).take(rows))
        except DamagedBlock as error:
            damaged.append((info, str(error)))
    if damaged or any(found is None for found in keys):
        with store._opened() as session:
            session.drop(damaged)
        return newest
    live = [found[1][rows] for found, (_, rows, _) in zip(keys, group, strict=True)]
    live = np.concatenate(live)
    new, sums = session.written(space, live, RowSet.joined(sets))
    with store._opened() as session:
        return _replace(session, newest, live, new, sums, [old for *_, old in group])


def _replace(
    session: Session,
    newest: int,
    keys: np.ndarray,
    new: BlockInfo,
    sums: PieceSums,
    old: list[_Block],
) -> int:
    """Name a block and drop others, unless rows were put meanwhile, which it would hide."""
    with session.index.transaction(durable=True):
        if session.index.newest(new.space) > newest:
            session.files.remove(new.file)
            return newest
        session.name(keys, new, sums, used=max(block.used for block in old))
        newest = session.index.newest(new.space)
        session.index.drop(block.id for block in old)
    _delete(session, old)
    return newest
