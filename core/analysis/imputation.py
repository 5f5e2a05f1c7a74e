"""How well a model imputes: values that are known are hidden, imputed and compared, beside the mean of each feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from cellweave.core.analysis.imputation_choice import (
    ImputationError,
    ImputationQuestion,
    among,
    only_features,
)
from cellweave.core.analysis.imputation_scores import Comparison, Evaluation, scores
from cellweave.core.query.imputed import value_scale
from cellweave.core.spec.modalities import modality_kind, names_meant
from cellweave.core.study.held_out import held_out_truth, nothing_left, without_cells
from cellweave.core.wording import counted

if TYPE_CHECKING:
    from cellweave.core.query.trained_run import TrainedRun

SCALE = 1e4
BATCH = 512


def can_impute(run: TrainedRun) -> bool:
    """Return whether the family declares imputed values."""
    return any(result.kind == "imputation" for result in run.spec.family.results)


@torch.no_grad()
def evaluate(run: TrainedRun, question: ImputationQuestion, cells: np.ndarray | None = None) -> Evaluation:
    """Hide, impute, compare.

    Parameters
    ----------
    run
        An open run of a family that imputes.
    question
        What is hidden.
    cells
        Rows of the study among which the cells are taken; None for all.

    Raises
    ------
    ImputationError
        Where the model imputes nothing, or there is nothing to hide in these cells.
    """
    if not can_impute(run):
        raise ImputationError(f"{run.spec.family.title} imputes nothing.", "Train scVAEIT or MIDAS on data of several modalities.")
    names = [modality.name for modality in run.data.modalities]
    judged = names_meant((question.modality,), names)[0] if question.modality else None
    question = replace(question, modality=judged, given=names_meant(question.given, names) if question.given else question.given)
    for name in (*((question.modality,) if question.modality else ()), *(question.given or ())):
        if name not in names:
            raise ImputationError(f"The model has no modality '{name}'.", f"It has {', '.join(names)}.")
    wanted = [question.modality] if question.modality else names
    inside = among(run, question, cells)
    comparisons, notes = _COMPARED[question.hide](run, question, wanted, inside)
    gone = nothing_left(without_cells(run.spec, run.study.obs)) if question.hide == "held-out" else ""
    if not comparisons:
        cause, mend = _NOTHING[question.hide]
        if not inside.all() and not gone:
            cause, mend = "None of the chosen cells can be judged so.", "Choose other cells or batches, or hide something else."
        raise ImputationError(gone or cause, "Switch off a modality of cells that have another one too." if gone else mend)
    comparisons = {name: one for name, one in only_features(comparisons, question.features).items() if np.isfinite(one.truth).any()}
    if not comparisons:
        raise ImputationError("None of these features was measured in the cells that are judged.", "Choose other features, batches or cells.")
    notes += [gone] if gone else []
    if cells is not None:
        notes.append(f"Of {counted(len(cells), 'cell that was chosen', 'cells that were chosen')}.")
    tables, overall = [], {}
    for name, found in comparisons.items():
        table, whole = scores(found)
        table.insert(0, "modality", name)
        tables.append(table)
        overall[name] = whole
    return Evaluation(question, pd.concat(tables, ignore_index=True), overall, comparisons, notes)


_NOTHING = {
    "held-out": (
        "Nothing was held out of this run that could be judged.",
        "Switch a modality off for a batch in the mosaic grid (data.switched_off) and train, or hide a modality or a share of the entries now.",
    ),
    "modality": (
        "No cell has this modality and another one, so it cannot be hidden and predicted.", "Hide a share of the entries instead.",
    ),
    "entries": ("No measured entry is left to be hidden.", "Choose another modality or a larger share."),
}  # fmt: skip


# ---------------------------------------------------------------------- what is hidden


def _cells(run: TrainedRun, question: ImputationQuestion, allowed: np.ndarray, notes: list[str]) -> np.ndarray:
    """Return the rows that are judged: held-out ones where there are enough, at most so many."""
    rows = np.flatnonzero(allowed & run.data.usable)
    if question.held_out_cells:
        unseen = np.intersect1d(rows, run.data.validation)
        if len(unseen) >= 20:
            rows = unseen
            notes.append(f"{counted(len(rows), 'cell')} that training did not see.")
        elif len(rows):
            notes.append("Too few cells were held out of training, so that cells it has seen are judged: what is said of them is too good.")
    if len(rows) > question.most_cells:
        rows = np.sort(np.random.default_rng([question.seed, 1]).choice(rows, question.most_cells, replace=False))
        notes.append(f"A random sample of {len(rows):,} of them.")
    return rows


def _held_out(run: TrainedRun, question: ImputationQuestion, wanted: Sequence[str], inside: np.ndarray) -> tuple[dict[str, Comparison], list[str]]:
    found: dict[str, Comparison] = {}
    notes: list[str] = []
    for name, truth in held_out_truth(run.study).items():
        if name not in wanted:
            continue
        rows, keep = truth.rows, np.flatnonzero(inside[truth.rows])
        if not len(keep):
            continue
        if len(keep) > question.most_cells:
            keep = np.sort(np.random.default_rng([question.seed, 1]).choice(keep, question.most_cells, replace=False))
        notes.append(f"{modality_kind(name).label}: {len(keep):,} of the {counted(len(rows), 'cell')} in which it was switched off.")
        modality = next(modality for modality in run.data.modalities if modality.name == name)
        counts = _in_order(truth.counts[keep], run.study.modalities[name].var.index, modality.var.index)
        judged = _observed(run, name, rows[keep], held_out=True)
        imputed = _impute(run, rows[keep], question.given, name, judged)
        found[name] = _compare(run, name, rows[keep], counts, imputed, judged, judged)
    return found, notes


def _in_order(counts: sparse.csr_matrix, own: pd.Index, wanted: pd.Index) -> sparse.csr_matrix:
    """Return columns in the order of the network, matched by name."""
    return counts if own.equals(wanted) else sparse.csr_matrix(counts[:, own.get_indexer(wanted)])


def _modality(run: TrainedRun, question: ImputationQuestion, wanted: Sequence[str], inside: np.ndarray) -> tuple[dict[str, Comparison], list[str]]:
    found: dict[str, Comparison] = {}
    notes: list[str] = []
    modalities = {modality.name: modality for modality in run.data.modalities}
    for name in wanted:
        others = tuple(other for other in (question.given or modalities) if other != name)
        if not others:
            continue
        seen_otherwise = np.logical_or.reduce([modalities[other].measured for other in others])
        said: list[str] = []
        rows = _cells(run, question, modalities[name].measured & seen_otherwise & inside, said)
        if not len(rows):
            continue
        notes += [f"{modality_kind(name).label}: {text}" for text in said]
        judged = _observed(run, name, rows)
        imputed = _impute(run, rows, others, name, judged)
        found[name] = _compare(run, name, rows, modalities[name].counts[rows], imputed, judged, judged)
    return found, notes


def _entries(run: TrainedRun, question: ImputationQuestion, wanted: Sequence[str], inside: np.ndarray) -> tuple[dict[str, Comparison], list[str]]:
    if not getattr(run.model, "hides_entries", False):
        raise ImputationError(
            f"{run.spec.family.title} cannot leave single entries out of what it looks at.", "Hide a whole modality, or hold one out of the training."
        )
    if not 0 < question.share < 1:
        raise ImputationError(f"The share of entries to hide is {question.share:g}.", "Give a share above 0 and below 1.")
    notes: list[str] = []
    measured = np.logical_or.reduce([modality.measured for modality in run.data.modalities if modality.name in wanted])
    rows = _cells(run, question, measured & inside, notes)
    if not len(rows):
        return {}, notes
    rng = np.random.default_rng([question.seed, 2])
    hidden = {name: _observed(run, name, rows) for name in wanted}
    hidden = {name: known & (rng.random(known.shape) < question.share) for name, known in hidden.items()}
    found = {}
    for name in wanted:
        if not hidden[name].any():
            continue
        modality = next(modality for modality in run.data.modalities if modality.name == name)
        counts = sparse.csr_matrix(modality.counts[rows])
        seen = _observed(run, name, rows) & ~hidden[name]
        imputed = _impute(run, rows, question.given, name, seen, hidden)
        found[name] = _compare(run, name, rows, counts, imputed, hidden[name], seen)
    return found, notes


_COMPARED: Mapping[str, Any] = {"held-out": _held_out, "modality": _modality, "entries": _entries}


# ---------------------------------------------------------------------- values


def _observed(run: TrainedRun, name: str, rows: np.ndarray, *, held_out: bool = False) -> np.ndarray:
    """Return which features can be judged: those measured by the masks, bool ``(n_rows, n_features)``; ``held_out`` cells count as measured."""
    modality = next(modality for modality in run.data.modalities if modality.name == name)
    measured = np.ones(len(rows), dtype=bool) if held_out else modality.measured[rows]
    known = np.repeat(measured[:, None], modality.n_features, axis=1)
    if modality.feature_mask is not None and run.data.mask_group is not None:
        known &= modality.feature_mask[run.data.mask_group[rows]]
    return known


def _impute(
    run: TrainedRun, rows: np.ndarray, given: Sequence[str] | None, name: str, summed: np.ndarray, hidden: Mapping[str, np.ndarray] | None = None
) -> np.ndarray:
    """Return imputed values of one modality on the scale of comparison, float32 ``(n_rows, n_features)``.

    Imputed counts are scaled by their sum over the features that are ``summed``, bool of that shape: over those that the true counts are scaled by too.
    """
    found: np.ndarray | None = None
    for where, batch in run.minibatches_by_pattern(rows, BATCH):
        if hidden is not None:
            batch = replace(batch, hidden={key: torch.from_numpy(mask[where]).to(run.device) for key, mask in hidden.items()})
        own_scale = getattr(run.model, "impute_normalised", None)
        if own_scale is not None:
            values = own_scale(batch, given=given)[name].float()
        else:
            values = run.model.impute(batch, given=given)[name].float()
            if value_scale(run, name) == "log1p":
                total = (values * torch.from_numpy(summed[where]).to(values)).sum(1, keepdim=True)
                values = torch.log1p(values / total.clamp_min(1e-12) * SCALE)
        if found is None:
            found = np.empty((len(rows), values.shape[1]), dtype=np.float32)
        found[where] = values.cpu().numpy()
    assert found is not None
    return found


def _normalised(run: TrainedRun, name: str, counts: sparse.csr_matrix, summed: np.ndarray) -> np.ndarray:
    """Return true values on the scale of comparison, float32 ``(n_rows, n_features)``; counts by their sum over the features that are ``summed``."""
    dense, scale = counts.toarray().astype(np.float32), value_scale(run, name)
    if scale == "binary":
        return (dense > 0).astype(np.float32)
    if scale == "none":
        return dense
    totals = (dense * summed).sum(1)
    return np.log1p(dense / np.maximum(totals, 1.0)[:, None] * SCALE).astype(np.float32)


def _compare(
    run: TrainedRun, name: str, rows: np.ndarray, counts: sparse.csr_matrix, imputed: np.ndarray, judged: np.ndarray, summed: np.ndarray
) -> Comparison:
    modality = next(modality for modality in run.data.modalities if modality.name == name)
    truth = np.where(judged, _normalised(run, name, counts, summed), np.nan).astype(np.float32)
    features = np.asarray(modality.var.index.astype(str), dtype=object)
    scale, shown = value_scale(run, name), np.where(judged, imputed, np.nan).astype(np.float32)
    return Comparison(rows, features, truth, shown, _baseline(run, name, rows), scale == "binary", "none" if scale == "none" else "log1p")


def _baseline(run: TrainedRun, name: str, judged: np.ndarray) -> np.ndarray:
    """Return the mean of each feature over the training cells that are not judged, in blocks of cells."""
    modality = next(modality for modality in run.data.modalities if modality.name == name)
    rows = np.setdiff1d(run.data.train[modality.measured[run.data.train]], judged)
    if not len(rows):
        rows = run.data.train[modality.measured[run.data.train]]
    total, seen = np.zeros(modality.n_features), np.zeros(modality.n_features)
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        known = np.ones((len(part), modality.n_features), dtype=bool)
        if modality.feature_mask is not None and run.data.mask_group is not None:
            known = modality.feature_mask[run.data.mask_group[part]]
        total += (_normalised(run, name, modality.counts[part], known) * known).sum(0)
        seen += known.sum(0)
    return (total / np.maximum(seen, 1)).astype(np.float32)


# ---------------------------------------------------------------------- scores
