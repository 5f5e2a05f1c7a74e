"""The spec being edited, with undo."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping
from typing import Any

from psygnal import Signal
from qtpy.QtGui import QUndoCommand, QUndoStack

from cellweave.core.errors import SpecError
from cellweave.core.spec import RunSpec

MERGE_SECONDS = 1.5


class SpecEditor:
    """Holds the spec that the panels edit; every edit can be undone.

    Attributes
    ----------
    changed
        Sent with the new spec after each edit, undo and redo.
    refused
        Sent with the paths of an edit that the spec did not accept, and the error's text.
    stack
        The undo stack, for the Edit menu.
    paths
        Fields that the last change was about; empty where the whole spec was put in place of another.
    """

    changed = Signal(RunSpec)
    refused = Signal(tuple, str)

    def __init__(self, spec: RunSpec | None = None) -> None:
        self._spec = spec or RunSpec()
        self.paths: tuple[str, ...] = ()
        self.stack = QUndoStack()
        self.stack.setUndoLimit(500)

    @property
    def spec(self) -> RunSpec:
        """The spec as it is now."""
        return self._spec

    def edit(self, changes: Mapping[str, Any], text: str = "") -> bool:
        """Change fields by dotted path.

        Parameters
        ----------
        changes
            As for :meth:`RunSpec.with_changes`.
        text
            What the undo menu calls it.

        Returns
        -------
        bool
            False where the spec refused the change; ``refused`` was sent and nothing changed.
        """
        try:
            wanted = self._spec.with_changes({**self._lost_weights(changes), **changes})
        except SpecError as error:
            self.refused.emit(tuple(changes), f"{error.cause} {error.mend}".strip())
            return False
        self.replace(wanted, text or _name_of(changes), merge=tuple(changes))
        return True

    def _lost_weights(self, changes: Mapping[str, Any]) -> dict[str, None]:
        """Return what takes out the weights of terms that the model will have no more; undoing the change brings them back."""
        weights = self._spec.losses.weights
        if not weights or all(path.partition(".")[0] == "losses" for path in changes):
            return {}
        known = {term.name for term in self._spec.with_changes({**changes, "losses.weights": {}}).terms()}
        return {f"losses.weights.{name}": None for name in weights if name not in known}

    def replace(self, spec: RunSpec, text: str, merge: tuple[str, ...] = ()) -> None:
        """Put another spec in place of the present one, as one step of the undo stack."""
        if spec != self._spec:
            self.stack.push(_Change(self, self._spec, spec, text, merge))

    def start(self, spec: RunSpec) -> None:
        """Begin with another spec and an empty undo stack (another file was opened)."""
        self.stack.clear()
        self.put(spec)

    def put(self, spec: RunSpec, paths: tuple[str, ...] = ()) -> None:
        """Set the spec without a step of undo; used by the undo commands themselves."""
        self._spec, self.paths = spec, paths
        self.changed.emit(spec)


def _name_of(changes: Mapping[str, Any]) -> str:
    fields = ", ".join(path.rpartition(".")[2].replace("_", " ") for path in changes)
    return f"change of {fields}"


class _Change(QUndoCommand):
    def __init__(self, editor: SpecEditor, before: RunSpec, after: RunSpec, text: str, merge: tuple[str, ...]) -> None:
        super().__init__(text)
        self._editor, self._before, self._after, self._merge = editor, before, after, merge
        self._time = time.monotonic()

    def id(self) -> int:
        """Commands of the same fields may be merged: dragging a slider is one step."""
        return zlib.crc32("\x1f".join(self._merge).encode()) & 0x7FFFFFFF if self._merge else -1

    def mergeWith(self, other: QUndoCommand | None) -> bool:  # noqa: N802
        """Take over a later change of the same fields that came soon after."""
        if not isinstance(other, _Change) or other._merge != self._merge or other._time - self._time > MERGE_SECONDS:
            return False
        self._after, self._time = other._after, other._time
        return True

    def redo(self) -> None:
        """Do or do again."""
        self._editor.put(self._after, self._merge)

    def undo(self) -> None:
        """Take back."""
        self._editor.put(self._before, self._merge)
