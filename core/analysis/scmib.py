"""The scores of He et al. 2024 for mosaics, put together from what was measured: batches mixed, modalities aligned, biology kept.

* scMIB: 0.3 times batch mixing, 0.3 times the alignment of modalities and 0.4 times biology kept.
* scIB in the form of that paper: 0.4 times batch mixing and 0.6 times biology kept.

Batch mixing is the mean of iLISI, graph connectivity and kBET; biology kept that of NMI, ARI, the F1 of isolated labels and cLISI; the alignment that
of six parts, each a mean over batches and, where it has a direction, over directions. All are of the latent space; the paper adds those of a graph of
batch-corrected counts to the first and the last, which is not done here. A part that could not be measured is left out of its mean, and said.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellweave.core.analysis.alignment import FEWEST, MOST_CELLS, foscttm, label_transfer
from cellweave.core.analysis.integration import METRICS, MetricInfo
from cellweave.core.analysis.silhouettes import silhouette_batch
from cellweave.core.files import write_json_atomic
from cellweave.core.spec.modalities import modality_kind

FILE, TRANSLATIONS = "scmib.json", "translation.json"
#: Beginning of the note on parts that could not be measured.
LEFT_OUT = "Left out of the means"
VERSION = 1
BATCH_PARTS = ("ilisi", "graph_connectivity", "kbet")
BIO_PARTS = ("nmi", "ari", "isolated_f1", "clisi")
#: Shares of batch mixing, alignment of modalities and biology kept in the totals.
SCMIB_WEIGHTS = {"scmib_batch": 0.3, "modality_score": 0.3, "scmib_bio": 0.4}
SCIB_WEIGHTS = {"scmib_batch": 0.4, "scmib_bio": 0.6}
MODALITY_PARTS: dict[str, MetricInfo] = {
    "asw_modality": MetricInfo("ASW over modality", "1 where the modalities of each label cannot be told apart in c.", "modality", ("labels",)),
    "foscttm": MetricInfo("1 \N{MINUS SIGN} FOSCTTM", "1 minus the share of cells that lie nearer than the true match; 0.5 is chance.", "modality", ()),
    "label_transfer": MetricInfo("Label transfer", "Share of labels that are right when told by 5 cells of another modality.", "modality", ("labels",)),
    "told_atac": MetricInfo("AUROC, ATAC", "Area under the ROC curve of peaks told from other modalities; 0.5 is chance.", "modality", ()),
    "told_rna": MetricInfo("Pearson, RNA", "Correlation of all counts of RNA with those told from other modalities.", "modality", ()),
    "told_adt": MetricInfo("Pearson, ADT", "Correlation of all counts of proteins with those told from other modalities.", "modality", ()),
}
SCORES: dict[str, MetricInfo] = {
    "scmib_total": MetricInfo("scMIB", "0.3 batch mixing, 0.3 alignment of modalities, 0.4 biology kept (He et al. 2024).", "total", ("batch", "labels")),
    "scmib_scib": MetricInfo("scIB (scMIB's parts)", "0.4 batch mixing and 0.6 biology kept, of scMIB's parts.", "total", ("batch", "labels")),
    "scmib_batch": MetricInfo("Batch mixing (scMIB)", "Mean of iLISI, graph connectivity and kBET.", "batch", ("batch",)),
    "modality_score": MetricInfo("Modalities aligned", "Mean of what tells how modalities lie together and are told from each other.", "modality", ()),
    "scmib_bio": MetricInfo("Biology kept (scMIB)", "Mean of NMI, ARI, the F1 of isolated labels and cLISI.", "bio", ("labels",)),
}


@dataclass(frozen=True)
class Part:
    """One of the parts of a score.

    Attributes
    ----------
    name, title, help
        What it is.
    score
        The score it counts in: ``"scmib_batch"``, ``"modality_score"`` or ``"scmib_bio"``.
    value
        None where it could not be measured.
    why
        Then why, in a few words.
    """

    name: str
    title: str
    help: str
    score: str
    value: float | None
    why: str = ""


def part_info(name: str) -> MetricInfo:
    """Return what a part or a score is called and means, also of modalities that plug-ins declare."""
    if name in MODALITY_PARTS or name in SCORES or name in METRICS:
        return MODALITY_PARTS.get(name) or SCORES.get(name) or METRICS[name]
    label = modality_kind(name.removeprefix("told_")).label
    return MetricInfo(f"{label} told", f"How well {label} is told from other modalities: Pearson's correlation, or AUROC of 0 and 1.", "modality", ())


def modality_parts(
    latents: Mapping[str, NDArray[np.floating]],
    batch: NDArray[np.integer],
    labels: NDArray[np.integer] | None,
    *,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, float]:
    """Judge how the modalities of the same cells lie together, batch by batch.

    Parameters
    ----------
    latents
        c of each modality alone, ``(n_cells, n_dimensions)``, NaN where it was not measured.
    batch, labels
        Codes of each cell, ``(n_cells,)``, -1 for none; None without labels.
    seed
        Fixes the sample of batches with many cells.
    progress
        Told the share that is done.

    Returns
    -------
    dict
        ``asw_modality``, ``foscttm``, ``label_transfer``: means over batches and, of the last two, over both directions of every pair; those that
        no batch can be judged by are left out.
    """
    found: dict[str, list[float]] = {"asw_modality": [], "foscttm": [], "label_transfer": []}
    levels = np.unique(batch)
    known = {name: np.isfinite(values).all(axis=1) for name, values in latents.items()}
    for number, level in enumerate(levels):
        own = np.flatnonzero(batch == level)
        here = [name for name in latents if known[name][own].sum() >= FEWEST]
        for first, second in permutations(here, 2):
            rows = _sample(own[known[first][own] & known[second][own]], seed)
            if len(rows) < FEWEST:
                continue
            a, b = (np.asarray(latents[name][rows], dtype=np.float64) for name in (first, second))
            found["foscttm"].append(foscttm(a, b))
            if labels is not None and (labels[rows] >= 0).sum() >= FEWEST:
                found["label_transfer"].append(label_transfer(a, b, labels[rows]))
        if labels is not None and len(here) > 1:
            found["asw_modality"].append(_silhouette(latents, here, own[labels[own] >= 0], labels, known, seed))
        progress((number + 1) / len(levels))
    finite = {name: [value for value in values if np.isfinite(value)] for name, values in found.items()}
    return {name: float(np.mean(values)) for name, values in finite.items() if values}


def _sample(rows: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    return rows if len(rows) <= MOST_CELLS else np.sort(np.random.default_rng([seed, 41]).choice(rows, MOST_CELLS, replace=False))


def _silhouette(
    latents: Mapping[str, NDArray[np.floating]], names: Sequence[str], rows: NDArray[np.int64], labels: NDArray[np.integer],
    known: Mapping[str, NDArray[np.bool_]], seed: int,
) -> float:  # fmt: skip
    """Return one minus the absolute silhouette of the modalities within each label, of the cells that have all the modalities."""
    rows = _sample(rows[np.all([known[name][rows] for name in names], axis=0)], seed)
    if len(rows) < FEWEST:
        return float("nan")
    points = np.concatenate([np.asarray(latents[name][rows], dtype=np.float64) for name in names])
    modality = np.repeat(np.arange(len(names)), len(rows))
    return silhouette_batch(points, np.tile(np.asarray(labels[rows], dtype=np.int64), len(names)), modality)


def assemble(
    measured: Mapping[str, float] | None, aligned: Mapping[str, float], told: Sequence[Mapping[str, Any]], modalities: Sequence[str], notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Put the scores together.

    Parameters
    ----------
    measured
        Integration metrics of the latent by name; None where none were computed.
    aligned
        From :func:`modality_parts`.
    told
        Rows of ``translation.json`` (:mod:`cellweave.core.query.told`).
    modalities
        Names of the model's modalities.
    notes
        Further sentences.

    Returns
    -------
    dict
        ``parts`` (each :class:`Part` as a dict), ``scores`` by name (without those that have no part), ``notes``.
    """
    parts = [_measured_part(name, "scmib_batch", measured) for name in BATCH_PARTS]
    for name in ("asw_modality", "foscttm", "label_transfer"):
        why = "no labels, or too few cells with them" if name != "foscttm" and "foscttm" in aligned else "too few cells have two modalities"
        parts.append(_part(name, "modality_score", aligned.get(name), why))
    values: dict[str, list[float]] = {}
    for row in told:
        values.setdefault(str(row["wanted"]), []).append(float(row["value"]))
    for modality in dict.fromkeys(("atac", "rna", "adt", *modalities)):
        mean = float(np.mean(values[modality])) if modality in values else None
        why = "too few cells have it and another modality" if modality in modalities else "the data have no such modality"
        parts.append(_part(f"told_{modality}", "modality_score", mean, why))
    parts += [_measured_part(name, "scmib_bio", measured) for name in BIO_PARTS]
    scores = {}
    for score in SCMIB_WEIGHTS:
        own = [part.value for part in parts if part.score == score and part.value is not None]
        if own:
            scores[score] = float(np.mean(own))
    for total, weights in (("scmib_total", SCMIB_WEIGHTS), ("scmib_scib", SCIB_WEIGHTS)):
        if set(weights) <= set(scores):
            scores[total] = sum(weight * scores[name] for name, weight in weights.items())
    return {"version": VERSION, "parts": [vars(part) for part in parts], "scores": scores, "notes": [*notes, *_said(parts, scores)]}


def _part(name: str, score: str, value: float | None, why: str) -> Part:
    info = part_info(name)
    return Part(name, info.title, info.help, score, value, "" if value is not None else why)


def _measured_part(name: str, score: str, measured: Mapping[str, float] | None) -> Part:
    if measured is None:
        why = "the integration metrics were not computed"
    else:
        why = "no labels, or not asked for" if "labels" in METRICS[name].needs else "no batches, or not asked for"
    return _part(name, score, None if measured is None else measured.get(name), why)


def _said(parts: Sequence[Part], scores: Mapping[str, float]) -> list[str]:
    """Return sentences on what is missing."""
    missing = [part for part in parts if part.value is None]
    notes = []
    if missing:
        words = "; ".join(f"{part.title} ({part.why})" for part in missing)
        notes.append(f"{LEFT_OUT}: {words}. Compare scores only with runs that have the same parts.")
    if "scmib_total" not in scores:
        wanting = [SCORES[name].title for name in SCMIB_WEIGHTS if name not in scores]
        notes.append(f"There is no total, because nothing is known of: {', '.join(wanting)}.")
    return notes


def totals(scores: Mapping[str, float]) -> list[str]:
    """Return a sentence on each total that there is."""
    short = {"scmib_batch": "batch mixing", "modality_score": "modalities", "scmib_bio": "biology kept"}
    found = []
    for name, title, weights in (("scmib_total", "scMIB", SCMIB_WEIGHTS), ("scmib_scib", "scIB", SCIB_WEIGHTS)):
        if name in scores:
            words = " + ".join(f"{weight:g} × {short[part]} {scores[part]:.3f}" for part, weight in weights.items())
            found.append(f"{title} {scores[name]:.3f} = {words}.")
    return found


def store(results: Path, found: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Write ``scmib.json`` with the columns that were looked at, by role, and return what it holds."""
    tree = {**found, "columns": dict(columns)}
    write_json_atomic(results / FILE, tree)
    return tree


def load(results: Path) -> dict[str, Any] | None:
    """Return what :func:`store` wrote, or None where there is nothing that can be read."""
    try:
        tree = json.loads((results / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return tree if isinstance(tree, dict) and isinstance(tree.get("parts"), list) and isinstance(tree.get("scores"), dict) else None


def read_translations(results: Path) -> list[dict[str, Any]]:
    """Return the rows of ``translation.json`` (:mod:`cellweave.core.query.told`); none where there is no such file."""
    try:
        tree = json.loads((results / TRANSLATIONS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return list(tree.get("translations", ())) if isinstance(tree, dict) else []


def own_values(tree: Mapping[str, Any]) -> dict[str, float]:
    """Return scores and parts of the alignment by name, as far as there are any; the other parts are integration metrics."""
    parts = {part["name"]: part["value"] for part in tree["parts"] if part["score"] == "modality_score" and part["value"] is not None}
    return {**tree["scores"], **parts}


def score_rows(tree: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return :func:`own_values` as ``metrics.csv`` has them."""
    return [{"name": name, "group": "", "value": value, "baseline": None, "expected": None} for name, value in own_values(tree).items()]


def is_ours(name: str) -> bool:
    """Return whether a row of ``metrics.csv`` is one of :func:`score_rows`."""
    return name in SCORES or name in MODALITY_PARTS or name.startswith("told_")


def score_task(arguments: Mapping[str, Any], progress: Callable[..., None]) -> dict[str, Any]:
    """Put the scores of a run together, as the analysis process asks.

    ``latents`` (path by modality), ``batch`` and ``labels`` (paths of codes, or None), ``measured`` (metrics by name, or None), ``told`` (rows),
    ``seed``.
    """
    from cellweave.core.analysis.arrays import load_array

    latents: dict[str, Any] = {name: load_array(Path(path), mapped=True) for name, path in arguments["latents"].items()}
    codes = {role: np.asarray(load_array(Path(arguments[role]))) if arguments.get(role) else None for role in ("batch", "labels")}
    n_cells = len(next(iter(latents.values())))
    batch = codes["batch"] if codes["batch"] is not None else np.zeros(n_cells, dtype=np.int64)
    aligned = modality_parts(
        latents, batch, codes["labels"], seed=int(arguments.get("seed", 0)), progress=lambda share: progress(share, "scores of the modalities")
    )
    return assemble(arguments.get("measured"), aligned, arguments.get("told") or (), tuple(latents))
