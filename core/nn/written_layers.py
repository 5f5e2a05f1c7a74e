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
from torch import Tensor

from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.midas_layers import (
    LAYER_NORM_EPS,
    SEEDS,
    BlockLinear,
    BlockOutput,
    CountLinear,
    NormAct,
    in_parts,
    shared,
)

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


def buffer(*shape: int, narrow: bool = False) -> Array:
    """Return memory for products, float32 or bf16."""
    return as_array(torch.empty(shape, dtype=torch.bfloat16 if narrow else torch.float32))


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

    def sums(self, parameter: Tensor) -> Array:
        """Return zeros to which a parameter's derivative is added, and which are its ``grad``."""
        found = self.take(parameter, "grad", *parameter.shape)
        found.array.fill(0.0)
        parameter.grad = found.tensor
        return found


class Weight:
    """A weight of products: as they take it, and where they write its derivative.

    Where products are narrow, a bf16 copy is kept, which is made anew whenever the weight was changed in place. An optimiser that reads narrow
    derivatives (:class:`cellweave.core.training.compiled_adam.CompiledAdam` says so on the parameter) writes both and finds the derivative here.
    """

    def __init__(self, parameter: Tensor) -> None:
        self.parameter, self.shape, self.plain = parameter, parameter.shape, parameter.detach()
        self.copy: Tensor | None = None
        self.version = -1
        self.grads: dict[bool, Tensor] = {}
        self.handed: Tensor | None = None
        parameter.narrow_twin = self  # type: ignore[attr-defined]

    def fresh(self, *, narrow: bool) -> Tensor:
        """Return the weight for a new step."""
        if not narrow:
            return self.plain
        if self.copy is None:
            self.copy = torch.empty(self.shape, dtype=torch.bfloat16)
        if self.version != self.parameter._version:
            self.copy.copy_(self.plain)
            self.version = self.parameter._version
        return self.copy

    def grad(self, *, narrow: bool) -> Tensor:
        """Return where the product that gives the derivative shall write; then call :meth:`give`."""
        found = self.grads.get(narrow)
        if found is None:
            found = self.grads[narrow] = torch.empty(self.shape, dtype=torch.bfloat16 if narrow else torch.float32)
        return found

    def give(self, *, narrow: bool) -> None:
        """Hand the derivative over, to the optimiser as it is or to the parameter in float32."""
        if narrow and getattr(self.parameter, "reads_narrow", False):
            self.handed = self.grads[True]
            return
        found = self.grad(narrow=False)
        self.parameter.grad = found.copy_(self.grads[True]) if narrow else found


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

    def __init__(self, space: Space, bias: Tensor, after: NormAct) -> None:
        self.space, self.after, self.groups, self.size = space, after, after.blocks, after.size
        assert after.weight is not None and after.bias is not None
        self.parameters = (bias, after.weight, after.bias)
        self.bias, self.gain, self.shift = (part.detach().view(self.groups, self.size).numpy() for part in self.parameters)
        self.sums = as_array(torch.zeros(3, self.groups, self.size))
        self.grads = [own.view(part.shape) for own, part in zip(self.sums.tensor, self.parameters, strict=True)]
        self.kept: dict[tuple[int, bool], tuple[Array, Array, Array, np.ndarray[Any, Any]]] = {}

    def _buffers(self, n_rows: int, narrow: bool) -> tuple[Array, Array, Array, np.ndarray[Any, Any]]:
        """Return result, normed values, slope and reciprocal deviations."""
        found = self.kept.get((n_rows, narrow))
        if found is None:
            out, normed, slope = (buffer(n_rows, self.size, narrow=kind) for kind in (narrow, False, False))
            found = self.kept[n_rows, narrow] = out, normed, slope, np.empty(n_rows, np.float32)
        return found

    def forward(self, x: Array, out: Array | None = None, *, narrow: bool | None = None) -> Array:
        """Return what follows from a map without its bias, ``(n_rows, size)``; the rows of a block are together."""
        space, n_rows = self.space, len(x.array)
        self.x, self.repeat = x, n_rows // self.groups
        self.now = self._buffers(n_rows, space.narrow if narrow is None else narrow)
        own, normed, slope, scale = self.now
        own = own if out is None else out
        rate = self.after.dropout if space.training else 0.0
        seed = int(torch.randint(SEEDS, (), generator=space.generator)) if rate > 0 else 0
        how = (self.bias, self.gain, self.shift, self.repeat, LAYER_NORM_EPS, rate > 0)
        drop, run = (seed, int(rate * 4294967296.0), 1 / (1 - rate)), space.kernels.norm_mish

        def part(a: int, z: int) -> None:
            run(x.array[a:z], *how, a, *drop, normed.array[a:z], own.array[a:z], slope.array[a:z], scale[a:z])

        if shared(n_rows):
            in_parts(n_rows, part)
        else:
            run(x.array, *how, 0, *drop, normed.array, own.array, slope.array, scale)
        return own

    def backward(self, g: Array) -> Array:
        """Return the derivative by the map's result from that by ours; the memory of the result is used again."""
        _, normed, slope, scale = self.now
        n_rows, by_x, gain, repeat, back = len(g.array), self.x, self.gain, self.repeat, self.space.kernels.norm_mish_back
        self.sums.array.fill(0.0)
        for parameter, grad in zip(self.parameters, self.grads, strict=True):
            parameter.grad = grad
        if not shared(n_rows):
            back(g.array, normed.array, slope.array, gain, repeat, 0, scale, by_x.array, *self.sums.array)
            return by_x
        found: list[tuple[int, np.ndarray]] = []

        def part(a: int, z: int) -> None:
            own = np.zeros_like(self.sums.array)
            back(g.array[a:z], normed.array[a:z], slope.array[a:z], gain, repeat, a, scale[a:z], by_x.array[a:z], *own)
            found.append((a, own))

        in_parts(n_rows, part)
        # In the order of the rows, so that the sum does not depend on which thread was first.
        for _, own in sorted(found, key=lambda item: item[0]):
            self.sums.array += own
        return by_x


class WrittenLinear:
    """The product of a linear map, without its bias."""

    def __init__(self, space: Space, weight: Tensor) -> None:
        self.space, self.weight = space, Weight(weight)
        self.kept: dict[tuple[int, bool], tuple[Array, Array]] = {}

    def forward(self, x: Array) -> Array:
        """Return ``(n_rows, n_out)``, bf16 where ``x`` is."""
        self.x, self.narrow, key = x, x.tensor.dtype == torch.bfloat16, (len(x.array), x.tensor.dtype == torch.bfloat16)
        found = self.kept.get(key)
        if found is None:
            n_out, n_in = self.weight.shape
            found = self.kept[key] = buffer(key[0], n_out, narrow=key[1]), buffer(key[0], n_in, narrow=key[1])
        out, self.by_x = found
        self.used = self.weight.fresh(narrow=self.narrow)
        torch.mm(x.tensor, self.used.t(), out=out.tensor)
        return out

    def backward(self, g: Array, *, by_input: bool = True, add_to: Array | None = None) -> Array | None:
        """Return the derivative by the input, or add it to ``add_to``."""
        torch.mm(g.tensor.t(), self.x.tensor, out=self.weight.grad(narrow=self.narrow))
        self.weight.give(narrow=self.narrow)
        if not by_input:
            return None
        if add_to is not None:
            add_to.tensor.addmm_(g.tensor, self.used)
            return add_to
        torch.mm(g.tensor, self.used, out=self.by_x.tensor)
        return self.by_x


class WrittenCounts:
    """The first map of a modality's counts, without its bias: of what is stored where that is little, else of a dense matrix."""

    def __init__(self, space: Space, module: CountLinear) -> None:
        self.space, self.module, self.weight = space, module, Weight(module.weight)
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
            torch.mm(self.x.tensor, self.weight.fresh(narrow=space.narrow), out=out.tensor)
            return out
        out = space.take(self, "sparse", self.n_blocks * n_cells, self.module.n_out)
        starts, columns, values = self.stored
        weight = self.weight.plain.numpy()
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
            torch.mm(self.x.tensor.t(), g.tensor, out=self.weight.grad(narrow=space.narrow))
            self.weight.give(narrow=space.narrow)
            return
        found = self.weight.grad(narrow=False)
        starts, columns, values = self.stored
        pointers = space.take(self, "pointers", self.n_features + 1, kind=torch.int64).array
        space.kernels.sparse_back(
            starts, columns, values, self.block, g.array, pointers, np.empty(len(values), np.int64), np.empty(len(values), np.float32), found.numpy()
        )
        self.weight.give(narrow=False)


class WrittenBlocks:
    """A linear map of each block of its own, without bias; the rows of a block are together."""

    def __init__(self, space: Space, module: BlockLinear) -> None:
        self.space, self.weight = space, Weight(module.weight)

    def forward(self, x: Array) -> Array:
        """Return ``(n_blocks * n_cells, n_out)``."""
        n_blocks, n_in, n_out = self.weight.shape
        self.x, self.used = x.view(n_blocks, -1, n_in), self.weight.fresh(narrow=self.space.narrow)
        n_cells = self.x.array.shape[1]
        out = self.space.take(self, "out", n_blocks, n_cells, n_out, narrow=self.space.narrow)
        torch.bmm(self.x.tensor, self.used, out=out.tensor)
        return out.view(n_blocks * n_cells, n_out)

    def backward(self, g: Array) -> Array:
        """Return the derivative by the input."""
        n_blocks, n_in, n_out = self.weight.shape
        own, n_cells = g.view(n_blocks, -1, n_out).tensor, self.x.array.shape[1]
        torch.bmm(self.x.tensor.transpose(1, 2), own, out=self.weight.grad(narrow=self.space.narrow))
        self.weight.give(narrow=self.space.narrow)
        by_x = self.space.take(self, "by_x", n_blocks, n_cells, n_in, narrow=self.space.narrow)
        torch.bmm(own, self.used.transpose(1, 2), out=by_x.tensor)
        return by_x.view(n_blocks * n_cells, n_in)


class WrittenBlockOutput:
    """A linear map of each block's hidden units to the block's features, without bias."""

    def __init__(self, space: Space, module: BlockOutput) -> None:
        self.space, self.weight, self.sizes = space, Weight(module.weight), module.sizes

    def forward(self, hidden: Array) -> Array:
        """Return ``(n_cells, n_features)`` from ``(n_blocks * n_cells, n_in)``."""
        self.x, self.used = hidden.view(len(self.sizes), -1, self.weight.shape[1]).tensor, self.weight.fresh(narrow=self.space.narrow)
        out = self.space.take(self, "out", self.x.shape[1], self.weight.shape[0], narrow=self.space.narrow)
        for x, weight, part in zip(self.x, self.used.split(self.sizes), out.tensor.split(self.sizes, 1), strict=True):
            torch.mm(x, weight.t(), out=part)
        return out

    def backward(self, g: Array) -> Array:
        """Return the derivative by the hidden units."""
        by_x = self.space.take(self, "by_x", *self.x.shape, narrow=self.space.narrow)
        found = self.weight.grad(narrow=self.space.narrow)
        parts = zip(g.tensor.split(self.sizes, 1), self.used.split(self.sizes), self.x, by_x.tensor, found.split(self.sizes), strict=True)
        for own, weight, x, to, by_weight in parts:
            torch.mm(own, weight, out=to)
            torch.mm(own.t(), x, out=by_weight)
        self.weight.give(narrow=self.space.narrow)
        return by_x.view(-1, self.weight.shape[1])


def check(done: bool) -> None:
    """Refuse counts in columns that do not exist, as the compiled loops found them."""
    if not done:
        message = "a count lies in a column that the matrix does not have"
        raise IndexError(message)
