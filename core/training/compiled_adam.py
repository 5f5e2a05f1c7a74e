"""Adam and AdamW whose step is one compiled pass over all parameters; the same state as torch's."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cellweave.core.nn import compiled_call
from cellweave.core.nn.midas_layers import shared


class CompiledAdam(torch.optim.Adam):
    """torch's Adam, or AdamW where decay is decoupled, for contiguous float32 parameters on a CPU.

    What torch does for each tensor in turn costs more than the arithmetic where a network has dozens of small ones.
    """

    def __init__(self, groups: Any, *, decoupled: bool, **settings: Any) -> None:
        super().__init__(groups, **settings)
        self.decoupled = decoupled
        self._kernel = importlib.import_module("cellweave.core.nn.adam_kernel").adam

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Change every parameter that has a gradient."""
        loss = None if closure is None else closure()
        addresses, sizes, settings, counts = [], [], [], []
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                if not gradient.is_contiguous():
                    gradient = parameter.grad = gradient.contiguous()
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32)
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                counts.append(state["step"])
                addresses.append((parameter.data_ptr(), gradient.data_ptr(), state["exp_avg"].data_ptr(), state["exp_avg_sq"].data_ptr()))
                sizes.append(parameter.numel())
                settings.append((group["lr"], beta1, beta2, group["eps"], group["weight_decay"]))
        if not addresses:
            return loss
        torch._foreach_add_(counts, 1.0)
        numbers = np.column_stack([np.array(settings, np.float64), torch.stack(counts).double().numpy()])
        self._run(np.array(addresses, np.int64), np.array(sizes, np.int64), np.ascontiguousarray(numbers))
        return loss

    def _run(self, addresses: np.ndarray, sizes: np.ndarray, settings: np.ndarray) -> None:
        total = int(sizes.sum())

        def part(rows: slice) -> bool:
            return bool(self._kernel(addresses, sizes, settings, self.decoupled, rows.start, rows.stop))

        compiled_call.by_threads(part, total, torch.get_num_threads() if shared(total >> 8) else 1)


def serves(parameters: list[Tensor]) -> bool:
    """Return whether the compiled step can change these: contiguous float32 on a CPU, and numba at hand."""
    plain = all(p.device.type == "cpu" and p.dtype == torch.float32 and p.is_contiguous() for p in parameters)
    return plain and compiled_call.compiled() is not None
