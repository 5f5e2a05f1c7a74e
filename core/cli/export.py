"""``cellweave export``: h5ad, h5mu, figures and tables of a run."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from cellweave.core.cli import EXIT_DONE
from cellweave.core.cli.reporter import reporter
from cellweave.core.cli.terminal import say
from cellweave.core.errors import SpecError
from cellweave.core.runs.folder import RunFolder
from cellweave.core.spec import parse_assignment

if TYPE_CHECKING:
    from cellweave.core.export.figure_options import FigureOptions

FIGURE_SUFFIXES = (".pdf", ".png", ".svg")
FIGURE_NAMES = {"losses": "losses", "umap": "embedding", "embedding": "embedding", "scores": "scores", "metrics": "metrics", "imputation": "imputation"}


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("export")(export)


def export(
    folder: Annotated[Path, typer.Argument(help="Run folder.", show_default=False)],
    h5ad: Annotated[Path | None, typer.Option("--h5ad", help="Every cell of the input with the results, as h5ad.")] = None,
    h5mu: Annotated[Path | None, typer.Option("--h5mu", help="The same with all modalities of an h5mu.")] = None,
    figures: Annotated[
        list[str] | None,
        typer.Option("--figure", metavar="FILE", help="umap.pdf, losses.svg, scores.png: the name says which; or umap=FILE. May be repeated."),
    ] = None,
    tables: Annotated[
        list[str] | None,
        typer.Option("--table", metavar="FILE", help="latent.csv, umap.csv, losses.csv, ...: the name says which; or latent=FILE. May be repeated."),
    ] = None,
    colour_by: Annotated[
        list[str] | None, typer.Option("--colour-by", help="Column, 'leiden', 'latent:1' or 'gene:CD3E': one panel each. May be repeated.")
    ] = None,
    options: Annotated[
        list[str] | None, typer.Option("--figure-set", metavar="NAME=VALUE", help="An option of the figures, such as dpi=600 or width_mm=85.")
    ] = None,
    denoised: Annotated[bool, typer.Option("--denoised", help="Add the denoised expression as a layer.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Export although an input file has changed since training.")] = False,
) -> int:
    """Write h5ad, h5mu, figures and tables of a run."""
    run = RunFolder.open(folder)
    wanted_figures = [_named(text, FIGURE_NAMES, "figure") for text in figures or []]
    wanted_tables = [_named(text, _table_names(), "table") for text in tables or []]
    if not (h5ad or h5mu or wanted_figures or wanted_tables):
        raise SpecError("There is nothing to export.", "Name at least one of --h5ad, --h5mu, --figure and --table.")
    _check_places(wanted_figures, wanted_tables)
    if denoised and not (h5ad or h5mu):
        raise SpecError("--denoised adds a layer to an h5ad or h5mu, and none is written.", "Add --h5ad OUT.h5ad.")
    drawing = figure_options(colour_by or [], options or [])
    written = []
    with reporter() as show:

        def progress(fraction: float | None, text: str = "") -> None:
            show.phase("exporting", fraction, text)

        if h5ad is not None:
            from cellweave.core.export.h5ad import export_h5ad

            written.append(export_h5ad(run.path, h5ad, denoised=denoised, force=force, progress=progress))
        if h5mu is not None:
            from cellweave.core.export.h5ad import export_h5mu

            written.append(export_h5mu(run.path, h5mu, denoised=denoised, force=force, progress=progress))
        for kind, path in wanted_figures:
            from cellweave.core.export.figures import save_figure

            show.phase(f"drawing {path.name}", None)
            save_figure(run.path, kind, path, drawing)
            written.append(path)
        for kind, path in wanted_tables:
            from cellweave.core.export.tables import save_table

            save_table(run.path, kind, path)
            written.append(path)
    for path in written:
        say(str(path))
    return EXIT_DONE


def _check_places(wanted_figures: Sequence[tuple[str, Path]], wanted_tables: Sequence[tuple[str, Path]]) -> None:
    """Refuse a place that cannot be written to before anything is computed.

    Raises
    ------
    SpecError
        Where the folder does not exist, or a figure's format is not known.
    """
    for _, path in (*wanted_figures, *wanted_tables):
        if not path.expanduser().absolute().parent.is_dir():
            raise SpecError(f"There is no folder '{path.parent}'.", "Make it first, or choose another one.")
    for _, path in wanted_figures:
        if path.suffix.lower() not in FIGURE_SUFFIXES:
            raise SpecError(f"'{path.name}' does not end in .png, .svg or .pdf.", f"Name the figure '{path.stem}.pdf'.")


def figure_options(colour_by: Sequence[str], assignments: Sequence[str]) -> FigureOptions:
    """Return the options of the figures that the command line names.

    Raises
    ------
    SpecError
        Where an option does not exist (the sentence proposes the nearest) or a value is not valid.
    """
    from cellweave.core.export.figure_options import FigureOptions

    given = dict(parse_assignment(text) for text in assignments)
    for name in given:
        if name not in FigureOptions.model_fields:
            near = difflib.get_close_matches(name, FigureOptions.model_fields, n=1, cutoff=0.5)
            hint = f"Did you mean '{near[0]}'?" if near else f"There are {', '.join(FigureOptions.model_fields)}."
            raise SpecError(f"Figures have no option '{name}'.", hint)
    if colour_by:
        given["columns"] = tuple(colour_by)
    try:
        return FigureOptions.model_validate(given)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in found["loc"])
        raise SpecError(f"The figure option {name} cannot be {found['input']!r}: {found['msg'].lower()}.") from None


def _table_names() -> dict[str, str]:
    from cellweave.core.export.tables import TABLES

    return {name: name for name in TABLES}


def _named(text: str, names: dict[str, str], what: str) -> tuple[str, Path]:
    """Read ``KIND=FILE``, or ``FILE`` whose name begins with a kind."""
    kind, equals, path = text.partition("=")
    if equals and kind in names:
        return names[kind], Path(path).expanduser().absolute()
    place = Path(text).expanduser().absolute()
    for name, kind in names.items():
        if place.stem.lower().startswith(name):
            return kind, place
    mend = f"Begin its name with one of {', '.join(names)}, or write for instance {next(iter(names))}={text}."
    raise SpecError(f"'{text}' does not say which {what} it shall be.", mend)
