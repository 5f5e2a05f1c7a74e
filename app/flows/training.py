"""Training: start, queue, steer, watch, and what happens at the end."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, Signal

from cellweave.app.flows import dialogs
from cellweave.app.flows.opening import data_key
from cellweave.app.state import paths
from cellweave.app.state.progress import RunProgress
from cellweave.app.state.runs import RunSummary, new_run_path, run_label
from cellweave.app.state.session import Session
from cellweave.app.workers.tasks import LEFT_BEHIND
from cellweave.app.workers.training import Outcome, Training
from cellweave.core.errors import CellweaveError
from cellweave.core.runs.events import Event, Failed, FinishReason, RunState, StateChanged, Warned
from cellweave.core.runs.folder import RunFolder, RunStatus
from cellweave.core.spec import RunSpec, save_spec

if TYPE_CHECKING:
    from cellweave.app.window import MainWindow

LOG = logging.getLogger("cellweave.window")
CANCEL_WAIT = 20_000  # milliseconds that closing waits for a cancelled run


@dataclass(frozen=True)
class Waiting:
    """A run in the queue.

    Attributes
    ----------
    spec, folder
        What to do, and where.
    study
        The data, where they are loaded with just these settings; None lets the engine read them.
    resume
        Whether to continue the folder's run.
    changes
        Settings that are changed for the rest of it, by dotted path.
    """

    spec: RunSpec
    folder: Path
    study: Any
    resume: bool = False
    changes: dict[str, Any] = field(default_factory=dict)


class TrainFlow(QObject):
    """Starts and steers the run that trains in this window; one at a time, the others wait.

    Attributes
    ----------
    began
        The run's folder and spec.
    happened
        A list of events.
    ended
        The run's folder and why it ended.
    changed
        The sentence, the buttons or the queue changed.
    """

    began = Signal(object, object)
    happened = Signal(list)
    ended = Signal(object, object)
    changed = Signal()

    def __init__(self, window: MainWindow, session: Session) -> None:
        super().__init__(window)
        self._window, self._session = window, session
        self.current: Training | None = None
        self.spec: RunSpec | None = None
        self.study: Any = None
        self._edited = session.spec
        self.progress = RunProgress("")
        self.queue: deque[Waiting] = deque()
        self.cancelling = False
        self.live_weights = True
        self._weights: dict[str, float] = {}
        self._failure: Failed | None = None
        self._said: set[str] = set()
        self._pressed = False
        session.editor.changed.connect(self._spec_edited)
        session.checks_changed.connect(self._checked)

    # ------------------------------------------------------------------ starting

    @property
    def active(self) -> bool:
        """Whether a run trains in this window."""
        return self.current is not None

    def train(self) -> None:
        """Train the present spec, or put it into the queue."""
        session = self._session
        why = session.why_not_ready()
        if why:
            self._window.notify(why)
        elif session.checked_spec != session.spec:
            self._pressed = True  # the last edit is still being checked: it begins as soon as that is done
        else:
            session.remember_roles()
            self._enqueue(session.spec, session.study)

    def _checked(self, _checks: object) -> None:
        if self._pressed and self._session.checked_spec == self._session.spec:
            self._pressed = False
            self.train()

    def _enqueue(self, spec: RunSpec, study: Any) -> None:
        folder = self._free_folder(spec)
        self.queue.append(Waiting(spec, folder, study if self._is_of(spec) else None))
        if self.active:
            LOG.info("%s waits in the queue", folder.name)
            self._window.notify(f"'{run_label(spec.name, folder)}' waits in the queue: it begins when the present run ends.")
        self._begin_next()
        self.changed.emit()

    def begin_with(self, spec: RunSpec) -> None:
        """Train with a spec that is not the one being edited; during another run it waits in the queue."""
        self._enqueue(spec, None)

    def _is_of(self, spec: RunSpec) -> bool:
        """Return whether the open study was read with the data settings of a spec."""
        return self._session.study is not None and self._window.opening.loaded == data_key(spec.data)

    def _free_folder(self, spec: RunSpec) -> Path:
        taken = {waiting.folder for waiting in self.queue}
        if self.current is not None:
            taken.add(self.current.folder)
        folder = new_run_path(spec)
        while folder in taken:
            stem, _, number = folder.name.rpartition("-")
            folder = folder.with_name(f"{stem}-{int(number) + 1:02d}")
        return folder

    def resume(self, folder: Path, epochs: int | None = None) -> None:
        """Continue a run from its last checkpoint, to as many epochs as it was to train or to those that are named."""
        changes = {} if epochs is None else {"training.max_epochs": epochs}
        try:
            spec = RunFolder.open(folder).spec.with_changes(changes)
        except CellweaveError as error:
            self._window.show_error(error, "")
            return
        self.queue.append(Waiting(spec, folder, self._session.study if self._is_of(spec) else None, resume=True, changes=changes))
        self._begin_next()
        self.changed.emit()

    def _begin_next(self) -> None:
        if self.active or not self.queue:
            return
        waiting = self.queue.popleft()
        name = run_label(waiting.spec.name, waiting.folder)
        training = waiting.spec.training
        self.spec, self.study = waiting.spec, waiting.study
        self.progress = RunProgress(name, training.patience if training.early_stopping else 0, waiting.resume)
        self.cancelling, self._failure, self._said = False, None, set()
        self._weights = dict(waiting.spec.loss_weights())
        try:
            paths.runs_folder().mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._window.show_error(
                CellweaveError(f"The folder of the runs cannot be made: {error.strerror or error}.", "Set CELLWEAVE_HOME to a folder you may write to."), ""
            )
            return
        self.current = Training(self._start(waiting), waiting.folder, self)
        self.current.events.connect(self._take)
        self.current.finished.connect(self._finished)
        self._session.settings.active_run = str(waiting.folder)
        self._window.arrangement.save_soon()
        LOG.info("training %s in %s", name, waiting.folder)
        self.began.emit(waiting.folder, waiting.spec)
        self.current.start()
        self.changed.emit()

    def _start(self, waiting: Waiting) -> Any:
        analysis = self._window.analysis.process
        study = waiting.study

        def start(listener: Any, control: Any) -> object:
            # Imported here: torch must not be loaded before the window shows.
            from cellweave.core.runs import execute as engine

            if waiting.resume:
                return engine.resume(waiting.folder, listener=listener, control=control, study=study, analysis=analysis, changes=waiting.changes)
            return engine.execute(waiting.spec, waiting.folder, listener=listener, control=control, study=study, analysis=analysis)

        return start

    def train_detached(self) -> None:
        """Train in a process of its own, and watch it through its folder."""
        session = self._session
        why = session.why_not_ready()
        if why:
            self._window.notify(why)
            return
        session.remember_roles()
        folder = self._free_folder(session.spec)
        spec_file = paths.home() / "specs" / f"{folder.name}.toml"
        try:
            spec_file.parent.mkdir(parents=True, exist_ok=True)
            save_spec(session.spec, spec_file)
            spawn(["train", str(spec_file), "--out", str(folder)])
        except OSError as error:
            self._window.show_error(CellweaveError(f"The run could not be started: {error.strerror or error}.", "Train it in the window instead."), "")
            return
        self._window.notify(f"'{run_label(session.spec.name, folder)}' trains on its own now; open it from the list of runs to watch it.")

    # ------------------------------------------------------------------ steering

    def pause(self) -> None:
        """Pause, or go on after a pause."""
        if self.current is None:
            self._window.runs.steer("pause")
            return
        if self.progress.state is RunState.PAUSED or self.current.control.paused:
            self.current.control.resume()
        else:
            self.current.control.pause()
        self.changed.emit()

    def stop(self) -> None:
        """Stop training, go back to the best weights and compute the results."""
        if self.current is None:
            self._window.runs.steer("stop")
            return
        self.current.control.stop()
        self._take([StateChanged(state=RunState.STOPPING)])

    def cancel(self) -> None:
        """Throw the run away, after asking."""
        if self.current is None:
            self._cancel_elsewhere()
            return
        if self.cancelling:
            return
        name = self.progress.name
        sentence = f"'{name}' is cancelled and moved to the trash, from where it can be put back."
        answer = dialogs.ask(self._window, "Cancel the run?", sentence, ("Cancel the run", "Go on training"))
        if answer == "Cancel the run" and self.current is not None:
            self.cancel_now()

    def _cancel_elsewhere(self) -> None:
        following = self._window.runs.following
        if following is None:
            return
        sentence = f"'{following.folder.name}' trains in another process, which is asked to cancel it; its folder stays."
        if dialogs.ask(self._window, "Cancel the run?", sentence, ("Cancel the run", "Go on training")) == "Cancel the run":
            self._window.runs.steer("cancel")

    def cancel_now(self) -> None:
        """Cancel without asking."""
        if self.current is not None:
            self.cancelling = True
            self.current.control.cancel()
            self.changed.emit()

    @property
    def live(self) -> bool:
        """Whether a weight that is turned now acts on the run: only while it takes steps, or waits to."""
        return self.live_weights and self.active and self.progress.can_pause

    def _spec_edited(self, spec: RunSpec) -> None:
        """Give weights that were turned (or taken back) to the run that trains, from its next step on.

        Only an edit of the weights alone counts: another spec that is opened, or a preset, is meant for the next run.
        """
        before, self._edited = self._edited, spec
        if self.current is None or self.spec is None or not self.live or spec.model.kind != self.spec.model.kind:
            return
        paths = self._session.editor.paths
        if not paths or not all(path.startswith("losses.weights.") for path in paths):
            return
        old = before.loss_weights()
        for term, weight in spec.loss_weights().items():
            if term in self._weights and weight != old.get(term):
                self._weights[term] = weight
                self.current.control.set_weight(term, weight)
                LOG.info("weight of %s set to %g while training", term, weight)

    def forget(self, folder: Path) -> None:
        """Take a run out of the queue."""
        self.queue = deque(waiting for waiting in self.queue if waiting.folder != folder)
        self.changed.emit()

    def queued(self) -> list[RunSummary]:
        """Return what the list of runs shows of the queue."""
        status = RunStatus(state=RunState.QUEUED, text="Waits for the present run to end.")
        return [RunSummary(item.folder, item.spec.name or item.folder.name, item.spec.model.kind, status) for item in self.queue]

    # ------------------------------------------------------------------ watching

    def _take(self, events: list[Event]) -> None:
        for event in events:
            self.progress.add(event)
            if isinstance(event, Warned):
                self._window.warn(event, self._said)
            elif isinstance(event, Failed):
                self._failure = event
        self.happened.emit(events)
        self.changed.emit()

    def _finished(self, outcome: Outcome) -> None:
        if self.current is None or self.current.folder != outcome.folder:
            return  # the window was closed and has waited for the thread itself
        training, self.current = self.current, None
        folder, reason = outcome.folder, self.progress.reason
        if reason is None:
            reason = self.progress.reason = FinishReason.FAILED if outcome.error is not None else FinishReason.COMPLETED
        self._session.settings.active_run = ""
        training.deleteLater()
        ending = self.progress.ending()
        LOG.info("%s", ending)
        self.cancelling = False
        self.ended.emit(folder, reason)
        self._window.status.say_idle(ending)
        if outcome.error is not None:
            self._window.show_error(outcome.error, self._failure.details if self._failure else outcome.details)
        self._begin_next()
        self.changed.emit()

    # ------------------------------------------------------------------ closing

    def may_close(self) -> bool:
        """Ask what becomes of a run that trains; return whether the window may close."""
        if self.current is None:
            return True
        waits = f" {len(self.queue)} more in the queue will not begin." if self.queue else ""
        choices = ("Leave it running", "Stop and keep", "Cancel the run", "Keep the window open")
        answer = dialogs.ask(
            self._window, "A run is training", f"'{self.progress.name}' is not finished. What shall become of it?{waits}", choices
        )
        if answer == choices[3] or not answer:
            return False
        self.queue.clear()
        if self.current is None:  # it ended while the question stood there
            return True
        if answer == choices[0]:
            self._leave_running()
            return True
        if answer == choices[1]:
            self.stop()
            self._window.close_when_done()
            return False
        self.cancel_now()
        training = self.current
        self._wait_for(training)
        self._throw_away(training.folder)
        self.current = None
        return True

    def _wait_for(self, training: Training) -> None:
        """Wait for a run that was cancelled; one that does not heed it is left to the end of the process."""
        if not training.wait(CANCEL_WAIT):
            training.setParent(None)
            LEFT_BEHIND.append(training)

    def _leave_running(self) -> None:
        """Write a checkpoint here and go on in a process of its own."""
        assert self.current is not None
        training = self.current
        training.control.cancel()  # the engine writes a checkpoint on its way out
        self._wait_for(training)
        self.current = None
        self._go_on_detached(training.folder)

    def _go_on_detached(self, folder: Path) -> None:
        try:
            spawn(["resume", str(folder)])
            LOG.info("%s goes on in a process of its own", folder.name)
        except OSError as error:
            LOG.error("could not start: %s", error)

    def _throw_away(self, folder: Path) -> None:
        try:
            self._session.trash.put(folder)
        except CellweaveError as error:
            LOG.warning("%s", error)


def spawn(arguments: list[str]) -> int:
    """Start the command line in a process that outlives the window; return its number."""
    environment = {key: value for key, value in os.environ.items() if key != "QT_QPA_PLATFORM"}
    how: dict[str, Any] = {"start_new_session": True}
    if os.name == "nt":
        how = {"creationflags": getattr(subprocess, "DETACHED_PROCESS", 0) | getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "cellweave.core.cli", *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, **how,
    )  # fmt: skip
    return process.pid
