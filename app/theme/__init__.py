"""Light, dark and system theme: colours as tokens, icons that follow, and one signal when they change.

Views take their colours from :func:`current` when they paint and redraw on ``notifier().changed``.
"""

from cellweave.app.theme.icons import icon, program_icon
from cellweave.app.theme.manager import MODES, apply, current, follow, mode, notifier, stop_following
from cellweave.app.theme.tokens import SPACE, Theme, heading_font, load_theme, series_color, tabular_font

__all__ = [
    "MODES",
    "SPACE",
    "Theme",
    "apply",
    "current",
    "follow",
    "heading_font",
    "icon",
    "load_theme",
    "mode",
    "notifier",
    "program_icon",
    "series_color",
    "stop_following",
    "tabular_font",
]
