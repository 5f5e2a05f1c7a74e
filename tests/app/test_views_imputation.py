"""The Imputation view and the Masks view: what they show, what they say, what they hand on."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from qtpy.QtCore import QPoint, QRectF, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QLabel, QToolButton

from cellweave.app.views.maskview import MaskPicture
from cellweave.app.views.truthplot import SpreadPlot, TruthPlot, nice_ticks
from cellweave.core.analysis.mask_pattern import MaskPattern
from cellweave.core.export.imputation_parts import reliability_picture, truth_picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A short run of scVAEIT on the example, from which a modality of a batch was held out."""
    from cellweave.core.analysis.imputation import evaluate
    from cellweave.core.analysis.imputation_choice import ImputationQuestion
    from cellweave.core.analysis.imputation_scores import save
    from cellweave.core.example import EXAMPLE_BATCH, example_path
    from cellweave.core.query.opened import open_run
    from cellweave.core.runs.execute import execute
    from cellweave.core.spec import RunSpec

    folder = tmp_path_factory.mktemp("view") / "run"
    changes = {
        "model.n_latent": 4, "model.hidden": ("8",), "model.block_units": {"rna": "8", "adt": "8"}, "data.paths": (str(example_path()),),
        "data.switched_off": ({"column": "batch", "level": "p3_0", "modality": "adt"},), "covariates.batch": EXAMPLE_BATCH, "training.max_epochs": 2,
        "training.threads": 1, "training.device": "cpu", "training.preview_every": 0, "analysis.umap": False, "analysis.clusters": False,
        "analysis.scores": False, "analysis.baseline": False,
    }  # fmt: skip
    execute(RunSpec().with_changes({"model.kind": "vaeit"}).with_changes(changes), folder)
    save(folder / "results", evaluate(open_run(folder), ImputationQuestion("held-out")))
    return folder


@pytest.fixture
def window(make_window, folder, qtbot):
    made = make_window()
    made.runs.open(folder)
    qtbot.waitUntil(lambda: made.watching.results is not None and made.watching.results.folder == folder, timeout=20_000)
    return made


def test_what_was_judged_is_shown_beside_the_mean(window, qtbot):
    window.show_view("imputation")
    view = window.centre.view("imputation")
    qtbot.waitUntil(lambda: view.plot.picture is not None, timeout=20_000)
    assert view.modality.currentData() == "adt" and view.table.table.size == 224
    words = [view.numbers.itemAt(place).widget().text() for place in range(view.numbers.count())]
    assert {"Imputed", "Feature mean", "Mean squared error"} <= set(words)
    assert f"{view.found.overall['adt']['mse']:.3f}" in words and f"{view.found.overall['adt']['mse_baseline']:.3f}" in words
    assert "400 of the 400 cells" in view.notes.text()
    assert view.plot.picture.density is not None and view.plot.picture.n == 400 * 224


def test_a_feature_of_the_table_is_shown_with_its_mean(window, qtbot):
    window.show_view("imputation")
    view = window.centre.view("imputation")
    qtbot.waitUntil(lambda: view.plot.picture is not None, timeout=20_000)
    source = view.table.table.source_row(3)
    name = view.table.table.values("feature")[source]
    view.table.view.selectRow(3)
    qtbot.waitUntil(lambda: view.plot.picture.n == 400, timeout=20_000)
    assert view.plot_title.text() == name and np.isfinite(view.plot.baseline)
    assert view.spread.marked == pytest.approx(float(view.table.table.values("pearson")[source]), nan_ok=True)
    view.every.click()
    qtbot.waitUntil(lambda: view.plot.picture.n == 400 * 224, timeout=20_000)
    assert np.isnan(view.spread.marked)


def test_export_figure_gives_the_figure_of_what_is_shown(window, qtbot, tmp_path):
    """Through the action: modality and feature of the view, the dialog's preview, and an SVG of it."""
    window.show_view("imputation")
    view = window.centre.view("imputation")
    qtbot.waitUntil(lambda: view.plot.picture is not None, timeout=20_000)
    assert view.figure() == {"what": "imputation", "imputation_modality": "ADT", "imputation_feature": ""} and view.figure_button.isEnabled()
    view.table.view.selectRow(2)
    qtbot.waitUntil(lambda: view.plot.picture.n == 400, timeout=20_000)
    window.actions_by_id["file.figure"].trigger()
    dialog = window.figure_dialog
    assert dialog.what() == "imputation"
    assert (dialog.options().imputation_modality, dialog.options().imputation_feature) == ("ADT", view.feature)
    qtbot.waitUntil(lambda: not dialog.preview.picture().isNull(), timeout=60_000)
    dialog._ask_path = lambda start: str(tmp_path / "figure.svg")
    with qtbot.waitSignal(dialog.saved, timeout=60_000):
        qtbot.mouseClick(dialog._save, Qt.MouseButton.LeftButton)
    words = (tmp_path / "figure.svg").read_text(encoding="utf-8")
    score = float(view.table.table.values("pearson")[view.table.current()])
    assert f"ADT, {view.feature}: Pearson {score:.3f}".replace("-", "\N{MINUS SIGN}") in words and "Imputed (log CP10k)" in words
    dialog.close()
    view.every.click()
    assert view.figure()["imputation_feature"] == ""
    view.figure_button.click()
    assert window.figure_dialog.what() == "imputation" and window.figure_dialog.options().imputation_feature == ""
    window.figure_dialog.close()
    view._take(None)
    assert view.figure() is None and not view.figure_button.isEnabled()
    before = window.figure_dialog
    window.actions_by_id["file.figure"].trigger()
    assert window.figure_dialog is before, "no other figure opens in its place"
    assert "Press Judge" in window.centre.notice.words.text()


def test_a_slow_picture_of_all_values_does_not_replace_that_of_a_feature(window, qtbot, monkeypatch):
    """Back to all, then at once a feature: the picture of all values takes longer and comes last."""
    from cellweave.app.views import imputation

    window.show_view("imputation")
    view = window.centre.view("imputation")
    qtbot.waitUntil(lambda: view.plot.picture is not None, timeout=20_000)
    drawn, go_on = [], threading.Event()

    def slowly(imputed, truth):
        if len(imputed) > 400:
            assert go_on.wait(20)
        found = truth_picture(imputed, truth)
        drawn.append(found.n)
        return found

    monkeypatch.setattr(imputation, "truth_picture", slowly)
    view.choose(-1)
    view.choose(5)
    qtbot.waitUntil(lambda: view.plot.picture.n == 400, timeout=20_000)
    go_on.set()
    qtbot.waitUntil(lambda: drawn == [400, 400 * 224], timeout=20_000)
    qtbot.waitUntil(lambda: not window.tasks.busy(), timeout=20_000)
    assert view.plot.picture.n == 400 and view.plot_title.text() == view.table.table.values("feature")[5]


def test_the_scores_are_there_at_once_after_judging_anew(window, qtbot):
    """The small table of scores keeps its labels: those made anew were blank until Qt came to show them."""
    window.show_view("imputation")
    view = window.centre.view("imputation")
    qtbot.waitUntil(lambda: view.plot.picture is not None, timeout=20_000)
    own, baseline = view.found.overall["adt"]["mse"], view.found.overall["adt"]["mse_baseline"]
    view._take(view.found)
    shown = [label.text() for label in view.halves.findChildren(QLabel) if label.isVisible()]
    assert {f"{own:.3f}", f"{baseline:.3f}", "Mean squared error", "Pearson, median of features"} <= set(shown)
    assert "AUROC, all values" not in shown, "only of values of 0 and 1"


def test_judging_anew_replaces_what_is_shown_and_is_kept(window, qtbot, folder):
    window.show_view("imputation")
    view = window.centre.view("imputation")
    qtbot.waitUntil(lambda: view.found is not None, timeout=20_000)
    view.hide_choice.setCurrentIndex(view.hide_choice.findData("entries"))
    assert view.share.isVisibleTo(view)
    view.share.setValue(30)
    view.judge.click()
    assert not view.judge.isEnabled()
    qtbot.waitUntil(lambda: view.judge.isEnabled() and view.found.question.hide == "entries", timeout=60_000)
    assert view.found.question.share == pytest.approx(0.3) and view.modality.count() == 2
    from cellweave.core.analysis.imputation_scores import load

    assert load(folder / "results").question == view.found.question


def test_what_is_judged_is_chosen_in_a_form(window, qtbot, folder):
    """Modality, what is looked at, features, batches; the button says how much differs, and going back is one click."""
    window.show_view("imputation")
    view = window.centre.view("imputation")
    qtbot.waitUntil(lambda: view.found is not None, timeout=20_000)
    view.hide_choice.setCurrentIndex(view.hide_choice.findData("modality"))
    qtbot.mouseClick(view.choices, Qt.MouseButton.LeftButton)
    dialog = view.dialog
    assert set(dialog.form.paths()) == {"modality", "given", "features", "batches", "held_out_cells", "most_cells", "seed"}
    assert dialog.form.row("batches").editor._names == ("p1_0", "p2_0", "p3_0", "p4_0")
    assert dialog.form.row("given").editor._names == ("rna", "adt")
    feature = str(view.found.comparisons["adt"].features[3])
    for path, words in (("modality", "adt"), ("given", "rna"), ("features", feature), ("batches", "p4_0")):
        editor = dialog.form.row(path).editor
        editor.inner.setText(words)
        editor.inner.editingFinished.emit()
    assert view.choices.text() == "Choose… (4)"
    qtbot.mouseClick(dialog.start, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: view.judge.isEnabled() and view.found.question.batches == ("p4_0",), timeout=60_000)
    question = view.found.question
    assert (question.hide, question.modality, question.given, question.features) == ("modality", "adt", ("rna",), (feature,))
    assert view.table.table.values("feature").tolist() == [feature]
    assert "Looked at: rna. Batches: p4_0." in view.notes.text()
    qtbot.mouseClick(view.choices, Qt.MouseButton.LeftButton)
    assert view.dialog.form.row("batches").value() == ("p4_0",)
    view.dialog.usual.click()
    assert view.choices.text() == "Choose…" and view.options == type(view.options)()
    view.dialog.close()


@pytest.mark.parametrize("size", [(1280, 720), (1440, 900), (1920, 1000)])
def test_the_table_of_features_fits_its_width(window, qtbot, size):
    """Columns make room by their rank; the name takes what is left, and its tooltip has every number."""
    window.resize(*size)
    window.show_view("imputation")
    view = window.centre.view("imputation")
    qtbot.waitUntil(lambda: view.plot.picture is not None, timeout=20_000)
    table = view.table.view
    shown = [number for number in range(table.model().columnCount()) if not table.isColumnHidden(number)]
    assert sum(table.columnWidth(number) for number in shown) <= table.viewport().width()
    assert table.horizontalScrollBar().maximum() == 0
    names = [view.table.table.columns[number].name for number in shown]
    assert names[:2] == ["feature", "pearson"]
    metrics = table.horizontalHeader().fontMetrics()
    for number in shown[1:]:
        assert metrics.horizontalAdvance(view.table.table.columns[number].title) < table.columnWidth(number)
    tip = table.model().index(0, 0).data(Qt.ItemDataRole.ToolTipRole)
    assert all(f"{column.title}: " in tip for column in view.table.table.columns[1:])


def test_columns_come_back_where_there_is_room(qtbot):
    from cellweave.app.views.imputation import AUROC, COLUMNS
    from cellweave.app.views.tables import DataTable

    table = DataTable("Scores", "Search", fit=True)
    qtbot.addWidget(table)
    columns = [COLUMNS[0], AUROC, *COLUMNS[1:]]
    values = {column.name: np.array(["chr1:179016749-179017621"] * 3) if column.kind == "text" else np.arange(3) / 7 for column in columns}
    counts = []
    for width in (240, 350, 500, 900):
        table.resize(width, 300)
        table.show()
        table.set_table(columns, values, text_column="feature")
        counts.append(sum(not table.view.isColumnHidden(number) for number in range(len(columns))))
    assert counts == sorted(counts) and counts[0] == 3 and counts[-1] == len(columns)
    table.resize(240, 300)
    assert sum(not table.view.isColumnHidden(number) for number in range(len(columns))) == 3


def test_a_search_is_taken_back_whole_with_other_columns(qtbot):
    """The button that clears the field goes with the words, and every row is shown."""
    from cellweave.app.views.tables import DataTable, TableColumn

    table = DataTable("Scores", "Search", fit=True)
    qtbot.addWidget(table)
    table.show()
    values = {"feature": np.array(["a", "b", "c"], object)}
    table.set_table([TableColumn("feature", "Feature")], values, text_column="feature")
    button = table.search.findChild(QToolButton)
    qtbot.keyClicks(table.search, "b")
    qtbot.waitUntil(lambda: button.property("opacity") == 1)
    assert table.table.rowCount() == 1
    table.set_table([TableColumn("feature", "Feature")], values, text_column="feature")
    assert table.table.rowCount() == 3 and table.search.text() == "" and table.count.text() == "3"
    qtbot.waitUntil(lambda: button.property("opacity") == 0)


def test_a_score_without_one_of_the_mean_is_not_said_to_be_better(window, qtbot):
    """A single feature: its mean does not vary, so that it has no correlation."""
    window.show_view("imputation")
    view = window.centre.view("imputation")
    qtbot.waitUntil(lambda: view.plot.picture is not None, timeout=20_000)
    view._fill_numbers({"mse": 0.5, "mse_baseline": 0.6, "pearson": 0.9, "pearson_baseline": float("nan")})
    assert view.numbers_of["mse"][1].font().bold()
    assert not view.numbers_of["pearson"][1].font().bold() and view.numbers_of["pearson"][2].text() == ""


def test_the_masks_of_a_run(window, qtbot):
    window.show_view("masks")
    view = window.centre.view("masks")
    qtbot.waitUntil(lambda: view.picture.pattern is not None, timeout=20_000)
    assert view.picture.pattern.rows == ("p1_0", "p2_0", "p3_0", "p4_0")
    assert "of all values were measured" in view.whole.text()
    view.which.setCurrentIndex(1)
    assert view.picture.hiding and "hidden in a step" in view.whole.text()
    view.picture.setFocus()
    QTest.keyClick(view.picture, Qt.Key.Key_Down)
    QTest.keyClick(view.picture, Qt.Key.Key_Right)
    assert view.picture.at == (0, 1) and view.field.text() == "p1_0, adt: not measured"


def test_a_field_under_the_mouse_is_the_one_that_is_drawn(qtbot):
    picture = MaskPicture()
    qtbot.addWidget(picture)
    measured = np.array([[1.0, 0.0, 0.5], [0.2, 1.0, 1.0]])
    names = ("rna", "atac chr1", "atac chr2")
    picture.set_pattern(MaskPattern(("a", "b"), np.array([10, 20]), names, ("rna", "atac", "atac"), np.array([50, 9, 4]), measured, None))
    picture.resize(600, 200)
    for row in range(2):
        for column in range(3):
            assert picture.field_at(picture._field(row, column).center().toPoint()) == (row, column)
    assert picture.field_at(QPoint(2, 2)) == (-1, -1)
    assert picture.words(1, 0) == "b, rna: 20% of 50 features measured"
    assert not picture.grab().toImage().isNull()


def test_pictures_of_values():
    rng = np.random.default_rng(0)
    few = truth_picture(np.array([1.0, np.nan, 3.0]), np.array([2.0, 1.0, 2.5]))
    assert few.n == 2 and few.density is None
    many = truth_picture(rng.random(10_000), rng.random(10_000))
    assert many.density is not None and many.density.max() == 1.0 and many.imputed is None
    p = rng.random(20_000)
    found = reliability_picture(p, rng.random(20_000) < p)
    np.testing.assert_allclose(found.imputed, found.truth, atol=0.06)
    assert truth_picture(np.zeros(0), np.zeros(0)).n == 0
    assert nice_ticks(0.0, 9.3) == [0.0, 2.0, 4.0, 6.0, 8.0]


def test_plots_draw_whatever_they_are_given(qtbot):
    plot, spread = TruthPlot(), SpreadPlot()
    for widget in (plot, spread):
        qtbot.addWidget(widget)
        widget.resize(300, 260)
        assert not widget.grab().toImage().isNull()
    plot.set_picture(truth_picture(np.arange(9.0), np.arange(9.0)), ("a", "b"), 3.0)
    spread.set_values(np.array([0.1, np.nan, 0.7]), "Pearson", -0.2, 1.0)
    spread.mark(0.7)
    assert spread.median == pytest.approx(0.4)
    before = plot.grab().toImage()
    plot.set_picture(truth_picture(np.arange(9.0), np.arange(9.0)[::-1]), ("a", "b"), 3.0)
    assert plot.grab().toImage() != before
    assert not spread.grab().toImage().isNull()
    numbers = spread.numbers(QRectF(8, 20, 284, 180))
    assert numbers[0][0] == "\N{MINUS SIGN}0.2"
    room = spread.fontMetrics().horizontalAdvance
    assert all(place.left() >= 0 and place.right() <= 300 and place.width() > room(words) for words, place in numbers), "no number is cut at an end"


def test_what_was_switched_off_without_anything_else_cannot_be_chosen(window, qtbot):
    window.show_view("imputation")
    view = window.centre.view("imputation")
    qtbot.waitUntil(lambda: view.plot.picture is not None, timeout=20_000)
    assert view.hide_choice.model().item(0).isEnabled()
    view._took(None, "RNA of 'p1_0' was all that was measured in these cells.", False)
    assert not view.hide_choice.model().item(0).isEnabled()
    assert view.hide_choice.currentData() == "modality"
    assert view.words.isVisibleTo(view)
    assert view.words.text().startswith("RNA of 'p1_0' was all")


# ---------------------------------------------------------------------- asking and mapping


def test_the_model_is_asked_what_it_imputes_given_one_modality(window, qtbot, folder):
    import mudata

    window.actions_by_id["analyse.ask"].trigger()
    dialog = window.asking.dialog
    assert [question.name for question in dialog.questions] == ["imputed", "latent_given", "expression"]
    dialog._changed({"given": ("rna",), "draws": 2, "scale": "training"})
    qtbot.mouseClick(dialog.start, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: dialog._task is None, timeout=60_000)
    assert dialog.answer is not None, dialog.said.text()
    found = mudata.read_h5mu(dialog.answer.path)
    assert found.mod["adt"].uns["imputed"]["given"] == ["rna"] and (found.mod["adt"].layers["sd"][:10] > 0).any()
    dialog.list.setCurrentRow(1)
    dialog._changed({"given": ("adt",)})
    qtbot.mouseClick(dialog.start, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: dialog._task is None, timeout=60_000)
    assert "given ADT. 800 cells have none of it and are left out." in dialog.said.text()
    dialog.close()


def test_new_data_are_mapped_through_the_dialog(window, qtbot, folder, tmp_path):
    import mudata

    from cellweave.core.example import example_path

    new = mudata.read_h5mu(example_path())
    new = new[(new.obs["batch"] == "p4_0").to_numpy()].copy()
    for part in (new, new["rna"], new["adt"]):
        part.obs["batch"] = "p9_0"
    new.write_h5mu(tmp_path / "new.h5mu")
    window.actions_by_id["analyse.map"].trigger()
    dialog = window.asking.mapping
    dialog.set_paths([str(tmp_path / "new.h5mu")])
    qtbot.waitUntil(lambda: bool(dialog.checks), timeout=60_000)
    assert dialog.start.isEnabled(), dialog.said.text()
    assert any("New in 'batch', and learned: p9_0." in check.text for check in dialog.checks)
    dialog.epochs.setValue(2)
    qtbot.mouseClick(dialog.start, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: window.training.active, timeout=60_000)
    qtbot.waitUntil(lambda: not window.training.active and window.watching.results is not None and window.watching.results.folder != folder, timeout=120_000)
    spec = window.watching.results.spec
    assert spec.reference == str(folder) and spec.model.kind == "vaeit"
    latent = np.load(window.watching.results.folder / "results" / "latent.npy")
    assert latent.shape == (400, 4) and np.isfinite(latent).all()


def test_the_rows_of_the_mosaic_may_be_cell_types(make_window, qtbot):
    from cellweave.core.example import example_path

    window = make_window()
    panel = window.data_panel
    window.opening.open_path(str(example_path()))
    qtbot.waitUntil(lambda: window.session.checked_spec is not None, timeout=60_000)
    place = panel.mosaic_rows.findData("celltype")
    assert panel.mosaic_rows.count() == 2
    assert panel.mosaic_rows.currentData() == "batch" and place > 0
    panel.mosaic_rows.setCurrentIndex(place)
    panel.mosaic.boxes["B", "adt"].click()
    off = window.session.spec.data.switched_off
    assert [(item.column, item.level, item.modality) for item in off] == [("celltype", "B", "adt")]
    qtbot.waitUntil(lambda: panel.mosaic_rows.currentData() == "celltype" and not panel.mosaic.boxes["B", "adt"].isChecked(), timeout=60_000)
