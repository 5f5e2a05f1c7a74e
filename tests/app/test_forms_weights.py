"""The loss weights: slider and number say the same, off is 0, and a drag is sent throttled with its last value."""

from __future__ import annotations

import pytest
from qtpy.QtCore import QPoint, QPointF, Qt
from qtpy.QtGui import QWheelEvent
from qtpy.QtWidgets import QAbstractButton, QApplication

from cellweave.app.forms import LossWeightsForm
from cellweave.app.forms.weights import LogScale
from cellweave.app.theme import series_color
from cellweave.core.spec import RunSpec


@pytest.fixture
def form(qtbot):
    made = LossWeightsForm()
    qtbot.addWidget(made)
    made.set_spec(RunSpec().with_changes({"model.use_observed_lib_size": False}))
    made.resize(360, 500)
    made.show()
    qtbot.waitExposed(made)
    return made


@pytest.fixture
def sent(form):
    found = []
    form.weightChanged.connect(lambda term, weight: found.append((term, weight)))
    return found


def test_there_is_a_row_for_every_term(form):
    spec = RunSpec().with_changes({"model.use_observed_lib_size": False})
    assert form.terms() == [term.name for term in spec.terms()]
    form.set_spec(RunSpec())
    assert form.terms() == [term.name for term in RunSpec().terms()]
    for name in form.terms():
        row = form.row(name)
        assert row.term.label in row.slider.accessibleName() and row.term.help in row.slider.accessibleDescription()
        assert row.term.label in row.number.accessibleName()


@pytest.mark.parametrize("maximum", [1.0, 100.0, 3000.0])
def test_the_scale_goes_from_off_over_decades_to_the_maximum(maximum):
    scale = LogScale(maximum)
    assert scale.weight(0) == 0 and scale.position(0) == 0
    assert scale.weight(scale.last) == pytest.approx(maximum)
    weights = [scale.weight(place) for place in range(scale.last + 1)]
    assert weights == sorted(weights) and weights[1] < maximum / 1e5
    for place in range(1, scale.last + 1):
        assert scale.position(scale.weight(place)) == place
    assert scale.position(maximum * 10) == scale.last
    assert scale.position(maximum * 1e-12) == 1  # small is not off


def test_the_number_follows_the_slider_and_the_slider_the_number(qtbot, form, sent):
    row = form.row("kl_z")
    row.slider.setFocus()
    qtbot.keyClick(row.slider, Qt.Key.Key_PageDown)
    assert row.number.value() == pytest.approx(0.1) and sent == [("kl_z", 0.1)]
    row.number.setFocus()
    row.number.lineEdit().selectAll()
    qtbot.keyClicks(row.number.lineEdit(), "10")
    qtbot.keyClick(row.number.lineEdit(), Qt.Key.Key_Return)
    assert sent[1:] == [("kl_z", 10.0)]
    assert row.slider.value() == row.slider.scale.position(10.0)
    assert row.weight() == 10.0


def test_home_switches_off_and_arrows_switch_on_again(qtbot, form, sent):
    row = form.row("kl_z")
    row.slider.setFocus()
    qtbot.keyClick(row.slider, Qt.Key.Key_Home)
    assert sent == [("kl_z", 0.0)] and row.number.text() == "0"
    qtbot.keyClick(row.slider, Qt.Key.Key_Right)
    assert sent[1][1] > 0


def test_a_drag_is_sent_seldom_and_its_last_value_always(qtbot, form, sent):
    row = form.row("reconstruction")
    slider = row.slider
    handle = slider.scale.position(1.0)
    slider.setSliderDown(True)
    for step in range(30):
        slider.setValue(handle - step)
    QApplication.processEvents()
    assert len(sent) <= 1
    assert row.number.value() == slider.scale.weight(handle - 29)  # the number moves with the finger
    slider.setSliderDown(False)
    assert sent[-1] == ("reconstruction", slider.scale.weight(handle - 29))
    count = len(sent)
    qtbot.wait(150)
    assert len(sent) == count


def test_a_held_drag_is_sent_while_it_lasts(qtbot, form, sent):
    slider = form.row("kl_z").slider
    slider.setSliderDown(True)
    slider.setValue(slider.value() - 5)
    qtbot.waitUntil(lambda: len(sent) == 1, timeout=5000)
    slider.setSliderDown(False)
    assert len(sent) == 1  # what was sent already is not sent again


def test_the_mouse_moves_the_slider(qtbot, form, sent):
    slider = form.row("kl_z").slider
    qtbot.mouseClick(slider, Qt.MouseButton.LeftButton, pos=QPoint(3, slider.height() // 2))
    assert sent and sent[-1][1] < 1.0


def test_setting_a_spec_emits_nothing(form, sent):
    form.set_spec(RunSpec().with_changes({"model.use_observed_lib_size": False, "losses.weights.kl_z": 0.25}))
    assert form.row("kl_z").weight() == 0.25 and form.row("kl_z").number.value() == 0.25
    form.set_weight("kl_z", 4.0)
    form.set_weight("unknown", 4.0)
    assert form.row("kl_z").weight() == 4.0 and sent == []


def test_a_dot_shows_what_differs_and_reset_takes_it_back(qtbot, form, sent):
    row = form.row("kl_z")
    assert not row.mark.is_on()
    form.set_preset_baseline(RunSpec().with_changes({"losses.weights.kl_z": 0.5}), "the preset")
    assert row.mark.is_on() and row.reset.isVisible()
    qtbot.mouseClick(row.reset, Qt.MouseButton.LeftButton)
    assert sent == [("kl_z", 0.5)] and not row.mark.is_on()
    form.set_preset_baseline(None)
    assert row.mark.is_on()


def test_a_number_beyond_the_slider_is_kept(qtbot, form, sent):
    row = form.row("kl_z")
    row.number.setFocus()
    row.number.lineEdit().selectAll()
    qtbot.keyClicks(row.number.lineEdit(), "1234.5")
    qtbot.keyClick(row.number.lineEdit(), Qt.Key.Key_Return)
    assert sent == [("kl_z", 1234.5)] and row.slider.value() == row.slider.maximum()


def test_a_negative_weight_is_named(qtbot, form, sent):
    row = form.row("kl_z")
    row.number.setFocus()
    row.number.lineEdit().selectAll()
    qtbot.keyClicks(row.number.lineEdit(), "-1")
    qtbot.keyClick(row.number.lineEdit(), Qt.Key.Key_Return)
    assert sent == [] and row.problem.text() == "Weight of KL of the latent must be at least 0."


def test_the_wheel_leaves_a_slider_without_focus_alone(form, sent):
    slider = form.row("kl_z").slider
    form.row("reconstruction").number.setFocus()
    before = slider.value()
    wheel = QWheelEvent(
        QPointF(5, 5), QPointF(slider.mapToGlobal(QPoint(5, 5))), QPoint(0, 0), QPoint(0, -120), Qt.MouseButton.NoButton,
        Qt.KeyboardModifier.NoModifier, Qt.ScrollPhase.NoScrollPhase, False,
    )  # fmt: skip
    QApplication.sendEvent(slider, wheel)
    assert slider.value() == before and sent == []


def test_the_hue_is_that_of_the_curve(form):
    for name in form.terms():
        row = form.row(name)
        picture = row.hue.grab().toImage()
        middle = picture.pixelColor(picture.width() // 2, picture.height() // 2)
        assert middle.name() == series_color(row.term.colour).name()


def test_terms_of_modalities_that_the_data_lack_are_left_out(form, sent):
    spec = RunSpec().with_changes({"model.kind": "midas"})
    form.set_spec(spec)
    every = form.terms()
    assert "reconstruction_atac" in every
    present = frozenset({"rna", "adt"})
    form.set_spec(spec, present)
    assert form.terms() == [name for name in every if name != "reconstruction_atac"]
    form.set_spec(spec.with_changes({"losses.weights.kl_c": 3.0}), present)
    assert form.row("kl_c").weight() == 3.0
    form.set_spec(spec)
    assert form.terms() == every
    assert not sent


@pytest.mark.parametrize("kind", ["midas", "multimodal", "vaeit"])
def test_a_term_has_the_same_hue_before_a_run_and_in_it(kind):
    spec = RunSpec().with_changes({"model.kind": kind, "covariates.batch": "batch"})
    form = {term.name: term.colour for term in spec.terms()}
    begun = {"data.sha256": ("0" * 64,), "data.layers": {"rna": "X", "adt": "X"}}
    if kind == "multimodal":
        begun["model.modalities"] = ("rna", "adt")
    run = {term.name: term.colour for term in spec.with_changes(begun).terms()}
    assert not any(name.endswith("_atac") for name in run)
    assert run == {name: form[name] for name in run}


def test_what_was_found_of_a_weight_stands_with_the_weights_and_is_mended_there(window, qtbot):
    from cellweave.core.example import example_path

    session = window.session
    window.opening.open_path(str(example_path()))
    qtbot.waitUntil(lambda: session.checked_spec is not None and session.checked_spec == session.spec, timeout=60_000)
    session.editor.edit({"model.kind": "midas"})
    session.editor.edit({"losses.weights.adversarial": 30.0})
    panel = window.losses_panel
    qtbot.waitUntil(lambda: panel.mark() == "warn", timeout=60_000)
    assert not panel.checks.isHidden()
    assert not any(check.where.startswith("losses") for check in window.data_panel.checks._checks)
    assert window.data_panel.summary()[0] == "check"
    mend = next(button for button in panel.checks.findChildren(QAbstractButton) if button.text() == "Set it to 1")
    mend.click()
    assert session.spec.losses.weights["adversarial"] == 1
    qtbot.waitUntil(lambda: panel.mark() == "check", timeout=60_000)
    assert panel.checks.isHidden()
