"""The list of obs columns with their roles, and the pop-up in which roles are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from qtpy.QtCore import QAbstractListModel, QModelIndex, QPersistentModelIndex, QPoint, QRect, QRectF, QSize, Qt, Signal
from qtpy.QtGui import QFont, QFontMetrics, QPainter, QPen
from qtpy.QtWidgets import (
    QCheckBox,
    QFrame,
    QListView,
    QScrollArea,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QVBoxLayout,
    QWidget,
)

from cellweave.app import theme
from cellweave.app.panels.parts import subheading, text
from cellweave.core.models.declare import Family
from cellweave.core.spec.covariates import ROLES, SINGLE_ROLES, CovariateSpec
from cellweave.core.spec.roles import role_conflicts
from cellweave.core.wording import counted

Index: TypeAlias = QModelIndex | QPersistentModelIndex
TITLES = {role: str(CovariateSpec.model_fields[role].title) for role in ROLES}
HELP = {role: str(CovariateSpec.model_fields[role].description) for role in ROLES}


def describe(info: Any) -> str:
    """Return what a column is, in one line."""
    parts = [info.kind, counted(info.n_levels, "level") if info.levels or info.kind != "float" else counted(info.n_levels, "value")]
    if info.smallest is not None and info.levels:
        parts.append(f"smallest {info.smallest[1]:,}")
    if info.n_missing:
        parts.append(f"{info.n_missing:,} missing")
    return " · ".join(parts)


class ColumnsModel(QAbstractListModel):
    """obs columns and the roles they have."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._all: list[Any] = []
        self._shown: list[Any] = []
        self._roles: dict[str, tuple[str, ...]] = {}
        self._fills: dict[str, str] = {}
        self._conflicts: dict[str, str] = {}
        self._needle = ""

    def set_columns(self, infos: Sequence[Any]) -> None:
        """Show other columns."""
        self._all = list(infos)
        self._filter()

    def set_needle(self, needle: str) -> None:
        """Show only columns whose name holds a text."""
        self._needle = needle.casefold()
        self._filter()

    def _filter(self) -> None:
        self.beginResetModel()
        self._shown = [info for info in self._all if self._needle in info.name.casefold()]
        self.endResetModel()

    def set_roles(self, assigned: Mapping[str, Sequence[str]], fills: Mapping[str, str] | None = None, conflicts: Mapping[str, str] | None = None) -> None:
        """Show who has which role.

        Parameters
        ----------
        assigned
            Columns by role.
        fills
            By column, which further parts of the model it fills.
        conflicts
            By column, the sentence on roles that contradict one another.
        """
        self._fills, self._conflicts = dict(fills or {}), dict(conflicts or {})
        by_column: dict[str, list[str]] = {}
        for role, names in assigned.items():
            for name in names:
                by_column.setdefault(name, []).append(role)
        self._roles = {name: tuple(roles) for name, roles in by_column.items()}
        if self._shown:
            self.dataChanged.emit(self.index(0), self.index(len(self._shown) - 1))

    def roles_of(self, name: str) -> tuple[str, ...]:
        """Return the roles of a column."""
        return self._roles.get(name, ())

    def lines_below(self, name: str) -> list[tuple[str, str]]:
        """Return what is written below a column's own two lines, each with its tone."""
        found = [(f"→ {self._fills[name]}", "accent")] if name in self._fills else []
        return found + ([(self._conflicts[name], "bad")] if name in self._conflicts else [])

    def row_of(self, name: str) -> int:
        """Return the row of a column, or -1 where it is not shown."""
        return next((row for row, info in enumerate(self._shown) if info.name == name), -1)

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: N802, B008
        """Return the number of columns shown."""
        return 0 if parent.isValid() else len(self._shown)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return a column, its name, or its words."""
        info = self._shown[index.row()]
        if role == Qt.ItemDataRole.UserRole:
            return info
        if role == Qt.ItemDataRole.DisplayRole:
            return info.name
        if role in (Qt.ItemDataRole.ToolTipRole, Qt.ItemDataRole.AccessibleTextRole):
            roles = ", ".join(TITLES[name] for name in self.roles_of(info.name)) or "no role"
            levels = "\n".join(f"{level}: {count:,}" for level, count in info.levels[:10])
            below = "".join(f"\n{words}" for words, _ in self.lines_below(info.name))
            return f"{info.name}: {roles}\n{describe(info)}{below}" + (f"\n{levels}" if role == Qt.ItemDataRole.ToolTipRole and levels else "")
        return None


class ColumnDelegate(QStyledItemDelegate):
    """Draws a column in two lines, with its roles as chips on the right."""

    def __init__(self, model: ColumnsModel, parent: QWidget) -> None:
        super().__init__(parent)
        self._model = model

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:  # noqa: N802
        """Return room for two lines, and for what follows from the column's roles or contradicts them."""
        metrics = option.fontMetrics
        room = self._room(option)
        below = sum(wrapped(metrics, words, room) + 2 for words, _ in self._model.lines_below(index.data(Qt.ItemDataRole.DisplayRole)))
        return QSize(metrics.horizontalAdvance("m") * 10, 2 * metrics.height() + 12 + below)

    @staticmethod
    def _room(option: QStyleOptionViewItem) -> int:
        """Return the width that text has in a row."""
        view = option.widget
        width = view.viewport().width() if isinstance(view, QListView) else option.rect.width()
        return max(width - 20, 40)

    def paint(self, painter: QPainter | None, option: QStyleOptionViewItem, index: Index) -> None:
        """Draw one column."""
        assert painter is not None
        info = index.data(Qt.ItemDataRole.UserRole)
        now, metrics, area = theme.current(), option.fontMetrics, option.rect
        roles = self._model.roles_of(info.name)
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        selected = bool(option.state & QStyle.StateFlag.State_Selected)
        if selected:
            painter.fillRect(area, now.shade("accent", "panel", 0.12))
        elif option.state & QStyle.StateFlag.State_MouseOver:
            painter.fillRect(area, now.shade("text", "panel", 0.05))
        painter.setPen(now.color("border"))
        painter.drawLine(area.bottomLeft(), area.bottomRight())
        if selected and option.state & QStyle.StateFlag.State_HasFocus:
            painter.setPen(QPen(now.color("accent"), 1.2))
            painter.drawRect(area.adjusted(1, 1, -2, -2))
        line, left, right = metrics.height(), area.left() + 8, area.right() - 8
        top = area.top() + 5
        chips = self._chips(painter, QRect(left, top, right - left, line), roles, metrics)
        bold = QFont(option.font)
        bold.setWeight(QFont.Weight.DemiBold)
        painter.setFont(bold)
        painter.setPen(now.color("text"))
        room = chips - left - 6
        name = metrics.elidedText(info.name, Qt.TextElideMode.ElideMiddle, round(room * 0.93))
        painter.drawText(QRect(left, top, room, line), Qt.AlignmentFlag.AlignVCenter, name)
        painter.setFont(option.font)
        against = next((info.advice.get(role) for role in roles if info.advice.get(role)), "")
        painter.setPen(now.color("warn" if against else "secondary"))
        words = f"{against}" if against else describe(info)
        below = QRect(left, top + line + 2, right - left, line)
        painter.drawText(below, Qt.AlignmentFlag.AlignVCenter, metrics.elidedText(words, Qt.TextElideMode.ElideRight, below.width()))
        place = below.bottom() + 3
        for words, tone in self._model.lines_below(info.name):
            height = wrapped(metrics, words, self._room(option))
            painter.setPen(now.color(tone))
            painter.drawText(QRect(left, place, right - left, height), Qt.TextFlag.TextWordWrap, words)
            place += height + 2
        painter.restore()

    def _chips(self, painter: QPainter, area: QRect, roles: Sequence[str], metrics: Any) -> int:
        """Draw the roles from the right; return where they begin."""
        now, right = theme.current(), area.right()
        if not roles:
            words = "give a role"
            width = metrics.horizontalAdvance(words)
            painter.setPen(now.color("accent"))
            painter.drawText(QRect(right - width, area.top(), width + 2, area.height()), Qt.AlignmentFlag.AlignVCenter, words)
            return right - width
        shown = [TITLES[role] for role in roles[:2]] + ([f"+{len(roles) - 2}"] if len(roles) > 2 else [])
        for words in reversed(shown):
            width = metrics.horizontalAdvance(words) + 14
            box = QRectF(right - width, area.top() - 1, width, area.height() + 2)
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(now.color("accent"))
            painter.drawRoundedRect(box, box.height() / 2, box.height() / 2)
            painter.setPen(now.color("on_accent"))
            painter.drawText(box, Qt.AlignmentFlag.AlignCenter, words)
            right -= width + 4
        return right


def wrapped(metrics: QFontMetrics, words: str, width: int) -> int:
    """Return the height of words that are wrapped to a width."""
    return metrics.boundingRect(QRect(0, 0, width, 10_000), Qt.TextFlag.TextWordWrap, words).height()


class ColumnsView(QListView):
    """The list; a click, Enter or Space asks for the roles of a column."""

    rolesAsked = Signal(str, QPoint)  # noqa: N815

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.columns = ColumnsModel(self)
        self.setModel(self.columns)
        self.setItemDelegate(ColumnDelegate(self.columns, self))
        self.setMouseTracking(True)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setVerticalScrollMode(QListView.ScrollMode.ScrollPerPixel)
        self.setAccessibleName("Columns of the cells")
        self.clicked.connect(self._ask)
        theme.notifier().changed.connect(self.viewport().update)

    def _ask(self, index: QModelIndex) -> None:
        if index.isValid():
            corner = self.viewport().mapToGlobal(self.visualRect(index).bottomLeft())
            self.rolesAsked.emit(index.data(Qt.ItemDataRole.DisplayRole), corner)

    def keyPressEvent(self, event: Any) -> None:  # noqa: N802
        """Ask for roles on Enter and Space."""
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter, Qt.Key.Key_Space):
            self._ask(self.currentIndex())
            event.accept()
            return
        super().keyPressEvent(event)

    def sizeHint(self) -> QSize:  # noqa: N802
        """Return room for all columns up to ten."""
        rows = min(self.columns.rowCount(), 10)
        return QSize(200, max(sum(self.sizeHintForRow(row) for row in range(rows)), 2 * (2 * self.fontMetrics().height() + 12)) + 4)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """Return room for three columns."""
        rows = min(max(self.columns.rowCount(), 1), 4)
        return QSize(120, rows * (2 * self.fontMetrics().height() + 12) + 4)


class RolePopup(QFrame):
    """One box for each role: what it does, what speaks against it, or why the model does not use it.

    Attributes
    ----------
    toggled
        Role and whether the column shall have it.
    """

    toggled = Signal(str, bool)

    def __init__(self, info: Any, family: Family, covariates: CovariateSpec, parent: QWidget | None = None) -> None:
        super().__init__(parent, Qt.WindowType.Popup)
        assigned = covariates.assigned()
        self._covariates = covariates
        self.setProperty("card", "true")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.boxes: dict[str, QCheckBox] = {}
        body = QWidget()
        layout = QVBoxLayout(body)
        layout.setContentsMargins(12, 10, 12, 12)
        layout.setSpacing(2)
        layout.addWidget(subheading(f"What is '{info.name}'?"))
        used = [role for role in ROLES if family.uses(role) is not None]
        for role in used:
            self._add(layout, role, info, family, assigned)
        rest = [role for role in ROLES if role not in used]
        if rest:
            layout.addSpacing(8)
            layout.addWidget(subheading(f"Not used by {family.title}"))
            for role in rest:
                self._add(layout, role, info, family, assigned)
        area = QScrollArea()
        area.setWidgetResizable(True)
        area.setFrameShape(QFrame.Shape.NoFrame)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        area.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        area.setWidget(body)
        body.setAutoFillBackground(False)
        area.viewport().setAutoFillBackground(False)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(1, 1, 1, 1)
        outer.addWidget(area)
        em = self.fontMetrics().horizontalAdvance("m")
        self.resize(em * 30, min(em * 34, body.sizeHint().height() + em * 4))

    def _add(self, layout: QVBoxLayout, role: str, info: Any, family: Family, assigned: Mapping[str, Sequence[str]]) -> None:
        use = family.uses(role)
        box = QCheckBox(TITLES[role])
        box.setChecked(info.name in assigned.get(role, ()))
        box.setEnabled(use is not None)
        box.setAccessibleName(f"{TITLES[role]}: role of {info.name}")
        words = use.help if use is not None else family.why_unused(role)
        box.setAccessibleDescription(words)
        layout.addWidget(box)
        if use is not None or words != family.why_unused(""):  # what holds for all of them is said once, in the heading
            note = text(words, secondary=True)
            note.setIndent(22)
            layout.addWidget(note)
        against = info.advice.get(role, "")
        conflict = self._conflict(role, info.name, family) if use is not None and not box.isChecked() else ""
        against = conflict or (f"{against}." if against else "")
        if use is not None and against:
            warning = text(f"Speaks against it: {against}")
            warning.setProperty("tone", "warn")
            warning.setIndent(22)
            layout.addWidget(warning)
        box.toggled.connect(lambda on: self.toggled.emit(role, on))
        self.boxes[role] = box

    def _conflict(self, role: str, column: str, family: Family) -> str:
        """Return the sentence that would hold if the column were given a role; empty where none is new."""
        before = {conflict.text for conflict in role_conflicts(self._covariates, family)}
        value: Any = column if role in SINGLE_ROLES else (*getattr(self._covariates, role), column)
        then = self._covariates.model_copy(update={role: value})
        return next((conflict.text for conflict in role_conflicts(then, family) if conflict.text not in before), "")

    def showEvent(self, event: Any) -> None:  # noqa: N802
        """Put the focus on the first role, for the keyboard."""
        super().showEvent(event)
        first = next((box for box in self.boxes.values() if box.isEnabled()), None)
        if first is not None:
            first.setFocus(Qt.FocusReason.PopupFocusReason)
