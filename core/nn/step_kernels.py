"""Compiled loops of a training step that is written out instead of traced: what is left of it beside the matrix products.

Matrices that feed a product, or come out of one, are float32 or bf16; bf16 is kept as uint16, the upper half of a float32, since numba has no
such type. All arithmetic is float32.
"""

# Types are the signatures at the end.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,import-untyped"
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import math

import numba
import numpy as np
from numba import types
from numba.extending import overload

from cellweave.core.nn.compiled import (
    FLAG,
    MATH,
    MATRIX,
    VECTOR,
    WHOLE,
    F,
    I,
    _bits,
    _compile,
    _exp,
    _float,
    _log,
    _outside,
)
from cellweave.core.nn.fused_kernels import (
    HALF_LOG_2_PI,
    LARGEST,
    NUMBER,
    U,
    _add_rows,
    _bernoulli_masked,
    _bernoulli_row,
    _hash,
    _poisson_masked,
    _poisson_row,
)
from cellweave.core.nn.matrix_kernel import add_up
from cellweave.core.nn.step_program import APART


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


FAST = {"nogil": True, "fastmath": MATH, "error_model": "numpy"}


@numba.njit(**FAST)
def _apart(size):
    """Memory with room around it.

    Where a result began fewer bytes behind what it is made of than are treated at once, the compiled loop would go element by element, and a sum
    would be rounded otherwise: the same step would depend on where the memory lay.
    """
    return np.empty(size + 2 * APART, F)[APART : APART + size]


@numba.njit(**FAST)
def _biased(x, bias, out):
    """Fill in ``x + bias``; return its mean."""
    total = F(0.0)
    for j in range(out.shape[0]):
        v = _wide(x[j]) + bias[j]
        out[j] = v
        total += v
    return total / F(out.shape[0])


@numba.njit(**FAST)
def _reciprocal_deviation(x, mean, eps):
    square = F(0.0)
    for j in range(x.shape[0]):
        d = x[j] - mean
        square += d * d
    return F(1.0) / F(math.sqrt(square / F(x.shape[0]) + eps))


@numba.njit(**FAST)
def _mish(x, mean, scale, weight, bias, out, slope):
    """Norm a row in place, and fill in what follows from it and the slope of that."""
    for j in range(x.shape[0]):
        v = (x[j] - mean) * scale
        x[j] = v
        h = v * weight[j] + bias[j]
        e = _exp(min(h, LARGEST))
        top = e * (e + F(2.0))
        below = F(1.0) / (top + F(2.0))
        gate = top * below
        slope[j] = gate + h * (F(4.0) * e * (e + F(1.0)) * below * below)
        _put(out, j, h * gate)


@numba.njit(**FAST)
def _mish_dropped(x, mean, scale, weight, bias, first, seed, threshold, keep_scale, out, slope):
    """The same where some are left out."""
    for j in range(x.shape[0]):
        v = (x[j] - mean) * scale
        x[j] = v
        h = v * weight[j] + bias[j]
        e = _exp(min(h, LARGEST))
        top = e * (e + F(2.0))
        below = F(1.0) / (top + F(2.0))
        gate = top * below
        kept = keep_scale if _hash(first + j, seed) >= threshold else F(0.0)
        slope[j] = kept * (gate + h * (F(4.0) * e * (e + F(1.0)) * below * below))
        _put(out, j, kept * (h * gate))


def _norm_mish(x, linear_bias, weight, bias, repeat, eps, drops, first_row, seeds, threshold, keep_scale, normed, out, slope, scale):
    """Fill in ``dropout(mish(layer_norm(x + linear_bias)))``, the normed values, the slope by what follows them, and reciprocal deviations.

    The rows of the biases and of weight hold in turn, each for ``repeat`` rows of ``x``. ``seeds`` holds one, which with an element's place decides
    whether it is left out.
    """
    width, groups, eps, keep_scale = x.shape[1], weight.shape[0], F(eps), F(keep_scale)
    seed, threshold = U(seeds[0]), U(threshold)
    for n in range(x.shape[0]):
        group = (first_row + n) // repeat % groups
        mean = _biased(x[n], linear_bias[group], normed[n])
        own = scale[n] = _reciprocal_deviation(normed[n], mean, eps)
        if drops:
            _mish_dropped(normed[n], mean, own, weight[group], bias[group], (first_row + n) * width, seed, threshold, keep_scale, out[n], slope[n])
        else:
            _mish(normed[n], mean, own, weight[group], bias[group], out[n], slope[n])
    return True


@numba.njit(**FAST)
def _through(g, normed, slope, weight, by_weight, by_bias, out):
    """Fill in the derivative by the normed values; return its mean and that of its product with them."""
    first, second = F(0.0), F(0.0)
    for j in range(out.shape[0]):
        through = _wide(g[j]) * slope[j]
        by_bias[j] += through
        by_weight[j] += through * normed[j]
        through *= weight[j]
        out[j] = through
        first += through
        second += through * normed[j]
    return first / F(out.shape[0]), second / F(out.shape[0])


@numba.njit(**FAST)
def _centred(through, normed, scale, first, second, by_linear_bias, out):
    for j in range(through.shape[0]):
        v = scale * (through[j] - first - normed[j] * second)
        by_linear_bias[j] += v
        _put(out, j, v)


def _norm_mish_back(g, normed, slope, weight, repeat, first_row, scale, by_x, by_linear_bias, by_weight, by_bias):
    """Fill in the derivative by ``x`` and add to those by weight and biases."""
    groups = weight.shape[0]
    row = _apart(g.shape[1])
    for n in range(g.shape[0]):
        group = (first_row + n) // repeat % groups
        first, second = _through(g[n], normed[n], slope[n], weight[group], by_weight[group], by_bias[group], row)
        _centred(row, normed[n], scale[n], first, second, by_linear_bias[group], by_x[n])
    return True


def _dense(starts, columns, values, out):
    """Fill in the dense matrix of a CSR slice; False, having done nothing, where a column does not exist."""
    if _outside(columns[starts[0] : starts[-1]], out.shape[1]):
        return False
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
        _put(out, j, v)


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
    eta = _apart(x.shape[1])
    for n in range(x.shape[0]):
        _eta_row(x[n], bias, eta)
        measured = mask[mask_row[n] if has_mask else 0]
        nll[n] = _nll_row(eta, is_poisson, starts[n], starts[n + 1], columns, values, has_mask, measured, by_eta[n])
    return True


def _count_step(x, bias, is_poisson, starts, columns, values, has_mask, mask, mask_row, factor, nll, out, total):
    """Cost of each cell; ``out`` becomes its derivative by ``eta = x + bias`` times the cell's factor, and the sum of that is added to ``total``."""
    if _outside(columns[starts[0] : starts[-1]], x.shape[1]):
        return False
    eta, slope = _apart(x.shape[1]), _apart(x.shape[1])
    for n in range(x.shape[0]):
        _eta_row(x[n], bias, eta)
        measured = mask[mask_row[n] if has_mask else 0]
        nll[n] = _nll_row(eta, is_poisson, starts[n], starts[n + 1], columns, values, has_mask, measured, slope)
        _scaled_row(slope, factor[n], out[n], total)
    return True


def _scaled(x, factor, out, total):
    """Fill in the rows of ``x``, each times its factor, and add them up in ``total``."""
    for n in range(x.shape[0]):
        _scaled_row(x[n], factor[n], out[n], total)
    return True


def _class_costs(x, weight, bias, codes, costs, right, by_logits):
    """Cross entropy of each row's logits ``x @ weight.T + bias`` and its derivative by them; nothing where the code is negative.

    ``right`` becomes the numbers of rows that are guessed right and that have a code.
    """
    right[0], right[1] = 0, 0
    logits = _apart(weight.shape[0])
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


NARROW = types.uint16[:, ::1]
#: What comes in and what goes out: a sparse product is float32 also where the others are bf16.
PAIRS = ((MATRIX, MATRIX), (NARROW, NARROW), (MATRIX, NARROW))


def _two(make):
    """Signatures with float32 and with bf16."""
    return [make(MATRIX), make(NARROW)]


norm_mish = _compile(
    _norm_mish,
    [
        types.boolean(x, MATRIX, MATRIX, MATRIX, NUMBER, types.float64, FLAG, NUMBER, WHOLE, NUMBER, types.float64, MATRIX, out, MATRIX, VECTOR)
        for x, out in PAIRS
    ],
)
norm_mish_back = _compile(
    _norm_mish_back, [types.boolean(g, MATRIX, MATRIX, MATRIX, NUMBER, NUMBER, VECTOR, by_x, MATRIX, MATRIX, MATRIX) for by_x, g in PAIRS]
)
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
