"""Loss curves: a panel for each term, training and validation together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cellweave.core.errors import RunFolderError, SpecError
from cellweave.core.export.canvas import MARGIN, Canvas, line_height, plain, text_width
from cellweave.core.export.figure_options import FigureOptions
from cellweave.core.export.palette import loss_colour
from cellweave.core.export.run_data import RunData
from cellweave.core.runs.events import WeightChanged

PANEL_WIDTH, PANEL_HEIGHT, GAP = 52.0, 34.0, 4.0
TITLES = {"total": "Total loss", "elbo": "Negative ELBO"}


def loss_figure(run: RunData, options: FigureOptions) -> Canvas:
    """Draw the losses of a run.

    Parameters
    ----------
    run
        The run.
    options
        Size, fonts, axis, smoothing and which terms.

    Returns
    -------
    Canvas
        To be saved.

    Raises
    ------
    RunFolderError
        Where the run has no epoch yet.
    SpecError
        Where a term is asked for that it has not, or the figure is too small.
    """
    rows = run.folder.losses()
    if not rows:
        raise RunFolderError(f"The run '{run.name}' has no losses yet.", "Wait for its first epoch.")
    declared = {term.name: term for term in run.spec.terms()}
    names = _names(dict.fromkeys(key for row in rows for key in row), options.terms, declared)
    epochs = np.array([row["epoch"] for row in rows])
    weights = [event for event in run.folder.events() if isinstance(event, WeightChanged)]
    per_row = min(options.panels_per_row or 3, len(names))
    n_rows, line = -(-len(names) // per_row), line_height(options)
    head = MARGIN + (1.5 * line if options.title else 0) + (1.6 * line if options.legend else 0)
    left, below = 4.4 * line, 2.7 * line  # numbers and axis titles
    width = options.width_mm or max(2 * MARGIN + per_row * (left + PANEL_WIDTH) + (per_row - 1) * GAP, _head_width(options))
    height = options.height_mm or head + MARGIN + n_rows * (1.3 * line + PANEL_HEIGHT + below) + (n_rows - 1) * GAP
    across = (width - 2 * MARGIN - (per_row - 1) * GAP) / per_row - left
    down = (height - head - MARGIN - (n_rows - 1) * GAP) / n_rows - 1.3 * line - below
    if across < 12 or down < 8:
        raise SpecError("The figure is too small for its curves.", "Make it larger, use a smaller font, or show fewer terms.")
    canvas = Canvas(width, height, options)
    canvas.title()
    if options.legend:
        _legend(canvas, MARGIN + (1.5 * line if options.title else 0), run.folder.status.best_epoch)
    for number, name in enumerate(names):
        row, at = divmod(number, per_row)
        x = MARGIN + left + at * (left + across + GAP)
        y = head + row * (1.3 * line + down + below + GAP)
        term = declared.get(name)
        canvas.text(x, y, TITLES.get(name) or (term.label if term else name), bold=True)
        axes = canvas.axes(x, y + 1.3 * line, across, down)
        curves = {side: np.array([row.get(f"{name}_{side}", np.nan) for row in rows]) for side in ("train", "validation")}
        _curves(axes, epochs, curves, loss_colour(term.colour if term else -1, options.theme), options)
        _marks(canvas, axes, run.folder.status.best_epoch, [event for event in weights if event.term == name])
        axes.set_xlabel("Epoch", color=canvas.colours["secondary"])
        axes.set_ylabel(plain(term.unit if term else "nats per cell"), color=canvas.colours["secondary"])
    return canvas


def _names(row: Iterable[str], wanted: Sequence[str], declared: Mapping[str, object]) -> list[str]:
    there = [name.removesuffix("_train") for name in row if name.endswith("_train")]
    if wanted:
        for name in wanted:
            if name not in there:
                raise SpecError(f"The run has no loss term '{name}'.", f"It has {', '.join(there)}.")
        return list(wanted)
    order = ["total", *declared, *(name for name in there if name not in declared and name not in {"total", "elbo"})]
    return [name for name in order if name in there]


def _smooth(epochs: NDArray[np.float64], values: NDArray[np.float64], amount: float) -> NDArray[np.float64]:
    """Return the exponential moving average, corrected for its start (Kingma and Ba 2015).

    It forgets by epochs, not by values, so that held-out losses that are looked at less often are not smoothed more.
    """
    result, mean, weight = np.empty_like(values), 0.0, 0.0
    for number, value in enumerate(values):
        keep = amount ** (epochs[number] - epochs[number - 1]) if number else amount
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        result[number] = mean / weight
    return result


def _curves(axes: object, epochs: NDArray[np.float64], curves: Mapping[str, NDArray[np.float64]], colour: str, options: FigureOptions) -> None:
    from matplotlib.axes import Axes
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    assert isinstance(axes, Axes)
    shown = []
    for side, style in (("train", "-"), ("validation", (0, (3, 1.6)))):
        known = np.isfinite(curves[side])
        if not known.any():
            continue
        values = curves[side][known]
        if options.smoothing:
            axes.plot(epochs[known], values, color=colour, linewidth=0.6, alpha=0.3)
            values = _smooth(epochs[known], values, options.smoothing)
        axes.plot(epochs[known], values, color=colour, linewidth=1.1, linestyle=style, marker="o" if len(values) == 1 else "", markersize=2.5)
        shown.append(values[max(1, len(values) // 20) :] if options.clip_outliers and len(values) > 5 else values)
    every = np.concatenate(shown) if shown else np.zeros(1)
    low, high = float(every.min()), float(np.percentile(every, 99) if options.clip_outliers else every.max())
    if options.log_scale and low > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(MaxNLocator(4) if high < 10 * low else LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(low / (high / low) ** 0.06 if high > low else low / 1.1, high * (high / low) ** 0.06 if high > low else high * 1.1)
    else:
        pad = 0.07 * (high - low) or max(abs(high) * 0.05, 1e-6)
        axes.set_ylim(low - pad, high + pad)
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if len(epochs) > 1:
        axes.set_xlim(epochs[0], epochs[-1])
    axes.spines[["top", "right"]].set_visible(False)


def _marks(canvas: Canvas, axes: object, best: int | None, weights: Sequence[WeightChanged]) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    first, last = axes.get_xlim()
    axes.grid(visible=True, axis="y", color=canvas.colours["grid"], linewidth=0.4)
    axes.set_axisbelow(True)
    if best is not None and first <= best <= last:
        axes.axvline(best, color=canvas.colours["secondary"], linewidth=0.6, linestyle=(0, (1, 1.5)))
    for event in weights:
        axes.axvline(event.epoch, color=canvas.colours["secondary"], linewidth=0.6)
        right = event.epoch < (first + last) / 2
        axes.annotate(
            f"weight {event.old:g} → {event.new:g}", (event.epoch, 1), xycoords=("data", "axes fraction"), xytext=(2 if right else -2, -1),
            textcoords="offset points", ha="left" if right else "right", va="top", fontsize=canvas.options.font_size - 0.5,
            color=canvas.colours["secondary"],
        )  # fmt: skip


def _parts(best: int | None) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = [("training", "-"), ("validation", (0, (3, 1.6)))]
    return [*found, (f"best epoch ({best})", (0, (1, 1.5)))] if best else found


def _head_width(options: FigureOptions) -> float:
    legend = sum(10 + text_width(label, options) for label, _ in _parts(99999)) if options.legend else 0.0
    return 2 * MARGIN + max(legend, text_width(options.title, options, larger=1, bold=True))


def _legend(canvas: Canvas, top: float, best: int | None) -> None:
    from matplotlib.lines import Line2D

    x = MARGIN
    for label, style in _parts(best):
        y = 1 - (top + canvas.line * 0.5) / canvas.height
        thin = label.startswith("best")
        canvas.figure.add_artist(
            Line2D(
                [x / canvas.width, (x + 6) / canvas.width], [y, y], color=canvas.colours["secondary" if thin else "text"],
                linewidth=0.6 if thin else 1.1, linestyle=style,
            )
        )  # fmt: skip
        canvas.text(x + 7, top + canvas.line * 0.5, label, va="center_baseline")
        x += 7 + text_width(label, canvas.options) + 4
