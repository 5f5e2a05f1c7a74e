"""Opening: header first, then the data; what cannot be read is one sentence, and the window goes on."""

from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtCore import QMimeData, QPoint, QPointF, Qt, QUrl
from qtpy.QtGui import QDragEnterEvent, QDropEvent
from qtpy.QtWidgets import QFileDialog
from window_support import small_h5ad

LEFT = Qt.MouseButton.LeftButton
LONG = 60_000


@pytest.fixture
def small(tmp_path):
    return small_h5ad(tmp_path / "small.h5ad")


def wait_checked(qtbot, window):
    qtbot.waitUntil(lambda: window.session.checked_spec is not None and window.session.checked_spec == window.session.spec, timeout=LONG)


def open_data(qtbot, window, path):
    window.opening.open_path(str(path))
    wait_checked(qtbot, window)


def drop(window, *paths):
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path)) for path in paths])
    place = QPointF(400, 300)
    none = Qt.KeyboardModifier.NoModifier
    enter = QDragEnterEvent(QPoint(400, 300), Qt.DropAction.CopyAction, data, LEFT, none)
    window.dragEnterEvent(enter)
    assert enter.isAccepted()
    assert window.centre._hint.isVisible()
    window.dropEvent(QDropEvent(place, Qt.DropAction.CopyAction, data, LEFT, none))
    assert not window.centre._hint.isVisible()


def test_open_by_the_button(qtbot, window, small, monkeypatch):
    monkeypatch.setattr(QFileDialog, "getOpenFileNames", lambda *_, **__: ([str(small)], ""))
    qtbot.mouseClick(window.centre.welcome.open, LEFT)
    qtbot.waitUntil(lambda: bool(window.session.headers), timeout=LONG)
    wait_checked(qtbot, window)
    assert window.session.study.n_cells == 240
    assert window.session.spec.covariates.batch == "batch"
    assert window.session.spec.covariates.labels == "cell_type"
    assert window.workflow.train.isEnabled()
    assert "240 cells" in window.workflow.headers[0]._summary
    assert "small.h5ad" in window.windowTitle()
    assert window.session.settings.recent_data == [str(small)]


def test_drop_a_file(qtbot, window, small):
    drop(window, small)
    wait_checked(qtbot, window)
    assert window.session.study.n_cells == 240


def test_several_files_are_one_study(qtbot, window, tmp_path):
    paths = [small_h5ad(tmp_path / f"part{number}.h5ad", n_cells=100, seed=number) for number in range(2)]
    drop(window, *paths)
    wait_checked(qtbot, window)
    assert window.session.study.n_cells == 200
    assert window.data_panel.join.isVisibleTo(window.data_panel)
    assert "file" in window.session.study.obs


NO_DATA = [("notes.h5ad", b"dear diary"), ("empty.h5ad", b""), ("picture.png", b"\x89PNG\r\n"), ("table.xlsx", b"PK\x03\x04")]


@pytest.mark.parametrize(("name", "content"), NO_DATA)
def test_what_is_no_data_is_said_in_one_sentence_and_the_window_goes_on(qtbot, window, tmp_path, small, name, content):
    open_data(qtbot, window, small)
    bad = tmp_path / name
    bad.write_bytes(content)
    drop(window, bad)
    qtbot.waitUntil(lambda: hasattr(window, "error_dialog"), timeout=LONG)
    dialog = window.error_dialog
    assert name in dialog.cause.text()
    assert "Traceback" not in dialog.cause.text() + dialog.mend.text()
    assert dialog.mend.text()
    dialog.close()
    assert window.session.study.n_cells == 240
    assert window.workflow.train.isEnabled()


def test_text_cannot_be_dropped(window):
    data = QMimeData()
    data.setText("words")
    enter = QDragEnterEvent(QPoint(400, 300), Qt.DropAction.CopyAction, data, LEFT, Qt.KeyboardModifier.NoModifier)
    enter.ignore()
    window.dragEnterEvent(enter)
    assert not enter.isAccepted()
    assert "Only files" in window.centre.notice.words.text()


def test_a_missing_file_is_said(qtbot, window, tmp_path):
    window.opening.open_path(str(tmp_path / "gone.h5ad"))
    assert "gone.h5ad" in window.error_dialog.cause.text()
    window.error_dialog.close()


def test_a_spec_with_a_typo_says_did_you_mean(qtbot, window, tmp_path):
    spec = tmp_path / "run.toml"
    spec.write_text("[training]\nmax_epoch = 5\n")
    drop(window, spec)
    assert "max_epochs" in window.error_dialog.cause.text()
    window.error_dialog.close()


def test_a_level_per_cell_as_batch_blocks_train_and_says_why(qtbot, window, tmp_path):
    path = small_h5ad(tmp_path / "ids.h5ad", barcode=[f"x{number}" for number in range(240)])
    open_data(qtbot, window, path)
    window.covariates_panel.assign("barcode", "batch", on=True)
    wait_checked(qtbot, window)
    assert not window.workflow.train.isEnabled()
    assert "barcode" in window.workflow.why.text()
    assert window.workflow.headers[1]._mark == "fail"
    window.actions_by_id["edit.undo"].trigger()
    wait_checked(qtbot, window)
    assert window.workflow.train.isEnabled()


def test_a_fix_button_mends_what_it_says(qtbot, window, tmp_path):
    import anndata

    path = small_h5ad(tmp_path / "empties.h5ad")
    data = anndata.read_h5ad(path)
    counts = data.X.tolil()
    counts[:5] = 0
    data.X = counts.tocsr()
    data.write_h5ad(path)
    open_data(qtbot, window, path)
    window.go_to_step(0)
    check = next(check for check in window.session.checks if any("data.drop_empty_cells" in fix.changes for fix in check.fixes))
    fix = next(fix for fix in check.fixes if "data.drop_empty_cells" in fix.changes)
    from qtpy.QtWidgets import QPushButton

    button = next(item for item in window.data_panel.checks.findChildren(QPushButton) if item.text() == fix.label)
    qtbot.mouseClick(button, LEFT)
    qtbot.waitUntil(lambda: window.session.study is not None and window.session.study.n_cells == 235, timeout=LONG)


def test_roles_are_remembered_for_files_with_the_same_columns(qtbot, make_window, answers, tmp_path, small):
    from window_support import close_window

    first = make_window()
    open_data(qtbot, first, small)
    first.covariates_panel.assign("batch", "batch", on=False)
    first.covariates_panel.assign("batch", "decoder", on=True)
    first.session.remember_roles()
    close_window(first, answers)
    second = make_window()
    other = small_h5ad(tmp_path / "other.h5ad", n_cells=120, seed=3)
    open_data(qtbot, second, other)
    assert second.session.spec.covariates.decoder == ("batch",)
    assert second.session.spec.covariates.batch is None


def test_model_and_training_stay_when_other_data_are_opened(qtbot, window, tmp_path, small):
    open_data(qtbot, window, small)
    window.session.editor.edit({"model.n_latent": 4, "training.max_epochs": 9})
    open_data(qtbot, window, small_h5ad(tmp_path / "other.h5ad", n_cells=100))
    assert window.session.spec.model.n_latent == 4
    assert window.session.spec.training.max_epochs == 9
    assert window.session.editor.stack.count() <= 1  # only the roles that were proposed


def test_loading_can_be_cancelled(qtbot, window, small, monkeypatch):
    import threading

    from cellweave.core.study import load

    begun, reading = threading.Event(), load.load_study

    def slow(data, progress=None, cancelled=None):
        begun.set()
        while not cancelled():
            threading.Event().wait(0.01)
        return reading(data, progress, cancelled)

    monkeypatch.setattr("cellweave.core.study.load.load_study", slow)
    monkeypatch.setattr("cellweave.core.study.load_study", slow, raising=False)
    window.opening.open_path(str(small))
    qtbot.waitUntil(lambda: begun.is_set() and window.activity.cancel.isVisible(), timeout=LONG)
    qtbot.mouseClick(window.activity.cancel, LEFT)
    qtbot.waitUntil(lambda: not window.tasks.busy(), timeout=LONG)
    assert window.session.study is None
    assert "cancelled" in window.centre.notice.words.text()


def test_switching_a_cell_of_the_mosaic_off(qtbot, window, example_file):
    open_data(qtbot, window, example_file)
    grid = window.data_panel.mosaic
    assert set(grid.boxes) == {("p1_0", "rna"), ("p2_0", "adt"), ("p3_0", "rna"), ("p3_0", "adt"), ("p4_0", "rna"), ("p4_0", "adt")}
    grid.boxes["p3_0", "rna"].click()
    assert window.session.spec.data.switched_off[0].level == "p3_0"
    qtbot.waitUntil(lambda: window.session.study is not None and int(window.session.study.modalities["rna"].measured.sum()) == 800, timeout=LONG)
    qtbot.waitUntil(lambda: grid.boxes["p3_0", "rna"].accessibleDescription() == "400 cells held out")
    grid.boxes["p1_0", "rna"].click()  # all that was measured there
    qtbot.waitUntil(lambda: window.session.study is not None and "p1_0" not in set(window.session.study.obs["batch"]), timeout=LONG)
    qtbot.waitUntil(lambda: grid.boxes["p1_0", "rna"].text() == "off")
    grid.boxes["p1_0", "rna"].click()
    qtbot.waitUntil(lambda: window.session.study is not None and "p1_0" in set(window.session.study.obs["batch"]), timeout=LONG)


def test_features_are_chosen_and_read_again(qtbot, window, small):
    open_data(qtbot, window, small)
    form = next(iter(window.data_panel._forms.values()))
    form.mode.setCurrentIndex(1)
    form.mode.activated.emit(1)
    form.number.setValue(10)
    name = form.name
    qtbot.waitUntil(lambda: window.session.study is not None and window.session.study.modalities[name].n_features == 10, timeout=LONG)
    assert np.all(window.session.study.modalities[name].counts.data > 0)


def test_real_awkward_files_never_stop_the_window(qtbot, window, data_folder):
    folder = data_folder / "awkward"
    opened, refused = [], []
    for path in sorted(folder.iterdir()):
        window.__dict__.pop("error_dialog", None)
        window.opening.open_path(str(path))
        qtbot.waitUntil(lambda: not window.tasks.busy() and (hasattr(window, "error_dialog") or window.session.checked_spec is not None), timeout=LONG)
        if hasattr(window, "error_dialog"):
            sentence = window.error_dialog.cause.text()
            assert sentence.endswith("."), (path.name, sentence)
            assert "fault in Cellweave" not in sentence, (path.name, window.error_dialog.details.toPlainText())
            window.error_dialog.close()
            refused.append(path.name)
        else:
            opened.append(path.name)
    assert "10x_v3_pbmc1k_rna_and_antibody.h5" in opened
    assert "drg_20cells_100_attributes.loom" in opened
    assert window.isVisible()


def test_a_modality_without_raw_counts_is_said_to_be_left_out(qtbot, window, tmp_path):
    import mudata

    path = tmp_path / "both.h5mu"
    import anndata

    one = anndata.read_h5ad(small_h5ad(tmp_path / "one.h5ad"))
    two = one.copy()
    two.var_names = [f"protein{number}" for number in range(two.n_vars)]
    two.X = two.X.astype("float32") * 0.37
    mudata.MuData({"rna": one, "adt": two}).write(path)
    open_data(qtbot, window, path)
    assert list(window.session.study.modalities) == ["rna"]
    assert window.data_panel._forms["adt"].found.text() == "left out"
    assert window.data_panel._forms["adt"].found.toolTip()


def broken_counts(path, values):
    import anndata

    data = anndata.read_h5ad(small_h5ad(path))
    data.X = (data.X.astype("float32") * values).tocsr()
    data.write_h5ad(path)
    return path


def wait_refused(qtbot, window):
    qtbot.waitUntil(lambda: window.session.load_error is not None and hasattr(window, "error_dialog"), timeout=LONG)
    window.error_dialog.close()


def test_a_file_that_cannot_be_used_says_so_until_another_is_opened(qtbot, window, tmp_path, small):
    window.opening.open_path(str(broken_counts(tmp_path / "negative.h5ad", -1.0)))
    wait_refused(qtbot, window)
    header, panel = window.workflow.headers[0], window.data_panel
    assert (header._mark, header._summary) == ("fail", "negative.h5ad · cannot be used")
    assert "holds no raw counts" in panel.cause.text()
    assert panel.problem.isVisible()
    assert "raw counts" in panel.mend.text()
    assert not panel.accept.isVisible()  # negative values are of no use to any likelihood
    assert window.workflow.why.text() == panel.cause.text()
    assert not window.workflow.train.isEnabled()
    open_data(qtbot, window, small)
    assert window.session.load_error is None
    assert not panel.problem.isVisible()
    assert window.workflow.train.isEnabled()


def test_values_that_are_not_whole_can_be_used_all_the_same(qtbot, window, tmp_path):
    window.opening.open_path(str(broken_counts(tmp_path / "normalised.h5ad", 0.37)))
    wait_refused(qtbot, window)
    assert window.data_panel.accept.isVisible()
    qtbot.mouseClick(window.data_panel.accept, LEFT)
    assert window.session.spec.data.accept_non_integer
    wait_checked(qtbot, window)
    assert window.session.study.n_cells == 240
    assert window.session.spec.covariates.batch == "batch"  # suggested as at any first look
    assert not window.data_panel.problem.isVisible()
    assert "240 cells" in window.workflow.headers[0]._summary
