# SPDX-License-Identifier: BSD-3-Clause
"""The page on baselines and views does what it says."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "baselines_and_views.md"


def test_snippets_run_and_every_classifier_learns():
    names, scores = {}, []
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), names)
        lines = block.strip().splitlines()
        scores += [eval(line, names) for line in lines if ".score(" in line]
    assert names["XV"].shape == (200, 5, 128)
    assert len(scores) == 4 and min(scores) > 0.5
