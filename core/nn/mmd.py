"""Maximum mean discrepancy between the latents of batches (Gretton et al., JMLR 13 (2012) 723-773).

With an indicator matrix ``S`` (cells x levels) and the kernel matrix ``K`` of a minibatch, ``A = S' K S`` holds the sums
of all pairs of levels at once, so that one product serves every pair and nothing waits for the device.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Mode = Literal["normal", "fast"]
Kernel = Literal["unit", "dimension", "median", "multiscale", "widths"]
Pairs = Literal["sequential", "all", "one_vs_rest"]
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
#: Widths of scVAEIT's kernel, ``exp(-d / (2 width))``.
WIDTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 100.0, 1e3, 1e4, 1e5, 1e6)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return the squared distances of the rows of ``x`` ``(m, d)`` and ``y`` ``(n, d)``, ``(m, n)``, never below 0.

    Raises
    ------
    ValueError
        Where the rows differ in length.
    """
    if x.shape[-1] != y.shape[-1]:
        message = f"the two sets have {x.shape[-1]} and {y.shape[-1]} dimensions"
        raise ValueError(message)
    return (x.square().sum(-1)[:, None] + y.square().sum(-1)[None, :] - 2 * x @ y.T).clamp_min(0)


def kernel_of(distances: Tensor, n_dims: int, kernel: Kernel, reference: Tensor) -> Tensor:
    """Return the kernel at squared distances.

    Parameters
    ----------
    distances
        Squared distances, any shape.
    n_dims
        Dimensions of the latent.
    kernel
        ``"unit"``: ``exp(-d)``, as published; ``"dimension"``: ``exp(-d / n_dims)``; ``"median"``: ``exp(-d / median)``;
        ``"multiscale"``: the mean over five widths around the median; ``"widths"``: the mean over the 19 fixed widths of scVAEIT.
    reference
        Squared distances whose median is the scale, taken as a constant.
    """
    if kernel == "unit":
        return torch.exp(-distances)
    if kernel == "dimension":
        return torch.exp(-distances / n_dims)
    if kernel == "widths":
        return torch.stack([torch.exp(distances / (-2 * width)) for width in WIDTHS]).mean(0)
    scale = reference.detach().flatten().median().clamp_min(1e-12)
    if kernel == "median":
        return torch.exp(-distances / scale)
    return torch.stack([torch.exp(-distances / (scale * width)) for width in SCALES]).mean(0)


def chosen_pairs(present: Tensor, pairs: Pairs) -> Tensor:
    """Return which pairs of levels are compared, bool ``(n_levels, n_levels)``, above the diagonal.

    Parameters
    ----------
    present
        Levels with at least one cell, bool ``(n_levels,)``.
    pairs
        ``"sequential"``: each present level with the next present one; ``"all"``: every two.
    """
    both = torch.triu(present[:, None] & present[None, :], diagonal=1)
    if pairs == "all":
        return both
    rank = present.long().cumsum(0)
    return both & (rank[None, :] - rank[:, None] == 1)


def mmd(
    z: Tensor,
    codes: Tensor,
    n_levels: int,
    *,
    mode: Mode = "normal",
    kernel: Kernel = "unit",
    pairs: Pairs = "sequential",
    unbiased: bool = False,
) -> Tensor:
    """Return the sum of the squared discrepancies over the pairs of levels in a minibatch, a scalar.

    Parameters
    ----------
    z
        Latents ``(n_cells, n_latent)``.
    codes
        Level of each cell, int64 ``(n_cells,)``.
    n_levels
        Number of levels.
    mode
        ``"normal"``: equation 5 squared (all pairs of cells); ``"fast"``: Lemma 14, linear in the number of cells, where the first
        half of each level's cells is paired with the second.
    kernel
        As in :func:`kernel_of`.
    pairs
        As in :func:`chosen_pairs`; ``"one_vs_rest"`` compares each level with all other cells.
    unbiased
        Leave out the diagonals of the normal mode (equation 3); a level of one cell then contributes 0.

    Returns
    -------
    Tensor
        Scalar; 0 where a single level is present. A pair of which one level has fewer than two cells adds 0 in the fast mode.
    """
    if mode == "fast":
        return _fast(z, codes, n_levels, kernel, pairs)
    per_pair, chosen = pairwise_mmd(z, codes, n_levels, kernel=kernel, pairs=pairs, unbiased=unbiased)
    return torch.where(chosen, per_pair, torch.zeros_like(per_pair)).sum()


def pairwise_mmd(
    z: Tensor, codes: Tensor, n_levels: int, *, kernel: Kernel = "unit", pairs: Pairs = "sequential", unbiased: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the squared discrepancy of every pair and which pairs count.

    Returns
    -------
    values
        ``(n_levels, n_levels)``; with ``"one_vs_rest"`` the diagonal holds each level against the rest.
    chosen
        bool, the same shape.
    """
    distances = squared_distances(z, z)
    gram = kernel_of(distances, z.shape[1], kernel, distances)
    member = torch.nn.functional.one_hot(codes, n_levels).to(z.dtype)
    size = member.sum(0)
    sums = member.T @ gram @ member
    if pairs == "one_vs_rest":
        return _one_against_rest(sums, size, gram, unbiased=unbiased)
    within, enough = _within(sums.diagonal(), size, gram.diagonal() @ member, unbiased=unbiased)
    across = sums / (size[:, None] * size[None, :]).clamp_min(1)
    return within[:, None] + within[None, :] - 2 * across, chosen_pairs(enough, pairs)


def _within(sums: Tensor, size: Tensor, diagonal: Tensor, *, unbiased: bool) -> tuple[Tensor, Tensor]:
    """Return the mean kernel within each level, and which levels have cells enough for it."""
    if unbiased:
        return (sums - diagonal) / (size * (size - 1)).clamp_min(1), size >= 2
    return sums / (size * size).clamp_min(1), size >= 1


def _one_against_rest(sums: Tensor, size: Tensor, gram: Tensor, *, unbiased: bool) -> tuple[Tensor, Tensor]:
    total, n_cells = sums.sum(), size.sum()
    own, with_all = sums.diagonal(), sums.sum(1)
    trace = gram.diagonal().sum()
    mean_diagonal = trace / n_cells
    within, enough = _within(own, size, mean_diagonal * size, unbiased=unbiased)
    rest_size = n_cells - size
    rest, rest_enough = _within(total - 2 * with_all + own, rest_size, mean_diagonal * rest_size, unbiased=unbiased)
    across = (with_all - own) / (size * rest_size).clamp_min(1)
    return torch.diag(within + rest - 2 * across), torch.diag(enough & rest_enough)


def _fast(z: Tensor, codes: Tensor, n_levels: int, kernel: Kernel, pairs: Pairs) -> Tensor:
    """Lemma 14 over the chosen pairs, each with the first cells of both levels in their order in the minibatch."""
    order = torch.argsort(codes, stable=True)
    size = torch.bincount(codes, minlength=n_levels)
    start = torch.cumsum(size, 0) - size
    if pairs == "one_vs_rest":
        return _fast_against_rest(z, codes, n_levels, kernel)
    first, second = chosen_pairs(size > 0, pairs).nonzero(as_tuple=True)
    half = torch.minimum(size[first], size[second]) // 2
    longest = int(half.max()) if half.numel() else 0
    if longest == 0:
        return z.new_zeros(())
    step = torch.arange(longest, device=z.device)
    valid = step[None, :] < half[:, None]

    def rows(level: Tensor, offset: Tensor) -> Tensor:
        place = start[level][:, None] + step[None, :] + offset[:, None]
        return z[order[torch.where(valid, place, torch.zeros_like(place))]]

    zero = torch.zeros_like(half)
    x, x2, y, y2 = rows(first, zero), rows(first, half), rows(second, zero), rows(second, half)
    return _h_statistic(x, x2, y, y2, valid, half, kernel)


def _fast_against_rest(z: Tensor, codes: Tensor, n_levels: int, kernel: Kernel) -> Tensor:
    """Lemma 14 of each level against all other cells, all levels at once."""
    own = codes[None, :] == torch.arange(n_levels, device=z.device)[:, None]
    # Each row has the rest in their order first, then the cells of the level in theirs.
    order = torch.argsort(own.to(torch.int8), dim=1, stable=True)
    size = own.sum(1)
    rest = len(codes) - size
    half = torch.minimum(size, rest) // 2
    longest = int(half.max()) if half.numel() else 0
    if longest == 0:
        return z.new_zeros(())
    step = torch.arange(longest, device=z.device)
    valid = step[None, :] < half[:, None]

    def rows(offset: Tensor) -> Tensor:
        place = step[None, :] + offset[:, None]
        return z[order.gather(1, torch.where(valid, place, torch.zeros_like(place)))]

    zero = torch.zeros_like(half)
    return _h_statistic(rows(rest), rows(rest + half), rows(zero), rows(half), valid, half, kernel)


def _h_statistic(x: Tensor, x2: Tensor, y: Tensor, y2: Tensor, valid: Tensor, half: Tensor, kernel: Kernel) -> Tensor:
    """Sum over pairs of the mean of ``k(x,x') + k(y,y') - k(x,y') - k(x',y)``."""
    couples = torch.stack([(x - x2), (y - y2), (x - y2), (x2 - y)]).square().sum(-1)
    values = kernel_of(couples, x.shape[-1], kernel, couples[:, valid])
    h = values[0] + values[1] - values[2] - values[3]
    return (torch.where(valid, h, torch.zeros_like(h)).sum(1) / half.clamp_min(1)).sum()
