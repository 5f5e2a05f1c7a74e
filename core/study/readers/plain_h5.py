"""HDF5 files that hold bare arrays, as Keras-style programs write them: ``X`` and what has as many rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellweave.core.errors import DataError
from cellweave.core.study.readers.anndata_store import KNOWN_TYPES
from cellweave.core.study.readers.base import ModalitySource, Place, Source, StoredDense
from cellweave.core.study.readers.frames import describe_values
from cellweave.core.study.readers.store import is_group, is_text, read_values

if TYPE_CHECKING:
    import pandas as pd

MAIN = ("X", "x", "counts", "data", "matrix")


def open_plain(file: Any, path: Path) -> Source:
    """Return the source of a file with an array ``X`` of cells by features and no names.

    Raises
    ------
    DataError
        Where the file holds no such array.
    """
    arrays = {name: file[name] for name in file.keys() if not is_group(file[name])}  # noqa: SIM118
    matrices = {name: node for name, node in arrays.items() if len(node.shape) == 2 and not is_text(node) and min(node.shape) > 0}
    main = next((name for name in MAIN if name in matrices), "")
    if not main:
        if "assays" in file and "cell.names" in file:
            raise DataError(f"'{path.name}' is an h5Seurat file.", "Write it as h5ad from R, for instance with SeuratDisk.")
        there = ", ".join(list(file.keys())[:6]) or "nothing"
        raise DataError(
            f"'{path.name}' is an HDF5 file, but neither AnnData, MuData, 10x nor loom (it holds {there}).",
            "Write it as h5ad, or put the counts in an array named X with one row a cell.",
        )
    n_cells = int(matrices[main].shape[0])
    notes = [f"The file names neither cells nor features; they are numbered. The counts are taken from '{main}'."]
    modalities = [_modality("rna", matrices[main], "X")]
    for name, node in matrices.items():
        if name != main and node.shape[0] == n_cells:
            kind = re.sub(r"(^x_|_x$)", "", name.lower())
            kind = KNOWN_TYPES.get(kind, kind)
            if kind not in {modality.name for modality in modalities}:
                notes.append(f"The array '{name}' is taken for the modality '{kind}'.")
                modalities.append(_modality(kind, node, "X"))
    columns = {name: node for name, node in arrays.items() if node.shape == (n_cells,)}

    def read_obs() -> pd.DataFrame:
        import pandas as pd

        index = pd.Index([f"cell_{row + 1}" for row in range(n_cells)], dtype=object)
        return pd.DataFrame({name: read_values(node) for name, node in columns.items()}, index=index)

    return Source(
        path, "h5", n_cells, modalities, read_obs,
        column_headers=lambda: tuple(describe_values(name, read_values(node)) for name, node in columns.items()),
        notes=notes,
    )  # fmt: skip


def _modality(name: str, node: Any, location: str) -> ModalitySource:
    width = int(node.shape[1])

    def read_var() -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(index=pd.Index([f"{name}_{column + 1}" for column in np.arange(width)], dtype=object))

    return ModalitySource(name, int(node.shape[0]), {location: Place(StoredDense(location, node), read_var)})
