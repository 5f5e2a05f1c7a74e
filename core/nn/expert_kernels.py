"""Compiled loops of the product of experts of MIDAS, with its draws, divergences and the alignment of the modalities; float32 on a CPU.

The same arithmetic as :func:`cellweave.core.nn.midas_parts.product` and the terms that follow it, in one pass forth and one back.
"""

# Types are the signatures at the end.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,import-untyped"
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import math

import numba
import numpy as np
from numba import types

from cellweave.core.nn.compiled import FLAG, MATH, MATRIX, F, _compile, _exp, _log
from cellweave.core.nn.fused_kernels import NUMBER
from cellweave.core.nn.matrix_kernel import bare

HALF, ONE, ZERO = F(0.5), F(1.0), F(0.0)
FAST = {"nogil": True, "fastmath": MATH, "error_model": "numpy"}


@numba.njit(**FAST)
def _precisions(row, bias, size, mean, precision):
    """Fill in means and precisions of one expert of one cell; what is not a number stays so."""
    for i in range(size):
        mean[i] = row[i] + bias[i]
        log_var = row[size + i] + bias[size + i]
        precision[i] = _exp(-log_var) + log_var * ZERO


@numba.njit(**FAST)
def _product(precision, weighted, noise, mean, var, z):
    for i in range(mean.shape[0]):
        v = ONE / precision[i]
        var[i] = v
        mean[i] = weighted[i] * v
        z[i] = mean[i] + F(math.sqrt(v)) * noise[i]


@numba.njit(**FAST)
def _divergence(mean, var, start, stop):
    total = ZERO
    for i in range(start, stop):
        total += mean[i] * mean[i] + var[i] - ONE - _log(var[i])
    return HALF * total


def _experts(out, bias, n_experts, spoken, batch_out, batch_bias, noise, n_biological, means, precisions, mean, var, z, terms):
    """Fill in posteriors, draws and terms of each cell.

    Row ``m * n_cells + n`` of ``out`` holds mean and log variance of modality ``m``; the last ``n_cells`` rows of ``means`` and ``precisions`` are the
    batch's. The first ``n_cells`` rows of ``mean``, ``var``, ``z`` and ``noise`` are of all modalities together, those after of each. The rows of
    ``terms`` are the divergences of c and of u and the alignment.
    """
    n_cells, size = terms.shape[1], z.shape[1]
    base, base_weighted, total, weighted = np.empty(size, F), np.empty(size, F), np.empty(size, F), np.empty(size, F)
    own, own_weighted = np.empty(size, F), np.empty(size, F)
    out, bias, batch_out, batch_bias, noise = bare(out), bare(bias), bare(batch_out), bare(batch_bias), bare(noise)
    means, precisions, mean, var, z = bare(means), bare(precisions), bare(mean), bare(var), bare(z)
    for n in range(n_cells):
        base[:], base_weighted[:] = ONE, ZERO
        if spoken:
            place = n_experts * n_cells + n
            _precisions(batch_out[n], batch_bias[0], size, means[place], precisions[place])
            for i in range(size):
                base[i] += precisions[place, i]
                base_weighted[i] = means[place, i] * precisions[place, i]
        total[:], weighted[:] = base, base_weighted
        for m in range(n_experts):
            place, to = m * n_cells + n, (m + 1) * n_cells + n
            _precisions(out[place], bias[0], size, means[place], precisions[place])
            for i in range(size):
                p, w = precisions[place, i], means[place, i] * precisions[place, i]
                total[i] += p
                weighted[i] += w
                own[i] = base[i] + p
                own_weighted[i] = base_weighted[i] + w
            _product(own, own_weighted, noise[to], mean[to], var[to], z[to])
        _product(total, weighted, noise[n], mean[n], var[n], z[n])
        terms[0, n] = _divergence(mean[n], var[n], 0, n_biological)
        terms[1, n] = _divergence(mean[n], var[n], n_biological, size)
        terms[2, n] = _spread(z, n, n_cells, n_experts, total)
    return True


@numba.njit(**FAST)
def _spread(z, n, n_cells, n_experts, middle):
    """Squared distance of the modalities' draws of a cell from their mean, which is left in ``middle``."""
    middle[:] = ZERO
    if n_experts < 2:
        return ZERO
    for m in range(n_experts):
        own = z[(m + 1) * n_cells + n]
        for i in range(middle.shape[0]):
            middle[i] += own[i]
    found = ZERO
    for i in range(middle.shape[0]):
        middle[i] /= F(n_experts)
    for m in range(n_experts):
        own = z[(m + 1) * n_cells + n]
        for i in range(middle.shape[0]):
            found += (own[i] - middle[i]) * (own[i] - middle[i])
    return found


@numba.njit(**FAST)
def _back_row(by_z, noise, mean, var, kl_c, kl_u, n_biological, by_weighted, by_precision):
    """Derivatives by the sums of weighted means and of precisions of one product."""
    for i in range(mean.shape[0]):
        v, kl = var[i], kl_c if i < n_biological else kl_u
        by_mean = by_z[i] + kl * mean[i]
        by_var = HALF * by_z[i] * noise[i] / F(math.sqrt(v)) + kl * HALF * (ONE - ONE / v)
        by_weighted[i] = by_mean * v
        by_precision[i] = -v * (by_var * v + by_mean * mean[i])


@numba.njit(**FAST)
def _expert_row(mean, precision, a, b, c, d, by_out, by_bias):
    """Derivatives by mean and log variance of an expert, from those by the sums it is part of."""
    size = mean.shape[0]
    for i in range(size):
        both, p = a[i] + c[i], precision[i]
        by_mean = both * p
        by_log_var = -(both * mean[i] + b[i] + d[i]) * p
        by_out[i] = by_mean
        by_out[size + i] = by_log_var
        by_bias[i] += by_mean
        by_bias[size + i] += by_log_var


def _experts_back(
    by_z, by_terms, n_experts, spoken, noise, n_biological, means, precisions, mean, var, z, by_out, by_bias, by_batch_out, by_batch_bias
):
    """Fill in the derivatives by what the experts say, and add those by the biases; ``by_z`` is used up."""
    n_cells, size = by_terms.shape[1], z.shape[1]
    a, b, c, d, middle = np.empty(size, F), np.empty(size, F), np.empty(size, F), np.empty(size, F), np.empty(size, F)
    sum_c, sum_d = np.empty(size, F), np.empty(size, F)
    by_z, noise, means, precisions, mean, var, z = bare(by_z), bare(noise), bare(means), bare(precisions), bare(mean), bare(var), bare(z)
    by_out, by_bias, by_batch_out, by_batch_bias = bare(by_out), bare(by_bias), bare(by_batch_out), bare(by_batch_bias)
    for n in range(n_cells):
        _back_row(by_z[n], noise[n], mean[n], var[n], by_terms[0, n], by_terms[1, n], n_biological, a, b)
        sum_c[:], sum_d[:] = ZERO, ZERO
        _spread(z, n, n_cells, n_experts, middle)
        for m in range(n_experts):
            place, to = m * n_cells + n, (m + 1) * n_cells + n
            if n_experts > 1:
                pull = F(2.0) * by_terms[2, n]
                for i in range(size):
                    by_z[to, i] += pull * (z[to, i] - middle[i])
            _back_row(by_z[to], noise[to], mean[to], var[to], ZERO, ZERO, n_biological, c, d)
            _expert_row(means[place], precisions[place], a, b, c, d, by_out[place], by_bias[0])
            for i in range(size):
                sum_c[i] += c[i]
                sum_d[i] += d[i]
        if spoken:
            place = n_experts * n_cells + n
            _expert_row(means[place], precisions[place], a, b, sum_c, sum_d, by_batch_out[n], by_batch_bias[0])
    return True


experts = _compile(
    _experts,
    types.boolean(MATRIX, MATRIX, NUMBER, FLAG, MATRIX, MATRIX, MATRIX, NUMBER, MATRIX, MATRIX, MATRIX, MATRIX, MATRIX, MATRIX),
)
experts_back = _compile(
    _experts_back,
    types.boolean(
        MATRIX, MATRIX, NUMBER, FLAG, MATRIX, NUMBER, MATRIX, MATRIX, MATRIX, MATRIX, MATRIX, MATRIX, MATRIX, MATRIX, MATRIX
    ),
)
