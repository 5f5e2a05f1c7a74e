"""Expectation of logistic-normal shares."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

POINTS = 1024
SEED = 20180
# Cells times points times dimensions held at once.
BLOCK = 4_000_000


@cache
def _normal_points(n_dimensions: int) -> Tensor:
    """Return scrambled Sobol points as standard normal variables, float64 ``(POINTS, n_dimensions)``."""
    points = torch.quasirandom.SobolEngine(n_dimensions, scramble=True, seed=SEED).draw(POINTS, dtype=torch.float64)
    half_step = 0.5 / POINTS
    return torch.special.ndtri(points.clamp(half_step**2, 1 - half_step**2))


def mean_share(mean: Tensor, var: Tensor) -> Tensor:
    """Return ``E[softmax(N(mean, var))]``.

    The integral has no closed form. scvi-tools averages 5,000 random draws for each cell; here the points are a fixed
    low-discrepancy set, so that two calls give the same values and cells are compared at the same points.

    Parameters
    ----------
    mean, var
        Of the normal before the softmax, ``(n_cells, n_latent)``.

    Returns
    -------
    Tensor
        Positive and summing to 1 over the latent, ``(n_cells, n_latent)``.
    """
    points = _normal_points(mean.shape[1]).to(mean)
    sd = var.sqrt()
    rows = max(1, BLOCK // points.numel())
    parts = [
        torch.softmax(centre[:, None] + spread[:, None] * points, -1).mean(1)
        for centre, spread in zip(mean.split(rows), sd.split(rows), strict=True)
    ]
    return torch.cat(parts) if parts else mean.clone()
