"""What all modalities together, and each alone, say of the cells of every batch; and the scores of how they agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellweave.core.analysis import scmib
from cellweave.core.analysis.pipeline import modality_latents
from cellweave.core.errors import RunFolderError, SpecError
from cellweave.core.export.canvas import MARGIN, Canvas, line_height, shorten, text_width, wrap
from cellweave.core.export.embedding_figure import DOT, DOT_GAP, NARROW_LABEL
from cellweave.core.export.figure_options import FigureOptions
from cellweave.core.export.palette import (
    category_colours,
    colour_table,
    draw_order,
    hex_to_rgb,
    look,
    loss_colour,
    value_range,
)
from cellweave.core.export.run_data import ColumnValues, RunData
from cellweave.core.spec.data import labels_off
from cellweave.core.spec.modalities import modality_kind, modality_kinds
from cellweave.core.wording import counted

SIDE, SMALLEST, GAP = 26.0, 8.0, 1.8
ROW, BAR = 5.0, 45.0
FAINT = {"light": 0.86, "dark": 0.74}  # how far the cells of other batches are taken towards the background
LONGEST_BATCH, LONGEST_LEVEL = 24.0, 40.0
#: Colours of the losses that stand for batch mixing, modalities and biology.
PLACE = {"scmib_batch": 0, "modality_score": 1, "scmib_bio": 2}
BELOW = 3.0
KEY, KEY_GAP = 3.5, 4.0  # mm of a dot of the legend of scores, and between two of its entries


def modalities_figure(run: RunData, options: FigureOptions, column: ColumnValues | None) -> tuple[Canvas, dict[str, Any]]:
    """Draw the grid of batches by modalities, and below it every part of scMIB's score.

    Parameters
    ----------
    run
        The run.
    options
        Size, fonts, colours, points.
    column
        What cells are coloured by; None for one colour.

    Returns
    -------
    Canvas
        To be saved.
    dict
        What is recorded with the figure.

    Raises
    ------
    RunFolderError
        Where the run has no latents of single modalities, and no scores of them.
    SpecError
        Where the figure is too small.
    """
    results = run.folder.results
    stored, tree = list(modality_latents(results)), scmib.load(results)
    there = (results / "modality_umap.npy").is_file()
    if not stored or not (there or tree):
        raise RunFolderError(f"The run '{run.name}' has no picture of single modalities.", "Train MIDAS with analysis.alignment and analysis.umap switched on.")
    usual = list(modality_kinds())
    names = sorted(stored, key=lambda name: usual.index(name) if name in usual else len(usual))
    layout = np.zeros((1 + len(names), 0, 2), np.float32)
    if there:
        layout = np.load(results / "modality_umap.npy", allow_pickle=False)[[0, *(1 + stored.index(name) for name in names)]].astype(np.float32)
    if there and layout.shape[1] != len(run.cells):
        raise RunFolderError(f"The picture of the modalities of '{run.name}' has {layout.shape[1]} cells and its list {len(run.cells)}.", "Compute it again.")
    batch = run.column(run.spec.covariates.batch) if run.spec.covariates.batch and there else None
    parts = [part for part in (tree["parts"] if tree else ()) if part["value"] is not None]
    titles = ["All together", *(modality_kind(name).label for name in names)]
    figure = _Figure(run, options, column, layout, titles, batch, parts, tree)
    return figure.draw(), {"columns": [] if column is None else [column.title], "modalities": names, "n_cells": int(layout.shape[1])}


class _Figure:
    """Sizes and pieces of one figure."""

    def __init__(
        self, run: RunData, options: FigureOptions, column: ColumnValues | None, layout: NDArray[np.float32], titles: Sequence[str],
        batch: ColumnValues | None, parts: Sequence[dict[str, Any]], tree: dict[str, Any] | None,
    ) -> None:  # fmt: skip
        self.run, self.options, self.column, self.layout, self.titles = run, options, column, layout, titles
        self.batch, self.parts, self.tree = batch, parts, tree
        self.levels: tuple[str, ...] = tuple(batch.levels) if batch is not None and batch.levels is not None else ("all cells",)
        self.off = labels_off(run.spec.data.switched_off, run.spec.covariates.batch)
        self.line = line_height(options)
        self.names = min(LONGEST_BATCH, max(text_width(level, options) for level in self.levels)) + 2
        self.legend = self._legend_width()

    def _legend_width(self) -> float:
        if not self.options.legend or self.column is None or self.column.levels is None:
            return 0.0
        return DOT + DOT_GAP + min(LONGEST_LEVEL, max((text_width(level, self.options) for level in self.column.levels), default=0.0)) + 3

    def draw(self) -> Canvas:
        options, n_across, n_down = self.options, len(self.titles), len(self.levels)
        grid = self.layout.shape[1] > 0
        head = MARGIN + (1.5 * self.line if options.title else 0)
        notes = self._notes()
        part_names = max((text_width(part["title"], options) for part in self.parts), default=0.0) + 3
        numbers = text_width("0.000", options) + 3
        least = 2 * MARGIN + (part_names + BAR + numbers if self.parts else 0.0)
        width = options.width_mm or max(least, 2 * MARGIN + self.names + n_across * (SIDE + GAP) + self.legend if grid else 0.0, 90.0)
        wrapped = [piece for note in notes for piece in wrap(note, options, width - 2 * MARGIN)]
        foot = MARGIN + len(wrapped) * self.line
        keys = self._key_lines(width - 2 * MARGIN)
        score = (len(self.parts) * ROW + (3.2 + 1.3 * (len(keys) - 1)) * self.line + BELOW) if self.parts else 0.0
        side = (width - 2 * MARGIN - self.names - self.legend) / n_across - GAP
        if options.height_mm:
            side = min(side, (options.height_mm - head - foot - score - 1.4 * self.line) / n_down - GAP)
        elif options.width_mm is None:
            side = min(side, SIDE)
        down = 1.4 * self.line + n_down * (side + GAP) if grid else 0.0
        height = options.height_mm or head + down + score + foot
        if (grid and side < SMALLEST) or (self.parts and width - 2 * MARGIN - part_names - numbers < 15) or head + down + score + foot > height + 1e-6:
            raise SpecError("The figure is too small for its panels and scores.", "Make it larger, or use a smaller font.")
        canvas = Canvas(width, height, options)
        canvas.title()
        if grid:
            self._grid(canvas, head, side)
        if self.parts:
            self._scores(canvas, head + down + (BELOW if grid else 0.0), part_names, width - 2 * MARGIN - part_names - numbers, keys)
        for number, note in enumerate(wrapped):
            canvas.text(MARGIN, height - MARGIN - (len(wrapped) - number) * self.line, note, colour="secondary")
        return canvas

    def _notes(self) -> list[str]:
        notes = []
        if self.layout.shape[1]:
            laid_out = int(np.isfinite(self.layout[0]).all(axis=1).sum())
            notes.append(f"{counted(laid_out, 'cell')}, one UMAP of all latents; cells of other batches are faint.")
        if self.tree is not None:
            notes += [sentence for sentence in scmib.totals(self.tree) if sentence]
            notes += [str(note) for note in self.tree["notes"]]
        return notes

    # ------------------------------------------------------------------ the grid

    def _grid(self, canvas: Canvas, top: float, side: float) -> None:
        left = MARGIN + self.names
        codes = np.zeros(self.layout.shape[1], np.int64) if self.batch is None else np.asarray(self.batch.codes)
        known = self.layout.reshape(-1, 2)[np.isfinite(self.layout.reshape(-1, 2)).all(axis=1)]
        middle, reach = (known.max(0) + known.min(0)) / 2, max(float(np.ptp(known, axis=0).max()), 1e-9) * 0.53
        colours = self._colours()
        for place, title in enumerate(self.titles):
            at = left + place * (side + GAP)
            canvas.text(at + side / 2, top, shorten(title, self.options, side, bold=True), bold=True, ha="center")
        top += 1.4 * self.line
        for number, level in enumerate(self.levels):
            canvas.text(MARGIN, top + number * (side + GAP) + side / 2, shorten(level, self.options, self.names - 2), va="center_baseline")
            for place in range(len(self.titles)):
                axes = canvas.axes(left + place * (side + GAP), top + number * (side + GAP), side, side)
                axes.set(xticks=[], yticks=[], xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach))
                for spine in axes.spines.values():
                    spine.set_color(canvas.colours["grid"])
                why = "switched off" if (level, self.titles[place]) in self.off else "not measured"
                self._cells(canvas, axes, self.layout[place], codes == number, colours, side, why)
        if self.legend:
            self._draw_legend(canvas, left + len(self.titles) * (side + GAP) + 1, top, len(self.levels) * (side + GAP))

    def _cells(
        self, canvas: Canvas, axes: Any, points: NDArray[np.float32], own: NDArray[np.bool_], colours: NDArray[np.float64], side: float, why: str
    ) -> None:
        there = np.isfinite(points).all(axis=1)
        if not (there & own).any():
            axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", fontsize=self.options.font_size - 1,
                      color=canvas.colours["secondary"])  # fmt: skip
            return
        diameter = self.options.point_size or float(np.clip(1.6 * side / SIDE * (1500 / max(1, int(there.sum()))) ** 0.35, 0.25, 3.0))
        ground = np.array(hex_to_rgb(canvas.colours["background"])) / 255
        share = FAINT[self.options.theme]
        order = draw_order(np.zeros(len(points), bool), self.options.seed)
        for rows, faint in ((order[(there & ~own)[order]], True), (order[(there & own)[order]], False)):
            if len(rows):
                shade = (1 - share) * colours[rows] + share * ground if faint else colours[rows]
                axes.scatter(*points[rows].T, s=diameter**2, c=shade, alpha=self.options.opacity, linewidths=0, rasterized=True, marker="o")

    def _colours(self) -> NDArray[np.float64]:
        """Return the colour of each cell, ``(n_cells, 3)`` from 0 to 1."""
        theme, n_cells = self.options.theme, self.layout.shape[1]
        missing = np.array(hex_to_rgb(look(theme)["missing"]))
        if self.column is None:
            return np.tile(np.array(hex_to_rgb(loss_colour(0, theme))) / 255, (n_cells, 1))
        levels = self.column.levels
        if levels is None:
            low, high = value_range(self.column.numbers)
            place = np.clip((np.nan_to_num(self.column.numbers, nan=low) - low) / max(high - low, 1e-12), 0, 1)
            found = colour_table(self.options.colour_map)[(place * 255).round().astype(int)].astype(float)
            found[self.column.missing] = missing
            return np.asarray(found / 255)
        usual = category_colours(len(levels), theme)
        named = [self.options.colours.get(level, colour) for level, colour in zip(levels, usual, strict=True)]
        return np.array([*(hex_to_rgb(colour) for colour in named), missing])[self.column.codes] / 255

    def _draw_legend(self, canvas: Canvas, left: float, top: float, down: float) -> None:
        assert self.column is not None and self.column.levels is not None
        theme, column, levels = self.options.theme, self.column, self.column.levels
        axes = canvas.axes(left, top, self.legend, down)
        axes.set(xlim=(0, self.legend), ylim=(down, 0))
        axes.axis("off")
        counts = np.bincount(column.codes[column.codes >= 0], minlength=len(levels))
        entries = [
            (level, self.options.colours.get(level, colour))
            for level, colour, count in zip(levels, category_colours(len(levels), theme), counts, strict=True) if count
        ]  # fmt: skip
        if (column.codes < 0).any():
            entries.append(("missing", look(theme)["missing"]))
        room = max(1, int(down / canvas.line) - 1)
        rest = len(entries) - room
        for number, (level, colour) in enumerate(entries[: room - (rest > 0)]):
            y = (number + 0.5) * canvas.line
            axes.scatter([DOT / 2], [y], s=(DOT * 2.8) ** 2, color=colour, linewidths=0, clip_on=False)
            width = max(self.legend - DOT - DOT_GAP - 1, NARROW_LABEL / 3)
            axes.text(DOT + DOT_GAP, y, shorten(level, self.options, width), va="center_baseline", fontsize=self.options.font_size)
        if rest > 0:
            axes.text(0, (room - 0.5) * canvas.line, f"and {rest + 1} more", va="center_baseline", fontsize=self.options.font_size)

    # ------------------------------------------------------------------ the scores

    def _scores(self, canvas: Canvas, top: float, names: float, across: float, keys: list[list[tuple[str, str]]]) -> None:
        self._score_legend(canvas, top, keys)
        top, down = top + (1.6 + 1.3 * (len(keys) - 1)) * self.line, len(self.parts) * ROW
        axes = canvas.axes(MARGIN + names, top, across, down)
        axes.set(xlim=(-0.02, 1.04), ylim=(len(self.parts) - 0.5, -0.5), yticks=[])
        axes.grid(visible=True, axis="x", color=canvas.colours["grid"], linewidth=0.4)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        for number, part in enumerate(self.parts):
            colour = loss_colour(PLACE[part["score"]], self.options.theme)
            middle = top + (number + 0.5) * ROW
            canvas.text(MARGIN, middle, part["title"], va="center_baseline")
            canvas.text(MARGIN + names + across + 2, middle, f"{part['value']:.3f}", colour="secondary", va="center_baseline")
            axes.plot([0, part["value"]], [number] * 2, color=colour, linewidth=1.0, alpha=0.5, zorder=2)
            axes.plot([part["value"]], [number], "o", markersize=4.5, color=colour, markeredgewidth=0, clip_on=False, zorder=4)

    def _key_lines(self, width: float) -> list[list[tuple[str, str]]]:
        """Return what the colours of the scores stand for, name and words, in lines of at most ``width`` mm."""
        lines: list[list[tuple[str, str]]] = [[]]
        x = 0.0
        for name, words in (("scmib_batch", "batch mixing"), ("modality_score", "modalities"), ("scmib_bio", "biology kept")):
            own = self.tree["scores"].get(name) if self.tree is not None else None
            label = words if own is None else f"{words}, mean {own:.3f}"
            wide = KEY + text_width(label, self.options)
            if lines[-1] and x + wide > width:
                lines.append([])
                x = 0.0
            lines[-1].append((name, label))
            x += wide + KEY_GAP
        return lines

    def _score_legend(self, canvas: Canvas, top: float, keys: list[list[tuple[str, str]]]) -> None:
        from matplotlib.lines import Line2D

        for number, line in enumerate(keys):
            x, middle = MARGIN, top + (0.5 + 1.3 * number) * self.line
            for name, label in line:
                colour = loss_colour(PLACE[name], self.options.theme)
                at = [(x + 1.2) / canvas.width], [1 - middle / canvas.height]
                canvas.figure.add_artist(Line2D(*at, marker="o", linestyle="", markersize=4.5, color=colour, markeredgewidth=0))
                canvas.text(x + KEY, middle, label, va="center_baseline")
                x += KEY + text_width(label, self.options) + KEY_GAP
