"""10x Genomics HDF5: version 3 (one matrix, feature types) and version 2 (a group for each genome)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellweave.core.errors import DataError
from cellweave.core.study.readers.anndata_store import SharedMatrix, modality_groups
from cellweave.core.study.readers.base import ModalitySource, Place, Source, StoredMatrix, StoredSparse, Watch, stored
from cellweave.core.study.readers.store import is_group, read_values
from cellweave.core.wording import counted

if TYPE_CHECKING:
    import pandas as pd

PARTS = {"barcodes", "data", "indices", "indptr", "shape"}


def is_tenx(file: Any) -> bool:
    """Return whether a file is laid out as 10x Genomics writes it."""
    return bool(_groups(file))


def _groups(file: Any) -> list[str]:
    return [name for name in file.keys() if is_group(file[name]) and set(file[name].keys()) >= PARTS]  # noqa: SIM118


def open_tenx(file: Any, path: Path) -> Source:
    """Return the source; several genomes become one matrix, matched by barcode."""
    groups = _groups(file)
    notes: list[str] = []
    barcodes = [read_values(file[name]["barcodes"]) for name in groups]
    if len(groups) == 1:
        matrix: StoredMatrix = _matrix(file[groups[0]])
        cells = barcodes[0]
    else:
        cells = np.array(list(dict.fromkeys(name for names in barcodes for name in names)), dtype=object)
        matrix = _joined(file, groups, barcodes, cells)
        notes.append(f"The file holds {len(groups)} genomes ({', '.join(groups)}); their features are in one matrix.")
    tables = [_features(file[name], name, several=len(groups) > 1) for name in groups]

    def read_var() -> pd.DataFrame:
        import pandas as pd

        return pd.concat(tables) if len(tables) > 1 else tables[0]

    types = np.concatenate([table["feature_types"].to_numpy(dtype=object) for table in tables])
    return table_source(path, "10x_h5", cells, matrix, types, read_var, notes)


def table_source(
    path: Path, format_name: str, cells: np.ndarray, matrix: StoredMatrix, types: np.ndarray | None,
    read_var: Callable[[], pd.DataFrame], notes: list[str], obs: pd.DataFrame | None = None,
) -> Source:  # fmt: skip
    """Return the source of one matrix of named cells and typed features, with little or no annotation.

    Parameters
    ----------
    path, format_name
        Where it is and what it is.
    cells
        Names of the cells.
    matrix
        The matrix, ``(n_cells, n_features)``.
    types
        Type of each feature, or None.
    read_var
        Gives one row a feature.
    notes
        Sentences on what was found.
    obs
        Annotation, without row names; None for none.
    """
    from cellweave.core.study.readers.frames import describe_values

    if matrix.shape[0] != len(cells):
        raise DataError(
            f"'{path.name}' names {counted(len(cells), 'cell')}, but its matrix has {matrix.shape[0]:,}.", "Download or write it again."
        )

    def read_obs() -> pd.DataFrame:
        import pandas as pd

        table = pd.DataFrame(index=range(len(cells))) if obs is None else obs.copy()
        table.index = pd.Index([str(name) for name in cells], dtype=object)
        return table

    groups = modality_groups(types, lambda: read_var().index.to_numpy(dtype=object), notes)
    held = SharedMatrix(matrix, len(groups)) if len(groups) > 1 else matrix
    modalities = [
        ModalitySource(name, matrix.shape[0], {matrix.location: Place(held, read_var, columns)})
        for name, columns in groups.items()
    ]
    return Source(
        path, format_name, matrix.shape[0], modalities, read_obs,
        column_headers=lambda: () if obs is None else tuple(describe_values(str(name), obs[name]) for name in obs.columns),
        notes=notes,
    )  # fmt: skip


def _matrix(group: Any) -> StoredSparse:
    n_features, n_cells = (int(size) for size in group["shape"][...])
    # 10x stores features x cells by column, which is cells x features by row
    return StoredSparse("X", (n_cells, n_features), group["data"], group["indices"], group["indptr"], by_column=False)


def _joined(file: Any, groups: list[str], barcodes: list[np.ndarray], cells: np.ndarray) -> StoredMatrix:
    from scipy import sparse

    row_of = {name: row for row, name in enumerate(cells)}
    parts = []
    for name, names in zip(groups, barcodes, strict=True):
        _, matrix = _matrix(file[name]).read(Watch(), keep=True)
        assert matrix is not None
        coo = matrix.tocoo()
        rows = np.array([row_of[cell] for cell in names], dtype=np.int64)[coo.row]
        parts.append(sparse.csr_matrix((coo.data, (rows, coo.col)), shape=(len(cells), matrix.shape[1])))
    return stored("X", sparse.hstack(parts, format="csr"))


def _features(group: Any, genome: str, *, several: bool) -> pd.DataFrame:
    import pandas as pd

    if "features" in group:
        features = group["features"]
        table = {"gene_ids": read_values(features["id"]), "feature_types": read_values(features["feature_type"])}
        names = read_values(features["name"])
        if "genome" in features:
            table["genome"] = read_values(features["genome"])
    else:
        ids = read_values(group["genes"])
        names = read_values(group["gene_names"]) if "gene_names" in group else ids
        kinds = np.full(len(ids), "Gene Expression", dtype=object)
        table = {"gene_ids": ids, "feature_types": kinds, "genome": np.full(len(ids), genome, dtype=object)}
    if several:
        names = np.array([f"{genome}_{name}" for name in names], dtype=object)
    return pd.DataFrame(table, index=pd.Index(names, dtype=object))
