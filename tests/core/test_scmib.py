"""scMIB's scores: every part against its definition, the weights, and what is said of what is missing."""

from __future__ import annotations

import csv
import json
import shutil
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score, silhouette_samples
from sklearn.neighbors import KNeighborsClassifier

from cellweave.core.analysis import integration, scmib
from cellweave.core.cli import main
from cellweave.core.errors import RunFolderError, SpecError
from cellweave.core.export.figures import FigureOptions, save_figure
from cellweave.core.query.mosaic import MosaicQuestion, mosaic_values
from cellweave.core.query.opened import open_run
from cellweave.core.runs.execute import execute
from cellweave.core.spec import RunSpec
from cellweave.core.spec.files import load_spec, save_spec

NAME = "mosaic_bmmc_rna_adt_atac_4batches.h5mu"
LABELS = "cell_type_l1"


@pytest.fixture(scope="module")
def run(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scmib") / "run"
    spec = RunSpec().with_changes({
        "model.kind": "midas", "data.paths": (str(data_folder / NAME),), "covariates.batch": "batch", "covariates.labels": LABELS,
        "training.max_epochs": 4, "training.batch_size": 128, "training.learning_rate": 1e-3, "training.threads": 1, "training.preview_every": 0,
        "training.early_stopping": False, "model.shared_encoder": "64, 32", "model.shared_decoder": "32, 64", "analysis.umap": False,
    })  # fmt: skip
    execute(spec, folder)
    return folder


def mosaic(seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Three batches of two labels: both modalities in two of them, one in the third."""
    rng = np.random.default_rng(seed)
    batch, labels = np.repeat([0, 1, 2], [60, 50, 40]), rng.integers(0, 2, 150)
    first = rng.normal(size=(150, 4)) + 2 * labels[:, None]
    second = first + rng.normal(scale=0.7, size=(150, 4))
    second[batch == 2] = np.nan
    labels[:7] = -1
    return {"rna": first, "adt": second}, batch, labels


def test_alignment_is_a_mean_over_batches_and_directions():
    latents, batch, labels = mosaic()
    found = scmib.modality_parts(latents, batch, labels)
    nearer, right, apart = [], [], []
    for level in (0, 1):
        own, known = batch == level, (batch == level) & (labels >= 0)
        for one, other in permutations(("rna", "adt"), 2):
            distance = np.linalg.norm(latents[one][own][:, None] - latents[other][own][None], axis=2)
            nearer.append(1 - ((distance < np.diag(distance)[:, None]).sum(1) / (own.sum() - 1)).mean())
            guess = KNeighborsClassifier(5, weights="distance").fit(latents[one][known], labels[known]).predict(latents[other][known])
            right.append(f1_score(labels[known], guess, average="micro"))
        by_label = []
        for label in (0, 1):
            cells = known & (labels == label)
            points = np.concatenate([latents["rna"][cells], latents["adt"][cells]])
            by_label.append((1 - np.abs(silhouette_samples(points, np.repeat([0, 1], cells.sum())))).mean())
        apart.append(np.mean(by_label))
    assert found == pytest.approx({"foscttm": np.mean(nearer), "label_transfer": np.mean(right), "asw_modality": np.mean(apart)})
    without = scmib.modality_parts(latents, batch, None)
    assert without == pytest.approx({"foscttm": np.mean(nearer)})


def test_scores_are_the_weighted_means_and_missing_parts_are_said():
    measured = {"ilisi": 0.2, "graph_connectivity": 0.9, "kbet": 0.1, "nmi": 0.7, "ari": 0.6, "isolated_f1": 0.5, "clisi": 1.0, "pcr": 0.0}
    aligned = {"asw_modality": 0.8, "foscttm": 0.9, "label_transfer": 0.7}
    told = [{"wanted": "rna", "value": 0.4}, {"wanted": "rna", "value": 0.6}, {"wanted": "adt", "value": 0.9}]
    found = scmib.assemble(measured, aligned, told, ("rna", "adt"))
    scores = found["scores"]
    assert scores["scmib_batch"] == pytest.approx(0.4)
    assert scores["scmib_bio"] == pytest.approx(0.7)
    assert scores["modality_score"] == pytest.approx((0.8 + 0.9 + 0.7 + 0.5 + 0.9) / 5)
    assert scores["scmib_total"] == pytest.approx(0.3 * 0.4 + 0.3 * 0.76 + 0.4 * 0.7)
    assert scores["scmib_scib"] == pytest.approx(0.4 * 0.4 + 0.6 * 0.7)
    assert len(found["notes"]) == 1
    assert "AUROC, ATAC (the data have no such modality)" in found["notes"][0]
    bare = scmib.assemble(None, {"foscttm": 0.9}, (), ("rna", "adt"))
    assert set(bare["scores"]) == {"modality_score"}
    assert "no total" in bare["notes"][1]
    assert all(part["why"] for part in bare["parts"] if part["value"] is None)


def test_isolated_labels_are_told_by_the_best_cluster_of_any_resolution():
    rng = np.random.default_rng(3)
    labels, batch = np.repeat([0, 1, 2], [80, 80, 40]), rng.integers(0, 2, 200)
    batch[labels == 2] = 0  # of one batch only
    points = rng.normal(size=(200, 5)) + 3 * np.eye(3, 5)[labels]
    both = integration.measure([integration.Embedding("latent", points)], batch=batch, labels=labels, names=("isolated_f1", "nmi"))["values"]["latent"]
    from cellweave.core.analysis.clusters import leiden
    from cellweave.core.analysis.layout import fuzzy_graph
    from cellweave.core.analysis.mixing import GRAPH_NEIGHBOURS, LISI_NEIGHBOURS
    from cellweave.core.analysis.neighbours import find_neighbours

    graph = fuzzy_graph(find_neighbours(points.astype(np.float32), LISI_NEIGHBOURS - 1, seed=0), GRAPH_NEIGHBOURS)
    best = 0.0
    for resolution in integration.RESOLUTIONS:
        clusters = leiden(graph, resolution=resolution, seed=0)
        best = max(best, *(f1_score(labels == 2, clusters == one) for one in np.unique(clusters)))
    assert both["isolated_f1"] == pytest.approx(best)
    assert "bio_score" in both
    assert both["bio_score"] == both["nmi"]  # it counts in scMIB's score only


def test_a_run_keeps_its_scores_and_each_translation_is_what_it_says(run: Path):
    tree = scmib.load(run / "results")
    assert tree is not None
    assert set(tree["scores"]) == {"scmib_batch", "modality_score", "scmib_bio", "scmib_total", "scmib_scib", "scmib_scib_counts"}
    assert all(part["value"] is not None for part in tree["parts"])
    with (run / "metrics.csv").open() as file:
        written = {row["name"]: float(row["value"]) for row in csv.DictReader(file) if not row["group"]}
    assert written["scmib_total"] == tree["scores"]["scmib_total"]
    rows = json.loads((run / "results" / "translation.json").read_text())["translations"]
    assert {(row["batch"][:5], tuple(row["given"]), row["wanted"]) for row in rows} == {
        ("cite_", ("rna",), "adt"), ("cite_", ("adt",), "rna"), ("multi", ("rna",), "atac"), ("multi", ("atac",), "rna"),
    }  # fmt: skip
    opened = open_run(run)
    peaks = next(row for row in rows if row["wanted"] == "atac" and row["batch"] == "multiome_s1d2")
    cells = np.flatnonzero((opened.study.obs["batch"] == "multiome_s1d2").to_numpy())
    guess = mosaic_values(opened, cells, MosaicQuestion("translated", ("rna",), ("atac",)))["atac"]
    truth = next(m for m in opened.data.modalities if m.name == "atac").counts[cells].toarray()
    assert peaks["n_cells"] == len(cells)
    assert peaks["value"] == pytest.approx(roc_auc_score(truth.ravel() > 0.5, guess.ravel()), abs=1e-3)
    # The mean of a part is over the batches and sets of modalities.
    told = [row["value"] for row in rows if row["wanted"] == "rna"]
    assert next(part for part in tree["parts"] if part["name"] == "told_rna")["value"] == pytest.approx(np.mean(told))


def test_scores_of_a_finished_run_are_put_together_anew(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(run, tmp_path / "run")
    before = scmib.load(tmp_path / "run" / "results")
    for name in ("translation.json", "scmib.json"):
        (tmp_path / "run" / "results" / name).unlink()
    assert main(["metrics", str(tmp_path / "run"), "--again", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["scmib"]
    assert told["scores"] == pytest.approx(before["scores"], abs=1e-6)
    assert [part["value"] for part in told["parts"]] == pytest.approx([part["value"] for part in before["parts"]], abs=1e-6)
    assert main(["metrics", str(tmp_path / "run"), "--only", "ilisi"]) == 0
    out, said = capsys.readouterr()
    assert "modality_score" in out
    assert "scmib_total" not in out
    assert "There is no total" in said




@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_figure_shows_every_batch_and_part(run: Path, tmp_path: Path, suffix: str):
    shutil.copytree(run, tmp_path / "run")
    results = tmp_path / "run" / "results"
    names = sorted(path.stem.removeprefix("c_") for path in results.glob("c_*.npy"))
    latents = [np.load(results / "latent.npy"), *(np.load(results / f"c_{name}.npy") for name in names)]
    np.save(results / "modality_umap.npy", np.stack([values[:, :2] for values in latents]).astype(np.float32))
    out = tmp_path / f"figure.{suffix}"
    save_figure(tmp_path / "run", "modalities", out, FigureOptions(title="Mosaic"))
    assert out.stat().st_size > 10_000
    if suffix == "svg":
        text = out.read_text()
        for word in ("Mosaic", "multiome_s1d2", "not measured", "AUROC, ATAC", "Isolated labels F1", "Erythroid"):
            assert word in text
        # Two modalities are missing in the batches of the other assay.
        assert text.count("not measured") == 4
        spec = tmp_path / "run" / "spec.toml"
        off = {"column": "batch", "level": "cite_s1d1", "modality": "atac"}  # had it been measured and switched off
        save_spec(load_spec(spec).with_changes({"data.switched_off": (off,)}), spec)
        save_figure(tmp_path / "run", "modalities", out, FigureOptions(title="Mosaic"))
        assert out.read_text().count("not measured") == 3
        assert out.read_text().count("switched off") == 1
    with pytest.raises(SpecError, match="too small"):
        save_figure(tmp_path / "run", "modalities", out, FigureOptions(width_mm=40))
    for path in results.glob("c_*.npy"):
        path.unlink()
    with pytest.raises(RunFolderError, match="no picture of single modalities"):
        save_figure(tmp_path / "run", "modalities", out)
