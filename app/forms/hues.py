"""Hues of the loss terms as they are seen on the present ground."""

from __future__ import annotations

from qtpy.QtGui import QColor

from cellweave.app.theme import current

LIGHTER_ON_DARK = 130
"""By how much, in per cent, a dark hue is lightened on a dark ground, so that a thin line or a small dot can be seen."""


def on_ground(hue: QColor) -> QColor:
    """Return a hue as it is drawn in the present theme."""
    return hue.lighter(LIGHTER_ON_DARK) if current().dark and hue.lightness() < 128 else hue
