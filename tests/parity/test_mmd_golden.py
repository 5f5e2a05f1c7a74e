"""The maximum mean discrepancy: golden numbers, a double loop, all pairs at once, and its edges."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellweave.core.nn.mmd import mmd, pairwise_mmd, squared_distances

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden" / "scvi.json").read_text())["mmd"]


def two(case: dict) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = (torch.tensor(case[name], dtype=torch.float64) for name in ("x", "y"))
    return torch.cat([x, y]), torch.cat([torch.zeros(len(x)), torch.ones(len(y))]).long()


@pytest.mark.parametrize("case", GOLDEN["pairs"])
def test_golden_pairs(case: dict) -> None:
    z, codes = two(case)
    assert float(mmd(z, codes, 2)) == pytest.approx(case["biased_sq"], abs=1e-12)
    assert float(mmd(z, codes, 2)) ** 0.5 == pytest.approx(case["biased_sqrt"], abs=1e-9)
    if min(torch.bincount(codes)) > 1:
        assert float(mmd(z, codes, 2, unbiased=True)) == pytest.approx(case["unbiased_sq"], abs=1e-12)
        assert float(mmd(z, codes, 2, mode="fast")) == pytest.approx(case["linear_halves"], abs=1e-12)


def test_golden_aggregate_of_unsorted_batches_with_gaps() -> None:
    z, codes = torch.tensor(GOLDEN["aggregate"]["z"], dtype=torch.float64), torch.tensor(GOLDEN["aggregate"]["batch"])
    assert float(mmd(z, codes, 7)) == pytest.approx(GOLDEN["aggregate"]["normal"], abs=1e-12)
    assert float(mmd(z, codes, 7, mode="fast")) == pytest.approx(GOLDEN["aggregate"]["fast"], abs=1e-12)


def by_loops(z: np.ndarray, codes: np.ndarray, scale: float = 1.0) -> dict[tuple[int, int], float]:
    def mean_kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.mean([[np.exp(-((a - b) ** 2).sum() / scale) for b in y] for a in x]))

    found = {}
    levels = sorted(set(codes.tolist()))
    for i in levels:
        for j in levels:
            if i < j:
                x, y = z[codes == i], z[codes == j]
                found[i, j] = mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)
    return found


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(4, 20), d=st.integers(1, 5))
def test_all_pairs_at_once_equal_the_double_loop(seed: int, n: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    z, codes = rng.normal(size=(n, d)), rng.integers(0, 5, n)
    loops = by_loops(z, codes)
    at_once, _ = pairwise_mmd(torch.from_numpy(z), torch.from_numpy(codes), 5)
    for (i, j), value in loops.items():
        assert float(at_once[i, j]) == pytest.approx(value, abs=1e-10)
    assert float(mmd(torch.from_numpy(z), torch.from_numpy(codes), 5, pairs="all")) == pytest.approx(sum(loops.values()), abs=1e-9)
    chain = sum(loops[pair] for pair in pairwise(sorted(set(codes.tolist()))))
    assert float(mmd(torch.from_numpy(z), torch.from_numpy(codes), 5)) == pytest.approx(chain, abs=1e-9)
    dimension = by_loops(z, codes, scale=d)
    got = mmd(torch.from_numpy(z), torch.from_numpy(codes), 5, pairs="all", kernel="dimension")
    assert float(got) == pytest.approx(sum(dimension.values()), abs=1e-9)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("mode", ["normal", "fast"])
def test_one_against_rest_of_two_batches_counts_the_pair_twice(mode: str, *, unbiased: bool) -> None:
    z, codes = torch.randn(14, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), torch.arange(14) % 2
    once = mmd(z, codes, 2, mode=mode, unbiased=unbiased)
    assert float(mmd(z, codes, 2, mode=mode, pairs="one_vs_rest", unbiased=unbiased)) == pytest.approx(2 * float(once), abs=1e-12)


@pytest.mark.parametrize("mode", ["normal", "fast"])
def test_one_batch_gives_zero_and_one_cell_never_nan(mode: str) -> None:
    z = torch.randn(6, 3)
    assert float(mmd(z, torch.zeros(6).long(), 4, mode=mode)) == 0.0
    lonely = mmd(z, torch.tensor([0, 0, 0, 0, 0, 3]), 4, mode=mode)
    assert torch.isfinite(lonely) and (mode == "normal" or float(lonely) == 0.0)
    assert float(mmd(z, torch.tensor([0, 0, 0, 0, 0, 3]), 4, unbiased=True)) == 0.0


@pytest.mark.parametrize("kernel", ["unit", "dimension", "median", "multiscale"])
@pytest.mark.parametrize("mode", ["normal", "fast"])
def test_it_tells_shifted_batches_from_mixed_ones_and_has_a_gradient(mode: str, kernel: str) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.arange(400) % 2
    mixed = torch.randn(400, 3, generator=generator)
    shifted = (mixed + 2.0 * codes[:, None]).requires_grad_()
    far, near = mmd(shifted, codes, 2, mode=mode, kernel=kernel), mmd(mixed, codes, 2, mode=mode, kernel=kernel)
    assert float(far.detach()) > 3 * abs(float(near))
    far.backward()
    assert torch.isfinite(shifted.grad).all() and shifted.grad.abs().sum() > 0


def test_unequal_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2 dimensions"):
        squared_distances(torch.zeros(4, 3), torch.zeros(4, 2))
