"""Priors of the ambient-regularised models and their hyper-parameters (regularizedvi; specification sections 3 and 4).

Every function returns negative log densities with their normalising constants, so that losses mean the same at any setting.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

Transform = Literal["inverse_sqrt", "sqrt"]

#: A scaling factor is ``softplus(raw) / 0.7``, which is 0.9902 at raw 0.
SCALE_UNIT = 0.7
#: Above this the inverse of softplus is the identity in float32.
SOFTPLUS_LINEAR = 20.0
TINY = 1e-8
HALF_LOG_2_PI_E = 0.5 * math.log(2.0 * math.pi * math.e)


def softplus_inverse(values: Tensor) -> Tensor:
    """Return ``log(exp(v) - 1)``, and ``v`` itself above 20."""
    small = values.clamp(max=SOFTPLUS_LINEAR)
    return torch.where(values > SOFTPLUS_LINEAR, values, small + torch.log(-torch.expm1(-small)))


def scaling_factor(raw: Tensor) -> Tensor:
    """Return ``softplus(raw) / 0.7``."""
    return softplus(raw) / SCALE_UNIT


def gamma_nll(values: Tensor, shape: float | Tensor, rate: float | Tensor) -> Tensor:
    """Return ``-log Gamma(values | shape, rate)``, element by element; ``values`` above 0."""
    shape, rate = (torch.as_tensor(one, dtype=values.dtype, device=values.device) for one in (shape, rate))
    return torch.lgamma(shape) - shape * torch.log(rate) - (shape - 1) * torch.log(values) + rate * values


def hyper_prior(mean: float, alpha: float, transform: Transform = "inverse_sqrt", *, variance: bool = False) -> dict[str, float]:
    """Return the start of a dispersion's learned prior.

    Parameters
    ----------
    mean
        Prior mean of ``theta**-0.5`` (``theta**0.5`` with transform ``"sqrt"``, the technical standard deviation with ``variance``).
    alpha
        Shape of the Gamma hyper-prior of the rate.
    transform
        Which power of the dispersion is exponential.
    variance
        Whether the parameter is a technical variance (burst decoder) instead of an inverse dispersion.

    Returns
    -------
    dict
        ``beta``, rate of the hyper-prior; ``rate``, start of lambda; ``log_start``, start of the log parameter.
    """
    inverse = transform == "inverse_sqrt" and not variance
    return {"beta": alpha * mean, "rate": 1.0 / mean, "log_start": (-2.0 if inverse else 2.0) * math.log(mean)}


def dispersion_penalty(
    log_mean: Tensor,
    log_sd: Tensor,
    rate: Tensor,
    *,
    transform: Transform = "inverse_sqrt",
    noise: Tensor | None = None,
    jacobian: bool = False,
) -> Tensor:
    """Return the dispersion penalty: cross-entropy with the exponential prior less the entropy of the log-normal posterior.

    As published the entropy is that of ``log theta`` and the prior density that of ``theta**-0.5``, without the derivative of one by
    the other: it is a penalty, not a divergence.

    Parameters
    ----------
    log_mean, log_sd
        Posterior mean and standard deviation (not its logarithm) of the log dispersion, ``(n_groups, n_features)``.
    rate
        Rate of the exponential prior in each group, ``(n_groups,)``.
    transform
        ``"inverse_sqrt"``: ``theta**-0.5`` is exponential; ``"sqrt"``: ``theta**0.5`` is.
    noise
        A standard normal draw of the shape of ``log_mean``; None takes the expectation in closed form, whose gradient is the same on average.
    jacobian
        Add the derivative, which makes it the true divergence.

    Returns
    -------
    Tensor
        Sum over groups and features.
    """
    sign = -0.5 if transform == "inverse_sqrt" else 0.5
    transformed = torch.exp(sign * log_mean + log_sd**2 / 8) if noise is None else torch.exp(sign * (log_mean + log_sd * noise))
    entropy = (torch.log(log_sd) + HALF_LOG_2_PI_E).sum()
    by_group = rate[:, None]
    log_prior = (torch.log(by_group) - by_group * transformed).sum()
    if jacobian:
        # d t / d log(theta) = sign * theta**sign; its logarithm is linear in log(theta).
        log_theta = log_mean if noise is None else log_mean + log_sd * noise
        log_prior = log_prior + (math.log(0.5) + sign * log_theta).sum()
    return -entropy - log_prior


def library_weight_kl(log_mean: Tensor, log_sd: Tensor, rate: float) -> Tensor:
    """Return ``KL(LogNormal(log_mean, log_sd) || Exponential(rate))``, a scalar; ``log_sd`` is the standard deviation itself."""
    entropy = log_mean + torch.log(log_sd) + HALF_LOG_2_PI_E
    return -entropy + rate * torch.exp(log_mean + log_sd**2 / 2) - math.log(rate)


def sparsity_penalty(values: Tensor, shape: float) -> Tensor:
    """Return ``-sum log Gamma(|values| + 1e-8 | shape, 1)`` of each cell, ``(n_cells,)`` from ``(n_cells, n_dims)``."""
    return sparsity_costs(values, shape).sum(1)


def sparsity_costs(values: Tensor, shape: float) -> Tensor:
    """Return ``-log Gamma(|values| + 1e-8 | shape, 1)``, element by element."""
    return gamma_nll(values.abs() + TINY, shape, 1.0)


def log_normal_of_gamma(shape: float) -> tuple[float, float]:
    """Return location and scale of the log-normal with mean and variance ``shape``, those of ``Gamma(shape, 1)``."""
    variance = math.log1p(1.0 / shape)
    return math.log(shape) - variance / 2, math.sqrt(variance)


def centred_library_prior(log_means: Tensor, log_vars: Tensor, sensitivity: float, weight: float) -> tuple[Tensor, Tensor, float]:
    """Return mean and variance of the log library size in each group, around the mean of the groups.

    Parameters
    ----------
    log_means, log_vars
        Of log totals by group, ``(n_groups,)``.
    sensitivity
        Expected factor of the modality; its logarithm is added to the means.
    weight
        Factor of the variances.

    Returns
    -------
    mean, var
        Each ``(n_groups,)``.
    centre
        The unweighted mean of the groups' means.
    """
    centre = float(log_means.mean())
    return log_means - centre + math.log(sensitivity), log_vars * weight, centre
