# SPDX-License-Identifier: BSD-3-Clause
"""Scores of learning in sessions: plain functions of accuracies, in NumPy alone.

Published tool boxes print different numbers under one name. Here every convention has a name of
its own: that of the function, or of its `kind`. All accuracies and differences are fractions.
"""

from skpool.metrics._anytime import anytime_accuracy, min_accuracy, worst_case_accuracy
from skpool.metrics._base_novel import (
    base_novel_accuracy,
    confusion_base_novel,
    harmonic_mean_accuracy,
)
from skpool.metrics._sessions import (
    accuracy_memory_auc,
    average_accuracy,
    average_incremental_accuracy,
    intransigence,
    last_accuracy,
    learning_accuracy,
    omega_all,
    performance_drop,
    seen_accuracy,
)
from skpool.metrics._transfer import backward_transfer, forgetting, forward_transfer

__all__ = [
    "accuracy_memory_auc",
    "anytime_accuracy",
    "average_accuracy",
    "average_incremental_accuracy",
    "backward_transfer",
    "base_novel_accuracy",
    "confusion_base_novel",
    "forgetting",
    "forward_transfer",
    "harmonic_mean_accuracy",
    "intransigence",
    "last_accuracy",
    "learning_accuracy",
    "min_accuracy",
    "omega_all",
    "performance_drop",
    "seen_accuracy",
    "worst_case_accuracy",
]
