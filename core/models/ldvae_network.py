"""The network of LDVAE: scVI's encoders, and a decoder that is one linear map (scvi-tools ``module/_vae.py::LDVAE``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cellweave.core.models.base import BuildContext, Model
from cellweave.core.models.ldvae import FAMILY, LdvaeOptions
from cellweave.core.models.vae import learns_library
from cellweave.core.models.vae_network import VaeNetwork, level_of, library_prior
from cellweave.core.nn.layers import Decoded, Encoder, FCLayer, FCLayers, full_precision


class LinearDecoder(nn.Module):
    """One linear map from the latent and the batch to the logits of expression, and one to those of extra zeros.

    Parameters
    ----------
    n_in, n_out
        Latent size and number of features.
    levels
        Number of levels of each categorical column.
    batch_norm, bias
        Whether the maps have them.
    zeros
        Whether there is a map for extra zeros.
    """

    def __init__(self, n_in: int, n_out: int, levels: Sequence[int], *, batch_norm: bool, bias: bool, zeros: bool) -> None:
        super().__init__()

        def linear() -> FCLayers:
            return FCLayers(n_in, n_out, levels, n_layers=1, dropout_rate=0.0, batch_norm=batch_norm, bias=bias, activation=None)

        self.factors = linear()
        self.zero = linear() if zeros else None

    def forward(self, z: Tensor, codes: Tensor | None = None) -> Decoded:
        """Return the logits for ``z`` ``(n_cells, n_in)`` and ``codes`` ``(n_cells, n_columns)``."""
        zero = None if self.zero is None else full_precision(self.zero(z, codes))
        return Decoded(full_precision(self.factors(z, codes)), None, zero)

    def loadings(self) -> Tensor:
        """Return the weight of each feature in each latent dimension, ``(n_out, n_in)``.

        With batch norm ``diag(gamma / sqrt(running variance + eps)) W``; the columns of the batch are left out.
        """
        layer = self.factors.layers[0]
        assert isinstance(layer, FCLayer)
        weight, norm = layer.linear.weight.detach(), layer.batch_norm
        if norm is None or norm.running_var is None:
            return weight
        return weight * (norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps))[:, None]


class LdvaeNetwork(VaeNetwork):
    """scVI's network with a linear decoder.

    Parameters
    ----------
    context
        Sizes, levels, spec and library-size priors; the model reads the first modality.
    """

    family = FAMILY

    def __init__(self, context: BuildContext) -> None:
        Model.__init__(self)
        options, modality = context.spec.model, context.modalities[0]
        assert isinstance(options, LdvaeOptions)
        self.options, self.modality, self.n_features = options, modality.name, modality.n_features  # type: ignore[assignment]
        self.has_size_factor = False
        self.learns_library = learns_library(context.spec)
        self.n_batches = level_of(context, "batch")
        self.batch_embedding = None
        encoder: dict[str, Any] = {"n_hidden": options.n_hidden, "dropout_rate": options.dropout_rate, "batch_norm": True, "layer_norm": False}
        self.encoder = Encoder(self.n_features, options.n_latent, n_layers=options.n_layers_encoder, **encoder)
        self.library_encoder = None
        if self.learns_library:
            self.library_encoder = Encoder(self.n_features, 1, n_layers=1, **encoder)
            self.register_buffer("library_log_mean", library_prior(context.library_log_mean[modality.name]))
            self.register_buffer("library_log_var", library_prior(context.library_log_var[modality.name]))
        self.decoder = LinearDecoder(  # type: ignore[assignment]
            options.n_latent, self.n_features, (self.n_batches,),
            batch_norm=options.use_batch_norm, bias=options.bias, zeros=options.gene_likelihood == "zinb",
        )
        self.log_theta = self._make_log_theta(self.n_batches, context)

    def loadings(self) -> dict[str, Tensor]:
        """Return the loadings by modality, ``(n_features, n_latent)``."""
        assert isinstance(self.decoder, LinearDecoder)
        return {self.modality: self.decoder.loadings()}


def build(context: BuildContext) -> LdvaeNetwork:
    """Return the network of a run, on the CPU, initialised from torch's global generator."""
    return LdvaeNetwork(context)
