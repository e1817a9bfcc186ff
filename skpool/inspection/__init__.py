# SPDX-License-Identifier: BSD-3-Clause
"""Inspection: what a person looks at after a search, a protocol or a fit.

Each display holds plain arrays and draws them; matplotlib is imported when something is drawn.
Nothing here knows of tokens or networks.
"""

from skpool.inspection._accuracy_matrix import AccuracyMatrixDisplay
from skpool.inspection._base_novel import BaseNovelDisplay
from skpool.inspection._episode_intervals import EpisodeIntervalsDisplay
from skpool.inspection._pooling_comparison import PoolingComparisonDisplay
from skpool.inspection._session_confusion import SessionConfusionDisplay
from skpool.inspection._session_curves import SessionCurvesDisplay
from skpool.inspection._stream_curve import StreamCurveDisplay

__all__ = [
    "AccuracyMatrixDisplay",
    "BaseNovelDisplay",
    "EpisodeIntervalsDisplay",
    "PoolingComparisonDisplay",
    "SessionConfusionDisplay",
    "SessionCurvesDisplay",
    "StreamCurveDisplay",
]
