"""The Losses view: every term of the objective, train and validation, while it happens and afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qtpy.QtCore import QPoint, QSize, Qt, QTimer, Signal
from qtpy.QtGui import QIcon, QShowEvent
from qtpy.QtWidgets import (
    QApplication,
    QCheckBox,
    QHBoxLayout,
    QLabel,
    QMenu,
    QPushButton,
    QSlider,
    QToolButton,
    QVBoxLayout,
    QWidget,
)
from superqt import QFlowLayout

from cellweave.app.forms.fields import FormField
from cellweave.app.forms.numberbox import NumberBox
from cellweave.app.forms.scroll import ColumnScroll
from cellweave.app.theme import SPACE, current, follow, icon, series_color
from cellweave.app.views.cards import Message
from cellweave.app.views.curves import LossCurves
from cellweave.app.views.history import ELBO, METRIC, SPLITS, TOTAL, LossHistory
from cellweave.app.views.losslegend import Chip, free_colours, line_icon, stem
from cellweave.app.views.series import CurveStyle, Series, dashes, run_colour
from cellweave.core.models.declare import LossTerm, Metric
from cellweave.core.runs.events import Event

REDRAW_MS, SLOWEST_MS = 100, 1000
MOST_CHIPS = 14  # in the legend, from which on the metrics are named on demand
REST = 10
"""The view rests this many times as long as the last picture took: training needs the processor more."""

WELCOME = "The losses of a run appear here while it trains: every term, for the training cells and the held-out ones."
SHORT = {"Total (weighted)": "Total", "Negative ELBO": "−ELBO"}
"""What the legend says of them: it stands in one row also in a narrow window."""

SUM_LABELS = {TOTAL: "Total (weighted)", ELBO: "Negative ELBO"}


class LossView(QWidget):
    """Loss curves of a run, fed by its events.

    Parameters
    ----------
    parent
        Owner.
    """

    csvRequested = Signal(str)  # noqa: N815
    exportRequested = Signal()  # noqa: N815
    overlayRemoved = Signal(str)  # noqa: N815

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._history = LossHistory()
        self._overlays: dict[str, LossHistory] = {}
        self._declared: dict[str, tuple[tuple[LossTerm, ...], tuple[Metric, ...]]] = {}
        self._terms: dict[str, LossTerm] = {}
        self._metrics: dict[str, Metric] = {}
        self._hidden: set[str] = {ELBO}
        self._message = ""
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(REDRAW_MS)
        self._timer.timeout.connect(self._redraw)
        self._stale = False
        self._legend_of: tuple[object, ...] = ()
        self._unfolded = False
        self._build()
        self.set_message("")
        follow(self, self._retheme)

    # -- what it shows ---------------------------------------------------------------------------------------

    def set_terms(self, terms: Sequence[LossTerm], metrics: Sequence[Metric] = ()) -> None:
        """Set labels, units and hues, as the model declares them; without them the names stand for themselves.

        Parameters
        ----------
        terms
            Of the objective.
        metrics
            What the model tells beside them once an epoch; those of one unit share a plot below the terms.
        """
        self._terms = {term.name: term for term in terms}
        self._metrics = {f"{METRIC}{metric.name}": metric for metric in metrics}
        self._later()

    def set_run(self, name: str, events: Iterable[Event] = ()) -> None:
        """Show a run from what its events said so far."""
        self._history = LossHistory.of(name, events)
        self._curves.fit()
        self._later(at_once=True)

    def add_event(self, event: Event) -> None:
        """Take in what the run says now; the picture follows at most ten times a second."""
        if self._history.add(event):
            self._later()

    def add_earlier(self, events: Iterable[Event]) -> None:
        """Take in what the shown run said before it went on from a checkpoint."""
        self._history = self._history.after(events)
        self._later(at_once=True)

    def add_overlay(self, name: str, events: Iterable[Event], terms: Sequence[LossTerm] = (), metrics: Sequence[Metric] = ()) -> None:
        """Draw another run behind this one, thinner; ``terms`` and ``metrics`` as its own model declares them."""
        self._overlays[name] = LossHistory.of(name, events)
        self._declared[name] = tuple(terms), tuple(metrics)
        self._later(at_once=True)

    def remove_overlay(self, name: str) -> None:
        """Take another run away."""
        if self._overlays.pop(name, None) is not None:
            self.overlayRemoved.emit(name)
            self._later(at_once=True)

    def clear(self) -> None:
        """Show nothing, and say what will be shown."""
        self._history = LossHistory()
        self._overlays.clear()
        self._message = ""
        self._later(at_once=True)

    def set_message(self, text: str) -> None:
        """Say what an empty view waits for; an empty text leaves that to the events."""
        self._message = text
        self._show_message()

    def history(self) -> LossHistory:
        """Return what is known of the run."""
        return self._history

    def to_csv(self) -> str:
        """Return the run's losses as CSV text."""
        return self._history.to_csv()

    def style_now(self) -> CurveStyle:
        """Return what the controls say."""
        splits = tuple(split for split, button in self._splits.items() if button.isChecked())
        last = self._last.value()
        return CurveStyle(
            log=self._log.isChecked(), clip=self._clip.isChecked(), smoothing=self._smoothing.value() / 100,
            last=None if last is None else int(last), splits=splits, separate=self._separate.isChecked(),
        )  # fmt: skip

    def series(self) -> list[Series]:
        """Return every series the run and its overlays have, the total first."""
        names = dict.fromkeys(name for history in (self._history, *self._overlays.values()) for name in history.series_names())
        told = [*(name for name in self._known()[1] if name in names), *(name for name in names if name.startswith(METRIC))]
        terms = self._known()[0]
        order = [TOTAL, *(name for name in terms if name in names), *(name for name in names if name not in SUM_LABELS and name not in told), ELBO, *told]
        return [self._describe(name, index) for index, name in enumerate(dict.fromkeys(order)) if name in names]

    def metric_names(self) -> list[str]:
        """Return the names of the metrics that the run and its overlays tell, declared ones first."""
        there = dict.fromkeys(name for history in (self._history, *self._overlays.values()) for name in history.series_names() if name.startswith(METRIC))
        return [*(name for name in self._known()[1] if name in there), *(name for name in there if name not in self._known()[1])]

    def _known(self) -> tuple[dict[str, LossTerm], dict[str, Metric]]:
        """Return the terms and metrics that are declared: those of the run shown, then what only the runs laid over it have."""
        terms, metrics = dict(self._terms), dict(self._metrics)
        for name in self._overlays:
            more, told = self._declared.get(name, ((), ()))
            terms |= {term.name: term for term in more if term.name not in terms}
            metrics |= {f"{METRIC}{metric.name}": metric for metric in told if f"{METRIC}{metric.name}" not in metrics}
        return terms, metrics

    def _describe(self, name: str, index: int) -> Series:
        if name in SUM_LABELS:
            return Series(name, SUM_LABELS[name])
        if name.startswith(METRIC):
            metric, told = self._known()[1].get(name), [known for known in self.metric_names() if known.startswith(METRIC)]
            stems = list(dict.fromkeys(stem(known) for known in told))  # a pair of training and held-out cells has one hue
            free = free_colours({term.colour for term in self._known()[0].values()})
            hue, dashed = series_color(free[stems.index(stem(name)) % len(free)]), name.endswith("_validation")
            if metric is None:
                return Series(name, name.removeprefix(METRIC).replace("_", " ").capitalize(), "", hue, beside="Metrics", dashed=dashed)
            return Series(name, metric.label, metric.unit, hue, beside=metric.unit or "Metrics", help=metric.help, dashed=dashed)
        term = self._known()[0].get(name)
        if term is None:
            return Series(name, name.replace("_", " ").capitalize(), "value", series_color(index - 1))
        return Series(name, term.label, term.unit, series_color(term.colour))

    # -- state -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what a person chose of the view, as plain values that :meth:`restore` takes."""
        style = self.style_now()
        return {
            "log": style.log, "clip": style.clip, "smoothing": self._smoothing.value(), "last": style.last, "separate": style.separate,
            "hidden": sorted(self._hidden),
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what was chosen before; what cannot be read is left as it is."""
        for name, box in (("log", self._log), ("clip", self._clip), ("separate", self._separate)):
            if isinstance(state.get(name), bool):
                box.setChecked(state[name])
        if isinstance(state.get("smoothing"), int):
            self._smoothing.setValue(state["smoothing"])
        last = state.get("last")
        if "last" in state and (last is None or (isinstance(last, int) and last >= 2)):
            self._last.set_value(last)
        hidden = state.get("hidden")
        if isinstance(hidden, list) and all(isinstance(name, str) for name in hidden):
            self._hidden = set(hidden)
            self._legend_of = ()
        self._style_changed()

    # -- building --------------------------------------------------------------------------------------------

    def _build(self) -> None:
        outer = QVBoxLayout(self)
        outer.setContentsMargins(2 * SPACE, 2 * SPACE, 2 * SPACE, 2 * SPACE)
        outer.setSpacing(2 * SPACE)
        self._curves = LossCurves()
        self._bar = self._build_controls()
        outer.addWidget(self._bar)
        self._legend = QWidget(self)
        self._legend_row = QFlowLayout(self._legend)
        self._legend_row.setContentsMargins(0, 0, 0, 0)
        self._legend_row.setSpacing(SPACE // 2)
        outer.addWidget(self._legend)
        self._curves.menuRequested.connect(self._menu)
        self._scroll = ColumnScroll(self)
        self._scroll.show_widget(self._curves)
        outer.addWidget(self._scroll, 1)
        self._note = Message(self._scroll)

    def _build_controls(self) -> QWidget:
        bar = QWidget(self)
        row = QFlowLayout(bar)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(2 * SPACE)
        self._separate = QPushButton("Separate")
        self._separate.setAccessibleName("Separate plots")
        self._separate.setCheckable(True)
        self._separate.setChecked(True)
        self._separate.setToolTip("A plot for each term, or all terms in one plot")
        self._log = QCheckBox("Log")
        self._log.setAccessibleName("Logarithmic value axis")
        self._log.setToolTip("Logarithmic value axis; values of 0 and less are left out")
        self._clip = QCheckBox("Clip")
        self._clip.setAccessibleName("Clip outliers")
        self._clip.setToolTip("Fit the value axis to the bulk of the values, so that a few large ones do not flatten the curve")
        self._smoothing = QSlider(Qt.Orientation.Horizontal)
        self._smoothing.setRange(0, 99)
        self._smoothing.setPageStep(10)
        self._smoothing.setAccessibleName("Smoothing, per cent")
        self._smoothing.setToolTip("Moving average over the epochs; the values themselves stay visible, faintly")
        self._smoothing_text = QLabel("0.00")
        self._smoothing_text.setProperty("secondary", "true")
        field = FormField("last", "last", "int", "Last", "Show only this many epochs.", None, unit="epochs", nullable=True, low=2)
        self._last = NumberBox(field)
        self._last.set_placeholder("all")
        self._last.setAccessibleName("Show the last epochs")
        self._last.setAccessibleDescription("Empty shows all epochs")
        self._last.setToolTip("Show only the last epochs; empty shows all")
        self._fit = _icon_button("fit", "Fit", "Show all of every curve again after zooming")
        self._csv = _icon_button("table", "Save as CSV", "Save the losses as a table (CSV)")
        self._csv.clicked.connect(lambda: self.csvRequested.emit(self.to_csv()))
        for group in (
            (self._separate,), (self._log,), (self._clip,), (QLabel("Smoothing"), self._smoothing, self._smoothing_text),
            (QLabel("Last"), self._last), (self._fit, self._csv),
        ):  # fmt: skip
            row.addWidget(_side_by_side(*group))
        tallest = max(row.itemAt(index).sizeHint().height() for index in range(row.count()))
        for index in range(row.count()):
            row.itemAt(index).widget().setMinimumHeight(tallest)
        self._separate.toggled.connect(self._style_changed)
        self._log.toggled.connect(self._style_changed)
        self._clip.toggled.connect(self._style_changed)
        self._smoothing.valueChanged.connect(self._style_changed)
        self._last.edited.connect(self._style_changed)
        self._fit.clicked.connect(self._curves.fit)
        self._splits: dict[str, QToolButton] = {}
        return bar

    # -- legend ----------------------------------------------------------------------------------------------

    def _refresh_legend(self) -> None:
        wanted = (tuple(self.series()), tuple(self._overlays), current().name)
        if wanted == self._legend_of:
            return
        self._legend_of = wanted
        checked = {split: button.isChecked() for split, button in self._splits.items()}
        while self._legend_row.count():
            item = self._legend_row.takeAt(0)
            if item is not None and item.widget() is not None:
                item.widget().hide()
                item.widget().deleteLater()
        every = self.series()
        told = [series for series in every if series.name.startswith(METRIC)]
        folds = len(every) > MOST_CHIPS and len(told) > 1
        for series in every:
            if folds and not self._unfolded and series.name.startswith(METRIC):
                continue
            tip = f"Show {series.label}" + (f": {series.help}" if series.help else "")
            button = self._chip(SHORT.get(series.label, series.label), line_icon(series.hue(), dashes(0, held_out=series.dashed)), tip)
            button.setAccessibleName(f"Show {series.label}")
            button.setChecked(series.name not in self._hidden)
            button.toggled.connect(lambda on, name=series.name: self._toggle(name, on=on))
            self._legend_row.addWidget(button)
        for split in SPLITS:
            button = self._chip(split, line_icon(current().color("secondary"), dashes(0, held_out=split == "validation")), f"Show the {split} curves")
            button.setChecked(checked.get(split, True))
            button.toggled.connect(self._style_changed)
            self._splits[split] = button
            self._legend_row.addWidget(button)
        if folds:
            tip = "Name also the curves of what is told beside the losses"
            button = self._chip(f"{len(told)} other numbers", icon(f"chevron-{'down' if self._unfolded else 'right'}"), tip)
            button.setChecked(self._unfolded)
            button.toggled.connect(self._unfold)
            self._legend_row.addWidget(button)
        for run, name in enumerate(self._overlays, start=1):
            look = line_icon(run_colour(current().color("text"), run), dashes(run, held_out=False))
            button = self._chip(name, look, f"Take the curves of {name} away", most=10, side=Qt.TextElideMode.ElideMiddle)
            button.setCheckable(False)
            button.clicked.connect(lambda *_, name=name: self.remove_overlay(name))
            self._legend_row.addWidget(button)

    def _chip(self, text: str, picture: QIcon, tip: str, *, most: int = 40, side: Qt.TextElideMode = Qt.TextElideMode.ElideRight) -> QToolButton:
        button = Chip(self._legend)
        button.setText(self.fontMetrics().elidedText(text, side, self.fontMetrics().horizontalAdvance("n") * most))
        button.setIcon(picture)
        height = self.fontMetrics().height()
        button.setIconSize(QSize(round(1.2 * height), height))
        button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        button.setCheckable(True)
        button.setToolTip(tip)
        button.setAccessibleName(tip)
        return button

    def _unfold(self, on: bool) -> None:
        """Name the curves of metrics one by one, or leave them out of the legend: they would take the room of the curves."""
        self._unfolded, self._legend_of = on, ()
        QTimer.singleShot(0, self._refresh_legend)  # the button that was pressed is among those made anew

    def _toggle(self, name: str, *, on: bool) -> None:
        (self._hidden.discard if on else self._hidden.add)(name)
        self._later(at_once=True)

    # -- drawing ---------------------------------------------------------------------------------------------

    def _style_changed(self, *_: object) -> None:
        self._smoothing_text.setText(f"{self._smoothing.value() / 100:.2f}")
        self._later(at_once=True)

    def _later(self, *, at_once: bool = False) -> None:
        self._stale = True
        if at_once and self.isVisible():
            self._redraw()
        elif not self._timer.isActive():
            self._timer.start()

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802
        """Draw what came while the view was out of sight."""
        super().showEvent(event)
        if self._stale:
            self._redraw()

    def _redraw(self) -> None:
        self._timer.stop()
        self._show_message()
        if not self.isVisible():
            return  # it is drawn when it is looked at
        self._stale = False
        started = time.perf_counter()
        self._refresh_legend()
        shown = [series for series in self.series() if series.name not in self._hidden]
        self._curves.show_curves(self._history, list(self._overlays.values()), shown, self.style_now())
        self._curves.setAccessibleDescription(self.in_words())
        took = 1000 * (time.perf_counter() - started) + self._curves.paint_ms
        self._timer.setInterval(round(min(SLOWEST_MS, max(REDRAW_MS, REST * took))))

    def _show_message(self) -> None:
        empty = not self._history.epochs and not any(history.epochs for history in self._overlays.values())
        self._note.set_text((self._message or self._history.phase or WELCOME) if empty else "")
        self._bar.setVisible(not empty)
        self._legend.setVisible(not empty)
        self._curves.setVisible(not empty)
        policy = Qt.ScrollBarPolicy  # plots of an earlier run may be taller than the view: beside a message nothing scrolls
        self._scroll.setVerticalScrollBarPolicy(policy.ScrollBarAlwaysOff if empty else policy.ScrollBarAsNeeded)
        self._csv.setEnabled(bool(self._history.epochs))

    def in_words(self) -> str:
        """Return the last values in words, for screen readers."""
        if not self._history.epochs:
            return self._history.phase or WELCOME
        last = self._history.at(self._history.epochs[-1])
        assert last is not None
        parts = [f"{series.label} {last.train[series.name]:.5g}" for series in self.series() if series.name in last.train]
        return f"Epoch {last.epoch} of {last.max_epochs}. " + ", ".join(parts)

    def _retheme(self, *_: object) -> None:
        self._refresh_legend()

    # -- menu ------------------------------------------------------------------------------------------------

    def _menu(self, position: QPoint) -> None:
        self.make_menu().popup(position)

    def make_menu(self) -> QMenu:
        """Return the context menu of the curves."""
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        menu.addAction(icon("figure"), "Export figure…", self.exportRequested.emit)
        menu.addAction(icon("copy"), "Copy image", self.copy_image)
        menu.addAction(icon("table"), "Save as CSV…", self._csv.click).setEnabled(self._csv.isEnabled())
        menu.addSeparator()
        menu.addAction("Fit", self._curves.fit)
        return menu

    def copy_image(self) -> None:
        """Copy the curves as a picture."""
        QApplication.clipboard().setPixmap(self._curves.grab())


def _icon_button(picture: str, name: str, tip: str) -> QToolButton:
    button = QToolButton()
    button.setIcon(icon(picture))
    button.setToolTip(tip)
    button.setAccessibleName(name)
    button.setAccessibleDescription(tip)
    button.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
    return button


def _side_by_side(*widgets: QWidget) -> QWidget:
    holder = QWidget()
    row = QHBoxLayout(holder)
    row.setContentsMargins(0, 0, 0, 0)
    row.setSpacing(SPACE)
    for widget in widgets:
        row.addWidget(widget)
    return holder
