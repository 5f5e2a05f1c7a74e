"""The Modalities view: pictures of batches by modalities, the table of their agreement, and what they do to the selection."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from qtpy.QtCore import QEvent, QPoint, Qt
from qtpy.QtGui import QHelpEvent
from qtpy.QtWidgets import QApplication, QToolTip
from synthetic_runs import make_run

from cellweave.app import theme
from cellweave.app.state.results import Cells
from cellweave.app.views.declared import VIEWS, view_info
from cellweave.app.views.modalities import Found, ModalitiesView, read_modalities
from cellweave.app.views.modalitygrid import ModalityGrid
from cellweave.core.export.run_data import ColumnValues
from cellweave.core.spec import RunSpec


def layout_of(n_cells: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Two columns of pictures, two batches; the second batch has no second modality."""
    rng = np.random.default_rng(0)
    layout = rng.normal(size=(2, n_cells, 2)).astype(np.float32)
    codes = np.repeat([0, 1], n_cells // 2).astype(np.int32)
    layout[1, codes == 1] = np.nan
    return layout, codes


@pytest.fixture
def grid(qtbot):
    made = ModalityGrid()
    qtbot.addWidget(made)
    made.resize(500, 400)
    layout, codes = layout_of()
    made.set_cells(layout, ("All together", "RNA"), codes, ("a", "b"))
    return made


def test_each_picture_is_drawn_and_what_was_not_measured_is_said(grid):
    picture = grid.grab().toImage()
    assert len(grid._images) == 3  # the fourth says that it was not measured
    assert picture.width() > 0
    colours = {tuple(np.unique(np.frombuffer(image.constBits().asstring(image.sizeInBytes()), np.uint32))) for image in grid._images.values()}
    assert all(len(found) > 2 for found in colours)


def test_what_was_switched_off_is_not_said_to_be_unmeasured_and_short_names_are_told_whole(grid, qtbot):
    layout, codes = layout_of()
    assert grid.absent(1, 1) == "not measured"
    for name in ("multiome_s1d1", "multiome_s1d2", "p3_0", "a batch, a name"):
        grid.set_cells(layout, ("All together", "RNA"), codes, ("a", name))
        assert grid.written(name) == name
    long = "a batch with a name that is far too long for the margin"
    grid.set_cells(layout, ("All together", "RNA"), codes, ("a", long), frozenset({(long, "RNA")}))
    assert grid.absent(1, 1) == "switched off" and grid.absent(0, 1) == "not measured"
    assert "…" in grid.written(long)
    grid.show()
    at = QPoint(10, round(grid._cell(1, 0).center().y()))
    QApplication.sendEvent(grid, QHelpEvent(QEvent.Type.ToolTip, at, grid.mapToGlobal(at)))
    qtbot.waitUntil(lambda: QToolTip.text() == long)


def test_hiding_a_level_changes_the_pictures(grid):
    grid.grab()
    before = [pixels.copy() for pixels in grid._pixels]
    grid.set_colour(grid._colour, frozenset({1}))
    grid.grab()
    assert any(not np.array_equal(a, b) for a, b in zip(before, grid._pixels, strict=True))


def test_a_batch_is_chosen_by_mouse_and_by_key(grid, qtbot):
    grid.show()
    at = grid._cell(1, 0).center()
    with qtbot.waitSignal(grid.chosen) as told:
        qtbot.mouseClick(grid, Qt.MouseButton.LeftButton, pos=QPoint(round(at.x()), round(at.y())))
    assert told.args == [1]
    with qtbot.waitSignal(grid.chosen) as told:
        qtbot.keyClick(grid, Qt.Key.Key_Up)
    assert told.args == [0]


class Context:
    def next_step(self):
        return "Open data…", lambda: None

    def save_csv(self, name, csv):
        self.saved = (name, csv())


@pytest.fixture
def view(qtbot):
    made = ModalitiesView(Context())
    qtbot.addWidget(made)
    layout, codes = layout_of()
    columns = {"batch": ColumnValues.of_levels("batch", codes, ["a", "b"]), "cell_type": ColumnValues.of_levels("cell_type", codes % 2, ["T", "B"])}
    pairs = ({"first": "RNA", "second": "ADT", "n_cells": 30, "foscttm": 0.95, "transfer": None, "mixing": 0.9},)
    made._take(Found(layout, ("All together", "RNA"), Cells(np.arange(60) + 100, np.array([f"c{k}" for k in range(60)]), columns), pairs, "batch"))
    return made


def test_the_table_and_the_colours_follow_the_run(view):
    assert view.table.as_csv().splitlines()[1].startswith("RNA and ADT,30")
    assert view.colour.count() == 2
    view.colour.setCurrentIndex(view.colour.findData("cell_type"))
    assert view.grid._colour.levels == ("T", "B")
    assert not view.message()


def test_the_name_of_a_column_is_read_whole_also_after_the_view_was_shown_empty(qtbot):
    made = ModalitiesView(Context())
    qtbot.addWidget(made)
    made.set_message("")
    made.show()
    qtbot.waitExposed(made)
    assert made.colour.sizeHint().width() < made.fontMetrics().horizontalAdvance("cell_type_of_the_second_level")
    layout, codes = layout_of()
    long = "cell_type_of_the_second_level"
    columns = {"batch": ColumnValues.of_levels("batch", codes, ["a", "b"]), long: ColumnValues.of_levels(long, codes % 2, ["T", "B"])}
    made._take(Found(layout, ("All together", "RNA"), Cells(np.arange(60), np.array([f"c{k}" for k in range(60)]), columns), (), "batch"))
    assert made.colour.sizeHint().width() > made.fontMetrics().horizontalAdvance(long)


def test_choosing_a_batch_selects_its_cells(view, qtbot):
    with qtbot.waitSignal(view.selectionChanged) as told:
        view._chosen(1)
    np.testing.assert_array_equal(told.args[0], np.arange(130, 160))


def test_without_a_picture_the_table_is_still_there(view):
    found = view.found
    view._take(Found(None, found.names, found.cells, found.pairs, "batch"))
    assert view.no_picture.isVisibleTo(view)
    assert not view.grid.isVisibleTo(view)


def test_it_is_offered_for_midas_only():
    info = view_info("modalities")
    assert not info.offered(RunSpec(), None)
    assert len({view.key for view in VIEWS if view.key}) == len([view for view in VIEWS if view.key])


def test_every_part_of_the_score_is_shown_and_what_is_missing_is_said(view):
    assert view.parts.table.rowCount() == 0
    assert "compute" in view.total.text()
    found = view.found
    parts = [
        {"name": "ilisi", "title": "iLISI", "help": "", "score": "scmib_batch", "value": 0.25, "why": "", "of": "latent"},
        {"name": "kbet", "title": "kBET", "help": "", "score": "scmib_batch", "value": None, "why": "no batches", "of": "latent"},
        {"name": "counts_ilisi", "title": "iLISI, corrected counts", "help": "", "score": "scmib_batch", "value": 0.5, "why": "", "of": "counts"},
        {"name": "counts_kbet", "title": "kBET, corrected counts", "help": "", "score": "scmib_batch", "value": None, "why": "not drawn", "of": "counts"},
        {"name": "told_atac", "title": "AUROC, ATAC", "help": "", "score": "modality_score", "value": None, "why": "no such modality", "of": ""},
    ]
    view._take(Found(found.layout, found.names, found.cells, found.pairs, "batch", {"parts": parts, "scores": {}, "notes": []}, "scMIB 0.400."))
    assert view.total.text() == "scMIB 0.400."
    view.parts_csv.click()
    name, csv = view.context.saved
    assert name == "scmib"
    assert csv.splitlines()[1:] == [
        "iLISI,Batch mixing,0.25,0.5,", "kBET,Batch mixing,nan,nan,\"no batches, counts: not drawn\"", "\"AUROC, ATAC\",Modalities,nan,nan,no such modality",
    ]  # fmt: skip


def test_the_figure_takes_the_colour_of_the_view(view):
    view.colour.setCurrentIndex(view.colour.findData("cell_type"))
    assert view.figure() == {"what": "modalities", "columns": ("cell_type",)}
    assert view.figure_button.isEnabled()
    found = view.found
    view._take(Found(None, found.names, found.cells, (), "batch"))
    assert view.figure() is None
    assert not view.figure_button.isEnabled()


def test_the_legend_takes_the_ink_of_a_new_theme_and_keeps_what_is_hidden(view):
    app, before = QApplication.instance(), theme.mode()
    try:
        theme.apply(app, "light")
        view.show()
        column = view._column()
        view._show_levels(column, frozenset({2}))
        theme.apply(app, "dark")
        inks = [view.legend.item(row).foreground().color() for row in range(2)]
        assert inks == [theme.current().color("text"), theme.current().color("disabled")]
        np.testing.assert_array_equal(view.legend._colours, column.colours("dark"))
    finally:
        theme.apply(app, before)


def test_a_pair_is_named_in_the_order_of_the_pictures(tmp_path):
    """The engine names pairs by the alphabet, ADT before RNA; the pictures stand the other way round."""
    (tmp_path / "cells.h5ad").write_bytes(b"cells")
    run = make_run(tmp_path / "run", [tmp_path / "cells.h5ad"], [20])
    for name in ("adt", "rna"):
        np.save(run.results / f"c_{name}.npy", np.zeros((20, 2), np.float32))
    pair = {"first": "adt", "second": "rna", "n_cells": 20, "foscttm": 0.9, "transfer": 0.8, "mixing": 0.7}
    (run.results / "alignment.json").write_text(json.dumps({"pairs": [pair]}), encoding="utf-8")
    found = read_modalities(SimpleNamespace(folder=run.path, spec=run.spec))
    assert found.names == ("All together", "RNA", "ADT")
    assert [(one["first"], one["second"], one["foscttm"]) for one in found.pairs] == [("RNA", "ADT", 0.9)]
