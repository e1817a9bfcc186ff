# SPDX-License-Identifier: BSD-3-Clause
"""Leaf helpers: validation, fingerprints, optional imports, estimator discovery and checks.

Nothing here imports another room of the package, so every room may import it. The one exception
is `skpool.utils.estimator_checks`, which uses all rooms as a test does, and which no room imports.
"""

from skpool.utils._affine import apply_affine
from skpool.utils._batches import row_batches
from skpool.utils._fingerprint import estimator_fingerprint, fingerprint
from skpool.utils._optional import import_optional
from skpool.utils._side_by_side import side_by_side
from skpool.utils._tensors import (
    ArrayLike,
    as_tensor,
    full_float32,
    numpy_or_tensor,
    unit_rows,
    widened,
)
from skpool.utils._transaction import unchanged_on_error
from skpool.utils._validation import (
    all_finite,
    check_finite,
    check_labels,
    check_scores,
    check_squares,
    joined_labels,
    squares_fit,
    validate_vectors,
)

__all__ = [
    "ArrayLike",
    "all_finite",
    "apply_affine",
    "as_tensor",
    "check_finite",
    "check_labels",
    "check_scores",
    "check_squares",
    "estimator_fingerprint",
    "fingerprint",
    "full_float32",
    "import_optional",
    "joined_labels",
    "numpy_or_tensor",
    "row_batches",
    "side_by_side",
    "squares_fit",
    "unchanged_on_error",
    "unit_rows",
    "validate_vectors",
    "widened",
]
