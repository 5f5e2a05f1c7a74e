"""Which features were measured in which cells: masks from layers, files and annotation, matched by name.

A mask is kept as its distinct rows and the row of each cell, since cells of one batch share theirs. The masks of all
modalities are then brought onto one numbering of *mask groups*, ``Study.mask_group``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from cellweave.core.errors import DataError
from cellweave.core.spec.modalities import modality_kind
from cellweave.core.study.study import ALL_MASKED
from cellweave.core.wording import agree, counted

if TYPE_CHECKING:
    from cellweave.core.study.study import Modality, Study

#: Elements of all mask rows of one modality; beyond it they would fill the memory (one byte each).
MOST_ELEMENTS = 1 << 31
BLOCK = 1 << 26  # elements looked at in one go


@dataclass(frozen=True)
class CellMask:
    """Which features were measured in which cells.

    Attributes
    ----------
    rows
        Distinct rows, ``(n_rows, n_features)`` bool.
    row_of_cell
        The row that holds for each cell, ``(n_cells,)`` int64.
    """

    rows: np.ndarray
    row_of_cell: np.ndarray

    def on_features(self, own: np.ndarray, wanted: np.ndarray, modality: str) -> CellMask:
        """Return the mask over other features, matched by name; a feature it does not name counts as measured.

        Raises
        ------
        DataError
            Where names repeat and are not the same on both sides, or none is shared.
        """
        if len(own) == len(wanted) and np.array_equal(own, wanted):
            return self
        index = pd.Index(own, dtype=object)
        if not index.is_unique:
            raise DataError(f"Feature names repeat in the mask of {modality} ('{index[index.duplicated()][0]}').", "Name each feature once.")
        place = index.get_indexer(pd.Index(wanted, dtype=object))
        if (place < 0).all():
            raise DataError(
                f"The mask of {modality} names none of its features: it has '{own[0]}' and the like, the data '{wanted[0]}'.",
                "Name the features of the mask as in the data.",
            )
        rows = np.ones((len(self.rows), len(wanted)), dtype=bool)
        rows[:, place >= 0] = self.rows[:, place[place >= 0]]
        return CellMask(rows, self.row_of_cell)

    def on_cells(self, rows: np.ndarray, n_cells: int) -> CellMask:
        """Return the mask over other cells: own cell ``i`` is at ``rows[i]`` (-1: nowhere); where there is none, all counts as measured."""
        everything = np.ones((1, self.rows.shape[1]), dtype=bool)
        place = np.full(n_cells, len(self.rows), dtype=np.int64)
        place[rows[rows >= 0]] = self.row_of_cell[rows >= 0]
        return CellMask(np.concatenate([self.rows, everything]), place)


def same_for_all(measured: np.ndarray, n_cells: int) -> CellMask:
    """Return the mask that holds the same features for all cells."""
    return CellMask(np.asarray(measured, dtype=bool)[None, :], np.zeros(n_cells, dtype=np.int64))


def distinct(shape: tuple[int, int], block: Callable[[int, int], np.ndarray], modality: str) -> CellMask:
    """Return the mask of cells that each have their own row, with repeated rows stored once.

    Parameters
    ----------
    shape
        ``(n_cells, n_features)``.
    block
        Gives rows ``start`` to ``stop`` as bool.
    modality
        For the error text.

    Raises
    ------
    DataError
        Where the distinct rows would not fit into memory.
    """
    known: dict[bytes, int] = {}
    row_of_cell = np.zeros(shape[0], dtype=np.int64)
    step = max(1, BLOCK // max(1, shape[1]))
    for start in range(0, shape[0], step):
        packed = np.packbits(block(start, min(start + step, shape[0])), axis=1)
        for at, line in enumerate(packed, start):
            row_of_cell[at] = known.setdefault(line.tobytes(), len(known))
        if len(known) * shape[1] > MOST_ELEMENTS:
            raise DataError(
                f"The mask of {modality} has more than {MOST_ELEMENTS // max(1, shape[1]):,} different rows, which do not fit into memory.",
                "Use fewer features or cells, or a mask by batch.",
            )
    bits = np.frombuffer(b"".join(known), dtype=np.uint8).reshape(len(known), -1)
    rows = np.unpackbits(bits, axis=1, count=shape[1]).astype(bool) if shape[1] else np.zeros((len(known), 0), dtype=bool)
    return CellMask(rows, row_of_cell)


def from_matrix(matrix: sparse.csr_matrix, modality: str) -> CellMask:
    """Return the mask that a matrix of 0 and 1 says, 1 for measured.

    Raises
    ------
    DataError
        Where it holds anything else.
    """
    values = matrix.data
    if not np.isin(values, (0, 1)).all():
        odd = values[~np.isin(values, (0, 1))][0]
        raise DataError(f"The mask of {modality} holds the value {odd:g}.", "A mask holds 1 for measured and 0 for not measured.")
    shape = (int(matrix.shape[0]), int(matrix.shape[1]))
    return distinct(shape, lambda start, stop: matrix[start:stop].toarray() > 0, modality)


def without_missing(counts: sparse.csr_matrix, modality: str) -> tuple[sparse.csr_matrix, CellMask | None]:
    """Return counts without their NaN entries, and the mask that these stand for; None where there are none."""
    missing = np.isnan(counts.data)
    if not missing.any():
        return counts, None
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))[missing]
    absent = sparse.csr_matrix((np.ones(len(rows), dtype=bool), (rows, counts.indices[missing])), shape=counts.shape)
    shape = (int(counts.shape[0]), int(counts.shape[1]))
    mask = distinct(shape, lambda start, stop: ~absent[start:stop].toarray(), modality)
    kept = ~missing
    indptr = np.concatenate([[0], np.cumsum(kept)])[counts.indptr].astype(counts.indptr.dtype)
    return sparse.csr_matrix((counts.data[kept], counts.indices[kept], indptr), shape=counts.shape), mask


def both(first: CellMask | None, second: CellMask | None) -> CellMask | None:
    """Return what both masks say was measured."""
    if first is None or second is None:
        return first or second
    pairs, row_of_cell = np.unique(np.stack([first.row_of_cell, second.row_of_cell], axis=1), axis=0, return_inverse=True)
    return CellMask(first.rows[pairs[:, 0]] & second.rows[pairs[:, 1]], row_of_cell.reshape(-1).astype(np.int64))


def by_level(named: Mapping[str, np.ndarray], column: pd.Series) -> CellMask:
    """Return the mask of cells by the level of a column; cells of a level that is not named count as fully measured."""
    levels = list(named)
    n_features = len(next(iter(named.values())))
    place = {level: row for row, level in enumerate(levels)}
    row_of_cell = np.array([place.get(str(value), len(levels)) for value in column], dtype=np.int64)
    return CellMask(np.stack([*(named[level] for level in levels), np.ones(n_features, dtype=bool)]), row_of_cell)


def column_with(obs: pd.DataFrame, levels: Sequence[str]) -> str | None:
    """Return the obs column that has all these levels: ``batch`` where it does, else the one with the fewest others."""
    wanted, found = set(levels), []
    for name in obs.columns:
        if obs[name].dtype.kind == "f":
            continue
        present = {str(value) for value in obs[name].dropna().unique()}
        if wanted <= present:
            found.append((name != "batch", len(present), str(name)))
    return min(found)[2] if found else None


def from_csv(path: Path, obs: pd.DataFrame, modality: str) -> tuple[np.ndarray, CellMask]:
    """Read a mask from a table: titles name features, the first column cells or levels of an obs column, values are 1 or 0.

    Returns
    -------
    features
        Names, ``(n_features,)``.
    mask
        Over all cells of ``obs``.

    Raises
    ------
    DataError
        Where it is not such a table.
    """
    try:
        table = pd.read_csv(path, index_col=0, sep=None, engine="python", dtype=object)
    except (OSError, UnicodeDecodeError, ValueError, pd.errors.ParserError):
        raise DataError(f"The mask '{path}' of {modality} cannot be read.", "Give a table with feature names as titles and 0 or 1 below.") from None
    values = _zeros_and_ones(table.to_numpy(dtype=object), f"'{path.name}'", modality)
    features, names = table.columns.astype(str).to_numpy(dtype=object), [str(name) for name in table.index]
    if not len(names) or not len(features):
        raise DataError(f"The mask '{path.name}' of {modality} is empty.", "Give a table with feature names as titles and 0 or 1 below.")
    if len(set(names)) < len(names):
        raise DataError(f"The mask '{path.name}' of {modality} names a row twice.", "Name each cell or batch once.")
    place = pd.Index(names, dtype=object).get_indexer(pd.Index(obs.index.to_numpy(dtype=object), dtype=object))
    if (place >= 0).all():
        return features, CellMask(values, place.astype(np.int64))
    column = column_with(obs, names)
    if column is not None:
        return features, by_level(dict(zip(names, values, strict=True)), obs[column])
    if len(names) == 1:
        return features, same_for_all(values[0], len(obs))
    raise DataError(
        f"The rows of the mask '{path.name}' of {modality} ('{names[0]}' ...) are neither the cells nor levels of one column.",
        "Name each row after a batch, or after a cell.",
    )


def _zeros_and_ones(values: np.ndarray, where: str, modality: str) -> np.ndarray:
    flat = np.ravel(values)
    if flat.dtype.kind not in "biuf":
        words = {"true": "1", "false": "0"}
        flat = np.array([words.get(str(value).strip().lower(), str(value)) for value in flat], dtype=object)
    numbers = pd.to_numeric(pd.Series(flat), errors="coerce").to_numpy(np.float64)
    if not np.isin(numbers, (0.0, 1.0)).all():
        odd = np.ravel(values)[~np.isin(numbers, (0.0, 1.0))][0]
        raise DataError(f"The mask of {modality} in {where} holds '{odd}'.", "A mask holds 1 for measured and 0 for not measured.")
    return (numbers > 0).reshape(np.shape(values))


def from_array(found: Any, obs: pd.DataFrame, features: np.ndarray, where: str, modality: str) -> tuple[np.ndarray, CellMask]:
    """Return features and mask of what an AnnData holds: a table or matrix by cell, or one value a feature.

    Raises
    ------
    DataError
        Where its size is not that of the modality.
    """
    if isinstance(found, pd.DataFrame):
        features, values = found.columns.astype(str).to_numpy(dtype=object), found.to_numpy(dtype=object)
    else:
        values = np.asarray(found)
    values = _zeros_and_ones(values, where, modality)
    if values.ndim == 2 and values.shape[0] == 1:
        values = values[0]
    if values.shape == (len(features),):
        return features, same_for_all(values, len(obs))
    if values.shape == (len(obs), len(features)):
        return features, distinct((len(obs), len(features)), lambda start, stop: values[start:stop], modality)
    shown = " x ".join(f"{size:,}" for size in values.shape) or "1"
    raise DataError(
        f"The mask of {modality_kind(modality).label} in {where} has {shown} values, but there {agree(len(features), 'is', 'are')} "
        f"{counted(len(features), 'feature')} (and {counted(len(obs), 'cell')}).",
        f"Give it {counted(len(features), 'value')}, one a feature, or one for each cell and feature, or take it out of the file.",
    )


def stacked(
    parts: Sequence[CellMask | None], columns: Sequence[np.ndarray | None], lengths: Sequence[int], n_features: int
) -> CellMask | None:
    """Put the masks of several files under one another.

    Parameters
    ----------
    parts
        Of each file; None where all its own features were measured.
    columns
        Joint column of each of a file's own features (-1: left out); None for a file without the modality.
    lengths
        Cells of each file.
    n_features
        Joint features.

    Returns
    -------
    CellMask or None
        None where every file that has the modality measured all joint features in all cells.
    """
    rows, row_of_cell, n_rows, complete = [], [], 0, True
    for part, where, length in zip(parts, columns, lengths, strict=True):
        if where is None:
            own = same_for_all(np.zeros(n_features, dtype=bool), length)
        else:
            mine = part or same_for_all(np.ones(len(where), dtype=bool), length)
            wide = np.zeros((len(mine.rows), n_features), dtype=bool)
            wide[:, where[where >= 0]] = mine.rows[:, where >= 0]
            own = CellMask(wide, mine.row_of_cell)
            complete = complete and bool(wide[np.unique(own.row_of_cell)].all())
        rows.append(own.rows)
        row_of_cell.append(own.row_of_cell + n_rows)
        n_rows += len(own.rows)
    return None if complete else CellMask(np.concatenate(rows), np.concatenate(row_of_cell))


def number_groups(masks: Mapping[str, CellMask | None], n_cells: int) -> tuple[np.ndarray, dict[str, np.ndarray | None]]:
    """Bring the masks of all modalities onto one numbering.

    Returns
    -------
    mask_group
        ``(n_cells,)`` int64.
    feature_mask
        ``(n_groups, n_features)`` bool by modality; None where it has no mask.
    """
    known = {name: mask for name, mask in masks.items() if mask is not None}
    if not known:
        return np.zeros(n_cells, dtype=np.int64), dict.fromkeys(masks)
    tuples, group = np.unique(np.stack([mask.row_of_cell for mask in known.values()], axis=1), axis=0, return_inverse=True)
    tables: dict[str, np.ndarray | None] = dict.fromkeys(masks)
    for column, (name, mask) in enumerate(known.items()):
        tables[name] = mask.rows[tuples[:, column]]
    return group.reshape(-1).astype(np.int64), tables


def apply_masks(study: Study) -> None:
    """Honour the masks: counts of features that were not measured go, and a cell none of whose features were measured was not; changes the study."""
    for modality in study.modalities.values():
        if modality.feature_mask is None:
            continue
        gone = _drop_masked(modality, study.mask_group)
        if gone:
            study.notes.append(
                f"{counted(gone, 'count')} of {modality.name} {agree(gone, 'is', 'are')} at {agree(gone, 'a feature', 'features')} "
                f"that its mask says {agree(gone, 'was', 'were')} not measured; {agree(gone, 'it was', 'they were')} left out."
            )
        hidden = modality.measured & ~np.asarray(modality.feature_mask.any(axis=1))[study.mask_group]
        n_hidden = int(hidden.sum())
        if n_hidden:
            modality.measured = modality.measured & ~hidden
            study.notes.append(
                f"{ALL_MASKED} {modality.label} in {counted(n_hidden, 'cell')}, so {agree(n_hidden, 'it counts', 'they count')} as not "
                "measured in it."
            )
        judged = modality.measured.copy()
        if modality.held_out is not None:  # what is kept aside is judged by the same mask: a feature that was not measured has no truth
            judged[modality.held_out.rows] = True
        if modality.feature_mask[np.unique(study.mask_group[judged])].all():
            modality.feature_mask = None


def _drop_masked(modality: Modality, group: np.ndarray, rows_at_once: int = 16_384) -> int:
    """Take out the counts under the mask of a modality; return how many."""
    counts, mask = modality.counts, modality.feature_mask
    assert mask is not None
    kept = np.ones(counts.nnz, dtype=bool)
    for start in range(0, counts.shape[0], rows_at_once):
        stop = min(start + rows_at_once, counts.shape[0])
        first, last = int(counts.indptr[start]), int(counts.indptr[stop])
        own = np.repeat(group[start:stop], np.diff(counts.indptr[start : stop + 1]))
        kept[first:last] = mask[own, counts.indices[first:last]]
    gone = int(counts.nnz - kept.sum())
    if gone:
        indptr = np.concatenate([[0], np.cumsum(kept)])[counts.indptr].astype(counts.indptr.dtype)
        modality.counts = sparse.csr_matrix((counts.data[kept], counts.indices[kept], indptr), shape=counts.shape)
    return gone
