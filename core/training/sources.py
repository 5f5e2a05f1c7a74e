"""Where minibatches come from: main memory, a memory-mapped cache, or the device's own memory.

All three answer one question, ``rows(indices) -> (indptr, indices, values)``. The first two are a CSR matrix whose
arrays lie in memory or in flat files that the page cache serves (measured: 240,000 random cells a second from disk,
design notes on performance); the third keeps the arrays on the device and gathers there, so that no count crosses the bus.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Protocol

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from cellweave.core.models.base import Minibatch
from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.midas_layers import kernels
from cellweave.core.training.data import TrainingData
from cellweave.core.training.schedule import N_MAX


class CountSource(Protocol):
    """Gives the counts of any cells of one modality."""

    n_features: int

    def rows(self, indices: np.ndarray) -> CountBatch:
        """Return the counts of the cells ``indices``, on the device, in that order."""


class HostSource:
    """Counts in main memory or in a memory-mapped cache.

    Parameters
    ----------
    counts
        CSR ``(n_cells, n_features)``; its arrays may be memory maps.
    device
        Where the minibatch shall be.
    """

    def __init__(self, counts: sparse.csr_matrix, device: torch.device) -> None:
        self.counts = counts
        self.device = device
        self.n_features = int(counts.shape[1])
        # Known once for all minibatches, so that no step has to look again.
        self._integer, self._max_count = _kind_of_values(counts)
        self._plain = self._in_memory()
        self._kernels: ModuleType | None = None
        self._stores_zeros = not (self._plain and bool(counts.data.all()))

    def _in_memory(self) -> bool:
        """Return whether the compiled gather can read the arrays: as scipy makes them, in memory, for a minibatch on the CPU."""
        arrays = (self.counts.indptr, self.counts.indices, self.counts.data)
        kinds = tuple(array.dtype for array in arrays) == (np.int32, np.int32, np.float32)
        return kinds and self.device.type == "cpu" and all(type(a) is np.ndarray and a.flags.writeable and a.flags.c_contiguous for a in arrays)

    def rows(self, indices: np.ndarray) -> CountBatch:
        """Return the counts of the cells ``indices`` by one vectorised row gather."""
        if self._plain:
            self._kernels = self._kernels or kernels(torch.empty(0))
            if self._kernels is not None and indices.dtype == np.int64:
                return self._gathered(self._kernels, np.ascontiguousarray(indices))
        part = self.counts[indices]
        return CountBatch.from_csr(part.indptr, part.indices, part.data, self.n_features, self.device, integer=self._integer, max_count=self._max_count)

    def _gathered(self, module: ModuleType, indices: np.ndarray) -> CountBatch:
        """Return the counts of some cells by a compiled loop; what scipy does around its own costs more than the copy."""
        counts = self.counts
        starts = np.empty(len(indices) + 1, np.int64)
        n_stored = module.row_starts(counts.indptr, indices, starts)
        if n_stored < 0:
            message = "a cell that is asked for does not exist"
            raise IndexError(message)
        columns, values = torch.empty(n_stored, dtype=torch.int64), torch.empty(n_stored, dtype=torch.float32)
        module.gather_rows(counts.indptr, counts.indices, counts.data, indices, starts, columns.numpy(), values.numpy())
        return CountBatch(
            None, columns, values, (len(indices), self.n_features), integer=self._integer, stores_zeros=self._stores_zeros, max_count=self._max_count,
            row_starts=torch.from_numpy(starts),
        )  # fmt: skip


class DeviceSource:
    """Counts resident on the device: rows are gathered and made dense there.

    Parameters
    ----------
    counts
        CSR ``(n_cells, n_features)``.
    device
        The device; its memory must hold the matrix.
    """

    def __init__(self, counts: sparse.csr_matrix, device: torch.device) -> None:
        self.device = device
        self.n_features = int(counts.shape[1])
        self._host_indptr = np.asarray(counts.indptr, dtype=np.int64)
        self._indptr = torch.from_numpy(self._host_indptr).to(device)
        self._indices = torch.from_numpy(np.asarray(counts.indices, dtype=np.int32)).to(device)
        self._values = torch.from_numpy(_smallest(np.asarray(counts.data))).to(device)
        self._integer, self._max_count = _kind_of_values(counts)

    def rows(self, indices: np.ndarray) -> CountBatch:
        """Return the counts of the cells ``indices``; the only transfer is that of the row numbers."""
        lengths_host = self._host_indptr[indices + 1] - self._host_indptr[indices]
        n_stored = int(lengths_host.sum())
        rows = torch.from_numpy(np.ascontiguousarray(indices)).to(self.device, non_blocking=True)
        starts = self._indptr[rows]
        lengths = self._indptr[rows + 1] - starts
        indptr = torch.zeros(len(indices) + 1, dtype=torch.int64, device=self.device)
        torch.cumsum(lengths, 0, out=indptr[1:])
        # The output size is known on the host, so repeat_interleave need not wait for the device.
        offsets = torch.repeat_interleave(starts - indptr[:-1], lengths, output_size=n_stored)
        places = torch.arange(n_stored, device=self.device) + offsets
        return CountBatch.from_csr(
            indptr, self._indices[places], self._values[places], self.n_features, self.device, integer=self._integer, max_count=self._max_count
        )


def _kind_of_values(counts: sparse.csr_matrix, block: int = 1 << 24) -> tuple[bool, int | None]:
    """Return whether all values are non-negative whole numbers, and then the largest; in blocks, as they may lie on disk."""
    top = 0
    for start in range(0, counts.data.shape[0], block):
        part = np.asarray(counts.data[start : start + block])
        if np.issubdtype(part.dtype, np.floating) and not np.array_equal(part, np.rint(part)):
            return False, None
        if part.min() < 0:
            return False, None
        top = max(top, int(part.max()))
    return True, top


def _smallest(values: np.ndarray) -> np.ndarray:
    """Return the values in the smallest type that holds them exactly (torch gathers uint8, int16, int32, float32)."""
    if values.size == 0:
        return values.astype(np.float32)
    if np.issubdtype(values.dtype, np.floating) and not np.array_equal(values, np.rint(values)):
        return values.astype(np.float32)
    low, top = values.min(), values.max()
    for kind in (np.uint8, np.int16, np.int32):
        if np.iinfo(kind).min <= low and top <= np.iinfo(kind).max:
            return values.astype(kind)
    return values.astype(np.float32)


class Loader:
    """Makes minibatches of given cells; codes and covariates lie on the device once for all.

    Parameters
    ----------
    data
        The encoded study.
    device
        Where the minibatches shall be.
    resident
        Whether the counts are kept on the device too.

    Attributes
    ----------
    data, device
        As given.
    sources
        Counts by modality.
    """

    def __init__(self, data: TrainingData, device: torch.device, *, resident: bool) -> None:
        self.data, self.device = data, device
        make: type[HostSource | DeviceSource] = DeviceSource if resident else HostSource
        self.sources: dict[str, CountSource] = {m.name: make(m.counts, device) for m in data.modalities}
        self._categorical = {role: self._tensor(codes) for role, codes in data.categorical.items()}
        self._continuous = None if data.continuous is None else self._tensor(data.continuous)
        self._size_factor = None if data.size_factor is None else self._tensor(data.size_factor)
        self._mask_group = None if data.mask_group is None else self._tensor(data.mask_group)
        self._feature_masks = {m.name: self._tensor(m.feature_mask.astype(bool)) for m in data.modalities if m.feature_mask is not None}
        self._measured = {m.name: None if m.measured.all() else self._tensor(m.measured) for m in data.modalities}

    def minibatch(self, indices: np.ndarray, *, with_counts: bool = True) -> Minibatch:
        """Return the minibatch of the cells ``indices``, in that order; a decoder alone needs no counts."""
        rows = self._tensor(indices)
        return Minibatch(
            index=rows,
            counts={name: source.rows(indices) for name, source in self.sources.items()} if with_counts else {},
            categorical={role: codes[rows] for role, codes in self._categorical.items()},
            continuous=None if self._continuous is None else self._continuous[rows],
            size_factor=None if self._size_factor is None else self._size_factor[rows],
            measured={name: None if known is None else known[rows] for name, known in self._measured.items()},
            mask_group=None if self._mask_group is None else self._mask_group[rows],
            feature_masks=self._feature_masks,
        )

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)

    def in_order(self, rows: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, Minibatch]]:
        """Iterate over ``rows`` in order; where minibatches may not mix patterns, over one pattern after the other.

        Yields
        ------
        part
            Rows of the study; those of all parts together are ``rows``, each once.
        batch
            Their minibatch.
        """
        for where in self.parts(rows, batch_size):
            yield rows[where], self.minibatch(rows[where])

    def parts(self, rows: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
        """Return positions in ``rows`` of one minibatch after the other, ascending within each; see :meth:`in_order`."""
        positions = np.arange(len(rows))
        code = self.data.patterns[0][rows] if self.data.by_pattern else np.zeros(len(rows), dtype=np.int64)
        for pattern in np.unique(code):
            own = positions[code == pattern]
            for start in range(0, len(own), batch_size):
                yield own[start : start + batch_size]

    def epoch(self, rows: np.ndarray, batch_size: int, seed: int, epoch: int, *, at_least: int, n_max: int) -> list[np.ndarray]:
        """Return the minibatches of one training epoch, as the family's sampler makes them; see the functions below."""
        if self.data.by_pattern:
            return pattern_batches(rows, self.data.streams, batch_size, seed, epoch, n_max=n_max)
        return epoch_batches(rows, batch_size, seed, epoch, at_least=at_least)


def epoch_batches(rows: np.ndarray, batch_size: int, seed: int, epoch: int, *, at_least: int) -> list[np.ndarray]:
    """Return the minibatches of one epoch: every cell once, in an order that only seed and epoch determine.

    The last partial minibatch is kept; where it has fewer than ``at_least`` cells (one cell cannot be normalised over the
    minibatch) it joins the one before it.

    Returns
    -------
    list of ndarray
        Rows of each minibatch.
    """
    order = rows[np.random.default_rng([seed, epoch]).permutation(len(rows))]
    cuts = list(range(batch_size, len(order), batch_size))
    if cuts and len(order) - cuts[-1] < at_least:
        cuts.pop()
    return np.split(order, cuts)


def pattern_batches(rows: np.ndarray, streams: np.ndarray, batch_size: int, seed: int, epoch: int, *, n_max: int = N_MAX) -> list[np.ndarray]:
    """Return the minibatches of one epoch, each of one stream: a batch and a pattern of measured modalities.

    As scmidas' MultiBatchSampler: ``n = min(largest stream, n_max)``, ``ceil(n / batch_size)`` rounds, each of which visits all streams once in
    random order and takes ``batch_size`` cells of each in a shuffled order of its own. A stream that is used up is shuffled anew, so that small
    ones are oversampled and every minibatch is full. Only seed and epoch determine the draws.

    Parameters
    ----------
    rows
        Training cells.
    streams
        Code of every cell of the study, ``(n_cells,)``.
    batch_size
        Cells of a minibatch.
    seed, epoch
        Determine every draw.
    n_max
        Largest number of cells that an epoch takes of one stream.

    Returns
    -------
    list of ndarray
        Rows of each minibatch.
    """
    rng = np.random.default_rng([seed, epoch, 5])
    own = [rows[streams[rows] == code] for code in np.unique(streams[rows])]
    rounds = pattern_rounds([len(cells) for cells in own], batch_size, n_max)
    drawn = []
    for cells in own:
        times = -(-rounds * batch_size // len(cells))
        drawn.append(np.concatenate([cells[rng.permutation(len(cells))] for _ in range(times)])[: rounds * batch_size])
    order = [rng.permutation(len(own)) for _ in range(rounds)]
    return [drawn[stream][number * batch_size : (number + 1) * batch_size] for number in range(rounds) for stream in order[number]]


def pattern_rounds(sizes: Sequence[int], batch_size: int, n_max: int = N_MAX) -> int:
    """Return the rounds of one epoch of :func:`pattern_batches` over streams of these sizes."""
    return -(-min(max(sizes), n_max) // batch_size)
