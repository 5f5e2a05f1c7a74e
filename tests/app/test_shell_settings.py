"""Settings come back at the next start, and an unreadable file never stops it."""

from __future__ import annotations

import json

import pytest
from qtpy.QtCore import QRect
from qtpy.QtWidgets import QApplication, QWidget

from cellweave.app import theme
from cellweave.app.state.settings import RECENT, Settings, column_key, load_settings, save_settings


def test_settings_come_back(tmp_path):
    path = tmp_path / "deep" / "settings.json"
    settings = Settings(theme="dark", step=3, roles={column_key(["b", "a"]): {"batch": ["a"]}})
    settings.remember("data", "/x")
    save_settings(settings, path)
    again, notices = load_settings(path)
    assert again == settings
    assert notices == []


def test_no_file_is_no_trouble(tmp_path):
    settings, notices = load_settings(tmp_path / "settings.json")
    assert settings == Settings()
    assert notices == []


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\x00\x01", '"words"'])
def test_an_unreadable_file_is_put_aside_and_said_so(tmp_path, text):
    path = tmp_path / "settings.json"
    path.write_text(text)
    settings, notices = load_settings(path)
    assert settings == Settings()
    assert len(notices) == 1
    assert (tmp_path / "settings.json.unreadable").read_text() == text


def test_a_bad_value_loses_only_itself(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"theme": "mauve", "step": 2, "recent_data": "no list", "what": 1}))
    settings, notices = load_settings(path)
    assert settings == Settings(step=2)
    assert sorted(notices) == [
        "The setting 'recent_data' could not be read and has its default.",
        "The setting 'theme' could not be read and has its default.",
        "The setting 'what' is not known and was left out.",
    ]


def test_settings_of_a_later_version_are_not_used(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"version": 99, "theme": "dark"}))
    settings, notices = load_settings(path)
    assert settings.theme == "system"
    assert "later version" in notices[0]
    assert path.exists()


def test_recent_paths_are_newest_first_once_and_few():
    settings = Settings()
    for number in range(RECENT + 5):
        settings.remember("runs", f"/run/{number}")
    settings.remember("runs", "/run/10")
    assert settings.recent_runs[0] == "/run/10"
    assert len(settings.recent_runs) == len(set(settings.recent_runs)) == RECENT


def test_the_key_of_columns_does_not_depend_on_their_order():
    assert column_key(["a", "b"]) == column_key(["b", "a"]) != column_key(["ab"])


@pytest.mark.parametrize("text", ["%%%", "abc", "AAAA", ""])
def test_a_place_that_cannot_be_read_is_no_place(make_window, home, text):
    save_settings(Settings(geometry=text, layout=text), home / "settings.json")
    window = make_window()
    assert window.isVisible()
    assert not window.docks["workflow"].isHidden()


def test_a_change_of_theme_moves_nothing(qtbot, window):
    """What a style sheet says of margins holds from the first paint, not from the second theme."""
    app = QApplication.instance()

    def places() -> dict[QWidget, QRect]:
        for _ in range(5):
            app.processEvents()
        return {widget: widget.geometry() for widget in window.findChildren(QWidget) if widget.isVisible()}

    before = places()
    for name in ("dark", "light", "dark"):
        theme.apply(app, name)
        after = places()
        assert {type(widget).__name__: (rect, after[widget]) for widget, rect in before.items() if widget in after and after[widget] != rect} == {}
