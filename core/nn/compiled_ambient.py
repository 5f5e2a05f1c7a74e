"""The ambient models' likelihood of a minibatch as one compiled loop over the cells, for float32 on a CPU.

From the decoder's logits to the derivatives a cell's features stay in the first-level cache: softplus, background, feature scaling, library size, a drawn
dispersion and the negative binomial of :mod:`cellweave.core.nn.compiled`. In passes of torch the same takes some thirty of them over matrices
of cells by features.
"""

# Types are those that numba infers, or the signatures at the end.
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
    _gather,
    _log1p,
    _outside,
    _reciprocals,
    _scatter_add,
    _stored,
    _zeros,
)

LARGEST_LOG, SMALLEST_MEAN = F(15.0), F(1e-10)


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _dispersion(log_theta, sd, noise, drawn, theta):
    """Fill in ``exp(log_theta + sd * noise)``; return 0, or NaN where an argument is not finite."""
    check = F(0.0)
    for g in range(theta.shape[0]):
        value = log_theta[g] + sd[g] * noise[g] if drawn else log_theta[g]
        check += value * F(0.0)
        theta[g] = _exp(min(max(value, -LARGEST_LOG), LARGEST_LOG))
    return check


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _means(logits, library, background, factor, mu):
    """Fill in ``library * (softplus(logit) + background) * factor``; return 0, or NaN where a logit is not finite."""
    check = F(0.0)
    for g in range(mu.shape[0]):
        x = logits[g]
        check += x * F(0.0)
        e = _exp(-abs(x))
        rho = max(x, F(0.0)) + _log1p(e, F(1.0) / (F(1.0) + e))
        mu[g] = max(library * (rho + background[g]) * factor[g], SMALLEST_MEAN)
    return check


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _through(mu, theta, library, factor, by_mean, by_theta):
    """Turn derivatives with respect to mean and dispersion into those of expression and log dispersion; return that of the library."""
    total = F(0.0)
    for g in range(mu.shape[0]):
        total += by_mean[g] * mu[g]
        by_mean[g] *= library * factor[g]
        by_theta[g] *= theta[g]
    return total / library


def _forward(
    logits, library, background, background_row, factor, factor_row, log_theta, sd, theta_row, noise, drawn, starts, columns, values,
    nll, gradients, by_expression, by_log_theta, by_library,
):
    """Fill in the cost of each cell and, where ``gradients``, its derivatives; else their first row is overwritten.

    Returns False, having done nothing, where a column does not exist.
    """
    n_features = logits.shape[1]
    if _outside(columns[starts[0] : starts[-1]], n_features):
        return False
    longest = 0
    for n in range(logits.shape[0]):
        longest = max(longest, starts[n + 1] - starts[n])
    mu, theta, inverse = np.empty(n_features, F), np.empty(n_features, F), np.empty(n_features, F)
    product, entries = np.empty(longest, np.float64), np.empty((4, longest), F)
    for n in range(logits.shape[0]):
        out = n if gradients else 0
        x, at = values[starts[n] : starts[n + 1]], columns[starts[n] : starts[n + 1]]
        k = x.shape[0]
        y, size = factor[factor_row[n]], library[n]
        total = _dispersion(log_theta[theta_row[n]], sd[theta_row[n]], noise[n if drawn else 0], drawn, theta)
        total += _means(logits[n], size, background[background_row[n]], y, mu)
        _reciprocals(theta, F(0.0), inverse)
        total += _zeros(mu, theta, inverse, F(0.0), by_expression[out], by_log_theta[out])
        own_mean, own_theta, value, derivative = entries[0, :k], entries[1, :k], entries[2, :k], entries[3, :k]
        _gather(x, at, mu, theta, own_mean, own_theta, product[:k], value, derivative)
        total += _stored(x, F(0.0), own_mean, own_theta, product[:k], value, derivative)
        nll[n] = total
        if gradients:
            _scatter_add(at, value, derivative, by_expression[n], by_log_theta[n])
            by_library[n] = _through(mu, theta, size, y, by_expression[n], by_log_theta[n])
    return True


# One short loop for each gradient: with more arrays in one the compiler cannot rule out that they overlap, and treats one element at a time.


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _by_logits(g, logits, by_expression, out):
    for j in range(out.shape[0]):
        x = logits[j]
        e = _exp(-abs(x))
        share = F(1.0) / (F(1.0) + e)
        out[j] = g * by_expression[j] * (share if x >= F(0.0) else e * share)


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _add(g, values, out):
    for j in range(out.shape[0]):
        out[j] += g * values[j]


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _add_product(g, values, others, out):
    for j in range(out.shape[0]):
        out[j] += g * values[j] * others[j]


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _add_by_factor(g, logits, background, by_expression, out):
    """Add what is to be divided by the factor."""
    for j in range(out.shape[0]):
        x = logits[j]
        e = _exp(-abs(x))
        rho = max(x, F(0.0)) + _log1p(e, F(1.0) / (F(1.0) + e))
        out[j] += g * by_expression[j] * (rho + background[j])


def _backward(
    first, last, grad, logits, background, background_row, factor_row, theta_row, noise, drawn, by_expression, by_log_theta,
    wanted, by_logits, by_background, by_factor, by_theta, by_sd,
):
    """Fill in or add up the gradients of features ``first:last`` from that of each cell's cost, ``(n_cells,)``.

    ``wanted`` says whether background, factor, dispersion and its spread have gradients; that of the factor is still to be divided by the factor.
    """
    for n in range(logits.shape[0]):
        g, x, slope, spread = grad[n], logits[n, first:last], by_expression[n, first:last], by_log_theta[n, first:last]
        _by_logits(g, x, slope, by_logits[n, first:last])
        if wanted[0]:
            _add(g, slope, by_background[background_row[n], first:last])
        if wanted[1]:
            _add_by_factor(g, x, background[background_row[n], first:last], slope, by_factor[factor_row[n], first:last])
        if wanted[2]:
            _add(g, spread, by_theta[theta_row[n], first:last])
        if wanted[3] and drawn:
            _add_product(g, spread, noise[n, first:last], by_sd[theta_row[n], first:last])


TABLE_AND_ROW = (MATRIX, WHOLE)
forward = _compile(
    _forward,
    types.boolean(
        MATRIX, VECTOR, *TABLE_AND_ROW, *TABLE_AND_ROW, MATRIX, MATRIX, WHOLE, MATRIX, FLAG, WHOLE, WHOLE, VECTOR,
        VECTOR, FLAG, MATRIX, MATRIX, VECTOR,
    ),
)  # fmt: skip
backward = _compile(
    _backward,
    types.void(
        types.int64, types.int64, VECTOR, MATRIX, *TABLE_AND_ROW, WHOLE, WHOLE, MATRIX, FLAG, MATRIX, MATRIX,
        types.boolean[::1], MATRIX, MATRIX, MATRIX, MATRIX, MATRIX,
    ),
)  # fmt: skip
