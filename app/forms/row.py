"""One row of a form: mark, label, field, reset, and below the field what is wrong with it."""

from __future__ import annotations

import html
from typing import Any

from qtpy.QtCore import QObject, QRectF, QSize, Qt, Signal
from qtpy.QtGui import QColor, QPainter, QPaintEvent
from qtpy.QtWidgets import QGridLayout, QLabel, QSizePolicy, QToolButton, QWidget

from cellweave.app.forms.editors import auto_in_field, make_editor, value_text
from cellweave.app.forms.fields import FormField
from cellweave.app.forms.hues import on_ground
from cellweave.app.forms.numberbox import number_text
from cellweave.app.theme import current, icon

MARK, LABEL, FIELD, RESET = range(4)
"""Columns of the form's grid."""


class Dot(QWidget):
    """A small dot; it keeps its place when it is not shown, so that nothing jumps.

    Parameters
    ----------
    token
        Colour of the theme.
    """

    def __init__(self, token: str = "accent", parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._token = token
        self._fixed: QColor | None = None
        self._on = False
        self.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Fixed)

    def is_on(self) -> bool:
        """Return whether the dot shows."""
        return self._on

    def set_on(self, on: bool, tip: str = "") -> None:
        """Show or hide the dot."""
        self._on = on
        self.setToolTip(tip if on else "")
        self.setAccessibleName(tip if on else "")
        self.update()

    def set_fixed_colour(self, colour: QColor) -> None:
        """Show the dot always, in a colour of its own."""
        self._fixed = colour
        self._on = True
        self.update()

    def sizeHint(self) -> QSize:  # noqa: N802
        """Return half the height of a line."""
        side = max(6, self.fontMetrics().height() // 2)
        return QSize(side, side)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        """Draw the dot."""
        if not self._on:
            return
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(current().color(self._token) if self._fixed is None else on_ground(self._fixed))
        side = min(self.width(), self.height()) - 1.0
        painter.drawEllipse(QRectF((self.width() - side) / 2, (self.height() - side) / 2, side, side))
        painter.end()


def reset_button(label: str, parent: QWidget) -> QToolButton:
    """Return the button that takes a field back; it keeps its place where it is hidden."""
    button = QToolButton(parent)
    button.setIcon(icon("reset", "secondary"))
    button.setAccessibleName(f"Reset {label}")
    keep_place(button, keep=True)
    button.hide()
    return button


def keep_place(widget: QWidget, *, keep: bool) -> None:
    """Let a widget keep its room while it is hidden, or give it up."""
    policy = widget.sizePolicy()
    policy.setRetainSizeWhenHidden(keep)
    widget.setSizePolicy(policy)


class FieldRow(QObject):
    """The widgets of one field, placed in the grid that all rows of the form share.

    Parameters
    ----------
    field
        What the row edits.
    grid
        The form's grid.
    line
        Line of the grid; the line after it takes the hint and the error.
    parent
        Widget that owns the row's widgets.
    """

    edited = Signal(str, object)
    rejected = Signal(str, str)

    def __init__(self, field: FormField, grid: QGridLayout, line: int, parent: QWidget) -> None:
        super().__init__(parent)
        self.field = field
        self._baseline: Any = field.default
        self.mark = Dot("accent", parent)
        self.label = QLabel(field.label, parent)
        self.label.setWordWrap(True)
        self.editor = make_editor(field, parent)
        self.label.setBuddy(self.editor)
        self.reset = reset_button(field.label, parent)
        in_sight = field.kind == "choice" or auto_in_field(field) == field.auto
        long_auto = "" if in_sight else field.auto
        self.note = QLabel(long_auto, parent)
        self.note.setWordWrap(True)
        self.note.setProperty("secondary", "true")
        self.problem = QLabel("", parent)
        self.problem.setWordWrap(True)
        self.problem.setProperty("tone", "bad")
        self._set_tips("")
        grid.addWidget(self.mark, line, MARK, Qt.AlignmentFlag.AlignCenter)
        grid.addWidget(self.label, line, LABEL, Qt.AlignmentFlag.AlignVCenter)
        grid.addWidget(self.editor, line, FIELD, Qt.AlignmentFlag.AlignVCenter)
        grid.addWidget(self.reset, line, RESET, Qt.AlignmentFlag.AlignVCenter)
        grid.addWidget(self.note, line + 1, FIELD, 1, 2)
        grid.addWidget(self.problem, line + 2, FIELD, 1, 2)
        self._shown = True
        self._why_disabled = ""
        self.note.setVisible(bool(long_auto))
        self.problem.hide()
        self.editor.edited.connect(self._edited)
        self.editor.rejected.connect(self.set_problem)
        self.reset.clicked.connect(lambda: self.edited.emit(self.field.path, self._baseline))

    # -- value -----------------------------------------------------------------------------------------------

    def value(self) -> Any:
        """Return what the field holds."""
        return self.editor.value()

    def set_value(self, value: Any) -> None:
        """Show a value, take away an error, and mark the row where it differs from its baseline."""
        self.editor.set_value(value)
        self.set_problem("")
        self.refresh_mark()

    def set_baseline(self, value: Any, origin: str = "the default") -> None:
        """Set the value that reset goes back to and the mark compares with."""
        self._baseline = value
        shown = describe(self.field, value)
        self.reset.setToolTip(f"Reset to {origin}: {shown}")
        self.refresh_mark()

    def is_changed(self) -> bool:
        """Return whether the value differs from the baseline."""
        return bool(self.value() != self._baseline)

    def refresh_mark(self) -> None:
        """Show the mark and the reset button where the value differs from the baseline."""
        changed = self.is_changed()
        self.mark.set_on(changed, f"Changed from {describe(self.field, self._baseline)}")
        self.reset.setVisible(changed and self._shown)

    def _edited(self, value: Any) -> None:
        self.set_problem("")
        self.refresh_mark()
        self.edited.emit(self.field.path, value)

    # -- looks -----------------------------------------------------------------------------------------------

    def set_problem(self, text: str) -> None:
        """Show or take away the sentence under the field."""
        self.problem.setText(text)
        self.problem.setVisible(bool(text) and self._shown)
        if text:
            self.rejected.emit(self.field.path, text)

    def set_shown(self, shown: bool) -> None:
        """Show or hide the whole row."""
        if shown == self._shown:
            return
        self._shown = shown
        for widget in (self.mark, self.label, self.editor):
            widget.setVisible(shown)
        self.note.setVisible(shown and bool(self.note.text()))
        self.problem.setVisible(shown and bool(self.problem.text()))
        keep_place(self.reset, keep=shown)
        self.reset.setVisible(shown and self.is_changed())

    def is_shown(self) -> bool:
        """Return whether the row is shown in the form's present face."""
        return self._shown

    def set_enabled(self, enabled: bool, why_not: str = "") -> None:
        """Grey the row out, with the reason as its tooltip."""
        for widget in (self.label, self.editor, self.reset, self.note):
            widget.setEnabled(enabled)
        self._set_tips("" if enabled else why_not)

    def _set_tips(self, why_not: str) -> None:
        tip = tooltip(self.field, why_not)
        self.label.setToolTip(tip)
        self.editor.setToolTip(tip)


def describe(field: FormField, value: Any) -> str:
    """Return a value of a field in words, for tooltips."""
    if value is None:
        return field.auto or "automatic"
    if field.kind == "bool":
        return "on" if value else "off"
    if field.kind in {"int", "float"}:
        return f"{number_text(value)} {field.unit}".strip()
    if field.kind == "by_modality":
        said = field.word if field.choices else value_text
        return ", ".join(f"{name} = {said(one)}" for name, one in value.items()) if isinstance(value, dict) else said(value)
    if field.kind == "list":
        return ", ".join(map(field.word, value)) or "none"
    if field.kind == "mapping":
        return ", ".join(f"{name} = {field.word(text)}" for name, text in value.items()) or "none"
    return field.word(value) or "empty"


def tooltip(field: FormField, why_not: str = "") -> str:
    """Return the tooltip of a field as rich text, which Qt wraps: help, values, limits, default, and the name in the spec."""
    lines = [f"<b>{html.escape(field.label)}</b>", html.escape(field.help)]
    named = [f"{word} ({value})" if word != value else word for value, word in field.words.items() if not field.choices or value in field.choices]
    if named:
        lines.append(html.escape(f"Values, as a spec file names them: {', '.join(named)}"))
    limits = field.range_text()
    if limits:
        lines.append(html.escape(f"Allowed: {limits}"))
    lines.append(html.escape(f"Default: {describe(field, field.default)}"))
    if why_not:
        lines.append(f"<i>{html.escape(why_not)}</i>")
    lines.append(f"<code>{html.escape(field.path)}</code>")
    return "<qt>" + "<br>".join(line for line in lines if line) + "</qt>"
