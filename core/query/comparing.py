"""Two groups of cells compared as the settings say: by the model, or by sums over samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from cellweave.core.query.comparison_settings import ComparisonSettings
from cellweave.core.query.differential import DifferentialOptions, differential
from cellweave.core.query.groups import Comparison, by_cells
from cellweave.core.query.pseudobulk import pseudobulk_differential
from cellweave.core.query.trained_run import QueryError, TrainedRun

GROUP = "group (compared)"  # column that says which of the two groups a cell is in


def compare(
    run: TrainedRun, group1: tuple[str, np.ndarray], group2: tuple[str, np.ndarray], settings: ComparisonSettings | None = None
) -> pd.DataFrame:
    """Compare two groups of cells.

    Parameters
    ----------
    run
        An open run; its progress is told as one share over everything that is sampled.
    group1, group2
        Name and rows of the study of each group. A positive fold change is higher in the first.
    settings
        None for the defaults.

    Returns
    -------
    pandas.DataFrame
        As :func:`cellweave.core.query.differential.differential` or :func:`cellweave.core.query.pseudobulk.pseudobulk_differential`; what a
        person should know is in ``attrs["notes"]``.

    Raises
    ------
    QueryError
        Where a group is empty or too small, groups overlap, or a gene, column or batch is not known.
    """
    settings = settings or ComparisonSettings()
    if group1[0] == group2[0]:
        raise QueryError(f"Both groups are called '{group1[0]}'.", "Give them different names.")
    groups = by_cells(run, group1[1], group2[1], (group1[0], group2[0]))
    if settings.genes:
        run.columns(settings.genes)  # says which names it does not know, before anything is computed
    table = _pseudobulk(run, groups, settings) if settings.method == "pseudobulk" else _model(run, groups, settings)
    if not settings.genes:
        return table
    attrs = table.attrs
    known = set(settings.genes)
    table = table[[name in known for name in table.index]]
    if table.empty:
        raise QueryError("None of the genes asked for has enough counts in these samples.", "Lower the smallest sum of counts, or ask for others.")
    table.attrs = attrs
    return table


def _model(run: TrainedRun, groups: Comparison, settings: ComparisonSettings) -> pd.DataFrame:
    options = DifferentialOptions(
        mode=settings.mode, delta=settings.delta, test_mode=settings.test_mode, pseudocount=settings.pseudocount, batch_correction=settings.batch_correction,
        n_samples=settings.n_samples, weights=settings.weights, use_permutation=settings.use_permutation, fdr_target=settings.fdr_target,
        filter_outlier_cells=settings.filter_outlier_cells, seed=settings.seed,
    )  # fmt: skip
    passes = 4 * (len(run.batches) if settings.batch_correction else 1) + 2 * settings.filter_outlier_cells
    return differential(run.watched(_in_passes(run.progress, passes)), groups, options)


def _in_passes(tell: Callable[[float], None], passes: int) -> Callable[[float], None]:
    """Return a function that tells one share over several passes, each of which goes from 0 to 1."""
    at = {"pass": 0, "share": 0.0}

    def told(share: float) -> None:
        if share < at["share"]:
            at["pass"] += 1
        at["share"] = share
        tell(min(1.0, (at["pass"] + share) / passes))

    return told


def _pseudobulk(run: TrainedRun, groups: Comparison, settings: ComparisonSettings) -> pd.DataFrame:
    if not settings.sample:
        raise QueryError("Pseudobulk sums over samples, and no column says which sample a cell is of.", "Name one under 'Sample'.")
    column = np.full(run.n_cells, None, dtype=object)
    column[groups.rows1], column[groups.rows2] = groups.name1, groups.name2
    study = replace(run.study, obs=run.study.obs.assign(**{GROUP: column}))
    table = pseudobulk_differential(
        replace(run, study=study), GROUP, groups.name1, groups.name2, sample=(*settings.sample, GROUP), covariates=settings.covariates,
        cells=np.union1d(groups.rows1, groups.rows2), min_cells=settings.min_cells, min_counts=settings.min_counts, fdr_target=settings.fdr_target,
    )  # fmt: skip
    table.attrs = {"notes": []}
    return table
