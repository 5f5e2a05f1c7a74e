"""The run folder: what is refused, what a reader survives, what a full disk leaves."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from toy import toy_spec

from cellweave.core.errors import RunFolderError
from cellweave.core.runs.events import (
    EpochDone,
    FinishReason,
    Progress,
    RunState,
    StateChanged,
    Warned,
    WeightChanged,
    from_json,
)
from cellweave.core.runs.folder import RunFolder, RunStatus, read_loss_rows
from cellweave.core.runs.journal import Journal


def epoch(number: int, value: float = 1.5) -> EpochDone:
    return EpochDone(epoch=number, max_epochs=9, train={"reconstruction": value, "total": value}, validation=None, weights={"kl_z": 1.0})


def test_events_read_back_as_they_were() -> None:
    for event in (epoch(3), StateChanged(RunState.DONE, FinishReason.STOPPED, "text"), WeightChanged("kl_z", 1.0, 2.0, 3, 4)):
        assert from_json(event.to_json()) == event
    assert from_json('{"kind": "of a later version", "x": 1}') is None
    assert from_json('{"kind": "weight", "term": "kl_z", "unknown": 1}') == WeightChanged("kl_z")


def test_a_reader_survives_a_half_written_last_line_at_every_byte(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", toy_spec())
    journal = Journal(run)
    journal.emit(epoch(1))
    journal.emit(epoch(2))
    events, rows = run.events_file.read_bytes(), run.losses_file.read_bytes()
    last = events.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(last, len(events)):
        run.events_file.write_bytes(events[:end])
        assert [event.epoch for event in run.epochs()] == [1]
    last = rows.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(last, len(rows)):
        run.losses_file.write_bytes(rows[:end])
        assert [row["epoch"] for row in read_loss_rows(run.losses_file)] == [1]


def test_a_finished_run_is_not_overwritten(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", toy_spec())
    with pytest.raises(RunFolderError, match="not finished"):
        RunFolder.create(run.path, toy_spec())
    run.write_status(RunStatus(state=RunState.DONE, reason=FinishReason.COMPLETED))
    with pytest.raises(RunFolderError, match="finished run"):
        RunFolder.create(run.path, toy_spec())
    RunFolder.create(run.path, toy_spec(), force=True)
    assert (tmp_path / "run.old-1" / "spec.toml").exists()


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(RunFolderError, match="not an empty folder"):
        RunFolder.create(tmp_path, toy_spec(), force=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_one_may_not_write_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunFolderError, match="cannot be written"):
        RunFolder.create(tmp_path / "run", toy_spec())


def test_a_file_in_the_place_of_the_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written"):
        RunFolder.create(tmp_path / "file" / "run", toy_spec())


def test_what_is_no_run_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no folder"):
        RunFolder.open(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match="not a run folder"):
        RunFolder.open(tmp_path)


def test_an_unreadable_status_counts_as_created(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", toy_spec())
    run.status_file.write_text('{"state": "dancing"}')
    assert run.status == RunStatus()


def test_a_run_whose_process_is_gone_is_lost(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", toy_spec())
    journal = Journal(run)
    journal.state(RunState.TRAINING)
    assert run.status.pid == os.getpid() and not run.status.lost
    tree = json.loads(run.status_file.read_text())
    run.status_file.write_text(json.dumps({**tree, "pid": 2**22 + 17}))
    assert run.status.lost
    with pytest.raises(RunFolderError, match="not training"):
        run.send_command("stop")


def test_rewind_takes_back_the_rows_after_an_epoch(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", toy_spec())
    journal = Journal(run)
    for number in range(1, 6):
        journal.emit(epoch(number))
    Journal(run).rewind(3)
    again = Journal(run)
    again.emit(epoch(4, 0.25))
    assert [row["epoch"] for row in run.losses()] == [1, 2, 3, 4]
    assert run.epochs()[3].train["total"] == 0.25, "the later account of an epoch counts"


def test_a_full_disk_loses_no_row_and_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list = []
    run = RunFolder.create(tmp_path / "run", toy_spec())
    journal = Journal(run, events.append)
    journal.emit(epoch(1))
    real = Path.open

    def full(self: Path, mode: str = "r", *args: object, **kwargs: object) -> object:
        if "a" in mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    journal.emit(epoch(2))
    journal.emit(epoch(3))
    monkeypatch.setattr(Path, "open", real)
    journal.emit(epoch(4))
    assert [row["epoch"] for row in run.losses()] == [1, 2, 3, 4]
    assert [event.epoch for event in run.epochs()] == [1, 2, 3, 4]
    assert len([event for event in events if isinstance(event, Warned)]) == 1


def test_progress_is_at_most_twenty_a_second(tmp_path: Path) -> None:
    events: list = []
    journal = Journal(RunFolder.create(tmp_path / "run", toy_spec()), events.append)
    for _ in range(2000):
        journal.emit(Progress("counting", 0.5))
    assert 1 <= len(events) <= 20


def test_a_process_number_that_was_used_again_counts_as_gone(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", toy_spec())
    Journal(run).state(RunState.TRAINING)
    tree = json.loads(run.status_file.read_text())
    assert not run.status.lost
    run.status_file.write_text(json.dumps({**tree, "pid_started": tree["pid_started"] - 1000}))
    assert run.status.lost
