"""The Neighbourhood view: findings on the embedding and in the table, numbers beside the baseline, groups, computing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtGui import QColor
from window_support import show_run

from cellweave.app.state.diagnosed import COLOURS, LEVELS, leaf_help, leaf_title, metric_title, read_diagnosed
from cellweave.core.analysis.neighbourhood_failures import LEAVES
from cellweave.core.analysis.neighbourhood_run import NeighbourhoodOptions, diagnose_run

LEFT = Qt.MouseButton.LeftButton


@pytest.fixture(scope="module")
def diagnosed(trained_once, tmp_path_factory):
    """A trained run with its diagnostics, its genes called as markers are."""
    import shutil

    folder = tmp_path_factory.mktemp("neighbourhood") / "run"
    shutil.copytree(trained_once["vae"], folder)
    np.save(folder / "results" / "baseline_pca.npy", np.load(folder / "results" / "latent.npy")[:, :2])
    diagnose_run(folder, NeighbourhoodOptions(stratify=("condition",), k=10))
    return folder


@pytest.fixture
def view(qtbot, window, diagnosed):
    show_run(qtbot, window, diagnosed)
    window.show_view("neighbourhood")
    found = window.centre.view("neighbourhood")
    qtbot.waitUntil(lambda: found.data is not None and not found.message(), timeout=30_000)
    return found


def test_every_leaf_has_words_and_a_colour():
    assert set(COLOURS) == {*LEAVES, "ideal"}
    for name in COLOURS:
        assert QColor.isValidColorName(COLOURS[name]) and leaf_title(name) != name and leaf_help(name).endswith(".")
    assert metric_title("corr_avg_same_library") == "Correlation, same library"


def test_findings_are_those_of_the_files(view, diagnosed):
    summary = json.loads((diagnosed / "results" / "neighbourhood.json").read_text())
    table = view.leaves.table
    shown = {table.index(line, 0).data(): table.index(line, 1).data() for line in range(table.rowCount())}
    assert shown == {leaf_title(name): f"{n:,}" for name, n in summary["leaves"]["failure_mode"].items()}
    assert [column.title for column in table.columns] == ["Finding", "Cells", "Share", "Before"]
    assert view.cards["total"].value.text() == f"{summary['composite']['total']:.2f}"
    assert view.cards["total"].before.text().endswith("without integration")
    assert view.panel.column_name() == "What went wrong"
    colours = view.panel.colours()
    levels = view.panel.column().levels
    for code, level in enumerate(levels, start=1):
        name = next(leaf for leaf in COLOURS if leaf_title(leaf) == level)
        assert tuple(colours[code]) == QColor(COLOURS[name]).getRgb()[:3]
    assert not view.panel.legend.isVisibleTo(view.panel), "the table is the legend"


def test_a_finding_selects_its_cells_everywhere(qtbot, window, view):
    with qtbot.waitSignal(view.selectionChanged) as signal:
        view.leaves.choose(0)
    name = view._leaves[0]
    rows = view.data.rows_of("failure_mode", name)
    np.testing.assert_array_equal(signal.args[0], rows)
    np.testing.assert_array_equal(window.centre.selection, np.sort(rows))
    assert view.leaf_words.text() == leaf_help(name)
    window.embedding.select(np.arange(4))
    assert view._selected.sum() == 4


def test_another_question(view):
    view.level.setCurrentIndex(view.level.findData("leaf_across_libraries"))
    assert view.panel.column_name() == LEVELS["leaf_across_libraries"]
    view.panel.show_column(LEVELS["leaf_within_library"])
    view._column_chosen(LEVELS["leaf_within_library"])
    assert view.level.currentData() == "leaf_within_library"
    assert view.figure() == {"what": "embedding", **view.figure_options()}
    assert view.figure_options()["columns"] == ("neighbourhood:leaf_within_library",)


def test_numbers_and_groups(view):
    table = view.numbers.table
    names = [table.index(line, 0).data() for line in range(table.rowCount())]
    assert names[0] == "Composite score" and "H1 Within libraries" in names and "H7 Across data sets" not in names
    view.numbers.choose(names.index("H1 Within libraries"))
    assert "same library" in view.number_words.text()
    view.group.setCurrentIndex(view.group.findData("condition"))
    strata = view.strata.table
    assert {strata.index(line, 0).data() for line in range(strata.rowCount())} == {"ill", "well"}


def test_it_is_computed_where_it_is_missing(qtbot, window, trained):
    show_run(qtbot, window, trained["vae"])
    window.show_view("neighbourhood")
    view = window.centre.view("neighbourhood")
    qtbot.waitUntil(lambda: "not computed yet" in view.message(), timeout=30_000)
    qtbot.mouseClick(view.empty.action, LEFT)
    qtbot.waitUntil(lambda: view.data is not None and not view.message(), timeout=90_000)
    assert (trained["vae"] / "results" / "neighbourhood.csv").is_file()
    assert view.library.currentData() == "batch"


def test_what_cannot_be_read_counts_as_missing(tmp_path):
    assert read_diagnosed(tmp_path, None, None) is None
    (tmp_path / "neighbourhood.json").write_text("{}")
    assert read_diagnosed(tmp_path, None, None) is None


def test_a_figure_of_the_findings(diagnosed, tmp_path):
    from cellweave.core.errors import SpecError
    from cellweave.core.export.figures import FigureOptions, save_figure
    from cellweave.core.export.run_data import RunData

    save_figure(diagnosed, "embedding", tmp_path / "out.png", FigureOptions(columns=("neighbourhood:failure_mode", "neighbourhood:corr_avg_all"), dpi=60))
    assert (tmp_path / "out.png").stat().st_size > 5000
    with pytest.raises(SpecError, match="Did you mean 'failure_mode'"):
        RunData(diagnosed).column("neighbourhood:failure_mod")
    with pytest.raises(SpecError, match="no attribution score"):
        RunData(diagnosed).column("attribution:rna")


def test_every_finding_that_is_no_ideal_has_a_colour_of_its_own():
    """One picture shows findings of several levels: two of one colour could not be told apart."""
    from cellweave.app.state.diagnosed import COLOURS
    from cellweave.core.analysis.neighbourhood_failures import LEAVES

    assert set(LEAVES) <= set(COLOURS)
    shades = [colour for name, colour in COLOURS.items() if not name.endswith("ideal")]
    assert len(set(shades)) == len(shades) and "#009E73" not in shades
