"""Panels of one size beside each other, with legends of one shape, that are panned and zoomed together."""

from __future__ import annotations

import math

from qtpy.QtCore import QRectF, QTimer
from qtpy.QtGui import QResizeEvent
from qtpy.QtWidgets import QGridLayout, QWidget

from cellweave.app.theme import SPACE
from cellweave.app.views.cards import Message
from cellweave.app.views.scatterpanel import ScatterPanel

MOST_PANELS = 4
PANEL_WIDTH = 28
"""Least width of a panel, in letters, before more than two of them take a second row."""


class PanelGrid(QWidget):
    """Holds the panels of an embedding.

    Parameters
    ----------
    parent
        Owner.

    Attributes
    ----------
    panels
        From left to right.
    note
        What an empty view says.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.panels: list[ScatterPanel] = []
        self._by_hand = False
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setSpacing(3 * SPACE)
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(0)  # once the layout has its sizes
        self._settle.timeout.connect(self._place_legends)
        self.note = Message(self)

    def add(self, panel: ScatterPanel) -> None:
        """Add a panel that shows the same part of the plane as the others."""
        panel.viewMoved.connect(lambda rect, panel=panel: self._follow(panel, rect))
        panel.fitWanted.connect(self.fit)
        panel.legendChanged.connect(self._settle.start)
        self.panels.append(panel)
        self._arrange()
        if len(self.panels) > 1:
            panel.show_rect(self.panels[0].box.viewRect())
        self.note.raise_()

    def remove_last(self) -> None:
        """Take the last panel away."""
        panel = self.panels.pop()
        panel.hide()
        panel.setParent(None)
        panel.deleteLater()
        self._arrange()

    def show_note(self, text: str) -> None:
        """Show words in place of the panels; an empty text shows the panels."""
        self.note.set_text(text)
        for panel in self.panels:
            panel.setVisible(not text)

    # -- places ----------------------------------------------------------------------------------------------

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        """Arrange the panels for the new width."""
        super().resizeEvent(event)
        self._arrange()
        self._settle.start()

    def _arrange(self) -> None:
        """Put the panels beside each other, or in two rows where they would be too narrow; all are of one size."""
        for panel in self.panels:
            self._grid.removeWidget(panel)
        count = len(self.panels)
        narrow = self.width() < count * PANEL_WIDTH * self.fontMetrics().horizontalAdvance("n")
        columns = math.ceil(count / 2) if narrow and count > 2 else count
        for index, panel in enumerate(self.panels):
            self._grid.addWidget(panel, index // columns, index % columns)
        for place in range(MOST_PANELS):
            self._grid.setColumnStretch(place, int(place < columns))
            self._grid.setRowStretch(place, int(place < math.ceil(count / max(1, columns))))

    def _place_legends(self) -> None:
        """Give all panels legends of one shape, where the clouds get the more room: beside or below."""
        if not self.panels or not self.panels[0].isVisible():
            return
        width, height = self.panels[0].width(), self.panels[0].height()
        wide = min(width // 2, max(panel.legend_hint(beside=True) for panel in self.panels))
        tall = min(height * 2 // 5, max(panel.legend_hint(beside=False) for panel in self.panels))
        tall = min(max(tall, *(panel.least_legend() for panel in self.panels), 0), height // 2)
        beside = min(width - wide, height) >= min(width, height - tall)
        for panel in self.panels:
            panel.place_legend(wide if beside else tall, beside=beside)
        if not self._by_hand:
            self.fit()

    # -- the part of the plane that is seen -------------------------------------------------------------------

    def fit(self) -> None:
        """Show all cells in every panel, and keep doing so until somebody pans or zooms."""
        self._by_hand = False
        for panel in self.panels:
            panel.fit()

    def fit_unless_moved(self) -> None:
        """Show all cells, unless somebody chose a part of the plane."""
        if not self._by_hand:
            self.fit()

    def _follow(self, source: ScatterPanel, rect: QRectF) -> None:
        """Move the other panels to the same middle at the same scale."""
        self._by_hand = True
        for panel in self.panels:
            if panel is source:
                continue
            scale = rect.width() / max(1.0, source.box.rect().width())
            size = panel.box.rect()
            width, height = size.width() * scale, size.height() * scale
            panel.show_rect(QRectF(rect.center().x() - width / 2, rect.center().y() - height / 2, width, height))
