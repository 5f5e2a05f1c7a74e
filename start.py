#!/usr/bin/env python3
"""Set Cellweave up in this folder and open it; with --test, set it up and run the tests.

    python3 start.py                    open the window (without a screen: train the example and leave its results)
    python3 start.py FILE|RUN_FOLDER    open the window with that
    python3 start.py --test [ARG ...]   run the tests as CI does; arguments go to pytest

It needs Python 3.11 or later and nothing else: a virtual environment is made in .venv beside this file, and
everything is installed there. Run again it starts at once; after an update of the checkout it brings .venv up to date.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

OLDEST = (3, 11)
ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "cellweave-setup.json"
LOG = VENV / "cellweave-setup.log"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
FIRST_LOOK = "cellweave-first-look"
QUIET = {"QT_QPA_PLATFORM": "offscreen", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "MPLBACKEND": "Agg"}


def say(text):
    """Print one line at once."""
    print(text, flush=True)


def leave(text, code=4):
    """End with a sentence that says why."""
    print(text, file=sys.stderr, flush=True)
    sys.exit(code)


def need_new_python():
    """Go on with a newer Python where this one is too old and another is there."""
    if sys.version_info[:2] >= OLDEST:
        return
    for name in ("python3.13", "python3.12", "python3.11"):
        other = shutil.which(name)
        if other:
            sys.exit(subprocess.call([other, str(Path(__file__).resolve()), *sys.argv[1:]]))
    leave("Cellweave needs Python 3.11 or later; this is {}.{}. Install a newer one and run start.py with it.".format(*sys.version_info[:2]), 2)


def wanted_stamp(extra):
    """Return what .venv must have been made from to be up to date."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "setup.py"):
        digest.update((ROOT / name).read_bytes())
    return {"project": digest.hexdigest(), "python": list(sys.version_info[:3]), "folder": str(ROOT), "extras": extra}


def up_to_date(wanted):
    """Return whether .venv is what is wanted, or more."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    same = all(stamp.get(key) == wanted[key] for key in ("project", "python", "folder"))
    return same and set(wanted["extras"]) <= set(stamp.get("extras", [])) and PYTHON.exists()


def set_up(extra):
    """Make .venv and install Cellweave into it, unless that was done already."""
    wanted = wanted_stamp(extra)
    if up_to_date(wanted):
        return
    started = time.monotonic()
    make_environment(wanted)
    say("Installing Cellweave and what it needs into .venv (some gigabytes, some minutes the first time) ...")
    target = str(ROOT) + ("[" + ",".join(extra) + "]" if extra else "")
    install([str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "-e", target])
    STAMP.write_text(json.dumps(wanted) + "\n", encoding="utf-8")
    say(f"Set up in {time.monotonic() - started:.0f} s.")


def make_environment(wanted):
    """Make .venv; one of another Python or from another folder is made anew."""
    try:
        old = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        old = None
    keep = old is not None and all(old.get(key) == wanted[key] for key in ("python", "folder"))
    STAMP.unlink(missing_ok=True)
    if keep and PYTHON.exists():
        return
    say("Making a virtual environment in .venv ...")
    result = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        version = "{}.{}".format(*sys.version_info[:2])
        details = (result.stdout + result.stderr).strip().splitlines()
        leave(
            "The virtual environment could not be made: {}\nOn Debian and Ubuntu this installs what Python needs for it:\n"
            "  apt-get update && apt-get install -y python{}-venv".format(details[-1] if details else "no reason given", version)
        )


def install(command):
    """Run pip, showing one line a package; the whole output goes to a log."""
    last, started = deque(maxlen=12), time.monotonic()
    terminal = sys.stdout.isatty()
    with LOG.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=str(ROOT))
        try:
            for line in process.stdout:
                log.write(line)
                last.append(line.rstrip())
                word = line.split()
                if word and word[0] in ("Collecting", "Downloading", "Installing", "Building", "Successfully"):
                    text = " ".join(word[:2])[: shutil.get_terminal_size().columns - 12]
                    if terminal:
                        print(f"\r\033[K  {time.monotonic() - started:4.0f} s  {text}", end="", flush=True)
                    elif word[0] != "Downloading":
                        say("  " + text)
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            leave("\nSet-up was interrupted; the next start goes on from here.", 3)
        code = process.wait()
    if terminal:
        print("\r\033[K", end="")
    if code != 0:
        text = "\n  ".join(last)
        leave(
            f"Installing failed. pip's last words were:\n  {text}\nCheck the network connection and the free disk space"
            f" (8 GB), then run this again. The whole log is in {LOG}."
        )


def qt_report(window):
    """Ask the installed program what Qt lacks here."""
    command = [str(PYTHON), "-m", "cellweave.core.system", *(["--window"] if window else [])]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=str(ROOT))
    if result.returncode != 0:
        leave(f"The installed program does not start:\n{result.stderr.strip()}\nRemove the folder .venv and run this again.")
    return json.loads(result.stdout.strip().splitlines()[-1])


def explain(report):
    """Say what Qt lacks and what installs it."""
    say(report["problem"])
    if report["apt"]:
        say("On Debian and Ubuntu this line installs them (as root, or with sudo before each apt-get):\n  " + report["apt"])


def open_program(arguments):
    """Open the window, or do the main job without one where there is no screen."""
    set_up([])
    report = qt_report(window=True)
    if report["screen"] and not report["problem"]:
        command = [str(PYTHON), "-m", "cellweave.app", *arguments]
    elif arguments:
        why = report["problem"] if report["screen"] else "This machine has no screen."
        leave(f"{why} Without a window use the command line: {PYTHON.parent / 'cellweave'} --help", 2)
    else:
        if report["screen"]:
            explain(report)
        else:
            say("This machine has no screen (neither DISPLAY nor WAYLAND_DISPLAY is set), so no window can be shown.")
        say("The bundled example is trained without a window instead; its results stay in a folder.")
        command = [str(PYTHON), "-m", "cellweave.core.cli", "first-look", "--out", FIRST_LOOK]
    return run(command)


def run(command, environment=None):
    """Run a command and return its exit code; Ctrl-C is left to the command."""
    process = subprocess.Popen(command, env=environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the child got the same signal and ends in its own time


def install_system_libraries(report):
    """Install what Qt lacks, where this is root on Debian or Ubuntu."""
    if not report["apt"] or shutil.which("apt-get") is None or os.geteuid() != 0:
        return
    say("Installing system libraries: " + report["apt"])
    subprocess.run(["sh", "-c", report["apt"]], env=dict(os.environ, DEBIAN_FRONTEND="noninteractive"), check=False)


def link_sources():
    """Lay links in build/types, through which mypy finds the sources under their import names."""
    folder = ROOT / "build" / "types" / "cellweave"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("app", "core", "resources"):
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(Path("..", "..", "..", name), target_is_directory=True)


def run_tests(arguments):
    """Run the linter, the import contracts, the type checker and the tests; return 0 where all pass."""
    machine = "--install-system-libraries" in arguments
    arguments = [item for item in arguments if item != "--install-system-libraries"]
    set_up(["dev"])
    report = qt_report(window=False)
    if report["problem"] and machine:
        install_system_libraries(report)
        report = qt_report(window=False)
    if report["problem"]:
        explain(report)
        return 4
    tools, environment = PYTHON.parent, dict(os.environ, **QUIET)
    checks = []
    if not arguments:
        link_sources()
        checks += [
            ("ruff", [str(tools / "ruff"), "check", "."]),
            ("import contracts", [str(tools / "lint-imports")]),
            ("mypy", [str(tools / "mypy")]),
        ]
    checks.append(("pytest", [str(PYTHON), "-m", "pytest", *arguments]))
    failed = []
    os.chdir(str(ROOT))
    for name, command in checks:
        say(f"== {name}")
        started = time.monotonic()
        if run(command, environment) != 0:
            failed.append(name)
        say(f"   {name}: {time.monotonic() - started:.0f} s")
    say("Failed: {}.".format(", ".join(failed)) if failed else "All checks passed.")
    return 1 if failed else 0


def main():
    """Do what the command line says."""
    need_new_python()
    arguments = sys.argv[1:]
    if "-h" in arguments or "--help" in arguments:
        say(__doc__.strip())
        return 0
    if arguments and arguments[0] == "--test":
        return run_tests(arguments[1:])
    unknown = [item for item in arguments if item.startswith("-")]
    if unknown:
        leave(f"start.py has no option {unknown[0]}; python3 start.py --help lists what it can do.", 2)
    return open_program([str(Path(item).resolve()) for item in arguments])


if __name__ == "__main__":
    sys.exit(main())
