"""Neighbourhood metrics against the reference's numbers, and against a second form that loops over cells."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cellweave.core.analysis.neighbourhood import Edges, Keys, Profiles, averages, cell_metrics, masks, normalised
from cellweave.core.analysis.neighbourhood_summary import composite, headlines
from cellweave.core.analysis.scores import Column

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden" / "regularizedvi.json").read_text())["neighbourhood"]


def column(values):
    levels, codes = np.unique(np.asarray(values, dtype=str), return_inverse=True)
    return Column(codes, tuple(levels))


@pytest.fixture(scope="module")
def golden():
    keys = Keys(column(GOLDEN["obs"]["lib"]), column(GOLDEN["obs"]["ds"]), {"kit": column(GOLDEN["obs"]["kit"])})
    markers = [int(name[1:]) for name in GOLDEN["markers"]]
    profiles = Profiles(normalised(sparse.csr_matrix(np.array(GOLDEN["X"])))[:, markers])
    metrics = cell_metrics(profiles, Edges.of_graph(sparse.csr_matrix(np.array(GOLDEN["W"]))), keys)
    return metrics, keys


@pytest.mark.parametrize("name", list(GOLDEN["metrics"]))
def test_metrics_of_cells_equal_the_reference(golden, name):
    wanted = np.array([math.nan if value is None else value for value in GOLDEN["metrics"][name]])
    np.testing.assert_allclose(golden[0][name], wanted, rtol=0, atol=1e-9)


def test_headlines_and_composite_equal_the_reference(golden):
    found = headlines(*golden)
    # The reference's headlines are of its own float32 metrics, so they are that exact and no more.
    for name, value in GOLDEN["headline"].items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
    for name, value in GOLDEN["composite"].items():
        assert composite(found)[name] == pytest.approx(value, abs=1e-6), name


# ---------------------------------------------------------------------- a second form


def pearson(one, other):
    if one.std() < 1e-6 or other.std() < 1e-6:
        return math.nan
    return float(((one - one.mean()) * (other - other.mean())).mean() / (one.std() * other.std()))


def naive(values, graph, chosen):
    """Each cell for itself, in plain numpy."""
    found = {name: np.full(len(values), np.nan) for name in ("avg", "mean", "median", "weighted_mean", "weighted_median", "std", "cv", "discrepancy")}
    for cell in range(len(values)):
        near = [other for other in range(len(values)) if other != cell and graph[cell, other] != 0 and chosen(cell, other)]
        if not near:
            continue
        weight = graph[cell, near]
        found["avg"][cell] = pearson(values[cell], (weight[:, None] * values[near]).sum(0) / weight.sum())
        r = np.array([pearson(values[cell], values[other]) for other in near])
        usable = np.isfinite(r)
        r, weight = r[usable], weight[usable]
        if len(r):
            order = np.argsort(r, kind="stable")
            running = np.cumsum(weight[order])
            mean, std = r.mean(), r.std() if len(r) > 1 else 0.0
            found["mean"][cell], found["median"][cell], found["std"][cell] = mean, np.median(r), std
            found["weighted_mean"][cell] = np.average(r, weights=weight)
            found["weighted_median"][cell] = r[order][np.argmax(running >= running[-1] / 2)]
            if len(r) > 1 and abs(mean) > 1e-12:
                found["cv"][cell] = std / abs(mean)
        found["discrepancy"][cell] = found["avg"][cell] - found["mean"][cell]
    return found


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(4, 24), st.integers(2, 9), st.booleans())
def test_metrics_equal_a_loop_over_cells(seed, n_cells, n_markers, gaps):
    rng = np.random.default_rng(seed)
    counts = sparse.csr_matrix(rng.poisson(rng.gamma(0.6, 1.5, size=(n_cells, n_markers + 2))))
    weights = np.where(rng.random((n_cells, n_cells)) < 0.4, rng.random((n_cells, n_cells)), 0)
    library, kit = rng.integers(-1 if gaps else 0, 3, n_cells), rng.integers(0, 2, n_cells)
    dataset = np.where(library < 0, -1, library // 2)
    names = ("0", "1", "2")
    keys = Keys(Column(library, names), Column(dataset, names), {"kit": Column(kit, names)})
    expression = normalised(counts)
    values = expression.toarray()[:, :n_markers]
    np.testing.assert_allclose(expression.toarray().mean(axis=1)[np.asarray(counts.sum(axis=1)).ravel() > 0], 1.0)
    metrics = cell_metrics(Profiles(expression[:, :n_markers]), Edges.of_graph(sparse.csr_matrix(weights)), keys)

    def known(codes):
        return lambda one, other: codes[one] >= 0 and codes[other] >= 0

    kinds = {
        "same_library": lambda i, j: known(library)(i, j) and library[i] == library[j],
        "between_libraries": lambda i, j: known(library)(i, j) and library[i] != library[j],
        "cross_library": lambda i, j: known(library)(i, j) and library[i] != library[j] and dataset[i] == dataset[j],
        "cross_dataset": lambda i, j: known(dataset)(i, j) and dataset[i] != dataset[j],
        "within_kit": lambda i, j: kit[i] == kit[j],
        "cross_technical": lambda i, j: kit[i] != kit[j],
    }
    for mask, chosen in kinds.items():
        for what, wanted in naive(values, weights, chosen).items():
            np.testing.assert_allclose(metrics[f"corr_{what}_{mask}"], wanted, atol=1e-9, err_msg=f"{what} {mask}")
    np.testing.assert_array_equal(metrics["n_neighbours_between_kit"] + metrics["n_neighbours_within_kit"], metrics["n_neighbours_total"])
    assert set(averages(Profiles(expression[:, :n_markers]), Edges.of_graph(sparse.csr_matrix(weights)), keys)) == {"corr_avg_all"} | {
        f"corr_avg_{name}" for name in masks(Edges.of_graph(sparse.csr_matrix(weights)), keys)
    }


def test_small_blocks_give_the_same(monkeypatch, golden):
    import cellweave.core.analysis.neighbourhood as module

    monkeypatch.setattr(module, "BLOCK", 7)
    profiles = Profiles(normalised(sparse.csr_matrix(np.array(GOLDEN["X"])))[:, :6])
    again = cell_metrics(profiles, Edges.of_graph(sparse.csr_matrix(np.array(GOLDEN["W"]))), golden[1])
    for name in GOLDEN["metrics"]:
        np.testing.assert_allclose(again[name], golden[0][name], atol=1e-12)
