"""Edits of the spec can be undone, a drag is one step, and what is refused changes nothing."""

from __future__ import annotations

import pytest

from cellweave.app.state import editing
from cellweave.app.state.editing import SpecEditor
from cellweave.app.state.presets import known_presets, save_preset
from cellweave.core.spec import RunSpec


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


@pytest.mark.parametrize(
    ("before", "weight", "change"),
    [
        ({}, {"losses.weights.kl_z": 2.0}, {"model.kind": "midas"}),
        ({"model.kind": "midas", "covariates.batch": "batch"}, {"losses.weights.reconstruction_batch": 5.0}, {"model.batch_expert": False}),
        ({"model.kind": "midas", "covariates.batch": "batch"}, {"losses.weights.reconstruction_batch": 5.0}, {"covariates.batch": None}),
    ],
)
def test_a_turned_weight_does_not_keep_its_term_and_comes_back_with_it(editor, before, weight, change):
    refused = []
    editor.refused.connect(lambda _paths, text: refused.append(text))
    editor.edit({**before, "losses.weights.alignment": 7.0} if before else {"training.max_epochs": 3})
    editor.edit(weight)
    turned = dict(editor.spec.losses.weights)
    assert editor.edit(change), refused
    assert editor.spec.losses.weights == {name: value for name, value in turned.items() if f"losses.weights.{name}" not in weight}
    editor.stack.undo()
    assert editor.spec.losses.weights == turned
