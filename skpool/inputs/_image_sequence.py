# SPDX-License-Identifier: BSD-3-Clause
"""The lazy X of images: whatever list a user has, indexed as scikit-learn indexes an array.

Extractors turn their X into an `ImageSequence` first. Splits and subsets of it are views of one
base, which remembers the keys of its samples; pixels are decoded only when a row is asked for.
"""

import operator
import os
import threading
from collections.abc import Iterator
from numbers import Integral

import numpy as np
from PIL import Image

from skpool._config import get_config
from skpool.inputs._decode import DecodeError, decode_image
from skpool.inputs._keys import KEY_BYTES, KEY_KINDS, sample_key

__all__ = ["ImageSequence"]

_CHANNELS = (1, 3, 4)
_ACCEPTED = (
    "a list, tuple, 1-D array or Series of paths, PIL images or uint8 arrays (H, W, C), one uint8 "
    "array (n, H, W, C), or an ImageSequence"
)


def _refuse_single(samples: object) -> None:
    if isinstance(samples, (str, bytes, os.PathLike)):
        raise TypeError(f"samples={samples!r:.80} is a single path; pass a list: [path].")
    if isinstance(samples, Image.Image):
        raise TypeError(f"samples={samples!r:.80} is a single image; pass a list: [image].")


def _dtype_remedy(dtype: np.dtype) -> str:
    if dtype.kind == "f":
        return 'for values in [0, 1] pass (255 * X).round().astype("uint8")'
    if dtype.kind == "b":
        return 'pass X.astype("uint8") * 255'
    return 'for values from 0 to 255 pass X.astype("uint8")'


def _shape_remedy(shape: tuple[int, ...]) -> str:
    if len(shape) == 2:
        return (
            "pass X[None, ..., None] for one grey image, or reshape flattened images to "
            "(n, H, W, C)"
        )
    if len(shape) == 3:
        one = ", X[None] for one colour image" if shape[2] in _CHANNELS else ""
        return f"pass X[..., None] for n grey images{one}"
    if len(shape) == 4 and shape[1] in _CHANNELS:
        return "the channels seem to stand second; pass X.transpose(0, 2, 3, 1)"
    return "reshape it to (n, H, W, C) with C in (1, 3, 4)"


def _checked_block(X: np.ndarray) -> np.ndarray:
    """Check one array that holds all images."""
    if X.dtype.kind not in "fiub":
        raise TypeError(f"samples is an array of dtype {X.dtype}; pass {_ACCEPTED}.")
    if X.dtype != np.uint8:
        raise ValueError(
            f"samples is an array of dtype {X.dtype}; images are uint8: {_dtype_remedy(X.dtype)}."
        )
    if X.ndim != 4 or X.shape[3] not in _CHANNELS:
        raise ValueError(
            f"samples is an array of shape {X.shape}; images are (n, H, W, C) with C in (1, 3, 4): "
            f"{_shape_remedy(X.shape)}."
        )
    if 0 in X.shape[1:3]:
        raise ValueError(f"samples is an array of shape {X.shape}, of images without pixels.")
    return X


def _checked_item_array(item: np.ndarray, position: int) -> np.ndarray:
    """Check one image of a list of arrays."""
    if item.dtype != np.uint8:
        remedy = _dtype_remedy(item.dtype).replace("X", "it")
        raise ValueError(
            f"samples[{position}] is an array of dtype {item.dtype}; images are uint8: {remedy}."
        )
    if item.ndim == 3 and item.shape[2] in _CHANNELS and 0 not in item.shape:
        return item
    if item.ndim == 2:
        remedy = "add a channel axis: image[..., None]"
    elif item.ndim == 3 and item.shape[0] in _CHANNELS:
        remedy = "the channels seem to stand first; pass image.transpose(1, 2, 0)"
    else:
        remedy = "reshape it to (H, W, C) with C in (1, 3, 4)"
    raise ValueError(
        f"samples[{position}] is an array of shape {item.shape}; an image is (H, W, C) with C in "
        f"(1, 3, 4): {remedy}."
    )


def _checked_item(item: object, position: int) -> str | Image.Image | np.ndarray:
    if isinstance(item, str):
        return str(item)
    if isinstance(item, os.PathLike):
        return os.fsdecode(item)
    if isinstance(item, Image.Image):
        return item
    if isinstance(item, np.ndarray):
        return _checked_item_array(item, position)
    # pandas' NA cannot be compared, so it is known by the name of its type.
    if (
        item is None
        or type(item).__name__ in ("NAType", "NaTType")
        or (isinstance(item, float) and item != item)
    ):
        raise ValueError(
            f"samples[{position}] is missing ({item!r}); drop this row from X and y, or fill it in."
        )
    raise TypeError(
        f"samples[{position}]={item!r:.80} is of type {type(item).__name__}; every item must be a "
        "path, a PIL image or a uint8 array (H, W, C)."
    )


def _as_list_or_block(samples: object) -> list | tuple | np.ndarray:
    """Take the samples out of their container: a sequence of items, or one block of pixels."""
    if hasattr(samples, "to_numpy"):
        if len(getattr(samples, "shape", ())) > 1:
            raise TypeError(
                f"samples is a {type(samples).__name__} of shape {samples.shape}; pass the one "
                'column that holds the images: df["path"].'
            )
        samples = samples.to_numpy()
    if isinstance(samples, np.ndarray) and samples.dtype.kind in "OTU":
        if samples.ndim != 1:
            raise ValueError(
                f"samples is an array of dtype {samples.dtype} and shape {samples.shape}; paths "
                "and images stand in one dimension: pass X.ravel()."
            )
        return samples.tolist()
    if isinstance(samples, (list, tuple, np.ndarray)):
        return samples
    raise TypeError(f"samples is of type {type(samples).__name__}; pass {_ACCEPTED}.")


def _checked_sources(samples: object) -> list | np.ndarray:
    """Return what the user passed as one list of items or one block, or say what is wrong."""
    _refuse_single(samples)
    samples = _as_list_or_block(samples)
    block = isinstance(samples, np.ndarray)
    if samples.shape[:1] == (0,) if block else not samples:
        raise ValueError(
            "Found array with 0 sample(s) while a minimum of 1 is required by ImageSequence; pass "
            "at least one path or image."
        )
    if block:
        return _checked_block(samples)
    return [_checked_item(item, position) for position, item in enumerate(samples)]


def _portable(source: object) -> object:
    """Make one sample ready for pickle, which would read a user's open images, or fail on them."""
    if not isinstance(source, Image.Image):
        return source
    try:
        return decode_image(source, max_pixels=get_config()["max_pixels"])
    except DecodeError as error:
        return error


class _Base:
    """What all views of one ImageSequence share: the samples, and their keys once computed.

    `positions` says where the samples stood in the base that the user made, when only those that
    a view needs were pickled.
    """

    def __init__(
        self, sources: list | np.ndarray, *, key: str, positions: np.ndarray | None = None
    ):
        self.sources = sources
        self.key = key
        self.positions = positions
        self._keys = np.zeros(len(sources), dtype=f"V{KEY_BYTES}")
        self._known = np.zeros(len(sources), dtype=bool)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.sources)

    def source(self, row: int) -> str | Image.Image | np.ndarray:
        source = self.sources[row]
        if isinstance(source, DecodeError):
            raise DecodeError(source.reason)
        return source

    def load(self, row: int, at_least: int | None) -> Image.Image:
        limit = get_config()["max_pixels"]
        return decode_image(self.source(row), max_pixels=limit, at_least=at_least)

    def name(self, row: int) -> str:
        source = self.sources[row]
        if isinstance(source, str):
            return source
        return f"X[{row if self.positions is None else self.positions[row]}]"

    def rekeyed(self, key: str) -> "_Base":
        """Return a base of the same samples, whose files are known in another way."""
        return _Base(self.sources, key=key, positions=self.positions)

    def keys(self, rows: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """Return the keys of some rows, and the reasons of those that have none."""
        reasons: dict[int, str] = {}
        with self._lock:
            for row in np.unique(rows[~self._known[rows]]).tolist():
                try:
                    self._keys[row] = sample_key(self.source(row), by=self.key)
                    self._known[row] = True
                except DecodeError as error:
                    reasons[row] = error.reason
            keys = self._keys[rows]
        failures = {i: reasons[row] for i, row in enumerate(rows.tolist()) if row in reasons}
        return keys, failures

    def subset(self, rows: np.ndarray) -> "_Base":
        """Return a base of some rows only, which keep their names."""
        positions = rows if self.positions is None else self.positions[rows]
        block = isinstance(self.sources, np.ndarray)
        sources = self.sources[rows] if block else [self.sources[row] for row in rows.tolist()]
        part = _Base(sources, key=self.key, positions=positions)
        with self._lock:
            part._keys, part._known = self._keys[rows], self._known[rows]
        return part

    def __getstate__(self) -> dict:
        state = self.__dict__.copy()
        del state["_lock"]
        with self._lock:
            state["_keys"], state["_known"] = self._keys.copy(), self._known.copy()
        if isinstance(self.sources, list):
            # Pixels travel with their keys, files do not: they may change before the other end.
            paths = np.array([isinstance(source, str) for source in self.sources], dtype=bool)
            state["_keys"][paths] = np.zeros((), dtype=self._keys.dtype)
            state["_known"][paths] = False
            state["sources"] = [_portable(source) for source in self.sources]
        return state

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


class ImageSequence:
    """A lazy, array-like view of images, indexed without reading them.

    It has the length, the shape and the indexing of a 1-D array, so that scikit-learn's splitters
    and searches take it as X; a row is decoded only when it is asked for.

    Parameters
    ----------
    samples : array-like of length n_samples, or uint8 ndarray of shape (n_samples, H, W, C)
        A list, tuple, 1-D array or Series of paths (str or path-like), of PIL images, or of uint8
        arrays (H, W, C), of any sizes and mixed as you like; or one uint8 array. C is 1 (grey),
        3 (RGB) or 4 (RGBA). Another ImageSequence gives a view that shares its base.
    key : {"stat", "content"}, default="stat"
        How files are known to stores, see :func:`sample_key`. Another ImageSequence passes its own
        on, unless "content" is asked of one that has "stat".

    Attributes
    ----------
    shape : tuple of one int
        The number of samples.
    ndim : int
        1.
    key : {"stat", "content"}
        How files are known.

    See Also
    --------
    decode_image : The rules by which a sample becomes RGB pixels.
    sample_key : The key of one sample.

    Notes
    -----
    An int gives the pixels of one image, as a uint8 ndarray of shape (H, W, 3); a slice, an int
    array (negative from the end) or a boolean mask gives a view of the same base. Nothing that the
    user passed is modified or, for arrays, copied.

    Files are not touched by the constructor: one that is missing or damaged is reported when it is
    loaded, by name, as one of the size above ``skpool.get_config()["max_pixels"]`` is.

    Pickling sends the samples of this view only: paths as paths, PIL images as decoded RGB. Paths
    are the cheapest X for searches with several processes. All methods can be called from many
    threads at once.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.inputs import ImageSequence
    >>> images = ImageSequence(np.zeros((10, 4, 5, 1), dtype=np.uint8))
    >>> images.shape
    (10,)
    >>> images[2:5]
    ImageSequence of 3 images: X[2], X[3], X[4]
    >>> images[2:5][0].shape
    (4, 5, 3)
    """

    def __init__(self, samples: object, *, key: str = "stat"):
        if key not in KEY_KINDS:
            raise ValueError(f"key={key!r} is not a kind of key; give one of {list(KEY_KINDS)}.")
        if not isinstance(samples, ImageSequence):
            self._base = _Base(_checked_sources(samples), key=key)
            self._rows = np.arange(len(self._base))
            return
        self._base, self._rows = samples._base, samples._rows
        if key == "content" and samples.key != "content":
            self._base = self._base.rekeyed(key)

    @property
    def shape(self) -> tuple[int]:
        """Number of images, as a tuple."""
        return (len(self._rows),)

    @property
    def ndim(self) -> int:
        """Number of axes, 1."""
        return 1

    @property
    def key(self) -> str:
        """How files are keyed: by "stat" or by "content"."""
        return self._base.key

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        shown = [self.name(i) for i in range(min(len(self), 3))]
        dots = ["..."] if len(self) > 3 else []
        noun = "image" if len(self) == 1 else "images"
        return f"ImageSequence of {len(self)} {noun}: {', '.join(shown + dots)}"

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: object) -> "np.ndarray | ImageSequence":
        if isinstance(index, tuple) or index is Ellipsis:
            index = _only_index(index if isinstance(index, tuple) else (index,))
        if isinstance(index, np.ndarray) and index.ndim == 0:
            index = index[()]
        if isinstance(index, Integral) and not isinstance(index, bool):
            return np.array(self.load(index))
        if isinstance(index, slice):
            return self._view(self._rows[index])
        return self._view(self._rows[_index_array(index)])

    def _view(self, rows: np.ndarray) -> "ImageSequence":
        view = object.__new__(type(self))
        view._base, view._rows = self._base, rows
        return view

    def _row(self, i: int) -> int:
        try:
            return int(self._rows[operator.index(i)])
        except IndexError:
            raise IndexError(
                f"index {i} is out of bounds for an ImageSequence of {len(self)} images."
            ) from None

    def name(self, i: int) -> str:
        """Return the name of one sample, for messages.

        Parameters
        ----------
        i : int
            Position in this view; negative from the end.

        Returns
        -------
        name : str
            The path as it was given, or ``"X[12]"`` with the position in the base.
        """
        return self._base.name(self._row(i))

    def load(self, i: int, *, at_least: int | None = None) -> Image.Image:
        """Decode one sample by the rules of :func:`decode_image`.

        Parameters
        ----------
        i : int
            Position in this view; negative from the end.
        at_least : int, default=None
            Sides in pixels above which a JPEG need not be decoded in full.

        Returns
        -------
        image : PIL.Image.Image
            Mode RGB, fully loaded.

        Raises
        ------
        DecodeError
            The sample cannot be decoded; its message begins with the sample's name, which is also
            the attribute `name`, and the attribute `reason` holds the rest.
        """
        row = self._row(i)
        try:
            return self._base.load(row, at_least)
        except DecodeError as error:
            raise DecodeError(error.reason, self._base.name(row)) from error

    def keys(self) -> tuple[np.ndarray, dict[int, str]]:
        """Return the keys of all samples of this view.

        Returns
        -------
        keys : ndarray of shape (n_samples,) and dtype V16
            16 bytes for each sample, all zero where there is none.
        failures : dict of int to str
            The reason for every sample without a key (a missing file, say), by its position in
            this view.

        Notes
        -----
        The base remembers a key once it is computed, and all its views share it: a file that
        changes later keeps its key until a new ImageSequence is made of it. Failures are not
        remembered. A pickle carries the keys of pixels and not those of files.
        """
        return self._base.keys(self._rows)

    def __getstate__(self) -> dict:
        rows, inverse = np.unique(self._rows, return_inverse=True)
        # The whole base is sent as it is, so that joblib can share one array between its tasks.
        base = self._base if len(rows) == len(self._base) else self._base.subset(rows)
        return {"_base": base, "_rows": inverse}


def _only_index(index: tuple) -> object:
    """Take ``k`` out of ``(k,)`` and ``(k, ...)``, the forms in which scikit-learn indexes."""
    rest = [part for part in index if part is not Ellipsis]
    if len(rest) > 1 or len(index) - len(rest) > 1:
        raise IndexError(
            f"an ImageSequence has one dimension, and was indexed with {len(index)} indices."
        )
    return rest[0] if rest else slice(None)


def _index_array(index: object) -> np.ndarray:
    """Return an index that numpy applies to a 1-D array without adding dimensions."""
    array = np.asarray(index)
    if array.size == 0 and not isinstance(index, np.ndarray):
        array = array.astype(np.intp)
    if array.ndim != 1 or array.dtype.kind not in "iub":
        raise IndexError(
            f"index {index!r:.80} is not valid for an ImageSequence; give an int, a slice, a 1-D "
            "int array or a 1-D boolean mask."
        )
    return array
