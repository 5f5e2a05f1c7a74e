"""Points to pixels in numpy: what is drawn where, which point is under the cursor, which are inside a lasso. No Qt here.

Points are kept in the order of a grid of tiles over the plane, at random within a tile. A view then reads only the tiles it
touches, in order of memory, which makes a million points a matter of some 10 ms; and no group of cells lies above another.
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
        finite = np.isfinite(xy).all(axis=1)
        shuffled = np.random.default_rng(seed).permutation(self.size)
        if not finite.all():
            shuffled = shuffled[finite[shuffled]]
        self.tiles = int(np.clip(math.isqrt(len(shuffled) // POINTS_PER_TILE), 1, MOST_TILES))
        seen = xy[shuffled] if len(shuffled) else np.zeros((1, 2), np.float32)
        self.low, self.high = seen.min(axis=0).astype(float), seen.max(axis=0).astype(float)
        place = self._tile(xy[shuffled])
        self.rank = np.argsort(place, kind="stable")
        self.order = shuffled[self.rank]
        self.x, self.y = np.ascontiguousarray(xy[self.order, 0]), np.ascontiguousarray(xy[self.order, 1])
        self.starts = np.concatenate([[0], np.cumsum(np.bincount(place, minlength=self.tiles**2))])

    def _tile(self, xy: Points) -> NDArray[np.uint16]:
        extent = np.where(self.high > self.low, self.high - self.low, 1.0)
        cell = ((xy - self.low.astype(np.float32)) * (self.tiles / extent).astype(np.float32)).astype(np.int32)
        np.clip(cell, 0, self.tiles - 1, out=cell)
        return (cell[:, 1] * self.tiles + cell[:, 0]).astype(np.uint16)

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


@dataclass(frozen=True)
class Look:
    """How points look, by their code.

    Attributes
    ----------
    codes
        Code of each point, in the sorted order of the point set, of shape ``(n,)``.
    colours
        Of shape ``(n_codes, 3)``, uint8.
    layers
        Of shape ``(n_codes,)``: -1 is not drawn, 0 is drawn first (missing, or outside the selection), 1 above it.
    """

    codes: NDArray[np.int32]
    colours: NDArray[np.uint8]
    layers: NDArray[np.int8]

    @cached_property
    def _whole(self) -> bool:
        """Whether every code is drawn in one layer."""
        return bool((self.layers == 1).all())

    def split(self, placed: Placed) -> list[tuple[Ids, NDArray[np.int32]]]:
        """Return, from the lowest layer to the highest, which of the placed points are in it, and their codes."""
        codes = self.codes[placed.ids]
        if self._whole:
            return [(np.arange(len(codes)), codes)]
        layer = self.layers[codes]
        found = [np.flatnonzero(layer == number) for number in (0, 1)]
        return [(chosen, codes[chosen]) for chosen in found if len(chosen)]


def _pack(red: NDArray, green: NDArray, blue: NDArray, alpha: NDArray) -> Pixels:
    """Return premultiplied ARGB from colours and an opacity from 0 to 1."""
    scale = alpha.astype(np.float32)
    parts = [(part * scale + np.float32(0.5)).astype(np.uint32) for part in (red, green, blue)]
    opacity = (scale * 255 + np.float32(0.5)).astype(np.uint32)
    return (opacity << 24) | (parts[0] << 16) | (parts[1] << 8) | parts[2]


def density_image(placed: Placed, look: Look, *, faintest: float = 0.35) -> Pixels:
    """Return an image of the mean colour of each pixel's points, the more opaque the more there are.

    Where groups of cells mix, the colours mix; no order of drawing can hide one of them.

    Parameters
    ----------
    placed
        Points and pixels.
    look
        Colours.
    faintest
        Opacity of a pixel with a single point.

    Returns
    -------
    numpy.ndarray
        Of shape ``(height, width)``, uint32, premultiplied ARGB.
    """
    pixels = int(np.prod(placed.shape))
    image = np.zeros(pixels, np.uint32)
    colours = look.colours.astype(np.float64)
    for chosen, codes in look.split(placed):
        flat = placed.flat if len(chosen) == len(placed.flat) else placed.flat[chosen]
        counts = np.bincount(flat, minlength=pixels)
        filled = np.flatnonzero(counts)
        if not len(filled):
            continue
        number = counts[filled]
        red, green, blue = _colour_sums(flat, codes, colours, pixels, filled, int(number.max()))
        inverse = (1.0 / number).astype(np.float32)
        top = np.log1p(max(4.0, float(np.quantile(number, 0.99))))
        alpha = np.minimum(1.0, faintest + (1 - faintest) * np.log1p(number.astype(np.float32)) / np.float32(top))
        image[filled] = _pack(red * inverse, green * inverse, blue * inverse, alpha)
    return placed.crop(image)


def _colour_sums(
    flat: Ids, codes: NDArray[np.int32], colours: NDArray[np.float64], pixels: int, filled: Ids, most: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Sum the three parts of the colours over the points of each filled pixel.

    Three sums below 2**17 fit side by side into the 53 bits of a double, so that one pass over the points does instead
    of three; where a pixel has more points than that, it takes three.
    """
    if most * 255 < 2**17:
        side_by_side = colours[:, 0] * 2.0**34 + colours[:, 1] * 2.0**17 + colours[:, 2]
        sums = np.bincount(flat, weights=side_by_side.take(codes), minlength=pixels)[filled].astype(np.int64)
        mask = 2**17 - 1
        parts = (sums >> 34, (sums >> 17) & mask, sums & mask)
    else:
        parts = tuple(np.bincount(flat, weights=colours[:, part].take(codes), minlength=pixels)[filled] for part in range(3))
    red, green, blue = (part.astype(np.float32) for part in parts)
    return red, green, blue


def dot_reach(diameter: float) -> int:
    """Return how many pixels a dot reaches from the pixel of its middle."""
    return math.ceil(max(0.5, diameter / 2))


def stencil(diameter: float, stride: int) -> tuple[Ids, NDArray[np.float32]]:
    """Return the pixels of a round dot as offsets from its middle, and how much of each it covers.

    Parameters
    ----------
    diameter
        In pixels.
    stride
        Pixels in a row of the image.

    Returns
    -------
    offsets, coverage
        Of shape ``(k,)``, by rising coverage; the middle is always covered wholly.
    """
    radius = max(0.5, diameter / 2)
    reach = dot_reach(diameter)
    steps = np.arange(-reach, reach + 1)
    distance = np.hypot(*np.meshgrid(steps, steps))
    coverage = np.clip(radius + 0.5 - distance, 0, 1)
    coverage[reach, reach] = 1.0
    rows, columns = np.nonzero(coverage > 0.05)
    cover = coverage[rows, columns].astype(np.float32)
    offsets = (rows - reach) * stride + (columns - reach)
    by_cover = np.argsort(cover, kind="stable")
    return offsets[by_cover].astype(np.intp), cover[by_cover]


def dots_image(placed: Placed, rank: Ids, look: Look, diameter: float) -> Pixels:
    """Return an image of round dots, drawn in the random order of the point set, lower layers first.

    Parameters
    ----------
    placed
        Points and pixels; points must be kept within a dot's radius around the window.
    rank
        Place of each point of the set in the order of drawing.
    look
        Colours.
    diameter
        In pixels.

    Returns
    -------
    numpy.ndarray
        Of shape ``(height, width)``, uint32, premultiplied ARGB.
    """
    pixels = int(np.prod(placed.shape))
    offsets, cover = stencil(diameter, placed.shape[1])
    if placed.margin < 2 * dot_reach(diameter):
        message = f"dots of {diameter} pixels reach out of a margin of {placed.margin}"
        raise ValueError(message)
    drawn = []
    for chosen, _ in look.split(placed):
        drawn.append(chosen[np.argsort(rank[placed.ids[chosen]])])
    if not drawn:
        return np.zeros((placed.window.height, placed.window.width), np.uint32)
    sequence = np.concatenate(drawn)
    flat, codes = placed.flat[sequence], look.codes[placed.ids[sequence]]
    top = np.full(pixels, -1, np.int32)
    coverage = np.zeros(pixels, np.float32)
    numbers = np.arange(len(sequence), dtype=np.int32)
    whole = cover >= 0.5
    for part in (~whole, whole):  # first all soft edges, then all bodies: no edge eats into a body
        if part.any():
            where = (flat[:, None] + offsets[part][None, :]).ravel()
            top[where] = np.repeat(numbers, int(part.sum()))
    for offset, share in zip(offsets, cover, strict=True):  # rising, so that the largest share stays
        coverage[flat + offset] = share
    filled = np.flatnonzero(top >= 0)
    rgb = look.colours[codes[top[filled]]].astype(np.float32)
    image = np.zeros(pixels, np.uint32)
    image[filled] = _pack(rgb[:, 0], rgb[:, 1], rgb[:, 2], coverage[filled])
    return placed.crop(image)


def dot_size(n_points: int, pixels: float, ratio: float = 1.0) -> float:
    """Return the diameter of a dot in pixels: dots of ``n_points`` spread over the window would cover a fifth of it.

    Parameters
    ----------
    n_points
        Points that would be seen if the whole of the cloud were.
    pixels
        Of the area the cloud takes.
    ratio
        Device pixels per pixel.
    """
    return float(np.clip(math.sqrt(0.2 * pixels / max(1, n_points)), 1.5 * ratio, 9 * ratio))


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
