"""The list of pre-flight checks: a mark, a sentence, and a button that mends it."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtWidgets import QGridLayout, QLabel, QVBoxLayout, QWidget

from cellweave.app import theme
from cellweave.app.panels.parts import ElidedButton, button, clear, subheading, text
from cellweave.core.study.checks import Check, Fix, Level

MARKS = {Level.OK: ("check", "good", "Passed"), Level.WARN: ("warn", "warn", "Warning"), Level.FAIL: ("fail", "bad", "Blocks training")}


#: Steps that show what was found of their own fields; everything else stands with the data.
OWN_STEPS = ("covariates", "losses")


def of_step(checks: Sequence[Check], step: str) -> list[Check]:
    """Return the findings that a step shows: ``"data"``, or one of :data:`OWN_STEPS`."""
    return [check for check in checks if step == next((own for own in OWN_STEPS if check.where.startswith(own)), "data")]


class MarkLabel(QLabel):
    """A finding's mark, drawn in the theme's colour; its meaning is its accessible name, never the colour alone."""

    def __init__(self, level: Level) -> None:
        super().__init__()
        self._icon, self._token, words = MARKS[level]
        self.setToolTip(words)
        self.setAccessibleName(words)
        self._draw()
        theme.notifier().changed.connect(self._draw)

    def _draw(self, *_: object) -> None:
        side = round(self.fontMetrics().height() * 1.1)
        self.setPixmap(theme.icon(self._icon, self._token).pixmap(QSize(side, side), self.devicePixelRatioF()))


class ChecksList(QWidget):
    """Findings that need attention, and a line that says how many checks passed.

    Attributes
    ----------
    fixAsked
        The :class:`Fix` whose button was pressed.
    """

    fixAsked = Signal(object)  # noqa: N815

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._checks: tuple[Check, ...] = ()
        self._all = False
        self._layout = QVBoxLayout(self)
        self._layout.setContentsMargins(0, 0, 0, 0)
        self._layout.setSpacing(10)
        self.setAccessibleName("Checks")

    def set_checks(self, checks: Sequence[Check]) -> None:
        """Show other findings, the gravest first."""
        order = {Level.FAIL: 0, Level.WARN: 1, Level.OK: 2}
        self._checks = tuple(sorted(checks, key=lambda check: order[check.level]))
        self._fill()

    def _fill(self) -> None:
        clear(self._layout)
        passed = [check for check in self._checks if check.level is Level.OK]
        for check in self._checks:
            if check.level is not Level.OK or self._all:
                self._layout.addWidget(self._row(check))
        if passed:
            words = f"{len(passed)} check{'s' if len(passed) > 1 else ''} passed"
            line = button(f"Hide the {words}" if self._all else words, "check", self._toggle, link=True)
            self._layout.addWidget(line, 0, Qt.AlignmentFlag.AlignLeft)

    def _toggle(self) -> None:
        self._all = not self._all
        self._fill()

    def _row(self, check: Check) -> QWidget:
        body = QWidget()
        body.setAccessibleName(f"{MARKS[check.level][2]}: {check.title}. {check.text}")
        grid = QGridLayout(body)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setHorizontalSpacing(8)
        grid.setVerticalSpacing(2)
        grid.addWidget(MarkLabel(check.level), 0, 0, Qt.AlignmentFlag.AlignTop)
        grid.addWidget(subheading(check.title), 0, 1)
        if check.text:
            grid.addWidget(text(check.text, secondary=True), 1, 1)
        for number, fix in enumerate(check.fixes):
            grid.addWidget(self._fix(fix), 2 + number, 1, Qt.AlignmentFlag.AlignLeft)
        grid.setColumnStretch(1, 1)
        return body

    def _fix(self, fix: Fix) -> QWidget:
        return ElidedButton(fix.label, lambda: self.fixAsked.emit(fix))
