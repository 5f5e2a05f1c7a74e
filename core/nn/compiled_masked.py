"""Compiled loops of scVAEIT for float32 on a CPU: the masked negative binomial, and products with stored entries only.

The polynomials and the way of compiling are those of :mod:`cellweave.core.nn.compiled`.
"""

# Types are those that numba infers, or the signatures at the end.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,import-untyped"
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import math

import numba
import numpy as np
from numba import types

from cellweave.core.nn.compiled import HALF_LOG_2_PI, MATH, F, _compile, _exp, _log, _log1p, _log_wide, _outside

LEAST = F(1e-30)
# Below this product of mean and dispersion logarithm and derivative are series, where their closed forms would lose their digits.
SMALL = F(0.2)


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _means(logits, low, span, mean, slope):
    """Fill in means and their derivatives; return 0, or NaN where a logit is not finite."""
    check = F(0.0)
    for g in range(logits.shape[0]):
        a = logits[g]
        check += a * F(0.0)
        e = _exp(-abs(a))
        r = F(1.0) / (F(1.0) + e)
        p = r if a >= F(0.0) else e * r
        mean[g] = max(low[g] + p * span[g], LEAST)
        slope[g] = e * r * r * span[g]
    return check


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _zeros(mean, dispersion, mask, by_mean, by_dispersion):
    """Cost and derivatives of a row of zeros at the entries of the mask, which is 0 or 1."""
    cost = F(0.0)
    for g in range(mean.shape[0]):
        m, d, w = mean[g], dispersion[g], F(mask[g])
        x = m * d
        inverse = F(1.0) / (F(1.0) + x)
        one_over_d = F(1.0) / d
        short = F(0.11111111)
        short = F(-0.125) + x * short
        short = F(0.14285714) + x * short
        short = F(-0.16666667) + x * short
        short = F(0.2) + x * short
        short = F(-0.25) + x * short
        short = F(0.33333333) + x * short
        short = F(-0.5) + x * short
        short = F(1) + x * short
        short *= x
        log_relative = short if x < SMALL else _log1p(x, inverse)
        cost += w * log_relative * one_over_d
        by_mean[g] = w * inverse
        series = F(0.88888889)
        series = F(-0.875) + x * series
        series = F(0.85714286) + x * series
        series = F(-0.83333333) + x * series
        series = F(0.8) + x * series
        series = F(-0.75) + x * series
        series = F(0.66666667) + x * series
        series = F(-0.5) + x * series
        series *= x * x
        closed = x * inverse - log_relative
        by_dispersion[g] = w * (series if x < SMALL else closed) * one_over_d * one_over_d
    return cost


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _gamma(y):
    """``lgamma`` and ``digamma`` of a positive number, in float64; the recurrence up to 6 without a division a step."""
    below, above = 1.0, 0.0
    while y < 6.0:
        above = above * y + below
        below *= y
        y += 1.0
    log_y, r = math.log(y), 1.0 / y
    r2 = r * r
    series = r * (1 / 12 - r2 * (1 / 360 - r2 * (1 / 1260 - r2 * (1 / 1680 - r2 / 1188))))
    slope = r2 * (1 / 12 - r2 * (1 / 120 - r2 * (1 / 252 - r2 * (1 / 240 - r2 / 132))))
    return (y - 0.5) * log_y - y + HALF_LOG_2_PI + series - _log_wide(below), log_y - 0.5 * r - slope - above / below


def _factorials(values, out):
    """Fill in ``lgamma(x + 1)``."""
    for i in range(values.shape[0]):
        out[i] = F(_gamma(np.float64(values[i]) + 1.0)[0])


def _tables(dispersion, inverse, value, derivative):
    """Fill in the inverse dispersions with their ``lgamma`` and ``digamma``, float64."""
    for g in range(dispersion.shape[0]):
        for k in range(dispersion.shape[1]):
            r = 1.0 / np.float64(dispersion[g, k])
            inverse[g, k] = r
            value[g, k], derivative[g, k] = _gamma(r)


def _rows(
    logits, low, span, dispersion, inverse, lower, lower_slope, dispersion_row, mask, cell, starts, columns, values, factorials, nll, gradients,
    by_logits, by_dispersion,
):  # fmt: skip
    """Fill in the cost of each row and, where ``gradients``, its derivatives; else their first row is overwritten.

    Returns False, having done nothing, where a column does not exist.
    """
    n_features = logits.shape[1]
    if _outside(columns, n_features):
        return False
    mean, slope = np.empty(n_features, F), np.empty(n_features, F)
    for n in range(logits.shape[0]):
        out = n if gradients else 0
        row, w, c = dispersion_row[n], mask[n], cell[n]
        total = _means(logits[n], low, span, mean, slope)
        total += _zeros(mean, dispersion[row], w, by_logits[out], by_dispersion[out])
        for i in range(starts[c], starts[c + 1]):
            g, x = columns[i], values[i]
            if w[g] == 0 or x <= F(0.0):
                continue
            m, r, wide = mean[g], inverse[row, g], np.float64(x)
            both = r + np.float64(m)
            value, derivative = _gamma(wide + r)
            total += F(lower[row, g] - value) + factorials[i] - x * (_log(m) - _log(F(both)))
            by_logits[out, g] -= F(wide * r / (np.float64(m) * both))
            by_dispersion[out, g] += F(r * r * (derivative - lower_slope[row, g] - wide / both))
        nll[n] = total
        if gradients:
            for g in range(n_features):
                by_logits[n, g] *= slope[g]
    return True


def _multiply(starts, columns, values, block, weight, out):
    """Add to ``out`` each stored entry times its row of weights, in the units of its block."""
    if _outside(columns, weight.shape[0]):
        return False
    units = weight.shape[1]
    for n in range(starts.shape[0] - 1):
        for i in range(starts[n], starts[n + 1]):
            g, x = columns[i], values[i]
            target, source = out[n, block[g] * units : (block[g] + 1) * units], weight[g]
            for k in range(units):
                target[k] += x * source[k]
    return True


def _multiply_back(starts, columns, values, block, grad, by_weight):
    """Add to ``by_weight`` what each stored entry contributes to the gradient of its row of weights."""
    units = by_weight.shape[1]
    for n in range(starts.shape[0] - 1):
        for i in range(starts[n], starts[n + 1]):
            g, x = columns[i], values[i]
            target, source = by_weight[g], grad[n, block[g] * units : (block[g] + 1) * units]
            for k in range(units):
                target[k] += x * source[k]
    return True


MATRIX, VECTOR, WHOLE, FLAG, BYTES = types.float32[:, ::1], types.float32[::1], types.int64[::1], types.boolean, types.uint8[:, ::1]
WIDE = types.float64[:, ::1]
rows = _compile(
    _rows,
    types.boolean(
        MATRIX, VECTOR, VECTOR, MATRIX, WIDE, WIDE, WIDE, WHOLE, BYTES, WHOLE, WHOLE, WHOLE, VECTOR, VECTOR, VECTOR, FLAG, MATRIX, MATRIX,
    ),
)  # fmt: skip
tables = _compile(_tables, types.void(MATRIX, WIDE, WIDE, WIDE))
factorials = _compile(_factorials, types.void(VECTOR, VECTOR))
multiply = _compile(_multiply, types.boolean(WHOLE, WHOLE, VECTOR, WHOLE, MATRIX, MATRIX))
multiply_back = _compile(_multiply_back, types.boolean(WHOLE, WHOLE, VECTOR, WHOLE, MATRIX, MATRIX))
