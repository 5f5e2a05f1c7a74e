"""The negative binomial of a minibatch as one compiled loop over the cells, for float32 on a CPU.

The same arithmetic as :mod:`cellweave.core.nn.negative_binomial` makes some thirty passes over matrices of cells by features; here every
cell's features stay in the first-level cache from the softmax to the derivatives. The loops are compiled by numba, which UMAP
brings along; where it is missing or switched off, the passes are used. The machine code is kept on disk, so that only the first run
on a machine waits for the compiler.

``exp`` and ``log`` are polynomials (Cephes, single precision, error about 1e-7), because a call for each element would keep
the compiler from treating sixteen elements at once.
"""

# Types are those that numba infers, or the signatures at the end.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,import-untyped"
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from pathlib import Path

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

F = np.float32
I = np.int32  # noqa: E741
# Counts up to here are multiplied out; above, Stirling's series is exact to float64.
MULTIPLIED = 24
LOG_FACTORIALS = np.array([math.lgamma(k + 1.0) for k in range(MULTIPLIED + 1)], dtype=np.float32)
LOG2_E, LN2_HIGH, LN2_LOW = F(1.44269504088896341), F(0.693359375), F(-2.12194440e-4)
LN2 = math.log(2.0)
HALF_LOG_2_PI = 0.5 * math.log(2.0 * math.pi)
# No assumption that NaN and infinity do not occur: they must reach the loss, where training stops on them.
MATH = {"contract", "nsz", "arcp", "reassoc"}


def _bitcast(result: types.Type, argument: types.Type, llvm: ir.Type):
    @intrinsic
    def cast(typing_context, value):
        def generate(context, builder, signature, args):
            return builder.bitcast(args[0], llvm)

        return result(argument), generate

    return cast


_bits = _bitcast(types.int32, types.float32, ir.IntType(32))
_float = _bitcast(types.float32, types.int32, ir.FloatType())
_bits64 = _bitcast(types.int64, types.float64, ir.IntType(64))
_float64 = _bitcast(types.float64, types.int64, ir.DoubleType())


@numba.njit(inline="always")
def _exp(x):
    x = min(max(x, F(-87.0)), F(88.0))
    # With the bias of the exponent added the number is positive, so that cutting off rounds it.
    biased = I(x * LOG2_E + F(127.5))
    k = F(biased) - F(127.0)
    r = x - k * LN2_HIGH - k * LN2_LOW
    y = F(1.9875691500e-4)
    y = y * r + F(1.3981999507e-3)
    y = y * r + F(8.3334519073e-3)
    y = y * r + F(4.1665795894e-2)
    y = y * r + F(1.6666665459e-1)
    y = y * r + F(5.0000001201e-1)
    return (y * (r * r) + r + F(1.0)) * _float(I(biased << I(23)))


@numba.njit(inline="always")
def _log(x):
    """Logarithm of a positive number that is not subnormal."""
    bits = _bits(x)
    # numba widens the result of integer arithmetic to 64 bits, which would halve the vectors.
    exponent = F(I((bits >> I(23)) & I(255))) - F(126.0)
    m = _float(I((bits & I(0x007FFFFF)) | I(0x3F000000)))
    small = m < F(0.707106781186547524)
    exponent = exponent - F(1.0) if small else exponent
    m = m + m - F(1.0) if small else m - F(1.0)
    z = m * m
    y = F(7.0376836292e-2)
    y = y * m + F(-1.1514610310e-1)
    y = y * m + F(1.1676998740e-1)
    y = y * m + F(-1.2420140846e-1)
    y = y * m + F(1.4249322787e-1)
    y = y * m + F(-1.6668057665e-1)
    y = y * m + F(2.0000714765e-1)
    y = y * m + F(-2.4999993993e-1)
    y = y * m + F(3.3333331174e-1)
    y = y * m * z + exponent * LN2_LOW - F(0.5) * z
    return m + y + exponent * LN2_HIGH


@numba.njit(inline="always")
def _log1p(x, inverse):
    """Logarithm of ``1 + x`` for ``x`` from 0 on, given ``1 / (1 + x)``, which mends what the sum rounded off."""
    u = F(1.0) + x
    return _log(u) + (x - (u - F(1.0))) * inverse


@numba.njit(inline="always")
def _log_wide(x):
    """Logarithm in float32 of a positive float64, which may be beyond the range of float32."""
    bits = _bits64(x)
    exponent = (bits >> np.int64(52)) - np.int64(1023)
    mantissa = _float64((bits & np.int64(0x000FFFFFFFFFFFFF)) | np.int64(0x3FF0000000000000))
    return F(exponent) * F(LN2) + _log(F(mantissa))


@numba.njit(nogil=True)
def _stirling(y):
    """``lgamma`` and ``digamma`` of a positive number, in float64."""
    product, inverse_sum = 1.0, 0.0
    while y < 12.0:
        product *= y
        inverse_sum += 1.0 / y
        y += 1.0
    log_y, r = math.log(y), 1.0 / y
    r2 = r * r
    series = r * (1 / 12 - r2 * (1 / 360 - r2 * (1 / 1260 - r2 * (1 / 1680 - r2 / 1188))))
    slope = r2 * (1 / 12 - r2 * (1 / 120 - r2 * (1 / 252 - r2 * (1 / 240 - r2 / 132))))
    value = (y - 0.5) * log_y - y + HALF_LOG_2_PI + series - math.log(product)
    return value, log_y - 0.5 * r - slope - inverse_sum


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _gather(x, columns, mu, theta, mean, at, product, value, derivative):
    """For the stored entries of a cell, fill in mean, dispersion and gamma terms; ``value`` lacks ``log(product)``."""
    for i in range(x.shape[0]):
        count, g = x[i], columns[i]
        mean[i], at[i] = mu[g], theta[g]
        t = np.float64(theta[g])
        steps = int(count)
        if steps <= MULTIPLIED and steps == count:
            top, below = 0.0, 1.0
            for j in range(steps):
                shifted = t + j
                top = top * shifted + below
                below *= shifted
            product[i], value[i], derivative[i] = below, -LOG_FACTORIALS[steps], F(top / below)
        else:
            upper, lower, factorial = _stirling(count + t), _stirling(t), _stirling(count + 1.0)
            product[i], value[i] = 1.0, F(upper[0] - lower[0] - factorial[0])
            derivative[i] = F(upper[1] - lower[1])


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _softmax(logits, library, mu):
    """Fill in ``library * softmax(logits)``; return 0, or NaN where a logit is not finite."""
    largest, total, check = logits[0], F(0.0), F(0.0)
    for g in range(logits.shape[0]):
        largest = max(largest, logits[g])
    for g in range(logits.shape[0]):
        check += logits[g] * F(0.0)
        share = _exp(logits[g] - largest)
        mu[g] = share
        total += share
    scale = library / total
    for g in range(logits.shape[0]):
        mu[g] *= scale
    return check


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _zeros(mu, theta, inverse, eps, by_mean, by_theta):
    """Cost and derivatives of a cell of zeros under the negative binomial."""
    cost = F(0.0)
    for g in range(mu.shape[0]):
        t = theta[g]
        relative = mu[g] * inverse[g]
        one_over_total = F(1.0) / (mu[g] + t + eps)
        log_relative = _log1p(relative, (t + eps) * one_over_total)
        ratio = t * one_over_total
        cost += t * log_relative
        by_mean[g] = ratio
        by_theta[g] = log_relative - ratio * relative
    return cost


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _inflated(mu, theta, inverse, logits, eps, stored, by_mean, by_theta, by_zero):
    """Cost and derivatives of a cell under the zero-inflated form, as if the counts that ``stored`` marks were just above 0."""
    total, check = F(0.0), F(0.0)
    for g in range(mu.shape[0]):
        t, logit = theta[g], logits[g]
        check += logit * F(0.0)
        relative = mu[g] * inverse[g]
        one_over_total = F(1.0) / (mu[g] + t + eps)
        log_relative = _log1p(relative, (t + eps) * one_over_total)
        odds = logit + t * log_relative
        e_odds, e_logit = _exp(-abs(odds)), _exp(-abs(logit))
        # Two reciprocals of numbers between 1 and 2 by one division.
        both = F(1.0) / ((F(1.0) + e_odds) * (F(1.0) + e_logit))
        r_odds, r_logit = both * (F(1.0) + e_logit), both * (F(1.0) + e_odds)
        p = r_logit if logit >= F(0.0) else e_logit * r_logit
        weight = e_odds * r_odds if odds >= F(0.0) else r_odds
        is_stored = stored[g] != F(0.0)
        # softplus(-logit) - softplus(-odds) at a zero, softplus(-logit) + odds elsewhere, with one logarithm.
        inside = F(1.0) + e_logit
        inside = inside if is_stored else inside * r_odds
        beside = odds if is_stored else -max(-odds, F(0.0))
        total += max(-logit, F(0.0)) + beside + _log(inside)
        weight = F(1.0) if is_stored else weight
        ratio = t * one_over_total
        by_mean[g] = weight * ratio
        by_theta[g] = weight * (log_relative - ratio * relative)
        no_zero = r_odds if odds >= F(0.0) else e_odds * r_odds
        by_zero[g] = p if is_stored else p - no_zero
    return total + check


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _stored(x, eps, mean, at, product, value, derivative):
    """What the stored entries add to the cost; value and derivative become what they add to the derivatives."""
    cost = F(0.0)
    for i in range(x.shape[0]):
        shifted = mean[i] + eps
        total = shifted + at[i]
        cost -= value[i] + _log_wide(product[i]) + x[i] * _log(shifted / total)
        value[i] = -x[i] * at[i] / (shifted * total)
        derivative[i] = x[i] / total - derivative[i]
    return cost


@numba.njit(nogil=True)
def _scatter_add(columns, value, derivative, by_mean, by_theta):
    for i in range(columns.shape[0]):
        by_mean[columns[i]] += value[i]
        by_theta[columns[i]] += derivative[i]


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _through_softmax(mu, library, by_mean):
    """Turn the derivatives with respect to the mean into those of the logits, and return that of the library."""
    total = F(0.0)
    for g in range(mu.shape[0]):
        by_mean[g] *= mu[g]
        total += by_mean[g]
    by_library = total / library
    for g in range(mu.shape[0]):
        by_mean[g] -= mu[g] * by_library
    return by_library


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _reciprocals(theta, eps, inverse):
    for g in range(theta.shape[0]):
        inverse[g] = F(1.0) / (theta[g] + eps)


@numba.njit(nogil=True)
def _outside(columns, n_features):
    """Whether some column does not exist; compiled loops do not look, and would write into foreign memory."""
    wrong = False
    for i in range(columns.shape[0]):
        wrong |= (columns[i] < 0) | (columns[i] >= n_features)
    return wrong


def _rows(
    mean, library, is_softmax, theta, theta_row, logits, is_inflated, starts, columns, values, eps,
    nll, gradients, by_mean, by_library, by_theta, by_zero,
):
    """Fill in the cost of each cell and, where ``gradients``, its derivatives; else their first row is overwritten.

    Returns False, having done nothing, where a column does not exist.
    """
    n_features = mean.shape[1]
    if _outside(columns[starts[0] : starts[-1]], n_features):
        return False
    longest = 0
    for n in range(mean.shape[0]):
        longest = max(longest, starts[n + 1] - starts[n])
    scratch, stored, inverse = np.empty(n_features, F), np.zeros(n_features, F), np.empty(n_features, F)
    product, entries = np.empty(longest, np.float64), np.empty((4, longest), F)
    for n in range(mean.shape[0]):
        out = n if gradients else 0
        x, at = values[starts[n] : starts[n + 1]], columns[starts[n] : starts[n + 1]]
        k = x.shape[0]
        t, mu, total = theta[theta_row[n]], mean[n], F(0.0)
        if n == 0 or theta_row[n] != theta_row[n - 1]:
            _reciprocals(t, eps, inverse)
        if is_softmax:
            mu = scratch
            total += _softmax(mean[n], library[n], mu)
        if is_inflated:
            for i in range(k):
                stored[at[i]] = x[i]
            total += _inflated(mu, t, inverse, logits[n], eps, stored, by_mean[out], by_theta[out], by_zero[out])
            for i in range(k):
                stored[at[i]] = F(0.0)
        else:
            total += _zeros(mu, t, inverse, eps, by_mean[out], by_theta[out])
        own_mean, own_theta, value, derivative = entries[0, :k], entries[1, :k], entries[2, :k], entries[3, :k]
        _gather(x, at, mu, t, own_mean, own_theta, product[:k], value, derivative)
        total += _stored(x, eps, own_mean, own_theta, product[:k], value, derivative)
        if gradients:
            _scatter_add(at, value, derivative, by_mean[n], by_theta[n])
        nll[n] = total
        if is_softmax and gradients:
            if library[n] > F(0.0):
                by_library[n] = _through_softmax(mu, library[n], by_mean[n])
            else:  # an empty cell: only a larger library would cost anything
                _softmax(mean[n], F(1.0), mu)
                by_library[n] = _through_softmax(mu, F(1.0), by_mean[n])
                by_mean[n, :] = F(0.0)
    return True


def _log1p_rows(starts, columns, values, dense, total):
    """Fill in dense ``log(1 + x)`` and each cell's total; False, having done nothing, where a column does not exist."""
    if _outside(columns[starts[0] : starts[-1]], dense.shape[1]):
        return False
    for n in range(dense.shape[0]):
        row, summed = dense[n], F(0.0)
        row[:] = F(0.0)
        for i in range(starts[n], starts[n + 1]):
            summed += values[i]
            row[columns[i]] += _log1p(values[i], F(1.0) / (F(1.0) + values[i]))
        total[n] = summed
    return True


@lru_cache(maxsize=1)
def _fingerprint():
    """A digest of all sources of compiled loops: those of one file call those of another, which numba does not look at when it keeps machine code."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()


def _compile(function, signature):
    options = {"nogil": True, "error_model": "numpy", "fastmath": MATH}
    try:
        made = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no folder it may keep machine code in
        return numba.njit(signature, **options)(function)
    kept = getattr(getattr(made, "_cache", None), "_cache_file", None)
    if kept is not None and hasattr(kept, "_source_stamp"):
        kept._source_stamp = (kept._source_stamp, _fingerprint())
    for one in signature if isinstance(signature, list) else [signature]:
        made.compile(one)
    made.disable_compile()
    return made


def _features():
    """What numba compiles for, which its settings may make less than the processor has; nothing where it does not say."""
    try:
        names = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
    except (AttributeError, IndexError):  # numba promises neither; without features the loops are right, only slower
        return frozenset()
    return frozenset(name[1:] for name in names if name.startswith("+"))


FEATURES = _features()
MATRIX, VECTOR, WHOLE, FLAG = types.float32[:, ::1], types.float32[::1], types.int64[::1], types.boolean
rows = _compile(
    _rows,
    types.boolean(
        MATRIX, VECTOR, FLAG, MATRIX, WHOLE, MATRIX, FLAG, WHOLE, WHOLE, VECTOR, types.float32,
        VECTOR, FLAG, MATRIX, VECTOR, MATRIX, MATRIX,
    ),
)
log1p_rows = _compile(_log1p_rows, types.boolean(WHOLE, WHOLE, VECTOR, MATRIX, VECTOR))
