"""The legend of numbers: their histogram above the colours, with what they are and the ends named."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QPointF, QRectF, QSize, Qt
from qtpy.QtGui import QBrush, QColor, QLinearGradient, QPainter, QPaintEvent
from qtpy.QtWidgets import QSizePolicy, QWidget

from cellweave.app.forms.numberbox import number_text
from cellweave.app.theme import SPACE, current, tabular_font
from cellweave.app.views.columns import ColumnData


class GradientLegend(QWidget):
    """The range of a column of numbers: its histogram above the colours, with the ends named.

    Parameters
    ----------
    parent
        Owner.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._low, self._high, self._unit, self._title = 0.0, 1.0, "", ""
        self._counts: NDArray[Any] = np.zeros(1)
        self._colours: NDArray[np.uint8] = np.zeros((2, 3), np.uint8)
        self._missing = 0
        self.setFont(tabular_font())
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def show_column(self, column: ColumnData, codes: NDArray[np.int32], colours: NDArray[np.uint8], title: str = "") -> None:
        """Show a column of numbers, with the code of each point, the colours of the 256 steps, and what the numbers are."""
        assert column.values is not None
        self._low, self._high = column.range
        self._unit, self._colours, self._title = column.unit, colours, title
        self._missing = int(np.count_nonzero(codes == 0))
        self._counts = column.histogram(codes)
        self.setAccessibleName("Legend")
        self.setAccessibleDescription(f"{self.words()}, from {number_text(self._rounded(self._low))} to {number_text(self._rounded(self._high))}")
        self.setToolTip(f"{self.words()}\nColours span the 1st to the 99th percentile; values beyond have the colour of the end")
        self.updateGeometry()
        self.update()

    @staticmethod
    def _rounded(value: float) -> float:
        return float(f"{value:.3g}")

    def words(self) -> str:
        """Return what the numbers are: name, unit, and how many are missing."""
        missing = f"{self._missing:,} missing" if self._missing else ""
        return "; ".join(part for part in (", ".join(part for part in (self._title, self._unit) if part), missing) if part)

    def sizeHint(self) -> QSize:  # noqa: N802
        """Return room for the histogram, the colours and a line of text above and below."""
        line = self.fontMetrics().height()
        return QSize(12 * line, round(5.2 * line) + 2 * SPACE)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """Return half the width, and the height with a histogram as low as can be read."""
        line = self.fontMetrics().height()
        return QSize(6 * line, round(4.2 * line) + 2 * SPACE)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        """Draw histogram, colours and ends."""
        painter = QPainter(self)
        theme, line = current(), self.fontMetrics().height()
        width, bar = float(self.width() - 2 * SPACE), 0.7 * line
        tall = max(0.5 * line, min(2.5 * line, self.height() - 2 * line - bar - 2 * SPACE))
        painter.translate(SPACE, 0)
        painter.setPen(theme.color("text"))
        title = self.fontMetrics().elidedText(self.words(), Qt.TextElideMode.ElideRight, int(width))
        painter.drawText(QRectF(0, 0, width, line), Qt.AlignmentFlag.AlignLeft, title)
        painter.translate(0, line + 2)
        step = width / len(self._counts)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(theme.color("secondary"))
        most = max(1.0, float(np.sqrt(self._counts.max())))
        for index, count in enumerate(self._counts):  # roots, so that a peak at 0 leaves the rest to be seen
            height = tall * float(np.sqrt(count)) / most
            painter.drawRect(QRectF(index * step, tall - height, max(1.0, step - 1), height))
        gradient = QLinearGradient(QPointF(0, 0), QPointF(width, 0))
        colours = self._colours[1:]
        for share in np.linspace(0, 1, 32):
            gradient.setColorAt(float(share), QColor(*(int(part) for part in colours[round(share * (len(colours) - 1))])))
        painter.setBrush(QBrush(gradient))
        painter.drawRect(QRectF(0, tall + 2, width, bar))
        painter.setPen(theme.color("secondary"))
        words = QRectF(0, tall + bar + SPACE, width, line)
        painter.drawText(words, Qt.AlignmentFlag.AlignLeft, number_text(self._rounded(self._low)))
        painter.drawText(words, Qt.AlignmentFlag.AlignRight, number_text(self._rounded(self._high)))
        painter.end()
