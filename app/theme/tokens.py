"""Colours of a theme, and the few sizes that everything shares."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files

from qtpy.QtGui import QColor, QFont, QFontDatabase, QGuiApplication

from cellweave.core.export.palette import LOSS_COLOURS

SPACE = 4
"""Step of all spacing, in device-independent pixels: 8 inside a group, 16 between groups."""


@dataclass(frozen=True)
class Theme:
    """Colours by what they are for, each as ``#RRGGBB`` or ``#AARRGGBB``.

    Attributes
    ----------
    name
        ``light`` or ``dark``.
    dark
        Whether text is lighter than its ground.
    window, panel, raised
        Grounds: behind everything, behind content, behind what lies on top.
    border, grid
        Lines around things, and lines inside plots.
    text, secondary, disabled
        Text.
    accent, on_accent
        What can be pressed next, and the text on it.
    good, warn, bad
        Findings.
    """

    name: str
    dark: bool
    window: str
    panel: str
    raised: str
    border: str
    grid: str
    text: str
    secondary: str
    disabled: str
    accent: str
    on_accent: str
    good: str
    warn: str
    bad: str

    def color(self, token: str) -> QColor:
        """Return a token as a ``QColor``."""
        return QColor(getattr(self, token))

    def mix(self, over: str, ground: str, share: float) -> str:
        """Return ``share`` of token ``over`` laid on token ``ground``, as ``#RRGGBB``."""
        a, b = self.color(over), self.color(ground)
        parts = (round(share * x + (1 - share) * y) for x, y in zip(a.getRgb()[:3], b.getRgb()[:3], strict=True))
        return QColor(*parts).name()

    def shade(self, over: str, ground: str, share: float) -> QColor:
        """Return :meth:`mix` as a ``QColor``, for painting."""
        return QColor(self.mix(over, ground, share))

    def tokens(self) -> dict[str, str]:
        """Return every colour by name, with the shades that follow from them (hover, pressed)."""
        own = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in {"name", "dark"}}
        own["hover"] = self.mix("text", "panel", 0.06)
        own["pressed"] = self.mix("text", "panel", 0.12)
        own["notice"] = self.mix("accent", "panel", 0.10)
        own["field_border"] = self.mix("text", "panel", 0.34)
        own["scroll"] = self.mix("text", "panel", 0.22)
        own["accent_hover"] = self.mix("text", "accent", 0.12)
        return own


@cache
def load_theme(name: str) -> Theme:
    """Read a theme of the program by name (``light``, ``dark``)."""
    text = files("cellweave.resources").joinpath("themes", f"{name}.toml").read_text(encoding="utf-8")
    return Theme(**tomllib.loads(text))


def series_color(index: int) -> QColor:
    """Return the colour of a loss term by the index that its family declares."""
    return QColor(LOSS_COLOURS[index % len(LOSS_COLOURS)])


def heading_font() -> QFont:
    """Return the system font one step larger and semibold."""
    font = QFont(QGuiApplication.font())
    font.setPointSizeF(font.pointSizeF() + 2)
    font.setWeight(QFont.Weight.DemiBold)
    return font


def tabular_font() -> QFont:
    """Return the system font with figures of equal width, so that numbers do not jump."""
    font = QFont(QGuiApplication.font())
    if hasattr(font, "setFeature") and hasattr(QFont, "Tag"):
        font.setFeature(QFont.Tag("tnum"), 1)
        return font
    fixed = QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont)
    fixed.setPointSizeF(font.pointSizeF())
    return fixed
