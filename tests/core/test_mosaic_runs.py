"""Whole runs of a family of many modalities: results, baseline and exports of real mosaics and of files joined by name."""

from __future__ import annotations

import json
import warnings

import anndata
import mosaic_toy
import numpy as np
import pandas as pd
import pytest

from cellweave.core.errors import DataError
from cellweave.core.export.h5ad import export_h5mu
from cellweave.core.export.run_data import RunData
from cellweave.core.query.opened import open_run
from cellweave.core.runs.execute import execute
from cellweave.core.spec import RunSpec
from cellweave.core.study import load_study

mudata = pytest.importorskip("mudata")


def run_of(monkeypatch, folder, paths, **changes):
    mosaic_toy.register(monkeypatch)
    tree = {
        "data": {"paths": [str(path) for path in paths]}, "model": {"kind": "toy_mosaic"}, "covariates": {"batch": "batch"},
        "training": {"max_epochs": 2, "kl_warmup_epochs": 1, "batch_size": 64, "threads": 1, "preview_every": 1, "checkpoint_every": 1},
        "analysis": {"umap": False, "clusters": False, "scores": False, "integration": False, "denoised": True},
    }  # fmt: skip
    events = []
    spec = RunSpec.model_validate(tree).with_changes(changes)
    execute(spec, folder, listener=events.append)
    return RunData(folder), events


def read(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mudata.read_h5mu(path)


def test_a_real_mosaic_from_file_to_export(tmp_path, monkeypatch, data_folder):
    path = data_folder / "mosaic_pbmc_rna_adt_4batches.h5mu"
    off = [{"column": "batch", "level": "p3_0", "modality": "adt"}]
    run, events = run_of(monkeypatch, tmp_path / "run", [path], **{"data.switched_off": off})
    assert any("of RNA alone; 400 of 1,600 cells" in event.text for event in events if event.kind == "warning")
    before, after = read(path), read(export_h5mu(run.folder.path, tmp_path / "out.h5mu", denoised=True))
    study = load_study(run.spec.data)
    assert after.obs_names.tolist() == before.obs_names.tolist()
    for key in before.mod:
        assert (after[key].X != before[key].X).nnz == 0
    assert {"X_latent", "X_latent_rna", "X_latent_adt", "X_u", "X_imputed_rna", "X_imputed_adt"} <= set(after.obsm)
    row = study.obs.index.get_indexer(after.obs_names)
    assert np.array_equal(after.obsm["X_u"][:, 0], row)
    assert after.obsm["X_imputed_adt"].shape == (1600, 224)
    added = after.obsm["X_imputed_adt"] - row[:, None]
    assert np.allclose(added, added[0], atol=2e-3)  # every cell has its own values
    assert np.isnan(after.obsm["X_latent_adt"]).all(axis=1).sum() == 800  # p1_0 was not measured, p3_0 was switched off
    assert after.uns["cellweave"]["imputed_features_adt"].tolist() == study.modalities["adt"].var.index.tolist()
    again = open_run(run.folder.path)
    assert set(again.data.train) == set(np.flatnonzero(run.cells["split"] == "train"))
    assert again.data.by_pattern


def test_files_joined_by_name_are_exported_as_one_h5mu(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    cells = [f"c{k}" for k in range(60)]

    def table(names, genes, **obs):
        counts = rng.integers(0, 5, (len(names), len(genes))).astype(np.float32)
        counts[:, 0] += 1
        return anndata.AnnData(counts, obs=pd.DataFrame(obs, index=list(names)), var=pd.DataFrame(index=genes))

    rna = table(cells, [f"g{k}" for k in range(12)], batch=["x"] * 30 + ["y"] * 30)
    adt = table([*cells[::-1][:45], "d0", "d1"], ["CD3", "CD4", "CD8"], batch=["y"] * 30 + ["x"] * 15 + ["y"] * 2)
    adt.var["feature_types"] = "Antibody Capture"
    adt.uns["mask_x"] = np.array([1, 1, 0])
    rna.write_h5ad(tmp_path / "rna.h5ad")
    adt.write_h5ad(tmp_path / "adt.h5ad")
    run, _ = run_of(monkeypatch, tmp_path / "run", [tmp_path / "rna.h5ad", tmp_path / "adt.h5ad"], **{"data.min_cells_per_batch": 2})
    after = read(export_h5mu(run.folder.path, tmp_path / "out.h5mu", denoised=True))
    assert after.obs_names.tolist() == [*cells, "d0", "d1"]
    assert after["rna"].obs_names.tolist() == cells
    for name in adt.obs_names:
        known = np.array([1, 1, 0 if adt.obs.loc[name, "batch"] == "x" else 1])
        assert after["adt"][name].X.toarray().ravel().tolist() == (adt[name].X.ravel() * known).tolist()
        group = after["adt"].obs.loc[name, "cellweave_mask_group"]
        assert after["adt"].varm["cellweave_measured"][:, group].tolist() == known.astype(bool).tolist()
    row = load_study(run.spec.data).obs.index.get_indexer(after.obs_names)
    assert np.array_equal(after.obsm["X_u"][:, 0], row)
    assert after.obs["batch"].tolist() == ["x"] * 30 + ["y"] * 32
    assert after.obsm["X_imputed_adt"].shape == (62, 3)
    assert json.dumps(after.uns["cellweave"]["spec"])


def test_data_of_one_modality_are_no_h5mu(tmp_path, monkeypatch):
    counts = np.random.default_rng(0).integers(0, 5, (60, 8)).astype(np.float32) + 1
    obs = pd.DataFrame({"batch": ["x", "y"] * 30}, index=[f"c{k}" for k in range(60)])
    anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{k}" for k in range(8)])).write_h5ad(tmp_path / "rna.h5ad")
    run, _ = run_of(monkeypatch, tmp_path / "run", [tmp_path / "rna.h5ad"])
    with pytest.raises(DataError, match="holds one modality"):
        export_h5mu(run.folder.path, tmp_path / "out.h5mu")
