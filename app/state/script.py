"""A spec as a command line and as a Python script: what the window does can be done again without it."""

from __future__ import annotations

import json
import pprint
import shlex
from collections.abc import Mapping
from typing import Any

from cellweave.core.spec import RunSpec

# Tables whose keys are names of the user's: they are given whole.
WHOLE = ("data.layers", "data.features", "data.fill_missing", "data.combine", "data.switched_off")


def changes_of(spec: RunSpec) -> dict[str, Any]:
    """Return the changes that make a default spec into this one, by dotted path, data files left out."""
    default = RunSpec().with_changes({"model.kind": spec.model.kind})
    found: dict[str, Any] = {}
    if spec.model.kind != RunSpec().model.kind:
        found["model.kind"] = spec.model.kind
    _compare(spec.model_dump(mode="json"), default.model_dump(mode="json"), "", found)
    for path in ("data.paths", "data.sha256", "schema_version"):
        found.pop(path, None)
    return found


def _compare(now: Mapping[str, Any], then: Mapping[str, Any], prefix: str, found: dict[str, Any]) -> None:
    for key, value in now.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and path not in WHOLE:
            _compare(value, then.get(key, {}), f"{path}.", found)
        elif key not in then or value != then[key]:
            found[path] = value


def inline(value: Any) -> str:
    """Return a value as TOML on one line, ``none`` for None."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        items = ((key, item) for key, item in value.items() if item is not None)
        return "{" + ", ".join(f"{json.dumps(key, ensure_ascii=False)} = {inline(item)}" for key, item in items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(inline(item) for item in value) + "]"
    return repr(value)


def as_command(spec: RunSpec, out: str = "") -> str:
    """Return the command line that trains this spec.

    Parameters
    ----------
    spec
        The spec.
    out
        Run folder to name, or empty.
    """
    words = ["cellweave", "train", *spec.data.paths]
    if out:
        words += ["--out", out]
    for path, value in changes_of(spec).items():
        words += ["--set", f"{path}={inline(value)}"]
    return " ".join(shlex.quote(word) for word in words)


def as_script(spec: RunSpec, out: str = "") -> str:
    """Return a Python script that trains this spec."""
    changes = {"data.paths": spec.data.paths, **changes_of(spec)}
    return (
        '"""Written by Cellweave."""\n\n'
        "from cellweave.core.runs.execute import execute\n"
        "from cellweave.core.spec import RunSpec\n\n"
        f"spec = RunSpec().with_changes(\n    {pprint.pformat(changes, indent=1, width=110, sort_dicts=False).replace(chr(10), chr(10) + '    ')}\n)\n\n"
        'if __name__ == "__main__":\n'
        f"    execute(spec, {out or 'run'!r}, listener=print)\n"
    )
