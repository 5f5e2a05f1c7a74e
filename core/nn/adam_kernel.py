"""One step of Adam or AdamW over all parameters as one compiled loop; float32 on a CPU."""

# Types are the signatures at the end.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,import-untyped"
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import math

import numba
from numba import types

from cellweave.core.nn.compiled import FLAG, MATH, F, _compile
from cellweave.core.nn.fused_kernels import NUMBER
from cellweave.core.nn.half_kernel import _put, _wide
from cellweave.core.nn.matrix_kernel import floats_at, halves_at

FAST = {"nogil": True, "fastmath": MATH, "error_model": "numpy"}


@numba.njit(**FAST)
def _update(p, g, m, v, kept, added, first, second, step, root, eps):
    for i in range(p.shape[0]):
        old = p[i]
        grad = g[i] + added * old
        mean = m[i] + first * (grad - m[i])
        square = second * v[i] + (F(1.0) - second) * grad * grad
        m[i], v[i] = mean, square
        p[i] = old * kept - step * mean / (F(math.sqrt(square)) * root + eps)


@numba.njit(**FAST)
def _update_narrow(p, g, m, v, copy, kept, added, first, second, step, root, eps):
    for i in range(p.shape[0]):
        old = p[i]
        grad = _wide(g[i]) + added * old
        mean = m[i] + first * (grad - m[i])
        square = second * v[i] + (F(1.0) - second) * grad * grad
        m[i], v[i] = mean, square
        new = old * kept - step * mean / (F(math.sqrt(square)) * root + eps)
        p[i] = new
        _put(copy, i, new)


@numba.njit(**FAST)
def _factors(settings, later, decoupled):
    """Return what a step needs of the settings of a tensor, ``later`` steps after the one they count."""
    rate, beta1, beta2, eps, decay, count = settings[0], settings[1], settings[2], settings[3], settings[4], settings[5] + later
    kept, added = (1.0 - rate * decay, 0.0) if decoupled else (1.0, decay)
    step, root = rate / (1.0 - beta1**count), 1.0 / math.sqrt(1.0 - beta2**count)
    return F(kept), F(added), F(1.0 - beta1), F(beta2), F(step), F(root), F(eps)


@numba.njit(**FAST)
def update(p, g, m, v, settings, later, decoupled) -> None:
    """Step a tensor, ``later`` steps after the one that its row of settings counts; see :func:`_adam`."""
    kept, added, first, second, step, root, eps = _factors(settings, later, decoupled)
    _update(p, g, m, v, kept, added, first, second, step, root, eps)


def _adam(addresses, sizes, settings, decoupled, start, stop):
    """Step the elements from ``start`` to ``stop`` of all tensors, counted through.

    The columns of ``addresses`` are those of parameter, gradient, first and second moment of each tensor and of its copy in bf16, which is 0 where
    there is none and the gradient is float32; else that is bf16 too. The columns of ``settings`` are learning rate, both betas, eps, weight decay
    and number of the step; ``decoupled`` says whether decay is.
    """
    begin = 0
    for k in range(sizes.shape[0]):
        size = sizes[k]
        a, z = max(start - begin, 0), min(stop - begin, size)
        begin += size
        if a >= z:
            continue
        p = numba.carray(floats_at(addresses[k, 0]), size)[a:z]
        m, v = numba.carray(floats_at(addresses[k, 2]), size)[a:z], numba.carray(floats_at(addresses[k, 3]), size)[a:z]
        if addresses[k, 4] == 0:
            update(p, numba.carray(floats_at(addresses[k, 1]), size)[a:z], m, v, settings[k], 0.0, decoupled)
        else:
            kept, added, first, second, step, root, eps = _factors(settings[k], 0.0, decoupled)
            narrow, copy = numba.carray(halves_at(addresses[k, 1]), size)[a:z], numba.carray(halves_at(addresses[k, 4]), size)[a:z]
            _update_narrow(p, narrow, m, v, copy, kept, added, first, second, step, root, eps)
    return True


adam = _compile(_adam, types.boolean(types.int64[:, ::1], types.int64[::1], types.float64[:, ::1], FLAG, NUMBER, NUMBER))
