"""10x folders: a Matrix Market file with the names of cells and features beside it."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from io import RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from cellweave.core.errors import DataError
from cellweave.core.study.counts import CountsReport
from cellweave.core.study.readers.base import Source, StoredMatrix, Watch, stored
from cellweave.core.study.readers.tenx import table_source
from cellweave.core.wording import counted

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

DEEPEST = 3  # folders below the one that was named
CELL_FILES = ("barcodes.tsv", "barcodes.txt", "cells.tsv", "cell_names.tsv", "barcodes.csv")
FEATURE_FILES = ("features.tsv", "genes.tsv", "features.txt", "genes.txt", "peaks.bed", "features.csv", "genes.csv")
OPENABLE = (".h5ad", ".h5mu", ".h5", ".loom", ".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz", ".zarr")


@dataclass(frozen=True)
class Triple:
    """A matrix with the files that name its rows and columns."""

    matrix: Path
    cells: Path
    features: Path


def open_mtx_folder(folder: Path) -> Source:
    """Return the source of the matrix in a folder, or in folders below it.

    Of a raw and a filtered matrix of the same run the filtered one is taken.

    Raises
    ------
    DataError
        Where there is none, or several that cannot be chosen from.
    """
    matrices = _matrices_below(folder)
    if not matrices:
        raise _nothing(folder)
    notes: list[str] = []
    if len(matrices) > 1:
        filtered = [path for path in matrices if "filtered" in str(path.relative_to(folder)).lower()]
        if len(filtered) != 1:
            names = ", ".join(str(path.relative_to(folder)) for path in matrices[:4])
            raise DataError(
                f"'{folder.name}' holds {len(matrices)} matrices ({names}), and which one is meant is not clear.",
                "Open one of them; several can be opened together as one study.",
            )
        others = ", ".join(str(path.relative_to(folder).parent) for path in matrices if path not in filtered)
        notes.append(f"The filtered matrix in '{filtered[0].relative_to(folder).parent}' was taken; there is also '{others}'.")
        matrices = filtered
    return _open(folder, _triple(matrices[0]), notes)


def open_mtx_file(path: Path) -> Source:
    """Return the source of one Matrix Market file with the names beside it."""
    return _open(path, _triple(path), [])


def _matrices_below(folder: Path) -> list[Path]:
    found = []
    for depth in range(DEEPEST + 1):
        here = sorted(item for item in folder.glob("/".join(["*"] * (depth + 1))) if item.name.lower().endswith((".mtx", ".mtx.gz")))
        plain = [item for item in here if item.name.lower() in ("matrix.mtx", "matrix.mtx.gz")]
        by_folder = {item.parent for item in plain}
        found += plain + [item for item in here if item.parent not in by_folder]
    return found


def _nothing(folder: Path) -> DataError:
    files = sorted(item.name for item in folder.iterdir() if item.name.lower().endswith(OPENABLE))
    if files:
        return DataError(f"'{folder.name}' is a folder without a matrix of its own.", f"Open a file in it: {', '.join(files[:4])}.")
    if not any(folder.iterdir()):
        return DataError(f"'{folder.name}' is an empty folder.", "Choose a data file.")
    return DataError(
        f"'{folder.name}' is a folder without data that can be opened.", "A 10x folder has matrix.mtx, barcodes.tsv and features.tsv in it."
    )


def _triple(matrix: Path) -> Triple:
    lower = matrix.name.lower()
    prefix = matrix.name[: lower.index("matrix.mtx")] if "matrix.mtx" in lower else ""
    cells = _beside(matrix, prefix, CELL_FILES)
    features = _beside(matrix, prefix, FEATURE_FILES)
    missing = [what for what, path in (("barcodes.tsv", cells), ("features.tsv", features)) if path is None]
    if cells is None or features is None:
        raise DataError(
            f"Beside '{matrix.name}' there is no {' and no '.join(prefix + name for name in missing)}.",
            "Put the files that name the cells and the features into the same folder.",
        )
    return Triple(matrix, cells, features)


def _beside(matrix: Path, prefix: str, names: Sequence[str]) -> Path | None:
    for start in dict.fromkeys([prefix, ""]):
        for name in names:
            for ending in ("", ".gz"):
                path = matrix.parent / f"{start}{name}{ending}"
                if path.is_file():
                    return path
    return None


class StoredMtx(StoredMatrix):
    """A Matrix Market file; features are in its rows unless ``cells_in_rows``."""

    def __init__(self, path: Path, size: tuple[int, int], n_stored: int | None, field: str, *, cells_in_rows: bool) -> None:
        self._path, self._cells_in_rows = path, cells_in_rows
        shape = size if cells_in_rows else (size[1], size[0])
        super().__init__("X", shape, "csr" if n_stored is not None else "dense", "int64" if field == "integer" else "float64", n_stored)

    def read(self, watch: Watch, *, keep: bool = False) -> tuple[CountsReport, sparse.csr_matrix | None]:
        """Read the file as a whole."""
        from scipy import io, sparse

        with self._path.open("rb") as raw:
            zipped = self._path.name.endswith(".gz")
            # newer versions of scipy want to be told which kind of matrix, older ones do not know the question
            kind = {"spmatrix": False} if "spmatrix" in signature(io.mmread).parameters else {}
            matrix = sparse.csc_matrix(io.mmread(_Watched(raw, watch.part(0.0, 0.7), self._path, zipped=zipped), **kind))
        return stored("X", matrix if self._cells_in_rows else matrix.T).read(watch.part(0.7, 0.3), keep=keep)


class _Watched(RawIOBase):
    """A file that reports how far it was read, and stops a reader that knows of no cancel."""

    def __init__(self, raw: BinaryIO, watch: Watch, path: Path, *, zipped: bool) -> None:
        self._raw, self._watch, self._text = raw, watch, f"reading {path.name}"
        self._size, self._calls = max(1, path.stat().st_size), 0
        self._body: BinaryIO = gzip.open(raw, "rb") if zipped else raw  # type: ignore[assignment]  # noqa: SIM115

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        if self._calls % 512 == 0:  # the reader asks for a kilobyte at a time
            self._watch.at(self._raw.tell() / self._size, self._text)
        self._calls += 1
        return self._body.read(size)


def matrix_size(path: Path) -> tuple[tuple[int, int], int | None, str]:
    """Return rows and columns, number of stored values (None for a dense file) and the kind of values."""
    with _opened(path) as file:
        banner = file.readline().decode("latin-1").lower().split()
        line = file.readline()
        while line.startswith(b"%") or (line and not line.strip()):
            line = file.readline()
    numbers = [int(number) for number in line.split()]
    if len(banner) < 4 or banner[0] != "%%matrixmarket" or len(numbers) < 2 or banner[3] == "complex":
        raise DataError(f"'{path.name}' is not a Matrix Market file of numbers.", "Write it again, or open another file.")
    return (numbers[0], numbers[1]), numbers[2] if len(numbers) > 2 else None, banner[3]


def _opened(path: Path) -> gzip.GzipFile:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _lines(path: Path) -> list[list[str]]:
    with _opened(path) as file:
        text = file.read().decode("utf-8-sig", "replace")
    separator = "," if ".csv" in path.name else "\t"
    return [[part.strip().strip('"') for part in line.split(separator)] for line in text.splitlines() if line.strip()]


def _open(path: Path, triple: Triple, notes: list[str]) -> Source:
    size, n_stored, field = matrix_size(triple.matrix)
    cells = np.array([row[0] for row in _lines(triple.cells)], dtype=object)
    rows = _lines(triple.features)
    for names, header in ((cells, ("barcode", "barcodes", "cell", "x")), (rows, ("gene_id", "gene", "feature", "id", "x"))):
        first = names[0] if isinstance(names, np.ndarray) else names[0][0] if names else ""
        if len(names) in (size[0] + 1, size[1] + 1) and str(first).lower() in header:
            notes.append("A line of column titles was skipped in the file of names.")
            cells, rows = (cells[1:], rows) if names is cells else (cells, rows[1:])
    if size == (len(rows), len(cells)):
        matrix = StoredMtx(triple.matrix, size, n_stored, field, cells_in_rows=False)
    elif size == (len(cells), len(rows)):
        matrix = StoredMtx(triple.matrix, size, n_stored, field, cells_in_rows=True)
        notes.append("The matrix has cells in rows.")
    else:
        raise DataError(
            f"'{triple.matrix.name}' is {size[0]:,} x {size[1]:,}, but {counted(len(rows), 'feature')} and {counted(len(cells), 'cell')} are named beside it.",
            "The files do not belong together, or one of them was cut short.",
        )
    types, read_var = _features(rows, is_bed=".bed" in triple.features.name)
    return table_source(path, "10x_mtx", cells, matrix, types, read_var, notes)


def _features(rows: list[list[str]], *, is_bed: bool) -> tuple[np.ndarray | None, Reader]:
    import pandas as pd

    width = min(len(row) for row in rows) if rows else 0
    if is_bed and width >= 3:
        table = {"chrom": [row[0] for row in rows], "start": [int(row[1]) for row in rows], "end": [int(row[2]) for row in rows]}
        names = [f"{row[0]}:{row[1]}-{row[2]}" for row in rows]
        frame = pd.DataFrame({**table, "feature_types": "Peaks"}, index=pd.Index(names, dtype=object))
    elif width >= 2:
        names = [row[1] or row[0] for row in rows]
        columns: dict[str, list[str]] = {"gene_ids": [row[0] for row in rows]}
        if width >= 3:
            columns["feature_types"] = [row[2] for row in rows]
        frame = pd.DataFrame(columns, index=pd.Index(names, dtype=object))
    else:
        frame = pd.DataFrame(index=pd.Index([row[0] for row in rows], dtype=object))
    types = frame["feature_types"].to_numpy(dtype=object) if "feature_types" in frame else None
    return types, Reader(frame)


@dataclass(frozen=True)
class Reader:
    """Gives a table that is in memory already."""

    frame: pd.DataFrame

    def __call__(self) -> pd.DataFrame:
        """Return the table."""
        return self.frame
