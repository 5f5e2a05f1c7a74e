"""The Losses view with real clicks and keys: what it draws is what the events said."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from qtpy.QtCore import QPointF, Qt
from qtpy.QtGui import QColor, QFontMetricsF
from qtpy.QtWidgets import QApplication, QToolButton

from cellweave.app import theme
from cellweave.app.theme import load_theme
from cellweave.app.views import LossView
from cellweave.app.views.axes import MarkStrip
from cellweave.app.views.history import smooth
from cellweave.app.views.series import Series, line_pen, shared_title
from cellweave.core.models.declare import Metric
from cellweave.core.runs.events import EpochDone, RunState, StateChanged, StepProgress, WeightChanged
from cellweave.core.spec import RunSpec

N = 40


def value(name: str, epoch: int) -> float:
    return {"reconstruction": 300.0, "kl_z": 12.0}[name] * (1 + 2 / epoch)


def epoch_done(epoch: int) -> EpochDone:
    train = {name: value(name, epoch) for name in ("reconstruction", "kl_z")}
    train["total"] = sum(train.values())
    train["elbo"] = train["total"]
    held_out = {name: part * 1.1 for name, part in train.items()}
    return EpochDone(epoch=epoch, max_epochs=100, train=train, validation=held_out, weights={"kl_z": 1.0}, best_epoch=max(1, epoch - 3))


@pytest.fixture
def view(qtbot):
    made = LossView()
    qtbot.addWidget(made)
    made.set_terms(RunSpec().terms())
    made.resize(900, 640)
    made.show()
    qtbot.waitExposed(made)
    return made


@pytest.fixture
def running(view):
    view.set_run("vae-01", [epoch_done(number) for number in range(1, N + 1)])
    return view


def chip(view, text: str) -> QToolButton:
    QApplication.processEvents()
    return next(button for button in view._legend.findChildren(QToolButton) if button.text().strip() == text and not button.isHidden())


def test_an_empty_view_says_what_it_will_show_and_what_it_waits_for(view, qtbot):
    assert view._note.isVisible() and "losses of a run appear here" in view._note.text()
    view.add_event(StateChanged(state=RunState.LOADING))
    qtbot.waitUntil(lambda: view._note.text() == "Loading data", timeout=5000)
    view.add_event(StepProgress(epoch=1, fraction=0.4))
    qtbot.waitUntil(lambda: view._note.text() == "Training, epoch 1: 40%", timeout=5000)
    view.set_message("Compiling the model")
    assert view._note.text() == "Compiling the model"
    view.add_event(epoch_done(1))
    qtbot.waitUntil(lambda: not view._note.isVisible(), timeout=5000)
    assert view._curves.isVisible()


def test_every_term_has_a_plot_with_train_and_validation(running):
    assert running._curves.titles() == ["Total (weighted)", "Reconstruction", "KL of the latent"]
    for name in ("reconstruction", "kl_z"):
        x, y = running._curves.line(name, "train")
        np.testing.assert_array_equal(x, np.arange(1, N + 1))
        np.testing.assert_allclose(y, [value(name, number) for number in range(1, N + 1)])
        _, held_out = running._curves.line(name, "validation")
        np.testing.assert_allclose(held_out, y * 1.1)


def test_hues_are_those_of_the_terms_and_the_total_has_none(running):
    series = {item.name: item for item in running.series()}
    assert series["total"].colour is None and series["elbo"].colour is None
    assert [series[term.name].colour for term in RunSpec().terms()] == [QColor("#0072B2"), QColor("#E69F00")]
    assert series["kl_z"].unit == "nats per cell"


def test_many_events_are_drawn_together(view, qtbot, monkeypatch):
    drawn = []
    original = view._curves.show_curves
    monkeypatch.setattr(view._curves, "show_curves", lambda *arguments: (drawn.append(1), original(*arguments)))
    for number in range(1, 200):
        view.add_event(epoch_done(number))
    assert drawn == []
    qtbot.waitUntil(lambda: len(drawn) == 1, timeout=5000)
    assert len(view._curves.line("total", "train")[0]) == 199


def test_nothing_is_drawn_out_of_sight(view, qtbot, monkeypatch):
    drawn = []
    monkeypatch.setattr(view._curves, "show_curves", lambda *arguments: drawn.append(1))
    view.hide()
    view.add_event(epoch_done(1))
    qtbot.wait(200)
    assert drawn == []
    view.show()
    assert drawn == [1]


def test_a_click_on_the_legend_hides_and_shows(running, qtbot):
    qtbot.mouseClick(chip(running, "KL of the latent"), Qt.MouseButton.LeftButton)
    assert running._curves.titles() == ["Total (weighted)", "Reconstruction"]
    assert running._curves.line("kl_z", "train") is None
    qtbot.keyClick(chip(running, "KL of the latent"), Qt.Key.Key_Space)
    assert "KL of the latent" in running._curves.titles()
    qtbot.mouseClick(chip(running, "−ELBO"), Qt.MouseButton.LeftButton)
    assert running._curves.titles()[-1] == "Negative ELBO"
    qtbot.mouseClick(chip(running, "validation"), Qt.MouseButton.LeftButton)
    assert running._curves.line("kl_z", "validation") is None and running._curves.line("kl_z", "train") is not None


def test_all_in_one_plot(running, qtbot):
    qtbot.mouseClick(running._separate, Qt.MouseButton.LeftButton)
    assert running._curves.titles() == ["Total (weighted), Reconstruction, KL of the latent"]
    assert len(running._curves.line("kl_z", "train")[0]) == N


def test_the_log_axis_leaves_out_what_has_no_logarithm(view, qtbot):
    events = [epoch_done(number) for number in (1, 2, 3)]
    events[0].train["kl_z"] = 0.0
    events[1].train["kl_z"] = -1.0
    view.set_run("run", events)
    qtbot.mouseClick(view._log, Qt.MouseButton.LeftButton, pos=view._log.rect().center() * 0 + QPointF(9, 9).toPoint())
    x, y = view._curves.line("kl_z", "train")
    assert x.tolist() == [1, 2, 3] and np.isnan(y[:2]).all()
    assert y[2] == pytest.approx(np.log10(value("kl_z", 3)))


def test_smoothing_by_keyboard(running, qtbot):
    running._smoothing.setFocus()
    for _ in range(5):
        qtbot.keyClick(running._smoothing, Qt.Key.Key_PageUp)
    assert running.style_now().smoothing == 0.5 and running._smoothing_text.text() == "0.50"
    _, y = running._curves.line("kl_z", "train")
    np.testing.assert_allclose(y, smooth(np.array([value("kl_z", number) for number in range(1, N + 1)]), 0.5))
    qtbot.keyClick(running._smoothing, Qt.Key.Key_End)
    assert running.style_now().smoothing == 0.99  # never 1


def test_the_last_epochs(running, qtbot):
    running._last.setFocus()
    qtbot.keyClicks(running._last.lineEdit(), "10")
    qtbot.keyClick(running._last.lineEdit(), Qt.Key.Key_Return)
    x, _ = running._curves.line("total", "train")
    assert x.tolist() == list(range(N - 9, N + 1))
    running._last.lineEdit().clear()
    qtbot.keyClick(running._last.lineEdit(), Qt.Key.Key_Return)
    assert len(running._curves.line("total", "train")[0]) == N


def test_outliers_are_clipped_from_the_range_not_from_the_data(view):
    events = [epoch_done(number) for number in range(1, N + 1)]
    events[30].train["kl_z"] = 1e6
    view.set_run("run", events)
    assert view._curves.value_range("kl_z")[1] > 9e5
    view._clip.setChecked(True)
    assert view._curves.value_range("kl_z")[1] < 100
    assert view._curves.line("kl_z", "train")[1].max() == 1e6


def test_a_turned_weight_and_the_best_epoch_are_marked(running, qtbot):
    running.add_event(WeightChanged(term="kl_z", old=1.0, new=0.25, epoch=N))
    running.add_event(epoch_done(N + 1))
    qtbot.waitUntil(lambda: len(running._curves.line("total", "train")[0]) == N + 1, timeout=5000)
    texts = {plot.series[0].name: [mark.text for mark in plot.strip.marks] for plot in running._curves._plots}
    assert texts["kl_z"] == [f"best {N - 2}", "1 → 0.25"]
    assert texts["total"] == [f"best {N - 2}", "KL of the latent 1 → 0.25"]
    assert texts["reconstruction"] == [f"best {N - 2}"]
    assert "weight of KL of the latent: 1 → 0.25" in running._curves.card_text(running.series(), N)
    QApplication.processEvents()
    for plot in running._curves._plots:
        assert len(plot.strip.placed()) == len(plot.strip.marks) == len(plot.marks)
        places = [plot.strip.mapRectToScene(rect) for rect, _ in plot.strip.placed()]
        assert not any(place.intersects(plot.item.getViewBox().sceneBoundingRect()) for place in places), "words lie on the curves"
        assert len(places) < 2 or not places[0].intersects(places[1])


@pytest.mark.parametrize("size", [(1100, 900), (690, 420)])
@pytest.mark.parametrize("last", [2, 5, N])
def test_every_plot_names_its_epoch_axis_and_marks_whole_epochs(running, size, last):
    running.resize(*size)
    running.restore({"last": last})
    QApplication.processEvents()
    for plot in running._curves._plots:
        axis = plot.item.getAxis("bottom")
        assert axis.label.isVisible() and "epoch" in axis.labelString()
        low, high = axis.range
        ticks = [tick for _, values in axis.tickValues(low, high, axis.size().width()) for tick in values]
        assert ticks and all(float(tick).is_integer() for tick in ticks)


def test_the_controls_take_two_rows_in_a_narrow_window(running):
    running.add_overlay("First look: PBMC · vae-01", [epoch_done(1)])
    running.resize(714, 500)  # what is left of 1280 pixels beside the docks
    QApplication.processEvents()
    for button in running._legend.findChildren(QToolButton):
        assert button.width() >= button.iconSize().width() + button.fontMetrics().horizontalAdvance(button.text()) + 12
    assert running._bar.height() < 1.5 * running._bar.layout().itemAt(0).sizeHint().height()
    assert running._legend.height() < 1.5 * running._legend_row.itemAt(0).sizeHint().height()


def test_nothing_scrolls_beside_a_message(running):
    running.resize(700, 300)
    QApplication.processEvents()
    assert running._scroll.verticalScrollBar().isVisible()
    running.clear()
    QApplication.processEvents()
    assert not running._scroll.verticalScrollBar().isVisible()


def test_the_mouse_reads_values(running, qtbot):
    QApplication.processEvents()
    plot = running._curves._plots[2]
    box = plot.item.getViewBox()
    place = running._curves.mapFromScene(box.mapViewToScene(QPointF(20, box.viewRange()[1][0])))
    place.setY(place.y() - 30)
    qtbot.mouseMove(running._curves.viewport(), place)
    running._curves._moved(QPointF(running._curves.mapToScene(place)))
    card = running._curves.card
    assert card.isVisible()
    assert "Epoch 20" in card.text() and f"{value('kl_z', 20):.5g}" in card.text() and f"{value('kl_z', 20) * 1.1:.5g}" in card.text()
    assert running._curves.rect().contains(card.geometry())


def test_the_keyboard_reads_values(running, qtbot):
    running._curves.setFocus()
    qtbot.keyClick(running._curves, Qt.Key.Key_Home)
    assert "Epoch 1<" in running._curves.card.text() and running._curves.card.isVisible()
    qtbot.keyClick(running._curves, Qt.Key.Key_Right)
    assert "Epoch 2<" in running._curves.card.text()
    qtbot.keyClick(running._curves, Qt.Key.Key_Escape)
    assert not running._curves.card.isVisible()


def test_another_run_is_drawn_behind_and_can_be_taken_away(running, qtbot):
    running.add_overlay("vae-00", [epoch_done(number) for number in range(1, 11)])
    x, _ = running._curves.line("kl_z", "train", run=1)
    assert x.tolist() == list(range(1, 11))
    assert "vae-00" in running._curves.card_text(running.series(), 5)
    with qtbot.waitSignal(running.overlayRemoved) as caught:
        qtbot.mouseClick(chip(running, "vae-00"), Qt.MouseButton.LeftButton)
    assert caught.args == ["vae-00"] and running._curves.line("kl_z", "train", run=1) is None


def test_runs_laid_over_one_another_are_told_apart_and_keep_their_own_names(running, qtbot):
    spec = RunSpec().with_changes({"covariates.batch": "batch", "losses.weights": {"mmd": 10.0}})
    told = [replace(epoch_done(n), train={**epoch_done(n).train, "mmd": 0.5}, metrics={"mmd_loss_train": 0.1, "mmd_loss_validation": 0.2}) for n in (1, 2, 3)]
    for name in ("Kang linear · ldvae-01", "Kang linear · ldvae-02"):
        running.add_overlay(name, told, spec.terms(), spec.family.metrics(spec))
    described = {series.name: series for series in running.series()}
    assert described["mmd"].label == next(term.label for term in spec.terms() if term.name == "mmd")
    train, held_out = described["metric:mmd_loss_train"], described["metric:mmd_loss_validation"]
    assert train.unit == "MMD² per cell" and (train.dashed, held_out.dashed) == (False, True)
    assert train.hue() == held_out.hue()
    assert train.hue() not in [described[name].hue() for name in ("reconstruction", "kl_z", "mmd")]
    pens = [line_pen(described["kl_z"], "train", run, 1.0) for run in range(4)]
    assert len({(pen.color().name(), tuple(pen.dashPattern())) for pen in pens}) == 4
    QApplication.processEvents()
    chips = [button for button in running._legend.findChildren(QToolButton) if "ldvae-0" in button.toolTip() and not button.isHidden()]
    assert [button.text()[-2:] for button in chips] == ["01", "02"], "what tells the runs apart is not cut off"


def test_a_unit_is_shortened_to_its_axis(running):
    axis = running._curves._plots[0].item.getAxis("left")
    axis.setRange(0, 0.0006)
    assert axis.tickStrings([0.0, 0.00045, 0.0005], 1.0, 0.00005) == ["0", "4.5e−4", "5e−4"]
    axis.setRange(0, 4500)
    assert axis.tickStrings([2000.0, 4000.0], 1.0, 2000.0) == ["2000", "4000"]
    axis.say("a unit far longer than any plot of a small window is high, however one looks at it", QColor("black"))
    assert axis.label.boundingRect().width() <= axis.size().height() + 8
    assert "…" in axis.labelText
    middle = axis.mapRectFromItem(axis.label, axis.label.boundingRect()).center().y()
    assert middle == pytest.approx(axis.size().height() / 2, abs=2), "in the middle of its axis, also after it was shortened"


def test_a_unit_that_is_counted_by_something_breaks_before_it_is_cut(running):
    axis = running._curves._plots[0].item.getAxis("left")
    metrics = QFontMetricsF(MarkStrip.words_font())
    axis.say("squared distance per cell", QColor("black"))
    room = metrics.horizontalAdvance("squared distance per cell") - 1
    assert axis._shortened(room) == ("squared distance", "per cell")
    assert axis._shortened(room + 2) == ("squared distance per cell",)
    assert "…" in axis._shortened(30.0)[0]


def test_numbers_of_one_subject_share_a_title_that_names_it():
    of_batches = [Series(f"metric:{name}", f"Discriminator, {name}", "share of cells", beside="share of cells") for name in ("RNA", "ADT")]
    assert shared_title(of_batches) == "Discriminator: share of cells"
    assert shared_title([*of_batches, Series("metric:x", "Hidden", "share of cells", beside="share of cells")]) == "Share of cells"
    assert shared_title([Series("a", "KL of c"), Series("b", "KL of u")]) == "Losses"


def test_the_table_is_handed_over(running, qtbot):
    with qtbot.waitSignal(running.csvRequested) as caught:
        qtbot.mouseClick(running._csv, Qt.MouseButton.LeftButton)
    assert caught.args[0].splitlines()[0].startswith("epoch,train_reconstruction") and len(caught.args[0].splitlines()) == N + 1


def test_clear_brings_the_empty_view_back(running):
    running.clear()
    assert running._note.isVisible() and not running._csv.isEnabled() and running.series() == []


def test_zooming_holds_until_fit(running, qtbot):
    plot = running._curves._plots[0]
    plot.item.setYRange(0, 1)
    plot.item.getViewBox().sigRangeChangedManually.emit([True, True])
    running.add_event(epoch_done(N + 1))
    qtbot.waitUntil(lambda: len(running._curves.line("total", "train")[0]) == N + 1, timeout=5000)
    assert running._curves.value_range("total")[1] < 2
    qtbot.mouseClick(running._fit, Qt.MouseButton.LeftButton)
    assert running._curves.value_range("total")[1] > 300


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("log", [False, True])
def test_values_that_are_not_finite_leave_a_gap(view, bad, log):
    events = [epoch_done(number) for number in range(1, 11)]
    events[5].train["kl_z"] = bad
    view._log.setChecked(log)
    view._smoothing.setValue(50)
    view.set_run("run", events)
    view._curves.grab()
    _, y = view._curves.line("kl_z", "train")
    assert np.isfinite(np.delete(y, 5)).all() and not np.isfinite(y[5])
    low, high = view._curves.value_range("kl_z")
    assert np.isfinite([low, high]).all() and low < high
    assert "Epoch 6" in view._curves.card_text(view.series(), 6)


def test_choices_come_back(running, qtbot):
    running._log.setChecked(True)
    running._separate.setChecked(False)
    running._smoothing.setValue(40)
    running._last.set_value(12)
    qtbot.mouseClick(chip(running, "Reconstruction"), Qt.MouseButton.LeftButton)
    state = json.loads(json.dumps(running.state()))
    assert state["hidden"] == ["elbo", "reconstruction"]
    other = LossView()
    qtbot.addWidget(other)
    other.restore(state)
    assert other.state() == state
    other.restore({"log": "yes", "smoothing": None, "last": -4, "hidden": [1], "unknown": 1})
    assert other.state() == state


def test_the_theme_is_followed_at_once(running):
    app = QApplication.instance()
    seen = {}
    try:
        for name in ("light", "dark"):
            theme.apply(app, name)
            QApplication.processEvents()
            picture = running._curves.grab().toImage()
            total = next(plot for plot in running._curves._plots if plot.series[0].name == "total")
            seen[name] = (picture.pixelColor(2, 2).name(), total.lines[0, "total", "train", "line"].opts["pen"].color().name())
    finally:
        theme.apply(app, "light")
    for name, (ground, ink) in seen.items():
        assert ground == load_theme(name).panel.lower() and ink == load_theme(name).text.lower()
    assert len(running._curves.line("kl_z", "train")[0]) == N


def test_zooming_shows_the_same_epochs_everywhere(running, qtbot):
    first, second, third = (plot.item for plot in running._curves._plots)
    third.setXRange(5, 15, padding=0)
    third.getViewBox().sigRangeChangedManually.emit([True, True])
    assert first.viewRange()[0] == second.viewRange()[0] == [5, 15]


def test_the_last_values_are_told_to_screen_readers(running):
    assert running._curves.accessibleDescription().startswith(f"Epoch {N} of 100. Total (weighted) ")


@pytest.mark.parametrize("width", [380, 700, 1400])
def test_plots_find_their_columns(running, width):
    running.resize(width, 640)
    for _ in range(3):
        QApplication.processEvents()
    boxes = [plot.item.sceneBoundingRect() for plot in running._curves._plots]
    assert all(box.width() > 0.9 * boxes[1].width() for box in boxes)
    right = max(box.right() for box in boxes)
    rows = {round(box.top()): max(other.right() for other in boxes if round(other.top()) == round(box.top())) for box in boxes}
    assert all(end > right - 2 for end in rows.values())  # no hole at the end of a row
    for plot in running._curves._plots:
        low, high = plot.item.viewRange()[0]
        assert -3 < low < 1 and N <= high < N + 3
    for index, box in enumerate(boxes):
        assert box.right() <= running._curves.width() + 1
        assert not any(box.adjusted(2, 2, -2, -2).intersects(other.adjusted(2, 2, -2, -2)) for other in boxes[index + 1 :])


def test_metrics_of_one_unit_share_a_plot_below_the_terms(view):
    metrics = [Metric(f"hits_{name}", f"Accuracy {name.upper()}", "High is bad.", "share") for name in "ab"] + [Metric("active", "Active", "", "units")]
    view.set_terms(RunSpec().terms(), metrics)
    told = {"hits_b": 0.5, "hits_a": 0.25, "active": 7.0, "undeclared": 1.0}
    view.set_run("vae-02", [replace(epoch_done(number), metrics=told) for number in range(1, 4)])
    assert view._curves.titles()[-3:] == ["Accuracy A, Accuracy B", "Active", "Undeclared"]
    assert view._curves.line("metric:hits_a", "train")[1].tolist() == [0.25] * 3
    assert view._curves.line("metric:hits_a", "validation") is None
    view._splits["train"].click()  # a metric is neither of training nor of validation cells
    assert view._curves.line("metric:hits_a", "train") is not None
    assert "High is bad." in chip(view, "Accuracy B").toolTip()
    chip(view, "Accuracy B").click()
    assert view._curves.titles()[-3:] == ["Accuracy A", "Active", "Undeclared"]
    view._separate.click()
    assert len(view._curves.titles()) == 4
    head, *rows = list(csv.reader(io.StringIO(view.to_csv())))
    assert head[-4:] == ["hits_b", "hits_a", "active", "undeclared"]
    assert rows[0][-4:] == ["0.5", "0.25", "7.0", "1.0"]


def test_plots_of_a_run_that_is_made_narrow_take_the_room_they_asked_for(qtbot):
    """Fewer columns ask for more height while a new size is taken in; the plots once stayed as high as before, with no room for a curve."""
    made = LossView()
    qtbot.addWidget(made)
    spec = RunSpec().with_changes({"model.kind": "midas", "covariates.batch": "batch"})
    made.set_terms(spec.terms())
    made.set_run("midas-01", [EpochDone(epoch=n, max_epochs=9, train={term.name: 1.0 + n for term in spec.terms()}, weights={}) for n in range(1, 6)])
    made.resize(900, 640)
    made.show()
    qtbot.waitExposed(made)
    assert made._curves._columns == 2
    made.resize(720, 640)
    QApplication.processEvents()
    assert made._curves._columns == 1
    assert made._curves.ci.geometry().height() == pytest.approx(made._curves.height())
    assert all(plot.item.getViewBox().height() > 40 for plot in made._curves._plots)


def test_a_long_legend_names_metrics_on_demand_and_their_curves_are_drawn_all_the_same(view, qtbot):
    """Where there are many curves, what is told beside the losses does not take the room of the curves."""
    told = {f"number{number}": number / 10 for number in range(12)}
    view.set_terms(RunSpec().terms(), tuple(Metric(name, f"Number {name[6:]}", "One of many.") for name in told))
    view.set_run("vae-03", [replace(epoch_done(number), metrics=told) for number in (1, 2, 3)])
    shown = lambda: [button.text() for button in view._legend.findChildren(QToolButton) if not button.isHidden()]  # noqa: E731
    qtbot.waitUntil(lambda: "12 other numbers" in shown(), timeout=5000)
    names = shown()
    assert not any(name.startswith("Number") for name in names)
    assert view._curves.line("metric:number7", "train")[1].tolist() == [0.7] * 3
    qtbot.mouseClick(chip(view, "12 other numbers"), Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: "Number 7" in shown(), timeout=5000)


def test_plots_out_of_sight_are_made_one_after_the_other(view, qtbot):
    from cellweave.app.views.curves import AT_ONCE

    told = {f"number{number}": 0.5 for number in range(9)}
    view.set_terms(RunSpec().terms(), tuple(Metric(name, name, "One of many.", name) for name in told))
    view.set_run("vae-04", [replace(epoch_done(number), metrics=told) for number in (1, 2)])
    qtbot.waitUntil(lambda: len(view._curves._plots) >= AT_ONCE, timeout=5000)
    qtbot.waitUntil(lambda: not view._curves._waiting, timeout=10_000)
    assert len(view._curves._plots) == len(view._curves.titles()) > AT_ONCE
