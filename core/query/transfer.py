"""Labels of known cells given to others that lie near them in the latent space, and cells of a kind that nobody knows (He et al. 2024)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellweave.core.analysis.alignment import NEIGHBOURS, vote
from cellweave.core.analysis.joint import UNKNOWN
from cellweave.core.query.groups import column_of
from cellweave.core.query.latent import Cells, latent_mean
from cellweave.core.query.trained_run import QueryError, TrainedRun

#: As in the authors' evaluation: neighbours of the layout, and of the vote on whether a cell's surroundings are new.
LAYOUT_NEIGHBOURS, VOTERS, MIN_DIST = 30, 100, 0.3


def transfer_table(
    run: TrainedRun, column: str, cells: Cells = None, *, neighbours: int = NEIGHBOURS, threshold: float | None = None, seed: int = 0
) -> pd.DataFrame:
    """Tell the labels of cells from labelled cells near them.

    The labelled cells are those of the reference, where the run maps data onto one; otherwise the labelled cells of the run itself, and the
    others are told.

    Parameters
    ----------
    run
        An open run.
    column
        Column with the labels, of the reference's cells or of the run's.
    cells
        Cells to be told, rows or a mask; None for all (without a reference: those that have no label).
    neighbours
        How many labelled cells vote, weighed by the inverse of their distance.
    threshold
        A cell is unknown where more than this share of its surroundings are new cells; None tells every cell.
    seed
        Fixes the layout in which the surroundings are looked at.

    Returns
    -------
    pandas.DataFrame
        One row a cell: ``label``, ``share`` of the vote that it got, and with a threshold ``new_share``.

    Raises
    ------
    QueryError
        Where no cell is labelled, or none is to be told.
    """
    rows = run.rows(cells)
    known, labels, chosen = _known_cells(run, column, rows, everybody=cells is None)
    if threshold is not None and not 0 < threshold < 1:
        raise QueryError(f"The threshold is {threshold:g}.", "Give a share between 0 and 1; the authors take 0.83.")
    if not len(chosen):
        raise QueryError(f"Every cell has a label in '{column}' already.", "Name the cells to be told with --cells.")
    asked = latent_mean(run, chosen)
    label, share = vote(known, labels, asked, neighbours=neighbours)
    table = pd.DataFrame({"label": label, "share": share}, index=run.cell_names[chosen].rename("cell"))
    if threshold is not None:
        table["new_share"] = new_share(known, asked, seed=seed)
        table.loc[table["new_share"] > threshold, "label"] = UNKNOWN
    return table


def _known_cells(run: TrainedRun, column: str, rows: np.ndarray, *, everybody: bool) -> tuple[NDArray[np.floating], NDArray[np.str_], np.ndarray]:
    """Return latents and labels of the labelled cells, and the rows that are to be told."""
    if run.spec.reference is not None:
        from cellweave.core.query.opened import open_run

        reference = open_run(run.spec.reference, device=str(run.device))
        values, own = column_of(reference, column), reference.rows(None)
        labelled = own[values.iloc[own].notna().to_numpy()]
        found = latent_mean(reference, labelled) if len(labelled) else None
    else:
        values = column_of(run, column)
        labelled = np.flatnonzero(values.notna().to_numpy() & run.data.usable)
        rows = rows[values.iloc[rows].isna().to_numpy()] if everybody else rows
        labelled = np.setdiff1d(labelled, rows)
        found = latent_mean(run, labelled) if len(labelled) else None
    if found is None:
        raise QueryError(f"No cell has a label in '{column}'.", "Choose a column with cell types of the reference.")
    return found, values.iloc[labelled].astype(str).to_numpy(dtype=str), rows


def new_share(known: NDArray[np.floating], asked: NDArray[np.floating], *, seed: int = 0) -> NDArray[np.float64]:
    """Return for each asked cell the share of its surroundings that are asked cells too.

    The surroundings are the 100 nearest cells in a UMAP of both (30 neighbours by the angle, smallest distance 0.3), as in the authors' evaluation.

    Parameters
    ----------
    known, asked
        Latents ``(n_known, n_latent)`` and ``(n_asked, n_latent)``.
    seed
        Fixes the layout.

    Returns
    -------
    ndarray
        ``(n_asked,)``; high where nothing known lies near.
    """
    from cellweave.core.analysis.layout import fuzzy_graph, initial_layout, lay_out
    from cellweave.core.analysis.neighbours import find_neighbours

    points = np.concatenate([known, asked]).astype(np.float32)
    length = np.linalg.norm(points, axis=1, keepdims=True)
    angles = np.divide(points, length, out=np.zeros_like(points), where=length > 0)
    k = min(LAYOUT_NEIGHBOURS, len(points) - 1)
    graph = fuzzy_graph(find_neighbours(angles, k - 1, seed=seed), k)
    layout = lay_out(graph, initial_layout(angles), min_dist=MIN_DIST, seed=seed)
    near = find_neighbours(np.asarray(layout, dtype=np.float32), min(VOTERS, len(points) - 1), seed=seed).indices
    return np.asarray((near[len(known) :] >= len(known)).mean(1), dtype=np.float64)
