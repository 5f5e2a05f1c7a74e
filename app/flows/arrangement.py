"""How the window is arranged: docks, what comes back at the next start, and when that is written."""

from __future__ import annotations

import base64
import binascii
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import QByteArray, QObject, Qt, QTimer
from qtpy.QtGui import QGuiApplication

from cellweave.app.state.runs import RunSummary
from cellweave.app.state.session import Session
from cellweave.app.views.declared import VIEW_NAMES
from cellweave.core.errors import SpecError
from cellweave.core.spec import RunSpec, from_toml, to_toml

if TYPE_CHECKING:
    from cellweave.app.window import MainWindow

LOG = logging.getLogger("cellweave.window")
LAYOUT = 1  # version of the docks' layout; another one is not restored
SAVE_AFTER = 3000  # milliseconds after a change until the settings are written


class Arrangement(QObject):
    """Restores and keeps the window's place, docks and step, and offers what the last session left."""

    def __init__(self, window: MainWindow, session: Session) -> None:
        super().__init__(window)
        self._window, self._session = window, session
        self._standard = QByteArray()
        self._log_shown = False
        self._step = 0  # to be opened with the data that come back
        self._coming: Path | None = None  # the run that is to be shown again
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(SAVE_AFTER)
        self._timer.timeout.connect(self.save_now)

    # ------------------------------------------------------------------ docks

    def toggle_dock(self, name: str) -> None:
        """Show or hide a dock."""
        dock = self._window.docks[name]
        dock.setVisible(not dock.isVisible())
        if name == "log" and not self._log_shown and dock.isVisible():
            self._log_shown = True
            self._window.resizeDocks([dock], [self._window.fontMetrics().height() * 11], Qt.Orientation.Vertical)

    def dock_changed(self, name: str) -> None:
        """Put the mark of a dock's action right."""
        self._window.actions_by_id[f"window.{name}"].setChecked(not self._window.docks[name].isHidden())

    def reset(self) -> None:
        """Put every dock back in its place."""
        self._window.restoreState(self._standard, LAYOUT)

    # ------------------------------------------------------------------ the next start

    def restore(self, *, reopen: bool = True) -> None:
        """Take up what the last start left: place, docks, recent files, an interrupted run; the run that was shown is marked for :meth:`reopen`.

        Parameters
        ----------
        reopen
            Whether the run that was shown last is to be shown again; not where something else is opened at the start.
        """
        window, settings = self._window, self._session.settings
        em = window.fontMetrics().horizontalAdvance("m")
        screen = QGuiApplication.primaryScreen().availableGeometry()
        window.resize(min(em * 115, screen.width()), min(em * 72, screen.height()))
        window.resizeDocks([window.docks["workflow"], window.docks["runs"]], [em * 27, em * 19], Qt.Orientation.Horizontal)
        self._standard = window.saveState(LAYOUT)
        if settings.geometry:
            window.restoreGeometry(decoded(settings.geometry))
        if settings.layout:
            window.restoreState(decoded(settings.layout), LAYOUT)
        window.runs.start()
        self.fill_welcome()
        for details in self._session.notice_details:
            LOG.warning("%s", details)
        window.centre.welcome.set_notice(" ".join(self._session.notices))
        self._offer_last()
        self._offer_interrupted()
        folder = Path(settings.last_run)
        if reopen and settings.last_run and (folder / "spec.toml").is_file():
            self._coming, self._step = folder, settings.step

    def reopen(self) -> None:
        """Show the run that was shown last, with its view and the settings that were being edited; a run that is gone was not marked."""
        if self._coming is not None:
            spec = self._last_spec()
            self._window.runs.open(self._coming, go_on=spec, failed=self._not_reopened)

    def _not_reopened(self, error: Exception) -> None:
        """Leave the window as it is at a first start; the file menu has the run, and says what is wrong with it."""
        LOG.warning("the run shown last could not be opened again: %s", error)
        self.came()
        self._step = 0

    def came(self) -> None:
        """A run is shown: the one of the last start is no longer awaited."""
        self._coming = None

    def take_step(self) -> int:
        """Return the step to open with data that are new: the first, or once that of the last start."""
        step, self._step = self._step, 0
        return step

    def fill_welcome(self) -> None:
        """List what was open lately on the first page."""
        settings = self._session.settings
        labels = {str(run.path): run.label for run in self._session.library.runs}
        self._window.centre.welcome.set_recent(settings.recent_data, settings.recent_runs, labels)

    def _offer_last(self) -> None:
        """Offer to go on with the files and settings of the last session."""
        spec, window = self._last_spec(), self._window
        if spec is not None:
            names = data_names(spec)
            window.centre.welcome.offer(f"Go on with {names}", lambda: window.opening.open_spec(spec, names))

    def _last_spec(self) -> RunSpec | None:
        """Return the settings that were being edited, where their data are still there."""
        text = self._session.settings.last_spec
        try:
            spec = from_toml(text) if text else None
        except SpecError as error:
            LOG.info("the spec of the last session cannot be used: %s", error)
            return None
        there = spec is not None and spec.data.paths and all(Path(path).exists() for path in spec.data.paths)
        return spec if there else None

    def _offer_interrupted(self) -> None:
        window, path = self._window, self._session.settings.active_run
        run = next((item for item in self._session.library.runs if str(item.path) == path), None)
        if run is None:
            return
        if not run.status.lost:
            self._offer_left_running(run)
        else:
            sentence = f"The run '{run.label}' was interrupted at epoch {run.status.epoch}."
            window.notify(sentence, "Continue it", lambda: window.training.resume(run.path), stays=True)

    def _offer_left_running(self, run: RunSummary) -> None:
        """Offer to watch the run that the last session left to a process of its own, or to look at what it became."""
        window, status = self._window, run.status
        if status.state.active:
            reach = f"epoch {status.epoch} of {status.max_epochs}" if status.max_epochs else run.words
            words = f"Watch '{run.label}' ({reach})"
        else:
            words = f"Open '{run.label}', which was left running ({run.words})"
            self._session.settings.active_run = ""
        window.centre.welcome.offer_run(words, lambda: window.runs.open(run.path))

    # ------------------------------------------------------------------ writing

    def save_soon(self) -> None:
        """Write the settings in a few seconds."""
        self._timer.start()

    def save_now(self) -> None:
        """Write the settings."""
        self._timer.stop()
        settings, spec = self._session.settings, self._session.spec
        settings.geometry = base64.b64encode(self._window.saveGeometry().data()).decode()
        settings.layout = base64.b64encode(self._window.saveState(LAYOUT).data()).decode()
        if spec.data.paths:
            settings.last_spec = to_toml(spec)
        shown, front = self._window.watching.shown, self._window.centre.current()
        settings.last_run = str(shown or self._coming or "")
        if shown is not None and front in VIEW_NAMES:
            settings.last_view = front
        problem = self._session.save()
        if problem:
            LOG.warning("%s", problem)


def data_names(spec: RunSpec) -> str:
    """Return what the files of a spec are called."""
    return " + ".join(Path(path).name for path in spec.data.paths)


def decoded(text: str) -> QByteArray:
    """Return bytes from their base 64; nothing where the text is none, so that no settings file stops the start."""
    try:
        return QByteArray(base64.b64decode(text, validate=True))
    except binascii.Error:
        return QByteArray()
