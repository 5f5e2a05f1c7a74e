"""The values of one modality in MIDAS: what is explained, what the encoder sees, and how likely it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from cellweave.core.errors import DataError
from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.distributions import distribution, transform
from cellweave.core.nn.feature_nll import feature_nll
from cellweave.core.nn.layers import full_precision

if TYPE_CHECKING:
    from cellweave.core.models.midas import MidasOptions

#: Distributions that have a compiled loop; for Poisson it includes the constant of the original (Stirling's instead of the exact one).
COMPILED = ("poisson", "bernoulli")
SUPPORT = {"counts": "whole numbers from 0", "binary": "0 and 1", "real": "finite numbers"}


class ModalityValues(nn.Module):
    """Transforms and distribution of a modality, as the options say.

    Parameters
    ----------
    options
        Of the run.
    name
        The modality.
    n_features
        Its features; a distribution may learn parameters of each.
    """

    def __init__(self, options: MidasOptions, name: str, n_features: int) -> None:
        super().__init__()
        self.name = name
        self.distribution = distribution(options.distribution_of(name))
        self.transform, self.encoder_transform = transform(options.transform_of(name)), transform(options.encoder_transform_of(name))
        self.extra = nn.ParameterDict({key: torch.full((n_features,), start) for key, start in self.distribution.extra.items()})

    def explained(self, counts: CountBatch) -> Tensor:
        """Return the values that are explained at the stored places, ``(nnz,)``."""
        return self.transform.apply(counts.values)

    def seen(self, counts: CountBatch) -> Tensor:
        """Return the values that the encoder is given at the stored places, ``(nnz,)``."""
        return self.encoder_transform.apply(self.explained(counts))

    def nll(self, counts: CountBatch, eta: Tensor, mask: Tensor | None, mask_row: Tensor | None) -> Tensor:
        """Return the negative log-likelihood of each cell, ``(n_cells,)``.

        Parameters
        ----------
        counts
            The minibatch.
        eta
            What the decoder gives, ``(n_cells, n_features)``.
        mask
            Which features were measured, 0 or 1 ``(n_groups, n_features)``; None for all.
        mask_row
            Row of ``mask`` for each cell, ``(n_cells,)``.
        """
        eta, values = full_precision(eta), self.explained(counts)
        if self.distribution.name in COMPILED:
            return feature_nll(self.distribution.name, counts, values, eta, mask, mask_row)  # type: ignore[arg-type]
        rows = None if mask is None or mask_row is None else mask[mask_row]
        return self.distribution.nll(counts, eta, values=values, extra=dict(self.extra), mask=rows)

    def mean(self, eta: Tensor) -> Tensor:
        """Return expected values in the units of the data from what the decoder gives, both ``(n_cells, n_features)``."""
        return self.transform.undo(self.distribution.mean(full_precision(eta), dict(self.extra)))

    def sample(self, eta: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return draws in the units of the data from what the decoder gives."""
        return self.transform.undo(self.distribution.sample(full_precision(eta), dict(self.extra), generator))

    def check(self, counts: sparse.csr_matrix, block: int = 1 << 24) -> None:
        """Refuse values that the distribution cannot draw, or that a transform cannot take; in blocks, as the counts may lie on disk.

        Raises
        ------
        DataError
            Where there are any.
        """
        for start in range(0, counts.data.shape[0], block):
            raw = torch.from_numpy(np.array(counts.data[start : start + block], dtype=np.float32))
            values = self.transform.apply(raw)
            bad = raw[~_supported(values, self.distribution.support)]
            if len(bad):
                mend = f"Binarise it: --set model.transform.{self.name}=binarize." if self.distribution.support == "binary" else "Choose another distribution."
                raise DataError(
                    f"{self.name} holds the value {float(bad[0]):g}, but the distribution '{self.distribution.name}' draws "
                    f"{SUPPORT[self.distribution.support]} only.", mend
                )
            lost = raw[~torch.isfinite(self.encoder_transform.apply(values))]
            if len(lost):
                raise DataError(
                    f"{self.name} holds the value {float(lost[0]):g}, which the transform '{self.encoder_transform.name}' cannot take.",
                    f"Leave it out: --set model.encoder_transform.{self.name}=none.",
                )


def _supported(values: Tensor, support: str) -> Tensor:
    """Return which values a distribution can draw; values that are no whole numbers pass as counts, since the study let them in."""
    allowed: Any = torch.isfinite(values)
    if support == "binary":
        return allowed & ((values == 0) | (values == 1))
    return allowed & (values >= 0) if support == "counts" else allowed
