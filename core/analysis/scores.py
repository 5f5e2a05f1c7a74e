"""How well batches mix and labels stay: scores on the nearest neighbours of each cell.

Every score looks at the ``k`` nearest neighbours of a cell (30 unless the spec says otherwise), the cell itself not
counted, and is given with what chance would give, so that it can be read without knowing how large the batches are.
Cells whose batch or label is not known are neither scored nor counted as neighbours. With ``n_b`` of the ``n`` known
cells in batch ``b``:

``batch_same_share``
    Share of the neighbours that come from the cell's own batch. By chance ``(n_b - 1) / (n - 1)``.
``batch_mixing``
    ``(1 - batch_same_share) / (1 - chance)``: 0 where every neighbour is from the own batch, 1 where
    batches are mixed as by chance.
``batch_same_share_in_label``, ``batch_mixing_in_label``
    The same among the neighbours that have the cell's own label, against chance within that label: batches that differ in
    composition can only be compared so.
``label_purity``
    Share of the labelled neighbours that have the cell's own label. By chance ``(n_l - 1) / (n - 1)``.
``label_accuracy``
    Share of the labelled cells whose label is the most frequent one among their neighbours. By chance the share of
    the largest label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellweave.core.analysis.neighbours import Neighbours

Codes = NDArray[np.integer[Any]]
#: Above this many cells the scores are taken on a random sample of that size, the same one for latent and baseline.
SCORED_CELLS = 100_000


@dataclass(frozen=True)
class ScoreInfo:
    """What a score means, for tables and tooltips."""

    title: str
    help: str
    higher_is_better: bool
    about: str


SCORES: dict[str, ScoreInfo] = {
    "batch_mixing": ScoreInfo(
        "Batch mixing", "1 where batches are mixed as by chance, 0 where every neighbour is from the own batch.", higher_is_better=True, about="batch"
    ),
    "batch_same_share": ScoreInfo("Neighbours from the same batch", "Near the share by chance where batches are mixed.", higher_is_better=False, about="batch"),
    "batch_mixing_in_label": ScoreInfo(
        "Batch mixing within labels", "Batch mixing among the neighbours with the same label.", higher_is_better=True, about="batch"
    ),
    "batch_same_share_in_label": ScoreInfo(
        "Neighbours from the same batch, within labels", "The share among the neighbours with the same label.", higher_is_better=False, about="batch"
    ),
    "label_purity": ScoreInfo("Neighbours with the same label", "1 where labels do not touch each other.", higher_is_better=True, about="label"),
    "label_accuracy": ScoreInfo("Labels found by neighbours", "Share of cells whose neighbours mostly have their label.", higher_is_better=True, about="label"),
}


@dataclass(frozen=True)
class Column:
    """A categorical column as codes.

    Attributes
    ----------
    codes
        Level of each cell, ``(n_cells,)``, -1 where it is missing.
    levels
        Names of the levels.
    """

    codes: Codes
    levels: tuple[str, ...]

    def take(self, rows: NDArray[np.integer[Any]]) -> Column:
        """Return the column of some cells."""
        return Column(self.codes[rows], self.levels)


def scored_rows(n_cells: int, *, limit: int = SCORED_CELLS, seed: int = 0) -> NDArray[np.int64]:
    """Return the rows the scores are taken on: all of them, or a random sample in rising order."""
    if n_cells <= limit:
        return np.arange(n_cells)
    return np.sort(np.random.default_rng(seed).choice(n_cells, limit, replace=False))


def neighbour_scores(neighbours: Neighbours, *, batch: Column | None = None, labels: Column | None = None) -> list[dict[str, Any]]:
    """Score one embedding.

    Parameters
    ----------
    neighbours
        Nearest neighbours in the embedding.
    batch, labels
        What each cell is; a column with fewer than two levels gives no score.

    Returns
    -------
    list of dict
        ``name``, ``group`` (a level, or "" for all cells), ``value``, ``expected`` (by chance). Scores that no cell can be given
        are left out.
    """
    batch = batch if batch is not None and _n_present(batch) > 1 else None
    labels = labels if labels is not None and _n_present(labels) > 1 else None
    found: list[dict[str, Any]] = []
    if batch is not None:
        share, chance = _same_share(neighbours.indices, batch.codes)
        found += _mixing(share, chance, batch, "")
    if labels is not None:
        purity, chance = _same_share(neighbours.indices, labels.codes)
        found += _by_group("label_purity", purity, chance, labels)
        right, largest = _majority(neighbours.indices, labels)
        found += _by_group("label_accuracy", right, np.where(np.isnan(right), np.nan, largest), labels, expected_by_group=False)
    if batch is not None and labels is not None:
        share, chance = _same_share(neighbours.indices, batch.codes, within=labels.codes)
        found += _mixing(share, chance, batch, "_in_label")
    return found


def beside(scores: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Put the baseline's value beside each score: ``name``, ``group``, ``value``, ``baseline``, ``expected``.

    ``baseline`` is None where the baseline has no such score.
    """
    other = {(row["name"], row["group"]): row["value"] for row in baseline or ()}
    return [
        {
            "name": row["name"],
            "group": row["group"],
            "value": row["value"],
            "baseline": other.get((row["name"], row["group"])),
            "expected": row["expected"],
        }
        for row in scores
    ]


def _n_present(column: Column) -> int:
    return len(np.unique(column.codes[column.codes >= 0]))


def _same_share(
    indices: NDArray[np.int32], codes: Codes, *, within: Codes | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return per cell the share of neighbours with its own code, and the share by chance; NaN where there is none to compare.

    With ``within``, only neighbours (and, for chance, cells) with the cell's own code of that column are looked at.
    """
    comparable = codes[indices] >= 0
    known = codes >= 0
    if within is not None:
        comparable &= within[indices] == within[:, None]
        known = known & (within >= 0)
    same = (codes[indices] == codes[:, None]) & comparable
    n_compared = comparable.sum(axis=1)
    usable = known & (n_compared > 0)
    share = np.full(len(codes), np.nan)
    share[usable] = same.sum(axis=1)[usable] / n_compared[usable]

    strata = np.where(known, 0 if within is None else within, 0)
    levels = int(codes.max(initial=0)) + 1
    cells = strata.astype(np.int64) * levels + np.where(known, codes, 0)
    size_own = np.bincount(cells[known], minlength=int(cells.max(initial=0)) + 1)[cells]
    size_all = np.bincount(strata[known], minlength=int(strata.max(initial=0)) + 1)[strata]
    chance = np.full(len(codes), np.nan)
    usable = usable & (size_all > 1)
    share[~usable] = np.nan
    chance[usable] = (size_own[usable] - 1) / (size_all[usable] - 1)
    return share, chance


def _majority(indices: NDArray[np.int32], labels: Column, block: int = 20_000) -> tuple[NDArray[np.float64], float]:
    """Return per cell 1 where the most frequent label of its neighbours is its own, 0 where not, NaN where nothing is known."""
    codes = labels.codes
    n_levels = int(codes.max(initial=0)) + 1
    right = np.full(len(codes), np.nan)
    for start in range(0, len(codes), block):
        near = codes[indices[start : start + block]]
        rows, columns = np.nonzero(near >= 0)
        votes = np.zeros((len(near), n_levels), dtype=np.int32)
        np.add.at(votes, (rows, near[rows, columns]), 1)
        own = codes[start : start + block]
        usable = (own >= 0) & (votes.sum(axis=1) > 0)
        right[start : start + block][usable] = (votes.argmax(axis=1) == own)[usable]
    known = codes[codes >= 0]
    return right, float(np.bincount(known).max() / len(known))


def _mixing(share: NDArray[np.float64], chance: NDArray[np.float64], batch: Column, suffix: str) -> list[dict[str, Any]]:
    rows = _by_group(f"batch_same_share{suffix}", share, chance, batch)
    mixing = []
    for row in rows:
        if row["expected"] < 1:
            value = (1 - row["value"]) / (1 - row["expected"])
            mixing.append({"name": f"batch_mixing{suffix}", "group": row["group"], "value": value, "expected": 1.0})
    return mixing + rows


def _by_group(
    name: str, values: NDArray[np.float64], chance: NDArray[np.float64], column: Column, *, expected_by_group: bool = True
) -> list[dict[str, Any]]:
    """Return the mean over all cells and over the cells of each level.

    ``expected_by_group`` says whether chance has a meaning within one level; a vote that always names the largest label has not.
    """
    usable = np.isfinite(values)
    if not usable.any():
        return []
    rows = [{"name": name, "group": "", "value": float(values[usable].mean()), "expected": float(chance[usable].mean())}]
    codes = column.codes[usable]
    size = np.bincount(codes, minlength=len(column.levels))
    total = np.bincount(codes, weights=values[usable], minlength=len(column.levels))
    expected = np.bincount(codes, weights=chance[usable], minlength=len(column.levels))
    for code in np.flatnonzero(size):
        by_chance = float(expected[code] / size[code]) if expected_by_group else None
        rows.append({"name": name, "group": column.levels[code], "value": float(total[code] / size[code]), "expected": by_chance})
    return rows
