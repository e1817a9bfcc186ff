# SPDX-License-Identifier: BSD-3-Clause
"""EpisodeBatch: the features of many episodes as one tensor, and what all methods ask of them.

Made from an `EpisodeIndex` and a matrix of features; methods that take many episodes at once
(`predict_episodes`) read it and never see rows or labels of the data set.
"""

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
import torch
from sklearn.utils import gen_batches

from skpool.model_selection._episodes import EpisodeIndex
from skpool.utils import ArrayLike, as_tensor, full_float32, unit_rows, widened

__all__ = ["EpisodeBatch"]

# Bytes of features that stay in a cache while several steps read them, or one product does.
_CACHED, _CACHED_ONCE = 4 << 20, 3 << 18
# A squared mean above this share of the mean square costs inner products digits.
_OFFSET = 0.5


class EpisodeBatch:
    """Features and labels of many episodes, with the first axis for the episodes.

    Parameters
    ----------
    Xs : tensor of shape (n_episodes, n_support, n_features)
        Support rows, float32 or float64.
    ys : tensor of shape (n_episodes, n_support)
        Local numbers of their classes, from 0 to n_way - 1; -1 for padding, which nothing reads.
    Xq : tensor of shape (n_episodes, n_query, n_features)
        Queries.
    yq : tensor of shape (n_episodes, n_query), default=None
        Local numbers of the queries, where they are known; -1 for padding.
    query_mask : tensor of shape (n_episodes, n_query), default=None
        False for padding; None if all queries are real.
    n_way : int, default=None
        Number of classes; None for the largest number in `ys` and one more.

    See Also
    --------
    EpisodeIndex : The rows that a batch is gathered from.

    Notes
    -----
    1000 episodes of 80 rows and 640 features take 205 MB in float32, and 26 MB after `reduce`.

    Examples
    --------
    >>> import torch
    >>> from skpool.model_selection import EpisodeBatch
    >>> Xs = torch.tensor([[[0.0, 0.0], [0.0, 2.0], [4.0, 0.0]]])
    >>> batch = EpisodeBatch(Xs, torch.tensor([[0, 0, 1]]), torch.tensor([[[3.0, 0.0]]]))
    >>> batch.prototypes()
    tensor([[[0., 1.],
             [4., 0.]]])
    >>> batch.distances()
    tensor([[[10.,  1.]]])
    """

    def __init__(
        self,
        Xs: torch.Tensor,
        ys: torch.Tensor,
        Xq: torch.Tensor,
        yq: torch.Tensor | None = None,
        *,
        query_mask: torch.Tensor | None = None,
        n_way: int | None = None,
    ):
        self.Xs = Xs
        self.ys = ys
        self.Xq = Xq
        self.yq = yq
        self.query_mask = query_mask
        self.n_way = int(ys.max()) + 1 if n_way is None else n_way
        self._check_shapes()

    def _check_shapes(self) -> None:
        for name, labels, rows in (
            ("ys", self.ys, self.Xs),
            ("yq", self.yq, self.Xq),
            ("query_mask", self.query_mask, self.Xq),
        ):
            if rows.ndim != 3 or (labels is not None and labels.shape != rows.shape[:2]):
                shape = None if labels is None else tuple(labels.shape)
                raise ValueError(
                    f"{name} has shape {shape} beside rows of shape {tuple(rows.shape)}; give "
                    "(n_episodes, n_rows) and (n_episodes, n_rows, n_features)."
                )
        if self.Xs.shape[::2] != self.Xq.shape[::2]:
            raise ValueError(
                f"Xs has shape {tuple(self.Xs.shape)} and Xq {tuple(self.Xq.shape)}; supports and "
                "queries need the same episodes and features."
            )

    def __len__(self) -> int:
        return len(self.Xs)

    @property
    def n_query(self) -> int:
        """Queries of an episode, padding included."""
        return self.Xq.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows."""
        return self.Xs.dtype

    @classmethod
    def from_index(
        cls, X: ArrayLike, index: EpisodeIndex, batch_size: int | None = None
    ) -> Iterator["EpisodeBatch"]:
        """Gather the rows of episodes, batch by batch.

        Parameters
        ----------
        X : ndarray, memory map or tensor of shape (n_samples, n_features)
            Features; half precision is widened to float32. Rows are read when they are asked for.
        index : EpisodeIndex
            The episodes.
        batch_size : int, default=None
            Episodes of a batch; None for as many as stay in the cache of a processor, or 512 on
            other devices.

        Yields
        ------
        batch : EpisodeBatch
            On the device of X.
        """
        pool = _Pool(as_tensor(X), index.query.size)
        X = pool.X
        width = index.support.shape[1] + index.query.shape[1]
        if batch_size is None:
            fitting = _CACHED // (width * X.shape[1] * max(4, X.element_size()))
            batch_size = max(1, fitting) if X.device.type == "cpu" else 512
        for episodes in gen_batches(len(index), batch_size):
            yield _IndexedBatch(pool, index[episodes])

    def __getitem__(self, episodes: slice) -> "EpisodeBatch":
        """Return some of the episodes; behind `from_index` their rows are not gathered yet."""
        parts = (self.ys, self.yq, self.query_mask)
        ys, yq, mask = (None if part is None else part[episodes] for part in parts)
        Xs, Xq = self.Xs[episodes], self.Xq[episodes]
        return EpisodeBatch(Xs, ys, Xq, yq, query_mask=mask, n_way=self.n_way)

    def parts(self, n_bytes: int = _CACHED) -> Iterator[tuple[slice, "EpisodeBatch"]]:
        """Yield a few episodes at a time, whose rows stay in the cache of a processor.

        Parameters
        ----------
        n_bytes : int, default=4194304
            Of their rows.

        Yields
        ------
        episodes : slice
        part : EpisodeBatch
        """
        first = self[:1]
        row_bytes = first.Xq.shape[2] * first.Xq.element_size()
        at_once = n_bytes // max(1, row_bytes * (self.ys.shape[1] + first.Xq.shape[1]))
        for episodes in gen_batches(len(self), max(1, at_once)):
            yield episodes, self[episodes]

    def with_rows(self, Xs: torch.Tensor, Xq: torch.Tensor) -> "EpisodeBatch":
        """Return the same labels over changed rows.

        Parameters
        ----------
        Xs : tensor of shape (n_episodes, n_support, n_features_out)
            Support rows, such as normalised ones.
        Xq : tensor of shape (n_episodes, n_query, n_features_out)
            Queries.

        Returns
        -------
        batch : EpisodeBatch
        """
        return EpisodeBatch(Xs, self.ys, Xq, self.yq, query_mask=self.query_mask, n_way=self.n_way)

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> "EpisodeBatch":
        """Return the batch on another device, or with rows of another type.

        Parameters
        ----------
        device : str or torch.device, default=None
            None leaves all where it is.
        dtype : torch.dtype, default=None
            Of the rows; None leaves it.

        Returns
        -------
        batch : EpisodeBatch
        """
        labels = (self.ys, self.yq, self.query_mask)
        ys, yq, mask = (None if part is None else part.to(device=device) for part in labels)
        Xs, Xq = (rows.to(device=device, dtype=dtype) for rows in (self.Xs, self.Xq))
        return EpisodeBatch(Xs, ys, Xq, yq, query_mask=mask, n_way=self.n_way)

    def onehot(self) -> torch.Tensor:
        """Return the classes of the supports as indicators.

        Returns
        -------
        onehot : tensor of shape (n_episodes, n_support, n_way)
            In the type of `Xs`; zero rows for padding.
        """
        numbers = torch.arange(self.n_way, device=self.ys.device)
        return (self.ys[..., None] == numbers).to(self.Xs.dtype)

    def counts(self) -> torch.Tensor:
        """Return the number of supports of every class.

        Returns
        -------
        counts : tensor of shape (n_episodes, n_way)
            In the type of `Xs`.
        """
        return self.onehot().sum(dim=1)

    def prototypes(self) -> torch.Tensor:
        """Return the mean of the supports of every class.

        Returns
        -------
        prototypes : tensor of shape (n_episodes, n_way, n_features)

        Raises
        ------
        ValueError
            A class of an episode has no support.
        """
        numbers = torch.arange(self.n_way, device=self.ys.device)
        if self.ys.shape[1] == self.n_way and bool((self.ys == numbers).all()):
            # One shot of every class, in their order.
            return self.Xs
        onehot = self.onehot()
        counts = onehot.sum(dim=1)
        if (counts == 0).any():
            episode, number = (int(i) for i in (counts == 0).nonzero()[0])
            raise ValueError(
                f"Class {number} of episode {episode} has no support; give at least one row of "
                "every class."
            )
        with full_float32():
            return (onehot / counts[:, None]).mT @ self.Xs

    def query_blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield the queries of a few episodes at a time.

        Yields
        ------
        episodes : slice
        queries : tensor of shape (n, n_query, n_features)
            Behind `from_index` on a CPU they are gathered into memory that the next ones take, so
            that they never leave the cache, however many steps read them here; do not keep them.
        """
        for block in gen_batches(len(self), self._at_once(self.n_query)):
            yield block, self.Xq[block]

    def _at_once(self, width: int) -> int:
        """Return how many episodes of so many rows several steps are best made with."""
        if self.ys.device.type != "cpu":
            return max(1, len(self))
        # Each thread of torch reads the rows that it then multiplies.
        fitting = torch.get_num_threads() * _CACHED_ONCE
        row_bytes = self._n_features() * self.dtype.itemsize
        return max(1, fitting // max(1, width * row_bytes))

    def _n_features(self) -> int:
        return self.Xs.shape[2]

    def query_norms(self) -> torch.Tensor:
        """Return the Euclidean norms of the queries.

        Returns
        -------
        norms : tensor of shape (n_episodes, n_query)
        """
        norms = self.Xs.new_empty(len(self), self.n_query)
        for block, rows in self.query_blocks():
            norms[block] = torch.linalg.vector_norm(rows, dim=2)
        return norms

    def query_products(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the inner products of the queries with vectors of their episode.

        Parameters
        ----------
        vectors : tensor of shape (n_episodes, n_vectors, n_features)
            In the type of the rows, such as prototypes.

        Returns
        -------
        products : tensor of shape (n_episodes, n_query, n_vectors)

        Notes
        -----
        Behind `from_index` on a CPU the queries are gathered a few episodes at a time, and never
        leave the cache.
        """
        with full_float32():
            # Few rows by many is the faster order.
            return (vectors @ self.Xq.mT).mT

    def centered_products(self) -> torch.Tensor:
        """Return the inner products of all rows, seen from a point where distances lose no digits.

        The distances of two rows follow from them. Where rows lie far from 0, the point is amid
        those of their episode.

        Returns
        -------
        products : tensor of shape (n_episodes, n_support + n_query, n_support + n_query)
            Supports come first. What stands at padding is of no interest.

        Notes
        -----
        Behind `from_index` on a CPU the rows are gathered a few episodes at a time, and never
        leave the cache.
        """
        rows = torch.cat([self.Xs, self.Xq], dim=1)
        rows -= self._middle()
        with full_float32():
            return rows @ rows.mT

    def _middle(self) -> torch.Tensor:
        """Return a point amid the rows of each episode, of shape (n_episodes, 1, n_features)."""
        if self.query_mask is not None or self.Xq.shape[1] == 0:
            # Padding may lie anywhere.
            return self.prototypes().mean(dim=1, keepdim=True)
        return self.Xq.mean(dim=1, keepdim=True)

    def distances(self, metric: str = "sqeuclidean") -> torch.Tensor:
        """Return how far the queries are from the prototypes.

        Parameters
        ----------
        metric : {"sqeuclidean", "euclidean", "cosine"}, default="sqeuclidean"
            "cosine" is 1 minus the cosine, which is 0 where either vector is zero.

        Returns
        -------
        distances : tensor of shape (n_episodes, n_query, n_way)
        """
        if metric not in _DISTANCES:
            raise ValueError(f"metric={metric!r} is not valid; give one of {sorted(_DISTANCES)}.")
        with full_float32():
            return _DISTANCES[metric](self.Xq, self.prototypes())

    def reduce(self) -> "EpisodeBatch":
        """Return rows of as many features as an episode has rows, with the same inner products.

        Whatever depends on inner products alone (distances, ridge and logistic regression with an
        L2 penalty, graphs, optimal transport) stays as it is, to rounding; what acts on single
        features (powers, scales) does not, and comes before.

        Returns
        -------
        batch : EpisodeBatch
            Of width n_support + n_query; the same batch where that is no less than the features.

        Notes
        -----
        A Cholesky factor of the inner products of each episode, or a QR decomposition where rows
        depend on one another.
        """
        n_support = self.Xs.shape[1]
        rows = torch.cat([self.Xs, self.Xq], dim=1)
        if rows.shape[1] >= rows.shape[2]:
            return self
        reduced = _with_the_same_products(rows)
        return self.with_rows(reduced[:, :n_support], reduced[:, n_support:])


class _Pool:
    """Rows that episodes are gathered from, and what all batches want to know of them."""

    def __init__(self, X: torch.Tensor, n_queries: int):
        self.X = X
        # More rows than are ever asked for are better asked one by one.
        self.knows_norms = len(X) <= n_queries

    @cached_property
    def norms(self) -> torch.Tensor:
        return torch.linalg.vector_norm(widened(self.X), dim=1)


class _IndexedBatch(EpisodeBatch):
    """Batch that gathers rows of X when they are asked for."""

    def __init__(self, pool: _Pool, index: EpisodeIndex):
        self._pool, self._index, X = pool, index, pool.X
        self._X = X
        self._support, self.ys, self._query, self.yq = (
            torch.from_numpy(part).to(X.device)
            for part in (index.support, index.support_labels, index.query, index.query_labels)
        )
        self.query_mask = None if np.min(index.query, initial=0) >= 0 else self._query >= 0
        self.n_way = index.classes.shape[1]

    def __len__(self) -> int:
        return len(self.ys)

    @property
    def n_query(self) -> int:
        return self._query.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return widened(self._X[:0]).dtype

    def _n_features(self) -> int:
        return self._X.shape[1]

    def __getitem__(self, episodes: slice) -> EpisodeBatch:
        gathered = "Xs" in vars(self) or "Xq" in vars(self)
        if gathered:
            return super().__getitem__(episodes)
        return _IndexedBatch(self._pool, self._index[episodes])

    @cached_property
    def Xs(self) -> torch.Tensor:
        """Support rows; zero for padding."""
        return _gathered(self._X, self._support)

    @cached_property
    def Xq(self) -> torch.Tensor:
        """Queries; zero for padding."""
        return _gathered(self._X, self._query)

    def query_blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        if not self._can_be_read_in_place("Xq"):
            yield from super().query_blocks()
            return
        for block, queries in self._held(self._query):
            if self.query_mask is not None:
                queries[~self.query_mask[block]] = 0.0
            yield block, queries

    def query_norms(self) -> torch.Tensor:
        if self._pool.knows_norms and self.query_mask is None:
            return self._pool.norms[self._query]
        return super().query_norms()

    def query_products(self, vectors: torch.Tensor) -> torch.Tensor:
        if self._X.dtype != vectors.dtype or not self._can_be_read_in_place("Xq"):
            return super().query_products(vectors)
        products = vectors.new_empty(*vectors.shape[:2], self.n_query)
        with full_float32():
            for block, queries in self.query_blocks():
                torch.bmm(vectors[block], queries.mT, out=products[block])
        return products.mT

    def centered_products(self) -> torch.Tensor:
        n_queries = self._query.shape[1]
        if self.query_mask is not None or not n_queries or not self._can_be_read_in_place():
            return super().centered_products()
        at = torch.cat([self._support, self._query], dim=1)
        products = torch.empty(*at.shape, at.shape[1], dtype=self._X.dtype)
        with full_float32():
            for block, rows in self._held(at):
                torch.bmm(rows, rows.mT, out=products[block])
            if not _near_zero(products):
                for block, rows in self._held(at):
                    rows -= rows[:, -n_queries:].mean(dim=1, keepdim=True)
                    torch.bmm(rows, rows.mT, out=products[block])
        return products

    def _can_be_read_in_place(self, *gathered: str) -> bool:
        """Whether rows can be gathered a few at a time, and none are there yet."""
        plain = self._X.device.type == "cpu" and self._X.element_size() >= 4
        return plain and not any(name in vars(self) for name in gathered or ("Xs", "Xq"))

    def _held(self, at: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield a few episodes at a time, and their rows, in memory that the next ones take."""
        X, (n, width) = self._X, at.shape
        step = self._at_once(width)
        rows = X.new_empty(min(step, n) * width, X.shape[1])
        # Padding reads row 0.
        at = at.clamp(min=0)
        for block in gen_batches(n, step):
            held = rows[: (block.stop - block.start) * width]
            torch.index_select(X, 0, at[block].reshape(-1), out=held)
            yield block, held.view(-1, width, X.shape[1])


def _near_zero(products: torch.Tensor) -> bool:
    """Whether rows lie about as near to 0 as to one another, so that they need not be moved."""
    n = products.shape[1]
    sizes = products.diagonal(dim1=1, dim2=2).sum(dim=1) / n
    return bool((products.sum(dim=(1, 2)) <= _OFFSET * n**2 * sizes).all())


def _gathered(X: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    absent = at < 0
    if not absent.any():
        return widened(X.index_select(0, at.reshape(-1))).view(*at.shape, -1)
    rows = widened(X.index_select(0, at.clamp(min=0).reshape(-1))).view(*at.shape, -1)
    return rows.masked_fill_(absent[..., None], 0.0)


def _with_the_same_products(rows: torch.Tensor) -> torch.Tensor:
    """Rows (E, n, n) with the inner products of rows (E, n, d)."""
    wide = torch.float32 if rows.device.type == "mps" else torch.float64
    with full_float32():
        products = (rows @ rows.mT).to(wide)
    zero = products.diagonal(dim1=-2, dim2=-1) == 0
    if zero.any():
        products = products + torch.diag_embed(zero.to(wide))
    factor, failed = torch.linalg.cholesky_ex(products)
    factor = factor.masked_fill(zero[..., None], 0.0)
    bad = failed > 0
    if bad.any():
        factor[bad] = torch.linalg.qr(rows[bad].to(wide).mT, mode="r")[1].mT
    return factor.to(rows.dtype)


def _sqeuclidean(Xq: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    # Far from zero, products would lose all digits.
    center = prototypes.mean(dim=1, keepdim=True)
    Xq, prototypes = Xq - center, prototypes - center
    lengths = torch.linalg.vector_norm(Xq, dim=-1).square()[..., None]
    lengths = lengths + torch.linalg.vector_norm(prototypes, dim=-1).square()[:, None]
    return torch.baddbmm(lengths, Xq, prototypes.mT, alpha=-2).clamp_(min=0)


def _cosine(Xq: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    return 1 - unit_rows(Xq) @ unit_rows(prototypes).mT


_DISTANCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cosine": _cosine,
    "euclidean": lambda Xq, prototypes: _sqeuclidean(Xq, prototypes).sqrt(),
    "sqeuclidean": _sqeuclidean,
}
