"""Points to pixels in numpy: dots in a fair order, or the mean colour of each pixel's points. No Qt here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellweave.app.views.points import Ids, Pixels, Placed


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
    pixels: Pixels = ((opacity << 24) | (parts[0] << 16) | (parts[1] << 8) | parts[2]).astype(np.uint32, copy=False)
    return pixels


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
        parts: list[NDArray[Any]] = [sums >> 34, (sums >> 17) & mask, sums & mask]
    else:
        parts = [np.bincount(flat, weights=colours[:, part].take(codes), minlength=pixels)[filled] for part in range(3)]
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
