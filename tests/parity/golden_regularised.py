"""The golden cases of regularizedvi, as networks and minibatches of ours."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch

from cellweave.core.models.ambient import AmbientOptions
from cellweave.core.models.ambient_network import AmbientNetwork
from cellweave.core.models.base import BuildContext, Minibatch, ModalityInfo
from cellweave.core.nn.counts import CountBatch
from cellweave.core.spec.covariates import CovariateSpec
from cellweave.core.spec.run import RunSpec

FILE = Path(__file__).parents[1] / "data" / "golden" / "regularizedvi.json"


@cache
def golden():
    return json.loads(FILE.read_text())


def tensor(values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype)


def columns(prefix, n):
    return tuple(f"{prefix}{place}" for place in range(n))


def context_of(sizes, **options):
    """What a network of the golden cases is built from; the summaries only set starts, which the golden state replaces."""
    spec = RunSpec(
        model=AmbientOptions(n_hidden=sizes["n_hidden"], n_latent=sizes["n_latent"], **options),
        covariates=CovariateSpec(
            decoder=columns("c", len(sizes["n_cats_per_cov"])), ambient=columns("a", len(sizes["n_cats_per_ambient_cov"])),
            feature_scaling=columns("f", len(sizes["n_cats_per_feature_scaling_cov"])), dispersion="d", library_size="l",
        ),
    )  # fmt: skip
    n = sizes["n_input"]
    summaries = {
        "mean": np.ones(n), "var": np.ones(n) * 2, "share": np.full(n, 1 / n), "ambient_share": np.full((sum(sizes["n_cats_per_ambient_cov"]), n), 1 / n),
        "library_mean": np.zeros(sizes["n_library_cats"]), "library_var": np.ones(sizes["n_library_cats"]), "totals": np.array([100.0, 10.0, 50.0]),
    }  # fmt: skip
    levels = {
        "decoder": tuple(sizes["n_cats_per_cov"]), "ambient": tuple(sizes["n_cats_per_ambient_cov"]),
        "feature_scaling": tuple(sizes["n_cats_per_feature_scaling_cov"]), "dispersion": sizes["n_dispersion_cats"], "library_size": sizes["n_library_cats"],
    }  # fmt: skip
    return BuildContext(
        spec, (ModalityInfo("rna", n, (n,)),), levels, 0, 1000, {}, {}, extras={f"rna/{name}": value for name, value in summaries.items()}
    )


def network_of(case):
    """A network with the golden state."""
    burst = case["decoder_type"] == "burst_frequency_size"
    network = AmbientNetwork(context_of(case["options"], decoder_type=case["decoder_type"]))
    state, stack = {name: tensor(value) for name, value in case["state"].items()}, network.stacks["rna"]
    with torch.no_grad():
        stack.log_theta.copy_(state["px_r_mu"].t())
        stack.log_theta_log_sd.copy_(state["px_r_log_sigma"].t())
        stack.rate_raw.copy_(state["dispersion_prior_rate_raw"])
        stack.background.raw.copy_(state["additive_background"].t())
        stack.scaling.raw.copy_(state["feature_scaling"])
        stack.weight_mean.copy_(state["library_obs_w_mu"])
        stack.weight_log_sd.copy_(state["library_obs_w_log_sigma"])
        stack.library_prior_mean.copy_(state["library_log_means"][0])
        stack.library_prior_var.copy_(state["library_log_vars"][0])
        for ours, theirs in ((network.encoder, "z_encoder"), (stack.library_encoder, "l_encoder")):
            _copy(ours.hidden.layers[0].linear, state, f"{theirs}.encoder.fc_layers.Layer 0.0")
            _copy(ours.mean, state, f"{theirs}.mean_encoder")
            _copy(ours.var, state, f"{theirs}.var_encoder")
        _copy(stack.decoder.hidden.layers[0].linear, state, "decoder.px_decoder.fc_layers.Layer 0.0")
        _copy(stack.decoder.scale, state, "decoder.px_scale_decoder.0")
        if burst:
            _copy(stack.decoder.size_hidden.layers[0].linear, state, "decoder.burst_size_decoder.fc_layers.Layer 0.0")
            _copy(stack.decoder.size, state, "decoder.burst_size_head.0")
    return network.eval()


def _copy(module, state, name):
    weight = state[f"{name}.weight"]
    levels = getattr(module, "level_weight", None)
    if levels is not None:
        module.weight.copy_(weight[:, : module.n_in])
        levels.copy_(weight[:, module.n_in :].t())
    else:
        module.weight.copy_(weight)
    module.bias.copy_(state[f"{name}.bias"])


def batch_of(case):
    codes = {"decoder": "cat", "ambient": "ambient", "feature_scaling": "feature_scaling"}
    categorical = {role: tensor(case[name], torch.int64) for role, name in codes.items()}
    categorical["dispersion"] = tensor(case["dispersion"], torch.int64)[:, 0]
    categorical["library_size"] = tensor(case["library_group"], torch.int64)[:, 0]
    counts = CountBatch.from_dense(np.array(case["X"], dtype=np.float32))
    return Minibatch(torch.arange(len(case["X"])), {"rna": counts}, categorical)
