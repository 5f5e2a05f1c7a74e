"""One panel of the embedding: a cloud of points coloured by a column, with its chooser and its legend."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping

import numpy as np
import pyqtgraph as pg
from numpy.typing import NDArray
from qtpy.QtCore import QEvent, QPointF, QRectF, Qt, Signal
from qtpy.QtGui import QColor, QFocusEvent, QKeyEvent, QPaintEvent
from qtpy.QtWidgets import QBoxLayout, QComboBox, QHBoxLayout, QLabel, QSizePolicy, QVBoxLayout, QWidget
from superqt import QSearchableComboBox

from cellweave.app.theme import SPACE, current, follow
from cellweave.app.views.cards import HoverCard
from cellweave.app.views.columns import ColumnData, ThemeName, column_label, column_title
from cellweave.app.views.focus import draw_focus
from cellweave.app.views.gradient import GradientLegend
from cellweave.app.views.legend import CategoryLegend, ask_colour
from cellweave.app.views.pointcloud import CloudBox, PointCloudItem
from cellweave.app.views.points import PointSet
from cellweave.app.views.raster import Look
from cellweave.core.wording import counted

DIM = 0.2
"""Share of its colour that a cell outside the selection keeps."""


class CloudCanvas(pg.PlotWidget):
    """The plot of a panel; arrows pan, plus and minus zoom, 0 shows all, L takes the lasso.

    Parameters
    ----------
    box
        Its view box.
    """

    lassoWanted = Signal()  # noqa: N815

    def __init__(self, box: CloudBox) -> None:
        super().__init__(viewBox=box, enableMenu=False)
        self.setFrameShape(self.Shape.NoFrame)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.box = box
        item = self.getPlotItem()
        item.hideButtons()
        for side in ("left", "bottom"):
            axis = item.getAxis(side)
            axis.setTicks([[]])
            axis.setStyle(showValues=False, tickLength=0)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        """Paint, and show where the keyboard is."""
        super().paintEvent(event)
        draw_focus(self)

    def focusInEvent(self, event: QFocusEvent) -> None:  # noqa: N802
        """Show that the keyboard is here."""
        super().focusInEvent(event)
        self.viewport().update()

    def focusOutEvent(self, event: QFocusEvent) -> None:  # noqa: N802
        """Show that the keyboard has gone."""
        super().focusOutEvent(event)
        self.viewport().update()

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        """Pan and zoom by keyboard."""
        seen, key = self.box.viewRect(), event.key()
        step = {
            Qt.Key.Key_Left: (-0.1, 0), Qt.Key.Key_Right: (0.1, 0), Qt.Key.Key_Up: (0, 0.1), Qt.Key.Key_Down: (0, -0.1),
        }.get(Qt.Key(key))  # fmt: skip
        if step is not None:
            self.box.translateBy(x=step[0] * seen.width(), y=step[1] * seen.height())
        elif key in {Qt.Key.Key_Plus, Qt.Key.Key_Equal}:
            self.box.scaleBy((0.8, 0.8))
        elif key == Qt.Key.Key_Minus:
            self.box.scaleBy((1.25, 1.25))
        elif key == Qt.Key.Key_0:
            self.box.fitWanted.emit()
            return
        elif key == Qt.Key.Key_L and not event.modifiers():
            self.lassoWanted.emit()
            return
        else:
            super().keyPressEvent(event)
            return
        self.box.sigRangeChangedManually.emit(self.box.state["mouseEnabled"])


class ScatterPanel(QWidget):
    """A cloud of points coloured by one column.

    Parameters
    ----------
    parent
        Owner.
    """

    columnChosen = Signal(str)  # noqa: N815
    viewMoved = Signal(object)  # noqa: N815
    fitWanted = Signal()  # noqa: N815
    lassoWanted = Signal()  # noqa: N815
    menuWanted = Signal(object)  # noqa: N815
    hovered = Signal(object)
    lassoed = Signal(object, object)
    levelSelected = Signal(object, object)  # noqa: N815
    colourChanged = Signal(str, str, str)  # noqa: N815
    legendChanged = Signal()  # noqa: N815

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._columns: Mapping[str, ColumnData] = {}
        self._name = ""
        self._points = PointSet(np.empty((0, 2), np.float32))
        self._codes: NDArray[np.int32] = np.empty(0, np.int32)
        self._any_missing = False
        self._selected: NDArray[np.bool_] | None = None
        self._hidden: dict[str, frozenset[int]] = {}
        self._chosen_colours: dict[str, dict[str, str]] = {}
        self._ask_colour: Callable[[QColor, QWidget], QColor | None] = ask_colour
        self._build()
        follow(self, self._retheme)
        self._retheme()

    # -- building --------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self.chooser = QSearchableComboBox(self)
        self.chooser.setAccessibleName("Colour by")
        self.chooser.setToolTip("The column, feature or latent dimension that colours the cells")
        self.chooser.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.chooser.setMinimumContentsLength(10)
        self.chooser.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.chooser.activated.connect(lambda index: self._choose(str(self.chooser.itemData(index))))
        self.chooser.lineEdit().editingFinished.connect(self._show_name)  # words that name no column do not stay
        self.box = CloudBox()
        self.canvas = CloudCanvas(self.box)
        self.cloud = PointCloudItem(self.box)
        self.box.addItem(self.cloud, ignoreBounds=True)
        self.legend = CategoryLegend(self)
        self.gradient = GradientLegend(self)
        self.card = HoverCard(self.canvas)
        label = QLabel("Colour by", self)
        label.setBuddy(self.chooser)
        head = QHBoxLayout()
        head.setSpacing(2 * SPACE)
        head.addWidget(label)
        head.addWidget(self.chooser, 1)
        self._body = QBoxLayout(QBoxLayout.Direction.TopToBottom)
        self._body.setSpacing(SPACE)
        self._side = QWidget(self)
        side = QVBoxLayout(self._side)
        side.setContentsMargins(0, 0, 0, 0)
        side.addWidget(self.legend)
        side.addWidget(self.gradient)
        side.addStretch(1)
        self._body.addWidget(self.canvas, 1)
        self._body.addWidget(self._side)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.setSpacing(SPACE)
        outer.addLayout(head)
        outer.addLayout(self._body, 1)
        self.legend.hide()
        self.gradient.hide()
        self.box.sigRangeChangedManually.connect(lambda *_: self.viewMoved.emit(self.box.viewRect()))
        self.box.fitWanted.connect(self.fitWanted)
        self.canvas.lassoWanted.connect(self.lassoWanted)
        self.box.menuWanted.connect(self.menuWanted)
        self.box.lassoed.connect(self._lassoed)
        self.canvas.scene().sigMouseMoved.connect(self._moved)
        self.canvas.installEventFilter(self)
        self.legend.hiddenChanged.connect(self._hide_levels)
        self.legend.selectWanted.connect(self._select_levels)
        self.legend.colourWanted.connect(self._change_colour)

    def legend_hint(self, *, beside: bool) -> int:
        """Return the width a legend beside the cloud needs, or the height of one below it; 0 where there is none."""
        if self.column() is None:
            return 0
        colours = self.gradient.sizeHint().width() if beside else self.gradient.minimumSizeHint().height()
        if not self.legend.isVisibleTo(self):
            return colours
        own = self.legend.hint_beside().width() if beside else self.legend.hint_below(self.width()).height()
        return max(own, colours)  # a column of numbers can be chosen without the clouds giving way

    def least_legend(self) -> int:
        """Return the height that a legend below the cloud is given in any case."""
        colours = self.gradient.minimumSizeHint().height() if self.column() is not None else 0
        return max(colours, self.legend.least_height(self.width())) if self.legend.isVisibleTo(self) else colours

    def place_legend(self, size: int, *, beside: bool) -> None:
        """Put the legend beside or below the cloud, with a width or a height."""
        self._body.setDirection(QBoxLayout.Direction.LeftToRight if beside else QBoxLayout.Direction.TopToBottom)
        self.legend.set_beside(beside)
        if beside:
            self._side.setMinimumSize(size, 0)
            self._side.setMaximumSize(size, 16777215)
            self.legend.setMaximumHeight(self.legend.hint_beside().height())
            self.gradient.setFixedHeight(self.gradient.sizeHint().height())
        else:
            self._side.setMinimumSize(0, size)
            self._side.setMaximumSize(16777215, size)
            self.legend.setMaximumHeight(min(size, self.legend.hint_below(self.width()).height()))
            self.gradient.setFixedHeight(min(size, self.gradient.sizeHint().height()))
        self.legend.fit_bar(self.legend.maximumHeight() if not beside else min(self.legend.maximumHeight(), self.height()))

    def _retheme(self, *_: object) -> None:
        theme = current()
        self.canvas.setBackground(theme.color("panel"))
        for side in ("left", "bottom"):
            axis = self.canvas.getPlotItem().getAxis(side)
            axis.setPen(theme.color("border"))
            axis.setTextPen(theme.color("secondary"))
        self.recolour()

    # -- what it shows ---------------------------------------------------------------------------------------

    def set_axes(self, name: str) -> None:
        """Name the axes: ``UMAP`` gives 'UMAP 1' and 'UMAP 2'."""
        colour = current().color("secondary").name()
        for side, number in (("bottom", 1), ("left", 2)):
            self.canvas.getPlotItem().setLabel(side, html.escape(f"{name} {number}".strip()), color=colour)

    def set_points(self, points: PointSet) -> None:
        """Set the positions."""
        self._points = points
        self.cloud.set_points(points, self._look())

    def set_columns(self, columns: Mapping[str, ColumnData], name: str = "") -> None:
        """Set what can be chosen and choose one."""
        self._columns = columns
        self.chooser.clear()
        for column in columns:
            self.chooser.addItem(column_label(column), column)
        self.show_column(name if name in columns else next(iter(columns), ""))

    def show_column(self, name: str) -> None:
        """Colour by a column without saying that it was chosen."""
        self._name = name
        self.chooser.setCurrentIndex(self.chooser.findData(name))
        column = self.column()
        self._codes = column.point_codes() if column is not None else np.empty(0, np.int32)
        self._any_missing = bool((self._codes == 0).any())
        self.canvas.setAccessibleName(f"Embedding coloured by {column_label(name)}" if name else "Embedding")
        self.recolour()

    def set_selected(self, selected: NDArray[np.bool_] | None) -> None:
        """Set which points are selected, None where none is."""
        self._selected = selected
        self.recolour()

    def set_chosen_colours(self, colours: Mapping[str, Mapping[str, str]]) -> None:
        """Set the colours that the person gave, by column and level."""
        self._chosen_colours = {name: dict(levels) for name, levels in colours.items()}
        self.recolour()

    def column(self) -> ColumnData | None:
        """Return the column that colours the points."""
        return self._columns.get(self._name)

    def column_name(self) -> str:
        """Return its name."""
        return self._name

    def hidden_levels(self) -> frozenset[int]:
        """Return the codes of the shown column that are hidden."""
        return self._hidden.get(self._name, frozenset())

    def colours(self) -> NDArray[np.uint8]:
        """Return the colour of each code of the shown column."""
        column = self.column()
        theme: ThemeName = "dark" if current().dark else "light"
        if column is None:
            grey = current().color("secondary")
            return np.array([[grey.red(), grey.green(), grey.blue()]], np.uint8)
        return column.colours(theme, self._chosen_colours.get(self._name))

    def recolour(self) -> None:
        """Compute colours and layers anew and draw; positions stay."""
        self.cloud.set_look(self._look())
        self._refresh_legend()

    def _look(self) -> Look:
        colours = self.colours()
        layers = np.ones(len(colours), np.int8)
        if len(colours) > 1 and self._any_missing:
            layers[0] = 0  # where none is missing, all lie in one layer, which is drawn faster
        layers[list(self.hidden_levels())] = -1
        order = self._points.order
        fits = len(self._codes) == self._points.size
        codes = self._codes.take(order) if fits else np.zeros(len(order), np.int32)
        if self._selected is None or len(self._selected) != self._points.size:
            return Look(codes, colours, layers)
        ground = np.array(current().color("panel").getRgb()[:3], float)
        dim = (DIM * colours + (1 - DIM) * ground).round().astype(np.uint8)
        codes = codes + np.where(self._selected.take(order), len(colours), 0).astype(np.int32)
        hidden = np.minimum(layers, 0)
        above = np.where(layers < 0, -1, 1).astype(np.int8)
        return Look(codes, np.concatenate([dim, colours]), np.concatenate([hidden, above]))

    # -- legend ----------------------------------------------------------------------------------------------

    def _refresh_legend(self) -> None:
        column = self.column()
        self.legend.setVisible(column is not None and column.is_categorical)
        self.gradient.setVisible(column is not None and not column.is_categorical)
        if column is None:
            return
        if column.is_categorical:
            among = self._selected if self._selected is not None and len(self._selected) == len(column) else None
            selected = None if among is None else column.counts(among)
            self.legend.show_levels(column.levels, column.counts(), self.colours(), self.hidden_levels(), selected)
        else:
            self.gradient.show_column(column, self._codes, self.colours(), column_title(self._name))
        self.canvas.setAccessibleDescription(self.in_words())
        self.legendChanged.emit()

    def in_words(self) -> str:
        """Return what the cloud shows in words, for screen readers: the number of cells, and the largest levels or the range."""
        column = self.column()
        cells = counted(self._points.size, "cell")
        if column is None or len(column) != self._points.size:
            return cells
        if not column.is_categorical:
            low, high = column.range
            return f"{cells}, {column_title(self._name)} from {low:.3g} to {high:.3g} {column.unit}".strip()
        counts = column.counts()[1:]
        largest = [code for code in np.argsort(-counts, kind="stable")[:8] if counts[code]]
        return f"{cells}: " + ", ".join(f"{column.levels[code]} {counts[code]:,}" for code in largest)

    def _hide_levels(self, hidden: frozenset[int]) -> None:
        self._hidden[self._name] = hidden
        self.cloud.set_look(self._look())

    def _select_levels(self, codes: list[int]) -> None:
        self.levelSelected.emit(np.flatnonzero(np.isin(self._codes, codes)), Qt.KeyboardModifier.NoModifier)

    def _change_colour(self, code: int) -> None:
        column = self.column()
        if column is None or not 1 <= code <= len(column.levels):
            return
        now = QColor(*(int(part) for part in self.colours()[code]))
        colour = self._ask_colour(now, self)
        if colour is not None:
            self.colourChanged.emit(self._name, column.levels[code - 1], colour.name().upper())

    def _show_name(self) -> None:
        self.chooser.setCurrentIndex(self.chooser.findData(self._name))
        self.chooser.setEditText(column_label(self._name))

    def _choose(self, name: str) -> None:
        if name != self._name:
            self.show_column(name)
            self.columnChosen.emit(name)

    # -- mouse -----------------------------------------------------------------------------------------------

    def _lassoed(self, polygon: object, modifiers: object) -> None:
        self.lassoed.emit(self.cloud.inside(polygon), modifiers)  # type: ignore[arg-type]

    def _moved(self, position: QPointF) -> None:
        inside = self.box.sceneBoundingRect().contains(position)
        index = self.cloud.pick(self.box.mapFromScene(position)) if inside else None
        self.hovered.emit(index)

    def eventFilter(self, watched: object, event: QEvent) -> bool:  # noqa: N802
        """Put the card away with the mouse."""
        if event.type() == QEvent.Type.Leave and watched is self.canvas:
            self.hovered.emit(None)
        return False

    def show_hovered(self, index: int | None, text: str = "") -> None:
        """Ring a point, and where there is a text show it in a card beside the point."""
        placed = index is not None and bool(np.isfinite(self._points.xy[index]).all())
        self.cloud.set_hovered(index if placed else None)
        if index is None or not placed or not text:
            self.card.hide()
            return
        x, y = self._points.xy[index]
        scene = self.box.mapViewToScene(QPointF(float(x), float(y)))
        self.card.show_at(self.canvas.mapFromScene(scene), text)

    # -- view ------------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Show all points."""
        self.show_rect(self.cloud.boundingRect())

    def show_rect(self, rect: QRectF) -> None:
        """Show at least a rectangle of the plane."""
        extent = max(1e-9, *(float(side) for side in self._points.high - self._points.low))
        self.box.setLimits(minXRange=extent * 1e-5, minYRange=extent * 1e-5)
        self.box.setRange(rect, padding=0)
