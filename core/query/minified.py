"""Minified data: posteriors and library sizes in place of counts, for answers without the encoder (scvi-tools' minified mode)."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from cellweave.core.errors import DataError
from cellweave.core.files import sha256_of
from cellweave.core.query.encode import align_to, encode
from cellweave.core.query.expression_files import write_or_say
from cellweave.core.query.latent import latent_distribution
from cellweave.core.query.opened import open_model
from cellweave.core.query.trained_run import CachedPosterior, QueryError, TrainedRun
from cellweave.core.study.study import Modality, Study
from cellweave.core.training.data import row_totals
from cellweave.core.training.model_files import WEIGHTS
from cellweave.core.training.sources import Loader

if TYPE_CHECKING:
    from anndata import AnnData

MEAN, VARIANCE, LIBRARY, ENTRY = "X_latent_qzm", "X_latent_qzv", "observed_library_size", "cellweave_minified"
WITHOUT, WITH = "latent_posterior_parameters", "latent_posterior_parameters_with_counts"


def write_minified(run: TrainedRun, out: str | Path, *, counts: bool = False) -> Path:
    """Write the cells of a run with their posteriors.

    Parameters
    ----------
    run
        An open run of scVI's kind.
    out
        An ``.h5ad``. ``obsm["X_latent_qzm"]`` and ``["X_latent_qzv"]`` hold mean and variance of the latent, ``obs["observed_library_size"]`` the
        total count, ``obs`` all columns, and ``uns["cellweave_minified"]`` the kind and the check sum of the model.
    counts
        Whether ``X`` holds the counts; without them it is sparse and empty.

    Returns
    -------
    pathlib.Path
        The file; it holds the usable cells of the run.

    Raises
    ------
    QueryError
        Where the model infers the library size from the counts, so that it cannot be kept.
    """
    import anndata

    out = Path(out).expanduser().absolute()
    if out.suffix != ".h5ad":
        raise QueryError(f"'{out.name}' does not end in .h5ad.", f"Name the file '{out.stem}.h5ad'.")
    if run.network.learns_library:
        raise QueryError(
            "This model infers the library size from the counts, so its data cannot be minified.",
            "Train with model.use_observed_lib_size = true, or keep the data whole.",
        )
    if counts:
        run.require_counts("keeping the counts")
    rows, modality = run.rows(), run.data.modalities[0]
    mean, var = latent_distribution(run, rows)
    obs = _writable(run.study.obs.iloc[rows])
    obs[LIBRARY] = row_totals(modality.counts)[rows] if run.cached is None else run.cached.library[rows]
    kept = modality.counts[rows] if counts else sparse.csr_matrix((len(rows), modality.n_features), dtype=np.float32)
    entry = {"kind": WITH if counts else WITHOUT, "run": run.path.name, "model": sha256_of(run.path / "model" / WEIGHTS), "modality": modality.name}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = anndata.AnnData(
            X=kept, obs=obs, var=pd.DataFrame(index=modality.var.index.astype(str)), obsm={MEAN: mean, VARIANCE: var}, uns={ENTRY: entry}
        )

        def write(path: Path) -> None:
            adata.write_h5ad(path, compression="gzip")

        write_or_say(out, write)
    return out


def _writable(obs: pd.DataFrame) -> pd.DataFrame:
    """Return a copy that an h5ad can hold: numbers, bools and levels stay, everything else becomes levels of text."""
    table = pd.DataFrame(index=obs.index.astype(str).astype(object))
    for name in obs.columns:
        column = obs[name]
        if isinstance(column.dtype, pd.CategoricalDtype):
            table[str(name)] = pd.Categorical(column.astype(object).map(str, na_action="ignore"), [str(level) for level in column.cat.categories])
        elif pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_bool_dtype(column.dtype):
            table[str(name)] = column.to_numpy()
        else:
            table[str(name)] = pd.Categorical(column.map(str, na_action="ignore"))
    return table


def open_minified(folder: str | Path, file: str | Path, *, device: str = "cpu") -> TrainedRun:
    """Open a trained model with minified data instead of its own.

    Parameters
    ----------
    folder
        The run folder.
    file
        What :func:`write_minified` wrote, with this model.
    device
        As in :func:`cellweave.core.query.opened.open_run`.

    Returns
    -------
    TrainedRun
        Its latents come from the file. Without counts in it, questions about likelihoods and raw counts are refused.

    Raises
    ------
    RunFolderError
        Where there is no trained model in the folder.
    DataError
        Where the file is not minified data of this model.
    """
    path = Path(file).expanduser()
    run_folder, trained, where = open_model(folder, device)
    adata = _read(path)
    entry = adata.uns[ENTRY]
    if str(entry["model"]) != sha256_of(run_folder.path / "model" / WEIGHTS):
        raise DataError(
            f"'{path.name}' was minified with another model, so its latents mean nothing to this one.", f"Open it with the run it names: '{entry['run']}'."
        )
    has_counts = str(entry["kind"]) == WITH
    obs = adata.obs
    library = obs.pop(LIBRARY).to_numpy(dtype=np.float32)
    counts = sparse.csr_matrix(adata.X)
    counts.sort_indices()
    every = np.ones(len(obs), dtype=bool)
    modality = Modality(str(entry["modality"]), counts, adata.var, every)
    study = Study(obs, {modality.name: modality}, (), np.zeros(len(obs), dtype=np.int64), np.arange(len(obs)))
    aligned, notes = align_to(study, trained.features)
    data = encode(run_folder.spec, trained.encoding, aligned, trained.features, trained_on=False)
    cached = CachedPosterior(_values(adata, MEAN), _values(adata, VARIANCE), library, has_counts)
    opened = TrainedRun(run_folder.path, run_folder.spec, trained, aligned, data, Loader(data, where, resident=False), tuple(notes))
    if opened.network.learns_library:
        raise QueryError("This model infers the library size from the counts, so it cannot work on minified data.", "Open the run with its own data.")
    return replace(opened, cached=cached)


def _read(path: Path) -> AnnData:
    import anndata

    if not path.is_file():
        raise DataError(f"There is no file '{path}'.", "Check the path.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adata = anndata.read_h5ad(path)
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"'{path.name}' cannot be read as an h5ad.", "Choose what 'cellweave query RUN minify' wrote.") from None
    whole = ENTRY in adata.uns and {MEAN, VARIANCE} <= set(adata.obsm) and LIBRARY in adata.obs
    if not whole:
        raise DataError(f"'{path.name}' holds no minified data.", "Choose what 'cellweave query RUN minify' wrote.")
    return adata


def _values(adata: AnnData, name: str) -> np.ndarray:
    return np.asarray(adata.obsm[name], dtype=np.float32)
