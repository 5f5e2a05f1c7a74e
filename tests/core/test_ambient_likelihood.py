"""The compiled loop of the ambient likelihood against the plain formula, in values and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from cellweave.core.nn.ambient_likelihood import ambient_nll, loops, usable
from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.likelihoods import gamma_poisson_log_prob

N, G = 37, 61


def arguments(n_background: int, n_factor: int, n_theta: int, drawn: bool):
    torch.manual_seed(5)
    counts = np.random.default_rng(2).negative_binomial(0.6, 0.1, (N, G)).astype(np.float32)
    counts[3] = 0
    counts[4, 7] = 900  # beyond the multiplied-out gamma terms
    leaves = {
        "logits": torch.randn(N, G) * 3, "library": torch.rand(N) + 0.5, "background": torch.rand(n_background, G) * 0.3,
        "factor": torch.rand(n_factor, G) + 0.5, "log_theta": torch.randn(n_theta, G), "sd": torch.rand(n_theta, G) * 0.4,
    }  # fmt: skip
    leaves = {name: value.requires_grad_() for name, value in leaves.items()}
    rows = [torch.randint(n, (N,)) for n in (n_background, n_factor, n_theta)]
    return CountBatch.from_dense(counts), leaves, rows, torch.randn(N, G) if drawn else None


@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 2, 4)])
@pytest.mark.parametrize("threads", [1, 2])
def test_values_and_gradients(sizes, drawn, threads) -> None:
    if loops() is None:
        pytest.skip("numba is switched off")
    counts, leaves, rows, noise = arguments(*sizes, drawn)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert usable(leaves["logits"], leaves["log_theta"])
        tables = [(leaves[name], row) for name, row in zip(("background", "factor", "log_theta"), rows, strict=True)]
        found = ambient_nll(counts, leaves["logits"], leaves["library"], *tables, leaves["sd"] if drawn else None, noise)
        weights = torch.linspace(-1, 2, N)
        used = {name: leaf for name, leaf in leaves.items() if drawn or name != "sd"}
        gradients = torch.autograd.grad((found * weights).sum(), list(used.values()))
        with torch.no_grad():
            alone = ambient_nll(counts, leaves["logits"], leaves["library"], *tables, leaves["sd"] if drawn else None, noise)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found.detach(), alone)
    wide = {name: leaf.detach().double().requires_grad_() for name, leaf in used.items()}
    a, f, d = rows
    mean = wide["library"][:, None] * (softplus(wide["logits"]) + wide["background"][a]) * wide["factor"][f]
    log_theta = wide["log_theta"][d] + (wide["sd"][d] * noise.double() if drawn else 0)
    expected = -gamma_poisson_log_prob(counts.dense.double(), mean, log_theta.exp()).sum(1)
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=2e-4)
    for name, own, other in zip(used, gradients, torch.autograd.grad((expected * weights).sum(), list(wide.values())), strict=True):
        assert (own.double() - other).abs().max() < 5e-5 * other.abs().max(), name


def test_what_is_not_finite_reaches_the_loss() -> None:
    if loops() is None:
        pytest.skip("numba is switched off")
    counts, leaves, rows, noise = arguments(1, 1, 1, True)
    tables = [(leaves[name].detach(), row) for name, row in zip(("background", "factor", "log_theta"), rows, strict=True)]
    for bad in (float("nan"), float("inf")):
        logits = leaves["logits"].detach().clone()
        logits[5, 6] = bad
        found = ambient_nll(counts, logits, leaves["library"].detach(), *tables, leaves["sd"].detach(), noise)
        assert not torch.isfinite(found[5]) and torch.isfinite(found[:5]).all()


def test_a_row_that_a_table_does_not_have_is_refused() -> None:
    if loops() is None:
        pytest.skip("numba is switched off")
    counts, leaves, rows, noise = arguments(1, 1, 1, True)
    rows[0] = rows[0] + 1
    tables = [(leaves[name], row) for name, row in zip(("background", "factor", "log_theta"), rows, strict=True)]
    with pytest.raises(IndexError, match="none of the 1 rows"):
        ambient_nll(counts, leaves["logits"], leaves["library"], *tables, leaves["sd"], noise)
