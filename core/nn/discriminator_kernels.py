"""Compiled passes through the discriminators of MIDAS, all layers of a network in one call; float32 on a CPU, layer norm and Mish.

The networks are so small that a call from Python for each layer costs more than its arithmetic.
"""

# Types are the signatures at the end.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,import-untyped"
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import numba
import numpy as np
from numba import types

from cellweave.core.nn.adam_kernel import update
from cellweave.core.nn.compiled import FLAG, MATH, WHOLE, F, _compile
from cellweave.core.nn.fused_kernels import NUMBER, U
from cellweave.core.nn.matrix_kernel import floats_at, product
from cellweave.core.nn.step_kernels import (
    _biased,
    _centred,
    _mish,
    _mish_dropped,
    _reciprocal_deviation,
    _through,
    class_costs,
)

#: Room of a hidden layer for each cell and unit: what the map gives, the normed values, the slopes and the result.
MATRICES = 4
#: Numbers that parts of the memory are rounded up to, so that each begins where a vector may.
ROOM = 16
FAST = {"nogil": True, "error_model": "numpy"}


@numba.njit(**FAST)
def _rounded(size):
    return (size + ROOM - 1) // ROOM * ROOM


@numba.njit(**FAST)
def room(sizes, n_cells, most_classes) -> int:
    """Return how many numbers a network needs to work in."""
    widest, total = 0, 0
    for layer in range(1, sizes.shape[0]):
        total += _room_of(sizes, n_cells, layer)
        widest = max(widest, sizes[layer])
    return total + _rounded(n_cells * most_classes) + _rounded(n_cells * widest) + 4 * _rounded(widest)


@numba.njit(**FAST)
def _room_of(sizes, n_cells, layer):
    return _rounded(sizes[layer - 1] * sizes[layer]) + MATRICES * _rounded(n_cells * sizes[layer]) + _rounded(n_cells)


@numba.njit(**FAST)
def _parts(work, sizes, n_cells, layer):
    """Return a layer's transposed weight, what the map gives, normed values, slopes, result and reciprocal deviations."""
    at = 0
    for before in range(1, layer):
        at += _room_of(sizes, n_cells, before)
    n_in, n_out = sizes[layer - 1], sizes[layer]
    weight = work[at : at + n_in * n_out].reshape(n_in, n_out)
    at += _rounded(n_in * n_out)
    size, step = n_cells * n_out, _rounded(n_cells * n_out)
    mapped, normed = work[at : at + size].reshape(n_cells, n_out), work[at + step : at + step + size].reshape(n_cells, n_out)
    at += 2 * step
    slope, result = work[at : at + size].reshape(n_cells, n_out), work[at + step : at + step + size].reshape(n_cells, n_out)
    at += 2 * step
    return weight, mapped, normed, slope, result, work[at : at + n_cells]


@numba.njit(**FAST)
def _ends(work, sizes, n_cells, n_classes):
    """Return the derivatives by the logits, and room for those by a layer's result."""
    at = 0
    for layer in range(1, sizes.shape[0]):
        at += _room_of(sizes, n_cells, layer)
    by_logits = work[at : at + n_cells * n_classes].reshape(n_cells, n_classes)
    return by_logits, work[at + _rounded(n_cells * n_classes) :]


@numba.njit(**FAST)
def _at(sizes, layer):
    """Where a layer begins in the vector of a network; behind the last one lies the last map."""
    at = 0
    for before in range(1, layer):
        at += (sizes[before - 1] + 3) * sizes[before]
    return at


@numba.njit(**FAST)
def _small(vector, sizes, layer):
    """Return bias, gain and shift of a layer from a vector of all."""
    n_out = sizes[layer]
    at = _at(sizes, layer) + sizes[layer - 1] * n_out
    return vector[at : at + n_out], vector[at + n_out : at + 2 * n_out], vector[at + 2 * n_out : at + 3 * n_out]


@numba.njit(**FAST)
def _end(vector, sizes, n_classes):
    """Return weight and bias of the last map from a vector of all."""
    at, width = _at(sizes, sizes.shape[0]), sizes[-1]
    stop = at + n_classes * width
    return vector[at:stop].reshape(n_classes, width), vector[stop : stop + n_classes]


@numba.njit(**FAST)
def _length(sizes, n_classes):
    return _at(sizes, sizes.shape[0]) + n_classes * (sizes[-1] + 1)


@numba.njit(**FAST)
def _map(x, vector, at, weight, out):
    """Fill in ``x`` times a layer's weight, which is turned round first."""
    n_in, n_out = weight.shape
    for o in range(n_out):
        for i in range(n_in):
            weight[i, o] = vector[at + o * n_in + i]
    product(x.ctypes.data, n_in, 1, weight.ctypes.data, n_out, out.ctypes.data, n_out, x.shape[0], n_out, n_in)


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _forth(vector, sizes, classes, c, codes, first_row, drops, seeds, threshold, keep_scale, eps, work, costs, right):
    """Fill in what one network costs each cell; see :func:`_passes`."""
    n_cells, x = c.shape[0], c
    for layer in range(1, sizes.shape[0]):
        weight, mapped, normed, slope, result, scale = _parts(work, sizes, n_cells, layer)
        _map(x, vector, _at(sizes, layer), weight, mapped)
        bias, gain, shift = _small(vector, sizes, layer)
        seed, width = U(seeds[layer - 1]), sizes[layer]
        for n in range(n_cells):
            mean = _biased(mapped[n], bias, normed[n])
            own = scale[n] = _reciprocal_deviation(normed[n], mean, eps)
            if drops:
                _mish_dropped(normed[n], mean, own, gain, shift, (first_row + n) * width, seed, threshold, keep_scale, result[n], slope[n])
            else:
                _mish(normed[n], mean, own, gain, shift, result[n], slope[n])
        x = result
    by_logits, _ = _ends(work, sizes, n_cells, classes)
    weight, bias = _end(vector, sizes, classes)
    class_costs(x, weight, bias, codes, costs, right, by_logits)


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _back_from_end(vector, sizes, classes, factor, n_cells, for_weights, work, grads):
    """Fill in the derivative by the last hidden layer's result, and where asked those by the last map; return the former and room to work in."""
    by_logits, rest = _ends(work, sizes, n_cells, classes)
    last = sizes.shape[0] - 1
    width = sizes[last]
    by_result, spare = rest[: n_cells * width].reshape(n_cells, width), rest[n_cells * np.max(sizes[1:]) :]
    weight, _ = _end(vector, sizes, classes)
    by_weight, by_bias = _end(grads, sizes, classes)
    for n in range(n_cells):
        for k in range(classes):
            by_logits[n, k] *= factor[n]
            if for_weights:
                by_bias[k] += by_logits[n, k]
    if for_weights:
        result = _parts(work, sizes, n_cells, last)[4]
        product(by_logits.ctypes.data, 1, classes, result.ctypes.data, width, by_weight.ctypes.data, width, classes, width, n_cells)
    product(by_logits.ctypes.data, classes, 1, weight.ctypes.data, width, by_result.ctypes.data, width, n_cells, width, classes)
    return by_result, spare


@numba.njit(nogil=True, fastmath=MATH, error_model="numpy")
def _back(vector, sizes, classes, c, factor, for_weights, by_c, work, grads, by_x):
    """Fill in the derivatives of one network; see :func:`_passes`."""
    n_cells = c.shape[0]
    if for_weights:
        grads[:] = F(0.0)
    by_result, spare = _back_from_end(vector, sizes, classes, factor, n_cells, for_weights, work, grads)
    for layer in range(sizes.shape[0] - 1, 0, -1):
        n_in, n_out = sizes[layer - 1], sizes[layer]
        _, mapped, normed, slope, _, scale = _parts(work, sizes, n_cells, layer)
        _, gain, _ = _small(vector, sizes, layer)
        if for_weights:
            to_bias, to_gain, to_shift = _small(grads, sizes, layer)
        else:
            spare[: 3 * n_out] = F(0.0)
            to_bias, to_gain, to_shift = spare[:n_out], spare[n_out : 2 * n_out], spare[2 * n_out : 3 * n_out]
        row = spare[3 * n_out : 4 * n_out]
        for n in range(n_cells):
            first, second = _through(by_result[n], normed[n], slope[n], gain, to_gain, to_shift, row)
            _centred(row, normed[n], scale[n], first, second, to_bias, mapped[n])
        at = _at(sizes, layer)
        x = c if layer == 1 else _parts(work, sizes, n_cells, layer - 1)[4]
        if for_weights:
            to = grads[at : at + n_in * n_out]
            product(mapped.ctypes.data, 1, n_out, x.ctypes.data, n_in, to.ctypes.data, n_in, n_out, n_in, n_cells)
        if layer > 1 or by_c:
            # The result of the layer before is not read again, so the derivative by it takes its place.
            by_result = by_x if layer == 1 else x
            product(mapped.ctypes.data, n_out, 1, vector.ctypes.data + 4 * at, n_in, by_result.ctypes.data, n_in, n_cells, n_in, n_out)


def _passes(
    vectors, sizes, n_classes, c, codes, start, stop, drops, seeds, threshold, keep_scale, eps, work, costs, right, forth, back, for_weights, by_c, factor,
    grads, by_x, addresses, settings, decoupled, told,
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
        As :func:`cellweave.core.nn.step_kernels._norm_mish` takes them, with a seed for each time and layer, ``(n_times, n_layers)``.
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
    """
    n_cells, eps, keep_scale, threshold = c.shape[1], F(eps), F(keep_scale), U(threshold)
    for key in range(start, stop):
        size = _length(sizes, n_classes[key])
        vector, grad = numba.carray(floats_at(vectors[key]), size), grads[key, :size]
        for time in range(seeds.shape[0]):
            if forth:
                _forth(
                    vector, sizes, n_classes[key], c[key], codes[key], key * n_cells, drops, seeds[time], threshold, keep_scale, eps, work[key],
                    costs[key], right[key],
                )  # fmt: skip
                told[key, time] = np.sum(costs[key])
            if back:
                _back(vector, sizes, n_classes[key], c[key], factor[key], for_weights, by_c, work[key], grad, by_x[key])
            if settings.shape[0]:
                first, second = numba.carray(floats_at(addresses[key, 2]), size), numba.carray(floats_at(addresses[key, 3]), size)
                update(vector, grad, first, second, settings[key], np.float64(time), decoupled)
    return True


CUBE, NUMBERS, CODES = types.float32[:, :, ::1], types.float32[:, ::1], types.int64[:, ::1]
passes = _compile(
    _passes,
    types.boolean(
        WHOLE, WHOLE, WHOLE, CUBE, CODES, NUMBER, NUMBER, FLAG, CODES, NUMBER, types.float64, types.float64, NUMBERS, NUMBERS, CODES, FLAG, FLAG, FLAG,
        FLAG, NUMBERS, NUMBERS, CUBE, CODES, types.float64[:, ::1], FLAG, NUMBERS,
    ),
)  # fmt: skip
