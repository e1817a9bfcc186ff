# SPDX-License-Identifier: BSD-3-Clause
"""Heads that are trained by gradient on frozen features.

Linear, cosine, attentive and moment probes: classifiers for vectors or tokens that closed forms
do not give.
"""

from skpool.probing._attentive import AttentiveProbeClassifier
from skpool.probing._base import TRAINER_CONSTRAINTS, TorchHeadMixin
from skpool.probing._cosine import CosineClassifier
from skpool.probing._linear import LinearProbeClassifier, linear_probe_path
from skpool.probing._moment import MomentProbingClassifier
from skpool.probing._moment_ridge import make_moment_ridge
from skpool.probing._sweep import LinearProbeSweepClassifier

__all__ = [
    "TRAINER_CONSTRAINTS",
    "AttentiveProbeClassifier",
    "CosineClassifier",
    "LinearProbeClassifier",
    "LinearProbeSweepClassifier",
    "MomentProbingClassifier",
    "TorchHeadMixin",
    "linear_probe_path",
    "make_moment_ridge",
]
