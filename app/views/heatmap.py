"""A small heat map of named rows and columns, and bars of named values; both are painted, and chosen from by mouse and keys."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QPoint, QRectF, QSize, Qt, Signal
from qtpy.QtGui import QColor, QImage, QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QPen
from qtpy.QtWidgets import QSizePolicy, QWidget

from cellweave.app.theme import SPACE, current, notifier, tabular_font
from cellweave.app.views.cards import HoverCard
from cellweave.core.export.palette import colour_table

LETTERS = 12  # room for the name of a row, in letters


class HeatMap(QWidget):
    """Weights around 0: red above, blue below.

    Attributes
    ----------
    chosen
        A cell was chosen: its row and its column.
    """

    chosen = Signal(int, int)

    def __init__(self, name: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAccessibleName(name)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setMouseTracking(True)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Minimum)
        self._values = np.zeros((0, 0))
        self._rows: Sequence[str] = ()
        self._columns: Sequence[str] = ()
        self._reach = 1.0
        self._image = QImage()
        self._row, self._column = -1, -1
        self.card = HoverCard(self)
        notifier().changed.connect(self.update)

    def set_values(self, values: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], reach: float) -> None:
        """Show other values ``(n_rows, n_columns)``; colours reach from ``-reach`` to ``reach``."""
        self._values, self._rows, self._columns, self._reach = np.nan_to_num(values), rows, columns, max(reach, 1e-12)
        steps = np.clip((self._values / self._reach + 1) / 2 * 255, 0, 255).astype(np.uint8)
        pixels = np.ascontiguousarray(colour_table("coolwarm")[steps])
        self._image = QImage(pixels.tobytes(), values.shape[1], values.shape[0], 3 * values.shape[1], QImage.Format.Format_RGB888).copy()
        self._row = min(self._row, len(rows) - 1)
        self.card.hide()
        self.updateGeometry()
        self.update()

    def mark(self, row: int, column: int) -> None:
        """Frame a row and a column; -1 frames none."""
        self._row, self._column = row, column
        self.update()

    def _line(self) -> int:
        return self.fontMetrics().height() + 2

    def _plot(self) -> QRectF:
        metrics = self.fontMetrics()
        left = min(max((metrics.horizontalAdvance(name) for name in self._rows), default=0), metrics.horizontalAdvance("m") * LETTERS) + 2 * SPACE
        top = self._line() + SPACE
        return QRectF(left, top, max(1, self.width() - left - 1), self._line() * len(self._rows))

    def sizeHint(self) -> QSize:  # noqa: N802
        """Return room for every row."""
        return QSize(self.fontMetrics().horizontalAdvance("m") * 26, round(self._plot().bottom()) + SPACE)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """Return the height of every row: the map lies in a scroll area."""
        return QSize(self.fontMetrics().horizontalAdvance("m") * 16, self.sizeHint().height())

    def paintEvent(self, event: QPaintEvent | None) -> None:  # noqa: N802
        """Draw names, values, and what is marked."""
        painter = QPainter(self)
        theme, plot, line = current(), self._plot(), self._line()
        if not len(self._rows):
            painter.end()
            return
        painter.drawImage(plot, self._image)
        wide = plot.width() / len(self._columns)
        metrics = self.fontMetrics()
        every = max(1, int(np.ceil((metrics.horizontalAdvance(max(self._columns, key=len)) + SPACE) / wide)))
        for number, name in enumerate(self._columns):
            if number % every and number != self._column:
                continue
            painter.setPen(theme.color("text" if number == self._column else "secondary"))
            painter.drawText(QRectF(plot.left() + number * wide - 20, 0, wide + 40, line), Qt.AlignmentFlag.AlignCenter, name)
        for number, name in enumerate(self._rows):
            painter.setPen(theme.color("text" if number == self._row else "secondary"))
            room = QRectF(0, plot.top() + number * line, plot.left() - 2 * SPACE, line)
            shown = metrics.elidedText(name, Qt.TextElideMode.ElideRight, round(room.width()))
            painter.drawText(room, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, shown)
        painter.setPen(QPen(theme.color("text"), 1.5))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        if 0 <= self._column < len(self._columns):
            painter.drawRect(QRectF(plot.left() + self._column * wide, plot.top(), wide, plot.height() - 1))
        if 0 <= self._row < len(self._rows):
            painter.drawRect(QRectF(plot.left(), plot.top() + self._row * line, plot.width(), line))
        if self.hasFocus():
            painter.setPen(QPen(theme.color("accent"), 1))
            painter.drawRect(self.rect().adjusted(0, 0, -1, -1))
        painter.end()

    def _at(self, point: QPoint) -> tuple[int, int]:
        plot = self._plot()
        if not len(self._rows) or not plot.contains(point.toPointF()):
            return -1, -1
        row = int((point.y() - plot.top()) / self._line())
        column = int((point.x() - plot.left()) / plot.width() * len(self._columns))
        return min(row, len(self._rows) - 1), min(column, len(self._columns) - 1)

    def mouseMoveEvent(self, event: QMouseEvent | None) -> None:  # noqa: N802
        """Say what is under the cursor."""
        assert event is not None
        row, column = self._at(event.position().toPoint())
        if row < 0:
            self.card.hide()
            return
        import html

        self.card.show_at(event.position().toPoint(), f"{html.escape(self._rows[row])}<br>{self._columns[column]}: {self._values[row, column]:.3g}")

    def leaveEvent(self, event: object) -> None:  # noqa: N802
        """Take the card away."""
        self.card.hide()

    def mousePressEvent(self, event: QMouseEvent | None) -> None:  # noqa: N802
        """Choose a cell."""
        assert event is not None
        row, column = self._at(event.position().toPoint())
        if row >= 0:
            self.chosen.emit(row, column)

    def keyPressEvent(self, event: QKeyEvent | None) -> None:  # noqa: N802
        """Move by the arrow keys."""
        assert event is not None
        steps = {Qt.Key.Key_Up: (-1, 0), Qt.Key.Key_Down: (1, 0), Qt.Key.Key_Left: (0, -1), Qt.Key.Key_Right: (0, 1)}
        if event.key() not in steps or not len(self._rows):
            super().keyPressEvent(event)
            return
        down, right = steps[Qt.Key(event.key())]
        row = min(max(0, self._row + down), len(self._rows) - 1)
        column = min(max(0, self._column + right), len(self._columns) - 1)
        self.setAccessibleDescription(f"{self._rows[row]}, dimension {self._columns[column]}: {self._values[row, column]:.3g}")
        self.chosen.emit(row, column)


class BarChart(QWidget):
    """Named values as bars to both sides of 0, the largest first.

    Attributes
    ----------
    chosen
        A bar was chosen: its number.
    """

    chosen = Signal(int)

    def __init__(self, name: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAccessibleName(name)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self._names: Sequence[str] = ()
        self._values = np.zeros(0)
        self._marked = -1
        notifier().changed.connect(self.update)

    def set_values(self, names: Sequence[str], values: NDArray[np.float64]) -> None:
        """Show other bars."""
        self._names, self._values, self._marked = names, values, -1
        self.update()

    def mark(self, number: int) -> None:
        """Make a bar stand out; -1 for none."""
        self._marked = number
        self.update()

    def marked(self) -> int:
        """Return which bar stands out, or -1."""
        return self._marked

    def line(self) -> int:
        """Return the height of a bar and its gap, in pixels."""
        return self.fontMetrics().height() + 2

    def room(self) -> int:
        """Return how many bars there is room for."""
        return max(2, self.height() // self.line())

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """Return room for some bars."""
        return QSize(self.fontMetrics().horizontalAdvance("m") * 14, 8 * self.line())

    def paintEvent(self, event: QPaintEvent | None) -> None:  # noqa: N802
        """Draw the bars with their names on the side where there is no bar."""
        painter = QPainter(self)
        theme, line = current(), self.line()
        if len(self._names):
            metrics = self.fontMetrics()
            reach = max(float(np.abs(self._values).max()), 1e-12)
            digits = metrics.horizontalAdvance("−0.0000")
            low = min(0.0, float(self._values.min())) / reach
            high = max(0.0, float(self._values.max())) / reach
            names = max(metrics.horizontalAdvance(name) for name in self._names)
            left, right = (digits + SPACE if low < 0 else names + 2 * SPACE), (digits + SPACE if high > 0 else names + 2 * SPACE)
            unit = max(1.0, self.width() - left - right) / max(1e-9, high - low)
            zero = left - low * unit
            colours = [QColor(*(int(part) for part in colour_table("coolwarm")[place])) for place in (230, 25)]
            for number, (name, value) in enumerate(zip(self._names, self._values, strict=True)):
                top = number * line
                length = value / reach * unit
                bar = QRectF(min(zero, zero + length), top + 2, max(1.0, abs(length)), line - 4)
                painter.fillRect(bar, colours[0] if value > 0 else colours[1])
                painter.setPen(theme.color("accent" if number == self._marked else "text"))
                side = QRectF(0, top, zero - SPACE, line) if value > 0 else QRectF(zero + SPACE, top, self.width() - zero - SPACE, line)
                flag = Qt.AlignmentFlag.AlignRight if value > 0 else Qt.AlignmentFlag.AlignLeft
                shown = metrics.elidedText(name, Qt.TextElideMode.ElideRight, max(0, round(side.width())))
                painter.drawText(side, flag | Qt.AlignmentFlag.AlignVCenter, shown)
                painter.setPen(theme.color("secondary"))
                painter.setFont(tabular_font())
                beyond = QRectF(bar.right() + SPACE, top, digits, line) if value > 0 else QRectF(bar.left() - SPACE - digits, top, digits, line)
                side_flag = Qt.AlignmentFlag.AlignLeft if value > 0 else Qt.AlignmentFlag.AlignRight
                painter.drawText(beyond, side_flag | Qt.AlignmentFlag.AlignVCenter, f"{value:.3g}".replace("-", "\N{MINUS SIGN}"))
                painter.setFont(self.font())
            painter.setPen(QPen(theme.color("border"), 1))
            painter.drawLine(round(zero), 0, round(zero), line * len(self._names))
        if self.hasFocus():
            painter.setPen(QPen(theme.color("accent"), 1))
            painter.drawRect(self.rect().adjusted(0, 0, -1, -1))
        painter.end()

    def mousePressEvent(self, event: QMouseEvent | None) -> None:  # noqa: N802
        """Choose a bar."""
        assert event is not None
        number = int(event.position().y() // self.line())
        if 0 <= number < len(self._names):
            self.chosen.emit(number)

    def keyPressEvent(self, event: QKeyEvent | None) -> None:  # noqa: N802
        """Move by the arrow keys."""
        assert event is not None
        step = {Qt.Key.Key_Up: -1, Qt.Key.Key_Down: 1}.get(Qt.Key(event.key()), 0)
        if not step or not len(self._names):
            super().keyPressEvent(event)
            return
        number = min(max(0, self._marked + step), len(self._names) - 1)
        self.setAccessibleDescription(f"{self._names[number]}: {self._values[number]:.3g}")
        self.chosen.emit(number)
