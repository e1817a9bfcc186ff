# SPDX-License-Identifier: BSD-3-Clause
"""PatchDictionaryExtractor: images described by the patches that occur in them.

The baseline that learns from images and uses no weights: what a frozen network is compared with
where nobody wants to believe in pretraining. It stands where an extractor of vectors stands.
"""

from collections.abc import Iterator
from itertools import groupby
from numbers import Integral, Real

import numpy as np
import torch
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context
from sklearn.cluster import MiniBatchKMeans
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.exceptions import UnreadableInputError
from skpool.extraction import _patch_kernels as kernels
from skpool.extraction._base import RawSamplesMixin
from skpool.extraction._threads import map_ahead
from skpool.inputs import DecodeError, ImageSequence
from skpool.utils import ArrayLike, full_float32, unchanged_on_error

__all__ = ["PatchDictionaryExtractor"]

_Positive = Interval(Integral, 1, None, closed="left")
_Group = list[tuple[int, np.ndarray]]


class PatchDictionaryExtractor(
    RawSamplesMixin, TransformerMixin, BaseEstimator, auto_wrap_output_keys=None
):
    r"""Codes of image patches over a dictionary that k-means learned.

    `fit` draws patches x from the images, normalises the contrast of each, whitens them and finds
    `n_atoms` centroids :math:`c_k`. `transform` does the same with every patch of an image, encodes
    it by its distances :math:`z_k = |x - c_k|`, by default

    .. math:: f_k(x) = \max(0, \bar z - z_k), \qquad \bar z = \frac1K \sum_k z_k,

    and sums the codes over a grid of pool x pool cells [1]_.

    Parameters
    ----------
    n_atoms : int, default=1600
        Size of the dictionary.
    patch : int, default=6
        Side of a patch in pixels.
    stride : int, default=1
        Pixels between neighbouring patches.
    zca_eps : float, default=0.1
        Added to the variances before they are whitened.
    contrast_eps : float, default=10.0
        Added to the variance of a patch, of pixels from 0 to 255, before its root divides it.
    encoding : {"triangle", "soft", "hard"}, default="triangle"
        - "triangle": the formula above; about half of the codes are 0.
        - "soft": responsibilities of Gaussians around the atoms, of the variance that the patches
          of `fit` have around their nearest atoms.
        - "hard": 1 for the nearest atom; its sum is a histogram.
    pool : int or None, default=2
        Cells of the grid in each direction, whose sizes differ by at most one row or column of
        patches. None gives maps, and refuses images of unequal sizes.
    image_size : int, default=None
        Side to which images are brought, without regard to their aspect. None takes them as they
        are, of any size and mixed.
    n_patches : int, default=400_000
        Patches that are drawn for the dictionary, at most, as many from every image as can be.
    batch_size : int, default=64
        Images that are in memory at a time.
    device : str or "auto", default="auto"
        Where patches are encoded; "auto" takes a CUDA device where there is one.
    on_error : {"raise", "nan"}, default="raise"
        What an unreadable image does: "raise" raises one error that names every bad image with its
        reason; "nan" leaves it out of `fit`, and gives a NaN row and lists it in `failed_`.
    random_state : int, RandomState instance or None, default=0
        Draws the patches and the first atoms.

    Attributes
    ----------
    atoms_ : ndarray of shape (n_atoms, 3 * patch * patch)
        Centroids of whitened patches: channel by channel, row by row.
    mean_ : ndarray of shape (3 * patch * patch,)
        Mean of the normalised patches.
    whitening_ : ndarray of shape (3 * patch * patch, 3 * patch * patch)
        Symmetric matrix that whitens them.
    variance_ : float
        Mean squared distance of the patches of `fit` to their nearest atoms, per number.
    failed_ : list of (int, str, str)
        Position, name and reason of the images of the last `transform` that could not be read.

    See Also
    --------
    RandomFeatureExtractor : The baseline that learns almost nothing.
    FeatureExtractor : Tokens of a pretrained network.

    Notes
    -----
    Codes are sums, so that images of other sizes need a scaling behind this, as `StandardScaler` or
    `L2Normalizer` do. The variances of single patches have divisor 3 patch^2.

    Cost: one matrix product of all patches with all atoms, 6 patch^2 n_atoms operations per patch.
    Memory: `n_patches` patches in `fit`; in `transform` one block of images, and 32 MB of codes at
    a time whatever their size. Grey images are taken as three equal channels.

    References
    ----------
    .. [1] A. Coates, H. Lee, A. Y. Ng, An Analysis of Single-Layer Networks in Unsupervised Feature
       Learning, AISTATS 2011.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skpool.extraction import PatchDictionaryExtractor
    >>> images = (load_digits().images[:50] * 255 / 16).round().astype("uint8")[..., None]
    >>> PatchDictionaryExtractor(n_atoms=20, patch=4).fit_transform(images).shape
    (50, 80)
    """

    _parameter_constraints: dict = {
        "n_atoms": [_Positive],
        "patch": [_Positive],
        "stride": [_Positive],
        "zca_eps": [Interval(Real, 0, None, closed="left")],
        "contrast_eps": [Interval(Real, 0, None, closed="left")],
        "encoding": [StrOptions(set(kernels.ENCODINGS))],
        "pool": [_Positive, None],
        "image_size": [_Positive, None],
        "n_patches": [_Positive],
        "batch_size": [_Positive],
        "device": [str, torch.device],
        "on_error": [StrOptions({"raise", "nan"})],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_atoms: int = 1600,
        *,
        patch: int = 6,
        stride: int = 1,
        zca_eps: float = 0.1,
        contrast_eps: float = 10.0,
        encoding: str = "triangle",
        pool: int | None = 2,
        image_size: int | None = None,
        n_patches: int = 400_000,
        batch_size: int = 64,
        device: str = "auto",
        on_error: str = "raise",
        random_state: int | np.random.RandomState | None = 0,
    ):
        self.n_atoms = n_atoms
        self.patch = patch
        self.stride = stride
        self.zca_eps = zca_eps
        self.contrast_eps = contrast_eps
        self.encoding = encoding
        self.pool = pool
        self.image_size = image_size
        self.n_patches = n_patches
        self.batch_size = batch_size
        self.device = device
        self.on_error = on_error
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Learn the whitening and the dictionary from patches drawn at random.

        Parameters
        ----------
        X : list or Series of paths, list of PIL images, uint8 array (n, height, width, channels), \
or ImageSequence
            The images.
        y : ignored
            Present for the API.

        Returns
        -------
        self : estimator
        """
        images = ImageSequence(X)
        random = check_random_state(self.random_state)
        with unchanged_on_error(self):
            patches = self._draw(images, random)
            if len(patches) < self.n_atoms:
                raise ValueError(
                    f"n_atoms={self.n_atoms} is more than the {len(patches)} patches that X gives; "
                    "use fewer atoms, a smaller stride, or more images."
                )
            self._learn(patches, random)
        return self

    def _learn(self, patches: torch.Tensor, random: np.random.RandomState) -> None:
        """The whitening, the atoms, and how far patches are from them."""
        mean = torch.stack([part.double().sum(0) for part in patches.split(2**14)]).sum(0)
        mean /= len(patches)
        scatter = torch.zeros((len(mean), len(mean)), dtype=torch.float64)
        for part in patches.split(2**14):
            centred = part.double() - mean
            scatter += centred.T @ centred
        whitening = kernels.zca_matrix(scatter / len(patches), eps=self.zca_eps)
        self.mean_, self.whitening_ = mean.float().numpy(), whitening.float().numpy()
        # In place, since the patches are the largest thing that there is.
        for part in patches.split(2**14):
            part.copy_((part - mean.float()) @ whitening.float())
        kmeans = MiniBatchKMeans(
            self.n_atoms,
            batch_size=max(1024, 2 * self.n_atoms),
            n_init=1,
            random_state=random,
        ).fit(patches.numpy())
        self.atoms_ = kmeans.cluster_centers_.astype(np.float32)
        atoms, total = torch.from_numpy(self.atoms_), 0.0
        for part in patches.split(max(1, 2**22 // self.n_atoms)):
            nearest = kernels.distances(part, atoms).amin(dim=1)
            total += float(nearest.double().square().sum())
        self.variance_ = total / patches.numel()

    def _draw(self, images: ImageSequence, random: np.random.RandomState) -> torch.Tensor:
        """Normalised patches (n, d) from random places of the images."""
        rows = np.arange(len(images))
        if len(rows) > self.n_patches:
            rows = np.sort(random.choice(rows, self.n_patches, replace=False))
        # A share that is too large for small images is cut there, and by chance at the end.
        share, failures, drawn = -(-self.n_patches // len(rows)), [], []
        for block in self._blocks(images, rows, failures):
            for row, image in block:
                n_rows, n_columns = self._grid(image, images.name(row))
                places = random.permutation(n_rows * n_columns)[:share]
                tops, lefts = np.divmod(places, n_columns)
                drawn.append(self._cut(image, tops * self.stride, lefts * self.stride))
        if failures and (self.on_error == "raise" or not drawn):
            raise UnreadableInputError(failures)
        patches = torch.cat(drawn)
        if len(patches) > self.n_patches:
            kept = np.sort(random.choice(len(patches), self.n_patches, replace=False))
            patches = patches[torch.from_numpy(kept)]
        return patches

    def _cut(self, image: np.ndarray, tops: np.ndarray, lefts: np.ndarray) -> torch.Tensor:
        """Normalised patches (n, d) at some places of an image."""
        windows = np.lib.stride_tricks.sliding_window_view(image, (self.patch, self.patch), (0, 1))
        patches = windows[tops, lefts].reshape(len(tops), -1).astype(np.float32)
        return kernels.contrast_normalize(torch.from_numpy(patches), eps=self.contrast_eps)

    def _grid(self, image: np.ndarray, name: str) -> tuple[int, int]:
        """Rows and columns of patches, or why there are too few."""
        height, width = image.shape[:2]
        grid = kernels.grid_of(height, width, patch=self.patch, stride=self.stride)
        if min(height, width) < self.patch:
            raise ValueError(
                f"{name} has {height} x {width} pixels, fewer than patch={self.patch} on a side; "
                "use smaller patches, or image_size= to enlarge."
            )
        if self.pool is not None and min(grid) < self.pool:
            raise ValueError(
                f"{name} has {grid[0]} x {grid[1]} patches, fewer than pool={self.pool} on a side; "
                "use a smaller pool, patch or stride, or image_size= to enlarge."
            )
        return grid

    def _blocks(self, images: ImageSequence, rows: np.ndarray, failures: list) -> Iterator[_Group]:
        """Decode `batch_size` images at a time, ahead of their use, and note what fails."""

        def load(part: np.ndarray) -> tuple[_Group, list]:
            loaded, failed = [], []
            for row in part.tolist():
                try:
                    image = images.load(row)
                except DecodeError as error:
                    failed.append((row, error.name, error.reason))
                    continue
                if self.image_size is not None:
                    size = (self.image_size, self.image_size)
                    image = image.resize(size, Image.Resampling.BICUBIC)
                loaded.append((row, np.asarray(image)))
            return loaded, failed

        parts = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        for loaded, failed in map_ahead(load, parts, n_workers=1, ahead=2):
            failures += failed
            if loaded:
                yield loaded

    def transform(self, X) -> ArrayLike:
        """Encode the patches of images.

        Parameters
        ----------
        X : list or Series of paths, list of PIL images, uint8 array (n, height, width, channels), \
or ImageSequence
            The images.

        Returns
        -------
        features : ndarray of shape (n_samples, pool * pool * n_atoms), float32
            Cell by cell, row by row. With ``pool=None`` maps of shape
            (n_samples, height, width, n_atoms), one code for each patch.
        """
        check_is_fitted(self)
        self._validate_params()
        images = ImageSequence(X)
        failures: list[tuple[int, str, str]] = []
        features = None
        for block in self._blocks(images, np.arange(len(images)), failures):
            for rows, stack in self._by_size(block, images):
                codes = self._encoded(stack).cpu().numpy()
                if features is None:
                    features = np.full((len(images), *codes.shape[1:]), np.nan, np.float32)
                self._check_same(features, codes)
                features[rows] = codes
        self._failures = failures
        if failures and (self.on_error == "raise" or features is None):
            raise UnreadableInputError(failures)
        return features

    def _by_size(
        self, block: _Group, images: ImageSequence
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Images of a block in stacks (n, 3, h, w) of equal size."""
        for _, group in groupby(sorted(block, key=_size), _size):
            rows, arrays = zip(*group, strict=True)
            self._grid(arrays[0], images.name(rows[0]))
            stack = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
            yield list(rows), stack.to(self._device()).float()

    def _check_same(self, features: np.ndarray, codes: np.ndarray) -> None:
        if features.shape[1:] != codes.shape[1:]:
            raise ValueError(
                f"pool=None gives maps of {codes.shape[1:3]} and of {features.shape[1:3]} patches "
                "for images of unequal sizes; set image_size=, or pool=."
            )

    def _encoded(self, stack: torch.Tensor) -> torch.Tensor:
        device = stack.device
        mean, whitening, atoms = (
            torch.from_numpy(values).to(device)
            for values in (self.mean_, self.whitening_, self.atoms_)
        )

        def encode(patches: torch.Tensor) -> torch.Tensor:
            patches = kernels.contrast_normalize(patches, eps=self.contrast_eps)
            points = (patches - mean) @ whitening
            # Where every patch lies on its atom, the limit of small variances is meant.
            variance = max(self.variance_, float(np.finfo(np.float32).tiny))
            distance = kernels.distances(points, atoms)
            return kernels.ENCODINGS[self.encoding](distance, variance)

        options = {"patch": self.patch, "stride": self.stride, "n_atoms": len(self.atoms_)}
        parts = stack.split(kernels.images_at_once(stack.shape[3], **options))
        with full_float32(), torch.no_grad():
            if self.pool is None:
                codes = [kernels.encode_maps(part, encode, **options) for part in parts]
            else:
                codes = [
                    kernels.encode_pooled(part, encode, pool=self.pool, **options) for part in parts
                ]
        return torch.cat(codes)

    def _device(self) -> str:
        if self.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        return str(self.device)

    @property
    def failed_(self) -> list[tuple[int, str, str]]:
        """Images of the last `transform` that could not be read."""
        if not hasattr(self, "_failures"):
            raise AttributeError("failed_ is known after `transform`.")
        return list(self._failures)

    def get_feature_names_out(self, input_features=None) -> np.ndarray:
        """Names of the features, or of the channels of maps.

        Parameters
        ----------
        input_features : ignored
            Present for the API.

        Returns
        -------
        names : ndarray of str
        """
        check_is_fitted(self)
        width = len(self.atoms_) * (1 if self.pool is None else self.pool**2)
        return np.array([f"patchdictionaryextractor{i}" for i in range(width)], dtype=object)


def _size(item: tuple[int, np.ndarray]) -> tuple[int, ...]:
    return item[1].shape
