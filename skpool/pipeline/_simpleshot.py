# SPDX-License-Identifier: BSD-3-Clause
"""SimpleShot: the nearest class mean on centred unit rows, ready to be fitted.

The centre belongs to the data that the features were made for, not to the few samples of an
episode; the pipeline here is built so that it cannot slip in from there.
"""

import numpy as np
from sklearn.base import BaseEstimator

from skpool.pipeline._incremental import IncrementalPipeline
from skpool.preprocessing import CenteredL2Normalizer, L2Normalizer
from skpool.prototypes import NearestClassMeanClassifier

__all__ = ["make_simpleshot"]

_NORMS = ("cl2n", "l2n", "un")


def _normalizer(norm: str, center: object) -> BaseEstimator | str:
    if norm == "cl2n":
        step = CenteredL2Normalizer(center)
    else:
        step = L2Normalizer() if norm == "l2n" else "passthrough"
    if not isinstance(step, str):
        step._validate_params()
    return step


def make_simpleshot(
    norm: str = "cl2n", *, center: str | np.ndarray = "mean"
) -> IncrementalPipeline:
    """Build SimpleShot: centred unit rows, and the nearest class mean by Euclidean distance.

    Parameters
    ----------
    norm : {"cl2n", "l2n", "un"}, default="cl2n"
        Rows are centred and scaled to unit length, scaled only, or taken as they are: the three
        settings of the paper [1]_.
    center : "mean" or array-like of shape (n_features,), default="mean"
        What "cl2n" subtracts: the mean of the rows of the first call, which are then those of the
        base classes; or a vector, such as the mean of base data that are not learned as classes.

    Returns
    -------
    pipeline : IncrementalPipeline
        Steps "normalize" (`CenteredL2Normalizer`, `L2Normalizer` or "passthrough") and "classify"
        (`NearestClassMeanClassifier`), not fitted.

    See Also
    --------
    skpool.preprocessing.CenteredL2Normalizer : The first step.

    Notes
    -----
    For few-shot episodes give the centre and fit each episode's supports; `fit` without it would
    centre by the supports, which is another method. When classes arrive in sessions, fit the
    first and go on with `partial_fit`: the centre stays that of the first session, since unit
    vectors cannot be moved after a centre. In a cross-validation the centre comes from the
    training part, because it is a step.

    The means of the unit rows are not scaled to unit length again. A popular other implementation
    takes the cosine instead, which gives other predictions for about one query in twenty.

    References
    ----------
    .. [1] Y. Wang, W.-L. Chao, K. Q. Weinberger, L. van der Maaten, SimpleShot: Revisiting
       Nearest-Neighbor Classification for Few-Shot Learning, 2019.
       <https://arxiv.org/abs/1911.04623>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pipeline import make_simpleshot
    >>> base = np.random.default_rng(0).normal(5.0, 1.0, size=(200, 8))
    >>> episode = make_simpleshot(center=base.mean(axis=0))
    >>> episode.fit(5.0 + np.eye(2, 8), ["cat", "dog"]).predict([[9, 5, 5, 5, 5, 5, 5, 5]])
    array(['cat'], dtype='<U3')
    """
    if norm not in _NORMS:
        raise ValueError(f"norm={norm!r} is not valid; give one of {list(_NORMS)}.")
    if norm != "cl2n" and not (isinstance(center, str) and center == "mean"):
        raise ValueError(f"center={center!r} has no part in norm={norm!r}; set norm='cl2n'.")
    steps = [
        ("normalize", _normalizer(norm, center)),
        ("classify", NearestClassMeanClassifier("euclidean")),
    ]
    return IncrementalPipeline(steps, refresh="frozen")
