"""Negative log-likelihoods of each cell, computed densely only where every element must be.

The same values and gradients as the sums of :mod:`cellweave.core.nn.likelihoods`; how is said in
:mod:`cellweave.core.nn.negative_binomial`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.gamma_terms import log_factorial
from cellweave.core.nn.likelihoods import EPS, LOG_2_PI
from cellweave.core.nn.negative_binomial import NegativeBinomial


def nb_nll(
    counts: CountBatch,
    mu: Tensor,
    theta: Tensor,
    *,
    zi_logits: Tensor | None = None,
    group: Tensor | None = None,
    eps: float = EPS,
) -> Tensor:
    """Return the negative log-likelihood of each cell under the negative binomial, zero-inflated or not.

    Parameters
    ----------
    counts
        The counts.
    mu
        Means ``(n_cells, n_features)``.
    theta
        Inverse dispersions: ``(n_features,)``; ``(n_groups, n_features)`` with ``group``; or ``(n_cells, n_features)``.
    zi_logits
        Logits of an extra zero ``(n_cells, n_features)``; None for the plain negative binomial.
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
        return NegativeBinomial.apply(mu, None, theta, zi_logits, group, counts, eps)  # type: ignore[no-untyped-call]


def softmax_nll(
    counts: CountBatch,
    logits: Tensor,
    library: Tensor,
    theta: Tensor,
    *,
    zi_logits: Tensor | None = None,
    group: Tensor | None = None,
    eps: float = EPS,
) -> Tensor:
    """Return :func:`nb_nll` at ``mu = library * softmax(logits)``, in fewer passes.

    Parameters
    ----------
    counts, theta, zi_logits, group, eps
        As in :func:`nb_nll`.
    logits
        Logits of the share of each feature ``(n_cells, n_features)``.
    library
        Library sizes ``(n_cells,)``, not their logarithms; 0 is allowed.

    Returns
    -------
    Tensor
        Sum over the features, ``(n_cells,)``.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return NegativeBinomial.apply(logits, library, theta, zi_logits, group, counts, eps)  # type: ignore[no-untyped-call]


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
    with torch.autocast(rate.device.type, enabled=False):
        return _Poisson.apply(rate, counts)  # type: ignore[no-untyped-call]


def softmax_poisson_nll(counts: CountBatch, logits: Tensor, library: Tensor) -> Tensor:
    """Return :func:`poisson_nll` at ``rate = library * softmax(logits)``.

    The rates of a cell sum to its library size, so that only the softmax itself needs a pass over every element.

    Parameters
    ----------
    counts
        The counts.
    logits
        Logits of the share of each feature ``(n_cells, n_features)``.
    library
        Library sizes ``(n_cells,)``, not their logarithms; 0 is allowed for a cell without counts.

    Returns
    -------
    Tensor
        Sum over the features, ``(n_cells,)``.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return _SoftmaxPoisson.apply(logits, library, counts)  # type: ignore[no-untyped-call]


class _SoftmaxPoisson(torch.autograd.Function):
    """``library - sum x * (log(library) + log share) + log x!``, over the stored entries."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, library: Tensor, counts: CountBatch) -> Tensor:  # type: ignore[override]
        """Return the negative log-likelihood of each cell, ``(n_cells,)``."""
        x, top = counts.values, logits.amax(1)
        share = torch.sub(logits, top[:, None]).exp_()
        norm = share.sum(1)
        # log rate = logit - log of the sum of all exponentials + log library; of a cell without counts no entry is looked at.
        beside = torch.where(library > 0, library, torch.ones_like(library)).log() - top - norm.log()
        log_rate = counts.gather(logits) + beside.index_select(0, counts.rows)
        ctx.save_for_backward(share, norm, library)
        ctx.counts = counts
        return library - counts.row_sum(x * log_rate - log_factorial(counts))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Return the gradients of the logits and of the library sizes from that of each cell's value, ``(n_cells,)``."""
        share, norm, library = ctx.saved_tensors
        counts: CountBatch = ctx.counts
        total = counts.row_sum(counts.values)
        by_logits = by_library = None
        if ctx.needs_input_grad[0]:
            by_logits = share * (grad * total / norm)[:, None]
            stored = counts.values * grad.index_select(0, counts.rows)
            by_logits.view(-1).scatter_add_(0, counts.flat, stored.neg_())
        if ctx.needs_input_grad[1]:
            ratio = torch.where(total > 0, total / library, torch.zeros_like(total))
            by_library = grad * (1 - ratio)
        return by_logits, by_library, None


def normal_nll(x: Tensor, mean: Tensor, sd: Tensor, *, group: Tensor | None = None) -> Tensor:
    """Return the negative log-likelihood of each cell under the normal distribution, in as few dense passes as there can be.

    Parameters
    ----------
    x
        Values ``(n_cells, n_features)``.
    mean
        Means ``(n_cells, n_features)``.
    sd
        Standard deviations: ``(n_features,)``; ``(n_groups, n_features)`` with ``group``; or ``(n_cells, n_features)``.
    group
        Row of ``sd`` for each cell, int64 ``(n_cells,)``.

    Returns
    -------
    Tensor
        Sum over the features, ``(n_cells,)``.
    """
    with torch.autocast(mean.device.type, enabled=False):
        return _Normal.apply(x, mean, sd, group)  # type: ignore[no-untyped-call]


class _Normal(torch.autograd.Function):
    """``sum ((x - mean) / sd)**2 / 2 + log(sd) + log(2 pi) / 2``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, sd: Tensor, group: Tensor | None) -> Tensor:  # type: ignore[override]
        """Return the negative log-likelihood of each cell, ``(n_cells,)``."""
        inverse, constant = sd.reciprocal(), sd.log().sum(-1) + 0.5 * LOG_2_PI * x.shape[1]
        if group is not None:
            inverse, constant = inverse.index_select(0, group), constant.index_select(0, group)
        scaled = torch.sub(x, mean).mul_(inverse)
        ctx.save_for_backward(scaled, inverse, group)
        ctx.sd_shape = sd.shape
        return 0.5 * torch.linalg.vector_norm(scaled, dim=1).square() + constant

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, Tensor | None, None]:
        """Return the gradients of means and standard deviations from that of each cell's value, ``(n_cells,)``."""
        scaled, inverse, group = ctx.saved_tensors
        by_mean = by_sd = None
        if ctx.needs_input_grad[1]:
            by_mean = (scaled * inverse).mul_(-grad[:, None])
        if ctx.needs_input_grad[2]:
            squares = scaled.square()
            if group is not None:
                each = inverse * (1 - squares).mul_(grad[:, None])
                by_sd = torch.zeros(ctx.sd_shape, dtype=grad.dtype, device=grad.device).index_add_(0, group, each)
            elif len(ctx.sd_shape) == 1:
                by_sd = inverse * (grad.sum() - grad @ squares)
            else:
                by_sd = inverse * (1 - squares).mul_(grad[:, None])
        return None, by_mean, by_sd, None


class _Poisson(torch.autograd.Function):
    """The rate everywhere, less ``x * log(rate)`` at the stored entries."""

    @staticmethod
    def forward(ctx: Any, rate: Tensor, counts: CountBatch) -> Tensor:  # type: ignore[override]
        """Return the negative log-likelihood of each cell, ``(n_cells,)``."""
        x, at = counts.values, counts.gather(rate)
        if ctx.needs_input_grad[0]:
            # A stored 0 adds nothing, even where the rate is 0 as well.
            ctx.save_for_backward(torch.where(x > 0, x / at, torch.zeros_like(x)))
            ctx.counts = counts
        return rate.sum(1) - counts.row_sum(torch.xlogy(x, at).sub_(log_factorial(counts)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        """Return the gradient of the rates from that of each cell's value, ``(n_cells,)``."""
        (ratio,) = ctx.saved_tensors
        counts: CountBatch = ctx.counts
        # A copy even of one column, since it is added to in place.
        by_rate = grad[:, None].expand(counts.shape).clone(memory_format=torch.contiguous_format)
        stored = ratio * grad.index_select(0, counts.rows)
        return by_rate.view(-1).scatter_add_(0, counts.flat, stored.neg_()).view(counts.shape), None
