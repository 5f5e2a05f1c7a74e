"""The log: everything that was said in this session, to read and to copy."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from qtpy.QtCore import QObject, Signal
from qtpy.QtGui import QGuiApplication, QShowEvent
from qtpy.QtWidgets import QPlainTextEdit, QVBoxLayout, QWidget

from cellweave.app import theme
from cellweave.app.panels.parts import row, text, tool

LINES = 5000


class _Carrier(QObject):
    line = Signal(str)


class QtLogHandler(logging.Handler):
    """Carries log records of any thread to the window's thread, and keeps the last ones."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.carrier = _Carrier()
        self.lines: deque[str] = deque(maxlen=LINES)
        self.setFormatter(logging.Formatter("%(asctime)s  %(levelname)s  %(message)s", "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record and pass it on; what a run writes into its own log event by event is not repeated here."""
        if record.name == "cellweave.run" and record.levelno <= logging.INFO:
            return
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001  (a log line that cannot be formatted must not stop anything)
            self.handleError(record)
            return
        self.lines.append(line)
        self.carrier.line.emit(line)


class LogPanel(QWidget):
    """The lines of the log, newest last."""

    def __init__(self, handler: QtLogHandler, open_folder: Callable[[], None], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.view = QPlainTextEdit()
        self.view.setReadOnly(True)
        self.view.setMaximumBlockCount(LINES)
        self.view.setAccessibleName("Log")
        self.view.setFrameShape(QPlainTextEdit.Shape.NoFrame)
        self.view.setFont(theme.tabular_font())
        self.view.setPlainText("\n".join(handler.lines))
        copy = tool("copy", "Copy the log", lambda: QGuiApplication.clipboard().setText(self.view.toPlainText()))
        folder = tool("folder", "Open the folder of the log", open_folder)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(8, 4, 8, 4)
        layout.setSpacing(4)
        layout.addLayout(row(text("What was done in this session", secondary=True, wrap=False), None, copy, folder))
        layout.addWidget(self.view, 1)
        handler.carrier.line.connect(self.view.appendPlainText)

    def showEvent(self, event: QShowEvent | None) -> None:  # noqa: N802
        """Show the newest line."""
        super().showEvent(event)
        bar = self.view.verticalScrollBar()
        bar.setValue(bar.maximum())
