"""The negative binomial's likelihood of a minibatch with its derivatives, most of it at the non-zero counts only.

With ``D = mu / (theta + eps)``, ``L = log(1 + D)`` and ``R = theta / (theta + mu + eps)``, a count of 0
costs ``theta * L``, whose derivatives are ``R`` for ``mu`` and ``L - R * D`` for ``theta``. What a count above 0 adds is computed
at the stored entries only: the gamma functions (:mod:`cellweave.core.nn.gamma_terms`), ``x * log((mu + eps) / (theta + mu + eps))``
and their derivatives.

Zero inflation, with ``M = logit + theta * L``, makes the cost of a zero ``softplus(-logit) - softplus(-M)``. Its two logistic
functions give value and gradients; the logarithms that are left are of numbers between 1/2 and 2, so that a product of many can be taken
before the logarithm.

The derivatives are computed in the forward, while a block of rows is in the cache (:mod:`cellweave.core.nn.blocks`), and
only where some argument wants a gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cellweave.core.nn.blocks import Block, blocks, log_product, scratch
from cellweave.core.nn.compiled_call import CompiledForward, usable
from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.gamma_terms import gamma_terms, theta_index


class NegativeBinomial(torch.autograd.Function):
    """All forms of the negative binomial: zero-inflated where logits are given, of softmax shares where a library is."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        mean: Tensor,
        library: Tensor | None,
        theta: Tensor,
        zi_logits: Tensor | None,
        group: Tensor | None,
        counts: CountBatch,
        eps: float,
    ) -> Tensor:
        """Return the negative log-likelihood of each cell, ``(n_cells,)``; derivatives are kept for the backward."""
        gradients = any(ctx.needs_input_grad[:4])
        work: _Forward | CompiledForward
        if usable(mean, theta):
            work = CompiledForward(counts, mean, library, theta, zi_logits, group, eps, gradients)
        else:
            work = _Forward(counts, mean, library, theta, zi_logits, group, eps, gradients)
        nll = work.nll()
        if gradients:
            kept = work.by_mean, work.by_theta, work.by_zero, work.by_library, work.stored_theta, group
            ctx.save_for_backward(*kept)
            ctx.counts, ctx.theta_index, ctx.theta_shape = counts, work.index, theta.shape
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the arguments from that of each cell's value, ``(n_cells,)``."""
        by_mean, by_theta, by_zero, by_library, stored, group = ctx.saved_tensors
        column = grad[:, None]
        needs_mean, needs_library, needs_theta, needs_zero = ctx.needs_input_grad[:4]
        grad_theta = None
        if needs_theta:
            if len(ctx.theta_shape) == 1:
                grad_theta = torch.mv(by_theta.t(), grad)
            elif group is None:
                grad_theta = by_theta * column
            else:
                grad_theta = by_theta.new_zeros(ctx.theta_shape).index_add_(0, group, by_theta * column)
            if stored is not None:
                weighted = stored * grad.index_select(0, ctx.counts.rows)
                grad_theta.view(-1).scatter_add_(0, ctx.theta_index, weighted)
        return (
            by_mean * column if needs_mean else None,
            by_library * grad if needs_library else None,
            grad_theta,
            by_zero * column if needs_zero else None,
            None, None, None,
        )


class _Forward:
    """Values and derivatives of one call, filled block by block.

    Attributes
    ----------
    by_mean, by_theta, by_zero
        Derivatives of the negative log-likelihood with respect to the mean (or the logits of the shares), to the
        dispersion of each element without what the stored entries add, and to the logits of extra zeros; each
        ``(n_cells, n_features)``, or None where no gradient is wanted.
    by_library
        Derivative with respect to the library size, ``(n_cells,)``.
    index
        Position in the flattened ``theta`` of each stored entry, ``(nnz,)``.
    stored_theta
        What the stored entries add to the derivative with respect to their dispersion, ``(nnz,)``.
    """

    def __init__(
        self,
        counts: CountBatch,
        mean: Tensor,
        library: Tensor | None,
        theta: Tensor,
        zi_logits: Tensor | None,
        group: Tensor | None,
        eps: float,
        gradients: bool,
    ) -> None:
        self.counts, self.library, self.zi_logits = counts, library, zi_logits
        self.mean = mean.contiguous()
        self.theta, self.group, self.eps = theta, group, eps
        self._one = mean.new_ones(())
        self.index = theta_index(counts, theta, group)
        self.at = theta.reshape(-1).index_select(0, self.index)
        self.value, self.derivative = gamma_terms(counts, theta, group, self.index)
        self._nll = mean.new_empty(counts.n_cells)
        self.stored_theta: Tensor | None = None
        self.stored = torch.empty_like(self.at)
        self.total = torch.empty_like(self.at)
        self.by_mean = torch.empty_like(self.mean) if gradients else None
        self.by_theta = torch.empty_like(self.mean) if gradients else None
        self.by_zero = torch.empty_like(self.mean) if gradients and zi_logits is not None else None
        self.by_library = torch.empty_like(library) if gradients and library is not None else None
        self._shared = (theta, theta + eps, (theta + eps).reciprocal()) if theta.dim() == 1 else None

    def nll(self) -> Tensor:
        """Do all blocks; return the negative log-likelihood of each cell."""
        for block in blocks(self.counts):
            self._run(block)
        if self.by_theta is not None:
            self.stored_theta = (self.counts.values / self.total).sub_(self.derivative)
        return self._nll.scatter_add_(0, self.counts.rows, self.stored.neg_())

    def _dispersion(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``theta``, ``theta + eps`` and its inverse for some cells, broadcastable to them."""
        if self._shared is not None:
            return self._shared
        theta = self.theta[rows] if self.group is None else self.theta.index_select(0, self.group[rows])
        shifted = theta + self.eps
        return theta, shifted, shifted.reciprocal()

    def _run(self, block: Block) -> None:
        """Fill in one block of rows."""
        rows, entries = slice(block.start, block.stop), slice(block.first, block.last)
        theta, shifted, inverse = self._dispersion(rows)
        buffers = scratch(5 if self.zi_logits is None else 9, block.stop - block.start, self.mean)
        mu, share, relative, log_relative, weight = buffers[:5]
        if self.library is None:
            mu = self.mean[rows]
        else:
            torch.softmax(self.mean[rows], -1, out=share)
            torch.mul(share, self.library[rows, None], out=mu)
        if self.by_theta is not None:
            log_relative = self.by_theta[rows]
        torch.mul(mu, inverse, out=relative)
        torch.log1p(relative, out=log_relative)
        place = self.counts.flat[entries] - block.start * self.counts.n_features
        if self.zi_logits is None:
            torch.mul(log_relative, theta, out=weight)
            torch.sum(weight, 1, out=self._nll[rows])
        else:
            self._inflate(rows, entries, place, theta, log_relative, [weight, *buffers[5:]])
        by_mean = self._at_stored(entries, place, mu)
        if self.by_mean is None:
            return
        assert self.by_theta is not None
        ratio = self.by_mean[rows]
        torch.add(mu, shifted, out=ratio)
        torch.div(theta, ratio, out=ratio)
        log_relative.addcmul_(ratio, relative, value=-1)
        if self.zi_logits is not None:
            ratio.mul_(weight)
            log_relative.mul_(weight)
        ratio.view(-1).scatter_add_(0, place, by_mean)
        if self.library is not None:
            self._through_softmax(rows, share, ratio)

    def _at_stored(self, entries: slice, place: Tensor, mu: Tensor) -> Tensor:
        """Add what the stored entries cost; return their part of the derivative with respect to the mean."""
        x, at, stored = self.counts.values[entries], self.at[entries], self.stored[entries]
        mean = mu.view(-1).index_select(0, place).add_(self.eps)
        total = torch.add(mean, at, out=self.total[entries])
        log_share = torch.div(mean, total).log_()
        torch.addcmul(self.value[entries], log_share, x, out=stored)
        return torch.mul(at, x).div_(mean.mul_(total)).neg_()

    def _inflate(
        self, rows: slice, entries: slice, place: Tensor, theta: Tensor, log_relative: Tensor, buffers: list[Tensor]
    ) -> None:
        """Compute what zero inflation changes.

        The first buffer becomes the probability that a zero came from the counts, and 1 where the count is not 0.
        """
        assert self.zi_logits is not None
        weight, odds, no_zero, p, other = buffers
        zi_logits, nll = self.zi_logits[rows], self._nll[rows]
        if self.by_zero is not None:
            p = self.by_zero[rows]
        torch.addcmul(zi_logits, theta, log_relative, out=odds)
        torch.sigmoid(odds, out=no_zero)
        # Where the count is not 0 the likelihood has -odds in place of softplus(-odds), and the dense part without its
        # logarithm has min(odds, 0).
        extra = odds.view(-1).index_select(0, place).clamp_(min=0)
        if self.counts.stores_zeros:
            extra.mul_(self.counts.values[entries] > 0)
            no_zero.masked_fill_(self.counts.dense[rows] != 0, 0.0)
        else:
            no_zero.view(-1).index_fill_(0, place, 0.0)
        self.value[entries] -= extra
        # softplus(-a) = max(-a, 0) - log(max(s, 1 - s)) with s the logistic function of a.
        torch.clamp(zi_logits, max=0, out=other)
        torch.sum(odds.clamp_(max=0).sub_(other), 1, out=nll)
        torch.sub(self._one, no_zero, out=weight)
        torch.sigmoid(zi_logits, out=p)
        torch.sub(self._one, p, out=other)
        torch.maximum(p, other, out=other)
        nll += log_product(torch.maximum(no_zero, weight, out=odds).div_(other))
        if self.by_zero is not None:
            p.sub_(no_zero)

    def _through_softmax(self, rows: slice, share: Tensor, by_mean: Tensor) -> None:
        """Turn the derivative with respect to the mean, in place, into that with respect to the logits of the shares."""
        assert self.library is not None and self.by_library is not None
        by_mean.mul_(share)
        by_library = torch.sum(by_mean, 1, out=self.by_library[rows])
        by_mean.addcmul_(share, by_library[:, None], value=-1).mul_(self.library[rows, None])
