"""Encoders, decoders and the product of experts of MIDAS (He et al. 2024; spec MIDAS, sections 2 and 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.midas_layers import BlockLinear, BlockOutput, CountLinear, Layer, Mlp, NormAct


class Gaussian(NamedTuple):
    """Diagonal normal posteriors, each tensor ``(..., n_cells, n_latent)``."""

    mean: Tensor
    var: Tensor

    def draw(self, generator: torch.Generator | None) -> Tensor:
        """Return ``mean + sqrt(var) * noise``, differentiable in both."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return torch.addcmul(self.mean, self.var.sqrt(), noise)


class ModalityEncoder(nn.Module):
    """From the values of a modality to the width at which all modalities share their layers.

    Parameters
    ----------
    blocks
        Sizes of the consecutive blocks of features; one for a modality that is read whole.
    block_sizes
        Layer sizes of each block's encoder, where there are several.
    width
        Outputs.
    how
        Norm, activation and dropout of each layer.
    """

    def __init__(self, blocks: Sequence[int], block_sizes: Sequence[int], width: int, how: Mapping[str, Any]) -> None:
        super().__init__()
        n_blocks = len(blocks)
        first = width if n_blocks == 1 else block_sizes[0]
        self.first = CountLinear(blocks, first)
        self.after = NormAct(first, blocks=n_blocks, **how)
        self.inner = nn.ModuleList()
        self.inner_after = nn.ModuleList()
        self.joined: NormAct | None = None
        if n_blocks > 1:
            for n_in, n_out in pairwise(block_sizes):
                self.inner.append(BlockLinear(n_blocks, n_in, n_out))
            self.inner_after.extend(NormAct(size, blocks=n_blocks, **how) for size in block_sizes[1:-1])
            self.joined = NormAct(block_sizes[-1] * n_blocks, **how)
            self.out = Layer(block_sizes[-1] * n_blocks, width, **how)

    def forward(self, counts: CountBatch, entries: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return ``(n_cells, width)`` from the stored entries' values."""
        x = self.first(counts, entries)
        if self.joined is None:
            return self.after(x, generator)
        if len(self.inner):
            x = self.after(x, generator)
        for place, layer in enumerate(self.inner):
            x = layer(x)
            if place < len(self.inner_after):
                x = self.inner_after[place](x, generator)
        return self.out(self.joined(x.reshape(len(x), -1), generator), generator)


class ModalityDecoder(nn.Module):
    """From the shared width to what the likelihood of a modality takes, one value a feature.

    Parameters
    ----------
    width
        Width of the shared decoder.
    blocks, block_sizes, how
        As in :class:`ModalityEncoder`, with the layer sizes of each block's decoder.
    """

    def __init__(self, width: int, blocks: Sequence[int], block_sizes: Sequence[int], how: Mapping[str, Any]) -> None:
        super().__init__()
        n_blocks = len(blocks)
        self.n_blocks = n_blocks
        self.head = nn.Linear(width, sum(blocks) if n_blocks == 1 else block_sizes[0] * n_blocks)
        self.inner = nn.ModuleList()
        self.inner_after = nn.ModuleList()
        if n_blocks > 1:
            self.joined = NormAct(block_sizes[0] * n_blocks, **how)
            for n_in, n_out in pairwise(block_sizes):
                self.inner.append(BlockLinear(n_blocks, n_in, n_out))
                self.inner_after.append(NormAct(n_out, blocks=n_blocks, **how))
            self.out = BlockOutput(block_sizes[-1], blocks)
        self.still: list[Tensor] = []  # gradients of zero, kept while a written step trains

    def stand_still(self) -> None:
        """Give the first map a gradient of zero."""
        parameters = list(self.head.parameters())
        if not self.still or self.still[0].device != parameters[0].device:
            self.still = [torch.zeros_like(parameter) for parameter in parameters]
        for parameter, zeros in zip(parameters, self.still, strict=True):
            parameter.grad = zeros.zero_()

    def forward(self, hidden: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return ``(n_cells, n_features)``."""
        x = self.head(hidden)
        if self.n_blocks == 1:
            return x
        x = self.joined(x, generator).view(len(x), self.n_blocks, -1)
        for layer, after in zip(self.inner, self.inner_after, strict=True):
            x = after(layer(x), generator)
        return self.out(x)


class BatchEncoder(nn.Module):
    """The expert that only knows the batch; its first linear map of a one-hot vector is a row of a table."""

    def __init__(self, n_batches: int, sizes: Sequence[int], n_out: int, how: Mapping[str, Any]) -> None:
        super().__init__()
        bound = 1 / max(n_batches, 1) ** 0.5
        self.table = nn.Parameter(torch.empty(n_batches, sizes[0]).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(sizes[0]).uniform_(-bound, bound))
        self.after = NormAct(sizes[0], **how)
        self.rest = Mlp([*sizes, n_out], **how)

    def forward(self, codes: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return ``(n_cells, n_out)`` from codes ``(n_cells,)``."""
        return self.rest(self.after(self.table.index_select(0, codes) + self.bias, generator), generator)


def product(mean: Tensor, log_var: Tensor, known: Tensor | None, batch: tuple[Tensor, Tensor] | None) -> tuple[Gaussian, Gaussian]:
    """Return the products of the experts with a standard normal prior (spec section 2).

    Parameters
    ----------
    mean, log_var
        Of each modality's expert, ``(n_modalities, n_cells, n_latent)``.
    known
        Which expert speaks in which cell, 0 or 1 ``(n_modalities, n_cells, 1)``; None for all.
    batch
        Mean and log variance of the batch's expert, each ``(n_cells, n_latent)``; None where it is silent.

    Returns
    -------
    joint
        All experts together, ``(n_cells, n_latent)``.
    single
        Each modality with prior and batch alone, ``(n_modalities, n_cells, n_latent)``.
    """
    precision = torch.exp(-log_var)
    if known is not None:
        precision = precision * known
    weighted = mean * precision
    base, base_mean = mean.new_ones(mean.shape[1:]), mean.new_zeros(mean.shape[1:])
    if batch is not None:
        batch_precision = torch.exp(-batch[1])
        base, base_mean = batch_precision + 1.0, batch[0] * batch_precision
    joint_var, single_var = 1 / (precision.sum(0) + base), 1 / (precision + base)
    return Gaussian((weighted.sum(0) + base_mean) * joint_var, joint_var), Gaussian((weighted + base_mean) * single_var, single_var)
