"""Switching the theme: what is seen at once, what is hidden when it is shown next."""

from __future__ import annotations

import pytest
from qtpy.QtWidgets import QApplication, QWidget

from cellweave.app import theme
from cellweave.app.theme import manager


@pytest.fixture(autouse=True)
def as_before():
    app, before = QApplication.instance(), theme.mode()
    yield
    theme.apply(app, before)


def test_hidden_widgets_follow_when_they_are_shown(qtbot):
    app = QApplication.instance()
    theme.apply(app, "light")
    seen, hidden = QWidget(), QWidget()
    qtbot.addWidget(seen)
    qtbot.addWidget(hidden)
    calls = []
    for name, widget in (("seen", seen), ("hidden", hidden)):
        theme.follow(widget, lambda name=name: calls.append((name, theme.current().name)))
    seen.show()
    theme.apply(app, "dark")
    assert calls == [("seen", "dark")]
    theme.apply(app, "light")
    theme.apply(app, "dark")
    assert ("hidden", "dark") not in calls
    hidden.show()
    assert calls.count(("hidden", "dark")) == 1
    hidden.hide()
    hidden.show()
    assert calls.count(("hidden", "dark")) == 1


def test_the_sheet_is_put_on_once_for_a_theme(qtbot, monkeypatch):
    app, put = QApplication.instance(), []
    theme.apply(app, "light")
    monkeypatch.setattr(type(app), "setStyleSheet", lambda _self, sheet: put.append(sheet), raising=False)
    theme.apply(app, "light")
    assert put == []
    theme.apply(app, "dark")
    assert put == ["", manager.style_sheet(theme.load_theme("dark"))]
    monkeypatch.undo()
    app.setStyleSheet("")
    theme.apply(app, "light")
    assert app.styleSheet() == manager.style_sheet(theme.load_theme("light"))
