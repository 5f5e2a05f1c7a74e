"""The legend of the levels of a column, with their counts."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QModelIndex, QRect, QRectF, QSize, Qt, Signal
from qtpy.QtGui import (
    QBrush,
    QColor,
    QContextMenuEvent,
    QFontMetrics,
    QIcon,
    QKeyEvent,
    QPainter,
    QPen,
    QPixmap,
    QResizeEvent,
)
from qtpy.QtWidgets import (
    QAbstractItemView,
    QApplication,
    QColorDialog,
    QListView,
    QListWidget,
    QListWidgetItem,
    QMenu,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QWidget,
)

from cellweave.app.theme import SPACE, current, tabular_font
from cellweave.core.wording import agree, counted

MOST_LEVELS = 500
"""A legend lists at most this many levels, the largest first where there are more."""

LEAST_ROWS = 3
"""Up to this many rows of levels are shown without scrolling."""

MISSING = "missing"
CODE, COUNT, OF_SELECTION = (Qt.ItemDataRole.UserRole + number for number in range(3))


def swatch(colour: QColor, *, filled: bool) -> QIcon:
    """Return a dot of a colour; a ring where the level is hidden."""
    pixmap = QPixmap(32, 32)
    pixmap.fill(Qt.GlobalColor.transparent)
    painter = QPainter(pixmap)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.setPen(QPen(colour, 4))
    painter.setBrush(colour if filled else QBrush())
    painter.drawEllipse(QRectF(5, 5, 22, 22))
    painter.end()
    return QIcon(pixmap)


class CategoryLegend(QListWidget):
    """Levels with their colours and counts.

    A click hides or shows a level, a double click shows it alone; by keyboard Space and Enter do the same. The menu also
    selects the cells of a level and changes its colour. Level 0 is 'missing'.

    Parameters
    ----------
    parent
        Owner.
    """

    hiddenChanged = Signal(object)  # noqa: N815
    selectWanted = Signal(object)  # noqa: N815
    colourWanted = Signal(int)  # noqa: N815

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setItemDelegate(_LevelDelegate(self))
        self.setUniformItemSizes(True)
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setResizeMode(QListView.ResizeMode.Adjust)
        self.setMovement(QListView.Movement.Static)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        line = self.fontMetrics().height()
        self.setIconSize(QSize(line, line))
        self.setAccessibleName("Legend")
        self.setAccessibleDescription("Space hides or shows a level, Enter shows it alone, the menu key offers more")
        self.setToolTip("Click to hide or show, double click to show alone, right click for more")
        self._hidden: frozenset[int] = frozenset()
        self._before_click: frozenset[int] = frozenset()
        self._items: dict[int, QListWidgetItem] = {}
        self._most: dict[int, str] = {}
        self._colours: NDArray[np.uint8] = np.zeros((1, 3), np.uint8)
        self._names: tuple[str, ...] = ()
        self.itemClicked.connect(self._clicked)
        self.itemDoubleClicked.connect(self._double_clicked)

    def show_levels(
        self, names: Iterable[str], counts: NDArray[np.intp], colours: NDArray[np.uint8], hidden: frozenset[int],
        selected: NDArray[np.intp] | None = None,
    ) -> None:  # fmt: skip
        """Show levels; code 0 is 'missing' and listed last, only where there are any.

        Parameters
        ----------
        names
            Of the levels, without 'missing'.
        counts, selected
            Cells of each code, and how many of them are selected (None where nothing is): these are shown instead, in the accent.
        colours
            Of each code.
        hidden
            Codes that are not drawn.
        """
        self._names, self._colours, self._hidden = (MISSING, *names), colours, hidden
        listed = [code for code in range(1, len(self._names)) if counts[code]]  # a level no cell has is nothing to see
        left_out = len(listed) - MOST_LEVELS
        if left_out > 0:
            listed = sorted(sorted(listed, key=lambda code: -counts[code])[:MOST_LEVELS])
        if counts[0]:
            listed.append(0)
        if listed != list(self._items) or any(self._items[code].text() != self._names[code] for code in listed):
            self._rebuild(listed, left_out)
        self.updateGeometry()
        for code, item in self._items.items():
            total = f"{counts[code]:,}"
            item.setData(COUNT, total if selected is None else f"{selected[code]:,}")
            item.setData(OF_SELECTION, selected is not None)
            chosen = "" if selected is None else f"{selected[code]:,} selected of "
            item.setToolTip(f"{self._names[code]}: {chosen}{total} {agree(int(counts[code]), 'cell', 'cells')}")
            self._most[code] = total
            self._paint(code, item)
        self.scheduleDelayedItemsLayout()

    def hidden(self) -> frozenset[int]:
        """Return the codes that are not drawn."""
        return self._hidden

    def _rebuild(self, listed: list[int], left_out: int) -> None:
        self.clear()
        self._items, self._most = {}, {}
        for code in listed:
            item = QListWidgetItem(self._names[code])
            item.setData(CODE, code)
            self.addItem(item)
            self._items[code] = item
        if left_out > 0:
            rest = QListWidgetItem(f"and {counted(left_out, 'smaller level')}")
            rest.setFlags(Qt.ItemFlag.NoItemFlags)
            self.addItem(rest)

    def _paint(self, code: int, item: QListWidgetItem) -> None:
        hidden = code in self._hidden
        item.setIcon(swatch(QColor(*(int(part) for part in self._colours[code])), filled=not hidden))
        item.setForeground(QBrush(current().color("disabled" if hidden else "text")))
        state = "hidden" if hidden else "shown"
        item.setData(Qt.ItemDataRole.AccessibleTextRole, f"{self._names[code]}, {item.data(COUNT)} {'cell' if item.data(COUNT) == '1' else 'cells'}, {state}")

    # -- acts ------------------------------------------------------------------------------------------------

    def toggle(self, codes: Iterable[int]) -> None:
        """Hide what is shown of these codes, or show them where all are hidden."""
        chosen = frozenset(codes)
        self._set(self._hidden - chosen if chosen <= self._hidden else self._hidden | chosen)

    def solo(self, codes: Iterable[int], before: frozenset[int] | None = None) -> None:
        """Show only these codes; where they are the only ones already, show all."""
        others = frozenset(range(len(self._names))) - frozenset(codes)
        was = self._hidden if before is None else before
        self._set(frozenset() if was & others == others and not was - others else others)

    def show_all(self) -> None:
        """Show every level."""
        self._set(frozenset())

    def _set(self, hidden: frozenset[int]) -> None:
        if hidden != self._hidden:
            self._hidden = hidden
            for code, item in self._items.items():
                self._paint(code, item)
            self.hiddenChanged.emit(hidden)

    def _code(self, item: QListWidgetItem | None) -> int | None:
        code = None if item is None else item.data(CODE)
        return None if code is None else int(code)

    def _chosen(self) -> list[int]:
        codes = [self._code(item) for item in self.selectedItems()] or [self._code(self.currentItem())]
        return [code for code in codes if code is not None]

    def _clicked(self, item: QListWidgetItem) -> None:
        code = self._code(item)
        if code is not None and len(self.selectedItems()) <= 1:
            self._before_click = self._hidden
            self.toggle([code])

    def _double_clicked(self, item: QListWidgetItem) -> None:
        code = self._code(item)
        if code is not None:
            self.solo([code], self._before_click)

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        """Space hides or shows, Enter shows alone."""
        codes = self._chosen()
        if event.key() == Qt.Key.Key_Space and codes:
            self.toggle(codes)
        elif event.key() in {Qt.Key.Key_Return, Qt.Key.Key_Enter} and codes:
            self.solo(codes)
        else:
            before = self.currentRow()
            super().keyPressEvent(event)
            step = {Qt.Key.Key_Down: 1, Qt.Key.Key_Up: -1}.get(Qt.Key(event.key()), 0)
            if step and self.currentRow() == before and 0 <= before + step < self.count():
                self.setCurrentRow(before + step)  # where levels flow in lines, there may be none below

    def contextMenuEvent(self, event: QContextMenuEvent) -> None:  # noqa: N802
        """Open the menu of the level under the mouse, or by keyboard of the current one."""
        by_key = event.reason() == QContextMenuEvent.Reason.Keyboard
        item = self.currentItem() if by_key else self.itemAt(event.pos())
        if self._code(item) is None:
            return
        if item not in self.selectedItems():
            self.setCurrentItem(item)
        place = self.viewport().mapToGlobal(self.visualItemRect(item).bottomLeft()) if by_key else event.globalPos()
        self.make_menu().popup(place)

    def make_menu(self) -> QMenu:
        """Return the menu of the chosen levels."""
        codes = self._chosen()
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        hidden = bool(codes) and frozenset(codes) <= self._hidden
        menu.addAction("Show" if hidden else "Hide", lambda: self.toggle(codes))
        menu.addAction("Show alone", lambda: self.solo(codes))
        menu.addAction("Show all", self.show_all)
        menu.addSeparator()
        menu.addAction("Select these cells", lambda: self.selectWanted.emit(codes))
        if len(codes) == 1:
            menu.addAction("Change colour…", lambda: self.colourWanted.emit(codes[0]))
        return menu

    # -- size ------------------------------------------------------------------------------------------------

    def cell(self) -> QSize:
        """Return the size of one level: the longest name, up to some 30 letters, with its count."""
        metrics, figures = self.fontMetrics(), QFontMetrics(tabular_font())  # the delegate draws counts in the other font
        names = max((metrics.horizontalAdvance(item.text()) for item in self._items.values()), default=0)
        counts = max((figures.horizontalAdvance(text) for text in self._most.values()), default=0)
        width = min(names, metrics.horizontalAdvance("n" * 30)) + counts + self.iconSize().width() + 6 * SPACE
        return QSize(width, metrics.height() + SPACE)

    def hint_beside(self) -> QSize:
        """Return the size that shows every level in one column."""
        cell, frame = self.cell(), 2 * self.frameWidth()
        bar = self.verticalScrollBar().sizeHint().width()
        return QSize(cell.width() + frame + bar + 2, max(1, self.count()) * cell.height() + frame + 2)

    def hint_below(self, width: int) -> QSize:
        """Return the size that shows every level in as many columns as a width allows."""
        frame = 2 * self.frameWidth()
        columns = self.columns_in(width - frame - 2)
        return QSize(width, -(-max(1, self.count()) // columns) * self.cell().height() + frame + 2)

    def least_height(self, width: int) -> int:
        """Return the height below which a legend that flows is not pressed: three rows, or all where there are fewer."""
        return min(self.hint_below(width).height(), LEAST_ROWS * self.cell().height() + 2 * self.frameWidth() + 2)

    def columns_in(self, width: int) -> int:
        """Return how many columns fit without cutting a name."""
        return min(max(1, self.count()), max(1, width // self.cell().width()))

    def fit_bar(self, height: int) -> None:
        """Show the scroll bar only where a height does not hold every level.

        Left to Qt, room for a bar is taken from the lines also where none is shown, and a level that then falls into a
        further line brings the bar.
        """
        needed = (self.hint_beside() if not self.isWrapping() else self.hint_below(self.width())).height()
        policy = Qt.ScrollBarPolicy
        self.setVerticalScrollBarPolicy(policy.ScrollBarAlwaysOff if needed <= height else policy.ScrollBarAlwaysOn)

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        """Show or hide the scroll bar for the new size."""
        self.fit_bar(event.size().height() + 2 * self.frameWidth())
        super().resizeEvent(event)

    def set_beside(self, beside: bool) -> None:
        """Stand in one column, or flow in several."""
        self.setFlow(QListView.Flow.TopToBottom if beside else QListView.Flow.LeftToRight)
        self.setWrapping(not beside)

    def sizeHint(self) -> QSize:  # noqa: N802
        """Return the size beside the cloud."""
        return self.hint_beside()

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """Return room for two levels."""
        return QSize(self.fontMetrics().horizontalAdvance("n" * 10), 2 * self.cell().height())


class _LevelDelegate(QStyledItemDelegate):
    """Draws a level: its dot, its name, and its count at the right."""

    def __init__(self, legend: CategoryLegend) -> None:
        super().__init__(legend)
        self._legend = legend

    def sizeHint(self, option: QStyleOptionViewItem, index: QModelIndex) -> QSize:  # noqa: N802
        cell, room = self._legend.cell(), self._legend.viewport().width() - 2
        return QSize(min(cell.width(), room // self._legend.columns_in(room)), cell.height())

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: QModelIndex) -> None:
        count = str(index.data(COUNT) or "")
        metrics = QFontMetrics(tabular_font())
        room = metrics.horizontalAdvance(count) + 2 * SPACE
        left = QStyleOptionViewItem(option)
        self.initStyleOption(left, index)
        widget = option.widget
        style = widget.style() if widget is not None else QApplication.style()
        whole = QStyleOptionViewItem(left)
        whole.text, whole.icon = "", QIcon()
        style.drawControl(QStyle.ControlElement.CE_ItemViewItem, whole, painter, widget)
        side = left.decorationSize.height()
        box = option.rect
        left.icon.paint(painter, QRect(box.x() + SPACE, box.center().y() - side // 2, side, side))
        chosen = bool(option.state & QStyle.StateFlag.State_Selected)
        theme = current()
        ink = theme.color("on_accent") if chosen else left.palette.color(left.palette.ColorRole.Text)
        text = QRect(box.x() + 2 * SPACE + side, box.y(), box.width() - 2 * SPACE - side - room, box.height())
        painter.save()
        painter.setPen(ink)
        name = QFontMetrics(left.font).elidedText(index.data(Qt.ItemDataRole.DisplayRole), Qt.TextElideMode.ElideRight, text.width())
        painter.drawText(text, Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter, name)
        painter.setFont(tabular_font())
        painter.setPen(ink if chosen else theme.color("accent" if index.data(OF_SELECTION) else "secondary"))
        painter.drawText(box.adjusted(0, 0, -SPACE, 0), Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, count)
        painter.restore()


def ask_colour(now: QColor, parent: QWidget) -> QColor | None:
    """Ask for a colour; None where the person changed their mind."""
    colour = QColorDialog.getColor(now, parent, "Colour of the level")
    return colour if colour.isValid() else None
