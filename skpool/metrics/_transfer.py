# SPDX-License-Identifier: BSD-3-Clause
"""What later stages did to earlier ones, and earlier ones for later ones.

On one and the same matrix of five stages published tool boxes print a forgetting of 19.9, 24.6 and
24.9 and a backward transfer of -8.7 and -12.6: each of their conventions is a `kind` here.
"""

import numpy as np
from numpy.typing import ArrayLike

from skpool.metrics._checks import check_choice, check_counts, check_curve, check_matrix

__all__ = ["backward_transfer", "forgetting", "forward_transfer"]

_FORGETTING = ("max", "max_all", "first", "relative")


def forgetting(
    accuracy_matrix: ArrayLike, *, kind: str = "max", test_counts: ArrayLike | None = None
) -> float:
    r"""How much of what was known of earlier stages is gone after the last one.

    With the accuracy :math:`R_{lj}` on stage j after stage l, of T stages, the default is

    .. math:: \frac{1}{T-1} \sum_{j<T} \Big(\max_{j \le l < T} R_{lj} - R_{Tj}\Big).

    Parameters
    ----------
    accuracy_matrix : array-like of shape (n_stages, n_stages)
        Row t: after stage t; column j: on the test rows of stage j. What is above the diagonal is
        not read.
    kind : {"max", "max_all", "first", "relative"}, default="max"
        What the last accuracy is compared with.

        - "max": the best one before the last stage [1]_; negative where the last stage helped.
        - "max_all": the best one, that after the last stage included, as several tool boxes do;
          never negative.
        - "first": the one just after the stage was learned: minus the backward transfer.
        - "relative": as "max", as a share of the best one; 0 where that is 0.
    test_counts : array-like of shape (n_stages,), default=None
        Weights of the stages in the mean, such as their test rows; None for alike.

    Returns
    -------
    forgetting : float
        NaN for a single stage.

    See Also
    --------
    backward_transfer : Against the accuracy just after learning.

    References
    ----------
    .. [1] Chaudhry et al., Riemannian Walk for Incremental Learning: Understanding Forgetting and
       Intransigence, ECCV 2018. <https://arxiv.org/abs/1801.10112>

    Examples
    --------
    >>> from skpool.metrics import forgetting
    >>> R = [[0.5, 0.0, 0.0], [0.75, 0.5, 0.0], [0.25, 0.75, 0.5]]
    >>> forgetting(R), forgetting(R, kind="max_all"), forgetting(R, kind="first")
    (0.125, 0.25, 0.0)
    """
    check_choice("kind", kind, _FORGETTING)
    R, tested = check_matrix(accuracy_matrix)
    T = len(R)
    weights = check_counts(test_counts, T)[: T - 1]
    since_learned = np.where(np.tril(np.ones_like(R, dtype=bool)) & tested, R, -np.inf)
    last = R[-1, : T - 1]
    if kind == "first":
        best = np.diagonal(R)[: T - 1]
    else:
        compared = T if kind == "max_all" else T - 1
        best = since_learned[:compared, : T - 1].max(axis=0, initial=-np.inf)
    lost = best - last
    if kind == "relative":
        lost = np.divide(lost, best, out=np.zeros_like(lost), where=best > 0)
    return _weighted_mean(lost, weights * tested[: T - 1])


def backward_transfer(accuracy_matrix: ArrayLike, *, kind: str = "last") -> float:
    """How learning later stages changed the accuracy on earlier ones.

    Parameters
    ----------
    accuracy_matrix : array-like of shape (n_stages, n_stages)
        Row t: after stage t; column j: on the test rows of stage j. What is above the diagonal is
        not read.
    kind : {"last", "all_pairs"}, default="last"
        - "last": mean over earlier stages of the accuracy after the last stage less that just
          after learning [1]_.
        - "all_pairs": mean of the same difference over all pairs of a stage and a later one [2]_.

    Returns
    -------
    transfer : float
        Negative where later stages did harm; NaN for a single stage.

    References
    ----------
    .. [1] Lopez-Paz and Ranzato, Gradient Episodic Memory for Continual Learning, NeurIPS 2017.
       <https://arxiv.org/abs/1706.08840>
    .. [2] Diaz-Rodriguez et al., Don't forget, there is more than forgetting: new metrics for
       Continual Learning, 2018. <https://arxiv.org/abs/1810.13166>

    Examples
    --------
    >>> from skpool.metrics import backward_transfer
    >>> R = [[1.0, 0.0, 0.0], [0.75, 1.0, 0.0], [0.5, 0.5, 1.0]]
    >>> backward_transfer(R)
    -0.5
    >>> round(backward_transfer(R, kind="all_pairs"), 4)
    -0.4167
    """
    check_choice("kind", kind, ("last", "all_pairs"))
    R, tested = check_matrix(accuracy_matrix)
    gained = np.where(tested, R - np.diagonal(R), 0.0)
    pairs = np.tril(np.broadcast_to(tested, R.shape), k=-1)
    if kind == "last":
        gained, pairs = gained[-1], pairs[-1]
    return _weighted_mean(gained, pairs.astype(np.float64))


def forward_transfer(
    accuracy_matrix: ArrayLike, untrained_accuracy: ArrayLike, *, scenario: str
) -> float:
    """How much earlier stages help on a stage before it is learned.

    Parameters
    ----------
    accuracy_matrix : array-like of shape (n_stages, n_stages)
        Row t: after stage t; column j: on the test rows of stage j. The values just above the
        diagonal are read.
    untrained_accuracy : array-like of shape (n_stages,)
        Accuracy on each stage of a learner that learned nothing.
    scenario : {"class", "task", "domain"}
        With "class" the result is NaN: classes that were never seen are never predicted, so the
        accuracy ahead is 0 by construction and says nothing.

    Returns
    -------
    transfer : float
        Mean of the accuracy just before a stage less the untrained one; NaN for a single stage.

    References
    ----------
    .. [1] Lopez-Paz and Ranzato, Gradient Episodic Memory for Continual Learning, NeurIPS 2017.
       <https://arxiv.org/abs/1706.08840>

    Examples
    --------
    >>> from skpool.metrics import forward_transfer
    >>> forward_transfer([[1.0, 0.75], [0.5, 1.0]], [0.5, 0.5], scenario="domain")
    0.25
    """
    check_choice("scenario", scenario, ("class", "task", "domain"))
    R, tested = check_matrix(accuracy_matrix)
    untrained = check_curve(untrained_accuracy, name="untrained_accuracy")
    if len(untrained) != len(R):
        raise ValueError(
            f"untrained_accuracy must hold {len(R)} values, one per stage, got {len(untrained)}."
        )
    if scenario == "class":
        return float("nan")
    ahead = np.diagonal(R, offset=1)
    if np.isnan(ahead[tested[1:]]).any():
        raise ValueError(
            "accuracy_matrix has NaN just above its diagonal; evaluate with eval_future=True."
        )
    return _weighted_mean(ahead - untrained[1:], tested[1:].astype(np.float64))


def _weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Mean of the values of positive weight; NaN where there is none."""
    if not weights.sum() > 0:
        return float("nan")
    return float(np.average(values[weights > 0], weights=weights[weights > 0]))
