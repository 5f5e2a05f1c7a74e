"""The analysis process seen from the window: its updates arrive as signals in the window's thread."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import QObject, Signal

from cellweave.core.analysis.jobs import JobUpdate
from cellweave.core.analysis.process import AnalysisProcess


class Analysis(QObject):
    """Owns the one warm child process that computes UMAP, clusters, scores and figures.

    Attributes
    ----------
    updated
        Every :class:`JobUpdate`, in the window's thread.
    process
        The process itself; training hands it to the engine.
    """

    updated = Signal(object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.process = AnalysisProcess(self._take)
        self._open = True

    def _take(self, update: JobUpdate) -> None:
        """Called in the process's reader thread; the signal crosses over to the window's."""
        if self._open:
            self.updated.emit(update)

    def warm_up(self) -> None:
        """Start the process and have it compile what the first UMAP needs, beside the window."""
        if self._open:
            self.process.start(warm=True)

    def submit(self, task: str, **arguments: Any) -> int:
        """Queue a job; its number is in its updates."""
        return self.process.submit(task, **arguments)

    def busy_with(self, task: str) -> bool:
        """Return whether such a job waits or runs."""
        return self.process.busy_with(task)

    def close(self) -> None:
        """End the process."""
        self._open = False
        self.process.close()
