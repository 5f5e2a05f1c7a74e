"""One training run of scVAEIT's model with Cellweave, through the same engine as window and command line; started by vaeit_vs_scvaeit.py.

    python cellweave_job.py JOB.json      reads the job, writes clocks to job["result"] and the imputed values to job["values"]
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cellweave.core.query.opened import open_run
from cellweave.core.runs.events import EpochDone, Event, RunState, StateChanged
from cellweave.core.runs.execute import execute
from cellweave.core.spec import RunSpec

WARM_EPOCHS = 2
NOTHING_ELSE = {f"analysis.{name}": False for name in ("umap", "clusters", "baseline", "scores")}


class Clock:
    """Reads the clocks when training starts and at the end of every epoch."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, EpochDone) or (isinstance(event, StateChanged) and event.state is RunState.TRAINING):
            self.wall.append(time.perf_counter())
            self.cpu.append(time.process_time())


def spec_of(job: dict) -> RunSpec:
    """Return the spec that means the same as the other program's settings."""
    names = job["names"]
    weights = {}
    for name, beta in zip(names, job["beta_modal"], strict=True):
        weights |= {f"losses.weights.observed_{name}": (1 - job["beta_unobs"]) * beta, f"losses.weights.hidden_{name}": job["beta_unobs"] * beta}
    return RunSpec().with_changes({"model.kind": "vaeit"}).with_changes(
        {
            "data.paths": (job["data"],), "data.switched_off": tuple(job["switched_off"]), "covariates.batch": "batch",
            "model.n_latent": job["latent"], "model.hidden": tuple(str(width) for width in job["hidden"]),
            "model.block_units": dict(zip(names, map(str, job["units"]), strict=True)),
            "model.mask_units": dict(zip(names, map(str, job["mask_units"]), strict=True)),
            "model.mask_modality": "uniform", "model.mask_features": job["p_feat"], **weights, "losses.weights.kl": job["beta_kl"],
            "training.max_epochs": job["epochs"], "training.batch_size": job["batch_size"], "training.validation_share": 0.0, "training.early_stopping": False,
            "training.threads": job["threads"], "training.seed": job["seed"], "training.preview_every": 0, "training.checkpoint_every": 1_000_000,
            **NOTHING_ELSE, **job.get("set", {}),
        }
    )  # fmt: skip


@torch.no_grad()
def imputed(folder: Path, features: np.ndarray) -> np.ndarray:
    """Return the expected values of all entries on the scale of training, ``(n_cells, n_features)``, in the order of ``features``.

    At the posterior mean, as window, command line and exports give them where no draws are asked for. Cellweave brings peaks
    into the order of its blocks, with peaks on scaffolds last, so that its columns are not those of the file.
    """
    run = open_run(folder)
    parts = []
    own = pd.Index([f"{modality.name} {feature}" for modality in run.data.modalities for feature in modality.var.index])
    order = own.get_indexer(features)
    if len(own) != len(features) or (order < 0).any():
        sys.exit("the run has other features than the arrays of the other program")
    for _, batch in run.minibatches(np.arange(run.n_cells)):
        parts.append(torch.cat(list(run.model.impute_normalised(batch).values()), 1).numpy())
    return np.concatenate(parts)[:, order]


def main(job: dict) -> None:
    clock, folder = Clock(), Path(job["folder"])
    execute(spec_of(job), folder, listener=clock, force=True)
    steps = -(-job["n_cells"] // job["batch_size"])
    done = (len(clock.wall) - 1 - WARM_EPOCHS) * steps
    started = time.perf_counter()
    values = imputed(folder, np.load(job["arrays"])["features"])
    result = {
        "wall per step": (clock.wall[-1] - clock.wall[WARM_EPOCHS]) / done, "cpu per step": (clock.cpu[-1] - clock.cpu[WARM_EPOCHS]) / done,
        "wall": clock.wall[-1] - clock.wall[0], "cpu": clock.cpu[-1] - clock.cpu[0], "steps": (len(clock.wall) - 1) * steps,
        "denoise": time.perf_counter() - started, "versions": {"cellweave": version("cellweave"), "torch": torch.__version__},
    }  # fmt: skip
    np.save(job["values"], values)
    Path(job["result"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
