"""Training in a background thread; the engine's events become Qt signals here and nowhere else."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qtpy.QtCore import QObject, QThread, QTimer, Signal, Slot

from cellweave.core.errors import CellweaveError
from cellweave.core.runs.events import Event, Listener, Progress, StepProgress
from cellweave.core.training.control import RunControl

INTERVAL = 100  # milliseconds between two deliveries: ten a second whatever the engine says

Start = Callable[[Listener, RunControl], object]


@dataclass(frozen=True)
class Outcome:
    """How a run in the window ended.

    Attributes
    ----------
    folder
        The run folder.
    error
        What went wrong, or None.
    details
        Traceback to copy, or empty.
    """

    folder: Path
    error: Exception | None = None
    details: str = ""


class EventRelay(QObject):
    """Takes events in any thread and delivers them in the window's, at most ten times a second.

    Attributes
    ----------
    events
        A list of events, oldest first; of progress within an epoch only the latest is kept.
    """

    events = Signal(list)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._lock = threading.Lock()
        self._waiting: list[Event] = []
        self._timer = QTimer(self)
        self._timer.setInterval(INTERVAL)
        self._timer.timeout.connect(self.deliver)

    def take(self, event: Event) -> None:
        """Keep an event for the next delivery; called by the engine in its thread."""
        with self._lock:
            if isinstance(event, Progress | StepProgress) and self._waiting and type(self._waiting[-1]) is type(event):
                self._waiting[-1] = event
            else:
                self._waiting.append(event)

    def start(self) -> None:
        """Begin to deliver."""
        self._timer.start()

    def stop(self) -> None:
        """Deliver what is left and stop."""
        self._timer.stop()
        self.deliver()

    @Slot()
    def deliver(self) -> None:
        """Send what came since the last delivery."""
        with self._lock:
            taken, self._waiting = self._waiting, []
        if taken:
            self.events.emit(taken)


class TrainingWorker(QObject):
    """Owns the call of the engine; lives in the training thread."""

    finished = Signal(object)

    def __init__(self, start: Start, folder: Path, listener: Listener, control: RunControl) -> None:
        super().__init__()
        self._start, self._folder, self._listener, self._control = start, folder, listener, control

    @Slot()
    def run(self) -> None:
        """Train until the end, and say how it ended."""
        outcome = Outcome(self._folder)
        try:
            self._start(self._listener, self._control)
        except CellweaveError as error:
            outcome = Outcome(self._folder, error, traceback.format_exc())
        except Exception as error:  # noqa: BLE001  (a defect of ours or out of memory: shown with its details, the window goes on)
            outcome = Outcome(self._folder, error, traceback.format_exc())
        self.finished.emit(outcome)


class Training(QObject):
    """One run in a background thread, and the way to steer it.

    Parameters
    ----------
    start
        Function that trains, given a listener and a control; called in the thread.
    folder
        The run folder.
    parent
        Owner.

    Attributes
    ----------
    events
        Lists of events, at most ten a second.
    finished
        An :class:`Outcome`, after the last events.
    """

    events = Signal(list)
    finished = Signal(object)

    def __init__(self, start: Start, folder: Path, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.folder = folder
        self.control = RunControl()
        self._relay = EventRelay(self)
        self._relay.events.connect(self.events)
        self._thread = QThread(self)
        self._worker = TrainingWorker(start, folder, self._relay.take, self.control)
        self._worker.moveToThread(self._thread)
        self._thread.started.connect(self._worker.run)
        self._worker.finished.connect(self._done)

    def start(self) -> None:
        """Begin."""
        self._relay.start()
        # The window comes first where both want the processor.
        self._thread.start(QThread.Priority.LowPriority)

    @Slot(object)
    def _done(self, outcome: Outcome) -> None:
        self._relay.stop()
        self._thread.quit()
        self._thread.wait()
        self.finished.emit(outcome)

    def running(self) -> bool:
        """Return whether the thread is at work."""
        return self._thread.isRunning()

    def wait(self, milliseconds: int) -> bool:
        """Wait for the end without letting the window go on; for closing only."""
        self._thread.quit()
        ended = self._thread.wait(milliseconds)
        self._relay.stop()
        return ended

