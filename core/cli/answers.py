"""Answers to ``cellweave query``: computed, shown in short or written."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd

from cellweave.core.cli import EXIT_DONE
from cellweave.core.cli.query import Question
from cellweave.core.cli.reporter import Reporter
from cellweave.core.cli.terminal import note, say, say_table
from cellweave.core.errors import SpecError
from cellweave.core.query.expression import ExpressionQuestion, expression_chunks
from cellweave.core.query.expression_files import write_expression, write_or_say
from cellweave.core.query.groups import column_of
from cellweave.core.query.trained_run import QueryError, TrainedRun
from cellweave.core.wording import counted

SHOWN = 20  # rows of a table that are shown without --out
MARGINAL_DRAWS = 100


def answer(
    folder: Path, question: Question, files: Sequence[Path], minified: Path | None, conditions: Mapping[str, str], show: Reporter
) -> int:
    """Open the run, ask, and write or show the answer; return the exit code.

    Parameters
    ----------
    folder
        The run folder.
    question
        What is asked.
    files, minified
        Other cells to ask about, or minified data of the run.
    conditions
        Level by column that the cells must have.
    show
        Shows progress.
    """
    show.phase("opening the run", None)
    run = opened(folder, files, minified).watched(lambda share: show.phase(question.what, share))
    run = run.of_modality(question.modality)
    for text in run.notes:
        note(text)
    cells = chosen_cells(run, conditions)
    if question.what == "expression":
        return _expression(run, question, cells)
    if question.what == "minify":
        return _minify(run, question, cells)
    if question.what == "evaluate":
        return _evaluate(run, question, cells)
    if question.what == "attribution":
        return _attribution(run, question, cells, files or minified)
    if question.what == "effects":
        return _effects(run, question, cells, files or minified)
    if question.what in {"imputed", "corrected", "translated"}:
        return _values(run, question, cells)
    return _table(_TABLES[question.what](run, question, cells), question)


def opened(folder: Path, files: Sequence[Path], minified: Path | None) -> TrainedRun:
    """Return the run, opened on its own cells, on those of other files, or on minified data."""
    from cellweave.core.query.minified import open_minified
    from cellweave.core.query.opened import open_on_files, open_run

    if minified is not None:
        return open_minified(folder, minified)
    return open_on_files(folder, files) if files else open_run(folder)


def chosen_cells(run: TrainedRun, conditions: Mapping[str, str]) -> np.ndarray | None:
    """Return a mask of the cells that have all these levels; None for all cells."""
    if not conditions:
        return None
    keep = run.data.usable.copy()
    for column, level in conditions.items():
        keep &= (column_of(run, column).astype(str) == level).to_numpy()
    if not keep.any():
        raise QueryError(f"No cell has {' and '.join(f'{column} = {level}' for column, level in conditions.items())}.", "Check columns and levels.")
    return keep


# ---------------------------------------------------------------------- tables


def _latent(run: TrainedRun, question: Question, cells: np.ndarray | None) -> pd.DataFrame:
    from cellweave.core.query.latent import latent_mean, latent_sample

    if question.draws is None:
        values = latent_mean(run, cells)
    else:
        values = latent_sample(run, cells, n_samples=question.draws, seed=question.seed)
        values = values if question.draws == 1 else values.mean(0)
    names = [f"Z_{number}" for number in range(values.shape[1])]
    return pd.DataFrame(values, index=run.cell_names[run.rows(cells)], columns=names).rename_axis("cell")


def _library(run: TrainedRun, question: Question, cells: np.ndarray | None) -> pd.DataFrame:
    from cellweave.core.query.latent import latent_library

    return pd.DataFrame({"library_size": latent_library(run, cells)}, index=run.cell_names[run.rows(cells)]).rename_axis("cell")


def _correlation(run: TrainedRun, question: Question, cells: np.ndarray | None) -> pd.DataFrame:
    from cellweave.core.query.sampling import feature_correlation

    return feature_correlation(
        run, cells, features=question.genes, kind="pearson" if question.pearson else "spearman", n_samples=question.draws or 10,
        transform_batch=_batches(run, question), seed=question.seed,
    ).rename_axis("feature")  # fmt: skip


def _differential(run: TrainedRun, question: Question, cells: np.ndarray | None) -> pd.DataFrame:
    from cellweave.core.query.differential import DifferentialOptions, differential_by_column

    options = DifferentialOptions(
        mode=question.mode, delta=question.delta, fdr_target=question.fdr, batch_correction=question.batch_correction, seed=question.seed  # type: ignore[arg-type]
    )
    return differential_by_column(run, _required(question.groupby, "--groupby"), question.group1, question.group2, within=cells, options=options)


def _pseudobulk(run: TrainedRun, question: Question, cells: np.ndarray | None) -> pd.DataFrame:
    from cellweave.core.query.pseudobulk import pseudobulk_differential

    if not question.sample:
        raise SpecError("'pseudobulk' needs --sample.", "Name the column that says which sample a cell is of.")
    return pseudobulk_differential(
        run, _required(question.groupby, "--groupby"), _required(question.group1, "--group1"), _required(question.group2, "--group2"),
        sample=question.sample, covariates=question.covariate, cells=cells, fdr_target=question.fdr,
    )  # fmt: skip


def _features(run: TrainedRun, question: Question, cells: np.ndarray | None) -> pd.DataFrame:
    from cellweave.core.query.description import feature_losses

    table = feature_losses(run, cells, n_samples=question.draws or 1, seed=question.seed)
    return table.sort_values("reconstruction", ascending=False, kind="stable")


def _dimensions(run: TrainedRun, question: Question, cells: np.ndarray | None) -> pd.DataFrame:
    from cellweave.core.query.description import dimension_divergences

    return dimension_divergences(run, cells)


def _alignment(run: TrainedRun, question: Question, cells: np.ndarray | None) -> pd.DataFrame:
    from cellweave.core.query.alignment import alignment_table

    return alignment_table(run, cells, labels=question.groupby)


def _transfer(run: TrainedRun, question: Question, cells: np.ndarray | None) -> pd.DataFrame:
    from cellweave.core.query.transfer import transfer_table

    column = _required(question.groupby, "--groupby")
    return transfer_table(run, column, cells, neighbours=question.neighbours, threshold=question.threshold)


_TABLES = {
    "latent": _latent, "library": _library, "correlation": _correlation, "differential": _differential, "pseudobulk": _pseudobulk,
    "features": _features, "dimensions": _dimensions, "alignment": _alignment, "transfer": _transfer,
}  # fmt: skip


def _values(run: TrainedRun, question: Question, cells: np.ndarray | None) -> int:
    """Write imputed, corrected or translated values."""
    from cellweave.core.query.mosaic import MosaicQuestion
    from cellweave.core.query.mosaic_files import write_mosaic

    assert question.out is not None
    wanted = (question.modality,) if question.modality else None
    if question.draws is not None:
        from cellweave.core.query.imputed import ImputedQuestion, write_imputed

        if question.sampled:
            raise SpecError("--draws gives means with their spread, --sampled counts.", "Give one of them.")
        write_imputed(run, question.out, cells, ImputedQuestion(question.given, wanted, question.draws, seed=question.seed))
        say(f"{question.out}")
        return EXIT_DONE
    asked = MosaicQuestion(question.what, question.given, wanted, question.sampled, question.seed)  # type: ignore[arg-type]
    say(f"{write_mosaic(run, question.out, cells, asked)}")
    return EXIT_DONE


def _required(value: str | None, option: str) -> str:
    if value is None:
        raise SpecError(f"{option} is needed.", "Name it; 'cellweave query --help' says what it is.")
    return value


def _table(table: pd.DataFrame, question: Question) -> int:
    for text in table.attrs.get("notes", []):
        note(text)
    if question.out is not None:
        write_or_say(question.out.absolute(), table.to_csv)
        say(str(question.out))
        return EXIT_DONE
    head = table.head(SHOWN)
    rows = [(str(name), *(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row)) for name, *row in head.itertuples()]
    say_table((str(table.index.name), *map(str, table.columns)), rows)
    if len(table) > SHOWN:
        note(f"{counted(len(table) - SHOWN, 'further row is', 'further rows are')} not shown; --out FILE.csv writes all.")
    return EXIT_DONE


# ---------------------------------------------------------------------- the rest


def _batches(run: TrainedRun, question: Question) -> tuple[str, ...] | None:
    return run.batches if question.all_batches else question.as_batch


def _expression(run: TrainedRun, question: Question, cells: np.ndarray | None) -> int:
    assert question.out is not None
    size = question.library_size
    how = ExpressionQuestion(question.genes, _batches(run, question), size, question.draws, question.seed, question.as_level)  # type: ignore[arg-type]
    if question.out.suffix != ".csv":
        write_expression(run, question.out, cells, how)
    else:
        rows, names = run.rows(cells), run.feature_names(question.genes)
        how.check()

        def write(path: Path) -> None:
            for where, values in expression_chunks(run, rows, how):
                part = pd.DataFrame(values, index=run.cell_names[rows[where]], columns=names).rename_axis("cell")
                part.to_csv(path, mode="a", header=where.start == 0)

        write_or_say(question.out.absolute(), write)
    say(str(question.out))
    return EXIT_DONE


def _minify(run: TrainedRun, question: Question, cells: np.ndarray | None) -> int:
    from cellweave.core.query.minified import write_minified

    if cells is not None:
        raise SpecError("Minified data hold all cells of a run.", "Leave --cells out.")
    say(str(write_minified(run, cast(Path, question.out), counts=question.with_counts)))
    return EXIT_DONE


def _attribution(run: TrainedRun, question: Question, cells: np.ndarray | None, others: object) -> int:
    """Compute the scores of the cells; with --keep also store them as the run's own."""
    from cellweave.core.query.attribution import AttributionQuestion, attribute
    from cellweave.core.query.attribution_results import keep_attribution, scores_of

    if question.library_size not in (1.0, "latent"):
        raise SpecError("'attribution' takes the mean library size, or each cell's own.", "Leave --library-size out, or write --library-size latent.")
    if question.keep and (others or cells is not None):
        raise SpecError("Only the attribution of the run's own cells, all of them, can be kept with it.", "Leave --keep out, or --cells and --data.")
    asked = AttributionQuestion(
        method=question.method, remove_covariates=question.remove_covariates, covariate_reference=question.covariate_reference,  # type: ignore[arg-type]
        library="posterior" if question.library_size == "latent" else "prior",
    )
    began = time.perf_counter()
    found = attribute(run.model, run.loader, run.rows(cells), asked, progress=run.progress, cancelled=run.cancelled)
    seconds = time.perf_counter() - began
    if question.keep:
        for path in keep_attribution(run, found, asked, seconds):
            note(f"{path} is written.")
    scores = scores_of(found, asked)
    table = pd.DataFrame(scores.columns(), index=run.cell_names[found.rows]).rename_axis("cell")
    for name in scores.modalities:
        shares = ", ".join(f"{block} {share:.0%}" for block, share in scores.block_shares(name).items())
        note(f"The {name} decoder is driven by the latents of: {shares}.")
    note(f"{counted(len(table), 'cell')} in {seconds:.1f} s.")
    return _table(table, question)


def _effects(run: TrainedRun, question: Question, cells: np.ndarray | None, others: object) -> int:
    """Show the ambient genes of each library and what else covariates do; with --keep also store it as the run's own."""
    from cellweave.core.query.effects import covariate_effects, gene_table

    if cells is not None or (question.keep and others):
        raise SpecError("The effects of covariates are those of all cells.", "Leave --cells out, and --data where --keep is given.")
    found = covariate_effects(
        run.model, run.loader, run.trained.features, run.trained.encoding.levels, progress=run.progress, cancelled=run.cancelled
    )
    if question.keep:
        for path in found.save(run.path / "results"):
            note(f"{path} is written.")
    for name, norms in found.norms.items():
        note(f"{name}: covariates have {norms['share']:.1%} of the norm of the decoder's first layer.")
        for column, table in found.background.get(name, {}).items():
            known = [(level, share) for level, share in zip(table.levels, found.level_share(name, column), strict=True) if np.isfinite(share)]
            shares = ", ".join(f"{level} {share:.1%}" for level, share in known)
            note(f"{name}: share of background in the expected counts, by {column}: {shares}.")
    return _table(gene_table(found), question)


def _evaluate(run: TrainedRun, question: Question, cells: np.ndarray | None) -> int:
    """Show the numbers of all cells; with --out write the terms of each."""
    from cellweave.core.query.evaluate import cell_terms, discrepancy, has_marginal, marginal_ll

    terms = cell_terms(run, cells, n_samples=question.draws or 1, seed=question.seed)
    whole = has_marginal(run)
    if whole:
        terms["marginal_ll"] = marginal_ll(run, cells, n_samples=question.draws or MARGINAL_DRAWS, seed=question.seed)
    if question.out is not None:
        write_or_say(question.out.absolute(), terms.rename_axis("cell").to_csv)
    rows = [(name, f"{value:.4f}", "nats per cell") for name, value in terms.mean().items()]
    if whole and len(run.batches) > 1:
        found = discrepancy(run, cells, seed=question.seed)
        rows += [(f"mmd {row.batch1} / {row.batch2}", f"{row.mmd:.5f}", "per minibatch") for row in found.pairs.itertuples()]
    say_table(("what", "mean", "unit"), rows)
    if question.out is not None:
        say(str(question.out))
    return EXIT_DONE
