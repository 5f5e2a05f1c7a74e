"""Loss weights: a logarithmic slider and a number for every term that the model declares."""

from __future__ import annotations

import math

from qtpy.QtCore import QObject, QPointF, QSignalBlocker, QSize, Qt, QTimer, Signal
from qtpy.QtGui import QFont, QFontMetrics, QPainter, QPaintEvent, QWheelEvent
from qtpy.QtWidgets import (
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QSizePolicy,
    QSlider,
    QStyle,
    QStyleOptionSlider,
    QVBoxLayout,
    QWidget,
)

from cellweave.app.forms.fields import FormField
from cellweave.app.forms.numberbox import NumberBox, number_text
from cellweave.app.forms.row import Dot, reset_button
from cellweave.app.forms.scroll import ColumnScroll
from cellweave.app.theme import SPACE, current, series_color
from cellweave.core.models.declare import LossTerm
from cellweave.core.spec import RunSpec

DECADES = 5
PER_DECADE = 20
THROTTLE_MS = 100


class LogScale:
    """Slider positions and weights: 0 is off, then ``DECADES`` decades up to the maximum.

    Parameters
    ----------
    maximum
        Weight at the right end.
    """

    last = DECADES * PER_DECADE + PER_DECADE // 2

    def __init__(self, maximum: float) -> None:
        self.maximum = maximum

    def weight(self, position: int) -> float:
        """Return the weight at a position, rounded to two figures so that it can be read and repeated."""
        if position <= 0:
            return 0.0
        exact = self.maximum * 10 ** ((position - self.last) / PER_DECADE)
        return float(f"{exact:.2g}")

    def position(self, weight: float) -> int:
        """Return the nearest position; only 0 is at the left end."""
        if weight <= 0:
            return 0
        exact = self.last + PER_DECADE * math.log10(weight / self.maximum)
        return min(self.last, max(1, round(exact)))


class LogSlider(QSlider):
    """A slider of weights; arrow keys move by a tenth of a decade, Page keys by one, Home switches off.

    Parameters
    ----------
    scale
        Positions and weights.
    parent
        Owner.
    """

    def __init__(self, scale: LogScale, parent: QWidget | None = None) -> None:
        super().__init__(Qt.Orientation.Horizontal, parent)
        self.scale = scale
        self.setRange(0, scale.last)
        self.setSingleStep(PER_DECADE // 10)
        self.setPageStep(PER_DECADE)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)

    def wheelEvent(self, event: QWheelEvent) -> None:  # noqa: N802
        """Scroll the form, not the weight, unless the slider has the focus."""
        if self.hasFocus():
            super().wheelEvent(event)
        else:
            event.ignore()


class ScaleLabels(QWidget):
    """What the places of a slider mean: off, then a mark for every decade.

    Parameters
    ----------
    slider
        The slider above it, of the same width.
    parent
        Owner.
    """

    def __init__(self, slider: LogSlider, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._slider = slider
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def marks(self) -> list[tuple[int, str]]:
        """Return slider positions and the texts below them."""
        scale = self._slider.scale
        places = range(scale.last, 0, -PER_DECADE)
        return [(0, "off"), *((place, f"{scale.weight(place):g}") for place in reversed(places))]

    def sizeHint(self) -> QSize:  # noqa: N802
        """Return one line of small text."""
        return QSize(0, self._metrics().height() + SPACE)

    def _small(self) -> QFont:
        font = QFont(self.font())
        font.setPointSizeF(font.pointSizeF() * 0.85)
        return font

    def _metrics(self) -> QFontMetrics:
        return QFontMetrics(self._small())

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        """Draw the marks; those that would touch their neighbour are left out."""
        painter = QPainter(self)
        painter.setFont(self._small())
        metrics, slider = self._metrics(), self._slider
        option = QStyleOptionSlider()
        slider.initStyleOption(option)
        handle = slider.style().pixelMetric(QStyle.PixelMetric.PM_SliderLength, option, slider)
        span = slider.width() - handle
        theme, taken = current(), -math.inf
        for place, text in self.marks():
            x = handle / 2 + QStyle.sliderPositionFromValue(0, slider.maximum(), place, span)
            width = metrics.horizontalAdvance(text)
            left = min(max(0.0, x - width / 2), self.width() - width)
            painter.setPen(theme.color("border"))
            painter.drawLine(QPointF(x, 0), QPointF(x, SPACE - 1))
            if left < taken + metrics.horizontalAdvance(" "):
                continue
            taken = left + width
            painter.setPen(theme.color("secondary"))
            painter.drawText(QPointF(left, SPACE + metrics.ascent()), text)
        painter.end()


class WeightRow(QObject):
    """The widgets of one term.

    Parameters
    ----------
    term
        The term.
    grid
        The form's grid.
    line
        First of the lines of the grid that the row takes.
    parent
        Widget that owns them.
    """

    edited = Signal(str, float)

    def __init__(self, term: LossTerm, grid: QGridLayout, line: int, parent: QWidget) -> None:
        super().__init__(parent)
        self.term = term
        self._baseline = term.default
        self._sent: float | None = None
        self._weight = term.default
        self.hue = Dot("text", parent)
        self.hue.set_fixed_colour(series_color(term.colour))
        self.label = QLabel(term.label, parent)
        self.label.setWordWrap(True)
        self.mark = Dot("accent", parent)
        self.slider = LogSlider(LogScale(term.maximum), parent)
        field = FormField(term.name, f"losses.weights.{term.name}", "float", f"Weight of {term.label}", term.help, term.default, log=True, low=0.0)
        self.number = NumberBox(field, parent)
        self.reset = reset_button(f"weight of {term.label}", parent)
        self.problem = QLabel("", parent)
        self.problem.setProperty("tone", "bad")
        self.problem.setWordWrap(True)
        self.problem.hide()
        for widget, what in ((self.slider, "slider"), (self.number, "number")):
            widget.setAccessibleName(f"Weight of {term.label}, {what}")
            widget.setAccessibleDescription(f"{term.help} 0 switches the term off.")
        self.slider.setObjectName(f"{field.path}.slider")
        self.number.setObjectName(field.path)
        tip = f"<qt><b>{term.label}</b><br>{term.help}<br>0 switches the term off.<br><code>{field.path}</code></qt>"
        for widget in (self.label, self.slider, self.number):
            widget.setToolTip(tip)
        self._place(grid, line)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(THROTTLE_MS)
        self._timer.timeout.connect(self._send)
        self.slider.valueChanged.connect(self._slid)
        self.slider.sliderReleased.connect(self._send_now)
        self.number.edited.connect(self._typed)
        self.number.rejected.connect(self.set_problem)
        self.reset.clicked.connect(lambda: self._typed(self._baseline))
        self.show_weight(term.default)

    def _place(self, grid: QGridLayout, line: int) -> None:
        head = QHBoxLayout()
        head.setSpacing(2 * SPACE)
        head.addWidget(self.hue)
        head.addWidget(self.label, 1)
        head.addWidget(self.mark)
        grid.addLayout(head, line, 0)
        grid.addWidget(self.number, line, 1)
        grid.addWidget(self.reset, line, 2)
        grid.addWidget(self.slider, line + 1, 0, 1, 3)
        grid.addWidget(ScaleLabels(self.slider, self.slider.parentWidget()), line + 2, 0, 1, 3)
        grid.addWidget(self.problem, line + 3, 0, 1, 3)
        QWidget.setTabOrder(self.slider, self.number)
        QWidget.setTabOrder(self.number, self.reset)

    def weight(self) -> float:
        """Return the weight that the row shows."""
        return self._weight

    def show_weight(self, weight: float) -> None:
        """Show a weight without saying that it was edited; a slider that is being dragged is left alone."""
        if self.slider.isSliderDown() or self._timer.isActive():
            return
        self._sent = weight
        self._show(weight)
        self.set_problem("")

    def set_baseline(self, weight: float, origin: str) -> None:
        """Set the weight that the mark compares with and reset goes back to."""
        self._baseline = weight
        self.reset.setToolTip(f"Reset to {origin}: {number_text(weight)}")
        self._show(self._weight)

    def set_problem(self, text: str) -> None:
        """Show or take away the sentence below the slider."""
        self.problem.setText(text)
        self.problem.setVisible(bool(text))

    def _show(self, weight: float) -> None:
        self._weight = weight
        self.number.set_value(weight)
        with QSignalBlocker(self.slider):
            self.slider.setValue(self.slider.scale.position(weight))
        self._mark()

    def _slid(self, position: int) -> None:
        self._show_dragged(self.slider.scale.weight(position))
        if self.slider.isSliderDown():
            if not self._timer.isActive():
                self._timer.start()
        else:
            self._send_now()

    def _show_dragged(self, weight: float) -> None:
        """Update everything but the slider, which is where the finger is."""
        self._weight = weight
        self.number.set_value(weight)
        self._mark()
        self.set_problem("")

    def _mark(self) -> None:
        changed = self._weight != self._baseline
        self.mark.set_on(changed, f"Changed from {number_text(self._baseline)}")
        self.reset.setVisible(changed)

    def _typed(self, weight: float) -> None:
        self.set_problem("")
        self._show(float(weight))
        self._send_now()

    def _send_now(self) -> None:
        self._timer.stop()
        self._send()

    def _send(self) -> None:
        if self._weight != self._sent:
            self._sent = self._weight
            self.edited.emit(self.term.name, self._weight)


def present_terms(terms: tuple[LossTerm, ...], modalities: frozenset[str] | None) -> tuple[LossTerm, ...]:
    """Return the terms that data with these modalities can have; all of them where the data are not known."""
    return tuple(term for term in terms if modalities is None or not term.modality or term.modality in modalities)


class LossWeightsForm(QWidget):
    """One row for every loss term of a spec.

    ``weightChanged(term, weight)`` is sent at most every 100 ms while a slider is dragged, and in any case for the
    value it is left at. Setting a spec emits nothing.

    Parameters
    ----------
    parent
        Owner.
    """

    weightChanged = Signal(str, float)  # noqa: N815  (Qt's own manner of naming signals)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._terms: tuple[LossTerm, ...] = ()
        self._rows: dict[str, WeightRow] = {}
        self._baseline: RunSpec | None = None
        self._baseline_name = "the preset"
        self._note = QLabel("", self)
        self._note.setProperty("secondary", "true")
        self._note.setWordWrap(True)
        self._note.hide()
        self._scroll = ColumnScroll(self)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.setSpacing(2 * SPACE)
        outer.addWidget(self._note)
        outer.addWidget(self._scroll, 1)

    def set_spec(self, spec: RunSpec, modalities: frozenset[str] | None = None) -> None:
        """Show the weights of a spec; the rows are made anew only where the terms differ.

        Parameters
        ----------
        spec
            The spec.
        modalities
            Those of the data: terms of others are left out. None while they are not known.
        """
        terms = present_terms(spec.terms(), modalities)
        if terms != self._terms:
            self._build(terms)
        for name, weight in spec.loss_weights().items():
            self.set_weight(name, weight)

    def set_preset_baseline(self, spec: RunSpec | None, name: str = "the preset") -> None:
        """Set what the dots compare with and reset goes back to; None stands for the model's defaults."""
        self._baseline, self._baseline_name = spec, name
        self._apply_baseline()

    def set_weight(self, term: str, weight: float) -> None:
        """Show one weight, such as one that was turned elsewhere; a term the form does not have is left out."""
        if term in self._rows:
            self._rows[term].show_weight(weight)

    def set_error(self, term: str, text: str) -> None:
        """Show a sentence below the slider of a term."""
        self._rows[term].set_problem(text)

    def set_note(self, text: str) -> None:
        """Show a line above the sliders, such as 'Changes take effect at the next step'."""
        self._note.setText(text)
        self._note.setVisible(bool(text))

    def terms(self) -> list[str]:
        """Return the names of the terms, in the order of the rows."""
        return list(self._rows)

    def row(self, term: str) -> WeightRow:
        """Return the row of a term."""
        return self._rows[term]

    def _build(self, terms: tuple[LossTerm, ...]) -> None:
        body = QWidget()
        grid = QGridLayout(body)
        grid.setContentsMargins(0, 0, SPACE, SPACE)
        grid.setHorizontalSpacing(2 * SPACE)
        grid.setVerticalSpacing(SPACE)
        grid.setColumnStretch(0, 1)
        self._terms, self._rows = terms, {}
        for index, term in enumerate(terms):
            row = WeightRow(term, grid, 5 * index, body)
            row.edited.connect(self.weightChanged)
            grid.setRowMinimumHeight(5 * index + 4, 2 * SPACE)
            self._rows[term.name] = row
        grid.setRowStretch(5 * len(terms), 1)
        self._scroll.show_widget(body)
        self._apply_baseline()

    def _apply_baseline(self) -> None:
        weights = {} if self._baseline is None else self._baseline.loss_weights()
        for name, row in self._rows.items():
            known = name in weights
            row.set_baseline(weights[name] if known else row.term.default, self._baseline_name if known else "the default")
