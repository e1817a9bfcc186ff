# SPDX-License-Identifier: BSD-3-Clause
"""The first line of every method on vectors: is this (n, d), finite, and of the right width?

Arrays go through scikit-learn's own `validate_data`, so its messages and its bookkeeping
(`n_features_in_`, `feature_names_in_`) hold; tensors are held to the same rules where they lie,
because scikit-learn would copy them to the host as float64.
"""

import math

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import column_or_1d, validate_data

from skpool.utils._tensors import ArrayLike, as_tensor, widened
from skpool.utils._transaction import unchanged_on_error

__all__ = [
    "all_finite",
    "check_finite",
    "check_labels",
    "check_scores",
    "check_squares",
    "joined_labels",
    "squares_fit",
    "validate_vectors",
]

_FLOATS = (np.float64, np.float32, np.float16)


def all_finite(tensor: torch.Tensor) -> bool:
    """Tell whether no value is NaN or infinite, with one read and no copy.

    Parameters
    ----------
    tensor : tensor

    Returns
    -------
    finite : bool

    Examples
    --------
    >>> import torch
    >>> from skpool.utils import all_finite
    >>> all_finite(torch.tensor([1.0, torch.inf]))
    False
    """
    # The extremes show every NaN and infinity.
    return tensor.numel() == 0 or all(bool(torch.isfinite(x)) for x in tensor.aminmax())


def check_finite(X: ArrayLike, *, name: str = "X") -> None:
    """Refuse NaN and infinity, naming the first bad row.

    Parameters
    ----------
    X : ndarray or tensor of shape (n_samples, ...)
    name : str, default="X"
        The argument's name, for the message.

    Raises
    ------
    ValueError
        A value is NaN or infinite.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.utils import check_finite
    >>> check_finite(np.ones((2, 2)))
    """
    tensor = as_tensor(X)
    if all_finite(tensor):
        return
    bad = ~torch.isfinite(tensor).reshape(len(tensor), -1).all(dim=1)
    row = int(bad.nonzero()[0])
    kind = "NaN" if bool(tensor[row].isnan().any()) else "infinity"
    raise ValueError(
        f"Input {name} contains {kind} in row {row} ({int(bad.sum())} such rows); "
        "remove or impute these rows."
    )


def squares_fit(X: ArrayLike, *, dtype: torch.dtype | None = None) -> bool:
    """Tell whether sums of squares of the values neither vanish nor overflow.

    Parameters
    ----------
    X : ndarray or tensor of shape (n_samples, ...)
    dtype : torch.dtype, default=None
        Type of the squares; None for that of X, and float32 for half precision.

    Returns
    -------
    fit : bool
        True for zeros, whose squares are what they are; False for NaN and infinity.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from skpool.utils import squares_fit
    >>> X = np.full((2, 2), 1e-30)
    >>> squares_fit(X), squares_fit(X, dtype=torch.float32)
    (True, False)
    """
    tensor = as_tensor(X)
    peak, (lowest, highest) = _peak(tensor), _square_limits(tensor, dtype)
    return peak == 0 or lowest <= peak <= highest


def check_squares(X: ArrayLike, *, vanishing: bool = True) -> None:
    """Refuse NaN, infinity, and values whose squares leave the range of their type.

    Parameters
    ----------
    X : ndarray or tensor of shape (n_samples, ...)
        Squares of half precision are float32.
    vanishing : bool, default=True
        Whether rows are refused if the squares of all of them vanish, as is right for all rows of
        a fit. A few rows may well be nearly zero.

    Raises
    ------
    ValueError
        A value is NaN or infinite, a square overflows, or all squares vanish.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.utils import check_squares
    >>> check_squares(np.full((2, 2), 1e-30))
    """
    tensor = as_tensor(X)
    peak, (lowest, highest) = _peak(tensor), _square_limits(tensor, None)
    if peak <= highest and (peak == 0 or peak >= lowest or not vanishing):
        return
    check_finite(tensor)
    what, remedy = ("0", "up") if peak < lowest else ("infinite", "down")
    dtype = widened(tensor[:0]).dtype
    wider = "" if dtype == torch.float64 else ", or give float64"
    name = str(dtype).removeprefix("torch.")
    raise ValueError(
        f"The values of X are at most {peak:.3g}, and their squares are {what} in {name}; scale X "
        f"{remedy}{wider}."
    )


def check_scores(scores: np.ndarray) -> np.ndarray:
    """Refuse scores that overflowed, as they may for rows far larger than those learned from.

    Parameters
    ----------
    scores : ndarray of shape (n_samples, n_classes)
        Of rows that are finite; -inf for a class that cannot be.

    Returns
    -------
    scores : ndarray of shape (n_samples, n_classes)
        As given.

    Raises
    ------
    ValueError
        A score is NaN, or the highest of a row is infinite.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.utils import check_scores
    >>> check_scores(np.zeros((1, 2)))
    array([[0., 0.]])
    """
    bad = np.flatnonzero(~np.isfinite(scores.max(axis=1)))
    if not len(bad):
        return scores
    raise ValueError(
        f"The scores of row {bad[0]} of X are not finite ({len(bad)} such rows): its values are "
        "out of proportion to those that were learned from; scale X as in fit."
    )


def _peak(tensor: torch.Tensor) -> float:
    """The largest magnitude; NaN where one is."""
    return max(abs(float(x)) for x in tensor.aminmax()) if tensor.numel() else 0.0


def _square_limits(tensor: torch.Tensor, dtype: torch.dtype | None) -> tuple[float, float]:
    """Magnitudes between which squares have all their digits and room for differences and sums."""
    limits = torch.finfo(widened(tensor[:0]).dtype if dtype is None else dtype)
    width = max(1, tensor[:1].numel())
    return math.sqrt(limits.tiny / limits.eps), math.sqrt(limits.max / (4 * width))


def _validate_tensor(
    estimator: BaseEstimator, X: torch.Tensor, *, reset: bool, min_samples: int
) -> torch.Tensor:
    who = type(estimator).__name__
    if X.ndim != 2:
        raise ValueError(
            f"{who} expected X of shape (n_samples, n_features), got a tensor of shape "
            f"{tuple(X.shape)}; pool or reshape it first."
        )
    for name, size, minimum in zip(
        ("sample(s)", "feature(s)"), X.shape, (min_samples, 1), strict=True
    ):
        if size < minimum:
            raise ValueError(
                f"Found a tensor with {size} {name} (shape={tuple(X.shape)}) while a minimum of "
                f"{minimum} is required by {who}."
            )
    if not X.is_floating_point():
        X = X.to(torch.float64 if X.device.type != "mps" else torch.float32)
    if reset:
        estimator.n_features_in_ = X.shape[1]
        if hasattr(estimator, "feature_names_in_"):
            del estimator.feature_names_in_
    elif getattr(estimator, "n_features_in_", X.shape[1]) != X.shape[1]:
        raise ValueError(
            f"X has {X.shape[1]} features, but {who} is expecting {estimator.n_features_in_} "
            "features as input."
        )
    return X.detach()


def validate_vectors(
    estimator: BaseEstimator,
    X: ArrayLike,
    *,
    reset: bool = True,
    min_samples: int = 1,
    finite: bool = True,
    squares: bool = False,
) -> ArrayLike:
    """Check feature vectors and remember or compare their width.

    Parameters
    ----------
    estimator : estimator
        Whose `n_features_in_` is set (`reset=True`) or compared.
    X : array-like, DataFrame or tensor of shape (n_samples, n_features)
    reset : bool, default=True
        Whether this call defines the width.
    min_samples : int, default=1
        Fewest rows accepted.
    finite : bool, default=True
        Whether NaN and infinity are refused here, at the cost of one read of X; moments see them
        in their sums.
    squares : bool, default=False
        Whether values whose squares leave the range of their type are refused as well, with the
        same read; those that vanish, where this call defines the width.

    Returns
    -------
    X : ndarray or tensor of shape (n_samples, n_features)
        float16, float32, float64 (or bfloat16, tensors) as it came; other types as float64.

    Raises
    ------
    ValueError
        Wrong rank or width, too few rows, NaN or infinity (with the row's index), squares that
        vanish or overflow.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.base import BaseEstimator
    >>> from skpool.utils import validate_vectors
    >>> validate_vectors(BaseEstimator(), np.ones((2, 3), dtype=np.float32)).dtype
    dtype('float32')
    """
    # A refused call must not leave the width of the refused rows behind.
    with unchanged_on_error(estimator):
        if isinstance(X, torch.Tensor):
            X = _validate_tensor(estimator, X, reset=reset, min_samples=min_samples)
        else:
            X = validate_data(
                estimator,
                X,
                reset=reset,
                dtype=_FLOATS,
                ensure_all_finite=False,
                ensure_min_samples=min_samples,
            )
        if squares:
            check_squares(X, vanishing=reset)
        elif finite:
            check_finite(X)
    return X


def check_labels(y: object, *, n_samples: int, who: str = "This classifier") -> np.ndarray:
    """Check class labels: one per row, of one sortable kind, none missing.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Integers, booleans, strings, or whole floats. -1 is a label like any other.
    n_samples : int
        Rows of the X that comes with it.
    who : str, default="This classifier"
        Who requires them, for messages.

    Returns
    -------
    y : ndarray of shape (n_samples,)
        On the host; objects as text or numbers, which are stored without pickle.

    Raises
    ------
    ValueError
        Missing (None, NaN), mixed text and numbers, continuous values, or another length.

    Examples
    --------
    >>> from skpool.utils import check_labels
    >>> check_labels([3, -1], n_samples=2)
    array([ 3, -1])
    """
    if y is None:
        raise ValueError(
            f"{who} requires y to be passed, but the target y is None; give one label per row of X."
        )
    if isinstance(y, torch.Tensor):
        y = y.detach().cpu().numpy()
    # numpy would turn [1, "a"] into text and [1, None] into objects without a word.
    if isinstance(y, (list, tuple)) and len({isinstance(label, str) for label in y}) > 1:
        raise ValueError("y mixes text with other labels; give labels of one type.")
    y = column_or_1d(y, warn=True)
    if len(y) != n_samples:
        raise ValueError(
            f"Found input variables with inconsistent numbers of samples: X has {n_samples} rows "
            f"and y has {len(y)} labels."
        )
    if y.dtype.kind == "O":
        _check_object_labels(y)
        y = np.array(y.tolist())
    elif y.dtype.kind == "f":
        _check_float_labels(y)
    elif y.dtype.kind not in "iubUS":
        raise ValueError(f"Unknown label type: y of dtype {y.dtype}; give integers or text.")
    return y


def joined_labels(known: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return the sorted union of two sets of labels, either of which may be empty.

    Parameters
    ----------
    known, new : ndarray of shape (n_classes,)
        As `check_labels` returns them.

    Returns
    -------
    labels : ndarray of shape (n_classes,)

    Raises
    ------
    ValueError
        One holds text and the other numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.utils import joined_labels
    >>> joined_labels(np.array([3, 1]), np.array([2]))
    array([1, 2, 3])
    """
    if len(known) == 0 or len(new) == 0:
        return np.unique(new if len(known) == 0 else known)
    if (known.dtype.kind in "US") != (new.dtype.kind in "US"):
        raise ValueError(
            f"y holds labels such as {new.tolist()[0]!r}, but the known ones are such as "
            f"{known.tolist()[0]!r}; give text or numbers, not both."
        )
    return np.union1d(known, new)


def _check_float_labels(y: np.ndarray) -> None:
    if not np.isfinite(y).all():
        row = int(np.flatnonzero(~np.isfinite(y))[0])
        raise ValueError(
            f"Input y contains NaN or infinity at position {row}; every row needs a label."
        )
    if (y != np.floor(y)).any():
        raise ValueError(
            "Unknown label type: continuous. y holds fractions; a classifier needs discrete "
            "classes."
        )


def _check_object_labels(y: np.ndarray) -> None:
    kinds = {str if isinstance(label, str) else type(label) for label in y}
    missing = [i for i, v in enumerate(y) if v is None or (isinstance(v, float) and v != v)]
    if missing:
        raise ValueError(
            f"Input y contains NaN or None at position {missing[0]}; every row needs a label."
        )
    if str in kinds and len(kinds) > 1:
        raise ValueError("y mixes text with other labels; give labels of one type.")
    if str not in kinds:
        try:
            numbers = y.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Unknown label type: y holds {sorted(k.__name__ for k in kinds)}; give integers "
                "or text."
            ) from error
        _check_float_labels(numbers)
