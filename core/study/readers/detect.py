"""What is this file? By content first, by name second; then the reader that opens it."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cellweave.core.errors import DataError
from cellweave.core.study.readers.base import Source, explained, plain

HDF5 = b"\x89HDF\r\n\x1a\n"
READABLE = "h5ad, h5mu, zarr, 10x h5, 10x mtx folders, loom, CSV/TSV and MIDAS folders can be opened"
FOREIGN = {
    b"PK\x03\x04": ("a zip archive or an Excel workbook", "Unpack it, or save the table as CSV."),
    b"PAR1": ("a Parquet table", "Save it as CSV or as h5ad."),
    b"RDX2": ("an R data file", "Write it as h5ad or as a 10x mtx folder from R."),
    b"RDX3": ("an R data file", "Write it as h5ad or as a 10x mtx folder from R."),
    b"X\n\x00\x00": ("an R data file", "Write it as h5ad or as a 10x mtx folder from R."),
    b"\x80\x04": ("a Python pickle, which is never opened because it can run code", "Write it as h5ad."),
    b"\x80\x05": ("a Python pickle, which is never opened because it can run code", "Write it as h5ad."),
    b"\x93NUMPY": ("a bare NumPy array without names", "Write it as h5ad with the names of cells and features."),
    b"%PDF": ("a PDF document", f"Choose a data file: {READABLE}."),
    b"BZh": ("a bzip2 archive", "Unpack it first."),
    b"\xfd7zXZ": ("an xz archive", "Unpack it first."),
    b"(\xb5/\xfd": ("a zstandard archive", "Unpack it first."),
    b"ustar": ("a tar archive", "Unpack it first."),
}
HDF5_STARTS = (0, 512, 1024, 2048, 4096)


def absolute(path: str | Path) -> Path:
    """Return the absolute path, with the home directory filled in."""
    return Path(path).expanduser().absolute()


def open_source(path: Path) -> Source:
    """Open a file or folder.

    Parameters
    ----------
    path
        Absolute path.

    Returns
    -------
    Source
        To be used as a context manager, which closes the file.

    Raises
    ------
    DataError
        Where it is missing, damaged, or nothing that can be opened.
    """
    if not str(path.name) and not path.exists():
        raise DataError("No file was named.", "Choose a data file.")
    with explained(path):
        if not path.exists():
            raise DataError(f"'{path}' does not exist.", "Check the path, or choose the file again.")
        if path.is_dir():
            return _open_folder(path)
        if not path.is_file():
            raise DataError(f"'{path}' is not a file.", f"Choose a data file: {READABLE}.")
        return _open_file(path)


def _open_file(path: Path) -> Source:
    start = _first_bytes(path)
    if not start:
        raise DataError(f"'{path.name}' is empty.", "Download or write it again.")
    if any(start[offset : offset + 8] == HDF5 for offset in HDF5_STARTS):
        return _open_hdf5(path)
    if path.suffix.lower() in (".h5ad", ".h5mu", ".h5", ".hdf5", ".loom"):
        raise DataError(
            f"'{path.name}' is not an HDF5 file, although its name says so.", "It is damaged or not data: download or write it again."
        )
    body = _unzipped_start(path) if start[:2] == b"\x1f\x8b" else start
    for magic, (what, mend) in FOREIGN.items():
        if body.startswith(magic) or (magic == b"ustar" and body[257:262] == b"ustar"):
            raise DataError(f"'{path.name}' is {what}.", mend)
    if body.startswith(b"%%MatrixMarket") or path.name.lower().endswith((".mtx", ".mtx.gz")):
        from cellweave.core.study.readers.mtx import open_mtx_file

        return open_mtx_file(path)
    if path.name in ("zarr.json", ".zgroup", ".zattrs", ".zmetadata"):
        return _open_folder(path.parent)
    if b"\x00" in body:
        raise DataError(f"'{path.name}' is of a kind that is not known.", f"Choose a data file: {READABLE}.")
    from cellweave.core.study.readers.text import open_text

    return open_text(path)


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HDF5_STARTS[-1] + 8)


def _unzipped_start(path: Path) -> bytes:
    try:
        with gzip.open(path, "rb") as file:
            return file.read(4096)
    except (OSError, EOFError):
        raise DataError(f"'{path.name}' is a damaged gzip file.", "Download or write it again.") from None


def _open_hdf5(path: Path) -> Source:
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        said = str(error)
        if "truncated" in said:
            raise DataError(
                f"'{path.name}' was cut short: a part of the file is missing.", "Download or copy it again, completely."
            ) from None
        if "lock" in said:
            raise DataError(
                f"'{path.name}' is locked by another program that writes to it.", "Close that program and open the file again."
            ) from None
        raise DataError(f"'{path.name}' is a damaged HDF5 file ({plain(error)}).", "Download or write it again.") from None
    return _closing_with(file, lambda: _hdf5_layout(file, path), file.close)


def _closing_with(root: Any, build: Callable[[], Source], close: Callable[[], None]) -> Source:
    """Build a source that closes the file with itself, or close at once where building fails."""
    with ExitStack() as stack:
        stack.callback(close)
        source = build()
        source.closing.push(stack.pop_all())
    return source


def _hdf5_layout(file: Any, path: Path) -> Source:
    """Choose the reader by what the file holds."""
    from cellweave.core.study.readers import anndata_store, loom, plain_h5, tenx

    suffix = path.suffix.lower()
    if anndata_store.is_mudata(file):
        source = anndata_store.open_mudata(file, path, "h5mu")
        if suffix == ".h5ad":
            source.notes.append("The file is a MuData although its name ends in .h5ad; it was opened as MuData.")
        return source
    if anndata_store.is_anndata(file):
        return anndata_store.open_anndata(file, path, "h5ad")
    if tenx.is_tenx(file):
        return tenx.open_tenx(file, path)
    if loom.is_loom(file):
        return loom.open_loom(file, path)
    return plain_h5.open_plain(file, path)


def _open_folder(path: Path) -> Source:
    names = {item.name for item in path.iterdir()}
    if names & {"zarr.json", ".zgroup", ".zmetadata"}:
        return _open_zarr(path)
    if any((path / name).is_dir() and not (path / name).is_symlink() for name in ("mat", "vec")):
        from cellweave.core.study.readers.midas import open_batch

        return open_batch(path)
    if {"spec.toml", "status.json"} <= names:
        raise DataError(f"'{path.name}' is the folder of a run, not data.", "Continue it with 'cellweave resume', or open it as a run.")
    from cellweave.core.study.readers.mtx import open_mtx_folder

    return open_mtx_folder(path)


def _open_zarr(path: Path) -> Source:
    import warnings

    import zarr

    from cellweave.core.study.readers import anndata_store

    if (path / "zarr.json").is_file() and int(zarr.__version__.split(".")[0]) < 3:
        raise DataError(f"'{path.name}' is a zarr store of version 3, but the zarr installed here is older.", "Install zarr 3 or later.")
    with warnings.catch_warnings():  # zarr warns about string types that it reads well
        warnings.simplefilter("ignore")
        root = zarr.open(str(path), mode="r")
        if anndata_store.is_mudata(root):
            return anndata_store.open_mudata(root, path, "zarr")
        if not hasattr(root, "keys") or not anndata_store.is_anndata(root):
            raise DataError(f"'{path.name}' is a zarr store, but holds neither AnnData nor MuData.", "Write it with anndata or mudata.")
        return anndata_store.open_anndata(root, path, "zarr")
