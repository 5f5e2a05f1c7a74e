"""A scroll area that scrolls downwards only and is never narrower than what it holds."""

from __future__ import annotations

from qtpy.QtCore import QSize, Qt
from qtpy.QtWidgets import QFrame, QScrollArea, QWidget


class ColumnScroll(QScrollArea):
    """Shows one column of widgets; nothing is cut off at the right.

    Parameters
    ----------
    parent
        Owner.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.viewport().setAutoFillBackground(False)

    def show_widget(self, widget: QWidget) -> None:
        """Take a widget in, in place of the one before, which is deleted."""
        self.setWidget(widget)
        widget.setAutoFillBackground(False)
        self.updateGeometry()

    def _bar(self) -> int:
        return self.verticalScrollBar().sizeHint().width()

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """Return the least width of the content with the scroll bar, and a few lines."""
        if self.widget() is None:
            return super().minimumSizeHint()
        return QSize(self.widget().minimumSizeHint().width() + self._bar(), 6 * self.fontMetrics().height())

    def sizeHint(self) -> QSize:  # noqa: N802
        """Return the content's own size with the scroll bar."""
        if self.widget() is None:
            return super().sizeHint()
        return self.widget().sizeHint() + QSize(self._bar(), 0)
