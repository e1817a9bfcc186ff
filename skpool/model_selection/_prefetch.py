# SPDX-License-Identifier: BSD-3-Clause
"""Everything that a search will ask of the network, computed in one pass before it.

A search over poolings reads the tokens once per pooling and fold. Where tokens are kept that costs
little; where they are too many to keep, or live on a GPU, every pooling would be a pass of its
own. `prefetch` looks through the candidates of a search, runs each network once over all samples
and every layer that is asked for, and keeps the pooled vectors: the search then computes nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import ParameterGrid, ParameterSampler
from sklearn.pipeline import FeatureUnion, Pipeline

from skpool.stores import Job, TokenArray, keep_together

__all__ = ["Prefetched", "prefetch"]


@dataclass(frozen=True)
class Prefetched:
    """What `prefetch` did.

    Attributes
    ----------
    n_vectors : int
        Different vectors of a sample that are now stored: layers times poolings.
    n_passes : int
        Passes of a network that were needed; 0 when all vectors were there already.
    left_out : tuple of str
        Steps that cannot be computed ahead, because they learn from tokens or because their
        parameters do not name their results.
    """

    n_vectors: int
    n_passes: int
    left_out: tuple[str, ...]


def _candidates(search: BaseEstimator) -> Iterator[BaseEstimator]:
    """The estimators that a search would fit; an estimator that is no search is its own."""
    if hasattr(search, "param_grid"):
        settings = ParameterGrid(search.param_grid)
    elif hasattr(search, "n_iter"):
        if not isinstance(search.random_state, int):
            raise ValueError(
                f"random_state={search.random_state!r} draws other candidates at each fit; give "
                "the search an int."
            )
        settings = ParameterSampler(
            search.param_distributions, search.n_iter, random_state=search.random_state
        )
    else:
        settings, search = [{}], _Single(search)
    for parameters in settings:
        yield clone(search.estimator).set_params(
            **{name: clone(value, safe=False) for name, value in parameters.items()}
        )


@dataclass(frozen=True)
class _Single:
    estimator: BaseEstimator


def _heads(step: object) -> Iterator[tuple[object, object | None]]:
    """Extractors with the step that reads their tokens, through unions and nested pipelines."""
    if isinstance(step, Pipeline):
        first, *rest = [inner for _, inner in step.steps if inner not in (None, "passthrough")]
        if isinstance(first, (Pipeline, FeatureUnion)):
            yield from _heads(first)
        else:
            yield first, rest[0] if rest else None
    elif isinstance(step, FeatureUnion):
        for _, inner in step.transformer_list:
            if inner not in (None, "drop", "passthrough"):
                yield from _heads(inner)
    else:
        yield step, None


def _job(extractor: object, pooling: object | None, X: object) -> Job | None:
    """What these two steps compute of a sample, if it can be named."""
    takes_cls = getattr(extractor, "tokens", None) == "cls"
    if takes_cls:
        # As an array it would be computed here and now, by itself.
        extractor = clone(extractor).set_params(tokens="all")
    tokens = extractor.transform(X)
    if not isinstance(tokens, TokenArray) or tokens.in_memory or tokens.ndim == 4:
        return None
    if takes_cls:
        return tokens.job()
    return pooling.job(tokens) if hasattr(pooling, "job") else None


def prefetch(search: BaseEstimator, X: object) -> Prefetched:
    """Compute all pooled vectors that a search will need, in one pass of each network.

    Parameters
    ----------
    search : GridSearchCV, RandomizedSearchCV, HalvingGridSearchCV, or a pipeline
        Over pipelines that begin with an extractor and a pooling. A search that draws its
        candidates needs an int as `random_state`.
    X : list of paths, or another form of samples that the extractor takes
        All samples that the search will be fitted on.

    Returns
    -------
    prefetched : Prefetched
        How much was computed, and which steps were left out.

    Raises
    ------
    UnreadableInputError
        As the extractor does, after all readable samples are computed and kept.

    Notes
    -----
    The vectors go where the extractor keeps its results: give it a `store`, or they must fit the
    memory cache of this process. Candidates that differ in layers and poolings share one pass;
    another backbone, image size or float type is another pass. Tokens are kept only if a step
    was left out that will read them.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn.pipeline import make_pipeline
    >>> from skpool.extraction import FeatureExtractor
    >>> from skpool.model_selection import prefetch
    >>> from skpool.pooling import GeMPooling, TokenPooling
    >>> images = (load_digits().images[:8] * 255 / 16).round().astype("uint8")[..., None]
    >>> pipeline = make_pipeline(FeatureExtractor("glyph"), TokenPooling(), LogisticRegression())
    >>> grid = {"featureextractor__layers": [3, -1], "tokenpooling": [TokenPooling(), GeMPooling()]}
    >>> prefetch(GridSearchCV(pipeline, grid), images)
    Prefetched(n_vectors=4, n_passes=1, left_out=())
    """
    jobs: dict[tuple, Job] = {}
    left_out: dict[str, None] = {}
    for candidate in _candidates(search):
        for extractor, reader in _heads(candidate):
            job = _job(extractor, reader, X)
            if job is None:
                left_out[repr(reader if reader is not None else extractor)] = None
            else:
                jobs[job.source.pass_key, job.source.layers, job.fingerprint] = job
    n_passes = keep_together(list(jobs.values()), keep_tokens=bool(left_out))
    return Prefetched(len(jobs), n_passes, tuple(left_out))
