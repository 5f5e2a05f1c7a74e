"""The list of runs, and what can be done with one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from qtpy.QtCore import QAbstractListModel, QModelIndex, QPersistentModelIndex, QPointF, QRect, QSize, Qt, Signal
from qtpy.QtGui import QFont, QFontMetrics, QPainter, QPen, QPolygonF
from qtpy.QtWidgets import QListView, QStyle, QStyledItemDelegate, QStyleOptionViewItem, QVBoxLayout, QWidget

from cellweave.app import theme
from cellweave.app.panels.parts import row, text, tool
from cellweave.app.state.runs import RunSummary

MARK_TOKENS = {"dot": "accent", "pause": "accent", "check": "good", "fail": "bad", "warn": "warn"}  # others are quiet
Index: TypeAlias = QModelIndex | QPersistentModelIndex


class RunsModel(QAbstractListModel):
    """Summaries as a Qt model; rows of runs that stay are kept, so that the selection stays."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.runs: list[RunSummary] = []

    def set_runs(self, runs: Sequence[RunSummary]) -> None:
        """Show other summaries."""
        if [run.path for run in runs] == [run.path for run in self.runs]:
            self.runs = list(runs)
            if runs:
                self.dataChanged.emit(self.index(0), self.index(len(runs) - 1))
            return
        self.beginResetModel()
        self.runs = list(runs)
        self.endResetModel()

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: N802, B008
        """Return the number of runs."""
        return 0 if parent.isValid() else len(self.runs)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return a run, its name, or its words for tooltips and screen readers."""
        run = self.runs[index.row()]
        if role == Qt.ItemDataRole.UserRole:
            return run
        if role == Qt.ItemDataRole.DisplayRole:
            return run.label
        if role in (Qt.ItemDataRole.ToolTipRole, Qt.ItemDataRole.AccessibleTextRole):
            parts = [run.label, run.model, run.words, run.status.text, str(run.path) if role == Qt.ItemDataRole.ToolTipRole else ""]
            return "\n".join(part for part in parts if part)
        return None


class RunDelegate(QStyledItemDelegate):
    """Draws a run in two lines: mark, name and value; sparkline and status."""

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:  # noqa: N802
        """Return room for two lines."""
        return QSize(option.fontMetrics.horizontalAdvance("m") * 10, 2 * option.fontMetrics.height() + 14)

    def paint(self, painter: QPainter | None, option: QStyleOptionViewItem, index: Index) -> None:
        """Draw one run."""
        assert painter is not None
        run: RunSummary = index.data(Qt.ItemDataRole.UserRole)
        now, metrics = theme.current(), option.fontMetrics
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        area, line = option.rect, metrics.height()
        selected = bool(option.state & QStyle.StateFlag.State_Selected)
        if selected:
            painter.fillRect(area, now.shade("accent", "panel", 0.14))
        elif option.state & QStyle.StateFlag.State_MouseOver:
            painter.fillRect(area, now.shade("text", "panel", 0.05))
        if selected and option.state & QStyle.StateFlag.State_HasFocus:
            painter.setPen(QPen(now.color("accent"), 1.2))
            painter.drawRect(area.adjusted(1, 1, -2, -2))
        left, right, top = area.left() + 10, area.right() - 10, area.top() + 6
        side = line
        theme.icon(run.mark, MARK_TOKENS.get(run.mark, "secondary")).paint(painter, QRect(left, top, side, side))
        figures, bold = theme.tabular_font(), QFont(option.font)
        bold.setWeight(QFont.Weight.DemiBold)
        value_width = QFontMetrics(figures).horizontalAdvance(run.final)
        painter.setFont(bold)
        painter.setPen(now.color("text"))
        name_room = right - left - side - 6 - (value_width + 8 if run.final else 0)
        name = QFontMetrics(bold).elidedText(run.label, Qt.TextElideMode.ElideMiddle, name_room)
        painter.drawText(QRect(left + side + 6, top, name_room, line), Qt.AlignmentFlag.AlignVCenter, name)
        painter.setFont(figures)
        painter.setPen(now.color("secondary"))
        painter.drawText(QRect(right - value_width - 4, top, value_width + 4, line), Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignRight, run.final)
        painter.setFont(option.font)
        below = QRect(left + side + 6, top + line + 2, right - left - side - 6, line)
        words = f"{run.words} · {run.model}" if run.model else run.words
        if len(run.spark) > 1:
            width = min(round(below.width() * 0.32), 80)
            self._spark(painter, QRect(below.right() - width, below.top() + 2, width, line - 4), run.spark)
            below.setRight(below.right() - width - 8)
        if metrics.horizontalAdvance(words) > below.width():
            words = run.words  # the model whole or not at all; it is in the tooltip
        painter.setPen(now.color("secondary"))
        painter.drawText(below, Qt.AlignmentFlag.AlignVCenter, metrics.elidedText(words, Qt.TextElideMode.ElideRight, below.width()))
        painter.restore()

    def _spark(self, painter: QPainter, area: QRect, values: Sequence[float]) -> None:
        low, high = min(values), max(values)
        span = (high - low) or 1.0
        step = area.width() / (len(values) - 1)
        points = [QPointF(area.left() + i * step, area.bottom() - (value - low) / span * area.height()) for i, value in enumerate(values)]
        painter.setPen(QPen(theme.current().color("accent"), 1.3))
        painter.drawPolyline(QPolygonF(points))


class RunsPanel(QWidget):
    """The list, with buttons for the selected run."""

    opened = Signal(object)  # Path, on double click or Enter
    selected = Signal(object)  # Path or None
    menuAsked = Signal(object)  # noqa: N815  (global position)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.model = RunsModel(self)
        self.view = QListView()
        self.view.setModel(self.model)
        self.view.setItemDelegate(RunDelegate(self.view))
        self.view.setMouseTracking(True)
        self.view.setSelectionMode(QListView.SelectionMode.ExtendedSelection)
        self.view.setAccessibleName("Runs")
        self.view.setFrameShape(QListView.Shape.NoFrame)
        self.view.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.view.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        self.view.customContextMenuRequested.connect(lambda point: self.menuAsked.emit(self.view.viewport().mapToGlobal(point)))
        self.view.activated.connect(lambda index: self.opened.emit(index.data(Qt.ItemDataRole.UserRole).path))
        self.empty = text("Runs appear here: each training leaves one, with its settings, losses and results.", secondary=True)
        self.empty.setMargin(12)
        self.empty.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.open = tool("open", "Open the run (Enter)", self._open_current)
        self.more = tool("more", "What can be done with the run", self._ask_menu)
        self._tools = QWidget()
        tools = QVBoxLayout(self._tools)
        tools.setContentsMargins(8, 2, 8, 4)
        self._line = row(self.open)
        tools.addLayout(self._line)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self.empty, 1)
        layout.addWidget(self.view, 1)
        layout.addWidget(self._tools)
        self.view.selectionModel().currentChanged.connect(lambda *_: self.selected.emit(self.current()))
        theme.notifier().changed.connect(self.view.viewport().update)
        self.set_runs(())

    def add_tools(self, *buttons: QWidget) -> None:
        """Put buttons under the list, before the menu of all that can be done."""
        for item in buttons:
            self._line.addWidget(item)
        self._line.addStretch(1)
        self._line.addWidget(self.more)

    def set_runs(self, runs: Sequence[RunSummary]) -> None:
        """Show other summaries; the current run stays current."""
        before = self.current()
        self.model.set_runs(runs)
        self.view.setVisible(bool(runs))
        self._tools.setVisible(bool(runs))
        self.empty.setVisible(not runs)
        if self.current() != before:
            self.set_current(before)

    def current(self) -> Path | None:
        """Return the folder of the current run."""
        index = self.view.currentIndex()
        return index.data(Qt.ItemDataRole.UserRole).path if index.isValid() else None

    def selected_runs(self) -> list[Path]:
        """Return the folders of the selected runs, from top to bottom."""
        rows = sorted(index.row() for index in self.view.selectionModel().selectedIndexes())
        return [self.model.runs[row].path for row in rows if row < len(self.model.runs)]

    def set_current(self, path: Path | None) -> None:
        """Make a run the current one."""
        for number, run in enumerate(self.model.runs):
            if run.path == path:
                self.view.setCurrentIndex(self.model.index(number))
                return
        self.view.setCurrentIndex(QModelIndex())
        self.selected.emit(None)

    def _ask_menu(self) -> None:
        self.menuAsked.emit(self.more.mapToGlobal(self.more.rect().bottomLeft()))

    def _open_current(self) -> None:
        path = self.current()
        if path is not None:
            self.opened.emit(path)
