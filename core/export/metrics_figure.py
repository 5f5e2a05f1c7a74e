"""Integration metrics: batch mixing against biology kept, and every metric beside its value without integration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellweave.core.analysis.integration import BASELINE, METRICS
from cellweave.core.analysis.integration_results import load
from cellweave.core.errors import RunFolderError, SpecError
from cellweave.core.export.canvas import MARGIN, Canvas, line_height, shorten, text_width, wrap
from cellweave.core.export.figure_options import FigureOptions
from cellweave.core.export.palette import loss_colour
from cellweave.core.export.run_data import RunData
from cellweave.core.wording import counted

SIDE, BAR, ROW, GAP = 58.0, 42.0, 5.6, 7.0


@dataclass(frozen=True)
class _Point:
    """A run in the plot: its number in the list below, its name and place, and whether it is the shown one."""

    number: int
    name: str
    x: float
    y: float


def metrics_figure(run: RunData, options: FigureOptions) -> Canvas:
    """Draw the integration metrics of a run, with other runs of the same data beside it.

    Parameters
    ----------
    run
        The run.
    options
        Size, fonts, and the folders of the other runs (``runs``); those without metrics are passed over.

    Returns
    -------
    Canvas
        To be saved.

    Raises
    ------
    RunFolderError
        Where the run has no integration metrics.
    SpecError
        Where the figure is too small.
    """
    tree = load(run.folder.results)
    if tree is None:
        raise RunFolderError(f"The run '{run.name}' has no integration metrics.", f"Compute them: cellweave metrics {run.folder.path}.")
    values, baseline = tree["values"][tree["main"]], tree["values"].get(BASELINE, {})
    rows = [name for name in METRICS if name in values]
    points, base = _points(run, tree, options)
    line = line_height(options)
    names = max((text_width(METRICS[name].title, options) for name in rows), default=0) + 3
    numbers = text_width("0.00 → 0.00", options) + 3
    left = line + text_width("0.00", options) + 3 if points else 0.0
    side = left + SIDE + GAP if points else 0.0
    head = MARGIN + (1.5 * line if options.title else 0) + (1.8 * line if options.legend else 0)
    width = options.width_mm or 2 * MARGIN + side + names + BAR + numbers
    notes = [piece for note in _notes(tree, points) for piece in wrap(note, options, width - 2 * MARGIN)]
    foot = MARGIN + 2.8 * line + len(notes) * line
    height = options.height_mm or head + max(len(rows) * ROW, SIDE if points else 0.0) + foot
    down, across = height - head - foot, width - 2 * MARGIN - side - names - numbers
    if points and across < 25:  # a narrow figure gives the plot less room before it gives up
        room = max(25.0, SIDE - (25 - across))
        across, side = across + (SIDE - room), side - (SIDE - room)
    if across < 15 or down < 3 * len(rows):
        raise SpecError("The figure is too small for its metrics.", "Make it larger, or use a smaller font.")
    canvas = Canvas(width, height, options)
    canvas.title()
    if options.legend:
        _legend(canvas, MARGIN + (1.5 * line if options.title else 0))
    if points:
        _scatter(canvas, points, base, (MARGIN + left, head, side - left - GAP, down))
    _metric_rows(canvas, rows, values, baseline, (MARGIN + side, names, head, across, down))
    for number, note in enumerate(notes):
        canvas.text(MARGIN, height - MARGIN - (len(notes) - number) * line, note, colour="secondary")
    return canvas


def _points(run: RunData, tree: dict[str, Any], options: FigureOptions) -> tuple[list[_Point], tuple[float, float] | None]:
    """Return the shown run, then the others that were measured on the same data and columns; and their baseline."""
    found: list[_Point] = []
    values = tree["values"][tree["main"]]
    if "batch_score" not in values or "bio_score" not in values:
        return [], None
    found.append(_Point(1, run.name, values["batch_score"], values["bio_score"]))
    for folder in options.runs:
        other = _other(folder, run, tree)
        if other is not None:
            found.append(_Point(len(found) + 1, *other))
    base = tree["values"].get(BASELINE, {})
    return found, (base["batch_score"], base["bio_score"]) if {"batch_score", "bio_score"} <= set(base) else None


def _other(folder: str, run: RunData, tree: dict[str, Any]) -> tuple[str, float, float] | None:
    path = Path(folder).expanduser()
    if path == run.folder.path or not (path / "spec.toml").is_file():
        return None
    other, found = RunData(path), load(path / "results")
    if found is None or found.get("columns") != tree.get("columns") or other.spec.data.sha256 != run.spec.data.sha256:
        return None
    values = found["values"][found["main"]]
    if "batch_score" not in values or "bio_score" not in values:
        return None
    return other.name, values["batch_score"], values["bio_score"]


def _scatter(canvas: Canvas, points: list[_Point], base: tuple[float, float] | None, place: tuple[float, float, float, float]) -> None:
    axes = canvas.axes(*place)
    grey, own = canvas.colours["secondary"], loss_colour(0, canvas.options.theme)
    xs, ys = [p.x for p in points] + ([base[0]] if base else []), [p.y for p in points] + ([base[1]] if base else [])
    for values, set_limits in ((xs, axes.set_xlim), (ys, axes.set_ylim)):
        room = max(0.12 * (max(values) - min(values)), 0.03)
        set_limits(min(values) - room, max(values) + room)
    axes.grid(visible=True, color=canvas.colours["grid"], linewidth=0.4)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.locator_params(nbins=5)
    axes.set_xlabel("Batch mixing", color=canvas.colours["secondary"])
    axes.set_ylabel("Biology kept", color=canvas.colours["secondary"])
    if base:
        axes.plot(*[[value] for value in base], "o", markersize=5, markerfacecolor=canvas.colours["background"], markeredgecolor=own, markeredgewidth=0.9)
    for point in reversed(points):
        shown = point.number == 1
        colour = own if shown else grey
        if base:
            axes.annotate(
                "", (point.x, point.y), base, arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 0.9 if shown else 0.5,
                                                          "alpha": 1.0 if shown else 0.6, "shrinkA": 3.5, "shrinkB": 3, "mutation_scale": 6},
            )  # fmt: skip
        axes.plot([point.x], [point.y], "o", markersize=5 if shown else 4, color=colour, markeredgewidth=0)
        if len(points) > 1:
            axes.annotate(
                str(point.number), (point.x, point.y), (3.5, 3.5), textcoords="offset points", fontsize=canvas.options.font_size, color=canvas.colours["text"]
            )


def _metric_rows(
    canvas: Canvas, rows: list[str], values: dict[str, float], baseline: dict[str, float], place: tuple[float, float, float, float, float]
) -> None:
    left, names, top, across, down = place
    axes = canvas.axes(left + names, top, across, down)
    axes.set(xlim=(-0.02, 1.04), ylim=(len(rows) - 0.5, -0.5), yticks=[])
    axes.grid(visible=True, axis="x", color=canvas.colours["grid"], linewidth=0.4)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("Score", color=canvas.colours["secondary"])
    for number, name in enumerate(rows):
        colour = loss_colour(0 if METRICS[name].about == "batch" else 2, canvas.options.theme)
        middle = top + (number + 0.5) / len(rows) * down
        before, after = baseline.get(name), values[name]
        canvas.text(left, middle, METRICS[name].title, va="center_baseline")
        words = f"{after:.2f}" if before is None else f"{before:.2f} → {after:.2f}"
        canvas.text(left + names + across + 2, middle, words, colour="secondary", va="center_baseline")
        if before is not None:
            axes.plot([before, after], [number] * 2, color=colour, linewidth=1.0, alpha=0.5, zorder=2)
            axes.plot(
                [before], [number], "o", markersize=4, markeredgewidth=0.9, markerfacecolor=canvas.colours["background"], markeredgecolor=colour,
                clip_on=False, zorder=3,
            )  # fmt: skip
        axes.plot([after], [number], "o", markersize=4.5, color=colour, markeredgewidth=0, clip_on=False, zorder=4)


def _notes(tree: dict[str, Any], points: list[_Point]) -> list[str]:
    columns = tree.get("columns", {})
    said = [f"{what} from '{columns[role]}'" for role, what in (("batch", "batches"), ("labels", "labels")) if role in columns]
    notes = [", ".join([f"{counted(tree['n_cells'], 'cell')}", *said])]
    if len(points) > 1:
        notes.append("; ".join(f"{point.number} {point.name}" for point in points))
    return notes


def _legend(canvas: Canvas, top: float) -> None:
    from matplotlib.lines import Line2D

    x, y = MARGIN, 1 - (top + canvas.line * 0.5) / canvas.height
    batch, bio, ink = loss_colour(0, canvas.options.theme), loss_colour(2, canvas.options.theme), canvas.colours["text"]
    for label, colour, hollow in (("without integration", ink, True), ("batch mixing", batch, False), ("biology kept", bio, False)):
        face = canvas.colours["background"] if hollow else colour
        canvas.figure.add_artist(
            Line2D(
                [(x + 1.5) / canvas.width], [y], marker="o", linestyle="", markersize=4, markerfacecolor=face, markeredgecolor=colour, markeredgewidth=0.9
            )
        )
        canvas.text(x + 4, top + canvas.line * 0.5, shorten(label, canvas.options, canvas.width), va="center_baseline")
        x += 4 + text_width(label, canvas.options) + 4
