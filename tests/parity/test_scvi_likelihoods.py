"""Likelihoods and divergences against the golden numbers of scvi-tools and Pyro, values and gradients, in float64."""

import numpy as np
import pytest
import torch
from golden_scvi import golden

from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.kl import kl_log_normal, kl_normal, kl_standard_normal
from cellweave.core.nn.likelihoods import gamma_poisson_log_prob, nb_log_prob, zinb_log_prob
from cellweave.core.nn.sparse_likelihoods import nb_nll


def _tensors(table, *names):
    return [torch.tensor(np.ravel(table[name]), dtype=torch.float64) for name in names]


def _check(value, wanted, arguments, gradients):
    # The golden points run to mu = 1e-8 and theta = 1e6, where the form with eps is a difference of large numbers.
    np.testing.assert_allclose(value.detach().numpy(), wanted.numpy(), rtol=1e-9, atol=1e-9)
    found = torch.autograd.grad(value.sum(), arguments)
    for ours, theirs in zip(found, gradients, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("form", ["plain", "fast"])
def test_negative_binomial(form):
    x, mu, theta, wanted, dmu, dtheta = _tensors(
        golden()["likelihood"]["nb"], "x", "mu", "theta", "log_prob", "dmu", "dtheta"
    )
    mu.requires_grad_(), theta.requires_grad_()
    value = nb_log_prob(x, mu, theta) if form == "plain" else _fast(x, mu, theta)
    _check(value, wanted, (mu, theta), (dmu, dtheta))


@pytest.mark.parametrize("form", ["plain", "fast"])
def test_zero_inflated_negative_binomial(form):
    names = ("x", "mu", "theta", "zi_logits", "log_prob", "dmu", "dtheta", "dzi")
    x, mu, theta, logits, wanted, *gradients = _tensors(golden()["likelihood"]["zinb"], *names)
    mu.requires_grad_(), theta.requires_grad_(), logits.requires_grad_()
    value = zinb_log_prob(x, mu, theta, logits) if form == "plain" else _fast(x, mu, theta, zi_logits=logits[:, None])
    _check(value, wanted, (mu, theta, logits), gradients)


@pytest.mark.parametrize("form", ["plain", "fast"])
def test_gamma_poisson(form):
    x, mu, theta, wanted = _tensors(golden()["likelihood"]["gamma_poisson"], "x", "mu", "theta", "log_prob")
    value = gamma_poisson_log_prob(x, mu, theta) if form == "plain" else _fast(x, mu, theta, eps=0.0)
    np.testing.assert_allclose(value.numpy(), wanted.numpy(), rtol=1e-9, atol=1e-9)


def _fast(x, mu, theta, **more):
    """Each golden point as a cell with one feature."""
    counts = CountBatch.from_dense(x[:, None].numpy(), dtype=torch.float64)
    return -nb_nll(counts, mu[:, None], theta[:, None], **more)


def test_divergences():
    table = golden()["kl"]
    q_mean, q_sd, p_mean, p_sd = _tensors(table, "q_loc", "q_scale", "p_loc", "p_scale")
    for ours, name in (
        (kl_normal(q_mean, q_sd, p_mean, p_sd), "normal"),
        (kl_standard_normal(q_mean, q_sd**2), "normal_std"),
        (kl_log_normal(q_mean, q_sd, p_mean, p_sd), "lognormal"),
    ):
        np.testing.assert_allclose(ours.numpy(), table[name], rtol=1e-12)
