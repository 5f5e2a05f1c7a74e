"""Integration metrics of a run: from its result files to ``integration.json``, ``integration.csv`` and ``metrics.csv``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellweave.core.analysis.arrays import load_array, save_array
from cellweave.core.analysis.integration import ALL, BASELINE, METRICS, Embedding, measure, stratified_rows
from cellweave.core.analysis.scmib_counts import FILE as SPACE
from cellweave.core.analysis.scmib_counts import CountSpace, load_space, save_space
from cellweave.core.errors import CellweaveError, DataError, SpecError
from cellweave.core.files import write_atomic, write_json_atomic, write_text_atomic
from cellweave.core.wording import agree, counted

JSON_NAME, CSV_NAME = "integration.json", "integration.csv"
VERSION = 1
#: Fewer cells than this are not measured.
FEWEST = 10
Progress = Callable[..., None]


def measure_files(
    embeddings: Mapping[str, Path],
    *,
    batch: NDArray[np.integer[Any]] | None,
    labels: NDArray[np.integer[Any]] | None,
    names: Sequence[str] = (),
    limit: int = 50_000,
    seed: int = 0,
    progress: Progress,
) -> dict[str, Any]:
    """Measure embeddings that lie in files.

    Parameters
    ----------
    embeddings
        ``.npy`` files ``(n_cells, n_dimensions)`` by name, the main latent first; NaN rows are cells without a latent.
    batch, labels
        Codes of each cell ``(n_cells,)``, -1 where missing; None where there is no such column.
    names
        Metrics wanted; all where empty.
    limit
        Most cells that are measured; above it a seeded sample is, stratified by batch and label.
    seed
        Of the sample and of whatever is drawn.
    progress
        Told the share that is done and a few words.

    Returns
    -------
    dict
        ``values`` by embedding and metric, ``notes``, ``n_cells`` measured, ``n_known`` of which these are, ``n_all``.

    Raises
    ------
    DataError
        Where fewer than ``FEWEST`` cells have a latent and what the columns say of them.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise SpecError(f"There is no integration metric '{unknown[0]}'.", f"There are {', '.join(METRICS)}.")
    points = {name: np.asarray(load_array(path), dtype=np.float32) for name, path in embeddings.items()}
    n_all = len(next(iter(points.values())))
    known = np.ones(n_all, dtype=bool)
    for each in points.values():
        known &= np.isfinite(each).all(axis=1)
    notes, codes = [], {}
    if BASELINE in points:
        empty = known & _one_point(points[BASELINE])
        known &= ~empty
        n_empty = int(empty.sum())
        if n_empty:
            notes.append(
                f"{counted(n_empty, 'cell has', 'cells have')} no counts in the modality of the baseline and {agree(n_empty, 'is', 'are')} "
                "left out, so that both are of the same cells."
            )
    n_latent = int(known.sum())
    for role, column in (("batch", batch), ("label", labels)):
        if column is not None:
            codes[role] = np.asarray(column, dtype=np.int64)
            missing = int((known & (codes[role] < 0)).sum())
            known &= codes[role] >= 0
            if missing:
                notes.append(
                    f"{missing:,} of {counted(n_latent, 'cell')} {agree(missing, 'has', 'have')} no {role} and {agree(missing, 'is', 'are')} "
                    "left out."
                )
    rows = np.flatnonzero(known)
    if len(rows) < FEWEST:
        raise DataError(
            f"Only {len(rows)} cell{'' if len(rows) == 1 else 's'} with a latent and a value in the columns chosen: too few for integration metrics.",
            "Choose other columns.",
        )
    strata = np.zeros(len(rows), dtype=np.int64)
    for column in codes.values():
        strata = strata * (int(column.max()) + 1) + column[rows]
    chosen = rows[stratified_rows(strata, limit, seed)]
    if len(chosen) < len(rows):
        notes.append(f"Measured on {len(chosen):,} of {len(rows):,} cells, drawn with seed {seed} within each batch and label.")
    found = measure(
        [Embedding(name, each[chosen]) for name, each in points.items()],
        batch=codes["batch"][chosen] if "batch" in codes else None,
        labels=codes["label"][chosen] if "label" in codes else None,
        names=names, seed=seed, progress=progress,
    )  # fmt: skip
    return {"values": found["values"], "notes": [*notes, *found["notes"]], "n_cells": len(chosen), "n_known": len(rows), "n_all": n_all, "seed": seed}


def _one_point(baseline: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which cells lie exactly on one point together with at least ``FEWEST`` others.

    Principal components of counts do so only for cells without a single count: those in which the modality was not measured.
    """
    rows = np.ascontiguousarray(baseline).view(np.dtype((np.void, baseline.dtype.itemsize * baseline.shape[1]))).ravel()
    _, where, sizes = np.unique(rows, return_inverse=True, return_counts=True)
    return sizes[where.ravel()] > FEWEST


def store(results: Path, found: Mapping[str, Any], columns: Mapping[str, str], names: Sequence[str]) -> dict[str, Any]:
    """Write ``integration.json`` and ``integration.csv`` and return what the first holds.

    Parameters
    ----------
    results
        Folder of results.
    found
        From :func:`measure_files`.
    columns
        Names of the columns by role (``batch``, ``labels``).
    names
        Metrics that were asked for; empty for all.
    """
    main = next(name for name in found["values"] if name != BASELINE)
    tree = {"version": VERSION, "main": main, "columns": dict(columns), "asked": list(names), **found}
    write_json_atomic(results / JSON_NAME, tree)
    table = table_of(tree)
    write_atomic(results / CSV_NAME, lambda temporary: table.to_csv(temporary, index=False, lineterminator="\n"))
    return tree


def table_of(tree: Mapping[str, Any]) -> pd.DataFrame:
    """Return one row a metric: what it is called and is about, and its value in every embedding."""
    rows = [
        {"metric": name, "title": info.title, "about": info.about, **{each: values.get(name) for each, values in tree["values"].items()}}
        for name, info in ALL.items()
        if any(name in values for values in tree["values"].values())
    ]
    return pd.DataFrame(rows, columns=["metric", "title", "about", *tree["values"]])


def load(results: Path) -> dict[str, Any] | None:
    """Return what :func:`store` wrote, or None where there is nothing that can be read."""
    try:
        tree = json.loads((results / JSON_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return tree if isinstance(tree, dict) and isinstance(tree.get("values"), dict) and tree.get("main") in tree["values"] else None


def metric_rows(tree: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the metrics of the main latent beside those of the baseline, as events and ``metrics.csv`` have them."""
    values, baseline = tree["values"][tree["main"]], tree["values"].get(BASELINE, {})
    return [
        {"name": name, "group": "", "value": values[name], "baseline": baseline.get(name), "expected": None} for name in ALL if name in values
    ]


def score_mosaic(run: Any, tree: Mapping[str, Any], codes: Mapping[str, NDArray[np.integer] | None], progress: Progress) -> dict[str, Any] | None:
    """Put scMIB's scores of a finished run together and write them; None where its model gives no latents of single modalities.

    Parameters
    ----------
    run
        :class:`cellweave.core.export.run_data.RunData`.
    tree
        From :func:`store`.
    codes
        Of batch and labels, each ``(n_cells,)`` or None.
    progress
        Told what is done.
    """
    from cellweave.core.analysis import scmib
    from cellweave.core.analysis.pipeline import modality_latents

    results = run.folder.results
    latents = {name: np.asarray(load_array(path)) for name, path in modality_latents(results).items()}
    if len(latents) < 2:
        return None
    told, notes = scmib.read_translations(results), list[str]()
    if not (results / scmib.TRANSLATIONS).is_file():
        progress(0.97, "judging translations")
        try:
            told = _translations_of(run)
        except (CellweaveError, OSError) as error:
            notes.append(f"Translations were not judged: {error}")
    space = load_space(results / SPACE)
    if space is None:
        progress(0.97, "drawing corrected counts")
        try:
            space = _space_of(run)
        except (CellweaveError, OSError, RuntimeError, MemoryError) as error:
            notes.append(f"Corrected counts were not drawn: {error}")
    progress(0.98, "scores of the modalities")
    batch = codes.get("batch")
    seed, measured = int(run.spec.training.seed), tree["values"][tree["main"]]
    aligned = scmib.modality_parts(latents, batch if batch is not None else np.zeros(len(run.cells), dtype=np.int64), codes.get("labels"), seed=seed)
    values, why, said = scmib.counts_half(space, codes, measured, seed=seed, progress=lambda share, text: progress(0.98 + 0.02 * share, text))
    found = scmib.assemble(measured, aligned, told, tuple(latents), [*notes, *said], (values, why))
    return scmib.store(results, found, tree["columns"])


def _translations_of(run: Any) -> list[dict[str, Any]]:
    """Judge the translations of a finished run whose folder has none, and keep them there."""
    from cellweave.core.query.opened import open_run
    from cellweave.core.query.told import translation_scores, write_translations

    opened = open_run(run.folder.path)
    batches = lambda rows: ((rows[where], batch) for where, batch in opened.minibatches(rows))  # noqa: E731
    rows = translation_scores(run.spec, opened.model, opened.data, batches, seed=int(run.spec.training.seed))
    write_translations(run.folder.results, rows)
    return rows


def _space_of(run: Any) -> CountSpace | None:
    """Draw the corrected counts of a finished run whose folder has none, and keep what they come to there; None where its model corrects nothing."""
    from cellweave.core.models.midas_network import MidasNetwork
    from cellweave.core.query.centroid import centroid_of
    from cellweave.core.query.corrected_space import corrected_space
    from cellweave.core.query.opened import open_run

    opened = open_run(run.folder.path)
    if not isinstance(opened.model, MidasNetwork):
        return None
    batches = lambda rows: ((rows[where], batch) for where, batch in opened.minibatches(rows))  # noqa: E731
    space = corrected_space(run.spec, opened.model, opened.data, batches, centroid_of(opened))
    save_space(run.folder.results, space)
    return space


def update_metrics_file(path: Path, tree: Mapping[str, Any], mosaic: Mapping[str, Any] | None = None) -> None:
    """Put the metrics, and scMIB's scores where there are any, into a ``metrics.csv``; rows of other names stay."""
    from cellweave.core.analysis import scmib

    kept: list[dict[str, str]] = []
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            kept = [row for row in csv.DictReader(file) if row.get("name") not in ALL and not scmib.is_ours(str(row.get("name")))]
    fields = ["name", "group", "value", "baseline", "expected"]
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(kept)
    for row in [*metric_rows(tree), *(scmib.score_rows(mosaic) if mosaic is not None else ())]:
        writer.writerow({key: "" if value is None else value if isinstance(value, str) else repr(value) for key, value in row.items()})
    write_text_atomic(path, text.getvalue())


def latent_files(results: Path, family: Any) -> dict[str, Path]:
    """Return the latents that a family declares and the run has, the main one first."""
    names = ["latent", *(result.name for result in family.results if result.kind == "latent")]
    return {name: results / f"{name}.npy" for name in dict.fromkeys(names) if (results / f"{name}.npy").is_file()}


# ---------------------------------------------------------------- tasks of the analysis process


def integration_task(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Measure files: ``embeddings`` ``{name: path}``, ``batch`` and ``labels`` (paths of codes, or None), ``names``, ``limit``, ``seed``."""
    codes = {role: np.asarray(load_array(Path(arguments[role]))) if arguments.get(role) else None for role in ("batch", "labels")}
    return measure_files(
        {name: Path(path) for name, path in arguments["embeddings"].items()},
        batch=codes["batch"], labels=codes["labels"], names=tuple(arguments.get("names") or ()),
        limit=int(arguments.get("limit", 50_000)), seed=int(arguments.get("seed", 0)), progress=progress,
    )  # fmt: skip


def measure_run_task(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Measure the finished run ``run`` and write the result into its folder.

    ``batch``, ``labels``, ``names``, ``limit`` and ``seed`` are those of the spec where they are not given; with ``chosen`` a
    column that is not given is none. A column may be one of the input file; the baseline is computed where the run has none.
    """
    from cellweave.core.export.run_data import RunData

    run = RunData(Path(arguments["run"]))
    status = run.folder.status
    if status.state.active and not status.lost:
        raise CellweaveError(f"The run '{run.name}' is still going on ({status.state.value}).", "Its metrics are computed when it is finished.")
    results, analysis = run.folder.results, run.spec.analysis
    columns = run.spec.covariates.scored()
    chosen = {role: arguments.get(role) for role in ("batch", "labels")}
    if not arguments.get("chosen"):
        chosen["batch"] = chosen["batch"] or analysis.integration_batch or columns.get("batch")
        chosen["labels"] = chosen["labels"] or analysis.integration_labels or columns.get("labels")
    if not any(chosen.values()):
        raise SpecError("No column says which batch or which label a cell is of.", "Choose at least one of them.")
    embeddings = latent_files(results, run.spec.family)
    if not embeddings:
        run.array("latent")  # says that there is none yet
    progress(0.0, "reading the columns")
    codes = {role: _codes_of(run, column) if column else None for role, column in chosen.items()}
    baseline = results / "baseline_pca.npy"
    if not baseline.is_file():
        progress(0.02, "reading the counts for the baseline")
        _compute_baseline(run, baseline, progress)
    names = tuple(arguments.get("names") or analysis.integration_metrics)
    found = measure_files(
        {**embeddings, BASELINE: baseline}, batch=codes["batch"], labels=codes["labels"], names=names,
        limit=int(arguments.get("limit") or analysis.integration_cells),
        seed=int(run.spec.training.seed if arguments.get("seed") is None else arguments["seed"]),
        progress=lambda share, text: progress(0.1 + 0.9 * share, text),
    )  # fmt: skip
    if "leiden" in chosen.values():
        found["notes"].insert(0, "The clusters were computed from this very latent space, so metrics against them say nothing of biology.")
    tree = store(results, found, {role: column for role, column in chosen.items() if column}, names)
    mosaic = score_mosaic(run, tree, codes, progress)
    update_metrics_file(run.folder.metrics_file, tree, mosaic)
    return {"path": str(results / JSON_NAME), "n_cells": found["n_cells"], "notes": found["notes"]}


def _codes_of(run: Any, column: str) -> NDArray[np.int64]:
    values = run.column(column)
    if values.levels is None:
        raise SpecError(f"'{column}' holds numbers, not levels, so it can be neither batch nor label.", "Choose a column of names.")
    return np.asarray(values.codes, dtype=np.int64)


def _compute_baseline(run: Any, out: Path, progress: Progress) -> None:
    from scipy import sparse

    from cellweave.core.analysis.baseline import baseline_pca, measured_rows, over_all_cells
    from cellweave.core.study import load_study
    from cellweave.core.training.data import prepare


    def tell(fraction: float | None, text: str = "") -> None:
        progress(0.02 + 0.02 * (fraction or 0.0), text or "reading the counts")

    study = load_study(run.spec.data, progress=tell)
    modality = prepare(run.spec, study).main_modality
    n_cells = modality.counts.shape[0]
    if n_cells != len(run.cells):
        raise DataError(
            f"The input has {counted(n_cells, 'cell')} now and the run {len(run.cells):,}, so the baseline cannot be computed.", "Put the original file back."
        )
    progress(0.05, "principal components of the log-normalised counts")
    rows = measured_rows(modality)
    save_array(out, over_all_cells(baseline_pca(sparse.csr_matrix(modality.counts[rows]), seed=run.spec.training.seed), rows, n_cells))
