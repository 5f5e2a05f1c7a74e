"""Bars of the latent dimensions, coloured by the modality that owns them: one row a decoder."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QPoint, QRectF, QSize, Qt, Signal
from qtpy.QtGui import QColor, QFontMetrics, QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QPen
from qtpy.QtWidgets import QSizePolicy, QWidget

from cellweave.app.forms.numberbox import number_text
from cellweave.app.theme import SPACE, current, notifier, series_color, tabular_font
from cellweave.app.views.cards import HoverCard
from cellweave.core.spec.modalities import modality_kind

LEAST_ROW = 46


@dataclass(frozen=True, eq=False)
class DecoderBars:
    """One row.

    Attributes
    ----------
    modality
        Of the decoder.
    values
        Mean attribution of each latent dimension, ``(n_latent,)``.
    selected
        The same over the selected cells, or None.
    shares
        Share of each modality's latents, by modality.
    """

    modality: str
    values: NDArray[np.floating]
    selected: NDArray[np.floating] | None
    shares: Mapping[str, float]


class DimensionBars(QWidget):
    """Bars by dimension; a dimension is chosen by mouse or with the arrows.

    Attributes
    ----------
    chosen
        The number of the latent dimension that was chosen, counted from 0.
    """

    chosen = Signal(int)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAccessibleName("Attribution by latent dimension")
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setMouseTracking(True)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setFont(tabular_font())
        self._rows: Sequence[DecoderBars] = ()
        self._blocks: dict[str, tuple[int, int]] = {}
        self._current = -1
        self.card = HoverCard(self)
        notifier().changed.connect(self.update)

    # ------------------------------------------------------------------ content

    def show_rows(self, rows: Sequence[DecoderBars], blocks: Mapping[str, tuple[int, int]]) -> None:
        """Show other bars.

        Parameters
        ----------
        rows
            One a decoder.
        blocks
            First and last (exclusive) dimension of each modality.
        """
        self._rows, self._blocks = tuple(rows), dict(blocks)
        if self._current >= self.n_latent:
            self._current = -1
        self.setAccessibleDescription("; ".join(self.words(each) for each in rows))
        self.card.hide()
        self.updateGeometry()
        self.update()

    @property
    def n_latent(self) -> int:
        """Number of dimensions."""
        return len(self._rows[0].values) if self._rows else 0

    def owner(self, dimension: int) -> str:
        """Return whose latent a dimension is."""
        return next((name for name, (start, stop) in self._blocks.items() if start <= dimension < stop), "")

    @staticmethod
    def words(each: DecoderBars) -> str:
        """Return the legend of a row in words."""
        shares = ", ".join(f"{modality_kind(name).label} latents {share:.0%}" for name, share in each.shares.items() if np.isfinite(share))
        return f"{modality_kind(each.modality).label} decoder: {shares}"

    def colour_of(self, modality: str) -> QColor:
        """Return the colour of a modality's latents."""
        return series_color(list(self._blocks).index(modality)) if modality in self._blocks else current().color("secondary")

    def mark(self, dimension: int) -> None:
        """Mark a dimension; -1 marks none."""
        self._current = dimension
        self.update()

    def sizeHint(self) -> QSize:  # noqa: N802
        """Return room for every row."""
        return QSize(260, len(self._rows) * 2 * LEAST_ROW)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """Return the least room in which bars can be told apart."""
        return QSize(180, max(1, len(self._rows)) * LEAST_ROW)

    # ------------------------------------------------------------------ drawing

    def _line(self) -> int:
        return self.fontMetrics().height()

    def _plot(self, number: int) -> QRectF:
        """Return where the bars of a row stand."""
        foot = self._line() + 2  # one line below all rows: what the bars are
        tall = (self.height() - foot) / max(1, len(self._rows))
        top = number * tall + self._line() + SPACE
        return QRectF(SPACE, top, max(1, self.width() - 2 * SPACE), max(4.0, tall - self._line() - 2 * SPACE))

    def paintEvent(self, event: QPaintEvent | None) -> None:  # noqa: N802
        """Draw legend and bars of every row."""
        painter = QPainter(self)
        theme = current()
        for number, each in enumerate(self._rows):
            self._draw_legend(painter, number, each)
            self._draw_bars(painter, self._plot(number), each)
        if self._rows:
            painter.setPen(theme.color("secondary"))
            foot = QRectF(SPACE, self.height() - self._line(), self.width() - 2 * SPACE, self._line())
            words = "Latent dimension; mean over cells" + (", lines: selected cells" if self._rows[0].selected is not None else "")
            painter.drawText(foot, Qt.AlignmentFlag.AlignHCenter, self.fontMetrics().elidedText(words, Qt.TextElideMode.ElideRight, int(foot.width())))
        if self.hasFocus():
            painter.setPen(QPen(theme.color("accent"), 1))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawRect(self.rect().adjusted(0, 0, -1, -1))
        painter.end()

    def _draw_legend(self, painter: QPainter, number: int, each: DecoderBars) -> None:
        theme, plot, line = current(), self._plot(number), self._line()
        x, y = plot.left(), plot.top() - line - 2
        metrics: QFontMetrics = self.fontMetrics()
        title = f"{modality_kind(each.modality).label} decoder"
        painter.setPen(theme.color("text"))
        painter.drawText(QRectF(x, y, plot.width(), line), Qt.AlignmentFlag.AlignLeft, title)
        x += metrics.horizontalAdvance(title) + 3 * SPACE
        for name, share in each.shares.items():
            if not np.isfinite(share):
                continue
            words = f"{modality_kind(name).label} {share:.0%}"
            wide = metrics.horizontalAdvance(words) + line
            if x + wide > plot.right():
                break
            painter.fillRect(QRectF(x, y + line * 0.25, line * 0.55, line * 0.55), self.colour_of(name))
            painter.setPen(theme.color("secondary"))
            painter.drawText(QRectF(x + line * 0.8, y, wide, line), Qt.AlignmentFlag.AlignLeft, words)
            x += wide + 2 * SPACE

    def _draw_bars(self, painter: QPainter, plot: QRectF, each: DecoderBars) -> None:
        theme = current()
        values = np.nan_to_num(each.values)
        shown = values if each.selected is None else np.maximum(values, np.nan_to_num(each.selected))
        most = float(shown.max()) or 1.0
        wide = plot.width() / max(1, len(values))
        gap = min(2.0, wide * 0.2)
        painter.setPen(Qt.PenStyle.NoPen)
        for number, value in enumerate(values):
            colour = self.colour_of(self.owner(number))
            if each.selected is not None:
                colour.setAlphaF(0.35)
            tall = plot.height() * value / most
            painter.fillRect(QRectF(plot.left() + number * wide + gap / 2, plot.bottom() - tall, max(1.0, wide - gap), tall), colour)
        if each.selected is not None:
            for number, value in enumerate(np.nan_to_num(each.selected)):
                painter.setPen(QPen(self.colour_of(self.owner(number)), 2))
                y = plot.bottom() - plot.height() * value / most
                painter.drawLine(QPoint(int(plot.left() + number * wide + gap / 2), int(y)), QPoint(int(plot.left() + (number + 1) * wide - gap / 2), int(y)))
        painter.setPen(theme.color("border"))
        painter.drawLine(plot.bottomLeft(), plot.bottomRight())
        if 0 <= self._current < len(values):
            painter.setPen(QPen(theme.color("text"), 1))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawRect(QRectF(plot.left() + self._current * wide, plot.top() - 1, wide, plot.height() + 2))

    # ------------------------------------------------------------------ mouse and keys

    def dimension_at(self, point: QPoint) -> tuple[int, int]:
        """Return row and dimension under a point, -1 each where there is none."""
        for number in range(len(self._rows)):
            plot = self._plot(number)
            if plot.adjusted(0, -self._line(), 0, SPACE).contains(point.toPointF()):
                place = int((point.x() - plot.left()) / plot.width() * self.n_latent)
                return number, min(max(place, 0), self.n_latent - 1)
        return -1, -1

    def mouseMoveEvent(self, event: QMouseEvent | None) -> None:  # noqa: N802
        """Say what is under the cursor."""
        assert event is not None
        row, dimension = self.dimension_at(event.position().toPoint())
        if row < 0:
            self.card.hide()
            return
        each = self._rows[row]
        owner = self.owner(dimension)
        lines = [f"<b>Dimension {dimension + 1}</b>" + (f" of {html.escape(modality_kind(owner).label)}" if owner in self._blocks else "")]
        lines.append(f"{html.escape(modality_kind(each.modality).label)} decoder: {number_text(float(f'{each.values[dimension]:.3g}'))}")
        if each.selected is not None:
            lines.append(f"selected cells: {number_text(float(f'{each.selected[dimension]:.3g}'))}")
        self.card.show_at(event.position().toPoint(), "<br>".join(lines))

    def leaveEvent(self, event: object) -> None:  # noqa: N802
        """Take the card away."""
        self.card.hide()

    def mousePressEvent(self, event: QMouseEvent | None) -> None:  # noqa: N802
        """Choose a dimension."""
        assert event is not None
        row, dimension = self.dimension_at(event.position().toPoint())
        if row >= 0:
            self._choose(dimension)

    def keyPressEvent(self, event: QKeyEvent | None) -> None:  # noqa: N802
        """Go from dimension to dimension."""
        assert event is not None
        step = {Qt.Key.Key_Left: -1, Qt.Key.Key_Right: 1}.get(Qt.Key(event.key()))
        if step is None or not self.n_latent:
            super().keyPressEvent(event)
            return
        self._choose(int(np.clip(self._current + step, 0, self.n_latent - 1)))

    def _choose(self, dimension: int) -> None:
        self.mark(dimension)
        self.chosen.emit(dimension)
