"""Step 5: how the model is fitted, what is computed afterwards, and whether it fits into memory and time."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Any

from qtpy.QtWidgets import QVBoxLayout, QWidget

from cellweave.app.forms import SpecForm
from cellweave.app.panels.checks import MarkLabel
from cellweave.app.panels.parts import card, row, subheading, text
from cellweave.app.state.session import Session
from cellweave.core.spec import RunSpec
from cellweave.core.spec.optimisers import unused_settings
from cellweave.core.study.checks import Level


class TrainingPanel(QWidget):
    """The body of step 5."""

    def __init__(self, session: Session, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._session = session
        self.estimate = text("The estimate appears once data are open.", secondary=True)
        self.estimate.setAccessibleName("Estimate of memory and time")
        self.marks = {}
        for name, level in (("fits", Level.OK), ("tight", Level.WARN), ("does not fit", Level.FAIL)):
            self.marks[name] = MarkLabel(level)
            self.marks[name].setAccessibleName(name)
            self.marks[name].setToolTip(name)
            self.marks[name].setVisible(False)
        line = QWidget()
        inside = row(*self.marks.values(), self.estimate)
        inside.setStretch(len(self.marks), 1)
        line.setLayout(inside)
        self.running = text("", secondary=True)
        self.running.setVisible(False)
        self.form = SpecForm("training", scrolling=False)
        self.analysis = SpecForm("analysis", scrolling=False)
        for form in (self.form, self.analysis):
            form.changed.connect(session.editor.edit)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(12, 12, 12, 16)
        layout.setSpacing(12)
        layout.addWidget(card(line, margin=10))
        layout.addWidget(self.running)
        layout.addWidget(self.form)
        layout.addWidget(subheading("After training"))
        layout.addWidget(self.analysis)
        layout.addStretch(1)
        session.editor.changed.connect(self._show)
        session.study_changed.connect(self._study)
        session.editor.refused.connect(self._refused)
        self._show(session.spec)

    def _refused(self, paths: tuple[str, ...], sentence: str) -> None:
        for form in (self.form, self.analysis):
            own = [path for path in paths if path in form.paths()]
            if own:
                form.set_spec(self._session.spec)
                form.set_error(own[0], sentence)

    def _show(self, spec: RunSpec) -> None:
        for form in (self.form, self.analysis):
            form.clear_errors()
            form.set_spec(spec)
        unused = unused_settings(spec.training, spec.model)
        self.form.set_left_out([path for path in (f"training.{name}" for name in unused) if path in self.form.paths()])
        self._show_estimate()

    def _study(self, study: Any) -> None:
        columns = [str(name) for name in study.obs.columns] if study is not None else []
        self.analysis.set_suggestions("analysis.colour_by", columns)
        self._show_estimate()

    def _show_estimate(self) -> None:
        study, spec = self._session.study, self._session.spec
        if study is None:
            self.estimate.setText("The estimate appears once data are open.")
            for mark in self.marks.values():
                mark.setVisible(False)
            return
        found = estimate_of(self._session, spec)
        self.estimate.setText(f"{found.text} {found.mend}".strip())
        for name, mark in self.marks.items():
            mark.setVisible(name == found.fit.value)

    def set_running(self, name: str) -> None:
        """Say that a run trains: what is set here is for the next one."""
        self.running.setText(f"'{name}' trains with the settings it began with; changes here are for the next run." if name else "")
        self.running.setVisible(bool(name))


def estimate_of(session: Session, spec: RunSpec) -> Any:
    """Return the engine's estimate for the open study."""
    from cellweave.core.training.estimate import estimate, stream_sizes

    study = session.study
    assert study is not None
    if spec.family.modalities == "one" and (spec.data.modality is None or spec.data.modality in study.modalities):
        modalities = [study.main_modality(spec.data.modality)]
    else:
        modalities = list(study.modalities.values())
    groups = set(spec.covariates.columns()) - set(spec.covariates.continuous)
    levels = sum(info.n_levels for info in session.columns if info.name in groups)
    n_cells = int(reduce(or_, [item.measured for item in modalities]).sum())
    return estimate(
        spec, n_cells, sum(item.n_features for item in modalities), sum(int(item.counts.nnz) for item in modalities), n_covariate_levels=levels,
        streams=stream_sizes(spec, study),
    )  # fmt: skip
