"""AnnData and MuData in HDF5 and zarr, old and new, read without anndata."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellweave.core.errors import DataError
from cellweave.core.study.counts import CountsReport
from cellweave.core.study.readers.base import ModalitySource, Place, Source, StoredMatrix, Watch
from cellweave.core.study.readers.frames import (
    column_names,
    column_values,
    describe_frame,
    n_rows,
    read_frame,
    row_names,
)
from cellweave.core.study.readers.store import child, is_group, matrix_at
from cellweave.core.wording import counted

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

TYPE_COLUMNS = ("feature_types", "feature_type", "modality")
KNOWN_TYPES = {
    "gene expression": "rna", "gex": "rna", "rna": "rna", "gene": "rna", "expression": "rna",
    "antibody capture": "adt", "adt": "adt", "ab": "adt", "protein": "adt", "prot": "adt", "protein expression": "adt",
    "peaks": "atac", "atac": "atac", "peak": "atac", "chromatin accessibility": "atac",
    "crispr guide capture": "crispr", "multiplexing capture": "hto",
}  # fmt: skip
RENAMED_KEYS = {"prot": "adt", "protein": "adt", "gex": "rna", "peaks": "atac", "antibody capture": "adt", "gene expression": "rna"}
PEAK_NAME = re.compile(r"^(chr)?[\w.]+[:_-]\d+[-_:]\d+$")


def is_mudata(root: Any) -> bool:
    """Return whether a root group is laid out as MuData."""
    return "mod" in root and is_group(root["mod"])


def is_anndata(root: Any) -> bool:
    """Return whether a root group is laid out as AnnData."""
    return "obs" in root and "var" in root and ("X" in root or "layers" in root or "raw" in root or "raw.X" in root)


def open_anndata(root: Any, path: Path, format_name: str) -> Source:
    """Return the source of an AnnData; one whose features have several types has a modality for each."""
    notes: list[str] = []
    uns = child(root, "uns")
    modalities = _modalities_of_table(root, path, notes, None)
    obs = root["obs"]
    return Source(
        path, format_name, n_rows(obs), modalities,
        read_obs=lambda: read_frame(obs, notes, uns),
        column_headers=lambda: describe_frame(obs, uns),
        obsm=_obsm(root, ()), notes=notes,
    )  # fmt: skip


def open_mudata(root: Any, path: Path, format_name: str) -> Source:
    """Return the source of a MuData: the modalities under their keys, matched to the cells of obs by name."""
    notes: list[str] = []
    tables = root["mod"]
    order = tables.attrs.get("mod-order")
    keys = [str(key) for key in order if str(key) in tables] if order is not None else []
    keys += [key for key in tables.keys() if key not in keys]  # noqa: SIM118
    modalities: list[ModalitySource] = []
    names: dict[str, str] = {}
    for key in keys:
        name = RENAMED_KEYS.get(key.lower(), key)
        if name != key and name not in keys and name not in names.values():
            notes.append(f"The modality '{key}' is called '{name}' here.")
        else:
            name = key
        if "obs" not in tables[key] or "var" not in tables[key]:
            notes.append(f"The modality '{key}' was left out: it has no cells or no features.")
            continue
        names[key] = name
        modalities.extend(_modalities_of_table(tables[key], path, notes, name))
    obs = child(root, "obs")
    if obs is None:
        if not names:
            raise DataError(f"'{path.name}' holds no modality with cells.", "Write it again with mudata.")
        obs = tables[next(iter(names))]["obs"]
    # mudata also copies columns of the modalities to the top as "rna:column": those are taken from their modality
    copies = {f"{key}:{column}" for key in names for column in column_names(tables[key]["obs"])}
    columns = [name for name in column_names(obs) if name not in copies]
    described = {column.name: column for column in describe_frame(obs)}
    return Source(
        path, format_name, n_rows(obs), modalities,
        read_obs=lambda: read_frame(obs, notes)[columns],
        column_headers=lambda: _merged_columns([described[name] for name in columns], tables, names),
        obsm=_obsm(root, tuple(tables.keys())), notes=notes,
    )  # fmt: skip


def _merged_columns(columns: list[Any], tables: Any, names: dict[str, str]) -> tuple[Any, ...]:
    """Add the columns that only the modalities have."""
    known = {column.name for column in columns}
    for key in names:
        for column in describe_frame(tables[key]["obs"], child(tables[key], "uns")):
            if column.name not in known:
                known.add(column.name)
                columns.append(column)
    return tuple(columns)


def _obsm(root: Any, hidden: tuple[str, ...]) -> tuple[str, ...]:
    obsm = child(root, "obsm")
    if obsm is None:
        return ()
    names = list(obsm.keys()) if is_group(obsm) else list(obsm.dtype.names or ())
    return tuple(name for name in names if name not in hidden)


def _modalities_of_table(table: Any, path: Path, notes: list[str], name: str | None) -> list[ModalitySource]:
    """Return the modalities of one AnnData group; ``name`` is its key in a MuData, None for a file of its own."""
    var, obs, uns = table["var"], table["obs"], child(table, "uns")
    matrices = _matrices(table)
    if not matrices:
        if name is None:
            raise DataError(f"'{path.name}' has cells and features, but no matrix.", "Write it again with the counts in X or in a layer.")
        notes.append(f"The modality '{name}' was left out: it has no matrix.")
        return []
    types = _feature_types(var, uns)
    if name is not None:
        groups: dict[str, np.ndarray | None] = {name: None}
    else:
        groups = modality_groups(types, lambda: row_names(var), notes)
    shared: dict[str, StoredMatrix] = {}
    if len(groups) > 1:
        shared = {location: SharedMatrix(matrix, len(groups)) for location, (matrix, _) in matrices.items()}
    found = []
    for modality, columns in groups.items():
        places = {}
        for location, (matrix, frame) in matrices.items():
            own_columns = columns
            if frame is not var and columns is not None:  # raw has features of its own
                own = modality_groups(_feature_types(frame, uns), lambda frame=frame: row_names(frame), [])  # type: ignore[misc]
                if modality not in own:
                    continue
                own_columns = own[modality]
            reader: Callable[[], pd.DataFrame] = _reader(frame, notes, uns)
            places[location] = Place(shared.get(location, matrix) if own_columns is not None else matrix, reader, own_columns)
        source = ModalitySource(modality, n_rows(obs), places)
        if name is not None:
            source.read_names = lambda: row_names(obs)
            source.read_obs = lambda: read_frame(obs, notes, uns)
        source.read_mask, source.mask_names = _mask_reader(table, columns), lambda place, prefix: _mask_names(table, place, prefix)
        found.append(source)
    return found


def _reader(frame: Any, notes: list[str], uns: Any) -> Callable[[], pd.DataFrame]:
    return lambda: read_frame(frame, notes, uns, what="var")


def _mask_reader(table: Any, columns: np.ndarray | None) -> Callable[[str], Any]:
    """Return what gives the mask at a place; of a table that modalities share, the part of their ``columns``."""

    def read(place: str) -> Any:
        where, _, name = place.partition("/")
        if where == "var":
            return read_frame(table["var"], [], child(table, "uns"), what="var")[name] if name in column_names(table["var"]) else None
        node = child(table, place)
        if node is None:
            return None
        if is_group(node) and "_index" in node.attrs:
            return read_frame(node, [], what=where)
        matrix = matrix_at(node, place)
        if matrix is not None:
            found = matrix.read(Watch(), keep=True)[1]
            values = np.zeros(matrix.shape) if found is None else found.toarray()
        elif is_group(node):
            return None
        else:
            values = np.asarray(node[...])
        return values[..., columns] if columns is not None and values.shape[-1:] == (n_rows(table["var"]),) else values

    return lambda place: _own_part(read(place), columns)


def _own_part(found: Any, columns: np.ndarray | None) -> Any:
    """Return the part of a column of var that belongs to the modality."""
    if columns is None or getattr(found, "ndim", 0) != 1 or not hasattr(found, "iloc"):
        return found
    return found.iloc[columns]


def _mask_names(table: Any, place: str, prefix: str) -> list[str]:
    if place == "var":
        return [name for name in column_names(table["var"]) if name.startswith(prefix)]
    group = child(table, place)
    return [] if group is None or not is_group(group) else [str(name) for name in group.keys() if str(name).startswith(prefix)]  # noqa: SIM118


def _matrices(table: Any) -> dict[str, tuple[StoredMatrix, Any]]:
    """Return every matrix with the frame that names its columns."""
    found: dict[str, tuple[StoredMatrix, Any]] = {}
    var, n_cells = table["var"], n_rows(table["obs"])

    def take(location: str, node: Any, frame: Any) -> None:
        matrix = None if node is None else matrix_at(node, location)
        if matrix is None or frame is None or 0 in matrix.shape:
            return
        if matrix.shape != (n_cells, n_rows(frame)):
            raise DataError(
                f"The matrix at {location} is {matrix.shape[0]:,} x {matrix.shape[1]:,}, but the file names {counted(n_cells, 'cell')} "
                f"and {counted(n_rows(frame), 'feature')}.",
                "The file is damaged or was cut short: write or download it again.",
            )
        found[location] = (matrix, frame)

    take("X", child(table, "X"), var)
    raw = child(table, "raw")
    if raw is not None and is_group(raw):
        take("raw/X", child(raw, "X"), child(raw, "var"))
    elif "raw.X" in table:
        take("raw/X", table["raw.X"], child(table, "raw.var"))
    layers = child(table, "layers")
    if layers is not None and is_group(layers):
        for name in layers.keys():  # noqa: SIM118
            take(f"layers/{name}", layers[name], var)
    return found


def _feature_types(var: Any, uns: Any) -> np.ndarray | None:
    """Return the type of each feature, or None where the table does not say."""
    names = column_names(var)
    for column in TYPE_COLUMNS:
        if column in names:
            if not is_group(var):
                return None
            node = var[column]
            old = child(var, f"__categories/{column}")
            values = np.asarray(column_values(node, var, column), dtype=object)
            if old is not None:
                levels = np.asarray(column_values(old), dtype=object)
                values = np.array([levels[int(code)] if int(code) >= 0 else "" for code in values], dtype=object)
            return np.array(["" if value is None or value != value else str(value) for value in values], dtype=object)
    return None


def modality_groups(
    types: np.ndarray | None, names: Callable[[], np.ndarray], notes: list[str]
) -> dict[str, np.ndarray | None]:
    """Divide features into modalities by their type.

    Parameters
    ----------
    types
        Type of each feature, or None.
    names
        Gives the names of the features, looked at where the types say nothing.
    notes
        Gets a sentence where something was guessed.

    Returns
    -------
    dict
        Columns by modality; None for all of them.
    """
    if types is None or not any(types):
        some = names()[:200]
        if len(some) and np.mean([bool(PEAK_NAME.match(str(name))) for name in some]) > 0.9:
            notes.append("The features are named like peaks, so they are taken for ATAC.")
            return {"atac": None}
        return {"rna": None}
    unique = list(dict.fromkeys(types))
    named = {kind: KNOWN_TYPES.get(kind.strip().lower(), re.sub(r"\W+", "_", kind.strip().lower()) or "other") for kind in unique}
    if len(set(named.values())) == 1:
        return {next(iter(named.values())): None}
    modality = np.array([named[kind] for kind in types], dtype=object)
    return {name: np.flatnonzero(modality == name) for name in dict.fromkeys(named.values())}


class SharedMatrix(StoredMatrix):
    """A matrix that several modalities share: it is read once and let go when each has taken its part."""

    def __init__(self, matrix: StoredMatrix, n_takers: int) -> None:
        super().__init__(matrix.location, matrix.shape, matrix.storage, matrix.dtype, matrix.n_stored)
        self._matrix, self._n_takers, self._taken = matrix, n_takers, 0
        self._read: tuple[CountsReport, sparse.csr_matrix | None] | None = None

    def read(self, watch: Watch, *, keep: bool = False) -> tuple[CountsReport, sparse.csr_matrix | None]:
        """Read the matrix, or give what was read before."""
        result = self._read if self._read is not None else self._matrix.read(watch, keep=True)
        self._taken += 1
        self._read = None if self._taken >= self._n_takers else result
        return result

    def density(self) -> float:
        """Return the density of the whole matrix."""
        return self._matrix.density()
