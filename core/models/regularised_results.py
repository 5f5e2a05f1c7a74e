"""What a trained ambient-regularised network gives: latents, expression, rates for derivatives, and tables of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from cellweave.core.models.base import Minibatch
from cellweave.core.models.modality_parts import Codes
from cellweave.core.models.regularised_base import RegularisedBase, where_present
from cellweave.core.nn import hyperpriors as priors
from cellweave.core.nn.regularised_layers import Reference

Removed = Literal["none", "cat_covs", "feature_scaling", "all"]
LibraryAt = Literal["posterior", "prior"]


class RegularisedResults(RegularisedBase):
    """Results of :class:`RegularisedBase`, all at posterior means: two calls agree."""

    # ------------------------------------------------------------------ results

    def latent(self, batch: Minibatch) -> dict[str, Tensor]:
        """Return the posterior mean of the joint latent; two calls agree."""
        encoded = self.encode(batch)
        return {"latent": self.joint(batch, encoded, draw=False, shared_draw=False)}

    def library(self, batch: Minibatch) -> dict[str, Tensor]:
        """Return the posterior mean of the library size in counts, by modality ``(n_cells,)``; 0 where it was not measured."""
        encoded = self.encode(batch)
        found = {}
        for name, stack in self.stacks.items():
            relative, _, _ = self.library_of(batch, encoded, name, draw=False, shared_draw=False)
            found[name] = where_present(encoded.present[name], relative * stack.expression_total)
        return found

    def expression(
        self,
        batch: Minibatch,
        *,
        transform_batch: int | None = None,
        scaled_to: float | None = 1.0,
        transform: Mapping[str, int] | None = None,
    ) -> dict[str, Tensor]:
        """Return denoised expression by modality, ``(n_cells, n_features)``, at the posterior means.

        Ambient background, feature scaling and library size are taken out, and what is left adds up to about ``scaled_to`` in a cell of mean
        content (expression is not forced to sum to one). With ``scaled_to`` None the expected counts, with all of them in.

        Parameters
        ----------
        batch, transform_batch, scaled_to
            As in :meth:`Model.expression`; the batch is that of :attr:`batch_column`.
        transform
            Codes by column of the covariates that every cell is decoded as.
        """
        encoded = self.encode(batch)
        z = self.joint(batch, encoded, draw=False, shared_draw=False)
        codes = self.codes_of(batch, self.transform_of(transform_batch, transform))
        found = {}
        for name in self.names:
            if scaled_to is not None:
                found[name] = self.decoded_share(batch, z, name, codes) * scaled_to
                continue
            library, _, _ = self.library_of(batch, encoded, name, draw=False, shared_draw=False)
            found[name] = self.decoded_counts(batch, z, name, codes, library)
        return found

    def decoded_counts(self, batch: Minibatch, z: Tensor, name: str, codes: Codes, library: Tensor) -> Tensor:
        """Return the expected counts at given latents and library sizes (not their logarithms), ``(n_cells, n_features)``."""
        stack = self.stacks[name]
        decoded = stack.decode(self._with_continuous(z, batch), codes.decoder)
        return stack.rates(decoded, library, codes, draw=False, factor=self.modality_factor(name)).mean

    def decoded_share(self, batch: Minibatch, z: Tensor, name: str, codes: Codes) -> Tensor:
        """Return expression without background, scaling and library as a share of the mean library, ``(n_cells, n_features)``."""
        stack = self.stacks[name]
        return (
            stack.expression_of(stack.decode(self._with_continuous(z, batch), codes.decoder)) / stack.expression_total
        )

    def rate_function(
        self,
        batch: Minibatch,
        *,
        covariates: Removed = "none",
        reference: Reference = "zero",
        library: LibraryAt = "posterior",
    ) -> Callable[[Tensor], dict[str, Tensor]]:
        """Return the function from the joint latent to the expected counts of these cells, for derivatives.

        Everything that does not depend on the latent is computed once. The factor of a modality is left out, background and feature scaling are in.

        Parameters
        ----------
        batch
            The minibatch.
        covariates
            What is removed: categorical covariates of the decoder (``"cat_covs"``), feature scaling, both, or nothing.
        reference
            What stands in their place: ``"zero"`` (no covariate, no scaling), ``"mean"`` of all levels, or the ``"reference"``, the commonest level.
        library
            Library sizes at the ``"posterior"`` mean of each cell, or at the ``"prior"`` mean of its group, which makes modalities comparable.

        Returns
        -------
        Callable
            Takes ``z`` ``(n_cells, n_latent)``, gives by modality ``(n_cells, n_features)``. Differentiable by ``torch.func``.
        """
        encoded, codes = self.encode(batch), self.codes_of(batch)
        decoder_at: Reference = reference if covariates in ("cat_covs", "all") else "own"
        scaling_at: Reference = reference if covariates in ("feature_scaling", "all") else "own"
        commonest = {part: getattr(self, f"commonest_{part}") for part in ("decoder", "feature_scaling")}
        fixed = {}
        for name, stack in self.stacks.items():
            if library == "posterior":
                size, _, _ = self.library_of(batch, encoded, name, draw=False, shared_draw=False)
            else:
                mean, var = stack.library_prior(codes.library_size, batch.n_cells)
                size = torch.exp(mean + var / 2)
            size = size.detach()
            scaling = commonest["feature_scaling"] if len(commonest["feature_scaling"]) else None
            fixed[name] = (
                size,
                stack.ambient(codes.ambient),
                stack.scale_of_features(codes.feature_scaling, scaling_at, scaling),
            )

        def rates(z: Tensor) -> dict[str, Tensor]:
            found = {}
            for name, stack in self.stacks.items():
                decoded = stack.decode(self._with_continuous(z, batch), codes.decoder, decoder_at, commonest["decoder"])
                found[name] = stack.expected(stack.expression_of(decoded), *fixed[name])
            return found

        return rates

    def rates(
        self,
        batch: Minibatch,
        z: Tensor,
        *,
        covariates: Removed = "none",
        reference: Reference = "zero",
        library: LibraryAt = "posterior",
    ) -> dict[str, Tensor]:
        """Return the expected counts of the cells at given latents, by modality ``(n_cells, n_features)``; see :meth:`rate_function`."""
        return self.rate_function(batch, covariates=covariates, reference=reference, library=library)(z)

    # ------------------------------------------------------------------ tables

    @torch.no_grad()
    def ambient_profile(self) -> dict[str, dict[str, Tensor]]:
        """Return the learned background by modality and ambient column, ``(n_levels, n_features)`` in counts of a cell of mean depth.

        A modality without a background is left out; without an ambient column the one row of all cells is under ``""``.
        """
        return {
            name: self._by_column("ambient", torch.exp(stack.background.raw), stack.background.levels)
            for name, stack in self.stacks.items()
            if stack.background is not None
        }

    @torch.no_grad()
    def feature_scaling(self) -> dict[str, dict[str, Tensor]]:
        """Return the factors of features by modality and scaling column, ``(n_levels, n_features)``; 1 changes nothing."""
        return {
            name: self._by_column("feature_scaling", priors.scaling_factor(stack.scaling.raw), stack.scaling.levels)
            for name, stack in self.stacks.items()
            if stack.scaling is not None
        }

    @torch.no_grad()
    def dispersions(self) -> dict[str, Tensor]:
        """Return the inverse dispersions (technical variances with the burst decoder) by modality, ``(n_groups, n_features)``."""
        return {name: stack.dispersions() for name, stack in self.stacks.items()}

    def _by_column(self, part: str, table: Tensor, levels: Sequence[int]) -> dict[str, Tensor]:
        columns = self.columns[part] or ("",)
        return dict(zip(columns, table.split(list(levels)), strict=True))

    @torch.no_grad()
    def covariate_norms(self) -> dict[str, dict[str, float]]:
        """Return the norms of the columns of the decoder's first layer, by modality.

        Returns
        -------
        dict
            ``latent``: norm of the latent's columns; ``covariates``: of all covariates'; ``share``: ``covariates / (latent + covariates)``; and the norm of
            each categorical column as ``column:NAME`` and of the continuous ones as ``continuous``.
        """
        found = {}
        for name, stack in self.stacks.items():
            layer = stack.decoder.hidden.layers[0].linear
            latent = float(layer.weight[:, : self.n_latent].norm())
            parts = {f"column:{column}": 0.0 for column in self.columns["decoder"]}
            squares = 0.0
            if layer.level_weight is not None:
                kept = [(column, n) for column, n in zip(self.columns["decoder"], layer.levels, strict=True) if n > 1]
                for (column, _), rows in zip(kept, layer.level_weight.split([n for _, n in kept]), strict=True):
                    parts[f"column:{column}"] = float(rows.norm())
                    squares += float(rows.square().sum())
            if self.n_continuous:
                parts["continuous"] = float(layer.weight[:, self.n_latent :].norm())
                squares += parts["continuous"] ** 2
            covariates = squares**0.5
            found[name] = {
                "latent": latent,
                "covariates": covariates,
                "share": covariates / max(latent + covariates, 1e-30),
                **parts,
            }
        return found
