"""Columns of mapped cells among those of their reference, for figures and for the window."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellweave.core.analysis.joint import QUERY, read_joint
from cellweave.core.errors import RunFolderError
from cellweave.core.export.figure_options import ORIGIN, ORIGINS
from cellweave.core.export.run_data import ColumnValues

if TYPE_CHECKING:
    from cellweave.core.export.run_data import RunData


def joint_layout(run: RunData) -> tuple[NDArray[np.float32], pd.DataFrame]:
    """Return the layout of a mapped run with its reference, ``(n_cells, 2)``, and a table of these cells, its own first.

    Raises
    ------
    RunFolderError
        Where the run was not mapped, or was not laid out with its reference.
    """
    found = read_joint(run.folder.results)
    if found is None:
        raise RunFolderError(
            f"'{run.name}' has no embedding together with a reference: it was not mapped onto one, or that was not laid out.",
            "Choose the embedding of its own cells, or map data onto a trained run.",
        )
    return found


def joint_column(run: RunData, table: pd.DataFrame, name: str) -> ColumnValues:
    """Return a column of the cells of a joint layout; what only the run has is missing for the cells of the reference.

    Parameters
    ----------
    run
        The mapped run.
    table
        What :func:`joint_layout` gave.
    name
        ``new or reference``, a column that both have, or any column of the run.

    Raises
    ------
    SpecError
        Where there is no such column.
    """
    if name == ORIGIN or name in table.columns.drop(["name", "origin", "row"]):
        return table_column(table, name)
    rows = table["row"].to_numpy()
    column = run.column(name)
    own = rows[rows >= 0]
    if column.levels is None:
        return lengthened(ColumnValues.of_numbers(column.title, column.numbers[own]), len(table))
    return lengthened(ColumnValues.of_levels(column.title, column.codes[own], column.levels), len(table))


def table_column(table: pd.DataFrame, name: str) -> ColumnValues:
    """Return a column that cells of both have."""
    if name == ORIGIN:
        return ColumnValues.of_levels(ORIGIN, np.where(table["origin"] == QUERY, 0, 1), ORIGINS)
    return ColumnValues.of_series(name, table[name], as_levels=name != "transferred_share")


def lengthened(column: ColumnValues, n_cells: int) -> ColumnValues:
    """Return a column of more cells, missing for those behind its own."""
    if column.levels is None:
        return ColumnValues.of_numbers(column.title, np.append(column.numbers, np.full(n_cells - len(column.numbers), np.nan, np.float32)))
    return ColumnValues.of_levels(column.title, np.append(column.codes, np.full(n_cells - len(column.codes), -1, np.int32)), column.levels)
