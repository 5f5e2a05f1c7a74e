"""How well the modalities of a cell lie together in the latent space, and how well one is told from another (He et al. 2024, evaluation).

Every pair of modalities is judged on the cells that were measured in both, by the latents that each modality alone gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellweave.core.analysis.silhouettes import silhouette_samples

#: Cells of a pair that are looked at; FOSCTTM compares each with each.
MOST_CELLS = 5000
FEWEST = 10
NEIGHBOURS = 5
BLOCK_ELEMENTS = 1 << 24
#: Steps between 0 and 1 into which probabilities are counted for the area under the ROC curve.
BINS = 1 << 16


@dataclass(frozen=True)
class PairScores:
    """How two modalities lie together.

    Attributes
    ----------
    first, second
        The modalities.
    n_cells
        Cells measured in both that were looked at.
    foscttm
        1 minus the mean fraction of cells closer than the true match, both ways; 1 is best, 0.5 is chance.
    transfer
        Share of cells whose label is right when it is told from the other modality's 5 nearest cells, both ways; None without labels.
    mixing
        1 minus the mean absolute silhouette of the modalities; 1 is best.
    """

    first: str
    second: str
    n_cells: int
    foscttm: float
    transfer: float | None
    mixing: float


def foscttm(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Return 1 minus the mean fraction of samples closer than the true match.

    Parameters
    ----------
    first, second
        The same cells seen by two modalities, each ``(n_cells, n_dimensions)``.

    Returns
    -------
    float
        For every cell of ``first``, the share of the other cells of ``second`` that are strictly closer (Euclidean) than its own; 1 minus the mean.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(a) < 2:
        return float("nan")
    middle = (a.mean(0) + b.mean(0)) / 2  # products of numbers near 0 lose less
    a, b = a - middle, b - middle
    squares, rows = (b**2).sum(1), max(1, BLOCK_ELEMENTS // len(b))
    closer = 0
    for start in range(0, len(a), rows):
        part = a[start : start + rows]
        distance = squares - 2 * part @ b.T  # without the part's own square, which is the same for all
        own = distance[np.arange(len(part)), np.arange(start, start + len(part))]
        closer += int((distance < own[:, None]).sum())
    return 1 - closer / (len(a) * (len(a) - 1))


def transfer_labels(
    known: NDArray[np.floating], codes: NDArray[np.integer], asked: NDArray[np.floating], *, neighbours: int = NEIGHBOURS, n_levels: int | None = None
) -> NDArray[np.float64]:
    """Return the share of each label among the nearest cells, weighed by the inverse of their distance.

    Parameters
    ----------
    known
        Cells whose label is known, ``(n_known, n_dimensions)``.
    codes
        Their labels, ``(n_known,)``.
    asked
        Cells whose label is asked, ``(n_asked, n_dimensions)``.
    neighbours
        How many nearest cells vote.
    n_levels
        Number of labels; None for one more than the largest code.

    Returns
    -------
    ndarray
        ``(n_asked, n_levels)``, rows sum to 1. A cell at distance 0 outvotes all at others.
    """
    from sklearn.neighbors import NearestNeighbors

    levels = int(codes.max()) + 1 if n_levels is None else n_levels
    found = NearestNeighbors(n_neighbors=min(neighbours, len(known))).fit(known)
    distance, index = found.kneighbors(asked)
    same = distance == 0
    with np.errstate(divide="ignore"):
        weight = np.where(same.any(1, keepdims=True), same.astype(float), 1 / distance)
    votes = np.zeros((len(asked), levels))
    np.add.at(votes, (np.arange(len(asked))[:, None], codes[index]), weight)
    return votes / votes.sum(1, keepdims=True)


def vote(
    known: NDArray[np.floating], labels: NDArray[Any], asked: NDArray[np.floating], *, neighbours: int = NEIGHBOURS
) -> tuple[NDArray[np.object_], NDArray[np.float64]]:
    """Return the label that each asked cell gets from the labelled cells nearest to it, and the share of the vote that it got.

    Parameters
    ----------
    known, asked, neighbours
        As in :func:`transfer_labels`.
    labels
        Label of each known cell.

    Returns
    -------
    labels, shares
        Each ``(n_asked,)``.
    """
    names, codes = np.unique(labels, return_inverse=True)
    if not len(asked):
        return np.zeros(0, dtype=object), np.zeros(0)
    votes = transfer_labels(known, codes.astype(np.int64), asked, neighbours=neighbours, n_levels=len(names))
    return names[votes.argmax(1)].astype(object), votes.max(1)


def label_transfer(first: NDArray[np.floating], second: NDArray[np.floating], codes: NDArray[np.integer]) -> float:
    """Return the share (micro F1) of cells whose label is right when told from ``first`` to ``second``; cells with code -1 are left out."""
    labelled = codes >= 0
    if labelled.sum() < FEWEST:
        return float("nan")
    votes = transfer_labels(first[labelled], codes[labelled], second[labelled])
    return float((votes.argmax(1) == codes[labelled]).mean())


def modality_mixing(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Return 1 minus the mean absolute silhouette of two modalities, 1 where they lie on each other."""
    codes = np.repeat([0, 1], [len(first), len(second)])
    return float(1 - np.abs(silhouette_samples(np.concatenate([first, second]), codes)).mean())


def pair_scores(
    latents: Mapping[str, NDArray[np.floating]], codes: NDArray[np.integer] | None, *, seed: int = 0, progress: Callable[[float], None] = lambda share: None
) -> list[PairScores]:
    """Judge every pair of modalities that some cells have together.

    Parameters
    ----------
    latents
        c of each modality alone, ``(n_cells, n_dimensions)``, NaN where it was not measured.
    codes
        Label of each cell, ``(n_cells,)``, -1 for none; None without labels.
    seed
        Fixes the sample where a pair has more than :data:`MOST_CELLS` cells.
    progress
        Told the share that is done.
    """
    pairs, found = list(combinations(latents, 2)), []
    for number, (first, second) in enumerate(pairs):
        rows = np.flatnonzero(np.isfinite(latents[first]).all(1) & np.isfinite(latents[second]).all(1))
        if len(rows) >= FEWEST:
            if len(rows) > MOST_CELLS:
                rows = np.sort(np.random.default_rng([seed, 23]).choice(rows, MOST_CELLS, replace=False))
            a, b = np.asarray(latents[first][rows], dtype=np.float64), np.asarray(latents[second][rows], dtype=np.float64)
            transfer = None
            if codes is not None and (codes[rows] >= 0).sum() >= FEWEST:
                transfer = (label_transfer(a, b, codes[rows]) + label_transfer(b, a, codes[rows])) / 2
            found.append(PairScores(first, second, len(rows), (foscttm(a, b) + foscttm(b, a)) / 2, transfer, modality_mixing(a, b)))
        progress((number + 1) / len(pairs))
    return found


def alignment_task(arguments: Mapping[str, Any], progress: Callable[..., None]) -> dict[str, Any]:
    """Judge the modalities of a run: ``latents`` (path by modality), ``codes`` (path or None), ``seed`` -> ``pairs``, as the analysis process asks."""
    from cellweave.core.analysis.arrays import load_array

    latents: dict[str, Any] = {name: load_array(Path(path), mapped=True) for name, path in arguments["latents"].items()}
    codes = np.asarray(load_array(Path(arguments["codes"]))) if arguments.get("codes") else None
    found = pair_scores(latents, codes, seed=int(arguments.get("seed", 0)), progress=lambda share: progress(share, "comparing modalities"))
    return {"pairs": [asdict(pair) for pair in found]}


class Correlation:
    """Pearson's correlation of all measured values of a matrix, taken in a few cells at a time."""

    def __init__(self) -> None:
        self.n, self.sums = 0, np.zeros(5)

    def add(self, truth: NDArray[np.floating], guess: NDArray[np.floating], mask: NDArray[np.bool_] | None = None) -> None:
        """Take in values of some cells, each ``(n_cells, n_features)``; ``mask`` says which were measured."""
        x, y = (np.asarray(part, dtype=np.float64)[slice(None) if mask is None else mask].ravel() for part in (truth, guess))
        self.n += x.size
        self.sums += [x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()]

    @property
    def value(self) -> float:
        """The correlation; NaN where one side has no spread."""
        if not self.n:
            return float("nan")
        x, y, xx, yy, xy = self.sums / self.n
        spread = (xx - x * x) * (yy - y * y)
        return float((xy - x * y) / np.sqrt(spread)) if spread > 0 else float("nan")


class RocArea:
    """Area under the ROC curve of probabilities against 0 and 1, taken in a few cells at a time by counting them in 65,536 steps."""

    def __init__(self) -> None:
        self.counts = np.zeros((2, BINS), dtype=np.int64)

    def add(self, truth: NDArray[np.floating], guess: NDArray[np.floating], mask: NDArray[np.bool_] | None = None) -> None:
        """Take in values of some cells, each ``(n_cells, n_features)``; ``mask`` says which were measured."""
        x, y = (np.asarray(part)[slice(None) if mask is None else mask].ravel() for part in (truth, guess))
        place = np.clip((y * BINS).astype(np.int64), 0, BINS - 1)
        for side in (0, 1):
            self.counts[side] += np.bincount(place[(x > 0.5) == bool(side)], minlength=BINS)

    @property
    def value(self) -> float:
        """The area: the chance that an open one has the higher probability, ties counted half; NaN where all are the same."""
        closed, opened = self.counts.astype(np.float64)
        if not closed.sum() or not opened.sum():
            return float("nan")
        below = np.cumsum(closed) - closed
        return float((opened * (below + closed / 2)).sum() / (closed.sum() * opened.sum()))
