"""scVI's variational autoencoder: options, loss terms and what it gives (specs: scVI VAE, sections 1-4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cellweave.core.models.declare import Family, LossTerm, Result, RoleUse
from cellweave.core.models.latent_mmd import LatentMmdOptions, mmd_metrics, mmd_term
from cellweave.core.spec import words
from cellweave.core.spec.fields import option

if TYPE_CHECKING:
    from cellweave.core.spec.run import RunSpec

Where = Literal["encoder", "decoder", "both", "none"]
Activation = Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "softplus", "none"]
NETWORK, LIKELIHOOD, LATENT, COVARIATES = "Network", "Likelihood", "Latent space", "Covariates"


class VaeOptions(LatentMmdOptions):
    """Options of the VAE; names and defaults are those of scvi-tools."""

    kind: Literal["vae"] = "vae"
    n_latent: int = option(10, "Latent dimensions", "Size of the latent space. 10 to 30 suit most data.", group=LATENT, ge=1, le=1024)
    n_hidden: int = option(128, "Hidden units", "Width of the hidden layers.", group=NETWORK, ge=1, le=8192)
    n_layers: int = option(1, "Hidden layers", "Hidden layers of encoder and decoder.", group=NETWORK, ge=1, le=10)
    dropout_rate: float = option(0.1, "Dropout", "Share of hidden units of the encoder left out in each step.", group=NETWORK, ge=0, lt=1)
    gene_likelihood: Literal["zinb", "nb", "poisson", "normal"] = option(
        "zinb", "Likelihood", "Zero-inflated negative binomial, negative binomial, Poisson, or normal.", group=LIKELIHOOD, words=words.LIKELIHOODS
    )
    dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = option(
        "gene", "Dispersion", "One dispersion per gene, per gene and batch, per gene and label, or from the decoder for every cell.", group=LIKELIHOOD,
        words=words.DISPERSIONS,
    )
    use_observed_lib_size: bool = option(
        True, "Observed library size", "Take each cell's total count as its library size; switched off, a library size is learned.", group=LIKELIHOOD
    )
    latent_distribution: Literal["normal", "ln"] = option(
        "normal", "Latent distribution", "Normal, or logistic normal, whose coordinates are shares that sum to 1.", group=LATENT, advanced=True,
        words=words.LATENTS,
    )
    log_variational: bool = option(True, "Log of the input", "Give log(1 + counts) to the encoder.", group=NETWORK, advanced=True)
    encode_covariates: bool = option(
        False, "Covariates in the encoder", "Tell the encoder of batch and covariates as well as the decoder.", group=COVARIATES
    )
    deeply_inject_covariates: bool = option(
        True, "Covariates in every layer", "Give the categorical covariates to every hidden layer, not only to the first.", group=COVARIATES, advanced=True
    )
    batch_representation: Literal["one-hot", "embedding"] = option(
        "one-hot", "Batch as", "One-hot columns, or a learned embedding, which suits many batches.", group=COVARIATES, advanced=True, words=words.BATCHES_AS
    )
    batch_embedding_dim: int = option(5, "Batch embedding size", "Length of the learned batch vector.", group=COVARIATES, ge=1, le=256, advanced=True)
    batch_embedding_max_norm: float | None = option(
        None, "Longest batch vector", "A learned batch vector that is longer is shortened to this.", group=COVARIATES, gt=0, auto="no limit", advanced=True
    )
    batch_embedding_norm_type: float = option(
        2.0, "Norm of the batch vector", "Which norm the limit is about: 1 the sum of its parts, 2 its length.", group=COVARIATES, gt=0, le=16, advanced=True
    )
    batch_embedding_scale_grad: bool = option(
        False, "Rare batches learn faster", "Divide the gradient of a batch vector by the cells of its batch in the minibatch.",
        group=COVARIATES, advanced=True,
    )
    use_batch_norm: Where = option("both", "Batch normalisation", "Where batch normalisation is used.", group=NETWORK, advanced=True, words=words.PLACES)
    use_layer_norm: Where = option("none", "Layer normalisation", "Where layer normalisation is used.", group=NETWORK, advanced=True, words=words.PLACES)
    var_activation: Literal["exp", "softplus"] = option(
        "exp", "Variance activation", "Function that makes the encoder's variance positive.", group=NETWORK, advanced=True, words=words.ACTIVATIONS
    )
    var_eps: float = option(1e-4, "Smallest variance", "Added to the encoder's variance.", group=NETWORK, gt=0, le=1, advanced=True, log=True)
    encoder_activation: Activation = option(
        "relu", "Encoder activation", "Function behind each hidden layer of the encoder.", group=NETWORK, advanced=True,
        words=words.ACTIVATIONS,
    )
    decoder_activation: Activation = option(
        "relu", "Decoder activation", "Function behind each hidden layer of the decoder.", group=NETWORK, advanced=True,
        words=words.ACTIVATIONS,
    )
    encoder_bias: bool = option(True, "Bias of the encoder", "A constant per hidden unit of the encoder.", group=NETWORK, advanced=True)
    decoder_bias: bool = option(True, "Bias of the decoder", "A constant per hidden unit of the decoder.", group=NETWORK, advanced=True)


def learns_library(spec: RunSpec) -> bool:
    """Return whether the model of this spec learns a library size."""
    model = spec.model
    return not getattr(model, "use_observed_lib_size", True) and spec.covariates.size_factor is None


def terms(spec: RunSpec) -> tuple[LossTerm, ...]:
    """Loss terms of the VAE (spec section 4)."""
    found = [
        LossTerm(
            "reconstruction", "Reconstruction",
            "Negative log-likelihood of the counts. Lower it to let the other terms have their way.", colour=0,
        ),
        LossTerm(
            "kl_z", "KL of the latent",
            "Pull of each cell's posterior to the standard normal prior. Higher values give a smoother, less detailed latent space.",
            annealed=True, colour=1,
        ),
    ]
    if learns_library(spec):
        found.append(
            LossTerm("kl_l", "KL of the library size", "Pull of the learned library sizes to those observed in their batch.", colour=2)
        )
    if spec.covariates.batch is not None:
        found.append(mmd_term(colour=3))
    return tuple(found)


def dispersion_conflicts(spec: RunSpec, dispersion: str, likelihood: str) -> list[str]:
    """Return what a choice of dispersion asks for that this spec does not have; for every family with such a choice."""
    found = []
    if dispersion == "gene-batch" and spec.covariates.batch is None:
        found.append("model.dispersion is 'gene-batch', but no column is the batch")
    if dispersion == "gene-label" and spec.covariates.labels is None:
        found.append("model.dispersion is 'gene-label', but no column is the labels")
    if dispersion != "gene" and likelihood == "poisson":
        found.append("model.dispersion has no meaning for the Poisson likelihood; leave it at 'gene'")
    return found


def check(spec: RunSpec) -> list[str]:
    """Return what the VAE cannot honour in this spec."""
    model, roles = spec.model, spec.covariates
    assert isinstance(model, VaeOptions)
    found = dispersion_conflicts(spec, model.dispersion, model.gene_likelihood)
    if model.batch_representation == "embedding" and roles.batch is None:
        found.append("model.batch_representation is 'embedding', but no column is the batch")
    if model.batch_representation == "one-hot":
        idle = ("batch_embedding_max_norm", "batch_embedding_norm_type", "batch_embedding_scale_grad")
        found += [
            f"model.{name} is about the batch embedding, but model.batch_representation is 'one-hot'"
            for name in idle
            if getattr(model, name) != VaeOptions.model_fields[name].default
        ]
    if roles.size_factor is not None and not model.use_observed_lib_size:
        found.append("a size factor replaces the library size, so use_observed_lib_size cannot be switched off")
    return found


FAMILY = Family(
    kind="vae",
    maps=True,
    title="scVI",
    help="Variational autoencoder of counts: a latent space without the batch effect, and denoised expression.",
    options=VaeOptions,
    terms=terms,
    metrics=mmd_metrics,
    network="cellweave.core.models.vae_network:build",
    check=check,
    roles=(
        RoleUse("batch", "Given to the decoder, so that the latent space need not carry it."),
        RoleUse("decoder", "Further categorical covariates, given to the decoder as the batch is."),
        RoleUse("continuous", "Numeric covariates, given to the decoder."),
        RoleUse("labels", "Colours and scores; selects the dispersion where that is per gene and label."),
        RoleUse("size_factor", "Replaces the observed library size."),
    ),
    unused_reason={
        "encoder": "scVI gives the encoder all its covariates or none: switch on 'Covariates in the encoder' in the model instead.",
        "library_size": "scVI takes the library-size prior of the batch.",
        "dispersion": "scVI takes the dispersion of the batch or of the labels: choose it in the model.",
        "*": "scVI does not use this role.",
    },
    results=(
        Result("latent", "latent", "Latent space", "Posterior mean of every cell."),
        Result("library", "library", "Library size", "Posterior mean of the library size."),
        Result("denoised", "expression", "Denoised expression", "Expected expression without sampling noise."),
    ),
    paper="Lopez et al., Nature Methods 15 (2018) 1053-1058",
)
