"""The command palette: every action by its name, from the keyboard."""

from __future__ import annotations

from collections.abc import Mapping

from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtGui import QKeyEvent, QKeySequence
from qtpy.QtWidgets import QDialog, QLabel, QLineEdit, QListWidget, QListWidgetItem, QVBoxLayout, QWidget

from cellweave.app import theme
from cellweave.app.actions.declared import ACTIONS, ActionInfo
from cellweave.app.actions.registry import ActionRegistry


def rank(needle: str, info: ActionInfo) -> int | None:
    """Return how well an action fits what was typed (smaller is better), or None where it does not."""
    words = needle.casefold().split()
    label = info.label.casefold()
    text = f"{label} {info.menu.casefold()} {info.tip.casefold()}"
    if not all(word in text for word in words):
        return None
    if not words:
        return 0
    if label.startswith(words[0]):
        return 0
    return 1 if all(word in label for word in words) else 2


class CommandPalette(QDialog):
    """A search field over a list of actions; Enter does the chosen one.

    Parameters
    ----------
    registry
        The window's actions.
    conditions
        What holds now, for the reasons beside greyed actions.
    parent
        The window.
    """

    def __init__(self, registry: ActionRegistry, conditions: Mapping[str, bool], parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Search actions")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self._registry, self._conditions = registry, conditions
        self.search = QLineEdit()
        self.search.setPlaceholderText("Type the name of an action")
        self.search.setAccessibleName("Search actions")
        self.search.setClearButtonEnabled(True)
        self.list = QListWidget()
        self.list.setAccessibleName("Actions found")
        self.list.setUniformItemSizes(True)
        self.why = QLabel()
        self.why.setProperty("secondary", "true")
        self.why.setWordWrap(True)
        layout = QVBoxLayout(self)
        for part in (self.search, self.list, self.why):
            layout.addWidget(part)
        self.search.textChanged.connect(self._fill)
        self.search.returnPressed.connect(self._do)
        self.list.itemActivated.connect(self._do)
        self.list.currentItemChanged.connect(self._explain)
        self.search.installEventFilter(self)
        em = self.fontMetrics().horizontalAdvance("m")
        self.resize(em * 46, em * 34)
        self._fill("")

    def _fill(self, needle: str) -> None:
        found = [(score, position, info) for position, info in enumerate(ACTIONS) if (score := rank(needle, info)) is not None]
        found.sort(key=lambda item: (not self._registry[item[2].id].isEnabled(), item[0], item[1]))
        self.list.clear()
        for _, _, info in found:
            action = self._registry[info.id]
            keys = action.shortcut().toString(QKeySequence.SequenceFormat.NativeText)
            item = QListWidgetItem(f"{info.menu}: {info.label}" + (f"   {keys}" if keys else ""))
            item.setIcon(theme.icon(info.icon or "command", "secondary"))
            item.setData(Qt.ItemDataRole.UserRole, info.id)
            item.setToolTip(info.tip)
            if not action.isEnabled():
                item.setForeground(theme.current().color("disabled"))
            self.list.addItem(item)
        self.list.setCurrentRow(0)
        if not found:
            self.why.setText("No action has this name.")

    def _explain(self, item: QListWidgetItem | None, _before: QListWidgetItem | None = None) -> None:
        if item is None:
            return
        info = self._registry.infos[item.data(Qt.ItemDataRole.UserRole)]
        enabled = self._registry[info.id].isEnabled()
        self.why.setText(info.tip if enabled else f"Not now: {self._registry.why_not(info, self._conditions)}")

    def _do(self, *_: object) -> None:
        item = self.list.currentItem()
        if item is None:
            return
        action = self._registry[item.data(Qt.ItemDataRole.UserRole)]
        if action.isEnabled():
            self.accept()
            action.trigger()

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:  # noqa: N802
        """Let the arrow keys move in the list while one types."""
        if isinstance(event, QKeyEvent) and event.type() == QEvent.Type.KeyPress:
            step = {Qt.Key.Key_Down: 1, Qt.Key.Key_Up: -1, Qt.Key.Key_PageDown: 8, Qt.Key.Key_PageUp: -8}.get(Qt.Key(event.key()))
            if step is not None and self.list.count():
                self.list.setCurrentRow(max(0, min(self.list.count() - 1, self.list.currentRow() + step)))
                return True
        return super().eventFilter(watched, event)
