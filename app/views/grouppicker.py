"""Choosing a group of cells: those that are selected, levels of a column, or all others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QPoint, QRect, QSignalBlocker, Qt, Signal
from qtpy.QtGui import QPainter, QPaintEvent
from qtpy.QtWidgets import (
    QComboBox,
    QFrame,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from cellweave.app.panels.parts import button, row, subheading, text
from cellweave.app.theme import icon
from cellweave.core.wording import counted

CHOSEN, REST = "\x00chosen", "\x00rest"  # not names that a column can have


@dataclass(frozen=True)
class Levels:
    """A column of levels: code of each cell (-1 is missing) and names."""

    codes: NDArray[np.int32]
    names: tuple[str, ...]


class LevelPicker(QPushButton):
    """A button that opens a list of levels with boxes.

    Attributes
    ----------
    changed
        Other levels are ticked.
    """

    changed = Signal()

    def __init__(self, name: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._name = name
        self.setAutoDefault(False)
        self.setProperty("field", "true")
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.popup = QFrame(self, Qt.WindowType.Popup)
        self.popup.setFrameShape(QFrame.Shape.StyledPanel)
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search levels")
        self.search.setAccessibleName("Search levels")
        self.search.textChanged.connect(self._filter)
        self.list = QListWidget()
        self.list.setAccessibleName(name)
        self.list.itemChanged.connect(self._ticked)
        self.list.itemActivated.connect(self._toggle)
        layout = QVBoxLayout(self.popup)
        layout.setContentsMargins(6, 6, 6, 6)
        layout.addWidget(self.search)
        layout.addWidget(self.list)
        self.clicked.connect(self.open)
        self._show()

    def set_levels(self, names: tuple[str, ...], counts: NDArray[np.intp], ticked: tuple[str, ...] = ()) -> None:
        """Offer other levels."""
        with QSignalBlocker(self.list):
            self.list.clear()
            for name, count in zip(names, counts, strict=True):
                item = QListWidgetItem(f"{name}   {count:,}")
                item.setData(Qt.ItemDataRole.UserRole, name)
                item.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsUserCheckable | Qt.ItemFlag.ItemIsSelectable)
                item.setCheckState(Qt.CheckState.Checked if name in ticked else Qt.CheckState.Unchecked)
                self.list.addItem(item)
        self.search.setVisible(len(names) > 12)
        self._show()

    def ticked(self) -> tuple[str, ...]:
        """Return the levels that are ticked."""
        items = (self.list.item(number) for number in range(self.list.count()))
        return tuple(item.data(Qt.ItemDataRole.UserRole) for item in items if item.checkState() == Qt.CheckState.Checked)

    def tick(self, names: tuple[str, ...]) -> None:
        """Tick these levels, and no others."""
        with QSignalBlocker(self.list):
            for number in range(self.list.count()):
                item = self.list.item(number)
                item.setCheckState(Qt.CheckState.Checked if item.data(Qt.ItemDataRole.UserRole) in names else Qt.CheckState.Unchecked)
        self._show()
        self.changed.emit()

    def open(self) -> None:
        """Show the list under the button."""
        width = max(self.width(), self.fontMetrics().horizontalAdvance("m") * 16)
        rows = min(12, max(3, self.list.count()))
        self.popup.resize(width, rows * (self.list.sizeHintForRow(0) + 1) + 24 + (self.search.sizeHint().height() + 6 if self.list.count() > 12 else 0))
        self.popup.move(self.mapToGlobal(QPoint(0, self.height() + 2)))
        self.popup.show()
        self.list.setFocus()
        if self.list.currentRow() < 0 and self.list.count():
            self.list.setCurrentRow(0)

    def _filter(self, wanted: str) -> None:
        for number in range(self.list.count()):
            item = self.list.item(number)
            item.setHidden(wanted.strip().lower() not in item.text().lower())

    def _toggle(self, item: QListWidgetItem) -> None:
        on = item.checkState() == Qt.CheckState.Checked
        item.setCheckState(Qt.CheckState.Unchecked if on else Qt.CheckState.Checked)

    def _ticked(self, _item: QListWidgetItem) -> None:
        self._show()
        self.changed.emit()

    def _show(self) -> None:
        names = ", ".join(self.ticked()) or "Choose levels"
        metrics = self.fontMetrics()
        self.setText(metrics.elidedText(names, Qt.TextElideMode.ElideRight, max(80, self.width() - 34)).replace("&", "&&"))
        self.setToolTip(names)
        self.setAccessibleName(f"{self._name}: {names}")

    def paintEvent(self, event: QPaintEvent | None) -> None:  # noqa: N802
        """Draw the button as the fields beside it, with an arrow."""
        super().paintEvent(event)
        painter = QPainter(self)
        side = 12
        icon("chevron-down", "secondary").paint(painter, QRect(self.width() - side - 5, (self.height() - side) // 2, side, side))
        painter.end()

    def resizeEvent(self, event: Any) -> None:  # noqa: N802
        """Show as many names as there is room for."""
        super().resizeEvent(event)
        self._show()


class GroupPicker(QWidget):
    """One group of cells.

    Parameters
    ----------
    title
        Of the group.
    selection
        Returns the rows that are selected now.
    rest
        Whether "all other cells" is offered.

    Attributes
    ----------
    changed
        Another group is meant.
    """

    changed = Signal()

    def __init__(self, title: str, selection: Callable[[], NDArray[np.int64]], *, rest: bool, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._title, self._selection, self._rest = title, selection, rest
        self._columns: dict[str, Levels] = {}
        self._rows = np.zeros(0, np.int64)
        self._chosen = np.zeros(0, np.int64)
        self.what = QComboBox()
        self.what.setAccessibleName(f"{title}: what it is")
        self.what.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.what.setMinimumContentsLength(8)
        self.what.currentIndexChanged.connect(self._what_changed)
        self.levels = LevelPicker(f"{title}: levels")
        self.levels.changed.connect(self._changed)
        self.use = button("Use the selected cells", "lasso", self.use_selected)
        self.size = text("", secondary=True, wrap=False)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        layout.addLayout(row(subheading(title), None, self.size))
        line = row(self.what)
        line.setStretchFactor(self.what, 2)
        line.addWidget(self.levels, 3)
        line.addWidget(self.use, 3)
        layout.addLayout(line)

    def set_cells(self, rows: NDArray[np.int64], columns: Mapping[str, Levels], prefer: str = "") -> None:
        """Set the cells there are, and their columns; what was chosen is kept where it is still there."""
        before, ticked = self.what.currentData(), self.levels.ticked()
        self._rows, self._columns = rows, dict(columns)
        self._chosen = np.intersect1d(self._chosen, rows)
        with QSignalBlocker(self.what):
            self.what.clear()
            self.what.addItem("Chosen cells", CHOSEN)
            if self._rest:
                self.what.addItem("All other cells", REST)
            if columns:
                self.what.insertSeparator(self.what.count())
            for name in columns:
                self.what.addItem(name, name)
            first = REST if self._rest else prefer or CHOSEN
            place = self.what.findData(before if before in (CHOSEN, REST) or before in columns else first)
            self.what.setCurrentIndex(max(0, place))
        self._fill_levels(ticked)
        self._show()

    def forget(self) -> None:
        """Forget which cells were chosen: they are of another run."""
        self._chosen = np.zeros(0, np.int64)

    def _fill_levels(self, ticked: tuple[str, ...] = ()) -> None:
        column = self._columns.get(str(self.what.currentData()))
        if column is not None:
            counts = np.bincount(column.codes[column.codes >= 0], minlength=len(column.names))
            self.levels.set_levels(column.names, counts, tuple(name for name in ticked if name in column.names))

    def _what_changed(self, *_: object) -> None:
        self._fill_levels()
        if self.what.currentData() == CHOSEN and not len(self._chosen):
            self._chosen = np.intersect1d(self._selection(), self._rows)
        self._changed()

    def use_selected(self) -> None:
        """Take the cells that are selected now."""
        self._chosen = np.intersect1d(self._selection(), self._rows)
        with QSignalBlocker(self.what):
            self.what.setCurrentIndex(self.what.findData(CHOSEN))
        self._changed()

    def choose_levels(self, column: str, names: tuple[str, ...]) -> None:
        """Take levels of a column."""
        self.what.setCurrentIndex(self.what.findData(column))
        self.levels.tick(names)

    def choose_rest(self) -> None:
        """Take all cells that the other group does not have."""
        self.what.setCurrentIndex(self.what.findData(REST))

    # ------------------------------------------------------------------ what is meant

    @property
    def is_rest(self) -> bool:
        """Whether it is all cells that the other group does not have."""
        return bool(self.what.currentData() == REST)

    def rows(self, other: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of the study; ``other`` is what the rest leaves out."""
        what = self.what.currentData()
        if what == REST:
            return np.setdiff1d(self._rows, other)
        if what == CHOSEN or what is None:
            return self._chosen
        column = self._columns[str(what)]
        wanted = [number for number, name in enumerate(column.names) if name in self.levels.ticked()]
        return self._rows[np.isin(column.codes, wanted)]

    def name(self) -> str:
        """Return what the group is called."""
        what = self.what.currentData()
        if what == REST:
            return "Rest"
        if what == CHOSEN or what is None:
            return f"{self._title.lower()} ({counted(len(self._chosen), 'cell')})"
        return " + ".join(self.levels.ticked())

    def settings(self) -> dict[str, Any]:
        """Return what is meant as plain values, to be kept."""
        what = self.what.currentData()
        if what == REST:
            return {"rest": True}
        if what == CHOSEN or what is None:
            return {"rows": [int(each) for each in self._chosen]}
        return {"column": str(what), "levels": list(self.levels.ticked())}

    def restore(self, settings: Mapping[str, Any]) -> None:
        """Take up what was meant."""
        if settings.get("rest") and self._rest:
            self.choose_rest()
        elif "rows" in settings:
            self._chosen = np.intersect1d(np.asarray(settings["rows"], np.int64), self._rows)
            with QSignalBlocker(self.what):
                self.what.setCurrentIndex(self.what.findData(CHOSEN))
            self._changed()
        elif settings.get("column") in self._columns:
            self.choose_levels(str(settings["column"]), tuple(map(str, settings.get("levels", ()))))

    def why_not(self, rows: NDArray[np.int64]) -> str:
        """Return why it is no group, or an empty text."""
        if len(rows) >= 3:
            return ""
        what = self.what.currentData()
        if len(rows):
            return f"{self._title} has only {len(rows)} cell{'s' * (len(rows) > 1)}: choose at least 3."
        if what == REST:
            return f"{self._title} has no cells: the other group has them all."
        if what == CHOSEN or what is None:
            return f"{self._title} has no cells: draw around some on the embedding and press 'Use the selected cells', or choose levels of a column."
        return f"{self._title} has no cells: tick at least one level of '{what}'."

    def say_size(self, count: int) -> None:
        """Show how many cells it has."""
        self.size.setText(counted(count, "cell"))

    def _changed(self) -> None:
        self._show()
        self.changed.emit()

    def _show(self) -> None:
        column = self.what.currentData() in self._columns
        self.levels.setVisible(column)
        self.use.setVisible(self.what.currentData() == CHOSEN or self.what.currentData() is None)
