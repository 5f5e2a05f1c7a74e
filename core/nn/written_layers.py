"""Layers of a training step that is written out instead of traced: buffers kept from step to step, products of torch, compiled loops between.

Tracing a small network costs more than half of its arithmetic on one core. Each class here belongs to a module of
:mod:`cellweave.core.nn.midas_layers`, computes the same, and hands derivatives to the ``grad`` of its parameters. Where products are narrow (bf16),
what goes into them is kept in bf16 by the loop that makes it, and weights are copied to bf16 once a step.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.midas_layers import LAYER_NORM_EPS, SEEDS, BlockLinear, BlockOutput, CountLinear, NormAct, in_parts, shared

#: Share of stored entries below which a first layer reads the entries instead of a dense matrix: of float32, of bf16 (measured on one core).
SPARSE_BELOW = {False: 0.3, True: 0.12}


@dataclass(slots=True)
class Array:
    """The same memory as a tensor and as an array; bf16 appears as uint16 in the array."""

    tensor: Tensor
    array: np.ndarray[Any, Any]

    def view(self, *shape: int) -> Array:
        """Return the same numbers in another shape."""
        return Array(self.tensor.view(shape), self.array.reshape(shape))

    def rows(self, start: int, stop: int) -> Array:
        """Return some of the rows."""
        return Array(self.tensor[start:stop], self.array[start:stop])


def as_array(tensor: Tensor) -> Array:
    """Return a contiguous tensor with its array."""
    plain = tensor.detach()
    return Array(plain, plain.view(torch.int16).numpy().view(np.uint16) if plain.dtype == torch.bfloat16 else plain.numpy())


class Space:
    """The buffers of one network's steps, and how its products are computed.

    Attributes
    ----------
    narrow
        Whether products are in bf16.
    generator
        Source of the draws of this step; None for torch's global one.
    training
        Whether units are left out.
    """

    def __init__(self) -> None:
        self.narrow, self.training = False, True
        self.generator: torch.Generator | None = None
        self.kernels: ModuleType = importlib.import_module("cellweave.core.nn.step_kernels")
        self._kept: dict[tuple[Any, ...], Array] = {}

    def take(self, owner: object, name: str, *shape: int, narrow: bool = False, kind: torch.dtype = torch.float32) -> Array:
        """Return the buffer of this owner, name and shape; its content is what was left there."""
        key = (id(owner), name, shape, narrow)
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = as_array(torch.empty(shape, dtype=torch.bfloat16 if narrow else kind))
        return found

    def weight(self, parameter: nn.Parameter, *, fresh: bool = True) -> Tensor:
        """Return a weight as products take it; ``fresh`` copies it anew where they are narrow."""
        plain = parameter.detach()
        if not self.narrow:
            return plain
        kept = self.take(parameter, "narrow", *plain.shape, narrow=True).tensor
        return kept.copy_(plain) if fresh else kept

    def product_grad(self, parameter: nn.Parameter) -> Tensor:
        """Return where the product that gives a weight's derivative shall write; see :meth:`give`."""
        return self.take(parameter, "product", *parameter.shape, narrow=self.narrow).tensor

    def give(self, parameter: nn.Parameter) -> None:
        """Hand over the derivative that was written to :meth:`product_grad`."""
        found = self.take(parameter, "product", *parameter.shape, narrow=self.narrow).tensor
        if self.narrow:
            found = self.take(parameter, "grad", *parameter.shape).tensor.copy_(found)
        parameter.grad = found

    def sums(self, parameter: nn.Parameter) -> Array:
        """Return zeros to which a parameter's derivative is added, and which are its ``grad``."""
        found = self.take(parameter, "grad", *parameter.shape)
        found.array.fill(0.0)
        parameter.grad = found.tensor
        return found


class WrittenNorm:
    """Bias of the map before, layer norm, Mish and dropout.

    Parameters
    ----------
    space
        Where the buffers are.
    bias
        Of the linear map, ``(size,)`` or ``(n_blocks, size)``.
    after
        The module.
    """

    def __init__(self, space: Space, bias: nn.Parameter, after: NormAct) -> None:
        self.space, self.bias, self.after = space, bias, after
        self.groups, self.size = after.blocks, after.size
        assert after.weight is not None and after.bias is not None
        self.gain, self.shift = after.weight, after.bias

    def forward(self, x: Array, out: Array | None = None, *, narrow: bool | None = None) -> Array:
        """Return what follows from a map without its bias, ``(n_rows, size)``; the rows of a block are together."""
        space, n_rows = self.space, x.array.shape[0]
        kind = space.narrow if narrow is None else narrow
        self.x, self.repeat = x, n_rows // self.groups
        self.out = space.take(self, "out", n_rows, self.size, narrow=kind) if out is None else out
        self.normed, self.slope = space.take(self, "normed", n_rows, self.size), space.take(self, "slope", n_rows, self.size)
        self.scale = space.take(self, "scale", n_rows)
        bias = self.bias.detach().view(self.groups, self.size).numpy()
        gain, shift = self.gain.detach().numpy(), self.shift.detach().numpy()
        rate = self.after.dropout if space.training else 0.0
        seed = int(torch.randint(SEEDS, (), generator=space.generator)) if rate > 0 else 0
        xs, normed, outs, slopes, scales = x.array, self.normed.array, self.out.array, self.slope.array, self.scale.array
        threshold, keep = int(rate * 4294967296.0), 1 / (1 - rate)

        def part(a: int, z: int) -> None:
            space.kernels.norm_mish(
                xs[a:z], bias, gain, shift, self.repeat, LAYER_NORM_EPS, rate > 0, a, seed, threshold, keep, normed[a:z], outs[a:z], slopes[a:z], scales[a:z]
            )

        in_parts(n_rows, part)
        return self.out

    def backward(self, g: Array) -> Array:
        """Return the derivative by the map's result from that by ours; the memory of the result is used again."""
        space, n_rows = self.space, g.array.shape[0]
        by_bias = space.sums(self.bias).array.reshape(self.groups, self.size)
        by_gain, by_shift = space.sums(self.gain).array, space.sums(self.shift).array
        gain, by_x = self.gain.detach().numpy(), self.x
        gs, normed, slopes, scales, out = g.array, self.normed.array, self.slope.array, self.scale.array, by_x.array
        back = space.kernels.norm_mish_back
        if not shared(n_rows):
            back(gs, normed, slopes, gain, self.repeat, 0, scales, out, by_bias, by_gain, by_shift)
            return by_x
        found: list[tuple[int, np.ndarray]] = []

        def part(a: int, z: int) -> None:
            own = np.zeros((3, self.groups, self.size), np.float32)
            back(gs[a:z], normed[a:z], slopes[a:z], gain, self.repeat, a, scales[a:z], out[a:z], own[0], own[1], own[2])
            found.append((a, own))

        in_parts(n_rows, part)
        # In the order of the rows, so that the sum does not depend on which thread was first.
        for _, own in sorted(found, key=lambda item: item[0]):
            for total, one in zip((by_bias, by_gain, by_shift), own, strict=True):
                total += one
        return by_x


class WrittenLinear:
    """The product of a linear map, without its bias."""

    def __init__(self, space: Space, weight: nn.Parameter, *, always_wide: bool = False) -> None:
        self.space, self.weight, self.always_wide = space, weight, always_wide

    def forward(self, x: Array) -> Array:
        """Return ``(n_rows, n_out)``."""
        self.x, narrow = x, x.tensor.dtype == torch.bfloat16
        self.used = self.space.weight(self.weight) if narrow else self.weight.detach()
        out = self.space.take(self, "out", len(x.array), len(self.weight), narrow=narrow)
        torch.mm(x.tensor, self.used.t(), out=out.tensor)
        return out

    def backward(self, g: Array, *, by_input: bool = True, add_to: Array | None = None) -> Array | None:
        """Return the derivative by the input, or add it to ``add_to``."""
        narrow = g.tensor.dtype == torch.bfloat16
        if narrow:
            torch.mm(g.tensor.t(), self.x.tensor, out=self.space.product_grad(self.weight))
            self.space.give(self.weight)
        else:
            found = self.space.take(self.weight, "grad", *self.weight.shape).tensor
            torch.mm(g.tensor.t(), self.x.tensor, out=found)
            self.weight.grad = found
        if not by_input:
            return None
        if add_to is not None:
            add_to.tensor.addmm_(g.tensor, self.used)
            return add_to
        by_x = self.space.take(self, "by_x", len(g.array), self.weight.shape[1], narrow=narrow)
        torch.mm(g.tensor, self.used, out=by_x.tensor)
        return by_x


class WrittenCounts:
    """The first map of a modality's counts, without its bias: of what is stored where that is little, else of a dense matrix."""

    def __init__(self, space: Space, module: CountLinear) -> None:
        self.space, self.module, self.weight = space, module, module.weight
        sizes = module.sizes
        self.n_blocks, self.n_features = len(sizes), sum(sizes)
        self.block = np.repeat(np.arange(self.n_blocks, dtype=np.int64), sizes)

    def forward(self, counts: CountBatch, entries: Tensor) -> Array:
        """Return ``(n_blocks * n_cells, n_out)``, the rows of a block together."""
        space, n_cells = self.space, counts.n_cells
        self.stored = (counts.row_starts.numpy(), counts.cols.contiguous().numpy(), entries.to(torch.float32).contiguous().numpy())
        self.sparse = self.n_blocks > 1 or counts.nnz < SPARSE_BELOW[space.narrow] * n_cells * self.n_features
        if not self.sparse:
            self.x = space.take(self, "x", n_cells, self.n_features, narrow=space.narrow)
            check(space.kernels.dense(*self.stored, self.x.array))
            out = space.take(self, "out", n_cells, self.module.n_out, narrow=space.narrow)
            torch.mm(self.x.tensor, space.weight(self.weight), out=out.tensor)
            return out
        out = space.take(self, "sparse", self.n_blocks * n_cells, self.module.n_out)
        starts, columns, values = self.stored
        weight = self.weight.detach().numpy()
        done: list[bool] = []

        def part(a: int, z: int) -> None:
            done.append(space.kernels.sparse_forward(starts[a : z + 1], columns, values, self.block, a, n_cells, weight, out.array))

        in_parts(n_cells, part)
        check(all(done))
        return out

    def backward(self, g: Array) -> None:
        """Take the derivative by the result."""
        space = self.space
        if not self.sparse:
            torch.mm(self.x.tensor.t(), g.tensor, out=space.product_grad(self.weight))
            space.give(self.weight)
            return
        found = space.take(self.weight, "grad", *self.weight.shape)
        starts, columns, values = self.stored
        pointers = space.take(self, "pointers", self.n_features + 1, kind=torch.int64).array
        space.kernels.sparse_back(
            starts, columns, values, self.block, g.array, pointers, np.empty(len(values), np.int64), np.empty(len(values), np.float32), found.array
        )
        self.weight.grad = found.tensor


class WrittenBlocks:
    """A linear map of each block of its own, without bias; the rows of a block are together."""

    def __init__(self, space: Space, module: BlockLinear) -> None:
        self.space, self.weight = space, module.weight

    def forward(self, x: Array) -> Array:
        """Return ``(n_blocks * n_cells, n_out)``."""
        n_blocks, n_in, n_out = self.weight.shape
        self.x, self.used = x.view(n_blocks, -1, n_in), self.space.weight(self.weight)
        n_cells = self.x.array.shape[1]
        out = self.space.take(self, "out", n_blocks, n_cells, n_out, narrow=self.space.narrow)
        torch.bmm(self.x.tensor, self.used, out=out.tensor)
        return out.view(n_blocks * n_cells, n_out)

    def backward(self, g: Array) -> Array:
        """Return the derivative by the input."""
        n_blocks, n_in, n_out = self.weight.shape
        own, n_cells = g.view(n_blocks, -1, n_out).tensor, self.x.array.shape[1]
        torch.bmm(self.x.tensor.transpose(1, 2), own, out=self.space.product_grad(self.weight))
        self.space.give(self.weight)
        by_x = self.space.take(self, "by_x", n_blocks, n_cells, n_in, narrow=self.space.narrow)
        torch.bmm(own, self.used.transpose(1, 2), out=by_x.tensor)
        return by_x.view(n_blocks * n_cells, n_in)


class WrittenBlockOutput:
    """A linear map of each block's hidden units to the block's features, without bias."""

    def __init__(self, space: Space, module: BlockOutput) -> None:
        self.space, self.weight, self.sizes = space, module.weight, module.sizes

    def forward(self, hidden: Array) -> Array:
        """Return ``(n_cells, n_features)`` from ``(n_blocks * n_cells, n_in)``."""
        self.x, self.used = hidden.view(len(self.sizes), -1, self.weight.shape[1]).tensor, self.space.weight(self.weight)
        out = self.space.take(self, "out", self.x.shape[1], len(self.weight), narrow=self.space.narrow)
        for x, weight, part in zip(self.x, self.used.split(self.sizes), out.tensor.split(self.sizes, 1), strict=True):
            torch.mm(x, weight.t(), out=part)
        return out

    def backward(self, g: Array) -> Array:
        """Return the derivative by the hidden units."""
        by_x = self.space.take(self, "by_x", *self.x.shape, narrow=self.space.narrow)
        found = self.space.product_grad(self.weight)
        parts = zip(g.tensor.split(self.sizes, 1), self.used.split(self.sizes), self.x, by_x.tensor, found.split(self.sizes), strict=True)
        for own, weight, x, to, by_weight in parts:
            torch.mm(own, weight, out=to)
            torch.mm(own.t(), x, out=by_weight)
        self.space.give(self.weight)
        return by_x.view(-1, self.weight.shape[1])


def check(done: bool) -> None:
    """Refuse counts in columns that do not exist, as the compiled loops found them."""
    if not done:
        message = "a count lies in a column that the matrix does not have"
        raise IndexError(message)
