"""The form over the spec: every widget changes exactly its field; setting a spec emits nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from qtpy.QtCore import QPoint, QPointF, Qt
from qtpy.QtGui import QWheelEvent
from qtpy.QtWidgets import QApplication, QComboBox, QLineEdit, QScrollArea

from cellweave.app.forms import SpecForm, form_fields
from cellweave.app.forms.editors import AutoNumberEditor, CheckEditor, ChoiceEditor, SuggestingEditor
from cellweave.app.forms.numberbox import NumberBox, number_text
from cellweave.core.models.registry import families
from cellweave.core.spec import RunSpec
from cellweave.core.spec.analysis import AnalysisSpec
from cellweave.core.spec.covariates import CovariateSpec
from cellweave.core.spec.data import DataSpec
from cellweave.core.spec.training import TrainingSpec

SECTIONS = {"training": TrainingSpec, "analysis": AnalysisSpec, "data": DataSpec, "covariates": CovariateSpec}
CASES = [(section, cls, field.name) for section, cls in SECTIONS.items() for field in form_fields(cls, section)]
CASES += [("model", family.options, field.name) for family in families().values() for field in form_fields(family.options, "model")]


@pytest.fixture
def form_of(qtbot):
    def make(section: str, spec: RunSpec | None = None) -> SpecForm:
        form = SpecForm(section)
        qtbot.addWidget(form)
        form.set_spec(spec or RunSpec())
        form.set_advanced(True)
        form.resize(420, 900)
        form.show()
        qtbot.waitExposed(form)
        return form

    return make


TYPED = {
    **dict.fromkeys(("shared_encoder", "shared_decoder", "batch_encoder", "batch_decoder", "discriminator"), ("64, 32", "64, 32")),
    **dict.fromkeys(("block_encoder", "block_decoder"), ({"atac": "64, 16"}, '"atac = 64, 16"')),
    **dict.fromkeys(("block_units", "mask_units", "highest", "lowest"), ({"rna": "7"}, "rna = 7")),
    **dict.fromkeys(("transform", "encoder_transform"), ({"adt": "binarize"}, "adt = binarize")),
    "distribution": ({"adt": "bernoulli"}, "adt = bernoulli"),
    "normalisation": ({"adt": "binary"}, "adt = binary"),
    "modality_shares": ({"rna": "0.25", "adt": "0.75"}, "rna = 0.25, adt = 0.75"),
    "hidden": (("64", "32"), "64, 32"),
}
"""What to type into fields that take more than any name, and what should come of it."""


def _by_modality(field):
    """A table of values by modality and its text."""
    if field.each in {"int", "float"}:
        value = _other_number(replace(field, kind=field.each))
        return {"rna": value, "adt": value}, f"rna = {number_text(value)}, adt = {number_text(value)}"
    if field.each == "bool":
        return {"rna": True, "adt": False}, "rna = yes, adt = no"
    first, last = field.choices[0], field.choices[-1]
    return {"rna": first, "adt": last}, f"rna = {first}, adt = {last}"


def _edit(qtbot, editor, field):
    """Do what a person would do to the widget and return the value that should come of it."""
    if isinstance(editor, CheckEditor):
        qtbot.mouseClick(editor, Qt.MouseButton.LeftButton, pos=QPoint(9, editor.height() // 2))
        return not field.default
    if isinstance(editor, ChoiceEditor):
        last = editor.currentIndex() == editor.count() - 1
        qtbot.keyClick(editor, Qt.Key.Key_Up if last else Qt.Key.Key_Down)
        return editor.value()
    if isinstance(editor, (NumberBox, AutoNumberEditor)):
        value = _other_number(field)
        line = (editor.box if isinstance(editor, AutoNumberEditor) else editor).lineEdit()
        text = number_text(value)
    elif field.kind == "by_modality":
        value, text = _by_modality(field)
        line = editor
    else:
        plain = {"text": ("a name", "a name"), "list": (("one", "two words"), "one, two words"), "mapping": ({"a": "one block"}, "a = one block")}
        value, text = plain[field.kind]
        if field.name in TYPED:
            value, text = TYPED[field.name]
        elif field.kind == "list" and field.choices:
            value, text = field.choices[1:3], ", ".join(field.choices[1:3])
        line = editor.inner if isinstance(editor, SuggestingEditor) else editor
    line.selectAll()
    qtbot.keyClicks(line, text)
    qtbot.keyClick(line, Qt.Key.Key_Return)
    return value


def _other_number(field):
    low = field.low if field.low is not None else 0
    if field.kind == "int":
        return next(value for value in (int(low) + 3, int(low) + 4) if value != field.default)
    high = field.high if field.high is not None else low + 1
    return next(value for value in (low + (high - low) * 0.25, low + (high - low) * 0.5) if value != field.default)


@pytest.mark.parametrize(("section", "cls", "name"), CASES, ids=[f"{cls.__name__}.{name}" for _, cls, name in CASES])
def test_a_widget_changes_exactly_its_field(qtbot, section, cls, name):
    spec = RunSpec() if section != "model" else RunSpec(model=cls())
    form = SpecForm(section)
    qtbot.addWidget(form)
    form.set_spec(spec)
    form.set_advanced(True)
    form.show()
    path = f"{section}.{name}"
    row = form.row(path)
    row.editor.setFocus()
    sent = []
    form.changed.connect(sent.append)
    expected = _edit(qtbot, row.editor, row.field)
    assert sent == [{path: expected}]
    assert expected != row.field.default
    before = getattr(spec, section).model_dump()
    after = cls.model_validate({**before, name: expected}).model_dump()
    assert [key for key in after if after[key] != before[key]] == [name]
    assert row.is_changed() and row.mark.is_on() and row.reset.isVisible()
    row.reset.click()
    assert sent[1:] == [{path: row.field.default}]
    assert not row.is_changed() and not row.reset.isVisible()


@pytest.mark.parametrize("section", [*SECTIONS, "model"])
def test_every_input_has_a_name_a_help_and_can_be_reached(form_of, section):
    form = form_of(section)
    for path in form.paths():
        row = form.row(path)
        editor = row.editor
        target = editor.focusProxy() or editor
        assert target.accessibleName().startswith(row.field.label), path
        assert row.field.help in target.accessibleDescription()
        assert target.focusPolicy() & Qt.FocusPolicy.TabFocus, path
        assert row.field.path in row.label.toolTip()


def test_setting_a_spec_emits_nothing_and_shows_everything(form_of):
    spec = RunSpec().with_changes(
        {
            "training.max_epochs": 50, "training.learning_rate": 3e-4, "training.optimizer": "adamw", "training.early_stopping": False,
            "training.threads": 2,
        }
    )  # fmt: skip
    form = form_of("training")
    sent = []
    form.changed.connect(sent.append)
    form.set_spec(spec)
    assert form.values() == {f"training.{key}": value for key, value in spec.training.model_dump().items()}
    form.set_spec(RunSpec())
    assert form.values() == {f"training.{key}": value for key, value in TrainingSpec().model_dump().items()}
    assert sent == []


def test_the_model_form_follows_the_family(form_of):
    form = form_of("model")
    kinds = list(families())
    for kind in kinds:
        form.set_spec(RunSpec(model=families()[kind].options()))
        assert set(form.paths()) == {f"model.{field.name}" for field in form_fields(families()[kind].options)}
    assert "model.kind" not in form.paths()


def test_automatic_can_be_left_and_come_back_to(qtbot, form_of):
    form = form_of("training")
    sent = []
    form.changed.connect(sent.append)
    editor = form.row("training.max_epochs").editor
    assert editor.button.isChecked() and editor.value() is None
    editor.button.click()
    assert sent == []  # there is no number yet to go back to
    assert form.focusWidget() is editor.box
    qtbot.keyClicks(editor.box.lineEdit(), "40")
    qtbot.keyClick(editor.box.lineEdit(), Qt.Key.Key_Return)
    assert sent == [{"training.max_epochs": 40}] and not editor.button.isChecked()
    editor.button.click()
    assert sent[1:] == [{"training.max_epochs": None}] and editor.box.text() == ""
    editor.button.click()
    assert sent[2:] == [{"training.max_epochs": 40}]


@pytest.mark.parametrize(
    ("path", "typed", "sentence"),
    [
        ("training.validation_share", "1.5", "Validation share must be from 0 to 0.9."),
        ("training.batch_size", "many", "Minibatch needs a number."),
        ("training.batch_size", "", "Minibatch needs a number."),
        ("training.patience", "2.5", "'2.5' is not a whole number."),
        ("training.learning_rate", "0", "Learning rate must be above 0 and at most 1."),
    ],
)
def test_a_wrong_number_is_named_and_not_taken(qtbot, form_of, path, typed, sentence):
    form = form_of("training")
    sent = []
    form.changed.connect(sent.append)
    row = form.row(path)
    before = row.value()
    row.editor.setFocus()
    row.editor.lineEdit().selectAll()
    qtbot.keyClick(row.editor.lineEdit(), Qt.Key.Key_Backspace)
    qtbot.keyClicks(row.editor.lineEdit(), typed)
    qtbot.keyClick(row.editor.lineEdit(), Qt.Key.Key_Return)
    assert row.problem.text() == sentence and row.problem.isVisible()
    assert sent == [] and row.value() == before
    qtbot.keyClick(row.editor, Qt.Key.Key_Escape)
    assert row.problem.text() == "" and row.editor.text() == number_text(before)


def test_arrows_step_and_stop_at_the_limits(qtbot, form_of):
    form = form_of("training")
    sent = []
    form.changed.connect(sent.append)
    box = form.row("training.batch_size").editor
    box.setFocus()
    qtbot.keyClick(box, Qt.Key.Key_Up)
    qtbot.keyClick(box, Qt.Key.Key_Down)
    assert [item["training.batch_size"] for item in sent] == [256, 128]
    share = form.row("training.validation_share").editor
    share.set_value(0.9)
    share.stepBy(1)
    assert share.value() == 0.9
    share.set_value(0.05)
    share.stepBy(-1)
    assert share.value() == 0.0


@pytest.mark.parametrize("path", ["training.batch_size", "training.device", "training.max_epochs"])
def test_the_wheel_leaves_fields_without_focus_alone(qtbot, form_of, path):
    form = form_of("training")
    editor = form.row(path).editor
    target = editor.box if isinstance(editor, AutoNumberEditor) else editor
    before = editor.value()
    form.row("training.seed").editor.setFocus()
    middle = QPointF(target.rect().center())
    wheel = QWheelEvent(
        middle, QPointF(target.mapToGlobal(target.rect().center())), QPoint(0, 0), QPoint(0, -120), Qt.MouseButton.NoButton,
        Qt.KeyboardModifier.NoModifier, Qt.ScrollPhase.NoScrollPhase, False,
    )  # fmt: skip
    QApplication.sendEvent(target, wheel)
    assert editor.value() == before
    assert not wheel.isAccepted()


def test_search_finds_advanced_options_by_what_they_are_for(qtbot, form_of):
    form = form_of("training")
    form.set_advanced(False)
    assert not form.row("training.gradient_clip").is_shown()
    search = next(line for line in form.findChildren(QLineEdit) if line.accessibleName() == "Search options")
    qtbot.keyClicks(search, "norm of the gradient")
    assert [path for path in form.paths() if form.row(path).is_shown()] == ["training.gradient_clip"]
    search.selectAll()
    qtbot.keyClicks(search, "xyzzy")
    assert form._nothing.isVisible() and "xyzzy" in form._nothing.text()
    search.clear()
    assert form.row("training.batch_size").is_shown() and not form.row("training.gradient_clip").is_shown()


def test_changed_options_that_are_hidden_are_counted(form_of):
    form = form_of("training", RunSpec().with_changes({"training.adam_eps": 0.1, "training.batch_size": 64}))
    form.set_advanced(False)
    assert form._advanced.text() == "Advanced (1 changed)"


def test_a_preset_moves_the_marks_and_the_reset(form_of):
    spec = RunSpec().with_changes({"training.batch_size": 512})
    form = form_of("training", spec)
    row = form.row("training.batch_size")
    assert row.mark.is_on()
    form.set_preset_baseline(spec, "the preset 'Atlas'")
    assert not row.mark.is_on()
    form.set_spec(RunSpec())
    assert row.mark.is_on() and "Atlas" in row.reset.toolTip() and "512" in row.reset.toolTip()
    sent = []
    form.changed.connect(sent.append)
    row.reset.click()
    assert sent == [{"training.batch_size": 512}]
    form.set_preset_baseline(None)
    assert row.mark.is_on()


def test_an_error_is_shown_under_its_field_even_where_that_is_hidden(form_of):
    form = form_of("training")
    form.set_advanced(False)
    form.set_error("training.gradient_clip", "This does not go together with that.")
    row = form.row("training.gradient_clip")
    assert row.is_shown() and row.problem.isVisible() and row.problem.text() == "This does not go together with that."
    form.set_spec(RunSpec())
    assert not row.problem.isVisible()


@pytest.mark.parametrize("scrolling", [True, False])
def test_an_error_is_scrolled_to(qtbot, scrolling):
    form = SpecForm("training", scrolling=scrolling)
    area = QScrollArea()
    qtbot.addWidget(area)
    area.setWidgetResizable(True)
    area.setWidget(form)
    form.set_spec(RunSpec())
    form.set_advanced(True)
    area.resize(420, 240)
    area.show()
    qtbot.waitExposed(area)
    last = form.paths()[-1]
    row = form.row(last)
    assert row.label.visibleRegion().isEmpty()
    form.set_error(last, "This is wrong.")
    qtbot.waitUntil(lambda: not row.problem.visibleRegion().isEmpty(), timeout=3000)


def test_only_some_fields_can_be_changed_while_training(form_of):
    form = form_of("training")
    form.set_enabled_paths({"training.preview_every"}, "Training is under way.")
    assert form.row("training.preview_every").editor.isEnabled()
    assert not form.row("training.batch_size").editor.isEnabled()
    assert "Training is under way." in form.row("training.batch_size").editor.toolTip()
    form.set_enabled_paths(None)
    assert form.row("training.batch_size").editor.isEnabled()


def test_names_of_the_data_are_offered(form_of):
    form = form_of("analysis")
    form.set_suggestions("analysis.colour_by", ["batch", "cell_type"])
    editor = form.row("analysis.colour_by").editor
    assert editor.button.isVisible()
    sent = []
    form.changed.connect(sent.append)
    for name in ("cell_type", "batch", "cell_type"):
        editor.menu.aboutToShow.emit()
        next(action for action in editor.menu.actions() if action.text() == name).trigger()
    assert [item["analysis.colour_by"] for item in sent] == [("cell_type",), ("cell_type", "batch"), ("batch",)]


def test_typing_is_not_disturbed_by_a_spec_that_says_the_same(qtbot, form_of):
    form = form_of("training")
    box = form.row("training.batch_size").editor
    box.setFocus()
    qtbot.waitUntil(box.hasFocus)
    box.lineEdit().selectAll()
    qtbot.keyClicks(box.lineEdit(), "51")
    form.set_spec(RunSpec().with_changes({"training.seed": 3}))
    assert box.lineEdit().text() == "51"


def test_a_class_that_stands_alone_has_plain_paths(qtbot):
    form = SpecForm.for_class(AnalysisSpec)
    qtbot.addWidget(form)
    form.show()
    assert "resolution" in form.paths()
    sent = []
    form.changed.connect(sent.append)
    form.row("clusters").editor.click()
    assert sent == [{"clusters": False}]


def test_fields_left_out_are_not_there(qtbot):
    form = SpecForm("analysis", leave_out=("colour_by",))
    qtbot.addWidget(form)
    form.set_spec(RunSpec())
    assert "analysis.colour_by" not in form.paths() and "analysis.umap" in form.paths()


def test_nothing_is_wider_than_the_form_shows(form_of):
    form = form_of("training")
    form.resize(form.minimumSizeHint().width(), 600)
    QApplication.processEvents()
    body, viewport = form._scroll.widget(), form._scroll.viewport()
    assert body.width() <= viewport.width()
    for combo in form.findChildren(QComboBox):
        if combo.isVisible():
            assert combo.mapTo(body, QPoint(combo.width(), 0)).x() <= body.width()


def test_groups_of_which_the_basic_face_shows_nothing_come_last(form_of):
    form = form_of("model")
    basic = [not row.field.advanced for row in form._rows.values()]
    groups = list(dict.fromkeys(row.field.group for row in form._rows.values()))
    has_basic = [any(plain for plain, row in zip(basic, form._rows.values(), strict=True) if row.field.group == group) for group in groups]
    assert "Discrepancy between batches (MMD)" in groups[1:] and has_basic[0]
    assert has_basic == sorted(has_basic, reverse=True)
    tops = [form._headings[group].mapTo(form, form._headings[group].rect().topLeft()).y() for group in groups if group]
    assert tops == sorted(tops)


def test_the_toggle_is_small_where_there_is_no_search_field(qtbot):
    few = ("drop_empty_cells", "min_cells_per_batch")
    form = SpecForm("data", leave_out=tuple(field.name for field in form_fields(DataSpec, "data") if field.name not in few))
    qtbot.addWidget(form)
    form.set_spec(RunSpec())
    form.resize(420, 300)
    form.show()
    qtbot.waitExposed(form)
    assert not form._search.isVisible() and form._advanced.isVisible()
    assert form._advanced.width() == form._advanced.sizeHint().width() < 200


def test_the_training_settings_of_a_family_are_its_defaults(qtbot):
    form = SpecForm("training")
    qtbot.addWidget(form)
    form.set_spec(RunSpec())
    form.show()
    spec = RunSpec().with_changes({"model.kind": "midas"})
    assert spec.training.learning_rate != RunSpec().training.learning_rate
    form.set_spec(spec)
    rows = [form.row(path) for path in form.paths()]
    assert not any(row.is_changed() for row in rows)
    sent = []
    form.changed.connect(sent.append)
    form.set_spec(spec.with_changes({"training.learning_rate": 0.5}))
    form.row("training.learning_rate").reset.click()
    assert sent == [{"training.learning_rate": spec.training.learning_rate}]
    form.set_spec(RunSpec())
    assert not any(row.is_changed() for row in rows)
