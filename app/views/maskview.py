"""The Masks view: which blocks of features were measured in which groups of cells, and what training hides of them."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QPoint, QRectF, QSize, Qt, Signal
from qtpy.QtGui import QColor, QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QPen
from qtpy.QtWidgets import QComboBox, QFrame, QScrollArea, QSizePolicy, QVBoxLayout, QWidget

from cellweave.app.panels.parts import row, text, tool
from cellweave.app.theme import SPACE, current, notifier, series_color, tabular_font
from cellweave.app.views.cards import HoverCard
from cellweave.app.views.runview import RunView
from cellweave.core.spec.modalities import modality_kind
from cellweave.core.wording import counted

if TYPE_CHECKING:
    from cellweave.app.state.results import RunResults
    from cellweave.app.views.context import ViewContext
    from cellweave.core.analysis.mask_pattern import MaskPattern

LETTERS = 18
TALL, LEAST_WIDE = 30, 9


class MaskPicture(QWidget):
    """Groups of cells down, blocks of features across, each modality in its colour; the fuller a field, the more of it was measured.

    Attributes
    ----------
    chosen
        A field was chosen: its row and its column.
    """

    chosen = Signal(int, int)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAccessibleName("Pattern of what was measured")
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setMouseTracking(True)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Minimum)
        self.pattern: MaskPattern | None = None
        self.hiding = False
        self.at = (-1, -1)
        self.card = HoverCard(self)
        notifier().changed.connect(self.update)

    def set_pattern(self, pattern: MaskPattern | None) -> None:
        """Show another pattern."""
        self.pattern, self.at = pattern, (-1, -1)
        self.card.hide()
        self.updateGeometry()
        self.update()

    def set_hiding(self, hiding: bool) -> None:
        """Show what training hides instead of what was measured."""
        self.hiding = hiding
        self.update()

    # ------------------------------------------------------------------ geometry

    def _left(self) -> int:
        metrics = self.fontMetrics()
        if self.pattern is None:
            return 0
        widest = max((metrics.horizontalAdvance(name) for name in self.pattern.rows), default=0)
        numbers = metrics.horizontalAdvance("000,000 cells")
        return min(widest + 2 * SPACE, metrics.horizontalAdvance("m") * LETTERS) + numbers + 4 * SPACE

    def _top(self) -> int:
        return 2 * self.fontMetrics().height() + 3 * SPACE

    def _edges(self) -> np.ndarray:
        """Return the left edge of every block and the right edge of the last; wide as the root of its features, with a gap between modalities."""
        pattern = self.pattern
        assert pattern is not None
        left, room = self._left(), self.width() - self._left() - 2 * SPACE
        gaps = np.array([float(number > 0 and pattern.modality[number] != pattern.modality[number - 1]) for number in range(len(pattern.columns))])
        room -= int(gaps.sum()) * 3 * SPACE
        share = np.sqrt(pattern.n_features.astype(float))
        # A modality has a third at most, so that one of many chromosomes does not crowd out the others.
        names = list(dict.fromkeys(pattern.modality))
        whole = {name: sum(share[number] for number, own in enumerate(pattern.modality) if own == name) for name in names}
        top = 0.6 * sum(whole.values())
        share = np.array([share[number] * min(1.0, top / whole[name]) for number, name in enumerate(pattern.modality)])
        wide = np.maximum(share / share.sum() * room, LEAST_WIDE)
        starts = left + np.concatenate([[0], np.cumsum(wide)[:-1]]) + np.cumsum(gaps) * 3 * SPACE
        return np.stack([starts, starts + wide])

    def _field(self, row_number: int, column: int) -> QRectF:
        edges = self._edges()
        return QRectF(edges[0, column], self._top() + row_number * TALL, edges[1, column] - edges[0, column] - 1, TALL - 3)

    def sizeHint(self) -> QSize:  # noqa: N802
        """Return room for every row and the least width of every block."""
        if self.pattern is None:
            return QSize(200, 80)
        return QSize(self._left() + LEAST_WIDE * len(self.pattern.columns) + 60, self._top() + TALL * len(self.pattern.rows) + SPACE)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """Return the size hint: the picture lies in a scroll area."""
        return self.sizeHint()

    # ------------------------------------------------------------------ drawing

    def values(self) -> np.ndarray:
        """Return what is shown, ``(n_rows, n_columns)``."""
        assert self.pattern is not None
        if self.hiding and self.pattern.hidden is not None:
            return self.pattern.hidden
        return self.pattern.measured

    def paintEvent(self, event: QPaintEvent | None) -> None:  # noqa: N802
        """Draw names, fields and what is chosen."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        pattern = self.pattern
        if pattern is None:
            painter.end()
            return
        self._draw_titles(painter, pattern)
        values, edges, ground = self.values(), self._edges(), current().color("panel")
        names = list(dict.fromkeys(pattern.modality))
        for number in range(len(pattern.rows)):
            self._draw_name(painter, pattern, number)
            for column in range(len(pattern.columns)):
                field = QRectF(edges[0, column], self._top() + number * TALL, edges[1, column] - edges[0, column] - 1, TALL - 3)
                colour = series_color(names.index(pattern.modality[column]))
                self._draw_field(painter, field, values[number, column], colour, ground, there=pattern.measured[number, column] > 0)
        if self.at[0] >= 0:
            painter.setPen(QPen(current().color("text"), 1.5))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawRoundedRect(self._field(*self.at).adjusted(-1, -1, 1, 1), 2, 2)
        if self.hasFocus():
            painter.setPen(QPen(current().color("accent"), 1))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawRect(self.rect().adjusted(0, 0, -1, -1))
        painter.end()

    def _draw_titles(self, painter: QPainter, pattern: MaskPattern) -> None:
        edges, metrics, line = self._edges(), self.fontMetrics(), self.fontMetrics().height()
        for name in dict.fromkeys(pattern.modality):
            own = [number for number, modality in enumerate(pattern.modality) if modality == name]
            left, right = edges[0, own[0]], edges[1, own[-1]]
            room = QRectF(left, SPACE, max(right - left, 40), line)
            n_features = int(pattern.n_features[own].sum())
            painter.setPen(current().color("text"))
            blocks = f", {len(own)} blocks" if len(own) > 1 else ""
            title = modality_kind(name).label
            longest = (f"{title}  {counted(n_features, 'feature')}{blocks}", f"{title}  {n_features:,}", title)
            words = next((each for each in longest if metrics.horizontalAdvance(each) <= room.width()), title)
            painter.drawText(room, Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter, metrics.elidedText(words, Qt.TextElideMode.ElideRight,
            round(room.width())))
            if len(own) == 1:
                continue
            painter.setPen(current().color("secondary"))
            end = 0.0
            for column in own:
                words = pattern.columns[column].removeprefix(f"{name} ").removeprefix("chr")
                middle, wide = (edges[0, column] + edges[1, column]) / 2, metrics.horizontalAdvance(words)
                if middle - wide / 2 < end:
                    continue
                painter.drawText(QRectF(middle - wide, SPACE + line, 2 * wide, line), Qt.AlignmentFlag.AlignCenter, words)
                end = middle + wide / 2 + SPACE

    def _draw_name(self, painter: QPainter, pattern: MaskPattern, number: int) -> None:
        metrics = self.fontMetrics()
        top, left = self._top() + number * TALL, self._left()
        numbers = metrics.horizontalAdvance("000,000 cells")
        painter.setFont(self.font())
        painter.setPen(current().color("text" if number == self.at[0] else "secondary"))
        room = QRectF(0, top, left - numbers - 4 * SPACE, TALL - 3)
        painter.drawText(room, Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter, metrics.elidedText(pattern.rows[number],
        Qt.TextElideMode.ElideRight, round(room.width())))
        painter.setFont(tabular_font())
        painter.setPen(current().color("secondary"))
        where = QRectF(left - numbers - 4 * SPACE, top, numbers + SPACE, TALL - 3)
        painter.drawText(where, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, counted(int(pattern.n_cells[number]), "cell"))
        painter.setFont(self.font())

    def _draw_field(self, painter: QPainter, field: QRectF, share: float, colour: QColor, ground: QColor, *, there: bool) -> None:
        painter.setPen(QPen(current().color("border"), 1, Qt.PenStyle.SolidLine if there else Qt.PenStyle.DotLine))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawRoundedRect(field.adjusted(0.5, 0.5, -0.5, -0.5), 2, 2)
        if share <= 0:
            return
        painter.setPen(Qt.PenStyle.NoPen)
        if self.hiding:
            painter.setBrush(colour)
            painter.setOpacity(0.18)
            painter.drawRoundedRect(field, 2, 2)
            painter.setOpacity(1.0)
        full = QRectF(field)
        full.setTop(field.bottom() - share * field.height())
        painter.setBrush(colour)
        painter.drawRoundedRect(full, 2, 2)
        words = f"{share:.0%}"
        if (share < 0.995 or self.hiding) and self.fontMetrics().horizontalAdvance(words) + 2 * SPACE < field.width():
            over = share > 0.62
            painter.setPen(QColor("#FFFFFF") if over and colour.lightness() < 150 else QColor("#101418") if over else current().color("text"))
            painter.drawText(field, Qt.AlignmentFlag.AlignCenter, words)

    # ------------------------------------------------------------------ mouse and keys

    def field_at(self, point: QPoint) -> tuple[int, int]:
        """Return row and column under a point, or -1 each."""
        if self.pattern is None:
            return -1, -1
        row_number, edges = (point.y() - self._top()) // TALL, self._edges()
        inside = np.flatnonzero((edges[0] <= point.x()) & (point.x() < edges[1]))
        if not 0 <= row_number < len(self.pattern.rows) or point.y() < self._top() or not len(inside):
            return -1, -1
        return int(row_number), int(inside[0])

    def words(self, row_number: int, column: int) -> str:
        """Return what is said of a field."""
        pattern = self.pattern
        assert pattern is not None
        share = pattern.measured[row_number, column]
        measured = "not measured" if share == 0 else f"{share:.0%} of {int(pattern.n_features[column]):,} features measured"
        hidden = "" if pattern.hidden is None or share == 0 else f", {pattern.hidden[row_number, column]:.0%} of them hidden in a step"
        return f"{pattern.rows[row_number]}, {pattern.columns[column]}: {measured}{hidden}"

    def mouseMoveEvent(self, event: QMouseEvent | None) -> None:  # noqa: N802
        """Say what is under the cursor."""
        assert event is not None
        at = self.field_at(event.position().toPoint())
        if at[0] < 0:
            self.card.hide()
            return
        name, _, rest = self.words(*at).partition(": ")
        self.card.show_at(event.position().toPoint(), f"<b>{html.escape(name)}</b><br>{html.escape(rest)}")

    def leaveEvent(self, event: object) -> None:  # noqa: N802
        """Take the card away."""
        self.card.hide()

    def mousePressEvent(self, event: QMouseEvent | None) -> None:  # noqa: N802
        """Choose a field."""
        assert event is not None
        self._choose(*self.field_at(event.position().toPoint()))

    def keyPressEvent(self, event: QKeyEvent | None) -> None:  # noqa: N802
        """Move from field to field."""
        assert event is not None
        steps = {Qt.Key.Key_Up: (-1, 0), Qt.Key.Key_Down: (1, 0), Qt.Key.Key_Left: (0, -1), Qt.Key.Key_Right: (0, 1)}
        step = steps.get(Qt.Key(event.key()))
        if step is None or self.pattern is None:
            super().keyPressEvent(event)
            return
        down, across = (max(0, here) + by if here >= 0 else 0 for here, by in zip(self.at, step, strict=True))
        self._choose(min(max(down, 0), len(self.pattern.rows) - 1), min(max(across, 0), len(self.pattern.columns) - 1))

    def _choose(self, row_number: int, column: int) -> None:
        self.at = (row_number, column)
        self.setAccessibleDescription(self.words(row_number, column) if row_number >= 0 else "")
        self.update()
        self.chosen.emit(row_number, column)


class MaskView(RunView):
    """The pattern of a run's data as its model reads it, and what a training step hides."""

    shows = "The pattern of what was measured appears here: groups of cells by blocks of features, and what training hides of them."
    no_figure = "The masks have no figure of their own. Export their picture as PNG, or the shares as CSV, with the buttons above it."

    def __init__(self, context: ViewContext, parent: QWidget | None = None) -> None:
        super().__init__(context, parent)
        self.picture = MaskPicture()
        self.picture.chosen.connect(self._say_field)
        self.which = QComboBox()
        self.which.addItem("What was measured", "measured")
        self.which.addItem("What a step hides", "hidden")
        self.which.setItemData(0, "Which share of the features of a block was measured in a group of cells", 3)  # the tooltip
        self.which.setItemData(1, "Which share of what was measured a training step hides, on average: a whole modality, or features by chance", 3)
        self.which.setAccessibleName("What is shown")
        self.which.currentIndexChanged.connect(self._show_hidden)
        self.whole = text("", secondary=True, wrap=False)
        self.field = text("", secondary=True)
        self.field.setAccessibleName("The chosen field")
        self.png = tool("figure", "Export the picture as PNG", self._export_png)
        self.csv = tool("table", "Export the pattern as CSV", self._export_csv)
        scroll = QScrollArea()
        scroll.setFrameShape(QFrame.Shape.NoFrame)
        scroll.setWidgetResizable(True)
        scroll.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        scroll.setWidget(self.picture)
        layout = QVBoxLayout(self.body)
        layout.setContentsMargins(12, 8, 12, 8)
        layout.setSpacing(8)
        layout.addLayout(row(self.which, 8, self.whole, None, self.png, self.csv))
        layout.addWidget(scroll, 1)
        layout.addWidget(self.field)

    def show_run(self, results: RunResults) -> None:
        """Read data and masks in a thread."""
        self.set_message("Reading what was measured…")

        def work(report: Any) -> MaskPattern:
            from cellweave.core.analysis.mask_pattern import mask_pattern

            return mask_pattern(results.spec, self.context.study(results, report))

        self.work(work, self._take)

    def clear(self) -> None:
        """Forget the pattern."""
        self.picture.set_pattern(None)
        self.field.setText("")

    def _take(self, pattern: MaskPattern) -> None:
        self.picture.set_pattern(pattern)
        self.which.setVisible(pattern.hidden is not None)
        if pattern.hidden is None:
            self.which.setCurrentIndex(0)
        self._say_whole()
        self.set_message("")

    def _show_hidden(self, *_: object) -> None:
        self.picture.set_hiding(self.which.currentData() == "hidden")
        self._say_whole()

    def _say_whole(self) -> None:
        pattern = self.picture.pattern
        if pattern is None:
            return
        hiding = self.which.currentData() == "hidden"
        share = pattern.share_hidden() if hiding else pattern.share_measured()
        what = "of what was measured is hidden in a step" if hiding else "of all values were measured"
        more = f"; {counted(pattern.left_out, 'smaller group is', 'smaller groups are')} not shown" if pattern.left_out else ""
        self.whole.setText(f"{share:.0%} {what}{more}")

    def _say_field(self, row_number: int, column: int) -> None:
        self.field.setText(self.picture.words(row_number, column) if row_number >= 0 else "")

    def _export_png(self) -> None:
        image = self.picture.grab().toImage()
        self.context.save("Export the picture", "-masks.png", "PNG (*.png)", lambda out: _save_image(image, out))

    def _export_csv(self) -> None:
        pattern = self.picture.pattern
        if pattern is not None:
            self.context.save_csv("masks", pattern.as_csv)


def _save_image(image: Any, out: Any) -> None:
    if not image.save(str(out), "PNG"):
        message = "the picture could not be written"
        raise OSError(message)
