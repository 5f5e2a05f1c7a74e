"""Encoders and decoders of MIDAS in a training step that is written out; see :mod:`cellweave.core.nn.written_layers`."""

from __future__ import annotations

import torch
from torch import Tensor

from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.midas_layers import Mlp
from cellweave.core.nn.midas_parts import BatchEncoder, ModalityDecoder, ModalityEncoder
from cellweave.core.nn.written_layers import (
    Array,
    Space,
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

    def forward(self, x: Array) -> Array:
        """Return ``(n_cells, sizes[-1])``."""
        for product, norm in self.layers:
            out = product.forward(x)
            x = norm.forward(out, narrow=out.tensor.dtype == torch.bfloat16)
        return x if self.end is None else self.end.forward(x)

    def backward(self, g: Array) -> Array | None:
        """Return the derivative by the input."""
        by_x: Array | None = g if self.end is None else self.end.backward(g)
        for place, (product, norm) in reversed(list(enumerate(self.layers))):
            assert by_x is not None
            by_x = product.backward(norm.backward(by_x), by_input=place > 0 or self.by_input)
        return by_x


class WrittenEncoder:
    """A modality's encoder up to the layers that all share."""

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

    def forward(self, counts: CountBatch, entries: Tensor, out: Array) -> None:
        """Fill in ``out``, ``(n_cells, width)``."""
        x = self.first.forward(counts, entries)
        if self.joined is None:
            self.norms[0].forward(x, out)
            return
        for place, layer in enumerate(self.inner):
            x = layer.forward(self.norms[place].forward(x))
        rows = _cells_first(self.space, self, x, self.first.n_blocks)
        self.out_norm.forward(self.out.forward(self.joined.forward(rows)), out)

    def backward(self, g: Array) -> None:
        """Take the derivative by the result."""
        if self.joined is None:
            self.first.backward(self.norms[0].backward(g))
            return
        by_rows = self.out.backward(self.out_norm.backward(g))
        assert by_rows is not None
        x = _blocks_first(self.space, self, self.joined.backward(by_rows), self.first.n_blocks)
        for layer, norm in zip(reversed(self.inner), reversed(self.norms), strict=True):
            x = norm.backward(layer.backward(x))
        self.first.backward(x)


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

    def forward(self, hidden: Array) -> Array:
        """Return ``(n_cells, n_features)`` without the bias."""
        x = self.head.forward(hidden)
        if self.n_blocks == 1:
            return x
        x = _blocks_first(self.space, self, self.joined.forward(x), self.n_blocks)
        for layer, norm in self.inner:
            x = norm.forward(layer.forward(x))
        return self.out.forward(x)

    def backward(self, g: Array, add_to: Array | None) -> Array:
        """Return the derivative by the hidden units, added to ``add_to`` where that is given."""
        if self.n_blocks > 1:
            x = self.out.backward(g)
            for layer, norm in reversed(self.inner):
                x = layer.backward(norm.backward(x))
            g = self.joined.backward(_cells_first(self.space, self, x, self.n_blocks))
        found = self.head.backward(g, add_to=add_to)
        assert found is not None
        return found


def _cells_first(space: Space, owner: object, x: Array, n_blocks: int) -> Array:
    """Return ``(n_cells, n_blocks * size)`` from ``(n_blocks * n_cells, size)``."""
    n_cells, size = x.array.shape[0] // n_blocks, x.array.shape[1]
    out = space.take(owner, "cells first", n_cells, n_blocks * size, narrow=x.tensor.dtype == torch.bfloat16)
    out.tensor.view(n_cells, n_blocks, size).copy_(x.tensor.view(n_blocks, n_cells, size).transpose(0, 1))
    return out


def _blocks_first(space: Space, owner: object, x: Array, n_blocks: int) -> Array:
    """Return ``(n_blocks * n_cells, size)`` from ``(n_cells, n_blocks * size)``."""
    n_cells, size = x.array.shape[0], x.array.shape[1] // n_blocks
    out = space.take(owner, "blocks first", n_blocks * n_cells, size, narrow=x.tensor.dtype == torch.bfloat16)
    out.tensor.view(n_blocks, n_cells, size).copy_(x.tensor.view(n_cells, n_blocks, size).transpose(0, 1))
    return out


class WrittenBatchEncoder:
    """The expert that only knows the batch, in float32; the last map's bias is left to the product of experts."""

    def __init__(self, space: Space, module: BatchEncoder) -> None:
        self.space, self.table = space, module.table
        self.norm, self.rest = WrittenNorm(space, module.bias, module.after), WrittenMlp(space, module.rest)

    def forward(self, codes: Tensor) -> Array:
        """Return ``(n_cells, 2 * n_latent)``."""
        self.codes = codes
        rows = self.space.take(self, "rows", len(codes), self.table.shape[1])
        torch.index_select(self.table.detach(), 0, codes, out=rows.tensor)
        return self.rest.forward(self.norm.forward(rows, narrow=False))

    def backward(self, g: Array) -> None:
        """Take the derivative by the result."""
        by_out = self.rest.backward(g)
        assert by_out is not None
        self.space.sums(self.table).tensor.index_add_(0, self.codes, self.norm.backward(by_out).tensor)
