"""The discriminators of MIDAS with derivatives that are written out: float32 on a CPU, layer norm and Mish."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cellweave.core.nn.midas_layers import LAYER_NORM_EPS, SEEDS
from cellweave.core.nn.written_layers import Space, as_array, buffer

if TYPE_CHECKING:
    from cellweave.core.nn.midas_discriminators import Discriminators

Matrix = np.ndarray[Any, Any]


class WrittenDiscriminators:
    """Networks of one shape but for their number of classes, those that are asked together as one batch of matrices.

    Parameters
    ----------
    module
        The networks; their vectors of weights are read at every call and get the gradients.
    """

    def __init__(self, module: Discriminators) -> None:
        self.module, self.kernels = module, Space().kernels
        self._plans: dict[tuple[tuple[str, ...], int], _Plan] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of the network makes its own."""

    def show(self, keys: Sequence[str], c: Tensor, codes: Tensor) -> None:
        """Take up what the discriminators are shown next.

        Parameters
        ----------
        keys, c, codes
            As in :meth:`Discriminators.costs`.
        """
        vectors = [self.module.weights[f"of_{key}"] for key in keys]
        plan = self._plans.get((tuple(keys), c.shape[1]))
        if plan is None or any(vector.data_ptr() != known for vector, known in zip(vectors, plan.addresses, strict=True)):
            plan = self._plans[tuple(keys), c.shape[1]] = _Plan(self.module, keys, c.shape[1])
        self.plan, self.codes = plan, codes.contiguous().numpy()
        plan.c.tensor.copy_(c.detach())

    def forward(self, generator: torch.Generator | None) -> tuple[Tensor, Matrix]:
        """Return the cross entropies ``(n_keys, n_cells)``, and of each key the numbers of cells guessed right and asked ``(n_keys, 2)``."""
        plan, kernels, rate = self.plan, self.kernels, self.module.how["dropout"] if self.module.training else 0.0
        for place, (vector, row) in enumerate(zip(plan.vectors, plan.weights, strict=True)):
            row[:] = vector[: len(row)]
            kernels.unpack(vector, plan.sizes, place, plan.small)
        for layer in plan.layers:
            torch.bmm(layer.x, layer.weight_t, out=layer.before)
            seed = int(torch.randint(SEEDS, (), generator=generator)) if rate > 0 else 0
            kernels.norm_mish(
                layer.before_rows, layer.bias, layer.gain, layer.shift, plan.n_cells, LAYER_NORM_EPS, rate > 0, 0, seed, int(rate * 4294967296.0),
                1 / (1 - rate), layer.normed, layer.out_rows, layer.slope, layer.scale,
            )  # fmt: skip
        right = np.zeros((len(plan.ends), 2), np.int64)
        for place, (weight, bias, slopes) in enumerate(plan.ends):
            kernels.class_costs(plan.last[place], weight, bias, self.codes[place], plan.costs.array[place], right[place], slopes)
        return plan.costs.tensor, right

    def backward(self, factor: Matrix, *, for_weights: bool, by_c: bool) -> Tensor | None:
        """Return the derivative by c of the costs, each times its factor ``(n_keys, n_cells)``; or set those by the weights."""
        plan, kernels = self.plan, self.kernels
        plan.small_sums.fill(0.0)
        for place, (weight, _, slopes) in enumerate(plan.ends):
            by_weight, by_bias = plan.end_grads[place]
            if for_weights:
                by_weight.fill(0.0)
                by_bias.fill(0.0)
            kernels.class_back(slopes, factor[place], plan.last[place], weight, for_weights, plan.by_last[place], by_weight, by_bias)
        for number, layer in reversed(list(enumerate(plan.layers))):
            kernels.norm_mish_back(
                layer.by_out, layer.normed, layer.slope, layer.gain, plan.n_cells, 0, layer.scale, layer.before_rows, layer.by_bias, layer.by_gain,
                layer.by_shift,
            )  # fmt: skip
            if for_weights:
                torch.bmm(layer.before.transpose(1, 2), layer.x, out=layer.by_weight)
            if number or by_c:
                torch.bmm(layer.before, layer.weight, out=layer.by_x)
        if for_weights:
            for place, (parameter, grad, vector) in enumerate(zip(plan.parameters, plan.grads, plan.grad_vectors, strict=True)):
                kernels.pack(plan.small_sums, plan.sizes, place, vector)
                parameter.grad = grad
        return plan.layers[0].by_x if by_c else None


class _Layer:
    """Views of one hidden layer of all the networks."""

    def __init__(self, x: Tensor, weight: Tensor, by_weight: Tensor, small: Matrix, small_sums: Matrix) -> None:
        n_keys, n_cells, _ = x.shape
        size, rows = weight.shape[1], n_keys * n_cells
        self.x, self.weight, self.weight_t, self.by_weight = x, weight, weight.transpose(1, 2), by_weight
        self.bias, self.gain, self.shift = small.reshape(3, n_keys, size)
        self.by_bias, self.by_gain, self.by_shift = small_sums.reshape(3, n_keys, size)
        before, out = buffer(n_keys, n_cells, size), buffer(n_keys, n_cells, size)
        self.before, self.before_rows, self.out, self.out_rows = before.tensor, before.array.reshape(rows, size), out.tensor, out.array.reshape(rows, size)
        self.normed, self.slope, self.scale = np.empty((rows, size), np.float32), np.empty((rows, size), np.float32), np.empty(rows, np.float32)
        self.by_x = torch.empty_like(x)
        self.by_out = np.empty((rows, size), np.float32)


class _Plan:
    """Everything that some discriminators need for a number of cells, made once: buffers, and views of the weights."""

    def __init__(self, module: Discriminators, keys: Sequence[str], n_cells: int) -> None:
        self.n_cells, n_keys, sizes, n_hidden = n_cells, len(keys), module.sizes, module.n_hidden_weights
        self.sizes = np.array(sizes, np.int64)
        self.parameters = [module.weights[f"of_{key}"] for key in keys]
        self.addresses = [parameter.data_ptr() for parameter in self.parameters]
        self.vectors = [parameter.detach().numpy() for parameter in self.parameters]
        self.c, self.costs = buffer(n_keys, n_cells, sizes[0]), buffer(n_keys, n_cells)
        hidden = as_array(torch.zeros(n_keys, n_hidden))
        grads = as_array(torch.zeros(n_keys, max(len(vector) for vector in self.vectors)))
        self.weights: Matrix = hidden.array
        self.grads = [row[: len(vector)] for row, vector in zip(grads.tensor, self.vectors, strict=True)]
        self.grad_vectors = [row[: len(vector)] for row, vector in zip(grads.array, self.vectors, strict=True)]
        units = 3 * n_keys * sum(sizes[1:])
        self.small, self.small_sums = np.zeros(units, np.float32), np.zeros(units, np.float32)
        self.layers: list[_Layer] = []
        x, at, to = self.c.tensor, 0, 0
        for n_in, n_out in pairwise(sizes):
            weight, by_weight = (part[:, at : at + n_in * n_out].view(n_keys, n_out, n_in) for part in (hidden.tensor, grads.tensor))
            step = slice(to, to + 3 * n_keys * n_out)
            self.layers.append(_Layer(x, weight, by_weight, self.small[step], self.small_sums[step]))
            x, at, to = self.layers[-1].out, at + (n_in + 3) * n_out, step.stop
        # What the next layer hands back is the derivative by this one's result.
        for layer, after in pairwise(self.layers):
            layer.by_out = after.by_x.numpy().reshape(layer.by_out.shape)
        last = self.layers[-1]
        self.last, self.by_last = (part.reshape(n_keys, n_cells, sizes[-1]) for part in (last.out_rows, last.by_out))
        self.ends, self.end_grads = [], []
        for key, vector, grad in zip(keys, self.vectors, self.grad_vectors, strict=True):
            n, stop = module.n_classes[key], n_hidden + module.n_classes[key] * sizes[-1]
            self.ends.append((vector[n_hidden:stop].reshape(n, -1), vector[stop:], np.zeros((n_cells, n), np.float32)))
            self.end_grads.append((grad[n_hidden:stop].reshape(n, -1), grad[stop:]))

