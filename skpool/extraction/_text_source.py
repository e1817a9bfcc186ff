# SPDX-License-Identifier: BSD-3-Clause
"""Texts through a frozen network: tokenised, sorted by length, run in batches of equal size.

Texts differ in length, and a batch is as long as its longest. So some thousand of them are taken
together, the longest first, and cut into batches of about as many tokens; the order of the results
is whatever the batches were, and the loop above puts it right. What is handed on are the tokens
that count, followed by zeros where another text of the batch is longer.
"""

import warnings
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from functools import cached_property

import numpy as np
import torch

from skpool.backbones import TextNetwork
from skpool.extraction._exchange import Chunks
from skpool.extraction._network_source import NetworkSource, PassSettings
from skpool.extraction._progress import Progress
from skpool.extraction._spaces import Rows
from skpool.extraction._text_tokens import TextReader, TextRules, Window
from skpool.extraction._threads import map_ahead
from skpool.inputs import TextSequence
from skpool.stores import FeatureStore, Reduction, TokenBatch
from skpool.utils import ArrayLike, fingerprint

__all__ = ["TextSettings", "TextSource", "WindowSource"]

# Texts that are tokenised and sorted together. The more, the less padding; what they are claimed
# for nobody else computes meanwhile.
_SORTED_AT_ONCE = 2048
# Stored tokens in memory at a time, in bytes.
_READ_BYTES = 2**25


@dataclass(frozen=True, kw_only=True)
class TextSettings(PassSettings):
    """How a pass over texts is run.

    `tokens_per_batch` bounds a batch by its tokens, padding included; None makes `batch_size` the
    number of texts, which otherwise only tells the callbacks how many batches to expect.
    """

    rules: TextRules
    tokens_per_batch: int | None
    n_threads: int


def _groups(chunks: Chunks) -> Iterator[np.ndarray]:
    """Rows that are sorted together; an empty chunk is handed on as it is."""
    pending: list[np.ndarray] = []
    for rows in chunks:
        if not len(rows):
            yield rows
            continue
        pending.append(rows)
        if sum(map(len, pending)) >= _SORTED_AT_ONCE:
            yield np.concatenate(pending)
            pending = []
    if pending:
        yield np.concatenate(pending)


def _kept_places(windows: list[Window], longest: int) -> torch.Tensor | None:
    """Where the tokens that are handed on stand, (n, longest); None where they come first."""
    if all(window.keep is None for window in windows):
        return None
    places = torch.zeros((len(windows), longest), dtype=torch.int64)
    for row, window in zip(places, windows, strict=True):
        kept = range(len(window.ids)) if window.keep is None else np.flatnonzero(window.keep)
        row[: len(kept)] = torch.tensor(list(kept))
    return places


class _Cut:
    """Which texts were cut off, and told about; shared by all views of one source."""

    def __init__(self) -> None:
        self.found: set[int] = set()
        self.told: set[int] = set()

    def tell(self, max_length: int) -> None:
        """One warning for what was not told before."""
        new = self.found - self.told
        if not new:
            return
        self.told |= new
        does, was = ("text does", "was") if len(new) == 1 else ("texts do", "were")
        warnings.warn(
            f"{len(new)} {does} not fit into {max_length} tokens (max_length, or what the network "
            f"can take) and {was} cut off; raise max_length, or set chunk to read all of a text.",
            UserWarning,
            stacklevel=3,
        )


class TextSource(NetworkSource):
    """The tokens of a sequence of texts."""

    settings: TextSettings
    n_prefix_tokens = 0

    def __init__(
        self,
        texts: TextSequence,
        settings: TextSettings,
        store: FeatureStore | None,
        progress: Progress | None = None,
    ):
        super().__init__(len(texts), settings, store, progress)
        self.texts = texts
        self._cut = _Cut()

    # Facts.

    @property
    def network(self) -> TextNetwork:
        """The network where it runs."""
        s = self.settings
        return s.backbone.network(s.device, compiled=s.compiled)

    @property
    def cls_index(self) -> int | None:
        """Position of the class token, which counts as a token of the text too."""
        return 0 if self.network.has_cls else None

    @property
    def _width(self) -> int:
        return self.settings.backbone.layout(self.settings.layers[-1]).n_features

    @property
    def _tokens_shape(self) -> tuple[int, int]:
        return int(self.lengths.max()), self._width

    @property
    def _read_at_once(self) -> int:
        # Without a look at all texts for it alone: stored vectors need no tokens at all.
        known = self.__dict__.get("lengths")
        longest = self.settings.rules.max_length if known is None else int(known.max())
        row = longest * self._width * len(self.settings.layers) * self.dtype.itemsize
        return max(1, _READ_BYTES // row)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of every row; all texts are tokenised for it."""
        parts = [
            [window.n_kept for window in self._windows(rows)]
            for rows in np.array_split(
                np.arange(self.n_rows), max(1, -(-self.n_rows // _SORTED_AT_ONCE))
            )
        ]
        self._cut.tell(self.settings.rules.max_length)
        return np.concatenate([np.array(part, dtype=np.int64) for part in parts])

    def mask(self, rows: np.ndarray) -> np.ndarray:
        """Real tokens of the rows."""
        return np.arange(self.lengths.max()) < self.lengths[rows][:, None]

    def _space_of(self, layer: int) -> str:
        s = self.settings
        index = s.backbone.layers[layer]
        unusual = (*self._norm_name(layer), *self._variant())
        rules = astuple(s.rules)
        return fingerprint("texts", s.backbone.fingerprint, index, self.dtype.name, rules, *unusual)

    def _name(self, row: int) -> str:
        return self.texts.name(row)

    @cached_property
    def _keyed(self) -> tuple[np.ndarray, np.ndarray]:
        return self.texts.keys(), np.empty(0, dtype=np.int64)

    # The verbs of a source, which tell of texts that were cut off.

    def stream(self, rows: np.ndarray, batch_size: int | None = None) -> Iterator[TokenBatch]:
        """Yield the tokens of the rows: stored ones first, then computed ones."""
        yield from super().stream(rows, batch_size)
        self._cut.tell(self.settings.rules.max_length)

    def reduce(
        self,
        rows: np.ndarray,
        function: Reduction,
        *,
        fingerprint: str | None = None,
        batch_size: int | None = None,
    ) -> ArrayLike:
        """Turn every row into a vector, kept in the store under the function's fingerprint."""
        vectors = super().reduce(rows, function, fingerprint=fingerprint, batch_size=batch_size)
        self._cut.tell(self.settings.rules.max_length)
        return vectors

    # The pass.

    def _windows(self, rows: np.ndarray) -> list[Window]:
        """What the network reads for some rows."""
        reader = TextReader(self.network.tokenizer, self.settings.rules)
        windows, cut = reader.read([self.texts[row] for row in rows.tolist()])
        self._cut.found.update(rows[np.flatnonzero(cut)].tolist())
        return [first for first, *_ in windows]

    def _run(self, rows: Chunks) -> Iterator[Rows]:
        def tokenised(group: np.ndarray) -> tuple[np.ndarray, list[Window]]:
            return group, self._windows(group) if len(group) else []

        n_workers = self.settings.n_threads
        for group, windows in map_ahead(tokenised, _groups(rows), n_workers=n_workers, ahead=2):
            if not len(group):
                yield Rows.none()
            for batch in self._batches(windows):
                yield self._run_batch(group[batch], [windows[i] for i in batch])

    def _batches(self, windows: list[Window]) -> Iterator[np.ndarray]:
        """Places of the windows of each batch, longest first."""
        lengths = np.array([len(window.ids) for window in windows], dtype=np.int64)
        order = np.argsort(-lengths, kind="stable")
        budget, start = self.settings.tokens_per_batch, 0
        while start < len(order):
            size = self.settings.batch_size
            if budget is not None:
                size = max(1, budget // int(lengths[order[start]]))
            yield order[start : start + size]
            start += size

    def _run_batch(self, rows: np.ndarray, windows: list[Window]) -> Rows:
        device = self.settings.device
        lengths = np.array([window.n_kept for window in windows], dtype=np.int64)
        batch = self.network.batch([window.ids for window in windows]).to(device)
        places = _kept_places(windows, int(lengths.max()))
        places = None if places is None else places.to(device)
        real = torch.arange(int(lengths.max())) < torch.from_numpy(lengths)[:, None]
        real = real.to(device)

        def run(start: int, stop: int) -> list[torch.Tensor]:
            part = None if places is None else places[start:stop]
            return self._layers(batch[start:stop], part, real[start:stop])

        return Rows(rows, self._forward(run, len(rows)), lengths)

    def _layers(
        self, batch: torch.Tensor, places: torch.Tensor | None, real: torch.Tensor
    ) -> list[torch.Tensor]:
        """The tokens that are handed on, zeros after them."""
        s = self.settings
        layers = self.network.forward(batch, s.layers, s.token_norm)
        if places is not None:
            row = torch.arange(len(batch), device=batch.device)[:, None]
            layers = [tokens[row, places] for tokens in layers]
        return [tokens.where(real[..., None], 0.0) for tokens in layers]


class WindowSource(TextSource):
    """The tokens of all windows of some texts: one row per window, those of a text in turn.

    Attributes
    ----------
    text_of_row : ndarray of shape (n_rows,)
        Which text a window is of.
    number_of_row : ndarray of shape (n_rows,)
        Which window of its text it is.
    """

    def __init__(
        self,
        texts: TextSequence,
        settings: TextSettings,
        store: FeatureStore | None,
        progress: Progress | None = None,
    ):
        super().__init__(texts, settings, store, progress)
        counts, lengths = [], []
        for rows in np.array_split(np.arange(len(texts)), -(-len(texts) // _SORTED_AT_ONCE)):
            for windows in self._read(rows):
                counts.append(len(windows))
                lengths += [window.n_kept for window in windows]
        self.text_of_row = np.repeat(np.arange(len(texts)), counts)
        first = np.cumsum(counts) - counts
        self.number_of_row = np.arange(len(lengths)) - first[self.text_of_row]
        self.n_rows = len(lengths)
        self.lengths = np.array(lengths, dtype=np.int64)

    def _read(self, texts: np.ndarray) -> list[list[Window]]:
        reader = TextReader(self.network.tokenizer, self.settings.rules)
        return reader.read([self.texts[i] for i in texts.tolist()])[0]

    def _windows(self, rows: np.ndarray) -> list[Window]:
        texts, place = np.unique(self.text_of_row[rows], return_inverse=True)
        read = self._read(texts)
        numbers = self.number_of_row[rows].tolist()
        return [read[i][number] for i, number in zip(place.tolist(), numbers, strict=True)]

    def _name(self, row: int) -> str:
        return self.texts.name(self.text_of_row[row])

    @cached_property
    def _keyed(self) -> tuple[np.ndarray, np.ndarray]:
        """A window is known by its text and its number; the rules are known to the space."""
        texts = self.texts.keys()
        rows = zip(self.text_of_row.tolist(), self.number_of_row.tolist(), strict=True)
        names = [fingerprint("window", texts[text].tobytes(), number) for text, number in rows]
        keys = np.frombuffer(bytes.fromhex("".join(names)), dtype=texts.dtype)
        return keys, np.empty(0, dtype=np.int64)
