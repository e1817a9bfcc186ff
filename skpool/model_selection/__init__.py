# SPDX-License-Identifier: BSD-3-Clause
"""Searches and protocols: what decides which samples, which parameters, and in which order."""

from skpool.model_selection._episode_batch import EpisodeBatch
from skpool.model_selection._episodes import EpisodeIndex, EpisodeSplit, MetaClassSplit
from skpool.model_selection._few_shot import (
    FewShotResult,
    compare_few_shot,
    few_shot_score,
    transductive_accuracy,
)
from skpool.model_selection._incremental import incremental_evaluate
from skpool.model_selection._incremental_result import IncrementalResult, StagePredictions
from skpool.model_selection._moments import cross_val_from_moments
from skpool.model_selection._prefetch import Prefetched, prefetch
from skpool.model_selection._sessions import (
    ClassIncrementalSplit,
    DomainIncrementalSplit,
    FewShotIncrementalSplit,
)
from skpool.model_selection._stages import Stage
from skpool.model_selection._stream_evaluate import StreamResult, stream_evaluate
from skpool.model_selection._streams import StreamSplit

__all__ = [
    "ClassIncrementalSplit",
    "DomainIncrementalSplit",
    "EpisodeBatch",
    "EpisodeIndex",
    "EpisodeSplit",
    "FewShotIncrementalSplit",
    "FewShotResult",
    "IncrementalResult",
    "MetaClassSplit",
    "Prefetched",
    "Stage",
    "StagePredictions",
    "StreamResult",
    "StreamSplit",
    "compare_few_shot",
    "cross_val_from_moments",
    "few_shot_score",
    "incremental_evaluate",
    "prefetch",
    "stream_evaluate",
    "transductive_accuracy",
]
