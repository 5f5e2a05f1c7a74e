"""Formats written by the libraries that own them, and read back the same."""

import gzip
import warnings

import anndata
import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
from scipy import io, sparse

from cellweave.core.errors import Cancelled, DataError
from cellweave.core.spec.data import DataSpec
from cellweave.core.study import load_study, read_header

GENES = ["CD3D", "LYZ", "GAPDH", "NKG7", "MS4A1"]


def small(n=6, seed=0, prefix="cell"):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 4, (n, len(GENES))).astype(np.float32)
    counts[0, 0] = 5
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(["a", "b", None] * (n // 3)),
            "number": rng.normal(size=n),
            "whole": np.arange(n),
            "yes": np.arange(n) % 2 == 0,
            "maybe": pd.array([True, None, False] * (n // 3), dtype="boolean"),
            "nullable": pd.array([1, None, 3] * (n // 3), dtype="Int64"),
        },
        index=[f"{prefix}{row}" for row in range(n)],
    )
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=GENES))


def load(path, **how):
    return load_study(DataSpec(paths=(str(path),), **how))


def check_small(study, adata):
    assert np.array_equal(study.modalities["rna"].counts.toarray(), np.asarray(adata.X))
    assert list(study.obs.index) == list(adata.obs_names)
    assert list(study.modalities["rna"].var.index) == GENES
    assert study.obs["batch"].isna().tolist() == [False, False, True] * 2
    assert study.obs["number"].tolist() == adata.obs["number"].tolist()
    assert study.obs["whole"].dtype.kind == "i"
    assert study.obs["yes"].dtype == bool
    assert study.obs["maybe"].fillna("").tolist() == ["True", "", "False"] * 2
    assert study.obs["nullable"].fillna(-1).tolist() == [1.0, -1.0, 3.0] * 2


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_of_both_versions(tmp_path, version):
    adata = small()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = anndata.settings.zarr_write_format
        anndata.settings.zarr_write_format = version
        adata.write_zarr(tmp_path / "a.zarr")
        mudata.MuData({"rna": small(), "prot": small(seed=1)}).write_zarr(tmp_path / "m.zarr")
        anndata.settings.zarr_write_format = before
    assert read_header(tmp_path / "a.zarr").format == "zarr"
    check_small(load(tmp_path / "a.zarr"), adata)
    study = load(tmp_path / "m.zarr")
    assert list(study.modalities) == ["rna", "adt"]
    assert any("'prot' is called 'adt'" in note for note in study.notes)


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, np.asarray])
def test_every_form_of_matrix_in_h5ad(tmp_path, form):
    adata = small()
    truth = adata.copy()
    adata.X = form(adata.X)
    adata.write_h5ad(tmp_path / "a.h5ad")
    check_small(load(tmp_path / "a.h5ad"), truth)


def test_counts_are_found_in_raw_and_in_layers(tmp_path):
    adata = small()
    counts = adata.X.copy()
    adata.layers["counts"] = sparse.csc_matrix(counts)
    adata.X = np.log1p(counts)
    adata.write_h5ad(tmp_path / "layer.h5ad")
    study = load(tmp_path / "layer.h5ad")
    assert study.modalities["rna"].location == "layers/counts"
    assert np.array_equal(study.modalities["rna"].counts.toarray(), counts)

    whole = small()
    part = whole[:, :3].copy()
    part.raw = whole
    part.X = np.log1p(part.X)
    part.write_h5ad(tmp_path / "raw.h5ad")
    study = load(tmp_path / "raw.h5ad")
    assert study.modalities["rna"].location == "raw/X"
    assert list(study.modalities["rna"].var.index) == GENES
    with pytest.raises(DataError, match=r"no matrix at 'layers/count'.*raw/X"):
        load(tmp_path / "raw.h5ad", layers={"rna": "layers/count"})
    with pytest.raises(DataError, match="no raw counts of rna: X has"):
        load(tmp_path / "raw.h5ad", layers={"rna": "X"})
    accepted = load(tmp_path / "raw.h5ad", layers={"rna": "X"}, accept_non_integer=True)
    assert np.allclose(accepted.modalities["rna"].counts.toarray(), np.log1p(whole.X[:, :3]))


def test_features_of_several_types_become_modalities(tmp_path):
    adata = small()
    adata.var["feature_types"] = ["Gene Expression", "Antibody Capture", "Gene Expression", "Peaks", "Antibody Capture"]
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert {one.name: one.n_features for one in read_header(tmp_path / "a.h5ad").modalities} == {"rna": 2, "adt": 2, "atac": 1}
    study = load(tmp_path / "a.h5ad")
    assert {name: list(one.var.index) for name, one in study.modalities.items()} == {
        "rna": ["CD3D", "GAPDH"], "adt": ["LYZ", "MS4A1"], "atac": ["NKG7"],
    }  # fmt: skip
    assert np.array_equal(study.modalities["adt"].counts.toarray(), adata.X[:, [1, 4]])
    # a modality of the same matrix that holds no counts takes the others not with it
    adata.X[:, 1] -= 0.5
    adata.write_h5ad(tmp_path / "b.h5ad")
    study = load(tmp_path / "b.h5ad")
    assert list(study.modalities) == ["rna", "atac"]
    assert "feature 'LYZ'" in study.left_out_modalities["adt"]
    with pytest.raises(DataError, match="no raw counts of adt"):
        load(tmp_path / "b.h5ad", modality="adt")


def test_modalities_of_an_h5mu_are_paired_by_name(tmp_path):
    rna, adt = small(prefix="c"), small(seed=4, prefix="c")
    adt = adt[::-1][:4].copy()
    adt.obs["only_adt"] = [f"x{row}" for row in range(4)]
    adt.obs["whole"] = adt.obs["whole"] + 100
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mdata = mudata.MuData({"rna": rna, "adt": adt})
        mdata.write_h5mu(tmp_path / "m.h5mu")
    study = load(tmp_path / "m.h5mu")
    for name, adata in (("rna", rna), ("adt", adt)):
        modality = study.modalities[name]
        for cell, row in zip(study.obs.index, modality.counts.toarray(), strict=True):
            expected = np.asarray(adata[cell].X).ravel() if cell in adata.obs_names else np.zeros(5)
            assert np.array_equal(row, expected)
        assert modality.measured.tolist() == [cell in set(adata.obs_names) for cell in study.obs.index]
    assert study.obs["only_adt"].notna().sum() == 4
    assert study.obs.loc[adt.obs_names[0], "only_adt"] == "x0"
    assert study.obs["whole"].tolist() == rna.obs["whole"].tolist()
    assert study.obs.loc[adt.obs_names, "adt:whole"].tolist() == adt.obs["whole"].tolist()


def test_repeated_cell_names_in_an_h5mu_are_refused(tmp_path):
    with h5py.File(tmp_path / "m.h5mu", "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = small()
        mudata.MuData({"rna": adata, "adt": small(seed=2)}).write_h5mu(tmp_path / "good.h5mu")
        with h5py.File(tmp_path / "good.h5mu") as good:
            for name in good:
                good.copy(name, file)
        for group in (file["obs"], file["mod/rna/obs"], file["mod/adt/obs"]):
            key = group.attrs["_index"]
            array = group[key]["values"] if isinstance(group[key], h5py.Group) else group[key]
            names = array[...]
            names[1] = names[0]
            array[...] = names
    with pytest.raises(DataError, match="Cell names repeat"):
        load(tmp_path / "m.h5mu")


def write_mtx(folder, adata, version=3, prefix="", transposed=False):
    folder.mkdir(parents=True, exist_ok=True)
    matrix = sparse.coo_matrix(adata.X if transposed else adata.X.T)
    ending = ".gz" if version == 3 else ""
    io.mmwrite(folder / f"{prefix}matrix.mtx", matrix.astype(int))
    rows = [f"ENSG{number}\t{name}" + ("\tGene Expression" if version == 3 else "") for number, name in enumerate(adata.var_names)]
    names = {"barcodes.tsv": list(adata.obs_names), "features.tsv" if version == 3 else "genes.tsv": rows}
    for name, lines in names.items():
        text = "\n".join(lines) + "\n"
        (folder / f"{prefix}{name}{ending}").write_bytes(gzip.compress(text.encode()) if ending else text.encode())
    if ending:
        path = folder / f"{prefix}matrix.mtx"
        (folder / f"{prefix}matrix.mtx.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


@pytest.mark.parametrize(("version", "prefix", "transposed"), [(2, "", False), (3, "", False), (3, "GSM1_", False), (2, "", True)])
def test_10x_folders(tmp_path, version, prefix, transposed):
    adata = small()
    write_mtx(tmp_path / "run", adata, version, prefix, transposed)
    header = read_header(tmp_path / "run")
    assert (header.format, header.n_cells, header.modalities[0].n_features) == ("10x_mtx", 6, 5)
    assert header.modalities[0].matrices[0].n_stored == np.count_nonzero(adata.X)
    study = load(tmp_path / "run")
    assert np.array_equal(study.modalities["rna"].counts.toarray(), adata.X)
    assert list(study.obs.index) == list(adata.obs_names)
    assert study.modalities["rna"].var["gene_ids"].tolist() == [f"ENSG{number}" for number in range(5)]
    single = load(next((tmp_path / "run").glob("*.mtx*")))
    assert np.array_equal(single.modalities["rna"].counts.toarray(), adata.X)


def test_reading_a_matrix_market_file_can_be_cancelled(tmp_path):
    counts = sparse.random(400, 600, 0.2, random_state=0, data_rvs=lambda n: np.arange(1, n + 1))
    wide = anndata.AnnData(counts.toarray(), var=pd.DataFrame(index=[f"g{number}" for number in range(600)]))
    write_mtx(tmp_path / "run", wide)
    data = DataSpec(paths=(str(tmp_path / "run"),))
    seen = []
    study = load_study(data, progress=lambda share, text: seen.append(share) if "matrix.mtx" in text else None)
    assert np.array_equal(study.modalities["rna"].counts.toarray(), wide.X)
    assert len(seen) > 1
    calls = iter(range(100))
    with pytest.raises(Cancelled):
        load_study(data, cancelled=lambda: next(calls) == 2)


def test_of_raw_and_filtered_the_filtered_is_taken_and_others_must_be_named(tmp_path):
    write_mtx(tmp_path / "outs" / "raw_feature_bc_matrix", small(12, prefix="raw"))
    write_mtx(tmp_path / "outs" / "filtered_feature_bc_matrix", small())
    study = load(tmp_path / "outs")
    assert study.n_cells == 6
    assert "filtered_feature_bc_matrix" in study.notes[0]
    write_mtx(tmp_path / "two" / "sample1", small())
    write_mtx(tmp_path / "two" / "sample2", small())
    with pytest.raises(DataError, match=r"holds 2 matrices \(sample1"):
        load(tmp_path / "two")
    both = load_study(DataSpec(paths=(str(tmp_path / "two" / "sample1"), str(tmp_path / "two" / "sample2"))))
    assert both.obs["file"].cat.categories.tolist() == ["sample1", "sample2"]
    (tmp_path / "two" / "sample1" / "barcodes.tsv.gz").unlink()
    with pytest.raises(DataError, match=r"there is no barcodes.tsv"):
        load(tmp_path / "two" / "sample1")


@pytest.mark.parametrize("separator", [",", "\t", ";"])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_text_tables_in_either_direction(tmp_path, separator, zipped, turned):
    adata = small(prefix="AAACCCAAGGAGAGT")
    table = pd.DataFrame(adata.X.astype(int), index=adata.obs_names, columns=adata.var_names)
    text = (table.T if turned else table).to_csv(sep=separator)
    path = tmp_path / f"counts.csv{'.gz' if zipped else ''}"
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    header = read_header(path)
    assert (header.format, header.n_cells, header.modalities[0].n_features) == ("text", 6, 5)
    study = load(path)
    assert np.array_equal(study.modalities["rna"].counts.toarray(), adata.X)
    assert list(study.obs.index) == list(adata.obs_names)
    assert list(study.modalities["rna"].var.index) == GENES


def test_a_broken_value_in_a_turned_text_table_is_named_rightly(tmp_path):
    (tmp_path / "t.csv").write_text("gene,AAACCCAAGGAG,AAACCCAAGGAC\nGAPDH,1,2\nLYZ,0,2.5\n")
    with pytest.raises(DataError, match=r"first 2.5 in cell 'AAACCCAAGGAC', feature 'LYZ'"):
        load(tmp_path / "t.csv")
    (tmp_path / "n.csv").write_text("cell,GAPDH,LYZ\nAAACCCAAGGAG,1,NA\nAAACCCAAGGAC,1,2\n")
    with pytest.raises(DataError, match=r"1 missing or infinite values \(first nan in cell 'AAACCCAAGGAG', feature 'LYZ'\)"):
        load(tmp_path / "n.csv")


def write_midas(folder):
    """Two batches as scmidas lays them out: RNA and ADT in the first, RNA with one feature masked in the second."""
    (folder / "feat").mkdir(parents=True)
    (folder / "feat" / "feat_dims.toml").write_text("rna = [3]\nadt = [2]\n")
    truth = {}
    for number, modalities in enumerate((("rna", "adt"), ("rna",))):
        batch = folder / f"batch_{number}"
        (batch / "mat").mkdir(parents=True)
        for name in modalities:
            width = {"rna": 3, "adt": 2}[name]
            counts = np.random.default_rng(number).integers(1, 5, (4, width))
            truth[number, name] = counts
            if name == "rna":
                io.mmwrite(batch / "mat" / "rna.mtx", sparse.coo_matrix(counts))
            else:
                table = pd.DataFrame(counts, index=[f"b{number}_{row}" for row in range(4)], columns=["CD3", "CD4"])
                table.iloc[::-1].to_csv(batch / "mat" / "adt.csv")
        pd.DataFrame({"name": [f"b{number}_{row}" for row in range(4)]}).to_csv(batch / "cell_names.csv")
        (batch / "mask").mkdir()
        pd.DataFrame([[1, 1, 1 - number]]).to_csv(batch / "mask" / "rna.csv")
    return truth


def test_midas_folders(tmp_path):
    truth = write_midas(tmp_path / "study")
    header = read_header(tmp_path / "study")
    assert (header.format, header.n_cells) == ("midas", 8)
    assert {one.name: (one.n_cells, one.n_features) for one in header.modalities} == {"rna": (8, 3), "adt": (4, 2)}
    study = load(tmp_path / "study")
    rna, adt = study.modalities["rna"], study.modalities["adt"]
    assert study.obs["batch"].tolist() == ["batch_0"] * 4 + ["batch_1"] * 4
    assert np.array_equal(rna.counts.toarray(), np.vstack([truth[0, "rna"], truth[1, "rna"] * [1, 1, 0]]))  # the mask holds for counts too
    assert np.array_equal(adt.counts.toarray()[:4], truth[0, "adt"])  # the CSV has them in another order
    assert adt.measured.tolist() == [True] * 4 + [False] * 4
    assert rna.feature_mask.tolist() == [[True, True, True], [True, True, False]]
    assert [source.path.name for source in study.sources] == ["batch_0", "batch_1"]


def midas_batch(folder, name, **tables):
    """A batch of a MIDAS folder whose tables name or number their cells; the first column tells which cell a row is of."""
    (folder / "feat").mkdir(parents=True, exist_ok=True)
    (folder / "feat" / "feat_dims.toml").write_text("rna = [2]\nadt = [3]\n")
    (folder / name / "mat").mkdir(parents=True)
    for modality, (cells, index) in tables.items():
        width = {"rna": 2, "adt": 3}[modality]
        values = np.ones((len(cells), width), dtype=int)
        values[:, 0] = [int(cell.removeprefix("c")) + 1 for cell in cells]
        pd.DataFrame(values, index=index or cells, columns=[f"{modality}{place}" for place in range(width)]).to_csv(folder / name / "mat" / f"{modality}.csv")


def test_cells_of_a_midas_folder_are_paired_by_name(tmp_path):
    """Also where a cell lacks a modality; never by position where tables name their cells."""
    cells = [f"c{row}" for row in range(6)]
    midas_batch(tmp_path / "a", "one", rna=(cells, None), adt=(["c9", *cells[:0:-1]], None))
    study = load(tmp_path / "a")
    for name, lacking in (("rna", "c9"), ("adt", "c0")):
        modality = study.modalities[name]
        assert modality.measured.tolist() == [cell != lacking for cell in study.obs.index]
        expected = [0 if cell == lacking else int(cell[1:]) + 1 for cell in study.obs.index]
        assert modality.counts[:, [0]].toarray().ravel().tolist() == expected
    midas_batch(tmp_path / "b", "one", rna=(cells, None), adt=([f"c1{row}" for row in range(6)], None))
    with pytest.raises(DataError, match=r"No cell of the batch 'one' has several modalities: they are called 'c10' \.\.\. \(adt\) and 'c0'"):
        load(tmp_path / "b")
    midas_batch(tmp_path / "c", "one", rna=(cells, None))
    pd.DataFrame({"name": ["c7", *cells[1:]]}).to_csv(tmp_path / "c" / "one" / "cell_names.csv")
    with pytest.raises(DataError, match="rna of the batch 'one' has the cell 'c0', which is not among its cells"):
        load(tmp_path / "c")
    midas_batch(tmp_path / "d", "one", rna=(cells, list(range(6))), adt=(cells[:4], list(range(4))))
    with pytest.raises(DataError, match="have different numbers of cells"):
        load(tmp_path / "d")


def test_batches_of_a_midas_folder_are_different_cells_whatever_they_are_called(tmp_path):
    """Tables as pandas writes them, with rows that are numbered, and two samples that happen to have the same names."""
    cells = [f"c{row}" for row in range(6)]
    midas_batch(tmp_path / "a", "one", rna=(cells, list(range(6))))
    midas_batch(tmp_path / "a", "two", adt=(cells, list(range(6))))
    midas_batch(tmp_path / "b", "one", rna=(cells, None))
    midas_batch(tmp_path / "b", "two", adt=(cells, None))
    for folder in (tmp_path / "a", tmp_path / "b"):
        study = load(folder)
        assert study.n_cells == 12
        assert study.obs.index.is_unique
        assert study.obs["batch"].tolist() == ["one"] * 6 + ["two"] * 6
        assert [modality.measured.tolist() for modality in study.modalities.values()] == [[True] * 6 + [False] * 6, [False] * 6 + [True] * 6]


def test_labels_of_a_midas_folder_go_to_the_cells_they_name(tmp_path):
    cells = [f"c{row}" for row in range(6)]
    midas_batch(tmp_path / "a", "one", rna=(cells, None))
    (tmp_path / "a" / "label").mkdir()
    labels = pd.DataFrame({"type": [f"t{row}" for row in range(6)]}, index=cells)
    for table, expected, said in (
        (labels.iloc[::-1], [f"t{row}" for row in range(6)], None),
        (labels.iloc[:0:-1], [None, *(f"t{row}" for row in range(1, 6))], "names 5 of the 6 cells"),
        (labels.reset_index(drop=True), [f"t{row}" for row in range(6)], None),
        (labels.set_axis([f"x{row}" for row in range(6)]), [f"t{row}" for row in range(6)], "names no cell"),
        (labels.reset_index(drop=True)[:4], None, "4 labels for the 6 cells"),
    ):
        table.to_csv(tmp_path / "a" / "label" / "one.csv")
        study = load(tmp_path / "a")
        found = [None if pd.isna(label) else label for label in study.obs["label"]] if "label" in study.obs else None
        assert found == expected
        assert any(said in note for note in study.notes) if said else not study.notes


def test_a_column_in_an_unknown_encoding_is_left_out_with_a_note(tmp_path):
    small().write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        group = file["obs"].create_group("strange")
        group.attrs["encoding-type"] = "from-the-future"
    study = load(tmp_path / "a.h5ad")
    assert "strange" not in study.obs
    assert any("'strange'" in note and "from-the-future" in note for note in study.notes)
    assert next(column for column in read_header(tmp_path / "a.h5ad").obs_columns if column.name == "strange").kind == "other"


def test_strings_that_may_be_missing_are_read_in_the_encodings_of_newer_anndata(tmp_path):
    adata = small()
    adata.obs["text"] = pd.array(["u", None, "v"] * 2, dtype="string")
    adata.obs_names = pd.Index(adata.obs_names, dtype="string")
    before = anndata.settings.allow_write_nullable_strings
    anndata.settings.allow_write_nullable_strings = True
    try:
        adata.write_h5ad(tmp_path / "a.h5ad", convert_strings_to_categoricals=False)
    finally:
        anndata.settings.allow_write_nullable_strings = before
    with h5py.File(tmp_path / "a.h5ad") as file:
        assert file["obs/text"].attrs["encoding-type"] == "nullable-string-array"
    study = load(tmp_path / "a.h5ad")
    assert study.obs["text"].fillna("").tolist() == ["u", "", "v"] * 2
    check_small(study, adata)


def test_a_seurat_file_is_named_as_such(tmp_path):
    with h5py.File(tmp_path / "a.h5seurat", "w") as file:
        file.create_group("assays")
        file["cell.names"] = ["a"]
    with pytest.raises(DataError, match="is an h5Seurat file"):
        load(tmp_path / "a.h5seurat")


def test_midas_folders_with_one_file_a_cell_and_masks_by_name(tmp_path):
    folder = tmp_path / "study"
    write_midas(folder)
    batch = folder / "batch_10"
    (batch / "vec" / "adt").mkdir(parents=True)
    counts = np.random.default_rng(5).integers(1, 9, (11, 2))
    for row, values in enumerate(counts):
        (batch / "vec" / "adt" / f"{row}.csv").write_text(f",CD3,CD4\n0,{values[0]},{values[1]}\n")
    (batch / "mask").mkdir()
    (batch / "mask" / "adt.csv").write_text(",CD4,CD3\n0,1,0\n")
    (folder / "label").mkdir()
    pd.DataFrame({"label": [f"t{row}" for row in range(11)]}).to_csv(folder / "label" / "batch_10.csv")
    study = load(folder)
    assert list(study.obs["batch"].unique()) == ["batch_0", "batch_1", "batch_10"]
    adt, rows = study.modalities["adt"], (study.obs["batch"] == "batch_10").to_numpy()
    assert adt.counts.toarray()[rows].tolist() == (counts * [0, 1]).tolist()
    assert adt.feature_mask[study.mask_group[rows]].tolist() == [[False, True]] * 11
    assert study.obs["label"][rows].tolist() == [f"t{row}" for row in range(11)]
    (batch / "mask" / "rna.csv").write_text(",1,2,3\n0,1,1,0\n")
    with pytest.raises(DataError, match=r"The batch 'batch_10' has a mask of 'rna', but no counts of it\."):
        load(folder)
    (batch / "mask" / "rna.csv").unlink()
    (batch / "mat").mkdir()
    (batch / "mat" / "prot.csv").write_text("cell,a,b\n0,1,2\n")
    with pytest.raises(DataError, match=r"has the modality 'prot', which feat_dims.toml does not name"):
        load(folder)
