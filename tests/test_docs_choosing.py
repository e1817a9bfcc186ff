# SPDX-License-Identifier: BSD-3-Clause
"""The page on choosing a pooling and a whitening does what it says."""

import re
import warnings
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "choosing.md"


def test_snippets_run_and_the_search_learns():
    names = {}
    with warnings.catch_warnings():
        # On a third of 200 digits a logistic regression may stop early.
        warnings.filterwarnings("ignore", category=Warning, module="sklearn.linear_model")
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
            exec(compile(block, PAGE.name, "exec"), names)
    assert names["search"].best_score_ > 0.8
    assert names["narrow"].transform(names["vectors"]).shape == (200, 16)
