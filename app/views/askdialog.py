"""Asking a trained model: what, of which cells, and how; the answer is kept in the run folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from qtpy.QtCore import Qt, QUrl
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import (
    QComboBox,
    QDialog,
    QGridLayout,
    QHBoxLayout,
    QListWidget,
    QListWidgetItem,
    QProgressBar,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from cellweave.app.forms import SpecForm
from cellweave.app.panels.parts import button, heading, row, set_look, text
from cellweave.app.views.tables import DataTable, TableColumn
from cellweave.core.errors import Cancelled, CellweaveError
from cellweave.core.query.questions import Question, questions_of
from cellweave.core.spec import explain
from cellweave.core.wording import counted

if TYPE_CHECKING:
    from cellweave.app.state.results import RunResults
    from cellweave.app.views.context import ViewContext
    from cellweave.app.workers.tasks import Task
    from cellweave.core.query.answering import Answer

FREE = 2**24 - 1  # Qt's own bound of a height
FORMATS = {".csv": "CSV table", ".h5ad": "AnnData (h5ad)", ".h5mu": "MuData (h5mu)", ".h5": "HDF5, written in chunks"}


class AskDialog(QDialog):
    """One list of questions, one form a question.

    Parameters
    ----------
    context
        What a view is given of the window.
    results
        The run that is asked.
    parent
        The window.
    """

    def __init__(self, context: ViewContext, results: RunResults, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle(f"Ask the model · {results.label}")
        self._context, self._results = context, results
        self._task: Task | None = None
        self._there = True
        self.answer: Answer | None = None
        self.forms: dict[str, SpecForm] = {}
        self.questions = questions_of(results.spec)
        self.options: dict[str, Any] = {question.name: question.options() for question in self.questions}
        self._build()
        self.list.setCurrentRow(0)

    def _build(self) -> None:
        self.list = QListWidget()
        self.list.setAccessibleName("Questions")
        for question in self.questions:
            item = QListWidgetItem(question.title)
            item.setToolTip(question.help)
            self.list.addItem(item)
        self.list.setSpacing(3)
        self.list.setFixedWidth(max(self.list.sizeHintForColumn(0) + 32, 160))
        self.list.currentRowChanged.connect(self._choose)
        self.title, self.help = heading(""), text("", secondary=True)
        self.stack = QStackedWidget()
        self.cells = QComboBox()
        self.cells.setAccessibleName("Which cells")
        chosen = self._context.selection
        self.cells.addItem("All cells", None)
        if len(chosen):
            self.cells.addItem(f"The {counted(len(chosen), 'selected cell')}", chosen)
        self.format = QComboBox()
        self.format.setAccessibleName("Kind of file")
        fields = QGridLayout()
        for line, (words, field) in enumerate((("Cells", self.cells), ("Write as", self.format))):
            label = text(words, wrap=False)
            label.setBuddy(field)
            fields.addWidget(label, line, 0)
            fields.addWidget(field, line, 1)
        fields.setColumnStretch(1, 1)
        self.said = text("", selectable=True)
        self.said.setAccessibleName("Answer")
        self.table = DataTable("Answer as a table", "Search…")
        self.copy = button("Save a copy as…", "save", self._save_copy)
        self.show_folder = button("Show in its folder", "folder", self._show_folder)
        self.progress = QProgressBar()
        self.progress.setTextVisible(False)
        self.progress.setAccessibleName("Progress")
        self.start = button("Ask", "play", self.ask, primary=True)
        self.stop = button("Cancel", "cancel", self.cancel)
        self.close_button = button("Close", "", self.reject)
        right = QVBoxLayout()
        right.setSpacing(8)
        right.addWidget(self.title)
        right.addWidget(self.help)
        right.addWidget(self.stack, 1)
        self._room = right
        right.addLayout(fields)
        right.addWidget(self.said)
        right.addWidget(self.table, 3)
        right.addLayout(row(self.copy, self.show_folder, None))
        right.addStretch(0)
        foot = row(spacing=8)
        foot.addWidget(self.progress, 1)
        foot.addStretch(0)
        for part in (self.stop, self.close_button, self.start):
            foot.addWidget(part)
        right.addLayout(foot)
        whole = QHBoxLayout(self)
        whole.setContentsMargins(16, 16, 16, 16)
        whole.setSpacing(16)
        whole.addWidget(self.list)
        whole.addLayout(right, 1)
        em = self.fontMetrics().horizontalAdvance("m")
        self.resize(em * 72, em * 50)
        self._busy(on=False)

    # ------------------------------------------------------------------ choosing

    @property
    def question(self) -> Question:
        """The chosen question."""
        return self.questions[max(0, self.list.currentRow())]

    def _choose(self, _row: int) -> None:
        question = self.question
        self.title.setText(question.title)
        self.help.setText(question.help)
        if question.name not in self.forms:
            form = SpecForm.for_class(question.options)
            form.changed.connect(self._changed)
            self._suggest(form)
            self.forms[question.name] = form
            self.stack.addWidget(form)
        self.stack.setCurrentWidget(self.forms[question.name])
        self.stack.setVisible(bool(self.forms[question.name].paths()))
        self.format.clear()
        for suffix in question.formats:
            self.format.addItem(FORMATS[suffix], suffix)
        self.say("")

    def _suggest(self, form: SpecForm) -> None:
        """Propose the batches and the modalities of the run."""
        cells, batch = self._results.cells, self._results.spec.covariates.batch
        if "as_batch" in form.paths() and cells is not None and batch in cells.columns:
            form.set_suggestions("as_batch", list(cells.columns[batch].levels or ()))
        for name in ("given", "modalities"):
            if name in form.paths():
                form.set_suggestions(name, list(self._results.spec.data.layers))

    def _changed(self, changes: dict[str, Any]) -> None:
        question = self.question
        form = self.forms[question.name]
        try:
            self.options[question.name] = question.options.model_validate({**self.options[question.name].model_dump(), **changes})
        except ValidationError as error:
            for path in changes:
                form.set_error(path, explain(error).removeprefix("The spec is not valid: "))
            return
        form.clear_errors()
        form.set_spec(self.options[question.name])

    # ------------------------------------------------------------------ asking

    def ask(self) -> None:
        """Ask; what comes of it is kept in the run folder."""
        if self._task is not None:
            return
        question, options, rows, suffix = self.question, self.options[self.question.name], self.cells.currentData(), self.format.currentData()
        context, results = self._context, self._results

        def work(report: Any) -> Answer:
            from cellweave.core.query.answering import ask

            run = context.opened(results, report)
            report("asking the model", None)
            return ask(run, question, options, rows, suffix=suffix)

        def done(answer: Answer) -> None:
            if not self._there:
                return
            self.answer = answer
            self._busy(on=False)
            self._tabulate()
            self.say("\n".join([*answer.words, f"Kept as {_inside(answer.path, results.folder)} with the run."]))

        def failed(error: Exception, details: str) -> None:
            if not self._there:
                return
            self._busy(on=False)
            self.say("", tone="")
            if isinstance(error, CellweaveError):
                self.say(str(error), tone="bad")
            elif not isinstance(error, Cancelled):
                context.show_error(error, details)

        self.answer = None
        self.say("")
        self._busy(on=True)
        self._task = context.run(work, done, failed, doing=question.title, progressed=self._told)

    def _told(self, words: str, share: float | None) -> None:
        if not self._there:
            return
        self.progress.setRange(0, 0 if share is None else 1000)
        self.progress.setValue(0 if share is None else round(1000 * share))

    def cancel(self) -> None:
        """Stop asking."""
        if self._task is not None:
            self._task.cancel()
            self.stop.setText("Cancelling…")
            self.stop.setEnabled(False)

    def _busy(self, *, on: bool) -> None:
        if not on:
            self._task = None
        self.start.setVisible(not on)
        self.stop.setVisible(on)
        self.stop.setEnabled(True)
        self.stop.setText("Cancel")
        self.progress.setVisible(on)
        self.progress.setRange(0, 0)
        self.list.setEnabled(not on)

    def say(self, sentence: str, *, tone: str = "") -> None:
        """Show what came of the question."""
        self.said.setText(sentence)
        set_look(self.said, "tone", tone)
        self.said.setVisible(bool(sentence))
        there = bool(sentence) and self.answer is not None
        for part in (self.copy, self.show_folder):
            part.setVisible(there)
        tabulated = there and self.answer is not None and self.answer.table is not None
        self.table.setVisible(tabulated)
        # Beside a table the fields have no more room than they need; without either, what there is stays on top.
        self.stack.setMaximumHeight(self.stack.currentWidget().sizeHint().height() if tabulated else FREE)
        self._room.setStretch(self._room.count() - 2, int(not tabulated and self.stack.isHidden()))

    def _tabulate(self) -> None:
        """Show the answer as a table, where it is one."""
        table = None if self.answer is None else self.answer.table
        if table is not None:
            columns = [TableColumn(name, title, help, kind) for name, title, help, kind in table.columns]  # type: ignore[arg-type]
            self.table.set_table(columns, table.values, text_column=columns[0].name, sort_by=table.sort_by)

    # ------------------------------------------------------------------ taking away

    def _save_copy(self) -> None:
        if self.answer is None:
            return
        source = self.answer.path
        self._context.save("Save a copy", f"-{source.name}", f"{FORMATS[source.suffix]} (*{source.suffix})", lambda out: _copy(source, out))

    def _show_folder(self) -> None:
        if self.answer is not None:
            QDesktopServices.openUrl(QUrl.fromLocalFile(str(self.answer.path.parent)))

    def done(self, result: int) -> None:
        """Stop what is still being asked."""
        self._there = False
        if self._task is not None:
            self._task.cancel()
        super().done(result)


def _copy(source: Path, out: Path) -> None:
    from cellweave.core.files import write_atomic

    write_atomic(out, lambda temporary: _copied(source, temporary))


def _copied(source: Path, temporary: Path) -> None:
    shutil.copyfile(source, temporary)


def _inside(path: Path, folder: Path) -> str:
    """Return where in a run folder a file is."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
