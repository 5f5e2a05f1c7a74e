"""Opening a run for questions: what is refused, and how cells, features and batches are chosen."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from query_runs import example_folder, example_run, train
from scipy import sparse

from cellweave.core.errors import Cancelled, DataError, RunFolderError
from cellweave.core.query.expression import ExpressionQuestion, normalised_expression
from cellweave.core.query.latent import latent_mean
from cellweave.core.query.opened import open_run
from cellweave.core.query.trained_run import QueryError
from cellweave.core.runs.events import RunState
from cellweave.core.runs.folder import RunFolder
from cellweave.core.spec import save_spec
from cellweave.core.study.study import Modality, Study
from cellweave.core.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def run():
    return example_run()


@pytest.fixture
def copy(tmp_path):
    """A copy of the run folder that a test may spoil."""
    return shutil.copytree(example_folder(), tmp_path / "copy")


def new_study(run, *, rows=slice(0, 50), features=None, obs=None) -> Study:
    """Cells of the run as data of their own, with features in any order."""
    rows = run.rows()[rows]
    names = list(run.features) if features is None else features
    place = pd.Index(run.features).get_indexer(names)
    counts = sparse.lil_matrix((len(rows), len(names)), dtype=np.float32)
    own = run.data.modalities[0].counts[rows].tolil()
    for column, source in enumerate(place):
        if source >= 0:
            counts[:, column] = own[:, source]
    table = run.study.obs.iloc[rows].copy() if obs is None else obs
    modality = Modality("rna", counts.tocsr(), pd.DataFrame(index=pd.Index(names, dtype=object)), np.ones(len(rows), dtype=bool))
    return Study(table, {"rna": modality}, (), np.zeros(len(rows), dtype=int), np.arange(len(rows)))


# ---------------------------------------------------------------------- opening


def test_the_model_answers_as_the_run_did(run):
    written = np.load(example_folder() / "results" / "latent.npy", allow_pickle=False)
    assert run.rows().size == 1200 < run.n_cells == 1600
    np.testing.assert_allclose(latent_mean(run), written[run.rows()], rtol=1e-4, atol=1e-5)
    assert np.isnan(written[~run.data.usable]).all()


def test_the_parts_are_those_of_the_training(run):
    cells = pd.read_csv(example_folder() / "results" / "cells.csv")
    assert set(run.data.train) == set(np.flatnonzero(cells["split"] == "train"))
    assert set(run.data.validation) == set(np.flatnonzero(cells["split"] == "validation"))


def test_no_folder_and_no_run(tmp_path):
    with pytest.raises(RunFolderError, match="There is no folder"):
        open_run(tmp_path / "absent")
    with pytest.raises(RunFolderError, match="is not a run folder"):
        open_run(tmp_path)


def test_a_run_that_goes_on(copy):
    folder = RunFolder.open(copy)
    here = replace(folder.status, state=RunState.TRAINING, reason=None)
    folder.write_status(replace(here, pid=os.getpid()))
    with pytest.raises(RunFolderError, match=r"is still going on \(training\)"):
        open_run(copy)


def test_a_run_without_a_model(copy):
    shutil.rmtree(copy / "model")
    with pytest.raises(RunFolderError, match="There is no trained model"):
        open_run(copy)


def test_a_run_whose_training_failed(copy):
    path = copy / "model" / "model.json"
    path.write_text(path.read_text().replace('"reason": "completed"', '"reason": "failed"'))
    with pytest.raises(RunFolderError, match="failed, so its model is not a result"):
        open_run(copy)


def test_weights_that_are_not_finite(copy):
    path = copy / "model" / "weights.safetensors"
    stored = load_checkpoint(path)
    tensors = {name: tensor.clone() for name, tensor in stored.tensors.items()}
    tensors["decoder.scale.bias"][3] = float("nan")
    save_checkpoint(path, Checkpoint(tensors, stored.state))
    with pytest.raises(RunFolderError, match=r"not finite numbers \(in decoder.scale.bias\)"):
        open_run(copy)


def test_data_that_changed_or_went(copy, tmp_path):
    run = RunFolder.open(copy)
    data = tmp_path / "data.h5mu"
    shutil.copyfile(run.spec.data.paths[0], data)
    save_spec(run.spec.with_changes({"data.paths": (str(data),)}), run.spec_file)
    assert open_run(copy).n_cells == 1600
    with data.open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match="has changed since the run was trained"):
        open_run(copy)
    data.unlink()
    with pytest.raises(DataError, match="is not there any more"):
        open_run(copy)


def test_latents_that_are_not_finite_are_refused(run):
    broken = open_run(example_folder(), study=run.study)
    with torch.no_grad():
        broken.model.encoder.mean.weight.fill_(float("inf"))
    with pytest.raises(QueryError, match=r"latent of .* cells is not a finite number"):
        latent_mean(broken)


# ---------------------------------------------------------------------- choosing


def test_rows_by_number_by_mask_and_all(run):
    usable = run.rows()
    np.testing.assert_array_equal(run.rows(usable[[5, 2]]), usable[[5, 2]])
    mask = np.zeros(run.n_cells, dtype=bool)
    mask[usable[:4]] = True
    np.testing.assert_array_equal(run.rows(mask), usable[:4])


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([], "No cells are chosen"),
        (np.zeros(1600, dtype=bool), "No cells are chosen"),
        (np.ones(7, dtype=bool), "The mask has 7 entries for 1,600 cells"),
        ([1600], "There is no cell in row 1600"),
        ([-1], "There is no cell in row -1"),
        ([0.5], "row numbers or by a mask"),
    ],
)
def test_cells_that_cannot_be_chosen(run, cells, words):
    with pytest.raises(QueryError, match=words):
        run.rows(cells)


def test_cells_that_were_not_measured(run):
    row = int(np.flatnonzero(~run.data.usable)[0])
    with pytest.raises(QueryError, match=r"1 of the 1 chosen cells was left out of this run .*RNA not measured"):
        run.rows([row])


def test_unknown_features_are_named_with_the_nearest(run):
    first = run.features[0]
    assert list(run.columns([run.features[3], first])) == [3, 0]
    assert run.feature_names([first, first]) == [first]
    with pytest.raises(QueryError, match=f"does not know 1 of the 2 .*Did you mean '{first}'"):
        run.columns([first, first + "X"])
    with pytest.raises(QueryError, match="The list of features is empty"):
        run.columns([])


def test_unknown_batches_are_named_with_the_nearest(run):
    assert run.batch_codes(None) == [None]
    assert run.batch_codes(run.batches) == list(range(4))
    with pytest.raises(QueryError, match="Did you mean 'p1_0'"):
        run.batch_codes("p1_O")
    with pytest.raises(QueryError, match="No batch is named"):
        run.batch_codes([])


# ---------------------------------------------------------------------- other cells


def test_cells_in_another_order_of_features(run):
    again = run.on(new_study(run, features=list(reversed(run.features))))
    assert again.notes == ()
    np.testing.assert_allclose(latent_mean(again), latent_mean(run, run.rows()[:50]), rtol=1e-4, atol=1e-5)


def test_missing_and_further_features_are_said(run):
    features = [*run.features[10:], "NEW1", "NEW2"]
    again = run.on(new_study(run, features=features))
    assert any("10 of the 500 features of rna are missing" in note for note in again.notes)
    assert any("2 further features of rna are left out" in note for note in again.notes)
    assert np.isfinite(latent_mean(again)).all()
    assert np.abs(again.data.modalities[0].counts[:, :10]).sum() == 0


def test_other_genes_are_refused(run):
    with pytest.raises(DataError, match=r"have 0 of the 500 features .* theirs 'ENSG0'"):
        run.on(new_study(run, features=[f"ENSG{number}" for number in range(500)]))


def test_names_that_repeat_are_refused(run):
    features = [run.features[1], *run.features[1:]]
    with pytest.raises(DataError, match="is there more than once"):
        run.on(new_study(run, features=features))


def test_an_unknown_batch_is_refused(run):
    obs = run.study.obs.iloc[run.rows()[:50]].assign(batch="elsewhere")
    with pytest.raises(DataError, match="not trained on the level 'elsewhere' of 'batch'"):
        run.on(new_study(run, obs=obs))


def test_a_missing_value_and_a_missing_column_are_refused(run):
    obs = run.study.obs.iloc[run.rows()[:50]].copy()
    obs["batch"] = obs["batch"].astype(object)
    obs.iloc[3, obs.columns.get_loc("batch")] = None
    with pytest.raises(DataError, match="has no value in 1 cell\\."):
        run.on(new_study(run, obs=obs))
    with pytest.raises(DataError, match="have no column 'batch', which the model reads as batch"):
        run.on(new_study(run, obs=obs.drop(columns="batch")))


def test_labels_may_be_missing_or_new(run):
    obs = run.study.obs.iloc[run.rows()[:50]]
    known = latent_mean(run, run.rows()[:50])
    for table in (obs.drop(columns="celltype"), obs.assign(celltype="nobody knows")):
        np.testing.assert_allclose(latent_mean(run.on(new_study(run, obs=table))), known, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def every_role(run, tmp_path_factory):
    """A run whose cells have a continuous covariate, a further decoder column and a size factor."""
    folder = tmp_path_factory.mktemp("roles")
    rows = run.rows()[:400]
    rng = np.random.default_rng(0)
    counts = run.data.modalities[0].counts[rows]
    obs = run.study.obs.iloc[rows][["batch", "celltype"]].assign(
        age=rng.normal(50, 9, 400), half=rng.choice(["a", "b", "c"], 400), size=np.asarray(counts.sum(1)).ravel() / 100
    )
    anndata.AnnData(X=counts, obs=obs, var=run.data.modalities[0].var[[]]).write_h5ad(folder / "data.h5ad")
    changes = {
        "data.paths": str(folder / "data.h5ad"), "covariates.batch": "batch", "covariates.continuous": "age", "covariates.decoder": "half",
        "covariates.size_factor": "size", "model.encode_covariates": True, "training.max_epochs": 1,
    }  # fmt: skip
    return open_run(train("every-role", changes))


def test_columns_of_every_role_are_read_as_in_training(every_role):
    written = np.load(every_role.path / "results" / "latent.npy", allow_pickle=False)
    np.testing.assert_allclose(latent_mean(every_role), written[every_role.rows()], rtol=1e-4, atol=1e-5)
    few = new_study(every_role, rows=slice(7, 17))  # scaled by the means of the training cells, not by their own
    np.testing.assert_allclose(latent_mean(every_role.on(few)), latent_mean(every_role, range(7, 17)), rtol=1e-4, atol=1e-5)
    expected = normalised_expression(every_role, range(7, 17), ExpressionQuestion(library_size="latent"))
    np.testing.assert_allclose(normalised_expression(every_role.on(few), None, ExpressionQuestion(library_size="latent")), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"half": "d"}, "not trained on the level 'd' of 'half'"),
        ({"age": float("nan")}, "'age' is not a finite number in 50 cells"),
        ({"size": -1.0}, "'size' is 0 or less in 50 cells"),
        ({"size": None}, "'size'"),
    ],
)
def test_values_that_cannot_be_read_are_refused(every_role, change, words):
    obs = every_role.study.obs.iloc[:50].assign(**change)
    with pytest.raises(DataError, match=words):
        every_role.on(new_study(every_role, obs=obs))
    with pytest.raises(DataError, match="have no column 'size', which the model reads as size factor"):
        every_role.on(new_study(every_role, obs=obs.drop(columns="size").assign(half="a", age=40.0)))


def test_counts_can_be_mapped_to_disk(tmp_path, run):
    again = open_run(example_folder(), scratch=tmp_path)
    assert any(tmp_path.rglob("*"))
    np.testing.assert_array_equal(latent_mean(again), latent_mean(run))


# ---------------------------------------------------------------------- watching


def test_progress_is_told_and_a_question_can_be_cancelled(run):
    seen: list[float] = []
    latent_mean(run.watched(seen.append))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    with pytest.raises(Cancelled):
        latent_mean(run.watched(cancelled=lambda: True))
