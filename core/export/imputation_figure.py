"""Imputation as a figure: measured against imputed values, scores beside those of the feature mean, their spread over features, and the best features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellweave.core.analysis.imputation_choice import nearest
from cellweave.core.analysis.imputation_scores import Comparison, Evaluation, load
from cellweave.core.errors import RunFolderError, SpecError
from cellweave.core.export.canvas import MARGIN, Canvas, line_height, shorten, text_width, wrap
from cellweave.core.export.figure_options import FigureOptions
from cellweave.core.export.imputation_parts import (
    SUMMARY,
    TruthPicture,
    axis_titles,
    reliability_picture,
    score_of,
    shade,
    spread_ends,
    truth_picture,
    what_was_hidden,
    written,
)
from cellweave.core.export.palette import OKABE_ITO, hex_to_rgb, loss_colour
from cellweave.core.export.run_data import RunData
from cellweave.core.spec.modalities import modality_kind
from cellweave.core.wording import counted

SIDE, SMALLEST, GAP = 58.0, 24.0, 7.0
SPREAD, SPREAD_LEAST = 26.0, 9.0
BAR, BAR_LEAST, LONGEST_NAME, SHORTEST_TITLE = 26.0, 12.0, 34.0, 20.0
FEW = 40  # dots that are drawn large, and as marks rather than as pixels
MARKED = OKABE_ITO[5]


def imputation_figure(run: RunData, options: FigureOptions) -> tuple[Canvas, dict[str, Any]]:
    """Draw what was judged last of a run's imputation.

    Parameters
    ----------
    run
        The run.
    options
        Size, fonts, the modality, the feature whose values are drawn, and how many features are listed.

    Returns
    -------
    canvas
        To be saved.
    shown
        For the provenance: modality, feature, and what was hidden.

    Raises
    ------
    RunFolderError
        Where nothing of the run was judged.
    SpecError
        Where there is no such modality or feature, or the figure is too small.
    """
    found = load(run.folder.results)
    if found is None or not found.comparisons:
        raise RunFolderError(f"Nothing that the run '{run.name}' imputes was judged.", "Press Judge in the Imputation view first.")
    modality = _chosen_modality(found, options.imputation_modality)
    one = found.comparisons[modality]
    place = _chosen_feature(one, modality, options.imputation_feature)
    figure = _Figure(options, found, modality, place)
    return figure.draw(), {"modality": modality, "feature": options.imputation_feature, "hide": found.question.hide, "n_values": figure.picture.n}


def _chosen_modality(found: Evaluation, wanted: str) -> str:
    if not wanted:
        return next(iter(found.comparisons))
    for name in found.comparisons:
        if wanted.lower() in (name.lower(), modality_kind(name).label.lower()):
            return name
    labels = [modality_kind(name).label for name in found.comparisons]
    raise SpecError(f"The modality '{wanted}' was not judged.", f"Choose {' or '.join(labels)}, or judge it in the Imputation view.")


def _chosen_feature(one: Comparison, modality: str, wanted: str) -> int | None:
    if not wanted:
        return None
    at = np.flatnonzero(one.features.astype(str) == wanted)
    if not len(at):
        raise SpecError(f"There is no feature '{wanted}' in what was judged of {modality_kind(modality).label}.", nearest(wanted, set(map(str, one.features))))
    return int(at[0])


@dataclass(frozen=True)
class _Plan:
    """Sizes in mm: of the figure, of the square of values with what is left of it, of the table and spread in the middle, and of the list."""

    width: float
    height: float
    head: float
    axis: float
    side: float
    middle: float
    table: float
    spread: float
    listed: float
    beside: bool


class _Figure:
    """Sizes and pieces of one figure: three blocks beside one another, or below one another where that is too wide."""

    def __init__(self, options: FigureOptions, found: Evaluation, modality: str, feature: int | None) -> None:
        self.options, self.one = options, found.comparisons[modality]
        self.label, self.overall = modality_kind(modality).label, found.overall[modality]
        self.feature = None if feature is None else str(self.one.features[feature])
        self.table = found.by_feature[found.by_feature["modality"] == modality].reset_index(drop=True)
        self.score, self.score_title = score_of(self.one.scale)
        truth, imputed = (self.one.truth, self.one.imputed) if feature is None else (self.one.truth[:, feature], self.one.imputed[:, feature])
        self.picture = (reliability_picture if self.one.binary else truth_picture)(imputed.ravel(), truth.ravel())
        self.mean = float("nan") if feature is None else float(self.one.baseline[feature])
        self.listed = self._listed()
        self.line = line_height(options)
        self.colour = loss_colour(0, options.theme)
        self.above = (2.5 if np.isfinite(self.mean) else 1.6) * self.line  # room for the heading, and for words on the mean
        self.notes = [self._about_values(), self._about_cells(found)]

    # ------------------------------------------------------------------ what is written

    def _own(self) -> float:
        """Return the score of what is drawn: of the feature, or of all values."""
        if self.feature is None:
            return float(self.overall[self.score])
        rows = self.table.loc[self.table["feature"] == self.feature, self.score]
        return float(rows.iloc[0]) if len(rows) else float("nan")

    def heading(self) -> str:
        """Return modality, feature and score of what is drawn."""
        said = written(self._own())
        return f"{self.label}, {self.feature or 'all features'}: {f'{self.score_title} {said}' if said else f'no {self.score_title}'}"

    def _about_values(self) -> str:
        n, picture = self.picture.n, self.picture
        if self.one.binary:
            return f"{counted(n, 'value')}, in groups of equal size by their imputed probability."
        scale = " log CP10k is log(1 + counts per 10,000)." if self.one.scale == "log1p" else ""
        return f"{counted(n, 'value')}{', darker where there are more (logarithmic)' if picture.density is not None else ''}.{scale}"

    def _about_cells(self, found: Evaluation) -> str:
        """Return what was hidden of which cells; what is said of other modalities is left out."""
        question = found.question
        others = tuple(f"{label}: " for name in found.comparisons if (label := modality_kind(name).label) != self.label)
        notes = [note for note in found.notes if not note.startswith(others)]
        return what_was_hidden(question.hide, [modality_kind(name).label for name in question.given or ()], question.batches, notes)

    def _list_title(self) -> str:
        every, rows = int(np.isfinite(self.table[self.score]).sum()), len(self.listed)
        return f"Highest of {counted(every, 'feature')}" if rows < every else "Every feature"

    def _listed(self) -> pd.DataFrame:
        """Return the features with the highest score, the chosen one among them in any case."""
        known = self.table[np.isfinite(self.table[self.score])].sort_values(self.score, ascending=False, kind="stable")
        most = self.options.features_listed
        top = known.head(most)
        if most and self.feature is not None and self.feature not in set(top["feature"]):
            own = known[known["feature"] == self.feature]
            top = pd.concat([top.head(most - len(own)), own])
        return top

    def _numbers(self) -> list[tuple[str, str, str]]:
        return [
            (title, written(self.overall[own]), written(self.overall[baseline]) if baseline else "")
            for own, baseline, title in SUMMARY if own in self.overall
        ]  # fmt: skip

    # ------------------------------------------------------------------ sizes

    def _names(self) -> float:
        return min(LONGEST_NAME, max((text_width(str(name), self.options) for name in self.listed["feature"]), default=0.0)) + 2

    def _columns(self) -> tuple[float, float]:
        """Return the width of the titles of the scores, and of the numbers beside them, in mm."""
        numbers = text_width("Imputed", self.options) + text_width("Feature mean", self.options) + 7
        return max(text_width(title, self.options) for title, _, _ in self._numbers()), numbers

    def _list_widths(self) -> tuple[float, float]:
        """Return the least and the usual width of the list of features in mm."""
        if not len(self.listed):
            return 0.0, 0.0
        fixed = self._names() + text_width("0.000", self.options) + 3
        return fixed + BAR_LEAST, max(fixed + BAR, text_width(self._list_title(), self.options, bold=True))

    def _plan(self) -> _Plan:
        """Return where everything is.

        Raises
        ------
        SpecError
            Where there is no room for it.
        """
        options, line, rows = self.options, self.line, len(self.listed)
        axis, numbers = text_width("00.00", options) + 1.6 * line + 2, sum(self._columns())
        least, usual = self._list_widths()
        gaps = 2 * MARGIN + axis + GAP + (GAP if rows else 0.0)
        width = options.width_mm or gaps + numbers + usual + SIDE
        free = width - gaps - numbers
        beside = free - least >= SMALLEST
        listed = (usual if options.width_mm is None else min(max(0.45 * free, least), usual)) if beside else width - 2 * MARGIN
        side = free - listed if beside else width - 2 * MARGIN - axis
        n_notes = sum(len(wrap(note, options, width - 2 * MARGIN)) for note in self.notes)
        head, foot = MARGIN + (1.6 * line if options.title else 0), (n_notes + 0.6) * line + MARGIN
        table, list_height = (len(self._numbers()) + 2.2) * 1.15 * line, (1.6 + 1.2 * rows) * line if rows else 0.0
        under, spread_fixed = 2.8 * line, 3.0 * line  # numbers and title of an axis; title of the spread and its numbers
        free_height = options.height_mm - head - foot if options.height_mm else None
        if beside:
            body = free_height or max(self.above + side + under, table + spread_fixed + SPREAD_LEAST, list_height)
            side, spread = min(side, body - self.above - under), body - table - spread_fixed
            enough = body >= list_height - 1e-6
        else:
            rest = self.above + under + GAP + table + spread_fixed + (GAP + list_height if rows else 0.0)
            body = free_height or rest + side + SPREAD
            side, spread = min(side, body - rest - SPREAD), SPREAD
            enough = width - 2 * MARGIN >= max(self._columns()[1] + SHORTEST_TITLE, least)
        if not enough or side < SMALLEST or spread < SPREAD_LEAST:
            raise SpecError("The figure is too small for values and scores.", "Make it larger, list fewer features, or use a smaller font.")
        return _Plan(width, options.height_mm or head + body + foot, head, axis, side, numbers if beside else width - 2 * MARGIN, table, spread, listed, beside)

    def draw(self) -> Canvas:
        """Draw everything in its place."""
        options, line, plan = self.options, self.line, self._plan()
        canvas = Canvas(plan.width, plan.height, options)
        canvas.title()
        room = plan.axis + plan.side + GAP / 2 if plan.beside else plan.width - 2 * MARGIN
        canvas.text(MARGIN, plan.head, shorten(self.heading(), options, room, bold=True), bold=True)
        self._values(canvas, MARGIN + plan.axis, plan.head + self.above, plan.side)
        left, top = MARGIN, plan.head + self.above + plan.side + 2.8 * line + GAP
        if plan.beside:
            left, top = MARGIN + plan.axis + plan.side + GAP, plan.head
        self._table(canvas, left, top, plan.middle)
        self._spread(canvas, left, top + plan.table, plan.middle, plan.spread)
        if len(self.listed):
            left, top = (left + plan.middle + GAP, plan.head) if plan.beside else (left, top + plan.table + plan.spread + 3.0 * line + GAP)
            self._list(canvas, left, top, plan.listed)
        notes = [piece for note in self.notes for piece in wrap(note, options, plan.width - 2 * MARGIN)]
        for number, note in enumerate(notes):
            canvas.text(MARGIN, plan.height - MARGIN - (len(notes) - number) * line, note, colour="secondary")
        return canvas

    # ------------------------------------------------------------------ the pieces

    def _values(self, canvas: Canvas, left: float, top: float, side: float) -> None:
        picture = self.picture
        axes = canvas.axes(left, top, side, side)
        axes.set(xlim=(picture.low, picture.high), ylim=(picture.low, picture.high))
        axes.grid(visible=True, color=canvas.colours["grid"], linewidth=0.4)
        axes.set_axisbelow(True)
        axes.locator_params(nbins=6 if side > 40 else 4)
        axes.yaxis.set_major_locator(axes.xaxis.get_major_locator())
        for axis, title in zip(("x", "y"), axis_titles(self.one.scale), strict=True):
            getattr(axes, f"set_{axis}label")(shorten(title, self.options, side), color=canvas.colours["secondary"])
        if picture.density is not None:
            extent = (picture.low, picture.high, picture.low, picture.high)
            axes.imshow(_shades(picture.density, self.colour), origin="lower", extent=extent, aspect="auto", interpolation="nearest", zorder=2)
        elif picture.imputed is not None:
            _dots(axes, picture, self.colour, side)
        ends = (picture.low, picture.high)
        axes.plot(ends, ends, color=canvas.colours["text"], linewidth=0.7, linestyle=(0, (4, 3)), zorder=4)
        if np.isfinite(self.mean):
            self._draw_mean(canvas, axes, left, top, side)

    def _draw_mean(self, canvas: Canvas, axes: Any, left: float, top: float, side: float) -> None:
        """Draw the mean that a feature is predicted as without a model, with its words on the side that has room."""
        axes.axvline(self.mean, color=MARKED, linewidth=0.9, zorder=4)
        low, high = axes.get_xlim()
        x, words = left + side * (self.mean - low) / (high - low), "feature mean"
        right = x + text_width(words, self.options) < left + side
        at = x if right else left + side
        canvas.text(at, top - 0.8, words, colour="secondary", ha="left" if right else "right", va="bottom")

    def _table(self, canvas: Canvas, left: float, top: float, width: float) -> None:
        """Write the scores of all values beside those of the feature mean."""
        mean = left + width
        own = mean - text_width("Feature mean", self.options) - 3.5
        canvas.text(own, top, "Imputed", colour="secondary", ha="right")
        canvas.text(mean, top, "Feature mean", colour="secondary", ha="right")
        for number, (title, value, baseline) in enumerate(self._numbers(), start=1):
            y = top + number * 1.15 * self.line
            canvas.text(left, y, shorten(title, self.options, width - self._columns()[1]))
            canvas.text(own, y, value, ha="right")
            canvas.text(mean, y, baseline, ha="right")

    def _spread(self, canvas: Canvas, left: float, top: float, width: float, height: float) -> None:
        """Draw how the scores of the features are spread, with their median and the chosen feature."""
        values: NDArray[np.float64] = self.table[self.score].to_numpy(dtype=np.float64)
        known = values[np.isfinite(values)]
        median = written(float(np.median(known)), 2) if len(known) else ""
        words = f"{self.score_title} of {counted(len(known), 'feature')}: {f'median {median}' if median else 'none can be judged'}"
        canvas.text(left, top, shorten(words, self.options, width, bold=True), bold=True)
        axes = canvas.axes(left + 1.5, top + 1.5 * self.line, width - 3.0, height - 0.1 * self.line)
        low, high = spread_ends(values, self.one.scale)
        counts, edges = np.histogram(known, bins=40, range=(low, high))
        axes.bar(edges[:-1], counts, width=0.9 * (edges[1] - edges[0]), align="edge", color=self.colour, linewidth=0)
        axes.set(xlim=(low, high), ylim=(0, max(1, int(counts.max())) * 1.05), yticks=[])
        axes.spines[["top", "right", "left"]].set_visible(False)
        if len(known):
            axes.axvline(float(np.median(known)), color=canvas.colours["text"], linewidth=0.9, linestyle=(0, (4, 2)))
        own = self._own()
        if self.feature is not None and np.isfinite(own):
            axes.axvline(own, color=MARKED, linewidth=0.9)

    def _list(self, canvas: Canvas, left: float, top: float, width: float) -> None:
        """List features with their score as a bar."""
        options, rows, names = self.options, len(self.listed), self._names()
        canvas.text(left, top, shorten(self._list_title(), options, width, bold=True), bold=True)
        across = width - names - text_width("0.000", options) - 3
        axes = canvas.axes(left + names, top + 1.6 * self.line, across, rows * 1.2 * self.line)
        values = self.listed[self.score].to_numpy(dtype=np.float64)
        colours = [MARKED if name == self.feature else self.colour for name in self.listed["feature"]]
        axes.barh(np.arange(rows), values, height=0.72, color=colours, linewidth=0)
        axes.set(xlim=(min(0.0, float(values.min())), max(1.0, float(values.max()))), ylim=(rows - 0.5, -0.5), xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        for number, (name, value) in enumerate(zip(self.listed["feature"], values, strict=True)):
            y = top + 1.6 * self.line + (number + 0.5) * 1.2 * self.line
            canvas.text(left, y, shorten(str(name), options, names - 1), va="center_baseline")
            canvas.text(left + width, y, written(float(value)), colour="secondary", ha="right", va="center_baseline")


def _dots(axes: Any, picture: TruthPicture, colour: str, side: float) -> None:
    assert picture.imputed is not None and picture.truth is not None
    few = len(picture.imputed) <= FEW
    diameter = 4.0 if few else float(np.clip(2.4 * side / SIDE, 1.0, 4.0))
    alpha = 0.9 if few else 0.55 if len(picture.imputed) < 800 else 0.3
    axes.scatter(picture.imputed, picture.truth, s=diameter**2, color=colour, alpha=alpha, linewidths=0, rasterized=not few, zorder=3)


def _shades(density: NDArray[np.float64], colour: str) -> NDArray[np.float64]:
    """Return the density as shades of one colour, ``(BINS, BINS, 4)``, clear where there is no value."""
    shades = np.empty((*density.shape, 4))
    shades[..., :3] = np.array(hex_to_rgb(colour)) / 255
    shades[..., 3] = shade(density)
    return shades
