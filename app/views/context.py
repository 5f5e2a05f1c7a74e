"""What a view is given of the window: the run's data and model, threads, the linked selection, and ways to say and to save something."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from qtpy.compat import isalive
from qtpy.QtCore import QObject

from cellweave.app.workers.tasks import Task, forward
from cellweave.core.errors import Cancelled, CellweaveError

if TYPE_CHECKING:
    from cellweave.app.state.results import RunResults
    from cellweave.app.window import MainWindow

KEPT = 2  # runs whose data and model stay open


class ViewContext(QObject):
    """Stands between the views and the window, so that no view reaches into it.

    Methods that read data or models (:meth:`study`, :meth:`opened`) are called in a worker thread, all others in the window's.

    Parameters
    ----------
    window
        The main window.

    Attributes
    ----------
    session
        View model: spec, settings, loaded study, list of runs.
    tasks, analysis
        Threads, and the analysis process.
    """

    def __init__(self, window: MainWindow) -> None:
        super().__init__(window)
        self._window = window
        self.session, self.tasks, self.analysis = window.session, window.tasks, window.analysis
        self._lock = threading.Lock()
        self._studies: OrderedDict[Any, Any] = OrderedDict()
        self._opened: OrderedDict[Any, Any] = OrderedDict()
        self._running: list[Task] = []

    # ------------------------------------------------------------------ saying

    def notify(self, sentence: str, label: str = "", call: Callable[[], object] | None = None) -> None:
        """Show a sentence above the views."""
        self._window.notify(sentence, label, call)

    def show_error(self, error: Exception, details: str = "") -> None:
        """Show an error: sentence, mend, details to copy."""
        self._window.show_error(error, details)

    def next_step(self) -> tuple[str, Callable[[], object]]:
        """Return what a person can do to get a run: the words of a button, and what it does."""
        window = self._window
        if self.session.library.runs:
            return "Choose a run", window.focus_runs
        if self.session.headers:
            return "Go to training", lambda: window.go_to_step(4)
        return "Open data…", window.opening.ask_files

    # ------------------------------------------------------------------ threads

    def run(
        self,
        work: Callable[[Any], Any],
        done: Callable[[Any], None],
        failed: Callable[[Exception, str], None] | None = None,
        *,
        doing: str = "",
        progressed: Callable[[str, float | None], None] | None = None,
    ) -> Task:
        """Do something in a thread.

        Parameters
        ----------
        work
            Called with a report: ``report("words", share)``; ``report.cancelled`` says whether to stop.
        done, failed
            Called in the window's thread; without ``failed`` an error is shown in a dialog.
        doing
            Words for the activity bar, which then offers to cancel; empty where it takes a moment.
        progressed
            Told words and share as well.
        """
        status = self._window.status

        def received(result: Any) -> None:
            if doing:
                status.say_idle()
            done(result)

        def broken(error: Exception, details: str) -> None:
            if doing:
                status.say_idle()
            if failed is not None:
                failed(error, details)
            elif not isinstance(error, Cancelled):
                self.show_error(error, details)

        def told(words: str, share: float | None) -> None:
            if doing:
                status.say_busy(f"{doing}: {words}" if words else doing, share, cancellable=True)
            if progressed is not None:
                progressed(words, share)

        if doing:
            status.say_busy(doing, None, cancellable=True)
        task = self.tasks.run(work, received, broken, told)
        if doing:
            self._running = [*self._alive(), task]
        return task

    def _alive(self) -> list[Task]:
        return [task for task in self._running if isalive(task) and task.running()]

    def cancel(self) -> bool:
        """Stop what the activity bar says of a view; return whether there was anything."""
        running = self._alive()
        for task in running:
            task.cancel()
        return bool(running)

    # ------------------------------------------------------------------ data and model, in a worker

    def study(self, results: RunResults, report: Any) -> Any:
        """Return the loaded data of a run; they are read once, and not at all where the window has them.

        Called in a worker thread.

        Raises
        ------
        DataError
            Where the files are gone or have changed since the run was trained.
        """
        key = results.spec.data.model_dump_json()
        with self._lock:
            if key not in self._studies:
                _same_files(results.spec, report)
                loaded = self._window.opening.study_of(results.spec.data)
                self._keep(self._studies, key, loaded if loaded is not None else _read(results.spec, report))
            self._studies.move_to_end(key)
            return self._studies[key]

    def opened(self, results: RunResults, report: Any) -> Any:
        """Return the trained run, ready for questions (:class:`cellweave.core.query.trained_run.TrainedRun`); it is opened once.

        Called in a worker thread. Progress and cancellation go through ``report``.

        Raises
        ------
        RunFolderError
            Where there is no trained model.
        DataError
            Where the data are gone or have changed.
        """
        from cellweave.core.query.opened import open_run

        study = self.study(results, report)
        key = (results.folder, _stamp(results.folder))
        with self._lock:
            if key not in self._opened:
                report("opening the model", None)
                self._keep(self._opened, key, open_run(results.folder, study=study, device="auto", check_data=False))
            self._opened.move_to_end(key)
            run = self._opened[key]
        return run.watched(lambda share: report("", share), lambda: report.cancelled)

    @staticmethod
    def _keep(kept: OrderedDict[Any, Any], key: Any, value: Any) -> None:
        kept[key] = value
        while len(kept) > KEPT:
            kept.popitem(last=False)

    # ------------------------------------------------------------------ selection and other views

    @property
    def results(self) -> RunResults | None:
        """The run that is shown."""
        return self._window.watching.results

    @property
    def selection(self) -> NDArray[np.int64]:
        """The selected cells, as rows of the study."""
        return self._window.centre.selection

    def select(self, rows: ArrayLike | None) -> None:
        """Select cells in all views, as rows of the study."""
        self._window.centre.select(np.zeros(0, np.int64) if rows is None else np.asarray(rows, np.int64))

    def live_cells(self) -> tuple[Any, NDArray[np.float32] | None]:
        """Return the cells of the embedding that is shown now and their places, while a run trains; None each where there are none yet."""
        watching = self._window.watching
        if watching.cells is None or not self._window.centre.built:
            return None, None
        return watching.cells, self._window.embedding.points().xy[: len(watching.cells.rows)]

    def spec(self) -> Any:
        """Return the spec of the run that is shown, also while it trains; None where there is none."""
        return self._window.watching.spec

    def show_view(self, name: str) -> None:
        """Bring a view to the front."""
        self._window.show_view(name)

    def open_run(self, folder: Path) -> None:
        """Show another run."""
        self._window.runs.open(folder)

    def selected_runs(self) -> list[Path]:
        """Return the folders of the runs that are selected in the list."""
        return self._window.runs_panel.selected_runs()

    def overlay(self, folders: Sequence[Path]) -> None:
        """Draw the losses of runs over those shown, and bring them to the front."""
        self._window.runs.overlay_runs(folders)

    def colour_by(self, name: str, values: ArrayLike, rows: NDArray[np.int64], *, unit: str = "", diverging: bool = False) -> None:
        """Colour the embedding by numbers of cells.

        Parameters
        ----------
        name
            What they are called; a name that is there already is replaced.
        values
            ``(n,)``.
        rows
            The cells, as rows of the study, sorted, ``(n,)``; other cells have no value.
        unit, diverging
            As in :meth:`cellweave.app.views.columns.ColumnData.continuous`.
        """
        self._window.centre.colour_by(name, np.asarray(values, np.float32), rows, unit=unit, diverging=diverging)

    def colour_by_gene(self, gene: str) -> None:
        """Colour the embedding by the log-normalised counts of a gene."""
        self._window.watching.colour_by_gene(gene)

    def colour_by_column(self, name: str) -> None:
        """Colour the first panel of the embedding by a column that is offered there."""
        shown = self._window.embedding.shown_columns()
        self._window.embedding.show_columns([name, *shown[1:]])

    # ------------------------------------------------------------------ taking away

    def save(self, title: str, suffix: str, kinds: str, write: Callable[[Path], None]) -> None:
        """Ask where, and write a file in a thread.

        Parameters
        ----------
        title
            Of the dialog.
        suffix
            Proposed end of the name, behind the name of the run: ``"-loadings.csv"``.
        kinds
            Filter of the dialog: ``"CSV (*.csv)"``.
        write
            Called in the thread with the path; it writes the file whole, or raises.
        """
        out = self._window.exporting.ask(title, suffix, kinds)
        if out is None:
            return

        def work(report: Any) -> None:
            try:
                write(out)
            except OSError as error:
                raise CellweaveError(f"'{out}' could not be written: {error.strerror or error}.", "Choose another folder.") from error

        self.run(work, lambda _: self.notify(f"'{out}' is written."), doing=f"Writing {out.name}")

    def save_csv(self, name: str, csv: Callable[[], str]) -> None:
        """Ask where, and write a table; ``csv`` is called in a thread and returns the text."""
        from cellweave.core.files import write_text_atomic

        self.save(f"Export {name}", f"-{name}.csv", "CSV (*.csv)", lambda out: write_text_atomic(out, csv()))

    def export_figure(self, what: str, start: Mapping[str, Any] | None = None) -> None:
        """Open the figure dialog on a figure of the run (see ``core.export.figure_options.FIGURES``), with some options set."""
        self._window.exporting.figure(what, start)


def _stamp(folder: Path) -> tuple[tuple[str, int], ...]:
    """Return when the model was written, so that one that was trained further is read anew."""
    found = sorted((folder / "model").glob("*")) if (folder / "model").is_dir() else []
    return tuple((path.name, path.stat().st_mtime_ns) for path in found)


def _same_files(spec: Any, report: Any) -> None:
    """Make sure that the data are those that the run was trained on."""
    from cellweave.core.errors import DataError
    from cellweave.core.files import sha256_of

    tell = forward(report)
    for number, name in enumerate(spec.data.paths):
        path = Path(name).expanduser()
        if not path.exists():
            raise DataError(f"The data file '{path}' of the run is not there any more.", "Put it back; the results that were kept can still be looked at.")
        known = spec.data.sha256[number : number + 1]
        if known and (sha256_of(path, lambda share: tell(share, "comparing the data with those of the run")),) != known:
            raise DataError(f"'{path.name}' has changed since the run was trained.", "Put the original file back, or train again.")


def _read(spec: Any, report: Any) -> Any:
    from cellweave.core.study import load_study

    return load_study(spec.data, progress=forward(report), cancelled=lambda: report.cancelled)
