"""What the network of scVAEIT must know of the data before it starts: ranges of the values, depths, patterns of missing features."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from cellweave.core.errors import DataError
from cellweave.core.models.vaeit import VaeitOptions
from cellweave.core.training.data import row_totals
from cellweave.core.wording import agree, counted

if TYPE_CHECKING:
    from cellweave.core.models.vaeit import Normalisation
    from cellweave.core.spec.run import RunSpec
    from cellweave.core.study.study import Modality
    from cellweave.core.training.data import TrainingData

#: Counts are normalised to this total.
SCALE = 1e4


def normalise(values: np.ndarray, totals: np.ndarray, how: Normalisation) -> np.ndarray:
    """Return counts on the scale that the model is trained on.

    Parameters
    ----------
    values
        Stored counts, any shape.
    totals
        Total count of the cell of each, of a shape that broadcasts.
    how
        ``"log1p"``: ``log(1 + count / total * 10,000)``; ``"binary"``: 1 where there is a count; ``"none"``: as they are.
    """
    if how == "binary":
        return (values > 0).astype(np.float64)
    if how == "none":
        return np.asarray(values, dtype=np.float64)
    return np.log1p(values / np.maximum(totals, 1e-12) * SCALE)


def summaries(spec: RunSpec, data: TrainingData) -> dict[str, np.ndarray]:
    """Return the summaries of the training cells.

    Returns
    -------
    dict
        By modality, after a dot: ``max``, ``min``, ``mean`` and ``sd`` of the observed normalised values of each feature ``(n_features,)``;
        ``total``, the median
        total count of a cell ``(1,)``; ``density``, the share of the observed values that are not 0 ``(1,)``; ``batches``, how the batches in which
        it was measured
        share in an average over them ``(n_batches,)``. And ``pattern_share`` ``(n_groups,)``: which share of
        the training cells has each pattern of measured features.

    Raises
    ------
    DataError
        Where an observed value is not finite or does not suit its likelihood, or a cell that is trained on has no observed feature at all.
    """
    options = spec.model
    assert isinstance(options, VaeitOptions)
    groups = _groups(data)
    found: dict[str, np.ndarray] = {}
    for modality in data.modalities:
        rows = data.train[modality.measured[data.train]]
        batch = data.categorical.get("batch", np.zeros(data.n_cells, dtype=np.int64))
        there = np.bincount(batch[rows], minlength=int(batch.max()) + 1) > 0
        found[f"{modality.name}.batches"] = there / max(1, there.sum())
        found |= {f"{modality.name}.{key}": value for key, value in _of_modality(modality, rows, groups, options).items()}
    _require_something(data)
    found["pattern_share"] = pattern_share(data)
    return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in found.items()}


def pattern_share(data: TrainingData) -> np.ndarray:
    """Return which share of the training cells has each pattern of measured features, float32 ``(n_groups,)``."""
    groups = _groups(data)
    n_groups = max(int(groups.max()) + 1, *(1 if m.feature_mask is None else len(m.feature_mask) for m in data.modalities))
    return (np.bincount(groups[data.train], minlength=n_groups) / len(data.train)).astype(np.float32)


def check_values(spec: RunSpec, data: TrainingData) -> None:
    """Refuse new data that a trained model cannot read.

    Raises
    ------
    DataError
        As :func:`summaries`, but a modality may be missing.
    """
    options = spec.model
    assert isinstance(options, VaeitOptions)
    for modality in data.modalities:
        rows = data.train[modality.measured[data.train]]
        if len(rows):
            _values(modality, rows, options)
    _require_something(data)


def _require_something(data: TrainingData) -> None:
    """Refuse cells in which no feature was measured."""
    groups, seen = _groups(data), np.zeros(data.n_cells, dtype=np.int64)
    for modality in data.modalities:
        seen += modality.measured * (modality.n_features if modality.feature_mask is None else modality.feature_mask.sum(1)[groups])
    empty = int((seen[data.train] == 0).sum())
    if empty:
        raise DataError(
            f"The mask hides every feature of {counted(empty, 'cell')}, so there is nothing to learn from {agree(empty, 'it', 'them')}.",
            "Leave these cells out, or give a mask that leaves some of their features.",
        )


def _groups(data: TrainingData) -> np.ndarray:
    """Return the row of the feature masks of each cell."""
    groups = getattr(data, "mask_group", None)
    return np.zeros(data.n_cells, dtype=np.int64) if groups is None else np.asarray(groups, dtype=np.int64)


def _of_modality(modality: Modality, rows: np.ndarray, groups: np.ndarray, options: VaeitOptions) -> dict[str, np.ndarray]:
    name, n_features = modality.name, modality.n_features
    if not len(rows):
        raise DataError(f"{name} was measured in none of the cells that are trained on.", "Leave it out, or train on cells in which it was measured.")
    counts, totals, values = _values(modality, rows, options)
    n_seen = np.full(n_features, float(len(rows)))
    if modality.feature_mask is not None:
        per_group = np.bincount(groups[rows], minlength=len(modality.feature_mask))
        n_seen = per_group[: len(modality.feature_mask)] @ modality.feature_mask.astype(np.float64)
        observed = modality.feature_mask[np.repeat(groups[rows], np.diff(counts.indptr)), counts.indices]
        values = np.where(observed, values, 0.0)
    columns = counts.indices
    stored = np.bincount(columns, minlength=n_features)
    total = np.bincount(columns, values, minlength=n_features)
    square = np.bincount(columns, values * values, minlength=n_features)
    highest, lowest = np.full(n_features, -np.inf), np.full(n_features, np.inf)
    np.maximum.at(highest, columns, values)
    np.minimum.at(lowest, columns, values)
    has_zero = stored < n_seen
    highest = np.where(has_zero | (stored == 0), np.maximum(highest, 0.0), highest)
    lowest = np.where(has_zero | (stored == 0), np.minimum(lowest, 0.0), lowest)
    n = np.maximum(n_seen, 1.0)
    mean = total / n
    positive = totals[totals > 0]
    return {
        "max": highest, "min": lowest, "mean": mean, "sd": np.sqrt(np.maximum(square / n - mean**2, 0.0)),
        "total": np.array([np.median(positive) if positive.size else 1.0]), "density": np.array([stored.sum() / max(n_seen.sum(), 1.0)]),
    }  # fmt: skip


def _values(modality: Modality, rows: np.ndarray, options: VaeitOptions) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """Return counts and total of some cells, and the normalised stored values, once they were found to suit the likelihood."""
    name, counts = modality.name, modality.counts[rows]
    bad = ~np.isfinite(counts.data)
    if bad.any():
        raise DataError(
            f"{counted(int(bad.sum()), 'observed value')} of {name} {agree(int(bad.sum()), 'is not a finite number', 'are not finite numbers')}.",
            "Where NaN means not measured, set data.nan_is_missing; otherwise correct the file.",
        )
    totals = row_totals(counts)
    values = normalise(counts.data, np.repeat(totals, np.diff(counts.indptr)), options.normalisation_of(name))
    _suit(name, values, options)
    return counts, totals, values


def _suit(name: str, values: np.ndarray, options: VaeitOptions) -> None:
    """Refuse values that a likelihood has no probability for."""
    kind = options.distribution_of(name)
    if kind != "gaussian" and values.size and (not np.isfinite(values).all() or values.min() < 0):
        raise DataError(
            f"{name} has values below 0, for which the {kind} likelihood is not made.",
            f"Set model.distribution of {name} to gaussian and model.normalisation of {name} to none.",
        )
