"""How a series is written and drawn, and its points in the scale of the axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtGui import QColor, QPen

from cellweave.app.forms.hues import on_ground
from cellweave.app.theme import current
from cellweave.app.views.history import SPLITS, LossHistory, smooth

HELD_OUT = (4.0, 3.0)
LOOKS: tuple[tuple[str, float, tuple[float, ...], tuple[float, ...]], ...] = (
    ("panel", 0.5, (), HELD_OUT),
    ("text", 0.6, (1.0, 2.5), (1.0, 5.0)),
    ("panel", 0.75, (8.0, 2.0, 1.0, 2.0), (8.0, 5.0, 1.0, 5.0)),
    ("text", 0.35, (), HELD_OUT),
)
"""How runs that are laid over another differ from it and from each other: towards which token their hue goes, how much of it is left, and the dashes of
their train and held-out lines."""


def run_colour(hue: QColor, run: int) -> QColor:
    """Return the hue of a series for a run: 0 is the run shown, then those laid over it."""
    if not run:
        return QColor(hue)
    token, share, _, _ = LOOKS[(run - 1) % len(LOOKS)]
    other = current().color(token)
    parts = (round(share * a + (1 - share) * b) for a, b in zip(hue.getRgb()[:3], other.getRgb()[:3], strict=True))
    return QColor(*parts)


def dashes(run: int, *, held_out: bool) -> tuple[float, ...]:
    """Return the dash pattern of a line; none for a solid one."""
    if not run:
        return HELD_OUT if held_out else ()
    _, _, train, validation = LOOKS[(run - 1) % len(LOOKS)]
    return validation if held_out else train


def line_pen(series: Series, split: str, run: int, ratio: float, *, raw: bool = False) -> QPen:
    """Return the pen of a line: ``run`` 0 is the run shown, ``ratio`` the pixels of the screen in one of the window, ``raw`` without smoothing."""
    colour = run_colour(series.hue(), run)
    colour.setAlphaF(0.25 if raw else 1.0)
    pen = QPen(colour, (1.0 if raw else 1.2 if run else 1.5) * ratio)
    pen.setCosmetic(True)
    pattern = dashes(run, held_out=split == "validation" or series.dashed)
    if pattern:
        pen.setStyle(Qt.PenStyle.CustomDashLine)
        pen.setDashPattern(list(pattern))
    return pen


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
    dashed
        Whether its line is dashed, as those of held-out cells are; for what is no term, and so of neither split.
    """

    name: str
    label: str
    unit: str = "nats per cell"
    colour: QColor | None = None
    beside: str = ""
    help: str = ""
    dashed: bool = False

    def hue(self) -> QColor:
        """Return the colour in the present theme."""
        return current().color("text") if self.colour is None else on_ground(self.colour)


def shared_title(series: Sequence[Series]) -> str:
    """Return the title of a plot of several: what their names begin with, where they all do, and what they are given in."""
    beside, subjects = series[0].beside, {each.label.split(", ")[0] for each in series}
    if beside and len(subjects) == 1 and all(", " in each.label for each in series):
        return f"{subjects.pop()}: {beside}"
    return beside[:1].upper() + beside[1:] or "Losses"


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
