"""One training run with scmidas; started by midas_vs_scmidas.py with the interpreter that has scmidas.

    python scmidas_job.py JOB.json        reads the job, writes clocks to job["result"] and the latents of every batch to job["latents"]
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import lightning as lightning
import mudata
import numpy as np
import scmidas
import torch


class Clock(lightning.Callback):
    """Reads the clocks when training starts and at the end of every epoch."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.read()

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.read()

    def read(self) -> None:
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())


def array(value: object) -> np.ndarray:
    return value.cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def main(job: dict) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(job["threads"])
    lightning.seed_everything(job["seed"], verbose=False)
    data = mudata.read_h5mu(job["data"])
    configs = dict(scmidas.load_config())
    configs.update(num_workers=0, persistent_workers=False, pin_memory=False, lr_net=job["learning_rate"], lr_dsc=job["learning_rate"])
    scmidas.MIDAS.setup_mudata(data, dims_x=job["dims_x"])
    model = scmidas.MIDAS(data, configs=configs, batch_size=job["batch_size"])
    clock = Clock()
    model.train(
        max_epochs=job["epochs"], accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[clock],
    )  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    predicted = model.predict(joint_latent=True, mod_latent=True, return_in_memory=True)
    np.savez(job["latents"], **{f"{batch}/{key}": array(z) for batch, found in predicted.items() for key, z in found["z_c"].items()})
    result = {
        "wall": clock.wall, "cpu": clock.cpu, "peak_bytes": peak,
        "versions": {"scmidas": version("scmidas"), "torch (scmidas)": torch.__version__, "lightning": lightning.__version__},
    }  # fmt: skip
    Path(job["result"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
