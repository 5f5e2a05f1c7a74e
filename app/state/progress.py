"""Folds the events of a run into the sentence and the fraction that the activity bar shows; no Qt here."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from cellweave.core.runs.events import (
    EpochDone,
    Event,
    FinishReason,
    Progress,
    RunState,
    StateChanged,
    StepProgress,
)

RECENT = 10  # epochs that the time left is worked out from
PHASES = {
    RunState.CREATED: "Starting",
    RunState.QUEUED: "Waiting in the queue",
    RunState.LOADING: "Loading data",
    RunState.PREPARING: "Preparing",
    RunState.TRAINING: "Training",
    RunState.PAUSED: "Paused",
    RunState.STOPPING: "Stopping, going back to the best weights",
    RunState.CANCELLING: "Cancelling…",
    RunState.ANALYSING: "Computing results",
    RunState.DONE: "Done",
}
ENDINGS = {
    FinishReason.COMPLETED: "finished",
    FinishReason.EARLY_STOPPED: "stopped early: the validation loss no longer improved",
    FinishReason.STOPPED: "was stopped and kept",
    FinishReason.CANCELLED: "was cancelled",
    FinishReason.FAILED: "failed",
}


def duration(seconds: float) -> str:
    """Return a length of time in words that one reads at a glance."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@dataclass
class RunProgress:
    """Where a run stands.

    Attributes
    ----------
    name
        What the run is called.
    patience
        Epochs without improvement before it stops early; 0 where it does not.
    state, reason
        Of the last change of state.
    epoch, epochs_done
        The epoch that is being done, and how many are over.
    resumed
        Whether it went on from a checkpoint, so that the epochs before it are not told again.
    """

    name: str
    patience: int = 0
    resumed: bool = False
    state: RunState = RunState.CREATED
    reason: FinishReason | None = None
    phase: str = ""
    fraction: float | None = None
    epoch: int = 0
    epochs_done: int = 0
    max_epochs: int = 0
    cells_per_second: float = 0.0
    seconds_left: float | None = None
    best_epoch: int | None = None
    since_best: int = 0
    started: float = 0.0
    _lengths: list[float] = field(default_factory=list)  # seconds of the last epochs
    _stepped: bool = False  # whether the engine itself says how long it will take

    def add(self, event: Event) -> None:
        """Take in an event."""
        self.started = self.started or event.time or time.time()
        match event:
            case StateChanged():
                paused = {self.state, event.state} == {RunState.TRAINING, RunState.PAUSED}  # it stands where it stood, and nothing moves
                self.state, self.reason, self.phase, self.fraction = event.state, event.reason, "", self.fraction if paused else None
            case Progress():
                self.phase, self.fraction = event.phase, event.fraction
            case StepProgress():
                self.epoch, self.max_epochs = event.epoch, event.max_epochs
                self._stepped = True
                self.cells_per_second, self.seconds_left = event.cells_per_second, event.seconds_left
                self.fraction = (event.epoch - 1 + event.fraction) / max(1, event.max_epochs)
            case EpochDone():
                self.epoch = self.epochs_done = event.epoch
                self.max_epochs = event.max_epochs
                self.best_epoch, self.since_best = event.best_epoch, event.epochs_since_best
                self.cells_per_second = event.cells_per_second or self.cells_per_second
                self.fraction = event.epoch / max(1, event.max_epochs)
                self._estimate(event)
            case _:
                pass

    def _estimate(self, event: EpochDone) -> None:
        """Work out the time left from the last epochs: the journal of a run elsewhere has no steps, which would say it."""
        if event.seconds > 0:
            self._lengths = [*self._lengths, event.seconds][-RECENT:]
        if not self._stepped and self._lengths:
            self.seconds_left = sum(self._lengths) / len(self._lengths) * max(0, event.max_epochs - event.epoch)

    @property
    def can_pause(self) -> bool:
        """Whether pausing has a meaning now."""
        return self.state in {RunState.TRAINING, RunState.PAUSED}

    @property
    def can_stop(self) -> bool:
        """Whether there is something to keep."""
        return self.state in {RunState.TRAINING, RunState.PAUSED}

    def sentence(self) -> str:
        """Return the state in one line."""
        parts = [PHASES[self.state]]
        if self.state in {RunState.TRAINING, RunState.PAUSED} and self.max_epochs:
            parts.append(f"epoch {self.epoch}/{self.max_epochs}")
            if self.state is RunState.TRAINING:
                if self.cells_per_second:
                    parts.append(f"{self.cells_per_second:,.0f} cells/s")
                if self.seconds_left is not None:
                    parts.append(f"{duration(self.seconds_left)} left")
            if self.best_epoch:
                patience = f" (patience {self.since_best}/{self.patience})" if self.patience else ""
                parts.append(f"best {self.best_epoch}{patience}")
        elif self.phase:
            share = f" {100 * self.fraction:.0f} %" if self.fraction is not None and self.fraction < 1 else ""
            phase = self.phase[:1].lower() + self.phase[1:] if not self.phase[:2].isupper() else self.phase
            if phase.lower() != parts[0].lower():
                parts.append(phase + share)
            else:
                parts[0] += share
        return f"{self.name}: " + " · ".join(parts) if self.name else " · ".join(parts)

    def ending(self, now: float | None = None) -> str:
        """Return how it ended, in one line."""
        took = (now or time.time()) - self.started if self.started else 0.0
        words = ENDINGS.get(self.reason, "ended") if self.reason is not None else "ended"
        if self.resumed:
            return f"{self.name} {words} {self.reach()}, {duration(took)} after it went on"
        between = " in" if self.epochs_done else ", after"
        return f"{self.name} {words} {self.reach()}{between} {duration(took)}"

    def reach(self) -> str:
        """Return how far it came, in words."""
        return "without a further epoch" if self.resumed and not self.epochs_done else reach(self.epochs_done)


def reach(epochs: int) -> str:
    """Return how far a run of so many whole epochs came."""
    return "before its first epoch was over" if epochs < 1 else f"after {epochs:,} epoch{'s' if epochs > 1 else ''}"
