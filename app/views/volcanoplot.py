"""A volcano plot: fold change against how sure one is of it, one point a gene."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyqtgraph as pg
from numpy.typing import NDArray
from qtpy.QtCore import QPointF, QRectF, Qt, QTimer, Signal
from qtpy.QtGui import QColor, QFontMetricsF, QKeyEvent
from qtpy.QtWidgets import QVBoxLayout, QWidget

from cellweave.app.theme import current, notifier
from cellweave.app.views.cards import HoverCard
from cellweave.app.views.dots import Dots
from cellweave.core.export.palette import OKABE_ITO

if TYPE_CHECKING:
    from cellweave.core.export.differential_files import Volcano

UP, DOWN = OKABE_ITO[5], OKABE_ITO[0]
NEAR = 8.0  # pixels within which the cursor means a point
MARGIN = 4.0  # pixels that Qt leaves around a text
SETTLE = 40  # milliseconds without another size or range before names are placed anew
NAMED = 8  # genes written into the plot


class VolcanoPlot(QWidget):
    """Points of genes; the called ones in two colours, the chosen one framed.

    Attributes
    ----------
    chosen
        A gene was clicked: its row.
    """

    chosen = Signal(int)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAccessibleName("Volcano plot")
        self._points: Volcano | None = None
        self._names: Sequence[str] = ()
        self._faded: NDArray[np.bool_] | None = None
        self._current = -1
        self._plot = pg.PlotWidget(enableMenu=False)
        self._plot.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self._plot.hideButtons()
        self._plot.setAccessibleName("Volcano plot")
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._plot)
        self._clouds = [Dots(5) for _ in range(6)]  # one item a look
        self._ring = pg.ScatterPlotItem(pxMode=True, size=13)
        self._middle = pg.InfiniteLine(0, angle=90)
        for item in (self._middle, *(self._clouds[number] for number in (3, 4, 5, 0, 1, 2)), self._ring):
            self._plot.addItem(item)
        self._labels: list[pg.TextItem] = []
        self.card = HoverCard(self)
        self._plot.scene().sigMouseMoved.connect(self._hover)
        self._plot.scene().sigMouseClicked.connect(self._click)
        self._placing = QTimer(self)
        self._placing.setSingleShot(True)
        self._placing.setInterval(SETTLE)
        self._placing.timeout.connect(self._write_names)
        self._plot.getViewBox().sigRangeChanged.connect(lambda *_: self._placing.start())
        self._plot.getViewBox().sigResized.connect(lambda *_: self._placing.start())
        notifier().changed.connect(self._draw)
        self._draw()

    def set_points(self, points: Volcano | None, names: Sequence[str] = ()) -> None:
        """Show other points, or none."""
        self._points, self._names, self._faded, self._current = points, names, None, -1
        self.card.hide()
        self._draw()
        if points is not None:
            known = np.isfinite(points.x) & np.isfinite(points.y)
            reach = max(float(np.abs(points.x[known]).max(initial=0.0)), 0.1) * 1.1
            top = max(float(points.y[known].max(initial=0.0)), 0.1) * 1.12
            self._plot.setRange(xRange=(-reach, reach), yRange=(0, top), padding=0.01)

    def fade(self, kept: NDArray[np.bool_] | None) -> None:
        """Draw genes that the table leaves out more faintly; None draws all alike."""
        self._faded = None if kept is None else ~kept
        self._draw()

    def mark(self, row: int) -> None:
        """Frame a gene; -1 frames none."""
        self._current = row
        self._draw_ring()

    # ------------------------------------------------------------------ drawing

    def _draw(self) -> None:
        theme = current()
        self._plot.setBackground(theme.color("panel"))
        for side in ("left", "bottom"):
            axis = self._plot.getAxis(side)
            axis.enableAutoSIPrefix(False)  # noqa: FBT003  (Qt's own signature)
            axis.setPen(theme.color("border"))
            axis.setTextPen(theme.color("secondary"))
        self._middle.setPen(pg.mkPen(theme.color("border"), width=1))
        points = self._points
        self._plot.setLabel("bottom", points.x_title if points else "", color=theme.color("secondary").name())
        self._plot.setLabel("left", points.y_title if points else "", color=theme.color("secondary").name())
        shades = [theme.color("disabled"), QColor(UP), QColor(DOWN)]
        kinds = np.zeros(0, np.intp)
        if points is not None:
            kinds = np.where(~points.called, 0, np.where(points.x > 0, 1, 2)) + (0 if self._faded is None else 3 * self._faded)
            kinds = np.where(np.isfinite(points.x) & np.isfinite(points.y), kinds, -1)
        for number, cloud in enumerate(self._clouds):
            shade = QColor(shades[number % 3])
            shade.setAlphaF(0.12 if number >= 3 else 0.55 if number == 0 else 0.9)
            these = kinds == number
            nowhere = np.zeros(0)
            cloud.set_points(nowhere if points is None else points.x[these], nowhere if points is None else points.y[these], shade)
        self._write_names()
        self._draw_ring()

    def _write_names(self) -> None:
        for label in self._labels:
            self._plot.removeItem(label)
        self._labels = []
        points = self._points
        if points is None:
            return
        sure = points.called & np.isfinite(points.x) & np.isfinite(points.y)
        if self._faded is not None:
            sure &= ~self._faded
        score = np.where(sure, np.abs(points.x) * np.maximum(points.y, 1e-9), -1.0)
        box = self._plot.getViewBox()
        (left, right), (low, high) = box.viewRange()
        wide, tall = box.width(), box.height()
        if wide < 2 or tall < 2:
            return
        metrics, room = QFontMetricsF(self.font()), QRectF(0, 0, wide, tall)
        taken: list[QRectF] = []
        for row in np.argsort(-score, kind="stable")[: 6 * NAMED]:
            if score[row] <= 0 or len(taken) >= NAMED:
                break
            x, y = float(points.x[row]), float(points.y[row])
            at = QPointF((x - left) / (right - left) * wide, (high - y) / (high - low) * tall)
            size = metrics.horizontalAdvance(self._names[row]) + 2 * MARGIN, metrics.height() + 2 * MARGIN
            # Away from the middle first: there are the fewest points.
            sides = ((1.0, 0.5), (0.0, 0.5)) if x < 0 else ((0.0, 0.5), (1.0, 0.5))
            for anchor in (*sides, (0.5, 1.0), (0.5, 0.0)):
                place = QRectF(at.x() - anchor[0] * size[0], at.y() - anchor[1] * size[1], *size)
                if room.contains(place) and not any(place.intersects(other) for other in taken):
                    taken.append(place)
                    self._label(row, x, y, anchor)
                    break

    def _label(self, row: int, x: float, y: float, anchor: tuple[float, float]) -> None:
        label = pg.TextItem(self._names[row], color=current().color("text"), anchor=anchor)
        label.setFont(self.font())
        label.setPos(x, y)
        self._plot.addItem(label, ignoreBounds=True)
        self._labels.append(label)

    def _draw_ring(self) -> None:
        points, row = self._points, self._current
        if points is None or row < 0 or not np.isfinite(points.x[row] + points.y[row]):
            self._ring.clear()
            return
        self._ring.setData(x=[points.x[row]], y=[points.y[row]], brush=None, pen=pg.mkPen(current().color("text"), width=2))
        self._plot.setAccessibleDescription(f"{self._names[row]}: {points.x_title} {points.x[row]:.3g}, {points.y_title} {points.y[row]:.3g}")

    # ------------------------------------------------------------------ mouse and keys

    def _nearest(self, where: QPointF) -> int:
        points = self._points
        if points is None or not len(points.x):
            return -1
        box = self._plot.getViewBox()
        at = box.mapSceneToView(where)
        x, y = box.viewPixelSize()
        with np.errstate(invalid="ignore"):
            distance = np.hypot((points.x - at.x()) / x, (points.y - at.y()) / y)
        distance = np.where(np.isfinite(distance), distance, np.inf)
        row = int(np.argmin(distance))
        return row if distance[row] <= NEAR else -1

    def _hover(self, where: Any) -> None:
        row = self._nearest(where)
        if row < 0 or self._points is None:
            self.card.hide()
            return
        points = self._points
        said = f"<b>{html.escape(self._names[row])}</b><br>{points.x_title}: {points.x[row]:.3g}<br>{points.y_title}: {points.y[row]:.3g}"
        at_top = np.isfinite(points.ceiling) and points.y[row] >= points.ceiling - 1e-9
        self.card.show_at(self._plot.mapFromScene(where), said + ("<br>at the limit of the samples drawn" if at_top else ""))

    def _click(self, event: Any) -> None:
        row = self._nearest(event.scenePos())
        if row >= 0:
            event.accept()
            self.chosen.emit(row)

    def keyPressEvent(self, event: QKeyEvent | None) -> None:  # noqa: N802
        """Show all points again with 0."""
        assert event is not None
        if event.key() == Qt.Key.Key_0 and self._points is not None:
            self.set_points(self._points, self._names)
            return
        super().keyPressEvent(event)
