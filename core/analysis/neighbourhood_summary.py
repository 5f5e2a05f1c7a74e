"""The neighbourhood metrics in a few numbers: headlines, composite score, baselines by chance, tables by group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellweave.core.analysis.neighbourhood import Keys
from cellweave.core.analysis.scores import Column

Metrics = Mapping[str, NDArray[np.generic]]
BINS = 50
#: A cell that the best model pairs above the first and this one below the second was failed by this one.
ACHIEVABLE, FAILED, CONNECTED = 0.4, 0.2, 0.3


@dataclass(frozen=True)
class HeadlineInfo:
    """What a headline number means, for tables and tooltips."""

    number: str
    title: str
    help: str
    higher_is_better: bool | None


HEADLINES: dict[str, HeadlineInfo] = {
    "corr_within_library": HeadlineInfo(
        "H1", "Within libraries",
        "Median marker correlation of a cell with its neighbours of the same library. High where biology is kept.", higher_is_better=True,
    ),
    "corr_consistency": HeadlineInfo(
        "H2", "Spread within libraries", "Median standard deviation of the correlations with single neighbours. Low where neighbourhoods are of one kind.",
        higher_is_better=False,
    ),
    "corr_cross_library": HeadlineInfo(
        "H3", "Across libraries",
        "Median marker correlation with neighbours of other libraries of the same data set, of cells that have any.", higher_is_better=True,
    ),
    "corr_gap_library": HeadlineInfo(
        "H4", "Gap across libraries",
        "Within libraries minus across libraries. Near 0 where pairs match.", higher_is_better=False,
    ),
    "isolation_norm_cross_library": HeadlineInfo(
        "H5", "Isolation across libraries",
        "Share of cells without a neighbour from another library, over the share by chance. 1 is chance, above it libraries keep to themselves.",
        higher_is_better=False,
    ),
    "discrepancy_cross_library": HeadlineInfo(
        "H6", "Discrepancy across libraries",
        "Median of the correlation with the mean neighbour minus the mean of the correlations. High where neighbours are noisy or mixed.",
        higher_is_better=None,
    ),
    "corr_cross_dataset": HeadlineInfo(
        "H7", "Across data sets", "Median marker correlation with neighbours of other data sets, of cells that have any.", higher_is_better=True
    ),
    "corr_gap_dataset": HeadlineInfo(
        "H8", "Gap across data sets",
        "Within libraries minus across data sets. Near 0 where pairs match.", higher_is_better=False,
    ),
    "isolation_norm_cross_dataset": HeadlineInfo(
        "H9", "Isolation across data sets",
        "Share of cells without a neighbour from another data set, over the share by chance. 1 is chance, above it data sets keep to themselves.",
        higher_is_better=False,
    ),
    "discrepancy_cross_dataset": HeadlineInfo(
        "H10", "Discrepancy across data sets",
        "As across libraries, over neighbours of other data sets.", higher_is_better=None,
    ),
    "distrib_overlap_library": HeadlineInfo(
        "H11", "Overlap across libraries", "Overlap of the distributions of correlations within and across libraries, from 0 to 1.", higher_is_better=True
    ),
    "distrib_overlap_dataset": HeadlineInfo(
        "H12", "Overlap across data sets",
        "Overlap of the distributions of correlations within libraries and across data sets, from 0 to 1.", higher_is_better=True,
    ),
    "integration_failure_rate": HeadlineInfo(
        "H13", "Integration failures",
        "Share of cells that another model, or the data without integration, pairs well (above 0.4) and this run does not (below 0.2, or not at all).",
        higher_is_better=False,
    ),
    "cross_technical_correlation": HeadlineInfo(
        "H14", "Across technical levels", "Median marker correlation with neighbours of another level of any technical column.", higher_is_better=True
    ),
}
COMPOSITE: dict[str, HeadlineInfo] = {
    "total": HeadlineInfo("", "Composite score", "0.6 biology kept + 0.4 batches joined.", higher_is_better=True),
    "bio_conservation": HeadlineInfo("", "Biology kept", "The correlation within libraries (H1).", higher_is_better=True),
    "batch_correction": HeadlineInfo("", "Batches joined", "Mean of the scores of libraries and of data sets.", higher_is_better=True),
    "library_integration": HeadlineInfo("", "Libraries joined", "0.4 H3 + 0.3 (1 - H5) + 0.3 H11, the isolation cut at 2.", higher_is_better=True),
    "dataset_integration": HeadlineInfo("", "Data sets joined", "0.4 H7 + 0.3 (1 - H9) + 0.3 H12, the isolation cut at 2.", higher_is_better=True),
}


def library_mask(metrics: Metrics) -> str:
    """Return which kind of neighbours stands for "across libraries": all libraries are one data set where none is named."""
    return "cross_library" if "corr_avg_cross_library" in metrics else "between_libraries"


def headlines(metrics: Metrics, keys: Keys, *, min_neighbours: int = 1) -> dict[str, float]:
    """Return the headline numbers H1 to H12 and H14.

    Parameters
    ----------
    metrics
        From :func:`cellweave.core.analysis.neighbourhood.cell_metrics`.
    keys
        Where the cells come from.
    min_neighbours
        Cells with fewer neighbours of a kind are left out of that kind's correlation.

    Returns
    -------
    dict
        By the names in ``HEADLINES``; NaN where a column that a number needs was not given.
    """
    across = library_mask(metrics)
    within = _median(metrics, "corr_avg_same_library")
    found = {"corr_within_library": within, "corr_consistency": _median(metrics, "corr_std_same_library")}
    for suffix, mask in (("library", across), ("dataset", "cross_dataset")):
        value = _median(metrics, f"corr_avg_{mask}", at_least=(f"n_neighbours_{mask}", min_neighbours))
        found[f"corr_cross_{suffix}"] = value
        found[f"corr_gap_{suffix}"] = within - value
        found[f"isolation_norm_cross_{suffix}"] = isolation_norm(metrics, keys, mask)
        found[f"discrepancy_cross_{suffix}"] = _median(metrics, f"corr_discrepancy_{mask}")
        present = f"corr_avg_{mask}" in metrics and "corr_avg_same_library" in metrics
        found[f"distrib_overlap_{suffix}"] = overlap(metrics["corr_avg_same_library"], metrics[f"corr_avg_{mask}"]) if present else math.nan
    found["cross_technical_correlation"] = _median(
        metrics, "corr_avg_cross_technical", at_least=("n_neighbours_cross_technical", min_neighbours)
    )
    return {name: found[name] for name in HEADLINES if name in found}


def _median(metrics: Metrics, name: str, *, at_least: tuple[str, int] | None = None) -> float:
    if name not in metrics:
        return math.nan
    values = np.asarray(metrics[name], dtype=np.float64)
    if at_least is not None:
        values = values[np.asarray(metrics[at_least[0]], dtype=np.int64) >= at_least[1]]
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else math.nan


def isolation_norm(metrics: Metrics, keys: Keys, mask: str) -> float:
    """Return the share of cells without a neighbour of a kind, over what chance would give.

    By chance a cell with ``d`` neighbours has none of the kind with probability ``(1 - p)^d``, where ``p`` is the share of the other cells that
    are of that kind. Cells whose level is missing do not count. NaN where chance gives 0, or the kind's column was not given.
    """
    if f"n_neighbours_{mask}" not in metrics:
        return math.nan
    p = chance_of_kind(keys, mask)
    known = np.isfinite(p)
    if not known.any():
        return math.nan
    degree = np.asarray(metrics["n_neighbours_total"], dtype=np.int64)[known]
    expected = float(np.mean((1.0 - np.clip(p[known], 0.0, 1.0)) ** degree))
    observed = float(np.mean(np.asarray(metrics[f"n_neighbours_{mask}"])[known] == 0))
    return observed / expected if expected > 0 else math.nan


def chance_of_kind(keys: Keys, mask: str) -> NDArray[np.float64]:
    """Return for each cell the share of the other cells that are neighbours of a kind, ``(n_cells,)``; NaN where its level is missing."""
    library, dataset = keys.library, keys.dataset
    if mask in {"same_library", "between_libraries"} and library is not None:
        same, others = _group_size(library), len(library.codes) - 1
        return (same - 1) / others if mask == "same_library" else (others + 1 - same) / others
    if mask == "cross_library" and library is not None and dataset is not None:
        return (_group_size(dataset) - _group_size(library)) / (len(library.codes) - 1)
    if mask == "cross_dataset" and dataset is not None:
        return (len(dataset.codes) - _group_size(dataset)) / (len(dataset.codes) - 1)
    if mask == "cross_technical" and keys.technical:
        joint = _joint(list(keys.technical.values()))
        return (len(joint.codes) - _group_size(joint)) / (len(joint.codes) - 1)
    for name, column in keys.technical.items():
        same, others = _group_size(column), len(column.codes) - 1
        if mask == f"within_{name}":
            return (same - 1) / others
        if mask == f"between_{name}":
            return (others + 1 - same) / others
    return np.full(0, np.nan)


def _group_size(column: Column) -> NDArray[np.float64]:
    sizes = np.bincount(column.codes[column.codes >= 0], minlength=max(1, len(column.levels))).astype(np.float64)
    return np.where(column.codes >= 0, sizes[column.codes], np.nan)


def _joint(columns: Sequence[Column]) -> Column:
    codes = np.zeros(len(columns[0].codes), dtype=np.int64)
    known = np.ones(len(codes), dtype=bool)
    for column in columns:
        known &= column.codes >= 0
        codes = codes * max(1, len(column.levels)) + column.codes
    levels, dense = np.unique(codes[known], return_inverse=True)
    full = np.full(len(codes), -1, dtype=np.int64)
    full[known] = dense
    return Column(full, tuple(str(level) for level in levels))


def probability_isolated(column: Column, degree: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the chance that all neighbours of a cell are of its own level, ``((n_same - 1) / (n - 1))^degree``."""
    return ((_group_size(column) - 1) / (len(column.codes) - 1)) ** degree


def overlap(one: NDArray[np.generic], other: NDArray[np.generic]) -> float:
    """Return the overlap of two distributions of correlations: the sum of the smaller of two histograms of 50 bins on [-1, 1]."""
    first, second = (_histogram(values) for values in (one, other))
    return 0.0 if first is None or second is None else float(np.minimum(first, second).sum())


def _histogram(values: NDArray[np.generic]) -> NDArray[np.float64] | None:
    values = np.asarray(values, dtype=np.float64)
    # a correlation of 1 may be rounded to a little more
    values = np.clip(values[np.isfinite(values)], -1.0, 1.0)
    if not len(values):
        return None
    counts, _ = np.histogram(values, bins=BINS, range=(-1.0, 1.0))
    return counts / counts.sum()


def composite(headline: Mapping[str, float]) -> dict[str, float]:
    """Return one score for biology kept and one for batches joined, and both together.

    A part that is missing is left out and the weights of the others are scaled up; NaN where none is left.
    """
    bio = headline.get("corr_within_library", math.nan)
    scores = {}
    for suffix in ("library", "dataset"):
        isolation = headline.get(f"isolation_norm_cross_{suffix}", math.nan)
        parts = [
            headline.get(f"corr_cross_{suffix}", math.nan),
            1.0 - min(max(isolation, 0.0), 2.0) if math.isfinite(isolation) else math.nan,
            headline.get(f"distrib_overlap_{suffix}", math.nan),
        ]
        # an overlap of 0 is also what an empty side gives: without any pair there is nothing to overlap with
        if not math.isfinite(parts[0]) and not math.isfinite(parts[1]):
            parts[2] = math.nan
        scores[f"{suffix}_integration"] = _weighted(parts, [0.4, 0.3, 0.3])
    batch = _weighted([scores["library_integration"], scores["dataset_integration"]], [0.5, 0.5])
    return {"bio_conservation": bio, **scores, "batch_correction": batch, "total": _weighted([bio, batch], [0.6, 0.4])}


def _weighted(values: Sequence[float], weights: Sequence[float]) -> float:
    usable = [(value, weight) for value, weight in zip(values, weights, strict=True) if math.isfinite(value)]
    total = sum(weight for _, weight in usable)
    return sum(value * weight for value, weight in usable) / total if total else math.nan


# ---------------------------------------------------------------------- several models


def failure_rate(own: NDArray[np.generic], all_models: Sequence[NDArray[np.generic]]) -> float:
    """Return H13: the share of all cells that the best model pairs above 0.4 and this one below 0.2, or not at all.

    Parameters
    ----------
    own
        Correlation across of this model, ``(n_cells,)``.
    all_models
        The same of every model, this one included.
    """
    best = np.max([np.nan_to_num(np.asarray(values, dtype=np.float64), nan=-np.inf) for values in all_models], axis=0)
    mine = np.nan_to_num(np.asarray(own, dtype=np.float64), nan=-np.inf)
    return float(np.mean((best > ACHIEVABLE) & (mine < FAILED))) if len(mine) else math.nan


def connects(correlation: NDArray[np.generic], n_neighbours: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Return which cells a model joins with cells across: it has such neighbours and correlates with them by at least 0.3."""
    values = np.nan_to_num(np.asarray(correlation, dtype=np.float64), nan=-np.inf)
    return (np.asarray(n_neighbours, dtype=np.int64) > 0) & (values >= CONNECTED)


def consensus_isolated(models: Sequence[tuple[NDArray[np.generic], NDArray[np.generic]]]) -> NDArray[np.bool_]:
    """Return which cells no model joins with cells across.

    Parameters
    ----------
    models
        Correlation and number of neighbours across of each model, ``(n_cells,)`` each.
    """
    return ~np.any([connects(correlation, n) for correlation, n in models], axis=0)


# ---------------------------------------------------------------------- tables by group


def stratified_summary(metrics: Metrics, column: Column, names: Sequence[str] | None = None) -> pd.DataFrame:
    """Sum up metrics within each level of a column.

    Parameters
    ----------
    metrics
        Per cell.
    column
        The groups.
    names
        Which metrics; None takes every ``corr_avg_*`` and ``corr_std_*``.

    Returns
    -------
    pandas.DataFrame
        One row a level and metric: ``stratum``, ``metric``, ``n_cells``, ``median``, ``p10``, ``p25``, ``p75``, ``p90``; NaN where no cell has the metric.
    """
    chosen = list(names) if names is not None else [name for name in metrics if name.startswith(("corr_avg_", "corr_std_"))]
    rows = []
    for code in np.unique(column.codes[column.codes >= 0]):
        inside = column.codes == code
        for name in chosen:
            values = np.asarray(metrics[name], dtype=np.float64)[inside]
            values = values[np.isfinite(values)]
            points = np.percentile(values, [50, 10, 25, 75, 90]) if len(values) else np.full(5, np.nan)
            rows.append((column.levels[code], name, int(inside.sum()), *map(float, points)))
    return pd.DataFrame(rows, columns=["stratum", "metric", "n_cells", "median", "p10", "p25", "p75", "p90"])


def composition(row: NDArray[np.integer], column: NDArray[np.integer], weight: NDArray[np.floating], key: Column) -> NDArray[np.float64]:
    """Return the share of each level among a cell's neighbours by weight, ``(n_cells, n_levels)``; NaN without a known neighbour."""
    n_levels = len(key.levels)
    codes = key.codes[column]
    known = codes >= 0
    flat = np.bincount(row[known] * n_levels + codes[known], weight[known], len(key.codes) * n_levels)
    table = flat.reshape(len(key.codes), n_levels)
    total = table.sum(axis=1, keepdims=True)
    return np.divide(table, total, out=np.full(table.shape, np.nan), where=total > 0)


def penetration(metrics: Metrics, keys: Keys, thresholds: Sequence[int] = (10, 25)) -> list[dict[str, Any]]:
    """Return, by group, the share of cells that have at least so many neighbours across.

    Returns
    -------
    list of dict
        ``mask``, ``group``, ``n_cells`` and ``at_least_10`` ... for each threshold.
    """
    grouped = {"between_libraries": keys.library, "cross_library": keys.library, "cross_dataset": keys.dataset}
    grouped |= {f"between_{name}": column for name, column in keys.technical.items()}
    rows: list[dict[str, Any]] = []
    for mask, column in grouped.items():
        if column is None or f"n_neighbours_{mask}" not in metrics:
            continue
        n = np.asarray(metrics[f"n_neighbours_{mask}"])
        for code in np.unique(column.codes[column.codes >= 0]):
            inside = column.codes == code
            shares = {f"at_least_{threshold}": float(np.mean(n[inside] >= threshold)) for threshold in thresholds}
            rows.append({"mask": mask, "group": column.levels[code], "n_cells": int(inside.sum()), **shares})
    return rows
