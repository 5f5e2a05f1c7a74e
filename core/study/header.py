"""What a file holds, read in a moment: shapes, columns, layers and types, without the data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cellweave.core.wording import counted

ColumnKind = Literal["categorical", "string", "integer", "float", "boolean", "other"]


@dataclass(frozen=True)
class ColumnHeader:
    """One column of obs.

    Attributes
    ----------
    name
        Its name.
    kind
        What its values are.
    n_levels
        Number of different values, None where that would have taken reading too much.
    n_missing
        Number of missing values, None where not known.
    whole
        Whether a column of numbers holds whole ones only, whatever their type.
    """

    name: str
    kind: ColumnKind
    n_levels: int | None = None
    n_missing: int | None = None
    whole: bool = False


@dataclass(frozen=True)
class MatrixHeader:
    """One matrix of a modality.

    Attributes
    ----------
    location
        ``X``, ``raw/X`` or ``layers/NAME``.
    shape
        ``(n_cells, n_features)``.
    storage
        ``csr``, ``csc`` or ``dense``.
    dtype
        Type of its values.
    n_stored
        Number of stored values; None for dense matrices and text. A modality that shares its matrix with others
        has its share of them by number of features.
    """

    location: str
    shape: tuple[int, int]
    storage: str
    dtype: str
    n_stored: int | None


@dataclass(frozen=True)
class ModalityHeader:
    """One modality.

    Attributes
    ----------
    name
        ``rna``, ``adt``, ``atac`` or another.
    n_cells, n_features
        Size of its first matrix.
    matrices
        In the order in which counts will be looked for.
    """

    name: str
    n_cells: int
    n_features: int
    matrices: tuple[MatrixHeader, ...]


@dataclass(frozen=True)
class FileHeader:
    """What one file holds.

    Attributes
    ----------
    path, format
        Where it is and what it is.
    n_cells
        Cells over all modalities.
    modalities
        What was measured.
    obs_columns
        Columns of the annotation of cells.
    obsm
        Names of embeddings and other arrays by cell.
    notes
        Sentences on what was found.
    file_bytes
        Size on disk.
    estimated_bytes
        Memory that the counts of all modalities take once they are read.
    """

    path: Path
    format: str
    n_cells: int
    modalities: tuple[ModalityHeader, ...]
    obs_columns: tuple[ColumnHeader, ...]
    obsm: tuple[str, ...]
    notes: tuple[str, ...]
    file_bytes: int
    estimated_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "path": str(self.path)}


def read_header(path: str | Path) -> FileHeader:
    """Read what a file holds without reading its data.

    Parameters
    ----------
    path
        A file or folder of any format that can be opened.

    Returns
    -------
    FileHeader
        Shapes, columns, places of matrices, size.

    Raises
    ------
    DataError
        One sentence on why the file cannot be read, and what to do.
    """
    from cellweave.core.study.readers.base import explained
    from cellweave.core.study.readers.detect import absolute
    from cellweave.core.study.readers.midas import expand

    place = absolute(path)
    with explained(place):
        parts = expand(place)
        headers = [_header_of(part) for part in parts]
    return headers[0] if parts == [place] else _joined(place, headers)


def _header_of(place: Path) -> FileHeader:
    from cellweave.core.study.counts import order_of_places
    from cellweave.core.study.readers.base import explained
    from cellweave.core.study.readers.detect import open_source

    with explained(place), open_source(place) as source:
        modalities, memory = [], 0
        for modality in source.modalities:
            matrices = []
            for location in order_of_places(list(modality.places)):
                held = modality.places[location]
                matrix, share = held.matrix, held.n_features / max(1, held.matrix.shape[1])
                n_stored = None if matrix.n_stored is None else round(matrix.n_stored * share)
                shape = (matrix.shape[0], held.n_features)
                matrices.append(MatrixHeader(location, shape, matrix.storage, matrix.dtype, n_stored))
                if len(matrices) == 1:
                    memory += round(matrix.estimated_bytes() * share)
            width = matrices[0].shape[1] if matrices else 0
            modalities.append(ModalityHeader(modality.name, modality.n_cells, width, tuple(matrices)))
        columns = source.column_headers()
        return FileHeader(
            place, source.format, source.n_cells, tuple(modalities), columns, source.obsm, tuple(source.notes),
            _size(place), memory,
        )  # fmt: skip


def _joined(place: Path, headers: list[FileHeader]) -> FileHeader:
    """Return the header of a folder whose parts are the batches of one study."""
    modalities = []
    for name in dict.fromkeys(modality.name for header in headers for modality in header.modalities):
        parts = [modality for header in headers for modality in header.modalities if modality.name == name]
        matrices = tuple(
            MatrixHeader(
                first.location, (sum(part.n_cells for part in parts), first.shape[1]), first.storage, first.dtype,
                None if first.n_stored is None else sum(part.matrices[0].n_stored or 0 for part in parts),
            )
            for first in parts[0].matrices
        )  # fmt: skip
        modalities.append(ModalityHeader(name, sum(part.n_cells for part in parts), parts[0].n_features, matrices))
    columns = {}
    for name in dict.fromkeys(column.name for header in headers for column in header.obs_columns):
        there = [column for header in headers for column in header.obs_columns if column.name == name]
        n_levels = len(headers) if name == "batch" else None
        columns[name] = ColumnHeader(name, there[0].kind, n_levels, sum(column.n_missing or 0 for column in there))
    notes = (f"{counted(len(headers), 'batch', 'batches')}: {', '.join(header.path.name for header in headers)}.",)
    return FileHeader(
        place, "midas", sum(header.n_cells for header in headers), tuple(modalities), tuple(columns.values()), (), notes,
        _size(place), sum(header.estimated_bytes for header in headers),
    )  # fmt: skip


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(part.stat().st_size for part in path.rglob("*") if part.is_file())
    return path.stat().st_size
