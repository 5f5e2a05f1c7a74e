"""Layers of scVAEIT: blocks of features that may be missing, a network of several passes, dispersions from covariates.

A pass is the same network with other entries visible. The passes of a step are stacked, ``(n_passes, n_cells, ...)``; batch norm treats each by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import leaky_relu, linear, softplus

from cellweave.core.nn.compiled_call import compiled
from cellweave.core.nn.counts import CountBatch

SLOPE = 0.3
EPS = 1e-3
#: Share of a minibatch in the moving averages; at first their plain mean, so that short trainings have averages of their own data.
MOMENTUM = 0.1
LEAST_DISPERSION = 1e-6


def glorot(tensor: Tensor, n_in: int, n_out: int) -> Tensor:
    """Fill a tensor with draws that suit a layer of ``n_in`` inputs and ``n_out`` outputs."""
    bound = math.sqrt(6.0 / max(n_in + n_out, 1))
    return nn.init.uniform_(tensor, -bound, bound)


def activated(x: Tensor) -> Tensor:
    """Return the leaky rectifier of ``x``."""
    return leaky_relu(x, SLOPE)


def clipped(x: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Return ``x`` between ``low`` and ``high``; the gradient passes as if nothing were cut."""
    low_of, high_of = torch.as_tensor(low, dtype=x.dtype, device=x.device), torch.as_tensor(high, dtype=x.dtype, device=x.device)
    return x + (torch.maximum(torch.minimum(x, high_of), low_of) - x).detach()


class Dense(nn.Linear):
    """A linear layer with Glorot's weights and no bias at the start."""

    def reset_parameters(self) -> None:
        """Draw the weights, zero the bias."""
        glorot(self.weight, self.in_features, self.out_features)
        nn.init.zeros_(self.bias)


class PassNorm(nn.Module):
    """Batch norm over the cells of each pass by itself; at inference with moving averages.

    There are two sets of averages: of the pass that sees everything, and of those that see a part. Their inputs differ, and an average over both would
    suit neither. At inference a cell takes the second set where it shows other modalities than any batch of the training cells had, since only passes that
    hide something have met such cells.
    """

    running_mean: Tensor
    running_var: Tensor
    seen: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))
        self.register_buffer("running_mean", torch.zeros(2, size))
        self.register_buffer("running_var", torch.ones(2, size))
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x: Tensor, partly: Tensor) -> Tensor:
        """Return ``x`` ``(n_passes, n_cells, size)`` normalised.

        Parameters
        ----------
        x
            The first pass is the one that sees everything.
        partly
            Which set of averages a cell takes, int64 ``(n_passes, n_cells)``; training does not look at it.
        """
        if not self.training:
            scale = self.weight * torch.rsqrt(self.running_var + EPS)
            return torch.addcmul((self.bias - self.running_mean * scale)[partly], x, scale[partly])
        # One call a pass: the native kernel beats a reduction over the middle dimension of the stack.
        return torch.stack([self._one_pass(part, min(number, 1)) for number, part in enumerate(x.unbind(0))])

    def _one_pass(self, x: Tensor, which: int) -> Tensor:
        out, mean, inverse = torch.native_batch_norm(x, self.weight, self.bias, None, None, training=True, momentum=0.0, eps=EPS)
        with torch.no_grad():
            self.seen[which] += 1
            share = (1.0 / self.seen[which]).clamp_min(MOMENTUM).to(mean.dtype)
            self.running_mean[which].lerp_(mean, share)
            self.running_var[which].lerp_(inverse.pow(-2).sub_(EPS).clamp_(min=0), share)
        return out


class HiddenStack(nn.Module):
    """Layers of dense, leaky rectifier, batch norm, in this order."""

    def __init__(self, n_in: int, widths: Sequence[int]) -> None:
        super().__init__()
        sizes = [n_in, *widths]
        self.dense = nn.ModuleList(Dense(a, b) for a, b in pairwise(sizes))
        self.norm = nn.ModuleList(PassNorm(width) for width in widths)

    def forward(self, x: Tensor, partly: Tensor) -> Tensor:
        """Return ``(n_passes, n_cells, last width)``; ``partly`` as in :class:`PassNorm`."""
        for dense, norm in zip(self.dense, self.norm, strict=True):
            x = norm(activated(dense(x)), partly)
        return x


class CovariateTable(nn.Module):
    """A linear map of covariates without bias: one row a level of each categorical column, one a continuous column.

    Parameters
    ----------
    levels
        Levels of each categorical column; none is dropped.
    n_continuous
        Continuous columns.
    n_out
        Outputs.
    fan_in
        Inputs of the layer that it is part of, for the initial weights.
    constant
        Whether a constant stands in where there is no categorical column, so that something can be learned.
    """

    _offsets: Tensor

    def __init__(self, levels: Sequence[int], n_continuous: int, n_out: int, fan_in: int, *, constant: bool = False) -> None:
        super().__init__()
        self.levels = tuple(levels) or ((1,) if constant else ())
        self.constant = constant and not levels
        self.level_weight = nn.Parameter(glorot(torch.empty(sum(self.levels), n_out), fan_in, n_out))
        self.weight = nn.Parameter(glorot(torch.empty(n_continuous, n_out), fan_in, n_out))
        starts = torch.tensor([sum(self.levels[:place]) for place in range(len(self.levels))], dtype=torch.int64)
        self.register_buffer("_offsets", starts, persistent=False)

    def of_levels(self, codes: Tensor) -> Tensor:
        """Return the part of the categorical columns for ``codes`` ``(n, n_columns)``, ``(n, n_out)``."""
        rows = codes + self._offsets
        return self.level_weight.index_select(0, rows.reshape(-1)).view(*rows.shape, -1).sum(1)

    def forward(self, codes: Tensor, continuous: Tensor | None, first: Tensor | None = None) -> Tensor:
        """Return ``(n_cells, n_out)``.

        Parameters
        ----------
        codes
            ``(n_cells, n_columns)``.
        continuous
            ``(n_cells, n_continuous)``, or None.
        first
            Shares of the levels of the first column that stand in for its code, ``(n_cells, n_levels)``; None for the code itself.
        """
        out = self.of_levels(codes) if self.levels else self.weight.new_zeros(codes.shape[0], self.weight.shape[1])
        if first is not None:
            rows = self.level_weight[: self.levels[0]]
            out = out + first @ rows - rows.index_select(0, codes[:, 0])
        return out if continuous is None else torch.addmm(out, continuous, self.weight)


class Dispersion(nn.Module):
    """Dispersion of each feature from the covariates: ``softplus(V b)``, no more than a maximum.

    Without covariates scVAEIT has ``log 2`` for every feature; here each feature then learns its own.
    """

    def __init__(self, levels: Sequence[int], n_continuous: int, n_features: int, maximum: float) -> None:
        super().__init__()
        self.table = CovariateTable(levels, n_continuous, n_features, max(1, sum(levels) + n_continuous), constant=True)
        self.maximum = maximum

    def forward(self, codes: Tensor, continuous: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return dispersions and which row of them each cell has.

        Returns
        -------
        dispersion
            ``(n_rows, n_features)``; a row for each combination of levels, or for each cell where there are continuous covariates.
        row
            int64 ``(n_cells,)``.
        """
        n_cells = codes.shape[0]
        if self.table.constant:
            codes = codes.new_zeros(n_cells, 1)
        if continuous is not None:
            return self._limited(self.table(codes, continuous)), torch.arange(n_cells, device=codes.device)
        # One number for each combination of levels: the unique rows of a matrix take far longer.
        one = codes[:, 0]
        for column, size in enumerate(self.table.levels[1:], 1):
            one = one * size + codes[:, column]
        found, row = torch.unique(one, return_inverse=True)
        columns = []
        for size in self.table.levels[:0:-1]:
            columns.append(found % size)
            found = torch.div(found, size, rounding_mode="floor")
        return self._limited(self.table.of_levels(torch.stack([found, *columns[::-1]], 1))), row

    def _limited(self, x: Tensor) -> Tensor:
        return clipped(softplus(x), LEAST_DISPERSION, self.maximum)


class BlockInput(nn.Module):
    """First layer of the blocks of one modality, apart from mask and covariates: features to units, block by block.

    Parameters
    ----------
    blocks
        Sizes of the consecutive blocks.
    units
        Width of each block.
    fan_in
        Further inputs of the same layer (mask, covariates), for the initial weights.
    by_entries
        Whether the values are mostly zeros, so that only stored ones are multiplied.
    """

    _block: Tensor

    def __init__(self, blocks: Sequence[int], units: int, fan_in: int, *, by_entries: bool) -> None:
        super().__init__()
        self.blocks, self.units, self.by_entries = tuple(blocks), units, by_entries
        weight = torch.empty(sum(blocks), units)
        for part, size in zip(weight.split(self.blocks), self.blocks, strict=True):
            glorot(part, size + fan_in, units)
        self.weight = nn.Parameter(weight)
        block = torch.repeat_interleave(torch.arange(len(self.blocks)), torch.tensor(self.blocks))
        self.register_buffer("_block", block, persistent=False)

    @property
    def n_out(self) -> int:
        """Outputs of all blocks."""
        return self.units * len(self.blocks)

    def compiled(self, x: CountBatch) -> bool:
        """Return whether the stored entries are multiplied by the compiled loop."""
        plain = x.device.type == "cpu" and x.values.dtype == self.weight.dtype == torch.float32
        return self.by_entries and plain and x.n_cells > 0 and compiled() is not None

    def forward(self, x: CountBatch) -> Tensor:
        """Return ``(n_cells, n_blocks * units)`` of values that are 0 where nothing is stored."""
        if self.compiled(x):
            return _Entries.apply(self.weight, x, self._block, len(self.blocks))  # type: ignore[no-untyped-call]
        return self.of_dense(x.dense)

    def of_dense(self, x: Tensor) -> Tensor:
        """Return ``(n_cells, n_blocks * units)`` of dense values ``(n_cells, n_features)``."""
        if len(self.blocks) == 1:
            return x @ self.weight
        parts = zip(x.split(self.blocks, 1), self.weight.split(self.blocks), strict=True)
        return torch.cat([values @ weight for values, weight in parts], 1)


class _Entries(torch.autograd.Function):
    """Product of stored entries and weights, each entry into the units of its block."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: CountBatch, block: Tensor, n_blocks: int) -> Tensor:  # type: ignore[override]
        """Return ``(n_cells, n_blocks * units)``."""
        module = _loops()
        out = weight.new_zeros(x.n_cells, n_blocks * weight.shape[1])
        columns, values = x.cols.contiguous(), x.values.contiguous()
        if not module.multiply(x.row_starts.numpy(), columns.numpy(), values.numpy(), block.numpy(), weight.detach().contiguous().numpy(), out.numpy()):
            message = "an entry lies in a column that the matrix does not have"
            raise IndexError(message)
        ctx.x, ctx.block, ctx.shape = x, block, weight.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the weights from that of the outputs."""
        x: CountBatch = ctx.x
        by_weight = grad.new_zeros(ctx.shape)
        _loops().multiply_back(
            x.row_starts.numpy(), x.cols.contiguous().numpy(), x.values.contiguous().numpy(), ctx.block.numpy(), grad.contiguous().numpy(), by_weight.numpy()
        )
        return by_weight, None, None, None


def _loops() -> Any:
    from cellweave.core.nn import compiled_masked

    return compiled_masked


class BlockOutput(nn.Module):
    """Last layer of the blocks of one modality: units to features, block by block.

    Parameters
    ----------
    blocks, units
        As in :class:`BlockInput`.
    """

    def __init__(self, blocks: Sequence[int], units: int) -> None:
        super().__init__()
        self.blocks, self.units = tuple(blocks), units
        weight = torch.empty(sum(blocks), units)
        for part, size in zip(weight.split(self.blocks), self.blocks, strict=True):
            glorot(part, units, size)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(torch.zeros(sum(blocks)))

    def forward(self, g: Tensor) -> Tensor:
        """Return ``(n_rows, n_features)`` of ``g`` ``(n_rows, n_blocks * units)``."""
        if len(self.blocks) == 1:
            return linear(g, self.weight, self.bias)
        weights, biases = self.weight.split(self.blocks), self.bias.split(self.blocks)
        parts = zip(g.split(self.units, 1), weights, biases, strict=True)
        return torch.cat([linear(values, weight, bias) for values, weight, bias in parts], 1)
