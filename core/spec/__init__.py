"""RunSpec: what to do, as data."""

from cellweave.core.spec.files import (
    Preset,
    from_toml,
    load_spec,
    parse_assignment,
    presets,
    save_spec,
    to_toml,
)
from cellweave.core.spec.run import RunSpec, explain, parse_spec

__all__ = [
    "Preset",
    "RunSpec",
    "explain",
    "from_toml",
    "load_spec",
    "parse_assignment",
    "parse_spec",
    "presets",
    "save_spec",
    "to_toml",
]
