"""Small parts that the panels share, so that they look alike."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QFontMetrics, QPainter, QPaintEvent
from qtpy.QtWidgets import (
    QFrame,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSizePolicy,
    QStyle,
    QStyleOptionButton,
    QStylePainter,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from cellweave.app import theme


def set_look(widget: QWidget, name: str, value: Any) -> None:
    """Set a property that the style sheet looks at, and have it drawn anew."""
    if widget.property(name) == value:
        return
    widget.setProperty(name, value)
    widget.style().unpolish(widget)
    widget.style().polish(widget)


def text(content: str = "", *, secondary: bool = False, wrap: bool = True, selectable: bool = False) -> QLabel:
    """Return a label; plain text only, so that names from files are shown as they are."""
    label = QLabel(content)
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setWordWrap(wrap)
    if secondary:
        label.setProperty("secondary", "true")
    if selectable:
        label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse | Qt.TextInteractionFlag.TextSelectableByKeyboard)
    return label


def first_sentence(content: str) -> str:
    """Return the cause alone of a cause and its mend, and how many more there are."""
    more = re.search(r" And \d+ more\.$", content)
    return re.split(r"(?<=[.!?]) (?=[A-Z])", content, maxsplit=1)[0] + (more[0] if more else "")


def heading(content: str) -> QLabel:
    """Return a heading, one step larger and semibold."""
    label = QLabel(content)
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setFont(theme.heading_font())
    return label


def subheading(content: str) -> QLabel:
    """Return a semibold line in the text's own size."""
    label = text(content, wrap=False)
    label.setProperty("heading", "true")
    return label


def button(content: str, icon: str = "", call: Callable[..., Any] | None = None, *, primary: bool = False, link: bool = False, tip: str = "") -> QPushButton:
    """Return a push button."""
    result = QPushButton(content)
    result.setAutoDefault(False)
    if icon:
        result.setIcon(theme.icon(icon, "on_accent" if primary else "accent" if link else "text"))
    if primary:
        result.setProperty("primary", "true")
    if link:
        result.setProperty("link", "true")
        result.setCursor(Qt.CursorShape.PointingHandCursor)
    if tip:
        result.setToolTip(tip)
    result.setAccessibleName(content.replace("&", ""))
    if call is not None:
        result.clicked.connect(call)
    return result


def tool(icon: str, name: str, call: Callable[..., Any] | None = None, *, checkable: bool = False) -> QToolButton:
    """Return a tool button that has an icon only, with its name for the tooltip and for screen readers."""
    result = QToolButton()
    result.setIcon(theme.icon(icon))
    result.setToolTip(name)
    result.setAccessibleName(name)
    result.setCheckable(checkable)
    result.setAutoRaise(True)
    result.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
    if call is not None:
        result.clicked.connect(call)
    return result


def card(*parts: QWidget, margin: int = 12) -> QFrame:
    """Return a framed ground with the parts below one another."""
    frame = QFrame()
    frame.setProperty("card", "true")
    layout = QVBoxLayout(frame)
    layout.setContentsMargins(margin, margin, margin, margin)
    layout.setSpacing(2 * theme.SPACE)
    for part in parts:
        layout.addWidget(part)
    return frame


def column(parent: QWidget, *, margin: int = 0, spacing: int = 8) -> QVBoxLayout:
    """Give a widget a vertical layout."""
    layout = QVBoxLayout(parent)
    layout.setContentsMargins(margin, margin, margin, margin)
    layout.setSpacing(spacing)
    return layout


def row(*parts: QWidget | int | None, spacing: int = 8) -> QHBoxLayout:
    """Return a horizontal layout; None is a stretch."""
    layout = QHBoxLayout()
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(spacing)
    for part in parts:
        if part is None:
            layout.addStretch(1)
        elif isinstance(part, int):
            layout.addSpacing(part)
        else:
            layout.addWidget(part)
    return layout


def clear(layout: Any) -> None:
    """Take everything out of a layout and delete it."""
    while layout.count():
        item = layout.takeAt(0)
        if item.widget() is not None:
            item.widget().hide()
            item.widget().deleteLater()
        elif item.layout() is not None:
            clear(item.layout())


class ElidedButton(QPushButton):
    """A push button that never asks for more room than there is: its words are shortened in the middle, and the whole is its tooltip."""

    def __init__(self, content: str, call: Callable[..., Any]) -> None:
        super().__init__(content)
        self.setAutoDefault(False)
        self.setAccessibleName(content)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self.clicked.connect(call)

    def shown(self) -> str:
        """Return the words as they are drawn."""
        spare = super().sizeHint().width() - self.fontMetrics().horizontalAdvance(self.text())
        return self.fontMetrics().elidedText(self.text(), Qt.TextElideMode.ElideMiddle, max(0, self.width() - spare))

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """Return room for a few letters."""
        hint = super().sizeHint()
        return QSize(min(hint.width(), 16 * self.fontMetrics().averageCharWidth()), hint.height())

    def resizeEvent(self, event: Any) -> None:  # noqa: N802
        """Tell the whole text where it is shortened."""
        super().resizeEvent(event)
        self.setToolTip("" if self.shown() == self.text() else self.text())

    def paintEvent(self, event: QPaintEvent | None) -> None:  # noqa: N802
        """Draw the button with the words that there is room for."""
        option = QStyleOptionButton()
        self.initStyleOption(option)
        option.text = self.shown()
        QStylePainter(self).drawControl(QStyle.ControlElement.CE_PushButton, option)


class ElidedLabel(QWidget):
    """One line of text that is cut with three dots where there is no room; the whole is its tooltip."""

    def __init__(self, content: str = "", *, secondary: bool = False, mode: Qt.TextElideMode = Qt.TextElideMode.ElideRight) -> None:
        super().__init__()
        self._text, self._secondary, self._mode = content, secondary, mode
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)

    def text(self) -> str:
        """Return the whole text."""
        return self._text

    def setText(self, content: str) -> None:  # noqa: N802
        """Show another text."""
        if content != self._text:
            self._text = content
            self.setToolTip(content)
            self.setAccessibleName(content)
            self.updateGeometry()
            self.update()

    def sizeHint(self) -> QSize:  # noqa: N802
        """Return the size of the whole text."""
        metrics = QFontMetrics(self.font())
        return QSize(metrics.horizontalAdvance(self._text) + 2, metrics.height() + 2)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """Return room for a few letters."""
        metrics = QFontMetrics(self.font())
        return QSize(metrics.horizontalAdvance("mmm…"), metrics.height() + 2)

    def paintEvent(self, event: QPaintEvent | None) -> None:  # noqa: N802
        """Draw the text."""
        painter = QPainter(self)
        painter.setPen(theme.current().color("secondary" if self._secondary else "text"))
        shown = QFontMetrics(self.font()).elidedText(self._text, self._mode, self.width())
        painter.drawText(self.rect(), Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft, shown)
        painter.end()
