"""The list of runs, runs of other processes, and what comes back at the next start."""

from __future__ import annotations

import subprocess
import sys

import pytest
from qtpy.QtCore import Qt
from window_support import QUICK, close_window, small_h5ad

from cellweave.app.flows import dialogs
from cellweave.app.state.results import read_run
from cellweave.app.state.runs import RunLibrary, Trash, new_run_path, summarise
from cellweave.core.runs.events import EpochDone, FinishReason, RunState
from cellweave.core.runs.folder import RunFolder, RunStatus, host_name
from cellweave.core.runs.journal import Journal
from cellweave.core.spec import RunSpec, save_spec

LEFT = Qt.MouseButton.LeftButton
LONG = 90_000


def made_run(path, *, name="", state=RunState.DONE, reason=FinishReason.COMPLETED, epochs=3, pid=0):
    """Make a run folder as the engine leaves it, without training."""
    run = RunFolder.create(path, RunSpec().with_changes({"name": name}))
    journal = Journal(run)
    for epoch in range(1, epochs + 1):
        losses = {"reconstruction": 100.0 / epoch, "kl_z": 1.0, "total": 101.0 / epoch, "elbo": 102.0 / epoch}
        journal.emit(EpochDone(epoch=epoch, max_epochs=epochs, train=losses, validation=losses, best_epoch=epoch))
    run.write_status(RunStatus(state, reason, epochs, epochs, pid=pid, host=host_name(), started=float(len(path.name))))
    return run


@pytest.fixture
def runs(home):
    return [made_run(home / "runs" / f"vae-0{number}", name=name).path for number, name in enumerate(("first", "second"), 1)]


def test_a_summary_says_what_the_list_shows(tmp_path):
    run = made_run(tmp_path / "a", name="mine")
    summary = summarise(run.path)
    assert (summary.name, summary.kind, summary.words, summary.mark) == ("mine", "vae", "done", "check")
    assert summary.model == "scVI"
    assert summary.spark == (102.0, 51.0, 34.0)
    assert summary.final == "34.0"
    assert not summary.resumable


def test_a_run_whose_process_is_gone_is_interrupted_and_resumable(tmp_path):
    run = made_run(tmp_path / "a", state=RunState.TRAINING, reason=None, pid=2**22 + 1)
    (run.checkpoints / "last.safetensors").write_bytes(b"x")
    summary = summarise(run.path)
    assert summary.words == "interrupted"
    assert summary.resumable


@pytest.mark.parametrize("broken", ["spec.toml", "status.json", "losses.csv"])
def test_a_broken_part_never_stops_the_list(tmp_path, broken):
    run = made_run(tmp_path / "a")
    (run.path / broken).write_bytes(b"\xff\xfe not what was written\n1,2")
    assert summarise(run.path).path == run.path


def test_the_library_reads_only_what_changed(home, runs, monkeypatch):
    from cellweave.app.state import runs as store

    library = RunLibrary()
    read = []
    monkeypatch.setattr(store, "summarise", lambda path: read.append(path) or summarise(path))
    library.refresh()
    assert sorted(read) == sorted(runs)
    read.clear()
    library.refresh()
    assert read == []
    RunFolder(runs[0]).write_spec(RunSpec().with_changes({"name": "renamed"}))
    library.refresh()
    assert read == [runs[0]]
    assert library.get(runs[0]).name == "renamed"


def test_new_folders_count_up(home, runs):
    assert new_run_path(RunSpec(), home / "runs").name == "vae-03"


def test_the_trash_gives_back_in_reverse_order(home, runs):
    trash = Trash()
    for path in runs:
        trash.put(path)
    assert not any(path.exists() for path in runs)
    assert trash.restore_last() == runs[1]
    assert trash.restore_last() == runs[0]
    assert trash.restore_last() is None
    assert RunFolder(runs[0]).losses()[0]["epoch"] == 1


def test_click_rename_overlay_trash_and_put_back(qtbot, window, home, runs, monkeypatch):
    window.runs.refresh()
    panel = window.runs_panel
    assert {run.name for run in panel.model.runs} == {"first", "second"}
    row = next(number for number, run in enumerate(panel.model.runs) if run.name == "first")
    qtbot.mouseClick(panel.view.viewport(), LEFT, pos=panel.view.visualRect(panel.model.index(row)).center())
    assert panel.current() == runs[0]
    qtbot.keyClick(panel.view, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: window.watching.shown == runs[0], timeout=LONG)
    assert window.losses.history().epochs == [1, 2, 3]
    panel.set_current(runs[1])
    window.actions_by_id["run.overlay"].trigger()
    assert "second · vae-02" in window.losses._overlays
    monkeypatch.setattr(dialogs, "ask_text", lambda *_: "better name")
    window.actions_by_id["run.rename"].trigger()
    assert window.session.library.get(runs[1]).name == "better name"
    window.actions_by_id["run.trash"].trigger()
    assert not runs[1].exists()
    qtbot.mouseClick(window.centre.notice.action, LEFT)
    assert runs[1].is_dir()
    assert window.session.library.get(runs[1]).name == "better name"


def test_a_run_that_trains_cannot_be_thrown_away(qtbot, window, home):
    import os

    run = made_run(home / "runs" / "vae-01", state=RunState.TRAINING, reason=None, pid=os.getpid())
    window.runs.refresh()
    window.runs_panel.set_current(run.path)
    window.actions_by_id["run.trash"].trigger()
    assert "is training now" in window.error_dialog.cause.text()
    window.error_dialog.close()
    assert run.path.is_dir()


def test_settings_of_a_run_become_a_new_one(qtbot, window, home, tmp_path):
    data = small_h5ad(tmp_path / "small.h5ad")
    spec = RunSpec().with_changes({"data.paths": (str(data),), "model.n_latent": 17, "covariates.batch": "batch"})
    run = RunFolder.create(home / "runs" / "vae-01", spec)
    window.runs.refresh()
    window.runs_panel.set_current(run.path)
    window.actions_by_id["run.duplicate"].trigger()
    qtbot.waitUntil(lambda: window.session.checked_spec is not None, timeout=LONG)
    assert window.session.spec.model.n_latent == 17


@pytest.mark.slow
def test_a_run_of_another_process_is_followed_and_steered(qtbot, window, tmp_path):
    data = small_h5ad(tmp_path / "small.h5ad")
    spec = RunSpec().with_changes({"data.paths": (str(data),), "covariates.batch": "batch", "training.max_epochs": 100_000, **QUICK})
    save_spec(spec, tmp_path / "spec.toml")
    folder = tmp_path / "elsewhere"
    process = subprocess.Popen(
        [sys.executable, "-m", "cellweave.core.cli", "train", str(tmp_path / "spec.toml"), "--out", str(folder)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        qtbot.waitUntil(lambda: RunFolder(folder).status.epoch >= 1, timeout=LONG)
        window.opening.open_path(str(folder))
        qtbot.waitUntil(lambda: window.runs.following is not None, timeout=LONG)
        seen = window.losses.history().epochs[-1]
        qtbot.waitUntil(lambda: window.losses.history().epochs[-1] > seen, timeout=LONG)
        assert "epoch" in window.activity.sentence.text()
        qtbot.mouseClick(window.activity.stop, LEFT)
        qtbot.waitUntil(lambda: window.runs.following is None, timeout=LONG)
        assert RunFolder(folder).status.reason is FinishReason.STOPPED
        assert process.wait(60) == 0
        qtbot.waitUntil(lambda: not window.tasks.busy() and window.session.checked_spec is not None, timeout=LONG)
    finally:
        process.kill()
        process.wait()


def test_the_live_embedding_of_a_run_elsewhere_is_shown(qtbot, window, home, monkeypatch):
    import os

    import numpy as np

    from cellweave.core.analysis.jobs import JobUpdate, UpdateKind
    from cellweave.core.runs.events import PreviewReady

    run = made_run(home / "runs" / "vae-01", state=RunState.TRAINING, reason=None, pid=os.getpid())
    run.preview.mkdir(exist_ok=True)
    np.save(run.preview / "cells.npy", np.arange(30))
    np.save(run.preview / "latent-000003.npy", np.zeros((30, 4), np.float32))
    Journal(run).emit(PreviewReady(path=str(run.preview / "latent-000003.npy"), epoch=3))
    run.write_status(RunStatus(RunState.TRAINING, None, 3, 9, pid=os.getpid(), host=host_name()))
    asked = []
    monkeypatch.setattr(window.analysis, "submit", lambda kind, **job: asked.append(job) or 7)
    window.runs.open(run.path)
    qtbot.waitUntil(lambda: bool(asked), timeout=LONG)
    assert asked[0]["latent"] == str(run.preview / "latent-000003.npy")
    assert window.watching.results is not None
    np.save(asked[0]["out"], np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32))
    window.analysis.updated.emit(JobUpdate(UpdateKind.DONE, 7))
    assert window.watching.cells is not None
    assert window.embedding.points().size == 30
    assert list(window.watching.cells.rows) == list(range(30))


def test_the_views_say_which_run_they_show(qtbot, window, runs):
    window.runs.refresh()
    assert not window.centre._run.isVisible()
    window.status.say_idle("how the last run ended")
    window.runs.open(runs[0])
    qtbot.waitUntil(lambda: window.watching.shown == runs[0], timeout=LONG)
    assert window.centre.run.text() == "Run shown: first · vae-01"
    assert window.centre.run.isVisible()
    assert window.losses.history().name == "first · vae-01"
    assert window.activity.sentence.text() == "Ready"
    window.status.say_idle("what was said of this run")
    window.runs.open(runs[0])
    qtbot.waitUntil(lambda: not window.tasks.busy(), timeout=LONG)
    assert window.activity.sentence.text() == "what was said of this run"
    window.watching.clear()
    assert not window.centre._run.isVisible()


@pytest.mark.parametrize(("epochs", "reach"), [(0, "before its first epoch was over"), (1, "after 1 epoch"), (3, "after 3 epochs")])
def test_a_failed_run_says_why(qtbot, window, home, epochs, reach):
    from cellweave.core.runs.events import Failed

    run = made_run(home / "runs" / "vae-01", name="mine", reason=FinishReason.FAILED, epochs=epochs)
    Journal(run).emit(Failed(text="The loss is not a number.", mend="Lower the learning rate."))
    run.write_status(RunStatus(RunState.DONE, FinishReason.FAILED, epochs, 9, text="The loss is not a number.", host=host_name()))
    window.runs.open(run.path)
    qtbot.waitUntil(lambda: window.watching.shown == run.path, timeout=LONG)
    sentence = f"'mine · vae-01' failed {reach}. The loss is not a number. Lower the learning rate."
    assert window.losses._message == sentence
    assert window.centre.notice.words.text() == sentence
    embedding = window.watching._why_no_embedding(window.watching.results)
    assert embedding == "'mine · vae-01' has no embedding: it failed. The loss is not a number. Lower the learning rate."


def test_a_run_without_embedding_says_when_it_comes_or_why_never(qtbot, window, home):
    import os

    run = made_run(home / "runs" / "vae-01", state=RunState.TRAINING, reason=None, pid=os.getpid())
    say = lambda: window.watching._why_no_embedding(read_run(run.path))  # noqa: E731
    assert say() == window.watching._waiting_words(run.spec)
    run.write_status(RunStatus(RunState.TRAINING, None, 3, 9, pid=2**22 + 1, host=host_name()))
    assert "interrupted" in say()
    run.write_status(RunStatus(RunState.DONE, FinishReason.COMPLETED, 9, 9))
    run.write_spec(run.spec.with_changes({"analysis.umap": False}))
    assert "switched off" in say()


def test_the_next_start_is_where_the_last_one_ended(qtbot, make_window, answers, tmp_path):
    data = small_h5ad(tmp_path / "small.h5ad")
    first = make_window()
    first.opening.open_path(str(data))
    qtbot.waitUntil(lambda: first.session.checked_spec is not None, timeout=LONG)
    first.session.editor.edit({"model.n_latent": 21})
    first.actions_by_id["view.theme_dark"].trigger()
    first.arrangement.toggle_dock("log")
    first.docks["runs"].hide()
    first.resize(1300, 800)
    close_window(first, answers)
    second = make_window()
    assert second.session.settings.theme == "dark"
    assert not second.docks["log"].isHidden()
    assert second.docks["runs"].isHidden()
    welcome = second.centre.welcome
    assert welcome.last.text() == "Go on with small.h5ad"
    qtbot.mouseClick(welcome.last, LEFT)
    qtbot.waitUntil(lambda: second.session.checked_spec is not None, timeout=LONG)
    assert second.session.spec.model.n_latent == 21


def test_recent_files_that_are_gone_are_greyed(qtbot, make_window, home, tmp_path):
    from qtpy.QtWidgets import QPushButton

    from cellweave.app.state.settings import Settings, save_settings

    data = small_h5ad(tmp_path / "small.h5ad")
    save_settings(Settings(recent_data=[str(data), str(tmp_path / "gone.h5ad")]), home / "settings.json")
    window = make_window()
    links = {link.text(): link for link in window.centre.welcome.recent.findChildren(QPushButton)}
    assert links["small.h5ad"].isEnabled()
    assert not links["gone.h5ad (missing)"].isEnabled()
    qtbot.mouseClick(links["small.h5ad"], LEFT)
    qtbot.waitUntil(lambda: window.session.checked_spec is not None, timeout=LONG)


def test_recent_files_and_runs_are_in_the_file_menu(qtbot, make_window, home, runs, tmp_path):
    from qtpy.QtWidgets import QPushButton

    from cellweave.app.state.settings import Settings, save_settings

    data = small_h5ad(tmp_path / "small.h5ad")
    save_settings(Settings(recent_data=[str(data), str(tmp_path / "gone.h5ad")], recent_runs=[str(runs[0])]), home / "settings.json")
    window = make_window()
    links = [link.text() for link in window.centre.welcome.recent.findChildren(QPushButton)]
    assert "first · vae-01" in links, "a run is called on the first page what it is called in the list"
    assert window.recent_menu.menuAction() in window.actions_by_id.menus["File"].actions()
    window.recent_menu.aboutToShow.emit()
    found = {action.text(): action for action in window.recent_menu.actions() if not action.isSeparator()}
    assert list(found) == ["small.h5ad", "gone.h5ad (missing)", "vae-01"]
    assert not found["gone.h5ad (missing)"].isEnabled()
    found["vae-01"].trigger()
    qtbot.waitUntil(lambda: window.watching.shown == runs[0], timeout=LONG)
    found["small.h5ad"].trigger()
    qtbot.waitUntil(lambda: window.session.checked_spec is not None, timeout=LONG)


def test_what_was_left_running_is_offered(qtbot, make_window, home):
    import os

    from cellweave.app.state.settings import Settings, save_settings

    run = made_run(home / "runs" / "vae-01", name="mine", state=RunState.TRAINING, reason=None, pid=os.getpid())
    run.write_status(RunStatus(RunState.TRAINING, None, 3, 9, pid=os.getpid(), host=host_name()))
    save_settings(Settings(active_run=str(run.path)), home / "settings.json")
    window = make_window()
    link = window.centre.welcome.watch
    assert link.isVisible()
    assert link.text() == "Watch 'mine · vae-01' (epoch 3 of 9)"
    qtbot.mouseClick(link, LEFT)
    qtbot.waitUntil(lambda: window.runs.following is not None, timeout=LONG)
    assert window.watching.shown == run.path
    run.write_status(RunStatus(RunState.DONE, FinishReason.COMPLETED, 9, 9))
    later = make_window()
    assert later.centre.welcome.watch.text() == "Open 'mine · vae-01', which was left running (done)"
    assert later.session.settings.active_run == ""


def test_the_time_left_of_a_run_elsewhere_comes_from_its_epochs():
    from cellweave.app.state.progress import RunProgress
    from cellweave.core.runs.events import StateChanged, StepProgress

    progress = RunProgress("x")
    progress.add(StateChanged(state=RunState.TRAINING))
    for epoch, seconds in ((1, 4.0), (2, 2.0)):
        progress.add(EpochDone(epoch=epoch, max_epochs=10, seconds=seconds))
    assert progress.seconds_left == 24.0
    assert "24 s left" in progress.sentence()
    progress.add(StepProgress(epoch=3, max_epochs=10, seconds_left=5.0))
    progress.add(EpochDone(epoch=3, max_epochs=10, seconds=50.0))
    assert progress.seconds_left == 5.0


def test_nothing_is_exported_of_a_run_whose_folder_is_gone(qtbot, window, runs):
    import shutil

    window.runs.refresh()
    window.runs.open(runs[0])
    qtbot.waitUntil(lambda: window.watching.shown == runs[0], timeout=LONG)
    window.runs_panel.set_current(runs[1])
    assert window.actions_by_id["file.figure"].isEnabled()
    shutil.rmtree(runs[0])
    window.centre.notice.hide()
    window.losses.exportRequested.emit()  # the button of the view, before the list was read again
    assert window.figure_dialog is None
    assert "'first · vae-01' is gone" in window.centre.notice.words.text()
    assert not window.actions_by_id["file.figure"].isEnabled()
    assert not window.actions_by_id["file.tables"].isEnabled()
    window.centre.notice.hide()
    window.losses.exportRequested.emit()  # not of the run that is selected
    assert window.figure_dialog is None
    assert window.centre.notice.isVisible()
    window.runs.open(runs[1])
    qtbot.waitUntil(lambda: window.watching.shown == runs[1], timeout=LONG)
    assert window.actions_by_id["file.figure"].isEnabled()


def test_unreadable_settings_are_ignored_and_said(make_window, home):
    home.mkdir()
    (home / "settings.json").write_text("{ this is not JSON")
    window = make_window()
    notice = window.centre.welcome.notice.text()
    assert "could not be read" in notice
    assert "line 1" not in notice
    assert "Expecting" not in notice
    assert any("Expecting" in line for line in window.log_handler.lines)
    assert window.session.settings.theme == "system"


def test_an_interrupted_run_is_offered_again(make_window, home):
    from cellweave.app.state.settings import Settings, save_settings

    run = made_run(home / "runs" / "vae-01", name="long one", state=RunState.TRAINING, reason=None, pid=2**22 + 1)
    (run.checkpoints / "last.safetensors").write_bytes(b"x")
    save_settings(Settings(active_run=str(run.path)), home / "settings.json")
    window = make_window()
    assert window.centre.notice.words.text() == "The run 'long one · vae-01' was interrupted at epoch 3."
    assert window.centre.notice.action.text() == "Continue it"
