"""Study: the data in memory, as the user described it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from cellweave.core.spec.modalities import modality_kind

if TYPE_CHECKING:
    from cellweave.core.study.held_out import HeldOut


MISSING_VALUES = "; if NaN means that a value was not measured, set data.nan_is_missing = true"
"""Ends the reason why a modality was left out where NaN is all that keeps its values from being counts."""

SWITCHED_OFF = "every cell that has it is switched off"
"""Why a modality was left out that no cell of the study has any more."""
ALL_MASKED = "The mask hides every feature of"
"""Begins the note on cells of which a mask leaves nothing."""


@dataclass(frozen=True)
class SourceFile:
    """One input file.

    Attributes
    ----------
    path
        Absolute path.
    format
        ``h5ad``, ``h5mu``, ``zarr``, ``10x_h5``, ``10x_mtx``, ``loom``, ``text`` ...
    n_cells
        Cells in the file before any were left out.
    """

    path: Path
    format: str
    n_cells: int


@dataclass
class Modality:
    """Counts of one modality for all cells of the study.

    Attributes
    ----------
    name
        ``rna``, ``adt``, ``atac`` or another.
    counts
        CSR ``(n_cells, n_features)``, indices sorted, without explicit zeros; cells that were not measured have no entries.
    var
        One row a feature; the index holds the names.
    measured
        Which cells were measured, ``(n_cells,)`` bool.
    feature_mask
        Which features were measured in which mask group (``Study.mask_group``), ``(n_groups, n_features)`` bool; None where all were in all.
    location
        Where the counts were found: ``X``, ``raw/X``, ``layers/NAME``.
    held_out
        Counts that were measured but switched off in the mosaic grid, or None; see :func:`cellweave.core.study.held_out.held_out_truth`.
    """

    name: str
    counts: sparse.csr_matrix
    var: pd.DataFrame
    measured: np.ndarray
    feature_mask: np.ndarray | None = None
    location: str = "X"
    held_out: HeldOut | None = None

    @property
    def n_features(self) -> int:
        """Number of features."""
        return int(self.counts.shape[1])

    @property
    def label(self) -> str:
        """What it is called in sentences: ``RNA`` for ``rna``."""
        return modality_kind(self.name).label


@dataclass
class Study:
    """One study: cells with their annotation, and the modalities measured in them.

    Attributes
    ----------
    obs
        One row a cell in input order; the index holds unique cell names.
    modalities
        Each with all cells of ``obs``, in that order.
    sources
        The input files.
    file_of_cell
        Position in ``sources`` of each cell's file, ``(n_cells,)`` int.
    row_in_file
        Row of the cell in its file, ``(n_cells,)`` int, so that exports can find every input cell again.
    left_out
        Cells of the input that are not in ``obs``, with the reason: columns ``file``, ``row``, ``name``, ``reason``.
    notes
        Sentences on what was done while reading (names made unique, modality guessed ...).
    mask_group
        Row of the modalities' ``feature_mask`` that holds for each cell, ``(n_cells,)`` int; the file of the cell where none is given.
    left_out_modalities
        Modalities of the input that are left out, each with the reason: no place of theirs holds raw counts, or the files
        share no feature of them.
    """

    obs: pd.DataFrame
    modalities: dict[str, Modality]
    sources: tuple[SourceFile, ...]
    file_of_cell: np.ndarray
    row_in_file: np.ndarray
    left_out: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"file": [], "row": [], "name": [], "reason": []}))
    notes: list[str] = field(default_factory=list)
    left_out_modalities: dict[str, str] = field(default_factory=dict)
    mask_group: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __post_init__(self) -> None:
        if not len(self.mask_group):
            self.mask_group = np.array(self.file_of_cell, dtype=np.int64)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.obs)

    def main_modality(self, wanted: str | None = None) -> Modality:
        """Return the modality that a one-modality model is trained on: ``wanted``, or RNA, or the first."""
        if wanted is not None:
            if wanted not in self.modalities:
                from cellweave.core.errors import SpecError

                names = ", ".join(self.modalities)
                raise SpecError(f"The study has no modality '{wanted}'.", f"It has {names}: set data.modality to one of them.")
            return self.modalities[wanted]
        return self.modalities.get("rna") or next(iter(self.modalities.values()))
