"""What the views show of a run, read from its folder in a thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from cellweave.app.state.runs import run_label
from cellweave.core.errors import CellweaveError
from cellweave.core.export.figure_options import ORIGIN
from cellweave.core.runs.events import EpochDone, Event, Failed, FinishReason
from cellweave.core.runs.folder import RunFolder, RunStatus
from cellweave.core.spec import RunSpec

MOST_LAYOUTS = 40  # so many earlier epochs are laid out for a run that nobody watched
MOST_LEVELS = 500  # a column with more levels is no way to colour cells


@dataclass(frozen=True, eq=False)
class Cells:
    """Points of an embedding and what is known of them.

    Attributes
    ----------
    rows
        Rows of the study, ``(n,)``.
    names
        Names of the cells, ``(n,)``.
    columns
        Columns to colour by: :class:`~cellweave.core.export.run_data.ColumnValues` of the n cells by name.
    """

    rows: np.ndarray
    names: np.ndarray
    columns: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Joint:
    """Cells of a run that maps data, laid out with those of its reference.

    Attributes
    ----------
    xy
        Coordinates ``(n, 2)``, the run's own cells first.
    cells
        The run's own cells, as in its own embedding, and behind them the reference's, whose row is -1.
    prefer
        Columns to colour by at first.
    """

    xy: np.ndarray
    cells: Cells
    prefer: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class RunResults:
    """A run as it is shown.

    Attributes
    ----------
    folder, spec, status, name
        Which run.
    events
        Its journal.
    end
        Byte of the journal behind the last event.
    xy
        UMAP coordinates ``(n, 2)``, or None where there is none yet.
    cells
        The cells of ``xy``.
    prefer
        Columns to colour by at first.
    epochs
        Layouts of earlier epochs of the same cells: epoch and file.
    note
        A sentence on what could not be read.
    joint
        The cells with those of the reference, where the run maps data.
    without_layout
        Previews of a finished run that are to be laid out: epoch and file of the latent.
    """

    folder: Path
    spec: RunSpec
    status: RunStatus
    name: str
    events: list[Event] = field(default_factory=list)
    end: int = 0
    xy: np.ndarray | None = None
    cells: Cells | None = None
    prefer: tuple[str, ...] = ()
    epochs: tuple[tuple[int, Path], ...] = ()
    note: str = ""
    joint: Joint | None = None
    without_layout: tuple[tuple[int, Path], ...] = ()

    @property
    def label(self) -> str:
        """Name and folder."""
        return run_label(self.name, self.folder)

    @property
    def epochs_done(self) -> int:
        """How many epochs are over."""
        return max((event.epoch for event in self.events if isinstance(event, EpochDone)), default=0)

    @property
    def trains(self) -> bool:
        """Whether an engine is at work on it."""
        return self.status.state.active and not self.status.lost

    @property
    def failure(self) -> str:
        """Why it failed and what to do about it; empty where it did not."""
        if self.status.reason is not FinishReason.FAILED:
            return ""
        said = next((event for event in reversed(self.events) if isinstance(event, Failed)), Failed(text=self.status.text))
        return f"{said.text or self.status.text or 'No cause was written.'} {said.mend}".strip()


def read_run(path: Path) -> RunResults:
    """Read a run folder.

    Parameters
    ----------
    path
        The run folder.

    Returns
    -------
    RunResults
        Without coordinates where the run has none yet.

    Raises
    ------
    RunFolderError
        Where the folder holds no run, or its spec cannot be read.
    """
    # What the Neighbourhood view needs of the core; read here, in the thread, so that making the view does not hold up the window.
    import_module("cellweave.core.analysis.neighbourhood_failures")
    folder = RunFolder.open(path)
    spec, status = folder.spec, folder.status
    events: list[Event] = []
    end = 0
    for event, offset in folder.tail():
        events.append(event)
        end = offset
    name = spec.name or folder.path.name
    xy: np.ndarray | None = None
    cells: Cells | None = None
    prefer: tuple[str, ...] = ()
    note = ""
    if (folder.results / "umap.npy").is_file():
        try:
            xy, cells, prefer, note = _embedding(folder.path)
        except (CellweaveError, OSError, ValueError) as error:
            note = f"The embedding of the run could not be read: {error}"
    epochs = earlier_layouts(folder.preview, cells.rows) if cells is not None else ()
    unseen = previews_without_layout(folder.preview, cells.rows, status.epoch) if cells is not None and not status.state.active else ()
    joint: Joint | None = None
    if spec.reference is not None and cells is not None:
        try:
            joint = read_with_reference(folder, cells)
        except (CellweaveError, OSError, ValueError) as error:
            note = f"{note} The layout with the reference could not be read: {error}".strip()
    return RunResults(folder.path, spec, status, name, events, end, xy, cells, prefer, epochs, note, joint, unseen)


def read_with_reference(folder: RunFolder, own: Cells) -> Joint | None:
    """Read the layout of a mapped run with its reference; None where there is none of these cells.

    Parameters
    ----------
    folder
        The run.
    own
        Cells of its own embedding, whose columns are kept; those that only the run has are missing for the reference.
    """
    from cellweave.core.analysis.joint import read_joint
    from cellweave.core.export.joint_columns import lengthened, table_column

    found = read_joint(folder.results)
    if found is None:
        return None
    xy, table = found
    n_own = len(own.rows)
    if not np.array_equal(table["row"].to_numpy()[:n_own], own.rows) or (table["row"].to_numpy()[n_own:] >= 0).any():
        return None
    columns: dict[str, Any] = {ORIGIN: table_column(table, ORIGIN)}
    for name in table.columns.drop(["name", "origin", "row"]):
        column = table_column(table, str(name))
        if column.levels is None or len(column.levels) <= MOST_LEVELS:
            columns[str(name)] = column
    for name, column in own.columns.items():
        if name not in columns:
            columns[name] = lengthened(column, len(table))
    labels = "transferred_label" if "transferred_label" in columns else folder.spec.covariates.labels
    prefer = tuple(name for name in (ORIGIN, labels) if name and name in columns)
    names = np.concatenate([own.names, table["name"].to_numpy()[n_own:]])
    return Joint(xy, Cells(table["row"].to_numpy(), names, columns), prefer)


def earlier_layouts(folder: Path, rows: np.ndarray | None = None) -> tuple[tuple[int, Path], ...]:
    """Return the live layouts of a run by epoch; none where they are of other cells than ``rows``."""
    return () if rows is not None and not _are_of(folder, rows) else _numbered(folder, "layout")


def previews_without_layout(folder: Path, rows: np.ndarray, last: int) -> tuple[tuple[int, Path], ...]:
    """Return the previews that are to be laid out before the slider can go back to them.

    A window that watches a run lays out what it can keep up with; what it left out in between stays left out. Missing are the epochs before it began
    to watch and after it ended, or all; at most ``MOST_LAYOUTS`` of them, at even distances.

    Parameters
    ----------
    folder
        ``preview/`` of the run folder.
    rows
        Cells of the final embedding; other cells than these cannot be shown in their place.
    last
        Last epoch of the run, which the final embedding is of; a preview behind it is of epochs that were trained again.
    """
    if not _are_of(folder, rows):
        return ()
    seen = [epoch for epoch, _ in _numbered(folder, "layout")]
    missing = [(epoch, path) for epoch, path in _numbered(folder, "latent") if epoch < last and not (seen and seen[0] <= epoch <= seen[-1])]
    if len(missing) <= MOST_LAYOUTS:
        return tuple(missing)
    return tuple(missing[place] for place in np.linspace(0, len(missing) - 1, MOST_LAYOUTS).round().astype(int))


def _are_of(folder: Path, rows: np.ndarray) -> bool:
    """Return whether the previews in a folder are of these cells."""
    try:
        return np.array_equal(np.load(folder / "cells.npy", allow_pickle=False), rows)
    except (OSError, ValueError):
        return False


def _numbered(folder: Path, stem: str) -> tuple[tuple[int, Path], ...]:
    """Return epoch and file of everything called ``STEM-EPOCH.npy``."""
    found = []
    for path in sorted(folder.glob(f"{stem}-*.npy")):
        number = path.stem.removeprefix(f"{stem}-")
        if number.isdecimal():
            found.append((int(number), path))
    return tuple(found)


def load_layout(path: Path) -> np.ndarray:
    """Read a live layout; cells without a latent are left out, as they are from the first."""
    layout = np.load(path, allow_pickle=False)
    return layout[np.isfinite(layout).all(axis=1)]


def run_cells(path: Path) -> Cells:
    """Return the cells that have a latent, with their columns, also where the run has no embedding.

    Raises
    ------
    RunFolderError
        Where the run has no latent space yet.
    """
    from cellweave.core.export.run_data import RunData

    run = RunData(path)
    rows = np.flatnonzero(np.isfinite(run.latent).all(axis=1))
    columns, _ = _columns(run)
    return Cells(rows, run.cells["name"].to_numpy()[rows], subset(columns, rows))


def _embedding(path: Path) -> tuple[np.ndarray, Cells, tuple[str, ...], str]:
    from cellweave.core.export.run_data import RunData

    run = RunData(path)
    layout = run.array("umap")
    rows = np.flatnonzero(np.isfinite(layout).all(axis=1))
    columns, note = _columns(run)
    names = run.cells["name"].to_numpy()
    cells = Cells(rows, names[rows], subset(columns, rows))
    return np.ascontiguousarray(layout[rows]), cells, tuple(run.default_columns()), note


def _columns(run: Any) -> tuple[dict[str, Any], str]:
    """Return the columns of all cells of a run, and a sentence where only some of them could be read."""
    from cellweave.core.export.run_data import ColumnValues

    note = ""
    try:
        obs = run.obs
        columns = {str(name): ColumnValues.of_series(str(name), obs[name]) for name in obs.columns}
    except (CellweaveError, OSError) as error:
        note = f"Only the columns that had a role can be shown: {error}"
        plain = [name for name in run.cells.columns if name not in {"name", "file", "row", "split"}]
        columns = {name: run.column(name) for name in plain}
    if run.clusters is not None:
        columns["leiden"] = run.column("leiden")
    columns["split"] = run.column("split")
    if run.transferred is not None:
        columns |= {name: run.column(name) for name in ("transferred_label", "transferred_share")}
    for dimension in range(run.latent.shape[1]):
        columns[f"latent:{dimension + 1}"] = run.column(f"latent:{dimension + 1}")
    return columns, note


def subset(columns: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
    """Return the columns of some cells; what has more levels than one can colour is left out."""
    from cellweave.core.export.run_data import ColumnValues

    found: dict[str, Any] = {}
    for name, column in columns.items():
        if column.levels is None:
            found[name] = ColumnValues.of_numbers(column.title, column.numbers[rows])
        elif len(column.levels) <= MOST_LEVELS:
            found[name] = ColumnValues.of_levels(column.title, column.codes[rows], column.levels)
    return found


def study_cells(study: Any, rows: np.ndarray) -> Cells:
    """Return the annotation of some cells of a loaded study, for the live embedding.

    Levels that none of these cells has are kept, so that every level has the colour it will have in the end.
    """
    from cellweave.core.export.run_data import ColumnValues

    columns = {str(name): ColumnValues.of_series(str(name), study.obs[name]) for name in study.obs.columns}
    return Cells(rows, study.obs.index.to_numpy()[rows], subset(columns, rows))


def default_pair(spec: RunSpec, known: Sequence[str]) -> tuple[str, ...]:
    """Return the columns to colour by at first: the spec's choice, else batch beside labels."""
    roles = spec.covariates
    wanted = [*spec.analysis.colour_by, roles.batch or roles.library or roles.dataset, roles.labels, "leiden"]
    return tuple(dict.fromkeys(name for name in wanted if name and name in known))[:2]
