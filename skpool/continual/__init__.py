# SPDX-License-Identifier: BSD-3-Clause
"""Learning in sessions on frozen features: adapters, ensembles of spaces, exemplars and replay.

Closed-form classifiers of the other rooms need nothing from here: their `partial_fit` ends with
the model of one `fit`. This room holds what is not a function of moments, a transformer that is
trained in the first session and memories of rows with the classifiers that learn from them, and
what puts moments together: prototypes in feature spaces that arrive one by one, and classes that
come from several domains.
"""

from skpool.continual._aligned import AlignedClassifier
from skpool.continual._exemplars import ExemplarMemory, NearestMeanOfExemplarsClassifier
from skpool.continual._few_shot_incremental import FewShotIncrementalClassifier
from skpool.continual._first_session import FirstSessionAdapter
from skpool.continual._gaussian_replay import GaussianReplay
from skpool.continual._herding import HerdingSelector, herding
from skpool.continual._per_group import PerGroupClassifier
from skpool.continual._replay import ReplayBuffer, ReplayClassifier
from skpool.continual._subspace_ensemble import (
    SubspaceEnsemblePrototypeClassifier,
    complete_prototypes,
)

__all__ = [
    "AlignedClassifier",
    "ExemplarMemory",
    "FewShotIncrementalClassifier",
    "FirstSessionAdapter",
    "GaussianReplay",
    "HerdingSelector",
    "NearestMeanOfExemplarsClassifier",
    "PerGroupClassifier",
    "ReplayBuffer",
    "ReplayClassifier",
    "SubspaceEnsemblePrototypeClassifier",
    "complete_prototypes",
    "herding",
]
