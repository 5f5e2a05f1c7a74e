"""The losses of every step of scmidas, with everything drawn as it draws it; started by midas_losses.py with the interpreter that has scmidas.

    python scmidas_losses.py JOB.json      writes one list of steps a seed to job["result"], after each seed anew
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path

import lightning as lightning
import mudata
import scmidas
import torch
from torch.utils.data import default_collate


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    job = json.loads(Path(sys.argv[1]).read_text())
    data = mudata.read_h5mu(job["data"])
    configs = {**scmidas.load_config(), "num_workers": 0, "persistent_workers": False, "pin_memory": False}
    configs |= {"lr_net": job["learning_rate"], "lr_dsc": job["learning_rate"]}
    scmidas.MIDAS.setup_mudata(data, dims_x=job["dims_x"])
    steps: list[dict[str, float]] = []

    def keep(_model, recon, kl, alignment, total, adversarial, parts):  # in the units of our terms, without their weights
        found = {"kl": kl.item(), "alignment": alignment.item() / configs["lam_alignment"], "adversarial": adversarial.item() / configs["lam_dsc"]}
        found |= {name.split("/")[1]: value.item() / job["batch_size"] for name, value in parts.items()}
        if "s" in found:
            found["s"] /= configs["lam_recon_s"]
        steps.append(found)

    scmidas.MIDAS.log_losses = keep
    result = []
    for seed in job["seeds"]:
        lightning.seed_everything(seed, verbose=False)
        model = scmidas.MIDAS(data, configs=configs, batch_size=job["batch_size"])
        model.configure_optimizers()
        steps.clear()
        loader = model.train_dataloader()
        for _ in range(job["epochs"]):
            for rows in loader.batch_sampler:
                torch.nn.Module.train(model)  # scmidas' own method of that name fits
                model.training_step(default_collate([loader.dataset[row] for row in rows]), len(steps))
        result.append(list(steps))
        Path(job["result"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
