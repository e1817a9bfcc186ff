# SPDX-License-Identifier: BSD-3-Clause
"""From a text to what a network reads: ids with everything around them, and which tokens count.

A prefix and an instruction before the text, special tokens around it, the text a second time
(echo), windows of a long text: all of these end up as rows of ids. Which of the tokens are handed
on is decided here once, so that whatever comes after knows tokens of the text alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from skpool.backbones import Tokenizer

__all__ = ["TextReader", "TextRules", "Window"]

# Between the two copies of a text: no token for most encoders, a line of its own for decoders.
_SEPARATOR = "\n"


@dataclass(frozen=True, kw_only=True)
class TextRules:
    """What is put around a text, and how it is cut; all choices made.

    Parameters
    ----------
    prefix, instruction : str
        Stand before the text, in this order.
    exclude_instruction : bool
        Whether the tokens of the instruction are read without being handed on.
    add_eos : bool
        Whether an end token follows a text that nothing follows yet.
    echo : bool
        Whether the text is read twice, and its second copy handed on.
    max_length : int
        Most tokens that the network reads at a time, of all kinds.
    chunk : int or None
        Tokens of a window, of all kinds; None cuts off what is longer than `max_length`.
    overlap : int
        Tokens of the text that two neighbouring windows share.
    """

    prefix: str = ""
    instruction: str = ""
    exclude_instruction: bool = True
    add_eos: bool = False
    echo: bool = False
    max_length: int
    chunk: int | None = None
    overlap: int = 0


class Window(NamedTuple):
    """One row of the network: ids, and which of them are handed on (None for all)."""

    ids: list[int]
    keep: list[bool] | None

    @property
    def n_kept(self) -> int:
        """Number of tokens that are handed on, at least 1."""
        return len(self.ids) if self.keep is None else sum(self.keep)


class TextReader:
    """Applies rules with the tokenizer of a network.

    Parameters
    ----------
    tokenizer : Tokenizer
    rules : TextRules
    """

    def __init__(self, tokenizer: Tokenizer, rules: TextRules):
        self.tokenizer = tokenizer
        self.rules = rules
        self._before = [part for part in (rules.prefix, rules.instruction) if part]
        self._trail = tokenizer.trailing(rules.add_eos)
        self._separator = tokenizer.ids([_SEPARATOR])[0] if rules.echo else []
        # A special token before text of which a part is left out has not seen the rest, unless it
        # is a class token, which sees everything.
        excluded = rules.echo or (rules.exclude_instruction and bool(rules.instruction))
        self._keep_lead = [not excluded] * len(tokenizer.lead)
        if tokenizer.lead and tokenizer.has_cls:
            self._keep_lead[0] = True

    def room(self) -> int:
        """Tokens of a text that fit beside everything else; refuses rules that leave too few."""
        rules = self.rules
        n_before = len(self._split([""])[0][0])
        room = self._room(n_before)
        size = "max_length" if rules.chunk is None else "chunk"
        if room < 1:
            raise ValueError(
                f"{size}={rules.chunk or rules.max_length} leaves no token for the text beside "
                f"{n_before} of prefix and instruction and the special ones; raise {size}."
            )
        if rules.chunk is not None and rules.overlap >= room:
            raise ValueError(
                f"chunk_overlap={rules.overlap} must be less than the {room} tokens of the text in "
                f"a window of chunk={rules.chunk}."
            )
        return room

    def _room(self, n_before: int) -> int:
        rules = self.rules
        around = len(self.tokenizer.lead) + n_before + len(self._trail)
        free = (rules.chunk or rules.max_length) - around
        return (free - len(self._separator)) // 2 if rules.echo else free

    def read(self, texts: Sequence[str]) -> tuple[list[list[Window]], list[bool]]:
        """Tokenise texts.

        Parameters
        ----------
        texts : sequence of str

        Returns
        -------
        windows : list of lists of Window
            One window per text, or several where `chunk` is set.
        cut : list of bool
            Whether the end of a text was cut off.
        """
        windows, cut = [], []
        for before, keep, ids in self._split(texts):
            room = max(1, self._room(len(before)))
            pieces = self._pieces(ids, room)
            windows.append([self._window(before, keep, piece) for piece in pieces])
            cut.append(self.rules.chunk is None and len(ids) > room)
        return windows, cut

    def _split(self, texts: Sequence[str]) -> list[tuple[list[int], list[bool], list[int]]]:
        """Ids before a text, which of them are handed on, and ids of the text."""
        if not self._before:
            return [([], [], ids) for ids in self.tokenizer.ids(texts)]
        n_prefix, n_before = len(self.rules.prefix), sum(map(len, self._before))
        parts = []
        for ids, ends in self.tokenizer.after(self._before, texts):
            # A token that reaches into what follows belongs to it.
            n = next((i for i, end in enumerate(ends) if end > n_before), len(ids))
            excluded = self.rules.exclude_instruction
            keep = [end <= n_prefix or not excluded for end in ends[:n]]
            parts.append((ids[:n], keep, ids[n:]))
        return parts

    def _pieces(self, ids: list[int], room: int) -> list[list[int]]:
        """What of a text each window holds; the last one ends where the text ends."""
        if self.rules.chunk is None or len(ids) <= room:
            return [ids[:room]]
        step = max(1, room - self.rules.overlap)
        starts = range(0, len(ids) - room + step, step)
        return [ids[start : start + room] for start in starts]

    def _window(self, before: list[int], keep_before: list[bool], piece: list[int]) -> Window:
        first = [*piece, *self._separator] if self.rules.echo else []
        ids = [*self.tokenizer.lead, *before, *first, *piece, *self._trail]
        if not ids:
            ids = [self.tokenizer.fallback]
        n_rest = len(ids) - len(self._keep_lead) - len(before) - len(first)
        keep = [*self._keep_lead, *keep_before, *[False] * len(first), *[True] * n_rest]
        if all(keep):
            return Window(ids, None)
        if not any(keep):
            # A text without a token of its own: the last one has read all that there is.
            keep[-1] = True
        return Window(ids, keep)
