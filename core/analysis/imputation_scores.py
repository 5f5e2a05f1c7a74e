"""What a judgement of imputed values says: what was compared, its scores, and how it is kept in a run folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from scipy.stats import rankdata

from cellweave.core.analysis.imputation_choice import ImputationQuestion, question_of
from cellweave.core.files import write_atomic, write_json_atomic, write_text_atomic

TABLE, OVERALL, VALUES = "imputation.csv", "imputation.json", "imputation.h5"


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
