"""The values of one modality in MIDAS: what is explained, what the encoder sees, and how likely it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from cellweave.core.errors import DataError
from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.feature_nll import feature_nll

if TYPE_CHECKING:
    from cellweave.core.models.midas import MidasOptions


class ModalityValues:
    """Transforms and distribution of a modality, as the options say.

    Parameters
    ----------
    options
        Of the run.
    name
        The modality.
    """

    def __init__(self, options: MidasOptions, name: str) -> None:
        self.name = name
        self.distribution = options.distribution[name]
        self.transform = options.transform.get(name, "none")
        self.encoder_transform = options.encoder_transform.get(name, "none")

    def explained(self, counts: CountBatch) -> Tensor:
        """Return the values that are explained at the stored places, ``(nnz,)``."""
        return _apply(self.transform, counts.values)

    def seen(self, counts: CountBatch) -> Tensor:
        """Return the values that the encoder is given at the stored places, ``(nnz,)``."""
        return _apply(self.encoder_transform, self.explained(counts))

    def nll(self, counts: CountBatch, eta: Tensor, mask: Tensor | None, mask_row: Tensor | None) -> Tensor:
        """Return the negative log-likelihood of each cell, ``(n_cells,)``; see :func:`cellweave.core.nn.feature_nll.feature_nll`."""
        return feature_nll(self.distribution, counts, self.explained(counts), eta, mask, mask_row)  # type: ignore[arg-type]

    def mean(self, eta: Tensor) -> Tensor:
        """Return expected values from what the decoder gives, both ``(n_cells, n_features)``."""
        return torch.exp(eta) if self.distribution == "poisson" else torch.sigmoid(eta)

    def sample(self, mean: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return draws of the distribution with these expected values."""
        return torch.poisson(mean, generator=generator) if self.distribution == "poisson" else torch.bernoulli(mean, generator=generator)

    def check(self, counts: sparse.csr_matrix) -> None:
        """Refuse values that the distribution cannot draw.

        Raises
        ------
        DataError
            Where there are any.
        """
        values = counts.data
        if self.transform == "binarize":
            values = np.zeros(0)
        if self.distribution == "bernoulli" and values.size and values.max() > 1:
            raise DataError(
                f"{self.name} holds the value {values.max():g}, but the Bernoulli distribution draws 0 and 1 only.",
                f"Binarise it: --set model.transform.{self.name}=binarize.",
            )


def _apply(transform: str, values: Tensor) -> Tensor:
    if transform == "binarize":
        return (values > 0.5).to(values.dtype)
    return torch.log1p(values) if transform == "log1p" else values
