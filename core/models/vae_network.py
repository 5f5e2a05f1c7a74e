"""The network of scVI's variational autoencoder (Lopez et al. 2018; scvi-tools ``module/_vae.py``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from cellweave.core.models.base import BuildContext, Minibatch, Model, StepContext
from cellweave.core.models.vae import FAMILY, VaeOptions, learns_library
from cellweave.core.nn.kl import kl_normal, kl_standard_normal
from cellweave.core.nn.layers import ACTIVATIONS, Decoder, Encoder, full_precision
from cellweave.core.nn.logistic_normal import mean_share
from cellweave.core.nn.mmd import mmd
from cellweave.core.nn.sparse_likelihoods import nb_nll, normal_nll, poisson_nll, softmax_nll, softmax_poisson_nll

if TYPE_CHECKING:
    from cellweave.core.nn.counts import CountBatch


class Posterior(NamedTuple):
    """What the encoders say of the cells.

    Attributes
    ----------
    mean, var
        Of the latent before any transformation, ``(n_cells, n_latent)``.
    log_library
        Mean and variance of the log library size, each ``(n_cells,)``; None where it is observed.
    """

    mean: Tensor
    var: Tensor
    log_library: tuple[Tensor, Tensor] | None


class Generated(NamedTuple):
    """What the decoder says of the counts.

    Attributes
    ----------
    logits
        Of the expression: :attr:`share` is their softmax, or their softplus where there is a size factor,
        ``(n_cells, n_features)``.
    library
        Library sizes ``(n_cells,)``, not their logarithms.
    sums_to_one
        Whether the shares are a softmax.
    theta
        Inverse dispersion (standard deviation of the normal likelihood): ``(n_features,)``, ``(n_groups, n_features)`` with
        ``group``, or ``(n_cells, n_features)``; None for the Poisson likelihood.
    group
        Row of ``theta`` for each cell, ``(n_cells,)``, or None.
    zero
        Logits of an extra zero ``(n_cells, n_features)``, or None.
    """

    logits: Tensor
    library: Tensor
    sums_to_one: bool
    theta: Tensor | None
    group: Tensor | None
    zero: Tensor | None

    @property
    def share(self) -> Tensor:
        """Expression before the library size, ``(n_cells, n_features)``."""
        return torch.softmax(self.logits, -1) if self.sums_to_one else softplus(self.logits)

    @property
    def mu(self) -> Tensor:
        """Expected counts without extra zeros, ``(n_cells, n_features)``."""
        return self.share * self.library[:, None]


class VaeNetwork(Model):
    """Encoder, decoder and likelihood of scVI.

    Categorical covariates are the batch and then the decoder columns, in this order. A cell without a label has the
    code -1: allowed everywhere but with dispersion ``"gene-label"``, whose data check refuses unlabelled cells, since
    such a cell has no dispersion.

    Training and evaluation both take one draw from each cell's posterior, from torch's global generator, or from that
    of the step where it has one; :meth:`latent`, :meth:`expression` and :meth:`library` never draw.

    Parameters
    ----------
    context
        Sizes, levels, spec and library-size priors; the model reads the first modality.
    """

    family = FAMILY
    library_log_mean: Tensor
    library_log_var: Tensor

    def __init__(self, context: BuildContext) -> None:
        super().__init__()
        options, modality = context.spec.model, context.modalities[0]
        assert isinstance(options, VaeOptions)
        self.options, self.modality, self.n_features = options, modality.name, modality.n_features
        self.has_size_factor = context.spec.covariates.size_factor is not None
        self.learns_library = learns_library(context.spec)
        n_batches, columns = level_of(context, "batch"), context.n_levels.get("decoder", ())
        self.n_batches = n_batches
        levels = (n_batches, *(columns if isinstance(columns, tuple) else (columns,)))
        embedded = options.batch_representation == "embedding"
        self.batch_embedding = None
        if embedded:
            self.batch_embedding = nn.Embedding(
                n_batches, options.batch_embedding_dim, max_norm=options.batch_embedding_max_norm,
                norm_type=options.batch_embedding_norm_type, scale_grad_by_freq=options.batch_embedding_scale_grad,
            )  # fmt: skip
        if embedded:
            levels = levels[1:]
        n_extra = context.n_continuous + (options.batch_embedding_dim if embedded else 0)

        encoder_norms, decoder_norms = _norms(options, "encoder"), _norms(options, "decoder")
        encoder_levels = levels if options.encode_covariates else ()
        n_in = self.n_features + (n_extra if options.encode_covariates else 0)
        inject = options.deeply_inject_covariates
        shared: dict[str, Any] = {
            "n_hidden": options.n_hidden, "dropout_rate": options.dropout_rate, "inject": inject, "bias": options.encoder_bias,
            "activation": ACTIVATIONS[options.encoder_activation], "var_activation": options.var_activation, "var_floor": options.var_eps,
        }  # fmt: skip
        self.encoder = Encoder(
            n_in, options.n_latent, encoder_levels,
            n_layers=options.n_layers, **shared, **encoder_norms,
        )
        self.library_encoder = None
        if self.learns_library:
            self.library_encoder = Encoder(
                n_in, 1, encoder_levels,
                n_layers=1, **shared, **encoder_norms,
            )
            self.register_buffer("library_log_mean", library_prior(context.library_log_mean[modality.name]))
            self.register_buffer("library_log_var", library_prior(context.library_log_var[modality.name]))
        self.decoder = Decoder(
            options.n_latent + n_extra, self.n_features, levels,
            n_layers=options.n_layers, n_hidden=options.n_hidden, inject=inject,
            bias=options.decoder_bias, activation=ACTIVATIONS[options.decoder_activation],
            dispersion=options.dispersion == "gene-cell", zeros=options.gene_likelihood == "zinb", **decoder_norms,
        )
        self.log_theta = self._make_log_theta(n_batches, context)

    def _make_log_theta(self, n_batches: int, context: BuildContext) -> nn.Parameter | None:
        """Return the logarithms of the dispersions, or None where the decoder gives them or none are needed."""
        if self.options.gene_likelihood == "poisson" or self.options.dispersion == "gene-cell":
            return None
        groups = {"gene-batch": n_batches, "gene-label": level_of(context, "labels")}.get(self.options.dispersion)
        return nn.Parameter(torch.randn(self.n_features if groups is None else (groups, self.n_features)))

    def batch_codes_of(self, batch: Minibatch, transform_batch: int | None = None) -> Tensor:
        """Return the batch code of each cell, ``(n_cells,)``."""
        codes = batch.categorical.get("batch")
        if codes is None:
            return torch.zeros(batch.n_cells, dtype=torch.int64, device=batch.index.device)
        return codes if transform_batch is None else torch.full_like(codes, transform_batch)

    def _covariates(self, batch: Minibatch, batch_codes: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the codes of the injected columns ``(n_cells, n_columns)``, and what is appended to the features."""
        columns = batch.categorical.get("decoder")
        extra = [] if batch.continuous is None else [batch.continuous]
        if self.batch_embedding is not None:
            extra.append(self.batch_embedding(batch_codes))
            return batch_codes.new_zeros(batch_codes.shape[0], 0) if columns is None else columns, extra
        first = batch_codes[:, None]
        return first if columns is None else torch.cat([first, columns], 1), extra

    def posterior(self, batch: Minibatch) -> Posterior:
        """Return the posterior of each cell."""
        counts = batch.counts[self.modality]
        x = counts.log1p() if self.options.log_variational else counts.dense
        codes = None
        if self.options.encode_covariates:
            codes, extra = self._covariates(batch, self.batch_codes_of(batch))
            x = torch.cat([x, *extra], 1) if extra else x
        mean, var = self.encoder(x, codes)
        log_library = None
        if self.library_encoder is not None:
            library_mean, library_var = self.library_encoder(x, codes)
            log_library = library_mean[:, 0], library_var[:, 0]
        return Posterior(mean, var, log_library)

    def transform(self, z: Tensor) -> Tensor:
        """Return the latent that the decoder sees: shares for the logistic normal, otherwise ``z`` itself."""
        return torch.softmax(z, -1) if self.options.latent_distribution == "ln" else z

    def generate(self, batch: Minibatch, z: Tensor, library: Tensor, transform_batch: int | None = None) -> Generated:
        """Decode latents.

        Parameters
        ----------
        batch
            The minibatch, for its covariates.
        z
            Transformed latents ``(n_cells, n_latent)``.
        library
            Library sizes ``(n_cells,)``, not their logarithms.
        transform_batch
            Batch that every cell is decoded as, in the decoder and in the dispersion; None for its own.

        Returns
        -------
        Generated
            Parameters of the likelihood.
        """
        batch_codes = self.batch_codes_of(batch, transform_batch)
        codes, extra = self._covariates(batch, batch_codes)
        out = self.decoder(torch.cat([z, *extra], 1) if extra else z, codes)
        group = None
        if self.options.dispersion == "gene-batch":
            group = batch_codes
        elif self.options.dispersion == "gene-label":
            group = batch.categorical["labels"]
        log_theta = self.log_theta if self.log_theta is not None else out.dispersion
        theta = None if log_theta is None else torch.exp(log_theta)
        return Generated(out.scale, library, not self.has_size_factor, theta, group, out.zero)

    def nll(self, counts: CountBatch, generated: Generated) -> Tensor:
        """Return the negative log-likelihood of each cell, ``(n_cells,)``."""
        theta, group = generated.theta, generated.group
        if theta is None:
            if generated.sums_to_one:
                return softmax_poisson_nll(counts, generated.logits, generated.library)
            return poisson_nll(counts, generated.mu)
        if self.options.gene_likelihood == "normal":
            return normal_nll(counts.dense, generated.mu, theta, group=group)
        if generated.sums_to_one:
            return softmax_nll(
                counts, generated.logits, generated.library, theta, zi_logits=generated.zero, group=group
            )
        return nb_nll(counts, generated.mu, theta, zi_logits=generated.zero, group=group)

    def observed_library(self, batch: Minibatch) -> Tensor:
        """Return the size factor, or the total count, of each cell, ``(n_cells,)``."""
        if not self.has_size_factor:
            return batch.counts[self.modality].total
        assert batch.size_factor is not None
        return batch.size_factor

    def loss_terms(self, batch: Minibatch, context: StepContext) -> dict[str, Tensor]:
        """Return ``reconstruction``, ``kl_z`` and, with a learned library, ``kl_l``, each ``(n_cells,)``; and ``mmd``, a scalar.

        The discrepancy between batches is computed only where its weight is above 0.
        """
        posterior = self.posterior(batch)
        z = draw(posterior.mean, posterior.var, context.generator)
        log_library = None
        if posterior.log_library is not None:
            log_library = draw(*posterior.log_library, context.generator)
        terms = self.terms_at(batch, posterior, z, log_library)
        if context.weights.get("mmd", 0.0) > 0:
            terms["mmd"] = self.discrepancy(batch, z)
        return terms

    def discrepancy(self, batch: Minibatch, z: Tensor) -> Tensor:
        """Return the maximum mean discrepancy between the batches' latents ``z`` ``(n_cells, n_latent)``, a scalar."""
        options = self.options
        return mmd(
            full_precision(self.transform(z)), self.batch_codes_of(batch), self.n_batches,
            mode=options.mmd_mode, kernel=options.mmd_kernel, pairs=options.mmd_pairs, unbiased=options.mmd_unbiased,
        )

    def terms_at(
        self, batch: Minibatch, posterior: Posterior, z: Tensor, log_library: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the loss terms at given latents.

        Parameters
        ----------
        batch
            The minibatch.
        posterior
            What :meth:`posterior` gave for it.
        z
            Latents before the transformation, ``(n_cells, n_latent)``; a draw, or the posterior mean.
        log_library
            Log library sizes ``(n_cells,)`` where they are learned, otherwise None.

        Returns
        -------
        dict
            As :meth:`loss_terms`.
        """
        library = self.observed_library(batch) if log_library is None else torch.exp(log_library)
        generated = self.generate(batch, self.transform(z), library)
        terms = {
            "reconstruction": self.nll(batch.counts[self.modality], generated),
            "kl_z": kl_standard_normal(posterior.mean, posterior.var).sum(1),
        }
        if posterior.log_library is not None:
            mean, var = posterior.log_library
            codes = self.batch_codes_of(batch)
            prior_sd = self.library_log_var.sqrt()
            terms["kl_l"] = kl_normal(mean, var.sqrt(), self.library_log_mean[codes], prior_sd[codes])
        return terms

    def latent(self, batch: Minibatch) -> dict[str, Tensor]:
        """Return the posterior mean ``(n_cells, n_latent)``; of the shares, where the latent is logistic normal.

        The mean of logistic-normal shares has no closed form; it is integrated over a fixed set of points
        (:func:`cellweave.core.nn.logistic_normal.mean_share`), so that two calls agree.
        """
        return {"latent": self.latent_mean(self.posterior(batch))}

    def latent_mean(self, posterior: Posterior) -> Tensor:
        """Return the mean of the transformed latent ``(n_cells, n_latent)``."""
        if self.options.latent_distribution == "ln":
            return mean_share(posterior.mean, posterior.var)
        return posterior.mean

    def expression(
        self, batch: Minibatch, *, transform_batch: int | None = None, scaled_to: float | None = 1.0
    ) -> dict[str, Tensor]:
        """Return expression without sampling noise and extra zeros, ``(n_cells, n_features)``; see :class:`Model`.

        Shares of the library times ``scaled_to`` (with a size factor: softplus values, which do not sum to 1), or the
        expected counts at the posterior mean of the cell's library size where ``scaled_to`` is None.
        """
        posterior = self.posterior(batch)
        library = self.library_mean(batch, posterior)
        generated = self.generate(batch, self.latent_mean(posterior), library, transform_batch)
        return {self.modality: generated.mu if scaled_to is None else generated.share * scaled_to}

    def library(self, batch: Minibatch) -> dict[str, Tensor]:
        """Return the library size ``(n_cells,)``: observed, given, or the posterior mean of the learned one."""
        if self.library_encoder is None:
            return {self.modality: self.observed_library(batch)}
        return {self.modality: self.library_mean(batch, self.posterior(batch))}

    def library_mean(self, batch: Minibatch, posterior: Posterior) -> Tensor:
        """Return the observed library size, or the mean ``exp(m + v / 2)`` of the log-normal posterior."""
        if posterior.log_library is None:
            return self.observed_library(batch)
        mean, var = posterior.log_library
        return torch.exp(mean + var / 2)


def level_of(context: BuildContext, role: str) -> int:
    """Return the number of levels of a single role; 1 where no column has it."""
    levels = context.n_levels.get(role, 1)
    return max(1, levels if isinstance(levels, int) else levels[0])


def _norms(options: VaeOptions, where: str) -> dict[str, Any]:
    return {
        "batch_norm": options.use_batch_norm in (where, "both"),
        "layer_norm": options.use_layer_norm in (where, "both"),
    }


def library_prior(values: np.ndarray) -> Tensor:
    """Return a prior's numbers, one a batch, as a tensor ``(n_batches,)``."""
    return torch.as_tensor(np.asarray(values, dtype=np.float32))


def draw(mean: Tensor, var: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return ``mean + sqrt(var) * noise``, differentiable in both."""
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    return torch.addcmul(mean, var.sqrt(), noise)


def build(context: BuildContext) -> VaeNetwork:
    """Return the network of a run, on the CPU, initialised from torch's global generator."""
    return VaeNetwork(context)
