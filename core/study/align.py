"""Matching by name: features over files, cells over modalities. Nothing here ever matches by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from cellweave.core.errors import DataError


class NothingSharedError(DataError):
    """No feature of a modality is in all files."""

    MEND = "Use the same kind of names in all files, or set data.join = 'union'."


@dataclass(frozen=True)
class Alignment:
    """Features of several files brought into one order.

    Attributes
    ----------
    names
        The joint features, ``(n_features,)``.
    columns
        For each file, the joint column of each of its features, -1 for those that are left out.
    mask
        ``(n_files, n_features)`` bool, which file has which feature; None where every file has all.
    """

    names: np.ndarray
    columns: tuple[np.ndarray, ...]
    mask: np.ndarray | None


def align_features(names: Sequence[np.ndarray], join: str, modality: str = "") -> Alignment:
    """Align the features of several files by name.

    Parameters
    ----------
    names
        Unique feature names of each file.
    join
        ``"intersection"`` or ``"union"``. The order is that of the first file, then of the next.
    modality
        For the error text.

    Returns
    -------
    Alignment
        Joint names, columns and mask.

    Raises
    ------
    DataError
        Where names repeat within a file; :class:`NothingSharedError` where no feature is in all files.
    """
    for position, own in enumerate(names):
        unique, number = np.unique(np.asarray(own, dtype=str), return_counts=True)
        if (number > 1).any():
            raise DataError(
                f"Feature names of {modality} repeat in file {position + 1} ('{unique[number > 1][0]}'), so that files cannot be matched by name.",
                "Set data.make_names_unique = true.",
            )
    joint = pd.Index(names[0], dtype=object)
    for own in names[1:]:
        other = pd.Index(own, dtype=object)
        joint = joint.append(other[~other.isin(joint)]) if join == "union" else joint[joint.isin(other)]
    if len(joint) == 0:
        raise NothingSharedError(
            f"The files share no feature of {modality}: the first calls them '{names[0][0]}' and so on, another '{names[-1][0]}'.",
            NothingSharedError.MEND,
        )
    columns = tuple(joint.get_indexer(pd.Index(own, dtype=object)) for own in names)
    mask = np.zeros((len(names), len(joint)), dtype=bool)
    for row, where in enumerate(columns):
        mask[row, where[where >= 0]] = True
    return Alignment(joint.to_numpy(dtype=object), columns, None if mask.all() else mask)


def move_columns(matrix: sparse.csr_matrix, columns: np.ndarray, n_features: int) -> sparse.csr_matrix:
    """Return the matrix with its columns moved to new places; those at -1 are left out.

    Parameters
    ----------
    matrix
        CSR ``(n_cells, n_own)``.
    columns
        New column of each own one, ``(n_own,)``.
    n_features
        Number of columns of the result.
    """
    if len(columns) == n_features and np.array_equal(columns, np.arange(n_features)):
        return matrix
    moved = columns[matrix.indices].astype(matrix.indices.dtype)
    kept = moved >= 0
    before = np.concatenate([[0], np.cumsum(kept)])
    indptr = before[matrix.indptr].astype(matrix.indptr.dtype)
    result = sparse.csr_matrix((matrix.data[kept], moved[kept], indptr), shape=(matrix.shape[0], n_features))
    result.sort_indices()
    return result


def move_rows(matrix: sparse.csr_matrix, rows: np.ndarray, n_cells: int) -> sparse.csr_matrix:
    """Return the matrix with each row at a new place; places that no row goes to are empty.

    Parameters
    ----------
    matrix
        CSR ``(n_own, n_features)``.
    rows
        New row of each own one, ``(n_own,)``, without repeats; -1 leaves the row out.
    n_cells
        Number of rows of the result.
    """
    if len(rows) == n_cells and np.array_equal(rows, np.arange(n_cells)):
        return matrix
    source = np.full(n_cells, -1, dtype=np.int64)
    source[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
    there = source >= 0
    picked = matrix[source[there]]
    lengths = np.zeros(n_cells, dtype=np.int64)
    lengths[there] = np.diff(picked.indptr)
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(picked.indptr.dtype)
    result = sparse.csr_matrix((picked.data, picked.indices, indptr), shape=(n_cells, matrix.shape[1]))
    result.sort_indices()
    return result


def numbered(names: Sequence[object] | np.ndarray | pd.Index) -> bool:
    """Return whether names only count the rows, from 0 or 1, as an index does that nobody named; they tell no cell from that of another file."""
    first = str(names[0]) if len(names) else ""
    return first in {"0", "1"} and all(str(name) == str(number) for number, name in enumerate(names, int(first)))


def rows_by_name(cells: np.ndarray, own: np.ndarray, modality: str, file: str) -> np.ndarray:
    """Return the row of each of a modality's own cells among all cells, matched by name; -1 where it is not there.

    Raises
    ------
    DataError
        Where names repeat, so that a cell cannot be told from another.
    """
    for names, whose in ((cells, "the file"), (own, f"'{modality}'")):
        index = pd.Index(names, dtype=object)
        if not index.is_unique:
            repeated = index[index.duplicated()][0]
            raise DataError(
                f"Cell names repeat in {whose} of '{file}' ('{repeated}'), so that modalities cannot be matched by name.",
                "Make them unique with mudata (obs_names_make_unique) and write the file again.",
            )
    return np.asarray(pd.Index(cells, dtype=object).get_indexer(pd.Index(own, dtype=object)))


def make_unique(names: np.ndarray) -> np.ndarray:
    """Return the names with -1, -2 ... appended to repeated ones; the first of each stays, no name is hit twice."""
    taken = set(names.tolist())
    seen: set[str] = set()
    counters: dict[str, int] = {}
    result = np.empty(len(names), dtype=object)
    for row, name in enumerate(names.tolist()):
        new = name
        while new in seen:
            counters[name] = counters.get(name, 0) + 1
            new = f"{name}-{counters[name]}"
            if new in taken and new not in seen:
                new = name
        seen.add(new)
        result[row] = new
    return result


def stack_rows(matrices: Sequence[sparse.csr_matrix]) -> sparse.csr_matrix:
    """Return CSR matrices of equal width one under the other."""
    if len(matrices) == 1:
        return matrices[0]
    result = sparse.vstack(matrices, format="csr")
    return sparse.csr_matrix(result)
