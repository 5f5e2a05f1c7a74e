"""What can be said of an analysis job, and what whoever does one must offer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from cellweave.core.errors import CellweaveError


class UpdateKind(StrEnum):
    """What an update is about."""

    READY = "ready"
    RESTARTED = "restarted"
    PROGRESS = "progress"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class JobUpdate:
    """What became of a job, or of the process (``job`` is 0 then).

    Attributes
    ----------
    kind
        What happened.
    job, task
        Which job.
    fraction
        Share that is done, None where it is not known.
    text, mend, details
        For the person at the screen.
    result
        What the task gave, for ``DONE``.
    """

    kind: UpdateKind
    job: int = 0
    task: str = ""
    fraction: float | None = None
    text: str = ""
    mend: str = ""
    details: str = ""
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def final(self) -> bool:
        """Whether nothing more will be heard of the job."""
        return self.kind in {UpdateKind.DONE, UpdateKind.FAILED, UpdateKind.CANCELLED}


class AnalysisError(CellweaveError):
    """An analysis step failed."""

    def __init__(self, cause: str, mend: str = "", details: str = "") -> None:
        super().__init__(cause, mend)
        self.details = details


class ProcessDied(AnalysisError):  # noqa: N818  (it says what happened)
    """The analysis process ended while it worked on the step."""


OnUpdate = Callable[[JobUpdate], None]
Report = Callable[[float | None, str], None]


class Runner(Protocol):
    """Whatever can do an analysis task and wait for it."""

    def run(
        self, task: str, *, progress: Report | None = None, cancelled: Callable[[], bool] | None = None, **arguments: Any
    ) -> dict[str, Any]:
        """Do a task and return its result; raises ``Cancelled`` or ``AnalysisError``."""
