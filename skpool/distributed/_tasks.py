# SPDX-License-Identifier: BSD-3-Clause
"""What runs on a worker: one partition of a list of images, through one frozen network.

A task has a store to itself while it runs and closes it when it ends, so that a store on a shared
disk is never open on two machines at once. What becomes of the rows is decided by `scratch`: they
stay in the worker's store, to be merged, or travel back with the result.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from sklearn.base import clone

from skpool import __version__, config_context
from skpool.distributed._client import dask_distributed
from skpool.exceptions import StoreError
from skpool.extraction import FeatureExtractor
from skpool.inputs import ImageSequence
from skpool.pooling import BasePooling
from skpool.stores import FeatureStore, TokenArray

__all__ = ["FOLDER_PREFIX", "Head", "Plan", "RowsOfSpace", "describe", "run_partition"]

# Other directories in the user's scratch directory are none of ours.
FOLDER_PREFIX = "skpool-worker-"


@dataclass(frozen=True)
class Head:
    """The part of a pipeline that fills a store, and what else decides its results.

    Attributes
    ----------
    extractor : FeatureExtractor
    pooling : BasePooling or None
        None keeps the tokens.
    max_pixels : int
        The caller's limit.
    n_threads : int
        Threads of torch, and decoding threads where the extractor leaves them open.
    """

    extractor: FeatureExtractor
    pooling: BasePooling | None
    max_pixels: int
    n_threads: int


class Plan(NamedTuple):
    """What a worker says of a head before any image is read: version, and bytes per space."""

    version: str
    row_bytes: dict[str, int]


class RowsOfSpace(NamedTuple):
    """Rows on their way back, with the keys that the files had on the worker, as (n, 16) uint8."""

    space: str
    keys: np.ndarray
    values: np.ndarray
    lengths: np.ndarray | None


class _Threads:
    """Torch's number of threads belongs to the process, and its tasks may run side by side."""

    def __init__(self):
        self._lock = threading.Lock()
        self._users = 0
        self._before = 0

    @contextmanager
    def limited(self, n: int) -> Iterator[None]:
        """Set the number, and set it back when the last task that runs has ended."""
        with self._lock:
            if self._users == 0:
                self._before = torch.get_num_threads()
            self._users += 1
            torch.set_num_threads(n)
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    torch.set_num_threads(self._before)


_threads = _Threads()


@contextmanager
def _settings_of(head: Head) -> Iterator[None]:
    with _threads.limited(head.n_threads), config_context(max_pixels=head.max_pixels):
        yield


@contextmanager
def _passing_store() -> Iterator[FeatureStore]:
    """A store on the worker's own disk for as long as a task runs."""
    folder = dask_distributed().get_worker().local_directory
    with TemporaryDirectory(prefix="skpool-", dir=folder) as path, FeatureStore(path) as store:
        yield store


def _compute(head: Head, images: ImageSequence, store: FeatureStore) -> list[tuple[int, str, str]]:
    """Fill the store; return position, name and reason of what cannot be read."""
    extractor = clone(head.extractor).set_params(store=store, on_error="nan")
    if extractor.n_workers == "auto":
        extractor.set_params(n_workers=head.n_threads)
    tokens = extractor.transform(images)
    if head.pooling is not None:
        head.pooling.transform(tokens)
    elif isinstance(tokens, TokenArray):
        for _ in tokens.iter_batches():
            pass
    store.flush()
    return extractor.failed_


def describe(head: Head) -> Plan:
    """Run one blank image, to learn where rows will be kept and how large they are.

    The caller needs neither the network nor the device for it, and what is wrong with the
    parameters is said before a thousand tasks are made.

    Parameters
    ----------
    head : Head

    Returns
    -------
    plan : Plan
    """
    with _settings_of(head), _passing_store() as store:
        _compute(head, ImageSequence(np.zeros((1, 8, 8, 3), dtype=np.uint8)), store)
        spaces = store.info()["spaces"]
    return Plan(__version__, {name: _row_bytes(space) for name, space in spaces.items()})


def _row_bytes(space: dict) -> int:
    return int(np.prod(space["row_shape"])) * np.dtype(space["dtype"]).itemsize


def run_partition(
    head: Head, images: ImageSequence, spaces: list[str], shared: tuple[str, str] | None
) -> tuple[list[tuple[int, str, str]], list[RowsOfSpace]]:
    """Compute the features of some images.

    Parameters
    ----------
    head : Head
    images : ImageSequence
        The partition.
    spaces : list of str
        Where the head keeps its rows.
    shared : (str, str) or None
        The caller's scratch directory and the name of a file in it; None sends the rows back.

    Returns
    -------
    failed : list of (int, str, str)
        Position in the partition, name and reason of images that cannot be read.
    rows : list of RowsOfSpace
        Empty where they stay in the scratch directory.
    """
    with _settings_of(head):
        if shared is None:
            with _passing_store() as store:
                failed = _compute(head, images, store)
                return failed, list(_taken_out(store, images, spaces))
        return _fill_scratch(head, images, spaces, *shared), []


def _taken_out(
    store: FeatureStore, images: ImageSequence, spaces: list[str]
) -> Iterator[RowsOfSpace]:
    keys, _ = images.keys()
    for space in spaces:
        found, values, lengths = store.read(space, keys)
        if not found.any():
            continue
        # Dask would send keys of dtype V16 as records.
        yield RowsOfSpace(space, keys[found].view(np.uint8).reshape(-1, 16), values, lengths)


def _fill_scratch(
    head: Head, images: ImageSequence, spaces: list[str], scratch: str, marker: str
) -> list[tuple[int, str, str]]:
    distributed = dask_distributed()
    address = distributed.get_worker().address
    if not Path(scratch, marker).exists():
        raise StoreError(
            f"scratch={scratch!r} of the calling process is not on a disk that the worker "
            f"{address} sees; give a directory that all of them share, or scratch=None, which "
            "sends the rows back through the network."
        )
    alive = distributed.get_client().scheduler_info(n_workers=-1)["workers"]
    left = _not_held_by_the_dead(images, spaces, Path(scratch), {*map(_folder, alive)})
    if not len(left):
        return []
    with FeatureStore(Path(scratch, _folder(address))) as store:
        failed = _compute(head, images[left], store)
    return [(int(left[position]), name, reason) for position, name, reason in failed]


def _folder(address: str) -> str:
    """Name of a worker's directory."""
    return FOLDER_PREFIX + re.sub(r"[^A-Za-z0-9.]+", "-", address)


def _not_held_by_the_dead(
    images: ImageSequence, spaces: list[str], scratch: Path, alive: set[str]
) -> np.ndarray:
    """Positions of images whose rows no worker that died has left; a merge will find those."""
    keys, _ = images.keys()
    missing = np.ones(len(images), dtype=bool)
    for index in sorted(scratch.glob(f"{FOLDER_PREFIX}*/index.sqlite")):
        # Stores of the living are left alone: they may be open on another machine.
        if index.parent.name not in alive:
            with FeatureStore(index.parent) as store:
                missing &= ~np.all([store.held(space, keys) for space in spaces], axis=0)
    return np.flatnonzero(missing)
