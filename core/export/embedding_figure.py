"""The embedding, one panel for each column it is coloured by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellweave.core.errors import SpecError
from cellweave.core.export.canvas import MARGIN, MM_PER_POINT, Canvas, line_height, plain, shorten, text_width
from cellweave.core.export.figure_options import FigureOptions
from cellweave.core.export.palette import category_colours, colour_table, draw_order, hex_to_rgb, look, value_range
from cellweave.core.export.run_data import ColumnValues
from cellweave.core.wording import counted

SIDE = 55.0  # mm of a panel where no size is asked for
SMALLEST_SIDE, READABLE_SIDE = 12.0, 30.0
GAP = 4.0  # mm between panels
DOT, DOT_GAP, COUNT_GAP, COLUMN_GAP = 1.5, 1.2, 2.0, 3.5
HISTOGRAM = 9.0
MOST_LEGEND_COLUMNS = 4
WIDE_LABEL, NARROW_LABEL = 45.0, 24.0  # of a legend in one column, in several
LABEL_WIDTHS = (WIDE_LABEL, 32.0, NARROW_LABEL, 15.0, 10.0)


@dataclass(frozen=True)
class _Entry:
    label: str
    count: int
    colour: str
    missing: bool = False


@dataclass(frozen=True)
class _Legend:
    """A legend as it will be drawn: its entries in columns, and how wide each column is."""

    columns: tuple[tuple[_Entry, ...], ...]
    widths: tuple[tuple[float, float], ...]  # of labels and of counts
    width: float


@dataclass(frozen=True)
class _Room:
    """How wide a label and how many columns a legend may have."""

    label: float
    columns: int


@dataclass(frozen=True)
class _Plan:
    side: float
    legends: tuple[_Legend | None, ...]
    legend_widths: tuple[float, ...]  # by column of the grid
    width: float
    height: float


def embedding_figure(
    layout: NDArray[np.floating], columns: Sequence[ColumnValues], options: FigureOptions, *, axis_name: str = "UMAP"
) -> Canvas:
    """Draw an embedding coloured by each of some columns.

    Parameters
    ----------
    layout
        ``(n_cells, 2)``; cells with NaN are not drawn, and not counted in legends.
    columns
        What to colour by, one panel each.
    options
        Size, fonts, colours, points.
    axis_name
        Both axes are called by it, with 1 and 2.

    Returns
    -------
    Canvas
        To be saved; where no size is asked for it is as large as its content needs.

    Raises
    ------
    SpecError
        Where the figure is too small for what it shall hold.
    """
    drawn = np.isfinite(layout).all(axis=1)
    points = np.asarray(layout, dtype=np.float64)[drawn]
    shown = [_only(column, drawn) for column in columns]
    entries = [_entries(column, options) for column in shown]
    per_row = min(options.panels_per_row or 3, len(shown))
    plan = _plan(entries, shown, per_row, options)
    canvas = Canvas(plan.width, plan.height, options)
    canvas.title()
    top = MARGIN + (1.5 * canvas.line if options.title else 0)
    for number, column in enumerate(shown):
        row, at = divmod(number, per_row)
        left = MARGIN + canvas.line + sum(canvas.line + plan.side + plan.legend_widths[each] + GAP for each in range(at))
        here = top + row * (plan.side + 2.4 * canvas.line + GAP)
        room = plan.side + plan.legend_widths[at]
        _panel(canvas, (left, here, plan.side, room), points, column, entries[number], axis_name)
        if options.legend:
            corner = (left + plan.side + 1.5, here + 1.4 * canvas.line)
            legend = plan.legends[number]
            if legend is None:
                _histogram(canvas, *corner, plan.side, column)
            else:
                _draw_legend(canvas, *corner, plan.side, legend)
    return canvas


def _only(column: ColumnValues, drawn: NDArray[np.bool_]) -> ColumnValues:
    if column.levels is None:
        return ColumnValues.of_numbers(column.title, column.numbers[drawn])
    return ColumnValues.of_levels(column.title, column.codes[drawn], column.levels)


# ---------------------------------------------------------------------- legends


def _entries(column: ColumnValues, options: FigureOptions) -> tuple[_Entry, ...]:
    """Return a legend entry for each level (also for those no drawn cell has: colours must not depend on that), and one for missing."""
    if column.levels is None:
        return ()
    usual = category_colours(len(column.levels), options.theme)
    counts = np.bincount(column.codes[column.codes >= 0], minlength=len(column.levels))
    found = [
        _Entry(level, int(count), options.colours.get(level, colour)) for level, count, colour in zip(column.levels, counts, usual, strict=True)
    ]
    n_missing = int((column.codes < 0).sum())
    return (*found, *([_Entry("missing", n_missing, look(options.theme)["missing"], missing=True)] if n_missing else []))


def _legend(entries: Sequence[_Entry], side: float, room: _Room, options: FigureOptions) -> _Legend:
    """Break entries into as many columns as the height asks for; what the columns cannot hold is summed up, and said so."""
    missing = [entry for entry in entries if entry.missing]
    entries = [entry for entry in entries if entry.count and not entry.missing]
    rows = max(3, int(side / line_height(options)))
    most = rows * room.columns - len(missing)
    if len(entries) > most:
        ranked = sorted(range(len(entries)), key=lambda each: -entries[each].count)
        kept = sorted(ranked[: most - 1])
        rest = [entries[each] for each in ranked[most - 1 :]]
        more = _Entry(counted(len(rest), "more level"), sum(entry.count for entry in rest), "")
        entries = [*(entries[each] for each in kept), more]
    entries = [*entries, *missing]
    n_columns = max(1, -(-len(entries) // rows))
    rows = -(-len(entries) // n_columns) if entries else 1  # columns of about equal length
    columns = [tuple(entries[start : start + rows]) for start in range(0, len(entries), rows)]
    label_width = min(room.label, WIDE_LABEL if n_columns == 1 else NARROW_LABEL)
    short = [tuple(_Entry(shorten(e.label, options, label_width), e.count, e.colour) for e in column) for column in columns]
    widths = tuple(
        (max(text_width(entry.label, options) for entry in column), max(text_width(f"{entry.count:,}", options) for entry in column))
        for column in short
    )
    total = sum(DOT + DOT_GAP + label + COUNT_GAP + count for label, count in widths) + COLUMN_GAP * (len(widths) - 1)
    return _Legend(tuple(short), widths, total)


def _plan(entries: Sequence[Sequence[_Entry]], shown: Sequence[ColumnValues], per_row: int, options: FigureOptions) -> _Plan:
    """Find the largest panels that leave room for every legend."""
    line, n_rows = line_height(options), -(-len(shown) // per_row)
    around = 2 * MARGIN + (1.5 * line if options.title else 0) + n_rows * 2.4 * line + (n_rows - 1) * GAP
    most = SIDE if options.height_mm is None and options.width_mm is None else 1000.0
    if options.height_mm is not None:
        most = (options.height_mm - around) / n_rows
    best: _Plan | None = None
    rooms = [_Room(label, columns) for columns in range(MOST_LEGEND_COLUMNS, 0, -1) for label in LABEL_WIDTHS]
    for room in rooms if options.legend else rooms[:1]:
        plan = _largest(entries, shown, per_row, room, most, around, options)
        if plan is None:
            continue
        if best is None or plan.side > best.side:
            best = plan
        if best.side >= READABLE_SIDE:  # larger panels are not worth shorter labels
            break
    if best is None:
        raise SpecError("The figure is too small for its panels and legends.", "Make it larger, use a smaller font, or leave the legend out.")
    return best


def _largest(
    entries: Sequence[Sequence[_Entry]],
    shown: Sequence[ColumnValues],
    per_row: int,
    room: _Room,
    most: float,
    around: float,
    options: FigureOptions,
) -> _Plan | None:
    line, n_rows = line_height(options), -(-len(shown) // per_row)
    side = min(most, (options.width_mm or 1000.0) / per_row)
    while side >= SMALLEST_SIDE:
        legends = tuple(None if column.levels is None else _legend(each, side, room, options) for column, each in zip(shown, entries, strict=True))
        widths = []
        for at in range(per_row):
            here = [
                _histogram_width(shown[number], options) if legends[number] is None else (legends[number] or _NOTHING).width
                for number in range(at, len(shown), per_row)
            ]
            widths.append(max(here) + 1.5 if options.legend and here else 0.0)
        width = 2 * MARGIN + per_row * (line + side) + sum(widths) + (per_row - 1) * GAP
        if options.width_mm is None or width <= options.width_mm:
            height = options.height_mm or around + n_rows * side
            return _Plan(side, legends, tuple(widths), options.width_mm or max(width, _title_width(options)), height)
        side -= max(0.5, (width - options.width_mm) / per_row * 0.5)
    return None


_NOTHING = _Legend((), (), 0.0)


def _title_width(options: FigureOptions) -> float:
    return 2 * MARGIN + text_width(options.title, options, larger=1, bold=True)


def _draw_legend(canvas: Canvas, left: float, top: float, side: float, legend: _Legend) -> None:
    axes = canvas.axes(left, top, max(legend.width, 1.0), side)
    axes.set(xlim=(0, max(legend.width, 1.0)), ylim=(side, 0))
    axes.axis("off")
    size, x = canvas.options.font_size, 0.0
    for column, (label_width, count_width) in zip(legend.columns, legend.widths, strict=True):
        for number, entry in enumerate(column):
            y = (number + 0.5) * canvas.line
            if entry.colour:
                axes.scatter([x + DOT / 2], [y], s=(DOT / MM_PER_POINT) ** 2, color=entry.colour, linewidths=0, clip_on=False)
            axes.text(x + DOT + DOT_GAP, y, plain(entry.label), va="center_baseline", fontsize=size)
            end = x + DOT + DOT_GAP + label_width + COUNT_GAP + count_width
            axes.text(end, y, f"{entry.count:,}", va="center_baseline", ha="right", fontsize=size, color=canvas.colours["secondary"])
        x += DOT + DOT_GAP + label_width + COUNT_GAP + count_width + COLUMN_GAP


def _tick_labels(column: ColumnValues) -> tuple[list[float], list[str]]:
    from matplotlib.ticker import MaxNLocator

    low, high = value_range(column.numbers)
    ticks = [float(tick) for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    return ticks, [f"{tick:.4g}" for tick in ticks]


def _histogram_width(column: ColumnValues, options: FigureOptions) -> float:
    labels = [*_tick_labels(column)[1], _missing_note(column)]
    return max(HISTOGRAM + 2.5 + max(text_width(label, options) for label in labels[:-1] or [""]), text_width(labels[-1], options))


def _missing_note(column: ColumnValues) -> str:
    n_missing = int(column.missing.sum())
    return f"{n_missing:,} missing" if n_missing else ""


def _histogram(canvas: Canvas, left: float, top: float, side: float, column: ColumnValues) -> None:
    """Draw the colours of a quantity as a histogram: one sees the map, the clipped range and where the cells are."""
    low, high = value_range(column.numbers)
    height = min(side - (canvas.line if _missing_note(column) else 0), 34.0)
    axes = canvas.axes(left, top + 1, HISTOGRAM, height - 1)
    values = np.clip(column.numbers[np.isfinite(column.numbers)], low, high)
    counts, edges = np.histogram(values, bins=32, range=(low, high))
    table = colour_table(canvas.options.colour_map) / 255.0
    axes.barh(
        edges[:-1], 0.25 + 0.75 * counts / max(1, counts.max()), height=np.diff(edges), align="edge",
        color=table[np.linspace(0, 255, 32).round().astype(int)], linewidth=0,
    )  # fmt: skip
    ticks, labels = _tick_labels(column)
    axes.set(xlim=(0, 1), ylim=(low, high), xticks=[])
    axes.set_yticks(ticks, labels)
    axes.yaxis.tick_right()
    for spine in axes.spines.values():
        spine.set_visible(False)
    if note := _missing_note(column):
        canvas.text(left, top + height + 0.8, note, colour="secondary")


# ---------------------------------------------------------------------- points


def _panel(
    canvas: Canvas, place: tuple[float, float, float, float], points: NDArray[np.float64], column: ColumnValues, entries: Sequence[_Entry], axis_name: str
) -> None:
    """Draw one panel at ``(left, top, side, room for the title)`` in mm."""
    options = canvas.options
    left, top, side, room = place
    title, count = shorten(column.title, options, room, bold=True), counted(len(points), "cell")
    canvas.text(left, top, title, bold=True)
    if text_width(title, options, bold=True) + text_width(count, options) + 2 <= side:
        canvas.text(left + side, top, count, colour="secondary", ha="right")
    axes = canvas.axes(left, top + 1.4 * canvas.line, side, side)
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(f"{axis_name} 1", color=canvas.colours["secondary"])
    axes.set_ylabel(f"{axis_name} 2", color=canvas.colours["secondary"])
    if not len(points):
        return
    middle, reach = (points.max(axis=0) + points.min(axis=0)) / 2, max(float(np.ptp(points, axis=0).max()), 1e-9) * 0.53
    axes.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach))  # a square: equal aspect
    order = draw_order(column.missing, options.seed)
    colours = _colours(column, entries, options)[order]
    diameter = options.point_size or float(np.clip(2.2 * side / SIDE * (3000 / len(points)) ** 0.35, 0.25, 4.0))
    axes.scatter(
        points[order, 0], points[order, 1], s=diameter**2, c=colours, alpha=options.opacity, linewidths=0, rasterized=True, marker="o"
    )


def _colours(column: ColumnValues, entries: Sequence[_Entry], options: FigureOptions) -> NDArray[np.float32]:
    """Return the colour of each cell, ``(n_cells, 3)`` from 0 to 1."""
    missing = np.array(hex_to_rgb(look(options.theme)["missing"]), dtype=np.float32)
    if column.levels is None:
        low, high = value_range(column.numbers)
        place = np.clip((np.nan_to_num(column.numbers, nan=low) - low) / (high - low), 0, 1)
        found = colour_table(options.colour_map)[(place * 255).round().astype(int)].astype(np.float32)
        found[column.missing] = missing
        return np.asarray(found / 255, dtype=np.float32)
    table = np.array([*(hex_to_rgb(entry.colour) for entry in entries[: len(column.levels)]), missing], dtype=np.float32)
    return np.asarray(table[column.codes] / 255, dtype=np.float32)  # -1 takes the last, which is missing
