"""The grid of pictures: batches down, all modalities together and each alone across, every cell of the grid with the same layout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QEvent, QRectF, QSize, Qt, Signal
from qtpy.QtGui import QColor, QFontMetrics, QHelpEvent, QImage, QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QPen
from qtpy.QtWidgets import QSizePolicy, QToolTip, QWidget

from cellweave.app.theme import SPACE, current, notifier
from cellweave.app.views.columns import ColumnData
from cellweave.app.views.points import PointSet, Window
from cellweave.app.views.raster import Look, dot_reach, dots_image

LEAST = 80  # pixels of a picture's side
DOT, USUAL = 4.0, 140  # a dot, and the side of a picture in which it is that large
FAINT = {"light": 0.82, "dark": 0.65}  # how far the cells of other batches are taken towards the background


class ModalityGrid(QWidget):
    """Pictures of batches by modalities; the cells of other batches are faint behind.

    Attributes
    ----------
    chosen
        A picture was chosen: the number of its batch.
    """

    chosen = Signal(int)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAccessibleName("Embeddings by batch and modality")
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self._points: list[PointSet] = []
        self._layout: NDArray[np.float32] = np.zeros((0, 0, 2), np.float32)
        self._columns: Sequence[str] = ()
        self._batches: Sequence[str] = ()
        self._codes = np.zeros(0, np.int32)
        self._colour = ColumnData.categorical(np.zeros(0, np.int32), [])
        self._hidden: frozenset[int] = frozenset()
        self._off: frozenset[tuple[str, str]] = frozenset()
        self._images: dict[tuple[int, int], QImage] = {}
        self._pixels: list[NDArray[np.uint32]] = []  # an image reads the memory of its array
        self.marked = -1
        notifier().changed.connect(self._forget)

    def set_cells(
        self, layout: NDArray[np.float32], columns: Sequence[str], codes: NDArray[np.int32], batches: Sequence[str],
        off: frozenset[tuple[str, str]] = frozenset(),
    ) -> None:  # fmt: skip
        """Show other cells.

        Parameters
        ----------
        layout
            ``(n_columns, n_cells, 2)``, NaN where a cell has no place.
        columns
            What the columns of the grid are.
        codes
            Batch of each cell, ``(n_cells,)``.
        batches
            Their names, one a row of the grid.
        off
            Batch and column of what was measured but switched off before training.
        """
        self._off = off
        self._layout, self._columns, self._codes, self._batches, self.marked = layout, columns, codes, batches, -1
        self._points = [PointSet(part) for part in layout]
        self._colour = ColumnData.categorical(codes, batches)
        self.updateGeometry()
        self._forget()

    def set_colour(self, column: ColumnData, hidden: frozenset[int] = frozenset()) -> None:
        """Colour the cells by a column of theirs; ``hidden`` codes are not drawn."""
        self._colour, self._hidden = column, hidden
        self._forget()

    def mark(self, batch: int) -> None:
        """Make a row stand out; -1 for none."""
        self.marked = batch
        self.update()

    def _forget(self, *_: object) -> None:
        self._images, self._pixels = {}, []
        self.update()

    # ------------------------------------------------------------------ places

    def _heads(self) -> tuple[int, int]:
        """Return the width of the batches' names and the height of the modalities'."""
        metrics = QFontMetrics(self.font())
        names = max((metrics.horizontalAdvance(name) + 1 for name in self._batches), default=0)  # a part of a pixel would cut the longest
        return min(names, 16 * metrics.horizontalAdvance("0")) + 2 * SPACE, metrics.height() + SPACE

    def _cell(self, batch: int, column: int) -> QRectF:
        left, top = self._heads()
        width = (self.width() - left) / max(1, len(self._columns))
        height = (self.height() - top) / max(1, len(self._batches))
        return QRectF(left + column * width, top + batch * height, width - SPACE, height - SPACE)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """Return room for pictures that can be read."""
        left, top = self._heads()
        return QSize(left + len(self._columns) * LEAST, top + len(self._batches) * LEAST)

    def sizeHint(self) -> QSize:  # noqa: N802
        """Return the least room."""
        return self.minimumSizeHint()

    def written(self, name: str) -> str:
        """Return the name of a batch as the margin has room for it."""
        return self.fontMetrics().elidedText(name, Qt.TextElideMode.ElideMiddle, self._heads()[0] - 2 * SPACE)

    def absent(self, batch: int, column: int) -> str:
        """Return why a batch has no picture of a modality."""
        return "switched off" if (self._batches[batch], self._columns[column]) in self._off else "not measured"

    # ------------------------------------------------------------------ drawing

    def paintEvent(self, event: QPaintEvent | None) -> None:  # noqa: N802
        """Draw titles and pictures."""
        painter, theme = QPainter(self), current()
        left, top = self._heads()
        for column, name in enumerate(self._columns):
            at = self._cell(0, column)
            painter.setPen(theme.color("text"))
            painter.drawText(QRectF(at.left(), 0, at.width(), top - SPACE / 2), Qt.AlignmentFlag.AlignCenter, name)
        for batch, name in enumerate(self._batches):
            for column in range(len(self._columns)):
                self._draw(painter, batch, column)
            at = self._cell(batch, 0)
            painter.setPen(theme.color("accent" if batch == self.marked else "text"))
            where = QRectF(SPACE / 2, at.top(), left - SPACE, at.height())
            painter.drawText(where, Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft, self.written(name))
        if self.hasFocus() and 0 <= self.marked < len(self._batches):
            whole = self._cell(self.marked, 0).united(self._cell(self.marked, len(self._columns) - 1))
            painter.setPen(QPen(theme.color("accent"), 1.5))
            painter.drawRect(whole.adjusted(-1, -1, 1, 1))
        painter.end()

    def _draw(self, painter: QPainter, batch: int, column: int) -> None:
        theme, at = current(), self._cell(batch, column)
        painter.setPen(QPen(theme.color("border"), 1))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawRect(at)
        if not np.isfinite(self._layout[column][self._codes == batch]).any():
            painter.setPen(theme.color("secondary"))
            painter.drawText(at, Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextWordWrap, self.absent(batch, column))
            return
        ratio = self.devicePixelRatioF()
        width, height = max(1, round(at.width() * ratio)), max(1, round(at.height() * ratio))
        key = (batch, column)
        image = self._images.get(key)
        if image is None or (image.width(), image.height()) != (width, height):
            pixels = self._raster(batch, column, width, height, ratio)
            image = QImage(pixels.data, width, height, 4 * width, QImage.Format.Format_ARGB32_Premultiplied)
            image.setDevicePixelRatio(ratio)
            self._pixels.append(pixels)
            self._images[key] = image
        painter.drawImage(at.topLeft(), image)

    def _raster(self, batch: int, column: int, width: int, height: int, ratio: float) -> NDArray[np.uint32]:
        """Return the picture of a batch and modality as premultiplied ARGB."""
        points = self._points[column]
        low = np.nanmin(self._layout, axis=(0, 1)).astype(float)
        high = np.nanmax(self._layout, axis=(0, 1)).astype(float)
        room = 0.05 * np.maximum(high - low, 1e-6)
        low, high = low - room, high + room
        scale = min(width / (high[0] - low[0]), height / (high[1] - low[1]))
        middle = (low + high) / 2
        window = Window(middle[0] - width / scale / 2, middle[1] + height / scale / 2, scale, scale, width, height)
        codes, colours = self._colour.point_codes(), self._colour.colours("dark" if current().name == "dark" else "light")
        ground = np.array(QColor(current().color("window")).getRgb()[:3], float)
        grey = np.array(QColor(current().color("secondary")).getRgb()[:3], float)
        faint = FAINT[current().name]
        behind = (faint * ground + (1 - faint) * grey).astype(np.uint8)[None]
        look = Look(
            np.where(self._codes == batch, codes, len(colours)).astype(np.int32)[points.order], np.concatenate([colours, behind]),
            np.array([-1 if code in self._hidden else 1 for code in range(len(colours))] + [0], np.int8),
        )  # fmt: skip
        small = min(1.0, max(0.6, min(width, height) / (ratio * USUAL)))  # in small pictures large dots would run into one another
        diameter = DOT * ratio * min(small, 0.7 if points.size > 5000 else 1.0)
        return dots_image(points.place(window, reach=dot_reach(diameter)), points.rank, look, diameter)

    # ------------------------------------------------------------------ choosing

    def event(self, event: QEvent | None) -> bool:
        """Show the whole name of a batch where it is shortened."""
        if isinstance(event, QHelpEvent) and event.type() == QEvent.Type.ToolTip:
            rows = [batch for batch in range(len(self._batches)) if self._cell(batch, 0).top() <= event.pos().y() <= self._cell(batch, 0).bottom()]
            named = bool(rows) and event.pos().x() < self._heads()[0]
            QToolTip.showText(event.globalPos(), self._batches[rows[0]] if named else "", self)
            return True
        return super().event(event)

    def mousePressEvent(self, event: QMouseEvent | None) -> None:  # noqa: N802
        """Choose the batch of a picture."""
        if event is None:
            return
        for batch in range(len(self._batches)):
            at = self._cell(batch, 0)
            if at.top() <= event.position().y() <= at.bottom():
                self._choose(batch)

    def keyPressEvent(self, event: QKeyEvent | None) -> None:  # noqa: N802
        """Choose the batch above or below."""
        if event is None or event.key() not in {Qt.Key.Key_Up, Qt.Key.Key_Down} or not self._batches:
            super().keyPressEvent(event)
            return
        step = 1 if event.key() == Qt.Key.Key_Down else -1
        self._choose(min(max(self.marked + step, 0), len(self._batches) - 1))

    def _choose(self, batch: int) -> None:
        self.mark(batch)
        self.chosen.emit(batch)
