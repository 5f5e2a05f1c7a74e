"""How the networks of one and of several modalities are trained: loss terms, metrics and optimiser groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cellweave.core.models.base import Minibatch, ParameterGroup, StepContext
from cellweave.core.models.modality_parts import Rates
from cellweave.core.models.regularised_base import Encoded, LatentPosterior, where_present
from cellweave.core.models.regularised_results import RegularisedResults
from cellweave.core.nn import hyperpriors as priors
from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.kl import kl_normal, kl_standard_normal
from cellweave.core.nn.regularised_layers import Expressed

#: Divergence of a latent dimension in a cell above which it is called active, in nats.
ACTIVE = 0.01


class RegularisedNetwork(RegularisedResults):
    """Base of the ambient-regularised networks; see :class:`RegularisedBase` for its parameters.

    Training draws the latent and the library size of each cell, and, once a step or cell, what all cells share (dispersions, weights). A look
    at held-out cells draws what belongs to a cell and takes what is shared at its mean. Every result is at posterior means: two calls agree.
    """

    # ------------------------------------------------------------------ training

    def loss_terms(self, batch: Minibatch, context: StepContext) -> dict[str, Tensor]:
        """Return every declared term; global penalties whose weight is 0 are left out in training."""
        encoded, generator = self.encode(batch), context.generator
        terms = self._latent_terms(encoded)

        def take(name: str, compute: Callable[[], Tensor]) -> None:
            if self._wanted(name, context):
                terms[name] = compute()

        z = self.joint(batch, encoded, draw=True, shared_draw=context.training, generator=generator, cost=take)
        codes, told = self.codes_of(batch), dict[str, Tensor]()
        sparse_hidden: Tensor | None = None
        for name in self.names:
            present = encoded.present[name]
            if present is not None and not bool(present.any()):
                zeros = z.new_zeros(batch.n_cells)
                terms |= {self.term("reconstruction", name): zeros, self.term("kl_l", name): zeros}
                continue
            library, mean, var = self.library_of(
                batch, encoded, name, draw=True, shared_draw=context.training, generator=generator
            )
            stack = self.stacks[name]
            prior_mean, prior_var = stack.library_prior(codes.library_size, batch.n_cells)
            decoded = stack.decode(self._with_continuous(z, batch), codes.decoder)
            how: dict[str, Any] = {
                "draw": context.training, "factor": self.modality_factor(name), "generator": generator, "known": self.measured_features(batch, name),
            }  # fmt: skip
            rates = stack.rates(decoded, library, codes, **how) if self.shared.compute_pearson else None
            counts = batch.counts[name]
            nll = stack.reconstruction(counts, decoded, library, codes, **how) if rates is None else stack.nll(counts, rates)
            terms[self.term("reconstruction", name)] = where_present(present, nll)
            terms[self.term("kl_l", name)] = where_present(present, kl_normal(mean, var.sqrt(), prior_mean, prior_var.sqrt()))
            if self._wanted("hidden_sparsity", context):
                options = self.modality_options[name]
                penalty = where_present(
                    present,
                    priors.sparsity_penalty(decoded.hidden, options.n_active_hidden_per_cell / options.n_hidden),
                )
                sparse_hidden = penalty if sparse_hidden is None else sparse_hidden + penalty
            if context.training:
                told |= self._tell(counts, encoded, name, decoded, rates)
        if self.shared.z_sparsity_prior == "gamma" and self._wanted("z_sparsity", context):
            cost = priors.sparsity_costs(z, self.shared.n_active_latent_per_cell / self.n_latent)
            there = self.present_latents(encoded)
            terms["z_sparsity"] = (cost if there is None else torch.where(there, cost, torch.zeros_like(cost))).sum(1)
        if self.shared.hidden_sparsity and self._wanted("hidden_sparsity", context):
            terms["hidden_sparsity"] = z.new_zeros(batch.n_cells) if sparse_hidden is None else sparse_hidden
        terms |= self.global_terms(context.weights)
        if context.training:
            self._add_metrics({**told, **self._tell_shared(encoded, z)})
        return terms

    @staticmethod
    def _wanted(name: str, context: StepContext) -> bool:
        """Return whether a term is computed: a penalty of weight 0 is not."""
        return context.weights.get(name, 1.0) > 0

    def drawn_rates(self, batch: Minibatch, generator: torch.Generator | None = None) -> Iterator[tuple[str, Rates, Tensor | None]]:
        """Yield the parameters of each modality's counts at a draw of what belongs to a cell; the draws are those of :meth:`loss_terms` beside training.

        Yields
        ------
        name
            Of a modality that some of the cells have.
        rates
            Parameters of its counts.
        known
            Which features were measured in which cells, bool ``(n_cells, n_features)`` or ``(n_cells, 1)``; None where all were.
        """
        encoded, codes = self.encode(batch), self.codes_of(batch)
        z = self.joint(batch, encoded, draw=True, shared_draw=False, generator=generator)
        for name in self.names:
            present, known = encoded.present[name], self.measured_features(batch, name)
            if present is not None and not bool(present.any()):
                continue
            library, _, _ = self.library_of(batch, encoded, name, draw=True, shared_draw=False, generator=generator)
            stack = self.stacks[name]
            decoded = stack.decode(self._with_continuous(z, batch), codes.decoder)
            rates = stack.rates(decoded, library, codes, draw=False, factor=self.modality_factor(name), known=known)
            if present is not None:
                known = present[:, None] if known is None else known & present[:, None]
            yield name, rates, known

    def present_latents(self, encoded: Encoded) -> Tensor | None:
        """Return which latents of which cells are of a modality that is there, bool ``(n_cells, n_latent)``; None where all are."""
        return None

    def term(self, name: str, modality: str) -> str:
        """Return the name of a term of one modality."""
        return f"{name}_{modality}"

    def _latent_terms(self, encoded: Encoded) -> dict[str, Tensor]:
        """Return the divergence of each encoder's latent from the standard normal prior, ``(n_cells,)``."""
        return {
            self.term("kl_z", name): where_present(posterior.present, kl_standard_normal(posterior.mean, posterior.var).sum(1))
            for name, posterior in encoded.latents.items()
        }

    def global_terms(self, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """Return the penalties on what all cells share, summed over the modalities; those of weight 0 are left out."""
        found: dict[str, Tensor] = {}
        for stack in self.stacks.values():
            for name, value in stack.penalties(weights).items():
                found[name] = found[name] + value if name in found else value
        return found

    # ------------------------------------------------------------------ metrics

    @torch.no_grad()
    def _tell(
        self, counts: CountBatch, encoded: Encoded, name: str, decoded: Expressed, rates: Rates | None
    ) -> dict[str, Tensor]:
        """Return the metrics of one modality in this minibatch."""
        stack, told = self.stacks[name], dict[str, Tensor]()
        posterior = encoded.latents.get(name)
        if posterior is not None:
            told |= self._tell_latent(posterior, self.term_suffix(name))
        suffix = self.term_suffix(name)
        if decoded.size is not None:
            told[f"burst_frequency_mean{suffix}"] = torch.nn.functional.softplus(decoded.scale).mean()
            told[f"burst_size_mean{suffix}"] = stack.burst_size(decoded).mean()
        if rates is not None:
            rows = encoded.present[name]
            observed, predicted = counts.dense, rates.mean
            if rows is not None:
                observed, predicted = observed[rows], predicted[rows]
            observed = observed / observed.sum(1, keepdim=True).clamp(min=1.0)
            predicted = predicted / predicted.sum(1, keepdim=True)
            told[f"pearson_gene{suffix}"] = mean_correlation(observed, predicted, 0)
            told[f"pearson_cell{suffix}"] = mean_correlation(observed, predicted, 1)
        return told

    def term_suffix(self, modality: str) -> str:
        """Return what is appended to the names of metrics of a modality."""
        return f"_{modality}"

    @staticmethod
    def _tell_latent(posterior: LatentPosterior, suffix: str) -> dict[str, Tensor]:
        mean, var = posterior.mean.detach(), posterior.var.detach()
        if posterior.present is not None:
            mean, var = mean[posterior.present], var[posterior.present]
            if not len(mean):
                return {}
        active = kl_standard_normal(mean, var) > ACTIVE
        return {
            f"n_active_dims{suffix}": active.sum(1).float().mean(),
            f"n_dims_any_active{suffix}": active.any(0).sum().float(),
            f"z_var{suffix}": var.mean(),
        }

    def _tell_shared(self, encoded: Encoded, z: Tensor) -> dict[str, Tensor]:
        """Return metrics of what belongs to no single modality."""
        return {}

    def _add_metrics(self, values: Mapping[str, Tensor]) -> None:
        for place, name in enumerate(self._metric_names):
            if name in values:
                self.metric_sums[0, place] += values[name].detach()
                self.metric_sums[1, place] += 1

    @torch.no_grad()
    def epoch_metrics(self) -> dict[str, float]:
        """Return the declared metrics: means over the steps of the epoch, and parameters as they are at its end."""
        sums, steps = self.metric_sums.cpu().tolist()
        found = {name: sums[place] / steps[place] for place, name in enumerate(self._metric_names) if steps[place]}
        self.metric_sums.zero_()
        for name, stack in self.stacks.items():
            suffix = self.term_suffix(name)
            found[f"theta_mean{suffix}"] = float(stack.dispersions().mean())
            weight = stack.library_weight(draw=False)
            if weight is not None:
                found[f"library_obs_w{suffix}"] = float(weight)
        return {name: found[name] for name in self._metric_names if name in found}

    # ------------------------------------------------------------------ optimiser

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the groups of the optimiser: log parameters may be left out of the weight decay."""
        return list(self._groups("model", [p for p in self.parameters() if p.requires_grad], 1.0))

    def _groups(self, name: str, parameters: Sequence[nn.Parameter], factor: float) -> Iterator[ParameterGroup]:
        if self.shared.weight_decay_on_log_parameters:
            yield ParameterGroup(name, parameters, lr_factor=factor)
            return
        logs = {id(one) for stack in self.stacks.values() for one in stack.log_parameters()} | {
            id(one) for one in self._log_parameters()
        }
        yield ParameterGroup(name, [one for one in parameters if id(one) not in logs], lr_factor=factor)
        undecayed = [one for one in parameters if id(one) in logs]
        if undecayed:
            yield ParameterGroup(f"{name}, logarithms", undecayed, lr_factor=factor, weight_decay=0.0)

    def _log_parameters(self) -> list[nn.Parameter]:
        """Return log parameters beside those of the modalities."""
        return []


def mean_correlation(first: Tensor, second: Tensor, dim: int) -> Tensor:
    """Return the mean Pearson correlation along ``dim``; features or cells without spread are left out."""
    a, b = first - first.mean(dim, keepdim=True), second - second.mean(dim, keepdim=True)
    norms = a.norm(dim=dim) * b.norm(dim=dim)
    there = norms > 0
    return ((a * b).sum(dim)[there] / norms[there]).mean() if bool(there.any()) else norms.new_zeros(())
