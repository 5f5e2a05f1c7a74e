"""How well the modalities of a trained run lie together, and how well one is told from another, cell by cell where both were measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import pandas as pd
import torch

from cellweave.core.analysis.alignment import Correlation, PairScores, RocArea, pair_scores
from cellweave.core.query.groups import column_of
from cellweave.core.query.latent import Cells
from cellweave.core.query.mosaic import MosaicQuestion, mosaic_chunks
from cellweave.core.query.told import is_binary
from cellweave.core.query.trained_run import QueryError, TrainedRun

JOINT = "latent"


@torch.no_grad()
def modality_latents(run: TrainedRun, cells: Cells = None) -> dict[str, np.ndarray]:
    """Return what all modalities together (``latent``), and each alone, say of the cells.

    Parameters
    ----------
    run
        An open run of a model with a latent of each modality.
    cells
        Rows or a mask; None for all usable cells.

    Returns
    -------
    dict
        float32 ``(n_rows, n_latent)`` by modality; NaN where it was not measured.

    Raises
    ------
    QueryError
        Where the model gives no latent of single modalities.
    """
    rows, found = run.rows(cells), dict[str, np.ndarray]()
    for where, batch in run.minibatches(rows):
        for name, value in run.model.latent(batch).items():
            if name == JOINT or name.startswith("c_"):
                key = name.removeprefix("c_")
                if key not in found:
                    found[key] = np.full((len(rows), value.shape[1]), np.nan, dtype=np.float32)
                found[key][where] = value.float().cpu().numpy()
    if len(found) < 2:
        raise QueryError(f"{run.spec.family.title} gives no latent of single modalities.", "MIDAS does.")
    return found


def alignment_table(run: TrainedRun, cells: Cells = None, *, labels: str | None = None, seed: int = 0) -> pd.DataFrame:
    """Judge every pair of modalities that some cells have together.

    Parameters
    ----------
    run
        An open run of MIDAS.
    cells
        Rows or a mask; None for all usable cells.
    labels
        Column with cell types; None for that of the run, where it has one.
    seed
        Fixes the sample where there are many cells.

    Returns
    -------
    pandas.DataFrame
        One row a pair: cells, FOSCTTM, label transfer, mixing of the modalities (:class:`cellweave.core.analysis.alignment.PairScores`), and
        how each is told from the other: Pearson's correlation of all values, or the area under the ROC curve for 0 and 1.

    Raises
    ------
    QueryError
        Where no cell has two modalities.
    """
    rows = run.rows(cells)
    latents = {name: value for name, value in modality_latents(run, rows).items() if name != JOINT}
    column = labels or run.spec.covariates.labels
    codes = None
    if column is not None:
        values = column_of(run, column).iloc[rows]
        codes = pd.Categorical(values.astype(str).where(values.notna())).codes.astype(np.int64)
    found = pair_scores(latents, codes, seed=seed)
    if not found:
        raise QueryError("No two modalities were measured in the same cells, so they cannot be compared.", "Ask for cells that have several.")
    told = [{**asdict(pair), **_told(run, rows, latents, pair)} for pair in found]
    return pd.DataFrame(told).set_index(["first", "second"]).dropna(axis=1, how="all")


def _told(run: TrainedRun, rows: np.ndarray, latents: dict[str, np.ndarray], pair: PairScores) -> dict[str, float]:
    """Return how well each modality of a pair is told from the other."""
    both = rows[np.isfinite(latents[pair.first]).all(1) & np.isfinite(latents[pair.second]).all(1)]
    return {
        "second_from_first": translation_accuracy(run, both, pair.first, pair.second),
        "first_from_second": translation_accuracy(run, both, pair.second, pair.first),
    }


def translation_accuracy(run: TrainedRun, rows: np.ndarray, given: str, wanted: str) -> float:
    """Return how well a modality is told from another one in cells that have both.

    Returns
    -------
    float
        Pearson's correlation of all measured values, flattened; of modalities of 0 and 1 the area under the ROC curve.
    """
    measure: Correlation | RocArea = RocArea() if is_binary(run.spec, wanted) else Correlation()
    modality = next(modality for modality in run.data.modalities if modality.name == wanted)
    for where, guess in _values(run, rows, MosaicQuestion("translated", (given,), (wanted,))):
        truth = modality.counts[rows[where]].toarray()
        mask = None
        if modality.feature_mask is not None and run.data.mask_group is not None:
            mask = modality.feature_mask[run.data.mask_group[rows[where]]]
        measure.add(truth, guess[wanted], mask)
    return measure.value


def _values(run: TrainedRun, rows: np.ndarray, question: MosaicQuestion) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
    yield from mosaic_chunks(run, rows, question)
