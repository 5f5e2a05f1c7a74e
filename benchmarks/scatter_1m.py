"""One million points without a GPU: recolour, pan, zoom, lasso and hover in the Embedding view's own raster.

    python benchmarks/scatter_1m.py [--points 1000000] [--repeats 9]

Every figure is the best and the median of several bursts, wall time, and the best processor time, of what the window's thread does: computing the
colours and painting the panel into its widget, offscreen. The table goes to benchmarks/results/scatter_1m.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil
import pyqtgraph as pg
from qtpy import API_NAME, QT_VERSION
from qtpy.QtCore import QPointF
from qtpy.QtGui import QPolygonF
from qtpy.QtWidgets import QApplication

from cellweave.app import theme
from cellweave.app.views.columns import ColumnData
from cellweave.app.views.points import PointSet
from cellweave.app.views.scatterpanel import ScatterPanel
from cellweave.core.system import cpu_name, usable_cores

RESULTS = Path(__file__).resolve().parent / "results" / "scatter_1m.md"
WIDTH, HEIGHT = 900, 700
TARGETS = {"recolour": (120, 80), "pan frame": (50, 30), "lasso": (60, 30)}


def cloud(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return positions of a mixture of twenty groups, and the group of each point."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, 20, n)
    middle = rng.normal(size=(20, 2)) * 6
    return (middle[group] + rng.normal(size=(n, 2))).astype(np.float32), group


Row = tuple[str, float, float, float]


def measure(name: str, act: Callable[[], object], repeats: int) -> Row:
    """Return best and median wall time and best processor time of an act in milliseconds, after one that does not count."""
    act()
    walls, processor = [], []
    for _ in range(repeats):
        start, start_cpu = time.perf_counter(), time.process_time()
        act()
        processor.append(1000 * (time.process_time() - start_cpu))
        walls.append(1000 * (time.perf_counter() - start))
    return name, min(walls), statistics.median(walls), min(processor)


class Bench:
    """A panel of a million points, and what one does with it."""

    def __init__(self, n: int) -> None:
        self.xy, self.group = cloud(n)
        rng = np.random.default_rng(1)
        self.panel = ScatterPanel()
        self.panel.resize(WIDTH, HEIGHT)
        self.panel.show()
        self.columns = {
            "group": ColumnData.categorical(self.group, [f"group {number}" for number in range(20)]),
            "batch": ColumnData.categorical(rng.integers(0, 10, n), [f"batch {number}" for number in range(10)]),
            "value": ColumnData.continuous(rng.lognormal(size=n)),
        }
        self.panel.set_columns(self.columns, "group")
        self.panel.set_points(PointSet(self.xy))
        self.panel.fit()
        self.turn = 0
        for _ in range(5):
            QApplication.processEvents()
        self.paint()

    def paint(self) -> None:
        """Paint the canvas now, as the next frame would, and make sure that it was painted."""
        shown = self.panel.cloud._image
        self.panel.cloud._image = None
        self.panel.canvas.viewport().repaint()
        if self.panel.cloud._image is None or self.panel.cloud._image is shown:
            raise SystemExit("the canvas was not painted")

    def recolour(self) -> None:
        """Colour by another column of levels and paint."""
        self.turn += 1
        self.panel.show_column(("batch", "group")[self.turn % 2])
        self.paint()

    def recolour_numbers(self) -> None:
        """Colour by numbers and paint; the range is found anew each time."""
        self.panel.show_column("value")
        self.paint()

    def pan(self) -> None:
        """Move the whole cloud by a few pixels and paint every point."""
        self.turn += 1
        self.panel.box.translateBy(x=0.05 if self.turn % 2 else -0.05)
        self.paint()

    def drag(self) -> None:
        """Move as while the button is down: the subset is painted."""
        self.pan_signal()
        self.paint()

    def pan_signal(self) -> None:
        """Move and say that it was by hand."""
        self.turn += 1
        self.panel.box.translateBy(x=0.05 if self.turn % 2 else -0.05)
        self.panel.box.sigRangeChangedManually.emit([True, True])

    def lasso(self) -> None:
        """Find the points inside an outline of 300 corners around most of the cloud."""
        angle = np.linspace(0, 2 * np.pi, 300, endpoint=False)
        reach = 250 + 40 * np.sin(9 * angle)
        corners = zip(WIDTH / 2 + reach * np.cos(angle), HEIGHT / 2 + reach * np.sin(angle), strict=True)
        self.found = self.panel.cloud.inside(QPolygonF([QPointF(x, y) for x, y in corners]))

    def lasso_cold(self) -> None:
        """The same straight after the view has moved, when no pixel of a point is known yet."""
        self.panel.cloud._placed = None
        self.lasso()

    def select(self) -> None:
        """Show what the lasso found: others dimmed, legend counted anew, painted."""
        self.turn += 1
        chosen = np.zeros(len(self.xy), bool)
        chosen[self.found[self.turn % 2 :]] = True
        self.panel.set_selected(chosen)
        self.paint()

    def hide(self) -> None:
        """Hide a level or show it, and paint."""
        self.panel.legend.toggle([1])
        self.paint()

    def hover(self) -> None:
        """Find the point under the cursor."""
        self.panel.cloud.pick(QPointF(WIDTH / 3, HEIGHT / 2))

    def build(self) -> None:
        """Take in new positions and paint them for the first time."""
        self.panel.set_points(PointSet(self.xy))
        self.paint()


def run(n: int, repeats: int) -> list[Row]:
    """Return what was measured."""
    bench = Bench(n)
    rows = [
        measure("recolour", bench.recolour, repeats),
        measure("recolour by numbers", bench.recolour_numbers, repeats),
        measure("pan frame", bench.pan, repeats),
        measure("pan frame while dragging", bench.drag, repeats),
    ]
    bench.panel.cloud._refined()
    bench.panel.show_column("group")
    bench.paint()
    rows.append(measure("lasso", bench.lasso, repeats))
    rows.append(measure("lasso after a move", bench.lasso_cold, repeats))
    rows.append(measure(f"show a selection of {len(bench.found):,}", bench.select, repeats))
    bench.panel.set_selected(None)
    rows.append(measure("hide a level", bench.hide, repeats))
    rows.append(measure("hover", bench.hover, repeats))
    rows.append(measure("new positions, first paint", bench.build, max(3, repeats // 2)))
    bench.panel.box.scaleBy((0.15, 0.15))
    bench.paint()
    rows.append(measure("pan frame, zoomed in", bench.pan, repeats))
    return rows


def table(n: int, rows: list[Row], memory: float) -> str:
    """Return the results as Markdown."""
    lines = [
        f"# {n:,} points in the Embedding view, without a GPU", "",
        f"`python benchmarks/scatter_1m.py --points {n}`: one panel in a window of {WIDTH} x {HEIGHT}, 20 levels, offscreen; milliseconds.", "",
        "| what | best | median | best, processor time | target | aim |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, best, median, processor in rows:
        target, aim = TARGETS.get(name, ("", ""))
        lines.append(f"| {name} | {best:.1f} | {median:.1f} | {processor:.1f} | {target} | {aim} |")
    machine = f"{cpu_name()}, {usable_cores()} cores, load {os.getloadavg()[0]:.1f}, {platform.system()} {platform.machine()}"
    versions = f"Python {platform.python_version()}, numpy {np.__version__}, pyqtgraph {pg.__version__}, {API_NAME} with Qt {QT_VERSION}"
    lines += ["", f"Memory of the process beyond what it had before the points: {memory:.0f} MiB.", "", f"{machine}. {versions}.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    app = QApplication([])
    theme.apply(app, "light")
    process = psutil.Process()
    before = process.memory_info().rss
    rows = run(arguments.points, arguments.repeats)
    text = table(arguments.points, rows, (process.memory_info().rss - before) / 2**20)
    print(text)
    if arguments.points == 1_000_000:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
