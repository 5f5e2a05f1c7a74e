"""The walls of the house: what may not be imported where, and what may not be done anywhere."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "scanpy", "umap", "matplotlib", "anndata", "mudata", "sklearn", "igraph", "numba"}
QT = {"PyQt6", "PySide6", "PyQt5", "PySide2"}

WITHOUT_QT = """
import importlib, json, pkgutil, sys

class NoQt:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"PyQt6", "PySide6", "qtpy", "pyqtgraph", "superqt"} or name.startswith("cellweave.app"):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, NoQt())
import cellweave.core
names = [item.name for item in pkgutil.walk_packages(cellweave.core.__path__, "cellweave.core.") if not item.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(json.dumps(names))
"""
LIGHT = """
import json, sys
import {modules}
print(json.dumps(sorted(set(sys.modules) & set({heavy!r}))))
"""


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def imports_at_module_level(tree: ast.Module) -> Iterator[str]:
    """Names imported when the module is, so neither in a function nor for the type checker alone."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting.extend(node.orelse)
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            waiting.extend(child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt))
            if isinstance(node, ast.Try):
                waiting.extend(stmt for handler in node.handlers for stmt in handler.body)


def test_the_engine_imports_without_any_qt() -> None:
    names = run(WITHOUT_QT)
    assert "cellweave.core.runs.execute" in names
    assert "cellweave.core.cli.application" in names


@pytest.mark.parametrize("path", sources("app"), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_window_imports_nothing_heavy_before_it_is_needed(path: Path) -> None:
    found = set(imports_at_module_level(ast.parse(path.read_text(encoding="utf-8"))))
    assert {name for name in found if name.split(".")[0] in HEAVY} == set()


def test_the_specs_and_the_command_line_start_without_anything_heavy() -> None:
    modules = "cellweave.core.cli.application, cellweave.core.spec, cellweave.core.runs.folder, cellweave.core.example, cellweave.core.study"
    assert run(LIGHT.format(modules=modules, heavy=sorted(HEAVY))) == []


@pytest.mark.parametrize("path", [*sources("app"), *sources("core")], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_is_unpickled_and_no_binding_is_named(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call):
            named = {word.arg: word.value for word in node.keywords}
            name = ast.unparse(node.func)
            if name.endswith("torch.load"):
                assert ast.unparse(named.get("weights_only", ast.Constant(None))) == "True"
            if name in {"np.load", "numpy.load"}:
                assert ast.unparse(named.get("allow_pickle", ast.Constant(None))) == "False"
            assert not name.endswith(("read_pickle", "to_pickle"))
    assert not imported & (QT | {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"})


def test_the_engine_is_not_told_of_the_window() -> None:
    for path in sources("core"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert not node.module.startswith("cellweave.app"), path
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("cellweave.app") for alias in node.names), path
