"""Points that wander from where they are to where they belong."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QEasingCurve, QObject, QTimer, Signal

DURATION_S = 0.45
FRAME_MS = 33


class Motion(QObject):
    """Sends positions between two layouts, eased, some thirty times a second.

    Parameters
    ----------
    parent
        Owner.
    """

    moved = Signal(object)
    finished = Signal()

    most = 50_000
    """More points than this are not animated: the frames would come too late to be seen as motion."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._start: NDArray[np.float32] = np.empty((0, 2), np.float32)
        self._end = self._start
        self._began = 0.0
        self._curve = QEasingCurve(QEasingCurve.Type.InOutCubic)
        self._timer = QTimer(self)
        self._timer.setInterval(FRAME_MS)
        self._timer.timeout.connect(self._frame)

    def start(self, now: NDArray[np.float32], target: NDArray[np.float32]) -> None:
        """Set out from ``now`` to ``target``, both of shape ``(n, 2)``; a move under way is given up."""
        self._start, self._end = now, target
        self._began = time.monotonic()
        self._timer.start()

    def stop(self) -> None:
        """Stay where one is."""
        self._timer.stop()

    def is_moving(self) -> bool:
        """Return whether a move is under way."""
        return self._timer.isActive()

    def _frame(self) -> None:
        share = (time.monotonic() - self._began) / DURATION_S
        if share >= 1:
            self._timer.stop()
            self.moved.emit(self._end)
            self.finished.emit()
            return
        eased = np.float32(self._curve.valueForProgress(share))
        # A point that had no place before, or has none now, takes its new one at once.
        between = self._start + eased * (self._end - self._start)
        self.moved.emit(np.where(np.isfinite(between), between, self._end))
