"""The disk cache: three flat arrays that are memory-mapped, so that training needs no more memory than its minibatches.

The page cache serves what is used often; a random minibatch costs a few page reads. Any CSR matrix, or one that comes in
blocks of rows, is written once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from scipy import sparse

from cellweave.core.errors import TrainingError
from cellweave.core.files import write_json_atomic

ROWS = 8192
INDPTR, INDICES, VALUES, SHAPE = "indptr.bin", "indices.bin", "values.bin", "shape.json"


def cached_counts(counts: sparse.csr_matrix, folder: Path, progress: Callable[[float], None]) -> sparse.csr_matrix:
    """Write a CSR matrix into ``folder`` and return it memory-mapped; an existing cache of the same shape is used again.

    Parameters
    ----------
    counts
        ``(n_cells, n_features)``.
    folder
        Where the flat arrays lie.
    progress
        Called with the share done.

    Returns
    -------
    scipy.sparse.csr_matrix
        The same counts; its arrays are read-only memory maps.
    """
    if not _matches(folder, counts.shape, counts.nnz):
        write_cache(row_blocks(counts), counts.shape, folder, progress)
    return open_cache(folder)


def row_blocks(counts: sparse.csr_matrix, rows: int = ROWS) -> Iterator[sparse.csr_matrix]:
    """Iterate over blocks of rows."""
    for start in range(0, counts.shape[0], rows):
        yield counts[start : start + rows]


def write_cache(blocks: Iterable[sparse.csr_matrix], shape: tuple[int, int], folder: Path, progress: Callable[[float], None]) -> None:
    """Write blocks of rows as flat arrays; the folder is complete once ``shape.json`` is there.

    Raises
    ------
    TrainingError
        Where the disk is full; the half-written cache is removed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        _write(blocks, shape, folder, progress)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise TrainingError(
            f"The disk cache could not be written: {error.strerror or error}.", "Free some space, or set training.source = 'memory'."
        ) from None


def _write(blocks: Iterable[sparse.csr_matrix], shape: tuple[int, int], folder: Path, progress: Callable[[float], None]) -> None:
    value_type: np.dtype | None = None
    stored = done = 0
    starts = [np.zeros(1, dtype=np.int64)]
    with (folder / INDICES).open("wb") as indices, (folder / VALUES).open("wb") as values:
        for block in blocks:
            value_type = value_type or _value_type(block)
            data = block.data.astype(value_type)
            if not np.array_equal(data, block.data):
                # A later block has larger counts or fractions: all values before it fit the wider type too.
                wider = _value_type(block, at_least=value_type)
                _rewrite(folder / VALUES, values, value_type, wider)
                value_type, data = wider, block.data.astype(wider)
            indices.write(np.ascontiguousarray(block.indices, dtype=np.int32).data)
            values.write(np.ascontiguousarray(data).data)
            starts.append(block.indptr[1:].astype(np.int64) + stored)
            stored += int(block.indptr[-1])
            done += block.shape[0]
            progress(done / max(1, shape[0]))
    # scipy wants one integer type for both index arrays, and copies one that differs.
    index_type = np.int32 if stored < np.iinfo(np.int32).max else np.int64
    np.concatenate(starts).astype(index_type).tofile(folder / INDPTR)
    if index_type is np.int64:
        _widen(folder / INDICES, np.int32, np.int64)
    write_json_atomic(
        folder / SHAPE, {"shape": list(shape), "stored": stored, "values": (value_type or np.dtype(np.uint16)).str, "index": np.dtype(index_type).str}
    )


def _value_type(block: sparse.csr_matrix, at_least: np.dtype | None = None) -> np.dtype:
    data = block.data
    if data.size and (data.min() < 0 or not np.array_equal(data, np.rint(data))):
        return np.dtype(np.float32)
    top = int(data.max()) if data.size else 0
    for kind in (np.uint16, np.int32):
        if top <= np.iinfo(kind).max and (at_least is None or np.dtype(kind).itemsize >= at_least.itemsize):
            return np.dtype(kind)
    return np.dtype(np.float32)


def _rewrite(path: Path, handle: object, old: np.dtype, new: np.dtype) -> None:
    handle.flush()  # type: ignore[attr-defined]
    _widen(path, old, new)
    handle.seek(0, 2)  # type: ignore[attr-defined]


def _widen(path: Path, old: np.dtype | type, new: np.dtype | type, block: int = 1 << 22) -> None:
    """Rewrite a flat array in a wider type, in place from the end, so that no second file is needed."""
    n = path.stat().st_size // np.dtype(old).itemsize
    old_size, new_size = np.dtype(old).itemsize, np.dtype(new).itemsize
    with path.open("rb+") as file:
        file.truncate(n * new_size)
        for start in range((n - 1) // block * block if n else 0, -1, -block):
            count = min(block, n - start)
            file.seek(start * old_size)
            part = np.frombuffer(file.read(count * old_size), dtype=old).astype(new)
            file.seek(start * new_size)
            file.write(part.tobytes())


def _matches(folder: Path, shape: tuple[int, int], stored: int) -> bool:
    try:
        tree = json.loads((folder / SHAPE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return tree["shape"] == list(shape) and tree["stored"] == stored


def open_cache(folder: Path) -> sparse.csr_matrix:
    """Open a cache; nothing is read until rows are asked for."""
    tree = json.loads((folder / SHAPE).read_text(encoding="utf-8"))
    shape = (int(tree["shape"][0]), int(tree["shape"][1]))
    index = np.dtype(tree["index"])
    indptr = np.fromfile(folder / INDPTR, dtype=index)
    if tree["stored"] == 0:
        return sparse.csr_matrix(shape, dtype=np.float32)
    indices = np.memmap(folder / INDICES, dtype=index, mode="r", shape=(tree["stored"],))
    values = np.memmap(folder / VALUES, dtype=np.dtype(tree["values"]), mode="r", shape=(tree["stored"],))
    matrix = sparse.csr_matrix(shape, dtype=values.dtype)
    # Set directly: the constructor would look at every index, which would read the whole file.
    matrix.indptr, matrix.indices, matrix.data = indptr, indices, values
    matrix.has_sorted_indices = True
    matrix.has_canonical_format = True
    return matrix


def is_mapped(counts: sparse.csr_matrix) -> bool:
    """Return whether the values of a matrix lie in a memory-mapped file."""
    array = counts.data
    while array is not None:
        if isinstance(array, np.memmap):
            return True
        array = getattr(array, "base", None)
    return False
