"""The counts of a minibatch, kept by their non-zero entries and made dense only once.

Counts are mostly zeros. The likelihoods need most of their arithmetic only where a count is not zero, and the
encoder needs one dense matrix of ``log(1 + x)``; a :class:`CountBatch` serves both from one CSR slice.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from cellweave.core.nn.compiled_call import log1p_rows

ArrayLike: TypeAlias = "np.ndarray[Any, Any] | Tensor"


def _tensor(values: ArrayLike, device: torch.device | None, dtype: torch.dtype) -> Tensor:
    """Return ``values`` on ``device`` as ``dtype``; what travels to a GPU is the narrow original."""
    if isinstance(values, np.ndarray):
        # torch warns of arrays it could write into by mistake (memory maps); those are copied.
        values = torch.from_numpy(values if values.flags.writeable else values.copy())
    return values.to(device=device, non_blocking=True).to(dtype)


def _known_integer(values: ArrayLike) -> bool:
    """Return whether all values are whole, looking only where looking does not wait for a device."""
    if isinstance(values, np.ndarray):
        return not np.issubdtype(values.dtype, np.floating) or bool(np.array_equal(values, np.rint(values)))
    if not values.dtype.is_floating_point:
        return True
    return values.device.type == "cpu" and bool(torch.equal(values, values.round()))


def _known_nonzero(values: ArrayLike) -> bool:
    """Return whether no stored value is 0, looking only where looking does not wait for a device."""
    if isinstance(values, np.ndarray):
        return bool(values.all())
    return values.device.type == "cpu" and int(torch.count_nonzero(values)) == values.shape[0]


class CountBatch:
    """Counts of one modality in the cells of a minibatch.

    Make one with :meth:`from_csr` or :meth:`from_dense`. Entries that are stored as 0 are allowed (a buffer of fixed
    size may be padded with zeros at row 0, column 0), stored duplicates of non-zero entries are not.

    Attributes
    ----------
    cols
        Feature of each stored entry, int64 ``(nnz,)``, the entries of a cell together and cells in order.
    values
        The stored entries, floating ``(nnz,)``; counts or any real values.
    shape
        ``(n_cells, n_features)``.
    integer
        Whether all values are known to be non-negative whole numbers. On a device other than the CPU this is true only
        where the caller said so or the array had an integer type.
    """

    __slots__ = (
        "_dense", "_flat", "_log1p", "_max_count", "_row_starts", "_rows", "_total", "cols", "integer", "shape", "stores_zeros",
        "values",
    )

    def __init__(
        self,
        rows: Tensor | None,
        cols: Tensor,
        values: Tensor,
        shape: tuple[int, int],
        *,
        integer: bool,
        stores_zeros: bool = True,
        max_count: int | None = None,
        dense: Tensor | None = None,
        row_starts: Tensor | None = None,
    ) -> None:
        self.cols, self.values, self.shape, self.integer = cols, values, shape, integer
        self._rows = rows
        self.stores_zeros = stores_zeros
        self._max_count = max_count
        self._dense = dense
        self._row_starts = row_starts
        self._flat: Tensor | None = None
        self._log1p: Tensor | None = None
        self._total: Tensor | None = None

    @classmethod
    def from_csr(
        cls,
        indptr: ArrayLike,
        indices: ArrayLike,
        values: ArrayLike,
        n_features: int,
        device: torch.device | str | None = None,
        *,
        integer: bool | None = None,
        stores_zeros: bool | None = None,
        max_count: int | None = None,
        dense: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> CountBatch:
        """Take the rows of a CSR slice.

        Parameters
        ----------
        indptr
            Row starts ``(n_cells + 1,)``, the first one 0; numpy or torch, any integer type.
        indices
            Columns of the stored entries ``(nnz,)``.
        values
            Stored entries ``(nnz,)``, of any real type, narrow unsigned integers included.
        n_features
            Number of columns.
        device
            Where the batch shall live; None leaves tensors where they are and puts arrays on the CPU.
        integer
            Whether the values are non-negative whole numbers; None looks (on the CPU only, never waiting for a device).
        stores_zeros
            Whether some stored entries may be 0; None looks, on the CPU only.
        max_count
            Largest value, where the caller knows it (the largest of the whole study will do).
        dense
            The same counts as a dense matrix ``(n_cells, n_features)``, where the caller has it already.
        dtype
            Floating type of the values.

        Returns
        -------
        CountBatch
            The batch.
        """
        target = torch.device(device) if device is not None else None
        if integer is None:
            integer = _known_integer(values)
        if stores_zeros is None:
            stores_zeros = not _known_nonzero(values)
        return cls(
            None,
            _tensor(indices, target, torch.int64),
            _tensor(values, target, dtype),
            (int(indptr.shape[0]) - 1, int(n_features)),
            integer=integer, stores_zeros=stores_zeros, max_count=max_count, dense=dense,
            row_starts=_tensor(indptr, target, torch.int64),
        )

    @classmethod
    def from_dense(
        cls, matrix: ArrayLike, device: torch.device | str | None = None, *, dtype: torch.dtype = torch.float32
    ) -> CountBatch:
        """Take a dense matrix ``(n_cells, n_features)``; on a GPU this waits for the device once."""
        integer = _known_integer(matrix)
        target = torch.device(device) if device is not None else None
        dense = _tensor(matrix, target, dtype)
        rows, cols = dense.nonzero(as_tuple=True)
        shape = (int(dense.shape[0]), int(dense.shape[1]))
        return cls(rows, cols, dense[rows, cols], shape, integer=integer, stores_zeros=False, dense=dense)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.shape[0]

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.shape[1]

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return int(self.values.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the batch lives."""
        return self.values.device

    @property
    def max_count(self) -> int:
        """Largest value, rounded up; 0 where nothing is stored. Reading it waits for the device if nobody gave it."""
        if self._max_count is None:
            self._max_count = int(np.ceil(self.values.max().item())) if self.nnz else 0
        return self._max_count

    @property
    def rows(self) -> Tensor:
        """Cell of each stored entry, int64 ``(nnz,)``, ascending."""
        if self._rows is None:
            cells = torch.arange(self.n_cells, device=self.device)
            self._rows = torch.repeat_interleave(cells, self.row_starts.diff(), output_size=self.nnz)
        return self._rows

    @property
    def row_starts(self) -> Tensor:
        """Where each cell's stored entries begin, and their number at the end, int64 ``(n_cells + 1,)``."""
        if self._row_starts is None:
            cells = torch.arange(self.n_cells + 1, device=self.device)
            self._row_starts = torch.searchsorted(self.rows.contiguous(), cells)
        return self._row_starts

    @property
    def flat(self) -> Tensor:
        """Positions of the stored entries in the flattened dense matrix, int64 ``(nnz,)``."""
        if self._flat is None:
            self._flat = torch.add(self.cols, self.rows, alpha=self.n_features)
        return self._flat

    def scatter(self, entries: Tensor) -> Tensor:
        """Return a dense ``(n_cells, n_features)`` matrix with ``entries`` ``(nnz,)`` at the stored places, 0 elsewhere."""
        dense = entries.new_zeros(self.n_cells * self.n_features)
        return dense.scatter_add_(0, self.flat, entries).view(self.shape)

    def gather(self, matrix: Tensor) -> Tensor:
        """Return the elements of a dense ``(n_cells, n_features)`` matrix at the stored places, ``(nnz,)``."""
        return matrix.reshape(-1).index_select(0, self.flat)

    def row_sum(self, entries: Tensor) -> Tensor:
        """Return the sum over each cell of ``entries`` ``(nnz,)``, shape ``(n_cells,)``."""
        return entries.new_zeros(self.n_cells).scatter_add_(0, self.rows, entries)

    def column_sum(self, entries: Tensor) -> Tensor:
        """Return the sum over each feature of ``entries`` ``(nnz,)``, shape ``(n_features,)``."""
        return entries.new_zeros(self.n_features).scatter_add_(0, self.cols, entries)

    @property
    def dense(self) -> Tensor:
        """The counts as a dense matrix ``(n_cells, n_features)``, made at the first call."""
        if self._dense is None:
            self._dense = self.scatter(self.values)
        return self._dense

    def log1p(self) -> Tensor:
        """Return dense ``log(1 + x)`` ``(n_cells, n_features)``; the logarithm is taken at the stored entries only."""
        if self._log1p is None:
            found = log1p_rows(self)
            if found is None:
                self._log1p = self.scatter(self.values.log1p())
            else:
                self._log1p, self._total = found
        return self._log1p

    @property
    def total(self) -> Tensor:
        """Total count of each cell ``(n_cells,)``."""
        if self._total is None:
            self._total = self.row_sum(self.values)
        return self._total

    def to(self, device: torch.device | str, *, dtype: torch.dtype | None = None) -> CountBatch:
        """Return the batch on another device or with another floating type."""
        target = torch.device(device)
        return CountBatch(
            None,
            self.cols.to(target, non_blocking=True),
            self.values.to(target, dtype or self.values.dtype, non_blocking=True),
            self.shape,
            integer=self.integer, stores_zeros=self.stores_zeros, max_count=self._max_count,
            row_starts=self.row_starts.to(target, non_blocking=True),
        )
