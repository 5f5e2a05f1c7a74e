"""Adam and AdamW whose step is one compiled pass over all parameters; the same state as torch's."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cellweave.core.nn import compiled_call
from cellweave.core.nn.midas_layers import shared


class CompiledAdam(torch.optim.Adam):
    """torch's Adam, or AdamW where decay is decoupled, for contiguous float32 parameters on a CPU.

    What torch does for each tensor in turn costs more than the arithmetic where a network has dozens of small ones. The step of a parameter is
    kept as a number and becomes torch's tensor when the state is asked for.

    Parameters
    ----------
    groups
        As torch's.
    decoupled
        Whether weight decay is AdamW's.
    narrow
        Whether derivatives may be left in bf16 where a product made them (:class:`cellweave.core.nn.written_layers.Weight`); the weight's bf16 copy is
        then written in the same pass.
    settings
        As torch's.
    """

    def __init__(self, groups: Any, *, decoupled: bool, narrow: bool = False, **settings: Any) -> None:
        super().__init__(groups, **settings)
        self.decoupled = decoupled
        self._kernel = importlib.import_module("cellweave.core.nn.adam_kernel").adam
        self._slots: list[_Slot] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.reads_narrow = narrow
                self._slots.append(_Slot(parameter, group))
        self._settings = np.zeros((len(self._slots), 6))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for slot in self._slots:
            slot.parameter.grad = None
            twin = slot.parameter.__dict__.get("narrow_twin")
            if twin is not None:
                twin.handed = None

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state."""
        for slot in self._slots:
            if slot.count:
                self.state[slot.parameter]["step"] = torch.tensor(slot.count, dtype=torch.float32)
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up torch's state."""
        super().load_state_dict(state_dict)
        self._slots = [_Slot(parameter, group) for group in self.param_groups for parameter in group["params"]]
        for slot in self._slots:
            entry = self.state.get(slot.parameter)
            if entry:
                slot.take(entry["exp_avg"], entry["exp_avg_sq"], float(entry["step"]))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Change every parameter that has a gradient."""
        loss = None if closure is None else closure()
        addresses: list[tuple[int, ...]] = []
        sizes: list[int] = []
        for slot in self._slots:
            gradient, copy = _gradient(slot.parameter)
            if gradient is None:
                continue
            if not slot.count:
                self._begin(slot)
            slot.count += 1.0
            row, group = self._settings[len(sizes)], slot.group
            row[:] = (float(group["lr"]), *group["betas"], group["eps"], group["weight_decay"], slot.count)
            addresses.append((slot.parameter.data_ptr(), gradient.data_ptr(), *slot.addresses, copy))
            sizes.append(slot.size)
        if addresses:
            self._run(np.array(addresses, np.int64), np.array(sizes, np.int64), self._settings[: len(sizes)])
        return loss

    # torch would otherwise wrap the step for its profiler, which costs as much as a small network's step.
    step.hooked = True  # type: ignore[attr-defined]

    def _begin(self, slot: _Slot) -> None:
        """Make the state of a parameter that gets its first gradient."""
        first, second = torch.zeros_like(slot.parameter), torch.zeros_like(slot.parameter)
        self.state[slot.parameter].update(step=torch.zeros((), dtype=torch.float32), exp_avg=first, exp_avg_sq=second)
        slot.take(first, second, 0.0)

    def _run(self, addresses: np.ndarray, sizes: np.ndarray, settings: np.ndarray) -> None:
        total = int(sizes.sum())

        def part(elements: slice) -> bool:
            return bool(self._kernel(addresses, sizes, settings, self.decoupled, elements.start, elements.stop))

        compiled_call.by_threads(part, total, torch.get_num_threads() if shared(total >> 8) else 1)


class _Slot:
    """A parameter with what its step needs, so that nothing is looked up by a tensor."""

    __slots__ = ("addresses", "count", "group", "parameter", "size")

    def __init__(self, parameter: Any, group: dict[str, Any]) -> None:
        self.parameter, self.group, self.size, self.count = parameter, group, parameter.numel(), 0.0
        self.addresses = (0, 0)

    def take(self, first: Tensor, second: Tensor, count: float) -> None:
        """Take up both moments and the number of steps."""
        self.addresses, self.count = (first.data_ptr(), second.data_ptr()), count


def _gradient(parameter: Any) -> tuple[Tensor | None, int]:
    """Return a parameter's gradient and, where that is bf16, the address of the copy that goes with it, else 0."""
    twin = parameter.__dict__.get("narrow_twin")
    if twin is None:
        plain = parameter.grad
    elif twin.handed is not None:
        return twin.handed, twin.copy.data_ptr()
    else:
        plain = parameter.grad
        if plain is not None:
            twin.version = -1  # only the weight itself will be changed, unseen by torch
    if plain is not None and not plain.is_contiguous():
        plain = parameter.grad = plain.contiguous()
    return plain, 0


def serves(parameters: Sequence[Tensor]) -> bool:
    """Return whether the compiled step can change these: contiguous float32 on a CPU, and numba at hand."""
    plain = all(p.device.type == "cpu" and p.dtype == torch.float32 and p.is_contiguous() for p in parameters)
    return plain and compiled_call.compiled() is not None
