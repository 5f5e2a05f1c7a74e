"""Loadings of a linear decoder as a figure: the strongest genes of each latent dimension."""

from __future__ import annotations

import numpy as np

from cellweave.core.errors import SpecError
from cellweave.core.export.canvas import MARGIN, Canvas, line_height, shorten, text_width
from cellweave.core.export.figure_options import FigureOptions
from cellweave.core.export.loadings import Loadings, read_loadings
from cellweave.core.export.palette import colour_table
from cellweave.core.export.run_data import RunData

COLUMN = 6.0  # mm
LEAST = 2.0  # mm that a cell needs to be seen
BAR = 25.0  # mm of the scale of colours


def loadings_figure(run: RunData, options: FigureOptions) -> Canvas:
    """Draw the loadings of the strongest genes, rows by the dimension they belong to.

    Parameters
    ----------
    run
        The run.
    options
        Size, fonts, and how many genes of each dimension.

    Returns
    -------
    Canvas
        To be saved.

    Raises
    ------
    RunFolderError
        Where the run has no loadings.
    SpecError
        Where the figure is too small.
    """
    found = read_loadings(run.folder.path)
    rows = found.strongest(options.genes_each)
    names = [shorten(str(name), options, 40) for name in found.features[rows]]
    line = line_height(options)
    left = MARGIN + max((text_width(name, options) for name in names), default=0) + 1.5
    top = MARGIN + (1.5 * line if options.title else 0) + 2.6 * line
    foot = MARGIN + (3.2 * line if options.legend else 0)
    needed = max(left + found.n_latent * COLUMN + MARGIN, text_width(options.title, options, larger=1, bold=True) + 2 * MARGIN, left + BAR + MARGIN)
    width = options.width_mm or needed
    height = options.height_mm or top + len(rows) * line + foot
    across, down = width - left - MARGIN, height - top - foot
    if across < LEAST * found.n_latent or down < 0.75 * line * len(rows) or width < left + text_width("Latent dimension", options):
        raise SpecError("The figure is too small for its genes.", "Make it larger, use a smaller font, or show fewer genes of each dimension.")
    canvas = Canvas(width, height, options)
    canvas.title()
    _map(canvas, found, rows, (left, top, across, down))
    for number, name in enumerate(names):
        canvas.text(left - 1.5, top + (number + 0.5) / len(names) * down, name, ha="right", va="center_baseline")
    canvas.text(left + across / 2, top - 2.5 * line, "Latent dimension", colour="secondary", ha="center")
    step = max(1, int(np.ceil((text_width("00", options) + 1) / (across / found.n_latent))))
    for number in range(0, found.n_latent, step):
        canvas.text(left + (number + 0.5) / found.n_latent * across, top - 1.2 * line, f"Z_{number}", colour="secondary", ha="center")
    return canvas


def _map(canvas: Canvas, found: Loadings, rows: np.ndarray, place: tuple[float, float, float, float]) -> None:
    from matplotlib.colors import ListedColormap

    shown = found.values[rows]
    finite = np.abs(shown[np.isfinite(shown)])
    reach = float(np.percentile(finite, 99)) if finite.size else 1.0
    reach = reach or 1.0
    colours = ListedColormap(colour_table("coolwarm") / 255)
    axes = canvas.axes(*place)
    axes.set(xticks=[], yticks=[])
    axes.imshow(shown, aspect="auto", cmap=colours, vmin=-reach, vmax=reach, interpolation="nearest")
    if not canvas.options.legend:
        return
    left, top, across, down = place
    wide = min(BAR, across)
    scale = canvas.axes(left, top + down + 0.8 * canvas.line, wide, 0.6 * canvas.line)
    scale.imshow(np.linspace(-1, 1, 256)[None], aspect="auto", cmap=colours, vmin=-1, vmax=1)
    scale.set(xticks=[], yticks=[])
    under = top + down + 1.6 * canvas.line
    canvas.text(left, under, f"\N{MINUS SIGN}{reach:.2g}", colour="secondary")
    canvas.text(left + wide, under, f"{reach:.2g}", colour="secondary", ha="right")
    if across > wide + 2 + text_width("loading", canvas.options):
        canvas.text(left + wide + 2, top + down + 0.6 * canvas.line, "loading", colour="secondary")
