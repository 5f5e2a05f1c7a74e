"""A frame around the view that has the keyboard."""

from __future__ import annotations

from qtpy.QtCore import QRectF
from qtpy.QtGui import QPainter, QPen
from qtpy.QtWidgets import QAbstractScrollArea

from cellweave.app.theme import current

WIDTH = 2.0


def draw_focus(view: QAbstractScrollArea) -> None:
    """Draw the frame where the view has the focus; to be called at the end of its ``paintEvent``."""
    if not view.hasFocus():
        return
    painter = QPainter(view.viewport())
    painter.setPen(QPen(current().color("accent"), WIDTH))
    edge = WIDTH / 2
    painter.drawRect(QRectF(view.viewport().rect()).adjusted(edge, edge, -edge, -edge))
    painter.end()
