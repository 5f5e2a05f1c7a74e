"""Adam and AdamW whose step is one compiled pass over all parameters; the same state as torch's."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cellweave.core.nn import compiled_call
from cellweave.core.nn.midas_layers import worth

#: Patterns of gradients whose addresses are kept; a mosaic has one for each pattern of modalities.
MOST_CALLS = 64


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
        self._calls: dict[tuple[int, ...], _Call] = {}
        self._lent: dict[tuple[int, ...], _Call] = {}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for slot in self._slots:
            slot.forget()

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
        self._calls, self._lent = {}, {}
        for slot in self._slots:
            entry = self.state.get(slot.parameter)
            if entry:
                slot.take(entry["exp_avg"], entry["exp_avg_sq"], float(entry["step"]))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Change every parameter that has a gradient."""
        loss = None if closure is None else closure()
        moved: list[_Slot] = []
        places: list[int] = []
        for slot in self._slots:
            gradient, copy = slot.gradient()
            if gradient:
                if not slot.count:
                    self._begin(slot)
                slot.count += 1.0
                moved.append(slot)
                places += (gradient, copy)
        if moved:
            key = tuple(places)
            call = self._calls.get(key)
            if call is None or not call.current(moved):
                call = self._calls[key] = _Call(moved, places)
                while len(self._calls) > MOST_CALLS:
                    del self._calls[next(iter(self._calls))]
            self._run(call.addresses, call.sizes, call.settings(), call.total)
        return loss

    # torch would otherwise wrap the step for its profiler, which costs as much as a small network's step.
    step.hooked = True  # type: ignore[attr-defined]

    def lend(self, parameters: Sequence[Tensor], n_steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Return addresses and settings for a compiled loop that takes the next steps of some parameters itself, as float32 derivatives.

        Parameters
        ----------
        parameters
            Some of those that are optimised.
        n_steps
            How many steps the loop takes; they are counted as done.

        Returns
        -------
        addresses, settings
            As the compiled step takes them, the settings with the number of the first of the steps.
        """
        key = tuple(map(id, parameters))
        call = self._lent.get(key)
        if call is None or not call.current(call.slots):
            by_id = {id(slot.parameter): slot for slot in self._slots}
            if any(place not in by_id for place in key):
                message = "a parameter that is lent is not one of those that are optimised"
                raise ValueError(message)
            slots = [by_id[place] for place in key]
            for slot in slots:
                if not slot.count:
                    self._begin(slot)
            call = self._lent[key] = _Call(slots, [0] * (2 * len(slots)))
        for slot in call.slots:
            slot.count += 1.0
        settings = call.settings()
        for slot in call.slots:
            slot.count += n_steps - 1.0
        return call.addresses, settings

    def _begin(self, slot: _Slot) -> None:
        """Make the state of a parameter that gets its first gradient."""
        first, second = torch.zeros_like(slot.parameter), torch.zeros_like(slot.parameter)
        self.state[slot.parameter].update(step=torch.zeros((), dtype=torch.float32), exp_avg=first, exp_avg_sq=second)
        slot.take(first, second, 0.0)

    def _run(self, addresses: np.ndarray, sizes: np.ndarray, settings: np.ndarray, total: int) -> None:
        def part(elements: slice) -> bool:
            return bool(self._kernel(addresses, sizes, settings, self.decoupled, elements.start, elements.stop))

        compiled_call.by_threads(part, total, worth(total))


class _Slot:
    """A parameter with what its step needs, so that nothing is looked up by a tensor."""

    __slots__ = ("addresses", "count", "group", "parameter", "size")

    def __init__(self, parameter: Any, group: dict[str, Any]) -> None:
        self.parameter, self.group, self.size, self.count = parameter, group, parameter.numel(), 0.0
        self.addresses = (0, 0)

    def take(self, first: Tensor, second: Tensor, count: float) -> None:
        """Take up both moments and the number of steps."""
        self.addresses, self.count = (first.data_ptr(), second.data_ptr()), count

    def forget(self) -> None:
        """Forget the gradient."""
        parameter = self.parameter
        parameter.grad = None
        twin = parameter.__dict__.get("narrow_twin")
        if twin is not None:
            twin.handed = None

    def gradient(self) -> tuple[int, int]:
        """Return the address of the gradient, 0 where there is none, and where it is bf16 that of the copy that goes with it, else 0."""
        parameter = self.parameter
        twin = parameter.__dict__.get("narrow_twin")
        if twin is not None and twin.handed is not None:
            return twin.handed.data_ptr(), twin.copy.data_ptr()
        plain = parameter.grad
        if plain is None:
            return 0, 0
        if twin is not None:
            twin.version = -1  # only the weight itself will be changed, unseen by torch
        if not plain.is_contiguous():
            plain = parameter.grad = plain.contiguous()
        return plain.data_ptr(), 0


class _Call:
    """What the compiled loop is given where the same parameters have gradients in the same memory again."""

    def __init__(self, slots: Sequence[_Slot], places: Sequence[int]) -> None:
        self.slots = list(slots)
        gradients, copies = places[::2], places[1::2]
        self.lies = [(slot.parameter.data_ptr(), *slot.addresses) for slot in slots]
        rows = [(lie[0], gradient, *lie[1:], copy) for lie, gradient, copy in zip(self.lies, gradients, copies, strict=True)]
        self.addresses, self.sizes = np.array(rows, np.int64), np.array([slot.size for slot in slots], np.int64)
        self.total = int(self.sizes.sum())
        self._settings = np.zeros((len(self.slots), 6))

    def current(self, slots: Sequence[_Slot]) -> bool:
        """Return whether these are the parameters and still lie, with their moments, where they lay."""
        return self.slots == slots and all((slot.parameter.data_ptr(), *slot.addresses) == lie for slot, lie in zip(slots, self.lies, strict=True))

    def settings(self) -> np.ndarray:
        """Return the settings of each parameter, as they are now."""
        group: dict[str, Any] | None = None
        start = 0
        for place, slot in enumerate(self.slots):
            if slot.group is not group:
                self._set(start, place, group)
                group, start = slot.group, place
        self._set(start, len(self.slots), group)
        self._settings[:, 5] = [slot.count for slot in self.slots]
        return self._settings

    def _set(self, start: int, stop: int, group: dict[str, Any] | None) -> None:
        if group is not None:
            self._settings[start:stop, :5] = (float(group["lr"]), *group["betas"], group["eps"], group["weight_decay"])


def serves(parameters: Sequence[Tensor]) -> bool:
    """Return whether the compiled step can change these: contiguous float32 on a CPU, and numba at hand."""
    plain = all(p.device.type == "cpu" and p.dtype == torch.float32 and p.is_contiguous() for p in parameters)
    return plain and compiled_call.compiled() is not None
