"""The earlier epochs of a run that nobody watched: its previews are laid out once it is opened, so that the slider goes back through them."""

from __future__ import annotations

import logging
from pathlib import Path

from qtpy.QtCore import QObject, Signal

from cellweave.app.state.results import RunResults
from cellweave.app.workers.analysis import Analysis
from cellweave.core.analysis.jobs import JobUpdate, UpdateKind

LOG = logging.getLogger("cellweave.window")


class EarlierEpochs(QObject):
    """Lays out the previews of a finished run one after the other, each from where the one before it ended, as while it is watched.

    Parameters
    ----------
    analysis
        The process that lays out.
    parent
        Owner.

    Attributes
    ----------
    found
        One more epoch is there; the layouts are in ``layouts``.
    layouts
        Epoch and file of every layout of the run shown.
    """

    found = Signal()

    def __init__(self, analysis: Analysis, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._analysis = analysis
        self.layouts: tuple[tuple[int, Path], ...] = ()
        self._results: RunResults | None = None
        self._left: list[tuple[int, Path]] = []
        self._job: tuple[int, int, Path] | None = None  # job, epoch, file
        analysis.updated.connect(self._updated)

    def begin(self, results: RunResults) -> None:
        """Take the layouts of a run, and have those made that are missing."""
        if self._job is not None and self._results is not None and self._results.folder == results.folder:
            return  # the same run was read again: the layouts go on
        self.stop()
        self.layouts, self._results = results.epochs, results
        self._left = list(results.without_layout)
        self._next()

    def stop(self) -> None:
        """Lay out no more; another run is shown. What is being laid out comes to its end: cancelling it would cost a new process."""
        self.layouts, self._results, self._left, self._job = (), None, [], None

    def _next(self) -> None:
        if not self._left or self._results is None:
            return
        epoch, latent = self._left.pop(0)
        before = [path for number, path in self.layouts if number < epoch]
        out = latent.with_name(f"layout-{epoch:06d}.npy")
        analysis = self._results.spec.analysis
        job = self._analysis.submit(
            "refresh", latent=str(latent), previous=str(before[-1]) if before else None, out=str(out),
            n_neighbors=analysis.n_neighbors, min_dist=analysis.min_dist,
        )  # fmt: skip
        self._job = (job, epoch, out)

    def _updated(self, update: JobUpdate) -> None:
        if self._job is None or update.job != self._job[0] or not update.final:
            return
        _, epoch, out = self._job
        self._job = None
        if update.kind is not UpdateKind.DONE:  # a folder one may not write in, say: the others would fare no better
            LOG.warning("the embedding of epoch %d was not laid out: %s %s", epoch, update.text, update.mend)
            self._left = []
            return
        self.layouts = tuple(sorted((*self.layouts, (epoch, out))))
        self.found.emit()
        self._next()
