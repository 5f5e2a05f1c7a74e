"""A training step of MIDAS on a CPU with its derivatives written out; the same mathematics as the traced one of :mod:`midas_network`.

Matrix products are torch's, everything between them one compiled pass each way (:mod:`cellweave.core.nn.written_layers`). The step is one node of
torch's graph: terms come out, and what flows back into them sets the gradients of all parameters.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cellweave.core.models.midas import sizes_of
from cellweave.core.nn.layers import full_precision
from cellweave.core.nn.midas_layers import in_parts, kernels
from cellweave.core.nn.midas_parts import Gaussian
from cellweave.core.nn.midas_values import COMPILED
from cellweave.core.nn.written_layers import Array, Space, as_array, check
from cellweave.core.nn.written_parts import WrittenBatchEncoder, WrittenDecoder, WrittenEncoder, WrittenMlp

if TYPE_CHECKING:
    from cellweave.core.models.base import Minibatch
    from cellweave.core.models.midas_network import MidasNetwork, Seen

#: Rows of the matrix of terms that the product of experts fills in.
EXPERT_TERMS = ("kl_c", "kl_u", "alignment")


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
        self.n_latent, self.width = options.n_latent + options.n_technical, sizes_of(options.shared_encoder)[0]
        self.encoders = {name: WrittenEncoder(space, module) for name, module in network.encoders.items()}  # type: ignore[arg-type]
        self.decoders = {name: WrittenDecoder(space, module) for name, module in network.decoders.items()}  # type: ignore[arg-type]
        self.shared_encoder = WrittenMlp(space, network.shared_encoder)
        self.shared_decoder = WrittenMlp(space, network.shared_decoder)
        self.batch_encoder = WrittenBatchEncoder(space, network.batch_encoder)
        self.batch_decoder = WrittenMlp(space, network.batch_decoder, end=False)
        self.anchor = torch.zeros((), requires_grad=True)
        self.addresses = [(parameter, parameter.data_ptr()) for parameter in network.parameters()]

    def current(self) -> bool:
        """Return whether the parameters still lie where they lay; what is kept here looks into their memory."""
        return all(parameter.data_ptr() == address for parameter, address in self.addresses)

    def release(self) -> None:
        """Let go of the buffers, which the parameters hold too."""
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
        """Run the encoders and draw from the posteriors."""
        space, network = self.space, self.network
        space.narrow, space.generator, space.training = torch.is_autocast_enabled("cpu"), generator, network.training
        self.names, self.told = tuple(network.present(batch)), told
        n_cells, n_latent, n_names = batch.n_cells, self.n_latent, len(self.names)
        with torch.autocast("cpu", enabled=False):
            hidden = space.take(self, "hidden", n_names * n_cells, self.width, narrow=space.narrow)
            for place, name in enumerate(self.names):
                counts = batch.counts[name]
                self.encoders[name].forward(counts, network.values[name].seen(counts), hidden.rows(place * n_cells, (place + 1) * n_cells))
            outputs = self._wide("outputs", self.shared_encoder.forward(hidden))
            of_batch = self.batch_encoder.forward(network.codes_of(batch)) if told else outputs
        n_all = (1 + n_names) * n_cells
        self.noise = as_array(torch.randn((1 + n_names, n_cells, n_latent), generator=generator)).view(n_all, n_latent)
        self.means, self.precisions = (space.take(self, name, n_all, n_latent) for name in ("means", "precisions"))
        self.mean, self.var, self.z = (space.take(self, name, n_all, n_latent) for name in ("mean", "var", "z"))
        self.terms = space.take(self, "terms", len(EXPERT_TERMS), n_cells)
        end, batch_end = network.shared_encoder.end, network.batch_encoder.rest.end
        assert end is not None and batch_end is not None
        self.experts.experts(
            outputs.array, _row(end.bias), n_names, told, of_batch.array, _row(batch_end.bias), self.noise.array, network.options.n_latent,
            self.means.array, self.precisions.array, self.mean.array, self.var.array, self.z.array, self.terms.array,
        )  # fmt: skip
        mean, var, z = (part.tensor.view(1 + n_names, n_cells, n_latent) for part in (self.mean, self.var, self.z))
        return seen_type(self.names, dict.fromkeys(self.names), Gaussian(mean[0], var[0]), Gaussian(mean[1:], var[1:]), z, told)

    def _wide(self, name: str, x: Array) -> Array:
        """Return the numbers in float32."""
        if x.tensor.dtype == torch.float32:
            return x
        out = self.space.take(self, name, *x.array.shape)
        out.tensor.copy_(x.tensor)
        return out

    def _narrow(self, name: str, x: Array) -> Array:
        """Return the numbers as products take them."""
        if not self.space.narrow:
            return x
        out = self.space.take(self, name, *x.array.shape, narrow=True)
        out.tensor.copy_(x.tensor)
        return out

    def loss_terms(self, batch: Minibatch, *, with_batch: bool, discriminated: tuple[Sequence[str], Tensor, Tensor] | None) -> list[Tensor]:
        """Return the terms of each cell after :meth:`see` of the same minibatch: :data:`EXPERT_TERMS`, reconstructions, then those asked for.

        Parameters
        ----------
        batch
            The minibatch.
        with_batch
            Whether the batch is reconstructed.
        discriminated
            Discriminators that are asked, what they are shown, and their codes; None where they are not.
        """
        terms: Tensor = _Step.apply(self.anchor, self, batch, with_batch, discriminated)  # type: ignore[no-untyped-call]
        return list(terms.unbind())

    @torch.no_grad()
    def whole(
        self, batch: Minibatch, weights: Sequence[float], *, with_batch: bool, discriminated: tuple[Sequence[str], Tensor, Tensor] | None
    ) -> list[float]:
        """Set the gradients of the weighed sum of the terms' means, and return those; terms and arguments as in :meth:`loss_terms`."""
        with torch.autocast("cpu", enabled=False):
            terms = self.run(batch, with_batch, discriminated)
            means: list[float] = terms.numpy().mean(1, dtype=np.float64).tolist()
            factors = self.space.take(self, "factors", *terms.shape)
            factors.array[:] = np.array(weights, np.float32)[:, None] / batch.n_cells
            self.back(factors)
        return means

    def run(self, batch: Minibatch, with_batch: bool, discriminated: tuple[Sequence[str], Tensor, Tensor] | None) -> Tensor:
        """Decode, and return the terms, ``(n_terms, n_cells)``."""
        space, network, n_cells = self.space, self.network, batch.n_cells
        space.training = network.training
        rows = [self.terms.tensor]
        z = self._narrow("z decoded", self.z.rows(0, n_cells))
        hidden = self.shared_decoder.forward(z)
        self.explained: list[tuple[Array, Tensor | None]] = []
        for name in self.names:
            nll, slope = self._reconstruction(batch, name, self.decoders[name].forward(hidden))
            self.explained.append((slope, nll if nll.requires_grad else None))
            rows.append(nll.detach()[None])
        self.batch_slopes: Array | None = None
        if with_batch:
            rows.append(self._batch_costs(network.codes_of(batch))[None])
        self.asked: tuple[Sequence[str], Tensor] | None = None
        if discriminated is not None and discriminated[0]:
            keys, c, codes = discriminated
            written = network.discriminators.written(c)
            assert written is not None
            written.show(keys, c, codes)
            costs, right = written.forward(space.generator)
            self.asked = (keys, codes)
            network.note_hits(keys, torch.from_numpy(right))
            rows.append(costs.sum(0, keepdim=True))
        return torch.cat(rows)

    def _reconstruction(self, batch: Minibatch, name: str, x: Array) -> tuple[Tensor, Array]:
        """Return the cost of each cell, and what its derivative by the decoder's result can be had from."""
        values, counts, bias = self.network.values[name], batch.counts[name], self.decoders[name].bias
        mask = getattr(self.network, f"mask_{name}")
        group = None if mask is None else batch.mask_group
        if values.distribution.name not in COMPILED:
            with torch.enable_grad():
                eta = (x.tensor.float() + bias.detach()).requires_grad_()
                return values.nll(counts, eta, mask, group), Array(eta, x.array)
        by_eta, nll = self.space.take(self, f"by {name}", *x.array.shape), torch.empty(counts.n_cells)
        table = np.zeros((1, 0), np.float32) if mask is None else mask.float().contiguous().numpy()
        numbers = np.zeros(counts.n_cells, np.int64) if group is None else group.contiguous().numpy()
        starts, columns = counts.row_starts.numpy(), counts.cols.contiguous().numpy()
        entries = values.explained(counts).to(torch.float32).contiguous().numpy()
        poisson, shift, costs = values.distribution.name == "poisson", bias.detach().numpy(), nll.numpy()
        done: list[bool] = []

        def part(a: int, z: int) -> None:
            done.append(
                self.space.kernels.count_nll(
                    x.array[a:z], shift, poisson, starts[a : z + 1], columns, entries, mask is not None, table, numbers[a:z], costs[a:z], by_eta.array[a:z]
                )
            )

        in_parts(counts.n_cells, part)
        check(all(done))
        return nll, by_eta

    def _batch_costs(self, codes: Tensor) -> Tensor:
        """Return the cross entropy of the batch of each cell, guessed from u."""
        space, n_cells, end = self.space, len(codes), self.network.batch_decoder.end
        assert end is not None
        u = space.take(self, "u", n_cells, self.network.options.n_technical)
        u.tensor.copy_(self.z.tensor[:n_cells, self.network.options.n_latent :])
        self.batch_hidden, costs = self.batch_decoder.forward(u), space.take(self, "batch costs", n_cells)
        self.batch_slopes = space.take(self, "batch slopes", n_cells, len(end.bias))
        weight, bias, right = end.weight.detach().numpy(), end.bias.detach().numpy(), np.zeros(2, np.int64)
        space.kernels.class_costs(self.batch_hidden.array, weight, bias, codes.contiguous().numpy(), costs.array, right, self.batch_slopes.array)
        return costs.tensor

    # ------------------------------------------------------------------ back

    def back(self, factors: Array) -> None:
        """Set the gradients of all parameters from the derivatives by the terms, ``(n_terms, n_cells)``."""
        space, network = self.space, self.network
        n_cells, at, n_c = factors.array.shape[1], len(EXPERT_TERMS), network.options.n_latent
        by_hidden: Array | None = None
        for name, (slope, traced) in zip(self.names, self.explained, strict=True):
            by_hidden = self.decoders[name].backward(self._by_eta(name, slope, traced, factors, at), by_hidden)
            at += 1
        assert by_hidden is not None
        by_z = space.take(self, "by z", *self.z.array.shape)
        by_z.tensor[n_cells:].zero_()
        by_joint = self.shared_decoder.backward(by_hidden)
        assert by_joint is not None
        by_z.tensor[:n_cells].copy_(by_joint.tensor)
        if self.batch_slopes is not None:
            by_z.tensor[:n_cells, n_c:] += self._batch_back(factors.array[at]).tensor
            at += 1
        if self.asked is not None:
            self._discriminators_back(by_z, factors.tensor[at])
        self._experts_back(by_z, factors.rows(0, len(EXPERT_TERMS)))

    def _by_eta(self, name: str, slope: Array, traced: Tensor | None, factors: Array, at: int) -> Array:
        """Return the derivative by what the decoder of a modality gives, and set that of its bias."""
        space, bias = self.space, self.decoders[name].bias
        if traced is not None:
            with torch.enable_grad():
                traced.backward(factors.tensor[at])
            assert slope.tensor.grad is not None
            bias.grad = slope.tensor.grad.sum(0)
            return self._narrow(f"by eta {name}", as_array(slope.tensor.grad.contiguous()))
        n_cells = len(slope.array)
        out, total = space.take(self, f"by eta {name}", *slope.array.shape, narrow=space.narrow), space.sums(bias).array
        found: list[tuple[int, np.ndarray]] = []

        def part(a: int, z: int) -> None:
            own = np.zeros_like(total)
            space.kernels.scaled(slope.array[a:z], factors.array[at, a:z], out.array[a:z], own)
            found.append((a, own))

        in_parts(n_cells, part)
        for _, own in sorted(found, key=lambda item: item[0]):
            total += own
        return out

    def _batch_back(self, factor: np.ndarray) -> Array:
        """Return the derivative by u of the batch's cross entropy."""
        space, end = self.space, self.network.batch_decoder.end
        assert end is not None and self.batch_slopes is not None
        by_x = space.take(self, "by batch hidden", *self.batch_hidden.array.shape)
        by_weight, by_bias = space.sums(end.weight).array, space.sums(end.bias).array
        space.kernels.class_back(
            self.batch_slopes.array, factor, self.batch_hidden.array, end.weight.detach().numpy(), True, by_x.array, by_weight, by_bias
        )
        found = self.batch_decoder.backward(by_x)
        assert found is not None
        return found

    def _discriminators_back(self, by_z: Array, factor: Tensor) -> None:
        """Add the derivatives by the draws of what the discriminators cost."""
        assert self.asked is not None
        keys, codes = self.asked
        written = self.network.discriminators.written(by_z.tensor)
        assert written is not None
        by_c = written.backward(factor.expand(codes.shape).contiguous().numpy(), for_weights=False, by_c=True)
        assert by_c is not None
        latents = by_z.tensor.view(1 + len(self.names), -1, self.n_latent)
        places = {"joint": 0, **{name: place + 1 for place, name in enumerate(self.names)}}
        for own, key in zip(by_c, keys, strict=True):
            latents[places[key], :, : own.shape[1]] += own

    def _experts_back(self, by_z: Array, by_terms: Array) -> None:
        space, network, n_cells = self.space, self.network, by_terms.array.shape[1]
        end, batch_end = network.shared_encoder.end, network.batch_encoder.rest.end
        assert end is not None and batch_end is not None
        by_out = space.take(self, "by out", len(self.names) * n_cells, 2 * self.n_latent)
        by_batch = space.take(self, "by batch", n_cells, 2 * self.n_latent)
        by_batch_bias = space.sums(batch_end.bias).array if self.told else np.zeros(2 * self.n_latent, np.float32)
        self.experts.experts_back(
            by_z.array, by_terms.array, len(self.names), self.told, self.noise.array, network.options.n_latent, self.means.array, self.precisions.array,
            self.mean.array, self.var.array, self.z.array, by_out.array, space.sums(end.bias).array[None], by_batch.array, by_batch_bias[None],
        )  # fmt: skip
        if self.told:
            self.batch_encoder.backward(by_batch)
        by_hidden = self.shared_encoder.backward(self._narrow("by out", by_out))
        assert by_hidden is not None
        for place, name in enumerate(self.names):
            self.encoders[name].backward(by_hidden.rows(place * n_cells, (place + 1) * n_cells))


def _row(bias: Tensor) -> np.ndarray:
    """Return a bias as a matrix of one row."""
    return full_precision(bias.detach()).numpy()[None]


class _Step(torch.autograd.Function):
    """All of a step as one node; what flows back sets the gradients of the parameters, which are not among its inputs."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, step: WrittenStep, batch: Minibatch, with_batch: bool, discriminated: Any) -> Tensor:  # type: ignore[override]
        """Return the terms ``(n_terms, n_cells)``."""
        ctx.step = step
        with torch.autocast("cpu", enabled=False):
            return step.run(batch, with_batch, discriminated)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: Tensor) -> tuple[None, ...]:  # type: ignore[override]
        """Set the gradients."""
        step, ctx.step = ctx.step, None
        if step is None:
            message = "the derivatives were already used"
            raise RuntimeError(message)
        with torch.autocast("cpu", enabled=False):
            step.back(as_array(g.contiguous()))
        return (None,) * 5
