# SPDX-License-Identifier: BSD-3-Clause
"""A missing library is missed with a remedy, one that fails to import likewise."""

import math
import sys

import pytest

from skpool.exceptions import MissingDependencyError
from skpool.utils import import_optional


def test_gives_the_module():
    assert import_optional("math", extra="hf", purpose="arithmetic") is math


def test_gives_a_submodule():
    module = import_optional("xml.dom", extra="hf", purpose="trees")
    assert module is sys.modules["xml.dom"]


def test_missing_library_names_purpose_library_and_extra():
    with pytest.raises(
        MissingDependencyError, match=r"Flying needs 'no_such_library'.*pip install 'skpool\[hf\]'"
    ):
        import_optional("no_such_library.wings", extra="hf", purpose="Flying")


@pytest.mark.parametrize("error", ["ImportError", "RuntimeError", "OSError"])
def test_library_that_fails_to_import_is_missed_too(error, tmp_path, monkeypatch):
    (tmp_path / "broken_library.py").write_text(f"raise {error}('wrong build')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_library", raising=False)
    with pytest.raises(MissingDependencyError, match="wrong build") as caught:
        import_optional("broken_library", extra="hf", purpose="A test")
    assert type(caught.value.__cause__).__name__ == error
