"""Where the compiled passes through MIDAS' discriminators find weights in a network's vector, and what they work with in its memory."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,import-untyped"
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import numba
import numpy as np
from numba import types
from numba.extending import overload

from cellweave.core.nn.step_program import APART

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
    total, (widest, heaviest) = _rounded(n_cells * most_classes), _largest(sizes)
    for layer in range(1, sizes.shape[0]):
        total += _room_of(sizes, n_cells, layer)
    return total + _rounded(n_cells * widest) + 4 * (_rounded(widest) + APART) + _rounded(n_cells * sizes[0]) + max(heaviest, n_cells * sizes[0])


@numba.njit(**FAST)
def _largest(sizes):
    """Return the units of the widest hidden layer and the weights of the one that has most."""
    widest, heaviest = 0, 0
    for layer in range(1, sizes.shape[0]):
        widest, heaviest = max(widest, sizes[layer]), max(heaviest, sizes[layer - 1] * sizes[layer])
    return widest, heaviest


@numba.njit(**FAST)
def _room_of(sizes, n_cells, layer):
    return _rounded(sizes[layer - 1] * sizes[layer]) + MATRICES * _rounded(n_cells * sizes[layer]) + _rounded(n_cells)


@numba.njit(**FAST)
def parts(work, sizes, n_cells, layer):
    """Return a layer's normed values, slopes and reciprocal deviations, and memory for its weight, what the map gives, and the result."""
    at = 0
    for before in range(1, layer):
        at += _room_of(sizes, n_cells, before)
    n_in, n_out = sizes[layer - 1], sizes[layer]
    weight = work[at : at + n_in * n_out]
    at += _rounded(n_in * n_out)
    size, step = n_cells * n_out, _rounded(n_cells * n_out)
    mapped, normed = work[at : at + size], work[at + step : at + step + size].reshape(n_cells, n_out)
    at += 2 * step
    slope, result = work[at : at + size].reshape(n_cells, n_out), work[at + step : at + step + size]
    at += 2 * step
    return normed, slope, work[at : at + n_cells], weight, mapped, result


@numba.njit(**FAST)
def result_of(work, sizes, n_cells, layer):
    """Return the memory of a layer's result."""
    return parts(work, sizes, n_cells, layer)[5]


@numba.njit(**FAST)
def ends(work, sizes, n_cells, n_classes):
    """Return the derivatives by the logits and by the last layer's result, four rows, and memory for what is shown and for what is made between."""
    at, width, (widest, _) = 0, sizes[-1], _largest(sizes)
    for layer in range(1, sizes.shape[0]):
        at += _room_of(sizes, n_cells, layer)
    by_logits = work[at : at + n_cells * n_classes].reshape(n_cells, n_classes)
    at += _rounded(n_cells * n_classes)
    by_result = work[at : at + n_cells * width].reshape(n_cells, width)
    at += _rounded(n_cells * widest)
    step = _rounded(widest) + APART
    rows = work[at : at + 4 * step].reshape(4, step)
    at += 4 * step
    return by_logits, by_result, rows, work[at : at + n_cells * sizes[0]], work[at + _rounded(n_cells * sizes[0]) :]


@numba.njit(**FAST)
def place_of(sizes, layer) -> int:
    """Where a layer begins in the vector of a network; behind the last one lies the last map."""
    place = 0
    for before in range(1, layer):
        place += (sizes[before - 1] + 3) * sizes[before]
    return place


@numba.njit(**FAST)
def bias_gain_shift(vector, sizes, layer):
    """Return bias, gain and shift of a layer from a vector of all."""
    n_out = sizes[layer]
    place = place_of(sizes, layer) + sizes[layer - 1] * n_out
    return vector[place : place + n_out], vector[place + n_out : place + 2 * n_out], vector[place + 2 * n_out : place + 3 * n_out]


@numba.njit(**FAST)
def end(vector, sizes, n_classes):
    """Return weight and bias of the last map from a vector of all."""
    place, width = place_of(sizes, sizes.shape[0]), sizes[-1]
    stop = place + n_classes * width
    return vector[place:stop].reshape(n_classes, width), vector[stop : stop + n_classes]


@numba.njit(**FAST)
def length(sizes, n_classes) -> int:
    """Return how many weights a network has."""
    return place_of(sizes, sizes.shape[0]) + n_classes * (sizes[-1] + 1)


def matrix(memory, n_rows, n_columns, like):
    """Memory of float32 as a matrix of what ``like`` is of: float32 or bf16."""


@overload(matrix, inline="always")
def _matrix(memory, n_rows, n_columns, like):
    if like.dtype == types.uint16:
        return lambda memory, n_rows, n_columns, like: memory.view(np.uint16)[: n_rows * n_columns].reshape(n_rows, n_columns)
    return lambda memory, n_rows, n_columns, like: memory[: n_rows * n_columns].reshape(n_rows, n_columns)
