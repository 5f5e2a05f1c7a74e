"""Integration metrics that are read from the nearest neighbours of each cell: LISI, kBET and the connectivity of labels.

Definitions as in scib-metrics 0.5 (Luecken et al., Nature Methods 19 (2022) 41-50), on exact neighbours up to 50,000 cells.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.special import gammaincc

from cellweave.core.analysis.neighbours import Neighbours, find_neighbours

Codes = NDArray[np.int64]
#: Neighbours, the cell itself counted, that LISI, kBET and the graphs of labels and clusters look at.
LISI_NEIGHBOURS, KBET_NEIGHBOURS, GRAPH_NEIGHBOURS = 90, 50, 15
BLOCK = 8192
TOLERANCE, TRIES = 1e-5, 50


def lisi(neighbours: Neighbours, codes: Codes, *, perplexity: float | None = None) -> NDArray[np.float64]:
    """Return the local inverse Simpson index of each cell (Korsunsky et al., Nature Methods 16 (2019) 1289-1296).

    The neighbours of a cell are weighted by ``exp(-beta * distance)``, with ``beta`` such that the weights have the given
    perplexity; the index is the inverse of the chance that two neighbours drawn so have the same code.

    Parameters
    ----------
    neighbours
        Nearest neighbours without the cell itself.
    codes
        Batch or label of each cell, ``(n_cells,)``, none missing.
    perplexity
        Effective number of neighbours; None takes a third of them, the cell itself counted.

    Returns
    -------
    numpy.ndarray
        ``(n_cells,)``, between 1 and the number of codes.
    """
    wanted = perplexity or max(1.0, float((neighbours.k + 1) // 3))
    n_levels = int(codes.max()) + 1
    found = np.empty(len(codes))
    for start in range(0, len(codes), BLOCK):
        rows = slice(start, start + BLOCK)
        weights = _weights(neighbours.distances[rows].astype(np.float64), np.log(wanted))
        near = codes[neighbours.indices[rows]]
        place = near + n_levels * np.arange(len(near))[:, None]
        shares = np.bincount(place.ravel(), weights.ravel(), minlength=n_levels * len(near)).reshape(len(near), n_levels)
        found[rows] = 1 / (shares**2).sum(axis=1)
    return found


def _weights(distances: NDArray[np.float64], entropy: float) -> NDArray[np.float64]:
    """Return weights that sum to 1 in each row and have the given entropy, found by bisection on all rows at once."""
    # The nearest distance is taken off: it cancels in the weights, and nothing can vanish below the smallest number.
    distances = distances - distances.min(axis=1, keepdims=True)
    beta = np.ones(len(distances))
    low, high = np.full(len(distances), -np.inf), np.full(len(distances), np.inf)
    weights, excess = _entropy_excess(distances, beta, entropy)
    active = np.flatnonzero(np.abs(excess) >= TOLERANCE)
    for _ in range(TRIES):
        if not len(active):
            break
        above = excess[active] > 0
        now = beta[active]
        low[active] = np.where(above, now, low[active])
        high[active] = np.where(above, high[active], now)
        up = np.where(np.isinf(high[active]), now * 2, (now + high[active]) / 2)
        down = np.where(np.isinf(low[active]), now / 2, (now + low[active]) / 2)
        beta[active] = np.where(above, up, down)
        weights[active], excess[active] = _entropy_excess(distances[active], beta[active], entropy)
        active = active[np.abs(excess[active]) >= TOLERANCE]
    return weights


def _entropy_excess(distances: NDArray[np.float64], beta: NDArray[np.float64], entropy: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    scaled = distances * beta[:, None]
    raw = np.exp(-scaled)
    total = raw.sum(axis=1)
    found = np.log(total) + (scaled * raw).sum(axis=1) / total
    return raw / total[:, None], found - entropy


def ilisi(neighbours: Neighbours, batch: Codes) -> float:
    """Return the median LISI of the batches, scaled so that 0 is one batch and 1 all batches in equal shares."""
    n_batches = len(np.unique(batch))
    return float((np.median(lisi(neighbours, batch)) - 1) / (n_batches - 1))


def clisi(neighbours: Neighbours, labels: Codes) -> float:
    """Return the median LISI of the labels, scaled so that 1 is neighbours of one label and 0 all labels in equal shares."""
    n_labels = len(np.unique(labels))
    return float((n_labels - np.median(lisi(neighbours, labels))) / (n_labels - 1))


def graph_connectivity(neighbours: Neighbours, labels: Codes) -> float:
    """Return the mean over labels of the share of its cells in its largest strongly connected part of the neighbour graph.

    Parameters
    ----------
    neighbours
        Nearest neighbours without the cell itself; the ``GRAPH_NEIGHBOURS - 1`` nearest are looked at.
    labels
        Label of each cell, ``(n_cells,)``, none missing.
    """
    near = neighbours.nearest(GRAPH_NEIGHBOURS - 1).indices
    same = labels[near] == labels[:, None]
    rows, columns = np.nonzero(same)
    n_cells = len(labels)
    # Edges between labels are left out, so that one search finds the parts of every label.
    graph = sparse.csr_matrix((np.ones(len(rows), dtype=np.int8), (rows, near[rows, columns])), shape=(n_cells, n_cells))
    _, part = connected_components(graph, connection="strong")
    first = np.unique(part, return_index=True)[1]
    sizes, label_of_part = np.bincount(part), labels[first]
    largest = np.zeros(int(labels.max()) + 1)
    np.maximum.at(largest, label_of_part, sizes)
    counts = np.bincount(labels)
    return float((largest[counts > 0] / counts[counts > 0]).mean())


def kbet(neighbours: Neighbours, batch: Codes, *, alpha: float = 0.05) -> float:
    """Return the share of cells whose neighbours, with the cell itself, are mixed as all cells are (Büttner et al. 2019).

    Parameters
    ----------
    neighbours
        Nearest neighbours without the cell itself.
    batch
        Batch of each cell, ``(n_cells,)``, none missing.
    alpha
        Level of the chi-square test.
    """
    _, codes = np.unique(batch, return_inverse=True)
    n_batches = int(codes.max()) + 1
    if n_batches < 2:
        return float("nan")
    expected = np.bincount(codes) / len(codes) * (neighbours.k + 1)
    accepted = 0
    for start in range(0, len(codes), BLOCK):
        rows = slice(start, start + BLOCK)
        near = np.column_stack([codes[rows], codes[neighbours.indices[rows]]])
        place = near + n_batches * np.arange(len(near))[:, None]
        observed = np.bincount(place.ravel(), minlength=n_batches * len(near)).reshape(len(near), n_batches)
        statistic = ((observed - expected) ** 2 / expected).sum(axis=1)
        accepted += int((gammaincc((n_batches - 1) / 2, statistic / 2) >= alpha).sum())
    return accepted / len(codes)


def kbet_per_label(graph: sparse.csr_matrix, batch: Codes, labels: Codes, *, n_components: int = 100, seed: int = 0) -> dict[int, float]:
    """Return kBET within each label, on neighbours by diffusion distance, so that labels of any shape are treated alike.

    Parameters
    ----------
    graph
        UMAP's memberships of the ``KBET_NEIGHBOURS`` nearest neighbours, ``(n_cells, n_cells)``.
    batch, labels
        Codes of each cell, ``(n_cells,)``, none missing.
    n_components
        Diffusion components; scib-metrics lets the smallest label lower this for all labels that come after it, here each label
        has its own number.
    seed
        Of the eigenvectors' start.

    Returns
    -------
    dict
        By code of the label; a label of fewer than 10 cells or of a single batch is left out. 0 for a label that falls into
        pieces too small to be tested.
    """
    found = {}
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 10 or len(np.unique(batch[rows])) < 2:
            continue
        found[int(label)] = _kbet_of_label(sparse.csr_matrix(graph[rows][:, rows]), batch[rows], n_components, seed)
    return found


def _kbet_of_label(graph: sparse.csr_matrix, batch: Codes, n_components: int, seed: int) -> float:
    sizes = np.unique(batch, return_counts=True)[1]
    k = int(min(70, max(10, sizes.mean() // 4)))
    n_parts, part = connected_components(graph, connection="strong")
    if n_parts > 1:
        large = np.flatnonzero(np.bincount(part) >= 3 * k)
        rows = np.flatnonzero(np.isin(part, large))
        if len(rows) < 0.75 * len(part) or len(np.unique(batch[rows])) < 2:
            return 0.0
        graph, batch = sparse.csr_matrix(graph[rows][:, rows]), batch[rows]
    points = diffusion_map(graph, min(n_components, graph.shape[0] - 1), seed)
    return kbet(find_neighbours(points, k, seed=seed), batch)


def diffusion_map(graph: sparse.csr_matrix, n_components: int, seed: int = 0) -> NDArray[np.float32]:
    """Return diffusion coordinates summed over all times, ``(n_cells, n_components)`` (Coifman and Lafon 2006; as in scanpy).

    Components whose eigenvalue is 1 (one for each connected part) keep their length; all others are stretched by ``e / (1 - e)``.
    """
    degree = np.asarray(graph.sum(axis=0), dtype=np.float64).ravel()
    kernel = sparse.diags(1 / degree) @ graph.astype(np.float64) @ sparse.diags(1 / degree)
    root = np.sqrt(np.asarray(kernel.sum(axis=0)).ravel())
    transitions = sparse.csr_matrix(sparse.diags(1 / root) @ kernel @ sparse.diags(1 / root))
    n_cells = transitions.shape[0]
    if n_cells <= 500:  # the iterative solver needs room, and such a matrix is small when it is dense
        values, vectors = np.linalg.eigh(transitions.toarray())
        order = np.argsort(-np.abs(values))[:n_components]
        values, vectors = values[order], vectors[:, order]
    else:
        start = np.random.default_rng(seed).normal(size=n_cells)
        values, vectors = sparse.linalg.eigsh(transitions, k=n_components, which="LM", v0=start)
    one = values > 1 - 1e-6
    stretch = np.where(one, 1.0, values / np.where(one, 1.0, 1 - values))
    return (vectors * stretch).astype(np.float32)
