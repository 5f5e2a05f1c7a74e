"""Marker genes for the neighbourhood metrics: found in the data, read from a file, and a list of published ones."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from cellweave.core.analysis.scores import Column
from cellweave.core.errors import DataError

#: A gene is a marker of a group where its mean there is above the first (1 is the mean gene of a cell) and the group's share of the sum of
#: the means over all groups is above the second; above the third it tells subtypes apart.
MEAN, SPECIFICITY, SUBTYPE_SPECIFICITY, PER_GROUP = 1.0, 0.1, 0.3, 500
FEWEST = 3
CATEGORIES = ("broad", "cell type", "subtype")
#: The fewest markers from which lineage correlations are taken.
LINEAGE_MARKERS = 5


@dataclass(frozen=True)
class Marker:
    """A published marker gene: its symbols, what it marks, and how fine the distinction is."""

    symbols: tuple[str, ...]
    cell_type: str = ""
    lineage: str = ""
    category: str = ""


@dataclass(frozen=True)
class MarkerSet:
    """Which features are markers, and of what.

    Attributes
    ----------
    groups
        Columns by group, rising: ``union`` (all), ``broad``, ``cell type``, ``subtype`` and ``lineage:NAME``; a group without features is not there.
    n_listed, n_found
        Features that came from the list, and from the data.
    """

    groups: dict[str, NDArray[np.int64]]
    n_listed: int = 0
    n_found: int = 0
    notes: tuple[str, ...] = field(default=())

    @property
    def union(self) -> NDArray[np.int64]:
        """Columns of all markers."""
        return self.groups["union"]


def published_markers() -> list[Marker]:
    """Return the list that comes with the program (``resources/markers``; sources in its ``SOURCE.md``)."""
    text = files("cellweave.resources").joinpath("markers", "markers.csv").read_text(encoding="utf-8")
    return _parse(text.splitlines())


def read_markers(path: str | Path) -> list[Marker]:
    """Read a list of markers.

    Parameters
    ----------
    path
        CSV with a column ``gene`` (or ``gene_human`` and ``gene_mouse``) and, where there are any, ``cell_type``, ``lineage`` and ``category``
        (``broad``, ``cell type`` or ``subtype``).

    Raises
    ------
    DataError
        Where the file cannot be read, or has no column of genes.
    """
    path = Path(path).expanduser()
    try:
        found = _parse(path.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError):
        raise DataError(f"The list of markers '{path}' cannot be read.", "Choose a CSV file with a column 'gene'.") from None
    if not found:
        raise DataError(f"'{path.name}' names no marker gene.", "It needs a header with a column 'gene', and one row a gene.")
    return found


def _parse(lines: Iterable[str]) -> list[Marker]:
    found = []
    for row in csv.DictReader(lines):
        values = {str(key).strip().lower(): (value or "").strip() for key, value in row.items() if isinstance(value, str)}
        symbols = tuple(dict.fromkeys(values[name] for name in ("gene", "gene_human", "gene_mouse") if values.get(name)))
        if symbols:
            found.append(Marker(symbols, values.get("cell_type", ""), values.get("lineage", ""), values.get("category", "")))
    return found


def select_markers(
    expression: sparse.csr_matrix,
    names: Sequence[str],
    *,
    listed: Sequence[Marker] = (),
    labels: Sequence[Column] = (),
    within: Column | None = None,
) -> MarkerSet:
    """Choose markers: those of the list, and those that are specific of a label in the data.

    Parameters
    ----------
    expression
        Normalised counts ``(n_cells, n_features)``, the mean of each cell 1.
    names
        Symbol of each feature.
    listed
        Published or the user's markers; matched by symbol, in the spelling of whichever organism has more of them.
    labels
        Groups of cells whose markers are looked for.
    within
        Look within each level of this column (the data set), so that no marker is one of a data set.

    Returns
    -------
    MarkerSet
        The markers by group.

    Raises
    ------
    DataError
        Where there are fewer than three.
    """
    from_list = _match(listed, names)
    groups: dict[str, set[int]] = {name: set() for name in ("union", *CATEGORIES)}
    for marker, column in from_list:
        groups["union"].add(column)
        if marker.category in CATEGORIES:
            groups[marker.category].add(column)
        if marker.lineage:
            groups.setdefault(f"lineage:{marker.lineage}", set()).add(column)
    n_listed = len(groups["union"])
    found: set[int] = set()
    for label in labels:
        for cells in _strata(within, expression.shape[0]):
            usual, strict = specific_features(expression[cells], label.take(cells))
            found |= set(usual)
            groups["subtype"] |= set(strict)
    groups["union"] |= found
    groups["cell type"] |= found
    few = len(groups["union"])
    if few < FEWEST:
        raise DataError(
            f"Only {few} of the {len(names):,} features {'is a' if few == 1 else 'are'} known marker gene{'' if few == 1 else 's'}, which is too few for "
            f"correlations (the features are called '{names[0]}' and the like).",
            "Give the column of cell labels, or a CSV with markers in the spelling of the data.",
        )
    kept = {
        name: np.array(sorted(columns), dtype=np.int64)
        for name, columns in groups.items()
        if len(columns) >= (LINEAGE_MARKERS if name.startswith("lineage:") else FEWEST)
    }
    return MarkerSet(kept, n_listed, len(found))


def _match(listed: Sequence[Marker], names: Sequence[str]) -> list[tuple[Marker, int]]:
    """Return the markers that the data have, with their columns; a marker has one column, the first of that name."""
    place: dict[str, int] = {}
    for number, name in enumerate(names):
        place.setdefault(str(name), number)
    by_position: Mapping[int, list[tuple[Marker, int]]] = {
        position: [(marker, place[marker.symbols[position]]) for marker in listed if len(marker.symbols) > position and marker.symbols[position] in place]
        for position in (0, 1)
    }
    return max(by_position.values(), key=len)


def _strata(within: Column | None, n_cells: int) -> list[NDArray[np.int64]]:
    if within is None:
        return [np.arange(n_cells)]
    return [np.flatnonzero(within.codes == code) for code in np.unique(within.codes[within.codes >= 0])]


def specific_features(expression: sparse.csr_matrix, labels: Column) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the columns that are specific of one label, and those that are so specific that they tell subtypes apart.

    A feature counts where its largest mean over a label is above 1 and that label's share of the sum of all means is above 0.1 (0.3); of
    each label the 500 most specific.

    Parameters
    ----------
    expression
        Normalised counts ``(n_cells, n_features)``.
    labels
        Groups of these cells; with fewer than two of them nothing is specific.
    """
    present = np.unique(labels.codes[labels.codes >= 0])
    if len(present) < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    cells = np.flatnonzero(labels.codes >= 0)
    dense = np.searchsorted(present, labels.codes[cells])
    sizes = np.bincount(dense).astype(np.float64)
    indicator = sparse.csr_matrix((1 / sizes[dense], (dense, cells)), shape=(len(present), expression.shape[0]))
    means = (indicator @ expression).toarray()
    total = means.sum(axis=0)
    specificity = np.divide(means, total, out=np.zeros_like(means), where=total > 0)
    best, largest = specificity.argmax(axis=0), specificity.max(axis=0)
    usable = (means.max(axis=0) > MEAN) & (largest > SPECIFICITY)
    chosen: list[int] = []
    for label in range(len(present)):
        own = np.flatnonzero(usable & (best == label))
        chosen += own[np.argsort(-largest[own], kind="stable")][:PER_GROUP].tolist()
    usual = np.array(sorted(chosen), dtype=np.int64)
    return usual, usual[largest[usual] > SUBTYPE_SPECIFICITY]
