"""A figure whose parts are placed in millimetres, so that nothing overlaps or is cut off at any size."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellweave.core.errors import CellweaveError
from cellweave.core.export.figure_options import FigureOptions
from cellweave.core.export.palette import look
from cellweave.core.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MM_PER_INCH, MM_PER_POINT = 25.4, 25.4 / 72
MARGIN = 2.5  # mm of white around everything
WIDE_LETTERS = 0x2E80  # Chinese, Japanese and Korean writing begin here
FORMATS = (".png", ".svg", ".pdf")


class Canvas:
    """A figure in millimetres, measured from the top left corner.

    Parameters
    ----------
    width, height
        Size in mm.
    options
        Fonts, colours and title.
    """

    def __init__(self, width: float, height: float, options: FigureOptions) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.width, self.height, self.options = width, height, options
        self.colours = look(options.theme)
        face = "none" if options.transparent else self.colours["background"]
        self.figure: Figure = Figure(figsize=(width / MM_PER_INCH, height / MM_PER_INCH), facecolor=face)
        FigureCanvasAgg(self.figure)

    @property
    def line(self) -> float:
        """Height of a line of text in mm."""
        return line_height(self.options)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes at a place in mm."""
        axes = self.figure.add_axes(
            (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height), facecolor="none"
        )
        axes.tick_params(colors=self.colours["secondary"], labelsize=self.options.font_size, width=0.5, length=2, pad=2)
        for spine in axes.spines.values():
            spine.set(color=self.colours["border"], linewidth=0.5)
        return axes

    def title(self) -> None:
        """Write the title of the options at the top, where there is one."""
        if self.options.title:
            room = self.width - 2 * MARGIN
            self.text(MARGIN, MARGIN, shorten(self.options.title, self.options, room, larger=1, bold=True), bold=True, larger=1)

    def text(self, left: float, top: float, text: str, *, bold: bool = False, colour: str = "text", larger: float = 0, **how: Any) -> None:
        """Write text with its top left corner (or as ``ha`` and ``va`` say) at a place in mm."""
        how.setdefault("va", "top")
        self.figure.text(
            left / self.width, 1 - top / self.height, plain(text), color=self.colours[colour],
            fontsize=self.options.font_size + larger, fontweight="semibold" if bold else "normal", **how,
        )  # fmt: skip


def line_height(options: FigureOptions) -> float:
    """Return the height of a line of text in mm."""
    return options.font_size * 1.45 * MM_PER_POINT


def text_width(text: str, options: FigureOptions, *, larger: float = 0, bold: bool = False) -> float:
    """Return how wide a text is in mm; to be called with the fonts of the options in force."""
    return _width(plain(text), options.font, options.font_size + larger, bold)


@lru_cache(maxsize=4096)
def _width(text: str, fonts: str, size: float, bold: bool) -> float:
    font = _font(fonts, bold)
    font.set_size(size, 72)
    font.set_text(text)
    width = font.get_width_height()[0] / 64
    width += 0.5 * size * sum(ord(letter) > WIDE_LETTERS for letter in text)  # from a fallback font, whose letters fill a square
    # an SVG keeps its text as text: another machine's font may be a little wider
    return float(width * MM_PER_POINT * 1.04)


@lru_cache(maxsize=16)
def _font(fonts: str, bold: bool) -> Any:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    family = [name.strip() for name in fonts.split(",")]
    return get_font(findfont(FontProperties(family=family, weight="semibold" if bold else "normal")))


def plain(text: str) -> str:
    """Return a text without what matplotlib would take for mathematics."""
    return text.replace("$", r"\$")


def wrap(text: str, options: FigureOptions, width: float) -> list[str]:
    """Break a text into lines of at most ``width`` mm; a word that is wider than that is shortened."""
    lines: list[str] = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}", options) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(shorten(word, options, width))
    return lines


def shorten(text: str, options: FigureOptions, width: float, *, larger: float = 0, bold: bool = False) -> str:
    """Return the text, or its beginning with an ellipsis where it is wider than ``width`` mm."""
    if text_width(text, options, larger=larger, bold=bold) <= width:
        return text
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(text[:middle].rstrip() + "…", options, larger=larger, bold=bold) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…"


@contextmanager
def styled(options: FigureOptions) -> Iterator[None]:
    """Set fonts and file settings for all that is drawn and saved inside."""
    import logging

    import matplotlib

    colours = look(options.theme)
    settings = {
        "font.family": [name.strip() for name in options.font.split(",") if name.strip()] or ["DejaVu Sans"],
        "font.size": options.font_size,
        "text.color": colours["text"],
        "axes.labelcolor": colours["text"],
        "axes.unicode_minus": True,
        "pdf.fonttype": 42,  # text stays text, and can be edited
        "svg.fonttype": "none",
        "svg.hashsalt": "cellweave",  # the same figure gives the same file
        "axes.labelsize": options.font_size,
        "axes.labelpad": 2,
    }
    fonts = logging.getLogger("matplotlib.font_manager")
    before = fonts.level
    fonts.setLevel(logging.ERROR)  # a font that is not installed is no news: the next one of the list is taken
    try:
        with matplotlib.rc_context(settings), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            warnings.filterwarnings("ignore", message=".*[Ff]ont family.*not found")
            yield
    finally:
        fonts.setLevel(before)


def save(canvas: Canvas, out: Path, origin: dict[str, Any], *, dpi: int) -> tuple[int, int]:
    """Write a figure with its origin inside the file.

    Parameters
    ----------
    canvas
        What was drawn.
    out
        Ends in ``.png``, ``.svg`` or ``.pdf``.
    origin
        Provenance; goes as JSON into a text chunk of a PNG (``Description``), the metadata of an SVG (``description``) or the
        information of a PDF (``Subject``).
    dpi
        Resolution of a PNG, and of what is rasterised in the others.

    Returns
    -------
    tuple of int
        Size in pixels.

    Raises
    ------
    CellweaveError
        Where the suffix is another, or the file cannot be written.
    """
    kind = check_format(out)
    told, title = json.dumps(origin, ensure_ascii=False), canvas.options.title or str(origin.get("run", ""))
    maker = str(origin["program"])
    metadata: dict[str, dict[str, Any]] = {
        ".png": {"Title": title, "Software": maker, "Description": told},
        ".svg": {"Title": title, "Creator": maker, "Description": told, "Date": None},
        ".pdf": {"Title": title, "Creator": maker, "Subject": told, "Keywords": "Cellweave", "CreationDate": None, "ModDate": None},
    }
    width, height = (max(1, round(side / MM_PER_INCH * dpi)) for side in (canvas.width, canvas.height))
    buffer = io.BytesIO()
    canvas.figure.savefig(buffer, format=kind[1:], dpi=dpi, facecolor=canvas.figure.get_facecolor(), metadata=metadata[kind])
    try:
        write_atomic(out, lambda temporary: _write_bytes(temporary, buffer.getvalue()))
    except OSError as error:
        raise CellweaveError(f"'{out}' cannot be written: {error.strerror or error}.", "Free some space, or choose another place.") from error
    return width, height


def check_format(out: Path) -> str:
    """Return the suffix of a figure in lower case, or say which there are."""
    kind = out.suffix.lower()
    if kind not in FORMATS:
        raise CellweaveError(f"A figure cannot be written as '{out.name}'.", "Let its name end in .png, .svg or .pdf.")
    return kind


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
