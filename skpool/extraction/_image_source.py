# SPDX-License-Identifier: BSD-3-Clause
"""Images through a frozen network: decoded in threads, run batch by batch.

Ahead of a device that works by itself; in turn with a network that needs the same cores.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from skpool.backbones import Layout
from skpool.extraction._exchange import Chunks
from skpool.extraction._network_source import NetworkSource, PassSettings
from skpool.extraction._progress import Progress
from skpool.extraction._spaces import Rows
from skpool.extraction._threads import map_ahead, map_in_bursts
from skpool.inputs import DecodeError, ImageSequence
from skpool.stores import FeatureStore
from skpool.utils import fingerprint

__all__ = ["ImageSettings", "ImageSource"]

# A task for a thread is a few images, or handing it over costs more than a small image's work.
_IMAGES_PER_TASK = 8
# Where decoding and network take turns, a turn of decoding is a few batches: the caches and the
# threads of the network are cold after each, and its threads still spin when decoding begins.
_BATCHES_PER_BURST = 4
# Pixels that wait for the network in such a turn, in bytes, unless one batch has more.
_BURST_BYTES = 2**26
# Tasks of one turn per thread, at least, so that none is left with much more than the others.
_TASKS_PER_THREAD = 2


@dataclass(frozen=True, kw_only=True)
class ImageSettings(PassSettings):
    """How a pass over images is run."""

    image_size: int | None
    n_workers: int


def _tasks(chunks: Chunks, size: int) -> Iterator[np.ndarray]:
    """Some images for one thread at a time; an empty chunk is a task too."""
    for rows in chunks:
        yield from np.array_split(rows, max(1, -(-len(rows) // size)))


def _stacked(pending: list[tuple[int, np.ndarray]]) -> tuple[np.ndarray, torch.Tensor]:
    rows = np.array([row for row, _ in pending])
    return rows, torch.from_numpy(np.stack([pixels for _, pixels in pending]))


def _sent(batch: torch.Tensor, device: str) -> torch.Tensor:
    """A batch on the device; to a GPU it is copied while the host goes on."""
    if torch.device(device).type == "cuda":
        return batch.pin_memory().to(device, non_blocking=True)
    return batch.to(device)


class ImageSource(NetworkSource):
    """The tokens of a sequence of images."""

    settings: ImageSettings

    def __init__(
        self,
        images: ImageSequence,
        settings: ImageSettings,
        store: FeatureStore | None,
        progress: Progress | None = None,
    ):
        super().__init__(len(images), settings, store, progress)
        self.images = images

    # Facts, which load the network at first use.

    @property
    def layout(self) -> Layout:
        """Numbers of tokens and features, prefix and grid of the last of the layers."""
        s = self.settings
        return s.backbone.layout(s.layers[-1], s.image_size)

    @property
    def _tokens_shape(self) -> tuple[int, int]:
        return self.layout.n_tokens, self.layout.n_features

    @property
    def n_prefix_tokens(self) -> int:
        """Leading tokens that are no patches."""
        return self.layout.n_prefix_tokens

    @property
    def cls_index(self) -> int | None:
        """Position of the class token."""
        return self.layout.cls_index

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the patches."""
        return self.layout.grid

    def _space_of(self, layer: int) -> str:
        s = self.settings
        size = s.image_size or s.backbone.recipe.input_size
        index = s.backbone.layers[layer]
        unusual = (*self._norm_name(layer), *self._variant())
        return fingerprint("tokens", s.backbone.fingerprint, index, size, self.dtype.name, *unusual)

    def _name(self, row: int) -> str:
        return self.images.name(row)

    @cached_property
    def _keyed(self) -> tuple[np.ndarray, np.ndarray]:
        keys, failures = self.images.keys()
        for row, reason in failures.items():
            self.failures[row] = (self.images.name(row), reason)
        return keys, np.array(sorted(failures), dtype=np.int64)

    # The pass.

    def _run(self, rows: Chunks) -> Iterator[Rows]:
        """Forward passes, with the next batch always on its way to the device."""
        ready: tuple[np.ndarray, torch.Tensor] | None = None
        for batch in self._batches(rows):
            if batch is None:
                yield Rows.none()
                continue
            ahead = batch[0], _sent(batch[1], self.settings.device)
            if ready is not None:
                yield self._run_batch(*ready)
            ready = ahead
        if ready is not None:
            yield self._run_batch(*ready)

    def _batches(self, rows: Chunks) -> Iterator[tuple[np.ndarray, torch.Tensor] | None]:
        """Rows and their pixels, decoded in threads; None for an empty chunk."""
        size = self.settings.batch_size
        pending: list[tuple[int, np.ndarray]] = []
        for part in self._decoded(rows):
            pending += part
            while len(pending) >= size:
                yield _stacked(pending[:size])
                pending = pending[size:]
            if not part:
                yield None
        if pending:
            yield _stacked(pending)

    def _decoded(self, rows: Chunks) -> Iterator[list[tuple[int, np.ndarray]]]:
        """Pixels of some images at a time."""
        s = self.settings
        if torch.device(s.device).type == "cpu":
            # Network and decoding share the cores. At the same time they would wait for one
            # another at every layer; in turn each has all of them.
            size = s.batch_size // (_TASKS_PER_THREAD * max(1, s.n_workers))
            size = min(max(1, size), _IMAGES_PER_TASK)
            return map_in_bursts(
                self._load,
                _tasks(rows, size),
                n_workers=s.n_workers,
                burst=-(-self._images_per_burst // size),
            )
        ahead = max(2 * s.n_workers, -(-2 * s.batch_size // _IMAGES_PER_TASK))
        tasks = _tasks(rows, _IMAGES_PER_TASK)
        return map_ahead(self._load, tasks, n_workers=s.n_workers, ahead=ahead)

    @property
    def _images_per_burst(self) -> int:
        """Images decoded in one turn: a few batches, of bounded size in memory."""
        s = self.settings
        side = s.image_size or s.backbone.recipe.input_size
        fitting = _BURST_BYTES // (3 * side**2)
        return max(s.batch_size, min(_BATCHES_PER_BURST * s.batch_size, fitting))

    def _load(self, rows: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Decode and crop some images; unreadable ones are remembered and left out."""
        recipe, size = self.settings.backbone.recipe, self.settings.image_size
        enough = recipe.enough(size)
        pixels = []
        for row in rows.tolist():
            try:
                pixels.append((row, recipe.prepare(self.images.load(row, at_least=enough), size)))
                # A file that was repaired since the last pass.
                self.failures.pop(row, None)
            except DecodeError as error:
                self.failures[row] = (error.name, error.reason)
        return pixels

    def _run_batch(self, rows: np.ndarray, batch: torch.Tensor) -> Rows:
        return Rows(rows, self._forward(lambda i, j: self._layers(batch[i:j]), len(rows)))

    def _layers(self, batch: torch.Tensor) -> list[torch.Tensor]:
        s = self.settings
        network = s.backbone.network(s.device, compiled=s.compiled)
        return network.forward(batch, s.layers, s.token_norm)
