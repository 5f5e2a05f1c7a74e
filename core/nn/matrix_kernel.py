"""A product of float32 matrices to be called from compiled loops; a CPU's vectors are written out, since numba's compiler does not find them.

A tile of the result stays in registers while its inner dimension is gone through, so that small matrices are multiplied at the speed that BLAS
reaches with large ones, without leaving the compiled loop, and in an order that on one processor depends on nothing but the sizes.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,import-untyped"
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np import arrayobj

from cellweave.core.nn.compiled import FEATURES

#: Numbers in a vector, and rows of a tile: as many as the registers hold beside what they are multiplied with.
LANES = 16 if "avx512f" in FEATURES else 8 if "avx" in FEATURES else 4
TILE_ROWS = 8 if LANES != 8 else 4
BYTES = 4
#: Vectors of a row that are added up at once.
GATHERED = 8


def _pointer(kind):
    @intrinsic
    def at(typing_context, address):
        """The numbers that begin at an address."""

        def generate(context, builder, signature, args):
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return at


floats_at, halves_at, wholes_at = _pointer(types.float32), _pointer(types.uint16), _pointer(types.int64)


@intrinsic
def bare(typing_context, array):  # noqa: ANN201
    """The same array without its owner, who must outlive it.

    A row of an array that has an owner is counted when it is handed on and when it is let go, which takes longer than a pass over a short row.
    """

    def generate(context, builder, signature, args):
        kind = signature.args[0]
        found = arrayobj.make_array(kind)(context, builder, args[0])
        for name in ("meminfo", "parent"):
            setattr(found, name, ir.Constant(getattr(found, name).type, None))
        return found._getvalue()

    return array(array), generate


_number, _whole, _place = ir.FloatType(), ir.IntType(64), ir.IntType(32)
_vector = ir.VectorType(_number, LANES)
_zeros = ir.Constant(_vector, [0.0] * LANES)


def _at(builder, base, element, kind, size=BYTES):
    return builder.inttoptr(builder.add(base, builder.mul(element, ir.Constant(_whole, size))), kind.as_pointer())


def _load(builder, base, element, kind, size=BYTES):
    found = builder.load(_at(builder, base, element, kind, size))
    found.align = size
    return found


def _spread(builder, value):
    """A vector of one number."""
    undefined = ir.Constant(_vector, ir.Undefined)
    one = builder.insert_element(undefined, value, ir.Constant(_place, 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(_place, LANES), [0] * LANES))


def _multiply_add(builder):
    name = f"llvm.fmuladd.v{LANES}f32"
    return builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(_vector, [_vector] * 3), name)


def _inner_loop(builder, n_inner, n_sums, step):
    """Add up ``n_sums`` vectors over an inner dimension of 1 or more; ``step(k, sums)`` returns them with one more added."""
    before, loop, done = builder.block, builder.append_basic_block("inner"), builder.append_basic_block("done")
    builder.branch(loop)
    builder.position_at_end(loop)
    k, kept = builder.phi(_whole), [builder.phi(_vector) for _ in range(n_sums)]
    sums, following = step(k, kept), builder.add(k, ir.Constant(_whole, 1))
    k.add_incoming(ir.Constant(_whole, 0), before)
    k.add_incoming(following, loop)
    for old, new in zip(kept, sums, strict=True):
        old.add_incoming(_zeros, before)
        old.add_incoming(new, loop)
    builder.cbranch(builder.icmp_signed("<", following, n_inner), loop, done)
    builder.position_at_end(done)
    return sums


def _tile(n_rows, n_vectors):
    """Return what fills in ``n_rows`` rows of ``n_vectors`` vectors of a product; see :func:`product` for the arguments."""
    parts = range(n_vectors)

    @intrinsic
    def tile(typing_context, a, a_row, a_inner, b, b_row, out, out_row, n_inner):
        def generate(context, builder, signature, args):
            a, a_row, a_inner, b, b_row, out, out_row, n_inner = args
            add = _multiply_add(builder)

            def step(k, kept):
                right = [_load(builder, b, builder.add(builder.mul(k, b_row), ir.Constant(_whole, LANES * v)), _vector) for v in parts]
                sums = []
                for r in range(n_rows):
                    place = builder.add(builder.mul(ir.Constant(_whole, r), a_row), builder.mul(k, a_inner))
                    left = _spread(builder, _load(builder, a, place, _number))
                    sums += [builder.call(add, [left, right[v], kept[r * n_vectors + v]]) for v in parts]
                return sums

            for place, value in enumerate(_inner_loop(builder, n_inner, n_rows * n_vectors, step)):
                r, v = divmod(place, n_vectors)
                to = builder.add(builder.mul(ir.Constant(_whole, r), out_row), ir.Constant(_whole, LANES * v))
                builder.store(value, _at(builder, out, to, _vector)).align = BYTES
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), generate

    return tile


def _gathered(n_vectors):
    """Return what adds up ``n_vectors`` vectors of some rows; see :func:`add_up` for the arguments."""

    @intrinsic
    def tile(typing_context, rows, row, places, entries, n, out):
        def generate(context, builder, signature, args):
            rows, row, places, entries, n, out = args
            add = _multiply_add(builder)

            def step(k, kept):
                start = builder.mul(_load(builder, places, k, _whole, 2 * BYTES), row)
                entry = _spread(builder, _load(builder, entries, k, _number))
                at = [builder.add(start, ir.Constant(_whole, LANES * v)) for v in range(n_vectors)]
                return [builder.call(add, [entry, _load(builder, rows, at[v], _vector), kept[v]]) for v in range(n_vectors)]

            for v, value in enumerate(_inner_loop(builder, n, n_vectors, step)):
                builder.store(value, _at(builder, out, ir.Constant(_whole, LANES * v), _vector)).align = BYTES
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return tile


_tall_wide, _tall, _flat_wide, _flat = _tile(TILE_ROWS, 2), _tile(TILE_ROWS, 1), _tile(1, 2), _tile(1, 1)
_many, _single = _gathered(GATHERED), _gathered(1)


@intrinsic
def fetch(typing_context, address):  # noqa: ANN201
    """Ask for the memory at an address, which may be none of ours, to be brought near."""

    def generate(context, builder, signature, args):
        byte, how = ir.IntType(8).as_pointer(), [0, 2, 1]  # to read, into the second-level cache, data
        name = "llvm.prefetch.p0"
        ask = builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [byte, _place, _place, _place]), name)
        builder.call(ask, [builder.inttoptr(args[0], byte), *(ir.Constant(_place, value) for value in how)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


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


@numba.njit(nogil=True, error_model="numpy")
def add_up(rows, row, places, entries, n, out, width) -> None:
    """Fill in the sum of some rows, each times its entry.

    Parameters
    ----------
    rows, row
        Address of float32, and how many numbers its rows lie apart.
    places, entries, n
        Addresses of the rows' numbers (int64) and of what they are multiplied with (float32), and how many there are.
    out, width
        Address of the sum, and its size.
    """
    if n == 0:
        for j in range(width):
            floats_at(out)[j] = np.float32(0.0)
        return
    j = 0
    while j + GATHERED * LANES <= width:
        _many(rows + BYTES * j, row, places, entries, n, out + BYTES * j)
        j += GATHERED * LANES
    while j + LANES <= width:
        _single(rows + BYTES * j, row, places, entries, n, out + BYTES * j)
        j += LANES
    for last in range(j, width):
        total = np.float32(0.0)
        for i in range(n):
            total += floats_at(entries)[i] * floats_at(rows)[wholes_at(places)[i] * row + last]
        floats_at(out)[last] = total
