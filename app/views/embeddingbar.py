"""The controls above an embedding."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import QSignalBlocker, QStringListModel, Qt, Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QCompleter,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QSlider,
    QToolButton,
    QWidget,
)
from superqt import QFlowLayout

from cellweave.app.theme import SPACE, icon
from cellweave.app.views.pointcloud import Mode
from cellweave.core.export.gene_values import SOURCES

MOST_BATCHES = 40
"""With more batches only the mean over all is offered."""


class GeneField(QWidget):
    """Genes to colour by, several separated by commas, and what of them: counts, or what the model decodes.

    Attributes
    ----------
    wanted
        Names of genes, the source, and for corrected expression the batch that cells are decoded as (empty for all).
    """

    wanted = Signal(list, str, str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.names = QLineEdit()
        self.names.setPlaceholderText("Gene, gene …")
        self.names.setAccessibleName("Colour by genes")
        self.names.setToolTip("Genes to colour by; several, separated by commas, stand side by side")
        self.names.setMinimumWidth(self.fontMetrics().horizontalAdvance("m") * 9)
        self.names.setMaximumWidth(self.fontMetrics().horizontalAdvance("m") * 10)  # so that the bar is one row in the smallest window
        self.names.returnPressed.connect(self.ask)
        self._model = QStringListModel(self)
        self._completer = QCompleter(self._model, self)
        self._completer.setCaseSensitivity(Qt.CaseSensitivity.CaseInsensitive)
        self._completer.setMaxVisibleItems(12)
        self._completer.setWidget(self.names)
        self._completer.activated.connect(self._complete)
        self.names.textEdited.connect(self._propose)
        self.source = QComboBox()
        self.source.setAccessibleName("What of the genes is shown")
        self.source.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.source.setMinimumContentsLength(8)
        self.source.activated.connect(lambda _index: self.ask())
        self.problem = QLabel("")
        self.problem.setProperty("tone", "bad")
        self.problem.setTextFormat(Qt.TextFormat.PlainText)
        self.problem.hide()
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(SPACE)
        layout.addWidget(self.names)
        layout.addWidget(self.source)
        self.set_sources((), decodes=False)

    def set_names(self, names: Sequence[str]) -> None:
        """Propose these names while one types."""
        self._model.setStringList(list(names))

    def set_sources(self, batches: Sequence[str], *, decodes: bool) -> None:
        """Offer what the shown run can say of a gene.

        Parameters
        ----------
        batches
            Batches that cells can be decoded as.
        decodes
            Whether there is a trained model that decodes expression.
        """
        before = self.source.currentData()
        self.source.clear()
        for name, (title, _unit, tip) in SOURCES.items():
            if name in ("denoised", "corrected") and not (decodes and (name == "denoised" or batches)):
                continue
            self._offer(title, (name, ""), tip)
        for batch in batches[:MOST_BATCHES] if decodes and len(batches) <= MOST_BATCHES else ():
            self._offer(f"Corrected as {batch}", ("corrected", batch), f"Every cell decoded as a cell of '{batch}'.")
        self.choose_source(before)
        longest = max(len(self.source.itemText(number)) for number in range(self.source.count()))
        self.source.setMinimumContentsLength(min(18, max(8, longest)))  # 'Corrected as ctrl' is read whole
        self.say("")

    def choose_source(self, wanted: tuple[str, str] | None) -> None:
        """Choose a source and a batch, where they are offered."""
        offered = [self.source.itemData(number) for number in range(self.source.count())]  # findData does not find tuples
        if wanted in offered:
            self.source.setCurrentIndex(offered.index(wanted))

    def _offer(self, title: str, data: tuple[str, str], tip: str) -> None:
        self.source.addItem(title, data)
        self.source.setItemData(self.source.count() - 1, tip, Qt.ItemDataRole.ToolTipRole)

    def forget_problem(self) -> None:
        """Another run is shown: what could not be found in the one before leaves the field."""
        if self.problem.text():
            self.names.clear()
            self.say("")

    def say(self, sentence: str) -> None:
        """Say what is wrong; an empty text takes it away."""
        self.problem.setText(sentence)
        self.problem.setVisible(bool(sentence))
        set_error(self.names, on=bool(sentence))

    def ask(self) -> None:
        """Ask for the genes that are named."""
        genes = [name.strip() for name in self.names.text().replace(";", ",").split(",") if name.strip()]
        if genes:
            source, batch = self.source.currentData()
            self.wanted.emit(genes, source, batch)

    def _propose(self, text: str) -> None:
        """Propose names for the gene that is being typed, the last one."""
        last = text.rsplit(",", 1)[-1].strip()
        if len(last) < 2:
            self._completer.popup().hide()
            return
        self._completer.setCompletionPrefix(last)
        self._completer.complete()

    def _complete(self, name: str) -> None:
        before, comma, _ = self.names.text().rpartition(",")
        self.names.setText(f"{before}, {name}" if comma else name)
        self.ask()


def set_error(field: QWidget, *, on: bool) -> None:
    """Mark a field whose content cannot be used."""
    field.setProperty("error", "true" if on else "false")
    field.style().unpolish(field)
    field.style().polish(field)


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
    genesWanted = Signal(list, str, str)  # noqa: N815
    referenceToggled = Signal(bool)  # noqa: N815

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.reference = QCheckBox("With the reference")
        self.reference.setToolTip("Show the new cells among those of the run that they were mapped onto")
        self.reference.toggled.connect(self.referenceToggled)
        self.lasso = _button("Lasso", "lasso", "Draw around cells to select them; Shift adds, Ctrl takes away (L)")
        self.lasso.setCheckable(True)
        self.lasso.toggled.connect(self.lassoToggled)
        self.fit = _button("", "grid", "Show all cells (0)")
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
        self.export = _button("", "figure", "Export as a figure")
        self.export.clicked.connect(self.exportWanted)
        self.genes = GeneField()
        self.genes.wanted.connect(self.genesWanted)
        row = QFlowLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(2 * SPACE)
        for group in (
            (self.lasso, self.fit), (self.mode,), (self.size_slider,),
            (QLabel("Panels"), self.fewer, self.more), (self.genes,), (self.export,),
        ):  # fmt: skip
            row.addWidget(self._side_by_side(group))
        self._with_reference = self._side_by_side((self.reference,))
        row.addWidget(self._with_reference)
        self._with_reference.hide()
        row.addWidget(self.genes.problem)

    def _side_by_side(self, group: tuple[QWidget, ...]) -> QWidget:
        holder = QWidget(self)
        inner = QHBoxLayout(holder)
        inner.setContentsMargins(0, 0, 0, 0)
        inner.setSpacing(SPACE)
        for widget in group:
            inner.addWidget(widget)
        holder.setMinimumHeight(self.mode.sizeHint().height())
        return holder

    def offer_reference(self, *, on: bool | None) -> None:
        """Offer to show the cells of the reference too, on or off; None where there are none."""
        with QSignalBlocker(self.reference):
            self.reference.setChecked(bool(on))
        self._with_reference.setVisible(on is not None)

    def set_gene_names(self, names: Sequence[str]) -> None:
        """Propose these names in the field of genes."""
        self.genes.set_names(names)

    def set_sources(self, batches: Sequence[str], *, decodes: bool) -> None:
        """Offer what the shown run can say of a gene (see :meth:`GeneField.set_sources`)."""
        self.genes.set_sources(batches, decodes=decodes)

    def show_genes(self, genes: Sequence[str], source: str, batch: str) -> None:
        """Show in the field what was asked for elsewhere, and that nothing is wrong with it so far."""
        self.genes.names.setText(", ".join(genes))
        self.genes.choose_source((source, batch))
        self.genes.say("")

    def say_gene_problem(self, sentence: str) -> None:
        """Say what is wrong with the genes; an empty text takes it away."""
        self.genes.say(sentence)

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
