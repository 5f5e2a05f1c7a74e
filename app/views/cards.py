"""Small things that lie on top of a view: the card with the values under the cursor, and the text of an empty view."""

from __future__ import annotations

from qtpy.QtCore import QEvent, QObject, QPoint, Qt
from qtpy.QtWidgets import QFrame, QLabel, QVBoxLayout, QWidget

from cellweave.app.theme import SPACE, tabular_font


class HoverCard(QFrame):
    """A card with the values under the cursor; the mouse passes through it.

    Parameters
    ----------
    parent
        The view it lies on; it never leaves it.
    """

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setProperty("card", "true")
        self.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self._text = QLabel(self)
        self._text.setTextFormat(Qt.TextFormat.RichText)
        self._text.setFont(tabular_font())
        layout = QVBoxLayout(self)
        layout.setContentsMargins(2 * SPACE, SPACE, 2 * SPACE, SPACE)
        layout.addWidget(self._text)
        self.hide()

    def text(self) -> str:
        """Return what the card says, as rich text."""
        return self._text.text()

    def show_at(self, position: QPoint, html: str) -> None:
        """Show the card beside a point of its parent, on the side where there is room."""
        self._text.setText(html)
        self.adjustSize()
        gap = 3 * SPACE
        room = self.parentWidget().rect()
        x = position.x() + gap
        if x + self.width() > room.width():
            x = position.x() - gap - self.width()
        y = position.y() - self.height() // 2
        self.move(max(0, min(x, room.width() - self.width())), max(0, min(y, room.height() - self.height())))
        self.show()
        self.raise_()


class Message(QLabel):
    """What an empty view will show, or what a waiting one waits for, in the middle of the view.

    Parameters
    ----------
    parent
        The view it covers.
    """

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.setWordWrap(True)
        self.setProperty("secondary", "true")
        self.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self.setMargin(6 * SPACE)
        parent.installEventFilter(self)
        self.hide()

    def set_text(self, text: str) -> None:
        """Show a text, or nothing where it is empty."""
        self.setText(text)
        self.setVisible(bool(text))
        self.setGeometry(self.parentWidget().rect())
        self.raise_()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802
        """Cover the view at any size."""
        if event.type() == QEvent.Type.Resize and watched is self.parentWidget():
            self.setGeometry(self.parentWidget().rect())
        return False
