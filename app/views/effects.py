"""The Ambient view: which genes are background in which library, how much of the counts is, and what else covariates do."""

from __future__ import annotations

import html
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QSignalBlocker
from qtpy.QtWidgets import QComboBox, QSplitter, QVBoxLayout, QWidget
from superqt import QFlowLayout

from cellweave.app.panels.parts import button, row, subheading, text, tool
from cellweave.app.views.columns import ColumnData
from cellweave.app.views.levelbars import LevelBars
from cellweave.app.views.runview import RunView
from cellweave.app.views.scorepanel import ScorePanel
from cellweave.app.views.tables import DataTable, TableColumn
from cellweave.core.spec.modalities import modality_kind

if TYPE_CHECKING:
    from cellweave.app.state.results import RunResults
    from cellweave.app.views.context import ViewContext
    from cellweave.core.query.effects import Effects

SMALLEST = 1e-12
UNSEEN = 1.2e-8  # background of a gene without a count in a library: where it began, which would squeeze the plot of all others


class EffectsView(RunView):
    """A table of genes with their background in one library, bars of one gene over all libraries, and what covariates do elsewhere.

    Attributes
    ----------
    effects
        What is shown, or None.
    """

    shows = "Which genes are ambient background in which library appears here, with scaling factors and dispersions. Train Ambient-regularised VI to have it."
    no_figure = "There is no ambient background that a figure could show. Its tables can be exported as CSV."

    def __init__(self, context: ViewContext, parent: QWidget | None = None) -> None:
        super().__init__(context, parent)
        self.effects: Effects | None = None
        self.gene = -1
        self._build()

    # ------------------------------------------------------------------ building

    def _build(self) -> None:
        self.modality, self.column, self.level = (_chooser(name) for name in ("Modality", "Ambient column", "Level"))
        self.modality.currentIndexChanged.connect(lambda _: self._modality_chosen())
        self.column.currentIndexChanged.connect(lambda _: self._column_chosen())
        self.level.currentIndexChanged.connect(lambda _: self._fill())
        self.cells_button = button("Colour cells by their background", "scatter", self._colour_cells)
        self.cells_button.setToolTip("Colour the embedding by the share of background in each cell's expected counts")
        self.gene_button = button("by the gene", "scatter", self._colour_gene)
        self.gene_button.setToolTip("Colour the embedding by the counts of the chosen gene")
        self.figure_button = tool("figure", "Export as a figure", lambda: self.context.export_figure("ambient", self.figure_options()))
        self.csv_button = tool("table", "Export the table of all genes and levels as CSV", self._export)
        head = QWidget()
        flow = QFlowLayout(head)
        flow.setContentsMargins(0, 0, 0, 0)
        flow.setSpacing(8)
        for name, box in (("Modality", self.modality), ("Column", self.column), ("Level", self.level)):
            flow.addWidget(_labelled(name, box))
        last = QWidget()
        last.setLayout(row(self.cells_button, self.gene_button, self.figure_button, self.csv_button))
        flow.addWidget(last)
        self.table = DataTable("Genes and their background", "Search genes")
        self.table.chosen.connect(self.choose)
        self.bars = LevelBars("Background of the chosen gene by level")
        self.bars.chosen.connect(self.level.setCurrentIndex)
        self.shares = LevelBars("Share of background in the expected counts by level")
        self.shares.chosen.connect(self.level.setCurrentIndex)
        self.plot = ScorePanel()
        self.plot.hovered.connect(self._hover)
        self.plot.fitWanted.connect(self.plot.fit)
        self.bars_title, self.shares_title = subheading(""), subheading("Background in all counts")
        self.words = text("", secondary=True, selectable=True)
        self.words.setAccessibleName("What covariates do in the decoder")
        right = QWidget()
        side = QVBoxLayout(right)
        side.setContentsMargins(4, 0, 0, 0)
        side.setSpacing(8)
        side.addWidget(self.bars_title)
        side.addWidget(self.bars, 1)
        side.addWidget(self.shares_title)
        side.addWidget(self.shares, 1)
        self.plot.setMinimumHeight(18 * self.fontMetrics().height())  # with fewer lines its ticks cover each other
        side.addWidget(self.plot, 3)
        whole = QSplitter()
        whole.addWidget(self.table)
        whole.addWidget(right)
        whole.setSizes([580, 420])
        whole.setChildrenCollapsible(False)
        layout = QVBoxLayout(self.body)
        layout.setContentsMargins(8, 8, 8, 8)
        layout.setSpacing(8)
        layout.addWidget(head)
        layout.addWidget(whole, 1)
        layout.addWidget(self.words)

    # ------------------------------------------------------------------ the run

    def show_run(self, results: RunResults) -> None:
        """Read the effects in a thread."""
        if results.trains:
            self.set_message("The background is told when training ends.")
            return
        self.set_message("Reading the covariate effects…")

        def work(_report: Any) -> Effects | None:
            from cellweave.core.query.effects import Effects

            return Effects.load(results.folder / "results")

        self.work(work, self._take)

    def clear(self) -> None:
        """Forget the run."""
        self.effects, self.gene = None, -1

    def _take(self, effects: Effects | None) -> None:
        if effects is None:
            self.set_message("What the covariates do was not looked at yet in this run. It takes one pass over the cells.", "Compute", self.compute)
            return
        self.set_message("")
        self.effects = effects
        ordered = sorted(effects.modalities, key=lambda name: (name not in effects.background, name))
        with QSignalBlocker(self.modality):
            self.modality.clear()
            for name in ordered:
                self.modality.addItem(modality_kind(name).label, name)
        self._modality_chosen()

    def compute(self) -> None:
        """Look at what the covariates do and keep it with the run."""
        results = self.results
        if results is None:
            return
        self.set_message("Looking at what the covariates do…")

        def work(report: Any) -> Effects:
            from cellweave.core.query.effects import covariate_effects

            run = self.context.opened(results, report)
            found = covariate_effects(
                run.model, run.loader, run.trained.features, run.trained.encoding.levels, progress=lambda share: report("", share),
                cancelled=lambda: report.cancelled,
            )  # fmt: skip
            found.save(results.folder / "results")
            return found

        def failed(error: Exception, details: str) -> None:
            self.set_message(str(error) or "It was cancelled.", "Compute", self.compute)

        self.work(work, self._take, doing="Covariate effects", failed=failed)

    # ------------------------------------------------------------------ showing

    def _modality_chosen(self) -> None:
        if self.effects is None:
            return
        tables = self.effects.background.get(self.modality.currentData(), {}) or self.effects.scaling.get(self.modality.currentData(), {})
        with QSignalBlocker(self.column):
            self.column.clear()
            for name in tables:
                self.column.addItem(name, name)
        self.gene = -1
        self._column_chosen()

    def _column_chosen(self) -> None:
        table = self._table()
        with QSignalBlocker(self.level):
            self.level.clear()
            for name in table.levels if table is not None else ():
                self.level.addItem(name, name)
        self._fill()

    @property
    def has_background(self) -> bool:
        """Whether the chosen modality has an ambient background."""
        return self.effects is not None and self.modality.currentData() in self.effects.background

    def _table(self) -> Any:
        if self.effects is None or self.column.currentData() is None:
            return None
        kind = self.effects.background if self.has_background else self.effects.scaling
        return kind[self.modality.currentData()][self.column.currentData()]

    def _fill(self) -> None:
        effects, name = self.effects, self.modality.currentData()
        if effects is None or name is None:
            return
        number = max(0, self.level.currentIndex())
        columns = [TableColumn("feature", "Feature", "Name of the feature.")]
        values: dict[str, Any] = {"feature": np.array(effects.features[name], dtype=object)}
        sort_by = "dispersion"
        if self.has_background:
            column = self.column.currentData()
            table, share = effects.background[name][column], effects.share(name, column)
            columns += [
                TableColumn("background", "Background", "Ambient counts of a cell of mean depth at this level.", "number"),
                TableColumn("share", "Share", "Share of the feature's expected counts at this level that is background.", "share"),
            ]
            values |= {"background": table.values[number], "share": share.values[number]}
            sort_by = "background"
            if len(table.levels) > 1:
                columns.append(TableColumn("specific", "vs. others", "Background here over the mean of the other levels, in powers of two.", "number"))
                known = np.isfinite(effects.level_share(name, column))  # a level without measured cells is no comparison
                known[number] = False
                others = table.values[known].mean(0) if known.any() else np.full(len(table.values[number]), np.nan)
                values["specific"] = np.log2((table.values[number] + SMALLEST) / (others + SMALLEST))
        scaling = effects.scaling.get(name)
        if scaling:
            factors = np.concatenate([each.values for each in scaling.values()])
            columns.append(TableColumn("scaling", "Scaling", "Largest departure of a scaling factor from 1, over all levels.", "number"))
            values["scaling"] = factors[np.abs(factors - 1).argmax(0), np.arange(factors.shape[1])] - 1
        columns.append(TableColumn("dispersion", "Theta", "Inverse dispersion, mean over the groups; features with small values are noisy.", "number"))
        values["dispersion"] = effects.dispersion[name].values.mean(0)
        self.table.set_table(columns, values, text_column="feature", sort_by=sort_by)
        self._show_shares()
        self._show_plot(values)
        self._say()
        order = self.table.table.order()
        self.choose(self.gene if self.gene >= 0 else int(order[0]) if len(order) else -1)
        self.cells_button.setEnabled(name in effects.cell_fraction and self.results is not None and self.results.cells is not None)
        self.gene_button.setEnabled(self.results is not None and self.results.cells is not None)

    def choose(self, gene: int) -> None:
        """Show a gene over all levels."""
        table = self._table()
        if self.effects is None or gene < 0:
            return
        self.gene = gene
        if self.table.current() != gene:
            self.table.choose(gene, scroll=False)
        name, feature = self.modality.currentData(), self.effects.features[self.modality.currentData()][gene]
        if table is None:
            self.bars_title.setText(f"{feature}: no column acts on it")
            self.bars.show_levels([], np.zeros(0))
            return
        what = "background, and expression beside it" if self.has_background else "scaling factors"
        self.bars_title.setText(f"{feature}: {what}")
        beside = self.effects.expression[name][self.column.currentData()].values[:, gene] if self.has_background else None
        unit = "counts" if self.has_background else ""
        self.bars.show_levels(table.levels, table.values[:, gene], beside=beside, marked=self.level.currentIndex(), unit=unit)

    def _show_shares(self) -> None:
        effects, name = self.effects, self.modality.currentData()
        there = self.has_background
        self.shares_title.setVisible(there)
        self.shares.setVisible(there)
        if effects is None or not there:
            return
        column = self.column.currentData()
        self.shares.show_levels(
            effects.background[name][column].levels, effects.level_share(name, column), marked=self.level.currentIndex(), share=True
        )

    def _show_plot(self, values: dict[str, Any]) -> None:
        """Show the background of every feature against its expression; above the diagonal there is more of the first."""
        effects, name = self.effects, self.modality.currentData()
        self.plot.setVisible(self.has_background)
        if effects is None or not self.has_background:
            return
        expression = effects.expression[name][self.column.currentData()].values[max(0, self.level.currentIndex())]
        columns = {"Share of background": ColumnData.continuous(values["share"])}
        if "specific" in values:
            columns["Background here over other levels, log2"] = ColumnData.continuous(values["specific"], diverging=True)
        background = np.where(values["background"] > UNSEEN, values["background"], np.nan)
        kept = self.plot.column_name()
        self.plot.set_columns(columns, kept if kept in columns else "")
        self.plot.set_scores(expression, background, (("Expression", "counts"), ("Background", "counts")), log=True)
        self.plot.fit()

    def _hover(self, index: int | None) -> None:
        if index is None or self.effects is None:
            self.plot.show_hovered(None)
            return
        name = self.modality.currentData()
        share = self.effects.share(name, self.column.currentData()).values[max(0, self.level.currentIndex()), index]
        self.plot.show_hovered(index, f"<b>{html.escape(self.effects.features[name][index])}</b><br>{share:.0%} background")

    def _say(self) -> None:
        effects, name = self.effects, self.modality.currentData()
        assert effects is not None
        norms, library = effects.norms[name], effects.library[name]
        label = modality_kind(name).label
        parts = [f"Covariates have {norms['share']:.0%} of the norm of the {label} decoder's first layer"]
        if not norms["covariates"]:
            parts = [f"The {label} decoder is told of no covariate"]
        single = [f"{key.removeprefix('column:')} {value:.2g}" for key, value in norms.items() if key.startswith("column:") and value]
        if single:
            parts[0] += f" ({', '.join(single)}; latent {norms['latent']:.2g})"
        scaling = effects.scaling.get(name)
        if scaling:
            factors = np.concatenate([each.values.ravel() for each in scaling.values()])
            low, high = np.percentile(factors, [1, 99])
            parts.append(f"feature scaling lies between {low:.2f} and {high:.2f} for 98% of the factors")
        parts.append(f"the observed total enters the library size with the weight {library['weight']:.2f}, sensitivity {library['sensitivity']:g}")
        self.words.setText("; ".join(parts) + ".")

    # ------------------------------------------------------------------ elsewhere

    def _colour_cells(self) -> None:
        if self.effects is None:
            return
        values = self.effects.cell_fraction[self.modality.currentData()]
        self.context.colour_by("Share of background", values, np.arange(len(values), dtype=np.int64))
        self.context.show_view("embedding")

    def _colour_gene(self) -> None:
        if self.effects is not None and self.gene >= 0:
            self.context.colour_by_gene(self.effects.features[self.modality.currentData()][self.gene])
            self.context.show_view("embedding")

    def _export(self) -> None:
        effects = self.effects
        if effects is None:
            return

        def csv() -> str:
            from cellweave.core.query.effects import gene_table

            out = io.StringIO()
            gene_table(effects).to_csv(out, float_format="%.6g")
            return out.getvalue()

        self.context.save_csv("background", csv)

    def figure_options(self) -> dict[str, Any]:
        """Return what the figure dialog begins with."""
        return {}

    def figure(self) -> dict[str, Any] | None:
        """Return the figure of the view."""
        return {"what": "ambient", **self.figure_options()} if self.effects is not None and self.effects.background else None


def _chooser(name: str) -> QComboBox:
    box = QComboBox()
    box.setAccessibleName(name)
    box.setToolTip(name)
    box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)
    return box


def _labelled(name: str, box: QComboBox) -> QWidget:
    holder = QWidget()
    label = text(name, wrap=False, secondary=True)
    label.setBuddy(box)
    holder.setLayout(row(label, box, spacing=4))
    return holder
