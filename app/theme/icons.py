"""Line icons that take their colour from the theme each time they are painted."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from qtpy.QtCore import QByteArray, QRect, QRectF, QSize, Qt
from qtpy.QtGui import QIcon, QIconEngine, QPainter, QPixmap
from qtpy.QtSvg import QSvgRenderer

from cellweave.app.theme.manager import current


@cache
def _source(name: str) -> str:
    path = files("cellweave.resources").joinpath("icons", f"{name}.svg")
    if not path.is_file():
        message = f"there is no icon '{name}'"
        raise KeyError(message)
    return path.read_text(encoding="utf-8")


@cache
def _renderer(name: str, colour: str) -> QSvgRenderer:
    return QSvgRenderer(QByteArray(_source(name).replace("currentColor", colour).encode()))


class _LineIconEngine(QIconEngine):
    """Draws one SVG in a colour of the current theme."""

    def __init__(self, name: str, token: str) -> None:
        super().__init__()
        self._name, self._token = name, token

    def clone(self) -> QIconEngine:
        return _LineIconEngine(self._name, self._token)

    def paint(self, painter: QPainter | None, rect: QRect, mode: QIcon.Mode, state: QIcon.State) -> None:
        token = {QIcon.Mode.Disabled: "disabled", QIcon.Mode.Selected: "on_accent"}.get(mode, self._token)
        side = min(rect.width(), rect.height())
        square = QRectF(rect.x() + (rect.width() - side) / 2, rect.y() + (rect.height() - side) / 2, side, side)
        _renderer(self._name, getattr(current(), token)).render(painter, square)

    def pixmap(self, size: QSize, mode: QIcon.Mode, state: QIcon.State) -> QPixmap:
        pixmap = QPixmap(size)
        pixmap.fill(Qt.GlobalColor.transparent)
        painter = QPainter(pixmap)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        self.paint(painter, QRect(0, 0, size.width(), size.height()), mode, state)
        painter.end()
        return pixmap


def icon(name: str, token: str = "text") -> QIcon:
    """Return a line icon of ``resources/icons``.

    Parameters
    ----------
    name
        File name without ``.svg``.
    token
        Which colour of the theme it has (``text``, ``secondary``, ``accent``, ``on_accent``, ``good`` ...).

    Returns
    -------
    QIcon
        Follows the theme by itself; greyed where its widget is disabled.

    Raises
    ------
    KeyError
        Where there is no such icon.
    """
    _source(name)
    return QIcon(_LineIconEngine(name, token))


def program_icon() -> QIcon:
    """Return the program's own icon, in its own colours."""
    result = QIcon()
    renderer = QSvgRenderer(QByteArray(_source("cellweave").encode()))
    for side in (16, 32, 64, 128, 256):
        pixmap = QPixmap(side, side)
        pixmap.fill(Qt.GlobalColor.transparent)
        painter = QPainter(pixmap)
        renderer.render(painter)
        painter.end()
        result.addPixmap(pixmap)
    return result
