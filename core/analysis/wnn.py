"""Weighted nearest neighbours (Hao et al., Cell 184 (2021) 3573-3587): one neighbourhood of each cell from what several modalities say of it.

How much a modality counts in a cell follows from how well its neighbours in that modality tell where it lies there, against its neighbours in the
others. With more than two modalities the best of the others is compared with, as Seurat does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from cellweave.core.analysis.neighbours import Neighbours, find_neighbours

#: Neighbours in one modality that tell where a cell lies, and that are looked at when the joint neighbours are chosen.
TELLING, LOOKED_AT = 20, 200
#: Cells that share the fewest neighbours with a cell: their mean distance is the width of its kernel.
FARTHEST = 20
EPSILON, LARGEST = 1e-4, 200.0
BLOCK = 256
Points = NDArray[np.float64]


@dataclass(frozen=True)
class _Modality:
    """Points of unit length ``(n_cells, n_dimensions)``, their neighbours, the distance of the nearest, and the width of the kernel beyond it."""

    points: Points
    near: Neighbours
    nearest: NDArray[np.float64]
    width: NDArray[np.float64]

    def kernel(self, distance: NDArray[np.float64], rows: slice) -> NDArray[np.float64]:
        """Return how alike cells at some distances are, ``(n_rows,)`` or ``(n_rows, n)``: 1 up to the nearest neighbour."""
        shape = (-1, *[1] * (distance.ndim - 1))
        return np.exp(-np.maximum(distance - self.nearest[rows].reshape(shape), 0) / self.width[rows].reshape(shape))


def weighted_neighbours(
    points: Sequence[NDArray[np.floating]], k: int, *, seed: int = 0, progress: Callable[[float], None] = lambda share: None
) -> tuple[Neighbours, NDArray[np.float64]]:
    """Find the joint nearest neighbours of every cell.

    Parameters
    ----------
    points
        What each modality says of the cells, ``(n_cells, n_dimensions)``, finite; lengths are set to 1 first.
    k
        Neighbours wanted; cut to what there are.
    seed
        Of the approximate search in many cells.
    progress
        Told the share that is done.

    Returns
    -------
    neighbours
        ``(n_cells, k)``; the distance is ``sqrt((1 - affinity) / 2)``, as in Seurat.
    weights
        How much each modality counts in each cell, ``(n_cells, n_modalities)``, rows sum to 1.
    """
    n_cells = len(points[0])
    modalities = []
    for number, each in enumerate(points):
        modalities.append(_prepare(np.asarray(each, dtype=np.float64), max(LOOKED_AT, k), seed))
        progress(0.6 * (number + 1) / len(points))
    weights = _weights(modalities)
    progress(0.7)
    k = min(k, n_cells - 1)
    indices, distances = np.empty((n_cells, k), np.int32), np.empty((n_cells, k), np.float32)
    for start in range(0, n_cells, BLOCK):
        rows = slice(start, min(start + BLOCK, n_cells))
        indices[rows], distances[rows] = _joint(modalities, weights, rows, k)
        progress(0.7 + 0.3 * rows.stop / n_cells)
    return Neighbours(indices, distances), weights


def _prepare(points: Points, looked_at: int, seed: int) -> _Modality:
    length = np.linalg.norm(points, axis=1, keepdims=True)
    unit = points / np.where(length > 0, length, 1.0)
    near = find_neighbours(unit, looked_at, seed=seed)
    nearest = near.distances[:, 0].astype(np.float64)
    return _Modality(unit, near, nearest, np.maximum(_far(unit, near.nearest(TELLING)) - nearest, 1e-12))


def _far(points: Points, near: Neighbours) -> NDArray[np.float64]:
    """Return the mean distance to the cells whose neighbourhoods overlap least with that of each cell, but do overlap; the farther of equals first."""
    own = near.with_self().indices
    n_cells, size = own.shape
    adjacent = sparse.csr_matrix((np.ones(own.size, np.float32), own.ravel(), np.arange(0, own.size + 1, size)), shape=(n_cells, n_cells))
    others = adjacent.T.tocsr()
    found = np.empty(n_cells)
    for start in range(0, n_cells, 8 * BLOCK):
        stop = min(start + 8 * BLOCK, n_cells)
        shared = sparse.coo_matrix(adjacent[start:stop] @ others)
        different = shared.col != shared.row + start
        row, column, both = shared.row[different], shared.col[different], shared.data[different]
        distance = np.linalg.norm(points[row + start] - points[column], axis=1)
        order = np.lexsort((-distance, both / (2 * size - both), row))
        row, distance = row[order], distance[order]
        counts = np.bincount(row, minlength=stop - start)
        place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        kept = place < FARTHEST
        found[start:stop] = np.bincount(row[kept], distance[kept], minlength=stop - start) / np.minimum(counts, FARTHEST)
    return found


def _weights(modalities: Sequence[_Modality]) -> NDArray[np.float64]:
    """Return the weights of the modalities: a softmax of how much better each tells a cell by its own neighbours than by those of another."""
    scores = []
    for own in modalities:
        told = []
        for other in modalities:
            by = other.near.indices[:, :TELLING]
            distance = np.concatenate([
                np.linalg.norm(own.points[start : start + BLOCK] - own.points[by[start : start + BLOCK]].mean(axis=1), axis=1)
                for start in range(0, len(by), BLOCK)
            ])  # fmt: skip
            told.append(own.kernel(distance, slice(None)))
        within = next(value for value, other in zip(told, modalities, strict=True) if other is own)
        across = [value for value, other in zip(told, modalities, strict=True) if other is not own]
        scores.append(np.minimum(within / (np.max(across, axis=0) + EPSILON), LARGEST) if across else np.ones(len(within)))
    score = np.stack(scores, axis=1)
    raised = np.exp(score - score.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def _joint(modalities: Sequence[_Modality], weights: NDArray[np.float64], rows: slice, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return the ``k`` cells that are most alike over all modalities, among the neighbours in any of them."""
    candidates = np.sort(np.concatenate([each.near.indices[rows] for each in modalities], axis=1), axis=1)
    affinity = np.zeros(candidates.shape)
    for number, each in enumerate(modalities):
        alike = np.einsum("id,ijd->ij", each.points[rows], each.points[candidates])
        distance = np.sqrt(np.maximum(2 - 2 * alike, 0))  # of points of length 1
        affinity += weights[rows, number, None] * each.kernel(distance, rows)
    affinity[:, 1:][candidates[:, 1:] == candidates[:, :-1]] = -1  # once each
    chosen = np.argsort(-affinity, axis=1, kind="stable")[:, :k]
    distance = np.sqrt(np.clip((1 - np.take_along_axis(affinity, chosen, axis=1)) / 2, 0, 1))
    return np.take_along_axis(candidates, chosen, axis=1).astype(np.int32), distance.astype(np.float32)
