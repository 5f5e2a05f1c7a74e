"""MIDAS folders: ``feat/feat_dims.toml`` beside one folder a batch with ``mat/MODALITY.mtx`` or ``.csv``.

Layout as in scmidas 0.3: rows of a matrix are the cells of the batch; ``mask/MODALITY.csv`` says which features the
batch has; ``cell_names.csv`` names the cells; ``label/BATCH.csv`` beside the batches labels them.
"""

from __future__ import annotations

import csv
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellweave.core.errors import DataError
from cellweave.core.study.readers.base import ModalitySource, Place, Source, StoredMatrix
from cellweave.core.study.readers.frames import describe_values
from cellweave.core.study.readers.mtx import StoredMtx, matrix_size
from cellweave.core.study.readers.text import StoredText, find_layout, row_names

if TYPE_CHECKING:
    import pandas as pd


def is_midas(path: Path) -> bool:
    """Return whether a folder is laid out as MIDAS reads it."""
    return (path / "feat" / "feat_dims.toml").is_file()


def batch_folders(path: Path) -> list[Path]:
    """Return the folders of the batches in natural order (batch 2 before batch 10).

    Raises
    ------
    DataError
        Where there is none.
    """
    found = [item for item in path.iterdir() if item.is_dir() and ((item / "mat").is_dir() or (item / "vec").is_dir())]
    if not found:
        raise DataError(f"The MIDAS folder '{path.name}' has no batches.", "Each batch is a folder with 'mat' in it.")
    return sorted(found, key=lambda item: [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", item.name)])


def expand(path: Path) -> list[Path]:
    """Return the batches of a MIDAS folder, or the path itself where it is none."""
    return batch_folders(path) if path.is_dir() and is_midas(path) else [path]


def open_batch(path: Path) -> Source:
    """Return the source of one batch."""
    files = sorted(item for item in (path / "mat").iterdir() if item.name.lower().endswith((".mtx", ".mtx.gz", ".csv", ".csv.gz")))
    if not files:
        raise DataError(f"The batch '{path.name}' has no matrix in 'mat'.", "It holds MODALITY.mtx or MODALITY.csv.")
    dims = _dimensions(path.parent)
    modalities, named = [], {}
    for file in files:
        name = file.name.split(".")[0]
        modality, own = _modality(path, file, name, dims.get(name))
        modalities.append(modality)
        if own is not None:
            named[name] = own
    sizes = {modality.n_cells for modality in modalities}
    cells = _cell_names(path)
    if cells is None and named:
        cells = next(iter(named.values()))
    if len(sizes) > 1 or (cells is not None and len(cells) not in sizes):
        raise DataError(f"The matrices of the batch '{path.name}' have different numbers of cells.", "All modalities of a batch have the same cells.")
    names = cells if cells is not None else np.array([f"{path.name}_{row + 1}" for row in range(sizes.pop())], dtype=object)
    for modality in modalities:
        if modality.name in named and set(named[modality.name]) == set(names):
            modality.read_names = _giving(named[modality.name])
    columns: dict[str, np.ndarray] = {"batch": np.full(len(names), path.name, dtype=object)}
    labels = _labels(path, len(names))
    if labels is not None:
        columns["label"] = labels

    def read_obs() -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(columns, index=pd.Index([str(name) for name in names], dtype=object))

    headers = tuple(describe_values(name, values) for name, values in columns.items())
    return Source(path, "midas", len(names), modalities, read_obs, column_headers=lambda: headers)


def _giving(names: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: names


def _dimensions(folder: Path) -> dict[str, list[int]]:
    path = folder / "feat" / "feat_dims.toml"
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        return {name: [int(size) for size in np.atleast_1d(sizes)] for name, sizes in tomllib.load(file).items()}


def _modality(batch: Path, file: Path, name: str, dims: list[int] | None) -> tuple[ModalitySource, np.ndarray | None]:
    """Return the modality of a matrix, with the names of its cells where the file has them."""
    cells = None
    if ".csv" in file.name.lower():
        layout = find_layout(file)
        rows = row_names(file, layout)
        cells = np.array(rows, dtype=object) if layout.n_names else None
        matrix: StoredMatrix = StoredText(file, layout, len(rows), rows_are_features=False)
        features = np.array(layout.columns, dtype=object)
    else:
        size, n_stored, kind = matrix_size(file)
        matrix = StoredMtx(file, size, n_stored, kind, cells_in_rows=True)
        features = _feature_names(batch.parent, name, size[1])
    if dims is not None and sum(dims) != matrix.shape[1]:
        raise DataError(
            f"'{file.name}' of the batch '{batch.name}' has {matrix.shape[1]:,} features, but feat_dims.toml says {sum(dims):,}.",
            "Correct the one that is wrong.",
        )

    def read_var() -> pd.DataFrame:
        import pandas as pd

        table = pd.DataFrame(index=pd.Index(features, dtype=object))
        if dims is not None and len(dims) > 1:
            table["chrom"] = np.repeat([f"block_{block + 1}" for block in range(len(dims))], dims)
        return table

    source = ModalitySource(name, matrix.shape[0], {"X": Place(matrix, read_var)})
    source.features_measured = _mask(batch, name, matrix.shape[1])
    return source, cells


def _column(path: Path) -> list[str]:
    """Return the last column of a table below its title."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [row[-1] for row in list(csv.reader(file))[1:] if row]


def _feature_names(folder: Path, name: str, n_features: int) -> np.ndarray:
    path = folder / "feat" / f"feat_names_{name}.csv"
    names = _column(path) if path.is_file() else []
    if len(names) == n_features:
        return np.array(names, dtype=object)
    return np.array([f"{name}_{number + 1}" for number in range(n_features)], dtype=object)


def _cell_names(batch: Path) -> np.ndarray | None:
    path = batch / "cell_names.csv"
    return np.array(_column(path), dtype=object) if path.is_file() else None


def _labels(batch: Path, n_cells: int) -> np.ndarray | None:
    for folder in (batch.parent / "label", batch.parent.parent / "label"):
        path = folder / f"{batch.name}.csv"
        if path.is_file():
            labels = _column(path)
            return np.array(labels, dtype=object) if len(labels) == n_cells else None
    return None


def _mask(batch: Path, name: str, n_features: int) -> np.ndarray | None:
    path = batch / "mask" / f"{name}.csv"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    mask = np.array([float(value) > 0 for value in rows[1][1:]]) if len(rows) > 1 else np.empty(0)
    if len(mask) != n_features:
        raise DataError(
            f"'mask/{name}.csv' of the batch '{batch.name}' says of {len(mask):,} features which were measured, the matrix has {n_features:,}.",
            "Correct the one that is wrong.",
        )
    return mask
