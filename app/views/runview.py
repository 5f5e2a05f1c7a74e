"""What every view of a run has in common: the run it shows, the linked selection, and words where there is nothing to show yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QStackedLayout, QVBoxLayout, QWidget

from cellweave.app.panels.parts import button, row, text
from cellweave.core.errors import Cancelled, CellweaveError

if TYPE_CHECKING:
    from cellweave.app.state.results import RunResults
    from cellweave.app.views.context import ViewContext
    from cellweave.app.workers.tasks import Task


class EmptyState(QWidget):
    """Words in the middle of a view that has nothing to show, with at most one thing to do about it."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.words = text("", secondary=True, selectable=True)
        self.words.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.words.setAccessibleName("What this view waits for")
        self.action = button("", "", self._do, primary=True)
        self._call: Callable[[], object] | None = None
        layout = QVBoxLayout(self)
        layout.setContentsMargins(24, 24, 24, 24)
        layout.setSpacing(16)
        layout.addStretch(1)
        layout.addWidget(self.words)
        layout.addLayout(row(None, self.action, None))
        layout.addStretch(1)

    def say(self, sentence: str, label: str = "", call: Callable[[], object] | None = None) -> None:
        """Show a sentence, and a button where there is something to do."""
        self.words.setText(sentence)
        self._call = call
        self.action.setText(label)
        self.action.setAccessibleName(label)
        self.action.setVisible(bool(label))

    def _do(self) -> None:
        if self._call is not None:
            self._call()


class RunView(QWidget):
    """A view of one run.

    A subclass puts its widgets into ``body``, says in ``shows`` what will be seen, and overrides :meth:`show_run`, :meth:`clear` and, where
    it shows cells, :meth:`show_selection`. Whatever computes or reads files goes through :meth:`work`: slots stay under 50 ms.

    Parameters
    ----------
    context
        What a view is given of the window.
    parent
        Owner.

    Attributes
    ----------
    selectionChanged
        The person selected other cells here: rows of the study, int64 ``(n,)``, none of them for no selection.
    epochChosen
        The person went to another epoch of the run here.
    shows
        What an empty view says it will show; one sentence.
    no_figure
        Why there is no figure where :meth:`figure` returns None, and what to do instead.
    results
        The run, or None.
    body
        Where the widgets of the view are.
    """

    selectionChanged = Signal(object)  # noqa: N815
    epochChosen = Signal(int)  # noqa: N815
    shows: ClassVar[str] = ""
    no_figure: ClassVar[str] = "There is nothing in this view yet that a figure could show."

    def __init__(self, context: ViewContext, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.context = context
        self.results: RunResults | None = None
        self.body = QWidget(self)
        self.empty = EmptyState(self)
        self._generation = 0
        self._tasks: list[Task] = []
        self._pages = QStackedLayout(self)
        self._pages.setContentsMargins(0, 0, 0, 0)
        self._pages.addWidget(self.empty)
        self._pages.addWidget(self.body)
        self.empty.say(self.shows)

    # ------------------------------------------------------------------ what a subclass does

    def show_run(self, results: RunResults) -> None:
        """Show a run that was read; called with the view cleared."""
        raise NotImplementedError

    def show_selection(self, rows: NDArray[np.int64]) -> None:
        """Mark cells that were selected elsewhere; views that show no cells leave this as it is."""

    def take_preview(self, path: Path, epoch: int) -> None:
        """Take in that the run that trains has written a preview: the latent of some cells, and what else lies beside it."""

    def take_epoch(self, epoch: int) -> None:
        """Take in that another view went to an epoch; views that show the result only leave this as it is."""

    def clear(self) -> None:
        """Let go of everything that belongs to the run."""

    # ------------------------------------------------------------------ what the window does

    def set_run(self, results: RunResults | None, message: str = "") -> None:
        """Show a run.

        Parameters
        ----------
        results
            The run, or None: then the view says what it will show and offers the next step.
        message
            Said in place of the view, where the run has nothing for it.
        """
        self._generation += 1
        for task in self._alive():
            task.cancel()
        self._tasks = []
        self.results = None
        self.clear()
        self.results = results if not message else None
        if self.results is not None:
            self.set_message("")
            self.show_run(self.results)
        elif message:
            self.set_message(message)
        else:
            self._say_step()

    def _say_step(self) -> None:
        self.set_message(self.shows, *self.context.next_step())

    def renew_step(self) -> None:
        """Offer the present next step, where the view says that it waits for a run."""
        if self.results is None and self.message() == self.shows:
            self._say_step()

    def select(self, rows: ArrayLike | None) -> None:
        """Mark selected cells, without saying so again.

        Parameters
        ----------
        rows
            Rows of the study; None or none of them for no selection.
        """
        self.show_selection(np.zeros(0, np.int64) if rows is None else np.asarray(rows, dtype=np.int64))

    def set_message(self, sentence: str, label: str = "", call: Callable[[], object] | None = None) -> None:
        """Say something in place of the view, with at most one thing to do about it; an empty text shows the view."""
        if sentence:
            self.empty.say(sentence, label, call)
        self._pages.setCurrentWidget(self.empty if sentence else self.body)

    def message(self) -> str:
        """Return what is said in place of the view, or an empty text."""
        return self.empty.words.text() if self._pages.currentWidget() is self.empty else ""

    def figure(self) -> dict[str, Any] | None:
        """Return what the figure dialog begins with (``what``, and options by name), or None where the view has no figure now."""
        return None

    def why_no_figure(self) -> str:
        """Return why the view has no figure now: what it says in place of itself, or a sentence of its own."""
        return self.message() or self.no_figure

    # ------------------------------------------------------------------ work

    def work(
        self,
        work: Callable[[Any], Any],
        done: Callable[[Any], None],
        *,
        doing: str = "",
        failed: Callable[[Exception, str], None] | None = None,
        progressed: Callable[[str, float | None], None] | None = None,
    ) -> Task:
        """Do something in a thread; what comes of it is dropped where another run is shown by then.

        Parameters
        ----------
        work
            Called in the thread with a report: ``report("words", share)`` tells how far it is, and ends it where it was cancelled.
        done
            Takes what it returns, in the window's thread.
        doing
            Words for the activity bar, which then offers to cancel; empty for what takes a moment.
        failed
            Takes the error and its details; where there is none, the view says the sentence in its place.
        progressed
            Told how far the work is, beside the activity bar.
        """
        generation = self._generation

        def received(result: Any) -> None:
            if generation == self._generation:
                done(result)

        def broken(error: Exception, details: str) -> None:
            if generation != self._generation:
                return
            if failed is not None:
                failed(error, details)
            elif isinstance(error, CellweaveError):
                self.set_message(str(error))
            elif not isinstance(error, Cancelled):
                self.context.show_error(error, details)

        task = self.context.run(work, received, broken, doing=doing, progressed=progressed)
        self._tasks = [*self._alive(), task]
        return task

    def _alive(self) -> Iterable[Task]:
        from qtpy.compat import isalive

        return (task for task in self._tasks if isalive(task) and task.running())
