"""MIDAS folders: ``feat/feat_dims.toml`` beside one folder a batch with ``mat/MODALITY.mtx`` or ``.csv``.

Layout as in scmidas 0.3: rows of a matrix are the cells of the batch; ``vec/MODALITY/0000.csv`` and so on hold one cell each where there is
no matrix; ``mask/MODALITY.csv`` says which features the batch has; ``cell_names.csv`` names the cells; ``label/BATCH.csv`` beside the
batches labels them. Where tables name their cells they are paired by the names; an index that only numbers them is none.
"""

from __future__ import annotations

import csv
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from cellweave.core.errors import DataError
from cellweave.core.study.align import numbered
from cellweave.core.study.counts import CountsReport, scan_matrix
from cellweave.core.study.readers.base import ModalitySource, Place, Source, StoredMatrix, Watch, tidy
from cellweave.core.study.readers.frames import describe_values
from cellweave.core.study.readers.mtx import StoredMtx, matrix_size
from cellweave.core.study.readers.text import StoredText, find_layout, row_names
from cellweave.core.wording import counted

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
    return sorted(found, key=_natural)


def expand(path: Path) -> list[Path]:
    """Return the batches of a MIDAS folder, or the path itself where it is none."""
    return batch_folders(path) if path.is_dir() and is_midas(path) else [path]


def open_batch(path: Path) -> Source:
    """Return the source of one batch."""
    files = _matrices(path)
    if not files:
        raise DataError(f"The batch '{path.name}' has no counts.", "It holds mat/MODALITY.mtx, mat/MODALITY.csv or vec/MODALITY/0000.csv.")
    dims = _dimensions(path.parent)
    unknown = [name for name in files if dims and name not in dims]
    if unknown:
        raise DataError(
            f"The batch '{path.name}' has the modality '{unknown[0]}', which feat_dims.toml does not name: it has {', '.join(dims)}.",
            "Rename the matrix, or add it to feat_dims.toml.",
        )
    masked = sorted(item.name.split(".")[0] for item in (path / "mask").iterdir() if item.suffix == ".csv") if (path / "mask").is_dir() else []
    idle = [name for name in masked if name not in files]
    if idle:
        raise DataError(f"The batch '{path.name}' has a mask of '{idle[0]}', but no counts of it.", f"Add mat/{idle[0]}.mtx, or remove the mask.")
    modalities, named = [], {}
    for name, file in files.items():
        modality, own = _modality(path, file, name, dims.get(name))
        modalities.append(modality)
        if own is not None:
            named[name] = own
    names = _pair(path, modalities, named)
    columns: dict[str, np.ndarray] = {"batch": np.full(len(names), path.name, dtype=object)}
    notes: list[str] = []
    labels = _labels(path, names, notes)
    if labels is not None:
        columns["label"] = labels

    def read_obs() -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(columns, index=pd.Index([str(name) for name in names], dtype=object))

    headers = tuple(describe_values(name, values) for name, values in columns.items())
    return Source(path, "midas", len(names), modalities, read_obs, column_headers=lambda: headers, notes=notes)


def _pair(batch: Path, modalities: list[ModalitySource], named: dict[str, np.ndarray]) -> np.ndarray:
    """Return the names of a batch's cells, and have every matrix paired by the names that it gives them; by place only where it gives none.

    Raises
    ------
    DataError
        Where matrices cannot be paired.
    """
    telling = [set(names) for names in named.values() if not numbered(names)]
    own = {name: names for name, names in named.items() if not numbered(names) or set(names) in telling}
    given, n_named = _cell_names(batch), sum(map(len, own.values()))
    if given is None and len(own) == len(modalities) > 1:
        # All name their cells, so a cell may lack a modality, and none need be in the order of another.
        names = np.array(list(dict.fromkeys(name for names in own.values() for name in names)), dtype=object)
        if len(names) == n_named:
            shown = " and ".join(f"'{cells[0]}' ... ({name})" for name, cells in own.items())
            raise DataError(
                f"No cell of the batch '{batch.name}' has several modalities: they are called {shown}.",
                "Name the cells alike in all matrices, or make a batch of each.",
            )
        for modality in modalities:
            modality.read_names = _giving(own[modality.name])
        return names
    cells = given if given is not None else next(iter(own.values()), None)
    sizes = {modality.n_cells for modality in modalities}
    if len(sizes) > 1 or (cells is not None and len(cells) not in sizes):
        raise DataError(f"The matrices of the batch '{batch.name}' have different numbers of cells.", "All modalities of a batch have the same cells.")
    names = cells if cells is not None else np.array([f"{batch.name}_{row + 1}" for row in range(sizes.pop())], dtype=object)
    for modality in modalities if len(modalities) > 1 or given is not None else ():
        mine, known = own.get(modality.name, ()), set(names)
        if len(mine) and set(mine) == known:
            modality.read_names = _giving(own[modality.name])
        elif any(name in known for name in mine):
            strange = next(name for name in mine if name not in known)
            raise DataError(
                f"{modality.name} of the batch '{batch.name}' has the cell '{strange}', which is not among its cells ('{names[0]}' ...).",
                "Name the same cells in all files of the batch.",
            )
    return names


def _matrices(batch: Path) -> dict[str, Path]:
    """Return where the counts of each modality are: a matrix, or a folder with one file a cell."""
    found: dict[str, Path] = {}
    for folder, kind in (("mat", (".mtx", ".mtx.gz", ".csv", ".csv.gz")), ("vec", ())):
        for item in sorted((batch / folder).iterdir()) if (batch / folder).is_dir() else ():
            if item.name.lower().endswith(kind) if kind else item.is_dir():
                found.setdefault(item.name.split(".")[0], item)
    return found


class StoredVectors(StoredMatrix):
    """One text file a cell, in natural order of their names: numbers in one row, with or without titles and a name before them."""

    def __init__(self, folder: Path) -> None:
        self._files = sorted((item for item in folder.iterdir() if item.name.lower().endswith(".csv")), key=_natural)
        if not self._files:
            raise DataError(f"'vec/{folder.name}' of the batch '{folder.parent.parent.name}' holds no cells.", "It holds one CSV file a cell.")
        self.titles, first = self._row(self._files[0])
        super().__init__("X", (len(self._files), len(first)), "dense", "float32", None)

    @property
    def names(self) -> list[str]:
        """Names of the cells' files."""
        return [file.stem for file in self._files]

    def _row(self, file: Path) -> tuple[list[str] | None, np.ndarray]:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = [row for row in csv.reader(opened) if row]
        if len(rows) == 1:
            fields, titles = rows[0], None
        elif len(rows) == 2:
            fields, titles = rows[1], rows[0]
        else:
            raise DataError(
                f"'{file.parent.name}/{file.name}' has "
                f"{counted(len(rows), 'row')}.", "A file in 'vec' holds one cell: a row of numbers below its titles."
            )
        if titles is not None:
            fields, titles = fields[1:], titles[len(titles) - len(fields) + 1 :]
        try:
            return titles, np.array(fields, dtype=np.float64)
        except ValueError:
            raise DataError(f"'{file.parent.name}/{file.name}' holds something else than numbers.", "A file in 'vec' holds one row of counts.") from None

    def read(self, watch: Watch, *, keep: bool = False) -> tuple[CountsReport, sparse.csr_matrix | None]:
        """Read one file after the other."""
        rows = []
        for number, file in enumerate(self._files):
            if number % 200 == 0:
                watch.at(number / len(self._files), f"reading {file.parent.name}")
            values = self._row(file)[1]
            if len(values) != self.shape[1]:
                raise DataError(
                    f"'{file.parent.name}/{file.name}' holds {counted(len(values), 'value')}, other cells {self.shape[1]:,}.", "Every cell has all features."
                )
            rows.append(sparse.csr_matrix(values.astype(np.float32)[None, :]))
        whole = tidy(sparse.vstack(rows, format="csr"))
        report = scan_matrix(whole, "X")
        return report, whole if keep or report.is_raw else None

    def density(self) -> float:
        """Return the density of the first cells."""
        return float(np.mean([np.count_nonzero(self._row(file)[1]) / max(1, self.shape[1]) for file in self._files[:8]]))


def _natural(item: Path) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", item.name)]


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
    if file.is_dir():
        vectors = StoredVectors(file)
        matrix: StoredMatrix = vectors
        features = np.array(vectors.titles, dtype=object) if vectors.titles else _feature_names(batch.parent, name, vectors.shape[1])
    elif ".csv" in file.name.lower():
        layout = find_layout(file)
        rows = row_names(file, layout)
        cells = np.array(rows, dtype=object) if layout.n_names else None
        matrix = StoredText(file, layout, len(rows), rows_are_features=False)
        features = np.array(layout.columns, dtype=object)
    else:
        size, n_stored, kind = matrix_size(file)
        matrix = StoredMtx(file, size, n_stored, kind, cells_in_rows=True)
        features = _feature_names(batch.parent, name, size[1])
    if dims is not None and sum(dims) != matrix.shape[1]:
        raise DataError(
            f"'{file.name}' of the batch '{batch.name}' has {counted(matrix.shape[1], 'feature')}, but feat_dims.toml says {sum(dims):,}.",
            "Correct the one that is wrong.",
        )

    def read_var() -> pd.DataFrame:
        import pandas as pd

        table = pd.DataFrame(index=pd.Index(features, dtype=object))
        if dims is not None and len(dims) > 1:
            table["chrom"] = np.repeat([f"block_{block + 1}" for block in range(len(dims))], dims)
        return table

    source = ModalitySource(name, matrix.shape[0], {"X": Place(matrix, read_var)})
    source.features_measured = _mask(batch, name, features)
    return source, cells


def _column(path: Path, place: int = -1) -> list[str]:
    """Return a column of a table below its title, the last one unless another is named."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [row[place] for row in list(csv.reader(file))[1:] if row]


def _feature_names(folder: Path, name: str, n_features: int) -> np.ndarray:
    path = folder / "feat" / f"feat_names_{name}.csv"
    names = _column(path) if path.is_file() else []
    if len(names) == n_features:
        return np.array(names, dtype=object)
    return np.array([f"{name}_{number + 1}" for number in range(n_features)], dtype=object)


def _cell_names(batch: Path) -> np.ndarray | None:
    path = batch / "cell_names.csv"
    return np.array(_column(path), dtype=object) if path.is_file() else None


def _labels(batch: Path, names: np.ndarray, notes: list[str]) -> np.ndarray | None:
    """Return the labels of a batch's cells, by their names where the table has them; by place only where it has none."""
    for folder in (batch.parent / "label", batch.parent.parent / "label"):
        path = folder / f"{batch.name}.csv"
        if not path.is_file():
            continue
        labels, cells = _column(path), _column(path, 0)
        known = dict(zip(cells, labels, strict=True))
        found = [str(name) in known for name in names]
        if any(found) and len(known) == len(cells):
            if not all(found):
                notes.append(
                    f"'label/{path.name}' names {sum(found):,} of the {counted(len(names), 'cell')} of the batch '{batch.name}'; the others "
                    "have no label."
                )
            return np.array([known.get(str(name)) for name in names], dtype=object)
        if len(labels) == len(names):
            if not numbered(cells):
                notes.append(f"'label/{path.name}' names no cell of the batch '{batch.name}'; its labels were taken in the order of the cells.")
            return np.array(labels, dtype=object)
        notes.append(
            f"'label/{path.name}' has {counted(len(labels), 'label')} for the {counted(len(names), 'cell')} of the batch '{batch.name}', so "
            "they were left out."
        )
    return None


def _mask(batch: Path, name: str, features: np.ndarray) -> np.ndarray | None:
    """Return which features the batch has, matched by the titles of the mask; by place only where these are mere numbers."""
    path = batch / "mask" / f"{name}.csv"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    where = f"'mask/{name}.csv' of the batch '{batch.name}'"
    try:
        mask = np.array([float(value) > 0 for value in rows[1][1:]]) if len(rows) > 1 else np.empty(0)
    except ValueError:
        raise DataError(f"{where} holds something else than numbers.", "A mask holds 1 for measured and 0 for not measured.") from None
    titles = rows[0][1:] if rows else []
    if len(titles) == len(mask) and len(set(titles)) == len(titles) and set(titles) == set(features.tolist()):
        known = dict(zip(titles, mask.tolist(), strict=True))
        return np.array([known[feature] for feature in features.tolist()])
    if len(mask) != len(features):
        raise DataError(
            f"{where} says of {counted(len(mask), 'feature which was', 'features which were')} measured, the matrix has "
            f"{len(features):,}.", "Correct the one that is wrong."
        )
    if not all(title.strip().isdigit() or not title.strip() for title in titles) and not _unnamed(features, name):
        raise DataError(f"{where} has other features ('{titles[0]}' ...) than the matrix ('{features[0]}' ...).", "Name them alike.")
    return mask


def _unnamed(features: np.ndarray, name: str) -> bool:
    """Return whether the features have no names of their own, so that only their place tells which they are."""
    return features[0] == f"{name}_1"
