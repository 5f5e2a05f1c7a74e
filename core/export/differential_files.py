"""Comparisons of groups of cells that are kept in the run folder: a table, and the settings it was made with."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cellweave.core.errors import CellweaveError, RunFolderError
from cellweave.core.files import write_atomic, write_json_atomic

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "differential"
STRONG_EVIDENCE = 3.0  # natural logarithm of the odds; Kass & Raftery (1995) speak of strong evidence from there on
VANILLA_RULE = f"called where |Bayes factor| > {STRONG_EVIDENCE:g}"
LONGEST = 60  # letters of a file name


@dataclass(frozen=True, eq=False)
class KeptComparison:
    """A comparison in a run folder.

    Attributes
    ----------
    name
        Of its files.
    title
        What was compared: ``"B vs T"``.
    method
        ``"model"`` or ``"pseudobulk"``.
    settings
        Groups and options.
    made
        When, ISO 8601 with the zone.
    notes
        What a person should know.
    """

    name: str
    title: str
    method: str = "model"
    settings: dict[str, Any] = field(default_factory=dict)
    made: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Volcano:
    """Points of a volcano plot.

    Attributes
    ----------
    x, y
        Fold change, and how sure one is of it, ``(n_features,)``; NaN where it is not known.
    x_title, y_title
        Of the axes.
    called
        Which features are called different, ``(n_features,)``.
    ceiling
        The largest value that ``y`` can take with so many samples; NaN where there is none.
    rule
        When a feature is called, in words; empty where a column of the table says it.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    x_title: str
    y_title: str
    called: NDArray[np.bool_]
    ceiling: float = float("nan")
    rule: str = ""


def keep_comparison(folder: Path, table: pd.DataFrame, settings: dict[str, Any], *, method: str) -> KeptComparison:
    """Write a table and its settings into the run folder.

    Parameters
    ----------
    folder
        The run folder.
    table
        As :func:`cellweave.core.query.differential.differential` returns it, or the pseudobulk test.
    settings
        Groups and options, as plain values.
    method
        ``"model"`` or ``"pseudobulk"``.

    Raises
    ------
    CellweaveError
        Where it cannot be written.
    """
    title = str(table["comparison"].iloc[0])
    if method == "model" and settings.get("mode") == "vanilla":
        settings = {**settings, "called": VANILLA_RULE}  # no column of the table says it
    place = folder / "results" / FOLDER
    stem = re.sub(r"[^\w.+-]+", "-", title).strip("-.")[:LONGEST] or "comparison"
    try:
        place.mkdir(parents=True, exist_ok=True)
        name, number = stem, 1
        while (place / f"{name}.csv").exists():
            number += 1
            name = f"{stem}-{number}"
        made = datetime.now().astimezone().isoformat(timespec="seconds")
        kept = KeptComparison(name, title, method, settings, made, tuple(table.attrs.get("notes", ())))
        write_atomic(place / f"{name}.csv", lambda path: table.to_csv(path, index_label="feature"))
        write_json_atomic(
            place / f"{name}.json", {"title": title, "method": method, "made": made, "notes": list(kept.notes), "settings": settings}
        )
    except OSError as error:
        raise CellweaveError(f"The comparison cannot be kept in '{place}': {error.strerror or error}.", "Free some space, or check the folder.") from error
    return kept


def kept_comparisons(folder: Path) -> list[KeptComparison]:
    """Return the comparisons of a run folder, the newest first; one whose settings cannot be read has none."""
    found = []
    for path in (folder / "results" / FOLDER).glob("*.csv"):
        try:
            told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            found.append(
                KeptComparison(
                    path.stem, str(told["title"]), str(told["method"]), dict(told["settings"]), str(told["made"]), tuple(map(str, told["notes"]))
                )
            )
        except (OSError, ValueError, KeyError, TypeError):
            found.append(KeptComparison(path.stem, path.stem))
    return sorted(found, key=lambda each: (each.made, each.name), reverse=True)


def read_comparison(folder: Path, name: str) -> pd.DataFrame:
    """Read the table of a comparison, features by name.

    Raises
    ------
    RunFolderError
        Where there is none of that name, or it cannot be read.
    """
    import pandas as pd

    path = folder / "results" / FOLDER / f"{name}.csv"
    if Path(name).name != name or not path.is_file():
        known = [kept.name for kept in kept_comparisons(folder)]
        mend = f"There are {', '.join(known[:5])}." if known else "Compare two groups of cells first."
        raise RunFolderError(f"The run '{folder.name}' has no comparison '{name}'.", mend)
    text = {"feature": str, "comparison": str, "group1": str, "group2": str}
    try:
        table = pd.read_csv(path, dtype=text, keep_default_na=False, index_col="feature")
    except (OSError, ValueError, KeyError) as error:
        raise RunFolderError(f"The comparison '{name}' cannot be read: {error}.", "Compare the groups again.") from None
    for column in table.columns.difference(list(text)):
        if table[column].dtype == object:
            table[column] = pd.to_numeric(table[column], errors="coerce")
    return table


def remove_comparison(folder: Path, name: str) -> None:
    """Take a comparison out of the run folder.

    Raises
    ------
    CellweaveError
        Where its files cannot be removed.
    """
    place = folder / "results" / FOLDER
    try:
        for suffix in (".csv", ".json"):
            (place / f"{name}{suffix}").unlink(missing_ok=True)
    except OSError as error:
        raise CellweaveError(f"The comparison '{name}' cannot be removed: {error.strerror or error}.", "Check that you may write there.") from error


def volcano(table: pd.DataFrame, settings: dict[str, Any] | None = None) -> Volcano:
    """Return the points of a volcano plot: fold change against how sure one is of it.

    Parameters
    ----------
    table
        A comparison: of the model in mode ``change`` (``lfc_mean`` against minus the log10 of ``proba_not_de``) or ``vanilla`` (ratio of the mean
        shares against the absolute Bayes factor), or of pseudobulk (``lfc`` against minus the log10 of the adjusted p-value).
    settings
        Settings of the comparison; the number of samples bounds how small a probability can be told from 0.
    """
    settings = settings or {}
    flags = next((name for name in table.columns if name.startswith("is_de_fdr_")), "")
    called = table[flags].astype(str).str.lower().isin(["true", "1", "1.0"]).to_numpy() if flags else np.zeros(len(table), bool)
    if "p_adjusted" in table:
        p = table["p_adjusted"].to_numpy(np.float64)
        with np.errstate(divide="ignore"):
            y = -np.log10(np.maximum(p, np.finfo(np.float64).tiny))
        return Volcano(table["lfc"].to_numpy(np.float64), y, "log2 fold change", "\N{MINUS SIGN}log10 adjusted p", called)
    if "proba_not_de" in table:
        samples = max(2, int(settings.get("n_samples", 5000)))
        least = 0.5 / samples
        y = -np.log10(np.maximum(table["proba_not_de"].to_numpy(np.float64), least))
        return Volcano(
            table["lfc_mean"].to_numpy(np.float64), y, "log2 fold change (posterior mean)", "\N{MINUS SIGN}log10 P(no change)", called, -np.log10(least)
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        x = np.log2(table["scale1"].to_numpy(np.float64) / table["scale2"].to_numpy(np.float64))
    factor = np.abs(table["bayes_factor"].to_numpy(np.float64))
    return Volcano(np.where(np.isfinite(x), x, np.nan), factor, "log2 ratio of the mean shares", "|Bayes factor|", factor > STRONG_EVIDENCE, rule=VANILLA_RULE)
