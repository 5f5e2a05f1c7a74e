"""The Compare view: what differs between runs, and what came of them."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from qtpy.QtCore import QItemSelectionModel, QPoint, Qt
from window_support import show_run

from cellweave.app.views.compare import run_columns
from cellweave.core.runs.comparing import differing, read_row
from cellweave.core.runs.folder import RunFolder

LEFT = Qt.MouseButton.LeftButton
LONG = 60_000


@pytest.fixture
def view(qtbot, window, trained):
    window.runs.refresh()
    window.actions_by_id["view.compare"].trigger()
    found = window.centre.view("compare")
    qtbot.waitUntil(lambda: len(found.rows) == 2, timeout=LONG)
    return found


def test_only_what_differs_is_shown(trained):
    rows = [read_row(folder) for folder in trained.values()]
    paths = differing(rows)
    assert "model.kind" in paths
    assert "model.n_latent" not in paths
    assert "name" not in paths
    names = [column.name for column in run_columns(rows)[0]]
    assert "training.max_epochs" not in names
    assert "training.max_epochs" in [column.name for column in run_columns(rows, every=True)[0]]
    spec = RunFolder(trained["vae"]).spec.with_changes({"losses.weights": {"kl_z": 2.0}, "training.batch_size": 32})
    RunFolder(trained["vae"]).write_spec(spec)
    rows = [read_row(folder) for folder in trained.values()]
    assert {"losses.weights.kl_z", "training.batch_size"} <= set(differing(rows))
    columns, values = run_columns(rows)
    title = {column.name: column.title for column in columns}
    assert title["training.batch_size"] == "Minibatch" or "inibatch" in title["training.batch_size"]
    np.testing.assert_array_equal(values["losses.weights.kl_z"], [1.0, 2.0])


def test_results_and_settings_that_differ_come_first_and_every_column_has_a_name_of_its_own(trained):
    rows = [read_row(folder) for folder in trained.values()]
    spec = RunFolder(trained["vae"]).spec.with_changes({"covariates.batch": "batch", "losses.weights": {"mmd": 10.0}})
    RunFolder(trained["vae"]).write_spec(spec)
    rows = [read_row(folder) for folder in trained.values()]
    mmd = next(term for term in spec.terms() if term.name == "mmd")
    values = {"batch_mixing": 0.5, "integration.batch_score": 0.6}
    rows = [replace(one, metrics=values, losses={**one.losses, ("mmd", "validation"): 0.1}) for one in rows]
    columns, _ = run_columns(rows, every=True)
    names = [column.name for column in columns]
    different = [path for path in differing(rows) if path != "model.kind"]
    assert names[:5] == ["run", "model", "result", "integration.batch_score", "seconds"], "what came of the runs is in sight however much differs"
    assert set(names[5 : 5 + len(different)]) == set(different)
    assert names[5].startswith("model."), "the model before its training and its files"
    assert names[5 + len(different)] == "state"
    titles = {column.name: column.title for column in columns}
    assert titles["loss.mmd.validation"] == f"{mmd.label}, validation"
    assert titles["batch_mixing"] != titles["integration.batch_score"]


def test_groups_of_columns_are_opened(qtbot, view):
    names = [column.name for column in view.table.table.columns]
    number = names.index("loss.reconstruction.train")
    assert view.table.view.isColumnHidden(number)
    qtbot.mouseClick(view.losses_shown, LEFT, pos=QPoint(8, view.losses_shown.height() // 2))
    assert not view.table.view.isColumnHidden(number)


def test_losses_epochs_and_time_are_those_of_the_run(view, trained):
    with (trained["vae"] / "losses.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    place = next(number for number, one in enumerate(view.rows) if one.kind == "vae")
    table = view.table.table
    assert table.values("loss.elbo.validation")[place] == pytest.approx(float(last["elbo_validation"]))
    assert table.values("loss.reconstruction.train")[place] == pytest.approx(float(last["reconstruction_train"]))
    assert table.values("epochs")[place] == 8
    status = RunFolder(trained["vae"]).status
    assert table.values("seconds")[place] == pytest.approx(status.finished - status.started)
    assert table.values("device")[place] == status.device


def test_sort_open_and_csv(qtbot, window, view, trained):
    number = [column.name for column in view.table.table.columns].index("loss.elbo.validation")
    view.table.table.sort(number, Qt.SortOrder.AscendingOrder)
    values = view.table.table.values("loss.elbo.validation")
    assert view.table.table.source_row(0) == int(np.argmin(values))
    rows = list(csv.DictReader(io.StringIO(view.table.as_csv())))
    assert float(rows[0]["loss.elbo.validation"]) == values.min()
    place = next(number for number, one in enumerate(view.rows) if one.kind == "ldvae")
    view.table.choose(place)
    qtbot.mouseClick(view.open, LEFT)
    qtbot.waitUntil(lambda: window.watching.shown == trained["ldvae"], timeout=LONG)


def test_the_losses_of_several_runs_are_laid_over_one_another(qtbot, window, view, trained):
    show_run(qtbot, window, trained["vae"])
    window.show_view("compare")
    qtbot.waitUntil(lambda: len(view.rows) == 2 and view.message() == "", timeout=LONG)
    view.table.view.selectAll()
    qtbot.mouseClick(view.overlay, LEFT)
    assert window.centre.current() == "losses"
    assert list(window.losses._overlays) == ["small ldvae · ldvae-01"]


def test_the_runs_selected_in_the_list_alone(qtbot, window, view):
    panel = window.runs_panel
    view.only.setChecked(True)
    panel.view.clearSelection()
    view.refresh(force=True)
    assert "Select runs in the list" in view.note.text()
    panel.view.selectionModel().select(panel.model.index(0), QItemSelectionModel.SelectionFlag.Select)
    view.refresh(force=True)
    qtbot.waitUntil(lambda: len(view.rows) == 1, timeout=LONG)
    panel.view.selectAll()
    window.actions_by_id["run.compare"].trigger()
    view.refresh(force=True)
    qtbot.waitUntil(lambda: len(view.rows) == 2, timeout=LONG)


def test_a_run_that_cannot_be_read_is_named_and_the_others_stay(qtbot, window, view, trained):
    (trained["vae"] / "spec.toml").write_text("not = [toml")
    view.refresh(force=True)
    qtbot.waitUntil(lambda: any(one.problem for one in view.rows), timeout=LONG)
    assert "cannot" in view.note.text() or "not" in view.note.text()
    assert view.table.table.size == 2
