"""What one does with runs: open, overlay, duplicate, rename, trash, restore, continue."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import QObject, QTimer, QUrl, Signal
from qtpy.QtGui import QDesktopServices

from cellweave.app.flows import dialogs
from cellweave.app.flows.arrangement import data_names
from cellweave.app.state import runs as store
from cellweave.app.state.progress import RunProgress, reach
from cellweave.app.state.results import RunResults
from cellweave.app.state.session import Session
from cellweave.app.workers.following import Following
from cellweave.core.errors import CellweaveError
from cellweave.core.runs.events import Event, RunState, Warned
from cellweave.core.runs.folder import RunFolder
from cellweave.core.spec import RunSpec
from cellweave.core.wording import counted

if TYPE_CHECKING:
    from cellweave.app.window import MainWindow

LOG = logging.getLogger("cellweave.window")
LOOK = 2000  # milliseconds between two looks at the list of runs


class RunsFlow(QObject):
    """Keeps the list of runs and does what its buttons say.

    Attributes
    ----------
    followed
        A run that trains in another process said something, or is no longer followed.
    """

    followed = Signal()

    def __init__(self, window: MainWindow, session: Session) -> None:
        super().__init__(window)
        self._window, self._session = window, session
        self.selected: Path | None = None
        self.following: Following | None = None
        self._began: Path | None = None
        self.progress = RunProgress("")
        self._said: set[str] = set()
        self._timer = QTimer(self)
        self._timer.setInterval(LOOK)
        self._timer.timeout.connect(self.refresh)

    def start(self) -> None:
        """Read the list, and again every two seconds."""
        for path in self._session.settings.recent_runs:
            self._session.library.add(Path(path))
        self.refresh()
        self._timer.start()

    def stop(self) -> None:
        """Look no more."""
        self._timer.stop()
        self._follow(None)

    def refresh(self) -> None:
        """Read what changed on disk."""
        library = self._session.library
        library.refresh()
        queued = self._window.training.queued()
        waiting = {run.path for run in queued}
        self._window.runs_panel.set_runs([*queued, *(run for run in library.runs if run.path not in waiting)])
        if self._began is not None and any(run.path == self._began for run in self._window.runs_panel.model.runs):
            self._window.runs_panel.set_current(self._began)
            self._began = None
        shown = self._window.watching.shown
        training = self._window.training
        if shown is not None and not shown.is_dir() and not (training.current and training.current.folder == shown):
            self._window.watching.lose()
        self._window.status.update_actions()

    def begun(self, folder: Path, _spec: object) -> None:
        """A run began here: its row is selected as soon as its folder is there."""
        self._began = folder
        self.refresh()

    def look_for_begun(self) -> None:
        """Look at once whether the run that began is listed by now."""
        if self._began is not None:
            self.refresh()

    def label(self, path: Path) -> str:
        """Return what a run is called: name and folder."""
        run = self._session.library.get(path)
        return run.label if run is not None else path.name

    @property
    def target(self) -> Path | None:
        """The run that an action means: the selected one, else the one shown."""
        return self.selected or self._window.watching.shown

    def select(self, path: Path | None) -> None:
        """Another run is selected in the list."""
        self.selected = path
        self._window.status.update_actions()

    # ------------------------------------------------------------------ looking

    def open(self, path: Path, *, go_on: RunSpec | None = None, failed: Callable[[Exception], None] | None = None) -> None:
        """Show a run; one that trains elsewhere is followed.

        Parameters
        ----------
        path
            The run folder.
        go_on
            What to edit where no data are open; the settings of the run itself where None.
        failed
            Called where the run cannot be read, in place of an error that is shown.
        """
        training = self._window.training
        if training.current is not None and training.current.folder == path:
            self._window.show_view("losses")
            return
        if any(waiting.folder == path for waiting in training.queue):
            self._window.notify("This run waits in the queue; it can be opened once it has begun.")
            return
        self._follow(None)
        self._window.watching.open(path, then=lambda results: self._opened(results, go_on), otherwise=failed)

    def _opened(self, results: RunResults, go_on: RunSpec | None) -> None:
        self._window.arrangement.came()
        self._session.library.add(results.folder)
        self._session.settings.remember("runs", str(results.folder))
        self._window.arrangement.save_soon()
        self.refresh()
        self._window.runs_panel.set_current(results.folder)
        if results.failure:
            self._window.notify(f"'{results.label}' failed {reach(results.epochs_done)}. {results.failure}", stays=True)
        if results.trains:
            training = results.spec.training
            self.progress = RunProgress(results.label, training.patience if training.early_stopping else 0)
            for event in results.events:
                self.progress.add(event)
            self._said = {event.text for event in results.events if isinstance(event, Warned)}
            self._follow(Following(results.folder, results.end, self))
        if not self._session.headers:
            there = results.spec.data.paths and all(Path(path).exists() for path in results.spec.data.paths)
            if go_on is not None:
                self._window.opening.open_spec(go_on, data_names(go_on))
            elif there:
                self._window.opening.open_spec(results.spec, results.name)

    def _follow(self, following: Following | None) -> None:
        if self.following is not None:
            self.following.stop()
            self.following.deleteLater()
        self.following = following
        if following is not None:
            following.events.connect(self._heard)
            following.ended.connect(self._followed_to_the_end)
            following.start()
            self._window.notify(f"'{self.progress.name}' trains in another process; it is followed live.")
        self.followed.emit()

    def _heard(self, events: list[Event]) -> None:
        for event in events:
            self.progress.add(event)
            if isinstance(event, Warned):
                self._window.warn(event, self._said)
        self._window.watching.take(events)
        self.followed.emit()

    def _followed_to_the_end(self, folder: Path) -> None:
        self._follow(None)
        if self._session.settings.active_run == str(folder):
            self._session.settings.active_run = ""
        self._window.status.say_idle(self.progress.ending())
        self.refresh()
        if self._window.watching.shown == folder and folder.is_dir():
            self._window.watching.open(folder)

    def overlay(self) -> None:
        """Draw the losses of the selected runs over those shown."""
        chosen = self._window.runs_panel.selected_runs()
        self.overlay_runs(chosen if len(chosen) > 1 else [self.target] if self.target is not None else [])

    def overlay_runs(self, paths: Sequence[Path]) -> None:
        """Draw the losses of runs over those shown; the shown run itself is left out."""
        for path in paths:
            if path == self._window.watching.shown and len(paths) > 1:
                continue
            try:
                folder = RunFolder.open(path)
                name = store.run_label(folder.spec.name, path)
                spec = folder.spec
                self._window.losses.add_overlay(name, list(folder.events()), spec.terms(), spec.family.metrics(spec))
            except CellweaveError as error:
                self._window.show_error(error, "")
                return
        if paths:
            self._window.show_view("losses")

    def compare(self) -> None:
        """Put the selected runs beside one another; all of them where fewer than two are selected."""
        self._window.show_view("compare")
        view = self._window.centre.view("compare")
        view.only.setChecked(len(self._window.runs_panel.selected_runs()) > 1)  # type: ignore[attr-defined]

    def open_folder(self) -> None:
        """Show the files of the selected run."""
        if self.target is not None:
            QDesktopServices.openUrl(QUrl.fromLocalFile(str(self.target)))

    # ------------------------------------------------------------------ changing

    def duplicate(self) -> None:
        """Begin a new run with the settings of the selected one."""
        if self.target is None:
            return
        try:
            spec = RunFolder.open(self.target).spec
        except CellweaveError as error:
            self._window.show_error(error, "")
            return
        fresh = spec.with_changes({"name": ""})
        if self._session.headers and fresh.data.paths == self._session.spec.data.paths:
            self._session.editor.replace(fresh, f"settings of '{self.target.name}'")
        else:
            self._window.opening.open_spec(fresh, self.target.name)
        self._window.notify(f"The settings of '{self.label(self.target)}' are in the steps now; Train begins a new run with them.")

    def rename(self) -> None:
        """Ask for another name of the selected run."""
        path = self.target
        run = self._session.library.get(path)
        if path is None or run is None:
            return
        name = dialogs.ask_text(self._window, "Rename the run", "Name:", run.name)
        if not name:
            return
        try:
            store.rename(path, name)
        except CellweaveError as error:
            self._window.show_error(error, "")
        self.refresh()

    def trash(self) -> None:
        """Move the selected run to the trash."""
        path = self.target
        if path is None:
            return
        if any(waiting.folder == path for waiting in self._window.training.queue):
            self._window.training.forget(path)
            self.refresh()
            return
        label = self.label(path)
        try:
            self._session.trash.put(path)
        except CellweaveError as error:
            self._window.show_error(error, "")
            return
        if self._window.watching.shown == path:
            self._window.watching.clear()
        self.selected = None
        LOG.info("%s moved to the trash", path.name)
        self.refresh()
        self._window.notify(f"'{label}' is in the trash.", "Put it back", self.restore)

    def restore(self) -> None:
        """Put the run that was deleted last back."""
        try:
            path = self._session.trash.restore_last()
        except CellweaveError as error:
            self._window.show_error(error, "")
            return
        self.refresh()
        if path is not None:
            self._window.runs_panel.set_current(path)
            self._window.notify(f"'{self.label(path)}' is back.")

    def resume(self) -> None:
        """Continue the selected run from its last checkpoint; one that trained all it was to is asked for more epochs."""
        if self.target is None:
            return
        summary = self._session.library.get(self.target)
        if summary is None or not summary.over:
            self._window.training.resume(self.target)
            return
        done = summary.status.epoch
        sentence = f"'{summary.label}' has trained {counted(done, 'epoch')}. Further epochs:"
        more = dialogs.ask_number(self._window, "Train longer", sentence, max(1, done // 5))
        if more is not None:
            self._window.training.resume(self.target, epochs=done + more)

    def steer(self, verb: str) -> None:
        """Send a command to the run that is followed: pause (or go on), stop, cancel."""
        if self.following is None:
            return
        if verb == "pause" and self.progress.state is RunState.PAUSED:
            verb = "resume"
        problem = self.following.send(verb)
        self._window.notify(problem or f"'{self.progress.name}' was asked to {verb}.")
