# SPDX-License-Identifier: BSD-3-Clause
"""Rows that a frozen network computes when somebody needs them, whatever the samples are.

The loop of the package: look the samples up, run the network for those that no store has, keep
what the store keeps, and hand the tokens on. Every sample is looked up by itself, so folds,
shuffles and later sessions all hit, and every layer by itself, so that a pass over several layers
serves whoever later wants one. An unreadable sample is left out and remembered; the pass goes on.
How samples become batches is said by the subclasses, for images and for texts.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from skpool.backbones import Backbone
from skpool.exceptions import UnreadableInputError
from skpool.extraction._exchange import Chunks, exchange
from skpool.extraction._progress import Progress
from skpool.extraction._spaces import Rows, Spaces, UnkeptSpaces
from skpool.extraction._wanted import Wanted
from skpool.stores import FeatureStore, Reduction, RowSource, TokenBatch, assemble, default_cache
from skpool.utils import ArrayLike, as_tensor, fingerprint

__all__ = ["NetworkSource", "PassSettings"]

_TORCH_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
# Stored tokens in memory at a time, in bytes; vectors are small and come in larger helpings.
_READ_BYTES = 2**25
_VECTORS_READ_AT_ONCE = 2**16


@dataclass(frozen=True, kw_only=True)
class PassSettings:
    """How a pass is run; all choices made."""

    backbone: Backbone
    layers: tuple[int, ...]
    several: bool
    token_norm: str
    batch_size: int
    device: str
    dtype: str
    compiled: bool
    keep_tokens: bool
    raise_errors: bool
    output: str


class NetworkSource(RowSource):
    """The tokens of some samples under one backbone, of one layer or of several.

    A subclass writes `_run`, `_keyed`, `_name`, `_tokens_shape` and `_space_of`.
    """

    def __init__(
        self,
        n_rows: int,
        settings: PassSettings,
        store: FeatureStore | None,
        progress: Progress | None = None,
    ):
        self.settings = settings
        self.n_rows = n_rows
        # bfloat16, which numpy lacks, is kept without loss in float32.
        self.dtype = np.dtype("float16" if settings.dtype == "float16" else "float32")
        self.failures: dict[int, tuple[str, str]] = {}
        self._store = store
        self._progress = progress or Progress(None)
        self._whole: NetworkSource | None = None
        self._place = 0

    # For subclasses.

    def _run(self, rows: Chunks) -> Iterator[Rows]:
        """Run the network: one tensor (batch, L, d) per layer; no rows for an empty chunk."""
        raise NotImplementedError

    def _name(self, row: int) -> str:
        """What a person calls this sample."""
        raise NotImplementedError

    @cached_property
    def _keyed(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys of all rows, and the rows that have none because they cannot be read."""
        raise NotImplementedError

    @property
    def _tokens_shape(self) -> tuple[int, int]:
        """Tokens and features of one layer."""
        raise NotImplementedError

    def _space_of(self, layer: int) -> str:
        """Fingerprint of everything but the sample that decides the tokens of a layer."""
        raise NotImplementedError

    # Facts.

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Tokens and features, after the layers where there are several."""
        layers = (len(self.settings.layers),) if self.settings.several else ()
        return *layers, *self._tokens_shape

    @property
    def store(self):
        """Where rows are kept: the user's store, or the cache of this process."""
        return default_cache() if self._store is None else self._store

    @property
    def _keys(self) -> np.ndarray:
        return self._keyed[0]

    @property
    def _space(self) -> str:
        return Spaces(None, [self._space_of(layer) for layer in self.settings.layers]).name

    def _variant(self) -> tuple[str, ...]:
        """What beside layer, size and type changes tokens; empty in the usual case."""
        s = self.settings
        precise = s.dtype == "bfloat16" or s.compiled
        return (s.dtype, str(s.compiled)) if precise else ()

    def _norm_name(self, layer: int) -> tuple[str, ...]:
        """Said only where it is not what the layer has by itself."""
        norm = self.settings.token_norm
        network = self.settings.backbone.network(self.settings.device)
        usual = network.normed(layer, norm) == network.normed(layer, "final")
        return () if usual else (norm,)

    # Layers that are computed together.

    def one_layer(self, place: int) -> "NetworkSource":
        """The tokens of one of several layers; a pass for it is a pass for all of them."""
        part = self.with_layers((self.settings.layers[place],), several=False)
        part._whole, part._place = self, place
        return part

    @property
    def layers(self) -> tuple[int, ...]:
        """Which layers there are."""
        return self.settings.layers

    def with_layers(
        self, layers: tuple[int, ...], *, several: bool = True, keep_tokens: bool = True
    ) -> "NetworkSource":
        """The same samples under other layers, keeping tokens if this source does."""
        # Also computes the keys, which both then share.
        _ = self._keyed
        other = copy.copy(self)
        keep_tokens = keep_tokens and self.settings.keep_tokens
        other.settings = replace(
            self.settings, layers=layers, several=several, keep_tokens=keep_tokens
        )
        other._whole = None
        return other

    @property
    def pass_key(self) -> str:
        """Equal for sources whose tokens one pass can give."""
        s = replace(self.settings, layers=(), several=False, keep_tokens=False)
        return fingerprint(type(self).__name__, repr(s), id(self.store), self._keys.tobytes())

    # The verbs of a source.

    def stream(self, rows: np.ndarray, batch_size: int | None = None) -> Iterator[TokenBatch]:
        """Yield the tokens of the rows: stored ones first, then computed ones."""
        wanted = Wanted(rows, *self._keyed)
        for part in self._tokens(wanted.rows):
            if not len(part.rows):
                continue
            mask = self._mask(part)
            positions, repeats = wanted.expand(part.rows)
            tokens = self._joined(part)
            if repeats is not None:
                index = torch.as_tensor(repeats, device=tokens.device)
                tokens, mask = tokens[index], None if mask is None else mask[index]
            yield TokenBatch(positions, tokens, mask)
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
        wanted = Wanted(rows, *self._keyed)

        def expanded() -> Iterator[tuple[np.ndarray, torch.Tensor]]:
            for part in self._vectors(wanted.rows, function, fingerprint):
                if not len(part.rows):
                    continue
                positions, repeats = wanted.expand(part.rows)
                vectors = self._on_device(part.values[0])
                if repeats is not None:
                    vectors = vectors[torch.as_tensor(repeats, device=vectors.device)]
                yield positions, vectors

        vectors = assemble(
            expanded(), len(rows), lambda: function(torch.zeros((1, *self.row_shape)), None)
        )
        self._report(rows, wanted)
        return vectors if self.settings.output == "torch" else vectors.cpu().numpy()

    def keep_reductions(self, jobs: list[tuple[int, Reduction, str]]) -> int:
        """Compute several vectors of every sample in one pass and keep them in the store.

        Parameters
        ----------
        jobs : list of (int, callable, str)
            Place of a layer among those of this source, function, and its fingerprint.

        Returns
        -------
        n_computed : int
            Samples that at least one of the vectors had to be computed for.
        """
        spaces = Spaces(self.store, [self._space_of_vectors(place, n) for place, _, n in jobs])
        wanted = Wanted(np.arange(self.n_rows), *self._keyed)
        n_computed = 0

        def compute(missing: Chunks) -> Iterator[Rows]:
            nonlocal n_computed
            for part in self._tokens(missing):
                n_computed += len(part.rows)
                layers = [self._on_device(values) for values in part.values]
                mask = self._mask(part) if layers else None
                vectors = [f(layers[place], mask) for place, f, _ in jobs] if layers else []
                yield Rows(part.rows, vectors)

        for _ in exchange(
            spaces, self._keys, wanted.rows, compute, read_at_once=_VECTORS_READ_AT_ONCE
        ):
            pass
        self._report(np.arange(self.n_rows), wanted)
        return n_computed

    # Between the store and the network.

    def _on_device(self, values: ArrayLike) -> torch.Tensor:
        return as_tensor(values).to(self.settings.device)

    def _joined(self, part: Rows) -> torch.Tensor:
        """Tokens of one layer (n, L, d), or of several (n, k, L, d)."""
        layers = [self._on_device(values) for values in part.values]
        return torch.stack(layers, dim=1) if self.settings.several else layers[0]

    def _mask(self, part: Rows) -> torch.Tensor | None:
        """Real tokens of ragged rows, (n, L) bool."""
        if part.lengths is None:
            return None
        lengths = self._on_device(np.asarray(part.lengths))
        return torch.arange(part.values[0].shape[1], device=lengths.device) < lengths[:, None]

    def _report(self, rows: np.ndarray, wanted: Wanted) -> None:
        """Remember which rows could not be read, and raise if that was asked for."""
        for row in [row for row in wanted.rows.tolist() if row in self.failures]:
            # The same file may stand in several rows.
            for twin in rows[wanted.positions(row)].tolist():
                self.failures[twin] = (self._name(twin), self.failures[row][1])
        failed = sorted(set(rows.tolist()) & self.failures.keys())
        if failed and self.settings.raise_errors:
            raise UnreadableInputError([(row, *self.failures[row]) for row in failed])

    def _space_of_vectors(self, place: int, name: str) -> str:
        return fingerprint(self._space_of(self.settings.layers[place]), name)

    # Levels of keeping: vectors stand on tokens, tokens stand on the network.

    def _vectors(self, rows: np.ndarray, function: Reduction, name: str | None) -> Iterator[Rows]:
        def compute(missing: Chunks) -> Iterator[Rows]:
            for part in self._tokens(missing):
                vectors = function(self._joined(part), self._mask(part)) if len(part.rows) else None
                yield Rows(part.rows, [vectors])

        if name is None:
            return compute(Chunks.of(rows))
        spaces = Spaces(self.store, [fingerprint(self._space, name)])
        return exchange(spaces, self._keys, rows, compute, read_at_once=_VECTORS_READ_AT_ONCE)

    def _tokens(self, rows: np.ndarray | Chunks) -> Iterator[Rows]:
        kept = self.settings.keep_tokens and self._whole is None
        names = [self._space_of(layer) for layer in self.settings.layers]
        return exchange(
            (Spaces if kept else UnkeptSpaces)(self.store, names),
            self._keys,
            rows,
            self._pass if self._whole is None else self._part_of_whole,
            read_at_once=self._read_at_once,
        )

    @property
    def _read_at_once(self) -> int:
        """Stored rows that are in memory at a time."""
        return max(1, _READ_BYTES // (int(np.prod(self.row_shape)) * self.dtype.itemsize))

    def _part_of_whole(self, rows: Chunks) -> Iterator[Rows]:
        for part in self._whole._tokens(rows):
            yield Rows(part.rows, part.values[self._place : self._place + 1], part.lengths)

    def _pass(self, rows: Chunks) -> Iterator[Rows]:
        """Run the network over the rows, telling the callbacks."""
        n_batches = -(-rows.n_rows // self.settings.batch_size)
        return self._progress.of(self._run(rows), n_batches)

    # The network itself.

    def _forward(self, run: Callable[[int, int], list[torch.Tensor]], size: int) -> list:
        """Tokens of one batch; a batch that does not fit the device's memory is halved.

        Parameters
        ----------
        run : callable
            Gives the layers' tokens of the samples from one number up to another.
        size : int
            Samples of the batch.
        """
        dtype = torch.from_numpy(np.empty(0, self.dtype)).dtype

        def halved(start: int, stop: int) -> list[torch.Tensor]:
            try:
                with self._precision():
                    return [tokens.to(dtype) for tokens in run(start, stop)]
            except torch.OutOfMemoryError:
                if stop - start == 1:
                    raise
            # Outside the handler, whose traceback holds the tensors that did not fit.
            torch.cuda.empty_cache()
            middle = (start + stop) // 2
            parts = zip(halved(start, middle), halved(middle, stop), strict=True)
            return [torch.cat(part) for part in parts]

        return halved(0, size)

    def _precision(self) -> torch.autocast:
        """The float type that the network computes in."""
        kind = torch.device(self.settings.device).type
        dtype = self.settings.dtype
        # float16 on a CPU is slower than float32, so there it is only a storage type.
        lower = dtype == "bfloat16" or (dtype == "float16" and kind != "cpu")
        return torch.autocast(kind, dtype=_TORCH_DTYPES[dtype] if lower else None, enabled=lower)
