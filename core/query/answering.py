"""Answers to declared questions, written into the run folder."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellweave.core.errors import CellweaveError
from cellweave.core.files import write_json_atomic
from cellweave.core.query.expression import ExpressionQuestion, expression_chunks
from cellweave.core.query.expression_files import covariates_of, write_expression, write_or_say
from cellweave.core.query.questions import (
    CorrelationOptions,
    DimensionOptions,
    DiscrepancyOptions,
    EvaluationOptions,
    ExpressionOptions,
    FeatureOptions,
    LatentOptions,
    LibraryOptions,
    ParameterOptions,
    PredictiveOptions,
    Question,
)
from cellweave.core.query.trained_run import QueryError, TrainedRun
from cellweave.core.spec.modalities import modality_kind, names_meant
from cellweave.core.wording import agree, counted

FOLDER = "answers"
JOINT = "joint"
Rows = np.ndarray


@dataclass(frozen=True)
class AnswerTable:
    """A table that is short enough to be looked at beside the words.

    Attributes
    ----------
    columns
        Name, title, help and kind (``"text"``, ``"number"``, ``"share"`` or ``"count"``) of each column, in order.
    values
        Values by name, arrays of one length.
    sort_by
        Column that it is sorted by at first, highest values on top; empty keeps the order.
    """

    columns: tuple[tuple[str, str, str, str], ...]
    values: dict[str, np.ndarray]
    sort_by: str = ""


@dataclass(frozen=True)
class Told:
    """What a question found: sentences, and a table where it is one."""

    words: tuple[str, ...]
    table: AnswerTable | None = None


@dataclass(frozen=True)
class Answer:
    """An answer that was written.

    Attributes
    ----------
    path
        The file.
    words
        Sentences on what it says.
    table
        What it says as a table, where it is short enough to be looked at.
    """

    path: Path
    words: tuple[str, ...] = ()
    table: AnswerTable | None = field(default=None, compare=False)


def _as_the_model_names(run: TrainedRun, options: Any) -> Any:
    """Return the options with modalities named as the model names them: whoever reads RNA everywhere also writes it."""
    known = [modality.name for modality in run.data.modalities]
    fields = [field for field in ("given", "modalities") if getattr(options, field, None)]
    return options.model_copy(update={field: names_meant(getattr(options, field), known) for field in fields})


def ask(run: TrainedRun, question: Question, options: Any, rows: Rows | None = None, *, suffix: str = "") -> Answer:
    """Answer a question and keep the answer in the run folder, with the options beside it.

    Parameters
    ----------
    run
        An open run.
    question
        One of :func:`cellweave.core.query.questions.questions_of`.
    options
        An instance of its options.
    rows
        Rows of the study; None for all usable cells.
    suffix
        One of the question's formats; empty takes the usual one.

    Returns
    -------
    Answer
        In ``results/answers`` of the run folder.

    Raises
    ------
    QueryError
        Where the model or the cells cannot answer.
    CellweaveError
        Where the file cannot be written.
    """
    suffix = suffix or question.formats[0]
    if suffix not in question.formats:
        raise QueryError(f"'{question.title}' is not written as {suffix}.", f"Choose {' or '.join(question.formats)}.")
    folder = run.path / "results" / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CellweaveError(f"'{folder}' cannot be made: {error.strerror or error}.", "Check that you may write there.") from error
    number = 1
    while any(folder.glob(f"{question.name}-{number:02d}.*")):
        number += 1
    path = folder / f"{question.name}-{number:02d}{suffix}"
    options = _as_the_model_names(run, options)
    found = question.load()(run, options, run.rows(rows), path)
    words, table = (found.words, found.table) if isinstance(found, Told) else (tuple(found), None)
    told = {
        "question": question.name, "made": datetime.now().astimezone().isoformat(timespec="seconds"), "cells": "all" if rows is None else len(rows),
        "options": options.model_dump(mode="json"), "words": list(words),
    }  # fmt: skip
    write_json_atomic(path.with_suffix(".json"), told)
    return Answer(path, words, table)


# ---------------------------------------------------------------------- cell by cell


def answer_latent(run: TrainedRun, options: LatentOptions, rows: Rows, path: Path) -> list[str]:
    """Write the latent space."""
    from cellweave.core.query.latent import latent_distribution, latent_mean, latent_sample

    if options.what == "distribution":
        mean, var = latent_distribution(run, rows)
        parts = {"mean": mean, "var": var}
    else:
        value = latent_mean(run, rows) if options.what == "mean" else latent_sample(run, rows, seed=options.seed)
        parts = {"": value}
    names = [f"Z_{number}" + (f"_{part}" if part else "") for part, values in parts.items() for number in range(values.shape[1])]
    if path.suffix == ".csv":
        write_csv(path, pd.DataFrame(np.concatenate(list(parts.values()), axis=1), index=run.cell_names[rows], columns=names).rename_axis("cell"))
    else:
        keys = {"": "X_latent", "mean": "X_latent_qzm", "var": "X_latent_qzv"}
        write_h5ad(path, run, rows, obsm={keys[part]: values for part, values in parts.items()})
    return [f"{counted(len(rows), 'cell')} in {counted(next(iter(parts.values())).shape[1], 'dimension')}."]


def answer_library(run: TrainedRun, options: LibraryOptions, rows: Rows, path: Path) -> list[str]:
    """Write the library size of each cell."""
    from cellweave.core.query.latent import latent_library

    values = latent_library(run, rows, sample=options.sample, seed=options.seed)
    _columns(path, run, rows, pd.DataFrame({"library_size": values}, index=run.cell_names[rows]))
    return [f"Median library size {np.median(values):,.0f}, from {values.min():,.0f} to {values.max():,.0f}."]


def answer_evaluation(run: TrainedRun, options: EvaluationOptions, rows: Rows, path: Path) -> list[str]:
    """Write the terms of the evidence lower bound of each cell, and say their means."""
    from cellweave.core.query.evaluate import cell_terms, has_marginal, marginal_ll

    table = cell_terms(run, rows, n_samples=options.draws, seed=options.seed)
    if options.marginal and has_marginal(run):
        table["marginal_ll"] = marginal_ll(run, rows, n_samples=options.marginal_draws, seed=options.seed)
    _columns(path, run, rows, table)
    titles = {term.name: term.label for term in run.spec.terms()}
    titles |= {"elbo": "ELBO", "reconstruction": "Reconstruction error", "marginal_ll": "Marginal log-likelihood"}
    means = [(titles.get(str(name), str(name)), f"{value:,.3f}".replace("-", "\N{MINUS SIGN}")) for name, value in table.mean().items()]
    said = [f"{title}: {value} nats per cell." for title, value in means]
    if options.marginal and not has_marginal(run):
        said.append(f"The marginal log-likelihood is not estimated for {run.spec.family.title}, which has dispersions that all cells share.")
    return said


# ---------------------------------------------------------------------- cells and genes


def _batches(run: TrainedRun, names: Sequence[str], *, every: bool = False) -> tuple[str, ...] | None:
    if every and names:
        raise QueryError("Batches are named, and every batch is asked for.", "Choose one of the two.")
    if every:
        if not run.batches:
            raise QueryError("The model was trained without a batch, so there is none to decode as.", "Switch 'Decode as every batch' off.")
        return run.batches
    return tuple(names) or None


def answer_expression(run: TrainedRun, options: ExpressionOptions, rows: Rows, path: Path) -> list[str]:
    """Write normalised expression, a few cells at a time."""
    genes = options.genes or None
    how = ExpressionQuestion(
        genes, _batches(run, options.as_batch, every=options.all_batches), "latent" if options.library_size is None else options.library_size, options.draws,
        options.seed,
    )  # fmt: skip
    names = run.feature_names(genes)
    if path.suffix == ".h5ad":
        write_expression(run, path, rows, how)
    else:
        how.check()

        def write(temporary: Path) -> None:
            for where, values in expression_chunks(run, rows, how):
                part = pd.DataFrame(values, index=run.cell_names[rows[where]], columns=names).rename_axis("cell")
                part.to_csv(temporary, mode="w" if where.start == 0 else "a", header=where.start == 0)

        write_or_say(path, write)
    return [f"{counted(len(rows), 'cell')} × {counted(len(names), 'gene')}."]


def answer_predictive(run: TrainedRun, options: PredictiveOptions, rows: Rows, path: Path) -> list[str]:
    """Write posterior predictive counts, one layer a draw."""
    from cellweave.core.query.sampling import posterior_predictive

    genes = options.genes or None
    draws = posterior_predictive(
        run, rows, n_samples=options.draws, features=genes, transform_batch=_batches(run, options.as_batch), seed=options.seed
    )
    layers = {f"draw_{number}": values for number, values in enumerate(draws[1:], 2)}
    write_h5ad(path, run, rows, values=draws[0], names=run.feature_names(genes), layers=layers)
    return [f"{counted(options.draws, 'draw')} of {counted(len(rows), 'cell')}; the first is in X, further ones in layers."]


def answer_parameters(run: TrainedRun, options: ParameterOptions, rows: Rows, path: Path) -> list[str]:
    """Write the parameters of the likelihood, one layer each."""
    from cellweave.core.query.sampling import likelihood_parameters

    genes = options.genes or None
    found = likelihood_parameters(run, rows, features=genes, n_samples=options.draws, seed=options.seed)
    layers = {name: values for name, values in found.items() if name != "mean"}
    write_h5ad(path, run, rows, values=found["mean"], names=run.feature_names(genes), layers=layers)
    return ["The mean is in X" + (f", {' and '.join(layers)} in layers." if layers else ".")]


def answer_correlation(run: TrainedRun, options: CorrelationOptions, rows: Rows, path: Path) -> list[str]:
    """Write the correlation of genes."""
    from cellweave.core.query.sampling import feature_correlation

    table = feature_correlation(
        run, rows, features=options.genes or None, kind=options.correlation, n_samples=options.draws, library_size=options.library_size,
        transform_batch=_batches(run, options.as_batch), seed=options.seed,
    )  # fmt: skip
    if path.suffix == ".csv":
        write_csv(path, table.rename_axis("feature"))
    else:
        _write_h5ad(path, obs=pd.DataFrame(index=table.index.astype(str)), values=table.to_numpy(np.float32), names=[str(name) for name in table.columns])
    return [f"{counted(len(table), 'gene')}."]


def answer_features(run: TrainedRun, options: FeatureOptions, rows: Rows, path: Path) -> Told:
    """Write the reconstruction loss of every feature."""
    from cellweave.core.query.description import feature_losses

    found = feature_losses(run, rows, n_samples=options.draws, seed=options.seed)
    write_csv(path, found)
    words = []
    for name, table in found.groupby("modality", sort=False):
        ten = table["share"].nlargest(max(1, len(table) // 10)).sum()
        words.append(
            f"{counted(len(table), f'{modality_kind(str(name)).label} feature')}: {table['reconstruction'].sum():,.2f} nats per cell in all, "
            f"{ten:.0%} of it by the "
            "worst tenth of them."
        )
    columns = (
        ("feature", "Feature", "", "text"),
        ("modality", "Modality", "", "text"),
        ("reconstruction", "Loss (nats)", "Negative log-likelihood of its counts, mean over the cells in which it was measured", "number"),
        ("share", "Share", "Of the loss of all features of the modality", "share"),
        ("mean_count", "Mean count", "Over these cells", "number"),
        ("detected", "Detected", "Share of these cells with a count", "share"),
        ("cells", "Cells", "In which it was measured", "count"),
    )
    return Told(tuple(words), _shown(found, columns, "reconstruction", "modality"))


def answer_dimensions(run: TrainedRun, options: DimensionOptions, rows: Rows, path: Path) -> Told:
    """Write the divergence of every latent dimension."""
    from cellweave.core.query.description import dimension_divergences

    found = dimension_divergences(run, rows)
    write_csv(path, found)
    words = []
    for name, table in found.groupby("encoder", sort=False):
        used = int((table["active"] > 0).sum())
        of = "" if found["encoder"].nunique() == 1 else f" {modality_kind(str(name)).label}"
        words.append(
            f"{used} of {len(table)}{of} dimensions {agree(used, 'is', 'are')} used in some cell; together they say {table['kl'].sum():,.2f} "
            "nats of a cell."
        )
    columns = (
        ("dimension", "Dimension", "", "text"),
        ("encoder", "Encoder", "Modality whose counts it is told from", "text"),
        ("kl", "KL (nats)", "Divergence from the prior, mean over the cells; 0 where the dimension says nothing", "number"),
        ("active", "Active in", "Share of the cells in which the divergence is above 0.01 nats", "share"),
        ("posterior_variance", "Posterior variance", "Mean over the cells; 1 where nothing was learned", "number"),
        ("spread", "Spread", "Variance of the posterior means between the cells", "number"),
        ("cells", "Cells", "In which the modality was measured", "count"),
    )
    return Told(tuple(words), _shown(found, columns, "kl", "encoder"))


def _shown(found: pd.DataFrame, columns: tuple[tuple[str, str, str, str], ...], sort_by: str, of: str) -> AnswerTable:
    """Return a table for the window; the column ``of`` is left out where it says the same of every row."""
    table = found.reset_index()
    table[of] = [JOINT if name == JOINT else modality_kind(str(name)).label for name in table[of]]
    kept = tuple(one for one in columns if one[0] != of or table[of].nunique() > 1)
    return AnswerTable(kept, {name: table[name].to_numpy() for name, *_ in kept}, sort_by)


def answer_discrepancy(run: TrainedRun, options: DiscrepancyOptions, rows: Rows, path: Path) -> Told:
    """Write the discrepancy of every pair of batches."""
    from cellweave.core.query.evaluate import discrepancy

    found = discrepancy(run, rows, batch_size=options.batch_size, sample=options.sample, seed=options.seed)
    write_csv(path, found.pairs.set_index("batch1"))
    columns = (
        ("batch1", "Batch", "", "text"),
        ("batch2", "Beside", "", "text"),
        ("mmd", "Discrepancy", "Mean over the minibatches that have cells of both", "number"),
        ("minibatches", "Minibatches", "That have cells of both", "count"),
        ("skipped", "Left out", "Minibatches with too few cells of one of them", "count"),
    )
    table = AnswerTable(columns, {name: found.pairs[name].to_numpy() for name, *_ in columns}, "mmd")
    return Told((f"Per minibatch: {found.per_minibatch:.5f}, over {len(found.pairs)} pair{'s' * (len(found.pairs) != 1)} of batches.",), table)


# ---------------------------------------------------------------------- files


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table, whole or not at all."""
    write_or_say(path, table.to_csv)


def _columns(path: Path, run: TrainedRun, rows: Rows, table: pd.DataFrame) -> None:
    """Write one value or more of each cell."""
    if path.suffix == ".csv":
        write_csv(path, table.rename_axis("cell"))
    else:
        write_h5ad(path, run, rows, columns=table)


def write_h5ad(
    path: Path,
    run: TrainedRun,
    rows: Rows,
    *,
    values: Any = None,
    names: Sequence[str] = (),
    layers: dict[str, Any] | None = None,
    obsm: dict[str, np.ndarray] | None = None,
    columns: pd.DataFrame | None = None,
) -> None:
    """Write values of the cells, or of the cells and genes, with the covariates of the run in ``obs``."""
    obs = covariates_of(run, rows)
    if columns is not None:
        for name in columns.columns:
            obs[name] = columns[name].to_numpy()
    _write_h5ad(path, obs=obs, values=values, names=names, layers=layers, obsm=obsm)


def _write_h5ad(
    path: Path,
    *,
    obs: pd.DataFrame,
    values: Any = None,
    names: Sequence[str] = (),
    layers: dict[str, Any] | None = None,
    obsm: dict[str, np.ndarray] | None = None,
) -> None:
    import anndata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        var = pd.DataFrame(index=pd.Index([str(name) for name in names], dtype=object))
        adata = anndata.AnnData(X=values, obs=obs, var=var, obsm=obsm or {}, layers=layers or {})
        write_or_say(path, lambda temporary: adata.write_h5ad(temporary, compression="gzip"))

