"""The analysis process itself: ``python -m cellweave.core.analysis.child``.

It reads one JSON message a line from its standard input and answers the same way: plain values only. Where the input ends,
because the parent closed it or died, the process ends at once, whatever it is doing.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from typing import Any, BinaryIO

from cellweave.core.errors import Cancelled, CellweaveError

#: Seconds between two progress messages.
PACE = 0.1
#: Tasks that go on beside training, which goes first.
BESIDE = ("refresh",)
#: How far they stand back (0 is the usual, 19 the farthest).
STANDS_BACK = 5
LAST_PRIORITY = 19


class Channel:
    """Messages to the parent, on what was the standard output; prints of libraries go to the standard error."""

    def __init__(self) -> None:
        self._file: BinaryIO = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)
        self._lock = threading.Lock()

    def send(self, **message: Any) -> None:
        """Send one message; where nobody listens any more, the process has no purpose and ends."""
        line = json.dumps(message, ensure_ascii=True).encode() + b"\n"
        try:
            with self._lock:
                self._file.write(line)
        except OSError:
            os._exit(0)


class Worker:
    """Does one job after the other in the main thread, while another thread listens for cancellation and the end.

    What goes on beside training gets a thread of its own that stands back for others. The whole process once did: then, where other programs kept
    all cores busy, what a person waits for after training got a few hundredths of one and stood still at its first stage.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._jobs: queue.Queue[dict[str, Any]] = queue.Queue()
        self._cancelled: set[int] = set()

    def listen(self) -> None:
        """Read messages until the input ends."""
        for line in sys.stdin.buffer:
            message = json.loads(line)
            if "cancel" in message:
                self._cancelled.add(int(message["cancel"]))
            else:
                self._jobs.put(message)
        os._exit(0)

    def work(self) -> None:
        """Do jobs for ever."""
        while True:
            message = self._jobs.get()
            if message["task"] not in BESIDE:
                self._do(message)
                continue
            thread = threading.Thread(target=self._stand_back, args=(message,), name="beside")
            thread.start()
            thread.join()

    def _stand_back(self, message: dict[str, Any]) -> None:
        if sys.platform == "linux":  # where a thread has a priority of its own, which ends with it: it cannot be raised again
            thread = threading.get_native_id()
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, thread, min(LAST_PRIORITY, os.getpriority(os.PRIO_PROCESS, thread) + STANDS_BACK))
        self._do(message)

    def _do(self, message: dict[str, Any]) -> None:
        from cellweave.core.analysis.tasks import TASKS

        job = int(message["job"])
        last = 0.0

        def progress(fraction: float | None, text: str = "") -> None:
            nonlocal last
            if job in self._cancelled:
                raise Cancelled
            now = time.monotonic()
            if now - last >= PACE:
                last = now
                self._channel.send(job=job, progress=fraction, text=text)

        try:
            result = TASKS[message["task"]](message["arguments"], progress)
        except Cancelled:
            self._channel.send(job=job, cancelled=True)
        except CellweaveError as error:
            self._channel.send(job=job, failed={"text": error.cause, "mend": error.mend, "details": traceback.format_exc()})
        except Exception as error:  # noqa: BLE001  (every error is reported to the parent, with its details)
            self._channel.send(job=job, failed=describe(str(message["task"]), error))
        else:
            self._channel.send(job=job, done=result)


def describe(task: str, error: BaseException) -> dict[str, str]:
    """Return the sentences and details for an error that no task foresaw."""
    details = "".join(traceback.format_exception(error))
    if isinstance(error, MemoryError):
        return {
            "text": f"There was not enough memory for the analysis step '{task}'.",
            "mend": "Close other programs, or run it on a machine with more memory.",
            "details": details,
        }
    if isinstance(error, OSError):
        return {
            "text": f"The analysis step '{task}' could not read or write its files: {error.strerror or error}.",
            "mend": "Check that the run folder still exists and that the disk is not full.",
            "details": details,
        }
    return {
        "text": f"The analysis step '{task}' failed: {type(error).__name__}: {error}.",
        "mend": "The other results are not affected; try it again, or report it with the details below.",
        "details": details,
    }


def main() -> None:
    """Run the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is the parent's to handle; this process ends with it
    channel = Channel()
    worker = Worker(channel)
    threading.Thread(target=worker.listen, daemon=True, name="listen").start()
    channel.send(ready=True, pid=os.getpid())
    worker.work()


if __name__ == "__main__":
    main()
