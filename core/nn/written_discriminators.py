"""The discriminators of MIDAS with derivatives that are written out: on a CPU, layer norm and Mish, products in float32 or bf16."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cellweave.core.nn.midas_layers import LAYER_NORM_EPS, SEEDS, in_parts
from cellweave.core.nn.step_program import room_for

if TYPE_CHECKING:
    from cellweave.core.nn.midas_discriminators import Discriminators

Matrix = np.ndarray[Any, Any]
#: Addresses, settings and whether decay is decoupled, as the compiled passes take them.
Adam = tuple[Matrix, Matrix, bool]
NO_ADAM: Adam = (np.zeros((0, 5), np.int64), np.zeros((0, 6)), True)


NARROW, PLAIN = "narrow_discriminators", "plain_discriminators"


def loops_for(sizes: Sequence[int], *, narrow: bool) -> str:
    """Return the module of compiled passes for discriminators of these sizes: in bf16 where asked and all are even, since pairs are read."""
    return NARROW if narrow and not any(size % 2 for size in sizes) else PLAIN


class Lending(Protocol):
    """An optimiser whose steps a compiled loop can take: :class:`cellweave.core.training.compiled_adam.CompiledAdam`."""

    decoupled: bool

    def lend(self, parameters: Sequence[Tensor], n_steps: int) -> tuple[Matrix, Matrix]:
        """Return addresses and settings for the next steps."""


class WrittenDiscriminators:
    """Networks of one shape but for their number of classes; each goes forth, and back, in one compiled call.

    Parameters
    ----------
    module
        The networks; their vectors of weights are read at every call and get the gradients.
    """

    def __init__(self, module: Discriminators) -> None:
        self.module = module
        self._plans: dict[tuple[tuple[str, ...], int, bool], _Plan] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of the network makes its own."""

    def show(self, keys: Sequence[str], c: Tensor, codes: Tensor, *, narrow: bool) -> None:
        """Take up what the discriminators are shown next.

        Parameters
        ----------
        keys, c, codes
            As in :meth:`Discriminators.costs`.
        narrow
            Whether products of hidden layers are in bf16, where there are loops for that.
        """
        self.keys = tuple(keys)
        key = (self.keys, c.shape[1], narrow)
        plan = self._plans.get(key)
        if plan is None or not plan.current():
            plan = self._plans[key] = _Plan(self.module, keys, c.shape[1], narrow=narrow)
        self.plan = plan
        plan.codes.copy_(codes)
        plan.c.tensor.copy_(c)

    def forward(self, generator: torch.Generator | None) -> tuple[Tensor, Matrix]:
        """Return the cross entropies ``(n_keys, n_cells)``, and of each key the numbers of cells guessed right and asked ``(n_keys, 2)``."""
        self.plan.forward(generator, training=self.module.training)
        return self.plan.costs.tensor, self.plan.right.copy()

    def learn(self, optimizer: Lending, n_steps: int, scale: float, generator: torch.Generator | None) -> float:
        """Let them take their steps on what they are shown, of ``scale`` times the sum of their costs; return that sum by cell, the mean of all steps."""
        return self.plan.learn(optimizer, n_steps, scale, generator, training=self.module.training)

    def backward(self, factor: Matrix | float, *, for_weights: bool, by_c: bool) -> Tensor | None:
        """Return the derivative by c of the costs, each times its factor ``(n_keys, n_cells)``; or set those by the weights.

        It can be asked for once after each :meth:`forward`.
        """
        self.plan.factor[:] = factor
        self.plan.backward(for_weights=for_weights, by_c=by_c)
        return self.by_c if by_c else None

    @property
    def by_c(self) -> Tensor:
        """The derivative by c that was computed last, ``(n_keys, n_cells, n_in)``."""
        return self.plan.by_c.tensor


class _Plan:
    """The memory that some discriminators need for a number of cells, and what the compiled passes are given."""

    def __init__(self, module: Discriminators, keys: Sequence[str], n_cells: int, *, narrow: bool) -> None:
        layout = importlib.import_module("cellweave.core.nn.discriminator_layout")
        n_keys, sizes = len(keys), np.array(module.sizes, np.int64)
        classes = np.array([module.n_classes[key] for key in keys], np.int64)
        self.parameters = [module.weights[f"of_{key}"] for key in keys]
        self.addresses = np.array([parameter.data_ptr() for parameter in self.parameters], np.int64)
        self.c, self.by_c = (room_for(n_keys, n_cells, module.sizes[0]) for _ in range(2))
        self.codes = torch.zeros(n_keys, n_cells, dtype=torch.int64)
        self.costs, self.factor, self.right = room_for(n_keys, n_cells), np.zeros((n_keys, n_cells), np.float32), np.zeros((n_keys, 2), np.int64)
        self.memory = room_for(n_keys, layout.room(sizes, n_cells, int(classes.max())))
        self.gradients = room_for(n_keys, max(parameter.numel() for parameter in self.parameters))
        self.grads = [row[: parameter.numel()] for row, parameter in zip(self.gradients.tensor, self.parameters, strict=True)]
        self.networks = (self.addresses, sizes, classes, self.c.array)
        self.seeds = torch.zeros(1, len(sizes) - 1, dtype=torch.int64)
        self.kernels: ModuleType = importlib.import_module(f"cellweave.core.nn.{loops_for(module.sizes, narrow=narrow)}")
        self.like = np.zeros(0, self.kernels.KIND)
        self.rate = float(module.how["dropout"])
        # Products of the widest layers, as many elements as a loop of a few operations for each would take as long for.
        self.width = n_cells * int((sizes[1:] * (sizes[:-1] // 8 + 16)).sum())

    def current(self) -> bool:
        """Return whether the weights still lie where they lay."""
        return all(parameter.data_ptr() == address for parameter, address in zip(self.parameters, self.addresses, strict=True))

    def _drops(self, seeds: Tensor, generator: torch.Generator | None, *, training: bool) -> tuple[Any, ...]:
        """Draw seeds; return what the passes take for what is left out."""
        rate = self.rate if training else 0.0
        if rate > 0:
            torch.randint(SEEDS, seeds.shape, generator=generator, out=seeds)
        return rate > 0, seeds.numpy(), int(rate * 4294967296.0), 1 / (1 - rate), LAYER_NORM_EPS

    def learn(self, optimizer: Lending, n_steps: int, scale: float, generator: torch.Generator | None, *, training: bool) -> float:
        """Take some steps; see :class:`WrittenDiscriminators`."""
        drops = self._drops(torch.zeros(n_steps, len(self.seeds[0]), dtype=torch.int64), generator, training=training)
        self.factor[:] = scale
        told = self._pass(drops, back=True, for_weights=True, adam=(*optimizer.lend(self.parameters, n_steps), optimizer.decoupled))
        return float(told.sum()) / (n_steps * self.c.array.shape[1])

    def forward(self, generator: torch.Generator | None, *, training: bool) -> None:
        """Fill in the costs."""
        self._pass(self._drops(self.seeds, generator, training=training))

    def backward(self, *, for_weights: bool, by_c: bool) -> None:
        """Fill in the derivatives asked for."""
        self._pass((False, self.seeds.numpy(), 0, 1.0, LAYER_NORM_EPS), forth=False, back=True, for_weights=for_weights, by_c=by_c)
        if for_weights:
            for parameter, grad in zip(self.parameters, self.grads, strict=True):
                parameter.grad = grad

    def _pass(
        self, drops: tuple[Any, ...], *, forth: bool = True, back: bool = False, for_weights: bool = False, by_c: bool = False, adam: Adam = NO_ADAM
    ) -> Matrix:
        """Call the compiled passes, each thread for some of the networks; return what the cells cost each, each time."""
        told, codes = np.zeros((len(self.parameters), len(drops[1])), np.float32), self.codes.numpy()

        def part(start: int, stop: int) -> None:
            self.kernels.passes(
                *self.networks, codes, start, stop, *drops, self.memory.array, self.costs.array, self.right, forth, back, for_weights, by_c, self.factor,
                self.gradients.array, self.by_c.array, *adam, told, self.like,
            )  # fmt: skip

        in_parts(len(self.parameters), part, len(drops[1]) * self.width)
        return told
