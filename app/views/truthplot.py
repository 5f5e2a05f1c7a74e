"""Truth against imputed values: dots where there are few, a density where there are many; and how scores of features are spread."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QPointF, QRectF, QSize, Qt
from qtpy.QtGui import QColor, QImage, QPainter, QPaintEvent, QPen, QPolygonF
from qtpy.QtWidgets import QSizePolicy, QWidget

from cellweave.app.theme import SPACE, current, notifier
from cellweave.core.export.imputation_parts import TruthPicture, shade
from cellweave.core.wording import counted


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers between two ends."""
    step = 10 ** np.floor(np.log10(max(high - low, 1e-12) / most))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) <= most)
    first = np.ceil(low / step - 1e-9) * step
    return [0.0 if abs(value) < 1e-9 * step else float(value) for value in np.arange(first, high + 1e-9 * step, step)]


class TruthPlot(QWidget):
    """Imputed values across, measured ones up, and the diagonal on which both agree."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAccessibleName("Measured against imputed values")
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.picture: TruthPicture | None = None
        self.titles, self.baseline = ("Imputed", "Measured"), float("nan")
        notifier().changed.connect(self.update)

    def set_picture(self, picture: TruthPicture | None, titles: tuple[str, str] = ("Imputed", "Measured"), baseline: float = float("nan")) -> None:
        """Show other values, with titles of both axes; ``baseline`` is the mean that a feature is predicted as without a model."""
        self.picture, self.titles, self.baseline = picture, titles, baseline
        self.setAccessibleDescription("" if picture is None else f"{counted(picture.n, 'value')} from {picture.low:.3g} to {picture.high:.3g}")
        self.update()

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """Return room for axes and a small square."""
        return QSize(220, 200)

    def _plot(self) -> QRectF:
        metrics = self.fontMetrics()
        left, below = metrics.horizontalAdvance("00.0") + metrics.height() + 3 * SPACE, 2 * metrics.height() + 3 * SPACE
        side = max(40, min(self.width() - left - 2 * SPACE, self.height() - below - 2 * SPACE))
        return QRectF(left + max(0, (self.width() - left - 2 * SPACE - side) / 2), 2 * SPACE, side, side)

    def paintEvent(self, event: QPaintEvent | None) -> None:  # noqa: N802
        """Draw axes, values, the diagonal and the baseline."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        if self.picture is None:
            painter.end()
            return
        plot, picture, theme = self._plot(), self.picture, current()
        scale = plot.width() / (picture.high - picture.low)

        def place(x: float, y: float) -> QPointF:
            return QPointF(plot.left() + (x - picture.low) * scale, plot.bottom() - (y - picture.low) * scale)

        self._draw_axes(painter, plot, place)
        painter.save()
        painter.setClipRect(plot)
        if picture.density is not None:
            painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
            painter.drawImage(plot, _density_image(picture.density, theme.color("accent")))
        elif picture.imputed is not None and picture.truth is not None:
            colour = QColor(theme.color("accent"))
            few = len(picture.imputed) <= 40
            colour.setAlphaF(0.9 if few else 0.55 if len(picture.imputed) < 800 else 0.3)
            painter.setPen(QPen(colour, 7.0 if few else 4.0, Qt.PenStyle.SolidLine, Qt.PenCapStyle.RoundCap))
            xs, ys = plot.left() + (picture.imputed - picture.low) * scale, plot.bottom() - (picture.truth - picture.low) * scale
            painter.drawPoints(QPolygonF([QPointF(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]))
        painter.setPen(QPen(theme.color("text"), 1, Qt.PenStyle.DashLine))
        painter.drawLine(place(picture.low, picture.low), place(picture.high, picture.high))
        if np.isfinite(self.baseline):
            painter.setPen(QPen(theme.color("warn"), 1.5))
            painter.drawLine(place(self.baseline, picture.low), place(self.baseline, picture.high))
        painter.restore()
        if np.isfinite(self.baseline):
            painter.setPen(theme.color("warn"))
            at = place(self.baseline, picture.high)
            words, wide = "feature mean", self.fontMetrics().horizontalAdvance("feature mean")
            x = at.x() + SPACE if at.x() + SPACE + wide < plot.right() else at.x() - SPACE - wide
            painter.drawText(QPointF(x, plot.top() + self.fontMetrics().ascent() + 2), words)
        painter.end()

    def _draw_axes(self, painter: QPainter, plot: QRectF, place: Any) -> None:
        picture, theme, metrics = self.picture, current(), self.fontMetrics()
        assert picture is not None
        painter.setPen(QPen(theme.color("border"), 1))
        painter.drawRect(plot)
        for value in nice_ticks(picture.low, picture.high):
            at = place(value, value)
            painter.setPen(QPen(theme.color("grid"), 1))
            painter.drawLine(QPointF(at.x(), plot.top()), QPointF(at.x(), plot.bottom()))
            painter.drawLine(QPointF(plot.left(), at.y()), QPointF(plot.right(), at.y()))
            painter.setPen(theme.color("secondary"))
            words = f"{value:g}"
            painter.drawText(QRectF(at.x() - 30, plot.bottom() + 2, 60, metrics.height()), Qt.AlignmentFlag.AlignCenter, words)
            room = QRectF(plot.left() - 64, at.y() - metrics.height() / 2, 60, metrics.height())
            painter.drawText(room, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, words)
        painter.drawText(QRectF(plot.left(), plot.bottom() + metrics.height() + 2, plot.width(), metrics.height() + 2), Qt.AlignmentFlag.AlignCenter,
        self.titles[0])
        painter.save()
        painter.translate(plot.left() - metrics.horizontalAdvance("00.0") - metrics.height() - SPACE, plot.bottom())
        painter.rotate(-90)
        painter.drawText(QRectF(0, 0, plot.height(), metrics.height()), Qt.AlignmentFlag.AlignCenter, self.titles[1])
        painter.restore()


def _density_image(density: NDArray[np.float64], colour: QColor) -> QImage:
    """Return the density as an image in shades of one colour, top row first."""
    alpha = shade(density)[::-1]
    pixels = np.zeros((*alpha.shape, 4), np.uint8)
    for channel, value in enumerate((colour.blue(), colour.green(), colour.red())):
        pixels[..., channel] = np.round(value * alpha)
    pixels[..., 3] = np.round(255 * alpha)
    return QImage(pixels.tobytes(), alpha.shape[1], alpha.shape[0], 4 * alpha.shape[1], QImage.Format.Format_ARGB32_Premultiplied).copy()


class SpreadPlot(QWidget):
    """A histogram of the scores of features, with the median and the chosen feature marked."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAccessibleName("Spread of the scores of features")
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self._counts, self._edges = np.zeros(0), np.zeros(0)
        self.median, self.marked, self.title = float("nan"), float("nan"), ""
        notifier().changed.connect(self.update)

    def set_values(self, values: NDArray[Any], title: str, low: float, high: float) -> None:
        """Show other scores between two ends."""
        known = values[np.isfinite(values)]
        self._counts, self._edges = np.histogram(known, bins=40, range=(low, high))
        self.median, self.title = float(np.median(known)) if len(known) else float("nan"), title
        self.setAccessibleDescription(f"{title}: median {self.median:.3g} of {counted(len(known), 'feature')}")
        self.update()

    def mark(self, value: float) -> None:
        """Mark the score of a feature; NaN for none."""
        self.marked = value
        self.update()

    def sizeHint(self) -> QSize:  # noqa: N802
        """Return room for bars, numbers and a title."""
        return QSize(240, 96 + 2 * self.fontMetrics().height())

    def numbers(self, plot: QRectF) -> list[tuple[str, QRectF]]:
        """Return the numbers below the bars with their places; those at the ends stay whole."""
        low, high, metrics, found = float(self._edges[0]), float(self._edges[-1]), self.fontMetrics(), []
        for value in nice_ticks(low, high, 8):
            words = f"{value:g}".replace("-", "\N{MINUS SIGN}")
            half = metrics.horizontalAdvance(words) / 2 + 1
            x = min(max(plot.left() + (value - low) / (high - low) * plot.width(), half), self.width() - half)
            found.append((words, QRectF(x - half, plot.bottom() + 2, 2 * half, metrics.height())))
        return found

    def paintEvent(self, event: QPaintEvent | None) -> None:  # noqa: N802
        """Draw bars, numbers and marks."""
        painter = QPainter(self)
        theme, metrics = current(), self.fontMetrics()
        if not len(self._counts):
            painter.end()
            return
        plot = QRectF(2 * SPACE, metrics.height() + SPACE, self.width() - 4 * SPACE, self.height() - 2 * metrics.height() - 3 * SPACE)
        painter.setPen(theme.color("secondary"))
        words = f"{self.title}: median {self.median:.2f}" if np.isfinite(self.median) else f"{self.title}: none can be judged"
        painter.drawText(QRectF(plot.left(), 0, plot.width(), metrics.height()), Qt.AlignmentFlag.AlignLeft, words)
        low, high = float(self._edges[0]), float(self._edges[-1])
        wide, top = plot.width() / len(self._counts), max(1, int(self._counts.max()))
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(theme.color("accent"))
        for number, count in enumerate(self._counts):
            tall = plot.height() * count / top
            painter.drawRect(QRectF(plot.left() + number * wide, plot.bottom() - tall, max(1.0, wide - 1), tall))
        painter.setPen(QPen(theme.color("border"), 1))
        painter.drawLine(plot.bottomLeft(), plot.bottomRight())
        painter.setPen(theme.color("secondary"))
        for words, place in self.numbers(plot):
            painter.drawText(place, Qt.AlignmentFlag.AlignCenter, words)
        for value, token in ((self.median, "text"), (self.marked, "warn")):
            if np.isfinite(value):
                x = plot.left() + (min(max(value, low), high) - low) / (high - low) * plot.width()
                painter.setPen(QPen(theme.color(token), 1.5, Qt.PenStyle.DashLine if token == "text" else Qt.PenStyle.SolidLine))
                painter.drawLine(QPointF(x, plot.top()), QPointF(x, plot.bottom()))
        painter.end()
