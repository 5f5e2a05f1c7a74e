"""Encoders and decoders of MIDAS in a training step that is written out; see :mod:`cellweave.core.nn.written_layers`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cellweave.core.nn.midas_layers import Mlp
from cellweave.core.nn.midas_parts import BatchEncoder, ModalityDecoder, ModalityEncoder
from cellweave.core.nn.step_program import Array, Space
from cellweave.core.nn.written_layers import (
    Back,
    WrittenBlockOutput,
    WrittenBlocks,
    WrittenCounts,
    WrittenLinear,
    WrittenNorm,
)


class WrittenMlp:
    """The layers of an :class:`Mlp`; where it ends bare, the last map's bias is left to what follows.

    Parameters
    ----------
    space
        Where the buffers are.
    module
        The module.
    by_input
        Whether anything lies before it that learns.
    end
        Whether the last map is part of it.
    """

    def __init__(self, space: Space, module: Mlp, *, by_input: bool = True, end: bool = True) -> None:
        self.by_input = by_input
        self.layers = [(WrittenLinear(space, layer.linear.weight), WrittenNorm(space, layer.linear.bias, layer.after)) for layer in module.layers]  # type: ignore[arg-type,union-attr]
        self.end = WrittenLinear(space, module.end.weight) if end and module.end is not None else None

    def forward(self, x: Array) -> tuple[Array, Callable[[Array], Array | None]]:
        """Return ``(n_cells, sizes[-1])``."""
        backs = []
        for product, norm in self.layers:
            out, by_product = product.forward(x)
            x, by_norm = norm.forward(out, narrow=out.narrow)
            backs.append((by_product, by_norm))
        of_end = None
        if self.end is not None:
            x, of_end = self.end.forward(x)

        def back(g: Array) -> Array | None:
            by_x: Array | None = g if of_end is None else of_end(g)
            for place, (by_product, by_norm) in reversed(list(enumerate(backs))):
                assert by_x is not None
                by_x = by_product(by_norm(by_x), by_input=place > 0 or self.by_input)
            return by_x

        return x, back


class WrittenEncoder:
    """A modality's encoder up to the layers that all share; its first layer is to be shown the counts before."""

    def __init__(self, space: Space, module: ModalityEncoder) -> None:
        self.space, self.first = space, WrittenCounts(space, module.first)
        bias, self.inner, self.norms = module.first.bias, [], []
        self.joined: WrittenNorm | None = None
        if module.joined is None or len(module.inner):
            self.norms.append(WrittenNorm(space, bias, module.after))
        for place, layer in enumerate(module.inner):
            self.inner.append(WrittenBlocks(space, layer))  # type: ignore[arg-type]
            bias = layer.bias  # type: ignore[assignment]
            if place < len(module.inner_after):
                self.norms.append(WrittenNorm(space, bias, module.inner_after[place]))  # type: ignore[arg-type]
        if module.joined is not None:
            self.joined = WrittenNorm(space, bias, module.joined)
            self.out, self.out_norm = WrittenLinear(space, module.out.linear.weight), WrittenNorm(space, module.out.linear.bias, module.out.after)

    def forward(self, n_cells: int, out: Array) -> Callable[[Array], None]:
        """Fill in ``out``, ``(n_cells, width)``."""
        x, of_first = self.first.forward(n_cells)
        if self.joined is None:
            _, of_norm = self.norms[0].forward(x, out)
            return lambda g: of_first(of_norm(g))
        backs: list[tuple[Back, Back]] = []
        for place, layer in enumerate(self.inner):
            x, of_norm = self.norms[place].forward(x)
            x, of_layer = layer.forward(x)
            backs.append((of_layer, of_norm))
        rows, of_joined = self.joined.forward(_cells_first(self.space, self, x, self.first.n_blocks))
        x, of_out = self.out.forward(rows)
        _, of_out_norm = self.out_norm.forward(x, out)

        def back(g: Array) -> None:
            by_rows = of_out(of_out_norm(g))
            assert by_rows is not None
            by_x = _blocks_first(self.space, self, of_joined(by_rows), self.first.n_blocks)
            for of_layer, of_norm in reversed(backs):
                by_x = of_norm(of_layer(by_x))
            of_first(by_x)

        return back


class WrittenDecoder:
    """A modality's decoder from the width that all share; the last bias is left to the likelihood."""

    def __init__(self, space: Space, module: ModalityDecoder) -> None:
        self.space, self.n_blocks, self.head = space, module.n_blocks, WrittenLinear(space, module.head.weight)
        self.bias = module.head.bias
        self.inner: list[tuple[WrittenBlocks, WrittenNorm]] = []
        if self.n_blocks > 1:
            self.joined = WrittenNorm(space, module.head.bias, module.joined)
            for layer, after in zip(module.inner, module.inner_after, strict=True):
                self.inner.append((WrittenBlocks(space, layer), WrittenNorm(space, layer.bias, after)))  # type: ignore[arg-type]
            self.out, self.bias = WrittenBlockOutput(space, module.out), module.out.bias

    def forward(self, hidden: Array) -> tuple[Array, Callable[[Array, Array | None], Array]]:
        """Return ``(n_cells, n_features)`` without the bias; the way back adds its derivative to what it is given, if anything."""
        x, of_head = self.head.forward(hidden)
        backs: list[Back] = []
        if self.n_blocks > 1:
            x, of_joined = self.joined.forward(x)
            x = _blocks_first(self.space, self, x, self.n_blocks)
            for layer, norm in self.inner:
                x, of_layer = layer.forward(x)
                x, of_norm = norm.forward(x)
                backs += [of_layer, of_norm]
            x, of_out = self.out.forward(x)
            backs.append(of_out)

        def back(g: Array, add_to: Array | None) -> Array:
            for one in reversed(backs):
                g = one(g)
            if self.n_blocks > 1:
                g = of_joined(_cells_first(self.space, self, g, self.n_blocks))
            found = of_head(g, add_to=add_to)
            assert found is not None
            return found

        return x, back


def _cells_first(space: Space, owner: object, x: Array, n_blocks: int) -> Array:
    """Return ``(n_cells, n_blocks * size)`` from ``(n_blocks * n_cells, size)``."""
    n_cells, size = x.array.shape[0] // n_blocks, x.array.shape[1]
    out = space.take(owner, "cells first", n_cells, n_blocks * size, narrow=x.narrow)
    space.do(out.tensor.view(n_cells, n_blocks, size).copy_, x.tensor.view(n_blocks, n_cells, size).transpose(0, 1))
    return out


def _blocks_first(space: Space, owner: object, x: Array, n_blocks: int) -> Array:
    """Return ``(n_blocks * n_cells, size)`` from ``(n_cells, n_blocks * size)``."""
    n_cells, size = x.array.shape[0], x.array.shape[1] // n_blocks
    out = space.take(owner, "blocks first", n_blocks * n_cells, size, narrow=x.narrow)
    space.do(out.tensor.view(n_blocks, n_cells, size).copy_, x.tensor.view(n_cells, n_blocks, size).transpose(0, 1))
    return out


class WrittenBatchEncoder:
    """The expert that only knows the batch, in float32; the last map's bias is left to the product of experts.

    Attributes
    ----------
    codes
        Batch of each cell of the minibatch.
    """

    def __init__(self, space: Space, module: BatchEncoder) -> None:
        self.space, self.table, self.codes = space, module.table, torch.zeros(0, dtype=torch.int64)
        self.norm, self.rest = WrittenNorm(space, module.bias, module.after), WrittenMlp(space, module.rest)

    def forward(self, n_cells: int) -> tuple[Array, Callable[[Array], None]]:
        """Return ``(n_cells, 2 * n_latent)``."""
        space, table = self.space, self.table.detach()
        rows = space.take(self, "rows", n_cells, table.shape[1])
        space.do(lambda: torch.index_select(table, 0, self.codes, out=rows.tensor))
        x, of_norm = self.norm.forward(rows, narrow=False)
        x, of_rest = self.rest.forward(x)

        def back(g: Array) -> None:
            by_out = of_rest(g)
            assert by_out is not None
            by_rows, sums = of_norm(by_out).tensor, space.sums(self.table).tensor
            space.do(lambda: sums.index_add_(0, self.codes, by_rows))

        return x, back


def wide(space: Space, owner: object, name: str, x: Array) -> Array:
    """Return the numbers in float32."""
    if not x.narrow:
        return x
    out = space.take(owner, name, *x.array.shape)
    space.do(out.tensor.copy_, x.tensor)
    return out


def narrowed(space: Space, owner: object, name: str, x: Array) -> Array:
    """Return the numbers as products take them."""
    if not space.narrow:
        return x
    out = space.take(owner, name, *x.array.shape, narrow=True)
    space.do(out.tensor.copy_, x.tensor)
    return out


def row(bias: Tensor) -> Tensor:
    """Return a bias as a matrix of one row."""
    return bias.detach()[None]
