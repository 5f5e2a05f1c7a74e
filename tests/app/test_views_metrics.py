"""The Metrics view: what it shows is what is in the files, a run is measured there, and a point and a row are one."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import QFileDialog
from synthetic_runs import example_integration
from window_support import show_run

from cellweave.app import theme
from cellweave.app.state.measured import read_measured
from cellweave.app.views.metrics import loss_of_biology
from cellweave.app.views.metricsplot import axis_range

LEFT = Qt.MouseButton.LeftButton


def measured(folder, **changes):
    """Give a run metrics as the analysis writes them."""
    tree = example_integration()
    tree["values"]["latent"].update(changes)
    (folder / "results" / "integration.json").write_text(json.dumps(tree))


@pytest.fixture
def open_view(qtbot, window):
    def call(folder):
        show_run(qtbot, window, folder)
        window.show_view("metrics")
        found = window.centre.view("metrics")
        qtbot.waitUntil(lambda: found.results is not None and found.results.folder == folder and not found.message(), timeout=30_000)
        return found

    return call


@pytest.fixture
def both(trained):
    measured(trained["vae"])
    measured(trained["ldvae"], batch_score=0.5, bio_score=0.6, scib_total=0.56)
    return trained


def test_every_run_and_one_baseline_are_shown(open_view, both):
    view = open_view(both["vae"])
    titles = [each.title for each in view.rows]
    assert len(titles) == 3
    assert titles[-1] == "Without integration · cells.h5ad"
    values = view.table.table
    shown = {values.index(line, 0).data(): float(values.index(line, 1).data()) for line in range(3)}
    assert shown == {"small vae · vae-01": 0.778, "small ldvae · ldvae-01": 0.56, "Without integration": 0.551}
    assert [values.columns[number].title for number in (1, 2, 3)] == ["Total", "Batch mixing", "Biology kept"]
    assert view.shading.bold == {0}, "the shown run stands out"
    places = view.plot.points()
    assert places[0].x() > places[1].x() > places[2].x(), "batches mix more to the right"
    assert places[0].y() < places[2].y() < places[1].y(), "more biology is kept further up"


def test_a_point_and_a_row_are_one(qtbot, window, open_view, both):
    view = open_view(both["vae"])
    qtbot.mouseClick(view.plot, LEFT, pos=view.plot.points()[1].toPoint())
    assert view.table.current() == 1
    view.table.choose(2)
    assert view.plot._marked == 2
    view.plot.setFocus()
    for _ in range(2):
        qtbot.keyClick(view.plot, Qt.Key.Key_Right)
    assert view.table.current() == 0
    assert "small vae" in view.plot.accessibleDescription()
    qtbot.mouseMove(view.plot, QPoint(1, 1))
    view._open(1)
    qtbot.waitUntil(lambda: view.results is not None and view.results.folder == both["ldvae"], timeout=30_000)


def test_shades_rise_with_the_values_and_text_stays_readable(open_view, both):
    view = open_view(both["vae"])
    model = view.table.table
    by_value = sorted(range(3), key=lambda line: float(model.index(line, 1).data()))
    shares = [view.shading.share(model.index(line, 1)) for line in by_value]
    assert shares[0] == 0
    assert shares[-1] == 1
    assert shares == sorted(shares)
    assert view.shading.share(model.index(0, 0)) is None
    for name in ("light", "dark"):
        look = theme.load_theme(name)
        ground, ink = look.shade("accent", "panel", 0.38), look.color("text")
        assert contrast(ground, ink) > 4.5


def test_only_runs_on_the_same_data_are_compared_by_tint(open_view, both):
    tree = json.loads((both["ldvae"] / "results" / "integration.json").read_text())
    tree["columns"] = {"batch": "sample", "labels": "cell_type"}
    (both["ldvae"] / "results" / "integration.json").write_text(json.dumps(tree))
    view = open_view(both["vae"])
    model = view.table.table
    lines = {model.source_row(line): line for line in range(model.rowCount())}
    assert [each.baseline for each in view.rows] == [False, False, True, True]
    shares = [view.shading.share(model.index(lines[row], 1)) for row in range(4)]
    assert shares == [1.0, 1.0, 0.0, 0.0], "each within its own columns"
    assert view.plot._alike == {0, 2}


def test_a_run_that_is_not_in_the_plot_is_named(open_view, both):
    tree = json.loads((both["vae"] / "results" / "integration.json").read_text())
    for values in tree["values"].values():
        values.pop("bio_score", None)
    (both["vae"] / "results" / "integration.json").write_text(json.dumps(tree))
    assert "small vae · vae-01 is not in the plot" in open_view(both["vae"]).said.text()


def test_a_run_whose_folder_is_gone_is_said_at_the_place(qtbot, window, open_view, trained, monkeypatch):
    view = open_view(trained["vae"])
    monkeypatch.setattr(window, "show_error", lambda *_: pytest.fail("no dialog"))
    shutil.rmtree(trained["vae"])
    qtbot.mouseClick(view.compute, LEFT)
    assert not view.compute.isEnabled()
    qtbot.waitUntil(view.compute.isEnabled, timeout=120_000)
    assert view.said.isVisible()
    assert "has not been measured yet" not in view.said.text()


def contrast(a, b):
    """Contrast of two colours (WCAG 2.1)."""

    def luminance(colour):
        parts = np.array(colour.getRgbF()[:3])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_less_biology_than_without_integration_is_said(open_view, both):
    assert "over-corrected" in open_view(both["ldvae"]).said.text()
    said = open_view(both["vae"]).said.text()
    assert "over-corrected" not in said
    assert "3 of 500 cells have no label" in said


def test_a_run_that_mixes_no_better_is_not_called_over_corrected():
    base = {"bio_score": 0.59, "batch_score": 0.33}
    assert "over-corrected" in loss_of_biology({"bio_score": 0.5, "batch_score": 0.4}, base)
    said = loss_of_biology({"bio_score": 0.46, "batch_score": 0.22}, base)
    assert "over-corrected" not in said and "more epochs" in said
    assert "over-corrected" in loss_of_biology({"bio_score": 0.46}, {"bio_score": 0.59})


def test_a_run_is_measured_where_it_has_no_metrics(qtbot, window, open_view, trained):
    view = open_view(trained["vae"])
    assert "has not been measured yet" in view.said.text()
    assert view.figure() is None
    assert (view.batch.currentText(), view.labels.currentText()) == ("batch", "cell_type")
    assert view.batch.findText("sample") >= 0
    view.labels.setCurrentIndex(view.labels.findText("none"))
    qtbot.mouseClick(view.compute, LEFT)
    assert not view.compute.isEnabled()
    qtbot.waitUntil(lambda: len(view.rows) == 2 and view.compute.isEnabled(), timeout=120_000)
    tree = json.loads((trained["vae"] / "results" / "integration.json").read_text())
    assert tree["columns"] == {"batch": "batch"}, "no labels were chosen, though the run has some"
    assert view.rows[0].values["ilisi"] == tree["values"]["latent"]["ilisi"]
    assert "The plot needs both batch and labels." in view.said.text()
    assert view.compute.text() == "Compute again"
    assert view.figure()["what"] == "metrics"


def test_measuring_is_cancelled_and_needs_a_column(qtbot, window, open_view, trained):
    view = open_view(trained["vae"])
    view.batch.setCurrentIndex(0)
    view.labels.setCurrentIndex(0)
    qtbot.mouseClick(view.compute, LEFT)
    assert view.compute.isEnabled(), "nothing is measured without a column"
    view.batch.setCurrentIndex(view.batch.findText("batch"))
    qtbot.mouseClick(view.compute, LEFT)
    assert view.context.cancel()
    qtbot.waitUntil(view.compute.isEnabled, timeout=120_000)
    assert not (trained["vae"] / "results" / "integration.json").exists()


def test_the_table_is_taken_away(qtbot, window, open_view, both, tmp_path, monkeypatch):
    view = open_view(both["vae"])
    out = tmp_path / "metrics.csv"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_, **__: (str(out), ""))
    qtbot.mouseClick(view.csv_button, LEFT)
    qtbot.waitUntil(lambda: not window.tasks.busy() and out.is_file(), timeout=30_000)
    written = pd.read_csv(out)
    assert len(written) == 3
    assert 0.7776 in written.iloc[:, 1].to_numpy()
    assert view.figure_options() == {"runs": (str(both["ldvae"]),)}


def test_only_the_same_data_and_columns_share_a_baseline(both):
    tree = example_integration()
    tree["columns"] = {"batch": "sample", "labels": "cell_type"}
    (both["ldvae"] / "results" / "integration.json").write_text(json.dumps(tree))
    rows = read_measured([both["vae"], both["ldvae"], both["vae"]])
    assert [row.baseline for row in rows] == [False, False, True, True]
    assert len({row.data for row in rows}) == 2
    (both["vae"] / "results" / "integration.json").write_text("{")
    assert len(read_measured([both["vae"]])) == 0


@pytest.mark.parametrize("values", [[], [0.5], [0.0, 1.0], [0.61, 0.62], [0.3, 0.7, 0.9]])
def test_axes_hold_their_values(values):
    low, high, step = axis_range(values)
    assert 0 <= low < high <= 1.0001
    assert all(low <= value <= high for value in values)
    assert 1 <= round((high - low) / step) <= 8
