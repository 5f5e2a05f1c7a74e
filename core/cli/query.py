"""``cellweave query`` and ``cellweave map``: ask a trained run, and map new data onto it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from cellweave.core.cli.inputs import next_folder
from cellweave.core.cli.reporter import reporter
from cellweave.core.cli.training import Force, Out, Seed, Set, watch
from cellweave.core.errors import DataError, SpecError
from cellweave.core.spec import parse_assignment

#: Which options each question takes; any other that is given is refused, not ignored.
TAKES = {
    "latent": ("draws", "seed"),
    "library": ("modality",),
    "expression": ("genes", "as_batch", "all_batches", "as_level", "modality", "library_size", "draws", "seed"),
    "correlation": ("genes", "as_batch", "all_batches", "draws", "pearson", "seed"),
    "differential": ("groupby", "group1", "group2", "modality", "mode", "delta", "fdr", "batch_correction", "seed"),
    "pseudobulk": ("groupby", "group1", "group2", "sample", "covariate", "fdr"),
    "evaluate": ("draws", "seed"),
    "features": ("modality", "draws", "seed"),
    "dimensions": (),
    "minify": ("with_counts",),
    "imputed": ("given", "modality", "draws", "sampled", "seed"),
    "corrected": ("modality", "sampled", "seed"),
    "translated": ("given", "modality", "sampled", "seed"),
    "alignment": ("groupby",),
    "transfer": ("groupby", "neighbours", "threshold"),
    "attribution": ("method", "remove_covariates", "covariate_reference", "library_size", "keep"),
    "effects": ("keep",),
}
VALUES = (".h5mu", ".h5ad", ".h5")
SUFFIXES = {"expression": (".h5ad", ".h5", ".csv"), "minify": (".h5ad",), "imputed": VALUES, "corrected": VALUES, "translated": VALUES}
FORMS = {name: "--" + name.replace("_", "-") for names in TAKES.values() for name in names}


@dataclass(frozen=True)
class Question:
    """What was asked on the command line; see the options of :func:`query`."""

    what: str
    out: Path | None
    seed: int
    genes: tuple[str, ...] | None
    as_batch: tuple[str, ...] | None
    all_batches: bool
    library_size: float | str
    draws: int | None
    pearson: bool
    groupby: str | None
    group1: str | None
    group2: str | None
    mode: str
    delta: float | None
    fdr: float
    batch_correction: bool
    sample: tuple[str, ...]
    covariate: tuple[str, ...]
    with_counts: bool
    method: str = "exact"
    remove_covariates: str = "none"
    covariate_reference: str = "zero"
    keep: bool = False
    modality: str | None = None
    as_level: Mapping[str, str] = field(default_factory=dict)
    given: tuple[str, ...] | None = None
    sampled: bool = False
    neighbours: int = 5
    threshold: float | None = None


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("query")(query)
    app.command("map")(map_data)


def query(
    run: Annotated[Path, typer.Argument(help="Folder of a trained run.", show_default=False)],
    what: Annotated[str, typer.Argument(help=f"One of: {', '.join(TAKES)}.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write: .csv; expression also .h5ad or .h5, minify .h5ad.")] = None,
    data: Annotated[list[Path] | None, typer.Option("--data", help="Ask about the cells of other files; may be repeated.")] = None,
    minified: Annotated[Path | None, typer.Option("--minified", help="Ask about minified data that this run wrote.")] = None,
    cells: Annotated[list[str] | None, typer.Option("--cells", metavar="COLUMN=LEVEL", help="Only these cells; repeated, all must hold.")] = None,
    genes: Annotated[list[str] | None, typer.Option("--genes", metavar="NAME,NAME", help="Only these features; @FILE reads one name a line.")] = None,
    as_batch: Annotated[list[str] | None, typer.Option("--as-batch", help="Decode every cell as this batch; repeated, the mean over them.")] = None,
    all_batches: Annotated[bool, typer.Option("--all-batches", help="Decode every cell as each batch and take the mean.")] = False,
    as_level: Annotated[
        list[str] | None, typer.Option("--as-level", metavar="COLUMN=LEVEL", help="Decode every cell as this level of a covariate; may be repeated.")
    ] = None,
    modality: Annotated[str | None, typer.Option("--modality", help="Modality whose features are asked about.", show_default="rna, or the first")] = None,
    library_size: Annotated[str | None, typer.Option("--library-size", help="A number, or 'latent' for each cell's own.", show_default="1")] = None,
    draws: Annotated[
        int | None, typer.Option("--draws", min=1, help="Draws of the latent; of imputed values their spread is written too.", show_default="posterior mean")
    ] = None,
    pearson: Annotated[bool, typer.Option("--pearson", help="Correlate values instead of ranks.")] = False,
    groupby: Annotated[str | None, typer.Option("--groupby", help="Column whose levels are compared.")] = None,
    group1: Annotated[str | None, typer.Option("--group1", help="Level to compare.", show_default="each")] = None,
    group2: Annotated[str | None, typer.Option("--group2", help="Level to compare with.", show_default="all others")] = None,
    mode: Annotated[str | None, typer.Option("--mode", help="change or vanilla.", show_default="change")] = None,
    delta: Annotated[
        str | None, typer.Option("--delta", help="Smallest log2 fold change that counts, or 'auto'.", show_default="0.25")
    ] = None,
    fdr: Annotated[float | None, typer.Option("--fdr", help="Expected share of false calls.", show_default="0.05")] = None,
    batch_correction: Annotated[bool, typer.Option("--batch-correction", help="Compare within batches, each cell decoded as all of them.")] = False,
    sample: Annotated[list[str] | None, typer.Option("--sample", help="Column that says which sample a cell is of; may be repeated.")] = None,
    covariate: Annotated[list[str] | None, typer.Option("--covariate", help="Column of the samples in the model; may be repeated.")] = None,
    with_counts: Annotated[bool, typer.Option("--with-counts", help="Keep the counts in minified data.")] = False,
    method: Annotated[str | None, typer.Option("--method", help="exact, forward or finite.", show_default="exact")] = None,
    remove_covariates: Annotated[
        str | None, typer.Option("--remove-covariates", help="cat_covs, feature_scaling or all: decode cells without them.", show_default="none")
    ] = None,
    covariate_reference: Annotated[
        str | None, typer.Option("--covariate-reference", help="zero, mean or reference (the most frequent level).", show_default="zero")
    ] = None,
    given: Annotated[list[str] | None, typer.Option("--given", metavar="NAME,NAME", help="Modalities that are looked at; a translation needs them.")] = None,
    sampled: Annotated[bool, typer.Option("--sampled", help="Draw counts instead of giving their expected values (MIDAS).")] = False,
    neighbours: Annotated[int | None, typer.Option("--neighbours", min=1, help="Labelled cells that vote on a label.", show_default="5")] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Cells whose surroundings are new by more than this share are 'unknown'; 0.83 by the authors.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the answer as a result of the run.")] = False,
    seed: Seed = None,
) -> int:
    """Ask a trained run about its cells, or about others.

    latent, library, expression, correlation, differential, pseudobulk, evaluate, features, dimensions, minify, imputed, corrected,
    translated, alignment, transfer, attribution, effects.
    Without --out a table is shown in short.
    """
    asked = {
        "genes": genes, "as_batch": as_batch, "all_batches": all_batches, "library_size": library_size, "draws": draws, "pearson": pearson,
        "groupby": groupby, "group1": group1, "group2": group2, "mode": mode, "delta": delta, "fdr": fdr, "batch_correction": batch_correction,
        "sample": sample, "covariate": covariate, "with_counts": with_counts, "seed": seed, "modality": modality, "as_level": as_level,
        "method": method, "remove_covariates": remove_covariates, "covariate_reference": covariate_reference, "keep": keep,
        "given": given, "sampled": sampled, "neighbours": neighbours, "threshold": threshold,
    }  # fmt: skip
    _refuse(what, asked, out)
    if data and minified:
        raise SpecError("--data and --minified name different cells.", "Give one of them.")
    if as_batch and all_batches:
        raise SpecError("--as-batch and --all-batches contradict each other.", "Give one of them.")
    question = Question(
        what=what, out=out, seed=seed or 0, genes=_names(genes), as_batch=tuple(as_batch) if as_batch else None, all_batches=all_batches,
        library_size=_number(library_size, "latent", "--library-size") if library_size else 1.0, draws=draws, pearson=pearson,
        groupby=groupby, group1=group1, group2=group2, mode=mode or "change", delta=_delta(delta), fdr=0.05 if fdr is None else fdr,
        batch_correction=batch_correction, sample=tuple(sample or ()), covariate=tuple(covariate or ()), with_counts=with_counts,
        modality=modality, as_level=levels_of(as_level or [], "--as-level"),
        method=_one_of(method, ("exact", "forward", "finite"), "--method"), keep=keep,
        remove_covariates=_one_of(remove_covariates, ("none", "cat_covs", "feature_scaling", "all"), "--remove-covariates"),
        covariate_reference=_one_of(covariate_reference, ("zero", "mean", "reference"), "--covariate-reference"),
        given=_names(given), sampled=sampled, neighbours=neighbours or 5, threshold=threshold,
    )  # fmt: skip
    from cellweave.core.cli.answers import answer

    with reporter() as show:
        return answer(run, question, data or [], minified, levels_of(cells or [], "--cells"), show)


def map_data(
    reference: Annotated[Path, typer.Argument(help="Folder of the trained run.", show_default=False)],
    data: Annotated[list[Path], typer.Argument(help="Data files that together are one study.", show_default=False)],
    out: Out = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Passes over the new cells.", show_default="100")] = None,
    seed: Seed = None,
    assignments: Set = None,
    force: Force = False,
) -> int:
    """Map new data onto a trained run.

    What is new in them, their batches above all, is learned; everything else stays as the run learned it.
    """
    from cellweave.core.query.surgery import mapping_spec
    from cellweave.core.runs.execute import execute

    for path in data:
        if not path.exists():
            raise DataError(f"There is no file '{path}'.", "Check the path.")
    named = {path: value for path, value in {"training.max_epochs": epochs, "training.seed": seed}.items() if value is not None}
    spec = mapping_spec(reference, data, {**named, **dict(parse_assignment(text) for text in assignments or [])})
    with reporter() as show:
        folder = out or next_folder(spec, Path("runs"))
        code = watch(folder, lambda listener, control: execute(spec, folder, listener=listener, control=control, force=force), show)
    _say_joint(folder)
    return code


def _say_joint(folder: Path) -> None:
    """Say where the new cells are beside those of the reference."""
    from cellweave.core.analysis.joint import CELLS, LABELS, LAYOUT
    from cellweave.core.cli.terminal import note

    if (folder / "results" / LAYOUT).is_file():
        note(f"New cells and those of the reference in one layout: {folder / 'results' / LAYOUT}, its cells in {CELLS}")
    if (folder / "results" / LABELS).is_file():
        note(f"Labels of the reference told to the new cells: {folder / 'results' / LABELS}")


def _refuse(what: str, given: Mapping[str, object], out: Path | None) -> None:
    """Refuse a question that does not exist, options it does not take, and files it cannot be written to."""
    if what not in TAKES:
        near = difflib.get_close_matches(what, TAKES, n=1, cutoff=0.4)
        raise SpecError(f"A run cannot be asked for '{what}'.", f"Did you mean '{near[0]}'?" if near else f"Known are {', '.join(TAKES)}.")
    idle = [FORMS[name] for name, value in given.items() if value not in (None, False, []) and name not in TAKES[what]]
    if idle:
        taken = ", ".join(FORMS[name] for name in TAKES[what]) or "none of its own"
        raise SpecError(f"'{what}' does not take {', '.join(idle)}.", f"Its options are: {taken}.")
    suffixes = SUFFIXES.get(what, (".csv",))
    if out is not None and out.suffix not in suffixes:
        raise SpecError(f"'{what}' is written as {' or '.join(suffixes)}, not as '{out.suffix or out.name}'.", f"Name the file '{out.stem}{suffixes[0]}'.")
    if out is None and what in {"expression", "correlation", "minify", "imputed", "corrected", "translated"}:
        raise SpecError(f"'{what}' is too large to be shown.", f"Name a file: --out {what}{suffixes[0]}.")


def _one_of(value: str | None, known: Sequence[str], option: str) -> str:
    """Return a word that is known; the first one where none is given."""
    if value is None:
        return known[0]
    if value not in known:
        raise SpecError(f"{option} is '{value}', which it cannot be.", f"It is one of {', '.join(known)}.")
    return value


def _names(texts: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return feature names from lists and files."""
    if not texts:
        return None
    found: list[str] = []
    for text in texts:
        if text.startswith("@"):
            path = Path(text[1:]).expanduser()
            try:
                found += [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
            except (OSError, UnicodeDecodeError):
                raise DataError(f"The feature list '{path}' cannot be read.", "Choose a text file with one feature name a line.") from None
        else:
            found += [name.strip() for name in text.split(",") if name.strip()]
    return tuple(dict.fromkeys(found))


def _number(text: str, word: str, option: str) -> float | str:
    if text == word:
        return text
    try:
        return float(text)
    except ValueError:
        raise SpecError(f"{option} is '{text}', which is no number.", f"Give a number or '{word}'.") from None


def _delta(text: str | None) -> float | None:
    value = 0.25 if text is None else _number(text, "auto", "--delta")
    return None if isinstance(value, str) else value


def levels_of(texts: Sequence[str], option: str) -> dict[str, str]:
    """Return level by column of texts of the form ``COLUMN=LEVEL``."""
    found = {}
    for text in texts:
        column, equals, level = text.partition("=")
        if not equals or not column:
            raise SpecError(f"{option} '{text}' is not of the form COLUMN=LEVEL.", f"Write for instance {option} cell_type=B.")
        found[column] = level
    return found

