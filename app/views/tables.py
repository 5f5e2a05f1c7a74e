"""Tables of many rows: sorted and filtered over arrays, so that 60,000 genes stay quick."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QAbstractTableModel, QModelIndex, QPersistentModelIndex, QSignalBlocker, QSize, Qt, Signal
from qtpy.QtGui import QGuiApplication, QKeyEvent, QKeySequence, QResizeEvent
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QLineEdit, QTableView, QVBoxLayout, QWidget

from cellweave.app import theme
from cellweave.app.panels.parts import row, text
from cellweave.core.wording import counted

Index: TypeAlias = QModelIndex | QPersistentModelIndex
NUMBER_ROLE = Qt.ItemDataRole.UserRole


@dataclass(frozen=True)
class TableColumn:
    """A column of a table.

    Attributes
    ----------
    name
        Key of its values.
    title
        In the header.
    help
        Tooltip of the header: what the number says.
    kind
        ``"text"``, ``"number"``, ``"share"`` (0 to 1), ``"p"`` (small numbers, in powers of ten), ``"count"`` or ``"flag"``.
    rank
        In a table that fits its width, columns of the highest rank make room first; those of rank 0 always stay.
    """

    name: str
    title: str
    help: str = ""
    kind: Literal["text", "number", "share", "p", "count", "flag"] = "text"
    rank: int = 0

    def words(self, value: Any) -> str:
        """Return a value as it is shown; empty where there is none."""
        if self.kind == "text":
            return str(value)
        if self.kind == "flag":
            return "yes" if value else "no"
        number = float(value)
        if np.isnan(number):
            return ""
        if self.kind == "count":
            return f"{number:,.0f}"
        if self.kind == "share":
            return f"{number:.3f}".replace("-", "\N{MINUS SIGN}")
        if self.kind == "p" and number != 0:
            return f"{number:.3g}" if number >= 1e-3 else f"{number:.1e}"
        whole = 1e4 <= abs(number) < 1e9  # four figures of these would be a power of ten
        return "0" if number == 0 else (f"{number:,.0f}" if whole else f"{number:,.4g}").replace("-", "\N{MINUS SIGN}")


class ArrayTable(QAbstractTableModel):
    """Columns of equal length, shown in an order and without the rows that a filter leaves out.

    Attributes
    ----------
    columns
        What is shown.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.columns: tuple[TableColumn, ...] = ()
        self._values: dict[str, NDArray[Any]] = {}
        self._order: NDArray[np.intp] = np.zeros(0, np.intp)
        self._sorted: NDArray[np.intp] = np.zeros(0, np.intp)
        self._kept: NDArray[np.bool_] | None = None
        self.sorted_by = (-1, Qt.SortOrder.AscendingOrder)

    def set_table(self, columns: Sequence[TableColumn], values: Mapping[str, NDArray[Any]]) -> None:
        """Show other columns; ``values`` are arrays of one length by the columns' names."""
        self.beginResetModel()
        self.columns = tuple(columns)
        self._values = {column.name: np.asarray(values[column.name]) for column in columns}
        length = len(next(iter(self._values.values()), ()))
        self._sorted, self._kept = np.arange(length), None
        self._order = self._sorted
        self.sorted_by = (-1, Qt.SortOrder.AscendingOrder)
        self.endResetModel()

    def values(self, name: str) -> NDArray[Any]:
        """Return a column in its own order."""
        return self._values[name]

    @property
    def size(self) -> int:
        """All rows, also those that are left out."""
        return len(self._sorted)

    def keep(self, kept: NDArray[np.bool_] | None) -> None:
        """Leave rows out; None shows all."""
        self.beginResetModel()
        self._kept = kept
        self._order = self._sorted if kept is None else self._sorted[kept[self._sorted]]
        self.endResetModel()

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        """Sort by a column; missing numbers come last either way."""
        if not 0 <= column < len(self.columns):
            return
        values = self._values[self.columns[column].name]
        down = order == Qt.SortOrder.DescendingOrder
        if self.columns[column].kind == "text":
            found = np.argsort(np.char.lower(values.astype(str)), kind="stable")
            found = found[::-1] if down else found
        else:
            numbers = values.astype(np.float64)
            found = np.argsort(-numbers if down else numbers, kind="stable")
        self.layoutAboutToBeChanged.emit()
        before = self.persistentIndexList()
        rows = [self.source_row(index.row()) for index in before]
        self._sorted, self.sorted_by = found, (column, order)
        self._order = found if self._kept is None else found[self._kept[found]]
        place = {int(source): number for number, source in enumerate(self._order)} if before else {}
        after = [self.index(place[source], old.column()) for source, old in zip(rows, before, strict=True)]
        self.changePersistentIndexList(before, after)
        self.layoutChanged.emit()

    def source_row(self, shown: int) -> int:
        """Return which row of the arrays a shown row is."""
        return int(self._order[shown])

    def shown_row(self, source: int) -> int:
        """Return where a row of the arrays is shown, or -1."""
        found = np.flatnonzero(self._order == source)
        return int(found[0]) if len(found) else -1

    def order(self) -> NDArray[np.intp]:
        """Return all rows of the arrays in the order that was chosen."""
        return self._sorted

    def shown_order(self) -> NDArray[np.intp]:
        """Return the rows of the arrays as they are shown."""
        return self._order

    # ------------------------------------------------------------------ as Qt asks

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: N802, B008
        """Return how many rows are shown."""
        return 0 if parent.isValid() else len(self._order)

    def columnCount(self, parent: Index = QModelIndex()) -> int:  # noqa: N802, B008
        """Return the number of columns."""
        return 0 if parent.isValid() else len(self.columns)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return a value as text, its side, or the number itself."""
        column = self.columns[index.column()]
        if role == Qt.ItemDataRole.TextAlignmentRole:
            side = Qt.AlignmentFlag.AlignLeft if column.kind in {"text", "flag"} else Qt.AlignmentFlag.AlignRight
            return side | Qt.AlignmentFlag.AlignVCenter
        if role == Qt.ItemDataRole.FontRole:
            return None if column.kind in {"text", "flag"} else theme.tabular_font()
        if role == Qt.ItemDataRole.ToolTipRole and column.kind == "text" and any(each.rank for each in self.columns):
            return self._whole_row(index.row())
        if role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.ToolTipRole):
            return column.words(self._values[column.name][self._order[index.row()]]) or None
        if role == Qt.ItemDataRole.AccessibleTextRole:
            return f"{column.title}: {column.words(self._values[column.name][self._order[index.row()]]) or 'none'}"
        return self._values[column.name][self._order[index.row()]] if role == NUMBER_ROLE else None

    def _whole_row(self, shown: int) -> str:
        """Return all values of a row, also those of columns that had to make room."""
        source = self._order[shown]
        said = [(column, column.words(self._values[column.name][source])) for column in self.columns]
        return "\n".join(words if column.kind == "text" else f"{column.title}: {words}" for column, words in said if words)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:  # noqa: N802
        """Return the title of a column, and what it says as its tooltip."""
        if orientation != Qt.Orientation.Horizontal or not 0 <= section < len(self.columns):
            return None
        column = self.columns[section]
        if role == Qt.ItemDataRole.DisplayRole:
            return column.title
        if role == Qt.ItemDataRole.ToolTipRole:
            return column.help or column.title
        if role == Qt.ItemDataRole.TextAlignmentRole:
            side = Qt.AlignmentFlag.AlignLeft if column.kind in {"text", "flag"} else Qt.AlignmentFlag.AlignRight
            return side | Qt.AlignmentFlag.AlignVCenter
        return None


class TableWidgetView(QTableView):
    """A table view that copies its selected rows and moves by rows."""

    resized = Signal()

    def resizeEvent(self, event: QResizeEvent | None) -> None:  # noqa: N802
        """Say so."""
        super().resizeEvent(event)
        self.resized.emit()

    def keyPressEvent(self, event: QKeyEvent | None) -> None:  # noqa: N802
        """Copy the selected rows as a table."""
        if event is not None and event.matches(QKeySequence.StandardKey.Copy):
            model = self.model()
            rows = sorted({index.row() for index in self.selectionModel().selectedIndexes()})
            lines = ["\t".join(str(model.index(each, column).data() or "") for column in range(model.columnCount())) for each in rows]
            QGuiApplication.clipboard().setText("\n".join(lines))
            return
        super().keyPressEvent(event)


class DataTable(QWidget):
    """A table with a field that searches it.

    Parameters
    ----------
    name
        For screen readers.
    search
        Words in the empty field; an empty text leaves the field out.
    fit
        Never scroll sideways: columns make room by their rank, and the text column takes what is left.

    Attributes
    ----------
    chosen
        Another row is the current one: its number in the arrays, or -1.
    opened
        A row was double clicked, or Enter pressed on it.
    filtered
        Other rows are shown.
    """

    chosen = Signal(int)
    opened = Signal(int)
    filtered = Signal()

    def __init__(self, name: str, search: str = "", parent: QWidget | None = None, *, fit: bool = False) -> None:
        super().__init__(parent)
        self.table, self._fit = ArrayTable(self), fit
        self._wanted: list[int] = []
        self._text_column = ""
        self._extra: NDArray[np.bool_] | None = None
        self._anew = False  # other columns are about to be shown
        self.view = TableWidgetView()
        if fit:
            self.view.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
            self.view.setTextElideMode(Qt.TextElideMode.ElideMiddle)
            self.view.resized.connect(self._make_room)
        self.view.setModel(self.table)
        self.view.setAccessibleName(name)
        self.view.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.view.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.view.setShowGrid(False)
        self.view.setSortingEnabled(True)
        self.view.setTabKeyNavigation(False)
        self.view.setWordWrap(False)
        self.view.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.view.verticalHeader().hide()
        self.view.verticalHeader().setDefaultSectionSize(self.fontMetrics().height() + 6)
        header = self.view.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.Interactive)
        header.setHighlightSections(False)
        self.search = QLineEdit()
        self.search.setPlaceholderText(search)
        self.search.setAccessibleName(search)
        self.search.setClearButtonEnabled(True)
        self.search.textChanged.connect(self._filter)
        self.search.returnPressed.connect(self._first)
        self.count = text("", secondary=True, wrap=False)
        if not search:
            self.search.hide()
            self.count.hide()
        self.bar = row(self.search, self.count)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        layout.addLayout(self.bar)
        layout.addWidget(self.view, 1)
        self.view.selectionModel().currentRowChanged.connect(lambda index, _: self.chosen.emit(self.table.source_row(index.row()) if index.isValid() else -1))
        self.view.activated.connect(lambda index: self.opened.emit(self.table.source_row(index.row())))

    def set_table(
        self, columns: Sequence[TableColumn], values: Mapping[str, NDArray[Any]], *, text_column: str = "", sort_by: str = "", down: bool = True
    ) -> None:
        """Show other columns.

        Parameters
        ----------
        columns, values
            As in :meth:`ArrayTable.set_table`.
        text_column
            Which column the field searches.
        sort_by, down
            Sorted so at first; empty keeps the order of the arrays.
        """
        self._text_column, self._extra = text_column, None
        self._anew = True
        self.search.clear()  # its signals go out: the button that clears the field hides by them
        self._anew = False
        self.table.set_table(columns, values)
        header = self.view.horizontalHeader()
        place = next((number for number, column in enumerate(columns) if column.name == sort_by), -1)
        order = Qt.SortOrder.DescendingOrder if down else Qt.SortOrder.AscendingOrder
        with QSignalBlocker(header):
            header.setSortIndicator(place, order)
        self.table.sort(place, order)
        self._widths()
        self._say_count()

    def _widths(self) -> None:
        """Give each column the width of its title and its first rows."""
        metrics, header = self.view.fontMetrics(), self.view.horizontalHeader()
        self._wanted = []
        for number, column in enumerate(self.table.columns):
            some = self.table.values(column.name)[:200]
            wide = max((metrics.horizontalAdvance(column.words(value)) for value in some), default=0)
            bold = round(1.1 * metrics.horizontalAdvance(column.title)) + (14 if self._fit else 34)  # the mark of the order needs its room
            self._wanted.append(min(max(wide + (14 if self._fit else 18), bold), metrics.horizontalAdvance("m") * 24))
            header.resizeSection(number, self._wanted[-1])
        if self._fit:
            self._make_room()

    def _make_room(self) -> None:
        """Hide columns until the rest fits, and give the text column what is left."""
        columns, room = self.table.columns, self.view.viewport().width()
        if len(self._wanted) != len(columns):  # the columns are being changed
            return
        shown = list(range(len(columns)))
        for number in sorted(shown, key=lambda each: -columns[each].rank):
            if columns[number].rank and sum(self._wanted[each] for each in shown) > room:
                shown.remove(number)
        for number, column in enumerate(columns):
            self.view.setColumnHidden(number, number not in shown)
            if column.name == self._text_column:
                others = sum(self._wanted[each] for each in shown if each != number)
                self.view.setColumnWidth(number, max(room - others, self.fontMetrics().horizontalAdvance("m") * 5))

    def set_extra_filter(self, kept: NDArray[np.bool_] | None) -> None:
        """Leave out further rows, ``(n,)``, whatever is searched."""
        self._extra = kept
        self._filter()

    def _filter(self, *_: object) -> None:
        if self._anew:
            return
        current = self.current()
        wanted = self.search.text().strip().lower()
        kept = self._extra
        if wanted and self._text_column:
            words = [word for word in wanted.replace(",", " ").split() if word]
            names = np.char.lower(self.table.values(self._text_column).astype(str))
            found = np.logical_or.reduce([np.char.find(names, word) >= 0 for word in words]) if len(words) else np.ones(len(names), bool)
            kept = found if kept is None else kept & found
        with QSignalBlocker(self.view.selectionModel()):
            self.table.keep(kept)
        self.choose(current, scroll=False)
        self._say_count()
        self.filtered.emit()

    def _say_count(self) -> None:
        shown, every = self.table.rowCount(), self.table.size
        self.count.setText(f"{every:,}" if shown == every else f"{shown:,} of {every:,}")
        self.count.setAccessibleName(f"{shown:,} of {counted(every, 'row')}")

    def _first(self) -> None:
        if self.table.rowCount():
            self.view.selectRow(0)
            self.view.setFocus()

    def current(self) -> int:
        """Return the current row of the arrays, or -1."""
        index = self.view.currentIndex()
        return self.table.source_row(index.row()) if index.isValid() else -1

    def choose(self, source: int, *, scroll: bool = True) -> None:
        """Make a row of the arrays the current one, where it is shown."""
        shown = self.table.shown_row(source) if source >= 0 else -1
        if shown < 0:
            self.view.clearSelection()
            return
        if source != self.current():
            self.view.selectRow(shown)
        if scroll:
            self.view.scrollTo(self.table.index(shown, 0))

    def as_csv(self, *, shown_only: bool = False) -> str:
        """Return the table as CSV: every row in the order shown, or only what the search leaves."""
        order = self.table.shown_order() if shown_only else self.table.order()
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([column.name for column in self.table.columns])
        columns = [self.table.values(column.name)[order].tolist() for column in self.table.columns]
        writer.writerows(zip(*columns, strict=True))
        return out.getvalue()

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """Return room for a few rows."""
        return QSize(self.fontMetrics().horizontalAdvance("m") * 12, self.fontMetrics().height() * 6)
