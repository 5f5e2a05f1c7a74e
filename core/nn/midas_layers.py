"""Layers of MIDAS: linear, norm, activation, dropout in this order; first layers that read sparse counts; layers of blocks of features.

On a CPU in float32 with layer norm and Mish the compiled loops of :mod:`cellweave.core.nn.fused_kernels` are used, elsewhere torch's own passes
with the same result (but other draws of the dropout).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from cellweave.core.nn import compiled_call
from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.layers import full_precision

LAYER_NORM_EPS = 1e-5
#: Share of stored entries below which a first layer reads the entries instead of a dense matrix (measured on one core).
SPARSE_BELOW = 0.3
SEEDS = 2**31 - 1
#: Elements that keep a compiled loop busy for half a millisecond; with less, handing the work over costs more than it saves, the more so as torch's own
#: threads wait for the next product by spinning.
WORTH_A_THREAD = 1 << 19
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mish": functional.mish, "relu": torch.relu, "silu": functional.silu, "tanh": torch.tanh, "sigmoid": torch.sigmoid,
}  # fmt: skip


def kernels(*tensors: Tensor) -> ModuleType | None:
    """Return the compiled loops where they serve these tensors: float32 on a CPU, and numba at hand."""
    if any(tensor.device.type != "cpu" or tensor.dtype != torch.float32 for tensor in tensors) or compiled_call.compiled() is None:
        return None
    return importlib.import_module("cellweave.core.nn.fused_kernels")


class NormAct(nn.Module):
    """Norm, activation and dropout.

    Parameters
    ----------
    size
        Width of the last axis.
    norm
        ``"ln"``, ``"bn"`` or ``"none"``.
    activation
        Name in :data:`ACTIVATIONS`.
    dropout
        Share of elements left out in training.
    blocks
        Number of weight rows, taken in turn by the last axis but one; 1 for a plain matrix.
    """

    def __init__(self, size: int, *, norm: str, activation: str, dropout: float, blocks: int = 1) -> None:
        super().__init__()
        self.size, self.norm, self.activation, self.dropout, self.blocks = size, norm, activation, dropout, blocks
        self.weight = nn.Parameter(torch.ones(blocks, size)) if norm != "none" else None
        self.bias = nn.Parameter(torch.zeros(blocks, size)) if norm != "none" else None
        if norm == "bn":
            self.batch_norm = nn.BatchNorm1d(blocks * size, affine=False)

    def forward(self, x: Tensor, generator: torch.Generator | None = None, *, fixed: bool = False) -> Tensor:
        """Return the same shape.

        Parameters
        ----------
        x
            ``(n_cells, size)``, or ``(n_cells, blocks, size)``.
        generator
            Source of the draws; None for torch's global one.
        fixed
            Whether gradients reach the input only, not the weights.
        """
        weight: Tensor | None = self.weight
        bias: Tensor | None = self.bias
        if fixed and weight is not None and bias is not None:
            weight, bias = weight.detach(), bias.detach()
        x = full_precision(x)
        if self.norm == "bn":
            x = self.batch_norm(x.reshape(len(x), -1)).view(x.shape)
        rate = self.dropout if self.training else 0.0
        return norm_act(x, weight, bias, 1, norm=self.norm == "ln", activation=self.activation, rate=rate, generator=generator)


def norm_act(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    repeat: int,
    *,
    norm: bool,
    activation: str,
    rate: float,
    generator: torch.Generator | None,
) -> Tensor:
    """Return layer norm (where ``norm``), scale and shift, activation and dropout of the rows of ``x``.

    Parameters
    ----------
    x
        float32 or float64, ``(..., size)``.
    weight, bias
        ``(n_groups, size)``; their rows hold in turn, each for ``repeat`` consecutive rows of ``x``. None for neither scale nor shift.
    repeat
        See ``weight``.
    norm, activation
        Whether rows are normed; name in :data:`ACTIVATIONS`.
    rate
        Share left out.
    generator
        Source of the draws; None for torch's global one.
    """
    if norm and activation == "mish":
        module = kernels(x)
        if module is not None:
            seed = int(torch.randint(SEEDS, (), generator=generator)) if rate > 0 else 0
            return _NormMish.apply(x, weight, bias, repeat, rate, seed, module)  # type: ignore[no-untyped-call]
    if norm:
        x = torch.layer_norm(x, (x.shape[-1],), eps=LAYER_NORM_EPS)
    if weight is not None and bias is not None:
        grouped = x.reshape(-1, len(weight), repeat, x.shape[-1]) if len(weight) > 1 else x
        x = (grouped * weight[:, None] + bias[:, None]).view(x.shape) if len(weight) > 1 else x * weight[0] + bias[0]
    x = ACTIVATIONS[activation](x)
    if rate == 0:
        return x
    kept = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device) >= rate
    return x * kept / (1 - rate)


def norm_mish(x: Tensor, weight: Tensor, bias: Tensor, repeat: int, rate: float, seed: int, module: ModuleType) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``dropout(mish(layer_norm(x)))``, its slope by the normed value, and mean and reciprocal deviation of the rows ``(2, n_rows)``.

    Nothing is traced; arguments as in :func:`norm_act`, with ``seed`` deciding what is left out and ``module`` the compiled loops.
    """
    x = x.contiguous()
    width = x.shape[-1]
    n_rows = x.numel() // max(width, 1)
    out, slope, moments = torch.empty_like(x), torch.empty_like(x), x.new_empty(2, n_rows)
    rows, outs, slopes = (part.detach().numpy().reshape(n_rows, width) for part in (x, out, slope))
    mean, scale = moments.numpy()
    w, b = weight.detach().numpy(), bias.detach().numpy()
    threshold, keep = int(rate * 4294967296.0), 1 / (1 - rate)

    def part(a: int, z: int) -> None:
        module.norm_mish(rows[a:z], w, b, repeat, LAYER_NORM_EPS, rate > 0, a, seed, threshold, keep, outs[a:z], slopes[a:z], mean[a:z], scale[a:z])

    in_parts(n_rows, part, width)
    return out, slope, moments


def norm_mish_back(
    g: Tensor, x: Tensor, slope: Tensor, moments: Tensor, weight: Tensor, repeat: int, module: ModuleType
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the derivatives by ``x``, weight and bias of :func:`norm_mish` from that by its result, ``g``."""
    by_x, w = torch.empty_like(x), weight.detach().numpy()
    shape = (moments.shape[1], x.shape[-1])
    given, rows, slopes, out = (part.numpy().reshape(shape) for part in (g.contiguous(), x.detach(), slope, by_x))
    mean, scale = moments.numpy()
    if not shared(shape[0] * shape[1]):
        own = np.zeros((2, *w.shape), w.dtype)
        module.norm_mish_back(given, rows, slopes, w, repeat, 0, mean, scale, out, own[0], own[1])
        by_weight, by_bias = torch.from_numpy(own)
        return by_x, by_weight, by_bias

    def part(a: int, z: int) -> np.ndarray:
        own = np.zeros((2, *w.shape), w.dtype)
        module.norm_mish_back(given[a:z], rows[a:z], slopes[a:z], w, repeat, a, mean[a:z], scale[a:z], out[a:z], own[0], own[1])
        return own

    # In the order of the rows, so that the sum does not depend on which thread was first.
    total = sum(in_parts(shape[0], part, shape[1]))
    by_weight, by_bias = torch.from_numpy(total)
    return by_x, by_weight, by_bias


class _NormMish(torch.autograd.Function):
    """Layer norm, Mish and dropout of each row, with the slope kept for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, repeat: int, rate: float, seed: int, module: ModuleType) -> Tensor:  # type: ignore[override]
        """Return the same shape as ``x``."""
        out, slope, moments = norm_mish(x, weight, bias, repeat, rate, seed, module)
        ctx.save_for_backward(x.contiguous(), slope, moments, weight)
        ctx.module, ctx.repeat, ctx.for_weights = module, repeat, ctx.needs_input_grad[1]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Return the derivatives by ``x``, weight and bias."""
        x, slope, moments, weight = ctx.saved_tensors
        by_x, by_weight, by_bias = norm_mish_back(g, x, slope, moments, weight, ctx.repeat, ctx.module)
        weights = (by_weight, by_bias) if ctx.for_weights else (None, None)
        return by_x, *weights, None, None, None, None


def worth(n_elements: int) -> int:
    """Return how many of torch's threads so many elements are worth."""
    return max(1, min(torch.get_num_threads(), n_elements // WORTH_A_THREAD))


def shared(n_elements: int) -> bool:
    """Return whether so many elements are worth more than one thread, and torch has more."""
    return worth(n_elements) > 1


def in_parts(n_rows: int, part: Callable[[int, int], Any], width: int) -> list[Any]:
    """Call ``part(start, stop)`` for all rows, shared by threads where rows of so many elements are worth it; return what each call gave, in order."""
    threads = min(worth(n_rows * width), n_rows)
    if threads <= 1:
        return [part(0, n_rows)]
    bounds = [n_rows * place // threads for place in range(threads + 1)]
    return list(compiled_call._pool(threads).map(lambda pair: part(*pair), pairwise(bounds)))


class CountLinear(nn.Module):
    """A linear map of counts: ``x @ weight + bias``, reading only what is stored where that is little.

    Parameters
    ----------
    sizes
        Sizes of the consecutive blocks of features; each block has an output of its own.
    n_out
        Outputs of a block.
    """

    block_ends: Tensor

    def __init__(self, sizes: Sequence[int], n_out: int) -> None:
        super().__init__()
        self.sizes, self.n_out = tuple(sizes), n_out
        bounds = [1 / math.sqrt(max(size, 1)) for size in sizes]
        self.weight = nn.Parameter(torch.cat([torch.empty(size, n_out).uniform_(-b, b) for size, b in zip(sizes, bounds, strict=True)]))
        self.bias = nn.Parameter(torch.stack([torch.empty(n_out).uniform_(-b, b) for b in bounds]))
        self.register_buffer("block_ends", torch.tensor(sizes, dtype=torch.int64).cumsum(0), persistent=False)

    def forward(self, counts: CountBatch, entries: Tensor) -> Tensor:
        """Return ``(n_cells, n_out)``, or ``(n_cells, n_blocks, n_out)`` where there are several blocks.

        Parameters
        ----------
        counts
            Where the stored entries lie.
        entries
            Their values ``(nnz,)``.
        """
        n_blocks, n_cells = len(self.sizes), counts.n_cells
        if n_blocks == 1 and counts.nnz > SPARSE_BELOW * n_cells * counts.n_features:
            return torch.addmm(self.bias[0], counts.scatter(entries), self.weight)
        starts = counts.row_starts if n_blocks == 1 else self._block_starts(counts)
        out = _SparseProduct.apply(self.weight, starts, counts.cols, entries)  # type: ignore[no-untyped-call]
        return out + self.bias[0] if n_blocks == 1 else out.view(n_cells, n_blocks, self.n_out) + self.bias

    def _block_starts(self, counts: CountBatch) -> Tensor:
        """Return where the entries of each cell and block begin, and their number, ``(n_cells * n_blocks + 1,)``."""
        n_blocks = len(self.sizes)
        block = torch.bucketize(counts.cols, self.block_ends, right=True)
        lengths = torch.bincount(torch.add(block, counts.rows, alpha=n_blocks), minlength=counts.n_cells * n_blocks)
        starts = lengths.new_zeros(len(lengths) + 1)
        torch.cumsum(lengths, 0, out=starts[1:])
        return starts


class _SparseProduct(torch.autograd.Function):
    """``x @ weight`` of a CSR matrix ``x``; the derivative by the weight is dense."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, starts: Tensor, cols: Tensor, entries: Tensor) -> Tensor:  # type: ignore[override]
        """Return ``(n_rows, n_out)``."""
        ctx.save_for_backward(starts, cols, entries)
        ctx.n_features = len(weight)
        return functional.embedding_bag(cols, weight.detach(), starts[:-1], mode="sum", per_sample_weights=entries.to(weight.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Return the derivative by the weight, ``(n_features, n_out)``."""
        starts, cols, entries = ctx.saved_tensors
        by_weight = g.new_zeros(ctx.n_features, g.shape[1])
        module = kernels(g)
        if module is not None:
            pointers, places = np.empty(ctx.n_features + 1, np.int64), np.empty(len(cols), np.int64)
            sorted_entries = np.empty(len(cols), np.float32)
            arguments = (starts.numpy(), cols.contiguous().numpy(), entries.float().contiguous().numpy(), g.contiguous().numpy())
            if not module.sparse_backward(*arguments, pointers, places, sorted_entries, by_weight.numpy()):
                message = "a count lies in a column that the matrix does not have"
                raise IndexError(message)
            return by_weight, None, None, None
        rows = torch.repeat_interleave(torch.arange(len(starts) - 1, device=g.device), starts.diff(), output_size=len(cols))
        step = max(1, (1 << 26) // max(1, g.shape[1]))  # so many entries at once that their rows fit into memory
        for start in range(0, len(cols), step):
            part = slice(start, start + step)
            by_weight.index_add_(0, cols[part], g[rows[part]] * entries[part, None].to(g.dtype))
        return by_weight, None, None, None


class BlockOutput(nn.Module):
    """A linear map of each block's hidden units to the block's features.

    Parameters
    ----------
    n_in
        Hidden units of a block.
    sizes
        Sizes of the consecutive blocks of features.
    """

    def __init__(self, n_in: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        bound = 1 / math.sqrt(n_in)
        self.weight = nn.Parameter(torch.empty(sum(sizes), n_in).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(sum(sizes)).uniform_(-bound, bound))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return ``(n_cells, n_features)`` from ``(n_cells, n_blocks, n_in)``."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        kind = hidden.device.type
        if torch.is_autocast_enabled(kind):
            narrow = torch.get_autocast_dtype(kind)
            hidden, weight, bias = hidden.to(narrow), weight.to(narrow), bias.to(narrow)
        return _BlockProduct.apply(hidden, weight, bias, self.sizes)  # type: ignore[no-untyped-call]


class _BlockProduct(torch.autograd.Function):
    """One product a block, written into the columns of one matrix."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, sizes: tuple[int, ...]) -> Tensor:  # type: ignore[override]
        """Return ``(n_cells, n_features)``."""
        ctx.save_for_backward(hidden, weight)
        ctx.sizes = sizes
        out = hidden.new_empty(len(hidden), len(weight))
        start = 0
        for block, size in enumerate(sizes):
            stop = start + size
            torch.addmm(bias[start:stop], hidden[:, block], weight[start:stop].t(), out=out[:, start:stop])
            start = stop
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Return the derivatives by hidden units, weight and bias."""
        hidden, weight = ctx.saved_tensors
        by_hidden, by_weight = torch.empty_like(hidden), torch.empty_like(weight)
        start = 0
        for block, size in enumerate(ctx.sizes):
            stop = start + size
            own = g[:, start:stop]
            by_hidden[:, block] = own @ weight[start:stop]
            torch.mm(own.t(), hidden[:, block], out=by_weight[start:stop])
            start = stop
        return by_hidden, by_weight, g.sum(0), None


class BlockLinear(nn.Module):
    """The same shape of linear map for each block, with weights of its own: ``(n_cells, n_blocks, n_in)`` to ``(..., n_out)``."""

    def __init__(self, n_blocks: int, n_in: int, n_out: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(n_in)
        self.weight = nn.Parameter(torch.empty(n_blocks, n_in, n_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_blocks, n_out).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n_cells, n_blocks, n_out)``."""
        return torch.baddbmm(self.bias[:, None], x.transpose(0, 1), self.weight).transpose(0, 1)


class Layer(nn.Module):
    """Linear, norm, activation, dropout."""

    def __init__(self, n_in: int, n_out: int, *, norm: str, activation: str, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)
        self.after = NormAct(n_out, norm=norm, activation=activation, dropout=dropout)

    def forward(self, x: Tensor, generator: torch.Generator | None = None, *, fixed: bool = False) -> Tensor:
        """Return ``(n_cells, n_out)``; ``fixed`` lets gradients reach the input only."""
        return self.after(linear(self.linear, x, fixed=fixed), generator, fixed=fixed)


class Mlp(nn.Module):
    """Layers of the given sizes and, unless told otherwise, a bare linear map at the end.

    Parameters
    ----------
    sizes
        Input, hidden layers, output.
    bare_end
        Whether the last map has no norm, activation and dropout.
    norm, activation, dropout
        Of each layer.
    """

    def __init__(self, sizes: Sequence[int], *, bare_end: bool = True, **how: Any) -> None:
        super().__init__()
        inner = sizes[:-1] if bare_end else sizes
        self.layers = nn.ModuleList(Layer(a, b, **how) for a, b in pairwise(inner))
        self.end = nn.Linear(sizes[-2], sizes[-1]) if bare_end else None

    def forward(self, x: Tensor, generator: torch.Generator | None = None, *, fixed: bool = False) -> Tensor:
        """Return ``(n_cells, sizes[-1])``."""
        for layer in self.layers:
            x = layer(x, generator, fixed=fixed)
        return x if self.end is None else linear(self.end, x, fixed=fixed)


def linear(module: nn.Linear, x: Tensor, *, fixed: bool = False) -> Tensor:
    """Return the linear map of ``x``; ``fixed`` lets gradients reach ``x`` only."""
    if fixed:
        return functional.linear(x, module.weight.detach(), module.bias.detach())
    return functional.linear(x, module.weight, module.bias)
