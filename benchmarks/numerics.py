# SPDX-License-Identifier: BSD-3-Clause
"""How many digits are right where numbers get hard, beside the plain formula and scikit-learn?

Every row of the tables is a hard case: rows far from the origin, directions of little variance,
constant features, fewer rows than features, one sample per class, one class, very many classes,
floats near their limits. The truth is computed from the same rows by another road: they are centred
in extended precision, and a QR decomposition in float64 stands in for the covariance, which is
never formed, so that its errors grow with the root of the condition number only.

Errors of scores are those of the differences between classes, relative to the largest difference;
errors of a scatter are in the Frobenius norm; those of a whitening are the largest deviation from
the identity of the covariance of what it gives.

    python benchmarks/numerics.py [--rows 3000] [--features 320] [--page docs/numerics.md]
"""

import argparse
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch
from _measure import header
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import (
    LinearDiscriminantAnalysis,
    QuadraticDiscriminantAnalysis,
)
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import pairwise_distances
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestCentroid

from skpool.discriminant import GaussianClassifier, LinearDiscriminantClassifier
from skpool.linear_model import RandomFeatureRidgeClassifier, RidgeHeadClassifier
from skpool.preprocessing import Whitening
from skpool.prototypes import NearestClassMeanClassifier
from skpool.statistics import ClassMoments

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--rows", type=int, default=3000)
parser.add_argument("--features", type=int, default=320, help="above 256: products in float32")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--only", default="", help="cases whose name holds this text")
parser.add_argument("--page", type=Path, help="page whose tables are written anew")

# An answer that is further off than this is wrong.
WRONG = 1e-2
# One matrix per class, or a dense table of targets, is not for more classes than these.
MANY_CLASSES = 1000
BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"


class UndefinedError(Exception):
    """The case has no answer, so that the right thing to do was to refuse it."""


class Case(NamedTuple):
    """Rows to learn from, their labels, and rows to score."""

    X: np.ndarray
    y: np.ndarray
    unseen: np.ndarray


# The cases.


def gaussian(
    n: int, d: int, *, classes: int = 10, condition: float = 1e2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows around class means with variances from 1 down to 1 / condition, in turned axes."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(d, d)))
    spread = np.geomspace(1.0, condition**-0.5, d)
    y = np.append(np.arange(n) % classes, rng.integers(0, classes, size=50))
    means = rng.normal(size=(classes, d)) * spread
    rows = (means[y] + rng.normal(size=(n + 50, d)) * spread) @ turn
    return rows[:n], y[:n], rows[n:]


def case(dtype: str, n: int, d: int, *, change: Callable = lambda X: X, **options: object) -> Case:
    """Such rows after a change, rounded to a type."""
    X, y, unseen = gaussian(n, d, **options)
    return Case(change(X).astype(dtype), y, change(unseen).astype(dtype))


def some_constant(X: np.ndarray) -> np.ndarray:
    """The first features constant, one of them large."""
    X = X.copy()
    X[:, :5], X[:, 5] = 3.7, 1e4
    return X


def cases(n: int, d: int) -> Iterator[tuple[str, Case]]:
    """All cases by name."""
    for dtype in ("float32", "float64"):
        for offset in (0, 10**3, 10**4, 10**5, 10**6):
            shift = offset * np.ones(d)
            yield (
                f"{dtype}, offset of {offset:,} standard deviations",
                case(dtype, n, d, change=lambda X, s=shift: X + s, condition=10),
            )
        for condition in (1e4, 1e6, 1e8, 1e10):
            name = f"{dtype}, condition number {condition:.0e}"
            yield name, case(dtype, n, d, condition=condition)
        yield f"{dtype}, six constant features", case(dtype, n, d, change=some_constant)
        yield f"{dtype}, n = {d // 3} < d = {d}", case(dtype, d // 3, d)
        yield f"{dtype}, one sample per class", case(dtype, 40, d, classes=40)
        yield f"{dtype}, one class", case(dtype, n, d, classes=1)
        yield f"{dtype}, 10,000 classes", case(dtype, 20_000, 64, classes=10_000)
        low, high = {"float32": (1e-25, 1e25), "float64": (1e-170, 1e170)}[dtype]
        for scale in (low, high):
            name = f"{dtype}, values around {scale:.0e}"
            yield name, case(dtype, n, d, change=lambda X, s=scale: X * s)
    # The largest number of the type is 65,504, the smallest normal one 6e-5.
    yield "float16, values up to 60,000", case("float16", n, d, change=lambda X: X * 6e4 / 8)
    yield "float16, values below 6e-5", case("float16", n, d, change=lambda X: X * 1e-5)
    yield (
        "float16, offset of 100 standard deviations",
        case("float16", n, d, change=lambda X: X + 100),
    )


# The truth.


class Truth:
    """Exact answers for a case, up to the roundings of one decomposition; any unit of length."""

    def __init__(self, given: Case):
        wide, unseen = given.X.astype(np.longdouble), given.unseen.astype(np.longdouble)
        self.classes, self.codes = np.unique(given.y, return_inverse=True)
        self.counts = np.bincount(self.codes)
        sums = np.zeros((len(self.classes), wide.shape[1]), dtype=np.longdouble)
        np.add.at(sums, self.codes, wide)
        means, center = sums / self.counts[:, None], wide.mean(axis=0)
        # In units of the largest deviation nothing over- or underflows from here on.
        self.unit = np.abs(wide - center).max()
        self.within, self.around, self.means, self.unseen = (
            (rows / self.unit).astype(np.float64)
            for rows in (wide - means[self.codes], wide - center, means - center, unseen - center)
        )
        self.cosines = _unit_rows(unseen) @ _unit_rows(means).T

    def scatter(self) -> np.ndarray:
        """Within classes."""
        return self.within.T @ self.within

    def nearest_mean(self) -> np.ndarray:
        """Scores by Euclidean distance, up to a constant of the row."""
        return self.unseen @ self.means.T - 0.5 * (self.means**2).sum(axis=1)

    def discriminant(self, shrinkage: float) -> np.ndarray:
        """Scores of LDA, up to a constant of the row."""
        n = len(self.within)
        half, _ = _shrunk(self.within / np.sqrt(n), shrinkage, self.means)
        means = half(self.means)
        log_priors = np.log(self.counts / n)
        return half(self.unseen) @ means.T - 0.5 * (means**2).sum(axis=1) + log_priors

    def gaussian(self, shrinkage: float) -> np.ndarray:
        """Scores of QDA, up to a constant of the row."""
        scores = []
        for label, (count, mean) in enumerate(zip(self.counts, self.means, strict=True)):
            rows = self.within[self.codes == label] / np.sqrt(count)
            half, log_det = _shrunk(rows, shrinkage, self.unseen - mean)
            distances = (half(self.unseen - mean) ** 2).sum(axis=1)
            scores.append(np.log(count) - 0.5 * (distances + log_det))
        return np.stack(scores, axis=1)

    def ridge(self, share: float) -> np.ndarray:
        """Scores of ridge regression with a penalty of this share of the mean eigenvalue."""
        n, d = self.around.shape
        half, _ = _half(self.around, share * (self.around**2).sum() / d, self.unseen)
        return half(self.unseen) @ half(self.counts[:, None] * self.means).T + self.counts / n


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    rows = rows / np.abs(rows).max(axis=1, keepdims=True)
    return rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))


Map = Callable[[np.ndarray], np.ndarray]


def _shrunk(rows: np.ndarray, shrinkage: float, points: np.ndarray) -> tuple[Map, float]:
    """`_half` of the covariance ``rows.T @ rows``, shrunk towards a multiple of the identity."""
    ridge = shrinkage * (rows**2).sum() / rows.shape[1]
    return _half(np.sqrt(1 - shrinkage) * rows, ridge, points)


def _half(rows: np.ndarray, ridge: float, points: np.ndarray) -> tuple[Map, float]:
    """Map to coordinates in which ``rows.T @ rows + ridge * I`` is I; its log-determinant.

    Directions without rows and without ridge are left out if the points do not need them.
    """
    d = rows.shape[1]
    if ridge:
        stacked = np.vstack([rows, np.sqrt(ridge) * np.eye(d)])
        upper = scipy.linalg.qr(stacked, mode="r", overwrite_a=True, check_finite=False)[0][:d]
        log_det = 2 * np.log(np.abs(np.diagonal(upper))).sum()
        return lambda V: scipy.linalg.solve_triangular(upper, V.T, trans="T").T, float(log_det)
    _, values, axes = scipy.linalg.svd(rows, full_matrices=False, lapack_driver="gesvd")
    kept = values > max(rows.shape) * np.finfo(float).eps * values.max()
    values, axes = values[kept], axes[kept]
    outside = points - points @ axes.T @ axes
    if np.linalg.norm(outside) > 1e-9 * np.linalg.norm(points) or not kept.any():
        raise UndefinedError
    return lambda V: V @ axes.T / values, float(2 * np.log(values).sum())


# What is compared.


def apart(scores: np.ndarray) -> np.ndarray:
    """Differences between the scores of the classes."""
    return scores - scores.mean(axis=1, keepdims=True)


def score_error(scores: np.ndarray, truth: np.ndarray, factor: float = 1.0) -> float:
    """Largest error of the differences between classes, relative to the largest difference.

    The factor brings the scores to the unit of the truth.
    """
    if scores.ndim == 1:
        scores = np.stack([-scores, scores], axis=1) / 2
    exact = apart(truth)
    if exact.shape[1] == 1:
        return 0.0 if np.isfinite(scores).all() else np.nan
    found = apart(np.asarray(scores, dtype=np.longdouble)) * np.longdouble(factor)
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def fitted_scores(model: BaseEstimator, given: Case) -> np.ndarray:
    model.fit(given.X, given.y)
    ask = model.class_scores if hasattr(model, "class_scores") else model.decision_function
    return ask(given.unseen)


def scatter_error(found: np.ndarray, truth: Truth) -> float:
    if not np.isfinite(found).all():
        return np.nan
    exact = truth.scatter()
    size = np.linalg.norm(exact)
    off = np.linalg.norm((found.astype(np.longdouble) / truth.unit**2 - exact).astype(float))
    return float(off / size) if size else float(off)


def plain_sums(given: Case, truth: Truth) -> float:
    """Sums of products minus those of the means, all in the type of the rows."""
    X = given.X
    sums = np.zeros((len(truth.classes), X.shape[1]), dtype=X.dtype)
    np.add.at(sums, truth.codes, X)
    means = sums / truth.counts[:, None].astype(X.dtype)
    return scatter_error(X.T @ X - sums.T @ means, truth)


def nearest_mean(given: Case, truth: Truth) -> float:
    scores = fitted_scores(NearestClassMeanClassifier("euclidean"), given)
    return score_error(scores, truth.nearest_mean(), 1 / truth.unit**2)


def nearest_centroid(given: Case, truth: Truth) -> float:
    """By its distances; its decision function divides them by the spread of the features."""
    model = NearestCentroid().fit(given.X, given.y)
    scores = -0.5 * pairwise_distances(given.unseen, model.centroids_) ** 2
    return score_error(scores, truth.nearest_mean(), 1 / truth.unit**2)


def cosine(given: Case, truth: Truth) -> float:
    return score_error(fitted_scores(NearestClassMeanClassifier(), given), truth.cosines)


def sklearn_cosine(given: Case, truth: Truth) -> float:
    means = np.stack([given.X[truth.codes == c].mean(0) for c in range(len(truth.classes))])
    return score_error(cosine_similarity(given.unseen, means), truth.cosines)


def of_discriminant(model: BaseEstimator, shrinkage: float) -> "Measure":
    return lambda given, truth: score_error(
        fitted_scores(model, given), truth.discriminant(shrinkage)
    )


def of_gaussian(model: BaseEstimator, shrinkage: float) -> "Measure":
    def measure(given: Case, truth: Truth) -> float:
        if len(truth.classes) > MANY_CLASSES:
            raise MemoryError
        return score_error(fitted_scores(model, given), truth.gaussian(shrinkage))

    return measure


def of_ridge(share: float) -> "Measure":
    def measure(given: Case, truth: Truth) -> float:
        return score_error(fitted_scores(RidgeHeadClassifier(share), given), truth.ridge(share))

    return measure


def chosen_ridge(given: Case, truth: Truth) -> float:
    """With the penalty that it chooses; the truth is that of the same penalty."""
    model = RidgeHeadClassifier()
    scores = fitted_scores(model, given)
    total = (truth.around.astype(np.longdouble) ** 2).sum() / truth.around.shape[1]
    return score_error(scores, truth.ridge(model.alpha_)) if total else 0.0


def sklearn_ridge(given: Case, truth: Truth, share: float) -> float:
    """scikit-learn's, which is given the penalty in its own unit, on targets of -1 and 1."""
    if len(truth.classes) > MANY_CLASSES:
        raise MemoryError
    mean = (truth.around**2).sum() / truth.around.shape[1] * truth.unit**2
    model = RidgeClassifier(float(share * mean), solver="cholesky")
    return score_error(fitted_scores(model, given), truth.ridge(share), 0.5)


def random_features(given: Case, truth: Truth) -> float:
    """The truth starts from the random features in float64."""
    model = RandomFeatureRidgeClassifier(400, alpha=1e-3)
    scores = fitted_scores(model, given)
    return score_error(scores, _features(model, given, np.float64)[1].ridge(1e-3))


def sklearn_random_features(given: Case, truth: Truth) -> float:
    model = RandomFeatureRidgeClassifier(400, alpha=1e-3).fit(given.X, given.y)
    _, wide = _features(model, given, np.float64)
    return sklearn_ridge(_features(model, given, given.X.dtype)[0], wide, 1e-3)


def _features(model: BaseEstimator, given: Case, dtype: np.dtype) -> tuple[Case, Truth]:
    X, unseen = (model.projection_.transform(V.astype(dtype)) for V in (given.X, given.unseen))
    features = Case(X, given.y, unseen)
    return features, Truth(features)


def whitening_error(model: BaseEstimator, given: Case) -> float:
    Z = model.fit_transform(given.X).astype(np.float64)
    if not np.isfinite(Z).all():
        return np.nan
    return float(np.abs(np.cov(Z.T) - np.eye(Z.shape[1])).max())


Measure = Callable[[Case, Truth], float]
# Ours and what stands beside it.
SUBJECTS: dict[str, tuple[Measure, Measure]] = {
    "scatter": (
        lambda given, truth: scatter_error(
            ClassMoments("shared").update(given.X, given.y).scatter_, truth
        ),
        plain_sums,
    ),
    "nearest mean": (nearest_mean, nearest_centroid),
    "nearest mean, cosine": (cosine, sklearn_cosine),
    "LDA, 0.01": (
        of_discriminant(LinearDiscriminantClassifier(0.01), 0.01),
        of_discriminant(LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.01), 0.01),
    ),
    "LDA, 0": (
        of_discriminant(LinearDiscriminantClassifier(0.0), 0.0),
        of_discriminant(LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.0), 0.0),
    ),
    "Gaussian, 0.1": (
        of_gaussian(GaussianClassifier(shrinkage=0.1, blend=0.0, min_count=1), 0.1),
        of_gaussian(QuadraticDiscriminantAnalysis(solver="eigen", shrinkage=0.1), 0.1),
    ),
    "ridge, 1e-3": (of_ridge(1e-3), lambda *case: sklearn_ridge(*case, 1e-3)),
    "ridge, 1e-9": (of_ridge(1e-9), lambda *case: sklearn_ridge(*case, 1e-9)),
    "ridge, chosen": (chosen_ridge, None),
    "random features": (random_features, sklearn_random_features),
    "whitening": (
        lambda given, truth: whitening_error(Whitening(eps=0.0), given),
        lambda given, truth: whitening_error(PCA(whiten=True), given),
    ),
}


# The tables.


def outcome(measure: Measure | None, given: Case, truth: Truth) -> tuple[str, str]:
    """An error, or what became of the case instead, and the message that came with it."""
    if measure is None:
        return "", ""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            error = measure(given, truth)
        except UndefinedError:
            return "**accepted**", ""
        except MemoryError:
            return "not run", ""
        except (ValueError, TypeError, np.linalg.LinAlgError) as refusal:
            return "refused", str(refusal).splitlines()[0]
    text = "NaN" if np.isnan(error) else f"{error:.0e}".replace("0e+00", "0")
    warned = [str(w.message).splitlines()[0] for w in said if w.category is UserWarning]
    return (text if error <= WRONG else f"**{text}**"), (warned[0] if warned else "")


class Notes:
    """Messages below a table, numbered as they come."""

    def __init__(self):
        self.numbers: dict[str, int] = {}

    def mark(self, message: str) -> str:
        # Numbers differ from case to case, and what is said does not.
        message = re.sub(r"(?<![\w.])\d+(?![\w.])", "N", message)
        return f" [{self.numbers.setdefault(message, len(self.numbers) + 1)}]" if message else ""

    def lines(self) -> list[str]:
        return [f"- [{number}] {message}" for message, number in self.numbers.items()]


def table(dtype: str, options: argparse.Namespace) -> list[str]:
    """The table of one type of floats as lines of Markdown, with its notes."""
    notes, lines = Notes(), ["| case | " + " | ".join(SUBJECTS) + " |"]
    lines.append("| --- |" + " --- |" * len(SUBJECTS))
    for name, given in cases(options.rows, options.features):
        kind, _, name = name.partition(", ")
        if kind not in dtype or options.only not in name:
            continue
        truth, cells = Truth(given), []
        for pair in SUBJECTS.values():
            ours, theirs = (outcome(measure, given, truth) for measure in pair)
            other = f" / {theirs[0]}" if theirs[0] else ""
            cells.append(ours[0] + notes.mark(ours[1]) + other)
        name = f"{kind}, {name}" if kind == "float16" else name
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return [f"### {dtype}", "", *lines, "", *notes.lines(), ""]


def main() -> None:
    """Measure, print, and write the page."""
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = [f"{options.rows} rows of {options.features} features; {header(options.threads)}.", ""]
    for dtype in ("float32 and float16", "float64"):
        lines += table(dtype, options)
    print("\n".join(lines))
    if options.page:
        before, _, rest = options.page.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        options.page.write_text("\n".join([before + BEGIN, "", *lines, END]) + after)


if __name__ == "__main__":
    main()
