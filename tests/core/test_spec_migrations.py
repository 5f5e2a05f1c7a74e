"""Files of older schemas are brought up to date step by step; files of later ones are refused, never half read."""

from __future__ import annotations

import pytest

from cellweave.core.errors import SpecError
from cellweave.core.spec import files, from_toml, parse_spec, to_toml
from cellweave.core.spec.run import SCHEMA_VERSION, RunSpec


@pytest.fixture
def third_schema(monkeypatch):
    """Pretend that today's schema is the third and that two migrations lead to it."""

    def first(tree):
        tree = dict(tree)
        tree["training"] = tree.pop("trainer")
        return tree

    def second(tree):
        training = dict(tree["training"])
        training["max_epochs"] = training.pop("epochs")
        return {**tree, "training": training}

    monkeypatch.setattr(files, "SCHEMA_VERSION", 3)
    monkeypatch.setattr(files, "MIGRATIONS", {1: first, 2: second})


@pytest.mark.usefixtures("third_schema")
def test_migrations_run_in_order_and_leave_the_input_alone() -> None:
    tree = {"schema_version": 1, "trainer": {"epochs": 7}}
    assert files.migrate(tree) == {"schema_version": 3, "training": {"max_epochs": 7}}
    assert tree == {"schema_version": 1, "trainer": {"epochs": 7}}
    assert files.migrate({"schema_version": 2, "training": {"epochs": 9}}) == {"schema_version": 3, "training": {"max_epochs": 9}}


@pytest.mark.usefixtures("third_schema")
def test_a_file_of_today_is_left_as_it_is() -> None:
    tree = {"schema_version": 3, "training": {"max_epochs": 7}}
    assert files.migrate(tree) == tree


def test_a_file_of_a_later_version_is_refused_with_the_number() -> None:
    with pytest.raises(SpecError, match=rf"schema {SCHEMA_VERSION + 1}.*up to {SCHEMA_VERSION}.*Update Cellweave"):
        from_toml(f"schema_version = {SCHEMA_VERSION + 1}\n[training]\nnew_field = 1\n")


@pytest.mark.parametrize("version", ["0", "-1", "'one'", "1.5"])
def test_a_version_that_never_was(version: str) -> None:
    with pytest.raises(SpecError, match="never existed"):
        from_toml(f"schema_version = {version}\n")


def test_there_is_a_migration_from_every_older_schema() -> None:
    assert sorted(files.MIGRATIONS) == list(range(1, SCHEMA_VERSION))


def test_a_file_without_a_version_is_one_of_today() -> None:
    assert from_toml("[training]\nseed = 3\n").training.seed == 3
    assert f"schema_version = {SCHEMA_VERSION}" in to_toml(RunSpec())


OLD = "schema_version = 1\n[covariates]\nbatch = 'b'\n[model]\nkind = 'midas'\n"


@pytest.mark.parametrize(
    ("text", "adversarial", "own"),
    [
        (OLD, 1, 30),
        (OLD + "discriminator_scale = 10.0\n", 3, 10),
        (OLD + "discriminator_scale = 10.0\n[losses.weights]\nadversarial = 25.0\n", 2.5, 10),
        (OLD + "[losses.weights]\nadversarial = 60.0\nkl_c = 2.0\n", 2, 30),
        (OLD + "[losses.weights]\nadversarial = 0.0\n", 0, 0),
    ],
)
def test_the_weight_of_the_discriminators_was_an_option_and_part_of_another_weight(text: str, adversarial: float, own: float) -> None:
    """What is minimised stays the same: the product of both, and the discriminators' own."""
    spec = from_toml(text)
    found = spec.loss_weights()
    assert (found["adversarial"], found["discriminators"]) == (adversarial, own)
    assert found["kl_c"] == (2.0 if "kl_c" in text else 1.0)
    assert from_toml(to_toml(spec)) == spec


def test_other_specs_of_the_first_schema_are_what_they_were() -> None:
    alone = OLD.replace("batch = 'b'\n", "") + "discriminator_scale = 7.0\n"
    assert from_toml(alone).losses.weights == {}
    assert from_toml("schema_version = 1\n[losses.weights]\nkl_z = 2.0\n").loss_weights()["kl_z"] == 2.0


def test_whoever_writes_the_old_option_today_is_told_what_to_write() -> None:
    sentence = "no field 'model.discriminator_scale' any more.*[Ww]rite 'losses.weights.discriminators' instead"
    with pytest.raises(SpecError, match=sentence):
        parse_spec({"model": {"kind": "midas", "discriminator_scale": 3.0}})
    with pytest.raises(SpecError, match=sentence):
        RunSpec().with_changes({"model.kind": "midas"}).with_changes({"model.discriminator_scale": 3.0})


UNSIGNED = OLD.replace("schema_version = 1\n", "")


def test_a_file_without_a_version_that_has_an_option_of_the_first_schema_is_of_it() -> None:
    text = "discriminator_scale = 10.0\n[losses.weights]\nadversarial = 25.0\n"
    assert from_toml(UNSIGNED + text) == from_toml(OLD + text)
    # Without it nothing tells; it is read as of today, and the check of the study warns (test_preflight_weights).
    assert from_toml(UNSIGNED + "[losses.weights]\nadversarial = 30.0\n").loss_weights()["adversarial"] == 30
