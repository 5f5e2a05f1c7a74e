"""A training step of MIDAS on a CPU with its derivatives written out; the same mathematics as the traced one of :mod:`midas_network`.

Matrix products are torch's or compiled (:mod:`cellweave.core.nn.narrow_products`), everything between them is one compiled pass each way
(:mod:`cellweave.core.nn.written_layers`), and the calls of both are made out once for each pattern of modalities
(:mod:`cellweave.core.nn.step_program`). The step is one node of torch's graph: terms come out, and what flows back into them sets the gradients of
all parameters.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cellweave.core.models.midas import sizes_of
from cellweave.core.nn.midas_layers import kernels
from cellweave.core.nn.midas_parts import Gaussian
from cellweave.core.nn.step_program import Array, Space
from cellweave.core.nn.written_likelihood import WrittenLikelihood
from cellweave.core.nn.written_parts import (
    WrittenBatchEncoder,
    WrittenDecoder,
    WrittenEncoder,
    WrittenMlp,
    narrowed,
    row,
    wide,
)

if TYPE_CHECKING:
    from cellweave.core.models.base import Minibatch
    from cellweave.core.models.midas_network import MidasNetwork, Seen

#: Rows of the matrix of terms that the product of experts fills in.
EXPERT_TERMS = ("kl_c", "kl_u", "alignment")
#: Discriminators that are asked, what they are shown, and their codes.
Discriminated = tuple[Sequence[str], Tensor, Tensor]


@dataclass
class _Encoded:
    """What the encoders of a pattern of modalities fill in.

    Attributes
    ----------
    key
        Of their program.
    names, told
        The modalities, and whether the batch spoke.
    seen
        Views of the posteriors and draws.
    z
        The draws, ``((1 + n_modalities) * n_cells, n_latent)``.
    expert_terms
        Terms of the product of experts, ``(3, n_cells)``.
    back
        Makes out the way back, from the derivatives by the draws and by those terms.
    """

    key: tuple[Any, ...]
    names: tuple[str, ...]
    told: bool
    seen: Seen
    z: Array
    expert_terms: Array
    back: Callable[[Array, Array], None]


class WrittenStep:
    """The networks of one MIDAS model, with buffers that are kept from step to step.

    Parameters
    ----------
    network
        The model; its parameters are read at every step and get the gradients.
    """

    def __init__(self, network: MidasNetwork) -> None:
        self.network, self.space = network, Space()
        self.experts = importlib.import_module("cellweave.core.nn.expert_kernels")
        space, options = self.space, network.options
        self.n_latent, self.n_c, self.width = options.n_latent + options.n_technical, options.n_latent, sizes_of(options.shared_encoder)[0]
        self.encoders = {name: WrittenEncoder(space, module) for name, module in network.encoders.items()}  # type: ignore[arg-type]
        self.decoders = {name: WrittenDecoder(space, module) for name, module in network.decoders.items()}  # type: ignore[arg-type]
        self.likelihoods = {name: WrittenLikelihood(space, network.values[name], decoder.bias) for name, decoder in self.decoders.items()}
        self.shared_encoder = WrittenMlp(space, network.shared_encoder)
        self.shared_decoder = WrittenMlp(space, network.shared_decoder)
        self.batch_encoder = WrittenBatchEncoder(space, network.batch_encoder)
        self.batch_decoder = WrittenMlp(space, network.batch_decoder, end=False)
        self.codes = torch.zeros(0, dtype=torch.int64)
        self.encoded: _Encoded | None = None
        self.decoded: _Decoded | None = None
        self.anchor = torch.zeros((), requires_grad=True)
        self.addresses = [(parameter, parameter.data_ptr()) for parameter in network.parameters()]

    def current(self) -> bool:
        """Return whether the parameters still lie where they lay; what is kept here looks into their memory."""
        return all(parameter.data_ptr() == address for parameter, address in self.addresses)

    def release(self) -> None:
        """Let go of the buffers, which the parameters hold too."""
        self.space.clear()
        self.encoded = self.decoded = None
        for decoder in self.network.decoders.values():
            decoder.still = []  # type: ignore[assignment]
        for parameter in self.network.parameters():
            parameter.__dict__.pop("narrow_twin", None)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of the network makes its own."""

    @staticmethod
    def serves(network: MidasNetwork, batch: Minibatch) -> bool:
        """Return whether a training step on this minibatch can be made: float32 on a CPU, layer norm and Mish, every modality in all cells or none."""
        if network.options.norm != "ln" or network.options.activation != "mish" or not torch.is_grad_enabled():
            return False
        if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") != torch.bfloat16:
            return False
        if not batch.n_cells or kernels(network.batch_encoder.table) is None:
            return False
        known = network.present(batch)
        return bool(known) and all(part is None for part in known.values())

    # ------------------------------------------------------------------ forth

    @torch.no_grad()
    def see(self, batch: Minibatch, seen_type: type[Seen], *, told: bool, generator: torch.Generator | None) -> Seen:
        """Run the encoders and draw from the posteriors; what is returned holds until the next step."""
        space, network = self.space, self.network
        space.narrow, space.generator, space.training = torch.is_autocast_enabled("cpu"), generator, network.training
        names = tuple(network.present(batch))
        self.codes = self.batch_encoder.codes = network.codes_of(batch)
        with torch.autocast("cpu", enabled=False):
            sparse = []
            for name in names:
                counts, group = batch.counts[name], batch.mask_group
                entries = self.likelihoods[name].show(counts, getattr(network, f"mask_{name}"), group)
                values = network.values[name].encoder_transform.apply(entries)
                sparse.append(self.encoders[name].first.show(counts, values, narrow=space.narrow))
            key = ("see", names, tuple(sparse), told, batch.n_cells)
            encoded: _Encoded = space.run(key, lambda: self._see(key, names, batch.n_cells, told=told, seen_type=seen_type))
        self.encoded = encoded
        return encoded.seen

    def _see(self, key: tuple[Any, ...], names: tuple[str, ...], n_cells: int, *, told: bool, seen_type: type[Seen]) -> _Encoded:
        space, network, n_latent, n_names = self.space, self.network, self.n_latent, len(names)
        hidden = space.take(self, "hidden", n_names * n_cells, self.width, narrow=space.narrow)
        of_encoders = [self.encoders[name].forward(n_cells, hidden.rows(at * n_cells, (at + 1) * n_cells)) for at, name in enumerate(names)]
        x, of_shared = self.shared_encoder.forward(hidden)
        outputs = wide(space, self, "outputs", x)
        of_batch, by_batch = self.batch_encoder.forward(n_cells) if told else (outputs, None)
        n_all = (1 + n_names) * n_cells
        noise = space.take(self, "noise", n_all, n_latent)
        space.do(lambda: torch.randn((n_all, n_latent), generator=space.generator, out=noise.tensor))
        means, precisions, mean, var, z = (space.take(self, name, n_all, n_latent) for name in ("means", "precisions", "mean", "var", "z"))
        terms = space.take(self, "expert terms", len(EXPERT_TERMS), n_cells)
        end, batch_end = network.shared_encoder.end, network.batch_encoder.rest.end
        assert end is not None and batch_end is not None
        space.do(
            self.experts.experts, outputs.array, row(end.bias).numpy(), n_names, told, of_batch.array, row(batch_end.bias).numpy(), noise.array, self.n_c,
            means.array, precisions.array, mean.array, var.array, z.array, terms.array,
        )  # fmt: skip
        parts = [part.tensor.view(1 + n_names, n_cells, n_latent) for part in (mean, var, z)]
        seen = seen_type(names, dict.fromkeys(names), Gaussian(parts[0][0], parts[1][0]), Gaussian(parts[0][1:], parts[1][1:]), parts[2], told)

        def back(by_z: Array, by_terms: Array) -> None:
            by_out, by_batch_out = space.take(self, "by out", n_names * n_cells, 2 * n_latent), space.take(self, "by batch", n_cells, 2 * n_latent)
            by_batch_bias = space.sums(batch_end.bias).array if told else np.zeros(2 * n_latent, np.float32)
            space.do(
                self.experts.experts_back, by_z.array, by_terms.array, n_names, told, noise.array, self.n_c, means.array, precisions.array, mean.array,
                var.array, z.array, by_out.array, space.sums(end.bias).array[None], by_batch_out.array, by_batch_bias[None],
            )  # fmt: skip
            if by_batch is not None:
                by_batch(by_batch_out)
            by_hidden = of_shared(narrowed(space, self, "by out", by_out))
            assert by_hidden is not None
            for at, of_encoder in enumerate(of_encoders):
                of_encoder(by_hidden.rows(at * n_cells, (at + 1) * n_cells))

        return _Encoded(key, names, told, seen, z, terms, back)

    def loss_terms(self, *, with_batch: bool, discriminated: Discriminated | None) -> list[Tensor]:
        """Return the terms of each cell after :meth:`see` of the minibatch: :data:`EXPERT_TERMS`, reconstructions, then those asked for.

        Parameters
        ----------
        with_batch
            Whether the batch is reconstructed.
        discriminated
            Discriminators that are asked, what they are shown, and their codes; None where they are not.
        """
        terms: Tensor = _Step.apply(self.anchor, self, with_batch, discriminated)  # type: ignore[no-untyped-call]
        return list(terms.unbind())

    @torch.no_grad()
    def whole(self, weights: Sequence[float], *, with_batch: bool, discriminated: Discriminated | None) -> list[float]:
        """Set the gradients of the weighed sum of the terms' means, and return those; terms and arguments as in :meth:`loss_terms`."""
        with torch.autocast("cpu", enabled=False):
            terms, factors = self._buffers(len(weights))
            n_cells = terms.array.shape[1]
            factors.array[:] = np.array(weights, np.float32)[:, None] / n_cells
            self.run(with_batch, discriminated, at_once=True)
            means: list[float] = terms.array.mean(1, dtype=np.float64).tolist()
        return means

    def _buffers(self, n_terms: int) -> tuple[Array, Array]:
        """Return the matrices of terms and of the derivatives by them, ``(n_terms, n_cells)``."""
        assert self.encoded is not None
        n_cells = self.encoded.expert_terms.array.shape[1]
        return self.space.take(self, "terms", n_terms, n_cells), self.space.take(self, "factors", n_terms, n_cells)

    def run(self, with_batch: bool, discriminated: Discriminated | None, *, at_once: bool) -> Array:
        """Decode, and return the terms, ``(n_terms, n_cells)``; where the factors are known, go all the way back at once."""
        space, network = self.space, self.network
        space.training = network.training
        keys: tuple[str, ...] = ()
        if discriminated is not None and discriminated[0]:
            keys = tuple(discriminated[0])
            written = network.discriminators.written(discriminated[1])
            assert written is not None
            written.show(*discriminated, narrow=space.narrow)
        encoded = self.encoded
        assert encoded is not None
        for name in encoded.names:
            self.likelihoods[name].at_once = at_once
        key = ("at once" if at_once else "run", *encoded.key, with_batch, keys, *(self.likelihoods[name].masked for name in encoded.names))
        decoded: _Decoded = space.run(key, lambda: self._run(encoded, key, keys, with_batch=with_batch, at_once=at_once))
        self.decoded = decoded
        return decoded.terms

    def _run(self, encoded: _Encoded, key: tuple[Any, ...], keys: tuple[str, ...], *, with_batch: bool, at_once: bool) -> _Decoded:
        """Make out the calls of :meth:`run`."""
        space, names, n_cells = self.space, encoded.names, encoded.expert_terms.array.shape[1]
        terms, factors = self._buffers(len(EXPERT_TERMS) + len(names) + with_batch + bool(keys))
        at = len(EXPERT_TERMS)
        space.do(terms.tensor[:at].copy_, encoded.expert_terms.tensor)
        hidden, of_shared = self.shared_decoder.forward(narrowed(space, self, "z decoded", encoded.z.rows(0, n_cells)))
        of_likelihoods = []
        for name in names:
            x, of_decoder = self.decoders[name].forward(hidden)
            of_likelihoods.append((self.likelihoods[name].forward(x, terms.array[at], factors.array[at]), of_decoder))
            at += 1
        of_batch = self._batch_costs(encoded.z, terms.array[at], factors.array[at]) if with_batch else None
        if keys:
            space.do(self._ask, keys, terms.tensor[-1], factors.array[-1:], at_once=at_once)

        def back() -> None:
            by_hidden: Array | None = None
            for of_likelihood, of_decoder in of_likelihoods:
                by_hidden = of_decoder(of_likelihood(), by_hidden)
            assert by_hidden is not None
            by_z = space.take(self, "by z", *encoded.z.array.shape)
            space.do(by_z.tensor[n_cells:].zero_)
            by_joint = of_shared(by_hidden)
            assert by_joint is not None
            space.do(by_z.tensor[:n_cells].copy_, by_joint.tensor)
            if of_batch is not None:
                space.do(by_z.tensor[:n_cells, self.n_c :].add_, of_batch().tensor)
            if keys:
                space.do(self._ask_back, by_z, factors.array[-1:], at_once=at_once)
            encoded.back(by_z, factors.rows(0, len(EXPERT_TERMS)))

        if at_once:
            back()
        return _Decoded(key, terms, factors, back)

    def _batch_costs(self, z: Array, costs: np.ndarray, factor: np.ndarray) -> Callable[[], Array]:
        """Fill in the cross entropy of the batch of each cell, guessed from u."""
        space, n_cells, end = self.space, len(costs), self.network.batch_decoder.end
        assert end is not None
        u, slopes = space.take(self, "u", n_cells, self.n_latent - self.n_c), space.take(self, "batch slopes", n_cells, len(end.bias)).array
        space.do(u.tensor.copy_, z.tensor[:n_cells, self.n_c :])
        x, of_decoder = self.batch_decoder.forward(u)
        weight, bias, right = end.weight.detach().numpy(), end.bias.detach().numpy(), np.zeros(2, np.int64)
        space.do(lambda: space.kernels.class_costs(x.array, weight, bias, self.codes.contiguous().numpy(), costs, right, slopes))

        def back() -> Array:
            by_x = space.take(self, "by batch hidden", *x.array.shape)
            by_weight, by_bias = space.sums(end.weight).array, space.sums(end.bias).array
            space.do(space.kernels.class_back, slopes, factor, x.array, weight, True, by_x.array, by_weight, by_bias)
            found = of_decoder(by_x)
            assert found is not None
            return found

        return back

    def _ask(self, keys: Sequence[str], total: Tensor, factor: np.ndarray, *, at_once: bool) -> None:
        """Fill in what the discriminators cost together; where the factor is known, go back at once, while their numbers are near."""
        written = self.network.discriminators.written(total)
        assert written is not None
        costs, right = written.forward(self.space.generator)
        torch.sum(costs, 0, out=total)
        self.network.note_hits(keys, torch.from_numpy(right))
        if at_once:
            written.backward(factor, for_weights=False, by_c=True)

    def _ask_back(self, by_z: Array, factor: np.ndarray, *, at_once: bool) -> None:
        """Add the derivatives by the draws of what the discriminators cost."""
        written, encoded = self.network.discriminators.written(by_z.tensor), self.encoded
        assert written is not None and encoded is not None
        by_c = written.by_c if at_once else written.backward(factor, for_weights=False, by_c=True)
        assert by_c is not None
        latents = by_z.tensor.view(1 + len(encoded.names), -1, self.n_latent)
        if len(by_c) == len(latents):
            latents[..., : self.n_c] += by_c
            return
        places = {"joint": 0, **{name: place + 1 for place, name in enumerate(encoded.names)}}
        for own, key in zip(by_c, written.keys, strict=True):
            latents[places[key], :, : self.n_c] += own

    # ------------------------------------------------------------------ back

    def back(self, factors: Tensor) -> None:
        """Set the gradients of all parameters from the derivatives by the terms, ``(n_terms, n_cells)``."""
        decoded = self.decoded
        assert decoded is not None
        decoded.factors.tensor.copy_(factors)
        self.space.run(("back", decoded.key), decoded.back)


@dataclass
class _Decoded:
    """What the decoders fill in: the terms; and what takes the derivatives by them, with the calls of the way back."""

    key: tuple[Any, ...]
    terms: Array
    factors: Array
    back: Callable[[], None]


class _Step(torch.autograd.Function):
    """All of a step as one node; what flows back sets the gradients of the parameters, which are not among its inputs."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, step: WrittenStep, with_batch: bool, discriminated: Any) -> Tensor:  # type: ignore[override]
        """Return the terms ``(n_terms, n_cells)``."""
        ctx.step = step
        with torch.autocast("cpu", enabled=False):
            return step.run(with_batch, discriminated, at_once=False).tensor.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: Tensor) -> tuple[None, ...]:  # type: ignore[override]
        """Set the gradients."""
        step, ctx.step = ctx.step, None
        if step is None:
            message = "the derivatives were already used"
            raise RuntimeError(message)
        with torch.autocast("cpu", enabled=False):
            step.back(g)
        return (None,) * 4



