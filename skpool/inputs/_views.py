# SPDX-License-Identifier: BSD-3-Clause
"""Views of images: each image several times, cropped, turned, zoomed or mirrored, as one sequence.

Test-time augmentation makes a sequence of views out of a sequence of images and runs an extractor
on it once. A view is a sample like any other: it is made only when its row is loaded, neighbouring
rows share one decoding, and its key comes from the image's key and the definition of the view, so
that stores find it again.
"""

import hashlib
import inspect
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageOps

from skpool.inputs._decode import DecodeError
from skpool.inputs._image_sequence import ImageSequence
from skpool.inputs._keys import KEY_BYTES, sample_key
from skpool.utils import fingerprint

__all__ = ["VIEWS", "image_views", "view_sequence"]

# Part of every key: a change of the pixels that a definition below gives must raise this number.
_GEOMETRY = 1

_CORNERS_AND_CENTRE = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5))


def _even_margin(side: int, kept: float) -> int:
    """Pixels to leave out on each of both ends, so that a centred part is centred exactly."""
    return min(round(side * (1 - kept) / 2), (side - 1) // 2)


@dataclass(frozen=True)
class GeometricView:
    """One built-in view, wholly described by its numbers.

    Attributes
    ----------
    corner : tuple of 2 floats or None
        Where a crop lies between the left (0) and right (1), and the top and bottom edge.
    area : float
        Share of the image's area that the crop keeps.
    angle : float
        Rotation in degrees, anticlockwise.
    scale : float
        Zoom: above 1 the middle is kept, below 1 the image is continued by its mirror image.
    mirror : bool
        Whether left and right are exchanged, after all else.
    """

    corner: tuple[float, float] | None = None
    area: float = 1.0
    angle: float = 0.0
    scale: float = 1.0
    mirror: bool = False

    @property
    def identity(self) -> bytes | None:
        """Bytes that stand for the definition; empty for the image as it is."""
        if self == GeometricView():
            return b""
        numbers = (self.corner, self.area, self.angle, self.scale, self.mirror)
        return fingerprint("view", _GEOMETRY, numbers).encode()

    def apply(self, image: Image.Image) -> Image.Image:
        """Return the view of an RGB image."""
        if self.corner is not None:
            image = _crop(image, self.corner, math.sqrt(self.area))
        if self.angle:
            image = _rotate(image, self.angle)
        if self.scale != 1:
            image = _zoom(image, self.scale)
        return ImageOps.mirror(image) if self.mirror else image


def _crop(image: Image.Image, corner: tuple[float, float], kept: float) -> Image.Image:
    """A part with `kept` of each side, between the edges where `corner` says."""
    margins = [_even_margin(side, kept) for side in image.size]
    left, top = (round(2 * m * c) for m, c in zip(margins, corner, strict=True))
    width, height = (side - 2 * m for side, m in zip(image.size, margins, strict=True))
    return image.crop((left, top, left + width, top + height))


def _rotate(image: Image.Image, angle: float) -> Image.Image:
    """Rotate, and keep the largest centred part of equal aspect that no corner cuts."""
    width, height = image.size
    cos, sin = (abs(f(math.radians(angle))) for f in (math.cos, math.sin))
    kept = min(width / (width * cos + height * sin), height / (width * sin + height * cos))
    margins = [math.ceil(side * (1 - kept) / 2) for side in image.size]
    most = [(side - 1) // 2 for side in image.size]
    pad = 0
    if any(margin > limit for margin, limit in zip(margins, most, strict=True)):
        # So thin that less than a pixel would be left: what is turned in continues the image.
        pad, margins = max(image.size), [min(pair) for pair in zip(margins, most, strict=True)]
        image = _extended(image, pad, pad)
    turned = image.rotate(angle, resample=Image.Resampling.BICUBIC)
    left, top = pad + margins[0], pad + margins[1]
    return turned.crop((left, top, pad + width - margins[0], pad + height - margins[1]))


def _zoom(image: Image.Image, scale: float) -> Image.Image:
    """Show the image `scale` times as large on a canvas of unchanged relative size."""
    if scale > 1:
        return _crop(image, (0.5, 0.5), 1 / scale)
    return _extended(image, *(round(side * (1 / scale - 1) / 2) for side in image.size))


def _extended(image: Image.Image, width: int, height: int) -> Image.Image:
    """Continue an image on all sides by its mirror image, which adds no edges of its own."""
    pixels = np.pad(np.asarray(image), ((height, height), (width, width), (0, 0)), "symmetric")
    return Image.fromarray(pixels)


@dataclass(frozen=True)
class CustomView:
    """A view that a user wrote.

    Attributes
    ----------
    function : callable
        PIL image to PIL image.
    name : str or None
        What it is known by in stores; None knows it by the pixels that it gives.
    seed : tuple of int or None
        Of the generator that it is called with.
    """

    function: Callable
    name: str | None = None
    seed: tuple[int, int] | None = None

    @property
    def identity(self) -> bytes | None:
        """Bytes that stand for the definition; None where only the pixels can tell."""
        if self.name is None:
            return None
        return fingerprint("named view", self.name, self.seed).encode()

    def apply(self, image: Image.Image) -> Image.Image:
        """Return the view of an RGB image, which may write to its argument."""
        options = {} if self.seed is None else {"rng": np.random.default_rng(self.seed)}
        view = self.function(image.copy(), **options)
        if not isinstance(view, Image.Image) or 0 in view.size:
            raise TypeError(
                f"The view {self.function!r:.80} returned {view!r:.80}; it must return a PIL image "
                "with at least one pixel."
            )
        return view if view.mode == "RGB" else view.convert("RGB")


View = GeometricView | CustomView


def _with_mirrors(views: Sequence[GeometricView]) -> tuple[GeometricView, ...]:
    return (*views, *(replace(view, mirror=True) for view in views))


def _flip(**options) -> tuple[GeometricView, ...]:
    return _with_mirrors([GeometricView()])


def _five_crop(*, crop_area: float, **options) -> tuple[GeometricView, ...]:
    return tuple(GeometricView(corner=c, area=crop_area) for c in _CORNERS_AND_CENTRE)


def _ten_crop(**options) -> tuple[GeometricView, ...]:
    return _with_mirrors(_five_crop(**options))


def _sixteen_view(*, angle: float, **options) -> tuple[GeometricView, ...]:
    turned = (GeometricView(angle=angle), GeometricView(angle=-angle))
    return _with_mirrors([GeometricView(), *_five_crop(**options), *turned])


def _multi_scale(*, scales: Sequence[float], **options) -> tuple[GeometricView, ...]:
    return tuple(GeometricView(scale=float(scale)) for scale in scales)


VIEWS: dict[str, Callable[..., tuple[GeometricView, ...]]] = {
    "five_crop": _five_crop,
    "flip": _flip,
    "multi_scale": _multi_scale,
    "sixteen_view": _sixteen_view,
    "ten_crop": _ten_crop,
}


def _custom(view: object, number: int, random_state: int) -> CustomView:
    name, function = view if isinstance(view, tuple) and len(view) == 2 else (None, view)
    if not callable(function) or not (name is None or isinstance(name, str)):
        raise TypeError(
            f"views[{number}]={view!r:.80} is not a view; give a callable from a PIL image to a "
            "PIL image, or a pair (name, callable)."
        )
    try:
        random = "rng" in inspect.signature(function).parameters
    except ValueError:
        # Some callables written in C do not tell their parameters; they take no generator.
        random = False
    return CustomView(function, name, (random_state, number) if random else None)


def image_views(
    views: str | Sequence,
    *,
    crop_area: float = 4 / 9,
    angle: float = 15.0,
    scales: Sequence[float] = (0.7071, 1.0, 1.4142),
    random_state: int = 0,
) -> tuple[View, ...]:
    """Return the definitions of a set of views.

    Parameters
    ----------
    views : str or list of callables
        A name in ``VIEWS``; or callables from a PIL image (RGB) to a PIL image, or pairs
        (name, callable). A callable with a parameter ``rng`` is given a numpy generator, which
        starts anew for every image.
    crop_area : float, default=4/9
        Share of the image's area in a crop.
    angle : float, default=15.0
        Degrees of the rotations.
    scales : sequence of float, default=(0.7071, 1.0, 1.4142)
        Zooms of "multi_scale".
    random_state : int, default=0
        Seed of the generators.

    Returns
    -------
    views : tuple
        One definition per view.

    Examples
    --------
    >>> from skpool.inputs import image_views
    >>> len(image_views("sixteen_view"))
    16
    """
    if isinstance(views, str):
        if views not in VIEWS:
            raise ValueError(
                f"views={views!r} is unknown; choose one of {sorted(VIEWS)}, or give callables."
            )
        if not len(scales) or min(scales) <= 0 or not np.isfinite(scales).all():
            raise ValueError(f"scales={scales!r} must hold positive numbers, at least one.")
        return VIEWS[views](crop_area=crop_area, angle=angle, scales=scales)
    if not len(views):
        raise ValueError("views is empty; give at least one callable, or a name.")
    return tuple(_custom(view, number, random_state) for number, view in enumerate(views))


def _serves(result: Image.Image | DecodeError, reduced: int | None, at_least: int | None) -> bool:
    """Whether a result that was decoded to `reduced` is what `at_least` would give."""
    if reduced == at_least or isinstance(result, DecodeError):
        return True
    if reduced is None:
        # Decoded in full, and too small to be decoded to less.
        return min(result.size) < 2 * at_least
    # Smaller than a reduced image can be, so that nothing was left out.
    return at_least is None and min(result.size) < reduced


class _ViewBase:
    """What all slices of one sequence of views share; stands where a base of images stands.

    Parameters
    ----------
    images : ImageSequence
    views : sequence of View
    image, view : ndarray of int of shape (n_rows,)
        Which view of which image every row is.
    """

    def __init__(
        self, images: ImageSequence, views: Sequence[View], image: np.ndarray, view: np.ndarray
    ):
        self.images, self.views, self.image, self.view = images, tuple(views), image, view
        self._last = threading.local()

    @property
    def key(self) -> str:
        return self.images.key

    def __len__(self) -> int:
        return len(self.image)

    def name(self, row: int) -> str:
        return self.images.name(self.image[row])

    def load(self, row: int, at_least: int | None = None) -> Image.Image:
        view, i = self.views[self.view[row]], int(self.image[row])
        if view.identity == b"":
            # It has the key of its image, and must be what the image would be.
            return self._decoded(i, at_least)
        # A view may show a small part, which needs all of its pixels.
        return view.apply(self._decoded(i, None))

    def _decoded(self, i: int, at_least: int | None) -> Image.Image:
        """The image, or its error, remembered until this thread asks for another."""
        last = self._last
        if getattr(last, "number", None) != i or not _serves(last.result, last.reduced, at_least):
            try:
                last.result = self.images.load(i, at_least=at_least)
            except DecodeError as error:
                last.result = error
            last.number, last.reduced = i, at_least
        if isinstance(last.result, DecodeError):
            raise DecodeError(last.result.reason, last.result.name)
        return last.result

    def keys(self, rows: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """Return the keys of some rows, and the reasons of those that have none."""
        known, which = np.unique(self.image[rows], return_inverse=True)
        of_images, failures = self.images[known].keys()
        identities = [view.identity for view in self.views]
        keys = np.zeros(len(rows), dtype=f"V{KEY_BYTES}")
        reasons: dict[int, str] = {}
        for position, row in enumerate(rows.tolist()):
            if which[position] in failures:
                reasons[position] = failures[which[position]]
                continue
            try:
                identity = identities[self.view[row]]
                keys[position] = self._key(row, of_images[which[position]].item(), identity)
            except DecodeError as error:
                reasons[position] = error.reason
        return keys, reasons

    def _key(self, row: int, of_image: bytes, identity: bytes | None) -> bytes:
        if identity is None:
            # Code has no identity that could be relied on; the pixels that it gives have one.
            return sample_key(self.load(row))
        if not identity:
            return of_image
        return hashlib.sha256(b"view\0" + identity + b"\0" + of_image).digest()[:KEY_BYTES]

    def rekeyed(self, key: str) -> "_ViewBase":
        """Return the same views of images whose files are known in another way."""
        images = ImageSequence(self.images, key=key)
        return _ViewBase(images, self.views, self.image, self.view)

    def subset(self, rows: np.ndarray) -> "_ViewBase":
        """Return a base of some rows, with the images that they need."""
        needed, image = np.unique(self.image[rows], return_inverse=True)
        return _ViewBase(self.images[needed], self.views, image, self.view[rows])

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k != "_last"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._last = threading.local()


def view_sequence(images: ImageSequence, views: Sequence[View]) -> ImageSequence:
    """Return all views of all images as one lazy sequence, image by image.

    Parameters
    ----------
    images : ImageSequence
    views : sequence
        Definitions, from :func:`image_views`.

    Returns
    -------
    sequence : ImageSequence of length n_images * n_views
        Row ``i * n_views + v`` is view v of image i, under the image's name. Its key follows from
        the key of the image and the definition of the view; the view that changes nothing has the
        image's own key, and that of a callable without a name is the hash of its pixels.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.inputs import ImageSequence, image_views, view_sequence
    >>> images = ImageSequence(np.zeros((2, 4, 4, 3), dtype=np.uint8))
    >>> view_sequence(images, image_views("flip"))
    ImageSequence of 4 images: X[0], X[0], X[1], ...
    """
    n_images, n_views = len(images), len(views)
    image, view = np.divmod(np.arange(n_images * n_views), n_views)
    sequence = object.__new__(ImageSequence)
    sequence._base = _ViewBase(images, views, image, view)
    sequence._rows = np.arange(n_images * n_views)
    return sequence
