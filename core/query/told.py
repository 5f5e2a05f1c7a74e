"""How well each modality is told from every set of others, batch by batch: what scMIB's score wants of translations (He et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellweave.core.analysis.alignment import FEWEST, Correlation, RocArea
from cellweave.core.errors import Cancelled
from cellweave.core.files import write_json_atomic
from cellweave.core.nn.distributions import distribution
from cellweave.core.query.mosaic import MosaicQuestion, translations, values_of

if TYPE_CHECKING:
    from cellweave.core.models.base import Minibatch, Model
    from cellweave.core.spec import RunSpec
    from cellweave.core.training.data import TrainingData

#: File in the folder of results.
FILE = "translation.json"
VERSION = 1
#: Cells of a batch that are looked at for each translation; a seeded sample where there are more.
MOST_CELLS = 1000
#: Gives rows of the study and their minibatch.
Minibatches = Callable[[np.ndarray], "Iterator[tuple[np.ndarray, Minibatch]]"]


def translation_scores(
    spec: RunSpec,
    model: Model,
    data: TrainingData,
    minibatches: Minibatches,
    *,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]]:
    """Judge every translation in the cells of each batch that were measured in what it starts from and leads to.

    Parameters
    ----------
    spec
        Of the run.
    model
        A model of several modalities, in evaluation mode.
    data
        Its cells.
    minibatches
        Given rows, iterates over them in minibatches, in order.
    seed
        Fixes the sample of large batches.
    progress, cancelled
        Told the share that is done; asked between minibatches.

    Returns
    -------
    list of dict
        ``batch``, ``given`` (names), ``wanted``, ``measure`` (``"pearson"`` of all measured values, or ``"auroc"`` of modalities of 0 and 1),
        ``value``, ``n_cells``.

    Raises
    ------
    Cancelled
        Where the person asked for it.
    """
    known = tuple(modality.name for modality in data.modalities)
    asked = ((level, question, _cells(data, own, question, seed)) for level, own in _levels(data) for question in translations(known))
    jobs = [job for job in asked if len(job[2])]
    found = []
    for number, (level, question, rows) in enumerate(jobs):
        if cancelled():
            raise Cancelled
        found += [{"batch": level, **row} for row in _judged(spec, model, data, minibatches, question, rows)]
        progress((number + 1) / len(jobs))
    return found


def _levels(data: TrainingData) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each batch and its usable cells."""
    usable, codes = np.flatnonzero(data.usable), data.categorical.get("batch")
    if codes is None:
        yield "", usable
        return
    for code, name in enumerate(data.encoding.levels[data.encoding.columns["batch"][0]]):
        yield str(name), usable[codes[usable] == code]


def _cells(data: TrainingData, rows: np.ndarray, question: MosaicQuestion, seed: int) -> np.ndarray:
    """Return the cells of a batch that a translation is judged in: they have all it starts from, and something it leads to."""
    measured = {modality.name: modality.measured for modality in data.modalities}
    for name in question.given or ():
        rows = rows[measured[name][rows]]
    rows = rows[np.any([measured[name][rows] for name in question.modalities or ()], axis=0)]
    if len(rows) < FEWEST:
        return rows[:0]
    return rows if len(rows) <= MOST_CELLS else np.sort(np.random.default_rng([seed, 37]).choice(rows, MOST_CELLS, replace=False))


def _judged(
    spec: RunSpec, model: Model, data: TrainingData, minibatches: Minibatches, question: MosaicQuestion, rows: np.ndarray
) -> Iterator[dict[str, Any]]:
    known = tuple(modality.name for modality in data.modalities)
    modalities = {modality.name: modality for modality in data.modalities if modality.name in (question.modalities or ())}
    measures: dict[str, Correlation | RocArea] = {name: RocArea() if is_binary(spec, name) else Correlation() for name in modalities}
    cells = dict.fromkeys(modalities, 0)
    for part, values in values_of(model, lambda: minibatches(rows), question, known):
        for name, modality in modalities.items():
            kept = modality.measured[part]
            if not kept.any():
                continue
            mask = None
            if modality.feature_mask is not None and data.mask_group is not None:
                mask = modality.feature_mask[data.mask_group[part[kept]]]
            measures[name].add(modality.counts[part[kept]].toarray(), values[name][kept], mask)
            cells[name] += int(kept.sum())
    for name, measure in measures.items():
        if cells[name] >= FEWEST and np.isfinite(measure.value):
            kind = "auroc" if isinstance(measure, RocArea) else "pearson"
            yield {"given": list(question.given or ()), "wanted": name, "measure": kind, "value": measure.value, "n_cells": cells[name]}


def is_binary(spec: RunSpec, modality: str) -> bool:
    """Return whether a modality is explained as 0 and 1."""
    of = getattr(spec.model, "distribution_of", None)
    return of is not None and distribution(of(modality)).support == "binary"


def write_translations(results: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write what :func:`translation_scores` found into the folder of results and return the file."""
    write_json_atomic(results / FILE, {"version": VERSION, "most_cells": MOST_CELLS, "translations": list(rows)})
    return results / FILE
