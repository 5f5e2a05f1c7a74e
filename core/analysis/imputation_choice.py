"""What is hidden and judged when imputation is evaluated: the question, and the cells and features it is about."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cellweave.core.errors import CellweaveError
from cellweave.core.study.mosaic import and_list

if TYPE_CHECKING:
    from cellweave.core.analysis.imputation_scores import Comparison
    from cellweave.core.query.trained_run import TrainedRun

Hide = Literal["held-out", "modality", "entries"]
HIDES: tuple[Hide, ...] = ("held-out", "modality", "entries")


class ImputationError(CellweaveError):
    """A question about imputation that these cells cannot answer."""

    exit_code = 2


@dataclass(frozen=True)
class ImputationQuestion:
    """What is hidden.

    Attributes
    ----------
    hide
        ``"held-out"``: what was switched off in the mosaic grid (``data.switched_off``: a modality in a batch, or in a cell type), never seen in training;
        ``"modality"``: all of a modality in cells in which another was measured; ``"entries"``: a share of the measured entries.
    modality
        Which modality is judged; None for all.
    share
        Share of the entries that is hidden.
    given
        Modalities that may be looked at; None for all that are left.
    held_out_cells
        Take the cells that training did not see, where there are any, with ``"modality"`` and ``"entries"``.
    most_cells
        A random sample of at most so many cells.
    seed
        Determines sample and entries.
    batches
        Cells of these batches only; empty for all.
    features
        Features whose values are compared; what is hidden is the same. Empty for all.
    """

    hide: Hide = "held-out"
    modality: str | None = None
    share: float = 0.1
    given: tuple[str, ...] | None = None
    held_out_cells: bool = True
    most_cells: int = 2000
    seed: int = 0
    batches: tuple[str, ...] = ()
    features: tuple[str, ...] = ()


def question_of(tree: Mapping[str, Any]) -> ImputationQuestion:
    """Return a question from plain values, as it is kept with a run; lists become tuples."""
    plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in tree.items()}
    return ImputationQuestion(**plain)


def among(run: TrainedRun, question: ImputationQuestion, cells: np.ndarray | None) -> np.ndarray:
    """Return which cells of the study the question is about, bool ``(n_cells,)``.

    Parameters
    ----------
    run
        An open run.
    question
        Names the batches.
    cells
        Rows of the study that were chosen besides; None for all.

    Raises
    ------
    ImputationError
        Where there is no such batch.
    """
    column = run.spec.covariates.batch
    found = np.ones(len(run.data.usable), dtype=bool)
    if cells is not None:
        found[:] = False
        found[cells] = True
    if question.batches:
        if column is None:
            raise ImputationError("This run knows no batches, so none can be chosen.", "Leave the batches empty.")
        own = run.study.obs[column].astype(str).to_numpy()
        levels = sorted(set(own))
        for name in question.batches:
            if name not in levels:
                raise ImputationError(f"There is no batch '{name}' in '{column}'.", nearest(name, levels))
        found &= np.isin(own, question.batches)
    return found


def only_features(found: Mapping[str, Comparison], wanted: Sequence[str]) -> dict[str, Comparison]:
    """Return the comparisons of some features; modalities that have none of them are left out.

    Raises
    ------
    ImputationError
        Where one of them is in no modality that is judged.
    """
    if not wanted:
        return dict(found)
    known = {str(name) for one in found.values() for name in one.features}
    for name in wanted:
        if name not in known:
            where = and_list([f"'{modality}'" for modality in found])
            raise ImputationError(f"There is no feature '{name}' in what is judged ({where}).", nearest(name, known))
    kept = {}
    for modality, one in found.items():
        own = np.isin(one.features.astype(str), wanted)
        if own.any():
            kept[modality] = replace(
                one, features=one.features[own], truth=one.truth[:, own], imputed=one.imputed[:, own], baseline=one.baseline[own]
            )
    return kept


def nearest(name: str, known: Sequence[str] | set[str]) -> str:
    """Return the sentence that names what was probably meant, or some of what there is."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    some = sorted(known)[:8]
    return f"Did you mean '{near[0]}'?" if near else f"There are {', '.join(some)}{' …' if len(known) > len(some) else ''}."
