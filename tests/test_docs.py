# SPDX-License-Identifier: BSD-3-Clause
"""The pages of the guide do what they say."""

import re
import sys
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.utils.estimator_checks import check_estimator as check_as_scikit_learn

from skpool.utils.estimator_checks import check_estimator

DOCS = Path(__file__).resolve().parents[1] / "docs"
README = DOCS.parent / "README.md"


def _blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


def test_every_snippet_of_the_user_guide_runs():
    names = {}
    for block in _blocks(DOCS / "user_guide.md"):
        exec(compile(block, "user_guide.md", "exec"), names)
        last = block.strip().splitlines()[-1]
        if last.startswith("np.allclose("):
            assert eval(last, names)
    assert names["search"].best_score_ > 0.5


def test_pipeline_of_the_readme_runs_on_the_network_that_ships():
    code = _blocks(README)[0]
    for shown, here in [
        ('"hf:facebook/dinov2-small", store="features"', '"glyph"'),
        ("Whitening(256)", "Whitening(16)"),
        ("n_jobs=2", "cv=3"),
    ]:
        assert shown in code
        code = code.replace(shown, here)
    X, y = load_digits(return_X_y=True)
    images = (X.reshape(-1, 8, 8, 1) * 255 / 16).round().astype(np.uint8)[:400]
    y = y[:400]
    names = {"paths": images[y < 7], "y": y[y < 7], "new_paths": images[y >= 7], "new_y": y[y >= 7]}
    exec(compile(code, "README.md", "exec"), names)
    assert list(names["model"].classes_) == list(range(10))
    assert (names["model"].predict(images) == y).mean() > 0.9


def test_pooling_of_the_page_on_adding_is_a_complete_pooling(monkeypatch):
    code = _blocks(DOCS / "adding.md")[0]
    assert len(code.splitlines()) < 80
    # A module of its own, so that the checks can pickle the class by name.
    module = ModuleType("page_on_adding")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, "adding.md", "exec"), vars(module))
    pooling = module.LogSumExpPooling
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_as_scikit_learn(pooling())
    check_estimator(pooling())
    x = np.random.default_rng(0).normal(size=(3, 7, 4))
    expected = np.log(np.exp(5 * x).mean(axis=1)) / 5
    np.testing.assert_allclose(pooling(5.0).fit_transform(x), expected)
    np.testing.assert_allclose(pooling(1e-6).fit_transform(x), x.mean(axis=1), atol=1e-4)
    assert isinstance(pooling().fit_transform(torch.from_numpy(x)), torch.Tensor)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")) + [README], ids=lambda p: p.name)
def test_links_and_pictures_of_a_page_exist(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
