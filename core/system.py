"""What this machine has: versions, devices, a screen, and the system libraries that Qt needs.

Nothing here imports Qt: its binding is looked at from outside, so that a missing library is named instead of
ending the process. ``python -m cellweave.core.system --window`` prints the findings as JSON for the start script.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

PACKAGES = (
    "cellweave", "torch", "numpy", "scipy", "pandas", "anndata", "mudata", "scanpy", "umap-learn", "zarr", "h5py",
    "matplotlib", "pydantic", "qtpy", "PyQt6", "PySide6", "pyqtgraph",
)
# Debian's and Ubuntu's package of each library that Qt or its window plug-in asks for.
APT_PACKAGES = {
    "libglib-2.0.so.0": "libglib2.0-0",
    "libgthread-2.0.so.0": "libglib2.0-0",
    "libGL.so.1": "libgl1",
    "libEGL.so.1": "libegl1",
    "libxkbcommon.so.0": "libxkbcommon0",
    "libxkbcommon-x11.so.0": "libxkbcommon-x11-0",
    "libfontconfig.so.1": "libfontconfig1",
    "libfreetype.so.6": "libfreetype6",
    "libdbus-1.so.3": "libdbus-1-3",
    "libX11.so.6": "libx11-6",
    "libX11-xcb.so.1": "libx11-xcb1",
    "libxcb.so.1": "libxcb1",
    "libxcb-cursor.so.0": "libxcb-cursor0",
    "libxcb-icccm.so.4": "libxcb-icccm4",
    "libxcb-image.so.0": "libxcb-image0",
    "libxcb-keysyms.so.1": "libxcb-keysyms1",
    "libxcb-randr.so.0": "libxcb-randr0",
    "libxcb-render.so.0": "libxcb-render0",
    "libxcb-render-util.so.0": "libxcb-render-util0",
    "libxcb-shape.so.0": "libxcb-shape0",
    "libxcb-shm.so.0": "libxcb-shm0",
    "libxcb-sync.so.1": "libxcb-sync1",
    "libxcb-util.so.1": "libxcb-util1",
    "libxcb-xfixes.so.0": "libxcb-xfixes0",
    "libxcb-xinerama.so.0": "libxcb-xinerama0",
    "libxcb-xkb.so.1": "libxcb-xkb1",
    "libz.so.1": "zlib1g",
    "libzstd.so.1": "libzstd1",
    "libstdc++.so.6": "libstdc++6",
}
DRAWING_MODULES = ("QtCore", "QtGui", "QtWidgets")


@dataclass(frozen=True)
class Device:
    """Something a network can be computed on.

    Attributes
    ----------
    kind
        ``cpu``, ``cuda`` or ``mps``, as in ``training.device``.
    name
        What the maker calls it.
    memory_bytes
        Its memory; for the CPU that of the machine.
    cores
        Processor cores this process may use; 0 for other devices.
    """

    kind: str
    name: str
    memory_bytes: int
    cores: int = 0


@dataclass(frozen=True)
class QtReport:
    """Whether Qt can draw here.

    Attributes
    ----------
    binding
        ``PyQt6``, ``PySide6`` or empty where neither is installed.
    missing
        System libraries that are not there, for drawing and, where it was asked for, for a window.
    apt
        The line that installs them on Debian and Ubuntu; empty where nothing is missing or a name is not known.
    problem
        One sentence where Qt cannot be used, else empty.
    """

    binding: str
    missing: tuple[str, ...]
    apt: str
    problem: str

    @property
    def usable(self) -> bool:
        """Whether Qt can be imported and can draw."""
        return not self.problem


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide about results; what is absent is left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def usable_cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """Return the processor's model name, or its architecture where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def devices() -> list[Device]:
    """Return the devices a network can be computed on, the fastest kind first. Imports torch."""
    import psutil
    import torch

    memory = int(psutil.virtual_memory().total)
    found = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            found.append(Device("cuda", str(properties.name), int(properties.total_memory)))
    if torch.backends.mps.is_available():
        found.append(Device("mps", "Apple GPU", memory))
    found.append(Device("cpu", cpu_name(), memory, usable_cores()))
    return found


def has_screen(environment: Mapping[str, str] | None = None) -> bool:
    """Return whether a window can be shown: on Linux one of DISPLAY and WAYLAND_DISPLAY must be set."""
    if not sys.platform.startswith("linux"):
        return True
    environment = os.environ if environment is None else environment
    return bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"))


def qt_binding() -> tuple[str, Path | None]:
    """Return the installed Qt binding and its folder; it is found, not imported."""
    for name in ("PyQt6", "PySide6"):
        spec = find_spec(name)
        if spec is not None and spec.origin is not None:
            return name, Path(spec.origin).parent
    return "", None


def libraries_not_found(ldd_output: str) -> list[str]:
    """Return the libraries that ``ldd`` says are not found, each once, in its order."""
    names = [line.split("=>")[0].strip() for line in ldd_output.splitlines() if line.rstrip().endswith("=> not found")]
    return list(dict.fromkeys(names))


def apt_line(libraries: Iterable[str]) -> str:
    """Return the command that installs the libraries on Debian and Ubuntu; empty where one's package is not known."""
    libraries = list(libraries)
    if not libraries or any(name not in APT_PACKAGES for name in libraries):
        return ""
    packages = dict.fromkeys(APT_PACKAGES[name] for name in libraries)
    return f"apt-get update && apt-get install -y --no-install-recommends {' '.join(packages)}"


def qt_report(*, window: bool) -> QtReport:
    """Find out whether Qt can draw, without importing it into this process.

    Parameters
    ----------
    window
        Whether a real window is meant, which on X11 needs more libraries than drawing into memory.
    """
    binding, folder = qt_binding()
    if folder is None:
        return QtReport("", (), "", "No Qt binding is installed: install PyQt6 or PySide6.")
    missing = tuple(_missing_libraries(folder, window=window))
    if missing:
        problem = f"Qt needs system libraries that are not installed: {', '.join(missing)}."
        return QtReport(binding, missing, apt_line(missing), problem)
    return QtReport(binding, (), "", _import_problem())


def _missing_libraries(folder: Path, *, window: bool) -> list[str]:
    if not sys.platform.startswith("linux") or shutil.which("ldd") is None:
        return []
    parts = [path for module in DRAWING_MODULES for path in sorted(folder.glob(f"{module}.*so"))]
    plugins = folder / "Qt6" / "plugins" if (folder / "Qt6").is_dir() else folder / "Qt" / "plugins"
    # Under Wayland Qt has a plug-in that needs none of the xcb libraries.
    x11 = window and not os.environ.get("WAYLAND_DISPLAY")
    wanted = ["libqoffscreen.so", *(["libqxcb.so"] if x11 else [])]
    parts += [path for name in wanted if (path := plugins / "platforms" / name).exists()]
    found: dict[str, None] = {}
    for part in parts:
        result = subprocess.run(["ldd", str(part)], capture_output=True, text=True, check=False, timeout=60)
        found.update(dict.fromkeys(libraries_not_found(result.stdout)))
    return list(found)


def _import_problem() -> str:
    """Import the widgets in a process of their own; return one sentence where that fails."""
    environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen"}
    code = "from qtpy.QtWidgets import QApplication; QApplication([])"
    try:
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120, env=environment
        )
    except subprocess.TimeoutExpired:
        return "Qt did not start within two minutes."
    if result.returncode == 0:
        return ""
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    return f"Qt cannot start: {lines[-1].strip() if lines else f'it ended with code {result.returncode}'}."


def main(argv: list[str] | None = None) -> int:
    """Print as JSON whether there is a screen, and what :func:`qt_report` finds."""
    parser = argparse.ArgumentParser(prog="python -m cellweave.core.system")
    parser.add_argument("--window", action="store_true", help="ask for a real window, not only for drawing into memory")
    window = parser.parse_args(argv).window
    sys.stdout.write(json.dumps({"screen": has_screen(), **asdict(qt_report(window=window))}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
