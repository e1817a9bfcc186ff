# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures of the store tests: both stores, and the module of known rows."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import skpool
from skpool.stores import FeatureStore, MemoryCache

# A program, not a module to look for doctests in.
collect_ignore = ["_driver.py"]

_HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def filling():
    """The module `_filling`, which the processes of some tests import as a plain file too."""
    spec = importlib.util.spec_from_file_location("_filling", _HERE / "_filling.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _environment():
    """Return an environment in which the skpool under test can be imported."""
    root = str(Path(skpool.__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path}


@pytest.fixture
def run_python():
    """Run a Python command line in a process of its own; it must end well and print nothing."""

    def run(*arguments):
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, env=_environment()
        )
        assert done.returncode == 0 and not done.stdout + done.stderr, done.stderr

    return run


@pytest.fixture(scope="session")
def driver():
    """Call a function of `_driver.py` in one process, whose children may be forked and killed."""
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, str(_HERE / "_driver.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=_environment(),
        ) as process,
    ):

        def call(*command):
            process.stdin.write(json.dumps(command) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            errors.seek(0)
            text = errors.read()
            assert answer and not text, text
            return json.loads(answer)

        yield call


@pytest.fixture(params=["memory", "directory", "directory, small blocks"])
def store(request, tmp_path):
    """Each implementation of the protocol."""
    if request.param == "memory":
        made = MemoryCache(max_bytes=2**30)
    elif request.param == "directory":
        made = FeatureStore(tmp_path / "store")
    else:
        made = FeatureStore(tmp_path / "store", block_bytes=1000)
    with made:
        yield made
