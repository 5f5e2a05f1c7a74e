"""Writes a run's events, losses and status while it goes on, and loses none of them when the disk is full for a while."""

from __future__ import annotations

import csv
import io
import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cellweave.core.files import write_text_atomic
from cellweave.core.runs.events import (
    EpochDone,
    Event,
    FinishReason,
    Listener,
    Metric,
    Progress,
    RunState,
    StateChanged,
    StepProgress,
    Warned,
)
from cellweave.core.runs.folder import RunFolder, RunStatus, host_name, loss_row, process_started
from cellweave.core.spec import RunSpec

LOG = logging.getLogger("cellweave.run")
STATUS_INTERVAL = 1.0  # seconds between two writes of status.json while a run goes on
EVENT_INTERVAL = 0.06  # seconds between two progress events: fewer than 20 a second whatever the step rate


class Journal:
    """Passes events on to the listener and keeps the run folder's files up to date.

    Parameters
    ----------
    folder
        The run folder.
    listener
        Called with every event, in the engine's thread.
    status
        Status to start from (when a run is resumed).
    """

    def __init__(self, folder: RunFolder, listener: Listener | None = None, status: RunStatus | None = None) -> None:
        self.folder = folder
        self.listener = listener
        self.spec: RunSpec | None = None  # as it was resolved; written again with a folder that was deleted
        now = time.time()
        base = self.before = status or RunStatus()
        pid = os.getpid()
        self.status = replace(
            base, pid=pid, pid_started=process_started(pid), host=host_name(), heartbeat=now, started=base.started or now, finished=0.0, reason=None
        )
        self.on_restored: Callable[[], None] = lambda: None
        # What was written so far: little text, with which a folder that somebody deletes can be made again.
        self._written: dict[Path, list[str]] = {path: _lines(path) for path in _tables(folder)}
        self._pending: dict[Path, list[str]] = {}
        self._columns: list[str] = []
        self._last_status = self._last_progress = 0.0
        self._full = False

    # ------------------------------------------------------------------ events

    def emit(self, event: Event) -> None:
        """Stamp, store and pass on an event. Progress that comes too fast is dropped."""
        now = time.time()
        if isinstance(event, Progress | StepProgress):
            finished = getattr(event, "fraction", None) == 1.0
            if now - self._last_progress < EVENT_INTERVAL and not finished:
                return
            self._last_progress = now
        event = replace(event, time=now)
        if not isinstance(event, Progress | StepProgress):
            self._append(self.folder.events_file, event.to_json() + "\n")
            LOG.info("%s", event.to_json())
        if isinstance(event, StateChanged):
            self._set_status(state=event.state, reason=event.reason, text=event.text)
        elif isinstance(event, EpochDone):
            self._write_losses(event)
            self._write_epoch_metrics(event)
            self._set_status(throttle=True, epoch=event.epoch, max_epochs=event.max_epochs, best_epoch=event.best_epoch)
        elif isinstance(event, Progress | StepProgress):
            self._set_status(throttle=True)
        elif isinstance(event, Metric):
            self._write_metric(event)
        if self.listener is not None:
            self.listener(event)

    def state(self, state: RunState, text: str = "", reason: FinishReason | None = None) -> None:
        """Emit a change of state."""
        self.emit(StateChanged(state=state, reason=reason, text=text))

    def set_machine(self, device: str, threads: int) -> None:
        """Record where the run is computed."""
        self._set_status(device=device, threads=threads)

    def beat(self) -> None:
        """Give a sign of life (cheap: written once a second at most)."""
        self._set_status(throttle=True)

    # ------------------------------------------------------------------ files

    def _set_status(self, *, throttle: bool = False, **changes: object) -> None:
        now = time.time()
        done = changes.get("state") is RunState.DONE
        self.status = replace(self.status, heartbeat=now, **({"finished": now} if done else {}), **changes)  # type: ignore[arg-type]
        if throttle and now - self._last_status < STATUS_INTERVAL:
            return
        self._last_status = now
        try:
            self.folder.write_status(self.status)
        except FileNotFoundError:
            self._restore()
        except OSError as error:
            self._trouble(error)

    def _write_losses(self, event: EpochDone) -> None:
        row = loss_row(event)
        buffer = io.StringIO()
        if not self._columns:
            self._columns = self._existing_columns() or list(row)
            if not self.folder.losses_file.exists():
                csv.writer(buffer, lineterminator="\n").writerow(self._columns)
        csv.DictWriter(buffer, self._columns, restval="", extrasaction="ignore", lineterminator="\n").writerow(row)
        self._append(self.folder.losses_file, buffer.getvalue())

    def _write_epoch_metrics(self, event: EpochDone) -> None:
        """Write what the family declares beside its terms; every declared metric has its column from the first row on."""
        path = self.folder.epoch_metrics_file
        declared = [] if self.spec is None else [metric.name for metric in self.spec.family.metrics(self.spec)]
        if not event.metrics and not declared:
            return
        columns, buffer = self._existing_columns(path), io.StringIO()
        if not columns:
            columns = ["epoch", *dict.fromkeys([*declared, *event.metrics])]
            csv.writer(buffer, lineterminator="\n").writerow(columns)
        row = {"epoch": str(event.epoch), **{name: repr(float(value)) for name, value in event.metrics.items()}}
        csv.DictWriter(buffer, columns, restval="", extrasaction="ignore", lineterminator="\n").writerow(row)
        self._append(path, buffer.getvalue())

    def _existing_columns(self, path: Path | None = None) -> list[str]:
        known = self._written.get(path) if path is not None else None
        if known:  # also where it could not be written yet
            return next(csv.reader(known[0].splitlines()[:1]), [])
        try:
            first = (path or self.folder.losses_file).read_text(encoding="utf-8").splitlines()[:1]
        except OSError:
            return []
        return next(csv.reader(first), [])

    def _write_metric(self, metric: Metric) -> None:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        if not self.folder.metrics_file.exists() and self.folder.metrics_file not in self._pending:
            writer.writerow(["name", "group", "value", "baseline", "expected"])
        beside = ["" if value is None else repr(value) for value in (metric.baseline, metric.expected)]
        writer.writerow([metric.name, metric.group, repr(metric.value), *beside])
        self._append(self.folder.metrics_file, buffer.getvalue())

    def _append(self, path: Path, text: str) -> None:
        """Append text; what cannot be written now is kept and written before the next."""
        lines = self._pending.pop(path, [])
        lines.append(text)
        self._written[path].append(text)
        try:
            with path.open("ab") as file:
                start = file.tell()
                try:
                    file.write("".join(lines).encode("utf-8"))
                    file.flush()
                except OSError:
                    file.truncate(start)
                    raise
        except FileNotFoundError:
            self._restore()
        except OSError as error:
            self._pending[path] = lines
            self._trouble(error)
        else:
            self._full = False

    def _restore(self) -> None:
        """Make a run folder again that was deleted while the run went on, with everything that is still known."""
        folder = self.folder
        try:
            for part in (folder.path, folder.checkpoints, folder.results):
                part.mkdir(parents=True, exist_ok=True)
            for path, lines in self._written.items():
                if lines:
                    write_text_atomic(path, "".join(lines))
            if self.spec is not None:
                folder.write_spec(self.spec)
            folder.write_status(self.status)
        except OSError as error:
            self._trouble(error)
            return
        self._pending.clear()
        self.on_restored()
        LOG.warning("the run folder was deleted and made again")
        if self.listener is not None:
            self.listener(
                Warned(
                    text="The run folder was deleted while the run went on; it was made again with all losses so far.",
                    mend="The run goes on and writes a checkpoint now; live embeddings of earlier epochs are gone.",
                    time=time.time(),
                )
            )

    def _trouble(self, error: OSError) -> None:
        """Say once, not once an epoch, that the folder cannot be written."""
        if self._full:
            return
        self._full = True
        LOG.warning("cannot write the run folder: %s", error)
        if self.listener is not None:
            self.listener(
                Warned(
                    text=f"The run folder cannot be written now: {error.strerror or error}.",
                    mend="Free some space; what is waiting is written as soon as it can be.",
                    time=time.time(),
                )
            )

    # ------------------------------------------------------------------ resume

    def put_back(self) -> None:
        """Restore the status from before a resume that was refused before it trained anything."""
        self.folder.write_status(self.before)

    def rewind(self, epoch: int) -> None:
        """Take back what was written after ``epoch`` whole epochs, so that a resumed run repeats no row."""
        self.folder.metrics_file.unlink(missing_ok=True)
        self._written[self.folder.metrics_file] = []
        for path in (self.folder.losses_file, self.folder.epoch_metrics_file):
            try:
                text = path.read_text(encoding="utf-8")
            except OSError:
                continue
            lines = text[: text.rfind("\n") + 1].splitlines()
            kept = lines[:1] + [line for line in lines[1:] if int(line.partition(",")[0]) <= epoch]
            write_text_atomic(path, "\n".join(kept) + "\n" if kept else "")
            self._written[path] = _lines(path)


def _tables(folder: RunFolder) -> tuple[Path, ...]:
    """Return the files that grow while a run goes on."""
    return folder.events_file, folder.losses_file, folder.epoch_metrics_file, folder.metrics_file


def _lines(path: Path) -> list[str]:
    """Return what a file holds already, as one piece."""
    try:
        return [path.read_text(encoding="utf-8")]
    except OSError:
        return []
