"""scMIB's half on batch-corrected counts: reductions, weighted neighbours and scores against their definitions, and what is said where it is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.metrics import normalized_mutual_info_score

from cellweave.core.analysis import scmib
from cellweave.core.analysis.count_space import reduced
from cellweave.core.analysis.mixing import GRAPH_NEIGHBOURS
from cellweave.core.analysis.scmib_counts import FILE, CountSpace, load_space, measure_counts, save_space
from cellweave.core.analysis.wnn import weighted_neighbours
from cellweave.core.cli import main
from cellweave.core.query import corrected_space as module
from cellweave.core.query.mosaic import MosaicQuestion, mosaic_values
from cellweave.core.query.opened import open_run
from cellweave.core.runs.events import Warned
from cellweave.core.runs.execute import execute
from cellweave.core.runs.folder import RunFolder
from cellweave.core.spec import RunSpec

NAME = "mosaic_bmmc_rna_adt_atac_4batches.h5mu"
KINDS = {"rna": "counts", "adt": "proteins", "atac": "binary"}
METRICS = (*scmib.BATCH_PARTS, *scmib.BIO_PARTS)


@pytest.fixture(scope="module")
def run(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("counts") / "run"
    spec = RunSpec().with_changes({
        "model.kind": "midas", "data.paths": (str(data_folder / NAME),), "covariates.batch": "batch", "covariates.labels": "cell_type_l1",
        "training.max_epochs": 12, "training.batch_size": 128, "training.learning_rate": 1e-3, "training.threads": 1, "training.preview_every": 0,
        "training.early_stopping": False, "model.shared_encoder": "64, 32", "model.shared_decoder": "32, 64", "model.n_latent": 10,
        "analysis.umap": False, "analysis.clusters": False,
    })  # fmt: skip
    execute(spec, folder)
    return folder


def plain(counts: np.ndarray, kind: str, n_components: int) -> np.ndarray:
    """Reduce counts as the names of the methods say, all dense."""
    if kind == "binary":
        total = counts.sum(0)
        counts, total = counts[:, total > 0], total[total > 0]
        kept = total >= np.quantile(total, 0.25)
        weighed = np.log1p(1e4 * counts / counts.sum(1, keepdims=True) * (len(counts) / total))[:, kept]
        left = np.linalg.svd(weighed, full_matrices=False)[0][:, :n_components]
        return (left - left.mean(0)) / left.std(0)
    if kind == "counts":
        values = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    else:
        values = np.log1p(counts / np.exp(np.log1p(counts).mean(1, keepdims=True)))
    values = values[:, values.std(0) > 1e-9]
    values = np.minimum((values - values.mean(0)) / values.std(0, ddof=1), 10)
    left, sizes, _ = np.linalg.svd(values - values.mean(0), full_matrices=False)
    return (left * sizes)[:, :n_components]


@pytest.mark.parametrize("kind", ["counts", "proteins", "binary"])
@pytest.mark.parametrize("n_cells", [30, 400])  # dense and iterative
def test_counts_are_reduced_as_their_kind_is(kind: str, n_cells: int):
    rng = np.random.default_rng(1)
    rates = np.exp(rng.normal(size=(n_cells, 6)) @ rng.normal(size=(6, 60)) * 0.4 - 1)
    counts = rng.poisson(rates) if kind != "binary" else rng.binomial(1, np.minimum(rates / 3, 0.9))
    counts[:, 0] = 0
    counts[counts.sum(1) == 0, 1] = 1
    found, wanted = reduced(sparse.csr_matrix(counts), kind, 5), plain(counts.astype(float), kind, 5)  # type: ignore[arg-type]
    assert found.shape == (n_cells, 5)
    sign = np.sign((found * wanted).sum(0))
    np.testing.assert_allclose(found * sign, wanted, atol=2e-3 * np.abs(wanted).max())


def joint(points: list[np.ndarray], k: int, looked_at: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return weights, affinities ``(n, n)`` (-1 where a pair is not looked at) and joint neighbours, cell by cell from the definitions."""
    points = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in points]
    n_cells, apart = len(points[0]), [cdist(each, each) + 9 * np.eye(len(each)) for each in points]
    order = [np.argsort(each, axis=1) for each in apart]
    nearest = [each.min(1) for each in apart]
    width, weights, affinity = [], np.zeros((n_cells, len(points))), np.full((n_cells, n_cells), -1.0)
    for distance, near in zip(apart, order, strict=True):
        around = [{i, *near[i, :20]} for i in range(n_cells)]
        far = []
        for i in range(n_cells):
            meet = [j for j in range(n_cells) if j != i and around[i] & around[j]]
            others = sorted((len(around[i] & around[j]) / len(around[i] | around[j]), -distance[i, j]) for j in meet)
            far.append(np.mean([-each for _, each in others[:20]]))
        width.append(np.array(far))
    for i in range(n_cells):
        scores = []
        for r, own in enumerate(points):
            theta = [
                np.exp(-max(np.linalg.norm(own[i] - own[near[i, :20]].mean(0)) - nearest[r][i], 0) / (width[r][i] - nearest[r][i])) for near in order
            ]
            scores.append(min(200, theta[r] / (max(theta[:r] + theta[r + 1 :]) + 1e-4)))
        weights[i] = np.exp(scores) / np.exp(scores).sum()
        for j in {j for near in order for j in near[i, :looked_at] if j != i}:
            affinity[i, j] = sum(
                weights[i, r] * np.exp(-max(apart[r][i, j] - nearest[r][i], 0) / (width[r][i] - nearest[r][i])) for r in range(len(points))
            )
    return weights, affinity, np.argsort(-affinity, axis=1)[:, :k]


@pytest.mark.parametrize("n_modalities", [2, 3])
def test_weighted_neighbours_are_what_the_definition_says(n_modalities: int):
    rng = np.random.default_rng(n_modalities)
    base = rng.normal(size=(260, 4)) + 2 * np.eye(4)[rng.integers(0, 4, 260)]
    points = [base @ rng.normal(size=(4, 7)) + noise * rng.normal(size=(260, 7)) for noise in (0.3, 1.5, 0.8)[:n_modalities]]
    near, weights = weighted_neighbours(points, 15)
    wanted, affinity, order = joint(points, 15)
    np.testing.assert_allclose(weights, wanted, atol=1e-5)
    np.testing.assert_allclose(1 - 2 * near.distances.astype(float) ** 2, np.take_along_axis(affinity, order, 1), atol=1e-5)
    assert (near.indices == order).mean() > 0.995  # equals may change places


def test_scores_of_a_run_are_those_of_its_drawn_counts(run: Path):
    space, opened = load_space(run / "results" / FILE), open_run(run)
    assert space is not None
    assert space.n_usable == 1100
    drawn = mosaic_values(opened, question=MosaicQuestion("corrected", sampled=True, seed=opened.spec.training.seed))
    full = np.flatnonzero(np.all([values.sum(1) > 0 for values in drawn.values()], axis=0))
    np.testing.assert_array_equal(space.rows, full)
    assert space.n_empty == 1100 - len(full)
    for name, values in drawn.items():
        wanted = plain(values[full].astype(float), KINDS[name], 10)
        # Signs are free, and components of nearly equal size may turn into each other: distances of cells are what counts.
        one, other = (np.linalg.norm(each[:200, None] - each[None, :200], axis=2).ravel() for each in (space.points[name], wanted))
        assert np.corrcoef(one, other)[0, 1] > 0.99, name
    # Metrics that have simple definitions, from neighbours that were found cell by cell.
    labels = opened.study.obs["cell_type_l1"].astype("category").cat.codes.to_numpy()[space.rows]
    chosen = np.sort(np.random.default_rng(0).choice(len(space.rows), 300, replace=False))
    part = CountSpace(space.rows[chosen], {name: points[chosen] for name, points in space.points.items()}, 0, 300)
    codes = {"batch": _codes(opened, "batch"), "labels": _codes(opened, "cell_type_l1")}
    values, why, notes = measure_counts(part, codes["batch"], codes["labels"], METRICS)
    assert why == ""
    assert notes == ["Corrected counts were measured in all 300 cells."]
    assert set(values) == set(METRICS)
    _, _, order = joint([points[chosen].astype(float) for points in space.points.values()], GRAPH_NEIGHBOURS - 1)
    assert values["graph_connectivity"] == pytest.approx(connected(order, labels[chosen]), abs=0.02)


def _codes(opened: object, column: str) -> np.ndarray:
    return opened.study.obs[column].astype("category").cat.codes.to_numpy().astype(np.int64)  # type: ignore[attr-defined]


def connected(near: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean share of each label's cells in its largest strongly connected part, by walking."""
    shares = []
    for label in np.unique(labels):
        own = set(np.flatnonzero(labels == label).tolist())
        ahead = {i: {j for j in near[i].tolist() if j in own} for i in own}
        back: dict[int, set[int]] = {i: set() for i in own}
        for i, others in ahead.items():
            for j in others:
                back[j].add(i)

        def reached(start: int, edges: dict[int, set[int]]) -> set[int]:
            seen, waiting = {start}, [start]
            while waiting:
                for j in edges[waiting.pop()] - seen:
                    seen.add(j)
                    waiting.append(j)
            return seen

        shares.append(max(len(reached(i, ahead) & reached(i, back)) for i in own) / len(own))
    return float(np.mean(shares))


def test_both_halves_count_in_the_means_and_scib_is_of_one_half(run: Path):
    tree = scmib.load(run / "results")
    assert tree is not None
    values = {part["name"]: part["value"] for part in tree["parts"]}
    batch = [values[name] for stem in scmib.BATCH_PARTS for name in (stem, f"counts_{stem}")]
    bio = [values[name] for stem in scmib.BIO_PARTS for name in (stem, f"counts_{stem}")]
    aligned = [part["value"] for part in tree["parts"] if part["score"] == "modality_score"]
    scores = tree["scores"]
    assert (len(batch), len(bio), len(aligned)) == (6, 8, 6)
    assert scores["scmib_batch"] == pytest.approx(np.mean(batch))
    assert scores["scmib_total"] == pytest.approx(0.3 * np.mean(batch) + 0.3 * np.mean(aligned) + 0.4 * np.mean(bio))
    assert scores["scmib_scib"] == pytest.approx(0.4 * np.mean(batch[::2]) + 0.6 * np.mean(bio[::2]))
    assert scores["scmib_scib_counts"] == pytest.approx(0.4 * np.mean(batch[1::2]) + 0.6 * np.mean(bio[1::2]))
    first, second = scmib.totals(tree)
    assert f"0.3 × batch mixing {np.mean(batch):.3f}" in first
    assert second == f"scIB {scores['scmib_scib']:.3f} of the latent space and {scores['scmib_scib_counts']:.3f} of corrected counts."
    # Draws at random mix batches, and their clusters hold some of the labels.
    assert values["counts_ilisi"] > 0.05
    assert values["counts_clisi"] > 0.6


def test_biology_of_corrected_counts_is_that_of_the_labels():
    """Labels that the counts tell apart are found in them; shuffled ones are not."""
    rng = np.random.default_rng(4)
    labels, batch = np.repeat([0, 1, 2], 60), rng.integers(0, 2, 180)
    points = {name: (rng.normal(size=(180, 6)) + 6 * np.eye(3, 6)[labels]).astype(np.float32) for name in ("rna", "adt")}
    space = CountSpace(np.arange(180), points, 0, 180)
    found, _, _ = measure_counts(space, batch, labels, METRICS)
    none, _, _ = measure_counts(space, batch, rng.permutation(labels), METRICS)
    assert found["nmi"] == found["ari"] == pytest.approx(1.0)
    assert found["clisi"] > 0.95
    assert found["ilisi"] > 0.8
    assert none["nmi"] < 0.2
    assert none["clisi"] < 0.5
    mixed, _, _ = measure_counts(space, labels, batch, ("ilisi",))  # batches that lie apart do not mix
    assert mixed["ilisi"] < 0.05
    assert normalized_mutual_info_score(labels, labels) == 1


def test_what_cannot_be_measured_is_said(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    labels = np.repeat([0, 1], 40)
    space = CountSpace(np.arange(5, 80), {"rna": np.random.default_rng(0).normal(size=(75, 4)).astype(np.float32)}, 5, 200)
    values, _, notes = measure_counts(space, None, labels, METRICS)
    assert set(values) == {"nmi", "ari", "clisi"}
    assert notes == ["Corrected counts were drawn for 80 of 200 cells and measured in 75 (5 have no corrected count in some modality)."]
    assert measure_counts(None, labels, labels, METRICS)[1] == "they were not drawn"
    assert measure_counts(space, None, None, METRICS)[1] == "no batches or labels, or not asked for"
    assert measure_counts(CountSpace(np.arange(3), {}, 77, 80), labels, labels, METRICS)[1] == "too few cells have counts in every modality"
    measured = dict.fromkeys(METRICS, 0.5)
    found = scmib.assemble(measured, {"foscttm": 0.9}, (), ("rna", "adt"))
    assert "scmib_scib_counts" not in found["scores"]
    assert found["scores"]["scmib_batch"] == 0.5
    assert "kBET, corrected counts (they were not drawn)" not in found["notes"][0]  # one reason is said once, behind all that it holds for
    assert "iLISI, corrected counts, Graph connectivity, corrected counts, kBET, corrected counts" in found["notes"][0]
    assert found["notes"][0].count("they were not drawn") == 1

    shutil.copytree(run, tmp_path / "run")
    results = tmp_path / "run" / "results"
    before = json.loads((results / scmib.FILE).read_text())
    (results / FILE).unlink()
    assert main(["metrics", str(tmp_path / "run"), "--again", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["scmib"]
    assert (results / FILE).is_file()
    for one, other in zip(before["parts"], again["parts"], strict=True):
        assert one["value"] == pytest.approx(other["value"], abs=0.02), one["name"]

    monkeypatch.setattr(module, "MOST_CELLS", 300)
    (results / FILE).unlink()
    assert main(["metrics", str(tmp_path / "run"), "--again"]) == 0
    out, said = capsys.readouterr()
    assert "counts_ilisi,batch,0." in out
    assert "Corrected counts were drawn for 300 of 1,100 cells" in said

    tree = json.loads((results / scmib.FILE).read_text())  # as an earlier version wrote it
    old = [{key: value for key, value in part.items() if key != "of"} for part in tree["parts"] if part["of"] != "counts"]
    (results / scmib.FILE).write_text(json.dumps({**tree, "version": 1, "parts": old}))
    loaded = scmib.load(results)
    assert loaded is not None
    assert loaded["notes"][-1] == scmib.OLDER
    assert scmib.totals({**loaded, "scores": {"scmib_scib": 0.5}}) == ["scIB 0.500 of the latent space."]


def test_a_space_comes_back_as_it_was_written_and_a_damaged_one_is_none(tmp_path: Path):
    space = CountSpace(np.array([1, 4, 7]), {"rna": np.ones((3, 2), np.float32), "a_b": np.zeros((3, 1), np.float32)}, 2, 9)
    found = load_space(save_space(tmp_path, space))
    assert found is not None
    assert (found.n_empty, found.n_usable, list(found.points)) == (2, 9, ["rna", "a_b"])
    np.testing.assert_array_equal(found.rows, space.rows)
    (tmp_path / FILE).write_bytes(b"broken")
    assert load_space(tmp_path / FILE) is None
    assert load_space(tmp_path / "none.npz") is None


def test_a_run_goes_on_where_nothing_can_be_drawn(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from cellweave.core.training import mosaic_results

    def fails(*_args: object, **_more: object) -> CountSpace:
        raise RuntimeError("rate is not finite")

    monkeypatch.setattr(mosaic_results, "corrected_space", fails)
    spec = RunFolder.open(run).spec.with_changes({"training.max_epochs": 1})
    said: list[str] = []
    execute(spec, tmp_path / "run", listener=lambda event: said.append(event.text) if isinstance(event, Warned) else None)
    assert "The corrected counts were not drawn for the scores: rate is not finite" in said
    tree = scmib.load(tmp_path / "run" / "results")
    assert tree is not None
    assert {part["why"] for part in tree["parts"] if part["of"] == "counts"} == {"they were not drawn"}
    assert "scmib_total" in tree["scores"]
    assert any("they were not drawn" in note for note in tree["notes"])
