"""Every real file is opened with the right size, and holds what anndata and mudata read from it."""

import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellweave.core.spec.data import DataSpec
from cellweave.core.study import load_study, read_header

# cells, then for each modality cells measured and features
FILES = {
    "rna_cell_lines_5batches.h5ad": (1408, {"rna": (1408, 5000)}),
    "rna_ifnb_pbmc_2batches.h5ad": (2000, {"rna": (2000, 9015)}),
    "rna_kang_2conditions_2donors_labelled.h5ad": (1556, {"rna": (1556, 1267)}),
    "rna_pbmc_3chemistries_unlabelled.h5ad": (2860, {"rna": (2860, 5000)}),
    "rna_glioblastoma_5patients.h5ad": (5000, {"rna": (5000, 300)}),
    "rna_pbmc3k_labelled.h5ad": (2638, {"rna": (2638, 12519)}),
    "rna_ambient_pbmc4k.h5ad": (2170, {"rna": (2170, 5780)}),
    "cite_reapseq_pbmc_2batches.h5mu": (5000, {"rna": (5000, 12435), "adt": (5000, 48)}),
    "cite_bmmc_neurips_2batches.h5mu": (600, {"rna": (600, 1000), "adt": (600, 134)}),
    "cite_10x_pbmc1k_5prime.h5mu": (500, {"rna": (500, 13996), "adt": (500, 10)}),
    "cite_10x_pbmc_5k_protein_v3_200cells.h5mu": (200, {"rna": (200, 11273), "adt": (200, 29)}),
    "cite_10x_pbmc_10k_protein_v3_200cells.h5mu": (200, {"rna": (200, 10667), "adt": (200, 14)}),
    "multiome_snareseq_mouse_cortex_9batches.h5mu": (7844, {"rna": (7844, 1677), "atac": (7844, 25734)}),
    "multiome_bmmc_neurips_2batches.h5mu": (500, {"rna": (500, 1134), "atac": (500, 600)}),
    "multiome_pbmc_100cells.h5mu": (100, {"rna": (100, 3023), "atac": (100, 4600)}),
    "mosaic_pbmc_rna_adt_4batches.h5mu": (1600, {"rna": (1200, 500), "adt": (1200, 224)}),
    "mosaic_bmmc_rna_adt_atac_4batches.h5mu": (1100, {"rna": (1100, 168), "adt": (600, 134), "atac": (500, 600)}),
    "large_adt_11studies_116k.h5ad": (116172, {"adt": (116172, 9)}),
    "adt_ambient_cells_and_empty_droplets.h5ad": (10877, {"adt": (10877, 87)}),
}


@pytest.mark.parametrize("name", FILES)
def test_header_and_data_agree_with_what_the_file_is(data_folder, name):
    n_cells, sizes = FILES[name]
    header = read_header(data_folder / name)
    assert (header.format, header.n_cells) == (name.rpartition(".")[2], n_cells)
    assert {one.name: (one.n_cells, one.n_features) for one in header.modalities} == sizes
    assert all(one.matrices[0].location == "X" and one.matrices[0].storage == "csr" for one in header.modalities)
    assert header.file_bytes == (data_folder / name).stat().st_size

    study = load_study(DataSpec(paths=(str(data_folder / name),)))
    assert study.n_cells == n_cells
    assert {one.name: (int(one.measured.sum()), one.n_features) for one in study.modalities.values()} == sizes
    in_memory = 0
    for modality in study.modalities.values():
        counts = modality.counts
        assert isinstance(counts, sparse.csr_matrix)
        assert counts.shape == (n_cells, modality.n_features)
        assert counts.has_sorted_indices
        assert (counts.data > 0).all()
        assert (counts.data == np.rint(counts.data)).all()
        assert counts[~modality.measured].nnz == 0
        assert list(modality.var.index) == list(dict.fromkeys(modality.var.index))
        stored = next(one for one in header.modalities if one.name == modality.name).matrices[0].n_stored
        assert stored == counts.nnz
        in_memory += counts.data.nbytes + counts.indices.nbytes
    assert in_memory <= header.estimated_bytes < 1.3 * in_memory + 4 * (n_cells + 1) * len(study.modalities)
    kinds = {column.name: column for column in header.obs_columns}
    assert set(kinds) == set(study.obs.columns)
    for column, values in study.obs.items():
        assert kinds[column].n_missing == int(values.isna().sum())
        assert kinds[column].n_levels == values.nunique()
    assert study.obs["batch"].notna().all()
    assert (study.file_of_cell == 0).all()
    assert np.array_equal(study.row_in_file, np.arange(n_cells))
    assert study.left_out.empty


def plain(values):
    """A column as text, missing values as nothing."""
    return ["" if pd.isna(value) else str(value) for value in values]


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".h5ad")])
def test_reads_what_anndata_reads(data_folder, name):
    import anndata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = anndata.read_h5ad(data_folder / name)
    study = load_study(DataSpec(paths=(str(data_folder / name),)))
    modality = study.main_modality()
    assert (sparse.csr_matrix(adata.X).astype(np.float32) != modality.counts).nnz == 0
    assert list(adata.var_names) == list(modality.var.index)
    assert list(adata.obs_names) == list(study.obs.index)
    for column in adata.obs.columns:
        assert plain(adata.obs[column]) == plain(study.obs[column])
        if isinstance(adata.obs[column].dtype, pd.CategoricalDtype):
            assert list(adata.obs[column].cat.categories) == list(study.obs[column].cat.categories)


@pytest.mark.parametrize("name", ["mosaic_pbmc_rna_adt_4batches.h5mu", "multiome_bmmc_neurips_2batches.h5mu"])
def test_reads_what_mudata_reads(data_folder, name):
    import mudata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mdata = mudata.read_h5mu(data_folder / name)
    study = load_study(DataSpec(paths=(str(data_folder / name),)))
    assert list(mdata.obs_names) == list(study.obs.index)
    for key, adata in mdata.mod.items():
        modality = study.modalities[key]
        assert list(study.obs.index[modality.measured]) == [cell for cell in mdata.obs_names if cell in set(adata.obs_names)]
        rows = study.obs.index.get_indexer(adata.obs_names)
        assert (sparse.csr_matrix(adata.X).astype(np.float32) != modality.counts[rows]).nnz == 0
        assert list(adata.var_names) == list(modality.var.index)


def test_a_header_needs_none_of_the_heavy_libraries(data_folder):
    code = (
        "import sys, cellweave.core.study as study\n"
        "assert not {'pandas', 'h5py', 'scipy'} & set(sys.modules), 'importing the package costs nothing'\n"
        f"study.read_header({str(data_folder / 'mosaic_pbmc_rna_adt_4batches.h5mu')!r})\n"
        f"study.load_study\n"
        "heavy = {'anndata', 'mudata', 'scanpy', 'torch', 'zarr', 'sklearn', 'umap'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)


def test_header_goes_through_json(data_folder):
    import json

    header = read_header(data_folder / "rna_ifnb_pbmc_2batches.h5ad")
    tree = json.loads(json.dumps(header.to_json()))
    assert tree["n_cells"] == 2000
    assert tree["modalities"][0]["matrices"][0]["shape"] == [2000, 9015]
    assert {column["name"]: column["n_missing"] for column in tree["obs_columns"]} == {"batch": 0, "donor": 29, "cell_type": 702}


def test_the_packaged_example_opens(example_file):
    study = load_study(DataSpec(paths=(str(example_file),)))
    assert set(study.modalities) == {"rna", "adt"}
    assert study.obs["batch"].nunique() == 4
    assert study.obs["celltype"].nunique() == 8
