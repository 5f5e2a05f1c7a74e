"""The baseline without integration: principal components of the log-normalised counts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from cellweave.core.errors import DataError
from cellweave.core.spec.modalities import modality_kind
from cellweave.core.study.study import Modality
from cellweave.core.wording import counted


def log_normalised(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Scale every cell to the median total count and take ``log(1 + x)``; cells without counts stay empty.

    Parameters
    ----------
    counts
        ``(n_cells, n_features)``; left as it is.

    Returns
    -------
    scipy.sparse.csr_matrix
        float32, the same pattern of entries.
    """
    totals = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    some = totals > 0
    target = float(np.median(totals[some])) if some.any() else 1.0
    factor = np.divide(target, totals, out=np.zeros_like(totals), where=some)
    values = counts.data * np.repeat(factor, np.diff(counts.indptr))
    return sparse.csr_matrix((np.log1p(values).astype(np.float32), counts.indices, counts.indptr), shape=counts.shape)


def baseline_pca(counts: sparse.csr_matrix, *, n_components: int = 30, seed: int = 0) -> NDArray[np.float32]:
    """Return the principal components of the log-normalised counts without making them dense.

    Parameters
    ----------
    counts
        Raw counts ``(n_cells, n_features)``.
    n_components
        Components wanted; cut to what the matrix can give.
    seed
        Fixes the start vector.

    Returns
    -------
    numpy.ndarray
        ``(n_cells, n_components)`` float32, the component with the largest variance first.
    """
    from sklearn.decomposition import PCA

    n_components = min(n_components, min(counts.shape) - 1)
    if n_components < 1:
        return np.zeros((counts.shape[0], 1), dtype=np.float32)
    matrix = log_normalised(counts)
    if min(counts.shape) < 2 * n_components + 20:  # Lanczos needs room; such a matrix is small when it is dense
        model = PCA(n_components, svd_solver="full")
        scores = model.fit_transform(matrix.toarray().astype(np.float64))
    else:
        model = PCA(n_components, svd_solver="arpack", random_state=seed)
        scores = model.fit_transform(matrix)
    return np.asarray(scores, dtype=np.float32)


def measured_rows(modality: Modality) -> NDArray[np.int64]:
    """Return the cells of a study that a baseline of ``modality`` can be of, ``(n_measured,)``; a cell that was not measured is none without counts.

    Raises
    ------
    DataError
        Where it was measured in fewer than three cells of a study that has more.
    """
    rows = np.flatnonzero(modality.measured)
    if len(rows) < min(3, len(modality.measured)):
        label = modality_kind(modality.name).label
        raise DataError(f"{label} was measured in {counted(len(rows), 'cell')}, too few for a baseline.", "Switch the baseline off.")
    return rows


def over_all_cells(values: NDArray[np.float32], rows: NDArray[np.int64], n_cells: int) -> NDArray[np.float32]:
    """Return the rows of some cells in study order, ``(n_cells, n_columns)``, NaN for the others."""
    wide = np.full((n_cells, values.shape[1]), np.nan, dtype=np.float32)
    wide[rows] = values
    return wide
