"""The likelihood of the ambient models from the decoder's logits on, with its gradients, in one compiled loop where that can be had."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cellweave.core.nn.compiled_call import _check, _pool, compiled
from cellweave.core.nn.counts import CountBatch


def loops() -> Any:
    """Return :mod:`cellweave.core.nn.compiled_ambient`, or None where numba cannot be used."""
    if compiled() is None:
        return None
    from cellweave.core.nn import compiled_ambient

    return compiled_ambient


def usable(logits: Tensor, log_theta: Tensor) -> bool:
    """Return whether the loop serves these arguments: float32 on a CPU, and numba at hand."""
    return logits.device.type == "cpu" and logits.dtype == log_theta.dtype == torch.float32 and logits.numel() > 0 and loops() is not None


def ambient_nll(
    counts: CountBatch,
    logits: Tensor,
    library: Tensor,
    background: tuple[Tensor, Tensor],
    factor: tuple[Tensor, Tensor],
    log_theta: tuple[Tensor, Tensor],
    sd: Tensor | None,
    noise: Tensor | None,
) -> Tensor:
    """Return the negative log-likelihood of each cell, gamma-Poisson with mean ``library * (softplus(logits) + background) * factor``.

    Parameters
    ----------
    counts
        The counts.
    logits
        ``(n_cells, n_features)``.
    library
        ``(n_cells,)``, above 0.
    background, factor, log_theta
        A table ``(n_rows, n_features)`` and the row of each cell, int64 ``(n_cells,)``.
    sd, noise
        With both the log dispersion of a cell is ``log_theta + sd * noise``: ``sd`` has the rows of ``log_theta``, ``noise`` is ``(n_cells, n_features)``.

    Returns
    -------
    Tensor
        ``(n_cells,)``.
    """
    tables = (background[0], factor[0], log_theta[0])
    rows = tuple(_rows(own, len(table)) for table, (_, own) in zip(tables, (background, factor, log_theta), strict=True))
    with torch.autocast(logits.device.type, enabled=False):
        return _Ambient.apply(logits, library, *tables, sd, noise, rows, counts)  # type: ignore[no-untyped-call]


def _rows(rows: Tensor, n: int) -> Tensor:
    if int(rows.min()) < 0 or int(rows.max()) >= n:
        message = f"a cell belongs to none of the {n} rows of a table"
        raise IndexError(message)
    return rows.to(torch.int64).contiguous()


class _Ambient(torch.autograd.Function):
    """Derivatives of each cell are computed in the forward; the backward weighs and adds them up."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        logits: Tensor,
        library: Tensor,
        background: Tensor,
        factor: Tensor,
        log_theta: Tensor,
        sd: Tensor | None,
        noise: Tensor | None,
        rows: tuple[Tensor, Tensor, Tensor],
        counts: CountBatch,
    ) -> Tensor:
        """Return the negative log-likelihood of each cell."""
        gradients, n_cells = any(ctx.needs_input_grad[:6]), counts.n_cells
        logits, library = logits.contiguous(), library.contiguous()
        drawn = sd is not None and noise is not None
        spread = sd if sd is not None and drawn else log_theta
        draws = noise if noise is not None and drawn else logits
        by_expression, by_log_theta = (torch.empty_like(logits) if gradients else logits.new_empty(1, logits.shape[1]) for _ in range(2))
        by_library, nll = torch.empty_like(library), torch.empty_like(library)
        threads = min(torch.get_num_threads(), n_cells)
        bounds = [n_cells * place // threads for place in range(threads + 1)]

        def run(part: slice) -> bool:
            own = part if gradients else slice(0, 1)
            spare = by_expression, by_log_theta
            if not gradients and threads > 1:
                spare = (torch.empty_like(by_expression), torch.empty_like(by_log_theta))
            return bool(
                loops().forward(
                    _numpy(logits[part]), _numpy(library[part]), _numpy(background), _numpy(rows[0][part]), _numpy(factor), _numpy(rows[1][part]),
                    _numpy(log_theta), _numpy(spread), _numpy(rows[2][part]), _numpy(draws[part]), drawn,
                    _numpy(counts.row_starts[part.start : part.stop + 1]), _numpy(counts.cols), _numpy(counts.values.float()),
                    nll[part].numpy(), gradients, spare[0][own].numpy(), spare[1][own].numpy(), by_library[part].numpy(),
                )
            )  # fmt: skip

        parts = [slice(start, stop) for start, stop in pairwise(bounds)]
        _check(all(map(run, parts) if threads == 1 else _pool(threads).map(run, parts)))
        if gradients:
            ctx.save_for_backward(logits, background, factor, spread, draws, *rows, by_expression, by_log_theta, by_library)
            ctx.drawn = drawn
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of logits, library and tables."""
        logits, background, factor, spread, draws, a_row, f_row, d_row, by_expression, by_log_theta, by_library = ctx.saved_tensors
        by_logits = torch.empty_like(logits)
        tables = [torch.zeros_like(table, memory_format=torch.contiguous_format) for table in (background, factor, spread, spread)]
        n_features, threads = logits.shape[1], torch.get_num_threads()
        weights, wanted = grad.contiguous(), np.array([ctx.needs_input_grad[place] for place in (2, 3, 4, 5)])
        bounds = [n_features * place // threads for place in range(threads + 1)]

        def run(part: tuple[int, int]) -> None:
            loops().backward(
                *part, _numpy(weights), _numpy(logits), _numpy(background), _numpy(a_row), _numpy(f_row), _numpy(d_row), _numpy(draws), ctx.drawn,
                _numpy(by_expression), _numpy(by_log_theta), wanted, by_logits.numpy(), *(table.numpy() for table in tables),
            )  # fmt: skip

        parts = list(pairwise(bounds))
        list(map(run, parts) if threads == 1 else _pool(threads).map(run, parts))
        by_background, by_factor, by_theta, by_sd = tables
        return by_logits, by_library * grad, by_background, by_factor.div_(factor), by_theta, by_sd if ctx.drawn else None, None, None, None


def _numpy(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()
