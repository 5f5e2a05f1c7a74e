"""What every reader gives: an opened file with its modalities, the places where matrices are, and its cells."""

from __future__ import annotations

import os
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from cellweave.core.errors import Cancelled, DataError
from cellweave.core.study.counts import BLOCK_VALUES, CountsReport, Scanner, place_in_sparse, scan_matrix

if TYPE_CHECKING:
    import pandas as pd

    from cellweave.core.study.header import ColumnHeader

# float32 holds every whole number up to here; larger counts are kept as float64.
LARGEST_EXACT = 2**24
BYTES_PER_VALUE = 8  # float32 value and int32 column of a CSR matrix
SAMPLE_ROWS = 64
SMALL = 1 << 16  # arrays shorter than this are not worth a file


@dataclass
class Watch:
    """Progress and cancel of one reading.

    Attributes
    ----------
    progress
        Called with a share from 0 to 1 (None where it is not known) and what is being done.
    cancelled
        Asked between blocks.
    start, share
        Which part of the whole this watch covers.
    scratch
        Folder for memory-mapped arrays, where the data may be larger than the memory; None keeps arrays in memory.
    """

    progress: Callable[[float | None, str], None] | None = None
    cancelled: Callable[[], bool] | None = None
    start: float = 0.0
    share: float = 1.0
    scratch: Path | None = None

    def empty(self, n: int, dtype: type) -> np.ndarray:
        """Return a flat array to be filled: in memory, or mapped from a new file in ``scratch``."""
        if self.scratch is None or n < SMALL:
            return np.empty(n, dtype=dtype)
        self.scratch.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix=".bin", dir=self.scratch)
        os.close(handle)
        return np.memmap(name, dtype=dtype, mode="w+", shape=(n,))

    def at(self, fraction: float | None, text: str) -> None:
        """Report progress and honour a cancel.

        Raises
        ------
        Cancelled
            Where the person asked to stop.
        """
        if self.cancelled is not None and self.cancelled():
            raise Cancelled("opening the data was cancelled")
        if self.progress is not None:
            self.progress(None if fraction is None else self.start + self.share * min(1.0, fraction), text)

    def part(self, start: float, share: float) -> Watch:
        """Return a watch over a part of this one."""
        return Watch(self.progress, self.cancelled, self.start + self.share * start, self.share * share, self.scratch)


class StoredMatrix(ABC):
    """A matrix ``(n_cells, n_features)`` that is not read yet."""

    def __init__(self, location: str, shape: tuple[int, int], storage: str, dtype: str, n_stored: int | None) -> None:
        self.location, self.shape, self.storage, self.dtype, self.n_stored = location, shape, storage, dtype, n_stored

    @abstractmethod
    def read(self, watch: Watch, *, keep: bool = False) -> tuple[CountsReport, sparse.csr_matrix | None]:
        """Read and scan the matrix in one pass.

        Parameters
        ----------
        watch
            Progress and cancel.
        keep
            Keep the values even where they turn out not to be raw counts.

        Returns
        -------
        tuple
            The report (without names), and the matrix as CSR with sorted columns and without explicit zeros, of
            float32 (float64 where a value is too large for it); None where the values are not raw counts and
            ``keep`` is not set.
        """

    def density(self) -> float:
        """Return the share of values that are not zero, estimated from the first cells where it is not stored."""
        if self.n_stored is None:
            return 1.0
        return self.n_stored / max(1, self.shape[0] * self.shape[1])

    def estimated_bytes(self) -> int:
        """Return the memory that the matrix takes once it is read."""
        return int(self.density() * self.shape[0] * self.shape[1] * BYTES_PER_VALUE) + 4 * (self.shape[0] + 1)


class StoredSparse(StoredMatrix):
    """Three arrays of a compressed matrix, on disk or in memory; ``by_column`` where features are the major axis."""

    def __init__(
        self, location: str, shape: tuple[int, int], data: object, indices: object, indptr: object, *, by_column: bool
    ) -> None:
        self._data, self._indices, self._indptr, self._by_column = data, indices, indptr, by_column
        n_stored = int(data.shape[0])  # type: ignore[attr-defined]
        super().__init__(location, shape, "csc" if by_column else "csr", str(data.dtype), n_stored)  # type: ignore[attr-defined]

    def read(self, watch: Watch, *, keep: bool = False) -> tuple[CountsReport, sparse.csr_matrix | None]:
        """Read block by block; what is not counts is scanned to its end, but no longer kept."""
        n_stored = self.n_stored or 0
        indptr = np.asarray(self._indptr[:])  # type: ignore[index]
        _check_pointers(indptr, self.shape, n_stored, by_column=self._by_column)
        scanner = Scanner(self.location)
        values: np.ndarray | None = watch.empty(n_stored, np.float32)
        text = f"reading {self.location}"
        for start in range(0, n_stored, BLOCK_VALUES):
            watch.at(0.7 * start / n_stored, text)
            block = np.asarray(self._data[start : start + BLOCK_VALUES])  # type: ignore[index]
            scanner.add(block)
            values = _store(values, start, block) if values is not None and (keep or scanner.looks_raw) else None
        if values is None:
            return self._report(scanner, indptr), None
        columns = watch.empty(n_stored, np.int32 if max(*self.shape, n_stored) < 2**31 else np.int64)
        for start in range(0, n_stored, BLOCK_VALUES):
            watch.at(0.7 + 0.3 * start / n_stored, text)
            columns[start : start + BLOCK_VALUES] = self._indices[start : start + BLOCK_VALUES]  # type: ignore[index]
            _check_columns(columns[start : start + BLOCK_VALUES], self.shape[0] if self._by_column else self.shape[1], self.location)
        kind = sparse.csc_matrix if self._by_column else sparse.csr_matrix
        return self._report(scanner, indptr), tidy(kind((values, columns, indptr), shape=self.shape))

    def _report(self, scanner: Scanner, indptr: np.ndarray) -> CountsReport:
        places = {
            kind: place_in_sparse(position, indptr, self._indices, by_column=self._by_column)
            for kind, (position, _) in scanner.positions().items()
        }
        return scanner.report(places)


class StoredDense(StoredMatrix):
    """A dense matrix on disk or in memory; ``transposed`` where the file holds features in rows."""

    def __init__(self, location: str, array: object, *, transposed: bool = False) -> None:
        self._array, self._transposed = array, transposed
        rows, columns = (int(size) for size in array.shape)  # type: ignore[attr-defined]
        shape = (columns, rows) if transposed else (rows, columns)
        super().__init__(location, shape, "dense", str(array.dtype), None)  # type: ignore[attr-defined]

    def _rows(self, start: int, stop: int) -> np.ndarray:
        if self._transposed:
            return np.asarray(self._array[:, start:stop]).T  # type: ignore[index]
        return np.asarray(self._array[start:stop])  # type: ignore[index]

    def read(self, watch: Watch, *, keep: bool = False) -> tuple[CountsReport, sparse.csr_matrix | None]:
        """Read in blocks of cells, each of which becomes sparse at once."""
        n_cells, width = self.shape
        scanner = Scanner(self.location)
        kept: list[sparse.csr_matrix] | None = []
        step = max(1, BLOCK_VALUES // max(1, width))
        for start in range(0, n_cells, step):
            watch.at(start / max(1, n_cells), f"reading {self.location}")
            block = self._rows(start, start + step)
            scanner.add(block)
            if kept is not None and (keep or scanner.looks_raw):
                kept.append(sparse.csr_matrix(_as_float(block)))
            else:
                kept = None
        places = {kind: divmod(position, width) for kind, (position, _) in scanner.positions().items()}
        report = scanner.report(places)
        if kept is None:
            return report, None
        if not kept:
            return report, sparse.csr_matrix(self.shape, dtype=np.float32)
        return report, tidy(sparse.vstack(kept, format="csr"))

    def density(self) -> float:
        """Return the density of the first cells."""
        if 0 in self.shape:
            return 0.0
        block = self._rows(0, min(SAMPLE_ROWS, self.shape[0]))
        return float(np.count_nonzero(block)) / block.size


def stored(location: str, matrix: object) -> StoredMatrix:
    """Return a matrix in memory (sparse or dense, cells in rows) as a stored one."""
    if sparse.issparse(matrix):
        if matrix.format not in ("csr", "csc"):  # type: ignore[attr-defined]
            matrix = matrix.tocsr()  # type: ignore[attr-defined]
        by_column = matrix.format == "csc"  # type: ignore[attr-defined]
        shape = (int(matrix.shape[0]), int(matrix.shape[1]))  # type: ignore[attr-defined]
        return StoredSparse(location, shape, matrix.data, matrix.indices, matrix.indptr, by_column=by_column)  # type: ignore[attr-defined]
    return StoredDense(location, matrix)


def tidy(matrix: object) -> sparse.csr_matrix:
    """Return CSR with sorted columns, summed duplicates and no explicit zeros."""
    result = sparse.csr_matrix(matrix)
    result.sum_duplicates()
    result.eliminate_zeros()
    result.sort_indices()
    return result


def _as_float(block: np.ndarray) -> np.ndarray:
    wide = block.dtype.itemsize > 4 or block.dtype.kind in "iu"
    if wide and block.size and _largest(block) > LARGEST_EXACT:
        return block.astype(np.float64)
    return block.astype(np.float32)


def _largest(block: np.ndarray) -> float:
    if block.dtype.kind == "f":
        finite = block[np.isfinite(block)]
        return float(np.abs(finite).max()) if finite.size else 0.0
    return float(max(abs(int(block.min())), int(block.max()))) if block.dtype.kind in "iu" else 1.0


def _store(values: np.ndarray, start: int, block: np.ndarray) -> np.ndarray:
    """Write a block into ``values``, which becomes float64 where a value needs it."""
    block = _as_float(block)
    if block.dtype == np.float64 and values.dtype == np.float32:
        values = values.astype(np.float64)
    values[start : start + block.size] = block
    return values


def _check_pointers(indptr: np.ndarray, shape: tuple[int, int], n_stored: int, *, by_column: bool) -> None:
    major = shape[1] if by_column else shape[0]
    if indptr.shape != (major + 1,) or int(indptr[0]) != 0 or int(indptr[-1]) != n_stored or np.any(np.diff(indptr) < 0):
        raise DataError("The row pointers of the sparse matrix do not fit its shape.", "The file is damaged: write or download it again.")


def _check_columns(columns: np.ndarray, width: int, location: str) -> None:
    if int(columns.min()) < 0 or int(columns.max()) >= width:
        raise DataError(f"The matrix at {location} points outside its own shape.", "The file is damaged: write or download it again.")


@dataclass
class Place:
    """One place of a modality where counts may be.

    Attributes
    ----------
    matrix
        The matrix, of all features of the file's table.
    read_var
        Gives one row for each column of the matrix; the index holds the names.
    columns
        Which columns of the matrix belong to the modality; None for all.
    """

    matrix: StoredMatrix
    read_var: Callable[[], pd.DataFrame]
    columns: np.ndarray | None = None

    @property
    def n_features(self) -> int:
        """Number of features of the modality at this place."""
        return self.matrix.shape[1] if self.columns is None else len(self.columns)

    def read(self, watch: Watch, *, keep: bool = False) -> tuple[CountsReport, sparse.csr_matrix | None]:
        """Read and scan; a modality that shares its matrix with others is judged by its own columns only."""
        if self.columns is None:
            return self.matrix.read(watch, keep=keep)
        _, whole = self.matrix.read(watch, keep=True)
        assert whole is not None
        part = tidy(whole[:, self.columns])
        report = scan_matrix(part, self.matrix.location)
        return report, part if keep or report.is_raw else None


@dataclass
class ModalitySource:
    """One modality of an opened file.

    Attributes
    ----------
    name
        ``rna``, ``adt``, ``atac`` or another.
    n_cells
        Rows of its matrices.
    places
        Where counts may be, by location.
    read_names
        Gives the names of its rows; None where they are the rows of the file.
    read_obs
        Gives its own annotation of cells, or None where it has none beyond the file's.
    features_measured
        ``(n_features,)`` bool where the file says which features were measured, else None.
    read_mask
        Gives what is at ``obsm/NAME``, ``var/NAME`` or ``uns/NAME``, an array or a table, or None where nothing is; None where
        the format has no such places.
    mask_names
        Entries of uns, or columns of var, whose names begin with a word: ``mask_names("uns", "mask_")``.
    """

    name: str
    n_cells: int
    places: dict[str, Place]
    read_names: Callable[[], np.ndarray] | None = None
    read_obs: Callable[[], pd.DataFrame] | None = None
    features_measured: np.ndarray | None = None
    read_mask: Callable[[str], Any] | None = None
    mask_names: Callable[[str, str], list[str]] | None = None


@dataclass
class Source:
    """An opened file.

    Attributes
    ----------
    path, format
        Where it is and what it is.
    n_cells
        Cells.
    modalities
        What was measured.
    read_obs
        Gives one row a cell; the index holds the names as they are in the file.
    column_headers
        Describes the columns of obs without reading more than it must.
    obsm
        Names of embeddings and other arrays by cell.
    notes
        Sentences on what was found.
    """

    path: Path
    format: str
    n_cells: int
    modalities: list[ModalitySource]
    read_obs: Callable[[], pd.DataFrame]
    column_headers: Callable[[], tuple[ColumnHeader, ...]]
    obsm: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    closing: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.close()


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the libraries below raise on a damaged or foreign file into one sentence."""
    try:
        yield
    except (DataError, Cancelled):
        raise
    except PermissionError:
        raise DataError(f"'{path}' may not be read by you.", "Ask its owner for the right to read it, or copy it.") from None
    except FileNotFoundError:
        raise DataError(f"'{path}' does not exist.", "Check the path, or choose the file again.") from None
    except MemoryError:
        raise DataError(
            f"'{path.name}' does not fit into the memory of this machine.", "Close other programs or use a machine with more memory."
        ) from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, IndexError, EOFError, AttributeError, zlib.error) as error:
        raise DataError(
            f"'{path.name}' cannot be read: {plain(error)}.", "Write or download it again, or choose another file."
        ) from error


def plain(error: BaseException) -> str:
    """Return the first line of an error's text, without the full stop at its end."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    line = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    if line.startswith(("Can't synchronously", "Unable to", "Can't open", "Can't read", "Can't get")):  # the HDF5 library's own words
        return "a part of the file is damaged"
    return line[:200].rstrip(". ")
