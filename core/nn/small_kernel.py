"""Products of float32 matrices that are so small that a call of torch takes longer than they do."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,import-untyped"
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import numpy as np
from numba import types

from cellweave.core.nn.compiled import FLAG, _compile
from cellweave.core.nn.matrix_kernel import BYTES, LANES, floats_at, product
from cellweave.core.nn.narrow_products import TURNED_LEFT, TURNED_RIGHT

#: Turns of the loops up to which a product is made here (measured on one core).
MOST = 1 << 14


def serves(kind: int, n_rows: int, n_columns: int, n_inner: int) -> bool:
    """Return whether a product is faster here than by torch: columns that make no whole vector, and turning the right matrix, go one by one."""
    vectors, rest = divmod(n_columns, LANES)
    turns = n_rows * (vectors + rest) + (n_columns if kind == TURNED_RIGHT else 0)
    return 0 < turns * n_inner <= MOST


def _multiply_small(kind, a, a_row, b, b_row, out, out_row, n_rows, n_columns, n_inner):
    """Fill in a product; ``kind`` and sizes are as in :mod:`cellweave.core.nn.narrow_products`, and rows lie so many bytes apart, as they are in memory."""
    a_row, b_row, out_row = a_row // BYTES, b_row // BYTES, out_row // BYTES
    turned = np.empty(n_inner * n_columns if kind == TURNED_RIGHT else 0, np.float32)
    if kind == TURNED_RIGHT:
        for j in range(n_columns):
            for k in range(n_inner):
                turned[k * n_columns + j] = floats_at(b)[j * b_row + k]
        b, b_row = turned.ctypes.data, n_columns
    if kind == TURNED_LEFT:
        product(a, 1, a_row, b, b_row, out, out_row, n_rows, n_columns, n_inner)
    else:
        product(a, a_row, 1, b, b_row, out, out_row, n_rows, n_columns, n_inner)
    return turned.size >= 0  # the memory must outlive its address


multiply_small = _compile(_multiply_small, FLAG(*[types.int64] * 10))
