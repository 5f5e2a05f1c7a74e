"""Asking MIDAS through the dialog: imputed values with draws, batch-corrected and translated values, latents given some modalities."""

from __future__ import annotations

from pathlib import Path

import anndata
import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
from qtpy.QtCore import Qt

from cellweave.core.query.imputed import ImputedQuestion, imputed_chunks
from cellweave.core.query.mosaic import MosaicQuestion, mosaic_values
from cellweave.core.query.opened import open_run

LEFT = Qt.MouseButton.LeftButton


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A short run on the example: RNA only, ADT only, both."""
    from cellweave.core.example import EXAMPLE_BATCH, example_path
    from cellweave.core.runs.execute import execute
    from cellweave.core.spec import RunSpec

    folder = tmp_path_factory.mktemp("asked") / "run"
    changes = {
        "model.n_latent": 4, "model.shared_encoder": "32, 16", "model.shared_decoder": "16, 32", "data.paths": (str(example_path()),),
        "covariates.batch": EXAMPLE_BATCH, "training.max_epochs": 3, "training.threads": 1, "training.device": "cpu", "training.preview_every": 0,
        **{f"analysis.{name}": False for name in ("umap", "clusters", "baseline", "scores", "alignment")},
    }  # fmt: skip
    execute(RunSpec().with_changes({"model.kind": "midas"}).with_changes(changes), folder)
    return folder


@pytest.fixture
def dialog(make_window, folder, qtbot):
    made = make_window()
    made.runs.open(folder)
    qtbot.waitUntil(lambda: made.watching.results is not None and made.watching.results.folder == folder, timeout=20_000)
    made.actions_by_id["analyse.ask"].trigger()
    yield made.asking.dialog
    made.asking.dialog.close()


def asked(qtbot, dialog, name, options=None, suffix=""):
    dialog.list.setCurrentRow([question.name for question in dialog.questions].index(name))
    dialog._changed(options or {})
    if suffix:
        dialog.format.setCurrentIndex(dialog.format.findData(suffix))
    qtbot.mouseClick(dialog.start, LEFT)
    qtbot.waitUntil(lambda: dialog._task is None, timeout=60_000)
    return None if dialog.answer is None else dialog.answer.path


def test_modalities_are_understood_as_they_are_written_everywhere(dialog, qtbot):
    """The window writes RNA and ADT, so a person writes them too."""
    path = asked(qtbot, dialog, "translated", {"given": ("RNA",), "modalities": ("Adt",)}, ".h5ad")
    assert path is not None
    assert anndata.read_h5ad(path).n_vars == 224
    assert "ADT from RNA" in dialog.said.text()
    assert asked(qtbot, dialog, "latent_given", {"given": ("ADT",)}) is not None
    assert asked(qtbot, dialog, "imputed", {"given": ("protein",)}) is None
    assert "no modality 'protein'" in dialog.said.text()


def test_only_what_midas_can_answer_is_offered(dialog):
    assert [question.name for question in dialog.questions] == ["imputed", "corrected", "translated", "latent_given"]
    dialog.list.setCurrentRow(0)
    assert dialog.forms["imputed"].paths() == ["given", "modalities", "blended", "draws", "seed", "values"]  # it has no other scale than counts


def test_imputed_values_with_draws_are_those_of_the_core(qtbot, dialog, folder):
    path = asked(qtbot, dialog, "imputed", {"draws": 4, "seed": 5})
    found, run = mudata.read_h5mu(path), open_run(folder)
    rows = run.rows(None)[::97]  # a few cells in another company
    for where, mean, sd in imputed_chunks(run, rows, ImputedQuestion(draws=4, seed=5)):
        for name in ("rna", "adt"):
            own = found.mod[name][run.cell_names[rows[where]]]
            np.testing.assert_allclose(own.X, mean[name], rtol=1e-3)
            np.testing.assert_allclose(own.layers["sd"], sd[name], rtol=1e-2, atol=1e-4)
            assert (sd[name] > 0).any()
    assert "standard deviation over the draws" in dialog.said.text()
    one = anndata.read_h5ad(asked(qtbot, dialog, "imputed", {"modalities": ("adt",), "draws": 4, "seed": 6}, ".h5ad"))
    assert not np.allclose(one.X, found.mod["adt"].X)
    # Counts instead of means; what does not go with them is said.
    for changes, words in (({"values": "drawn"}, "no drawn counts"), ({"draws": None, "blended": True}, "also where they were measured")):
        assert asked(qtbot, dialog, "imputed", changes) is None
        assert words in dialog.said.text()
    assert asked(qtbot, dialog, "imputed", {"blended": False}, ".csv") is None
    assert "Drawn counts are not written as .csv" in dialog.said.text()
    drawn = anndata.read_h5ad(asked(qtbot, dialog, "imputed", {"given": ("rna",)}, ".h5ad"))
    wanted = mosaic_values(run, question=MosaicQuestion("imputed", ("rna",), ("adt",), sampled=True, seed=6))["adt"]
    assert ((wanted == drawn.X) | (np.isnan(wanted) & np.isnan(drawn.X))).mean() > 0.9999


def test_corrected_and_translated_values_are_those_of_the_core(qtbot, dialog, folder):
    run = open_run(folder)
    path = asked(qtbot, dialog, "corrected")
    means = mosaic_values(run, question=MosaicQuestion("corrected"))
    np.testing.assert_allclose(mudata.read_h5mu(path).mod["adt"].X, means["adt"], rtol=1e-4)
    path = asked(qtbot, dialog, "corrected", {"values": "drawn", "seed": 2}, ".h5")
    with h5py.File(path) as file:
        drawn = file["rna"]["X"][()]
        assert file.attrs["values"] == "draws"
    assert np.array_equal(drawn, np.rint(drawn))
    assert (drawn == mosaic_values(run, question=MosaicQuestion("corrected", sampled=True, seed=2))["rna"]).mean() > 0.9999
    assert "counts drawn with seed 2" in dialog.said.text()
    assert asked(qtbot, dialog, "translated") is None
    assert "needs the modalities it starts from" in dialog.said.text()
    for given, wanted in (("rna", "adt"), ("adt", "rna")):
        found = anndata.read_h5ad(asked(qtbot, dialog, "translated", {"given": (given,)}, ".h5ad"))
        values = mosaic_values(run, question=MosaicQuestion("translated", (given,)))[wanted]
        np.testing.assert_allclose(found.X, values, rtol=1e-3)
        assert "400 cells have nothing to start from and no values." in dialog.said.text()


def test_a_latent_given_one_modality_is_of_the_cells_that_have_it(qtbot, dialog, folder):
    table = pd.read_csv(asked(qtbot, dialog, "latent_given", {"given": ("rna",)}), index_col="cell")
    assert table.shape == (1200, 4)
    whole = pd.read_csv(asked(qtbot, dialog, "latent_given", {"given": ()}), index_col="cell")
    np.testing.assert_allclose(whole.to_numpy(), np.load(folder / "results" / "latent.npy"), rtol=1e-3, atol=1e-5)
    only = whole.index[:400]  # cells that have RNA alone: nothing is left out of theirs
    np.testing.assert_allclose(table.loc[only], whole.loc[only], rtol=1e-3, atol=1e-5)
    assert not np.allclose(table.to_numpy()[-400:], whole.loc[table.index].to_numpy()[-400:], rtol=1e-2)
