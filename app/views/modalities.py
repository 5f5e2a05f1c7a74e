"""The Modalities view: what all modalities together, and each alone, say of the cells of each batch, and how well they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QComboBox, QFrame, QScrollArea, QSplitter, QVBoxLayout, QWidget

from cellweave.app.panels.parts import row, subheading, text, tool
from cellweave.app.theme import current, follow
from cellweave.app.views.columns import ColumnData, column_label
from cellweave.app.views.legend import CategoryLegend
from cellweave.app.views.modalitygrid import ModalityGrid
from cellweave.app.views.runview import RunView
from cellweave.app.views.tables import DataTable, TableColumn

if TYPE_CHECKING:
    from cellweave.app.state.results import Cells, RunResults
    from cellweave.app.views.context import ViewContext

MOST_LEVELS = 100  # of a column that cells are coloured by
COLUMNS = (
    TableColumn("pair", "Modalities", "Two modalities that some cells have both."),
    TableColumn("n_cells", "Cells", "Cells measured in both that were looked at.", "count", rank=2),
    TableColumn("foscttm", "1 \N{MINUS SIGN} FOSCTTM", "FOSCTTM is the mean share of cells nearer than the true match: 1 is best here, 0.5 chance.", "share"),
    TableColumn("transfer", "Labels", "Share of cells whose label is right when told from the other modality's 5 nearest cells.", "share"),
    TableColumn("mixing", "Mixed", "1 minus the mean absolute silhouette of the modalities: 1 where they lie on each other.", "share", rank=1),
)
ABOUT = {"scmib_batch": "Batch mixing", "modality_score": "Modalities", "scmib_bio": "Biology kept"}
PARTS = (
    TableColumn("part", "Part of the score", "What was measured."),
    TableColumn("about", "Mean", "The mean it is part of.", rank=2),
    TableColumn("value", "Latent", "Of the latent space, or of what is told from it; between 0 and 1, higher is better.", "share"),
    TableColumn("counts", "Counts", "The same of batch-corrected counts of all modalities, where it is a part of the score; between 0 and 1, higher is better.",
                "share"),
    TableColumn("why", "Missing because", "Why a part was not measured; it is left out of its mean.", rank=1),
)


@dataclass(frozen=True)
class Found:
    """What was read of a run.

    Attributes
    ----------
    layout
        ``(1 + n_modalities, n_cells, 2)`` of the cells, or None where there is no such picture.
    names
        What its first axis is.
    cells
        The cells with their columns.
    pairs
        Rows of the table.
    batch
        Name of the batch column, or empty.
    score
        What ``scmib.json`` holds, or None.
    totals
        Sentences on the totals of the score.
    off
        Batch and modality of what was switched off before training.
    """

    layout: NDArray[np.float32] | None
    names: tuple[str, ...]
    cells: Cells
    pairs: tuple[dict[str, Any], ...]
    batch: str
    score: dict[str, Any] | None = None
    totals: str = ""
    off: frozenset[tuple[str, str]] = frozenset()


class ModalitiesView(RunView):
    """A grid of pictures, and a table of how well modalities agree."""

    shows = "What each modality alone says of the cells of each batch appears here, beside what all say together. Train MIDAS on several modalities."
    no_figure = "This run has neither a picture nor a score of its modalities. Compute the embedding again with UMAP and alignment switched on."

    def __init__(self, context: ViewContext, parent: QWidget | None = None) -> None:
        super().__init__(context, parent)
        self.found: Found | None = None
        self._build()

    def _build(self) -> None:
        self.colour = QComboBox()
        self.colour.setAccessibleName("Colour cells by")
        self.colour.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)  # its columns come after it was first shown
        self.colour.currentIndexChanged.connect(self._recolour)
        self.legend = CategoryLegend()
        self.legend.set_beside(True)
        self.legend.hiddenChanged.connect(self._hide)
        follow(self, self._retheme)
        self.grid = ModalityGrid()
        self.grid.chosen.connect(self._chosen)
        self.no_picture = text("There is no picture of the modalities: the run was analysed without a UMAP.", secondary=True)
        scroll = QScrollArea()
        scroll.setFrameShape(QFrame.Shape.NoFrame)
        scroll.setWidgetResizable(True)
        scroll.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        scroll.setWidget(self.grid)
        self.table = DataTable("How well modalities agree", fit=True)
        self.csv = tool("table", "Export the table as CSV", lambda: self.context.save_csv("alignment", self.table.as_csv))
        self.csv.setEnabled(False)
        self.figure_button = tool("figure", "Export as a figure", lambda: self.context.export_figure("modalities", self.figure_options()))
        self.figure_button.setEnabled(False)
        upper, above = QWidget(), QSplitter(Qt.Orientation.Horizontal)
        above.addWidget(scroll)
        above.addWidget(self.legend)
        above.setStretchFactor(0, 1)
        above.setStretchFactor(1, 0)
        above.setChildrenCollapsible(False)
        top = QVBoxLayout(upper)
        top.setContentsMargins(0, 0, 0, 0)
        top.addLayout(row(subheading("Batches and modalities"), None, text("Colour by", secondary=True, wrap=False), self.colour, self.figure_button))
        top.addWidget(self.no_picture)
        top.addWidget(above, 1)
        lower = self._lower()
        whole = QSplitter(Qt.Orientation.Vertical)
        whole.addWidget(upper)
        whole.addWidget(lower)
        whole.setStretchFactor(0, 1)
        whole.setStretchFactor(1, 0)
        whole.setSizes([520, 200])
        whole.setChildrenCollapsible(False)
        layout = QVBoxLayout(self.body)
        layout.setContentsMargins(8, 8, 8, 8)
        layout.addWidget(whole)

    def _lower(self) -> QSplitter:
        """Return the tables: pairs of modalities, and the parts of the score."""
        self.parts = DataTable("Parts of the score of the mosaic", fit=True)
        self.parts_csv = tool("table", "Export the parts of the score as CSV", lambda: self.context.save_csv("scmib", self.parts.as_csv))
        self.total = text("", secondary=True)
        self.total.setAccessibleName("Score of the mosaic")
        lower = QSplitter(Qt.Orientation.Horizontal)
        for heading, table, csv, words in (
            ("Agreement of the modalities in the same cells", self.table, self.csv, None),
            ("Score of the mosaic (scMIB)", self.parts, self.parts_csv, self.total),
        ):  # fmt: skip
            side = QWidget()
            layout = QVBoxLayout(side)
            layout.setContentsMargins(0, 4, 0, 0)
            layout.addLayout(row(subheading(heading), None, csv))
            if words is not None:
                layout.addWidget(words)
            layout.addWidget(table, 1)
            lower.addWidget(side)
        lower.setChildrenCollapsible(False)
        lower.setSizes([500, 500])
        return lower

    # ------------------------------------------------------------------ the run

    def show_run(self, results: RunResults) -> None:
        """Read the pictures and the table in a thread."""
        self.set_message("Reading what the modalities say…")
        self.work(lambda _report: read_modalities(results), self._take)

    def clear(self) -> None:
        """Forget the run."""
        self.found = None

    def _take(self, found: Found) -> None:
        self.found = found
        self.set_message("")
        self.no_picture.setVisible(found.layout is None)
        self.grid.setVisible(found.layout is not None)
        self.legend.setVisible(found.layout is not None)
        if found.layout is not None:
            column = found.cells.columns.get(found.batch)
            codes = np.zeros(len(found.cells.rows), np.int32) if column is None else np.asarray(column.codes, np.int32)
            self.grid.set_cells(found.layout, found.names, codes, ("all cells",) if column is None else tuple(map(str, column.levels)), found.off)
        self._offer_columns(found)
        values: dict[str, Any] = {"pair": np.array([f"{pair['first']} and {pair['second']}" for pair in found.pairs], dtype=object)}
        for name in ("n_cells", "foscttm", "transfer", "mixing"):
            values[name] = np.array([np.nan if pair.get(name) is None else float(pair[name]) for pair in found.pairs])
        self.table.set_table(list(COLUMNS), values, text_column="pair", sort_by="pair")
        self.csv.setEnabled(bool(found.pairs))
        self.figure_button.setEnabled(found.layout is not None or found.score is not None)
        self._show_score(found)

    def _show_score(self, found: Found) -> None:
        """Show each part, and say what the total is or why there is none."""
        every = [] if found.score is None else found.score["parts"]
        drawn = {part["name"]: part for part in every if part["of"] == "counts"}
        parts = [part for part in every if part["of"] != "counts"]
        pairs = [(part, drawn.get(f"counts_{part['name']}") if part["of"] else None) for part in parts]
        values: dict[str, Any] = {
            "part": np.array([part["title"] for part in parts], dtype=object),
            "about": np.array([ABOUT.get(part["score"], part["score"]) for part in parts], dtype=object),
            "value": np.array([_number(part) for part in parts]),
            "counts": np.array([_number(other) for _, other in pairs]),
            "why": np.array([_why(part, other) for part, other in pairs], dtype=object),
        }
        columns = [column for column in PARTS if column.name not in {"why", "counts"} or any(values["why"] if column.name == "why" else drawn)]
        self.parts.set_table(columns, values, text_column="part")
        self.parts_csv.setEnabled(bool(parts))
        self.total.setText(found.totals or "It is put together when the metrics of the run are computed: open Metrics and compute them.")

    def _offer_columns(self, found: Found) -> None:
        labels = self.results.spec.covariates.labels if self.results is not None else None
        offered = {name: column for name, column in found.cells.columns.items() if column.levels is not None and not name.startswith("latent:")}
        names = [name for name, column in offered.items() if len(column.levels) <= MOST_LEVELS]
        first = next((name for name in (labels, "leiden", found.batch) if name in names), names[0] if names else "")
        self.colour.blockSignals(True)  # noqa: FBT003
        self.colour.clear()
        for name in names:
            self.colour.addItem(column_label(name), name)
        self.colour.setCurrentIndex(max(0, self.colour.findData(first)))
        self.colour.blockSignals(False)  # noqa: FBT003
        self._recolour()

    def _column(self) -> ColumnData | None:
        if self.found is None or self.colour.currentData() is None:
            return None
        column = self.found.cells.columns[self.colour.currentData()]
        return ColumnData.categorical(column.codes, column.levels)

    def _recolour(self, *_: object) -> None:
        column = self._column()
        if column is None:
            return
        self._show_levels(column, frozenset())
        wanted = min(self.legend.hint_beside().width(), 20 * self.fontMetrics().averageCharWidth())
        self.legend.setMinimumWidth(wanted)
        self.legend.setMaximumWidth(self.legend.hint_beside().width())
        self.grid.set_colour(column)

    def _show_levels(self, column: ColumnData, hidden: frozenset[int]) -> None:
        self.legend.show_levels(column.levels, column.counts(), column.colours("dark" if current().name == "dark" else "light"), hidden)

    def _retheme(self) -> None:
        """Give the legend the ink and the colours that the pictures have."""
        column = self._column()
        if column is not None:
            self._show_levels(column, self.legend.hidden())

    def _hide(self, hidden: frozenset[int]) -> None:
        column = self._column()
        if column is not None:
            self.grid.set_colour(column, frozenset(hidden))

    def figure_options(self) -> dict[str, Any]:
        """Return what the figure dialog begins with: the column that cells are coloured by."""
        return {"columns": (self.colour.currentData(),)} if self.colour.currentData() else {}

    def figure(self) -> dict[str, Any] | None:
        """Return the figure, where there is a picture or a score."""
        if self.found is None or (self.found.layout is None and self.found.score is None):
            return None
        return {"what": "modalities", **self.figure_options()}

    def _chosen(self, batch: int) -> None:
        """Select the cells of a batch in all views."""
        if self.found is None or self.found.batch not in self.found.cells.columns:
            return
        rows = self.found.cells.rows[np.asarray(self.found.cells.columns[self.found.batch].codes) == batch]
        self.selectionChanged.emit(np.asarray(rows, np.int64))


def _number(part: Mapping[str, Any] | None) -> float:
    return np.nan if part is None or part["value"] is None else float(part["value"])


def _why(part: Mapping[str, Any], drawn: Mapping[str, Any] | None) -> str:
    """Return why a part is missing in the latent space, in the corrected counts, or in both."""
    if drawn is None or drawn["why"] == part["why"]:
        return str(part["why"])
    return ", ".join(words for words in (str(part["why"]), f"counts: {drawn['why']}" if drawn["why"] else "") if words)


def _in_order(pair: Mapping[str, Any], names: Sequence[str], labels: Mapping[str, str]) -> dict[str, Any]:
    """Return a pair with the names of its modalities in the order of the pictures; its scores are means of both directions."""
    sides = sorted((pair["first"], pair["second"]), key=lambda name: names.index(name) if name in names else len(names))
    return {**pair, **{side: labels.get(name, name) for side, name in zip(("first", "second"), sides, strict=True)}}


def read_modalities(results: RunResults) -> Found:
    """Return what the view shows of a run; called in a thread.

    Raises
    ------
    RunFolderError
        Where the run has no latent space.
    """
    import json

    from cellweave.app.state.results import run_cells
    from cellweave.core.analysis import scmib
    from cellweave.core.analysis.pipeline import modality_latents
    from cellweave.core.spec.data import labels_off
    from cellweave.core.spec.modalities import modality_kind, modality_kinds

    folder, cells = results.folder / "results", run_cells(results.folder)
    stored = list(modality_latents(folder))
    usual = list(modality_kinds())
    names = sorted(stored, key=lambda name: usual.index(name) if name in usual else len(usual))
    labels = {name: modality_kind(name).label for name in names}
    layout, path = None, folder / "modality_umap.npy"
    if path.is_file():
        order = [0, *(1 + stored.index(name) for name in names)]
        layout = np.load(path, allow_pickle=False)[order][:, cells.rows].astype(np.float32)
    pairs: tuple[dict[str, Any], ...] = ()
    if (folder / "alignment.json").is_file():
        tree = json.loads((folder / "alignment.json").read_text(encoding="utf-8"))
        pairs = tuple(_in_order(pair, names, labels) for pair in tree["pairs"])
    score = scmib.load(folder)
    # What is left out of the means is said in the table, part by part.
    totals = " ".join([*scmib.totals(score), *(str(note) for note in score["notes"] if not note.startswith(scmib.LEFT_OUT))]) if score else ""
    batch = results.spec.covariates.batch
    return Found(layout, ("All together", *labels.values()), cells, pairs, batch or "", score, totals, labels_off(results.spec.data.switched_off, batch))
