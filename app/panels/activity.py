"""The bar along the bottom: what is going on, how far it is, and the buttons to change it."""

from __future__ import annotations

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QHBoxLayout, QProgressBar, QSizePolicy, QWidget

from cellweave.app import theme
from cellweave.app.panels.parts import ElidedLabel, button, tool


class ActivityBar(QWidget):
    """State sentence, progress, and pause, stop and cancel while a run goes on."""

    pauseClicked = Signal()  # noqa: N815
    stopClicked = Signal()  # noqa: N815
    cancelClicked = Signal()  # noqa: N815
    logClicked = Signal()  # noqa: N815

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.sentence = ElidedLabel("Ready")
        self.sentence.setFont(theme.tabular_font())
        self.sentence.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.progress = QProgressBar()
        self.progress.setAccessibleName("Progress")
        self.progress.setTextVisible(False)
        self.progress.setRange(0, 1000)
        self.progress.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Fixed)
        self.progress.setFixedWidth(self.fontMetrics().horizontalAdvance("m") * 14)
        self.pause = button("Pause", "pause", self.pauseClicked.emit, tip="Wait at the next minibatch (Ctrl+P)")
        self.stop = button("Stop", "stop", self.stopClicked.emit, tip="Stop training, go back to the best weights and compute the results (Ctrl+.)")
        self.cancel = button("Cancel", "cancel", self.cancelClicked.emit, tip="Throw the run away")
        self.log = tool("log", "Show or hide the log (F9)", self.logClicked.emit)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(12, 4, 8, 4)
        layout.setSpacing(2 * theme.SPACE)
        layout.addWidget(self.sentence, 1)
        for part in (self.progress, self.pause, self.stop, self.cancel, self.log):
            layout.addWidget(part, 0, Qt.AlignmentFlag.AlignVCenter)
        self.show_idle("Ready")

    def show_idle(self, sentence: str) -> None:
        """Say that nothing goes on."""
        self.sentence.setText(sentence)
        for part in (self.progress, self.pause, self.stop, self.cancel):
            part.setVisible(False)

    def show_busy(self, sentence: str, fraction: float | None = None, *, cancellable: bool = False) -> None:
        """Say what is being done beside training (opening a file, computing an embedding)."""
        self.sentence.setText(sentence)
        self._set_fraction(fraction)
        self.pause.setVisible(False)
        self.stop.setVisible(False)
        self._set_cancel("Cancel", enabled=True)
        self.cancel.setVisible(cancellable)

    def show_run(self, sentence: str, fraction: float | None, *, paused: bool = False, can_pause: bool = True, can_stop: bool = True) -> None:
        """Say how a run stands."""
        self.sentence.setText(sentence)
        self._set_fraction(fraction)
        self.pause.setText("Resume" if paused else "Pause")
        self.pause.setAccessibleName(self.pause.text())
        self.pause.setIcon(theme.icon("play" if paused else "pause"))
        for part, enabled in ((self.pause, can_pause), (self.stop, can_stop), (self.cancel, True)):
            part.setVisible(True)
            part.setEnabled(enabled)
        self._set_cancel("Cancel", enabled=True)

    def show_cancelling(self, sentence: str = "Cancelling…") -> None:
        """Say at once that the wish was heard."""
        self.sentence.setText(sentence)
        self.pause.setEnabled(False)
        self.stop.setEnabled(False)
        self._set_cancel("Cancelling…", enabled=False)

    def _set_cancel(self, label: str, *, enabled: bool) -> None:
        self.cancel.setText(label)
        self.cancel.setAccessibleName(label)
        self.cancel.setEnabled(enabled)

    def _set_fraction(self, fraction: float | None) -> None:
        self.progress.setVisible(True)
        if fraction is None:
            self.progress.setRange(0, 0)
        else:
            self.progress.setRange(0, 1000)
            self.progress.setValue(round(1000 * min(1.0, max(0.0, fraction))))
