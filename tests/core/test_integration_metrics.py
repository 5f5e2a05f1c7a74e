"""Integration metrics: independent forms, what cannot be measured, samples, files, and the command."""

from __future__ import annotations

import csv
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from query_runs import example_folder
from scipy.stats import entropy
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics import silhouette_samples as sklearn_silhouette

from cellweave.core.analysis import integration, mixing, silhouettes
from cellweave.core.analysis.inprocess import InProcess
from cellweave.core.analysis.integration import BASELINE, METRICS, Embedding, measure, pcr_comparison, stratified_rows
from cellweave.core.analysis.integration_results import load, measure_files, store, update_metrics_file
from cellweave.core.analysis.jobs import AnalysisError
from cellweave.core.analysis.neighbours import find_neighbours
from cellweave.core.cli import main
from cellweave.core.errors import Cancelled, DataError, SpecError
from cellweave.core.spec import RunSpec
from cellweave.core.spec.analysis import METRICS as NAMES


def quiet(share, text=""):
    """Tell progress to nobody."""


@pytest.fixture(scope="module")
def cells():
    """Three labels and two batches, the second shifted by half the distance of the labels."""
    rng = np.random.default_rng(0)
    labels, batch = np.arange(360) % 3, rng.integers(0, 2, 360)
    points = np.eye(3, 5)[labels] * 8 + np.eye(2, 5, k=3)[batch] * 4 + rng.normal(size=(360, 5))
    return points.astype(np.float32), batch.astype(np.int64), labels.astype(np.int64)


def test_the_spec_knows_every_metric():
    assert tuple(METRICS) == NAMES


# ---------------------------------------------------------------- each metric against another form


def test_lisi_weights_have_the_perplexity(cells):
    points, batch, _ = cells
    near = find_neighbours(points, 30)
    weights = mixing._weights(near.distances.astype(float), np.log(10.0))
    np.testing.assert_allclose([entropy(row) for row in weights], np.log(10.0), atol=1e-5)
    found = mixing.lisi(near, batch, perplexity=10.0)
    cell = 7
    shares = [weights[cell][batch[near.indices[cell]] == code].sum() for code in (0, 1)]
    assert found[cell] == pytest.approx(1 / (shares[0] ** 2 + shares[1] ** 2))
    assert 1 - 1e-9 <= found.min() <= found.max() <= 2 + 1e-9


def test_silhouettes_are_those_of_scikit_learn(cells, monkeypatch):
    points, _, labels = cells
    monkeypatch.setattr(silhouettes, "BLOCK_ELEMENTS", 360 * 50)  # several blocks
    odd = labels.copy()
    odd[0] = 9  # a cell alone in its group
    np.testing.assert_allclose(silhouettes.silhouette_samples(points, odd), sklearn_silhouette(points.astype(float), odd), atol=1e-9)
    told = []
    silhouettes.silhouette_samples(points, labels, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1


def test_regression_on_components_needs_no_components(cells):
    points, batch, _ = cells
    before = points + np.eye(2, 5, k=3)[batch].astype(np.float32) * 6

    def by_components(values):
        pca = PCA().fit(values)
        scores, onehot = pca.transform(values), np.eye(2)[batch]
        fits = [LinearRegression().fit(onehot, column).score(onehot, column) for column in scores.T]
        return np.dot(fits, pca.explained_variance_) / pca.explained_variance_.sum()

    first, last = by_components(before.astype(float)), by_components(points.astype(float))
    assert pcr_comparison(before, points, batch) == pytest.approx((first - last) / first, abs=1e-6)
    assert pcr_comparison(points, before, batch) == 0.0


def test_connectivity_is_the_share_of_the_largest_part():
    left, right = np.random.default_rng(1).normal(size=(2, 60, 2))
    points = np.concatenate([left, right[:20] + 100]).astype(np.float32)
    labels = np.array([0] * 40 + [1] * 20 + [0] * 20)
    near = find_neighbours(points, 14)
    found = mixing.graph_connectivity(near, labels)
    one = mixing.graph_connectivity(near, np.where(labels == 1, 1, 0))
    assert found == one
    assert found <= (40 / 60 + 1) / 2 + 1e-9


def test_kbet_accepts_what_is_mixed_and_refuses_what_is_not(cells):
    points, batch, labels = cells
    rng = np.random.default_rng(2)
    near = find_neighbours(points, 49)
    assert mixing.kbet(near, rng.permutation(batch)) > 0.85
    assert mixing.kbet(near, labels) < 0.05
    assert np.isnan(mixing.kbet(near, np.zeros(360, dtype=np.int64)))


def test_mixing_and_biology_go_the_way_they_should(cells):
    points, batch, labels = cells
    mended = points - np.eye(2, 5, k=3)[batch].astype(np.float32) * 4
    noise = np.random.default_rng(3).normal(size=points.shape).astype(np.float32)
    found = measure([Embedding("mended", mended), Embedding("noise", noise), Embedding(BASELINE, points)], batch=batch, labels=labels)["values"]
    for name, info in METRICS.items():
        assert 0 <= found["mended"][name] <= 1, name
        if info.about == "batch" and name != "graph_connectivity":
            assert found["mended"][name] > found[BASELINE][name], name
        if info.about == "bio":
            assert found["mended"][name] > found["noise"][name] + 0.2, name
    assert found["noise"]["batch_score"] > 0.5 > found["noise"]["bio_score"]
    assert found[BASELINE]["pcr"] == 0
    one = found["mended"]
    assert one["scib_total"] == pytest.approx(0.4 * one["batch_score"] + 0.6 * one["bio_score"])
    assert one["batch_score"] == pytest.approx(np.mean([one[name] for name in ("ilisi", "kbet", "silhouette_batch", "graph_connectivity", "pcr")]))


def test_the_same_seed_gives_the_same_numbers(cells):
    points, batch, labels = cells
    first, second = (measure([Embedding("latent", points)], batch=batch, labels=labels, seed=4)["values"] for _ in range(2))
    assert first == second


# ---------------------------------------------------------------- what cannot be measured


@pytest.mark.parametrize(
    ("with_batch", "with_labels", "sentence", "gone", "there"),
    [
        (None, "all", "No column says which batch a cell is of", {"ilisi", "kbet", "isolated_labels", "pcr"}, {"clisi", "nmi"}),
        ("all", None, "No column says which label a cell is of", {"clisi", "silhouette_batch"}, {"ilisi", "kbet", "pcr"}),
        ("one", "all", "All measured cells are of one batch", {"ilisi", "silhouette_batch"}, {"clisi", "ari"}),
        ("all", "one", "All measured cells are of one label", {"clisi", "nmi", "graph_connectivity"}, {"ilisi", "kbet"}),
    ],
)
def test_what_lacks_is_a_sentence(cells, with_batch, with_labels, sentence, gone, there):
    points, batch, labels = cells
    columns = {"all": lambda codes: codes, "one": np.zeros_like, None: lambda codes: None}
    found = measure(
        [Embedding("latent", points), Embedding(BASELINE, points)], batch=columns[with_batch](batch), labels=columns[with_labels](labels)
    )
    assert any(sentence in note for note in found["notes"])
    values = found["values"]["latent"]
    assert there <= set(values)
    assert not gone & set(values)
    assert "scib_total" not in values
    assert any("compare them only with runs measured in the same way" in note for note in found["notes"])


def test_labels_that_no_two_batches_share_give_no_kbet(cells):
    points, batch, _ = cells
    found = measure([Embedding("latent", points), Embedding(BASELINE, points)], batch=batch, labels=batch)
    assert "kbet" not in found["values"]["latent"]
    assert any(note.startswith("kBET has no value") for note in found["notes"])


def test_only_what_is_asked_for_is_computed(cells, monkeypatch):
    points, batch, labels = cells
    monkeypatch.setattr(integration, "leiden", lambda *_, **__: pytest.fail("no clusters were asked for"))
    found = measure([Embedding("latent", points)], batch=batch, labels=labels, names=("ilisi", "silhouette_label"))
    assert set(found["values"]["latent"]) == {"ilisi", "silhouette_label", "batch_score", "bio_score", "scib_total"}


def test_progress_rises_and_may_end_the_work(cells):
    points, batch, labels = cells
    told = []
    measure([Embedding("latent", points), Embedding(BASELINE, points)], batch=batch, labels=labels, progress=lambda share, text: told.append((share, text)))
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert {text.partition(":")[0] for _, text in told} == {"latent", BASELINE}

    def stop(share, text):
        raise Cancelled

    with pytest.raises(Cancelled):
        measure([Embedding("latent", points)], batch=batch, labels=labels, progress=stop)


# ---------------------------------------------------------------- samples


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=400), st.integers(7, 300), st.integers(0, 3))
def test_a_sample_has_each_stratum_in_its_share(strata, limit, seed):
    strata = np.array(strata)
    rows = stratified_rows(strata, limit, seed)
    assert np.array_equal(rows, np.unique(rows))
    if len(strata) <= limit:
        assert len(rows) == len(strata)
        return
    assert set(strata[rows]) == set(strata)
    n_strata = len(set(strata))
    assert abs(len(rows) - limit) <= n_strata
    for code in set(strata):
        assert abs((strata[rows] == code).sum() - (strata == code).sum() * limit / len(strata)) <= 1
    np.testing.assert_array_equal(rows, stratified_rows(strata, limit, seed))


# ---------------------------------------------------------------- files


@pytest.fixture
def files(cells, tmp_path):
    points, batch, labels = cells
    latent = points.copy()
    latent[[2, 3]] = np.nan
    np.save(tmp_path / "latent.npy", latent)
    np.save(tmp_path / "baseline.npy", points * 2)
    missing = labels.copy()
    missing[[3, 10, 11]] = -1
    return {"latent": tmp_path / "latent.npy", BASELINE: tmp_path / "baseline.npy"}, batch, missing


def test_cells_without_latent_or_label_are_left_out_and_said(files):
    embeddings, batch, labels = files
    found = measure_files(embeddings, batch=batch, labels=labels, names=("clisi",), progress=quiet)
    assert (found["n_all"], found["n_known"], found["n_cells"]) == (360, 356, 356)
    assert "2 of 358 cells have no label and are left out." in found["notes"]


def test_cells_without_the_modality_of_the_baseline_are_left_out_and_said(files):
    embeddings, batch, labels = files
    baseline = np.load(embeddings[BASELINE])
    baseline[:60] = baseline[0]
    np.save(embeddings[BASELINE], baseline)
    found = measure_files(embeddings, batch=batch, labels=labels, names=("clisi",), progress=quiet)
    assert found["n_cells"] == 300
    assert any(note.startswith("58 cells have no counts in the modality of the baseline") for note in found["notes"])


def test_above_the_limit_a_sample_is_taken_and_said(files):
    embeddings, batch, labels = files
    found = measure_files(embeddings, batch=batch, labels=labels, names=("ilisi", "clisi"), limit=120, seed=5, progress=quiet)
    assert found["n_cells"] == 120
    assert any("120 of 356 cells, drawn with seed 5" in note for note in found["notes"])


def test_too_few_cells_and_unknown_metrics_are_refused(files):
    embeddings, batch, labels = files
    with pytest.raises(DataError, match="too few for integration metrics"):
        measure_files(embeddings, batch=np.where(np.arange(360) < 9, batch, -1), labels=labels, progress=quiet)
    with pytest.raises(SpecError, match="no integration metric 'lisi'"):
        measure_files(embeddings, batch=batch, labels=labels, names=("lisi",), progress=quiet)
    with pytest.raises(SpecError, match="should be 'ilisi', 'kbet'"):
        RunSpec().with_changes({"analysis.integration_metrics": ["lisi"]})


def test_results_are_kept_and_metrics_csv_is_renewed(files, tmp_path):
    embeddings, batch, labels = files
    found = measure_files(embeddings, batch=batch, labels=labels, names=("ilisi", "clisi"), progress=quiet)
    store(tmp_path, found, {"batch": "b", "labels": "l"}, ("ilisi", "clisi"))
    tree = load(tmp_path)
    assert tree["values"] == found["values"]
    table = pd.read_csv(tmp_path / "integration.csv", index_col="metric")
    assert table.loc["ilisi", "latent"] == pytest.approx(found["values"]["latent"]["ilisi"], rel=1e-12)
    assert list(table.columns) == ["title", "about", "latent", BASELINE]
    file = tmp_path / "metrics.csv"
    file.write_text("name,group,value,baseline,expected\nilisi,,0.5,0.1,\nlabel_purity,T,0.7,0.6,0.2\n")
    for _ in range(2):
        update_metrics_file(file, tree)
    rows = list(csv.DictReader(file.open()))
    assert [row["name"] for row in rows] == ["label_purity", "ilisi", "clisi", "batch_score", "bio_score", "scib_total"]
    assert rows[0]["group"] == "T"
    assert float(rows[1]["baseline"]) == found["values"][BASELINE]["ilisi"]
    (tmp_path / "integration.json").write_text("{")
    assert load(tmp_path) is None


# ---------------------------------------------------------------- the command


@pytest.fixture
def trained(tmp_path):
    """A copy of a trained run without metrics and without a baseline."""
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(example_folder(), folder)
    assert not (folder / "results" / "baseline_pca.npy").exists()
    return folder


def test_a_finished_run_is_measured(trained, capsys):
    only = ["--only", "ilisi", "--only", "clisi", "--only", "pcr"]
    assert main(["metrics", str(trained), *only, "--cells", "300"]) == 0
    said = capsys.readouterr()
    head, *rows = csv.reader(said.out.splitlines())
    assert head == ["metric", "about", "latent", BASELINE]
    assert {row[0] for row in rows} >= {"ilisi", "clisi", "pcr", "scib_total"}
    assert "300 of 1,600 cells; batch from 'batch', labels from 'celltype'." in said.err
    assert "drawn with seed 0" in said.err
    # A batch without RNA has neither latent nor baseline.
    baseline, latent = (np.isfinite(np.load(trained / "results" / name)).all(axis=1) for name in ("baseline_pca.npy", "latent.npy"))
    assert baseline.sum() == 1200
    np.testing.assert_array_equal(baseline, latent)
    names = [row["name"] for row in csv.DictReader((trained / "metrics.csv").open())]
    assert "ilisi" in names
    stamp = (trained / "results" / "integration.json").stat().st_mtime_ns
    assert main(["metrics", str(trained), "--json"]) == 0  # shows what is there
    assert json.loads(capsys.readouterr().out)["n_cells"] == 300
    assert (trained / "results" / "integration.json").stat().st_mtime_ns == stamp


def test_own_clusters_as_labels_are_said_to_say_nothing(trained):
    cells = pd.read_csv(trained / "results" / "cells.csv", dtype=str)
    pd.DataFrame({"name": cells["name"], "leiden": np.arange(len(cells)) % 3}).to_csv(trained / "results" / "clusters.csv", index=False)
    found = InProcess().run("measure_run", run=str(trained), labels="leiden", names=["clisi"])
    assert "computed from this very latent space" in found["notes"][0]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--labels", "celltyp"], "no column 'celltyp'"),
        (["--only", "lisi"], "no integration metric 'lisi'"),
    ],
)
def test_what_cannot_be_measured_is_refused(trained, capsys, argv, sentence):
    assert main(["metrics", str(trained), *argv]) != 0
    assert sentence in capsys.readouterr().err


def test_a_quantity_is_no_batch(trained):
    from cellweave.core.export.run_data import ColumnValues, RunData

    RunData.column, before = lambda self, name: ColumnValues.of_numbers(name, np.zeros(1600)), RunData.column
    try:
        with pytest.raises(AnalysisError, match="holds numbers, not levels"):
            InProcess().run("measure_run", run=str(trained))
    finally:
        RunData.column = before
