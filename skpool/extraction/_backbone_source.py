# SPDX-License-Identifier: BSD-3-Clause
"""Rows that a frozen network computes when somebody needs them.

The loop of the package: look the samples up, decode the missing ones in threads ahead of the
device, run the network batch by batch, keep what the store keeps, and hand the tokens on. Every
sample is looked up by itself, so folds, shuffles and later sessions all hit. An unreadable sample
is left out and remembered; the pass goes on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from skpool.backbones import Backbone, Layout
from skpool.exceptions import UnreadableInputError
from skpool.extraction._exchange import exchange, read_stored
from skpool.extraction._threads import map_ahead
from skpool.inputs import DecodeError, ImageSequence
from skpool.stores import FeatureStore, Reduction, RowSource, TokenBatch, assemble, default_cache
from skpool.utils import ArrayLike, as_tensor, fingerprint

__all__ = ["BackboneSource", "ExtractionSettings"]

_TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16}
# Stored tokens in memory at a time, in bytes; vectors are small and come in larger helpings.
_READ_BYTES = 2**25
_VECTORS_READ_AT_ONCE = 2**16
# A task for a thread is a few images, or handing it over costs more than a small image's work.
_IMAGES_PER_TASK = 8


@dataclass(frozen=True)
class ExtractionSettings:
    """How a pass is run; all choices made."""

    backbone: Backbone
    layer: int
    image_size: int | None
    batch_size: int
    device: str
    dtype: str
    n_workers: int
    keep_tokens: bool
    raise_errors: bool
    output: str


class BackboneSource(RowSource):
    """The tokens of a sequence of images under one backbone and layer."""

    def __init__(
        self, images: ImageSequence, settings: ExtractionSettings, store: FeatureStore | None
    ):
        self.images = images
        self.settings = settings
        self._store = store
        self.n_rows = len(images)
        self.dtype = np.dtype(settings.dtype)
        self.failures: dict[int, tuple[str, str]] = {}

    # Facts, which load the network at first use.

    @cached_property
    def layout(self) -> Layout:
        """Numbers of tokens and features, prefix and grid."""
        return self.settings.backbone.layout(self.settings.layer, self.settings.image_size)

    @property
    def row_shape(self) -> tuple[int, int]:
        """Tokens, features."""
        return self.layout.n_tokens, self.layout.n_features

    @property
    def n_prefix_tokens(self) -> int:
        """Leading tokens that are no patches."""
        return self.layout.n_prefix_tokens

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the patches."""
        return self.layout.grid

    @cached_property
    def space(self) -> str:
        """Fingerprint of everything but the sample that decides its tokens."""
        s = self.settings
        layer = s.backbone.layers[s.layer]
        size = s.image_size or s.backbone.recipe.input_size
        return fingerprint("tokens", s.backbone.fingerprint, layer, size, s.dtype)

    @property
    def store(self):
        """Where rows are kept: the user's store, or the cache of this process."""
        return default_cache() if self._store is None else self._store

    @cached_property
    def _keyed(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys of all rows, and the rows that have none because they cannot be read."""
        keys, failures = self.images.keys()
        for row, reason in failures.items():
            self.failures[row] = (self.images.name(row), reason)
        return keys, np.array(sorted(failures), dtype=np.int64)

    @property
    def _keys(self) -> np.ndarray:
        return self._keyed[0]

    # The two verbs of a source.

    def stream(self, rows: np.ndarray, batch_size: int | None = None) -> Iterator[TokenBatch]:
        """Yield the tokens of the rows: stored ones first, then computed ones."""
        wanted = _Wanted(rows, *self._keyed)
        for found, values in self._tokens(wanted.rows):
            yield TokenBatch(*wanted.expand(found, self._on_device(values)), None)
        self._report(rows, wanted)

    def reduce(
        self,
        rows: np.ndarray,
        function: Reduction,
        *,
        fingerprint: str | None = None,
        batch_size: int | None = None,
    ) -> ArrayLike:
        """Turn every row into a vector, kept in the store under the function's fingerprint."""
        wanted = _Wanted(rows, *self._keyed)
        vectors = assemble(
            (
                wanted.expand(found, self._on_device(values))
                for found, values in self._vectors(wanted.rows, function, fingerprint)
            ),
            len(rows),
            lambda: function(torch.zeros((1, *self.row_shape)), None),
        )
        self._report(rows, wanted)
        return vectors if self.settings.output == "torch" else vectors.cpu().numpy()

    def _on_device(self, values: ArrayLike) -> torch.Tensor:
        return as_tensor(values).to(self.settings.device)

    def _report(self, rows: np.ndarray, wanted: "_Wanted") -> None:
        """Remember which rows could not be read, and raise if that was asked for."""
        for row in [row for row in wanted.rows.tolist() if row in self.failures]:
            # The same file may stand in several rows.
            for twin in rows[wanted.positions(row)].tolist():
                self.failures[twin] = (self.images.name(twin), self.failures[row][1])
        failed = sorted(set(rows.tolist()) & self.failures.keys())
        if failed and self.settings.raise_errors:
            raise UnreadableInputError([(row, *self.failures[row]) for row in failed])

    # Levels of keeping: vectors stand on tokens, tokens stand on the network.

    def _vectors(self, rows: np.ndarray, function: Reduction, name: str | None) -> Iterator:
        def compute(missing: np.ndarray) -> Iterator:
            for found, values in self._tokens(missing):
                yield found, function(self._on_device(values), None)

        if name is None:
            return compute(rows)
        space = fingerprint(self.space, name)
        return exchange(
            self.store, space, self._keys, rows, compute, read_at_once=_VECTORS_READ_AT_ONCE
        )

    def _tokens(self, rows: np.ndarray) -> Iterator:
        n_tokens, n_features = self.row_shape
        at_once = max(1, _READ_BYTES // (n_tokens * n_features * self.dtype.itemsize))
        if self.settings.keep_tokens:
            yield from exchange(
                self.store, self.space, self._keys, rows, self._run, read_at_once=at_once
            )
        else:
            missing: list[np.ndarray] = []
            yield from read_stored(self.store, self.space, self._keys, rows, at_once, missing)
            yield from self._run(np.concatenate(missing) if missing else rows)

    # The pass itself.

    def _run(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Decode ahead, run the network, yield (rows, tokens) batch by batch."""
        s = self.settings
        tasks = np.array_split(rows, -(-len(rows) // _IMAGES_PER_TASK)) if len(rows) else []
        ahead = max(2 * s.n_workers, -(-2 * s.batch_size // _IMAGES_PER_TASK))
        loaded = map_ahead(self._load, tasks, n_workers=s.n_workers, ahead=ahead)
        pending: list[tuple[int, np.ndarray]] = []
        for part in loaded:
            pending += part
            while len(pending) >= s.batch_size:
                yield self._run_batch(pending[: s.batch_size])
                pending = pending[s.batch_size :]
        if pending:
            yield self._run_batch(pending)

    def _load(self, rows: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Decode and crop some images; unreadable ones are remembered and left out."""
        recipe, size = self.settings.backbone.recipe, self.settings.image_size
        pixels = []
        for row in rows.tolist():
            try:
                pixels.append((row, recipe.prepare(self.images.load(row), size)))
                # A file that was repaired since the last pass.
                self.failures.pop(row, None)
            except DecodeError as error:
                self.failures[row] = (error.name, error.reason)
        return pixels

    def _run_batch(self, pending: list[tuple[int, np.ndarray]]) -> tuple[np.ndarray, torch.Tensor]:
        rows = np.array([row for row, _ in pending])
        batch = torch.from_numpy(np.stack([pixels for _, pixels in pending]))
        return rows, self._forward(batch)

    def _forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Tokens of one batch; a batch that does not fit the device's memory is halved."""
        s = self.settings
        dtype = _TORCH_DTYPES[s.dtype]
        device = torch.device(s.device)
        # Half precision on a CPU is slower than float32, so there it is only a storage type.
        half = dtype != torch.float32 and device.type == "cuda"
        try:
            with torch.autocast(device.type, dtype=dtype, enabled=half):
                tokens = s.backbone.forward(batch.to(device), [s.layer])[0][0]
            return tokens.to(dtype)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            torch.cuda.empty_cache()
            middle = len(batch) // 2
            return torch.cat([self._forward(batch[:middle]), self._forward(batch[middle:])])


class _Wanted:
    """The rows of one request: each distinct sample once, and where its values go.

    Parameters
    ----------
    rows : ndarray of int
        The rows asked for; some may be equal, or hold equal samples.
    keys : ndarray, V16
        Keys of all rows of the source.
    unkeyed : ndarray of int
        Rows that cannot be read and have no key.

    Attributes
    ----------
    rows : ndarray of int
        One row per distinct sample.
    """

    def __init__(self, rows: np.ndarray, keys: np.ndarray, unkeyed: np.ndarray):
        positions = np.flatnonzero(~np.isin(rows, unkeyed))
        pairs = np.ascontiguousarray(keys[rows[positions]]).view([("a", "u8"), ("b", "u8")])
        _, first, group, counts = np.unique(
            pairs, return_index=True, return_inverse=True, return_counts=True
        )
        # In order of first appearance, so that files are read in the user's order.
        rank = np.argsort(np.argsort(first))
        self.rows = rows[positions[np.sort(first)]]
        self._counts = np.empty_like(counts)
        self._counts[rank] = counts
        self._sorted = positions[np.argsort(rank[group], kind="stable")]
        self._starts = np.cumsum(self._counts) - self._counts
        self._group_of = dict(zip(self.rows.tolist(), range(len(self.rows)), strict=True))

    def positions(self, row: int) -> np.ndarray:
        """Positions in the request that one of `rows` stands for."""
        group = self._group_of[row]
        start = self._starts[group]
        return self._sorted[start : start + self._counts[group]]

    def expand(self, found: np.ndarray, values: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
        """Positions in the request, and the values repeated for equal samples."""
        groups = np.array([self._group_of[row] for row in found.tolist()], dtype=np.int64)
        counts = self._counts[groups]
        if (counts == 1).all():
            return self._sorted[self._starts[groups]], values
        spans = np.concatenate([self.positions(row) for row in found.tolist()])
        repeats = torch.as_tensor(counts, device=values.device)
        return spans, values.repeat_interleave(repeats, dim=0)
