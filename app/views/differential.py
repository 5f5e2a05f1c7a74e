"""The Differential view: two groups of cells, compared by the model or by sums over samples; a table and a volcano plot, linked."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from qtpy.QtCore import QSignalBlocker, Qt
from qtpy.QtGui import QResizeEvent
from qtpy.QtWidgets import QComboBox, QProgressBar, QSizePolicy, QSplitter, QVBoxLayout, QWidget

from cellweave.app.forms import SpecForm
from cellweave.app.panels.parts import ElidedLabel, button, row, set_look, text, tool
from cellweave.app.state.results import Cells, RunResults, run_cells
from cellweave.app.views.grouppicker import GroupPicker, Levels
from cellweave.app.views.runview import RunView
from cellweave.app.views.statistics import sorted_at_first, statistic_columns
from cellweave.app.views.tables import DataTable
from cellweave.app.views.volcanoplot import VolcanoPlot
from cellweave.core.errors import Cancelled, CellweaveError
from cellweave.core.query.comparison_settings import ComparisonSettings
from cellweave.core.spec import explain
from cellweave.core.wording import counted

if TYPE_CHECKING:
    from cellweave.app.views.context import ViewContext
    from cellweave.app.workers.tasks import Task
    from cellweave.core.export.differential_files import KeptComparison, Volcano

WHAT = "Choose two groups of cells above and press Compare: every gene gets its fold change and how sure the model is of it."
WIDE = 75  # letters m: from this width on plot, table and options stand beside one another
PSEUDOBULK = "Pseudobulk tests are computed by PyDESeq2, which is not installed. Install it with: pip install 'cellweave[pseudobulk]'."


class DifferentialView(RunView):
    """Compares groups of cells; what was compared is kept in the run folder and listed again when the run is opened."""

    shows = "Genes that differ between two groups of cells appear here, as a table and a volcano plot. A trained run is needed."
    no_figure = "No comparison is shown that a figure could draw. Compare two groups of cells first."

    def __init__(self, context: ViewContext, parent: QWidget | None = None) -> None:
        super().__init__(context, parent)
        self.settings = ComparisonSettings()
        self.kept: list[KeptComparison] = []
        self.shown: KeptComparison | None = None
        self._cells: Cells | None = None
        self._features: NDArray[Any] = np.zeros(0, dtype=object)
        self._table: Any = None
        self._task: Task | None = None
        self._build()

    # ------------------------------------------------------------------ building

    def _build(self) -> None:
        self.group1 = GroupPicker("Group 1", lambda: self.context.selection, rest=False)
        self.group2 = GroupPicker("Group 2", lambda: self.context.selection, rest=True)
        for group in (self.group1, self.group2):
            group.changed.connect(self._check)
        self.options = button("Options", "settings")
        self.options.setCheckable(True)
        self.start = button("Compare", "play", self.compare, primary=True)
        self.stop = button("Cancel", "cancel", self.cancel)
        self.problem = text("", secondary=True)
        self.problem.setAccessibleName("What is missing")
        self.progress = QProgressBar()
        self.progress.setTextVisible(False)
        self.progress.setAccessibleName("Progress of the comparison")
        self.progress.setMinimumWidth(60)
        groups = row(self.group1, self.group2, spacing=16)
        groups.setStretchFactor(self.group1, 1)
        groups.setStretchFactor(self.group2, 1)
        line = row(self.options)
        line.addWidget(self.problem, 1)
        line.addWidget(self.progress, 1)
        line.addWidget(self.stop)
        line.addWidget(self.start)
        layout = QVBoxLayout(self.body)
        layout.setContentsMargins(8, 8, 8, 8)
        layout.setSpacing(8)
        layout.addLayout(groups)
        layout.addLayout(line)
        layout.addWidget(self._build_results(), 1)
        self._set_busy(on=False)

    def _build_results(self) -> QWidget:
        self.form = SpecForm.for_class(ComparisonSettings)
        self.form.changed.connect(self._changed)
        self.form_holder = QWidget()
        holder = QVBoxLayout(self.form_holder)
        holder.setContentsMargins(0, 0, 4, 0)
        holder.addWidget(self.form)
        self.form_holder.hide()
        self.options.toggled.connect(lambda _on: self._arrange())
        self.choice = QComboBox()
        self.choice.setAccessibleName("Kept comparisons")
        self.choice.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.choice.setMinimumContentsLength(12)
        self.choice.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.choice.activated.connect(lambda number: self._open(self.kept[number]))
        self.again = tool("reset", "Put the groups and options of this comparison above", self._take_over)
        self.remove = tool("trash", "Remove this comparison from the run", self._remove)
        self.figure_button = tool("figure", "Export the volcano plot as a figure", lambda: self.context.export_figure("volcano", self.figure_options()))
        self.csv_button = tool("table", "Export the table as CSV", self._export)
        self.colour = tool("scatter", "Colour the embedding by the chosen gene", self._show_gene)
        self.note = ElidedLabel(secondary=True)
        self.plot = VolcanoPlot()
        self.plot.chosen.connect(self.choose)
        self.table = DataTable("Statistics of every gene", "Search genes")
        self.table.chosen.connect(lambda source: self.choose(source, scroll=False) if source >= 0 else None)
        self.table.filtered.connect(self._fade)
        self.empty_results = text(WHAT, secondary=True)
        self.empty_results.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.found = QSplitter(Qt.Orientation.Horizontal)
        for part in (self.plot, self.empty_results, self.table, self.form_holder):
            self.found.addWidget(part)
        self.found.setChildrenCollapsible(False)
        for number, share in enumerate((8, 8, 11, 0)):
            self.found.setStretchFactor(number, share)
        self.found.setSizes([420, 420, 580, 310])
        self.head = QWidget()
        head = row(self.choice, self.again, self.remove, self.colour, self.figure_button, self.csv_button, spacing=4)
        head.setStretchFactor(self.choice, 1)
        self.head.setLayout(head)
        right = QWidget()
        column = QVBoxLayout(right)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        column.addWidget(self.head)
        column.addWidget(self.note)
        column.addWidget(self.found, 1)
        return right

    def _arrange(self) -> None:
        """Show the options beside plot and table; where there is no room for the three, in the place of the table."""
        kept, options = bool(self.kept), self.options.isChecked()
        letter = self.fontMetrics().horizontalAdvance("m")
        for part in (self.head, self.note, self.plot):
            part.setVisible(kept)
        self.empty_results.setVisible(not kept)
        self.form_holder.setVisible(options)
        self.table.setVisible(kept and not (options and self.width() < WIDE * letter))

    def resizeEvent(self, event: QResizeEvent | None) -> None:  # noqa: N802
        """Look whether options and table have room beside one another."""
        super().resizeEvent(event)
        self._arrange()

    # ------------------------------------------------------------------ the run

    def show_run(self, results: RunResults) -> None:
        """Read the cells and what was compared before, in a thread."""
        if results.trains:
            self.set_message(f"'{results.label}' trains; groups can be compared when its results are there.")
            return
        self.set_message("Reading the cells of the run…")

        def work(_report: Any) -> tuple[Cells, list[KeptComparison]]:
            from cellweave.core.export.differential_files import kept_comparisons

            return results.cells or run_cells(results.folder), kept_comparisons(results.folder)

        self.work(work, lambda found: self._take(*found))

    def clear(self) -> None:
        """Forget the run."""
        self.kept, self.shown, self._cells, self._table = [], None, None, None
        for group in (self.group1, self.group2):
            group.forget()
        self.plot.set_points(None)
        self._set_busy(on=False)

    def _take(self, cells: Cells, kept: list[KeptComparison]) -> None:
        self._cells = cells
        columns = {name: Levels(column.codes, column.levels) for name, column in cells.columns.items() if column.levels is not None and name != "split"}
        spec = self.results.spec if self.results is not None else None
        prefer = next((name for name in ((spec.covariates.labels if spec else None), "leiden") if name in columns), "")
        for group in (self.group1, self.group2):
            group.set_cells(cells.rows, columns, prefer)
        for field in ("sample", "covariates"):
            self.form.set_suggestions(field, list(columns))
        self._show_fields()
        self.set_message("")
        self._check()
        self._list(kept)
        if kept:
            self._open(kept[0])

    # ------------------------------------------------------------------ settings

    def _changed(self, changes: dict[str, Any]) -> None:
        try:
            self.settings = ComparisonSettings.model_validate({**self.settings.model_dump(), **changes})
        except ValidationError as error:
            for path in changes:
                self.form.set_error(path, explain(error).removeprefix("The spec is not valid: "))
            return
        self.form.clear_errors()
        self.form.set_spec(self.settings)
        self._show_fields()
        self._check()

    def _show_fields(self) -> None:
        self.form.set_left_out(set(self.form.paths()) - set(self.settings.heeded()))

    def rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of the study of both groups."""
        first = self.group1.rows(np.zeros(0, np.int64))
        return first, self.group2.rows(first)

    def _why_not(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> str:
        sentence = self.group1.why_not(first) or self.group2.why_not(second)
        if sentence:
            return sentence
        both = len(np.intersect1d(first, second))
        if both:
            return f"{counted(both, 'cell is', 'cells are')} in both groups. Choose groups without common cells."
        if self.group1.name() == self.group2.name():
            return "Both groups have the same name. Choose other levels."
        if self.settings.method == "pseudobulk":
            if find_spec("pydeseq2") is None:
                return PSEUDOBULK
            if not self.settings.sample:
                return "Pseudobulk sums over samples: name the column of the samples under Options."
        return ""

    def _check(self) -> None:
        """Say at the place what is missing."""
        first, second = self.rows()
        self.group1.say_size(len(first))
        self.group2.say_size(len(second))
        why = self._why_not(first, second) if self._cells is not None else ""
        self.problem.setText(why)
        set_look(self.problem, "tone", "")
        self.start.setEnabled(not why and self._cells is not None)
        self.start.setToolTip(why or "Compare the two groups")

    # ------------------------------------------------------------------ comparing

    def compare(self) -> None:
        """Compare the two groups, and keep what comes of it in the run folder."""
        results = self.results
        if results is None or self._task is not None:
            return
        first, second = self.rows()
        names = self.group1.name(), self.group2.name()
        settings = self.settings
        kept = {
            **{name: value for name, value in settings.model_dump(mode="json").items() if name in settings.heeded()},
            "group1": self.group1.settings(), "group2": self.group2.settings(),
        }  # fmt: skip
        context = self.context

        def work(report: Any) -> tuple[KeptComparison, Any, list[KeptComparison]]:
            from cellweave.core.export.differential_files import keep_comparison, kept_comparisons
            from cellweave.core.query.comparing import compare

            run = context.opened(results, report)
            report("comparing", None)
            table = compare(run, (names[0], first), (names[1], second), settings)
            one = keep_comparison(results.folder, table, kept, method=settings.method)
            return one, table, kept_comparisons(results.folder)

        def done(found: tuple[KeptComparison, Any, list[KeptComparison]]) -> None:
            self._set_busy(on=False)
            self._list(found[2])
            self._show_table(found[0], found[1])

        def failed(error: Exception, details: str) -> None:
            self._set_busy(on=False)
            self._check()
            if isinstance(error, CellweaveError):
                self.problem.setText(str(error))
                set_look(self.problem, "tone", "bad")
            elif not isinstance(error, Cancelled):
                self.context.show_error(error, details)

        def told(_words: str, share: float | None) -> None:
            self.progress.setRange(0, 0 if share is None else 1000)
            self.progress.setValue(0 if share is None else round(1000 * share))

        self._set_busy(on=True)
        self._task = self.work(work, done, doing="Comparing", failed=failed, progressed=told)

    def cancel(self) -> None:
        """Stop comparing."""
        if self._task is not None:
            self._task.cancel()
            self.stop.setEnabled(False)
            self.stop.setText("Cancelling…")

    def _set_busy(self, *, on: bool) -> None:
        if not on:
            self._task = None
        self.start.setVisible(not on)
        self.stop.setVisible(on)
        self.stop.setEnabled(True)
        self.stop.setText("Cancel")
        self.problem.setVisible(not on)
        self.progress.setVisible(on)
        self.progress.setRange(0, 0)

    # ------------------------------------------------------------------ what was compared

    def _list(self, kept: list[KeptComparison]) -> None:
        self.kept = kept
        with QSignalBlocker(self.choice):
            self.choice.clear()
            for one, title in zip(kept, distinct_titles(kept), strict=True):
                when = one.made.replace("T", " ")[:16]
                self.choice.addItem(title + (f"   {when}" if when else ""), one.name)
                self.choice.setItemData(self.choice.count() - 1, title, Qt.ItemDataRole.ToolTipRole)
        self._arrange()
        if not kept:
            self.plot.set_points(None)

    def _open(self, kept: KeptComparison) -> None:
        results = self.results
        if results is None:
            return

        def work(_report: Any) -> Any:
            from cellweave.core.export.differential_files import read_comparison

            return read_comparison(results.folder, kept.name)

        def failed(error: Exception, details: str) -> None:
            self.note.setText(str(error) if isinstance(error, CellweaveError) else "The comparison cannot be read.")

        self.work(work, lambda table: self._show_table(kept, table), failed=failed)

    def _show_table(self, kept: KeptComparison, table: Any) -> None:
        from cellweave.core.export.differential_files import volcano

        self.shown = kept
        with QSignalBlocker(self.choice):
            self.choice.setCurrentIndex(self.choice.findData(kept.name))
        self._features = table.index.to_numpy(dtype=object)
        columns = statistic_columns([str(name) for name in table.columns])
        values = {"feature": self._features.astype(str)}
        for column in columns[1:]:
            found = table[column.name].to_numpy()
            values[column.name] = np.isin(found.astype(str), ("True", "1")) if column.kind == "flag" else found.astype(np.float64)
        first, down = sorted_at_first([str(name) for name in table.columns])
        self.table.set_table(columns, values, text_column="feature", sort_by=first, down=down)
        points: Volcano = volcano(table, kept.settings)
        self.plot.set_points(points, [str(name) for name in self._features])
        groups = f"above 0: higher in {table['group1'].iloc[0]}" if len(table) else ""
        words = [f"{int(points.called.sum()):,} of {len(table):,} genes called", points.rule, groups, *kept.notes]
        self.note.setText(" · ".join(word for word in words if word))
        self.colour.setEnabled(False)

    def choose(self, source: int, *, scroll: bool = True) -> None:
        """Choose a gene: its row, its point, and the colours of the embedding."""
        if source < 0:
            return
        self.table.choose(source, scroll=scroll)
        self.plot.mark(source)
        self.colour.setEnabled(self.results is not None and self.results.cells is not None)
        if self.colour.isEnabled() and scroll:  # a point was clicked: arrow keys through the table read no counts
            self.context.colour_by_gene(str(self._features[source]))

    def _show_gene(self) -> None:
        source = self.table.current()
        if source >= 0:
            self.context.colour_by_gene(str(self._features[source]))
            self.context.show_view("embedding")

    def _fade(self) -> None:
        wanted = self.table.search.text().strip()
        if not wanted or not len(self._features):
            self.plot.fade(None)
            return
        kept = np.zeros(len(self._features), bool)
        kept[self.table.table.shown_order()] = True
        self.plot.fade(kept)

    def _take_over(self) -> None:
        """Put the groups and the settings of the shown comparison into the fields."""
        if self.shown is None:
            return
        settings = dict(self.shown.settings)
        for group, name in ((self.group1, "group1"), (self.group2, "group2")):
            group.restore(settings.pop(name, {}))
        known = {name: value for name, value in settings.items() if name in ComparisonSettings.model_fields}
        try:
            self.settings = ComparisonSettings.model_validate(known)
        except ValidationError:
            return  # written by another version: the groups are taken over
        self.form.set_spec(self.settings)
        self._show_fields()
        self._check()

    def _remove(self) -> None:
        from cellweave.core.export.differential_files import kept_comparisons, remove_comparison

        if self.shown is None or self.results is None:
            return
        try:
            remove_comparison(self.results.folder, self.shown.name)
        except CellweaveError as error:
            self.context.show_error(error)
            return
        self.shown = None
        self._list(kept_comparisons(self.results.folder))
        if self.kept:
            self._open(self.kept[0])

    # ------------------------------------------------------------------ taking away

    def _export(self) -> None:
        if self.shown is not None:
            self.context.save_csv(f"{self.shown.name}", self.table.as_csv)

    def figure_options(self) -> dict[str, Any]:
        """Return what the figure dialog begins with."""
        return {"comparison": self.shown.name if self.shown is not None else ""}

    def figure(self) -> dict[str, Any] | None:
        """Return the volcano plot."""
        return {"what": "volcano", **self.figure_options()} if self.shown is not None else None


def distinct_titles(kept: Sequence[KeptComparison]) -> list[str]:
    """Return what to call kept comparisons: their method, and where several are alike the columns of the samples, else a number."""
    plain = [one.title + (" · pseudobulk" if one.method == "pseudobulk" else " · vanilla" if one.settings.get("mode") == "vanilla" else "") for one in kept]
    longer = []
    for one, title in zip(kept, plain, strict=True):
        samples = one.settings.get("sample") or ()
        told = " × ".join([samples] if isinstance(samples, str) else map(str, samples))
        longer.append(f"{title} of {told}" if told and plain.count(title) > 1 else title)
    found = []
    for number, title in enumerate(longer):  # the newest come first; the oldest of a title has number 1
        found.append(f"{title} · {longer[number:].count(title)}" if longer.count(title) > 1 else title)
    return found
