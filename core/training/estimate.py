"""What a run will need, estimated before one presses Train: memory, time, and whether it fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import psutil

from cellweave.core.spec import RunSpec
from cellweave.core.spec.optimisers import OPTIMISERS
from cellweave.core.training.schedule import N_MAX, default_max_epochs, split_sizes
from cellweave.core.wording import counted

if TYPE_CHECKING:
    from cellweave.core.study.study import Study

# Measured on one core (AVX-512, 100 GFLOP/s in float32): time of a step beside its matrix products, and per element of the
# cells x features matrix. Only the order of magnitude matters: the activity bar shows the measured rate from the first epoch on.
SECONDS_PER_FLOP = 1.0e-11
SECONDS_PER_ELEMENT = 1.6e-8
SECONDS_PER_STEP = 6.0e-3
SECONDS_PER_EPOCH = 0.1  # looks at held-out cells, files, checkpoints
PASSES = 14  # live float32 copies of one cells x features minibatch in a step
BASE_BYTES = 700 << 20  # interpreter, torch and the analysis libraries


class Fit(Enum):
    """The traffic light."""

    FITS = "fits"
    TIGHT = "tight"
    TOO_LARGE = "does not fit"


@dataclass(frozen=True)
class Estimate:
    """What a run will need.

    Attributes
    ----------
    data_bytes
        Counts in memory.
    model_bytes
        Weights, gradients and the optimiser's moments.
    step_bytes
        One minibatch with its activations.
    free_bytes
        Memory free on this machine now.
    seconds
        Training time, should all epochs be trained.
    fit
        The traffic light.
    text
        One sentence for the window.
    mend
        What to change where it does not fit, or empty.
    """

    data_bytes: int
    model_bytes: int
    step_bytes: int
    free_bytes: int
    seconds: float
    fit: Fit
    text: str
    mend: str

    @property
    def total_bytes(self) -> int:
        """All memory the run needs beyond the program itself."""
        return self.data_bytes + self.model_bytes + self.step_bytes


def estimate(
    spec: RunSpec,
    n_cells: int,
    n_features: int,
    n_stored: int,
    *,
    n_covariate_levels: int = 0,
    cells_per_second: float | None = None,
    streams: Sequence[int] = (),
) -> Estimate:
    """Estimate memory and time of a run on a CPU.

    Parameters
    ----------
    spec
        The run's spec.
    n_cells, n_features
        Of the modality the model is trained on, after feature selection; features of all modalities together where it is trained on several.
    n_stored
        Non-zero counts.
    n_covariate_levels
        Levels of all categorical covariates together, which widen the decoder.
    cells_per_second
        Speed of an earlier run with the same model, where one is known.
    streams
        Cells of each batch and pattern of modalities (:func:`stream_sizes`), which say how long an epoch of the pattern sampler is.

    Returns
    -------
    Estimate
        Bytes, seconds, and the sentence that says whether it fits.
    """
    training = spec.training
    hidden, layers, latent = (_largest(getattr(spec.model, name, otherwise)) for name, otherwise in (("n_hidden", 128), ("n_layers", 1), ("n_latent", 10)))
    if spec.family.hidden_units is not None:
        hidden = spec.family.hidden_units(spec)
    heads = 3 if spec.family.hidden_units is None else 1  # mean, dispersion and drop-out heads of the decoder
    weights = n_features * hidden * (1 + heads) + 2 * (layers - 1) * hidden**2 + hidden * (3 * latent + 2 * n_covariate_levels)
    batch = min(training.batch_size, max(2, n_cells))
    on_disk = training.source == "disk"
    data_bytes = 0 if on_disk else n_stored * 8 + n_cells * 8
    moments = OPTIMISERS[training.optimizer].moments
    model_bytes = weights * 4 * (2 + moments) + weights * 4 * 2  # weights, gradient, moments; the best and the last good copy
    step_bytes = batch * n_features * 4 * PASSES + batch * hidden * 4 * 8 * layers
    free = int(psutil.virtual_memory().available)
    n_train, n_validation = split_sizes(n_cells, training.validation_share)
    epochs = training.max_epochs or spec.family.training.get("max_epochs") or default_max_epochs(max(1, n_train))
    n_train = cells_per_epoch(spec, n_train, streams)
    if cells_per_second:
        seconds = epochs * n_train / cells_per_second
    else:
        used_heads = 2 if getattr(spec.model, "gene_likelihood", "nb") == "zinb" else 1
        flops_per_cell = 6 * n_features * hidden * (1 + used_heads)
        steps = max(1, n_train // batch)
        per_epoch = n_train * (flops_per_cell * SECONDS_PER_FLOP + n_features * SECONDS_PER_ELEMENT * (1 + used_heads)) + steps * SECONDS_PER_STEP
        seconds = epochs * (per_epoch * (1 + 0.3 * n_validation / max(1, n_train)) + SECONDS_PER_EPOCH)
    needed = data_bytes + model_bytes + step_bytes
    fit = Fit.FITS if needed < 0.6 * free else Fit.TIGHT if needed < 0.9 * free else Fit.TOO_LARGE
    mend = ""
    if fit is not Fit.FITS:
        mend = "Use a smaller minibatch or fewer features."
        if data_bytes > step_bytes and not on_disk:
            mend = "Take the counts from the disk cache (training.source = 'disk')."
    text = (
        f"About {describe_bytes(needed)} of {describe_bytes(free)} free memory and about {describe_seconds(seconds)} for "
        f"{counted(epochs, 'epoch')}: {fit.value}."
    )
    return Estimate(data_bytes, model_bytes, step_bytes, free, seconds, fit, text, mend)


def cells_per_epoch(spec: RunSpec, n_train: int, streams: Sequence[int] = ()) -> int:
    """Return how many cells the steps of an epoch take together: every training cell once, or what the pattern sampler draws.

    Parameters
    ----------
    spec
        The run's spec.
    n_train
        Training cells.
    streams
        Cells of each batch and pattern, validation cells included.
    """
    if spec.family.sampler != "pattern" or not streams:
        return n_train
    sizes = [split_sizes(n, spec.training.validation_share)[0] for n in streams]
    rounds = -(-min(max(sizes), int(getattr(spec.model, "n_max", N_MAX))) // spec.training.batch_size)
    return rounds * len(sizes) * spec.training.batch_size


def stream_sizes(spec: RunSpec, study: Study) -> tuple[int, ...]:
    """Return the cells of each batch and pattern of measured modalities; empty for a family whose minibatches may mix them."""
    from cellweave.core.study.mosaic import Mosaic

    if spec.family.sampler != "pattern":
        return ()
    batch = spec.covariates.batch
    mosaic = Mosaic.of(study, batch if batch is not None and batch in study.obs.columns else None)
    found = mosaic.by_pattern[:, mosaic.patterns.any(axis=1)]
    return tuple(int(n) for n in found[found > 0])


def _largest(value: object) -> int:
    """Return a size, the largest where an option holds one for each modality."""
    return max(int(one) for one in value.values()) if isinstance(value, dict) else int(value)  # type: ignore[call-overload]


def describe_bytes(n: float) -> str:
    """Return bytes in words, ``1.3 GB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.1f} {unit}" if n < 10 * size else f"{n / size:.0f} {unit}"
    return f"{n:.0f} bytes"


def describe_seconds(seconds: float) -> str:
    """Return a duration in words, ``1 min 12 s``."""
    seconds = max(0.0, seconds)
    if seconds < 1:
        return "1 s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes < 10 else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
