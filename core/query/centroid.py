"""The technical latent that all cells are decoded with where the batch is corrected: one for a trained MIDAS, whichever cells are asked about."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cellweave.core.errors import RunFolderError
from cellweave.core.files import write_json_atomic
from cellweave.core.models.midas_network import MidasNetwork
from cellweave.core.query.trained_run import QueryError, TrainedRun
from cellweave.core.training.data import TrainingData

#: Where a run keeps it, among its results.
FILE = "u_centroid.json"


def nearest_batch(u: np.ndarray, codes: np.ndarray) -> tuple[int, np.ndarray]:
    """Return the batch whose mean technical latent lies nearest the mean of all cells, as scmidas chooses it.

    Parameters
    ----------
    u
        Technical latents ``(n_cells, n_technical)``; cells with values that are not finite are left out.
    codes
        Batch of each cell ``(n_cells,)``.

    Returns
    -------
    code
        Of the batch; the lowest of several that are equally near.
    mean
        Its mean, float32 ``(n_technical,)``.

    Raises
    ------
    QueryError
        Where no cell has a finite latent.
    """
    finite = np.isfinite(u).all(1)
    if not finite.any():
        raise QueryError("No cell has a technical latent that is a finite number, so no batch can be chosen.", "Train again with a lower learning rate.")
    known, own = u[finite].astype(np.float64), codes[finite]
    present = np.unique(own)
    means = np.stack([known[own == code].mean(0) for code in present])
    place = int(((means - known.mean(0)) ** 2).sum(1).argmin())
    return int(present[place]), means[place].astype(np.float32)


def write_centroid(results: Path, data: TrainingData) -> Path:
    """Keep the technical latent of a run, told from the latents ``u.npy`` of the cells it was trained on, with the batch it is of.

    Parameters
    ----------
    results
        Folder of the results; holds ``u.npy`` in study order.
    data
        The cells of the run.

    Returns
    -------
    pathlib.Path
        JSON with ``batch`` (null without a batch column), ``n_cells`` and ``u``.
    """
    rows = np.flatnonzero(data.usable)
    u = np.load(results / "u.npy", allow_pickle=False)[rows]
    code, mean = nearest_batch(u, _codes(data)[rows])
    columns = data.encoding.columns.get("batch")
    batch = data.encoding.levels[columns[0]][code] if columns else None
    write_json_atomic(results / FILE, {"batch": batch, "n_cells": len(rows), "u": mean.tolist()})
    return results / FILE


def read_centroid(results: Path) -> Tensor | None:
    """Return the technical latent a run keeps, float32 ``(n_technical,)``; None where it keeps none.

    Raises
    ------
    RunFolderError
        Where the file is damaged.
    """
    path = results / FILE
    if not path.is_file():
        return None
    try:
        found = torch.tensor(json.loads(path.read_text(encoding="utf-8"))["u"], dtype=torch.float32)
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"'{path}' is damaged: {error}.", "Delete it; it is then told anew from the cells of the run.") from error
    return found


def centroid_of(run: TrainedRun) -> Tensor:
    """Return the technical latent that the cells of a run, and new cells asked of it, are decoded with.

    It is the one the run keeps. A run without it has the cells it was trained on encoded, which needs its data.

    Parameters
    ----------
    run
        An open run of MIDAS, on its own or on other cells.

    Returns
    -------
    torch.Tensor
        float32 ``(n_technical,)``.

    Raises
    ------
    DataError
        Where it is not kept and the data of the run are gone or have changed.
    """
    from cellweave.core.query.opened import open_run

    assert isinstance(run.model, MidasNetwork)
    kept = read_centroid(run.path / "results")
    if kept is not None and len(kept) == run.model.options.n_technical:
        return kept
    # Only of its own cells does a run know which it was trained on.
    own = run if len(run.data.train) else open_run(run.path, device=str(run.device)).watched(cancelled=run.cancelled)
    rows = own.rows()
    with torch.no_grad():
        u = np.concatenate([own.model.latent(batch)["u"].float().cpu().numpy() for _, batch in own.minibatches(rows)])
    return torch.from_numpy(nearest_batch(u, _codes(own.data)[rows])[1])


def _codes(data: TrainingData) -> np.ndarray:
    return data.categorical.get("batch", np.zeros(data.n_cells, dtype=np.int64))
