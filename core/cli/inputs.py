"""From the words of the command line to a spec and a run folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cellweave.core.errors import DataError, SpecError
from cellweave.core.files import sha256_of
from cellweave.core.models.registry import family
from cellweave.core.spec import RunSpec, load_spec, parse_assignment, presets

HashProgress = Callable[[str, float], None]


def spec_of(inputs: Sequence[Path]) -> RunSpec:
    """Return the spec that the inputs mean: one spec file, or data files that together are one study.

    Raises
    ------
    SpecError
        Where spec and data files are mixed, or the spec is not valid.
    DataError
        Where a data file is not there.
    """
    specs = [path for path in inputs if path.suffix == ".toml"]
    if len(specs) == 1 and len(inputs) == 1:
        return load_spec(specs[0])
    if specs:
        raise SpecError(f"'{specs[0]}' is a spec, which names its data itself.", "Give one spec, or one or more data files.")
    for path in inputs:
        if not path.exists():
            raise DataError(f"There is no file '{path}'.", "Check the path.")
    return RunSpec().with_changes({"data.paths": tuple(str(path.resolve()) for path in inputs)})


def change(spec: RunSpec, preset: str | None, named: dict[str, Any], assignments: Sequence[str]) -> RunSpec:
    """Return the spec with a preset, then the options with names of their own, then ``--set`` applied.

    Parameters
    ----------
    spec
        To start from.
    preset
        Name of a preset, or None.
    named
        Values by dotted path; those that are None were not given.
    assignments
        ``path=value`` texts; the later one wins.
    """
    if preset is not None:
        spec = preset_named(preset).apply(spec)
    given = {path: value for path, value in named.items() if value is not None}
    if "model.kind" in given:
        family(str(given["model.kind"]))  # says "did you mean" before anything else is looked at
    given.update(parse_assignment(text) for text in assignments)
    return spec.with_changes(given) if given else spec


def preset_named(name: str) -> Any:
    """Return a preset; a name that is not known is refused with those that are."""
    import difflib

    known = presets()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"Did you mean '{near[0]}'?" if near else f"Known are {', '.join(known)}."
        raise SpecError(f"There is no preset '{name}'.", hint)
    return known[name]


def refuse_other_files(spec: RunSpec, progress: HashProgress | None = None) -> None:
    """Make sure that the data files are those the spec was made for, where it records their check sums.

    Raises
    ------
    DataError
        Where a file is not there, cannot be read, or is another.
    """
    for name, recorded in zip(spec.data.paths, spec.data.sha256, strict=False):
        path = Path(name)
        try:
            found = sha256_of(path, partial(progress, path.name) if progress is not None else None)
        except FileNotFoundError:
            raise DataError(f"There is no file '{path}'.", "Check data.paths in the spec.") from None
        except OSError as error:
            raise DataError(f"'{path}' cannot be read: {error.strerror or error}.", "Check its permissions.") from None
        if recorded and recorded != found:
            raise DataError(
                f"'{path.name}' is not the file that this spec was made for: its check sum is another.",
                "Name the right file, or accept this one with --set data.sha256=[].",
            )


def run_name(spec: RunSpec) -> str:
    """Return a short name for the run's folder: the spec's name, or data and model."""
    first = Path(spec.data.paths[0]).name.split(".")[0] if spec.data.paths else "run"
    words = re.sub(r"[^\w-]+", "-", spec.name or f"{first}-{spec.model.kind}").strip("-_").lower()
    return words or "run"


def next_folder(spec: RunSpec, parent: Path) -> Path:
    """Return ``parent/NAME-NN`` with the first number that is free."""
    name, number = run_name(spec), 1
    while (folder := parent / f"{name}-{number:02d}").exists():
        number += 1
    return folder
