# SPDX-License-Identifier: BSD-3-Clause
"""Importing classes and functions of a cloned repository as they are, on the CPU.

Nothing is copied: a module is read from its clone when it is needed. Two things differ from a
plain import. The device: `.cuda()` and "cuda" read `.cpu()` and "cpu". The surroundings: the
`__init__.py` of a package is not run, and libraries that only load images, networks or loggers are
replaced by stand-ins that do nothing.
"""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

ON_CPU = {".cuda()": ".cpu()", "'cuda'": "'cpu'", '"cuda"': '"cpu"'}


def on_cpu(source: str) -> str:
    """Return the source with its devices replaced."""
    for theirs, here in ON_CPU.items():
        source = source.replace(theirs, here)
    return source


class _FromClone(SourceFileLoader):
    def source_to_code(self, data: bytes, path: str, *args: object, **options: object) -> object:
        return super().source_to_code(on_cpu(data.decode()), path, *args, **options)

    def path_stats(self, path: str) -> dict:
        # Says that there is no compiled file to read or to write.
        raise OSError


class _StandIn(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__ = [], spec
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Clone(MetaPathFinder):
    def __init__(self, root: Path, absent: Iterable[str]):
        self.root, self.absent = root, tuple(absent)

    def find_spec(
        self, fullname: str, path: Iterable[str] | None = None, target: object = None
    ) -> ModuleSpec | None:
        if any(fullname == name or fullname.startswith(f"{name}.") for name in self.absent):
            return ModuleSpec(fullname, _StandIn(), is_package=True)
        name = fullname.rpartition(".")[2]
        for folder in path or [self.root]:
            if not Path(folder).is_relative_to(self.root):
                continue
            file = Path(folder) / f"{name}.py"
            if file.exists():
                loader = _FromClone(fullname, str(file))
                return spec_from_file_location(fullname, file, loader=loader)
            if file.with_suffix("").is_dir():
                spec = ModuleSpec(fullname, None, is_package=True)
                spec.submodule_search_locations = [str(file.with_suffix(""))]
                return spec
        return None


def load(root: Path, name: str, absent: Iterable[str] = ()) -> ModuleType:
    """Import a module of a clone; clones share names such as `utils`, so nothing stays behind."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not there; clone the repository into it.")
    before, finder = dict(sys.modules), _Clone(root.resolve(), absent)
    hidden = {key for key in before if (root / f"{key}.py").exists() or (root / key).is_dir()}
    for key in hidden:
        del sys.modules[key]
    sys.meta_path.insert(0, finder)
    try:
        return importlib.import_module(name)
    finally:
        sys.meta_path.remove(finder)
        for key in [*sys.modules]:
            spec = getattr(sys.modules[key], "__spec__", None)
            if isinstance(getattr(spec, "loader", None), (_StandIn, _FromClone)) or key in hidden:
                del sys.modules[key]
        sys.modules.update({key: before[key] for key in hidden})


def functions(file: Path, names: Iterable[str], **scope: object) -> ModuleType:
    """Take functions out of a script that would train and test if it were run."""
    tree = ast.parse(on_cpu(file.read_text()))
    wanted = set(names)
    tree.body = [x for x in tree.body if isinstance(x, ast.FunctionDef) and x.name in wanted]
    module = ModuleType(file.stem)
    vars(module).update(scope)
    exec(compile(tree, str(file), "exec"), vars(module))
    return module


def commit(root: Path) -> str:
    """Return the commit of a clone, abbreviated."""
    command = ["git", "-C", str(root), "rev-parse", "--short=10", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "an unknown commit"
