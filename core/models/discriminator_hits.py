"""How many cells each discriminator of MIDAS guessed right in an epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

BEGINNING = "hits_"


class Hits:
    """Cells that each discriminator guessed right, and cells that it was asked about, kept on the device so that no step waits for it."""

    def __init__(self) -> None:
        self._hits: dict[str, list[Tensor]] = {}

    def note(self, keys: Sequence[str], numbers: Tensor) -> None:
        """Add the numbers of a step, ``(n_keys, 2)``."""
        for key, row in zip(keys, numbers, strict=True):
            self._hits.setdefault(key, []).append(row)

    def accuracies(self) -> dict[str, float]:
        """Return the share of each discriminator as the metric of its name, and begin anew."""
        sums = {key: torch.stack(parts).sum(0).tolist() for key, parts in self._hits.items()}
        self._hits = {}
        return {f"discriminator_{key}": right / known for key, (right, known) in sums.items() if known}

    def state(self) -> dict[str, Tensor]:
        """Return the sums so far, for a checkpoint in the middle of an epoch."""
        return {f"{BEGINNING}{key}": torch.stack(parts).sum(0).cpu() for key, parts in self._hits.items()}

    def load(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Take up what :meth:`state` returned."""
        self._hits = {name.removeprefix(BEGINNING): [tensor.to(device)] for name, tensor in state.items() if name.startswith(BEGINNING)}
