"""The figure dialog: options on the left, the figure as it will be on the right."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError
from qtpy.QtCore import QSize, Qt, QTimer, Signal
from qtpy.QtGui import QGuiApplication, QPainter, QPaintEvent, QPixmap
from qtpy.QtWidgets import (
    QComboBox,
    QDialog,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from cellweave.app.forms import SpecForm
from cellweave.app.state import figure_memory, paths
from cellweave.app.theme import SPACE, current, icon
from cellweave.core.analysis.jobs import JobUpdate, UpdateKind
from cellweave.core.export.figure_options import CONTENT, CURVES, FIGURES, IMPUTATION, PAGE, POINTS, FigureOptions
from cellweave.core.export.script import figure_script
from cellweave.core.spec import explain

REDRAW_MS = 250
FORMATS = "PDF, points as pixels inside (*.pdf);;SVG, points as pixels inside (*.svg);;PNG (*.png)"
USED_BY = {
    "losses": (PAGE, CURVES, "title", "legend"),
    "embedding": (PAGE, POINTS, CONTENT),
    "scores": (PAGE, "title", "legend"),
    "metrics": (PAGE, "title", "legend", "runs"),
    "loadings": (PAGE, "title", "legend", "genes_each"),
    "ambient": (PAGE, "title", "genes_each", "colour_map"),
    "attribution": (PAGE, POINTS, "title", "legend", "columns", "attribution_score"),
    "modalities": (PAGE, POINTS, "title", "legend", "columns"),
    "imputation": (PAGE, IMPUTATION, "title"),
    "volcano": (PAGE, "title", "legend", "point_size", "opacity", "comparison", "label_genes"),
}
"""Groups and single options that a figure heeds; the dialog shows no others."""


class Drawing(Protocol):
    """What draws figures away from the window: the analysis process, or the same tasks in this one."""

    def submit(self, task: str, *, listener: Callable[[JobUpdate], None] | None = None, **arguments: Any) -> int:
        """Queue a job; the listener may be called in any thread."""


class Preview(QWidget):
    """A picture at the largest size that fits, sharp on any screen, with words where there is none.

    Parameters
    ----------
    parent
        Owner.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._picture = QPixmap()
        self._words = ""
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setAccessibleName("Preview of the figure")

    def show_picture(self, picture: QPixmap) -> None:
        """Show a picture."""
        self._picture, self._words = picture, ""
        self.update()

    def show_words(self, words: str) -> None:
        """Show words in place of the picture, or none."""
        self._words = words
        self.setAccessibleDescription(words)
        self.update()

    def picture(self) -> QPixmap:
        """Return the picture."""
        return self._picture

    def words(self) -> str:
        """Return the words."""
        return self._words

    def sizeHint(self) -> QSize:  # noqa: N802
        """Return room for a figure that can be judged."""
        line = self.fontMetrics().height()
        return QSize(44 * line, 32 * line)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """Return half of that."""
        return self.sizeHint() / 2

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        """Draw the picture on a ground that shows where the figure ends."""
        painter = QPainter(self)
        theme = current()
        painter.fillRect(self.rect(), theme.color("window"))
        room = self.rect().adjusted(2 * SPACE, 2 * SPACE, -2 * SPACE, -2 * SPACE)
        if not self._picture.isNull() and not self._words:
            ratio = self.devicePixelRatioF()
            scaled = self._picture.scaled(
                room.size() * ratio, Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation
            )
            scaled.setDevicePixelRatio(ratio)
            size = scaled.deviceIndependentSize()
            x = room.x() + (room.width() - size.width()) / 2
            y = room.y() + (room.height() - size.height()) / 2
            painter.setPen(theme.color("border"))
            painter.drawRect(round(x) - 1, round(y) - 1, round(size.width()) + 1, round(size.height()) + 1)
            painter.drawPixmap(round(x), round(y), scaled)
        elif self._words:
            painter.setPen(theme.color("secondary"))
            painter.drawText(room, Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextWordWrap, self._words)
        painter.end()


class FigureDialog(QDialog):
    """Chooses a figure of a run, shows it as it will be, and writes it.

    Figures are drawn in the analysis process, one at a time; what is changed meanwhile is drawn afterwards, once.

    Parameters
    ----------
    run_folder
        The run.
    parent
        Owner.
    process
        Draws: ``submit("figure", ...)`` as :class:`~cellweave.core.analysis.process.AnalysisProcess` has it.
    what
        Figure shown first: ``embedding``, ``losses`` or ``scores``.
    options
        Options to begin with; None takes those of the last figure.
    start
        Options that are set on top of these, such as the columns that the embedding shows.
    columns
        Names offered for colouring.
    memory
        File that the options are remembered in; None takes the program's own folder.
    """

    saved = Signal(str)
    _updated = Signal(object)

    def __init__(
        self,
        run_folder: str | Path,
        parent: QWidget | None,
        process: Drawing,
        *,
        what: str = "embedding",
        options: FigureOptions | None = None,
        start: Mapping[str, Any] | None = None,
        columns: Sequence[str] = (),
        memory: Path | None = None,
    ) -> None:
        super().__init__(parent)
        self._run, self._process = Path(run_folder), process
        self._memory = memory or paths.home() / "figure.json"
        before = options or figure_memory.load_options(self._memory)
        self._options = FigureOptions.model_validate({**before.model_dump(), **(start or {})})
        self._folder = tempfile.TemporaryDirectory(prefix="cellweave-figure-", ignore_cleanup_errors=True)
        self._preview_job: str = ""
        self._save_to: Path | None = None
        self._count = 0
        self._stale = False
        self._open = True
        self._last_folder = str(Path.home())
        self._ask_path: Callable[[str], str] = self._ask
        self.setWindowTitle("Figure")
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(REDRAW_MS)
        self._timer.timeout.connect(self._draw)
        self._updated.connect(self._take, Qt.ConnectionType.QueuedConnection)
        self._build(what, columns)
        self._show_kind()
        self._draw()

    # -- building --------------------------------------------------------------------------------------------

    def _build(self, what: str, columns: Sequence[str]) -> None:
        self._what = QComboBox(self)
        self._what.setAccessibleName("Figure")
        for name, title in FIGURES.items():
            self._what.addItem(title, name)
        self._what.setCurrentIndex(self._what.findData(what))
        self._what.activated.connect(self._kind_chosen)
        label = QLabel("Figure", self)
        label.setBuddy(self._what)
        head = QHBoxLayout()
        head.addWidget(label)
        head.addWidget(self._what, 1)
        self.form = SpecForm.for_class(FigureOptions, self)
        self.form.set_spec(self._options)
        self.form.set_suggestions("columns", columns)
        self.form.changed.connect(self._changed)
        left = QVBoxLayout()
        left.setSpacing(2 * SPACE)
        left.addLayout(head)
        left.addWidget(self.form, 1)
        self.preview = Preview(self)
        self._size = QLabel("", self)
        self._size.setProperty("secondary", "true")
        self._problem = QLabel("", self)
        self._problem.setProperty("tone", "bad")
        self._problem.setWordWrap(True)
        self._problem.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self._problem.hide()
        right = QVBoxLayout()
        right.setSpacing(2 * SPACE)
        right.addWidget(self.preview, 1)
        right.addWidget(self._problem)
        right.addLayout(self._build_buttons())
        whole = QHBoxLayout(self)
        whole.setSpacing(4 * SPACE)
        whole.addLayout(left, 2)
        whole.addLayout(right, 5)
        line = self.fontMetrics().height()
        self.resize(70 * line, 42 * line)

    def _build_buttons(self) -> QHBoxLayout:
        self._save = QPushButton("Save as…", self)
        self._save.setIcon(icon("save", "on_accent"))
        self._save.setProperty("primary", "true")
        self._save.setToolTip("Write the figure as PDF, SVG or PNG")
        self._save.clicked.connect(self.save_as)
        self._script = QPushButton("Copy as Python script", self)
        self._script.setToolTip("Put a script on the clipboard that draws this figure again")
        self._script.clicked.connect(self.copy_script)
        self._picture = QPushButton("Copy image", self)
        self._picture.clicked.connect(self.copy_image)
        self._picture.setEnabled(False)
        close = QPushButton("Close", self)
        close.clicked.connect(self.reject)
        row = QHBoxLayout()
        row.setSpacing(2 * SPACE)
        row.addWidget(self._size, 1)
        for button in (self._picture, self._script, close, self._save):
            button.setAutoDefault(False)  # Enter ends the typing of a number and must not save
            row.addWidget(button)
        return row

    # -- options ---------------------------------------------------------------------------------------------

    def options(self) -> FigureOptions:
        """Return the options as they are set."""
        return self._options

    def what(self) -> str:
        """Return which figure is shown."""
        return str(self._what.currentData())

    def _kind_chosen(self) -> None:
        self._show_kind()
        self._draw_soon()

    def _show_kind(self) -> None:
        used = USED_BY[self.what()]
        self.form.set_left_out({path for path in self.form.paths() if not {self.form.row(path).field.group, path} & set(used)})

    def _changed(self, changes: dict[str, Any]) -> None:
        try:
            self._options = FigureOptions.model_validate({**self._options.model_dump(), **changes})
        except ValidationError as error:
            for path in changes:
                self.form.set_error(path, explain(error).removeprefix("The spec is not valid: "))
            return
        self.form.set_spec(self._options)
        self._draw_soon()

    # -- drawing ---------------------------------------------------------------------------------------------

    def _draw_soon(self) -> None:
        self._stale = True
        self._size.setText("Drawing…")
        self._timer.start()

    def _draw(self) -> None:
        """Ask for a preview, unless one is being drawn: then it is asked for when that one is done."""
        if self._preview_job:
            self._stale = True
            return
        self._stale = False
        if self.preview.picture().isNull():
            self.preview.show_words("Drawing…")
        self._count += 1
        self._preview_job = str(Path(self._folder.name) / f"preview-{self._count}.png")
        self._submit(self._preview_job, preview=True)

    def _submit(self, out: str, *, preview: bool) -> None:
        self._process.submit(
            "figure",
            listener=lambda update: self._heard(out, update),
            run=os.fspath(self._run),
            what=self.what(),
            options=self._options.model_dump(mode="json"),
            preview=preview,
            out=out,
        )

    def _heard(self, out: str, update: JobUpdate) -> None:
        """Called in any thread; the signal crosses over to the window's. After closing nobody listens."""
        if self._open:
            self._updated.emit((out, update))

    def _take(self, item: tuple[str, JobUpdate]) -> None:
        """Take in what became of a drawing, in the window's thread."""
        out, update = item
        if not update.final or not self._open:
            return
        if out == self._preview_job:
            self._preview_job = ""
            self._show_preview(out, update)
            if self._stale and not self._timer.isActive():
                self._draw()
        elif self._save_to is not None and out == str(self._save_to):
            self._saved(update)

    def _show_preview(self, out: str, update: JobUpdate) -> None:
        if update.kind is not UpdateKind.DONE:
            self._complain(update)
            self._size.setText("")
            return
        picture = QPixmap(out)
        Path(out).unlink(missing_ok=True)
        self._problem.hide()
        self.preview.show_picture(picture)
        self._picture.setEnabled(not picture.isNull())
        if not self._stale:
            self._size.setText(self._measures(picture))

    def _measures(self, picture: QPixmap) -> str:
        """Return the size of the figure in words; where a side follows from the content, from the preview's proportions."""
        wide, high = self._options.width_mm, self._options.height_mm
        if wide is None or high is None:
            return f"{self._options.dpi} dpi; the size follows from the content"
        pixels = [round(side / 25.4 * self._options.dpi) for side in (wide, high)]
        return f"{wide:g} × {high:g} mm, {pixels[0]:,} × {pixels[1]:,} pixels at {self._options.dpi} dpi"

    def _complain(self, update: JobUpdate) -> None:
        text = f"{update.text} {update.mend}".strip() or "The figure was not drawn."
        self._problem.setText(text)
        self._problem.setToolTip(update.details)
        self._problem.show()
        if self.preview.picture().isNull():
            self.preview.show_words("There is no figure to show.")

    # -- taking away -----------------------------------------------------------------------------------------

    def _ask(self, start: str) -> str:
        return QFileDialog.getSaveFileName(self, "Save figure", start, FORMATS)[0]

    def save_as(self) -> None:
        """Ask where, and write the figure at its full size."""
        name = f"{self._run.name}-{self.what()}.pdf"
        chosen = self._ask_path(str(Path(self._last_folder) / name))
        if not chosen:
            return
        path = Path(chosen)
        if path.suffix.lower() not in {".pdf", ".svg", ".png"}:
            path = path.with_name(f"{path.name}.pdf")
        self._last_folder = str(path.parent)
        self._save_to = path.absolute()
        self._save.setEnabled(False)
        self._save.setText("Saving…")
        self._submit(str(self._save_to), preview=False)

    def _saved(self, update: JobUpdate) -> None:
        path, self._save_to = self._save_to, None
        self._save.setEnabled(True)
        self._save.setText("Save as…")
        if update.kind is not UpdateKind.DONE:
            self._complain(update)
            return
        self._problem.hide()
        figure_memory.save_options(self._options, self._memory)
        size = update.result
        self._size.setText(f"Saved as {path.name if path else ''}, {size.get('width', 0):,} × {size.get('height', 0):,} pixels")
        self.saved.emit(str(path))

    def copy_script(self) -> None:
        """Put a script on the clipboard that draws this figure again."""
        QGuiApplication.clipboard().setText(figure_script(self._run, self.what(), f"{self.what()}.pdf", self._options))
        self._size.setText("The script is on the clipboard.")

    def copy_image(self) -> None:
        """Put the preview on the clipboard."""
        QGuiApplication.clipboard().setPixmap(self.preview.picture())
        self._size.setText("The image is on the clipboard.")

    def done(self, result: int) -> None:
        """Remember the options and take away what was drawn for the preview, however the dialog is closed."""
        self._open = False
        self._timer.stop()
        figure_memory.save_options(self._options, self._memory)
        self._folder.cleanup()
        super().done(result)
