"""The choices of the data spec: files together, features, cells, columns; progress and cancel."""

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellweave.core.errors import Cancelled, DataError
from cellweave.core.spec.data import DataSpec, FeatureSelection, SwitchedOff
from cellweave.core.study import load_study


def write(path, counts, genes, cells=None, types=None, **obs):
    counts = np.asarray(counts, dtype=np.float32)
    cells = cells or [f"{path.stem}_{row}" for row in range(len(counts))]
    var = pd.DataFrame(index=genes)
    if types is not None:
        var["feature_types"] = types
    anndata.AnnData(counts, obs=pd.DataFrame(obs, index=cells), var=var).write_h5ad(path)
    return str(path)


def load(*paths, **how):
    return load_study(DataSpec(paths=paths, **how))


def test_several_files_are_aligned_by_feature_name(tmp_path):
    a = write(tmp_path / "a.h5ad", [[1, 2, 3], [4, 5, 6]], ["x", "y", "z"], donor=["d1", "d2"], only=[1.5, 2.5])
    b = write(tmp_path / "b.h5ad", [[7, 8]], ["z", "x"], donor=["d3"])
    both = load(a, b)
    assert list(both.modalities["rna"].var.index) == ["x", "z"]
    assert both.modalities["rna"].counts.toarray().tolist() == [[1, 3], [4, 6], [8, 7]]
    assert both.modalities["rna"].feature_mask is None
    assert both.obs["donor"].tolist() == ["d1", "d2", "d3"]
    assert both.obs["only"].tolist()[:2] == [1.5, 2.5]
    assert np.isnan(both.obs["only"].iloc[2])
    assert both.obs["file"].tolist() == ["a", "a", "b"]
    assert both.file_of_cell.tolist() == [0, 0, 1]
    assert both.row_in_file.tolist() == [0, 1, 0]

    union = load(a, b, join="union", batch_from_file=False)
    assert list(union.modalities["rna"].var.index) == ["x", "y", "z"]
    assert union.modalities["rna"].counts.toarray().tolist() == [[1, 2, 3], [4, 5, 6], [8, 0, 7]]
    assert union.modalities["rna"].feature_mask.tolist() == [[True] * 3, [True, False, True]]
    assert "file" not in union.obs

    c = write(tmp_path / "c.h5ad", [[1]], ["ENSG1"])
    with pytest.raises(DataError, match=r"share no feature of rna.*'x'.*'ENSG1'"):
        load(a, c)


def test_three_10x_panels_make_one_study(data_folder):
    names = ["cite_10x_pbmc1k_5prime.h5mu", "cite_10x_pbmc_5k_protein_v3_200cells.h5mu", "cite_10x_pbmc_10k_protein_v3_200cells.h5mu"]
    paths = [str(data_folder / name) for name in names]
    singles = [load(path) for path in paths]
    for join in ("intersection", "union"):
        study = load(*paths, join=join)
        assert study.n_cells == 900
        # the panels call CD3 'CD3' and 'CD3_TotalSeqB', so that they share no protein
        assert list(study.modalities) == (["rna"] if join == "intersection" else ["rna", "adt"])
        assert set(study.left_out_modalities) == ({"adt"} if join == "intersection" else set())
        for name, modality in study.modalities.items():
            sets = [set(single.modalities[name].var.index) for single in singles]
            assert set(modality.var.index) == (set.intersection(*sets) if join == "intersection" else set.union(*sets))
            for number, single in enumerate(singles):
                own = single.modalities[name]
                shared = [gene for gene in own.var.index if gene in modality.var.index]
                rows = np.flatnonzero(study.file_of_cell == number)
                mine = modality.counts[rows][:, modality.var.index.get_indexer(shared)]
                assert (mine != own.counts[:, own.var.index.get_indexer(shared)]).nnz == 0
                if join == "union":
                    assert modality.counts[rows].sum() == own.counts.sum()
                    assert set(modality.var.index[modality.feature_mask[number]]) == set(own.var.index)


def test_a_modality_without_shared_features_is_refused_where_it_is_asked_for(data_folder):
    paths = [str(data_folder / name) for name in ("cite_10x_pbmc1k_5prime.h5mu", "cite_10x_pbmc_5k_protein_v3_200cells.h5mu")]
    with pytest.raises(DataError, match=r"share no feature of adt.*data.join = 'union'"):
        load(*paths, modality="adt")


def test_the_same_cell_names_in_two_files_are_told_apart(tmp_path):
    a = write(tmp_path / "a.h5ad", [[1], [2]], ["x"], cells=["AAA", "CCC"])
    b = write(tmp_path / "b.h5ad", [[3]], ["x"], cells=["AAA"])
    study = load(a, b)
    assert list(study.obs.index) == ["AAA-1", "CCC-1", "AAA-2"]
    assert any("1 cell name occurs in several files" in note for note in study.notes)
    assert list(load(a).obs.index) == ["AAA", "CCC"]


def test_a_modality_that_a_file_lacks_is_not_measured_in_its_cells(tmp_path):
    types = ["Gene Expression", "Gene Expression", "Antibody Capture"]
    a = write(tmp_path / "a.h5ad", [[1, 2, 3], [4, 5, 6]], ["x", "y", "CD3"], types=types)
    b = write(tmp_path / "b.h5ad", [[7, 8]], ["x", "y"])
    study = load(a, b)
    assert study.modalities["adt"].measured.tolist() == [True, True, False]
    assert study.modalities["adt"].counts.toarray().tolist() == [[3], [6], [0]]
    assert study.modalities["adt"].feature_mask is None


@pytest.mark.filterwarnings("ignore:Observation names are not unique", "ignore:Variable names are not unique")
def test_names_that_repeat_are_made_unique_only_on_request(tmp_path):
    path = write(tmp_path / "a.h5ad", [[1, 2], [3, 4]], ["x", "x"], cells=["c", "c"])
    kept = load(path)
    assert list(kept.obs.index) == ["c", "c"]
    assert list(kept.modalities["rna"].var.index) == ["x", "x"]
    unique = load(path, make_names_unique=True)
    assert list(unique.obs.index) == ["c", "c-1"]
    assert list(unique.modalities["rna"].var.index) == ["x", "x-1"]
    other = write(tmp_path / "b.h5ad", [[5]], ["x"])
    with pytest.raises(DataError, match="make_names_unique"):
        load(path, other)


def test_empty_cells_and_features_go_on_request_and_are_remembered(tmp_path):
    path = write(tmp_path / "a.h5ad", [[1, 0, 0], [0, 0, 0], [0, 0, 2]], ["x", "y", "z"])
    study = load(path)
    assert study.modalities["rna"].counts.shape == (3, 3)
    study = load(path, drop_empty_cells=True, drop_empty_features=True)
    assert study.modalities["rna"].counts.toarray().tolist() == [[1, 0], [0, 2]]
    assert list(study.modalities["rna"].var.index) == ["x", "z"]
    assert study.left_out.to_dict("records") == [{"file": 0, "row": 1, "name": "a_1", "reason": "no counts"}]
    assert study.row_in_file.tolist() == [0, 2]


def test_a_cell_empty_in_one_modality_counts_as_not_measured_there(tmp_path):
    types = ["Gene Expression", "Antibody Capture"]
    path = write(tmp_path / "a.h5ad", [[1, 1], [0, 2], [3, 0], [0, 0]], ["x", "CD3"], types=types)
    study = load(path, drop_empty_cells=True)
    assert study.modalities["rna"].measured.tolist() == [True, False, True]
    assert study.modalities["adt"].measured.tolist() == [True, True, False]
    assert study.left_out["row"].tolist() == [3]


def test_cells_of_the_grid_can_be_switched_off(data_folder):
    path = str(data_folder / "mosaic_pbmc_rna_adt_4batches.h5mu")
    whole = load(path)
    off = (SwitchedOff(column="batch", level="p3_0", modality="adt"), SwitchedOff(column="batch", level="p1_0", modality="rna"))
    study = load(path, switched_off=off)
    assert study.n_cells == 1200
    assert set(study.left_out["reason"]) == {"switched off"}
    assert set(study.obs["batch"]) == {"p2_0", "p3_0", "p4_0"} == set(study.obs["batch"].cat.categories)
    batch = study.obs["batch"].to_numpy()
    assert study.modalities["adt"].measured.tolist() == [level in ("p2_0", "p4_0") for level in batch]
    assert study.modalities["adt"].counts[batch == "p3_0"].nnz == 0
    rows = whole.obs.index.get_indexer(study.obs.index)
    assert (study.modalities["rna"].counts != whole.modalities["rna"].counts[rows]).nnz == 0
    assert np.array_equal(study.row_in_file, rows)
    assert sorted([*study.left_out["row"], *study.row_in_file]) == list(range(1600))
    for broken, message in (
        (SwitchedOff(column="batsch", level="p3_0", modality="adt"), "Did you mean 'batch'"),
        (SwitchedOff(column="batch", level="p9", modality="adt"), "no cell has"),
        (SwitchedOff(column="batch", level="p3_0", modality="atac"), "They have rna, adt"),
    ):
        with pytest.raises(DataError, match=message):
            load(path, switched_off=(broken,))


def test_missing_values_are_filled_and_columns_combined(data_folder):
    path = str(data_folder / "rna_ifnb_pbmc_2batches.h5ad")
    study = load(path, fill_missing={"donor": "unknown"}, combine={"sample": ("batch", "donor")})
    assert (study.obs["donor"] == "unknown").sum() == 29
    assert study.obs["sample"].iloc[0] == f"{study.obs['batch'].iloc[0]}_{study.obs['donor'].iloc[0]}"
    assert study.obs["sample"].nunique() == study.obs.groupby(["batch", "donor"], observed=True).ngroups
    unfilled = load(path, combine={"sample": ("batch", "donor")})
    assert unfilled.obs["sample"].isna().sum() == 29
    with pytest.raises(DataError, match="Did you mean 'donor'"):
        load(path, fill_missing={"doner": "unknown"})


def test_variable_features_are_those_of_scanpy_on_the_counts(data_folder):
    import warnings

    import scanpy

    path = data_folder / "rna_ifnb_pbmc_2batches.h5ad"
    adata = anndata.read_h5ad(path)
    for batch in (None, "batch"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scanpy.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=500, batch_key=batch)
        study = load(str(path), features={"rna": FeatureSelection(mode="variable", n=500, batch_column=batch)})
        assert list(study.modalities["rna"].var.index) == list(adata.var_names[adata.var["highly_variable"]])
        assert (study.modalities["rna"].counts != adata.X[:, adata.var["highly_variable"].to_numpy()]).nnz == 0


def test_features_from_a_list(tmp_path, data_folder):
    path = str(data_folder / "rna_kang_2conditions_2donors_labelled.h5ad")
    genes = list(load(path).modalities["rna"].var.index)
    listed = tmp_path / "genes.txt"
    listed.write_text("\n".join([genes[7], "", genes[2], "NOT_A_GENE"]))
    study = load(path, features={"rna": FeatureSelection(mode="list", file=str(listed))})
    assert list(study.modalities["rna"].var.index) == [genes[2], genes[7]]
    assert any("1 of 3 names" in note and "NOT_A_GENE" in note for note in study.notes)
    listed.write_text("NOT_A_GENE")
    with pytest.raises(DataError, match=r"The one name in .* is no feature of"):
        load(path, features={"rna": FeatureSelection(mode="list", file=str(listed))})
    with pytest.raises(DataError, match=r"no file is named.*data.features.rna.file"):
        load(path, features={"rna": FeatureSelection(mode="list")})
    all_of_them = load(path, features={"rna": FeatureSelection(mode="variable", n=5000)})
    assert all_of_them.modalities["rna"].n_features == 1267
    assert any("all of them are kept" in note for note in all_of_them.notes)


def test_choices_for_modalities_that_are_not_there_are_refused(data_folder):
    path = str(data_folder / "rna_kang_2conditions_2donors_labelled.h5ad")
    for how in ({"modality": "rnaa"}, {"layers": {"rma": "X"}}, {"features": {"rn": FeatureSelection()}}):
        with pytest.raises(DataError, match="Did you mean 'rna'"):
            load(path, **how)
    with pytest.raises(DataError, match="No data file"):
        load()


def test_progress_rises_to_the_end_and_a_cancel_is_honoured_between_blocks(data_folder, monkeypatch):
    from cellweave.core.study.readers import base

    monkeypatch.setattr(base, "BLOCK_VALUES", 50_000)
    data = DataSpec(paths=(str(data_folder / "mosaic_pbmc_rna_adt_4batches.h5mu"), str(data_folder / "rna_ifnb_pbmc_2batches.h5ad")))
    seen = []
    load_study(data, progress=lambda share, text: seen.append((share, text)))
    shares = [share for share, _ in seen if share is not None]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert len(shares) > 20
    assert any("reading X" in text for _, text in seen)
    calls = 0

    def cancelled():
        nonlocal calls
        calls += 1
        return calls > 10

    with pytest.raises(Cancelled):
        load_study(data, cancelled=cancelled)
    assert calls == 11


CELLS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8, unique=True)
GENES = st.lists(st.sampled_from(["g1", "g2", "g3", "g4"]), min_size=1, max_size=4, unique=True)


@given(files=st.lists(st.tuples(CELLS, GENES), min_size=1, max_size=3), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_every_count_of_every_file_is_where_its_names_say(tmp_path_factory, files, seed):
    folder = tmp_path_factory.mktemp("files")
    truth, paths = {}, []
    for number, (cells, genes) in enumerate(files):
        counts = np.random.default_rng(seed + number).integers(1, 9, (len(cells), len(genes)))
        truth.update({(number, row, gene): counts[row, column] for row in range(len(cells)) for column, gene in enumerate(genes)})
        paths.append(write(folder / f"f{number}.h5ad", counts, genes, cells=cells))
    study = load(*paths, join="union")
    modality = study.modalities["rna"]
    assert study.obs.index.is_unique
    found = {}
    dense = modality.counts.toarray()
    for cell in range(study.n_cells):
        for column, gene in enumerate(modality.var.index):
            key = (int(study.file_of_cell[cell]), int(study.row_in_file[cell]), gene)
            measured = modality.feature_mask is None or modality.feature_mask[key[0], column]
            assert measured == (key in truth)
            if measured:
                found[key] = dense[cell, column]
    assert found == truth


def test_counts_larger_than_memory_are_read_into_mapped_files(data_folder, tmp_path):
    data = DataSpec(paths=(str(data_folder / "rna_ifnb_pbmc_2batches.h5ad"),))
    expected = load_study(data).modalities["rna"].counts
    counts = load_study(data, scratch=tmp_path / "scratch").modalities["rna"].counts
    for array in (counts.data, counts.indices):
        chain = [array]
        while getattr(chain[-1], "base", None) is not None:
            chain.append(chain[-1].base)
        assert any(isinstance(one, np.memmap) for one in chain)  # neither was copied into memory on the way
    assert (counts != expected).nnz == 0
    assert counts[[5, 3]].toarray().tolist() == expected[[5, 3]].toarray().tolist()


def test_a_file_named_twice_is_refused(data_folder):
    path = str(data_folder / "rna_kang_2conditions_2donors_labelled.h5ad")
    with pytest.raises(DataError, match="is named twice"):
        load(path, path)


def test_a_ranking_that_fails_is_explained(tmp_path):
    genes = [f"g{number}" for number in range(30)]
    rng = np.random.default_rng(0)
    flat = write(tmp_path / "flat.h5ad", np.ones((60, 30)), genes)
    how = FeatureSelection(mode="variable", n=5)
    with pytest.raises(DataError, match=r"rna cannot be ranked: only 0 features vary there.*mode = 'all'"):
        load(flat, features={"rna": how})  # the smoother itself would end the process
    counts = rng.poisson(rng.uniform(0.5, 9, 30), (60, 30))
    path = write(tmp_path / "a.h5ad", counts, genes, lane=["a"] * 59 + ["b"])
    assert load(path, features={"rna": how}).modalities["rna"].n_features == 5
    with pytest.raises(DataError, match=r"within 'b': only 0 features vary.*without batch_column"):
        load(path, features={"rna": FeatureSelection(mode="variable", n=5, batch_column="lane")})
    binary = write(tmp_path / "b.h5ad", np.eye(30).repeat(2, axis=0), genes)
    with pytest.raises(DataError, match="too few cells or features have enough counts"):
        load(binary, features={"rna": how})


def test_variable_features_of_files_with_different_features_are_ranked_within_files(data_folder):
    names = ["cite_10x_pbmc_5k_protein_v3_200cells.h5mu", "cite_10x_pbmc_10k_protein_v3_200cells.h5mu"]
    paths = [str(data_folder / name) for name in names]
    study = load(*paths, join="union", features={"rna": FeatureSelection(mode="variable", n=300)})
    assert study.modalities["rna"].n_features == 300
    assert study.modalities["rna"].feature_mask.shape == (2, 300)
    assert any("within each file" in note for note in study.notes)
    # the obs can be written to without pandas' warning about slices
    study.obs["new"] = 1
    study.modalities["rna"].var["new"] = 1
