"""The window's own affairs: theme, layout, palette, shortcuts, report, about."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import QObject, QUrl
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QApplication, QMenu, QMessageBox

from cellweave.app import theme
from cellweave.app.actions import CommandPalette, ShortcutsDialog
from cellweave.app.flows.dialogs import TextDialog
from cellweave.app.state import paths
from cellweave.app.state.session import Session
from cellweave.app.views.declared import VIEW_NAMES

if TYPE_CHECKING:
    from cellweave.app.window import MainWindow

LOG = logging.getLogger("cellweave.window")

SHOWN = 8  # recent files, and as many runs


class Shell(QObject):
    """What the menus View, Window and Help do."""

    def __init__(self, window: MainWindow, session: Session) -> None:
        super().__init__(window)
        self._window, self._session = window, session

    # ------------------------------------------------------------------ file

    def fill_recent(self, menu: QMenu) -> None:
        """List what was open lately in a menu; what is no longer there is greyed."""
        settings = self._session.settings
        menu.clear()
        for title, recent in (("Data", settings.recent_data), ("Runs", settings.recent_runs)):
            if recent:
                menu.addSection(title)
            for path in recent[:SHOWN]:
                places = [Path(place) for place in path.split("\n")]
                there = all(place.exists() for place in places)
                name = places[0].name + (f" and {len(places) - 1} more" if len(places) > 1 else "")
                action = menu.addAction((name if there else f"{name} (missing)").replace("&", "&&"))
                action.setToolTip(path)
                action.setEnabled(there)
                action.triggered.connect(lambda _=False, path=path: self._window.opening.open_path(path))
        if menu.isEmpty():
            menu.addAction("Nothing was opened yet").setEnabled(False)

    # ------------------------------------------------------------------ view

    def show_welcome(self) -> None:
        """Show the first page."""
        self._window.show_view("welcome")

    def show_palette(self) -> None:
        """Open the command palette."""
        palette = CommandPalette(self._window.actions_by_id, self._window.status.conditions(), self._window)
        self._window.palette_dialog = palette
        palette.show()
        palette.search.setFocus()

    def _theme(self, name: str) -> None:
        app = QApplication.instance()
        if isinstance(app, QApplication):
            theme.apply(app, name)
        self._session.settings.theme = name  # type: ignore[assignment]
        self._window.mark_theme()
        self._window.arrangement.save_soon()

    def theme_system(self) -> None:
        """Follow the desktop."""
        self._theme("system")

    def theme_light(self) -> None:
        """Dark on light."""
        self._theme("light")

    def theme_dark(self) -> None:
        """Light on dark."""
        self._theme("dark")

    # ------------------------------------------------------------------ edit

    def undo(self) -> None:
        """Take back the last change of the spec."""
        self._session.editor.stack.undo()

    def redo(self) -> None:
        """Do it again."""
        self._session.editor.stack.redo()

    def edit_shortcuts(self) -> None:
        """Look at the keys and change them."""
        dialog = ShortcutsDialog(self._session.settings.shortcuts, self._window)
        if dialog.exec():
            self._session.settings.shortcuts = dialog.keys()
            self._window.actions_by_id.set_shortcuts(dialog.keys())
            self._window.arrangement.save_soon()
        dialog.deleteLater()

    # ------------------------------------------------------------------ help

    def report_text(self) -> str:
        """Return versions, machine and log with the user's home folder masked."""
        from cellweave.core.system import versions

        lines = ["Cellweave problem report", "", "What happened, and what did you expect?", "", "Versions"]
        lines += [f"  {name} {number}" for name, number in versions().items()]
        lines += ["", "Machine", f"  {platform.platform()}", f"  Qt platform {QApplication.platformName()}"]
        lines += ["", "Log", *list(self._window.log_handler.lines)[-400:]]
        return paths.masked("\n".join(lines))

    def report(self) -> None:
        """Gather what is needed to mend a fault; nothing is sent."""
        intro = "Nothing is sent. Copy the text into an issue or a mail; paths of your home folder are masked."
        dialog = TextDialog("Report a problem", intro, self.report_text(), self._window)
        self._window.report_dialog = dialog
        dialog.show()

    def open_home(self) -> None:
        """Show the folder of runs, settings and log."""
        paths.home().mkdir(parents=True, exist_ok=True)
        QDesktopServices.openUrl(QUrl.fromLocalFile(str(paths.home())))

    def about(self) -> None:
        """Say what this is."""
        from cellweave.core.system import versions

        box = QMessageBox(self._window)
        box.setWindowTitle("About Cellweave")
        box.setIconPixmap(theme.program_icon().pixmap(64, 64))
        box.setText(f"Cellweave {versions().get('cellweave', '')}")
        box.setInformativeText(
            "Integrates single-cell data with deep generative models.\n\n"
            "Cellweave's own code is under the BSD 3-Clause licence. With PyQt6, which is under the GPL, the whole is under the GPL; "
            "PySide6 (LGPL) serves as well."
        )
        box.setAttribute(self._window.delete_on_close)
        box.show()

    # ------------------------------------------------------------------ window

    def __getattr__(self, name: str) -> Callable[[], None]:
        """Answer ``toggle_DOCK``, ``show_VIEW`` and ``step_NAME``, which are all alike."""
        if name.startswith("toggle_"):
            return lambda *_: self._window.arrangement.toggle_dock(name.removeprefix("toggle_"))
        if name.removeprefix("show_") in VIEW_NAMES:
            return lambda *_: self._window.centre.pick(name.removeprefix("show_"))
        steps = ("step_data", "step_covariates", "step_model", "step_losses", "step_training")
        if name in steps:
            return lambda *_: self._window.go_to_step(steps.index(name))
        raise AttributeError(name)

    def reset_layout(self) -> None:
        """Put every dock back."""
        self._window.arrangement.reset()

    def detach(self) -> None:
        """Show the present view in a window of its own."""
        self._window.detach_view()

    def quit(self) -> None:
        """Close the window."""
        self._window.close()
