r"""The terms of the negative binomial in which the gamma function occurs, at the stored counts only.

For a count ``x`` and an inverse dispersion ``t``::

    value      = lgamma(x + t) - lgamma(t) - lgamma(x + 1)
    derivative = digamma(x + t) - digamma(t)              with respect to t

Both are 0 at ``x = 0``. For whole counts they are sums over ``j < x`` of ``log((t + j) / (j + 1))`` and of ``1 / (t + j)``,
which one table of count by feature holds for all cells of a minibatch; ``lgamma`` is left for the few counts above
:data:`TABLE_ROWS`. The sums are also more exact in float32 than a difference of two large ``lgamma``.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from cellweave.core.nn.counts import CountBatch

TABLE_ROWS = 24
# An entry of the table costs about a sixth of what lgamma and digamma cost at a stored count (one core, AVX-512).
TABLE_WORTH = 6
# Counts up to here have the logarithm of their factorial in a table.
FACTORIALS = 4096


def gamma_terms(
    counts: CountBatch, theta: Tensor, group: Tensor | None, index: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return value and derivative at the stored entries.

    Parameters
    ----------
    counts
        The counts.
    theta
        Inverse dispersions, positive: ``(n_features,)``; ``(n_groups, n_features)`` with ``group``; or
        ``(n_cells, n_features)``.
    group
        Row of ``theta`` for each cell, int64 ``(n_cells,)``, or None.
    index
        What :func:`theta_index` gives for these arguments, where the caller has it.

    Returns
    -------
    tuple of Tensor
        Value and derivative, each ``(nnz,)``.
    """
    index = theta_index(counts, theta, group) if index is None else index
    per_cell = theta.dim() == 2 and group is None
    n_tables = 1 if theta.dim() == 1 else int(theta.shape[0])
    worth_it = n_tables * TABLE_ROWS * counts.n_features < TABLE_WORTH * counts.nnz
    if counts.integer and counts.device.type == "cpu" and not per_cell and worth_it:
        return _by_table(counts, theta, index)
    at = theta.reshape(-1).index_select(0, index)
    x = counts.values
    return torch.lgamma(x + at) - torch.lgamma(at) - torch.lgamma(x + 1), torch.digamma(x + at) - torch.digamma(at)


def theta_index(counts: CountBatch, theta: Tensor, group: Tensor | None) -> Tensor:
    """Return the position in the flattened ``theta`` that belongs to each stored entry, int64 ``(nnz,)``."""
    if theta.dim() == 1:
        return counts.cols
    if group is None:
        return counts.flat
    return torch.add(counts.cols, group.index_select(0, counts.rows), alpha=counts.n_features)


@cache
def _steps(dtype: torch.dtype, rows: int) -> Tensor:
    return torch.arange(rows, dtype=dtype)[:, None]


def _by_table(counts: CountBatch, theta: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Look both terms up in tables of ``(rows + 1, theta.numel())``, and mend the counts above the table."""
    rows = max(1, min(counts.max_count, TABLE_ROWS))
    flat_theta = theta.reshape(-1)
    step = _steps(theta.dtype, rows)
    shifted = flat_theta + step
    values = shifted.new_zeros(rows + 1, flat_theta.shape[0])
    torch.cumsum(torch.log(shifted / (step + 1)), 0, out=values[1:])
    derivatives = shifted.new_zeros(rows + 1, flat_theta.shape[0])
    torch.cumsum(shifted.reciprocal_(), 0, out=derivatives[1:])
    place = torch.add(index, counts.values.clamp(max=rows).to(torch.int64), alpha=flat_theta.shape[0])
    value = values.view(-1).index_select(0, place)
    derivative = derivatives.view(-1).index_select(0, place)
    if counts.max_count > rows:
        _add_tail(counts, flat_theta, index, rows, value, derivative)
    return value, derivative


def _add_tail(
    counts: CountBatch, flat_theta: Tensor, index: Tensor, rows: int, value: Tensor, derivative: Tensor
) -> None:
    """Add in place, for counts above ``rows``, what lies between ``rows`` and the count."""
    # numpy: its comparison and search are several times as fast as torch's here, and the table is used on the CPU only.
    tail = torch.from_numpy(np.flatnonzero(counts.values.numpy() > rows))
    x, at = counts.values[tail], flat_theta[index[tail]]
    log_factorials = torch.lgamma(x + 1) - torch.lgamma(torch.full_like(x, rows + 1))
    value[tail] += torch.lgamma(x + at) - torch.lgamma(at + rows) - log_factorials
    derivative[tail] += torch.digamma(x + at) - torch.digamma(at + rows)


@cache
def _log_factorials() -> Tensor:
    return torch.lgamma(torch.arange(FACTORIALS + 1, dtype=torch.float64) + 1)


def log_factorial(counts: CountBatch) -> Tensor:
    """Return ``lgamma(x + 1)`` of the stored entries, ``(nnz,)``, by a table where they are small whole numbers."""
    x = counts.values
    if counts.device.type != "cpu" or not counts.integer or counts.max_count > FACTORIALS:
        return torch.lgamma(x + 1)
    return _log_factorials().to(x.dtype).index_select(0, x.to(torch.int64))
