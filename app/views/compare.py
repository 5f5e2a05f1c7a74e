"""The Compare view: runs in one table, by what differs in their specs and what came of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QShowEvent
from qtpy.QtWidgets import QCheckBox, QVBoxLayout, QWidget

from cellweave.app.panels.parts import button, row, text, tool
from cellweave.app.state.runs import run_label
from cellweave.app.views.runview import RunView
from cellweave.app.views.tables import DataTable, TableColumn
from cellweave.core.runs.comparing import RunRow, differing, read_row, setting_titles, setting_words, term_labels
from cellweave.core.wording import counted

if TYPE_CHECKING:
    from cellweave.app.state.results import RunResults
    from cellweave.app.views.context import ViewContext

MAIN_METRICS = ("integration.scib_total", "integration.batch_score", "integration.bio_score")
FIRST = ("model", "losses", "covariates", "training")  # of what differs, this comes first
LOOK = 3000  # milliseconds between two looks at the list of runs while the view is in sight


class CompareView(RunView):
    """All runs, or those selected in the list; only what differs between them."""

    shows = "Runs stand beside one another here: how their settings differ, and what came of them. Two runs or more are needed."
    no_figure = "The comparison of runs is a table and has no figure. Export it as CSV with the button beside its search."

    def __init__(self, context: ViewContext, parent: QWidget | None = None) -> None:
        super().__init__(context, parent)
        self.rows: list[RunRow] = []
        self._metrics: set[str] = set()
        self._stamp: tuple[Any, ...] = ()
        self._timer = QTimer(self)
        self._timer.setInterval(LOOK)
        self._timer.timeout.connect(self.refresh)
        self._build()

    def _build(self) -> None:
        self.only = QCheckBox("Only the runs selected in the list")
        self.only.setToolTip("Ctrl and Shift select several runs in the list")
        self.only.toggled.connect(lambda _on: self.refresh(force=True))
        self.bars = QCheckBox("All settings")
        self.bars.setToolTip("Show also the settings that are the same in all these runs")
        self.bars.toggled.connect(lambda _on: self._fill())
        self.losses_shown = QCheckBox("All losses")
        self.losses_shown.setToolTip("Show also the single terms and the losses of the training cells")
        self.metrics_shown = QCheckBox("All metrics")
        self.metrics_shown.setToolTip("Show also the single metrics, beside the means of batch mixing and biology kept")
        for box in (self.losses_shown, self.metrics_shown):
            box.toggled.connect(lambda _on: self._show_groups())
        self.open = button("Open", "open", self._open)
        self.overlay = button("Overlay losses", "curves", self._overlay)
        self.csv_button = tool("table", "Export the table as CSV", lambda: self.context.save_csv("runs", self.table.as_csv))
        self.table = DataTable("Runs side by side", "Search runs")
        self.table.view.setSelectionMode(self.table.view.SelectionMode.ExtendedSelection)
        self.table.opened.connect(lambda source: self.context.open_run(self.rows[source].folder))
        self.table.view.selectionModel().selectionChanged.connect(lambda *_: self._enable())
        self.note = text("", secondary=True)
        self.table.bar.addWidget(self.csv_button)
        layout = QVBoxLayout(self.body)
        layout.setContentsMargins(8, 8, 8, 8)
        layout.setSpacing(8)
        layout.addLayout(row(self.only, None, self.overlay, self.open))
        layout.addLayout(row(self.bars, self.losses_shown, self.metrics_shown, None))
        layout.addWidget(self.note)
        layout.addWidget(self.table, 1)

    # ------------------------------------------------------------------ which runs

    def set_run(self, results: RunResults | None, message: str = "") -> None:
        """Runs are compared whichever is shown; a new one is in the list."""
        self._generation += 1
        self.results = results
        self.refresh(force=True)

    def show_run(self, results: RunResults) -> None:
        """Read the list anew."""
        self.refresh(force=True)

    def showEvent(self, event: QShowEvent | None) -> None:  # noqa: N802
        """Follow the list of runs while the view is in sight."""
        super().showEvent(event)
        self._timer.start()
        self.refresh()

    def hideEvent(self, event: Any) -> None:  # noqa: N802
        """Look no more."""
        super().hideEvent(event)
        self._timer.stop()

    def folders(self) -> list[Path]:
        """Return the runs to be compared."""
        every = [run.path for run in self.context.session.library.runs]
        chosen = self.context.selected_runs() if self.only.isChecked() else []
        return [path for path in every if path in chosen] if self.only.isChecked() else every

    def refresh(self, *, force: bool = False) -> None:
        """Read the runs in a thread, where one of them changed."""
        folders = self.folders()
        by_path = {run.path: run for run in self.context.session.library.runs}
        stamp = tuple((path, by_path[path].status.state, by_path[path].final, by_path[path].name) for path in folders)
        if not folders and self.only.isChecked():
            self.rows = []
            self._fill()
            self.note.setText("Select runs in the list on the right; Ctrl and Shift select several.")
            return
        if not folders:
            self.set_message(self.shows, *self.context.next_step())
            self._stamp = ()
            return
        if stamp == self._stamp and not force:
            return
        self._stamp = stamp

        def read(_report: Any) -> list[RunRow]:
            import cellweave.core.analysis.integration  # the titles of the metrics: read here, because it takes its time
            import cellweave.core.analysis.scores  # noqa: F401

            return [read_row(folder) for folder in folders if folder.is_dir()]

        self.work(read, self._take)

    def _take(self, rows: list[RunRow]) -> None:
        self.rows = rows
        self.set_message("")
        self._fill()

    # ------------------------------------------------------------------ the table

    def _fill(self) -> None:
        before = {self.rows[source].folder for source in self._selected() if source < len(self.rows)}
        columns, values = run_columns(self.rows, every=self.bars.isChecked())
        self._metrics = {name for one in self.rows for name in one.metrics}
        order = self.table.table.sorted_by
        name = self.table.table.columns[order[0]].name if 0 <= order[0] < len(self.table.table.columns) else ""
        self.table.set_table(columns, values, text_column="run", sort_by=name, down=order[1] == Qt.SortOrder.DescendingOrder)
        self._show_groups()
        different = len(differing(self.rows))
        problems = [one.problem for one in self.rows if one.problem]
        differ = counted(different, "setting differs", "settings differ")
        words = f"{len(self.rows)} runs; {differ}." if len(self.rows) != 1 else "One run: a second one is needed to compare with."
        self.note.setText(" ".join([words, *problems[:2]]))
        for source, one in enumerate(self.rows):
            if one.folder in before:
                self.table.choose(source, scroll=False)
        self._enable()

    def _show_groups(self) -> None:
        """Hide the columns that only a close look needs; the CSV file has them all."""
        for number, column in enumerate(self.table.table.columns):
            term = column.name.startswith("loss.") and not self.losses_shown.isChecked()
            metric = column.name in self._metrics and column.name not in MAIN_METRICS and not self.metrics_shown.isChecked()
            self.table.view.setColumnHidden(number, term or metric)

    def _selected(self) -> list[int]:
        rows = sorted({index.row() for index in self.table.view.selectionModel().selectedRows()})
        return [self.table.table.source_row(row) for row in rows]

    def _enable(self) -> None:
        self.open.setEnabled(len(self._selected()) == 1)
        self.overlay.setEnabled(bool(self._selected()))
        self.csv_button.setEnabled(bool(self.rows))

    def _open(self) -> None:
        for source in self._selected()[:1]:
            self.context.open_run(self.rows[source].folder)

    def _overlay(self) -> None:
        """Draw the losses of the chosen runs over those shown."""
        self.context.overlay([self.rows[source].folder for source in self._selected()])


def run_columns(rows: Sequence[RunRow], *, every: bool = False) -> tuple[list[TableColumn], dict[str, Any]]:
    """Return the columns of a table of runs, and their values.

    Parameters
    ----------
    rows
        The runs.
    every
        Show also the settings that are the same in all runs.
    """
    from cellweave.core.analysis.integration import ALL
    from cellweave.core.analysis.scores import SCORES
    from cellweave.core.models.registry import families

    columns = [TableColumn("run", "Run", "Name and folder."), TableColumn("model", "Model", "Kind of model.")]
    values: dict[str, Any] = {
        "run": np.array([run_label(one.name, one.folder) for one in rows], dtype=object),
        "model": np.array([families()[one.kind].title if one.kind in families() else one.kind for one in rows], dtype=object),
        "state": np.array([one.state for one in rows], dtype=object),
    }
    result = TableColumn("result", "Negative ELBO", "Of the held-out cells where there are any, else of the training cells; nats per cell.", "number")
    values["result"] = _numbers([one.losses.get(("elbo", "validation"), one.losses.get(("elbo", "train"))) for one in rows])
    # The model's own before which files they were.
    different = sorted(differing(rows), key=lambda path: FIRST.index(path.split(".")[0]) if path.split(".")[0] in FIRST else len(FIRST))
    paths = dict.fromkeys([*different, *(path for one in rows for path in one.spec)]) if every else different
    titles = setting_titles(rows)
    for path in paths:
        if path == "model.kind":
            continue
        title, help_text = titles.get(path, (path.rsplit(".", 1)[-1].replace("_", " "), ""))
        found = [one.spec.get(path) for one in rows]
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in found if value is not None)
        some = any(value is not None for value in found)
        columns.append(TableColumn(path, title, f"{help_text} ({path})".strip(), "number" if numbers and some else "text"))
        called = [setting_words(one.kind).get(path, {}) for one in rows]  # models may call a value of one name differently
        said = [_words(value, words) for value, words in zip(found, called, strict=True)]
        values[path] = _numbers(found) if numbers and some else np.array(said, dtype=object)
    place = 2 + sum(path != "model.kind" for path in different)
    columns[place:place] = [TableColumn("state", "State", "How it stands.")]
    terms = dict.fromkeys(key for side in ("validation", "train") for one in rows for key in one.losses if key[1] == side)
    labels = term_labels(rows)
    for term, side in sorted(terms, key=lambda key: (key[1] != "validation", key[0] not in ("elbo", "total"))):
        name = f"loss.{term}.{side}"
        where = "held-out" if side == "validation" else "training"
        words = f"{labels.get(term, term)}, {'validation' if side == 'validation' else 'train'}"
        columns.append(TableColumn(name, words, f"Of the {where} cells at the last epoch that looked at them, nats per cell.", "number"))
        values[name] = _numbers([one.losses.get((term, side)) for one in rows])
    head = [result]  # what came of the runs, in sight however many settings differ
    for name in dict.fromkeys(name for one in rows for name in one.metrics):
        known = ALL.get(name.removeprefix("integration.")) if name.startswith("integration.") else SCORES.get(name)
        column = TableColumn(name, _metric_title(name, known.title if known else name), known.help if known else name, "share")
        (head if name in MAIN_METRICS else columns).append(column)
        values[name] = _numbers([one.metrics.get(name) for one in rows])
    ends: tuple[tuple[str, str, str, list[Any]], ...] = (
        ("epochs", "Epochs", "Epochs done.", [one.epochs for one in rows]),
        ("best", "Best epoch", "Epoch whose weights were kept.", [one.best_epoch for one in rows]),
        ("seconds", "Time (s)", "From the start of the run to its end, in seconds.", [one.seconds for one in rows]),
    )
    for name, title, words, numbers_found in ends:
        (head if name == "seconds" else columns).append(TableColumn(name, title, words, "number" if name == "seconds" else "count"))
        values[name] = _numbers(numbers_found)
    columns.append(TableColumn("device", "Device", "Where it computed."))
    values["device"] = np.array([one.device for one in rows], dtype=object)
    return [*columns[:2], *head, *columns[2:]], values


def _metric_title(name: str, title: str) -> str:
    """Return a title that tells the scores of neighbours from the integration metrics: two of them are both called batch mixing."""
    return title if name.startswith("integration.") or "eighbour" in title else f"{title} (neighbours)"


def _numbers(values: Sequence[Any]) -> np.ndarray:
    return np.array([np.nan if value is None else float(value) for value in values])


def _words(value: Any, called: Mapping[str, str]) -> str:
    """Return a value of a setting in words; ``called`` says what the values of a choice are called."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        return ", ".join(Path(str(part)).name if "/" in str(part) else called.get(str(part), str(part)) for part in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {called.get(str(part), part)}" for name, part in value.items())
    said = called.get(str(value), str(value))
    return Path(said).name if Path(said).is_absolute() else said
