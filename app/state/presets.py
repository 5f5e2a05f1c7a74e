"""Presets: those of the program and the user's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import tomli_w

from cellweave.core.errors import SpecError
from cellweave.core.files import write_text_atomic
from cellweave.core.spec import Preset, RunSpec, presets


def known_presets(folder: Path) -> tuple[dict[str, Preset], str]:
    """Return every preset by name, and a sentence where the user's own could not be read."""
    try:
        return presets(folder), ""
    except (SpecError, OSError, UnicodeDecodeError) as error:
        return presets(None), f"Your own presets could not be read: {error}"


def save_preset(folder: Path, title: str, spec: RunSpec) -> str:
    """Write the spec's model, loss weights and training as a preset of the user's.

    Parameters
    ----------
    folder
        Folder of the user's presets.
    title
        What it is called in the list.
    spec
        Where the values are taken from; what has its default is left out.

    Returns
    -------
    str
        Name of the preset.

    Raises
    ------
    OSError
        Where the folder cannot be written.
    """
    default = RunSpec().with_changes({"model.kind": spec.model.kind})
    tree: dict[str, Any] = {"title": title, "help": f"Your own, for {spec.family.title}.", "kind": spec.model.kind}
    for section in ("model", "training", "analysis"):
        now, then = getattr(spec, section).model_dump(mode="json"), getattr(default, section).model_dump(mode="json")
        changed = {key: value for key, value in now.items() if value != then[key] and value is not None}
        if changed:
            tree[section] = changed
    if spec.losses.weights:
        tree["losses"] = {"weights": dict(spec.losses.weights)}
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "preset"
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomic(folder / f"{name}.toml", tomli_w.dumps(tree))
    return name
