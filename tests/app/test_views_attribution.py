"""The Attribution view: scatter with margins, linked selection, bars by owner, live refresh, what is said where there is nothing."""

from __future__ import annotations

import csv
import io
from types import SimpleNamespace

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import QFileDialog
from window_support import show_run

from cellweave.app.state.attributed import centred, of_run, score_columns
from cellweave.app.views.attributionparts import scores_csv
from cellweave.app.views.dimensionbars import DecoderBars, DimensionBars
from cellweave.app.views.epochbar import EpochBar
from cellweave.core.example import EXAMPLE_BATCH, EXAMPLE_LABELS, example_path
from cellweave.core.runs.execute import execute
from cellweave.core.spec import RunSpec

LEFT = Qt.MouseButton.LeftButton
BASE = {
    "model.kind": "multimodal", "data.paths": str(example_path()), "covariates.batch": EXAMPLE_BATCH, "covariates.labels": EXAMPLE_LABELS,
    "training.max_epochs": 2, "training.batch_size": 256, "training.threads": 1, "training.device": "cpu", "training.early_stopping": False,
    "analysis.baseline": False, "analysis.scores": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with attribution, and with the previews of its two epochs."""
    folder = tmp_path_factory.mktemp("attribution") / "multimodal"
    execute(RunSpec().with_changes({**BASE, "training.preview_every": 1, "analysis.attribution_live": True}), folder)
    # As where a window watched it; else each window that opens it would have the epoch laid out.
    np.save(folder / "preview" / "layout-000001.npy", np.load(folder / "preview" / "latent-000001.npy")[:, :2])
    return folder


@pytest.fixture
def view(qtbot, window, run):
    show_run(qtbot, window, run)
    window.show_view("attribution")
    found = window.centre.view("attribution")
    qtbot.waitUntil(lambda: found.data is not None and not found.message(), timeout=30_000)
    return found


def test_every_cell_is_at_its_scores(view, run):
    scores = of_run(run / "results", None, None).scores
    assert view.data.size == len(view.data.rows) == int(scores.known.sum())
    both = np.isfinite(scores.score("total", "rna")) & np.isfinite(scores.score("total", "adt"))
    assert 0 < both.sum() < view.data.size, "the example is a mosaic"
    points = view.scatter.cloud.points().xy
    np.testing.assert_allclose(points[both, 0], np.log10(scores.score("total", "adt")[both]), rtol=1e-4)
    np.testing.assert_allclose(points[both, 1], np.log10(scores.score("total", "rna")[both]), rtol=1e-4)
    assert len(view.scatter.cloud.points().order) == both.sum()
    assert np.isfinite(view.embeddings[0].cloud.points().xy).all()
    assert view.scatter.accessible_words() == "Total attribution, RNA against Total attribution, ADT"
    assert view.embeddings[0].column_name() == "log2 ADT / RNA" and view.embeddings[0].column().diverging
    assert "library size at the mean of its group" in view.said.text()


def test_scores_and_modalities_are_chosen(view):
    scores = view.data.scores
    view.score.setCurrentIndex(view.score.findData("own_share"))
    assert not view.log.isEnabled()
    known = np.isfinite(scores.share("adt", "adt")) & np.isfinite(scores.share("rna", "rna"))
    np.testing.assert_allclose(view.scatter.cloud.points().xy[known, 0], scores.share("adt", "adt")[known], rtol=1e-5)
    view.up.setCurrentIndex(view.up.findData("adt"))
    points = view.scatter.cloud.points().xy
    np.testing.assert_array_equal(points[known, 0], points[known, 1])
    view.score.setCurrentIndex(view.score.findData("frobenius"))
    view.log.setChecked(False)
    np.testing.assert_allclose(view.scatter.cloud.points().xy[known, 1], scores.score("frobenius", "adt")[known], rtol=1e-5)


def test_margins_hold_every_cell(view):
    inside = len(view.scatter.cloud.points().order)
    for margin in (view.scatter.above, view.scatter.right):
        assert margin._whole.sum() == pytest.approx(inside, rel=0.2)  # smoothed: the ends lose a little
    view.scatter.show_column(EXAMPLE_LABELS)
    levels = view.scatter.column().levels
    assert len(view.scatter.above._parts) == len(levels) <= 8
    legend = view.scatter
    legend._hide_levels(frozenset({1}))
    assert len(legend.above._parts) == len(levels) - 1


def test_a_selection_is_one_in_all_views(qtbot, window, view):
    from qtpy.QtGui import QPolygonF

    rect = view.scatter.box.rect()
    outline = QPolygonF([rect.topLeft(), rect.topRight(), rect.bottomRight(), rect.bottomLeft()])
    with qtbot.waitSignal(view.selectionChanged):
        view.scatter.box.lassoed.emit(outline, Qt.KeyboardModifier.NoModifier)
    drawn = view.scatter.cloud.points().order
    np.testing.assert_array_equal(window.centre.selection, np.sort(view.data.rows[drawn]))
    np.testing.assert_array_equal(window.centre._cells.rows[window.embedding.selection()], window.centre.selection)
    assert view.bars._rows[0].selected is not None and "selected cells" in view.bars_title.text()
    window.embedding.select(np.arange(7))
    assert view._selected.sum() == 7
    view.scatter.canvas.setFocus()
    qtbot.keyClick(view.scatter.canvas, Qt.Key.Key_Escape)
    assert view._selected is None and len(window.centre.selection) == 0


def test_bars_are_of_the_cells_and_their_owners(qtbot, view):
    scores = view.data.scores
    rows = {each.modality: each for each in view.bars._rows}
    np.testing.assert_allclose(rows["rna"].values, scores.by_dimension("rna"))
    assert view.bars.owner(0) == "adt" and view.bars.owner(19) == "rna"
    assert view.bars.colour_of("adt") != view.bars.colour_of("rna")
    assert sum(rows["adt"].shares.values()) == pytest.approx(1, abs=1e-5)
    plot = view.bars._plot(1)
    with qtbot.waitSignal(view.bars.chosen) as chosen:
        qtbot.mouseClick(view.bars, LEFT, pos=QPoint(int(plot.left() + plot.width() * 0.99), int(plot.center().y())))
    assert chosen.args == [19]
    assert view.embeddings[0].column_name() == "latent:20"
    with qtbot.waitSignal(view.bars.chosen) as chosen:
        qtbot.keyClick(view.bars, Qt.Key.Key_Left)
    assert chosen.args == [18]


def test_bars_say_in_words_what_they_show(qtbot):
    bars = DimensionBars()
    qtbot.addWidget(bars)
    bars.show_rows([DecoderBars("rna", np.array([1.0, 3.0]), None, {"adt": 0.25, "rna": 0.75})], {"adt": (0, 1), "rna": (1, 2)})
    assert bars.accessibleDescription() == "RNA decoder: ADT latents 25%, RNA latents 75%"


def test_the_table_and_the_ratio(view, tmp_path, qtbot, monkeypatch, window):
    rows = list(csv.reader(io.StringIO(scores_csv(view.data))))
    assert rows[0][:2] == ["cell", "adt_decoder_total_attr"] and len(rows) == view.data.size + 1
    ratio, unit, diverging = score_columns(view.data.scores)["log2 ADT / RNA"]
    assert diverging and "median" in unit and abs(float(np.nanmedian(ratio))) < 1e-5
    assert np.isnan(centred(np.array([np.nan], np.float32))).all()
    out = tmp_path / "scores.csv"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_, **__: (str(out), "CSV (*.csv)"))
    view.csv_button.click()
    qtbot.waitUntil(out.is_file, timeout=20_000)
    assert len(out.read_text().splitlines()) == view.data.size + 1


def test_the_attribution_is_computed_where_it_is_missing(qtbot, window, run, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for path in (copy / "results").glob("attribution*"):
        path.unlink()
    show_run(qtbot, window, copy)
    window.show_view("attribution")
    view = window.centre.view("attribution")
    qtbot.waitUntil(lambda: "not computed yet" in view.message(), timeout=30_000)
    qtbot.mouseClick(view.empty.action, LEFT)
    qtbot.waitUntil(lambda: view.data is not None and not view.message(), timeout=60_000)
    assert (copy / "results" / "attribution.json").is_file()


def test_it_refreshes_while_a_run_trains(qtbot, window, run):
    window.show_view("attribution")
    view = window.centre.view("attribution")
    window.centre.take_preview(run / "preview" / "latent-000001.npy", 1)
    qtbot.waitUntil(lambda: view.data is not None and view.data.epoch == 1, timeout=30_000)
    assert view.said.text().startswith("Epoch 1, while the run trains; ")
    first = view.data
    view._take_selection(np.arange(first.size) < 5)
    window.centre.take_preview(run / "preview" / "latent-000002.npy", 2)
    qtbot.waitUntil(lambda: view.data.epoch == 2, timeout=30_000)
    assert view._selected is not None and view._selected.sum() == 5, "the same cells stay selected"
    assert not np.array_equal(first.scores.frobenius, view.data.scores.frobenius)
    assert view.grid.note.text(), "the live embedding of these cells is not there"
    assert view.figure() is None


def test_where_there_is_nothing_it_says_so(qtbot, window):
    window.show_view("attribution")
    view = window.centre.view("attribution")
    assert "appears here" in view.message()
    window.centre.take_preview(SimpleNamespace(with_name=lambda name: SimpleNamespace(is_file=lambda: False)), 3)
    assert view.data is None


# ---------------------------------------------------------------------- back through the epochs


def test_the_slider_goes_back_through_the_attributions_of_a_run(qtbot, window, view, run):
    """Each epoch shows what was written then; the embedding goes along, and the last epoch is the result."""
    from cellweave.core.analysis.attribution_scores import AttributionScores

    assert view.history.bar.isVisible() and view.history.bar.slider.maximum() == 1, "epoch 1, and the result of epoch 2"
    result = view.data
    view.embeddings[0].show_column(EXAMPLE_LABELS)
    view._take_selection(np.arange(result.size) < 5)
    view.history.bar.slider.setValue(0)
    qtbot.waitUntil(lambda: view.data is not result, timeout=30_000)
    scores, rows = AttributionScores.load_preview(run / "preview" / "attribution-000001.npz")
    assert view.data.epoch == 1 and view.said.text().startswith("Epoch 1, while the run trained; ")
    np.testing.assert_array_equal(view.data.rows, rows)
    np.testing.assert_array_equal(view.data.scores.frobenius, scores.frobenius)
    assert view.embeddings[0].column_name() == EXAMPLE_LABELS, "what the cells are coloured by stays"
    assert view.data.rows[view._selected].tolist() == sorted(set(result.rows[:5]) & set(rows.tolist())), "the selected cells stay selected"
    assert view.figure() is None and not view.figure_button.isEnabled(), "a figure is of the result"
    view.history.bar.slider.setValue(1)
    qtbot.waitUntil(lambda: view.data is result, timeout=30_000)
    assert view.figure_button.isEnabled()


def test_the_embedding_and_the_attribution_go_back_together(qtbot, window, run, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    preview = copy / "preview"
    sample = np.load(preview / "cells.npy")
    places = np.random.default_rng(0).normal(size=(len(sample), 2)).astype(np.float32)
    np.save(preview / "layout-000001.npy", places)
    show_run(qtbot, window, copy)
    assert window.embedding.epochs.slider.maximum() == 1
    window.show_view("attribution")
    view = window.centre.view("attribution")
    qtbot.waitUntil(lambda: view.data is not None, timeout=30_000)
    window.embedding.epochs.slider.setValue(0)
    qtbot.waitUntil(lambda: view.data.epoch == 1, timeout=30_000)
    np.testing.assert_allclose(view.data.xy, places[np.searchsorted(sample, view.data.rows)])
    view.history.bar.slider.setValue(1)
    qtbot.waitUntil(lambda: view.data.epoch is None and window.embedding.epochs.at_end, timeout=30_000)


def test_whoever_went_back_is_left_there_while_the_run_trains(qtbot, window, run):
    window.show_view("attribution")
    view = window.centre.view("attribution")
    window.centre.take_preview(run / "preview" / "latent-000001.npy", 1)
    qtbot.waitUntil(lambda: view.data is not None and view.data.epoch == 1, timeout=30_000)
    assert not view.history.bar.isVisible(), "one epoch is nothing to choose from"
    window.centre.take_preview(run / "preview" / "latent-000002.npy", 2)
    qtbot.waitUntil(lambda: view.data.epoch == 2, timeout=30_000)
    assert view.history.bar.isVisible()
    view.history.bar.slider.setValue(0)
    qtbot.waitUntil(lambda: view.data.epoch == 1, timeout=30_000)
    window.centre.take_preview(run / "preview" / "latent-000002.npy", 2)
    qtbot.wait(200)
    assert view.data.epoch == 1 and view.history.bar.words.text() == "1 of 2"


def test_an_attribution_that_cannot_be_read_is_said(qtbot, window, run, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "preview" / "attribution-000001.npz").write_bytes(b"PK broken")
    show_run(qtbot, window, copy)
    window.show_view("attribution")
    view = window.centre.view("attribution")
    qtbot.waitUntil(lambda: view.data is not None, timeout=30_000)
    view.history.bar.slider.setValue(0)
    qtbot.waitUntil(lambda: "cannot be read" in view.history.bar.words.text(), timeout=30_000)
    assert view.data.epoch is None


def test_two_bars_that_follow_each_other_do_not_pull_each_other_back(qtbot):
    """As the embedding's and the attribution's, which ``Centre.go_to_epoch`` ties together."""
    first, second = EpochBar(), EpochBar()
    said: list[tuple[str, int]] = []
    for name, bar, other in (("first", first, second), ("second", second, first)):
        qtbot.addWidget(bar)
        bar.set_epochs([(epoch, lambda: None) for epoch in range(1, 11)])
        bar.chosen.connect(lambda epoch, name=name, other=other: (said.append((name, epoch)), other.go_to(epoch)))
    read: list[int] = []
    second.loaded.connect(lambda epoch, _: read.append(epoch))
    first.slider.setValue(4)
    qtbot.waitUntil(lambda: read == [5])
    first.slider.setValue(8)
    qtbot.waitUntil(lambda: read == [5, 9])
    assert said == [("first", 5), ("first", 9)]
    assert (first.slider.value(), second.slider.value()) == (8, 8)
    second.slider.setValue(2)
    qtbot.waitUntil(lambda: first.slider.value() == 2)
