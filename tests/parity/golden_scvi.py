"""The golden cases of scvi-tools, as networks and minibatches of ours."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch

from cellweave.core.models.base import BuildContext, Minibatch, ModalityInfo
from cellweave.core.models.vae import VaeOptions
from cellweave.core.models.vae_network import build
from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.scvi_names import load_scvi
from cellweave.core.spec.covariates import CovariateSpec
from cellweave.core.spec.run import RunSpec

FILE = Path(__file__).parents[1] / "data" / "golden" / "scvi.json"
MODULE_ONLY = {"cls", "n_input", "n_batch", "n_labels", "n_continuous_cov", "n_cats_per_cov", "use_size_factor_key",
               "library_log_means", "library_log_vars"}


@cache
def golden():
    return json.loads(FILE.read_text())


def vae_cases():
    return [case for case in golden()["vae"] if case["options"]["cls"] == "VAE"]


def network(options, state, dtype):
    """Build the network of a golden case and give it the case's parameters."""
    columns = tuple(options.get("n_cats_per_cov") or ())
    n_continuous = options.get("n_continuous_cov", 0)
    spec = RunSpec(
        covariates=CovariateSpec(
            batch="batch", labels="labels",
            decoder=tuple(f"c{i}" for i in range(len(columns))),
            continuous=tuple(f"v{i}" for i in range(n_continuous)),
            size_factor="sf" if options.get("use_size_factor_key") else None,
        ),
        model=VaeOptions(**{name: value for name, value in options.items() if name not in MODULE_ONLY}),
    )
    n_batch = options["n_batch"]
    model = build(BuildContext(
        spec=spec,
        modalities=(ModalityInfo("rna", options["n_input"], (options["n_input"],)),),
        n_levels={"batch": n_batch, "labels": options.get("n_labels", 1), "decoder": columns},
        n_continuous=n_continuous,
        n_cells=100,
        library_log_mean={"rna": np.asarray(options.get("library_log_means", [[0.0] * n_batch]))[0]},
        library_log_var={"rna": np.asarray(options.get("library_log_vars", [[1.0] * n_batch]))[0]},
    )).to(dtype)
    load_scvi(model, {name: torch.tensor(value, dtype=dtype) for name, value in state.items()})
    return model


def minibatch(tensors, dtype):
    """Return the minibatch of a golden case."""
    def codes(name):
        return torch.tensor(tensors[name])[:, 0].long()

    x = np.asarray(tensors["X"])
    counts = CountBatch.from_dense(x, dtype=dtype)
    categorical = {"batch": codes("batch")}
    if "labels" in tensors:
        categorical["labels"] = codes("labels")
    if "extra_categorical_covs" in tensors:
        categorical["decoder"] = torch.tensor(tensors["extra_categorical_covs"]).long()
    continuous = tensors.get("extra_continuous_covs")
    factor = tensors.get("size_factor")
    return Minibatch(
        index=torch.arange(x.shape[0]),
        counts={"rna": counts},
        categorical=categorical,
        continuous=None if continuous is None else torch.tensor(continuous, dtype=dtype),
        size_factor=None if factor is None else torch.tensor(factor, dtype=dtype)[:, 0],
    )
