"""Training through the window: queue, live weights, pause, cancel, faults, closing."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from qtpy.QtCore import Qt
from window_support import QUICK, small_h5ad

from cellweave.app.flows import dialogs
from cellweave.core.runs.events import FinishReason, RunState, WeightChanged
from cellweave.core.runs.folder import RunFolder

LEFT = Qt.MouseButton.LeftButton
LONG = 90_000


@pytest.fixture
def ready(qtbot, window, tmp_path):
    """A window with small data, ready to train quickly."""
    window.opening.open_path(str(small_h5ad(tmp_path / "small.h5ad")))
    qtbot.waitUntil(lambda: window.session.checked_spec is not None, timeout=LONG)
    window.session.editor.edit({**QUICK, "training.max_epochs": 4})
    wait_checked(qtbot, window)
    return window


def wait_checked(qtbot, window):
    qtbot.waitUntil(lambda: window.session.checked_spec == window.session.spec, timeout=LONG)


def train(qtbot, window, **changes):
    if changes:
        window.session.editor.edit(changes)
        wait_checked(qtbot, window)
    qtbot.mouseClick(window.workflow.train, LEFT)
    qtbot.waitUntil(lambda: window.training.active, timeout=LONG)
    return window.training.current.folder


def wait_epoch(qtbot, window, epoch=1):
    qtbot.waitUntil(lambda: window.training.progress.epoch >= epoch or not window.training.active, timeout=LONG)
    assert window.training.active


def wait_done(qtbot, window):
    qtbot.waitUntil(lambda: not window.training.active and not window.tasks.busy(), timeout=LONG)


def test_a_run_leaves_a_folder_and_a_line_in_the_list(qtbot, ready):
    folder = train(qtbot, ready)
    wait_done(qtbot, ready)
    assert RunFolder(folder).status.reason is FinishReason.COMPLETED
    assert ready.watching.shown == folder
    run = ready.session.library.get(folder)
    assert run.words == "done"
    assert len(run.spark) == 4
    assert ready.runs_panel.current() == folder
    assert "finished after 4 epochs" in ready.activity.sentence.text()
    assert ready.losses.history().epochs == [1, 2, 3, 4]
    assert str(folder) in ready.session.settings.recent_runs


def test_every_field_of_the_forms_reaches_the_engine(qtbot, ready):
    wanted = {"training.batch_size": 64, "training.learning_rate": 0.002, "training.seed": 5, "model.n_latent": 3, "losses.weights.kl_z": 0.5}
    folder = train(qtbot, ready, **wanted)
    wait_done(qtbot, ready)
    spec = RunFolder(folder).spec
    assert (spec.training.batch_size, spec.training.learning_rate, spec.training.seed, spec.model.n_latent) == (64, 0.002, 5, 3)
    assert np.load(folder / "results" / "latent.npy").shape == (240, 3)
    assert ready.losses.history().weights["kl_z"] == 0.5


def test_a_second_run_waits_for_the_first(qtbot, ready):
    first = train(qtbot, ready, **{"training.max_epochs": 150})
    wait_epoch(qtbot, ready)
    assert ready.workflow.train.text() == "Queue a further run"
    ready.session.editor.edit({"training.max_epochs": 2})
    wait_checked(qtbot, ready)
    qtbot.mouseClick(ready.workflow.train, LEFT)
    assert len(ready.training.queue) == 1
    second = ready.training.queue[0].folder
    assert second != first
    assert "waits in the queue" in ready.centre.notice.words.text()
    ready.runs.refresh()
    assert [run.path for run in ready.runs_panel.model.runs] == [second, first]
    ready.training.stop()
    qtbot.waitUntil(lambda: ready.training.current is not None and ready.training.current.folder == second, timeout=LONG)
    wait_done(qtbot, ready)
    assert RunFolder(second).spec.training.max_epochs == 2
    assert RunFolder(second).status.reason is FinishReason.COMPLETED
    assert RunFolder(first).status.reason is FinishReason.STOPPED


def test_weights_are_live_unless_switched_off(qtbot, ready):
    folder = train(qtbot, ready, **{"training.max_epochs": 2000})
    wait_epoch(qtbot, ready)
    assert ready.losses_panel.live.isVisibleTo(ready.losses_panel)
    ready.losses_panel.form.weightChanged.emit("kl_z", 3.0)
    run = RunFolder(folder)
    qtbot.waitUntil(lambda: any(isinstance(event, WeightChanged) for event in run.events()), timeout=LONG)
    ready.session.editor.stack.undo()
    qtbot.waitUntil(lambda: sum(isinstance(event, WeightChanged) for event in run.events()) == 2, timeout=LONG)
    ready.losses_panel.live.setChecked(False)
    ready.losses_panel.form.weightChanged.emit("kl_z", 9.0)
    epoch = ready.training.progress.epoch
    wait_epoch(qtbot, ready, epoch + 2)
    changes = [(event.old, event.new) for event in run.events() if isinstance(event, WeightChanged)]
    assert changes == [(1.0, 3.0), (3.0, 1.0)]
    ready.training.stop()
    wait_done(qtbot, ready)


def test_pause_holds_and_goes_on(qtbot, ready):
    train(qtbot, ready, **{"training.max_epochs": 2000})
    wait_epoch(qtbot, ready)
    ready.actions_by_id["run.pause"].trigger()
    qtbot.waitUntil(lambda: ready.training.progress.state is RunState.PAUSED, timeout=LONG)
    held = ready.training.progress.epoch
    qtbot.wait(400)
    assert ready.training.progress.epoch == held
    assert "Paused" in ready.activity.sentence.text()
    ready.actions_by_id["run.pause"].trigger()
    wait_epoch(qtbot, ready, held + 2)
    ready.training.stop()
    wait_done(qtbot, ready)


def test_cancel_asks_says_so_at_once_and_can_be_taken_back(qtbot, ready, answers):
    folder = train(qtbot, ready, **{"training.max_epochs": 2000})
    wait_epoch(qtbot, ready)
    answers.waiting = ["Go on training", "Cancel the run"]
    qtbot.mouseClick(ready.activity.cancel, LEFT)
    assert ready.training.active
    assert not ready.training.cancelling
    qtbot.mouseClick(ready.activity.cancel, LEFT)
    assert ready.activity.cancel.text() == "Cancelling…"
    assert not ready.activity.cancel.isEnabled()
    wait_done(qtbot, ready)
    assert not folder.exists()
    assert ready.session.library.get(folder) is None
    ready.actions_by_id["run.restore"].trigger()
    assert folder.is_dir()
    assert RunFolder(folder).status.reason is FinishReason.CANCELLED


def test_a_run_can_be_continued(qtbot, ready, answers):
    folder = train(qtbot, ready, **{"training.max_epochs": 60})
    wait_epoch(qtbot, ready, 3)
    answers.waiting = ["Cancel the run"]
    ready.training.cancel()
    wait_done(qtbot, ready)
    ready.runs.restore()
    ready.runs.refresh()
    ready.runs_panel.set_current(folder)
    assert ready.actions_by_id["run.resume"].isEnabled()
    done = int(RunFolder(folder).losses()[-1]["epoch"])
    ready.actions_by_id["run.resume"].trigger()
    ready.training.current.control.pause()  # so that its earlier epochs can only have come from its journal
    qtbot.waitUntil(lambda: ready.losses.history().epochs[:done] == list(range(1, done + 1)), timeout=LONG)
    assert ready.training.active
    ready.training.current.control.resume()
    wait_done(qtbot, ready)
    assert RunFolder(folder).status.reason is FinishReason.COMPLETED
    assert [row["epoch"] for row in RunFolder(folder).losses()] == list(range(1, 61))


def test_a_run_that_was_stopped_goes_on_to_its_end_and_then_longer(qtbot, ready, monkeypatch):
    folder = train(qtbot, ready, **{"training.max_epochs": 30})
    wait_epoch(qtbot, ready, 2)
    ready.actions_by_id["run.stop"].trigger()
    wait_done(qtbot, ready)
    assert RunFolder(folder).status.reason is FinishReason.STOPPED
    ready.runs_panel.set_current(folder)
    ready.actions_by_id["run.resume"].trigger()
    wait_done(qtbot, ready)
    assert RunFolder(folder).status.reason is FinishReason.COMPLETED
    assert [row["epoch"] for row in RunFolder(folder).losses()] == list(range(1, 31))
    asked = []
    monkeypatch.setattr(dialogs, "ask_number", lambda _parent, _title, sentence, value: asked.append((sentence, value)) or (None if len(asked) == 1 else 3))
    ready.actions_by_id["run.resume"].trigger()
    assert not ready.training.active  # the person thought better of it
    ready.actions_by_id["run.resume"].trigger()
    wait_done(qtbot, ready)
    assert [row["epoch"] for row in RunFolder(folder).losses()] == list(range(1, 34))
    assert "30 epochs" in asked[0][0]
    assert asked[0][1] == 6


def test_nan_is_said_where_one_looks_with_cause_and_mend(qtbot, ready):
    train(qtbot, ready, **{"training.learning_rate": 1.0, "training.adam_eps": 1e-30, "training.max_epochs": 400, "losses.weights.kl_z": 1e30})
    wait_done(qtbot, ready)
    if ready.training.progress.reason is FinishReason.FAILED:
        text = ready.error_dialog.cause.text()
        assert "fault in Cellweave" not in text
        assert ready.error_dialog.mend.text()
        ready.error_dialog.close()
    else:
        pytest.fail("a weight of 1e30 did not upset the training: this test proves nothing")
    assert ready.workflow.train.isEnabled()


def test_the_analysis_process_is_killed_and_started_again(qtbot, ready):
    ready.session.editor.edit({"analysis.umap": True})
    wait_checked(qtbot, ready)
    ready.analysis.process.start(warm=True)
    qtbot.waitUntil(lambda: ready.analysis.process.pid is not None, timeout=LONG)
    folder = train(qtbot, ready)
    qtbot.waitUntil(lambda: ready.training.progress.state is RunState.ANALYSING, timeout=LONG)
    os.kill(ready.analysis.process.pid, signal.SIGKILL)
    wait_done(qtbot, ready)
    assert RunFolder(folder).status.reason is FinishReason.COMPLETED
    assert (folder / "results" / "umap.npy").is_file()
    assert any("started again" in line for line in ready.log_handler.lines)


def test_the_run_folder_vanishes_and_the_window_says_so(qtbot, ready):
    import shutil

    folder = train(qtbot, ready)
    wait_done(qtbot, ready)
    shutil.rmtree(folder)
    ready.runs.refresh()
    assert "is gone" in ready.centre.notice.words.text()
    assert ready.session.library.get(folder) is None
    assert not ready.actions_by_id["run.overlay"].isEnabled()


def test_a_folder_deleted_while_its_run_trains_is_said_and_the_run_goes_on(qtbot, ready):
    import shutil

    folder = train(qtbot, ready, **{"training.max_epochs": 100_000, "training.early_stopping": False})
    wait_epoch(qtbot, ready, 2)
    folder.rename(folder.with_name("gone"))  # at once, unlike a removal, during which the run writes on
    shutil.rmtree(folder.with_name("gone"))
    notice = ready.centre.notice
    qtbot.waitUntil(lambda: "deleted while the run went on" in notice.words.text(), timeout=LONG)
    assert notice.isVisible()
    ready.training.stop()
    wait_done(qtbot, ready)
    assert RunFolder(folder).status.reason in {FinishReason.STOPPED, FinishReason.COMPLETED}
    assert ready.losses.history().epochs[0] == 1


def test_a_warning_is_shown_once_and_not_where_the_checks_say_it(ready):
    from cellweave.core.runs.events import Warned

    said: set[str] = set()
    notice = ready.centre.notice
    ready.warn(Warned(text="First.", mend="Mend it."), said)
    assert notice.words.text() == "First. Mend it."
    notice.hide()
    ready.warn(Warned(text="First.", mend="Mend it."), said)
    ready.warn(Warned(text=ready.session.checks[0].text), said)
    assert not notice.isVisible()


def test_the_row_of_the_run_that_began_is_selected_and_the_views_name_it(qtbot, ready):
    folder = train(qtbot, ready, **{"name": "mine", "training.max_epochs": 2000})
    assert ready.centre.run.text() == "Run shown: mine · vae-01"
    wait_epoch(qtbot, ready)
    assert ready.runs_panel.current() == folder
    assert ready.runs.target == folder
    assert ready.activity.sentence.text().startswith("mine · vae-01: ")
    assert ready.runs_panel.view.currentIndex().data() == "mine · vae-01"
    ready.training.stop()
    wait_done(qtbot, ready)
    assert "mine · vae-01 was stopped and kept after" in ready.activity.sentence.text()


def test_until_the_first_epoch_the_losses_view_says_what_the_run_does(ready, tmp_path):
    from cellweave.core.runs.events import Progress, StateChanged

    losses, watching = ready.losses, ready.watching
    assert losses._message.startswith("Press Train")
    watching.begin(tmp_path / "vae-01", ready.session.spec)
    assert losses._message == "vae-01: Starting"
    watching.take([StateChanged(state=RunState.LOADING)])
    assert losses._message.startswith("vae-01: Loading")
    watching.take([StateChanged(state=RunState.PREPARING), Progress(phase="building the model")])
    assert losses._message.startswith("vae-01: Preparing")
    watching.take([StateChanged(state=RunState.TRAINING)])
    assert "Press Train" not in losses._message


def test_where_train_is_greyed_the_losses_view_says_why(qtbot, ready):
    ready.session.editor.edit({"covariates.batch": "nowhere"})
    wait_checked(qtbot, ready)
    assert not ready.workflow.train.isEnabled()
    assert ready.losses._message == ready.session.why_not_ready() != ""


def test_a_weight_acts_only_while_the_run_takes_steps(qtbot, ready):
    from cellweave.core.runs.events import StateChanged

    folder = train(qtbot, ready, **{"training.max_epochs": 2000})
    wait_epoch(qtbot, ready)
    panel = ready.losses_panel
    assert ready.training.live
    assert panel.live.isVisibleTo(panel)
    ready.training.progress.add(StateChanged(state=RunState.ANALYSING))
    ready.status.refresh()
    ready.training.live_weights = True
    assert not ready.training.live
    assert not panel.live.isVisibleTo(panel)
    assert "next step" not in panel.hint.text()
    lines = len(ready.log_handler.lines)
    panel.form.weightChanged.emit("kl_z", 3.0)
    assert not any("while training" in line for line in list(ready.log_handler.lines)[lines:])
    ready.training.stop()
    wait_done(qtbot, ready)
    assert not any(isinstance(event, WeightChanged) for event in RunFolder(folder).events())


@pytest.mark.parametrize("choice", ["Keep the window open", "Stop and keep", "Cancel the run"])
def test_closing_during_a_run_asks(qtbot, ready, answers, choice):
    folder = train(qtbot, ready, **{"training.max_epochs": 2000})
    wait_epoch(qtbot, ready)
    answers.waiting = [choice]
    closed = ready.close()
    assert answers.asked == ["A run is training"]
    if choice == "Keep the window open":
        assert not closed
        assert ready.training.active
        ready.training.stop()
        wait_done(qtbot, ready)
    elif choice == "Stop and keep":
        qtbot.waitUntil(lambda: not ready.isVisible(), timeout=LONG)
        assert RunFolder(folder).status.reason is FinishReason.STOPPED
        assert (folder / "results" / "latent.npy").is_file()
    else:
        assert closed
        assert not folder.exists()


def test_left_running_it_goes_on_in_a_process_of_its_own(qtbot, ready, answers):
    import time

    folder = train(qtbot, ready, **{"training.max_epochs": 30})
    wait_epoch(qtbot, ready)
    answers.waiting = ["Leave it running"]
    assert ready.close()
    deadline = time.monotonic() + 120
    while RunFolder(folder).status.reason is not FinishReason.COMPLETED and time.monotonic() < deadline:
        qtbot.wait(200)
    status = RunFolder(folder).status
    assert status.reason is FinishReason.COMPLETED, (status, RunFolder(folder).log_file.read_text()[-1500:])
    assert status.pid != os.getpid()
    assert [row["epoch"] for row in RunFolder(folder).losses()] == list(range(1, 31))


def test_a_detached_run_trains_in_a_process_of_its_own_and_can_be_opened(qtbot, ready, home):
    ready.actions_by_id["run.detached"].trigger()
    folder = home / "runs" / "vae-01"
    qtbot.waitUntil(lambda: RunFolder(folder).status.reason is FinishReason.COMPLETED, timeout=LONG)
    assert RunFolder(folder).status.pid != os.getpid()
    ready.runs.refresh()
    ready.runs.open(folder)
    qtbot.waitUntil(lambda: ready.watching.shown == folder, timeout=LONG)
    assert ready.losses.history().epochs == [1, 2, 3, 4]


def test_other_data_opened_during_a_run_touch_neither_its_weights_nor_its_cells(qtbot, ready, tmp_path):
    folder = train(qtbot, ready, **{"training.max_epochs": 100_000, "training.preview_every": 5})
    other = small_h5ad(tmp_path / "other.h5ad", n_cells=50, seed=9)
    ready.opening.open_path(str(other))
    qtbot.waitUntil(lambda: ready.session.study is not None and ready.session.study.n_cells == 50, timeout=LONG)
    ready.session.editor.start(ready.session.spec.with_changes({"losses.weights.kl_z": 7.0}))
    wait_epoch(qtbot, ready, 5)
    ready.training.pause()  # what compiles the layout needs the processor now
    qtbot.waitUntil(lambda: ready.watching.cells is not None, timeout=2 * LONG)
    ready.training.pause()
    assert len(ready.watching.cells.rows) == 240
    assert "cell_type" in ready.watching.cells.columns
    ready.session.editor.edit({"losses.weights.kl_z": 8.0})
    run = RunFolder(folder)
    qtbot.waitUntil(lambda: any(isinstance(event, WeightChanged) for event in run.events()), timeout=LONG)
    ready.training.stop()
    wait_done(qtbot, ready)
    assert [(event.old, event.new) for event in run.events() if isinstance(event, WeightChanged)] == [(1.0, 8.0)]
    assert run.spec.data.paths[0].endswith("small.h5ad")
