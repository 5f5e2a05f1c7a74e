"""The MMD term on a latent: options and declaration, for every family that has a batch and a latent space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cellweave.core.models.declare import LossTerm, Metric
from cellweave.core.spec import words
from cellweave.core.spec.fields import option
from cellweave.core.spec.options import ModelOptions

if TYPE_CHECKING:
    from cellweave.core.spec.run import RunSpec

MMD = "Discrepancy between batches (MMD)"


class LatentMmdOptions(ModelOptions):
    """How the discrepancy between the latents of batches is measured; its weight is a loss weight."""

    mmd_mode: Literal["normal", "fast"] = option(
        "normal", "MMD estimate", "Over all pairs of cells, or in time linear in the number of cells (noisier).", group=MMD, advanced=True,
        words=words.MMD_MODES,
    )
    mmd_kernel: Literal["unit", "dimension", "median", "multiscale", "widths"] = option(
        "unit",
        "MMD kernel",
        "Width 1 as published, which says little beyond a few latent dimensions; or scaled by the number of dimensions, by the "
        "median distance, a mixture of five widths around it, or the mean of scVAEIT's 19 fixed widths.",
        group=MMD,
        advanced=True, words=words.MMD_KERNELS,
    )
    mmd_pairs: Literal["sequential", "all", "one_vs_rest"] = option(
        "sequential", "MMD pairs", "Compare each batch with the next, all batches with each other, or each with the rest.", group=MMD, advanced=True,
        words=words.MMD_PAIRS,
    )
    mmd_unbiased: bool = option(
        False, "Unbiased MMD", "Leave out the comparison of a cell with itself, which matters where batches are small.", group=MMD, advanced=True
    )


def mmd_term(colour: int) -> LossTerm:
    """Return the declaration of the term (scVI+MMD; Gretton et al. 2012)."""
    return LossTerm(
        "mmd",
        "Discrepancy between batches (MMD)",
        "Pulls the latents of the batches together. 0 switches it off; reconstruction is some thousand nats, so weights of 100 to 10,000 act. "
        "Too high a weight mixes cell types that only one batch has.",
        default=0.0,
        scope="minibatch",
        maximum=10_000.0,
        colour=colour,
        in_elbo=False,
        unit="MMD²/minibatch",
        also_summed=True,
    )


def mmd_metrics(spec: RunSpec) -> tuple[Metric, ...]:
    """Return the history of the discrepancy as the publication has it, where the term is switched on from the start."""
    if spec.covariates.batch is None or spec.losses.weights.get("mmd", 0.0) <= 0:
        return ()
    said = "Sum of the discrepancy over the minibatches, divided by the number of cells, as scVI+MMD was published; the loss term is per minibatch."
    return tuple(
        Metric(f"mmd_loss_{side}", f"MMD per cell, {words}", said, "MMD² per cell")
        for side, words in (("train", "training"), ("validation", "held out"))
    )
