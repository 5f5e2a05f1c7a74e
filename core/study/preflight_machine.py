"""Checks of the machine and of the training: memory, disk, minibatches."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cellweave.core.spec.run import RunSpec
from cellweave.core.study.checks import Check, Fix, Level
from cellweave.core.study.header import FileHeader
from cellweave.core.study.preflight_data import used_modalities
from cellweave.core.study.study import Study
from cellweave.core.training.estimate import Estimate, Fit, describe_bytes, estimate, stream_sizes
from cellweave.core.training.schedule import split_sizes
from cellweave.core.wording import counted

CHECKPOINT_COPIES = 3  # the last, the best, and the one being written
LEVEL_OF_FIT = {Fit.FITS: Level.OK, Fit.TIGHT: Level.WARN, Fit.TOO_LARGE: Level.FAIL}


def check_machine(spec: RunSpec, study: Study, folder: Path | None) -> list[Check]:
    """Return what was found of memory, disk and minibatches."""
    used = used_modalities(spec, study)
    if not used:
        return []
    measured = np.logical_or.reduce([modality.measured for modality in used])
    n_features = sum(modality.n_features for modality in used)
    n_stored = sum(modality.counts.nnz for modality in used)
    levels = sum(study.obs[name].nunique() for name in spec.covariates.columns() if name in study.obs.columns)
    # the counts are in memory (or mapped from disk) already, and training reads them there
    streams = stream_sizes(spec, study)
    need = estimate(spec, int(measured.sum()), n_features, 0, n_covariate_levels=int(levels), streams=streams)
    held = sum(modality.counts.data.nbytes + modality.counts.indices.nbytes for modality in study.modalities.values())
    found = [_memory(spec, need, f"The counts take {describe_bytes(held)} already. ")]
    found += _disk(spec, need, folder or Path.cwd(), n_stored)
    found += _minibatches(spec, int(measured.sum()))
    return found


def _memory(spec: RunSpec, need: Estimate, held: str = "") -> Check:
    fixes: tuple[Fix, ...] = ()
    if need.fit is not Fit.FITS:
        if spec.training.source != "disk" and need.data_bytes > need.step_bytes:
            fixes += (Fix("Take minibatches from the disk", {"training.source": "disk"}),)
        smaller = max(2, spec.training.batch_size // 2)
        if smaller < spec.training.batch_size:
            fixes += (Fix(f"Minibatches of {smaller:,}", {"training.batch_size": smaller}),)
    text = held + (need.text if need.fit is Fit.FITS or not need.mend else f"{need.text} {need.mend}")
    level = LEVEL_OF_FIT[need.fit]
    if not held and level is Level.FAIL:
        level = Level.WARN  # a guess from the header does not block
    return Check("memory", level, "Memory", text, fixes, "training.source")


def _disk(spec: RunSpec, need: Estimate, folder: Path, n_stored: int) -> Iterator[Check]:
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    wanted = CHECKPOINT_COPIES * need.model_bytes + (8 * n_stored if spec.training.source == "disk" else 0)
    text = f"A run writes up to {describe_bytes(wanted)}; {describe_bytes(free)} are free on the disk of '{place}'."
    if wanted > free:
        yield Check("disk", Level.FAIL, "Disk space", f"{text} Free some space or write the run to another disk.", where="training.checkpoint_every")
    elif wanted > 0.5 * free:
        yield Check("disk", Level.WARN, "Disk space", text, where="training.checkpoint_every")
    else:
        yield Check("disk", Level.OK, "Disk space", text, where="training.checkpoint_every")


def _minibatches(spec: RunSpec, n_cells: int) -> Iterator[Check]:
    if n_cells < 3:
        return
    n_train, _ = split_sizes(n_cells, spec.training.validation_share)
    size, where = spec.training.batch_size, "training.batch_size"
    if n_train < 2:
        fix = Fix("Train on nine tenths", {"training.validation_share": 0.1})
        text = f"Of {counted(n_cells, 'cell')} only {n_train} would be trained on."
        yield Check("minibatches", Level.FAIL, "Minibatches", text, (fix,), "training.validation_share")
    elif spec.family.sampler == "pattern":
        text = f"Each minibatch holds {counted(size, 'cell')} of one batch and one set of modalities; small batches are drawn several times in an epoch."
        yield Check("minibatches", Level.OK, "Minibatches", text, where=where)
    elif size > n_train:
        text = f"A minibatch of {size:,} holds all {n_train:,} training cells, so that an epoch is a single step."
        yield Check("minibatches", Level.OK, "Minibatches", text, where=where)
    elif n_train % size == 1:
        text = "The last minibatch of an epoch would hold one cell, which batch normalisation cannot use; it is never made."
        yield Check("minibatches", Level.OK, "Minibatches", text, where=where)


def check_headers(spec: RunSpec, headers: Sequence[FileHeader]) -> list[Check]:
    """Return what headers alone say of memory."""
    if not headers:
        return []
    many = spec.family.modalities == "many"
    names = {modality.name for header in headers for modality in header.modalities}
    wanted = spec.data.modality or ("rna" if "rna" in names else next(iter(names), ""))
    cells = features = stored = 0
    for header in headers:
        here = [modality for modality in header.modalities if many or modality.name == wanted]
        cells += max((modality.n_cells for modality in here), default=0)
        features = max(features, sum(_kept(spec, modality.name, modality.n_features) for modality in here))
        for modality in here:
            first = modality.matrices[0] if modality.matrices else None
            if first is not None:
                share = _kept(spec, modality.name, modality.n_features) / max(1, modality.n_features)
                whole = first.n_stored if first.n_stored is not None else header.estimated_bytes // 8
                stored += int(whole * share)
    if not cells or not features:
        return []
    return [_memory(spec, estimate(spec, cells, features, stored))]


def _kept(spec: RunSpec, name: str, n_features: int) -> int:
    how = spec.data.features.get(name)
    return min(n_features, how.n) if how is not None and how.mode == "variable" else n_features
