"""``cellweave impute`` and ``cellweave imputation``: imputed values of a trained run, and how good they are."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, get_args

import typer

from cellweave.core.cli import EXIT_DONE
from cellweave.core.cli.reporter import reporter
from cellweave.core.cli.terminal import note, say, say_json, say_table
from cellweave.core.cli.training import Seed
from cellweave.core.errors import SpecError

HIDES = ("held-out", "modality", "entries")
Given = Annotated[
    list[str] | None, typer.Option("--given", metavar="MODALITY", help="Look at this modality only; may be repeated.", show_default="all that was measured")
]
Modality = Annotated[str | None, typer.Option("--modality", help="Only this modality.", show_default="all")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("impute")(impute)
    app.command("imputation")(imputation)


def impute(
    run: Annotated[Path, typer.Argument(help="Folder of a trained run.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .h5mu or .h5; .h5ad or .csv of one modality.", show_default=False)],
    data: Annotated[list[Path] | None, typer.Option("--data", help="Impute the cells of other files; may be repeated.")] = None,
    cells: Annotated[list[str] | None, typer.Option("--cells", metavar="COLUMN=LEVEL", help="Only these cells; repeated, all must hold.")] = None,
    given: Given = None,
    modality: Modality = None,
    latent: Annotated[bool, typer.Option("--latent", help="Write the latent space given these modalities instead, as .csv.")] = False,
    draws: Annotated[int | None, typer.Option("--draws", min=2, help="Draws of the latent; their spread is written too.", show_default="none")] = None,
    blended: Annotated[bool, typer.Option("--blended", help="Keep what was measured and fill in the rest.")] = False,
    normalised: Annotated[bool, typer.Option("--normalised", help="On the scale of training instead of counts.")] = False,
    seed: Seed = None,
) -> int:
    """Write expected values of every feature of every modality, measured or not."""
    import pandas as pd

    from cellweave.core.cli.answers import chosen_cells, opened
    from cellweave.core.cli.query import levels_of
    from cellweave.core.query.expression_files import write_or_say
    from cellweave.core.query.imputed import SUFFIXES, ImputedQuestion, latent_given, write_imputed

    suffixes = (".csv",) if latent else SUFFIXES
    if out.suffix not in suffixes:
        raise SpecError(f"Imputed values are written as {', '.join(suffixes)}, not as '{out.suffix or out.name}'.", f"Name the file '{out.stem}{suffixes[0]}'.")
    if latent and (not given or modality or draws or blended or normalised):
        raise SpecError("--latent takes --given and no other choice.", "Name the modalities to look at: --given rna.")
    with reporter() as show:
        show.phase("opening the run", None)
        found = opened(run, data or [], None).watched(lambda share: show.phase("imputing", share))
        for text in found.notes:
            note(text)
        rows = chosen_cells(found, levels_of(cells or [], "--cells"))
        if latent:
            values = latent_given(found, given or (), rows)
            names = [f"Z_{number}" for number in range(values.shape[1])]
            write_or_say(out.absolute(), pd.DataFrame(values, found.cell_names[found.rows(rows)], names).rename_axis("cell").to_csv)
        else:
            question = ImputedQuestion(tuple(given) if given else None, (modality,) if modality else None, draws, blended, normalised, seed or 0)
            write_imputed(found, out, rows, question)
        say(str(out))
        return EXIT_DONE


def imputation(
    run: Annotated[Path, typer.Argument(help="Folder of a trained run.", show_default=False)],
    hide: Annotated[str, typer.Option("--hide", help=f"What is hidden: {', '.join(HIDES)}.")] = "held-out",
    modality: Modality = None,
    share: Annotated[float | None, typer.Option("--share", help="Share of the entries that is hidden.", show_default="0.1")] = None,
    given: Given = None,
    batch: Annotated[list[str] | None, typer.Option("--batch", help="Judge cells of this batch only; may be repeated.", show_default="all")] = None,
    feature: Annotated[
        list[str] | None, typer.Option("--feature", help="Compare the values of this feature only; may be repeated.", show_default="all")
    ] = None,
    all_cells: Annotated[bool, typer.Option("--all-cells", help="Judge cells that training has seen as well.")] = False,
    most_cells: Annotated[int, typer.Option("--most-cells", min=20, help="Size of the random sample of cells.")] = 2000,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the table by feature as .csv as well.")] = None,
    seed: Seed = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")] = False,
) -> int:
    """Hide known values, impute them, and compare, beside the mean of each feature.

    held-out: what data.switched_off kept from training. modality: all of a modality in held-out cells. entries: a share of the values. The results are
    written into the run folder (results/imputation.csv, .json and .h5).
    """
    from cellweave.core.analysis.imputation import evaluate
    from cellweave.core.analysis.imputation_choice import Hide, ImputationQuestion
    from cellweave.core.analysis.imputation_scores import save
    from cellweave.core.query.expression_files import write_or_say
    from cellweave.core.query.opened import open_run

    if hide not in get_args(Hide):
        near = difflib.get_close_matches(hide, HIDES, n=1, cutoff=0.4)
        raise SpecError(f"'{hide}' cannot be hidden.", f"Did you mean '{near[0]}'?" if near else f"Choose one of {', '.join(HIDES)}.")
    if share is not None and hide != "entries":
        raise SpecError("--share goes with --hide entries.", "Leave it out, or add --hide entries.")
    if out is not None and out.suffix != ".csv":
        raise SpecError(f"The table is written as .csv, not as '{out.suffix or out.name}'.", f"Name the file '{out.stem}.csv'.")
    question = ImputationQuestion(
        hide=hide, modality=modality, share=0.1 if share is None else share, given=tuple(given) if given else None,  # type: ignore[arg-type]
        held_out_cells=not all_cells, most_cells=most_cells, seed=seed or 0, batches=tuple(batch or ()), features=tuple(feature or ()),
    )  # fmt: skip
    with reporter() as show:
        show.phase("opening the run", None)
        opened = open_run(run).watched(lambda done: show.phase("imputing", done))
        found = evaluate(opened, question)
        save(opened.path / "results", found)
        if out is not None:
            write_or_say(out.absolute(), lambda path: found.by_feature.to_csv(path, index=False))
    if as_json:
        say_json({"overall": found.overall, "notes": found.notes})
        return EXIT_DONE
    for text in found.notes:
        note(text)
    keys = list(dict.fromkeys(key for whole in found.overall.values() for key in whole))
    rows = [(key.replace("_", " "), *(f"{whole[key]:.4g}" if key in whole else "" for whole in found.overall.values())) for key in keys]
    say_table(("", *found.overall), rows)
    return EXIT_DONE
