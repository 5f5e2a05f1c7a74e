"""The ambient-regularised VAE of one modality: declaration (regularizedvi, ``AmbientRegularizedSCVI``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cellweave.core.models.declare import Family, LossTerm, Metric, Result
from cellweave.core.models.regularised import FALLS_BACK, FAN_OUT, ROLES, shared_metrics, shared_terms
from cellweave.core.models.regularised_options import AMBIENT, SCALING, RegularisedOptions, check_modality
from cellweave.core.spec.fields import option

if TYPE_CHECKING:
    from cellweave.core.spec.run import RunSpec

PAPER = (
    "regularizedvi (Kleshchevnikov, 2026); background: Fleming et al., Nature Methods 20 (2023) 1323-1335; "
    "scVI: Lopez et al., Nature Methods 15 (2018) 1053-1058"
)


class AmbientOptions(RegularisedOptions):
    """Options of the ambient-regularised VAE."""

    kind: Literal["ambient"] = "ambient"
    use_additive_background: bool = option(
        True,
        "Ambient background",
        "Add to the expression what floats in the solution, learned for each level of the ambient columns.",
        group=AMBIENT,
    )
    use_feature_scaling: bool = option(
        True,
        "Feature scaling",
        "Scale each feature by a learned factor for each level of the scaling columns.",
        group=SCALING,
    )


def terms(spec: RunSpec) -> tuple[LossTerm, ...]:
    """Loss terms (specification section 4)."""
    return (
        LossTerm(
            "reconstruction",
            "Reconstruction",
            "Negative log-likelihood of the counts. Lower it to let the other terms have their way.",
            colour=0,
        ),
        LossTerm(
            "kl_z",
            "KL of the latent",
            "Pull of each cell's posterior to the standard normal prior. Higher values give a smoother, less detailed latent space.",
            annealed=True,
            colour=1,
        ),
        LossTerm(
            "kl_l", "KL of the library size", "Pull of the learned library sizes to those of their group.", colour=2
        ),
        *shared_terms(spec, first_colour=3),
    )


def metrics(spec: RunSpec) -> tuple[Metric, ...]:
    """What is told each epoch beside the loss terms."""
    return tuple(shared_metrics("the model", spec.model))


def check(spec: RunSpec) -> list[str]:
    """Return what cannot be honoured in this spec."""
    assert isinstance(spec.model, AmbientOptions)
    return check_modality(spec.model, spec.model.n_latent)


FAMILY = Family(
    kind="ambient",
    title="Ambient-regularised VI",
    help="scVI with a learned ambient background, feature scaling, regularised dispersions and a learned library size: what floats in the solution is "
    "taken out of the expression.",
    options=AmbientOptions,
    terms=terms,
    network="cellweave.core.models.ambient_network:build",
    summaries="cellweave.core.models.regularised_summaries:summaries",
    training={"min_delta_per_feature": 0.0002},
    check=check,
    metrics=metrics,
    roles=ROLES,
    fan_out=FAN_OUT,
    falls_back=FALLS_BACK,
    parts_together=True,
    knows_masks=True,
    unused_reason={
        "size_factor": "The library size is always learned here: use scVI for size factors.",
        "*": "This model does not use this role.",
    },
    results=(
        Result("latent", "latent", "Latent space", "Posterior mean of every cell."),
        Result("library", "library", "Library size", "Posterior mean of the library size."),
        Result(
            "denoised",
            "expression",
            "Denoised expression",
            "Expected expression without ambient background, scaling and sampling noise.",
        ),
        Result("ambient", "ambient", "Ambient background", "Learned background of each level of the ambient columns."),
        Result(
            "covariate_effects",
            "covariate_effects",
            "Covariate effects",
            "Share of covariates in the decoder, scaling and dispersions.",
        ),
        Result("attribution", "attribution", "Attribution", "Which latent dimensions the expected counts depend on."),
    ),
    paper=PAPER,
)
