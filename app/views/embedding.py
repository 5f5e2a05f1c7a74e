"""The Embedding view: the same cells side by side, each panel coloured by another column, with one selection."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QAction, QColor, QKeySequence
from qtpy.QtWidgets import (
    QApplication,
    QHBoxLayout,
    QLabel,
    QMenu,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from cellweave.app.forms.row import keep_place
from cellweave.app.theme import SPACE, icon
from cellweave.app.views.columns import ColumnData, column_title
from cellweave.app.views.embeddingbar import EmbeddingBar
from cellweave.app.views.epochbar import EpochBar, Loader
from cellweave.app.views.motion import Motion
from cellweave.app.views.panelgrid import MOST_PANELS, PanelGrid
from cellweave.app.views.pointcloud import Mode
from cellweave.app.views.points import PointSet
from cellweave.app.views.scatterpanel import ScatterPanel
from cellweave.core.wording import counted

WELCOME = "The cells appear here once there is an embedding: after training, and every few epochs while it runs."


class EmbeddingView(QWidget):
    """Cells in the plane, side by side, coloured by any column.

    Parameters
    ----------
    parent
        Owner.
    panels
        How many panels there are at first.
    """

    selectionChanged = Signal(object)  # noqa: N815
    exportRequested = Signal()  # noqa: N815
    columnsChanged = Signal(list)  # noqa: N815
    epochChosen = Signal(int)  # noqa: N815
    coloursChanged = Signal(object)  # noqa: N815
    genesWanted = Signal(list, str, str)  # noqa: N815

    def __init__(self, parent: QWidget | None = None, *, panels: int = 2) -> None:
        super().__init__(parent)
        self._columns: dict[str, ColumnData] = {}
        self._names: Sequence[str] | NDArray[Any] | None = None
        self._points = PointSet(np.empty((0, 2), np.float32))
        self._selected: NDArray[np.bool_] | None = None
        self._colours: dict[str, dict[str, str]] = {}
        self._axes = "UMAP"
        self._message = WELCOME
        self._motion = Motion(self)
        self._motion.moved.connect(self._show_positions)
        self._build()
        for _ in range(panels):
            self.add_panel()
        self._refresh()

    # -- building --------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self._grid = PanelGrid(self)
        self._panels = self._grid.panels
        self.bar = EmbeddingBar(self)
        self.bar.lassoToggled.connect(self._set_lasso)
        self.bar.fitWanted.connect(self.fit)
        self.bar.modeChosen.connect(self.set_mode)
        self.bar.scaleChanged.connect(self._resize_dots)
        self.bar.moreWanted.connect(self._add_panel)
        self.bar.fewerWanted.connect(self.remove_panel)
        self.bar.exportWanted.connect(self.exportRequested)
        self.bar.genesWanted.connect(self.genesWanted)
        self.epochs = EpochBar(self)
        self.epochs.loaded.connect(lambda epoch, positions: self.move_points(positions, epoch))
        self.epochs.chosen.connect(self.epochChosen)
        self._status = QLabel("", self)
        self._status.setProperty("secondary", "true")
        self._clear = QPushButton("Clear selection", self)
        self._clear.setProperty("link", "true")
        self._clear.setToolTip("Select no cells (Esc)")
        self._clear.clicked.connect(lambda: self.select(None))
        keep_place(self._clear, keep=True)
        foot = QHBoxLayout()
        foot.setSpacing(4 * SPACE)
        foot.addWidget(self.epochs, 1)
        foot.addStretch(0)
        foot.addWidget(self._clear)
        foot.addWidget(self._status)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(2 * SPACE, 2 * SPACE, 2 * SPACE, 2 * SPACE)
        outer.setSpacing(2 * SPACE)
        outer.addWidget(self.bar)
        outer.addWidget(self._grid, 1)
        outer.addLayout(foot)
        escape = QAction(self)
        escape.setShortcut(QKeySequence(Qt.Key.Key_Escape))
        escape.setShortcutContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
        escape.triggered.connect(lambda: self.select(None))
        self.addAction(escape)

    # -- panels ----------------------------------------------------------------------------------------------

    def add_panel(self, column: str = "") -> None:
        """Add a panel, coloured by the next column that no panel shows."""
        if len(self._panels) >= MOST_PANELS:
            return
        panel = ScatterPanel()
        panel.lassoWanted.connect(self.bar.lasso.toggle)
        panel.menuWanted.connect(lambda at: self.make_menu().popup(at.toPoint()))
        panel.hovered.connect(lambda index, panel=panel: self._hover(panel, index))
        panel.lassoed.connect(self._select_some)
        panel.levelSelected.connect(self._select_some)
        panel.colourChanged.connect(self._set_colour)
        panel.columnChosen.connect(lambda _: self.columnsChanged.emit(self.shown_columns()))
        panel.box.lasso_on = self.bar.lasso.isChecked()
        panel.cloud.set_mode(self.bar.drawing_mode())
        panel.cloud.set_dot_scale(self.bar.scale())
        panel.set_axes(self._axes)
        panel.set_chosen_colours(self._colours)
        panel.set_selected(self._selected)
        shown = self.shown_columns()
        free = next((name for name in self._columns if name not in shown), next(iter(self._columns), ""))
        panel.set_columns(self._columns, column or free)
        panel.set_points(self._points)
        self._grid.add(panel)
        self._refresh()

    def _add_panel(self) -> None:
        self.add_panel()
        self.columnsChanged.emit(self.shown_columns())

    def remove_panel(self) -> None:
        """Take the last panel away; one stays."""
        if len(self._panels) > 1:
            self._grid.remove_last()
            self._refresh()
            self.columnsChanged.emit(self.shown_columns())

    def panels(self) -> list[ScatterPanel]:
        """Return the panels from left to right."""
        return list(self._panels)

    def shown_columns(self) -> list[str]:
        """Return the column of each panel."""
        return [panel.column_name() for panel in self._panels]

    def show_columns(self, names: Sequence[str]) -> None:
        """Colour the panels by these columns, adding panels where there are more columns."""
        for index, name in enumerate(names[:MOST_PANELS]):
            if index >= len(self._panels):
                self.add_panel(name)
            elif name in self._columns:
                self._panels[index].show_column(name)

    # -- state -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what a person chose of the view, as plain values that :meth:`restore` takes."""
        return {
            "columns": self.shown_columns(), "mode": self.bar.drawing_mode(), "size": self.bar.size_slider.value(), "colours": self._colours,
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what was chosen before; what cannot be read, and columns that are not there, are left as they are."""
        columns = state.get("columns")
        if isinstance(columns, list) and columns:
            while len(self._panels) > max(1, len(columns)):
                self.remove_panel()
            self.show_columns([str(name) for name in columns])
        if state.get("mode") in {"auto", "dots", "density"}:
            self.set_mode(state["mode"])
        if isinstance(state.get("size"), int):
            self.bar.size_slider.setValue(state["size"])
        colours = state.get("colours")
        if isinstance(colours, dict):
            readable = {
                str(column): {str(level): colour for level, colour in levels.items() if QColor.isValidColorName(str(colour))}
                for column, levels in colours.items()
                if isinstance(levels, dict)
            }
            self.set_colours(readable)

    # -- data ------------------------------------------------------------------------------------------------

    def set_points(self, xy: ArrayLike, names: Sequence[str] | NDArray[Any] | None = None, *, axes: str = "UMAP") -> None:
        """Show cells at once, without motion.

        Parameters
        ----------
        xy
            Positions of shape ``(n_cells, 2)``.
        names
            Names of the cells, for the card under the cursor.
        axes
            What the plane is: ``"UMAP"``, ``"PCA"``, ``"Latent"``.
        """
        self._motion.stop()
        positions = np.asarray(xy, dtype=np.float32)
        new_cells = len(positions) != self._points.size
        self._names, self._axes = names, axes
        for panel in self._panels:
            panel.set_axes(axes)
        if new_cells:
            self._selected = None
            self._hover(None, None)
        self._show_positions(positions)
        if new_cells:
            self.fit()
            for panel in self._panels:
                panel.set_selected(None)
            self._emit_selection()

    def move_points(self, xy: ArrayLike, epoch: int | None = None) -> None:
        """Let the cells wander to new positions; a move that is under way goes on from where it is.

        Parameters
        ----------
        xy
            Positions of the same cells, of shape ``(n_cells, 2)``; another number of cells is shown at once.
        epoch
            Epoch that the positions belong to.
        """
        target = np.asarray(xy, dtype=np.float32)
        if epoch is not None:
            self.epochs.say(epoch)
        if len(target) != self._points.size or not self.isVisible() or len(target) > self._motion.most:
            if len(target) == self._points.size:
                self._motion.stop()
                self._show_positions(target)
            else:
                self.set_points(target, None, axes=self._axes)
            return
        self._motion.start(self._points.xy, target)

    def _show_positions(self, positions: NDArray[np.float32]) -> None:
        self._points = PointSet(positions)
        for panel in self._panels:
            panel.set_points(self._points)
        self._grid.fit_unless_moved()
        self._refresh()

    def set_columns(self, columns: Mapping[str, ColumnData]) -> None:
        """Set what cells can be coloured by; panels keep their column where it is still there, else take the first ones."""
        kept = [name for name in self.shown_columns() if name in columns]
        self._columns = dict(columns)
        free = [name for name in self._columns if name not in kept]
        for panel in self._panels:
            name = panel.column_name()
            if name not in self._columns:
                name = free.pop(0) if free else next(iter(self._columns), "")
            panel.set_columns(self._columns, name)
        self._refresh()

    def add_column(self, name: str, column: ColumnData) -> None:
        """Offer a further column, or another of the same name."""
        self.set_columns({**{kept: data for kept, data in self._columns.items() if kept != name}, name: column})

    def offer_column(self, name: str, column: ColumnData) -> None:
        """Offer a further column and colour the first panel by it."""
        shown = self.shown_columns()
        self.add_column(name, column)
        self.show_columns([name, *shown[1:]])

    def set_message(self, text: str) -> None:
        """Say what an empty view waits for; an empty text brings the usual one back."""
        self._message = text or WELCOME
        self._refresh()

    def clear(self) -> None:
        """Show no cells."""
        self.set_epoch_slider([])
        self.set_points(np.empty((0, 2), np.float32))

    def points(self) -> PointSet:
        """Return the positions that are shown now."""
        return self._points

    def set_epoch_slider(self, epochs: Sequence[tuple[int, Loader]]) -> None:
        """Offer the embeddings of earlier epochs.

        Parameters
        ----------
        epochs
            Epoch numbers with a function each that returns the positions, ``(n_cells, 2)``; none hides the slider.
        """
        self.epochs.set_epochs(epochs)

    # -- selection -------------------------------------------------------------------------------------------

    def select(self, indices: ArrayLike | None) -> None:
        """Select cells by their index; None or none of them clears the selection."""
        chosen = np.empty(0, np.intp) if indices is None else np.asarray(indices, dtype=np.intp)
        selected: NDArray[np.bool_] | None = None
        if len(chosen):
            selected = np.zeros(self._points.size, bool)
            selected[chosen] = True
        self._take_selection(selected)

    def selection(self) -> NDArray[np.intp]:
        """Return the indices of the selected cells, sorted."""
        return np.empty(0, np.intp) if self._selected is None else np.flatnonzero(self._selected)

    def _select_some(self, indices: NDArray[np.intp], modifiers: Qt.KeyboardModifier) -> None:
        chosen = np.zeros(self._points.size, bool)
        chosen[indices] = True
        if self._selected is not None and modifiers & Qt.KeyboardModifier.ShiftModifier:
            chosen |= self._selected
        elif modifiers & Qt.KeyboardModifier.ControlModifier:
            chosen = (self._selected if self._selected is not None else np.zeros_like(chosen)) & ~chosen
        self._take_selection(chosen if chosen.any() else None)

    def _take_selection(self, selected: NDArray[np.bool_] | None) -> None:
        if (selected is None and self._selected is None) or (
            selected is not None and self._selected is not None and np.array_equal(selected, self._selected)
        ):
            return
        self._selected = selected
        for panel in self._panels:
            panel.set_selected(selected)
        self._emit_selection()

    def _emit_selection(self) -> None:
        self._refresh()
        self.selectionChanged.emit(self.selection())

    def _set_lasso(self, on: bool) -> None:
        for panel in self._panels:
            panel.box.lasso_on = on
            panel.canvas.setCursor(Qt.CursorShape.CrossCursor if on else Qt.CursorShape.ArrowCursor)

    # -- colours and drawing ---------------------------------------------------------------------------------

    def set_colours(self, colours: Mapping[str, Mapping[str, str]]) -> None:
        """Set the colours that the person gave, ``{column: {level: "#RRGGBB"}}``."""
        self._colours = {name: dict(levels) for name, levels in colours.items()}
        for panel in self._panels:
            panel.set_chosen_colours(self._colours)

    def _set_colour(self, column: str, level: str, colour: str) -> None:
        self._colours.setdefault(column, {})[level] = colour
        self.set_colours(self._colours)
        self.coloursChanged.emit(self._colours)

    def set_mode(self, mode: Mode) -> None:
        """Draw dots, density, or what suits the number of cells."""
        self.bar.show_mode(mode)
        for panel in self._panels:
            panel.cloud.set_mode(mode)

    def _resize_dots(self, scale: float) -> None:
        for panel in self._panels:
            panel.cloud.set_dot_scale(scale)

    def fit(self) -> None:
        """Show all cells in every panel."""
        self._grid.fit()

    # -- card ------------------------------------------------------------------------------------------------

    def _hover(self, source: ScatterPanel | None, index: int | None) -> None:
        for panel in self._panels:
            panel.show_hovered(index, self.card_text(index) if index is not None and panel is source else "")

    def card_text(self, index: int) -> str:
        """Return what the card says of a cell, as rich text: its name and the value of every shown column."""
        name = self._names[index] if self._names is not None and index < len(self._names) else f"cell {index + 1:,}"
        lines = [f"<b>{html.escape(str(name))}</b>"]
        for column_name in dict.fromkeys(self.shown_columns()):
            column = self._columns.get(column_name)
            if column is not None and index < len(column):
                lines.append(f"{html.escape(column_title(column_name))}: {html.escape(column.text_of(index))}")
        return "<br>".join(lines)

    # -- menu ------------------------------------------------------------------------------------------------

    def make_menu(self) -> QMenu:
        """Return the context menu of the cells."""
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        menu.addAction(icon("figure"), "Export figure…", self.exportRequested.emit)
        menu.addAction(icon("copy"), "Copy image", self.copy_image)
        menu.addSeparator()
        menu.addAction(icon("lasso"), "Lasso", self.bar.lasso.toggle)
        menu.addAction("Fit", self.fit)
        menu.addAction("Clear selection", lambda: self.select(None)).setEnabled(self._selected is not None)
        return menu

    def copy_image(self) -> None:
        """Copy the panels as a picture."""
        QApplication.clipboard().setPixmap(self._grid.grab())

    def _refresh(self) -> None:
        shown, chosen = self._points.size, 0 if self._selected is None else int(self._selected.sum())
        self._grid.show_note("" if shown else self._message)
        self._status.setText(counted(shown, 'cell') + (f", {chosen:,} selected" if chosen else "") if shown else "")
        self._clear.setVisible(bool(chosen))
        self.bar.setVisible(bool(shown))
        self.bar.genes.setEnabled(bool(shown))
        self.bar.enable(cells=bool(shown), more=len(self._panels) < MOST_PANELS, fewer=len(self._panels) > 1)
