"""Groups of cells that are compared, and what their raw counts say."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from cellweave.core.query.latent import Cells
from cellweave.core.query.trained_run import QueryError, TrainedRun
from cellweave.core.training.data import row_totals
from cellweave.core.wording import counted

#: A group of fewer cells says nothing of a population.
MIN_CELLS = 3
NORMALISED_TO = 1e4
REST = "Rest"


@dataclass(frozen=True)
class Comparison:
    """Two groups of cells.

    Attributes
    ----------
    name1, name2
        What the groups are called.
    rows1, rows2
        Their rows of the study.
    """

    name1: str
    name2: str
    rows1: np.ndarray
    rows2: np.ndarray


def by_column(
    run: TrainedRun, groupby: str, group1: str | list[str] | None = None, group2: str | None = None, within: Cells = None
) -> list[Comparison]:
    """Return the comparisons that a column means.

    Parameters
    ----------
    run
        An open run.
    groupby
        Column of the cells.
    group1
        One or several levels, each compared on its own; None for every level.
    group2
        The level to compare with; None for all other cells.
    within
        Only these cells, as rows or a mask; None for all usable ones.

    Returns
    -------
    list of Comparison
        Cells without a value are in neither a group nor the rest.

    Raises
    ------
    QueryError
        Where the column or a level does not exist, or a group is too small.
    """
    column = column_of(run, groupby)
    rows = run.rows(within)
    values = np.array([None if pd.isna(value) else str(value) for value in column.iloc[rows]], dtype=object)
    known = values != None  # noqa: E711  (element by element)
    levels = list(dict.fromkeys([*_order(column), *values[known]]))
    levels = [level for level in levels if (values == level).any()]
    wanted = levels if group1 is None else [group1] if isinstance(group1, str) else list(group1)
    if group1 is None and group2 is not None:
        wanted = [level for level in wanted if level != group2]
    for level in [*wanted, *([] if group2 is None else [group2])]:
        _require_level(level, groupby, levels, column)
    if not wanted or (group2 is None and len(levels) < 2):
        only = f" ('{levels[0]}')" if levels else ""
        raise QueryError(f"The column '{groupby}' has only one level here{only}, so there is nothing to compare it with.", "Choose another column.")
    if group2 in wanted:
        raise QueryError(f"'{group2}' would be compared with itself.", "Choose two different groups.")
    found = []
    for level in wanted:
        second = known & (values != level) if group2 is None else values == group2
        found.append(checked(Comparison(level, group2 or REST, rows[values == level], rows[second])))
    return found


def column_of(run: TrainedRun, name: str) -> pd.Series:
    """Return a column of the cells, or say which there are."""
    if name not in run.study.obs.columns:
        known = [str(column) for column in run.study.obs.columns]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise QueryError(f"The cells have no column '{name}'.", f"Did you mean '{near[0]}'?" if near else f"They have {', '.join(known[:12])}.")
    return run.study.obs[name]


def _order(column: pd.Series) -> list[str]:
    if isinstance(column.dtype, pd.CategoricalDtype):
        return [str(level) for level in column.cat.categories]
    return sorted({str(value) for value in column.dropna().unique()})


def _require_level(level: str, groupby: str, levels: list[str], column: pd.Series) -> None:
    if level in levels:
        return
    if level in {str(value) for value in column.dropna().unique()}:
        raise QueryError(f"The group '{level}' of '{groupby}' has no cells among those chosen.", "Choose another group, or more cells.")
    near = difflib.get_close_matches(level, levels, n=1, cutoff=0.5)
    hint = f"Did you mean '{near[0]}'?" if near else f"It has {', '.join(levels[:12])}."
    raise QueryError(f"The column '{groupby}' has no level '{level}'.", hint)


def by_cells(run: TrainedRun, cells1: Cells, cells2: Cells = None, names: tuple[str, str] = ("group 1", "group 2")) -> Comparison:
    """Return the comparison of two chosen groups.

    Parameters
    ----------
    run
        An open run.
    cells1, cells2
        Rows or masks; None as the second compares with all other cells.
    names
        What the groups are called.

    Raises
    ------
    QueryError
        Where a cell is in both groups, or a group is too small.
    """
    if cells1 is None:
        raise QueryError("The first group has no cells.", "Choose some.")
    first = _group(run, cells1, names[0])
    if cells2 is None:
        return checked(Comparison(names[0], REST, first, np.setdiff1d(run.rows(), first)))
    second = _group(run, cells2, names[1])
    both = np.intersect1d(first, second)
    if both.size:
        raise QueryError(
            f"{counted(both.size, 'cell is', 'cells are')} in both groups ('{run.cell_names[both[0]]}' is "
            "one).", "Choose groups that do not overlap."
        )
    return checked(Comparison(*names, first, second))


def _group(run: TrainedRun, cells: Cells, name: str) -> np.ndarray:
    found = np.asarray(cells)
    if not found.size or (found.dtype == bool and not found.any()):
        raise QueryError(f"'{name}' has no cells.", "Choose at least some cells for each group.")
    return np.unique(run.rows(found))


def checked(comparison: Comparison) -> Comparison:
    """Return a comparison, or refuse one with a group that is too small to say anything."""
    for name, rows in ((comparison.name1, comparison.rows1), (comparison.name2, comparison.rows2)):
        if len(rows) < MIN_CELLS:
            number = "no cells" if not len(rows) else f"only {len(rows)} cell{'s' * (len(rows) > 1)}"
            raise QueryError(f"The group '{name}' has {number}.", f"Choose groups of at least {MIN_CELLS} cells.")
    return comparison


def mean_counts(counts: sparse.csr_matrix, rows: np.ndarray, block: int = 16_384) -> np.ndarray:
    """Return the mean count of each feature in some cells, float64 ``(n_features,)``."""
    total = np.zeros(counts.shape[1])
    for start in range(0, len(rows), block):
        total += np.asarray(counts[rows[start : start + block]].sum(axis=0, dtype=np.float64)).ravel()
    return total / len(rows)


def raw_statistics(counts: sparse.csr_matrix, comparison: Comparison, block: int = 16_384) -> dict[str, np.ndarray]:
    """Return what the raw counts of both groups say.

    Returns
    -------
    dict
        ``raw_mean``, ``non_zeros_proportion`` and ``raw_normalized_mean`` (counts scaled to 10,000 a cell), each with ``1`` and ``2``,
        float64 ``(n_features,)``.
    """
    found: dict[str, np.ndarray] = {}
    n_features = counts.shape[1]
    for number, rows in ((1, comparison.rows1), (2, comparison.rows2)):
        total, present, scaled = (np.zeros(n_features) for _ in range(3))
        for start in range(0, len(rows), block):
            part = counts[rows[start : start + block]].astype(np.float64)
            totals = row_totals(part)
            factor = np.divide(NORMALISED_TO, totals, out=np.zeros_like(totals), where=totals > 0)
            total += np.asarray(part.sum(axis=0)).ravel()
            present += part.getnnz(axis=0)
            scaled += part.T @ factor
        found[f"raw_mean{number}"] = total / len(rows)
        found[f"non_zeros_proportion{number}"] = present / len(rows)
        found[f"raw_normalized_mean{number}"] = scaled / len(rows)
    return found
