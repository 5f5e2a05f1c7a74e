"""Taking results away: figures, h5ad, tables, spec, command and script."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject
from qtpy.QtGui import QGuiApplication
from qtpy.QtWidgets import QFileDialog

from cellweave.app.state.session import Session
from cellweave.app.workers.analysis import Analysis
from cellweave.app.workers.tasks import Task, TaskRunner, forward
from cellweave.core.errors import Cancelled, CellweaveError, RunFolderError
from cellweave.core.files import write_text_atomic
from cellweave.core.spec import save_spec

if TYPE_CHECKING:
    from cellweave.app.window import MainWindow

LOG = logging.getLogger("cellweave.window")
NO_UMAP = "This run has no UMAP that a figure could show. It is computed when training ends; afterwards with 'Compute the embedding again'."


class Exporting(QObject):
    """Writes what the person takes away."""

    def __init__(self, window: MainWindow, session: Session, analysis: Analysis, tasks: TaskRunner) -> None:
        super().__init__(window)
        self._window, self._session, self._analysis, self._tasks = window, session, analysis, tasks
        self._task: Task | None = None

    # ------------------------------------------------------------------ spec

    def ask_save_spec(self) -> None:
        """Write the spec as a TOML file."""
        start = str(Path(self._session.settings.last_folder) / f"{self._session.spec.name or 'run'}.toml")
        file, _ = QFileDialog.getSaveFileName(self._window, "Save spec", start, "Run spec (*.toml)")
        if file:
            self.save_spec(Path(file if file.endswith(".toml") else f"{file}.toml"))

    def save_spec(self, path: Path) -> None:
        """Write the spec to a path."""
        try:
            save_spec(self._session.spec, path)
        except OSError as error:
            self._window.show_error(CellweaveError(f"'{path}' could not be written: {error.strerror or error}.", "Choose another folder."), "")
            return
        self._window.notify(f"The spec is in '{path}'.")

    def copy_command(self) -> None:
        """Put the command line that trains this on the clipboard."""
        from cellweave.core.export.script import train_command

        QGuiApplication.clipboard().setText(train_command(self._session.spec))
        self._window.notify("The command line is on the clipboard.")

    def copy_script(self) -> None:
        """Put a script that trains this on the clipboard."""
        from cellweave.core.export.script import train_script

        QGuiApplication.clipboard().setText(train_script(self._session.spec, f"runs/{self._session.spec.model.kind}-01"))
        self._window.notify("The Python script is on the clipboard.")

    # ------------------------------------------------------------------ results

    @property
    def target(self) -> Path | None:
        """The run that is exported: the one shown, else the selected one; None where its folder is not there."""
        watching = self._window.watching
        target = None if watching.gone is not None else watching.shown or self._window.runs.target
        return target if target is not None and target.is_dir() else None

    def _checked_target(self) -> Path | None:
        """Return the target; where the folder of the shown run is gone, say so."""
        watching, target = self._window.watching, self.target
        current = self._window.training.current
        trains = current is not None and current.folder == watching.shown  # the engine makes its folder anew
        if target is None and not trains and (watching.gone or watching.shown):
            watching.lose()
            self._window.status.update_actions()
        return target

    def figure(self, what: str = "", start: Mapping[str, Any] | None = None) -> None:
        """Open the figure dialog for the shown (or selected) run.

        Parameters
        ----------
        what
            A figure (see ``core.export.figure_options.FIGURES``); empty takes that of the view in front, which may say that it has none, or
            the losses where the run is not the one that the views show.
        start
            Options to begin with.
        """
        target = self._checked_target()
        if target is None:
            return
        from cellweave.app.views import FigureDialog

        shown = target == self._window.watching.shown
        if not what and shown:
            own, why = self._window.centre.figure()
            if own is None:
                self._window.notify(why)
                return
            what, start = str(own.pop("what")), own
        elif shown and start is None:
            start = {"embedding": self._window.centre.embedding_options, "losses": self._window.centre.loss_options}.get(what, dict)()
        what = what or "losses"
        if what == "embedding" and not (target / "results" / "umap.npy").is_file():
            self._window.notify(NO_UMAP)
            return
        cells = self._window.watching.cells
        columns = list(cells.columns) if cells is not None else ()
        dialog = FigureDialog(target, self._window, self._analysis.process, what=what, start=start, columns=columns)
        dialog.setAttribute(self._window.delete_on_close)
        dialog.saved.connect(lambda path: self._window.notify(f"'{path}' is written."))
        self._window.figure_dialog = dialog
        dialog.show()

    def ask_losses(self, text: str) -> None:
        """Ask where, and write the losses that are shown as CSV."""
        out = self.ask("Export losses", "-losses.csv", "CSV (*.csv)")
        if out is None:
            return
        try:
            write_text_atomic(out, text)
        except OSError as error:
            self._window.show_error(CellweaveError(f"'{out}' could not be written: {error.strerror or error}.", "Choose another folder."), "")
            return
        self._window.notify(f"'{out}' is written.")

    def ask(self, title: str, suffix: str, kind: str) -> Path | None:
        """Ask where something of the run is to be written; the name of the run with a suffix is proposed."""
        target = self._window.watching.shown or self._window.watching.gone or self._window.runs.target
        if target is None:
            return None
        run = self._session.library.get(target)
        stem = (run.name if run is not None else target.name).replace("/", "-")
        start = str(Path(self._session.settings.last_folder) / f"{stem}{suffix}")
        file, _ = QFileDialog.getSaveFileName(self._window, title, start, kind)
        return Path(file) if file else None

    def h5ad(self) -> None:
        """Ask where, and write the input with the results."""
        if self._checked_target() is None:
            return
        out = self.ask("Export h5ad", ".h5ad", "AnnData (*.h5ad);;MuData, all modalities (*.h5mu)")
        if out is not None:
            self.write_h5ad(out)

    def write_h5ad(self, out: Path) -> None:
        """Write the h5ad (or, by its suffix, the h5mu) of the shown run in a thread."""
        target = self._checked_target()
        if target is None:
            return
        denoised = (target / "results" / "denoised.h5").is_file()

        def work(report: Any) -> Path:
            from cellweave.core.export.h5ad import export_h5ad, export_h5mu

            export = export_h5mu if out.suffix == ".h5mu" else export_h5ad
            return export(target, out, denoised=denoised, progress=forward(report))

        self._run(work, f"Writing {out.name}", f"'{out}' is written.")

    def tables(self) -> None:
        """Ask for a folder and write the tables of the run there."""
        if self._checked_target() is None:
            return
        folder = QFileDialog.getExistingDirectory(self._window, "Folder for the tables", self._session.settings.last_folder)
        if folder:
            self.write_tables(Path(folder))

    def write_tables(self, folder: Path) -> None:
        """Write losses, latent space and coordinates as CSV, in a thread."""
        target = self._checked_target()
        if target is None:
            return

        def work(report: Any) -> list[Path]:
            report("reading the results", None)
            return write_tables(target, folder)

        self._run(work, "Writing tables", f"The tables are in '{folder}'.")

    def _run(self, work: Any, doing: str, done_words: str) -> None:
        window = self._window

        def done(_result: Any) -> None:
            self._task = None
            window.status.say_idle()
            window.notify(done_words)
            LOG.info("%s", done_words)

        def failed(error: Exception, details: str) -> None:
            self._task = None
            window.status.say_idle()
            if not isinstance(error, Cancelled):
                window.show_error(error, details)

        def progressed(text: str, fraction: float | None) -> None:
            window.status.say_busy(f"{doing}: {text}" if text else doing, fraction, cancellable=True)

        window.status.say_busy(doing, None, cancellable=True)
        self._task = self._tasks.run(work, done, failed, progressed)

    def cancel(self) -> bool:
        """Stop what is being written; return whether there was anything."""
        if self._task is None or not self._task.running():
            return False
        self._task.cancel()
        return True


def write_tables(run: Path, folder: Path) -> list[Path]:
    """Write every table that a run has into a folder; files of the same name are replaced.

    Raises
    ------
    CellweaveError
        Where the folder cannot be written, or the run has no table at all.
    """
    from cellweave.core.export.tables import TABLES, save_table

    written: list[Path] = []
    lacking: RunFolderError | None = None
    for kind in TABLES:
        try:
            written.append(save_table(run, kind, folder / f"{kind}.csv"))
        except RunFolderError as error:
            lacking = error
    if not written and lacking is not None:
        raise lacking
    return written
