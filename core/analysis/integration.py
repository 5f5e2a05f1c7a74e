"""Integration metrics: how well batches mix and how much biology is kept, in one embedding or several.

Definitions as in scib-metrics 0.5 and the benchmark of Luecken et al., Nature Methods 19 (2022) 41-50. Every metric lies between 0 and 1
and is better when it is higher. The batch score and the biology score are means of their five metrics each, the total is
0.4 times the first and 0.6 times the second. Beside the ten stand BRAS, which repairs the silhouette of batches, and the F1 of
isolated labels, which scMIB's score wants; neither is part of the scores. The principal component regression is given against the baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cellweave.core.analysis import mixing, silhouettes
from cellweave.core.analysis.clusters import leiden
from cellweave.core.analysis.neighbours import Neighbours, find_neighbours

Codes = NDArray[np.int64]
Report = Callable[[float, str], None]
#: Name of the embedding without integration.
BASELINE = "baseline"
RESOLUTIONS = tuple(round(0.2 * step, 1) for step in range(1, 11))
BATCH_WEIGHT, BIO_WEIGHT = 0.4, 0.6


@dataclass(frozen=True)
class MetricInfo:
    """What a metric means.

    Attributes
    ----------
    title, help
        For tables, tooltips and figures.
    about
        ``"batch"`` mixing, ``"bio"``logy kept, how ``"modality"`` and modality agree, or the ``"total"``.
    needs
        Columns it needs: ``"batch"``, ``"labels"``, or both.
    scored
        Whether it counts in the score of what it is about.
    """

    title: str
    help: str
    about: Literal["batch", "bio", "modality", "total"]
    needs: tuple[str, ...]
    scored: bool = True


_BOTH = ("batch", "labels")
METRICS: dict[str, MetricInfo] = {
    "ilisi": MetricInfo("iLISI", "How many batches the neighbours of a cell come from; 1 is all batches in equal shares.", "batch", ("batch",)),
    "kbet": MetricInfo("kBET", "Share of cells whose neighbours of the same label are mixed as all cells of that label are.", "batch", ("batch",)),
    "silhouette_batch": MetricInfo("Batch silhouette", "1 where the batches of each label cannot be told apart.", "batch", _BOTH),
    "graph_connectivity": MetricInfo("Graph connectivity", "1 where all cells of a label hang together in the neighbour graph.", "batch", _BOTH),
    "pcr": MetricInfo("PCR comparison", "How much less of the variance the batch explains than without integration.", "batch", ("batch",)),
    "bras": MetricInfo(
        "BRAS", "Batch silhouette against all other batches, which nested batch effects cannot deceive. Not in the scores.", "batch", _BOTH, scored=False
    ),
    "clisi": MetricInfo("cLISI", "1 where the neighbours of a cell are of its own label.", "bio", ("labels",)),
    "silhouette_label": MetricInfo("Label silhouette", "1 where labels lie far apart, 0.5 where they overlap.", "bio", ("labels",)),
    "isolated_labels": MetricInfo("Isolated labels", "Label silhouette of the labels that the fewest batches have.", "bio", _BOTH),
    "isolated_f1": MetricInfo(
        "Isolated labels F1", "How well a cluster holds just the labels that the fewest batches have, at the best of ten resolutions. In scMIB's score only.",
        "bio", _BOTH, scored=False,
    ),
    "nmi": MetricInfo("Leiden NMI", "Mutual information of labels and Leiden clusters, at the best of ten resolutions.", "bio", ("labels",)),
    "ari": MetricInfo("Leiden ARI", "Adjusted Rand index of labels and the same clusters.", "bio", ("labels",)),
}
SCORES: dict[str, MetricInfo] = {
    "batch_score": MetricInfo("Batch mixing", "Mean of the batch metrics.", "batch", ("batch",)),
    "bio_score": MetricInfo("Biology kept", "Mean of the biology metrics.", "bio", ("labels",)),
    "scib_total": MetricInfo("Total", "0.4 times batch mixing and 0.6 times biology kept (scIB).", "total", _BOTH),
}
ALL: dict[str, MetricInfo] = {**METRICS, **SCORES}


@dataclass(frozen=True)
class Embedding:
    """One embedding to be measured: ``name`` and ``points`` ``(n_cells, n_dimensions)``, finite."""

    name: str
    points: NDArray[np.floating]


def possible(batch: Codes | None, labels: Codes | None, names: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Return the metrics that these columns allow, and a sentence for each thing that cannot be measured.

    Parameters
    ----------
    batch, labels
        Codes of the cells that are measured, none missing; None where no column was named.
    names
        Metrics asked for; all where empty.
    """
    asked = list(names) or list(METRICS)
    notes, usable = [], set()
    for role, codes, what in (("batch", batch, "batch mixing"), ("labels", labels, "biology kept")):
        word = "batch" if role == "batch" else "label"
        if codes is None:
            notes.append(f"No column says which {word} a cell is of, so {what} is not measured.")
        elif len(np.unique(codes)) < 2:
            notes.append(f"All measured cells are of one {word}, so {what} is not measured.")
        else:
            usable.add(role)
    found = [name for name in METRICS if name in asked and set(METRICS[name].needs) <= usable]
    if "kbet" in found and "labels" not in usable:
        notes.append("kBET is taken over all cells at once, because there are no labels to take it within.")
    return found, notes


def stratified_rows(strata: Codes, limit: int, seed: int) -> NDArray[np.int64]:
    """Return rows of a seeded sample in which every stratum has its share, at least one cell each, in rising order.

    Parameters
    ----------
    strata
        Stratum of each cell, ``(n_cells,)``.
    limit
        Cells wanted; all cells where there are no more.
    seed
        Fixes the choice.
    """
    n_cells = len(strata)
    if n_cells <= limit:
        return np.arange(n_cells)
    _, codes, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    ideal = sizes * (limit / n_cells)
    wanted = np.clip(np.floor(ideal).astype(np.int64), 1, sizes)
    rest = limit - int(wanted.sum())
    if rest > 0:
        order = np.argsort(-(ideal - np.floor(ideal)), kind="stable")
        room = order[wanted[order] < sizes[order]][:rest]
        wanted[room] += 1
    # A random order of all cells, then the first of each stratum in it.
    shuffled = np.random.default_rng(seed).permutation(n_cells)
    by_stratum = shuffled[np.argsort(codes[shuffled], kind="stable")]
    first = np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(by_stratum[np.arange(n_cells) - first < np.repeat(wanted, sizes)])


def measure(
    embeddings: Sequence[Embedding],
    *,
    batch: Codes | None = None,
    labels: Codes | None = None,
    names: Sequence[str] = (),
    seed: int = 0,
    progress: Report | None = None,
) -> dict[str, Any]:
    """Measure embeddings of the same cells.

    Parameters
    ----------
    embeddings
        Those to be measured; the one named ``"baseline"`` is what the principal component regression compares with.
    batch, labels
        Codes of each cell, ``(n_cells,)``, none missing; None leaves out what needs them.
    names
        Metrics wanted (keys of ``METRICS``); all where empty.
    seed
        Of the neighbour search, the clusters and the diffusion maps.
    progress
        Called with the share that is done and a few words; may raise to end the work.

    Returns
    -------
    dict
        ``"values"``: by embedding and then by metric, with ``batch_score``, ``bio_score`` and ``scib_total``; ``"notes"``: sentences on
        what could not be measured.
    """
    chosen, notes = possible(batch, labels, names)
    base = next((each.points for each in embeddings if each.name == BASELINE), None)
    if "pcr" in chosen and base is None:
        chosen.remove("pcr")
        notes.append("The PCR comparison needs the embedding without integration, which this run does not have.")
    values: dict[str, dict[str, float]] = {}
    for number, each in enumerate(embeddings):

        def tell(share: float, text: str, start: int = number, name: str = each.name) -> None:
            if progress is not None:
                progress((start + share) / len(embeddings), f"{name}: {text}")

        found = _Measured(each.points, batch, labels, base, seed, tell).values(chosen)
        values[each.name] = found | scores_of(found)
    missing = sorted({name for name in chosen for found in values.values() if name not in found})
    notes += [f"{METRICS[name].title} has no value: no label is large enough and has cells of two batches." for name in missing]
    scored = {name for name, info in METRICS.items() if info.scored and any(name in found for found in values.values())}
    left_out = [METRICS[name].title for name, info in METRICS.items() if info.scored and name not in scored]
    if left_out and scored:
        notes.append(f"The scores are means without {', '.join(left_out)}; compare them only with runs measured in the same way.")
    return {"values": values, "notes": notes}


def measure_neighbours(
    near: Neighbours, names: Sequence[str], *, batch: Codes | None, labels: Codes | None, seed: int = 0, progress: Report | None = None
) -> dict[str, float]:
    """Measure cells of which only the neighbours are known; for metrics that need no more.

    Parameters
    ----------
    near
        Neighbours of each cell, without itself, as many as LISI looks at where there are so many cells.
    names
        Metrics that the columns allow (:func:`possible`).
    batch, labels, seed, progress
        As in :func:`measure`.

    Returns
    -------
    dict
        By metric, without those that have no value.
    """
    nowhere = np.zeros((len(near.indices), 0), dtype=np.float32)
    return _Measured(nowhere, batch, labels, None, seed, progress or (lambda share, text: None), near).values(names)


def scores_of(values: Mapping[str, float]) -> dict[str, float]:
    """Return the batch score, the biology score and, where both are there, scIB's total."""
    found = {}
    for about, name in (("batch", "batch_score"), ("bio", "bio_score")):
        parts = [values[metric] for metric, info in METRICS.items() if info.about == about and info.scored and metric in values]
        if parts:
            found[name] = float(np.mean(parts))
    if len(found) == 2:
        found["scib_total"] = BATCH_WEIGHT * found["batch_score"] + BIO_WEIGHT * found["bio_score"]
    return found


def batch_variance(points: NDArray[np.floating], batch: Codes) -> float:
    """Return the share of the variance that the batch explains.

    The principal component regression of Büttner et al. 2019 over all components: the R² of each component weighted by its variance
    is the variance between batches over the whole, whatever the axes, so that no components need to be found.
    """
    centred = np.asarray(points, dtype=np.float64) - np.mean(points, axis=0, dtype=np.float64)
    _, codes = np.unique(batch, return_inverse=True)
    sizes = np.bincount(codes)
    sums = np.stack([np.bincount(codes, column) for column in centred.T], axis=1)
    total = float((centred**2).sum())
    return float((sums**2 / sizes[:, None]).sum()) / total if total > 0 else 0.0


def pcr_comparison(before: NDArray[np.floating], after: NDArray[np.floating], batch: Codes) -> float:
    """Return how much less of the variance the batch explains after integration, as a share of before; never below 0."""
    first = batch_variance(before, batch)
    return max(0.0, (first - batch_variance(after, batch)) / first) if first > 0 else 0.0


def cluster_agreement(
    graph: Any, labels: Codes, *, isolated: Codes | None = None, seed: int = 0, progress: Report | None = None
) -> tuple[float, float, float]:
    """Return how Leiden clusters agree with labels, over resolutions of 0.2 to 2 in ten steps.

    Parameters
    ----------
    graph
        Of the neighbours.
    labels
        Codes of each cell, ``(n_cells,)``.
    isolated
        Labels whose F1 is wanted; None for none.
    seed, progress
        As in :func:`measure`.

    Returns
    -------
    nmi, ari, f1
        NMI and ARI at the resolution with the best NMI; the mean over the isolated labels of the best F1 of any cluster at any resolution, NaN
        without any.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    best, f1 = (-1.0, 0.0), np.zeros(0 if isolated is None else len(isolated))
    for number, resolution in enumerate(RESOLUTIONS):
        clusters = leiden(graph, resolution=resolution, seed=seed)
        nmi = float(normalized_mutual_info_score(labels, clusters))
        if nmi > best[0]:
            best = nmi, float(adjusted_rand_score(labels, clusters))
        for place, label in enumerate(() if isolated is None else isolated):
            f1[place] = max(f1[place], _best_f1(labels == label, clusters))
        if progress is not None:
            progress((number + 1) / len(RESOLUTIONS), f"clusters at resolution {resolution:g}")
    return *best, float(f1.mean()) if len(f1) else float("nan")


def _best_f1(wanted: NDArray[np.bool_], clusters: NDArray[np.integer]) -> float:
    """Return the F1 of the cluster that holds some cells best: 2 x both / (cluster + cells)."""
    _, codes = np.unique(clusters, return_inverse=True)
    both = np.bincount(codes[wanted], minlength=int(codes.max()) + 1)
    return float((2 * both / (np.bincount(codes) + wanted.sum())).max())


#: Which share of an embedding's time each part takes, roughly; for the progress alone.
_STEPS = {"neighbours": 0.2, "silhouettes": 0.4, "kbet": 0.2, "clusters": 0.2}


class _Measured:
    """One embedding, with what several metrics stand on computed once."""

    def __init__(
        self, points: NDArray[np.floating], batch: Codes | None, labels: Codes | None, base: NDArray[np.floating] | None, seed: int, tell: Report,
        near: Neighbours | None = None,
    ) -> None:  # fmt: skip
        self.points, self.batch, self.labels, self.base = points, batch, labels, base
        self.seed, self.tell, self.done = seed, tell, 0.0
        self._neighbours = near

    def values(self, chosen: Sequence[str]) -> dict[str, float]:
        found: dict[str, float] = {}
        wanted = set(chosen)
        if wanted & {"ilisi", "clisi", "graph_connectivity", "kbet", "nmi", "ari", "isolated_f1"}:
            self._part("neighbours", "looking for neighbours")
            self._near()
            self.done += _STEPS["neighbours"]
        if wanted & {"ilisi", "clisi", "graph_connectivity"}:
            self._part("silhouettes", "LISI")
            found |= self._by_neighbours(wanted)
        if "pcr" in wanted:
            assert self.base is not None and self.batch is not None
            found["pcr"] = pcr_comparison(self.base, self.points, self.batch)
        if wanted & {"silhouette_label", "isolated_labels", "silhouette_batch", "bras"}:
            found |= self._silhouettes(wanted)
            self.done += _STEPS["silhouettes"]
        if "kbet" in wanted:
            self._part("kbet", "kBET")
            found["kbet"] = self._kbet()
            self.done += _STEPS["kbet"]
        if wanted & {"nmi", "ari", "isolated_f1"}:
            found |= self._clusters(wanted)
        self.tell(1.0, "done")
        return {name: found[name] for name in METRICS if name in found and np.isfinite(found[name])}

    def _part(self, step: str, text: str, share: float = 0.0) -> None:
        self.tell(min(1.0, self.done + share * _STEPS[step]), text)

    def _near(self) -> Neighbours:
        if self._neighbours is None:
            wanted = mixing.LISI_NEIGHBOURS - 1
            self._neighbours = find_neighbours(
                self.points, wanted, seed=self.seed, progress=lambda share: self._part("neighbours", "looking for neighbours", share)
            )
        return self._neighbours

    def _by_neighbours(self, wanted: set[str]) -> dict[str, float]:
        found, near = {}, self._near()
        if "ilisi" in wanted and self.batch is not None:
            found["ilisi"] = mixing.ilisi(near, self.batch)
        if "clisi" in wanted and self.labels is not None:
            found["clisi"] = mixing.clisi(near, self.labels)
        if "graph_connectivity" in wanted and self.labels is not None:
            found["graph_connectivity"] = mixing.graph_connectivity(near, self.labels)
        return found

    def _silhouettes(self, wanted: set[str]) -> dict[str, float]:
        found: dict[str, float] = {}
        assert self.labels is not None
        if wanted & {"silhouette_label", "isolated_labels"}:
            samples = silhouettes.silhouette_samples(
                self.points, self.labels, progress=lambda share: self._part("silhouettes", "silhouettes of labels", share / 2)
            )
            found["silhouette_label"] = silhouettes.silhouette_label(samples)
            if "isolated_labels" in wanted and self.batch is not None:
                found["isolated_labels"] = silhouettes.isolated_labels(samples, self.labels, self.batch)
        for start, name in ((0.5, "silhouette_batch"), (0.75, "bras")):
            if name in wanted and self.batch is not None:
                found[name] = silhouettes.silhouette_batch(
                    self.points, self.labels, self.batch, bras=name == "bras",
                    progress=lambda share, start=start: self._part("silhouettes", "silhouettes of batches", start + share / 4),  # type: ignore[misc]
                )  # fmt: skip
        return {name: value for name, value in found.items() if name in wanted}

    def _kbet(self) -> float:
        assert self.batch is not None
        near = self._near().nearest(mixing.KBET_NEIGHBOURS - 1)
        if self.labels is None or len(np.unique(self.labels)) < 2:
            return mixing.kbet(near, self.batch)
        from cellweave.core.analysis.layout import fuzzy_graph

        by_label = mixing.kbet_per_label(fuzzy_graph(near, mixing.KBET_NEIGHBOURS), self.batch, self.labels, seed=self.seed)
        return float(np.mean(list(by_label.values()))) if by_label else float("nan")

    def _clusters(self, wanted: set[str]) -> dict[str, float]:
        from cellweave.core.analysis.layout import fuzzy_graph

        assert self.labels is not None
        graph = fuzzy_graph(self._near(), mixing.GRAPH_NEIGHBOURS)
        rare = silhouettes.fewest_batches(self.labels, self.batch) if "isolated_f1" in wanted and self.batch is not None else None
        values = cluster_agreement(graph, self.labels, isolated=rare, seed=self.seed, progress=lambda share, text: self._part("clusters", text, share))
        return {name: value for name, value in zip(("nmi", "ari", "isolated_f1"), values, strict=True) if name in wanted}
