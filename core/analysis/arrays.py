"""Arrays that change hands as files: numpy's own format, written atomically, never pickled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from cellweave.core.analysis.neighbours import Neighbours
from cellweave.core.files import write_atomic


def save_array(path: Path, array: NDArray[np.generic]) -> None:
    """Write one array as ``.npy``."""
    write_atomic(path, lambda temporary: np.save(temporary, array, allow_pickle=False))


def load_array(path: Path, *, mapped: bool = False) -> NDArray[np.generic]:
    """Read one ``.npy``; ``mapped`` leaves it on disk until it is used."""
    return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)


def save_neighbours(path: Path, neighbours: Neighbours) -> None:
    """Write neighbours as ``.npz``."""
    write_atomic(path, lambda temporary: np.savez(temporary, indices=neighbours.indices, distances=neighbours.distances))


def load_neighbours(path: Path) -> Neighbours:
    """Read what :func:`save_neighbours` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        return Neighbours(stored["indices"], stored["distances"])


def save_csr(path: Path, matrix: sparse.csr_matrix) -> None:
    """Write a sparse matrix as an uncompressed ``.npz`` (one pass over the disk; it lives for minutes)."""
    write_atomic(path, lambda temporary: sparse.save_npz(temporary, sparse.csr_matrix(matrix), compressed=False))


def load_csr(path: Path) -> sparse.csr_matrix:
    """Read what :func:`save_csr` wrote."""
    return sparse.csr_matrix(sparse.load_npz(path))
