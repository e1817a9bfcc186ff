# SPDX-License-Identifier: BSD-3-Clause
"""Checks of what is handed to the moments, before anything is computed."""

from collections.abc import Mapping

import numpy as np
import torch
from sklearn.utils import check_array

from skpool.utils import ArrayLike

__all__ = [
    "check_factors",
    "check_map",
    "check_option",
    "check_rows",
    "check_weights",
    "label_kind",
    "plain_labels",
    "read_only",
]


def check_option(name: str, value: object, options: tuple[str, ...]) -> str:
    """Return the value if it is one of the options."""
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name}={value!r} is not valid; choose one of {list(options)}.")
    return value


def check_rows(X: object, n_features: int | None) -> ArrayLike:
    """Return rows as a floating-point array or tensor of the right width, finite or not."""
    if isinstance(X, torch.Tensor):
        if X.ndim != 2 or 0 in X.shape:
            raise ValueError(
                f"X must be of shape (n_samples, n_features) with at least 1 row and 1 feature, "
                f"got a tensor of shape {tuple(X.shape)}."
            )
        X = X.detach() if X.is_floating_point() else X.to(torch.float64)
    else:
        # Finiteness is seen in the sums, without another pass.
        floats = [np.float64, np.float32, np.float16]
        X = check_array(X, dtype=floats, ensure_all_finite=False, input_name="X")
    if n_features is not None and X.shape[1] != n_features:
        raise ValueError(
            f"X has {X.shape[1]} features, but these moments hold {n_features} features."
        )
    return X


def check_weights(sample_weight: object, n_samples: int) -> np.ndarray | None:
    """Return the weights as float64."""
    if sample_weight is None:
        return None
    if isinstance(sample_weight, torch.Tensor):
        sample_weight = sample_weight.detach().cpu().numpy()
    weights = np.asarray(sample_weight, dtype=np.float64)
    if weights.shape != (n_samples,):
        raise ValueError(
            f"sample_weight has shape {weights.shape}; give one weight for each of the "
            f"{n_samples} rows of X."
        )
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise ValueError(
            "sample_weight must be finite and at least 0, with at least one weight above 0."
        )
    return weights


def plain_labels(y: np.ndarray) -> np.ndarray:
    """Return labels in an array that can be stored without pickle."""
    return np.array(y.tolist()) if y.dtype.kind == "O" else y


def label_kind(labels: np.ndarray) -> str:
    """Return which labels these can be sorted with."""
    return "numbers" if labels.dtype.kind in "biuf" else "text"


def read_only(values: np.ndarray) -> np.ndarray:
    """Return a view that cannot be written to."""
    view = values.view()
    view.flags.writeable = False
    return view


def check_map(
    A: ArrayLike, b: ArrayLike | None, d: int | None, scatter: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return a linear map of rows of width d, and its offset, in float64."""
    A = np.asarray(A, dtype=np.float64)
    if d is None:
        raise ValueError("affine needs moments that hold rows; call update first.")
    if A.ndim not in (1, 2) or A.shape[0] != d:
        raise ValueError(f"A has shape {A.shape}; give ({d}, n_outputs) or ({d},).")
    if A.ndim == 2 and scatter in ("diag", "shared_diag"):
        raise ValueError(
            f"scatter={scatter!r} keeps no products between features, so only one factor "
            "per feature (A of one axis) can be applied."
        )
    b = np.zeros(A.shape[-1]) if b is None else np.asarray(b, dtype=np.float64)
    if b.shape != (A.shape[-1],):
        raise ValueError(f"b has shape {b.shape}; give ({A.shape[-1]},).")
    return A, b


def check_factors(class_weight: Mapping, classes: np.ndarray, scatter: str) -> np.ndarray:
    """Return one factor per class, of those that a kind of scatter can be multiplied by."""
    if scatter in ("shared", "shared_diag"):
        raise ValueError(
            f"The scatter of some classes alone is not known with scatter={scatter!r}; "
            'keep scatter="per_class", "diag" or "none".'
        )
    factors = np.array([class_weight.get(c, 1.0) for c in classes.tolist()], float)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise ValueError(f"class_weight={class_weight!r} is not valid; give numbers above 0.")
    return factors
