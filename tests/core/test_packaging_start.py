"""The start script: what it does before anything is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def start(tmp_path, monkeypatch):
    """The script as a module, working on a folder of its own."""
    spec = importlib.util.spec_from_file_location("start_script", ROOT / "start.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("pyproject.toml", "setup.py"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    venv = tmp_path / ".venv"
    venv.mkdir()
    (venv / "python").touch()
    values = {"ROOT": tmp_path, "VENV": venv, "STAMP": venv / "stamp.json", "LOG": venv / "log", "PYTHON": venv / "python"}
    for name, value in values.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_an_environment_is_up_to_date_until_something_changes(start, tmp_path) -> None:
    plain, dev = start.wanted_stamp([]), start.wanted_stamp(["dev"])
    assert not start.up_to_date(plain)
    start.STAMP.write_text(json.dumps(plain), encoding="utf-8")
    assert start.up_to_date(plain)
    assert not start.up_to_date(dev), "the tests need more"
    start.STAMP.write_text(json.dumps(dev), encoding="utf-8")
    assert start.up_to_date(plain), "what the tests need is enough for the program"
    with (tmp_path / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert not start.up_to_date(start.wanted_stamp([]))


def test_a_broken_stamp_or_a_lost_interpreter_means_setting_up_again(start) -> None:
    wanted = start.wanted_stamp([])
    start.STAMP.write_text("{ half", encoding="utf-8")
    assert not start.up_to_date(wanted)
    start.STAMP.write_text(json.dumps({**wanted, "folder": "/elsewhere"}), encoding="utf-8")
    assert not start.up_to_date(wanted), "a checkout that was moved has wrong paths inside its environment"
    start.STAMP.write_text(json.dumps(wanted), encoding="utf-8")
    start.PYTHON.unlink()
    assert not start.up_to_date(wanted)


def test_a_failed_installation_ends_with_pips_last_words_and_no_stamp(start, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        start.install([sys.executable, "-c", "print('Collecting cells'); print('No space left on device'); raise SystemExit(1)"])
    assert ended.value.code == 4
    said = capsys.readouterr()
    assert "Collecting cells" in said.out
    assert "No space left on device" in said.err
    assert "free disk space" in said.err
    assert "No space left on device" in start.LOG.read_text(encoding="utf-8")
    assert not start.STAMP.exists()


def test_without_a_screen_the_first_look_is_run(start, monkeypatch, capsys) -> None:
    ran = []
    monkeypatch.setattr(start, "set_up", lambda extra: None)
    monkeypatch.setattr(start, "qt_report", lambda window: {"screen": False, "problem": "", "apt": ""})
    monkeypatch.setattr(start, "run", lambda command: ran.append(command[1:]) or 0)
    assert start.open_program([]) == 0
    assert ran == [["-m", "cellweave.core.cli", "first-look", "--out", "cellweave-first-look"]]
    assert "This machine has no screen" in capsys.readouterr().out


def test_with_a_screen_the_window_is_opened_with_what_was_named(start, monkeypatch) -> None:
    ran = []
    monkeypatch.setattr(start, "set_up", lambda extra: None)
    monkeypatch.setattr(start, "qt_report", lambda window: {"screen": True, "problem": "", "apt": ""})
    monkeypatch.setattr(start, "run", lambda command: ran.append(command[1:]) or 0)
    assert start.open_program(["/data/cells.h5ad"]) == 0
    assert ran == [["-m", "cellweave.app", "/data/cells.h5ad"]]


def test_missing_libraries_are_named_and_the_work_is_done_all_the_same(start, monkeypatch, capsys) -> None:
    ran = []
    report = {"screen": True, "problem": "Qt needs system libraries that are not installed: libGL.so.1.", "apt": "apt-get install libgl1"}
    monkeypatch.setattr(start, "set_up", lambda extra: None)
    monkeypatch.setattr(start, "qt_report", lambda window: report)
    monkeypatch.setattr(start, "run", lambda command: ran.append(command[1:]) or 0)
    assert start.open_program([]) == 0
    assert "first-look" in ran[0]
    said = capsys.readouterr().out
    assert report["problem"] in said
    assert report["apt"] in said


@pytest.mark.parametrize("failing", [set(), {"mypy"}, {"pytest", "ruff"}])
def test_one_failed_check_fails_the_whole_but_all_are_run(start, monkeypatch, capsys, failing: set[str]) -> None:
    ran = []

    def run(command, environment) -> int:
        name = next(name for name in ("ruff", "lint-imports", "mypy", "pytest") if any(name in part for part in command))
        ran.append(name)
        assert environment["QT_QPA_PLATFORM"] == "offscreen"
        return int(name in failing)

    monkeypatch.chdir(start.ROOT)
    monkeypatch.setattr(start, "set_up", lambda extra: None)
    monkeypatch.setattr(start, "qt_report", lambda window: {"screen": False, "problem": "", "apt": ""})
    monkeypatch.setattr(start, "run", run)
    assert start.run_tests([]) == (1 if failing else 0)
    assert ran == ["ruff", "lint-imports", "mypy", "pytest"]
    said = capsys.readouterr().out
    assert ("All checks passed." in said) == (not failing)
    for name in failing:
        assert name in said.splitlines()[-1]


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_for_the_type_checker_lead_to_the_sources(start, tmp_path) -> None:
    for name in ("app", "core", "resources"):
        (tmp_path / name).mkdir()
    start.link_sources()
    start.link_sources()
    for name in ("app", "core", "resources"):
        assert (tmp_path / "build" / "types" / "cellweave" / name).resolve() == (tmp_path / name).resolve()


@pytest.mark.parametrize(("argv", "code", "words"), [(["--help"], 0, "--test"), (["--tset"], 2, "no option --tset")])
def test_help_and_typing_errors(argv: list[str], code: int, words: str) -> None:
    done = subprocess.run([sys.executable, str(ROOT / "start.py"), *argv], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert words in done.stdout + done.stderr
