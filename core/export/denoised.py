"""Denoised expression as a layer of an export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellweave.core.export.annotate import add_column, add_layer, free_name, mapping
from cellweave.core.export.inputs import Input, Progress
from cellweave.core.export.run_data import RunData


@dataclass(frozen=True)
class _Block:
    """Values of one modality that go into a table.

    Attributes
    ----------
    values
        ``(n_study, n_features)`` on disk.
    features
        Which of its features the table has.
    columns
        Their columns in the table.
    """

    values: h5py.Dataset
    features: NDArray[np.int64]
    columns: NDArray[np.int64]

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the values of some study rows, in one pass over the disk where they lie together."""
        if not len(rows):
            return np.empty((0, len(self.features)), dtype=np.float32)
        first, last = int(rows.min()), int(rows.max()) + 1
        if last - first <= 4 * len(rows):
            block = self.values[first:last][rows - first]
        else:
            rising, back = np.unique(rows, return_inverse=True)  # h5py reads rising rows only
            block = self.values[rising][back]
        return np.asarray(block[:, self.features], dtype=np.float32)


def add_denoised(file: h5py.File, run: RunData, given: Input, row: NDArray[np.int64], report: Progress) -> dict[str, str]:
    """Add ``layers["denoised"]`` and ``var["cellweave_denoised"]``.

    Parameters
    ----------
    file
        The export: an h5ad, or an h5mu whose trained modalities get the layer.
    run, given
        The run and its input.
    row
        Row of the export of each study cell.
    report
        Takes progress.

    Returns
    -------
    dict
        What the additions came to be called.
    """
    names: dict[str, str] = {}
    with h5py.File(run.folder.results / "denoised.h5", "r") as stored:
        tables: dict[str, list[str]] = {}
        for modality in stored:
            tables.setdefault(_table_of(file, modality), []).append(modality)
        for path, modalities in tables.items():
            table = file[path]
            blocks = [block for modality in modalities if len((block := _block(table, modality, stored[modality], given)).features)]
            if not blocks:
                continue
            study_row = _study_rows(file, table, run, row)
            layer = _write(table, blocks, study_row, report)
            modelled = np.zeros(len(_index(table["var"])), dtype=bool)
            for block in blocks:
                modelled[block.columns] = True
            column = add_column(table["var"], "cellweave_denoised", pd.Series(modelled))
            prefix = "" if path == "/" else f"{path.rpartition('/')[2]}."
            names |= {f"{prefix}layers.denoised": layer, f"{prefix}var.cellweave_denoised": column}
    return names


def _value_files(run: RunData) -> dict[str, Path]:
    """Return the files with values of every modality in all cells that a run holds, by what they are."""
    found = {what: run.folder.results / f"{what}.h5" for what in ("imputed", "corrected")}
    if not found["imputed"].exists():
        found["imputed"] = run.folder.results / "denoised.h5"
    kept = {}
    for what, path in found.items():
        if path.exists():
            with h5py.File(path, "r") as stored:
                if stored.attrs.get("what") == what:
                    kept[what] = path
    return kept


def imputed_features(run: RunData) -> dict[str, NDArray[np.object_]]:
    """Return the features of each modality of which the run holds imputed or corrected values, under the names they have in uns; nothing for other runs."""
    found: dict[str, NDArray[np.object_]] = {}
    for what, path in _value_files(run).items():
        with h5py.File(path, "r") as stored:
            found |= {f"{what}_features_{name}": np.array([each.decode() for each in stored[name]["features"][:]], dtype=object) for name in stored}
    return found


def add_imputed(file: h5py.File, run: RunData, row: NDArray[np.int64], n_cells: int, block: int = 2048) -> None:
    """Add imputed and corrected values of all cells as ``obsm["X_imputed_MODALITY"]``, ``obsm["X_corrected_MODALITY"]``, NaN in cells that have none.

    Parameters
    ----------
    file
        The export.
    run
        The run.
    row
        Row of the export of each study cell.
    n_cells
        Rows of the export.
    block
        Rows written at a time.
    """
    for what, path in _value_files(run).items():
        obsm = mapping(file, "obsm")
        with h5py.File(path, "r") as stored:
            for name in stored:
                values = stored[name]["X"]
                made = obsm.create_dataset(
                    free_name(f"X_{what}_{name}", set(obsm)), (n_cells, values.shape[1]), "f4", chunks=(min(256, n_cells), values.shape[1]),
                    compression="lzf", fillvalue=np.nan,
                )  # fmt: skip
                made.attrs["encoding-type"], made.attrs["encoding-version"] = "array", "0.2.0"
                for start in range(0, len(row), block):
                    own = row[start : start + block]
                    order = np.argsort(own)  # h5py writes rising rows only
                    made[own[order]] = values[start : start + block][order]


def _table_of(file: h5py.File, modality: str) -> str:
    """Return the path of the table that holds a modality."""
    from cellweave.core.study.readers.anndata_store import RENAMED_KEYS

    if "mod" not in file:
        return "/"
    key = next(key for key in file["mod"] if modality in {key, RENAMED_KEYS.get(key.lower())})
    return f"/mod/{key}"


def _block(table: h5py.Group, modality: str, stored: h5py.Group, given: Input) -> _Block:
    """Match features by name; counts from ``raw`` may have features that the table has no column for."""
    from cellweave.core.study.align import make_unique

    names = _index(table["var"])
    among = _columns_of_type(given, modality, len(names))
    features = pd.Index([each.decode() for each in stored["features"][:]], dtype=object)
    found = pd.Index(make_unique(names[among])).get_indexer(features)
    known = np.flatnonzero(found >= 0)
    return _Block(stored["X"], known, among[found[known]])


def _columns_of_type(given: Input, modality: str, n_features: int) -> NDArray[np.int64]:
    """Return the columns of a modality in a table whose features are of several types."""
    if given.path is not None and given.adata is None and given.format == "h5ad":
        from cellweave.core.study.readers.detect import open_source

        with open_source(given.path) as source:
            for each in source.modalities:
                for location, place in each.places.items():
                    if each.name == modality and place.columns is not None and not location.startswith("raw"):
                        return np.asarray(place.columns, dtype=np.int64)
    return np.arange(n_features)


def _study_rows(file: h5py.File, table: h5py.Group, run: RunData, row: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the study's row of each row of a table, -1 for cells without values."""
    usable = np.flatnonzero(np.isfinite(run.latent).all(axis=1))
    if table.name == "/":
        inside, n_rows = row[usable], len(_index(file["obs"]))
    else:  # the cells of a modality are those of the file by name
        own = pd.Index(_index(table["obs"]))
        inside, n_rows = own.get_indexer(pd.Index(_index(file["obs"])[row[usable]])), len(own)
        usable, inside = usable[inside >= 0], inside[inside >= 0]
    found = np.full(n_rows, -1, dtype=np.int64)
    found[inside] = usable
    return found


def _write(table: h5py.Group, blocks: list[_Block], study_row: NDArray[np.int64], report: Progress) -> str:
    columns = np.concatenate([block.columns for block in blocks])
    order = np.argsort(columns, kind="stable")

    def rows_of(start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        wanted = study_row[start:stop]
        there = np.flatnonzero(wanted >= 0)
        values = np.hstack([block.read(wanted[there]) for block in blocks])[:, order]
        return start + there, values

    shape = (len(study_row), len(_index(table["var"])))
    return add_layer(
        mapping(table, "layers"), "denoised", shape, columns[order], rows_of, lambda share: report(share, "denoised expression")
    )


def _index(frame: h5py.Group) -> NDArray[np.object_]:
    from anndata.io import read_elem

    return read_elem(frame).index.to_numpy(dtype=object)
