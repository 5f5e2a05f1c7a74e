"""The input files of a run, opened again with everything that is in them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from cellweave.core.errors import DataError
from cellweave.core.export.run_data import RunData, file_labels, input_paths
from cellweave.core.files import sha256_of
from cellweave.core.spec import RunSpec
from cellweave.core.spec.data import DataSpec
from cellweave.core.wording import agree, counted

if TYPE_CHECKING:
    from anndata import AnnData

    from cellweave.core.study.study import Study

Progress = Callable[[float | None, str], None]
StudyLoader = Callable[[DataSpec], "Study"]


@dataclass
class Input:
    """All input cells of a run, in input order.

    Attributes
    ----------
    adata
        With everything the input has; None where the file can be copied as it is.
    path, format
        The file, where there is one only.
    n_cells
        Cells of all files.
    starts
        Row of each file's first cell.
    left_behind
        Modalities of a MuData that an h5ad has no place for.
    notes
        Sentences on what could not be kept as it was.
    place
        Row of each input cell in ``path``, where cells of several files are one cell there, ``(n_input,)`` int; None where they are all cells in order.
    """

    adata: AnnData | None
    path: Path | None
    format: str
    n_cells: int
    starts: np.ndarray
    left_behind: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    place: np.ndarray | None = None


def check_unchanged(spec: RunSpec, progress: Progress | None = None, *, force: bool = False) -> None:
    """Make sure that the input files are there and are those the run was trained on.

    Raises
    ------
    DataError
        Where a file is gone, or has changed and ``force`` is not set.
    """
    for number, name in enumerate(spec.data.paths):
        path = Path(name).expanduser()
        if not path.exists():
            raise DataError(f"The input '{path}' is not there any more.", "Put it back: the export holds every cell of it.")
        if force or number >= len(spec.data.sha256):
            continue
        report = None if progress is None else (lambda share: progress(share, "reading check sums"))
        if sha256_of(path, report) != spec.data.sha256[number]:
            raise DataError(
                f"'{path.name}' has changed since the run was trained, so its cells may not be those of the results.",
                "Put the original file back, or force the export where you know that the cells are the same and in the same order.",
            )


def open_input(run: RunData, *, study_loader: StudyLoader | None = None, whole: bool = False) -> Input:
    """Open the input of a run.

    Parameters
    ----------
    run
        The run.
    study_loader
        Reads the formats that anndata has no reader for; None takes Cellweave's own.
    whole
        Whether to read an h5ad into memory even where it could be copied.
    """
    from cellweave.core.study.readers.detect import open_source

    spec, paths = run.spec, input_paths(run.spec)
    formats, sizes = [], []
    for path in paths:
        with open_source(path) as source:
            formats.append(source.format)
            sizes.append(source.n_cells)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    n_cells = int(sum(sizes))
    if len(paths) == 1:
        if formats[0] == "h5ad" and not whole and can_be_copied(paths[0]):
            return Input(None, paths[0], "h5ad", n_cells, starts)
        found = _read(paths[0], formats[0], spec, study_loader)
    elif set(formats) <= {"h5ad", "zarr", "h5mu"}:
        found = _joined([_read(path, kind, spec, study_loader) for path, kind in zip(paths, formats, strict=True)], spec, paths)
    else:
        found = _of_study(spec, paths, study_loader)
    assert found.adata is not None
    if found.adata.n_obs != n_cells:
        raise DataError(
            f"The input has {counted(found.adata.n_obs, 'cell')} where {n_cells} {agree(n_cells, 'was', 'were')} "
            "expected.", "Put the original files back."
        )
    return Input(
        found.adata, paths[0] if len(paths) == 1 else None, formats[0] if len(paths) == 1 else "several", n_cells, starts,
        found.left_behind, found.notes,
    )


def can_be_copied(path: Path) -> bool:
    """Return whether an h5ad is laid out as today's anndata does, so that results can be added to a copy of the file."""
    import h5py

    with h5py.File(path, "r") as file:
        obs = file.get("obs")
        groups = [file[name] for name in ("obsm", "uns", "var", "layers") if name in file]
        if not isinstance(obs, h5py.Group) or not all(isinstance(group, h5py.Group) for group in groups):
            return False
        return obs.attrs.get("encoding-type") == "dataframe" and "raw.X" not in file


@dataclass
class _Found:
    adata: AnnData | None
    left_behind: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


def _read(path: Path, kind: str, spec: RunSpec, study_loader: StudyLoader | None) -> _Found:
    import anndata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what old files are said to be is not news to whoever exports
        if kind == "h5mu":
            return _of_mudata(path, spec)
        if kind in {"h5ad", "zarr"}:
            try:
                return _Found(anndata.read_zarr(path) if path.is_dir() else anndata.read_h5ad(path))
            except Exception as error:  # noqa: BLE001  (whatever anndata stumbles over, our own readers may still read)
                found = _of_study(spec, [path], study_loader)
                found.notes.append(f"anndata could not read the file ({type(error).__name__}); its counts and annotation were kept, nothing else.")
                return found
    return _of_study(spec, [path], study_loader)


def _of_mudata(path: Path, spec: RunSpec) -> _Found:
    """Return the trained modality with all cells of the MuData, in its order."""
    import mudata

    from cellweave.core.study.readers.anndata_store import RENAMED_KEYS

    mdata = mudata.read_zarr(path) if path.is_dir() else mudata.read_h5mu(path)
    called = {RENAMED_KEYS.get(key.lower(), key): key for key in mdata.mod}
    called |= {key: key for key in mdata.mod}
    wanted = spec.data.modality or ("rna" if "rna" in called else next(iter(mdata.mod)))
    if wanted not in called:
        raise DataError(f"'{path.name}' has no modality '{wanted}' any more.", "Put the original file back.")
    key = called[wanted]
    # mudata copies the columns of all modalities to the top as "adt:column" when it reads: the file has not got those
    copies = {f"{each}:{column}" for each, table in mdata.mod.items() for column in table.obs}
    obs = mdata.obs.drop(columns=[column for column in mdata.obs if column in copies])
    return _Found(spread(mdata.mod[key], obs), tuple(other for other in mdata.mod if other != key))


def spread(adata: AnnData, obs: pd.DataFrame) -> AnnData:
    """Return a modality over all cells of its MuData.

    Cells in which it was not measured have zeros in X, layers and raw and NaN in obsm; ``obs["cellweave_measured"]`` says which
    cells those are, where there are any.

    Parameters
    ----------
    adata
        The modality.
    obs
        Annotation of all cells; columns that only the modality has are added.
    """
    from anndata import AnnData

    rows = obs.index.get_indexer(adata.obs_names)
    every = len(rows) == len(obs) and bool((rows == np.arange(len(obs))).all())
    table = obs.copy()
    for column in adata.obs:
        if column not in table:
            table[column] = adata.obs[column].reindex(obs.index)
    if not every:
        measured = np.zeros(len(obs), dtype=bool)
        measured[rows] = True
        table["cellweave_measured"] = measured
    wide = AnnData(
        X=None if adata.X is None else _spread_rows(adata.X, rows, len(obs), fill=0),
        obs=table,
        var=adata.var.copy(),
        uns=dict(adata.uns),
        varm=dict(adata.varm),
        layers={name: _spread_rows(layer, rows, len(obs), fill=0) for name, layer in adata.layers.items()},
        obsm={name: _spread_rows(values, rows, len(obs), fill=np.nan) for name, values in adata.obsm.items()},
        obsp={name: _spread_pairs(values, rows, len(obs)) for name, values in adata.obsp.items()},
        varp=dict(adata.varp),
    )
    if adata.raw is not None:
        wide.raw = AnnData(X=_spread_rows(adata.raw.X, rows, len(obs), fill=0), obs=table[[]], var=adata.raw.var.copy())
    return wide


def _spread_rows(values: Any, rows: np.ndarray, n_cells: int, *, fill: float) -> Any:
    if isinstance(values, pd.DataFrame):
        return values.reindex(pd.RangeIndex(n_cells)) if len(values) != n_cells else values
    if sparse.issparse(values):
        where = sparse.csr_matrix((np.ones(len(rows), dtype=values.dtype), (rows, np.arange(len(rows)))), shape=(n_cells, len(rows)))
        return sparse.csr_matrix(where @ values)
    values = np.asarray(values)
    if fill != 0 and values.dtype.kind not in "fc":
        values = values.astype(np.float64) if len(rows) != n_cells else values
    wide = np.full((n_cells, *values.shape[1:]), fill if values.dtype.kind in "fc" else 0, dtype=values.dtype)
    wide[rows] = values
    return wide


def _spread_pairs(values: Any, rows: np.ndarray, n_cells: int) -> sparse.csr_matrix:
    pairs = sparse.coo_matrix(values)
    return sparse.csr_matrix((pairs.data, (rows[pairs.row], rows[pairs.col])), shape=(n_cells, n_cells))


def _joined(parts: list[_Found], spec: RunSpec, paths: list[Path]) -> _Found:
    """Put several files under one another, in the order of the study."""
    import anndata

    tables = [part.adata for part in parts if part.adata is not None]
    notes = [note for part in parts for note in part.notes]
    names = pd.Series(np.concatenate([table.obs_names.to_numpy() for table in tables]))
    numbers = np.repeat(np.arange(len(tables)), [table.n_obs for table in tables])
    shared = bool((pd.Series(numbers).groupby(names.to_numpy()).nunique() > 1).any())
    for number, table in enumerate(tables):
        if shared:
            table.obs_names = [f"{name}-{number + 1}" for name in table.obs_names]
        table.var_names_make_unique()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        joined = anndata.concat(
            tables, join="inner" if spec.data.join == "intersection" else "outer", merge="first", uns_merge="first", fill_value=0
        )
    if any(table.raw is not None for table in tables) and joined.raw is None:
        notes.append("'raw' was left behind: not every file has it.")
    dropped = {name for table in tables for name in table.layers} - set(joined.layers)
    if dropped:
        notes.append(f"Layers that not every file has were left behind: {', '.join(sorted(dropped))}.")
    if spec.data.batch_from_file:
        labels = file_labels(paths)
        joined.obs["file" if "file" not in joined.obs else "source_file"] = pd.Categorical.from_codes(numbers, categories=pd.Index(labels, dtype=object))
    return _Found(joined, tuple(dict.fromkeys(name for part in parts for name in part.left_behind)), notes)


def _of_study(spec: RunSpec, paths: list[Path], study_loader: StudyLoader | None) -> _Found:
    """Build an AnnData from what Cellweave's own readers find, with nothing selected or left out."""
    from anndata import AnnData

    from cellweave.core.study import load_study
    from cellweave.core.study.align import make_unique

    asked = {
        "paths": tuple(str(path) for path in paths), "features": {}, "switched_off": (), "drop_empty_cells": False, "drop_empty_features": False,
        "make_names_unique": True, "accept_non_integer": True, "fill_missing": {}, "combine": {}, "new_columns": {},
    }  # fmt: skip
    study = (study_loader or load_study)(spec.data.model_copy(update=asked))
    if len(study.left_out):
        raise DataError(
            f"{counted(len(study.left_out), 'cell')} of the input cannot be read in {agree(len(study.left_out), 'its', 'their')} "
            "place.", "Save the input as h5ad and train on that."
        )
    main = study.main_modality(spec.data.modality)
    modalities = [main, *(each for each in study.modalities.values() if each is not main)]
    obs, tables = study.obs.copy(), []
    for each in modalities:
        if not each.measured.all():
            obs["cellweave_measured" if each is main else f"cellweave_measured_{each.name}"] = each.measured
        table = each.var.copy()
        if len(modalities) > 1 and "feature_types" not in table:
            table["feature_types"] = each.name
        tables.append(table)
    # as scanpy reads such files: one matrix with a column that says of which type each feature is, the trained modality first
    counts = sparse.csr_matrix(sparse.hstack([each.counts for each in modalities], format="csr"))
    var = pd.concat(tables)
    var.index = pd.Index(make_unique(var.index.to_numpy(dtype=object)), dtype=object)
    return _Found(AnnData(X=counts, obs=obs, var=var))
