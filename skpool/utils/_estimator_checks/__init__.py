# SPDX-License-Identifier: BSD-3-Clause
"""The checks behind `skpool.utils.estimator_checks`, one file per kind of estimator.

They use the public parts of other rooms, as tests do; the package itself never imports them.
"""

from skpool.utils._estimator_checks._classifiers import CLASSIFIER_CHECKS
from skpool.utils._estimator_checks._extractors import EXTRACTOR_CHECKS
from skpool.utils._estimator_checks._incremental import (
    INCREMENTAL_CHECKS,
    INCREMENTAL_CLASSIFIER_CHECKS,
)
from skpool.utils._estimator_checks._layers import LAYER_CHECKS
from skpool.utils._estimator_checks._maps import MAP_CHECKS
from skpool.utils._estimator_checks._refusals import REFUSAL_CHECKS
from skpool.utils._estimator_checks._texts import TEXT_CHECKS
from skpool.utils._estimator_checks._token_maps import ROW_MAP_CHECKS, TOKEN_MAP_CHECKS
from skpool.utils._estimator_checks._tokens import TOKEN_CHECKS
from skpool.utils._estimator_checks._tools import Check
from skpool.utils._estimator_checks._vectors import SHARED_CHECKS, VECTOR_CHECKS

__all__ = [
    "CLASSIFIER_CHECKS",
    "EXTRACTOR_CHECKS",
    "INCREMENTAL_CHECKS",
    "INCREMENTAL_CLASSIFIER_CHECKS",
    "LAYER_CHECKS",
    "MAP_CHECKS",
    "REFUSAL_CHECKS",
    "ROW_MAP_CHECKS",
    "SHARED_CHECKS",
    "TEXT_CHECKS",
    "TOKEN_CHECKS",
    "TOKEN_MAP_CHECKS",
    "VECTOR_CHECKS",
    "Check",
]
