"""Builds Qt actions from their declarations and keeps them in step with what is possible now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter

from qtpy.QtCore import Qt
from qtpy.QtGui import QAction, QActionGroup, QKeySequence
from qtpy.QtWidgets import QMenu, QMenuBar, QWidget

from cellweave.app import theme
from cellweave.app.actions.declared import ACTIONS, MENUS, REASONS, ActionInfo


class ActionRegistry:
    """The window's actions by id.

    Parameters
    ----------
    window
        The widget that owns the actions and has what each ``call`` names; shortcuts work wherever it has the focus.
    shortcuts
        Keys that the user gave, by id; an empty text means none.
    """

    def __init__(self, window: QWidget, shortcuts: Mapping[str, str]) -> None:
        self.infos = {info.id: info for info in ACTIONS}
        self.actions: dict[str, QAction] = {}
        self.menus: dict[str, QMenu] = {}
        groups: dict[str, QActionGroup] = {}
        for info in ACTIONS:
            action = QAction(info.text, window)
            action.setObjectName(info.id)
            if info.icon:
                action.setIcon(theme.icon(info.icon))
            action.setCheckable(info.checkable)
            if info.group:
                groups.setdefault(info.group, QActionGroup(window)).addAction(action)
            action.setShortcutContext(Qt.ShortcutContext.WindowShortcut)
            action.triggered.connect(_without_argument(attrgetter(info.call)(window)))
            window.addAction(action)
            self.actions[info.id] = action
        self.set_shortcuts(shortcuts)

    def __getitem__(self, name: str) -> QAction:
        return self.actions[name]

    def build_menus(self, bar: QMenuBar) -> None:
        """Fill the menu bar."""
        for name in MENUS:
            menu = bar.addMenu(f"&{name}")
            menu.setToolTipsVisible(True)
            self.menus[name] = menu
            for info in ACTIONS:
                if info.menu != name:
                    continue
                if info.gap:
                    menu.addSeparator()
                menu.addAction(self.actions[info.id])

    def set_shortcuts(self, shortcuts: Mapping[str, str]) -> None:
        """Set the keys of every action: the user's, or the declared ones."""
        for info in ACTIONS:
            action = self.actions[info.id]
            sequence = QKeySequence.fromString(shortcuts.get(info.id, info.shortcut), QKeySequence.SequenceFormat.PortableText)
            action.setShortcut(sequence)
            keys = sequence.toString(QKeySequence.SequenceFormat.NativeText)
            action.setToolTip(f"{info.tip or info.label} ({keys})" if keys else info.tip or info.label)
            action.setStatusTip(info.tip)

    def update(self, conditions: Mapping[str, bool]) -> None:
        """Enable what is possible now."""
        for info in ACTIONS:
            enabled = all(conditions.get(need, False) for need in info.needs)
            action = self.actions[info.id]
            if action.isEnabled() != enabled:
                action.setEnabled(enabled)

    def why_not(self, info: ActionInfo, conditions: Mapping[str, bool]) -> str:
        """Return why an action is greyed, or an empty text."""
        return next((REASONS.get(need, "") for need in info.needs if not conditions.get(need, False)), "")


def _without_argument(call: Callable[[], object]) -> Callable[..., None]:
    """Return a slot that leaves out whether the action is checked: the methods know that themselves."""

    def slot(*_: object) -> None:
        call()

    return slot


def conflicts(shortcuts: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the keys that more than one action has, with the actions' ids."""
    by_keys: dict[str, list[str]] = {}
    for info in ACTIONS:
        keys = shortcuts.get(info.id, info.shortcut)
        if keys:
            by_keys.setdefault(keys, []).append(info.id)
    return {keys: ids for keys, ids in by_keys.items() if len(ids) > 1}
