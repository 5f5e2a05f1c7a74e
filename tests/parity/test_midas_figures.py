"""Figures that are known of scmidas 0.3.0 on its quick-start data, and of these data: what can be reproduced is.

Its figures are those of one run of 65 epochs in minibatches of 128 at a learning rate of 3e-4. What a figure may differ by is about three standard
deviations over five seeds of ours, which also hold the figures of the other program; a network that learns less falls out of it.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

from cellweave.core.analysis.clusters import leiden
from cellweave.core.analysis.layout import fuzzy_graph
from cellweave.core.analysis.neighbours import find_neighbours
from cellweave.core.models.midas import MidasOptions
from cellweave.core.runs.execute import execute
from cellweave.core.spec import RunSpec
from cellweave.core.spec.files import presets
from cellweave.core.spec.modalities import modality_kind
from cellweave.core.training.checkpoint import load_last

NAME = "mosaic_pbmc_rna_adt_4batches.h5mu"
HIDDEN = {"column": "batch", "level": "p3_0", "modality": "adt"}
TYPES = {"CD4 T": 506, "Mono": 438, "CD8 T": 264, "NK": 154, "B": 108, "other T": 78, "DC": 29, "other": 23}


@pytest.fixture(scope="module")
def data(data_folder: Path) -> mudata.MuData:
    return mudata.read_h5mu(data_folder / NAME)


def train(data_folder: Path, folder: Path, **changes: object) -> Path:
    spec = RunSpec().with_changes({
        "model.kind": "midas", "data.paths": (str(data_folder / NAME),), "covariates.batch": "batch", "covariates.labels": "cell_type",
        "training.max_epochs": 65, "training.batch_size": 128, "training.learning_rate": 3e-4, "training.validation_share": 0.0,
        "training.early_stopping": False, "training.preview_every": 0, "training.threads": 1, "training.precision": "32", "training.seed": 0,
        **{f"analysis.{name}": False for name in ("umap", "clusters", "baseline", "scores", "alignment")}, **changes,
    })  # fmt: skip
    execute(spec, folder)
    return folder


@pytest.fixture(scope="module")
def run(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(data_folder, tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def without(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The proteins of one donor are kept from training."""
    return train(data_folder, tmp_path_factory.mktemp("hidden") / "run", **{"data.switched_off": (HIDDEN,), "analysis.imputed": True})


def cells_of(folder: Path) -> tuple[np.ndarray, pd.DataFrame]:
    return np.load(folder / "results" / "latent.npy"), pd.read_csv(folder / "results" / "cells.csv")


def test_the_data_are_the_quick_start_data(data: mudata.MuData):
    assert {name: part.shape for name, part in data.mod.items()} == {"rna": (1200, 500), "adt": (1200, 224)}
    assert (data["rna"].X.max(), data["adt"].X.max()) == (3921, 7739)
    assert data.obs["batch"].value_counts().to_dict() == dict.fromkeys(("p1_0", "p2_0", "p3_0", "p4_0"), 400)
    assert data.obs["cell_type"].value_counts().to_dict() == TYPES


def test_sizes_and_settings_are_those_of_the_release():
    options = MidasOptions()
    assert (options.n_latent, options.n_technical, options.dropout_rate, options.batch_drop) == (32, 2, 0.2, 0.1)
    assert (options.shared_encoder, options.shared_decoder, options.discriminator) == ("1024, 128", "128, 1024", "128, 64")
    assert (options.batch_encoder, options.batch_decoder, options.discriminator_steps) == ("16, 16", "16, 16", 3)
    assert (options.norm, options.activation, options.n_max) == ("ln", "mish", 10_000)
    assert options.block_sizes("atac") == ((128, 32), (32, 128))
    documented = presets()["midas-documentation"].apply(RunSpec()).model
    assert isinstance(documented, MidasOptions)
    assert documented.block_sizes("atac") == ((512, 128), (128, 512))
    kinds = {name: modality_kind(name) for name in ("rna", "adt", "atac")}
    assert {name: (kind.distribution, kind.encoder_transform) for name, kind in kinds.items()} == {
        "rna": ("poisson", "log1p"), "adt": ("poisson", "log1p"), "atac": ("bernoulli", "none"),
    }  # fmt: skip
    assert kinds["atac"].transform == "binarize"


def test_the_profile_of_the_other_cells_is_as_good_as_it_is_said_to_be(data: mudata.MuData):
    """What the imputation of hidden proteins is compared with: Pearson .813, mean squared error .536 of log(1 + count)."""
    adt = data["adt"]
    logs, own = np.log1p(adt.X.toarray().astype(float)), (adt.obs["batch"] == "p3_0").to_numpy()
    profile = np.broadcast_to(logs[~own].mean(0), logs[own].shape)
    assert np.corrcoef(logs[own].ravel(), profile.ravel())[0, 1] == pytest.approx(0.813, abs=5e-4)
    assert ((logs[own] - profile) ** 2).mean() == pytest.approx(0.536, abs=5e-4)


@pytest.mark.slow
def test_as_many_epochs_are_as_many_steps(run: Path):
    """65 epochs of the largest batch of 400 cells, in minibatches of 128 from each of four batches in turn: 1040 steps, three of discriminators in each."""
    checkpoint, _ = load_last(run / "checkpoints")
    assert checkpoint.state["position"]["step"] == 1040
    taken = {int(value) for name, value in checkpoint.tensors.items() if name.startswith("optimizer/discriminators/") and name.endswith("/step")}
    assert taken == {3 * 1040, 3 * 780}  # that of all modalities together, and those of RNA and ADT, which three batches of four have


@pytest.mark.slow
def test_clusters_and_silhouettes_of_the_latent(run: Path):
    latent, cells = cells_of(run)
    labels = cells["cell_type"].to_numpy()
    graph = fuzzy_graph(find_neighbours(latent, 14, seed=0), 15)
    coarse, fine = (leiden(graph, resolution=resolution, seed=0) for resolution in (0.2, 0.4))
    assert adjusted_rand_score(labels, coarse) == pytest.approx(0.825, abs=0.05)
    assert normalized_mutual_info_score(labels, coarse) == pytest.approx(0.816, abs=0.05)
    # The finer clusters part T cells in some runs and not in others, so that their ARI (.680) says little: ours is .58 to .86 over five seeds.
    assert normalized_mutual_info_score(labels, fine) == pytest.approx(0.768, abs=0.08)
    assert silhouette_score(latent, labels) == pytest.approx(0.405, abs=0.03)
    assert silhouette_score(latent, cells["batch"]) == pytest.approx(-0.019, abs=0.01)


@pytest.mark.slow
def test_proteins_that_were_hidden_are_told(without: Path, data: mudata.MuData):
    latent, cells = cells_of(without)
    own = (cells["batch"] == "p3_0").to_numpy()
    with h5py.File(without / "results" / "imputed.h5") as file:
        told = np.log1p(file["adt"]["X"][own])
    truth = np.log1p(data["adt"][cells["name"][own].to_numpy()].X.toarray().astype(float))
    assert np.corrcoef(truth.ravel(), told.ravel())[0, 1] == pytest.approx(0.872, abs=0.015)
    assert ((truth - told) ** 2).mean() == pytest.approx(0.390, abs=0.035)
    by_protein = [np.corrcoef(truth[:, place], told[:, place])[0, 1] for place in np.flatnonzero(truth.std(0) > 0)]
    assert np.median(by_protein) == pytest.approx(0.380, abs=0.04)
    assert np.mean(by_protein) == pytest.approx(0.452, abs=0.04)
    assert silhouette_score(latent, cells["cell_type"]) == pytest.approx(0.407, abs=0.03)
