"""Watching a run that another process trains (detached, on the command line, on a cluster) through its folder."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtCore import QObject, QTimer, Signal

from cellweave.core.errors import RunFolderError
from cellweave.core.runs.events import Event, FinishReason, RunState, StateChanged
from cellweave.core.runs.folder import RunFolder

INTERVAL = 500  # milliseconds between two looks at the journal


class Following(QObject):
    """Reads a run's journal as it grows, and steers the run through its control file.

    Parameters
    ----------
    folder
        The run folder.
    offset
        Byte of the journal to begin at.
    parent
        Owner.

    Attributes
    ----------
    events
        Lists of events.
    ended
        The folder, once the run is done, lost or gone.
    """

    events = Signal(list)
    ended = Signal(object)

    def __init__(self, folder: Path, offset: int = 0, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.folder = folder
        self._run = RunFolder(folder)
        self._offset = offset
        self._timer = QTimer(self)
        self._timer.setInterval(INTERVAL)
        self._timer.timeout.connect(self._look)

    def start(self) -> None:
        """Begin to look."""
        self._timer.start()

    def stop(self) -> None:
        """Look no more; the run goes on."""
        self._timer.stop()

    def _look(self) -> None:
        found: list[Event] = []
        for event, offset in self._run.tail(self._offset):
            found.append(event)
            self._offset = offset
        if found:
            self.events.emit(found)
        done = any(isinstance(event, StateChanged) and event.state is RunState.DONE for event in found)
        status = self._run.status
        if not done and status.lost:
            self.events.emit([StateChanged(state=RunState.DONE, reason=FinishReason.FAILED, text="Its process is gone.")])
        if done or status.lost or not self.folder.is_dir():
            self.stop()
            self.ended.emit(self.folder)

    def send(self, verb: str, **arguments: object) -> str:
        """Send a command to the run; return a sentence where that is not possible."""
        try:
            self._run.send_command(verb, **arguments)
        except (RunFolderError, OSError) as error:
            return str(error)
        return ""
