"""The exported h5ad: every cell, in order, with all it had, and the results in the right rows."""

from __future__ import annotations

import shutil
import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata.io import read_elem
from scipy import sparse
from synthetic_runs import make_run

from cellweave.core.errors import CellweaveError, DataError, RunFolderError, SpecError
from cellweave.core.export.h5ad import export_h5ad, export_h5mu
from cellweave.core.spec import from_toml

N = 60


@pytest.fixture
def source(tmp_path):
    """An h5ad with something in every slot."""
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(1.0, size=(N, 12)).astype(np.int32))
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(np.array(["b1", "b2"])[np.arange(N) % 2], categories=["b2", "b1"], ordered=True),
            "note": [f"text {i}" for i in range(N)],
            "score": rng.normal(size=N),
            "leiden": pd.Categorical(["mine"] * N),
        },
        index=[f"c{i}" for i in range(N)],
    )
    adata = ad.AnnData(counts, obs=obs, var=pd.DataFrame({"symbol": [f"S{i}" for i in range(12)]}, index=[f"g{i}" for i in range(12)]))
    adata.layers["scaled"] = rng.normal(size=(N, 12)).astype(np.float32)
    adata.obsm["X_pca"] = rng.normal(size=(N, 3))
    adata.obsm["X_umap"] = np.zeros((N, 2))
    adata.obsp["near"] = sparse.random(N, N, 0.05, format="csr", random_state=0)
    adata.varm["loadings"] = rng.normal(size=(12, 3))
    adata.uns["palette"] = np.array(["#000000", "#ffffff"])
    adata.raw = adata.copy()
    adata = adata[:, :10].copy()
    path = tmp_path / "input.h5ad"
    adata.write_h5ad(path, convert_strings_to_categoricals=False)
    return path


@pytest.fixture
def run(tmp_path, source):
    return make_run(tmp_path / "run", [source], [N], left_out=(4, 7), no_latent=(0, 11), denoised={"rna": ["g8", "g2", "g11"]})


def test_everything_that_was_there_is_there(tmp_path, source, run):
    export_h5ad(run.path, tmp_path / "out.h5ad")
    before, after = ad.read_h5ad(source), ad.read_h5ad(tmp_path / "out.h5ad")
    pd.testing.assert_frame_equal(after.obs[before.obs.columns], before.obs)
    pd.testing.assert_frame_equal(after.var, before.var)
    assert (after.X != before.X).nnz == 0
    assert after.X.dtype == before.X.dtype
    np.testing.assert_array_equal(after.layers["scaled"], before.layers["scaled"])
    for name in ("X_pca", "X_umap"):
        np.testing.assert_array_equal(after.obsm[name], before.obsm[name])
    assert (after.obsp["near"] != before.obsp["near"]).nnz == 0
    np.testing.assert_array_equal(after.varm["loadings"], before.varm["loadings"])
    assert (after.raw.X != before.raw.X).nnz == 0
    assert after.raw.shape == (N, 12)
    assert list(after.uns["palette"]) == ["#000000", "#ffffff"]
    with h5py.File(tmp_path / "out.h5ad") as file:
        assert file["obs/note"].attrs["encoding-type"] == "string-array", "text stays text"


def test_results_are_in_the_right_rows_under_names_of_their_own(tmp_path, run):
    out = ad.read_h5ad(export_h5ad(run.path, tmp_path / "out.h5ad"))
    with_latent = np.setdiff1d(np.arange(N), [4, 7, 0, 13])  # study rows 0 and 11 are input rows 0 and 13
    assert np.flatnonzero(np.isfinite(out.obsm["X_latent"]).all(axis=1)).tolist() == with_latent.tolist()
    np.testing.assert_array_equal(out.obsm["X_latent"][with_latent, 0], with_latent)
    names = out.uns["cellweave"]["names"]
    assert names["obsm.X_umap"] == "X_umap_cellweave"
    np.testing.assert_array_equal(out.obsm["X_umap_cellweave"][with_latent], np.column_stack([with_latent, -with_latent]))
    assert set(out.obs["leiden"]) == {"mine"}
    assert out.obs["leiden_cellweave"].iloc[with_latent].tolist() == [str(i % 3) for i in with_latent]
    assert out.obs["leiden_cellweave"].iloc[[4, 13]].isna().all()
    assert out.obs["cellweave_split"].iloc[[4, 0, 10, 3]].tolist() == ["left out", "left out", "validation", "train"]
    np.testing.assert_allclose(out.obs["cellweave_library"].iloc[20], 20.5)


def test_the_whole_spec_and_origin_travel_along(tmp_path, run):
    entry = ad.read_h5ad(export_h5ad(run.path, tmp_path / "out.h5ad")).uns["cellweave"]
    assert from_toml(entry["spec"]) == run.spec
    assert entry["epoch"] == 26
    assert entry["run"] == "synthetic"
    assert entry["cells_without_latent"] == 4
    assert entry["versions"]["cellweave"]
    assert len(entry["spec_sha256"]) == 64


def test_the_epoch_is_the_one_whose_weights_were_kept(tmp_path, source):
    run = make_run(tmp_path / "other", [source], [N], **{"training.early_stopping": False})
    assert ad.read_h5ad(export_h5ad(run.path, tmp_path / "out.h5ad")).uns["cellweave"]["epoch"] == 30


def test_an_export_of_an_export_keeps_both(tmp_path, run):
    first = export_h5ad(run.path, tmp_path / "first.h5ad")
    again = make_run(tmp_path / "again", [first], [N])
    out = ad.read_h5ad(export_h5ad(again.path, tmp_path / "second.h5ad"))
    assert out.uns["cellweave"]["previous"]["spec"] == ad.read_h5ad(first).uns["cellweave"]["spec"]
    assert {"X_latent", "X_latent_cellweave", "X_umap_cellweave", "X_umap_cellweave_2"} <= set(out.obsm)


def test_denoised_is_sparse_without_nan_and_where_it_belongs(tmp_path, run):
    out = ad.read_h5ad(export_h5ad(run.path, tmp_path / "out.h5ad", denoised=True))
    layer = out.layers["denoised"]
    assert sparse.issparse(layer)
    dense = layer.toarray()
    assert np.isfinite(dense).all()
    assert out.var["cellweave_denoised"].tolist() == [name in {"g8", "g2"} for name in out.var_names], "g11 is in raw only"
    np.testing.assert_allclose(dense[20, [8, 2]], [20.0, 20.001], rtol=1e-6)
    assert not dense[[0, 4, 7, 13]].any()
    assert layer.has_sorted_indices


def test_what_is_not_there_is_not_promised(tmp_path, source):
    run = make_run(tmp_path / "run", [source], [N])
    with pytest.raises(RunFolderError, match="no denoised expression"):
        export_h5ad(run.path, tmp_path / "out.h5ad", denoised=True)
    (run.results / "latent.npy").unlink()
    with pytest.raises(RunFolderError, match="no latent space yet"):
        export_h5ad(run.path, tmp_path / "out.h5ad")
    assert not (tmp_path / "out.h5ad").exists()


def test_a_changed_or_missing_input_is_refused_unless_forced(tmp_path, source, run):
    adata = ad.read_h5ad(source)
    adata.uns["later"] = "edited"
    adata.write_h5ad(source)
    with pytest.raises(DataError, match="has changed since the run was trained"):
        export_h5ad(run.path, tmp_path / "out.h5ad")
    export_h5ad(run.path, tmp_path / "out.h5ad", force=True)
    adata[:30].copy().write_h5ad(source)
    with pytest.raises(DataError, match="fewer cells"):
        export_h5ad(run.path, tmp_path / "short.h5ad", force=True)
    source.unlink()
    with pytest.raises(DataError, match="not there any more"):
        export_h5ad(run.path, tmp_path / "gone.h5ad")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.h5ad", "run"], "no half-written file stays"


def test_the_name_and_place_are_checked_before_any_work(tmp_path, run):
    with pytest.raises(CellweaveError, match=r"does not end in \.h5ad"):
        export_h5ad(run.path, tmp_path / "out.csv")
    with pytest.raises(CellweaveError, match="There is no folder"):
        export_h5ad(run.path, tmp_path / "nowhere" / "out.h5ad")


def test_an_existing_file_survives_a_failed_export(tmp_path, source, run, monkeypatch):
    out = export_h5ad(run.path, tmp_path / "out.h5ad")
    before = out.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(CellweaveError, match="No space left on device"):
        export_h5ad(run.path, out)
    assert out.read_bytes() == before


def test_several_files_are_put_under_one_another(tmp_path, source):
    adata = ad.read_h5ad(source)
    other = adata[:25, ::-1].copy()
    other.write_h5ad(tmp_path / "other.h5ad")
    run = make_run(tmp_path / "run", [source, tmp_path / "other.h5ad"], [N, 25], left_out=(2,), denoised={"rna": ["g3"]})
    out = ad.read_h5ad(export_h5ad(run.path, tmp_path / "out.h5ad", denoised=True))
    assert out.n_obs == N + 25
    assert out.obs_names[:2].tolist() == ["c0-1", "c1-1"]
    assert out.obs_names[N] == "c0-2"
    assert out.obs["file"].tolist() == ["input"] * N + ["other"] * 25
    np.testing.assert_array_equal(out[N:, adata.var_names].X.toarray(), adata[:25].X.toarray())
    latent = out.obsm["X_latent"][:, 0]
    assert np.isnan(latent[2])
    assert latent[N + 3] == N + 3
    assert out.layers["denoised"].toarray()[N + 3, out.var_names.get_loc("g3")] == pytest.approx(N + 3)


def test_formats_without_a_place_for_results_become_h5ad(tmp_path):
    table = pd.DataFrame(np.random.default_rng(0).poisson(2.0, size=(20, 8)), index=[f"cell{i}" for i in range(20)], columns=[f"g{i}" for i in range(8)])
    table.to_csv(tmp_path / "counts.csv")
    run = make_run(tmp_path / "run", [tmp_path / "counts.csv"], [20], names=list(table.index), **{"data.drop_empty_cells": True})
    out = ad.read_h5ad(export_h5ad(run.path, tmp_path / "out.h5ad"))
    assert out.obs_names.tolist() == list(table.index)
    np.testing.assert_array_equal(out.X.toarray(), table.to_numpy())
    assert out.obsm["X_latent"][5, 0] == 5


def test_a_matrix_of_several_types_of_features_is_kept_whole(tmp_path, data_folder):
    path = data_folder / "awkward" / "10x_v3_pbmc1k_rna_and_antibody.h5"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import scanpy as sc

        before = sc.read_10x_h5(path, gex_only=False)
    feature = str(before.var_names[7])
    run = make_run(tmp_path / "run", [path], [before.n_obs], denoised={"rna": [feature]})
    after = ad.read_h5ad(export_h5ad(run.path, tmp_path / "out.h5ad", denoised=True))
    assert after.shape == before.shape
    assert after.X.sum() == before.X.sum()
    assert after.var["feature_types"].nunique() == 2
    assert after.var_names[np.flatnonzero(after.var["cellweave_denoised"])].tolist() == [feature]


@pytest.mark.parametrize(
    "name",
    [
        "awkward/bmmc_csc_normalised_x_counts_layer.h5ad",
        "awkward/paul15_old_dense_integer_index.h5ad",
        "awkward/brain_old_scvi_registry_numeric_names.h5ad",
        "awkward/pbmc68k_anndata_v0.5_scaled_dense.h5ad",
        "rna_kang_2conditions_2donors_labelled.h5ad",
    ],
)
def test_real_and_old_files_keep_what_they_had(tmp_path, data_folder, name):
    path = data_folder / name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = ad.read_h5ad(path)
    run = make_run(tmp_path / "run", [path], [before.n_obs], left_out=(1,))
    out = export_h5ad(run.path, tmp_path / "out.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        after = ad.read_h5ad(out)
    assert after.obs_names.tolist() == before.obs_names.tolist()
    assert after.var_names.tolist() == before.var_names.tolist()
    for column in before.obs:
        assert after.obs[column].astype(str).tolist() == before.obs[column].astype(str).tolist()
        assert isinstance(after.obs[column].dtype, pd.CategoricalDtype) == isinstance(before.obs[column].dtype, pd.CategoricalDtype)
    assert set(before.layers) <= set(after.layers)
    assert set(before.obsm) <= set(after.obsm)
    assert set(before.uns) <= set(after.uns) | {""}
    assert (after.raw is None) == (before.raw is None)
    total = before.X.sum() if before.X is not None else 0
    assert after.X.sum() == pytest.approx(total)
    assert np.isnan(after.obsm["X_latent"][1]).all()
    assert after.obsm["X_latent"][2, 0] == 2


def test_the_result_opens_in_scanpy(tmp_path, data_folder):
    import scanpy as sc

    path = data_folder / "rna_kang_2conditions_2donors_labelled.h5ad"
    with h5py.File(path) as file:
        n_cells = len(read_elem(file["obs"]))
    run = make_run(tmp_path / "run", [path], [n_cells])
    adata = sc.read_h5ad(export_h5ad(run.path, tmp_path / "out.h5ad"))
    sc.pp.normalize_total(adata)
    table = sc.get.obs_df(adata, ["leiden", adata.var_names[0]], obsm_keys=[("X_latent", 0), ("X_umap", 1)])
    assert table["X_latent-0"].tolist() == list(range(n_cells))
    assert table["X_umap-1"].iloc[3] == -3


@pytest.fixture
def mosaic(data_folder):
    return data_folder / "mosaic_pbmc_rna_adt_4batches.h5mu"


def test_of_an_h5mu_the_trained_modality_is_written_with_all_cells(tmp_path, mosaic):
    import mudata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = mudata.read_h5mu(mosaic)
    features = list(before["rna"].var_names[[5, 3]])
    run = make_run(tmp_path / "run", [mosaic], [before.n_obs], denoised={"rna": features}, left_out=(9,))
    out = ad.read_h5ad(export_h5ad(run.path, tmp_path / "out.h5ad", denoised=True))
    assert out.obs_names.tolist() == before.obs_names.tolist()
    assert out.var_names.tolist() == before["rna"].var_names.tolist()
    assert list(out.uns["cellweave"]["left_behind"]) == ["adt"]
    measured = out.obs["cellweave_measured"].to_numpy()
    assert measured.sum() == before["rna"].n_obs
    np.testing.assert_array_equal(out[before["rna"].obs_names].X.toarray(), before["rna"].X.toarray())
    assert not out.X[~measured].sum()
    assert {"batch", "cell_type"} <= set(out.obs)
    assert not [column for column in out.obs if ":" in column]
    assert out.obsm["X_latent"][20, 0] == 20
    assert out.layers["denoised"].toarray()[20, 5] == pytest.approx(20)


def test_an_h5mu_export_keeps_every_modality(tmp_path, mosaic):
    import mudata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = mudata.read_h5mu(mosaic)
        features = list(before["rna"].var_names[[5, 3]])
        run = make_run(tmp_path / "run", [mosaic], [before.n_obs], denoised={"rna": features}, left_out=(9,))
        after = mudata.read_h5mu(export_h5mu(run.path, tmp_path / "out.h5mu", denoised=True))
    assert list(after.mod) == list(before.mod)
    for key in before.mod:
        assert (after[key].X != before[key].X).nnz == 0
        pd.testing.assert_frame_equal(after[key].obs, before[key].obs)
    assert after.obs_names.tolist() == before.obs_names.tolist()
    assert after.obsm["X_latent"][20, 0] == 20
    assert np.isnan(after.obsm["X_latent"][9]).all()
    assert after.obs["cellweave_split"].iloc[9] == "left out"
    cell = before["rna"].obs_names[7]
    assert after["rna"][cell].layers["denoised"].toarray()[0, 5] == pytest.approx(before.obs_names.get_loc(cell))
    assert from_toml(after.uns["cellweave"]["spec"]) == run.spec


def test_an_h5mu_is_made_of_an_h5mu_only(tmp_path, run):
    with pytest.raises(DataError, match="not one h5mu"):
        export_h5mu(run.path, tmp_path / "out.h5mu")


def test_the_data_it_was_trained_on_are_never_overwritten(source, run):
    before = source.read_bytes()
    with pytest.raises(SpecError, match="never overwrites"):
        export_h5ad(run.path, source)
    assert source.read_bytes() == before
