"""The run folder: the only interface between the engine and whoever watches it or comes after it."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from cellweave.core.errors import RunFolderError, SpecError
from cellweave.core.files import write_json_atomic
from cellweave.core.runs.events import EpochDone, Event, FinishReason, RunState, from_json
from cellweave.core.spec import RunSpec, load_spec, save_spec

HEARTBEAT_LOST = 60.0  # seconds without a sign of life before a run whose process is gone counts as lost


@dataclass(frozen=True)
class RunStatus:
    """A snapshot of a run, as ``status.json`` holds it.

    Attributes
    ----------
    state, reason
        Where the run stands and, once done, why it ended.
    epoch, max_epochs
        Whole epochs trained, and how many are planned.
    text
        One sentence for the list of runs.
    device, threads
        Where it trains.
    pid, pid_started, host
        The process that owns the run, and when it began (numbers are used again).
    heartbeat
        Seconds since the epoch of the last sign of life.
    started, finished
        Seconds since the epoch, 0 where it has not happened.
    best_epoch
        Epoch whose weights are the best so far, or None.
    """

    state: RunState = RunState.CREATED
    reason: FinishReason | None = None
    epoch: int = 0
    max_epochs: int = 0
    text: str = ""
    device: str = ""
    threads: int = 0
    pid: int = 0
    pid_started: float = 0.0
    host: str = ""
    heartbeat: float = 0.0
    started: float = 0.0
    finished: float = 0.0
    best_epoch: int | None = None

    @property
    def lost(self) -> bool:
        """Whether the run is marked as active while its process is gone (killed, power cut)."""
        if not self.state.active:
            return False
        if self.host == host_name():
            began = process_started(self.pid)
            return began == 0.0 or (self.pid_started > 0 and abs(began - self.pid_started) > 2.0)
        return time.time() - self.heartbeat > HEARTBEAT_LOST


def host_name() -> str:
    """Return this machine's name, as it is stored beside the process number."""
    return os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")


def process_started(pid: int) -> float:
    """Return when a living process began, in seconds since the epoch; 0 where there is none, or only its remains."""
    try:
        process = psutil.Process(pid)
        return 0.0 if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return 0.0
    except psutil.AccessDenied:
        return time.time()


def finished(status: RunStatus) -> bool:
    """Return whether a run came to its end with a model and results."""
    return status.state is RunState.DONE and status.reason in {FinishReason.COMPLETED, FinishReason.EARLY_STOPPED, FinishReason.STOPPED}


class RunFolder:
    """Reads and writes one run folder.

    Parameters
    ----------
    path
        The folder; use :meth:`create` or :meth:`open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    # ------------------------------------------------------------------ places

    @property
    def spec_file(self) -> Path:
        """The resolved spec."""
        return self.path / "spec.toml"

    @property
    def status_file(self) -> Path:
        """The snapshot of where the run stands."""
        return self.path / "status.json"

    @property
    def events_file(self) -> Path:
        """The journal of events, one JSON object a line."""
        return self.path / "events.jsonl"

    @property
    def losses_file(self) -> Path:
        """Every loss term, one row an epoch."""
        return self.path / "losses.csv"

    @property
    def epoch_metrics_file(self) -> Path:
        """What the model tells beside its loss terms, one row an epoch."""
        return self.path / "epoch_metrics.csv"

    @property
    def metrics_file(self) -> Path:
        """Scores of the result."""
        return self.path / "metrics.csv"

    @property
    def control_file(self) -> Path:
        """Commands from outside, one JSON object a line."""
        return self.path / "control.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def results(self) -> Path:
        """Folder of results."""
        return self.path / "results"

    @property
    def preview(self) -> Path:
        """Folder of the live embedding's latents."""
        return self.path / "preview"

    @property
    def cache(self) -> Path:
        """Folder of memory-mapped counts, while the run goes on."""
        return self.path / "cache"

    @property
    def log_file(self) -> Path:
        """The log."""
        return self.path / "log.txt"

    # ------------------------------------------------------------------ making and opening

    @classmethod
    def create(cls, path: str | Path, spec: RunSpec, *, force: bool = False) -> RunFolder:
        """Make a run folder and write the spec into it.

        Parameters
        ----------
        path
            A folder that does not exist or is empty.
        spec
            The run's spec.
        force
            Use a folder that holds an earlier run: that run is moved aside to ``NAME.old-N``, never deleted.

        Raises
        ------
        RunFolderError
            Where the folder holds a run or other files, or cannot be written.
        """
        folder = cls(Path(path).expanduser().absolute())
        try:
            taken = folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir()))
            if taken and folder._failed_before_training():
                folder._clear()
            elif taken and force and folder.is_run():
                folder._move_aside()
            elif taken:
                raise folder._taken()
            for part in (folder.path, folder.checkpoints, folder.results):
                part.mkdir(parents=True, exist_ok=True)
            save_spec(spec, folder.spec_file)
            folder.write_status(RunStatus())
        except OSError as error:
            raise RunFolderError(
                f"The run folder '{folder.path}' cannot be written: {error.strerror or error}.",
                "Choose a folder you may write to, on a disk with free space.",
            ) from None
        return folder

    def _failed_before_training(self) -> bool:
        """Return whether a run failed here before it had anything worth keeping (a wrong column, say)."""
        if not self.is_run() or self.status.reason is not FinishReason.FAILED:
            return False
        parts = [*self.checkpoints.glob("*"), *self.results.glob("*"), *self.path.glob("model/*"), self.losses_file]
        return not any(part.exists() for part in parts)

    def _clear(self) -> None:
        for path in (self.events_file, self.log_file, self.control_file, self.status_file, self.path / "env.json"):
            path.unlink(missing_ok=True)

    def _move_aside(self) -> None:
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        self.path.rename(aside)

    def _taken(self) -> RunFolderError:
        if not self.is_run():
            return RunFolderError(f"'{self.path}' exists and is not an empty folder.", "Name a new folder with --out.")
        if finished(self.status):
            return RunFolderError(
                f"'{self.path}' already holds a finished run.", "Name another folder with --out, or look at it with 'cellweave export'."
            )
        return RunFolderError(
            f"'{self.path}' already holds a run that is not finished.",
            f"Continue it with 'cellweave resume {self.path}', name another folder with --out, or move it aside with --force.",
        )

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open an existing run folder.

        Raises
        ------
        RunFolderError
            Where the folder is not there or holds no run.
        """
        folder = cls(Path(path).expanduser().absolute())
        if not folder.path.is_dir():
            raise RunFolderError(f"There is no folder '{folder.path}'.", "Check the path.")
        if not folder.is_run():
            raise RunFolderError(f"'{folder.path}' is not a run folder: it has no spec.toml.", "Name the folder that --out named.")
        return folder

    def is_run(self) -> bool:
        """Return whether the folder holds a run."""
        return self.spec_file.is_file()

    # ------------------------------------------------------------------ reading

    @property
    def spec(self) -> RunSpec:
        """The spec of the run."""
        try:
            return load_spec(self.spec_file)
        except SpecError as error:
            raise RunFolderError(f"The spec of the run in '{self.path}' cannot be used. {error.cause}", error.mend) from None

    @property
    def status(self) -> RunStatus:
        """Where the run stands; an unreadable file counts as a run that was only created."""
        try:
            tree = json.loads(self.status_file.read_text(encoding="utf-8"))
            tree["state"] = RunState(tree.get("state", "created"))
            tree["reason"] = FinishReason(tree["reason"]) if tree.get("reason") else None
            return RunStatus(**{key: value for key, value in tree.items() if key in RunStatus.__dataclass_fields__})
        except (OSError, ValueError, TypeError):
            return RunStatus()

    def events(self, start: int = 0) -> Iterator[Event]:
        """Iterate over the events; a half-written last line and unknown kinds are passed over."""
        yield from (event for event, _ in self.tail(start))

    def tail(self, start: int = 0) -> Iterator[tuple[Event, int]]:
        """Iterate over the events from a byte offset on, each with the offset behind it."""
        try:
            with self.events_file.open("rb") as file:
                file.seek(start)
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    start += len(line)
                    event = from_json(line.decode("utf-8", errors="replace"))
                    if event is not None:
                        yield event, start
        except OSError:
            return

    def epochs(self) -> list[EpochDone]:
        """Return the epochs of the run in order, each once: after a resume the later account counts."""
        by_epoch: dict[int, EpochDone] = {}
        for event in self.events():
            if isinstance(event, EpochDone):
                by_epoch[event.epoch] = event
        return [by_epoch[epoch] for epoch in sorted(by_epoch)]

    def losses(self) -> list[dict[str, float]]:
        """Return ``losses.csv`` as a list of rows; an empty field (no look at held-out cells) is left out."""
        return read_loss_rows(self.losses_file)

    # ------------------------------------------------------------------ writing

    def write_status(self, status: RunStatus) -> None:
        """Replace the snapshot, atomically."""
        tree = asdict(status)
        tree["state"], tree["reason"] = status.state.value, status.reason.value if status.reason else None
        write_json_atomic(self.status_file, tree)

    def write_spec(self, spec: RunSpec) -> None:
        """Replace the spec, atomically (values that were left to the program are written out)."""
        save_spec(spec, self.spec_file)

    def send_command(self, verb: str, **arguments: Any) -> None:
        """Ask the engine that owns this run to do something.

        Parameters
        ----------
        verb
            ``pause``, ``resume``, ``stop``, ``cancel``, ``checkpoint`` or ``weight`` (with ``term`` and ``value``).
        **arguments
            Arguments of the verb.

        Raises
        ------
        RunFolderError
            Where the run is not active.
        """
        status = self.status
        if not status.state.active or status.lost:
            raise RunFolderError(f"The run in '{self.path}' is not training now.", "Nothing was sent.")
        with self.control_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"verb": verb, **arguments}) + "\n")


def read_loss_rows(path: Path) -> list[dict[str, float]]:
    """Read a ``losses.csv``; a half-written last line is passed over."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return []
    if not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
    return [
        {key: float(value) for key, value in row.items() if key and value not in {"", None}} for row in csv.DictReader(text.splitlines())
    ]


def loss_row(event: EpochDone) -> dict[str, str]:
    """Return the row of ``losses.csv`` for an epoch; numbers are written so that they read back exactly."""
    row = {"epoch": str(event.epoch)}
    # Every term has its column from the first row on, also one that is switched off and turned up later.
    names = dict.fromkeys([*event.weights, "elbo", "total", *event.train])
    sides: tuple[tuple[str, Mapping[str, float] | None], ...] = (("train", event.train), ("validation", event.validation))
    for side, values in sides:
        for name in names:
            row[f"{name}_{side}"] = "" if values is None or name not in values else repr(float(values[name]))
    row["kl_factor"] = repr(float(event.kl_factor))
    row["learning_rate"] = repr(float(event.learning_rate))
    for name, weight in event.weights.items():
        row[f"weight_{name}"] = repr(float(weight))
    return row
