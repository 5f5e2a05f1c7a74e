"""One training run of MIDAS with Cellweave, through the same engine as window and command line; started by midas_vs_scmidas.py.

    python cellweave_job.py JOB.json         reads the job, writes clocks to job["result"] and the latents of every batch to job["latents"]
"""

from __future__ import annotations

import json
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cellweave.core.runs.events import EpochDone, Event, RunState, StateChanged
from cellweave.core.runs.execute import execute
from cellweave.core.spec import RunSpec

ONLY_TRAINING = {f"analysis.{name}": False for name in ("umap", "clusters", "baseline", "scores")}


class Clock:
    """Reads the clocks when training starts and at the end of every epoch."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.peak_bytes = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, EpochDone) or (isinstance(event, StateChanged) and event.state is RunState.TRAINING):
            self.wall.append(time.perf_counter())
            self.cpu.append(time.process_time())
            self.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(job: dict) -> None:
    spec = RunSpec().with_changes({
        "model.kind": "midas", "data.paths": (job["data"],), "covariates.batch": "batch", **ONLY_TRAINING,
        "training.max_epochs": job["epochs"], "training.batch_size": job["batch_size"], "training.learning_rate": job["learning_rate"],
        "training.validation_share": 0.0, "training.early_stopping": False, "training.checkpoint_every": 1_000_000, "training.preview_every": 0,
        "training.threads": job["threads"], "training.seed": job["seed"], **job.get("set", {}),
    })  # fmt: skip
    clock, folder = Clock(), Path(job["folder"])
    execute(spec, folder, listener=clock)
    cells = pd.read_csv(folder / "results" / "cells.csv")
    latents = {}
    for path in sorted((folder / "results").glob("*.npy")):
        if path.stem != "latent" and not path.stem.startswith("c_"):
            continue
        values, key = np.load(path), "joint" if path.stem == "latent" else path.stem[2:]
        for batch in cells["batch"].unique():
            own = values[(cells["batch"] == batch).to_numpy()]
            if np.isfinite(own).all():
                latents[f"{batch}/{key}"] = own
    np.savez(job["latents"], **latents)
    result = {
        "wall": clock.wall, "cpu": clock.cpu, "peak_bytes": clock.peak_bytes,
        "versions": {"cellweave": version("cellweave"), "torch": torch.__version__},
    }  # fmt: skip
    Path(job["result"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
