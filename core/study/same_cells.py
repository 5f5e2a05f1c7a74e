"""Files with different modalities of the same cells: joined by the names of the cells, never by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from cellweave.core.errors import DataError
from cellweave.core.study.align import move_rows, numbered
from cellweave.core.study.annotation import add_modality_columns, stack_tables
from cellweave.core.wording import counted

if TYPE_CHECKING:
    from cellweave.core.study.masks import CellMask
    from cellweave.core.study.study import SourceFile

#: Words of the notes on files that were joined, and on files that could not be.
JOINED, APART = "hold different modalities of", "so that they are kept apart"
#: Share of the names of the smaller file that must be those of the other, so that their cells are taken for the same.
ENOUGH = 0.5
#: Share from which on it is said that they were not: fewer are alike by chance, as barcodes of different samples are.
NOTICED = 0.05


@dataclass
class Part:
    """One modality of a file, its rows in the order of the file's cells."""

    counts: sparse.csr_matrix
    var: pd.DataFrame
    measured: np.ndarray
    location: str
    mask: CellMask | None

    def over(self, rows: np.ndarray, n_cells: int) -> Part:
        """Return the part over other cells: own cell ``i`` is at ``rows[i]``; it was not measured in the others."""
        measured = np.zeros(n_cells, dtype=bool)
        measured[rows] = self.measured
        mask = None if self.mask is None else self.mask.on_cells(rows, n_cells)
        return replace(self, counts=move_rows(self.counts, rows, n_cells), measured=measured, mask=mask)


@dataclass(frozen=True)
class Refused:
    """Why a modality holds no counts, and whether it could be used where values need not be whole numbers, or may be missing."""

    why: str
    usable: bool
    only_missing: bool = False


@dataclass
class File:
    """One file in memory, or several of the same cells.

    Attributes
    ----------
    sources
        The files.
    obs
        One row a cell.
    parts, without_counts
        Modalities with counts, and those without.
    notes
        Sentences on what was found.
    file_of_cell, row_in_file
        Which of ``sources`` a cell is from, and its row there, each ``(n_cells,)``; the first file that has it.
    """

    sources: tuple[SourceFile, ...]
    obs: pd.DataFrame
    parts: dict[str, Part]
    without_counts: dict[str, Refused]
    notes: list[str] = field(default_factory=list)
    file_of_cell: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    row_in_file: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __post_init__(self) -> None:
        if not len(self.row_in_file):
            self.file_of_cell = np.zeros(len(self.obs), dtype=np.int64)
            self.row_in_file = np.arange(len(self.obs))

    @property
    def label(self) -> str:
        """Names of the files."""
        return " and ".join(source.path.name for source in self.sources)


def join_same_cells(files: Sequence[File], how: str) -> list[File]:
    """Join files that hold different modalities of the same cells.

    Parameters
    ----------
    files
        As they were read.
    how
        ``data.same_cells``: ``"automatic"`` joins where at least half of the smaller file's names are in the other, ``"joined"`` wherever names are
        shared, ``"apart"`` never.

    Returns
    -------
    list of File
        Fewer where some were joined, in the order of their first files.

    Raises
    ------
    DataError
        With ``"joined"``, where a file shares cells with none or with several of the others.
    """
    if how == "apart" or len(files) < 2:
        return list(files)
    groups: list[File] = []
    for file in files:
        match = _match(groups, file, how)
        if match is None:
            groups.append(file)
        else:
            groups[match] = _merged(groups[match], file)
    if how == "joined" and len(groups) == len(files):
        raise DataError("No two of the files hold different modalities of the same cells.", "Set data.same_cells = 'automatic', or name the cells alike.")
    return groups


def _match(groups: Sequence[File], file: File, how: str) -> int | None:
    """Return the group whose cells are those of a file, or None."""
    names, shares = file.obs.index, [_share(group, file, how) for group in groups]
    near = int(np.argmax(shares)) if shares else 0
    if how != "joined" and max(shares, default=0.0) >= NOTICED and numbered(names) and numbered(groups[near].obs.index):
        file.notes.append(
            f"'{file.label}' and '{groups[near].label}' number their cells instead of naming them, {APART}. If row for row they are the same cells, set "
            "data.same_cells = 'joined'."
        )
        return None
    good = [number for number, share in enumerate(shares) if share >= ENOUGH or (how == "joined" and share > 0)]
    if not good:
        if shares and shares[near] >= NOTICED:
            n = int(names.isin(groups[near].obs.index).sum())
            file.notes.append(
                f"'{file.label}' and '{groups[near].label}' share {counted(n, 'cell name')}, too few to be taken for the same cells, {APART}. If they "
                "are the same, set "
                "data.same_cells = 'joined'."
            )
        return None
    best = max(good, key=lambda number: shares[number])
    rivals = [number for number in good if number != best and shares[number] > 0.5 * shares[best]]
    if not rivals:
        return best
    text = f"The cells of '{file.label}' are called like those of '{groups[best].label}' and of '{groups[rivals[0]].label}'"
    if how == "joined":
        raise DataError(f"{text}, so that they cannot be joined.", "Give the cells of each batch names of their own.")
    file.notes.append(f"{text}, {APART}.")
    return None


def _share(group: File, file: File, how: str) -> float:
    """Return the share of the smaller one's cells that have a name of the other; 0 where they cannot be the same cells."""
    names, others = file.obs.index, group.obs.index
    if set(group.parts) & set(file.parts) or not (names.is_unique and others.is_unique) or (how != "joined" and _of_one_folder(group, file)):
        return 0.0
    return float(names.isin(others).sum()) / min(len(names), len(others))


def _of_one_folder(group: File, file: File) -> bool:
    """Return whether both are batches of one MIDAS folder, which are different cells whatever they are called."""
    folders = {source.path.parent for source in group.sources if source.format == "midas"}
    return any(source.format == "midas" and source.path.parent in folders for source in file.sources)


def _merged(first: File, second: File) -> File:
    """Return both as one file: the cells of the first, then those that only the second has."""
    own = second.obs.index
    place = first.obs.index.get_indexer(own)
    new = np.flatnonzero(place < 0)
    n_cells = len(first.obs) + len(new)
    place[new] = len(first.obs) + np.arange(len(new))
    notes = [*first.notes, *second.notes]
    obs = stack_tables([first.obs, second.obs.iloc[new]], notes) if len(new) else first.obs.copy()
    add_modality_columns(obs, second.obs, place, next(iter(second.parts)))
    shared = len(own) - len(new)
    notes.append(
        f"'{first.label}' and '{second.label}' {JOINED} "
        f"{counted(shared, 'cell of one name, which is one cell', 'cells of the same names, which are one cell each')} "
        f"({counted(len(first.obs) - shared, 'cell is', 'cells are')} in the first only, {len(new):,} in the second only). To keep them apart, set "
        "data.same_cells = 'apart'."
    )
    parts = {name: part.over(np.arange(len(first.obs)), n_cells) for name, part in first.parts.items()}
    parts |= {name: part.over(place, n_cells) for name, part in second.parts.items()}
    without = {name: why for name, why in {**first.without_counts, **second.without_counts}.items() if name not in parts}
    return File(
        (*first.sources, *second.sources), obs, parts, without, notes,
        np.concatenate([first.file_of_cell, second.file_of_cell[new] + len(first.sources)]),
        np.concatenate([first.row_in_file, second.row_in_file[new]]),
    )  # fmt: skip
