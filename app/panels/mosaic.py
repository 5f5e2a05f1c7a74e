"""The mosaic grid: which batch was measured in which modality, whether the batches hang together; a click leaves one out."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QCheckBox, QGridLayout, QLabel, QVBoxLayout, QWidget

from cellweave.app import theme
from cellweave.app.panels.parts import clear, set_look, text
from cellweave.core.spec.modalities import modality_kind
from cellweave.core.study.mosaic import Mosaic
from cellweave.core.wording import counted

MOST_ROWS = 60
WHAT_IF = "Switch a cell off to ask what if it had not been measured: its counts are kept aside, and imputed values can be compared with them."


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
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(8)
        self._grid = QGridLayout()
        self._grid.setHorizontalSpacing(12)
        self._grid.setVerticalSpacing(4)
        layout.addLayout(self._grid)
        self.connection = text("", selectable=True)
        self.connection.setAccessibleName("Whether the batches are connected")
        self.hint = text(WHAT_IF, secondary=True)
        layout.addWidget(self.connection)
        layout.addWidget(self.hint)
        self.boxes: dict[tuple[str, str], QCheckBox] = {}

    def set_mosaic(self, mosaic: Mosaic, off: Sequence[tuple[str, str]], *, together: bool = True) -> None:
        """Show a grid.

        Parameters
        ----------
        mosaic
            The counts.
        off
            Pairs of level and modality that are switched off.
        together
            Whether the model is trained on all modalities together, so that the batches must be connected.
        """
        clear(self._grid)
        self.boxes = {}
        # A batch whose last modality was switched off has no cell in the study any more, but can be switched on again.
        gone = [level for level, _ in off if level not in mosaic.levels]
        levels = [*mosaic.levels, *dict.fromkeys(gone)]
        modalities = [*mosaic.modalities, *dict.fromkeys(modality for _, modality in off if modality not in mosaic.modalities)]  # likewise
        for place, modality in enumerate(modalities):
            head = text(modality_kind(modality).label, secondary=True, wrap=False)
            head.setAlignment(Qt.AlignmentFlag.AlignRight)
            self._grid.addWidget(head, 0, place + 1)
        for line, level in enumerate(levels[:MOST_ROWS], 1):
            name = QLabel(level)
            name.setTextFormat(Qt.TextFormat.PlainText)
            self._grid.addWidget(name, line, 0)
            for place, modality in enumerate(modalities):
                known = level in mosaic.levels and modality in mosaic.modalities
                count, held = (int(part[mosaic.levels.index(level), place]) if known else 0 for part in (mosaic.counts, mosaic.held_out))
                # Absolute, since a box that is written from right to left would otherwise take right for left.
                right = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignAbsolute
                self._grid.addWidget(self._cell(mosaic.column, level, modality, count, held, is_off=(level, modality) in off), line, place + 1, right)
        if len(levels) > MOST_ROWS:
            rest = text(f"and {counted(len(levels) - MOST_ROWS, 'more level')} of '{mosaic.column}'", secondary=True)
            self._grid.addWidget(rest, MOST_ROWS + 1, 0, 1, len(modalities) + 1)
        self._totals(mosaic, min(len(levels), MOST_ROWS) + 2)
        self._grid.setColumnStretch(0, 1)
        self._show_connection(mosaic, together=together)

    def _totals(self, mosaic: Mosaic, line: int) -> None:
        if len(mosaic.levels) < 2:
            return
        self._grid.addWidget(text("All", secondary=True, wrap=False), line, 0)
        for place, n in enumerate(mosaic.counts.sum(axis=0)):
            total = text(f"{int(n):,}", secondary=True, wrap=False)
            total.setFont(theme.tabular_font())
            self._grid.addWidget(total, line, place + 1, Qt.AlignmentFlag.AlignRight)

    def _show_connection(self, mosaic: Mosaic, *, together: bool) -> None:
        several = len(mosaic.modalities) > 1
        self.connection.setVisible(together and several)
        if together and several:
            apart = len(mosaic.islands_of_cells()) > 1
            self.connection.setText(mosaic.sentence() + (" Nothing links them: such data cannot be trained on together." if apart else ""))
            set_look(self.connection, "tone", "bad" if apart else "good")

    def _cell(self, column: str, level: str, modality: str, count: int, held: int, *, is_off: bool) -> QWidget:
        if count or is_off:
            return self._box(column, level, modality, count, held or count, on=not is_off)
        nothing = text("–", secondary=True, wrap=False)
        nothing.setAccessibleName(f"{level}: {modality} was not measured")
        nothing.setToolTip("Not measured")
        return nothing

    def _box(self, column: str, level: str, modality: str, count: int, held: int, *, on: bool) -> QCheckBox:
        box = QCheckBox(f"{count:,}" if on else f"{held:,}" if held else "off")
        font = theme.tabular_font()
        font.setStrikeOut(bool(not on and held))  # words would widen the column of every batch
        box.setFont(font)
        box.setChecked(on)
        box.setLayoutDirection(Qt.LayoutDirection.RightToLeft)
        box.setAccessibleName(f"Use {modality} of {level}")
        label = modality_kind(modality).label
        if on:
            box.setToolTip(f"Use {label} of {level}")
        elif held:
            box.setToolTip(
                f"{label} of {level} is held out: the model is not shown it, and the counts of {counted(held, 'cell')} are the truth for "
                "what it imputes."
            )
            box.setAccessibleDescription(f"{counted(held, 'cell')} held out")
        else:
            box.setToolTip(f"{label} of {level} is switched off. Nothing else was measured in these cells, so they are left out.")
        box.toggled.connect(lambda use: self.switched.emit(column, level, modality, use))
        self.boxes[level, modality] = box
        return box
