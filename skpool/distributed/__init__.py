# SPDX-License-Identifier: BSD-3-Clause
"""Several machines: extraction over partitions of a list, and moments merged, on Dask."""

from skpool.distributed._extract import ExtractionReport, extract
from skpool.distributed._fit import fit

__all__ = ["ExtractionReport", "extract", "fit"]
