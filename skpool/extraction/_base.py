# SPDX-License-Identifier: BSD-3-Clause
"""What extractors of images and of texts share: backbone, layers, device, store, tags.

None of them learns or computes anything in `fit`; how the samples are read and what `transform`
gives is said by the subclasses.
"""

import os
from numbers import Integral

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.callback import CallbackSupportMixin
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions

from skpool.backbones import TOKEN_NORMS, Backbone, Network
from skpool.stores import FeatureStore

__all__ = ["BaseExtractor", "RawSamplesMixin"]

_Auto = StrOptions({"auto"})


class RawSamplesMixin:
    """What all steps share that read images or texts and do not give a table."""

    def set_output(self, *, transform=None):
        """Accept the call of a pipeline and change nothing: the result is not a table.

        Parameters
        ----------
        transform : ignored
            Present for the API.

        Returns
        -------
        self : estimator
        """
        return self

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.no_validation = True
        tags.input_tags.two_d_array = False
        return tags


class BaseExtractor(
    RawSamplesMixin,
    CallbackSupportMixin,
    TransformerMixin,
    BaseEstimator,
    auto_wrap_output_keys=None,
):
    """Base of the extractors, whose parameters of these names mean the same in all of them."""

    _parameter_constraints: dict = {
        "backbone": [str, Backbone],
        "layers": [Integral, "array-like"],
        "token_norm": [StrOptions(set(TOKEN_NORMS))],
        "batch_size": [Interval(Integral, 1, None, closed="left"), _Auto],
        "device": [str, torch.device],
        "dtype": [StrOptions({"auto", "float32", "float16", "bfloat16"})],
        "compile": ["boolean"],
        "store": [str, os.PathLike, FeatureStore, None],
        "keep_tokens": ["boolean", _Auto],
        "output": [StrOptions({"numpy", "torch"})],
    }

    def _backbone(self) -> Backbone:
        return self.backbone if isinstance(self.backbone, Backbone) else Backbone(self.backbone)

    def _network(self, backbone: Backbone, device: str, modality: str, other: str) -> Network:
        """The network, loaded where it will run; one of another modality is refused."""
        # The facts would otherwise load a second copy on the host.
        network = backbone.network(device, compiled=self.compile)
        if network.modality != modality:
            raise ValueError(f"{backbone!r} is a network of {network.modality}s; use {other}.")
        # Checked now, not when the first batch runs.
        network.check_norm(self.token_norm)
        return network

    def _layers(self) -> tuple[list[int], bool]:
        """The layers asked for, and whether they have an axis of their own."""
        layers = np.atleast_1d(self.layers).tolist()
        if not layers or not all(isinstance(layer, int) for layer in layers):
            raise ValueError(
                f"layers={self.layers!r} is not valid; give one or more whole numbers."
            )
        return layers, np.ndim(self.layers) == 1

    def _open_store(self) -> FeatureStore | None:
        if self.store is None or isinstance(self.store, FeatureStore):
            return self.store
        return FeatureStore.shared(self.store)

    def _device(self) -> str:
        if self.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"device={self.device!r} cannot be used ({str(error).splitlines()[0]}); "
                "use device='auto' or 'cpu'."
            ) from None
        return str(self.device)

    def _dtype(self) -> str:
        return "float32" if self.dtype == "auto" else self.dtype

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        return tags
