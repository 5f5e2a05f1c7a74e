"""Step 3: the model, its presets and its options."""

from __future__ import annotations

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QGridLayout, QVBoxLayout, QWidget

from cellweave.app.flows import dialogs
from cellweave.app.forms import SpecForm
from cellweave.app.panels.parts import row, text, tool
from cellweave.app.state.presets import known_presets, save_preset
from cellweave.app.state.session import Session
from cellweave.core.errors import CellweaveError
from cellweave.core.models.registry import families
from cellweave.core.spec import Preset, RunSpec
from cellweave.core.spec.covariates import SINGLE_ROLES


class ModelPanel(QWidget):
    """The body of step 3.

    Attributes
    ----------
    baselineChanged
        The spec that marks and reset compare with (None: the defaults) and what it is called.
    """

    baselineChanged = Signal(object, str)  # noqa: N815

    def __init__(self, session: Session, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._session = session
        self._presets: dict[str, Preset] = {}
        self.family = QComboBox()
        self.family.setAccessibleName("Model")
        for kind, family in families().items():
            self.family.addItem(family.title, kind)
        self.help = text("", secondary=True)
        self.paper = text("", secondary=True, selectable=True)
        self.preset = QComboBox()
        self.preset.setAccessibleName("Preset")
        self.save = tool("save", "Keep the present settings as a preset", self._save)
        for combo in (self.family, self.preset):
            combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            combo.setMinimumContentsLength(10)
        self.problem = text("")
        self.problem.setProperty("tone", "bad")
        self.form = SpecForm("model", leave_out=("kind",), scrolling=False)
        self.form.changed.connect(self._edit)
        grid = QGridLayout()
        grid.setHorizontalSpacing(8)
        grid.setVerticalSpacing(6)
        for line, (words, widget) in enumerate((("Model", self.family), ("Preset", self.preset))):
            label = text(words, secondary=True, wrap=False)
            label.setBuddy(widget)
            grid.addWidget(label, line, 0)
            grid.addWidget(widget, line, 1)
        grid.addWidget(self.save, 1, 2)
        grid.setColumnStretch(1, 1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(12, 12, 12, 16)
        layout.setSpacing(8)
        layout.addLayout(grid)
        layout.addWidget(self.help)
        layout.addWidget(self.paper)
        layout.addWidget(self.problem)
        layout.addLayout(row())
        layout.addWidget(self.form)
        layout.addStretch(1)
        self.family.activated.connect(lambda: self._edit({"model.kind": self.family.currentData()}))
        self.preset.activated.connect(self._apply_preset)
        session.editor.changed.connect(self._show)
        session.editor.refused.connect(self._refused)
        session.study_changed.connect(lambda study: self._name_modalities())
        self._read_presets()
        self._show(session.spec)

    def _edit(self, changes: dict[str, object]) -> None:
        for path in changes:
            if path in self.form.paths():
                self.form.set_error(path, "")
        if "model.kind" in changes:
            changes = {**changes, **self._roles_to_drop(str(changes["model.kind"]))}
        self._session.editor.edit(changes)
        if "model.kind" in changes:
            self._name_modalities()

    def _roles_to_drop(self, kind: str) -> dict[str, object]:
        """Return the changes that empty the roles which another model does not use."""
        family, assigned = families()[kind], self._session.spec.covariates.assigned()
        return {f"covariates.{role}": None if role in SINGLE_ROLES else () for role in assigned if family.uses(role) is None}

    def _name_modalities(self) -> None:
        """Name the modalities of the data in a model that asks for them, so that each has its loss weights before the training."""
        study, chosen = self._session.study, getattr(self._session.spec.model, "modalities", None)
        if study is None or chosen is None or (chosen and set(chosen) <= set(study.modalities)):
            return
        self._session.editor.edit({"model.modalities": tuple(sorted(study.modalities))}, "modalities of the data")

    def _show(self, spec: RunSpec) -> None:
        self.problem.setVisible(False)
        self.family.setCurrentIndex(self.family.findData(spec.model.kind))
        self.help.setText(spec.family.help)
        self.paper.setText(spec.family.paper)
        self.paper.setVisible(bool(spec.family.paper))
        self.form.clear_errors()
        self.form.set_spec(spec)

    def _in_words(self, sentence: str) -> str:
        """Return a sentence on a spec with the names that the form has for its fields."""
        words = sentence.removeprefix("The spec is not valid: ")
        for path in sorted(self.form.paths(), key=len, reverse=True):
            words = words.replace(path, f"'{self.form.row(path).field.label}'")
        return words[:1].upper() + words[1:]

    def _refused(self, paths: tuple[str, ...], sentence: str) -> None:
        sentence = self._in_words(sentence)
        own = [path for path in paths if path in self.form.paths()]
        if own:
            self.form.set_spec(self._session.spec)
            self.form.set_error(own[0], sentence)
        elif any(path.startswith("model") for path in paths):
            self._say(sentence)

    def _say(self, sentence: str) -> None:
        self.problem.setText(sentence)
        self.problem.setVisible(bool(sentence))

    # ------------------------------------------------------------------ presets

    def _read_presets(self, wanted: str = "") -> None:
        self._presets, problem = known_presets(self._session.preset_folder())
        self.preset.clear()
        self.preset.addItem("Defaults", "")
        for name, preset in self._presets.items():
            self.preset.addItem(preset.title, name)
            self.preset.setItemData(self.preset.count() - 1, preset.help, 3)  # the tooltip
        self.preset.setCurrentIndex(max(0, self.preset.findData(wanted)))
        self._say(problem)

    def _apply_preset(self) -> None:
        name, editor = self.preset.currentData(), self._session.editor
        spec = editor.spec
        try:
            base = spec.with_changes({"losses": {"weights": {}}})
            fresh = RunSpec().with_changes({"model.kind": spec.model.kind})
            base = base.model_copy(update={"model": fresh.model, "training": fresh.training, "analysis": spec.analysis}).with_changes({})
            wanted = self._presets[name].apply(base) if name else base
        except CellweaveError as error:
            self._say(str(error))
            return
        editor.replace(wanted, f"preset '{self.preset.currentText()}'")
        origin = f"the preset '{self.preset.currentText()}'"
        self.form.set_preset_baseline(wanted if name else None, origin)
        self.baselineChanged.emit(wanted if name else None, origin)

    def _save(self) -> None:
        title = dialogs.ask_text(self, "Keep as preset", "Name of the preset:", "")
        if not title:
            return
        try:
            name = save_preset(self._session.preset_folder(), title, self._session.spec)
        except OSError as error:
            self._say(f"The preset could not be written: {error.strerror or error}.")
            return
        self._read_presets(name)
