"""Numbers in bf16 within compiled loops: kept as uint16, the upper half of a float32, since numba has no such type.

Arithmetic is float32: a number is widened where it is read, and a row is rounded once it is made.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,import-untyped"
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from cellweave.core.nn.compiled import FEATURES, I, _bits, _float

#: bf16 matrices.
NARROW = types.uint16[:, ::1]
#: Numbers that the processor rounds at once.
LANES = 16
#: Whether it does so; else a few operations on the bits do.
ROUNDS = "avx512bf16" in FEATURES
_numbers, _halves = (ir.VectorType(kind, LANES) for kind in (ir.FloatType(), ir.IntType(16)))


def _wide(value):
    """A float32 from a float32 or a bf16."""


@overload(_wide, inline="always")
def _wide_of(value):
    if value == types.uint16:
        return lambda value: _float(I(I(value) << I(16)))
    return lambda value: value


def _put(out, j, value):
    """Store a float32 in a row of float32 or, rounded to the nearest even, of bf16."""


@overload(_put, inline="always")
def _put_into(out, j, value):
    if out.dtype == types.uint16:

        def narrow(out, j, value):
            bits = _bits(value)
            out[j] = np.uint16(I(I(bits + I(0x7FFF)) + I(I(bits >> I(16)) & I(1))) >> I(16))

        return narrow

    def plain(out, j, value):
        out[j] = value

    return plain


def rounded(builder, values):
    """A vector of bf16 from one of float32, rounded to the nearest even, and to 0 what is subnormal; only where :data:`ROUNDS`."""
    name = "llvm.x86.avx512bf16.cvtneps2bf16.512"
    convert = builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(_halves, [_numbers]), name)
    return builder.call(convert, [values])


@intrinsic
def _round_vector(typing_context, source, to):
    """Round what lies at one address to another."""

    def generate(context, builder, signature, args):
        found = builder.load(builder.inttoptr(args[0], _numbers.as_pointer()))
        found.align = 4
        builder.store(rounded(builder, found), builder.inttoptr(args[1], _halves.as_pointer())).align = 2
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def row_for(out, spare):
    """Where a loop shall write a row of float32: in ``out`` itself, or in ``spare`` where ``out`` is bf16; then call :func:`keep`."""


@overload(row_for, inline="always")
def _row_for(out, spare):
    if out.dtype == types.uint16:
        return lambda out, spare: spare
    return lambda out, spare: out


def keep(row, out):
    """Round what was written where :func:`row_for` said."""


def _round_bits(row, out):
    for j in range(out.shape[0]):
        _put(out, j, row[j])


@overload(keep)
def _keep(row, out):
    if out.dtype != types.uint16:
        return lambda row, out: None
    if not ROUNDS:
        return _round_bits

    def narrow(row, out):
        source, to, whole = row.ctypes.data, out.ctypes.data, out.shape[0] - out.shape[0] % LANES
        for j in range(0, whole, LANES):
            _round_vector(source + 4 * j, to + 2 * j)
        for j in range(whole, out.shape[0]):
            _put(out, j, row[j])

    return narrow
