"""The technical latent of corrected values is that of the trained run, whichever cells are asked about."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import mudata
import numpy as np
import pytest
import torch

from cellweave.core.errors import RunFolderError
from cellweave.core.query.centroid import FILE, centroid_of, nearest_batch
from cellweave.core.query.mosaic import MosaicQuestion, mosaic_values
from cellweave.core.query.opened import open_on_files, open_run
from cellweave.core.query.trained_run import QueryError, TrainedRun
from cellweave.core.runs.execute import execute
from cellweave.core.spec import RunSpec

NAME = "mosaic_pbmc_rna_adt_4batches.h5mu"
CORRECTED = MosaicQuestion("corrected")


@pytest.fixture(scope="module")
def trained(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on three batches, and files of two of them."""
    folder = tmp_path_factory.mktemp("centroid")
    whole = mudata.read_h5mu(data_folder / NAME)
    for file, batches in {"all": ["p1_0", "p2_0", "p3_0"], "p1_0": ["p1_0"], "p2_0": ["p2_0"]}.items():
        chosen = {name: own[own.obs["batch"].isin(batches)].copy() for name, own in whole.mod.items()}
        mudata.MuData({name: own for name, own in chosen.items() if own.n_obs}).write(folder / f"{file}.h5mu")
    spec = RunSpec().with_changes({
        "model.kind": "midas", "data.paths": (str(folder / "all.h5mu"),), "covariates.batch": "batch", "training.max_epochs": 4,
        "training.batch_size": 128, "training.learning_rate": 1e-3, "training.threads": 1, "training.preview_every": 0, "training.early_stopping": False,
        "model.shared_encoder": "64", "model.shared_decoder": "64", "model.n_latent": 8, "analysis.corrected": True,
        **{f"analysis.{name}": False for name in ("umap", "clusters", "baseline", "scores")},
    })  # fmt: skip
    execute(spec, folder / "run")
    return folder


def test_the_batch_nearest_the_mean_of_all_cells_is_taken_and_its_mean():
    u = np.array([[0.0, 0], [2, 0], [10, 0], [12, 0], [3, 3], [np.nan, 0]], dtype=np.float32)
    code, mean = nearest_batch(u, np.array([0, 0, 2, 2, 5, 0]))
    # The mean of the five cells is (5.4, 0.6); those of the batches lie 4.4, 5.6 and 3.4 from it.
    assert code == 5
    np.testing.assert_array_equal(mean, [3, 3])
    with pytest.raises(QueryError, match="No cell has"):
        nearest_batch(np.full((2, 2), np.nan), np.zeros(2, dtype=int))


def test_the_run_keeps_the_centroid_of_its_stored_latents_with_its_batch(trained: Path):
    kept = json.loads((trained / "run" / "results" / FILE).read_text())
    u, batch = np.load(trained / "run" / "results" / "u.npy"), open_run(trained / "run").study.obs["batch"].to_numpy(dtype=str)
    means = {name: u[batch == name].mean(0) for name in np.unique(batch)}
    nearest = min(means, key=lambda name: float(((means[name] - u.mean(0)) ** 2).sum()))
    assert kept["batch"] == nearest
    assert kept["n_cells"] == 1200
    np.testing.assert_allclose(kept["u"], means[nearest], atol=1e-5)


def test_corrected_values_do_not_depend_on_which_cells_are_asked(trained: Path):
    run = open_run(trained / "run")
    everything = mosaic_values(run, question=CORRECTED)
    batch = run.study.obs["batch"].to_numpy(dtype=str)
    for name in np.unique(batch):
        asked = mosaic_values(run, batch == name, CORRECTED)
        for modality, value in asked.items():
            np.testing.assert_allclose(value, everything[modality][batch == name], rtol=1e-4, atol=1e-6)
    with h5py.File(trained / "run" / "results" / "corrected.h5") as file:
        np.testing.assert_allclose(file["adt"]["X"][()], everything["adt"], rtol=1e-4, atol=1e-6)


def test_new_cells_are_decoded_with_the_technical_latent_of_the_run(trained: Path, tmp_path: Path):
    own = open_run(trained / "run")
    batch = own.study.obs["batch"].to_numpy(dtype=str)
    # Cells of another batch than the chosen one, or the choice would not show.
    name = next(name for name in ("p1_0", "p2_0") if name != json.loads((trained / "run" / "results" / FILE).read_text())["batch"])
    expected = mosaic_values(own, batch == name, CORRECTED)
    shutil.copytree(trained / "run", tmp_path / "run")
    new = open_on_files(tmp_path / "run", [trained / f"{name}.h5mu"])
    assert list(new.cell_names) == list(own.cell_names[batch == name])
    assert not torch.allclose(centroid_of(new), own_centre(own, batch == name), atol=1e-4)
    for modality, value in mosaic_values(new, question=CORRECTED).items():
        np.testing.assert_allclose(value, expected[modality], rtol=1e-4, atol=1e-6)


def own_centre(run: TrainedRun, cells: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([run.model.latent(batch)["u"] for _, batch in run.minibatches(run.rows(cells))]).mean(0)


def test_a_run_that_keeps_none_has_its_own_cells_encoded_also_for_new_ones(trained: Path, tmp_path: Path):
    shutil.copytree(trained / "run", tmp_path / "run")
    kept = centroid_of(open_run(trained / "run"))
    (tmp_path / "run" / "results" / FILE).unlink()
    for run in (open_run(tmp_path / "run"), open_on_files(tmp_path / "run", [trained / "p2_0.h5mu"])):
        torch.testing.assert_close(centroid_of(run), kept, rtol=1e-4, atol=1e-5)
    (tmp_path / "run" / "results" / FILE).write_text("{}")
    with pytest.raises(RunFolderError, match="is damaged"):
        centroid_of(open_run(tmp_path / "run"))
