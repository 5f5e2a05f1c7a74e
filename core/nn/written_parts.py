"""Encoders, decoders and discriminators of MIDAS in a training step that is written out; see :mod:`cellweave.core.nn.written_layers`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.midas_layers import LAYER_NORM_EPS, SEEDS, Mlp
from cellweave.core.nn.midas_parts import BatchEncoder, ModalityDecoder, ModalityEncoder
from cellweave.core.nn.written_layers import Array, Space, WrittenBlockOutput, WrittenBlocks, WrittenCounts, WrittenLinear, WrittenNorm


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


class WrittenDiscriminators:
    """The discriminators that are asked together, in float32: layer norm and Mish only.

    Parameters
    ----------
    module
        The networks; :class:`cellweave.core.nn.midas_discriminators.Discriminators`.
    """

    def __init__(self, module: Any) -> None:
        self.module, self.space = module, Space()

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of the network makes its own."""

    def forward(self, keys: Sequence[str], c: Tensor, codes: Tensor, generator: torch.Generator | None) -> tuple[Tensor, np.ndarray]:
        """Return the cross entropies ``(n_keys, n_cells)``, and of each key the numbers of cells guessed right and asked ``(n_keys, 2)``.

        Parameters
        ----------
        keys, c, codes, generator
            As in :meth:`Discriminators.costs`.
        """
        space, module = self.space, self.module
        n_keys, n_cells, n_in = c.shape
        rate = module.how["dropout"] if module.training else 0.0
        self.keys, self.layers, self.vectors = list(keys), [], [module.weights[f"of_{key}"] for key in keys]
        hidden = space.take(self, "hidden", n_keys, module.n_hidden_weights).tensor
        for row, vector in zip(hidden, self.vectors, strict=True):
            row.copy_(vector.detach()[: hidden.shape[1]])
        x = space.take(self, "c", n_keys, n_cells, n_in)
        x.tensor.copy_(c)
        for place, (weight, *small) in enumerate(module.layers_of(hidden)):
            bias, gain, shift = (part.contiguous().numpy() for part in small)
            size = weight.shape[1]
            out, normed, slope, before = (space.take(self, f"{name}{place}", n_keys, n_cells, size) for name in ("out", "normed", "slope", "before"))
            scale = space.take(self, f"scale{place}", n_keys * n_cells)
            torch.bmm(x.tensor, weight.transpose(1, 2), out=before.tensor)
            seed = int(torch.randint(SEEDS, (), generator=generator)) if rate > 0 else 0
            rows, normed_rows, out_rows, slope_rows = (part.array.reshape(-1, size) for part in (before, normed, out, slope))
            space.kernels.norm_mish(
                rows, bias, gain, shift, n_cells, LAYER_NORM_EPS, rate > 0, 0, seed, int(rate * 4294967296.0), 1 / (1 - rate), normed_rows, out_rows,
                slope_rows, scale.array,
            )  # fmt: skip
            self.layers.append((x, weight, before, normed, slope, scale, gain))
            x = out
        self.last, costs = x, space.take(self, "costs", n_keys, n_cells)
        right, numbers = np.zeros((n_keys, 2), np.int64), codes.contiguous().numpy()
        self.by_logits = []
        for place, key in enumerate(self.keys):
            weight, bias = self._end(place)
            slopes = space.take(self, f"logits {key}", n_cells, len(bias)).array
            space.kernels.class_costs(x.array[place], weight, bias, numbers[place], costs.array[place], right[place], slopes)
            self.by_logits.append(slopes)
        return costs.tensor, right

    def _end(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Return weight and bias of the last map of a key."""
        n, width = self.module.n_classes[self.keys[place]], self.module.sizes[-1]
        vector, at = self.vectors[place].detach().numpy(), self.module.n_hidden_weights
        return vector[at : at + n * width].reshape(n, width), vector[at + n * width :]

    def backward(self, factor: np.ndarray, *, for_weights: bool, by_c: bool) -> Tensor | None:
        """Return the derivative by c of the costs, each times its factor ``(n_keys, n_cells)``; or set those by the weights."""
        space, width, at = self.space, self.module.sizes[-1], self.module.n_hidden_weights
        by_x = space.take(self, "by_x", *self.last.array.shape)
        grads = [space.sums(vector) for vector in self.vectors] if for_weights else []
        for place in range(len(self.keys)):
            weight, bias = self._end(place)
            own = grads[place].array[at:] if for_weights else np.empty(weight.size + bias.size, np.float32)
            space.kernels.class_back(
                self.by_logits[place], factor[place], self.last.array[place], weight, for_weights, by_x.array[place],
                own[: weight.size].reshape(weight.shape), own[weight.size :],
            )  # fmt: skip
        ends = np.cumsum([(n_in + 3) * n_out for n_in, n_out in pairwise(self.module.sizes)])
        for number, (x, weight, before, normed, slope, scale, gain) in reversed(list(enumerate(self.layers))):
            n_keys, n_cells, size = before.array.shape
            sums = np.zeros((3, n_keys, size), np.float32)
            flat = (part.array.reshape(-1, size) for part in (by_x, normed, slope))
            space.kernels.norm_mish_back(*flat, gain, n_cells, 0, scale.array, before.array.reshape(-1, size), *sums)
            if for_weights:
                by_weight = space.take(self, f"by_weight{number}", *weight.shape)
                torch.bmm(before.tensor.transpose(1, 2), x.tensor, out=by_weight.tensor)
                start = int(ends[number]) - (weight.shape[2] + 3) * size
                for place, grad in enumerate(grads):
                    grad.array[start : start + weight[0].numel()] = by_weight.array[place].reshape(-1)
                    grad.array[start + weight[0].numel() : ends[number]] = sums[:, place].reshape(-1)
            if number == 0 and not by_c:
                return None
            by_x = space.take(self, f"by_x{number}", *x.array.shape)
            torch.bmm(before.tensor, weight, out=by_x.tensor)
        return by_x.tensor

