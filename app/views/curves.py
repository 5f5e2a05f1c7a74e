"""Plots of loss curves: one for each series, or all in one, with marks, overlays and a cursor."""

from __future__ import annotations

import html
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyqtgraph as pg
from qtpy.QtCore import QEvent, QPoint, QPointF, QRectF, Qt, QTimer, Signal
from qtpy.QtGui import QContextMenuEvent, QFocusEvent, QKeyEvent, QPaintEvent, QPen, QResizeEvent
from qtpy.QtWidgets import QWidget

from cellweave.app.forms.numberbox import number_text
from cellweave.app.theme import SPACE, current, follow
from cellweave.app.views.axes import EpochAxis, GridLines, Mark, MarkStrip, ValueAxis
from cellweave.app.views.cards import HoverCard
from cellweave.app.views.focus import draw_focus
from cellweave.app.views.history import METRIC, LossHistory, robust_range
from cellweave.app.views.series import CurveStyle, Series, curve, line_pen, run_colour, shared_title

PLOT_WIDTH = 26
"""Least width of one of several plots, in heights of a line of text."""

PLOT_HEIGHT = 13
"""Least height of one of several plots, in the same measure."""

AT_ONCE = 3
"""Plots that are made at once; a narrow view shows no more."""


@dataclass
class _Plot:
    item: pg.PlotItem
    series: tuple[Series, ...]
    cursor: pg.InfiniteLine
    strip: MarkStrip
    lines: dict[tuple[int, str, str, str], pg.PlotDataItem] = field(default_factory=dict)
    marks: dict[str, pg.InfiniteLine] = field(default_factory=dict)
    zoomed: bool = False


class LossCurves(pg.GraphicsLayoutWidget):
    """The plots of a :class:`~cellweave.app.views.lossview.LossView`.

    Parameters
    ----------
    parent
        Owner.

    Attributes
    ----------
    paint_ms
        How long the last painting took, in milliseconds.
    """

    menuRequested = Signal(QPoint)  # noqa: N815

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._series: tuple[Series, ...] = ()
        self._style = CurveStyle()
        self._history = LossHistory()
        self._overlays: tuple[LossHistory, ...] = ()
        self._plots: list[_Plot] = []
        self._columns = self._columns_before = self._gap = 0
        self._waiting: list[tuple[Series, ...]] = []
        self._more = QTimer(self)
        self._more.setSingleShot(True)
        self._more.setInterval(0)
        self._more.timeout.connect(self._make_more)
        self._epoch: int | None = None
        self.paint_ms = 0.0
        self.setFrameShape(self.Shape.NoFrame)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setAccessibleName("Loss curves")
        self.card = HoverCard(self)
        self.ci.layout.setContentsMargins(SPACE, SPACE, SPACE, SPACE)
        self.scene().sigMouseMoved.connect(self._moved)
        follow(self, self._retheme)
        self._retheme()

    # -- what to draw ----------------------------------------------------------------------------------------

    def show_curves(
        self, history: LossHistory, overlays: Sequence[LossHistory], series: Sequence[Series], style: CurveStyle
    ) -> None:
        """Draw; plots and lines that are there already are kept."""
        self._history, self._overlays = history, tuple(overlays)
        rebuild = tuple(series) != self._series or style.separate != self._style.separate or style.log != self._style.log
        self._series, self._style = tuple(series), style
        if rebuild or not self._plots:
            self._build()
        for plot in self._plots:
            self._draw(plot)
        if self._epoch is not None and self._epoch not in history.epochs:
            self._hide_cursor()

    def fit(self) -> None:
        """Show all of every plot again."""
        for plot in self._plots:
            plot.zoomed = False
            self._draw(plot)

    def finish(self) -> None:
        """Make the plots that still wait."""
        while self._waiting:
            self._make_more()

    def titles(self) -> list[str]:
        """Return what each plot shows, for tests and descriptions."""
        self.finish()
        return [", ".join(series.label for series in plot.series) for plot in self._plots]

    def line(self, series: str, split: str, run: int = 0) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the points drawn for a series: run 0 is the run itself, then the overlays; None where it is not drawn."""
        self.finish()
        for plot in self._plots:
            item = plot.lines.get((run, series, split, "line"))
            if item is not None:
                return item.getOriginalDataset()
        return None

    def value_range(self, series: str) -> tuple[float, float]:
        """Return the shown range of the value axis of a series, in the axis' scale."""
        self.finish()
        plot = next(plot for plot in self._plots if any(item.name == series for item in plot.series))
        low, high = plot.item.viewRange()[1]
        return low, high

    # -- building --------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self._hide_cursor()
        for plot in self._plots:
            self.ci.removeItem(plot.item)
        terms = tuple(series for series in self._series if not series.beside)
        groups: list[tuple[Series, ...]] = [(series,) for series in terms] if self._style.separate else [terms] if terms else []
        titles = dict.fromkeys(series.beside for series in self._series if series.beside)
        groups += [tuple(series for series in self._series if series.beside == title) for title in titles]
        # Each plot takes some 15 ms: those in sight come at once, the others one after the other while the window works on.
        self._waiting = groups[AT_ONCE:]
        self._plots = [self._make_plot(group) for group in groups[:AT_ONCE]]
        self._columns = 0
        self._place()
        if self._waiting:
            self._more.start()

    def _make_more(self) -> None:
        """Make the next plot that waits."""
        if not self._waiting:
            return
        plot = self._make_plot(self._waiting.pop(0))
        self._plots.append(plot)
        self._put(len(self._plots) - 1)
        self._draw(plot)
        if self._waiting:
            self._more.start()

    def _make_plot(self, series: tuple[Series, ...]) -> _Plot:
        strip = MarkStrip()
        item = pg.PlotItem(axisItems={"left": ValueAxis("left"), "bottom": EpochAxis("bottom"), "top": strip}, enableMenu=False)
        item.hideButtons()
        item.getViewBox().setDefaultPadding(0.04)
        cursor = pg.InfiniteLine(angle=90, movable=False)
        cursor.setZValue(5)
        cursor.hide()
        item.addItem(cursor, ignoreBounds=True)
        item.addItem(GridLines(item), ignoreBounds=True)
        plot = _Plot(item, series, cursor, strip)
        item.getViewBox().sigRangeChangedManually.connect(lambda *_, plot=plot: self._zoomed(plot))
        self._decorate(plot)
        return plot

    def _zoomed(self, source: _Plot) -> None:
        """Keep a range that was chosen by hand, and show the same epochs in the other plots."""
        left, right = source.item.viewRange()[0]
        for plot in self._plots:
            plot.zoomed = True
            if plot is not source:  # pyqtgraph's own link would shift the range of plots of another width
                plot.item.setXRange(left, right, padding=0)

    def _decorate(self, plot: _Plot) -> None:
        theme = current()
        text, secondary = theme.color("text"), theme.color("secondary")
        title = plot.series[0].label if len(plot.series) == 1 else shared_title(plot.series)
        plot.item.setTitle(f"<b>{html.escape(title)}</b>", color=text.name(), justify="left")
        unit = plot.series[0].unit if len({series.unit for series in plot.series}) == 1 else "value"
        plot.item.getAxis("left").say(unit, secondary)
        plot.item.setLabel("bottom", "epoch", color=secondary.name())
        for side in ("left", "bottom"):
            axis = plot.item.getAxis(side)
            axis.enableAutoSIPrefix(enable=False)
            axis.setPen(theme.color("border"))
            axis.setTextPen(secondary)
            axis.setLogMode(side == "left" and self._style.log)
            axis.setStyle(tickLength=4)
        plot.item.getAxis("left").setWidth(round(8.5 * self.fontMetrics().horizontalAdvance("0")))  # plots below each other align
        plot.strip.setHeight(self.fontMetrics().height() + 2)
        plot.cursor.setPen(pg.mkPen(secondary, width=self.devicePixelRatioF()))
        plot.item.update()

    def _place(self) -> None:
        """Put the plots into as many columns as there is room for."""
        count = len(self._plots) + len(self._waiting)
        if not count:
            return
        line = self.fontMetrics().height()
        fit_across = max(1, self.width() // (PLOT_WIDTH * line))
        columns = min(count, fit_across)
        columns = math.ceil(count / math.ceil(count / columns))  # no lonely plot in the last row
        if columns == self._columns:
            return
        for plot in self._plots:
            if self._columns:
                self.ci.removeItem(plot.item)
        self._columns = columns
        rows = math.ceil(count / columns)
        self._gap = rows * columns - count
        for index in range(len(self._plots)):
            self._put(index)
        for column in range(self._columns_before):
            self.ci.layout.setColumnStretchFactor(column, int(column < columns))
        for column in range(columns):
            self.ci.layout.setColumnPreferredWidth(column, self.width() / columns)
            self.ci.layout.setColumnStretchFactor(column, 1)
        self._columns_before = columns
        self.setMinimumHeight(rows * PLOT_HEIGHT * line if rows > 1 else 0)

    def _put(self, index: int) -> None:
        """Put a plot in its place; where a row is not full, the first plot is the wider: no hole is left."""
        place = index + self._gap if index else 0
        self.ci.addItem(self._plots[index].item, place // self._columns, place % self._columns, 1, 1 if index else self._gap + 1)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        """Paint, and take the time."""
        started = time.perf_counter()
        super().paintEvent(event)
        draw_focus(self)
        self.paint_ms = 1000 * (time.perf_counter() - started)

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        """Place the plots anew where the number of columns changes."""
        super().resizeEvent(event)
        if getattr(self, "_plots", None):
            self._place()
            if self.size() != event.size():  # placing asked for another height, and Qt tells nobody of a size that is set while another is taken in
                super().resizeEvent(event)

    def _retheme(self, *_: object) -> None:
        self.setBackground(current().color("panel"))
        for plot in self._plots:
            self._decorate(plot)
            for item in (*plot.lines.values(), *plot.marks.values()):
                plot.item.removeItem(item)
            plot.lines.clear()
            plot.marks.clear()
            self._draw(plot)

    # -- drawing ---------------------------------------------------------------------------------------------

    def _draw(self, plot: _Plot) -> None:
        wanted: dict[tuple[int, str, str, str], tuple[np.ndarray, np.ndarray, QPen]] = {}
        shown: list[np.ndarray] = []
        for run, history in reversed(list(enumerate((self._history, *self._overlays)))):
            for series in plot.series:
                for split in ("train",) if series.beside else self._style.splits:  # a metric is of neither split
                    points = curve(history, series.name, split, self._style)
                    if not len(points.x):
                        continue
                    shown.append(points.y)
                    if self._style.smoothing and run == 0:
                        wanted[run, series.name, split, "raw"] = (points.x, points.raw, self._pen(series, split, run, raw=True))
                    wanted[run, series.name, split, "line"] = (points.x, points.y, self._pen(series, split, run))
        for key in [key for key in plot.lines if key not in wanted]:
            plot.item.removeItem(plot.lines.pop(key))
        for key, (x, y, pen) in wanted.items():
            if key not in plot.lines:
                plot.lines[key] = self._new_line(key, pen)
                plot.item.addItem(plot.lines[key])
            one = len(x) == 1  # a single epoch has no line yet
            plot.lines[key].setData(x, y, symbol="o" if one else None, symbolSize=5, symbolBrush=pen.color(), symbolPen=None)
        self._draw_marks(plot)
        self._set_range(plot, shown)

    def _new_line(self, key: tuple[int, str, str, str], pen: QPen) -> pg.PlotDataItem:
        item = pg.PlotDataItem(pen=pen, connect="finite", antialias=True, autoDownsample=True, clipToView=False)
        item.setZValue(2 if key[0] == 0 and key[3] == "line" else 1)
        return item

    def _pen(self, series: Series, split: str, run: int, *, raw: bool = False) -> QPen:
        return line_pen(series, split, run, self.devicePixelRatioF(), raw=raw)

    def _draw_marks(self, plot: _Plot) -> None:
        """Mark the best epoch and the weights that were turned; lines that are there already are moved."""
        wanted: dict[str, tuple[float, str]] = {}
        best = self._history.best_epoch
        if best is not None and self._in_sight(best):
            wanted["best"] = (best, f"best {best}")
        names = {series.name for series in plot.series}
        for number, change in enumerate(self._history.changes):
            place = change.epoch + 0.5  # between the last epoch with the old weight and the first with the new
            if self._in_sight(place) and (change.term in names or "total" in names):
                text = f"{number_text(change.old)} → {number_text(change.new)}"
                text = text if len(plot.series) == 1 and change.term in names else f"{self._label(change.term)} {text}"
                wanted[f"change {number}"] = (place, text)
        for key in [key for key in plot.marks if key not in wanted]:
            plot.item.removeItem(plot.marks.pop(key))
        for key, (place, _) in wanted.items():
            if key not in plot.marks:
                plot.marks[key] = self._new_mark(plot, best=key == "best")
            plot.marks[key].setValue(place)
        plot.strip.set_marks([Mark(place, text, current().color("good" if key == "best" else "warn")) for key, (place, text) in wanted.items()])

    def _new_mark(self, plot: _Plot, *, best: bool) -> pg.InfiniteLine:
        colour = current().color("good" if best else "warn")
        style = Qt.PenStyle.DotLine if best else Qt.PenStyle.SolidLine
        line = pg.InfiniteLine(angle=90, movable=False, pen=pg.mkPen(colour, width=self.devicePixelRatioF(), style=style))
        line.setZValue(3)
        plot.item.addItem(line, ignoreBounds=True)
        return line

    def _in_sight(self, epoch: float) -> bool:
        last = self._style.last
        return last is None or not self._history.epochs or epoch > self._history.epochs[-1] - last

    def _label(self, term: str) -> str:
        return next((series.label for series in self._series if series.name == term), term)

    def _set_range(self, plot: _Plot, shown: list[np.ndarray]) -> None:
        if plot.zoomed:
            return
        ends = [history.epochs[-1] for history in (self._history, *self._overlays) if history.epochs]
        if not ends:
            return
        first = 1.0
        if self._style.last is not None and self._history.epochs:
            first = max(1.0, self._history.epochs[-1] - self._style.last + 1)
        plot.item.setXRange(first, max([*ends, first + 1]), padding=0.03)
        if self._style.clip:
            span = robust_range(shown)
        else:
            finite = [part[np.isfinite(part)] for part in shown if np.isfinite(part).any()]
            span = (min(float(part.min()) for part in finite), max(float(part.max()) for part in finite)) if finite else None
        if span is None:
            return
        low, high = span
        room = 0.07 * (high - low) or 0.05 * abs(high) or 1.0
        plot.item.setYRange(low - room, high + room, padding=0)

    # -- cursor ----------------------------------------------------------------------------------------------

    def _moved(self, position: QPointF) -> None:
        for plot in self._plots:
            box = plot.item.getViewBox()
            if box.sceneBoundingRect().contains(position):
                self._show_cursor(plot, round(box.mapSceneToView(position).x()), self.mapFromScene(position))
                return
        self._hide_cursor()

    def _show_cursor(self, plot: _Plot, epoch: int, at: QPoint | None = None) -> None:
        if not self._history.epochs:
            return
        epoch = min(self._history.epochs, key=lambda known: abs(known - epoch))
        self._epoch = epoch
        for other in self._plots:
            other.cursor.setValue(epoch)
            other.cursor.show()
        if at is None:
            box: QRectF = plot.item.getViewBox().sceneBoundingRect()
            x = plot.item.getViewBox().mapViewToScene(QPointF(epoch, 0)).x()
            at = self.mapFromScene(QPointF(x, box.center().y()))
        self.card.show_at(at, self.card_text(plot.series, epoch))

    def _hide_cursor(self) -> None:
        self._epoch = None
        for plot in self._plots:
            plot.cursor.hide()
        self.card.hide()

    def card_text(self, series: Sequence[Series], epoch: int) -> str:
        """Return the values at an epoch as a table in rich text."""
        rows = [f"<tr><td colspan='3'><b>Epoch {epoch}</b></td></tr>"]
        for run, history in enumerate((self._history, *self._overlays)):
            event = history.at(epoch)
            if event is None:
                continue
            if self._overlays:
                rows.append(f"<tr><td colspan='3'>{html.escape(history.name)}</td></tr>")
            for item in series:
                told = {f"{METRIC}{name}": value for name, value in event.metrics.items()}
                values: Mapping[str, Mapping[str, float]] = {"train": event.train | told, "validation": event.validation or {}}
                cells = [f"{split} {values[split][item.name]:.5g}" for split in self._style.splits if item.name in values[split]]
                if item.beside:
                    cells = [f"{told[item.name]:.5g}"] if item.name in told else []
                dot = f"<font color='{run_colour(item.hue(), run).name()}'>●</font> "
                rows.append(f"<tr><td>{dot}{html.escape(item.label)}</td>" + "".join(f"<td>&nbsp; {cell}</td>" for cell in cells) + "</tr>")
        for change in self._history.changes:
            if change.epoch in (epoch - 1, epoch):
                text = f"weight of {self._label(change.term)}: {number_text(change.old)} → {number_text(change.new)}"
                rows.append(f"<tr><td colspan='3'>{html.escape(text)}</td></tr>")
        return f"<table cellspacing='0'>{''.join(rows)}</table>"

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        """Move the cursor by keyboard: arrows, Home, End; Escape puts it away."""
        epochs = self._history.epochs
        if not epochs or not self._plots:
            super().keyPressEvent(event)
            return
        here = epochs.index(self._epoch) if self._epoch in epochs else len(epochs) - 1
        steps = {Qt.Key.Key_Left: here - 1, Qt.Key.Key_Right: here + 1, Qt.Key.Key_Home: 0, Qt.Key.Key_End: len(epochs) - 1}
        if event.key() in steps:
            place = min(len(epochs) - 1, max(0, steps[Qt.Key(event.key())]))
            self._show_cursor(self._plots[0], epochs[place])
        elif event.key() == Qt.Key.Key_Escape and self._epoch is not None:
            self._hide_cursor()
        else:
            super().keyPressEvent(event)

    def focusInEvent(self, event: QFocusEvent) -> None:  # noqa: N802
        """Show that the keyboard is here."""
        super().focusInEvent(event)
        self.viewport().update()

    def focusOutEvent(self, event: QFocusEvent) -> None:  # noqa: N802
        """Put the cursor away with the keyboard."""
        super().focusOutEvent(event)
        self._hide_cursor()
        self.viewport().update()

    def leaveEvent(self, event: QEvent) -> None:  # noqa: N802
        """Put the cursor away with the mouse."""
        self._hide_cursor()
        super().leaveEvent(event)

    def contextMenuEvent(self, event: QContextMenuEvent) -> None:  # noqa: N802
        """Leave the menu to the view."""
        self.menuRequested.emit(event.globalPos())
        event.accept()
