# SPDX-License-Identifier: BSD-3-Clause
"""Moments as a flat dict of plain arrays with a format number, for files without pickle."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from skpool.statistics._state import Moments

__all__ = ["read_moments", "stack_scatter", "write_moments"]

_FORMAT = 1
_SETTINGS = ("scatter", "product_dtype", "block_rows")
_PARTS = ("classes", "counts", "counts_sq", "means")
_HIGHER = ("third", "fourth")
_PRINTS = "fingerprints"


def stack_scatter(state: Moments) -> np.ndarray | None:
    """Return the scatter as one array."""
    if not isinstance(state.scatter, list):
        return state.scatter
    d = state.means.shape[1]
    return np.reshape(state.scatter, (len(state.scatter), d, d))


def write_moments(state: Moments, settings: dict[str, object]) -> dict[str, np.ndarray]:
    """Return copies of all arrays, the settings and the format number."""
    arrays = {"format": np.array(_FORMAT)}
    arrays |= {name: np.array(value) for name, value in settings.items()}
    arrays |= {name: getattr(state, name).copy() for name in _PARTS}
    if state.scatter is not None:
        arrays["scatter_values"] = stack_scatter(state).copy()
    if state.third is not None:
        arrays |= {name: getattr(state, name).copy() for name in _HIGHER}
    if state.fingerprints is not None:
        arrays[_PRINTS] = state.fingerprints.copy()
    return arrays


def read_moments(arrays: Mapping[str, np.ndarray]) -> tuple[Moments, dict[str, object]]:
    """Return the moments and the settings of the object that wrote the arrays.

    Raises
    ------
    ValueError
        Another format, a missing array, or values that no moments can have.
    """
    if "format" not in arrays or int(arrays["format"]) != _FORMAT:
        found = arrays["format"] if "format" in arrays else None
        raise ValueError(
            f"These arrays have format {found}, and this version reads format {_FORMAT}; write "
            "them again with to_arrays."
        )
    missing = [name for name in (*_SETTINGS, *_PARTS) if name not in arrays]
    if missing:
        raise ValueError(f"These arrays are not of ClassMoments: {missing[0]!r} is missing.")
    settings = {name: arrays[name].item() for name in _SETTINGS}
    kind = settings["scatter"]
    scatter = np.array(arrays["scatter_values"]) if "scatter_values" in arrays else None
    settings["fourth_order"] = all(name in arrays for name in _HIGHER)
    settings["fingerprint"] = _PRINTS in arrays
    names = (*_PARTS, *_HIGHER) if settings["fourth_order"] else _PARTS
    names = (*names, _PRINTS) if settings["fingerprint"] else names
    held = {name: np.array(arrays[name]) for name in names}
    state = Moments(**held, scatter=scatter)
    _refuse_damage(state, kind)
    if kind == "per_class":
        state = replace(state, scatter=list(scatter))
    return state, settings


def _refuse_damage(state: Moments, kind: str) -> None:
    n, d = state.means.shape if state.means.ndim == 2 else (-1, -1)
    shapes = {"per_class": (n, d, d), "shared": (d, d), "diag": (n, d), "shared_diag": (d,)}
    shapes["none"] = None
    scatter = state.scatter
    rows = [state.classes.shape, state.counts.shape, state.counts_sq.shape]
    if state.third is not None:
        rows.append(state.fourth.shape if state.third.shape == (n, d) else None)
    prints = state.fingerprints
    if prints is not None:
        rows.append(prints.shape if prints.dtype == np.uint64 else None)
    if rows != [(n,)] * len(rows) or shapes.get(kind) != (
        None if scatter is None else scatter.shape
    ):
        raise ValueError("The shapes of these arrays do not fit together; the file is damaged.")
    values = [state.counts, state.counts_sq, state.means, scatter, state.third, state.fourth]
    values = [v for v in values if v is not None]
    if not all(v.dtype == np.float64 and np.isfinite(v).all() for v in values):
        raise ValueError("These arrays hold other than finite float64; the file is damaged.")
    if (state.classes[1:] <= state.classes[:-1]).any() or (state.counts <= 0).any():
        raise ValueError("Classes must be sorted with counts above 0; the file is damaged.")
