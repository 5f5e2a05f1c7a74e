"""``cellweave inspect`` and ``cellweave check``: what a file holds, and whether a run of it would start."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cellweave.core.cli import EXIT_BAD_INPUT, EXIT_DONE
from cellweave.core.cli.inputs import change, refuse_other_files, spec_of
from cellweave.core.cli.reporter import reporter
from cellweave.core.cli.terminal import bytes_in_words, say, say_json, say_table
from cellweave.core.cli.training import Batch, Inputs, Labels, Model, Preset, Set
from cellweave.core.spec import assignment_value
from cellweave.core.wording import counted

if TYPE_CHECKING:
    from cellweave.core.study.checks import Check
    from cellweave.core.study.header import FileHeader

Json = Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("inspect")(inspect)
    app.command("check")(check)


def inspect(
    file: Annotated[Path, typer.Argument(help="Data file or folder of any format that can be opened.", show_default=False)],
    json: Json = False,
) -> int:
    """Say what a file holds, without reading its data.

    Sizes, places of matrices, columns of the cells, and the memory it will take.
    """
    from cellweave.core.study import read_header

    header = read_header(file)
    if json:
        say_json(header.to_json())
    else:
        _describe(header)
    return EXIT_DONE


def _describe(header: FileHeader) -> None:
    say(f"{header.path}")
    size, memory = bytes_in_words(header.file_bytes), bytes_in_words(header.estimated_bytes)
    say(f"{header.format}, {counted(header.n_cells, 'cell')}, {size} on disk, about {memory} once read")
    rows = []
    for modality in header.modalities:
        for matrix in modality.matrices:
            stored = "" if matrix.n_stored is None else f"{matrix.n_stored / max(1, matrix.shape[0] * matrix.shape[1]):.1%}"
            size = f"{matrix.shape[0]:,} x {matrix.shape[1]:,}"
            rows.append((modality.name, matrix.location, size, matrix.storage, matrix.dtype, stored))
    if rows:
        say("\nMatrices")
        say_table(("modality", "where", "cells x features", "storage", "type", "stored"), rows, indent="  ")
    if header.obs_columns:
        say("\nColumns of the cells")
        columns = [
            (item.name, item.kind, "" if item.n_levels is None else item.n_levels, "" if item.n_missing is None else item.n_missing)
            for item in header.obs_columns
        ]
        say_table(("column", "kind", "levels", "missing"), columns, indent="  ")
    for text in header.notes:
        say(f"\nNote: {text}")


def check(
    inputs: Inputs,
    preset: Preset = None,
    model: Model = None,
    batch: Batch = None,
    labels: Labels = None,
    assignments: Set = None,
    json: Json = False,
) -> int:
    """Check a spec and its data without training.

    The exit code is 2 where training would be refused.
    """
    named = {"model.kind": model, "covariates.batch": batch, "covariates.labels": labels}
    spec = change(spec_of(inputs), preset, named, assignments or [])
    from cellweave.core.study import load_study
    from cellweave.core.study.checks import Level
    from cellweave.core.study.preflight import preflight

    with reporter() as show:
        refuse_other_files(spec, lambda name, share: show.phase(f"checking {name}", share))
        study = load_study(spec.data, progress=lambda fraction, text: show.phase("loading data", fraction, text))
    findings = preflight(spec, study)
    if json:
        say_json([_as_json(item) for item in findings])
    else:
        for item in sorted(findings, key=lambda item: [Level.FAIL, Level.WARN, Level.OK].index(item.level)):
            say(f"{item.level.value.upper():<4}  {item.title}: {item.text}")
            for fix in item.fixes:
                changes = " ".join(f"--set {path}={assignment_value(value)}" for path, value in fix.changes.items())
                say(f"      mend: {fix.label}: {changes}")
    return EXIT_BAD_INPUT if any(item.level is Level.FAIL for item in findings) else EXIT_DONE


def _as_json(item: Check) -> dict[str, object]:
    fixes = [{"label": fix.label, "changes": dict(fix.changes)} for fix in item.fixes]
    return {"id": item.id, "level": item.level.value, "title": item.title, "text": item.text, "where": item.where, "fixes": fixes}
