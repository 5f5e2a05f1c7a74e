"""The network of the ambient-regularised model of several modalities (regularizedvi ``_multimodule.py``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cellweave.core.errors import SpecError
from cellweave.core.models.base import BuildContext, Minibatch, ParameterGroup
from cellweave.core.models.multimodal import (
    FAMILY,
    PER_MODALITY,
    MultimodalOptions,
    check_modalities,
    options_of,
    total_latent,
)
from cellweave.core.models.per_modality import require_tables, value_of
from cellweave.core.models.regularised_base import Cost, Encoded, LatentPosterior, normal_draw, where_present
from cellweave.core.models.regularised_network import RegularisedNetwork
from cellweave.core.models.relevance import Relevance
from cellweave.core.nn import hyperpriors as priors
from cellweave.core.nn.kl import kl_normal
from cellweave.core.nn.likelihoods import normal_log_prob
from cellweave.core.nn.measured_norm import measured_norms
from cellweave.core.nn.regularised_layers import EncoderInput

JOINT = "joint"
SCALE_SD, SMALLEST_WIDTH, SMALLEST_SCALE = 0.1, 16, 1e-6


class MultimodalNetwork(RegularisedNetwork):
    """An encoder for each modality, or one for all; every decoder sees the whole latent.

    A modality that was not measured in a cell, or has no count in it, has the latent 0 there, the mean of its prior, in training and in
    every result, and costs nothing.

    Parameters
    ----------
    context
        Sizes, levels, spec and summaries.
    """

    family = FAMILY

    def __init__(self, context: BuildContext) -> None:
        options = context.spec.model
        assert isinstance(options, MultimodalOptions)
        names = tuple(sorted(info.name for info in context.modalities))
        require_tables(options, PER_MODALITY, names)
        problems = check_modalities(options, names)
        if problems:
            raise SpecError(f"{'; '.join(problems)}.")
        of = {name: options_of(options, name) for name in names}
        background, scaling = (
            tuple(name for name in names if name in chosen)
            for chosen in (options.additive_background_modalities, options.feature_scaling_modalities)
        )
        super().__init__(context, names, of, total_latent(options, names), background, scaling)
        self.options = options
        self.n_features = {info.name: info.n_features for info in context.modalities}
        sizes = {name: of[name].n_latent for name in names}
        starts = [sum(list(sizes.values())[:place]) for place in range(len(names))]
        self._blocks = {name: slice(start, start + sizes[name]) for name, start in zip(names, starts, strict=True)}
        if options.latent_mode == "single_encoder":
            widest = {
                "n_hidden": max(one.n_hidden for one in of.values()),
                "n_layers": max(one.n_layers for one in of.values()),
            }
            n_in = sum(self.n_features.values()) + context.n_continuous
            self.encoders = nn.ModuleDict({JOINT: self.make_encoder(n_in, self.n_latent, of[names[0]], **widest)})
        else:
            self.encoders = nn.ModuleDict(
                {
                    name: self.make_encoder(self.n_features[name] + context.n_continuous, sizes[name], of[name])
                    for name in names
                }
            )
            if options.modality_balanced_init:
                self._balance()
        self.scale_encoders = self._make_scale_encoders()
        self._make_weights(sizes)
        self.scales_of_dimensions = self._make_relevance(sizes)
        factors = (
            {name: _raw_factor(of[name].library_sensitivity) for name in names}
            if options.learnable_modality_scaling
            else {}
        )
        self._norms = {
            name: tuple(
                norm
                for table in (self.stacks, self.encoders, self.scale_encoders)
                if name in table
                for norm in measured_norms(table[name])
            )
            for name in names
        }
        self.factors = nn.ParameterDict({name: nn.Parameter(raw) for name, raw in factors.items()})

    @torch.no_grad()
    def _balance(self) -> None:
        whole = sum(one.n_hidden for one in self.modality_options.values())
        for name, encoder in self.encoders.items():
            share = math.sqrt(self.modality_options[name].n_hidden / whole)
            for head in (encoder.mean, encoder.var):
                assert isinstance(head, nn.Linear)
                head.weight.mul_(share)

    def _make_scale_encoders(self) -> nn.ModuleDict:
        options, made = self.options, {}
        if options.latent_scale_prior == "none":
            return nn.ModuleDict()
        for name, own in self.modality_options.items():
            width = max(SMALLEST_WIDTH, int(own.n_hidden * options.latent_scale_hidden_fraction))
            n_in = self.n_features[name] + self.n_continuous
            encoder = self.make_encoder(n_in, own.n_latent, own, n_hidden=width, mean_scale=1.0, sd_start=SCALE_SD)
            nn.init.constant_(encoder.mean.bias, math.log(options.latent_scale_init))
            made[name] = encoder
        return nn.ModuleDict(made)

    def _make_weights(self, sizes: Mapping[str, int]) -> None:
        """Make what weighs the modalities in a weighted mean."""
        options, n = self.options, len(self.names)
        universal = options.latent_mode == "weighted_mean" and options.modality_weights == "universal"
        by_cell = options.latent_mode == "weighted_mean" and options.modality_weights == "cell"
        self.weight_logits = nn.Parameter(torch.zeros(n)) if universal else None
        self.weigh = nn.Linear(sum(sizes.values()), n) if by_cell else None

    def _make_relevance(self, sizes: Mapping[str, int]) -> Relevance | None:
        """Make the scale of each dimension: in a concatenation those of a modality are a block of their own."""
        if not self.options.use_ard:
            return None
        blocks = dict(sizes) if self.options.latent_mode == "concatenation" else {JOINT: self.n_latent}
        own = {name: self.modality_options[self.names[0] if name == JOINT else name].var_init_scale for name in blocks}
        return Relevance(blocks, {name: SCALE_SD if start is None else start for name, start in own.items()})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        if self.scales_of_dimensions is not None and not prefix:
            self.scales_of_dimensions.rename(state_dict, "scales_of_dimensions.")
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    # ------------------------------------------------------------------ latent

    def _latents(
        self, batch: Minibatch, inputs: Mapping[str, EncoderInput], present: Mapping[str, Tensor | None]
    ) -> dict[str, LatentPosterior]:
        codes = batch.categorical.get("encoder")
        if self.options.latent_mode == "single_encoder":
            parts, shared = [inputs[name].dense() for name in self.names], inputs[self.names[0]].extra
            extra = [] if shared is None else [shared]
            mean, var = self.encoders[JOINT](torch.cat([*parts, *extra], 1), codes)
            return {JOINT: LatentPosterior(mean, var, None)}
        found = {}
        for name in self.names:
            known = present[name]
            if known is not None and not bool(known.any()):
                zeros = inputs[name].entries.new_zeros(batch.n_cells, self.modality_options[name].n_latent)
                found[name] = LatentPosterior(zeros, torch.ones_like(zeros), known)
            else:
                mean, var = self.encoders[name](inputs[name], codes)
                found[name] = LatentPosterior(mean, var, known)
        return found

    def encode(self, batch: Minibatch) -> Encoded:
        """Return what the encoders say of the cells; what normalises by a minibatch takes those that a modality is there of."""
        if self.training:
            for name, norms in self._norms.items():
                known = self._present(batch, name)
                for norm in norms:
                    norm.rows = None if known is None else known.nonzero()[:, 0]
        return super().encode(batch)

    def present_latents(self, encoded: Encoded) -> Tensor | None:
        """Return which latents are of a modality that is there; those of a weighted mean or of one encoder all are where any is."""
        parts = [encoded.present[name] for name in self.names]
        known = [part for part in parts if part is not None]
        if not known:
            return None
        columns = [torch.ones_like(known[0]) if part is None else part for part in parts]
        if self.options.latent_mode != "concatenation":
            return torch.stack(columns).any(0)[:, None].expand(-1, self.n_latent)
        return torch.cat([one[:, None].expand(-1, self.modality_options[name].n_latent) for name, one in zip(self.names, columns, strict=True)], 1)

    def term(self, name: str, modality: str) -> str:
        """Return the name of a term of one modality; that of the joint encoder has none."""
        return name if modality == JOINT else f"{name}_{modality}"

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
        """Return the joint latent; see :meth:`RegularisedNetwork.joint`."""
        parts = {}
        for name, posterior in encoded.latents.items():
            z = normal_draw(posterior.mean, posterior.var, generator) if draw else posterior.mean
            if name in self.scale_encoders:
                z = z * self._scales(batch, encoded, name, draw=draw, generator=generator, cost=cost)
            parts[name] = z if posterior.present is None else z * posterior.present[:, None].to(z.dtype)
        if self.options.latent_mode == "weighted_mean":
            stacked = torch.stack([parts[name] for name in self.names], 1)
            joint = (stacked * self.weights_of(parts, encoded.present)[:, :, None]).sum(1)
        else:
            joint = torch.cat(list(parts.values()), 1)
        relevance = self.relevance(draw=shared_draw, generator=generator)
        return joint if relevance is None else joint * relevance

    def _scales(
        self,
        batch: Minibatch,
        encoded: Encoded,
        name: str,
        *,
        draw: bool,
        generator: torch.Generator | None,
        cost: Cost | None,
    ) -> Tensor:
        """Return the scale of each latent in each cell, ``(n_cells, n_latent)``, and tell its divergence from the prior as a cost."""
        loc, var = self.scale_encoders[name](encoded.inputs[name], batch.categorical.get("encoder"))
        sd = var.sqrt()
        log_scale = normal_draw(loc, var, generator) if draw else loc + var / 2
        scale = torch.exp(log_scale)

        def divergence() -> Tensor:
            shape = self.shared.n_active_latent_per_cell / self.n_latent
            return where_present(encoded.present[name], latent_scale_divergence(self.options.latent_scale_prior, loc, sd, log_scale, shape))

        if cost is not None:
            cost(self.term("latent_scale", name), divergence)
        return scale

    def weights_of(self, parts: Mapping[str, Tensor], present: Mapping[str, Tensor | None]) -> Tensor:
        """Return the weight of each modality in each cell, 0 where it was not measured, ``(n_cells, n_modalities)``."""
        first = parts[self.names[0]]
        n_cells = len(first)
        if self.weigh is not None:
            logits = self.weigh(torch.cat([parts[name] for name in self.names], 1))
        elif self.weight_logits is not None:
            logits = self.weight_logits.expand(n_cells, -1)
        else:
            logits = first.new_zeros(n_cells, len(self.names))
        columns = [
            torch.ones(n_cells, dtype=torch.bool, device=first.device) if (known := present[name]) is None else known
            for name in self.names
        ]
        known = torch.stack(columns, 1)
        # A cell without any modality weighs them all alike: its latents are 0 anyway.
        known = known | ~known.any(1, keepdim=True)
        return torch.softmax(logits.masked_fill(~known, float("-inf")), 1)

    def relevance(self, *, draw: bool, generator: torch.Generator | None = None) -> Tensor | None:
        """Return the scale of each dimension that all cells share, ``(n_latent,)``; None where none is learned."""
        return None if self.scales_of_dimensions is None else self.scales_of_dimensions.scale(draw=draw, generator=generator)

    def latent_blocks(self) -> dict[str, slice]:
        """Return which dimensions of the joint latent are of which modality.

        Raises
        ------
        ValueError
            Where the modalities share all dimensions.
        """
        if self.options.latent_mode != "concatenation":
            message = f"with model.latent_mode '{self.options.latent_mode}' the modalities share all dimensions; only a concatenated latent has blocks"
            raise ValueError(message)
        return dict(self._blocks)

    def latent(self, batch: Minibatch) -> dict[str, Tensor]:
        """Return the joint latent and, where it is a concatenation, the part of each modality as ``latent_NAME``."""
        found = super().latent(batch)
        if self.options.latent_mode == "concatenation":
            found |= {f"latent_{name}": found["latent"][:, block] for name, block in self._blocks.items()}
        return found

    # ------------------------------------------------------------------ factors of modalities, penalties and metrics

    def modality_factor(self, name: str) -> Tensor | None:
        """Return the learned factor of all counts of a modality, a scalar."""
        return priors.scaling_factor(self.factors[name]) if name in self.factors else None

    def global_terms(self, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """Return the penalties of all modalities, of relevances and of factors."""
        found = super().global_terms(weights)
        if self.scales_of_dimensions is not None and weights.get("relevance", 0.0) > 0:
            found["relevance"] = self.scales_of_dimensions.divergence()
        if self.options.learnable_modality_scaling and weights.get("modality_scaling", 0.0) > 0:
            strength = self.options.modality_scaling_prior
            found["modality_scaling"] = torch.stack(
                [
                    priors.gamma_nll(
                        priors.scaling_factor(raw), strength, strength / self.modality_options[name].library_sensitivity
                    )
                    for name, raw in self.factors.items()
                ]
            ).sum()
        return found

    @torch.no_grad()
    def _tell_shared(self, encoded: Encoded, z: Tensor) -> dict[str, Tensor]:
        told: dict[str, Tensor] = {}
        if JOINT in encoded.latents:
            told |= self._tell_latent(encoded.latents[JOINT], "")
        if self.options.latent_mode == "weighted_mean" and self.options.modality_weights != "equal":
            means = {name: posterior.mean for name, posterior in encoded.latents.items()}
            weights = self.weights_of(means, encoded.present)
            for place, name in enumerate(self.names):
                known = encoded.present[name]
                own = weights[:, place] if known is None else weights[known, place]
                if len(own):  # where the modality is there
                    told[f"modality_weight_{name}"] = own.mean()
        return told

    @torch.no_grad()
    def epoch_metrics(self) -> dict[str, float]:
        """Return the declared metrics."""
        found = super().epoch_metrics()
        found |= {f"modality_scale_{name}": float(priors.scaling_factor(raw)) for name, raw in self.factors.items()}
        relevance = self.relevance(draw=False)
        if relevance is not None:
            found["relevance_mean"] = float(relevance.mean())
        return {name: found[name] for name in self._metric_names if name in found}

    # ------------------------------------------------------------------ optimiser

    def _log_parameters(self) -> list[nn.Parameter]:
        return [*([] if self.scales_of_dimensions is None else self.scales_of_dimensions.parameters()), *self.factors.values()]

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return one group for each modality whose learning rate is multiplied, and one of everything else."""
        groups, taken = [], set[int]()
        for name in self.names:
            factor = float(value_of(self.options.learning_rate_multiplier, name))
            if factor == 1.0:
                continue
            modules = [
                self.stacks[name],
                *(table[name] for table in (self.encoders, self.scale_encoders) if name in table),
            ]
            own = [parameter for module in modules for parameter in module.parameters()]
            own += [self.factors[name]] if name in self.factors else []
            own += [] if self.scales_of_dimensions is None else self.scales_of_dimensions.of_block(name)
            taken |= {id(parameter) for parameter in own}
            groups += list(self._groups(name, own, factor))
        rest = [parameter for parameter in self.parameters() if parameter.requires_grad and id(parameter) not in taken]
        return ([*self._groups("model", rest, 1.0)] if rest else []) + groups


def latent_scale_divergence(prior: str, loc: Tensor, sd: Tensor, log_scale: Tensor, shape: float) -> Tensor:
    """Return the divergence of the log-normal scales from their prior, ``(n_cells,)``.

    Parameters
    ----------
    prior
        ``"lognormal"``: log-normal with mean and variance ``shape``, in closed form; ``"lognormal_mc"``: the same from a draw; ``"gamma"``: ``Gamma(shape, 1)``
        from a draw.
    loc, sd
        Of the logarithm of the scales, ``(n_cells, n_latent)``.
    log_scale
        A draw of it.
    shape
        Expected scale of a dimension.
    """
    mean, width = priors.log_normal_of_gamma(shape)
    if prior == "lognormal":
        return kl_normal(loc, sd, torch.full_like(loc, mean), torch.full_like(loc, width)).sum(1)
    # The Jacobian of the exponential is the same in posterior and log-normal prior, so densities of logarithms will do.
    log_q = normal_log_prob(log_scale, loc, sd)
    if prior == "lognormal_mc":
        return (log_q - normal_log_prob(log_scale, torch.full_like(loc, mean), torch.full_like(loc, width))).sum(1)
    scale = torch.exp(log_scale).clamp(min=SMALLEST_SCALE)
    return (log_q - torch.log(scale) + priors.gamma_nll(scale, shape, 1.0)).sum(1)


def _raw_factor(start: float) -> Tensor:
    return priors.softplus_inverse(torch.tensor(start * priors.SCALE_UNIT))


def build(context: BuildContext) -> MultimodalNetwork:
    """Return the network of a run, on the CPU, initialised from torch's global generator."""
    return MultimodalNetwork(context)
