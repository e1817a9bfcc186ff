# SPDX-License-Identifier: BSD-3-Clause
"""The limits of a process: set as a whole or not at all, and put back after a block."""

import os
import subprocess
import sys
import threading

import pytest

import skpool


@pytest.fixture(autouse=True)
def _restored():
    before = skpool.get_config()
    yield
    skpool.set_config(**before)


def test_get_config_is_a_copy():
    skpool.get_config()["cache_bytes"] = -1
    assert skpool.get_config()["cache_bytes"] >= 0


def test_set_config_leaves_other_options():
    before = skpool.get_config()
    skpool.set_config(max_pixels=7)
    assert skpool.get_config() == before | {"max_pixels": 7}


def test_zero_is_a_value_and_not_absent():
    skpool.set_config(cache_bytes=0)
    assert skpool.get_config()["cache_bytes"] == 0


@pytest.mark.parametrize("value", [-1, 1.5, "7", True, 2.0])
def test_bad_value_is_refused_and_changes_nothing(value):
    before = skpool.get_config()
    with pytest.raises(ValueError, match=r"max_pixels=.* whole number of at least 0"):
        skpool.set_config(cache_bytes=5, max_pixels=value)
    assert skpool.get_config() == before


def test_unknown_option_is_refused():
    with pytest.raises(TypeError, match="cache_size"):
        skpool.set_config(cache_size=1)


def test_config_context_puts_back_after_an_error():
    before = skpool.get_config()
    with pytest.raises(KeyError), skpool.config_context(cache_bytes=1, max_pixels=2):
        assert skpool.get_config() == before | {"cache_bytes": 1, "max_pixels": 2}
        raise KeyError
    assert skpool.get_config() == before


def test_config_contexts_nest():
    with skpool.config_context(cache_bytes=1):
        with skpool.config_context(cache_bytes=2):
            assert skpool.get_config()["cache_bytes"] == 2
        assert skpool.get_config()["cache_bytes"] == 1


def test_other_threads_see_the_limits():
    seen = []
    with skpool.config_context(max_pixels=11):
        thread = threading.Thread(target=lambda: seen.append(skpool.get_config()["max_pixels"]))
        thread.start()
        thread.join()
    assert seen == [11]


def in_process(**environment: str) -> subprocess.CompletedProcess:
    code = "import skpool; print(skpool.get_config()['cache_bytes'])"
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
    )


def test_environment_sets_the_default():
    assert in_process(SKPOOL_CACHE_BYTES="12345").stdout.strip() == "12345"


def test_bad_environment_is_named():
    done = in_process(SKPOOL_CACHE_BYTES="1GB")
    assert done.returncode != 0
    assert "SKPOOL_CACHE_BYTES='1GB' is not valid" in done.stderr
