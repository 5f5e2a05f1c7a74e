"""Axes and grid lines of the curves."""

from __future__ import annotations

import math

import pyqtgraph as pg
from qtpy.QtCore import QLineF, QRectF
from qtpy.QtGui import QPainter, QPen
from qtpy.QtWidgets import QStyleOptionGraphicsItem, QWidget

from cellweave.app.forms.numberbox import number_text
from cellweave.app.theme import current


class ValueAxis(pg.AxisItem):
    """A value axis that writes numbers as one reads them, also where it is logarithmic."""

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
        (left, right), (low, high) = box.viewRange()
        axis = self._plot.getAxis("left")
        levels = axis.tickValues(low, high, box.height())
        pen = QPen(current().color("grid"))
        pen.setCosmetic(True)
        painter.setPen(pen)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, on=False)
        painter.drawLines([QLineF(left, value, right, value) for _, values in levels[:1] for value in values])
