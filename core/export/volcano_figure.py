"""A kept comparison as a volcano plot."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellweave.core.errors import RunFolderError, SpecError
from cellweave.core.export.canvas import MARGIN, MM_PER_POINT, Canvas, line_height, shorten, text_width
from cellweave.core.export.differential_files import Volcano, kept_comparisons, read_comparison, volcano
from cellweave.core.export.figure_options import FigureOptions
from cellweave.core.export.palette import OKABE_ITO
from cellweave.core.export.run_data import RunData

WIDTH, HEIGHT = 85.0, 75.0  # mm
LEAST = 20.0  # mm of the plot itself
KEY = 7.0  # mm of a dot of the legend and the gap behind its words
UP, DOWN = OKABE_ITO[5], OKABE_ITO[0]


def volcano_figure(run: RunData, options: FigureOptions) -> tuple[Canvas, dict[str, Any]]:
    """Draw a comparison: fold change against how sure one is of it, the genes called different in colour and the surest ones by name.

    Parameters
    ----------
    run
        The run.
    options
        Size, fonts, which comparison (the newest where none is named) and how many genes are named.

    Returns
    -------
    canvas
        To be saved.
    shown
        For the provenance: which comparison, with its settings.

    Raises
    ------
    RunFolderError
        Where the run has no comparison, or none of that name.
    SpecError
        Where the figure is too small.
    """
    folder = run.folder.path
    kept = {one.name: one for one in kept_comparisons(folder)}
    if not kept:
        raise RunFolderError(f"The run '{run.name}' has no comparison.", "Compare two groups of cells in the Differential view first.")
    name = options.comparison or next(iter(kept))
    table = read_comparison(folder, name)
    points = volcano(table, kept[name].settings)
    line = line_height(options)
    width, height = options.width_mm or WIDTH, options.height_mm or HEIGHT
    left = MARGIN + text_width("000", options) + 1.8 * line
    head = MARGIN + (1.5 * line if options.title else 0) + (1.6 * line if options.legend else 0)
    across, down = width - left - MARGIN - 1, height - head - MARGIN - 3 * line
    groups = (str(table["group1"].iloc[0]), str(table["group2"].iloc[0]))
    words = [(f"higher in {groups[0]}", UP), (f"higher in {groups[1]}", DOWN)]
    room = width - 2 * MARGIN
    if _legend_width(words, options) > room:  # names of groups may be long
        words = [(shorten(text, options, room / 2 - KEY), colour) for text, colour in words]
    if across < LEAST or down < LEAST or (options.legend and room / 2 - KEY < text_width("higher in …", options)):
        raise SpecError("The figure is too small for a volcano plot.", "Make it larger, use a smaller font, or switch the legend off.")
    canvas = Canvas(width, height, options)
    canvas.title()
    if options.legend:
        _legend(canvas, words, MARGIN + (1.5 * line if options.title else 0))
    axes = canvas.axes(left, head, across, down)
    _points(canvas, axes, points)
    _names(canvas, axes, points, table.index.to_numpy(dtype=object), options.label_genes, (across, down))
    return canvas, {"comparison": name, "settings": kept[name].settings}


def _points(canvas: Canvas, axes: Any, points: Volcano) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    known = np.isfinite(points.x) & np.isfinite(points.y)
    sides = ((~points.called, canvas.colours["missing"]), (points.called & (points.x > 0), UP), (points.called & (points.x <= 0), DOWN))
    for chosen, colour in sides:
        these = known & chosen
        axes.scatter(
            points.x[these], points.y[these], s=canvas.options.point_size**2 if canvas.options.point_size else 4, c=[colour], linewidths=0,
            alpha=canvas.options.opacity, rasterized=True,
        )  # fmt: skip
    reach = max(float(np.nanmax(np.abs(points.x[known]), initial=0.0)), 0.1) * 1.08
    top = max(float(np.nanmax(points.y[known], initial=0.0)), 0.1) * 1.12
    axes.set(xlim=(-reach, reach), ylim=(-0.02 * top, top))
    axes.axvline(0, color=canvas.colours["border"], linewidth=0.5, zorder=0)
    axes.set_xlabel(points.x_title)
    axes.set_ylabel(points.y_title)


def _names(canvas: Canvas, axes: Any, points: Volcano, names: NDArray[np.object_], n: int, room: tuple[float, float]) -> None:
    """Write the names of the surest genes beside their points, where a name covers no other."""
    known = np.isfinite(points.x) & np.isfinite(points.y) & points.called
    order = np.lexsort((-np.abs(np.nan_to_num(points.x)), -np.nan_to_num(points.y)))
    (low, high), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    size = canvas.options.font_size
    tall = size * MM_PER_POINT * 1.15
    taken: list[tuple[float, float, float]] = []
    for row in [int(each) for each in order if known[each]]:
        if len(taken) >= n:
            return
        text = str(names[row])
        wide = text_width(text, canvas.options)
        x = (points.x[row] - low) / (high - low) * room[0]
        y = (points.y[row] - bottom) / (top - bottom) * room[1]
        right = points.x[row] <= 0  # towards the middle, where there is room
        start = x + 1 if right else x - 1 - wide
        if start < 0 or start + wide > room[0] or any(start < b + w and b < start + wide and abs(y - other) < tall for b, w, other in taken):
            continue
        taken.append((start, wide, y))
        axes.annotate(
            text.replace("$", r"\$"), (points.x[row], points.y[row]), xytext=(3 if right else -3, 0), textcoords="offset points", fontsize=size,
            ha="left" if right else "right", va="center", color=canvas.colours["text"],
        )  # fmt: skip


def _legend_width(words: list[tuple[str, str]], options: FigureOptions) -> float:
    return sum(text_width(text, options) + KEY for text, _ in words)


def _legend(canvas: Canvas, words: list[tuple[str, str]], top: float) -> None:
    from matplotlib.lines import Line2D

    x = MARGIN
    for text, colour in words:
        y = 1 - (top + canvas.line * 0.5) / canvas.height
        dot = Line2D([(x + 1.2) / canvas.width], [y], marker="o", linestyle="", markersize=3.5, color=colour, markeredgewidth=0)
        canvas.figure.add_artist(dot)
        canvas.text(x + 3, top + canvas.line * 0.5, text, va="center_baseline")
        x += text_width(text, canvas.options) + KEY
