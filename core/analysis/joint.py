"""Mapped cells among those of the run they were mapped onto: one layout of both latents, and the reference's labels for the new cells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellweave.core.analysis.arrays import load_array
from cellweave.core.errors import CellweaveError, DataError
from cellweave.core.files import write_atomic
from cellweave.core.wording import counted

LAYOUT, CELLS, LABELS = "joint_umap.npy", "joint_cells.csv", "transferred_labels.csv"
QUERY, REFERENCE, UNKNOWN = "query", "reference", "unknown"
#: Cells of the reference that are laid out; a sample where there are more.
MOST_REFERENCE = 50_000
#: Labelled cells that vote on each new cell, weighed by the inverse of their distance, and the share below which a cell is unknown.
VOTERS, LEAST_SHARE = 15, 0.5
#: What cells.csv holds beside the columns with a role.
OWN = ("name", "file", "row", "split")


@dataclass(frozen=True)
class ReferenceCells:
    """Cells of a reference that have a latent.

    Attributes
    ----------
    latent
        float32 ``(n_cells, n_latent)``.
    table
        One row each: ``name`` and the columns that had a role.
    labels
        The column with the labels, or None.
    sum
        Check sum of the latent's file.
    """

    latent: NDArray[np.float32]
    table: pd.DataFrame
    labels: str | None
    sum: str


def reference_cells(folder: str | Path) -> ReferenceCells:
    """Read the cells of a reference from its results; its data need not be there.

    Parameters
    ----------
    folder
        The run folder.

    Raises
    ------
    CellweaveError
        Where the folder, its latent or its list of cells is gone or damaged.
    """
    from cellweave.core.export.run_data import RunData
    from cellweave.core.files import sha256_of

    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"The reference '{folder}' is not there any more.", "Put its folder back and continue this run to lay out both.")
    run = RunData(folder)
    latent, labels, table = run.latent, run.spec.covariates.labels, run.cells
    rows = np.flatnonzero(np.isfinite(latent).all(axis=1))
    columns = [name for name in table if name not in OWN]
    found = table.loc[rows, ["name", *columns]].reset_index(drop=True)
    if labels is not None and labels not in columns:
        # Not every model reads the labels, and then only the data have them.
        try:
            values = run.column(labels)
        except (CellweaveError, OSError):
            labels = None
        else:
            if values.levels is None:
                labels = None
            else:
                found[labels] = np.array([*values.levels, np.nan], dtype=object)[values.codes[rows]]
    return ReferenceCells(np.asarray(latent[rows], dtype=np.float32), found, labels, sha256_of(run.folder.results / "latent.npy"))


def sampled(cells: ReferenceCells, seed: int) -> ReferenceCells:
    """Return a reference of at most 50,000 cells, in their order."""
    if len(cells.latent) <= MOST_REFERENCE:
        return cells
    rows = np.sort(np.random.default_rng([seed, 37]).choice(len(cells.latent), MOST_REFERENCE, replace=False))
    return ReferenceCells(cells.latent[rows], cells.table.iloc[rows].reset_index(drop=True), cells.labels, cells.sum)


def transferred(reference: ReferenceCells, latent: NDArray[np.floating]) -> pd.DataFrame | None:
    """Tell the labels of new cells from the labelled cells of the reference near them.

    Parameters
    ----------
    reference
        All cells of the reference.
    latent
        Of the new cells ``(n_cells, n_latent)``; NaN rows are told nothing.

    Returns
    -------
    pandas.DataFrame or None
        One row a cell: ``label``, ``unknown`` where the share is below one half, and ``share`` of the vote; None where no cell is labelled.
    """
    from cellweave.core.analysis.alignment import vote

    labelled = np.zeros(0, bool) if reference.labels is None else reference.table[reference.labels].notna().to_numpy()
    if not labelled.any():
        return None
    rows = np.flatnonzero(np.isfinite(latent).all(axis=1))
    names = reference.table[reference.labels].to_numpy()[labelled].astype(str)
    label, share = vote(reference.latent[labelled], names, latent[rows], neighbours=VOTERS)
    label[share < LEAST_SHARE] = UNKNOWN
    table = pd.DataFrame({"label": pd.Series(None, index=range(len(latent)), dtype=object), "share": np.nan})
    table.loc[rows, "label"], table.loc[rows, "share"] = label, share
    return table


def joint_table(query: pd.DataFrame, rows: NDArray[np.integer], reference: ReferenceCells, told: pd.DataFrame | None) -> pd.DataFrame:
    """Return what is known of the cells of a joint layout, the new ones first.

    Parameters
    ----------
    query
        ``cells.csv`` of the run, all as text.
    rows
        Its rows that are laid out.
    reference
        The reference's cells that are laid out.
    told
        As :func:`transferred` gives it, one row each of ``query``.

    Returns
    -------
    pandas.DataFrame
        ``name``, ``origin`` (query or reference), ``row`` of the run's own cells (-1 for the reference's), the columns with a role of either,
        and with labels ``transferred_label``: the reference's own, and those told to the new cells.
    """
    columns = [name for name in query if name not in OWN]
    new = query.loc[rows, ["name", *columns]].assign(origin=QUERY, row=rows)
    old = reference.table.assign(origin=REFERENCE, row=-1)
    if told is not None and reference.labels is not None:
        new["transferred_label"], new["transferred_share"] = told["label"].to_numpy()[rows], told["share"].to_numpy()[rows]
        old["transferred_label"] = old[reference.labels]
    found = pd.concat([new, old], ignore_index=True)
    first = ["name", "origin", "row"]
    return found[[*first, *(name for name in found if name not in first)]]


def read_joint(results: Path) -> tuple[NDArray[np.float32], pd.DataFrame] | None:
    """Read a joint layout ``(n_cells, 2)`` and its cells; None where the run has none."""
    if not ((results / LAYOUT).is_file() and (results / CELLS).is_file()):
        return None
    layout = np.asarray(load_array(results / LAYOUT), dtype=np.float32)
    table = pd.read_csv(results / CELLS, dtype=str, keep_default_na=False, na_values=[""]).astype({"row": int})
    if "transferred_share" in table:
        table = table.astype({"transferred_share": float})
    if layout.shape != (len(table), 2):
        raise DataError(f"'{LAYOUT}' has {counted(len(layout), 'cell')} and '{CELLS}' {len(table)}.", "Continue the run to compute them again.")
    return layout, table


def read_transferred(results: Path, n_cells: int) -> pd.DataFrame | None:
    """Read the labels told to the cells of a run, one row each; None where there are none of these cells."""
    path = results / LABELS
    if not path.is_file():
        return None
    table = pd.read_csv(path, dtype={"name": str, "label": str}, keep_default_na=False, na_values=[""])
    return table if len(table) == n_cells else None


def save_table(path: Path, table: Any) -> None:
    """Write a table as CSV, whole or not at all."""
    write_atomic(path, lambda temporary: table.to_csv(temporary, index=False))
