r"""Negative log-likelihoods of each cell, computed densely only where every element must be.

The same values and gradients as the sums of :mod:`cellweave.core.nn.likelihoods`, as autograd functions with their
backward written by hand. With ``D = mu / (theta + eps)``, ``L = log(1 + D)`` and ``R = theta / (theta + mu + eps)``, a count of 0
costs ``theta * L``, whose derivatives are ``R`` for ``mu`` and ``L - R * D`` for ``theta``. What a count above 0 adds is computed
at the stored entries only: the gamma functions (:mod:`cellweave.core.nn.gamma_terms`), ``x * log((mu + eps) / (theta + mu + eps))``
and their derivatives.

Zero inflation, with ``M = logit + theta * L``, makes the cost of a zero ``softplus(-logit) - softplus(-M)``. Its two logistic
functions give value and gradients; the logarithms that are left are of numbers between 1/2 and 2, so that a product of many can be taken
before the logarithm.

What the backward needs is computed in the forward, where the intermediate results are still in the cache, and only
where some argument wants a gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.gamma_terms import gamma_terms, theta_index
from cellweave.core.nn.likelihoods import EPS

# A product of this many factors between 1/2 and 2 stays far inside the range of float32.
PRODUCT = 64


def nb_nll(counts: CountBatch, mu: Tensor, theta: Tensor, *, group: Tensor | None = None, eps: float = EPS) -> Tensor:
    """Return the negative log-likelihood of each cell under the negative binomial.

    Parameters
    ----------
    counts
        The counts.
    mu
        Means ``(n_cells, n_features)``.
    theta
        Inverse dispersions: ``(n_features,)``; ``(n_groups, n_features)`` with ``group``; or ``(n_cells, n_features)``.
    group
        Row of ``theta`` for each cell, int64 ``(n_cells,)``.
    eps
        As in :func:`cellweave.core.nn.likelihoods.nb_log_prob`; 0 gives the exact gamma-Poisson, for positive ``mu``.

    Returns
    -------
    Tensor
        Sum over the features, ``(n_cells,)``.
    """
    with torch.autocast(mu.device.type, enabled=False):
        return _NegativeBinomial.apply(mu, theta, None, group, counts, eps)


def zinb_nll(
    counts: CountBatch,
    mu: Tensor,
    theta: Tensor,
    zi_logits: Tensor,
    *,
    group: Tensor | None = None,
    eps: float = EPS,
) -> Tensor:
    """Return the negative log-likelihood of each cell under the zero-inflated negative binomial.

    Parameters
    ----------
    counts, mu, theta, group, eps
        As in :func:`nb_nll`.
    zi_logits
        Logits of an extra zero ``(n_cells, n_features)``.

    Returns
    -------
    Tensor
        Sum over the features, ``(n_cells,)``.
    """
    with torch.autocast(mu.device.type, enabled=False):
        return _NegativeBinomial.apply(mu, theta, zi_logits, group, counts, eps)


def poisson_nll(counts: CountBatch, rate: Tensor) -> Tensor:
    """Return the negative log-likelihood of each cell under the Poisson distribution.

    Parameters
    ----------
    counts
        The counts.
    rate
        Rates ``(n_cells, n_features)``.

    Returns
    -------
    Tensor
        Sum over the features, ``(n_cells,)``.
    """
    x = counts.values
    at_entries = torch.xlogy(x, counts.gather(rate)) - torch.lgamma(x + 1)
    return rate.sum(1) - counts.row_sum(at_entries)


class _NegativeBinomial(torch.autograd.Function):
    """Both forms of the negative binomial; zero inflation where logits are given."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        mu: Tensor,
        theta: Tensor,
        zi_logits: Tensor | None,
        group: Tensor | None,
        counts: CountBatch,
        eps: float,
    ) -> Tensor:
        spread = theta if group is None else theta.index_select(0, group)
        relative = mu / (spread + eps)
        log_relative = torch.log1p(relative)
        inflation = None if zi_logits is None else _Inflation(counts, spread, log_relative, zi_logits)
        dense = _weighted_row_sum(log_relative, spread) if inflation is None else inflation.row_sum

        index = theta_index(counts, theta, group)
        at = theta.reshape(-1).index_select(0, index)
        x, mean = counts.values, counts.gather(mu)
        total = mean + at + eps
        value, derivative = gamma_terms(counts, theta, group, index)
        stored = torch.log((mean + eps) / total).mul_(x).add_(value)
        if inflation is not None:
            stored.add_(inflation.at_entries)
        nll = dense - counts.row_sum(stored)

        if any(ctx.needs_input_grad[:3]):
            ratio = spread / (mu + spread).add_(eps)
            by_theta = torch.addcmul(log_relative, ratio, relative, value=-1)
            by_logits = None
            if inflation is not None:
                ratio.mul_(inflation.weight)
                by_theta.mul_(inflation.weight)
                by_logits = inflation.by_logits()
            by_mu = ratio.view(-1).scatter_add_(0, counts.flat, -x * at / ((mean + eps) * total)).view(mu.shape)
            ctx.save_for_backward(by_mu, by_theta, by_logits, x / total - derivative, group)
            ctx.counts, ctx.theta_index, ctx.theta_shape = counts, index, theta.shape
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        by_mu, by_theta, by_logits, stored, group = ctx.saved_tensors
        column = grad[:, None]
        grad_mu = by_mu * column if ctx.needs_input_grad[0] else None
        grad_logits = by_logits * column if ctx.needs_input_grad[2] else None
        grad_theta = None
        if ctx.needs_input_grad[1]:
            if len(ctx.theta_shape) == 1:
                grad_theta = torch.mv(by_theta.t(), grad)
            elif group is None:
                grad_theta = by_theta * column
            else:
                grad_theta = by_theta.new_zeros(ctx.theta_shape).index_add_(0, group, by_theta * column)
            weighted = stored * grad.index_select(0, ctx.counts.rows)
            grad_theta.view(-1).scatter_add_(0, ctx.theta_index, weighted)
        return grad_mu, grad_theta, grad_logits, None, None, None


class _Inflation:
    """What zero inflation changes: the cost of zeros, and the share of each element's gradient that remains.

    Attributes
    ----------
    row_sum
        Dense part of the negative log-likelihood, ``(n_cells,)``.
    at_entries
        Log-likelihood to add at the stored entries, ``(nnz,)``.
    weight
        Probability that a zero came from the counts, and 1 where the count is not 0, ``(n_cells, n_features)``.
    """

    __slots__ = ("at_entries", "no_zero", "p", "row_sum", "weight")

    def __init__(self, counts: CountBatch, theta: Tensor, log_relative: Tensor, zi_logits: Tensor) -> None:
        odds = torch.addcmul(zi_logits, theta, log_relative)
        self.p = torch.sigmoid(zi_logits)
        self.no_zero = torch.sigmoid(odds)
        # Where the count is not 0 the likelihood has -odds in place of softplus(-odds).
        at_entries = counts.gather(odds).clamp_(min=0)
        if counts.stores_zeros:
            at_entries.mul_(counts.values > 0)
            self.no_zero.masked_fill_(counts.dense != 0, 0.0)
        else:
            self.no_zero.view(-1).index_fill_(0, counts.flat, 0.0)
        self.at_entries = at_entries.neg_()
        self.weight = 1 - self.no_zero
        # softplus(-a) = max(-a, 0) - log(max(s, 1 - s)) with s the logistic function of a.
        larger = torch.maximum(self.no_zero, self.weight).div_(torch.maximum(self.p, 1 - self.p))
        linear = odds.clamp_(max=0).sub_(zi_logits.clamp(max=0)).sum(1)
        self.row_sum = linear + _log_product(larger)

    def by_logits(self) -> Tensor:
        """Return the derivative of the negative log-likelihood with respect to the logits."""
        return self.p.sub_(self.no_zero)


def _weighted_row_sum(matrix: Tensor, weights: Tensor) -> Tensor:
    """Return the row sums of ``matrix * weights``, the weights per column or per element."""
    return torch.mv(matrix, weights) if weights.dim() == 1 else (matrix * weights).sum(1)


def _log_product(factors: Tensor) -> Tensor:
    """Return the sum of the logarithms of each row of numbers between 1/2 and 2; overwrites its argument."""
    width, taken = factors.shape[1], 1
    while width > 1 and taken < PRODUCT:
        half = width // 2
        factors[:, :half].mul_(factors[:, width - half : width])
        width, taken = width - half, taken * 2
    return torch.log(factors[:, :width]).sum(1)
