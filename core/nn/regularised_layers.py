"""Encoder and decoder of the ambient-regularised models (regularizedvi ``_components.py``).

They are those of scVI with other norms, dropout before each layer instead of behind it, chosen starts, and a decoder whose categorical covariates can
be taken out or set to a reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear, softplus

from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.layers import VARIANCE_FLOOR, CategoricalLinear, FCLayers, full_precision
from cellweave.core.nn.midas_layers import _SparseProduct as SparseProduct

Reference = Literal["own", "zero", "mean", "reference"]
VAR_WEIGHT_FACTOR = 0.1
#: Share of stored entries below which the first layer reads them alone (three times as fast at 8 %, one core).
SPARSE_BELOW = 0.2


@dataclass(frozen=True)
class EncoderInput:
    """``log(1 + x)`` of the counts at the stored entries, and further columns behind the features.

    Attributes
    ----------
    counts
        Where the stored entries lie.
    entries
        Their values ``(nnz,)``.
    extra
        Further columns ``(n_cells, n_columns)``, or None.
    """

    counts: CountBatch
    entries: Tensor
    extra: Tensor | None

    def dense(self) -> Tensor:
        """Return the features without the further columns, ``(n_cells, n_features)``."""
        return self.counts.scatter(self.entries)

    def through(self, layer: CategoricalLinear, codes: Tensor | None) -> Tensor:
        """Return the linear map of features, further columns and levels, ``(n_cells, n_out)``; reading only what is stored where that is little."""
        n_features = self.counts.n_features
        little = self.counts.nnz < SPARSE_BELOW * self.counts.n_cells * n_features
        if not little or self.counts.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            x = self.dense()
            return layer(x if self.extra is None else torch.cat([x, self.extra], 1), codes)
        weight = layer.weight[:, :n_features].t().contiguous()
        out: Tensor = SparseProduct.apply(weight, self.counts.row_starts, self.counts.cols, self.entries)  # type: ignore[no-untyped-call]
        # Everything else of the layer: its bias, its levels, and the further columns.
        rest = self.entries.new_zeros(self.counts.n_cells, 0) if self.extra is None else self.extra
        return out + beside(layer, rest, n_features, codes)


def beside(layer: CategoricalLinear, extra: Tensor, n_features: int, codes: Tensor | None) -> Tensor:
    """Return what a layer adds to the map of its first ``n_features`` inputs: bias, levels and further columns, ``(n_cells, n_out)``."""
    out = linear(extra, layer.weight[:, n_features:], layer.bias)
    if layer.level_weight is None:
        return out
    assert codes is not None
    kept = [column for column, n in enumerate(layer.levels) if n > 1]
    start = 0
    for column in kept:
        out = out + layer.level_weight.index_select(0, codes[:, column] + start)
        start += layer.levels[column]
    return out


def counts_for_encoder(counts: CountBatch, rate: float, extra: Sequence[Tensor], *, training: bool) -> EncoderInput:
    """Return ``log(1 + x)`` and further columns, in training with a share of them left out.

    Where a count is 0 leaving it out changes nothing, so that only the stored counts are drawn for.
    """
    entries, columns = counts.values.log1p(), torch.cat(list(extra), 1) if extra else None
    if training and rate > 0:
        entries = dropout(entries, rate)
        columns = None if columns is None else dropout(columns, rate)
    return EncoderInput(counts, entries, columns)


class RegularisedEncoder(nn.Module):
    """Mean and variance of a diagonal normal posterior.

    Parameters
    ----------
    n_in, n_out
        Input size and number of dimensions.
    levels
        Number of levels of each categorical column.
    n_layers, n_hidden, dropout_rate, batch_norm, layer_norm, inject
        As in :class:`cellweave.core.nn.layers.FCLayers`.
    dropout_on_input
        Whether dropout is before each layer; that of the first is done by :func:`counts_for_encoder`.
    var_activation
        ``"exp"`` or ``"softplus"``; what makes the variance positive, before 1e-4 is added.
    mean_scale
        Factor of the first weights of the mean's head.
    sd_start
        Standard deviation that the posterior begins with; None leaves it to random weights.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        levels: Sequence[int] = (),
        *,
        n_layers: int,
        n_hidden: int,
        dropout_rate: float,
        dropout_on_input: bool,
        batch_norm: bool,
        layer_norm: bool,
        inject: bool,
        var_activation: str = "exp",
        mean_scale: float = 1.0,
        sd_start: float | None = None,
    ) -> None:
        super().__init__()
        self.input_dropout = dropout_rate if dropout_on_input else 0.0
        self.hidden = FCLayers(
            n_in, n_hidden, levels, n_layers=n_layers, n_hidden=n_hidden, dropout_rate=0.0 if dropout_on_input else dropout_rate,
            batch_norm=batch_norm, layer_norm=layer_norm, inject=inject,
        )
        self.mean, self.var = nn.Linear(n_hidden, n_out), nn.Linear(n_hidden, n_out)
        functions: dict[str, Callable[[Tensor], Tensor]] = {"exp": torch.exp, "softplus": softplus}
        self._positive = functions[var_activation]
        with torch.no_grad():
            self.mean.weight.mul_(mean_scale)
            if sd_start is not None:
                start = math.log(sd_start**2) if var_activation == "exp" else math.log(math.expm1(sd_start**2))
                self.var.weight.mul_(VAR_WEIGHT_FACTOR)
                self.var.bias.fill_(start)

    def forward(self, x: EncoderInput | Tensor, codes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and **variance**, each ``(n_cells, n_out)``."""
        for place, layer in enumerate(self.hidden.layers):
            if place and self.input_dropout > 0:
                assert isinstance(x, Tensor)
                x = dropout(x, self.input_dropout, self.training)
            x = layer.linear(x, codes) if isinstance(x, Tensor) else x.through(layer.linear, codes)
            for part in (layer.batch_norm, layer.layer_norm, layer.activation, layer.dropout):
                if part is not None:
                    x = part(x)
        assert isinstance(x, Tensor)
        return full_precision(self.mean(x)), self._positive(full_precision(self.var(x))) + VARIANCE_FLOOR


class Expressed(NamedTuple):
    """What the decoder gives, before activations, in full precision.

    Attributes
    ----------
    hidden
        Last hidden layer ``(n_cells, n_hidden)``.
    scale
        Logits of the expression, or of the burst frequency, ``(n_cells, n_features)``.
    size
        Logits of the burst size ``(n_cells, n_features)``, or None.
    """

    hidden: Tensor
    scale: Tensor
    size: Tensor | None


class RegularisedDecoder(nn.Module):
    """From the latent to the logits of expression, or of burst frequency and size.

    Parameters
    ----------
    n_in, n_out
        Latent size (with continuous covariates) and number of features.
    levels
        Number of levels of each categorical column.
    n_layers, n_hidden, batch_norm, layer_norm, inject
        As in :class:`cellweave.core.nn.layers.FCLayers`; there is no dropout.
    burst_hidden
        Width of the layers for burst sizes; None for a decoder of expression.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        levels: Sequence[int] = (),
        *,
        n_layers: int,
        n_hidden: int,
        batch_norm: bool,
        layer_norm: bool,
        inject: bool,
        burst_hidden: int | None = None,
    ) -> None:
        super().__init__()

        def stack(layers: int, width: int) -> FCLayers:
            return FCLayers(
                n_in, width, levels, n_layers=layers, n_hidden=width, dropout_rate=0.0, batch_norm=batch_norm, layer_norm=layer_norm, inject=inject
            )

        self.hidden, self.scale = stack(n_layers, n_hidden), nn.Linear(n_hidden, n_out)
        self.size_hidden = None if burst_hidden is None else stack(max(1, n_layers - 1), burst_hidden)
        self.size = None if burst_hidden is None else nn.Linear(burst_hidden, n_out)

    def forward(self, z: Tensor, codes: Tensor | None = None, reference: Reference = "own", commonest: Tensor | None = None) -> Expressed:
        """Decode latents.

        Parameters
        ----------
        z
            ``(n_cells, n_in)``.
        codes
            Levels ``(n_cells, n_columns)``.
        reference
            ``"own"`` takes each cell's levels, ``"zero"`` none, ``"mean"`` all with equal weight, ``"reference"`` the commonest.
        commonest
            Commonest level of each column ``(n_columns,)``, for the last.
        """
        hidden = self.hidden_of(z, codes, reference, commonest)
        size = None
        if self.size_hidden is not None:
            assert self.size is not None
            size = full_precision(self.size(_through(self.size_hidden, z, codes, reference, commonest)))
        return Expressed(full_precision(hidden), full_precision(self.scale(hidden)), size)

    def hidden_of(self, z: Tensor, codes: Tensor | None = None, reference: Reference = "own", commonest: Tensor | None = None) -> Tensor:
        """Return the last hidden layer alone, ``(n_cells, n_hidden)``; parameters as those of :meth:`forward`."""
        return _through(self.hidden, z, codes, reference, commonest)

    def weight_penalties(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sum of squared weights, of squared covariate weights of the first layer, and of absolute weights of the hidden layers.

        The layers and the head of expression; biases and burst sizes are not in it (specification section 4.6).
        """
        squares, sizes = self.scale.weight.square().sum(), self.scale.weight.new_zeros(())
        covariates = sizes
        for place, layer in enumerate(self.hidden.layers):
            for weight in (layer.linear.weight, layer.linear.level_weight):
                if weight is None:
                    continue
                square = weight.square().sum()
                squares, sizes = squares + square, sizes + weight.abs().sum()
                if place == 0 and weight is layer.linear.level_weight:
                    covariates = square
        return squares, covariates, sizes


def _through(stack: FCLayers, x: Tensor, codes: Tensor | None, reference: Reference, commonest: Tensor | None) -> Tensor:
    for layer in stack.layers:
        x = _mapped(layer.linear, x, codes, reference, commonest)
        for part in (layer.batch_norm, layer.layer_norm, layer.activation):
            if part is not None:
                x = part(x)
    return x


def _mapped(layer: CategoricalLinear, x: Tensor, codes: Tensor | None, reference: Reference, commonest: Tensor | None) -> Tensor:
    if reference == "own" or layer.level_weight is None:
        return layer(x, codes)
    if reference == "reference":
        assert commonest is not None
        return layer(x, commonest.expand(x.shape[0], -1))
    out = linear(x, layer.weight, layer.bias)
    if reference == "zero":
        return out
    sizes = [n for n in layer.levels if n > 1]
    return out + torch.stack([part.mean(0) for part in layer.level_weight.split(sizes)]).sum(0)
