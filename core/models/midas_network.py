"""The network of MIDAS (He et al. 2024; scmidas 0.3.0): product of experts, discriminators, and what they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cellweave.core.models.base import BuildContext, Minibatch, ModalityInfo, ParameterGroup, StepContext
from cellweave.core.models.discriminator_hits import Hits
from cellweave.core.models.midas import FAMILY, OWN_LOSS, MidasOptions, reconstruction, sizes_of
from cellweave.core.models.midas_answers import MidasAnswers
from cellweave.core.models.midas_summaries import MEASURED_IN, ROUND
from cellweave.core.models.midas_written import EXPERT_TERMS, WrittenStep
from cellweave.core.models.vae_network import level_of
from cellweave.core.nn.layers import full_precision
from cellweave.core.nn.midas_discriminators import Discriminators
from cellweave.core.nn.midas_layers import Mlp
from cellweave.core.nn.midas_parts import BatchEncoder, Gaussian, ModalityDecoder, ModalityEncoder, product
from cellweave.core.nn.midas_values import ModalityValues
from cellweave.core.nn.written_discriminators import loops_for

JOINT = "joint"
#: Beginning of the names of stored latents c of a reference, by discriminator.
REFERENCE = "midas_reference_"


@dataclass
class Seen:
    """What the encoders make of a minibatch.

    Attributes
    ----------
    names
        Modalities that some cell has.
    known
        By modality, which cells have it, float ``(n_cells, 1)``; None where all have.
    joint, single
        Posteriors of the cells from all their modalities, and from each alone (``(n_modalities, n_cells, n_latent)``).
    both
        Draws of the two, or their means, ``(1 + n_modalities, n_cells, n_latent)``.
    told
        Whether the batch spoke.
    """

    names: tuple[str, ...]
    known: dict[str, Tensor | None]
    joint: Gaussian
    single: Gaussian
    both: Tensor
    told: bool

    @property
    def z(self) -> Tensor:
        """Draw of the joint posterior, ``(n_cells, n_latent)``."""
        return self.both[0]

    @property
    def z_single(self) -> Tensor:
        """Draws of each modality's posterior, ``(n_modalities, n_cells, n_latent)``."""
        return self.both[1:]


class MidasNetwork(MidasAnswers):
    """Encoders, decoders, batch networks and discriminators of MIDAS.

    In training a forward pass is made in :meth:`before_step`, where the discriminators learn on its draws, and taken up by the
    :meth:`loss_terms` of the same minibatch, so that both see the same draws and the encoders work once.

    Parameters
    ----------
    context
        Sizes, levels, spec; ``extras`` says which batches have which modality.
    """

    family = FAMILY
    compiled_optimizer = True
    loops: tuple[str, ...] = ("fused_kernels", "norm_kernel", "step_kernels", "expert_kernels", "adam_kernel", "small_kernel")
    own_code: Tensor

    def __init__(self, context: BuildContext) -> None:
        super().__init__()
        options = context.spec.model
        assert isinstance(options, MidasOptions)
        self.spec, self.options, self.infos = context.spec, options, context.modalities
        self.n_batches = level_of(context, "batch")
        self.round = int(np.ravel(context.extras.get(ROUND, self.n_batches))[0])
        self.clip = context.spec.training.gradient_clip
        how: dict[str, Any] = {"norm": options.norm, "activation": options.activation, "dropout": options.dropout_rate}
        n_c, n_latent = options.n_latent, options.n_latent + options.n_technical
        encoder, decoder = sizes_of(options.shared_encoder), sizes_of(options.shared_decoder)
        made = {info.name: ModalityValues(options, info.name, info.n_features) for info in context.modalities}
        self.values: Mapping[str, ModalityValues] = nn.ModuleDict(made)  # type: ignore[assignment]
        self.encoders, self.decoders = nn.ModuleDict(), nn.ModuleDict()
        for info in context.modalities:
            first, second = options.block_sizes(info.name)
            self.encoders[info.name] = ModalityEncoder(info.blocks, first, encoder[0], how)
            self.decoders[info.name] = ModalityDecoder(decoder[-1], info.blocks, second, how)
        self.shared_encoder = Mlp([*encoder, 2 * n_latent], **how)
        self.shared_decoder = Mlp([n_latent, *decoder], bare_end=False, **how)
        self.batch_encoder = BatchEncoder(self.n_batches, sizes_of(options.batch_encoder), 2 * n_latent, how)
        self.batch_decoder = Mlp([options.n_technical, *sizes_of(options.batch_decoder), self.n_batches], **how)
        self._make_discriminators(np.asarray(context.extras[MEASURED_IN], dtype=bool), context.extras, n_c, how)
        self._kept: tuple[Minibatch, Seen, WrittenStep | None] | None = None
        self._written: WrittenStep | None = None
        self._told: Tensor | float | None = None  # mean loss of the discriminators in the steps that they took last
        self._hits = Hits()
        for info in context.modalities:
            mask = None if info.feature_mask is None else torch.from_numpy(np.asarray(info.feature_mask, dtype=np.float32))
            self.register_buffer(f"mask_{info.name}", mask, persistent=False)

    def _make_discriminators(self, measured_in: np.ndarray, stored: Mapping[str, Any], n_c: int, how: Mapping[str, Any]) -> None:
        """Make a discriminator for each modality and one for all together; each numbers the batches that have its modality."""
        rows = np.concatenate([np.ones((1, self.n_batches), dtype=bool), measured_in])
        # A code for every batch: its running number among those that have the modality, -1 for the others.
        codes = np.where(rows, np.cumsum(rows, axis=1) - 1, -1)
        self.register_buffer("own_code", torch.from_numpy(codes.astype(np.int64)), persistent=False)
        sizes, keys = sizes_of(self.options.discriminator), [JOINT, *(info.name for info in self.infos)]
        # Where data are mapped onto a reference, its cells are one more class of every discriminator that knows stored latents of them.
        self.stored = [key for key in keys if REFERENCE + key in stored]
        for key in self.stored:
            self.register_buffer(REFERENCE + key, torch.from_numpy(np.asarray(stored[REFERENCE + key], dtype=np.float32)), persistent=False)
        self.n_classes = {key: int(max(1, row.sum())) + (key in self.stored) for key, row in zip(keys, rows, strict=True)}
        self.discriminators = Discriminators(n_c, sizes, self.n_classes, how)
        self.loops = (*type(self).loops, loops_for(self.discriminators.sizes, narrow=self.spec.training.precision == "bf16"))
        self._row = {key: place for place, key in enumerate(keys)}

    # ------------------------------------------------------------------ inference

    def codes_of(self, batch: Minibatch) -> Tensor:
        """Return the batch of each cell, ``(n_cells,)``."""
        codes = batch.categorical.get("batch")
        return torch.zeros(batch.n_cells, dtype=torch.int64, device=batch.index.device) if codes is None else codes

    def present(self, batch: Minibatch, given: Sequence[str] | None = None) -> dict[str, Tensor | None]:
        """Return the modalities that some cell has, each with which cells have it as float ``(n_cells, 1)`` or None for all."""
        found: dict[str, Tensor | None] = {}
        for info in self.infos:
            if info.name not in batch.counts or (given is not None and info.name not in given):
                continue
            measured = batch.measured.get(info.name)
            if measured is None or bool(measured.all()):
                found[info.name] = None
            elif bool(measured.any()):
                found[info.name] = measured[:, None].to(torch.get_default_dtype())
        return found

    def see(self, batch: Minibatch, *, draw: bool, told: bool, given: Sequence[str] | None = None, generator: torch.Generator | None = None) -> Seen:
        """Run the encoders.

        Parameters
        ----------
        batch
            The minibatch.
        draw
            Whether to draw from the posteriors; else their means are taken.
        told
            Whether the batch's expert speaks.
        given
            Modalities that may be looked at; None for all.
        generator
            Source of the draws; None for torch's global one.
        """
        known = self.present(batch, given)
        names = tuple(known)
        hidden = [self.encoders[name](batch.counts[name], self.values[name].seen(batch.counts[name]), generator) for name in names]
        n_latent = self.options.n_latent + self.options.n_technical
        if not names:
            outputs = next(self.parameters()).new_zeros(0, batch.n_cells, 2 * n_latent)
        elif self.options.norm == "bn":  # the statistics are those of one modality at a time
            outputs = torch.stack([self.shared_encoder(part, generator) for part in hidden])
        else:
            stacked = torch.cat(hidden) if len(hidden) > 1 else hidden[0]
            outputs = self.shared_encoder(stacked, generator).view(len(names), batch.n_cells, 2 * n_latent)
        outputs = full_precision(outputs)
        mean, log_var = outputs[..., :n_latent], outputs[..., n_latent:]
        expert = None
        if told:
            of_batch = full_precision(self.batch_encoder(self.codes_of(batch), generator))
            expert = of_batch[:, :n_latent], of_batch[:, n_latent:]
        weights = None
        if any(part is not None for part in known.values()):
            one = mean.new_ones(batch.n_cells, 1)
            weights = torch.stack([one if part is None else part.to(mean.dtype) for part in known.values()])
        joint, single = product(mean, log_var, weights, expert)
        both = Gaussian(torch.cat([joint.mean[None], single.mean]), torch.cat([joint.var[None], single.var]))
        return Seen(names, known, joint, single, both.draw(generator) if draw else both.mean, told)

    def decode(self, z: Tensor, names: Sequence[str], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return what the likelihood of each modality takes, ``(n_cells, n_features)``, from latents ``(n_cells, n_c + n_u)``."""
        hidden = self.shared_decoder(z, generator)
        return {name: self.decoders[name](hidden, generator) for name in names}

    # ------------------------------------------------------------------ training

    def _forward(self, batch: Minibatch, context: StepContext, *, serves: bool | None = None) -> tuple[Minibatch, Seen, WrittenStep | None]:
        """Run the encoders of a step; return minibatch, what was seen, and where the step is written out, by what; ``serves`` where that is known."""
        generator = context.generator
        told = self.options.batch_expert
        if context.training and told and self.options.batch_drop > 0:
            told = float(torch.rand((), generator=generator)) >= self.options.batch_drop
        if serves or (serves is None and context.training and WrittenStep.serves(self, batch)):
            if self._written is None or not self._written.current():
                self.release()
                self._written = WrittenStep(self)
            return batch, self._written.see(batch, Seen, told=told, generator=generator), self._written
        return batch, self.see(batch, draw=True, told=told, generator=generator), None

    def before_step(self, batch: Minibatch, context: StepContext, optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, float]:
        """Make the forward pass of the step and let the discriminators learn on its draws; see the class."""
        if not context.weights.get(OWN_LOSS, 0.0):
            return {}
        self._kept = self._forward(batch, context)
        self._teach(batch, self._kept[1], context, optimizers["discriminators"])
        return {}

    def _teach(self, batch: Minibatch, seen: Seen, context: StepContext, optimizer: torch.optim.Optimizer) -> tuple[list[str], Tensor, Tensor]:
        """Let the discriminators learn on the draws of a step; return what :meth:`_discriminated` gives."""
        keys, c, codes = self._discriminated(batch, seen)
        if keys:
            if self.stored and context.step and context.step % self.round == 0:  # the step before was that of the last new batch of a round
                self._learn_reference(batch.n_cells, context, optimizer)
            self._told = self._learn(keys, c, codes, context, optimizer)
        return keys, c, codes

    def whole_step(
        self, batch: Minibatch, context: StepContext, weights: Mapping[str, float], optimizers: Mapping[str, torch.optim.Optimizer]
    ) -> dict[str, float] | None:
        """Do all of a step where it is written out; see :class:`Model`."""
        if not WrittenStep.serves(self, batch):
            return None
        _, seen, written = self._forward(batch, context, serves=True)
        assert written is not None
        self._move_absent_heads(seen.names)
        discriminated = None
        if context.weights.get(OWN_LOSS, 0.0) > 0:
            discriminated = self._teach(batch, seen, context, optimizers["discriminators"])
        names, with_batch = self._written_names(seen, context.weights, discriminated)
        means = written.whole([weights.get(name, 0.0) for name in names], with_batch=with_batch, discriminated=discriminated)
        found = dict(zip(names, means, strict=True))
        if discriminated is not None:
            found.setdefault("adversarial", 0.0)
            told, self._told = self._told, None
            found[OWN_LOSS] = found["adversarial"] if told is None else float(told)
        return found

    def release(self) -> None:
        """Let go of the buffers of the written step; see :class:`Model`."""
        if self._written is not None:
            self._written.release()
        self._written = self._kept = self._told = None

    def _written_names(self, seen: Seen, weights: Mapping[str, float], discriminated: tuple[list[str], Tensor, Tensor] | None) -> tuple[list[str], bool]:
        """Return the names of a written step's terms in their order, and whether the batch is among them."""
        with_batch = "reconstruction_batch" in weights and seen.told
        names = [*EXPERT_TERMS, *(reconstruction(name) for name in seen.names), *["reconstruction_batch"] * with_batch]
        return [*names, *["adversarial"] * bool(discriminated and discriminated[0])], with_batch

    def _learn(self, keys: Sequence[str], c: Tensor, codes: Tensor, context: StepContext, optimizer: torch.optim.Optimizer) -> Tensor | float:
        """Let some discriminators take their steps on latents ``(n_keys, n_cells, n_c)`` with these batch codes; return their mean loss before each."""
        scale = context.weights[OWN_LOSS] / c.shape[1]
        told: Tensor | float = 0.0
        if not self.clip:
            at_once = self.discriminators.learn_at_once(keys, c, codes, scale, self.options.discriminator_steps, context.generator, optimizer)
            if at_once is not None:
                return at_once
        for number in range(self.options.discriminator_steps):
            optimizer.zero_grad(set_to_none=True)
            told = told + self.discriminators.learn(keys, c, codes, scale, context.generator, again=number > 0)
            if self.clip > 0:
                parameters = [p for group in optimizer.param_groups for p in group["params"]]
                nn.utils.clip_grad_norm_(parameters, self.clip, error_if_nonfinite=False)
            optimizer.step()
        return told / self.options.discriminator_steps

    def _learn_reference(self, n_cells: int, context: StepContext, optimizer: torch.optim.Optimizer) -> None:
        """Show the discriminators stored latents of the reference, once for each round over the new batches."""
        parts, codes = [], []
        for key in self.stored:
            known = getattr(self, REFERENCE + key)
            rows = torch.randint(len(known), (n_cells,), generator=context.generator, device=known.device)
            parts.append(known[rows])
            codes.append(torch.full((n_cells,), self.n_classes[key] - 1, device=known.device))
        self._learn(self.stored, torch.stack(parts), torch.stack(codes), context, optimizer)

    def _discriminated(self, batch: Minibatch, seen: Seen) -> tuple[list[str], Tensor, Tensor]:
        """Return the discriminators that have anything to tell, what each is shown ``(n_keys, n_cells, n_c)``, and its batch codes (-1: not measured)."""
        of_batch, latents = self.codes_of(batch), {JOINT: seen.z, **dict(zip(seen.names, seen.z_single, strict=True))}
        keys = [key for key in latents if self.n_classes[key] > 1]  # with one class it could only ever be right
        if not keys:
            return [], seen.z[:0], of_batch
        codes = self.own_code[:, of_batch][[self._row[key] for key in keys]] if len(keys) < len(self._row) else self.own_code[:, of_batch]
        for place, key in enumerate(keys):
            known = seen.known.get(key)
            if known is not None:
                codes[place].masked_fill_(known[:, 0] == 0, -1)
        if len(keys) == len(seen.both):
            return keys, seen.both[..., : self.options.n_latent], codes
        return keys, torch.stack([latents[key] for key in keys])[..., : self.options.n_latent], codes

    def loss_terms(self, batch: Minibatch, context: StepContext) -> dict[str, Tensor]:
        """Return the terms of :func:`cellweave.core.models.midas.terms` of the modalities measured here, each ``(n_cells,)``."""
        kept, self._kept = self._kept, None
        _, seen, written = kept if kept is not None and kept[0] is batch else self._forward(batch, context)
        options, weights = self.options, context.weights
        if context.training:
            self._move_absent_heads(seen.names)
        if written is not None:
            return self._written_terms(written, batch, seen, weights)
        result = self._reconstructions(batch, seen, context.generator)
        if "reconstruction_batch" in weights and seen.told:
            logits = full_precision(self.batch_decoder(seen.z[:, options.n_latent :], context.generator))
            result["reconstruction_batch"] = cross_entropy(logits, self.codes_of(batch), reduction="none")
        divergence = 0.5 * (seen.joint.mean**2 + seen.joint.var - 1 - seen.joint.var.log())
        result["kl_c"], result["kl_u"] = divergence[:, : options.n_latent].sum(1), divergence[:, options.n_latent :].sum(1)
        result["alignment"] = self._alignment(seen)
        if weights.get(OWN_LOSS, 0.0) > 0:
            result |= self._with_own_loss(self._adversarial(batch, seen, context))
        return result

    def _with_own_loss(self, adversarial: Tensor) -> dict[str, Tensor]:
        """Return both terms of the discriminators ``(n_cells,)``: what the network raises, and what they lowered before or, looking only, would."""
        told, self._told = self._told, None
        return {"adversarial": adversarial, OWN_LOSS: adversarial.detach() if told is None else torch.as_tensor(told).expand(len(adversarial))}

    def _written_terms(self, written: WrittenStep, batch: Minibatch, seen: Seen, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """Return the same terms from a step that is written out."""
        asked = weights.get(OWN_LOSS, 0.0) > 0
        discriminated = self._discriminated(batch, seen) if asked else None
        names, with_batch = self._written_names(seen, weights, discriminated)
        rows = written.loss_terms(with_batch=with_batch, discriminated=discriminated)
        result = dict(zip(names, rows, strict=True))
        if asked:
            result |= self._with_own_loss(result.get("adversarial", seen.z.new_zeros(batch.n_cells)))
        return result

    def _reconstructions(self, batch: Minibatch, seen: Seen, generator: torch.Generator | None) -> dict[str, Tensor]:
        result = {}
        for name, eta in self.decode(seen.z, seen.names, generator).items():
            mask = getattr(self, f"mask_{name}")
            nll = self.values[name].nll(batch.counts[name], eta, mask, None if mask is None else batch.mask_group)
            known = seen.known[name]
            result[reconstruction(name)] = nll if known is None else nll * known[:, 0]
        return result

    def _move_absent_heads(self, present: Sequence[str]) -> None:
        """Give the last shared map of the decoder a gradient of zero for the modalities that this minibatch lacks.

        It is one map to all modalities, so the optimiser's averages of the others fade and keep moving it, as in the original. Without a
        gradient Adam would pass them over, and a modality of half the batches would learn about a third more slowly than there.
        """
        for name, decoder in self.decoders.items():
            if name not in present:
                decoder.stand_still()  # type: ignore[operator]

    @staticmethod
    def _alignment(seen: Seen) -> Tensor:
        """Return the squared distance of what each modality says from their mean, summed, ``(n_cells,)``."""
        z = seen.z_single
        if len(z) < 2:
            return seen.z.new_zeros(len(seen.z))
        if all(part is None for part in seen.known.values()):
            return ((z - z.mean(0)) ** 2).sum((0, 2))
        known = torch.stack([torch.ones_like(z[0, :, :1]) if part is None else part.to(z.dtype) for part in seen.known.values()])
        mean = (z * known).sum(0) / known.sum(0).clamp(min=1)
        return (((z - mean) * known) ** 2).sum((0, 2))

    def _adversarial(self, batch: Minibatch, seen: Seen, context: StepContext) -> Tensor:
        """Return the summed cross entropies of the discriminators ``(n_cells,)``; their weights get no gradient."""
        keys, c, codes = self._discriminated(batch, seen)
        if not keys:
            return seen.z.new_zeros(batch.n_cells)
        costs, logits = self.discriminators.costs(keys, c, codes, context.generator, fixed=True)
        if context.training:
            # Read at the end of the epoch only, so that no step waits for the device.
            self.note_hits(keys, torch.stack([(logits.detach().argmax(2) == codes).sum(1), (codes >= 0).sum(1)], 1))
        return costs.sum(0)

    def note_hits(self, keys: Sequence[str], numbers: Tensor) -> None:
        """Keep how many cells each discriminator guessed right and how many it was asked about, ``(n_keys, 2)``, for the epoch's metrics."""
        self._hits.note(keys, numbers)

    def epoch_metrics(self) -> dict[str, float]:
        """Return the accuracy of each discriminator over the epoch, and begin anew."""
        return self._hits.accuracies()

    def epoch_state(self) -> dict[str, Tensor]:
        """Return what :meth:`epoch_metrics` is made of."""
        return self._hits.state()

    def load_epoch_state(self, state: Mapping[str, Tensor]) -> None:
        """Take it up."""
        self._hits.load(state, self.own_code.device)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the network's parameters, and the discriminators' for their own optimiser."""
        own = {id(p) for p in self.discriminators.parameters()}
        groups = [ParameterGroup("model", [p for p in self.parameters() if id(p) not in own and p.requires_grad])]
        if OWN_LOSS in {term.name for term in self.family.terms(self.spec)}:
            options = self.options
            groups.append(
                ParameterGroup(
                    "discriminators", list(self.discriminators.parameters()), options.discriminator_rate, auxiliary=True,
                    optimizer=options.discriminator_optimizer,
                )
            )  # fmt: skip
        return groups


def build(context: BuildContext) -> MidasNetwork:
    """Return the network of a run, on the CPU, initialised from torch's global generator."""
    return MidasNetwork(context)


__all__ = ["JOINT", "MidasNetwork", "ModalityInfo", "Seen", "build"]
