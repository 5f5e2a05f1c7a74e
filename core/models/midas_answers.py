"""What a trained MIDAS says of cells: latents, expected values, their spread over the posterior, and draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cellweave.core.models.base import Minibatch, ModalityInfo, Model
from cellweave.core.models.midas import MidasOptions
from cellweave.core.models.spread import over_draws
from cellweave.core.nn.midas_values import ModalityValues

if TYPE_CHECKING:
    from cellweave.core.models.midas_network import Seen


class MidasAnswers(Model):
    """The half of the network that is asked, not trained; :class:`cellweave.core.models.midas_network.MidasNetwork` has encoders and decoders."""

    options: MidasOptions
    infos: Sequence[ModalityInfo]
    values: Mapping[str, ModalityValues]

    if TYPE_CHECKING:

        def see(
            self, batch: Minibatch, *, draw: bool, told: bool, given: Sequence[str] | None = None, generator: torch.Generator | None = None
        ) -> Seen:
            """Run the encoders."""

        def decode(self, z: Tensor, names: Sequence[str], generator: torch.Generator | None = None) -> dict[str, Tensor]:
            """Run the decoders."""

    def latent(self, batch: Minibatch) -> dict[str, Tensor]:
        """Return posterior means: ``latent`` (c of all modalities), ``u``, and ``c_MODALITY``, ``u_MODALITY`` of each alone; NaN where not measured."""
        seen = self.see(batch, draw=False, told=self.options.batch_expert)
        n_c = self.options.n_latent
        result = {"latent": seen.joint.mean[:, :n_c], "u": seen.joint.mean[:, n_c:]}
        for name, mean in zip(seen.names, seen.single.mean, strict=True):
            known = seen.known[name]
            own = mean if known is None else torch.where(known > 0, mean, torch.full_like(mean, float("nan")))
            result[f"c_{name}"], result[f"u_{name}"] = own[:, :n_c], own[:, n_c:]
        return result

    def latent_given(self, batch: Minibatch, given: Sequence[str]) -> Tensor:
        """Return c ``(n_cells, n_c)``, posterior mean, from some modalities only; NaN where none of them was measured."""
        seen = self.see(batch, draw=False, told=self.options.batch_expert, given=given)
        return self._where_known(seen, seen.joint.mean[:, : self.options.n_latent])

    def impute(self, batch: Minibatch, *, given: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return the expected value of every feature of every modality from ``given``, as :class:`Model` says; NaN where none of it was measured."""
        seen = self.see(batch, draw=False, told=self.options.batch_expert, given=given)
        return {name: self._where_known(seen, value) for name, value in self.means(seen.joint.mean).items()}

    @property
    def noise_width(self) -> int:
        """Standard normal numbers that a draw of the latent of a cell takes: c and u."""
        return self.options.n_latent + self.options.n_technical

    def impute_draws(self, batch: Minibatch, noise: Tensor, *, given: Sequence[str] | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return mean and standard deviation over draws of the latent of what :meth:`impute` gives, each ``(n_cells, n_features)`` by modality.

        ``noise`` is standard normal, ``(n_draws, n_cells, noise_width)``: one draw of the joint posterior for each of the first axis.
        """
        seen = self.see(batch, draw=False, told=self.options.batch_expert, given=given)
        mean, sd = seen.joint.mean, seen.joint.var.sqrt()
        found = over_draws(self.means(torch.addcmul(mean, sd, own.to(mean))) for own in noise)
        means, spreads = ({name: self._where_known(seen, value) for name, value in part.items()} for part in found)
        return means, spreads

    def _where_known(self, seen: Seen, value: Tensor) -> Tensor:
        return value.where(self.any_known(seen, value), torch.full_like(value, float("nan")))

    def any_known(self, seen: Seen, like: Tensor) -> Tensor:
        """Return which cells have one of the modalities that were looked at, bool ``(n_cells, 1)``."""
        if any(part is None for part in seen.known.values()):
            return torch.ones(len(like), 1, dtype=torch.bool, device=like.device)
        known = [part > 0 for part in seen.known.values() if part is not None]
        return torch.stack(known).any(0) if known else torch.zeros(len(like), 1, dtype=torch.bool, device=like.device)

    def means(self, z: Tensor, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return expected values by modality, ``(n_cells, n_features)``, in the units of the data."""
        wanted = names or [info.name for info in self.infos]
        return {name: self.values[name].mean(eta) for name, eta in self.decode(z, wanted).items()}

    def sampled(self, z: Tensor, names: Sequence[str], seeds: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Return draws of the values by modality, ``(n_cells, n_features)``, in the units of the data.

        Parameters
        ----------
        z
            Latents ``(n_cells, n_c + n_u)``.
        names
            Modalities that are drawn.
        seeds
            For each cell the seed of every modality of the model, in its order: what is drawn of a cell is then the same whichever cells and modalities
            are asked for with it.
        """
        place = {info.name: number for number, info in enumerate(self.infos)}
        generator, found = torch.Generator(device=z.device), {}
        for name, eta in self.decode(z, names).items():
            cells = zip(eta.split(1), seeds, strict=True)
            found[name] = torch.cat([self.values[name].sample(cell, generator.manual_seed(own[place[name]])) for cell, own in cells])
        return found

    def with_technical(self, z: Tensor, u: Tensor) -> Tensor:
        """Return latents with another u, ``(n_technical,)``, for all cells."""
        return torch.cat([z[:, : self.options.n_latent], u.to(z).expand(len(z), -1)], 1)
