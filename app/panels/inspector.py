"""What is selected: how many cells, and what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from qtpy.QtCore import QRectF, QSignalBlocker, QSize, Qt, Signal
from qtpy.QtGui import QPainter, QPaintEvent
from qtpy.QtWidgets import QComboBox, QFrame, QScrollArea, QSizePolicy, QVBoxLayout, QWidget

from cellweave.app import theme
from cellweave.app.panels.parts import button, clear, heading, text
from cellweave.core.wording import counted

SHOWN = 12


class ShareBar(QWidget):
    """One level of a column: its name, how many of the selected cells have it, and the share as a bar."""

    def __init__(self, name: str, count: int, total: int, in_all: float) -> None:
        super().__init__()
        self._name, self._count, self._share, self._in_all = name, count, count / max(1, total), in_all
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        words = f"{name}: {counted(count, 'cell')}, {100 * self._share:.0f} % of the selection, {100 * in_all:.0f} % of all cells"
        self.setAccessibleName(words)
        self.setToolTip(words)

    def sizeHint(self) -> QSize:  # noqa: N802
        """Return room for a line and a bar."""
        return QSize(80, self.fontMetrics().height() + 9)

    def paintEvent(self, event: QPaintEvent | None) -> None:  # noqa: N802
        """Draw the level."""
        now, metrics = theme.current(), self.fontMetrics()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        line, value = metrics.height(), f"{self._count:,}"
        room = self.width() - metrics.horizontalAdvance(value) - 8
        painter.setPen(now.color("text"))
        painter.drawText(QRectF(0, 0, room, line), Qt.AlignmentFlag.AlignVCenter, metrics.elidedText(self._name, Qt.TextElideMode.ElideRight, room))
        painter.setFont(theme.tabular_font())
        painter.setPen(now.color("secondary"))
        painter.drawText(QRectF(0, 0, self.width(), line), Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignRight, value)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(now.color("grid"))
        painter.drawRoundedRect(QRectF(0, line + 2, self.width(), 4), 2, 2)
        painter.setBrush(now.color("accent"))
        painter.drawRoundedRect(QRectF(0, line + 2, max(2.0, self.width() * self._share), 4), 2, 2)
        painter.setBrush(now.color("text"))
        painter.drawRect(QRectF(min(self.width() - 1.5, self.width() * self._in_all), line + 1, 1.5, 6))
        painter.end()


class InspectorPanel(QScrollArea):
    """Composition of the selected cells by any categorical column, beside that of all cells."""

    clearClicked = Signal()  # noqa: N815
    copyClicked = Signal()  # noqa: N815

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._columns: dict[str, tuple[np.ndarray, Sequence[str]]] = {}
        self._selected = np.zeros(0, dtype=np.int64)
        self._n_cells = 0
        page = QWidget()
        layout = QVBoxLayout(page)
        layout.setContentsMargins(12, 8, 12, 12)
        layout.setSpacing(8)
        self.title = heading("No cells selected")
        self.hint = text("Draw around cells on the embedding with the lasso, or click a level in its legend.", secondary=True)
        self.column = QComboBox()
        self.column.setAccessibleName("Composition by column")
        self.column.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.column.setMinimumContentsLength(8)
        self.column.currentTextChanged.connect(self._show)
        self._bars = QVBoxLayout()
        self._bars.setSpacing(4)
        self.copy = button("Copy their names", "copy", self.copyClicked.emit, link=True)
        self.none = button("Select none", "cancel", self.clearClicked.emit, link=True)
        for part in (self.title, self.hint, self.column):
            layout.addWidget(part)
        layout.addLayout(self._bars)
        for part in (self.copy, self.none):
            layout.addWidget(part, 0, Qt.AlignmentFlag.AlignLeft)
        layout.addStretch(1)
        self.setWidget(page)
        self._show()

    def set_columns(self, columns: Mapping[str, tuple[np.ndarray, Sequence[str]]], n_cells: int, prefer: Sequence[str] = ()) -> None:
        """Set what the cells are.

        Parameters
        ----------
        columns
            Codes ``(n_cells,)`` (-1 is missing) and level names of each categorical column.
        n_cells
            Number of cells.
        prefer
            Columns to show first, if they are there.
        """
        self._columns, self._n_cells = dict(columns), n_cells
        self._selected = np.zeros(0, dtype=np.int64)
        before = self.column.currentText()
        with QSignalBlocker(self.column):
            self.column.clear()
            self.column.addItems(list(columns))
            self.column.setCurrentText(next((name for name in (before, *prefer) if name in columns), ""))
        self._show()

    def set_selection(self, rows: np.ndarray) -> None:
        """Set which cells are selected, as positions."""
        self._selected = np.asarray(rows, dtype=np.int64)
        self._show()

    def selected(self) -> np.ndarray:
        """Return the selected cells, as positions."""
        return self._selected

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """Return a width at which nothing is cut."""
        inside = self.widget().minimumSizeHint().width() + self.verticalScrollBar().sizeHint().width()
        return QSize(max(self.fontMetrics().horizontalAdvance("m") * 16, inside), super().minimumSizeHint().height())

    def _show(self, *_: object) -> None:
        clear(self._bars)
        count = len(self._selected)
        self.title.setText(f"{counted(count, 'cell')} selected" if count else "No cells selected")
        self.hint.setVisible(not count)
        for part in (self.column, self.copy, self.none):
            part.setVisible(bool(count))
        codes_levels = self._columns.get(self.column.currentText())
        if not count or codes_levels is None:
            return
        codes, levels = codes_levels
        n_levels = len(levels)
        here = np.bincount(codes[self._selected] + 1, minlength=n_levels + 1)
        overall = np.bincount(codes + 1, minlength=n_levels + 1) / max(1, self._n_cells)
        order = [level for level in np.argsort(-here) if here[level]]
        for level in order[:SHOWN]:
            name = "missing" if level == 0 else str(levels[level - 1])
            self._bars.addWidget(ShareBar(name, int(here[level]), count, float(overall[level])))
        if len(order) > SHOWN:
            rest = int(sum(here[level] for level in order[SHOWN:]))
            self._bars.addWidget(text(f"and {counted(rest, 'cell')} in {counted(len(order) - SHOWN, 'more level')}", secondary=True))
