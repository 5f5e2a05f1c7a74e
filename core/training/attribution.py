"""Attribution as a part of a run: of a sample of cells while it trains, and of the cells of its result."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cellweave.core.analysis.attribution_scores import FROBENIUS, INFO
from cellweave.core.files import write_atomic, write_json_atomic
from cellweave.core.models.base import Model
from cellweave.core.query.attribution import Attribution, AttributionQuestion, attribute, multiplications
from cellweave.core.spec import RunSpec
from cellweave.core.spec.analysis import AnalysisSpec
from cellweave.core.training.data import TrainingData
from cellweave.core.training.preview import sample_cells, save_array
from cellweave.core.training.sources import Loader

LOG = logging.getLogger("cellweave.run")
#: Multiplications that the result of a run, or a refresh of the live view, may take on a CPU (some minutes, some seconds) and on a GPU.
BUDGET = {"cpu": 2e13, "other": 1e16}
LIVE_BUDGET = {"cpu": 5e10, "other": 2e13}
MOST_CELLS, FEWEST_CELLS, LIVE_CELLS = 20_000, 500, 2000
LIVE_FEWEST = 50
#: Features of each modality that the live view looks at, a random sample where there are more.
LIVE_FEATURES = 1000
REMOVED: dict[str, Any] = {"kept": "none", "categories": "cat_covs", "scaling": "feature_scaling", "all": "all"}


def gives_attribution(spec: RunSpec) -> bool:
    """Return whether the run's family declares attribution."""
    return any(result.kind == "attribution" for result in spec.family.results)


def question_of(analysis: AnalysisSpec, features: Mapping[str, np.ndarray] | None = None) -> AttributionQuestion:
    """Return how the spec wants attribution to be computed."""
    return AttributionQuestion(
        remove_covariates=REMOVED[analysis.attribution_covariates], covariate_reference=analysis.attribution_reference, features=features or {}
    )


def attributed_cells(spec: RunSpec, data: TrainingData, model: Model, device: str) -> np.ndarray:
    """Return the cells whose attribution is computed: as many as the spec says, else as many as can be done in some minutes.

    Returns
    -------
    ndarray
        Sorted rows of the study.
    """
    wanted = spec.analysis.attribution_cells
    if wanted is None:
        afford = BUDGET["cpu" if device == "cpu" else "other"] / max(1.0, multiplications(model, {}))
        wanted = int(min(MOST_CELLS, max(FEWEST_CELLS, afford)))
    return sample_cells(data, wanted, spec.training.seed)


def write_attribution(
    results: Path, found: Attribution, question: AttributionQuestion, n_cells: int, *, seconds: float, epoch: int | None = None
) -> list[Path]:
    """Write ``attribution_MODALITY.npy``, ``attribution_frobenius.npy`` and ``attribution.json``; cells without attribution are NaN.

    Returns
    -------
    list of Path
        The files.
    """
    paths = []
    for name, values in found.mean_abs.items():
        paths.append(results / f"attribution_{name}.npy")
        save_array(paths[-1], _spread(masked(found, name, values), found.rows, n_cells))
    paths.append(results / FROBENIUS)
    save_array(paths[-1], _spread(norms(found), found.rows, n_cells))
    paths.append(results / INFO)
    write_json_atomic(paths[-1], {**information(found, question), "n_cells": len(found.rows), "seconds": round(seconds, 3), "epoch": epoch})
    return paths


def compute_attribution(
    results: Path, spec: RunSpec, model: Model, loader: Loader, *, progress: Callable[[float], None], cancelled: Callable[[], bool], epoch: int | None = None
) -> list[Path]:
    """Compute the attribution that the spec asks for and write it into ``results``; see :func:`write_attribution`."""
    question, began = question_of(spec.analysis), time.perf_counter()
    rows = attributed_cells(spec, loader.data, model, loader.device.type)
    found = attribute(model, loader, rows, question, progress=progress, cancelled=cancelled)
    return write_attribution(results, found, question, loader.data.n_cells, seconds=time.perf_counter() - began, epoch=epoch)


class LiveAttribution:
    """Writes the attribution of a sample of cells beside the live embedding, every time that is refreshed.

    The sample is as large as can be done in some seconds, and of each modality at most 1,000 features are looked at: the mean over a random sample
    of features is that over all of them but for chance.

    Parameters
    ----------
    folder
        ``preview/`` of the run folder.
    rows
        Rows of the study that the live embedding shows.
    spec, data, model
        Of the run.
    device
        Where the model computes.
    """

    def __init__(self, folder: Path, rows: np.ndarray, spec: RunSpec, data: TrainingData, model: Model, device: str) -> None:
        rng = np.random.default_rng([spec.training.seed, 13])
        features = {
            m.name: np.sort(rng.choice(m.n_features, LIVE_FEATURES, replace=False)) for m in data.modalities if m.n_features > LIVE_FEATURES
        }
        cost = multiplications(model, {name: len(columns) for name, columns in features.items()})
        afford = int(LIVE_BUDGET["cpu" if device == "cpu" else "other"] / max(1.0, cost))
        n_cells = min(len(rows), LIVE_CELLS, max(LIVE_FEWEST, afford))
        self.folder, self.question, self.gave_up = folder, question_of(spec.analysis, features), False
        self.rows = np.sort(rng.choice(rows, n_cells, replace=False)) if n_cells < len(rows) else rows

    def write(self, model: Model, loader: Loader, epoch: int) -> Path | None:
        """Write ``attribution-EPOCH.npz`` and return its path; None, from then on, where the memory does not suffice."""
        if self.gave_up:
            return None
        try:
            found = attribute(model, loader, self.rows, self.question)
        except (RuntimeError, MemoryError):  # the training is worth more than the picture
            LOG.warning("the attribution while training was given up in epoch %s", epoch, exc_info=True)
            self.gave_up = True
            return None
        path = self.folder / f"attribution-{epoch:06d}.npz"
        arrays: dict[str, Any] = {f"mean_abs_{name}": masked(found, name, values) for name, values in found.mean_abs.items()}
        info = json.dumps({**information(found, self.question), "n_cells": len(found.rows), "epoch": epoch})

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez(file, rows=found.rows, frobenius=norms(found), info=np.array(info), **arrays)

        write_atomic(path, write)
        return path


def norms(found: Attribution) -> np.ndarray:
    """Return the Frobenius norms ``(n_cells, n_decoders, n_blocks)``."""
    return np.stack([masked(found, name, values) for name, values in found.frobenius.items()], axis=1)


def masked(found: Attribution, name: str, values: np.ndarray) -> np.ndarray:
    """Return the scores of a decoder, NaN in cells in which its modality was not measured: nothing of theirs was learned from."""
    known = found.measured.get(name)
    return values if known is None or known.all() else np.where(known[:, None], values, np.float32(np.nan))


def _spread(values: np.ndarray, rows: np.ndarray, n_cells: int) -> np.ndarray:
    wide = np.full((n_cells, *values.shape[1:]), np.nan, dtype=np.float32)
    wide[rows] = values
    return wide


def information(found: Attribution, question: AttributionQuestion) -> dict[str, Any]:
    """Return what has to be known to read the arrays, as plain values."""
    return {
        "modalities": list(found.modalities),
        "blocks": {name: list(bounds) for name, bounds in found.blocks.items()},
        "n_features": found.n_features,
        "features": "sampled" if question.features else "all",
        "method": question.method,
        "library": question.library,
        "remove_covariates": question.remove_covariates,
        "covariate_reference": question.covariate_reference,
    }
