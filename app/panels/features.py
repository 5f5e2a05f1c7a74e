"""Which features of a modality the model sees, and where its counts are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qtpy.QtCore import QSignalBlocker, QTimer, Signal
from qtpy.QtWidgets import QComboBox, QFileDialog, QGridLayout, QLabel, QSpinBox, QWidget

from cellweave.app.panels.parts import row, subheading, text, tool
from cellweave.core.spec.data import DataSpec, FeatureSelection
from cellweave.core.spec.modalities import modality_kind

MODES = (("all", "All features"), ("variable", "Most variable"), ("list", "Listed in a file"))
LABELS = ("Train on", "Several files", "Counts in", "Features", "Number", "Rank within")
"""Labels whose fields stand in one column, above one another in several grids."""

TYPING = 500  # milliseconds after the last key before a number is taken


def label_width(widget: QWidget) -> int:
    """Return the width of the column of labels."""
    return max(widget.fontMetrics().horizontalAdvance(words) for words in LABELS) + 2


class ModalityForm(QWidget):
    """Counts and features of one modality.

    Attributes
    ----------
    changed
        Changes by dotted path.
    """

    changed = Signal(dict)

    def __init__(self, name: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.name = name
        self.title = subheading(modality_kind(name).label)
        self.found = text("", secondary=True)
        self.counts = QComboBox()
        self.counts.setAccessibleName(f"Where the counts of {name} are")
        self.mode = QComboBox()
        self.mode.setAccessibleName(f"Features of {name}")
        for value, words in MODES:
            self.mode.addItem(words, value)
        self.number = QSpinBox()
        self.number.setRange(2, 1_000_000)
        self.number.setGroupSeparatorShown(True)
        self.number.setSingleStep(500)
        self.number.setSuffix(" features")
        self.number.setKeyboardTracking(False)
        self.number.setAccessibleName(f"Number of features of {name}")
        self.within = QComboBox()
        self.within.setAccessibleName(f"Rank features of {name} within")
        self.within.setToolTip("Rank variability within each level of this column, so that a batch effect does not choose the features.")
        self.file = text("", secondary=True)
        self.choose = tool("open", f"Choose the list of features of {name}", self._ask_file)
        for combo in (self.counts, self.mode, self.within):
            combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            combo.setMinimumContentsLength(8)
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setHorizontalSpacing(8)
        self._grid.setVerticalSpacing(4)
        self._grid.addLayout(row(self.title, None, self.found), 0, 0, 1, 3)  # a long name does not push the fields aside
        self.found.setWordWrap(False)
        self._grid.setColumnMinimumWidth(0, label_width(self))
        self._labels: dict[str, QLabel] = {}
        for line, (words, widget) in enumerate((("Counts in", self.counts), ("Features", self.mode), ("Number", self.number), ("Rank within", self.within)), 1):
            label = text(words, secondary=True, wrap=False)
            label.setBuddy(widget)
            self._labels[words] = label
            self._grid.addWidget(label, line, 0)
            self._grid.addWidget(widget, line, 1, 1, 2)
        self._grid.addWidget(self.file, 5, 1)
        self._grid.addWidget(self.choose, 5, 2)
        self._grid.setColumnStretch(1, 1)
        self._wait = QTimer(self)
        self._wait.setSingleShot(True)
        self._wait.setInterval(TYPING)
        self._wait.timeout.connect(self._send_number)
        self.counts.activated.connect(self._send_counts)
        self.mode.activated.connect(self._send_mode)
        self.number.valueChanged.connect(lambda _: self._wait.start())
        self.within.activated.connect(self._send_within)

    def show_modality(self, data: DataSpec, locations: Sequence[str], found: str, columns: Sequence[str], summary: str) -> None:
        """Show what the spec says.

        Parameters
        ----------
        data
            The data part of the spec.
        locations
            Matrices that the file has for this modality.
        found
            Where counts were found, or empty where the data are not there yet.
        columns
            obs columns to rank within.
        summary
            Size of the modality, in words.
        """
        self.found.setText(summary)
        self.counts.clear()
        self.counts.addItem(f"{found} (found)" if found else "Look through all", None)
        for location in locations:
            self.counts.addItem(location, location)
        self.counts.setCurrentIndex(max(0, self.counts.findData(data.layers.get(self.name))) if self.name in data.layers else 0)
        chosen = data.features.get(self.name, FeatureSelection())
        self.mode.setCurrentIndex(self.mode.findData(chosen.mode))
        if not self._wait.isActive():  # a number that is being typed is newer than the spec
            with QSignalBlocker(self.number):
                self.number.setValue(chosen.n)
        self.within.clear()
        self.within.addItem("no column", None)
        for column in columns:
            self.within.addItem(column, column)
        self.within.setCurrentIndex(max(0, self.within.findData(chosen.batch_column)))
        self.file.setText(chosen.file or "No file chosen")
        variable, listed = chosen.mode == "variable", chosen.mode == "list"
        for widget in (self.number, self.within, self._labels["Number"], self._labels["Rank within"]):
            widget.setVisible(variable)
        self.file.setVisible(listed)
        self.choose.setVisible(listed)

    def _send_counts(self) -> None:
        self.changed.emit({f"data.layers.{self.name}": self.counts.currentData()})

    def _send(self, field: str, value: Any) -> None:
        self.changed.emit({f"data.features.{self.name}.{field}": value})

    def _send_mode(self) -> None:
        self._send("mode", self.mode.currentData())

    def _send_number(self) -> None:
        self._send("n", self.number.value())

    def _send_within(self) -> None:
        self._send("batch_column", self.within.currentData())

    def _ask_file(self) -> None:
        file, _ = QFileDialog.getOpenFileName(self, f"Features of {self.name}", "", "Text (*.txt *.csv *.tsv);;All files (*)")
        if file:
            self._send("file", file)
