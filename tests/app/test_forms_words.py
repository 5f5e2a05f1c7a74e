"""Values of choices are read as words in the window, and found, typed and stored as the spec names them."""

from __future__ import annotations

from typing import get_args

import pytest
from qtpy.QtWidgets import QLineEdit, QStyle, QStyleOptionComboBox

from cellweave.app.forms import SpecForm, form_fields
from cellweave.app.forms.editors import ChoiceEditor
from cellweave.app.forms.row import describe, tooltip
from cellweave.app.views.compare import run_columns
from cellweave.core.analysis.attribution_scores import SCORE_KINDS
from cellweave.core.analysis.integration import METRICS
from cellweave.core.export.figure_options import FigureOptions
from cellweave.core.models.registry import families
from cellweave.core.models.vaeit import Distribution, Normalisation
from cellweave.core.nn.distributions import distributions, transforms
from cellweave.core.query.comparison_settings import ComparisonSettings
from cellweave.core.query.questions import QUESTIONS, JudgeOptions
from cellweave.core.runs.comparing import RunRow, flat
from cellweave.core.spec import RunSpec, words
from cellweave.core.spec.analysis import AnalysisSpec
from cellweave.core.spec.covariates import CovariateSpec
from cellweave.core.spec.data import DataSpec, FeatureSelection
from cellweave.core.spec.training import TrainingSpec

CLASSES = [
    TrainingSpec, AnalysisSpec, DataSpec, FeatureSelection, CovariateSpec, FigureOptions, ComparisonSettings, JudgeOptions,
    *(question.options for question in QUESTIONS), *(family.options for family in families().values()),
]  # fmt: skip
WORDED = {f"{cls.__name__}.{field.name}": field for cls in CLASSES for field in form_fields(cls) if field.choices}
SPELT_SO = {"encoder", "decoder", "both", "automatic",
            "none", "normal", "tanh", "sigmoid", "softplus", "product", "sum", "kept", "equal", "all", "light", "dark", "baseline",
            "viridis", "cividis", "magma", "mean", "counts", "expected"}  # fmt: skip


@pytest.mark.parametrize("name", WORDED)
def test_every_value_of_every_choice_is_called_by_words_of_its_own(name):
    field = WORDED[name]
    missing = [choice for choice in field.choices if str(choice) not in field.words]
    assert not missing
    said = [field.word(choice) for choice in field.choices]
    assert len(set(said)) == len(said), "two values are called the same"
    assert not any("_" in word or "-batch" in word for word in said)
    assert {choice for choice in field.choices if field.word(choice) == choice} <= SPELT_SO


def test_distributions_transforms_and_metrics_have_words():
    midas, vaeit = ({field.name: field for field in form_fields(families()[kind].options)} for kind in ("midas", "vaeit"))
    assert set(midas["distribution"].words) == set(distributions())
    assert set(midas["transform"].words) == set(midas["encoder_transform"].words) == set(transforms())
    assert set(vaeit["distribution"].words) == set(get_args(Distribution))
    assert set(vaeit["normalisation"].words) == set(get_args(Normalisation))
    assert {name: word.casefold() for name, word in words.METRIC_WORDS.items()} == {name: info.title.casefold() for name, info in METRICS.items()}
    assert {name: word.casefold() for name, word in words.ATTRIBUTIONS.items()} == {name: info.title.casefold() for name, info in SCORE_KINDS.items()}


@pytest.fixture
def midas(qtbot):
    form = SpecForm("model")
    qtbot.addWidget(form)
    form.set_spec(RunSpec().with_changes({"model.kind": "midas"}))
    form.set_advanced(True)
    return form


def test_a_choice_shows_words_and_gives_the_value(qtbot, midas):
    editor = midas.row("model.norm").editor
    assert isinstance(editor, ChoiceEditor)
    assert [editor.itemText(place) for place in range(editor.count())] == ["layer norm", "batch norm", "none"]
    assert editor.currentText() == "layer norm" and editor.value() == "ln"
    with qtbot.waitSignal(midas.changed) as sent:
        editor.setCurrentIndex(1)
        editor.activated.emit(1)
    assert sent.args == [{"model.norm": "bn"}]


@pytest.mark.parametrize("needle", ["ln", "layer norm", "bn"])
def test_search_finds_values_and_words(midas, needle):
    midas.findChild(QLineEdit, "").setText(needle)
    assert midas.row("model.norm").is_shown()
    assert not midas.row("model.n_latent").is_shown()


@pytest.mark.parametrize("typed", ["adt = negative binomial", "adt = nb", "adt = NB", "adt = Negative Binomial"])
def test_a_table_takes_words_and_values_and_shows_words(qtbot, midas, typed):
    editor = midas.row("model.distribution").editor
    editor.setText(typed)
    with qtbot.waitSignal(midas.changed) as sent:
        editor.editingFinished.emit()
    assert sent.args == [{"model.distribution": {"adt": "nb"}}]
    assert editor.text() == "adt = negative binomial"
    editor.setText("adt = nonsense")
    with qtbot.waitSignal(midas.changed) as sent:
        editor.editingFinished.emit()
    assert sent.args == [{"model.distribution": {"adt": "nonsense"}}]  # the spec refuses it in a sentence


def test_one_value_or_one_by_modality_is_read_and_shown_in_words(qtbot):
    form = SpecForm("model")
    qtbot.addWidget(form)
    spec = RunSpec().with_changes({"model.kind": "multimodal", "model.dispersion": {"rna": "gene", "atac": "gene-batch"}})
    form.set_spec(spec)
    editor = form.row("model.dispersion").editor
    assert editor.text() == "rna = per feature, atac = feature × level"
    editor.setText("per feature")
    with qtbot.waitSignal(form.changed) as sent:
        editor.editingFinished.emit()
    assert sent.args == [{"model.dispersion": "gene"}]
    editor.setText("per nothing")
    with qtbot.waitSignal(form.rejected) as refused:
        editor.editingFinished.emit()
    assert "is not one of feature × level, per feature." in refused.args[1]


def test_metrics_are_named_and_offered_in_words(qtbot):
    form = SpecForm("analysis")
    qtbot.addWidget(form)
    form.set_spec(RunSpec().with_changes({"analysis.integration_metrics": ("ilisi", "nmi")}))
    editor = form.row("analysis.integration_metrics").editor
    assert editor.inner.text() == "iLISI, Leiden NMI"
    editor.inner.setText("kbet, Leiden ARI")
    with qtbot.waitSignal(form.changed) as sent:
        editor.inner.editingFinished.emit()
    assert sent.args == [{"analysis.integration_metrics": ("kbet", "ari")}]
    editor.menu.aboutToShow.emit()
    assert [action.text() for action in editor.menu.actions()] == list(words.METRIC_WORDS.values())
    with qtbot.waitSignal(form.changed) as sent:
        editor.menu.actions()[0].trigger()
    assert sent.args == [{"analysis.integration_metrics": ("kbet", "ari", "ilisi")}]


def test_the_tooltip_tells_how_a_spec_file_names_the_values():
    field = next(one for one in form_fields(families()["midas"].options, "model") if one.name == "norm")
    assert "layer norm (ln), batch norm (bn), none" in tooltip(field)
    assert describe(field, "bn") == "batch norm"


def test_runs_are_compared_in_words(tmp_path):
    rows = []
    for kind, changes in (("vae", {"model.dispersion": "gene-label", "covariates.labels": "type"}), ("ambient", {"model.dispersion": "gene"})):
        spec = RunSpec().with_changes({"model.kind": kind, **changes})
        rows.append(RunRow(tmp_path / kind, kind, kind, spec=flat(spec)))
    _, values = run_columns(rows)
    assert list(values["model.dispersion"]) == ["gene × label", "per feature"]


@pytest.mark.parametrize("kind", families())
def test_no_word_is_cut_off_in_the_narrow_page(qtbot, kind):
    form = SpecForm("model")
    qtbot.addWidget(form)
    form.set_spec(RunSpec().with_changes({"model.kind": kind}))
    form.set_advanced(True)
    form.resize(312, 600)
    form.show()
    qtbot.waitExposed(form)
    cut = []
    for editor in form.findChildren(ChoiceEditor):
        option = QStyleOptionComboBox()
        editor.initStyleOption(option)
        part = QStyle.SubControl.SC_ComboBoxEditField
        room = editor.style().subControlRect(QStyle.ComplexControl.CC_ComboBox, option, part, editor).width()
        texts = [editor.itemText(place) for place in range(editor.count())]
        cut += [text for text in texts if editor.fontMetrics().horizontalAdvance(text) > room]
    assert cut == []


# ---------------------------------------------------------------------- units


@pytest.mark.parametrize(
    ("section", "path", "unit"),
    [
        ("training", "training.learning_rate", "per step"), ("training", "training.lr_min", "per step"), ("training", "training.batch_size", "cells"),
        ("training", "training.weight_decay", "× weights"), ("model", "model.discriminator_rate", "× network's"),
    ],
)  # fmt: skip
def test_fields_in_powers_show_their_units_too(qtbot, section, path, unit):
    form = SpecForm(section)
    qtbot.addWidget(form)
    form.set_spec(RunSpec().with_changes({"model.kind": "midas"}))
    form.set_advanced(True)
    form.resize(312, 600)  # as narrow as the page is in a window of 1280 x 720
    form.show()
    qtbot.waitExposed(form)
    box = form.row(path).editor
    assert box._unit.isVisible() and box._unit.text() == unit
    edit = box.lineEdit()
    assert box._unit.geometry().left() >= edit.fontMetrics().horizontalAdvance(edit.text())
    assert unit in box.accessibleName() and "in per" not in box.accessibleName() and "in ×" not in box.accessibleName()


def test_a_long_number_is_seen_whole_before_its_unit_is(qtbot, midas):
    midas.resize(312, 600)
    midas.show()
    qtbot.waitExposed(midas)
    box = midas.row("model.discriminator_rate").editor
    assert box._unit.isVisible()
    box.set_value(0.00012345678)
    assert not box._unit.isVisible() and box.lineEdit().textMargins().right() == 0
    box.set_value(0.5)
    assert box._unit.isVisible()
