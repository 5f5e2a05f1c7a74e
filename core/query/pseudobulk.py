"""Differential expression between samples: counts summed over the cells of each sample, tested with DESeq2's model (through PyDESeq2).

Cells of one sample are not independent of each other, so a test over cells finds differences between samples that are none between
conditions; sums over samples are what bulk methods were made for.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from cellweave.core.analysis.deseq import fit, fit_apart
from cellweave.core.query.groups import column_of
from cellweave.core.query.latent import Cells
from cellweave.core.query.trained_run import QueryError, TrainedRun
from cellweave.core.wording import counted

HOW_TO_INSTALL = "Install it with: pip install 'cellweave[pseudobulk]'."
#: Samples of a group without which nothing can be said of the spread between samples.
MIN_SAMPLES = 2


@dataclass(frozen=True)
class Pseudobulk:
    """Counts of samples.

    Attributes
    ----------
    counts
        Sums, int64 ``(n_samples, n_features)``, samples and features by name.
    samples
        One row a sample: ``cells`` and the value of each asked column, which all cells of a sample share.
    """

    counts: pd.DataFrame
    samples: pd.DataFrame


def pseudobulk(run: TrainedRun, sample: Sequence[str] | str, columns: Sequence[str] = (), *, cells: Cells = None, min_cells: int = 10) -> Pseudobulk:
    """Sum the counts over the cells of each sample.

    Parameters
    ----------
    run
        An open run.
    sample
        Column that says which sample a cell is of, or several whose combinations do.
    columns
        Columns to carry over; each must have one value in a sample.
    cells
        Rows or a mask (of one cell type, say); None for all usable cells.
    min_cells
        Samples with fewer cells are left out.

    Returns
    -------
    Pseudobulk
        Sums over samples, in the order of their names.

    Raises
    ------
    QueryError
        Where a column does not exist or varies within a sample, values are not whole numbers, or no sample is large enough.
    """
    run.require_counts("summing counts over samples")
    rows = run.rows(cells)
    keys = [sample] if isinstance(sample, str) else list(sample)
    parts = [column_of(run, name).iloc[rows] for name in keys]
    known = np.logical_and.reduce([part.notna().to_numpy() for part in parts])
    rows, parts = rows[known], [part[known].astype(str) for part in parts]
    label = parts[0]
    for part in parts[1:]:
        label = label + "_" + part
    names, code = np.unique(label.to_numpy(dtype=str), return_inverse=True)
    sizes = np.bincount(code, minlength=len(names))
    large = sizes >= min_cells
    if not large.any():
        raise QueryError(f"No sample has {counted(min_cells, 'cell')} or more.", "Lower the smallest number of cells, or choose coarser samples.")
    table = pd.DataFrame({"cells": sizes}, index=pd.Index(names, name="sample"))
    for name in columns:
        values = column_of(run, name).iloc[rows].astype(object)
        by_sample = values.groupby(code)
        if (by_sample.nunique(dropna=False) > 1).any():
            mixed = names[int(np.flatnonzero((by_sample.nunique(dropna=False) > 1).to_numpy())[0])]
            raise QueryError(f"'{name}' is not the same in all cells of the sample '{mixed}'.", f"Name '{name}' among the columns that make a sample.")
        table[name] = by_sample.first().to_numpy()
    modality = run.data.modalities[0]
    member = sparse.csr_matrix((np.ones(len(rows)), (code, np.arange(len(rows)))), shape=(len(names), len(rows)))
    sums = np.asarray((member @ modality.counts[rows].astype(np.float64)).todense())
    if not np.array_equal(sums, np.rint(sums)):
        raise QueryError("The values are not whole numbers, so they cannot be tested as counts.", "Use raw counts.")
    counts = pd.DataFrame(sums.astype(np.int64), index=names, columns=list(run.features))
    return Pseudobulk(counts[large], table[large])


def pseudobulk_differential(
    run: TrainedRun,
    groupby: str,
    group1: str,
    group2: str,
    *,
    sample: Sequence[str] | str,
    covariates: Sequence[str] = (),
    cells: Cells = None,
    min_cells: int = 10,
    min_counts: int = 10,
    fdr_target: float = 0.05,
) -> pd.DataFrame:
    """Test two groups of samples with DESeq2's negative binomial model and Wald test.

    Parameters
    ----------
    run, cells, min_cells
        As in :func:`pseudobulk`.
    groupby, group1, group2
        Column of the samples and its two levels; a positive fold change is higher in ``group1``.
    sample
        Column, or columns, that say which sample a cell is of.
    covariates
        Further columns of the samples in the model (the donor of paired samples).
    min_counts
        Features with a smaller sum over all samples are left out.
    fdr_target
        Benjamini and Hochberg's rate, for the column ``is_de_fdr_TARGET``.

    Returns
    -------
    pandas.DataFrame
        One row a tested feature by name, the smallest p-value first: ``mean``, ``lfc``, ``lfc_se``, ``statistic``, ``p_value``, ``p_adjusted``,
        ``is_de_fdr_TARGET``, ``comparison``, ``group1``, ``group2``.

    Raises
    ------
    QueryError
        Where PyDESeq2 is not installed, a group has fewer than two samples, or a covariate cannot be told from the groups.
    Cancelled
        Where the run was told how to be cancelled, and somebody did: the fit is then in a process that is ended.
    """
    if group1 == group2:
        raise QueryError(f"'{group1}' would be compared with itself.", "Choose two different groups.")
    _require_pydeseq2()
    found = pseudobulk(run, sample, (groupby, *covariates), cells=cells, min_cells=min_cells)
    samples = found.samples.assign(**{groupby: found.samples[groupby].astype(str)})
    for group in (group1, group2):
        n = int((samples[groupby] == group).sum())
        if n < MIN_SAMPLES:
            raise QueryError(
                f"The group '{group}' has {n} sample{'s' * (n != 1)} of {counted(min_cells, 'cell')} or more; the spread between samples cannot be known.",
                f"At least {MIN_SAMPLES} samples a group are needed: use the differential expression of the model instead.",
            )
    samples, counts = _in_order(samples[samples[groupby].isin([group1, group2])], found.counts, groupby)
    counts = counts.loc[:, counts.sum() >= min_counts]
    if counts.shape[1] < 2:
        raise QueryError("Too few features have enough counts in these samples.", "Lower the smallest sum of counts, or choose more cells.")
    design, table = _design(samples, groupby, (group1, group2), covariates)
    values = counts.to_numpy()
    # Where nobody can cancel (the command line, a script) a process of its own would only cost its start.
    found_here = fit_apart(values, table, design, fdr_target, run.cancelled) if run.can_be_cancelled else fit(values, table, design, fdr_target)
    return _renamed(found_here.set_axis(counts.columns), group1, group2, fdr_target)


def _in_order(samples: pd.DataFrame, counts: pd.DataFrame, groupby: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return samples by group and then by their counts: the fit depends a little on the order of samples, which their names must not decide."""
    values = counts.loc[samples.index].to_numpy()
    groups = samples[groupby].to_numpy(dtype=str)
    order = sorted(range(len(samples)), key=lambda row: (groups[row], values[row].tolist()))
    chosen = samples.iloc[order]
    return chosen, counts.loc[chosen.index]


def _require_pydeseq2() -> None:
    """Refuse the test where PyDESeq2 is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pydeseq2.dds  # noqa: F401
    except ImportError:
        raise QueryError("Pseudobulk tests are computed by PyDESeq2, which is not installed.", HOW_TO_INSTALL) from None


def _design(samples: pd.DataFrame, groupby: str, groups: tuple[str, str], covariates: Sequence[str]) -> tuple[str, pd.DataFrame]:
    """Return the model's formula and its table; columns get names that a formula can hold."""
    table = pd.DataFrame({"group": np.where(samples[groupby] == groups[0], "first", "second")}, index=samples.index)
    terms = []
    for number, name in enumerate(covariates):
        column = samples[name].infer_objects()
        table[f"c{number}"] = column if pd.api.types.is_float_dtype(column) else column.astype(str)
        terms.append(f"c{number}")
    matrix = pd.get_dummies(table, drop_first=True, dtype=float).assign(one=1.0).to_numpy()
    if np.linalg.matrix_rank(matrix) < matrix.shape[1]:
        raise QueryError(
            f"The effect of '{groupby}' cannot be told from that of {', '.join(covariates) or 'the constant'} in these samples.", "Leave a covariate out."
        )
    if matrix.shape[1] >= matrix.shape[0]:
        raise QueryError(
            f"{counted(matrix.shape[0], 'sample is', 'samples are')} too few for a model of "
            f"{counted(matrix.shape[1], 'coefficient')}.", "Leave a covariate out."
        )
    return "~" + " + ".join([*terms, "group"]), table


def _renamed(results: pd.DataFrame, group1: str, group2: str, fdr_target: float) -> pd.DataFrame:
    table = results.sort_values("p_value", kind="stable")
    table.index.name = "feature"
    table[f"is_de_fdr_{fdr_target}"] = table["p_adjusted"] <= fdr_target
    return table.assign(comparison=f"{group1} vs {group2}", group1=group1, group2=group2)
