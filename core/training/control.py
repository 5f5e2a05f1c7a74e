"""What one may ask of a run while it goes on, from another thread or from outside through the run folder."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

POLL = 0.25  # seconds between two looks at the control file


class RunControl:
    """Thread-safe requests to the engine; it honours them at the next batch boundary.

    The engine asks ``cancelled`` and so on once per step, which is a look at a flag.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._go = threading.Event()
        self._go.set()
        self._stop = threading.Event()
        self._cancel = threading.Event()
        self._checkpoint = threading.Event()
        self._weights: list[tuple[str, float]] = []
        self._file: Path | None = None
        self._offset = 0
        self._next_poll = 0.0

    # ------------------------------------------------------------------ asked by the person

    def pause(self) -> None:
        """Wait at the next batch boundary until :meth:`resume`."""
        self._go.clear()

    def resume(self) -> None:
        """Go on after a pause."""
        self._go.set()

    def stop(self) -> None:
        """Stop training at the next batch boundary, keep the best weights and finish the results."""
        self._stop.set()
        self._go.set()

    def cancel(self) -> None:
        """Stop as soon as possible and compute nothing more."""
        self._cancel.set()
        self._go.set()

    def checkpoint_now(self) -> None:
        """Write a checkpoint at the next batch boundary."""
        self._checkpoint.set()

    def set_weight(self, term: str, value: float) -> None:
        """Give a loss term another weight from the next step on."""
        with self._lock:
            self._weights.append((term, float(value)))

    # ------------------------------------------------------------------ asked by the engine

    @property
    def paused(self) -> bool:
        """Whether a pause was asked for."""
        return not self._go.is_set()

    @property
    def stopping(self) -> bool:
        """Whether training shall stop and keep what it has."""
        return self._stop.is_set()

    @property
    def cancelled(self) -> bool:
        """Whether the run shall be abandoned."""
        self.poll()
        return self._cancel.is_set()

    def take_checkpoint(self) -> bool:
        """Return whether a checkpoint was asked for, and forget it."""
        if self._checkpoint.is_set():
            self._checkpoint.clear()
            return True
        return False

    def take_weights(self) -> list[tuple[str, float]]:
        """Return the new weights since the last call, oldest first."""
        if not self._weights:
            return []
        with self._lock:
            taken, self._weights = self._weights, []
        return taken

    def wait(self, seconds: float) -> None:
        """Wait for the end of a pause, but not longer than ``seconds``."""
        self._go.wait(seconds)

    # ------------------------------------------------------------------ from outside, through the run folder

    def follow(self, path: Path) -> None:
        """Honour commands that are appended to ``path`` from now on."""
        self._file = path
        try:
            self._offset = path.stat().st_size
        except OSError:
            self._offset = 0

    def poll(self) -> None:
        """Look at the control file, a few times a second at most."""
        now = time.monotonic()
        if self._file is None or now < self._next_poll:
            return
        self._next_poll = now + POLL
        try:
            if self._file.stat().st_size <= self._offset:
                return
            with self._file.open("rb") as file:
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._offset += len(line)
                    self._obey(line)
        except OSError:
            return

    def _obey(self, line: bytes) -> None:
        try:
            command = json.loads(line)
            verb = command["verb"]
            if verb == "weight":
                self.set_weight(str(command["term"]), float(command["value"]))
                return
        except (ValueError, KeyError, TypeError):
            return  # a line nobody of ours wrote
        actions = {"pause": self.pause, "resume": self.resume, "stop": self.stop, "cancel": self.cancel, "checkpoint": self.checkpoint_now}
        if verb in actions:
            actions[verb]()
