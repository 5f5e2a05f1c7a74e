"""Ctrl-C: once asks the run to cancel at the next minibatch, twice ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from cellweave.core.cli.terminal import note
from cellweave.core.training.control import RunControl


@contextmanager
def cancel_on_interrupt(control: RunControl) -> Iterator[None]:
    """Within the block, turn SIGINT and SIGTERM into a cancelled run.

    Parameters
    ----------
    control
        Of the run that is going on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread alone
        return

    asked = False

    def ask(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        note("\nCancelling after this minibatch; what was trained can be resumed. Once more ends it at once.")
        control.cancel()

    former: dict[signal.Signals, Any] = {which: signal.signal(which, ask) for which in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for which, handler in former.items():
            signal.signal(which, handler)
