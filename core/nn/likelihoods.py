"""Log-probabilities of counts, element by element, with means, variances and draws.

These are the plain forms: every element of a dense matrix is computed. Training uses
:mod:`cellweave.core.nn.sparse_likelihoods`, which gives the same sums faster. The parametrisation is that of scvi-tools
(``distributions/_negative_binomial.py``, Lopez et al. 2018): mean ``mu``, inverse dispersion ``theta`` and, for the
zero-inflated form, the logit of an extra zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

EPS = 1e-8
MAX_RATE = 1e8
LOG_2_PI = math.log(2.0 * math.pi)


def nb_log_prob(x: Tensor, mu: Tensor, theta: Tensor, eps: float = EPS) -> Tensor:
    """Return the log-probability of the negative binomial.

    Parameters
    ----------
    x
        Counts (or non-negative real values).
    mu
        Means.
    theta
        Inverse dispersions; the variance is ``mu + mu**2 / theta``.
    eps
        Added inside the logarithms. It is part of the likelihood that scvi-tools trains with, and moves
        the value by up to 2e-5 where ``mu`` or ``theta`` are about 0.01.

    Returns
    -------
    Tensor
        Of the broadcast shape of the arguments.
    """
    log_sum = torch.log(theta + mu + eps)
    return (
        theta * (torch.log(theta + eps) - log_sum)
        + x * (torch.log(mu + eps) - log_sum)
        + torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
    )


def gamma_poisson_log_prob(x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    """Return the log-probability of the gamma-Poisson mixture, the negative binomial without any eps.

    A Poisson whose rate is Gamma(shape ``theta``, rate ``theta / mu``). Arguments and result as in :func:`nb_log_prob`.
    """
    relative = torch.log1p(mu / theta)
    log_odds = torch.log(mu) - torch.log(theta) - relative
    return (
        torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
        - theta * relative
        + torch.where(x > 0, x * log_odds, torch.zeros_like(log_odds))
    )


def zinb_log_prob(x: Tensor, mu: Tensor, theta: Tensor, zi_logits: Tensor, eps: float = EPS) -> Tensor:
    """Return the log-probability of the zero-inflated negative binomial.

    Parameters
    ----------
    x, mu, theta, eps
        As in :func:`nb_log_prob`.
    zi_logits
        Logit of the probability of an extra zero.

    Returns
    -------
    Tensor
        Of the broadcast shape of the arguments.
    """
    log_sum = torch.log(theta + mu + eps)
    at_zero = theta * (torch.log(theta + eps) - log_sum) - zi_logits
    no_extra = softplus(-zi_logits)
    positive = (
        at_zero - no_extra
        + x * (torch.log(mu + eps) - log_sum)
        + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    )
    return torch.where(x < eps, softplus(at_zero) - no_extra, positive)


def poisson_log_prob(x: Tensor, rate: Tensor) -> Tensor:
    """Return the log-probability of the Poisson distribution; ``0 * log(0)`` is 0."""
    return torch.xlogy(x, rate) - rate - torch.lgamma(x + 1)


def normal_log_prob(x: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    """Return the log-density of the normal distribution with standard deviation ``sd``."""
    return -0.5 * ((x - mean) / sd) ** 2 - torch.log(sd) - 0.5 * LOG_2_PI


def nb_variance(mu: Tensor, theta: Tensor) -> Tensor:
    """Return the variance ``mu + mu**2 / theta`` of the negative binomial."""
    return mu + mu**2 / theta


def zinb_mean(mu: Tensor, zi_logits: Tensor) -> Tensor:
    """Return the mean ``(1 - p) * mu`` of the zero-inflated negative binomial, ``p`` the probability of an extra zero."""
    return torch.sigmoid(-zi_logits) * mu


def zinb_variance(mu: Tensor, theta: Tensor, zi_logits: Tensor) -> Tensor:
    """Return the variance ``(1 - p) * mu * (mu + theta + p * mu * theta) / theta`` of the zero-inflated form."""
    p = torch.sigmoid(zi_logits)
    return (1 - p) * mu * (mu + theta + p * mu * theta) / theta


def sample_poisson(rate: Tensor, generator: torch.Generator | None = None, max_rate: float = MAX_RATE) -> Tensor:
    """Draw Poisson counts; rates are clamped at ``max_rate``, above which the draw is not exact in float32."""
    return torch.poisson(rate.clamp(max=max_rate), generator=generator)


def sample_nb(
    mu: Tensor, theta: Tensor, generator: torch.Generator | None = None, max_rate: float = MAX_RATE
) -> Tensor:
    """Draw negative binomial counts.

    Parameters
    ----------
    mu, theta
        As in :func:`nb_log_prob`, broadcast against each other.
    generator
        Source of the draws; None takes torch's global one.
    max_rate
        Largest Poisson rate.

    Returns
    -------
    Tensor
        Whole numbers of the dtype of ``mu``, of the broadcast shape.
    """
    shape, mean = torch.broadcast_tensors(theta, mu)
    rate = torch._standard_gamma(shape.contiguous(), generator=generator) * (mean / shape)
    return sample_poisson(rate, generator, max_rate)


def sample_zinb(
    mu: Tensor,
    theta: Tensor,
    zi_logits: Tensor,
    generator: torch.Generator | None = None,
    max_rate: float = MAX_RATE,
) -> Tensor:
    """Draw zero-inflated negative binomial counts; arguments as in :func:`zinb_log_prob` and :func:`sample_nb`."""
    counts = sample_nb(mu, theta, generator, max_rate)
    uniform = torch.rand(counts.shape, generator=generator, dtype=counts.dtype, device=counts.device)
    return torch.where(uniform <= torch.sigmoid(zi_logits), torch.zeros_like(counts), counts)


def sample_normal(mean: Tensor, sd: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw from the normal distribution, of the broadcast shape of ``mean`` and ``sd``."""
    loc, scale = torch.broadcast_tensors(mean, sd)
    return loc + scale * torch.randn(loc.shape, generator=generator, dtype=loc.dtype, device=loc.device)
