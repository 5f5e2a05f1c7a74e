"""The whole of the neighbourhood diagnostics of one embedding: a table of cells and a summary."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from cellweave.core.analysis import neighbourhood_failures as failures
from cellweave.core.analysis import neighbourhood_summary as summary
from cellweave.core.analysis.neighbourhood import (
    Edges,
    Keys,
    Profiles,
    averages,
    cell_metrics,
    normalised,
    random_edges,
)
from cellweave.core.analysis.neighbourhood_markers import Marker, MarkerSet, select_markers
from cellweave.core.analysis.neighbours import find_neighbours
from cellweave.core.analysis.scores import Column

Progress = Callable[[float | None, str], None]
#: Groups of cells within which the cells of unlabelled data are clustered are at least as large.
SMALLEST_CLUSTERED = 50


@dataclass(frozen=True)
class Question:
    """What is looked at.

    Attributes
    ----------
    latent
        The embedding, finite, ``(n_cells, n_latent)``.
    counts
        Raw counts of the same cells, all features of the modality.
    symbols
        Name of each feature.
    keys
        Where the cells come from.
    labels
        Columns of labels; without any, markers are looked for between clusters of the data without integration, within each data set (or
        library).
    baseline
        The embedding without integration, ``(n_cells, n)``, or None.
    listed
        Published or the user's markers.
    k
        Neighbours per cell, the cell itself counted.
    seed
        Of the random graph and of the clusters.
    stratify
        Columns by whose levels the metrics are summed up, by name.
    ambient_fraction
        Share of each cell's counts that the model holds for background, or None.
    """

    latent: NDArray[np.floating]
    counts: sparse.csr_matrix
    symbols: Sequence[str]
    keys: Keys
    labels: Sequence[Column] = ()
    baseline: NDArray[np.floating] | None = None
    listed: Sequence[Marker] = ()
    k: int = 50
    seed: int = 0
    stratify: Mapping[str, Column] = field(default_factory=dict)
    ambient_fraction: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Answer:
    """The diagnostics.

    Attributes
    ----------
    cells
        One row a cell: the metrics, leaves and quality.
    summary
        Headlines, composite, baseline, counts of leaves, tables by group; plain values, NaN as None.
    """

    cells: pd.DataFrame
    summary: dict[str, Any]


def diagnose(question: Question, progress: Progress = lambda share, text: None) -> Answer:
    """Compute everything.

    Raises
    ------
    DataError
        Where there are too few markers.
    """
    progress(0.02, "choosing markers")
    expression = normalised(question.counts)
    markers = select_markers(
        expression, question.symbols, listed=question.listed, labels=question.labels or _clusters(question), within=question.keys.dataset
    )
    profiles = Profiles(expression[:, markers.union])
    progress(0.1, "looking for neighbours")
    edges = graph_edges(question.latent, question.k, question.seed)
    metrics = cell_metrics(profiles, edges, question.keys, progress=lambda share: progress(0.15 + 0.4 * share, "correlating neighbours"))
    other = None
    if question.baseline is not None:
        progress(0.55, "correlating neighbours without integration")
        before = graph_edges(question.baseline, question.k, question.seed)
        words = "correlating neighbours without integration"
        other = cell_metrics(profiles, before, question.keys, progress=lambda share: progress(0.55 + 0.25 * share, words))
    progress(0.82, "random neighbours")
    random = averages(profiles, random_edges(edges.degree, question.seed), Keys(question.keys.library, question.keys.dataset))
    groups = {
        name: averages(Profiles(expression[:, columns]), edges, question.keys) for name, columns in markers.groups.items() if name not in {"union", "cell type"}
    }
    progress(0.95, "summing up")
    return _sum_up(question, markers, edges, metrics, other, random, groups)


def graph_edges(points: NDArray[np.floating], k: int, seed: int) -> Edges:
    """Return UMAP's symmetric graph of an embedding without its diagonal."""
    from cellweave.core.analysis.layout import fuzzy_graph

    near = find_neighbours(points, k - 1, seed=seed)
    return Edges.of_graph(fuzzy_graph(near, k))


def _clusters(question: Question) -> list[Column]:
    """Cluster unlabelled cells by the data without integration, each data set (or library) for itself."""
    from cellweave.core.analysis.baseline import baseline_pca
    from cellweave.core.analysis.clusters import leiden
    from cellweave.core.analysis.layout import fuzzy_graph

    strata = question.keys.dataset or question.keys.library
    codes = np.full(question.counts.shape[0], -1, dtype=np.int64)
    levels: list[str] = []
    groups = [np.arange(len(codes))] if strata is None else [np.flatnonzero(strata.codes == code) for code in range(len(strata.levels))]
    for cells in groups:
        if len(cells) < SMALLEST_CLUSTERED:
            continue
        points = baseline_pca(question.counts[cells], seed=question.seed)
        found = leiden(fuzzy_graph(find_neighbours(points, 14, seed=question.seed), 15), seed=question.seed)
        codes[cells] = found + len(levels)
        levels += [f"{len(levels)}:{number}" for number in range(int(found.max()) + 1)]
    if question.keys.dataset is not None or strata is None:
        return [Column(codes, tuple(levels))] if levels else []
    # Clusters of one library are compared with each other, not with those of the next.
    columns = []
    for cells in groups:
        own = np.full(len(codes), -1, dtype=np.int64)
        own[cells] = codes[cells]
        columns.append(Column(own, tuple(levels)))
    return columns if levels else []


def _sum_up(
    question: Question,
    markers: MarkerSet,
    edges: Edges,
    metrics: dict[str, NDArray[np.generic]],
    other: dict[str, NDArray[np.generic]] | None,
    random: Mapping[str, NDArray[np.float64]],
    groups: Mapping[str, Mapping[str, NDArray[np.float64]]],
) -> Answer:
    keys = question.keys
    across = _across(metrics)
    headline = summary.headlines(metrics, keys)
    if across and other is not None:
        name = f"corr_avg_{across}"
        headline["integration_failure_rate"] = summary.failure_rate(metrics[name], [metrics[name], other[name]])
    cells: dict[str, Any] = dict(metrics)
    found: dict[str, Any] = {
        "n_cells": edges.n_cells,
        "k": question.k,
        "markers": {"n": len(markers.union), "listed": markers.n_listed, "found_in_data": markers.n_found, "groups": _named(markers, question.symbols)},
        "headline": headline,
        "composite": summary.composite(headline),
        "random": {name: _middle(values) for name, values in random.items()},
        "groups": {group: {name: _middle(values) for name, values in by_name.items()} for group, by_name in groups.items()},
        "penetration": summary.penetration(metrics, keys),
        "composition": _composition(edges, keys),
        "across": across,
    }
    if other is not None:
        base = summary.headlines(other, keys)
        found["baseline"] = {"headline": base, "composite": summary.composite(base)}
    if keys.library is not None:
        others = None
        if other is not None and "corr_avg_cross_dataset" in other:
            joined = summary.connects(other["corr_avg_cross_dataset"], other["n_neighbours_cross_dataset"])
            others = failures.OtherModels(joined, joined)
        leaves = failures.classify(metrics, random=random, groups=groups, others=others)
        cells |= leaves.levels
        lineages = {name: values["corr_avg_same_library"] for name, values in groups.items() if name.startswith("lineage:")}
        cells |= failures.cell_quality(metrics, keys.library, lineages=lineages, ambient_fraction=question.ambient_fraction)
        found["thresholds"] = {"high": leaves.threshold_high, "spread": leaves.threshold_spread}
        found["leaves"] = {level: leaf_counts(values) for level, values in leaves.levels.items()}
        found["quality"] = leaf_counts(np.asarray(cells["quality"]))
        if other is not None:
            before = failures.classify(other, random=random, threshold_high=leaves.threshold_high, threshold_spread=leaves.threshold_spread)
            found["baseline"]["leaves"] = {level: leaf_counts(values) for level, values in before.levels.items()}
    cells |= {f"random_{name}": values for name, values in random.items()}
    found["strata"] = {name: _plain_table(summary.stratified_summary(metrics, column)) for name, column in question.stratify.items()}
    return Answer(pd.DataFrame(cells), plain(found))


def _across(metrics: Mapping[str, Any]) -> str:
    """Return the kind of neighbours that an integration is about: other data sets, else other libraries, else other technical levels."""
    for name in ("cross_dataset", "cross_library", "between_libraries", "cross_technical"):
        if f"corr_avg_{name}" in metrics:
            return name
    return ""


def leaf_counts(values: NDArray[np.generic]) -> dict[str, int]:
    """Return how many cells each leaf has, the most frequent first."""
    names, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {str(names[place]): int(counts[place]) for place in order}


def _named(markers: MarkerSet, symbols: Sequence[str]) -> dict[str, list[str]]:
    return {name: [str(symbols[column]) for column in columns] for name, columns in markers.groups.items()}


def _composition(edges: Edges, keys: Keys) -> list[dict[str, Any]]:
    """Return the mean share of each level among the neighbours of the cells of each level."""
    rows = []
    named = {"library": keys.library, "dataset": keys.dataset, **keys.technical}
    for name, column in named.items():
        if column is None:
            continue
        shares = summary.composition(edges.row, edges.column, edges.weight, column)
        for code in np.unique(column.codes[column.codes >= 0]):
            inside = (column.codes == code) & np.isfinite(shares[:, 0])
            mean = shares[inside].mean(axis=0) if inside.any() else np.full(len(column.levels), np.nan)
            rows.append({"key": name, "group": column.levels[code], "shares": dict(zip(column.levels, mean.tolist(), strict=True))})
    return rows


def _middle(values: NDArray[np.generic]) -> float:
    numbers = np.asarray(values, dtype=np.float64)
    numbers = numbers[np.isfinite(numbers)]
    return float(np.median(numbers)) if len(numbers) else math.nan


def _plain_table(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict(orient="records")]


def plain(value: Any) -> Any:
    """Return plain values that JSON holds: NaN and infinity become None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
