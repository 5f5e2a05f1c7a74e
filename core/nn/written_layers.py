"""Layers of a training step that is written out instead of traced: products, and compiled loops between.

Tracing a small network costs more than half of its arithmetic on one core. Each class here belongs to a module of
:mod:`cellweave.core.nn.midas_layers`, computes the same, and hands derivatives to the ``grad`` of its parameters. Where products are narrow (bf16),
what goes into them is kept in bf16 by the loop that makes it, and weights are copied to bf16 once a step.

``forward`` makes out the calls of the way forth (:class:`cellweave.core.nn.step_program.Space`) and returns, beside the result, a function that makes
out those of the way back.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.midas_layers import (
    LAYER_NORM_EPS,
    BlockLinear,
    BlockOutput,
    CountLinear,
    NormAct,
    in_parts,
    shared,
)
from cellweave.core.nn.narrow_products import (
    PLAIN,
    TURNED_LEFT,
    TURNED_RIGHT,
    add_batch,
    add_product,
    add_products,
)
from cellweave.core.nn.step_program import Array, Space, room_for

#: Share of stored entries below which a first layer reads the entries instead of a dense matrix: of float32, of bf16 (measured on one core).
SPARSE_BELOW = {False: 0.3, True: 0.12}
Back = Callable[[Array], Array]


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
        self._refresh()
        return self.copy

    def _refresh(self) -> None:
        if self.version != self.parameter._version:
            assert self.copy is not None
            self.copy.copy_(self.plain)
            self.version = self.parameter._version

    def used(self, space: Space, *, narrow: bool) -> Tensor:
        """Return the weight as the calls that follow take it."""
        found = self.fresh(narrow=narrow)
        if narrow:
            space.do(self._refresh)
        return found

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
        self.kernels: ModuleType = importlib.import_module("cellweave.core.nn.norm_kernel")
        assert after.weight is not None and after.bias is not None
        self.parameters = (bias, after.weight, after.bias)
        self.bias, self.gain, self.shift = (part.detach().view(self.groups, self.size).numpy() for part in self.parameters)
        self.sums = room_for(3, self.groups, self.size)
        self.grads = [own.view(part.shape) for own, part in zip(self.sums.tensor, self.parameters, strict=True)]

    def forward(self, x: Array, out: Array | None = None, *, narrow: bool | None = None) -> tuple[Array, Back]:
        """Return what follows from a map without its bias, ``(n_rows, size)``; the rows of a block are together."""
        space, n_rows = self.space, len(x.array)
        own = space.take(self, "out", n_rows, self.size, narrow=space.narrow if narrow is None else narrow) if out is None else out
        slope, repeat = space.take(self, "slope", n_rows, self.size, narrow=own.narrow).array, n_rows // self.groups
        mean, scale = (space.take(self, name, n_rows).array for name in ("mean", "scale"))
        rate = self.after.dropout if space.training else 0.0
        seed = space.seed() if rate > 0 else np.zeros(1, np.int64)
        how = (self.bias, self.gain, self.shift, repeat, LAYER_NORM_EPS, rate > 0)
        drop, run = (seed, int(rate * 4294967296.0), 1 / (1 - rate)), self.kernels.norm_mish

        def part(a: int, z: int) -> None:
            run(x.array[a:z], *how, a, *drop, own.array[a:z], slope[a:z], mean[a:z], scale[a:z])

        if shared(n_rows * self.size):
            space.do(in_parts, n_rows, part, self.size)
        else:
            space.do(run, x.array, *how, 0, *drop, own.array, slope, mean, scale)
        return own, lambda g: self._backward(g, x, slope, mean, scale)

    def _backward(self, g: Array, x: Array, slope: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> Array:
        """Return the derivative by the map's result from that by ours; it takes the place of the result."""
        space, n_rows = self.space, len(g.array)
        bias, gain, repeat, back, sums = self.bias, self.gain, n_rows // self.groups, self.kernels.norm_mish_back, self.sums.array
        space.do(self._begin)
        if not shared(n_rows * self.size):
            space.do(back, g.array, x.array, slope, bias, gain, repeat, 0, mean, scale, *sums)
            return x

        def rows() -> None:
            def part(a: int, z: int) -> np.ndarray:
                own = np.zeros_like(sums)
                back(g.array[a:z], x.array[a:z], slope[a:z], bias, gain, repeat, a, mean[a:z], scale[a:z], *own)
                return own

            # In the order of the rows, so that the sum does not depend on which thread was first.
            for own in in_parts(n_rows, part, self.size):
                np.add(sums, own, out=sums)

        space.do(rows)
        return x

    def _begin(self) -> None:
        self.sums.array.fill(0.0)
        for parameter, grad in zip(self.parameters, self.grads, strict=True):
            parameter.grad = grad


class WrittenLinear:
    """The product of a linear map, without its bias."""

    def __init__(self, space: Space, weight: Tensor) -> None:
        self.space, self.weight = space, Weight(weight)

    def forward(self, x: Array) -> tuple[Array, Callable[..., Array | None]]:
        """Return ``(n_rows, n_out)``, bf16 where ``x`` is."""
        space, narrow, n_rows, (n_out, n_in) = self.space, x.narrow, len(x.array), self.weight.shape
        out, by_x = space.take(self, "out", n_rows, n_out, narrow=narrow), space.take(self, "by x", n_rows, n_in, narrow=narrow)
        used = self.weight.used(space, narrow=narrow)
        add_product(space, TURNED_RIGHT, x.tensor, used, out.tensor)

        def back(g: Array, *, by_input: bool = True, add_to: Array | None = None) -> Array | None:
            """Return the derivative by the input, or add it to ``add_to``."""
            add_product(space, TURNED_LEFT, g.tensor, x.tensor, self.weight.grad(narrow=narrow))
            space.do(self.weight.give, narrow=narrow)
            if not by_input:
                return None
            found = by_x if add_to is None else add_to
            add_product(space, PLAIN, g.tensor, used, found.tensor, adds=add_to is not None)
            return found

        return out, back


class WrittenCounts:
    """The first map of a modality's counts, without its bias: of what is stored where that is little, else of a dense matrix.

    :meth:`show` takes up the counts of a minibatch, before the calls are made.
    """

    def __init__(self, space: Space, module: CountLinear) -> None:
        self.space, self.module, self.weight = space, module, Weight(module.weight)
        sizes = module.sizes
        self.n_blocks, self.n_features = len(sizes), sum(sizes)
        self.block = np.repeat(np.arange(self.n_blocks, dtype=np.int64), sizes)
        self.stored: tuple[np.ndarray, np.ndarray, np.ndarray] = (np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
        self.sparse = True

    def show(self, counts: CountBatch, entries: Tensor, *, narrow: bool) -> bool:
        """Take up counts with what the encoder sees of them; return whether the entries are read instead of a dense matrix."""
        self.stored = (counts.row_starts.numpy(), counts.cols.contiguous().numpy(), entries.to(torch.float32).contiguous().numpy())
        self.sparse = self.n_blocks > 1 or counts.nnz < SPARSE_BELOW[narrow] * counts.n_cells * self.n_features
        return self.sparse

    def forward(self, n_cells: int) -> tuple[Array, Callable[[Array], None]]:
        """Return ``(n_blocks * n_cells, n_out)``, the rows of a block together."""
        return self._sparse(n_cells) if self.sparse else self._dense(n_cells)

    def _dense(self, n_cells: int) -> tuple[Array, Callable[[Array], None]]:
        space, narrow = self.space, self.space.narrow
        x, out = space.take(self, "x", n_cells, self.n_features, narrow=narrow), space.take(self, "out", n_cells, self.module.n_out, narrow=narrow)
        space.do(lambda: check(space.kernels.dense(*self.stored, x.array)))
        used = self.weight.used(space, narrow=narrow)
        add_product(space, PLAIN, x.tensor, used, out.tensor)

        def back(g: Array) -> None:
            add_product(space, TURNED_LEFT, x.tensor, g.tensor, self.weight.grad(narrow=narrow))
            space.do(self.weight.give, narrow=narrow)

        return out, back

    def _sparse(self, n_cells: int) -> tuple[Array, Callable[[Array], None]]:
        space, kernels, weight = self.space, self.space.kernels, self.weight.plain.numpy()
        out = space.take(self, "sparse", self.n_blocks * n_cells, self.module.n_out)
        pointers = space.take(self, "pointers", self.n_features + 1, kind=torch.int64).array
        found = self.weight.grad(narrow=False).numpy()

        def forth() -> None:
            starts, columns, values = self.stored

            def part(a: int, z: int) -> bool:
                return bool(kernels.sparse_forward(starts[a : z + 1], columns, values, self.block, a, n_cells, weight, out.array))

            check(all(in_parts(n_cells, part, len(values) * self.module.n_out // max(n_cells, 1))))

        def back(g: Array) -> None:
            def rows() -> None:
                places, entries = np.empty(len(self.stored[2]), np.int64), np.empty(len(self.stored[2]), np.float32)
                kernels.sparse_back(*self.stored, self.block, g.array, pointers, places, entries, found)

            space.do(rows)
            space.do(self.weight.give, narrow=False)

        space.do(forth)
        return out, back


class WrittenBlocks:
    """A linear map of each block of its own, without bias; the rows of a block are together."""

    def __init__(self, space: Space, module: BlockLinear) -> None:
        self.space, self.weight = space, Weight(module.weight)

    def forward(self, x: Array) -> tuple[Array, Back]:
        """Return ``(n_blocks * n_cells, n_out)``."""
        space, narrow, (n_blocks, n_in, n_out) = self.space, self.space.narrow, self.weight.shape
        rows, used = x.view(n_blocks, -1, n_in).tensor, self.weight.used(space, narrow=narrow)
        n_cells = rows.shape[1]
        out, by_x = (space.take(self, name, n_blocks, n_cells, size, narrow=narrow) for name, size in (("out", n_out), ("by x", n_in)))
        add_batch(space, PLAIN, rows, used, out.tensor)

        def back(g: Array) -> Array:
            own = g.view(n_blocks, -1, n_out).tensor
            add_batch(space, TURNED_LEFT, rows, own, self.weight.grad(narrow=narrow))
            space.do(self.weight.give, narrow=narrow)
            add_batch(space, TURNED_RIGHT, own, used, by_x.tensor)
            return by_x.view(n_blocks * n_cells, n_in)

        return out.view(n_blocks * n_cells, n_out), back


class WrittenBlockOutput:
    """A linear map of each block's hidden units to the block's features, without bias."""

    def __init__(self, space: Space, module: BlockOutput) -> None:
        self.space, self.weight, self.sizes = space, Weight(module.weight), module.sizes

    def forward(self, hidden: Array) -> tuple[Array, Back]:
        """Return ``(n_cells, n_features)`` from ``(n_blocks * n_cells, n_in)``."""
        space, narrow, sizes = self.space, self.space.narrow, self.sizes
        rows, used = hidden.view(len(sizes), -1, self.weight.shape[1]).tensor, self.weight.used(space, narrow=narrow)
        out, by_x = space.take(self, "out", rows.shape[1], self.weight.shape[0], narrow=narrow), space.take(self, "by x", *rows.shape, narrow=narrow)
        add_products(space, TURNED_RIGHT, list(zip(rows, used.split(sizes), out.tensor.split(sizes, 1), strict=True)))

        def back(g: Array) -> Array:
            own = g.tensor.split(sizes, 1)
            add_products(space, PLAIN, list(zip(own, used.split(sizes), by_x.tensor, strict=True)))
            add_products(space, TURNED_LEFT, list(zip(own, rows, self.weight.grad(narrow=narrow).split(sizes), strict=True)))
            space.do(self.weight.give, narrow=narrow)
            return by_x.view(-1, self.weight.shape[1])

        return out, back


def check(done: bool) -> None:
    """Refuse counts in columns that do not exist, as the compiled loops found them."""
    if not done:
        message = "a count lies in a column that the matrix does not have"
        raise IndexError(message)
