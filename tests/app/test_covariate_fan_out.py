"""The covariates panel shows what a role fills, and every conflict at the row that causes it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QLabel

from cellweave.app.panels.covariates import CovariatesPanel
from cellweave.app.panels.roles import RolePopup
from cellweave.app.state.session import Session
from cellweave.app.workers.tasks import TaskRunner
from cellweave.core.models.registry import family
from cellweave.core.spec.covariates import CovariateSpec


def column(name: str) -> SimpleNamespace:
    return SimpleNamespace(
        name=name, kind="categorical", n_levels=2, levels=(("a", 5), ("b", 5)), smallest=("a", 5), n_missing=0, advice={}
    )


@pytest.fixture
def panel(qtbot, tmp_path, monkeypatch):
    monkeypatch.setenv("CELLWEAVE_HOME", str(tmp_path))
    session = Session()
    panel = CovariatesPanel(session, TaskRunner())
    qtbot.addWidget(panel)
    session.editor.edit({"model.kind": "ambient"})
    panel.view.columns.set_columns([column("lane"), column("donor")])
    panel.resize(330, 700)
    panel.show()
    return panel


def test_the_fan_out_is_shown_as_it_happens(panel) -> None:
    model = panel.view.columns
    heights = [panel.view.sizeHintForRow(row) for row in range(2)]
    panel.assign("lane", "batch", on=True)
    assert model.lines_below("lane") == [("→ ambient, dispersion, library size", "accent")]
    assert panel.view.sizeHintForRow(0) > heights[0] and panel.view.sizeHintForRow(1) == heights[1]
    panel.assign("donor", "decoder", on=True)
    assert model.lines_below("donor") == [("→ feature scaling", "accent")]
    panel.assign("donor", "feature_scaling", on=True)
    assert model.lines_below("donor") == []
    panel.assign("lane", "batch", on=False)
    assert model.lines_below("lane") == []
    assert panel.view.sizeHintForRow(0) == heights[0]


def test_a_conflict_stands_at_the_row_that_causes_it_and_is_read_out(panel) -> None:
    panel.assign("lane", "library", on=True)
    panel.assign("donor", "ambient", on=True)
    model = panel.view.columns
    ((words, tone),) = [line for line in model.lines_below("donor") if line[1] == "bad"]
    assert tone == "bad" and words.startswith("'lane' is the library, which fills")
    assert all(tone != "bad" for _, tone in model.lines_below("lane"))
    assert words in model.data(model.index(model.row_of("donor")), Qt.ItemDataRole.AccessibleTextRole)


def test_what_the_data_contradict_stands_at_its_row_too(panel) -> None:
    """A library in two data sets is known of the data, not of the roles alone."""
    from cellweave.core.study.checks import Check, Level

    panel.assign("lane", "library", on=True)
    panel.assign("donor", "dataset", on=True)
    model = panel.view.columns
    sentence = "Each library belongs to one data set, but 1 library of 'lane' lies in several levels of 'donor': 'a' lies in x, y."
    found = (Check("library-datasets", Level.FAIL, "Libraries in two data sets", sentence, where="covariates.library"),)
    panel._session.set_checks(found, panel._session.spec)
    assert (sentence, "bad") in model.lines_below("lane") and all(tone != "bad" for _, tone in model.lines_below("donor"))
    panel._session.set_checks((Check("library-datasets", Level.OK, "Libraries", "Fine.", where="covariates.library"),), panel._session.spec)
    assert all(tone != "bad" for _, tone in model.lines_below("lane"))


def test_the_popup_says_beforehand_what_would_conflict(qtbot) -> None:
    popup = RolePopup(column("donor"), family("ambient"), CovariateSpec(batch="lane"))
    qtbot.addWidget(popup)
    texts = [label.text() for label in popup.findChildren(QLabel)]
    against = [text for text in texts if text.startswith("Speaks against it")]
    assert len(against) == 4  # library, ambient, dispersion, library size
    assert any("Batch and library both fill" in text for text in against)
