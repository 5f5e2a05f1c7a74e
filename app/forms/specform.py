"""A form over one part of the spec, built from the declarations of its fields."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QGridLayout, QHBoxLayout, QLabel, QLineEdit, QPushButton, QVBoxLayout, QWidget

from cellweave.app.forms.editors import SuggestingEditor
from cellweave.app.forms.fields import FormField, form_fields
from cellweave.app.forms.row import FIELD, LABEL, MARK, RESET, FieldRow
from cellweave.app.forms.scroll import ColumnScroll, bring_into_sight
from cellweave.app.theme import SPACE
from cellweave.core.spec import RunSpec

LOCKED = "This cannot be changed while the run trains."


class SpecForm(QWidget):
    """A form over a section of a :class:`~cellweave.core.spec.RunSpec`, or over any class declared like one.

    Setting a spec shows it and emits nothing; ``changed`` is sent only for what a person did, with the new values by
    dotted path, ready for ``RunSpec.with_changes``. The form does not change the spec itself: the owner does, and
    sets the new spec, or names what is wrong with :meth:`set_error`.

    Parameters
    ----------
    section
        Name of the section: ``"model"``, ``"training"``, ``"analysis"``, ``"data"`` or ``"covariates"``.
    parent
        Owner.
    leave_out
        Names of fields that another widget edits.
    scrolling
        Whether the form scrolls by itself; switch it off where it stands in something that scrolls.
    """

    changed = Signal(dict)
    rejected = Signal(str, str)

    def __init__(
        self, section: str, parent: QWidget | None = None, *, leave_out: Collection[str] = (), scrolling: bool = True
    ) -> None:
        super().__init__(parent)
        self._section = section
        self._leave_out = frozenset(leave_out)
        self._cls: type[BaseModel] | None = None
        self._rows: dict[str, FieldRow] = {}
        self._headings: dict[str, QLabel] = {}
        self._enabled_paths: frozenset[str] | None = None
        self._not_now: frozenset[str] = frozenset()
        self._why_locked = LOCKED
        self._baseline: BaseModel | None = None
        self._baseline_name = ""
        self._of_family: tuple[str, Mapping[str, Any]] = ("", {})
        self._suggestions: dict[str, tuple[str, ...]] = {}
        self._build_frame(scrolling=scrolling)

    @classmethod
    def for_class(
        cls, of: type[BaseModel], parent: QWidget | None = None, *, leave_out: Collection[str] = (), scrolling: bool = True
    ) -> SpecForm:
        """Return a form over a class that stands alone; its paths are the names of the fields."""
        form = cls("", parent, leave_out=leave_out, scrolling=scrolling)
        form._build_rows(of)
        form.set_spec(of())
        return form

    # -- what it shows ---------------------------------------------------------------------------------------

    def set_spec(self, spec: BaseModel) -> None:
        """Show a spec; nothing is emitted, and the field one is typing in keeps its text.

        Parameters
        ----------
        spec
            A ``RunSpec``, whose section is shown, or an instance of the form's class.
        """
        part = self._part(spec)
        if type(part) is not self._cls:
            self._build_rows(type(part))
        if self._section == "training" and isinstance(spec, RunSpec) and spec.family.title != self._of_family[0]:
            self._of_family = spec.family.title, RunSpec().with_changes({"model.kind": spec.model.kind}).training.model_dump()
            self._apply_baseline()
        for row in self._rows.values():
            row.set_value(getattr(part, row.field.name))
        self._refresh()

    def set_preset_baseline(self, spec: BaseModel | None, name: str = "the preset") -> None:
        """Set what the marks compare with and reset goes back to; None stands for the defaults."""
        self._baseline, self._baseline_name = spec, name
        self._apply_baseline()

    def set_error(self, path: str, text: str) -> None:
        """Show a sentence under a field and bring it into sight; an empty text takes it away.

        Raises
        ------
        KeyError
            Where the form has no field of that path.
        """
        row = self._rows[path]
        if text and not row.is_shown():
            self._search.clear()
            self.set_left_out(self._not_now - {path})
            if row.field.advanced:
                self._advanced.setChecked(True)
        row.problem.setText(text)
        row.problem.setVisible(bool(text) and row.is_shown())
        if text:
            bring_into_sight(row.problem)

    def clear_errors(self) -> None:
        """Take away every sentence under a field."""
        for row in self._rows.values():
            row.set_problem("")

    def set_enabled_paths(self, paths: Collection[str] | None, why_not: str = LOCKED) -> None:
        """Let only some fields be changed; None lets all.

        Parameters
        ----------
        paths
            Dotted paths that stay enabled.
        why_not
            Reason shown in the tooltip of the others.
        """
        self._enabled_paths = None if paths is None else frozenset(paths)
        self._why_locked = why_not
        self._apply_enabled()

    def set_left_out(self, paths: Collection[str]) -> None:
        """Hide some fields, because what they set is of no use at present; an error brings one back into sight."""
        self._not_now = frozenset(paths)
        self._refresh()

    def set_suggestions(self, path: str, names: Sequence[str]) -> None:
        """Offer names (columns of the data) for a text or a list; they can still be typed."""
        self._suggestions[path] = tuple(names)
        editor = self._rows[path].editor if path in self._rows else None
        if isinstance(editor, SuggestingEditor):
            editor.set_suggestions(names)

    def set_advanced(self, on: bool) -> None:
        """Show the advanced face or the basic one."""
        self._advanced.setChecked(on)

    def paths(self) -> list[str]:
        """Return the dotted paths of the fields, in the order of the form."""
        return list(self._rows)

    def row(self, path: str) -> FieldRow:
        """Return the row of a field."""
        return self._rows[path]

    def values(self) -> dict[str, Any]:
        """Return what the form shows, by dotted path."""
        return {path: row.value() for path, row in self._rows.items()}

    def _part(self, spec: BaseModel) -> BaseModel:
        return getattr(spec, self._section) if self._section and isinstance(spec, RunSpec) else spec

    # -- building --------------------------------------------------------------------------------------------

    def _build_frame(self, *, scrolling: bool) -> None:
        self._search = QLineEdit(self)
        self._search.setPlaceholderText("Search options")
        self._search.setAccessibleName("Search options")
        self._search.setClearButtonEnabled(True)
        self._search.textChanged.connect(self._refresh)
        self._advanced = QPushButton("Advanced", self)
        self._advanced.setCheckable(True)
        self._advanced.setToolTip("Show every option, also those one rarely needs")
        self._advanced.setAccessibleName("Show advanced options")
        self._advanced.toggled.connect(self._refresh)
        self._nothing = QLabel("", self)
        self._nothing.setProperty("secondary", "true")
        self._nothing.setWordWrap(True)
        self._body = QWidget()
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.setSpacing(2 * SPACE)
        bar = QHBoxLayout()
        bar.setSpacing(2 * SPACE)
        bar.addWidget(self._search, 1)
        bar.addWidget(self._advanced, 0, Qt.AlignmentFlag.AlignRight)  # a small toggle also where there is no search field
        outer.addLayout(bar)
        outer.addWidget(self._nothing)
        self._scroll = ColumnScroll(self) if scrolling else None
        if self._scroll is not None:
            self._scroll.show_widget(self._body)
        outer.addWidget(self._scroll or self._body, 1)

    def _build_rows(self, cls: type[BaseModel]) -> None:
        old = self._body
        self._body = QWidget()
        grid = QGridLayout(self._body)
        grid.setContentsMargins(0, 0, SPACE, SPACE)
        grid.setHorizontalSpacing(SPACE)
        grid.setVerticalSpacing(SPACE)
        grid.setColumnStretch(LABEL, 5)
        grid.setColumnStretch(FIELD, 7)
        self._rows, self._headings, self._cls = {}, {}, cls
        fields = [field for field in form_fields(cls, self._section) if field.name not in self._leave_out]
        line = 0
        for group in _groups_in_order(fields):
            line = self._add_group(group, [field for field in fields if field.group == group], grid, line)
        grid.setRowStretch(line, 1)
        if self._scroll is not None:
            self._scroll.show_widget(self._body)
        else:
            self.layout().replaceWidget(old, self._body)
            old.deleteLater()
        self._advanced.setVisible(any(field.advanced for field in fields))
        self._search.setVisible(len(fields) > 6)
        self._apply_baseline()
        self._apply_enabled()
        for path, names in self._suggestions.items():
            self.set_suggestions(path, names)

    def _add_group(self, group: str, fields: list[FormField], grid: QGridLayout, line: int) -> int:
        if group:
            heading = QLabel(group, self._body)
            heading.setProperty("heading", "true")
            heading.setContentsMargins(0, 2 * SPACE if line else 0, 0, 0)
            grid.addWidget(heading, line, MARK, 1, RESET + 1)
            self._headings[group] = heading
            line += 1
        before: QWidget | None = None
        for field in fields:
            row = FieldRow(field, grid, line, self._body)
            row.edited.connect(self._edited)
            row.rejected.connect(self.rejected)
            self._rows[field.path] = row
            if before is not None:
                QWidget.setTabOrder(before, row.editor)
            QWidget.setTabOrder(row.editor, row.reset)
            before = row.reset
            line += 3
        return line

    # -- state -----------------------------------------------------------------------------------------------

    def _edited(self, path: str, value: Any) -> None:
        self._rows[path].editor.set_value(value)
        self._rows[path].refresh_mark()
        self._count_changes()
        self.changed.emit({path: value})

    def _apply_baseline(self) -> None:
        if self._cls is None:
            return
        part = None if self._baseline is None else self._part(self._baseline)
        for row in self._rows.values():
            if part is not None and hasattr(part, row.field.name):
                row.set_baseline(getattr(part, row.field.name), self._baseline_name)
            elif row.field.name in self._of_family[1]:
                row.set_baseline(self._of_family[1][row.field.name], f"the default of {self._of_family[0]}")
            else:
                row.set_baseline(row.field.default)
        self._count_changes()

    def _apply_enabled(self) -> None:
        allowed = self._enabled_paths
        for path, row in self._rows.items():
            row.set_enabled(allowed is None or path in allowed, self._why_locked)

    def _refresh(self) -> None:
        needle, advanced = self._search.text().strip(), self._advanced.isChecked()
        for path, row in self._rows.items():
            wanted = row.field.matches(needle) if needle else advanced or not row.field.advanced
            row.set_shown(wanted and path not in self._not_now)
        for group, heading in self._headings.items():
            heading.setVisible(any(row.is_shown() for row in self._rows.values() if row.field.group == group))
        found = any(row.is_shown() for row in self._rows.values())
        self._nothing.setText(f"No option matches '{needle}'." if needle and not found else "")
        self._nothing.setVisible(bool(self._nothing.text()))
        self._count_changes()

    def _count_changes(self) -> None:
        hidden = sum(row.field.advanced and row.is_changed() and path not in self._not_now for path, row in self._rows.items())
        self._advanced.setText(f"Advanced ({hidden} changed)" if hidden else "Advanced")


def _groups_in_order(fields: Sequence[FormField]) -> list[str]:
    """Return the groups as they are declared, those of which the basic face shows nothing last."""
    groups = dict.fromkeys(field.group for field in fields)
    return sorted(groups, key=lambda group: all(field.advanced for field in fields if field.group == group))
