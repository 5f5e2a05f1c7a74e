"""The next start shows the run that was shown, with its view and the settings that were being edited; a run nobody watched gets its slider."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from window_support import QUICK, close_window, show_run, small_h5ad

from cellweave.app.state.results import MOST_LAYOUTS, previews_without_layout, read_run
from cellweave.app.views.epochbar import EpochBar
from cellweave.core.analysis.jobs import JobUpdate, UpdateKind
from cellweave.core.runs.execute import execute
from cellweave.core.runs.folder import RunFolder
from cellweave.core.spec import RunSpec

LONG = 60_000


def reopened(qtbot, window, folder):
    qtbot.waitUntil(lambda: window.watching.results is not None and window.watching.results.folder == folder, timeout=LONG)


# ------------------------------------------------------------------ the run shown last


def test_the_run_its_view_its_settings_and_step_come_back(qtbot, make_window, answers, trained):
    first = make_window()
    show_run(qtbot, first, trained["ldvae"])
    qtbot.waitUntil(lambda: first.session.checked_spec is not None, timeout=LONG)
    first.actions_by_id["view.loadings"].trigger()
    first.session.editor.edit({"model.n_latent": 21})
    first.go_to_step(2)
    close_window(first, answers)
    second = make_window()
    reopened(qtbot, second, trained["ldvae"])
    assert second.centre.current() == "loadings"
    assert second.runs_panel.selected_runs() == [trained["ldvae"]]
    qtbot.waitUntil(lambda: second.session.checked_spec is not None, timeout=LONG)
    assert second.session.spec.model.n_latent == 21, "what was being edited, not what the run was trained with"
    assert second.session.settings.step == 2
    assert second.watching.shown == trained["ldvae"]


def test_the_view_in_front_comes_back_although_the_program_chose_it(qtbot, make_window, answers, trained):
    first = make_window()
    show_run(qtbot, first, trained["ldvae"])
    first.actions_by_id["view.loadings"].trigger()
    first.show_view("losses")
    close_window(first, answers)
    second = make_window()
    reopened(qtbot, second, trained["ldvae"])
    assert second.centre.current() == "losses"


def test_the_run_shown_last_comes_back_not_the_one_opened_before(qtbot, make_window, answers, trained):
    first = make_window()
    for kind in ("vae", "ldvae", "vae"):
        show_run(qtbot, first, trained[kind])
    close_window(first, answers)
    second = make_window()
    reopened(qtbot, second, trained["vae"])


@pytest.mark.parametrize("how", ["deleted", "in the trash", "none was shown"])
def test_without_that_run_the_window_opens_as_at_a_first_start(qtbot, make_window, answers, trained, how):
    first = make_window()
    if how != "none was shown":
        show_run(qtbot, first, trained["vae"])
        qtbot.waitUntil(lambda: first.session.checked_spec is not None, timeout=LONG)
    if how == "in the trash":
        first.runs.select(trained["vae"])
        first.runs.trash()
    close_window(first, answers)
    if how == "deleted":
        shutil.rmtree(trained["vae"])
    second = make_window()
    assert second.arrangement._coming is None
    assert second.session.settings.last_run == ("" if how != "deleted" else str(trained["vae"]))
    assert second.centre.current() == "welcome" and second.watching.shown is None and not second.tasks.busy()
    assert second.centre.welcome.last.isVisible() == (how != "none was shown"), "its data are still offered"


def test_a_run_that_cannot_be_read_any_more_does_not_get_in_the_way(qtbot, make_window, answers, trained):
    first = make_window()
    show_run(qtbot, first, trained["vae"])
    close_window(first, answers)
    (trained["vae"] / "spec.toml").write_text("this is no spec")
    second = make_window()
    qtbot.waitUntil(lambda: any("could not be opened again" in line for line in second.log_handler.lines), timeout=LONG)
    assert second.centre.current() == "welcome" and second.watching.shown is None
    assert not hasattr(second, "error_dialog")


def test_what_is_opened_at_the_start_comes_in_place_of_the_last_run(qtbot, make_window, answers, trained, monkeypatch):
    first = make_window()
    show_run(qtbot, first, trained["vae"])
    close_window(first, answers)
    from cellweave.app.window import MainWindow

    whole = MainWindow.restore
    monkeypatch.setattr(MainWindow, "restore", lambda self: whole(self, reopen=False))
    second = make_window()
    assert second.arrangement._coming is None and not second.tasks.busy()


def test_closing_before_it_is_shown_again_does_not_forget_it(qtbot, make_window, answers, trained):
    first = make_window()
    show_run(qtbot, first, trained["vae"])
    close_window(first, answers)
    second = make_window()
    second.arrangement._coming = trained["vae"]  # as long as it is being read
    second.watching.shown = None
    second.arrangement.save_now()
    assert second.session.settings.last_run == str(trained["vae"])
    second.arrangement.came()


def test_a_window_that_closes_begins_nothing_more(qtbot):
    from cellweave.app.workers.tasks import TaskRunner

    said, began = [], []
    runner = TaskRunner()
    runner.run(lambda report: "found", lambda found: (said.append(found), runner.run(lambda report: began.append(1), said.append, said.append)), said.append)
    runner.shutdown()
    later = runner.run(lambda report: began.append(2), said.append, said.append)
    qtbot.wait(200)
    assert not said and not began and not later.running() and not runner.busy()


# ------------------------------------------------------------------ epochs that nobody watched


@pytest.fixture(scope="module")
def unwatched_once(tmp_path_factory):
    """A run that another process trained: previews, a UMAP in the end (its first latent dimensions here), and no layouts."""
    folder = tmp_path_factory.mktemp("unwatched")
    data = small_h5ad(folder / "cells.h5ad")
    spec = RunSpec().with_changes(
        {"data.paths": (str(data),), "covariates.batch": "batch", "model.n_latent": 4, "model.n_hidden": 16, "training.max_epochs": 6,
         "training.batch_size": 64, **QUICK, "training.preview_every": 2}
    )  # fmt: skip
    run = folder / "vae-07"
    execute(spec, run)
    np.save(run / "results" / "umap.npy", np.load(run / "results" / "latent.npy")[:, :2])
    return run


@pytest.fixture
def unwatched(unwatched_once, home):
    return shutil.copytree(unwatched_once, home / "runs" / "vae-07")


@pytest.fixture
def orders(window, monkeypatch):
    """What is asked of the analysis process, in place of the process."""
    found = []

    def submit(task, **arguments):
        found.append((task, arguments))
        return 1000 + len(found)

    monkeypatch.setattr(window.analysis, "submit", submit)
    return found


def answer(window, orders, kind=UpdateKind.DONE):
    """Do the last order."""
    task, arguments = orders[-1]
    if kind is UpdateKind.DONE:
        n_cells = len(np.load(arguments["latent"]))
        np.save(arguments["out"], np.full((n_cells, 2), float(len(orders)), np.float32))
    window.analysis.updated.emit(JobUpdate(kind, 1000 + len(orders), task, text="no room"))


def test_a_run_nobody_watched_gets_its_slider(qtbot, window, unwatched, orders):
    show_run(qtbot, window, unwatched)
    bar = window.embedding.epochs
    assert bar.isHidden() and len(orders) == 1
    made = []
    while not made or made[-1][1]["out"] != orders[-1][1]["out"]:
        made.append(orders[-1])
        answer(window, orders)
    assert [task for task, _ in made] == ["refresh"] * 3
    assert [given["latent"][-10:-4] for _, given in made] == ["000001", "000002", "000004"]
    assert [given["previous"] for _, given in made] == [None, *(given["out"] for _, given in made[:-1])]
    assert bar.isVisible() and bar.slider.maximum() == 3 and bar.at_end, "the final embedding is the last"
    before = window.embedding.points().xy.copy()
    bar.slider.setValue(1)
    qtbot.waitUntil(lambda: np.all(window.embedding.points().xy == 2.0), timeout=LONG)
    bar.slider.setValue(3)
    qtbot.waitUntil(lambda: np.allclose(window.embedding.points().xy, before, atol=1e-4), timeout=LONG)
    show_run(qtbot, window, unwatched)
    again = read_run(unwatched)
    assert len(again.epochs) == 3 and again.without_layout == () and len(orders) == 3, "they are made once"


def test_whoever_went_back_stays_there_while_further_epochs_come(qtbot, window, unwatched, orders):
    show_run(qtbot, window, unwatched)
    answer(window, orders)
    bar = window.embedding.epochs
    bar.slider.setValue(0)
    answer(window, orders)
    answer(window, orders)
    assert bar.slider.maximum() == 3 and bar.slider.value() == 0


def test_another_run_ends_it_and_a_failure_too(qtbot, window, unwatched, trained, orders):
    show_run(qtbot, window, unwatched)
    answer(window, orders, UpdateKind.FAILED)
    assert len(orders) == 1 and window.embedding.epochs.isHidden()
    assert any("no room" in line for line in window.log_handler.lines)
    window.watching.open(unwatched)
    qtbot.waitUntil(lambda: len(orders) == 2, timeout=LONG)
    show_run(qtbot, window, trained["vae"])
    answer(window, orders)
    assert len(orders) == 2 and window.embedding.epochs.isHidden(), "it is of a run that is no longer shown"


def test_the_process_of_the_window_lays_them_out(qtbot, window, unwatched):
    show_run(qtbot, window, unwatched)
    qtbot.waitUntil(lambda: window.embedding.epochs.slider.maximum() == 3, timeout=240_000)
    for epoch in (1, 2, 4):
        assert np.isfinite(np.load(unwatched / "preview" / f"layout-{epoch:06d}.npy")).all()


def test_which_previews_are_laid_out(tmp_path):
    rows = np.arange(5)
    np.save(tmp_path / "cells.npy", rows)
    for epoch in (1, 5, 10, 15, 20, 25):
        np.save(tmp_path / f"latent-{epoch:06d}.npy", np.zeros((5, 3)))

    def found(last=100, of=rows):
        return [epoch for epoch, _ in previews_without_layout(tmp_path, of, last)]

    assert found() == [1, 5, 10, 15, 20, 25]
    assert found(last=20) == [1, 5, 10, 15], "the final embedding is of the last, and what lies behind was trained again"
    assert found(of=np.arange(6)) == [], "of other cells than the final embedding"
    for epoch in (5, 15):
        np.save(tmp_path / f"layout-{epoch:06d}.npy", np.zeros((5, 2)))
    assert found() == [1, 20, 25], "what a window that watched left out in between stays left out"
    for epoch in range(100, 200):
        np.save(tmp_path / f"latent-{epoch:06d}.npy", np.zeros((5, 3)))
    many = found(last=1000)
    assert len(many) == len(set(many)) == MOST_LAYOUTS and many[0] == 1 and many[-1] == 199


def test_a_run_that_trains_or_has_no_embedding_is_left_alone(unwatched):
    from cellweave.core.runs.events import RunState
    from cellweave.core.runs.folder import RunStatus

    run = RunFolder(unwatched)
    assert len(read_run(unwatched).without_layout) == 3
    done = run.status
    run.write_status(RunStatus(RunState.TRAINING, None, 6, 6))
    assert read_run(unwatched).without_layout == ()
    run.write_status(done)
    (run.results / "umap.npy").unlink()
    assert read_run(unwatched).without_layout == ()


def test_a_slider_keeps_its_epoch_when_earlier_ones_come(qtbot):
    bar = EpochBar()
    qtbot.addWidget(bar)
    bar.set_epochs([(epoch, lambda: None) for epoch in (10, 20, 30)])
    bar.slider.setValue(1)
    bar.set_epochs([(epoch, lambda: None) for epoch in (1, 5, 10, 20, 30)])
    assert bar.slider.value() == 3 and bar.words.text() == "20 of 30"
    bar.slider.setValue(4)
    bar.set_epochs([(epoch, lambda: None) for epoch in (1, 5, 10, 20, 30, 40)])
    assert bar.at_end
