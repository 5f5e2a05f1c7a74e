"""scvi-tools asked with given weights: runs in an environment of its own, called by query_vs_scvi.py."""

import json
import sys
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import scvi
import torch

warnings.simplefilter("ignore")


def timed(clock: dict, name: str, ask):
    start = time.process_time()
    found = ask()
    clock[name] = time.process_time() - start
    return found


def main(job: dict) -> None:
    torch.set_num_threads(1)
    scvi.settings.seed = 0
    weights = np.load(job["weights"], allow_pickle=False)
    adata = ad.read_h5ad(job["data"])
    adata.X = adata.X.astype(np.float32)
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = scvi.model.SCVI(adata)
    state = model.module.state_dict()
    for name in state:
        if name in weights:
            state[name] = torch.tensor(weights[name]).reshape(state[name].shape)
    model.module.load_state_dict(state)
    model.is_trained_ = True
    model.module.eval()
    clock: dict[str, float] = {}
    de = {"groupby": "batch", "group1": "stim", "group2": "ctrl", "silent": True}
    found = {
        "latent": timed(clock, "latent", model.get_latent_representation),
        "expression": timed(clock, "expression", lambda: model.get_normalized_expression(n_samples=50, return_numpy=True, silent=True)),
        "elbo": np.array([float(timed(clock, "elbo", model.get_elbo)) for _ in range(10)]),
        "marginal": timed(clock, "marginal", lambda: np.asarray(model.get_marginal_ll(n_mc_samples=100, return_mean=False))),
        "correlation": timed(clock, "correlation", lambda: model.get_feature_correlation_matrix(n_samples=10).to_numpy()),
    }
    for mode in ("change", "vanilla"):
        table = timed(clock, f"de_{mode}", lambda mode=mode: model.differential_expression(mode=mode, **de)).loc[adata.var_names]
        found[f"de_{mode}"] = table["proba_de" if mode == "change" else "proba_m1"].to_numpy()
        if mode == "change":
            found["lfc"] = table["lfc_mean"].to_numpy()
    np.savez(job["out"], **found)
    Path(job["clock"]).write_text(json.dumps({"clock": clock, "versions": {"scvi-tools": scvi.__version__, "torch": torch.__version__}}))


main(json.loads(Path(sys.argv[1]).read_text()))
