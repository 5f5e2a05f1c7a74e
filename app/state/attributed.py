"""What the Attribution view shows: scores of cells, where they lie on the embedding, and what they can be coloured by. No Qt here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from cellweave.app.state.results import Cells
    from cellweave.core.analysis.attribution_scores import AttributionScores


@dataclass(frozen=True, eq=False)
class Attributed:
    """Cells with their attribution.

    Attributes
    ----------
    rows
        Rows of the study, rising, ``(n,)``.
    names
        Names of the cells.
    scores
        Of these cells.
    xy
        Places on the embedding ``(n, 2)``, NaN where a cell has none.
    columns
        :class:`~cellweave.core.export.run_data.ColumnValues` of these cells by name.
    epoch
        Of the weights; None for the result of the run.
    n_known
        Cells with attribution in the whole study.
    """

    rows: NDArray[np.int64]
    names: NDArray[Any]
    scores: AttributionScores
    xy: NDArray[np.float32]
    columns: dict[str, Any]
    epoch: int | None = None

    @property
    def size(self) -> int:
        """Number of cells."""
        return len(self.rows)

    def place_of(self, rows: Sequence[int] | NDArray[np.integer]) -> NDArray[np.intp]:
        """Return which of these cells are among some rows of the study."""
        return np.flatnonzero(np.isin(self.rows, np.asarray(rows)))


def of_run(results_folder: Path, cells: Cells | None, xy: NDArray[np.float32] | None) -> Attributed | None:
    """Read the attribution of a run that is finished; None where it has none.

    Parameters
    ----------
    results_folder
        ``results/`` of the run.
    cells, xy
        The cells of the embedding and their places, where there is one.
    """
    from cellweave.core.analysis.attribution_scores import AttributionScores

    scores = AttributionScores.load(results_folder)
    if scores is None or not scores.known.any():
        return None
    rows = np.flatnonzero(scores.known).astype(np.int64)
    return join(rows, subset_scores(scores, rows), cells, xy, None)


def earlier_attributions(folder: Path) -> tuple[tuple[int, Path], ...]:
    """Return the attributions that a run wrote while it trained, by epoch.

    Parameters
    ----------
    folder
        Of the previews of the run.
    """
    found = []
    for path in sorted(folder.glob("attribution-*.npz")):
        number = path.stem.removeprefix("attribution-")
        if number.isdecimal():
            found.append((int(number), path))
    return tuple(found)


def of_preview(path: Path, cells: Cells | None, xy: NDArray[np.float32] | None) -> Attributed | None:
    """Read the attribution of a sample of cells of a run that trains; None where it cannot be read.

    Cells lie where they lay in the live embedding of that epoch; where it was not laid out, where ``xy`` says.

    Parameters
    ----------
    path
        ``attribution-EPOCH.npz``; the live embedding lies beside it.
    cells, xy
        As in :func:`of_run`.
    """
    from cellweave.core.analysis.attribution_scores import AttributionScores

    found = AttributionScores.load_preview(path)
    if found is None:
        return None
    scores, rows = found
    epoch = int(scores.info.get("epoch") or 0)
    data = join(rows.astype(np.int64), scores, cells, xy, epoch)
    places = _laid_out(path.parent, epoch, data.rows)
    return data if places is None else replace(data, xy=places)


def _laid_out(folder: Path, epoch: int, rows: NDArray[np.int64]) -> NDArray[np.float32] | None:
    """Return where cells lay in the live embedding of an epoch ``(n, 2)``, NaN where it left them out; None where there is none."""
    try:
        layout = np.load(folder / f"layout-{epoch:06d}.npy", allow_pickle=False)
        sample = np.load(folder / "cells.npy", allow_pickle=False)
    except (OSError, ValueError):
        return None
    if layout.shape != (len(sample), 2) or not len(sample):
        return None
    place = np.minimum(np.searchsorted(sample, rows), len(sample) - 1)
    return np.where((sample[place] == rows)[:, None], layout[place], np.nan).astype(np.float32)


def subset_scores(scores: AttributionScores, rows: NDArray[np.int64]) -> AttributionScores:
    """Return the scores of some cells."""
    return replace(scores, mean_abs={name: values[rows] for name, values in scores.mean_abs.items()}, frobenius=scores.frobenius[rows])


def join(rows: NDArray[np.int64], scores: AttributionScores, cells: Cells | None, xy: NDArray[np.float32] | None, epoch: int | None) -> Attributed:
    """Put scores and embedding together by the rows of the study."""
    from cellweave.core.export.run_data import ColumnValues

    names: NDArray[Any] = rows.astype(str)
    places = np.full((len(rows), 2), np.nan, dtype=np.float32)
    columns: dict[str, Any] = {}
    if cells is not None and len(cells.rows):
        place = np.minimum(np.searchsorted(cells.rows, rows), len(cells.rows) - 1)
        there = cells.rows[place] == rows
        names = np.where(there, cells.names[place].astype(object), names.astype(object))
        if xy is not None and len(xy) == len(cells.rows):
            places[there] = xy[place[there]]
        for name, column in cells.columns.items():
            if column.levels is None:
                values = np.where(there, column.numbers[place], np.nan)
                columns[name] = ColumnValues.of_numbers(column.title, values)
            else:
                columns[name] = ColumnValues.of_levels(column.title, np.where(there, column.codes[place], -1), column.levels)
    return Attributed(rows, names, scores, places, columns, epoch)


def score_columns(scores: AttributionScores) -> dict[str, tuple[NDArray[np.float32], str, bool]]:
    """Return the scores as columns to colour by: values, unit, and whether they are ratios around 0.

    The log-ratios come first, then totals, own shares and norms.
    """
    from cellweave.core.spec.modalities import modality_kind

    found: dict[str, tuple[NDArray[np.float32], str, bool]] = {}
    names = scores.modalities
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            found[ratio_name(first, second)] = centred(scores.log_ratio(first, second)), "above or below the median cell", True
    for name in names:
        found[f"{modality_kind(name).label} total attribution"] = scores.score("total", name), "counts per unit of the latent", False
    for name in names:
        if scores.has_own:
            found[f"{modality_kind(name).label} share of own latents"] = scores.score("own_share", name), "", False
        found[f"{modality_kind(name).label} norm of the Jacobian"] = scores.score("frobenius", name), "", False
    return found


def ratio_name(first: str, second: str) -> str:
    """Return what the log-ratio of two modalities is called."""
    from cellweave.core.spec.modalities import modality_kind

    return f"log2 {modality_kind(first).label} / {modality_kind(second).label}"


def centred(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return log-ratios with the median cell at 0: how many counts a modality has moves all of them alike and says nothing of a cell."""
    known = values[np.isfinite(values)]
    return values - np.float32(np.median(known)) if len(known) else values
