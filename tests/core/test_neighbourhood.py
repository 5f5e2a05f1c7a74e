"""Neighbourhood diagnostics: failure leaves, markers, summaries, runs compared, the task and the command."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellweave.core.analysis import neighbourhood_failures as failures
from cellweave.core.analysis import neighbourhood_summary as summary
from cellweave.core.analysis.neighbourhood import Edges, Keys, random_edges
from cellweave.core.analysis.neighbourhood_markers import (
    Marker,
    published_markers,
    read_markers,
    select_markers,
    specific_features,
)
from cellweave.core.analysis.neighbourhood_run import (
    NeighbourhoodOptions,
    check_hierarchy,
    column_of,
    compare_runs,
    diagnose_run,
    read_cells,
)
from cellweave.core.analysis.process import AnalysisProcess
from cellweave.core.analysis.scores import Column
from cellweave.core.errors import DataError, RunFolderError, SpecError


def metrics_of(**columns):
    """Make metrics of some cells: (number, correlation, spread) by kind of neighbour."""
    found = {"n_neighbours_total": np.full(len(next(iter(columns.values()))), 10)}
    for mask, rows in columns.items():
        n, correlation, spread = (np.array(values, dtype=float) for values in zip(*rows, strict=True))
        found |= {f"n_neighbours_{mask}": n.astype(int), f"corr_avg_{mask}": correlation, f"corr_std_{mask}": spread}
    return found


NONE = (0, math.nan, math.nan)
HIGH, MIXED, LOW, LOW_MIXED = (5, 0.9, 0.1), (5, 0.9, 0.5), (5, 0.2, 0.1), (5, 0.2, 0.5)
LIMITS = {"threshold_high": 0.5, "threshold_spread": 0.3}


def test_leaves_within_a_library():
    metrics = metrics_of(same_library=[NONE, HIGH, MIXED, LOW, LOW_MIXED, LOW, (5, math.nan, math.nan)])
    random = {"corr_avg_same_library": np.array([0, 0, 0, 0.1, 0.1, 0.3, math.nan])}
    found = failures.classify(metrics, random=random, **LIMITS)
    assert list(found.levels["leaf_within_library"]) == [
        "WL-0_orphan", "WL-1_ideal", "WL-2_merged_related", "WL-4_false_merge_confident", "WL-5_false_merge_partial", "WL-3_noisy", "WL-3_noisy",
    ]  # fmt: skip
    assert list(found.levels["failure_mode"][:2]) == ["WL-0_orphan", "ideal"]


def test_leaves_across_libraries_and_the_most_severe():
    metrics = metrics_of(same_library=[HIGH, LOW, HIGH, HIGH, HIGH, HIGH, LOW], cross_library=[NONE, NONE, HIGH, MIXED, LOW, LOW_MIXED, LOW])
    found = failures.classify(metrics, **LIMITS).levels
    assert list(found["leaf_across_libraries"]) == [
        "XL-0a_under_integration", "XL-0b_compounded_failure", "XL-1_ideal", "XL-2_partial", "XL-3_wrong_pairing", "XL-4_forced_distinct", "XL-5_poor_model",
    ]  # fmt: skip
    assert found["failure_mode"][1] == "XL-0b_compounded_failure" and found["failure_mode"][2] == "ideal" and found["failure_mode"][6] == "XL-5_poor_model"


def test_leaves_across_data_sets_and_what_other_models_say():
    rows = [NONE, NONE, NONE, HIGH, MIXED, HIGH, LOW, LOW_MIXED, LOW_MIXED]
    metrics = metrics_of(same_library=[HIGH] * 9, cross_library=[HIGH] * 9, cross_dataset=rows)
    random = {"corr_avg_cross_dataset": np.array([0, 0, 0, 0, 0, 0.95, 0, 0, 0])}
    broad = {"corr_avg_cross_dataset": np.array([0.9] * 8 + [0.1])}
    subtype = {"corr_avg_cross_dataset": np.full(9, 0.1)}
    others = failures.OtherModels(np.array([True, False, False] + [False] * 6), np.array([True, True, False] + [True] * 6))
    found = failures.classify(metrics, random=random, groups={"broad": broad, "subtype": subtype}, others=others, **LIMITS).levels
    assert list(found["leaf_across_datasets"]) == [
        "XD-0b_under_integration", "XD-0a_dataset_enriched", "XD-0_isolated_unknown", "XD-1_ideal", "XD-3_partial", "XD-2_spurious",
        "XD-4a_wrong_pairing", "XD-5a_forced_merge", "XD-5b_semi_random",
    ]  # fmt: skip
    # a population of one data set is no failure
    assert found["failure_mode"][1] == "ideal" and found["failure_mode"][0] == "XD-0b_under_integration"


def test_isolation_after_failures_nearer_by():
    metrics = metrics_of(same_library=[HIGH, LOW, HIGH, LOW], cross_library=[NONE, NONE, LOW, LOW], cross_dataset=[NONE, NONE, LOW, LOW])
    found = failures.classify(metrics, **LIMITS).levels["leaf_across_datasets"]
    assert list(found) == ["XD-0c_cascaded", "XD-0d_compounded", "XD-4b_systematic_failure", "XD-6_poor_model"]


def test_every_cell_has_a_leaf_and_every_leaf_words():
    rng = np.random.default_rng(0)
    rows = {
        mask: [(int(n), r, s) if n else NONE for n, r, s in zip(rng.integers(0, 2, 500), rng.random(500), rng.random(500), strict=True)]
        for mask in ("same_library", "cross_library", "cross_dataset")
    }
    found = failures.classify(metrics_of(**rows), random={"corr_avg_same_library": rng.random(500), "corr_avg_cross_dataset": rng.random(500)})
    for leaves in found.levels.values():
        assert set(leaves) <= {*failures.LEAVES, "ideal"}
    assert all(leaf.help.endswith(".") for leaf in failures.LEAVES.values())


def test_consensus_says_whether_some_model_connects():
    good, bad = np.array([0.5, 0.2, math.nan, 0.9]), np.array([0.1, 0.1, math.nan, math.nan])
    n_good, n_bad = np.array([3, 3, 0, 3]), np.array([3, 3, 0, 0])
    assert list(summary.consensus_isolated([(good, n_good), (bad, n_bad)])) == [False, True, True, False]
    assert summary.failure_rate(bad, [good, bad]) == pytest.approx(2 / 4)
    assert summary.failure_rate(good, [good, bad]) == 0


def test_isolation_by_chance():
    library = Column(np.array([0, 0, 0, 1]), ("a", "b"))
    metrics = {"n_neighbours_total": np.array([2, 2, 2, 2]), "n_neighbours_between_libraries": np.array([0, 1, 1, 1])}
    expected = np.mean([(1 - 1 / 3) ** 2] * 3 + [0.0])
    assert summary.isolation_norm(metrics, Keys(library), "between_libraries") == pytest.approx(0.25 / expected)
    assert math.isnan(summary.isolation_norm(metrics, Keys(library), "cross_dataset"))
    missing = Keys(Column(np.array([0, 0, -1, 1]), ("a", "b")))
    assert summary.isolation_norm(metrics, missing, "between_libraries") == pytest.approx((1 / 3) / np.mean([(1 - 2 / 3) ** 2, (1 - 2 / 3) ** 2, (1 - 1) ** 2]))
    np.testing.assert_allclose(summary.probability_isolated(library, np.array([2, 2, 2, 2])), [(2 / 3) ** 2] * 3 + [0])


def test_a_library_alone_stands_for_all_libraries_of_one_data_set():
    metrics = metrics_of(same_library=[HIGH, HIGH], between_libraries=[LOW, NONE]) | {"corr_discrepancy_between_libraries": np.array([0.1, math.nan])}
    found = summary.headlines(metrics, Keys(Column(np.array([0, 1]), ("a", "b"))))
    assert found["corr_cross_library"] == pytest.approx(0.2)
    assert math.isnan(found["corr_cross_dataset"])
    scores = summary.composite(found)
    assert math.isfinite(scores["total"]) and math.isnan(scores["dataset_integration"])
    assert scores["batch_correction"] == scores["library_integration"]


def test_strata_penetration_and_composition():
    column = Column(np.array([0, 0, 1, -1]), ("x", "y"))
    table = summary.stratified_summary({"corr_avg_all": np.array([0.2, 0.4, math.nan, 1.0])}, column)
    assert table[table.stratum == "x"]["median"].item() == pytest.approx(0.3) and table[table.stratum == "x"]["p90"].item() == pytest.approx(0.38)
    assert math.isnan(table[table.stratum == "y"]["median"].item()) and set(table["stratum"]) == {"x", "y"}
    rows = summary.penetration({"n_neighbours_between_libraries": np.array([30, 12, 0, 9])}, Keys(column))
    assert rows[0] == {"mask": "between_libraries", "group": "x", "n_cells": 2, "at_least_10": 1.0, "at_least_25": 0.5}
    edges = Edges.of_graph(sparse.csr_matrix(np.array([[9, 1, 3, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]])))
    shares = summary.composition(edges.row, edges.column, edges.weight, column)
    np.testing.assert_allclose(shares[0], [0.25, 0.75])
    assert np.isnan(shares[1]).all() and np.isnan(shares[2]).all()


def test_random_graph_keeps_degrees_and_has_no_loops():
    degree = np.array([3, 0, 5, 1])
    edges = random_edges(degree, seed=1)
    np.testing.assert_array_equal(edges.degree, degree)
    assert (edges.row != edges.column).all() and edges.column.min() >= 0 and edges.column.max() <= 3
    np.testing.assert_array_equal(random_edges(degree, seed=1).column, edges.column)


def test_cell_quality():
    library = Column(np.array([0, 0, 0, 0, 0, 1]), ("a", "b"))
    metrics = {"corr_avg_same_library": np.array([0.9, 0.39, 0.35, 0.3, 0.5, 0.1])}
    lineages = {"lineage:B": np.array([0, 0, 0.5, 0.1, math.nan, 0]), "lineage:T": np.array([0, 0, 0.2, 0.1, math.nan, 0])}
    found = failures.cell_quality(metrics, library, lineages=lineages, ambient_fraction=np.array([0, 0, 0, 0.7, 0.1, 0.9]))
    assert list(found["quality"]) == ["good", "good", "rare", "poor_quality", "good", "good"]
    np.testing.assert_allclose(found["quality_best_lineage"][2], 0.5)


# ---------------------------------------------------------------------- markers


def test_published_markers_are_complete():
    markers = published_markers()
    assert len(markers) > 250
    assert {marker.category for marker in markers} == {"broad", "cell type", "subtype"}
    assert all(marker.lineage and marker.cell_type for marker in markers)
    assert {"CD3E", "MS4A1", "SLC17A7", "MBP"} <= {marker.symbols[0] for marker in markers}
    assert {"Cd3e", "Ms4a1", "Slc17a7", "Mbp"} <= {marker.symbols[-1] for marker in markers}


def test_markers_are_matched_in_the_spelling_of_the_organism():
    flat = sparse.csr_matrix(np.ones((4, 5)))
    human = select_markers(flat, ["CD3E", "MS4A1", "LYZ", "X", "CD79A"], listed=published_markers())
    mouse = select_markers(flat, ["Cd3e", "Ms4a1", "Lyz2", "X", "Cd79a"], listed=published_markers())
    assert list(human.union) == list(mouse.union) == [0, 1, 2, 4]
    assert human.n_listed == 4 and human.n_found == 0


def test_markers_are_found_in_the_data():
    # feature 0 is of group a, 1 of group b, 2 of all cells, 3 too weak
    values = np.array([[3, 0, 2, 0.1], [3, 0, 2, 0], [0, 3, 2, 0], [0, 3, 2, 0]], dtype=float)
    usual, strict = specific_features(sparse.csr_matrix(values), Column(np.array([0, 0, 1, 1]), ("a", "b")))
    assert list(usual) == [0, 1, 2] and list(strict) == [0, 1, 2]
    many = Column(np.arange(12), tuple("abcdefghijkl"))
    even = np.full((12, 2), 2.0)
    even[0, 1] = 50.0
    usual, strict = specific_features(sparse.csr_matrix(even), many)
    assert list(usual) == [1] and list(strict) == [1]
    assert all(len(found) == 0 for found in specific_features(sparse.csr_matrix(values), Column(np.zeros(4, int), ("a",))))


def test_a_users_list(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("Gene,lineage,category\nA,one,broad\nB,one,subtype\nC,two,cell type\n\n")
    listed = read_markers(path)
    assert listed[0] == Marker(("A",), "", "one", "broad") and len(listed) == 3
    found = select_markers(sparse.csr_matrix(np.ones((3, 4))), ["B", "A", "D", "C"], listed=listed)
    assert list(found.union) == [0, 1, 3]
    with pytest.raises(DataError, match="too few for correlations"):
        select_markers(sparse.csr_matrix(np.ones((3, 2))), ["x", "y"], listed=listed)
    path.write_text("name\nA\n")
    with pytest.raises(DataError, match="names no marker gene"):
        read_markers(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_markers(tmp_path / "none.csv")


def test_a_library_in_two_data_sets_is_refused():
    with pytest.raises(DataError, match="'l1' in d1, d2"):
        check_hierarchy(Column(np.array([0, 0, 1]), ("l1", "l2")), Column(np.array([0, 1, 1]), ("d1", "d2")))
    check_hierarchy(Column(np.array([0, 0, 1]), ("l1", "l2")), Column(np.array([0, -1, 0]), ("d1", "d2")))


def test_columns_with_gaps():
    found = column_of(pd.DataFrame({"a": ["x", None, "y", "x"], "b": [1, 2, 2, 1]}), "a")
    assert list(found.codes) == [0, -1, 1, 0] and found.levels == ("x", "y")
    with pytest.raises(SpecError, match="Did you mean 'batch'"):
        column_of(pd.DataFrame({"batch": ["x"]}), "bacth")


# ---------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def two_runs(data_folder, tmp_path_factory):
    """Two synthetic runs on real cells: the embedding without integration, and noise."""
    import anndata
    from synthetic_runs import make_run

    from cellweave.core.analysis.baseline import baseline_pca

    path = data_folder / "rna_kang_2conditions_2donors_labelled.h5ad"
    data = anndata.read_h5ad(path)
    home = tmp_path_factory.mktemp("runs")
    points = baseline_pca(sparse.csr_matrix(data.X))
    runs = []
    for name, latent in (("good", points), ("noise", np.random.default_rng(0).normal(size=(data.n_obs, 8)).astype(np.float32))):
        roles = {"covariates.batch": "sample", "covariates.labels": "cell_type"}
        run = make_run(home / name, [path], [data.n_obs], names=list(map(str, data.obs_names)), **roles)
        np.save(run.results / "latent.npy", latent)
        np.save(run.results / "baseline_pca.npy", points)
        runs.append(run)
    return runs


def test_diagnostics_of_runs_and_their_comparison(two_runs):
    options = NeighbourhoodOptions(dataset="batch", technical=("donor",), stratify=("cell_type",), k=30)
    told = []
    found = {run.path.name: diagnose_run(run.path, options, progress=lambda share, text: told.append(share)) for run in two_runs}
    good, noise = found["good"], found["noise"]
    assert good["headline"]["corr_within_library"] > noise["headline"]["corr_within_library"] + 0.1
    # an embedding of the baseline itself has the baseline's numbers
    assert good["composite"]["total"] == pytest.approx(good["baseline"]["composite"]["total"], abs=1e-9)
    assert good["headline"]["integration_failure_rate"] == 0
    # neighbours at random are neither isolated nor alike
    assert noise["headline"]["isolation_norm_cross_dataset"] == pytest.approx(0.0, abs=0.5)
    assert noise["headline"]["corr_cross_dataset"] == pytest.approx(noise["random"]["corr_avg_cross_dataset"], abs=0.15)
    assert sum(good["leaves"]["failure_mode"].values()) == good["n_cells"] == 1556
    assert {row["stratum"] for row in good["strata"]["cell_type"]} >= {"B cells"}
    shares = [share for share in told if share is not None]
    assert max(shares) <= 1 and len(shares) > 10

    cells = read_cells(two_runs[0].results)
    assert len(cells) == 1556 and {"leaf_within_library", "leaf_across_libraries", "leaf_across_datasets", "failure_mode", "quality"} <= set(cells)
    before = cells["leaf_across_datasets"].value_counts()
    compared = compare_runs([run.path for run in two_runs])
    after = read_cells(two_runs[0].results)["leaf_across_datasets"].value_counts()
    assert after.get("XD-0_isolated_unknown", 0) == 0
    settled = ["XD-0b_under_integration", "XD-0a_dataset_enriched", "XD-0_isolated_unknown"]
    assert sum(after.get(name, 0) for name in settled) == sum(before.get(name, 0) for name in settled) > 0
    summed = compared[str(two_runs[0].path)]
    assert summed["compared_with"] == [str(two_runs[1].path)] and summed["headline"]["integration_failure_rate"] is not None


def test_the_task_in_the_analysis_process(two_runs):
    (two_runs[0].results / "neighbourhood.json").unlink(missing_ok=True)
    with AnalysisProcess() as process:
        found = process.run("neighbourhood", run=str(two_runs[0].path), k=20)
    assert found["n_cells"] == 1556
    text = (two_runs[0].results / "neighbourhood.json").read_text()
    stored = json.loads(text)
    assert stored["columns"]["library"] == "sample" and stored["composite"] == found["composite"] and "NaN" not in text


def test_what_cannot_be_answered(two_runs, tmp_path):
    from cellweave.core.runs.folder import RunFolder
    from cellweave.core.spec import RunSpec

    empty = RunFolder.create(tmp_path / "empty", RunSpec())
    with pytest.raises(RunFolderError, match="no latent space"):
        diagnose_run(empty.path)
    with pytest.raises(SpecError, match="Did you mean 'donor'"):
        diagnose_run(two_runs[0].path, NeighbourhoodOptions(technical=("doner",)))
    with pytest.raises(RunFolderError, match="no neighbourhood diagnostics"):
        compare_runs([empty.path])


def test_the_command(two_runs, capsys):
    from cellweave.core.cli import main

    assert main(["neighbourhood", str(two_runs[0].path), str(two_runs[1].path), "-k", "20", "--by", "cell_type"]) == 0
    said = capsys.readouterr().out
    assert "Composite score" in said and "without integration" in said and "H13 Integration failures" in said
    assert main(["neighbourhood", str(two_runs[0].path), "--library", "sampel"]) == 2
    assert "Did you mean 'sample'" in capsys.readouterr().err
