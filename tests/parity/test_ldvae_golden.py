"""LDVAE against the golden module case, and its loadings against their formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_scvi import golden, minibatch

from cellweave.core.errors import SpecError
from cellweave.core.models.base import BuildContext, ModalityInfo
from cellweave.core.models.ldvae import LdvaeOptions
from cellweave.core.models.ldvae_network import LdvaeNetwork, build
from cellweave.core.models.vae_network import Posterior
from cellweave.core.spec import RunSpec
from cellweave.core.spec.covariates import CovariateSpec

MODULE_ONLY = {"cls", "n_input", "n_batch", "n_labels"}
CASES = [case for case in golden()["vae"] if case["options"]["cls"] == "LDVAE"]


def network(options: dict, dtype: torch.dtype) -> LdvaeNetwork:
    spec = RunSpec(
        covariates=CovariateSpec(batch="batch"),
        model=LdvaeOptions(**{name: value for name, value in options.items() if name not in MODULE_ONLY}),
    )
    n = options["n_batch"]
    context = BuildContext(
        spec, (ModalityInfo("rna", options["n_input"], (options["n_input"],)),), {"batch": n}, 0, 100, {"rna": np.zeros(n)}, {"rna": np.ones(n)}
    )
    return build(context).to(dtype).eval()


def load(model: LdvaeNetwork, state: dict, dtype: torch.dtype, n_latent: int) -> None:
    """Copy scvi-tools' parameters, whose one-hot covariates are the last columns of the first matrix."""
    names = {
        "encoder.mean": "z_encoder.mean_encoder", "encoder.var": "z_encoder.var_encoder",
        "encoder.hidden.layers.0.linear": "z_encoder.encoder.fc_layers.Layer 0.0",
        "encoder.hidden.layers.0.batch_norm": "z_encoder.encoder.fc_layers.Layer 0.1",
        "decoder.factors.layers.0.linear": "decoder.factor_regressor.fc_layers.Layer 0.0",
        "decoder.factors.layers.0.batch_norm": "decoder.factor_regressor.fc_layers.Layer 0.1",
    }  # fmt: skip
    with torch.no_grad():
        for name, target in model.state_dict().items():
            if name == "log_theta":
                target.copy_(torch.tensor(state["px_r"], dtype=dtype))
                continue
            prefix, _, last = name.rpartition(".")
            if last in {"num_batches_tracked"}:
                continue
            if last == "level_weight":
                wide = torch.tensor(state[f"{names[prefix]}.weight"], dtype=dtype)
                target.copy_(wide[:, n_latent:].T)
                continue
            values = torch.tensor(state[f"{names[prefix]}.{last}"], dtype=dtype)
            target.copy_(values[:, :n_latent] if "factors" in prefix and last == "weight" else values)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden_module(case: dict) -> None:
    dtype = getattr(torch, case["dtype"])
    model = network(case["options"], dtype)
    load(model, case["state"], dtype, case["options"]["n_latent"])
    batch, out = minibatch(case["tensors"], dtype), case["out"]
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    with torch.no_grad():
        posterior = model.posterior(batch)
        terms = model.terms_at(batch, Posterior(*posterior), posterior.mean, None)
        expression = model.expression(batch)["rna"]
        other = model.expression(batch, transform_batch=1)["rna"]
    for got, wanted in (
        (posterior.mean, out["qz_loc"]), (terms["reconstruction"], out["recon_nll"]), (terms["kl_z"], out["kl_z"]),
        (expression, out["px_scale"]), (other, out["px_scale_transform_batch_1"]), (model.loadings()["rna"], out["loadings"]),
    ):  # fmt: skip
        np.testing.assert_allclose(got.numpy(), np.asarray(wanted).reshape(got.shape), **tolerance)


def test_loadings_with_batch_norm_follow_their_formula() -> None:
    model = network({"n_input": 7, "n_batch": 2, "n_latent": 3}, torch.float64)
    layer = model.decoder.factors.layers[0]
    with torch.no_grad():
        layer.batch_norm.weight.uniform_(0.5, 2)
        layer.batch_norm.running_var.uniform_(0.1, 3)
    wide = torch.cat([layer.linear.weight, layer.linear.level_weight.T], 1).detach().numpy()
    scale = layer.batch_norm.weight.detach().numpy() / np.sqrt(layer.batch_norm.running_var.numpy() + 1e-3)
    np.testing.assert_allclose(model.loadings()["rna"].numpy(), (np.diag(scale) @ wide)[:, :-2], rtol=1e-12)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"covariates.decoder": ("donor",)}, "linear decoder"),
        ({"covariates.continuous": ("age",)}, "linear decoder"),
        ({"model.dispersion": "gene-cell"}, "gene-cell"),
        ({"model.dispersion": "gene-batch"}, "no column is the batch"),
        ({"covariates.size_factor": "sf"}, "size factors"),
        ({"model.encode_covariates": True}, "no field"),
    ],
)
def test_what_a_linear_decoder_cannot_honour_is_refused_at_once(changes: dict, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        RunSpec().with_changes({"model.kind": "ldvae"}).with_changes(changes)


def test_a_nonlinear_decoder_says_that_it_has_no_loadings() -> None:
    from golden_scvi import network as vae

    case = next(case for case in golden()["vae"] if case["options"]["cls"] == "VAE")
    with pytest.raises(NotImplementedError, match="no loadings"):
        vae(case["options"], case["state"], torch.float64).loadings()
