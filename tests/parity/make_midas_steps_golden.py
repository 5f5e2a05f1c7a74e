"""Make reference numbers of scmidas' training step: losses of some steps in float64, for several configurations; and of what it then predicts.

    PEER_PYTHON tests/parity/make_midas_steps_golden.py        with scmidas installed; writes midas_steps_golden.json beside this script

Weights follow from their names (:func:`weight`), counts and masks are stored, and the noise of a step follows from its number (:func:`noise`), so
that another program can do the same steps. There is no dropout, which two programs cannot draw alike.
"""

from __future__ import annotations

import json
import logging
import warnings
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import anndata
import mudata
import numpy as np
import pandas as pd
import torch

OUT = Path(__file__).with_name("midas_steps_golden.json")
DIMS = {"rna": [9], "adt": [4], "atac": [3, 6, 2]}
BATCHES = {"a": ["rna"], "b": ["adt", "atac"], "c": ["rna", "adt"], "d": ["rna", "adt", "atac"]}
N_CELLS, N_C, N_U, RATE = 7, 5, 2, 3e-3
#: Batches of the minibatches, one after the other; each is all cells of its batch.
ORDER = "dcabdbcda"
SIZES = {
    "dim_c": N_C, "dim_u": N_U, "dims_shared_enc": [13, 8], "dims_shared_dec": [7, 12], "dims_before_enc_atac": [6, 4], "dims_after_dec_atac": [4, 5],
    "dims_enc_s": [3, 4], "dims_dec_s": [4, 3], "dims_dsc": [6, 5],
}  # fmt: skip
#: What each case is called, and what it changes of scmidas' configuration.
CASES: dict[str, dict] = {
    "defaults": {},
    "other weights": {
        "lam_recon_rna": 0.5, "lam_recon_adt": 2.0, "lam_recon_atac": 3.0, "lam_recon_s": 10.0, "lam_kld_c": 0.25, "lam_kld_u": 2.0, "lam_alignment": 4.0,
        "lam_dsc": 8.0, "lam_adv": 2.0, "n_iter_disc": 1,
    },
    "discriminators watch": {"lam_adv": 0.0, "n_iter_disc": 5},
    "clipped": {"grad_clip": 0.5, "lr_dsc": 6e-3},
    "batch norm": {"norm": "bn"},
    "no norm": {"norm": False},
    "never told": {"s_drop_rate": 1.0},
    "other optimisers": {"optim_net": "Adam", "optim_dsc": "SGD"},
    "other likelihoods": {"distribution_dec_adt": "BERNOULLI", "distribution_dec_atac": "POISSON", "trsf_before_enc_atac": "log1p"},
    "other sizes": {
        "dims_shared_enc": [10], "dims_shared_dec": [12], "dims_before_enc_atac": [6, 5, 3], "dims_after_dec_atac": [3, 5, 6], "dims_dsc": [6],
        "dims_enc_s": [5], "dims_dec_s": [3, 4, 5],
    },
}  # fmt: skip


#: Cases of which predictions are stored, and cells of each batch.
PREDICTED, SHOWN = ("defaults", "no norm", "batch norm"), 2


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return a weight that its name under scmidas determines: gains around 1, everything else around 0."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return 0.3 * values + (name.endswith(".net.0.weight") and len(shape) == 1)


def noise(step: int) -> Iterator[np.ndarray]:
    """Yield the noise of a step: of all modalities together, then of each, ``(n_cells, n_c + n_u)``."""
    draws = np.random.RandomState(1000 + step)
    while True:
        yield draws.standard_normal((N_CELLS, N_C + N_U))


def counts_and_masks() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return counts of each modality, all cells of a batch after those of the one before, and which features were measured in each batch."""
    draws = np.random.RandomState(3)
    counts = {name: draws.poisson(draws.gamma(0.6, 2.5, (1, sum(sizes))), (N_CELLS * len(BATCHES), sum(sizes))) for name, sizes in DIMS.items()}
    masks = {batch: np.ones(9, int) for batch in BATCHES}
    masks["c"][[1, 5]], masks["d"][7] = 0, 0
    for place, batch in enumerate(BATCHES):
        counts["rna"][place * N_CELLS : (place + 1) * N_CELLS] *= masks[batch]
        for name in set(DIMS) - set(BATCHES[batch]):
            counts[name][place * N_CELLS : (place + 1) * N_CELLS] = 0
    return counts, masks


def data(counts: dict[str, np.ndarray], masks: dict[str, np.ndarray]) -> mudata.MuData:
    level = np.repeat(list(BATCHES), N_CELLS)
    found = {}
    for name, values in counts.items():
        own = np.isin(level, [batch for batch, having in BATCHES.items() if name in having])
        obs = pd.DataFrame({"batch": level[own]}, index=[f"cell{row}" for row in np.flatnonzero(own)])
        var = pd.DataFrame(index=[f"{name}{place}" for place in range(values.shape[1])])
        found[name] = anndata.AnnData(values[own].astype(np.float32), obs=obs, var=var)
    for batch, mask in masks.items():
        if "rna" in BATCHES[batch] and not mask.all():
            found["rna"].uns[f"mask_{batch}"] = mask.astype(np.float32)
    return mudata.MuData(found)


def steps(changes: dict, counts: dict[str, np.ndarray], masks: dict[str, np.ndarray]) -> tuple[list[dict[str, float]], int, object]:
    """Return the losses of each step, the number of parameters, and the model."""
    import scmidas
    from scmidas.model import MIDAS, VAE
    from torch.utils.data import default_collate

    configs = {**scmidas.load_config(), **SIZES, "num_workers": 0, "persistent_workers": False, "pin_memory": False, "drop": 0, "s_drop_rate": 0.0,
               "lr_net": RATE, "lr_dsc": RATE, **changes}  # fmt: skip
    study = data(counts, masks)
    MIDAS.setup_mudata(study, dims_x=DIMS)
    transform = {"transform": {"adt": "binarize", "atac": None}} if changes.get("distribution_dec_adt") == "BERNOULLI" else {}
    model = MIDAS(study, configs=configs, batch_size=N_CELLS, **transform)
    model.net.double()
    model.dsc.double()
    for module in model.net.modules():
        if isinstance(module, torch.nn.Linear):  # the one-hot batch is float32 there
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    n_parameters = sum(p.numel() for part in (model.net, model.dsc) for p in part.parameters())
    for part, module in (("net", model.net), ("dsc", model.dsc)):
        for name, parameter in module.named_parameters():
            parameter.data = torch.from_numpy(weight(f"{part}.{name}", tuple(parameter.shape)))
    model.configure_optimizers()
    rows: list[dict[str, float]] = []

    def keep(_self, recon, kl, alignment, total, adversarial, parts):
        found = {"kl": kl, "alignment": alignment, "discriminators": adversarial, "total": total}
        found |= {name.split("/")[1]: value / N_CELLS for name, value in parts.items()}
        rows.append({name: value.item() for name, value in found.items()})

    MIDAS.log_losses = keep
    dataset = model.train_dataloader().dataset
    bounds = [0, *dataset.cumulative_sizes]
    model.net.train()
    model.dsc.train()
    for number, level in enumerate(ORDER):
        place = list(BATCHES).index(level)
        batch = default_collate([dataset[index] for index in range(bounds[place], bounds[place + 1])])
        batch["x"] = {name: value.double() for name, value in batch["x"].items()}
        own = noise(number)

        def draw(mean: torch.Tensor, log_var: torch.Tensor, own: Iterator[np.ndarray] = own) -> torch.Tensor:
            return mean + (log_var / 2).exp() * torch.from_numpy(next(own))

        VAE.sample_gaussian = staticmethod(draw)
        model.training_step(batch, number)
    return rows, n_parameters, model


def predictions(model: object) -> dict[str, dict[str, dict[str, list]]]:
    """Return latents, imputed, translated and batch-corrected values of the first cells of each batch; corrected ones as means."""
    from scmidas.nn import distribution_registry

    for name in ("POISSON", "BERNOULLI"):
        distribution_registry.sampling_map[name] = lambda values: values
    told = model.predict(mod_latent=True, impute=True, translate=True, batch_correct=True, verbose=False)
    kinds = ("z_c", "z_u", "x_impt", "x_trans", "x_bc")
    return {batch: {kind: {key: np.round(value[:SHOWN], 10).tolist() for key, value in own[kind].items()} for kind in kinds} for batch, own in told.items()}


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    counts, masks = counts_and_masks()
    cases = {}
    for name, changes in CASES.items():
        rows, n_parameters, model = steps(changes, counts, masks)
        cases[name] = {"n_parameters": n_parameters, "rows": rows, **({"predicted": predictions(model)} if name in PREDICTED else {})}
    tree = {
        "scmidas": version("scmidas"), "torch": torch.__version__, "counts": {name: values.tolist() for name, values in counts.items()},
        "masks": {batch: mask.tolist() for batch, mask in masks.items()}, "cases": cases,
    }  # fmt: skip
    OUT.write_text(json.dumps(tree) + "\n")


if __name__ == "__main__":
    main()
