"""Mapping new data onto a trained run: files, what fits and what does not, and how long to learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QDialog,
    QFileDialog,
    QFrame,
    QGridLayout,
    QLineEdit,
    QListWidget,
    QScrollArea,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from cellweave.app.panels.checks import MarkLabel
from cellweave.app.panels.parts import button, clear, heading, row, set_look, subheading, text
from cellweave.core.errors import Cancelled, CellweaveError
from cellweave.core.study.checks import Check, Level

if TYPE_CHECKING:
    from cellweave.app.state.results import RunResults
    from cellweave.app.views.context import ViewContext
    from cellweave.app.workers.tasks import Task
    from cellweave.core.spec import RunSpec

FILES = "Single-cell data (*.h5ad *.h5mu *.h5 *.loom *.csv *.tsv *.csv.gz);;All files (*)"


class MapDialog(QDialog):
    """Chooses the new data, shows the checks, and begins the run.

    Parameters
    ----------
    context
        What a view is given of the window.
    results
        The reference.
    begin
        Takes the spec of the run that maps.
    parent
        The window.
    """

    def __init__(self, context: ViewContext, results: RunResults, begin: Callable[[RunSpec], object], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle(f"Map new data onto {results.label}")
        self._context, self._results, self._begin = context, results, begin
        self._task: Task | None = None
        self._there = True
        self.paths: list[str] = []
        self.checks: tuple[Check, ...] = ()
        self.changes: dict[str, Any] = {}
        self._build()
        self._show()

    def _build(self) -> None:
        words = (
            "What is new in the data, their batches above all, is learned; everything else stays as the run learned it, so that the new cells come to lie "
            "among those of the reference."
        )
        self.files = QListWidget()
        self.files.setAccessibleName("Files of the new data")
        self.files.setMaximumHeight(self.fontMetrics().height() * 3 + 8)
        self.add = button("Choose files…", "add-file", self._ask)
        self.name = QLineEdit(f"{self._results.name} + new data")
        self.name.setAccessibleName("Name of the run")
        self.epochs = QSpinBox()
        self.epochs.setRange(1, 100_000)
        self.epochs.setValue(100)
        self.epochs.setSuffix(" epochs")
        self.epochs.setAccessibleName("Epochs")
        self.seed = QSpinBox()
        self.seed.setRange(0, 2**31 - 1)
        self.seed.setAccessibleName("Seed")
        fields = QGridLayout()
        for line, (title, field) in enumerate((("Name", self.name), ("Passes over the new cells", self.epochs), ("Seed", self.seed))):
            label = text(title, wrap=False)
            label.setBuddy(field)
            fields.addWidget(label, line, 0)
            fields.addWidget(field, line, 1)
        fields.setColumnStretch(1, 1)
        holder = QWidget()
        self.found = QGridLayout(holder)
        self.found.setColumnStretch(1, 1)
        self.found.setAlignment(Qt.AlignmentFlag.AlignTop)
        scroll = QScrollArea()
        scroll.setFrameShape(QFrame.Shape.NoFrame)
        scroll.setWidgetResizable(True)
        scroll.setWidget(holder)
        scroll.setAccessibleName("Checks")
        self.said = text("", secondary=True)
        self.said.setAccessibleName("What is missing")
        self.start = button("Map", "play", self.begin, primary=True)
        close = button("Close", "", self.reject)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(16, 16, 16, 16)
        layout.setSpacing(12)
        layout.addWidget(heading("Map new data onto this run"))
        layout.addWidget(text(words, secondary=True))
        layout.addLayout(row(subheading("New data"), None, self.add))
        layout.addWidget(self.files)
        layout.addLayout(fields)
        layout.addWidget(subheading("Checks"))
        layout.addWidget(scroll, 1)
        foot = row(self.said, close, self.start)
        foot.setStretchFactor(self.said, 1)
        layout.addLayout(foot)
        em = self.fontMetrics().horizontalAdvance("m")
        self.resize(em * 50, em * 50)

    # ------------------------------------------------------------------ the files

    def _ask(self) -> None:
        found, _ = QFileDialog.getOpenFileNames(self, "New data", self._context.session.settings.last_folder, FILES)
        if found:
            self.set_paths(found)

    def set_paths(self, paths: Sequence[str]) -> None:
        """Take files, and look whether they fit."""
        self.paths, self.changes = list(paths), {}
        self.files.clear()
        self.files.addItems([Path(path).name for path in self.paths])
        self._look()

    def mend(self, changes: Mapping[str, Any]) -> None:
        """Read the files otherwise, as a check proposes, and look again."""
        self.changes |= changes
        self._look()

    def _look(self) -> None:
        self.checks = ()
        reference, files, changes = self._results.folder, list(self.paths), dict(self.changes)
        if self._task is not None:
            self._task.cancel()

        def work(report: Any) -> tuple[Check, ...]:
            from cellweave.core.query.mapping_checks import mapping_checks

            return mapping_checks(reference, files, lambda words: report(words, None), changes)

        def done(checks: tuple[Check, ...]) -> None:
            if self._there:
                self._task, self.checks = None, checks
                self._show()

        def failed(error: Exception, details: str) -> None:
            if self._there and not isinstance(error, Cancelled):
                self._task = None
                self._show()
                self._context.show_error(error, details)

        self._task = self._context.run(work, done, failed, doing="Looking at the new data")
        self._show()

    def _show(self) -> None:
        clear(self.found)
        order = {Level.FAIL: 0, Level.WARN: 1, Level.OK: 2}
        for line, check in enumerate(sorted(self.checks, key=lambda one: order[one.level])):
            self.found.addWidget(MarkLabel(check.level), line, 0, Qt.AlignmentFlag.AlignTop)
            said = QVBoxLayout()
            said.addWidget(text(check.text))
            for fix in check.fixes:
                said.addLayout(row(button(fix.label, "", lambda *_, changes=fix.changes: self.mend(changes), link=True), None))
            self.found.addLayout(said, line, 1)
        bad = any(check.level is Level.FAIL for check in self.checks)
        why = ""
        if not self.paths:
            why = "Choose the files of the new data."
        elif self._task is not None:
            why = "The new data are being looked at."
        elif bad or not self.checks:
            why = "These data cannot be mapped; the check above says why."
        self.said.setText(why)
        set_look(self.said, "tone", "bad" if bad else "")
        self.start.setEnabled(not why)

    # ------------------------------------------------------------------ beginning

    def begin(self) -> None:
        """Begin the run that maps."""
        reference, paths = self._results.folder, list(self.paths)
        changes = {**self.changes, "name": self.name.text().strip(), "training.max_epochs": self.epochs.value(), "training.seed": self.seed.value()}

        def work(_report: Any) -> RunSpec:
            from cellweave.core.query.surgery import mapping_spec

            return mapping_spec(reference, paths, changes)

        def done(spec: RunSpec) -> None:
            if self._there:
                self._begin(spec)
                self.accept()

        def failed(error: Exception, details: str) -> None:
            if not self._there:
                return
            self._task = None
            self.start.setEnabled(True)
            if isinstance(error, CellweaveError):
                self.said.setText(str(error))
                set_look(self.said, "tone", "bad")
            else:
                self._context.show_error(error, details)

        self.start.setEnabled(False)
        self._task = self._context.run(work, done, failed)

    def done(self, result: int) -> None:
        """Stop what is still being looked at."""
        self._there = False
        if self._task is not None:
            self._task.cancel()
        super().done(result)
