"""What one should know before new data are mapped onto a trained run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cellweave.core.errors import CellweaveError
from cellweave.core.query.encode import load_new
from cellweave.core.query.surgery import Reference, mapping_spec
from cellweave.core.study.checks import Check, Fix, Level
from cellweave.core.study.study import Study
from cellweave.core.wording import counted

#: Columns that are offered as batch where the data have none of the reference's name; a column with more levels is none.
MOST_COLUMNS, MOST_BATCHES = 5, 50
#: What is no reason to hesitate begins so.
PLAIN_NEWS = ("New in", "New batches", "The reference knows every batch", "The reference was trained without batches")


def mapping_checks(
    reference: str | Path,
    paths: Sequence[str | Path],
    tell: Callable[[str], object] = lambda words: None,
    changes: Mapping[str, Any] | None = None,
) -> tuple[Check, ...]:
    """Compare new data with a trained run: model, features, columns, new batches.

    Parameters
    ----------
    reference
        Folder of the trained run.
    paths
        Files of the new data.
    tell
        Told what is being done.
    changes
        Of the mapping's spec, as in :func:`cellweave.core.query.surgery.mapping_spec`.

    Returns
    -------
    tuple of Check
        A FAIL says why the data cannot be mapped, with fixes where there are some; after it nothing more is looked at.
    """
    found: list[Check] = []
    tell("reading the reference")
    state: dict[str, Any] = {}

    def step(name: str, title: str, do: Callable[[], str]) -> bool:
        try:
            found.append(Check(name, Level.OK, title, do()))
        except CellweaveError as error:
            found.append(Check(name, Level.FAIL, title, str(error)))
            return False
        return True

    def model() -> str:
        state["spec"] = mapping_spec(reference, paths, changes)
        state["reference"] = Reference.open(state["spec"])
        title, batch = state["spec"].family.title, state["spec"].covariates.batch
        if batch is None:
            return f"{title} of the reference takes new cells; it knows no batches."
        return f"{title} of the reference takes new batches in '{batch}'."

    def read() -> str:
        state["study"] = load_new(state["spec"], paths)
        return f"{counted(state['study'].n_cells, 'cell')} with raw counts."

    def features() -> str:
        state["aligned"] = state["reference"].study(state["study"])
        known = sum(len(names) for names in state["reference"].trained.features.values())
        return f"The model's {counted(known, 'feature is', 'features are')} matched by name."

    def columns() -> str:
        before = len(state["reference"].notes)
        data = state["reference"].data(state["spec"], state["aligned"])
        state["new"] = state["reference"].notes[before:]
        return f"{counted(int(data.usable.sum()), 'cell')} can be mapped."

    if step("mapping-model", "Model", model):
        tell("reading the new data")
        if step("mapping-counts", "Counts", read) and step("mapping-features", "Features", features):
            found += [Check("mapping-feature-notes", Level.WARN, "Features", note) for note in state["reference"].notes]
            batch = state["spec"].covariates.batch
            if batch is not None and batch not in state["study"].obs:
                found.append(_no_batch(batch, state["study"]))
            elif step("mapping-columns", "Columns", columns):
                found += [Check("mapping-news", Level.OK if note.startswith(PLAIN_NEWS) else Level.WARN, "News", note) for note in state["new"]]
    return tuple(found)


def _no_batch(batch: str, study: Study) -> Check:
    """Say that the column of the batches is missing, and offer ways to make it."""
    likely = [str(name) for name in study.obs.columns if 1 < study.obs[name].nunique() <= MOST_BATCHES and not study.obs[name].isna().any()]
    fixes = [Fix("All cells are one new batch", {f"data.new_columns.{batch}": "new"})]
    fixes += [Fix(f"Take '{name}' as the batch", {f"data.combine.{batch}": (name,)}) for name in likely[:MOST_COLUMNS]]
    known = ", ".join(map(str, study.obs.columns[:12])) or "none"
    text = f"These data have no column '{batch}', which tells the batches apart; their columns are: {known}."
    return Check("mapping-batch", Level.FAIL, "Batch", text, tuple(fixes), "covariates.batch")
