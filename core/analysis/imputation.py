"""How well a model imputes: values that are known are hidden, imputed and compared, beside the mean of each feature."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scipy.stats import rankdata

from cellweave.core.analysis.imputation_choice import (
    ImputationError,
    ImputationQuestion,
    among,
    only_features,
    question_of,
)
from cellweave.core.files import write_atomic, write_json_atomic, write_text_atomic
from cellweave.core.query.imputed import value_scale
from cellweave.core.spec.modalities import modality_kind, names_meant
from cellweave.core.study.held_out import held_out_truth, nothing_left, without_cells

if TYPE_CHECKING:
    from cellweave.core.query.trained_run import TrainedRun

TABLE, OVERALL, VALUES = "imputation.csv", "imputation.json", "imputation.h5"
SCALE = 1e4
BATCH = 512


@dataclass(frozen=True)
class Comparison:
    """Truth beside imputed values of one modality.

    Attributes
    ----------
    rows
        Rows of the study, int64 ``(n_cells,)``.
    features
        Names ``(n_features,)``.
    truth, imputed
        float32 ``(n_cells, n_features)``; NaN where nothing was hidden.
    baseline
        Mean of each feature over the training cells in which it was measured, ``(n_features,)``.
    binary
        Whether the values are 0 and 1 and the imputed ones probabilities; otherwise both are ``log1p`` of counts per 10,000, or the values themselves.
    unit
        Which of the last two they are: ``"log1p"``, or ``"none"`` for the values themselves.
    """

    rows: np.ndarray
    features: np.ndarray
    truth: np.ndarray
    imputed: np.ndarray
    baseline: np.ndarray
    binary: bool
    unit: str = "log1p"

    @property
    def scale(self) -> str:
        """What the values are: ``"binary"``, ``"log1p"`` or ``"none"``."""
        return "binary" if self.binary else self.unit


@dataclass(frozen=True)
class Evaluation:
    """The answer.

    Attributes
    ----------
    question
        What was hidden.
    by_feature
        One row a feature: ``modality``, ``feature``, ``n``, ``mean``, ``pearson``, ``spearman``, ``mse``, ``mse_baseline`` and, of binary modalities,
        ``auroc``.
    overall
        By modality, the same over all hidden entries, with ``pearson_baseline``, ``spearman_baseline`` and the medians over features.
    comparisons
        Values by modality.
    notes
        Sentences on which cells were taken.
    """

    question: ImputationQuestion
    by_feature: pd.DataFrame
    overall: dict[str, dict[str, float]]
    comparisons: dict[str, Comparison]
    notes: list[str] = field(default_factory=list)


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
        notes.append(f"Of {len(cells):,} cells that were chosen.")
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
            notes.append(f"{len(rows):,} cells that training did not see.")
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
        notes.append(f"{modality_kind(name).label}: {len(keep):,} of the {len(rows):,} cells in which it was switched off.")
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


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation, NaN where one of them does not vary."""
    if len(a) < 2:
        return float("nan")
    a, b = a - a.mean(dtype=np.float64), b - b.mean(dtype=np.float64)
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale > 0 else float("nan")


def auroc(truth: np.ndarray, score: np.ndarray) -> float:
    """Return the probability that a 1 has a higher score than a 0, ties counting half; NaN where one of them is missing."""
    ones = truth > 0.5
    n_ones, n_zeros = int(ones.sum()), int((~ones).sum())
    if not n_ones or not n_zeros:
        return float("nan")
    return float((rankdata(score)[ones].sum() - n_ones * (n_ones + 1) / 2) / (n_ones * n_zeros))


def scores(found: Comparison) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return the scores of each feature and of all entries together.

    Returns
    -------
    by_feature
        As :attr:`Evaluation.by_feature`, without the modality.
    overall
        As :attr:`Evaluation.overall`.
    """
    rows = []
    for place, feature in enumerate(found.features):
        keep = np.isfinite(found.truth[:, place])
        truth, imputed = found.truth[keep, place], found.imputed[keep, place]
        if not len(truth):
            continue
        row: dict[str, Any] = {
            "feature": feature, "n": len(truth), "mean": float(truth.mean()), "pearson": correlation(truth, imputed),
            "spearman": correlation(rankdata(truth), rankdata(imputed)), "mse": float(((truth - imputed) ** 2).mean()),
            "mse_baseline": float(((truth - found.baseline[place]) ** 2).mean()),
        }  # fmt: skip
        if found.binary:
            row["auroc"] = auroc(truth, imputed)
        rows.append(row)
    table = pd.DataFrame(rows)
    keep = np.isfinite(found.truth)
    truth, imputed, mean = found.truth[keep], found.imputed[keep], np.broadcast_to(found.baseline, found.truth.shape)[keep]
    overall = {
        "cells": float(keep.any(1).sum()), "entries": float(keep.sum()), "mse": float(((truth - imputed) ** 2).mean()),
        "mse_baseline": float(((truth - mean) ** 2).mean()), "pearson": correlation(truth, imputed), "pearson_baseline": correlation(truth, mean),
        "spearman": correlation(rankdata(truth), rankdata(imputed)), "spearman_baseline": correlation(rankdata(truth), rankdata(mean)),
        "pearson_by_feature": _median(table["pearson"]), "spearman_by_feature": _median(table["spearman"]),
    }  # fmt: skip
    if found.binary:
        overall |= {"auroc": auroc(truth, imputed), "auroc_baseline": auroc(truth, mean), "auroc_by_feature": _median(table["auroc"])}
    return table, overall


def _median(values: pd.Series) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.median()) if len(finite) else float("nan")


# ---------------------------------------------------------------------- files


def save(results: Path, found: Evaluation) -> None:
    """Write ``imputation.csv`` (by feature), ``imputation.json`` (overall) and ``imputation.h5`` (values) into ``results/`` of a run."""

    def values(path: Path) -> None:
        with h5py.File(path, "w") as file:
            file.attrs["stamp"] = stamp
            for name, one in found.comparisons.items():
                group = file.create_group(name)
                group.attrs["binary"], group.attrs["unit"] = one.binary, one.unit
                for key in ("truth", "imputed"):
                    group.create_dataset(key, data=getattr(one, key).astype(np.float16), compression="lzf")
                group.create_dataset("rows", data=one.rows.astype(np.int64))
                group.create_dataset("baseline", data=one.baseline.astype(np.float32))
                group.create_dataset("features", data=[str(text) for text in one.features], dtype=h5py.string_dtype())

    table = found.by_feature.to_csv(index=False)
    stamp = sha256(table.encode()).hexdigest()
    write_atomic(results / VALUES, values)
    write_text_atomic(results / TABLE, table)
    overall = {name: {key: value if np.isfinite(value) else None for key, value in whole.items()} for name, whole in found.overall.items()}
    write_json_atomic(results / OVERALL, {"question": asdict(found.question), "overall": overall, "notes": found.notes, "stamp": stamp})


def load(results: Path) -> Evaluation | None:
    """Read what :func:`save` wrote; None where there is nothing, it cannot be read, or its files are not of one writing."""
    try:
        tree = json.loads((results / OVERALL).read_text(encoding="utf-8"))
        written, comparisons = (results / TABLE).read_text(encoding="utf-8"), {}
        stamps = {tree.get("stamp"), sha256(written.encode()).hexdigest()}
        table = pd.read_csv(StringIO(written), converters={"feature": str, "modality": str})  # a feature may be called NA
        with h5py.File(results / VALUES, "r") as file:
            if tree.get("stamp") is not None and stamps != {file.attrs.get("stamp")}:  # of another question than the rest
                return None
            for name, group in file.items():
                arrays = {key: group[key][()].astype(np.float32) for key in ("truth", "imputed", "baseline")}
                features = np.array([text.decode() if isinstance(text, bytes) else str(text) for text in group["features"][()]], dtype=object)
                comparisons[name] = Comparison(
                    group["rows"][()], features, arrays["truth"], arrays["imputed"], arrays["baseline"], bool(group.attrs["binary"]),
                    str(group.attrs.get("unit", "log1p")),
                )
        comparisons = {name: comparisons[name] for name in tree["overall"]}  # in the order in which they were judged
    except (OSError, ValueError, KeyError):
        return None
    question = question_of(tree["question"])
    overall = {name: {key: float("nan") if value is None else value for key, value in whole.items()} for name, whole in tree["overall"].items()}
    return Evaluation(question, table, overall, comparisons, tree["notes"])
