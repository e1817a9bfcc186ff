# SPDX-License-Identifier: BSD-3-Clause
"""Features at rest: kept per sample on disk or in memory, and the lazy array that reads them."""

from skpool.stores._feature_store import FeatureStore
from skpool.stores._memory_cache import MemoryCache, default_cache
from skpool.stores._protocol import BUSY, FREE, HELD, MINE
from skpool.stores._row_source import ArraySource, Reduction, RowSource, TokenBatch, assemble
from skpool.stores._token_array import Job, TokenArray, keep_together
from skpool.stores._validation import as_given, check_tokens_finite, validate_tokens

__all__ = [
    "BUSY",
    "FREE",
    "HELD",
    "MINE",
    "ArraySource",
    "FeatureStore",
    "Job",
    "MemoryCache",
    "Reduction",
    "RowSource",
    "TokenArray",
    "TokenBatch",
    "as_given",
    "assemble",
    "check_tokens_finite",
    "default_cache",
    "keep_together",
    "validate_tokens",
]
