"""Some steps of scmidas without dropout, without noise and always told of the batch; started by midas_steps.py.

    python scmidas_steps.py JOB.json        writes the weights it begins with, its minibatches and the losses of every step
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path

import lightning
import mudata
import numpy as np
import scmidas
import torch
from scmidas.model import MIDAS, VAE
from torch.utils.data import default_collate


def main(job: dict) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    lightning.seed_everything(job["seed"], verbose=False)
    data = mudata.read_h5mu(job["data"])
    configs = dict(scmidas.load_config())
    configs.update(num_workers=0, persistent_workers=False, pin_memory=False, lr_net=job["rate"], lr_dsc=job["rate"], drop=0.0, s_drop_rate=0.0)
    MIDAS.setup_mudata(data, dims_x=job["dims_x"])
    model = MIDAS(data, configs=configs, batch_size=job["batch_size"])
    VAE.sample_gaussian = staticmethod(lambda mean, log_var: mean)
    start = {f"{part}.{name}": value.numpy() for part in ("net", "dsc") for name, value in getattr(model, part).state_dict().items()}
    np.savez(job["start"], **start)
    model.configure_optimizers()
    rows, order = [], []

    def keep(_self, recon, kl, alignment, _total, adversarial, parts):
        found = {"kl": kl.item(), "alignment": alignment.item() / 50, "adversarial": adversarial.item() / 30}
        parts = {name.split("/")[1]: value.item() / job["batch_size"] for name, value in parts.items()}
        rows.append(found | parts | {"s": parts["s"] / 1000})

    MIDAS.log_losses = keep
    loader = model.train_dataloader()
    bounds = [0, *loader.dataset.cumulative_sizes]
    while len(order) < job["steps"]:
        for indices in loader.batch_sampler:
            batch = default_collate([loader.dataset[index] for index in indices])
            code = int(batch["s"]["joint"][0])
            order.append([model.batch_names[code], [index - bounds[code] for index in indices]])
            model.training_step(batch, len(order))
            if len(order) == job["steps"]:
                break
    names = {}
    for level in model.batch_names:
        part = next(part for part in data.mod.values() if (part.obs["batch"] == level).any())
        names[level] = list(map(str, part.obs_names[(part.obs["batch"] == level).to_numpy()]))
    Path(job["result"]).write_text(json.dumps({"rows": rows, "order": order, "names": names}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
