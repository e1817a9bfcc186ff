# SPDX-License-Identifier: BSD-3-Clause
"""Arrows between the rooms point one way: the import statements of every file are read."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import skpool

ROOT = Path(skpool.__file__).parent
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))

LEAVES = {"", "_config", "exceptions", "utils"}
ESTIMATORS = LEAVES | {"base", "statistics"}
# Which rooms each room may import; "" is `skpool` itself, which holds the version and the
# configuration. What is not named here is forbidden, and a room without a line is an error.
ALLOWED = {
    "": {"_config"},
    "_config": set(),
    "exceptions": set(),
    "utils": {"", "_config", "exceptions"},
    "inputs": LEAVES,
    "backbones": LEAVES,
    "statistics": LEAVES,
    "stores": LEAVES,
    "extraction": LEAVES | {"inputs", "backbones", "pooling", "stores"},
    "training": LEAVES | {"stores"},
    "pooling": LEAVES | {"statistics", "stores", "training"},
    "inspection": LEAVES | {"metrics"},
    "metrics": LEAVES,
    "base": LEAVES | {"statistics"},
    "layers": ESTIMATORS | {"stores", "pooling"},
    "preprocessing": ESTIMATORS | {"stores"},
    "prototypes": ESTIMATORS,
    "neighbors": ESTIMATORS,
    "discriminant": ESTIMATORS,
    "linear_model": ESTIMATORS | {"preprocessing"},
    "probing": ESTIMATORS | {"linear_model", "pooling", "preprocessing", "stores", "training"},
    "distributed": LEAVES | {"inputs", "extraction", "pooling", "stores"},
    "model_selection": LEAVES | {"base", "metrics", "statistics", "stores"},
    "few_shot": ESTIMATORS
    | {
        "discriminant",
        "linear_model",
        "model_selection",
        "preprocessing",
        "prototypes",
        "training",
    },
    "pipeline": ESTIMATORS | {"preprocessing", "pooling", "layers", "prototypes", "stores"},
    "continual": ESTIMATORS
    | {
        "linear_model",
        "model_selection",
        "pipeline",
        "preprocessing",
        "probing",
        "prototypes",
        "training",
    },
}
# Like tests, these use every room, and no room uses them.
CONSUMERS = ("utils/discovery.py", "utils/estimator_checks.py", "utils/_estimator_checks/")
CONSUMER_MODULES = ("utils.discovery", "utils.estimator_checks", "utils._estimator_checks")

# What `pip install skpool` brings; anything else is optional and imported where it is used.
REQUIRED = {"PIL", "joblib", "numpy", "safetensors", "scipy", "sklearn", "torch"}
MODEL_LIBRARIES = {"open_clip", "sentence_transformers", "timm", "torchvision", "transformers"}
# Rooms that know of files, pixels or weights.
RAW_ROOMS = {"backbones", "extraction", "inputs", "stores", "training", "utils"}


class Import(NamedTuple):
    """One imported module or name, where it stands, and whether on import of the file."""

    module: str
    names: tuple[str, ...]
    level: int
    at_top: bool
    line: int


@cache
def imports_of(file: str) -> tuple[Import, ...]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    inside = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for node in ast.walk(outer)
    }
    found = []
    for node in ast.walk(tree):
        top = id(node) not in inside
        if isinstance(node, ast.Import):
            found += [Import(alias.name, (), 0, top, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            found.append(Import(node.module or "", names, node.level, top, node.lineno))
    return tuple(found)


def room_of(file: str) -> str:
    first = file.split("/")[0].removesuffix(".py")
    return "" if first == "__init__" else first


def is_consumer(file: str) -> bool:
    return file.startswith(CONSUMERS)


def internal(file: str) -> Iterator[tuple[str, Import]]:
    """The modules of the package that a file imports, as dotted names below `skpool`."""
    for item in imports_of(file):
        if item.module == "skpool":
            for name in item.names or ("",):
                below = (ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file()
                yield (name if below else ""), item
        elif item.module.startswith("skpool."):
            module = item.module.removeprefix("skpool.")
            for name in item.names or ("",):
                path = ROOT / module.replace(".", "/") / name
                below = path.is_dir() or path.with_suffix(".py").is_file()
                yield (f"{module}.{name}" if name and below else module), item


def external(file: str) -> Iterator[tuple[str, Import]]:
    """The other packages that a file imports, without the standard library."""
    for item in imports_of(file):
        package = item.module.split(".")[0]
        if item.level == 0 and package != "skpool" and package not in sys.stdlib_module_names:
            yield package, item


def test_every_room_has_a_place():
    assert {room_of(file) for file in FILES} - set(ALLOWED) == set()


@pytest.mark.parametrize("file", FILES)
def test_no_relative_import(file):
    assert [item.line for item in imports_of(file) if item.level] == []


@pytest.mark.parametrize("file", [file for file in FILES if not is_consumer(file)])
def test_imports_only_rooms_below(file):
    room = room_of(file)
    wrong = {
        (target, item.line)
        for target, item in internal(file)
        if target.split(".")[0] not in ALLOWED[room] | {room}
    }
    assert wrong == set()


@pytest.mark.parametrize("file", [file for file in FILES if not is_consumer(file)])
def test_checks_and_discovery_are_imported_by_nobody(file):
    assert [t for t, _ in internal(file) if t.startswith(CONSUMER_MODULES)] == []


@pytest.mark.parametrize("file", FILES)
def test_no_private_module_or_name_of_another_room(file):
    wrong = []
    for target, item in internal(file):
        first, *rest = target.split(".")
        names = [name for name in item.names if name.startswith("_") and name != "_config"]
        names = [name for name in names if not name.startswith("__")]
        private = names or any(part.startswith("_") for part in rest)
        if first != room_of(file) and private:
            wrong.append((target, names, item.line))
    assert wrong == []


@pytest.mark.parametrize("file", FILES)
def test_required_libraries_alone_at_module_top(file):
    optional = {(p, item.line) for p, item in external(file) if item.at_top and p not in REQUIRED}
    assert optional == set()


@pytest.mark.parametrize("file", FILES)
def test_model_and_image_libraries_only_in_the_raw_rooms(file):
    if room_of(file) in RAW_ROOMS:
        return
    wrong = {p for p, _ in external(file)} & (MODEL_LIBRARIES | {"PIL", "safetensors"})
    assert wrong == set()


def test_faiss_is_imported_in_one_function_of_neighbors():
    found = [(file, item) for file in FILES for p, item in external(file) if p == "faiss"]
    assert len({file for file, _ in found}) == 1
    assert all(room_of(file) == "neighbors" and not item.at_top for file, item in found)


def test_top_level_imports_the_configuration_alone():
    assert [item.module for item in imports_of("__init__.py")] == ["skpool._config"]


@pytest.mark.parametrize("file", FILES)
def test_no_star_import(file):
    assert [item.line for item in imports_of(file) if "*" in item.names] == []


# Imported one after the other in one fresh process; what is loaded after each must not hold these.
HEAVY = {"faiss", "matplotlib", "pandas", "timm", "torchvision", "transformers"}
RAW = {"PIL", "skpool.backbones", "skpool.extraction", "skpool.inputs"}
STAGES = {
    "skpool": {"numpy", "sklearn", "torch"},
    # What scikit-learn loads by itself (pandas, where there is one) is not our doing.
    "sklearn.pipeline": None,
    "skpool.base": RAW | {"skpool.stores", "skpool.pooling"},
    "skpool.inspection": RAW | {"skpool.stores", "skpool.pooling"},
    "skpool.prototypes": RAW | {"skpool.stores", "skpool.pooling"},
    "skpool.discriminant": RAW | {"skpool.stores", "skpool.pooling"},
    "skpool.neighbors": RAW | {"skpool.stores", "skpool.pooling"},
    "skpool.preprocessing": RAW | {"skpool.pooling"},
    "skpool.linear_model": RAW | {"skpool.pooling"},
    "skpool.pipeline": RAW | {"skpool.pooling"},
    "skpool.pooling": RAW,
    "skpool.layers": RAW,
    "skpool.extraction": set(),
    "skpool.distributed": {"dask", "distributed"},
}


@pytest.fixture(scope="module")
def loaded_after():
    """For every stage the modules of interest that are loaded after its import."""
    interesting = sorted(HEAVY.union(*filter(None, STAGES.values())))
    lines = ["import sys, importlib"]
    for stage in STAGES:
        lines.append(f"importlib.import_module({stage!r})")
        lines.append(f"print([m for m in {interesting!r} if m in sys.modules])")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
        check=True,
    )
    found = map(ast.literal_eval, done.stdout.splitlines())
    return dict(zip(STAGES, map(set, found), strict=True))


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage.startswith("skpool")])
def test_importing_a_room_loads_nothing_it_must_not(stage, loaded_after):
    loaded = loaded_after[stage]
    if stage != "skpool":
        loaded = loaded - loaded_after["sklearn.pipeline"]
    assert loaded & (HEAVY | STAGES[stage]) == set()
