# SPDX-License-Identifier: BSD-3-Clause
"""Pipelines of the literature, put together from the steps of the package.

Each factory returns a plain, unfitted scikit-learn `Pipeline` with named steps, so that every
parameter can be set and searched; it stands behind an extractor, or a pooling, in a longer one.
"""

from collections.abc import Sequence
from typing import Any

from sklearn.pipeline import Pipeline
from sklearn.svm import LinearSVC

from skpool.preprocessing import L2Normalizer, PowerNormalizer, Whitening

__all__ = [
    "make_off_the_shelf_classifier",
    "make_retrieval_postprocessor",
    "make_whitening_bert",
]


def _checked(steps: list[tuple[str, Any]]) -> Pipeline:
    """The pipeline, once the parameters of its steps are known to be valid."""
    for _, step in steps:
        step._validate_params()
    return Pipeline(steps)


def make_retrieval_postprocessor(
    n_components: int | float | str | None = "auto500", *, power: float = 0.5
) -> Pipeline:
    """Build the post-processing of descriptors for retrieval: whitened, short, evened out.

    Parameters
    ----------
    n_components : int, float, str or None, default="auto500"
        As in :class:`~skpool.preprocessing.Whitening`; by default 500 components, or as many as
        the rows behind them allow, so that no small fold of a search fails.
    power : float, default=0.5
        Exponent of the signed power at the end. The paper [1]_ is read as 2 by some, and later
        work takes 0.5.

    Returns
    -------
    pipeline : Pipeline
        Steps "normalize" (`L2Normalizer`), "whiten" (`Whitening`), "renormalize" (`L2Normalizer`)
        and "power" (`PowerNormalizer`), not fitted.

    See Also
    --------
    skpool.preprocessing.LearnedWhitening : A whitening learned from matching pairs.

    Notes
    -----
    Compare its rows by the Euclidean distance; for the cosine,
    ``set_params(power__l2=True)``.

    References
    ----------
    .. [1] A. S. Razavian, H. Azizpour, J. Sullivan, S. Carlsson, CNN Features off-the-shelf: an
       Astounding Baseline for Recognition, 2014. <https://arxiv.org/abs/1403.6382>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pipeline import make_retrieval_postprocessor
    >>> X = np.random.default_rng(0).normal(size=(60, 16))
    >>> make_retrieval_postprocessor("auto8").fit_transform(X).shape
    (60, 8)
    """
    return _checked(
        [
            ("normalize", L2Normalizer()),
            ("whiten", Whitening(n_components)),
            ("renormalize", L2Normalizer()),
            ("power", PowerNormalizer(power)),
        ]
    )


def make_whitening_bert(
    n_components: int | float | str | None = None, *, layers: str | slice | Sequence[int] = (1, -1)
) -> Pipeline:
    """Build WhiteningBERT: tokens averaged over two layers and all positions, then whitened.

    Parameters
    ----------
    n_components : int, float, str or None, default=None
        As in :class:`~skpool.preprocessing.Whitening`; the paper [1]_ also keeps 256.
    layers : "all", slice or sequence of int, default=(1, -1)
        Positions among the layers of X, as in :class:`~skpool.layers.LayerAggregator`. By default
        the first block and the last, where X holds all layers from the embedding (0) on; "all"
        where the extractor has taken no others.

    Returns
    -------
    pipeline : Pipeline
        Steps "layers" (`LayerAggregator`), "pool" (`TokenPooling`), "whiten" (`Whitening`) and
        "normalize" (`L2Normalizer`), not fitted.

    See Also
    --------
    skpool.extraction.TextFeatureExtractor : Gives the tokens, with ``pooling=None`` and `layers`.

    Notes
    -----
    The paper whitens the very sentences that it compares, which is
    ``fit_transform(sentences)``; fitted to other sentences it serves new ones.

    References
    ----------
    .. [1] J. Huang et al., WhiteningBERT: An Easy Unsupervised Sentence Embedding Approach, 2021.
       <https://arxiv.org/abs/2104.01767>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pipeline import make_whitening_bert
    >>> tokens = np.random.default_rng(0).normal(size=(40, 13, 7, 8))  # 13 layers of 7 tokens
    >>> make_whitening_bert("auto4").fit_transform(tokens).shape
    (40, 4)
    """
    from skpool.layers import LayerAggregator
    from skpool.pooling import TokenPooling

    return _checked(
        [
            ("layers", LayerAggregator(layers, token_pool=None, layer_pool="mean")),
            ("pool", TokenPooling("mean")),
            ("whiten", Whitening(n_components)),
            ("normalize", L2Normalizer()),
        ]
    )


def make_off_the_shelf_classifier(
    C: float = 1.0, *, views: bool = False, random_state: int | None = 0
) -> Pipeline:
    """Build the off-the-shelf baseline: a linear support vector machine on unit rows.

    Parameters
    ----------
    C : float, default=1.0
        Inverse strength of the penalty, as in scikit-learn's `LinearSVC`.
    views : bool, default=False
        Whether X holds several views of every sample, (n_samples, n_views, n_features), whose
        decisions are averaged.
    random_state : int, RandomState instance or None, default=0
        For `LinearSVC`.

    Returns
    -------
    pipeline : Pipeline
        Steps "normalize" (`L2Normalizer`) and "classify" (`LinearSVC`, one class against the
        rest), not fitted. With `views` one step "average" (`ViewAveragingClassifier`) around the
        two, whose parameters are ``average__estimator__classify__C`` and so on.

    See Also
    --------
    skpool.extraction.TestTimeAugmentation : Makes the views of images.

    References
    ----------
    .. [1] A. S. Razavian, H. Azizpour, J. Sullivan, S. Carlsson, CNN Features off-the-shelf: an
       Astounding Baseline for Recognition, 2014. <https://arxiv.org/abs/1403.6382>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pipeline import make_off_the_shelf_classifier
    >>> X = np.array([[1.0, 0.1], [2.0, 0.3], [0.1, 1.0], [0.2, 3.0]])
    >>> make_off_the_shelf_classifier().fit(X, [0, 0, 1, 1]).predict([[5.0, 1.0]])
    array([0])
    """
    pipeline = _checked(
        [("normalize", L2Normalizer()), ("classify", LinearSVC(C=C, random_state=random_state))]
    )
    if not isinstance(views, bool):
        raise ValueError(f"views={views!r} is not valid; give True or False.")
    if not views:
        return pipeline
    from skpool.pooling import ViewAveragingClassifier

    return _checked([("average", ViewAveragingClassifier(pipeline))])
