"""A table of counts for two columns, shaded, that warns at a glance of confounding."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QBrush, QColor, QResizeEvent
from qtpy.QtWidgets import QSizePolicy, QTableWidget, QTableWidgetItem, QWidget

from cellweave.app import theme
from cellweave.core.wording import counted

MOST = 40
MOST_IN_SIGHT = 12


class CrossTable(QTableWidget):
    """Levels of one column in rows, of another in columns."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAccessibleName("Cross table of two columns")
        self.setEditTriggers(QTableWidget.EditTrigger.NoEditTriggers)
        self.setFont(theme.tabular_font())
        self._table: Any = None
        self._bar_counted = False
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        theme.notifier().changed.connect(self._again)

    def clear_table(self) -> None:
        """Show nothing."""
        self._table = None
        self.setRowCount(0)
        self.setColumnCount(0)
        self.updateGeometry()

    def _again(self, *_: object) -> None:
        if self._table is not None:
            self.show_counts(self._table)

    def show_counts(self, table: Any) -> None:
        """Show a table of counts (``pandas.DataFrame``)."""
        self._table = table
        shown = table.iloc[:MOST, :MOST]
        self.setRowCount(shown.shape[0])
        self.setColumnCount(shown.shape[1])
        self.setVerticalHeaderLabels([str(name) for name in shown.index])
        self.setHorizontalHeaderLabels([str(name) for name in shown.columns])
        now = theme.current()
        rows = shown.to_numpy()
        for line, counts in enumerate(rows):
            total = max(1, int(counts.sum()))
            for place, count in enumerate(counts):
                item = QTableWidgetItem(f"{int(count):,}" if count else "·")
                item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
                item.setBackground(QBrush(QColor(now.mix("accent", "panel", 0.45 * float(count) / total))))
                item.setToolTip(f"{shown.index[line]} and {shown.columns[place]}: {counted(int(count), 'cell')}")
                self.setItem(line, place, item)
        self.resizeColumnsToContents()
        self.updateGeometry()

    def sizeHint(self) -> QSize:  # noqa: N802
        """Return the height of the table itself, up to twelve rows: it stands in something that scrolls."""
        lines = sum(self.rowHeight(line) for line in range(min(self.rowCount(), MOST_IN_SIGHT)))
        bar = self.horizontalScrollBar().sizeHint().height() if self._wider_than_room() else 0
        return QSize(200, self.horizontalHeader().sizeHint().height() + lines + bar + 2 * self.frameWidth())

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """Return the same height; the width may be less than the columns need."""
        return QSize(100, self.sizeHint().height())

    def _wider_than_room(self) -> bool:
        return self.verticalHeader().sizeHint().width() + self.horizontalHeader().length() + 2 * self.frameWidth() > self.width()

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        """Ask for another height where the horizontal scroll bar comes or goes."""
        super().resizeEvent(event)
        if self._wider_than_room() != self._bar_counted:
            self._bar_counted = not self._bar_counted
            self.updateGeometry()
