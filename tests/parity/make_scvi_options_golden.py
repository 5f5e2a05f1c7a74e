"""Make reference numbers of scvi-tools' extra encoder, decoder and embedding options.

    PEER_PYTHON tests/parity/make_scvi_options_golden.py        with scvi-tools installed; writes scvi_options_golden.json beside this script

As the other cases of ``data/golden/scvi.json``: options under our names, state dict under those of scvi-tools, inputs, and outputs in evaluation
mode with the latent at its posterior mean, float64.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from scvi import REGISTRY_KEYS as KEYS
from scvi.module import VAE
from torch import nn

OUT = Path(__file__).with_name("scvi_options_golden.json")
N, G, B = 7, 6, 3
SIZES = {"n_input": G, "n_batch": B, "n_labels": 1, "n_hidden": 5, "n_latent": 2}
#: What each case is called, our options, and those of scvi-tools.
CASES = (
    ("activations and biases", {"encoder_activation": "elu", "decoder_activation": "silu", "encoder_bias": False, "n_layers": 2},
     {"extra_encoder_kwargs": {"activation_fn": nn.ELU, "bias": False}, "extra_decoder_kwargs": {"activation_fn": nn.SiLU}, "n_layers": 2}),
    ("no activation", {"encoder_activation": "none", "decoder_activation": "none", "decoder_bias": False, "use_batch_norm": "none"},
     {"extra_encoder_kwargs": {"use_activation": False}, "extra_decoder_kwargs": {"use_activation": False, "bias": False}, "use_batch_norm": "none"}),
    ("smallest variance", {"var_eps": 0.05, "var_activation": "softplus", "gene_likelihood": "nb"},
     {"extra_encoder_kwargs": {"var_eps": 0.05}, "var_activation": nn.functional.softplus, "gene_likelihood": "nb"}),
    ("embedding with a limit", {"batch_representation": "embedding", "batch_embedding_dim": 4, "batch_embedding_max_norm": 0.7,
                                "batch_embedding_norm_type": 1.0, "batch_embedding_scale_grad": True},
     {"batch_representation": "embedding",
      "batch_embedding_kwargs": {"embedding_dim": 4, "max_norm": 0.7, "norm_type": 1.0, "scale_grad_by_freq": True}}),
)  # fmt: skip


def plain(state: dict) -> dict:
    return {name: tensor.detach().double().tolist() for name, tensor in state.items()}


def main() -> None:
    found = []
    for number, (name, ours, theirs) in enumerate(CASES):
        torch.manual_seed(number)
        rng = np.random.default_rng(number)
        module = VAE(**SIZES, **theirs).double().eval()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm1d):
                layer.running_mean.copy_(torch.tensor(rng.normal(size=layer.num_features)))
                layer.running_var.copy_(torch.tensor(rng.uniform(0.5, 2, layer.num_features)))
        state = plain(module.state_dict())
        x = rng.poisson(2.0, (N, G)).astype(float)
        batch = rng.integers(0, B, (N, 1))
        tensors = {KEYS.X_KEY: torch.tensor(x), KEYS.BATCH_KEY: torch.tensor(batch), KEYS.LABELS_KEY: torch.zeros(N, 1, dtype=torch.int64)}
        inference = module.inference(**module._get_inference_input(tensors))
        inference["z"] = inference["qz"].loc
        generative = module.generative(**module._get_generative_input(tensors, inference))
        loss = module.loss(tensors, inference, generative, kl_weight=1.0)
        gradients = {}
        if "embedding" in name:
            weight = module.get_embedding(KEYS.BATCH_KEY).weight
            loss.reconstruction_loss[KEYS.X_KEY if KEYS.X_KEY in loss.reconstruction_loss else "reconstruction_loss"].sum().backward()
            gradients = {"_embeddings_dict.batch.weight": weight.grad.tolist(), "limited": weight.detach().tolist()}
        out = {
            "qz_loc": inference["qz"].loc.tolist(), "qz_scale": inference["qz"].scale.tolist(), "px_rate": generative["px"].mu.tolist(),
            "recon_nll": next(iter(loss.reconstruction_loss.values())).tolist(), "kl_z": loss.kl_local["kl_divergence_z"].tolist(),
        }  # fmt: skip
        options = {"cls": "VAE", **SIZES, **ours}
        inputs = {"X": x.tolist(), "batch": batch.tolist()}
        found.append({"name": name, "options": options, "state": state, "tensors": inputs, "out": out, "gradients": gradients})
    OUT.write_text(json.dumps({"scvi-tools": version("scvi-tools"), "cases": found}) + "\n")


if __name__ == "__main__":
    main()
