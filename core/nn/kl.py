"""Kullback-Leibler divergences in closed form, element by element."""

from __future__ import annotations

import torch
from torch import Tensor


def kl_normal(q_mean: Tensor, q_sd: Tensor, p_mean: Tensor, p_sd: Tensor) -> Tensor:
    """Return ``KL(N(q_mean, q_sd^2) || N(p_mean, p_sd^2))``, of the broadcast shape of the arguments.

    It is also the divergence of the log-normal distributions with these parameters, since the divergence does
    not change under an invertible map of the variable.
    """
    ratio = (q_sd / p_sd) ** 2
    return 0.5 * (ratio + ((q_mean - p_mean) / p_sd) ** 2 - 1 - torch.log(ratio))


def kl_standard_normal(q_mean: Tensor, q_var: Tensor) -> Tensor:
    """Return ``KL(N(q_mean, q_var) || N(0, 1))``; the second argument is the **variance**."""
    return 0.5 * (q_var + q_mean**2 - 1 - torch.log(q_var))


kl_log_normal = kl_normal
