# SPDX-License-Identifier: BSD-3-Clause
"""The page on probes does what it says."""

import ast
import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "probing.md"


def _claims(block):
    """Statements of a block that stand by themselves and say what is true."""
    for statement in ast.parse(block).body:
        if isinstance(statement, ast.Expr):
            code = ast.unparse(statement.value)
            compares = isinstance(statement.value, ast.Compare)
            if compares or code.startswith(("np.allclose(", "np.array_equal(")):
                yield code


def test_snippets_run_and_what_they_claim_is_true():
    names, claims = {"__name__": "page_on_probes"}, 0
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), names)
        for claim in _claims(block):
            claims += 1
            assert eval(claim, names), claim
    assert claims >= 20
