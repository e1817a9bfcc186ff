# SPDX-License-Identifier: BSD-3-Clause
"""The first step of a pipeline: from raw images to lazy tokens of a frozen network."""

import os
from collections.abc import Sequence
from numbers import Integral

import numpy as np
from sklearn.base import _fit_context
from sklearn.utils._param_validation import Interval, StrOptions

from skpool.backbones import Backbone
from skpool.extraction._base import BaseExtractor
from skpool.extraction._image_source import ImageSettings, ImageSource
from skpool.extraction._progress import Progress
from skpool.inputs import ImageSequence
from skpool.stores import FeatureStore, TokenArray
from skpool.utils import ArrayLike

__all__ = ["FeatureExtractor"]


class FeatureExtractor(BaseExtractor, auto_wrap_output_keys=None):
    """Tokens of a frozen pretrained network, computed once per image and only when needed.

    `transform` returns at once: the tokens are computed when a pooling streams them, batch by
    batch, and every image's result is looked up first, in a store on disk or in a bounded cache in
    memory. A grid search over poolings therefore runs the network once per distinct image.

    Parameters
    ----------
    backbone : str or Backbone, default="glyph"
        The network: ``"glyph"``, ``"hf:<name or directory>"``, or a `Backbone`.
    layers : int or sequence of int, default=-1
        The layer whose tokens are taken: 0 is the embedding, k the output of block k, -1 the
        network's own output. Several layers of equal width are taken in one pass and have an axis
        of their own. The pass ends after the last one wanted.
    tokens : {"all", "patch", "cls"}, default="all"
        "all" keeps class token and registers before the patches; "patch" leaves them out; "cls"
        gives the class token alone as an array (n_samples, n_features), computed at once, and
        keeps no other token.
    token_norm : {"final", "all", "none"}, default="final"
        Which layers pass the final norm of a transformer: the last one alone, every one (as in
        the evaluation of DINOv2), or none.
    image_size : int, default=None
        Side to which images are brought; None for the backbone's own.
    batch_size : int or "auto", default="auto"
        Images per pass. "auto" takes 16 images of 224 pixels on the host and 128 on another device,
        more of smaller and fewer of larger ones. Halved by itself when the device is out of memory.
    device : str or "auto", default="auto"
        Where the network runs; "auto" takes a CUDA device where there is one.
    dtype : {"auto", "float32", "float16", "bfloat16"}, default="auto"
        Float type of the pass. "auto" is float32. "bfloat16" runs the network in mixed precision
        and keeps float32; "float16" keeps float16, and on a CUDA device also runs the network in
        mixed precision.
    compile : bool, default=False
        Whether the blocks of the network go through `torch.compile`, which takes a minute once per
        process and pays where the device is fast. The features are equal to rounding and kept
        apart in a store.
    store : path or FeatureStore, default=None
        Where results are kept on disk, for this and later sessions and for several processes.
        None keeps them in the memory of this process, up to
        ``skpool.get_config()["cache_bytes"]``.
    keep_tokens : bool or "auto", default="auto"
        Whether tokens are kept beside the vectors that poolings make of them. "auto" keeps them in
        a store, and in memory when the network runs on the host; tokens on another device stay
        there until they are pooled, and a second pooling is a second pass (see
        `skpool.model_selection.prefetch`).
    on_error : {"raise", "nan"}, default="raise"
        What an unreadable image does. All others are computed and kept in either case; then
        "raise" raises one error that names every bad image with its reason, and "nan" gives NaN
        rows and lists them in `failed_`.
    n_workers : int or "auto", default="auto"
        Threads that decode images: ahead of a network on another device; in turn with a network on
        the host, which needs the same cores. 0 decodes in the caller's thread.
    output : {"numpy", "torch"}, default="numpy"
        Container of the vectors that poolings make of the tokens; "torch" leaves them on the
        device.

    Attributes
    ----------
    failed_ : list of (int, str, str)
        Position, name and reason of the images of the last `transform` that could not be read;
        complete when its tokens have been used.

    See Also
    --------
    skpool.backbones.Backbone : Names a network.
    skpool.stores.TokenArray : The lazy result.

    Notes
    -----
    Nothing is learned, so `fit` only checks. Features depend on the image alone: not on the other
    images, their order, or the batch size (to rounding). Memory is one batch, plus the cache.

    With `n_jobs` greater than 1, pass paths (arrays and images are pickled to every worker) and a
    `store`, which the workers share; the in-memory cache is each process's own.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skpool.extraction import FeatureExtractor
    >>> images = (load_digits().images[:4] * 255 / 16).round().astype("uint8")[..., None]
    >>> tokens = FeatureExtractor("glyph").fit_transform(images)
    >>> tokens.n_prefix_tokens, tokens.grid
    (1, (8, 8))
    """

    _parameter_constraints: dict = {
        **BaseExtractor._parameter_constraints,
        "tokens": [StrOptions({"all", "patch", "cls"})],
        "image_size": [Interval(Integral, 1, None, closed="left"), None],
        "on_error": [StrOptions({"raise", "nan"})],
        "n_workers": [Interval(Integral, 0, None, closed="left"), StrOptions({"auto"})],
    }

    def __init__(
        self,
        backbone: str | Backbone = "glyph",
        *,
        layers: int | Sequence[int] = -1,
        tokens: str = "all",
        token_norm: str = "final",
        image_size: int | None = None,
        batch_size: int | str = "auto",
        device: str = "auto",
        dtype: str = "auto",
        compile: bool = False,
        store: str | os.PathLike | FeatureStore | None = None,
        keep_tokens: bool | str = "auto",
        on_error: str = "raise",
        n_workers: int | str = "auto",
        output: str = "numpy",
    ):
        self.backbone = backbone
        self.layers = layers
        self.tokens = tokens
        self.token_norm = token_norm
        self.image_size = image_size
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self.compile = compile
        self.store = store
        self.keep_tokens = keep_tokens
        self.on_error = on_error
        self.n_workers = n_workers
        self.output = output

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Check the parameters and the kind of X; nothing is learned or computed.

        Parameters
        ----------
        X : list or Series of paths, list of PIL images, uint8 array (n, height, width, channels), \
or ImageSequence
        y : ignored
            Present for the API.

        Returns
        -------
        self : estimator
        """
        ImageSequence(X)
        self._settings()
        return self

    def transform(self, X) -> TokenArray | ArrayLike:
        """Return the tokens of images, to be computed when they are used.

        Parameters
        ----------
        X : list or Series of paths, list of PIL images, uint8 array (n, height, width, channels), \
or ImageSequence

        Returns
        -------
        tokens : TokenArray of shape (n_samples, n_tokens, n_features)
            Of several layers (n_samples, n_layers, n_tokens, n_features). With `tokens="cls"` an
            array (or tensor, by `output`) without the axis of the tokens, already computed.

        Raises
        ------
        UnreadableInputError
            With `on_error="raise"`, when the tokens are used: some images cannot be read. All
            others are computed and kept before.
        """
        self._validate_params()
        settings = self._settings()
        source = ImageSource(ImageSequence(X), settings, self._open_store(), Progress(self))
        self._failures = source.failures
        tokens = TokenArray(source, drop_prefix=self.tokens == "patch")
        return tokens.cls if self.tokens == "cls" else tokens

    def _settings(self) -> ImageSettings:
        backbone, device = self._backbone(), self._device()
        self._network(backbone, device, "image", "TextFeatureExtractor")
        layers, several = self._layers()
        self._check_layouts(backbone, layers)
        return ImageSettings(
            backbone=backbone,
            layers=tuple(layers),
            several=several,
            token_norm=self.token_norm,
            image_size=self.image_size,
            batch_size=self._batch_size(device, self.image_size or backbone.recipe.input_size),
            device=device,
            dtype=self._dtype(),
            compiled=self.compile,
            n_workers=self._n_threads(device),
            keep_tokens=self._keeps_tokens(device),
            raise_errors=self.on_error == "raise",
            output=self.output,
        )

    def _check_layouts(self, backbone: Backbone, layers: list[int]) -> None:
        """Refuse layers that cannot stand side by side, or lack what `tokens` asks for."""
        layouts = [backbone.layout(layer, self.image_size) for layer in layers]
        if len(set(layouts)) > 1:
            shapes = [(layout.n_tokens, layout.n_features) for layout in layouts]
            raise ValueError(
                f"layers={self.layers} of {backbone!r} have tokens of unequal shapes {shapes}; use "
                "one extractor per layer, each with its pooling, in a FeatureUnion."
            )
        if self.tokens == "cls" and layouts[0].cls_index is None:
            raise ValueError(
                f"tokens='cls' needs a class token, and {backbone!r} has none; use tokens='all' "
                "and a pooling."
            )

    def _keeps_tokens(self, device: str) -> bool:
        if self.tokens == "cls":
            return False
        if self.keep_tokens == "auto":
            return self.store is not None or device == "cpu"
        return self.keep_tokens

    def _batch_size(self, device: str, side: int) -> int:
        """As many pixels as keep the device busy; more would only take memory."""
        if self.batch_size != "auto":
            return self.batch_size
        images = 128 if device.startswith("cuda") else 16
        return int(np.clip(images * 224**2 // side**2, 1, 4 * images))

    def _n_threads(self, device: str) -> int:
        if self.n_workers != "auto":
            return self.n_workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return min(16, cores or 1)

    @property
    def failed_(self) -> list[tuple[int, str, str]]:
        """Images of the last `transform` that could not be read."""
        if not hasattr(self, "_failures"):
            raise AttributeError("failed_ is known after `transform`.")
        return [(row, *self._failures[row]) for row in sorted(self._failures)]

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
        layer = np.atleast_1d(self.layers).tolist()[-1]
        width = self._backbone().layout(layer, self.image_size).n_features
        return np.array([f"featureextractor{i}" for i in range(width)], dtype=object)
