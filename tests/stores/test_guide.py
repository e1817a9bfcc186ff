# SPDX-License-Identifier: BSD-3-Clause
"""The page of the guide on stores does what it says."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "stores.md"


def test_every_snippet_of_the_page_on_stores_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, checked = {}, 0
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), names)
        last = block.strip().splitlines()[-1]
        if last.startswith("np.allclose("):
            assert eval(last, names)
            checked += 1
    assert checked == 3
    assert names["taken"]["n_rows"] == {"vit": 2}
