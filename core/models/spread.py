"""Mean and standard deviation over draws, one draw at a time, so that no more than three of them are held."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def over_draws(draws: Iterable[Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return mean and standard deviation (with ``n_draws - 1``) of values by name, each of the shape of a draw."""
    mean: dict[str, Tensor] = {}
    square: dict[str, Tensor] = {}
    count = 0
    for count, values in enumerate(draws, 1):
        for name, value in values.items():
            if count == 1:
                mean[name], square[name] = value, torch.zeros_like(value)
                continue
            # Welford's update, since the square of a mean nearly equals the mean of the squares.
            step = value - mean[name]
            mean[name] = mean[name] + step / count
            square[name] = square[name] + step * (value - mean[name])
    return mean, {name: (value / max(1, count - 1)).sqrt() for name, value in square.items()}
