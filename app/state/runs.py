"""The runs that the window knows: those in its own folder and those opened from elsewhere."""

from __future__ import annotations

import json
import shutil
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from psygnal import Signal

from cellweave.app.state.paths import runs_folder, trash_folder
from cellweave.core.errors import RunFolderError
from cellweave.core.files import write_json_atomic
from cellweave.core.models.registry import families
from cellweave.core.runs.events import FinishReason, RunState
from cellweave.core.runs.folder import RunFolder, RunStatus, read_loss_rows
from cellweave.core.spec import RunSpec

SPARK = 60
REASON_WORDS = {
    FinishReason.COMPLETED: "done",
    FinishReason.EARLY_STOPPED: "stopped early",
    FinishReason.STOPPED: "stopped",
    FinishReason.CANCELLED: "cancelled",
    FinishReason.FAILED: "failed",
}


def run_label(name: str, folder: Path) -> str:
    """Return what a run is called everywhere: its name and its folder, or the folder alone."""
    return f"{name} · {folder.name}" if name and name != folder.name else folder.name


@dataclass(frozen=True)
class RunSummary:
    """What the list shows of a run.

    Attributes
    ----------
    path
        The run folder.
    name
        The name in its spec, or the folder's.
    kind
        The model's kind.
    status
        Its snapshot.
    spark
        The negative ELBO of the last epochs, validation where there is one.
    resumable
        Whether it has a checkpoint to go on from, and does not go on.
    """

    path: Path
    name: str
    kind: str
    status: RunStatus
    spark: tuple[float, ...] = ()
    resumable: bool = False

    @property
    def over(self) -> bool:
        """Whether it trained all it was to: it can only be trained longer."""
        return self.status.state is RunState.DONE and self.status.reason in {FinishReason.COMPLETED, FinishReason.EARLY_STOPPED}

    @property
    def label(self) -> str:
        """Name and folder."""
        return run_label(self.name, self.path)

    @property
    def model(self) -> str:
        """What the model is called everywhere; its kind where no family of that kind is known."""
        known = families().get(self.kind)
        return self.kind if known is None else known.title

    @property
    def mark(self) -> str:
        """Name of the icon: running, waiting, good, stopped, failed."""
        status = self.status
        if status.lost:
            return "warn"
        if status.state is RunState.PAUSED:
            return "pause"
        if status.state.active:
            return "dot"
        if status.state is RunState.QUEUED:
            return "queue"
        if status.reason is FinishReason.FAILED:
            return "fail"
        if status.reason is FinishReason.CANCELLED:
            return "cancel"
        return "check" if status.state is RunState.DONE else "recent"

    @property
    def words(self) -> str:
        """Status in a few words."""
        status = self.status
        if status.lost:
            return "interrupted"
        if status.state in {RunState.TRAINING, RunState.PAUSED} and status.max_epochs:
            return f"{status.state.value} {100 * status.epoch / status.max_epochs:.0f} %"
        if status.state is RunState.ANALYSING:
            return "computing results"
        if status.state is RunState.DONE and status.reason is not None:
            return REASON_WORDS[status.reason]
        return "not started" if status.state is RunState.CREATED else status.state.value

    @property
    def final(self) -> str:
        """The last value of the sparkline, as text."""
        return f"{self.spark[-1]:,.1f}" if self.spark else ""


def summarise(path: Path) -> RunSummary:
    """Read what the list shows of a run; a broken part is left out, never an error."""
    folder = RunFolder(path)
    name, kind = path.name, ""
    try:
        tree = tomllib.loads(folder.spec_file.read_text(encoding="utf-8"))
        name, kind = str(tree.get("name") or name), str(tree.get("model", {}).get("kind", ""))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, AttributeError):
        pass  # the list shows the folder's name; opening the run says what is wrong
    status = folder.status
    try:
        rows = read_loss_rows(folder.losses_file)
    except ValueError:
        rows = []
    spark = [row.get("elbo_validation", row.get("elbo_train")) for row in rows[-SPARK:]]
    resting = not status.state.active or status.lost
    resumable = resting and folder.checkpoints.is_dir() and any(folder.checkpoints.iterdir())
    return RunSummary(path, name, kind, status, tuple(value for value in spark if value is not None), resumable)


class RunLibrary:
    """The list of runs, read again when their files change.

    Attributes
    ----------
    changed
        Sent with the summaries, newest first, when one of them changed.
    """

    changed = Signal(tuple)

    def __init__(self) -> None:
        self._elsewhere: list[Path] = []
        self._stamps: dict[Path, tuple[float, ...]] = {}
        self.runs: tuple[RunSummary, ...] = ()

    def add(self, path: Path) -> None:
        """Show a run folder that lies elsewhere."""
        path = path.absolute()
        if path.parent != runs_folder().absolute() and path not in self._elsewhere:
            self._elsewhere.append(path)

    def folders(self) -> list[Path]:
        """Return every run folder that is there."""
        try:
            own = [item for item in runs_folder().iterdir() if (item / "spec.toml").is_file()]
        except OSError:
            own = []
        return own + [item for item in self._elsewhere if (item / "spec.toml").is_file()]

    def refresh(self) -> None:
        """Read what changed on disk, and tell."""
        known = {run.path: run for run in self.runs}
        found: dict[Path, RunSummary] = {}
        stamps: dict[Path, tuple[float, ...]] = {}
        for path in self.folders():
            stamps[path] = _stamp(path)
            before = known.get(path)
            stale = before is None or self._stamps.get(path) != stamps[path] or (before.status.state.active and before.status.lost)
            found[path] = summarise(path) if stale or before is None else before
        runs = tuple(sorted(found.values(), key=lambda run: (run.status.started or _made(run.path), run.path.name), reverse=True))
        self._stamps = stamps
        if runs != self.runs:
            self.runs = runs
            self.changed.emit(runs)

    def get(self, path: Path | None) -> RunSummary | None:
        """Return the summary of a run folder, or None where it is not listed."""
        return next((run for run in self.runs if run.path == path), None)


def _stamp(path: Path) -> tuple[float, ...]:
    found = []
    for name in ("spec.toml", "status.json", "losses.csv", "checkpoints"):
        try:
            found.append((path / name).stat().st_mtime)
        except OSError:
            found.append(0.0)
    return tuple(found)


def _made(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def new_run_path(spec: RunSpec, folder: Path | None = None) -> Path:
    """Return a folder for a new run that does not exist yet: ``vae-01``, ``vae-02`` ..."""
    folder = folder or runs_folder()
    stem = spec.model.kind
    taken = {item.name for item in folder.iterdir()} if folder.is_dir() else set()
    number = 1
    while f"{stem}-{number:02d}" in taken:
        number += 1
    return folder / f"{stem}-{number:02d}"


def rename(path: Path, name: str) -> None:
    """Give a run another name; its folder stays where it is.

    Raises
    ------
    RunFolderError
        Where the run's spec cannot be read or written.
    """
    folder = RunFolder.open(path)
    try:
        folder.write_spec(folder.spec.with_changes({"name": name}))
    except OSError as error:
        raise RunFolderError(f"The run in '{path}' cannot be renamed: {error.strerror or error}.", "Check that you may write there.") from None


class Trash:
    """Deleted runs, which can be put back."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or trash_folder()
        self._filled: bool | None = None

    @property
    def filled(self) -> bool:
        """Whether there is anything to put back; looked up once, then kept."""
        if self._filled is None:
            self._filled = bool(self.entries())
        return self._filled

    @property
    def _index(self) -> Path:
        return self._folder / "index.json"

    def entries(self) -> list[dict[str, str]]:
        """Return what was deleted, oldest first: where it is now and where it was."""
        try:
            found = json.loads(self._index.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return [item for item in found if isinstance(item, dict) and Path(str(item.get("now", ""))).is_dir()]

    def put(self, path: Path) -> None:
        """Move a run folder to the trash.

        Raises
        ------
        RunFolderError
            Where it is training now, or cannot be moved.
        """
        status = RunFolder(path).status
        if status.state.active and not status.lost:
            raise RunFolderError(f"The run '{path.name}' is training now.", "Stop or cancel it first.")
        self._filled = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            target = self._folder / f"{path.name}.{int(time.time() * 1000)}"
            entries: Sequence[dict[str, str]] = [*self.entries(), {"now": str(target), "was": str(path)}]
            shutil.move(str(path), str(target))
            write_json_atomic(self._index, entries)
        except OSError as error:
            raise RunFolderError(f"The run '{path.name}' cannot be moved to the trash: {error.strerror or error}.", "Check that you may write there.") from None

    def restore_last(self) -> Path | None:
        """Put the run that was deleted last back where it was; return its folder, or None where there is none."""
        self._filled = None
        entries = self.entries()
        if not entries:
            return None
        last = entries.pop()
        target = Path(last["was"])
        number = 1
        while target.exists():
            number += 1
            target = Path(f"{last['was']}-{number}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(last["now"], str(target))
            write_json_atomic(self._index, entries)
        except OSError as error:
            raise RunFolderError(f"The run cannot be put back: {error.strerror or error}.", f"It is in '{last['now']}'.") from None
        return target
