"""Bars of levels, with a second value beside each; a level is chosen by mouse or with the arrows."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QRectF, QSize, Qt, Signal
from qtpy.QtGui import QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QPen
from qtpy.QtWidgets import QSizePolicy, QWidget

from cellweave.app.forms.numberbox import number_text
from cellweave.app.theme import SPACE, current, notifier, series_color, tabular_font
from cellweave.app.views.cards import HoverCard
from cellweave.core.wording import counted

LETTERS = 14


class LevelBars(QWidget):
    """Horizontal bars, one a level; those that have no room are left out, the largest stay.

    Parameters
    ----------
    name
        For screen readers.

    Attributes
    ----------
    chosen
        A level was chosen: its number.
    """

    chosen = Signal(int)

    def __init__(self, name: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAccessibleName(name)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setMouseTracking(True)
        self.setFont(tabular_font())
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self._levels: Sequence[str] = ()
        self._values: NDArray[np.floating] = np.zeros(0)
        self._beside: NDArray[np.floating] | None = None
        self._marked, self._share, self._unit = -1, False, ""
        self.card = HoverCard(self)
        notifier().changed.connect(self.update)

    def show_levels(
        self,
        levels: Sequence[str],
        values: NDArray[np.floating],
        *,
        beside: NDArray[np.floating] | None = None,
        marked: int = -1,
        share: bool = False,
        unit: str = "",
    ) -> None:
        """Show other bars.

        Parameters
        ----------
        levels, values
            One bar each, ``(n,)``.
        beside
            A second value of each level, drawn as a thin neutral bar.
        marked
            Which level stands out.
        share
            Whether the values are shares, which are written in per cent.
        unit
            Of the values, on the card.
        """
        self._levels, self._values, self._beside = tuple(levels), np.asarray(values, float), beside
        self._marked, self._share, self._unit = marked, share, unit
        self.setAccessibleDescription("; ".join(f"{name} {self.words(value)}" for name, value in zip(levels, values, strict=True)))
        self.card.hide()
        self.setMaximumHeight(max(2, len(self._levels)) * self._line())
        self.update()

    def words(self, value: float) -> str:
        """Return a value as it is written; a dash where there is none."""
        if not np.isfinite(value):
            return "\N{EN DASH}"
        return f"{value:.1%}" if self._share else number_text(float(f"{value:.3g}"))

    def shown(self) -> list[int]:
        """Return which levels there is room for, in their order."""
        room = max(1, self.height() // self._line())
        if len(self._levels) <= room:
            return list(range(len(self._levels)))
        return sorted(np.argsort(-np.nan_to_num(self._values), kind="stable")[: room - 1].tolist())

    def _line(self) -> int:
        return self.fontMetrics().height() + 6

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """Return room for some bars."""
        return QSize(self.fontMetrics().horizontalAdvance("m") * 16, 2 * self._line())

    def paintEvent(self, event: QPaintEvent | None) -> None:  # noqa: N802
        """Draw the bars with their names at the left and their values behind them."""
        painter = QPainter(self)
        theme, metrics, line = current(), self.fontMetrics(), self._line()
        shown = self.shown()
        if shown:
            names = min(max(metrics.horizontalAdvance(self._levels[each]) for each in shown) + 2, metrics.horizontalAdvance("m") * LETTERS)
            left, right = names + 2 * SPACE, metrics.horizontalAdvance("0.00000") + SPACE
            unit = max(1.0, self.width() - left - right) / self._reach()
            for place, each in enumerate(shown):
                self._draw(painter, QRectF(0, place * line, self.width(), line), each, left, unit)
            painter.setPen(QPen(theme.color("border"), 1))
            painter.drawLine(int(left), 0, int(left), line * len(shown))
            if len(shown) < len(self._levels):
                painter.setPen(theme.color("secondary"))
                more = f"and {counted(len(self._levels) - len(shown), 'smaller one')}"
                painter.drawText(QRectF(left + SPACE, line * len(shown), self.width(), line), Qt.AlignmentFlag.AlignVCenter, more)
        if self.hasFocus():
            painter.setPen(QPen(theme.color("accent"), 1))
            painter.drawRect(self.rect().adjusted(0, 0, -1, -1))
        painter.end()

    def _reach(self) -> float:
        most = float(np.nan_to_num(self._values).max()) if len(self._values) else 0.0
        if self._beside is not None and len(self._beside):
            most = max(most, float(np.nan_to_num(self._beside).max()))
        return max(most, 1e-12)

    def _draw(self, painter: QPainter, place: QRectF, each: int, left: float, unit: float) -> None:
        theme, metrics = current(), self.fontMetrics()
        value = float(np.nan_to_num(self._values[each]))
        marked = each == self._marked and len(self._levels) > 1
        painter.setPen(theme.color("text" if marked or len(self._levels) == 1 else "secondary"))
        name = metrics.elidedText(self._levels[each], Qt.TextElideMode.ElideMiddle, int(left - 2 * SPACE))
        painter.drawText(QRectF(0, place.top(), left - 2 * SPACE, place.height()), Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, name)
        colour = series_color(1)
        end = left + value * unit
        tall = place.height() - 6 if self._beside is None else (place.height() - 6) * 0.6
        painter.fillRect(QRectF(left, place.top() + 3, max(1.0, value * unit), tall), colour)
        if self._beside is not None:
            other = float(np.nan_to_num(self._beside[each])) * unit
            painter.fillRect(QRectF(left, place.top() + 4 + tall, max(1.0, other), place.height() - 8 - tall), theme.shade("text", "panel", 0.35))
            end = max(end, left + other)
        painter.setPen(theme.color("secondary"))
        painter.drawText(
            QRectF(end + SPACE, place.top(), self.width(), place.height()), Qt.AlignmentFlag.AlignVCenter, self.words(float(self._values[each]))
        )
        if marked:
            painter.setPen(QPen(theme.color("text"), 1))
            painter.drawLine(int(left), int(place.bottom()) - 1, int(left + value * unit), int(place.bottom()) - 1)

    # ------------------------------------------------------------------ mouse and keys

    def _at(self, y: float) -> int:
        shown = self.shown()
        place = int(y // self._line())
        return shown[place] if 0 <= place < len(shown) else -1

    def mouseMoveEvent(self, event: QMouseEvent | None) -> None:  # noqa: N802
        """Say what is under the cursor."""
        assert event is not None
        each = self._at(event.position().y())
        if each < 0:
            self.card.hide()
            return
        lines = [f"<b>{html.escape(self._levels[each])}</b>", f"{self.words(float(self._values[each]))} {self._unit}".strip()]
        if self._beside is not None:
            lines.append(f"expression {self.words(float(self._beside[each]))}")
        self.card.show_at(event.position().toPoint(), "<br>".join(lines))

    def leaveEvent(self, event: object) -> None:  # noqa: N802
        """Take the card away."""
        self.card.hide()

    def mousePressEvent(self, event: QMouseEvent | None) -> None:  # noqa: N802
        """Choose a level."""
        assert event is not None
        each = self._at(event.position().y())
        if each >= 0:
            self.chosen.emit(each)

    def keyPressEvent(self, event: QKeyEvent | None) -> None:  # noqa: N802
        """Go from level to level."""
        assert event is not None
        step = {Qt.Key.Key_Up: -1, Qt.Key.Key_Down: 1}.get(Qt.Key(event.key()), 0)
        if not step or not len(self._levels):
            super().keyPressEvent(event)
            return
        self.chosen.emit(min(max(0, self._marked + step), len(self._levels) - 1))
