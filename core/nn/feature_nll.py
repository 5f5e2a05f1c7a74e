"""Negative log-likelihoods of each cell from what a decoder gives for each feature, with masks; dense only where every element must be.

``poisson`` takes the log rate and includes Stirling's constant of counts above 1 (torch's ``PoissonNLLLoss`` with ``full``); ``bernoulli`` takes
the logit. Both read the counts by their stored entries.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.midas_layers import in_parts, kernels

Kind = Literal["poisson", "bernoulli"]
HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)


def feature_nll(kind: Kind, counts: CountBatch, entries: Tensor, eta: Tensor, mask: Tensor | None = None, mask_row: Tensor | None = None) -> Tensor:
    """Return the negative log-likelihood of each cell.

    Parameters
    ----------
    kind
        ``"poisson"`` with ``eta`` the log rate, or ``"bernoulli"`` with ``eta`` the logit.
    counts
        Where the stored entries lie.
    entries
        Their values ``(nnz,)``, counts or 0 and 1.
    eta
        ``(n_cells, n_features)``.
    mask
        Which features count, 0 or 1, ``(n_groups, n_features)``; None for all.
    mask_row
        Row of ``mask`` for each cell, int64 ``(n_cells,)``.

    Returns
    -------
    Tensor
        Sum over the features, ``(n_cells,)``.
    """
    entries = entries.to(eta.dtype)
    module = kernels(eta)
    if module is not None:
        return _CountNll.apply(eta, counts, entries, kind, mask, mask_row, module)  # type: ignore[no-untyped-call]
    dense = torch.exp(eta) if kind == "poisson" else softplus(eta)
    at = counts.gather(eta)
    if mask is not None:
        assert mask_row is not None
        measured = mask.to(eta.dtype)[mask_row]
        dense = dense * measured
        entries = entries * counts.gather(measured)
    nll = dense.sum(1) - counts.row_sum(entries * at)
    return nll + counts.row_sum(stirling(entries)) if kind == "poisson" else nll


def stirling(x: Tensor) -> Tensor:
    """Return ``x log x - x + log(2 pi x) / 2`` where ``x`` is above 1, else 0 (torch's approximation of ``log x!``)."""
    safe = x.clamp(min=1.0)
    return torch.where(x > 1, safe * safe.log() - safe + 0.5 * safe.log() + HALF_LOG_2_PI, torch.zeros_like(x))


class _CountNll(torch.autograd.Function):
    """Costs and derivatives by the compiled loop."""

    @staticmethod
    def forward(
        ctx: Any, eta: Tensor, counts: CountBatch, entries: Tensor, kind: Kind, mask: Tensor | None, mask_row: Tensor | None, module: ModuleType  # type: ignore[override]
    ) -> Tensor:
        """Return the negative log-likelihood of each cell, ``(n_cells,)``."""
        eta = eta.contiguous()
        gradients = ctx.needs_input_grad[0]
        nll = eta.new_empty(len(eta))
        by_eta = torch.empty_like(eta) if gradients else None
        starts, cols = counts.row_starts.numpy(), counts.cols.contiguous().numpy()
        table = np.zeros((1, 0), np.float32) if mask is None else mask.float().contiguous().numpy()
        rows = np.zeros(len(eta), np.int64) if mask_row is None else mask_row.contiguous().numpy()
        values, matrix, costs = entries.contiguous().numpy(), eta.detach().numpy(), nll.numpy()
        wrong: list[int] = []

        def part(a: int, z: int) -> None:
            out = np.empty((1, matrix.shape[1]), np.float32) if by_eta is None else by_eta.numpy()[a:z]
            if not module.count_nll(
                matrix[a:z], kind == "poisson", starts[a : z + 1], cols, values, mask is not None, table, rows[a:z], costs[a:z], gradients, out
            ):
                wrong.append(a)

        in_parts(len(eta), part, eta.shape[1])
        if wrong:
            message = "a count lies in a column that the matrix does not have"
            raise IndexError(message)
        ctx.by_eta = by_eta
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Return the derivative by ``eta``; it is used up, so a second call is refused."""
        by_eta, ctx.by_eta = ctx.by_eta, None
        if by_eta is None:
            message = "the derivative was already used"
            raise RuntimeError(message)
        return by_eta.mul_(g[:, None]), None, None, None, None, None, None
