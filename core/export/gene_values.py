"""Values of genes in cells, to colour them by: counts, log-normalised counts, and what the model decodes."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from cellweave.core.errors import SpecError

if TYPE_CHECKING:
    from cellweave.core.query.trained_run import TrainedRun
    from cellweave.core.study.study import Modality, Study

Source = Literal["counts", "gene", "denoised", "corrected"]
#: Title, unit and help of each source.
SOURCES: dict[Source, tuple[str, str, str]] = {
    "gene": ("Log counts", "log(1 + scaled counts)", "Counts scaled to the median total of the cells, then log(1 + x)."),
    "counts": ("Counts", "counts", "As they are in the file."),
    "denoised": ("Denoised", "log(1 + per 10,000)", "What the model expects of each cell, decoded as the cell's own batch: the batch effect stays."),
    "corrected": ("Corrected", "log(1 + per 10,000)", "Every cell decoded as the same batch, or as each batch and averaged: the batch effect is taken out."),
}
SCALED_TO = 1e4


def measured_values(
    study: Study, modality: str | None, genes: Sequence[str], rows: NDArray[np.int64], *, log: bool
) -> NDArray[np.float32]:
    """Return counts of genes in some cells.

    Parameters
    ----------
    study
        The loaded data.
    modality
        Where the genes are; None takes the main one.
    genes
        Names of features.
    rows
        Rows of the study.
    log
        Scale every cell to the median total of these cells and take ``log(1 + x)``.

    Returns
    -------
    ndarray
        float32 ``(n_rows, n_genes)``.

    Raises
    ------
    SpecError
        Where a gene is not known; the sentence proposes the nearest.
    """
    found = study.main_modality(modality)
    columns = columns_of(found, genes)
    counts = found.counts[rows]
    values = counts[:, columns].toarray().astype(np.float64)
    if not log:
        return values.astype(np.float32)
    totals = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    some = totals > 0
    target = float(np.median(totals[some])) if some.any() else 1.0
    factor = np.divide(target, totals, out=np.zeros_like(totals), where=some)
    return np.log1p(values * factor[:, None]).astype(np.float32)


def feature_names(folder: Path) -> list[str]:
    """Return the features that the model of a run knows, of its first modality; none where there is no model yet.

    Parameters
    ----------
    folder
        The run folder. Only the description of the model is read, not the model.
    """
    try:
        tree = json.loads((folder / "model" / "model.json").read_text(encoding="utf-8"))
        return [str(name) for name in next(iter(tree["features"].values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return []


def columns_of(modality: Modality, genes: Sequence[str]) -> list[int]:
    """Return where genes are in a modality.

    Raises
    ------
    SpecError
        Where one is not known.
    """
    names = [str(name) for name in modality.var.index]
    place = {name: number for number, name in reversed(list(enumerate(names)))}
    for gene in genes:
        if gene not in place:
            by_case = next((name for name in names if name.lower() == gene.lower()), None)
            near = [by_case] if by_case else difflib.get_close_matches(gene, names, n=1, cutoff=0.5)
            raise SpecError(f"{modality.name} has no feature '{gene}'.", f"Did you mean '{near[0]}'?" if near else "Check the name.")
    return [place[gene] for gene in genes]


def decoded_values(run: TrainedRun, genes: Sequence[str], rows: NDArray[np.int64], batches: Sequence[str] | None) -> NDArray[np.float32]:
    """Return denoised expression of genes as ``log(1 + per 10,000)``.

    Parameters
    ----------
    run
        The trained run.
    genes
        Names of features.
    rows
        Rows of the study.
    batches
        Decode every cell as each of these batches and take the mean; None keeps each cell's own.

    Returns
    -------
    ndarray
        float32 ``(n_rows, n_genes)``.

    Raises
    ------
    QueryError
        Where a gene or a batch is not known.
    """
    from cellweave.core.query.expression import ExpressionQuestion, normalised_expression

    question = ExpressionQuestion(features=tuple(genes), transform_batch=None if batches is None else tuple(batches), library_size=SCALED_TO)
    return np.log1p(normalised_expression(run, rows, question))
