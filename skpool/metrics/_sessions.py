# SPDX-License-Identifier: BSD-3-Clause
"""How good a learner was over its stages: averages of accuracies, and references to compare with.

Row t of an accuracy matrix is what was measured after stage t, column j is on the test rows of
stage j. A stage without test rows has a column of NaN and takes no part.
"""

import numpy as np
from numpy.typing import ArrayLike

from skpool.metrics._checks import check_choice, check_counts, check_curve, check_matrix

__all__ = [
    "accuracy_memory_auc",
    "average_accuracy",
    "average_incremental_accuracy",
    "intransigence",
    "last_accuracy",
    "learning_accuracy",
    "omega_all",
    "performance_drop",
    "seen_accuracy",
]


def seen_accuracy(
    accuracy_matrix: ArrayLike, test_counts: ArrayLike | None = None, *, kind: str = "rows"
) -> np.ndarray:
    """Accuracy on all that was seen, after every stage.

    Parameters
    ----------
    accuracy_matrix : array-like of shape (n_stages, n_stages)
        Row t: after stage t; column j: on the test rows of stage j. What is above the diagonal
        is not read.
    test_counts : array-like of shape (n_stages,), default=None
        Test rows of the stages; needed by "rows".
    kind : {"rows", "tasks"}, default="rows"
        - "rows": over all test rows seen so far, so that a stage counts by its rows.
        - "tasks": mean over the stages so far, each counting alike.

    Returns
    -------
    accuracy : ndarray of shape (n_stages,)
        NaN as long as no stage had test rows.

    See Also
    --------
    average_incremental_accuracy : Its mean.
    last_accuracy : Its last value.

    Examples
    --------
    >>> from skpool.metrics import seen_accuracy
    >>> R = [[0.9, float("nan")], [0.7, 0.5]]
    >>> seen_accuracy(R, test_counts=[300, 100])
    array([0.9 , 0.65])
    >>> seen_accuracy(R, kind="tasks")
    array([0.9, 0.6])
    """
    check_choice("kind", kind, ("rows", "tasks"))
    R, tested = check_matrix(accuracy_matrix)
    if kind == "rows" and test_counts is None:
        raise ValueError(
            'kind="rows" needs test_counts, got None; give the test rows of the stages, or take '
            'kind="tasks".'
        )
    weights = check_counts(test_counts if kind == "rows" else None, len(R)) * tested
    sums = np.tril(np.where(tested, R, 0.0)) @ weights
    total = np.cumsum(weights)
    return np.divide(sums, total, out=np.full(len(R), np.nan), where=total > 0)


def average_incremental_accuracy(seen_accuracy: ArrayLike) -> float:
    """Mean over the stages of the accuracy on all classes seen so far.

    Parameters
    ----------
    seen_accuracy : array-like of shape (n_stages,)
        As :func:`seen_accuracy` returns it, by whose `kind` the number is to be called: of rows
        or of tasks.

    Returns
    -------
    accuracy : float

    Notes
    -----
    Protocols with and without a large first stage ("B50-Inc10", "B0-Inc10") average over
    different numbers of stages, and their averages do not compare.

    References
    ----------
    .. [1] Rebuffi et al., iCaRL: Incremental Classifier and Representation Learning, CVPR 2017.
       <https://arxiv.org/abs/1611.07725>

    Examples
    --------
    >>> from skpool.metrics import average_incremental_accuracy
    >>> average_incremental_accuracy([1.0, 0.75, 0.5])
    0.75
    """
    return float(np.mean(check_curve(seen_accuracy, name="seen_accuracy")))


def last_accuracy(seen_accuracy: ArrayLike) -> float:
    """Accuracy on all classes after the last stage.

    Parameters
    ----------
    seen_accuracy : array-like of shape (n_stages,)
        As :func:`seen_accuracy` returns it.

    Returns
    -------
    accuracy : float

    Examples
    --------
    >>> from skpool.metrics import last_accuracy
    >>> last_accuracy([1.0, 0.75, 0.5])
    0.5
    """
    return float(check_curve(seen_accuracy, name="seen_accuracy")[-1])


def average_accuracy(accuracy_matrix: ArrayLike) -> float:
    """Mean over the stages of the accuracy on each, after the last one.

    Parameters
    ----------
    accuracy_matrix : array-like of shape (n_stages, n_stages)
        Row t: after stage t; column j: on the test rows of stage j.

    Returns
    -------
    accuracy : float
        Every stage counts alike, whatever its number of test rows.

    See Also
    --------
    last_accuracy : Of all rows, where rows count alike.

    References
    ----------
    .. [1] Lopez-Paz and Ranzato, Gradient Episodic Memory for Continual Learning, NeurIPS 2017.
       <https://arxiv.org/abs/1706.08840>

    Examples
    --------
    >>> from skpool.metrics import average_accuracy
    >>> average_accuracy([[0.9, 0.0], [0.5, 0.75]])
    0.625
    """
    R, tested = check_matrix(accuracy_matrix)
    return _mean(R[-1, tested])


def learning_accuracy(accuracy_matrix: ArrayLike) -> float:
    """Mean accuracy on every stage just after it was learned: plasticity.

    Parameters
    ----------
    accuracy_matrix : array-like of shape (n_stages, n_stages)
        Row t: after stage t; column j: on the test rows of stage j.

    Returns
    -------
    accuracy : float

    Examples
    --------
    >>> from skpool.metrics import learning_accuracy
    >>> learning_accuracy([[1.0, 0.0], [0.5, 0.75]])
    0.875
    """
    R, tested = check_matrix(accuracy_matrix)
    return _mean(np.diagonal(R)[tested])


def intransigence(accuracy_matrix: ArrayLike, joint_accuracy: ArrayLike) -> float:
    """Mean loss on every new stage against a learner of all stages so far together.

    Parameters
    ----------
    accuracy_matrix : array-like of shape (n_stages, n_stages)
        Row t: after stage t; column j: on the test rows of stage j.
    joint_accuracy : array-like of shape (n_stages,)
        Accuracy on the test rows of stage j of a learner fitted on stages 0 to j together.

    Returns
    -------
    loss : float
        Below 0 where learning stage by stage was better.

    References
    ----------
    .. [1] Chaudhry et al., Riemannian Walk for Incremental Learning: Understanding Forgetting and
       Intransigence, ECCV 2018. <https://arxiv.org/abs/1801.10112>

    Examples
    --------
    >>> from skpool.metrics import intransigence
    >>> intransigence([[1.0, 0.0], [0.5, 0.75]], [1.0, 1.0])
    0.125
    """
    R, tested = check_matrix(accuracy_matrix)
    joint = _as_long(joint_accuracy, len(R), "joint_accuracy")
    return _mean((joint - np.diagonal(R))[tested])


def omega_all(seen_accuracy: ArrayLike, joint_accuracy: ArrayLike) -> float:
    """Mean over the stages of the share of a joint learner's accuracy that was reached.

    Parameters
    ----------
    seen_accuracy : array-like of shape (n_stages,)
        As :func:`seen_accuracy` returns it.
    joint_accuracy : array-like of shape (n_stages,)
        The same of a learner fitted on all stages so far together; above 0.

    Returns
    -------
    share : float
        1 where the stages cost nothing.

    Notes
    -----
    All stages are averaged over, the first included, where both learners saw the same.

    References
    ----------
    .. [1] Kemker et al., Measuring Catastrophic Forgetting in Neural Networks, AAAI 2018.
       <https://arxiv.org/abs/1708.02072>

    Examples
    --------
    >>> from skpool.metrics import omega_all
    >>> omega_all([1.0, 0.5], [1.0, 1.0])
    0.75
    """
    seen = check_curve(seen_accuracy, name="seen_accuracy")
    joint = _as_long(joint_accuracy, len(seen), "joint_accuracy")
    if (joint <= 0).any():
        raise ValueError(
            f"joint_accuracy must be above 0 after every stage, got {joint.tolist()}; a share of "
            "nothing is not defined."
        )
    return float(np.mean(seen / joint))


def performance_drop(seen_accuracy: ArrayLike) -> float:
    """Accuracy after the first stage less that after the last.

    Parameters
    ----------
    seen_accuracy : array-like of shape (n_stages,)
        As :func:`seen_accuracy` returns it.

    Returns
    -------
    drop : float

    References
    ----------
    .. [1] Zhang et al., Few-Shot Incremental Learning with Continually Evolved Classifiers, CVPR
       2021. <https://arxiv.org/abs/2104.03047>

    Examples
    --------
    >>> from skpool.metrics import performance_drop
    >>> performance_drop([0.75, 0.625, 0.5])
    0.25
    """
    seen = check_curve(seen_accuracy, name="seen_accuracy")
    return float(seen[0] - seen[-1])


def accuracy_memory_auc(accuracy: ArrayLike, memory: ArrayLike) -> float:
    """Area under accuracy over memory, divided by the range of the memory.

    Parameters
    ----------
    accuracy : array-like of shape (n_learners,)
        Last accuracy, or average incremental accuracy, of learners of different size.
    memory : array-like of shape (n_learners,)
        Their sizes, in any unit and order; at least two of them differ.

    Returns
    -------
    accuracy : float
        Mean of the accuracy over the range of memory, linear between the learners.

    References
    ----------
    .. [1] Zhou et al., A Model or 603 Exemplars: Towards Memory-Efficient Class-Incremental
       Learning, ICLR 2023. <https://arxiv.org/abs/2205.13218>

    Examples
    --------
    >>> from skpool.metrics import accuracy_memory_auc
    >>> accuracy_memory_auc([0.5, 1.0, 1.0], memory=[0, 1, 2])
    0.875
    """
    accuracy = check_curve(accuracy, name="accuracy")
    memory = _as_long(memory, len(accuracy), "memory")
    order = np.argsort(memory, kind="stable")
    extent = memory[order[-1]] - memory[order[0]]
    if not extent > 0:
        raise ValueError(
            f"memory must span a range, got {memory.tolist()}; give learners of different size."
        )
    return float(np.trapezoid(accuracy[order], memory[order]) / extent)


def _mean(values: np.ndarray) -> float:
    """The mean, NaN of nothing without a warning."""
    return float(values.mean()) if len(values) else float("nan")


def _as_long(values: ArrayLike, n: int, name: str) -> np.ndarray:
    values = check_curve(values, name=name)
    if len(values) != n:
        raise ValueError(f"{name} must hold {n} values, one per stage, got {len(values)}.")
    return values
