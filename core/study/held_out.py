"""Counts that were switched off in the mosaic grid, kept as the truth that imputation is judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from cellweave.core.spec import RunSpec
from cellweave.core.spec.data import SwitchedOff
from cellweave.core.spec.modalities import modality_kind
from cellweave.core.study.align import move_columns
from cellweave.core.study.mosaic import and_list

if TYPE_CHECKING:
    import pandas as pd

    from cellweave.core.study.study import Study


@dataclass(frozen=True)
class HeldOut:
    """Counts of one modality in the cells in which it was switched off.

    Attributes
    ----------
    rows
        Rows of the study, ascending, int64 ``(n_held_out,)``.
    counts
        CSR ``(n_held_out, n_features)``, features as those of the modality.
    """

    rows: np.ndarray
    counts: sparse.csr_matrix

    def features(self, keep: np.ndarray) -> HeldOut:
        """Return the part with some features, ``(n_features,)`` bool or positions."""
        return replace(self, counts=sparse.csr_matrix(self.counts[:, np.flatnonzero(keep) if keep.dtype == bool else keep]))

    def moved(self, columns: np.ndarray, n_features: int) -> HeldOut:
        """Return it with its columns at new places, -1 leaving them out; see :func:`cellweave.core.study.align.move_columns`."""
        return replace(self, counts=move_columns(self.counts, columns, n_features))

    def cells(self, keep: np.ndarray) -> HeldOut | None:
        """Return what remains where only some cells of the study do, ``(n_cells,)`` bool; None where nothing does."""
        own = keep[self.rows]
        if not own.any():
            return None
        place = np.cumsum(keep) - 1
        return HeldOut(place[self.rows[own]].astype(np.int64), sparse.csr_matrix(self.counts[np.flatnonzero(own)]))

    def and_also(self, other: HeldOut | None) -> HeldOut:
        """Return both; no cell is in both of them."""
        if other is None:
            return self
        rows = np.concatenate([self.rows, other.rows])
        order = np.argsort(rows, kind="stable")
        return HeldOut(rows[order], sparse.csr_matrix(sparse.vstack([self.counts, other.counts], format="csr")[order]))


def without_cells(spec: RunSpec, obs: pd.DataFrame) -> list[SwitchedOff]:
    """Return what was switched off in cells that have nothing else, so that they are not in the study and cannot be judged.

    Parameters
    ----------
    spec
        Of the run.
    obs
        The cells that are left, ``(n_cells, n_columns)``; what names a column it lacks is passed over.
    """
    off = [one for one in spec.data.switched_off if one.column in obs.columns]
    return [one for one in off if not (obs[one.column].astype(str) == one.level).any()]


def nothing_left(off: Sequence[SwitchedOff]) -> str:
    """Return a sentence on what :func:`without_cells` found; empty where it found nothing."""
    if not off:
        return ""
    names: dict[str, list[str]] = {}
    for one in off:
        names.setdefault(one.level, []).append(modality_kind(one.modality).label)
    said = and_list([f"{and_list(modalities)} of '{level}'" for level, modalities in names.items()])
    return f"{said} {'was' if len(off) == 1 else 'were'} all that was measured in these cells, so that they are left out: there is nothing to impute them from."


def held_out_truth(data: RunSpec | Study, *, scratch: Path | None = None) -> dict[str, HeldOut]:
    """Return the counts that a run was not shown because they were switched off in the mosaic grid (``data.switched_off``).

    Imputed values of a run are scored against them: ``imputed[truth.rows]`` against ``truth.counts``, the features being
    those of the study's modality, ``study.modalities[name].var.index``, in that order. A network that reads features in blocks has them in
    another order: match by name. Where the modality has a mask, score only what ``feature_mask[mask_group[truth.rows]]`` says was
    measured. Cells in which nothing else was measured are not in the study, and so not here.

    Parameters
    ----------
    data
        A loaded study, or the spec of a run, whose files are then read again.
    scratch
        As in :func:`cellweave.core.study.load.load_study`, where the files are read.

    Returns
    -------
    dict
        :class:`HeldOut` by modality; empty where nothing was switched off.

    Raises
    ------
    DataError
        Where the files cannot be read.
    """
    if isinstance(data, RunSpec):
        from cellweave.core.study.load import load_study

        data = load_study(data.data, scratch=scratch)
    return {name: modality.held_out for name, modality in data.modalities.items() if modality.held_out is not None and len(modality.held_out.rows)}
