"""The first page: open or drop a file, try the example, continue a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtWidgets import QFrame, QGridLayout, QHBoxLayout, QLabel, QScrollArea, QVBoxLayout, QWidget

from cellweave.app import theme
from cellweave.app.panels.parts import button, card, clear, heading, subheading, text

KINDS = "h5ad, h5mu, zarr, 10x h5, 10x folder, loom, CSV or TSV; several files make one study"

EXAMPLE = "Blood cells of four donors, RNA and surface proteins, with known cell types. They come with the program and work offline."


class WelcomePage(QScrollArea):
    """Three ways in, and what was open lately."""

    openClicked = Signal()  # noqa: N815
    folderClicked = Signal()  # noqa: N815
    exampleClicked = Signal()  # noqa: N815
    pathClicked = Signal(str)  # noqa: N815

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        page = QWidget()
        outer = QVBoxLayout(page)
        outer.setContentsMargins(24, 24, 24, 24)
        outer.setSpacing(16)
        outer.addStretch(1)
        outer.addLayout(self._title())
        self.notice = text("")
        self.notice.setVisible(False)
        outer.addWidget(self.notice)
        ways = QHBoxLayout()
        ways.setSpacing(16)
        self.open = button("Open data…", "open", self.openClicked.emit, primary=True)
        self.folder = button("Open folder…", "folder", self.folderClicked.emit)
        self.example = button("Open the example", "example", self.exampleClicked.emit)
        ways.addWidget(self._way("Your data", f"Drop files anywhere on this window, or choose them: {KINDS}.", self.open, self.folder), 1)
        ways.addWidget(self._way("Try it", EXAMPLE, self.example), 1)
        outer.addLayout(ways)
        self.last = button("", "play", self._go_on, link=True)
        self.last.setAccessibleName("Go on with the last session")
        self.last.setVisible(False)
        self.watch = button("", "play", self._go_watch, link=True)
        self.watch.setAccessibleName("Look at the run that was left running")
        self.watch.setVisible(False)
        self._watch: Callable[[], object] | None = None
        outer.addWidget(self.watch, 0, Qt.AlignmentFlag.AlignLeft)
        self._last: Callable[[], object] | None = None
        outer.addWidget(self.last, 0, Qt.AlignmentFlag.AlignLeft)
        self.recent = QFrame()
        self.recent.setProperty("card", "true")
        self._recent = QGridLayout(self.recent)
        self._recent.setContentsMargins(12, 12, 12, 12)
        self._recent.setHorizontalSpacing(16)
        self._recent.setVerticalSpacing(2)
        outer.addWidget(self.recent)
        outer.addStretch(2)
        self.setWidget(page)
        self.set_recent((), ())

    def _title(self) -> QHBoxLayout:
        mark = QLabel()
        mark.setPixmap(theme.program_icon().pixmap(QSize(48, 48)))
        name = heading("Cellweave")
        font = name.font()
        font.setPointSizeF(font.pointSizeF() + 6)
        name.setFont(font)
        words = QVBoxLayout()
        words.setSpacing(0)
        words.addWidget(name)
        words.addWidget(text("Integrate single-cell data: open counts, say which column is what, train, look, take it away.", secondary=True))
        layout = QHBoxLayout()
        layout.setSpacing(16)
        layout.addWidget(mark, 0, Qt.AlignmentFlag.AlignVCenter)
        layout.addLayout(words, 1)
        return layout

    def _way(self, title: str, sentence: str, *buttons: QWidget) -> QFrame:
        words = text(sentence, secondary=True)
        words.setAlignment(Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignLeft)
        frame = card(heading(title), words)
        layout = frame.layout()
        assert isinstance(layout, QVBoxLayout)
        layout.addStretch(1)
        line = QHBoxLayout()
        for item in buttons:
            line.addWidget(item)
        line.addStretch(1)
        layout.addLayout(line)
        return frame

    def set_notice(self, sentence: str) -> None:
        """Show something that was noticed at the start (settings that could not be read)."""
        self.notice.setText(sentence)
        self.notice.setVisible(bool(sentence))

    def offer(self, words: str, call: Callable[[], object]) -> None:
        """Offer to go on where the last session ended."""
        self.last.setText(words)
        self.last.setAccessibleName(words)
        self._last = call
        self.last.setVisible(True)

    def offer_run(self, words: str, call: Callable[[], object]) -> None:
        """Offer to look at the run that was left running."""
        self.watch.setText(words)
        self.watch.setAccessibleName(words)
        self._watch = call
        self.watch.setVisible(True)

    def _go_watch(self) -> None:
        if self._watch is not None:
            self._watch()

    def _go_on(self) -> None:
        if self._last is not None:
            self._last()

    def set_recent(self, data: Sequence[str], runs: Sequence[str], labels: Mapping[str, str] | None = None) -> None:
        """List what was open lately; what is no longer there is greyed. ``labels`` are what runs are called elsewhere, by path."""
        clear(self._recent)
        self.recent.setVisible(bool(data or runs))
        for column, (title, paths) in enumerate((("Recent data", data), ("Recent runs", runs))):
            self._recent.addWidget(subheading(title), 0, column)
            if not paths:
                self._recent.addWidget(text("None yet", secondary=True), 1, column)
            for line, path in enumerate(paths[:6]):
                self._recent.addWidget(self._link(path, (labels or {}).get(path, "")), line + 1, column)
            self._recent.setColumnStretch(column, 1)

    def _link(self, path: str, label: str = "") -> QWidget:
        places = path.split("\n")
        there = all(Path(place).exists() for place in places)
        name = label or Path(places[0]).name + (f" and {len(places) - 1} more" if len(places) > 1 else "")
        link = button(name if there else f"{name} (missing)", "", lambda: self.pathClicked.emit(path), link=True, tip=path)
        link.setEnabled(there)
        link.setSizePolicy(link.sizePolicy().Policy.Ignored, link.sizePolicy().Policy.Fixed)
        return link
