"""Actions are declared once; menus, palette, keys and reasons follow."""

from __future__ import annotations

from operator import attrgetter

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QAbstractButton, QLineEdit

from cellweave.app.actions import ACTIONS, ShortcutsDialog, conflicts
from cellweave.app.actions.declared import REASONS
from cellweave.app.actions.palette import rank

LEFT = Qt.MouseButton.LeftButton


def test_ids_and_keys_are_given_once():
    assert len({info.id for info in ACTIONS}) == len(ACTIONS)
    assert conflicts({}) == {}


def test_every_need_has_a_reason_and_a_condition(window):
    needs = {need for info in ACTIONS for need in info.needs}
    assert needs <= set(REASONS)
    assert needs <= set(window.status.conditions())


def test_every_call_is_there(window):
    for info in ACTIONS:
        assert callable(attrgetter(info.call)(window)), info.id


def test_greyed_until_possible(window):
    assert not window.actions_by_id["run.train"].isEnabled()
    assert not window.actions_by_id["file.h5ad"].isEnabled()
    assert window.actions_by_id["file.open"].isEnabled()


def test_the_palette_finds_and_does_by_keyboard(qtbot, window):
    window.show_view("welcome")
    qtbot.keyClick(window, Qt.Key.Key_P, Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.ShiftModifier)
    palette = window.palette_dialog
    qtbot.waitUntil(palette.isVisible)
    qtbot.keyClicks(palette.search, "embedding")
    texts = [palette.list.item(row).text() for row in range(palette.list.count())]
    assert texts[0].startswith("View: Embedding")
    qtbot.keyClick(palette.search, Qt.Key.Key_Return)
    assert window.centre.current() == "embedding"


def test_the_palette_says_why_not(qtbot, window):
    window.shell.show_palette()
    palette = window.palette_dialog
    qtbot.keyClicks(palette.search, "export h5ad")
    assert "Not now: Open a finished run first." in palette.why.text()
    qtbot.keyClick(palette.search, Qt.Key.Key_Return)
    assert palette.isVisible()
    palette.close()


def test_rank_prefers_the_beginning_of_the_name():
    by_id = {info.id: info for info in ACTIONS}
    assert rank("tra", by_id["run.train"]) == 0
    assert rank("zzz", by_id["run.train"]) is None
    assert rank("run", by_id["run.train"]) == 2


def test_keys_can_be_rebound_and_conflicts_are_named(qtbot, window):
    dialog = ShortcutsDialog({"run.train": "Ctrl+O"}, window)
    qtbot.addWidget(dialog)
    assert "'Open data'" in dialog.problem.text()
    assert "'Train'" in dialog.problem.text()
    ok = dialog.buttons.button(dialog.buttons.StandardButton.Ok)
    assert not ok.isEnabled()
    dialog._edits["run.train"].setKeySequence("F5")
    assert ok.isEnabled()
    assert dialog.keys() == {"run.train": "F5"}
    window.actions_by_id.set_shortcuts(dialog.keys())
    assert window.actions_by_id["run.train"].shortcut().toString() == "F5"
    assert "F5" in window.actions_by_id["run.train"].toolTip()


def test_themes_change_live_and_are_kept(qtbot, window, home):
    from cellweave.app import theme

    window.actions_by_id["view.theme_dark"].trigger()
    assert theme.current().dark
    assert window.palette().window().color().name().upper() == theme.load_theme("dark").window
    window.actions_by_id["view.theme_light"].trigger()
    assert not theme.current().dark
    window.arrangement.save_now()
    assert '"theme": "light"' in (home / "settings.json").read_text()


def test_docks_are_shown_and_hidden_by_their_keys(qtbot, window):
    log = window.docks["log"]
    assert log.isHidden()
    qtbot.keyClick(window, Qt.Key.Key_F9)
    assert not log.isHidden()
    assert window.actions_by_id["window.log"].isChecked()
    window.actions_by_id["window.reset"].trigger()
    assert log.isHidden()


def test_a_view_is_torn_off_and_comes_back(qtbot, window):
    window.show_view("losses")
    qtbot.mouseClick(window.centre.tear, LEFT)
    torn = window.centre._torn["losses"]
    assert window.losses.window() is torn
    torn.close()
    assert window.losses.window() is window
    assert window.centre.current() == "losses"


def test_the_report_masks_the_home_folder(window, monkeypatch, home):
    import logging
    from pathlib import Path

    logging.getLogger("cellweave").info("opened %s", Path.home() / "secret" / "x.h5ad")
    text = window.shell.report_text()
    assert "~/secret/x.h5ad" in text
    if len(str(Path.home())) > 1:
        assert str(Path.home() / "secret") not in text
    assert "torch" in text


def test_the_keys_are_shown_whole(qtbot):
    dialog = ShortcutsDialog({"file.open": "Ctrl+Alt+Shift+F12"})
    qtbot.addWidget(dialog)
    dialog.show()
    qtbot.waitExposed(dialog)
    for info in ACTIONS:
        edit = dialog._edits[info.id]
        line = edit.findChild(QLineEdit)
        needed = line.fontMetrics().horizontalAdvance(line.text()) + line.textMargins().left() + line.textMargins().right()
        buttons = sum(button.width() for button in line.findChildren(QAbstractButton) if button.isVisible())
        assert needed + buttons <= line.width(), line.text()
        assert edit.width() <= dialog.table.columnWidth(1) <= dialog.table.viewport().width()
