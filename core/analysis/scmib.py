"""The scores of He et al. 2024 for mosaics, put together from what was measured: batches mixed, modalities aligned, biology kept.

* scMIB: 0.3 times batch mixing, 0.3 times the alignment of modalities and 0.4 times biology kept.
* scIB in the form of that paper: 0.4 times batch mixing and 0.6 times biology kept.

Batch mixing is the mean of iLISI, graph connectivity and kBET, biology kept that of NMI, ARI, the F1 of isolated labels and cLISI, in scMIB each of the
latent space and of batch-corrected counts (:mod:`cellweave.core.analysis.scmib_counts`), in scIB of one of the two. The alignment is the mean of six
parts, each a mean over batches and, where it has a direction, over directions. A part that could not be measured is left out of its mean, and said.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellweave.core.analysis.alignment import FEWEST, MOST_CELLS, foscttm, label_transfer
from cellweave.core.analysis.integration import METRICS, MetricInfo
from cellweave.core.analysis.scmib_counts import CountSpace, load_space, measure_counts
from cellweave.core.analysis.silhouettes import silhouette_batch
from cellweave.core.files import write_json_atomic
from cellweave.core.spec.modalities import modality_kind

FILE, TRANSLATIONS = "scmib.json", "translation.json"
#: Beginning of the note on parts that could not be measured.
LEFT_OUT = "Left out of the means"
#: 2: with the half on corrected counts.
VERSION = 2
OLDER = "These scores are without the half on corrected counts, which this version measures too: compute the metrics again."
BATCH_PARTS = ("ilisi", "graph_connectivity", "kbet")
BIO_PARTS = ("nmi", "ari", "isolated_f1", "clisi")
#: Shares of batch mixing, alignment of modalities and biology kept in the totals.
SCMIB_WEIGHTS = {"scmib_batch": 0.3, "modality_score": 0.3, "scmib_bio": 0.4}
SCIB_WEIGHTS = {"scmib_batch": 0.4, "scmib_bio": 0.6}
#: Beginning of the names of parts that are of corrected counts; those of the latent space are called as the metrics.
COUNTS = "counts_"
#: scIB's totals by what they are of.
SCIB = {"latent": "scmib_scib", "counts": "scmib_scib_counts"}
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
    "scmib_scib": MetricInfo(
        "scIB (scMIB's parts)", "0.4 batch mixing and 0.6 biology kept, of scMIB's parts on the latent space.", "total", ("batch", "labels")
    ),
    "scmib_scib_counts": MetricInfo(
        "scIB, corrected counts", "0.4 batch mixing and 0.6 biology kept, of scMIB's parts on batch-corrected counts.", "total", ("batch", "labels")
    ),
    "scmib_batch": MetricInfo("Batch mixing (scMIB)", "Mean of iLISI, graph connectivity and kBET, of latent space and corrected counts.", "batch", ("batch",)),
    "modality_score": MetricInfo("Modalities aligned", "Mean of what tells how modalities lie together and are told from each other.", "modality", ()),
    "scmib_bio": MetricInfo(
        "Biology kept (scMIB)", "Mean of NMI, ARI, the F1 of isolated labels and cLISI, of latent space and corrected counts.", "bio", ("labels",)
    ),
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
    of
        ``"latent"``: the latent space; ``"counts"``: batch-corrected counts; empty for the alignment of modalities.
    """

    name: str
    title: str
    help: str
    score: str
    value: float | None
    why: str = ""
    of: str = ""


def part_info(name: str) -> MetricInfo:
    """Return what a part or a score is called and means, also of modalities that plug-ins declare."""
    if name in MODALITY_PARTS or name in SCORES or name in METRICS:
        return MODALITY_PARTS.get(name) or SCORES.get(name) or METRICS[name]
    if name.startswith(COUNTS):
        info = METRICS[name.removeprefix(COUNTS)]
        return MetricInfo(f"{info.title}, corrected counts", f"Of batch-corrected counts of all modalities. {info.help}", info.about, info.needs)
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
    measured: Mapping[str, float] | None,
    aligned: Mapping[str, float],
    told: Sequence[Mapping[str, Any]],
    modalities: Sequence[str],
    notes: Sequence[str] = (),
    counts: tuple[Mapping[str, float], str] = ({}, "they were not drawn"),
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
    counts
        The same metrics of corrected counts, and why there are none.

    Returns
    -------
    dict
        ``parts`` (each :class:`Part` as a dict), ``scores`` by name (without those that have no part), ``notes``.
    """
    parts = _both(BATCH_PARTS, "scmib_batch", measured, counts)
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
    parts += _both(BIO_PARTS, "scmib_bio", measured, counts)
    rows = [vars(part) for part in parts]
    scores = means_of(rows, SCMIB_WEIGHTS)
    if set(SCMIB_WEIGHTS) <= set(scores):
        scores["scmib_total"] = _weighed(scores, SCMIB_WEIGHTS)
    for of, total in SCIB.items():
        own = means_of(rows, SCIB_WEIGHTS, of)
        if set(SCIB_WEIGHTS) <= set(own):
            scores[total] = _weighed(own, SCIB_WEIGHTS)
    return {"version": VERSION, "parts": rows, "scores": scores, "notes": [*notes, *_said(parts, scores)]}


def means_of(parts: Sequence[Mapping[str, Any]], scores: Iterable[str], of: str | None = None) -> dict[str, float]:
    """Return the means of the parts that were measured, by score, of those of the latent space or of corrected counts alone where it is said."""
    found = {}
    for score in scores:
        own = [part["value"] for part in parts if part["score"] == score and part["value"] is not None and of in (None, part["of"])]
        if own:
            found[score] = float(np.mean(own))
    return found


def _weighed(means: Mapping[str, float], weights: Mapping[str, float]) -> float:
    return sum(weight * means[name] for name, weight in weights.items())


def _part(name: str, score: str, value: float | None, why: str, of: str = "") -> Part:
    info = part_info(name)
    return Part(name, info.title, info.help, score, value, "" if value is not None else why, of)


def _both(names: Sequence[str], score: str, measured: Mapping[str, float] | None, counts: tuple[Mapping[str, float], str]) -> list[Part]:
    """Return the parts of a score that are of the latent space, then those of corrected counts."""
    values, nothing = counts
    whys = {}
    for name in names:
        needed = "no labels, or not asked for" if "labels" in METRICS[name].needs else "no batches, or not asked for"
        whys[name] = "the integration metrics were not computed" if measured is None else needed
    latent = [_part(name, score, (measured or {}).get(name), why, "latent") for name, why in whys.items()]
    drawn = [_part(COUNTS + name, score, values.get(name), why if measured is None else nothing or why, "counts") for name, why in whys.items()]
    return [*latent, *drawn]


def _said(parts: Sequence[Part], scores: Mapping[str, float]) -> list[str]:
    """Return sentences on what is missing."""
    missing = [part for part in parts if part.value is None]
    notes = []
    if missing:
        by_reason: dict[str, list[str]] = {}
        for part in missing:
            by_reason.setdefault(part.why, []).append(part.title)
        words = "; ".join(f"{', '.join(titles)} ({why})" for why, titles in by_reason.items())
        notes.append(f"{LEFT_OUT}: {words}. Compare scores only with runs that have the same parts.")
    if "scmib_total" not in scores:
        wanting = [SCORES[name].title for name in SCMIB_WEIGHTS if name not in scores]
        notes.append(f"There is no total, because nothing is known of: {', '.join(wanting)}.")
    return notes


def totals(tree: Mapping[str, Any]) -> list[str]:
    """Return a sentence on scMIB's total and one on scIB's, as far as they are there in what :func:`load` gives."""
    short = {"scmib_batch": "batch mixing", "modality_score": "modalities", "scmib_bio": "biology kept"}
    scores, found = tree["scores"], []
    if "scmib_total" in scores:
        words = " + ".join(f"{weight:g} × {short[part]} {scores[part]:.3f}" for part, weight in SCMIB_WEIGHTS.items())
        found.append(f"scMIB {scores['scmib_total']:.3f} = {words}.")
    what = {"latent": "of the latent space", "counts": "of corrected counts"}
    own = [f"{scores[total]:.3f} {what[of]}" for of, total in SCIB.items() if total in scores]
    if own:
        found.append(f"scIB {' and '.join(own)}.")
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
    if not isinstance(tree, dict) or not isinstance(tree.get("parts"), list) or not isinstance(tree.get("scores"), dict):
        return None
    if tree.get("version", 1) < VERSION:  # parts of the latent space alone
        parts = [{"of": "" if part["score"] == "modality_score" else "latent", **part} for part in tree["parts"]]
        return {**tree, "parts": parts, "notes": [*tree.get("notes", ()), OLDER]}
    return tree


def read_translations(results: Path) -> list[dict[str, Any]]:
    """Return the rows of ``translation.json`` (:mod:`cellweave.core.query.told`); none where there is no such file."""
    try:
        tree = json.loads((results / TRANSLATIONS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return list(tree.get("translations", ())) if isinstance(tree, dict) else []


def own_values(tree: Mapping[str, Any]) -> dict[str, float]:
    """Return scores and the parts that are no integration metrics of the latent space by name, as far as there are any."""
    return {**tree["scores"], **{part["name"]: part["value"] for part in own_parts(tree) if part["value"] is not None}}


def own_parts(tree: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the parts that are no integration metrics of the latent space: of the alignment, and of corrected counts."""
    return [part for part in tree["parts"] if part["of"] != "latent"]


def score_rows(tree: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return :func:`own_values` as ``metrics.csv`` has them."""
    return [{"name": name, "group": "", "value": value, "baseline": None, "expected": None} for name, value in own_values(tree).items()]


def is_ours(name: str) -> bool:
    """Return whether a row of ``metrics.csv`` is one of :func:`score_rows`."""
    return name in SCORES or name in MODALITY_PARTS or name.startswith(("told_", COUNTS))


def score_task(arguments: Mapping[str, Any], progress: Callable[..., None]) -> dict[str, Any]:
    """Put the scores of a run together, as the analysis process asks.

    ``latents`` (path by modality), ``batch`` and ``labels`` (paths of codes, or None), ``measured`` (metrics by name, or None), ``told`` (rows),
    ``space`` (path of what was drawn of corrected counts, or None), ``seed``.
    """
    from cellweave.core.analysis.arrays import load_array

    latents: dict[str, Any] = {name: load_array(Path(path), mapped=True) for name, path in arguments["latents"].items()}
    codes = {role: np.asarray(load_array(Path(arguments[role]))) if arguments.get(role) else None for role in ("batch", "labels")}
    n_cells = len(next(iter(latents.values())))
    batch = codes["batch"] if codes["batch"] is not None else np.zeros(n_cells, dtype=np.int64)
    seed, measured = int(arguments.get("seed", 0)), arguments.get("measured")
    aligned = modality_parts(latents, batch, codes["labels"], seed=seed, progress=lambda share: progress(0.3 * share, "scores of the modalities"))
    space = load_space(Path(arguments["space"])) if arguments.get("space") else None
    values, why, notes = counts_half(space, codes, measured, seed=seed, progress=lambda share, text: progress(0.3 + 0.7 * share, text))
    return assemble(measured, aligned, arguments.get("told") or (), tuple(latents), notes, (values, why))


def counts_half(
    space: CountSpace | None, codes: Mapping[str, NDArray[np.integer] | None], measured: Mapping[str, float] | None, *, seed: int,
    progress: Callable[[float, str], None],
) -> tuple[dict[str, float], str, list[str]]:  # fmt: skip
    """Measure in corrected counts what was measured in the latent space; see :func:`cellweave.core.analysis.scmib_counts.measure_counts`."""
    names = [name for name in (*BATCH_PARTS, *BIO_PARTS) if name in (measured or {})]
    if not names:
        return {}, "the integration metrics were not computed" if measured is None else "", []
    return measure_counts(space, codes.get("batch"), codes.get("labels"), names, seed=seed, progress=progress)
