# SPDX-License-Identifier: BSD-3-Clause
"""Extraction on many workers: partitions of a list of files, one store per worker, one in the end.

Dask decides who computes what and starts again what a lost worker had in hand. Here the list is
cut, stores are merged (or rows received), and what is still missing afterwards is asked for again.
"""

import os
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from skpool import __version__, get_config
from skpool.distributed._client import dask_distributed, find_client
from skpool.distributed._tasks import FOLDER_PREFIX, Head, Plan, describe, run_partition
from skpool.exceptions import StoreError, UnreadableInputError
from skpool.extraction import FeatureExtractor
from skpool.inputs import ImageSequence
from skpool.pooling import BasePooling
from skpool.stores import FeatureStore

__all__ = ["ExtractionReport", "extract"]

# Enough partitions to balance the workers, none so small that starting it shows, and none whose
# rows are a burden on their way back.
_PARTITIONS_PER_SLOT = 4
_SMALLEST, _LARGEST = 64, 1024
_TRAVELLING_BYTES = 2**26


class ExtractionReport(NamedTuple):
    """What `extract` has done.

    Attributes
    ----------
    store : FeatureStore
        Where the features are.
    n_held : int
        Images that the store already had.
    n_added : int
        Images that it has now in addition. Both count an image that is listed twice once.
    failed : list of (int, str, str)
        Position, name and reason of the images that cannot be read.
    """

    store: FeatureStore
    n_held: int
    n_added: int
    failed: list[tuple[int, str, str]]


def extract(
    estimator: FeatureExtractor | Pipeline,
    paths: Sequence[str | os.PathLike[str]] | ImageSequence,
    *,
    store: str | os.PathLike[str] | FeatureStore | None = None,
    client: object | None = None,
    partition_size: int | str = "auto",
    scratch: str | os.PathLike[str] | None = None,
    n_threads: int = 1,
) -> ExtractionReport:
    """Compute the features of many files on the workers of a Dask cluster, into one store.

    Afterwards ``estimator.transform(paths)`` in this process, with that store, runs no network.

    Parameters
    ----------
    estimator : FeatureExtractor or Pipeline
        An extractor, whose tokens are kept; or a pipeline that begins with one. If its second
        step is a pooling, the pooled vectors are kept, and tokens only with
        ``keep_tokens=True``. Later steps are not looked at.
    paths : sequence of paths, or ImageSequence
        Files that this process and all workers can read under these names.
    store : path or FeatureStore, default=None
        Where the features go, on a disk of this machine; None takes that of the extractor. What
        it already has is not computed.
    client : dask.distributed.Client, default=None
        None takes the client of this process.
    partition_size : int or "auto", default="auto"
        Images per task. "auto" makes at least four tasks for each thread of the cluster, of 64 to
        1024 images.
    scratch : path, default=None
        A directory that this process and all workers see, by the same name. There every worker
        fills a store of its own, and the stores are merged at the end. None needs no common disk:
        the rows of a partition travel back with the result of its task.
    n_threads : int, default=1
        Threads of torch in a task, and decoding threads where the extractor says "auto". As many
        as the cores of a machine divided by the tasks that run on it at once.

    Returns
    -------
    report : ExtractionReport
        With the store, the numbers of images, and those that cannot be read.

    Raises
    ------
    UnreadableInputError
        Some files cannot be read, and the extractor has ``on_error="raise"``. All others are in
        the store before.

    See Also
    --------
    skpool.distributed.fit : Learn from partitions.

    Notes
    -----
    A worker that dies loses the partition in its hands, which Dask gives to another (up to its
    setting ``distributed.scheduler.allowed-failures``). With `scratch`, what the dead worker had
    written to its store is merged like the rest, and not computed again. Without, partitions that
    have arrived are safe, and those that were waiting to be sent are computed again. A call that
    was interrupted goes on where it stood when it is made again, with the same `scratch` too.

    One call at a time may use a scratch directory. Its stores become hard links where the file
    system allows, and are removed once they are merged.

    Files are known by path, size and time of modification, which all machines must see alike;
    ``ImageSequence(paths, key="content")`` knows them by their bytes, wherever they lie.
    Backbones travel by name, and weights are loaded on each worker; a module of one's own travels
    once.

    Examples
    --------
    >>> from dask.distributed import Client, LocalCluster  # doctest: +SKIP
    >>> with Client(LocalCluster(n_workers=2, threads_per_worker=1)):  # doctest: +SKIP
    ...     extract(pipeline, paths, store="features")
    """
    client = find_client(client)
    head = _head(estimator, n_threads)
    store = _opened(store, head.extractor)
    size = _checked_size(partition_size)
    named, images = _sequences(paths)
    plan = _plan(client, head)
    run = _Run(client, head, plan, store, images)
    with _Scratch(scratch) as shared:
        n_held, n_added = run.complete(size, shared)
    failed = [(row, named.name(row), reason) for row, reason in run.failures()]
    report = ExtractionReport(store, n_held, n_added, failed)
    if report.failed and head.extractor.on_error == "raise":
        raise UnreadableInputError(report.failed)
    return report


def _head(estimator: FeatureExtractor | Pipeline, n_threads: int) -> Head:
    """The steps that fill a store, with the tokens kept or not."""
    pairs = estimator.steps if isinstance(estimator, Pipeline) else [("", estimator)]
    steps = [step for _, step in pairs]
    if not steps or not isinstance(steps[0], FeatureExtractor):
        raise TypeError(
            f"estimator={estimator!r:.80} does not begin with a FeatureExtractor, and there is "
            "nothing to extract; give an extractor, or a pipeline that begins with one."
        )
    if isinstance(n_threads, bool) or not isinstance(n_threads, Integral) or n_threads < 1:
        raise ValueError(f"n_threads={n_threads!r} is not valid; give a whole number above 0.")
    pooling = steps[1] if len(steps) > 1 and isinstance(steps[1], BasePooling) else None
    extractor = clone(steps[0])
    if extractor.keep_tokens == "auto":
        # Said now, since it must not depend on the device that a worker has.
        extractor.set_params(keep_tokens=pooling is None)
    if pooling is None and not extractor.keep_tokens and extractor.tokens != "cls":
        raise ValueError(
            "keep_tokens=False keeps nothing without a pooling; give a pipeline with a pooling as "
            "its second step, or keep_tokens=True."
        )
    # The store lies on this machine, and a worker has no use for its name.
    return Head(extractor, pooling, get_config()["max_pixels"], int(n_threads))


def _opened(store: object, extractor: FeatureExtractor) -> FeatureStore:
    store = extractor.store if store is None else store
    extractor.set_params(store=None)
    if store is None:
        raise ValueError("store=None, and the extractor has none; give a directory for features.")
    return store if isinstance(store, FeatureStore) else FeatureStore.shared(store)


def _sequences(paths: object) -> tuple[ImageSequence, ImageSequence]:
    """The files as the user names them, and by absolute names for workers that stand elsewhere."""
    if isinstance(paths, ImageSequence):
        return paths, paths
    named = ImageSequence(paths)
    for position, path in enumerate(paths):
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(
                f"paths[{position}] is of type {type(path).__name__}; give the paths of files, or "
                "an ImageSequence."
            )
    here = os.getcwd()
    return named, ImageSequence([os.path.join(here, named.name(i)) for i in range(len(named))])


def _checked_size(partition_size: object) -> int | None:
    if partition_size == "auto":
        return None
    whole = isinstance(partition_size, Integral) and not isinstance(partition_size, bool)
    if not whole or partition_size < 1:
        raise ValueError(
            f"partition_size={partition_size!r} is not valid; give a whole number above 0, or "
            '"auto".'
        )
    return int(partition_size)


def _plan(client: Any, head: Head) -> Plan:
    """Ask a worker where the rows will be kept, and whether it has this version."""
    plan = client.submit(describe, head, pure=False).result()
    if plan.version != __version__:
        raise ValueError(
            f"A worker has skpool {plan.version} and this process {__version__}, which would not "
            "find each other's features; install one version."
        )
    if not plan.row_bytes:
        raise ValueError(
            f"The vectors of {head.pooling!r:.80} are kept in no store, since its parameters do "
            "not say all that it computes; give the extractor alone, or keep_tokens=True."
        )
    return plan


class _Scratch:
    """The directory where workers fill stores, for the time of one call; or none.

    Parameters
    ----------
    path : path-like or None
    """

    def __init__(self, path: str | os.PathLike[str] | None):
        self.path = None if path is None else Path(path).expanduser().absolute()
        # A worker that sees this file sees this directory.
        self._marker = f"call-{uuid.uuid4().hex}"

    def __enter__(self) -> "_Scratch":
        if self.path is not None:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / self._marker).touch()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.path is not None:
            (self.path / self._marker).unlink(missing_ok=True)
            # It stays where it holds anything, such as what an interrupted call has left.
            with suppress(OSError):
                self.path.rmdir()

    @property
    def seen_from_workers(self) -> tuple[str, str] | None:
        """The path and the file by which a worker knows it."""
        return None if self.path is None else (str(self.path), self._marker)

    def merge_into(self, store: FeatureStore) -> None:
        """Take over the stores of all workers, dead ones too, and remove them."""
        if self.path is None:
            return
        for index in sorted(self.path.glob(f"{FOLDER_PREFIX}*/index.sqlite")):
            store.merge(index.parent, link=True)
            shutil.rmtree(index.parent, ignore_errors=True)


class _Run:
    """One call: which images are missing, and rounds until none is."""

    def __init__(
        self, client: Any, head: Head, plan: Plan, store: FeatureStore, images: ImageSequence
    ):
        self.client = client
        self.head = head
        self.spaces = plan.row_bytes
        self.store = store
        self.images = images
        self.keys, self._unkeyed = images.keys()
        self._keyed = np.delete(np.arange(len(images)), list(self._unkeyed))
        keys = self.keys[self._keyed].view("S16")
        _, first, group = np.unique(keys, return_index=True, return_inverse=True)
        # A file that is listed twice is computed at its first position.
        self._first = self._keyed[first][group]
        self._distinct = np.sort(self._keyed[first])
        self._unreadable: dict[int, str] = {}

    def failures(self) -> list[tuple[int, str]]:
        """Position and reason of every image that cannot be read."""
        hit = np.isin(self._first, list(self._unreadable))
        pairs = zip(self._keyed[hit].tolist(), self._first[hit].tolist(), strict=True)
        found = {position: self._unreadable[first] for position, first in pairs}
        return sorted({**self._unkeyed, **found}.items())

    def complete(self, size: int | None, scratch: _Scratch) -> tuple[int, int]:
        """Compute what is missing; return how many were held, and how many were added."""
        scratch.merge_into(self.store)
        missing = self._missing()
        n_held, n_asked, before = len(self._distinct) - len(missing), len(missing), np.inf
        # Again where a disk was lost with its machine, or a block was damaged on the way.
        while 0 < len(missing) < before:
            before = len(missing)
            error = self._round(missing, size or self._size(before, scratch), scratch)
            scratch.merge_into(self.store)
            if error is not None:
                raise error
            missing = self._missing()
        if len(missing):
            raise StoreError(self._text_of_missing(missing))
        return n_held, n_asked - len(self._unreadable)

    def _size(self, n_images: int, scratch: _Scratch) -> int:
        slots = max(1, sum(self.client.nthreads().values()))
        size = min(max(-(-n_images // (_PARTITIONS_PER_SLOT * slots)), _SMALLEST), _LARGEST)
        if scratch.path is None:
            size = min(size, _TRAVELLING_BYTES // sum(self.spaces.values()))
        return max(1, size)

    def _missing(self) -> np.ndarray:
        """The distinct images that the store lacks and that can be read, as far as is known."""
        keys = self.keys[self._distinct]
        held = np.all([self.store.held(space, keys) for space in self.spaces], axis=0)
        return self._distinct[~(held | np.isin(self._distinct, list(self._unreadable)))]

    def _text_of_missing(self, missing: np.ndarray) -> str:
        return (
            f"{len(missing)} image(s), {self.images.name(missing[0])!r} first, are known to the "
            "workers by other keys than here: they changed meanwhile, or the machines see other "
            "times of modification; call again, or give ImageSequence(paths, key='content')."
        )

    def _round(self, rows: np.ndarray, size: int, scratch: _Scratch) -> Exception | None:
        """Have all rows computed; return the first error of a partition, if there was any."""
        parts = np.split(rows, range(size, len(rows), size))
        # The head travels once, and is made again if the worker that has it dies.
        head = self.client.submit(_same, self.head, pure=False)
        futures = {
            self.client.submit(
                run_partition,
                head,
                self.images[part],
                list(self.spaces),
                scratch.seen_from_workers,
                pure=False,
            ): part
            for part in parts
        }
        errors = {}
        try:
            for future in dask_distributed().as_completed(list(futures)):
                part = futures.pop(future)
                try:
                    result = future.result()
                except Exception as error:
                    names = [self.images.name(row) for row in (part[0], part[-1])]
                    error.add_note(f"In the partition from {names[0]!r} to {names[1]!r}.")
                    errors[part[0]] = error
                else:
                    self._take(part, *result)
                # Or Dask would compute it again if the worker died that has the result.
                future.release()
        finally:
            self.client.cancel(list(futures))
            self.store.flush()
        return errors[min(errors)] if errors else None

    def _take(self, part: np.ndarray, failed: list, rows: list) -> None:
        for space, keys, values, lengths in rows:
            self.store.put(space, keys.view("V16").ravel(), values, lengths)
        for position, _, reason in failed:
            self._unreadable[int(part[position])] = reason


def _same(head: Head) -> Head:
    return head
