"""Parts of the Neighbourhood view: numbers beside the data without integration, and findings with their colours."""

from __future__ import annotations

from qtpy.QtCore import QModelIndex, QPersistentModelIndex, QRectF, QSize, Qt
from qtpy.QtGui import QColor, QIcon, QPainter, QPixmap
from qtpy.QtWidgets import (
    QComboBox,
    QGridLayout,
    QHeaderView,
    QLabel,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QWidget,
)

from cellweave.app.panels.parts import heading, row, text
from cellweave.app.state.diagnosed import LEVELS
from cellweave.app.views.scatterpanel import ScatterPanel
from cellweave.app.views.tables import DataTable


class ScoreCard(QWidget):
    """One number beside what it is without integration."""

    def __init__(self, title: str, help_text: str) -> None:
        super().__init__()
        self.setToolTip(help_text)
        self.value = heading("")
        self.value.setAccessibleName(title)
        self.before = text("", secondary=True, wrap=False)
        layout = QGridLayout(self)
        layout.setContentsMargins(0, 0, 16, 0)
        layout.setHorizontalSpacing(8)
        layout.setVerticalSpacing(0)
        layout.addWidget(text(title, secondary=True, wrap=False), 0, 0, 1, 2)
        layout.addWidget(self.value, 1, 0)
        layout.addWidget(self.before, 1, 1, Qt.AlignmentFlag.AlignBottom)

    def show_values(self, value: float | None, before: float | None) -> None:
        """Show a number, and what it is without integration."""
        self.value.setText("–" if value is None else f"{value:.2f}")
        self.before.setText("" if before is None else f"{before:.2f} without integration")


class LeafPanel(ScatterPanel):
    """The embedding; where it is coloured by findings, the table beside it is the legend."""

    def _refresh_legend(self) -> None:
        super()._refresh_legend()
        if self.column_name() in LEVELS.values():
            self.legend.hide()

    def legend_hint(self, *, beside: bool) -> int:
        """Return no room where the table is the legend."""
        return 0 if self.column_name() in LEVELS.values() else super().legend_hint(beside=beside)

    def least_legend(self) -> int:
        """Return no room where the table is the legend."""
        return 0 if self.column_name() in LEVELS.values() else super().least_legend()


class Dots(QStyledItemDelegate):
    """Paints the colour of a finding before its name."""

    def __init__(self, table: DataTable) -> None:
        super().__init__(table.view)
        self._table = table
        self.colours: list[str] = []

    def initStyleOption(self, option: QStyleOptionViewItem | None, index: QModelIndex | QPersistentModelIndex) -> None:  # noqa: N802
        """Add a dot of the finding's colour in front of its name."""
        super().initStyleOption(option, index)
        source = self._table.table.source_row(index.row())
        if option is None or index.column() or source >= len(self.colours):
            return
        side = option.fontMetrics.height()
        ratio = self._table.devicePixelRatioF()
        dot = QPixmap(round(side * ratio), round(side * ratio))
        dot.setDevicePixelRatio(ratio)
        dot.fill(Qt.GlobalColor.transparent)
        painter = QPainter(dot)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(self.colours[source]))
        painter.drawEllipse(QRectF(side * 0.15, side * 0.15, side * 0.7, side * 0.7))
        painter.end()
        option.icon = QIcon(dot)
        option.decorationSize = QSize(side, side)
        option.features |= QStyleOptionViewItem.ViewItemFeature.HasDecoration


def fit_columns(table: DataTable) -> None:
    """Give the first column what the numbers leave of the width, so that none of them is out of sight."""
    header = table.view.horizontalHeader()
    header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)


def chooser(name: str) -> QComboBox:
    """Return a list to choose from, as wide as what is chosen."""
    box = QComboBox()
    box.setAccessibleName(name)
    box.setToolTip(name)
    box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)
    return box


def labelled(name: str, box: QComboBox) -> QWidget:
    """Return a field with its name before it."""
    holder = QWidget()
    label: QLabel = text(name, wrap=False, secondary=True)
    label.setBuddy(box)
    holder.setLayout(row(label, box, spacing=4))
    return holder

