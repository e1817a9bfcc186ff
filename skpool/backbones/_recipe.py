# SPDX-License-Identifier: BSD-3-Clause
"""How a network wants its images: size, crop, interpolation, mean and deviation.

The geometric half (`ImageRecipe.prepare`) runs on the host, in the threads that decode, and gives
uint8 pixels; the arithmetic half (`ImageRecipe.normalize`) runs where the network is, so that a
quarter of the bytes cross to the device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

__all__ = ["ImageRecipe"]

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def _within(box: tuple[float, ...], size: tuple[int, int]) -> tuple[float, ...]:
    """A box without the rounding errors that would put it outside of the image."""
    return (*box[:2], min(box[2], size[0]), min(box[3], size[1]))


@dataclass(frozen=True)
class ImageRecipe:
    """Preprocessing of one backbone's images.

    Parameters
    ----------
    input_size : int, default=224
        Side of the square that the network sees, in pixels.
    mean, std : tuple of 3 floats, default=ImageNet's
        Subtracted from and divided out of RGB values in [0, 1].
    crop_pct : float, default=None
        The short side is resized to ``round(input_size / crop_pct)`` before the centre crop
        (by `fit="squash"`: both sides). None takes 0.875, and 1 for `fit="squash"`.
    interpolation : {"bicubic", "bilinear", "nearest", "lanczos"}, default="bicubic"
        Of the resize; Pillow's filters, which smooth when they shrink.
    fit : {"crop", "squash"}, default="crop"
        "crop" keeps the aspect ratio and cuts the middle square out; "squash" resizes both sides
        alike.
    crop_rounding : {"down", "even"}, default="down"
        Where the middle lies when an odd number of pixels is cut off: transformers rounds down,
        torchvision, timm and open_clip round the half to the even number.
    draft : float or None, default=4.0
        JPEG files with both sides at least twice as large as `draft` times the resized short side
        are decoded at a half, a quarter or an eighth of their size, which is never less than
        `draft` times the resized side. None decodes all pixels.

    Notes
    -----
    Resize and crop are one operation, which gives the pixels of the two in turn (to one grey
    level, in one of ten thousand pixels) without computing those that are cut off.

    Examples
    --------
    >>> import numpy as np
    >>> from PIL import Image
    >>> from skpool.backbones import ImageRecipe
    >>> recipe = ImageRecipe(input_size=32)
    >>> recipe.prepare(Image.new("RGB", (80, 60))).shape
    (32, 32, 3)
    """

    input_size: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop_pct: float | None = None
    interpolation: str = "bicubic"
    fit: str = "crop"
    crop_rounding: str = "down"
    draft: float | None = 4.0

    def __post_init__(self) -> None:
        if self.interpolation not in _RESAMPLING:
            raise ValueError(
                f"interpolation={self.interpolation!r} is unknown; "
                f"choose one of {sorted(_RESAMPLING)}."
            )
        if self.fit not in ("crop", "squash"):
            raise ValueError(f"fit={self.fit!r} is unknown; choose 'crop' or 'squash'.")
        if self.crop_rounding not in ("down", "even"):
            raise ValueError(
                f"crop_rounding={self.crop_rounding!r} is unknown; choose 'down' or 'even'."
            )
        if self.crop_pct is None:
            # Resolved here, so that equal preprocessing makes equal recipes.
            object.__setattr__(self, "crop_pct", 1.0 if self.fit == "squash" else 0.875)
        if self.input_size < 1 or not 0 < self.crop_pct <= 1 or min(self.std) <= 0:
            raise ValueError(
                f"input_size={self.input_size}, crop_pct={self.crop_pct}, std={self.std}: give a "
                "size of at least 1, a crop share in (0, 1] and positive deviations."
            )
        if self.draft is not None and not self.draft >= 1:
            raise ValueError(f"draft={self.draft} is not valid; give at least 1, or None.")

    def enough(self, size: int | None = None) -> int | None:
        """Sides in pixels above which a JPEG need not be decoded in full, or None.

        Parameters
        ----------
        size : int, default=None
            Another side than `input_size`.

        Returns
        -------
        enough : int or None
        """
        if self.draft is None:
            return None
        size = self.input_size if size is None else size
        return math.ceil(self.draft * round(size / self.crop_pct))

    def prepare(self, image: Image.Image, size: int | None = None) -> np.ndarray:
        """Resize and crop one RGB image.

        Parameters
        ----------
        image : PIL.Image.Image
            Mode RGB.
        size : int, default=None
            Another side than `input_size`.

        Returns
        -------
        pixels : ndarray of shape (size, size, 3), uint8
        """
        size = self.input_size if size is None else size
        resized = self._resized(image.size, size)
        left, top = (self._margin(side - size) for side in resized)
        if resized == image.size:
            return np.asarray(image.crop((left, top, left + size, top + size)))
        # The part of the image that the crop will show, in pixels of the image.
        x, y = image.width / resized[0], image.height / resized[1]
        box = _within((left * x, top * y, (left + size) * x, (top + size) * y), image.size)
        return np.asarray(image.resize((size, size), _RESAMPLING[self.interpolation], box=box))

    def _resized(self, original: tuple[int, int], size: int) -> tuple[int, int]:
        """Width and height before the crop."""
        width, height = original
        short = round(size / self.crop_pct)
        if self.fit == "squash":
            return short, short
        # The long side is truncated, as torchvision and transformers do.
        if width <= height:
            return short, max(size, int(short * height / width))
        return max(size, int(short * width / height)), short

    def _margin(self, surplus: int) -> int:
        """Pixels cut off on the left or on top."""
        return surplus // 2 if self.crop_rounding == "down" else round(surplus / 2)

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Turn uint8 pixels into what the network reads, on the device where they are.

        Parameters
        ----------
        pixels : tensor of shape (n, height, width, 3), uint8

        Returns
        -------
        images : tensor of shape (n, 3, height, width), float32
            Channels last in memory, as the pixels are.
        """

        def per_channel(values: Sequence[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=pixels.device)

        images = pixels.float().div_(255.0).sub_(per_channel(self.mean))
        return images.div_(per_channel(self.std)).permute(0, 3, 1, 2)
