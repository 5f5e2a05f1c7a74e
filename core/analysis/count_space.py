"""Few dimensions from the counts of one modality, each kind in the way that is usual for it: for scores of counts, which need distances of cells."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Kind = Literal["counts", "proteins", "binary", "real"]
#: Depth that counts are brought to, and the largest standardised value.
DEPTH, LARGEST = 1e4, 10.0
#: Share of the peaks, those that are open least often, that is left out.
RARE = 0.25


def reduced(counts: sparse.csr_matrix, kind: Kind, n_components: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Return the leading components of the cells.

    Parameters
    ----------
    counts
        ``(n_cells, n_features)``, no cell empty.
    kind
        ``"counts"``: log-normalised and standardised, principal components; ``"proteins"``: the same after centred log-ratios of each cell;
        ``"binary"``: term frequency times inverse document frequency of the more frequent peaks, singular vectors (latent semantic indexing), each
        standardised; ``"real"``: standardised, principal components.
    n_components
        Components wanted; cut to what the matrix can give.
    seed
        Of the start vector.

    Returns
    -------
    numpy.ndarray
        ``(n_cells, n_components)`` float32, the largest component first.
    """
    counts = sparse.csr_matrix(counts, dtype=np.float64)
    if kind == "binary":
        left = _components(_tf_idf(counts), n_components, seed, centre=False)
        spread = left.std(axis=0)
        return np.asarray((left - left.mean(axis=0)) / np.where(spread > 0, spread, 1), dtype=np.float32)
    if kind != "real":
        counts = _log_normalised(counts) if kind == "counts" else _log_ratios(counts)
    return _components(_standardised(counts), n_components, seed, centre=True).astype(np.float32)


def _log_normalised(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    totals = np.asarray(counts.sum(axis=1)).ravel()
    return _with_values(counts, np.log1p(counts.data * _by_row(counts, DEPTH / totals)))


def _log_ratios(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return ``log(1 + x / g)`` with ``g`` the geometric mean of ``1 + x`` over the features of a cell."""
    logs = np.asarray(_with_values(counts, np.log1p(counts.data)).sum(axis=1)).ravel() / counts.shape[1]
    return _with_values(counts, np.log1p(counts.data * _by_row(counts, np.exp(-logs))))


def _tf_idf(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return ``log(1 + 10^4 x share of the cell x cells / total of the peak)`` of the peaks that are not the rarest."""
    of_peak = np.asarray(counts.sum(axis=0)).ravel()
    totals = np.asarray(counts.sum(axis=1)).ravel()
    kept = np.flatnonzero((of_peak >= np.quantile(of_peak[of_peak > 0], RARE)) & (of_peak > 0))
    idf = counts.shape[0] / of_peak[kept]
    chosen = sparse.csr_matrix(counts[:, kept])
    # A cell may have its counts in rare peaks only: it is then a row of zeros, not one of infinities.
    return _with_values(chosen, np.log1p(chosen.data * _by_row(chosen, DEPTH / totals) * idf[chosen.indices]))


def _standardised(values: sparse.csr_matrix) -> sparse.csr_matrix:
    """Divide features by their standard deviation and cut what lies more than ``LARGEST`` of them above the mean; zeros stay, so it stays sparse."""
    n_cells = values.shape[0]
    mean = np.asarray(values.mean(axis=0)).ravel()
    square = np.asarray(values.multiply(values).sum(axis=0)).ravel()
    sd = np.sqrt(np.maximum(square - n_cells * mean**2, 0) / max(1, n_cells - 1))
    kept = np.flatnonzero(sd > 1e-12 * np.maximum(1.0, np.abs(mean)))  # a feature that never varies says nothing
    scaled = sparse.csr_matrix(values[:, kept] @ sparse.diags(1 / sd[kept]))
    return _with_values(scaled, np.minimum(scaled.data, LARGEST + (mean / np.where(sd > 0, sd, 1))[kept][scaled.indices]))


def _components(matrix: sparse.csr_matrix, n_components: int, seed: int, *, centre: bool) -> NDArray[np.float64]:
    """Return principal components ``(n_cells, n)``, or left singular vectors where nothing is centred."""
    n_components = min(n_components, min(matrix.shape) - 1)
    if n_components < 1:
        return np.zeros((matrix.shape[0], 1))
    if min(matrix.shape) < 2 * n_components + 20:  # Lanczos needs room; such a matrix is small when it is dense
        dense = matrix.toarray()
        left, sizes, _ = np.linalg.svd(dense - dense.mean(axis=0) if centre else dense, full_matrices=False)
    else:
        from scipy.sparse.linalg import LinearOperator, svds

        operator = matrix
        if centre:
            mean, ones = np.asarray(matrix.mean(axis=0)).ravel(), np.ones(matrix.shape[0])
            operator = LinearOperator(
                matrix.shape, dtype=np.float64, matvec=lambda x: matrix @ x.ravel() - ones * (mean @ x.ravel()),
                rmatvec=lambda y: matrix.T @ y.ravel() - mean * y.sum(),
            )  # fmt: skip
        left, sizes, _ = svds(operator, k=n_components, random_state=seed)
        order = np.argsort(-sizes)
        left, sizes = left[:, order], sizes[order]
    found = left[:, :n_components] * (sizes[:n_components] if centre else 1.0)
    # The sign of a component is free: fix it.
    return np.asarray(found * np.where(found[np.abs(found).argmax(axis=0), np.arange(n_components)] < 0, -1.0, 1.0))


def _by_row(matrix: sparse.csr_matrix, values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.repeat(values, np.diff(matrix.indptr))


def _with_values(matrix: sparse.csr_matrix, values: NDArray[np.float64]) -> sparse.csr_matrix:
    return sparse.csr_matrix((values, matrix.indices, matrix.indptr), shape=matrix.shape)
