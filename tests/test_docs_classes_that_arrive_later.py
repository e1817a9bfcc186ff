# SPDX-License-Identifier: BSD-3-Clause
"""The page on classes that arrive later does what it says."""

import ast
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "classes_that_arrive_later.md"


def _claims(block):
    """Statements of a block that stand by themselves and say what is true."""
    for statement in ast.parse(block).body:
        if isinstance(statement, ast.Expr):
            code = ast.unparse(statement.value)
            compares = isinstance(statement.value, ast.Compare)
            if compares or code.startswith(("np.allclose(", "np.array_equal(")):
                yield code


def test_snippets_run_and_what_they_claim_is_true():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names, claims = {"__name__": "page_on_classes"}, 0
    try:
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
            exec(compile(block, PAGE.name, "exec"), names)
            for claim in _claims(block):
                claims += 1
                assert eval(claim, names), claim
    finally:
        plt.close("all")
    assert claims >= 12
