"""The discriminators of MIDAS: one network for each modality and one for all together, each guessing the batch from c."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cellweave.core.nn.layers import full_precision
from cellweave.core.nn.midas_layers import SEEDS, Layer, Mlp, kernels, norm_act, norm_mish, norm_mish_back


class Discriminators(nn.Module):
    """Networks of one shape but for their number of classes; those that are asked together are computed as one batch of matrices.

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
        self.n_classes = dict(n_classes)
        self.networks = nn.ModuleDict({f"of_{key}": Mlp([n_in, *sizes, n], **how) for key, n in n_classes.items()})
        self.how = dict(how)

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
        networks = [self.networks[f"of_{key}"] for key in keys]
        most = max(self.n_classes[key] for key in keys)
        if self.how["norm"] == "bn":  # the statistics are those of one discriminator at a time
            return torch.stack([_padded(full_precision(net(x, generator, fixed=fixed)), most) for net, x in zip(networks, c, strict=True)])
        rate = self.how["dropout"] if self.training else 0.0
        x = c
        for layers in zip(*(net.layers for net in networks), strict=True):
            weight, bias = self._stacked([layer.linear.weight for layer in layers], fixed), self._stacked([layer.linear.bias for layer in layers], fixed)
            x = full_precision(torch.baddbmm(bias[:, None], x, weight.transpose(1, 2)))
            scale, shift = self._norm(layers, fixed)
            x = norm_act(
                x, scale, shift, c.shape[1], norm=self.how["norm"] == "ln", activation=self.how["activation"], rate=rate, generator=generator
            )
        ends = [net.end for net in networks]
        weight = self._stacked([_rows(end.weight, most, 0.0) for end in ends], fixed)
        bias = self._stacked([_rows(end.bias, most, float("-inf")) for end in ends], fixed)
        return full_precision(torch.baddbmm(bias[:, None], x, weight.transpose(1, 2)))

    @staticmethod
    def _stacked(parts: Sequence[Tensor], fixed: bool) -> Tensor:
        found = torch.stack([*parts])
        return found.detach() if fixed else found

    def _norm(self, layers: Sequence[Layer], fixed: bool) -> tuple[Tensor | None, Tensor | None]:
        if self.how["norm"] == "none":
            return None, None
        return self._stacked([layer.after.weight[0] for layer in layers], fixed), self._stacked([layer.after.bias[0] for layer in layers], fixed)  # type: ignore[index]

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
        networks = [self.networks[f"of_{key}"] for key in keys]
        rate, most = self.how["dropout"] if self.training else 0.0, max(self.n_classes[key] for key in keys)
        x, passed = c, []
        for layers in zip(*(net.layers for net in networks), strict=True):
            weight, bias = torch.stack([layer.linear.weight for layer in layers]), torch.stack([layer.linear.bias for layer in layers])
            gain, shift = torch.stack([layer.after.weight[0] for layer in layers]), torch.stack([layer.after.bias[0] for layer in layers])
            before = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
            seed = int(torch.randint(SEEDS, (), generator=generator)) if rate > 0 else 0
            out, slope, moments = norm_mish(before, gain, shift, c.shape[1], rate, seed, module)
            passed.append((layers, x, weight, before, slope, moments, gain))
            x = out
        weight = torch.stack([_rows(net.end.weight, most, 0.0) for net in networks])
        bias = torch.stack([_rows(net.end.bias, most, float("-inf")) for net in networks])
        logits = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
        by_out = torch.exp(logits - logits.amax(2, keepdim=True))  # torch's softmax is slow over a handful of classes
        by_out.div_(by_out.sum(2, keepdim=True))
        asked = codes >= 0
        by_out.scatter_add_(2, codes.clamp(min=0)[..., None], by_out.new_full((), -1.0).expand(*codes.shape, 1))
        by_out.mul_((asked * scale)[..., None])
        by_weight, by_bias = by_out.transpose(1, 2) @ x, by_out.sum(1)
        for place, (key, net) in enumerate(zip(keys, networks, strict=True)):
            n = self.n_classes[key]
            net.end.weight.grad, net.end.bias.grad = by_weight[place, :n], by_bias[place, :n]
        by_x = by_out @ weight
        for layers, inputs, weight, before, slope, moments, gain in reversed(passed):
            by_before, by_gain, by_shift = norm_mish_back(by_x, before, slope, moments, gain, c.shape[1], module)
            by_weight, by_bias = by_before.transpose(1, 2) @ inputs, by_before.sum(1)
            for place, layer in enumerate(layers):
                layer.linear.weight.grad, layer.linear.bias.grad = by_weight[place], by_bias[place]
                layer.after.weight.grad, layer.after.bias.grad = by_gain[place : place + 1], by_shift[place : place + 1]
            if inputs is not c:
                by_x = by_before @ weight


def _rows(values: Tensor, n_rows: int, fill: float) -> Tensor:
    """Return ``values`` with further rows of ``fill``."""
    missing = n_rows - len(values)
    return values if missing == 0 else torch.cat([values, values.new_full((missing, *values.shape[1:]), fill)])


def _padded(logits: Tensor, n_classes: int) -> Tensor:
    """Return logits with further columns of -inf."""
    return nn.functional.pad(logits, (0, n_classes - logits.shape[1]), value=float("-inf"))
