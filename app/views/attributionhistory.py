"""Back through the attributions of a run: which epochs there are, and reading the one that is wanted in a thread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import QObject, Signal

from cellweave.app.state.attributed import Attributed, earlier_attributions, of_preview
from cellweave.app.views.epochbar import EpochBar

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cellweave.app.state.results import Cells
    from cellweave.app.views.runview import RunView

Where = Callable[[], "tuple[Cells | None, NDArray | None]"]


class AttributionHistory(QObject):
    """The attributions that a run wrote while it trained, and the one of its result.

    Parameters
    ----------
    view
        The view that reads in threads.
    where
        Returns the cells of the embedding and their places.

    Attributes
    ----------
    bar
        The slider.
    shown
        Another attribution was read.
    chosen
        The person went to another epoch.
    """

    shown = Signal(object)
    chosen = Signal(int)

    def __init__(self, view: RunView, where: Where) -> None:
        super().__init__(view)
        self._view, self._where = view, where
        self.bar = EpochBar(view)
        self.bar.slider.setToolTip("Go back through the attributions of this run")
        self.bar.loaded.connect(self._wanted)
        self.bar.chosen.connect(self.chosen)
        self._result: Attributed | None = None
        self._next: Path | None = None
        self._reading = False

    def clear(self) -> None:
        """Forget the run."""
        self._result, self._next, self._reading = None, None, False
        self.bar.set_epochs([])

    def offer(self, folder: Path, result: Attributed | None, epoch: int) -> None:
        """Offer what a finished run wrote while it trained, before its result.

        Parameters
        ----------
        folder
            Of the previews.
        result
            The attribution of the result.
        epoch
            Epoch of the result.
        """
        self._result = result
        earlier = [(number, path) for number, path in earlier_attributions(folder) if number < epoch]
        self.bar.set_epochs([*((number, self._loader(path)) for number, path in earlier), (epoch, lambda: None)])

    def follow(self, path: Path, epoch: int) -> None:
        """Show the attribution of the run that trains, unless the person went back; then only offer it.

        Parameters
        ----------
        path
            ``attribution-EPOCH.npz``.
        epoch
            Its epoch.
        """
        there = [(number, one) for number, one in earlier_attributions(path.parent) if number <= epoch]
        newest = self.bar.at_end
        self.bar.set_epochs([(number, self._loader(one)) for number, one in there])
        if newest:
            self._read(path)

    @staticmethod
    def _loader(path: Path) -> Callable[[], Path]:
        return lambda: path

    def _wanted(self, _epoch: int, path: Path | None) -> None:
        if path is None:
            self._next = None
            if self._result is not None:
                self.shown.emit(self._result)
        else:
            self._read(path)

    def _read(self, path: Path) -> None:
        """Read an attribution; while one is being read only the last that was wanted waits."""
        self._next = path
        if not self._reading:
            self._read_next()

    def _read_next(self) -> None:
        if self._next is None:
            return
        path, self._next, self._reading = self._next, None, True
        cells, xy = self._where()

        def done(data: Attributed | None) -> None:
            self._reading = False
            if self._next is not None:
                self._read_next()
            elif data is None:
                self.bar.say_unreadable()
            elif not (self.bar.at_end and self._result is not None):  # the person has not gone on to the result since
                self.shown.emit(data)

        def failed(error: Exception, details: str) -> None:
            self._reading = False
            if self._next is not None:
                self._read_next()
            else:
                self.bar.say_unreadable(str(error))

        self._view.work(lambda _: of_preview(path, cells, xy), done, failed=failed)
