"""Questions to the trained model of the shown run, and new data mapped onto it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import QObject

if TYPE_CHECKING:
    from cellweave.app.views.askdialog import AskDialog
    from cellweave.app.views.mapdialog import MapDialog
    from cellweave.app.window import MainWindow


class Asking(QObject):
    """Opens the dialogs of the Analyse menu.

    Attributes
    ----------
    dialog, mapping
        The dialogs that were opened last.
    """

    def __init__(self, window: MainWindow) -> None:
        super().__init__(window)
        self._window = window
        self.dialog: AskDialog | None = None
        self.mapping: MapDialog | None = None

    def ask(self) -> None:
        """Ask the trained model of the shown run."""
        results = self._window.watching.results
        if results is None:
            return
        from cellweave.app.views.askdialog import AskDialog

        self.dialog = AskDialog(self._window.centre.context, results, self._window)
        self.dialog.show()

    def map_data(self) -> None:
        """Map new data onto the shown run."""
        results = self._window.watching.results
        if results is None:
            return
        from cellweave.app.views.mapdialog import MapDialog

        self.mapping = MapDialog(self._window.centre.context, results, self._window.training.begin_with, self._window)
        self.mapping.show()
