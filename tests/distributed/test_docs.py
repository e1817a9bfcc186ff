# SPDX-License-Identifier: BSD-3-Clause
"""The page on several machines does what it says."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("distributed.client", reason="dask.distributed is not installed")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "distributed.md"


def test_every_snippet_runs(client, files, tmp_path, monkeypatch):
    start, *blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert "LocalCluster(n_workers=2" in start
    monkeypatch.chdir(tmp_path)
    # The page names a store by a relative path, which workers read where they stand.
    before = client.run(os.getcwd)
    client.run(os.chdir, str(tmp_path))
    names = {"client": client, "paths": files, "y": np.arange(60) % 4}
    truths = []
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
        last = block.strip().splitlines()[-1]
        if last.startswith("np.allclose("):
            truths.append(eval(last, names))
    for worker, folder in before.items():
        client.run(os.chdir, folder, workers=[worker])
    assert truths == [True]
    assert names["report"].n_added == 60
    assert (names["model"].predict(files) == names["y"]).mean() > 0.5
