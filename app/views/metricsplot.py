"""Batch mixing against biology kept: every run as a point, with an arrow from where its data were without integration."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
from qtpy.QtCore import QPointF, QRectF, QSize, Qt, Signal
from qtpy.QtGui import QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QPen, QPolygonF
from qtpy.QtWidgets import QSizePolicy, QWidget

from cellweave.app.state.measured import Measured
from cellweave.app.theme import SPACE, Theme, current, notifier, tabular_font
from cellweave.app.views.cards import HoverCard

NEAR = 10.0  # pixels within which the mouse is at a point
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5)


def axis_range(values: Sequence[float]) -> tuple[float, float, float]:
    """Return lower end, upper end and step of an axis that holds these scores between 0 and 1."""
    low, high = (min(values), max(values)) if len(values) else (0.0, 1.0)
    spread = max(high - low, 0.08)
    step = next((step for step in STEPS if 1.3 * spread / step <= 6), 0.5)
    start = max(0.0, np.floor((low - 0.15 * spread) / step) * step)
    end = min(1.0, np.ceil((high + 0.15 * spread) / step) * step)
    return float(start), float(max(end, start + step)), step


class MetricsPlot(QWidget):
    """Points of runs; the shown run stands out, hollow points are data without integration.

    Attributes
    ----------
    chosen
        A point was chosen: its number.
    opened
        A point was double clicked, or Enter pressed on it.
    """

    chosen = Signal(int)
    opened = Signal(int)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAccessibleName("Batch mixing against biology kept, one point a run")
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setMouseTracking(True)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self._rows: list[tuple[int, Measured]] = []
        self._shown: set[int] = set()
        self._alike: set[int] = set()
        self._marked = -1
        self._x, self._y = axis_range([]), axis_range([])
        self.card = HoverCard(self)
        notifier().changed.connect(self.update)

    def set_rows(self, rows: Sequence[Measured], shown: set[int], alike: set[int] | None = None) -> None:
        """Show other rows.

        Parameters
        ----------
        rows
            Measured embeddings.
        shown
            Numbers of those that stand out.
        alike
            Numbers of those that can be compared with them: measured on the same data and columns. They are drawn last and named first, the others
            are faint. None where all can be.
        """
        self._alike = set(range(len(rows))) if alike is None else alike
        self._rows = [(number, row) for number, row in enumerate(rows) if row.place is not None]
        self._shown, self._marked = shown, -1
        places = [row.place for _, row in self._rows if row.place is not None]
        self._x = axis_range([place[0] for place in places])
        self._y = axis_range([place[1] for place in places])
        self.card.hide()
        self.update()

    def mark(self, number: int) -> None:
        """Ring the point of a row; -1 rings none."""
        self._marked = number
        self.update()

    def points(self) -> dict[int, QPointF]:
        """Return where the points are, by the number of their row."""
        return {number: self._at(row) for number, row in self._rows}

    def sizeHint(self) -> QSize:  # noqa: N802
        """Return a square of some size."""
        side = self.fontMetrics().horizontalAdvance("m") * 26
        return QSize(side, side)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """Return room for the axes and some points."""
        return QSize(self.fontMetrics().horizontalAdvance("m") * 18, self.fontMetrics().height() * 9)

    # ------------------------------------------------------------------ drawing

    def _plot(self) -> QRectF:
        line = self.fontMetrics().height()
        number = self.fontMetrics().horizontalAdvance("0.00")
        left = line + number + 3 * SPACE
        return QRectF(left, SPACE + line / 2, max(1.0, self.width() - left - SPACE - number / 2), max(1.0, self.height() - 2.5 * line - 4 * SPACE))

    def _at(self, row: Measured) -> QPointF:
        assert row.place is not None
        plot = self._plot()
        across, up = ((value - axis[0]) / (axis[1] - axis[0]) for value, axis in zip(row.place, (self._x, self._y), strict=True))
        return QPointF(plot.left() + across * plot.width(), plot.bottom() - up * plot.height())

    def paintEvent(self, event: QPaintEvent | None) -> None:  # noqa: N802
        """Draw the axes, the arrows, the points and the names."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        theme = current()
        self._draw_axes(painter, theme)
        bases = {row.data: self._at(row) for _, row in self._rows if row.baseline}
        order = sorted(self._rows, key=lambda item: (item[0] in self._alike, item[0] in self._shown))
        for number, row in order:
            if not row.baseline and row.data in bases:
                self._draw_arrow(painter, bases[row.data], self._at(row), theme, strong=number in self._shown)
        for number, row in order:
            self._draw_point(painter, number, row, theme)
        self._draw_names(painter, order, theme)
        if self.hasFocus():
            painter.setPen(QPen(theme.color("accent"), 1))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawRect(self.rect().adjusted(0, 0, -1, -1))
        painter.end()

    def _draw_axes(self, painter: QPainter, theme: Theme) -> None:
        plot, line = self._plot(), self.fontMetrics().height()
        painter.setFont(tabular_font())
        for axis, upright in ((self._x, False), (self._y, True)):
            start, end, step = axis
            for number in range(round((end - start) / step) + 1):
                value = start + number * step
                share = (value - start) / (end - start)
                painter.setPen(QPen(theme.color("grid"), 1))
                if upright:
                    y = round(plot.bottom() - share * plot.height())
                    painter.drawLine(round(plot.left()), y, round(plot.right()), y)
                    place = QRectF(line, y - line / 2, plot.left() - line - 2 * SPACE, line)
                    side = Qt.AlignmentFlag.AlignRight
                else:
                    x = round(plot.left() + share * plot.width())
                    painter.drawLine(x, round(plot.top()), x, round(plot.bottom()))
                    place, side = QRectF(x - 30, plot.bottom() + SPACE, 60, line), Qt.AlignmentFlag.AlignHCenter
                painter.setPen(theme.color("secondary"))
                painter.drawText(place, side | Qt.AlignmentFlag.AlignVCenter, f"{value:.2f}")
        painter.setFont(self.font())
        painter.setPen(theme.color("text"))
        painter.drawText(QRectF(plot.left(), plot.bottom() + line + SPACE, plot.width(), line), Qt.AlignmentFlag.AlignCenter, "Batch mixing →")
        painter.save()
        painter.translate(0, plot.center().y())
        painter.rotate(-90)
        painter.drawText(QRectF(-plot.height() / 2, 0, plot.height(), line), Qt.AlignmentFlag.AlignCenter, "Biology kept →")
        painter.restore()

    def _draw_arrow(self, painter: QPainter, start: QPointF, end: QPointF, theme: Theme, *, strong: bool) -> None:
        along = end - start
        length = float(np.hypot(along.x(), along.y()))
        if length < 18:
            return
        unit = along / length
        begin, tip = start + unit * 7, end - unit * (9 if strong else 7)
        colour = theme.shade("accent", "panel", 0.85) if strong else theme.shade("text", "panel", 0.28)
        painter.setPen(QPen(colour, 1.6 if strong else 1))
        painter.drawLine(begin, tip)
        across = QPointF(-unit.y(), unit.x())
        painter.setBrush(colour)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.drawPolygon(QPolygonF([tip, tip - unit * 8 + across * 3.2, tip - unit * 8 - across * 3.2]))

    def _draw_point(self, painter: QPainter, number: int, row: Measured, theme: Theme) -> None:
        place, strong = self._at(row), number in self._shown
        colour = theme.color("accent") if strong and not row.baseline else theme.shade("text", "panel", 0.6 if number in self._alike else 0.25)
        painter.setPen(QPen(colour, 1.8))
        painter.setBrush(theme.color("panel") if row.baseline else colour)
        size = 5.5 if strong else 4.0
        painter.drawEllipse(place, size, size)
        if number == self._marked:
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.setPen(QPen(theme.color("text"), 1.5))
            painter.drawEllipse(place, size + 4, size + 4)

    def _draw_names(self, painter: QPainter, order: Sequence[tuple[int, Measured]], theme: Theme) -> None:
        """Name the shown run, the marked point and what else there is room for."""
        plot, metrics = self._plot(), self.fontMetrics()
        taken = [QRectF(place.x() - 7, place.y() - 7, 14, 14) for place in self.points().values()]
        crossed = self._arrow_points()
        frame = plot.adjusted(-2, -8, 8, 4)
        rank = [(number != self._marked, number not in self._shown, number not in self._alike, not row.baseline) for number, row in order]
        for _, (number, row) in sorted(zip(rank, order, strict=True), key=lambda each: each[0]):
            important = number in self._shown or number == self._marked
            words = metrics.elidedText("Without integration" if row.baseline else row.title, Qt.TextElideMode.ElideMiddle, round(plot.width() * 0.45))
            wide, tall, place = metrics.horizontalAdvance(words), metrics.height(), self._at(row)
            sides = (QPointF(10, -tall / 2), QPointF(-10 - wide, -tall / 2), QPointF(-wide / 2, 9), QPointF(-wide / 2, -9 - tall))
            rooms = [QRectF(place + side, QPointF(place.x() + side.x() + wide, place.y() + side.y() + tall)) for side in sides]
            inside = [room for room in rooms if frame.contains(room)]
            free = [room for room in inside if not any(room.intersects(other) for other in taken)]
            if not free and not important:
                continue
            # Of the free places that which the fewest arrows cross; of equal ones the first.
            room = min(free or inside or rooms, key=lambda room: sum(room.contains(point) for point in crossed))
            taken.append(room)
            painter.setPen(theme.color("text" if important else "secondary"))
            painter.drawText(room, Qt.AlignmentFlag.AlignCenter, words)

    def _arrow_points(self) -> list[QPointF]:
        """Return points along every arrow, a few pixels apart."""
        bases = {row.data: self._at(row) for _, row in self._rows if row.baseline}
        found = []
        for _, row in self._rows:
            if row.baseline or row.data not in bases:
                continue
            start, end = bases[row.data], self._at(row)
            steps = max(1, round(float(np.hypot(end.x() - start.x(), end.y() - start.y())) / 6))
            found += [start + (end - start) * (step / steps) for step in range(steps + 1)]
        return found

    # ------------------------------------------------------------------ mouse and keys

    def _near(self, point: QPointF) -> int:
        found = [(float(np.hypot(place.x() - point.x(), place.y() - point.y())), number) for number, place in self.points().items()]
        distance, number = min(found, default=(np.inf, -1))
        return number if distance <= NEAR else -1

    def mouseMoveEvent(self, event: QMouseEvent | None) -> None:  # noqa: N802
        """Say what is under the cursor."""
        assert event is not None
        number = self._near(event.position())
        row = dict(self._rows).get(number)
        if row is None or row.place is None:
            self.card.hide()
            return
        said = f"{html.escape(row.title)}<br>Batch mixing {row.place[0]:.3f}<br>Biology kept {row.place[1]:.3f}"
        self.card.show_at(event.position().toPoint(), said + (f"<br>{html.escape(row.columns)}" if row.columns else ""))

    def leaveEvent(self, event: object) -> None:  # noqa: N802
        """Take the card away."""
        self.card.hide()

    def mousePressEvent(self, event: QMouseEvent | None) -> None:  # noqa: N802
        """Choose a point."""
        assert event is not None
        number = self._near(event.position())
        if number >= 0:
            self.chosen.emit(number)

    def mouseDoubleClickEvent(self, event: QMouseEvent | None) -> None:  # noqa: N802
        """Open the run of a point."""
        assert event is not None
        number = self._near(event.position())
        if number >= 0:
            self.opened.emit(number)

    def keyPressEvent(self, event: QKeyEvent | None) -> None:  # noqa: N802
        """Move from point to point from left to right; Enter opens the run."""
        assert event is not None
        by_place = [number for number, _ in sorted(self.points().items(), key=lambda item: item[1].x())]
        step = {Qt.Key.Key_Left: -1, Qt.Key.Key_Right: 1}.get(Qt.Key(event.key()), 0)
        if step and by_place:
            here = by_place.index(self._marked) if self._marked in by_place else (-1 if step > 0 else len(by_place))
            number = by_place[min(max(0, here + step), len(by_place) - 1)]
            row = dict(self._rows)[number]
            assert row.place is not None
            self.setAccessibleDescription(f"{row.title}: batch mixing {row.place[0]:.3f}, biology kept {row.place[1]:.3f}")
            self.chosen.emit(number)
        elif event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and self._marked >= 0:
            self.opened.emit(self._marked)
        else:
            super().keyPressEvent(event)
