"""Actions as declared data, and what is built from them."""

from cellweave.app.actions.declared import ACTIONS, MENUS, ActionInfo
from cellweave.app.actions.palette import CommandPalette
from cellweave.app.actions.registry import ActionRegistry, conflicts
from cellweave.app.actions.shortcuts import ShortcutsDialog

__all__ = ["ACTIONS", "MENUS", "ActionInfo", "ActionRegistry", "CommandPalette", "ShortcutsDialog", "conflicts"]
