"""The dialog in which keys are given to actions."""

from __future__ import annotations

from collections.abc import Mapping

from qtpy.QtCore import Qt
from qtpy.QtGui import QKeySequence
from qtpy.QtWidgets import (
    QDialog,
    QDialogButtonBox,
    QHeaderView,
    QKeySequenceEdit,
    QLabel,
    QLineEdit,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from cellweave.app.actions.declared import ACTIONS
from cellweave.app.actions.registry import conflicts

PORTABLE = QKeySequence.SequenceFormat.PortableText
LONGEST = "Ctrl+Alt+Shift+Space"
"""There is room for a sequence of this length, whatever the keys are now."""


class ShortcutsDialog(QDialog):
    """A table of all actions with their keys; keys used twice are named and cannot be kept.

    Parameters
    ----------
    shortcuts
        The user's keys by action id.
    parent
        The window.
    """

    def __init__(self, shortcuts: Mapping[str, str], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Keyboard shortcuts")
        self._edits: dict[str, QKeySequenceEdit] = {}
        search = QLineEdit()
        search.setPlaceholderText("Find an action")
        search.setAccessibleName("Find an action")
        self.table = QTableWidget(len(ACTIONS), 2)
        self.table.setHorizontalHeaderLabels(["Action", "Keys"])
        self.table.verticalHeader().hide()
        self.table.setAccessibleName("Actions and their keys")
        self.table.horizontalHeader().setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        for row, info in enumerate(ACTIONS):
            cell = QTableWidgetItem(f"{info.menu}: {info.label}")
            cell.setToolTip(info.tip)
            cell.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable)
            self.table.setItem(row, 0, cell)
            edit = QKeySequenceEdit(QKeySequence.fromString(shortcuts.get(info.id, info.shortcut), PORTABLE))
            edit.setAccessibleName(f"Keys of {info.label}")
            if hasattr(edit, "setClearButtonEnabled"):
                edit.setClearButtonEnabled(True)
            edit.keySequenceChanged.connect(self._check)
            self._edits[info.id] = edit
            self.table.setCellWidget(row, 1, edit)
        self.table.resizeRowsToContents()
        self._fit_keys()
        self.problem = QLabel()
        self.problem.setWordWrap(True)
        self.problem.setProperty("tone", "bad")
        self.buttons = QDialogButtonBox(
            QDialogButtonBox.StandardButton.Ok | QDialogButtonBox.StandardButton.Cancel | QDialogButtonBox.StandardButton.RestoreDefaults
        )
        self.buttons.accepted.connect(self.accept)
        self.buttons.rejected.connect(self.reject)
        self.buttons.button(QDialogButtonBox.StandardButton.RestoreDefaults).clicked.connect(self._restore)
        layout = QVBoxLayout(self)
        for part in (search, self.table, self.problem, self.buttons):
            layout.addWidget(part)
        search.textChanged.connect(self._filter)
        em = self.fontMetrics().horizontalAdvance("m")
        self.resize(em * 46, em * 40)
        self._check()

    def _fit_keys(self) -> None:
        """Make the column wide enough for every sequence with the button that takes it away; it never gets narrower."""
        words = [edit.keySequence().toString(QKeySequence.SequenceFormat.NativeText) for edit in self._edits.values()]
        metrics = self.fontMetrics()
        widest = max(metrics.horizontalAdvance(text) for text in (*words, LONGEST))
        self.table.setColumnWidth(1, max(self.table.columnWidth(1), widest + 3 * metrics.height()))

    def _filter(self, needle: str) -> None:
        for row in range(self.table.rowCount()):
            item = self.table.item(row, 0)
            self.table.setRowHidden(row, item is None or needle.casefold() not in item.text().casefold())

    def _restore(self) -> None:
        for info in ACTIONS:
            self._edits[info.id].setKeySequence(QKeySequence.fromString(info.shortcut, PORTABLE))

    def keys(self) -> dict[str, str]:
        """Return the keys of every action that differ from the declared ones."""
        now = {name: edit.keySequence().toString(PORTABLE) for name, edit in self._edits.items()}
        declared = {info.id: QKeySequence.fromString(info.shortcut, PORTABLE).toString(PORTABLE) for info in ACTIONS}
        return {name: keys for name, keys in now.items() if keys != declared[name]}

    def _check(self, *_: object) -> None:
        self._fit_keys()
        labels = {info.id: info.label for info in ACTIONS}
        twice = conflicts(self.keys())
        lines = [f"{keys} is used by " + " and ".join(f"'{labels[name]}'" for name in names) + "." for keys, names in twice.items()]
        self.problem.setText(" ".join(lines))
        self.problem.setVisible(bool(lines))
        self.buttons.button(QDialogButtonBox.StandardButton.Ok).setEnabled(not lines)
