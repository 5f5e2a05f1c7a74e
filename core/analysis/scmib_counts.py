"""The half of scMIB's scores that is about batch-corrected counts: mixing and biology in weighted nearest neighbours of all modalities.

He et al. draw batch-corrected counts of every modality for every cell, reduce each modality as is usual for it, and join them by weighted nearest
neighbours (Hao et al. 2021). Here the metrics are the same as of the latent space, read from these neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellweave.core.analysis.integration import measure_neighbours, possible
from cellweave.core.analysis.mixing import LISI_NEIGHBOURS
from cellweave.core.analysis.wnn import weighted_neighbours
from cellweave.core.files import write_atomic
from cellweave.core.wording import agree

FILE = "corrected_space.npz"
#: Fewer cells than this are not measured.
FEWEST = 10


@dataclass(frozen=True)
class CountSpace:
    """What corrected counts say of cells.

    Attributes
    ----------
    rows
        Rows of the study, ``(n_drawn,)``: cells that have counts in every modality.
    points
        By modality, ``(n_drawn, n_components)`` float32.
    n_empty
        Cells that were drawn and left out, because they have no count in some modality.
    n_usable
        Cells that the sample was drawn from.
    """

    rows: NDArray[np.int64]
    points: dict[str, NDArray[np.float32]]
    n_empty: int
    n_usable: int


def save_space(results: Path, space: CountSpace) -> Path:
    """Write a space into the folder of results and return the file."""
    numbers = np.array([space.n_empty, space.n_usable], dtype=np.int64)
    arrays: dict[str, Any] = {"rows": space.rows, "numbers": numbers, **{f"points_{name}": value for name, value in space.points.items()}}
    write_atomic(results / FILE, lambda temporary: np.savez(temporary, **arrays))
    return results / FILE


def load_space(path: Path) -> CountSpace | None:
    """Return what :func:`save_space` wrote, or None where there is nothing that can be read."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            points = {name.removeprefix("points_"): stored[name] for name in stored.files if name.startswith("points_")}
            return CountSpace(stored["rows"], points, *map(int, stored["numbers"]))
    except (OSError, ValueError, KeyError):
        return None


def measure_counts(
    space: CountSpace | None,
    batch: NDArray[np.integer] | None,
    labels: NDArray[np.integer] | None,
    names: Sequence[str],
    *,
    seed: int = 0,
    progress: Callable[[float, str], None] = lambda share, text: None,
) -> tuple[dict[str, float], str, list[str]]:
    """Measure mixing and biology in the corrected counts.

    Parameters
    ----------
    space
        What was drawn; None where nothing was.
    batch, labels
        Codes of each cell of the study, ``(n_cells,)``, -1 for none; None without such a column.
    names
        Metrics that are wanted, none of which may need more than neighbours.
    seed, progress
        As in :func:`cellweave.core.analysis.integration.measure`.

    Returns
    -------
    values
        By metric, without those that could not be measured.
    why
        Why there is none at all, in a few words; empty where there is some.
    notes
        A sentence on the cells that were measured, where any were.
    """
    if space is None:
        return {}, "they were not drawn", []
    rows = np.arange(len(space.rows))
    codes = {}
    for role, column in (("batch", batch), ("labels", labels)):
        if column is not None:
            codes[role] = np.asarray(column, dtype=np.int64)[space.rows]
            rows = rows[codes[role][rows] >= 0]
    if len(rows) < FEWEST:
        return {}, "too few cells have counts in every modality", []
    own = {role: column[rows] for role, column in codes.items()}
    chosen, _ = possible(own.get("batch"), own.get("labels"), names)
    if not chosen:
        return {}, "no batches or labels, or not asked for", []
    n_drawn = len(space.rows) + space.n_empty
    left = f" ({space.n_empty:,} {agree(space.n_empty, 'has', 'have')} no corrected count in some modality)" if space.n_empty else ""
    note = f"Corrected counts were drawn for {n_drawn:,} of {space.n_usable:,} cells and measured in {len(rows):,}{left}."
    if len(rows) == n_drawn == space.n_usable:
        note = f"Corrected counts were measured in {agree(len(rows), 'the only cell', f'all {len(rows):,} cells')}."
    progress(0.0, "corrected counts: neighbours in all modalities")
    near, _ = weighted_neighbours(
        [points[rows] for points in space.points.values()], LISI_NEIGHBOURS - 1, seed=seed,
        progress=lambda share: progress(0.4 * share, "corrected counts: neighbours in all modalities"),
    )  # fmt: skip
    values = measure_neighbours(
        near, chosen, batch=own.get("batch"), labels=own.get("labels"), seed=seed,
        progress=lambda share, text: progress(0.4 + 0.6 * share, f"corrected counts: {text}"),
    )  # fmt: skip
    return values, "", [note]
