"""Asking the model through its dialog, and mapping new data onto a run."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from qtpy.compat import isalive
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFileDialog, QPushButton
from window_support import show_run, small_h5ad

from cellweave.core.query.opened import open_run
from cellweave.core.query.questions import QUESTIONS
from cellweave.core.runs.folder import RunFolder
from cellweave.core.study.checks import Level

LEFT = Qt.MouseButton.LeftButton
LONG = 90_000
OPTIONS = {
    "predictive": {"draws": 2, "genes": ("gene1", "gene2")}, "correlation": {"genes": ("gene1", "gene2", "gene3"), "draws": 2},
    "evaluation": {"marginal_draws": 5}, "discrepancy": {"batch_size": 64}, "expression": {"genes": ("gene5",), "all_batches": True},
}  # fmt: skip


@pytest.fixture
def dialog(qtbot, window, trained):
    """LDVAE learns its library size, so that every question has an answer."""
    show_run(qtbot, window, trained["ldvae"])
    window.actions_by_id["analyse.ask"].trigger()
    yield window.asking.dialog
    window.asking.dialog.close()


def asked(qtbot, dialog, name, suffix=""):
    dialog.list.setCurrentRow([question.name for question in QUESTIONS].index(name))
    if name in OPTIONS:
        dialog._changed(OPTIONS[name])
    if suffix:
        dialog.format.setCurrentIndex(dialog.format.findData(suffix))
    qtbot.mouseClick(dialog.start, LEFT)
    qtbot.waitUntil(lambda: dialog._task is None, timeout=LONG)
    assert dialog.answer is not None, dialog.said.text()
    return dialog.answer.path


def test_nothing_can_be_asked_before_there_is_a_model(window):
    assert not window.actions_by_id["analyse.ask"].isEnabled()
    assert not window.actions_by_id["analyse.map"].isEnabled()


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
def test_every_question_is_answered_in_every_format(qtbot, dialog, question):
    for suffix in question.formats:
        path = asked(qtbot, dialog, question.name, suffix)
        assert path.suffix == suffix
        if suffix == ".csv":
            assert len(pd.read_csv(path)) > 0
        else:
            assert anndata.read_h5ad(path).n_obs > 0
        assert path.with_suffix(".json").is_file()
        assert dialog.said.text()


def test_answers_are_those_of_the_core(qtbot, dialog, trained):
    from cellweave.core.query.evaluate import elbo
    from cellweave.core.query.latent import latent_mean

    run = open_run(trained["ldvae"])
    table = pd.read_csv(asked(qtbot, dialog, "latent"), index_col="cell")
    np.testing.assert_allclose(table.to_numpy(), latent_mean(run), rtol=1e-4, atol=1e-6)
    asked(qtbot, dialog, "evaluation")
    assert f"ELBO: {elbo(run):,.3f} nats per cell.".replace("-", "\N{MINUS SIGN}") in dialog.said.text()
    draws = anndata.read_h5ad(asked(qtbot, dialog, "predictive"))
    assert list(draws.var_names) == ["gene1", "gene2"]
    assert list(draws.layers) == ["draw_2"]


def test_the_selected_cells_only(qtbot, window, trained):
    show_run(qtbot, window, trained["ldvae"])
    window.embedding.select(np.arange(7))
    window.asking.ask()
    dialog = window.asking.dialog
    dialog.cells.setCurrentIndex(1)
    table = pd.read_csv(asked(qtbot, dialog, "latent"), index_col="cell")
    assert table.index.tolist() == [f"cell{number}" for number in range(7)]
    dialog.close()


def test_what_cannot_be_answered_is_said_in_the_dialog(qtbot, dialog):
    dialog.list.setCurrentRow(2)
    dialog._changed({"genes": ("gnee1",)})
    qtbot.mouseClick(dialog.start, LEFT)
    qtbot.waitUntil(lambda: dialog._task is None, timeout=LONG)
    assert "Did you mean 'gene1'" in dialog.said.text()
    assert dialog.said.property("tone") == "bad"
    assert not dialog.copy.isVisible()


def test_a_copy_is_saved_elsewhere(qtbot, window, dialog, tmp_path, monkeypatch):
    path = asked(qtbot, dialog, "library")
    out = tmp_path / "mine.csv"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_, **__: (str(out), ""))
    qtbot.mouseClick(dialog.copy, LEFT)
    qtbot.waitUntil(lambda: out.is_file() and not window.tasks.busy(), timeout=LONG)
    assert out.read_bytes() == path.read_bytes()


def test_asking_can_be_cancelled(qtbot, dialog, trained):
    dialog.list.setCurrentRow([question.name for question in QUESTIONS].index("evaluation"))
    dialog._changed({"marginal_draws": 100_000})
    qtbot.mouseClick(dialog.start, LEFT)
    qtbot.mouseClick(dialog.stop, LEFT)
    qtbot.waitUntil(lambda: dialog._task is None, timeout=LONG)
    assert dialog.answer is None
    assert not list((trained["ldvae"] / "results").glob("answers/*.csv"))


# ---------------------------------------------------------------------- mapping


@pytest.fixture
def mapping(qtbot, window, trained):
    show_run(qtbot, window, trained["vae"])
    window.actions_by_id["analyse.map"].trigger()
    yield window.asking.mapping
    if isalive(window.asking.mapping):  # it closes when the run begins
        window.asking.mapping.close()


def looked(qtbot, mapping, path):
    mapping.set_paths([str(path)])
    qtbot.waitUntil(lambda: mapping._task is None, timeout=LONG)
    return mapping.checks


def new_data(path, *, batch="b9", genes=40):
    small_h5ad(path, seed=3, n_cells=90, n_genes=genes)
    adata = anndata.read_h5ad(path)
    adata.obs["batch"] = batch
    adata.write_h5ad(path)
    return path


def test_new_data_are_checked_and_mapped(qtbot, window, mapping, tmp_path):
    assert not mapping.start.isEnabled()
    checks = looked(qtbot, mapping, new_data(tmp_path / "new.h5ad"))
    assert all(check.level is not Level.FAIL for check in checks)
    assert any("New in 'batch', and learned: b9" in check.text for check in checks)
    assert mapping.start.isEnabled()
    mapping.epochs.setValue(2)
    qtbot.mouseClick(mapping.start, LEFT)
    qtbot.waitUntil(lambda: window.training.current is not None, timeout=LONG)
    folder = window.training.current.folder
    qtbot.waitUntil(lambda: not window.training.active, timeout=LONG)
    run = RunFolder(folder)
    assert run.status.reason.value == "completed", run.status.text
    assert run.spec.reference
    assert run.spec.name == "small vae + new data"
    qtbot.waitUntil(lambda: window.session.library.get(folder) is not None, timeout=LONG)


@pytest.mark.parametrize("how", ["known batch", "other genes", "no file"])
def test_data_that_do_not_fit_are_refused_with_the_reason(qtbot, mapping, tmp_path, how):
    path = tmp_path / "new.h5ad"
    if how == "known batch":
        new_data(path, batch="b0")
    elif how == "other genes":
        new_data(path, genes=12)
    checks = looked(qtbot, mapping, path)
    assert checks[-1].level is Level.FAIL
    expected = {"known batch": "knows every batch", "other genes": "features", "no file": "new.h5ad"}[how]
    assert expected in checks[-1].text
    assert not mapping.start.isEnabled()
    assert "cannot be mapped" in mapping.said.text()


def test_data_without_the_batch_are_mended_in_the_dialog(qtbot, mapping, tmp_path):
    path = new_data(tmp_path / "new.h5ad")
    adata = anndata.read_h5ad(path)
    del adata.obs["batch"]
    adata.write_h5ad(path)
    assert "no column 'batch'" in looked(qtbot, mapping, path)[-1].text
    assert not mapping.start.isEnabled()
    offered = {one.text(): one for one in mapping.findChildren(QPushButton)}
    qtbot.mouseClick(offered["All cells are one new batch"], LEFT)
    qtbot.waitUntil(lambda: mapping._task is None, timeout=LONG)
    assert mapping.start.isEnabled(), [check.text for check in mapping.checks]
    begun = []
    mapping._begin = begun.append
    qtbot.mouseClick(mapping.start, LEFT)
    qtbot.waitUntil(lambda: bool(begun), timeout=LONG)
    assert begun[0].data.new_columns == {"batch": "new"}
