"""What tests of the window share: a home of their own, a window, answers to questions, and a look for what was left behind."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from qtpy.compat import isalive
from qtpy.QtCore import QCoreApplication, QEvent, QThread, QTimer
from qtpy.QtWidgets import QApplication


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program's folder, empty and of this test alone."""
    folder = tmp_path / "home"
    monkeypatch.setenv("CELLWEAVE_HOME", str(folder))
    return folder


class Answers:
    """Answers to the questions of the window, in order; a question nobody foresaw fails the test."""

    def __init__(self) -> None:
        self.waiting: list[str] = []
        self.asked: list[str] = []

    def ask(self, _parent: object, title: str, _sentence: str, choices: tuple[str, ...]) -> str:
        self.asked.append(title)
        assert self.waiting, f"the window asked '{title}', and the test has no answer"
        answer = self.waiting.pop(0)
        assert answer in choices
        return answer


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Where a test puts what the person would answer."""
    from cellweave.app.flows import dialogs

    given = Answers()
    monkeypatch.setattr(dialogs, "ask", given.ask)
    return given


@pytest.fixture
def make_window(qtbot, home: Path, answers: Answers) -> Iterator[Callable[[], object]]:
    """Return a function that opens a window; all of them are closed in the end, whatever they were doing."""
    from cellweave.app import theme
    from cellweave.app.state.session import Session
    from cellweave.app.window import MainWindow

    windows: list[MainWindow] = []

    def make() -> MainWindow:
        session = Session()
        theme.apply(QApplication.instance(), session.settings.theme)
        window = MainWindow(session, warm=False)
        windows.append(window)
        window.restore()
        window.resize(1280, 720)
        window.show()
        qtbot.waitExposed(window)
        qtbot.waitUntil(lambda: {"losses", "embedding"} <= set(window.centre._views))
        return window

    yield make
    for window in windows:
        if isalive(window):
            close_window(window, answers)
    theme.stop_following()


def close_window(window, answers: Answers) -> None:
    """Close a window; a run that still trains is cancelled."""
    if window.training.current is not None:
        answers.waiting = ["Cancel the run"]
    window.close()
    for dialog in [item for item in QApplication.topLevelWidgets() if item.parent() is window and item.isVisible()]:
        dialog.close()
    window.deleteLater()


@pytest.fixture
def window(make_window):
    """One open window."""
    return make_window()


def _where() -> str:
    return "".join(traceback.format_stack(limit=8)[:-2])


@pytest.fixture(autouse=True)
def _nothing_left_behind(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a thread, a timer or a window behind, and say where it was started."""
    started: list[tuple[object, str]] = []
    thread_start, timer_start = QThread.start, QTimer.start

    def start_thread(self: QThread, *arguments: object) -> None:
        started.append((self, _where()))
        thread_start(self, *arguments)

    def start_timer(self: QTimer, *arguments: object) -> None:
        started.append((self, _where()))
        timer_start(self, *arguments)

    app = QApplication.instance()
    before = {id(widget) for widget in app.topLevelWidgets()} if isinstance(app, QApplication) else set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QThread, "start", start_thread)
        patch.setattr(QTimer, "start", start_timer)
        yield
    app = QApplication.instance()
    if not isinstance(app, QApplication):
        return
    for _ in range(3):
        QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
        app.processEvents()
    gc.collect()
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    left = []
    for thing, where in started:
        if not isalive(thing):
            continue
        if isinstance(thing, QThread) and thing.isRunning():
            left.append(f"a running thread, started at\n{where}")
        elif isinstance(thing, QTimer) and thing.isActive():
            left.append(f"an active timer, started at\n{where}")
    windows = [widget for widget in app.topLevelWidgets() if id(widget) not in before and widget.isVisible()]
    left += [f"a visible window {type(widget).__name__} '{widget.windowTitle()}'" for widget in windows]
    assert not left, "left behind:\n" + "\n".join(left)


def small_h5ad(path: Path, *, n_cells: int = 240, n_genes: int = 40, seed: int = 0, **columns: object) -> Path:
    """Write a small data set of counts with two batches and three cell types."""
    import anndata
    import numpy as np
    import pandas as pd
    from scipy import sparse

    rng = np.random.default_rng(seed)
    types = rng.integers(0, 3, n_cells)
    batches = rng.integers(0, 2, n_cells)
    means = rng.gamma(1.0, 2.0, (3, n_genes))[types] * (1 + 0.5 * batches[:, None])
    obs = pd.DataFrame(
        {"batch": pd.Categorical([f"b{code}" for code in batches]), "cell_type": pd.Categorical([f"t{code}" for code in types]), **columns},
        index=[f"cell{number}" for number in range(n_cells)],
    )
    counts = sparse.csr_matrix(rng.poisson(means).astype(np.float32))
    var = pd.DataFrame(index=[f"gene{number}" for number in range(n_genes)])
    anndata.AnnData(counts, obs=obs, var=var).write_h5ad(path)
    return path


QUICK = {"analysis.baseline": False, "analysis.scores": False, "analysis.clusters": False, "analysis.umap": False, "training.preview_every": 0,
         "training.threads": 1, "training.early_stopping": False}  # fmt: skip


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Trained runs by kind: LDVAE and scVI on the same small data, with the first two latent dimensions in place of a UMAP."""
    import numpy as np

    from cellweave.core.runs.execute import execute
    from cellweave.core.spec import RunSpec

    folder = tmp_path_factory.mktemp("trained")
    sample = np.repeat([f"s{number}" for number in range(8)], 30)
    data = small_h5ad(folder / "cells.h5ad", sample=sample, condition=np.where(np.arange(240) < 120, "ill", "well"))
    found = {}
    for kind in ("ldvae", "vae"):
        spec = RunSpec().with_changes({"model.kind": kind})
        spec = spec.with_changes(
            {"name": f"small {kind}", "data.paths": (str(data),), "covariates.batch": "batch", "covariates.labels": "cell_type", "model.n_latent": 4,
             "model.n_hidden": 16, "training.max_epochs": 8, "training.batch_size": 64, **QUICK}
        )  # fmt: skip
        found[kind] = folder / f"{kind}-01"
        execute(spec, found[kind])
        results = found[kind] / "results"
        np.save(results / "umap.npy", np.load(results / "latent.npy")[:, :2])
    return found


@pytest.fixture
def trained(trained_once: dict[str, Path], home: Path) -> dict[str, Path]:
    """Copies of the trained runs in this test's own folder of runs."""
    import shutil

    return {kind: Path(shutil.copytree(path, home / "runs" / path.name)) for kind, path in trained_once.items()}


def show_run(qtbot: object, window: object, folder: Path) -> None:
    """Open a run in a window and wait until it is shown."""
    window.runs.open(folder)  # type: ignore[attr-defined]
    qtbot.waitUntil(lambda: window.watching.results is not None and window.watching.results.folder == folder, timeout=60_000)  # type: ignore[attr-defined]
