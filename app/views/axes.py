"""Axes and grid lines of the curves."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pyqtgraph as pg
from qtpy.QtCore import QLineF, QRectF, Qt
from qtpy.QtGui import QColor, QFont, QFontMetricsF, QGuiApplication, QPainter, QPen
from qtpy.QtWidgets import QStyleOptionGraphicsItem, QWidget

from cellweave.app.forms.numberbox import number_text
from cellweave.app.theme import current


class ValueAxis(pg.AxisItem):
    """A value axis that writes numbers as one reads them, also where it is logarithmic."""

    def __init__(self, side: str) -> None:
        super().__init__(side)
        self._words = ""

    def say(self, words: str, colour: QColor) -> None:
        """Write a unit beside the axis, shortened where the axis is."""
        self._words, self._tone = words, colour
        self._fit_words()

    def _fit_words(self) -> None:
        if self._words:
            short = self._shortened(max(30.0, self.size().height() - 4))
            if short != getattr(self, "_short", None) or self.labelStyle.get("color") != self._tone.name():
                self._short = short
                self.setLabel("<br>".join(html.escape(line) for line in short), color=self._tone.name())
                super().resizeEvent(None)  # in the middle of the axis again

    def _shortened(self, room: float) -> tuple[str, ...]:
        """Return the words in one line, else what is counted above what it is counted by, else cut."""
        metrics = QFontMetricsF(MarkStrip.words_font())
        if metrics.horizontalAdvance(self._words) <= room or " per " not in self._words:
            return (metrics.elidedText(self._words, Qt.TextElideMode.ElideRight, room),)
        what, by = self._words.split(" per ", 1)
        # The strip with the marks above and the numbers of the epochs below leave a line at each end of the axis free.
        return tuple(metrics.elidedText(line, Qt.TextElideMode.ElideRight, room + 2 * metrics.height()) for line in (what, f"per {by}"))

    def resizeEvent(self, event: object = None) -> None:  # noqa: N802
        """Shorten the unit anew."""
        super().resizeEvent(event)
        if getattr(self, "_words", ""):
            self._fit_words()

    def tickStrings(self, values: list[float], scale: float, spacing: float) -> list[str]:  # noqa: N802
        """Return the numbers; small ones in powers of ten, so that they leave the unit its room."""
        largest = max(abs(end * scale) for end in self.range)  # not of these values alone: ticks of every level are written alike
        if self.logMode or not 0 < largest < SMALL:
            return list(super().tickStrings(values, scale, spacing))
        return [power_text(value * scale) for value in values]

    def logTickValues(self, minVal: float, maxVal: float, size: float, stdTicks: list) -> list:  # noqa: N802
        """Return ticks at powers of ten, or at 1, 2 and 5 times them where there are few powers in sight."""
        powers = range(math.floor(minVal), math.ceil(maxVal) + 1)
        steps: tuple[float, ...] = (1, 2, 5) if maxVal - minVal > 0.8 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
        if maxVal - minVal > 4:
            steps = (1,)
        ticks = [power + math.log10(step) for power in powers for step in steps]
        return [(1.0, [tick for tick in ticks if minVal <= tick <= maxVal])]

    def logTickStrings(self, values: list[float], scale: float, spacing: float) -> list[str]:  # noqa: N802
        """Return the values themselves."""
        return [number_text(float(f"{10**value:.3g}")) for value in values]


SMALL = 0.01
"""An axis that ends below this has too many zeros to be read."""


def power_text(value: float) -> str:
    """Return a number with at most three figures and a power of ten: 0.00045 is '4.5e−4'."""
    if value == 0:
        return "0"
    figures, power = f"{value:.2e}".split("e")
    return f"{figures.rstrip('0').rstrip('.')}e{int(power)}".replace("-", "\N{MINUS SIGN}")


GAP, FAR = 8.0, 100.0
"""Pixels between the words above a plot, and how far from their line they may stand."""


class EpochAxis(pg.AxisItem):
    """The axis of the epochs; they are counted, so only whole numbers are marked."""

    def tickSpacing(self, minVal: float, maxVal: float, size: float) -> list[tuple[float, float]]:  # noqa: N802
        """Return the usual spacings, none below 1."""
        usual = super().tickSpacing(minVal, maxVal, size)
        whole = dict.fromkeys((max(1.0, float(math.ceil(spacing))), 0.0) for spacing, _ in usual)
        return list(whole)


@dataclass(frozen=True)
class Mark:
    """Words at an epoch: a position on the axis, a text and its colour."""

    place: float
    text: str
    colour: QColor


class MarkStrip(pg.AxisItem):
    """A strip above a plot with words for its vertical lines, so that none of them lies on a curve.

    Words stand above their line; where two would overlap, the later one moves to a side or, where there is no room near its
    line, is left out (the card under the cursor has it).
    """

    def __init__(self) -> None:
        super().__init__("top")
        self.marks: tuple[Mark, ...] = ()
        self.setStyle(showValues=False, tickLength=0)

    def set_marks(self, marks: Sequence[Mark]) -> None:
        """Set the words, the most important first."""
        if tuple(marks) != self.marks:
            self.marks = tuple(marks)
            self.update()

    def placed(self) -> list[tuple[QRectF, Mark]]:
        """Return the words that are drawn, with their places in the strip."""
        box = self.linkedView()
        (left, right), room = box.viewRange()[0], self.boundingRect()
        metrics = QFontMetricsF(self.words_font())
        taken: list[tuple[QRectF, Mark]] = []
        for mark in self.marks:
            if not left <= mark.place <= right:
                continue
            x = room.left() + (mark.place - left) / (right - left) * room.width()
            width = metrics.horizontalAdvance(mark.text) + 2
            beside = [start for other, _ in taken for start in (other.right() + GAP, other.left() - GAP - width)]
            starts = sorted((x - width / 2, x + 3, x - width - 3, *beside), key=lambda start: abs(start + width / 2 - x))
            for start in starts:
                inside = min(max(start, room.left()), room.right() - width)
                rect = QRectF(inside, room.top(), width, room.height())
                near = rect.left() - FAR <= x <= rect.right() + FAR
                if near and width <= room.width() and not any(rect.adjusted(1 - GAP, 0, GAP - 1, 0).intersects(other) for other, _ in taken):
                    taken.append((rect, mark))
                    break
        return taken

    @staticmethod
    def words_font() -> QFont:
        """Return the font of the words."""
        return QFont(QGuiApplication.font())

    def boundingRect(self) -> QRectF:  # noqa: N802
        """Return the strip alone; an axis would reach into the plot."""
        return QRectF(0, 0, self.size().width(), self.size().height())

    def paint(self, painter: QPainter, option: QStyleOptionGraphicsItem, widget: QWidget | None = None) -> None:
        """Draw the words."""
        painter.setFont(self.words_font())
        for rect, mark in self.placed():
            painter.setPen(mark.colour)
            painter.drawText(rect, Qt.AlignmentFlag.AlignHCenter | Qt.AlignmentFlag.AlignVCenter, mark.text)


class GridLines(pg.GraphicsObject):
    """Horizontal lines at the marked values; the grid of the axes themselves takes three times as long as the curves.

    Parameters
    ----------
    plot
        The plot it lies in.
    """

    def __init__(self, plot: pg.PlotItem) -> None:
        super().__init__()
        self._plot = plot
        self.setZValue(-10)

    def boundingRect(self) -> QRectF:  # noqa: N802
        """Return what is in sight."""
        return QRectF(self._plot.getViewBox().viewRect())

    def viewRangeChanged(self, *_: object) -> None:  # noqa: N802
        """Follow the view."""
        self.prepareGeometryChange()

    def paint(self, painter: QPainter, option: QStyleOptionGraphicsItem, widget: QWidget | None = None) -> None:
        """Draw a line at every value that the axis writes."""
        box = self._plot.getViewBox()
        if box.height() <= 0:  # a plot that has no room yet
            return
        (left, right), (low, high) = box.viewRange()
        axis = self._plot.getAxis("left")
        if box.height() <= 0:
            return  # squeezed away while the window is resized
        levels = axis.tickValues(low, high, box.height())
        pen = QPen(current().color("grid"))
        pen.setCosmetic(True)
        painter.setPen(pen)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, on=False)
        painter.drawLines([QLineF(left, value, right, value) for _, values in levels[:1] for value in values])
