"""What the networks of the ambient-regularised models are made of, and how they encode and decode a minibatch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cellweave.core.models.base import BuildContext, Minibatch, Model
from cellweave.core.models.modality_parts import Codes, Levels
from cellweave.core.models.modality_stack import ModalityStack
from cellweave.core.models.regularised import decoder_columns
from cellweave.core.models.regularised_options import RegularisedOptions
from cellweave.core.nn.regularised_layers import EncoderInput, RegularisedEncoder, counts_for_encoder
from cellweave.core.spec.roles import effective_roles

LIST_PARTS, SINGLE_PARTS = ("ambient", "decoder", "feature_scaling", "encoder"), ("dispersion", "library_size")

#: Takes the name of a loss term and what computes it, ``(n_cells,)``; a term that is not wanted is not computed.
Cost = Callable[[str, Callable[[], Tensor]], None]


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
    inputs: dict[str, EncoderInput]
    present: dict[str, Tensor | None]


class RegularisedBase(Model):
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

    loops = ("compiled_ambient",)

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
        for name in self.names:  # mean share of each feature in a cell's counts
            shares = torch.as_tensor(context.extras[f"{name}/share"], dtype=torch.float32)
            self.register_buffer(f"_shares_{name}", shares / shares.sum().clamp(min=1e-12), persistent=False)
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
        return Codes(**found, cells=batch.index)

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

    def measured_features(self, batch: Minibatch, name: str) -> Tensor | None:
        """Return the mask of the cells' features; the counts under it are unknown, not 0."""
        mask = batch.feature_masks.get(name)
        if mask is None or batch.mask_group is None:
            return None
        known = mask.index_select(0, batch.mask_group).to(torch.bool)
        return None if bool(known.all()) else known

    def totals(self, batch: Minibatch, name: str) -> Tensor:
        """Return the totals of the measured features, divided by the share that these have in the counts of a mean cell."""
        total, mask = batch.counts[name].total, batch.feature_masks.get(name)
        if mask is None or batch.mask_group is None:
            return total
        share = mask.to(total.dtype) @ getattr(self, f"_shares_{name}").to(total.dtype)
        share = torch.where(share > 0, share, torch.ones_like(share))
        return total / share.index_select(0, batch.mask_group)

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
        self, batch: Minibatch, inputs: Mapping[str, EncoderInput], present: Mapping[str, Tensor | None]
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
        cost: Cost | None = None,
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
        cost
            Told the name of each loss term on the way from posteriors to the joint latent, and what computes it.
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
            self.totals(batch, name), encoded.inputs[name], batch.categorical.get("encoder"), weight
        )
        return (torch.exp(normal_draw(mean, var, generator)) if draw else torch.exp(mean + var / 2)), mean, var

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


def where_present(present: Tensor | None, values: Tensor) -> Tensor:
    """Return values ``(n_cells,)``, 0 in cells in which a modality is not present."""
    return values if present is None else torch.where(present, values, torch.zeros_like(values))
