"""What the Neighbourhood view shows: failure leaves and correlations of cells, and the summary. No Qt here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from cellweave.app.state.results import Cells

#: Which leaves a level holds, in words.
LEVELS = {
    "failure_mode": "What went wrong", "leaf_within_library": "Within its library", "leaf_across_libraries": "Across libraries",
    "leaf_across_datasets": "Across data sets",
}  # fmt: skip
GOOD = "#009E73"
#: Colour of a leaf by what it says: green fits, olive partly fits, blue is kept apart, vermilion is paired wrongly, orange is mixed, pink is poor; in each
#: hue a shade of its own, since one picture may show several.
COLOURS = {
    "ideal": GOOD, "WL-1_ideal": GOOD, "XL-1_ideal": GOOD, "XD-1_ideal": GOOD,
    "WL-2_merged_related": "#9BB83A", "XL-2_partial": "#6B8E23", "XD-3_partial": "#CBDD80",
    "WL-0_orphan": "#00487A", "XL-0a_under_integration": "#0072B2", "XL-0b_compounded_failure": "#5A6FB0", "XD-0a_dataset_enriched": "#56B4E9",
    "XD-0b_under_integration": "#2B8FD6", "XD-0_isolated_unknown": "#93BFE3", "XD-0c_cascaded": "#3D6FA8", "XD-0d_compounded": "#7C6FC4",
    "WL-4_false_merge_confident": "#D55E00", "XL-3_wrong_pairing": "#F4845F", "XD-4a_wrong_pairing": "#B5402A", "XD-4b_systematic_failure": "#8A3B12",
    "WL-5_false_merge_partial": "#E69F00", "XL-4_forced_distinct": "#B8860B", "XD-5a_forced_merge": "#F7C948", "XD-5b_semi_random": "#8F7426",
    "WL-3_noisy": "#CC79A7", "XL-5_poor_model": "#9E5488", "XD-6_poor_model": "#75407F", "XD-2_spurious": "#E5A9CB",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Diagnosed:
    """The diagnostics of a run.

    Attributes
    ----------
    rows, names, xy
        The cells that are shown: those of the embedding, or all diagnosed cells where there is none.
    columns
        :class:`~cellweave.core.export.run_data.ColumnValues` of these cells by name, the levels of ``LEVELS`` first.
    leaves
        By level of ``LEVELS``, the leaf of each cell; empty where it was not diagnosed.
    summary
        ``neighbourhood.json``.
    """

    rows: NDArray[np.int64]
    names: NDArray[Any]
    xy: NDArray[np.float32]
    columns: dict[str, Any]
    leaves: dict[str, NDArray[np.str_]]
    summary: dict[str, Any]

    def rows_of(self, level: str, leaf: str) -> NDArray[np.int64]:
        """Return the rows of the study that are in a leaf."""
        return self.rows[self.leaves[level] == leaf]


def leaf_title(name: str) -> str:
    """Return what a leaf is called."""
    from cellweave.core.analysis.neighbourhood_failures import LEAVES

    return LEAVES[name].title if name in LEAVES else {"ideal": "Nothing: fits everywhere"}.get(name, name)


def leaf_help(name: str) -> str:
    """Return one sentence on a leaf."""
    from cellweave.core.analysis.neighbourhood_failures import LEAVES

    return LEAVES[name].help if name in LEAVES else "Agrees with its neighbours wherever they come from."


def read_diagnosed(results: Path, cells: Cells | None, xy: NDArray[np.float32] | None) -> Diagnosed | None:
    """Read the diagnostics of a run; None where it has none.

    Parameters
    ----------
    results
        ``results/`` of the run.
    cells, xy
        The cells of the embedding and their places, where there is one.
    """
    from cellweave.core.analysis.neighbourhood_run import SUMMARY, read_cells
    from cellweave.core.errors import RunFolderError

    try:
        summary = json.loads((results / SUMMARY).read_text(encoding="utf-8"))
        table = read_cells(results)
    except (OSError, ValueError, RunFolderError):
        return None
    if cells is not None and xy is not None and len(cells.rows) and cells.rows.max() < len(table):
        rows, names, places = cells.rows.astype(np.int64), cells.names, xy
        more = cells.columns
    else:
        rows = np.flatnonzero(table["n_neighbours_total"].notna().to_numpy()).astype(np.int64)
        names, places, more = table["name"].to_numpy()[rows], np.full((len(rows), 2), np.nan, np.float32), {}
    shown = table.iloc[rows]
    leaves = {level: shown[level].fillna("").to_numpy(dtype="U32") for level in LEVELS if level in shown}
    return Diagnosed(rows, names, places, {**_columns(shown, leaves), **more}, leaves, summary)


def _columns(shown: Any, leaves: dict[str, NDArray[np.str_]]) -> dict[str, Any]:
    from cellweave.core.export.run_data import ColumnValues

    found: dict[str, Any] = {}
    for level, values in leaves.items():
        present = [name for name in COLOURS if (values == name).any()]
        codes = np.full(len(values), -1, dtype=np.int32)
        for code, name in enumerate(present):
            codes[values == name] = code
        found[LEVELS[level]] = ColumnValues.of_levels(LEVELS[level], codes, [leaf_title(name) for name in present])
    if "quality" in shown:
        found["Quality of cells"] = ColumnValues.of_series("Quality of cells", shown["quality"].str.replace("_", " "))
    for name in shown:
        if name.startswith(("corr_avg_", "corr_std_", "n_neighbours_")):
            found[metric_title(name)] = ColumnValues.of_numbers(metric_title(name), shown[name].to_numpy(dtype=np.float64, na_value=np.nan))
    return found


def metric_title(name: str) -> str:
    """Return what a metric of cells is called: ``corr_avg_same_library`` is 'Correlation, same library'."""
    for prefix, words in (("corr_avg_", "Correlation"), ("corr_std_", "Spread of correlations"), ("n_neighbours_", "Neighbours")):
        if name.startswith(prefix):
            return f"{words}, {name.removeprefix(prefix).replace('_', ' ')}"
    return name.replace("_", " ")


def chosen_colours() -> dict[str, dict[str, str]]:
    """Return the colours of leaves as the clouds take them, by column and level."""
    return {title: {leaf_title(name): colour for name, colour in COLOURS.items()} for title in LEVELS.values()}
