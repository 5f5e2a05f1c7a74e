"""Products of bf16 matrices for CPUs that multiply pairs of bf16 (AVX-512 BF16), in one compiled call each.

The same instruction and the same sums in float32 as torch's; what is left out is what torch's library does before it starts, which for the small and
middling matrices of a training step, whose weights lie far from the processor each time, is a tenth to a half of the time.

Pairs of numbers that follow each other in the inner dimension are what the processor multiplies. Of the left matrix a pair is read where it lies; the
right one is turned into such pairs a panel of :data:`PANEL` columns at a time.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,import-untyped"
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from cellweave.core.nn.compiled import FLAG, _compile
from cellweave.core.nn.fused_kernels import NUMBER
from cellweave.core.nn.half_kernel import rounded
from cellweave.core.nn.matrix_kernel import _pointer, fetch, halves_at
from cellweave.core.nn.narrow_products import PANEL, TURNED_LEFT, TURNED_RIGHT

#: Pairs, and sums, in a vector.
LANES = 16
#: Rows of a tile of the result.
ROWS = 8
#: Bytes that a vector's address is a multiple of.
ALIGNED = 64
LOOP = {"nogil": True, "error_model": "numpy"}

_number, _half, _word, _whole = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_numbers, _halves, _words = (ir.VectorType(kind, LANES) for kind in (_number, _half, _word))
_nothing = ir.Constant(_words, ir.Undefined)
words_at = _pointer(types.uint32)


def _whole_of(value):
    return ir.Constant(_whole, value)


def _same(value):
    return ir.Constant(_words, [value] * LANES)


def _at_byte(builder, base, offset, kind):
    return builder.inttoptr(builder.add(base, offset), kind.as_pointer())


def _load_bytes(builder, base, offset, kind, align):
    found = builder.load(_at_byte(builder, base, offset, kind))
    found.align = align
    return found


def _tile(n_rows):
    """Return what fills in ``n_rows`` rows of a panel; see :func:`_multiply` for the arguments, of which rows and columns lie so many bytes apart."""
    rows, parts = range(n_rows), range(PANEL // LANES)

    @intrinsic
    def tile(typing_context, a, a_row, a_inner, panel, out, out_row, n_pairs, adds):
        def generate(context, builder, signature, args):
            a, a_row, a_inner, panel, out, out_row, n_pairs, adds = args
            name = "llvm.x86.avx512bf16.dpbf16ps.512"
            multiply_add = builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(_numbers, [_numbers, _words, _words]), name)
            before, loop, done, more, store = builder.block, *(builder.append_basic_block(name) for name in ("inner", "done", "more", "store"))
            builder.branch(loop)
            builder.position_at_end(loop)
            k = builder.phi(_whole)
            k.add_incoming(_whole_of(0), before)
            kept = [[builder.phi(_numbers) for _ in parts] for _ in rows]
            right = [_load_bytes(builder, panel, builder.add(builder.mul(k, _whole_of(4 * PANEL)), _whole_of(4 * LANES * v)), _words, ALIGNED) for v in parts]
            sums = []
            for r in rows:
                pair = _load_bytes(builder, a, builder.add(builder.mul(_whole_of(r), a_row), builder.mul(k, a_inner)), _word, 2)
                left = builder.shuffle_vector(builder.insert_element(_nothing, pair, ir.Constant(_word, 0)), _nothing, _same(0))
                sums.append([builder.call(multiply_add, [kept[r][v], left, right[v]]) for v in parts])
                for v in parts:
                    kept[r][v].add_incoming(ir.Constant(_numbers, [0.0] * LANES), before)
                    kept[r][v].add_incoming(sums[r][v], loop)
            following = builder.add(k, _whole_of(1))
            k.add_incoming(following, loop)
            builder.cbranch(builder.icmp_signed("<", following, n_pairs), loop, done)

            def place(r, v):
                return builder.add(builder.mul(_whole_of(r), out_row), _whole_of(2 * LANES * v))

            builder.position_at_end(done)
            builder.cbranch(adds, more, store)
            builder.position_at_end(more)
            added = []
            for r in rows:
                there = [builder.shl(builder.zext(_load_bytes(builder, out, place(r, v), _halves, 2), _words), _same(16)) for v in parts]
                added.append([builder.fadd(sums[r][v], builder.bitcast(there[v], _numbers)) for v in parts])
            builder.branch(store)
            builder.position_at_end(store)
            found = [[builder.phi(_numbers) for _ in parts] for _ in rows]
            for r in rows:
                for v in parts:
                    found[r][v].add_incoming(sums[r][v], done)
                    found[r][v].add_incoming(added[r][v], more)
            for r in rows:
                for v in parts:
                    builder.store(rounded(builder, found[r][v]), _at_byte(builder, out, place(r, v), _halves)).align = 2
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7, types.boolean), generate

    return tile


_tall, _flat = _tile(ROWS), _tile(1)


@intrinsic
def _turn(typing_context, source, source_row, to, to_row):
    """Turn 16 by 16 pairs, blocks of 8, 4, 2 and 1 of them at a time."""

    def generate(context, builder, signature, args):
        source, source_row, to, to_row = args
        rows = [_load_bytes(builder, source, builder.mul(_whole_of(r), source_row), _words, 2) for r in range(LANES)]
        step = LANES // 2
        while step:
            first = ir.Constant(_words, [c if not c & step else (c ^ step) + LANES for c in range(LANES)])
            second = ir.Constant(_words, [c | step if not c & step else c + LANES for c in range(LANES)])
            for r in range(LANES):
                if not r & step:
                    above, below = rows[r], rows[r | step]
                    rows[r], rows[r | step] = builder.shuffle_vector(above, below, first), builder.shuffle_vector(above, below, second)
            step //= 2
        for r in range(LANES):
            builder.store(rows[r], _at_byte(builder, to, builder.mul(_whole_of(r), to_row), _words)).align = ALIGNED
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@numba.njit(**LOOP)
def _room(size):
    """Memory with an aligned address within."""
    return np.empty(size + ALIGNED, np.uint8)


@numba.njit(**LOOP)
def _aligned(room):
    return (room.ctypes.data + ALIGNED - 1) // ALIGNED * ALIGNED


@numba.njit(**LOOP)
def _pair_rows(x, x_row, n_rows, width, out, out_width):
    """Put each two rows of ``x`` together to one of pairs; an odd last row is paired with zeros, and so is what is wider than ``x``.

    What lies to the right is asked for: weights are far away when a step comes to them, and the processor does not guess a panel's way through them.
    """
    for k in range((n_rows + 1) // 2):
        fetch(x + 2 * k * x_row + 2 * width)
        fetch(x + (2 * k + 1) * x_row + 2 * width)
        first, to = numba.carray(halves_at(x + 2 * k * x_row), width), numba.carray(words_at(out + 4 * k * out_width), out_width)
        if 2 * k + 1 < n_rows:
            second = numba.carray(halves_at(x + (2 * k + 1) * x_row), width)
            for j in range(width):
                to[j] = np.uint32(first[j]) | np.uint32(np.uint32(second[j]) << np.uint32(16))
        else:
            for j in range(width):
                to[j] = np.uint32(first[j])
        for j in range(width, out_width):
            to[j] = np.uint32(0)


@numba.njit(**LOOP)
def _pair_columns(x, x_row, n_pairs, width, out):
    """Fill in a panel whose columns are ``width`` rows of ``x``."""
    blocks, whole = n_pairs - n_pairs % LANES, width - width % LANES
    for j in range(0, whole, LANES):
        for k in range(0, blocks, LANES):
            for row in range(LANES):  # of the next panel
                fetch(x + (j + row + PANEL) * x_row + 4 * k)
            _turn(x + j * x_row + 4 * k, x_row, out + 4 * (PANEL * k + j), 4 * PANEL)
    for j in range(width):
        source, to = numba.carray(words_at(x + j * x_row), n_pairs), numba.carray(words_at(out), PANEL * n_pairs)
        for k in range(blocks if j < whole else 0, n_pairs):
            to[PANEL * k + j] = source[k]
    for k in range(n_pairs):
        to = numba.carray(words_at(out + 4 * PANEL * k), PANEL)
        for j in range(width, PANEL):
            to[j] = np.uint32(0)


@numba.njit(**LOOP)
def _rows_of(n_rows, a, a_row, a_inner, panel, out, out_row, n_pairs, adds):
    """Fill in all rows of a panel."""
    tall = n_rows - n_rows % ROWS
    for i in range(0, tall, ROWS):
        _tall(a + i * a_row, a_row, a_inner, panel, out + i * out_row, out_row, n_pairs, adds)
    for i in range(tall, n_rows):
        _flat(a + i * a_row, a_row, a_inner, panel, out + i * out_row, out_row, n_pairs, adds)


@numba.njit(**LOOP)
def _copy(source, source_row, to, to_row, n_rows, width):
    for i in range(n_rows):
        x, y = numba.carray(halves_at(source + i * source_row), width), numba.carray(halves_at(to + i * to_row), width)
        for j in range(width):
            y[j] = x[j]


def _multiply(kind, a, a_row, b, b_row, out, out_row, n_rows, n_columns, n_inner, start, stop, adds):
    """Fill in, or add to, the columns from ``start`` to ``stop`` of a product.

    Parameters
    ----------
    kind
        As in :mod:`cellweave.core.nn.narrow_products`. An odd ``n_inner`` is allowed for :data:`TURNED_LEFT` only.
    a, b, out
        Addresses.
    a_row, b_row, out_row
        How many bytes their rows lie apart, as they are in memory.
    n_rows, n_columns, n_inner
        Sizes of the product.
    start, stop
        ``start`` is a multiple of :data:`PANEL`, and so is ``stop`` but for the last.
    adds
        Whether the product is added to what is there.
    """
    n_pairs = (n_inner + 1) // 2
    panel_room, edge_room = _room(4 * PANEL * n_pairs), _room(2 * PANEL * n_rows)
    panel, edge = _aligned(panel_room), _aligned(edge_room)
    a_inner, width = 4, (n_rows + LANES - 1) // LANES * LANES
    left_room = _room(4 * width * n_pairs if kind == TURNED_LEFT else 0)
    if kind == TURNED_LEFT:
        left = _aligned(left_room)
        _pair_rows(a, a_row, n_inner, n_rows, left, width)
        a, a_row, a_inner = left, 4, 4 * width
    for j in range(start, stop, PANEL):
        n = min(PANEL, n_columns - j)
        if kind == TURNED_RIGHT:
            _pair_columns(b + j * b_row, b_row, n_pairs, n, panel)
        else:
            _pair_rows(b + 2 * j, b_row, n_inner, n, panel, PANEL)
        to = out + 2 * j
        if n == PANEL:
            _rows_of(n_rows, a, a_row, a_inner, panel, to, out_row, n_pairs, adds)
            continue
        if adds:
            _copy(to, out_row, edge, 2 * PANEL, n_rows, n)
        _rows_of(n_rows, a, a_row, a_inner, panel, edge, 2 * PANEL, n_pairs, adds)
        _copy(edge, 2 * PANEL, to, out_row, n_rows, n)
    # The memory must outlive the addresses that were taken of it.
    return panel_room.size + edge_room.size + left_room.size > 0


multiply = _compile(_multiply, types.boolean(*[NUMBER] * 12, FLAG))


def _multiply_all(kind, places, sizes, start, stop):
    """Fill in the products from ``start`` to ``stop``.

    The columns of ``places`` are address and bytes of a row of ``a``, ``b`` and ``out``, those of ``sizes`` the three sizes.
    """
    for n in range(start, stop):
        lies, size = places[n], sizes[n]
        multiply(kind, lies[0], lies[1], lies[2], lies[3], lies[4], lies[5], size[0], size[1], size[2], 0, size[1], False)  # noqa: FBT003
    return True


multiply_all = _compile(_multiply_all, types.boolean(NUMBER, types.int64[:, ::1], types.int64[:, ::1], NUMBER, NUMBER))
