"""Awkward files: each is opened with the right size, or refused in one sentence with the mend, quickly and quietly."""

import gzip
import os
import shutil
import subprocess
import sys
import warnings

import h5py
import numpy as np
import pandas as pd
import pytest

from cellweave.core.errors import Cancelled, DataError
from cellweave.core.spec.data import DataSpec
from cellweave.core.study import load_study, read_header

pytestmark = pytest.mark.timeout(20)

# format, cells, and features of each modality
OPENED = {
    "10x_v2_heart_1k_mm10_duplicate_names.h5": ("10x_h5", 250, {"rna": 31053}),
    "10x_v2_two_genomes.h5": ("10x_h5", 12, {"rna": 686}),
    "10x_v3_pbmc1k_rna_and_antibody.h5": ("10x_h5", 250, {"rna": 36601, "adt": 10}),
    "10x_mtx_v3": ("10x_mtx", 1107, {"rna": 507}),
    "10x_mtx_v2_soupx_toy": ("10x_mtx", 62, {"rna": 226}),
    "sympathetic_ganglion.loom": ("loom", 150, {"rna": 16892}),
    "starmap_mpfc_numeric_batch.loom": ("loom", 3704, {"rna": 158}),
    "drg_20cells_100_attributes.loom": ("loom", 20, {"rna": 20}),
    "paul15_old_dense_integer_index.h5ad": ("h5ad", 910, {"rna": 3451}),
    "bmmc_csc_normalised_x_counts_layer.h5ad": ("h5ad", 600, {"rna": 1000}),
    "brain_old_scvi_registry_numeric_names.h5ad": ("h5ad", 70, {"rna": 720}),
    "pbmc_multiome_early_mudata.h5mu": ("h5mu", 1000, {"atac": 174, "rna": 45}),
    "pbmc_multiome_mudata_with_wrong_suffix.h5ad": ("h5mu", 1000, {"atac": 174, "rna": 45}),
    "keras_style_x_y_no_names.h5": ("h5", 627, {"rna": 2000}),
    "dropseq_genes_by_cells.csv.gz": ("text", 225, {"rna": 15127}),
    "reapseq_protein_headerless_index.txt.gz": ("text", 3158, {"adt": 48}),
    "celltypist_sample_cells_by_genes.csv.gz": ("text", 88, {"rna": 16383}),
    "olfactory_bulb_cells_by_genes.tsv.gz": ("text", 8, {"rna": 14789}),
    "pdac_indrop_repeated_column_names.txt.gz": ("text", 300, {"rna": 19738}),
}
REFUSED = {
    "pbmc68k_anndata_v0.5_scaled_dense.h5ad": r"no raw counts of rna: X has 397,164 negative values .*; raw/X has 174,148 values that are not whole",
    "kang_lognormalised_only_csr.h5ad": r"no raw counts of rna: X has 211,515 values that are not whole numbers",
    "pancreas_dense_noninteger_counts.h5ad": r"no raw counts of rna: X has .*; layers/logcounts has .*accept_non_integer",
    "dropseq_metadata.csv.gz": r"table of annotations, not of counts: its column 'outliers' holds text",
}


def load(path, **how):
    return load_study(DataSpec(paths=(str(path),), **how))


def test_every_awkward_file_is_expected_here(data_folder):
    assert {item.name for item in (data_folder / "awkward").iterdir()} == set(OPENED) | set(REFUSED)


@pytest.mark.parametrize("name", OPENED)
def test_is_opened(data_folder, name):
    path = data_folder / "awkward" / name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        header, study = read_header(path), load(path)
    kind, n_cells, sizes = OPENED[name]
    assert (header.format, header.n_cells, study.n_cells) == (kind, n_cells, n_cells)
    assert {one.name: one.n_features for one in study.modalities.values()} == sizes
    assert {one.name: one.n_features for one in header.modalities}.items() >= sizes.items()
    for modality in study.modalities.values():
        assert modality.counts.shape == (n_cells, modality.n_features)
        assert modality.counts.nnz > 0
        assert (modality.counts.data == np.rint(modality.counts.data)).all()
        assert modality.counts.data.min() > 0
    for column in study.obs.columns:
        assert isinstance(study.obs[column].dtype, pd.CategoricalDtype) or study.obs[column].dtype.kind in "biufO"
        assert study.obs[column].map(type).isin([str, int, float, bool, np.float64, np.int64, np.float32]).all() or study.obs[column].dtype.kind in "iufb"


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_in_a_sentence_with_the_mend(data_folder, name):
    with pytest.raises(DataError, match=REFUSED[name]) as caught:
        load(data_folder / "awkward" / name)
    assert caught.value.mend.endswith(".")
    assert "\n" not in str(caught.value)
    assert caught.value.cause.endswith(".")


def test_what_is_not_whole_is_opened_where_that_is_accepted(data_folder):
    folder = data_folder / "awkward"
    study = load(folder / "pancreas_dense_noninteger_counts.h5ad", accept_non_integer=True)
    assert study.modalities["rna"].location == "X"
    assert study.modalities["rna"].counts.shape == (669, 296)
    # scaled values are negative: only the log-normalised copy could be used
    assert load(folder / "pbmc68k_anndata_v0.5_scaled_dense.h5ad", accept_non_integer=True).modalities["rna"].location == "raw/X"


def test_what_the_readme_says_of_them_is_seen(data_folder):
    folder = data_folder / "awkward"
    assert load(folder / "paul15_old_dense_integer_index.h5ad").obs.index[:2].tolist() == ["0", "3"]
    assert load(folder / "paul15_old_dense_integer_index.h5ad").obs["paul15_clusters"].nunique() == 19
    bmmc = load(folder / "bmmc_csc_normalised_x_counts_layer.h5ad")
    assert bmmc.modalities["rna"].location == "layers/counts"
    assert bmmc.obs["cell_type"].nunique() > 20
    starmap = load(folder / "starmap_mpfc_numeric_batch.loom")
    assert sorted(starmap.obs["BatchID"].unique()) == [0.0, 1.0, 2.0]
    assert read_header(folder / "starmap_mpfc_numeric_batch.loom").obsm == ("Spatial_coordinates",)
    both = load(folder / "10x_v3_pbmc1k_rna_and_antibody.h5")
    assert both.modalities["rna"].var["feature_types"].unique().tolist() == ["Gene Expression"]
    assert both.modalities["adt"].counts.sum() > 0
    keras = load(folder / "keras_style_x_y_no_names.h5")
    assert keras.obs["Y"].nunique() > 1
    assert "negative" in keras.left_out_modalities["adt"]
    genomes = load(folder / "10x_v2_two_genomes.h5")
    assert genomes.modalities["rna"].var["genome"].unique().tolist() == ["another_genome", "hg19_chr21"]
    heart = load(folder / "10x_v2_heart_1k_mm10_duplicate_names.h5")
    assert heart.modalities["rna"].var.index.duplicated().sum() == 36
    assert load(folder / "10x_v2_heart_1k_mm10_duplicate_names.h5", make_names_unique=True).modalities["rna"].var.index.is_unique


def test_text_tables_hold_what_pandas_reads(data_folder):
    folder = data_folder / "awkward"
    for name, how in {
        "dropseq_genes_by_cells.csv.gz": {"sep": ","},
        "reapseq_protein_headerless_index.txt.gz": {"sep": "\t"},
        "olfactory_bulb_cells_by_genes.tsv.gz": {"sep": "\t", "index_col": 0},
    }.items():
        table = pd.read_csv(folder / name, **how)
        study = load(folder / name)
        modality = study.main_modality()
        if list(table.columns) == list(study.obs.index):
            table = table.T
        assert [str(cell) for cell in table.index] == list(study.obs.index)
        assert list(table.columns) == list(modality.var.index)
        assert np.array_equal(modality.counts.toarray(), table.to_numpy())


def refused(path, match):
    """Both the header and the data refuse with the same sentence, or the header sees what the data then refuse."""
    with pytest.raises(DataError, match=match) as caught:
        load(path)
    assert caught.value.mend
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.fixture
def good(data_folder, tmp_path):
    path = tmp_path / "good.h5ad"
    shutil.copy(data_folder / "rna_kang_2conditions_2donors_labelled.h5ad", path)
    path.chmod(0o644)
    return path


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_a_truncated_hdf5(good, tmp_path, share):
    cut = tmp_path / "cut.h5ad"
    cut.write_bytes(good.read_bytes()[: int(share * good.stat().st_size)])
    refused(cut, "was cut short|damaged")
    with pytest.raises(DataError):
        read_header(cut)


def test_bytes_turned_over_anywhere_never_give_a_traceback(good, tmp_path):
    sound = good.read_bytes()
    for seed in range(24):
        content, rng = bytearray(sound), np.random.default_rng(seed)
        for place in rng.integers(8, len(content), (3, 30, 400)[seed % 3]):
            content[place] ^= 0xFF
        (tmp_path / f"broken{seed:02}.h5ad").write_bytes(bytes(content))
    code = (  # in a process of its own: a broken file may also take the HDF5 library down
        "import sys, warnings, pathlib\nwarnings.simplefilter('error')\n"
        "from cellweave.core.errors import DataError\nfrom cellweave.core.spec.data import DataSpec\n"
        "from cellweave.core.study import load_study, read_header\n"
        "refused = 0\n"
        f"for path in sorted(pathlib.Path({str(tmp_path)!r}).glob('broken*')):\n"
        "    for do in (read_header, lambda path: load_study(DataSpec(paths=(str(path),)))):\n"
        "        try:\n            do(path)\n        except DataError as error:\n"
        "            assert error.mend and '\\n' not in str(error), error\n            refused += 1\n"
        "print(refused)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert int(done.stdout) >= 12


def test_files_that_are_no_data(tmp_path):
    cases = {
        "empty.h5ad": (b"", "is empty"),
        "text.h5ad": (b"hello, this is no HDF5 file at all\n" * 9, "is not an HDF5 file, although its name says so"),
        "words.txt": (b"once upon a time\nthere was a cell\n", "annotations|not a regular table"),
        "one.csv": (b"only one line\n", "fewer than two lines"),
        "prose.txt": (b"lonely\nlines\n", "not a table"),
        "names.csv": (b"a,b,c\n1,2,3\n4,5,6\n", ""),
        "bare.csv": (b"1,2,3\n4,5,6\n", "names neither cells nor features"),
        "ragged.csv": (b"cell,g1,g2\nc1,1,2\nc2,1,2,3,4\n", "Line 3 of .* has 5 fields"),
        "short.csv": (b"cell,g1,g2\nc1,1,2\nc2,1\n", "Line 3 of .* has 2 fields"),
        "trailing.csv": (b"cell,g1,g2,\nc1,1,2,\nc2,1,3,\n", ""),
        "typo.csv": (b"cell,g1,g2\n" + b"c,1,2\n" * 5 + b"c,1,l7\n" + b"c,1,2\n" * 5, "holds 'l7' where a number is expected"),
        "late.csv": (b"cell,g1,g2\n" + b"c,1,2\n" * 500 + b"c,1,l7\n", "Line 502 of .* holds 'l7' where a number"),
        "table.xlsx": (b"PK\x03\x04" + b"\x00" * 100, "zip archive or an Excel"),
        "data.rds": (gzip.compress(b"X\n\x00\x00\x00\x02" + b"\x00" * 99), "R data file"),
        "data.pkl": (b"\x80\x04\x95" + b"\x00" * 99, "pickle, which is never opened"),
        "half.csv.gz": (gzip.compress(b"cell,g1\n" + b"c,1\n" * 9999)[:60], "damaged gzip|cannot be read"),
        "noise.bin": (bytes(range(256)) * 20, "of a kind that is not known"),
        "broken.mtx": (b"%%MatrixMarket matrix coordinate integer general\n", "cannot be read|not a Matrix Market|there is no"),
    }
    for name, (content, match) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        if match:
            refused(path, match)
        else:
            assert load(path).n_cells == 2


def test_paths_that_are_no_data(tmp_path, good):
    refused(tmp_path / "missing.h5ad", "does not exist")
    (tmp_path / "nothing").mkdir()
    refused(tmp_path / "nothing", "is an empty folder")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "cat.png").write_bytes(b"\x89PNG")
    refused(tmp_path / "pictures", "folder without data")
    (tmp_path / "some").mkdir()
    shutil.copy(good, tmp_path / "some" / "a.h5ad")
    refused(tmp_path / "some", "Open a file in it: a.h5ad")
    (tmp_path / "run").mkdir()
    for name in ("spec.toml", "status.json"):
        (tmp_path / "run" / name).write_text("{}")
    refused(tmp_path / "run", "folder of a run")
    (tmp_path / "x.zarr").mkdir()
    (tmp_path / "x.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
    refused(tmp_path / "x.zarr", "neither AnnData nor MuData")
    (tmp_path / "bad.zarr").mkdir()
    (tmp_path / "bad.zarr" / "zarr.json").write_text("{not json")
    refused(tmp_path / "bad.zarr", "cannot be read")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["weights"] = np.zeros(3)
    refused(tmp_path / "other.h5", r"neither AnnData, MuData, 10x nor loom \(it holds weights\)")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        refused(tmp_path / "pipe", "is not a file")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="rights are another matter on Windows")
def test_a_file_that_may_not_be_read(good):
    good.chmod(0)
    if os.access(good, os.R_OK):  # the superuser may read everything: ask as nobody
        code = (
            "import os, cellweave.core.study.load, cellweave.core.study.readers.anndata_store\n"
            "from cellweave.core.errors import DataError\nfrom cellweave.core.spec.data import DataSpec\n"
            f"os.chmod({str(good.parent)!r}, 0o755)\nos.seteuid(65534)\n"
            "try:\n    cellweave.core.study.load.load_study(DataSpec(paths=(" + repr(str(good)) + ",)))\n"
            "except DataError as error:\n    print(error)\n"
        )
        for parent in good.parents:
            if parent.stat().st_uid == os.getuid() and parent != parent.parent and str(parent).startswith("/tmp/pytest"):
                parent.chmod(0o755)
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True).stdout
        assert "may not be read by you" in said
    else:
        refused(good, "may not be read by you")


def test_cut_matrices_and_wrong_shapes_inside_a_sound_file(good, tmp_path):
    def change(name, edit):
        path = tmp_path / name
        shutil.copy(good, path)
        with h5py.File(path, "a") as file:
            edit(file)
        return path

    def cut_pointer(file):
        short = file["X/indptr"][:-3]
        del file["X/indptr"]
        file["X/indptr"] = short

    def wild_columns(file):
        columns = file["X/indices"][:]
        columns[5] = 10**6
        file["X/indices"][...] = columns

    def fewer_cells(file):
        names = file["obs/_index"][:-1]
        del file["obs/_index"]
        file["obs/_index"] = names

    def no_matrix(file):
        del file["X"]

    def negative(file):
        values = file["X/data"][:]
        values[3] = -7
        file["X/data"][...] = values

    refused(change("pointer.h5ad", cut_pointer), "do not fit its shape")
    refused(change("columns.h5ad", wild_columns), "points outside its own shape")
    refused(change("cells.h5ad", fewer_cells), "names 1,555 cells")
    refused(change("none.h5ad", no_matrix), "no matrix")
    refused(change("negative.h5ad", negative), r"1 negative values \(first -7 in cell")


def test_nan_and_infinity_are_named_with_their_place(good, tmp_path):
    import anndata

    adata = anndata.read_h5ad(good)
    adata.X = adata.X.astype(np.float32)
    adata.X.data[10] = np.nan
    adata.X.data[11] = np.inf
    row = int(np.searchsorted(adata.X.indptr, 10, side="right") - 1)
    adata.write_h5ad(tmp_path / "nan.h5ad")
    with pytest.raises(DataError, match=f"2 missing or infinite values .*'{adata.obs_names[row]}'"):
        load(tmp_path / "nan.h5ad")


def test_a_cancel_leaves_the_file_closed(good):
    with pytest.raises(Cancelled):
        load_study(DataSpec(paths=(str(good),)), cancelled=lambda: True)
    with h5py.File(good, "a") as file:  # would fail were it still open for reading
        assert "X" in file
