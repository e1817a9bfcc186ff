# SPDX-License-Identifier: BSD-3-Clause
"""What goes into a picture: fractions, and results of one protocol."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["check_fractions", "check_results", "check_same_length"]

# Averages of weights may end above one by rounding.
_ROUNDING = 1e-6


def check_fractions(values: Any, name: str) -> np.ndarray:
    """Fractions between 0 and 1 as an array, NaN allowed; percents are refused."""
    values = np.array(values, dtype=np.float64)
    finite = values[np.isfinite(values)]
    if finite.size and not (-_ROUNDING <= finite.min() and finite.max() <= 1 + _ROUNDING):
        raise ValueError(
            f"{name} must hold fractions between 0 and 1, got values from {finite.min():g} to "
            f"{finite.max():g}; divide percents by 100."
        )
    return values


def check_results(results: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """At least one named result."""
    if not isinstance(results, Mapping) or not results:
        raise ValueError(
            f"results must map names to {kind} objects and hold at least one, got {results!r}; "
            "give a dict such as {'nearest mean': result}."
        )
    return dict(results)


def check_same_length(arrays: Mapping[str, Sequence], what: str) -> np.ndarray:
    """The arrays of several methods as rows of one, which must be equally long."""
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"results differ in their number of {what}, {lengths}; draw those of one protocol."
        )
    return np.array([np.asarray(values, dtype=np.float64) for values in arrays.values()])
