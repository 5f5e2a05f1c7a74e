"""An h5mu of data that were no h5mu: several files, a folder, or one table with features of several kinds."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from cellweave.core.errors import DataError
from cellweave.core.export.inputs import Input
from cellweave.core.export.run_data import RunData, input_paths
from cellweave.core.study.study import Modality, Study

GROUP, VARM = "cellweave_mask_group", "cellweave_measured"


def whole_study(run: RunData) -> Study:
    """Return the data of a run with all their cells and features: nothing switched off, nothing selected.

    Raises
    ------
    DataError
        Where they are of one modality, which an h5mu says nothing more of than an h5ad.
    """
    from cellweave.core.study import load_study

    everything = {"features": {}, "switched_off": (), "drop_empty_cells": False, "drop_empty_features": False, "sha256": ()}
    study = load_study(run.spec.data.model_copy(update=everything))
    if len(study.modalities) < 2:
        raise DataError("The input of this run is not one h5mu file, and holds one modality.", "Export it as .h5ad.")
    return study


def input_of(run: RunData, study: Study, path: Path) -> Input:
    """Write the study as an h5mu and return it as an input: each modality with its own cells, masks beside them.

    ``varm["cellweave_measured"]`` of a modality with a mask says which features were measured in which group of cells, and
    ``obs["cellweave_mask_group"]`` which group a cell is of.

    Parameters
    ----------
    run, study
        The run and its data.
    path
        The h5mu to write.
    """
    import mudata

    sizes = [source.n_cells for source in study.sources]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    place = np.full(int(sum(sizes)), -1, dtype=np.int64)
    place[starts[study.file_of_cell] + study.row_in_file] = np.arange(study.n_cells)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = mudata.MuData({name: _table(modality, study) for name, modality in study.modalities.items()})
        obs = study.obs.copy()
        obs.index.name = None
        data = data[study.obs.index].copy()  # mudata orders cells by modality; ours is the order of the study
        data.obs = _writable(obs)
        data.write(path, compression="gzip")
    notes = ["The data were no h5mu: the file holds their counts and annotation as Cellweave read them.", *study.notes]
    return Input(None, path, "h5mu", study.n_cells, starts, notes=notes, place=place)


def _table(modality: Modality, study: Study) -> object:
    """Return one modality as AnnData, with the cells in which it was measured."""
    import anndata

    rows = np.flatnonzero(modality.measured)
    names = study.obs.index[rows]
    made = anndata.AnnData(
        sparse.csr_matrix(modality.counts[rows]), obs=pd.DataFrame(index=pd.Index(names.astype(str))), var=_writable(modality.var.copy())
    )
    if modality.feature_mask is not None:
        groups, code = np.unique(study.mask_group[rows], return_inverse=True)
        made.obs[GROUP] = code.reshape(-1)
        made.varm[VARM] = np.ascontiguousarray(modality.feature_mask[groups].T)
    return made


def _writable(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table that anndata can store: text with gaps as levels, names as text."""
    table.index = table.index.astype(str)
    for name in table.columns:
        if table[name].dtype == object:
            known = table[name].notna()
            table[name] = table[name].astype(str).where(known).astype("category")
    return table


def paths_are_one_h5mu(run: RunData) -> bool:
    """Return whether the input of a run is one h5mu file, which can be copied."""
    from cellweave.core.study.readers.detect import open_source

    paths = input_paths(run.spec)
    if len(paths) > 1 or paths[0].is_dir():
        return False
    with open_source(paths[0]) as source:
        return source.format == "h5mu"
