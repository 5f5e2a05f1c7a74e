"""How a stage of the analysis is done: passed over where its result is there and true, reported and not fatal where it fails."""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from cellweave.core.analysis.jobs import ProcessDied, Runner
from cellweave.core.errors import Cancelled, CellweaveError
from cellweave.core.files import sha256_of, write_json_atomic
from cellweave.core.runs.events import Event, Progress, ResultReady, Warned

LOG = logging.getLogger("cellweave.analysis")
#: Bumped where a stage computes something else from the same input, so that older results are computed anew.
VERSION = 1
STAMPS = "analysis.json"
Emit = Callable[[Event], None]


class CachedStages:
    """Does stages and remembers, beside the results, what each was computed from.

    Parameters
    ----------
    results
        Folder of the results and of their stamps.
    runner
        Who does the work: the warm process of the window, or this process.
    emit
        Takes progress, results and warnings.
    cancelled
        Asked before every stage and by the tasks.
    """

    def __init__(self, results: Path, runner: Runner, emit: Emit, cancelled: Callable[[], bool]) -> None:
        self.results, self.runner, self.emit, self.cancelled = results, runner, emit, cancelled

    def stage(self, name: str, title: str, key: dict[str, Any], file: str, compute: Callable[[Path], None]) -> bool:
        """Do a stage unless it is done; return whether its result is there and true."""
        if self.cancelled():
            raise Cancelled
        out, stamp = self.results / file, digest(key)
        if self.is_done(name, out, stamp):
            self.emit(ResultReady(name=name, path=str(out)))
            return True
        out.unlink(missing_ok=True)  # what is there belongs to another latent or other settings
        self.emit(Progress(phase=title, fraction=None))
        try:
            compute(out)
            self.stamp(name, stamp)
        except CellweaveError as error:
            LOG.warning("%s: %s\n%s", title, error, getattr(error, "details", ""))
            self.emit(Warned(text=f"{title}: {error.cause}", mend=error.mend))
            return False
        except Cancelled:
            raise
        except OSError as error:
            LOG.warning("%s", title, exc_info=True)
            self.emit(
                Warned(text=f"{title} was not written: {error.strerror or error}.", mend="Free some space and compute the results again.")
            )
            return False
        except Exception as error:
            LOG.warning("%s", title, exc_info=True)
            self.emit(Warned(text=f"{title} failed: {type(error).__name__}: {error}.", mend="The details are in log.txt of the run folder."))
            return False
        self.emit(Progress(phase=title, fraction=1.0))
        self.emit(ResultReady(name=name, path=str(out)))
        return True

    def do(self, task: str, phase: str, **arguments: Any) -> dict[str, Any]:
        """Do one task; where the process was lost under it, once more."""

        def progress(fraction: float | None, text: str) -> None:
            self.emit(Progress(phase=phase, fraction=fraction, text=text))

        plain = {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()}
        try:
            return self.runner.run(task, progress=progress, cancelled=self.cancelled, **plain)
        except ProcessDied as error:
            self.emit(Warned(text=error.cause, mend="It was started again and the step is repeated."))
            return self.runner.run(task, progress=progress, cancelled=self.cancelled, **plain)

    def _stamps(self) -> dict[str, str]:
        try:
            tree = json.loads((self.results / STAMPS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {str(name): str(stamp) for name, stamp in tree.items()} if isinstance(tree, dict) else {}

    def is_done(self, name: str, out: Path, stamp: str) -> bool:
        """Return whether ``out`` is there and was computed from what ``stamp`` says."""
        return out.exists() and self._stamps().get(name) == stamp

    def stamp(self, name: str, stamp: str) -> None:
        """Remember what a result was computed from."""
        write_json_atomic(self.results / STAMPS, self._stamps() | {name: stamp})


def digest(key: dict[str, Any]) -> str:
    """Return the stamp of a key: the check sum of all that a result depends on."""
    return hashlib.sha256(json.dumps([VERSION, key], sort_keys=True).encode()).hexdigest()


def sum_of_file(name: str | None) -> str | None:
    """Return the check sum of a file that the spec names; where it is not there, its name: the stage itself says what is wrong."""
    path = Path(name).expanduser() if name else None
    return name if path is None or not path.is_file() else sha256_of(path)


def sum_of_counts(counts: sparse.csr_matrix) -> list[Any]:
    """Return what tells one matrix of counts from another, in one pass."""
    sums = [zlib.crc32(np.ascontiguousarray(part).data) for part in (counts.indptr, counts.indices, counts.data)]
    return [list(counts.shape), *sums]
