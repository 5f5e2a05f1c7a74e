"""One way to do a run, for the window, the command line, a script and a cluster."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cellweave.core.errors import Cancelled, CellweaveError, RunFolderError, SpecError, TrainingError
from cellweave.core.runs.events import Failed, FinishReason, Listener, RunState
from cellweave.core.runs.folder import RunFolder, finished
from cellweave.core.runs.journal import Journal
from cellweave.core.spec import RunSpec, with_absolute_paths
from cellweave.core.spec.optimisers import OPTIMISERS
from cellweave.core.study.study import Study
from cellweave.core.training.control import RunControl
from cellweave.core.wording import counted

LOG = logging.getLogger("cellweave")
# What a resume may change: everything that does not alter what the checkpoint means.
RESUME_MAY_CHANGE = (
    "name", "note", "losses.weights.", "analysis.", "training.max_epochs", "training.learning_rate", "training.gradient_clip",
    "training.early_stopping", "training.patience", "training.min_delta", "training.min_delta_per_feature", "training.min_epochs", "training.checkpoint_every",
    "training.preview_every", "training.threads", "training.device", "training.source", "training.validate_every",
    "training.lr_plateau", "training.lr_factor", "training.lr_patience", "training.lr_min",
)  # fmt: skip


def execute(
    spec: RunSpec,
    folder: str | Path,
    *,
    listener: Listener | None = None,
    control: RunControl | None = None,
    study: Study | None = None,
    analysis: Any = None,
    force: bool = False,
) -> FinishReason:
    """Do a run from the data to the results.

    Parameters
    ----------
    spec
        What to do.
    folder
        Where everything is written: a new or empty folder.
    listener
        Called with every event, in this thread.
    control
        Requests of the person; commands written into the folder are honoured too.
    study
        The loaded study, where the caller has it already for the same ``spec.data``.
    analysis
        Who computes UMAP, clusters and scores; None computes them in this process.
    force
        Use a folder that holds an earlier run, which is moved aside.

    Returns
    -------
    FinishReason
        Why the run ended: completed, early_stopped, stopped or cancelled.

    Raises
    ------
    CellweaveError
        With cause and mend, after it was recorded in the folder; what was trained until then is kept.
    """
    spec = with_absolute_paths(spec, Path.cwd())
    run = RunFolder.create(folder, spec, force=force)
    return _guarded(run, Journal(run, listener), control or RunControl(), spec, study, analysis)


def resume(
    folder: str | Path,
    *,
    listener: Listener | None = None,
    control: RunControl | None = None,
    study: Study | None = None,
    analysis: Any = None,
    changes: Mapping[str, Any] | None = None,
) -> FinishReason:
    """Continue a run from its last checkpoint as if it had never stopped.

    Parameters
    ----------
    folder
        The run folder.
    listener, control, study, analysis
        As in :func:`execute`.
    changes
        Settings to change for the rest of the run, by dotted path: more epochs, another learning rate, loss weights ...

    Returns
    -------
    FinishReason
        As of :func:`execute`.

    Raises
    ------
    RunFolderError
        Where the run is finished (not stopped before its planned epochs, and nothing is changed), or goes on in another process.
    """
    run = RunFolder.open(folder)
    status = run.status
    if status.state.active and not status.lost:
        raise RunFolderError(f"The run in '{run.path}' is active in process {status.pid}.", "Wait for it, or stop it first.")
    before = run.spec
    planned = before.training.max_epochs
    goes_on = status.reason is FinishReason.STOPPED and (planned is None or status.epoch < planned)  # it was stopped, and has epochs left
    if finished(status) and not changes and not goes_on:
        more = (before.training.max_epochs or 0) + max(1, status.epoch)
        raise RunFolderError(
            f"The run in '{run.path}' is finished.",
            f"To train it longer name more epochs: cellweave resume {run.path} --set training.max_epochs={more}.",
        )
    spec = _changed(before, changes or {})
    if spec.training.max_epochs is not None and spec.training.max_epochs < status.epoch:
        raise SpecError(
            f"The run has {counted(status.epoch, 'epoch')} already, more than training.max_epochs={spec.training.max_epochs}.", "Name a larger number."
        )
    prefix = "losses.weights."
    turned = {path.removeprefix(prefix): float(value) for path, value in (changes or {}).items() if path.startswith(prefix)}
    return _guarded(run, Journal(run, listener, status), control or RunControl(), spec, study, analysis, resumed=turned)


def _changed(spec: RunSpec, changes: Mapping[str, Any]) -> RunSpec:
    for path in changes:
        if not any(path == allowed or (allowed.endswith(".") and path.startswith(allowed)) for allowed in RESUME_MAY_CHANGE):
            raise SpecError(
                f"'{path}' cannot be changed when a run is continued, because its checkpoint was made with the old value.",
                "Start a new run with it instead.",
            )
    if "training.learning_rate" in changes and not OPTIMISERS[spec.training.optimizer].minds_rate:
        raise SpecError(
            f"'training.learning_rate' cannot be changed when this run is continued: {OPTIMISERS[spec.training.optimizer].torch} took it for its first step "
            "only and sizes its steps itself.",
            "Start a new run with it instead.",
        )
    return spec.with_changes(changes)


def _guarded(
    run: RunFolder,
    journal: Journal,
    control: RunControl,
    spec: RunSpec,
    study: Study | None,
    analysis: Any,
    resumed: dict[str, float] | None = None,
) -> FinishReason:
    """Do the run; whatever happens is recorded, and what a person reads is a sentence.

    ``resumed`` holds the loss weights that a resume sets anew, and is None for a run that begins.
    """
    from cellweave.core.runs.stages import Stages

    control.follow(run.control_file)
    stages = Stages(run, journal, control, spec, study, analysis, resumed=resumed)
    with _log_to(run.log_file):
        try:
            reason = stages.run()
        except (Cancelled, KeyboardInterrupt) as error:
            journal.state(RunState.DONE, "cancelled; 'resume' continues from the last checkpoint", FinishReason.CANCELLED)
            if isinstance(error, KeyboardInterrupt):
                raise
            return FinishReason.CANCELLED
        except CellweaveError as error:
            _record(journal, error, traceback.format_exc())
            if resumed is not None and not stages.training_began:
                journal.put_back()
            raise
        except Exception as error:
            wrapped = _sentence(error)
            _record(journal, wrapped, traceback.format_exc())
            raise wrapped from error
        journal.state(RunState.DONE, _ending(reason, journal), reason)
        return reason


def _ending(reason: FinishReason, journal: Journal) -> str:
    status = journal.status
    best = f", weights of epoch {status.best_epoch}" if status.best_epoch else ""
    words = {
        FinishReason.COMPLETED: f"completed {counted(status.epoch, 'epoch')}",
        FinishReason.EARLY_STOPPED: f"stopped early after {counted(status.epoch, 'epoch')}{best}",
        FinishReason.STOPPED: f"stopped after {counted(status.epoch, 'epoch')}{best}",
    }
    return words.get(reason, reason.value)


def _sentence(error: Exception) -> CellweaveError:
    """Turn an error nobody foresaw into a sentence with cause and mend."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, MemoryError) or "out of memory" in text.lower():
        return TrainingError(
            "The memory was not enough.", "Use a smaller minibatch or fewer features, or set training.source = 'disk'; resume continues the run."
        )
    if isinstance(error, OSError):
        return TrainingError(f"A file could not be read or written: {text}.", "Free some space or check the disk; resume continues the run.")
    return TrainingError(f"Something unforeseen happened: {type(error).__name__}: {text}.", "The details are in log.txt of the run folder.")


def _record(journal: Journal, error: CellweaveError, details: str) -> None:
    LOG.error("%s\n%s", error, details)
    journal.emit(Failed(text=error.cause, mend=error.mend, details=details))
    journal.state(RunState.DONE, error.cause, FinishReason.FAILED)


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Send the log of everything of ours into the run folder while the run goes on."""
    try:
        handler = logging.FileHandler(path, encoding="utf-8", delay=False)
    except OSError:
        yield
        return
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.setLevel(logging.INFO)
    before = LOG.level
    LOG.setLevel(min(before or logging.INFO, logging.INFO))
    LOG.addHandler(handler)
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        handler.close()
        LOG.setLevel(before)
