"""One widget for each sort of field; all of them have ``value``, ``set_value`` and the signals ``edited`` and ``rejected``."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtGui import QKeyEvent, QWheelEvent
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QHBoxLayout,
    QLineEdit,
    QMenu,
    QSizePolicy,
    QStyle,
    QStyleOptionComboBox,
    QToolButton,
    QWidget,
)

from cellweave.app.forms.fields import FormField
from cellweave.app.forms.numberbox import NumberBox, number_text, parse_number
from cellweave.app.theme import SPACE, icon

SHORT_AUTO, SHORT_AUTO_NUMBER = 18, 6
"""A text for 'automatic' up to this many characters stands in the field itself, a longer one below it."""


def auto_in_field(field: FormField) -> str:
    """Return what an automatic field says in itself: what that means, where it fits, else that it is automatic."""
    number = field.kind in {"int", "float"}
    fits = 0 < len(field.auto) <= (SHORT_AUTO_NUMBER if number else SHORT_AUTO)
    return field.auto if fits else "auto" if number else "automatic"


class CheckEditor(QCheckBox):
    """Yes or no."""

    edited = Signal(object)
    rejected = Signal(str)

    def __init__(self, field: FormField, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.clicked.connect(self._clicked)

    def _clicked(self, checked: bool) -> None:
        self.edited.emit(checked)

    def value(self) -> bool:
        """Return whether it is ticked."""
        return self.isChecked()

    def set_value(self, value: bool) -> None:
        """Tick or untick without saying that it was edited."""
        self.setChecked(value)


class ChoiceEditor(QComboBox):
    """One of a few values."""

    edited = Signal(object)
    rejected = Signal(str)

    def __init__(self, field: FormField, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self._letters = min(12, max((len(field.word(item)) for item in field.choices), default=6))
        if field.nullable:
            self.addItem(field.auto or "automatic", None)
        for choice in field.choices:
            self.addItem(field.word(choice), choice)
        self.activated.connect(lambda: self.edited.emit(self.value()))

    def sizeHint(self) -> QSize:  # noqa: N802
        """Return room for a few letters.

        Qt's own policy for this makes the list that opens along with the field, which takes longer than all the rest of a form.
        """
        option = QStyleOptionComboBox()
        self.initStyleOption(option)
        metrics = self.fontMetrics()
        inside = QSize(self._letters * metrics.horizontalAdvance("X"), max(metrics.height(), 14) + 2)
        return self.style().sizeFromContents(QStyle.ContentsType.CT_ComboBox, option, inside, self)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """Return the same."""
        return self.sizeHint()

    def value(self) -> Any:
        """Return the chosen value."""
        return self.currentData()

    def set_value(self, value: Any) -> None:
        """Choose a value without saying that it was edited."""
        self.setCurrentIndex(self.findData(value))

    def wheelEvent(self, event: QWheelEvent) -> None:  # noqa: N802
        """Scroll the form, not the choice, unless the field has the focus."""
        if self.hasFocus():
            super().wheelEvent(event)
        else:
            event.ignore()


class TextEditor(QLineEdit):
    """A text; empty means automatic where the field may be None."""

    edited = Signal(object)
    rejected = Signal(str)

    def __init__(self, field: FormField, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._field = field
        self._value: Any = None if field.nullable else ""
        self.setClearButtonEnabled(True)
        if field.nullable:
            self.setPlaceholderText(auto_in_field(field))
        self.editingFinished.connect(self._commit)

    def value(self) -> Any:
        """Return the value."""
        return self._value

    def set_value(self, value: Any) -> None:
        """Show a value without saying that it was edited."""
        unchanged = value == self._value
        self._value = value
        if not unchanged or not self.hasFocus():
            self.setText(self._write(value))
            if not self.hasFocus():
                self.setCursorPosition(0)  # a text that is too long is read from its beginning

    def _commit(self) -> None:
        try:
            value = self._read(self.text())
        except ValueError as error:
            self.rejected.emit(str(error))
            return
        if value == self._value:
            self.rejected.emit("")
            return
        self._value = value
        self.edited.emit(value)

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        """Escape brings back the value that holds."""
        if event.key() == Qt.Key.Key_Escape and self.text() != self._write(self._value):
            self.setText(self._write(self._value))
            self.rejected.emit("")
            return
        super().keyPressEvent(event)

    def _read(self, text: str) -> Any:
        text = text.strip()
        return None if self._field.nullable and not text else text

    def _write(self, value: Any) -> str:
        return "" if value is None else str(value)


def split_list(text: str) -> tuple[str, ...]:
    """Split at commas; an entry with a comma in it is written in double quotes."""
    rows = list(csv.reader([text.strip()], skipinitialspace=True))
    return tuple(item.strip() for item in (rows[0] if rows else []) if item.strip())


def join_list(items: Sequence[str]) -> str:
    """Return the text that :func:`split_list` takes apart again."""
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(items)
    return out.getvalue().replace(",", ", ") if not any("," in item for item in items) else out.getvalue()


class ListEditor(TextEditor):
    """Several names, separated by commas."""

    def __init__(self, field: FormField, parent: QWidget | None = None) -> None:
        super().__init__(field, parent)
        self._value = ()
        self.setPlaceholderText(field.auto or "name, name, …")

    def _read(self, text: str) -> tuple[str, ...]:
        return tuple(self._field.value_of(item) for item in split_list(text))

    def _write(self, value: Sequence[str] | None) -> str:
        return join_list([self._field.word(item) for item in value or ()])


class MappingEditor(TextEditor):
    """Names with a value each: ``name = value, name = value``."""

    def __init__(self, field: FormField, parent: QWidget | None = None) -> None:
        super().__init__(field, parent)
        self._value = {}
        self.setPlaceholderText("name = value, …")

    def _read(self, text: str) -> dict[str, str]:
        found = {}
        for part in split_list(text):
            name, sign, value = (piece.strip() for piece in part.partition("="))
            if not (name and sign and value):
                message = f"'{part}' is not of the form 'name = value'."
                raise ValueError(message)
            found[name] = self._field.value_of(value)
        return found

    def _write(self, value: Mapping[str, str] | None) -> str:
        return join_list([f"{name} = {self._field.word(text)}" for name, text in (value or {}).items()])


class ByModalityEditor(TextEditor):
    """One value for all modalities, or ``rna = 20, atac = 10``."""

    def __init__(self, field: FormField, parent: QWidget | None = None) -> None:
        super().__init__(field, parent)
        self._value = None
        self.setClearButtonEnabled(field.nullable)
        words = " | ".join(map(field.word, field.choices)) or (auto_in_field(field) if field.nullable else "value")
        self.setPlaceholderText(words)

    def _read(self, text: str) -> Any:
        parts = split_list(text)
        if not any("=" in part for part in parts):
            value: Any = self._one(text.strip())
        else:
            value = {}
            for part in parts:
                name, sign, rest = (piece.strip() for piece in part.partition("="))
                if not (name and sign):
                    message = f"'{part}' is not of the form 'modality = value'."
                    raise ValueError(message)
                value[name] = self._one(rest)
        problem = self._field.problem(value)
        if problem:
            raise ValueError(problem)
        return value

    def set_value(self, value: Any) -> None:
        """Show a value from its beginning."""
        super().set_value(value)
        if not self.hasFocus():
            self.setCursorPosition(0)

    def _one(self, text: str) -> Any:
        """Read one value."""
        field = self._field
        if field.nullable and text.casefold() in {"", "auto", "automatic"}:
            return None
        if field.each in {"int", "float"}:
            return parse_number(text, whole=field.each == "int")
        if field.each == "bool":
            if text.casefold() not in YES_NO:
                message = f"'{text}' is neither yes nor no."
                raise ValueError(message)
            return YES_NO[text.casefold()]
        known = {str(choice): choice for choice in field.choices}
        value = field.value_of(text)
        if value not in known:
            message = f"'{text}' is not one of {', '.join(map(field.word, field.choices))}."
            raise ValueError(message)
        return known[value]

    def _write(self, value: Any) -> str:
        if isinstance(value, Mapping):
            return join_list([f"{name} = {self._write_one(one)}" for name, one in value.items()])
        return "" if value is None else self._write_one(value)

    def _write_one(self, value: Any) -> str:
        return self._field.word(value) if self._field.choices and value is not None else value_text(value)


YES_NO = {"yes": True, "no": False, "true": True, "false": False, "on": True, "off": False}


def value_text(value: Any) -> str:
    """Return a value of one modality as it is written in the field."""
    if value is None:
        return "auto"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number_text(value) if isinstance(value, int | float) else str(value)


class AutoNumberEditor(QWidget):
    """A number that may be automatic: the field, and a button that says which of the two it is."""

    edited = Signal(object)
    rejected = Signal(str)

    def __init__(self, field: FormField, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.box = NumberBox(field, self)
        self.box.set_placeholder(auto_in_field(field))
        self.button = QToolButton(self)
        self.button.setText("auto")
        self.button.setCheckable(True)
        self.button.setToolTip(f"Automatic: {field.auto}" if field.auto else "Automatic")
        self.button.setAccessibleName(f"{field.label}: automatic")
        self.button.setAccessibleDescription(field.auto)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(SPACE)
        row.addWidget(self.box, 1)
        row.addWidget(self.button)
        self.setFocusProxy(self.box)
        self.box.edited.connect(self._number_edited)
        self.box.rejected.connect(self.rejected)
        self.box.editingFinished.connect(self._show_button)
        self.button.clicked.connect(self._pressed)

    def value(self) -> float | None:
        """Return the number, or None where it is automatic."""
        return self.box.value()

    def set_value(self, value: float | None) -> None:
        """Show a number or 'automatic' without saying that it was edited."""
        self.box.set_value(value)
        self._show_button()

    def setAccessibleName(self, name: str) -> None:  # noqa: N802
        """Name the number field, which is what a screen reader lands on."""
        self.box.setAccessibleName(name)

    def setAccessibleDescription(self, text: str) -> None:  # noqa: N802
        """Describe the number field."""
        self.box.setAccessibleDescription(text)

    def _show_button(self) -> None:
        self.button.setChecked(self.box.value() is None)

    def _number_edited(self, value: float | None) -> None:
        self._show_button()
        self.edited.emit(value)

    def _pressed(self) -> None:
        if self.button.isChecked():
            if self.box.value() is not None:
                self.box.set_value(None)
                self.edited.emit(None)
            return
        last = self.box.remembered()
        self.box.setFocus(Qt.FocusReason.TabFocusReason)
        if last is not None:
            self.box.set_value(last)
            self.edited.emit(last)


class SuggestingEditor(QWidget):
    """A text or list of names with a button that offers the names there are."""

    edited = Signal(object)
    rejected = Signal(str)

    def __init__(self, inner: TextEditor, field: FormField, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.inner = inner
        self._several, self._nullable = field.kind == "list", field.nullable
        self._field, self._names = field, tuple(map(str, field.choices))
        self.button = QToolButton(self)
        self.button.setIcon(icon("chevron-down"))
        self.button.setToolTip("Choose from the names in the data")
        self.button.setAccessibleName(f"{field.label}: choose")
        self.menu = QMenu(self.button)
        self.menu.aboutToShow.connect(self._fill)
        self.button.clicked.connect(self._open)  # a menu of the button's own would add a second arrow
        self.button.setVisible(bool(self._names))
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(SPACE)
        row.addWidget(inner, 1)
        row.addWidget(self.button)
        self.setFocusProxy(inner)
        inner.edited.connect(self.edited)
        inner.rejected.connect(self.rejected)

    def value(self) -> Any:
        """Return the value."""
        return self.inner.value()

    def set_value(self, value: Any) -> None:
        """Show a value without saying that it was edited."""
        self.inner.set_value(value)

    def setAccessibleName(self, name: str) -> None:  # noqa: N802
        """Name the field itself."""
        self.inner.setAccessibleName(name)

    def setAccessibleDescription(self, text: str) -> None:  # noqa: N802
        """Describe the field itself."""
        self.inner.setAccessibleDescription(text)

    def set_suggestions(self, names: Sequence[str]) -> None:
        """Set the names that the button offers; none hides it."""
        self._names = tuple(names)
        self.button.setVisible(bool(self._names))

    def _open(self) -> None:
        self.menu.popup(self.button.mapToGlobal(self.button.rect().bottomLeft()))

    def _fill(self) -> None:
        self.menu.clear()
        chosen = self.value() if self._several else (self.value(),)
        for name in self._names:
            action = self.menu.addAction(self._field.word(name).replace("&", "&&"))
            action.setCheckable(True)
            action.setChecked(name in chosen)
            action.triggered.connect(lambda checked, name=name: self._choose(name, checked=checked))

    def _choose(self, name: str, *, checked: bool) -> None:
        if self._several:
            now = [item for item in self.value() if item != name]
            value: Any = tuple([*now, name] if checked else now)
        else:
            value = name if checked else (None if self._nullable else "")
        self.inner.set_value(value)
        self.edited.emit(value)


Editor = CheckEditor | ChoiceEditor | TextEditor | NumberBox | AutoNumberEditor | SuggestingEditor


def make_editor(field: FormField, parent: QWidget) -> Editor:
    """Return the widget that edits a field, with its accessible name, help and limits set."""
    editor: Editor
    if field.kind in {"int", "float"}:
        editor = AutoNumberEditor(field, parent) if field.nullable else NumberBox(field, parent)
    elif field.kind == "list":
        editor = SuggestingEditor(ListEditor(field), field, parent)
    elif field.kind == "text":
        editor = SuggestingEditor(TextEditor(field), field, parent)
    else:
        plain: dict[str, Callable[[FormField, QWidget], Editor]] = {
            "bool": CheckEditor, "choice": ChoiceEditor, "mapping": MappingEditor, "by_modality": ByModalityEditor,
        }  # fmt: skip
        editor = plain[field.kind](field, parent)
    editor.setObjectName(field.path)
    unit = f", {'' if field.unit.startswith(('per ', 'of ', '×')) else 'in '}{field.unit}" if field.unit else ""
    editor.setAccessibleName(f"{field.label}{unit}")
    limits = field.range_text()
    editor.setAccessibleDescription(f"{field.help} Allowed: {limits}." if limits else field.help)
    if field.kind != "bool":
        editor.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    return editor
