"""One training run with scvi-tools; started by vae_vs_scvi.py with the interpreter that has scvi-tools.

    python scvi_tools_job.py JOB.json        reads the job, writes the clock and the losses of every epoch to job["result"]
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
import warnings
from pathlib import Path

import anndata as ad
import lightning.pytorch as pl
import numpy as np
import scvi
import torch


class Clock(pl.callbacks.Callback):
    """Reads the clocks at the end of every epoch, after its look at the held-out cells."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.read()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.read()

    def read(self) -> None:
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())


def main(job: dict) -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(job["threads"])
    scvi.settings.verbosity = logging.ERROR
    scvi.settings.seed = job["seed"]
    adata = ad.read_h5ad(job["data"])
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = scvi.model.SCVI(adata, gene_likelihood=job["likelihood"])
    clock = Clock()
    arguments: dict = {"train_size": 1.0}
    if job["split"]:
        split = np.load(job["split"])
        rest = np.array([], dtype=int)
        arguments = {
            "check_val_every_n_epoch": 1,
            "datasplitter_kwargs": {"external_indexing": [split["train"], split["validation"], rest]},
        }
    model.train(
        max_epochs=job["epochs"], accelerator="cpu", batch_size=job["batch_size"], callbacks=[clock],
        plan_kwargs={"lr": job["learning_rate"], **job["plan"]}, enable_progress_bar=False, enable_model_summary=False, **arguments,
    )  # fmt: skip
    history = model.history
    held_out = history["elbo_validation"]["elbo_validation"].tolist() if job["split"] else []
    if job.get("latent"):
        np.save(job["latent"], model.get_latent_representation())
    result = {
        "wall": clock.wall, "cpu": clock.cpu, "held_out": [float(value) for value in held_out],
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "versions": {"scvi-tools": scvi.__version__, "torch": torch.__version__, "lightning": pl.__version__},
    }  # fmt: skip
    Path(job["result"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
