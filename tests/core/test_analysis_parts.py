"""Neighbours, layouts, clusters, baseline and scores against independent forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist

from cellweave.core.analysis.baseline import baseline_pca, log_normalised
from cellweave.core.analysis.clusters import leiden
from cellweave.core.analysis.layout import align, fuzzy_graph, initial_layout, lay_out, refresh
from cellweave.core.analysis.neighbours import Neighbours, find_neighbours
from cellweave.core.analysis.scores import Column, beside, neighbour_scores, scored_rows
from cellweave.core.errors import Cancelled, DataError


@pytest.fixture(scope="module")
def blobs():
    """Five groups of 80 points in six dimensions."""
    rng = np.random.default_rng(1)
    kind = np.repeat(np.arange(5), 80)
    return (rng.normal(size=(5, 6)) * 8)[kind] + rng.normal(size=(400, 6)), kind


@pytest.fixture(scope="module")
def graph(blobs):
    return fuzzy_graph(find_neighbours(blobs[0], 14), 15)


# ---------------------------------------------------------------- neighbours


def test_neighbours_are_the_nearest(blobs):
    points = blobs[0].astype(np.float32)
    distances = cdist(points, points)
    np.fill_diagonal(distances, np.inf)
    found = find_neighbours(points, 7)
    np.testing.assert_allclose(found.distances, np.sort(distances, axis=1)[:, :7], rtol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(distances, found.indices, axis=1), found.distances, rtol=1e-4)


def test_copies_of_a_point_are_neighbours_but_never_the_point_itself():
    points = np.repeat(np.arange(4.0), 5)[:, None]
    found = find_neighbours(points, 4)
    own = np.arange(20)[:, None]
    assert not (found.indices == own).any()
    assert (found.indices // 5 == own // 5).all()
    assert not found.distances.any()


def test_long_searches_in_blocks_give_the_same(monkeypatch):
    points = np.random.default_rng(0).normal(size=(20_500, 2)).astype(np.float32)
    shares = []
    blocks = find_neighbours(points, 3, progress=shares.append)
    whole = find_neighbours(points, 3)
    np.testing.assert_array_equal(blocks.indices, whole.indices)
    assert shares[-1] == 1.0
    assert shares == sorted(shares)
    assert len(shares) > 3


@pytest.mark.slow  # compiling the search takes longer than any search in these tests
def test_approximate_neighbours_are_nearly_all_right():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(1500, 5)).astype(np.float32)
    near, exact = find_neighbours(points, 10, exact=False, seed=4), find_neighbours(points, 10)
    hits = [len(np.intersect1d(a, b)) for a, b in zip(near.indices, exact.indices, strict=True)]
    assert np.mean(hits) > 9.7
    assert not (near.indices == np.arange(1500)[:, None]).any()


def test_fewer_cells_than_neighbours_and_bad_values():
    assert find_neighbours(np.eye(4), 30).indices.shape == (4, 3)
    with pytest.raises(DataError, match="at least two cells"):
        find_neighbours(np.zeros((1, 2)), 3)
    with pytest.raises(DataError, match="not finite"):
        find_neighbours(np.array([[0.0], [np.nan]]), 1)


# ---------------------------------------------------------------- layout


def naive_graph(points, k):
    """Memberships from the paper: exp(-(d - rho) / sigma), sigma by bisection so that they sum to log2(k), then a + b - ab."""
    distances = cdist(points, points)
    directed = np.zeros_like(distances)
    for cell, row in enumerate(distances):
        near = np.argsort(row, kind="stable")[:k]
        rho, low, high = row[near][row[near] > 0].min(), 0.0, 1000.0
        for _ in range(80):
            sigma = (low + high) / 2
            total = np.exp(-np.maximum(row[near[1:]] - rho, 0) / sigma).sum()
            low, high = (sigma, high) if total < np.log2(k) else (low, sigma)
        directed[cell, near[1:]] = np.exp(-np.maximum(row[near[1:]] - rho, 0) / sigma)
    return directed + directed.T - directed * directed.T


def test_the_graph_is_that_of_the_paper(blobs, graph):
    np.testing.assert_allclose(graph.toarray(), naive_graph(blobs[0].astype(np.float32), 15), atol=2e-3)


def test_groups_stay_together_in_the_layout(blobs, graph):
    layout = lay_out(graph, initial_layout(blobs[0]), seed=0)
    near = find_neighbours(layout, 10).indices
    assert (blobs[1][near] == blobs[1][:, None]).mean() > 0.99


def test_a_seed_fixes_the_layout_and_leaves_the_graph_alone(blobs, graph):
    before, start = graph.copy(), initial_layout(blobs[0])
    first, second = (lay_out(graph, start, seed=3, n_epochs=20) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (graph != before).nnz == 0
    assert not np.array_equal(first, lay_out(graph, start, seed=4, n_epochs=20))


def test_a_layout_says_how_far_it_is_and_can_be_stopped(blobs, graph):
    shares = []

    def stop(share):
        shares.append(share)
        raise Cancelled

    with pytest.raises(Cancelled):
        lay_out(graph, initial_layout(blobs[0]), n_epochs=100_000, progress=stop)
    assert shares == [0.0]
    done = []
    lay_out(graph, initial_layout(blobs[0]), n_epochs=60, progress=done.append)
    assert done[-1] == 1.0


def test_alignment_undoes_turning_mirroring_and_moving():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(50, 2))
    turn = np.array([[np.cos(2), -np.sin(2)], [np.sin(2), np.cos(2)]]) @ np.diag([1, -1])
    np.testing.assert_allclose(align(reference @ turn + 7, reference), reference, atol=1e-5)


def test_a_refresh_flows_where_a_new_layout_would_jump():
    rng = np.random.default_rng(1)
    kind = rng.integers(0, 5, 400)
    points = ((rng.normal(size=(5, 6)) * 1.5)[kind] + rng.normal(size=(400, 6))).astype(np.float32)
    before = refresh(points, None)
    moved = points + rng.normal(scale=0.05, size=points.shape).astype(np.float32)
    after = refresh(moved, before)
    step = np.median(np.linalg.norm(after - before, axis=1)) / before.std()
    assert step < 0.45, "a fresh layout moves the median cell by about 1"
    near = find_neighbours(after, 10).indices
    assert (kind[near] == kind[:, None]).mean() > (kind[find_neighbours(moved, 10).indices] == kind[:, None]).mean() - 0.1


def test_identical_cells_and_one_dimension_can_be_laid_out():
    for points in (np.zeros((30, 3)), np.linspace(0, 1, 30)[:, None]):
        layout = refresh(points, None)
        assert layout.shape == (30, 2)
        assert np.isfinite(layout).all()


# ---------------------------------------------------------------- clusters and baseline


def test_clusters_are_the_groups_largest_first_and_the_same_each_time(blobs, graph):
    found = leiden(graph, resolution=0.3)
    assert len(np.unique(found)) == 5
    assert all(len(np.unique(found[blobs[1] == kind])) == 1 for kind in range(5))
    fine = leiden(graph, resolution=2.0)
    assert fine.max() > 5
    sizes = np.bincount(fine)
    assert (np.diff(sizes) <= 0).all()
    np.testing.assert_array_equal(fine, leiden(graph, resolution=2.0))


def test_clusters_are_those_of_scanpy(blobs, graph):
    import anndata
    import scanpy as sc

    adata = anndata.AnnData(np.zeros((400, 1), dtype=np.float32))
    sc.tl.leiden(adata, adjacency=graph, flavor="igraph", n_iterations=2, directed=False, random_state=0, resolution=1.0)
    ours, theirs = leiden(graph, resolution=1.0, seed=0), adata.obs["leiden"].astype(int).to_numpy()
    assert len(np.unique(ours)) == len(np.unique(theirs))
    assert len(np.unique(ours * 1000 + theirs)) == len(np.unique(ours)), "the same partition under other numbers"


def test_the_baseline_is_the_pca_of_the_dense_matrix():
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(1, 2, size=60), size=(150, 60)).astype(np.float32)
    counts[7] = 0
    matrix = sparse.csr_matrix(counts)
    kept = matrix.copy()
    found = baseline_pca(matrix, n_components=5)
    totals = counts.sum(axis=1, keepdims=True)
    logged = np.log1p(counts / np.maximum(totals, 1e-9) * np.median(totals[totals > 0]))
    np.testing.assert_allclose(log_normalised(matrix).toarray(), logged, rtol=1e-5)
    centred = logged - logged.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(found), np.abs(left[:, :5] * values[:5]), rtol=1e-3, atol=1e-3)
    assert (matrix != kept).nnz == 0
    np.testing.assert_array_equal(found, baseline_pca(matrix, n_components=5))


@pytest.mark.parametrize("shape", [(3, 40), (40, 3), (2, 2), (40, 1)])
def test_the_baseline_of_little_data_has_what_it_can_have(shape):
    counts = sparse.csr_matrix(np.random.default_rng(0).poisson(3.0, size=shape))
    found = baseline_pca(counts, n_components=30)
    assert found.shape[0] == shape[0]
    assert np.isfinite(found).all()


# ---------------------------------------------------------------- scores


def naive_share(indices, codes, within=None):
    """The definition, cell by cell."""
    shares, chances = [], []
    for cell, near in enumerate(indices):
        peers = [j for j in range(len(codes)) if j != cell and codes[j] >= 0 and (within is None or within[j] == within[cell])]
        seen = [j for j in near if codes[j] >= 0 and (within is None or within[j] == within[cell])]
        if codes[cell] < 0 or (within is not None and within[cell] < 0) or not seen:
            continue
        shares.append(np.mean([codes[j] == codes[cell] for j in seen]))
        chances.append(np.mean([codes[j] == codes[cell] for j in peers]))
    return np.mean(shares), np.mean(chances)


@pytest.fixture
def case():
    rng = np.random.default_rng(2)
    n_cells = 120
    indices = np.array([rng.choice(np.delete(np.arange(n_cells), i), 9, replace=False) for i in range(n_cells)], dtype=np.int32)
    batch, label = rng.choice([-1, 0, 1, 2], n_cells, p=[0.1, 0.5, 0.3, 0.1]), rng.choice([-1, 0, 1], n_cells, p=[0.2, 0.5, 0.3])
    return Neighbours(indices, np.zeros(indices.shape, np.float32)), Column(batch, ("x", "y", "z")), Column(label, ("T", "B"))


def test_scores_are_their_definitions(case):
    near, batch, labels = case
    found = {(row["name"], row["group"]): row for row in neighbour_scores(near, batch=batch, labels=labels)}
    for name, codes, within in (
        ("batch_same_share", batch.codes, None), ("label_purity", labels.codes, None), ("batch_same_share_in_label", batch.codes, labels.codes)
    ):  # fmt: skip
        share, chance = naive_share(near.indices, codes, within)
        assert found[name, ""]["value"] == pytest.approx(share), name
        assert found[name, ""]["expected"] == pytest.approx(chance), name
    same = found["batch_same_share", ""]
    assert found["batch_mixing", ""]["value"] == pytest.approx((1 - same["value"]) / (1 - same["expected"]))
    votes = [np.bincount(labels.codes[row][labels.codes[row] >= 0], minlength=2).argmax() for row in near.indices]
    known = labels.codes >= 0
    assert found["label_accuracy", ""]["value"] == pytest.approx(np.mean((votes == labels.codes)[known]))
    assert found["label_accuracy", ""]["expected"] == pytest.approx(np.bincount(labels.codes[known]).max() / known.sum())


def test_levels_average_to_the_whole(case):
    near, batch, _ = case
    rows = [row for row in neighbour_scores(near, batch=batch) if row["name"] == "batch_same_share"]
    sizes = np.bincount(batch.codes[batch.codes >= 0])
    assert [row["group"] for row in rows] == ["", "x", "y", "z"]
    assert np.average([row["value"] for row in rows[1:]], weights=sizes) == pytest.approx(rows[0]["value"])
    assert rows[1]["expected"] == pytest.approx((sizes[0] - 1) / (sizes.sum() - 1))


def test_separate_and_mixed_batches_are_told_apart(blobs):
    near = find_neighbours(blobs[0], 30)
    apart = {row["name"]: row["value"] for row in neighbour_scores(near, batch=Column(blobs[1], tuple("abcde"))) if not row["group"]}
    shuffled = Column(np.random.default_rng(0).permutation(blobs[1]), tuple("abcde"))
    mixed = {row["name"]: row["value"] for row in neighbour_scores(near, batch=shuffled) if not row["group"]}
    assert apart["batch_mixing"] < 0.01
    assert mixed["batch_mixing"] == pytest.approx(1.0, abs=0.03)


def test_what_cannot_be_scored_is_left_out(case):
    near, *_ = case
    assert neighbour_scores(near) == []
    assert neighbour_scores(near, batch=Column(np.zeros(120, int), ("one",)), labels=Column(np.full(120, -1), ())) == []
    each = neighbour_scores(near, batch=Column(np.arange(120), tuple(map(str, range(120)))))
    assert {row["value"] for row in each if row["name"] == "batch_same_share"} == {0.0}


def test_the_baseline_stands_beside_the_score_it_belongs_to(case):
    near, batch, labels = case
    rows = neighbour_scores(near, batch=batch, labels=labels)
    other = [{**row, "value": row["value"] + 1} for row in rows if row["name"] != "label_purity"]
    joined = beside(rows, other)
    assert all(row["baseline"] is None if row["name"] == "label_purity" else row["baseline"] == row["value"] + 1 for row in joined)
    assert {row["baseline"] for row in beside(rows, None)} == {None}


def test_large_data_are_scored_on_a_sample():
    rows = scored_rows(1000, limit=100, seed=1)
    assert len(np.unique(rows)) == 100
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, scored_rows(1000, limit=100, seed=1))
    np.testing.assert_array_equal(scored_rows(50, limit=100), np.arange(50))
