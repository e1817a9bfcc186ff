# SPDX-License-Identifier: BSD-3-Clause
"""Peak memory is one batch and the vectors, not the tokens of all images."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from pathlib import Path
import numpy as np
import skpool
from skpool.extraction import FeatureExtractor
from skpool.pooling import TokenPooling

n = int(sys.argv[1])
skpool.set_config(cache_bytes=0)
pixels = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)
tokens = FeatureExtractor("glyph", batch_size=16).transform(pixels)
vectors = TokenPooling("mean").fit_transform(tokens)
assert vectors.shape == (n, 128)
# Not `ru_maxrss`, which a process inherits from the one that started it.
status = Path("/proc/self/status").read_text()
print(status.split("VmHWM:")[1].split()[0], tokens.nbytes // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_peak_memory_does_not_grow_with_the_number_of_images():
    def peak(n):
        command = [sys.executable, "-c", SCRIPT, str(n)]
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        out = subprocess.run(command, check=True, capture_output=True, text=True, env=one_thread)
        return map(int, out.stdout.split())

    small, _ = peak(200)
    large, tokens = peak(2000)
    assert tokens > 60_000
    assert large - small < tokens / 4
