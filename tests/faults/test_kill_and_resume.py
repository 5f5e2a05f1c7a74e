"""kill -9 at any moment, then resume: the same losses as if nothing had happened, and nothing lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cellweave.core.example import example_path
from cellweave.core.runs.events import FinishReason, RunState
from cellweave.core.runs.folder import RunFolder

EPOCHS = 8
SETTINGS = (
    "training.checkpoint_every=2", "training.preview_every=0", "training.threads=1", "training.batch_size=64",
    "analysis.umap=false", "analysis.clusters=false", "analysis.scores=false", "analysis.baseline=false",
)  # fmt: skip


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cellweave.core.cli", *arguments]


def train(out: Path) -> list[str]:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return command("train", str(example_path()), "--model", "vae", "--batch", "batch", "--epochs", str(EPOCHS), "--seed", "3", "--out", str(out), *settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(train(out), check=True, capture_output=True, timeout=240)
    assert RunFolder.open(out).status.reason is FinishReason.COMPLETED
    return (out / "losses.csv").read_text()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no kill -9")
@pytest.mark.parametrize("epochs_before", [0, 3, 6])
def test_kill_then_resume(tmp_path: Path, whole: str, epochs_before: int) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(train(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    losses, deadline = out / "losses.csv", time.monotonic() + 120
    while time.monotonic() < deadline:
        rows = losses.read_text().count("\n") - 1 if losses.exists() else 0
        started = (out / "status.json").exists() and RunFolder(out).status.state is RunState.TRAINING
        if (rows >= epochs_before and epochs_before) or (started and not epochs_before):
            break
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(20)
    run = RunFolder.open(out)
    assert run.status.lost, "whoever looks sees that its process is gone"
    resumed = subprocess.run(command("resume", str(out)), capture_output=True, text=True, timeout=240)
    assert resumed.returncode == 0, resumed.stderr
    assert losses.read_text() == whole
    assert run.status.reason is FinishReason.COMPLETED and (out / "results" / "latent.npy").exists()
    assert [event.epoch for event in run.epochs()] == list(range(1, EPOCHS + 1))


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    out = tmp_path / "run"
    subprocess.run(train(out), check=True, capture_output=True, timeout=240)
    again = subprocess.run(train(out), capture_output=True, text=True, timeout=60)
    assert again.returncode == 2 and "finished run" in again.stderr and "Traceback" not in again.stderr
    resume = subprocess.run(command("resume", str(out)), capture_output=True, text=True, timeout=60)
    assert resume.returncode == 2 and "is finished" in resume.stderr
    longer = subprocess.run(command("resume", str(out), "--set", f"training.max_epochs={EPOCHS + 2}"), capture_output=True, text=True, timeout=240)
    assert longer.returncode == 0, longer.stderr
    assert [row["epoch"] for row in RunFolder.open(out).losses()] == list(range(1, EPOCHS + 3))
