"""Positions of points: which of them a window sees and on which pixels, which is under the cursor, which are inside a lasso.

Points are kept in the order of a grid of tiles over the plane, at random within a tile. A view then reads only the tiles it
touches, in order of memory, which makes a million points a matter of some 10 ms; and no group of cells lies above another.
No Qt here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]
Ids = NDArray[np.intp]
Pixels = NDArray[np.uint32]

POINTS_PER_TILE = 256
MOST_TILES = 64
COARSE_POINTS = 200_000


@dataclass(frozen=True)
class Window:
    """A rectangle of the plane and the pixels it is drawn on; row 0 is at the top, where ``y`` is largest.

    Attributes
    ----------
    left, top
        Coordinates of the upper left corner.
    scale_x, scale_y
        Pixels per unit.
    width, height
        In pixels.
    """

    left: float
    top: float
    scale_x: float
    scale_y: float
    width: int
    height: int

    @property
    def right(self) -> float:
        """Coordinate of the right edge."""
        return self.left + self.width / self.scale_x

    @property
    def bottom(self) -> float:
        """Coordinate of the lower edge."""
        return self.top - self.height / self.scale_y

    def to_pixels(self, xy: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return pixel coordinates of points of shape ``(n, 2)``."""
        return np.column_stack([(xy[:, 0] - self.left) * self.scale_x, (self.top - xy[:, 1]) * self.scale_y])


class PointSet:
    """Positions of points, sorted into tiles.

    Parameters
    ----------
    xy
        Of shape ``(n, 2)``; points that are not finite are never drawn nor found.
    seed
        Fixes the order of drawing.
    """

    def __init__(self, xy: NDArray[np.floating], seed: int = 0) -> None:
        xy = np.asarray(xy, dtype=np.float32)
        if xy.ndim != 2 or xy.shape[1] != 2:
            message = f"positions are of shape (n, 2), not {xy.shape}"
            raise ValueError(message)
        self.xy = xy
        self.size = len(xy)
        x, y = np.ascontiguousarray(xy[:, 0]), np.ascontiguousarray(xy[:, 1])
        finite = np.isfinite(x) & np.isfinite(y)
        shuffled = np.random.default_rng(seed).permutation(self.size)
        if not finite.all():
            shuffled = shuffled[finite[shuffled]]
            x, y = np.where(finite, x, np.float32(0)), np.where(finite, y, np.float32(0))
        self.tiles = int(np.clip(math.isqrt(len(shuffled) // POINTS_PER_TILE), 1, MOST_TILES))
        ends = [(part[finite].min(), part[finite].max()) if len(shuffled) else (0.0, 0.0) for part in (x, y)]
        self.low, self.high = (np.array([end[side] for end in ends], dtype=float) for side in (0, 1))
        place = self._tile(x, y)[shuffled]
        self.rank = np.argsort(place, kind="stable")  # sixteen bits are sorted by radix
        self.order = shuffled[self.rank]
        self.x, self.y = x[self.order], y[self.order]
        self.starts = np.concatenate([[0], np.cumsum(np.bincount(place, minlength=self.tiles**2))])

    def _tile(self, x: Points, y: Points) -> NDArray[np.uint16]:
        """Return the tile of each point, counted along the rows of tiles."""
        cells = []
        for axis, part in enumerate((x, y)):
            extent = self.high[axis] - self.low[axis] or 1.0
            cell = ((part - np.float32(self.low[axis])) * np.float32(self.tiles / extent)).astype(np.int32)
            cells.append(np.clip(cell, 0, self.tiles - 1, out=cell))
        return (cells[1] * self.tiles + cells[0]).astype(np.uint16)

    def runs(self, low: tuple[float, float], high: tuple[float, float]) -> list[slice]:
        """Return the parts of the sorted arrays whose tiles touch a rectangle."""
        if not len(self.order) or any(high[axis] < self.low[axis] or low[axis] > self.high[axis] for axis in (0, 1)):
            return []
        extent = np.where(self.high > self.low, self.high - self.low, 1.0)

        def cell(axis: int, value: float) -> int:
            return int(np.clip((value - self.low[axis]) * self.tiles / extent[axis], 0, self.tiles - 1))

        # One tile more on either side: the border of a tile is a matter of rounding.
        x0, x1 = max(0, cell(0, low[0]) - 1), min(self.tiles - 1, cell(0, high[0]) + 1)
        y0, y1 = max(0, cell(1, low[1]) - 1), min(self.tiles - 1, cell(1, high[1]) + 1)
        if x1 - x0 + 1 == self.tiles:
            return [slice(int(self.starts[y0 * self.tiles]), int(self.starts[(y1 + 1) * self.tiles]))]
        rows = (y * self.tiles for y in range(y0, y1 + 1))
        found = [slice(int(self.starts[row + x0]), int(self.starts[row + x1 + 1])) for row in rows]
        return [run for run in found if run.stop > run.start]

    @cached_property
    def coarse(self) -> Ids:
        """Places in the sorted arrays of a subset that keeps something of every tile, for drawing while one drags."""
        counts = np.diff(self.starts)
        share = min(1.0, COARSE_POINTS / max(1, len(self.order)))
        keep = np.minimum(counts, np.maximum(np.ceil(counts * share).astype(int), 8))
        within = np.arange(len(self.order)) - np.repeat(self.starts[:-1], counts)
        return np.flatnonzero(within < np.repeat(keep, counts))

    def place(self, window: Window, *, coarse: bool = False, reach: int = 0) -> Placed:
        """Return the points inside a window and their pixels.

        Parameters
        ----------
        window
            What is seen.
        coarse
            Whether the subset for dragging will do.
        reach
            Pixels around the window within which points are kept, because their dots reach into it.
        """
        outside = (reach / window.scale_x, reach / window.scale_y)
        low = (window.left - outside[0], window.bottom - outside[1])
        high = (window.right + outside[0], window.top + outside[1])
        if coarse:
            ids = self.coarse
            x, y = self.x[ids], self.y[ids]
        else:
            runs = self.runs(low, high)
            if len(runs) == 1 or not runs:
                run = runs[0] if runs else slice(0, 0)
                ids, x, y = np.arange(run.start, run.stop), self.x[run], self.y[run]
            else:
                ids = np.concatenate([np.arange(run.start, run.stop) for run in runs])
                x, y = np.concatenate([self.x[run] for run in runs]), np.concatenate([self.y[run] for run in runs])
        # floor, not truncation: a point just left of the window must not fall into its first column
        column = np.floor((x - np.float32(window.left)) * np.float32(window.scale_x)).astype(np.int32)
        row = np.floor((np.float32(window.top) - y) * np.float32(window.scale_y)).astype(np.int32)
        inside = (column >= -reach) & (column < window.width + reach) & (row >= -reach) & (row < window.height + reach)
        if not inside.all():
            ids, column, row = ids[inside], column[inside], row[inside]
        margin = 2 * reach  # a dot of a point at the edge of the reach must not run over into the next row
        stride = window.width + 2 * margin
        flat = (row.astype(np.intp) + margin) * stride + (column + margin)
        return Placed(window, ids, flat, margin)

    def nearest(self, window: Window, x: float, y: float, reach: float, visible: NDArray[np.bool_] | None = None) -> int | None:
        """Return the index of the point nearest to a pixel, within ``reach`` pixels, or None.

        Parameters
        ----------
        window
            What is seen.
        x, y
            Pixel coordinates.
        reach
            In pixels.
        visible
            Of shape ``(n,)`` in the sorted order; points that are hidden are not found.
        """
        px, py = window.left + x / window.scale_x, window.top - y / window.scale_y
        rx, ry = reach / window.scale_x, reach / window.scale_y
        best, found = reach * reach, None
        for run in self.runs((px - rx, py - ry), (px + rx, py + ry)):
            distance = ((self.x[run] - px) * window.scale_x) ** 2 + ((self.y[run] - py) * window.scale_y) ** 2
            if visible is not None:
                distance = np.where(visible[run], distance, np.inf)
            if len(distance) and distance.min() <= best:
                best, found = float(distance.min()), run.start + int(distance.argmin())
        return None if found is None else int(self.order[found])


@dataclass(frozen=True)
class Placed:
    """Points in a window.

    Attributes
    ----------
    window
        The window.
    ids
        Places in the sorted arrays of the point set, of shape ``(n,)``.
    flat
        Pixel of each, counted along the rows of the window with its margin.
    margin
        Pixels around the window.
    """

    window: Window
    ids: Ids
    flat: Ids
    margin: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns with the margin."""
        return self.window.height + 2 * self.margin, self.window.width + 2 * self.margin

    def crop(self, image: Pixels) -> Pixels:
        """Cut the margin off an image of all pixels."""
        m = self.margin
        full = image.reshape(self.shape)
        return np.ascontiguousarray(full[m : m + self.window.height, m : m + self.window.width])


def inside_polygon(points: NDArray[np.floating], polygon: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return which points are inside a polygon, by winding number, so that a loop that crosses itself holds all it went around.

    Parameters
    ----------
    points
        Of shape ``(n, 2)``.
    polygon
        Corners of shape ``(m, 2)``; the last is joined to the first.
    """
    order = np.argsort(points[:, 1], kind="stable")
    y, x = points[order, 1], points[order, 0]
    winding = np.zeros(len(points), np.int32)
    for (ax, ay), (bx, by) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if ay == by:
            continue
        first, last = np.searchsorted(y, sorted((ay, by)), side="left")  # half open: a corner counts for one of its edges
        if first == last:
            continue
        crossing = ax + (y[first:last] - ay) * ((bx - ax) / (by - ay))
        winding[first:last] += np.where(x[first:last] < crossing, 1 if by > ay else -1, 0)
    result = np.empty(len(points), bool)
    result[order] = winding != 0
    return result


def lasso(placed: Placed, points: PointSet, polygon: NDArray[np.floating], inner: NDArray[np.bool_], edge: NDArray[np.bool_]) -> Ids:
    """Return the places in the sorted arrays of the points inside a polygon, in no order.

    Whole pixels are looked up in a painted mask; only points in pixels that the outline touches are computed.

    Parameters
    ----------
    placed
        Points and pixels, with no margin.
    points
        The point set.
    polygon
        Corners in pixel coordinates, of shape ``(m, 2)``.
    inner, edge
        Painted masks of the window, ``(height, width)``: pixels inside, and those that the outline may touch.
    """
    flat_edge = edge.ravel()
    sure = inner.ravel() & ~flat_edge
    unsure = np.flatnonzero(flat_edge[placed.flat])
    found = placed.ids[sure[placed.flat]]
    if not len(unsure):
        return found
    ids = placed.ids[unsure]
    exact = placed.window.to_pixels(np.column_stack([points.x[ids], points.y[ids]]).astype(np.float64))
    return np.concatenate([found, ids[inside_polygon(exact, np.asarray(polygon, dtype=np.float64))]])
