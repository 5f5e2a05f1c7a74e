"""LDVAE, the linearly decoded variational autoencoder: options, loss terms and what it gives (Svensson et al. 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from cellweave.core.models.declare import Family, Result, RoleUse
from cellweave.core.models.latent_mmd import LatentMmdOptions, mmd_metrics
from cellweave.core.models.vae import LATENT, LIKELIHOOD, NETWORK, dispersion_conflicts, terms
from cellweave.core.spec import words
from cellweave.core.spec.fields import option

if TYPE_CHECKING:
    from cellweave.core.spec.run import RunSpec


class LdvaeOptions(LatentMmdOptions):
    """Options of LDVAE; names and defaults are those of scvi-tools' LDVAE."""

    kind: Literal["ldvae"] = "ldvae"
    n_latent: int = option(10, "Latent dimensions", "Size of the latent space; each dimension gets one loading per gene.", group=LATENT, ge=1, le=1024)
    n_hidden: int = option(128, "Hidden units", "Width of the encoder's hidden layers.", group=NETWORK, ge=1, le=8192)
    n_layers_encoder: int = option(1, "Hidden layers of the encoder", "The decoder is linear and has none.", group=NETWORK, ge=1, le=10)
    dropout_rate: float = option(0.1, "Dropout", "Share of hidden units of the encoder left out in each step.", group=NETWORK, ge=0, lt=1)
    gene_likelihood: Literal["zinb", "nb", "poisson"] = option(
        "nb", "Likelihood", "Zero-inflated negative binomial, negative binomial, or Poisson.", group=LIKELIHOOD, words=words.LIKELIHOODS
    )
    dispersion: Literal["gene", "gene-batch", "gene-label"] = option(
        "gene", "Dispersion", "One dispersion per gene, per gene and batch, or per gene and label. A linear decoder has none per cell.", group=LIKELIHOOD,
        words=words.DISPERSIONS,
    )
    use_observed_lib_size: bool = option(
        False, "Observed library size", "Take each cell's total count as its library size; switched off, a library size is learned.", group=LIKELIHOOD
    )
    latent_distribution: Literal["normal", "ln"] = option(
        "normal", "Latent distribution", "Normal, or logistic normal, whose coordinates are shares that sum to 1.", group=LATENT, advanced=True,
        words=words.LATENTS,
    )
    log_variational: bool = option(True, "Log of the input", "Give log(1 + counts) to the encoder.", group=NETWORK, advanced=True)
    use_batch_norm: bool = option(True, "Batch normalisation of the decoder", "The loadings take its scale into account.", group=NETWORK, advanced=True)
    bias: bool = option(False, "Bias of the decoder", "A constant per gene beside the loadings.", group=NETWORK, advanced=True)

    # What scvi's network asks for and a linear decoder cannot have.
    encode_covariates: ClassVar[bool] = False


def check(spec: RunSpec) -> list[str]:
    """Return what LDVAE cannot honour in this spec."""
    model = spec.model
    assert isinstance(model, LdvaeOptions)
    return dispersion_conflicts(spec, model.dispersion, model.gene_likelihood)


FAMILY = Family(
    kind="ldvae",
    maps=True,
    title="LDVAE",
    help="scVI with a linear decoder: each latent dimension has one loading per gene, which can be read like principal components.",
    options=LdvaeOptions,
    terms=terms,
    metrics=mmd_metrics,
    network="cellweave.core.models.ldvae_network:build",
    check=check,
    roles=(
        RoleUse("batch", "Given to the linear decoder, so that the latent space need not carry it."),
        RoleUse("labels", "Colours and scores; selects the dispersion where that is per gene and label."),
    ),
    unused_reason={
        "decoder": "LDVAE's linear decoder knows the batch only: use scVI for further covariates.",
        "continuous": "LDVAE's linear decoder knows the batch only: use scVI for further covariates.",
        "size_factor": "LDVAE learns the library size, or takes the observed one: use scVI for size factors.",
        "*": "LDVAE does not use this role.",
    },
    results=(
        Result("latent", "latent", "Latent space", "Posterior mean of every cell."),
        Result("library", "library", "Library size", "Posterior mean of the library size."),
        Result("denoised", "expression", "Denoised expression", "Expected expression without sampling noise."),
        Result("loadings", "loadings", "Loadings", "Weight of every gene in every latent dimension."),
    ),
    paper="Svensson et al., Bioinformatics 36 (2020) 3418-3421",
)
