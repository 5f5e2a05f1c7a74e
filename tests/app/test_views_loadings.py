"""The Loadings view: what it shows is what is in the file, and a gene chosen in one part is marked in all."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import QFileDialog
from window_support import show_run

LEFT = Qt.MouseButton.LeftButton


@pytest.fixture
def view(qtbot, window, trained):
    show_run(qtbot, window, trained["ldvae"])
    window.show_view("loadings")
    found = window.centre.view("loadings")
    qtbot.waitUntil(lambda: found.loadings is not None, timeout=30_000)
    return found


@pytest.fixture
def table(trained):
    return pd.read_csv(trained["ldvae"] / "results" / "loadings.csv", index_col="feature")


def test_bars_and_map_show_the_strongest_genes(view, table):
    assert view.message() == ""
    first = table["Z_0"]
    shown = [view.loadings.features[row] for row in view._bars]
    assert shown[0] == first.idxmax()
    assert shown[-1] == first.idxmin()
    assert np.all(np.diff(first[shown]) <= 0)
    for column in table:
        best = table[column].abs().nlargest(view.each.value()).index
        assert set(best) <= {view.loadings.features[row] for row in view._rows}


def test_another_dimension_by_keys_and_by_a_click_into_the_map(qtbot, view, table):
    view.dimension.setFocus()
    qtbot.keyClick(view.dimension, Qt.Key.Key_Down)
    assert view.dimension.currentText() == "Z_1"
    assert view.loadings.features[view._bars[0]] == table["Z_1"].idxmax()
    plot = view.map._plot()
    wide = plot.width() / 4
    qtbot.mouseClick(view.map, LEFT, pos=QPoint(round(plot.left() + 3.5 * wide), round(plot.top() + 1.5 * view.map._line())))
    assert view.dimension.currentText() == "Z_3"
    assert view.gene == view._rows[1]
    assert view.table.current() == view.gene


def test_a_searched_gene_is_marked_everywhere(qtbot, view):
    qtbot.keyClicks(view.table.search, "gene17")
    assert view.table.table.rowCount() == 1
    assert view.table.count.text() == "1 of 40"
    qtbot.keyClick(view.table.search, Qt.Key.Key_Return)
    assert view.loadings.features[view.gene] == "gene17"
    view.table.search.setText("nothing like it")
    assert view.table.table.rowCount() == 0


def test_the_table_sorts_by_any_dimension(view, table):
    model = view.table.table
    model.sort(3, Qt.SortOrder.AscendingOrder)
    names = [model.index(row, 0).data() for row in range(model.rowCount())]
    assert names == table["Z_2"].sort_values(kind="stable").index.tolist()


def test_the_gene_colours_the_embedding(qtbot, window, view):
    view.choose(5)
    qtbot.mouseClick(view.colour, LEFT)
    qtbot.waitUntil(lambda: "gene:gene5" in window.embedding.shown_columns(), timeout=30_000)
    assert window.centre.current() == "embedding"
    window.show_view("loadings")
    view.dimension.setCurrentIndex(2)
    qtbot.mouseClick(view.colour_latent, LEFT)
    assert window.embedding.shown_columns()[0] == "latent:3"


def test_csv_and_figure_are_taken_away(qtbot, window, view, table, tmp_path, monkeypatch):
    out = tmp_path / "loadings.csv"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_, **__: (str(out), ""))
    qtbot.mouseClick(view.csv_button, LEFT)
    qtbot.waitUntil(lambda: not window.tasks.busy() and out.is_file(), timeout=30_000)
    written = pd.read_csv(out, index_col="feature")
    pd.testing.assert_frame_equal(written.sort_index(), table.sort_index(), check_exact=True)
    view.each.setValue(5)
    window.actions_by_id["file.figure"].trigger()
    assert window.figure_dialog.what() == "loadings"
    assert window.figure_dialog.options().genes_each == 5
    window.figure_dialog.close()


def test_a_broken_file_is_said_in_the_view(qtbot, window, trained):
    (trained["ldvae"] / "results" / "loadings.csv").write_text("feature,Z_0\na,not a number\n")
    show_run(qtbot, window, trained["ldvae"])
    window.show_view("loadings")
    view = window.centre.view("loadings")
    qtbot.waitUntil(lambda: "cannot be read" in view.message(), timeout=30_000)
