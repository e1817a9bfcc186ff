# SPDX-License-Identifier: BSD-3-Clause
"""RandomFeatureExtractor: tokens of a network that nobody trained.

The baseline that every pretrained backbone has to beat, and the one that needs no download. It
learns at most the means and deviations of its pre-activations; the tokens come from an ordinary
`FeatureExtractor`, with all that this does.
"""

import os
from numbers import Integral

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.backbones import Backbone, random_network, random_recipe
from skpool.exceptions import UnreadableInputError
from skpool.extraction._base import RawSamplesMixin
from skpool.extraction._feature_extractor import FeatureExtractor
from skpool.inputs import DecodeError, ImageSequence
from skpool.stores import FeatureStore, TokenArray
from skpool.utils import ArrayLike, unchanged_on_error

__all__ = ["RandomFeatureExtractor"]

# Images by which a network is calibrated: more change its numbers by less than a percent.
_CALIBRATED_ON = 1024
_BATCH = 32
_PASSED_ON = (
    "layers",
    "tokens",
    "batch_size",
    "device",
    "dtype",
    "store",
    "on_error",
    "n_workers",
    "output",
)
_Positive = Interval(Integral, 1, None, closed="left")


class RandomFeatureExtractor(
    RawSamplesMixin, TransformerMixin, BaseEstimator, auto_wrap_output_keys=None
):
    """Tokens of a frozen network of random weights.

    The baseline without weights: how far does the architecture alone go? With `calibrate`, the
    pre-activations of every layer are brought to mean 0 and deviation 1 on the images of `fit`,
    which is what makes random networks of some depth useful [1]_.

    Parameters
    ----------
    arch : {"conv", "vit", "mlp"}, default="conv"
        - "conv": `depth` blocks of a 3 x 3 convolution, standardisation, ReLU and the maximum of
          2 x 2; the tokens are the last map.
        - "vit": patch embedding, fixed sine positions, `depth` pre-norm transformer blocks; a
          class token, then the patches.
        - "mlp": `depth` dense layers with ReLU on the pixels; one token.
    width : int, default=64
        Channels of every layer; for "vit" a multiple of 4.
    depth : int, default=3
        Number of blocks.
    patch_size : int, default=8
        Side of a patch of "vit".
    input_size : int, default=32
        Side to which images are brought, without regard to their aspect.
    init : {"orthogonal", "kaiming"}, default="orthogonal"
        Orthogonal rows or independent normal weights, of equal variance.
    calibrate : bool, default=True
        Whether `fit` learns means and deviations. If not, nothing is learned and the network is
        that of ``Backbone("random:...")``.
    layers : int, default=-1
        The layer whose tokens are taken: 0 is the input of the first block, k the output of block
        k, -1 the network's own output.
    tokens : {"all", "patch", "cls"}, default="all"
        As in `FeatureExtractor`.
    batch_size : int or "auto", default="auto"
        Images per pass.
    device : str or "auto", default="auto"
        Where the network runs; "auto" takes a CUDA device where there is one.
    dtype : {"auto", "float32", "float16"}, default="auto"
        Float type of the tokens and of what is stored.
    store : path or FeatureStore, default=None
        Where results are kept, as in `FeatureExtractor`.
    on_error : {"raise", "nan"}, default="raise"
        What an unreadable image does, as in `FeatureExtractor`; `fit` with "nan" leaves it out.
    n_workers : int or "auto", default="auto"
        Threads that decode images ahead of the network.
    output : {"numpy", "torch"}, default="numpy"
        Container of the vectors that poolings make of the tokens.
    random_state : int, default=0
        Seed of the weights and of the choice of images for calibration.

    Attributes
    ----------
    calibration_ : list of ndarray of shape (2, width)
        Mean and deviation of the pre-activations of every layer; with `calibrate`.
    backbone_ : Backbone
        The network, calibrated where that was asked for; any extractor takes it.
    failed_ : list of (int, str, str)
        Position, name and reason of the images of the last `transform` that could not be read.

    See Also
    --------
    FeatureExtractor : Tokens of a pretrained network.
    PatchDictionaryExtractor : The baseline that learns a dictionary of patches.

    Notes
    -----
    The same parameters give the same network, byte for byte, in every process with one version of
    torch; its global generator is neither read nor changed. A fitted object and its pickle hold
    the calibration and no weights. The features of an image do not depend on the other images of
    a batch: what a batch norm would compute is a constant here.

    Cost: `fit` runs up to 1024 images, drawn at random, once per layer and up to that layer;
    `transform` is one forward pass. Features in a store are found again by a network of equal
    weights and calibration.

    References
    ----------
    .. [1] J. Frankle, D. J. Schwab, A. S. Morcos, Training BatchNorm and Only BatchNorm: On the
       Expressive Power of Random Features in CNNs, ICLR 2021. <https://arxiv.org/abs/2003.00152>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.extraction import RandomFeatureExtractor
    >>> images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    >>> tokens = RandomFeatureExtractor("conv", width=16).fit_transform(images)
    >>> tokens.shape, tokens.grid
    ((5, 16, 16), (4, 4))
    """

    _parameter_constraints: dict = {
        "arch": [StrOptions({"conv", "vit", "mlp"})],
        "width": [_Positive],
        "depth": [_Positive],
        "patch_size": [_Positive],
        "input_size": [_Positive],
        "init": [StrOptions({"orthogonal", "kaiming"})],
        "calibrate": ["boolean"],
        "layers": [Integral],
        "tokens": [StrOptions({"all", "patch", "cls"})],
        "batch_size": [_Positive, StrOptions({"auto"})],
        "device": [str, torch.device],
        "dtype": [StrOptions({"auto", "float32", "float16"})],
        "store": [str, os.PathLike, FeatureStore, None],
        "on_error": [StrOptions({"raise", "nan"})],
        "n_workers": [Interval(Integral, 0, None, closed="left"), StrOptions({"auto"})],
        "output": [StrOptions({"numpy", "torch"})],
        "random_state": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(
        self,
        arch: str = "conv",
        *,
        width: int = 64,
        depth: int = 3,
        patch_size: int = 8,
        input_size: int = 32,
        init: str = "orthogonal",
        calibrate: bool = True,
        layers: int = -1,
        tokens: str = "all",
        batch_size: int | str = "auto",
        device: str = "auto",
        dtype: str = "auto",
        store: str | os.PathLike | FeatureStore | None = None,
        on_error: str = "raise",
        n_workers: int | str = "auto",
        output: str = "numpy",
        random_state: int = 0,
    ):
        self.arch = arch
        self.width = width
        self.depth = depth
        self.patch_size = patch_size
        self.input_size = input_size
        self.init = init
        self.calibrate = calibrate
        self.layers = layers
        self.tokens = tokens
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self.store = store
        self.on_error = on_error
        self.n_workers = n_workers
        self.output = output
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Learn the calibration, if it is asked for.

        Parameters
        ----------
        X : list or Series of paths, list of PIL images, uint8 array (n, height, width, channels), \
or ImageSequence
            Images to calibrate on.
        y : ignored
            Present for the API.

        Returns
        -------
        self : estimator
        """
        images = ImageSequence(X)
        with unchanged_on_error(self):
            vars(self).pop("calibration_", None)
            network = self._network()
            if self.calibrate:
                pixels = self._pixels_for_calibration(images)
                recipe = random_recipe(self.input_size)
                parts = pixels.split(_BATCH)
                network.calibrate(lambda: map(recipe.normalize, parts))
                self.calibration_ = network.calibration
            self._open(network).fit(images)
        return self

    def _pixels_for_calibration(self, images: ImageSequence) -> torch.Tensor:
        """Prepared pixels (n, side, side, 3) of some images, drawn at random."""
        order = np.arange(len(images))
        if len(images) > _CALIBRATED_ON:
            random = check_random_state(self.random_state)
            order = np.sort(random.choice(len(images), _CALIBRATED_ON, replace=False))
        recipe, pixels, failures = random_recipe(self.input_size), [], []
        for row in order.tolist():
            try:
                pixels.append(recipe.prepare(images.load(row)))
            except DecodeError as error:
                failures.append((row, error.name, error.reason))
        if failures and (self.on_error == "raise" or not pixels):
            raise UnreadableInputError(failures)
        return torch.from_numpy(np.stack(pixels))

    def _network(self):
        network = random_network(
            self.arch,
            width=self.width,
            depth=self.depth,
            patch_size=self.patch_size,
            input_size=self.input_size,
            init=self.init,
            seed=self.random_state,
        )
        if hasattr(self, "calibration_"):
            network.calibration = self.calibration_
        return network

    def _open(self, network) -> FeatureExtractor:
        backbone = Backbone.from_module(
            network,
            recipe=random_recipe(self.input_size),
            layer_paths=network.layer_paths,
            patch_size=network.patch_size,
            n_prefix_tokens=network.n_prefix_tokens,
        )
        options = {name: getattr(self, name) for name in _PASSED_ON}
        return FeatureExtractor(backbone, **options)

    def _extractor(self) -> FeatureExtractor:
        if self.calibrate:
            check_is_fitted(self, "calibration_")
        return self._open(self._network())

    @property
    def backbone_(self) -> Backbone:
        """The network, calibrated where that was asked for."""
        return self._extractor().backbone

    def transform(self, X) -> TokenArray | ArrayLike:
        """Return the tokens of images, to be computed when they are used.

        Parameters
        ----------
        X : list or Series of paths, list of PIL images, uint8 array (n, height, width, channels), \
or ImageSequence

        Returns
        -------
        tokens : TokenArray of shape (n_samples, n_tokens, width)
            With ``tokens="cls"`` an array (or tensor, by `output`) of shape (n_samples, width),
            already computed.
        """
        self._validate_params()
        self._last = self._extractor()
        return self._last.transform(X)

    @property
    def failed_(self) -> list[tuple[int, str, str]]:
        """Images of the last `transform` that could not be read."""
        if not hasattr(self, "_last"):
            raise AttributeError("failed_ is known after `transform`.")
        return self._last.failed_

    def __getstate__(self) -> dict:
        state = super().__getstate__()
        # It would carry the weights, which follow from the parameters.
        state.pop("_last", None)
        return state

    def get_feature_names_out(self, input_features=None) -> np.ndarray:
        """Names of the features of a token.

        Parameters
        ----------
        input_features : ignored
            Present for the API.

        Returns
        -------
        names : ndarray of str
        """
        n_features = self._extractor().get_feature_names_out().size
        return np.array([f"randomfeatureextractor{i}" for i in range(n_features)], dtype=object)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = self.calibrate
        return tags
