"""Scores: how well batches mix beside how well biology is kept, always with the baseline."""

from __future__ import annotations

from typing import Any

from cellweave.core.analysis.scores import SCORES
from cellweave.core.errors import RunFolderError, SpecError
from cellweave.core.export.canvas import MARGIN, Canvas, line_height, text_width, wrap
from cellweave.core.export.figure_options import FigureOptions
from cellweave.core.export.palette import loss_colour
from cellweave.core.export.run_data import RunData

SHOWN = ("batch_mixing", "batch_mixing_in_label", "label_purity", "label_accuracy")
BAR, ROW = 62.0, 6.5
_LEGEND = ("this run", "without integration", "by chance")


def scores_figure(run: RunData, options: FigureOptions) -> Canvas:
    """Draw the scores of a run; higher is better in every row.

    Parameters
    ----------
    run
        The run.
    options
        Size and fonts.

    Returns
    -------
    Canvas
        To be saved.

    Raises
    ------
    RunFolderError
        Where the run has no scores.
    SpecError
        Where the figure is too small.
    """
    stored = run.scores
    rows = {row["name"]: row for row in stored["scores"] if not row["group"]} if stored else {}
    shown = [rows[name] for name in SHOWN if name in rows]
    if not shown or stored is None:
        raise RunFolderError(f"The run '{run.name}' has no scores.", "Scores need a batch or label column and analysis.scores = true.")
    line = line_height(options)
    labels = max(text_width(SCORES[row["name"]].title, options) for row in shown) + 3
    numbers = max(text_width(_numbers(row), options) for row in shown) + 3
    head = MARGIN + (1.5 * line if options.title else 0) + (1.8 * line if options.legend else 0)
    notes = _notes(stored)
    if options.width_mm:
        notes = [piece for note in notes for piece in wrap(note, options, options.width_mm - 2 * MARGIN)]
    foot = MARGIN + 2.8 * line + len(notes) * line
    legend = sum(text_width(label, options) + 8 for label in _LEGEND) if options.legend else 0.0
    needed = max(labels + BAR + numbers, legend, text_width(options.title, options, larger=1, bold=True), *(text_width(n, options) for n in notes))
    width = options.width_mm or 2 * MARGIN + needed
    height = options.height_mm or head + len(shown) * ROW + foot
    across, down = width - 2 * MARGIN - labels - numbers, height - head - foot
    if across < 15 or down < 3 * len(shown):
        raise SpecError("The figure is too small for its scores.", "Make it larger, or use a smaller font.")
    canvas = Canvas(width, height, options)
    canvas.title()
    if options.legend:
        _legend(canvas, MARGIN + (1.5 * line if options.title else 0))
    _rows(canvas, shown, (MARGIN + labels, head, across, down))
    for number, note in enumerate(notes):
        canvas.text(MARGIN, height - MARGIN - (len(notes) - number) * line, note, colour="secondary")
    return canvas


def _rows(canvas: Canvas, shown: list[dict[str, Any]], place: tuple[float, float, float, float]) -> None:
    axes = canvas.axes(*place)
    left, top, across, down = place
    axes.set(xlim=(-0.02, 1.04), ylim=(len(shown) - 0.5, -0.5), yticks=[])
    axes.grid(visible=True, axis="x", color=canvas.colours["grid"], linewidth=0.4)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("Score", color=canvas.colours["secondary"])
    for number, row in enumerate(shown):
        colour = _colour(row["name"], canvas.options)
        middle = top + (number + 0.5) / len(shown) * down
        canvas.text(MARGIN, middle, SCORES[row["name"]].title, va="center_baseline")
        canvas.text(left + across + 2, middle, _numbers(row), colour="secondary", va="center_baseline")
        if row["expected"] is not None:
            axes.plot([row["expected"]] * 2, [number - 0.28, number + 0.28], color=canvas.colours["secondary"], linewidth=0.8, clip_on=False)
        if row["baseline"] is not None:
            axes.plot([row["baseline"], row["value"]], [number] * 2, color=colour, linewidth=1.0, alpha=0.5, zorder=2)
            axes.plot(
                [row["baseline"]], [number], "o", markersize=4, markeredgewidth=0.9, markerfacecolor=canvas.colours["background"],
                markeredgecolor=colour, clip_on=False, zorder=3,
            )  # fmt: skip
        axes.plot([row["value"]], [number], "o", markersize=4.5, color=colour, markeredgewidth=0, clip_on=False, zorder=4)


def _colour(name: str, options: FigureOptions) -> str:
    return loss_colour(0 if SCORES[name].about == "batch" else 2, options.theme)


def _numbers(row: dict[str, Any]) -> str:
    return f"{row['value']:.2f}" if row["baseline"] is None else f"{row['baseline']:.2f} → {row['value']:.2f}"


def _notes(stored: dict[str, Any]) -> list[str]:
    columns = stored.get("columns", {})
    said = [f"{what} from '{columns[role]}'" for role, what in (("batch", "batches"), ("labels", "labels")) if role in columns]
    return [f"{stored['k']} nearest neighbours of {stored['n_cells']:,} cells" + (f"; {', '.join(said)}" if said else "")]


def _legend(canvas: Canvas, top: float) -> None:
    from matplotlib.lines import Line2D

    x, y, ink = MARGIN, 1 - (top + canvas.line * 0.5) / canvas.height, canvas.colours["text"]
    for label in _LEGEND:
        where = [(x + 1.5) / canvas.width]
        if label == "by chance":
            half = 1.3 / canvas.height
            artist = Line2D(where * 2, [y - half, y + half], color=canvas.colours["secondary"], linewidth=0.8)
        else:
            hollow = label != "this run"
            face = canvas.colours["background"] if hollow else ink
            artist = Line2D(where, [y], marker="o", linestyle="", markersize=4, markerfacecolor=face, markeredgecolor=ink, markeredgewidth=0.9)
        canvas.figure.add_artist(artist)
        canvas.text(x + 4, top + canvas.line * 0.5, label, va="center_baseline")
        x += 4 + text_width(label, canvas.options) + 4
