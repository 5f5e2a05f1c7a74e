"""The Data page at 1280 x 720: the mosaic grid is seen at once, whatever there is to be noted."""

from __future__ import annotations

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
from qtpy.QtCore import QPoint
from qtpy.QtWidgets import QLabel
from scipy import sparse

from cellweave.core.spec import RunSpec

LONG = 60_000


@pytest.fixture
def mosaic(tmp_path):
    """Four batches: RNA alone, ADT alone, and both twice; one cell of the last batch has no count of ADT."""
    rng = np.random.default_rng(0)
    names = np.array([f"c{number}" for number in range(160)])
    batch = np.repeat(["b1", "b2", "b3", "b4"], 40)
    measured = {"rna": batch != "b2", "adt": batch != "b1"}
    parts = {}
    for name, there in measured.items():
        counts = sparse.csr_matrix(rng.poisson(2.0, (int(there.sum()), 30)).astype(np.float32))
        var = pd.DataFrame(index=[f"{name}{number}" for number in range(30)])
        parts[name] = anndata.AnnData(counts, obs=pd.DataFrame(index=names[there]), var=var)
    data = mudata.MuData(parts)
    order = pd.Series(batch, index=names).loc[data.obs_names]
    data.obs["batch"] = pd.Categorical(order)
    data.obs["type"] = pd.Categorical(rng.choice(["t1", "t2"], 160))
    path = tmp_path / "mosaic.h5mu"
    data.write(path)
    return path


@pytest.mark.parametrize("noted", [False, True])
def test_a_mosaic_of_four_batches_is_seen_without_scrolling(qtbot, window, mosaic, noted):
    window.resize(1280, 720)
    spec = RunSpec().with_changes({"model.kind": "midas", "data.paths": (str(mosaic),), "covariates.batch": "batch"})
    window.opening.open_spec(spec, "mosaic")
    qtbot.waitUntil(lambda: window.session.checked_spec is not None, timeout=LONG)
    panel = window.data_panel
    if noted:
        window.session.study.notes.extend(["A note about the files that is long enough to take two lines of the narrow page."] * 6)
        panel._show_summary()
    qtbot.wait(50)
    assert window.workflow.step() == 0
    area = window.workflow.areas[0]
    assert area.verticalScrollBar().value() == 0
    assert len(panel.mosaic.boxes) == 6 and panel.mosaic_rows.isVisible(), "the rows may also be types"
    for part in (panel.mosaic_title, *panel.mosaic.boxes.values(), panel.mosaic.connection):
        bottom = part.mapTo(area.viewport(), QPoint(0, part.height())).y()
        right = part.mapTo(area.viewport(), QPoint(part.width(), 0)).x()
        assert part.isVisible() and bottom <= area.viewport().height() and right <= area.viewport().width()
    assert panel.mosaic.connection.text() == "All batches are connected through RNA and ADT."
    notes = [label.text() for label in panel._notes.findChildren(QLabel) if label.isVisibleTo(panel._notes)]
    assert (len(notes) == 6) is noted, "notes stand below the grid"
    assert [label.text() for label in panel._card.findChildren(QLabel) if "note" in label.text()] == []
