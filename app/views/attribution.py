"""The Attribution view: how far each modality depends on the latents of each, cell by cell, beside the embedding and dimension by dimension."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QSignalBlocker, Qt
from qtpy.QtGui import QAction, QKeySequence
from qtpy.QtWidgets import QCheckBox, QSplitter, QVBoxLayout, QWidget
from superqt import QFlowLayout

from cellweave.app.panels.parts import button, row, subheading, text, tool
from cellweave.app.state.attributed import Attributed, of_run, score_columns
from cellweave.app.views.attributionhistory import AttributionHistory
from cellweave.app.views.attributionparts import chooser, column_of, labelled, refill, scores_csv, side_by_side
from cellweave.app.views.columns import ColumnData, column_title
from cellweave.app.views.dimensionbars import DecoderBars, DimensionBars
from cellweave.app.views.panelgrid import PanelGrid
from cellweave.app.views.points import PointSet
from cellweave.app.views.runview import RunView
from cellweave.app.views.scatterpanel import ScatterPanel
from cellweave.app.views.scorepanel import ScorePanel
from cellweave.core.spec.modalities import modality_kind
from cellweave.core.wording import counted

if TYPE_CHECKING:
    from cellweave.app.state.results import RunResults
    from cellweave.app.views.context import ViewContext

#: From this width on, in letters, two embeddings stand beside each other.
WIDE = 150


class AttributionView(RunView):
    """Scatter of two modalities' scores with margins, the embedding by log-ratio and total, and bars of the latent dimensions.

    Attributes
    ----------
    data
        What is shown, or None.
    history
        Earlier attributions of the run.
    """

    shows = "How far each modality depends on the latents of every modality appears here, cell by cell. Train Multimodal VI to have it."
    no_figure = "A figure shows the attribution of the result, which is not computed yet or not what is shown. Compute it, or go to the last epoch."

    def __init__(self, context: ViewContext, parent: QWidget | None = None) -> None:
        super().__init__(context, parent)
        self.data: Attributed | None = None
        self._columns: dict[str, ColumnData] = {}
        self._selected: NDArray[np.bool_] | None = None
        self._by_hand = False  # whether the person chose a part of the scatter
        self.history = AttributionHistory(self, self._where)
        self.history.shown.connect(self._take_earlier)
        self.history.chosen.connect(self.epochChosen)
        self._build()

    # ------------------------------------------------------------------ building

    def _build(self) -> None:
        self.score, self.across, self.up = (chooser(name) for name in ("Score", "Modality of the abscissa", "Modality of the ordinate"))
        for box in (self.score, self.across, self.up):
            box.currentIndexChanged.connect(lambda _: self._show_scores())
        self.log = QCheckBox("Logarithmic")
        self.log.setChecked(True)
        self.log.setToolTip("Logarithmic axes; shares are always shown as they are")
        self.log.toggled.connect(lambda _: self._show_scores())
        self.lasso = tool("lasso", "Draw around cells to select them; Shift adds, Ctrl takes away (L)", checkable=True)
        self.lasso.toggled.connect(self._set_lasso)
        self.compute = button("Compute", "play", self.attribute)
        self.compute.setToolTip("Compute the attribution of the shown run anew, or for the first time")
        self.figure_button = tool("figure", "Export as a figure", lambda: self.context.export_figure("attribution", self.figure_options()))
        self.csv_button = tool("table", "Export the scores of all cells as CSV", self._export)
        self.said = text("", secondary=True)
        self.said.setAccessibleName("What the scores are of")
        head = QWidget()
        flow = QFlowLayout(head)
        flow.setContentsMargins(0, 0, 0, 0)
        flow.setSpacing(8)
        self._of_scatter: list[QWidget] = [labelled(name, box) for name, box in (("Score", self.score), ("across", self.across), ("up", self.up))]
        for widget in self._of_scatter:
            flow.addWidget(widget)
        self._flow, self._of_scatter = flow, [*self._of_scatter, self.log]
        self._tools = side_by_side(self.score, self.log, self.lasso, self.figure_button, self.csv_button)
        flow.addWidget(self._tools)
        self.scatter = ScorePanel()
        self.scatter.canvas.setAccessibleName("Scores of two modalities")
        self.scatter.box.sigRangeChangedManually.connect(self._moved_by_hand)
        self.grid = PanelGrid()
        self.bars = DimensionBars()
        self.bars.chosen.connect(self._colour_by_dimension)
        self._wire(self.scatter)
        self.embeddings = [ScatterPanel(), ScatterPanel()]
        for panel in self.embeddings:
            self._wire(panel)
            panel.set_axes("UMAP")
            self.grid.add(panel)
        side = QSplitter(Qt.Orientation.Vertical)
        below = QWidget()
        lower = QVBoxLayout(below)
        lower.setContentsMargins(0, 0, 0, 0)
        lower.setSpacing(4)
        self.bars_title = subheading("Latent dimensions")
        lower.addLayout(row(self.bars_title, None))
        lower.addWidget(self.bars, 1)
        side.addWidget(self.grid)
        side.addWidget(below)
        side.setStretchFactor(0, 3)
        side.setStretchFactor(1, 2)
        side.setChildrenCollapsible(False)
        side.setSizes([600, 400])
        whole = QSplitter(Qt.Orientation.Horizontal)
        whole.addWidget(self.scatter)
        whole.addWidget(side)
        whole.setStretchFactor(0, 1)
        whole.setStretchFactor(1, 1)
        whole.setChildrenCollapsible(False)
        whole.setSizes([500, 500])
        layout = QVBoxLayout(self.body)
        layout.setContentsMargins(8, 8, 8, 8)
        layout.setSpacing(8)
        layout.addWidget(head)
        layout.addWidget(whole, 1)
        layout.addWidget(self.said)
        layout.addWidget(self.history.bar)
        escape = QAction(self)
        escape.setShortcut(QKeySequence(Qt.Key.Key_Escape))
        escape.setShortcutContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
        escape.triggered.connect(lambda: self._take_selection(None))
        self.addAction(escape)

    def _wire(self, panel: ScatterPanel) -> None:
        panel.lassoWanted.connect(self.lasso.toggle)
        panel.lassoed.connect(self._select_some)
        panel.levelSelected.connect(self._select_some)
        panel.hovered.connect(lambda index, panel=panel: self._hover(panel, index))
        panel.set_chosen_colours(self.context.session.settings.colours)
        panel.colourChanged.connect(self._set_colour)

    @property
    def panels(self) -> tuple[ScatterPanel, ...]:
        """Every cloud of the view."""
        return (self.scatter, *self.embeddings)

    @property
    def alone(self) -> bool:
        """Whether there is one modality only: there is then nothing to hold its scores against."""
        return self.data is not None and len(self.data.scores.modalities) < 2

    # ------------------------------------------------------------------ the run

    def show_run(self, results: RunResults) -> None:
        """Read the attribution of a run in a thread."""
        self.set_message("Reading the attribution…")
        folder, cells, xy = results.folder / "results", results.cells, results.xy
        self.work(lambda _: of_run(folder, cells, xy), self._take)

    def clear(self) -> None:
        """Forget the run."""
        self.data, self._selected = None, None
        self._columns = {}
        self.history.clear()

    def _take(self, data: Attributed | None) -> None:
        if data is None:
            gives = self.results is not None and any(result.kind == "attribution" for result in self.results.spec.family.results)
            if not gives:
                self.set_message("The shown run gives no modality attribution: its model does not decode every modality from the latents of all.")
            elif self.results is not None and self.results.trains:
                self.set_message("The attribution is computed when training ends. Step 5, Attribution, can refresh it while a run trains.")
            else:
                self.set_message("The attribution of this run was not computed yet. It takes seconds to minutes.", "Compute", self.attribute)
            return
        self.set_message("")
        self._show(data)
        if self.results is not None:
            self.history.offer(self.results.folder / "preview", data, self.results.status.epoch)

    def _where(self) -> tuple[Any, Any]:
        """Return the cells of the embedding and their places."""
        return (self.results.cells, self.results.xy) if self.results is not None else self.context.live_cells()

    def _take_earlier(self, data: Attributed) -> None:
        self.set_message("")
        self._show(data)

    def take_preview(self, path: Path, epoch: int) -> None:
        """Show the attribution of a sample of cells of the run that trains, where it is written.

        Parameters
        ----------
        path
            The latent of the preview cells; the attribution lies beside it.
        epoch
            Its epoch.
        """
        found = path.with_name(f"attribution-{epoch:06d}.npz")
        if self.results is not None or not found.is_file():
            return
        self.history.follow(found, epoch)

    def take_epoch(self, epoch: int) -> None:
        """Show the attribution of an epoch that was chosen elsewhere, where there is one."""
        self.history.bar.go_to(epoch)

    # ------------------------------------------------------------------ showing

    def _show(self, data: Attributed) -> None:
        before_that = self.data
        same = before_that is not None and np.array_equal(before_that.rows, data.rows)
        kept = [panel.column_name() for panel in self.panels]
        if not same and before_that is not None and self._selected is not None:
            chosen = np.isin(data.rows, before_that.rows[self._selected])
            self._selected = chosen if chosen.any() else None
        self.data = data
        self._fill_choosers(data)
        self._arrange_head()
        ratios = score_columns(data.scores)
        own = {name: ColumnData.continuous(values, unit=unit, diverging=diverging) for name, (values, unit, diverging) in ratios.items()}
        others = {name: column_of(name, column) for name, column in data.columns.items()}
        self._columns = {**own, **others}
        defaults = self._defaults(list(own), list(others))
        for panel, before, default in zip(self.panels, kept, defaults, strict=True):
            panel.set_columns(self._columns, before if before_that is not None and before in self._columns else default)
        there = bool(np.isfinite(data.xy).all(axis=1).any())
        self.grid.show_note("" if there else "The embedding of these cells is not there yet.")
        points = PointSet(data.xy)
        for panel in self.embeddings:
            panel.set_points(points)
        self.grid.fit_unless_moved() if same else self.grid.fit()
        self._show_scores(fit=not same or not self._by_hand)
        self._fit_panels()
        self._mark_selection()
        self._say()

    def _arrange_head(self) -> None:
        """Leave out what is of the scatter where there is none; a field that is only hidden would keep its gap."""
        for widget in (*self._of_scatter, self.scatter):
            widget.setVisible(not self.alone)
        while self._flow.count():
            self._flow.takeAt(0)
        for widget in (*(self._of_scatter[:-1] if not self.alone else ()), self._tools):
            self._flow.addWidget(widget)

    def _defaults(self, scores: list[str], columns: list[str]) -> tuple[str, str, str]:
        """Return what the scatter and the two embeddings are coloured by at first."""
        prefer = self.results.prefer if self.results is not None else ()
        spec = self.context.spec()
        labels = spec.covariates.labels if spec is not None else None
        wanted = [name for name in (labels, *reversed(prefer), "leiden", *columns) if name in columns and not name.startswith("latent:")]
        by = wanted[0] if wanted else scores[0]
        total = next((name for name in scores if name.endswith("total attribution")), scores[-1])
        return by, scores[0], by if self.alone else total

    def _fill_choosers(self, data: Attributed) -> None:
        names, kinds = data.scores.modalities, data.scores.kinds()
        before = (self.score.currentData(), self.across.currentData(), self.up.currentData())
        with QSignalBlocker(self.score), QSignalBlocker(self.across), QSignalBlocker(self.up):
            refill(self.score, [(kind.title, kind.name, kind.help) for kind in kinds], before[0] or "total")
            refill(self.across, [(modality_kind(name).label, name, "") for name in names], before[1] or names[0])
            refill(self.up, [(modality_kind(name).label, name, "") for name in names], before[2] or names[-1])

    def _show_scores(self, *, fit: bool = True) -> None:
        data, kind = self.data, self.score.currentData()
        if data is None or kind is None:
            return
        from cellweave.core.analysis.attribution_scores import SCORE_KINDS

        info = SCORE_KINDS[kind]
        x, y = self.across.currentData(), self.up.currentData()
        log = self.log.isChecked() and kind != "own_share"
        self.log.setEnabled(kind != "own_share")
        titles = tuple((f"{info.title}, {modality_kind(name).label}", info.unit) for name in (x, y))
        self.scatter.set_scores(data.scores.score(kind, x), data.scores.score(kind, y), (titles[0], titles[1]), log=log)
        self.scatter.canvas.setAccessibleName(self.scatter.accessible_words())
        self.scatter.canvas.setToolTip(info.help)
        if fit:
            self._by_hand = False
            self.scatter.fit()

    def _moved_by_hand(self, *_: object) -> None:
        self._by_hand = True

    def _show_bars(self) -> None:
        data = self.data
        if data is None:
            return
        chosen = np.flatnonzero(self._selected) if self._selected is not None else None
        rows = []
        for name in data.scores.modalities:
            of_chosen = data.scores.by_dimension(name, chosen) if chosen is not None and len(chosen) else None
            rows.append(DecoderBars(name, data.scores.by_dimension(name), of_chosen, data.scores.block_shares(name, chosen)))
        self.bars.show_rows(rows, data.scores.blocks)
        self.bars_title.setText("Latent dimensions" if chosen is None else f"Latent dimensions, {counted(len(chosen), 'selected cell')}")

    def _say(self) -> None:
        data = self.data
        if data is None:
            return
        self.figure_button.setEnabled(data.epoch is None)
        self.figure_button.setToolTip("Export as a figure" if data.epoch is None else "A figure is of the result: go to its epoch, the last one")
        info = data.scores.info
        parts = [counted(data.size, "cell")]
        if data.epoch is not None:
            parts.insert(0, f"Epoch {data.epoch}, while the run {'trains' if self.results is None else 'trained'}")
        if info.get("features") == "sampled":
            parts.append(", ".join(f"{n:,} {modality_kind(name).label} features" for name, n in data.scores.n_features.items()))
        parts.append("library size at the mean of its group" if info.get("library") == "prior" else "library size of each cell")
        removed = {"cat_covs": "categorical covariates removed", "feature_scaling": "feature scaling removed", "all": "covariates removed"}
        if info.get("remove_covariates") in removed:
            parts.append(removed[info["remove_covariates"]])
        if not self.alone:
            parts.append("log-ratios are relative to the median cell")
        self.said.setText("; ".join(parts) + ".")

    def resizeEvent(self, event: Any) -> None:  # noqa: N802
        """Show one embedding where two would be too narrow."""
        super().resizeEvent(event)
        self._fit_panels()

    def _fit_panels(self) -> None:
        wide = self.width() >= (WIDE / 2 if self.alone else WIDE) * self.fontMetrics().horizontalAdvance("n")
        there = self.data is not None and bool(np.isfinite(self.data.xy).any())
        shown = len(self.grid.panels)
        if wide and shown == 1:
            self.grid.add(self.embeddings[1])
            self.embeddings[1].setVisible(there)
        elif not wide and shown == 2:
            self.grid.panels.pop()
            self.embeddings[1].hide()
            self.grid._arrange()
        if there:
            self.grid.fit_unless_moved()

    # ------------------------------------------------------------------ selection

    def show_selection(self, rows: NDArray[np.int64]) -> None:
        """Mark cells that were selected elsewhere."""
        if self.data is None:
            return
        places = self.data.place_of(rows)
        selected = np.zeros(self.data.size, bool)
        selected[places] = True
        self._selected = selected if len(places) else None
        self._mark_selection()

    def _select_some(self, indices: NDArray[np.intp], modifiers: Qt.KeyboardModifier) -> None:
        if self.data is None:
            return
        chosen = np.zeros(self.data.size, bool)
        chosen[indices] = True
        if self._selected is not None and modifiers & Qt.KeyboardModifier.ShiftModifier:
            chosen |= self._selected
        elif modifiers & Qt.KeyboardModifier.ControlModifier:
            chosen = (self._selected if self._selected is not None else np.zeros_like(chosen)) & ~chosen
        self._take_selection(chosen if chosen.any() else None)

    def _take_selection(self, selected: NDArray[np.bool_] | None) -> None:
        if self.data is None:
            return
        self._selected = selected
        self._mark_selection()
        self.selectionChanged.emit(np.zeros(0, np.int64) if selected is None else self.data.rows[selected])

    def _mark_selection(self) -> None:
        for panel in self.panels:
            panel.set_selected(self._selected)
        self._show_bars()

    def _set_lasso(self, on: bool) -> None:
        for panel in self.panels:
            panel.box.lasso_on = on
            panel.canvas.setCursor(Qt.CursorShape.CrossCursor if on else Qt.CursorShape.ArrowCursor)

    def _set_colour(self, column: str, level: str, colour: str) -> None:
        colours = {name: dict(levels) for name, levels in self.context.session.settings.colours.items()}
        colours.setdefault(column, {})[level] = colour
        self.context.session.settings.colours = colours
        for panel in self.panels:
            panel.set_chosen_colours(colours)

    def _hover(self, source: ScatterPanel, index: int | None) -> None:
        for panel in self.panels:
            panel.show_hovered(index, self._card(index) if index is not None and panel is source else "")

    def _card(self, index: int) -> str:
        assert self.data is not None
        lines = [f"<b>{html.escape(str(self.data.names[index]))}</b>"]
        scores = self.data.scores
        for name in scores.modalities:
            total = float(scores.mean_abs[name][index].sum())
            share = float(scores.share(name, name)[index]) if scores.has_own else float("nan")
            own = f", {share:.0%} from its own latents" if np.isfinite(share) else ""
            label = html.escape(modality_kind(name).label)
            lines.append(f"{label}: {total:.3g}{own}" if np.isfinite(total) else f"{label}: not measured")
        for name in dict.fromkeys(panel.column_name() for panel in self.panels):
            column = self._columns.get(name)
            if column is not None and name in self.data.columns:
                lines.append(f"{html.escape(column_title(name))}: {html.escape(column.text_of(index))}")
        return "<br>".join(lines)

    def _colour_by_dimension(self, dimension: int) -> None:
        name = f"latent:{dimension + 1}"
        if name in self._columns:
            self.embeddings[0].show_column(name)

    # ------------------------------------------------------------------ computing

    def attribute(self) -> None:
        """Compute the attribution of the shown run and keep it with the run."""
        results = self.results
        if results is None:
            return
        self.set_message("Computing the attribution…")

        def work(report: Any) -> Attributed | None:
            from cellweave.core.training.attribution import compute_attribution

            run = self.context.opened(results, report)
            compute_attribution(
                results.folder / "results", results.spec, run.model, run.loader, progress=lambda share: report("", share), cancelled=lambda: report.cancelled
            )
            return of_run(results.folder / "results", results.cells, results.xy)

        def failed(error: Exception, details: str) -> None:
            self.set_message(str(error) or "It was cancelled.", "Compute", self.attribute)

        self.work(work, self._take, doing="Modality attribution", failed=failed)

    # ------------------------------------------------------------------ taking away

    def _export(self) -> None:
        if self.data is not None:
            data = self.data
            self.context.save_csv("attribution", lambda: scores_csv(data))

    def figure_options(self) -> dict[str, Any]:
        """Return what the figure dialog begins with."""
        column = self.scatter.column_name()
        known = self.data is not None and column in self.data.columns
        return {"attribution_score": self.score.currentData() or "total", **({"columns": (column,)} if known else {})}

    def figure(self) -> dict[str, Any] | None:
        """Return the figure of the view."""
        return {"what": "attribution", **self.figure_options()} if self.data is not None and self.data.epoch is None else None
