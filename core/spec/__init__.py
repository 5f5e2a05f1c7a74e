"""RunSpec: what to do, as data."""

from cellweave.core.spec.files import (
    Preset,
    assignment_value,
    from_toml,
    load_spec,
    parse_assignment,
    presets,
    save_spec,
    to_toml,
    with_absolute_paths,
)
from cellweave.core.spec.run import RunSpec, explain, parse_spec

__all__ = [
    "Preset",
    "RunSpec",
    "assignment_value",
    "explain",
    "from_toml",
    "load_spec",
    "parse_assignment",
    "parse_spec",
    "presets",
    "save_spec",
    "to_toml",
    "with_absolute_paths",
]
