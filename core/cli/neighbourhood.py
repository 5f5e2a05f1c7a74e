"""``cellweave neighbourhood``: whether neighbouring cells express the same markers, across libraries and data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cellweave.core.cli import EXIT_DONE
from cellweave.core.cli.reporter import Reporter, reporter
from cellweave.core.cli.terminal import say, say_json, say_table
from cellweave.core.wording import counted

LEAVES_SHOWN = 8


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("neighbourhood")(neighbourhood)


def neighbourhood(
    runs: Annotated[list[Path], typer.Argument(help="Folders of trained runs; several of the same cells are compared.", show_default=False)],
    library: Annotated[str | None, typer.Option("--library", help="Column of libraries.", show_default="as the run says, or its batch")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Column of data sets.", show_default="as the run says")] = None,
    technical: Annotated[list[str] | None, typer.Option("--technical", help="Technical column; may be repeated.", show_default="as the run says")] = None,
    labels: Annotated[list[str] | None, typer.Option("--labels", help="Column of labels whose markers are looked for; may be repeated.")] = None,
    by: Annotated[list[str] | None, typer.Option("--by", help="Sum the metrics up by the levels of this column too; may be repeated.")] = None,
    neighbors: Annotated[int | None, typer.Option("--neighbors", "-k", min=3, help="Neighbours per cell.", show_default="50")] = None,
    markers: Annotated[str | None, typer.Option("--markers", help="CSV with markers: a column 'gene'.", show_default="the published list")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> int:
    """Correlate the marker genes of every cell with those of its neighbours.

    Writes neighbourhood.csv (one row a cell, with the leaf that says what went wrong) and neighbourhood.json into the results of each run.
    """
    from cellweave.core.analysis.neighbourhood_run import NeighbourhoodOptions, compare_runs, diagnose_run

    options = NeighbourhoodOptions(
        library=library, dataset=dataset, technical=tuple(technical) if technical else None, labels=tuple(labels) if labels else None,
        stratify=tuple(by or ()), k=neighbors, markers=markers,
    )  # fmt: skip
    with reporter() as show:
        found = {str(run): diagnose_run(run, options, progress=_told(show)) for run in runs}
        if len(runs) > 1:
            found = compare_runs(runs, progress=_told(show, "comparing the runs"))
    if as_json:
        say_json(found)
    else:
        for run, summary in found.items():
            _show(run, summary)
    return EXIT_DONE


def _told(show: Reporter, phase: str = "neighbourhood diagnostics") -> Any:
    return lambda share, text="": show.phase(phase, share, text)


def _show(run: str, found: dict[str, Any]) -> None:
    from cellweave.core.analysis.neighbourhood_failures import LEAVES
    from cellweave.core.analysis.neighbourhood_summary import COMPOSITE, HEADLINES

    say(f"{run}: {counted(found['n_cells'], 'cell')}, {counted(found['markers']['n'], 'marker')}")
    before = found.get("baseline", {})
    rows = []
    for kind, known in (("composite", COMPOSITE), ("headline", HEADLINES)):
        for name, info in known.items():
            value = found[kind].get(name)
            if value is not None:
                rows.append((f"{info.number} {info.title}".strip(), in_words(value), in_words(before.get(kind, {}).get(name))))
    say_table(("what", "this run", "without integration"), rows, indent="  ")
    if "leaves" in found:
        leaves = list(found["leaves"]["failure_mode"].items())
        say_table(
            ("cells", "share", "what is wrong"),
            [(n, f"{n / found['n_cells']:.1%}", LEAVES[name].title if name in LEAVES else "Nothing") for name, n in leaves[:LEAVES_SHOWN]],
            indent="  ",
        )


def in_words(value: float | None) -> str:
    """Return a number for a table; a share of chance may be beyond all measure."""
    if value is None:
        return ""
    return "over 1,000" if value > 1000 else f"{value:.3f}"
