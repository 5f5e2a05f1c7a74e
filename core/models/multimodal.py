"""The ambient-regularised model of several modalities: declaration (regularizedvi, ``RegularizedMultimodalVI``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import create_model, field_validator

from cellweave.core.models.ambient import PAPER
from cellweave.core.models.declare import Family, LossTerm, Metric, Result
from cellweave.core.models.per_modality import per_modality, table_problems, value_of
from cellweave.core.models.regularised import FALLS_BACK, FAN_OUT, ROLES, shared_metrics, shared_terms
from cellweave.core.models.regularised_options import SCALING, RegularisedOptions, check_modality
from cellweave.core.spec import words
from cellweave.core.spec.fields import option
from cellweave.core.spec.modalities import modality_places

if TYPE_CHECKING:
    from cellweave.core.spec.run import RunSpec
    from cellweave.core.study.study import Study

MODALITIES, MIXING, HORSESHOE, OPTIMISER = (
    "Modalities",
    "Latent of several modalities",
    "Relevance of latents",
    "Optimiser",
)
#: Modalities that are spoken of before the data are known.
USUAL = ("adt", "atac", "rna")
#: Options that may be given by modality.
BY_MODALITY = (
    "n_latent", "n_hidden", "n_layers", "dropout_rate", "bg_init_gene_fraction", "background_prior_alpha", "background_prior_beta",
    "feature_scaling_prior", "dispersion", "regularise_dispersion", "dispersion_draws", "dispersion_prior_transform", "dispersion_hyper_prior_mean",
    "dispersion_hyper_prior_alpha", "dispersion_jacobian", "dispersion_init", "dispersion_init_bio_frac", "library_sensitivity", "library_log_vars_weight",
    "residual_library_encoder", "library_obs_w_prior_rate", "library_n_hidden", "init_decoder_bias", "decoder_bias_multiplier",
    "decoder_init_variance_target_fraction", "decoder_type", "burst_size_n_hidden", "burst_size_intercept", "burst_size_init_variance_target_fraction",
    "var_init_scale", "z_loc_init_scale", "n_active_hidden_per_cell",
)  # fmt: skip

_fields: dict[str, Any] = {name: per_modality(RegularisedOptions.model_fields[name]) for name in BY_MODALITY}
_PerModality: Any = create_model("_PerModality", __base__=RegularisedOptions, **_fields)


class MultimodalOptions(_PerModality):
    """Options of the ambient-regularised model of several modalities; most take one value, or one for each modality."""

    kind: Literal["multimodal"] = "multimodal"
    modalities: tuple[str, ...] = option(
        tuple,
        "Modalities",
        "Modalities the model is trained on; none named means all of the data. They are concatenated in alphabetical order.",
        group=MODALITIES,
    )
    additive_background_modalities: tuple[str, ...] = option(
        lambda: ("rna",),
        "With ambient background",
        "Modalities to whose expression an ambient background is added.",
        group=MODALITIES,
    )
    feature_scaling_modalities: tuple[str, ...] = option(
        lambda: ("atac",),
        "With feature scaling",
        "Modalities whose features are scaled for each level of the scaling columns.",
        group=MODALITIES,
    )
    latent_mode: Literal["concatenation", "weighted_mean", "single_encoder"] = option(
        "concatenation",
        "Joint latent",
        "The modalities' latents side by side, their weighted mean (all of one size), or one encoder of all counts.",
        group=MIXING, words=words.JOINT_LATENTS,
    )
    modality_weights: Literal["equal", "universal", "cell"] = option(
        "equal",
        "Weights of the mean",
        "Equal weights, one learned weight for each modality, or weights of each cell; used by the weighted mean.",
        group=MIXING,
        advanced=True, words=words.WEIGHTS_OF,
    )
    latent_scale_prior: Literal["none", "lognormal", "lognormal_mc", "gamma"] = option(
        "none",
        "Scale of latents in a cell",
        "Let an encoder scale each latent of a cell, with a prior that favours small scales (horseshoe): log-normal with its "
        "divergence in closed form or from a draw, or Gamma.",
        group=HORSESHOE,
        advanced=True, words=words.SCALE_PRIORS,
    )
    latent_scale_hidden_fraction: float = option(
        0.5,
        "Width of its encoder",
        "As a share of the hidden units, at least 16 units.",
        group=HORSESHOE,
        gt=0,
        le=4,
        advanced=True,
    )
    latent_scale_init: float = option(
        1.0, "Scales begin at", "Scale of every latent before training.", group=HORSESHOE, gt=0, le=100, advanced=True
    )
    use_ard: bool = option(
        False,
        "Relevance of dimensions",
        "Scale each latent dimension by a learned factor shared by all cells (automatic relevance determination).",
        group=HORSESHOE,
        advanced=True,
    )
    learnable_modality_scaling: bool = option(
        False, "Scale of modalities", "Learn a factor for all counts of each modality.", group=SCALING, advanced=True
    )
    modality_scaling_prior: float = option(
        5.0, "Strength of that prior", "Shape of the Gamma prior of these factors.", group=SCALING, gt=0, advanced=True
    )
    modality_balanced_init: bool = option(
        False,
        "Balanced start",
        "Scale the encoders' first weights by the share of hidden units that a modality has.",
        group=MIXING,
        advanced=True,
    )
    learning_rate_multiplier: float | dict[str, float] = option(
        1.0,
        "Learning rates",
        "Multiplies the learning rate of the networks and priors of a modality, and of the relevance of its dimensions where the latents stand side by side.",
        group=OPTIMISER,
        advanced=True,
    )

    @field_validator(*BY_MODALITY, mode="after")
    @classmethod
    def _automatic_is_left_out(cls, value: Any) -> Any:
        """Leave out of a table what is left to the program: a spec file has no word for it."""
        return {name: one for name, one in value.items() if one is not None} if isinstance(value, dict) else value


PER_MODALITY = (*BY_MODALITY, "learning_rate_multiplier")


def label_of(modality: str) -> str:
    """Return the name of a modality as it is written in texts."""
    return modality.upper() if modality in USUAL else modality


def modality_names(spec: RunSpec) -> tuple[str, ...]:
    """Return the modalities of the model in the order of concatenation; before the data are known, those that usually occur."""
    named = tuple(sorted(spec.model.modalities))  # type: ignore[attr-defined]
    return named or USUAL


def options_of(options: MultimodalOptions, modality: str) -> RegularisedOptions:
    """Return the options of one modality, one value each."""
    values = {
        name: value_of(getattr(options, name), modality) for name in RegularisedOptions.model_fields if name != "kind"
    }
    return RegularisedOptions(kind="multimodal", **values)


def total_latent(options: MultimodalOptions, modalities: tuple[str, ...]) -> int:
    """Return the number of dimensions of the joint latent."""
    sizes = [int(value_of(options.n_latent, name)) for name in modalities]
    return sizes[0] if options.latent_mode == "weighted_mean" else sum(sizes)


def terms(spec: RunSpec) -> tuple[LossTerm, ...]:
    """Loss terms (specification sections 4 and 6); a modality that a cell was not measured in costs nothing there."""
    options, names = spec.model, modality_names(spec)
    assert isinstance(options, MultimodalOptions)
    places = modality_places(names)
    one_encoder = options.latent_mode == "single_encoder"
    found: list[LossTerm] = []
    for name in names:
        help_text = f"Negative log-likelihood of the {label_of(name)} counts. Lower it to let the other modalities and terms have their way."
        found.append(LossTerm(f"reconstruction_{name}", f"Reconstruction {label_of(name)}", help_text, colour=places[name], modality=name))
    pull = "Pull of each cell's posterior to the standard normal prior. Higher values give a smoother, less detailed latent space."
    colour = len(places)
    if one_encoder:
        found.append(LossTerm("kl_z", "KL of the latent", pull, annealed=True, colour=colour))
    else:
        found += [
            LossTerm(f"kl_z_{name}", f"KL of the {label_of(name)} latent", pull, annealed=True, colour=colour + places[name], modality=name)
            for name in names
        ]
    colour += 1 if one_encoder else len(places)
    found += [
        LossTerm(
            f"kl_l_{name}",
            f"KL of the {label_of(name)} library size",
            f"Pull of the learned {label_of(name)} library sizes to those of their group.",
            colour=colour + places[name],
            modality=name,
        )
        for name in names
    ]
    colour += len(places)
    if options.latent_scale_prior != "none":
        found += [
            LossTerm(
                f"latent_scale_{name}",
                f"Scales of {label_of(name)} latents",
                "Pull of each cell's latent scales to a prior of few active ones.",
                annealed=True,
                colour=colour + places[name],
                modality=name,
            )
            for name in names
        ]
        colour += len(places)
    if options.use_ard:
        found.append(
            LossTerm(
                "relevance",
                "Relevance of dimensions",
                "Pull of the learned scale of each latent dimension to its prior.",
                scope="global",
                colour=colour,
            )
        )
        colour += 1
    if options.learnable_modality_scaling:
        found.append(
            LossTerm(
                "modality_scaling",
                "Scale of modalities",
                "Gamma prior that keeps the modalities' factors near where they began.",
                scope="global",
                colour=colour,
            )
        )
        colour += 1
    return (*found, *shared_terms(spec, first_colour=colour))


def metrics(spec: RunSpec) -> tuple[Metric, ...]:
    """What is told each epoch beside the loss terms, by modality."""
    options = spec.model
    assert isinstance(options, MultimodalOptions)
    found: list[Metric] = []
    for name in modality_names(spec):
        if table_problems(options, PER_MODALITY, modality_names(spec)):
            return ()  # before the modalities are known
        found += shared_metrics(label_of(name), options_of(options, name), f"_{name}", f" ({label_of(name)})")
        if options.latent_scale_prior != "none":
            found.append(
                Metric(
                    f"latent_scale_mean_{name}",
                    f"Mean latent scale ({label_of(name)})",
                    f"Mean of the scales of the {label_of(name)} latents.",
                    "scale",
                )
            )
        if options.learnable_modality_scaling:
            found.append(
                Metric(
                    f"modality_scale_{name}",
                    f"Scale of the modality ({label_of(name)})",
                    f"Learned factor of all {label_of(name)} counts.",
                    "scale",
                )
            )
        if options.latent_mode == "weighted_mean" and options.modality_weights != "equal":
            found.append(
                Metric(
                    f"modality_weight_{name}",
                    f"Weight of the modality ({label_of(name)})",
                    f"Mean weight of {label_of(name)} in the joint latent.",
                    "weight",
                )
            )
    if options.latent_mode == "single_encoder":
        found = [
            metric for metric in found if not metric.name.startswith(("n_active_dims", "n_dims_any_active", "z_var"))
        ]
        found = [
            *[
                metric
                for metric in shared_metrics("the model", options_of(options, modality_names(spec)[0]))
                if metric.name in LATENT_METRICS
            ],
            *found,
        ]
    if options.use_ard:
        found.append(
            Metric("relevance_mean", "Mean relevance", "Mean of the learned scales of the latent dimensions.", "scale")
        )
    return tuple(found)


LATENT_METRICS = ("n_active_dims", "n_dims_any_active", "z_var")


def check(spec: RunSpec) -> list[str]:
    """Return what cannot be honoured in this spec, whatever the data."""
    options = spec.model
    assert isinstance(options, MultimodalOptions)
    found = []
    if options.latent_scale_prior != "none" and options.use_ard:
        found.append("model.latent_scale_prior and model.use_ard both scale the latents: switch one of them off")
    if options.latent_scale_prior != "none" and options.latent_mode == "single_encoder":
        found.append("model.latent_scale_prior needs an encoder for each modality: choose another model.latent_mode")
    if options.modality_weights != "equal" and options.latent_mode != "weighted_mean":
        found.append("model.modality_weights counts only where model.latent_mode is 'weighted_mean'")
    found += _unused(options)
    if len(set(options.modalities)) < len(options.modalities):
        found.append("model.modalities names a modality twice")
    if any(value <= 0 for value in _values(options.learning_rate_multiplier)):
        found.append("model.learning_rate_multiplier must be above 0")
    if options.modalities:
        found += check_modalities(options, tuple(sorted(options.modalities)))
    elif options.latent_mode == "weighted_mean" and len(set(_values(options.n_latent))) > 1:
        found.append("model.latent_mode 'weighted_mean' needs the same model.n_latent for all modalities")
    return found


def _unused(options: MultimodalOptions) -> list[str]:
    """Return a sentence for each option that was set and would do nothing."""
    found, fields = [], type(options).model_fields
    for switch, off, names in (
        ("latent_scale_prior", "none", ("latent_scale_init", "latent_scale_hidden_fraction")),
        ("learnable_modality_scaling", False, ("modality_scaling_prior",)),
    ):
        if getattr(options, switch) == off:
            found += [
                f"model.{name} is set, but model.{switch} is off: switch that on, or leave this at its default"
                for name in names
                if getattr(options, name) != fields[name].default
            ]
    if options.latent_mode == "single_encoder":
        if options.modality_balanced_init:
            found.append("model.modality_balanced_init weighs the encoders of the modalities, but model.latent_mode 'single_encoder' has one for all")
        for name in ("z_loc_init_scale", "var_init_scale", "dropout_rate"):
            value = getattr(options, name)
            if isinstance(value, dict) and (len(set(value.values())) > 1 or (fields[name].default is None and len(value) < len(options.modalities))):
                found.append(f"model.{name} differs by modality, but model.latent_mode 'single_encoder' has one encoder for all: give one value")
    return found


def _strange_lists(options: MultimodalOptions, names: tuple[str, ...]) -> list[str]:
    """Return a sentence for each list of modalities that names one that the model does not have; the defaults name what usually occurs."""
    found = []
    for name, usual in (("additive_background_modalities", ("rna",)), ("feature_scaling_modalities", ("atac",))):
        chosen = getattr(options, name)
        strange = [one for one in chosen if one not in names]
        if strange and chosen != usual:
            found.append(f"model.{name} names {', '.join(strange)}, and the modalities are {', '.join(names)}")
    return found


def check_modalities(options: MultimodalOptions, names: tuple[str, ...]) -> list[str]:
    """Return what cannot be honoured with these modalities."""
    found = table_problems(options, PER_MODALITY, names) + _strange_lists(options, names)
    if found:
        return found
    sizes = {int(value_of(options.n_latent, name)) for name in names}
    if options.latent_mode == "weighted_mean" and len(sizes) > 1:
        found.append("model.latent_mode 'weighted_mean' needs the same model.n_latent for all modalities")
    whole = total_latent(options, names)
    if options.latent_scale_prior != "none" and options.n_active_latent_per_cell > whole:
        found.append(
            f"model.n_active_latent_per_cell is {options.n_active_latent_per_cell:g}, more than the {whole} latent dimensions: choose {whole} or less"
        )
    for name in names:
        found += [problem for problem in check_modality(options_of(options, name), whole, name) if problem not in found]
    return found


def check_study(spec: RunSpec, study: Study) -> list[str]:
    """Return what cannot be honoured with these data."""
    options = spec.model
    assert isinstance(options, MultimodalOptions)
    there = tuple(sorted(study.modalities))
    strange = [name for name in options.modalities if name not in there]
    if strange:
        return [
            f"model.modalities names {', '.join(strange)}, which the data do not have; they have {', '.join(there)}"
        ]
    names = tuple(sorted(options.modalities)) or there
    if len(names) < 2:
        if len(there) > 1:
            return [f"model.modalities names {names[0]} alone; this model takes two or more of {', '.join(there)}: for one choose the ambient-regularised VI"]
        return [f"The data have one modality only ({names[0]}): choose the ambient-regularised VI of one modality"]
    return check_modalities(options, names)


def _values(value: Any) -> tuple[Any, ...]:
    return tuple(value.values()) if isinstance(value, dict) else (value,)


FAMILY = Family(
    kind="multimodal",
    absent_without_counts=True,
    title="Multimodal VI",
    help="The ambient-regularised model for several modalities measured in the same cells or in some of them: every decoder sees the latents of "
    "all modalities, so that one can say which modality a feature depends on.",
    options=MultimodalOptions,
    terms=terms,
    network="cellweave.core.models.multimodal_network:build",
    summaries="cellweave.core.models.regularised_summaries:summaries",
    training={"min_delta_per_feature": 0.0002},
    check=check,
    check_study=check_study,
    metrics=metrics,
    roles=ROLES,
    fan_out=FAN_OUT,
    falls_back=FALLS_BACK,
    modalities="many",
    unused_reason={
        "size_factor": "The library sizes are always learned here.",
        "*": "This model does not use this role.",
    },
    results=(
        Result("latent", "latent", "Latent space", "Posterior mean of every cell, all modalities together."),
        Result("library", "library", "Library size", "Posterior mean of the library size in each modality."),
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
        Result(
            "attribution",
            "attribution",
            "Modality attribution",
            "How far the expected counts of a modality depend on the latents of each.",
        ),
    ),
    paper=PAPER,
)
