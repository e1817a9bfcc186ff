# SPDX-License-Identifier: BSD-3-Clause
"""The page of the guide on layers does what it says."""

import re
from pathlib import Path

from skpool.layers import CRITERIA, LAYER_POOLS, LayerAggregator

PAGE = Path(__file__).resolve().parents[2] / "docs" / "layers.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_every_snippet_runs():
    names = {}
    for block in re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), names)
    assert names["search"].best_score_ > 0.5
    assert names["kept"].shape == (300, 65, 128)


def test_every_recipe_is_a_step():
    recipes = re.findall(r"`(LayerAggregator\([^`]*\))`", TEXT)
    assert len(recipes) > 8
    for recipe in recipes:
        model = eval(
            recipe.replace(", ...", ""), {"LayerAggregator": LayerAggregator, "l": 3, "n": 4}
        )
        assert model.get_params()["layer_pool"] in {*LAYER_POOLS, "weighted"}


def test_every_criterion_has_a_line():
    for name in CRITERIA:
        assert f'| `"{name}"` |' in TEXT
