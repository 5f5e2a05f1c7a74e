"""The layers of MIDAS: compiled loops equal torch's passes, derivatives equal finite differences, draws follow the generator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from cellweave.core.nn import compiled_call
from cellweave.core.nn.compiled_call import without_compiled
from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.feature_nll import feature_nll
from cellweave.core.nn.midas_discriminators import Discriminators
from cellweave.core.nn.midas_layers import BlockOutput, CountLinear, NormAct, kernels

needs_numba = pytest.mark.skipif(compiled_call.compiled() is None, reason="numba cannot be used here")
LN_MISH = {"norm": "ln", "activation": "mish", "dropout": 0.0}


def counts_of(n_cells: int, n_features: int, density: float, dtype=torch.float32) -> CountBatch:
    matrix = sparse.random(n_cells, n_features, density, format="csr", random_state=3, data_rvs=lambda n: np.random.default_rng(1).integers(1, 9, n))
    matrix.sort_indices()
    return CountBatch.from_csr(matrix.indptr, matrix.indices, matrix.data.astype(np.float64), n_features, dtype=dtype)


@needs_numba
@pytest.mark.parametrize("shape", [(37, 16), (5, 3, 40)])
def test_norm_mish_equals_the_passes(shape):
    torch.manual_seed(0)
    layer = NormAct(shape[-1], blocks=shape[1] if len(shape) == 3 else 1, **LN_MISH)
    for parameter in layer.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    x = (4 * torch.randn(shape)).requires_grad_()
    seen = torch.randn(shape)
    found = []
    for how in ("compiled", "passes"):
        layer.zero_grad()
        x.grad = None
        if how == "compiled":
            assert kernels(x) is not None
            out = layer(x)
        else:
            with without_compiled():
                assert kernels(x) is None
                out = layer(x)
        (out * seen).sum().backward()
        found.append([out.detach(), x.grad, layer.weight.grad, layer.bias.grad])
    for compiled, plain in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=2e-5, atol=2e-5)


@needs_numba
def test_dropout_leaves_out_its_share_and_follows_the_generator():
    layer = NormAct(64, norm="ln", activation="mish", dropout=0.2).train()
    x = torch.randn(500, 64)
    torch.manual_seed(5)
    first = layer(x)
    second = layer(x)
    torch.manual_seed(5)
    again = layer(x)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, second)
    dropped = (first == 0).float()
    assert 0.18 < float(dropped.mean()) < 0.22
    assert float((dropped.mean(0) - 0.2).abs().max()) < 0.1  # no column, and no row, is left out more than others
    assert float((dropped.mean(1) - 0.2).abs().max()) < 0.25
    both = float((dropped * (second == 0)).mean())
    assert both == pytest.approx(0.04, abs=0.01)  # two steps leave out different elements
    layer.eval()
    kept = first != 0
    torch.testing.assert_close(first[kept] * 0.8, layer(x)[kept], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("density", [0.05, 0.6])
@pytest.mark.parametrize("sizes", [(30,), (7, 13, 10)])
def test_count_linear_equals_a_dense_product_of_each_block(sizes, density):
    torch.manual_seed(1)
    layer, counts = CountLinear(sizes, 6), counts_of(9, 30, density)
    entries = counts.values.log1p()
    dense = counts.scatter(entries)
    out = layer(counts, entries)
    parts = [x @ w + b for x, w, b in zip(dense.split(list(sizes), 1), layer.weight.split(list(sizes)), layer.bias, strict=True)]
    expected = parts[0] if len(sizes) == 1 else torch.stack(parts, 1)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    seen = torch.randn_like(out)
    expected_by = torch.autograd.grad((expected * seen).sum(), [layer.weight, layer.bias])
    for how in (False, True):
        if how:
            with without_compiled():
                found = torch.autograd.grad((layer(counts, entries) * seen).sum(), [layer.weight, layer.bias])
        else:
            found = torch.autograd.grad((out * seen).sum(), [layer.weight, layer.bias], retain_graph=True)
        for one, other in zip(found, expected_by, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_derivatives_of_the_output_of_blocks():
    layer = BlockOutput(3, (2, 4, 1)).double()
    hidden = torch.randn(5, 3, 3, dtype=torch.float64, requires_grad=True)
    inputs = (hidden, layer.weight, layer.bias)
    assert torch.autograd.gradcheck(lambda h, w, b: torch.func.functional_call(layer, {"weight": w, "bias": b}, (h,)), inputs)


@pytest.mark.parametrize("kind", ["poisson", "bernoulli"])
@pytest.mark.parametrize("masked", [False, True])
def test_feature_nll_equals_torch_and_its_derivative_finite_differences(kind, masked):
    counts = counts_of(6, 12, 0.4, torch.float64)
    entries = counts.values if kind == "poisson" else torch.ones_like(counts.values)
    mask = (torch.rand(2, 12, generator=torch.Generator().manual_seed(3)) > 0.4).double() if masked else None
    rows = torch.arange(6) % 2 if masked else None
    eta = torch.randn(6, 12, dtype=torch.float64, requires_grad=True)
    dense = counts.scatter(entries)
    if kind == "poisson":
        each = torch.nn.functional.poisson_nll_loss(eta, dense, log_input=True, full=True, reduction="none")
    else:
        each = torch.nn.functional.binary_cross_entropy_with_logits(eta, dense, reduction="none")
    expected = (each * mask[rows] if masked else each).sum(1)
    torch.testing.assert_close(feature_nll(kind, counts, entries, eta, mask, rows), expected)
    assert torch.autograd.gradcheck(lambda e: feature_nll(kind, counts, entries, e, mask, rows), (eta,))
    narrow = counts.to("cpu", dtype=torch.float32)
    small = eta.detach().float().requires_grad_()
    compiled = feature_nll(kind, narrow, entries.float(), small, None if mask is None else mask.float(), rows)
    torch.testing.assert_close(compiled, expected.float(), rtol=1e-5, atol=1e-4)
    compiled.sum().backward()
    (by,) = torch.autograd.grad(expected.sum(), eta)
    torch.testing.assert_close(small.grad, by.float(), rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_not_finite_is_not_hidden():
    counts = counts_of(2, 12, 0.4)
    eta = torch.zeros(2, 12)
    eta[1, 3] = float("nan")
    assert not torch.isfinite(feature_nll("poisson", counts, counts.values, eta)).all()


@pytest.mark.parametrize("norm", ["ln", "bn", "none"])
def test_what_discriminators_learn_equals_the_traced_derivative(norm):
    torch.manual_seed(4)
    asked = Discriminators(8, (16, 12), {"joint": 4, "rna": 3, "adt": 1}, {**LN_MISH, "norm": norm})
    c, codes = torch.randn(2, 20, 8), torch.randint(0, 3, (2, 20))
    codes[1, :4] = -1
    asked.learn(["joint", "rna"], c, codes, 0.3, None)
    found = {key: None if p.grad is None else p.grad.clone() for key, p in asked.weights.items()}
    asked.zero_grad()
    with without_compiled():
        costs, logits = asked.costs(["joint", "rna"], c, codes, None)
        (costs.sum() * 0.3).backward()
    assert found["of_adt"] is None
    for key in ("of_joint", "of_rna"):
        torch.testing.assert_close(found[key], asked.weights[key].grad, rtol=1e-4, atol=1e-5)
    assert torch.isinf(logits[1, :, 3]).all()
    assert bool((costs[1, :4] == 0).all())
    fixed = c.clone().requires_grad_()
    asked.zero_grad()
    asked.costs(["joint", "rna"], fixed, codes, None, fixed=True)[0].sum().backward()
    assert fixed.grad is not None
    assert all(p.grad is None for p in asked.parameters())
