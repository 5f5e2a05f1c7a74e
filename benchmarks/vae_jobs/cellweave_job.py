"""One training run with Cellweave, through the same engine as window and command line; started by vae_vs_scvi.py.

    python cellweave_job.py JOB.json         reads the job, writes the clock and the losses of every epoch to job["result"]
"""

from __future__ import annotations

import json
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from cellweave.core.runs.events import EpochDone, Event, RunState, StateChanged
from cellweave.core.runs.execute import execute
from cellweave.core.spec import RunSpec, presets

ONLY_TRAINING = {f"analysis.{name}": False for name in ("umap", "clusters", "baseline", "scores")}


class Clock:
    """Reads the clocks when training starts and at the end of every epoch, after its look at the held-out cells."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.held_out: list[float] = []
        self.peak_bytes = 0

    def __call__(self, event: Event) -> None:
        started = isinstance(event, StateChanged) and event.state is RunState.TRAINING
        if started or isinstance(event, EpochDone):
            self.wall.append(time.perf_counter())
            self.cpu.append(time.process_time())
            self.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if isinstance(event, EpochDone) and event.validation is not None:
            self.held_out.append(event.validation["elbo"])


def spec_of(job: dict) -> RunSpec:
    spec = RunSpec().with_changes({"data.paths": (job["data"],), "covariates.batch": "batch", **ONLY_TRAINING})
    if job.get("preset"):
        spec = presets()[job["preset"]].apply(spec)
    return spec.with_changes({"training.threads": job["threads"], "training.seed": job["seed"], "training.preview_every": 0, **job["set"]})


def main(job: dict) -> None:
    clock, folder = Clock(), Path(job["folder"])
    execute(spec_of(job), folder, listener=clock)
    if job.get("write_split"):
        split = cells_by_part(folder)
        np.savez(job["write_split"], **split)
    result = {
        "wall": clock.wall, "cpu": clock.cpu, "held_out": clock.held_out, "peak_bytes": clock.peak_bytes,
        "versions": {"cellweave": version("cellweave"), "torch": torch.__version__},
    }  # fmt: skip
    Path(job["result"]).write_text(json.dumps(result))


def cells_by_part(folder: Path) -> dict[str, np.ndarray]:
    """Return the rows that were trained on and held out, so that the other program takes the same."""
    import pandas as pd

    part = pd.read_csv(folder / "results" / "cells.csv")["split"].to_numpy()
    return {name: np.flatnonzero(part == name) for name in ("train", "validation")}


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
