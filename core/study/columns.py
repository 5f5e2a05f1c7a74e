"""What each column of obs is, what it may serve as, and which columns say the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellweave.core.spec.covariates import ROLES
from cellweave.core.study.header import ColumnHeader, ColumnKind
from cellweave.core.study.readers.frames import describe_values
from cellweave.core.wording import counted

if TYPE_CHECKING:
    from cellweave.core.models.declare import Family

MISSING_LEVEL = "(missing)"
MANY_NUMBERS = 30  # a numeric column with more different values than this is taken for a measurement, not for groups
LEVELS_SHOWN = 200
GROUP_ROLES = tuple(role for role in ROLES if role not in ("continuous", "size_factor"))


@dataclass(frozen=True)
class ColumnInfo:
    """One column of obs, as the covariates panel shows it.

    Attributes
    ----------
    name, kind
        What it is.
    n_cells
        Number of cells.
    n_levels
        Different values, missing ones not counted.
    n_missing
        Cells without a value.
    smallest, largest
        Level with the fewest and with the most cells, with their number; None where there is no value.
    levels
        Levels with their numbers, most cells first, at most 200; empty for measurements.
    advice
        For each role what speaks against it, empty where nothing does.
    whole
        Whether a column of numbers holds whole ones only.
    """

    name: str
    kind: ColumnKind
    n_cells: int
    n_levels: int
    n_missing: int
    smallest: tuple[str, int] | None
    largest: tuple[str, int] | None
    levels: tuple[tuple[str, int], ...] = ()
    advice: Mapping[str, str] = field(default_factory=dict)
    whole: bool = False

    def suits(self, role: str) -> bool:
        """Return whether nothing speaks against the role."""
        return not self.advice.get(role, "")

    @property
    def header(self) -> ColumnHeader:
        """The same in the header's form."""
        return ColumnHeader(self.name, self.kind, self.n_levels, self.n_missing, self.whole)


def describe_columns(obs: pd.DataFrame) -> list[ColumnInfo]:
    """Describe every column of obs.

    Parameters
    ----------
    obs
        One row a cell.

    Returns
    -------
    list of ColumnInfo
        In the order of the columns.
    """
    return [describe_column(obs[name]) for name in obs.columns]


def describe_column(values: pd.Series) -> ColumnInfo:
    """Describe one column."""
    header = describe_values(str(values.name), values)
    counts = values.value_counts(dropna=True)
    counts = counts[counts > 0]
    smallest = largest = None
    if len(counts):
        smallest = (_level(counts.index[-1]), int(counts.iloc[-1]))
        largest = (_level(counts.index[0]), int(counts.iloc[0]))
    listed = () if is_measurement(header) else tuple(
        (_level(level), int(number)) for level, number in counts.iloc[:LEVELS_SHOWN].items()
    )
    advice = {role: against_groups(header, len(values)) for role in GROUP_ROLES}
    advice["continuous"] = _against_continuous(values, header)
    advice["size_factor"] = _against_size_factor(values, header)
    return ColumnInfo(
        header.name, header.kind, len(values), len(counts), header.n_missing or 0, smallest, largest, listed, advice, header.whole
    )


def _level(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def is_measurement(header: ColumnHeader) -> bool:
    """Return whether a column holds numbers that vary like a measurement rather than codes of groups."""
    return header.kind == "float" and not header.whole and (header.n_levels or 0) > MANY_NUMBERS


def is_level_per_cell(header: ColumnHeader, n_cells: int) -> bool:
    """Return whether nearly every cell has a level of its own."""
    return header.n_levels is not None and n_cells >= 4 and header.n_levels > 0.5 * n_cells


def against_groups(header: ColumnHeader, n_cells: int) -> str:
    """Return what speaks against a column as groups of cells, or nothing."""
    if header.kind == "other":
        return "neither text nor numbers"
    if header.n_levels == 0:
        return "no values"
    if is_measurement(header):
        return f"numeric with {counted(header.n_levels or 0, 'value')}: a measurement, not groups"
    if is_level_per_cell(header, n_cells):
        return "nearly a level per cell"
    if header.n_levels == 1:
        return "one level only"
    if header.whole and (header.n_levels or 0) > MANY_NUMBERS:
        return f"whole numbers with {counted(header.n_levels or 0, 'value')}: more likely a count than groups"
    if header.n_missing:
        return f"{counted(header.n_missing, 'cell has', 'cells have')} no value"
    return ""


def _against_continuous(values: pd.Series, header: ColumnHeader) -> str:
    if header.kind not in ("float", "integer"):
        return "not numbers"
    if header.n_missing:
        return f"{counted(header.n_missing, 'cell has', 'cells have')} no value"
    numbers = values.to_numpy(dtype=np.float64)
    if not np.isfinite(numbers).all():
        return "not all finite"
    if len(numbers) and numbers.min() == numbers.max():
        return "the same value in all cells"
    if (header.n_levels or 0) <= 2:
        return "two values only: rather groups"
    return ""


def _against_size_factor(values: pd.Series, header: ColumnHeader) -> str:
    against = _against_continuous(values, header)
    if against and not against.startswith(("the same", "two values")):
        return against
    return "" if float(values.min()) > 0 else "not all positive"


def crosstab(obs: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Count the cells in each pair of levels of two columns.

    Returns
    -------
    pandas.DataFrame
        Levels of ``first`` in rows, of ``second`` in columns; missing values as a level of their own, last.
    """
    rows, columns = _with_missing(obs[first]), _with_missing(obs[second])
    shape = len(rows.categories), len(columns.categories)
    cells = np.bincount(rows.codes.astype(np.int64) * shape[1] + columns.codes, minlength=shape[0] * shape[1]).reshape(shape)
    return pd.DataFrame(cells, pd.Index(rows.categories, name=first), pd.Index(columns.categories, name=second))


def _with_missing(values: pd.Series) -> pd.Categorical[Any]:
    if isinstance(values.dtype, pd.CategoricalDtype):
        codes, levels = values.cat.codes.to_numpy(), list(values.cat.categories)
    else:
        codes, found = pd.factorize(values)
        order = sorted(range(len(found)), key=lambda code: str(found[code]))
        levels = [found[code] for code in order]
        codes = np.append(np.argsort(np.array(order, dtype=np.int64)), -1)[codes]  # -1 takes the last, which stands for missing
    names = [*(_level(level) for level in levels), MISSING_LEVEL]
    unique = pd.Index(list(dict.fromkeys(names)), dtype=object)
    return pd.Categorical.from_codes(unique.get_indexer(pd.Index(names, dtype=object))[codes], unique).remove_unused_categories()


def confounded(obs: pd.DataFrame, first: str, second: str) -> str:
    """Say how two columns say the same, or nothing.

    Cells with a missing value in either are left aside.

    Returns
    -------
    str
        Empty where the columns cross; else a sentence: they divide the cells alike, or each level of one lies within
        one level of the other.
    """
    there = (obs[first].notna() & obs[second].notna()).to_numpy()
    if not there.any():
        return ""
    a, n_a = _codes(obs[first][there])
    b, n_b = _codes(obs[second][there])
    if n_a < 2 or n_b < 2:
        return ""
    n_pairs = len(np.unique(a.astype(np.int64) * n_b + b))
    if n_pairs == n_a == n_b:
        return f"'{first}' and '{second}' divide the cells in the same way."
    if n_pairs == n_a:
        return f"Each level of '{first}' lies within one level of '{second}'."
    if n_pairs == n_b:
        return f"Each level of '{second}' lies within one level of '{first}'."
    return ""


def _codes(values: pd.Series) -> tuple[np.ndarray, int]:
    codes, levels = pd.factorize(values)
    return codes, len(levels)


def several_parents(obs: pd.DataFrame, child: str, parent: str) -> list[str]:
    """Return the levels of ``child`` that occur in more than one level of ``parent``; cells with a missing value in either are left aside."""
    table = crosstab(obs[obs[child].notna() & obs[parent].notna()], child, parent)
    spread = (table.to_numpy() > 0).sum(axis=1) > 1
    return [str(level) for level in table.index[spread]]


# Names by role, the likeliest first; compared in lower case with separators taken out.
USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "batch": ("batch", "batchid", "batchkey", "batchindices", "sample", "sampleid", "library", "donor", "patient", "tech", "technology",
              "chemistry", "dataset", "study", "lane", "plate", "experiment", "replicate", "origident", "file", "condition"),
    "library": ("library", "libraryid", "lane", "channel", "capture", "well", "gemwell", "sample", "sampleid"),
    "dataset": ("dataset", "datasetid", "study", "studyid", "project", "cohort"),
    "labels": ("celltype", "celltypes", "celltypel1", "celltypel2", "celltypecoarse", "labels", "label", "celllabels",
               "cellannotation", "annotation", "annotations",
               "celltypeannotation", "bulklabels", "cellontologyclass", "cluster", "clusters", "cellcluster", "paul15clusters", "leiden",
               "louvain", "seuratclusters"),
}  # fmt: skip
CONDITION_NAMES = ("condition", "treatment", "treated", "stim", "stimulation", "disease", "diseasestate", "diagnosis", "status", "samplestatus",
                   "perturbation", "genotype", "timepoint", "time", "group", "phenotype")  # fmt: skip


def simple_name(name: str) -> str:
    """Return a column name in lower case without separators."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def suggest_roles(columns: pd.DataFrame | Iterable[ColumnInfo], family: Family | None = None) -> dict[str, str]:
    """Propose columns for roles from their names and what they hold.

    Parameters
    ----------
    columns
        obs, or its columns described.
    family
        Leave out roles that this family does not use.

    Returns
    -------
    dict
        Column by role, for roles of one column only; nothing that the advice speaks against, except that labels may
        be missing in some cells. Columns that programs keep for themselves (names with a leading underscore) are
        never proposed.
    """
    infos = describe_columns(columns) if isinstance(columns, pd.DataFrame) else list(columns)
    infos = [info for info in infos if not info.name.startswith("_")]
    found: dict[str, str] = {}
    for role, names in USUAL_NAMES.items():
        if family is not None and family.uses(role) is None:
            continue
        good = _suits_labels if role == "labels" else lambda info, role=role: info.suits(role)
        choice = _best(infos, names, good, taken=tuple(found.values()))
        if choice:
            found[role] = choice
    return found


def _suits_labels(info: ColumnInfo) -> bool:
    return info.n_levels >= 2 and (info.suits("labels") or info.advice["labels"].endswith("have no value")) and info.kind != "float"


def _best(infos: Sequence[ColumnInfo], names: Sequence[str], good: Callable[[ColumnInfo], bool], taken: Sequence[str]) -> str:
    for wanted in names:
        for info in infos:
            if simple_name(info.name) == wanted and info.name not in taken and good(info):
                return info.name
    return ""
