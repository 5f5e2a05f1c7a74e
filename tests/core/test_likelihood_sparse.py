"""The fast likelihoods equal the plain ones, in value and gradient, whatever the counts and parameters."""

import contextlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellweave.core.nn import compiled_call
from cellweave.core.nn.compiled_call import without_compiled
from cellweave.core.nn.counts import CountBatch
from cellweave.core.nn.likelihoods import nb_log_prob, normal_log_prob, poisson_log_prob, zinb_log_prob
from cellweave.core.nn.sparse_likelihoods import nb_nll, normal_nll, poisson_nll, softmax_nll, softmax_poisson_nll

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)
FORMS = ("float64 passes", "float32 passes", "float32 compiled")


@st.composite
def cases(draw):
    """Counts and parameters of a random minibatch, with some cells empty and some counts large."""
    n_cells, n_features = draw(st.integers(1, 9)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    top = draw(st.sampled_from([1, 3, 30, 2000]))
    x = rng.integers(0, top + 1, (n_cells, n_features)) * (rng.random((n_cells, n_features)) < draw(st.floats(0, 1)))
    if draw(st.booleans()):
        x[rng.integers(n_cells)] = 0
    if draw(st.booleans()):
        x = x + 0.37 * (x > 0)
    layout = draw(st.sampled_from(["gene", "group", "cell"]))
    n_groups = draw(st.integers(1, 4))
    shape = {"gene": (n_features,), "group": (n_groups, n_features), "cell": (n_cells, n_features)}[layout]
    spread = draw(st.sampled_from([0.3, 2.0]))
    return {
        "x": x.astype(np.float64),
        "mu": np.exp(spread * rng.normal(size=x.shape)),
        "logits": spread * rng.normal(size=x.shape),
        "library": np.where(x.sum(1) > 0, np.exp(spread * rng.normal(size=n_cells) + 3), 0.0),
        "theta": np.exp(spread * rng.normal(size=shape)),
        "zi": 3 * spread * rng.normal(size=x.shape) if draw(st.booleans()) else None,
        "group": rng.integers(0, n_groups, n_cells) if layout == "group" else None,
        "weight": rng.random(n_cells) + 0.1,
    }


def _leaves(case, names, dtype):
    return {
        name: torch.tensor(case[name], dtype=dtype).requires_grad_() for name in names if case[name] is not None
    }


def _plain(case, leaves):
    x = torch.tensor(case["x"])
    theta = leaves["theta"] if case["group"] is None else leaves["theta"][torch.tensor(case["group"])]
    mu = leaves["mu"] if "mu" in leaves else leaves["library"][:, None] * torch.softmax(leaves["logits"], 1)
    if "zi" in leaves:
        return -zinb_log_prob(x, mu, theta, leaves["zi"]).sum(1)
    return -nb_log_prob(x, mu, theta).sum(1)


def _fast(case, leaves, dtype):
    counts = CountBatch.from_dense(case["x"], dtype=dtype)
    group = None if case["group"] is None else torch.tensor(case["group"])
    rest = {"zi_logits": leaves.get("zi"), "group": group}
    if "mu" in leaves:
        return nb_nll(counts, leaves["mu"], leaves["theta"], **rest)
    return softmax_nll(counts, leaves["logits"], leaves["library"], leaves["theta"], **rest)


def _compare(case, names, form):
    dtype = torch.float64 if "64" in form else torch.float32
    exact, ours = _leaves(case, names, torch.float64), _leaves(case, names, dtype)
    wanted = _plain(case, exact)
    if "compiled" in form:
        assert compiled_call.usable(ours["theta"], ours["theta"])
        found = _fast(case, ours, dtype)
    else:
        with without_compiled():
            found = _fast(case, ours, dtype)
    assert found.dtype == dtype
    # torch's softplus, in the plain form, is linear above 20, which is wrong by 2e-9.
    tolerance = (1e-9 if case["zi"] is None else 1e-8) if dtype == torch.float64 else 1e-5
    # A term of the sum may be far larger than the sum, by which the rounding of float32 is measured.
    size = case["x"].sum(1) * 8 + case["x"].shape[1] * 8
    np.testing.assert_array_less(np.abs((found.double() - wanted).detach().numpy()), tolerance * size)
    weight = torch.tensor(case["weight"])
    theirs = torch.autograd.grad(wanted, list(exact.values()), weight)
    mine = torch.autograd.grad(found, list(ours.values()), weight.to(dtype))
    for name, a, b in zip(exact, mine, theirs, strict=True):
        assert a.dtype == dtype
        assert torch.isfinite(a).all(), name
        scale = max(1.0, float(b.abs().max()))
        torch.testing.assert_close(
            a.double(), b, rtol=tolerance, atol=tolerance * scale, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("form", FORMS)
@SETTINGS
@given(case=cases())
def test_with_means(form, case):
    _compare(case, ("mu", "theta", "zi"), form)


@pytest.mark.parametrize("form", FORMS)
@SETTINGS
@given(case=cases())
def test_with_softmax_shares_and_library(form, case):
    _compare(case, ("logits", "library", "theta", "zi"), form)


@SETTINGS
@given(case=cases())
def test_poisson(case):
    leaves, weight = _leaves(case, ("mu",), torch.float64), torch.tensor(case["weight"])
    wanted = -poisson_log_prob(torch.tensor(case["x"]), leaves["mu"]).sum(1)
    found = poisson_nll(CountBatch.from_dense(case["x"], dtype=torch.float64), leaves["mu"])
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(value, leaves["mu"], weight)[0] for value in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@SETTINGS
@given(cases())
def test_poisson_of_a_softmax(case):
    """Value and gradients, also of the library size; a cell without counts has a library size of 0."""
    leaves, again = (_leaves(case, ("logits", "library"), torch.float64) for _ in range(2))
    counts, weight = CountBatch.from_dense(case["x"], dtype=torch.float64), torch.tensor(case["weight"])
    wanted = poisson_nll(counts, again["library"][:, None] * torch.softmax(again["logits"], 1))
    found = softmax_poisson_nll(counts, leaves["logits"], leaves["library"])
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-9)
    (found * weight).sum().backward()
    (wanted * weight).sum().backward()
    torch.testing.assert_close(leaves["logits"].grad, again["logits"].grad, rtol=1e-9, atol=1e-9)
    some = torch.tensor(case["x"].sum(1) > 0)
    torch.testing.assert_close(leaves["library"].grad[some], again["library"].grad[some], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(leaves["library"].grad[~some], weight[~some])
    single = softmax_poisson_nll(CountBatch.from_dense(case["x"]), leaves["logits"].detach().float(), leaves["library"].detach().float())
    torch.testing.assert_close(single.double(), wanted.detach(), rtol=2e-5, atol=2e-3)


@SETTINGS
@given(cases())
def test_normal(case):
    """Value and gradients, with a standard deviation per feature, per group and feature, and per cell and feature."""
    leaves, again = (_leaves(case, ("mu", "theta"), torch.float64) for _ in range(2))
    x, weight = torch.tensor(case["x"]), torch.tensor(case["weight"])
    group = None if case["group"] is None else torch.tensor(case["group"])
    wide = again["theta"] if group is None else again["theta"][group]
    wanted = -normal_log_prob(x, again["mu"], wide).sum(1)
    found = normal_nll(x, leaves["mu"], leaves["theta"], group=group)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-9)
    (found * weight).sum().backward()
    (wanted * weight).sum().backward()
    for name in ("mu", "theta"):
        torch.testing.assert_close(leaves[name].grad, again[name].grad, rtol=1e-9, atol=1e-9)


def test_poisson_where_a_stored_zero_meets_a_rate_of_zero():
    rate = torch.tensor([[0.0, 2.0]], requires_grad=True)
    counts = CountBatch(torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([0.0, 3.0]), (1, 2), integer=True)
    value = poisson_nll(counts, rate)
    value.sum().backward()
    assert value.item() == pytest.approx(2 - 3 * math.log(2) + math.log(6))
    torch.testing.assert_close(rate.grad, torch.tensor([[1.0, -0.5]]))


def _case(x, seed=0, layout=None):
    rng = np.random.default_rng(seed)
    return {
        "x": np.asarray(x, dtype=np.float64),
        "mu": np.exp(rng.normal(size=np.shape(x))), "logits": rng.normal(size=np.shape(x)),
        "library": rng.random(len(x)) * 100, "theta": np.exp(rng.normal(size=layout or np.shape(x)[1:])),
        "zi": rng.normal(size=np.shape(x)), "group": None, "weight": rng.random(len(x)) + 0.1,
    }


@pytest.mark.parametrize("form", FORMS)
def test_a_minibatch_of_zeros(form):
    case = _case(np.zeros((4, 7)))
    _compare(case, ("mu", "theta", "zi"), form)
    _compare({**case, "library": np.zeros(4)}, ("logits", "library", "theta", "zi"), form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 23, 24, 25, 26, 1000, 60000])
def test_counts_on_both_sides_of_the_table(form, count):
    # Enough stored counts that the table pays, and one count that decides where the tail begins.
    x = np.random.default_rng(count).integers(0, 3, (64, 8))
    x[3, 5] = count
    _compare(_case(x), ("mu", "theta"), form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("logit", [-100.0, -40.0, 0.0, 40.0, 100.0])
def test_extreme_logits_of_extra_zeros(form, logit):
    case = _case(np.random.default_rng(1).poisson(1.0, (5, 6)))
    case["zi"] = np.full((5, 6), logit)
    case["mu"] = case["mu"] * np.array([1e-6, 1e-3, 1.0, 1e3, 1e5, 1e6])
    _compare(case, ("mu", "theta", "zi"), form)


@pytest.mark.parametrize("form", ["passes", "compiled"])
def test_stored_zeros_count_as_zeros(form):
    x = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]])
    clean = CountBatch.from_dense(x)
    padded = CountBatch(
        torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 2]), torch.tensor([0.0, 2.0, 1.0, 0.0]), (2, 3), integer=True
    )
    case = _case(x.numpy())
    results = []
    for counts in (clean, padded):
        leaves = _leaves(case, ("mu", "theta", "zi"), torch.float32)
        if form == "passes":
            with without_compiled():
                value = nb_nll(counts, leaves["mu"], leaves["theta"], zi_logits=leaves["zi"])
        else:
            value = nb_nll(counts, leaves["mu"], leaves["theta"], zi_logits=leaves["zi"])
        results.append((value, *torch.autograd.grad(value.sum(), list(leaves.values()))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", ["gene", "group", "cell"])
@pytest.mark.parametrize("inflated", [False, True])
@pytest.mark.parametrize("softmax", [False, True])
def test_gradients_by_finite_difference(layout, inflated, softmax):
    shape = {"gene": (6,), "group": (2, 6), "cell": (3, 6)}[layout]
    case = _case(np.random.default_rng(2).poisson(2.0, (3, 6)), layout=shape)
    if layout == "group":
        case["group"] = np.array([1, 0, 1])
    if not inflated:
        case["zi"] = None
    names = ("logits", "library", "theta", "zi") if softmax else ("mu", "theta", "zi")
    leaves = _leaves(case, names, torch.float64)
    assert torch.autograd.gradcheck(
        lambda *values: _fast(case, dict(zip(leaves, values, strict=True)), torch.float64), tuple(leaves.values())
    )


@pytest.mark.parametrize("place", ["logits", "zi", "theta", "library"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("form", ["passes", "compiled"])
def test_what_is_not_finite_reaches_the_loss(place, bad, form):
    case = _case(np.random.default_rng(4).poisson(1.0, (3, 40)))
    case[place].flat[1] = bad
    leaves = _leaves(case, ("logits", "library", "theta", "zi"), torch.float32)
    if form == "passes":
        with without_compiled():
            value = _fast(case, leaves, torch.float32)
    else:
        value = _fast(case, leaves, torch.float32)
    assert not torch.isfinite(value).all()


def test_threads_share_the_cells_and_agree():
    case = _case(np.random.default_rng(5).poisson(1.0, (37, 50)))
    before, values = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            leaves = _leaves(case, ("logits", "library", "theta", "zi"), torch.float32)
            value = _fast(case, leaves, torch.float32)
            values.append((value, *torch.autograd.grad(value.sum(), list(leaves.values()))))
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*values, strict=True):
        assert torch.equal(a, b)


def test_no_gradient_is_computed_where_none_is_wanted():
    case = _case(np.random.default_rng(6).poisson(1.0, (5, 9)))
    leaves = _leaves(case, ("logits", "library", "theta", "zi"), torch.float32)
    with torch.no_grad():
        value = _fast(case, leaves, torch.float32)
    assert not value.requires_grad
    torch.testing.assert_close(value, _fast(case, leaves, torch.float32).detach(), rtol=0, atol=0)


def test_mixed_precision_around_it_changes_nothing():
    case = _case(np.random.default_rng(7).poisson(1.0, (5, 9)))
    leaves = _leaves(case, ("logits", "library", "theta", "zi"), torch.float32)
    with without_compiled():
        wanted = _fast(case, leaves, torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = _fast(case, leaves, torch.float32)
    assert torch.equal(found, wanted)


def test_a_second_backward_gives_the_same():
    case = _case(np.random.default_rng(8).poisson(1.0, (5, 9)))
    leaves = _leaves(case, ("mu", "theta", "zi"), torch.float32)
    value = _fast(case, leaves, torch.float32).sum()
    first = torch.autograd.grad(value, list(leaves.values()), retain_graph=True)
    second = torch.autograd.grad(value, list(leaves.values()))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("form", ["passes", "compiled"])
@pytest.mark.parametrize("code", [-1, 2])
def test_a_group_that_does_not_exist_is_an_error(code, form):
    counts = CountBatch.from_dense(torch.ones(3, 4))
    with without_compiled() if form == "passes" else contextlib.nullcontext(), pytest.raises((IndexError, RuntimeError)):
        nb_nll(counts, torch.ones(3, 4), torch.ones(2, 4), group=torch.tensor([0, code, 1]))


@pytest.mark.parametrize("column", [-1, 4])
def test_a_column_that_does_not_exist_is_an_error(column):
    counts = CountBatch.from_csr(np.array([0, 1, 2]), np.array([0, column]), np.array([1, 1]), 4)
    with pytest.raises(IndexError, match="column"):
        nb_nll(counts, torch.ones(2, 4), torch.ones(4))
    with pytest.raises(IndexError, match="column"):
        counts.log1p()


def test_the_passes_serve_where_numba_is_missing(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(compiled_call, "_state", {**compiled_call._state, "looked": False, "compiled": None})
    monkeypatch.setattr(compiled_call.importlib, "import_module", missing)
    theta = torch.ones(3)
    assert not compiled_call.usable(torch.ones(2, 3), theta)
    assert torch.isfinite(nb_nll(CountBatch.from_dense(torch.ones(2, 3)), torch.ones(2, 3), theta)).all()
