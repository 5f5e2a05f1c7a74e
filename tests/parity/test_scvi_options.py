"""Extra options of encoder, decoder and batch embedding against scvi-tools; ``make_scvi_options_golden.py`` says how the numbers were made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_scvi import minibatch, network

CASES = json.loads(Path(__file__).with_name("scvi_options_golden.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_the_options_do_what_they_do_there(case):
    model, batch = network(case["options"], case["state"], torch.float64).eval(), minibatch(case["tensors"], torch.float64)
    posterior, out = model.posterior(batch), case["out"]
    np.testing.assert_allclose(posterior.mean.detach(), out["qz_loc"], rtol=1e-9)
    np.testing.assert_allclose(posterior.var.sqrt().detach(), out["qz_scale"], rtol=1e-9)
    generated = model.generate(batch, posterior.mean, model.observed_library(batch))
    np.testing.assert_allclose(generated.mu.detach(), out["px_rate"], rtol=1e-8)
    terms = model.terms_at(batch, posterior, posterior.mean, None)
    np.testing.assert_allclose(terms["reconstruction"].detach(), out["recon_nll"], rtol=1e-8)
    np.testing.assert_allclose(terms["kl_z"].detach(), out["kl_z"], rtol=1e-9)


def test_gradients_of_the_batch_embedding_are_theirs():
    case = next(case for case in CASES if case["gradients"])
    model, batch = network(case["options"], case["state"], torch.float64).eval(), minibatch(case["tensors"], torch.float64)
    posterior = model.posterior(batch)
    model.terms_at(batch, posterior, posterior.mean, None)["reconstruction"].sum().backward()
    np.testing.assert_allclose(model.batch_embedding.weight.grad, case["gradients"]["_embeddings_dict.batch.weight"], rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(model.batch_embedding.weight.detach(), case["gradients"]["limited"], rtol=1e-9)
