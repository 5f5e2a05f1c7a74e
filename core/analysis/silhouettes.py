"""Silhouettes of labels, of batches within labels, and of isolated labels (Rousseeuw 1987; scib-metrics 0.5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]
#: Distances held at once.
BLOCK_ELEMENTS = 8_000_000
Report = Callable[[float], None]


def silhouette_samples(
    points: NDArray[np.floating], codes: Codes, *, others: str = "nearest", cosine: bool = False, progress: Report | None = None
) -> NDArray[np.float64]:
    """Return the silhouette of each cell.

    ``(b - a) / max(a, b)``, where ``a`` is the mean distance to the other cells of its own group and ``b`` that to other groups.

    Parameters
    ----------
    points
        ``(n_cells, n_dimensions)``.
    codes
        Group of each cell, ``(n_cells,)``, none missing, at least two groups.
    others
        ``"nearest"``: ``b`` is to the nearest other group, as usual; ``"mean"``: to all cells of other groups, as BRAS has it.
    cosine
        Take one minus the cosine of the angle for the distance, instead of the Euclidean distance.
    progress
        Called with the share that is done.

    Returns
    -------
    numpy.ndarray
        ``(n_cells,)`` between -1 and 1; 0 for a cell that is alone in its group.
    """
    _, codes = np.unique(codes, return_inverse=True)
    sizes = np.bincount(codes)
    member = np.zeros((len(codes), len(sizes)))
    member[np.arange(len(codes)), codes] = 1.0
    found = np.empty(len(codes))
    for rows, distances in _distances(points, cosine=cosine):
        sums = distances @ member
        own = codes[rows]
        here = np.arange(len(own))
        within = sums[here, own] / np.maximum(sizes[own] - 1, 1)
        sums[here, own] = 0.0 if others == "mean" else np.inf
        between = sums.sum(axis=1) / (len(codes) - sizes[own]) if others == "mean" else (sums / sizes).min(axis=1)
        largest = np.maximum(within, between)
        value = np.divide(between - within, largest, out=np.zeros_like(within), where=largest > 0)
        found[rows] = np.where(sizes[own] > 1, value, 0.0)
        if progress is not None:
            progress(rows.stop / len(codes))
    return found


def _distances(points: NDArray[np.floating], *, cosine: bool) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield the distances of blocks of cells to all cells."""
    points = np.asarray(points, dtype=np.float64)
    if cosine:
        length = np.linalg.norm(points, axis=1, keepdims=True)
        points = np.divide(points, length, out=np.zeros_like(points), where=length > 0)
    else:
        points = points - points.mean(axis=0)
    squares = (points**2).sum(axis=1)
    rows = max(1, BLOCK_ELEMENTS // len(points))
    for start in range(0, len(points), rows):
        stop = min(start + rows, len(points))
        products = points[start:stop] @ points.T
        if cosine:
            np.subtract(1.0, products, out=products)
            np.maximum(products, 0.0, out=products)
        else:
            products *= -2.0
            products += squares
            products += squares[start:stop, None]
            np.maximum(products, 0.0, out=products)
            np.sqrt(products, out=products)
        products[np.arange(stop - start), np.arange(start, stop)] = 0.0  # exactly, where rounding has left something
        yield slice(start, stop), products


def silhouette_label(samples: NDArray[np.float64]) -> float:
    """Return the mean silhouette of the labels, scaled from 0 (wrong) over 0.5 (overlapping) to 1 (apart)."""
    return float((samples.mean() + 1) / 2)


def silhouette_batch(points: NDArray[np.floating], labels: Codes, batch: Codes, *, bras: bool = False, progress: Report | None = None) -> float:
    """Return one minus the absolute silhouette of the batches within each label, mean over cells and then over labels.

    Parameters
    ----------
    points
        ``(n_cells, n_dimensions)``.
    labels, batch
        Codes of each cell, ``(n_cells,)``, none missing. Labels of a single batch, or with as many batches as cells, do not count.
    bras
        Compare with the mean over all other batches by the angle (Rautenstrauch and Ohler 2025), because the nearest
        other batch hides effects that only part of the batches have.
    progress
        Called with the share that is done.

    Returns
    -------
    float
        Between 0 and 1; NaN where no label counts.
    """
    found, done = [], 0
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        n_batches = len(np.unique(batch[rows]))
        if 1 < n_batches < len(rows):
            samples = silhouette_samples(points[rows], batch[rows], others="mean" if bras else "nearest", cosine=bras)
            found.append(float((1 - np.abs(samples)).mean()))
        done += len(rows)
        if progress is not None:
            progress(done / len(labels))
    return float(np.mean(found)) if found else float("nan")


def isolated_labels(samples: NDArray[np.float64], labels: Codes, batch: Codes) -> float:
    """Return the mean scaled silhouette of the labels that the fewest batches have.

    Parameters
    ----------
    samples
        Silhouette of each cell among the labels, ``(n_cells,)``.
    labels, batch
        Codes of each cell, ``(n_cells,)``, none missing.
    """
    return float(np.mean([(samples[labels == label].mean() + 1) / 2 for label in fewest_batches(labels, batch)]))


def fewest_batches(labels: Codes, batch: Codes) -> Codes:
    """Return the labels that the fewest batches have; both are ``(n_cells,)``, none missing."""
    pairs = np.unique(np.column_stack([labels, batch]), axis=0)
    names, n_batches = np.unique(pairs[:, 0], return_counts=True)
    return np.asarray(names[n_batches == n_batches.min()], dtype=np.int64)
