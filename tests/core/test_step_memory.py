"""No sum of a written step depends on what lies beside its memory: loops would else go element by element and round otherwise, and a resumed run differ."""

from __future__ import annotations

import importlib
from itertools import permutations

import numpy as np
import pytest
import torch
from test_midas_written import made, streams

from cellweave.core.nn import compiled_call
from cellweave.core.nn.step_program import APART, Array, room_for

pytestmark = pytest.mark.skipif(compiled_call.compiled() is None, reason="numba is not at hand")
FORTH = ("x", "linear_bias", "weight", "bias", "out", "slope", "mean", "scale")
BACK = ("g", "x", "slope", "linear_bias", "weight", "mean", "scale", "by_linear_bias", "by_weight", "by_bias")


def arrays(n_rows: int, width: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = {name: rng.normal(size=(n_rows, width)) for name in ("x", "out", "slope", "g")}
    single = {name: rng.normal(size=(1, width)) for name in ("linear_bias", "weight", "bias")}
    sums = {name: np.zeros((1, width)) for name in ("by_linear_bias", "by_weight", "by_bias")}
    moments = {"mean": rng.normal(size=n_rows), "scale": rng.uniform(0.5, 2, n_rows)}
    return {name: value.astype(np.float32) for name, value in {**rows, **single, **sums, **moments}.items()}


def laid_out(values: dict[str, np.ndarray], order: tuple[str, ...], gap: int) -> dict[str, np.ndarray]:
    """Put arrays behind one another, the second so many numbers behind the first and the others far away."""
    memory, at, found = np.zeros(1 << 16, np.float32), 64, {}
    for number, name in enumerate(order):
        value = values[name]
        found[name] = memory[at : at + value.size].reshape(value.shape)
        found[name][...] = value
        at += value.size + (gap if number == 0 else 4 * APART)
    return found


def forth(p: dict[str, np.ndarray]) -> tuple[bytes, ...]:
    kernels = importlib.import_module("cellweave.core.nn.norm_kernel")
    seed = np.zeros(1, np.int64)
    kernels.norm_mish(
        p["x"], p["linear_bias"], p["weight"], p["bias"], len(p["x"]), 1e-5, True, 0, seed, 858993459, 1.25, p["out"], p["slope"], p["mean"], p["scale"]
    )
    return tuple(p[name].tobytes() for name in ("out", "slope", "mean", "scale"))


def back(p: dict[str, np.ndarray]) -> tuple[bytes, ...]:
    kernels = importlib.import_module("cellweave.core.nn.norm_kernel")
    kernels.norm_mish_back(
        p["g"], p["x"], p["slope"], p["linear_bias"], p["weight"], len(p["g"]), 0, p["mean"], p["scale"], p["by_linear_bias"], p["by_weight"], p["by_bias"]
    )
    return tuple(p[name].tobytes() for name in ("x", "by_linear_bias", "by_weight", "by_bias"))


@pytest.mark.parametrize("width", [8, 16, 32, 48, 100])
@pytest.mark.parametrize(("call", "names"), [(forth, FORTH), (back, BACK)])
def test_the_room_around_memory_is_enough(width, call, names):
    for n_rows in (1, 5):
        values = arrays(n_rows, width)
        far = call(laid_out(values, names, 4 * APART))
        for first, second in permutations(names, 2):
            order = (first, second, *(name for name in names if name not in (first, second)))
            assert call(laid_out(values, order, APART)) == far, f"{second} behind {first}"


def has_room(part: Array) -> bool:
    tensor = part.tensor
    behind = tensor.untyped_storage().nbytes() // tensor.element_size() - tensor.storage_offset() - tensor.numel()
    return tensor.storage_offset() >= APART and behind >= APART


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_what_a_step_writes_has_room_around_it(tmp_path, precision):
    one = made(tmp_path / "run", **{"training.precision": precision})
    for rows in streams(one):
        one._step(one.loader.minibatch(rows))
    written, plan = one.model._written, one.model.discriminators.written(torch.empty(0)).plan
    kept = list(written.space._kept.values())
    assert len(kept) > 50
    norms = [written.batch_encoder.norm, *(norm for _, norm in written.shared_encoder.layers), *(norm for _, norm in written.shared_decoder.layers)]
    assert all(has_room(part) for part in (*kept, *(norm.sums for norm in norms), plan.c, plan.by_c, plan.costs, plan.memory, plan.gradients))
    assert has_room(room_for(3, 5, kind=torch.bfloat16))
    assert room_for(3, 5).array.shape == (3, 5)
