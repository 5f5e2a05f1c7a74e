"""Fully connected layers, encoder and decoder of the scVI family (scvi-tools ``nn/_base_components.py``).

Categorical covariates are mathematically one-hot columns appended after the features. They are kept as a table with one
row of weights per level, so that a level costs a look-up instead of a column of zeros in a matrix product.
:mod:`cellweave.core.nn.scvi_names` converts to and from the one wide matrix of scvi-tools.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

BATCH_NORM_MOMENTUM = 0.01
BATCH_NORM_EPS = 1e-3
VARIANCE_FLOOR = 1e-4


def full_precision(values: Tensor) -> Tensor:
    """Return ``values`` in float32 where mixed precision made them narrower, otherwise as they are."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


#: Activations of hidden layers by the name that the specs use.
ACTIVATIONS: dict[str, Callable[[], nn.Module] | None] = {
    "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "softplus": nn.Softplus, "none": None,
}  # fmt: skip


class CategoricalLinear(nn.Module):
    """A linear map of features and of the levels of categorical columns.

    Parameters
    ----------
    n_in, n_out
        Numbers of features in and out.
    levels
        Number of levels of each column; a column with fewer than two levels adds nothing.
    bias
        Whether there is a bias.
    """

    _offsets: Tensor

    def __init__(self, n_in: int, n_out: int, levels: Sequence[int] = (), *, bias: bool = True) -> None:
        super().__init__()
        self.n_in, self.levels = n_in, tuple(int(n) for n in levels)
        self._kept = [column for column, n in enumerate(self.levels) if n > 1]
        sizes = [self.levels[column] for column in self._kept]
        bound = 1 / math.sqrt(max(n_in + sum(sizes), 1))
        self.weight = nn.Parameter(torch.empty(n_out, n_in).uniform_(-bound, bound))
        self.level_weight = nn.Parameter(torch.empty(sum(sizes), n_out).uniform_(-bound, bound)) if sizes else None
        self.bias = nn.Parameter(torch.empty(n_out).uniform_(-bound, bound)) if bias else None
        offsets = torch.tensor([sum(sizes[:place]) for place in range(len(sizes))], dtype=torch.int64)
        self.register_buffer("_offsets", offsets, persistent=False)

    def forward(self, x: Tensor, codes: Tensor | None = None) -> Tensor:
        """Return the map of ``x`` ``(n_cells, n_in)`` and ``codes`` ``(n_cells, n_columns)``, ``(n_cells, n_out)``."""
        out = linear(x, self.weight, self.bias)
        if self.level_weight is None:
            return out
        if codes is None:
            message = f"codes of {len(self.levels)} categorical columns are needed"
            raise ValueError(message)
        if len(self._kept) == 1:
            return out + self.level_weight.index_select(0, codes[:, self._kept[0]])
        rows = (codes if len(self._kept) == len(self.levels) else codes[:, self._kept]) + self._offsets
        picked = self.level_weight.index_select(0, rows.reshape(-1))
        return out + picked.view(*rows.shape, -1).sum(1)


class FCLayer(nn.Module):
    """Linear, batch norm, layer norm, activation, dropout, in this order; each but the first may be absent."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        levels: Sequence[int],
        *,
        dropout_rate: float,
        batch_norm: bool,
        layer_norm: bool,
        bias: bool,
        activation: Callable[[], nn.Module] | None,
    ) -> None:
        super().__init__()
        self.linear = CategoricalLinear(n_in, n_out, levels, bias=bias)
        self.batch_norm = nn.BatchNorm1d(n_out, BATCH_NORM_EPS, BATCH_NORM_MOMENTUM) if batch_norm else None
        self.layer_norm = nn.LayerNorm(n_out, elementwise_affine=False) if layer_norm else None
        self.activation = activation() if activation is not None else None
        self.dropout = nn.Dropout(dropout_rate) if dropout_rate > 0 else None

    def forward(self, x: Tensor, codes: Tensor | None) -> Tensor:
        """Return ``(n_cells, n_out)``."""
        x = self.linear(x, codes)
        for part in (self.batch_norm, self.layer_norm, self.activation, self.dropout):
            if part is not None:
                x = part(x)
        return x


class FCLayers(nn.Module):
    """A stack of fully connected layers.

    Parameters
    ----------
    n_in, n_out
        Sizes of the first input and the last output.
    levels
        Number of levels of each categorical column.
    n_layers
        Number of layers; the inner ones are ``n_hidden`` wide.
    n_hidden
        Width of the inner layers.
    dropout_rate
        Share of outputs of each layer left out in training.
    batch_norm, layer_norm, bias
        Whether each layer has them.
    inject
        Whether the categorical columns reach every layer, or only the first.
    activation
        Makes the activation of a layer; None for none.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        levels: Sequence[int] = (),
        *,
        n_layers: int = 1,
        n_hidden: int = 128,
        dropout_rate: float = 0.1,
        batch_norm: bool = True,
        layer_norm: bool = False,
        bias: bool = True,
        inject: bool = True,
        activation: Callable[[], nn.Module] | None = nn.ReLU,
    ) -> None:
        super().__init__()
        sizes = [n_in, *[n_hidden] * (n_layers - 1), n_out]
        self.layers: Sequence[FCLayer] = nn.ModuleList(  # type: ignore[assignment]
            FCLayer(
                size_in, size_out, levels if place == 0 or inject else (),
                dropout_rate=dropout_rate, batch_norm=batch_norm, layer_norm=layer_norm, bias=bias,
                activation=activation,
            )
            for place, (size_in, size_out) in enumerate(pairwise(sizes))
        )

    def forward(self, x: Tensor, codes: Tensor | None = None) -> Tensor:
        """Return ``(n_cells, n_out)`` from ``x`` ``(n_cells, n_in)`` and ``codes`` ``(n_cells, n_columns)``."""
        for layer in self.layers:
            x = layer(x, codes)
        return x


class Encoder(nn.Module):
    """Mean and variance of a diagonal normal posterior.

    Parameters
    ----------
    n_in, n_out
        Input size and number of latent dimensions.
    levels
        Number of levels of each categorical column.
    n_layers, n_hidden, dropout_rate, batch_norm, layer_norm, bias, inject, activation
        As in :class:`FCLayers`.
    var_activation
        ``"exp"`` or ``"softplus"``; what makes the variance positive.
    var_floor
        Added to the variance.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        levels: Sequence[int] = (),
        *,
        n_layers: int = 1,
        n_hidden: int = 128,
        dropout_rate: float = 0.1,
        batch_norm: bool = True,
        layer_norm: bool = False,
        bias: bool = True,
        inject: bool = True,
        activation: Callable[[], nn.Module] | None = nn.ReLU,
        var_activation: str = "exp",
        var_floor: float = VARIANCE_FLOOR,
    ) -> None:
        super().__init__()
        self.hidden = FCLayers(
            n_in, n_hidden, levels, n_layers=n_layers, n_hidden=n_hidden, dropout_rate=dropout_rate,
            batch_norm=batch_norm, layer_norm=layer_norm, bias=bias, inject=inject, activation=activation,
        )
        self._floor = var_floor
        self.mean = nn.Linear(n_hidden, n_out)
        self.var = nn.Linear(n_hidden, n_out)
        functions: dict[str, Callable[[Tensor], Tensor]] = {"exp": torch.exp, "softplus": softplus}
        self._positive = functions[var_activation]

    def forward(self, x: Tensor, codes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and **variance**, each ``(n_cells, n_out)``."""
        hidden = self.hidden(x, codes)
        return full_precision(self.mean(hidden)), self._positive(full_precision(self.var(hidden))) + self._floor


class Decoded(NamedTuple):
    """What the decoder's heads give, before any activation; each ``(n_cells, n_out)`` in full precision, or None."""

    scale: Tensor
    dispersion: Tensor | None
    zero: Tensor | None


class Decoder(nn.Module):
    """From the latent to the logits of expression, and to dispersion and extra zeros where the likelihood has them.

    scvi-tools always makes all three heads; heads that no likelihood reads are left out here, so that they cost neither
    memory nor a place in the checkpoint.

    Parameters
    ----------
    n_in, n_out
        Latent size (with continuous covariates) and number of features.
    levels
        Number of levels of each categorical column.
    n_layers, n_hidden, batch_norm, layer_norm, bias, inject, activation
        As in :class:`FCLayers`; there is no dropout.
    dispersion
        Whether there is a head for a dispersion per cell and feature.
    zeros
        Whether there is a head for the logits of extra zeros.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        levels: Sequence[int] = (),
        *,
        n_layers: int = 1,
        n_hidden: int = 128,
        batch_norm: bool = True,
        layer_norm: bool = False,
        bias: bool = True,
        inject: bool = True,
        activation: Callable[[], nn.Module] | None = nn.ReLU,
        dispersion: bool = False,
        zeros: bool = False,
    ) -> None:
        super().__init__()
        self.hidden = FCLayers(
            n_in, n_hidden, levels, n_layers=n_layers, n_hidden=n_hidden, dropout_rate=0.0,
            batch_norm=batch_norm, layer_norm=layer_norm, bias=bias, inject=inject, activation=activation,
        )
        self.scale = nn.Linear(n_hidden, n_out)
        self.dispersion = nn.Linear(n_hidden, n_out) if dispersion else None
        self.zero = nn.Linear(n_hidden, n_out) if zeros else None

    def forward(self, z: Tensor, codes: Tensor | None = None) -> Decoded:
        """Return the heads' values for ``z`` ``(n_cells, n_in)`` and ``codes`` ``(n_cells, n_columns)``."""
        hidden = self.hidden(z, codes)
        return Decoded(
            full_precision(self.scale(hidden)),
            None if self.dispersion is None else full_precision(self.dispersion(hidden)),
            None if self.zero is None else full_precision(self.zero(hidden)),
        )
