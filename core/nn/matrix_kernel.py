"""A product of float32 matrices to be called from compiled loops; a CPU's vectors are written out, since numba's compiler does not find them.

A tile of the result stays in registers while its inner dimension is gone through, so that small matrices are multiplied at the speed that BLAS
reaches with large ones, without leaving the compiled loop, and in an order that depends on nothing but the sizes.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,import-untyped"
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

_FEATURES = binding.get_host_cpu_features()
#: Numbers in a vector, and rows of a tile: as many as the registers hold beside what they are multiplied with.
LANES = 16 if _FEATURES.get("avx512f") else 8 if _FEATURES.get("avx") else 4
TILE_ROWS = 8 if LANES != 8 else 4
BYTES = 4


def _pointer(kind):
    @intrinsic
    def at(typing_context, address):
        """The numbers that begin at an address."""

        def generate(context, builder, signature, args):
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return at


floats_at, halves_at = _pointer(types.float32), _pointer(types.uint16)


def _tile(n_rows, n_vectors):
    """Return what fills in ``n_rows`` rows of ``n_vectors`` vectors of a product; see :func:`product` for the arguments."""
    number, vector, whole, place = ir.FloatType(), ir.VectorType(ir.FloatType(), LANES), ir.IntType(64), ir.IntType(32)
    rows, parts = range(n_rows), range(n_vectors)

    @intrinsic
    def tile(typing_context, a, a_row, a_inner, b, b_row, out, out_row, n_inner):
        def generate(context, builder, signature, args):
            a, a_row, a_inner, b, b_row, out, out_row, n_inner = args
            name, undefined = f"llvm.fmuladd.v{LANES}f32", ir.Constant(vector, ir.Undefined)
            add = builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(vector, [vector] * 3), name)

            def at(base, element, kind):
                return builder.inttoptr(builder.add(base, builder.mul(element, ir.Constant(whole, BYTES))), kind.as_pointer())

            def load(base, element, kind):
                found = builder.load(at(base, element, kind))
                found.align = BYTES
                return found

            def spread(value):
                one = builder.insert_element(undefined, value, ir.Constant(place, 0))
                return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(place, LANES), [0] * LANES))

            before = builder.block
            loop, done = builder.append_basic_block("inner"), builder.append_basic_block("stored")
            builder.branch(loop)
            builder.position_at_end(loop)
            k = builder.phi(whole)
            k.add_incoming(ir.Constant(whole, 0), before)
            kept = [[builder.phi(vector) for _ in parts] for _ in rows]
            right = [load(b, builder.add(builder.mul(k, b_row), ir.Constant(whole, LANES * v)), vector) for v in parts]
            sums = []
            for r in rows:
                left = load(a, builder.add(builder.mul(ir.Constant(whole, r), a_row), builder.mul(k, a_inner)), number)
                sums.append([builder.call(add, [spread(left), right[v], kept[r][v]]) for v in parts])
            for r in rows:
                for v in parts:
                    kept[r][v].add_incoming(ir.Constant(vector, [0.0] * LANES), before)
                    kept[r][v].add_incoming(sums[r][v], loop)
            following = builder.add(k, ir.Constant(whole, 1))
            k.add_incoming(following, loop)
            builder.cbranch(builder.icmp_signed("<", following, n_inner), loop, done)
            builder.position_at_end(done)
            for r in rows:
                for v in parts:
                    to = builder.add(builder.mul(ir.Constant(whole, r), out_row), ir.Constant(whole, LANES * v))
                    builder.store(sums[r][v], at(out, to, vector)).align = BYTES
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), generate

    return tile


_tall_wide, _tall, _flat_wide, _flat = _tile(TILE_ROWS, 2), _tile(TILE_ROWS, 1), _tile(1, 2), _tile(1, 1)


@numba.njit(nogil=True, error_model="numpy")
def _last_columns(a, a_row, a_inner, b, b_row, out, out_row, n_rows, start, n_columns, n_inner):
    """Fill in the columns that make no whole vector."""
    for i in range(n_rows):
        for j in range(start, n_columns):
            total = np.float32(0.0)
            for k in range(n_inner):
                total += floats_at(a)[i * a_row + k * a_inner] * floats_at(b)[k * b_row + j]
            floats_at(out)[i * out_row + j] = total


@numba.njit(nogil=True, error_model="numpy")
def product(a, a_row, a_inner, b, b_row, out, out_row, n_rows, n_columns, n_inner) -> None:
    """Fill in ``out[i, j] = sum(a[i, k] * b[k, j])``; ``n_inner`` is 1 or more.

    Parameters
    ----------
    a, b, out
        Addresses of matrices of float32.
    a_row, a_inner
        How many numbers a row and an inner element of ``a`` lie apart; a transposed matrix has them the other way round.
    b_row, out_row
        How many numbers the rows of the others lie apart, whose columns are together.
    n_rows, n_columns, n_inner
        Sizes.
    """
    tall = n_rows - n_rows % TILE_ROWS
    j = 0
    while j + LANES <= n_columns:
        wide = j + 2 * LANES <= n_columns
        right = b + BYTES * j
        for i in range(0, tall, TILE_ROWS):
            left, to = a + BYTES * i * a_row, out + BYTES * (i * out_row + j)
            if wide:
                _tall_wide(left, a_row, a_inner, right, b_row, to, out_row, n_inner)
            else:
                _tall(left, a_row, a_inner, right, b_row, to, out_row, n_inner)
        for i in range(tall, n_rows):
            left, to = a + BYTES * i * a_row, out + BYTES * (i * out_row + j)
            if wide:
                _flat_wide(left, a_row, a_inner, right, b_row, to, out_row, n_inner)
            else:
                _flat(left, a_row, a_inner, right, b_row, to, out_row, n_inner)
        j += 2 * LANES if wide else LANES
    _last_columns(a, a_row, a_inner, b, b_row, out, out_row, n_rows, j, n_columns, n_inner)
