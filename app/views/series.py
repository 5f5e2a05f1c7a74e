"""How a series is written and drawn, and its points in the scale of the axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from qtpy.QtGui import QColor

from cellweave.app.forms.hues import on_ground
from cellweave.app.theme import current
from cellweave.app.views.history import SPLITS, LossHistory, smooth


@dataclass(frozen=True)
class Series:
    """How one series is written and drawn.

    Attributes
    ----------
    name
        Term, ``total`` or ``elbo``.
    label
        In titles, legends and cards.
    unit
        On the value axis.
    colour
        Hue of the term; None draws it in the colour of text, as the sums are.
    beside
        Title of the plot that it shares with others of that title, for what is no term of the objective; empty for a plot of its own.
    help
        One sentence on what it says.
    """

    name: str
    label: str
    unit: str = "nats per cell"
    colour: QColor | None = None
    beside: str = ""
    help: str = ""

    def hue(self) -> QColor:
        """Return the colour in the present theme."""
        return current().color("text") if self.colour is None else on_ground(self.colour)


@dataclass(frozen=True)
class CurveStyle:
    """What the controls of the view say.

    Attributes
    ----------
    log, clip
        Logarithmic values; range without outliers.
    smoothing
        Strength of the moving average, from 0 to below 1.
    last
        Only this many epochs, None for all.
    splits
        Which of train and validation are drawn.
    separate
        One plot a series, or all in one.
    """

    log: bool = False
    clip: bool = False
    smoothing: float = 0.0
    last: int | None = None
    splits: tuple[str, ...] = SPLITS
    separate: bool = True


@dataclass(frozen=True)
class Curve:
    """Points of one curve, ready to draw: ``x`` in epochs, ``raw`` and ``y`` (smoothed) in the axis' scale."""

    x: np.ndarray
    raw: np.ndarray
    y: np.ndarray


def curve(history: LossHistory, name: str, split: str, style: CurveStyle) -> Curve:
    """Return a curve in the scale of the axis: base-10 logarithms where it is logarithmic, NaN for what has none."""
    x, values = history.series(name, split)
    smoothed = smooth(values, style.smoothing)
    if style.last is not None and history.epochs:
        keep = x > history.epochs[-1] - style.last
        x, values, smoothed = x[keep], values[keep], smoothed[keep]
    if style.log:
        values, smoothed = _log10(values), _log10(smoothed)
    return Curve(x, values, smoothed)


def _log10(values: np.ndarray) -> np.ndarray:
    return np.log10(values, out=np.full(len(values), np.nan), where=values > 0)
