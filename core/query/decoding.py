"""One way to ask any model with decoders for latents, library sizes and expression: what expression and differential expression are built on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cellweave.core.models.regularised_network import RegularisedNetwork
from cellweave.core.models.vae_network import Posterior, VaeNetwork, draw
from cellweave.core.query.trained_run import QueryError, require_finite

if TYPE_CHECKING:
    from cellweave.core.models.base import Minibatch
    from cellweave.core.query.trained_run import TrainedRun


@dataclass(frozen=True)
class Target:
    """What every cell is decoded as; otherwise its own.

    Attributes
    ----------
    batch
        Code of the batch, or None.
    columns
        Codes by column of further covariates.
    """

    batch: int | None = None
    columns: Mapping[str, int] = field(default_factory=dict)


class Decoding(ABC):
    """How a trained model encodes and decodes cells, for one modality.

    Parameters
    ----------
    run
        The open run.
    """

    def __init__(self, run: TrainedRun) -> None:
        self.run, self.modality = run, run.modality_name

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Categorical columns that the decoder is told of, and that a cell can therefore be decoded as."""

    @abstractmethod
    def encode(self, batch: Minibatch) -> Any:
        """Return what the encoders say of the cells, for the methods below."""

    @abstractmethod
    def latent(self, batch: Minibatch, encoded: Any, generator: torch.Generator | None) -> Tensor:
        """Return latents as the decoder sees them ``(n_cells, n_latent)``: a draw, or the posterior mean without a generator."""

    @abstractmethod
    def library(self, batch: Minibatch, encoded: Any, generator: torch.Generator | None) -> Tensor:
        """Return library sizes ``(n_cells,)``: a draw, or the posterior mean without a generator."""

    @abstractmethod
    def decoded(self, batch: Minibatch, z: Tensor, target: Target, *, scale: float | None, library: Tensor | None) -> Tensor:
        """Decode latents.

        Parameters
        ----------
        batch
            The minibatch; it needs counts only with a library.
        z
            What :meth:`latent` gave.
        target
            What the cells are decoded as.
        scale
            Library size of the result; None gives expected counts, for which ``library`` is needed.
        library
            What :meth:`library` gave.

        Returns
        -------
        Tensor
            ``(n_cells, n_features)``.
        """

    def draws(self, chosen: np.ndarray, generator: torch.Generator) -> Tensor:
        """Draw a latent for each of some cells, of which some may be there several times, ``(n_chosen, n_latent)``."""
        parts = [self.latent(batch, self.encode(batch), generator) for _, batch in self.run.minibatches(chosen)]
        return torch.cat(parts)


class VaeDecoding(Decoding):
    """scVI's kind of model, from its encoder or from stored posteriors."""

    def __init__(self, run: TrainedRun) -> None:
        super().__init__(run)
        self.network: VaeNetwork = run.network

    @property
    def columns(self) -> tuple[str, ...]:
        """The batch and the decoder columns."""
        known = self.run.trained.encoding.columns
        return tuple(dict.fromkeys((*known.get("batch", ()), *known.get("decoder", ()))))

    def encode(self, batch: Minibatch) -> Posterior:
        """Return the posterior of the cells."""
        return self.run.posterior(batch)

    def latent(self, batch: Minibatch, encoded: Posterior, generator: torch.Generator | None) -> Tensor:
        """Return transformed latents."""
        if generator is None:
            return self.network.latent_mean(encoded)
        return self.network.transform(draw(encoded.mean, encoded.var, generator))

    def library(self, batch: Minibatch, encoded: Posterior, generator: torch.Generator | None) -> Tensor:
        """Return observed or learned library sizes."""
        return self.run.library_mean(batch, encoded) if generator is None else self.run.draw_library(batch, encoded, generator)

    def decoded(self, batch: Minibatch, z: Tensor, target: Target, *, scale: float | None, library: Tensor | None) -> Tensor:
        """Return shares times ``scale``, or expected counts."""
        size = torch.ones(batch.n_cells, device=z.device) if library is None else library
        code = target.batch
        columns = dict(target.columns)
        for column in self.run.trained.encoding.columns.get("batch", ()):
            code = columns.pop(column, code)
        generated = self.network.generate(_as(batch, "decoder", self.run.trained.encoding.columns.get("decoder", ()), columns), z, size, code)
        return generated.mu if scale is None else generated.share * scale

    def draws(self, chosen: np.ndarray, generator: torch.Generator) -> Tensor:
        """Draw latents; a cell that is there several times is encoded once."""
        rows, back = np.unique(chosen, return_inverse=True)
        posteriors = [self.run.posterior(batch) for _, batch in self.run.minibatches(rows)]
        place = torch.from_numpy(back.ravel()).to(self.run.device)
        mean, var = torch.cat([one.mean for one in posteriors])[place], torch.cat([one.var for one in posteriors])[place]
        return self.network.transform(draw(mean, var, generator))


class RegularisedDecoding(Decoding):
    """The ambient-regularised models of one or several modalities."""

    def __init__(self, run: TrainedRun) -> None:
        super().__init__(run)
        assert isinstance(run.model, RegularisedNetwork)
        self.network: RegularisedNetwork = run.model

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of ambient background, decoder, scaling and dispersion."""
        parts = ("ambient", "decoder", "feature_scaling", "dispersion")
        return tuple(dict.fromkeys(column for part in parts for column in self.network.columns[part]))

    def encode(self, batch: Minibatch) -> Any:
        """Return the posteriors of all modalities."""
        encoded = self.network.encode(batch)
        for posterior in encoded.latents.values():
            require_finite(posterior.mean, "latent")
        return encoded

    def latent(self, batch: Minibatch, encoded: Any, generator: torch.Generator | None) -> Tensor:
        """Return the joint latent."""
        return self.network.joint(batch, encoded, draw=generator is not None, shared_draw=False, generator=generator)

    def library(self, batch: Minibatch, encoded: Any, generator: torch.Generator | None) -> Tensor:
        """Return the library size of the modality, around 1."""
        return self.network.library_of(batch, encoded, self.modality, draw=generator is not None, shared_draw=False, generator=generator)[0]

    def decoded(self, batch: Minibatch, z: Tensor, target: Target, *, scale: float | None, library: Tensor | None) -> Tensor:
        """Return expression without background, scaling and library, times ``scale``; or expected counts with all of them."""
        codes = self.network.codes_of(batch, self.network.transform_of(target.batch, target.columns))
        if scale is not None:
            return self.network.decoded_share(batch, z, self.modality, codes) * scale
        assert library is not None
        return self.network.decoded_counts(batch, z, self.modality, codes, library)


def decoding_of(run: TrainedRun) -> Decoding:
    """Return how the model of a run decodes.

    Raises
    ------
    QueryError
        Where it is none of the models that can be asked so.
    """
    if isinstance(run.model, VaeNetwork):
        return VaeDecoding(run)
    if isinstance(run.model, RegularisedNetwork):
        return RegularisedDecoding(run)
    raise QueryError(
        f"{run.spec.family.title} cannot answer this: it needs latents that are drawn and decoded, as scVI and the ambient-regularised models have.",
        "Ask for its latent space or its denoised expression.",
    )


def _as(batch: Minibatch, role: str, names: tuple[str, ...], columns: Mapping[str, int]) -> Minibatch:
    """Return the minibatch with all cells in some levels of the columns of a list role."""
    from dataclasses import replace

    wanted = {names.index(column): code for column, code in columns.items() if column in names}
    if not wanted:
        return batch
    codes = batch.categorical[role].clone()
    for place, code in wanted.items():
        codes[:, place] = code
    return replace(batch, categorical={**batch.categorical, role: codes})
