"""Events: what the engine says while it works, the same in the window, on the command line and in ``events.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from enum import Enum, StrEnum
from typing import Any, ClassVar


class RunState(StrEnum):
    """Where a run stands."""

    CREATED = "created"
    QUEUED = "queued"
    LOADING = "loading"
    PREPARING = "preparing"
    TRAINING = "training"
    PAUSED = "paused"
    STOPPING = "stopping"
    CANCELLING = "cancelling"
    ANALYSING = "analysing"
    DONE = "done"

    @property
    def active(self) -> bool:
        """Whether an engine is at work on the run."""
        return self not in {RunState.CREATED, RunState.QUEUED, RunState.DONE}


class FinishReason(StrEnum):
    """Why a run ended."""

    COMPLETED = "completed"
    EARLY_STOPPED = "early_stopped"
    STOPPED = "stopped"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True)
class Event:
    """Base of all events; ``time`` is in seconds since the epoch."""

    kind: ClassVar[str] = ""
    time: float = field(default=0.0, kw_only=True)

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps({"kind": self.kind, **asdict(self)}, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else str(value)


@dataclass(frozen=True)
class StateChanged(Event):
    """The run went into another state."""

    kind: ClassVar[str] = "state"
    state: RunState = RunState.CREATED
    reason: FinishReason | None = None
    text: str = ""


@dataclass(frozen=True)
class Progress(Event):
    """Progress of a named phase; ``fraction`` is None where it cannot be known."""

    kind: ClassVar[str] = "progress"
    phase: str = ""
    fraction: float | None = None
    text: str = ""


@dataclass(frozen=True)
class StepProgress(Event):
    """Progress within an epoch, at most a few a second."""

    kind: ClassVar[str] = "step"
    epoch: int = 0
    max_epochs: int = 0
    fraction: float = 0.0
    cells_per_second: float = 0.0
    seconds_left: float | None = None


@dataclass(frozen=True)
class EpochDone(Event):
    """An epoch is over.

    ``train`` and ``validation`` hold every loss term (unweighted, mean per cell), ``total`` (the weighted objective) and
    ``elbo`` (the negative ELBO, unweighted). ``validation`` is None where the epoch had no look at held-out cells.
    ``metrics`` holds what the family declares beside its loss terms.
    """

    kind: ClassVar[str] = "epoch"
    epoch: int = 0
    max_epochs: int = 0
    train: dict[str, float] = field(default_factory=dict)
    validation: dict[str, float] | None = None
    weights: dict[str, float] = field(default_factory=dict)
    learning_rate: float = 0.0
    kl_factor: float = 1.0
    best_epoch: int | None = None
    epochs_since_best: int = 0
    seconds: float = 0.0
    cells_per_second: float = 0.0
    memory_bytes: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class WeightChanged(Event):
    """A loss weight was turned while the model trained."""

    kind: ClassVar[str] = "weight"
    term: str = ""
    old: float = 0.0
    new: float = 0.0
    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class PreviewReady(Event):
    """The latent of the preview cells was written to ``path`` (``.npy``, ``(n_preview, n_latent)``)."""

    kind: ClassVar[str] = "preview"
    path: str = ""
    epoch: int = 0


@dataclass(frozen=True)
class ResultReady(Event):
    """A result was written into the run folder."""

    kind: ClassVar[str] = "result"
    name: str = ""
    path: str = ""


@dataclass(frozen=True)
class Metric(Event):
    """A number that says how good the result is; ``baseline`` without integration, ``expected`` by chance."""

    kind: ClassVar[str] = "metric"
    name: str = ""
    value: float = 0.0
    baseline: float | None = None
    group: str = ""
    expected: float | None = None


@dataclass(frozen=True)
class Warned(Event):
    """Something the person should know; ``mend`` says what to do."""

    kind: ClassVar[str] = "warning"
    text: str = ""
    mend: str = ""


@dataclass(frozen=True)
class Failed(Event):
    """The run failed: cause, mend and the details to copy."""

    kind: ClassVar[str] = "failed"
    text: str = ""
    mend: str = ""
    details: str = ""


@dataclass(frozen=True)
class Checkpointed(Event):
    """A checkpoint was written after ``epoch`` whole epochs."""

    kind: ClassVar[str] = "checkpoint"
    epoch: int = 0
    path: str = ""


Listener = Callable[[Event], None]
KINDS: dict[str, type[Event]] = {
    cls.kind: cls
    for cls in (StateChanged, Progress, StepProgress, EpochDone, WeightChanged, PreviewReady, ResultReady, Metric, Warned, Failed, Checkpointed)
}


def from_json(line: str) -> Event | None:
    """Read one line of ``events.jsonl``.

    Returns
    -------
    Event or None
        None for a half-written line and for a kind that a later version added.
    """
    try:
        tree = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(tree, dict):
        return None
    cls = KINDS.get(str(tree.pop("kind", "")))
    if cls is None:
        return None
    known = {item.name for item in fields(cls)}
    values = {key: value for key, value in tree.items() if key in known}
    try:
        if cls is StateChanged:
            values["state"] = RunState(values.get("state", "created"))
            values["reason"] = FinishReason(values["reason"]) if values.get("reason") else None
        return cls(**values)
    except (TypeError, ValueError):
        return None
