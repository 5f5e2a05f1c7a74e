"""LDVAE by point and click: train it on the example, look at the loadings, lasso two groups, compare them, take the figure and the table away."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from qtpy.QtCore import QPoint, QPointF, Qt
from qtpy.QtWidgets import QCheckBox, QComboBox, QFileDialog, QLineEdit, QPushButton

from cellweave.app.views.figuredialog import Preview

LEFT = Qt.MouseButton.LeftButton
LONG = 120_000
STILL = 20  # looks, ten milliseconds apart, in which nothing moved


def corners(panel, points: np.ndarray) -> list[QPoint]:
    """Return where the corners around the middle of some points lie on a panel."""
    low, high = np.quantile(points, [0.05, 0.95], axis=0)
    around = [(low[0], low[1]), (high[0], low[1]), (high[0], high[1]), (low[0], high[1]), (low[0], low[1])]
    return [panel.canvas.mapFromScene(panel.box.mapViewToScene(QPointF(float(x), float(y)))) for x, y in around]


def drag_around(qtbot, window, panel, level: str) -> None:
    """Draw a lasso around the middle of the cells of a type, once the view has come to rest: showing it may still move or fit its points."""
    column = window.watching.cells.columns["celltype"]
    seen: list[list[QPoint]] = []

    def rests() -> bool:
        seen.append(corners(panel, window.embedding.points().xy[column.codes == column.levels.index(level)]))
        return len(seen) > STILL and all(places == seen[-1] for places in seen[-STILL:]) and all(panel.canvas.viewport().rect().contains(at) for at in seen[-1])

    qtbot.waitUntil(rests, timeout=LONG)
    at, port = seen[-1], panel.canvas.viewport()
    qtbot.mousePress(port, LEFT, pos=at[0])
    for start, end in pairwise(at):
        for share in (0.25, 0.5, 0.75, 1.0):
            qtbot.mouseMove(port, start + (end - start) * share)
            qtbot.wait(12)  # pyqtgraph looks at the mouse a hundred times a second
    qtbot.mouseRelease(port, LEFT, pos=at[-1])


@pytest.mark.slow
def test_from_the_example_to_loadings_volcano_and_table(qtbot, window, tmp_path, monkeypatch):
    qtbot.mouseClick(window.centre.welcome.example, LEFT)
    qtbot.waitUntil(lambda: window.session.checked_spec is not None, timeout=LONG)

    # The model by its chooser, the epochs by typing.
    qtbot.mouseClick(window.workflow.headers[2], LEFT)
    chooser = next(box for box in window.model_panel.findChildren(QComboBox) if box.findText("LDVAE") >= 0)
    chooser.setFocus()
    # One letter: what is typed after a pause begins a new search, and the form is built anew in between.
    qtbot.keyClicks(chooser, "L")
    assert window.session.spec.model.kind == "ldvae"
    qtbot.mouseClick(window.workflow.headers[4], LEFT)
    field = window.training_panel.form.row("training.max_epochs").editor.findChild(QLineEdit)
    field.setFocus()
    field.selectAll()
    qtbot.keyClicks(field, "60")
    qtbot.keyClick(field, Qt.Key.Key_Return)
    stopping = window.training_panel.form.row("training.early_stopping").editor
    box = stopping if isinstance(stopping, QCheckBox) else stopping.findChild(QCheckBox)
    if box.isChecked():
        box.setFocus()
        qtbot.keyClick(box, Qt.Key.Key_Space)
    qtbot.waitUntil(lambda: window.session.checked_spec == window.session.spec, timeout=LONG)
    qtbot.mouseClick(window.workflow.train, LEFT)
    qtbot.waitUntil(lambda: window.watching.results is not None and not window.training.active, timeout=LONG)
    folder = window.watching.shown

    # Loadings: the best gene of the first dimension is the file's.
    window.actions_by_id["view.loadings"].trigger()
    view = window.centre.view("loadings")
    qtbot.waitUntil(lambda: view.loadings is not None, timeout=LONG)
    table = pd.read_csv(folder / "results" / "loadings.csv", index_col="feature")
    assert view.loadings.features[view._bars[0]] == table["Z_0"].idxmax()

    # Two groups with the lasso.
    window.actions_by_id["view.embedding"].trigger()
    panel = window.embedding.panels()[1]
    chosen = {}
    differential = window.centre.view("differential")
    for group, level in (("group1", "Mono"), ("group2", "B")):
        window.actions_by_id["view.embedding"].trigger()
        if not window.embedding.bar.lasso.isChecked():
            qtbot.mouseClick(window.embedding.bar.lasso, LEFT)
        qtbot.waitUntil(panel.canvas.isVisible)
        drag_around(qtbot, window, panel, level)
        qtbot.waitUntil(lambda: len(window.centre.selection) >= 3, timeout=20_000)
        chosen[group] = window.centre.selection.copy()
        window.actions_by_id["view.differential"].trigger()
        qtbot.waitUntil(lambda: differential.message() == "", timeout=LONG)
        picker = getattr(differential, group)
        picker.what.setCurrentIndex(0)
        qtbot.mouseClick(picker.use, LEFT)
        window.actions_by_id["analyse.select_none"].trigger()
    first, second = differential.rows()
    assert set(first) == set(chosen["group1"])
    assert set(second) == set(chosen["group2"])
    qtbot.mouseClick(differential.start, LEFT)
    qtbot.waitUntil(lambda: differential._task is None, timeout=LONG)
    assert differential.shown is not None, differential.problem.text()
    kept = pd.read_csv(folder / "results" / "differential" / f"{differential.shown.name}.csv", index_col="feature")
    assert len(kept) == 500
    # Of the genes that are counted often, what the model finds higher in a group has, for the most part, more counts there.
    often = kept[kept["raw_mean1"] + kept["raw_mean2"] > 1]
    more = often["raw_normalized_mean1"] > often["raw_normalized_mean2"]
    assert len(often) > 20
    assert ((often["lfc_mean"] > 0) == more).mean() > 0.7

    # Volcano as PDF, table as CSV.
    window.actions_by_id["file.figure"].trigger()
    dialog = window.figure_dialog
    assert dialog.what() == "volcano"
    qtbot.waitUntil(lambda: not dialog.findChild(Preview).picture().isNull(), timeout=LONG)
    pdf = tmp_path / "volcano.pdf"
    dialog._ask_path = lambda _suggested: str(pdf)
    save = next(button for button in dialog.findChildren(QPushButton) if button.text().startswith("Save"))
    with qtbot.waitSignal(dialog.saved, timeout=LONG):
        qtbot.mouseClick(save, LEFT)
    assert pdf.read_bytes().startswith(b"%PDF")
    dialog.close()
    out = tmp_path / "de.csv"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_, **__: (str(out), ""))
    qtbot.mouseClick(differential.csv_button, LEFT)
    qtbot.waitUntil(lambda: out.is_file() and not window.tasks.busy(), timeout=LONG)
    written = pd.read_csv(out, index_col="feature").loc[kept.index]
    np.testing.assert_allclose(written["lfc_mean"], kept["lfc_mean"], rtol=1e-9)
