"""The Imputation view: known values are hidden, imputed by the model and compared with the truth, feature by feature."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QSignalBlocker, Qt
from qtpy.QtWidgets import QComboBox, QDoubleSpinBox, QGridLayout, QLabel, QSplitter, QVBoxLayout, QWidget

from cellweave.app.panels.parts import button, row, subheading, text, tool
from cellweave.app.theme import tabular_font
from cellweave.app.views.judgedialog import JudgeDialog
from cellweave.app.views.runview import RunView
from cellweave.app.views.tables import DataTable, TableColumn
from cellweave.app.views.truthplot import SpreadPlot, TruthPlot
from cellweave.core.export.imputation_parts import (
    HIDDEN,
    SUMMARY,
    TruthPicture,
    axis_titles,
    reliability_picture,
    score_of,
    spread_ends,
    truth_picture,
    what_was_hidden,
    written,
)
from cellweave.core.query.questions import JudgeOptions
from cellweave.core.spec.modalities import modality_kind

if TYPE_CHECKING:
    from cellweave.app.state.results import RunResults
    from cellweave.app.views.context import ViewContext
    from cellweave.core.analysis.imputation_scores import Comparison, Evaluation

CHOOSE = "Choose what to hide, then press Judge: the model imputes it, and the truth is laid beside."
HIDES = (
    ("held-out", HIDDEN["held-out"], "What the mosaic grid kept from training: a modality in a batch or in a cell type."),
    ("modality", HIDDEN["modality"], "All of a modality in held-out cells in which another one was measured."),
    ("entries", HIDDEN["entries"], "Single values of held-out cells, drawn at random."),
)
COLUMNS = (
    TableColumn("feature", "Feature", "Name of the feature."),
    TableColumn("pearson", "Pearson", "Correlation of imputed and measured values over the cells.", "share"),
    TableColumn("mse", "MSE", "Mean squared error.", "share", rank=1),
    TableColumn("mse_baseline", "Baseline", "Mean squared error of predicting the mean of the feature.", "share", rank=2),
    TableColumn("spearman", "Spearman", "Correlation of their ranks.", "share", rank=3),
    TableColumn("mean", "Mean", "Mean of the measured values.", "share", rank=4),
    TableColumn("n", "Values", "Values that were hidden and compared.", "count", rank=5),
)
AUROC = TableColumn("auroc", "AUROC", "Probability that a value of 1 gets a higher number than a value of 0; 0.5 is chance.", "share")


class ImputationView(RunView):
    """Numbers beside the mean of each feature, truth against imputed values, the spread of the scores, and a table of all features."""

    shows = "How well values are imputed appears here. Train scVAEIT or MIDAS on data of several modalities."
    no_figure = "Nothing was judged yet that a figure could show. Press Judge first."

    def __init__(self, context: ViewContext, parent: QWidget | None = None) -> None:
        super().__init__(context, parent)
        self.found: Evaluation | None = None
        self.options = JudgeOptions()
        self.cells: np.ndarray | None = None
        self.batches: tuple[str, ...] = ()
        self.dialog: JudgeDialog | None = None
        self._drawn = 0  # counts what is asked to be drawn: only the latest is shown
        self.feature = ""  # whose values are shown; empty: all features
        self._build()

    # ------------------------------------------------------------------ building

    def _build(self) -> None:
        self.hide_choice = QComboBox()
        self.hide_choice.setAccessibleName("What is hidden")
        for name, title, help_text in HIDES:
            self.hide_choice.addItem(title, name)
            self.hide_choice.setItemData(self.hide_choice.count() - 1, help_text, 3)  # the tooltip
        self.hide_choice.currentIndexChanged.connect(self._hide_changed)
        self.share = QDoubleSpinBox()
        self.share.setRange(1, 90)
        self.share.setValue(10)
        self.share.setDecimals(0)
        self.share.setSuffix(" %")
        self.share.setAccessibleName("Share of the values that is hidden")
        self.judge = button("Judge", "play", self._judge, primary=True)
        self.judge.setToolTip("Hide these values, impute them with the trained model and compare")
        self.choices = button("Choose…", "", self._ask_choices)
        self.choices.setToolTip("Which modality, features, batches and cells are judged, and what the model may look at")
        self.modality = QComboBox()
        self.modality.setAccessibleName("Modality")
        self.modality.currentIndexChanged.connect(lambda _: self._show_modality())
        self.every = button("Back to all", "", lambda: self.choose(-1))
        self.every.setToolTip("Show the values of all features together")
        self.figure_button = tool("figure", "Export as a figure", lambda: self.context.export_figure("imputation", self.figure_options()))
        self.csv = tool("table", "Export the table as CSV", self._export_csv)
        self.plot_title = subheading("All features")
        self.plot, self.spread = TruthPlot(), SpreadPlot()
        self.table = DataTable("Scores of every feature", "Search features", fit=True)
        self.table.chosen.connect(lambda source: self.choose(source) if source >= 0 else None)
        self.notes = text("", secondary=True)
        self.words = text(CHOOSE, secondary=True)
        self.words.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.numbers_of: dict[str, tuple[QLabel, QLabel, QLabel]] = {}  # title, imputed, feature mean, by the name of the score
        self.numbers = self._build_numbers()
        left, right = QWidget(), QWidget()
        beside = QVBoxLayout(left)
        beside.setContentsMargins(0, 0, 8, 0)
        beside.addLayout(row(self.plot_title, None, self.every, self.figure_button))
        beside.addWidget(self.plot, 1)
        table_side = QVBoxLayout(right)
        table_side.setContentsMargins(8, 0, 0, 0)
        table_side.setSpacing(8)
        table_side.addLayout(self.numbers)
        table_side.addWidget(self.spread)
        table_side.addWidget(self.table, 1)
        self.halves = QSplitter()
        self.halves.addWidget(left)
        self.halves.addWidget(right)
        self.halves.setStretchFactor(0, 5)  # a square picture beside a table of names and numbers, which leaves out columns
        self.halves.setStretchFactor(1, 6)
        self.halves.setSizes([500, 600])
        self.halves.setChildrenCollapsible(False)
        layout = QVBoxLayout(self.body)
        layout.setContentsMargins(12, 8, 12, 8)
        layout.setSpacing(8)
        shown = text("Show", wrap=False)
        layout.addLayout(row(text("Hide", wrap=False), self.hide_choice, self.share, self.choices, self.judge, None, shown, self.modality, self.csv))
        layout.addWidget(self.words, 1)
        layout.addWidget(self.halves, 1)
        layout.addWidget(self.notes)
        self._hide_changed()

    # ------------------------------------------------------------------ the run

    def show_run(self, results: RunResults) -> None:
        """Read what was judged before, in a thread."""
        self.hide_choice.model().item(2).setEnabled(results.spec.model.kind == "vaeit")
        self._offer_held_out(bool(results.spec.data.switched_off))
        self.judge.setEnabled(not results.trains)
        self._choose(JudgeOptions(), None)
        self.set_message("Reading what was judged…")

        def work(_report: Any) -> tuple[Evaluation | None, str, bool, tuple[str, ...]]:
            from cellweave.core.analysis.imputation_scores import load
            from cellweave.core.errors import CellweaveError
            from cellweave.core.export.run_data import RunData
            from cellweave.core.study.held_out import nothing_left, without_cells

            off, batch = results.spec.data.switched_off, results.spec.covariates.batch
            try:
                cells = RunData(results.folder).cells
            except CellweaveError:  # a run without results has none, and nothing to be judged
                return None, "", False, ()
            gone = without_cells(results.spec, cells) if off else []
            levels = sorted(cells[batch].dropna().unique()) if batch in cells else ()
            return load(results.folder / "results"), nothing_left(gone), len(gone) < len(off), tuple(levels)

        self.work(work, lambda found: self._took(*found))

    def _offer_held_out(self, there: bool) -> None:
        """Offer what was switched off where there is any of it to be judged."""
        self.hide_choice.model().item(0).setEnabled(there)
        self.hide_choice.setCurrentIndex(self.hide_choice.findData("held-out" if there else "modality"))

    def _took(self, found: Evaluation | None, gone: str, there: bool, batches: tuple[str, ...] = ()) -> None:
        self._offer_held_out(there)
        self.batches = batches
        self.words.setText(f"{gone} {CHOOSE}".strip())
        self._take(found)

    def clear(self) -> None:
        """Forget what was judged."""
        self.found = None
        self._empty()

    def _empty(self) -> None:
        self._drawn += 1
        self.feature = ""
        with QSignalBlocker(self.modality):
            self.modality.clear()
        self.plot.set_picture(None)
        self.notes.setText("")
        self._say_empty(empty=True)
        for widget in (self.modality, self.csv, self.figure_button):
            widget.setEnabled(False)

    def _say_empty(self, *, empty: bool) -> None:
        """Show words in the middle, as other views that wait for something do, or what was judged."""
        for widget, shown in ((self.words, empty), (self.halves, not empty), (self.notes, not empty)):
            widget.setVisible(shown)

    def _hide_changed(self, *_: object) -> None:
        self.share.setVisible(self.hide_choice.currentData() == "entries")

    def _choose(self, options: JudgeOptions, cells: np.ndarray | None) -> None:
        """Take over what shall be judged; the button says how much differs from the usual."""
        self.options, self.cells = options, cells
        plain = JudgeOptions()
        changed = sum(getattr(options, name) != getattr(plain, name) for name in JudgeOptions.model_fields) + (cells is not None)
        self.choices.setText(f"Choose… ({changed})" if changed else "Choose…")

    def _ask_choices(self) -> None:
        """Let a person choose what is judged, in a form as that of Ask the model."""
        if self.results is None:
            return
        self.dialog = JudgeDialog(self.context, self.results, self.options, self.batches, self._choose, self._judge, self)
        self.dialog.open()

    def _judge(self) -> None:
        results = self.results
        if results is None or not self.judge.isEnabled():
            return
        hide, share, options, cells = self.hide_choice.currentData(), self.share.value() / 100, self.options, self.cells

        def work(report: Any) -> Evaluation:
            from cellweave.core.analysis.imputation import evaluate
            from cellweave.core.analysis.imputation_choice import ImputationQuestion
            from cellweave.core.analysis.imputation_scores import save

            chosen = {**options.model_dump(), "given": options.given or None}
            found = evaluate(self.context.opened(results, report), ImputationQuestion(hide=hide, share=share, **chosen), cells)
            save(results.folder / "results", found)
            return found

        def failed(error: Exception, details: str) -> None:
            self.judge.setEnabled(True)
            from cellweave.core.errors import Cancelled

            if not isinstance(error, Cancelled):
                self.context.show_error(error, details)

        def done(found: Evaluation) -> None:
            self.judge.setEnabled(True)
            self._take(found)

        self.judge.setEnabled(False)
        self.work(work, done, doing="Imputing", failed=failed)

    def _take(self, found: Evaluation | None) -> None:
        self.set_message("")
        self.found = found
        if found is None:
            self._empty()
            return
        self._say_empty(empty=False)
        for widget in (self.modality, self.csv, self.figure_button):
            widget.setEnabled(True)
        with QSignalBlocker(self.modality):
            self.modality.clear()
            self.modality.addItems([modality_kind(name).label for name in found.comparisons])
            for number, name in enumerate(found.comparisons):
                self.modality.setItemData(number, name)
        place = self.hide_choice.findData(found.question.hide)
        if place >= 0:
            self.hide_choice.setCurrentIndex(place)
        if found.question.hide == "entries":
            self.share.setValue(100 * found.question.share)
        question = found.question
        kept = {name: getattr(question, name) for name in JudgeOptions.model_fields}
        if self.cells is None:
            self._choose(JudgeOptions(**{**kept, "given": question.given or ()}), None)
        self.notes.setText(what_was_hidden(question.hide, question.given, question.batches, found.notes))
        self._show_modality()

    # ------------------------------------------------------------------ one modality

    def comparison(self) -> Comparison | None:
        """Return the values that are shown."""
        return None if self.found is None else self.found.comparisons.get(self.modality.currentData())

    def _show_modality(self) -> None:
        found, shown = self.found, self.comparison()
        if found is None or shown is None:
            return
        name = self.modality.currentData()
        own = found.by_feature[found.by_feature["modality"] == name]
        columns = [COLUMNS[0], AUROC, *COLUMNS[1:]] if shown.binary else list(COLUMNS)
        self.table.set_table(
            columns, {column.name: own[column.name].to_numpy() for column in columns}, text_column="feature",
            sort_by=score_of(shown.scale)[0],
        )
        score, title = score_of(shown.scale)
        scores = own[score].to_numpy(dtype=float)
        self.spread.set_values(scores, f"{title} of the features", *spread_ends(scores, shown.scale))
        self._fill_numbers(found.overall[name])
        self.choose(-1)

    def _build_numbers(self) -> QGridLayout:
        """Lay out every score once: labels that were made anew would be blank until Qt shows them."""
        grid = QGridLayout()
        grid.setHorizontalSpacing(16)
        grid.setVerticalSpacing(2)
        grid.setColumnStretch(3, 1)
        for column, title in enumerate(("", "Imputed", "Feature mean")):
            grid.addWidget(text(title, secondary=True, wrap=False), 0, column)
        for line, (name, _, title) in enumerate(SUMMARY, start=1):
            labels = text(title, wrap=False), text("", wrap=False), text("", wrap=False)
            for column, label in enumerate(labels):
                grid.addWidget(label, line, column)
            self.numbers_of[name] = labels
        return grid

    def _fill_numbers(self, overall: dict[str, float]) -> None:
        for own, baseline, _ in SUMMARY:
            labels = self.numbers_of[own]
            for label in labels:
                label.setVisible(own in overall)
            value, mean = overall.get(own, float("nan")), overall.get(baseline, float("nan"))
            better = bool(np.isfinite(mean)) and (value < mean) == (own == "mse")
            for label, number, strong in ((labels[1], value, better), (labels[2], mean, False)):
                font = tabular_font()
                font.setBold(strong)
                label.setFont(font)
                label.setText(written(number))

    def choose(self, source: int) -> None:
        """Show the values of one feature, by its row in the table; -1 shows all together."""
        shown = self.comparison()
        if shown is None:
            return
        names = self.table.table.values("feature")
        column, title = None, "All features"
        if source >= 0:
            found = np.flatnonzero(shown.features == names[source])
            if len(found):
                column, title = int(found[0]), str(names[source])
        else:
            self.table.choose(-1, scroll=False)
        self.feature = "" if column is None else title
        self.plot_title.setText(title)
        self.every.setEnabled(column is not None)
        score, _ = score_of(shown.scale)
        self.spread.mark(float("nan") if column is None else float(self.table.table.values(score)[source]))
        baseline = float("nan") if column is None else float(shown.baseline[column])
        binary = shown.binary
        titles = axis_titles(shown.scale)
        self.plot.setToolTip("Values are log(1 + x) of counts per 10,000 (CP10k) of the modality." if shown.scale == "log1p" else "")
        self._drawn += 1
        drawn = self._drawn
        imputed, truth = (shown.imputed, shown.truth) if column is None else (shown.imputed[:, column], shown.truth[:, column])
        self.plot_title.setToolTip(title)

        def picture(_report: Any) -> TruthPicture:
            return (reliability_picture if binary else truth_picture)(imputed.ravel(), truth.ravel())

        def made(found: TruthPicture) -> None:
            if drawn == self._drawn:  # a picture of all values takes longer than that of a feature chosen after it
                self.plot.set_picture(found, titles, baseline)

        self.work(picture, made)

    # ------------------------------------------------------------------ taking away

    def figure_options(self) -> dict[str, Any]:
        """Return what the figure dialog begins with: the modality and the feature that are shown."""
        return {"imputation_modality": self.modality.currentText(), "imputation_feature": self.feature}

    def figure(self) -> dict[str, Any] | None:
        """Return the figure of the view, where something was judged."""
        return {"what": "imputation", **self.figure_options()} if self.comparison() is not None else None

    def _export_csv(self) -> None:
        found = self.found
        if found is not None:
            self.context.save_csv("imputation", lambda: found.by_feature.to_csv(index=False))
