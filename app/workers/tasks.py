"""Work that takes longer than a moment, in a thread of its own, with progress and cancel."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from qtpy.QtCore import QObject, QThread, Signal, Slot

from cellweave.core.errors import Cancelled


class Report(Protocol):
    """What a task is given: call it to tell how far one is; ``cancelled`` says whether to stop."""

    def __call__(self, text: str, fraction: float | None = None) -> None:
        """Tell how far the work is; raises ``Cancelled`` where the person asked to stop."""

    @property
    def cancelled(self) -> bool:
        """Whether the person asked to stop."""


def forward(report: Report) -> Callable[..., None]:
    """Return a function with the engine's order of arguments (share, words) that tells a report."""

    def tell(fraction: float | None, text: str = "") -> None:
        report(text, fraction)

    return tell


class _Job(QObject):
    progressed = Signal(str, object)
    done = Signal(object)
    failed = Signal(object, str)
    ended = Signal()

    def __init__(self, work: Callable[[Any], Any]) -> None:
        super().__init__()
        self._work = work
        self._cancel = threading.Event()

    @property
    def cancelled(self) -> bool:
        return self._cancel.is_set()

    def cancel(self) -> None:
        self._cancel.set()

    def __call__(self, text: str, fraction: float | None = None) -> None:
        if self.cancelled:
            raise Cancelled
        self.progressed.emit(text, fraction)

    @Slot()
    def run(self) -> None:
        try:
            result = self._work(self)
            if self.cancelled:
                raise Cancelled
        except Exception as error:  # noqa: BLE001  (whatever fails is shown to the person, with its details)
            self.failed.emit(error, traceback.format_exc())
        else:
            self.done.emit(result)
        self.ended.emit()


class Task(QObject):
    """One piece of work in its own thread.

    Parameters
    ----------
    work
        Called in the thread with a :class:`Report`; what it returns is sent with ``done``.
    parent
        Owner.

    Attributes
    ----------
    progressed
        A few words, and the fraction done or None.
    done
        The result.
    failed
        The error and its traceback as text; ``Cancelled`` where the person asked to stop.
    gone
        The thread has ended, which is a little after the work has.
    """

    progressed = Signal(str, object)
    done = Signal(object)
    failed = Signal(object, str)
    gone = Signal()

    def __init__(self, work: Callable[[Any], Any], parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._thread = QThread(self)
        self._job = _Job(work)
        self._job.moveToThread(self._thread)
        self._thread.started.connect(self._job.run)
        self._job.progressed.connect(self.progressed)
        self._job.done.connect(self.done)
        self._job.failed.connect(self.failed)
        self._job.ended.connect(self._thread.quit)
        self._thread.finished.connect(self.gone)
        self._thread.finished.connect(self.deleteLater)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def cancel(self) -> None:
        """Ask the work to stop; it ends with ``failed(Cancelled)``."""
        self._job.cancel()

    def running(self) -> bool:
        """Return whether the thread is at work."""
        return self._thread.isRunning()

    def wait(self, milliseconds: int = 10_000) -> bool:
        """Wait for the thread to end, without letting the window go on; for closing only."""
        self._thread.quit()
        return self._thread.wait(milliseconds)


# Work that did not heed a cancellation when the window closed. It is kept alive, because a running thread that is
# deleted takes the process with it; the program then ends without waiting for it (see ``__main__``).
LEFT_BEHIND: list[QObject] = []


class TaskRunner(QObject):
    """Keeps the running tasks, and lets them all end when the window closes."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._tasks: list[Task] = []
        self._ending: list[Task] = []
        self._closed = False

    def run(
        self,
        work: Callable[[Any], Any],
        done: Callable[[Any], None],
        failed: Callable[[Exception, str], None],
        progressed: Callable[[str, Any], None] | None = None,
    ) -> Task:
        """Do ``work`` in a thread; the other functions are called in the window's thread. Once the window has closed, nothing begins any more."""
        task = Task(work, self)
        if self._closed:
            return task
        # The receivers run in the window's thread because the task lives there.
        task.done.connect(done)
        task.failed.connect(failed)
        if progressed is not None:
            task.progressed.connect(progressed)
        self._tasks.append(task)
        task.done.connect(lambda _result: self._forget(task))
        task.failed.connect(lambda _error, _details: self._forget(task))
        task.gone.connect(lambda: self._ending.remove(task) if task in self._ending else None)
        task.start()
        return task

    def _forget(self, task: Task) -> None:
        if task in self._tasks:
            self._tasks.remove(task)
            self._ending.append(task)  # its thread still winds up, and must not be deleted before it has

    def busy(self) -> bool:
        """Return whether any task is at work."""
        return bool(self._tasks)

    def shutdown(self) -> None:
        """Ask every task to stop and wait for it; what it gives is of no use to a window that closes, and would have it begin anew."""
        self._closed = True
        for task in list(self._tasks):
            task.blockSignals(True)  # noqa: FBT003  (Qt's own)
            task.cancel()
        for task in [*self._tasks, *self._ending]:
            if not task.wait():
                task.setParent(None)
                LEFT_BEHIND.append(task)
        self._tasks.clear()
        self._ending.clear()
