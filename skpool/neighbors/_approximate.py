# SPDX-License-Identifier: BSD-3-Clause
"""Approximate candidates from faiss: graphs (HNSW), inverted lists (IVF), product codes (IVF-PQ).

`NeighborIndex` owns the rows. What is kept here is a structure that follows from them: it is built
at the first search, rows that came since are added to it, rows that went are passed over, and it
is built anew when too many have gone. So nothing here needs to succeed for a row to be stored.
"""

import hashlib
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from skpool.neighbors._flat_search import faiss_library

__all__ = ["METHODS", "ApproximateSearch", "intrinsic_dimension"]

# The settings of every method and their defaults; "auto" follows from the number of rows.
METHODS: dict[str, dict[str, object]] = {
    "hnsw": {
        "M": 16,
        "ef_construction": 200,
        "ef_search": 64,
        "insertion_order": "as_given",
        "block_size": None,
        "random_state": 0,
    },
    "ivf": {"n_lists": "auto", "n_probes": "auto"},
    "ivfpq": {
        "n_lists": "auto",
        "n_probes": "auto",
        "n_subvectors": "auto",
        "n_bits": 8,
        "refine": 4,
    },
}
_ORDERS = ("as_given", "random", "lid_descending")
# Share of rows gone at which a structure is built anew.
_DEAD_SHARE = 0.2
# faiss advises this many rows per list for k-means.
_ROWS_PER_LIST = 39
_LID_NEIGHBORS = 100
# Iterations of k-means for product codes, whose candidates are compared exactly afterwards.
_PRODUCT_ITERATIONS = 10


def checked_params(method: str, params: dict | None) -> dict[str, Any]:
    """Return all settings of a method, or say which one is not valid."""
    known = METHODS.get(method, {})
    given = params or {}
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(
            f"params holds {unknown[0]!r}, which method={method!r} does not have; choose from "
            f"{sorted(known)}."
        )
    merged = known | given
    for name, value in merged.items():
        if name not in ("insertion_order", "random_state"):
            _check_count(name, value, optional=known[name] in ("auto", None))
    order = merged.get("insertion_order", "random")
    if isinstance(order, str) and order not in _ORDERS:
        raise ValueError(
            f"insertion_order={order!r} is not valid; choose from {list(_ORDERS)} or give a "
            "permutation of the rows."
        )
    return merged


def _check_count(name: str, value: object, *, optional: bool) -> None:
    if optional and (value is None or (isinstance(value, str) and value == "auto")):
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}={value!r} is not valid; give a whole number of at least 1.")


def intrinsic_dimension(distances: np.ndarray) -> np.ndarray:
    """Return the maximum-likelihood local intrinsic dimension around each row.

    Parameters
    ----------
    distances : ndarray of shape (n, k)
        To the k nearest other rows, ascending.

    Returns
    -------
    dimension : ndarray of shape (n,)
        Zero distances count as absent; infinite where all others are equal.
    """
    farthest = distances[:, -1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(distances / farthest)
        logs[distances == 0] = np.nan
        used = np.isfinite(logs)
        return -used.sum(axis=1) / np.where(used, logs, 0).sum(axis=1)


def _order_of_rows(rows: np.ndarray, params: dict[str, Any]) -> np.ndarray:
    """Return the positions of the rows in the order in which they are inserted."""
    order, n = params["insertion_order"], len(rows)
    if not isinstance(order, str):
        order = np.asarray(order)
        if order.shape != (n,) or not np.array_equal(np.sort(order), np.arange(n)):
            raise ValueError(
                f"insertion_order has shape {order.shape} or repeats a row; give a permutation of "
                f"0 to {n - 1}."
            )
        return order
    if order == "random":
        return check_random_state(params["random_state"]).permutation(n)
    if order == "lid_descending" and n > 2:
        faiss = faiss_library()
        squares, _ = faiss.knn(rows, rows, min(n, _LID_NEIGHBORS + 1))
        distances = np.sqrt(np.maximum(squares[:, 1:], 0))
        return np.argsort(-intrinsic_dimension(distances), kind="stable")
    return np.arange(n)


class ApproximateSearch:
    """A faiss structure that follows the rows of a `NeighborIndex`.

    Parameters
    ----------
    method : {"hnsw", "ivf", "ivfpq"}
        Kind of the structure.
    params : dict
        As `checked_params` returned them.
    metric : {"cosine", "euclidean", "dot"}
        What the rows were prepared for: unit rows are searched by Euclidean distance, in the
        order of their cosines.
    """

    def __init__(self, method: str, params: dict[str, Any], metric: str):
        self.method, self.params, self.metric = method, params, metric
        self._index: Any = None
        # Ids of all rows ever inserted, in the order of insertion, and which are held.
        self._owners = np.empty(0, dtype=np.int64)
        self._alive = np.empty(0, dtype=bool)
        self._ids: np.ndarray | None = None

    def sync(self, rows: np.ndarray, ids: np.ndarray) -> None:
        """Follow the rows: insert what came, mark what went, rebuild if much went.

        Parameters
        ----------
        rows : ndarray of shape (n, d)
            Prepared rows, float32.
        ids : ndarray of shape (n,)
            Their ids, ascending; ids of new rows are above all earlier ones.
        """
        if ids is self._ids:
            return
        alive = np.isin(self._owners, ids)
        if self._index is None or alive.mean() < 1 - _DEAD_SHARE:
            order = np.arange(len(rows))
            if self.method == "hnsw":
                order = _order_of_rows(rows, self.params)
            self._index = self._build(rows[order])
            self._owners, alive = ids[order], np.ones(len(ids), dtype=bool)
        else:
            new = ids > self._owners.max()
            if new.any():
                self._insert(self._index, rows[new])
                self._owners = np.concatenate([self._owners, ids[new]])
                alive = np.concatenate([alive, np.ones(new.sum(), dtype=bool)])
        self._alive, self._ids = alive, ids

    def _build(self, rows: np.ndarray) -> Any:
        faiss = faiss_library()
        n, d = rows.shape
        kind = faiss.METRIC_INNER_PRODUCT if self.metric == "dot" else faiss.METRIC_L2
        if self.method == "hnsw":
            index = faiss.IndexHNSWFlat(d, self.params["M"], kind)
            index.hnsw.efConstruction = self.params["ef_construction"]
        else:
            index = faiss.index_factory(d, self._recipe(n, d), kind)
            # faiss would print its advice.
            index.cp.min_points_per_centroid = 1
            if self.method == "ivfpq":
                index.pq.cp.min_points_per_centroid = 1
                index.pq.cp.niter = _PRODUCT_ITERATIONS
            index.train(rows)
        self._insert(index, rows)
        return index

    def _recipe(self, n: int, d: int) -> str:
        lists = self.params["n_lists"]
        if lists == "auto":
            lists = max(1, min(int(4 * n**0.5), n // _ROWS_PER_LIST))
        lists = min(lists, n)
        if self.method == "ivf":
            return f"IVF{lists},Flat"
        parts = self.params["n_subvectors"]
        if parts == "auto":
            parts = max(p for p in range(1, max(1, d // 8) + 1) if d % p == 0)
        if d % parts:
            raise ValueError(
                f"n_subvectors={parts} does not divide the {d} features; give a divisor."
            )
        # A codebook cannot have more words than there are rows.
        bits = min(self.params["n_bits"], max(1, n.bit_length() - 1))
        return f"IVF{lists},PQ{parts}x{bits}"

    def _insert(self, index: Any, rows: np.ndarray) -> None:
        size = self.params.get("block_size") or len(rows)
        for start in range(0, len(rows), size):
            index.add(np.ascontiguousarray(rows[start : start + size]))

    def propose(self, q: np.ndarray, k: int) -> np.ndarray:
        """Propose ids of near rows.

        Parameters
        ----------
        q : ndarray of shape (m, d)
            Prepared queries, float32.
        k : int
            Candidates wanted; product codes propose `refine` times as many.

        Returns
        -------
        ids : ndarray of shape (m, n_candidates)
            -1 where none was found.
        """
        faiss = faiss_library()
        k = min(len(self._owners), k * self.params.get("refine", 1))
        options: dict[str, Any] = {}
        if not self._alive.all():
            # Kept in a variable: faiss holds no reference of its own.
            held = np.packbits(self._alive, bitorder="little")
            options["sel"] = faiss.IDSelectorBitmap(held)
        if self.method == "hnsw":
            ef = max(self.params["ef_search"], k)
            settings = faiss.SearchParametersHNSW(efSearch=ef, **options)
        else:
            settings = faiss.SearchParametersIVF(nprobe=self._n_probes(), **options)
        _, found = self._index.search(q, k, params=settings)
        return np.where(found >= 0, self._owners[found], -1)

    def _n_probes(self) -> int:
        lists, probes = self._index.nlist, self.params["n_probes"]
        if probes == "auto":
            probes = max(8, lists // 64)
        return min(lists, probes)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the structure as plain arrays with a checksum; empty before the first search."""
        if self._index is None:
            return {}
        faiss = faiss_library()
        content = faiss.serialize_index(self._index)
        arrays = {"content": content, "owners": self._owners, "alive": self._alive}
        return arrays | {"checksum": np.array(_checksum(content))}

    def restore(self, arrays: dict[str, np.ndarray], ids: np.ndarray) -> None:
        """Take back what `to_arrays` gave; damaged content is left, and built anew.

        Parameters
        ----------
        arrays : dict of str to ndarray
            What `to_arrays` returned.
        ids : ndarray of shape (n,)
            Ids of the rows held.
        """
        if not arrays or str(arrays["checksum"]) != _checksum(arrays["content"]):
            return
        faiss = faiss_library()
        self._index = faiss.deserialize_index(arrays["content"])
        self._owners, self._alive = arrays["owners"], arrays["alive"]
        if np.array_equal(np.sort(self._owners[self._alive]), ids):
            self._ids = ids


def _checksum(content: np.ndarray) -> str:
    return hashlib.sha256(content.tobytes()).hexdigest()
