"""Negative log-likelihoods of masked entries, row by row: a row is a cell in one pass, with the entries that count there.

Values that are 0 cost something in every feature; what others cost in addition is computed at the stored entries only. All five forms are those of
scVAEIT: a mean between the ends of a range, a dispersion that covariates give.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cellweave.core.nn.compiled_call import by_threads, compiled
from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.likelihoods import LOG_2_PI
from cellweave.core.nn.masked_blocks import clipped

LN2 = math.log(2.0)
LEAST = 1e-30


@dataclass(frozen=True)
class Ranges:
    """What the values of each feature lie between, each ``(n_features,)``.

    Attributes
    ----------
    low, high
        Ends of the range.
    mean
        Centre of Gaussian features, 0 otherwise.
    """

    low: Tensor
    high: Tensor
    mean: Tensor


@dataclass(frozen=True)
class Rows:
    """The rows whose likelihood is wanted.

    Attributes
    ----------
    values
        Values of the cells of the minibatch.
    cell
        Cell of each row, int64 ``(n_rows,)``.
    mask
        Which entries count, uint8 ``(n_rows, n_features)``.
    dispersion
        ``(n_groups, n_features)``.
    group
        Row of ``dispersion`` of each row, int64 ``(n_rows,)``.
    """

    values: CountBatch
    cell: Tensor
    mask: Tensor
    dispersion: Tensor
    group: Tensor

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return row, column and value of the stored entries that count, each ``(n_entries,)``."""
        starts = self.values.row_starts
        lengths = (starts[1:] - starts[:-1])[self.cell]
        row = torch.repeat_interleave(torch.arange(len(self.cell), device=lengths.device), lengths)
        before = torch.cumsum(lengths, 0) - lengths
        place = torch.arange(len(row), device=lengths.device) + (starts[self.cell] - before)[row]
        column, value = self.values.cols[place], self.values.values[place]
        keep = (self.mask[row, column] > 0) & (value != 0)
        return row[keep], column[keep], value[keep]

    def each_dispersion(self) -> Tensor:
        """Return the dispersions, broadcastable to ``(n_rows, n_features)``."""
        return self.dispersion if self.dispersion.shape[0] == 1 else self.dispersion.index_select(0, self.group)


def expected(kind: str, logits: Tensor, ranges: Ranges) -> Tensor:
    """Return the expected value of each entry on the scale of training, ``(n_rows, n_features)``."""
    if kind in {"nb", "zinb"}:
        mean = ranges.low + torch.sigmoid(logits) * (ranges.high - ranges.low)
        return mean if kind == "nb" else 0.5 * mean
    if kind == "bernoulli":
        return torch.maximum(torch.minimum(torch.sigmoid(logits), ranges.high), ranges.low)
    if kind == "poisson":
        return torch.exp(torch.maximum(torch.minimum(logits, ranges.high.log()), ranges.low.log()))
    return torch.maximum(torch.minimum(logits + ranges.mean, ranges.high), ranges.low)


def masked_nll(kind: str, logits: Tensor, rows: Rows, ranges: Ranges) -> Tensor:
    """Return the negative log-likelihood of each row, summed over the entries that count, ``(n_rows,)``.

    Parameters
    ----------
    kind
        ``nb``, ``zinb``, ``bernoulli``, ``gaussian`` or ``poisson``.
    logits
        What the decoder gives, ``(n_rows, n_features)``.
    rows
        Values, masks and dispersions.
    ranges
        Of the values.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        if kind == "nb" and _usable(logits, rows):
            return _Compiled.apply(logits, rows.dispersion, rows, ranges)  # type: ignore[no-untyped-call]
        return {"nb": _nb, "zinb": _zinb, "bernoulli": _bernoulli, "gaussian": _gaussian, "poisson": _poisson}[kind](logits, rows, ranges)


def _usable(logits: Tensor, rows: Rows) -> bool:
    plain = logits.device.type == "cpu" and logits.dtype == rows.dispersion.dtype == rows.values.values.dtype == torch.float32
    return plain and logits.numel() > 0 and compiled() is not None


def _nb_parts(logits: Tensor, rows: Rows, ranges: Ranges) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Return what a zero costs in every entry, and what the stored entries cost in addition with their places."""
    mean = (ranges.low + torch.sigmoid(logits) * (ranges.high - ranges.low)).clamp_min(LEAST)
    dispersion = rows.each_dispersion()
    at_zero = torch.log1p(mean * dispersion) / dispersion
    row, column, value = rows.entries()
    # In float64, since the gamma functions of a large inverse dispersion nearly cancel.
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    m, x = mean[row, column].to(wide), value.to(wide)
    r = 1.0 / rows.dispersion[rows.group[row], column].to(wide)
    extra = torch.lgamma(r) - torch.lgamma(x + r) + torch.lgamma(x + 1) - x * (torch.log(m) - torch.log(r + m))
    return at_zero, extra.to(logits.dtype), (row, column)


def _nb(logits: Tensor, rows: Rows, ranges: Ranges) -> Tensor:
    at_zero, extra, (row, _) = _nb_parts(logits, rows, ranges)
    return (at_zero * rows.mask).sum(1).index_add(0, row, extra)


def _zinb(logits: Tensor, rows: Rows, ranges: Ranges) -> Tensor:
    """Zero-inflated with the constant share one half, as published."""
    at_zero, extra, (row, column) = _nb_parts(logits, rows, ranges)
    inflated = LN2 - torch.log1p(torch.exp(-at_zero))
    stored = extra + LN2 + at_zero[row, column] - inflated[row, column]
    return (inflated * rows.mask).sum(1).index_add(0, row, stored)


def _poisson(logits: Tensor, rows: Rows, ranges: Ranges) -> Tensor:
    log_rate = clipped(logits, ranges.low.log(), ranges.high.log())
    row, column, value = rows.entries()
    stored = torch.lgamma(value + 1) - value * log_rate[row, column]
    return (torch.exp(log_rate) * rows.mask).sum(1).index_add(0, row, stored)


def _bernoulli(logits: Tensor, rows: Rows, ranges: Ranges) -> Tensor:
    p = clipped(torch.sigmoid(logits), ranges.low, ranges.high)
    at_zero = -torch.log1p(-p)
    row, column, value = rows.entries()
    stored = -value * (torch.log(p[row, column]) + at_zero[row, column])
    return (at_zero * rows.mask).sum(1).index_add(0, row, stored)


def _gaussian(logits: Tensor, rows: Rows, ranges: Ranges) -> Tensor:
    mean = clipped(logits + ranges.mean, ranges.low, ranges.high)
    sd = rows.each_dispersion()
    values = rows.values.dense.index_select(0, rows.cell)
    each = 0.5 * ((values - mean) / sd) ** 2 + torch.log(sd) + 0.5 * LOG_2_PI
    return (each * rows.mask).sum(1)


class _Compiled(torch.autograd.Function):
    """The negative binomial by the compiled loop, with its derivatives."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, dispersion: Tensor, rows: Rows, ranges: Ranges) -> Tensor:  # type: ignore[override]
        """Return the cost of each row, ``(n_rows,)``."""
        from cellweave.core.nn import compiled_masked

        gradients = any(ctx.needs_input_grad[:2])
        logits, dispersion = logits.detach().contiguous(), dispersion.detach().contiguous()
        kept = logits.shape if gradients else (1, logits.shape[1])
        by_logits, by_dispersion, nll = logits.new_empty(kept), logits.new_empty(kept), logits.new_empty(len(logits))
        tables = [torch.empty(dispersion.shape, dtype=torch.float64) for _ in range(3)]
        compiled_masked.tables(dispersion.numpy(), *(table.numpy() for table in tables))
        values = rows.values.values.contiguous()
        factorials = torch.empty_like(values)
        compiled_masked.factorials(values.numpy(), factorials.numpy())
        span, group, mask, cell = ranges.high - ranges.low, rows.group.contiguous(), rows.mask.contiguous(), rows.cell.contiguous()
        starts, columns = rows.values.row_starts.numpy(), rows.values.cols.contiguous().numpy()

        def loop(part: slice) -> bool:
            own = part if gradients else slice(None)
            return bool(
                compiled_masked.rows(
                    logits[part].numpy(), ranges.low.numpy(), span.numpy(), dispersion.numpy(), *(table.numpy() for table in tables), group[part].numpy(),
                    mask[part].numpy(), cell[part].numpy(), starts, columns, values.numpy(), factorials.numpy(), nll[part].numpy(), gradients,
                    by_logits[own].numpy(), by_dispersion[own].numpy(),
                )
            )  # fmt: skip

        # Without gradients all rows write into one scratch row, which threads must not share.
        if not all(by_threads(loop, len(logits), torch.get_num_threads() if gradients else 1)):
            message = "a value lies in a column that the matrix does not have"
            raise IndexError(message)
        if gradients:
            ctx.save_for_backward(by_logits, by_dispersion)
            ctx.group, ctx.n_groups = rows.group, dispersion.shape[0]
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of logits and dispersions from that of each row, ``(n_rows,)``."""
        by_logits, by_dispersion = ctx.saved_tensors
        if ctx.n_groups == 1:
            grad_dispersion = torch.mv(by_dispersion.t(), grad)[None]
        elif ctx.n_groups <= 64:
            weights = grad.new_zeros(ctx.n_groups, len(grad))
            weights[ctx.group, torch.arange(len(grad))] = grad
            grad_dispersion = weights @ by_dispersion
        else:
            grad_dispersion = by_dispersion.new_zeros(ctx.n_groups, by_dispersion.shape[1]).index_add_(0, ctx.group, by_dispersion * grad[:, None])
        return by_logits * grad[:, None], grad_dispersion, None, None
