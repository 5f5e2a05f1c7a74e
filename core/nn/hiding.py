"""Which entries of a minibatch are observed, and which of them are hidden in a training step (Du, Cai & Roeder 2022).

An entry of cells by features has one of three codes: missing (-1, never measured), observed (0), and observed but hidden in this step (1). They are kept as
what they are made of: which modalities were measured in a cell, which features in its pattern, which modalities are hidden whole, and, for the cells
in which features are hidden by chance, which these are. Most cells then need no row of a mask at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cellweave.core.nn.hiding_shares import UNTOUCHED

MISSING, SEEN, HIDDEN = -1, 0, 1


@dataclass(frozen=True)
class Observed:
    """What was observed of one modality in the cells of a minibatch.

    Attributes
    ----------
    measured
        Whether the modality was measured in a cell, bool ``(n_cells,)``.
    features
        Which features were, where it was, bool ``(n_cells, n_features)``; None where all were.
    n_features
        Number of features.
    patterns, group
        Where the features follow a few patterns: these, bool ``(n_patterns, n_features)``, and the pattern of each cell, int64 ``(n_cells,)``.
    """

    measured: Tensor
    features: Tensor | None
    n_features: int
    patterns: Tensor | None = None
    group: Tensor | None = None

    @property
    def any(self) -> Tensor:
        """Cells with at least one observed feature, bool ``(n_cells,)``."""
        return self.measured if self.features is None else self.measured & self.features.any(1)

    @property
    def mask(self) -> Tensor:
        """Observed entries, bool ``(n_cells, n_features)``."""
        whole = self.measured[:, None].expand(-1, self.n_features)
        return whole.clone() if self.features is None else whole & self.features

    def rows(self, cells: Tensor) -> Tensor:
        """Return the observed entries of some cells, bool ``(n_rows, n_features)``."""
        whole = self.measured[cells][:, None].expand(-1, self.n_features)
        return whole.clone() if self.features is None else whole & self.features[cells]


@dataclass(frozen=True)
class Hiding:
    """What is hidden in a step.

    Attributes
    ----------
    whole
        By modality, the cells in which all of it is hidden, bool ``(n_cells,)``; only where some of it was observed.
    cells
        Cells in which features are hidden by chance, int64 ``(n_touched,)``, ascending.
    scattered
        By modality, what is hidden in them by chance, observed entries only, bool ``(n_touched, n_features)``.
    """

    whole: Mapping[str, Tensor]
    cells: Tensor
    scattered: Mapping[str, Tensor]

    def of_cells(self, name: str, observed: Observed) -> Tensor:
        """Return the hidden entries of a modality, bool ``(n_cells, n_features)``."""
        hidden = observed.mask & self.whole[name][:, None]
        hidden[self.cells] |= self.scattered[name]
        return hidden

    def codes(self, name: str, observed: Observed) -> Tensor:
        """Return the code of every entry, int8 ``(n_cells, n_features)``."""
        seen = observed.mask
        codes = torch.where(seen, SEEN, MISSING).to(torch.int8)
        return torch.where(self.of_cells(name, observed), HIDDEN, codes).to(torch.int8)


def draw_hiding(
    observed: Mapping[str, Observed],
    shares: Tensor,
    p_features: float,
    *,
    patterns: Mapping[str, Tensor] | None = None,
    pattern_shares: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Hiding:
    """Draw what is hidden: features by chance in half of the cells, and one modality in each cell that has another.

    Parameters
    ----------
    observed
        By modality, in the order of ``shares``.
    shares
        How often each modality is drawn, ``(n_modalities,)``, sum 1.
    p_features
        Share of the features hidden by chance.
    patterns
        With a single modality: its patterns of measured features, bool ``(n_patterns, n_features)``. What a pattern drawn for the cell lacks is hidden.
    pattern_shares
        How often each pattern is drawn, ``(n_patterns,)``.
    generator
        Source of the draws; None takes torch's global one.

    Returns
    -------
    Hiding
        What is hidden; entries that were not observed are never among it.
    """
    names = list(observed)
    first = observed[names[0]].measured
    device, n_cells = first.device, first.shape[0]
    touched = torch.zeros(n_cells, dtype=torch.bool, device=device)
    if p_features > 0:
        touched = torch.rand(n_cells, generator=generator, device=device) >= UNTOUCHED
    chance = touched
    lacking = None
    if len(names) == 1 and patterns is not None and pattern_shares is not None and len(pattern_shares) > 1:
        drawn = torch.multinomial(pattern_shares, n_cells, replacement=True, generator=generator)
        lacking = ~patterns[names[0]][drawn]
        touched = touched | lacking.any(1)
    cells = touched.nonzero()[:, 0]
    scattered = {}
    for name in names:
        here = torch.empty(len(cells), observed[name].n_features, dtype=torch.bool, device=device)
        here.bernoulli_(p_features, generator=generator)
        if lacking is not None:
            here &= chance[cells][:, None]
            here |= lacking[cells]
        scattered[name] = here & observed[name].rows(cells)
    return Hiding(_whole(observed, names, shares, n_cells, generator), cells, scattered)


def _whole(observed: Mapping[str, Observed], names: list[str], shares: Tensor, n_cells: int, generator: torch.Generator | None) -> dict[str, Tensor]:
    """Draw one modality a cell; it is hidden where it was observed and something else was too."""
    has = torch.stack([observed[name].any for name in names])
    if len(names) == 1:
        return {names[0]: torch.zeros_like(has[0])}
    drawn = torch.multinomial(shares, n_cells, replacement=True, generator=generator)
    others = has.sum(0)
    return {name: (drawn == number) & has[number] & (others > 1) for number, name in enumerate(names)}


def nothing_hidden(observed: Mapping[str, Observed]) -> Hiding:
    """Return a hiding that hides nothing."""
    first = next(iter(observed.values())).measured
    none = torch.zeros(0, dtype=torch.int64, device=first.device)
    scattered = {name: torch.zeros(0, known.n_features, dtype=torch.bool, device=first.device) for name, known in observed.items()}
    return Hiding({name: torch.zeros_like(known.measured) for name, known in observed.items()}, none, scattered)
