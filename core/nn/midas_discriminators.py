"""The discriminators of MIDAS: one network for each modality and one for all together, each guessing the batch from c."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, cross_entropy
from torch.nn.utils import parameters_to_vector

from cellweave.core.nn.layers import full_precision
from cellweave.core.nn.midas_layers import SEEDS, Mlp, kernels, norm_act, norm_mish, norm_mish_back


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
        self.weights = nn.ParameterDict()
        for key, n in n_classes.items():
            plain = {"activation": how["activation"], "dropout": 0.0, "norm": "none" if how["norm"] == "none" else "ln"}
            self.weights[f"of_{key}"] = nn.Parameter(parameters_to_vector(Mlp([n_in, *sizes, n], **plain).parameters()).detach())
            if how["norm"] == "bn":
                for place, size in enumerate(sizes):
                    self.register_buffer(f"mean_{key}_{place}", torch.zeros(size))
                    self.register_buffer(f"var_{key}_{place}", torch.ones(size))

    def _layers(self, stacked: Tensor) -> tuple[list[tuple[Tensor, Tensor, Tensor | None, Tensor | None]], int]:
        """Return weight, bias, gain and shift of each hidden layer as views of ``(n_keys, n_weights)``, and where the last map begins."""
        n_keys, at, found = len(stacked), 0, []
        for n_in, n_out in pairwise(self.sizes):
            weight = stacked[:, at : at + n_in * n_out].view(n_keys, n_out, n_in)
            at += n_in * n_out
            parts = []
            for _ in range(1 if self.how["norm"] == "none" else 3):
                parts.append(stacked[:, at : at + n_out])
                at += n_out
            found.append((weight, parts[0], parts[1] if len(parts) > 1 else None, parts[2] if len(parts) > 1 else None))
        return found, at

    def _stacked(self, keys: Sequence[str], *, fixed: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return the hidden layers' weights ``(n_keys, n_weights)``, and weight and bias of the last map; missing classes get a bias of -inf."""
        vectors, width = [self.weights[f"of_{key}"] for key in keys], self.sizes[-1]
        if fixed:
            vectors = [vector.detach() for vector in vectors]
        counts = [self.n_classes[key] for key in keys]
        most, at = max(counts), len(vectors[0]) - counts[0] * (width + 1)
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
        for place, (weight, bias, gain, shift) in enumerate(self._layers(hidden)[0]):
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

    def learn(self, keys: Sequence[str], c: Tensor, codes: Tensor, scale: float, generator: torch.Generator | None) -> None:
        """Set the gradients of the discriminators that are asked: of ``scale`` times the sum of their cross entropies.

        On a CPU the derivatives are written out instead of traced, since these networks are so small that tracing them costs more than they do.

        Parameters
        ----------
        keys, c, codes, generator
            As in :meth:`costs`; nothing flows back into ``c``.
        scale
            Multiplies the costs.
        """
        c = c.detach()
        plain = self.how["norm"] == "ln" and self.how["activation"] == "mish"
        module = kernels(c) if plain else None
        with torch.autocast(c.device.type, enabled=False):  # too small to gain from narrow products
            if module is None:
                (self.costs(keys, c, codes, generator)[0].sum() * scale).backward()
                return
            with torch.no_grad():
                self._learn_written_out(keys, c, codes, scale, generator, module)

    def _learn_written_out(
        self, keys: Sequence[str], c: Tensor, codes: Tensor, scale: float, generator: torch.Generator | None, module: ModuleType
    ) -> None:
        rate = self.how["dropout"] if self.training else 0.0
        hidden, end_weight, end_bias = self._stacked(keys, fixed=True)
        x, passed = c, []
        for weight, bias, gain, shift in self._layers(hidden)[0]:
            assert gain is not None and shift is not None
            gain, shift = gain.contiguous(), shift.contiguous()
            before = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
            seed = int(torch.randint(SEEDS, (), generator=generator)) if rate > 0 else 0
            out, slope, moments = norm_mish(before, gain, shift, c.shape[1], rate, seed, module)
            passed.append((x, weight, before, slope, moments, gain))
            x = out
        logits = torch.baddbmm(end_bias[:, None], x, end_weight.transpose(1, 2))
        by_out = torch.empty_like(logits)
        flat = (part.numpy().reshape(-1, logits.shape[2]) for part in (logits, by_out))
        module.class_slopes(next(flat), codes.contiguous().numpy().reshape(-1), scale, next(flat))
        by_end_weight, by_end_bias = by_out.transpose(1, 2) @ x, by_out.sum(1)
        by_x, found = by_out @ end_weight, []
        for inputs, weight, before, slope, moments, gain in reversed(passed):
            by_before, by_gain, by_shift = norm_mish_back(by_x, before, slope, moments, gain, c.shape[1], module)
            found.append([(by_before.transpose(1, 2) @ inputs).flatten(1), by_before.sum(1), by_gain, by_shift])
            if inputs is not c:
                by_x = by_before @ weight
        of_hidden = torch.cat([part for layer in reversed(found) for part in layer], 1)
        for place, key in enumerate(keys):
            n = self.n_classes[key]
            self.weights[f"of_{key}"].grad = torch.cat([of_hidden[place], by_end_weight[place, :n].flatten(), by_end_bias[place, :n]])
