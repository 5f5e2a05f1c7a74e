"""Brings what a run says into the views: curves as they come, and an embedding that moves while the model learns."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QObject

from cellweave.app.flows import dialogs
from cellweave.app.flows.earlier import EarlierEpochs
from cellweave.app.state.progress import RunProgress, reach
from cellweave.app.state.results import (
    Cells,
    RunResults,
    default_pair,
    earlier_layouts,
    load_layout,
    read_run,
    study_cells,
)
from cellweave.app.state.runs import run_label
from cellweave.app.state.session import Session
from cellweave.app.workers.analysis import Analysis
from cellweave.app.workers.tasks import TaskRunner
from cellweave.core.analysis.jobs import JobUpdate, UpdateKind
from cellweave.core.errors import Cancelled
from cellweave.core.runs.events import Event, FinishReason, PreviewReady, RunState
from cellweave.core.runs.folder import RunFolder
from cellweave.core.spec import RunSpec

if TYPE_CHECKING:
    from cellweave.app.window import MainWindow

LOG = logging.getLogger("cellweave.window")


class Watching(QObject):
    """Fills the Losses and Embedding views.

    Attributes
    ----------
    shown
        Folder of the run that the views show, or None.
    gone
        The same where that folder was deleted: the views stay as they are, but nothing can be exported.
    """

    def __init__(self, window: MainWindow, session: Session, analysis: Analysis, tasks: TaskRunner) -> None:
        super().__init__(window)
        self._window, self._session, self._analysis, self._tasks = window, session, analysis, tasks
        self.shown: Path | None = None
        self.gone: Path | None = None
        self.results: RunResults | None = None
        self.cells: Cells | None = None
        self.progress = RunProgress("")
        self.spec: RunSpec | None = None
        self._generation = 0
        self._refresh: tuple[int, int, Path] | None = None  # job, epoch, file
        self._waiting: tuple[Path, int] | None = None
        self._previous: Path | None = None
        analysis.updated.connect(self._updated)
        self.earlier = EarlierEpochs(analysis, self)
        self.earlier.found.connect(self._offer_earlier)

    # ------------------------------------------------------------------ a run that trains

    def begin(self, folder: Path, spec: RunSpec) -> None:
        """Show a run that begins to train."""
        self._generation += 1
        self._window.centre.notice.run_changed()
        self.shown, self.spec, self.results, self.cells = folder, spec, None, None
        self.gone = None
        self._refresh = self._waiting = self._previous = None
        self.earlier.stop()
        losses, embedding = self._window.losses, self._window.embedding
        embedding.bar.offer_reference(on=None)
        losses.set_terms(spec.terms(), spec.family.metrics(spec))
        label = run_label(spec.name, folder)
        losses.set_run(label, ())
        self._window.centre.say_run(label)
        self.progress = RunProgress(label)
        losses.set_message(self.progress.sentence())
        embedding.clear()
        embedding.set_message(self._waiting_words(spec))
        self._window.expression.offer(None)
        self._window.centre.set_run(None, f"'{label}' trains; this view fills when its results are there.")
        self._window.show_view("losses")
        if RunFolder(folder).events_file.is_file():
            self._read_earlier(folder)

    def _read_earlier(self, folder: Path) -> None:
        """Draw the epochs that a run had before it went on: its journal has them, and it tells only the new ones."""
        generation = self._generation

        def done(events: list[Event]) -> None:
            if generation == self._generation and self.results is None:
                self._window.losses.add_earlier(events)

        def failed(error: Exception, _details: str) -> None:
            LOG.warning("the earlier epochs of %s could not be read: %s", folder, error)

        self._tasks.run(lambda _report: [event for event, _ in RunFolder(folder).tail()], done, failed)

    def _waiting_words(self, spec: RunSpec) -> str:
        every = spec.training.preview_every
        if not every and not spec.analysis.umap:
            return "No embedding will be computed: UMAP and the live embedding are switched off in step 5."
        if every:
            return f"The first live embedding comes after epoch {every}; then it moves {'every epoch' if every == 1 else f'every {every} epochs'}."
        return "The embedding is computed when training ends. A live one can be switched on in step 5."

    def take(self, events: Sequence[Event]) -> None:
        """Take in what the shown run says."""
        losses = self._window.losses
        for event in events:
            losses.add_event(event)
            self.progress.add(event)
            if isinstance(event, PreviewReady) and event.path:
                self._waiting = (self._here(event), event.epoch)
        if not self.progress.epochs_done:
            losses.set_message(self.progress.sentence())
        self._next_refresh()

    def _here(self, event: PreviewReady) -> Path:
        """Return where a preview lies: a run elsewhere may name it from another folder."""
        path = Path(event.path)
        return path if path.is_absolute() or self.shown is None else self.shown / path.parent.name / path.name

    @property
    def _final(self) -> bool:
        """Whether the shown run has its final embedding."""
        return self.results is not None and self.results.xy is not None

    def study(self) -> Any:
        """Return the loaded data of the shown run, or None."""
        training = self._window.training
        if training.current is not None and training.current.folder == self.shown:
            return training.study
        return self._window.opening.study_of(self.spec.data) if self.spec is not None else None

    # ------------------------------------------------------------------ the live embedding

    def _next_refresh(self) -> None:
        """Lay out the newest preview, unless one is being laid out: the one in between is left out."""
        if self._waiting is None or self._refresh is not None or self.spec is None:
            return
        latent, epoch = self._waiting
        self._waiting = None
        out = latent.with_name(f"layout-{epoch:06d}.npy")
        job = self._analysis.submit(
            "refresh", latent=str(latent), previous=str(self._previous) if self._previous else None, out=str(out),
            n_neighbors=self.spec.analysis.n_neighbors, min_dist=self.spec.analysis.min_dist,
        )  # fmt: skip
        self._refresh = (job, epoch, out)

    def _updated(self, update: JobUpdate) -> None:
        if update.kind is UpdateKind.RESTARTED:
            self._window.notify(update.text)
            return
        if self._refresh is None or update.job != self._refresh[0] or not update.final:
            return
        _, epoch, out = self._refresh
        self._refresh = None
        if update.kind is UpdateKind.DONE:
            self._previous = out
            self._show_layout(out, epoch)
        elif update.kind is UpdateKind.FAILED:
            LOG.warning("live embedding: %s %s", update.text, update.mend)
            self._window.notify(f"{update.text} {update.mend}".strip())
        self._next_refresh()

    def _show_layout(self, path: Path, epoch: int) -> None:
        if self.shown is None or path.parent.parent != self.shown or self._final:
            return  # of a run that is no longer shown, or that has its final embedding
        try:
            layout = np.load(path, allow_pickle=False)
            rows = np.load(path.with_name("cells.npy"), allow_pickle=False)
        except (OSError, ValueError) as error:
            LOG.warning("the live embedding could not be read: %s", error)
            return
        there = np.isfinite(layout).all(axis=1)
        embedding = self._window.embedding
        study, generation = self.study(), self._generation
        if self.cells is not None and len(self.cells.rows) == int(there.sum()) and (self.cells.columns or study is None):
            if embedding.epochs.at_end:  # whoever went back stays there
                embedding.move_points(layout[there], epoch)
            self._offer_epochs(earlier_layouts(path.parent))
            self._window.centre.take_preview(path.with_name(f"latent-{epoch:06d}.npy"), epoch)
            return
        chosen, points = rows[there], layout[there]

        def done(cells: Cells) -> None:
            if generation == self._generation and not self._final and self.spec is not None:
                self.cells = cells
                self._window.fill_embedding(points, cells, default_pair(self.spec, list(cells.columns)))
                self._window.show_view("embedding", only_from="losses", once=True)
                self._window.centre.take_preview(path.with_name(f"latent-{epoch:06d}.npy"), epoch)

        if study is None:  # the engine read the data itself: what the cells are is known when it is done
            done(Cells(chosen, chosen.astype(str), {}))
            return
        self._tasks.run(lambda report: study_cells(study, chosen), done, lambda error, details: LOG.warning("live embedding: %s", error))

    # ------------------------------------------------------------------ a run that is there

    def open(self, folder: Path, *, then: Any = None, otherwise: Callable[[Exception], None] | None = None) -> None:
        """Read a run folder in a thread and show it; where it cannot be read, show the error or call ``otherwise``."""
        self._generation += 1
        generation = self._generation
        self._window.status.say_busy(f"Opening the run {folder.name}")

        def done(results: RunResults) -> None:
            if generation == self._generation:
                # How another run ended is no longer of interest.
                self._window.status.say_idle("Ready" if folder != self.shown else "")
                self.show(results)
                if then is not None:
                    then(results)

        def failed(error: Exception, details: str) -> None:
            if generation == self._generation:
                self._window.status.say_idle()
                if otherwise is not None:
                    otherwise(error)
                elif not isinstance(error, Cancelled):
                    self._window.show_error(error, details)

        self._tasks.run(lambda report: read_run(folder), done, failed)

    def show(self, results: RunResults) -> None:
        """Show a run that was read."""
        window = self._window
        if results.folder != self.shown:
            window.centre.notice.run_changed()
        self.gone = None
        self.shown, self.spec, self.results, self.cells = results.folder, results.spec, results, results.cells
        self._refresh = self._waiting = None
        window.losses.set_terms(results.spec.terms(), results.spec.family.metrics(results.spec))
        window.losses.set_run(results.label, results.events)
        window.centre.say_run(results.label)
        self.progress = RunProgress(results.label)
        for event in results.events:
            self.progress.add(event)
        window.losses.set_message(self._why_no_losses(results))
        if results.xy is not None and results.cells is not None:
            self.earlier.begin(results)
            window.embedding.bar.offer_reference(on=True if results.joint is not None else None)
            self.show_reference(on=results.joint is not None)
            if results.note:
                window.notify(results.note)
        else:
            self.earlier.stop()
            window.embedding.bar.offer_reference(on=None)
            window.embedding.clear()
            window.embedding.set_message(f"{self._why_no_embedding(results)} {results.note}".strip())
            self._take_up_previews(results)
        window.expression.offer(results)
        window.run_shown(results)

    def show_reference(self, on: bool) -> None:
        """Show the cells of the shown run among those of its reference, or alone."""
        results = self.results
        if results is None or results.xy is None or results.cells is None:
            return
        if on and results.joint is not None:
            self._offer_epochs(())
            self._window.fill_embedding(results.joint.xy, results.joint.cells, results.joint.prefer)
            return
        self._offer_earlier()
        self._window.fill_embedding(results.xy, results.cells, tuple(name for name in results.prefer if name in results.cells.columns))

    def _offer_earlier(self) -> None:
        """Let the slider go back through the epochs of a finished run, as far as they are laid out; among a reference's cells there are none."""
        results = self.results
        if results is not None and results.xy is not None and self.joined() is None:
            last = results.status.epoch  # its final embedding stands for its live one
            layouts = [(epoch, path) for epoch, path in self.earlier.layouts if epoch < last]
            self._offer_epochs((*layouts, (last, results.xy)) if layouts else ())

    def joined(self) -> Cells | None:
        """Return the cells of run and reference where the embedding shows both."""
        if self.results is None or self.results.joint is None or not self._window.embedding.bar.reference.isChecked():
            return None
        return self.results.joint.cells

    def _why_no_losses(self, results: RunResults) -> str:
        status = results.status
        if results.trains:
            return self.progress.sentence()
        if results.failure:
            return f"'{results.label}' failed {reach(results.epochs_done)}. {results.failure}"
        if status.lost:
            return f"'{results.label}' was interrupted {reach(results.epochs_done)}: its process is gone."
        if status.state is RunState.DONE:
            return f"'{results.label}' has no losses: it ended {reach(results.epochs_done)}."
        return f"'{results.label}' has not begun."

    def _why_no_embedding(self, results: RunResults) -> str:
        """Say when the embedding comes, or why it never will."""
        status, lacks = results.status, f"'{results.label}' has no embedding:"
        if results.trains:
            return self._waiting_words(results.spec)
        if status.lost:
            return f"{lacks} it was interrupted before one was computed. Run > Continue training goes on from its last checkpoint."
        if results.failure:
            return f"{lacks} it failed. {results.failure}"
        if status.reason is FinishReason.CANCELLED:
            return f"{lacks} it was cancelled."
        if status.state is not RunState.DONE:
            return f"{lacks} it has not begun; the embedding is computed when training ends."
        if not results.spec.analysis.umap:
            return f"{lacks} UMAP was switched off in its settings. Run > Duplicate as new takes them over to train with one."
        return f"{lacks} it ended without one; its log says more."

    def _take_up_previews(self, results: RunResults) -> None:
        """Lay out the newest preview of a run that trains elsewhere; the next ones come with its events."""
        newest = [event for event in results.events if isinstance(event, PreviewReady)][-1:] if results.trains else []
        if newest:
            self._window.embedding.set_message(f"The cells are laid out as they were after epoch {newest[0].epoch}…")
            self.take(newest)

    def _offer_epochs(self, layouts: tuple[tuple[int, Path | np.ndarray], ...]) -> None:
        """Let the slider go back through the epochs."""

        def loader(source: Path | np.ndarray) -> Callable[[], np.ndarray]:
            return lambda: source if isinstance(source, np.ndarray) else load_layout(source)

        self._window.embedding.set_epoch_slider([(epoch, loader(source)) for epoch, source in layouts])

    def ask_gene(self) -> None:
        """Ask for a gene and colour the cells by it."""
        study, spec = self._session.study, self.spec
        if spec is None or self.cells is None:
            return
        names: list[str] = []
        if study is not None:
            names = [str(name) for name in study.main_modality(spec.data.modality if spec.data.modality in study.modalities else None).var.index]
        gene = dialogs.ask_name(self._window, "Colour by gene", "Name of the gene:", names)
        if gene:
            self.colour_by_gene(gene)

    def colour_by_gene(self, gene: str) -> None:
        """Colour the first panel by the log-normalised counts of a gene."""
        self._window.expression.show([gene])

    def lose(self) -> None:
        """The folder of the shown run is gone; say so."""
        self.gone, self.shown = self.shown or self.gone, None
        self._window.notify(f"The folder of the run '{self.progress.name}' is gone. What is shown stays until another run is opened.")

    def clear(self) -> None:
        """Show nothing."""
        self._generation += 1
        self.gone = None
        self.shown = self.spec = self.results = self.cells = None
        self.earlier.stop()
        self._window.centre.say_run("")
        self._window.losses.clear()
        self._window.embedding.bar.offer_reference(on=None)
        self._window.embedding.clear()
        self._window.embedding.set_message("")
        self._window.centre.set_run(None)
