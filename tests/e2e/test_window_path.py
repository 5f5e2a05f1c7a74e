"""The whole path by point and click: example, roles, model, weights, train, turn a weight, pause, stop, figure, h5ad."""

from __future__ import annotations

import pytest
from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import QApplication, QCheckBox, QFileDialog, QLineEdit, QPushButton

from cellweave.app.panels.roles import RolePopup
from cellweave.app.views.figuredialog import Preview
from cellweave.core import cli
from cellweave.core.runs.events import FinishReason, RunState, WeightChanged
from cellweave.core.runs.folder import RunFolder

LEFT = Qt.MouseButton.LeftButton
LONG = 120_000


def open_example(qtbot, window) -> None:
    qtbot.mouseClick(window.centre.welcome.example, LEFT)
    qtbot.waitUntil(lambda: window.session.checked_spec is not None, timeout=LONG)


def header(window, step: int):
    return window.workflow.headers[step]


def type_number(qtbot, form, path: str, value: str) -> None:
    """Type into a number field of a form as a person does."""
    editor = form.row(path).editor
    field = editor.findChild(QLineEdit)
    field.setFocus()
    field.selectAll()
    qtbot.keyClicks(field, value)
    qtbot.keyClick(field, Qt.Key.Key_Return)


def settle(qtbot, window) -> None:
    """Wait until the last edit was checked."""
    qtbot.waitUntil(lambda: window.session.checked_spec == window.session.spec, timeout=LONG)


@pytest.mark.slow
def test_from_the_example_to_figure_and_h5ad(qtbot, window, tmp_path, monkeypatch):
    open_example(qtbot, window)
    assert window.session.study.n_cells == 1600
    assert window.session.spec.covariates.batch == "batch"

    # Roles: take the labels away through the pop-up, and give them back.
    qtbot.mouseClick(header(window, 1), LEFT)
    view = window.covariates_panel.view
    row = view.columns.row_of("celltype")
    for wanted in (None, "celltype"):
        qtbot.mouseClick(view.viewport(), LEFT, pos=view.visualRect(view.columns.index(row)).center())
        popup = next(item for item in QApplication.topLevelWidgets() if isinstance(item, RolePopup) and item.isVisible())
        box = popup.boxes["labels"]
        qtbot.mouseClick(box, LEFT, pos=QPoint(8, box.height() // 2))
        popup.close()
        assert window.session.spec.covariates.labels == wanted

    # Model and training by typing.
    qtbot.mouseClick(header(window, 2), LEFT)
    type_number(qtbot, window.model_panel.form, "model.n_latent", "6")
    assert window.session.spec.model.n_latent == 6
    qtbot.mouseClick(header(window, 4), LEFT)
    type_number(qtbot, window.training_panel.form, "training.max_epochs", "100000")
    type_number(qtbot, window.training_panel.form, "training.preview_every", "2")
    stopping = window.training_panel.form.row("training.early_stopping").editor
    box = stopping if isinstance(stopping, QCheckBox) else stopping.findChild(QCheckBox)
    box.setFocus()
    qtbot.keyClick(box, Qt.Key.Key_Space)
    assert not window.session.spec.training.early_stopping
    settle(qtbot, window)
    assert window.workflow.train.isEnabled()

    # Train, and turn a weight while it trains.
    qtbot.mouseClick(window.workflow.train, LEFT)
    training = window.training
    qtbot.waitUntil(lambda: training.progress.epoch >= 2, timeout=LONG)
    folder = training.current.folder
    qtbot.mouseClick(header(window, 3), LEFT)
    window.losses_panel.form.row("kl_z").slider.setFocus()
    qtbot.keyClick(window.losses_panel.form.row("kl_z").slider, Qt.Key.Key_PageUp)
    run = RunFolder(folder)
    qtbot.waitUntil(lambda: any(isinstance(event, WeightChanged) for event in run.events()), timeout=LONG)
    turned = next(event for event in run.events() if isinstance(event, WeightChanged))
    assert turned.term == "kl_z"
    assert turned.new == window.session.spec.loss_weights()["kl_z"] != 1.0

    # Pause, go on, and wait for the embedding to move.
    qtbot.mouseClick(window.activity.pause, LEFT)
    qtbot.waitUntil(lambda: training.progress.state is RunState.PAUSED, timeout=LONG)
    assert window.activity.pause.text() == "Resume"
    epoch = training.progress.epoch
    qtbot.mouseClick(window.activity.pause, LEFT)
    qtbot.waitUntil(lambda: training.progress.epoch > epoch, timeout=LONG)
    qtbot.waitUntil(lambda: window.watching.cells is not None, timeout=LONG)

    # Stop and keep.
    qtbot.mouseClick(window.activity.stop, LEFT)
    qtbot.waitUntil(lambda: window.watching.results is not None and not training.active, timeout=LONG)
    assert run.status.reason is FinishReason.STOPPED
    results = window.watching.results
    assert results.xy.shape == (1200, 2)  # one of the four batches has no RNA
    assert window.embedding.shown_columns() == ["batch", "celltype"]
    assert window.losses.history().epochs[-1] == run.status.epoch

    # Take away: a figure, the h5ad, tables.
    window.actions_by_id["file.figure"].trigger()
    dialog = window.figure_dialog
    qtbot.waitUntil(lambda: not dialog.findChild(Preview).picture().isNull(), timeout=LONG)
    pdf = tmp_path / "figure.pdf"
    dialog._ask_path = lambda _suggested: str(pdf)
    save = next(button for button in dialog.findChildren(QPushButton) if button.text().startswith("Save"))
    with qtbot.waitSignal(dialog.saved, timeout=LONG):
        qtbot.mouseClick(save, LEFT)
    assert pdf.read_bytes().startswith(b"%PDF")
    dialog.close()
    out = tmp_path / "taken.h5ad"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_, **__: (str(out), ""))
    window.actions_by_id["file.h5ad"].trigger()
    qtbot.waitUntil(out.is_file, timeout=LONG)
    qtbot.waitUntil(lambda: not window.tasks.busy(), timeout=LONG)
    import anndata

    written = anndata.read_h5ad(out)
    assert written.obsm["X_latent"].shape[1] == 6
    assert "X_umap" in written.obsm
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_, **__: str(tmp_path))
    window.actions_by_id["file.tables"].trigger()
    qtbot.waitUntil((tmp_path / "umap.csv").is_file, timeout=LONG)
    qtbot.waitUntil(lambda: not window.tasks.busy(), timeout=LONG)
    assert len((tmp_path / "losses.csv").read_text().splitlines()) == run.status.epoch + 1


@pytest.mark.slow
def test_the_window_and_the_command_line_give_the_same_losses(qtbot, window, tmp_path):
    open_example(qtbot, window)
    window.session.editor.edit({"training.max_epochs": 3, "training.threads": 1, "analysis.umap": False, "analysis.clusters": False,
                                "analysis.scores": False, "analysis.baseline": False})  # fmt: skip
    settle(qtbot, window)
    qtbot.mouseClick(window.workflow.train, LEFT)
    qtbot.waitUntil(lambda: window.watching.results is not None and not window.training.active, timeout=LONG)
    mine = window.watching.results.folder
    spec = tmp_path / "spec.toml"
    window.exporting.save_spec(spec)
    code = cli.main(["train", str(spec), "--out", str(tmp_path / "cli")])
    assert code == 0
    theirs = tmp_path / "cli" / "losses.csv"
    assert (mine / "losses.csv").read_bytes() == theirs.read_bytes()
    assert len(theirs.read_text().splitlines()) == 1 + 3
