"""The mosaic grid: which batch was measured in which modality, with counts; a click leaves one out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QCheckBox, QGridLayout, QLabel, QWidget

from cellweave.app import theme
from cellweave.app.panels.parts import clear, text

MOST_ROWS = 60


@dataclass(frozen=True)
class Mosaic:
    """Counts of cells by level of a column and modality.

    Attributes
    ----------
    column
        The obs column whose levels are the rows.
    levels
        Its levels.
    modalities
        Names of the columns of the grid.
    counts
        Cells, ``(n_levels, n_modalities)``.
    """

    column: str
    levels: tuple[str, ...]
    modalities: tuple[str, ...]
    counts: np.ndarray

    @classmethod
    def of(cls, study: object, column: str) -> Mosaic:
        """Count the cells of a study."""
        values = study.obs[column].astype("category").cat  # type: ignore[attr-defined]
        codes, levels = values.codes.to_numpy(), tuple(str(level) for level in values.categories)
        modalities = study.modalities  # type: ignore[attr-defined]
        counts = np.zeros((len(levels), len(modalities)), dtype=np.int64)
        for position, modality in enumerate(modalities.values()):
            here = codes[modality.measured]
            counts[:, position] = np.bincount(here[here >= 0], minlength=len(levels))
        return cls(column, levels, tuple(modalities), counts)


class MosaicGrid(QWidget):
    """Batches × modalities; a box that is unchecked treats these cells as not measured.

    Attributes
    ----------
    switched
        Column, level, modality, and whether it is to be used.
    """

    switched = Signal(str, str, str, bool)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setHorizontalSpacing(12)
        self._grid.setVerticalSpacing(4)
        self.boxes: dict[tuple[str, str], QCheckBox] = {}

    def set_mosaic(self, mosaic: Mosaic, off: Sequence[tuple[str, str]]) -> None:
        """Show a grid.

        Parameters
        ----------
        mosaic
            The counts.
        off
            Pairs of level and modality that are switched off.
        """
        clear(self._grid)
        self.boxes = {}
        for place, modality in enumerate(mosaic.modalities):
            head = text(modality.upper() if len(modality) <= 4 else modality, secondary=True, wrap=False)
            head.setAlignment(Qt.AlignmentFlag.AlignRight)
            self._grid.addWidget(head, 0, place + 1)
        for line, level in enumerate(mosaic.levels[:MOST_ROWS]):
            name = QLabel(level)
            name.setTextFormat(Qt.TextFormat.PlainText)
            self._grid.addWidget(name, line + 1, 0)
            for place, modality in enumerate(mosaic.modalities):
                count = int(mosaic.counts[line, place])
                is_off = (level, modality) in off
                if count or is_off:
                    box = self._box(mosaic.column, level, modality, count, on=not is_off)
                    self._grid.addWidget(box, line + 1, place + 1, Qt.AlignmentFlag.AlignRight)
                else:
                    nothing = text("–", secondary=True, wrap=False)
                    nothing.setAccessibleName(f"{level}: {modality} was not measured")
                    nothing.setToolTip("Not measured")
                    self._grid.addWidget(nothing, line + 1, place + 1, Qt.AlignmentFlag.AlignRight)
        if len(mosaic.levels) > MOST_ROWS:
            rest = text(f"and {len(mosaic.levels) - MOST_ROWS} more levels of '{mosaic.column}'", secondary=True)
            self._grid.addWidget(rest, MOST_ROWS + 1, 0, 1, len(mosaic.modalities) + 1)
        self._grid.setColumnStretch(0, 1)

    def _box(self, column: str, level: str, modality: str, count: int, *, on: bool) -> QCheckBox:
        box = QCheckBox(f"{count:,}" if on else "off")
        box.setFont(theme.tabular_font())
        box.setChecked(on)
        box.setLayoutDirection(Qt.LayoutDirection.RightToLeft)
        box.setAccessibleName(f"Use {modality} of {level}")
        box.setToolTip(f"Use {modality} of {level}")
        box.toggled.connect(lambda use: self.switched.emit(column, level, modality, use))
        self.boxes[level, modality] = box
        return box
