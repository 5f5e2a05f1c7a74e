"""Batch normalisation of the cells that a modality was measured in: what stands in for the others says nothing of its spread."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm


class MeasuredBatchNorm(nn.BatchNorm1d):
    """Batch normalisation that in training takes only some rows of a minibatch; the others come out as 0.

    Attributes
    ----------
    rows
        Those rows, int64, or None for all. A single one is normalised by the running statistics.
    """

    rows: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Return the normalised rows ``(n_cells, n_units)``."""
        rows = self.rows
        if not self.training or rows is None:
            return super().forward(x)
        some = x.index_select(0, rows)
        one = len(rows) == 1
        some = batch_norm(some, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps) if one else super().forward(some)
        return torch.zeros_like(x, dtype=some.dtype).index_copy(0, rows, some)


def measured_norms(module: nn.Module) -> list[MeasuredBatchNorm]:
    """Put a :class:`MeasuredBatchNorm` in the place of each batch normalisation in a module, with the same parameters, and return them."""
    made = []
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            if type(child) is nn.BatchNorm1d:
                norm = MeasuredBatchNorm(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
                norm.load_state_dict(child.state_dict())
                setattr(part, name, norm)
                made.append(norm)
    return made
