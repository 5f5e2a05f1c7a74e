"""Whether the compiled loop can be used for a minibatch, and its call."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from cellweave.core.nn.counts import CountBatch

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_state: dict[str, Any] = {"compiled": None, "looked": False, "allowed": True, "pool": None, "threads": 0}


def compiled() -> ModuleType | None:
    """Return :mod:`cellweave.core.nn.compiled`, compiling or loading it at the first call; None where numba cannot be used.

    The first call on a machine takes some seconds, later processes less than one. Call it from a worker, not
    from the thread that draws the window.
    """
    with _lock:
        if not _state["looked"]:
            _state["looked"] = True
            _state["compiled"] = _load()
        return _state["compiled"] if _state["allowed"] else None


def _load() -> ModuleType | None:
    try:
        numba = importlib.import_module("numba")
    except ImportError:
        return None
    if numba.config.DISABLE_JIT:
        return None
    try:
        return importlib.import_module("cellweave.core.nn.compiled")
    except numba.core.errors.NumbaError as error:
        _log.warning("The likelihood could not be compiled and is computed in passes, which is slower: %s", error)
        return None


def load_loops(names: Sequence[str], report: Callable[[float | None, str], None]) -> None:
    """Load modules of compiled loops, saying so: the first run on a machine waits for the compiler, and a person should know for what.

    Parameters
    ----------
    names
        Modules of :mod:`cellweave.core.nn`.
    report
        Takes the fraction that is done and a text.
    """
    wanted = [name for name in (f"{__package__}.{name}" for name in names) if name not in sys.modules]
    if not wanted:
        return
    report(0.0, "compiled once on a machine, in less than a minute")
    if compiled() is None:
        return
    for done, name in enumerate(wanted, 1):
        importlib.import_module(name)
        report(done / len(wanted), "")


@contextmanager
def without_compiled() -> Iterator[None]:
    """Use the passes of :mod:`cellweave.core.nn.negative_binomial` inside the ``with`` block, in all threads."""
    before, _state["allowed"] = _state["allowed"], False
    try:
        yield
    finally:
        _state["allowed"] = before


def usable(mean: Tensor, theta: Tensor) -> bool:
    """Return whether the compiled loop serves these arguments: float32 on a CPU, and numba at hand."""
    plain = mean.device.type == "cpu" and mean.dtype == theta.dtype == torch.float32
    return plain and mean.numel() > 0 and compiled() is not None


def log1p_rows(counts: CountBatch) -> tuple[Tensor, Tensor] | None:
    """Return dense ``log(1 + x)`` ``(n_cells, n_features)`` and totals ``(n_cells,)``; None where it cannot be compiled."""
    values = counts.values
    module = compiled() if values.device.type == "cpu" and values.dtype == torch.float32 else None
    if module is None:
        return None
    dense, total = values.new_empty(counts.shape), values.new_empty(counts.n_cells)
    starts, columns, stored = counts.row_starts, counts.cols.contiguous(), values.contiguous()
    _check(module.log1p_rows(starts.numpy(), columns.numpy(), stored.numpy(), dense.numpy(), total.numpy()))
    return dense, total


def _check(done: bool) -> None:
    if not done:
        message = "a count lies in a column that the matrix does not have"
        raise IndexError(message)


def _pool(threads: int) -> ThreadPoolExecutor:
    """Return the threads that share a minibatch; a forked child makes its own."""
    with _lock:
        key = (threads, os.getpid())
        if _state["threads"] != key:
            _state["pool"], _state["threads"] = ThreadPoolExecutor(threads, "likelihood"), key
        return _state["pool"]


def by_threads(loop: Callable[[slice], bool], n_rows: int, threads: int) -> list[bool]:
    """Call a compiled loop for all rows, shared among threads where there are several; return what each call gave."""
    threads = max(1, min(threads, n_rows))
    bounds = [n_rows * place // threads for place in range(threads + 1)]
    parts = [slice(a, b) for a, b in pairwise(bounds)]
    return [loop(parts[0])] if threads == 1 else list(_pool(threads).map(loop, parts))


class CompiledForward:
    """Values and derivatives of one call by the compiled loop; attributes as those of the passes.

    What the stored entries add to the derivative of the dispersion is in ``by_theta`` already, so ``stored_theta`` and
    ``index`` are None.
    """

    index = None
    stored_theta = None

    def __init__(
        self,
        counts: CountBatch,
        mean: Tensor,
        library: Tensor | None,
        theta: Tensor,
        zi_logits: Tensor | None,
        group: Tensor | None,
        eps: float,
        gradients: bool,
    ) -> None:
        self.counts, self.mean, self.zi_logits = counts, mean.contiguous(), zi_logits
        self.library = None if library is None else library.to(mean.dtype)
        self.theta, self.group, self.eps, self.gradients = theta, group, eps, gradients
        self.by_mean = torch.empty_like(self.mean) if gradients else None
        self.by_theta = torch.empty_like(self.mean) if gradients else None
        self.by_zero = torch.empty_like(self.mean) if gradients and zi_logits is not None else None
        self.by_library = torch.empty_like(self.library) if gradients and self.library is not None else None

    def _theta_row(self) -> Tensor:
        """Return the row of the two-dimensional dispersions for each cell."""
        if self.theta.dim() == 1:
            return torch.zeros(self.counts.n_cells, dtype=torch.int64)
        if self.group is None:
            return torch.arange(self.counts.n_cells)
        if int(self.group.min()) < 0 or int(self.group.max()) >= self.theta.shape[0]:
            message = f"a cell belongs to none of the {self.theta.shape[0]} groups of dispersions"
            raise IndexError(message)
        return self.group.to(torch.int64).contiguous()

    def nll(self) -> Tensor:
        """Run the loop, by several threads where torch has several; return the negative log-likelihood of each cell."""
        module = compiled()
        assert module is not None
        rows = module.rows
        n_cells = self.counts.n_cells
        threads = min(torch.get_num_threads(), n_cells)
        nll = self.mean.new_empty(n_cells)
        bounds = [n_cells * place // threads for place in range(threads + 1)]
        calls = [self._arguments(nll, slice(a, b)) for a, b in pairwise(bounds)]
        if threads == 1:
            _check(rows(*calls[0]))
        else:
            _check(all(_pool(threads).map(lambda arguments: rows(*arguments), calls)))
        return nll

    def _arguments(self, nll: Tensor, part: slice) -> tuple[Any, ...]:
        """Return the arguments for some of the cells."""
        like = self.mean
        one_row, no_matrix, no_vector = (like.new_empty(1, like.shape[1]), like.new_empty(0, 0), like.new_empty(0))
        theta = self.theta[None] if self.theta.dim() == 1 else self.theta

        def numpy(tensor: Tensor | None, instead: Tensor) -> Any:
            return instead.numpy() if tensor is None else tensor.contiguous()[part].numpy()

        return (
            like[part].numpy(), numpy(self.library, no_vector), self.library is not None,
            theta.contiguous().numpy(), self._theta_row()[part].numpy(),
            numpy(self.zi_logits, no_matrix), self.zi_logits is not None,
            self.counts.row_starts[part.start : part.stop + 1].numpy(),
            self.counts.cols.contiguous().numpy(), self.counts.values.to(torch.float32).contiguous().numpy(), self.eps,
            nll[part].numpy(), self.gradients,
            numpy(self.by_mean, one_row), numpy(self.by_library, no_vector),
            numpy(self.by_theta, one_row), numpy(self.by_zero, one_row),
        )
