# SPDX-License-Identifier: BSD-3-Clause
"""How a network wants its images: size, crop, interpolation, mean and deviation.

The geometric half (`ImageRecipe.prepare`) runs on the host, in the threads that decode, and gives
uint8 pixels; the arithmetic half (`ImageRecipe.normalize`) runs where the network is, so that a
quarter of the bytes cross to the device.
"""

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


@dataclass(frozen=True)
class ImageRecipe:
    """Preprocessing of one backbone's images.

    Parameters
    ----------
    input_size : int, default=224
        Side of the square that the network sees, in pixels.
    mean, std : tuple of 3 floats, default=ImageNet's
        Subtracted from and divided out of RGB values in [0, 1].
    crop_pct : float, default=0.875
        The short side is resized to ``round(input_size / crop_pct)`` before the centre crop.
        Not used by `fit="squash"`.
    interpolation : {"bicubic", "bilinear", "nearest", "lanczos"}, default="bicubic"
        Of the resize; Pillow's filters, which smooth when they shrink.
    fit : {"crop", "squash"}, default="crop"
        "crop" keeps the aspect ratio and cuts the middle square out; "squash" resizes both sides
        to `input_size`.

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
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    fit: str = "crop"

    def __post_init__(self) -> None:
        if self.interpolation not in _RESAMPLING:
            raise ValueError(
                f"interpolation={self.interpolation!r} is unknown; "
                f"choose one of {sorted(_RESAMPLING)}."
            )
        if self.fit not in ("crop", "squash"):
            raise ValueError(f"fit={self.fit!r} is unknown; choose 'crop' or 'squash'.")
        if self.input_size < 1 or not 0 < self.crop_pct <= 1 or min(self.std) <= 0:
            raise ValueError(
                f"input_size={self.input_size}, crop_pct={self.crop_pct}, std={self.std}: give a "
                "size of at least 1, a crop share in (0, 1] and positive deviations."
            )

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
        resample = _RESAMPLING[self.interpolation]
        if self.fit == "squash":
            return np.asarray(image.resize((size, size), resample))
        width, height = image.size
        short = round(size / self.crop_pct)
        # The long side is truncated, as torchvision and transformers do.
        if width <= height:
            resized = (short, max(size, int(short * height / width)))
        else:
            resized = (max(size, int(short * width / height)), short)
        if resized != image.size:
            image = image.resize(resized, resample)
        left, top = (resized[0] - size) // 2, (resized[1] - size) // 2
        return np.asarray(image.crop((left, top, left + size, top + size)))

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
