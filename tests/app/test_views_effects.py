"""The Ambient view: genes with their background by level, bars of one gene, what is said of covariates."""

from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt
from window_support import QUICK, show_run, small_h5ad

from cellweave.app.views.levelbars import LevelBars
from cellweave.core.query.effects import Effects
from cellweave.core.runs.execute import execute
from cellweave.core.spec import RunSpec

LEFT = Qt.MouseButton.LeftButton


@pytest.fixture(scope="module")
def ambient(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ambient")
    data = small_h5ad(folder / "cells.h5ad")
    spec = RunSpec().with_changes({"model.kind": "ambient"})
    spec = spec.with_changes({"data.paths": (str(data),), "covariates.batch": "batch", "model.n_latent": 4, "model.n_hidden": 16,
                              "model.n_active_latent_per_cell": 2, "training.max_epochs": 4, "training.batch_size": 64, **QUICK})  # fmt: skip
    execute(spec, folder / "run")
    return folder / "run"


@pytest.fixture
def view(qtbot, window, ambient):
    show_run(qtbot, window, ambient)
    window.show_view("ambient")
    found = window.centre.view("ambient")
    qtbot.waitUntil(lambda: found.effects is not None and not found.message(), timeout=30_000)
    return found


def test_genes_are_in_the_order_of_their_background(view, ambient):
    stored = Effects.load(ambient / "results").background["rna"]["batch"]
    table = view.table.table
    assert [table.index(line, 0).data() for line in range(3)] == [f"gene{gene}" for gene in np.argsort(-stored.values[0], kind="stable")[:3]]
    assert {"Background", "Share", "vs. others", "Scaling", "Theta"} <= {column.title for column in table.columns}
    view.level.setCurrentIndex(1)
    np.testing.assert_allclose(view.table.table.values("background"), stored.values[1])
    np.testing.assert_allclose(view.plot.cloud.points().xy[:, 1], np.log10(stored.values[1]), rtol=1e-4)


def test_a_gene_is_shown_over_all_libraries(qtbot, view):
    view.choose(7)
    assert view.bars_title.text().startswith("gene7:")
    np.testing.assert_allclose(view.bars._values, view.effects.background["rna"]["batch"].values[:, 7])
    assert view.bars._levels == ("b0", "b1")
    with qtbot.waitSignal(view.bars.chosen):
        qtbot.mouseClick(view.bars, LEFT, pos=QPoint(60, view.bars._line() + 4))
    assert view.level.currentIndex() == 1
    assert "The RNA decoder is told of no covariate" in view.words.text() and "feature scaling lies between" in view.words.text()
    assert view.figure() == {"what": "ambient"}


def test_bars_keep_the_largest_where_there_is_no_room(qtbot):
    bars = LevelBars("Levels")
    qtbot.addWidget(bars)
    bars.resize(200, 3 * bars._line())
    bars.show_levels([f"l{number}" for number in range(10)], np.arange(10.0), share=True)
    bars.resize(200, 3 * bars._line())
    assert bars.shown() == [8, 9]
    assert bars.words(0.25) == "25.0%"


def test_it_is_computed_where_it_is_missing(qtbot, window, ambient, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(ambient, copy)
    (copy / "results" / "effects.npz").unlink()
    show_run(qtbot, window, copy)
    window.show_view("ambient")
    view = window.centre.view("ambient")
    qtbot.waitUntil(lambda: "was not looked at yet" in view.message(), timeout=30_000)
    qtbot.mouseClick(view.empty.action, LEFT)
    qtbot.waitUntil(lambda: view.effects is not None and not view.message(), timeout=60_000)
    assert Effects.load(copy / "results") is not None


def test_attribution_of_one_modality_is_not_drawn_against_itself(qtbot, window, ambient):
    show_run(qtbot, window, ambient)
    window.show_view("attribution")
    view = window.centre.view("attribution")
    qtbot.waitUntil(lambda: view.data is not None or view.message().endswith("seconds to minutes."), timeout=30_000)
    if view.data is None:
        view.attribute()
        qtbot.waitUntil(lambda: view.data is not None, timeout=30_000)
    assert view.alone
    assert not any(widget.isVisible() for widget in (view.scatter, view.score, view.across, view.up, view.log))
    assert view.bars.isVisible()
    assert [row.modality for row in view.bars._rows] == ["rna"]
    assert "log-ratios" not in view.said.text()
