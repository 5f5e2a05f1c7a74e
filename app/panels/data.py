"""Step 1: which files, what they hold, which matrix has the counts, which features, and what the checks found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QSignalBlocker, Qt, Signal
from qtpy.QtWidgets import QComboBox, QFrame, QGridLayout, QSizePolicy, QVBoxLayout, QWidget

from cellweave.app.forms import SpecForm
from cellweave.app.panels.checks import ChecksList, of_step
from cellweave.app.panels.features import ModalityForm, label_width
from cellweave.app.panels.mosaic import MOST_ROWS, MosaicGrid
from cellweave.app.panels.parts import ElidedLabel, button, card, clear, column, row, set_look, subheading, text
from cellweave.app.panels.workflow import Mark
from cellweave.app.state.session import Session
from cellweave.core.spec import RunSpec
from cellweave.core.spec.modalities import modality_kind
from cellweave.core.study.mosaic import Mosaic
from cellweave.core.wording import counted

if TYPE_CHECKING:
    from cellweave.core.study.header import FileHeader

ELSEWHERE = (
    "paths", "sha256", "modality", "layers", "features", "join", "switched_off", "fill_missing", "combine", "new_columns", "batch_from_file",
)  # fmt: skip

ACCEPT = "use values that are not whole"
USABLE = "Open a file with raw counts, or train on these values as they are; the likelihoods are made for counts."


def size(n_bytes: float) -> str:
    """Return a number of bytes in words."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if n_bytes >= 10 or unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


class DataPanel(QWidget):
    """The body of step 1."""

    openClicked = Signal()  # noqa: N815
    exampleClicked = Signal()  # noqa: N815

    def __init__(self, session: Session, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._session = session
        self._forms: dict[str, ModalityForm] = {}
        self._mosaic_key: tuple[Any, ...] = ()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(12, 12, 12, 16)
        layout.setSpacing(16)
        self.empty = text("No data yet. Open a file, drop one on the window, or begin with the example.", secondary=True)
        self.open = button("Open data…", "open", self.openClicked.emit)
        self.example = button("Example", "example", self.exampleClicked.emit)
        self.name = ElidedLabel(mode=Qt.TextElideMode.ElideMiddle)
        font = self.name.font()
        font.setWeight(font.Weight.DemiBold)
        self.name.setFont(font)
        top = QVBoxLayout()
        top.setSpacing(8)
        top.addWidget(self.empty)
        top.addWidget(self.name)
        top.addLayout(row(self.open, self.example, None))
        layout.addLayout(top)
        layout.addWidget(self._make_problem())
        self._parts = QWidget()
        inner = QVBoxLayout(self._parts)
        inner.setContentsMargins(0, 0, 0, 0)
        inner.setSpacing(16)
        self._card = QFrame()
        self._card.setProperty("card", "true")
        self._summary = QGridLayout(self._card)
        self._summary.setContentsMargins(12, 8, 12, 8)
        self._summary.setVerticalSpacing(4)
        inner.addWidget(self._card)
        inner.addWidget(self._make_mosaic())
        self._notes = QWidget()  # below the grid, which is to be seen whatever there is to be noted
        column(self._notes, spacing=4)
        inner.addWidget(self._notes)
        self.checks = ChecksList()
        self.checks_title = subheading("Checks")
        inner.addLayout(_group(self.checks_title, self.checks))
        inner.addLayout(self._choices())
        self.form = SpecForm("data", leave_out=ELSEWHERE, scrolling=False)
        self.form.changed.connect(session.editor.edit)
        inner.addLayout(_group(subheading("Reading"), self.form))
        layout.addWidget(self._parts)
        layout.addStretch(1)
        self.checks.fixAsked.connect(lambda fix: session.editor.edit(fix.changes, fix.label))
        session.headers_changed.connect(self._headers)
        session.study_changed.connect(self._study)
        session.checks_changed.connect(self._show_checks)
        session.editor.changed.connect(self._spec)
        self._headers(())

    def _make_mosaic(self) -> QWidget:
        """The mosaic grid below its title, beside which one chooses whose levels its rows are."""
        self.mosaic_title = subheading("Mosaic")
        self.mosaic_rows = QComboBox()
        self.mosaic_rows.setAccessibleName("Rows of the mosaic")
        self.mosaic_rows.setToolTip("Whose levels are the rows: batches, or cell types to hide a modality of one kind of cells")
        self.mosaic_rows.currentIndexChanged.connect(self._show_mosaic)
        self.mosaic = MosaicGrid()
        self.mosaic.switched.connect(self._switch)
        self.mosaic_rows.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.mosaic_rows.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.mosaic_rows.setMinimumContentsLength(8)
        self._mosaic_part = QWidget()
        layout = column(self._mosaic_part)
        layout.addLayout(row(self.mosaic_title, self.mosaic_rows))
        layout.addWidget(self.mosaic)
        return self._mosaic_part

    def _make_problem(self) -> QFrame:
        """Cause and mend where the open file cannot be used, and a button where the values would do."""
        self.cause, self.mend = text("", selectable=True), text("", secondary=True, selectable=True)
        self.cause.setAccessibleName("Why the data cannot be used")
        set_look(self.cause, "tone", "bad")
        self.accept = button("Use these values all the same", "", lambda: self._session.editor.edit({"data.accept_non_integer": True}, ACCEPT))
        self.problem = card(self.cause, self.mend)
        inner = self.problem.layout()
        assert isinstance(inner, QVBoxLayout)
        inner.addLayout(row(self.accept, None))
        self.problem.setVisible(False)
        return self.problem

    def _show_problem(self) -> None:
        error = self._session.load_error
        self.problem.setVisible(error is not None)
        if error is None:
            return
        # The engine names this option in the mend only where the values could be trained on.
        usable = "data.accept_non_integer" in error.mend and not self._session.spec.data.accept_non_integer
        self.accept.setVisible(usable)
        self.cause.setText(error.cause)
        self.mend.setText(USABLE if usable else error.mend)
        self.mend.setVisible(bool(self.mend.text()))

    def _choices(self) -> QVBoxLayout:
        """Modality, join, and the form of each modality."""
        self.modality = QComboBox()
        self.modality.setAccessibleName("Modality to train on")
        self.modality.activated.connect(lambda: self._edit({"data.modality": self.modality.currentData()}))
        self.modality_label = text("Train on", secondary=True, wrap=False)
        self.modality_label.setBuddy(self.modality)
        self.join = QComboBox()
        self.join.setAccessibleName("Features of several files")
        self.join.addItem("Features all files have", "intersection")
        self.join.addItem("Features any file has", "union")
        self.join.activated.connect(lambda: self._edit({"data.join": self.join.currentData()}))
        self.join_label = text("Several files", secondary=True, wrap=False)
        self.join_label.setBuddy(self.join)
        grid = QGridLayout()
        grid.setHorizontalSpacing(8)
        grid.setVerticalSpacing(4)
        for line, (label, widget) in enumerate(((self.modality_label, self.modality), (self.join_label, self.join))):
            grid.addWidget(label, line, 0)
            grid.addWidget(widget, line, 1)
        grid.setColumnStretch(1, 1)
        grid.setColumnMinimumWidth(0, label_width(self))
        self._modalities = QVBoxLayout()
        self._modalities.setSpacing(12)
        layout = QVBoxLayout()
        layout.setSpacing(12)
        layout.addLayout(grid)
        layout.addLayout(self._modalities)
        return layout

    def _edit(self, changes: dict[str, Any]) -> None:
        self._session.editor.edit(changes)

    # ------------------------------------------------------------------ showing

    def _headers(self, headers: tuple[FileHeader, ...]) -> None:
        self._parts.setVisible(bool(headers))
        self.empty.setVisible(not headers)
        self.name.setVisible(bool(headers))
        self.open.setText("Open other data…" if headers else "Open data…")
        self.open.setAccessibleName(self.open.text())
        self.example.setVisible(not headers)
        paths = [header.path for header in headers]
        self.name.setText(" + ".join(path.name for path in paths))
        self.name.setToolTip("\n".join(str(path) for path in paths))
        clear(self._modalities)
        self._forms = {}
        for name in dict.fromkeys(modality.name for header in headers for modality in header.modalities):
            form = ModalityForm(name)
            form.changed.connect(self._session.editor.edit)
            self._forms[name] = form
            self._modalities.addWidget(form)
        self._refresh()

    def _study(self, _study: object) -> None:
        self._refresh()

    def _spec(self, _spec: RunSpec) -> None:
        self._refresh()

    def _show_checks(self, checks: tuple[Any, ...]) -> None:
        own = of_step(checks, "data")
        self.checks.set_checks(own)
        self.checks_title.setVisible(bool(own))
        self.checks.setVisible(bool(own))

    def _refresh(self) -> None:
        session = self._session
        self._show_problem()
        if not session.headers:
            return
        spec, study = session.spec, session.study
        self.form.set_spec(spec)
        self._show_summary()
        names = list(self._forms)
        several = len(names) > 1 and spec.family.modalities == "one"
        self.modality.setVisible(several)
        self.modality_label.setVisible(several)
        self.modality.clear()
        self.modality.addItem("RNA where there is one", None)
        for name in names:
            self.modality.addItem(modality_kind(name).label, name)
        self.modality.setCurrentIndex(max(0, self.modality.findData(spec.data.modality)))
        self.join.setVisible(len(session.headers) > 1)
        self.join_label.setVisible(len(session.headers) > 1)
        self.join.setCurrentIndex(self.join.findData(spec.data.join))
        columns = [str(name) for name in study.obs.columns] if study is not None else []
        for name, form in self._forms.items():
            loaded = study.modalities.get(name) if study is not None else None
            form.found.setToolTip(study.left_out_modalities.get(name, "") if study is not None else "")
            form.show_modality(spec.data, self._locations(name), loaded.location if loaded else "", columns, self._size_of(name, loaded))
        self._show_mosaic()

    def _locations(self, modality: str) -> list[str]:
        found = [
            matrix.location
            for header in self._session.headers
            for item in header.modalities
            if item.name == modality
            for matrix in item.matrices
        ]
        return list(dict.fromkeys(found))

    def _size_of(self, name: str, loaded: Any) -> str:
        study = self._session.study
        if study is not None and name in study.left_out_modalities:
            return "left out"
        if loaded is not None:
            return f"{int(loaded.measured.sum()):,} × {loaded.n_features:,}"
        items = [item for header in self._session.headers for item in header.modalities if item.name == name]
        return f"{sum(item.n_cells for item in items):,} × {items[0].n_features:,}" if items else ""

    def _show_summary(self) -> None:
        clear(self._summary)
        headers, study = self._session.headers, self._session.study
        cells = study.n_cells if study is not None else sum(header.n_cells for header in headers)
        rows = [("Cells", f"{cells:,}" + (f" ({len(study.left_out):,} left out)" if study is not None and len(study.left_out) else ""))]
        formats = ", ".join(dict.fromkeys(header.format for header in headers))
        rows.append(("On disk", f"{size(sum(header.file_bytes for header in headers))}, {formats}"))
        rows.append(("In memory", _memory(study) if study is not None else f"about {size(sum(header.estimated_bytes for header in headers))}"))
        columns = len(study.obs.columns) if study is not None else max((len(header.obs_columns) for header in headers), default=0)
        rows.append(("Columns of cells", f"{columns:,}"))
        arrays = list(dict.fromkeys(name for header in headers for name in header.obsm))
        if arrays:
            rows.append(("Embeddings", ", ".join(arrays)))
        for line, (name, value) in enumerate(rows):
            self._summary.addWidget(text(name, secondary=True, wrap=False), line, 0)
            words = ElidedLabel(value)
            words.setToolTip(value)
            self._summary.addWidget(words, line, 1)
        notes = list(study.notes) if study is not None else [note for header in headers for note in header.notes]
        layout = self._notes.layout()
        clear(layout)
        for note in notes[:6]:
            layout.addWidget(text(note, secondary=True))
        self._notes.setVisible(bool(notes))
        self._summary.setColumnStretch(1, 1)

    def _show_mosaic(self, *_: object) -> None:
        study, spec = self._session.study, self._session.spec
        columns = _mosaic_columns(study, spec) if study is not None and len(study.modalities) > 1 else []
        if [self.mosaic_rows.itemData(place) for place in range(self.mosaic_rows.count())] != columns:
            shown = self.mosaic_rows.currentData()
            with QSignalBlocker(self.mosaic_rows):
                self.mosaic_rows.clear()
                for name in columns:
                    self.mosaic_rows.addItem(f"{name} and modality", name)
                self.mosaic_rows.setCurrentIndex(max(0, self.mosaic_rows.findData(shown)))
        column = self.mosaic_rows.currentData() or ""
        self._mosaic_part.setVisible(bool(column))
        self.mosaic_rows.setVisible(len(columns) > 1)
        if study is None or not column:
            return
        by_batch = column == columns[0]
        several = len(columns) > 1  # the choice beside the title says then what the rows are
        self.mosaic_title.setText("Mosaic: cells by" if several else "Mosaic: cells by batch and modality")
        key = (id(study), column, spec.data.switched_off, spec.family.modalities)
        if key != self._mosaic_key:
            self._mosaic_key = key
            off = [(item.level, item.modality) for item in spec.data.switched_off if item.column == column]
            # Only batches must hang together; of other columns every level may.
            self.mosaic.set_mosaic(Mosaic.of(study, column), off, together=by_batch and spec.family.modalities == "many")

    def _switch(self, column: str, level: str, modality: str, use: bool) -> None:
        kept = [item.model_dump() for item in self._session.spec.data.switched_off if (item.column, item.level, item.modality) != (column, level, modality)]
        if not use:
            kept.append({"column": column, "level": level, "modality": modality})
        self._session.editor.edit({"data.switched_off": tuple(kept)}, f"{'use' if use else 'leave out'} {modality} of {level}")

    # ------------------------------------------------------------------ for the header of the step

    def summary(self) -> tuple[Mark, str]:
        """Return the mark and the words of the step's header."""
        session = self._session
        if not session.headers:
            return "", "Open a file or the example"
        name, others = Path(session.headers[0].path).name, len(session.headers) - 1
        name += f" + {others} more" if others else ""
        if session.load_error is not None:
            return "fail", f"{name} · cannot be used"
        if session.study is None:
            return "", f"{name} · loading"
        failing = bool(of_step(session.failures, "data"))
        warned = any(check.level.value == "warn" for check in of_step(session.checks, "data"))
        words = f"{name} · {counted(session.study.n_cells, 'cell')}"
        return "fail" if failing else "warn" if warned else "check" if session.checked_spec is not None else "", words


def _mosaic_columns(study: Any, spec: RunSpec) -> list[str]:
    """Return the columns that can be the rows of the mosaic: the batches first, then the labels, others with something switched off, and other groups."""
    roles = spec.covariates
    batches = next((name for name in (roles.batch, roles.dataset, "file", "batch") if name and name in study.obs.columns), None)
    if batches is None:
        return []
    off = [item.column for item in spec.data.switched_off]
    # Counting levels of columns of plain text would take too long for a slot; files have groups of cells as categories.
    groups = [str(name) for name, column in study.obs.items() if hasattr(column, "cat") and 1 < len(column.cat.categories) <= MOST_ROWS]
    groups = [name for name in groups if name.partition(":")[0] not in study.modalities]  # a MuData has a copy of each modality's own columns
    return [name for name in dict.fromkeys((batches, *((roles.labels,) if roles.labels else ()), *off, *groups)) if name in study.obs.columns]


def _memory(study: Any) -> str:
    return size(sum(m.counts.data.nbytes + m.counts.indices.nbytes + m.counts.indptr.nbytes for m in study.modalities.values()))


def _group(*parts: QWidget) -> QVBoxLayout:
    layout = QVBoxLayout()
    layout.setSpacing(8)
    for part in parts:
        layout.addWidget(part)
    return layout
