"""UMAP from ready neighbours: the graph once, then layouts that start where the last one ended."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from cellweave.core.analysis.neighbours import Neighbours, find_neighbours

#: numba's ``workqueue`` threading layer ends the process where two threads enter it at once.
UMAP_LOCK = threading.Lock()
FIRST_EPOCHS, REFRESH_EPOCHS = 200, 50
Report = Callable[[float], None]


def default_epochs(n_cells: int) -> int:
    """Return the epochs that umap-learn takes where none are given."""
    return 500 if n_cells <= 10_000 else 200


def fuzzy_graph(neighbours: Neighbours, n_neighbors: int) -> sparse.csr_matrix:
    """Turn neighbours into UMAP's symmetric graph of memberships (McInnes, Healy and Melville 2018, section 3.1).

    Parameters
    ----------
    neighbours
        At least ``n_neighbors - 1`` neighbours per cell.
    n_neighbors
        Neighbours per cell, the cell itself counted, as in umap-learn and scanpy.

    Returns
    -------
    scipy.sparse.csr_matrix
        ``(n_cells, n_cells)`` float32, values in (0, 1].
    """
    from umap.umap_ import fuzzy_simplicial_set

    near = neighbours.nearest(max(1, n_neighbors - 1)).with_self()
    n_cells = len(near.indices)
    with UMAP_LOCK:
        graph = fuzzy_simplicial_set(
            sparse.csr_matrix((n_cells, 1)),  # only its number of rows is looked at, the neighbours being given
            near.k,
            np.random.RandomState(0),  # umap-learn asks for the old generator
            "euclidean",
            knn_indices=near.indices,
            knn_dists=near.distances,
        )[0]
    return sparse.csr_matrix(graph)


def initial_layout(points: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the first two principal components, scaled to UMAP's usual extent: ``(n_cells, 2)``."""
    centred = np.asarray(points, dtype=np.float64) - np.mean(points, axis=0, dtype=np.float64)
    if centred.shape[1] == 1:
        centred = np.hstack([centred, np.zeros_like(centred)])
    _, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, ::-1][:, :2]
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), [0, 1]] < 0, -1.0, 1.0)  # the sign is free: fix it
    plane = centred @ axes
    return (plane * (10.0 / max(float(np.abs(plane).max()), 1e-12))).astype(np.float32)


def lay_out(
    graph: sparse.csr_matrix,
    start: NDArray[np.floating],
    *,
    min_dist: float = 0.3,
    n_epochs: int | None = None,
    seed: int | None = 0,
    progress: Report | None = None,
) -> NDArray[np.float32]:
    """Lay out a graph in the plane.

    Parameters
    ----------
    graph
        From :func:`fuzzy_graph`; left as it is.
    start
        Where each cell begins, ``(n_cells, 2)``: :func:`initial_layout` or a previous layout.
    min_dist
        How tightly points may be packed.
    n_epochs
        Rounds; None takes :func:`default_epochs`.
    seed
        Makes the layout reproducible, in one thread; None uses all threads, and two layouts then differ in detail.
    progress
        Called with the share that is done, a few times a second; an exception raised in it ends the layout.

    Returns
    -------
    numpy.ndarray
        ``(n_cells, 2)`` float32.
    """
    from umap.umap_ import find_ab_params, simplicial_set_embedding

    n_cells = graph.shape[0]
    # Two points in one place can never part, and an extent of zero cannot be scaled.
    start = np.array(start, dtype=np.float64)
    jitter = np.random.default_rng(0 if seed is None else seed)
    start += jitter.normal(scale=1e-4 * max(float(np.ptp(start)), 1.0), size=start.shape)
    a, b = find_ab_params(1.0, min_dist)
    bar = _ProgressFile(progress)
    with UMAP_LOCK:
        layout = simplicial_set_embedding(
            None,
            graph.tocsr(copy=True),
            2,
            1.0,
            a,
            b,
            1.0,
            5,
            n_epochs or default_epochs(n_cells),
            start,
            np.random.RandomState(seed),  # umap-learn asks for the old generator
            "euclidean",
            {},
            densmap=False,
            densmap_kwds={},
            output_dens=False,
            parallel=seed is None,
            tqdm_kwds={
                "disable": progress is None, "file": bar, "mininterval": 0.1, "bar_format": "{n_fmt}/{total_fmt}\n", "ascii": True,
            },
        )[0]
    bar.raise_if_stopped()
    return np.ascontiguousarray(layout, dtype=np.float32)


class _ProgressFile(io.TextIOBase):
    """Reads what tqdm prints and reports the share that is done.

    tqdm's own monitor thread may write here as well, where an exception would be lost: it is kept and raised
    at the next write, or at the end.
    """

    def __init__(self, report: Report | None) -> None:
        self._report = report
        self._stopped: BaseException | None = None

    def write(self, text: str) -> int:
        self.raise_if_stopped()
        found = re.search(r"(\d+)/(\d+)", text)
        if found and self._report is not None:
            try:
                self._report(int(found[1]) / max(1, int(found[2])))
            except BaseException as error:
                self._stopped = error
                raise
        return len(text)

    def raise_if_stopped(self) -> None:
        if self._stopped is not None:
            raise self._stopped


def align(layout: NDArray[np.floating], reference: NDArray[np.floating]) -> NDArray[np.float32]:
    """Turn, mirror and move a layout so that it lies on a reference as well as it can.

    UMAP's picture has no fixed orientation: without this step a picture that is refreshed may drift or turn although
    nothing changed. Distances within the layout stay as they are (orthogonal Procrustes, Schönemann 1966).

    Parameters
    ----------
    layout, reference
        ``(n_cells, 2)`` each, the same cells.

    Returns
    -------
    numpy.ndarray
        The moved layout, float32.
    """
    middle, target = layout.mean(axis=0), reference.mean(axis=0)
    left, _, right = np.linalg.svd((layout - middle).T @ (reference - target))
    return np.asarray((layout - middle) @ (left @ right) + target, dtype=np.float32)


def refresh(
    points: NDArray[np.floating],
    previous: NDArray[np.floating] | None,
    *,
    n_neighbors: int = 15,
    min_dist: float = 0.3,
    n_epochs: int | None = None,
) -> NDArray[np.float32]:
    """Return the live embedding of a sample of cells whose latent has moved.

    Parameters
    ----------
    points
        Latent of the sample, ``(n_cells, n_latent)``, at most some ten thousand cells.
    previous
        The layout shown now, ``(n_cells, 2)``, or None the first time.
    n_neighbors, min_dist
        As in the spec.
    n_epochs
        None takes 200 rounds the first time and 50 afterwards: beyond that nothing changes that one can see.

    Returns
    -------
    numpy.ndarray
        ``(n_cells, 2)`` float32, turned so that it lies on the previous layout.
    """
    if n_epochs is None:
        n_epochs = FIRST_EPOCHS if previous is None else REFRESH_EPOCHS
    graph = fuzzy_graph(find_neighbours(points, n_neighbors - 1), n_neighbors)
    start = initial_layout(points) if previous is None else previous
    layout = lay_out(graph, start, min_dist=min_dist, n_epochs=n_epochs, seed=None)
    return layout if previous is None else align(layout, previous)


def warm_up() -> None:
    """Compile everything a layout needs, with and without threads (some six seconds in a fresh process)."""
    points = np.random.default_rng(0).normal(size=(500, 10)).astype(np.float32)
    graph = fuzzy_graph(find_neighbours(points, 14), 15)
    start = initial_layout(points)
    for seed in (None, 0):
        lay_out(graph, start, n_epochs=11, seed=seed)
