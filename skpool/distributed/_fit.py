# SPDX-License-Identifier: BSD-3-Clause
"""Learning from partitions: every one by itself, wherever it lies, then merged along a tree.

Moments add, so the result is that of one `fit` on all rows, to rounding. The tree depends on the
number of partitions alone, so the result does not depend on which worker was faster.
"""

import copy
import inspect
import os
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags

from skpool.distributed._client import find_client
from skpool.exceptions import UnreadableInputError
from skpool.utils import import_optional

__all__ = ["fit"]

_MERGED_AT_ONCE = 8


def fit(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    sample_weight: Any = None,
    classes: Sequence | None = None,
    client: object | None = None,
) -> Any:
    """Fit an estimator of moments on partitions, each on the worker that Dask chooses.

    Parameters
    ----------
    estimator : estimator or moments
        Anything that has `merge` and `partial_fit` (or `update`): `NearestClassMeanClassifier`,
        `Whitening`, `ClassMoments`, `RunningMoments`, .... Or a pipeline that ends with one,
        whose other steps learn nothing, such as an extractor and a pooling. It is not changed.
    X : dask array, or list of partitions
        In a list each partition is an array or other X of the estimator (such as a list of paths,
        for a pipeline), which travels with its task; a delayed object or a future; or the path of
        a file ``.npy`` or ``.npz`` (whose array "X" is taken) that the workers can read.
    y : as X, default=None
        Labels, partitioned like X (from an ``.npz`` the array "y").
    sample_weight : as X, default=None
        Weights of the samples, partitioned like X (from an ``.npz`` the array "sample_weight").
    classes : array-like of shape (n_classes,), default=None
        Labels to announce to every partition. Needed only where a parameter speaks of all
        classes, as an array of priors does.
    client : dask.distributed.Client, default=None
        None takes the client of this process.

    Returns
    -------
    fitted : estimator
        A new one, equal to one fitted on all rows, to rounding.

    Raises
    ------
    UnreadableInputError
        A pipeline met files that cannot be read; positions are those in all partitions together.

    See Also
    --------
    skpool.distributed.extract : Features of many files.

    Notes
    -----
    Partitions may be empty, or hold some of the classes. Only what was learned travels between
    workers: O(n_classes * d), or O(d^2) with covariances, per partition. A worker that dies loses
    nothing: Dask repeats what it had. Steps that learn before the last one need the rows twice:
    fit them first, and transform.

    Examples
    --------
    >>> from dask.distributed import Client, LocalCluster  # doctest: +SKIP
    >>> with Client(LocalCluster(n_workers=2)):  # doctest: +SKIP
    ...     fit(Whitening(), ["part0.npy", "part1.npy"])
    """
    before, last = _split(estimator)
    _check_learns_in_parts(last, sample_weight, classes)
    client = find_client(client)
    dask = import_optional("dask", extra="dask", purpose="skpool.distributed")
    columns = {"X": _partitions(X, "X"), "y": y, "sample_weight": sample_weight}
    for name in ("y", "sample_weight"):
        columns[name] = _like_X(columns[name], X, columns["X"], name)
    learner = _literal(dask, (before, last, classes))
    learn, merge = dask.delayed(_learn, pure=False), dask.delayed(_merge, pure=False)
    offsets = _offsets(dask, columns["X"])
    rows = zip(*columns.values(), offsets, strict=True)
    parts = [learn(learner, *(_literal(dask, item) for item in row)) for row in rows]
    while len(parts) > 1:
        starts = range(0, len(parts), _MERGED_AT_ONCE)
        parts = [merge(parts[start : start + _MERGED_AT_ONCE]) for start in starts]
    return _finished(estimator, client.compute(parts[0]).result())


class _Learned(NamedTuple):
    """What some partitions gave: an estimator, or None where there was no row."""

    estimator: Any
    failures: list[tuple[int, str, str]]


def _finished(estimator: Any, learned: _Learned) -> Any:
    if learned.failures:
        raise UnreadableInputError(learned.failures)
    if learned.estimator is None:
        raise ValueError("All partitions of X are empty; give at least one row of weight above 0.")
    if not _is_plain_pipeline(estimator):
        return learned.estimator
    whole = clone(estimator)
    whole.steps[-1] = (whole.steps[-1][0], learned.estimator)
    return whole


# What is accepted.


def _is_plain_pipeline(estimator: Any) -> bool:
    """Whether an estimator is its steps; one that learns in parts has a state of its own."""
    return isinstance(estimator, Pipeline) and not hasattr(estimator, "partial_fit")


def _split(estimator: Any) -> tuple[list, Any]:
    """The steps that learn nothing, and the one that does, all unfitted."""
    if not _is_plain_pipeline(estimator):
        return [], _unfitted(estimator)
    *before, (_, last) = estimator.steps
    for name, step in before:
        if step not in (None, "passthrough") and get_tags(step).requires_fit:
            raise ValueError(
                f"Step {name!r} of the pipeline learns, so the later steps cannot be fitted in the "
                "same pass; fit it first, transform, and fit the rest on the result."
            )
    steps = [clone(step) for _, step in before if step not in (None, "passthrough")]
    return steps, _unfitted(last)


def _unfitted(estimator: Any) -> Any:
    can = hasattr(estimator, "merge") and _verb(estimator) is not None
    if not can or isinstance(estimator, type):
        raise TypeError(
            f"estimator={estimator!r:.80} cannot be fitted on partitions: it needs `merge` and "
            "`partial_fit`, which estimators of moments have (with a shrinkage and solver that do "
            "not need all rows at once)."
        )
    return clone(estimator)


def _verb(estimator: Any) -> str | None:
    names = [name for name in ("partial_fit", "update") if hasattr(estimator, name)]
    return names[0] if names else None


def _accepted(estimator: Any) -> set[str]:
    return set(inspect.signature(getattr(estimator, _verb(estimator))).parameters)


def _check_learns_in_parts(estimator: Any, sample_weight: Any, classes: Any) -> None:
    for name, value in (("sample_weight", sample_weight), ("classes", classes)):
        if value is not None and name not in _accepted(estimator):
            raise ValueError(
                f"{name} was given, and {type(estimator).__name__} does not take it; leave it out."
            )


# Partitions of X, y and the weights.


def _is_lazy(value: Any) -> bool:
    return hasattr(value, "to_delayed")


def _partitions(value: Any, name: str) -> list:
    if _is_lazy(value):
        if len(getattr(value, "chunks", ())) > 1:
            value = value.rechunk(dict.fromkeys(range(1, value.ndim), -1))
        parts = value.to_delayed()
        return parts.ravel().tolist() if isinstance(parts, np.ndarray) else list(parts)
    if not isinstance(value, (list, tuple)):
        raise TypeError(
            f"{name} is of type {type(value).__name__}; give a dask array, or a list of partitions."
        )
    if not value:
        raise ValueError(f"{name} has no partition; give at least one.")
    # A worker may stand in another directory.
    here = os.getcwd()
    return [os.path.join(here, v) if isinstance(v, (str, os.PathLike)) else v for v in value]


def _like_X(value: Any, X: Any, parts: list, name: str) -> list:
    if value is None:
        return [None] * len(parts)
    if _is_lazy(value) and hasattr(value, "chunks") and hasattr(X, "chunks"):
        rows = X.chunks[0]
        if rows != value.chunks[0] and not np.isnan(rows + value.chunks[0]).any():
            value = value.rechunk({0: rows})
    found = _partitions(value, name)
    if len(found) != len(parts):
        raise ValueError(
            f"{name} has {len(found)} partitions and X has {len(parts)}; cut both alike."
        )
    return found


def _is_remote(dask: Any, value: Any) -> bool:
    """Whether a value is somewhere else, or does not exist yet."""
    return dask.is_dask_collection(value) or type(value).__module__.startswith("distributed.")


def _offsets(dask: Any, parts: list) -> list[int]:
    """Rows before each partition, as far as that is known here; only lists of files need it."""
    unknown = (str, os.PathLike)
    lengths = [
        0 if isinstance(part, unknown) or _is_remote(dask, part) else len(part) for part in parts
    ]
    return (np.cumsum(lengths) - lengths).tolist()


def _literal(dask: Any, value: Any) -> Any:
    """Plain values as they are: Dask must not look into lists of a million paths."""
    if _is_remote(dask, value):
        return value
    return dask.delayed(value, name=f"skpool-{uuid.uuid4().hex}", traverse=False)


# What runs on the workers.


def _read(value: Any, name: str) -> Any:
    """Open a file of rows; everything else is rows already."""
    if not isinstance(value, (str, os.PathLike)):
        return value
    if not os.fspath(value).endswith((".npy", ".npz")):
        raise ValueError(
            f"The partition {value!r} of {name} is the name of a file that is neither .npy nor "
            ".npz; give such a file, or a list of paths."
        )
    loaded = np.load(value, mmap_mode="r", allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        if name not in loaded:
            raise ValueError(f"{value!r} has no array {name!r}; it has {sorted(loaded)}.")
        return loaded[name]


def _n_rows(X: Any) -> int:
    return X.shape[0] if hasattr(X, "shape") else len(X)


def _learn(learner: tuple, X: Any, y: Any, sample_weight: Any, offset: int) -> _Learned:
    before, estimator, classes = learner
    X = _read(X, "X")
    options = {"y": _read(y, "y"), "sample_weight": _read(sample_weight, "sample_weight")}
    weights = options["sample_weight"]
    # Rows of weight 0 count as absent.
    if _n_rows(X) == 0 or (weights is not None and not np.any(weights)):
        return _Learned(None, [])
    try:
        for step in before:
            X = clone(step).transform(X)
    except UnreadableInputError as error:
        return _Learned(None, [(row + offset, *rest) for row, *rest in error.failures])
    options["classes"] = classes
    taken = _accepted(estimator)
    options = {k: v for k, v in options.items() if k in taken and v is not None}
    return _Learned(getattr(clone(estimator), _verb(estimator))(X, **options), [])


def _merge(parts: Iterable[_Learned]) -> _Learned:
    failures = [failure for part in parts for failure in part.failures]
    first, *others = [part.estimator for part in parts if part.estimator is not None] or [None]
    # A copy: Dask may hand the same object to a task that it runs again.
    merged = copy.deepcopy(first) if others else first
    for other in others:
        merged = merged.merge(other)
    return _Learned(merged, failures)
