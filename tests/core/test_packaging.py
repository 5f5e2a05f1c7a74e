"""What is installed is what is in the tree: under the name cellweave and under no other."""

from __future__ import annotations

import ast
import hashlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points, requires, version
from importlib.resources import files
from pathlib import Path

import pytest

from cellweave.core.example import EXAMPLE_SHA256, example_changes, example_path
from cellweave.core.spec import RunSpec, from_toml, presets, to_toml

ROOT = Path(__file__).resolve().parents[2]
ROOTS = ("app", "core", "resources")
NOT_SHIPPED = {"__pycache__", ".DS_Store"}


def shipped_files() -> set[str]:
    found = set()
    for root in ROOTS:
        for path in (ROOT / root).rglob("*"):
            if path.is_file() and not NOT_SHIPPED & set(path.parts) and path.suffix != ".pyc":
                found.add(f"cellweave/{path.relative_to(ROOT).as_posix()}")
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel, built from a copy so that no build folder stays in the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    copy.mkdir()
    for name in ROOTS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns(*NOT_SHIPPED, "*.pyc"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return zipfile.ZipFile(next(folder.glob("cellweave-*.whl")))


def test_the_wheel_holds_every_file_of_the_tree_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = shipped_files()
    assert inside - expected == set()
    assert expected - inside == set()


def test_nothing_called_app_or_core_is_installed(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"cellweave", f"cellweave-{version('cellweave')}.dist-info"}


def test_the_wheel_says_what_it_needs(wheel: zipfile.ZipFile) -> None:
    name = next(name for name in wheel.namelist() if name.endswith("METADATA"))
    metadata = wheel.read(name).decode()
    assert "Requires-Python: >=3.11" in metadata
    assert any(item.endswith("LICENSE") for item in wheel.namelist())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for need in project["dependencies"]:
        assert f"Requires-Dist: {need.split('>')[0].split('<')[0].split('=')[0]}" in metadata


def test_the_command_is_installed() -> None:
    entry = next(iter(entry_points(group="console_scripts", name="cellweave")))
    assert entry.value == "cellweave.app.__main__:main"
    assert callable(entry.load())


def test_the_peers_are_no_dependency() -> None:
    needs = " ".join(requires("cellweave") or [])
    for name in ("scvi-tools", "lightning", "jax", "scmidas"):
        assert name not in needs


def test_the_example_is_the_cited_file() -> None:
    assert hashlib.sha256(example_path().read_bytes()).hexdigest() == EXAMPLE_SHA256
    assert EXAMPLE_SHA256 in files("cellweave.resources").joinpath("example", "SOURCE.md").read_text(encoding="utf-8")
    spec = RunSpec().with_changes(example_changes())
    assert spec.covariates.batch == "batch"
    assert from_toml(to_toml(spec)) == spec


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_preset_is_a_valid_set_of_changes(name: str) -> None:
    preset = presets()[name]
    assert preset.title
    assert preset.help.endswith(".")
    assert preset.changes
    spec = preset.apply(RunSpec().with_changes({"covariates.batch": "batch"}))
    assert spec.model.kind == preset.kind
    assert from_toml(to_toml(spec)) == spec
    assert not [path for path in preset.changes if path.startswith(("data.", "covariates."))], "a preset leaves the data alone"


def test_scvi_defaults_are_what_a_spec_has_by_itself() -> None:
    """Field for field, save for early stopping, which scvi-tools has switched off."""
    spec = presets()["scvi-defaults"].apply(RunSpec())
    assert spec.model == RunSpec().model
    assert spec.training == RunSpec().with_changes({"training.early_stopping": False}).training


def test_the_start_script_is_understood_by_a_python_that_is_too_old() -> None:
    """So that it can say so instead of ending in a syntax error."""
    ast.parse((ROOT / "start.py").read_text(encoding="utf-8"), feature_version=(3, 6))


def test_everything_the_readme_shows_or_names_is_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert shown, "a picture says what it is"
    for name in [*shown, *re.findall(r"`((?:resources|benchmarks|docs)/[\w./-]+)`", text)]:
        assert (ROOT / name).exists(), name
