"""What the layers of a written step share: buffers, and the calls of a step, which are made out once and then repeated.

The buffers of a step stay where they are, so every call of it, to a product of torch or to a compiled loop, has the same arguments each time the
same modalities of as many cells are seen again. Repeating the calls leaves out what Python does between them, which is a fifth of a small step.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cellweave.core.nn.midas_layers import SEEDS

#: Numbers around memory that compiled loops write: more than they treat at once.
APART = 256
#: Layers with dropout that a program can have.
MOST_SEEDS = 4096


@dataclass(slots=True)
class Array:
    """The same memory as a tensor and as an array; bf16 appears as uint16 in the array."""

    tensor: Tensor
    array: np.ndarray[Any, Any]

    @property
    def narrow(self) -> bool:
        """Whether it is bf16."""
        return self.tensor.dtype == torch.bfloat16

    def view(self, *shape: int) -> Array:
        """Return the same numbers in another shape."""
        return Array(self.tensor.view(shape), self.array.reshape(shape))

    def rows(self, start: int, stop: int) -> Array:
        """Return some of the rows."""
        return Array(self.tensor[start:stop], self.array[start:stop])


def room_for(*shape: int, kind: torch.dtype = torch.float32) -> Array:
    """Return memory of zeros with room around it, so that no sum of a compiled loop depends on what lies beside it.

    A loop over memory that begins just behind what it reads goes element by element and adds up in another order.
    """
    size = math.prod(shape)
    return as_array(torch.zeros(size + 2 * APART, dtype=kind)[APART : APART + size].view(shape))


def as_array(tensor: Tensor) -> Array:
    """Return a contiguous tensor with its array."""
    plain = tensor.detach()
    return Array(plain, plain.view(torch.int16).numpy().view(np.uint16) if plain.dtype == torch.bfloat16 else plain.numpy())


class Program:
    """Calls in their order.

    Attributes
    ----------
    calls
        Each without arguments.
    seeds
        One for each layer that leaves out units, drawn anew when the calls are repeated; ``n_seeds`` of them are used.
    result
        What the one who made the program out keeps with it.
    """

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []
        self.seeds, self.n_seeds = as_array(torch.zeros(MOST_SEEDS, dtype=torch.int64)), 0
        self.drawn = self.seeds.tensor[:0]
        self.result: Any = None


class Space:
    """The buffers of one network's steps, how its products are computed, and the program that is being made out.

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
        self._programs: dict[tuple[Any, ...], Program] = {}
        self._made: Program | None = None

    def clear(self) -> None:
        """Forget all buffers and programs; the calls hold those who made them out."""
        self._kept.clear()
        self._programs.clear()

    def take(self, owner: object, name: str, *shape: int, narrow: bool = False, kind: torch.dtype = torch.float32) -> Array:
        """Return the buffer of this owner, name and shape; its content is what was left there."""
        key = (id(owner), name, shape, narrow)
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = room_for(*shape, kind=torch.bfloat16 if narrow else kind)
        return found

    def sums(self, parameter: Tensor) -> Array:
        """Return what a parameter's derivative is added to in the calls that follow: zeros at first, and the parameter's ``grad``."""
        found = self.take(parameter, "grad", *parameter.shape)

        def begin() -> None:
            found.array.fill(0.0)
            parameter.grad = found.tensor

        self.do(begin)
        return found

    def do(self, function: Callable[..., object], *arguments: Any, **named: Any) -> None:
        """Make a call, now and whenever the program that is being made out is repeated."""
        call = partial(function, *arguments, **named) if arguments or named else function
        call()
        if self._made is not None:
            self._made.calls.append(call)

    def seed(self) -> np.ndarray:
        """Return where the seed of a layer lies that leaves out units, ``(1,)``."""
        program = self._made
        if program is None:
            return torch.randint(SEEDS, (1,), generator=self.generator).numpy()
        place, program.n_seeds = program.n_seeds, program.n_seeds + 1
        program.drawn = program.seeds.tensor[: place + 1]
        program.drawn[place] = torch.randint(SEEDS, (), generator=self.generator)
        return program.seeds.array[place : place + 1]

    def run(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """Make out the calls that belong to a key, or repeat them; return what ``make`` returned when they were made out.

        The draws are the same either way: those of the seeds come in the order of the layers, before all others.
        """
        key = (*key, self.narrow, self.training, torch.get_num_threads())
        program = self._programs.get(key)
        if program is not None:
            if program.n_seeds:
                torch.randint(SEEDS, (program.n_seeds,), generator=self.generator, out=program.drawn)
            for call in program.calls:
                call()
            return program.result
        program = self._made = Program()
        try:
            program.result = make()
        finally:
            self._made = None
        self._programs[key] = program
        return program.result
