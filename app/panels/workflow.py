"""The five steps on the left, one open at a time, with the Train button always in sight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from qtpy.QtCore import QPointF, QRect, QRectF, QSize, Qt, Signal
from qtpy.QtGui import QFont, QPainter, QPaintEvent, QPen
from qtpy.QtWidgets import QAbstractButton, QFrame, QScrollArea, QSizePolicy, QVBoxLayout, QWidget

from cellweave.app import theme
from cellweave.app.panels.parts import button, set_look, text

Mark = Literal["", "check", "warn", "fail"]
TITLES = ("Data", "Covariates", "Model", "Loss weights", "Training")
MARK_TOKENS = {"check": "good", "warn": "warn", "fail": "bad"}
MARK_WORDS = {"": "not done", "check": "done", "warn": "done, with warnings", "fail": "needs attention"}


class StepHeader(QAbstractButton):
    """The line of a step: number, title, what was chosen, and a mark."""

    def __init__(self, number: int, title: str) -> None:
        super().__init__()
        self._number, self._title, self._summary = number, title, ""
        self._mark: Mark = ""
        self.setText(title)
        self.setCheckable(True)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAttribute(Qt.WidgetAttribute.WA_Hover)
        self.set_state("", "")

    def set_state(self, mark: Mark, summary: str) -> None:
        """Show another mark and another summary."""
        self._mark, self._summary = mark, summary
        self.setAccessibleName(f"Step {self._number}: {self._title}, {MARK_WORDS[mark]}")
        self.setAccessibleDescription(summary)
        self.setToolTip(summary)
        self.update()

    def sizeHint(self) -> QSize:  # noqa: N802
        """Return room for two lines."""
        metrics = self.fontMetrics()
        return QSize(metrics.horizontalAdvance("m") * 18, 2 * metrics.height() + 12)

    def paintEvent(self, event: QPaintEvent | None) -> None:  # noqa: N802
        """Draw the header."""
        now, metrics = theme.current(), self.fontMetrics()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        ground = now.shade("accent", "panel", 0.08) if self.isChecked() else now.shade("text", "panel", 0.04) if self.underMouse() else now.color("panel")
        painter.fillRect(self.rect(), ground)
        painter.setPen(now.color("border"))
        painter.drawLine(0, self.height() - 1, self.width(), self.height() - 1)
        side = round(metrics.height() * 1.35)
        circle = QRectF(12, (self.height() - side) / 2, side, side)
        painter.setPen(QPen(now.color("accent" if self.isChecked() else "border"), 1.4))
        painter.setBrush(now.color("accent") if self.isChecked() else Qt.BrushStyle.NoBrush)
        painter.drawEllipse(circle)
        painter.setPen(now.color("on_accent" if self.isChecked() else "secondary"))
        painter.drawText(circle, Qt.AlignmentFlag.AlignCenter, str(self._number))
        left, right = round(circle.right()) + 12, self.width() - 16 - side
        self._draw_words(painter, left, right)
        if self._mark:
            theme.icon(self._mark, MARK_TOKENS[self._mark]).paint(painter, QRect(right + 4, (self.height() - side) // 2, side, side))
        if self.hasFocus():
            painter.setPen(QPen(now.color("accent"), 1.5))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawRoundedRect(QRectF(self.rect()).adjusted(1.5, 1.5, -1.5, -2.5), 4, 4)
        painter.end()

    def _draw_words(self, painter: QPainter, left: int, right: int) -> None:
        now, metrics = theme.current(), self.fontMetrics()
        bold = QFont(self.font())
        bold.setWeight(QFont.Weight.DemiBold)
        line = metrics.height()
        top = (self.height() - (2 * line if self._summary else line)) // 2
        painter.setFont(bold)
        painter.setPen(now.color("text"))
        painter.drawText(QPointF(left, top + metrics.ascent()), self._title)
        if self._summary:
            painter.setFont(self.font())
            painter.setPen(now.color("secondary"))
            shown = metrics.elidedText(self._summary, Qt.TextElideMode.ElideRight, right - left)
            painter.drawText(QPointF(left, top + line + metrics.ascent()), shown)


class WorkflowPanel(QWidget):
    """The steps, and Train.

    Parameters
    ----------
    bodies
        One widget for each step, in order.
    parent
        The dock.
    """

    stepChanged = Signal(int)  # noqa: N815
    trainClicked = Signal()  # noqa: N815

    def __init__(self, bodies: Sequence[QWidget], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.headers: list[StepHeader] = []
        self.areas: list[QScrollArea] = []
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        for number, (title, body) in enumerate(zip(TITLES, bodies, strict=True)):
            header = StepHeader(number + 1, title)
            area = QScrollArea()
            area.setWidgetResizable(True)
            area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
            area.setFrameShape(QFrame.Shape.NoFrame)
            area.setWidget(body)
            area.setFocusPolicy(Qt.FocusPolicy.NoFocus)
            area.setVisible(False)
            header.clicked.connect(lambda _=False, step=number: self.open_step(step))
            layout.addWidget(header)
            layout.addWidget(area, 1)
            self.headers.append(header)
            self.areas.append(area)
        self.why = text("", secondary=True)
        self.why.setAccessibleName("Why Train is not possible")
        self.train = button("Train", "play", self.trainClicked.emit, primary=True)
        self.train.setObjectName("train")
        foot = QWidget()
        below = QVBoxLayout(foot)
        below.setContentsMargins(12, 8, 12, 12)
        below.setSpacing(theme.SPACE)
        below.addWidget(self.why)
        below.addWidget(self.train)
        layout.addWidget(foot)
        self.open_step(0)

    def open_step(self, step: int) -> None:
        """Open one step and close the others."""
        for number, (header, area) in enumerate(zip(self.headers, self.areas, strict=True)):
            header.setChecked(number == step)
            area.setVisible(number == step)
        self.stepChanged.emit(step)

    def step(self) -> int:
        """Return which step is open."""
        return next((number for number, header in enumerate(self.headers) if header.isChecked()), 0)

    def set_train(self, *, possible: bool, why: str, label: str = "Train", tone: str = "") -> None:
        """Say whether one can train, and if not why."""
        self.train.setEnabled(possible)
        self.train.setText(label)
        self.train.setAccessibleName(label)
        self.why.setText(why)
        self.why.setVisible(bool(why))
        set_look(self.why, "tone", tone)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """Return a width at which every step fits beside its scroll bar."""
        bar = self.areas[0].verticalScrollBar().sizeHint().width()
        widest = max(area.widget().minimumSizeHint().width() for area in self.areas)
        return QSize(max(self.fontMetrics().horizontalAdvance("m") * 24, widest + bar + 2), 300)
