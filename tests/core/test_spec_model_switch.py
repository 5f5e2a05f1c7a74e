"""Switching the model keeps what the person chose and takes the new family's defaults for the rest."""

from __future__ import annotations

import shlex

import pytest

from cellweave.core.errors import SpecError
from cellweave.core.spec import RunSpec, assignment_value, parse_assignment


def test_untouched_options_take_the_new_defaults_and_touched_ones_stay() -> None:
    spec = RunSpec().with_changes({"model.n_latent": 17})
    ldvae = spec.with_changes({"model.kind": "ldvae"})
    assert (ldvae.model.n_latent, ldvae.model.gene_likelihood, ldvae.model.use_observed_lib_size) == (17, "nb", False)
    assert "kl_l" in {term.name for term in ldvae.terms()}
    back = ldvae.with_changes({"model.kind": "vae"})
    assert (back.model.n_latent, back.model.gene_likelihood, back.model.use_observed_lib_size) == (17, "zinb", True)


def test_roles_and_weights_the_new_family_lacks_are_left_behind_and_said() -> None:
    spec = RunSpec().with_changes({"covariates.batch": "lane", "covariates.decoder": ("donor", "sex"), "losses.weights.mmd": 5.0, "losses.weights.kl_z": 2.0})
    with pytest.raises(SpecError, match="linear decoder"):
        spec.with_changes({"model.kind": "ldvae"})
    ldvae, dropped = spec.with_model("ldvae")
    assert ldvae.covariates.assigned() == {"batch": ("lane",)} and ldvae.losses.weights == {"mmd": 5.0, "kl_z": 2.0}
    assert len(dropped) == 1 and "donor, sex" in dropped[0]
    learned = RunSpec().with_changes({"model.use_observed_lib_size": False, "losses.weights.kl_l": 3.0})
    assert learned.with_model("ldvae")[0].losses.weights == {"kl_l": 3.0}


def test_an_unknown_model_is_said() -> None:
    with pytest.raises(SpecError, match="Did you mean 'ldvae'"):
        RunSpec().with_model("ldva")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("model.use_batch_norm=none", ("model.use_batch_norm", "none")),
        ("covariates.batch=none", ("covariates.batch", None)),
        ("training.max_epochs=None", ("training.max_epochs", None)),
        ("data.fill_missing.donor=none", ("data.fill_missing.donor", "none")),
        ('covariates.decoder=["a b", "c"]', ("covariates.decoder", ["a b", "c"])),
        ("covariates.batch=lane", ("covariates.batch", "lane")),
    ],
)
def test_assignments_of_the_command_line(text: str, wanted: tuple) -> None:
    assert parse_assignment(text) == wanted


@pytest.mark.parametrize("value", [None, True, 3, 2.5, "plain", "with space", ("a", "b c"), "it's"])
def test_what_a_mend_proposes_reads_back_after_a_shell(value: object) -> None:
    (word,) = shlex.split(f"covariates.x={assignment_value(value)}")
    back = parse_assignment(word)[1]
    assert (tuple(back) if isinstance(back, list) else back) == value


def test_a_warm_up_in_epochs_and_in_steps_at_once_is_refused() -> None:
    with pytest.raises(SpecError, match="set one of the two"):
        RunSpec().with_changes({"training.kl_warmup_epochs": 20, "training.kl_warmup_steps": 50})
