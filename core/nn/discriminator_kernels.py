"""Compiled passes through the discriminators of MIDAS, all layers of a network in one call; on a CPU, layer norm and Mish.

The networks are so small that a call from Python for each layer costs more than its arithmetic. Products of the hidden layers are float32 or bf16;
then what goes into them and what comes out is bf16, as in the other networks. The last map, of a few classes, is float32.
"""

# Types are the signatures at the end.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,import-untyped"
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import importlib

import numba
import numpy as np
from numba import types
from numba.extending import overload

from cellweave.core.nn.adam_kernel import update
from cellweave.core.nn.compiled import FLAG, MATH, WHOLE, F, _compile
from cellweave.core.nn.discriminator_layout import (
    bias_gain_shift,
    end,
    ends,
    length,
    matrix,
    parts,
    place_of,
    result_of,
)
from cellweave.core.nn.fused_kernels import NUMBER, U
from cellweave.core.nn.half_kernel import _wide, keep, row_for
from cellweave.core.nn.matrix_kernel import bare, floats_at, product
from cellweave.core.nn.narrow_products import PLAIN, TURNED_LEFT, TURNED_RIGHT
from cellweave.core.nn.norm_kernel import activate, biased, centred, reciprocal_deviation, through
from cellweave.core.nn.step_kernels import class_costs

SUMS = {"nogil": True, "fastmath": MATH, "error_model": "numpy"}


def _as_wanted(x, memory, like):
    """Where a float32 matrix stands as products want it: where it is, or in bf16 in some memory."""


@overload(_as_wanted, inline="always")
def _as_like(x, memory, like):
    if like.dtype != types.uint16:
        return lambda x, memory, like: x
    return lambda x, memory, like: matrix(memory, x.shape[0], x.shape[1], like)


def _widen(x, out):
    """Fill in the numbers of ``x`` where they are bf16; else they are there already."""


@overload(_widen)
def _widen_of(x, out):
    if x.dtype != types.uint16:
        return lambda x, out: None

    def widen(x, out):
        flat, to = x.reshape(x.size), out.reshape(out.size)
        for i in range(to.size):
            to[i] = _wide(flat[i])

    return widen


def _map(x, vector, weight, out):
    """Fill in ``x`` times a layer's weight, which is turned round or rounded first and stays there."""


@overload(_map)
def _map_of(x, vector, weight, out):
    if x.dtype != types.uint16:

        def plain(x, vector, weight, out):
            (n_cells, n_in), n_out = x.shape, out.shape[1]
            turned = weight.reshape(n_in, n_out)
            for o in range(n_out):
                for i in range(n_in):
                    turned[i, o] = vector[o * n_in + i]
            product(x.ctypes.data, n_in, 1, weight.ctypes.data, n_out, out.ctypes.data, n_out, n_cells, n_out, n_in)

        return plain
    multiply = importlib.import_module("cellweave.core.nn.narrow_kernel").multiply

    def narrow(x, vector, weight, out):
        (n_cells, n_in), n_out = x.shape, out.shape[1]
        keep(vector, matrix(weight, 1, vector.size, x)[0])
        places = x.ctypes.data, 2 * n_in, weight.ctypes.data, 2 * n_in, out.ctypes.data, 2 * n_out
        multiply(TURNED_RIGHT, *places, n_cells, n_out, n_in, 0, n_out, False)  # noqa: FBT003

    return narrow


def _map_back(g, x, vector, weight, for_weight, by_weight, for_x, by_x, spare):
    """Fill in the derivatives by weight and ``x`` of :func:`_map` from that by its result, as far as they are asked for.

    ``weight`` is what :func:`_map` left in bf16, which in float32 is not read, and ``spare`` memory for the derivative by it.
    """


@overload(_map_back)
def _map_back_of(g, x, vector, weight, for_weight, by_weight, for_x, by_x, spare):
    if g.dtype != types.uint16:

        def plain(g, x, vector, weight, for_weight, by_weight, for_x, by_x, spare):
            (n_cells, n_out), n_in = g.shape, x.shape[1]
            if for_weight:
                product(g.ctypes.data, 1, n_out, x.ctypes.data, n_in, by_weight.ctypes.data, n_in, n_out, n_in, n_cells)
            if for_x:
                product(g.ctypes.data, n_out, 1, vector.ctypes.data, n_in, by_x.ctypes.data, n_in, n_cells, n_in, n_out)

        return plain
    multiply = importlib.import_module("cellweave.core.nn.narrow_kernel").multiply

    def narrow(g, x, vector, weight, for_weight, by_weight, for_x, by_x, spare):
        (n_cells, n_out), n_in = g.shape, x.shape[1]
        if for_weight:
            found = matrix(spare, 1, n_out * n_in, g)[0]
            places = g.ctypes.data, 2 * n_out, x.ctypes.data, 2 * n_in, found.ctypes.data, 2 * n_in
            multiply(TURNED_LEFT, *places, n_out, n_in, n_cells, 0, n_in, False)  # noqa: FBT003
            _widen(found, by_weight)
        if for_x:
            places = g.ctypes.data, 2 * n_out, weight.ctypes.data, 2 * n_in, by_x.ctypes.data, 2 * n_in
            multiply(PLAIN, *places, n_cells, n_in, n_out, 0, n_in, False)  # noqa: FBT003

    return narrow


@numba.njit(**SUMS)
def _norm(mapped, vector, sizes, layer, drops, first_row, seed, threshold, keep_scale, eps, normed, slope, scale, row, result):
    """Fill in a layer's result, and what its way back needs, from what its map gives."""
    bias, gain, shift = bias_gain_shift(vector, sizes, layer)
    width = sizes[layer]
    for n in range(mapped.shape[0]):
        mean = biased(mapped[n], bias, normed[n])
        scale[n] = reciprocal_deviation(normed[n], mean, eps)
        to = row_for(result[n], row[:width])
        activate(normed[n], mean, scale[n], gain, shift, drops, (first_row + n) * width, seed, threshold, keep_scale, to, slope[n])
        keep(to, result[n])


@numba.njit(**SUMS)
def _norm_back(g, normed, slope, scale, gain, to_bias, to_gain, to_shift, rows, out):
    """Fill in the derivative by what the map gives, and add to those by bias, gain and shift."""
    width = normed.shape[1]
    for n in range(g.shape[0]):
        first, second = through(g[n], normed[n], slope[n], gain, to_gain, to_shift, rows[0, :width])
        to = row_for(out[n], rows[1, :width])
        centred(rows[0, :width], normed[n], scale[n], first, second, to_bias, to)
        keep(to, out[n])


@numba.njit(**SUMS)
def _forth(vector, sizes, classes, c, codes, first_row, drops, seeds, threshold, keep_scale, eps, work, costs, right, like):
    """Fill in what one network costs each cell; see :func:`_passes`."""
    n_cells, last = c.shape[0], sizes.shape[0] - 1
    by_logits, _, rows, shown, _ = ends(work, sizes, n_cells, classes)
    x, end_x = _as_wanted(c, shown, like), c
    keep(c.reshape(c.size), x.reshape(x.size))
    for layer in range(1, last + 1):
        normed, slope, scale, weight, memory, result = parts(work, sizes, n_cells, layer)
        width, place = sizes[layer], place_of(sizes, layer)
        mapped = matrix(memory, n_cells, width, like)
        _map(x, vector[place : place + weight.size], weight, mapped)
        how = drops, first_row, U(seeds[layer - 1]), threshold, keep_scale, eps
        if layer == last:
            end_x = result.reshape(n_cells, width)
            _norm(mapped, vector, sizes, layer, *how, normed, slope, scale, rows[0], end_x)
        else:
            x = matrix(result, n_cells, width, like)
            _norm(mapped, vector, sizes, layer, *how, normed, slope, scale, rows[0], x)
    weight, bias = end(vector, sizes, classes)
    class_costs(end_x, weight, bias, codes, costs, right, by_logits)


@numba.njit(**SUMS)
def _back_from_end(vector, sizes, classes, c, factor, for_weights, work, grads):
    """Fill in the derivative by the last hidden layer's result, and where asked those by the last map."""
    n_cells, last, width = c.shape[0], sizes.shape[0] - 1, sizes[-1]
    by_logits, by_result, _, _, _ = ends(work, sizes, n_cells, classes)
    weight, _ = end(vector, sizes, classes)
    by_weight, by_bias = end(grads, sizes, classes)
    for n in range(n_cells):
        for k in range(classes):
            by_logits[n, k] *= factor[n]
            if for_weights:
                by_bias[k] += by_logits[n, k]
    if for_weights:
        x = result_of(work, sizes, n_cells, last).reshape(n_cells, width) if last else c
        product(by_logits.ctypes.data, 1, classes, x.ctypes.data, width, by_weight.ctypes.data, width, classes, width, n_cells)
    product(by_logits.ctypes.data, classes, 1, weight.ctypes.data, width, by_result.ctypes.data, width, n_cells, width, classes)


@numba.njit(**SUMS)
def _back(vector, sizes, classes, c, factor, for_weights, by_c, work, grads, by_x, like):
    """Fill in the derivatives of one network; see :func:`_passes`."""
    n_cells, last = c.shape[0], sizes.shape[0] - 1
    if for_weights:
        grads[:] = F(0.0)
    _back_from_end(vector, sizes, classes, c, factor, for_weights, work, grads)
    _, by_result, rows, shown, spare = ends(work, sizes, n_cells, classes)
    g = matrix(shown, 0, sizes[0], like)
    for layer in range(last, 0, -1):
        n_in, n_out, place = sizes[layer - 1], sizes[layer], place_of(sizes, layer)
        normed, slope, scale, weight, memory, _ = parts(work, sizes, n_cells, layer)
        mapped = matrix(memory, n_cells, n_out, like)
        _, gain, _ = bias_gain_shift(vector, sizes, layer)
        if for_weights:
            to_bias, to_gain, to_shift = bias_gain_shift(grads, sizes, layer)
        else:  # added up, and not read
            rows[2:] = F(0.0)
            to_bias, to_gain, to_shift = rows[2, :n_out], rows[2, :n_out], rows[3, :n_out]
        if layer == last:
            _norm_back(by_result, normed, slope, scale, gain, to_bias, to_gain, to_shift, rows, mapped)
        else:
            _norm_back(g, normed, slope, scale, gain, to_bias, to_gain, to_shift, rows, mapped)
        # The result of the layer before is not read again, so the derivative by it takes its place.
        x = _as_wanted(c, shown, like) if layer == 1 else matrix(result_of(work, sizes, n_cells, layer - 1), n_cells, n_in, like)
        g = _as_wanted(by_x, spare, like) if layer == 1 else x
        _map_back(mapped, x, vector[place:], weight, for_weights, grads[place : place + n_in * n_out], layer > 1 or by_c, g, spare)
    if by_c and last:
        _widen(g, by_x)
    elif by_c:
        by_x[:] = by_result


def _passes(
    vectors, sizes, n_classes, c, codes, start, stop, drops, seeds, threshold, keep_scale, eps, work, costs, right, forth, back, for_weights, by_c, factor,
    grads, by_x, addresses, settings, decoupled, told, like,
):  # fmt: skip
    """Send the networks from ``start`` to ``stop`` forth, back, or both, and where settings are given let them learn; as often as there are rows of seeds.

    All is one function, for a compiler takes as long for each that multiplies matrices.

    Parameters
    ----------
    vectors
        Addresses of the networks' weights, in the order of :class:`cellweave.core.nn.midas_discriminators.Discriminators`.
    sizes, n_classes
        Sizes of c and of the hidden layers; classes of each network.
    c, codes
        What each network is shown, ``(n_keys, n_cells, sizes[0])``, and its batch codes, ``(n_keys, n_cells)``.
    drops, seeds, threshold, keep_scale, eps
        As :func:`cellweave.core.nn.norm_kernel._norm_mish` takes them, with a seed for each time and layer, ``(n_times, n_layers)``.
    work
        Memory of each network. What the way forth leaves there the way back uses up.
    costs, right
        Become what each cell costs, ``(n_keys, n_cells)``, and how many cells are guessed right and asked, ``(n_keys, 2)``.
    forth, back, for_weights, by_c
        Which ways are gone, and which derivatives are wanted.
    factor
        Of each cell's cost on the way back, ``(n_keys, n_cells)``.
    grads, by_x
        Become the derivatives by the weights, ``(n_keys, longest)``, and by c.
    addresses, settings, decoupled
        As :func:`cellweave.core.nn.adam_kernel._adam` takes them, the settings with the number of the first step; no rows where nothing is learnt.
    told
        Becomes what the cells cost each network each time, ``(n_keys, n_times)``.
    like
        A vector of float32 or of bf16, as the products shall be; the latter wants even sizes.
    """
    n_cells, eps, keep_scale, threshold = c.shape[1], F(eps), F(keep_scale), U(threshold)
    sizes, c, codes, seeds, work, costs, right = bare(sizes), bare(c), bare(codes), bare(seeds), bare(work), bare(costs), bare(right)
    factor, grads, by_x, settings = bare(factor), bare(grads), bare(by_x), bare(settings)
    for key in range(start, stop):
        classes, size = n_classes[key], length(sizes, n_classes[key])
        vector, grad = numba.carray(floats_at(vectors[key]), size), grads[key, :size]
        for time in range(seeds.shape[0]):
            if forth:
                how = key * n_cells, drops, seeds[time], threshold, keep_scale, eps
                _forth(vector, sizes, classes, c[key], codes[key], *how, work[key], costs[key], right[key], like)
                told[key, time] = np.sum(costs[key])
            if back:
                _back(vector, sizes, classes, c[key], factor[key], for_weights, by_c, work[key], grad, by_x[key], like)
            if settings.shape[0]:
                first, second = numba.carray(floats_at(addresses[key, 2]), size), numba.carray(floats_at(addresses[key, 3]), size)
                update(vector, grad, first, second, settings[key], np.float64(time), decoupled)
    return True


def compiled_for(kind):
    """Return the compiled passes with products in float32 or in bf16 (uint16); the compiler takes ten seconds for either, so a run has those it needs."""
    like = numba.from_dtype(np.dtype(kind))[::1]
    cube, numbers, codes = types.float32[:, :, ::1], types.float32[:, ::1], types.int64[:, ::1]
    return _compile(
        _passes,
        types.boolean(
            WHOLE, WHOLE, WHOLE, cube, codes, NUMBER, NUMBER, FLAG, codes, NUMBER, types.float64, types.float64, numbers, numbers, codes, FLAG, FLAG, FLAG,
            FLAG, numbers, numbers, cube, codes, types.float64[:, ::1], FLAG, numbers, like,
        ),
    )  # fmt: skip
