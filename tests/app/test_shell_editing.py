"""Edits of the spec can be undone, a drag is one step, and what is refused changes nothing."""

from __future__ import annotations

import pytest

from cellweave.app.state import editing
from cellweave.app.state.editing import SpecEditor
from cellweave.app.state.presets import known_presets, save_preset
from cellweave.app.state.script import as_command, as_script, changes_of
from cellweave.core.cli.inputs import change
from cellweave.core.spec import RunSpec, parse_assignment


@pytest.fixture
def editor(qapp):
    return SpecEditor()


def test_undo_and_redo(editor):
    seen = []
    editor.changed.connect(seen.append)
    editor.edit({"model.n_latent": 20})
    editor.edit({"training.max_epochs": 7})
    editor.stack.undo()
    assert editor.spec.training.max_epochs is None
    assert editor.spec.model.n_latent == 20
    editor.stack.undo()
    assert editor.spec == RunSpec()
    editor.stack.redo()
    assert editor.spec.model.n_latent == 20
    assert [spec.model.n_latent for spec in seen] == [20, 20, 20, 10, 20]


def test_edits_of_one_field_in_quick_succession_are_one_step(editor, monkeypatch):
    for weight in (2.0, 3.0, 4.0):
        editor.edit({"losses.weights.kl_z": weight})
    assert editor.stack.count() == 1
    editor.stack.undo()
    assert editor.spec.losses.weights == {}
    editor.stack.redo()
    assert editor.spec.losses.weights == {"kl_z": 4.0}
    monkeypatch.setattr(editing, "MERGE_SECONDS", -1.0)
    editor.edit({"losses.weights.kl_z": 5.0})
    assert editor.stack.count() == 2


def test_a_refused_edit_says_why_and_changes_nothing(editor):
    refused = []
    editor.refused.connect(lambda paths, text: refused.append((paths, text)))
    assert not editor.edit({"model.n_latent": 0})
    assert editor.spec == RunSpec()
    assert editor.stack.count() == 0
    assert refused[0][0] == ("model.n_latent",)
    assert "greater than or equal to 1" in refused[0][1]


def test_no_step_where_nothing_changes(editor):
    editor.edit({"model.n_latent": 10})
    assert editor.stack.count() == 0


SPECS = [
    {},
    {"model.n_latent": 7, "training.max_epochs": 5, "training.learning_rate": 3e-4, "losses.weights.kl_z": 0.5},
    {"covariates.batch": "the batch", "covariates.labels": 'cell "type"', "covariates.decoder": ("a", "b c"), "name": "it's"},
    {"data.layers.rna": "layers/raw counts", "data.features.rna.mode": "variable", "data.features.rna.n": 500, "training.early_stopping": False},
    {"data.switched_off": ({"column": "batch", "level": "p 1", "modality": "adt"},), "data.combine": {"ab": ("a", "b")}},
]


@pytest.mark.parametrize("changes", SPECS)
def test_the_copied_command_is_the_spec(changes):
    import shlex

    spec = RunSpec().with_changes({"data.paths": ("/some where/x.h5ad",), **changes})
    words = shlex.split(as_command(spec))
    assert words[:3] == ["cellweave", "train", "/some where/x.h5ad"]
    assignments = words[4::2]
    assert words[3::2] == ["--set"] * len(assignments)
    again = change(RunSpec().with_changes({"data.paths": ("/some where/x.h5ad",)}), None, {}, assignments)
    assert again == spec
    assert dict(parse_assignment(text) for text in assignments).keys() == changes_of(spec).keys()


@pytest.mark.parametrize("changes", SPECS)
def test_the_copied_script_is_the_spec(changes):
    spec = RunSpec().with_changes({"data.paths": ("/some where/x.h5ad",), **changes})
    names: dict[str, object] = {"__name__": "copied"}
    exec(compile(as_script(spec), "copied", "exec"), names)  # noqa: S102  (it is our own text)
    assert names["spec"] == spec


def test_a_preset_of_ones_own_comes_back(tmp_path):
    spec = RunSpec().with_changes({"model.n_latent": 33, "losses.weights.kl_z": 2.0, "training.batch_size": 512})
    name = save_preset(tmp_path, "My lab's: best!", spec)
    found, problem = known_presets(tmp_path)
    assert problem == ""
    assert found[name].title == "My lab's: best!"
    assert found[name].apply(RunSpec()) == spec


def test_a_broken_preset_is_said_and_the_others_stay(tmp_path):
    (tmp_path / "bad.toml").write_text("= =")
    found, problem = known_presets(tmp_path)
    assert "scvi-defaults" in found
    assert "could not be read" in problem
