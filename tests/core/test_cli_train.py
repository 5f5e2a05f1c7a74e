"""Training from the command line: real runs of the bundled example, in this process and in one that is interrupted."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cellweave.core.cli import main
from cellweave.core.example import EXAMPLE_SHA256, example_path
from cellweave.core.runs.events import FinishReason, RunState, StateChanged, WeightChanged
from cellweave.core.runs.execute import execute
from cellweave.core.runs.folder import RunFolder
from cellweave.core.spec import RunSpec, save_spec

EXAMPLE = str(example_path())
NO_ANALYSIS = [f"--set=analysis.{name}=false" for name in ("umap", "clusters", "baseline", "scores")]
QUICK = [EXAMPLE, "--batch", "batch", "--labels", "celltype", *NO_ANALYSIS, "--set", "training.threads=1", "--set", "training.preview_every=0"]
PATIENCE = 120.0  # seconds before a test gives up on a process


def epochs_of(folder: Path) -> list[int]:
    with (folder / "losses.csv").open(encoding="utf-8", newline="") as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


def test_quick_form_spec_file_and_engine_give_the_same_losses(tmp_path, capsys) -> None:
    quick, file, engine = (tmp_path / name for name in ("quick", "file", "engine"))
    assert main(["train", *QUICK, "--epochs", "3", "--seed", "5", "--out", str(quick)]) == 0
    assert capsys.readouterr().out.strip() == str(quick)
    spec = RunSpec().with_changes(
        {
            "data.paths": EXAMPLE, "covariates.batch": "batch", "covariates.labels": "celltype", "training.max_epochs": 3,
            "training.seed": 5, "training.threads": 1, "training.preview_every": 0,
            "analysis.umap": False, "analysis.clusters": False, "analysis.baseline": False, "analysis.scores": False,
        }
    )  # fmt: skip
    save_spec(spec, tmp_path / "run.toml")
    assert main(["train", str(tmp_path / "run.toml"), "--out", str(file)]) == 0
    execute(spec, engine)
    losses = (engine / "losses.csv").read_text()
    assert epochs_of(engine) == [1, 2, 3]
    assert (quick / "losses.csv").read_text() == losses
    assert (file / "losses.csv").read_text() == losses
    assert RunFolder.open(quick).spec == RunFolder.open(engine).spec


def test_the_run_folder_says_what_was_done_and_to_which_file(tmp_path) -> None:
    folder = tmp_path / "run"
    assert main(["train", *QUICK, "--epochs", "2", "--set", "losses.weights.kl_z=0.5", "--preset", "scvi-defaults", "--out", str(folder)]) == 0
    spec = RunFolder.open(folder).spec
    assert spec.data.sha256 == (EXAMPLE_SHA256,)
    assert spec.losses.weights == {"kl_z": 0.5}
    assert spec.training.max_epochs == 2
    assert spec.training.early_stopping is False
    assert RunFolder.open(folder).status.reason is FinishReason.COMPLETED


def test_device_threads_and_folder_are_told(tmp_path, capsys) -> None:
    assert main(["train", *QUICK, "--epochs", "1", "--out", str(tmp_path / "run"), "--set", "training.device=cpu"]) == 0
    said = capsys.readouterr().err
    assert f"Training on CPU, 1 thread; the run folder is {tmp_path / 'run'}" in said
    assert "epoch 1/1: loss" in said
    assert said.splitlines()[-1] == "Done after 1 epoch."


def test_without_out_the_runs_are_numbered(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        assert main(["train", *QUICK, "--epochs", "1"]) == 0
        assert capsys.readouterr().out.strip() == f"runs/pbmc_mosaic-vae-{number:02d}"
    assert main(["runs"]) == 0
    listed = capsys.readouterr().out
    assert listed.count("completed") == 2


def test_a_finished_run_is_not_written_over(tmp_path, capsys) -> None:
    folder = tmp_path / "run"
    command = ["train", *QUICK, "--epochs", "1", "--out", str(folder)]
    assert main(command) == 0
    before = (folder / "losses.csv").read_bytes()
    assert main(command) == 2
    assert "already holds a finished run" in capsys.readouterr().err
    assert (folder / "losses.csv").read_bytes() == before
    assert main([*command, "--force"]) == 0
    assert (tmp_path / "run.old-1" / "losses.csv").read_bytes() == before


def test_what_the_checks_refuse_ends_with_2_and_a_mend(tmp_path, capsys) -> None:
    assert main(["train", *QUICK, "--batch", "celltypo", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "celltypo" in said
    assert "--set covariates.batch" in said


def test_a_longer_run_of_a_finished_one(tmp_path, capsys) -> None:
    folder = tmp_path / "run"
    assert main(["train", *QUICK, "--epochs", "2", "--out", str(folder)]) == 0
    assert main(["resume", str(folder)]) == 2
    assert "--set training.max_epochs=" in capsys.readouterr().err
    assert main(["resume", str(folder), "--set", "training.max_epochs=4"]) == 0
    assert epochs_of(folder) == [1, 2, 3, 4]


@pytest.fixture
def long_run(tmp_path) -> Iterator[tuple[subprocess.Popen, RunFolder]]:
    """A run in a process of its own that would take hours, already past its first epoch."""
    command = [sys.executable, "-m", "cellweave.core.cli", "train", *QUICK, "--epochs", "100000", "--set", "training.early_stopping=false"]
    folder = RunFolder(tmp_path / "run")
    process = subprocess.Popen(
        [*command, "--out", str(folder.path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        wait_for(lambda: bool(folder.losses()) or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        yield process, folder
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until another process has got somewhere."""
    end, tick = time.monotonic() + PATIENCE, threading.Event()
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        tick.wait(0.05)


def states(folder: RunFolder) -> list[RunState]:
    return [event.state for event in folder.events() if isinstance(event, StateChanged)]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one child")
def test_control_c_cancels_cleanly_and_the_run_can_be_resumed(long_run) -> None:
    process, folder = long_run
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 3, said
    assert "Traceback" not in said
    assert f"cellweave resume {folder.path}" in said
    assert folder.status.reason is FinishReason.CANCELLED
    done = folder.status.epoch
    assert done >= 1
    assert main(["resume", str(folder.path), "--set", f"training.max_epochs={done + 2}"]) == 0
    assert epochs_of(folder.path) == list(range(1, done + 3))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one child")
def test_control_c_twice_ends_at_once(long_run) -> None:
    process, folder = long_run
    assert main(["ctl", str(folder.path), "pause"]) == 0
    wait_for(lambda: folder.status.state is RunState.PAUSED)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 3, said
    assert "Traceback" not in said


def test_a_run_is_steered_from_outside(long_run, capsys) -> None:
    process, folder = long_run
    assert main(["ctl", str(folder.path), "weight", "kl_z", "0.25"]) == 0
    wait_for(lambda: any(isinstance(event, WeightChanged) for event in folder.events()))
    assert main(["ctl", str(folder.path), "weight", "kl_w", "0.25"]) == 2
    assert "It has reconstruction, kl_z" in capsys.readouterr().err
    assert main(["ctl", str(folder.path), "pause"]) == 0
    wait_for(lambda: folder.status.state is RunState.PAUSED)
    assert main(["resume", str(folder.path)]) == 2
    assert "is active in process" in capsys.readouterr().err
    assert main(["ctl", str(folder.path), "resume"]) == 0
    wait_for(lambda: states(folder).count(RunState.TRAINING) == 2)
    assert main(["ctl", str(folder.path), "stop"]) == 0
    out, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert out.strip() == str(folder.path)
    assert folder.status.reason is FinishReason.STOPPED
    assert (folder.results / "latent.npy").exists()
    assert folder.losses()[-1]["weight_kl_z"] == 0.25
    assert main(["ctl", str(folder.path), "stop"]) == 2
