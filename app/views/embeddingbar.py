"""The controls above an embedding."""

from __future__ import annotations

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QComboBox, QHBoxLayout, QLabel, QSlider, QToolButton, QWidget
from superqt import QFlowLayout

from cellweave.app.theme import SPACE, icon
from cellweave.app.views.pointcloud import Mode


class EmbeddingBar(QWidget):
    """Lasso, fit, way of drawing, size of the dots, number of panels, export; it flows into more lines where it is narrow.

    Parameters
    ----------
    parent
        Owner.
    """

    lassoToggled = Signal(bool)  # noqa: N815
    fitWanted = Signal()  # noqa: N815
    modeChosen = Signal(str)  # noqa: N815
    scaleChanged = Signal(float)  # noqa: N815
    moreWanted = Signal()  # noqa: N815
    fewerWanted = Signal()  # noqa: N815
    exportWanted = Signal()  # noqa: N815

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.lasso = _button("Lasso", "lasso", "Draw around cells to select them; Shift adds, Ctrl takes away (L)")
        self.lasso.setCheckable(True)
        self.lasso.toggled.connect(self.lassoToggled)
        self.fit = _button("Fit", "grid", "Show all cells (0)")
        self.fit.clicked.connect(self.fitWanted)
        self.more = _button("", "plus", "Add a panel")
        self.more.clicked.connect(self.moreWanted)
        self.fewer = _button("", "minus", "Take the last panel away")
        self.fewer.clicked.connect(self.fewerWanted)
        self.mode = QComboBox()
        for text, mode in (("Auto", "auto"), ("Dots", "dots"), ("Density", "density")):
            self.mode.addItem(text, mode)
        self.mode.setAccessibleName("Draw as")
        self.mode.setToolTip("Dots, or the mean colour of the cells of each pixel; auto takes dots up to 100,000 cells in sight")
        self.mode.activated.connect(lambda: self.modeChosen.emit(self.mode.currentData()))
        self.size_slider = QSlider(Qt.Orientation.Horizontal)
        self.size_slider.setRange(-20, 20)
        self.size_slider.setPageStep(5)
        self.size_slider.setAccessibleName("Size of the dots")
        self.size_slider.setToolTip("Size of the dots")
        self.size_slider.valueChanged.connect(lambda: self.scaleChanged.emit(self.scale()))
        self.export = _button("Export…", "figure", "Export as a figure")
        self.export.clicked.connect(self.exportWanted)
        row = QFlowLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(2 * SPACE)
        for group in (
            (self.lasso, self.fit), (_label("Draw as", self.mode), self.mode), (_label("Size", self.size_slider), self.size_slider),
            (QLabel("Panels"), self.fewer, self.more), (self.export,),
        ):  # fmt: skip
            row.addWidget(self._side_by_side(group))

    def _side_by_side(self, group: tuple[QWidget, ...]) -> QWidget:
        holder = QWidget(self)
        inner = QHBoxLayout(holder)
        inner.setContentsMargins(0, 0, 0, 0)
        inner.setSpacing(SPACE)
        for widget in group:
            inner.addWidget(widget)
        holder.setMinimumHeight(self.mode.sizeHint().height())
        return holder

    def scale(self) -> float:
        """Return how much larger than usual the dots shall be."""
        return float(2 ** (self.size_slider.value() / 10))

    def drawing_mode(self) -> Mode:
        """Return the chosen way of drawing."""
        return self.mode.currentData()

    def show_mode(self, mode: Mode) -> None:
        """Show a way of drawing without saying that it was chosen."""
        self.mode.setCurrentIndex(self.mode.findData(mode))

    def enable(self, *, cells: bool, more: bool, fewer: bool) -> None:
        """Enable what can be done: with cells at all, with another panel, with a panel less."""
        for widget in (self.lasso, self.fit, self.export, self.mode, self.size_slider):
            widget.setEnabled(cells)
        self.more.setEnabled(cells and more)
        self.fewer.setEnabled(cells and fewer)


def _button(text: str, picture: str, tip: str) -> QToolButton:
    """Return a button; a key named in its tip works while a panel has the focus, so that it is not taken from anybody else."""
    button = QToolButton()
    button.setText(text)
    button.setIcon(icon(picture))
    if text:
        button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
    button.setToolTip(tip)
    button.setAccessibleName(tip)
    return button


def _label(text: str, of: QWidget) -> QLabel:
    label = QLabel(text)
    label.setBuddy(of)
    return label
