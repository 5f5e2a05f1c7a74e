"""A slider back through the embeddings of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qtpy.QtCore import QSignalBlocker, Qt, QTimer, Signal
from qtpy.QtWidgets import QHBoxLayout, QLabel, QSlider, QWidget

from cellweave.app.theme import SPACE

Loader = Callable[[], Any]
SETTLE_MS = 40


class EpochBar(QWidget):
    """Chooses an epoch; what is of it is read once the slider has come to rest.

    Parameters
    ----------
    parent
        Owner.

    Attributes
    ----------
    loaded
        What is of the epoch shown was read.
    chosen
        The person went to an epoch; not where :meth:`go_to` did, so that two bars that follow each other do not pull each other back.
    """

    loaded = Signal(int, object)
    chosen = Signal(int)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._epochs: list[tuple[int, Loader]] = []
        self._by_person = True
        self.slider = QSlider(Qt.Orientation.Horizontal)
        self.slider.setRange(0, 0)
        self.slider.setAccessibleName("Epoch shown")
        self.slider.setToolTip("Go back through the embeddings of this run")
        self.words = QLabel("")
        label = QLabel("Epoch")
        label.setBuddy(self.slider)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(2 * SPACE)
        row.addWidget(label)
        row.addWidget(self.slider, 1)
        row.addWidget(self.words)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(SETTLE_MS)
        self._timer.timeout.connect(self._load)
        self.slider.valueChanged.connect(self._moved)
        self.hide()

    def set_epochs(self, epochs: Sequence[tuple[int, Loader]]) -> None:
        """Offer epochs with a function each that returns what is of it; a slider at its end stays there, one elsewhere at its epoch, none hides it."""
        at_end = self.at_end
        epoch = self._epochs[self.slider.value()][0] if self._epochs else -1
        self._epochs = list(epochs)
        with QSignalBlocker(self.slider):
            self.slider.setRange(0, max(0, len(self._epochs) - 1))
            same = next((place for place, (number, _) in enumerate(self._epochs) if number == epoch), self.slider.value())
            self.slider.setValue(self.slider.maximum() if at_end else same)
        self.setVisible(len(self._epochs) > 1)
        if self._epochs:
            self.say(self._epochs[self.slider.value()][0])

    @property
    def at_end(self) -> bool:
        """Whether the last epoch is chosen, also where there is none."""
        return self.slider.value() == self.slider.maximum()

    def go_to(self, epoch: int) -> None:
        """Choose an epoch, where it is offered."""
        place = next((place for place, (number, _) in enumerate(self._epochs) if number == epoch), None)
        if place is not None and place != self.slider.value():
            self.slider.setValue(place)
            self._by_person = False

    def say_unreadable(self, why: str = "") -> None:
        """Write that the chosen epoch cannot be read."""
        if self._epochs:
            self.words.setText(f"{self._epochs[self.slider.value()][0]}: cannot be read")
            self.words.setToolTip(why)

    def say(self, epoch: int) -> None:
        """Write which epoch is shown, in a room that does not change with the number of figures."""
        last = max(epoch, self._epochs[-1][0]) if self._epochs else epoch
        self.words.setMinimumWidth(self.words.fontMetrics().horizontalAdvance("0000 of 0000"))
        self.words.setText(f"{epoch} of {last}")

    def _moved(self, index: int) -> None:
        self._by_person = True
        self.say(self._epochs[index][0])
        self._timer.start()

    def _load(self) -> None:
        index = self.slider.value()
        if index >= len(self._epochs):
            return
        epoch, load = self._epochs[index]
        try:
            found = load()
        except (OSError, ValueError) as error:
            self.say_unreadable(str(error))
            return
        self.words.setToolTip("")
        self.loaded.emit(epoch, found)
        if self._by_person:
            self.chosen.emit(epoch)
