"""What the legend of the Losses view is made of: lines, hues that are free, and buttons as wide as their words."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QColor, QIcon, QPainter, QPen, QPixmap
from qtpy.QtWidgets import QToolButton

from cellweave.app.theme import SPACE
from cellweave.core.export.palette import LOSS_COLOURS


def stem(name: str) -> str:
    """Return the name of a metric without the cells it is of."""
    return name.removesuffix("_train").removesuffix("_validation")


def free_colours(taken: set[int]) -> list[int]:
    """Return the hues that no term has; all of them where every one is taken."""
    every = range(len(LOSS_COLOURS))
    return [number for number in every if number not in {colour % len(LOSS_COLOURS) for colour in taken}] or list(every)


def line_icon(colour: QColor, pattern: Sequence[float]) -> QIcon:
    """Return a short line as a legend shows it."""
    pixmap = QPixmap(64, 40)
    pixmap.fill(Qt.GlobalColor.transparent)
    painter = QPainter(pixmap)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    pen = QPen(colour, 6)
    if pattern:
        pen.setDashPattern([0.55 * part for part in pattern])
        pen.setCapStyle(Qt.PenCapStyle.FlatCap)
    painter.setPen(pen)
    painter.drawLine(2, 20, 62, 20)
    painter.end()
    return QIcon(pixmap)


class Chip(QToolButton):
    """A button as wide as its line and its words; by itself one is wider by two letters, which costs the legend a row."""

    def sizeHint(self) -> QSize:  # noqa: N802
        """Return room for line and words."""
        words = self.fontMetrics().horizontalAdvance(self.text())
        return QSize(self.iconSize().width() + words + 4 * SPACE, super().sizeHint().height())

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """Return the same: a cut word says nothing."""
        return self.sizeHint()
