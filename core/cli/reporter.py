"""Shows a run while it goes on: progress bars on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from cellweave.core.cli.terminal import note, seconds_in_words
from cellweave.core.runs import events

LINE_EVERY = 5.0  # seconds between two plain lines
QUIET_STATES = {events.RunState.CREATED, events.RunState.QUEUED, events.RunState.DONE}


class Reporter(Protocol):
    """Takes the events of a run and shows them; used as a context."""

    def __call__(self, event: events.Event) -> None:
        """Show one event."""

    def phase(self, name: str, fraction: float | None, text: str = "") -> None:
        """Show the progress of something, part of a run or not."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """End, leaving the terminal as it was."""


def reporter() -> Reporter:
    """Return bars where standard error is a terminal, else lines."""
    return Bars() if sys.stderr.isatty() else Lines()


def losses_in_words(event: events.EpochDone) -> str:
    """Return the losses of an epoch in a few words."""
    parts = [f"loss {event.train.get('total', float('nan')):.4g}"]
    if event.validation is not None and "elbo" in event.validation:
        parts.append(f"held out {event.validation['elbo']:.4g}")
        if event.best_epoch is not None and event.best_epoch != event.epoch:
            parts.append(f"best at {event.best_epoch}")
    return ", ".join(parts)


def metric_in_words(event: events.Metric) -> str:
    """Return a score and its baseline in a few words."""
    before = f" (before integration {event.baseline:.3f})" if event.baseline is not None else ""
    return f"{event.name.replace('_', ' ')}: {event.value:.3f}{before}"


class Lines:
    """One plain line every few seconds, for logs and pipes."""

    def __init__(self, every: float = LINE_EVERY) -> None:
        self._every = every
        self._next = 0.0
        self._phase = ""
        self._speed = ""

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """End."""

    def __call__(self, event: events.Event) -> None:
        """Show one event."""
        match event:
            case events.EpochDone():
                last = event.epoch >= event.max_epochs
                self._throttled(f"epoch {event.epoch}/{event.max_epochs}: {losses_in_words(event)}{self._speed}", always=last)
            case events.StepProgress():
                left = f", {seconds_in_words(event.seconds_left)} left" if event.seconds_left is not None else ""
                self._speed = f", {event.cells_per_second:,.0f} cells/s{left}" if event.cells_per_second else ""
            case events.Progress():
                self.phase(event.phase, event.fraction, event.text)
            case _:
                text = sentence_of(event)
                if text:
                    note(text)

    def phase(self, name: str, fraction: float | None, text: str = "") -> None:
        """Show the progress of a phase: its beginning, then a line every few seconds."""
        share = f" {fraction:.0%}" if fraction is not None and 0 < fraction < 1 else ""
        line = f"{name[:1].upper()}{name[1:]}{': ' if text else ''}{text}{share}"
        if name != self._phase:
            self._phase, self._next = name, time.monotonic() + self._every
            note(line)
        elif share:
            self._throttled(line)

    def _throttled(self, text: str, *, always: bool = False) -> None:
        now = time.monotonic()
        if always or now >= self._next:
            self._next = now + self._every
            note(text)


class Bars:
    """A progress bar for the phase that is going on, and one for the epochs."""

    def __init__(self, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[more]}"), TimeElapsedColumn(),
            console=console or Console(stderr=True), transient=True,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._losses = self._speed = ""

    def __enter__(self) -> Self:
        """Begin."""
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """End; the bars go, the lines stay."""
        self._progress.stop()

    def __call__(self, event: events.Event) -> None:
        """Show one event."""
        match event:
            case events.EpochDone():
                self._losses = losses_in_words(event)
                self._training(event.epoch, event.max_epochs, event.epoch)
            case events.StepProgress():
                left = f", {seconds_in_words(event.seconds_left)} left" if event.seconds_left is not None else ""
                self._speed = f"{event.cells_per_second:,.0f} cells/s{left}"
                self._training(event.epoch, event.max_epochs, event.epoch - 1 + event.fraction)
            case events.Progress():
                self.phase(event.phase, event.fraction, event.text)
            case _:
                text = sentence_of(event)
                if text:
                    self._progress.console.print(text, highlight=False, markup=False)

    def phase(self, name: str, fraction: float | None, text: str = "") -> None:
        """Show the progress of a phase."""
        share = "" if fraction is None else f"{fraction:.0%}"
        self._show(f"{name[:1].upper()}{name[1:]}", fraction, " · ".join(part for part in (share, text) if part))

    def _training(self, epoch: int, of: int, done: float) -> None:
        self._show("Training", done / max(1, of), " · ".join(part for part in (f"{epoch}/{of}", self._losses, self._speed) if part))

    def _show(self, name: str, fraction: float | None, more: str) -> None:
        for other in [known for known in self._tasks if known != name]:
            self._progress.remove_task(self._tasks.pop(other))
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=None if fraction is None else 1.0, more=more)
        self._progress.update(self._tasks[name], total=None if fraction is None else 1.0, completed=fraction or 0.0, more=more)


def sentence_of(event: events.Event) -> str:
    """Return what a terminal should keep of an event; empty for what only moves a bar."""
    match event:
        case events.StateChanged() if event.text and event.state not in QUIET_STATES:
            return event.text
        case events.Warned():
            return f"Warning: {event.text} {event.mend}".strip()
        case events.WeightChanged():
            return f"Weight of {event.term}: {event.old:g} -> {event.new:g} in epoch {event.epoch}"
        case events.Metric() if not event.group:  # those of single groups are in metrics.csv
            return metric_in_words(event)
        case _:
            return ""
