# SPDX-License-Identifier: BSD-3-Clause
"""Pipelines: one that goes on learning, and those of the literature, ready to be fitted."""

from skpool.pipeline._fit_once import FitOnce
from skpool.pipeline._incremental import IncrementalPipeline, make_incremental_pipeline
from skpool.pipeline._ready import (
    make_off_the_shelf_classifier,
    make_retrieval_postprocessor,
    make_whitening_bert,
)
from skpool.pipeline._simpleshot import make_simpleshot

__all__ = [
    "FitOnce",
    "IncrementalPipeline",
    "make_incremental_pipeline",
    "make_off_the_shelf_classifier",
    "make_retrieval_postprocessor",
    "make_simpleshot",
    "make_whitening_bert",
]
