"""A number field: unit inside, empty means automatic, steps in powers where the field says so."""

from __future__ import annotations

import math
import re

from qtpy.QtCore import QEvent, QRegularExpression, QSize, Qt, Signal
from qtpy.QtGui import QFocusEvent, QKeyEvent, QRegularExpressionValidator, QResizeEvent, QWheelEvent
from qtpy.QtWidgets import QAbstractSpinBox, QLabel, QWidget

from cellweave.app.forms.fields import FormField
from cellweave.app.theme import tabular_font

_GROUPED = re.compile(r"[1-9]\d{0,2}(,\d{3})+")


def number_text(value: float | None) -> str:
    """Return the shortest text that reads back as the same number."""
    if value is None:
        return ""
    if isinstance(value, int):
        return str(value)
    short = f"{value:.6g}"
    return short if float(short) == value else repr(value)


def parse_number(text: str, *, whole: bool) -> float | int | None:
    """Read what a person typed.

    Parameters
    ----------
    text
        With a point or a comma as decimal sign; whole numbers may be grouped (``10,000``).
    whole
        Whether the field holds whole numbers.

    Returns
    -------
    int, float or None
        None for an empty text.

    Raises
    ------
    ValueError
        With the sentence to show.
    """
    text = text.strip().replace("\u00a0", "").replace("_", "")
    if not text:
        return None
    if whole and _GROUPED.fullmatch(text):
        text = text.replace(",", "")
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        message = f"'{text}' is not a number."
        raise ValueError(message) from None
    if not math.isfinite(value):
        message = f"'{text}' is not a number one can use."
        raise ValueError(message)
    if whole:
        if value != int(value):
            message = f"'{text}' is not a whole number."
            raise ValueError(message)
        return int(value)
    return value


def step_number(value: float, steps: int, *, whole: bool, log: bool) -> float:
    """Return ``value`` moved by ``steps`` steps.

    Whole numbers move by 1, or double and halve where ``log``. Others move through 1, 2, 5, 10 ... where ``log``,
    else by a tenth of their own power of ten, so that 0.9 moves by 0.01 steps of size 0.1.
    """
    for _ in range(abs(steps)):
        value = _one_step(value, 1 if steps > 0 else -1, whole=whole, log=log)
    return value


def _one_step(value: float, sign: int, *, whole: bool, log: bool) -> float:
    if whole:
        if not log or value < 1:
            return value + sign
        return value * 2 if sign > 0 else max(value // 2, 1 if value > 1 else 0)
    if log:
        return _next_125(value, sign)
    size = 0.1 if abs(value) < 10 else 10 ** (math.floor(math.log10(abs(value))) - 1)
    return round(value + sign * size, 10)


def _next_125(value: float, sign: int) -> float:
    """Return the next member of 1, 2, 5, 10 ... above or below a number; 0 is followed by 1e-6."""
    if value <= 0:
        return 1e-6 if sign > 0 else 0.0
    power = math.floor(math.log10(value))
    ladder = [float(f"{m}e{p}") for p in range(power - 1, power + 2) for m in (1, 2, 5)]
    if sign > 0:
        return next(item for item in ladder if item > value * (1 + 1e-9))
    below = [item for item in ladder if item < value * (1 - 1e-9)]
    return below[-1] if below[-1] >= 1e-12 else 0.0


class NumberBox(QAbstractSpinBox):
    """A spin box over one field of the spec.

    Typing takes effect with Enter or on leaving the field; arrows, at once. The wheel does nothing unless the
    field has the focus.

    Parameters
    ----------
    field
        What it edits: limits, unit, steps.
    parent
        Owner.
    """

    edited = Signal(object)
    rejected = Signal(str)

    def __init__(self, field: FormField, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._field = field
        self._value: float | None = None
        self._remembered: float | None = None
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setAccelerated(False)
        self.setFont(tabular_font())
        self._unit = QLabel(field.unit, self.lineEdit())
        self._unit.setProperty("secondary", "true")
        self._unit.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self._unit.setVisible(bool(field.unit))
        # What may become a number can be typed; the sentence about the rest comes with Enter.
        self.lineEdit().setValidator(QRegularExpressionValidator(QRegularExpression(r"[0-9.,+\-eE_\s]*"), self))
        self.lineEdit().installEventFilter(self)
        self.editingFinished.connect(self._commit)
        self.lineEdit().textChanged.connect(self._place_unit)

    # -- value -----------------------------------------------------------------------------------------------

    def value(self) -> float | None:
        """Return the number, or None where it is automatic."""
        return self._value

    def set_value(self, value: float | None) -> None:
        """Show a number without saying that it was edited."""
        if value is not None:
            self._remembered = value
        unchanged = value == self._value and type(value) is type(self._value)
        self._value = value
        if not unchanged or not self.hasFocus():
            self.lineEdit().setText(number_text(value))

    def remembered(self) -> float | None:
        """Return the last number there was, for going back from automatic."""
        return self._remembered

    def set_placeholder(self, text: str) -> None:
        """Set what the empty field says."""
        self.lineEdit().setPlaceholderText(text)
        self._place_unit()

    def _commit(self) -> None:
        if self.lineEdit().text() == number_text(self._value):
            return
        try:
            value = parse_number(self.lineEdit().text(), whole=self._field.kind == "int")
        except ValueError as error:
            self.rejected.emit(str(error))
            return
        if value is not None and self._field.kind == "float":
            value = float(value)
        if value is None and not self._field.nullable:
            self.rejected.emit(f"{self._field.label} needs a number.")
            return
        problem = self._field.problem(value)
        if problem:
            self.rejected.emit(problem)
            return
        self._take(value)

    def _take(self, value: float | None) -> None:
        same = value == self._value
        self.set_value(value)
        self.lineEdit().setText(number_text(value))
        if same:
            self.rejected.emit("")  # an earlier complaint no longer holds
        else:
            self.edited.emit(value)

    # -- steps -----------------------------------------------------------------------------------------------

    def stepEnabled(self) -> QAbstractSpinBox.StepEnabledFlag:  # noqa: N802
        """Tell Qt which arrows can be pressed."""
        flags = QAbstractSpinBox.StepEnabledFlag
        if self.isReadOnly():
            return flags.StepNone
        now = self._value
        up = now is None or self._field.high is None or now < self._field.high
        down = now is not None and (self._field.low is None or now > self._field.low)
        return (flags.StepUpEnabled if up else flags.StepNone) | (flags.StepDownEnabled if down else flags.StepNone)

    def stepBy(self, steps: int) -> None:  # noqa: N802
        """Move by whole steps, never beyond the limits."""
        field, whole = self._field, self._field.kind == "int"
        try:
            now = parse_number(self.lineEdit().text(), whole=whole)
        except ValueError:
            now = self._value
        if now is None:
            start = self._remembered if self._remembered is not None else max(field.low or 0, 1 if whole else 0)
            self._take(int(start) if whole else float(start))
            return
        value = step_number(now, steps, whole=whole, log=field.log)
        if field.problem(value):
            limit = field.high if steps > 0 else field.low
            open_end = field.high_open if steps > 0 else field.low_open
            value = now if limit is None or open_end else limit
        self._take(int(value) if whole else float(value))
        self.lineEdit().selectAll()

    # -- manners ---------------------------------------------------------------------------------------------

    def wheelEvent(self, event: QWheelEvent) -> None:  # noqa: N802
        """Scroll the form, not the number, unless one is in the field."""
        if self.hasFocus():
            super().wheelEvent(event)
        else:
            event.ignore()

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        """Escape brings back the number that holds."""
        if event.key() == Qt.Key.Key_Escape and self.lineEdit().text() != number_text(self._value):
            self.lineEdit().setText(number_text(self._value))
            self.rejected.emit("")
            return
        super().keyPressEvent(event)

    def focusInEvent(self, event: QFocusEvent) -> None:  # noqa: N802
        """Select the number where one arrives by keyboard."""
        super().focusInEvent(event)
        if event.reason() in {Qt.FocusReason.TabFocusReason, Qt.FocusReason.BacktabFocusReason}:
            self.lineEdit().selectAll()

    def eventFilter(self, watched: object, event: QEvent) -> bool:  # noqa: N802
        """Keep the unit at the right end of the field."""
        if watched is self.lineEdit() and event.type() == QEvent.Type.Resize:
            self._place_unit()
        return super().eventFilter(watched, event)  # type: ignore[arg-type]

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        """Place the unit anew."""
        super().resizeEvent(event)
        self._place_unit()

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802
        """Follow a change of the font."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.FontChange and hasattr(self, "_unit"):
            self._place_unit()

    def _place_unit(self) -> None:
        edit, unit, metrics = self.lineEdit(), self._unit, self.fontMetrics()
        unit.adjustSize()
        needed = unit.width() + metrics.horizontalAdvance("0")
        written = metrics.horizontalAdvance(f"{edit.text() or edit.placeholderText()}0")  # and the cursor behind it
        room = max(written, metrics.horizontalAdvance("000"))
        fits = bool(self._field.unit) and edit.width() - needed >= room
        unit.setVisible(fits)
        edit.setTextMargins(0, 0, needed if fits else 0, 0)
        unit.setGeometry(edit.width() - needed + 2, 0, unit.width(), edit.height())

    def sizeHint(self) -> QSize:  # noqa: N802
        """Room for eight figures and the unit."""
        metrics = self.fontMetrics()
        width = metrics.horizontalAdvance("0" * 8 + self._field.unit) + 2 * metrics.height()
        return QSize(width, super().sizeHint().height())

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """Room for six figures; the unit is left out before a figure is."""
        metrics = self.fontMetrics()
        return QSize(metrics.horizontalAdvance("0" * 6) + 2 * metrics.height(), super().minimumSizeHint().height())
