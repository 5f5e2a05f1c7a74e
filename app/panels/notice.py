"""A line above the views that says what happened, with at most one thing to do about it."""

from __future__ import annotations

from collections.abc import Callable

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QFrame, QHBoxLayout, QWidget

from cellweave.app.panels.parts import button, text, tool

STAYS = 12_000  # milliseconds


class NoticeBar(QFrame):
    """Shows one sentence for a while; it never takes the focus."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setProperty("notice", "true")
        self.words = text("")
        self.words.setAccessibleName("Notice")
        self.action = button("", "", self._do, link=True)
        self.action.setAccessibleName("What the notice offers")
        self.close_button = tool("cancel", "Close this notice", self.hide)
        self._of_run = False
        self._call: Callable[[], object] | None = None
        layout = QHBoxLayout(self)
        layout.setContentsMargins(12, 4, 4, 4)
        layout.addWidget(self.words, 1)
        layout.addWidget(self.action)
        layout.addWidget(self.close_button)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(STAYS)
        self._timer.timeout.connect(self.hide)
        self.hide()

    def say(self, sentence: str, label: str = "", call: Callable[[], object] | None = None, *, stays: bool = False, of_run: bool = False) -> None:
        """Show a sentence, and a button where there is something to do.

        Parameters
        ----------
        sentence
            What happened.
        label, call
            Text of the button and what it does.
        stays
            Whether it stays until it is closed.
        of_run
            Whether it is about the shown run, and goes when another is shown.
        """
        self._of_run = of_run
        self.words.setText(sentence)
        self.action.setText(label)
        self.action.setAccessibleName(label or "What the notice offers")
        self.action.setVisible(bool(label))
        self._call = call
        self.show()
        self._timer.stop()
        if not stays:
            self._timer.start()

    def run_changed(self) -> None:
        """Another run is shown: what was said of the one before is no longer of interest."""
        if self._of_run:
            self.hide()

    def _do(self) -> None:
        self.hide()
        if self._call is not None:
            self._call()
