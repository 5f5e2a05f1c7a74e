"""Negative log-likelihoods of each cell, computed densely only where every element must be.

The same values and gradients as the sums of :mod:`cellweave.core.nn.likelihoods`; how is said in
:mod:`cellweave.core.nn.negative_binomial`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.likelihoods import EPS
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
    x = counts.values
    at_entries = torch.xlogy(x, counts.gather(rate)) - torch.lgamma(x + 1)
    return rate.sum(1) - counts.row_sum(at_entries)
