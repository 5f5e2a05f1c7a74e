"""The Neighbourhood view: whether neighbours express the same markers, where an integration went wrong, and how much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QSignalBlocker, Qt
from qtpy.QtWidgets import QSplitter, QTabWidget, QVBoxLayout, QWidget
from superqt import QFlowLayout

from cellweave.app.panels.parts import button, row, text, tool
from cellweave.app.state.diagnosed import (
    COLOURS,
    LEVELS,
    Diagnosed,
    chosen_colours,
    leaf_help,
    leaf_title,
    metric_title,
    read_diagnosed,
)
from cellweave.app.views.columns import ColumnData
from cellweave.app.views.leaves import Dots, LeafPanel, ScoreCard, chooser, fit_columns, labelled
from cellweave.app.views.panelgrid import PanelGrid
from cellweave.app.views.points import PointSet
from cellweave.app.views.runview import RunView
from cellweave.app.views.tables import DataTable, TableColumn
from cellweave.core.wording import counted

if TYPE_CHECKING:
    from cellweave.app.state.results import RunResults
    from cellweave.app.views.context import ViewContext

NONE = "none"
BEYOND = 1000.0


class NeighbourhoodView(RunView):
    """Failure leaves on the embedding, a table of them beside it, headline numbers beside the data without integration, and groups.

    Attributes
    ----------
    data
        What is shown, or None.
    """

    shows = "Whether neighbouring cells express the same marker genes, across libraries and data sets, appears here: where an integration went wrong, and how."

    def __init__(self, context: ViewContext, parent: QWidget | None = None) -> None:
        super().__init__(context, parent)
        self.data: Diagnosed | None = None
        self._columns: dict[str, ColumnData] = {}
        self._leaves: list[str] = []
        self._selected: NDArray[np.bool_] | None = None
        self._build()

    # ------------------------------------------------------------------ building

    def _build(self) -> None:
        from cellweave.core.analysis.neighbourhood_summary import COMPOSITE

        shown = ("total", "bio_conservation", "batch_correction")
        self.cards = {name: ScoreCard(COMPOSITE[name].title, COMPOSITE[name].help) for name in shown}
        self.library, self.dataset, self.technical = (chooser(name) for name in ("Column of libraries", "Column of data sets", "Technical column"))
        self.compute = button("Compute", "play", self.diagnose)
        self.compute.setToolTip("Compute the diagnostics with these columns; it takes seconds to minutes")
        self.csv_button = tool("table", "Export the metrics of all cells as CSV", self._export)
        self.figure_button = tool("figure", "Export as a figure", lambda: self.context.export_figure("embedding", self.figure_options()))
        head = QWidget()
        flow = QFlowLayout(head)
        flow.setContentsMargins(0, 0, 0, 0)
        flow.setSpacing(8)
        for card in self.cards.values():
            flow.addWidget(card)
        choices = QWidget()
        line = QFlowLayout(choices)
        line.setContentsMargins(0, 0, 0, 0)
        line.setSpacing(8)
        for name, box in (("Library", self.library), ("Data set", self.dataset), ("Technical", self.technical)):
            line.addWidget(labelled(name, box))
        last = QWidget()
        last.setLayout(row(self.compute, self.figure_button, self.csv_button))
        line.addWidget(last)
        self.grid, self.panel = PanelGrid(), LeafPanel()
        self.panel.set_axes("UMAP")
        self.panel.lassoed.connect(self._select_some)
        self.panel.levelSelected.connect(self._select_some)
        self.panel.hovered.connect(self._hover)
        self.panel.columnChosen.connect(self._column_chosen)
        self.grid.add(self.panel)
        self.lasso = tool("lasso", "Draw around cells to select them (L)", checkable=True)
        self.lasso.toggled.connect(self._set_lasso)
        self.panel.lassoWanted.connect(self.lasso.toggle)
        self.tables = QTabWidget()
        self.tables.setDocumentMode(True)
        self.tables.addTab(self._failures(), "Failures")
        self.tables.addTab(self._numbers(), "Numbers")
        self.tables.addTab(self._groups(), "By group")
        bar = self.tables.tabBar()
        assert bar is not None
        bar.setAccessibleName("Tables of the diagnostics")
        whole = QSplitter(Qt.Orientation.Horizontal)
        whole.addWidget(self.grid)
        whole.addWidget(self.tables)
        whole.setStretchFactor(0, 1)
        whole.setStretchFactor(1, 1)
        whole.setSizes([390, 610])
        whole.setChildrenCollapsible(False)
        self.said = text("", secondary=True)
        layout = QVBoxLayout(self.body)
        layout.setContentsMargins(8, 8, 8, 8)
        layout.setSpacing(8)
        layout.addWidget(head)
        layout.addWidget(choices)
        layout.addWidget(whole, 1)
        layout.addWidget(self.said)

    def _failures(self) -> QWidget:
        self.level = chooser("Which question")
        self.level.currentIndexChanged.connect(lambda _: self._show_leaves())
        self.leaves = DataTable("Failures")
        self.leaves.chosen.connect(self._leaf_chosen)
        self.dots = Dots(self.leaves)
        self.leaves.view.setItemDelegate(self.dots)
        self.leaf_words = text("", secondary=True)
        self.leaf_words.setMinimumHeight(2 * self.fontMetrics().height() + 4)
        self.leaf_words.setAlignment(Qt.AlignmentFlag.AlignTop)
        page = QWidget()
        layout = QVBoxLayout(page)
        layout.setContentsMargins(0, 8, 0, 0)
        layout.addLayout(row(text("Question", wrap=False), self.level, None, self.lasso))
        layout.addWidget(self.leaves, 1)
        layout.addWidget(self.leaf_words)
        return page

    def _numbers(self) -> QWidget:
        self.numbers = DataTable("Headline numbers")
        self.numbers.chosen.connect(self._number_chosen)
        self.number_words = text("", secondary=True)
        self.number_words.setMinimumHeight(2 * self.fontMetrics().height() + 4)
        self.number_words.setAlignment(Qt.AlignmentFlag.AlignTop)
        page = QWidget()
        layout = QVBoxLayout(page)
        layout.setContentsMargins(0, 8, 0, 0)
        layout.addWidget(self.numbers, 1)
        layout.addWidget(self.number_words)
        return page

    def _groups(self) -> QWidget:
        self.group, self.metric = chooser("Groups"), chooser("Metric")
        for box in (self.group, self.metric):
            box.currentIndexChanged.connect(lambda _: self._show_groups())
        self.strata = DataTable("Metrics by group")
        page = QWidget()
        layout = QVBoxLayout(page)
        layout.setContentsMargins(0, 8, 0, 0)
        layout.addLayout(row(text("Group", wrap=False), self.group, None))
        layout.addLayout(row(text("Metric", wrap=False), self.metric, None))
        layout.addWidget(self.strata, 1)
        return page

    # ------------------------------------------------------------------ the run

    def show_run(self, results: RunResults) -> None:
        """Read the diagnostics of a run in a thread."""
        if results.trains:
            self.set_message("The diagnostics can be computed when the run is finished.")
            return
        self.set_message("Reading the diagnostics…")
        folder, cells, xy = results.folder / "results", results.cells, results.xy
        self.work(lambda _: read_diagnosed(folder, cells, xy), lambda found: self._take(results, found))

    def clear(self) -> None:
        """Forget the run."""
        self.data, self._columns, self._selected = None, {}, None
        self.compute.setEnabled(True)

    def _take(self, results: RunResults, data: Diagnosed | None) -> None:
        self._fill_columns(results, data)
        if data is None:
            if self.library.currentData() is None and self.dataset.currentData() is None:
                self.set_message(
                    "The run says nothing of where its cells come from. Choose a batch, library or data set in step 2 and train again, or name one here.",
                    "Choose columns", lambda: self.set_message(""),
                )  # fmt: skip
                self._show_nothing()
                return
            self.set_message("The neighbourhood diagnostics of this run were not computed yet. They take seconds to minutes.", "Compute", self.diagnose)
            return
        self.set_message("")
        self._show(data)

    def _show_nothing(self) -> None:
        self.said.setText("Choose the columns that say where cells come from, and compute.")
        for each in self.cards.values():
            each.show_values(None, None)

    def _fill_columns(self, results: RunResults, data: Diagnosed | None) -> None:
        """Offer the columns that hold levels."""
        covariates = results.spec.covariates
        used = data.summary["columns"] if data is not None else {}
        known = [] if results.cells is None else [name for name, column in results.cells.columns.items() if column.levels is not None and name != "split"]
        technical = [*used.get("technical", []), *covariates.technical]
        for box, chosen in (
            (self.library, used.get("library") or covariates.library or covariates.batch),
            (self.dataset, used.get("dataset") or covariates.dataset),
            (self.technical, technical[0] if technical else None),
        ):
            with QSignalBlocker(box):
                box.clear()
                box.addItem(NONE, None)
                for name in dict.fromkeys([*known, *([chosen] if chosen else [])]):
                    box.addItem(name, name)
                box.setCurrentIndex(max(0, box.findData(chosen)))

    # ------------------------------------------------------------------ showing

    def _show(self, data: Diagnosed) -> None:
        self.data, self._selected = data, None
        self._columns = {name: _column(column) for name, column in data.columns.items()}
        self.panel.set_chosen_colours({**self.context.session.settings.colours, **chosen_colours()})
        self.panel.set_columns(self._columns, next(iter(self._columns), ""))
        self.panel.set_points(PointSet(data.xy))
        there = bool(np.isfinite(data.xy).all(axis=1).any())
        self.grid.show_note("" if there else "The run has no embedding to show them on.")
        self.grid.fit()
        before = data.summary.get("baseline") or {}
        for name, each in self.cards.items():
            each.show_values(data.summary["composite"].get(name), before.get("composite", {}).get(name))
        with QSignalBlocker(self.level):
            self.level.clear()
            for level, title in LEVELS.items():
                if level in data.leaves:
                    self.level.addItem(title, level)
        self._show_leaves()
        self._show_numbers(data, before)
        self._fill_groups(data)
        self._say(data)

    def _say(self, data: Diagnosed) -> None:
        markers, columns = data.summary["markers"], data.summary["columns"]
        parts = [f"{counted(data.summary['n_cells'], 'cell')} with {counted(data.summary['k'], 'neighbour')} each, {counted(markers['n'], 'marker gene')}"]
        if data.summary["n_cells"] < data.summary.get("n_study", 0):
            parts[0] += f" (a sample of {data.summary['n_study']:,})"
        if markers["listed"]:
            parts.append(f"{markers['listed']:,} of them from the {'published list' if columns['markers'] == 'published' else 'list given'}")
        other = data.summary.get("compared_with")
        if other:
            parts.append(f"compared with {len(other)} other run{'s' if len(other) > 1 else ''}")
        self.said.setText(", ".join(parts) + ".")

    def _show_leaves(self) -> None:
        data, level = self.data, self.level.currentData()
        if data is None or level is None:
            self.leaves.set_table([TableColumn("leaf", "Finding")], {"leaf": np.array([], dtype=object)})
            return
        counts = data.summary["leaves"][level]
        before = (data.summary.get("baseline") or {}).get("leaves", {}).get(level, {})
        total = max(1, data.summary["n_cells"])
        self._leaves = list(counts)
        columns = [
            TableColumn("leaf", "Finding", "What a cell's neighbours say."),
            TableColumn("cells", "Cells", "Cells with this finding.", "count"),
            TableColumn("share", "Share", "Of all cells.", "share"),
        ]
        values: dict[str, Any] = {
            "leaf": np.array([leaf_title(name) for name in counts], dtype=object),
            "cells": np.array(list(counts.values()), dtype=float),
            "share": np.array([n / total for n in counts.values()]),
        }
        if before:
            columns.append(TableColumn("before", "Before", "Share of all cells without integration, by the same limits.", "share"))
            values["before"] = np.array([before.get(name, 0) / total for name in counts])
        self.dots.colours = [COLOURS.get(name, COLOURS["ideal"]) for name in counts]
        self.leaves.set_table(columns, values, sort_by="cells")
        fit_columns(self.leaves)
        self.leaf_words.setText("Choose a finding to select its cells in every view.")
        if LEVELS[level] in self._columns:
            self.panel.show_column(LEVELS[level])

    def _leaf_chosen(self, number: int) -> None:
        level = self.level.currentData()
        if self.data is None or level is None or not 0 <= number < len(self._leaves):
            return
        name = self._leaves[number]
        self.leaf_words.setText(leaf_help(name))
        rows = self.data.rows_of(level, name)
        self._mark(np.isin(self.data.rows, rows))
        self.selectionChanged.emit(rows)

    def _show_numbers(self, data: Diagnosed, before: dict[str, Any]) -> None:
        from cellweave.core.analysis.neighbourhood_summary import COMPOSITE, HEADLINES

        self._number_help: list[str] = []
        names, own, other, better = [], [], [], []
        for kind, known in (("composite", COMPOSITE), ("headline", HEADLINES)):
            for name, info in known.items():
                value = data.summary[kind].get(name)
                if value is None:
                    continue
                names.append(f"{info.number} {info.title}".strip())
                own.append(_limited(value))
                other.append(_limited(before.get(kind, {}).get(name)))
                better.append({True: "higher", False: "lower", None: "–"}[info.higher_is_better])
                self._number_help.append(info.help)
        columns = [
            TableColumn("name", "Number"), TableColumn("own", "This run", "Over 1,000 is shown as 1,000.", "number"),
            TableColumn("before", "Before", "Without integration.", "number"), TableColumn("better", "Better", "Which values are better."),
        ]  # fmt: skip
        values = {"name": np.array(names, dtype=object), "own": np.array(own), "before": np.array(other), "better": np.array(better, dtype=object)}
        self.numbers.set_table(columns, values)
        fit_columns(self.numbers)
        self.number_words.setText("Choose a number to read what it says.")

    def _number_chosen(self, number: int) -> None:
        if 0 <= number < len(self._number_help):
            self.number_words.setText(self._number_help[number])

    def _fill_groups(self, data: Diagnosed) -> None:
        strata = data.summary.get("strata", {})
        with QSignalBlocker(self.group), QSignalBlocker(self.metric):
            self.group.clear()
            self.metric.clear()
            for name in strata:
                self.group.addItem(name, name)
            metrics = dict.fromkeys(line["metric"] for lines in strata.values() for line in lines)
            for name in metrics:
                self.metric.addItem(metric_title(name), name)
            self.metric.setCurrentIndex(max(0, self.metric.findData("corr_avg_same_library")))
        self._show_groups()

    def _show_groups(self) -> None:
        if self.data is None:
            return
        metric = self.metric.currentData()
        lines = [line for line in self.data.summary.get("strata", {}).get(self.group.currentData(), []) if line["metric"] == metric]
        columns = [TableColumn("stratum", "Group"), TableColumn("n_cells", "Cells", "", "count"), TableColumn("median", "Median", "", "number")]
        columns += [TableColumn(f"p{share}", f"{share} %", f"{share}th percentile.", "number") for share in (10, 25, 75, 90)]
        values: dict[str, Any] = {"stratum": np.array([str(line["stratum"]) for line in lines], dtype=object)}
        for column in columns[1:]:
            values[column.name] = np.array([np.nan if line[column.name] is None else line[column.name] for line in lines], dtype=float)
        self.strata.set_table(columns, values, sort_by="median", down=False)
        fit_columns(self.strata)

    # ------------------------------------------------------------------ selection

    def show_selection(self, rows: NDArray[np.int64]) -> None:
        """Mark cells that were selected elsewhere."""
        if self.data is not None:
            chosen = np.isin(self.data.rows, rows)
            self._mark(chosen if chosen.any() else None)

    def _mark(self, selected: NDArray[np.bool_] | None) -> None:
        self._selected = selected
        self.panel.set_selected(selected)

    def _select_some(self, indices: NDArray[np.intp], modifiers: Qt.KeyboardModifier) -> None:
        if self.data is None:
            return
        chosen = np.zeros(len(self.data.rows), bool)
        chosen[indices] = True
        if self._selected is not None and modifiers & Qt.KeyboardModifier.ShiftModifier:
            chosen |= self._selected
        elif modifiers & Qt.KeyboardModifier.ControlModifier:
            chosen = (self._selected if self._selected is not None else np.zeros_like(chosen)) & ~chosen
        self._mark(chosen if chosen.any() else None)
        self.selectionChanged.emit(self.data.rows[chosen])

    def _set_lasso(self, on: bool) -> None:
        self.panel.box.lasso_on = on
        self.panel.canvas.setCursor(Qt.CursorShape.CrossCursor if on else Qt.CursorShape.ArrowCursor)

    def _hover(self, index: int | None) -> None:
        import html

        if index is None or self.data is None:
            self.panel.show_hovered(None)
            return
        lines = [f"<b>{html.escape(str(self.data.names[index]))}</b>"]
        lines += [f"{html.escape(LEVELS[level])}: {html.escape(leaf_title(leaves[index]) or 'not looked at')}" for level, leaves in self.data.leaves.items()]
        self.panel.show_hovered(index, "<br>".join(lines))

    def _column_chosen(self, name: str) -> None:
        level = next((level for level, title in LEVELS.items() if title == name), None)
        if level is not None and level != self.level.currentData():
            self.level.setCurrentIndex(self.level.findData(level))

    # ------------------------------------------------------------------ computing

    def diagnose(self) -> None:
        """Compute the diagnostics of the shown run with the chosen columns, in the analysis process."""
        results = self.results
        if results is None:
            return
        technical = self.technical.currentData()
        chosen = {"library": self.library.currentData(), "dataset": self.dataset.currentData(), "technical": [technical] if technical else []}
        if not any(chosen.values()):
            self.context.notify("Choose the column of libraries, of data sets, or a technical one.")
            return
        process, folder, cells, xy = self.context.analysis.process, results.folder, results.cells, results.xy
        self.compute.setEnabled(False)

        def work(report: Any) -> Diagnosed | None:
            process.run(
                "neighbourhood", progress=lambda share, words: report(words, share), cancelled=lambda: report.cancelled, run=str(folder), **chosen
            )
            return read_diagnosed(folder / "results", cells, xy)

        def done(data: Diagnosed | None) -> None:
            self.compute.setEnabled(True)
            self._take(results, data)

        def failed(error: Exception, details: str) -> None:
            from cellweave.core.errors import Cancelled

            self.compute.setEnabled(True)
            if not isinstance(error, Cancelled):
                self.context.show_error(error, details)

        self.work(work, done, doing="Neighbourhood diagnostics", failed=failed)

    # ------------------------------------------------------------------ taking away

    def _export(self) -> None:
        if self.results is not None:
            path = self.results.folder / "results" / "neighbourhood.csv"
            self.context.save_csv("neighbourhood", lambda: path.read_text(encoding="utf-8"))

    def figure_options(self) -> dict[str, Any]:
        """Return what the figure dialog begins with: the embedding by what went wrong, in the colours of the view."""
        level = self.level.currentData() or "failure_mode"
        colours = chosen_colours()[LEVELS[level]]
        return {"columns": (f"neighbourhood:{level}",), "colours": colours, "panels_per_row": 1}

    def figure(self) -> dict[str, Any] | None:
        """Return the figure of the view."""
        return {"what": "embedding", **self.figure_options()} if self.data is not None and self.data.leaves else None


def _limited(value: float | None) -> float:
    return float("nan") if value is None else min(float(value), BEYOND)


def _column(column: Any) -> ColumnData:
    return ColumnData.continuous(column.numbers) if column.levels is None else ColumnData.categorical(column.codes, column.levels)
