"""The hardest set of options against a forward pass written in numpy from the mathematics, sharing no code with the network."""

import numpy as np
import torch
from scipy.special import gammaln

from cellweave.core.models.base import BuildContext, Minibatch, ModalityInfo
from cellweave.core.models.vae import VaeOptions
from cellweave.core.models.vae_network import build
from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.scvi_names import to_scvi
from cellweave.core.spec.covariates import CovariateSpec
from cellweave.core.spec.run import RunSpec

LEVELS, N_BATCH, N_GENES, N_CELLS = (2, 4, 3), 3, 8, 11
EPS = 1e-8


def _network():
    torch.manual_seed(5)
    spec = RunSpec(
        covariates=CovariateSpec(batch="b", decoder=("c0", "c1", "c2"), continuous=("v0", "v1")),
        model=VaeOptions(
            n_layers=2, n_hidden=6, n_latent=3, encode_covariates=True, dispersion="gene-batch", use_observed_lib_size=False,
            use_layer_norm="both", var_activation="softplus",
        ),
    )
    context = BuildContext(
        spec, (ModalityInfo("rna", N_GENES, (N_GENES,)),), {"batch": N_BATCH, "decoder": LEVELS}, 2, 100,
        {"rna": np.array([3.0, 2.5, 2.0])}, {"rna": np.array([0.3, 0.2, 0.5])},
    )
    network = build(context).double().eval()
    with torch.no_grad():  # running statistics and affine parameters as after some training
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 2)
                module.bias.normal_()
    return network


def _data():
    rng = np.random.default_rng(9)
    return {
        "x": rng.poisson(2.0, (N_CELLS, N_GENES)).astype(float),
        "batch": rng.integers(0, N_BATCH, N_CELLS),
        "columns": np.stack([rng.integers(0, n, N_CELLS) for n in LEVELS], 1),
        "continuous": rng.normal(size=(N_CELLS, 2)),
    }


def _one_hots(data):
    codes = [data["batch"], *data["columns"].T]
    return np.concatenate([np.eye(n)[code] for n, code in zip((N_BATCH, *LEVELS), codes, strict=True)], 1)


def _stack(state, prefix, x, one_hots, n_layers):
    for place in range(n_layers):
        name = f"{prefix}.fc_layers.Layer {place}"
        x = np.concatenate([x, one_hots], 1) @ state[f"{name}.0.weight"].T + state[f"{name}.0.bias"]
        scale = state[f"{name}.1.weight"] / np.sqrt(state[f"{name}.1.running_var"] + 1e-3)
        x = (x - state[f"{name}.1.running_mean"]) * scale + state[f"{name}.1.bias"]
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        x = np.maximum(x, 0)
    return x


def _encode(state, prefix, x, one_hots, n_layers):
    hidden = _stack(state, f"{prefix}.encoder", x, one_hots, n_layers)
    mean = hidden @ state[f"{prefix}.mean_encoder.weight"].T + state[f"{prefix}.mean_encoder.bias"]
    var = np.log1p(np.exp(hidden @ state[f"{prefix}.var_encoder.weight"].T + state[f"{prefix}.var_encoder.bias"])) + 1e-4
    return mean, var


def _zinb(x, mu, theta, logit):
    log_sum = np.log(theta + mu + EPS)
    at_zero = np.log1p(np.exp(-logit + theta * (np.log(theta + EPS) - log_sum))) - np.log1p(np.exp(-logit))
    positive = (
        -np.log1p(np.exp(-logit)) - logit + theta * (np.log(theta + EPS) - log_sum)
        + x * (np.log(mu + EPS) - log_sum) + gammaln(x + theta) - gammaln(theta) - gammaln(x + 1)
    )
    return np.where(x == 0, at_zero, positive)


def test_forward_of_the_hardest_case():
    network, data = _network(), _data()
    state = {name: tensor.detach().numpy() for name, tensor in to_scvi(network).items()}
    one_hots = _one_hots(data)
    entry = np.concatenate([np.log1p(data["x"]), data["continuous"]], 1)
    z, z_var = _encode(state, "z_encoder", entry, one_hots, 2)
    library, library_var = _encode(state, "l_encoder", entry, one_hots, 1)
    hidden = _stack(state, "decoder.px_decoder", np.concatenate([z, data["continuous"]], 1), one_hots, 2)
    logits = hidden @ state["decoder.px_scale_decoder.0.weight"].T + state["decoder.px_scale_decoder.0.bias"]
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    mu = np.exp(library) * share
    dropout = hidden @ state["decoder.px_dropout_decoder.weight"].T + state["decoder.px_dropout_decoder.bias"]
    theta = np.exp(state["px_r"])[:, data["batch"]].T
    wanted = {
        "reconstruction": -_zinb(data["x"], mu, theta, dropout).sum(1),
        "kl_z": 0.5 * (z_var + z**2 - 1 - np.log(z_var)).sum(1),
    }
    prior_mean, prior_var = np.array([3.0, 2.5, 2.0])[data["batch"]], np.array([0.3, 0.2, 0.5])[data["batch"]]
    # The prior is held in float32, as data summaries are.
    prior_var = prior_var.astype(np.float32).astype(float)
    variance = library_var[:, 0]
    wanted["kl_l"] = 0.5 * (
        variance / prior_var + (library[:, 0] - prior_mean) ** 2 / prior_var - 1 - np.log(variance / prior_var)
    )

    batch = Minibatch(
        torch.arange(N_CELLS), {"rna": CountBatch.from_dense(data["x"], dtype=torch.float64)},
        {"batch": torch.tensor(data["batch"]), "decoder": torch.tensor(data["columns"])},
        continuous=torch.tensor(data["continuous"]),
    )
    posterior = network.posterior(batch)
    found = network.terms_at(batch, posterior, posterior.mean, posterior.log_library[0])
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name].detach().numpy(), value, rtol=1e-12, err_msg=name)
