# SPDX-License-Identifier: BSD-3-Clause
"""The lazy X of texts: whatever list a user has, indexed as scikit-learn indexes an array.

The counterpart of `ImageSequence`: text extractors turn their X into a `TextSequence` first, which
says what is no text by its position, and gives every text the key under which stores know it.
"""

import hashlib
from collections.abc import Iterator

import numpy as np

from skpool.inputs._keys import KEY_BYTES

__all__ = ["TextSequence", "text_key"]

_ACCEPTED = "a list, tuple, 1-D array or Series of strings, or a TextSequence"


def text_key(text: str) -> bytes:
    """Return the key of one text.

    Parameters
    ----------
    text : str

    Returns
    -------
    key : bytes of length 16
        The first 128 bits of a SHA-256 of the text in UTF-8: equal for equal texts in any list,
        process and session.

    Raises
    ------
    ValueError
        The text holds half of a surrogate pair, which no encoding of Unicode has.

    Examples
    --------
    >>> from skpool.inputs import text_key
    >>> text_key("frozen") == text_key("fro" + "zen")
    True
    """
    try:
        content = text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{text!r:.80} holds half of a surrogate pair, which is no character; decode its "
            'source with errors="replace".'
        ) from None
    return hashlib.sha256(b"text\0" + content).digest()[:KEY_BYTES]


def _is_missing(item: object) -> bool:
    # pandas' NA cannot be compared, so it is known by the name of its type.
    return (
        item is None
        or type(item).__name__ in ("NAType", "NaTType")
        or (isinstance(item, (float, np.floating)) and item != item)
    )


def _checked_item(item: object, position: int) -> str:
    if isinstance(item, str):
        # numpy's own text type is a subclass.
        return str(item)
    if _is_missing(item):
        raise ValueError(
            f"samples[{position}] is missing ({item!r}); drop this row from X and y, or fill it "
            'in: X.fillna("").'
        )
    remedy = "; decode it first" if isinstance(item, bytes) else ""
    raise TypeError(
        f"samples[{position}]={item!r:.80} is of type {type(item).__name__}{remedy}; every item "
        "must be a string."
    )


def _items(samples: object) -> list | tuple:
    """Take the texts out of their container."""
    if isinstance(samples, (str, bytes)):
        raise TypeError(f"samples={samples!r:.80} is a single text; pass a list: [text].")
    shape = getattr(samples, "shape", None)
    if shape is not None and len(shape) != 1:
        raise TypeError(
            f"samples is a {type(samples).__name__} of shape {tuple(shape)}; pass the one column "
            'that holds the texts, for example df["text"].'
        )
    if hasattr(samples, "to_numpy"):
        samples = samples.to_numpy(dtype=object)
    if isinstance(samples, np.ndarray):
        samples = samples.tolist()
    if not isinstance(samples, (list, tuple)):
        raise TypeError(f"samples is of type {type(samples).__name__}; pass {_ACCEPTED}.")
    if not samples:
        raise ValueError(
            "Found array with 0 sample(s) while a minimum of 1 is required by TextSequence; pass "
            "at least one text."
        )
    return samples


class _Base:
    """What all views of one TextSequence share: the texts, and their keys once computed."""

    def __init__(self, texts: list[str], positions: np.ndarray | None = None):
        self.texts = np.empty(len(texts), dtype=object)
        self.texts[:] = texts
        self.positions = positions
        self._keys: np.ndarray | None = None

    def keys(self) -> np.ndarray:
        if self._keys is None:
            keys = np.zeros(len(self.texts), dtype=f"V{KEY_BYTES}")
            for row, text in enumerate(self.texts):
                try:
                    keys[row] = text_key(text)
                except ValueError as error:
                    raise ValueError(f"{self.name(row)}: {error}") from None
            self._keys = keys
        return self._keys

    def name(self, row: int) -> str:
        return f"X[{row if self.positions is None else self.positions[row]}]"

    def subset(self, rows: np.ndarray) -> "_Base":
        positions = rows if self.positions is None else self.positions[rows]
        return _Base(self.texts[rows].tolist(), positions)


class TextSequence:
    """An array-like view of texts.

    It has the length, the shape and the indexing of a 1-D array, so that scikit-learn's splitters
    and searches take it as X.

    Parameters
    ----------
    samples : array-like of str of shape (n_samples,)
        A list, tuple, 1-D array or Series of strings. Another TextSequence gives a view that
        shares its base.

    Attributes
    ----------
    shape : tuple of one int
        The number of samples.
    ndim : int
        1.

    See Also
    --------
    text_key : The key of one text.

    Notes
    -----
    An int gives one text; a slice, an int array (negative from the end) or a boolean mask gives a
    view. Pickling sends the texts of this view only. Empty strings are texts; missing values and
    other types are refused by position.

    Examples
    --------
    >>> from skpool.inputs import TextSequence
    >>> texts = TextSequence(["one", "two", "three"])
    >>> texts[[2, 0]]
    TextSequence of 2 texts: 'three', 'one'
    >>> texts[1]
    'two'
    """

    def __init__(self, samples: object):
        if isinstance(samples, TextSequence):
            self._base, self._rows = samples._base, samples._rows
            return
        items = _items(samples)
        self._base = _Base([_checked_item(item, i) for i, item in enumerate(items)])
        self._rows = np.arange(len(items))

    @property
    def shape(self) -> tuple[int]:
        """Number of texts, as a tuple."""
        return (len(self._rows),)

    @property
    def ndim(self) -> int:
        """Number of axes, 1."""
        return 1

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        shown = [f"{text!r:.40}" for text in self._base.texts[self._rows[:3]]]
        dots = ["..."] if len(self) > 3 else []
        noun = "text" if len(self) == 1 else "texts"
        return f"TextSequence of {len(self)} {noun}: {', '.join(shown + dots)}"

    def __iter__(self) -> Iterator[str]:
        return iter(self._base.texts[self._rows])

    def __getitem__(self, index: object) -> "str | TextSequence":
        rows = self._rows[index]
        if np.ndim(rows) == 0:
            return self._base.texts[int(rows)]
        if rows.ndim > 1:
            raise IndexError(
                f"a TextSequence has one dimension, and was indexed with {index!r:.80}."
            )
        view = object.__new__(type(self))
        view._base, view._rows = self._base, rows
        return view

    def name(self, i: int) -> str:
        """Return the name of one sample, for messages.

        Parameters
        ----------
        i : int
            Position in this view; negative from the end.

        Returns
        -------
        name : str
            ``"X[12]"``, with the position in the list that the user gave.
        """
        return self._base.name(int(self._rows[i]))

    def keys(self) -> np.ndarray:
        """Return the keys of all samples of this view, which the base remembers.

        Returns
        -------
        keys : ndarray of shape (n_samples,) and dtype V16
        """
        return self._base.keys()[self._rows]

    def __getstate__(self) -> dict:
        rows, inverse = np.unique(self._rows, return_inverse=True)
        base = self._base if len(rows) == len(self._base.texts) else self._base.subset(rows)
        return {"_base": base, "_rows": inverse}
