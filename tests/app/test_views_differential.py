"""The Differential view: groups by click, comparison in a thread, table and volcano linked, kept in the run folder."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
from qtpy.QtCore import QPointF, Qt
from qtpy.QtWidgets import QFileDialog
from window_support import show_run

from cellweave.app.views.differential import distinct_titles
from cellweave.app.views.volcanoplot import VolcanoPlot
from cellweave.core.export.differential_files import KeptComparison, Volcano
from cellweave.core.query.comparison_settings import HEEDED, ComparisonSettings

LEFT = Qt.MouseButton.LeftButton
LONG = 60_000


@pytest.fixture
def view(qtbot, window, trained):
    show_run(qtbot, window, trained["vae"])
    window.show_view("differential")
    found = window.centre.view("differential")
    qtbot.waitUntil(lambda: found.message() == "", timeout=LONG)
    found._changed({"n_samples": 200})
    return found


def compared(qtbot, view):
    qtbot.mouseClick(view.start, LEFT)
    qtbot.waitUntil(lambda: view._task is None, timeout=LONG)
    assert view.shown is not None, view.problem.text()
    return view.shown


def test_levels_of_a_column_against_the_rest(qtbot, window, view, trained):
    assert not view.start.isEnabled()
    assert "Group 1 has no cells" in view.problem.text()
    view.group1.choose_levels("cell_type", ("t1",))
    first, second = view.rows()
    codes = window.watching.cells.columns["cell_type"].codes
    assert first.tolist() == np.flatnonzero(codes == 1).tolist()
    assert len(first) + len(second) == 240
    kept = compared(qtbot, view)
    folder = trained["vae"] / "results" / "differential"
    table = pd.read_csv(folder / f"{kept.name}.csv", index_col="feature")
    settings = json.loads((folder / f"{kept.name}.json").read_text())["settings"]
    assert settings["group1"] == {"column": "cell_type", "levels": ["t1"]}
    assert settings["group2"] == {"rest": True}
    assert settings["n_samples"] == 200
    assert view.table.table.size == len(table) == 40
    shown = view.table.table.values("lfc_mean")
    np.testing.assert_allclose(shown, table["lfc_mean"], rtol=1e-12)
    # The first row is the surest gene.
    assert view.table.table.source_row(0) == int(np.argmax(table["proba_de"].to_numpy()))


def test_the_selected_cells_are_used_and_groups_may_not_overlap(qtbot, window, view):
    window.embedding.select(np.arange(20))
    qtbot.mouseClick(view.group1.use, LEFT) if view.group1.use.isVisible() else view.group1.use_selected()
    assert view.group1.size.text() == "20 cells"
    window.embedding.select(np.arange(15, 60))
    view.group2.use_selected()
    assert "5 cells are in both groups" in view.problem.text()
    assert not view.start.isEnabled()
    window.embedding.select(np.arange(30, 32))
    view.group2.use_selected()
    assert "only 2 cells" in view.problem.text()
    view.group2.choose_rest()
    assert view.start.isEnabled()
    assert view.problem.text() == ""
    kept = compared(qtbot, view)
    assert kept.title == "group 1 (20 cells) vs Rest"
    assert kept.settings["group1"]["rows"] == list(range(20))


def test_a_gene_is_one_row_one_point_and_the_colour_of_the_cells(qtbot, window, view):
    view.group1.choose_levels("batch", ("b0",))
    compared(qtbot, view)
    view.plot.chosen.emit(7)
    assert view.table.current() == 7
    assert len(view.plot._ring.data) == 1
    name = view.table.table.values("feature")[7]
    qtbot.waitUntil(lambda: f"gene:{name}" in window.embedding.shown_columns(), timeout=LONG)
    view.table.search.setText("gene1")
    assert view.plot._faded.sum() == 40 - view.table.table.rowCount()
    other = view.table.table.source_row(1)
    view.table.choose(other)
    assert view.plot._current == other


def test_unknown_genes_are_said_at_the_place(qtbot, view):
    view.group1.choose_levels("batch", ("b0",))
    view._changed({"genes": ("gene3", "gnee4")})
    qtbot.mouseClick(view.start, LEFT)
    qtbot.waitUntil(lambda: view._task is None, timeout=LONG)
    assert "does not know 1 of the 2" in view.problem.text()
    assert view.problem.property("tone") == "bad"
    view._changed({"genes": ("gene3", "gene4")})
    assert view.problem.text() == ""
    compared(qtbot, view)
    assert sorted(view.table.table.values("feature")) == ["gene3", "gene4"]


def test_vanilla_and_pseudobulk_show_their_own_options_and_columns(qtbot, view):
    view.group1.choose_levels("condition", ("ill",))
    view._changed({"mode": "vanilla"})
    view.options.setChecked(True)
    shown = {path for path in view.form.paths() if view.form.row(path).is_shown()}
    assert "n_samples" not in shown, "advanced"
    assert "batch_correction" in shown
    assert "delta" not in shown
    compared(qtbot, view)
    assert "proba_m1" in [column.name for column in view.table.table.columns]
    assert view.plot._points.y_title == "|Bayes factor|"
    assert "called where |Bayes factor| > 3" in view.note.text()
    written = json.loads((view.results.folder / "results" / "differential" / f"{view.shown.name}.json").read_text())
    assert written["settings"]["called"] == "called where |Bayes factor| > 3"
    view._changed({"method": "pseudobulk"})
    there = find_spec("pydeseq2") is not None
    assert ("column of the samples" if there else "pip install 'cellweave[pseudobulk]'") in view.problem.text()
    view._changed({"sample": ("sample",)})
    assert view.start.isEnabled() == there
    if not there:
        return
    kept = compared(qtbot, view)
    assert kept.method == "pseudobulk"
    assert "p_adjusted" in [column.name for column in view.table.table.columns]


def test_the_options_leave_the_plot_its_room(qtbot, window, view):
    view.group1.choose_levels("condition", ("ill",))
    compared(qtbot, view)
    window.resize(1280, 720)
    view.options.setChecked(True)
    qtbot.wait(100)
    assert view.form.isVisible()
    assert view.plot.width() > 280
    assert not view.table.isVisible()
    view.options.setChecked(False)
    assert view.table.isVisible()


def test_names_in_the_plot_lie_inside_and_beside_one_another(qtbot):
    rng = np.random.default_rng(1)
    plot = VolcanoPlot()
    qtbot.addWidget(plot)
    plot.resize(300, 300)
    plot.show()
    points = Volcano(np.concatenate([rng.normal(3, 0.3, 60), [-6.0]]), np.append(rng.normal(50, 3, 60), 80.0), "x", "y", np.ones(61, bool))
    plot.set_points(points, [f"APOBEC3A_ENSG{number:08}" for number in range(61)])
    qtbot.wait(150)
    scene = [label.mapRectToScene(label.boundingRect()) for label in plot._labels]
    frame = plot._plot.getViewBox().sceneBoundingRect().adjusted(-2, -2, 2, 2)
    assert len(scene) >= 2
    for number, box in enumerate(scene):
        assert frame.contains(box)
        assert not any(box.adjusted(2, 2, -2, -2).intersects(other.adjusted(2, 2, -2, -2)) for other in scene[:number])


def test_comparisons_of_one_title_are_told_apart():
    kept = [
        KeptComparison("c", "a vs b", "pseudobulk", {"sample": ["donor"]}), KeptComparison("b", "a vs b", "pseudobulk", {"sample": ["batch", "donor"]}),
        KeptComparison("e", "a vs b"), KeptComparison("d", "a vs b"), KeptComparison("a", "c vs d"),
    ]  # fmt: skip
    assert distinct_titles(kept) == ["a vs b · pseudobulk of donor", "a vs b · pseudobulk of batch × donor", "a vs b · 2", "a vs b · 1", "c vs d"]


def test_without_the_extra_the_sentence_says_how_to_get_it(view, monkeypatch):
    from cellweave.app.views import differential

    view.group1.choose_levels("condition", ("ill",))
    monkeypatch.setattr(differential, "find_spec", lambda name: None)
    view._changed({"method": "pseudobulk", "sample": ("sample",)})
    assert "pip install 'cellweave[pseudobulk]'" in view.problem.text()
    assert not view.start.isEnabled()


def test_a_comparison_can_be_cancelled(qtbot, view, trained):
    view.group1.choose_levels("batch", ("b0",))
    view._changed({"n_samples": 400_000})
    qtbot.mouseClick(view.start, LEFT)
    assert view.stop.isVisible()
    qtbot.mouseClick(view.stop, LEFT)
    assert view.stop.text() == "Cancelling…"
    qtbot.waitUntil(lambda: view._task is None, timeout=LONG)
    assert view.start.isVisible()
    assert view.shown is None
    assert not (trained["vae"] / "results" / "differential").exists()


def test_kept_comparisons_are_listed_again_taken_over_and_removed(qtbot, window, view, trained, tmp_path, monkeypatch):
    view.group1.choose_levels("batch", ("b0",))
    view._changed({"delta": None})
    compared(qtbot, view)
    view.group1.choose_levels("cell_type", ("t0", "t2"))
    compared(qtbot, view)
    show_run(qtbot, window, trained["ldvae"])
    qtbot.waitUntil(lambda: view.message() == "" and not view.kept, timeout=LONG)
    assert view.empty_results.isVisible()
    show_run(qtbot, window, trained["vae"])
    qtbot.waitUntil(lambda: len(view.kept) == 2 and view.shown is not None, timeout=LONG)
    assert view.choice.count() == 2
    older = next(one for one in view.kept if one.title == "b0 vs Rest")
    view._open(older)
    qtbot.waitUntil(lambda: view.shown.name == older.name, timeout=LONG)
    qtbot.mouseClick(view.again, LEFT)
    assert view.group1.settings() == {"column": "batch", "levels": ["b0"]}
    assert view.settings.delta is None
    out = tmp_path / "de.csv"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_, **__: (str(out), ""))
    qtbot.mouseClick(view.csv_button, LEFT)
    qtbot.waitUntil(lambda: out.is_file() and not window.tasks.busy(), timeout=LONG)
    assert len(pd.read_csv(out)) == 40
    window.actions_by_id["file.figure"].trigger()
    assert window.figure_dialog.what() == "volcano"
    assert window.figure_dialog.options().comparison == older.name
    window.figure_dialog.close()
    qtbot.mouseClick(view.remove, LEFT)
    assert [one.title for one in view.kept] == ["t0 + t2 vs Rest"]
    assert not (trained["vae"] / "results" / "differential" / f"{older.name}.csv").exists()


def test_every_field_of_the_settings_is_heeded_somewhere():
    assert set().union(*HEEDED.values()) == set(ComparisonSettings.model_fields)


def test_thirty_thousand_genes_are_set_at_once_and_drawn_in_their_colours(qtbot):
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, 30_000), rng.exponential(1, 30_000)
    points = Volcano(x, y, "x", "y", (np.abs(x) > 1) & (y > 1))
    plot = VolcanoPlot()
    qtbot.addWidget(plot)
    plot.resize(400, 400)
    plot.show()
    plot.set_points(points, [f"gene{number}" for number in range(len(x))])
    qtbot.wait(100)
    assert sum(cloud.count for cloud in plot._clouds) == len(x)
    assert plot._clouds[1].count == int((points.called & (x > 0)).sum())
    row = int(np.argmax(np.where(points.called & (x > 0), y, 0)))  # far up, where no other point is
    at = plot._plot.mapFromScene(plot._plot.getViewBox().mapViewToScene(QPointF(x[row], y[row])))
    shade = plot._plot.grab().toImage().pixelColor(at)
    assert shade.red() > shade.blue() + 60, "called and higher in group 1"
