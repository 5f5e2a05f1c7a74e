"""A scroll area that scrolls downwards only and is never narrower than what it holds."""

from __future__ import annotations

from qtpy.QtCore import QSize, Qt, QTimer
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


def bring_into_sight(widget: QWidget) -> None:
    """Scroll whatever the widget lies in so that it can be seen, once it has its place."""
    timer = QTimer(widget)  # owned by the widget: it ends with it
    timer.setSingleShot(True)
    timer.timeout.connect(lambda: _scroll_to(widget))
    timer.timeout.connect(timer.deleteLater)
    timer.start(0)


def _scroll_to(widget: QWidget) -> None:
    above = widget.parentWidget()
    while above is not None:
        if isinstance(above, QScrollArea):
            above.ensureWidgetVisible(widget)
        above = above.parentWidget()
