"""Compiled loops for networks of layer norm and Mish, and for first layers that read sparse counts; float32 on a CPU.

In passes of torch a layer's norm, activation and dropout cost more than its matrix product: each pass moves the whole matrix through
memory, Mish takes two transcendental functions a pass, and dropout draws a random number for every element from one serial stream. Here a
row stays in the first-level cache, Mish costs one exponential (``tanh(softplus(h)) = e(e + 2) / (e(e + 2) + 2)`` with ``e = exp(h)``), its
derivative is kept for the backward pass, and what is left out is decided by a hash of the element's place and one seed drawn from torch's
generator, so that a resumed run leaves out the same elements.
"""

# Types are the signatures at the end.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,import-untyped"
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import math

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from cellweave.core.nn.compiled import FLAG, MATH, MATRIX, VECTOR, WHOLE, F, _compile, _exp, _log, _outside
from cellweave.core.nn.matrix_kernel import fetch

U = np.uint32
HALF_LOG_2_PI = F(0.5 * math.log(2.0 * math.pi))
#: Numbers of four bytes that memory brings at once.
LINE = 16
LARGEST = F(30.0)  # above, tanh(softplus(h)) is 1 in float32


@intrinsic
def _hash(typing_context, first, offset, seed):
    """A 32-bit hash of the place ``first + offset`` (the finaliser of MurmurHash3), wide enough apart for neighbouring places.

    numba would compute it in 64 bits, which halves the vectors and multiplies slowly.
    """
    word = ir.IntType(32)

    def generate(context, builder, signature, args):
        first, offset, seed = args
        place = builder.add(builder.trunc(first, word), builder.trunc(offset, word))

        def mixed(value, shift):
            return builder.xor(value, builder.lshr(value, ir.Constant(word, shift)))

        h = builder.xor(builder.mul(place, ir.Constant(word, 0x9E3779B9)), seed)
        h = builder.mul(mixed(h, 16), ir.Constant(word, 0x85EBCA6B))
        h = builder.mul(mixed(h, 13), ir.Constant(word, 0xC2B2AE35))
        return mixed(h, 16)

    return types.uint32(types.int64, types.int64, types.uint32), generate


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _moments(x, eps):
    total = F(0.0)
    for j in range(x.shape[0]):
        total += x[j]
    mean = total / F(x.shape[0])
    square = F(0.0)
    for j in range(x.shape[0]):
        d = x[j] - mean
        square += d * d
    return mean, F(1.0) / F(math.sqrt(square / F(x.shape[0]) + eps))


@numba.njit(inline="always")
def mished(h):
    """Return Mish of a number and its derivative."""
    e = _exp(min(h, LARGEST))
    top = e * (e + F(2.0))
    below = F(1.0) / (top + F(2.0))
    gate = top * below
    return h * gate, gate + h * (F(4.0) * e * (e + F(1.0)) * below * below)


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _mish_row(x, weight, bias, mean, scale, out, slope):
    """``mish(norm(x))`` and its derivative by the normed value."""
    for j in range(x.shape[0]):
        out[j], slope[j] = mished((x[j] - mean) * scale * weight[j] + bias[j])


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _drop_row(out, slope, first, seed, threshold, keep_scale):
    for j in range(out.shape[0]):
        kept = keep_scale if _hash(first, j, seed) >= threshold else F(0.0)
        out[j] *= kept
        slope[j] *= kept


def _norm_mish(x, weight, bias, repeat, eps, drops, first_row, seed, threshold, keep_scale, out, slope, mean, scale):
    """Fill in ``dropout(mish(layer_norm(x)))``, its derivative by the normed value, and each row's mean and reciprocal deviation.

    The rows of weight and bias hold in turn, each for ``repeat`` rows of ``x``.
    """
    width, groups, eps, keep_scale = x.shape[1], weight.shape[0], F(eps), F(keep_scale)
    seed, threshold = U(seed), U(threshold)
    for n in range(x.shape[0]):
        group = (first_row + n) // repeat % groups
        m, s = _moments(x[n], eps)
        mean[n], scale[n] = m, s
        _mish_row(x[n], weight[group], bias[group], m, s, out[n], slope[n])
        if drops:
            _drop_row(out[n], slope[n], (first_row + n) * width, seed, threshold, keep_scale)
    return True


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _norm_row(g, x, slope, weight, mean, scale, by_x, by_weight, by_bias):
    """Derivatives of one row through activation and norm."""
    first, second = F(0.0), F(0.0)
    for j in range(x.shape[0]):
        through = g[j] * slope[j]
        normed = (x[j] - mean) * scale
        by_bias[j] += through
        by_weight[j] += through * normed
        through *= weight[j]
        by_x[j] = through
        first += through
        second += through * normed
    first, second = first / F(x.shape[0]), second / F(x.shape[0])
    for j in range(x.shape[0]):
        by_x[j] = scale * (by_x[j] - first - (x[j] - mean) * scale * second)


def _norm_mish_back(g, x, slope, weight, repeat, first_row, mean, scale, by_x, by_weight, by_bias):
    """Fill in the derivative by ``x`` and add to those by weight and bias."""
    groups = weight.shape[0]
    for n in range(x.shape[0]):
        group = (first_row + n) // repeat % groups
        _norm_row(g[n], x[n], slope[n], weight[group], mean[n], scale[n], by_x[n], by_weight[group], by_bias[group])
    return True


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _add_rows(out, g, places, entries):
    """Add the rows ``places`` of ``g``, each times its entry; four at a time, since storing is what costs."""
    n = places.shape[0]
    whole = n - n % 4
    for at in range(0, whole, 4):
        a, b, c, d = g[places[at]], g[places[at + 1]], g[places[at + 2]], g[places[at + 3]]
        p, q, r, s = entries[at], entries[at + 1], entries[at + 2], entries[at + 3]
        for j in range(out.shape[0]):
            out[j] += (p * a[j] + q * b[j]) + (r * c[j] + s * d[j])
    for at in range(whole, n):
        a, p = g[places[at]], entries[at]
        for j in range(out.shape[0]):
            out[j] += p * a[j]


def _sparse_backward(starts, columns, values, g, pointers, places, entries, by_weight):
    """Add ``x.T @ g`` to ``by_weight``: the stored entries are sorted by column first.

    Returns False, having done nothing, where a column does not exist.
    """
    n_features = by_weight.shape[0]
    if _outside(columns[starts[0] : starts[-1]], n_features):
        return False
    pointers[:] = 0
    for i in range(starts[0], starts[-1]):
        pointers[columns[i] + 1] += 1
    for j in range(n_features):
        pointers[j + 1] += pointers[j]
    for n in range(g.shape[0]):
        for i in range(starts[n], starts[n + 1]):
            at = pointers[columns[i]]
            places[at], entries[at] = n, values[i]
            pointers[columns[i]] = at + 1
    start = 0
    for j in range(n_features):
        stop = pointers[j]
        _add_rows(by_weight[j], g, places[start:stop], entries[start:stop])
        start = stop
    return True


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _poisson_row(eta, by_eta):
    total, check = F(0.0), F(0.0)
    for j in range(eta.shape[0]):
        check += eta[j] * F(0.0)
        rate = _exp(eta[j])
        by_eta[j] = rate
        total += rate
    return total + check


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _bernoulli_row(eta, by_eta):
    total, check = F(0.0), F(0.0)
    for j in range(eta.shape[0]):
        check += eta[j] * F(0.0)
        e = _exp(-abs(eta[j]))
        share = F(1.0) / (F(1.0) + e)
        total += max(eta[j], F(0.0)) - _log(share)
        by_eta[j] = share if eta[j] >= F(0.0) else e * share
    return total + check


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _poisson_masked(eta, mask, by_eta):
    total, check = F(0.0), F(0.0)
    for j in range(eta.shape[0]):
        check += eta[j] * F(0.0)
        rate = _exp(eta[j]) * mask[j]
        by_eta[j] = rate
        total += rate
    return total + check


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _bernoulli_masked(eta, mask, by_eta):
    total, check = F(0.0), F(0.0)
    for j in range(eta.shape[0]):
        check += eta[j] * F(0.0)
        e = _exp(-abs(eta[j]))
        share = F(1.0) / (F(1.0) + e)
        total += (max(eta[j], F(0.0)) - _log(share)) * mask[j]
        by_eta[j] = (share if eta[j] >= F(0.0) else e * share) * mask[j]
    return total + check


def _count_nll(eta, is_poisson, starts, columns, values, has_mask, mask, mask_row, nll, gradients, by_eta):
    """Cost of each cell and, where ``gradients``, its derivative by ``eta``; else the first row is overwritten.

    Poisson with ``eta`` the log rate, with Stirling's constant of counts above 1; or Bernoulli with ``eta`` the logit. Returns False, having
    done nothing, where a column does not exist.
    """
    if _outside(columns[starts[0] : starts[-1]], eta.shape[1]):
        return False
    for n in range(eta.shape[0]):
        out = by_eta[n if gradients else 0]
        if has_mask:
            measured = mask[mask_row[n]]
            total = _poisson_masked(eta[n], measured, out) if is_poisson else _bernoulli_masked(eta[n], measured, out)
        else:
            measured = mask[0]
            total = _poisson_row(eta[n], out) if is_poisson else _bernoulli_row(eta[n], out)
        wide = np.float64(total)
        for i in range(starts[n], starts[n + 1]):
            j, x = columns[i], values[i]
            if has_mask and measured[j] == F(0.0):
                continue
            wide -= np.float64(x * eta[n, j])
            out[j] -= x
            if is_poisson and x > F(1.0):
                wide += np.float64(x * (_log(x) - F(1.0)) + F(0.5) * _log(x) + HALF_LOG_2_PI)
        nll[n] = wide
    return True


def _row_starts(starts, rows, own_starts):
    """Fill in where some rows of a CSR matrix begin when they follow one another; return how much they store, -1 where a row does not exist."""
    total = 0
    for n in range(rows.shape[0]):
        row = rows[n]
        if row < 0 or row + 1 >= starts.shape[0]:
            return -1
        own_starts[n] = total
        total += starts[row + 1] - starts[row]
    own_starts[rows.shape[0]] = total
    return total


def _gather_rows(starts, columns, values, rows, own_starts, own_columns, own_values):
    """Copy some rows of a CSR matrix, whose new starts are known, one after the other."""
    for n in range(rows.shape[0]):
        first, to = starts[rows[n]], own_starts[n]
        if n + 1 < rows.shape[0]:  # rows lie anywhere, and the processor cannot guess where the next one does
            for i in range(starts[rows[n + 1]], starts[rows[n + 1] + 1], LINE):
                fetch(columns.ctypes.data + 4 * i)
                fetch(values.ctypes.data + 4 * i)
        for i in range(own_starts[n + 1] - to):
            own_columns[to + i] = columns[first + i]
            own_values[to + i] = values[first + i]
    return True


NUMBER = types.int64
SHORT = types.int32[::1]
row_starts = _compile(_row_starts, NUMBER(SHORT, WHOLE, WHOLE))
gather_rows = _compile(_gather_rows, types.boolean(SHORT, SHORT, VECTOR, WHOLE, WHOLE, WHOLE, VECTOR))
norm_mish = _compile(
    _norm_mish,
    types.boolean(
        # Numbers as Python has them: other types would be looked up anew at every call.
        MATRIX, MATRIX, MATRIX, NUMBER, types.float64, FLAG, NUMBER, NUMBER, NUMBER, types.float64, MATRIX, MATRIX, VECTOR, VECTOR
    ),
)
norm_mish_back = _compile(
    _norm_mish_back, types.boolean(MATRIX, MATRIX, MATRIX, MATRIX, NUMBER, NUMBER, VECTOR, VECTOR, MATRIX, MATRIX, MATRIX)
)
sparse_backward = _compile(_sparse_backward, types.boolean(WHOLE, WHOLE, VECTOR, MATRIX, WHOLE, WHOLE, VECTOR, MATRIX))
count_nll = _compile(
    _count_nll, types.boolean(MATRIX, FLAG, WHOLE, WHOLE, VECTOR, FLAG, MATRIX, WHOLE, VECTOR, FLAG, MATRIX)
)
