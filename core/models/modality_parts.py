"""Small parts of a modality's networks: levels and codes of its covariates, tables with a row for each level, the library size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

#: Limits of a log dispersion in the likelihood, far outside what counts can tell.
LOG_THETA_LIMIT = 15.0


class Levels(NamedTuple):
    """Number of levels of each column by role; one column of one level where none is given."""

    ambient: tuple[int, ...] = (1,)
    decoder: tuple[int, ...] = ()
    feature_scaling: tuple[int, ...] = (1,)
    encoder: tuple[int, ...] = ()
    dispersion: int = 1
    library_size: int = 1


class Codes(NamedTuple):
    """Levels of the cells of a minibatch; None where a role has no column.

    Lists of columns are ``(n_cells, n_columns)``; ``cells`` are the rows of the study.
    """

    ambient: Tensor | None = None
    decoder: Tensor | None = None
    feature_scaling: Tensor | None = None
    encoder: Tensor | None = None
    dispersion: Tensor | None = None
    library_size: Tensor | None = None
    cells: Tensor | None = None


class Rates(NamedTuple):
    """Parameters of the counts.

    Attributes
    ----------
    expression
        Expression without background, scaling and library, ``(n_cells, n_features)``.
    mean
        Expected counts ``(n_cells, n_features)``.
    theta
        Inverse dispersion, ``(n_groups, n_features)`` with ``group``, or ``(n_cells, n_features)``.
    group
        Row of ``theta`` for each cell, or None.
    """

    expression: Tensor
    mean: Tensor
    theta: Tensor
    group: Tensor | None


class LevelTable(nn.Module):
    """A row of parameters for each level of several columns."""

    _offsets: Tensor

    def __init__(self, start: Tensor, levels: Sequence[int]) -> None:
        super().__init__()
        self.raw = nn.Parameter(start)
        self.levels = tuple(levels)
        offsets = np.concatenate([[0], np.cumsum(self.levels)[:-1]]).astype(np.int64)
        self.register_buffer("_offsets", torch.from_numpy(offsets), persistent=False)

    def rows(self, table: Tensor, codes: Tensor | None) -> list[Tensor]:
        """Return the rows of ``table`` for each column, ``(n_cells, n_features)``, or ``(1, n_features)`` of a column of one level."""
        found = []
        for place, n in enumerate(self.levels):
            start = sum(self.levels[:place])
            part = table[start : start + n]
            if n > 1:
                assert codes is not None
                part = part.index_select(0, codes[:, place])
            found.append(part)
        return found


def residual_library(total: Tensor, encoded: Tensor, weight: Tensor | None, centre: float, log_sensitivity: float) -> Tensor:
    """Return the mean of the log library size: what was encoded, and the weighted observed depth where there is a weight.

    Parameters
    ----------
    total
        Total counts ``(n_cells,)``; below 1 they count as 1.
    encoded
        Mean that the library encoder gives ``(n_cells,)``.
    weight
        Weight of the observed total, or None.
    centre
        Mean of log totals over the groups.
    log_sensitivity
        Logarithm of the modality's expected factor.
    """
    if weight is None:
        return encoded
    return log_sensitivity + weight * (torch.log(total.clamp(min=1.0)) - centre) + encoded


def exp_limited(log_theta: Tensor) -> Tensor:
    """Return ``exp`` of log dispersions, no further from 0 than 15.

    The gradient is that of the limited value, also beyond the limit, as in the compiled loop: a dispersion that has run away can come back.
    """
    limited = log_theta.clamp(-LOG_THETA_LIMIT, LOG_THETA_LIMIT)
    # What is added is 0 within the limits, so that nothing is rounded there.
    return torch.exp(log_theta + (limited - log_theta).detach())


def sum_of(rows: Sequence[Tensor]) -> Tensor:
    """Return the sum of tensors that broadcast."""
    total = rows[0]
    for row in rows[1:]:
        total = total + row
    return total
