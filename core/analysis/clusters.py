"""Leiden clusters of a neighbour graph."""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


def leiden(graph: sparse.csr_matrix, *, resolution: float = 1.0, seed: int = 0, n_iterations: int = 2) -> NDArray[np.int32]:
    """Cluster a graph by modularity with the Leiden algorithm (Traag, Waltman and van Eck 2019), by igraph.

    The same graph, objective and number of iterations as ``scanpy.tl.leiden(flavor="igraph", n_iterations=2)``.

    Parameters
    ----------
    graph
        Symmetric memberships, ``(n_cells, n_cells)``.
    resolution
        Higher values give more clusters.
    seed
        Fixes the result.
    n_iterations
        Passes of the algorithm; below 0 it goes on until nothing improves.

    Returns
    -------
    numpy.ndarray
        Cluster of each cell, ``(n_cells,)`` int32, numbered from 0 by falling size.
    """
    import igraph

    edges = sparse.triu(graph, k=1, format="coo")
    network = igraph.Graph(n=graph.shape[0], edges=np.column_stack([edges.row, edges.col]), directed=False)
    igraph.set_random_number_generator(random.Random(seed))
    try:
        found = network.community_leiden(
            objective_function="modularity", weights=edges.data.astype(np.float64), resolution=resolution, n_iterations=n_iterations
        )
    finally:
        igraph.set_random_number_generator(random)
    membership = np.asarray(found.membership)
    _, members, sizes = np.unique(membership, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), dtype=np.int32)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes), dtype=np.int32)
    return rank[members]
