"""What the ambient-regularised models of one and of several modalities share: covariate roles, loss terms and metrics (regularizedvi). No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cellweave.core.models.declare import LossTerm, Metric, RoleUse

if TYPE_CHECKING:
    from cellweave.core.spec.run import RunSpec

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


#: Penalties of both families; the hue of one does not depend on which others there are.
HUES = (
    "library_weight", "dispersion", "dispersion_rate", "background", "feature_scaling", "decoder_l2", "decoder_covariate_l2", "decoder_l1",
    "z_sparsity", "hidden_sparsity",
)  # fmt: skip


def shared_terms(spec: RunSpec, *, first_colour: int) -> list[LossTerm]:
    """Return the penalties that both families have, in the order of the curves."""
    options: Any = spec.model
    made: list[LossTerm] = []

    def term(name: str, label: str, help: str, **more: Any) -> None:
        made.append(LossTerm(name, label, help, scope=more.pop("scope", "global"), colour=first_colour + HUES.index(name), **more))

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
