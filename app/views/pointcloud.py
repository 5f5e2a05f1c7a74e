"""The item that draws a cloud of points into one picture, and the box that it is panned, zoomed and lassoed in."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pyqtgraph as pg
from numpy.typing import NDArray
from qtpy.QtCore import QPointF, QRectF, Qt, QTimer, Signal
from qtpy.QtGui import QColor, QImage, QPainter, QPainterPath, QPen, QPolygonF, QTransform
from qtpy.QtWidgets import QGraphicsPathItem, QStyleOptionGraphicsItem, QWidget

from cellweave.app.theme import current
from cellweave.app.views.points import Ids, Placed, PointSet, Window, lasso
from cellweave.app.views.raster import Look, density_image, dot_reach, dot_size, dots_image

Mode = Literal["auto", "dots", "density"]
DOTS_UP_TO = 100_000
"""Up to this many points in sight each is a dot; above, a pixel shows the mean colour of its points."""

COARSE_ABOVE = 500_000
REFINE_MS = 80
HOVER_REACH = 8


class PointCloudItem(pg.GraphicsObject):
    """A cloud of points, drawn anew for what is in sight whenever it is painted.

    Parameters
    ----------
    box
        The view box it lies in.
    """

    def __init__(self, box: pg.ViewBox) -> None:
        super().__init__()
        self._box = box
        self._points = PointSet(np.empty((0, 2), np.float32))
        self._look = Look(np.empty(0, np.int32), np.zeros((1, 3), np.uint8), np.ones(1, np.int8))
        self._mode: Mode = "auto"
        self._dot_scale = 1.0
        self._coarse = False
        self._hovered: int | None = None
        self._placed: tuple[tuple[Any, ...], Placed] | None = None
        self._image: tuple[tuple[Any, ...], QImage, NDArray[np.uint32]] | None = None
        self._refine = QTimer(self)
        self._refine.setSingleShot(True)
        self._refine.setInterval(REFINE_MS)
        self._refine.timeout.connect(self._refined)
        box.sigRangeChangedManually.connect(self._dragged)

    # -- what it draws ---------------------------------------------------------------------------------------

    def set_points(self, points: PointSet, look: Look) -> None:
        """Set positions and looks together."""
        self.prepareGeometryChange()
        self._points, self._look = points, look
        self._placed = self._image = None
        if self._hovered is not None and self._hovered >= points.size:
            self._hovered = None
        self.update()

    def set_look(self, look: Look) -> None:
        """Set colours and layers; positions stay."""
        self._look, self._image = look, None
        self.update()

    def set_mode(self, mode: Mode) -> None:
        """Draw dots, density, or what suits the number of points in sight."""
        self._mode, self._image = mode, None
        self.update()

    def set_dot_scale(self, scale: float) -> None:
        """Draw dots larger or smaller than what suits their number."""
        self._dot_scale, self._image = scale, None
        self.update()

    def set_hovered(self, index: int | None) -> None:
        """Draw a ring around a point."""
        if index != self._hovered:
            self._hovered = index
            self.update()

    def points(self) -> PointSet:
        """Return the positions."""
        return self._points

    def look(self) -> Look:
        """Return the colours."""
        return self._look

    # -- geometry --------------------------------------------------------------------------------------------

    def boundingRect(self) -> QRectF:  # noqa: N802
        """Return what the points span, with room for a dot."""
        low, high = self._points.low, self._points.high
        room = 0.02 * float(np.max(high - low)) or 1.0
        return QRectF(low[0] - room, low[1] - room, high[0] - low[0] + 2 * room, high[1] - low[1] + 2 * room)

    def window(self, ratio: float = 1.0) -> Window:
        """Return what is in sight, in device pixels."""
        seen, size = self._box.viewRect(), self._box.rect()
        width, height = max(1.0, size.width()), max(1.0, size.height())
        return Window(
            seen.left(), seen.bottom(), width * ratio / seen.width(), height * ratio / seen.height(),
            math.ceil(width * ratio), math.ceil(height * ratio),
        )  # fmt: skip

    def _place(self, window: Window, reach: int, *, coarse: bool) -> Placed:
        key = (window, reach, coarse)
        if self._placed is None or self._placed[0] != key:
            self._placed = (key, self._points.place(window, coarse=coarse, reach=reach))
        return self._placed[1]

    # -- drawing ---------------------------------------------------------------------------------------------

    def _dragged(self, *_: object) -> None:
        self._coarse = len(self._points.order) > COARSE_ABOVE
        if self._coarse:
            self._refine.start()

    def _refined(self) -> None:
        self._coarse = False
        self.update()

    def diameter(self, window: Window, ratio: float = 1.0) -> float:
        """Return the diameter of a dot in device pixels: larger when zoomed in, and as the person set it."""
        extent = np.maximum(self._points.high - self._points.low, 1e-12)
        area = extent[0] * window.scale_x * extent[1] * window.scale_y
        fitted = min(area, float(window.width * window.height))
        size = dot_size(self._points.size, fitted, ratio)
        zoom = max(1.0, area / fitted)
        return float(np.clip(size * zoom**0.2 * self._dot_scale, 1.0, 24 * ratio))

    def raster(self, window: Window, ratio: float = 1.0) -> NDArray[np.uint32]:
        """Return the picture of a window as premultiplied ARGB of shape ``(height, width)``."""
        diameter = self.diameter(window, ratio)
        placed = self._place(window, dot_reach(diameter), coarse=self._coarse)
        few = not self._coarse and len(placed.ids) <= DOTS_UP_TO
        if self._mode == "dots" or (self._mode == "auto" and few):
            return dots_image(placed, self._points.rank, self._look, diameter)
        return density_image(placed, self._look)

    def paint(self, painter: QPainter, option: QStyleOptionGraphicsItem, widget: QWidget | None = None) -> None:
        """Draw what is in sight, pixel for pixel."""
        device = painter.device()
        ratio = device.devicePixelRatioF() if device is not None else 1.0
        window = self.window(ratio)
        key = (window, self._coarse)
        if self._image is None or self._image[0] != key:
            pixels = self.raster(window, ratio)
            image = QImage(pixels.data, window.width, window.height, 4 * window.width, QImage.Format.Format_ARGB32_Premultiplied)
            image.setDevicePixelRatio(ratio)
            self._image = (key, image, pixels)  # the image reads the array's memory
        corner = painter.worldTransform().map(QPointF(window.left, window.top))
        painter.save()
        painter.setWorldTransform(QTransform())
        painter.drawImage(QPointF(round(corner.x() * ratio) / ratio, round(corner.y() * ratio) / ratio), self._image[1])
        if self._hovered is not None:
            self._draw_ring(painter, corner, window, ratio)
        painter.restore()

    def _draw_ring(self, painter: QPainter, corner: QPointF, window: Window, ratio: float) -> None:
        assert self._hovered is not None
        x, y = window.to_pixels(self._points.xy[self._hovered : self._hovered + 1])[0] / ratio
        if not (math.isfinite(x) and math.isfinite(y)):
            return
        radius = self.diameter(window, ratio) / (2 * ratio) + 3
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(current().color("text"), 1.5))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawEllipse(QPointF(corner.x() + x, corner.y() + y), radius, radius)

    # -- finding ---------------------------------------------------------------------------------------------

    def pick(self, at: QPointF) -> int | None:
        """Return the index of the point that is drawn nearest to a place in the box, or None."""
        window = self.window()
        visible = None
        if (self._look.layers < 0).any():
            visible = self._look.layers[self._look.codes] >= 0
        reach = max(HOVER_REACH, self.diameter(window) / 2 + 2)
        return self._points.nearest(window, at.x(), at.y(), reach, visible)

    def inside(self, polygon: QPolygonF) -> Ids:
        """Return the indices of the drawn points inside a polygon given in coordinates of the box, sorted."""
        window = self.window()
        placed = self._place(window, 0, coarse=False)
        corners = np.array([(point.x(), point.y()) for point in polygon], dtype=float)
        inner = _painted(window, polygon, Qt.PenStyle.NoPen)
        edge = _painted(window, polygon, Qt.PenStyle.SolidLine)
        places = lasso(placed, self._points, corners, inner, edge)
        if (self._look.layers < 0).any():
            places = places[self._look.layers[self._look.codes[places]] >= 0]
        chosen = np.zeros(self._points.size, bool)  # a mask is put in order many times faster than a list is sorted
        chosen[self._points.order[places]] = True
        return np.flatnonzero(chosen)


def _painted(window: Window, polygon: QPolygonF, outline: Qt.PenStyle) -> NDArray[np.bool_]:
    """Return the pixels that the inside of a polygon, or its outline, covers."""
    image = QImage(window.width, window.height, QImage.Format.Format_Grayscale8)
    image.fill(0)
    painter = QPainter(image)
    white = QColor(Qt.GlobalColor.white)
    if outline == Qt.PenStyle.NoPen:
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(white)
        painter.drawPolygon(polygon, Qt.FillRule.WindingFill)
    else:
        painter.setPen(QPen(white, 3))
        painter.drawPolyline(polygon)
        painter.drawLine(polygon.last(), polygon.first())
    painter.end()
    stride = image.bytesPerLine()
    memory = image.constBits()
    raw = memory.asstring(stride * window.height) if hasattr(memory, "asstring") else bytes(memory)
    return np.frombuffer(raw, np.uint8).reshape(window.height, stride)[:, : window.width] > 127


class CloudBox(pg.ViewBox):
    """A view box with equal aspect in which the left button pans or draws a lasso.

    Signals
    -------
    lassoed(QPolygonF, Qt.KeyboardModifiers)
        A closed outline was drawn, in coordinates of the box.
    menuWanted(QPointF)
        The context menu was asked for, at a place on the screen.
    fitWanted()
        A double click.
    """

    lassoed = Signal(object, object)
    menuWanted = Signal(object)  # noqa: N815
    fitWanted = Signal()  # noqa: N815

    def __init__(self) -> None:
        super().__init__(lockAspect=True, enableMenu=False, defaultPadding=0.03)
        self.lasso_on = False
        self._outline: list[QPointF] = []
        self._drawn = QGraphicsPathItem(self)
        self._drawn.setZValue(100)
        self._drawn.hide()

    def mouseDragEvent(self, event: Any, axis: int | None = None) -> None:  # noqa: N802
        """Pan with the left or middle button, or draw where the lasso is on."""
        left = event.button() == Qt.MouseButton.LeftButton
        if left and self.lasso_on:
            event.accept()
            self._draw(event)
        elif left or event.button() == Qt.MouseButton.MiddleButton:
            super().mouseDragEvent(event, axis)
        else:
            event.ignore()

    def mouseClickEvent(self, event: Any) -> None:  # noqa: N802
        """Ask for the menu or fit the view."""
        if event.button() == Qt.MouseButton.RightButton:
            event.accept()
            self.menuWanted.emit(event.screenPos())
        elif event.double():
            event.accept()
            self.fitWanted.emit()
        else:
            event.ignore()

    def _draw(self, event: Any) -> None:
        place = QPointF(event.pos())
        if event.isStart():
            self._outline = [QPointF(event.buttonDownPos())]
        last = self._outline[-1]
        if math.hypot(place.x() - last.x(), place.y() - last.y()) >= 2:
            self._outline.append(place)
        if event.isFinish():
            self._drawn.hide()
            if len(self._outline) > 2:
                self.lassoed.emit(QPolygonF(self._outline), event.modifiers())
            return
        path = QPainterPath()
        path.addPolygon(QPolygonF(self._outline))
        path.closeSubpath()
        accent = current().color("accent")
        self._drawn.setPen(QPen(accent, 1.5))
        accent.setAlphaF(0.15)
        self._drawn.setBrush(accent)
        self._drawn.setPath(path)
        self._drawn.show()
