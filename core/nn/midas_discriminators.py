"""The discriminators of MIDAS: one network for each modality and one for all together, each guessing the batch from c."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, cross_entropy
from torch.nn.utils import parameters_to_vector

from cellweave.core.nn.layers import full_precision
from cellweave.core.nn.midas_layers import Mlp, kernels, norm_act
from cellweave.core.nn.written_discriminators import Lending, WrittenDiscriminators


class Discriminators(nn.Module):
    """Networks of one shape but for their number of classes; those that are asked together are computed as one batch of matrices.

    The weights of each lie in one vector, in the order linear weight, bias, gain and shift of every layer, then the last map, so that
    stacking them, and their optimiser's step, is one operation instead of thirty.

    Parameters
    ----------
    n_in
        Size of c.
    sizes
        Hidden layers.
    n_classes
        Number of batches that each discriminator tells apart, by its key.
    how
        Norm, activation and dropout of each layer.
    """

    def __init__(self, n_in: int, sizes: Sequence[int], n_classes: Mapping[str, int], how: Mapping[str, Any]) -> None:
        super().__init__()
        self.n_classes, self.how, self.sizes = dict(n_classes), dict(how), (n_in, *sizes)
        self.n_hidden_weights = sum((a + (1 if how["norm"] == "none" else 3)) * b for a, b in pairwise(self.sizes))
        self._written: WrittenDiscriminators | None = None
        self.weights = nn.ParameterDict()
        for key, n in n_classes.items():
            plain = {"activation": how["activation"], "dropout": 0.0, "norm": "none" if how["norm"] == "none" else "ln"}
            self.weights[f"of_{key}"] = nn.Parameter(parameters_to_vector(Mlp([n_in, *sizes, n], **plain).parameters()).detach())
            if how["norm"] == "bn":
                for place, size in enumerate(sizes):
                    self.register_buffer(f"mean_{key}_{place}", torch.zeros(size))
                    self.register_buffer(f"var_{key}_{place}", torch.ones(size))

    def layers_of(self, stacked: Tensor) -> list[tuple[Tensor, Tensor, Tensor | None, Tensor | None]]:
        """Return weight, bias, gain and shift of each hidden layer as views of ``(n_keys, n_weights)``."""
        n_keys, at, found = len(stacked), 0, []
        for n_in, n_out in pairwise(self.sizes):
            weight = stacked[:, at : at + n_in * n_out].view(n_keys, n_out, n_in)
            at += n_in * n_out
            parts = []
            for _ in range(1 if self.how["norm"] == "none" else 3):
                parts.append(stacked[:, at : at + n_out])
                at += n_out
            found.append((weight, parts[0], parts[1] if len(parts) > 1 else None, parts[2] if len(parts) > 1 else None))
        return found

    def _stacked(self, keys: Sequence[str], *, fixed: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return the hidden layers' weights ``(n_keys, n_weights)``, and weight and bias of the last map; missing classes get a bias of -inf."""
        vectors, width = [self.weights[f"of_{key}"] for key in keys], self.sizes[-1]
        if fixed:
            vectors = [vector.detach() for vector in vectors]
        counts = [self.n_classes[key] for key in keys]
        most, at = max(counts), self.n_hidden_weights
        if min(counts) == most:
            whole = torch.stack(vectors)
            return whole[:, :at], whole[:, at : at + most * width].view(len(keys), most, width), whole[:, at + most * width :]
        weights, biases = [], []
        for vector, n in zip(vectors, counts, strict=True):
            weight, bias = vector[at : at + n * width].view(n, width), vector[at + n * width :]
            weights.append(torch.cat([weight, weight.new_zeros(most - n, width)]))
            biases.append(torch.cat([bias, bias.new_full((most - n,), float("-inf"))]))
        return torch.stack([vector[:at] for vector in vectors]), torch.stack(weights), torch.stack(biases)

    def forward(self, keys: Sequence[str], c: Tensor, generator: torch.Generator | None, *, fixed: bool = False) -> Tensor:
        """Return logits ``(n_keys, n_cells, n_classes)``; classes that a discriminator does not have are -inf.

        Parameters
        ----------
        keys
            Discriminators that are asked.
        c
            What each is shown, ``(n_keys, n_cells, n_in)``.
        generator
            Source of the dropout's draws; None for torch's global one.
        fixed
            Whether gradients reach ``c`` only.
        """
        hidden, end_weight, end_bias = self._stacked(keys, fixed=fixed)
        rate, x = self.how["dropout"] if self.training else 0.0, c
        for place, (weight, bias, gain, shift) in enumerate(self.layers_of(hidden)):
            x = full_precision(torch.baddbmm(bias[:, None], x, weight.transpose(1, 2)))
            if self.how["norm"] == "bn":
                x = torch.stack([self._batch_norm(key, place, part) for key, part in zip(keys, x, strict=True)])
            gain, shift = (None if part is None else part.contiguous() for part in (gain, shift))
            x = norm_act(x, gain, shift, c.shape[1], norm=self.how["norm"] == "ln", activation=self.how["activation"], rate=rate, generator=generator)
        return full_precision(torch.baddbmm(end_bias[:, None], x, end_weight.transpose(1, 2)))

    def _batch_norm(self, key: str, place: int, x: Tensor) -> Tensor:
        return batch_norm(x, getattr(self, f"mean_{key}_{place}"), getattr(self, f"var_{key}_{place}"), training=self.training)

    def costs(self, keys: Sequence[str], c: Tensor, codes: Tensor, generator: torch.Generator | None, *, fixed: bool = False) -> tuple[Tensor, Tensor]:
        """Return the cross entropy of each discriminator and cell ``(n_keys, n_cells)`` and the logits.

        Parameters
        ----------
        keys, c, generator, fixed
            As in :meth:`forward`.
        codes
            The batch in each discriminator's own numbers, ``(n_keys, n_cells)``; -1 where it is not asked, which costs nothing.
        """
        logits = self(keys, c, generator, fixed=fixed)
        flat = cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none", ignore_index=-1)
        return flat.view(codes.shape), logits

    def learn(
        self, keys: Sequence[str], c: Tensor, codes: Tensor, scale: float, generator: torch.Generator | None, *, again: bool = False
    ) -> Tensor | float:
        """Set the gradients of the discriminators that are asked: of ``scale`` times the sum of their cross entropies; return that sum by cell, its mean.

        On a CPU the derivatives are written out instead of traced, since these networks are so small that tracing them costs more than they do.

        Parameters
        ----------
        keys, c, codes, generator
            As in :meth:`costs`; nothing flows back into ``c``.
        scale
            Multiplies the costs.
        again
            Whether they are shown what they were shown last.
        """
        c, narrow = c.detach(), _narrow()
        with torch.autocast(c.device.type, enabled=False):  # torch's own passes are too small to gain from narrow products
            written = self.written(c)
            if written is None:
                total = self.costs(keys, c, codes, generator)[0].sum()
                (total * scale).backward()
                return total.detach() / c.shape[1]
            with torch.no_grad():
                if not again:
                    written.show(keys, c, codes, narrow=narrow)
                told = float(written.forward(generator)[0].sum()) / c.shape[1]
                written.backward(scale, for_weights=True, by_c=False)
                return told

    def learn_at_once(
        self, keys: Sequence[str], c: Tensor, codes: Tensor, scale: float, n_steps: int, generator: torch.Generator | None, optimizer: object
    ) -> float | None:
        """Take all steps on a minibatch in one compiled call, where that serves; return the mean of what :meth:`learn` returns in each.

        Parameters
        ----------
        keys, c, codes, scale, generator
            As in :meth:`learn`.
        n_steps, optimizer
            How many steps, and of what.
        """
        if not hasattr(optimizer, "lend"):  # asked of the protocol it takes as long as a layer
            return None
        narrow = _narrow()
        with torch.no_grad(), torch.autocast(c.device.type, enabled=False):
            written = self.written(c)
            if written is None:
                return None
            written.show(keys, c.detach(), codes, narrow=narrow)
            return written.learn(cast(Lending, optimizer), n_steps, scale, generator)

    def written(self, c: Tensor) -> WrittenDiscriminators | None:
        """Return the same networks with derivatives that are written out, where they serve: on a CPU, with layer norm and Mish."""
        if self.how["norm"] != "ln" or self.how["activation"] != "mish" or kernels(c) is None:
            return None
        if self._written is None:
            self._written = WrittenDiscriminators(self)
        return self._written


def _narrow() -> bool:
    """Return whether products on a CPU are in bf16."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
