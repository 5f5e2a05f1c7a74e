"""The live embedding's part in the engine: the latent of a fixed sample of cells, written every few epochs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from cellweave.core.files import write_atomic
from cellweave.core.models.base import Model
from cellweave.core.training.data import TrainingData
from cellweave.core.training.sources import Loader

BATCH = 2048


def sample_cells(data: TrainingData, n_cells: int, seed: int) -> np.ndarray:
    """Return rows of a sample of the usable cells, each batch in proportion but with at least a few cells.

    Parameters
    ----------
    data
        The encoded study.
    n_cells
        Size of the sample; all usable cells where there are fewer.
    seed
        Fixes the sample.

    Returns
    -------
    ndarray
        Sorted rows of the study.
    """
    rows = np.flatnonzero(data.usable)
    if len(rows) <= n_cells:
        return rows
    rng = np.random.default_rng([seed, 11])
    batch = data.categorical.get("batch")
    codes = np.zeros(len(rows), dtype=np.int64) if batch is None else batch[rows]
    sizes = np.bincount(codes)
    floor = max(1, n_cells // (20 * len(sizes)))
    wanted = np.minimum(sizes, np.maximum(floor, np.floor(sizes / sizes.sum() * n_cells).astype(int)))
    chosen = [rng.choice(rows[codes == code], size=count, replace=False) for code, count in enumerate(wanted) if count]
    return np.sort(np.concatenate(chosen))


class Live(Protocol):
    """Writes something else of a few cells whenever the live embedding is refreshed."""

    def write(self, model: Model, loader: Loader, epoch: int) -> Path | None:
        """Write a file into the folder of the previews and return its path; None where it could not."""


class Preview:
    """Writes the latent of the preview cells.

    Parameters
    ----------
    folder
        ``preview/`` of the run folder.
    rows
        Rows of the study, as :func:`sample_cells` gives them; stored as ``cells.npy``.
    live
        What else is written beside the latent, before it, so that it is there when the latent is announced.
    """

    def __init__(self, folder: Path, rows: np.ndarray, live: Sequence[Live] = ()) -> None:
        self.folder, self.rows, self.live = folder, rows, tuple(live)
        self._begin()

    def _begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        save_array(self.folder / "cells.npy", self.rows)

    @torch.no_grad()
    def write(self, model: Model, loader: Loader, epoch: int) -> Path:
        """Write ``latent-EPOCH.npy``, float32 ``(n_preview, n_latent)``, and return its path."""
        latent: np.ndarray | None = None
        for where in loader.parts(self.rows, BATCH):
            values = model.latent(loader.minibatch(self.rows[where]))["latent"].float().cpu().numpy()
            if latent is None:
                latent = np.empty((len(self.rows), values.shape[1]), dtype=np.float32)
            latent[where] = values
        assert latent is not None
        if not self.folder.is_dir():
            self._begin()
        for each in self.live:
            each.write(model, loader, epoch)
        path = self.folder / f"latent-{epoch:06d}.npy"
        save_array(path, latent)
        return path


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array as ``.npy``, atomically."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)

    write_atomic(path, write)
