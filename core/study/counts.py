"""Are these raw counts? Every stored value is looked at, and what is wrong is named with where it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

BLOCK_VALUES = 4_000_000  # values looked at in one go: 32 MB of float64
COUNTS_LIKE = ("counts", "raw_counts", "count", "raw", "umi", "umis", "raw_count", "rawcounts")
KINDS = {
    "not_finite": "missing or infinite values",
    "negative": "negative values",
    "non_integer": "values that are not whole numbers",
}


@dataclass(frozen=True)
class Offender:
    """The first value of one kind that raw counts cannot have.

    Attributes
    ----------
    kind
        ``negative``, ``not_finite`` or ``non_integer``.
    row, column
        Position of the cell and of the feature.
    value
        The value.
    cell, feature
        Their names; empty where none were given.
    """

    kind: str
    row: int
    column: int
    value: float
    cell: str = ""
    feature: str = ""

    def sentence(self) -> str:
        """Return where it is, as the end of a sentence."""
        cell = f"cell '{self.cell}'" if self.cell else f"row {self.row + 1}"
        feature = f"feature '{self.feature}'" if self.feature else f"column {self.column + 1}"
        return f"{self.value:g} in {cell}, {feature}"


@dataclass(frozen=True)
class CountsReport:
    """What the values of one matrix are.

    Attributes
    ----------
    location
        ``X``, ``raw/X`` or ``layers/NAME``.
    n_values
        Stored values that were looked at.
    n_negative, n_not_finite, n_non_integer
        How many of each kind that raw counts cannot have; a value counts once, the first kind that fits of
        not finite, negative, not a whole number.
    maximum, minimum
        Largest and smallest finite stored value; 0 where none is stored.
    first
        The first offender of each kind that occurs.
    """

    location: str
    n_values: int = 0
    n_negative: int = 0
    n_not_finite: int = 0
    n_non_integer: int = 0
    maximum: float = 0.0
    minimum: float = 0.0
    first: tuple[Offender, ...] = ()

    @property
    def is_raw(self) -> bool:
        """Whether all values are finite, not negative and whole numbers."""
        return self.n_negative == 0 and self.n_not_finite == 0 and self.n_non_integer == 0

    @property
    def is_usable(self) -> bool:
        """Whether all values are finite and not negative: usable where non-integers are accepted."""
        return self.n_negative == 0 and self.n_not_finite == 0

    def sentence(self) -> str:
        """Return one sentence on what was found."""
        return f"{self.finding()}."

    def finding(self) -> str:
        """Return what was found as the middle of a sentence: "X has 12 negative values (first ...)"."""
        if self.is_raw:
            return f"{self.location} holds raw counts (largest {self.maximum:,.0f})"
        numbers = {
            "not_finite": self.n_not_finite, "negative": self.n_negative, "non_integer": self.n_non_integer
        }  # fmt: skip
        found = [f"{numbers[one.kind]:,} {KINDS[one.kind]} (first {one.sentence()})" for one in self.first]
        return f"{self.location} has {' and '.join(found)}"


class Scanner:
    """Looks at blocks of values and remembers how many are not counts, and where the first of them are."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._numbers = {"not_finite": 0, "negative": 0, "non_integer": 0}
        self._first: dict[str, tuple[int, float]] = {}
        self._seen = 0
        self._maximum = -np.inf
        self._minimum = np.inf

    @property
    def looks_raw(self) -> bool:
        """Whether nothing was found yet that raw counts cannot have."""
        return not self._first

    @property
    def looks_usable(self) -> bool:
        """Whether nothing negative or not finite was found yet."""
        return not self._first.keys() & {"negative", "not_finite"}

    def add(self, values: np.ndarray) -> None:
        """Look at the next values, in storage order."""
        values = np.ravel(values)
        if values.size == 0:
            return
        if values.dtype.kind in "bui":
            self._bounds(float(values.min()), float(values.max()))
            if values.dtype.kind == "i" and self._minimum < 0:
                self._note("negative", values < 0, values)
        elif values.dtype.kind == "f":
            self._add_floats(values)
        else:
            message = f"{self.location} holds values of type {values.dtype}, not numbers"
            raise TypeError(message)
        self._seen += values.size

    def _add_floats(self, values: np.ndarray) -> None:
        low, high = float(values.min()), float(values.max())  # NaN anywhere makes both NaN
        finite = np.isfinite(low) and np.isfinite(high)
        if not finite:
            good = np.isfinite(values)
            self._note("not_finite", ~good, values)
            values = np.where(good, values, values.dtype.type(0))
            low, high = float(values.min()), float(values.max())
        self._bounds(low, high)
        if low < 0:
            self._note("negative", values < 0, values)
        broken = values != np.rint(values)
        if low < 0:
            broken &= values >= 0
        if broken.any():
            self._note("non_integer", broken, values)

    def _bounds(self, low: float, high: float) -> None:
        self._minimum, self._maximum = min(self._minimum, low), max(self._maximum, high)

    def _note(self, kind: str, mask: np.ndarray, values: np.ndarray) -> None:
        number = int(np.count_nonzero(mask))
        if number == 0:
            return
        self._numbers[kind] += number
        if kind not in self._first:
            position = int(np.argmax(mask))
            self._first[kind] = (self._seen + position, float(values[position]))

    def positions(self) -> dict[str, tuple[int, float]]:
        """Return the storage position and the value of the first offender of each kind."""
        return dict(self._first)

    def report(self, places: Mapping[str, tuple[int, int]], cells: Any = None, features: Any = None) -> CountsReport:
        """Return the report.

        Parameters
        ----------
        places
            Row and column of the first offender of each kind of :meth:`positions`.
        cells, features
            Names by row and by column, or None.
        """
        first = []
        for kind, (_, value) in self._first.items():
            row, column = places[kind]
            cell = "" if cells is None else str(cells[row])
            feature = "" if features is None else str(features[column])
            first.append(Offender(kind, row, column, value, cell, feature))
        return CountsReport(
            self.location, self._seen,
            n_negative=self._numbers["negative"],
            n_not_finite=self._numbers["not_finite"],
            n_non_integer=self._numbers["non_integer"],
            maximum=self._maximum if np.isfinite(self._maximum) else 0.0,
            minimum=self._minimum if np.isfinite(self._minimum) else 0.0,
            first=tuple(sorted(first, key=lambda one: list(KINDS).index(one.kind))),
        )  # fmt: skip


def place_in_sparse(position: int, indptr: np.ndarray, indices: Any, *, by_column: bool) -> tuple[int, int]:
    """Return row and column of the ``position``-th stored value of a CSR (or, ``by_column``, CSC) matrix."""
    major = int(np.searchsorted(indptr, position, side="right")) - 1
    minor = int(indices[position])
    return (minor, major) if by_column else (major, minor)


def scan_matrix(matrix: Any, location: str = "X", cells: Any = None, features: Any = None) -> CountsReport:
    """Look at all stored values of a matrix, in blocks.

    Parameters
    ----------
    matrix
        ``(n_cells, n_features)``: CSR or CSC (matrix or array), COO, a dense array, an HDF5 or zarr dataset, a sparse
        HDF5 group as anndata writes it, or a backed sparse data set of anndata.
    location
        Its name in the report.
    cells, features
        Names of rows and columns, for the report.

    Returns
    -------
    CountsReport
        What the values are, with the first offenders.
    """
    scanner = Scanner(location)
    sparse_parts = _sparse_parts(matrix)
    if sparse_parts is not None:
        data, indices, indptr, by_column = sparse_parts
        for start in range(0, int(data.shape[0]), BLOCK_VALUES):
            scanner.add(np.asarray(data[start : start + BLOCK_VALUES]))
        places = {
            kind: place_in_sparse(position, np.asarray(indptr[:]), indices, by_column=by_column)
            for kind, (position, _) in scanner.positions().items()
        }
    else:
        width = int(matrix.shape[1])
        for _, block in _dense_blocks(matrix):
            scanner.add(block)
        places = {kind: divmod(position, width) for kind, (position, _) in scanner.positions().items()}
    return scanner.report(places, cells, features)


def _sparse_parts(matrix: Any) -> tuple[Any, Any, Any, bool] | None:
    """Return data, indices, indptr and whether the columns are the major axis; None for dense matrices."""
    if sparse.issparse(matrix):
        if matrix.format not in ("csr", "csc"):
            matrix = matrix.tocsr()
        return matrix.data, matrix.indices, matrix.indptr, matrix.format == "csc"
    group = getattr(matrix, "group", matrix)  # anndata's backed sparse data sets keep their group there
    if all(hasattr(group, name) for name in ("attrs", "keys")) and {"data", "indices", "indptr"} <= set(group.keys()):
        encoding = str(group.attrs.get("encoding-type", group.attrs.get("h5sparse_format", "csr")))
        return group["data"], group["indices"], group["indptr"], encoding.startswith("csc")
    return None


def _dense_blocks(matrix: Any) -> Iterator[tuple[int, np.ndarray]]:
    rows, width = matrix.shape
    step = max(1, BLOCK_VALUES // max(1, int(width)))
    for start in range(0, int(rows), step):
        yield start, np.asarray(matrix[start : start + step])


def order_of_places(locations: Sequence[str]) -> list[str]:
    """Return the places of a matrix in the order in which counts are looked for.

    ``X`` first, then ``raw/X``, then layers with names like "counts", then the other layers.
    """

    def rank(location: str) -> tuple[int, int]:
        if location == "X":
            return 0, 0
        if location == "raw/X":
            return 1, 0
        name = location.removeprefix("layers/").lower().replace("-", "_").replace(" ", "_")
        if name in COUNTS_LIKE:
            return 2, COUNTS_LIKE.index(name)
        return (3, 0) if "count" in name and not any(word in name for word in ("log", "norm", "scale")) else (4, 0)

    return sorted(locations, key=rank)


@dataclass(frozen=True)
class CountsSearch:
    """Where raw counts are.

    Attributes
    ----------
    best
        The place to take, or None where no place holds raw counts.
    reports
        One for each place that was looked at, in that order.
    """

    best: str | None
    reports: tuple[CountsReport, ...]


def find_counts(places: Any, cells: Any = None, features: Any = None) -> CountsSearch:
    """Look for raw counts in X, raw/X and the layers, and stop at the first place that holds them.

    A matrix of nothing but 0 and 1 is taken only where no other place holds larger counts: it is often a
    binarised copy.

    Parameters
    ----------
    places
        Matrices by location, or an AnnData.
    cells, features
        Names for the reports.

    Returns
    -------
    CountsSearch
        The best place and a report for each place that was looked at.
    """
    if not isinstance(places, Mapping):
        places = _places_of_anndata(places)
    reports: list[CountsReport] = []
    for location in order_of_places(list(places)):
        names = features if features is not None and len(features) == places[location].shape[1] else None
        report = scan_matrix(places[location], location, cells, names)
        reports.append(report)
        if report.is_raw and report.maximum > 1:
            return CountsSearch(location, tuple(reports))
    return CountsSearch(first_raw(reports), tuple(reports))


def first_raw(reports: Sequence[CountsReport]) -> str | None:
    """Return the first place whose report says raw counts, or None; an empty matrix is not taken for counts."""
    return next((report.location for report in reports if report.is_raw and report.maximum > 0), None)


def _places_of_anndata(adata: Any) -> dict[str, Any]:
    places: dict[str, Any] = {}
    if adata.X is not None:
        places["X"] = adata.X
    if getattr(adata, "raw", None) is not None:
        places["raw/X"] = adata.raw.X
    places.update({f"layers/{name}": layer for name, layer in adata.layers.items() if name is not None})
    return places
