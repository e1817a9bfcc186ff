# SPDX-License-Identifier: BSD-3-Clause
"""NeighborIndex: nearest neighbours over rows that come and go, on faiss or torch.

The one engine under every class of this room. Exact search works on plain arrays, so there is no
faiss object to store or to unpickle; approximate methods keep one beside the rows, from which it
can be built anew (`_approximate.py`). faiss is imported when it is used.
"""

from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from sklearn.utils import check_array

from skpool.neighbors._approximate import METHODS, ApproximateSearch, checked_params
from skpool.neighbors._engines import proposals
from skpool.neighbors._host_distances import row_norms
from skpool.neighbors._kernels import (
    N_EXTRA,
    exact_distances,
    nearest_of_candidates,
    prepare_rows,
    rows_within,
    sorted_pairs,
)
from skpool.utils import ArrayLike, as_tensor, check_finite, check_squares, numpy_or_tensor

__all__ = ["NeighborIndex", "tune_ef_search"]

_METRICS = ("cosine", "euclidean", "dot")
_BACKENDS = ("auto", "torch", "faiss")
# Rows that stand for queries when the recall is measured without any.
_RECALL_ROWS = 256


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


class NeighborIndex:
    """Nearest-neighbour search over rows that can be added and removed.

    Each back-end proposes candidates by products in float32; their distances are recomputed
    directly in float64. With ``method="exact"`` a bound on the rounding tells for which queries
    all rows must be looked at again, so every back-end gives the same neighbours in the same
    order, ties included. Approximate methods may miss neighbours; `recall` says how many.

    Parameters
    ----------
    metric : {"cosine", "euclidean", "dot"}, default="cosine"
        Distances are 1 - cosine (1 from or to a zero vector), the Euclidean distance, and minus
        the dot product.
    backend : {"auto", "torch", "faiss"}, default="auto"
        ``"torch"`` searches where the first rows lay, in blocks that fit scikit-learn's
        `working_memory`. ``"faiss"`` searches on the CPU and keeps the rows on the host.
        ``"auto"`` takes torch for an exact search, or the faster of the two where one on the CPU
        is long: its first queries try both. It takes faiss for the other methods.
    method : {"exact", "hnsw", "ivf", "ivfpq"}, default="exact"
        ``"hnsw"`` walks a graph of neighbours [2]_, ``"ivf"`` looks into the nearest of many
        lists, ``"ivfpq"`` does so over product codes [1]_ and compares a few times as many rows
        exactly. All three are built by faiss, on the host, at the first search.
    params : dict, default=None
        Settings of an approximate method. ``"hnsw"``: `M` (16) edges per row, `ef_construction`
        (200), `ef_search` (64), `insertion_order` ("as_given", "random", "lid_descending" or a
        permutation) with its `random_state` (0), and `block_size` (None, all at once; an order
        is only kept with 1, because faiss reorders within a block). ``"ivf"``: `n_lists` and
        `n_probes` ("auto"). ``"ivfpq"``: these, `n_subvectors` ("auto"), `n_bits` (8), and
        `refine` (4), the candidates per neighbour.

    Attributes
    ----------
    ids : ndarray of shape (n_rows,)
        Ids of the rows held, ascending.
    vectors : ndarray of shape (n_rows, n_features)
        The rows held, in the order of `ids`.

    See Also
    --------
    WeightedKNNClassifier : Classifies by the neighbours found here.
    tune_ef_search : Chooses `ef_search` by the recall wanted.

    Notes
    -----
    Cost of an exact search: one matrix product of n_queries * n_rows * n_features and a partial
    sort. Queries whose neighbours are tied or nearly tied at the border read all rows once more.
    Memory: the rows in the type given, a float32 copy prepared for the search, and blocks of
    bounded size; "hnsw" and "ivf" hold one more copy of the rows. Removing copies the rows that
    stay, so remove many at once; approximate structures pass over removed rows and are built
    anew when a fifth is gone. Graphs that are built with more than one thread differ from run to
    run. A pickle holds plain arrays and opens on the host.

    References
    ----------
    .. [1] J. Johnson, M. Douze, H. Jegou, Billion-scale similarity search with GPUs, 2017.
       <https://arxiv.org/abs/1702.08734>
    .. [2] Y. A. Malkov, D. A. Yashunin, Efficient and robust approximate nearest neighbor search
       using Hierarchical Navigable Small World graphs, 2016. <https://arxiv.org/abs/1603.09320>

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

    def __init__(
        self,
        metric: str = "cosine",
        *,
        backend: str = "auto",
        method: str = "exact",
        params: dict | None = None,
    ):
        self.metric = _one_of("metric", metric, _METRICS)
        self.backend = _one_of("backend", backend, _BACKENDS)
        self.method = _one_of("method", method, ("exact", *METHODS))
        if method != "exact" and backend == "torch":
            raise ValueError(
                f"method={method!r} is searched by faiss, not by backend='torch'; set "
                "backend='auto'."
            )
        if method == "hnsw" and metric == "dot":
            raise ValueError(
                "method='hnsw' needs a metric, which metric='dot' is not; set metric='cosine' or "
                "'euclidean', or method='ivf'."
            )
        self.params = checked_params(method, params)
        self._approximate = self._new_approximate()
        self._stored: list[torch.Tensor] = []
        self._prepared: list[torch.Tensor] = []
        self._norms: list[torch.Tensor] = []
        self._ids = np.empty(0, dtype=np.int64)
        self._next_id = 0
        self._center: torch.Tensor | None = None

    def _new_approximate(self) -> ApproximateSearch | None:
        if self.method == "exact":
            return None
        return ApproximateSearch(self.method, self.params, self.metric)

    def __len__(self) -> int:
        return len(self._ids)

    def __repr__(self) -> str:
        method = "" if self.method == "exact" else f", method={self.method!r}"
        return (
            f"NeighborIndex(metric={self.metric!r}, backend={self.backend!r}{method}, "
            f"n_rows={len(self)})"
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

    def _check_range(self, rows: torch.Tensor, *, vanishing: bool) -> None:
        # Distances are taken in float64, whose range squares of narrower types do not leave.
        if self.metric != "cosine" and rows.dtype == torch.float64:
            check_squares(rows, vanishing=vanishing)

    def _new_norms(self, rows: torch.Tensor) -> list[torch.Tensor]:
        if self.metric != "cosine" or rows.device.type != "cpu":
            return []
        return [torch.from_numpy(row_norms(rows.numpy()))]

    def add(self, X: ArrayLike, ids: ArrayLike | None = None) -> np.ndarray:
        """Add rows.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Rows; they are copied.
        ids : array-like of shape (n_samples,), default=None
            Ids for the new rows: whole numbers that ascend from above every id used so far. None
            counts on.

        Returns
        -------
        ids : ndarray of shape (n_samples,)
            The ids of the new rows, counted from 0 unless they were given; never used again.
        """
        width = self._stored[0].shape[1] if self._stored else None
        rows = _rows(X, name="X", width=width)
        self._check_range(rows, vanishing=True)
        ids = self._new_ids(ids, len(rows))
        if self.backend == "faiss" or self.method != "exact":
            rows = rows.cpu()
        # One copy that nobody else can change.
        rows = rows.to(self.device if self._stored else rows.device, copy=True).contiguous()
        center = self._center
        if center is None and self.metric == "euclidean":
            center = rows.mean(dim=0)
        prepared, norms = self._prepare(rows, center), self._new_norms(rows)
        all_ids = np.concatenate([self._ids, ids])
        self._center = center
        self._stored, self._prepared = self._stored + [rows], self._prepared + [prepared]
        self._norms = self._norms + norms
        self._ids, self._next_id = all_ids, int(ids[-1]) + 1
        return ids

    def _new_ids(self, ids: ArrayLike | None, n_rows: int) -> np.ndarray:
        if ids is None:
            return np.arange(self._next_id, self._next_id + n_rows)
        ids = np.asarray(ids)
        if ids.shape != (n_rows,) or ids.dtype.kind not in "iu":
            raise ValueError(
                f"ids of dtype {ids.dtype} and shape {ids.shape} do not fit X with {n_rows} rows; "
                "give one whole number per row."
            )
        ids = ids.astype(np.int64)
        if ids[0] < self._next_id or (np.diff(ids) <= 0).any():
            raise ValueError(
                f"ids must ascend from at least {self._next_id}, got {ids[0]} first; the order of "
                "the ids decides between ties."
            )
        return ids

    def remove(self, ids: ArrayLike) -> None:
        """Remove rows; the ids of all others stay.

        Parameters
        ----------
        ids : array-like of shape (n_ids,)
            Ids that `add` returned and that are still held.
        """
        ids = np.unique(np.asarray(ids, dtype=np.int64))
        self._positions(ids)
        keep = np.isin(self._ids, ids, invert=True)
        if not keep.any():
            self._stored, self._prepared, self._norms = [], [], []
            self._ids, self._center = self._ids[keep], None
        elif len(ids):
            mask = torch.from_numpy(keep).to(self.device)
            names = ("_stored", "_prepared", "_norms")
            left = [[self._joined(name)[mask]] if getattr(self, name) else [] for name in names]
            self._stored, self._prepared, self._norms = left
            self._ids = self._ids[keep]

    def _positions(self, ids: np.ndarray) -> np.ndarray:
        """Positions of ids among the rows held, or which id is not."""
        unknown = np.setdiff1d(ids, self._ids)
        if len(unknown):
            raise ValueError(
                f"The id {int(unknown[0])} is not held by this index ({len(unknown)} such ids); "
                "give ids that `add` returned."
            )
        return np.searchsorted(self._ids, ids)

    def reconstruct(self, ids: ArrayLike) -> np.ndarray:
        """Return rows by their ids.

        Parameters
        ----------
        ids : array-like of shape (n_ids,)
            Ids that are held, in any order.

        Returns
        -------
        X : ndarray of shape (n_ids, n_features)
            The rows as they were added.
        """
        return self.vectors[self._positions(np.asarray(ids, dtype=np.int64))]

    def search(
        self, Q: ArrayLike, k: int, *, exclude: ArrayLike | None = None, strict: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the nearest rows.

        Parameters
        ----------
        Q : array-like or tensor of shape (n_queries, n_features)
            Queries.
        k : int
            Neighbours to return, at most the number of rows held.
        exclude : array-like of shape (n_queries,), default=None
            For each query one id that is not its neighbour, such as its own; -1 for none. One
            neighbour less can then be asked for.
        strict : bool, default=True
            Whether to refuse a `k` above the number of rows; otherwise all rows are returned.

        Returns
        -------
        distances : ndarray of shape (n_queries, k)
            Ascending, in float64.
        ids : ndarray of shape (n_queries, k)
            Their ids; of equal distances the lower id first.
        """
        distances, positions = self._nearest(Q, k, exclude=exclude, strict=strict)
        return distances, self._ids[positions]

    def _nearest(
        self, Q: ArrayLike, k: int, *, exclude: ArrayLike | None = None, strict: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search, with positions among the rows held in place of ids."""
        k = self._checked_k(k, others=exclude is not None, strict=strict)
        rows = _rows(Q, name="Q", width=self._stored[0].shape[1]).to(self.device)
        self._check_range(rows, vanishing=False)
        if exclude is None:
            return self._found(rows, k)
        exclude = np.asarray(exclude)
        if exclude.shape != (len(rows),) or exclude.dtype.kind not in "iu":
            raise ValueError(
                f"exclude of dtype {exclude.dtype} and shape {exclude.shape} does not fit Q with "
                f"{len(rows)} rows; give one id per query, -1 for none."
            )
        distances, positions = self._found(rows, k + 1)
        kept = self._ids[positions] != exclude[:, None]
        # Where the excluded row is not among the nearest, the last of them is one too many.
        kept[kept.all(axis=1), -1] = False
        shape = (len(rows), k)
        return distances[kept].reshape(shape), positions[kept].reshape(shape)

    def _checked_k(self, k: object, *, others: bool, strict: bool = True) -> int:
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise ValueError(f"k={k!r} is not valid; give a whole number of at least 1.")
        available = len(self) - others
        if (k > available and strict) or available < 1:
            raise ValueError(
                f"k={k} neighbours were asked for, but this index holds {len(self)} rows"
                f"{', of which one is excluded' if others else ''}; lower k or add rows."
            )
        return min(int(k), available)

    def _found(self, Q: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        q = self._prepare(Q, self._center)
        find = self._exact if self._approximate is None else self._near
        distances, positions = find(Q, q, k)
        if self.metric == "euclidean":
            distances = distances.sqrt()
        return distances.cpu().double().numpy(), positions.cpu().numpy()

    def _known_norms(self) -> torch.Tensor | None:
        return self._joined("_norms") if self._norms else None

    def _exact(self, Q: torch.Tensor, q: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        X, x = self._joined("_stored"), self._joined("_prepared")
        wanted, norms = min(len(x), k + N_EXTRA), self._known_norms()
        found = [
            nearest_of_candidates(
                Q[part.queries],
                X,
                q[part.queries],
                x,
                part.values,
                part.positions,
                k,
                metric=self.metric,
                unit=part.unit,
                norms=norms,
            )
            for part in proposals(q, x, wanted, metric=self.metric, backend=self.backend)
        ]
        distances, positions = (torch.cat(parts) for parts in zip(*found, strict=True))
        return distances, positions

    def _near(self, Q: torch.Tensor, q: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Search approximately; where fewer than k rows are found, exactly."""
        self._approximate.sync(self._joined("_prepared").numpy(), self._ids)
        ids = self._approximate.propose(q.numpy(), min(len(self), k + N_EXTRA))
        missing = torch.from_numpy((ids >= 0).sum(axis=1) < k)
        positions = torch.from_numpy(np.searchsorted(self._ids, ids.clip(min=self._ids[0])))
        distances = exact_distances(
            Q, self._joined("_stored"), positions, metric=self.metric, norms=self._known_norms()
        )
        distances[torch.from_numpy(ids < 0)] = torch.inf
        distances, positions = sorted_pairs(distances, positions, k)
        if bool(missing.any()):
            distances[missing], positions[missing] = self._exact(Q[missing], q[missing], k)
        return distances, positions

    def range_search(
        self, Q: ArrayLike, radius: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find all rows within a distance, exactly with every method.

        Parameters
        ----------
        Q : array-like or tensor of shape (n_queries, n_features)
            Queries.
        radius : float
            Largest distance, in the metric of the index.

        Returns
        -------
        offsets : ndarray of shape (n_queries + 1,)
            The neighbours of query i lie between offsets i and i + 1.
        distances : ndarray of shape (n_found,)
            Ascending for each query.
        ids : ndarray of shape (n_found,)
            Their ids.
        """
        if not np.isfinite(radius) or (self.metric == "euclidean" and radius < 0):
            raise ValueError(f"radius={radius!r} is not a distance; give a finite number.")
        self._checked_k(1, others=False)
        X = self._joined("_stored")
        Q = _rows(Q, name="Q", width=X.shape[1]).to(X.device)
        self._check_range(Q, vanishing=False)
        squared = self.metric == "euclidean"
        found = rows_within(
            Q,
            X,
            self._prepare(Q, self._center),
            self._joined("_prepared"),
            radius**2 if squared else radius,
            metric=self.metric,
            norms=self._known_norms(),
        )
        pairs = [(d.cpu().double().numpy(), self._ids[p.cpu().numpy()]) for d, p in found]
        offsets = np.cumsum([0] + [len(d) for d, _ in pairs])
        distances = np.concatenate([d for d, _ in pairs])
        distances = np.sqrt(distances) if squared else distances
        return offsets, distances, np.concatenate([i for _, i in pairs])

    def graph(self, Q: ArrayLike | None = None, k: int = 5, *, mode: str = "distance") -> csr_array:
        """Return the neighbours as a sparse matrix, as scikit-learn's "precomputed" takes it.

        Parameters
        ----------
        Q : array-like or tensor of shape (n_queries, n_features), default=None
            Queries. None takes all rows held, without themselves.
        k : int, default=5
            Neighbours of each query.
        mode : {"distance", "connectivity"}, default="distance"
            Whether the entries are distances or ones.

        Returns
        -------
        graph : csr_array of shape (n_queries, n_rows)
            Columns in the order of `ids`; k entries per row, ascending by distance.
        """
        _one_of("mode", mode, ("distance", "connectivity"))
        own = Q is None
        Q = self.vectors if own else Q
        distances, positions = self._nearest(Q, k, exclude=self._ids if own else None)
        values = distances if mode == "distance" else np.ones_like(distances)
        starts = np.arange(0, positions.size + 1, positions.shape[1])
        shape = (len(positions), len(self))
        return csr_array((values.ravel(), positions.ravel(), starts), shape=shape)

    def recall(self, Q: ArrayLike | None = None, k: int = 10) -> float:
        """Measure the share of the nearest rows that a search finds, against exact search.

        Parameters
        ----------
        Q : array-like or tensor of shape (n_queries, n_features), default=None
            Queries. None takes up to 256 of the rows held, each without itself.
        k : int, default=10
            Neighbours of each query; as many as there are if fewer.

        Returns
        -------
        recall : float
            1 for exact search. A row that ties with the last neighbour counts as found.
        """
        own = None
        if Q is None:
            self._checked_k(1, others=True)
            chosen = np.linspace(0, len(self) - 1, min(_RECALL_ROWS, len(self))).astype(np.int64)
            Q, own = self.vectors[chosen], self._ids[chosen]
        found, _ = self._nearest(Q, k, exclude=own, strict=False)
        approximate, self._approximate = self._approximate, None
        try:
            exact, _ = self._nearest(Q, k, exclude=own, strict=False)
        finally:
            self._approximate = approximate
        return float((found <= exact[:, -1:]).mean())

    def __getstate__(self) -> dict[str, Any]:
        center = None if self._center is None else self._center.cpu().numpy()
        state = {"metric": self.metric, "backend": self.backend, "center": center}
        if self._approximate is not None:
            built = self._approximate.to_arrays()
            state |= {"method": self.method, "params": self.params, "built": built}
        return state | {"vectors": self.vectors, "ids": self._ids, "next_id": self._next_id}

    def __setstate__(self, state: dict[str, Any]) -> None:
        settings = {name: state[name] for name in ("backend", "method", "params") if name in state}
        self.__init__(state["metric"], **settings)
        self._ids, self._next_id = state["ids"], state["next_id"]
        if state["center"] is not None:
            self._center = as_tensor(state["center"])
        if len(state["ids"]):
            rows = as_tensor(state["vectors"])
            self._stored, self._prepared = [rows], [self._prepare(rows, self._center)]
            self._norms = self._new_norms(rows)
        if self._approximate is not None:
            self._approximate.restore(state["built"], self._ids)


def tune_ef_search(
    index: NeighborIndex, Q: ArrayLike | None = None, target_recall: float = 0.95, *, k: int = 10
) -> float:
    """Raise `ef_search` of a graph index until its recall reaches a target.

    Parameters
    ----------
    index : NeighborIndex
        With ``method="hnsw"``; its `ef_search` is doubled as often as needed.
    Q : array-like or tensor of shape (n_queries, n_features), default=None
        Queries like those to come. None takes up to 256 of the rows held, without themselves.
    target_recall : float, default=0.95
        Share of the exact neighbours to find, above 0 and at most 1.
    k : int, default=10
        Neighbours of each query.

    Returns
    -------
    recall : float
        The recall reached; below the target only if the graph does not connect the rows.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.neighbors import NeighborIndex, tune_ef_search
    >>> index = NeighborIndex(method="hnsw", params={"ef_search": 1})
    >>> _ = index.add(np.random.default_rng(0).standard_normal((500, 8)))
    >>> tune_ef_search(index, target_recall=0.9) >= 0.9
    True
    """
    if index.method != "hnsw":
        raise ValueError(f"method={index.method!r} has no ef_search; give an index by 'hnsw'.")
    if not 0 < target_recall <= 1:
        raise ValueError(f"target_recall={target_recall!r} is not valid; give a share up to 1.")
    recall = index.recall(Q, k)
    while recall < target_recall and index.params["ef_search"] < len(index):
        index.params["ef_search"] *= 2
        recall = index.recall(Q, k)
    return recall
