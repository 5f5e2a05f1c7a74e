"""The discriminators of MIDAS with derivatives that are written out: float32 on a CPU, layer norm and Mish."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cellweave.core.nn.midas_layers import LAYER_NORM_EPS
from cellweave.core.nn.step_program import Space, as_array

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
        self.module = module
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
        self.plan, self.keys = plan, tuple(keys)
        plan.codes[:] = codes.numpy()
        plan.c.copy_(c.detach())

    def forward(self, generator: torch.Generator | None) -> tuple[Tensor, Matrix]:
        """Return the cross entropies ``(n_keys, n_cells)``, and of each key the numbers of cells guessed right and asked ``(n_keys, 2)``."""
        plan = self.plan
        plan.space.generator, plan.space.training = generator, self.module.training
        plan.space.run(("forward",), plan.forward)
        return plan.costs.tensor, plan.right.copy()

    def backward(self, factor: Matrix, *, for_weights: bool, by_c: bool) -> Tensor | None:
        """Return the derivative by c of the costs, each times its factor ``(n_keys, n_cells)``; or set those by the weights."""
        plan = self.plan
        plan.factor[:] = factor
        plan.space.run(("backward", for_weights, by_c), lambda: plan.backward(for_weights=for_weights, by_c=by_c))
        return plan.layers[0].by_x if by_c else None


class _Layer:
    """Views of one hidden layer of all the networks."""

    def __init__(self, x: Tensor, weight: Tensor, by_weight: Tensor, small: Matrix, small_sums: Matrix) -> None:
        n_keys, n_cells, _ = x.shape
        size, rows = weight.shape[1], n_keys * n_cells
        self.x, self.weight, self.by_weight = x, weight, by_weight
        self.bias, self.gain, self.shift = small.reshape(3, n_keys, size)
        self.by_bias, self.by_gain, self.by_shift = small_sums.reshape(3, n_keys, size)
        before, out = (as_array(torch.empty(n_keys, n_cells, size)) for _ in range(2))
        self.before, self.before_rows, self.out, self.out_rows = before.tensor, before.array.reshape(rows, size), out.tensor, out.array.reshape(rows, size)
        self.normed, self.slope, self.scale = np.empty((rows, size), np.float32), np.empty((rows, size), np.float32), np.empty(rows, np.float32)
        self.by_x = torch.empty_like(x)
        self.by_out = np.empty((rows, size), np.float32)


class _Plan:
    """Everything that some discriminators need for a number of cells, made once: buffers, views of the weights, and the calls."""

    def __init__(self, module: Discriminators, keys: Sequence[str], n_cells: int) -> None:
        self.space, self.dropout = Space(), float(module.how["dropout"])
        self.n_cells, n_keys, sizes, n_hidden = n_cells, len(keys), module.sizes, module.n_hidden_weights
        self.sizes = np.array(sizes, np.int64)
        self.parameters = [module.weights[f"of_{key}"] for key in keys]
        self.addresses = [parameter.data_ptr() for parameter in self.parameters]
        self.vectors = [parameter.detach().numpy() for parameter in self.parameters]
        self.c, self.codes = torch.empty(n_keys, n_cells, sizes[0]), np.zeros((n_keys, n_cells), np.int64)
        self.costs, self.factor, self.right = as_array(torch.empty(n_keys, n_cells)), np.zeros((n_keys, n_cells), np.float32), np.zeros((n_keys, 2), np.int64)
        hidden = as_array(torch.zeros(n_keys, n_hidden))
        grads = as_array(torch.zeros(n_keys, max(len(vector) for vector in self.vectors)))
        self.weights: Matrix = hidden.array
        self.grads = [row[: len(vector)] for row, vector in zip(grads.tensor, self.vectors, strict=True)]
        self.grad_vectors = [row[: len(vector)] for row, vector in zip(grads.array, self.vectors, strict=True)]
        units = 3 * n_keys * sum(sizes[1:])
        self.small, self.small_sums = np.zeros(units, np.float32), np.zeros(units, np.float32)
        self.layers: list[_Layer] = []
        x, at, to = self.c, 0, 0
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

    def forward(self) -> None:
        """Make out the calls that fill in the costs."""
        do, kernels, rate = self.space.do, self.space.kernels, self.dropout if self.space.training else 0.0
        for place, (vector, row) in enumerate(zip(self.vectors, self.weights, strict=True)):
            do(np.copyto, row, vector[: len(row)])
            do(kernels.unpack, vector, self.sizes, place, self.small)
        for layer in self.layers:
            do(torch.bmm, layer.x, layer.weight.transpose(1, 2), out=layer.before)
            seed = self.space.seed() if rate > 0 else np.zeros(1, np.int64)
            do(
                kernels.norm_mish, layer.before_rows, layer.bias, layer.gain, layer.shift, self.n_cells, LAYER_NORM_EPS, rate > 0, 0, seed,
                int(rate * 4294967296.0), 1 / (1 - rate), layer.normed, layer.out_rows, layer.slope, layer.scale,
            )  # fmt: skip
        for place, (weight, bias, slopes) in enumerate(self.ends):
            do(kernels.class_costs, self.last[place], weight, bias, self.codes[place], self.costs.array[place], self.right[place], slopes)

    def backward(self, *, for_weights: bool, by_c: bool) -> None:
        """Make out the calls that fill in the derivatives asked for."""
        do, kernels = self.space.do, self.space.kernels
        do(self.small_sums.fill, 0.0)
        for place, (weight, _, slopes) in enumerate(self.ends):
            by_weight, by_bias = self.end_grads[place]
            if for_weights:
                do(by_weight.fill, 0.0)
                do(by_bias.fill, 0.0)
            do(kernels.class_back, slopes, self.factor[place], self.last[place], weight, for_weights, self.by_last[place], by_weight, by_bias)
        for number, layer in reversed(list(enumerate(self.layers))):
            do(
                kernels.norm_mish_back, layer.by_out, layer.normed, layer.slope, layer.gain, self.n_cells, 0, layer.scale, layer.before_rows,
                layer.by_bias, layer.by_gain, layer.by_shift,
            )  # fmt: skip
            if for_weights:
                do(torch.bmm, layer.before.transpose(1, 2), layer.x, out=layer.by_weight)
            if number or by_c:
                do(torch.bmm, layer.before, layer.weight, out=layer.by_x)
        if for_weights:
            for place, (parameter, grad, vector) in enumerate(zip(self.parameters, self.grads, self.grad_vectors, strict=True)):
                do(kernels.pack, self.small_sums, self.sizes, place, vector)
                do(setattr, parameter, "grad", grad)
