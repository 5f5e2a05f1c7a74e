"""``cellweave metrics``: how well batches mix and how much biology is kept, of a finished run."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cellweave.core.cli import EXIT_DONE
from cellweave.core.cli.reporter import reporter
from cellweave.core.cli.terminal import note, say_json, say_table
from cellweave.core.errors import SpecError
from cellweave.core.runs.folder import RunFolder
from cellweave.core.wording import counted


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("metrics")(metrics)


def metrics(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.", show_default=False)],
    labels: Annotated[str | None, typer.Option("--labels", help="Column whose levels are to stay apart.", show_default="the run's labels")] = None,
    batch: Annotated[str | None, typer.Option("--batch", help="Column whose levels are to be mixed.", show_default="the run's batch")] = None,
    only: Annotated[list[str] | None, typer.Option("--only", metavar="METRIC", help="Only this metric; may be repeated.")] = None,
    cells: Annotated[int | None, typer.Option("--cells", min=100, help="Most cells that are measured.", show_default="50000")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of the sample.", show_default="the run's seed")] = None,
    again: Annotated[bool, typer.Option("--again", help="Compute them anew where they are there already.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")] = False,
) -> int:
    """Measure batch mixing and biology kept, beside the baseline without integration.

    The result is written into the run folder (results/integration.json and .csv). The columns may be any of the input file. Of a run that gives a latent
    of each modality, scMIB's scores and all their parts are shown too (results/scmib.json).
    """
    from cellweave.core.analysis import scmib
    from cellweave.core.analysis.inprocess import InProcess
    from cellweave.core.analysis.integration import METRICS
    from cellweave.core.analysis.integration_results import load

    run = RunFolder.open(folder)
    for name in only or ():
        if name not in METRICS:
            raise SpecError(f"There is no integration metric '{name}'.", f"There are {', '.join(METRICS)}.")
    asked = any(value is not None for value in (labels, batch, only, cells, seed))
    found = None if again or asked else load(run.results)
    if found is None:
        with reporter() as show:
            InProcess().run(
                "measure_run", run=str(run.path), labels=labels, batch=batch, names=only, limit=cells, seed=seed,
                progress=lambda fraction, text: show.phase("measuring", fraction, text),
            )  # fmt: skip
        found = load(run.results)
        assert found is not None
    mosaic = scmib.load(run.results)
    if as_json:
        say_json({**found, "scmib": mosaic} if mosaic is not None else found)
        return EXIT_DONE
    _show(found, mosaic)
    return EXIT_DONE


def _show(found: Mapping[str, Any], mosaic: Mapping[str, Any] | None) -> None:
    """Print the table, or CSV where the output is no terminal, and the notes."""
    from cellweave.core.analysis import scmib
    from cellweave.core.analysis.integration_results import table_of

    table = table_of(found).drop(columns="title")
    head = [str(column) for column in table.columns]
    rows = [["" if value != value else value for value in row] for row in table.itertuples(index=False)]
    if mosaic is not None:
        own = {part["name"]: part["value"] for part in scmib.own_parts(mosaic)} | mosaic["scores"]
        rows += [[name, scmib.part_info(name).about, "" if value is None else value, *[""] * (len(head) - 3)] for name, value in own.items()]
    if sys.stdout.isatty():
        say_table(head, [[f"{value:.3f}" if isinstance(value, float) else value for value in row] for row in rows])
    else:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)
    columns = ", ".join(f"{'batch' if role == 'batch' else 'labels'} from '{column}'" for role, column in found["columns"].items())
    note(f"{found['n_cells']:,} of {counted(found['n_all'], 'cell')}; {columns}.")
    for text in [*found["notes"], *(mosaic["notes"] if mosaic is not None else ())]:
        note(text)
