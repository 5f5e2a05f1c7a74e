"""Step 4: the weight of every loss term, live while a run trains."""

from __future__ import annotations

from qtpy.QtCore import QTimer, Signal
from qtpy.QtWidgets import QCheckBox, QVBoxLayout, QWidget

from cellweave.app.forms import LossWeightsForm
from cellweave.app.panels.checks import ChecksList, of_step
from cellweave.app.panels.parts import text
from cellweave.app.panels.workflow import Mark
from cellweave.app.state.session import Session
from cellweave.core.study.checks import Check, Level

RESTING = "The objective is the sum of the terms, each times its weight. 0 switches a term off."


class LossesPanel(QWidget):
    """The body of step 4.

    Attributes
    ----------
    liveToggled
        Whether changes act on the run that trains.
    """

    liveToggled = Signal(bool)  # noqa: N815

    def __init__(self, session: Session, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._session, self._stale = session, False
        self.hint = text(RESTING, secondary=True)
        self.live = QCheckBox("Act on the run that trains")
        self.live.setAccessibleName("Act on the run that trains")
        self.live.setChecked(True)
        self.live.setVisible(False)
        self.live.toggled.connect(self.liveToggled)
        self.checks = ChecksList()
        self.checks.fixAsked.connect(lambda fix: session.editor.edit(fix.changes, fix.label))
        self.checks.setVisible(False)
        self._form = LossWeightsForm()
        self.form.weightChanged.connect(self._edit)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(12, 12, 12, 16)
        layout.setSpacing(8)
        layout.addWidget(self.hint)
        layout.addWidget(self.live)
        layout.addWidget(self.form, 1)
        layout.addWidget(self.checks)  # behind the sliders, which must not move while one is dragged
        self._waiting = QTimer(self)
        self._waiting.setSingleShot(True)
        self._waiting.setInterval(0)
        self._waiting.timeout.connect(self._catch_up)
        session.editor.changed.connect(self._show)
        session.study_changed.connect(self._show)
        session.checks_changed.connect(self._show_checks)
        self._show()

    @property
    def form(self) -> LossWeightsForm:
        """The sliders, as the spec has them now."""
        self._catch_up()
        return self._form

    def _show(self, *_: object) -> None:
        """Show another spec or study; out of sight the rows of another model are made when the slot that changed it is over."""
        self._stale = True
        if self.isVisible():
            self._catch_up()
        else:
            self._waiting.start()

    def _catch_up(self) -> None:
        if self._stale:
            self._stale = False
            self._form.set_spec(self._session.spec, self._session.modalities)

    def _show_checks(self, checks: tuple[Check, ...]) -> None:
        own = [check for check in of_step(checks, "losses") if check.level is not Level.OK]
        self.checks.set_checks(own)
        self.checks.setVisible(bool(own))

    def mark(self) -> Mark:
        """Return the mark of the step's header."""
        levels = {check.level for check in of_step(self._session.checks, "losses")}
        return "fail" if Level.FAIL in levels else "warn" if Level.WARN in levels else "check" if self._session.study is not None else ""

    def _edit(self, term: str, weight: float) -> None:
        self._session.editor.edit({f"losses.weights.{term}": weight}, f"weight of {term.replace('_', ' ')}")

    def set_running(self, name: str) -> None:
        """Say that a run trains (or, with an empty name, that none does)."""
        self.live.setVisible(bool(name))
        self.hint.setText(f"A change takes effect in '{name}' at its next step and is marked on its curves." if name else RESTING)
