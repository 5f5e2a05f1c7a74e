"""Step 4: the weight of every loss term, live while a run trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QCheckBox, QVBoxLayout, QWidget

from cellweave.app.forms import LossWeightsForm
from cellweave.app.panels.parts import text
from cellweave.app.state.session import Session
from cellweave.core.spec import RunSpec

if TYPE_CHECKING:
    from cellweave.core.study.study import Study

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
        self._session = session
        self.hint = text(RESTING, secondary=True)
        self.live = QCheckBox("Act on the run that trains")
        self.live.setAccessibleName("Act on the run that trains")
        self.live.setChecked(True)
        self.live.setVisible(False)
        self.live.toggled.connect(self.liveToggled)
        self.form = LossWeightsForm()
        self.form.weightChanged.connect(self._edit)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(12, 12, 12, 16)
        layout.setSpacing(8)
        layout.addWidget(self.hint)
        layout.addWidget(self.live)
        layout.addWidget(self.form, 1)
        session.editor.changed.connect(self._show)
        session.study_changed.connect(self._know)
        self._show(session.spec)
        self._know(session.study)

    def _show(self, spec: RunSpec) -> None:
        self.form.set_spec(spec)

    def _know(self, study: Study | None) -> None:
        self.form.set_modalities(None if study is None else frozenset(study.modalities))

    def _edit(self, term: str, weight: float) -> None:
        self._session.editor.edit({f"losses.weights.{term}": weight}, f"weight of {term.replace('_', ' ')}")

    def set_running(self, name: str) -> None:
        """Say that a run trains (or, with an empty name, that none does)."""
        self.live.setVisible(bool(name))
        self.hint.setText(f"A change takes effect in '{name}' at its next step and is marked on its curves." if name else RESTING)
