"""Products of a written step: by torch, or by a compiled loop where they are small, or in bf16 where the processor multiplies pairs of it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from cellweave.core.nn import compiled_call
from cellweave.core.nn.midas_layers import in_parts, shared
from cellweave.core.nn.step_program import Space

#: Two matrices and where their product goes.
Part = tuple[Tensor, Tensor, Tensor]

#: ``a @ b``, ``a @ b.T`` and ``a.T @ b``.
PLAIN, TURNED_RIGHT, TURNED_LEFT = 0, 1, 2
#: Columns that are treated at a time; multiplications that take as long as a loop's pass over one element.
PANEL, PER_ELEMENT = 32, 64


def loops() -> ModuleType | None:
    """Return the compiled loops, or None where they do not serve: matrix units (AMX) are faster through torch."""
    if compiled_call.compiled() is None:
        return None
    features: frozenset[str] = importlib.import_module("cellweave.core.nn.compiled").FEATURES
    if "avx512bf16" not in features or "amx-bf16" in features:
        return None
    return importlib.import_module("cellweave.core.nn.narrow_kernel")


def add_product(space: Space, kind: int, a: Tensor, b: Tensor, out: Tensor, *, adds: bool = False) -> None:
    """Make out the call that fills in a matrix, or adds to it.

    Parameters
    ----------
    space
        Whose program it is part of.
    kind
        :data:`PLAIN`, :data:`TURNED_RIGHT` or :data:`TURNED_LEFT`.
    a, b, out
        Matrices as they lie in memory, their columns together; all float32 or all bf16.
    adds
        Whether the product is added to what is there.
    """
    compiled, sizes = _loops_for(kind, [(a, b, out)]), _sizes(kind, a, out)
    if a.dtype == torch.float32 and not adds and compiled_call.compiled() is not None:
        small = importlib.import_module("cellweave.core.nn.small_kernel")
        if small.serves(kind, *sizes):
            space.do(small.multiply_small, kind, *_place(a, b, out), *sizes)
            return
    if compiled is None:
        _by_torch(space, kind, a, b, out, adds=adds)
        return
    multiply, lies, (n_rows, n_columns, n_inner) = compiled.multiply, _place(a, b, out), sizes
    if not shared(n_rows * n_columns * n_inner // PER_ELEMENT):
        space.do(multiply, kind, *lies, n_rows, n_columns, n_inner, 0, n_columns, adds)
        return

    def some(start: int, stop: int) -> None:
        multiply(kind, *lies, n_rows, n_columns, n_inner, PANEL * start, min(PANEL * stop, n_columns), adds)

    space.do(in_parts, -(-n_columns // PANEL), some, PANEL * n_rows * n_inner // PER_ELEMENT)


def add_products(space: Space, kind: int, parts: Sequence[Part]) -> None:
    """Make out the call that fills in several matrices; ``parts`` are as :func:`add_product` takes them."""
    compiled = _loops_for(kind, parts)
    if compiled is None:
        for part in parts:
            _by_torch(space, kind, *part, adds=False)
        return
    places = np.array([_place(*part) for part in parts], np.int64)
    sizes = np.array([_sizes(kind, a, out) for a, _, out in parts], np.int64)

    def some(start: int, stop: int) -> None:
        compiled.multiply_all(kind, places, sizes, start, stop)

    space.do(in_parts, len(parts), some, int(sizes.prod(1).sum()) // PER_ELEMENT // len(parts))


def add_batch(space: Space, kind: int, a: Tensor, b: Tensor, out: Tensor) -> None:
    """Make out the call that fills in a batch of matrices, from batches of as many."""
    parts = list(zip(a, b, out, strict=True))
    if _loops_for(kind, parts) is None:
        space.do(torch.bmm, a.transpose(1, 2) if kind == TURNED_LEFT else a, b.transpose(1, 2) if kind == TURNED_RIGHT else b, out=out)
    else:
        add_products(space, kind, parts)


def _loops_for(kind: int, parts: Sequence[Part]) -> ModuleType | None:
    """Return the compiled loops where they serve: what is read in pairs as it lies must have an even number of columns.

    The loops are given addresses and believe them, so that matrices are looked at here, once for each call that is made out.
    """
    for a, b, out in parts:
        left, right = a.shape[:: -1 if kind == TURNED_LEFT else 1], b.shape[:: -1 if kind == TURNED_RIGHT else 1]
        same = a.dtype == b.dtype == out.dtype and (*left, right[1]) == (out.shape[0], right[0], out.shape[1])
        if not same or any(x.stride(1) != 1 and x.shape[1] != 1 for x in (a, b, out)):
            message = f"these are not matrices of a product: {tuple(a.shape)}, {tuple(b.shape)} and {tuple(out.shape)}, {a.dtype}, {b.dtype} and {out.dtype}"
            raise ValueError(message)
    if any(a.dtype != torch.bfloat16 or not a.numel() or (kind != TURNED_LEFT and a.shape[1] % 2) for a, _, _ in parts):
        return None
    return loops()


def _place(*matrices: Tensor) -> tuple[int, ...]:
    return tuple(value for x in matrices for value in (x.data_ptr(), x.element_size() * x.stride(0)))


def _sizes(kind: int, a: Tensor, out: Tensor) -> tuple[int, int, int]:
    return out.shape[0], out.shape[1], a.shape[0] if kind == TURNED_LEFT else a.shape[1]


def _by_torch(space: Space, kind: int, a: Tensor, b: Tensor, out: Tensor, *, adds: bool) -> None:
    left, right = a.t() if kind == TURNED_LEFT else a, b.t() if kind == TURNED_RIGHT else b
    if adds:
        space.do(out.addmm_, left, right)
    else:
        space.do(torch.mm, left, right, out=out)
