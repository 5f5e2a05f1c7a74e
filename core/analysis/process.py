"""UMAP, clusters, scores and figures in one warm child process, so that they can neither stall the window nor take it down.

umap-learn in a thread of the window's process was measured to stall the event loop for half a second, and igraph holds the
interpreter while it clusters. The process is spawned (a forked one hangs in numba), arrays change hands as files, and messages are
plain JSON lines: nothing is unpickled.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from cellweave.core.analysis.jobs import AnalysisError, JobUpdate, OnUpdate, ProcessDied, Report, UpdateKind
from cellweave.core.errors import Cancelled

#: Seconds a task has to honour a cancellation before its process is ended.
GRACE = 1.5
#: The process is not started again after it died this often without finishing a job.
MAX_CRASHES = 3


@dataclass
class _Job:
    number: int
    task: str
    arguments: dict[str, Any]
    listener: OnUpdate | None
    cancelled: bool = False


class AnalysisProcess:
    """One child process that does analysis jobs, one at a time, in the order of submission.

    Every method may be called from any thread. Updates are given to ``on_update`` from a thread of this object
    (a window must hand them on to its own thread); without ``on_update`` they wait for :meth:`poll`.

    Parameters
    ----------
    on_update
        Called with every update.
    """

    def __init__(self, on_update: OnUpdate | None = None) -> None:
        self._on_update = on_update
        self._lock = threading.RLock()
        self._numbers = itertools.count(1)
        self._waiting: deque[_Job] = deque()
        self._running: _Job | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._threads: list[threading.Thread] = []
        self._complaints: deque[str] = deque(maxlen=50)
        self._crashes = 0
        self._warm = False
        self._closed = False
        self._updates: deque[JobUpdate] = deque()

    def __enter__(self) -> AnalysisProcess:
        """Start without warming up."""
        self.start(warm=False)
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the child, None while there is none."""
        with self._lock:
            return self._child.pid if self._child is not None else None

    def busy_with(self, task: str) -> bool:
        """Return whether a job of this kind waits or runs; a live refresh is dropped where one does."""
        with self._lock:
            return any(job.task == task for job in (*self._waiting, *([self._running] if self._running else [])))

    def start(self, *, warm: bool = True) -> None:
        """Start the process and return at once; with ``warm`` it compiles in the background what the first UMAP needs."""
        with self._lock:
            self._refuse_closed()
            if self._child is None:
                self._spawn()
            if warm and not self._warm:
                self._warm = True
                self._enqueue("warm", {}, None)

    def submit(self, task: str, *, listener: OnUpdate | None = None, **arguments: Any) -> int:
        """Queue a job.

        Parameters
        ----------
        task
            One of ``cellweave.core.analysis.tasks.TASKS``.
        listener
            Called with the updates of this job, before ``on_update``.
        **arguments
            Plain values and paths; see the task.

        Returns
        -------
        int
            Number of the job, for :meth:`cancel` and in its updates.
        """
        with self._lock:
            self._refuse_closed()
            if self._child is None:
                self._spawn()
            return self._enqueue(task, arguments, listener)

    def run(
        self, task: str, *, progress: Report | None = None, cancelled: Callable[[], bool] | None = None, **arguments: Any
    ) -> dict[str, Any]:
        """Do a job and wait for it.

        Parameters
        ----------
        task, **arguments
            As in :meth:`submit`.
        progress
            Called in the caller's thread with the share that is done and a few words.
        cancelled
            Asked ten times a second; where it says yes, the job is cancelled.

        Returns
        -------
        dict
            What the task gave.

        Raises
        ------
        Cancelled
            Where the job was cancelled.
        ProcessDied
            Where the process ended while it worked on the job; it has been started again.
        AnalysisError
            Where the task failed.
        """
        updates: queue.SimpleQueue[JobUpdate] = queue.SimpleQueue()
        job = self.submit(task, listener=updates.put, **arguments)
        update = JobUpdate(UpdateKind.PROGRESS)
        try:
            while not update.final:
                try:
                    update = updates.get(timeout=0.1)
                except queue.Empty:
                    pass
                else:
                    if progress is not None and not update.final:
                        progress(update.fraction, update.text)
                if cancelled is not None and not update.final and cancelled():
                    self.cancel(job)
        except BaseException:
            self.cancel(job)  # nobody waits for it any more
            raise
        if update.kind is UpdateKind.CANCELLED:
            raise Cancelled
        if update.kind is UpdateKind.FAILED:
            kind = ProcessDied if update.text.startswith(_DIED) else AnalysisError
            raise kind(update.text, update.mend, update.details)
        return update.result

    def poll(self) -> list[JobUpdate]:
        """Return the updates since the last call; always empty where ``on_update`` was given."""
        found = []
        while self._updates:
            found.append(self._updates.popleft())
        return found

    def cancel(self, job: int) -> None:
        """Cancel a job; one that is running has a moment to end by itself, then its process is ended and started again."""
        updates: list[tuple[JobUpdate, _Job | None]] = []
        with self._lock:
            for waiting in list(self._waiting):
                if waiting.number == job:
                    self._waiting.remove(waiting)
                    updates.append((JobUpdate(UpdateKind.CANCELLED, job, waiting.task), waiting))
            if self._running is not None and self._running.number == job and not self._running.cancelled:
                self._running.cancelled = True
                self._send({"cancel": job})
                timer = threading.Timer(GRACE, self._kill_if_running, (job,))
                timer.daemon = True
                timer.start()
        self._tell(updates)

    def close(self) -> None:
        """End the process and wait until it is gone; jobs that are not over are cancelled."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            child, jobs = self._child, [*([self._running] if self._running else []), *self._waiting]
            self._waiting.clear()
            self._running = self._child = None
        if child is not None:
            _close_quietly(child.stdin)
            try:
                child.wait(GRACE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(5)
        self._tell([(JobUpdate(UpdateKind.CANCELLED, job.number, job.task), job) for job in jobs])

    # ------------------------------------------------------------------ inside

    def _refuse_closed(self) -> None:
        if self._closed:
            raise AnalysisError("The analysis process has been closed.")

    def _enqueue(self, task: str, arguments: dict[str, Any], listener: OnUpdate | None) -> int:
        job = _Job(next(self._numbers), task, json.loads(json.dumps(arguments, default=os.fspath)), listener)
        self._waiting.append(job)
        self._next()
        return job.number

    def _next(self) -> None:
        """Send the next job where the process is free (with the lock held)."""
        if self._running is None and self._waiting and self._child is not None:
            self._running = job = self._waiting.popleft()
            self._send({"job": job.number, "task": job.task, "arguments": job.arguments})

    def _send(self, message: dict[str, Any]) -> None:
        if self._child is None or self._child.stdin is None:
            return
        try:
            self._child.stdin.write(json.dumps(message).encode() + b"\n")
            self._child.stdin.flush()
        except (OSError, ValueError):
            pass  # the process has just died (its reader may have closed the pipe already): the reader reports the job

    def _spawn(self) -> None:
        environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONIOENCODING": "utf-8"}
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow the training beside them many times over
        flags = getattr(subprocess, "CREATE_NO_WINDOW", 0)
        self._child = child = subprocess.Popen(
            [sys.executable, "-P", "-m", "cellweave.core.analysis.child"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, creationflags=flags,
        )
        complaints: deque[str] = deque(maxlen=50)
        self._complaints = complaints
        drain = threading.Thread(target=_drain, args=(child.stderr, complaints), daemon=True, name="analysis-stderr")
        read = threading.Thread(target=self._read, args=(child, drain), daemon=True, name="analysis-reader")
        self._threads = [thread for thread in self._threads if thread.is_alive()] + [drain, read]
        drain.start()
        read.start()

    def _read(self, child: subprocess.Popen[bytes], drain: threading.Thread) -> None:
        """Hand on what one child says, until it ends."""
        assert child.stdout is not None
        for line in child.stdout:
            self._on_message(json.loads(line))
        code = child.wait()
        drain.join(1)
        for pipe in (child.stdin, child.stdout, child.stderr):
            _close_quietly(pipe)
        self._on_end(child, code)

    def _on_message(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            self._tell([(JobUpdate(UpdateKind.READY), None)])
            return
        with self._lock:
            job = self._running
            if job is None or job.number != message["job"]:
                return
            if "progress" in message:
                update = JobUpdate(UpdateKind.PROGRESS, job.number, job.task, message["progress"], message["text"])
            else:
                self._running = None
                self._crashes = 0
                if job.cancelled or "cancelled" in message:
                    update = JobUpdate(UpdateKind.CANCELLED, job.number, job.task)
                elif "failed" in message:
                    update = JobUpdate(UpdateKind.FAILED, job.number, job.task, **message["failed"])
                else:
                    update = JobUpdate(UpdateKind.DONE, job.number, job.task, fraction=1.0, result=message["done"])
                self._next()
        self._tell([(update, job)])

    def _on_end(self, child: subprocess.Popen[bytes], code: int) -> None:
        """A child has ended: start another one and say what became of the job, unless the end was asked for."""
        updates: list[tuple[JobUpdate, _Job | None]] = []
        with self._lock:
            if self._closed or child is not self._child:
                return
            job, self._running, self._child = self._running, None, None
            asked = job is not None and job.cancelled
            if not asked:
                self._crashes += 1
            lost = [job] if job is not None else []
            again = self._crashes < MAX_CRASHES
            if not again:
                lost += self._waiting
                self._waiting.clear()
                self._crashes = 0
            details = f"exit code {code}\n" + "\n".join(self._complaints)
            updates.extend((_lost(each, again, details), each) for each in lost)
            if again:
                self._spawn()
                if self._warm:  # before the jobs that wait: the first of them would pay for it anyway
                    self._waiting.appendleft(_Job(next(self._numbers), "warm", {}, None))
                self._next()
                if not asked:
                    text = "The analysis process stopped unexpectedly and was started again."
                    updates.append((JobUpdate(UpdateKind.RESTARTED, text=text, details=details), None))
            else:
                self._warm = False
        self._tell(updates)

    def _kill_if_running(self, job: int) -> None:
        with self._lock:
            if self._running is not None and self._running.number == job and self._child is not None:
                self._child.kill()

    def _tell(self, updates: list[tuple[JobUpdate, _Job | None]]) -> None:
        for update, job in updates:
            if self._on_update is None:
                self._updates.append(update)
            for listener in (job.listener if job is not None else None, self._on_update):
                try:
                    if listener is not None:
                        listener(update)
                except Exception:  # an error of a listener must not end the thread that all others depend on
                    logging.getLogger(__name__).exception("A listener failed on %s of job %d", update.kind.value, update.job)


_DIED = "The analysis process stopped while it worked on"


def _lost(job: _Job, again: bool, details: str) -> JobUpdate:
    if job.cancelled:
        return JobUpdate(UpdateKind.CANCELLED, job.number, job.task)
    mend = (
        "It has been started again: try once more; if it stops again, there may be too little memory."
        if again
        else "It stopped several times in a row and was not started again: look at the details, there may be too little memory."
    )
    return JobUpdate(UpdateKind.FAILED, job.number, job.task, text=f"{_DIED} '{job.task}'.", mend=mend, details=details)


def _drain(pipe: IO[bytes] | None, lines: deque[str]) -> None:
    """Keep the last lines of what a child writes to its standard error, for the details of a crash."""
    for line in pipe or ():
        lines.append(line.decode("utf-8", "replace").rstrip())


def _close_quietly(pipe: IO[bytes] | None) -> None:
    try:
        if pipe is not None:
            pipe.close()
    except OSError:
        pass  # what was still to be written has no reader any more
