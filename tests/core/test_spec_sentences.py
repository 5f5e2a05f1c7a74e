"""What is wrong in a spec is said in one sentence that names the place and, for a typo, the nearest name."""

from __future__ import annotations

import pytest

from cellweave.core.errors import SpecError
from cellweave.core.spec import RunSpec, from_toml, load_spec, parse_assignment, parse_spec


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"trainig": {}}, ["unknown field 'trainig'", "did you mean 'training'?"]),
        ({"training": {"max_epoch": 3}}, ["'training.max_epoch'", "did you mean 'max_epochs'?"]),
        ({"model": {"kind": "vae", "n_latnet": 3}}, ["'model.n_latnet'", "did you mean 'n_latent'?"]),
        ({"model": {"kind": "vea"}}, ["no model of kind 'vea'", "did you mean 'vae'?"]),
        ({"data": {"features": {"rna": {"mod": "all"}}}}, ["'data.features.rna.mod'", "did you mean 'mode'?"]),
        ({"losses": {"weights": {"kl": 1.0}}}, ["losses.weights.kl", "did you mean 'kl_z'?"]),
        ({"losses": {"weights": {"kl_z": -1.0}}}, ["'kl_z' is -1", "0 or more"]),
        ({"covariates": {"ambient": ["lane"]}}, ["covariates.ambient", "does not use"]),
        ({"model": {"dispersion": "gene-batch"}}, ["gene-batch", "no column is the batch"]),
        ({"training": {"learning_rate": 0}}, ["training.learning_rate", "greater than 0", "it is 0"]),
        ({"training": {"max_epochs": "many"}}, ["training.max_epochs", "it is 'many'"]),
        ({"schema_version": 99}, ["schema_version"]),
    ],
)
def test_the_sentence_names_place_and_mend(tree: dict, words: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(tree)
    text = str(caught.value)
    for word in words:
        assert word in text
    assert "\n" not in text
    assert "pydantic" not in text


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec({"training": {"max_epoch": 3, "seed": -1}, "data": {"pahts": []}})
    for word in ("max_epochs", "training.seed", "'paths'"):
        assert word in str(caught.value)


def test_the_file_is_named() -> None:
    with pytest.raises(SpecError, match=r"'run\.toml'.*training\.sed.*seed"):
        from_toml("[training]\nsed = 1\n", "run.toml")


def test_broken_toml_is_named_with_its_line() -> None:
    with pytest.raises(SpecError, match="line 2"):
        from_toml("[training]\nseed = = 1\n", "run.toml")


def test_files_that_are_no_spec(tmp_path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\x89HDF\r\n\x1a\n\xff\xfe")
    with pytest.raises(SpecError, match="not a text file"):
        load_spec(tmp_path / "binary.toml")
    with pytest.raises(SpecError, match="cannot be read"):
        load_spec(tmp_path / "absent.toml")
    with pytest.raises(SpecError, match="cannot be read"):
        load_spec(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training.max_epoch": 5}, "Did you mean 'training.max_epochs'"),
        ({"max_epochs": 5}, "Known here: .*training"),
        ({"training.seed.x": 5}, "'training.seed' is a value"),
        ({"trianing.seed": 5}, "Did you mean 'training'"),
        ({"data.features.rna.mdoe": "all"}, "did you mean 'mode'"),
        ({"model.kind": "vea"}, "Did you mean 'vae'"),
    ],
)
def test_a_change_of_a_field_that_is_not_there(changes: dict, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        RunSpec().with_changes(changes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training.max_epochs=50", ("training.max_epochs", 50)),
        ("training.learning_rate = 1e-3", ("training.learning_rate", 0.001)),
        ("training.early_stopping=false", ("training.early_stopping", False)),
        ("covariates.batch=batch", ("covariates.batch", "batch")),
        ("covariates.batch=none", ("covariates.batch", None)),
        ("covariates.decoder=['a', \"b\"]", ("covariates.decoder", ["a", "b"])),
        ("data.paths=/a b/c=d.h5ad", ("data.paths", "/a b/c=d.h5ad")),
        ("note=", ("note", "")),
    ],
)
def test_assignments_of_the_command_line(text: str, expected: tuple) -> None:
    assert parse_assignment(text) == expected


@pytest.mark.parametrize("text", ["training.max_epochs", "=3", ""])
def test_what_is_no_assignment(text: str) -> None:
    with pytest.raises(SpecError, match="path=value"):
        parse_assignment(text)


def test_numbers_serve_as_names_and_words() -> None:
    changes = dict(parse_assignment(text) for text in ("covariates.batch=7", "training.precision=32", "covariates.decoder=[1, 2]"))
    spec = RunSpec().with_changes(changes)
    assert spec.covariates.batch == "7"
    assert spec.covariates.decoder == ("1", "2")
    assert spec.training.precision == "32"


def test_a_change_leaves_the_rest_and_the_original() -> None:
    spec = RunSpec().with_changes({"training.seed": 4, "losses.weights.kl_z": 0.5})
    other = spec.with_changes({"losses.weights.kl_z": None})
    assert spec.losses.weights == {"kl_z": 0.5}
    assert other.losses.weights == {}
    assert other.loss_weights()["kl_z"] == 1.0
    assert other.training.seed == 4
