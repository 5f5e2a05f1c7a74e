"""What belongs to one modality in the network of scVAEIT: its blocks, masks, dispersions and ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cellweave.core.errors import DataError
from cellweave.core.models.base import ModalityInfo
from cellweave.core.models.vaeit import VaeitOptions
from cellweave.core.models.vaeit_ranges import SCALE
from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.hiding import Hiding, Observed
from cellweave.core.nn.layers import full_precision
from cellweave.core.nn.masked_blocks import BlockInput, BlockOutput, Dispersion
from cellweave.core.nn.masked_likelihoods import Ranges
from cellweave.core.wording import counted

#: Values with at least this share of entries that are not 0 are multiplied as dense matrices.
DENSE = 0.15
LEAST_VALUE, MOST_P = 1e-5, 1.0 - 1e-5
LEAST_START = 1e-4


@dataclass(frozen=True)
class View:
    """What the network sees of a minibatch.

    Attributes
    ----------
    values
        Normalised values by modality, observed entries only.
    observed
        What was observed, by modality.
    totals
        Total count of each cell by modality ``(n_cells,)``, that of a typical cell where it is not known.
    codes, continuous
        Covariates: int64 ``(n_cells, n_columns)``, and ``(n_cells, n_columns)`` or None.
    """

    values: dict[str, CountBatch]
    observed: dict[str, Observed]
    totals: dict[str, Tensor]
    codes: Tensor
    continuous: Tensor | None


@dataclass(frozen=True)
class Encoded:
    """What the encoder gives, one slice a pass.

    Attributes
    ----------
    mean, log_var
        Of the posterior, ``(n_passes, n_cells, n_latent)``.
    mask
        Embedding of what is visible, ``(n_passes, n_cells, n_mask)``.
    blocks
        First layer of the blocks, ``(n_passes, n_cells, n_units)``.
    partly
        Which averages of the norms hold, int64 ``(n_passes, n_cells)``.
    """

    mean: Tensor
    log_var: Tensor
    mask: Tensor
    blocks: Tensor
    partly: Tensor


class ModalityPart(nn.Module):
    """What belongs to one modality: block layers, mask embedding, dispersions and ranges.

    Parameters
    ----------
    info
        The modality.
    options
        Of the model.
    levels, n_continuous
        Of the covariates.
    n_mask_all
        Length of the mask embedding, to which the masks of all modalities add.
    extras
        Summaries of the data.
    """

    low: Tensor
    high: Tensor
    mean: Tensor
    typical_total: Tensor
    batches: Tensor
    measured_in: Tensor

    def __init__(
        self, info: ModalityInfo, options: VaeitOptions, levels: Sequence[int], n_continuous: int, n_mask_all: int, extras: Mapping[str, np.ndarray]
    ) -> None:
        super().__init__()
        if sum(info.blocks) != info.n_features:
            raise DataError(
                f"The blocks of {info.name} hold {counted(sum(info.blocks), 'feature')}, but it has {info.n_features:,}.",
                "Give each feature to exactly one block, consecutive features to one block.",
            )
        self.name, self.n_features, self.blocks = info.name, info.n_features, tuple(info.blocks)
        self.distribution, self.normalisation = options.distribution_of(info.name), options.normalisation_of(info.name)
        units, mask_units = options.units_of(info.name), options.mask_units_of(info.name)
        n_covariates = sum(levels) + n_continuous
        dense = self.distribution == "gaussian" or float(extras[f"{info.name}.density"][0]) >= DENSE
        self.n_mask, self.mask_units = mask_units * len(self.blocks), mask_units
        self.mask_weight = nn.Parameter(torch.empty(info.n_features, n_mask_all))
        self.enter = BlockInput(self.blocks, units, mask_units + n_covariates, by_entries=not dense)
        self.from_mask = nn.Parameter(torch.empty(len(self.blocks), mask_units, units))
        for block, size in enumerate(self.blocks):
            limit = (6.0 / (size + mask_units + n_covariates + units)) ** 0.5
            nn.init.uniform_(self.from_mask[block], -limit, limit)
        self.leave = BlockOutput(self.blocks, units)
        self.dispersion = Dispersion(levels, n_continuous, info.n_features, options.max_dispersion)
        for name, value in _ranges(info, self.distribution, options, extras).items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32)))
        self.register_buffer("batches", torch.from_numpy(np.asarray(extras[f"{info.name}.batches"], dtype=np.float32)))
        # Not all of these have a share in the averages: batches that were mapped onto a trained model have none.
        measured_in = np.asarray(extras.get(f"{info.name}.measured_in", extras[f"{info.name}.batches"])) > 0
        self.register_buffer("measured_in", torch.from_numpy(measured_in), persistent=False)
        self.register_buffer("typical_total", torch.from_numpy(np.asarray(extras[f"{info.name}.total"], dtype=np.float32)))

        self._start_at(np.asarray(extras[f"{info.name}.mean"], dtype=np.float64))

    @torch.no_grad()
    def _start_at(self, mean: np.ndarray) -> None:
        """Begin with the mean of each feature as the prediction of every cell.

        scVAEIT begins in the middle of the range, which is far above most counts, and with random differences between the cells, which training
        takes long to unlearn: with weights of 0 only what is learned tells cells apart (benchmarks/vaeit_vs_scvaeit.md).
        """
        self.leave.weight.zero_()
        target = torch.from_numpy(mean).float()
        if self.distribution == "poisson":
            self.leave.bias.copy_(target.clamp_min(LEAST_START).log())
        elif self.distribution != "gaussian":  # a Gaussian's mean is added to what the decoder gives
            share = (2 * target if self.distribution == "zinb" else target) - self.low
            self.leave.bias.copy_(torch.logit((share / (self.high - self.low)).clamp(LEAST_START, 1 - LEAST_START)))

    @property
    def ranges(self) -> Ranges:
        """What the values lie between."""
        return Ranges(self.low, self.high, self.mean)

    @property
    def n_units(self) -> int:
        """Units of all its blocks."""
        return self.enter.n_out

    def normalised(self, counts: CountBatch, total: Tensor) -> CountBatch:
        """Return counts on the scale of training."""
        if self.normalisation == "none":
            return counts
        if self.normalisation == "binary":
            values = (counts.values > 0).to(counts.values.dtype)
        else:
            values = torch.log1p(counts.values * (SCALE / total.clamp_min(1e-12))[counts.rows])
        return CountBatch(None, counts.cols, values, counts.shape, integer=False, stores_zeros=counts.stores_zeros, row_starts=counts.row_starts)

    def to_counts(self, values: Tensor, total: Tensor) -> Tensor:
        """Return values of the scale of training as expected counts of cells with these totals; binary ones stay probabilities."""
        return torch.expm1(values) * (total / SCALE)[:, None] if self.normalisation == "log1p" else values

    # ------------------------------------------------------------------ the passes

    def entering(self, view: View, hiding: Hiding, n_passes: int) -> Tensor:
        """Return what the features add to the first layer in each pass, ``(n_passes, n_cells, n_units)``.

        The layer is linear in the values, so what the visible entries give is what all give less what the hidden ones give, and only cells in which
        features are
        hidden by chance must be multiplied again.
        """
        values, observed = view.values[self.name], view.observed[self.name]
        if self.enter.by_entries:
            everything = full_precision(self.enter(values))
        else:
            centred = (values.dense - self.mean) * observed.mask
            everything = full_precision(self.enter.of_dense(centred))
        if n_passes == 1:
            return everything[None]
        hidden = everything * hiding.whole[self.name][:, None]
        if len(hiding.cells):
            if self.enter.by_entries:
                some = self.enter(_only(values, hiding.cells, hiding.scattered[self.name]))
            else:
                some = self.enter.of_dense(centred[hiding.cells] * hiding.scattered[self.name])
            kept = ~hiding.whole[self.name][hiding.cells]
            hidden = hidden.index_add(0, hiding.cells, full_precision(some) * kept[:, None])
        return torch.stack([everything, everything - hidden, hidden][:n_passes])

    def embedding(self, view: View, hiding: Hiding, n_passes: int) -> Tensor:
        """Return what this modality's mask adds to the embedding before its bias and hyperbolic tangent, ``(n_passes, n_cells, n_mask_all)``.

        The embedding is fed with 1 for what is not seen. It is linear too: patterns are multiplied once, chance once a cell.
        """
        observed = view.observed[self.name]
        whole = self.mask_weight.sum(0)
        if observed.features is None:
            seen = observed.measured[:, None] * whole
        else:
            if observed.patterns is not None and observed.group is not None:
                present, place = torch.unique(observed.group, return_inverse=True)
                seen = full_precision(observed.patterns[present].to(whole.dtype) @ self.mask_weight)[place]
            else:
                seen = full_precision(observed.features.to(whole.dtype) @ self.mask_weight)
            seen = seen * observed.measured[:, None]
        everything = whole - seen
        if n_passes == 1:
            return everything[None]
        hidden = seen * hiding.whole[self.name][:, None]
        if len(hiding.cells):
            kept = ~hiding.whole[self.name][hiding.cells]
            some = hiding.scattered[self.name].to(whole.dtype) @ self.mask_weight
            hidden = hidden.index_add(0, hiding.cells, full_precision(some) * kept[:, None])
        return torch.stack([everything, everything + hidden, whole - hidden][:n_passes])

    def blocks_of_mask(self, mask: Tensor) -> Tensor:
        """Return what the embedding ``(n_passes, n_cells, n_mask)`` adds to the first layer, ``(n_passes, n_cells, n_units)``."""
        parts = mask.unflatten(-1, (len(self.blocks), self.mask_units))
        return torch.einsum("pnbm,bmu->pnbu", parts, self.from_mask).flatten(-2)

    def targets(self, view: View, hiding: Hiding, n_passes: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows whose values are predicted.

        Returns
        -------
        pass_of, cell
            int64 ``(n_rows,)``.
        mask
            Which entries count, uint8 ``(n_rows, n_features)``: all observed ones in the first pass, the hidden ones in the second, the visible ones
            in the third.
        """
        observed = view.observed[self.name]
        has, device = observed.any, observed.measured.device
        first = has.nonzero()[:, 0]
        cells, masks, passes = [first], [observed.rows(first).to(torch.uint8)], [torch.zeros_like(first)]
        if n_passes > 1:
            place = torch.full((len(has),), -1, dtype=torch.int64, device=device)
            place[hiding.cells] = torch.arange(len(hiding.cells), device=device)
            whole, touched = hiding.whole[self.name], place >= 0
            second = (whole | (touched & has)).nonzero()[:, 0]
            cells.append(second)
            masks.append(self._of(second, place, whole, observed, hiding, hidden=True))
            passes.append(torch.ones_like(second))
        if n_passes > 2:
            third = (has & ~whole).nonzero()[:, 0]
            cells.append(third)
            masks.append(self._of(third, place, whole, observed, hiding, hidden=False))
            passes.append(torch.full_like(third, 2))
        return torch.cat(passes), torch.cat(cells), torch.cat(masks)

    def _of(self, cells: Tensor, place: Tensor, whole: Tensor, observed: Observed, hiding: Hiding, *, hidden: bool) -> Tensor:
        """Return the hidden, or the visible, entries of some cells, uint8 ``(n_rows, n_features)``."""
        seen, at = observed.rows(cells), place[cells]
        by_chance = torch.zeros_like(seen)
        touched = at >= 0
        by_chance[touched] = hiding.scattered[self.name][at[touched]]
        is_hidden = torch.where(whole[cells][:, None], seen, by_chance)
        return (is_hidden if hidden else seen & ~is_hidden).to(torch.uint8)


def within(counts: CountBatch, seen: Observed) -> CountBatch:
    """Return the counts at observed entries only; others become stored zeros."""
    if seen.features is None and bool(seen.measured.all()):
        return counts
    keep = seen.measured[counts.rows]
    if seen.features is not None:
        keep = keep & seen.features[counts.rows, counts.cols]
    return CountBatch(
        None, counts.cols, counts.values * keep, counts.shape, integer=counts.integer, stores_zeros=True, row_starts=counts.row_starts
    )  # fmt: skip


def _only(values: CountBatch, cells: Tensor, mask: Tensor) -> CountBatch:
    """Return the entries of some cells at ``mask`` ``(n_cells_kept, n_features)``."""
    lengths = values.row_starts.diff()[cells]
    row = torch.repeat_interleave(torch.arange(len(cells), device=cells.device), lengths)
    before = torch.cumsum(lengths, 0) - lengths
    place = torch.arange(len(row), device=cells.device) + (values.row_starts[cells] - before)[row]
    column = values.cols[place]
    keep = mask[row, column]
    return CountBatch(row[keep], column[keep], values.values[place][keep], (len(cells), values.n_features), integer=False)


def _ranges(info: ModalityInfo, kind: str, options: VaeitOptions, extras: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return ``low``, ``high`` and ``mean`` of each feature, as published: the ends belong to a whole block, but for ZINB."""
    top, bottom, mean, sd = (np.asarray(extras[f"{info.name}.{key}"], dtype=np.float64) for key in ("max", "min", "mean", "sd"))
    starts = np.concatenate([[0], np.cumsum(info.blocks)[:-1]])
    low, high = np.zeros_like(top), np.repeat(np.maximum.reduceat(top, starts), info.blocks)
    if kind == "bernoulli":
        low, high = np.full_like(top, LEAST_VALUE), np.full_like(top, MOST_P)
    elif kind == "gaussian":
        high = np.repeat(np.maximum.reduceat(np.maximum(top, mean + 3 * sd), starts), info.blocks)
        low = np.repeat(np.minimum.reduceat(np.minimum(bottom, mean - 3 * sd), starts), info.blocks)
    elif kind == "zinb":
        high = top
    if info.name in options.highest:
        high = np.full_like(top, float(options.highest[info.name]))
    if info.name in options.lowest:
        low = np.full_like(top, float(options.lowest[info.name]))
    # A block, or a feature, of nothing but zeros still needs a range to be in.
    high = np.maximum(high, low + LEAST_VALUE)
    return {"low": low, "high": high, "mean": mean if kind == "gaussian" else np.zeros_like(mean)}
