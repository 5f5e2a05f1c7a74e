"""Colours that the window and the figures share. Nothing heavy is imported here."""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

#: Okabe and Ito's colours (2008, Color Universal Design), in the order of the curves.
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
#: Of loss terms: Okabe and Ito's seven hues, then ten that lie as far as can be from those before them, from the grounds and from the neutral total, for
#: full sight and for lack of any one cone, and stand out from either ground. Okabe and Ito's grey is not among them: who lacks the green cones takes
#: their pink for it. One colour serves both themes, so that a term has the same in every run and figure.
LOSS_COLOURS = (
    *OKABE_ITO[:7], "#8C73FF", "#B43296", "#C82341", "#9B9B4B", "#6955D2", "#96697D", "#B95AD2", "#FF5F7D", "#237846", "#968CD2",
)  # fmt: skip
#: More levels than this share colours; nobody tells so many apart.
MOST_COLOURS = 256
ThemeName = Literal["light", "dark"]

# For figures. Window, text and grid of interface.md; missing lies between the background and every colour of a level.
_LOOK: dict[str, dict[str, str]] = {
    "light": {"background": "#FFFFFF", "text": "#1B1F24", "secondary": "#57606A", "grid": "#E8EAED", "border": "#B8BEC6", "missing": "#D3D7DC"},
    "dark": {"background": "#1D2126", "text": "#E6EAF0", "secondary": "#9DA7B3", "grid": "#31363D", "border": "#5A626C", "missing": "#434A53"},
}


def look(theme: ThemeName) -> dict[str, str]:
    """Return the colours of everything that is not data: background, text, secondary, grid, border, missing."""
    return dict(_LOOK[theme])


def loss_colour(index: int, theme: ThemeName = "light") -> str:
    """Return the colour of the loss term with this ``LossTerm.colour``; below 0 is the total, which is neutral."""
    return _LOOK[theme]["text"] if index < 0 else LOSS_COLOURS[index % len(LOSS_COLOURS)]


def category_colours(n_levels: int, theme: ThemeName = "light") -> tuple[str, ...]:
    """Return a colour for each level.

    Up to eight levels get Okabe and Ito's colours (the eighth black or white, since grey means missing); further ones are generated so
    that each is as far as possible from all before it. A level keeps its colour when others are added behind it.

    Parameters
    ----------
    n_levels
        How many levels there are.
    theme
        What is behind the points.

    Returns
    -------
    tuple of str
        ``n_levels`` colours as ``#RRGGBB``; from ``MOST_COLOURS`` on they repeat.
    """
    colours = _distinct(min(n_levels, MOST_COLOURS), theme)
    return tuple(colours[index % len(colours)] for index in range(n_levels))


@cache
def _distinct(n: int, theme: ThemeName) -> tuple[str, ...]:
    """Choose colours greedily by their distance in OKLab (Glasbey et al. 2007, with Ottosson's colour space)."""
    first = (*OKABE_ITO[:7], "#000000" if theme == "light" else "#FFFFFF")
    if n <= len(first):
        return first[:n]
    steps = np.arange(0, 256, 15)
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = oklab(candidates)
    # Visible on the background, neither so pale that it passes for missing nor so loud that it outshines the others.
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    darkest, lightest = (0.38, 0.82) if theme == "light" else (0.47, 0.88)
    usable = (lab[:, 0] > darkest) & (lab[:, 0] < lightest) & (chroma > 0.05) & (chroma < 0.19)
    candidates, lab = candidates[usable], lab[usable]
    taken = [hex_to_rgb(colour) for colour in first]
    avoid = oklab(np.array([*taken, *(hex_to_rgb(_LOOK[theme][name]) for name in ("background", "missing"))]))
    distance = np.min(np.linalg.norm(lab[:, None] - avoid[None], axis=2), axis=1)
    while len(taken) < n:
        best = int(distance.argmax())
        red, green, blue = (int(part) for part in candidates[best])
        taken.append((red, green, blue))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[best], axis=1))
    return tuple(f"#{r:02X}{g:02X}{b:02X}" for r, g, b in taken)


def hex_to_rgb(colour: str) -> tuple[int, int, int]:
    """Return ``#RRGGBB`` as three numbers from 0 to 255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def oklab(rgb: NDArray[np.generic]) -> NDArray[np.float64]:
    """Convert sRGB ``(n, 3)`` from 0 to 255 to OKLab (Ottosson 2020), in which distances are about what one sees."""
    value = np.asarray(rgb, dtype=np.float64) / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(
        [[0.4122214708, 0.2119034982, 0.0883024619], [0.5363325363, 0.6806995451, 0.2817188376], [0.0514459929, 0.1073969566, 0.6299787005]]
    )
    return np.cbrt(cones) @ np.array(
        [[0.2104542553, 1.9779984951, 0.0259040371], [0.7936177850, -2.4285922050, 0.7827717662], [-0.0040720468, 0.4505937099, -0.8086757660]]
    )


@cache
def _table(name: str) -> NDArray[np.uint8]:
    from cmap import Colormap

    table = np.round(np.asarray(Colormap({"coolwarm": "matplotlib:coolwarm"}.get(name, name)).lut(256))[:, :3] * 255).astype(np.uint8)
    table.setflags(write=False)
    return table


def colour_table(name: Literal["viridis", "cividis", "magma", "coolwarm"] = "viridis") -> NDArray[np.uint8]:
    """Return a map for numbers as ``(256, 3)`` uint8: viridis and cividis for values, coolwarm for ratios around 0."""
    return _table(name)


def value_range(values: NDArray[np.floating], low: float = 1.0, high: float = 99.0) -> tuple[float, float]:
    """Return the range that colours are spread over: the 1st to the 99th percentile of the finite values.

    Where that range is empty (most values the same) it is widened to all values, and by one where all are the same.
    """
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return 0.0, 1.0
    bottom, top = np.percentile(finite, [low, high])
    if bottom == top:
        bottom, top = finite.min(), finite.max()
    return float(bottom), float(top if top > bottom else bottom + 1.0)


def draw_order(missing: NDArray[np.bool_], seed: int = 0) -> NDArray[np.intp]:
    """Return the order in which points are drawn: missing ones first, the others at random, so that no level covers another.

    Parameters
    ----------
    missing
        Which points have no value, ``(n_points,)``.
    seed
        Fixes the order.
    """
    order = np.random.default_rng(seed).permutation(len(missing))
    return order[np.argsort(~missing[order], kind="stable")]
