"""What the ambient-regularised models of one and of several modalities share: options, loss terms, roles and metrics (regularizedvi).

No torch here. Options that the published program accepts and ignores are not options: it has one likelihood (the gamma-Poisson), no
one-hot batch to be required, no minified mode. Its switches ``use_kl_z``, ``regularise_background``, ``decoder_weight_l2``, ``decoder_cov_weight_l2``
and ``decoder_hidden_l1`` are the weights of loss terms here, 0 being off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from cellweave.core.models.declare import LossTerm, Metric, RoleUse
from cellweave.core.spec.fields import option
from cellweave.core.spec.options import ModelOptions

if TYPE_CHECKING:
    from cellweave.core.spec.run import RunSpec

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
DIRECTIONS = {"inverse_sqrt": "theta ** -0.5", "sqrt": "theta ** 0.5"}


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
        "none", "Batch normalisation", "Where batch normalisation is used.", group=NETWORK, advanced=True
    )
    use_layer_norm: Where = option(
        "both", "Layer normalisation", "Where layer normalisation is used.", group=NETWORK, advanced=True
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
        advanced=True,
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
        advanced=True,
    )

    dispersion: Literal["gene-batch", "gene"] = option(
        "gene-batch",
        "Dispersion",
        "One dispersion per feature and level of the dispersion column, or one per feature.",
        group=DISPERSION,
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
        advanced=True,
    )
    dispersion_prior_transform: Literal["inverse_sqrt", "sqrt"] = option(
        "inverse_sqrt",
        "Dispersion prior of",
        "Which power of the inverse dispersion has the exponential prior.",
        group=DISPERSION,
        advanced=True,
    )
    dispersion_hyper_prior_mean: float = option(
        1 / 3, "Prior mean", "Mean of that power before training.", group=DISPERSION, gt=0, le=100, advanced=True
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
        group=DISPERSION,
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
        group=DECODER,
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
        "expected_RNA", "Decoder gives", "Expected expression, or the frequency and the size of bursts.", group=BURST
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
        "none", "Sparse latent", "A prior under which few latent dimensions are active in a cell.", group=SPARSITY
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


#: Roles of both families; the fan-out of batch and library.
FAN_OUT = {"batch": ("ambient", "dispersion", "library_size"), "library": ("ambient", "dispersion", "library_size")}
FALLS_BACK = {"feature_scaling": "decoder"}
ROLES = (
    RoleUse(
        "batch", "Cells with a background, dispersions and depths of their own; the decoder is not told of it unless the model says so."
    ),
    RoleUse(
        "library",
        "The finest unit, one capture or lane: takes the place of a batch.",
    ),
    RoleUse("dataset", "Each library lies in one data set; compared in the diagnostics."),
    RoleUse("technical", "Further technical columns, compared in the diagnostics."),
    RoleUse("ambient", "Each level has its own ambient background."),
    RoleUse(
        "decoder",
        "Given to the decoder, so that the latent space need not carry it; fills feature scaling where that is not given.",
    ),
    RoleUse("feature_scaling", "Each level scales every feature by its own factor."),
    RoleUse("dispersion", "Each level has its own dispersions."),
    RoleUse("library_size", "Each level has its own prior of library sizes."),
    RoleUse("encoder", "Given to the encoder. Off by default: the encoder should see the counts only."),
    RoleUse("continuous", "Numeric covariates, given to the encoder and to the decoder."),
    RoleUse("labels", "Known cell types: coloured and scored against."),
)


def uses_burst(options: Any) -> bool:
    """Return whether some modality has the burst decoder."""
    value = options.decoder_type
    return "burst_frequency_size" in (value.values() if isinstance(value, dict) else (value,))


def some(value: Any) -> bool:
    """Return whether an option, of all modalities or by modality, is on anywhere."""
    return any(value.values()) if isinstance(value, dict) else bool(value)


def shared_terms(spec: RunSpec, *, first_colour: int) -> list[LossTerm]:
    """Return the penalties that both families have, in the order of the curves."""
    options: Any = spec.model
    colours = iter(range(first_colour, 100))
    made: list[LossTerm] = []

    def term(name: str, label: str, help: str, **more: Any) -> None:
        made.append(LossTerm(name, label, help, scope=more.pop("scope", "global"), colour=next(colours), **more))

    if some(options.residual_library_encoder):
        term(
            "library_weight",
            "Weight of the observed total",
            "Divergence of the learned weight of the observed total from its exponential prior.",
        )
    if some(options.regularise_dispersion):
        term(
            "dispersion",
            "Dispersion penalty",
            "Entropy of the dispersions' posterior and their exponential prior. A higher weight pulls the counts' noise to Poisson.",
        )
        term(
            "dispersion_rate",
            "Rate of the dispersion prior",
            "Gamma hyper-prior that holds the learned rate of the dispersion prior.",
        )
    if has_background(spec):
        term(
            "background",
            "Ambient background",
            "Gamma prior of the ambient background; off by default. A higher weight makes the background smaller.",
            default=0.0,
        )
    if has_scaling(spec):
        term("feature_scaling", "Feature scaling", "Gamma prior that keeps the scaling factors of features near 1.")
    term(
        "decoder_l2",
        "Decoder weights (L2)",
        "Sum of squared weights of the decoder. A higher weight gives smoother expression.",
        default=0.1,
        in_elbo=False,
        unit="squared weight per cell",
    )
    if decoder_columns(spec):
        term(
            "decoder_covariate_l2",
            "Covariate weights (L2)",
            "Sum of squared weights of the covariates in the decoder's first layer. A higher weight leaves more to the latent.",
            default=0.0,
            in_elbo=False,
            unit="squared weight per cell",
        )
    term(
        "decoder_l1",
        "Decoder weights (L1)",
        "Sum of absolute weights of the decoder's hidden layers; favours few connections.",
        default=0.0,
        in_elbo=False,
        unit="weight per cell",
    )
    if options.z_sparsity_prior != "none":
        term(
            "z_sparsity",
            "Sparse latent",
            "Gamma prior of the size of each latent: few dimensions are active in a cell.",
            scope="cell",
            annealed=True,
            in_elbo=False,
        )
    if options.hidden_sparsity:
        term(
            "hidden_sparsity",
            "Sparse decoder",
            "Gamma prior of the decoder's last hidden layer: few units are active in a cell.",
            scope="cell",
            annealed=True,
            in_elbo=False,
        )
    return made


def decoder_columns(spec: RunSpec) -> tuple[str, ...]:
    """Return the columns that the decoder is told of: the decoder role, and the batch or library where an option says so."""
    roles, options = spec.covariates, spec.model
    batch = roles.batch or roles.library
    first = (batch,) if getattr(options, "batch_in_decoder", False) and batch else ()
    return tuple(dict.fromkeys((*first, *roles.decoder)))


def has_background(spec: RunSpec) -> bool:
    """Return whether some modality has an ambient background."""
    return _is_on(spec, "use_additive_background", "additive_background_modalities")


def has_scaling(spec: RunSpec) -> bool:
    """Return whether some modality has scaled features."""
    return _is_on(spec, "use_feature_scaling", "feature_scaling_modalities")


def _is_on(spec: RunSpec, switch: str, listed: str) -> bool:
    """Return whether a switch is on, or some modality of the model is in a list."""
    options: Any = spec.model
    if hasattr(options, switch):
        return bool(getattr(options, switch))
    names = getattr(options, listed)
    return any(not options.modalities or name in options.modalities for name in names)


def shared_metrics(name: str, options: Any, suffix: str = "", label: str = "") -> list[Metric]:
    """Return what is told of one modality each epoch beside the loss terms.

    Parameters
    ----------
    name
        Name of the modality, for the texts.
    options
        Of that modality.
    suffix, label
        Appended to the identifiers and to the labels (``_rna``, `` (rna)``).
    """
    found = [
        Metric(
            f"n_active_dims{suffix}",
            f"Active dimensions{label}",
            f"Latent dimensions of {name} with a divergence above 0.01 nats, mean over the cells.",
            "dimensions",
        ),
        Metric(
            f"n_dims_any_active{suffix}",
            f"Dimensions ever active{label}",
            f"Latent dimensions of {name} that are active in at least one cell of a minibatch, mean.",
            "dimensions",
        ),
        Metric(
            f"z_var{suffix}",
            f"Posterior variance{label}",
            "Mean variance of the latent's posterior; 1 where nothing was learned.",
        ),
        Metric(
            f"theta_mean{suffix}",
            f"Mean dispersion{label}",
            "Mean of the inverse dispersions; higher values are nearer to Poisson noise.",
            "inverse dispersion",
        ),
    ]
    if options.residual_library_encoder:
        found.append(
            Metric(
                f"library_obs_w{suffix}",
                f"Weight of the total{label}",
                "Learned weight of the observed total in the library size; 1 takes it as it is.",
            )
        )
    if options.decoder_type == "burst_frequency_size":
        found += [
            Metric(f"burst_frequency_mean{suffix}", f"Burst frequency{label}", "Mean burst frequency of a minibatch."),
            Metric(f"burst_size_mean{suffix}", f"Burst size{label}", "Mean burst size of a minibatch."),
        ]
    if options.compute_pearson:
        found += [
            Metric(
                f"pearson_gene{suffix}",
                f"Correlation by feature{label}",
                "Of predicted and observed proportions across the cells of a minibatch, mean over features; 1 is best.",
                "correlation",
            ),
            Metric(
                f"pearson_cell{suffix}",
                f"Correlation by cell{label}",
                "Of predicted and observed proportions across features, mean over cells; 1 is best.",
                "correlation",
            ),
        ]
    return found


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
