"""Answers of models of several modalities: imputed, batch-corrected and translated values, and latents given some modalities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cellweave.core.query.answering import Rows, write_csv, write_h5ad
from cellweave.core.query.mosaic import MosaicQuestion
from cellweave.core.query.questions import (
    CorrectedOptions,
    DrawnOptions,
    ImputedOptions,
    LatentGivenOptions,
    SpreadOptions,
    TranslatedOptions,
)
from cellweave.core.query.trained_run import QueryError, TrainedRun
from cellweave.core.spec.modalities import modality_kind
from cellweave.core.wording import counted


def answer_imputed(run: TrainedRun, options: SpreadOptions, rows: Rows, path: Path) -> list[str]:
    """Write imputed values of the modalities."""
    from cellweave.core.query.imputed import ImputedQuestion, write_imputed

    if isinstance(options, DrawnOptions) and options.values == "drawn":
        if options.draws is not None:
            raise QueryError("Means over draws of the latent are no drawn counts.", "Set 'Draws' to auto, or 'Values' to expected.")
        if options.blended:
            raise QueryError("Counts are drawn for every cell, also where they were measured.", "Switch 'Keep measured values' off.")
        return _values(run, MosaicQuestion("imputed", options.given or None, options.modalities or None, sampled=True, seed=options.seed), rows, path)
    in_counts = not isinstance(options, ImputedOptions) or options.scale == "counts"
    question = ImputedQuestion(options.given or None, options.modalities or None, options.draws, options.blended, not in_counts, options.seed)
    write_imputed(run, path, rows, question)
    names = options.modalities or tuple(modality.name for modality in run.data.modalities)
    spread = " Their standard deviation over the draws is written as sd." if options.draws is not None else ""
    return [f"{counted(len(rows), 'cell')}, {_labels(names)}, {'as counts' if in_counts else 'on the scale of training'}.{spread}"]


def answer_corrected(run: TrainedRun, options: CorrectedOptions, rows: Rows, path: Path) -> list[str]:
    """Write values of the modalities as one batch would have had them."""
    return _values(run, MosaicQuestion("corrected", None, options.modalities or None, options.values == "drawn", options.seed), rows, path)


def answer_translated(run: TrainedRun, options: TranslatedOptions, rows: Rows, path: Path) -> list[str]:
    """Write what some modalities say of others."""
    if not options.given:
        names = _labels([modality.name for modality in run.data.modalities])
        raise QueryError("A translation needs the modalities it starts from.", f"Name some of {names} under 'From'.")
    question = MosaicQuestion("translated", options.given, options.modalities or None, options.values == "drawn", options.seed)
    return _values(run, question, rows, path)


def _values(run: TrainedRun, question: MosaicQuestion, rows: Rows, path: Path) -> list[str]:
    from cellweave.core.query.mosaic_files import SUFFIXES, write_mosaic

    if path.suffix not in SUFFIXES:
        raise QueryError(f"Drawn counts are not written as {path.suffix}.", f"Write them as {' or '.join(SUFFIXES)}.")
    known = {modality.name: modality.measured[rows] for modality in run.data.modalities}
    asked = question.among(tuple(run.trained.features))
    told = np.any([known[name] for name in asked.given or known], axis=0)
    if not told.any():
        raise QueryError(f"None of these cells has {_labels(asked.given or tuple(known), 'or')}.", "Choose other cells, or other modalities to start from.")
    write_mosaic(run, path, rows, question)
    start = f" from {_labels(asked.given)}" if asked.given else ""
    how = f"counts drawn with seed {asked.seed}" if asked.sampled else "expected values"
    lacking = int((~told).sum())
    none = f" {lacking:,} {'cells have' if lacking != 1 else 'cell has'} nothing to start from and no values." if lacking else ""
    return [f"{counted(len(rows), 'cell')}, {_labels(asked.modalities or ())}{start}, {how}.{none}"]


def answer_latent_given(run: TrainedRun, options: LatentGivenOptions, rows: Rows, path: Path) -> list[str]:
    """Write the latent space given some modalities; cells that have none of them are left out."""
    from cellweave.core.query.imputed import latent_given

    given = options.given or tuple(modality.name for modality in run.data.modalities)
    values = latent_given(run, given, rows)
    told = np.isfinite(values).all(1)
    if not told.any():
        raise QueryError(f"None of these cells has {_labels(given, 'or')}.", "Choose other cells, or let the model look at other modalities.")
    rows, values = rows[told], values[told]
    if path.suffix == ".csv":
        names = [f"Z_{number}" for number in range(values.shape[1])]
        write_csv(path, pd.DataFrame(values, index=run.cell_names[rows], columns=names).rename_axis("cell"))
    else:
        write_h5ad(path, run, rows, obsm={"X_latent": values})
    left = f" {counted(int((~told).sum()), 'cell has none of it and is', 'cells have none of it and are')} left out." if not told.all() else ""
    return [f"{counted(len(rows), 'cell')} in {counted(values.shape[1], 'dimension')}, given {_labels(given)}.{left}"]


def _labels(names: Sequence[str], word: str = "and") -> str:
    labels = [modality_kind(name).label for name in names]
    return f" {word} ".join([", ".join(labels[:-1]), labels[-1]] if len(labels) > 1 else labels)
