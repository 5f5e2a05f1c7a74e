"""Modality attribution: one modality's score against another's with margins, the embedding by log-ratio, and bars of the latent dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellweave.core.analysis.attribution_scores import SCORE_KINDS, AttributionScores
from cellweave.core.errors import RunFolderError, SpecError
from cellweave.core.export.canvas import MARGIN, MM_PER_POINT, Canvas, line_height, shorten, text_width, wrap
from cellweave.core.export.figure_options import FigureOptions
from cellweave.core.export.palette import category_colours, colour_table, draw_order, hex_to_rgb, look, value_range
from cellweave.core.export.run_data import ColumnValues, RunData
from cellweave.core.wording import counted

SIDE, SMALLEST, STRIP, GAP, BARS, LEGEND = 58.0, 22.0, 9.0, 6.0, 17.0, 32.0
LINES = 8  # levels whose distributions are drawn each by itself
BINS = 50


@dataclass(frozen=True)
class _Plan:
    """Sizes in mm: the side of the square plots, the width of the legend, and where things begin."""

    side: float
    legend: float
    width: float
    height: float
    head: float
    axis: float


def attribution_figure(run: RunData, options: FigureOptions, column: ColumnValues | None = None) -> tuple[Canvas, dict[str, Any]]:
    """Draw the attribution of a run.

    Parameters
    ----------
    run
        The run.
    options
        Size, fonts, and the score (``attribution_score``).
    column
        What colours the scatter; None leaves it neutral.

    Returns
    -------
    canvas
        To be saved.
    shown
        What is in the figure, for its provenance.

    Raises
    ------
    RunFolderError
        Where the run has no attribution.
    SpecError
        Where the figure is too small.
    """
    scores = AttributionScores.load(run.folder.results)
    if scores is None:
        raise RunFolderError(f"The run '{run.name}' has no modality attribution.", f"Compute it: cellweave query {run.folder.path} attribution --keep.")
    kind = options.attribution_score if options.attribution_score in {each.name for each in scores.kinds()} else "total"
    layout = run.array("umap") if run.has("umap.npy") else None
    plan = _plan(scores, options, column, has_layout=layout is not None)
    canvas = Canvas(plan.width, plan.height, options)
    canvas.title()
    left = MARGIN + plan.axis
    first, last = scores.modalities[0], scores.modalities[-1]
    _scatter(canvas, scores, kind, (first, last), column, (left, plan.head, plan.side))
    right = left + plan.side + STRIP + 2
    if plan.legend and column is not None:
        _legend(canvas, column, right, plan.head + STRIP, plan.legend, plan.side)
        right += plan.legend
    if layout is not None:
        _embedding(canvas, scores, layout, (first, last), (right + GAP, plan.head, plan.side))
    top = plan.head + STRIP + plan.side + 3.4 * canvas.line
    for number, name in enumerate(scores.modalities):
        _bars(canvas, scores, name, left, top + number * (BARS + 2.2 * canvas.line), plan.width - left - MARGIN)
    notes = wrap(_note(scores), options, plan.width - 2 * MARGIN)
    for number, note in enumerate(notes):
        canvas.text(MARGIN, plan.height - MARGIN - (len(notes) - number) * canvas.line, note, colour="secondary")
    return canvas, {"score": kind, "modalities": list(scores.modalities), "n_cells": int(scores.known.sum()), "attribution": scores.info}


def _plan(scores: AttributionScores, options: FigureOptions, column: ColumnValues | None, *, has_layout: bool) -> _Plan:
    line = line_height(options)
    axis = 2.4 * line + 2
    head = MARGIN + (1.6 * line if options.title else 0) + 1.5 * line
    legend = 0.0
    if options.legend and column is not None and column.levels is not None:
        names = (text_width(column.title, options, bold=True), *(text_width(level, options) + 3 for level in column.levels[:40]))
        legend = min(LEGEND, max(names) + 4)
    plots = 2 if has_layout else 1
    fixed = 2 * MARGIN + axis + STRIP + 2 + legend + (GAP if has_layout else 0)
    width = options.width_mm or fixed + plots * SIDE
    side = (width - fixed) / plots
    n_notes = len(wrap(_note(scores), options, width - 2 * MARGIN))
    below = 3.4 * line + len(scores.modalities) * (BARS + 2.2 * line) + (n_notes + 2.0) * line + MARGIN
    if options.height_mm is not None:
        side = min(side, options.height_mm - head - STRIP - below)
    if side < SMALLEST:
        raise SpecError("The figure is too small for the attribution.", "Make it larger, use a smaller font, or leave the legend out.")
    return _Plan(side, legend, width, options.height_mm or head + STRIP + side + below, head, axis)


def _note(scores: AttributionScores) -> str:
    info = scores.info
    library = "the mean library size of its group" if info.get("library") == "prior" else "its own library size"
    said = f"{counted(int(scores.known.sum()), 'cell')}, each at {library}; the log-ratio is relative to the median cell."
    removed = {"cat_covs": "categorical covariates", "feature_scaling": "feature scaling", "all": "covariates"}.get(str(info.get("remove_covariates")))
    return f"{said} Decoded without {removed}." if removed else said


# ---------------------------------------------------------------------- the scatter


def _scatter(
    canvas: Canvas, scores: AttributionScores, kind: str, pair: tuple[str, str], column: ColumnValues | None, place: tuple[float, float, float]
) -> None:
    left, top, side = place
    info, log = SCORE_KINDS[kind], kind != "own_share"
    values = np.column_stack([scores.score(kind, name) for name in pair]).astype(np.float64)
    usable = np.asarray(np.isfinite(values).all(axis=1), dtype=np.bool_)
    if log:
        usable &= np.asarray((np.nan_to_num(values) > 0).all(axis=1), dtype=np.bool_)
    values = values[usable]
    axes = canvas.axes(left, top + STRIP, side, side)
    if log:
        axes.set(xscale="log", yscale="log")
    for axis, name in (("x", pair[0]), ("y", pair[1])):
        whole = f"{info.title}, {name} ({info.unit})"
        title = whole if text_width(whole, canvas.options) < side else f"{info.title}, {name}"
        getattr(axes, f"set_{axis}label")(shorten(title, canvas.options, side), color=canvas.colours["secondary"])
    canvas.text(left, top - 1.4 * canvas.line, info.title, bold=True)
    if not len(values):
        canvas.text(left + 2, top + STRIP + 2, "No cell was measured in both modalities.", colour="secondary")
        return
    axes.tick_params(which="minor", length=1, width=0.4, colors=canvas.colours["secondary"], labelsize=canvas.options.font_size)
    if log:
        _few_ticks(axes, values)
    colours = _colours(column, usable, canvas.options)
    order = draw_order(column.missing[usable] if column is not None else np.zeros(len(values), bool), canvas.options.seed)
    diameter = canvas.options.point_size or float(np.clip(2.0 * side / SIDE * (3000 / len(values)) ** 0.35, 0.25, 4.0))
    axes.scatter(
        values[order, 0], values[order, 1], s=diameter**2, c=colours[order], alpha=canvas.options.opacity, linewidths=0, rasterized=True
    )
    axes.autoscale_view()
    parts = _levels(column, usable)
    for number, strip in enumerate(((left, top, side, STRIP - 1), (left + side + 1, top + STRIP, STRIP - 1, side))):
        _margin(canvas, strip, values[:, number], parts, axes, log=log, upright=number == 1)


def _few_ticks(axes: Any, values: NDArray[np.float64]) -> None:
    """Mark 1, 2 and 5 times the powers of ten, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    for axis, column in ((axes.xaxis, values[:, 0]), (axes.yaxis, values[:, 1])):
        narrow = np.log10(column.max() / column.min()) < 3
        axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0) if narrow else (1.0,), numticks=12))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())


def _levels(column: ColumnValues | None, usable: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    if column is None or column.levels is None or not 1 < len(column.levels) <= LINES:
        return []
    codes = column.codes[usable]
    return [codes == code for code in range(len(column.levels))]


def _margin(
    canvas: Canvas, place: tuple[float, float, float, float], values: NDArray[np.float64], parts: list[NDArray[np.bool_]], axes: Any,
    *, log: bool, upright: bool,
) -> None:
    strip = canvas.axes(*place)
    strip.axis("off")
    limits = axes.get_ylim() if upright else axes.get_xlim()
    seen = np.log10(values) if log else values
    edges = np.linspace(seen.min(), max(seen.max(), seen.min() + 1e-9), BINS + 1)
    shown = 10**edges if log else edges
    whole = np.histogram(seen, edges)[0].astype(np.float64)
    direction: dict[str, Any] = {"orientation": "horizontal"} if upright else {}
    strip.stairs(whole / whole.max(), shown, fill=True, color=canvas.colours["grid"] if parts else canvas.colours["border"], **direction)
    colours = category_colours(len(parts), canvas.options.theme)
    heights = [np.histogram(seen[part], edges)[0].astype(np.float64) for part in parts]
    highest = max((float(height.max()) for height in heights), default=0.0)
    for height, colour in zip(heights, colours, strict=True):
        if height.any():
            strip.stairs(height / highest, shown, color=colour, linewidth=0.7, **direction)
    if upright:
        strip.set(yscale="log" if log else "linear", ylim=limits, xlim=(0, 1.05))
    else:
        strip.set(xscale="log" if log else "linear", xlim=limits, ylim=(0, 1.05))
    strip.axis("off")


def _colours(column: ColumnValues | None, usable: NDArray[np.bool_], options: FigureOptions) -> NDArray[np.float64]:
    """Return the colour of each point, ``(n, 3)`` from 0 to 1."""
    missing = np.array(hex_to_rgb(look(options.theme)["missing"]), np.float64) / 255
    if column is None:
        return np.tile(np.array(hex_to_rgb(look(options.theme)["secondary"]), np.float64) / 255, (int(usable.sum()), 1))
    if column.levels is None:
        numbers = column.numbers[usable]
        low, high = value_range(column.numbers)
        place = np.clip((np.nan_to_num(numbers, nan=low) - low) / (high - low), 0, 1)
        found = colour_table(options.colour_map)[(place * 255).round().astype(int)] / 255.0
        found[np.isnan(numbers)] = missing
        return found
    names = [options.colours.get(level, own) for level, own in zip(column.levels, category_colours(len(column.levels), options.theme), strict=True)]
    table = np.array([*(hex_to_rgb(name) for name in names), np.array(missing * 255)], np.float64) / 255
    return table[column.codes[usable]]


def _legend(canvas: Canvas, column: ColumnValues, left: float, top: float, width: float, height: float) -> None:
    """Write the levels with their colours; what has no room is counted."""
    assert column.levels is not None
    options, line = canvas.options, canvas.line
    colours = category_colours(len(column.levels), options.theme)
    canvas.text(left + 2, top, shorten(column.title, options, width - 2, bold=True), bold=True)
    room = int((height - 1.5 * line) / line)
    n = len(column.levels) if len(column.levels) <= room else room - 1
    axes = canvas.axes(left + 2, top + 1.4 * line, width - 2, max(line, room * line))
    axes.set(xlim=(0, width - 2), ylim=(room * line, 0))
    axes.axis("off")
    for number, level in enumerate(column.levels[:n]):
        y = (number + 0.5) * line
        axes.scatter([1.0], [y], s=(1.7 / MM_PER_POINT) ** 2, color=options.colours.get(level, colours[number]), linewidths=0, clip_on=False)
        axes.text(3, y, shorten(level, options, width - 6).replace("$", r"\$"), va="center_baseline", fontsize=options.font_size)
    if n < len(column.levels):
        more = f"and {len(column.levels) - n} more"
        axes.text(3, (n + 0.5) * line, more, va="center_baseline", fontsize=options.font_size, color=canvas.colours["secondary"])


# ---------------------------------------------------------------------- the embedding and the bars


def _embedding(
    canvas: Canvas, scores: AttributionScores, layout: NDArray[np.float32], pair: tuple[str, str], place: tuple[float, float, float]
) -> None:
    left, top, side = place
    ratio = scores.log_ratio(*pair)
    known = np.isfinite(ratio)
    ratio = ratio - np.float32(np.median(ratio[known])) if known.any() else ratio
    low, high = value_range(ratio)
    reach = max(abs(low), abs(high), 1e-6)
    canvas.text(left, top - 1.4 * canvas.line, shorten(f"log2 {pair[0]} / {pair[1]}", canvas.options, side, bold=True), bold=True)
    axes = canvas.axes(left, top + STRIP, side, side)
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel("UMAP 1", color=canvas.colours["secondary"])
    axes.set_ylabel("UMAP 2", color=canvas.colours["secondary"])
    there = np.isfinite(layout).all(axis=1)
    points = layout[there].astype(np.float64)
    values = ratio[there]
    middle, half = (points.max(axis=0) + points.min(axis=0)) / 2, max(float(np.ptp(points, axis=0).max()), 1e-9) * 0.53
    axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half))
    table = colour_table("coolwarm")
    step = np.clip((np.nan_to_num(values) / reach + 1) / 2, 0, 1)
    colours = table[(step * 255).round().astype(int)] / 255.0
    colours[np.isnan(values)] = np.array(hex_to_rgb(look(canvas.options.theme)["missing"])) / 255
    order = draw_order(np.isnan(values), canvas.options.seed)
    diameter = canvas.options.point_size or float(np.clip(2.2 * side / SIDE * (3000 / len(points)) ** 0.35, 0.25, 4.0))
    axes.scatter(points[order, 0], points[order, 1], s=diameter**2, c=colours[order], linewidths=0, rasterized=True, alpha=canvas.options.opacity)
    bar = canvas.axes(left, top + STRIP - 4.0, side, 1.8)
    bar.imshow(table[None], aspect="auto", extent=(-reach, reach, 0, 1))
    bar.set(yticks=[], xticks=[])
    for value, how in ((-reach, "left"), (0.0, "center"), (reach, "right")):
        x = left + side * (value / reach + 1) / 2
        canvas.text(x, top + STRIP - 4.4, f"{value:.2g}", colour="secondary", ha=how, va="bottom")


def _bars(canvas: Canvas, scores: AttributionScores, name: str, left: float, top: float, width: float) -> None:
    values = scores.by_dimension(name)
    shares = scores.block_shares(name)
    owners = list(scores.blocks)
    palette = category_colours(max(1, len(owners)), canvas.options.theme)
    colours = [palette[owners.index(scores.owner(number))] for number in range(len(values))]
    title = f"{name} decoder"
    canvas.text(left, top, title, bold=True)
    x = left + text_width(title, canvas.options, bold=True) + 3
    for owner, share in shares.items():
        if np.isfinite(share) and owner in scores.modalities:
            words = f"{owner} latents {share:.0%}"
            square = canvas.axes(x, top + 0.1 * canvas.line, 1.8, 1.8)
            square.set(xticks=[], yticks=[], facecolor=palette[owners.index(owner)])
            square.spines[:].set_visible(False)
            canvas.text(x + 3, top, words, colour="secondary")
            x += text_width(words, canvas.options) + 6
    axes = canvas.axes(left, top + 1.5 * canvas.line, width, BARS - 1.5)
    axes.bar(np.arange(1, len(values) + 1), np.nan_to_num(values), width=0.85, color=colours, linewidth=0)
    axes.set(xlim=(0.3, len(values) + 0.7), ylim=(0, max(float(np.nanmax(values)) * 1.05, 1e-12)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.locator_params(axis="y", nbins=3)
    axes.locator_params(axis="x", integer=True)
    if name == scores.modalities[-1]:
        axes.set_xlabel("Latent dimension", color=canvas.colours["secondary"])
    else:
        axes.set_xticklabels([])
