"""Options that the ambient-regularised models of one and of several modalities share (regularizedvi).

No torch here. Options that the published program accepts and ignores are not options: it has one likelihood (the gamma-Poisson), no
one-hot batch to be required, no minified mode. Its switches ``use_kl_z``, ``regularise_background``, ``decoder_weight_l2``, ``decoder_cov_weight_l2``
and ``decoder_hidden_l1`` are the weights of loss terms here, 0 being off.
"""

from __future__ import annotations

from typing import Literal

from cellweave.core.spec import words
from cellweave.core.spec.fields import option
from cellweave.core.spec.options import ModelOptions

Where = Literal["encoder", "decoder", "both", "none"]
LATENT, NETWORK, AMBIENT, SCALING = "Latent space", "Network", "Ambient background", "Feature scaling"
DISPERSION, LIBRARY, DECODER, SPARSITY, BURST, RECORD = (
    "Dispersion",
    "Library size",
    "Decoder",
    "Sparsity",
    "Burst decoder",
    "Record",
)

#: Mean of the dispersions' prior, in the power that has it.
PRIOR_MEAN = 1 / 3


class RegularisedOptions(ModelOptions):
    """Options of one modality's networks and priors; defaults are those of regularizedvi."""

    n_latent: int = option(
        10,
        "Latent dimensions",
        "Size of the latent space; 128 with 512 hidden units is what its author recommends.",
        group=LATENT,
        ge=1,
        le=1024,
    )
    n_hidden: int = option(128, "Hidden units", "Width of the hidden layers.", group=NETWORK, ge=1, le=8192)
    n_layers: int = option(1, "Hidden layers", "Hidden layers of encoder and decoder.", group=NETWORK, ge=1, le=10)
    dropout_rate: float = option(
        0.1, "Dropout", "Share of the encoder's inputs left out in each step.", group=NETWORK, ge=0, lt=1
    )
    dropout_on_input: bool = option(
        True,
        "Dropout of the input",
        "Leave out counts before each layer of the encoder; switched off, hidden units after it.",
        group=NETWORK,
        advanced=True,
    )
    use_batch_norm: Where = option(
        "none", "Batch normalisation", "Where batch normalisation is used.", group=NETWORK, advanced=True, words=words.PLACES
    )
    use_layer_norm: Where = option(
        "both", "Layer normalisation", "Where layer normalisation is used.", group=NETWORK, advanced=True, words=words.PLACES
    )
    deeply_inject_covariates: bool = option(
        True,
        "Covariates in every layer",
        "Give the categorical covariates to every hidden layer, not only to the first.",
        group=NETWORK,
        advanced=True,
    )
    var_activation: Literal["exp", "softplus"] = option(
        "exp",
        "Variance activation",
        "Function that makes the encoder's variance positive.",
        group=NETWORK,
        advanced=True, words=words.ACTIVATIONS,
    )
    var_init_scale: float | None = option(
        None,
        "Posterior width at the start",
        "Standard deviation of the posterior before training.",
        group=NETWORK,
        gt=0,
        le=10,
        auto="from random weights",
        advanced=True,
    )
    z_loc_init_scale: float = option(
        1.0,
        "Latent scale at the start",
        "Factor of the random weights that give the posterior mean.",
        group=NETWORK,
        gt=0,
        le=100,
        advanced=True,
    )
    batch_in_decoder: bool = option(
        False,
        "Batch in the decoder",
        "Tell the decoder of the batch (or library) too. As published it is told of decoder covariates only.",
        group=DECODER,
    )

    bg_init_gene_fraction: float = option(
        0.2,
        "Background at the start",
        "Share of each level's mean expression that the background begins at; 0 begins every feature at the mean of its prior.",
        group=AMBIENT,
        ge=0,
        le=1,
    )
    background_prior_alpha: float = option(
        1.0, "Shape of the background's prior", "Shape of its Gamma prior.", group=AMBIENT, gt=0, advanced=True
    )
    background_prior_beta: float = option(
        100.0,
        "Rate of the background's prior",
        "Rate of its Gamma prior; the mean is shape / rate.",
        group=AMBIENT,
        gt=0,
        advanced=True,
    )

    feature_scaling_prior: float = option(
        200.0,
        "Strength of the scaling's prior",
        "Shape and rate of the Gamma prior of the factors: higher values keep them nearer to 1.",
        group=SCALING,
        gt=0,
        advanced=True,
        log=True,
    )
    feature_scaling_combine: Literal["product", "sum"] = option(
        "product",
        "Several scaling columns",
        "Multiply the factors of several columns; the sum, as published, begins near the number of columns instead of 1.",
        group=SCALING,
        advanced=True, words=words.COMBINED,
    )

    dispersion: Literal["gene-batch", "gene"] = option(
        "gene-batch",
        "Dispersion",
        "One dispersion per feature and level of the dispersion column, or one per feature.",
        group=DISPERSION, words=words.FEATURE_DISPERSIONS,
    )
    regularise_dispersion: bool = option(
        True,
        "Learned prior of dispersions",
        "Give the dispersions a posterior and a prior whose strength is learned; switched off, they are free.",
        group=DISPERSION,
    )
    dispersion_draws: Literal["cell", "group"] = option(
        "cell",
        "Dispersions drawn",
        "In training draw each dispersion anew for each cell, as published, or once a step for each group, which is faster and noisier.",
        group=DISPERSION,
        advanced=True, words=words.DRAWN_FOR,
    )
    dispersion_prior_transform: Literal["inverse_sqrt", "sqrt"] = option(
        "inverse_sqrt",
        "Dispersion prior of",
        "Which power of the inverse dispersion has the exponential prior.",
        group=DISPERSION,
        advanced=True, words=words.POWERS,
    )
    dispersion_hyper_prior_mean: float = option(
        PRIOR_MEAN, "Prior mean", "Mean of that power before training.", group=DISPERSION, gt=0, le=100, advanced=True
    )
    dispersion_hyper_prior_alpha: float | None = option(
        None,
        "Shape of the hyper-prior",
        "Shape of the Gamma prior of the rate.",
        group=DISPERSION,
        gt=0,
        auto="9, or 2 with the burst decoder",
        advanced=True,
    )
    dispersion_jacobian: bool = option(
        False,
        "True divergence",
        "Add the derivative of the transformation, which the published penalty leaves out, so that it becomes a divergence.",
        group=DISPERSION,
        advanced=True,
    )
    dispersion_init: Literal["prior", "data"] = option(
        "prior",
        "Dispersions begin at",
        "The prior's mean, or the moments of the counts (which also set the prior's mean).",
        group=DISPERSION, words=words.DISPERSION_STARTS,
    )
    dispersion_init_bio_frac: float = option(
        0.9,
        "Biological share",
        "Share of the excess variance that is taken for biology at a start from the data.",
        group=DISPERSION,
        ge=0,
        lt=1,
        advanced=True,
    )

    library_sensitivity: float = option(
        1.0,
        "Sensitivity",
        "Expected factor of this modality's counts beside expression; 0.2 was used for ATAC.",
        group=LIBRARY,
        gt=0,
        le=100,
    )
    library_log_vars_weight: float = option(
        0.5,
        "Width of the library prior",
        "Factor of the observed variance of log totals.",
        group=LIBRARY,
        gt=0,
        le=10,
        advanced=True,
    )
    residual_library_encoder: bool = option(
        True,
        "Residual library encoder",
        "Start from the observed total, times a learned weight; switched off, the encoder finds the size by itself.",
        group=LIBRARY,
    )
    library_obs_w_prior_rate: float = option(
        1.0, "Rate of that weight's prior", "Rate of its exponential prior.", group=LIBRARY, gt=0, advanced=True
    )
    library_n_hidden: int = option(
        16,
        "Width of the library encoder",
        "A narrow one cannot carry what the latent should.",
        group=LIBRARY,
        ge=1,
        le=1024,
        advanced=True,
    )

    init_decoder_bias: Literal["mean", "topN", "none"] = option(
        "mean",
        "Decoder begins at",
        "The mean of each feature, the mean of its highest counts (1 % of the cells, at most 500), or at random.",
        group=DECODER, words=words.DECODER_STARTS,
    )
    decoder_bias_multiplier: float = option(
        1.0, "Factor of that mean", "Multiplies what the decoder begins at.", group=DECODER, gt=0, le=100, advanced=True
    )
    decoder_init_variance_target_fraction: float | None = option(
        None,
        "Spread at the start",
        "Scale the random weights of each feature so that this share of its biological variance is explained; needs a start from the data.",
        group=DECODER,
        gt=0,
        le=10,
        auto="torch's own",
        advanced=True,
    )
    decoder_type: Literal["expected_RNA", "burst_frequency_size"] = option(
        "expected_RNA", "Decoder gives", "Expected expression, or the frequency and the size of bursts.", group=BURST, words=words.DECODERS
    )
    burst_size_n_hidden: int | None = option(
        None,
        "Width for burst sizes",
        "Width of their layers.",
        group=BURST,
        ge=1,
        le=8192,
        auto="half the hidden units",
        advanced=True,
    )
    burst_size_intercept: float = option(
        1.0, "Smallest burst", "Added to the burst size.", group=BURST, ge=0, le=100, advanced=True
    )
    burst_size_init_variance_target_fraction: float | None = option(
        None,
        "Spread of burst sizes",
        "As the spread at the start, for the head of burst sizes.",
        group=BURST,
        gt=0,
        le=10,
        auto="torch's own",
        advanced=True,
    )

    z_sparsity_prior: Literal["none", "gamma"] = option(
        "none", "Sparse latent", "A prior under which few latent dimensions are active in a cell.", group=SPARSITY, words=words.SPARSITY_PRIORS
    )
    n_active_latent_per_cell: float = option(
        20.0, "Active dimensions", "How many are expected to be active in a cell.", group=SPARSITY, gt=0, le=1024
    )
    hidden_sparsity: bool = option(
        False, "Sparse decoder", "The same for the last hidden layer of the decoder.", group=SPARSITY
    )
    n_active_hidden_per_cell: float = option(
        40.0,
        "Active hidden units",
        "How many are expected to be active in a cell.",
        group=SPARSITY,
        gt=0,
        le=8192,
        advanced=True,
    )

    weight_decay_on_log_parameters: bool = option(
        True,
        "Decay log parameters",
        "Let the weight decay act on background, scaling and dispersions too, which pulls their logarithms to 0, as published.",
        group=NETWORK,
        advanced=True,
    )
    compute_pearson: bool = option(
        False,
        "Correlations",
        "Tell each epoch how well proportions are predicted, by feature and by cell; costs a few passes over each minibatch.",
        group=RECORD,
        advanced=True,
    )


def check_modality(options: RegularisedOptions, n_latent: int, where: str = "") -> list[str]:
    """Return what cannot be honoured in the options of one modality.

    Parameters
    ----------
    options
        With one value each.
    n_latent
        Dimensions of the whole latent, of which the sparsity prior speaks.
    where
        Name of the modality for the texts, or empty.
    """
    of, found = f" of {where}" if where else "", []
    if options.z_sparsity_prior == "gamma" and options.n_active_latent_per_cell > n_latent:
        found.append(
            f"model.n_active_latent_per_cell is {options.n_active_latent_per_cell:g}, more than the {n_latent} latent dimensions: "
            f"such a prior favours nothing, choose {n_latent} or less"
        )
    if options.hidden_sparsity and options.n_active_hidden_per_cell > options.n_hidden:
        found.append(
            f"model.n_active_hidden_per_cell{of} is {options.n_active_hidden_per_cell:g}, more than the {options.n_hidden} hidden units: "
            f"choose {options.n_hidden} or less"
        )
    burst = options.decoder_type == "burst_frequency_size"
    if options.decoder_init_variance_target_fraction is not None and options.dispersion_init != "data":
        found.append(
            f"model.decoder_init_variance_target_fraction{of} needs the biological variance of the data: set model.dispersion_init to 'data'"
        )
    if options.burst_size_init_variance_target_fraction is not None and not (
        burst and options.dispersion_init == "data"
    ):
        found.append(
            f"model.burst_size_init_variance_target_fraction{of} needs the burst decoder and model.dispersion_init = 'data'"
        )
    data = options.dispersion_init == "data"
    if options.dispersion_hyper_prior_mean != PRIOR_MEAN and (data or not options.regularise_dispersion):
        why = "a start from the data sets that mean itself" if options.regularise_dispersion else "the dispersions have no prior"
        found.append(f"model.dispersion_hyper_prior_mean{of} is {options.dispersion_hyper_prior_mean:g}, but {why}: leave it at its default")
    if burst and data and (options.init_decoder_bias != "mean" or options.decoder_bias_multiplier != 1):
        found.append(
            f"model.init_decoder_bias and model.decoder_bias_multiplier{of} do nothing where the burst decoder begins at the moments of the data: "
            "leave them at their defaults"
        )
    elif options.decoder_bias_multiplier != 1 and options.init_decoder_bias == "none":
        found.append(f"model.decoder_bias_multiplier{of} multiplies a mean, but model.init_decoder_bias is 'none': leave it at 1")
    if options.burst_size_n_hidden is not None and not burst:
        found.append(
            f"model.burst_size_n_hidden{of} is set, but the decoder gives no burst sizes: set model.decoder_type to 'burst_frequency_size'"
        )
    if burst and options.dispersion_prior_transform == "sqrt":
        found.append(
            f"model.dispersion_prior_transform{of} is 'sqrt', but with the burst decoder the prior is of the technical standard deviation: "
            "leave it at 'inverse_sqrt'"
        )
    if burst and options.dispersion_jacobian:
        found.append(
            f"model.dispersion_jacobian{of} is for inverse dispersions; the burst decoder has technical variances"
        )
    return found
