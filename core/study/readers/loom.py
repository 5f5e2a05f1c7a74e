"""Loom: one matrix of features by cells, layers of the same shape, attributes of rows and columns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellweave.core.errors import DataError
from cellweave.core.study.readers.base import ModalitySource, Place, Source, StoredDense
from cellweave.core.study.readers.frames import describe_values
from cellweave.core.study.readers.store import child, is_group, read_values

if TYPE_CHECKING:
    import pandas as pd

CELL_KEYS = ("cellid", "cell_id", "obs_names", "cell_names", "cellname", "cell", "barcode", "barcodes", "index")
FEATURE_KEYS = ("gene", "var_names", "genename", "gene_name", "gene_names", "symbol", "accession", "gene_id", "rownames", "name")


def is_loom(file: Any) -> bool:
    """Return whether a file is laid out as loom."""
    return "matrix" in file and not is_group(file["matrix"]) and "row_attrs" in file and "col_attrs" in file


def open_loom(file: Any, path: Path) -> Source:
    """Return the source of a loom file."""
    notes: list[str] = []
    shape = file["matrix"].shape
    if len(shape) != 2:
        raise DataError(f"The matrix of '{path.name}' does not have rows and columns.", "Write the file again.")
    n_features, n_cells = (int(size) for size in shape)
    cells, features = child(file, "col_attrs"), child(file, "row_attrs")
    columns, wide = _flat(cells, n_cells, notes)
    rows, _ = _flat(features, n_features, [])

    def read_var() -> pd.DataFrame:
        return _frame(features, rows, n_features, FEATURE_KEYS, "feature")

    place = StoredDense("X", file["matrix"], transposed=True)
    places = {"X": Place(place, read_var)}
    layers = child(file, "layers")
    for name in layers.keys() if layers is not None else ():
        if layers[name].shape == shape:
            places[f"layers/{name}"] = Place(StoredDense(f"layers/{name}", layers[name], transposed=True), read_var)
    return Source(
        path, "loom", n_cells, [ModalitySource("rna", n_cells, places)],
        read_obs=lambda: _frame(cells, columns, n_cells, CELL_KEYS, "cell"),
        column_headers=lambda: tuple(
            describe_values(name, _column(cells[name])) for name in columns if name != _names_key(columns, CELL_KEYS)
        ),
        obsm=tuple(wide), notes=notes,
    )  # fmt: skip


def _flat(group: Any, n: int, notes: list[str]) -> tuple[list[str], list[str]]:
    """Return the attributes with one value a row, and those with several."""
    flat, wide = [], []
    for name in group.keys():  # noqa: SIM118
        node = group[name]
        if is_group(node) or not node.shape or node.shape[0] != n:
            notes.append(f"The attribute '{name}' was left out: it does not hold one value a cell.")
        elif len(node.shape) == 1 or (len(node.shape) == 2 and node.shape[1] == 1):
            flat.append(name)
        else:
            wide.append(name)
    return flat, wide


def _column(node: Any) -> np.ndarray:
    return read_values(node).reshape(-1)


def _names_key(names: list[str], wanted: tuple[str, ...]) -> str:
    lower = {name.lower(): name for name in names}
    return next((lower[key] for key in wanted if key in lower), "")


def _frame(group: Any, names: list[str], n: int, keys: tuple[str, ...], what: str) -> pd.DataFrame:
    import pandas as pd

    key = _names_key(names, keys)
    index = [str(value) for value in _column(group[key])] if key else [f"{what}_{row + 1}" for row in range(n)]
    return pd.DataFrame({name: _column(group[name]) for name in names if name != key}, index=pd.Index(index, dtype=object))
