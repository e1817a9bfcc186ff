# SPDX-License-Identifier: BSD-3-Clause
"""The pages on classifiers and on moments do what they say."""

import ast
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"


def _claims(block):
    """Statements of a block that stand by themselves and say what is true."""
    for statement in ast.parse(block).body:
        if isinstance(statement, ast.Expr):
            code = ast.unparse(statement.value)
            compares = isinstance(statement.value, ast.Compare)
            if compares or code.startswith(("np.allclose(", "np.array_equal(")):
                yield code


@pytest.mark.parametrize("page", ["moments.md", "classifiers.md"])
def test_snippets_run_and_what_they_claim_is_true(page):
    names, claims = {}, 0
    for block in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL):
        exec(compile(block, page, "exec"), names)
        for claim in _claims(block):
            claims += 1
            assert eval(claim, names), claim
    assert claims >= 2
