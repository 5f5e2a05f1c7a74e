"""An option of the ambient-regularised models that would do nothing is refused in a sentence, and every other one does something."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_preflight import make, modality

from cellweave.core.errors import SpecError
from cellweave.core.models.base import StepContext
from cellweave.core.models.multimodal import check_study
from cellweave.core.spec import RunSpec
from cellweave.core.training.data import prepare
from cellweave.core.training.sources import Loader


def spec_of(kind: str, options: dict[str, Any]) -> RunSpec:
    roles = {"covariates.batch": "batch", "covariates.decoder": ("cell_type",), "training.device": "cpu"}
    # All at once, as a person's file gives them.
    return RunSpec().with_changes({"model.kind": kind, **roles, **{f"model.{name}": value for name, value in options.items()}})


DATA, BURST = {"dispersion_init": "data"}, {"decoder_type": "burst_frequency_size"}


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("ambient", {**DATA, "dispersion_hyper_prior_mean": 0.5}, "sets that mean itself"),
        ("ambient", {"regularise_dispersion": False, "dispersion_hyper_prior_mean": 0.5}, "no prior"),
        ("ambient", {**DATA, **BURST, "init_decoder_bias": "topN"}, "do nothing"),
        ("ambient", {**DATA, **BURST, "decoder_bias_multiplier": 2.0}, "do nothing"),
        ("ambient", {"init_decoder_bias": "none", "decoder_bias_multiplier": 2.0}, "multiplies a mean"),
        ("multimodal", {"latent_scale_init": 0.5}, "latent_scale_prior is off"),
        ("multimodal", {"latent_scale_hidden_fraction": 0.1}, "latent_scale_prior is off"),
        ("multimodal", {"modality_scaling_prior": 9.0}, "learnable_modality_scaling is off"),
        ("multimodal", {"latent_mode": "single_encoder", "modality_balanced_init": True}, "one for all"),
        ("multimodal", {"latent_mode": "single_encoder", "z_loc_init_scale": {"rna": 1.0, "adt": 2.0}}, "give one value"),
        ("multimodal", {"modalities": ("rna", "adt"), "additive_background_modalities": ("rma",)}, "names rma"),
        ("multimodal", {"modalities": ("rna", "adt"), "feature_scaling_modalities": ("rna", "peaks")}, "names peaks"),
    ],
)
def test_what_would_do_nothing_is_refused(kind: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        spec_of(kind, options)


def study_of_two() -> Any:
    rng = np.random.default_rng(0)
    counts = {"adt": rng.negative_binomial(1, 0.2, (300, 5)) + 1, "rna": rng.negative_binomial(0.5, 0.1, (300, 12)) + np.eye(1, 12, dtype=int)}
    return make(modalities={name: modality(name, values) for name, values in counts.items()})


def test_one_of_two_modalities_is_named_as_what_it_is() -> None:
    study = study_of_two()
    assert "names rna alone" in check_study(spec_of("multimodal", {"modalities": ("rna",)}), study)[0]
    assert "names rma" in check_study(spec_of("multimodal", {"additive_background_modalities": ("rma",)}), study)[0]
    assert check_study(spec_of("multimodal", {}), study) == []


CHANGED: list[tuple[str, dict[str, Any], str, Any]] = [
    *((kind, {}, name, value) for kind in ("ambient", "multimodal") for name, value in {
        "n_latent": 7, "n_hidden": 33, "n_layers": 2, "dropout_rate": 0.4, "dropout_on_input": False, "use_batch_norm": "both", "use_layer_norm": "none",
        "var_activation": "softplus", "var_init_scale": 0.2, "z_loc_init_scale": 3.0, "batch_in_decoder": True, "bg_init_gene_fraction": 0.05,
        "background_prior_alpha": 2.0, "background_prior_beta": 10.0, "feature_scaling_prior": 20.0, "dispersion": "gene", "regularise_dispersion": False,
        "dispersion_draws": "group", "dispersion_prior_transform": "sqrt", "dispersion_hyper_prior_mean": 0.6, "dispersion_hyper_prior_alpha": 4.0,
        "dispersion_jacobian": True, "dispersion_init": "data", "library_sensitivity": 0.3, "library_log_vars_weight": 2.0,
        "residual_library_encoder": False, "library_obs_w_prior_rate": 5.0, "library_n_hidden": 5, "init_decoder_bias": "topN",
        "decoder_bias_multiplier": 3.0, "decoder_type": "burst_frequency_size", "weight_decay_on_log_parameters": False, "compute_pearson": True,
    }.items()),
    *((kind, needed, name, value) for kind in ("ambient", "multimodal") for needed, name, value in [
        (DATA, "dispersion_init_bio_frac", 0.2), (DATA, "decoder_init_variance_target_fraction", 0.5), (BURST, "burst_size_n_hidden", 9),
        (BURST, "burst_size_intercept", 0.2), ({**BURST, **DATA}, "burst_size_init_variance_target_fraction", 0.4),
        ({"n_active_latent_per_cell": 5.0}, "z_sparsity_prior", "gamma"),
        ({"z_sparsity_prior": "gamma", "n_active_latent_per_cell": 5.0}, "n_active_latent_per_cell", 3.0),
        ({}, "hidden_sparsity", True), ({"hidden_sparsity": True}, "n_active_hidden_per_cell", 7.0), ({"n_layers": 2}, "deeply_inject_covariates", False),
    ]),
    *(("multimodal", needed, name, value) for needed, name, value in [
        ({}, "additive_background_modalities", ("adt",)), ({}, "feature_scaling_modalities", ("adt",)), ({}, "latent_mode", "single_encoder"),
        ({"latent_mode": "weighted_mean"}, "modality_weights", "cell"), ({"n_active_latent_per_cell": 5.0}, "latent_scale_prior", "lognormal"),
        ({"latent_scale_prior": "lognormal", "n_active_latent_per_cell": 5.0}, "latent_scale_init", 0.2),
        ({"latent_scale_prior": "lognormal", "n_active_latent_per_cell": 5.0}, "latent_scale_hidden_fraction", 0.1),
        ({}, "use_ard", True), ({}, "learnable_modality_scaling", True), ({"learnable_modality_scaling": True}, "modality_scaling_prior", 50.0),
        ({}, "modality_balanced_init", True), ({}, "learning_rate_multiplier", 3.0),
    ]),
]  # fmt: skip


def outcome(kind: str, options: dict[str, Any]) -> tuple[Any, ...]:
    """Return loss, weights and optimiser groups of a model with these options."""
    given = {**({"feature_scaling_modalities": ("rna",)} if kind == "multimodal" else {}), **options}
    spec = spec_of(kind, given)
    data = prepare(spec, study_of_two())
    if kind == "multimodal":
        spec = spec.with_changes({"model.modalities": ("adt", "rna")})
    torch.manual_seed(0)
    model = spec.family.build(data.context(spec)).train()
    weights = {**spec.loss_weights(), "background": 1.0}
    torch.manual_seed(1)
    batch = Loader(data, torch.device("cpu"), resident=False).minibatch(data.train[:32])
    terms = model.loss_terms(batch, StepContext(training=True, weights=weights, generator=torch.Generator().manual_seed(1)))
    loss = {name: round(float(value.detach().sum()), 4) for name, value in terms.items()}
    state = {name: value.double().sum().item() for name, value in model.state_dict().items()}
    groups = [(group.name, group.lr_factor, group.weight_decay, len(group.parameters)) for group in model.parameter_groups()]
    return loss, state, groups


@pytest.mark.parametrize(("kind", "needed", "name", "value"), CHANGED, ids=lambda one: str(one) if isinstance(one, str) else "")
def test_every_option_changes_losses_weights_or_groups(kind: str, needed: dict[str, Any], name: str, value: Any) -> None:
    assert outcome(kind, needed) != outcome(kind, {**needed, name: value})
