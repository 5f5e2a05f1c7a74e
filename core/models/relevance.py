"""Relevance of latent dimensions: a learned scale of each that all cells share (automatic relevance determination)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cellweave.core.nn.kl import kl_normal

#: Prior of the relevance of a dimension: the log-normal of mean 1 and variance 1.
RELEVANCE_PRIOR = (-math.log(2.0) / 2, math.sqrt(math.log(2.0)))


class Relevance(nn.Module):
    """Log-normal scale of each dimension, in blocks, so that each modality's can learn at a rate of its own.

    Parameters
    ----------
    blocks
        Number of dimensions by block, in order.
    starts
        Standard deviation of the logarithms by block at the start.
    """

    def __init__(self, blocks: Mapping[str, int], starts: Mapping[str, float]) -> None:
        super().__init__()
        self.mean = nn.ParameterDict({name: nn.Parameter(torch.zeros(size)) for name, size in blocks.items()})
        self.log_sd = nn.ParameterDict({name: nn.Parameter(torch.full((size,), math.log(starts[name]))) for name, size in blocks.items()})

    def of_block(self, name: str) -> list[nn.Parameter]:
        """Return the parameters of one block; none where there is no block of that name."""
        return [table[name] for table in (self.mean, self.log_sd) if name in table]

    def parts(self) -> tuple[Tensor, Tensor]:
        """Return mean and logarithm of the standard deviation of the logarithms, each ``(n_latent,)``."""
        return torch.cat(list(self.mean.values())), torch.cat(list(self.log_sd.values()))

    def scale(self, *, draw: bool, generator: torch.Generator | None = None) -> Tensor:
        """Return a draw of the scales for all cells, or their mean, ``(n_latent,)``."""
        mean, log_sd = self.parts()
        sd = torch.exp(log_sd)
        if not draw:
            return torch.exp(mean + sd**2 / 2)
        noise = torch.randn(sd.shape, generator=generator, dtype=sd.dtype, device=sd.device)
        return torch.exp(mean + sd * noise)

    def divergence(self) -> Tensor:
        """Return the divergence from the prior, summed over the dimensions."""
        mean, log_sd = self.parts()
        prior_mean, prior_sd = (torch.full_like(mean, value) for value in RELEVANCE_PRIOR)
        return kl_normal(mean, torch.exp(log_sd), prior_mean, prior_sd).sum()

    def rename(self, state: dict[str, Any], prefix: str) -> None:
        """Rename, in place, what a model was kept with when the scales of all dimensions were one tensor.

        Parameters
        ----------
        state
            The tensors of the whole model by name.
        prefix
            Under which those of this module are.
        """
        for kind, table in (("mean", self.mean), ("log_sd", self.log_sd)):
            if f"relevance_{kind}" in state:
                parts = state.pop(f"relevance_{kind}").split([len(one) for one in table.values()])
                state.update({f"{prefix}{kind}.{name}": part for name, part in zip(table, parts, strict=True)})
