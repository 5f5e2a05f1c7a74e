"""Compiled loops of a training step that is written out instead of traced: what is left of it beside matrix products and norms.

Matrices that feed a product, or come out of one, are float32 or bf16. All arithmetic is float32.
"""

# Types are the signatures at the end.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,import-untyped"
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import numba
import numpy as np
from numba import types

from cellweave.core.nn.compiled import (
    FLAG,
    MATH,
    MATRIX,
    VECTOR,
    WHOLE,
    F,
    _compile,
    _exp,
    _log,
    _outside,
)
from cellweave.core.nn.fused_kernels import (
    HALF_LOG_2_PI,
    NUMBER,
    _add_rows,
    _bernoulli_masked,
    _bernoulli_row,
    _poisson_masked,
    _poisson_row,
)
from cellweave.core.nn.half_kernel import NARROW, _put, _wide, keep, row_for
from cellweave.core.nn.matrix_kernel import add_up, bare
from cellweave.core.nn.norm_kernel import apart

FAST = {"nogil": True, "fastmath": MATH, "error_model": "numpy"}


def _dense(starts, columns, values, out):
    """Fill in the dense matrix of a CSR slice; False, having done nothing, where a column does not exist."""
    if _outside(columns[starts[0] : starts[-1]], out.shape[1]):
        return False
    out = bare(out)
    for n in range(out.shape[0]):
        row = out[n]
        for j in range(row.shape[0]):
            _put(row, j, F(0.0))
        for i in range(starts[n], starts[n + 1]):
            _put(row, columns[i], _wide(row[columns[i]]) + values[i])
    return True


def _sparse_forward(starts, columns, values, block, first_row, n_cells, weight, out):
    """Fill in ``x @ weight`` of each block of columns; row ``block * n_cells + cell`` of ``out`` belongs to a block and a cell."""
    if _outside(columns[starts[0] : starts[-1]], weight.shape[0]):
        return False
    n_blocks, width = out.shape[0] // n_cells, out.shape[1]
    out = bare(out)
    for n in range(starts.shape[0] - 1):
        for b in range(n_blocks):
            out[b * n_cells + first_row + n] = F(0.0)
        at, stop, last = starts[n], starts[n + 1], -1
        while at < stop:
            b, end = block[columns[at]], at + 1
            while end < stop and block[columns[end]] == b:
                end += 1
            row = b * n_cells + first_row + n
            if b > last:
                to = out.ctypes.data + 4 * width * row
                add_up(weight.ctypes.data, width, columns.ctypes.data + 8 * at, values.ctypes.data + 4 * at, end - at, to, width)
            else:  # the columns of a cell are in no order, and this block was seen before
                _add_rows(out[row], weight, columns[at:end], values[at:end])
            at, last = end, max(last, b)
    return True


def _sparse_back(starts, columns, values, block, g, pointers, places, entries, by_weight):
    """Fill in the derivative by the weight of :func:`_sparse_forward`; the stored entries are sorted by column first."""
    n_cells, (n_features, width) = starts.shape[0] - 1, by_weight.shape
    pointers[:] = 0
    for i in range(starts[0], starts[-1]):
        pointers[columns[i] + 1] += 1
    for j in range(n_features):
        pointers[j + 1] += pointers[j]
    for n in range(n_cells):
        for i in range(starts[n], starts[n + 1]):
            at = pointers[columns[i]]
            places[at], entries[at] = block[columns[i]] * n_cells + n, values[i]
            pointers[columns[i]] = at + 1
    start = 0
    for j in range(n_features):
        stop = pointers[j]
        to = by_weight.ctypes.data + 4 * width * j
        add_up(g.ctypes.data, width, places.ctypes.data + 8 * start, entries.ctypes.data + 4 * start, stop - start, to, width)
        start = stop
    return True


@numba.njit(**FAST)
def _eta_row(x, bias, out):
    for j in range(out.shape[0]):
        out[j] = _wide(x[j]) + bias[j]


@numba.njit(**FAST)
def _scaled_row(x, factor, out, total):
    for j in range(x.shape[0]):
        v = x[j] * factor
        total[j] += v
        out[j] = v


@numba.njit(**FAST)
def _nll_row(eta, is_poisson, start, stop, columns, values, has_mask, measured, out):
    """Cost of a cell; ``out`` becomes its derivative by ``eta``."""
    if has_mask:
        total = _poisson_masked(eta, measured, out) if is_poisson else _bernoulli_masked(eta, measured, out)
    else:
        total = _poisson_row(eta, out) if is_poisson else _bernoulli_row(eta, out)
    wide = np.float64(total)
    for i in range(start, stop):
        j, v = columns[i], values[i]
        if has_mask and measured[j] == F(0.0):
            continue
        wide -= np.float64(v * eta[j])
        out[j] -= v
        if is_poisson and v > F(1.0):
            wide += np.float64(v * (_log(v) - F(1.0)) + F(0.5) * _log(v) + HALF_LOG_2_PI)
    return wide


def _count_nll(x, bias, is_poisson, starts, columns, values, has_mask, mask, mask_row, nll, by_eta):
    """Cost of each cell and its derivative by ``eta = x + bias``; see the loop of the same name that has no bias."""
    if _outside(columns[starts[0] : starts[-1]], x.shape[1]):
        return False
    room = apart(x.shape[1])
    x, bias, columns, values, mask, by_eta, eta = bare(x), bare(bias), bare(columns), bare(values), bare(mask), bare(by_eta), bare(room)
    for n in range(x.shape[0]):
        _eta_row(x[n], bias, eta)
        measured = mask[mask_row[n] if has_mask else 0]
        nll[n] = _nll_row(eta, is_poisson, starts[n], starts[n + 1], columns, values, has_mask, measured, by_eta[n])
    return room.size > 0  # the memory must outlive what looks into it


def _count_step(x, bias, is_poisson, starts, columns, values, has_mask, mask, mask_row, factor, nll, out, total):
    """Cost of each cell; ``out`` becomes its derivative by ``eta = x + bias`` times the cell's factor, and the sum of that is added to ``total``."""
    if _outside(columns[starts[0] : starts[-1]], x.shape[1]):
        return False
    room = apart(x.shape[1]), apart(x.shape[1]), apart(x.shape[1])
    eta, slope, own = bare(room[0]), bare(room[1]), bare(room[2])
    x, bias, columns, values, mask, out, total = bare(x), bare(bias), bare(columns), bare(values), bare(mask), bare(out), bare(total)
    for n in range(x.shape[0]):
        _eta_row(x[n], bias, eta)
        measured = mask[mask_row[n] if has_mask else 0]
        nll[n] = _nll_row(eta, is_poisson, starts[n], starts[n + 1], columns, values, has_mask, measured, slope)
        to = row_for(out[n], own)
        _scaled_row(slope, factor[n], to, total)
        keep(to, out[n])
    return room[0].size + room[1].size + room[2].size > 0


def _scaled(x, factor, out, total):
    """Fill in the rows of ``x``, each times its factor, and add them up in ``total``."""
    room = apart(x.shape[1])
    own, x, out, total = bare(room), bare(x), bare(out), bare(total)
    for n in range(x.shape[0]):
        to = row_for(out[n], own)
        _scaled_row(x[n], factor[n], to, total)
        keep(to, out[n])
    return room.size > 0


def _class_costs(x, weight, bias, codes, costs, right, by_logits):
    """Cross entropy of each row's logits ``x @ weight.T + bias`` and its derivative by them; nothing where the code is negative.

    ``right`` becomes the numbers of rows that are guessed right and that have a code.
    """
    right[0], right[1] = 0, 0
    logits, x, weight, by_logits = apart(weight.shape[0]), bare(x), bare(weight), bare(by_logits)
    for n in range(x.shape[0]):
        code = codes[n]
        if code < 0:
            costs[n] = F(0.0)
            by_logits[n] = F(0.0)
            continue
        best, top, check = 0, F(-np.inf), F(0.0)
        for k in range(weight.shape[0]):
            v = _dot(x[n], weight[k]) + bias[k]
            check += v * F(0.0)  # the exponential would hide what is not a number
            logits[k] = v
            if v > top:
                best, top = k, v
        total = F(0.0)
        for k in range(weight.shape[0]):
            e = _exp(logits[k] - top)
            by_logits[n, k] = e
            total += e
        costs[n] = _log(total) + top - logits[code] + check
        share = F(1.0) / total + check
        for k in range(weight.shape[0]):
            by_logits[n, k] *= share
        by_logits[n, code] -= F(1.0)
        right[0] += best == code
        right[1] += 1
    return True


@numba.njit(**FAST)
def _dot(a, b):
    total = F(0.0)
    for j in range(a.shape[0]):
        total += a[j] * b[j]
    return total


@numba.njit(**FAST)
def _add_scaled(out, row, factor):
    for j in range(out.shape[0]):
        out[j] += factor * row[j]


def _class_back(by_logits, factor, x, weight, for_weight, by_x, by_weight, by_bias):
    """Fill in the derivative by ``x`` of the costs, each times its factor, and where asked add to those by weight and bias."""
    x, weight, by_x, by_weight = bare(x), bare(weight), bare(by_x), bare(by_weight)
    for n in range(x.shape[0]):
        by_x[n] = F(0.0)
        for k in range(weight.shape[0]):
            g = by_logits[n, k] * factor[n]
            if g == F(0.0):
                continue
            _add_scaled(by_x[n], weight[k], g)
            if for_weight:
                _add_scaled(by_weight[k], x[n], g)
                by_bias[k] += g
    return True


def _two(make):
    """Signatures with float32 and with bf16."""
    return [make(MATRIX), make(NARROW)]


dense = _compile(_dense, _two(lambda kind: types.boolean(WHOLE, WHOLE, VECTOR, kind)))
sparse_forward = _compile(_sparse_forward, types.boolean(WHOLE, WHOLE, VECTOR, WHOLE, NUMBER, NUMBER, MATRIX, MATRIX))
sparse_back = _compile(_sparse_back, types.boolean(WHOLE, WHOLE, VECTOR, WHOLE, MATRIX, WHOLE, WHOLE, VECTOR, MATRIX))
count_nll = _compile(
    _count_nll, _two(lambda kind: types.boolean(kind, VECTOR, FLAG, WHOLE, WHOLE, VECTOR, FLAG, MATRIX, WHOLE, VECTOR, MATRIX))
)
count_step = _compile(
    _count_step,
    _two(lambda kind: types.boolean(kind, VECTOR, FLAG, WHOLE, WHOLE, VECTOR, FLAG, MATRIX, WHOLE, VECTOR, VECTOR, kind, VECTOR)),
)
scaled = _compile(_scaled, _two(lambda kind: types.boolean(MATRIX, VECTOR, kind, VECTOR)))
class_costs = _compile(_class_costs, types.boolean(MATRIX, MATRIX, VECTOR, WHOLE, VECTOR, WHOLE, MATRIX))
class_back = _compile(_class_back, types.boolean(MATRIX, VECTOR, MATRIX, MATRIX, FLAG, MATRIX, MATRIX, VECTOR))
