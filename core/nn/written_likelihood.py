"""The cost of one modality's values in a training step of MIDAS that is written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.midas_layers import in_parts
from cellweave.core.nn.midas_values import COMPILED, ModalityValues
from cellweave.core.nn.step_program import Array, Space
from cellweave.core.nn.written_layers import check
from cellweave.core.nn.written_parts import narrowed


class WrittenLikelihood:
    """Costs of each cell and their derivative: of a compiled loop, or traced for distributions that have none.

    Parameters
    ----------
    space
        Where the buffers are.
    values
        Transforms and distribution.
    bias
        Of the decoder's last map, ``(n_features,)``.

    Attributes
    ----------
    at_once
        Whether the factors of the costs are known when these are computed, so that the derivative is weighed in the same pass.
    masked
        Whether the features shown were measured in some cells only.
    """

    def __init__(self, space: Space, values: ModalityValues, bias: Tensor) -> None:
        self.space, self.values, self.bias, self.at_once, self.masked = space, values, bias, False, False

    def show(self, counts: CountBatch, mask: Tensor | None, group: Tensor | None) -> Tensor:
        """Take up the values of a minibatch, with what was measured ``(n_groups, n_features)`` and the group of each cell; return the stored ones."""
        self.counts, self.mask, self.group, self.masked = counts, mask, group if mask is not None else None, mask is not None
        entries = self.values.explained(counts)
        if self.values.distribution.name in COMPILED:
            table = np.zeros((1, 0), np.float32) if mask is None else mask.float().contiguous().numpy()
            numbers = np.zeros(counts.n_cells, np.int64) if self.group is None else self.group.contiguous().numpy()
            stored = entries.to(torch.float32).contiguous().numpy()
            self.stored = counts.row_starts.numpy(), counts.cols.contiguous().numpy(), stored, self.masked, table, numbers
        return entries

    def forward(self, x: Array, costs: np.ndarray[Any, Any], factor: np.ndarray[Any, Any]) -> Callable[[], Array]:
        """Make out the calls that fill in the costs ``(n_cells,)`` of what the decoder gives without its bias, ``(n_cells, n_features)``.

        What is returned makes out those that give the derivative by ``x`` of the costs, each times its factor, and set that of the bias.
        """
        if self.values.distribution.name not in COMPILED:
            return self._traced(x, costs, factor)
        return self._weighed(x, costs, factor) if self.at_once else self._plain(x, costs, factor)

    def _traced(self, x: Array, costs: np.ndarray, factor: np.ndarray) -> Callable[[], Array]:
        nll: list[Tensor] = []
        eta: list[Tensor] = []

        def forth() -> None:
            with torch.enable_grad():
                eta[:] = [(x.tensor.float() + self.bias.detach()).requires_grad_()]
                nll[:] = [self.values.nll(self.counts, eta[0], self.mask, self.group)]
            costs[:] = nll[0].detach().numpy()

        def back() -> Array:
            by_eta = self.space.take(self, "by eta", *x.array.shape)

            def derive() -> None:
                with torch.enable_grad():
                    nll.pop().backward(torch.from_numpy(factor))
                found = eta.pop().grad
                assert found is not None
                self.bias.grad = found.sum(0)
                by_eta.tensor.copy_(found)

            self.space.do(derive)
            return narrowed(self.space, self, "by x", by_eta)

        self.space.do(forth)
        return back

    def _plain(self, x: Array, costs: np.ndarray, factor: np.ndarray) -> Callable[[], Array]:
        space, shift, poisson = self.space, self.bias.detach().numpy(), self.values.distribution.name == "poisson"
        n_cells, n_features = x.array.shape
        by_eta = space.take(self, "by eta", n_cells, n_features).array
        out = space.take(self, "by x", n_cells, n_features, narrow=x.narrow)

        def forth() -> None:
            starts, columns, entries, masked, table, group = self.stored

            def part(a: int, z: int) -> bool:
                return bool(
                    space.kernels.count_nll(
                        x.array[a:z], shift, poisson, starts[a : z + 1], columns, entries, masked, table, group[a:z], costs[a:z], by_eta[a:z]
                    )
                )

            check(all(in_parts(n_cells, part, n_features)))

        def back() -> Array:
            total = space.sums(self.bias).array
            space.do(space.kernels.scaled, by_eta, factor, out.array, total)
            return out

        space.do(forth)
        return back

    def _weighed(self, x: Array, costs: np.ndarray, factor: np.ndarray) -> Callable[[], Array]:
        space, shift, poisson = self.space, self.bias.detach().numpy(), self.values.distribution.name == "poisson"
        n_cells, n_features = x.array.shape
        out = space.take(self, "by x", n_cells, n_features, narrow=x.narrow)
        total = space.sums(self.bias).array

        def forth() -> None:
            starts, columns, entries, masked, table, group = self.stored

            def part(a: int, z: int) -> tuple[bool, np.ndarray]:
                own = np.zeros_like(total)
                done = space.kernels.count_step(
                    x.array[a:z], shift, poisson, starts[a : z + 1], columns, entries, masked, table, group[a:z], factor[a:z], costs[a:z], out.array[a:z], own
                )
                return bool(done), own

            found = in_parts(n_cells, part, n_features)
            check(all(done for done, _ in found))
            for _, own in found:  # in the order of the cells, whichever thread was first
                np.add(total, own, out=total)

        space.do(forth)
        return lambda: out
