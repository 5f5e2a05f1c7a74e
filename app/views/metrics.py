"""The Metrics view: how well batches mix and how much biology is kept, of all runs beside their data without integration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QModelIndex, QPersistentModelIndex, Qt
from qtpy.QtGui import QPainter
from qtpy.QtWidgets import QComboBox, QSplitter, QStyledItemDelegate, QStyleOptionViewItem, QVBoxLayout, QWidget

from cellweave.app import theme
from cellweave.app.panels.parts import button, row, set_look, subheading, text, tool
from cellweave.app.state.measured import Measured, read_measured
from cellweave.app.views.metricsplot import MetricsPlot
from cellweave.app.views.runview import RunView
from cellweave.app.views.tables import NUMBER_ROLE, DataTable, TableColumn
from cellweave.core.errors import Cancelled, CellweaveError

if TYPE_CHECKING:
    from cellweave.app.state.results import RunResults
    from cellweave.app.views.context import ViewContext

NONE = "none"
LONGEST = 18  # letters of the name of data in a title
WITHOUT = "Without integration"
#: A total below that of the data without integration by more than this is worth a sentence.
LOSS_OF_BIOLOGY = 0.02


class Shading(QStyledItemDelegate):
    """Paints a tint behind each number: the better within its column, the stronger."""

    def __init__(self, table: DataTable) -> None:
        super().__init__(table.view)
        self._table = table
        self._ranges: dict[tuple[int, tuple[str, ...]], tuple[float, float]] = {}
        self._kinds: list[tuple[str, ...]] = []
        self.bold: set[int] = set()

    def set_ranges(self, kinds: Sequence[tuple[str, ...]]) -> None:
        """Look at the values of every column anew; only rows of one kind, the same data and columns, are compared."""
        model = self._table.table
        self._ranges, self._kinds = {}, list(kinds)
        for number, column in enumerate(model.columns):
            if column.kind != "share":
                continue
            every = model.values(column.name).astype(float)
            for kind in dict.fromkeys(kinds):
                values = every[[other == kind for other in kinds]]
                values = values[np.isfinite(values)]
                if len(values) > 1 and np.ptp(values) > 1e-6:
                    self._ranges[number, kind] = float(values.min()), float(values.max())

    def share(self, index: QModelIndex | QPersistentModelIndex) -> float | None:
        """Return how good a value is within its column and its data, from 0 to 1; None where there is nothing to compare."""
        row = self._table.table.source_row(index.row())
        kind = self._kinds[row] if row < len(self._kinds) else ()
        reach, value = self._ranges.get((index.column(), kind)), index.data(NUMBER_ROLE)
        if reach is None or value is None or not np.isfinite(value):
            return None
        return (float(value) - reach[0]) / (reach[1] - reach[0])

    def paint(self, painter: QPainter | None, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex) -> None:
        """Draw the tint, then the text."""
        assert painter is not None
        share = self.share(index)
        if share is not None:
            # The text stays the window's own on a tint of at most this strength, so that it is readable in both themes.
            painter.fillRect(option.rect.adjusted(1, 1, -1, -1), theme.current().shade("accent", "panel", 0.04 + 0.34 * share))
        super().paint(painter, option, index)

    def initStyleOption(self, option: QStyleOptionViewItem | None, index: QModelIndex | QPersistentModelIndex) -> None:  # noqa: N802
        """Set the row of the shown run in bold."""
        super().initStyleOption(option, index)
        assert option is not None
        if self._table.table.source_row(index.row()) in self.bold:
            option.font.setBold(True)


def loss_of_biology(values: Mapping[str, float], base: Mapping[str, float]) -> str:
    """Return what it means that a run keeps less biology than its data without integration: over-corrected only where batches are mixed more."""
    mixed, before = values.get("batch_score"), base.get("batch_score")
    if mixed is not None and before is not None and mixed <= before:
        return "Less biology is kept than without integration, and batches are not mixed more: the model may need more epochs."
    return "Less biology is kept than without integration: batches may be over-corrected."


class MetricsView(RunView):
    """All runs as points and as rows; the shown run stands out, and is measured here where it was not."""

    shows = "How well batches mix and how much biology is kept appears here, of every run beside its data without integration."
    no_figure = "The run that is shown was not measured yet. Compute its metrics first."

    def __init__(self, context: ViewContext, parent: QWidget | None = None) -> None:
        super().__init__(context, parent)
        self.rows: list[Measured] = []
        self._build()

    def _build(self) -> None:
        self.batch, self.labels = QComboBox(), QComboBox()
        for box, name in ((self.batch, "Column of the batch"), (self.labels, "Column of the labels")):
            box.setAccessibleName(name)
            box.setToolTip(name)
            box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            box.setMinimumContentsLength(10)
        self.compute = button("Compute metrics", "play", self.measure)
        self.compute.setToolTip("Measure the shown run and its data without integration; it takes seconds to minutes")
        self.figure_button = tool("figure", "Export as a figure", lambda: self.context.export_figure("metrics", self.figure_options()))
        self.csv_button = tool("table", "Export the table as CSV", lambda: self.context.save_csv("metrics", self.table.as_csv))
        self.said = text("", secondary=True)
        self.said.setAccessibleName("Notes on the metrics")
        self.plot = MetricsPlot()
        self.plot.chosen.connect(self.choose)
        self.plot.opened.connect(self._open)
        self.table = DataTable("Metrics of every run")
        self.shading = Shading(self.table)
        self.table.view.setItemDelegate(self.shading)
        self.table.chosen.connect(self.choose)
        self.table.opened.connect(self._open)
        upper = QWidget()
        above = QVBoxLayout(upper)
        above.setContentsMargins(0, 0, 0, 0)
        above.setSpacing(8)
        batch, labels = text("Batch", secondary=True, wrap=False), text("Labels", secondary=True, wrap=False)
        batch.setBuddy(self.batch)
        labels.setBuddy(self.labels)
        above.addLayout(row(batch, self.batch, labels, self.labels, self.compute, None, self.figure_button, self.csv_button))
        above.addWidget(self.said)
        above.addWidget(self.plot, 1)
        lower = QWidget()
        below = QVBoxLayout(lower)
        below.setContentsMargins(0, 4, 0, 0)
        below.addLayout(row(subheading("All runs"), text("higher is better; tints compare within the same data and columns", secondary=True, wrap=False), None))
        below.addWidget(self.table, 1)
        whole = QSplitter(Qt.Orientation.Vertical)
        whole.addWidget(upper)
        whole.addWidget(lower)
        whole.setStretchFactor(0, 3)
        whole.setStretchFactor(1, 2)
        whole.setChildrenCollapsible(False)
        layout = QVBoxLayout(self.body)
        layout.setContentsMargins(8, 8, 8, 8)
        layout.addWidget(whole)

    # ------------------------------------------------------------------ the run

    def show_run(self, results: RunResults) -> None:
        """Read the metrics of all runs in a thread."""
        if results.trains:
            self.set_message("The metrics are computed when the run is finished.")
            return
        self.set_message("Reading the metrics…")
        self._read(results)

    def clear(self) -> None:
        """Forget the rows."""
        self.rows = []

    def _read(self, results: RunResults) -> None:
        folders = [results.folder, *(run.path for run in self.context.session.library.runs)]

        def work(report: Any) -> tuple[list[Measured], list[str], dict[str, Any] | None]:
            from cellweave.core.analysis.integration_results import load

            rows = read_measured(folders, lambda: report.cancelled)
            return rows, _columns(results), load(results.folder / "results")

        self.work(work, lambda found: self._take(results, *found))

    def _take(self, results: RunResults, rows: list[Measured], columns: list[str], tree: dict[str, Any] | None) -> None:
        self.rows = rows
        used = (tree or {}).get("columns") or results.spec.covariates.scored()
        for box, role in ((self.batch, "batch"), (self.labels, "labels")):
            box.clear()
            box.addItem(NONE, None)
            for column in dict.fromkeys([*columns, *([used[role]] if role in used else [])]):
                box.addItem(column, column)
            box.setCurrentIndex(max(0, box.findData(used.get(role))))
        self.compute.setText("Compute again" if tree else "Compute metrics")
        self.compute.setAccessibleName(self.compute.text())
        set_look(self.compute, "primary", "" if tree else "true")
        self.compute.setIcon(theme.icon("play", "text" if tree else "on_accent"))
        self._fill(results)
        self._say(results, tree)
        self.set_message("")

    def _fill(self, results: RunResults) -> None:
        from cellweave.core.analysis.integration import ALL
        from cellweave.core.analysis.scmib import SCORES, part_info

        known = {name: ALL.get(name) or part_info(name) for each in self.rows for name in each.values}
        names = [name for name in ("scib_total", "batch_score", "bio_score", *SCORES, *ALL, *known) if name in known]
        columns = [TableColumn("run", "Run", "The run and its embedding, or a data set without integration.")]
        columns += [TableColumn(name, known[name].title, known[name].help, "share") for name in dict.fromkeys(names)]
        columns += [
            TableColumn("data", "Data", "Files the run was trained on."),
            TableColumn("columns", "Columns", "Batch and labels that were measured."),
            TableColumn("cells", "Cells", "Cells that were measured.", "count"),
        ]
        values: dict[str, Any] = {
            "run": np.array([self._title(each) for each in self.rows], dtype=object),
            "data": np.array([each.data_name for each in self.rows], dtype=object),
            "columns": np.array([each.columns for each in self.rows], dtype=object),
            "cells": np.array([each.cells for each in self.rows], dtype=float),
        }
        for name in dict.fromkeys(names):
            values[name] = np.array([each.values.get(name, np.nan) for each in self.rows], dtype=float)
        own = {number for number, each in enumerate(self.rows) if self._of_shown(each, results.folder)}
        self.shading.bold = {number for number in own if not self.rows[number].baseline}
        first = next((name for name in ("scib_total", "batch_score", "bio_score") if name in values), "")
        self.table.set_table(columns, values, sort_by=first)
        self.shading.set_ranges([each.data for each in self.rows])
        mine = {each.data for each in self.rows if each.folder == results.folder and not each.baseline}
        self.plot.set_rows(self.rows, own, {number for number, each in enumerate(self.rows) if not mine or each.data in mine})

    def _title(self, each: Measured) -> str:
        """Return what a row is called: data are named only where there are several."""
        if not each.baseline:
            return each.title
        if sum(other.baseline for other in self.rows) == 1:
            return WITHOUT
        name = each.data_name  # whole in the column of the data
        return f"{WITHOUT} · {name if len(name) <= LONGEST else name[: LONGEST // 2] + '…' + name[-LONGEST // 2 :]}"

    def _of_shown(self, each: Measured, folder: Path) -> bool:
        """Return whether a row is of the shown run, or the data of the shown run without integration."""
        mine = {other.data for other in self.rows if other.folder == folder and not other.baseline}
        return each.data in mine if each.baseline else each.folder == folder

    def _say(self, results: RunResults, tree: dict[str, Any] | None) -> None:
        found = [] if tree is None else [str(note) for note in tree.get("notes", ())]
        if tree is None:
            found.append(f"{results.label} has not been measured yet: choose the columns and compute its metrics.")
        else:
            values, base = tree["values"][tree["main"]], tree["values"].get("baseline", {})
            if "bio_score" in values and "bio_score" in base and values["bio_score"] < base["bio_score"] - LOSS_OF_BIOLOGY:
                found.insert(0, loss_of_biology(values, base))
        if self.rows and not any(each.place for each in self.rows):
            found.append("The plot needs both batch and labels.")
        elif tree is not None and not any(each.place for each in self.rows if each.folder == results.folder and not each.baseline):
            found.append(f"{results.label} is not in the plot, which needs both batch and labels.")
        set_look(self.said, "tone", "")
        self.said.setText(" ".join(found))
        self.said.setVisible(bool(found))

    # ------------------------------------------------------------------ measuring

    def measure(self) -> None:
        """Measure the shown run with the chosen columns, in the analysis process."""
        results, batch, labels = self.results, self.batch.currentData(), self.labels.currentData()
        if results is None:
            return
        if not batch and not labels:
            self.context.notify("Choose the column of the batch, of the labels, or both.")
            return
        process = self.context.analysis.process
        self.compute.setEnabled(False)

        def work(report: Any) -> list[str]:
            found = process.run(
                "measure_run", progress=lambda share, words: report(words, share), cancelled=lambda: report.cancelled,
                run=str(results.folder), batch=batch, labels=labels, chosen=True,
            )  # fmt: skip
            return list(found["notes"])

        def done(_: list[str]) -> None:
            self.compute.setEnabled(True)
            self._read(results)

        def failed(error: Exception, details: str) -> None:
            self.compute.setEnabled(True)
            if isinstance(error, CellweaveError) and not isinstance(error, Cancelled):
                self.said.setText(str(error))
                self.said.setVisible(True)
                set_look(self.said, "tone", "bad")
            elif not isinstance(error, Cancelled):
                self.context.show_error(error, details)

        self.work(work, done, doing="Measuring", failed=failed)

    def set_run(self, results: RunResults | None, message: str = "") -> None:
        """Show a run; see :meth:`RunView.set_run`."""
        self.compute.setEnabled(True)
        super().set_run(results, message)

    # ------------------------------------------------------------------ choosing and taking away

    def choose(self, number: int) -> None:
        """Mark a row in the plot and in the table."""
        self.plot.mark(number)
        if number != self.table.current():
            self.table.choose(number)

    def _open(self, number: int) -> None:
        if 0 <= number < len(self.rows) and self.results is not None and self.rows[number].folder != self.results.folder:
            self.context.open_run(self.rows[number].folder)

    def figure_options(self) -> dict[str, Any]:
        """Return what the figure dialog begins with: the other measured runs."""
        own = self.results.folder if self.results is not None else None
        others = dict.fromkeys(str(each.folder) for each in self.rows if each.folder != own and not each.baseline)
        return {"runs": tuple(others)}

    def figure(self) -> dict[str, Any] | None:
        """Return the figure, where the shown run was measured."""
        if self.results is None or not any(each.folder == self.results.folder for each in self.rows):
            return None
        return {"what": "metrics", **self.figure_options()}


def _columns(results: RunResults) -> list[str]:
    """Return the columns that hold levels and can be batch or labels."""
    from cellweave.core.export.run_data import RunData

    if results.cells is not None:
        return [name for name, column in results.cells.columns.items() if column.levels is not None and name not in {"split", "leiden"}]
    known = RunData(results.folder).cells
    return [str(name) for name in known.columns if name not in {"name", "file", "row", "split"}]
