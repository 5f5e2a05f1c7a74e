"""Parts of the shell that need no window: the sentence of a run, the selection, the relay of events, tasks."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from qtpy.compat import isalive
from qtpy.QtWidgets import QApplication, QLabel, QVBoxLayout, QWidget

from cellweave.app.panels.checks import ChecksList
from cellweave.app.panels.crosstab import CrossTable
from cellweave.app.panels.features import ModalityForm, label_width
from cellweave.app.panels.inspector import InspectorPanel, ShareBar
from cellweave.app.panels.mosaic import MosaicGrid
from cellweave.app.panels.parts import ElidedButton, first_sentence
from cellweave.app.state.paths import masked
from cellweave.app.state.progress import RunProgress, duration
from cellweave.app.workers.tasks import TaskRunner
from cellweave.app.workers.training import EventRelay
from cellweave.core.errors import Cancelled, DataError
from cellweave.core.models.registry import families
from cellweave.core.runs.events import EpochDone, FinishReason, Progress, RunState, StateChanged, StepProgress
from cellweave.core.study.checks import Check, Fix, Level


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "0 s"), (59, "59 s"), (72, "1 min 12 s"), (3600 * 2 + 61, "2 h 01 min")])
def test_lengths_of_time(seconds, words):
    assert duration(seconds) == words


def test_the_sentence_of_a_run():
    progress = RunProgress("ambient-07", patience=45)
    progress.add(StateChanged(state=RunState.LOADING, time=100.0))
    assert progress.sentence() == "ambient-07: Loading data"
    progress.add(Progress(phase="loading data", fraction=0.43))
    assert progress.sentence() == "ambient-07: Loading data 43 %"
    progress.add(StateChanged(state=RunState.PREPARING))
    progress.add(Progress(phase="finding the best number of threads"))
    assert progress.sentence() == "ambient-07: Preparing · finding the best number of threads"
    progress.add(StateChanged(state=RunState.TRAINING))
    progress.add(EpochDone(epoch=36, max_epochs=200, best_epoch=34, epochs_since_best=2, cells_per_second=41_000))
    progress.add(StepProgress(epoch=37, max_epochs=200, fraction=0.5, cells_per_second=41_200, seconds_left=72))
    assert progress.sentence() == "ambient-07: Training · epoch 37/200 · 41,200 cells/s · 1 min 12 s left · best 34 (patience 2/45)"
    assert progress.fraction == pytest.approx(36.5 / 200)
    assert progress.can_pause
    assert progress.can_stop
    progress.add(StateChanged(state=RunState.ANALYSING))
    progress.add(Progress(phase="UMAP", fraction=0.04))
    assert progress.sentence() == "ambient-07: Computing results · UMAP 4 %"
    assert not progress.can_pause
    progress.add(StateChanged(state=RunState.DONE, reason=FinishReason.EARLY_STOPPED))
    assert progress.ending(now=172.0) == "ambient-07 stopped early: the validation loss no longer improved after 36 epochs in 1 min 12 s"
    short = RunProgress("x", started=100.0, reason=FinishReason.FAILED)
    assert short.ending(now=103.0) == "x failed before its first epoch was over, after 3 s"


def test_a_resumed_run_that_had_all_its_epochs_is_not_said_to_have_none():
    progress = RunProgress("midas-01", resumed=True)
    progress.add(StateChanged(state=RunState.DONE, reason=FinishReason.COMPLETED, time=100.0))
    assert progress.ending(now=126.0) == "midas-01 finished without a further epoch, 26 s after it went on"
    further = RunProgress("midas-01", resumed=True)
    further.add(EpochDone(epoch=40, max_epochs=40, train={}, validation={}, best_epoch=40, time=100.0))
    further.add(StateChanged(state=RunState.DONE, reason=FinishReason.COMPLETED, time=101.0))
    assert further.ending(now=126.0) == "midas-01 finished after 40 epochs, 26 s after it went on"


def test_the_bar_of_a_paused_run_stands_still():
    progress = RunProgress("midas-01")
    progress.add(StateChanged(state=RunState.TRAINING))
    progress.add(EpochDone(epoch=20, max_epochs=40, train={}, validation={}, best_epoch=20))
    progress.add(StateChanged(state=RunState.PAUSED))
    assert progress.fraction == 0.5
    progress.add(StateChanged(state=RunState.TRAINING))
    assert progress.fraction == 0.5
    progress.add(StateChanged(state=RunState.ANALYSING))
    assert progress.fraction is None


def test_the_relay_keeps_the_order_and_only_the_latest_progress(qtbot):
    relay = EventRelay()
    taken = []
    relay.events.connect(taken.extend)

    def engine() -> None:
        for number in range(1000):
            relay.take(StepProgress(epoch=1, fraction=number / 1000))
        relay.take(EpochDone(epoch=1))
        relay.take(StepProgress(epoch=2))

    thread = threading.Thread(target=engine)
    thread.start()
    thread.join()
    relay.start()
    qtbot.waitUntil(lambda: len(taken) == 3)
    relay.stop()
    assert [event.kind for event in taken] == ["step", "epoch", "step"]
    assert taken[0].fraction == 0.999


def test_a_task_gives_its_result_in_the_windows_thread(qtbot):
    runner, here, seen = TaskRunner(), threading.get_ident(), []

    def work(report):
        report("half", 0.5)
        return threading.get_ident()

    runner.run(work, lambda result: seen.append(("done", result, threading.get_ident())), lambda *_: None, lambda *told: seen.append(told))
    qtbot.waitUntil(lambda: not runner.busy())
    assert seen[0] == ("half", 0.5)
    kind, worked_in, told_in = seen[1]
    assert kind == "done"
    assert worked_in != here == told_in
    runner.shutdown()


def test_a_task_whose_work_is_done_is_waited_for_before_its_runner_goes(qtbot):
    """The result is told before the thread has wound up: a runner that is deleted then would take the process with it."""
    runner, seen = TaskRunner(), []
    task = runner.run(lambda _report: 1, seen.append, lambda *_: None)
    qtbot.waitUntil(lambda: bool(seen))
    runner.shutdown()
    assert not runner.busy() and (not isalive(task) or not task.running())


def test_a_task_that_fails_or_is_cancelled_says_so(qtbot):
    runner, failures = TaskRunner(), []

    def bad(report):
        raise DataError("It is broken.", "Mend it.")

    def endless(report):
        while True:
            report("on and on")
            threading.Event().wait(0.005)

    def failed(error, details):
        failures.append((type(error), "Traceback" in details))

    runner.run(bad, lambda _: None, failed)
    qtbot.waitUntil(lambda: len(failures) == 1)
    task = runner.run(endless, lambda _: None, failed)
    task.cancel()
    qtbot.waitUntil(lambda: len(failures) == 2)
    assert failures == [(DataError, True), (Cancelled, True)]
    qtbot.waitUntil(lambda: not runner.busy())
    runner.shutdown()


def test_the_composition_of_a_selection(qtbot):
    panel = InspectorPanel()
    qtbot.addWidget(panel)
    codes = np.array([0, 0, 1, 1, 1, -1], dtype=np.int32)
    panel.set_columns({"batch": (np.zeros(6, np.int32), ("b0",)), "type": (codes, ("T", "B"))}, 6, ("type",))
    panel.set_selection(np.array([0, 2, 3, 5]))
    panel.show()
    assert panel.title.text() == "4 cells selected"
    assert panel.column.currentText() == "type"
    bars = [bar.accessibleName() for bar in panel.findChildren(ShareBar) if not bar.isHidden()]
    assert bars == [
        "B: 2 cells, 50 % of the selection, 50 % of all cells",
        "missing: 1 cell, 25 % of the selection, 17 % of all cells",
        "T: 1 cell, 25 % of the selection, 33 % of all cells",
    ]
    panel.set_selection(np.zeros(0, np.int64))
    assert panel.title.text() == "No cells selected"


def test_checks_show_the_gravest_first_and_the_rest_on_demand(qtbot):
    checks = ChecksList()
    qtbot.addWidget(checks)
    fix = Fix("Leave them out", {"data.drop_empty_cells": True})
    found = [("a", Level.OK, "Counts", "Whole numbers.", ()), ("b", Level.WARN, "Empty", "Five are empty.", (fix,)), ("c", Level.FAIL, "Batch", "Gone.", ())]
    checks.set_checks([Check(*each) for each in found])
    checks.show()

    def titles():
        return [label.text() for label in checks.findChildren(QLabel) if label.property("heading") and not label.parent().isHidden()]

    assert titles() == ["Batch", "Empty"]
    from qtpy.QtCore import Qt
    from qtpy.QtWidgets import QPushButton

    asked = []
    checks.fixAsked.connect(asked.append)
    buttons = {item.text(): item for item in checks.findChildren(QPushButton)}
    qtbot.mouseClick(buttons["Leave them out"], Qt.MouseButton.LeftButton)
    assert asked == [fix]
    qtbot.mouseClick(buttons["1 check passed"], Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: titles() == ["Batch", "Empty", "Counts"])


def test_a_long_offer_is_shortened_and_does_not_widen_its_panel(qtbot):
    checks = ChecksList()
    qtbot.addWidget(checks)
    label = "Train on cite_s1d1, cite_s1d2, cite_s2d1, cite_s2d4, cite_s3d1 (RNA, ADT) only"
    fix = Fix(label, {"data.drop_empty_cells": True})
    checks.set_checks([Check("c", Level.FAIL, "Modalities are not linked", "Two islands.", (fix,))])
    checks.resize(290, 200)
    checks.show()
    assert checks.minimumSizeHint().width() <= 290
    (offer,) = checks.findChildren(ElidedButton)
    assert offer.text() == offer.accessibleName() == offer.toolTip() == label
    assert offer.width() <= 290 and "…" in offer.shown() and offer.shown().startswith("Train on") and offer.shown().endswith("only")
    checks.resize(900, 200)
    qtbot.waitUntil(lambda: offer.shown() == label and not offer.toolTip())


def test_beside_train_stands_the_cause_alone():
    text = "21 of 600 features of ATAC have no chromosome in their name ('peak_0'). Name peaks like 'chr1:100-200', or set data.blocks.atac = 'one block'."
    assert first_sentence(text) == "21 of 600 features of ATAC have no chromosome in their name ('peak_0')."
    assert first_sentence(f"{text} And 2 more.") == "21 of 600 features of ATAC have no chromosome in their name ('peak_0'). And 2 more."
    assert first_sentence("a.h5ad holds no counts of RNA.") == "a.h5ad holds no counts of RNA."
    assert first_sentence("") == ""


def test_the_grid_of_a_mosaic_without_data(qtbot):
    from cellweave.core.study.mosaic import Mosaic

    grid = MosaicGrid()
    qtbot.addWidget(grid)
    patterns, by_pattern = np.array([[True, False]]), np.array([[5], [0]])
    nothing = np.zeros((2, 2), dtype=int)
    grid.set_mosaic(Mosaic("batch", ("a", "b"), ("rna", "adt"), np.array([[5, 0], [0, 0]]), nothing, patterns, by_pattern), [("b", "adt")])
    assert set(grid.boxes) == {("a", "rna"), ("b", "adt")}
    assert not grid.boxes["b", "adt"].isChecked()
    told = []
    grid.switched.connect(lambda *what: told.append(what))
    grid.boxes["b", "adt"].click()
    assert told == [("batch", "b", "adt", True)]
    # A modality that went with its last cells keeps its boxes too.
    rna = Mosaic("batch", ("a",), ("rna",), np.array([[5]]), np.zeros((1, 1), dtype=int), np.array([[True]]), np.array([[5]]))
    grid.set_mosaic(rna, [("b", "adt")])
    assert set(grid.boxes) == {("a", "rna"), ("b", "adt")}
    assert grid.boxes["b", "adt"].text() == "off"


def test_the_grid_says_whether_batches_are_connected_and_what_is_held_out(qtbot):
    from cellweave.core.study.mosaic import Mosaic

    grid = MosaicGrid()
    qtbot.addWidget(grid)
    grid.show()
    patterns = np.array([[False, True], [True, False], [True, True]])
    counts, nothing = np.array([[5, 0], [0, 6], [7, 7]]), np.zeros((3, 2), dtype=int)
    linked = Mosaic("batch", ("a", "b", "c"), ("rna", "adt"), counts, nothing, patterns, np.diag([6, 5, 7])[[1, 0, 2]])
    grid.set_mosaic(linked, [])
    assert grid.connection.text() == "All batches are connected through RNA and ADT."
    assert grid.connection.property("tone") == "good"
    grid.set_mosaic(linked, [], together=False)
    assert not grid.connection.isVisible()
    held = np.array([[0, 0], [0, 0], [0, 7]])
    apart = Mosaic("batch", ("a", "b", "c"), ("rna", "adt"), np.array([[5, 0], [0, 6], [7, 0]]), held, patterns, np.array([[0, 5, 0], [6, 0, 0], [0, 7, 0]]))
    grid.set_mosaic(apart, [("c", "adt"), ("d", "rna")])
    assert grid.connection.text().startswith("Two islands that share no modality: a, c (RNA); b (ADT).")
    assert grid.connection.property("tone") == "bad"
    assert grid.boxes["c", "adt"].text() == "7"
    assert grid.boxes["c", "adt"].font().strikeOut()
    assert not grid.boxes["a", "rna"].font().strikeOut()
    assert "are the truth" in grid.boxes["c", "adt"].toolTip()
    assert grid.boxes["d", "rna"].text() == "off"  # nothing is left of it in the study, and still it can be switched on again


def test_home_paths_are_masked(monkeypatch, home):
    from pathlib import Path

    monkeypatch.setattr(Path, "home", lambda: Path("/home/marie"))
    assert masked(f"/home/marie/data/x and {home}/runs and /Users/marie/y") == "~/data/x and <cellweave>/runs and /Users/<user>/y"


@pytest.mark.parametrize("kind", list(families()))
def test_every_family_fills_the_forms(qtbot, window, kind):
    combo = window.model_panel.family
    combo.setCurrentIndex(combo.findData(kind))
    combo.activated.emit(combo.currentIndex())
    assert window.session.spec.model.kind == kind
    assert window.model_panel.form.paths()
    assert window.losses_panel.form.terms() == [term.name for term in window.session.spec.terms()]
    window.actions_by_id["edit.undo"].trigger()
    assert window.session.spec.model.kind == next(iter(families()))


def test_settings_that_an_optimiser_lacks_are_left_out_of_the_form(window):
    """Chosen in the form: what it has appears, what it has not goes, and what is set of that goes with it."""
    window.session.editor.edit({"model.kind": "midas"})
    form = window.training_panel.form
    form.set_advanced(True)
    editor = form.row("training.optimizer").editor
    shown = {}
    for name in ("sgd", "rmsprop", "rprop", "adamw"):
        editor.setCurrentIndex(editor.findData(name))
        editor.activated.emit(editor.currentIndex())
        assert window.session.spec.training.optimizer == name
        shown[name] = {field for field in ("adam_eps", "weight_decay", "momentum") if form.row(f"training.{field}").is_shown()}
        if name == "rmsprop":
            window.session.editor.edit({"training.momentum": 0.5})
    assert shown["sgd"] == {"weight_decay", "momentum"} and shown["adamw"] == {"adam_eps", "weight_decay"}
    assert shown["rmsprop"] == shown["sgd"] | shown["adamw"] and shown["rprop"] == set()
    assert (window.session.spec.training.momentum, window.session.spec.training.weight_decay) == (0.0, 0.01)
    own = window.model_panel.form.row("model.discriminator_optimizer").editor
    assert own.itemText(0) == "as the network's"
    own.setCurrentIndex(own.findData("rmsprop"))
    own.activated.emit(own.currentIndex())
    assert form.row("training.momentum").is_shown()


@pytest.mark.parametrize(("rows", "scrolls"), [(1, False), (8, False), (12, False), (30, True)])
def test_a_cross_table_has_the_height_of_its_rows(qtbot, rows, scrolls):
    import pandas as pd

    table = CrossTable()
    qtbot.addWidget(table)
    table.show_counts(pd.DataFrame(np.full((rows, 3), 1234), index=[f"level {number}" for number in range(rows)], columns=["a", "b", "c"]))
    for width in (600, 160):
        table.resize(width, table.minimumSizeHint().height())
        table.show()
        qtbot.waitExposed(table)
        table.resize(width, table.minimumSizeHint().height())
        QApplication.processEvents()
        assert table.verticalScrollBar().isVisible() == scrolls
        assert table.sizeHint().height() == table.height()


def test_fields_of_the_data_stand_in_one_column(qtbot, window):
    """Labels of several grids are of different length; their fields begin at one place all the same."""
    panel = window.data_panel
    forms = [ModalityForm(name) for name in ("rna", "a_modality_of_a_very_long_name")]
    holder = QWidget()
    qtbot.addWidget(holder)
    layout = QVBoxLayout(holder)
    for form in forms:
        layout.addWidget(form)
    holder.resize(400, 400)
    holder.show()
    qtbot.waitExposed(holder)
    starts = {widget.mapTo(holder, widget.rect().topLeft()).x() - form.x() for form in forms for widget in (form.counts, form.mode, form.number)}
    assert len(starts) == 1
    labels = (panel.modality_label, panel.join_label)
    assert all(label.sizeHint().width() <= label_width(panel) for label in labels)
