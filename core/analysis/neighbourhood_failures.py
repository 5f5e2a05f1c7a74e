"""Where an integration went wrong, cell by cell: leaves of a decision tree over the neighbourhood metrics, and the quality of cells.

A cell is asked three questions in turn: does it agree with its neighbours within its library (``WL``), with those of other libraries
(``XL``) and with those of other data sets (``XD``)? "High" is at least the 25th percentile of the correlations within libraries, "of one kind"
a spread of at most its median there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellweave.core.analysis.neighbourhood_summary import Metrics, library_mask
from cellweave.core.analysis.scores import Column

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Leaf:
    """A leaf of the tree.

    Attributes
    ----------
    name
        Identifier.
    title, help
        Texts for tables and tooltips.
    severity
        Of several leaves of a cell, the one with the smallest severity is its failure; None for what is no failure.
    """

    name: str
    title: str
    help: str
    severity: int | None


LEAVES: dict[str, Leaf] = {
    leaf.name: leaf
    for leaf in (
        Leaf("WL-0_orphan", "Orphan", "No neighbour from its own library.", 0),
        Leaf("WL-1_ideal", "Good within its library", "Agrees with neighbours of its library, all of one kind.", None),
        Leaf("WL-2_merged_related", "Related types merged", "Agrees with its library on the whole, but the neighbours are of several kinds.", 4),
        Leaf("WL-3_noisy", "Noisy", "Agrees with its neighbours no better than with random cells of its library.", 1),
        Leaf("WL-4_false_merge_confident", "Merged wrongly", "Neighbours of its library are of one kind, but not of the cell's.", 2),
        Leaf("WL-5_false_merge_partial", "Partly merged wrongly", "Some neighbours of its library are of the cell's kind, many are not.", 3),
        Leaf("XL-0a_under_integration", "Library kept apart", "Fits in its own library, but has no neighbour from another one.", 2),
        Leaf("XL-0b_compounded_failure", "Apart and unfit", "No neighbour from another library, and a poor fit in its own.", 0),
        Leaf("XL-1_ideal", "Good across libraries", "Agrees with neighbours of other libraries, all of one kind.", None),
        Leaf(
            "XL-2_partial", "Partly good across libraries",
            "Agrees with other libraries on the whole, but the neighbours there are of several kinds.", 5,
        ),
        Leaf(
            "XL-3_wrong_pairing", "Paired wrongly across libraries",
            "Fits in its own library, but is paired with another kind of cell of other libraries.", 3,
        ),
        Leaf(
            "XL-4_forced_distinct", "Forced together across libraries",
            "Fits in its own library; in other libraries its neighbours are of several kinds and do not match.", 4,
        ),
        Leaf("XL-5_poor_model", "Poor everywhere (libraries)", "Neither its own library nor others match.", 1),
        Leaf(
            "XD-0a_dataset_enriched", "Only in this data set",
            "No neighbour in other data sets, and no other model finds one: likely a population of this data set.", None,
        ),
        Leaf("XD-0b_under_integration", "Data set kept apart", "No neighbour in other data sets, though another model finds matching ones.", 4),
        Leaf(
            "XD-0_isolated_unknown", "Isolated, reason not known",
            "No neighbour in other data sets; compare with other runs to tell a population from a failure.", 4,
        ),
        Leaf("XD-0c_cascaded", "Apart since the libraries", "No neighbour in other data sets, nor in other libraries of its own.", 7),
        Leaf("XD-0d_compounded", "Apart and unfit (data sets)", "No neighbour in other data sets, and a poor fit in its own.", 0),
        Leaf("XD-1_ideal", "Good across data sets", "Agrees with neighbours of other data sets, all of one kind.", None),
        Leaf("XD-2_spurious", "Agreement by chance", "Agrees with other data sets, but no better than with random cells of them.", 8),
        Leaf(
            "XD-3_partial", "Partly good across data sets",
            "Agrees with other data sets on the whole, but the neighbours there are of several kinds.", 9,
        ),
        Leaf(
            "XD-4a_wrong_pairing", "Paired wrongly across data sets",
            "Fits across libraries, but is paired with another kind of cell of other data sets.", 3,
        ),
        Leaf(
            "XD-4b_systematic_failure", "Fails beyond its library",
            "Fits in its own library only; paired wrongly across libraries and data sets.", 2,
        ),
        Leaf("XD-5a_forced_merge", "Subtypes forced together", "In other data sets the broad markers match and the markers of subtypes do not.", 5),
        Leaf("XD-5b_semi_random", "Mixed pairing", "Neighbours in other data sets are of several kinds and match little.", 6),
        Leaf("XD-6_poor_model", "Poor everywhere (data sets)", "Neither its own library nor other data sets match.", 1),
    )
}
IDEAL, UNKNOWN = "ideal", "unknown"


@dataclass(frozen=True)
class OtherModels:
    """What other models make of the same cells across data sets.

    Attributes
    ----------
    connected
        Whether some other model joins a cell with matching cells of other data sets, bool ``(n_cells,)``.
    known
        Whether that says something of a cell, bool ``(n_cells,)``. The data without integration alone can show that cells belong
        together, never that they do not.
    """

    connected: Bools
    known: Bools


@dataclass(frozen=True)
class Failures:
    """The leaves of every cell.

    Attributes
    ----------
    levels
        Leaf names by question: ``leaf_within_library``, ``leaf_across_libraries``, ``leaf_across_datasets`` where its column was given, and
        ``failure_mode``, the most severe leaf, or ``ideal``; arrays of str ``(n_cells,)``.
    threshold_high, threshold_spread
        What counted as high and as of one kind.
    """

    levels: dict[str, NDArray[np.str_]]
    threshold_high: float
    threshold_spread: float


def classify(
    metrics: Metrics,
    *,
    random: Mapping[str, Floats] | None = None,
    groups: Mapping[str, Mapping[str, Floats]] | None = None,
    others: OtherModels | None = None,
    threshold_high: float | None = None,
    threshold_spread: float | None = None,
) -> Failures:
    """Put every cell into a leaf.

    Parameters
    ----------
    metrics
        From :func:`cellweave.core.analysis.neighbourhood.cell_metrics`, with ``same_library``.
    random
        ``corr_avg_M`` by the same names on the random graph; without it every agreement counts as above chance.
    groups
        ``corr_avg_M`` on the marker groups ``broad`` and ``subtype``; without them a mixed pairing across data sets is ``XD-5b``: nothing
        shows that the broad markers match.
    others
        What other models make of the cells.
    threshold_high, threshold_spread
        None takes the 25th percentile of ``corr_avg_same_library`` and the median of ``corr_std_same_library``.

    Returns
    -------
    Failures
        The leaves.
    """
    own = np.asarray(metrics["corr_avg_same_library"], dtype=np.float64)
    spread = np.asarray(metrics["corr_std_same_library"], dtype=np.float64)
    high = float(np.nanpercentile(own, 25)) if threshold_high is None and np.isfinite(own).any() else float(threshold_high or 0.0)
    narrow = float(np.nanmedian(spread)) if threshold_spread is None and np.isfinite(spread).any() else float(threshold_spread or 0.0)
    tree = _Tree(metrics, random or {}, high, narrow)
    levels = {"leaf_within_library": tree.within()}
    across = library_mask(metrics)
    if f"corr_avg_{across}" in metrics:
        levels["leaf_across_libraries"] = tree.across_libraries(across, levels["leaf_within_library"])
    if "corr_avg_cross_dataset" in metrics:
        levels["leaf_across_datasets"] = tree.across_datasets(levels, groups or {}, others)
    levels["failure_mode"] = most_severe(list(levels.values()))
    return Failures(levels, high, narrow)


class _Tree:
    def __init__(self, metrics: Metrics, random: Mapping[str, Floats], high: float, narrow: float) -> None:
        self.metrics, self.random, self.high, self.narrow = metrics, random, high, narrow
        self.n_cells = len(metrics["n_neighbours_total"])

    def _of(self, mask: str) -> tuple[Bools, Bools, Bools, Bools]:
        """Return which cells have neighbours of a kind, agree with them, have them of one kind, and agree above chance."""
        some = np.asarray(self.metrics[f"n_neighbours_{mask}"], dtype=np.int64) > 0
        correlation = np.nan_to_num(np.asarray(self.metrics[f"corr_avg_{mask}"], dtype=np.float64), nan=-np.inf)
        spread = np.nan_to_num(np.asarray(self.metrics[f"corr_std_{mask}"], dtype=np.float64), nan=np.inf)
        chance = self.random.get(f"corr_avg_{mask}")
        above = correlation > np.nan_to_num(chance, nan=0.0) if chance is not None else np.isfinite(correlation)
        return some, correlation >= self.high, spread <= self.narrow, above

    def within(self) -> NDArray[np.str_]:
        some, high, uniform, above = self._of("same_library")
        low = some & ~high
        return _select(
            self.n_cells,
            {
                "WL-0_orphan": ~some,
                "WL-1_ideal": some & high & uniform,
                "WL-2_merged_related": some & high & ~uniform,
                "WL-3_noisy": low & ~above,
                "WL-4_false_merge_confident": low & above & uniform,
                "WL-5_false_merge_partial": low & above & ~uniform,
            },
        )

    def across_libraries(self, mask: str, within: NDArray[np.str_]) -> NDArray[np.str_]:
        some, high, uniform, _ = self._of(mask)
        fits = np.isin(within, ["WL-1_ideal", "WL-2_merged_related"])
        low = some & ~high
        return _select(
            self.n_cells,
            {
                "XL-0a_under_integration": ~some & fits,
                "XL-0b_compounded_failure": ~some & ~fits,
                "XL-1_ideal": some & high & uniform,
                "XL-2_partial": some & high & ~uniform,
                "XL-3_wrong_pairing": low & fits & uniform,
                "XL-4_forced_distinct": low & fits & ~uniform,
                "XL-5_poor_model": low & ~fits,
            },
        )

    def across_datasets(
        self, levels: Mapping[str, NDArray[np.str_]], groups: Mapping[str, Mapping[str, Floats]], others: OtherModels | None
    ) -> NDArray[np.str_]:
        some, high, uniform, above = self._of("cross_dataset")
        fits = np.isin(levels["leaf_within_library"], ["WL-1_ideal", "WL-2_merged_related"])
        libraries = levels.get("leaf_across_libraries")
        if libraries is None:
            paired, apart = np.ones(self.n_cells, dtype=bool), np.zeros(self.n_cells, dtype=bool)
        else:
            paired, apart = np.isin(libraries, ["XL-1_ideal", "XL-2_partial"]), libraries == "XL-0a_under_integration"
        known = np.zeros(self.n_cells, dtype=bool) if others is None else others.known
        connected = np.zeros(self.n_cells, dtype=bool) if others is None else others.connected
        alone, low = ~some & paired, some & ~high
        forced = self._forced(groups)
        return _select(
            self.n_cells,
            {
                "XD-0a_dataset_enriched": alone & known & ~connected,
                "XD-0b_under_integration": alone & known & connected,
                "XD-0_isolated_unknown": alone & ~known,
                "XD-0c_cascaded": ~some & apart,
                "XD-0d_compounded": ~some & ~paired & ~apart,
                "XD-1_ideal": some & high & above & uniform,
                "XD-3_partial": some & high & above & ~uniform,
                "XD-2_spurious": some & high & ~above,
                "XD-4a_wrong_pairing": low & fits & uniform & paired,
                "XD-4b_systematic_failure": low & fits & uniform & ~paired,
                "XD-5a_forced_merge": low & fits & ~uniform & forced,
                "XD-5b_semi_random": low & fits & ~uniform & ~forced,
                "XD-6_poor_model": low & ~fits,
            },
        )

    def _forced(self, groups: Mapping[str, Mapping[str, Floats]]) -> Bools:
        """Return where broad markers match across data sets and those of subtypes do not."""
        broad, subtype = (groups.get(name, {}).get("corr_avg_cross_dataset") for name in ("broad", "subtype"))
        if broad is None or subtype is None:
            return np.zeros(self.n_cells, dtype=bool)
        with np.errstate(invalid="ignore"):
            return (broad >= self.high) & (subtype < self.high)


def _select(n_cells: int, conditions: Mapping[str, Bools]) -> NDArray[np.str_]:
    """Return the name of the condition that holds for each cell; they exclude one another and leave no cell out."""
    found = np.full(n_cells, UNKNOWN, dtype="U32")
    for name, holds in conditions.items():
        found[holds] = name
    return found


def most_severe(levels: Sequence[NDArray[np.str_]]) -> NDArray[np.str_]:
    """Return for each cell the leaf with the smallest severity, the earlier question first; ``ideal`` where none is a failure."""
    found = np.full(len(levels[0]), IDEAL, dtype="U32")
    worst = np.full(len(levels[0]), np.iinfo(np.int64).max)
    for leaves in levels:
        for name, leaf in LEAVES.items():
            if leaf.severity is None:
                continue
            worse = (leaves == name) & (leaf.severity < worst)
            found[worse], worst[worse] = name, leaf.severity
    return found


# ---------------------------------------------------------------------- the quality of cells

QUALITY = ("good", "rare", "poor_quality", "uncertain")


def cell_quality(
    metrics: Metrics,
    library: Column,
    *,
    lineages: Mapping[str, Floats] | None = None,
    ambient_fraction: Floats | None = None,
    perplexity: Floats | None = None,
) -> dict[str, NDArray[np.generic]]:
    """Tell good cells from rare, poor and uncertain ones.

    Parameters
    ----------
    metrics
        With ``corr_avg_same_library``.
    library
        Library of each cell.
    lineages
        ``corr_avg_same_library`` on the markers of each lineage.
    ambient_fraction
        Share of a cell's counts that the model holds for background; above 0.5 is poor.
    perplexity
        Perplexity of the expected expression; below 50 is poor.

    Returns
    -------
    dict
        ``quality_deviation`` (correlation within the library minus the library's median), ``quality_best_lineage`` (its correlation), ``quality``: ``good``
        at or above the library's median, else ``rare`` where one lineage's markers agree by more than 0.3, else ``poor_quality`` or ``uncertain``.
    """
    own = np.asarray(metrics["corr_avg_same_library"], dtype=np.float64)
    middle = np.full(len(own), np.nan)
    for code in np.unique(library.codes[library.codes >= 0]):
        inside = library.codes == code
        values = own[inside & np.isfinite(own)]
        middle[inside] = np.median(values) if len(values) else np.nan
    deviation = own - middle
    best = np.full(len(own), np.nan)
    for values in (lineages or {}).values():
        best = np.fmax(best, values)
    poor = np.zeros(len(own), dtype=bool)
    with np.errstate(invalid="ignore"):
        if ambient_fraction is not None:
            poor |= ambient_fraction > 0.5
        if perplexity is not None:
            poor |= perplexity < 50
        verdict = np.select([deviation >= 0, best > 0.3, poor], QUALITY[:3], default=QUALITY[3])
    return {"quality_deviation": deviation, "quality_best_lineage": best, "quality": verdict}
