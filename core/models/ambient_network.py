"""The network of the ambient-regularised VAE of one modality (regularizedvi ``_module.py``)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cellweave.core.models.ambient import FAMILY, AmbientOptions
from cellweave.core.models.base import BuildContext, Minibatch
from cellweave.core.models.regularised_base import Cost, Encoded, LatentPosterior, normal_draw
from cellweave.core.models.regularised_network import RegularisedNetwork
from cellweave.core.nn.regularised_layers import EncoderInput


class AmbientNetwork(RegularisedNetwork):
    """One encoder, one decoder; see :class:`RegularisedNetwork`.

    Parameters
    ----------
    context
        Sizes, levels, spec and summaries; the model reads the first modality.
    """

    family = FAMILY

    def __init__(self, context: BuildContext) -> None:
        options, info = context.spec.model, context.modalities[0]
        assert isinstance(options, AmbientOptions)
        here = (info.name,)
        super().__init__(
            context,
            here,
            {info.name: options},
            options.n_latent,
            here if options.use_additive_background else (),
            here if options.use_feature_scaling else (),
        )
        self.modality = info.name
        self.encoder = self.make_encoder(info.n_features + context.n_continuous, options.n_latent, options)

    def term(self, name: str, modality: str) -> str:
        """Return the name of a term: there is one modality, which is not said."""
        return name

    def term_suffix(self, modality: str) -> str:
        """Return nothing: there is one modality."""
        return ""

    @staticmethod
    def _present(batch: Minibatch, name: str) -> Tensor | None:
        """Return None: the engine leaves unmeasured cells out, and a cell without a count is encoded as any other."""
        return None

    def _latents(
        self, batch: Minibatch, inputs: Mapping[str, EncoderInput], present: Mapping[str, Tensor | None]
    ) -> dict[str, LatentPosterior]:
        mean, var = self.encoder(inputs[self.modality], batch.categorical.get("encoder"))
        return {self.modality: LatentPosterior(mean, var, None)}

    def joint(
        self,
        batch: Minibatch,
        encoded: Encoded,
        *,
        draw: bool,
        shared_draw: bool,
        generator: torch.Generator | None = None,
        cost: Cost | None = None,
    ) -> Tensor:
        """Return a draw or the mean of the latent ``(n_cells, n_latent)``."""
        posterior = encoded.latents[self.modality]
        return normal_draw(posterior.mean, posterior.var, generator) if draw else posterior.mean

    def latent_blocks(self) -> dict[str, slice]:
        """Return the whole latent under the name of the modality."""
        return {self.modality: slice(0, self.n_latent)}


def build(context: BuildContext) -> AmbientNetwork:
    """Return the network of a run, on the CPU, initialised from torch's global generator."""
    return AmbientNetwork(context)
