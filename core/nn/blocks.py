"""The dense arithmetic of the negative binomial, a few cells at a time.

On a CPU a pass over a matrix of 128 cells by 2,000 genes costs five times as much when the matrix has to come from memory as when it
lies in the second-level cache. So all passes are made over a block of rows before the next block is begun, with
results written into the same few scratch matrices. On other devices there is one block.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cellweave.core.nn.counts import CountBatch

# Elements of a block for each thread: few enough for the cache, and enough to outweigh the calls (1 core, 128 x 2,000).
BLOCK_ELEMENTS = 65536
# A product of this many factors between 1/2 and 2 stays far inside the range of float32.
PRODUCT = 64

_scratch = threading.local()


class Block(NamedTuple):
    """Rows ``start:stop`` of the matrix, which hold the stored entries ``first:last``."""

    start: int
    stop: int
    first: int
    last: int


def blocks(counts: CountBatch) -> Iterator[Block]:
    """Iterate over the blocks of rows that one pass treats together."""
    n_cells, n_features = counts.shape
    if counts.device.type != "cpu":
        yield Block(0, n_cells, 0, counts.nnz)
        return
    rows = max(1, BLOCK_ELEMENTS * torch.get_num_threads() // max(n_features, 1))
    starts = range(0, n_cells, rows)
    firsts = counts.row_starts.tolist()
    for start in starts:
        stop = min(start + rows, n_cells)
        yield Block(start, stop, firsts[start], firsts[stop])


def scratch(count: int, rows: int, like: Tensor) -> list[Tensor]:
    """Return matrices of ``rows`` rows to overwrite, as wide and of the same kind as ``like``.

    On the CPU they are kept for the next call of the same thread; nothing that outlives a block may lie in them.
    """
    width = like.shape[1]
    if like.device.type != "cpu":
        return [like.new_empty(rows, width) for _ in range(count)]
    key = (count, rows, width, like.dtype)
    if getattr(_scratch, "key", None) != key:
        size = count * rows * width
        kept = getattr(_scratch, "kept", None)
        if kept is None or kept.dtype != like.dtype or kept.numel() < size:
            kept = torch.empty(size, dtype=like.dtype)
        _scratch.kept, _scratch.key = kept, key
        _scratch.parts = list(kept[:size].view(count, rows, width).unbind())
    return list(_scratch.parts)


def log_product(factors: Tensor) -> Tensor:
    """Return the sum of the logarithms of each row of numbers between 1/2 and 2; overwrites its argument."""
    width, taken = factors.shape[1], 1
    while width > 1 and taken < PRODUCT:
        half = width // 2
        factors[:, :half].mul_(factors[:, width - half : width])
        width, taken = width - half, taken * 2
    return torch.log(factors[:, :width]).sum(1)
