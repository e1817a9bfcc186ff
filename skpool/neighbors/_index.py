# SPDX-License-Identifier: BSD-3-Clause
"""NeighborIndex: exact nearest neighbours over rows that come and go, on faiss or torch.

The one engine under every class of this room, and the one file that imports faiss, when it is
used. faiss searches plain arrays here, so there is no faiss object to store or to unpickle.
"""

from typing import Any

import numpy as np
import torch
from sklearn.utils import check_array

from skpool.neighbors._kernels import (
    N_EXTRA,
    candidates_torch,
    nearest_of_candidates,
    prepare_rows,
)
from skpool.utils import ArrayLike, as_tensor, check_finite, numpy_or_tensor

__all__ = ["NeighborIndex"]

_METRICS = ("cosine", "euclidean", "dot")
_BACKENDS = ("auto", "torch", "faiss")


def _one_of(name: str, value: object, options: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name}={value!r} is not valid; choose one of {list(options)}.")
    return value


def _rows(X: object, *, name: str, width: int | None) -> torch.Tensor:
    if isinstance(X, torch.Tensor):
        if X.ndim != 2 or 0 in X.shape or not X.is_floating_point():
            raise ValueError(
                f"{name} must be a floating-point tensor of shape (n_samples, n_features) with at "
                f"least 1 row and 1 feature, got {X.dtype} of shape {tuple(X.shape)}."
            )
    else:
        floats = [np.float64, np.float32, np.float16]
        X = check_array(X, dtype=floats, ensure_all_finite=False, input_name=name)
    if width is not None and X.shape[1] != width:
        raise ValueError(
            f"{name} has {X.shape[1]} features, but this index holds rows of {width} features."
        )
    check_finite(X, name=name)
    return numpy_or_tensor(X)[0]


def _candidates_faiss(
    q: torch.Tensor, x: torch.Tensor, n_candidates: int, *, metric: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Propose the nearest rows as `candidates_torch` does."""
    import faiss

    kind = faiss.METRIC_L2 if metric == "euclidean" else faiss.METRIC_INNER_PRODUCT
    values, positions = faiss.knn(q.numpy(), x.numpy(), n_candidates, metric=kind)
    border = torch.from_numpy(values[:, -1])
    if metric != "euclidean":
        border = (1 if metric == "cosine" else 0) - border
    return border, torch.from_numpy(positions)


class NeighborIndex:
    """Exact nearest-neighbour search over rows that can be added and removed.

    Each back-end proposes candidates by products in float32; their distances are recomputed
    directly in float64, and a bound on the rounding tells for which queries all rows must be
    looked at again. So every back-end gives the same neighbours in the same order, ties
    included.

    Parameters
    ----------
    metric : {"cosine", "euclidean", "dot"}, default="cosine"
        Distances are 1 - cosine (1 from or to a zero vector), the Euclidean distance, and minus
        the dot product.
    backend : {"auto", "torch", "faiss"}, default="auto"
        ``"faiss"`` searches on the CPU and keeps the rows on the host. ``"torch"`` searches where
        the first rows lay, in blocks that fit scikit-learn's `working_memory`. ``"auto"`` takes
        torch for tensors on an accelerator and faiss for everything else.

    Attributes
    ----------
    ids : ndarray of shape (n_rows,)
        Ids of the rows held, ascending.
    vectors : ndarray of shape (n_rows, n_features)
        The rows held, in the order of `ids`.

    See Also
    --------
    WeightedKNNClassifier : Classifies by the neighbours found here.

    Notes
    -----
    Cost of a search: one matrix product of n_queries * n_rows * n_features and a partial sort.
    Queries whose neighbours are tied or nearly tied at the border read all rows once more.
    Memory: the rows in the type given, and a float32 copy prepared for the search. Removing
    copies the rows that stay, so remove many at once. A pickle holds plain arrays and opens on
    the host.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.neighbors import NeighborIndex
    >>> index = NeighborIndex("euclidean")
    >>> index.add(np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]))
    array([0, 1, 2])
    >>> distances, ids = index.search(np.array([[0.0, 1.0]]), 2)
    >>> ids
    array([[0, 1]])
    >>> index.remove([0])
    >>> index.search(np.array([[3.0, 4.0]]), 2)
    (array([[0., 5.]]), array([[1, 2]]))
    """

    def __init__(self, metric: str = "cosine", *, backend: str = "auto"):
        self.metric = _one_of("metric", metric, _METRICS)
        self.backend = _one_of("backend", backend, _BACKENDS)
        self._stored: list[torch.Tensor] = []
        self._prepared: list[torch.Tensor] = []
        self._ids = np.empty(0, dtype=np.int64)
        self._next_id = 0
        self._center: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def __repr__(self) -> str:
        return (
            f"NeighborIndex(metric={self.metric!r}, backend={self.backend!r}, n_rows={len(self)})"
        )

    @property
    def ids(self) -> np.ndarray:
        """Ids of the rows held, ascending."""
        return self._ids.copy()

    @property
    def vectors(self) -> np.ndarray:
        """The rows held, in the order of `ids`; read-only."""
        if not self._stored:
            return np.empty((0, 0))
        rows = self._joined("_stored").cpu().numpy()
        rows.flags.writeable = False
        return rows

    @property
    def device(self) -> torch.device:
        """Where the rows lie and are searched."""
        return self._stored[0].device if self._stored else torch.device("cpu")

    def _joined(self, name: str) -> torch.Tensor:
        # Rows are joined when they are needed, so that adding one by one stays linear.
        parts = getattr(self, name)
        if len(parts) > 1:
            parts[:] = [torch.cat(parts)]
        return parts[0]

    def _prepare(self, rows: torch.Tensor, center: torch.Tensor | None) -> torch.Tensor:
        return prepare_rows(rows, metric=self.metric, center=center)

    def add(self, X: ArrayLike) -> np.ndarray:
        """Add rows.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Rows; they are copied.

        Returns
        -------
        ids : ndarray of shape (n_samples,)
            The ids of the new rows, counted from 0 and never used again.
        """
        width = self._stored[0].shape[1] if self._stored else None
        rows = _rows(X, name="X", width=width)
        if self.backend == "faiss":
            rows = rows.cpu()
        # One copy that nobody else can change.
        rows = rows.to(self.device if self._stored else rows.device, copy=True).contiguous()
        center = self._center
        if center is None and self.metric == "euclidean":
            center = rows.mean(dim=0)
        prepared = self._prepare(rows, center)
        ids = np.arange(self._next_id, self._next_id + len(rows))
        all_ids = np.concatenate([self._ids, ids])
        self._center = center
        self._stored, self._prepared = self._stored + [rows], self._prepared + [prepared]
        self._ids, self._next_id = all_ids, self._next_id + len(rows)
        return ids

    def remove(self, ids: ArrayLike) -> None:
        """Remove rows; the ids of all others stay.

        Parameters
        ----------
        ids : array-like of shape (n_ids,)
            Ids that `add` returned and that are still held.
        """
        ids = np.unique(np.asarray(ids, dtype=np.int64))
        unknown = np.setdiff1d(ids, self._ids)
        if len(unknown):
            raise ValueError(
                f"The id {int(unknown[0])} is not held by this index ({len(unknown)} such ids); "
                "give ids that `add` returned."
            )
        keep = np.isin(self._ids, ids, invert=True)
        if not keep.any():
            self._stored, self._prepared, self._ids = [], [], self._ids[keep]
            self._center = None
        elif len(ids):
            mask = torch.from_numpy(keep).to(self.device)
            stored, prepared = self._joined("_stored")[mask], self._joined("_prepared")[mask]
            self._stored, self._prepared, self._ids = [stored], [prepared], self._ids[keep]

    def search(self, Q: ArrayLike, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the nearest rows.

        Parameters
        ----------
        Q : array-like or tensor of shape (n_queries, n_features)
            Queries.
        k : int
            Neighbours to return, at most the number of rows held.

        Returns
        -------
        distances : ndarray of shape (n_queries, k)
            Ascending, in float64.
        ids : ndarray of shape (n_queries, k)
            Their ids; of equal distances the lower id first.
        """
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise ValueError(f"k={k!r} is not valid; give a whole number of at least 1.")
        if k > len(self):
            raise ValueError(
                f"k={k} neighbours were asked for, but this index holds {len(self)} rows; lower k "
                "or add rows."
            )
        X, x = self._joined("_stored"), self._joined("_prepared")
        Q = _rows(Q, name="Q", width=X.shape[1]).to(X.device)
        q = self._prepare(Q, self._center)
        faiss = self.backend == "faiss" or (self.backend == "auto" and X.device.type == "cpu")
        propose = _candidates_faiss if faiss else candidates_torch
        border, positions = propose(q, x, min(len(x), int(k) + N_EXTRA), metric=self.metric)
        distances, positions = nearest_of_candidates(
            Q,
            X,
            q,
            x,
            border,
            positions,
            int(k),
            metric=self.metric,
            unit=2.0**-23 if faiss else None,
        )
        if self.metric == "euclidean":
            distances = distances.sqrt()
        return distances.cpu().double().numpy(), self._ids[positions.cpu().numpy()]

    def __getstate__(self) -> dict[str, Any]:
        center = None if self._center is None else self._center.cpu().numpy()
        state = {"metric": self.metric, "backend": self.backend, "center": center}
        return state | {"vectors": self.vectors, "ids": self._ids, "next_id": self._next_id}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["metric"], backend=state["backend"])
        self._ids, self._next_id = state["ids"], state["next_id"]
        if state["center"] is not None:
            self._center = as_tensor(state["center"])
        if len(state["ids"]):
            rows = as_tensor(state["vectors"])
            self._stored, self._prepared = [rows], [self._prepare(rows, self._center)]
