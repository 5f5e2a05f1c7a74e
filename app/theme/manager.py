"""Which theme holds now, and putting it on the application."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files

from qtpy.QtCore import QDir, QEvent, QObject, Qt, Signal
from qtpy.QtGui import QColor, QGuiApplication, QPalette
from qtpy.QtWidgets import QApplication, QDockWidget, QMainWindow, QWidget

from cellweave.app.theme.tokens import Theme, load_theme

MODES = ("system", "light", "dark")


class _Notifier(QObject):
    """Carries ``changed(Theme)``; a QObject, so that receivers that were deleted are disconnected."""

    changed = Signal(object)


class _State:
    mode = "system"
    theme: Theme | None = None
    following = False


_state = _State()


@cache
def notifier() -> _Notifier:
    """Return the object whose signal ``changed(Theme)`` is sent after the theme was changed."""
    return _Notifier()


class _WhenShown(QObject):
    """Calls at once where a widget is visible, else when it is shown next."""

    def __init__(self, widget: QWidget, call: Callable[[], object]) -> None:
        super().__init__(widget)
        self._widget: QWidget = widget
        self._call = call
        notifier().changed.connect(self._changed)

    def _changed(self, _theme: object) -> None:
        self._widget.removeEventFilter(self)
        if self._widget.isVisible():
            self._call()
        else:
            self._widget.installEventFilter(self)

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:  # noqa: N802
        """Catch up when the widget is shown."""
        if watched is not None and watched is self._widget and event is not None and event.type() == QEvent.Type.Show:
            self._widget.removeEventFilter(self)
            self._call()
        return False


def follow(widget: QWidget, call: Callable[[], object]) -> None:
    """Call after each change of the theme, for a widget that is not visible when it is shown next."""
    _WhenShown(widget, call)


def current() -> Theme:
    """Return the theme that holds now (light before any was applied)."""
    return _state.theme or load_theme("light")


def mode() -> str:
    """Return what was asked for: ``system``, ``light`` or ``dark``."""
    return _state.mode


def apply(app: QApplication, wanted: str = "system") -> Theme:
    """Put a theme on the application and tell everybody.

    Parameters
    ----------
    app
        The application.
    wanted
        ``system`` follows the desktop, live; ``light`` and ``dark`` do not.

    Returns
    -------
    Theme
        The theme that holds now.
    """
    if wanted not in MODES:
        message = f"there is no theme '{wanted}'"
        raise ValueError(message)
    _state.mode = wanted
    _follow(on=wanted == "system")
    theme = load_theme(wanted if wanted != "system" else _of_desktop())
    changed = theme != _state.theme
    _state.theme = theme
    if not app.styleSheet() and (app.style() is None or app.style().objectName().lower() != "fusion"):
        app.setStyle("Fusion")  # behind a sheet it stays what it is, and has no name
    sheet = style_sheet(theme)
    if changed or app.styleSheet() != sheet:
        with _docks_in_place(app):
            # Qt takes a sheet off and puts another on several times faster than it replaces one by another.
            app.setStyleSheet("")
            app.setPalette(palette(theme))
            app.setStyleSheet(sheet)
    if changed:
        notifier().changed.emit(theme)
    return theme


@contextmanager
def _docks_in_place(app: QApplication) -> Iterator[None]:
    """Keep the sizes of docks: without a sheet, separators and frames have other widths, and Qt fits the docks to those at once."""
    horizontal, vertical = Qt.Orientation.Horizontal, Qt.Orientation.Vertical
    kept = []
    for window in app.topLevelWidgets():
        if isinstance(window, QMainWindow):
            docks = [dock for dock in window.findChildren(QDockWidget) if dock.isVisible() and not dock.isFloating()]
            kept.append((window, docks, [dock.width() for dock in docks], [dock.height() for dock in docks]))
    yield
    for window, docks, widths, heights in kept:
        window.resizeDocks(docks, widths, horizontal)
        window.resizeDocks(docks, heights, vertical)


def stop_following() -> None:
    """Let go of the desktop's colour scheme (when the application ends)."""
    _follow(on=False)


def _of_desktop() -> str:
    hints = QGuiApplication.styleHints()
    dark = hasattr(hints, "colorScheme") and hints.colorScheme() == Qt.ColorScheme.Dark
    return "dark" if dark else "light"


def _follow(*, on: bool) -> None:
    hints = QGuiApplication.styleHints()
    if on == _state.following or not hasattr(hints, "colorSchemeChanged"):
        return
    if on:
        hints.colorSchemeChanged.connect(_desktop_changed)
    else:
        hints.colorSchemeChanged.disconnect(_desktop_changed)
    _state.following = on


def _desktop_changed(*_: object) -> None:
    app = QApplication.instance()
    if isinstance(app, QApplication) and _state.mode == "system":
        apply(app, "system")


def palette(theme: Theme) -> QPalette:
    """Return the theme as a Qt palette."""
    role, group = QPalette.ColorRole, QPalette.ColorGroup
    result = QPalette()
    for roles, token in (
        ((role.Window,), "window"),
        ((role.Base,), "panel"),
        ((role.Button, role.ToolTipBase), "raised"),
        ((role.WindowText, role.Text, role.ButtonText, role.ToolTipText, role.BrightText), "text"),
        ((role.Highlight, role.Link, role.LinkVisited), "accent"),
        ((role.HighlightedText,), "on_accent"),
        ((role.PlaceholderText,), "secondary"),
        ((role.Mid,), "border"),
    ):
        for item in roles:
            result.setColor(item, theme.color(token))
    result.setColor(role.AlternateBase, QColor(theme.mix("text", "panel", 0.03)))
    result.setColor(role.Dark, QColor(theme.mix("text", "window", 0.3)))
    result.setColor(role.Shadow, QColor(theme.mix("text", "window", 0.4)))
    result.setColor(role.Light, QColor(theme.mix("panel", "window", 0.5)))
    result.setColor(role.Midlight, QColor(theme.mix("border", "window", 0.5)))
    if hasattr(role, "Accent"):
        result.setColor(role.Accent, theme.color("accent"))
    for item in (role.WindowText, role.Text, role.ButtonText, role.HighlightedText):
        result.setColor(group.Disabled, item, theme.color("disabled"))
    result.setColor(group.Disabled, role.Highlight, QColor(theme.mix("text", "window", 0.15)))
    return result


def style_sheet(theme: Theme) -> str:
    """Return the application's style sheet with the theme's colours filled in."""
    text = files("cellweave.resources").joinpath("themes", "app.qss").read_text(encoding="utf-8")
    # Arrows and check marks of fields are files, which a style sheet finds through a search path.
    marks = files("cellweave.resources").joinpath("themes", "marks")
    QDir.setSearchPaths("themes", [str(marks)])
    for name, colour in {**theme.tokens(), "name": theme.name}.items():
        text = text.replace(f"{{{name}}}", colour)
    return text
