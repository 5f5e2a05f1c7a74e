"""The analysis tasks without a process of their own."""

from __future__ import annotations

import itertools
import json
import os
from collections import deque
from collections.abc import Callable
from typing import Any

from cellweave.core.analysis.child import describe
from cellweave.core.analysis.jobs import AnalysisError, JobUpdate, OnUpdate, Report, UpdateKind
from cellweave.core.analysis.tasks import TASKS
from cellweave.core.errors import Cancelled, CellweaveError


class InProcess:
    """The same tasks in the caller's own process and thread: for the command line, scripts and tests.

    ``submit`` does the job before it returns. A job is cancelled from another thread, or from within ``on_update``.
    """

    def __init__(self, on_update: OnUpdate | None = None) -> None:
        self._on_update = on_update
        self._numbers = itertools.count(1)
        self._cancelled: set[int] = set()
        self._updates: deque[JobUpdate] = deque()
        self._task = ""

    def __enter__(self) -> InProcess:
        """Do nothing: there is nothing to start."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def start(self, *, warm: bool = True) -> None:
        """Compile what the first UMAP needs, where ``warm``; it takes some seconds."""
        if warm:
            self.submit("warm")

    def busy_with(self, task: str) -> bool:
        """Return whether a job of this kind is running."""
        return self._task == task

    def submit(self, task: str, *, listener: OnUpdate | None = None, **arguments: Any) -> int:
        """Do a job; see :meth:`AnalysisProcess.submit`."""
        job = next(self._numbers)

        def tell(update: JobUpdate) -> None:
            if listener is not None:
                listener(update)
            if self._on_update is not None:
                self._on_update(update)
            else:
                self._updates.append(update)

        def progress(fraction: float | None, text: str = "") -> None:
            if job in self._cancelled:
                raise Cancelled
            tell(JobUpdate(UpdateKind.PROGRESS, job, task, fraction, text))

        self._task = task
        try:
            result = TASKS[task](json.loads(json.dumps(arguments, default=os.fspath)), progress)
        except Cancelled:
            tell(JobUpdate(UpdateKind.CANCELLED, job, task))
        except CellweaveError as error:
            tell(JobUpdate(UpdateKind.FAILED, job, task, text=error.cause, mend=error.mend))
        except Exception as error:  # noqa: BLE001  (reported with its details, as the process does)
            told = describe(task, error)
            tell(JobUpdate(UpdateKind.FAILED, job, task, text=told["text"], mend=told["mend"], details=told["details"]))
        else:
            tell(JobUpdate(UpdateKind.DONE, job, task, 1.0, result=result))
        finally:
            self._task = ""
        return job

    def run(
        self, task: str, *, progress: Report | None = None, cancelled: Callable[[], bool] | None = None, **arguments: Any
    ) -> dict[str, Any]:
        """Do a job and return its result; see :meth:`AnalysisProcess.run`."""
        last: list[JobUpdate] = []

        def listener(update: JobUpdate) -> None:
            last[:] = [update]
            if update.final:
                return
            if cancelled is not None and cancelled():
                raise Cancelled
            if progress is not None:
                progress(update.fraction, update.text)

        self.submit(task, listener=listener, **arguments)
        update = last[0]
        if update.kind is UpdateKind.CANCELLED:
            raise Cancelled
        if update.kind is UpdateKind.FAILED:
            raise AnalysisError(update.text, update.mend, update.details)
        return update.result

    def poll(self) -> list[JobUpdate]:
        """Return the updates since the last call; always empty where ``on_update`` was given."""
        found = list(self._updates)
        self._updates.clear()
        return found

    def cancel(self, job: int) -> None:
        """Cancel a job at its next sign of progress."""
        self._cancelled.add(job)

    def close(self) -> None:
        """Forget the updates nobody asked for."""
        self._updates.clear()
