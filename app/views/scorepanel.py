"""A scatter of two scores with value axes, and the distribution of each along its margin."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QPointF, QRectF, QSize, Qt
from qtpy.QtGui import QColor, QPainter, QPaintEvent, QPen, QPolygonF, QResizeEvent
from qtpy.QtWidgets import QGridLayout, QSizePolicy, QWidget

from cellweave.app.theme import current
from cellweave.app.views.axes import ValueAxis
from cellweave.app.views.points import PointSet
from cellweave.app.views.scatterpanel import ScatterPanel

BINS = 60
#: Levels whose distributions are drawn each by itself; with more of them there would be nothing to see.
MOST_LINES = 8
MARGIN = 44


class Margin(QWidget):
    """The distribution of one coordinate beside the axis it belongs to.

    Parameters
    ----------
    panel
        Whose canvas it stands beside.
    upright
        Whether it stands at the right, for the ordinate; else it lies above, for the abscissa.
    """

    def __init__(self, panel: ScorePanel, *, upright: bool) -> None:
        super().__init__()
        self._panel, self._upright = panel, upright
        self._edges = np.array([0.0, 1.0])
        self._whole: NDArray[np.float64] = np.zeros(1)
        self._parts: list[tuple[QColor, NDArray[np.float64]]] = []
        self.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        side, along = QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Ignored
        self.setSizePolicy(side if upright else along, along if upright else side)

    def sizeHint(self) -> QSize:  # noqa: N802
        """Return its thickness."""
        return QSize(MARGIN, MARGIN)

    def set_counts(self, edges: NDArray[np.float64], whole: NDArray[np.float64], parts: list[tuple[QColor, NDArray[np.float64]]]) -> None:
        """Show counts by bin: of all points, and of single levels in their colours."""
        self._edges, self._whole, self._parts = edges, whole, parts
        self.update()

    def _along(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return where values of the coordinate lie along this widget, in pixels."""
        box, canvas = self._panel.box, self._panel.canvas
        seen = box.viewRect()
        corners = [canvas.mapFromScene(box.mapViewToScene(corner)) for corner in (seen.topLeft(), seen.bottomRight())]
        if self._upright:
            low, high, start, stop = seen.top(), seen.bottom(), corners[0].y(), corners[1].y()
        else:
            low, high, start, stop = seen.left(), seen.right(), corners[0].x(), corners[1].x()
        return start + (values - low) / max(high - low, 1e-12) * (stop - start)

    def _outline(self, counts: NDArray[np.float64], most: float) -> QPolygonF:
        along = self._along(self._edges)
        depth = counts / max(most, 1e-12) * (MARGIN - 6)
        base = 1.0 if self._upright else self.height() - 1.0
        points = [(along[0], 0.0)]
        for number, height in enumerate(depth):
            points += [(along[number], height), (along[number + 1], height)]
        points.append((along[-1], 0.0))
        if self._upright:
            return QPolygonF([QPointF(base + height, place) for place, height in points])
        return QPolygonF([QPointF(place, base - height) for place, height in points])

    def paintEvent(self, event: QPaintEvent | None) -> None:  # noqa: N802
        """Draw the distribution of all points as an area, those of levels as lines."""
        painter = QPainter(self)
        painter.fillRect(self.rect(), current().color("panel"))
        if not self._whole.any():
            painter.end()
            return
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        ends = self._along(np.array([self._panel.box.viewRect().left(), self._panel.box.viewRect().right()]) if not self._upright
                           else np.array([self._panel.box.viewRect().top(), self._panel.box.viewRect().bottom()]))  # fmt: skip
        low, high = float(ends.min()), float(ends.max())
        painter.setClipRect(QRectF(0, low, self.width(), high - low) if self._upright else QRectF(low, 0, high - low, self.height()))
        theme = current()
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(theme.shade("text", "panel", 0.10 if self._parts else 0.32))
        most = float(self._whole.max())
        painter.drawPolygon(self._outline(self._whole, most))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        highest = max((float(counts.max()) for _, counts in self._parts), default=1.0)
        for colour, counts in self._parts:
            if counts.any():
                painter.setPen(QPen(colour, 1.4))
                painter.drawPolyline(self._outline(counts, highest))
        painter.end()


class _Ground(QWidget):
    """The corner between the margins, of the colour of the plot."""

    def paintEvent(self, event: QPaintEvent | None) -> None:  # noqa: N802
        """Fill it."""
        painter = QPainter(self)
        painter.fillRect(self.rect(), current().color("panel"))
        painter.end()


LOW = 22
"""Height, in lines of text, below which the distribution above the cloud is left out."""


class ScorePanel(ScatterPanel):
    """A cloud in the plane of two scores.

    Parameters
    ----------
    parent
        Owner.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        self._titles: tuple[tuple[str, str], tuple[str, str]] = (("", ""), ("", ""))
        self._ready = False
        super().__init__(parent)
        self.box.setAspectLocked(False)
        self._axes = {side: ValueAxis(side) for side in ("left", "bottom")}
        for axis in self._axes.values():
            axis.enableAutoSIPrefix(enable=False)
        self.canvas.getPlotItem().setAxisItems(self._axes)
        self.above, self.right = Margin(self, upright=False), Margin(self, upright=True)
        holder = QWidget(self)
        grid = QGridLayout(holder)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setSpacing(0)
        self._body.replaceWidget(self.canvas, holder)
        grid.addWidget(self.above, 0, 0)
        grid.addWidget(self.canvas, 1, 0)
        grid.addWidget(self.right, 1, 1)
        grid.addWidget(_Ground(), 0, 1)
        grid.setRowStretch(1, 1)
        grid.setColumnStretch(0, 1)
        self.box.sigRangeChanged.connect(lambda *_: self._move_margins())
        self.box.sigResized.connect(lambda *_: self._resized())
        self.fitWanted.connect(self.fit)
        self.legendChanged.connect(self._place)
        self._ready = True
        self._retheme()

    def _resized(self) -> None:
        self._move_margins()
        self._label_axes()

    def _move_margins(self) -> None:
        self.above.update()
        self.right.update()

    # -- what it shows ---------------------------------------------------------------------------------------

    def set_scores(self, x: NDArray[np.floating], y: NDArray[np.floating], titles: tuple[tuple[str, str], tuple[str, str]], *, log: bool) -> None:
        """Show the cells at two scores.

        Parameters
        ----------
        x, y
            Scores ``(n,)``, NaN where there is none.
        titles
            Of the two axes, each with its unit, which is left out where there is no room.
        log
            Draw them on logarithmic axes; scores of 0 and below are then not shown.
        """
        values = np.column_stack([np.asarray(x, np.float64), np.asarray(y, np.float64)])
        if log:
            with np.errstate(divide="ignore", invalid="ignore"):
                values = np.log10(values)
            values[~np.isfinite(values)] = np.nan
        for axis in self._axes.values():
            axis.setLogMode(log)
        self._titles = titles
        self._label_axes()
        self.set_points(PointSet(values.astype(np.float32)))
        self._count()

    def set_axes(self, name: str) -> None:
        """Leave the axes as they are: they are named by :meth:`set_scores`."""

    def _label_axes(self) -> None:
        colour = current().color("secondary").name()
        room = {"bottom": self.box.width(), "left": self.box.height()}
        for side, (title, unit) in zip(("bottom", "left"), self._titles, strict=True):
            whole = f"{title} ({unit})" if unit else title
            fits = 1.1 * self.fontMetrics().horizontalAdvance(whole) < room[side]
            self.canvas.getPlotItem().setLabel(side, html.escape(whole if fits else title), color=colour)
            self._axes[side].resizeEvent(None)  # the label stands in the middle of its new length

    def recolour(self) -> None:
        """Compute colours anew, those of the margins too."""
        super().recolour()
        if self._ready:
            self._count()

    def _hide_levels(self, hidden: frozenset[int]) -> None:
        super()._hide_levels(hidden)
        self._count()

    def _count(self) -> None:
        """Count the points along both margins: all of them, and those of each level where there are few."""
        column, colours = self.column(), self.colours()
        hidden = self.hidden_levels()
        by_level = column is not None and column.is_categorical and len(self._codes) == self._points.size and 1 < len(column.levels) <= MOST_LINES
        chosen = self._selected if self._selected is not None and len(self._selected) == self._points.size else None
        for number, margin in enumerate((self.above, self.right)):
            values = self._points.xy[:, number].astype(np.float64)
            finite = np.isfinite(self._points.xy).all(axis=1)
            if not finite.any():
                margin.set_counts(np.array([0.0, 1.0]), np.zeros(1), [])
                continue
            low, high = values[finite].min(), values[finite].max()
            edges = np.linspace(low, max(high, low + 1e-9), BINS + 1)
            whole, _ = np.histogram(values[finite], edges)
            parts: list[tuple[QColor, NDArray[np.float64]]] = []
            if chosen is not None:
                parts.append((current().color("accent"), _smooth(np.histogram(values[finite & chosen], edges)[0])))
            elif by_level:
                for code in range(1, len(colours)):
                    if code not in hidden:
                        counts, _ = np.histogram(values[finite & (self._codes == code)], edges)
                        parts.append((QColor(*(int(part) for part in colours[code])), _smooth(counts)))
            margin.set_counts(edges, _smooth(whole), parts)

    # -- view ------------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Show all points, each axis by itself."""
        low, high = self._points.low, self._points.high
        room = np.maximum(0.04 * (high - low), 1e-6 + 1e-3 * np.abs(high))
        self.box.setLimits(minXRange=float(room[0]) * 1e-3, minYRange=float(room[1]) * 1e-3)
        self.box.setRange(QRectF(low[0] - room[0], low[1] - room[1], high[0] - low[0] + 2 * room[0], high[1] - low[1] + 2 * room[1]), padding=0)

    def _retheme(self, *args: object) -> None:
        super()._retheme(*args)
        if not self._ready:
            return
        theme = current()
        for axis in self._axes.values():
            axis.setPen(theme.color("border"))
            axis.setTextPen(theme.color("secondary"))
            axis.setStyle(tickLength=-4, autoExpandTextSpace=True)
        self._label_axes()

    def resizeEvent(self, event: QResizeEvent | None) -> None:  # noqa: N802
        """Give the legend what it needs of the new height; a low panel keeps its room for the cloud."""
        super().resizeEvent(event)
        self.above.setVisible(self.height() >= LOW * self.fontMetrics().height())
        self._place()

    def _place(self) -> None:
        wanted = self.legend_hint(beside=False)
        self.place_legend(max(self.least_legend(), min(wanted, self.height() // 4)), beside=False)

    def accessible_words(self) -> str:
        """Return what the axes are, for screen readers."""
        return f"{self._titles[1][0]} against {self._titles[0][0]}"


def _smooth(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Return counts averaged over three bins, so that a distribution is read and not its noise."""
    padded = np.pad(np.asarray(counts, np.float64), 1)
    return (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
