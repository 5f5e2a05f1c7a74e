"""A mapped run in the window: its cells among those of the reference, and alone."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest
from window_support import QUICK, show_run, small_h5ad

from cellweave.app.state.results import ORIGIN
from cellweave.core.query.surgery import mapping_spec
from cellweave.core.runs.events import Warned
from cellweave.core.runs.execute import execute


@pytest.fixture
def mapped(trained: dict[str, Path], home: Path, tmp_path: Path) -> Path:
    small_h5ad(tmp_path / "new.h5ad", seed=3, n_cells=90)
    adata = anndata.read_h5ad(tmp_path / "new.h5ad")
    adata.obs["batch"] = "b9"
    adata.obs["plate"] = ["p1", "p2"] * 45
    adata.write_h5ad(tmp_path / "new.h5ad")
    changes = {**QUICK, "training.max_epochs": 1, "analysis.umap": True, "analysis.umap_epochs": 20}
    execute(mapping_spec(trained["vae"], [tmp_path / "new.h5ad"], changes), home / "runs" / "mapped-01")
    return home / "runs" / "mapped-01"


def test_new_cells_are_shown_among_those_of_the_reference(qtbot, window, trained, mapped):
    show_run(qtbot, window, mapped)
    bar, view = window.embedding.bar, window.embedding
    qtbot.waitUntil(lambda: view.points().size == 90 + 240)
    assert bar.reference.isChecked()
    assert not bar._with_reference.isHidden()
    assert view.shown_columns()[:2] == [ORIGIN, "transferred_label"]
    column = window.centre._cells.columns
    assert np.bincount(column[ORIGIN].codes).tolist() == [90, 240]
    assert set(column["batch"].levels) == {"b0", "b1", "b9"}
    assert (column["plate"].codes[90:] == -1).all()
    assert (column["latent:1"].missing[90:]).all()
    # A selection of both: the other views get the run's own cells, the selection panel counts all.
    view.select([3, 80, 100, 300])
    assert window.centre.selection.tolist() == [3, 80]
    assert window.inspector.selected().tolist() == [3, 80, 100, 300]
    window.centre.select(np.array([5, 6]))
    assert view.selection().tolist() == [5, 6]
    # Alone.
    bar.reference.setChecked(False)
    assert view.points().size == 90
    np.testing.assert_array_equal(view.points().xy, window.watching.results.xy)
    bar.reference.setChecked(True)
    assert view.points().size == 330
    # A gene is known of the new cells only.
    window.expression.show(["gene3"])
    qtbot.waitUntil(lambda: "gene:gene3" in view.shown_columns(), timeout=60_000)
    values = view.panels()[0].column().values
    assert np.isfinite(values[:90]).all()
    assert np.isnan(values[90:]).all()
    # Another run has no reference.
    show_run(qtbot, window, trained["vae"])
    qtbot.waitUntil(lambda: view.points().size == 240)
    assert bar._with_reference.isHidden()


def test_what_a_run_warned_of_goes_with_the_run(qtbot, window, trained):
    show_run(qtbot, window, trained["vae"])
    window.warn(Warned(text="The encoder of the reference is not told of the batch."), set())
    assert not window.centre.notice.isHidden()
    show_run(qtbot, window, trained["ldvae"])
    assert window.centre.notice.isHidden()
    window.notify("A file is written.")
    show_run(qtbot, window, trained["vae"])
    assert not window.centre.notice.isHidden()


def test_the_figure_begins_with_what_the_embedding_shows(qtbot, window, trained, mapped):
    show_run(qtbot, window, mapped)
    view = window.embedding
    qtbot.waitUntil(lambda: view.points().size == 90 + 240)
    assert window.centre.embedding_options() == {"layout": "joint", "columns": (ORIGIN, "transferred_label")}
    view.exportRequested.emit()
    dialog = window.figure_dialog
    assert (dialog.options().layout, dialog.options().columns) == ("joint", (ORIGIN, "transferred_label"))
    qtbot.waitUntil(lambda: not dialog.preview.picture().isNull(), timeout=90_000)
    dialog.close()
    window.embedding.bar.reference.setChecked(False)
    window.expression.show(["gene3"], "denoised")
    qtbot.waitUntil(lambda: "denoised:gene3" in view.shown_columns(), timeout=60_000)
    found = window.centre.embedding_options()
    assert found["layout"] == "umap" and found["columns"][0] == "denoised:gene3"
