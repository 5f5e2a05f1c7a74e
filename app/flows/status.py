"""What is possible now, and what the steps, the Train button and the activity bar say of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import QObject

from cellweave.app.forms import present_terms
from cellweave.app.panels.parts import first_sentence
from cellweave.app.panels.workflow import Mark
from cellweave.app.state.progress import RunProgress
from cellweave.app.state.session import Session
from cellweave.app.views.declared import VIEWS
from cellweave.core.runs.events import RunState
from cellweave.core.wording import counted

if TYPE_CHECKING:
    from cellweave.app.window import MainWindow


class Status(QObject):
    """Keeps everything that says how things stand in step with the session and the runs."""

    def __init__(self, window: MainWindow, session: Session) -> None:
        super().__init__(window)
        self._window, self._session = window, session
        self._resting = "Ready"

    def conditions(self) -> dict[str, bool]:
        """Return what holds now, for the actions (see ``actions.declared``)."""
        window, session, shown = self._window, self._session, self._window.watching.results
        target = window.runs.target
        summary = session.library.get(target)
        return {
            "study": session.study is not None,
            "ready": not session.why_not_ready(),
            "file": bool(session.spec.data.paths),
            "training": window.training.active or window.runs.following is not None,
            "run": target is not None,
            "files": window.exporting.target is not None,
            "finished": shown is not None and (shown.folder / "results" / "latent.npy").is_file(),
            "asked": shown is not None and not shown.trains and (shown.folder / "model" / "model.json").is_file(),
            "embedding": window.watching.cells is not None,
            "resumable": summary is not None and summary.resumable,
            "trash": session.trash.filled,
            "selection": len(window.centre.selection) > 0,
            **{f"view:{info.name}": not window.centre.why_not(info.name) for info in VIEWS},
        }

    def update_actions(self) -> None:
        """Enable what is possible now."""
        self._window.actions_by_id.update(self.conditions())

    def refresh(self, *_: object) -> None:
        """Show again what depends on the study, the checks, the spec or the run."""
        window, session, training = self._window, self._session, self._window.training
        for header, (mark, words) in zip(window.workflow.headers, self._steps(), strict=True):
            header.set_state(mark, words)
        why = session.why_not_ready()
        label = "Queue a further run" if training.active else "Train"
        waits = f"{len(training.queue)} waiting in the queue." if training.queue else ""
        window.workflow.set_train(possible=not why, why=first_sentence(why) or waits, label=label, tone="bad" if session.failures or session.load_error else "")
        name = training.progress.name if training.active else ""
        window.losses_panel.set_running(name if training.progress.can_pause else "")
        window.training_panel.set_running(name)
        if training.active and training.cancelling:
            window.activity.show_cancelling(f"{training.progress.name}: Cancelling…")
        elif training.active:
            asked = training.current is not None and training.current.control.paused
            self._show_run(training.progress, paused=asked)
        elif window.runs.following is not None:
            self._show_run(window.runs.progress)
        self._say_what_is_awaited(why)
        self.update_actions()

    def _say_what_is_awaited(self, why: str) -> None:
        """Say in views that show no run yet what has to be done for one."""
        window = self._window
        if self._session.headers and window.watching.shown is None and window.centre.built:
            window.losses.set_message(why or "Press Train: every loss term is drawn here, for the training cells and those held out.")

    def _show_run(self, progress: RunProgress, *, paused: bool = False) -> None:
        paused = paused or progress.state is RunState.PAUSED
        self._window.activity.show_run(
            progress.sentence(), progress.fraction, paused=paused, can_pause=progress.can_pause, can_stop=progress.can_stop
        )

    # ------------------------------------------------------------------ the steps

    def _steps(self) -> list[tuple[Mark, str]]:
        window = self._window
        done: Mark = "check" if self._session.study is not None else ""
        return [
            window.data_panel.summary(),
            window.covariates_panel.summary(),
            (done, self._model_words()),
            (window.losses_panel.mark(), self._weights_words()),
            (done, self._training_words()),
        ]

    def _model_words(self) -> str:
        spec = self._session.spec
        latent = getattr(spec.model, "n_latent", None)
        if isinstance(latent, dict):
            latent = ", ".join(f"{name} {size}" for name, size in latent.items())
        return spec.family.title + (f" · {latent} latent {'dimension' if latent == 1 else 'dimensions'}" if latent else "")

    def _weights_words(self) -> str:
        spec = self._session.spec
        terms = present_terms(spec.terms(), self._session.modalities)
        weights = spec.loss_weights()
        changed = [f"{term.label} {weights[term.name]:g}" for term in terms if weights[term.name] != term.default]
        return " · ".join(changed) or f"{counted(len(terms), 'term')}, all as declared"

    def _training_words(self) -> str:
        training = self._session.spec.training
        epochs = counted(training.max_epochs, "epoch") if training.max_epochs else "automatic epochs"
        return f"{epochs} · minibatch {training.batch_size:,}"

    # ------------------------------------------------------------------ the activity bar

    def say_busy(self, sentence: str, fraction: float | None = None, *, cancellable: bool = False) -> None:
        """Say in the activity bar what is being done; a run that trains keeps the bar."""
        if not self._window.training.active:
            self._window.activity.show_busy(sentence, fraction, cancellable=cancellable)

    def say_idle(self, sentence: str = "") -> None:
        """Say that nothing goes on, unless a run trains; how the last run ended stays there to be read."""
        self._resting = sentence or self._resting
        if not self._window.training.active:
            self._window.activity.show_idle(self._resting)

    def cancel(self) -> None:
        """Cancel what the bar shows: the run, or what is being read or written."""
        window = self._window
        if window.training.active or window.runs.following is not None:
            window.training.cancel()
        elif not (window.exporting.cancel() or window.analysing.cancel() or window.centre.context.cancel()):
            window.opening.cancel_loading()
