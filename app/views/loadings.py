"""The Loadings view: which genes each latent dimension of a linear decoder stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QResizeEvent
from qtpy.QtWidgets import QComboBox, QFrame, QScrollArea, QSpinBox, QSplitter, QVBoxLayout, QWidget

from cellweave.app.panels.parts import button, row, subheading, text, tool
from cellweave.app.views.heatmap import BarChart, HeatMap
from cellweave.app.views.runview import RunView
from cellweave.app.views.tables import DataTable, TableColumn

if TYPE_CHECKING:
    from cellweave.app.state.results import RunResults
    from cellweave.app.views.context import ViewContext
    from cellweave.core.export.loadings import Loadings


class LoadingsView(RunView):
    """Heat map of the strongest genes, bars of one dimension, and a table of all genes; a gene chosen in one is marked in all."""

    shows = "The loadings of a linear decoder appear here: which genes each latent dimension stands for. Train LDVAE to have them."

    def __init__(self, context: ViewContext, parent: QWidget | None = None) -> None:
        super().__init__(context, parent)
        self.loadings: Loadings | None = None
        self._rows = np.zeros(0, np.intp)
        self._bars = np.zeros(0, np.intp)
        self.gene = -1
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(0)
        self._settle.timeout.connect(self._fill_bars)
        self._build()

    def _build(self) -> None:
        self.dimension = QComboBox()
        self.dimension.setAccessibleName("Latent dimension")
        self.dimension.currentIndexChanged.connect(self._dimension_changed)
        self.each = QSpinBox()
        self.each.setRange(1, 20)
        self.each.setValue(3)
        self.each.setAccessibleName("Genes of each dimension in the heat map")
        self.each.setToolTip("How many of the strongest genes of each dimension the heat map shows")
        self.each.valueChanged.connect(self._fill_map)
        self.colour = button("Colour cells by the gene", "scatter", self._colour_by_gene)
        self.colour_latent = button("by the dimension", "scatter", self._colour_by_dimension)
        self.colour.setToolTip("Colour the embedding by the counts of the chosen gene")
        self.colour_latent.setToolTip("Colour the embedding by the chosen latent dimension")
        self.figure_button = tool("figure", "Export as a figure", lambda: self.context.export_figure("loadings", self.figure_options()))
        self.csv_button = tool("table", "Export the table as CSV", self._export)
        self.map = HeatMap("Loadings of the strongest genes by latent dimension")
        self.map.chosen.connect(self._cell_chosen)
        scroll = QScrollArea()
        scroll.setFrameShape(QFrame.Shape.NoFrame)
        scroll.setWidgetResizable(True)
        scroll.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setWidget(self.map)
        self.bars = BarChart("Genes with the largest loadings of this dimension")
        self.bars.chosen.connect(lambda number: self.choose(int(self._bars[number])))
        self.table = DataTable("Loadings of every gene", "Search genes")
        self.table.chosen.connect(lambda source: self.choose(source) if source >= 0 else None)
        upper = QSplitter(Qt.Orientation.Horizontal)
        upper.addWidget(_titled(row(subheading("Strongest genes"), None, text("of each", secondary=True, wrap=False), self.each), scroll))
        upper.addWidget(_titled(row(subheading("Dimension"), self.dimension, None, self.figure_button, self.csv_button), self.bars))
        upper.setStretchFactor(0, 1)
        upper.setStretchFactor(1, 1)
        upper.setChildrenCollapsible(False)
        lower = QWidget()
        below = QVBoxLayout(lower)
        below.setContentsMargins(0, 4, 0, 0)
        below.addWidget(self.table, 1)
        self.table.bar.addWidget(self.colour)
        self.table.bar.addWidget(self.colour_latent)
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
        """Read the loadings in a thread."""
        self.set_message("Reading the loadings…")

        def work(_report: Any) -> Loadings:
            from cellweave.core.export.loadings import read_loadings

            return read_loadings(results.folder)

        self.work(work, self._take)

    def clear(self) -> None:
        """Forget the loadings."""
        self.loadings, self.gene = None, -1

    def _take(self, loadings: Loadings) -> None:
        self.loadings = loadings
        names = [f"Z_{number}" for number in range(loadings.n_latent)]  # as in the files
        self.dimension.blockSignals(True)  # noqa: FBT003
        self.dimension.clear()
        self.dimension.addItems(names)
        self.dimension.blockSignals(False)  # noqa: FBT003
        columns = [TableColumn("feature", "Gene", "Name of the feature.")]
        columns += [TableColumn(name, name, f"Loading of latent dimension {name}.", "number") for name in names]
        values: dict[str, Any] = {"feature": loadings.features}
        values |= {f"Z_{number}": loadings.values[:, number] for number in range(loadings.n_latent)}
        self.table.set_table(columns, values, text_column="feature", sort_by="Z_0")
        self.set_message("")
        self._fill_map()
        self._dimension_changed(0)
        self.choose(int(self._bars[0]) if len(self._bars) else 0, scroll=False)

    # ------------------------------------------------------------------ drawing

    def _fill_map(self, *_: object) -> None:
        if self.loadings is None:
            return
        found = self.loadings
        self._rows = found.strongest(self.each.value())
        shown = found.values[self._rows]
        reach = float(np.percentile(np.abs(shown[np.isfinite(shown)]), 99)) if np.isfinite(shown).any() else 1.0
        self.map.set_values(shown, [str(name) for name in found.features[self._rows]], [f"Z_{n}" for n in range(found.n_latent)], reach)
        self._mark()

    def _dimension_changed(self, _number: int) -> None:
        self._fill_bars()
        self._mark()

    def _fill_bars(self) -> None:
        if self.loadings is None or self.dimension.currentIndex() < 0:
            return
        up, down = self.loadings.top(self.dimension.currentIndex(), max(1, self.bars.room() // 2))
        self._bars = np.concatenate([up, down[::-1]])
        values = self.loadings.values[self._bars, self.dimension.currentIndex()]
        self.bars.set_values([str(name) for name in self.loadings.features[self._bars]], values)
        self._mark()

    def resizeEvent(self, event: QResizeEvent | None) -> None:  # noqa: N802
        """Show as many bars as there is room for."""
        super().resizeEvent(event)
        self._settle.start()

    # ------------------------------------------------------------------ choosing

    def choose(self, gene: int, *, scroll: bool = True) -> None:
        """Choose a gene by its row: marked in the heat map, the bars and the table."""
        self.gene = gene
        self.table.choose(gene, scroll=scroll)
        self._mark()

    def _cell_chosen(self, row_number: int, column: int) -> None:
        self.dimension.setCurrentIndex(column)
        self.choose(int(self._rows[row_number]))

    def _mark(self) -> None:
        place = np.flatnonzero(self._rows == self.gene)
        self.map.mark(int(place[0]) if len(place) else -1, self.dimension.currentIndex())
        place = np.flatnonzero(self._bars == self.gene)
        self.bars.mark(int(place[0]) if len(place) else -1)
        cells = self.results is not None and self.results.cells is not None
        self.colour.setEnabled(cells and self.gene >= 0)
        self.colour_latent.setEnabled(cells)

    def _colour_by_gene(self) -> None:
        if self.loadings is not None and self.gene >= 0:
            self.context.colour_by_gene(str(self.loadings.features[self.gene]))
            self.context.show_view("embedding")

    def _colour_by_dimension(self) -> None:
        self.context.colour_by_column(f"latent:{self.dimension.currentIndex() + 1}")
        self.context.show_view("embedding")

    # ------------------------------------------------------------------ taking away

    def _export(self) -> None:
        self.context.save_csv("loadings", self.table.as_csv)

    def figure_options(self) -> dict[str, Any]:
        """Return what the figure dialog begins with."""
        return {"genes_each": self.each.value()}

    def figure(self) -> dict[str, Any] | None:
        """Return the heat map."""
        return {"what": "loadings", **self.figure_options()} if self.loadings is not None else None


def _titled(head: Any, body: QWidget) -> QWidget:
    holder = QWidget()
    layout = QVBoxLayout(holder)
    layout.setContentsMargins(4, 0, 4, 4)
    layout.setSpacing(4)
    layout.addLayout(head)
    layout.addWidget(body, 1)
    return holder
