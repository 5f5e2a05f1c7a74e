"""Drive the real window through the bundled example, without a screen, and save every step as a picture.

    python docs/make_screenshots.py [--out docs/screenshots] [--theme light --theme dark] [--epochs 60]

The window is clicked as a person would: welcome, open, roles, model, weights, train, curves, embedding, figure. The pictures are what
the window really shows, of a run that was really trained. Settings and runs go to a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
SIZE = (1440, 900)
SMALL = (1280, 720)
LONG = 300.0


class Driver:
    """A window, and a way to wait for it and to draw it.

    Parameters
    ----------
    theme
        ``light`` or ``dark``.
    out
        Folder of the pictures.
    epochs
        How long to train.
    """

    def __init__(self, theme: str, out: Path, epochs: int) -> None:
        from cellweave.app import theme as themes
        from cellweave.app.__main__ import make_application
        from cellweave.app.state.session import Session
        from cellweave.app.window import MainWindow

        self.app = make_application()
        themes.apply(self.app, theme)
        self.theme, self.out, self.epochs, self.number = theme, out, epochs, 0
        session = Session()
        session.settings.theme = theme
        self.window = MainWindow(session)
        self.window.restore()
        self.window.resize(*SIZE)
        self.window.show()
        self.wait(lambda: {"losses", "embedding"} <= set(self.window.centre._views))

    def wait(self, done: Callable[[], Any], seconds: float = LONG) -> None:
        """Let the window work until something holds."""
        from qtpy.QtCore import QCoreApplication, QEvent

        end = time.monotonic() + seconds
        while not done():
            if time.monotonic() > end:
                raise TimeoutError("the window did not get there")
            self.app.processEvents()
            QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)  # processEvents leaves deleted widgets standing
            time.sleep(0.01)

    def rest(self, seconds: float = 0.3) -> None:
        """Let the window draw what is pending."""
        end = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() > end)

    def shot(self, name: str, widget: Any = None) -> None:
        """Draw the window, or one of its dialogs."""
        self.rest()
        self.number += 1
        path = self.out / f"{self.number:02d}-{name}-{self.theme}.png"
        (widget or self.window).grab().save(str(path))
        sys.stdout.write(f"{path} {path.stat().st_size // 1024} kB\n")

    def checked(self) -> None:
        """Wait until the last edit was checked."""
        self.wait(lambda: self.window.session.checked_spec is not None and self.window.session.checked_spec == self.window.session.spec)

    # ------------------------------------------------------------------ the way through

    def run(self) -> None:
        """Go the whole way."""
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest
        from qtpy.QtWidgets import QApplication

        from cellweave.app.panels.roles import RolePopup

        window = self.window
        left = Qt.MouseButton.LeftButton
        self.shot("welcome")
        QTest.mouseClick(window.centre.welcome.example, left)
        self.checked()
        self.shot("data")
        self._mosaic()
        QTest.mouseClick(window.workflow.headers[1], left)
        view = window.covariates_panel.view
        QTest.mouseClick(view.viewport(), left, pos=view.visualRect(view.columns.index(view.columns.row_of("batch"))).center())
        popup = next(item for item in QApplication.topLevelWidgets() if isinstance(item, RolePopup) and item.isVisible())
        self.shot("roles", popup)
        popup.close()
        self.shot("covariates")
        self._fan_out()
        QTest.mouseClick(window.workflow.headers[2], left)
        self.shot("model")
        QTest.mouseClick(window.workflow.headers[3], left)
        self.shot("weights")
        QTest.mouseClick(window.workflow.headers[4], left)
        window.session.editor.edit({"training.max_epochs": self.epochs, "training.preview_every": 10, "training.early_stopping": False})
        self.checked()
        self.shot("training")
        self._train(left)
        self._look()
        self._take_away()
        self._second_run(left)
        self._linear_run(left)
        self._ask()
        self._imputation(left)
        self._modalities(left)
        self._attribution(left)
        window.close()
        self.rest()

    def _mosaic(self) -> None:
        """Show the mosaic grid with a modality of one batch switched off."""
        from qtpy.QtWidgets import QScrollArea

        window, grid = self.window, self.window.data_panel.mosaic
        before = window.session.spec.data.switched_off
        grid.boxes["p3_0", "adt"].click()
        self.wait(lambda: grid.boxes["p3_0", "adt"].accessibleDescription().endswith("held out"))
        self.checked()
        for area in (item for item in window.findChildren(QScrollArea) if item.isAncestorOf(grid)):
            area.ensureWidgetVisible(grid.hint)
        self.shot("mosaic")
        window.session.editor.edit({"data.switched_off": before})
        self.checked()

    def _fan_out(self) -> None:
        """What a role fills, and what contradicts it, in a model whose parts have columns of their own."""
        editor, before = self.window.session.editor, self.window.session.spec
        editor.edit({"model.kind": "ambient", "covariates.ambient": ("celltype",)})
        self.checked()
        self.shot("covariates-fan-out-and-conflict")
        editor.replace(before, "back to scVI")
        self.checked()

    def _train(self, left: Any) -> None:
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        window = self.window
        QTest.mouseClick(window.workflow.train, left)
        self.wait(lambda: window.training.progress.epoch >= self.epochs // 3)
        window.centre.chosen = True
        QTest.mouseClick(window.workflow.headers[3], left)
        QTest.keyClick(window.losses_panel.form.row("kl_z").slider, Qt.Key.Key_PageUp)
        self.wait(lambda: window.losses.history().changes and window.training.progress.epoch >= self.epochs // 2)
        window.show_view("losses")
        self.shot("live-losses")
        self.wait(lambda: window.watching.cells is not None)
        window.show_view("embedding")
        self.shot("live-embedding")
        self.wait(lambda: window.watching.results is not None and not window.training.active)

    def _look(self) -> None:
        import numpy as np

        window = self.window
        window.show_view("losses")
        self.shot("losses")
        window.show_view("metrics")
        self.wait(lambda: window.centre.view("metrics").rows)
        self.shot("metrics")
        window.show_view("embedding")
        self.rest(1.0)
        self.shot("embedding")
        codes = window.watching.cells.columns["celltype"].codes
        window.embedding.select(np.flatnonzero(codes == np.bincount(codes[codes >= 0]).argmax()))
        self.shot("selection")
        window.clear_selection()
        genes = list(window.session.study.main_modality().var.index)
        window.watching.colour_by_gene(next((name for name in ("CD3E", "CD14", "NKG7", "LYZ", "S100A9") if name in genes), genes[0]))
        self.wait(lambda: any(name.startswith("gene:") for name in window.embedding.shown_columns()))
        self.shot("gene")
        window.embedding.show_columns(["batch", "celltype"])

    def _take_away(self) -> None:
        from cellweave.app.actions import ShortcutsDialog
        from cellweave.app.views.figuredialog import Preview

        window = self.window
        window.exporting.figure("embedding")
        dialog = window.figure_dialog
        self.wait(lambda: not dialog.findChild(Preview).picture().isNull())
        self.shot("figure", dialog)
        dialog.close()
        window.shell.show_palette()
        window.palette_dialog.search.setText("export")
        self.shot("palette", window.palette_dialog)
        window.palette_dialog.close()
        keys = ShortcutsDialog({}, window)
        keys.show()
        self.shot("shortcuts", keys)
        keys.close()
        bad = self.out / "notes.h5ad"
        bad.write_text("dear diary")
        window.opening.open_path(str(bad))
        self.wait(lambda: hasattr(window, "error_dialog"))
        bad.unlink()
        self.shot("error", window.error_dialog)
        window.error_dialog.close()

    def _second_run(self, left: Any) -> None:
        from qtpy.QtTest import QTest

        window = self.window
        window.session.editor.edit({"model.n_latent": 20, "name": "Twenty dimensions", "training.max_epochs": 2000})
        self.checked()
        QTest.mouseClick(window.workflow.train, left)
        self.wait(lambda: window.training.progress.epoch >= 15)
        window.session.editor.edit({"model.n_latent": 30, "name": "Thirty dimensions"})
        self.checked()
        QTest.mouseClick(window.workflow.train, left)
        window.resize(*SMALL)
        window.show_view("losses")
        window.runs_panel.set_current(window.session.library.runs[-1].path)
        window.runs.overlay()
        window.arrangement.toggle_dock("log")
        self.wait(lambda: window.runs_panel.model.rowCount() > 2)  # the list follows the queue within a second or two
        self.rest(0.6)
        self.shot("queue-and-log-1280x720")
        window.arrangement.toggle_dock("log")
        window.training.queue.clear()
        window.training.cancel_now()
        self.wait(lambda: not window.training.active)


    def _linear_run(self, left: Any) -> None:
        """Train LDVAE, then its loadings, a comparison of groups, genes on the embedding and the runs beside one another, at both sizes."""
        from qtpy.QtTest import QTest

        window = self.window
        plain = {"model.n_latent": 10, "losses.weights": {}, "training.max_epochs": self.epochs}
        window.session.editor.edit({"model.kind": "ldvae", "name": "Linear decoder", **plain})
        self.checked()
        QTest.mouseClick(window.workflow.train, left)
        self.wait(lambda: window.training.active)
        self.wait(lambda: window.watching.results is not None and not window.training.active)
        differential, loadings, compare = (window.centre.view(name) for name in ("differential", "loadings", "compare"))
        window.show_view("differential")
        self.wait(lambda: differential.message() == "")
        differential.group1.choose_levels("celltype", ("B",))
        differential.group2.choose_levels("celltype", ("Mono",))
        QTest.mouseClick(differential.start, left)
        self.wait(lambda: differential.shown is not None)
        differential.table.view.selectRow(0)
        for size in (SMALL, SIZE):
            window.resize(*size)
            at = f"{size[0]}x{size[1]}"
            window.show_view("differential")
            self.shot(f"differential-{at}")
            differential.options.setChecked(True)
            self.shot(f"differential-options-{at}")
            differential.options.setChecked(False)
            window.show_view("loadings")
            self.wait(lambda: loadings.loadings is not None)
            self.shot(f"loadings-{at}")
            window.show_view("compare")
            self.wait(lambda: len(compare.rows) > 1)
            self.shot(f"compare-{at}")
            gene = str(loadings.loadings.features[loadings.gene])
            window.show_view("embedding")
            for source in ("gene", "corrected"):
                window.expression.show([gene], source)
                self.wait(lambda source=source: window.embedding.shown_columns()[0] == f"{source}:{gene}")  # noqa: B023
            self.shot(f"expression-{at}")

    def _ask(self) -> None:
        from cellweave.core.example import example_path

        window = self.window
        window.asking.ask()
        dialog = window.asking.dialog
        dialog.list.setCurrentRow(6)
        dialog.ask()
        self.wait(lambda: dialog.answer is not None)
        self.shot("ask", dialog)
        dialog.close()
        window.asking.map_data()
        mapping = window.asking.mapping
        mapping.set_paths([str(example_path())])
        self.wait(lambda: bool(mapping.checks))
        self.shot("map", mapping)
        mapping.close()


    def _imputation(self, left: Any) -> None:
        """Train scVAEIT on the example without the proteins of one batch, and judge what it imputes of them."""
        from qtpy.QtTest import QTest

        window = self.window
        off = ({"column": "batch", "level": "p3_0", "modality": "adt"},)
        changes = {"model.kind": "vaeit", "data.switched_off": off, "name": "scVAEIT", "training.max_epochs": 40, "training.learning_rate": 2e-3}
        window.session.editor.edit(changes)
        self.checked()
        QTest.mouseClick(window.workflow.train, left)
        self.wait(lambda: window.training.active)
        self.wait(lambda: window.watching.results is not None and not window.training.active)
        window.show_view("imputation")
        view = window.centre.view("imputation")
        self.wait(lambda: view.message() == "")
        QTest.mouseClick(view.judge, left)
        self.wait(lambda: view.found is not None and view.plot.picture is not None)
        window.show_view("masks")
        masks = window.centre.view("masks")
        self.wait(lambda: masks.picture.pattern is not None)
        for size in (SMALL, SIZE):
            window.resize(*size)
            at = f"{size[0]}x{size[1]}"
            window.show_view("imputation")
            view.choose(-1)
            self.shot(f"imputation-{at}")
            view.table.view.selectRow(0)
            self.shot(f"imputation-feature-{at}")
            window.show_view("masks")
            self.shot(f"masks-{at}")
        masks.which.setCurrentIndex(1)
        self.shot("masks-hidden")
        masks.which.setCurrentIndex(0)


    def _modalities(self, left: Any) -> None:
        """Train MIDAS on the example as it was measured, and look at what each modality alone says of the cells."""
        from qtpy.QtTest import QTest

        window = self.window
        window.session.editor.edit({"model.kind": "midas", "data.switched_off": (), "name": "MIDAS", "training.max_epochs": 40})
        self.checked()
        QTest.mouseClick(window.workflow.train, left)
        self.wait(lambda: window.training.active)
        self.wait(lambda: window.watching.results is not None and not window.training.active)
        window.show_view("modalities")
        view = window.centre.view("modalities")
        self.wait(lambda: view.found is not None and not view.message())
        for size in (SMALL, SIZE):
            window.resize(*size)
            self.shot(f"modalities-{size[0]}x{size[1]}")

    def _attribution(self, left: Any) -> None:
        """Train Multimodal VI on the example, and look at its attribution (while it trains, too), its background and its neighbourhoods."""
        from qtpy.QtTest import QTest

        window = self.window
        window.session.editor.edit(
            {"model.kind": "multimodal", "data.switched_off": (), "data.modality": None, "name": "Multimodal VI", "training.max_epochs": 40,
             "training.preview_every": 5, "analysis.attribution_live": True, "analysis.neighbourhood": True}
        )  # fmt: skip
        self.checked()
        QTest.mouseClick(window.workflow.train, left)
        self.wait(lambda: window.training.active)
        window.show_view("attribution")
        view = window.centre.view("attribution")
        self.wait(lambda: view.data is not None or not window.training.active)
        self.shot("attribution-live")
        self.wait(lambda: window.watching.results is not None and not window.training.active)
        window.show_view("attribution")
        self.wait(lambda: view.data is not None and view.data.epoch is None and not view.message())
        for size in (SMALL, SIZE):
            window.resize(*size)
            at = f"{size[0]}x{size[1]}"
            window.show_view("attribution")
            self.shot(f"attribution-{at}")
            window.show_view("neighbourhood")
            diagnosed = window.centre.view("neighbourhood")
            self.wait(lambda view=diagnosed: view.data is not None)
            self.shot(f"neighbourhood-{at}")
            window.show_view("ambient")
            ambient = window.centre.view("ambient")
            self.wait(lambda view=ambient: view.effects is not None)
            self.shot(f"ambient-{at}")
        window.show_view("attribution")
        window.centre.select(view.data.rows[view.data.scores.log_ratio("adt", "rna") > 0])
        self.shot("attribution-selection")
        window.clear_selection()


def main() -> int:
    """Make the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "screenshots")
    parser.add_argument("--theme", action="append", choices=("light", "dark"))
    parser.add_argument("--epochs", type=int, default=60)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for theme in options.theme or ["light", "dark"]:
        with tempfile.TemporaryDirectory(prefix="cellweave-shots-") as home:
            os.environ["CELLWEAVE_HOME"] = home
            Driver(theme, options.out.absolute(), options.epochs).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
