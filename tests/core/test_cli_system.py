"""What is found of the machine: screen, libraries, the line that installs them."""

from __future__ import annotations

import json
import re

import pytest

from cellweave.core import system

LDD = """\
\tlinux-vdso.so.1 (0x00007ffd)
\tlibGL.so.1 => not found
\tlibstdc++.so.6 => /usr/lib/libstdc++.so.6 (0x00007f)
\tlibEGL.so.1 => not found
\tlibGL.so.1 => not found
"""


@pytest.mark.parametrize(
    ("environment", "expected"), [({}, False), ({"DISPLAY": ""}, False), ({"DISPLAY": ":0"}, True), ({"WAYLAND_DISPLAY": "wayland-0"}, True)]
)
def test_a_screen_is_what_the_environment_names(monkeypatch, environment: dict, expected: bool) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    assert system.has_screen(environment) is expected
    monkeypatch.setattr("sys.platform", "darwin")
    assert system.has_screen(environment) is True


def test_missing_libraries_are_named_with_the_line_that_installs_them() -> None:
    missing = system.libraries_not_found(LDD)
    assert missing == ["libGL.so.1", "libEGL.so.1"]
    assert system.apt_line(missing).endswith("apt-get install -y --no-install-recommends libgl1 libegl1")


def test_no_line_is_better_than_a_wrong_one() -> None:
    assert system.apt_line([]) == ""
    assert system.apt_line(["libGL.so.1", "libunheard-of.so.7"]) == ""


def test_every_package_has_a_debian_name() -> None:
    assert all(re.fullmatch(r"[a-z0-9.+-]+", name) for name in system.APT_PACKAGES.values())


def test_libraries_that_are_missing_make_a_report(monkeypatch) -> None:
    monkeypatch.setattr(system, "_missing_libraries", lambda folder, *, window: ["libxcb-cursor.so.0"] if window else [])
    report = system.qt_report(window=True)
    assert not report.usable
    assert "libxcb-cursor.so.0" in report.problem
    assert "libxcb-cursor0" in report.apt
    assert system.qt_report(window=False).usable


def test_no_binding_is_a_sentence(monkeypatch) -> None:
    monkeypatch.setattr(system, "qt_binding", lambda: ("", None))
    assert "install PyQt6 or PySide6" in system.qt_report(window=True).problem


def test_what_the_start_script_reads(capsys) -> None:
    assert system.main([]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert set(tree) == {"screen", "binding", "missing", "apt", "problem"}


def test_cores_and_devices() -> None:
    assert system.usable_cores() >= 1
    cpu = system.devices()[-1]
    assert (cpu.kind, cpu.cores) == ("cpu", system.usable_cores())
    assert cpu.memory_bytes > 100_000_000
    assert system.cpu_name()
