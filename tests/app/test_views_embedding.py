"""The Embedding view with real clicks, drags and keys."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.path import Path as Polygon
from qtpy.QtCore import QPoint, QPointF, Qt
from qtpy.QtGui import QColor, QContextMenuEvent, QFont
from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractItemView,
    QAbstractSlider,
    QApplication,
    QComboBox,
    QMenu,
    QScrollBar,
)

from cellweave.app import theme
from cellweave.app.theme import load_theme
from cellweave.app.views import ColumnData, EmbeddingView
from cellweave.app.views.legend import CODE, COUNT

N = 3000


@pytest.fixture
def cells():
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, N)
    xy = np.array([[-6.0, 0.0], [6.0, 0.0], [0.0, 8.0]])[kind] + rng.normal(size=(N, 2))
    missing = np.where(np.arange(N) < 100, -1, kind)
    columns = {
        "batch": ColumnData.categorical(rng.integers(0, 2, N), ["a", "b"]),
        "cell_type": ColumnData.categorical(missing, ["T", "B", "NK"]),
        "n_counts": ColumnData.continuous(rng.lognormal(size=N), unit="counts"),
    }
    return xy, columns, kind


@pytest.fixture
def view(qtbot, cells):
    made = EmbeddingView()
    qtbot.addWidget(made)
    made.resize(1100, 640)
    made.show()
    qtbot.waitExposed(made)
    xy, columns, _ = cells
    made.set_columns(columns)
    made.set_points(xy, [f"cell-{index}" for index in range(N)])
    settle()
    return made


def settle() -> None:
    for _ in range(5):
        QApplication.processEvents()


def click_level(qtbot, panel, code: int, *, double: bool = False) -> None:
    legend = panel.legend
    item = next(legend.item(row) for row in range(legend.count()) if legend.item(row).data(CODE) == code)
    place = legend.visualItemRect(item).center()
    qtbot.mouseClick(legend.viewport(), Qt.MouseButton.LeftButton, pos=place)
    if double:
        qtbot.mouseDClick(legend.viewport(), Qt.MouseButton.LeftButton, pos=place)


def place_of(panel, xy) -> QPoint:
    scene = panel.box.mapViewToScene(QPointF(float(xy[0]), float(xy[1])))
    return panel.canvas.mapFromScene(scene)


def drag(qtbot, panel, corners: list[QPoint], modifier=Qt.KeyboardModifier.NoModifier) -> None:
    """Draw with the left button through the corners, as a person does."""
    port = panel.canvas.viewport()
    qtbot.mousePress(port, Qt.MouseButton.LeftButton, modifier, corners[0])
    for start, end in pairwise(corners):
        for share in (0.25, 0.5, 0.75, 1.0):
            qtbot.mouseMove(port, start + (end - start) * share)
            qtbot.wait(12)  # pyqtgraph looks at the mouse a hundred times a second
    qtbot.mouseRelease(port, Qt.MouseButton.LeftButton, modifier, corners[-1])
    settle()


def test_an_empty_view_says_what_it_will_show(qtbot):
    view = EmbeddingView()
    qtbot.addWidget(view)
    view.show()
    assert view._grid.note.isVisible() and "cells appear here" in view._grid.note.text()
    view.set_message("Computing the first embedding…")
    assert view._grid.note.text() == "Computing the first embedding…"
    assert not view.bar.lasso.isEnabled()


def test_batch_stands_beside_cell_type(view):
    assert view.shown_columns() == ["batch", "cell_type"]
    first, second = view.panels()
    assert first.canvas.width() == second.canvas.width() and first.canvas.height() == second.canvas.height()
    assert first.canvas.getPlotItem().getAxis("bottom").labelText == "UMAP 1"
    assert first.canvas.getPlotItem().getAxis("left").labelText == "UMAP 2"
    assert "3,000 cells" in view._status.text()
    window = first.cloud.window()
    assert window.scale_x == pytest.approx(window.scale_y, rel=1e-6)


def test_all_cells_are_in_sight_at_first(view, cells):
    for panel in view.panels():
        assert len(view.points().place(panel.cloud.window()).ids) == N


def test_the_legend_counts_and_lists_missing_last(view):
    legend = view.panels()[1].legend
    counts = {legend.item(row).text(): legend.item(row).data(COUNT) for row in range(legend.count())}
    assert list(counts) == ["T", "B", "NK", "missing"] and counts["missing"] == "100"
    assert sum(int(text.replace(",", "")) for text in counts.values()) == N


def test_short_names_are_never_cut(view, qtbot):
    for width in (700, 900, 1100, 1400):
        view.resize(width, 640)
        settle()
        for panel in view.panels():
            legend = panel.legend
            for row in range(legend.count()):
                assert legend.visualItemRect(legend.item(row)).width() >= min(legend.cell().width(), legend.viewport().width() - 2)


def test_a_click_hides_a_level_and_another_shows_it(view, qtbot):
    panel = view.panels()[1]
    click_level(qtbot, panel, 1)
    assert panel.hidden_levels() == {1}
    look = panel.cloud.look()
    assert look.layers[1] == -1 and view.panels()[0].hidden_levels() == frozenset()
    QApplication.processEvents()
    qtbot.wait(QApplication.doubleClickInterval() + 20)
    click_level(qtbot, panel, 1)
    assert panel.hidden_levels() == frozenset()


def test_a_double_click_shows_a_level_alone_and_another_all(view, qtbot):
    panel = view.panels()[1]
    click_level(qtbot, panel, 2, double=True)
    assert panel.hidden_levels() == {0, 1, 3}
    qtbot.wait(QApplication.doubleClickInterval() + 20)
    click_level(qtbot, panel, 2, double=True)
    assert panel.hidden_levels() == frozenset()


def test_the_legend_works_by_keyboard(view, qtbot):
    legend = view.panels()[1].legend
    legend.setFocus()
    legend.setCurrentRow(0)
    qtbot.keyClick(legend, Qt.Key.Key_Space)
    assert legend.hidden() == {1}
    qtbot.keyClick(legend, Qt.Key.Key_Down)
    qtbot.keyClick(legend, Qt.Key.Key_Return)
    assert legend.hidden() == {0, 1, 3}


def test_hidden_levels_are_kept_by_column(view, qtbot):
    panel = view.panels()[1]
    click_level(qtbot, panel, 1)
    panel.show_column("n_counts")
    assert panel.hidden_levels() == frozenset() and panel.gradient.isVisible() and not panel.legend.isVisible()
    panel.show_column("cell_type")
    assert panel.hidden_levels() == {1} and panel.legend.isVisible()


def test_a_column_is_chosen_by_hand(view, qtbot):
    panel = view.panels()[0]
    with qtbot.waitSignal(view.columnsChanged) as caught:
        panel.chooser.setFocus()
        qtbot.keyClick(panel.chooser, Qt.Key.Key_Down)
    assert caught.args == [["cell_type", "cell_type"]]
    assert panel.legend.count() == 4


def test_a_column_is_found_by_typing(view, qtbot):
    panel = view.panels()[0]
    line = panel.chooser.lineEdit()
    line.selectAll()
    qtbot.keyClicks(line, "n_counts")
    qtbot.keyClick(line, Qt.Key.Key_Return)
    assert panel.column_name() == "n_counts"
    line.selectAll()
    qtbot.keyClicks(line, "no such column")
    qtbot.keyClick(line, Qt.Key.Key_Return)
    assert panel.column_name() == "n_counts" and line.text() == "n_counts"


def test_choices_come_back(view, qtbot, cells):
    view.show_columns(["cell_type", "n_counts", "batch"])
    view.set_mode("density")
    view.bar.size_slider.setValue(7)
    view.set_colours({"cell_type": {"T": "#101010"}})
    state = json.loads(json.dumps(view.state()))
    other = EmbeddingView()
    qtbot.addWidget(other)
    other.set_columns(cells[1])
    other.set_points(cells[0])
    other.restore(state)
    assert other.state() == view.state()
    assert other.panels()[0].colours()[1].tolist() == [0x10, 0x10, 0x10]
    other.restore({"columns": ["gone"], "mode": "psychedelic", "size": "big", "colours": {"cell_type": {"T": "no colour"}, "x": 3}})
    assert other.bar.drawing_mode() == "density" and len(other.panels()) == 1 and other.shown_columns() == ["cell_type"]


def test_the_panel_with_the_keyboard_shows_it(view, qtbot):
    first, second = view.panels()
    accent = QColor(load_theme("light").accent).name()
    first.canvas.setFocus()
    qtbot.waitUntil(first.canvas.hasFocus, timeout=3000)
    assert first.canvas.grab().toImage().pixelColor(0, 40).name() == accent
    assert second.canvas.grab().toImage().pixelColor(0, 40).name() != accent


def test_a_panel_is_told_to_screen_readers(view):
    first = view.panels()[0].canvas
    assert first.accessibleName() == "Embedding coloured by batch"
    assert first.accessibleDescription().startswith("3,000 cells: ")
    view.panels()[0].show_column("n_counts")
    assert "n_counts from" in first.accessibleDescription()


def test_the_menu_key_opens_the_menu_of_the_current_level(view, qtbot, monkeypatch):
    legend = view.panels()[1].legend
    opened = []
    monkeypatch.setattr(type(legend), "make_menu", lambda self: opened.append(self._chosen()) or QMenu(self))
    legend.setCurrentRow(2)
    event = QContextMenuEvent(QContextMenuEvent.Reason.Keyboard, QPoint(1, 1), legend.mapToGlobal(QPoint(1, 1)))
    legend.contextMenuEvent(event)
    assert opened == [[3]]
    for menu in legend.findChildren(QMenu):
        menu.close()


def test_the_theme_is_followed_at_once(view):
    app = QApplication.instance()
    grounds, missing = {}, {}
    try:
        for name in ("light", "dark"):
            theme.apply(app, name)
            settle()
            panel = view.panels()[1]
            picture = panel.canvas.grab().toImage()
            grounds[name] = picture.pixelColor(picture.width() - 3, 3).name()
            missing[name] = panel.cloud.look().colours[0].tolist()
    finally:
        theme.apply(app, "light")
    assert grounds == {name: load_theme(name).panel.lower() for name in ("light", "dark")}
    assert missing["light"] != missing["dark"]


def test_levels_that_no_cell_has_are_not_listed(view, cells):
    view.set_columns({"kind": ColumnData.categorical(np.full(N, 1), ["none", "all", "none either"])})
    legend = view.panels()[0].legend
    assert [legend.item(row).text() for row in range(legend.count())] == ["all"]


def test_a_column_with_a_level_per_cell_lists_the_largest(view):
    codes = np.arange(N)
    codes[:50] = N - 1
    view.set_columns({"barcode": ColumnData.categorical(codes, [f"AAAC-{index}" for index in range(N)])})
    legend = view.panels()[0].legend
    texts = [legend.item(row).text() for row in range(legend.count())]
    assert len(texts) == 501 and f"AAAC-{N - 1}" in texts and texts[-1].startswith("and ")
    view.panels()[0].canvas.grab()


def test_the_lasso_selects_what_it_went_around(view, qtbot, cells):
    xy, _, _ = cells
    first, second = view.panels()
    qtbot.mouseClick(view.bar.lasso, Qt.MouseButton.LeftButton)
    outline = [(3.0, -1.5), (9.0, -1.5), (9.0, 4.0), (3.0, 4.0)]
    corners = [place_of(first, corner) for corner in outline]
    size = first.canvas.size()
    with qtbot.waitSignal(view.selectionChanged) as caught:
        drag(qtbot, first, corners)
    assert first.canvas.size() == size  # nothing jumps
    drawn = np.array([(p.x(), p.y()) for p in (first.box.mapFromScene(first.canvas.mapToScene(corner)) for corner in corners)])
    pixels = first.cloud.window().to_pixels(xy)
    sides = [abs(pixels[:, axis] - edge) for axis in (0, 1) for edge in set(drawn[:, axis])]
    clear = np.min(sides, axis=0) > 2  # the mouse goes through whole pixels: cells on the outline itself may fall on either side
    chosen = np.zeros(N, bool)
    chosen[caught.args[0]] = True
    expected = Polygon(drawn).contains_points(pixels)
    np.testing.assert_array_equal(chosen[clear], expected[clear])
    assert expected.sum() > 700 and clear.mean() > 0.9
    np.testing.assert_array_equal(view.selection(), caught.args[0])
    assert "selected" in view._status.text()
    assert second.cloud.look().layers.tolist()[:4] == [0, 0, 0, 0]  # the same cells stand out in the other panel
    first.canvas.setFocus()
    qtbot.keyClick(first.canvas, Qt.Key.Key_L)
    assert not view.bar.lasso.isChecked() and not second.box.lasso_on
    with qtbot.waitSignal(view.selectionChanged):
        qtbot.mouseClick(view._clear, Qt.MouseButton.LeftButton)
    assert len(view.selection()) == 0 and not view._clear.isVisible()


def test_lassos_add_and_take_away(view, qtbot, cells):
    view.select(np.arange(10))
    everything = np.arange(N)
    view._select_some(np.arange(5, 20), Qt.KeyboardModifier.ShiftModifier)
    assert view.selection().tolist() == list(range(20))
    view._select_some(np.arange(0, 15), Qt.KeyboardModifier.ControlModifier)
    assert view.selection().tolist() == [15, 16, 17, 18, 19]
    view._select_some(everything, Qt.KeyboardModifier.ControlModifier)
    assert view.selection().tolist() == []


def test_a_level_is_selected_from_its_menu(view, qtbot, cells):
    _, columns, _ = cells
    panel = view.panels()[1]
    panel.legend.setCurrentRow(1)
    menu = panel.legend.make_menu()
    with qtbot.waitSignal(view.selectionChanged) as caught:
        next(action for action in menu.actions() if action.text() == "Select these cells").trigger()
    np.testing.assert_array_equal(caught.args[0], np.flatnonzero(columns["cell_type"].codes == 1))
    counts = [panel.legend.item(row).data(COUNT) for row in range(3)]
    assert counts == ["0", f"{len(caught.args[0]):,}", "0"]
    assert "selected of" in panel.legend.item(1).toolTip()


def test_selecting_the_same_again_says_nothing(view, qtbot):
    view.select([1, 2, 3])
    with qtbot.assertNotEmitted(view.selectionChanged):
        view.select([3, 2, 1])


def test_a_colour_is_changed_everywhere(view, qtbot):
    first, second = view.panels()
    first.show_column("cell_type")
    second._ask_colour = lambda now, parent: QColor("#123456")
    second.legend.setCurrentRow(2)
    with qtbot.waitSignal(view.coloursChanged) as caught:
        next(action for action in second.legend.make_menu().actions() if action.text() == "Change colour…").trigger()
    assert caught.args[0] == {"cell_type": {"NK": "#123456"}}
    for panel in view.panels():
        assert panel.colours()[3].tolist() == [0x12, 0x34, 0x56]
    second._ask_colour = lambda now, parent: None  # the person changed their mind
    with qtbot.assertNotEmitted(view.coloursChanged):
        next(action for action in second.legend.make_menu().actions() if action.text() == "Change colour…").trigger()


def test_hover_shows_the_cell_in_both_panels(view, qtbot, cells):
    xy, columns, _ = cells
    first, second = view.panels()
    lonely = int(np.argmax(xy[:, 1]))
    first._moved(first.box.mapViewToScene(QPointF(*(float(part) for part in xy[lonely]))))
    assert first.card.isVisible() and not second.card.isVisible()
    text = first.card.text()
    assert f"cell-{lonely}" in text and f"batch: {columns['batch'].text_of(lonely)}" in text and "cell_type: " in text
    assert first.cloud._hovered == second.cloud._hovered == lonely
    first._moved(QPointF(-50, -50))
    assert not first.card.isVisible() and second.cloud._hovered is None


def test_panning_moves_all_panels_and_fit_brings_back(view, qtbot):
    first, second = view.panels()
    before = second.box.viewRect()
    middle = first.canvas.viewport().rect().center()
    drag(qtbot, first, [middle, middle + QPoint(60, 0)])
    moved = first.box.viewRect()
    assert moved.center().x() < before.center().x() - 0.5
    assert second.box.viewRect().center().x() == pytest.approx(moved.center().x(), abs=1e-6)
    assert second.box.viewRect().width() == pytest.approx(moved.width(), rel=1e-6)
    qtbot.mouseClick(view.bar.fit, Qt.MouseButton.LeftButton)
    assert second.box.viewRect().center().x() == pytest.approx(before.center().x(), abs=1e-6)


def test_zooming_by_keyboard(view, qtbot):
    first, second = view.panels()
    width = first.box.viewRect().width()
    first.canvas.setFocus()
    qtbot.keyClick(first.canvas, Qt.Key.Key_Plus)
    assert first.box.viewRect().width() == pytest.approx(0.8 * width)
    assert second.box.viewRect().width() == pytest.approx(0.8 * width, rel=1e-3)
    qtbot.keyClick(first.canvas, Qt.Key.Key_0)
    assert first.box.viewRect().width() == pytest.approx(width)


def test_cells_wander_and_arrive(view, qtbot, cells, monkeypatch):
    monkeypatch.setattr("cellweave.app.views.motion.DURATION_S", 1.5)  # some frames even on a busy machine
    xy, _, _ = cells
    target = xy[:, ::-1].copy()
    seen = []
    view._motion.moved.connect(lambda positions: seen.append(np.array(positions)))
    with qtbot.waitSignal(view._motion.finished, timeout=5000):
        view.move_points(target, 10)
    np.testing.assert_array_equal(view.points().xy, target.astype(np.float32))
    between = [np.linalg.norm(positions - xy) / np.linalg.norm(target - xy) for positions in seen]
    assert len(between) > 2 and between == sorted(between) and 0 <= between[0] < 0.9


def test_a_new_move_goes_on_from_where_the_cells_are(view, qtbot, cells):
    xy, _, _ = cells
    view.move_points(xy + 100, 10)
    qtbot.waitUntil(lambda: view.points().xy[:, 0].mean() > xy[:, 0].mean() + 1, timeout=3000)
    here = view.points().xy.copy()
    view.move_points(xy, 11)
    assert np.array_equal(view._motion._start, here)
    qtbot.waitUntil(lambda: np.allclose(view.points().xy, xy.astype(np.float32)), timeout=5000)


def test_other_cells_are_shown_at_once(view):
    view.select([1])
    view.move_points(np.zeros((7, 2)), 3)
    assert view.points().size == 7 and not view._motion.is_moving() and len(view.selection()) == 0


def test_a_selection_outlives_a_move(view, qtbot, cells):
    view.select([5, 6])
    with qtbot.waitSignal(view._motion.finished, timeout=5000):
        view.move_points(cells[0] * 2, 4)
    assert view.selection().tolist() == [5, 6]


def test_the_slider_goes_back_through_the_epochs(view, qtbot, cells):
    xy, _, _ = cells
    asked = []

    def loader(epoch):
        def load():
            asked.append(epoch)
            if epoch == 3:
                raise OSError("it was deleted")
            return xy * epoch

        return load

    view.set_epoch_slider([(epoch, loader(epoch)) for epoch in (1, 2, 3, 4)])
    assert view.epochs.isVisible() and view.epochs.slider.value() == 3 and view.epochs.words.text() == "4 of 4"
    with qtbot.waitSignal(view.epochChosen, timeout=3000) as caught:
        qtbot.keyClick(view.epochs.slider, Qt.Key.Key_Home)
    assert caught.args == [1] and asked == [1]
    view.epochs.slider.setValue(2)
    qtbot.waitUntil(lambda: "cannot be read" in view.epochs.words.text(), timeout=3000)
    view.set_epoch_slider([])
    assert not view.epochs.isVisible()


def test_new_epochs_move_a_slider_that_stood_at_the_end(view, cells):
    loaders = [(epoch, lambda: cells[0]) for epoch in range(1, 6)]
    view.set_epoch_slider(loaders[:3])
    view.set_epoch_slider(loaders[:4])
    assert view.epochs.slider.value() == 3
    view.epochs.slider.setValue(1)
    view.set_epoch_slider(loaders)
    assert view.epochs.slider.value() == 1


def test_panels_can_be_added_and_taken_away(view, qtbot):
    qtbot.mouseClick(view.bar.more, Qt.MouseButton.LeftButton)
    assert view.shown_columns() == ["batch", "cell_type", "n_counts"]
    settle()
    widths = {panel.canvas.width() for panel in view.panels()}
    assert max(widths) - min(widths) <= 2
    for _ in range(3):
        qtbot.mouseClick(view.bar.fewer, Qt.MouseButton.LeftButton)
    assert view.shown_columns() == ["batch"] and not view.bar.fewer.isEnabled()


def test_columns_that_are_gone_are_replaced(view, cells):
    _, columns, _ = cells
    view.set_columns({"leiden": columns["cell_type"], "cell_type": columns["cell_type"]})
    assert view.shown_columns() == ["leiden", "cell_type"]


def test_drawing_can_be_chosen(view, qtbot):
    view.bar.mode.setFocus()
    qtbot.keyClick(view.bar.mode, Qt.Key.Key_End)
    assert [panel.cloud._mode for panel in view.panels()] == ["density", "density"]
    before = view.panels()[0].cloud.diameter(view.panels()[0].cloud.window())
    view.bar.size_slider.setFocus()
    qtbot.keyClick(view.bar.size_slider, Qt.Key.Key_End)
    assert view.panels()[0].cloud.diameter(view.panels()[0].cloud.window()) == pytest.approx(4 * before)


def test_the_menu_asks_for_a_figure_and_copies_a_picture(view, qtbot):
    menu = view.make_menu()
    with qtbot.waitSignal(view.exportRequested):
        next(action for action in menu.actions() if action.text() == "Export figure…").trigger()
    QApplication.clipboard().clear()
    next(action for action in menu.actions() if action.text() == "Copy image").trigger()
    assert QApplication.clipboard().pixmap().width() > 500


def test_a_column_of_another_length_paints_all_alike(view):
    view.set_columns({"short": ColumnData.categorical([0, 1], ["a", "b"])})
    assert set(view.panels()[0].cloud.look().codes) == {0}
    view.panels()[0].canvas.grab()


def test_positions_that_are_not_finite_are_left_out(view):
    xy = np.random.default_rng(0).normal(size=(50, 2))
    xy[:10] = np.nan
    view.set_points(xy)
    view.panels()[0].canvas.grab()
    assert len(view.points().order) == 40
    view._hover(view.panels()[0], 3)  # a cell without a place has no card to stand beside
    assert not view.panels()[0].card.isVisible()


def test_every_control_has_a_name(view):
    for kind in (QAbstractButton, QAbstractSlider, QComboBox, QAbstractItemView):
        for widget in view.findChildren(kind):
            if isinstance(widget, QScrollBar) or not widget.isVisible():
                continue
            assert widget.accessibleName() or getattr(widget, "text", str)(), widget


LONG_NAMES = ["CD14+ Monocytes", "FCGR3A+ Monocytes", "CD4 T cells", "CD8 T cells", "B cells", "NK cells", "Dendritic cells", "Megakaryocytes"]


@pytest.mark.parametrize("scale", [1.0, 1.5])
@pytest.mark.parametrize("width", [660, 760, 900, 1100, 1300])
def test_a_legend_of_three_rows_neither_cuts_nor_scrolls(qtbot, cells, width, scale):
    app = QApplication.instance()
    before = app.font()
    larger = QFont(before)
    larger.setPointSizeF(scale * before.pointSizeF())
    app.setFont(larger)
    try:
        made = EmbeddingView()
        qtbot.addWidget(made)
        made.resize(width, 560)
        made.show()
        codes = np.arange(N) % len(LONG_NAMES)
        made.set_columns({"batch": cells[1]["batch"], "cell_type": ColumnData.categorical(codes, LONG_NAMES)})
        made.set_points(cells[0])
        settle()
        for panel in made.panels():
            legend = panel.legend
            cells_of = [legend.visualItemRect(legend.item(row)) for row in range(legend.count())]
            assert all(rect.width() >= legend.cell().width() for rect in cells_of), "a name is cut"
            if len({rect.top() for rect in cells_of}) <= 3:
                assert not legend.verticalScrollBar().isVisible()
                assert all(legend.viewport().rect().contains(rect) for rect in cells_of), "a level is out of sight"
    finally:
        app.setFont(before)


def test_choosing_a_gene_does_not_make_the_clouds_smaller(view, cells):
    columns = {**cells[1], "gene:TUBB1": ColumnData.continuous(np.arange(N), unit="log(1 + scaled counts)")}
    view.set_columns(columns)
    for name in ("batch", "cell_type"):
        view.show_columns([name, "cell_type"])
        settle()
        before = [panel.canvas.size() for panel in view.panels()]
        view.show_columns(["gene:TUBB1", "cell_type"])
        settle()
        after = [panel.canvas.size() for panel in view.panels()]
        assert after == before


def test_a_gene_is_named_with_its_quantity_and_unit(view, cells, qtbot):
    values = np.where(np.arange(N) < 7, np.nan, np.arange(N))
    view.set_columns({**cells[1], "gene:TUBB1": ColumnData.continuous(values, unit="log(1 + scaled counts)")})
    panel = view.panels()[0]
    line = panel.chooser.lineEdit()
    line.selectAll()
    qtbot.keyClicks(line, "TUBB1 (gene)")
    qtbot.keyClick(line, Qt.Key.Key_Return)
    assert panel.column_name() == "gene:TUBB1" and panel.chooser.currentText() == "TUBB1 (gene)"
    assert panel.gradient.words() == "TUBB1, log(1 + scaled counts); 7 missing"
    assert panel.gradient.accessibleDescription().startswith("TUBB1, log(1 + scaled counts)")
    assert "TUBB1: 10 log(1 + scaled counts)" in view.card_text(10)
