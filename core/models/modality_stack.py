"""Everything of one modality behind the latent: library size, decoder, ambient background, feature scaling, dispersions and their priors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from cellweave.core.models.modality_parts import Codes, Levels, LevelTable, Rates, exp_limited, residual_library, sum_of
from cellweave.core.models.modality_starts import (
    background_start,
    expression_total,
    floats,
    moment_start,
    start_decoder,
)
from cellweave.core.models.regularised_options import RegularisedOptions
from cellweave.core.nn import hyperpriors as priors
from cellweave.core.nn.ambient_likelihood import ambient_nll, usable
from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.moment_start import MomentStart
from cellweave.core.nn.regularised_layers import (
    EncoderInput,
    Expressed,
    Reference,
    RegularisedDecoder,
    RegularisedEncoder,
)
from cellweave.core.nn.sparse_likelihoods import nb_nll

#: Smallest expected count of a likelihood.
SMALLEST_MEAN = 1e-10
NOISE = 0.1
VARIANCE_EPS = 1e-8


class ModalityStack(nn.Module):
    """The generative half of one modality, its library encoder and its priors.

    Parameters
    ----------
    name, n_features
        Of the modality.
    options
        One value each.
    n_latent
        Dimensions of the whole latent, which the decoder sees.
    levels
        Number of levels by role.
    n_continuous
        Continuous covariates, which encoders and decoder see.
    background, scaling
        Whether there are an ambient background and feature scaling.
    summaries
        What :func:`cellweave.core.models.regularised_summaries.summaries` found of the modality.
    """

    library_prior_mean: Tensor
    library_prior_var: Tensor

    def __init__(
        self,
        name: str,
        n_features: int,
        options: RegularisedOptions,
        *,
        n_latent: int,
        levels: Levels,
        n_continuous: int,
        background: bool,
        scaling: bool,
        summaries: Mapping[str, np.ndarray],
    ) -> None:
        super().__init__()
        self.name, self.n_features, self.options, self.n_latent = name, n_features, options, n_latent
        self.log_sensitivity = math.log(options.library_sensitivity)
        #: Size of the library to which unscaled expression adds up.
        self.expression_total = expression_total(options, summaries)
        self.burst = options.decoder_type == "burst_frequency_size"
        norms = {
            where: {"batch_norm": options.use_batch_norm in (where, "both"), "layer_norm": options.use_layer_norm in (where, "both")}
            for where in ("encoder", "decoder")
        }
        self.library_encoder = RegularisedEncoder(
            n_features + n_continuous, 1, levels.encoder, n_layers=1, n_hidden=options.library_n_hidden, dropout_rate=options.dropout_rate,
            dropout_on_input=options.dropout_on_input, inject=options.deeply_inject_covariates, var_activation=options.var_activation, **norms["encoder"],
        )
        burst_hidden = (options.burst_size_n_hidden or max(1, options.n_hidden // 2)) if self.burst else None
        self.decoder = RegularisedDecoder(
            n_latent + n_continuous, n_features, levels.decoder, n_layers=options.n_layers, n_hidden=options.n_hidden,
            inject=options.deeply_inject_covariates, burst_hidden=burst_hidden, **norms["decoder"],
        )
        start = moment_start(options, summaries)
        self._start_library(summaries)
        start_decoder(self.decoder, options, summaries, start)
        self.background = LevelTable(background_start(options, levels.ambient, n_features, summaries), levels.ambient) if background else None
        self.scaling = LevelTable(torch.zeros(sum(levels.feature_scaling), n_features), levels.feature_scaling) if scaling else None
        self._start_dispersion(levels.dispersion if options.dispersion == "gene-batch" else 1, start)

    # ------------------------------------------------------------------ starts

    def _start_library(self, summaries: Mapping[str, np.ndarray]) -> None:
        options = self.options
        mean, var, self.library_centre = priors.centred_library_prior(
            floats(summaries["library_mean"]), floats(summaries["library_var"]), options.library_sensitivity, options.library_log_vars_weight
        )
        self.register_buffer("library_prior_mean", mean)
        self.register_buffer("library_prior_var", var)
        residual = options.residual_library_encoder
        # With the residual the sensitivity is in the observed part already (upstream adds it twice, specification 0.16).
        nn.init.constant_(self.library_encoder.mean.bias, 0.0 if residual else self.log_sensitivity)
        self.weight_mean = nn.Parameter(torch.zeros(())) if residual else None
        self.weight_log_sd = nn.Parameter(torch.tensor(-2.0)) if residual else None

    def _start_dispersion(self, n_groups: int, start: MomentStart | None) -> None:
        options = self.options
        shape = (n_groups, self.n_features)
        self.alpha = options.dispersion_hyper_prior_alpha or (2.0 if self.burst else 9.0)
        mean = options.dispersion_hyper_prior_mean if start is None else start.prior_mean
        hyper = priors.hyper_prior(mean, self.alpha, options.dispersion_prior_transform, variance=self.burst)
        self.beta = hyper["beta"]
        if not options.regularise_dispersion:
            self.log_theta = nn.Parameter(torch.randn(shape) if start is None else floats(start.log_theta) + NOISE * torch.randn(shape))
            self.log_theta_log_sd = self.rate_raw = None
            return
        centre = torch.tensor(hyper["log_start"]) if start is None else floats(start.log_theta)
        self.log_theta = nn.Parameter(centre + NOISE * torch.randn(shape))
        self.log_theta_log_sd = nn.Parameter(torch.full(shape, math.log(0.1)))
        self.rate_raw = nn.Parameter(priors.softplus_inverse(torch.full((n_groups,), hyper["rate"])))

    # ------------------------------------------------------------------ library size

    def library_weight(self, *, draw: bool, generator: torch.Generator | None = None) -> Tensor | None:
        """Return the weight of the observed total: one draw for all cells, or its posterior mean; None without a residual."""
        if self.weight_mean is None or self.weight_log_sd is None:
            return None
        sd = torch.exp(self.weight_log_sd)
        if not draw:
            return torch.exp(self.weight_mean + sd**2 / 2)
        noise = torch.randn((), generator=generator, dtype=sd.dtype, device=sd.device)
        return torch.exp(self.weight_mean + sd * noise)

    def library_posterior(self, total: Tensor, x: EncoderInput, codes: Tensor | None, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the log library size ``(n_cells,)``, around 0 for a cell of mean depth.

        Parameters
        ----------
        total
            Total count of each cell.
        x
            Input of the encoders.
        codes
            Encoder columns.
        weight
            What :meth:`library_weight` gave.
        """
        mean, var = self.library_encoder(x, codes)
        return residual_library(total, mean[:, 0], weight, self.library_centre, self.log_sensitivity), var[:, 0]

    def library_prior(self, group: Tensor | None, n_cells: int) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the prior of each cell's log library size, each ``(n_cells,)``."""
        if group is None or len(self.library_prior_mean) == 1:
            return self.library_prior_mean.expand(n_cells), self.library_prior_var.expand(n_cells)
        return self.library_prior_mean[group], self.library_prior_var[group]

    # ------------------------------------------------------------------ counts

    def decode(self, z: Tensor, codes: Tensor | None, reference: Reference = "own", commonest: Tensor | None = None) -> Expressed:
        """Decode latents (with continuous covariates appended); see :class:`RegularisedDecoder`."""
        return self.decoder(z, codes, reference, commonest)

    def expression_of(self, decoded: Expressed) -> Tensor:
        """Return expression without background, scaling and library, ``(n_cells, n_features)``."""
        if decoded.size is None:
            return softplus(decoded.scale)
        return softplus(decoded.scale) * self.burst_size(decoded)

    def burst_size(self, decoded: Expressed) -> Tensor:
        """Return the burst size ``(n_cells, n_features)``."""
        assert decoded.size is not None
        return softplus(decoded.size) + self.options.burst_size_intercept

    def ambient(self, codes: Tensor | None) -> Tensor | None:
        """Return the ambient background ``(n_cells, n_features)`` or ``(1, n_features)``; None where the modality has none."""
        if self.background is None:
            return None
        return sum_of(self.background.rows(torch.exp(self.background.raw), codes))

    def scale_of_features(self, codes: Tensor | None, reference: Reference = "own", commonest: Tensor | None = None) -> Tensor | None:
        """Return the factors of the features ``(n_cells, n_features)`` or ``(1, n_features)``; None where there are none.

        Parameters
        ----------
        codes
            Levels of the scaling columns.
        reference
            As in :class:`RegularisedDecoder`; ``"zero"`` takes the factors out.
        commonest
            Commonest level of each column.
        """
        if self.scaling is None or reference == "zero":
            return None
        table = priors.scaling_factor(self.scaling.raw)
        if reference == "mean":
            rows = [part.mean(0, keepdim=True) for part in table.split(self.scaling.levels)]
        else:
            chosen = codes if reference == "own" or commonest is None else commonest[None, :]
            rows = self.scaling.rows(table, chosen)
        if self.options.feature_scaling_combine == "sum":
            return sum_of(rows)
        product = rows[0]
        for row in rows[1:]:
            product = product * row
        return product

    def expected(self, expression: Tensor, library: Tensor, background: Tensor | None, factors: Tensor | None) -> Tensor:
        """Return ``library * (expression + background) * factors``, ``(n_cells, n_features)``; ``library`` is not a logarithm."""
        mean = expression if background is None else expression + background
        mean = mean * library[:, None]
        return mean if factors is None else mean * factors

    def dispersions(self) -> Tensor:
        """Return the inverse dispersions (technical variances with the burst decoder) at their medians, ``(n_groups, n_features)``."""
        return exp_limited(self.log_theta)

    def draw_dispersion(self, group: Tensor | None, n_cells: int, *, draw: bool, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        """Return dispersions and the row of each cell: a draw for each cell (rows None) or each group, or the medians."""
        n_groups = len(self.log_theta)
        rows = group if n_groups > 1 else None
        if not draw or self.log_theta_log_sd is None:
            return self._by_group(self.dispersions(), rows)
        sd = torch.exp(self.log_theta_log_sd)
        if self.options.dispersion_draws == "group":
            noise = torch.randn(sd.shape, generator=generator, dtype=sd.dtype, device=sd.device)
            return self._by_group(exp_limited(self.log_theta + sd * noise), rows)
        noise = torch.randn((n_cells, self.n_features), generator=generator, dtype=sd.dtype, device=sd.device)
        mean = self.log_theta if rows is None else self.log_theta.index_select(0, rows)
        sd = sd if rows is None else sd.index_select(0, rows)
        return exp_limited(torch.addcmul(mean, sd, noise)), None

    @staticmethod
    def _by_group(theta: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return (theta[0], None) if rows is None else (theta, rows)

    def rates(
        self, decoded: Expressed, library: Tensor, codes: Codes, *, draw: bool, factor: Tensor | None = None, generator: torch.Generator | None = None,
        known: Tensor | None = None,
    ) -> Rates:
        """Return the parameters of the counts.

        Parameters
        ----------
        decoded
            What :meth:`decode` gave.
        library
            Library sizes ``(n_cells,)``, not their logarithms.
        codes
            Levels of the cells.
        draw
            Whether dispersions are drawn.
        factor
            Factor of all counts of the modality, a scalar, or None.
        generator
            Source of the draws.
        known
            Which features were measured in which cells, bool ``(n_cells, n_features)``, or None where all were. No count is expected of the others, so
            that having none costs nothing and teaches nothing.
        """
        expression, factors = self.expression_of(decoded), self.scale_of_features(codes.feature_scaling)
        if factor is not None:
            library = library * factor
        mean = self.expected(expression, library, self.ambient(codes.ambient), factors)
        if known is not None:
            mean = mean * known
        mean = mean.clamp(min=SMALLEST_MEAN)
        theta, group = self.draw_dispersion(codes.dispersion, len(library), draw=draw, generator=generator)
        if self.burst:
            variance = theta if group is None else theta.index_select(0, group)
            whole = library[:, None] if factors is None else library[:, None] * factors
            variance = whole**2 * expression * self.burst_size(decoded) + variance
            theta, group = mean**2 / (variance + VARIANCE_EPS), None
            if known is not None:
                theta = torch.where(known, theta, torch.ones_like(theta))
        return Rates(expression, mean, theta, group)

    def nll(self, counts: CountBatch, rates: Rates) -> Tensor:
        """Return the negative log-likelihood of each cell, gamma-Poisson, ``(n_cells,)``."""
        return nb_nll(counts, rates.mean, rates.theta, group=rates.group, eps=0.0)

    def reconstruction(
        self,
        counts: CountBatch,
        decoded: Expressed,
        library: Tensor,
        codes: Codes,
        *,
        draw: bool,
        factor: Tensor | None = None,
        generator: torch.Generator | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Return :meth:`nll` at :meth:`rates`, in one compiled loop where no table has several columns; arguments as there."""
        table = self._one_table(codes)
        if table is None or known is not None or not usable(decoded.scale, self.log_theta):
            return self.nll(counts, self.rates(decoded, library, codes, draw=draw, factor=factor, generator=generator, known=known))
        background, factors, rows = table
        if factor is not None:
            library = library * factor
        sd: Tensor | None = None
        noise: Tensor | None = None
        log_theta: Tensor = self.log_theta
        if draw and self.log_theta_log_sd is not None:
            sd = torch.exp(self.log_theta_log_sd)
            shape = sd.shape if self.options.dispersion_draws == "group" else decoded.scale.shape
            noise = torch.randn(shape, generator=generator, dtype=sd.dtype, device=sd.device)
            if self.options.dispersion_draws == "group":
                log_theta = log_theta + sd * noise
                sd, noise = None, None
        return ambient_nll(counts, decoded.scale, library, (background, rows[0]), (factors, rows[1]), (log_theta, rows[2]), sd, noise)

    def _one_table(self, codes: Codes) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]] | None:
        """Return background, factors and the rows of each cell in them and in the dispersions; None where the loop does not serve."""
        several = [table for table in (self.background, self.scaling) if table is not None and len(table.levels) > 1]
        if self.burst or several or codes.cells is None:
            return None
        none = codes.cells.new_zeros(len(codes.cells))
        like = self.log_theta
        background = torch.exp(self.background.raw) if self.background is not None else like.new_zeros(1, self.n_features)
        factors = priors.scaling_factor(self.scaling.raw) if self.scaling is not None else like.new_ones(1, self.n_features)
        rows = (
            none if len(background) == 1 or codes.ambient is None else codes.ambient[:, 0],
            none if len(factors) == 1 or codes.feature_scaling is None else codes.feature_scaling[:, 0],
            none if len(like) == 1 or codes.dispersion is None else codes.dispersion,
        )
        return background, factors, rows

    # ------------------------------------------------------------------ penalties

    def penalties(self, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """Return the global penalties by the name of their term, scalars; those whose weight is 0 are left out."""
        found: dict[str, Tensor] = {}
        options = self.options

        def wanted(name: str) -> bool:
            return weights.get(name, 0.0) > 0

        if self.weight_mean is not None and self.weight_log_sd is not None and wanted("library_weight"):
            found["library_weight"] = priors.library_weight_kl(self.weight_mean, torch.exp(self.weight_log_sd), options.library_obs_w_prior_rate)
        if self.log_theta_log_sd is not None and self.rate_raw is not None:
            rate = softplus(self.rate_raw)
            if wanted("dispersion"):
                transform = "sqrt" if self.burst else options.dispersion_prior_transform
                found["dispersion"] = priors.dispersion_penalty(
                    self.log_theta, torch.exp(self.log_theta_log_sd), rate, transform=transform, jacobian=options.dispersion_jacobian
                )
            if wanted("dispersion_rate"):
                found["dispersion_rate"] = priors.gamma_nll(rate, self.alpha, self.beta).sum()
        if self.background is not None and wanted("background"):
            table = torch.exp(self.background.raw)
            found["background"] = priors.gamma_nll(table, options.background_prior_alpha, options.background_prior_beta).sum()
        if self.scaling is not None and wanted("feature_scaling"):
            strength = options.feature_scaling_prior
            found["feature_scaling"] = priors.gamma_nll(priors.scaling_factor(self.scaling.raw), strength, strength).sum()
        if wanted("decoder_l2") or wanted("decoder_covariate_l2") or wanted("decoder_l1"):
            names = ("decoder_l2", "decoder_covariate_l2", "decoder_l1")
            found |= {name: value for name, value in zip(names, self.decoder.weight_penalties(), strict=True) if wanted(name)}
        return found

    def log_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that are logarithms or raw factors, which a weight decay pulls to an arbitrary value."""
        single = [self.log_theta, self.log_theta_log_sd, self.rate_raw, self.weight_mean, self.weight_log_sd]
        tables = [table.raw for table in (self.background, self.scaling) if table is not None]
        return [one for one in single if one is not None] + tables
