# SPDX-License-Identifier: BSD-3-Clause
"""What every classifier that learns incrementally shares: calls that happen wholly or not at all.

`IncrementalMixin` checks a batch, lets the estimator learn it, and puts every attribute back if
anything failed; `MomentsMixin` does the learning too, for classifiers that follow from the moments
of the classes. `ClassScoresMixin` turns one matrix of class scores into the outputs that
scikit-learn's scorers expect. The rooms prototypes, neighbors, discriminant and linear_model stand
on them.
"""

from skpool.base._class_scores import ClassScoresMixin, log_priors, spread_columns
from skpool.base._incremental import IncrementalMixin
from skpool.base._moments import MomentsMixin

__all__ = ["ClassScoresMixin", "IncrementalMixin", "MomentsMixin", "log_priors", "spread_columns"]
