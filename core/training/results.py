"""What a trained model gives of every cell, written into the run folder in study order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch

from cellweave.core.errors import Cancelled
from cellweave.core.files import write_atomic
from cellweave.core.models.base import Model
from cellweave.core.study.study import Study
from cellweave.core.training.data import TrainingData, row_totals
from cellweave.core.training.preview import save_array
from cellweave.core.training.sources import Loader

BATCH = 2048
SPLIT = {"train": "train", "validation": "validation", "left": "left out"}


def write_cells(path: Path, study: Study, data: TrainingData) -> None:
    """Write ``cells.csv``: name, file and row of every cell, the part it played, and the columns that have a role."""
    part = np.full(study.n_cells, SPLIT["left"], dtype=object)
    part[data.train], part[data.validation] = SPLIT["train"], SPLIT["validation"]
    table = pd.DataFrame({"name": study.obs.index, "file": study.file_of_cell, "row": study.row_in_file, "split": part})
    for columns in data.encoding.columns.values():
        for column in columns:
            if column not in table:
                table[column] = study.obs[column].to_numpy()
    write_atomic(path, lambda temporary: table.to_csv(temporary, index=False))


@torch.no_grad()
def write_latents(
    results: Path, model: Model, loader: Loader, *, progress: Callable[[float], None], cancelled: Callable[[], bool]
) -> dict[str, Path]:
    """Write the latents and library sizes of all measured cells; rows of other cells are NaN.

    Returns
    -------
    dict
        Path by name: ``latent`` float32 ``(n_cells, n_latent)``, ``library`` float32 ``(n_cells,)`` and what else the model gives.
    """
    data = loader.data
    rows = np.flatnonzero(data.measured)
    arrays: dict[str, np.ndarray] = {}
    gives_library = any(result.kind == "library" for result in model.family.results)
    model.eval()
    done = 0
    for part, batch in loader.in_order(rows, BATCH):
        if cancelled():
            raise Cancelled
        values = model.latent(batch)
        if gives_library:
            libraries = model.library(batch)
            single = len(libraries) == 1
            values |= {"library" if single else f"library_{name}": value for name, value in libraries.items()}
        for name, value in values.items():
            numbers = value.float().cpu().numpy()
            if name not in arrays:
                arrays[name] = np.full((data.n_cells, *numbers.shape[1:]), np.nan, dtype=np.float32)
            arrays[name][part] = numbers
        done += len(part)
        progress(done / len(rows))
    paths = {}
    for name, array in arrays.items():
        paths[name] = results / f"{name}.npy"
        save_array(paths[name], array)
    return paths


def write_loadings(results: Path, model: Model, data: TrainingData) -> Path:
    """Write ``loadings.csv``: one row a feature, columns ``Z_0`` ... ``Z_{d-1}``, as scvi-tools names them."""
    tables = []
    for modality in data.modalities:
        values = model.loadings().get(modality.name)
        if values is None:
            continue
        table = pd.DataFrame(values.cpu().numpy(), index=modality.var.index, columns=[f"Z_{k}" for k in range(values.shape[1])])
        if len(data.modalities) > 1:
            table.insert(0, "modality", modality.name)
        tables.append(table)
    path = results / "loadings.csv"
    write_atomic(path, lambda temporary: pd.concat(tables).to_csv(temporary, index_label="feature"))
    return path


@torch.no_grad()
def write_denoised(
    path: Path, model: Model, loader: Loader, *, progress: Callable[[float], None], cancelled: Callable[[], bool]
) -> None:
    """Write denoised expression in chunks, so that a million cells do not fill the memory.

    One HDF5 group a modality with ``X`` float32 ``(n_cells, n_features)``, the expected share of each feature scaled to the
    median library size of the trained cells (attribute ``scaled_to``; the median size factor where one is used, since the decoder's
    values are then no shares), and ``features``. Rows of cells that were not in the training are NaN. A model that imputes and gives no
    expression is asked for the expected values of every modality in every cell instead, measured or not; the file then says ``what = "imputed"``.
    """
    data = loader.data
    rows = np.flatnonzero(data.usable)
    kinds = {result.kind for result in model.family.results}
    imputes = "imputation" in kinds and "expression" not in kinds
    model.eval()

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            file.attrs["what"] = "imputed" if imputes else "denoised"
            scales = {}
            for modality in data.modalities:
                sizes = row_totals(modality.counts) if data.size_factor is None else data.size_factor
                scales[modality.name] = 1.0 if imputes else float(np.median(sizes[rows[modality.measured[rows]]]))
                group = file.create_group(modality.name)
                if not imputes:
                    group.attrs["scaled_to"] = scales[modality.name]
                group.create_dataset("features", data=[str(name) for name in modality.var.index], dtype=h5py.string_dtype())
                shape = (data.n_cells, modality.n_features)
                group.create_dataset("X", shape, "f4", chunks=(min(256, shape[0]), shape[1]), compression="lzf", fillvalue=np.nan)
            done = 0
            for part, batch in loader.in_order(rows, BATCH):
                if cancelled():
                    raise Cancelled
                for name, value in (model.impute(batch) if imputes else model.expression(batch, scaled_to=1.0)).items():
                    # h5py wants increasing row numbers; ``rows`` is sorted.
                    file[name]["X"][part] = (value.float() * scales[name]).cpu().numpy()
                done += len(part)
                progress(done / len(rows))

    write_atomic(path, write)
