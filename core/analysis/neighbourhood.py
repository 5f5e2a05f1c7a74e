"""Do neighbouring cells express the same marker genes? One answer a cell and a kind of neighbour.

A cell that sits among cells of its own type expresses what they express. The Pearson correlation over marker genes between a cell and
its neighbours, taken apart by where the neighbours come from (the same library, another library of the same data set, another
data set, another level of a technical column), tells an integration that joins what belongs together from one that joins what does not;
no labels are needed. The metrics and their names follow the package regularizedvi (V. Kleshchevnikov, 2026).

Counts are scaled by ``n_features / total`` of each cell, without a logarithm, the total over all features; correlations are over the markers
with population moments. A cell without marker expression (standard deviation below ``FLAT``) has no correlation, NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from cellweave.core.analysis.scores import Column

#: Standard deviation below which a profile counts as flat.
FLAT = 1e-6
#: Entries of marker expression that are gathered at a time.
BLOCK = 4_000_000
Floats = NDArray[np.float64]
Report = Callable[[float], None]


@dataclass(frozen=True)
class Keys:
    """Where cells come from.

    Attributes
    ----------
    library
        The finest technical unit, or None.
    dataset
        The study a library belongs to, or None.
    technical
        Further technical columns by name.
    """

    library: Column | None = None
    dataset: Column | None = None
    technical: Mapping[str, Column] = field(default_factory=dict)

    def take(self, rows: NDArray[np.integer]) -> Keys:
        """Return the keys of some cells."""
        some = {name: column.take(rows) for name, column in self.technical.items()}
        return Keys(self.library and self.library.take(rows), self.dataset and self.dataset.take(rows), some)


@dataclass(frozen=True)
class Edges:
    """The neighbour graph without its diagonal, edge by edge, by rising row.

    Attributes
    ----------
    row, column
        The cell and its neighbour, int64 ``(n_edges,)``.
    weight
        Membership of the edge, ``(n_edges,)``.
    n_cells
        Number of cells.
    """

    row: NDArray[np.int64]
    column: NDArray[np.int64]
    weight: Floats
    n_cells: int

    @classmethod
    def of_graph(cls, graph: sparse.spmatrix) -> Edges:
        """Take the edges of a graph ``(n_cells, n_cells)``; the diagonal and explicit zeros are left out."""
        csr = sparse.csr_matrix(graph, dtype=np.float64)
        csr.sum_duplicates()
        row = np.repeat(np.arange(csr.shape[0], dtype=np.int64), np.diff(csr.indptr))
        keep = (csr.data != 0) & (row != csr.indices)
        return cls(row[keep], csr.indices[keep].astype(np.int64), csr.data[keep], csr.shape[0])

    def take(self, chosen: NDArray[np.bool_]) -> Edges:
        """Return some of the edges."""
        return Edges(self.row[chosen], self.column[chosen], self.weight[chosen], self.n_cells)

    @property
    def degree(self) -> NDArray[np.int64]:
        """Neighbours of each cell, ``(n_cells,)``."""
        return np.bincount(self.row, minlength=self.n_cells)


def normalised(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Scale every cell so that its mean over all features is 1: ``x * n_features / total``; empty cells stay empty."""
    totals = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    factor = np.divide(counts.shape[1], totals, out=np.zeros_like(totals), where=totals > 0)
    values = counts.data.astype(np.float64) * np.repeat(factor, np.diff(counts.indptr))
    return sparse.csr_matrix((values, counts.indices, counts.indptr), shape=counts.shape)


class Profiles:
    """Marker expression of every cell with its moments.

    Parameters
    ----------
    values
        Normalised expression of the markers, ``(n_cells, n_markers)``.
    """

    def __init__(self, values: sparse.csr_matrix) -> None:
        self.values = sparse.csr_matrix(values, dtype=np.float64)
        self.n_markers = int(self.values.shape[1])
        self.mean, self.sd = _moments(self.values)

    def dots(self, row: NDArray[np.int64], column: NDArray[np.int64]) -> Floats:
        """Return the inner product of each pair of cells, ``(n_pairs,)``; ``row`` rises."""
        lengths = np.diff(self.values.indptr)
        ends = np.cumsum(lengths[column])
        found = np.zeros(len(row))
        start = 0
        while start < len(row):
            done = ends[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, done + BLOCK, side="right")))
            stop = min(stop, int(np.searchsorted(row, row[start] + max(1, BLOCK // self.n_markers), side="left")))
            stop = max(stop, start + 1)
            found[start:stop] = self._block(row[start:stop], column[start:stop])
            start = stop
        return found

    def _block(self, row: NDArray[np.int64], column: NDArray[np.int64]) -> Floats:
        first, last = int(row[0]), int(row[-1]) + 1
        dense = self.values[first:last].toarray()
        other = self.values[column]
        lengths = np.diff(other.indptr)
        products = other.data * dense[np.repeat(row - first, lengths), other.indices]
        sums = np.zeros(len(row))
        some = lengths > 0
        if some.any():
            sums[some] = np.add.reduceat(products, other.indptr[:-1][some])
        return sums

    def correlations(self, edges: Edges, dots: Floats) -> Floats:
        """Return Pearson's r of each edge, ``(n_edges,)``, NaN where one of the two profiles is flat."""
        sd = self.sd[edges.row] * self.sd[edges.column]
        valid = (self.sd[edges.row] > FLAT) & (self.sd[edges.column] > FLAT)
        covariance = dots / self.n_markers - self.mean[edges.row] * self.mean[edges.column]
        return np.divide(covariance, sd, out=np.full(len(sd), np.nan), where=valid)

    def with_average(self, edges: Edges, dots: Floats) -> Floats:
        """Return the correlation of each cell with the weighted mean of its neighbours, ``(n_cells,)``; NaN without neighbours."""
        n_cells = edges.n_cells
        weight = np.bincount(edges.row, edges.weight, n_cells)
        some = weight > 0
        share = edges.weight / weight[edges.row]
        dot = np.bincount(edges.row, share * dots, n_cells)
        sd, mean = np.zeros(n_cells), np.zeros(n_cells)
        pattern = sparse.csr_matrix((share, (edges.row, edges.column)), shape=(n_cells, n_cells))
        step = max(1, BLOCK // max(self.n_markers, 1))
        for start in range(0, n_cells, step):
            rows = slice(start, min(start + step, n_cells))
            mean[rows], sd[rows] = _moments(pattern[rows] @ self.values)
        covariance = dot / self.n_markers - self.mean * mean
        valid = some & (self.sd > FLAT) & (sd > FLAT)
        return np.divide(covariance, self.sd * sd, out=np.full(n_cells, np.nan), where=valid)


def _moments(values: sparse.csr_matrix) -> tuple[Floats, Floats]:
    """Return mean and population standard deviation of each row, zeros counted; in two passes, so that nothing cancels."""
    n_rows, n_columns = values.shape
    lengths = np.diff(values.indptr)
    row = np.repeat(np.arange(n_rows), lengths)
    mean = np.bincount(row, values.data, n_rows) / n_columns
    squares = np.bincount(row, (values.data - mean[row]) ** 2, n_rows) + (n_columns - lengths) * mean**2
    return mean, np.sqrt(squares / n_columns)


def masks(edges: Edges, keys: Keys) -> dict[str, NDArray[np.bool_]]:
    """Say which edges are of which kind.

    Parameters
    ----------
    edges
        The neighbour graph.
    keys
        Where the cells come from. An edge with a cell whose level is missing is of no kind that asks for that column.

    Returns
    -------
    dict
        ``same_library``, ``between_libraries``; with a data set ``cross_library`` (another library of the same data set) and
        ``cross_dataset``; ``within_T`` and ``between_T`` of each technical column, and ``cross_technical`` (another level of any).
        A kind whose column is not given is not there. Each ``(n_edges,)``.
    """
    found: dict[str, NDArray[np.bool_]] = {}

    def compared(column: Column) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        one, other = column.codes[edges.row], column.codes[edges.column]
        known = (one >= 0) & (other >= 0)
        return known & (one == other), known & (one != other)

    if keys.library is not None:
        found["same_library"], found["between_libraries"] = compared(keys.library)
    if keys.dataset is not None:
        same, other = compared(keys.dataset)
        if keys.library is not None:
            found["cross_library"] = found["between_libraries"] & same
        found["cross_dataset"] = other
    between = None
    for name, column in keys.technical.items():
        found[f"within_{name}"], other = compared(column)
        found[f"between_{name}"] = other
        between = other if between is None else between | other
    if between is not None:
        found["cross_technical"] = between
    return found


def cell_metrics(profiles: Profiles, edges: Edges, keys: Keys, *, progress: Report = lambda share: None) -> dict[str, NDArray[np.generic]]:
    """Correlate every cell with its neighbours of each kind.

    Parameters
    ----------
    profiles
        Marker expression.
    edges
        The neighbour graph.
    keys
        Where the cells come from.
    progress
        Told the share that is done; may raise ``Cancelled``.

    Returns
    -------
    dict
        By column name, each ``(n_cells,)``; ``M`` is a kind of neighbour (:func:`masks`). ``n_neighbours_total``, ``marker_expression``,
        ``corr_avg_all`` and ``corr_weighted_mean_all``; for each kind ``n_neighbours_M``, ``frac_neighbours_M``, ``corr_avg_M`` (with the weighted mean
        profile of the neighbours), ``corr_mean_M``, ``corr_median_M``, ``corr_weighted_mean_M``, ``corr_weighted_median_M``, ``corr_std_M``, ``corr_cv_M``
        (over the neighbours one by one), ``corr_discrepancy_M`` (``corr_avg - corr_mean``), ``corr_norm_by_library_M`` and ``corr_norm_by_all_M``.
    """
    kinds = masks(edges, keys)
    steps = len(kinds) + 2
    dots = profiles.dots(edges.row, edges.column)
    progress(1 / steps)
    r = profiles.correlations(edges, dots)
    degree = edges.degree
    found: dict[str, NDArray[np.generic]] = {
        "n_neighbours_total": degree,
        "marker_expression": np.asarray(profiles.values.sum(axis=1)).ravel(),
        "corr_avg_all": profiles.with_average(edges, dots),
        "corr_weighted_mean_all": aggregates(edges, r)["weighted_mean"],
    }
    progress(2 / steps)
    done: list[tuple[NDArray[np.bool_], dict[str, NDArray[np.generic]]]] = []
    for number, (name, chosen) in enumerate(kinds.items()):
        ready = next((values for other, values in done if np.array_equal(other, chosen)), None)
        if ready is None:
            ready = _of_kind(profiles, edges.take(chosen), dots[chosen], r[chosen])
            done.append((chosen, ready))
        n = ready["n_neighbours"]
        found[f"n_neighbours_{name}"] = n
        found[f"frac_neighbours_{name}"] = np.divide(n, degree, out=np.full(len(n), np.nan), where=degree > 0)
        for what in ("avg", "mean", "median", "weighted_mean", "weighted_median", "std", "cv", "discrepancy"):
            found[f"corr_{what}_{name}"] = ready[what]
        progress((number + 3) / steps)
    for name in kinds:
        average = found[f"corr_avg_{name}"]
        if "corr_avg_same_library" in found:
            found[f"corr_norm_by_library_{name}"] = _ratio(average, found["corr_avg_same_library"])
        found[f"corr_norm_by_all_{name}"] = _ratio(average, found["corr_avg_all"])
    return found


def averages(profiles: Profiles, edges: Edges, keys: Keys) -> dict[str, Floats]:
    """Return only ``corr_avg_M`` of every kind of neighbour, by that name; for gene groups and the random graph."""
    dots = profiles.dots(edges.row, edges.column)
    found = {"corr_avg_all": profiles.with_average(edges, dots)}
    for name, chosen in masks(edges, keys).items():
        found[f"corr_avg_{name}"] = profiles.with_average(edges.take(chosen), dots[chosen])
    return found


def _of_kind(profiles: Profiles, edges: Edges, dots: Floats, r: Floats) -> dict[str, NDArray[np.generic]]:
    found = aggregates(edges, r)
    average = profiles.with_average(edges, dots)
    return {**found, "avg": average, "discrepancy": average - found["mean"], "n_neighbours": edges.degree}


def _ratio(values: NDArray[np.generic], by: NDArray[np.generic]) -> Floats:
    by = np.asarray(by, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        usable = np.abs(by) > 1e-12
    return np.divide(values, by, out=np.full(len(by), np.nan), where=usable)


def aggregates(edges: Edges, r: Floats) -> dict[str, Floats]:
    """Sum up the correlations of each cell with its neighbours.

    Parameters
    ----------
    edges
        The neighbours, by rising cell.
    r
        Correlation of each edge, NaN where it has none; such neighbours do not count.

    Returns
    -------
    dict
        ``mean``, ``median``, ``weighted_mean``, ``weighted_median`` (the first value, by rising correlation, at which the weights reach half their
        sum), ``std`` (population; 0 with one neighbour) and ``cv`` (``std / |mean|``; NaN with one neighbour or a mean of 0), each ``(n_cells,)``.
    """
    valid = np.isfinite(r)
    row, r, weight = edges.row[valid], r[valid], edges.weight[valid]
    order = np.lexsort((r, row))
    row, r, weight = row[order], r[order], weight[order]
    cells, starts, counts = np.unique(row, return_index=True, return_counts=True)
    names = ("mean", "median", "weighted_mean", "weighted_median", "std", "cv")
    found = {name: np.full(edges.n_cells, np.nan) for name in names}
    if not len(cells):
        return found
    mean = np.add.reduceat(r, starts) / counts
    std = np.sqrt(np.add.reduceat((r - np.repeat(mean, counts)) ** 2, starts) / counts)
    std[counts == 1] = 0.0
    found["mean"][cells], found["std"][cells] = mean, std
    found["median"][cells] = (r[starts + (counts - 1) // 2] + r[starts + counts // 2]) / 2
    found["weighted_mean"][cells] = np.add.reduceat(r * weight, starts) / np.add.reduceat(weight, starts)
    found["weighted_median"][cells] = _weighted_median(r, weight, starts, counts)
    several = (counts > 1) & (np.abs(mean) > 1e-12)
    found["cv"][cells[several]] = std[several] / np.abs(mean[several])
    return found


def _weighted_median(r: Floats, weight: Floats, starts: NDArray[np.integer], counts: NDArray[np.integer]) -> Floats:
    """Return, of each run of sorted values, the first at which the weights reach half their sum.

    The running sums are taken within each cell, in a table of cells with about as many neighbours: a running sum over all edges
    would decide ties by its rounding.
    """
    found = np.empty(len(starts))
    order = np.argsort(counts, kind="stable")
    begin = 0
    while begin < len(order):
        step = max(1, BLOCK // int(counts[order[min(begin + 8192, len(order)) - 1]]))
        chosen = order[begin : begin + min(step, 8192)]
        width = int(counts[chosen].max())
        place = starts[chosen, None] + np.minimum(np.arange(width), counts[chosen, None] - 1)
        inside = np.arange(width) < counts[chosen, None]
        running = np.cumsum(np.where(inside, weight[place], 0.0), axis=1)
        first = np.argmax(running >= 0.5 * running[:, -1:], axis=1)
        found[chosen] = r[place[np.arange(len(chosen)), first]]
        begin += len(chosen)
    return found


def random_edges(degree: NDArray[np.integer], seed: int = 0) -> Edges:
    """Return a graph in which every cell has as many neighbours as before, drawn uniformly from all other cells, each of weight 1."""
    n_cells = len(degree)
    row = np.repeat(np.arange(n_cells, dtype=np.int64), degree)
    drawn = np.random.default_rng(seed).integers(0, max(1, n_cells - 1), size=len(row))
    return Edges(row, drawn + (drawn >= row), np.ones(len(row)), n_cells)
