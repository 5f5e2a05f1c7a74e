"""Choosing what of a trained model's imputation is judged: modality, features, batches, cells, and what it may look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QComboBox, QDialog, QGridLayout, QVBoxLayout, QWidget

from cellweave.app.forms import SpecForm
from cellweave.app.panels.parts import button, heading, row, text
from cellweave.core.query.questions import JudgeOptions
from cellweave.core.spec import explain

if TYPE_CHECKING:
    from cellweave.app.state.results import RunResults
    from cellweave.app.views.context import ViewContext

MOST_SUGGESTED = 2000


class JudgeDialog(QDialog):
    """A form over :class:`JudgeOptions`, and which cells.

    Parameters
    ----------
    context
        What a view is given of the window.
    results
        The run whose imputation is judged.
    options
        What is chosen so far.
    batches
        Those of the run.
    chosen
        Told every choice, and the rows of the cells or None for all.
    judge
        Begins to judge.
    parent
        The view.
    """

    def __init__(
        self, context: ViewContext, results: RunResults, options: JudgeOptions, batches: tuple[str, ...],
        chosen: Callable[[JudgeOptions, np.ndarray | None], None], judge: Callable[[], None], parent: QWidget | None = None,
    ) -> None:  # fmt: skip
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle(f"What is judged · {results.label}")
        self.options, self._chosen, self._judge = options, chosen, judge
        self.form = SpecForm.for_class(JudgeOptions, scrolling=False)
        self.form.set_spec(options)
        self.form.changed.connect(self._changed)
        self.cells = QComboBox()
        self.cells.setAccessibleName("Which cells")
        self.cells.addItem("All cells", None)
        if len(context.selection):
            self.cells.addItem(f"The {len(context.selection):,} selected cells", context.selection)
        self.cells.currentIndexChanged.connect(self._tell)
        self._suggest(context, results, batches)
        label = text("Which cells", wrap=False)
        label.setBuddy(self.cells)
        for part in (label, self.cells):
            part.setVisible(self.cells.count() > 1)
        line = QGridLayout()
        line.setContentsMargins(11, 0, 35, 0)  # as the fields above, between their marks and their ways back
        line.addWidget(label, 0, 0)
        line.addWidget(self.cells, 0, 1)
        line.setColumnStretch(0, 5)
        line.setColumnStretch(1, 6)
        self.start = button("Judge", "play", self._begin, primary=True)
        self.usual = button("Back to the usual", "", self._reset)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(16, 16, 16, 16)
        layout.setSpacing(8)
        layout.addWidget(heading("What is judged"))
        layout.addWidget(text("Known values are hidden from the model, which imputes them; these are laid beside what was measured.", secondary=True))
        layout.addWidget(self.form)
        layout.addLayout(line)
        layout.addStretch(1)
        layout.addLayout(row(self.usual, None, button("Close", "", self.reject), self.start, spacing=8))
        self.form.row("modality").editor.setFocus()
        self.resize(self.fontMetrics().horizontalAdvance("m") * 40, self.sizeHint().height())

    def _suggest(self, context: ViewContext, results: RunResults, batches: tuple[str, ...]) -> None:
        """Propose modalities and batches of the run, and the features of the data where those are open."""
        for name in ("modality", "given"):
            self.form.set_suggestions(name, list(results.spec.data.layers))
        self.form.set_suggestions("batches", batches)
        study = context.session.study
        if study is not None:
            names = [str(name) for modality in study.modalities.values() for name in modality.var.index]
            if len(names) <= MOST_SUGGESTED:
                self.form.set_suggestions("features", names)

    def _changed(self, changes: dict[str, Any]) -> None:
        try:
            self.options = JudgeOptions.model_validate({**self.options.model_dump(), **changes})
        except ValidationError as error:
            for path in changes:
                self.form.set_error(path, explain(error).removeprefix("The spec is not valid: "))
            return
        self.form.clear_errors()
        self.form.set_spec(self.options)
        self._tell()

    def _tell(self, *_: object) -> None:
        self._chosen(self.options, self.cells.currentData())

    def _reset(self) -> None:
        self.cells.setCurrentIndex(0)
        self._changed(JudgeOptions().model_dump())

    def _begin(self) -> None:
        self._judge()
        self.accept()
