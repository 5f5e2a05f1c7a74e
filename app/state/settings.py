"""Settings of the window: a versioned file whose unreadable parts are left out with a notice, never a reason to stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cellweave.core.files import write_json_atomic

VERSION = 1
RECENT = 15


class Settings(BaseModel):
    """What the window remembers between two starts.

    Attributes
    ----------
    theme
        ``system``, ``light`` or ``dark``.
    recent_data, recent_runs
        Absolute paths, newest first.
    last_folder
        Where file dialogs begin.
    geometry, layout
        The window's place and its docks, as Qt writes them, in base 64.
    step
        Which step of the workflow was open.
    shortcuts
        Keys that the user gave to actions, by the action's id.
    roles
        Roles given to obs columns, by the names of the columns of the file (see ``column_key``).
    colour_by
        Columns shown on the embedding, by the same key.
    colours
        Colours that the person gave to levels, by column and level.
    last_spec
        The spec being edited, as TOML, so that nothing is lost in a crash.
    active_run
        Folder of the run that was training, so that it is offered again after a crash.
    last_run
        Folder of the run that was shown last; empty where none was.
    last_view
        The view that the person chose last, or that was in front of the run shown last.
    """

    model_config = ConfigDict(validate_assignment=True)

    version: int = VERSION
    theme: Literal["system", "light", "dark"] = "system"
    recent_data: list[str] = Field(default_factory=list)
    recent_runs: list[str] = Field(default_factory=list)
    last_folder: str = ""
    geometry: str = ""
    layout: str = ""
    step: int = Field(default=0, ge=0, le=4)
    shortcuts: dict[str, str] = Field(default_factory=dict)
    roles: dict[str, dict[str, Any]] = Field(default_factory=dict)
    colour_by: dict[str, list[str]] = Field(default_factory=dict)
    colours: dict[str, dict[str, str]] = Field(default_factory=dict)
    last_spec: str = ""
    active_run: str = ""
    last_run: str = ""
    last_view: str = ""

    def remember(self, kind: Literal["data", "runs"], path: str) -> None:
        """Put a path at the top of a list of recent ones."""
        name = f"recent_{kind}"
        rest = [item for item in getattr(self, name) if item != path]
        setattr(self, name, [path, *rest][:RECENT])


def column_key(columns: list[str]) -> str:
    """Return the key under which choices for files with these obs columns are remembered."""
    return "\x1f".join(sorted(columns))


def load_settings(path: Path, details: list[str] | None = None) -> tuple[Settings, list[str]]:
    """Read the settings.

    Parameters
    ----------
    path
        The settings file; it need not exist.
    details
        What the reader said of a file it could not read is added here; it is for the log.

    Returns
    -------
    tuple
        The settings, and one sentence for each thing that could not be read and was left at its default.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Settings(), []
    except (OSError, ValueError) as error:
        if details is not None:
            details.append(f"{path.name} could not be read: {error}")
        return Settings(), [f"The settings could not be read and start anew. The old file is kept beside as '{_keep(path)}'."]
    if not isinstance(tree, dict):
        return Settings(), [f"The settings file holds no table; settings start anew. The old file is kept beside as '{_keep(path)}'."]
    if isinstance(tree.get("version"), int) and tree["version"] > VERSION:
        return Settings(), ["The settings were written by a later version of Cellweave and are not used."]
    return _good_part(tree)


def _keep(path: Path) -> str:
    """Put an unreadable file aside, so that saving does not destroy it."""
    aside = path.with_name(path.name + ".unreadable")
    try:
        path.replace(aside)
    except OSError:
        return path.name
    return aside.name


def _good_part(tree: dict[str, Any]) -> tuple[Settings, list[str]]:
    known = {key: value for key, value in tree.items() if key in Settings.model_fields}
    notices = [f"The setting '{key}' is not known and was left out." for key in sorted(tree.keys() - known.keys())]
    while True:
        try:
            return Settings.model_validate(known), notices
        except ValidationError as error:
            for key in {str(item["loc"][0]) for item in error.errors()}:
                known.pop(key, None)
                notices.append(f"The setting '{key}' could not be read and has its default.")


def save_settings(settings: Settings, path: Path) -> None:
    """Write the settings, atomically.

    Raises
    ------
    OSError
        Where the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, settings.model_dump(mode="json"))
