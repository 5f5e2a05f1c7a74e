"""Products in compiled loops: float32 tiles, sums of rows, bf16 pairs, and the steps of the discriminators that are made of them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from cellweave.core.nn import midas_layers
from cellweave.core.nn.compiled_call import load_loops
from cellweave.core.nn.midas_discriminators import Discriminators
from cellweave.core.nn.narrow_products import (
    PLAIN,
    TURNED_LEFT,
    TURNED_RIGHT,
    add_batch,
    add_product,
    add_products,
    loops,
)
from cellweave.core.nn.step_program import Space
from cellweave.core.training.compiled_adam import CompiledAdam

numba = pytest.importorskip("numba")
kernel, half = (pytest.importorskip(f"cellweave.core.nn.{name}") for name in ("matrix_kernel", "half_kernel"))
ours = pytest.mark.skipif(loops() is None, reason="this processor does not multiply pairs of bf16, or does so faster through torch")
ROWS, COLUMNS, INNER = (1, 7, 8, 9, 34), (1, 5, 16, 31, 33, 64, 70), (1, 2, 30, 33, 128)


@numba.njit
def multiplied(a: np.ndarray, b: np.ndarray, out: np.ndarray, turned: bool) -> None:
    n_rows, n_inner = (a.shape[1], a.shape[0]) if turned else a.shape
    row, inner = (1, a.shape[1]) if turned else (a.shape[1], 1)
    kernel.product(a.ctypes.data, row, inner, b.ctypes.data, b.shape[1], out.ctypes.data, out.shape[1], n_rows, b.shape[1], n_inner)


@numba.njit
def added_up(rows: np.ndarray, places: np.ndarray, entries: np.ndarray, out: np.ndarray) -> None:
    kernel.add_up(rows.ctypes.data, rows.shape[1], places.ctypes.data, entries.ctypes.data, len(places), out.ctypes.data, len(out))


def test_tiles_and_their_rests_multiply_as_numpy_does() -> None:
    rng = np.random.default_rng(0)
    for n_rows in ROWS:
        for n_columns in COLUMNS:
            for n_inner in INNER:
                a, b = rng.standard_normal((n_rows, n_inner)).astype(np.float32), rng.standard_normal((n_inner, n_columns)).astype(np.float32)
                expected = a.astype(np.float64) @ b
                for turned in (False, True):
                    out = np.full((n_rows, n_columns), np.nan, np.float32)
                    multiplied(np.ascontiguousarray(a.T) if turned else a, b, out, turned)
                    np.testing.assert_allclose(out, expected, atol=2e-5, err_msg=f"{n_rows} {n_columns} {n_inner} {turned}")


@pytest.mark.parametrize("width", [1, 15, 16, 100, 128, 300])
def test_rows_are_added_up_as_numpy_does(width: int) -> None:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((20, width)).astype(np.float32)
    for n in (0, 1, 5, 40):
        places, entries = rng.integers(0, 20, n), rng.standard_normal(n).astype(np.float32)
        out = np.full(width, np.nan, np.float32)
        added_up(rows, places, entries, out)
        np.testing.assert_allclose(out, entries.astype(np.float64) @ rows[places], atol=2e-5)


def near(out: Tensor, expected: Tensor) -> bool:
    """bf16 keeps eight bits; sums are float32."""
    return bool(((out.float() - expected).abs() <= 0.0041 * expected.abs() + 1e-4).all())


def right(kind: int, a: Tensor, b: Tensor) -> Tensor:
    a, b = a.float(), b.float()
    return (a.T if kind == TURNED_LEFT else a) @ (b.T if kind == TURNED_RIGHT else b)


@pytest.mark.parametrize("kind", [PLAIN, TURNED_RIGHT, TURNED_LEFT])
@pytest.mark.parametrize("narrow", [True, False], ids=["bf16", "float32"])
def test_products_of_all_sizes_touch_their_columns_only(kind: int, narrow: bool) -> None:
    torch.manual_seed(2)
    space, dtype = Space(), torch.bfloat16 if narrow else torch.float32
    for n_rows in ROWS:
        for n_columns in COLUMNS:
            for n_inner in INNER:
                a = torch.randn((n_inner, n_rows) if kind == TURNED_LEFT else (n_rows, n_inner)).to(dtype)
                b = torch.randn((n_columns, n_inner) if kind == TURNED_RIGHT else (n_inner, n_columns)).to(dtype)
                for adds in (False, True):
                    wide = torch.full((n_rows, n_columns + 3), 7.0).to(dtype)
                    out = wide[:, :n_columns]
                    out.copy_(torch.randn(n_rows, n_columns))
                    expected = right(kind, a, b) + (out.float() if adds else 0.0)
                    add_product(space, kind, a, b, out, adds=adds)
                    assert near(out, expected), (n_rows, n_columns, n_inner, adds)
                    assert (wide[:, n_columns:] == 7).all()


@ours
def test_pairs_of_bf16_are_multiplied_here_and_what_is_not_a_number_stays_so() -> None:
    a, b, out = torch.ones(8, 32).bfloat16(), torch.ones(32, 32).bfloat16(), torch.zeros(8, 32).bfloat16()
    a[3, 5], a[4, 6] = float("nan"), float("inf")
    add_product(Space(), PLAIN, a, b, out)
    assert out[3].isnan().all()
    assert out[4].isinf().all()
    assert (out[[0, 1, 2, 5, 6, 7]] == 32).all()


@pytest.mark.parametrize("kind", [PLAIN, TURNED_RIGHT, TURNED_LEFT])
def test_batches_and_blocks_of_unequal_size_are_the_products_of_each(kind: int) -> None:
    torch.manual_seed(3)
    shapes = {PLAIN: ((3, 12, 6), (3, 6, 5)), TURNED_RIGHT: ((3, 12, 6), (3, 5, 6)), TURNED_LEFT: ((3, 6, 12), (3, 6, 5))}
    a, b = (torch.randn(shape).bfloat16() for shape in shapes[kind])
    out = torch.empty(3, 12, 5).bfloat16()
    add_batch(Space(), kind, a, b, out)
    assert all(near(out[n], right(kind, a[n], b[n])) for n in range(3))
    parts = []
    for n_inner in (2, 8, 34):
        x = torch.randn((n_inner, 9) if kind == TURNED_LEFT else (9, n_inner)).bfloat16()
        y = torch.randn((4, n_inner) if kind == TURNED_RIGHT else (n_inner, 4)).bfloat16()
        parts.append((x, y, torch.empty(9, 4).bfloat16()))
    add_products(Space(), kind, parts)
    assert all(near(z, right(kind, x, y)) for x, y, z in parts)


@ours
def test_two_threads_give_the_same_bits_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    a, b, found = torch.randn(128, 96).bfloat16(), torch.randn(96, 200).bfloat16(), []
    monkeypatch.setattr(midas_layers, "WORTH_A_THREAD", 1)
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        out = torch.empty(128, 200).bfloat16()
        add_product(Space(), PLAIN, a, b, out)
        found.append(out)
    torch.set_num_threads(before)
    assert torch.equal(*found)


def made() -> Discriminators:
    torch.manual_seed(5)
    return Discriminators(10, (20, 12), {"joint": 4, "rna": 3, "adt": 2}, {"norm": "ln", "activation": "mish", "dropout": 0.2})


@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("decoupled", [True, False], ids=["adamw", "adam"])
def test_steps_taken_at_once_are_those_taken_one_by_one(decoupled: bool, narrow: bool) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
        steps_agree(decoupled)


def steps_agree(decoupled: bool) -> None:
    keys, c = ["joint", "adt"], torch.randn(2, 30, 10)
    codes = torch.stack([torch.arange(30) % 4, torch.arange(30) % 3 - 1])  # some are not asked
    found = []
    for at_once in (True, False):
        one = made()
        optimizer = CompiledAdam(one.parameters(), decoupled=decoupled, lr=1e-2, weight_decay=0.1)
        generator = torch.Generator().manual_seed(6)
        told = []
        for _ in range(2):
            if at_once:
                told.append(one.learn_at_once(keys, c, codes, 0.5, 3, generator, optimizer))
                continue
            costs = []
            for number in range(3):
                optimizer.zero_grad()
                costs.append(float(one.learn(keys, c, codes, 0.5, generator, again=number > 0)))
                optimizer.step()
            told.append(sum(costs) / 3)
        found.append((told, one.state_dict(), optimizer.state_dict()["state"]))
    (told, weights, state), (other_told, other_weights, other_state) = found
    assert told == pytest.approx(other_told, rel=1e-5)
    assert told[1] < told[0]
    for name, value in weights.items():
        torch.testing.assert_close(value, other_weights[name], rtol=1e-5, atol=1e-6)
    assert torch.equal(weights["weights.of_rna"], made().state_dict()["weights.of_rna"])  # it was not asked
    assert state.keys() == other_state.keys()
    for key, moments in state.items():
        assert float(moments["step"]) == float(other_state[key]["step"]) == 6
        torch.testing.assert_close(moments["exp_avg_sq"], other_state[key]["exp_avg_sq"], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("sizes", [(20, 12), (64,), (), (20, 12, 8), (15, 12)])
@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bf16"])
def test_written_discriminators_are_those_that_torch_traces(sizes: tuple[int, ...], narrow: bool) -> None:
    torch.manual_seed(9)
    keys = ["joint", "rna", "adt"]
    one = Discriminators(10, sizes, {"joint": 4, "rna": 3, "adt": 2}, {"norm": "ln", "activation": "mish", "dropout": 0.0})
    c = torch.randn(3, 45, 10, requires_grad=True)
    codes = torch.stack([torch.arange(45) % 4, torch.arange(45) % 4 - 1, torch.arange(45) % 2])
    costs, logits = one.costs(keys, c, codes, None)
    costs.sum().backward()
    wanted = [one.weights[f"of_{key}"].grad.clone() for key in keys]
    written = one.written(c)
    assert written is not None
    written.show(keys, c.detach(), codes, narrow=narrow)
    in_bf16 = narrow and loops() is not None and not any(size % 2 for size in sizes)
    assert written.plan.like.dtype == (np.uint16 if in_bf16 else np.float32)
    error, different = (2e-2 if in_bf16 and sizes else 1e-5), []

    def close(found: Tensor, expected: Tensor) -> None:
        different.append(float((found - expected).norm() / expected.norm()))
        assert different[-1] < error

    found, right = written.forward(None)
    close(found, costs.detach())
    guessed = [(row[codes[n] >= 0].argmax(1) == codes[n][codes[n] >= 0]).sum().item() for n, row in enumerate(logits)]
    assert right[:, 1].tolist() == (codes >= 0).sum(1).tolist()
    assert np.abs(right[:, 0] - guessed).max() <= (2 if in_bf16 else 0)
    written.backward(1.0, for_weights=True, by_c=False)
    for key, expected in zip(keys, wanted, strict=True):
        close(one.weights[f"of_{key}"].grad, expected)
    written.forward(None)
    by_c = written.backward(1.0, for_weights=False, by_c=True)
    assert by_c is not None
    close(by_c, c.grad)
    assert max(different) > (1e-4 if in_bf16 and sizes else 0)  # rounded to bf16 on the way, or not


#: Rows, columns and inner dimension of products that are left to a compiled loop, and of some that torch makes sooner.
SMALL, LARGE = ((1, 1, 1), (128, 16, 16), (16, 2, 128), (9, 33, 5), (64, 32, 30)), ((128, 15, 128), (64, 1024, 34), (128, 128, 128))


@pytest.mark.parametrize("kind", [PLAIN, TURNED_RIGHT, TURNED_LEFT])
def test_small_products_of_float32_are_made_here(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(7)
    asked, by_torch = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, out: asked.append(a.shape) or by_torch(a, b, out=out))
    for small, sizes in ((True, SMALL), (False, LARGE)):
        for n_rows, n_columns, n_inner in sizes:
            a = torch.randn((n_inner, n_rows) if kind == TURNED_LEFT else (n_rows, n_inner))
            b = torch.randn((n_columns, n_inner) if kind == TURNED_RIGHT else (n_inner, n_columns))
            out = torch.full((n_rows, n_columns), float("nan"))
            asked.clear()
            add_product(Space(), kind, a, b, out)
            assert bool(asked) != small, (n_rows, n_columns, n_inner)
            expected = (a.t() if kind == TURNED_LEFT else a).double() @ (b.t() if kind == TURNED_RIGHT else b).double()
            torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-4)


def test_rows_are_rounded_to_bf16_as_torch_rounds_them() -> None:
    @numba.njit
    def keep(row: np.ndarray, out: np.ndarray) -> None:
        half.keep(half.row_for(out, row), out)

    values = np.float32([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-9, 3.4e38, np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-30, *np.random.default_rng(0).normal(size=30)])
    for size in (1, 15, 16, 17, 33, len(values)):
        out = np.zeros(size, np.uint16)
        keep(values[:size], out)
        expected = torch.from_numpy(values[:size]).bfloat16()
        found = torch.from_numpy(out.view(np.int16)).view(torch.bfloat16)
        assert torch.equal(found[~expected.isnan()], expected[~expected.isnan()])
        assert torch.equal(found.isnan(), expected.isnan())


def test_columns_in_no_order_give_the_same_sums_of_blocks() -> None:
    step = pytest.importorskip("cellweave.core.nn.step_kernels")
    rng = np.random.default_rng(8)
    sizes, n_cells, width = (3, 5, 4), 6, 20
    block = np.repeat(np.arange(3), sizes)
    dense = rng.standard_normal((n_cells, 12)).astype(np.float32)
    weight = rng.standard_normal((12, width)).astype(np.float32)
    order = np.concatenate([rng.permutation(12) for _ in range(n_cells)])
    values = np.concatenate([row[order[12 * n : 12 * n + 12]] for n, row in enumerate(dense)])
    out = np.full((3 * n_cells, width), np.nan, np.float32)
    assert step.sparse_forward(12 * np.arange(n_cells + 1), order, values, block, 0, n_cells, weight, out)
    for b in range(3):
        own = block == b
        np.testing.assert_allclose(out[b * n_cells : (b + 1) * n_cells], dense[:, own] @ weight[own], atol=1e-5)


def test_what_is_no_product_is_refused_before_its_memory_is_touched() -> None:
    a, b, out = torch.ones(4, 32).bfloat16(), torch.ones(32, 8).bfloat16(), torch.zeros(4, 8).bfloat16()
    for wrong in ((a, b, out.float()), (a, b[:16], out), (a, torch.ones(8, 32).bfloat16().t(), out), (a, b, out[:3])):
        with pytest.raises(ValueError, match="not matrices of a product"):
            add_product(Space(), PLAIN, *wrong)
    with pytest.raises(ValueError, match="not one of those"):
        CompiledAdam(made().parameters(), decoupled=True).lend([torch.nn.Parameter(torch.zeros(2))], 1)


def test_a_person_is_told_what_the_first_run_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    module, told = "cellweave.core.nn.adam_kernel", []
    load_loops(("adam_kernel",), lambda *said: told.append(said))
    monkeypatch.delitem(sys.modules, module)
    told.clear()
    load_loops(("compiled", "adam_kernel"), lambda *said: told.append(said))
    assert [fraction for fraction, _ in told] == [0.0, 1.0]
    assert "once on a machine" in told[0][1]
    assert module in sys.modules
    load_loops(("compiled", "adam_kernel"), lambda *said: told.append(said))
    assert len(told) == 2


def shifted(x: np.ndarray) -> bool:
    x[0] += np.float32(1.0)
    return True


def test_machine_code_of_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = pytest.importorskip("cellweave.core.nn.compiled")
    signature = numba.types.boolean(compiled.VECTOR)
    hits = []
    for digest in ("one", "one", "other"):
        monkeypatch.setattr(compiled, "_fingerprint", lambda digest=digest: digest)
        made = compiled._compile(shifted, signature)
        x = np.zeros(2, np.float32)
        assert made(x)
        assert x[0] == 1.0
        hits.append(sum(made.stats.cache_hits.values()))
    assert hits == [hits[0], 1, 0]
