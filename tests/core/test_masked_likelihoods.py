"""The compiled loops of scVAEIT against the plain passes in float64, values and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from cellweave.core.nn.compiled_call import compiled, without_compiled
from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.masked_blocks import BlockInput, Dispersion, PassNorm
from cellweave.core.nn.masked_likelihoods import Ranges, Rows, masked_nll

needs_compiler = pytest.mark.skipif(compiled() is None, reason="numba is not at hand")


def _rows(dtype, *, n_groups=2, seed=0, extreme=False):
    rng = np.random.default_rng(seed)
    n_cells, n_features, n_rows = 9, 33, 17
    raw = np.where(rng.random((n_cells, n_features)) < 0.4, np.log1p(rng.gamma(1.0, 40.0, (n_cells, n_features))), 0)
    csr = sparse.csr_matrix(raw)
    values = CountBatch.from_csr(csr.indptr, csr.indices, csr.data, n_features, dtype=dtype)
    cell = torch.from_numpy(rng.integers(0, n_cells, n_rows))
    mask = torch.from_numpy((rng.random((n_rows, n_features)) < 0.7).astype(np.uint8))
    low = 1e-4 if extreme else 0.05
    dispersion = torch.from_numpy(np.exp(rng.uniform(np.log(low), np.log(6), (n_groups, n_features)))).to(dtype)
    logits = torch.from_numpy(rng.normal(0, 12 if extreme else 2, (n_rows, n_features))).to(dtype)
    rows = Rows(values, cell, mask, dispersion.requires_grad_(), torch.from_numpy(rng.integers(0, n_groups, n_rows)))
    flat = torch.zeros(n_features, dtype=dtype)
    return logits.requires_grad_(), rows, Ranges(flat, flat + 9.0, flat)


@needs_compiler
@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("n_groups", [1, 2, 80])
def test_compiled_negative_binomial_equals_the_plain_passes(n_groups, extreme):
    found = {}
    for dtype in (torch.float32, torch.float64):
        logits, rows, ranges = _rows(dtype, n_groups=n_groups, extreme=extreme)
        nll = masked_nll("nb", logits, rows, ranges)
        weights = torch.linspace(0.5, 2, len(nll), dtype=dtype)
        (nll * weights).sum().backward()
        found[dtype] = nll.detach().double(), logits.grad.double(), rows.dispersion.grad.double()
    for one, two in zip(found[torch.float32], found[torch.float64], strict=True):
        scale = two.abs().max()
        assert torch.isfinite(one).all()
        torch.testing.assert_close(one / scale, two / scale, rtol=3e-5, atol=3e-6)


@needs_compiler
def test_threads_do_not_change_the_compiled_result():
    logits, rows, ranges = _rows(torch.float32)
    one = masked_nll("nb", logits, rows, ranges)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        many = masked_nll("nb", logits, rows, ranges)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, many)


@needs_compiler
def test_without_gradients_the_value_is_the_same():
    logits, rows, ranges = _rows(torch.float32)
    with torch.no_grad():
        value = masked_nll("nb", logits.detach(), rows, ranges)
    torch.testing.assert_close(value, masked_nll("nb", logits, rows, ranges).detach())


@needs_compiler
def test_a_logit_that_is_not_a_number_reaches_the_loss():
    logits, rows, ranges = _rows(torch.float32)
    broken = logits.detach().clone()
    broken[3, 5] = float("nan")
    assert torch.isnan(masked_nll("nb", broken, rows, ranges)[3])


@pytest.mark.parametrize("kind", ["nb", "zinb", "bernoulli", "poisson", "gaussian"])
def test_entries_outside_the_mask_have_no_gradient_and_no_value(kind):
    logits, rows, ranges = _rows(torch.float64)
    binary = CountBatch.from_dense((rows.values.dense > 0).double())
    if kind == "bernoulli":
        rows, ranges = Rows(binary, rows.cell, rows.mask, rows.dispersion, rows.group), Ranges(ranges.low + 1e-5, ranges.low + 1 - 1e-5, ranges.mean)
    nll = masked_nll(kind, logits, rows, ranges)
    nll.sum().backward()
    assert not logits.grad[rows.mask == 0].any()
    counted = rows.mask.bool() & (rows.values.dense[rows.cell] != 0 if kind == "gaussian" else True)
    assert logits.grad[counted].abs().min() > 0
    moved = torch.where(rows.mask == 0, logits + 3, logits)
    torch.testing.assert_close(masked_nll(kind, moved, rows, ranges), nll)


@needs_compiler
def test_compiled_products_equal_the_dense_ones_in_blocks():
    torch.manual_seed(0)
    rng = np.random.default_rng(3)
    csr = sparse.random(11, 12, 0.3, "csr", random_state=rng, dtype=np.float32)
    values = CountBatch.from_csr(csr.indptr, csr.indices, csr.data, 12)
    layer = BlockInput((5, 4, 3), 6, 2, by_entries=True)
    out = layer(values)
    out.square().sum().backward()
    by_entries, layer.weight.grad = layer.weight.grad, None
    with without_compiled():
        dense = layer(values)
        dense.square().sum().backward()
    torch.testing.assert_close(out, dense)
    torch.testing.assert_close(by_entries, layer.weight.grad)


def test_dispersion_has_a_row_for_each_combination_of_levels_and_never_passes_its_maximum():
    torch.manual_seed(0)
    layer = Dispersion((3, 2), 0, 5, 0.7)
    codes = torch.tensor([[0, 1], [2, 0], [0, 1], [1, 1]])
    values, row = layer(codes, None)
    assert values.shape == (3, 5)
    assert torch.equal(row[0], row[2])
    direct = torch.nn.functional.softplus(layer.table(codes, None)).clamp(max=0.7)
    torch.testing.assert_close(values[row], direct)
    assert Dispersion((), 0, 5, 6.0)(torch.zeros(4, 0, dtype=torch.int64), None)[0].shape == (1, 5)


def test_norm_treats_each_pass_alone_and_keeps_two_sets_of_averages():
    norm, x = PassNorm(3), torch.randn(2, 50, 3) * torch.tensor([1.0, 5.0])[:, None, None]
    nobody = torch.zeros(2, 50, dtype=torch.int64)
    out = norm(x, nobody)
    torch.testing.assert_close(out.mean(1), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(1, correction=0), torch.ones(2, 3), atol=1e-2, rtol=0)
    torch.testing.assert_close(norm.running_var, x.var(1, correction=0))
    other = torch.randn(2, 50, 3)
    norm(other, nobody)
    torch.testing.assert_close(norm.running_mean, (x.mean(1) + other.mean(1)) / 2)
    for _ in range(20):
        norm(other, nobody)
    torch.testing.assert_close(norm.running_mean, other.mean(1), atol=0.2, rtol=0)
    norm.eval()
    partly = torch.tensor([[0, 1] * 25, [1, 1] * 25])
    for which in (0, 1):
        scale = torch.rsqrt(norm.running_var[which] + 1e-3)
        expected = (x[0] - norm.running_mean[which]) * scale
        torch.testing.assert_close(norm(x, partly)[0, which::2], expected[which::2])
