"""Ambient background: the genes with the most of it, in every library, and the share of background in the counts of each library."""

from __future__ import annotations

from typing import Any

import numpy as np

from cellweave.core.errors import RunFolderError, SpecError
from cellweave.core.export.canvas import MARGIN, Canvas, line_height, shorten, text_width
from cellweave.core.export.figure_options import FigureOptions
from cellweave.core.export.palette import OKABE_ITO, colour_table
from cellweave.core.export.run_data import RunData
from cellweave.core.query.effects import Effects

CELL, BAR, GAP, MOST_LEVELS = 4.2, 26.0, 6.0, 60


def ambient_figure(run: RunData, options: FigureOptions) -> tuple[Canvas, dict[str, Any]]:
    """Draw the background of a run: a map of the strongest genes by level, and the share of background by level.

    Parameters
    ----------
    run
        The run.
    options
        Size and fonts; ``genes_each`` strongest genes of each level are shown.

    Returns
    -------
    canvas
        To be saved.
    shown
        For the provenance.

    Raises
    ------
    RunFolderError
        Where the run has no background.
    SpecError
        Where the figure is too small.
    """
    found = Effects.load(run.folder.results)
    if found is None or not found.background:
        raise RunFolderError(f"The run '{run.name}' has no ambient background.", f"Compute it: cellweave query {run.folder.path} effects --keep.")
    modality = next(iter(found.background))
    column, table = next(iter(found.background[modality].items()))
    known = np.flatnonzero(np.isfinite(found.level_share(modality, column)))[:MOST_LEVELS]  # levels without a measured cell say nothing
    levels = tuple(table.levels[number] for number in known)
    share = found.share(modality, column).values[known]
    each = options.genes_each if len(levels) > 1 else max(10, options.genes_each)
    top = np.argsort(-table.values[known], axis=1, kind="stable")[:, :each]
    genes = np.array(list(dict.fromkeys(top.ravel().tolist())))
    names = [found.features[modality][gene] for gene in genes]
    line = line_height(options)
    left = max(text_width(name, options) for name in names) + 2
    head = MARGIN + (1.6 * line if options.title else 0) + 1.6 * line
    label = max(text_width(level, options) for level in levels)
    foot = label + 3 * line + MARGIN
    bars = max(label, text_width("Share of background", options)) + BAR + text_width("100 %", options) + 4
    width = options.width_mm or 2 * MARGIN + left + CELL * len(levels) + GAP + bars
    height = options.height_mm or head + CELL * len(genes) + foot
    across, down = width - 2 * MARGIN - left - GAP - bars, height - head - foot
    if across < 2 or down < 1.5 * len(genes):
        raise SpecError("The figure is too small for its genes and levels.", "Make it larger, or show fewer genes.")
    canvas = Canvas(width, height, options)
    canvas.title()
    canvas.text(MARGIN, head - 1.5 * line, shorten(f"Ambient share of {modality} features by {column}", options, width - 2 * MARGIN, bold=True), bold=True)
    axes = canvas.axes(MARGIN + left, head, across, down)
    shown = share[:, genes].T
    most = float(max(shown.max(), 1e-9))
    axes.imshow(shown, aspect="auto", cmap=_cmap(options), vmin=0, vmax=most, interpolation="nearest")
    axes.set_yticks(range(len(genes)), names)
    axes.set_xticks(range(len(levels)), levels, rotation=90)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
    x = MARGIN + left + across + GAP
    _bars(canvas, levels, found.level_share(modality, column)[known], (x, head, bars, min(down, CELL * len(levels) + 2)))
    scale = canvas.axes(x, height - MARGIN - 2.2 * line, BAR, 1.8)
    scale.imshow(np.linspace(0, 1, 256)[None], aspect="auto", cmap=_cmap(options), extent=(0, most, 0, 1))
    scale.set(yticks=[])
    scale.set_xticks([0, most], ["0", f"{most:.0%}"])
    return canvas, {"modality": modality, "column": column, "genes": names, "levels": list(levels)}


def _bars(canvas: Canvas, levels: tuple[str, ...], shares: np.ndarray, place: tuple[float, float, float, float]) -> None:
    left, top, width, height = place
    label = max(text_width(level, canvas.options) for level in levels) + 2
    canvas.text(left, top - 1.5 * canvas.line, "Share of background", bold=True)
    axes = canvas.axes(left + label, top, width - label - text_width("100 %", canvas.options) - 2, height)
    axes.barh(range(len(levels)), shares, color=OKABE_ITO[1], height=0.7)
    axes.set(ylim=(len(levels) - 0.4, -0.6), xlim=(0, max(float(shares.max()) * 1.05, 1e-9)))
    axes.set_yticks(range(len(levels)), levels)
    axes.set_xticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    for number, value in enumerate(shares):
        axes.text(value, number, f" {value:.1%}", va="center", fontsize=canvas.options.font_size, color=canvas.colours["secondary"], clip_on=False)


def _cmap(options: FigureOptions) -> Any:
    from matplotlib.colors import ListedColormap

    return ListedColormap(colour_table(options.colour_map) / 255.0)
