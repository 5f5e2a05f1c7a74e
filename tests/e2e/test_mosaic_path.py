"""MIDAS by point and click: switch a modality of one batch off, train, look at modalities and imputation, take the h5mu away."""

from __future__ import annotations

import mudata
import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QCheckBox, QComboBox, QFileDialog, QLineEdit

LEFT = Qt.MouseButton.LeftButton
LONG = 120_000


@pytest.mark.slow
def test_from_the_example_to_modalities_imputation_and_h5mu(qtbot, window, tmp_path, monkeypatch):
    qtbot.mouseClick(window.centre.welcome.example, LEFT)
    qtbot.waitUntil(lambda: window.session.checked_spec is not None, timeout=LONG)

    # What if the proteins of one batch had not been measured?
    grid = window.data_panel.mosaic
    box = grid.boxes["p3_0", "adt"]
    box.setFocus()
    qtbot.keyClick(box, Qt.Key.Key_Space)
    assert [(cell.level, cell.modality) for cell in window.session.spec.data.switched_off] == [("p3_0", "adt")]

    # The model by its chooser, the epochs by typing.
    qtbot.mouseClick(window.workflow.headers[2], LEFT)
    chooser = next(box for box in window.model_panel.findChildren(QComboBox) if box.findText("MIDAS") >= 0)
    chooser.setFocus()
    qtbot.keyClicks(chooser, "MIDAS")
    assert window.session.spec.model.kind == "midas"
    qtbot.mouseClick(window.workflow.headers[4], LEFT)
    field = window.training_panel.form.row("training.max_epochs").editor.findChild(QLineEdit)
    field.setFocus()
    field.selectAll()
    qtbot.keyClicks(field, "2")
    qtbot.keyClick(field, Qt.Key.Key_Return)
    stopping = window.training_panel.form.row("training.early_stopping").editor
    stop = stopping if isinstance(stopping, QCheckBox) else stopping.findChild(QCheckBox)
    if stop.isChecked():
        stop.setFocus()
        qtbot.keyClick(stop, Qt.Key.Key_Space)
    qtbot.waitUntil(lambda: window.session.checked_spec == window.session.spec, timeout=LONG)
    qtbot.mouseClick(window.workflow.train, LEFT)
    qtbot.waitUntil(lambda: window.watching.results is not None and not window.training.active, timeout=LONG)
    folder = window.watching.shown
    cells = window.watching.cells

    # Modalities: a picture for each batch and what was measured in it, none where it was switched off; a batch is chosen by a click.
    window.actions_by_id["view.modalities"].trigger()
    view = window.centre.view("modalities")
    qtbot.waitUntil(lambda: view.found is not None and not view.message(), timeout=LONG)
    found = view.found
    assert found.names == ("All together", "RNA", "ADT")
    batch = cells.columns["batch"]
    off = np.asarray(batch.codes) == list(batch.levels).index("p3_0")
    assert np.isfinite(found.layout[0][off]).all()
    assert np.isfinite(found.layout[1][off]).all()
    assert np.isnan(found.layout[2][off]).all()
    assert len(found.pairs) == 1

    # Imputation: the proteins that were kept from training are judged against what was measured.
    window.actions_by_id["view.imputation"].trigger()
    judged = window.centre.view("imputation")
    qtbot.waitUntil(lambda: judged.message() == "", timeout=LONG)
    assert judged.hide_choice.currentData() == "held-out"
    qtbot.mouseClick(judged.judge, LEFT)
    qtbot.waitUntil(lambda: judged.found is not None and judged.plot.picture is not None, timeout=LONG)
    assert list(judged.found.comparisons) == ["adt"]
    assert len(judged.comparison().truth) == int(off.sum())
    assert judged.found.by_feature["n"].max() == int(off.sum())

    # Everything as h5mu.
    out = tmp_path / "mosaic.h5mu"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_, **__: (str(out), ""))
    window.actions_by_id["file.h5ad"].trigger()
    qtbot.waitUntil(lambda: out.is_file() and not window.tasks.busy(), timeout=LONG)
    taken = mudata.read_h5mu(out)
    assert set(taken.mod) == {"rna", "adt"}
    latent = np.load(folder / "results" / "latent.npy", allow_pickle=False)
    np.testing.assert_array_equal(np.asarray(taken.obsm["X_latent"]), latent)
    assert np.isfinite(latent).all()
