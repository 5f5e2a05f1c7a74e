"""Where the program keeps its settings, its runs and its log."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_data_path


def home() -> Path:
    """Return the program's own folder: ``$CELLWEAVE_HOME``, or the user's data folder of the platform."""
    named = os.environ.get("CELLWEAVE_HOME", "").strip()
    return Path(named).expanduser() if named else user_data_path("cellweave", appauthor=False)


def settings_file() -> Path:
    """Return the file of the settings."""
    return home() / "settings.json"


def runs_folder() -> Path:
    """Return the folder in which the window makes run folders."""
    return home() / "runs"


def trash_folder() -> Path:
    """Return the folder that deleted runs are moved to."""
    return home() / "trash"


def presets_folder() -> Path:
    """Return the folder of the user's own presets."""
    return home() / "presets"


def log_file() -> Path:
    """Return the file of the session log."""
    return home() / "log.txt"


def masked(text: str) -> str:
    """Return ``text`` with the user's home folder and name replaced, for reports that are sent away."""
    own = str(Path.home())
    result = text.replace(str(home()), "<cellweave>")
    if len(own) > 1:
        result = result.replace(own, "~")
    name = Path.home().name
    for before in ("/home/", "/Users/", "C:\\Users\\"):
        if name:
            result = result.replace(before + name, before + "<user>")
    return result
