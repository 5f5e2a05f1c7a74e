"""The network of scVAEIT: one forward for all passes, each with other entries visible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from cellweave.core.errors import SpecError
from cellweave.core.models.base import BuildContext, Minibatch, Model, StepContext
from cellweave.core.models.spread import over_draws
from cellweave.core.models.vaeit import FAMILY, VaeitOptions, conditions
from cellweave.core.models.vaeit_part import Encoded, ModalityPart, View, within
from cellweave.core.nn.hiding import Hiding, Observed, draw_hiding
from cellweave.core.nn.layers import full_precision
from cellweave.core.nn.masked_blocks import (
    CovariateTable,
    Dense,
    HiddenStack,
    PassNorm,
    activated,
    glorot,
)
from cellweave.core.nn.masked_likelihoods import Rows, expected, masked_nll
from cellweave.core.nn.mmd import mmd

LARGEST_Z = 1e6


class VaeitNetwork(Model):
    """scVAEIT (Du, Cai & Roeder, PNAS 2022).

    Parameters
    ----------
    context
        Sizes, categories, options and data summaries.
    """

    family = FAMILY
    loops = ("compiled_masked",)
    shares: Tensor
    pattern_share: Tensor
    factor: Tensor
    seen_nll: Tensor
    seen_cells: Tensor
    struck: Tensor
    hidden_entries: Tensor

    def __init__(self, context: BuildContext) -> None:
        super().__init__()
        options = context.spec.model
        assert isinstance(options, VaeitOptions)
        self.options, self.infos = options, context.modalities
        self.names = tuple(info.name for info in context.modalities)
        self.seed = context.spec.training.seed
        self.has_batch = "batch" in context.n_levels
        self.condition = next(iter(conditions(context.spec)), None)
        found = {role: context.n_levels.get(role, ()) for role in ("batch", "decoder")}
        levels = [n for value in found.values() for n in (value if isinstance(value, tuple) else (value,))]
        self.n_conditions = 1
        if self.condition is not None:
            n_conditions = context.n_levels.get(self.condition, 1)
            assert isinstance(n_conditions, int)
            self.n_conditions = n_conditions
        n_continuous = context.n_continuous
        n_mask = sum(options.mask_units_of(info.name) * len(info.blocks) for info in context.modalities)
        parts = [ModalityPart(info, options, levels, n_continuous, n_mask, context.extras) for info in context.modalities]
        for part in parts:
            glorot(part.mask_weight, sum(info.n_features for info in context.modalities), n_mask)
        self.mask_bias = nn.Parameter(torch.zeros(n_mask))
        self.parts: Mapping[str, ModalityPart] = nn.ModuleDict({info.name: part for info, part in zip(context.modalities, parts, strict=True)})  # type: ignore[assignment]
        self.n_units = [part.n_units for part in parts]
        self.n_mask = [part.n_mask for part in parts]
        n_units, n_covariates = sum(self.n_units), sum(levels) + n_continuous
        widths = [int(text) for text in options.hidden]
        self.of_covariates = CovariateTable(levels, n_continuous, n_units, n_covariates + max(self.n_units))
        self.encoder = HiddenStack(n_units, widths)
        last = widths[-1]
        self.mean, self.mean_norm, self.log_var = Dense(last, options.n_latent), PassNorm(options.n_latent), Dense(last, options.n_latent)
        back = widths[::-1]
        n_in = options.n_latent + n_mask
        self.from_latent, self.decoder_norm = Dense(n_in, back[0]), PassNorm(back[0])
        self.covariates_out = CovariateTable(levels, n_continuous, back[0], n_in + n_covariates)
        self.decoder = HiddenStack(back[0], back[1:])
        self.to_blocks = Dense(back[-1], n_units)
        shares = options.shares_of({info.name: info.n_features for info in context.modalities})
        self.register_buffer("shares", torch.tensor([shares[name] for name in self.names]), persistent=False)
        self.register_buffer("pattern_share", torch.from_numpy(np.asarray(context.extras["pattern_share"], dtype=np.float32)), persistent=False)
        n = len(self.names)
        for name, value in (("factor", torch.ones(n)), ("seen_nll", torch.zeros(n)), ("seen_cells", torch.zeros(n)), ("struck", torch.zeros(()))):
            self.register_buffer(name, value)
        self.register_buffer("hidden_entries", torch.zeros(2))

    # ------------------------------------------------------------------ what is seen

    def view(self, batch: Minibatch, given: Sequence[str] | None = None, transform_batch: int | None = None) -> View:
        """Return what may be looked at of a minibatch.

        Parameters
        ----------
        batch
            The minibatch.
        given
            Modalities that may be looked at; None for all.
        transform_batch
            Batch that every cell is taken for; None for its own.
        """
        values, observed, totals = {}, {}, {}
        for name, part in self.parts.items():
            counts, seen = batch.counts[name], self._observed(batch, part, given)
            counts = within(counts, seen)
            known = seen.any
            total = torch.where(known & (counts.total > 0), counts.total, self.parts[name].typical_total)
            values[name], observed[name], totals[name] = part.normalised(counts, total), seen, total
        return View(values, observed, totals, self._codes(batch, transform_batch), batch.continuous)

    def _observed(self, batch: Minibatch, part: ModalityPart, given: Sequence[str] | None) -> Observed:
        measured = batch.measured.get(part.name)
        if measured is None:
            measured = torch.ones(batch.n_cells, dtype=torch.bool, device=batch.index.device)
        if given is not None and part.name not in given:
            measured = torch.zeros_like(measured)
        patterns, features = batch.feature_masks.get(part.name), None
        if patterns is not None and batch.mask_group is not None:
            features = patterns[batch.mask_group]
        hidden = batch.hidden.get(part.name)
        if hidden is not None:
            return Observed(measured, ~hidden if features is None else features & ~hidden, part.n_features)
        return Observed(measured, features, part.n_features, patterns, batch.mask_group)

    def _codes(self, batch: Minibatch, transform_batch: int | None) -> Tensor:
        columns = []
        if "batch" in batch.categorical:
            codes = batch.categorical["batch"]
            columns.append((codes if transform_batch is None else torch.full_like(codes, transform_batch))[:, None])
        if "decoder" in batch.categorical:
            columns.append(batch.categorical["decoder"])
        return torch.cat(columns, 1) if columns else torch.zeros(batch.n_cells, 0, dtype=torch.int64, device=batch.index.device)

    # ------------------------------------------------------------------ encoder and decoder

    def encode(self, view: View, hiding: Hiding | None, n_passes: int) -> Encoded:
        """Encode a minibatch in all passes: everything observed; what is left visible; what is hidden.

        Parameters
        ----------
        view
            The minibatch.
        hiding
            What is hidden; None with a single pass.
        n_passes
            1, 2, or 3.
        """
        assert hiding is not None or n_passes == 1
        partly = self._partly(view, n_passes)
        hide: Hiding = hiding  # type: ignore[assignment]
        parts = self.parts.values()
        mask = torch.tanh(torch.stack([part.embedding(view, hide, n_passes) for part in parts]).sum(0) + self.mask_bias)
        masks = mask.split(self.n_mask, -1)
        entering = [part.entering(view, hide, n_passes) + part.blocks_of_mask(mask) for part, mask in zip(parts, masks, strict=True)]
        blocks = activated(torch.cat(entering, -1) + self.of_covariates(view.codes, view.continuous))
        h = self.encoder(blocks, partly)
        return Encoded(self.mean_norm(self.mean(h), partly), self.log_var(h), mask, blocks, partly)

    def _partly(self, view: View, n_passes: int) -> Tensor:
        """Return which averages of the norms hold, int64 ``(n_passes, n_cells)``: 1 for the passes that see a part, and for cells that look like those.

        A cell that shows the modalities of a whole training batch is one that the first pass has met, though others have more; any other set of
        modalities was met only where something was hidden.
        """
        shown = torch.stack([known.any for known in view.observed.values()], 1)
        of_batches = torch.stack([part.batches > 0 for part in self.parts.values()], 1)
        partly = (shown[:, None] != of_batches).any(2).all(1).to(torch.int64).repeat(n_passes, 1)
        partly[1:] = 1
        return partly

    def decode(self, z: Tensor, encoded: Encoded, view: View, batches: Tensor | None = None) -> Tensor:
        """Return the units of all blocks in all passes, ``(n_passes, n_cells, n_units)``.

        Parameters
        ----------
        z
            Latents ``(n_passes, n_cells, n_latent)``.
        encoded, view
            What they come from.
        batches
            Shares of the batches that a cell is decoded as, ``(n_cells, n_batches)``; None for its own.
        """
        g = self.from_latent(torch.cat([z, encoded.mask], -1)) + self.covariates_out(view.codes, view.continuous, batches)
        g = self.decoder(self.decoder_norm(activated(g), encoded.partly), encoded.partly)
        g = activated(self.to_blocks(g))
        return g + encoded.blocks if self.options.skip_connections else g

    def draw(self, encoded: Encoded, generator: torch.Generator | None) -> Tensor:
        """Return latents drawn from the posteriors, ``(n_passes, n_cells, n_latent)``."""
        mean = encoded.mean
        return self.drawn(encoded, torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device))

    def drawn(self, encoded: Encoded, noise: Tensor) -> Tensor:
        """Return the latents that belong to standard normal noise, ``(n_passes, n_cells, n_latent)``."""
        return torch.addcmul(encoded.mean, torch.exp(0.5 * encoded.log_var), noise).clamp(-LARGEST_Z, LARGEST_Z)

    # ------------------------------------------------------------------ training

    def loss_terms(self, batch: Minibatch, context: StepContext) -> dict[str, Tensor]:
        """Return the declared terms; the reversed pass is left out where all of its weights are 0.

        Held-out cells are hidden from as in training, by draws that are the same at every look, so that the curve falls for no other reason than the model's.
        """
        view = self.view(batch)
        generator = None if context.training else self._fixed(batch)
        hiding = self.hide(batch, view, generator)
        reversed_ = any(weight > 0 for name, weight in context.weights.items() if name.startswith("reverse_") or name == "kl_reverse")
        n_passes = 3 if reversed_ else 2
        encoded = self.encode(view, hiding, n_passes)
        terms = self.terms_at(view, hiding, encoded, self.draw(encoded, generator))
        if context.weights.get("mmd", 0.0) > 0 and self.condition is not None:
            fade = self.options.mmd_decay ** (context.epoch / 50)
            terms["mmd"] = fade * self.discrepancy(batch, encoded.mean[0])
        if context.training:
            self._count(view, hiding, terms)
        return terms

    def hide(self, batch: Minibatch, view: View, generator: torch.Generator | None) -> Hiding:
        """Draw what is hidden from a minibatch."""
        return draw_hiding(
            view.observed, self.shares, self.options.mask_features,
            patterns=batch.feature_masks or None, pattern_shares=self.pattern_share, generator=generator,
        )  # fmt: skip

    def _fixed(self, batch: Minibatch) -> torch.Generator:
        """Return draws that only the seed and the first of the cells determine."""
        seed = int(np.random.SeedSequence([self.seed, int(batch.index[0]), batch.n_cells]).generate_state(1, np.uint64)[0] >> 1)
        return torch.Generator(device=batch.index.device).manual_seed(seed)

    def terms_at(self, view: View, hiding: Hiding, encoded: Encoded, z: Tensor) -> dict[str, Tensor]:
        """Return the terms at given latents ``(n_passes, n_cells, n_latent)``, each ``(n_cells,)``."""
        n_passes, n_cells = z.shape[:2]
        units = self.decode(z, encoded, view).split(self.n_units, -1)
        terms = {}
        for number, (name, part) in enumerate(self.parts.items()):
            pass_of, cell, mask = part.targets(view, hiding, n_passes)
            row = pass_of * n_cells + cell
            logits = part.leave(units[number].flatten(0, 1).index_select(0, row))
            dispersion, group = part.dispersion(view.codes, view.continuous)
            rows = Rows(view.values[name], cell, mask, dispersion, group[cell])
            nll = masked_nll(part.distribution, logits, rows, part.ranges)
            each = nll.new_zeros(n_passes * n_cells).index_add(0, row, nll).view(n_passes, n_cells)
            for kind, values in zip(("observed", "hidden", "reverse"), each, strict=False):
                terms[f"{kind}_{name}"] = values
        mean, log_var = full_precision(encoded.mean), full_precision(encoded.log_var)
        terms["kl"] = kl_views(mean[1], log_var[1], mean[0], log_var[0])
        if n_passes > 2:
            terms["kl_reverse"] = kl_views(mean[2], log_var[2], mean[0], log_var[0])
        return terms

    def discrepancy(self, batch: Minibatch, mean: Tensor) -> Tensor:
        """Return the maximum mean discrepancy between the conditions' posterior means ``(n_cells, n_latent)``, a scalar."""
        options = self.options
        assert self.condition is not None
        return mmd(
            full_precision(mean), batch.categorical[self.condition], self.n_conditions,
            mode=options.mmd_mode, kernel=options.mmd_kernel, pairs=options.mmd_pairs, unbiased=options.mmd_unbiased,
        )  # fmt: skip

    # ------------------------------------------------------------------ balance and metrics

    @torch.no_grad()
    def _count(self, view: View, hiding: Hiding, terms: Mapping[str, Tensor]) -> None:
        """Count what is hidden and, before the balance is struck, what each modality costs."""
        for number, (name, known) in enumerate(view.observed.items()):
            seen = known.measured.sum() * known.n_features if known.features is None else known.mask.sum()
            hidden = hiding.whole[name].sum() * known.n_features if known.features is None else (known.mask & hiding.whole[name][:, None]).sum()
            by_chance = (hiding.scattered[name] & ~hiding.whole[name][hiding.cells][:, None]).sum()
            self.hidden_entries += torch.stack([hidden + by_chance, seen]).to(self.hidden_entries.dtype)
            if self.options.balance and not bool(self.struck):
                self.seen_nll[number] += terms[f"observed_{name}"].sum()
                self.seen_cells[number] += known.any.sum()

    def on_epoch_start(self, epoch: int, max_epochs: int) -> None:
        """Strike the balance once enough epochs were seen: one over the loss of each modality, summing to 1."""
        if not self.options.balance or bool(self.struck) or epoch < min(self.options.balance_epochs, max_epochs - 1) or not bool(self.seen_cells.all()):
            return
        with torch.no_grad():
            inverse = 1.0 / (self.seen_nll / self.seen_cells).abs().clamp_min(1e-6)
            self.factor.copy_(inverse / inverse.sum())
            self.struck.fill_(1.0)

    def term_factors(self) -> dict[str, float]:
        """Return the balance of the modalities, by which the weights of their likelihoods are multiplied; empty where it is not asked for."""
        if not self.options.balance:
            return {}
        factors = zip(self.names, self.factor.tolist(), strict=True)
        return {f"{kind}_{name}": value for name, value in factors for kind in ("observed", "hidden", "reverse")}

    def uses_batch_norm(self) -> bool:
        """Return True: one cell alone cannot be normalised."""
        return True

    def epoch_metrics(self) -> dict[str, float]:
        """Return the share that was hidden in this epoch and, where it is automatic, the weight of each modality."""
        hidden, seen = self.hidden_entries.tolist()
        self.hidden_entries.zero_()
        found = {"hidden_share": hidden / max(seen, 1.0)}
        if self.options.balance:
            found |= {f"beta_{name}": value for name, value in zip(self.names, self.factor.tolist(), strict=True)}
        return found

    # ------------------------------------------------------------------ what it gives

    def latent(self, batch: Minibatch) -> dict[str, Tensor]:
        """Return the posterior mean given all that was measured, ``(n_cells, n_latent)``."""
        return {"latent": self.latent_given(batch)}

    def latent_given(self, batch: Minibatch, given: Sequence[str] | None = None) -> Tensor:
        """Return the posterior mean given some modalities only, ``(n_cells, n_latent)``; NaN where none of them was measured."""
        view = self.view(batch, self._known(given))
        mean = self.encode(view, None, 1).mean[0]
        return torch.where(torch.stack([known.any for known in view.observed.values()]).any(0)[:, None], mean, torch.nan)

    def expression(self, batch: Minibatch, *, transform_batch: int | None = None, scaled_to: float | None = 1.0) -> dict[str, Tensor]:
        """Return denoised expression of what was measured and of what was not; see :class:`Model`. Shares sum to ``scaled_to``."""
        counts = self.impute(batch, transform_batch=transform_batch)
        if scaled_to is None:
            return counts
        return {name: value / value.sum(1, keepdim=True).clamp_min(1e-12) * scaled_to for name, value in counts.items()}

    def impute(self, batch: Minibatch, *, given: Sequence[str] | None = None, transform_batch: int | None = None, in_counts: bool = True) -> dict[str, Tensor]:
        """Return the expected value of every feature of every modality at the posterior mean, ``(n_cells, n_features)``.

        A modality that was never measured in a cell's batch is decoded as the mean of the batches in which it was: what the network would say of a combination
        that it has not seen is arbitrary (scVAEIT decodes it nevertheless).

        Parameters
        ----------
        batch
            The minibatch.
        given
            Modalities that may be looked at; None looks at all that were measured in a cell.
        transform_batch
            Code of the batch that every cell is decoded as; None keeps its own.
        in_counts
            Counts, at the cell's own depth where it is known and that of a typical training cell elsewhere; otherwise the scale of training.
        """
        view = self.view(batch, self._known(given), transform_batch)
        encoded = self.encode(view, None, 1)
        return self._values(view, encoded, encoded.mean, in_counts=in_counts, borrow=transform_batch is None)

    #: Whether single entries of a minibatch may be hidden from it (``Minibatch.hidden``).
    hides_entries = True

    def impute_normalised(self, batch: Minibatch, *, given: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return what :meth:`impute` gives, on the scale of training."""
        return self.impute(batch, given=given, in_counts=False)

    def value_scale(self, name: str) -> str:
        """Return what becomes of the counts of a modality: ``log1p``, ``binary`` or ``none``."""
        return self.parts[name].normalisation

    def impute_draws(
        self, batch: Minibatch, noise: Tensor, *, given: Sequence[str] | None = None, in_counts: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return mean and standard deviation over draws of the latent of what :meth:`impute` gives, each ``(n_cells, n_features)`` by modality.

        ``noise`` is standard normal, ``(n_draws, n_cells, n_latent)``: one draw of the latent for each of the first axis.
        """
        view = self.view(batch, self._known(given))
        encoded = self.encode(view, None, 1)
        return over_draws(self._values(view, encoded, self.drawn(encoded, own.to(encoded.mean)[None]), in_counts=in_counts) for own in noise)

    @property
    def noise_width(self) -> int:
        """Standard normal numbers that a draw of the latent of a cell takes."""
        return int(self.options.n_latent)

    def _values(self, view: View, encoded: Encoded, z: Tensor, *, in_counts: bool, borrow: bool = True) -> dict[str, Tensor]:
        own = self.decode(z, encoded, view)[0].split(self.n_units, -1)
        found = {}
        for number, (name, part) in enumerate(self.parts.items()):
            units = own[number]
            lacking = self._lacking(part, view) if borrow else None
            if lacking is not None:
                others = self.decode(z, encoded, view, part.batches.expand(z.shape[1], -1))[0].split(self.n_units, -1)[number]
                units = torch.where(lacking[:, None], others, units)
            value = expected(part.distribution, part.leave(units), part.ranges)
            found[name] = part.to_counts(value, view.totals[name]) if in_counts else value
        return found

    def _lacking(self, part: ModalityPart, view: View) -> Tensor | None:
        """Return the cells of batches in which a modality was never measured in training, bool ``(n_cells,)``; None where there are none."""
        if not self.has_batch or bool(part.measured_in.all()):
            return None
        lacking = ~part.measured_in[view.codes[:, 0]]
        return lacking if bool(lacking.any()) else None

    def _known(self, given: Sequence[str] | None) -> Sequence[str] | None:
        for name in given or ():
            if name not in self.names:
                raise SpecError(f"The model has no modality '{name}'.", f"It has {', '.join(self.names)}.")
        if given is not None and not given:
            raise SpecError("No modality is given to look at.", f"Name one or more of {', '.join(self.names)}.")
        return given


def kl_views(mean0: Tensor, log_var0: Tensor, mean1: Tensor, log_var1: Tensor) -> Tensor:
    """Return the divergence of posterior 0 from posterior 1, summed over dimensions, ``(n_cells,)``; exponents are cut at 6, as published."""
    ratio = torch.exp((log_var0 - log_var1).clamp(-6, 6))
    distance = (mean1 - mean0) ** 2 * torch.exp(-log_var1.clamp(-6, 6))
    return 0.5 * (ratio + distance - 1 + log_var1 - log_var0).sum(-1)


def build(context: BuildContext) -> VaeitNetwork:
    """Return the network of a run, on the CPU, initialised from torch's global generator."""
    return VaeitNetwork(context)
