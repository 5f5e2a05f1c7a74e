"""What the networks of one and of several modalities share: encoding, decoding, loss terms, metrics, counterfactuals and tables."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cellweave.core.models.base import BuildContext, Minibatch, Model, ParameterGroup, StepContext
from cellweave.core.models.modality_stack import Codes, Levels, ModalityStack, Rates
from cellweave.core.models.regularised import RegularisedOptions, decoder_columns
from cellweave.core.nn import hyperpriors as priors
from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.kl import kl_normal, kl_standard_normal
from cellweave.core.nn.regularised_layers import Expressed, Reference, RegularisedEncoder, counts_for_encoder
from cellweave.core.spec.roles import effective_roles

Removed = Literal["none", "cat_covs", "feature_scaling", "all"]
LibraryAt = Literal["posterior", "prior"]
LIST_PARTS, SINGLE_PARTS = ("ambient", "decoder", "feature_scaling", "encoder"), ("dispersion", "library_size")
#: Divergence of a latent dimension in a cell above which it is called active, in nats.
ACTIVE = 0.01


class LatentPosterior(NamedTuple):
    """Posterior of one encoder's latent: mean and variance ``(n_cells, n_latent)``, and which cells it is of (None: all)."""

    mean: Tensor
    var: Tensor
    present: Tensor | None


@dataclass
class Encoded:
    """What the encoders say of a minibatch.

    Attributes
    ----------
    latents
        Posterior by encoder: by modality, or ``"joint"``.
    inputs
        Input of the encoders by modality.
    present
        By modality, which cells it was measured in and has a count of; None where all.
    """

    latents: dict[str, LatentPosterior]
    inputs: dict[str, Tensor]
    present: dict[str, Tensor | None]


class RegularisedNetwork(Model):
    """Base of the ambient-regularised networks.

    Training draws the latent and the library size of each cell, and, once a step or cell, what all cells share (dispersions, weights). A look
    at held-out cells draws what belongs to a cell and takes what is shared at its mean. Every result is at posterior means: two calls agree.

    Parameters
    ----------
    context
        Sizes, levels, spec and summaries.
    names
        Modalities in the order of their latents.
    options
        Options of each modality.
    n_latent
        Dimensions of the joint latent.
    background, scaling
        Modalities with an ambient background, and with feature scaling.
    """

    def __init__(
        self,
        context: BuildContext,
        names: Sequence[str],
        options: Mapping[str, RegularisedOptions],
        n_latent: int,
        background: Sequence[str],
        scaling: Sequence[str],
    ) -> None:
        super().__init__()
        self.names, self.modality_options, self.n_latent = tuple(names), dict(options), n_latent
        self.shared: RegularisedOptions = options[self.names[0]]
        sizes = {info.name: info.n_features for info in context.modalities}
        roles = effective_roles(context.spec.covariates, context.spec.family)
        #: Columns by part of the model, in the order of their codes.
        self.columns: dict[str, tuple[str, ...]] = {
            part: roles.columns.get(part, ()) for part in (*LIST_PARTS, *SINGLE_PARTS)
        }
        self._first_decoder_column = (
            next((role for role in ("batch", "library") if role in roles.columns), None)
            if self.shared.batch_in_decoder
            else None
        )
        self.columns["decoder"] = decoder_columns(context.spec)
        self.n_levels = dict(context.n_levels)
        self.levels = self._all_levels(context)
        self.n_continuous = context.n_continuous
        self._keep_commonest(context)
        self.stacks: Mapping[str, ModalityStack] = nn.ModuleDict(  # type: ignore[assignment]
            {
                name: ModalityStack(
                    name, sizes[name], options[name], n_latent=n_latent, levels=self.levels, n_continuous=context.n_continuous,
                    background=name in background, scaling=name in scaling,
                    summaries={key.partition("/")[2]: value for key, value in context.extras.items() if key.startswith(f"{name}/")},
                )
                for name in self.names
            }
        )  # fmt: skip
        self._metric_names = tuple(metric.name for metric in context.spec.family.metrics(context.spec))
        # Kept with the checkpoint, so that an epoch that was interrupted tells what the whole one would have.
        self.register_buffer("metric_sums", torch.zeros(2, len(self._metric_names)))

    metric_sums: Tensor

    def _all_levels(self, context: BuildContext) -> Levels:
        def several(role: str, otherwise: tuple[int, ...]) -> tuple[int, ...]:
            n = context.n_levels.get(role, otherwise)
            return n if isinstance(n, tuple) else (n,)

        decoder = several("decoder", ())
        if self._first_decoder_column is not None:
            first = context.n_levels[self._first_decoder_column]
            known = context.spec.covariates.decoder
            batch = self.columns["decoder"][0]
            decoder = tuple(n for column, n in zip(known, decoder, strict=True) if column != batch)
            decoder = (first if isinstance(first, int) else first[0], *decoder)
            self._kept_decoder = [place for place, column in enumerate(known) if column != batch]
        one = [n if isinstance(n := context.n_levels.get(role, 1), int) else n[0] for role in SINGLE_PARTS]
        return Levels(
            several("ambient", (1,)),
            decoder,
            several("feature_scaling", (1,)),
            several("encoder", ()),
            max(1, one[0]),
            max(1, one[1]),
        )

    def _keep_commonest(self, context: BuildContext) -> None:
        """Keep the commonest level of each column of the decoder and of feature scaling."""
        for part in ("decoder", "feature_scaling"):
            known = context.extras.get(f"commonest/{part}")
            value = torch.zeros(0, dtype=torch.int64) if known is None else torch.from_numpy(known)
            if part == "decoder" and self._first_decoder_column is not None:
                # The batch fills the ambient columns, so that its commonest level is the first of theirs.
                first = context.extras.get("commonest/ambient")
                value = torch.cat(
                    [
                        torch.from_numpy(first[:1]) if first is not None else value.new_zeros(1),
                        value[self._kept_decoder],
                    ]
                )
            self.register_buffer(f"commonest_{part}", value)

    # ------------------------------------------------------------------ minibatches

    def codes_of(self, batch: Minibatch, transform: Mapping[str, int] | None = None) -> Codes:
        """Return the levels of the cells in every part of the model.

        Parameters
        ----------
        batch
            The minibatch.
        transform
            Codes by column: every cell is taken for that level wherever the column occurs in the generative half.
        """
        found: dict[str, Tensor | None] = {role: batch.categorical.get(role) for role in (*LIST_PARTS, *SINGLE_PARTS)}
        if self._first_decoder_column is not None:
            first, rest = batch.categorical[self._first_decoder_column][:, None], found["decoder"]
            found["decoder"] = first if rest is None else torch.cat([first, rest[:, self._kept_decoder]], 1)
        for column, code in (transform or {}).items():
            for part in ("ambient", "decoder", "feature_scaling", "dispersion"):
                values = found[part]
                if values is None or column not in self.columns[part]:
                    continue
                changed = values.clone()
                if part in SINGLE_PARTS:
                    changed.fill_(code)
                else:
                    changed[:, self.columns[part].index(column)] = code
                found[part] = changed
        return Codes(**found, index=batch.index)

    def transform_of(self, transform_batch: int | None, transform: Mapping[str, int] | None) -> dict[str, int]:
        """Return the levels that cells are decoded as, the batch (or library) among them."""
        found = dict(transform or {})
        if transform_batch is not None and self.batch_column is not None:
            found.setdefault(self.batch_column, transform_batch)
        return found

    @property
    def batch_column(self) -> str | None:
        """The column that fills ambient, dispersion and library size; None where each was named by itself."""
        same = {self.columns[part] for part in ("ambient", "dispersion", "library_size")}
        return next(iter(same))[0] if len(same) == 1 and len(next(iter(same))) == 1 else None

    @staticmethod
    def _present(batch: Minibatch, name: str) -> Tensor | None:
        """Return in which cells a modality was measured and has a count, bool ``(n_cells,)``; None where in all."""
        present = batch.counts[name].total > 0
        measured = batch.measured.get(name)
        if measured is not None:
            present = present & measured
        return None if bool(present.all()) else present

    def _with_continuous(self, z: Tensor, batch: Minibatch) -> Tensor:
        return z if batch.continuous is None else torch.cat([z, batch.continuous], 1)

    def encode(self, batch: Minibatch) -> Encoded:
        """Return what the encoders say of the cells; dropout acts in training."""
        extra = [] if batch.continuous is None else [batch.continuous]
        present = {name: self._present(batch, name) for name in self.names}
        inputs = {
            name: counts_for_encoder(
                batch.counts[name],
                options.dropout_rate if options.dropout_on_input else 0.0,
                extra,
                training=self.training,
            )
            for name, options in self.modality_options.items()
        }
        return Encoded(self._latents(batch, inputs, present), inputs, present)

    @abstractmethod
    def _latents(
        self, batch: Minibatch, inputs: Mapping[str, Tensor], present: Mapping[str, Tensor | None]
    ) -> dict[str, LatentPosterior]:
        """Return the posterior of each encoder."""

    @abstractmethod
    def joint(
        self,
        batch: Minibatch,
        encoded: Encoded,
        *,
        draw: bool,
        shared_draw: bool,
        generator: torch.Generator | None = None,
        terms: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the joint latent that the decoders see, ``(n_cells, n_latent)``.

        Parameters
        ----------
        batch, encoded
            The minibatch and what :meth:`encode` gave.
        draw
            Draw what belongs to a cell; otherwise posterior means.
        shared_draw
            Draw what all cells share.
        generator
            Source of the draws.
        terms
            Takes up loss terms of the way from posteriors to the joint latent.
        """

    @abstractmethod
    def latent_blocks(self) -> dict[str, slice]:
        """Return which dimensions of the joint latent are of which modality.

        Raises
        ------
        ValueError
            Where the modalities have none of their own.
        """

    def modality_factor(self, name: str) -> Tensor | None:
        """Return the learned factor of all counts of a modality, a scalar; None where it has none."""
        return None

    def library_of(
        self,
        batch: Minibatch,
        encoded: Encoded,
        name: str,
        *,
        draw: bool,
        shared_draw: bool,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the library size ``(n_cells,)`` (not its logarithm), and mean and variance of the posterior of its logarithm."""
        stack = self.stacks[name]
        weight = stack.library_weight(draw=shared_draw, generator=generator)
        mean, var = stack.library_posterior(
            batch.counts[name].total, encoded.inputs[name], batch.categorical.get("encoder"), weight
        )
        return (torch.exp(normal_draw(mean, var, generator)) if draw else torch.exp(mean + var / 2)), mean, var

    # ------------------------------------------------------------------ training

    def loss_terms(self, batch: Minibatch, context: StepContext) -> dict[str, Tensor]:
        """Return every declared term; global penalties whose weight is 0 are left out in training."""
        encoded, generator = self.encode(batch), context.generator
        terms = self._latent_terms(encoded)
        z = self.joint(batch, encoded, draw=True, shared_draw=context.training, generator=generator, terms=terms)
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
            how: dict[str, Any] = {"draw": context.training, "factor": self.modality_factor(name), "generator": generator}
            rates = stack.rates(decoded, library, codes, **how) if self.shared.compute_pearson else None
            counts = batch.counts[name]
            nll = stack.reconstruction(counts, decoded, library, codes, **how) if rates is None else stack.nll(counts, rates)
            terms[self.term("reconstruction", name)] = _where(present, nll)
            terms[self.term("kl_l", name)] = _where(present, kl_normal(mean, var.sqrt(), prior_mean, prior_var.sqrt()))
            if self.shared.hidden_sparsity:
                options = self.modality_options[name]
                penalty = _where(
                    present,
                    priors.sparsity_penalty(decoded.hidden, options.n_active_hidden_per_cell / options.n_hidden),
                )
                sparse_hidden = penalty if sparse_hidden is None else sparse_hidden + penalty
            if context.training:
                told |= self._tell(counts, encoded, name, decoded, rates)
        if self.shared.z_sparsity_prior == "gamma":
            terms["z_sparsity"] = priors.sparsity_penalty(z, self.shared.n_active_latent_per_cell / self.n_latent)
        if self.shared.hidden_sparsity:
            terms["hidden_sparsity"] = z.new_zeros(batch.n_cells) if sparse_hidden is None else sparse_hidden
        terms |= self.global_terms(context.weights)
        if context.training:
            self._add_metrics({**told, **self._tell_shared(encoded, z)})
        return terms

    def term(self, name: str, modality: str) -> str:
        """Return the name of a term of one modality."""
        return f"{name}_{modality}"

    def _latent_terms(self, encoded: Encoded) -> dict[str, Tensor]:
        """Return the divergence of each encoder's latent from the standard normal prior, ``(n_cells,)``."""
        return {
            self.term("kl_z", name): _where(posterior.present, kl_standard_normal(posterior.mean, posterior.var).sum(1))
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
            found[name] = _where(encoded.present[name], relative * stack.expression_total)
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

    # ------------------------------------------------------------------ making encoders

    def make_encoder(self, n_in: int, n_out: int, options: RegularisedOptions, **changes: Any) -> RegularisedEncoder:
        """Return an encoder with the options of a modality."""
        settings: dict[str, Any] = {
            "n_layers": options.n_layers, "n_hidden": options.n_hidden, "dropout_rate": options.dropout_rate, "dropout_on_input": options.dropout_on_input,
            "batch_norm": options.use_batch_norm in ("encoder", "both"), "layer_norm": options.use_layer_norm in ("encoder", "both"),
            "inject": options.deeply_inject_covariates, "var_activation": options.var_activation, "mean_scale": options.z_loc_init_scale,
            "sd_start": options.var_init_scale,
        }  # fmt: skip
        return RegularisedEncoder(n_in, n_out, self.levels.encoder, **{**settings, **changes})


def normal_draw(mean: Tensor, var: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return ``mean + sqrt(var) * noise``, differentiable in both."""
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    return torch.addcmul(mean, var.sqrt(), noise)


def mean_correlation(first: Tensor, second: Tensor, dim: int) -> Tensor:
    """Return the mean Pearson correlation along ``dim``; features or cells without spread are left out."""
    a, b = first - first.mean(dim, keepdim=True), second - second.mean(dim, keepdim=True)
    norms = a.norm(dim=dim) * b.norm(dim=dim)
    there = norms > 0
    return ((a * b).sum(dim)[there] / norms[there]).mean() if bool(there.any()) else norms.new_zeros(())


def _where(present: Tensor | None, values: Tensor) -> Tensor:
    return values if present is None else torch.where(present, values, torch.zeros_like(values))
