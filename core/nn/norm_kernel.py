"""Compiled loops of a layer's bias, norm, Mish and dropout in a training step that is written out instead of traced.

Matrices that feed a product, or come out of one, and the slopes that what flows back is multiplied with are float32 or bf16. All arithmetic is float32.
"""

# Types are the signatures at the end.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,import-untyped"
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import math

import numba
import numpy as np
from numba import types

from cellweave.core.nn.compiled import FLAG, MATH, MATRIX, VECTOR, WHOLE, F, _compile
from cellweave.core.nn.fused_kernels import NUMBER, U, _hash, mished
from cellweave.core.nn.half_kernel import NARROW, _wide, keep, row_for
from cellweave.core.nn.matrix_kernel import bare
from cellweave.core.nn.step_program import APART

FAST = {"nogil": True, "fastmath": MATH, "error_model": "numpy"}


@numba.njit(**FAST)
def apart(size):
    """Memory with room around it.

    Where a result began fewer bytes behind what it is made of than are treated at once, the compiled loop would go element by element, and a sum
    would be rounded otherwise: the same step would depend on where the memory lay.
    """
    return np.empty(size + 2 * APART, F)[APART : APART + size]


@numba.njit(**FAST)
def biased(x, bias, out):
    """Fill in ``x + bias``; return its mean."""
    total = F(0.0)
    for j in range(out.shape[0]):
        v = _wide(x[j]) + bias[j]
        out[j] = v
        total += v
    return total / F(out.shape[0])


@numba.njit(**FAST)
def reciprocal_deviation(x, mean, eps):
    """One over the standard deviation of a row of a known mean."""
    square = F(0.0)
    for j in range(x.shape[0]):
        d = x[j] - mean
        square += d * d
    return F(1.0) / F(math.sqrt(square / F(x.shape[0]) + eps))


@numba.njit(**FAST)
def _normed_again(x, bias, mean, scale, out):
    for j in range(out.shape[0]):
        out[j] = (_wide(x[j]) + bias[j] - mean) * scale


@numba.njit(**FAST)
def _mish(x, mean, scale, weight, bias, out, slope):
    """Norm a row in place, and fill in what follows from it and the slope of that."""
    for j in range(x.shape[0]):
        v = (x[j] - mean) * scale
        x[j] = v
        out[j], slope[j] = mished(v * weight[j] + bias[j])


@numba.njit(**FAST)
def _mish_dropped(x, mean, scale, weight, bias, first, seed, threshold, keep_scale, out, slope):
    """The same where some are left out."""
    for j in range(x.shape[0]):
        v = (x[j] - mean) * scale
        x[j] = v
        kept = keep_scale if _hash(first, j, seed) >= threshold else F(0.0)
        value, steep = mished(v * weight[j] + bias[j])
        out[j], slope[j] = kept * value, kept * steep


@numba.njit(**FAST)
def activate(x, mean, scale, weight, bias, drops, first, seed, threshold, keep_scale, out, slope):
    """Norm a row in place, and fill in ``dropout(mish(x * weight + bias))`` and its slope by the normed values times weight; all float32."""
    if drops:
        _mish_dropped(x, mean, scale, weight, bias, first, seed, threshold, keep_scale, out, slope)
    else:
        _mish(x, mean, scale, weight, bias, out, slope)


def _norm_mish(x, linear_bias, weight, bias, repeat, eps, drops, first_row, seeds, threshold, keep_scale, out, slope, mean, scale):
    """Fill in ``dropout(mish(layer_norm(x + linear_bias)))``, the slope by what follows the normed values, and means and reciprocal deviations.

    The rows of the biases and of weight hold in turn, each for ``repeat`` rows of ``x``. ``seeds`` holds one, which with an element's place decides
    whether it is left out.
    """
    width, groups, eps, keep_scale = x.shape[1], weight.shape[0], F(eps), F(keep_scale)
    seed, threshold = U(seeds[0]), U(threshold)
    room = apart(width), apart(width), apart(width)
    normed, own, steep = bare(room[0]), bare(room[1]), bare(room[2])
    x, linear_bias, weight, bias, out, slope = bare(x), bare(linear_bias), bare(weight), bare(bias), bare(out), bare(slope)
    for n in range(x.shape[0]):
        group = (first_row + n) // repeat % groups
        mean[n] = biased(x[n], linear_bias[group], normed)
        scale[n] = reciprocal_deviation(normed, mean[n], eps)
        to, by, first = row_for(out[n], own), row_for(slope[n], steep), (first_row + n) * width
        activate(normed, mean[n], scale[n], weight[group], bias[group], drops, first, seed, threshold, keep_scale, to, by)
        keep(to, out[n])
        keep(by, slope[n])
    return room[0].size + room[1].size + room[2].size > 0  # the memory must outlive what looks into it


@numba.njit(**FAST)
def through(g, normed, slope, weight, by_weight, by_bias, out):
    """Fill in the derivative by the normed values; return its mean and that of its product with them."""
    first, second = F(0.0), F(0.0)
    for j in range(out.shape[0]):
        passed = _wide(g[j]) * _wide(slope[j])
        by_bias[j] += passed
        by_weight[j] += passed * normed[j]
        passed *= weight[j]
        out[j] = passed
        first += passed
        second += passed * normed[j]
    return first / F(out.shape[0]), second / F(out.shape[0])


@numba.njit(**FAST)
def centred(passed, normed, scale, first, second, by_linear_bias, out):
    """Fill in the derivative by what was normed; all float32."""
    for j in range(passed.shape[0]):
        v = scale * (passed[j] - first - normed[j] * second)
        by_linear_bias[j] += v
        out[j] = v


def _norm_mish_back(g, x, slope, linear_bias, weight, repeat, first_row, mean, scale, by_linear_bias, by_weight, by_bias):
    """Turn ``x`` into the derivative by it, and add to those by weight and biases.

    The normed values are made again: to keep them would take more memory, and more time to reach it.
    """
    width, groups = g.shape[1], weight.shape[0]
    room = apart(width), apart(width), apart(width)
    normed, row, own = bare(room[0]), bare(room[1]), bare(room[2])
    g, x, slope, linear_bias, weight = bare(g), bare(x), bare(slope), bare(linear_bias), bare(weight)
    by_linear_bias, by_weight, by_bias = bare(by_linear_bias), bare(by_weight), bare(by_bias)
    for n in range(g.shape[0]):
        group = (first_row + n) // repeat % groups
        _normed_again(x[n], linear_bias[group], mean[n], scale[n], normed)
        first, second = through(g[n], normed, slope[n], weight[group], by_weight[group], by_bias[group], row)
        to = row_for(x[n], own)
        centred(row, normed, scale[n], first, second, by_linear_bias[group], to)
        keep(to, x[n])
    return room[0].size + room[1].size + room[2].size > 0


#: What comes in and what goes out: a sparse product is float32 also where the others are bf16.
PAIRS = ((MATRIX, MATRIX), (NARROW, NARROW), (MATRIX, NARROW))
norm_mish = _compile(
    _norm_mish,
    [
        types.boolean(x, MATRIX, MATRIX, MATRIX, NUMBER, types.float64, FLAG, NUMBER, WHOLE, NUMBER, types.float64, out, out, VECTOR, VECTOR)
        for x, out in PAIRS
    ],
)
norm_mish_back = _compile(
    _norm_mish_back, [types.boolean(g, x, g, MATRIX, MATRIX, NUMBER, NUMBER, VECTOR, VECTOR, MATRIX, MATRIX, MATRIX) for x, g in PAIRS]
)
