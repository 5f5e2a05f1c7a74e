"""Masks by name from every place, their algebra, and blocks of peaks."""

from __future__ import annotations

from dataclasses import replace

import anndata
import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse

from cellweave.core.errors import DataError
from cellweave.core.spec import RunSpec
from cellweave.core.spec.data import DataSpec, SwitchedOff
from cellweave.core.study import Level, load_study, masks
from cellweave.core.study.blocks import UNPLACED, block_labels, contig_of, in_blocks, is_chromosome, natural_order
from cellweave.core.study.held_out import HeldOut
from cellweave.core.study.preflight import preflight
from cellweave.core.study.study import Modality, Study

GENES = ["CD3E", "CD4", "CD8A", "LYZ", "MS4A1"]


def load(*paths, **fields):
    return load_study(DataSpec(paths=tuple(str(path) for path in paths), **fields))


def small(n=6, genes=GENES, seed=0, first="c"):
    counts = np.random.default_rng(seed).integers(1, 9, (n, len(genes))).astype(np.float32)
    obs = pd.DataFrame({"batch": pd.Categorical(["x", "y"] * (n // 2))}, index=[f"{first}{row}" for row in range(n)])
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=genes))


def mask_of(study, name="rna"):
    """The mask of every cell, spelled out."""
    modality = study.modalities[name]
    if modality.feature_mask is None:
        return np.ones((study.n_cells, modality.n_features), dtype=bool)
    return modality.feature_mask[study.mask_group]


def test_what_is_switched_off_keeps_its_mask():
    counts = sparse.csr_matrix(np.array([[1, 2, 3], [4, 5, 6], [0, 0, 0], [0, 0, 0]], dtype=np.float32))
    held = HeldOut(np.array([2, 3]), sparse.csr_matrix(np.array([[7, 8, 0], [9, 1, 0]], dtype=np.float32)))
    mask = np.array([[True, True, True], [True, True, False]])
    adt = Modality("adt", counts, pd.DataFrame(index=list("abc")), np.array([True, True, False, False]), mask, held_out=held)
    study = Study(pd.DataFrame(index=list("wxyz")), {"adt": adt}, (), np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    masks.apply_masks(study)
    assert np.array_equal(adt.feature_mask[study.mask_group[held.rows]], mask[[1, 1]])  # the feature that was not measured there has no truth
    adt.held_out = None
    masks.apply_masks(study)
    assert adt.feature_mask is None  # all that is left was measured whole


def test_a_layer_of_zeros_and_ones_masks_by_cell(tmp_path):
    data = small()
    known = np.random.default_rng(1).random((6, 5)) < 0.6
    known[:, 0] = True
    data.layers["known"] = sparse.csr_matrix(known.astype(np.int8))
    data.write_h5ad(tmp_path / "a.h5ad")
    study = load(tmp_path / "a.h5ad", masks={"rna": "layers/known"})
    assert np.array_equal(mask_of(study), known)
    assert np.array_equal(study.modalities["rna"].counts.toarray(), data.X * known)
    assert any("were left out" in note for note in study.notes)
    with pytest.raises(DataError, match=r"rna has no mask at 'layers/unknown'"):
        load(tmp_path / "a.h5ad", masks={"rna": "layers/unknown"})
    data.layers["known"] = data.X.copy()
    data.write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(DataError, match=r"The mask of rna holds the value"):
        load(tmp_path / "b.h5ad", masks={"rna": "layers/known"})
    data.layers["known"] = np.zeros((6, 5), dtype=np.int8)
    data.write_h5ad(tmp_path / "c.h5ad")
    with pytest.raises(DataError, match=r"The mask of rna hides every feature of every cell, so there is nothing to learn\. Give a mask"):
        load(tmp_path / "c.h5ad", masks={"rna": "layers/known"})


def test_masks_by_batch_in_uns_are_found_and_others_named(tmp_path):
    data = small()
    data.uns["mask_y"] = np.array([1, 1, 0, 1, 0])
    data.uns["mask_gone"] = np.array([1, 1, 1, 1, 0])
    data.obsm["seen"] = pd.DataFrame(np.tile([1, 0, 1, 1, 1], (6, 1)), index=data.obs_names, columns=GENES[::-1])
    data.var["panel"] = [True, True, True, False, True]
    data.write_h5ad(tmp_path / "a.h5ad")
    study = load(tmp_path / "a.h5ad")
    assert mask_of(study)[0].all()
    assert mask_of(study)[1].tolist() == [True, True, False, True, False]
    assert any("'gone'" in note for note in study.notes)
    seen = load(tmp_path / "a.h5ad", masks={"rna": "obsm/seen"})
    assert (mask_of(seen) == [True, True, True, False, True]).all()  # by name: the table has the genes the other way round
    assert mask_of(load(tmp_path / "a.h5ad", masks={"rna": "uns/mask"}))[3].tolist() == [True, True, False, True, False]
    # without any entry in all cells the feature stays, and is masked everywhere
    assert mask_of(load(tmp_path / "a.h5ad", masks={"rna": "var/panel"}))[0].tolist() == [True, True, True, False, True]
    with pytest.raises(DataError, match=r"no mask at 'uns/other'"):
        load(tmp_path / "a.h5ad", masks={"rna": "uns/other"})


def test_a_csv_file_masks_by_batch_or_cell_and_by_name(tmp_path):
    data = small()
    data.write_h5ad(tmp_path / "a.h5ad")
    table = pd.DataFrame([[0, 1, 1], [1, 1, 0]], index=["y", "x"], columns=["LYZ", "CD3E", "MS4A1"])
    table.to_csv(tmp_path / "mask.csv")
    study = load(tmp_path / "a.h5ad", masks={"rna": str(tmp_path / "mask.csv")})
    assert mask_of(study)[:2].tolist() == [[True, True, True, True, False], [True, True, True, False, True]]
    cells = pd.DataFrame(np.eye(6, 5, dtype=int), index=data.obs_names[::-1], columns=GENES)
    cells.to_csv(tmp_path / "cells.csv")
    by_cell = load(tmp_path / "a.h5ad", masks={"rna": str(tmp_path / "cells.csv")})
    assert list(by_cell.obs.index) == ["c1", "c2", "c3", "c4", "c5"]  # nothing at all was measured in c0
    assert np.array_equal(mask_of(by_cell), np.eye(6, 5, dtype=bool)[::-1][1:])
    (tmp_path / "odd.csv").write_text("name,CD4\nx,1\ny,2\n")
    (tmp_path / "strange.csv").write_text("name,CD4\nx,1\nq,0\n")
    (tmp_path / "genes.csv").write_text("name,abc\nx,1\ny,0\n")
    for name, said in (("odd", "holds '2'"), ("strange", "neither the cells nor levels"), ("genes", "names none of its features"), ("none", "cannot be read")):
        with pytest.raises(DataError, match=said):
            load(tmp_path / "a.h5ad", masks={"rna": str(tmp_path / f"{name}.csv")})


def test_nan_counts_are_refused_or_masked(tmp_path):
    data = small()
    data.X[1, 2] = data.X[4, 0] = np.nan
    data.X[2] = np.nan
    data.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(DataError, match=r"data\.nan_is_missing = true"):
        load(tmp_path / "a.h5ad")
    study = load(tmp_path / "a.h5ad", nan_is_missing=True)
    expected = ~np.isnan(np.delete(data.X, 2, axis=0))
    assert np.array_equal(mask_of(study), expected)
    assert np.array_equal(study.modalities["rna"].counts.toarray(), np.nan_to_num(np.delete(data.X, 2, axis=0)))
    assert study.left_out["name"].tolist() == ["c2"]
    (tmp_path / "n.csv").write_text("cell,GAPDH,LYZ\nAAACCCAAGGAG,1,NA\nAAACCCAAGGAC,1,2\n")
    assert mask_of(load(tmp_path / "n.csv", nan_is_missing=True)).tolist() == [[True, False], [True, True]]
    data.X[0, 0] = np.inf
    data.write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(DataError, match="no raw counts"):
        load(tmp_path / "b.h5ad", nan_is_missing=True)


def test_unions_and_masks_of_files_go_together_and_survive_the_choices(tmp_path):
    one, two = small(), small(4, ["LYZ", "GNLY", "CD4"], 1, "d")
    one.uns["mask_y"] = np.array([1, 0, 1, 1, 1])
    one.write_h5ad(tmp_path / "one.h5ad")
    two.write_h5ad(tmp_path / "two.h5ad")
    study = load(tmp_path / "one.h5ad", tmp_path / "two.h5ad", join="union")
    assert list(study.modalities["rna"].var.index) == [*GENES, "GNLY"]
    spelled = mask_of(study)
    assert spelled[0].tolist() == [True] * 5 + [False]
    assert spelled[1].tolist() == [True, False, True, True, True, False]
    assert spelled[7].tolist() == [False, True, False, True, False, True]
    fewer = load(
        tmp_path / "one.h5ad", tmp_path / "two.h5ad", join="union", switched_off=(SwitchedOff(column="batch", level="x", modality="rna"),)
    )
    kept = study.obs["batch"].to_numpy() == "y"
    assert np.array_equal(mask_of(fewer), spelled[kept])
    assert len(fewer.mask_group) == fewer.n_cells == kept.sum()


def test_masks_of_a_mudata_follow_the_names_of_its_cells(tmp_path):
    mudata = pytest.importorskip("mudata")
    rna, adt = small(), small(6, ["p1", "p2", "p3"], 3)
    adt = adt[[4, 2, 0, 5, 1]].copy()
    known = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1], [0, 0, 1]])
    adt.layers["known"] = known
    mudata.MuData({"rna": rna, "adt": adt}).write(tmp_path / "a.h5mu")
    study = load(tmp_path / "a.h5mu", masks={"adt": "layers/known"})
    for name, row in zip(adt.obs_names, known, strict=True):
        cell = study.obs.index.get_loc(name)
        assert mask_of(study, "adt")[cell].tolist() == row.astype(bool).tolist()
        assert study.modalities["adt"].counts[cell].toarray().ravel().tolist() == (adt[name].X.ravel() * row).tolist()
        assert study.modalities["rna"].counts[cell].toarray().ravel().tolist() == rna[name].X.ravel().tolist()


def test_a_mask_for_a_modality_that_is_not_there_is_refused(tmp_path):
    small().write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(DataError, match=r"data\.masks\.adt names the modality 'adt'"):
        load(tmp_path / "a.h5ad", masks={"adt": "layers/known"})
    with h5py.File(tmp_path / "a.h5ad") as file:
        assert "layers" in file


@settings(max_examples=60, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 8), st.integers(1, 11))), arrays(bool, st.tuples(st.integers(1, 8), st.integers(1, 11))), st.data())
def test_masks_obey_their_algebra(first, second, data):
    n_cells = data.draw(st.integers(1, 12))
    pick = [data.draw(arrays(np.int64, n_cells, elements=st.integers(0, len(one) - 1))) for one in (first, second)]
    one = masks.distinct((n_cells, first.shape[1]), lambda start, stop: first[pick[0]][start:stop], "rna")
    two = masks.distinct((n_cells, second.shape[1]), lambda start, stop: second[pick[1]][start:stop], "adt")
    assert np.array_equal(one.rows[one.row_of_cell], first[pick[0]])
    assert len(np.unique(one.rows, axis=0)) == len(one.rows)
    group, tables = masks.number_groups({"rna": one, "adt": two, "atac": None}, n_cells)
    assert tables["atac"] is None
    assert np.array_equal(tables["rna"][group], first[pick[0]])
    assert np.array_equal(tables["adt"][group], second[pick[1]])
    joined = masks.both(one, one)
    assert np.array_equal(joined.rows[joined.row_of_cell], first[pick[0]])
    everything = masks.same_for_all(np.ones(first.shape[1], dtype=bool), n_cells)
    assert np.array_equal(masks.both(everything, one).rows[masks.both(everything, one).row_of_cell], first[pick[0]])
    nothing = masks.same_for_all(np.zeros(first.shape[1], dtype=bool), n_cells)
    assert not masks.both(one, nothing).rows.any()


PEAKS = {
    "chr1:100-200": "chr1", "chr1-100-200": "chr1", "chr1_100_200": "chr1", "1:100-200": "1", "chrX:5-9": "chrX", "GL000194.1:100-200": "GL000194.1",
    "chrUn_KI270442v1_100_200": "chrUn_KI270442v1", "chr1_KI270706v1_random-100-200": "chr1_KI270706v1_random", "chrM:1-2": "chrM",
    "NC_000067.7:1-20": "NC_000067.7", "CD3E": None, "chr1": None, "chr1:100": None, "HLA-DRB1": None,
}  # fmt: skip


@pytest.mark.parametrize(("name", "contig"), PEAKS.items())
def test_names_of_peaks(name, contig):
    assert contig_of(name) == contig


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["chr1", "chr22", "X", "chrUn_GL1", "MT", "KI270442.1", "chr2L"]), st.integers(0, 10**9), st.integers(0, 10**9), st.sampled_from(":-_"))
def test_any_peak_gives_its_contig(contig, start, end, separator):
    assert contig_of(f"{contig}{separator}{start}{'_' if separator == '_' else '-'}{end}") == contig


def test_chromosomes_and_their_order():
    assert all(map(is_chromosome, ["chr1", "19", "chrX", "Y", "chrM", "MT", "chr2L", "NC_000067.7"]))
    assert not any(map(is_chromosome, ["GL000194.1", "chrUn_KI270442v1", "chr1_KI270706v1_random", "JH584304.1"]))
    mixed = ["chrM", UNPLACED, "chr10", "chrX", "chr2", "chrY", "chr1"]
    assert sorted(mixed, key=natural_order) == ["chr1", "chr2", "chr10", "chrX", "chrY", "chrM", UNPLACED]


def peaks(names, **columns):
    counts = sparse.csr_matrix(np.arange(2 * len(names), dtype=np.float32).reshape(2, -1))
    return Modality("atac", counts, pd.DataFrame(columns, index=pd.Index(names, dtype=object)), np.ones(2, dtype=bool))


def test_peaks_without_a_chromosome_are_refused_with_the_mend():
    some = peaks(["chr1:1-2", "MYC", "chr2:1-2"])
    for how in ("automatic", "by chromosome"):
        with pytest.raises(DataError, match=r"1 of 3 features of ATAC has no chromosome in its name \('MYC'\).*'one block'"):
            block_labels(some, how)
    assert block_labels(some, "one block") == ["atac"] * 3
    assert block_labels(peaks(["MYC", "CD4"]), "automatic") == ["atac"] * 2
    genes = replace(peaks(["MYC", "CD4"], chrom=["chr2", "chr1"]), name="rna")  # genes lie on chromosomes too, but are read whole
    assert block_labels(genes, "automatic") == ["rna"] * 2
    assert block_labels(genes, "by chromosome") == ["chr2", "chr1"]
    assert block_labels(peaks(["MYC", "CD4"], chrom=["chr2", "chr1"]), "automatic") == ["chr2", "chr1"]
    assert block_labels(peaks(["a", "b"], program=["p", "q"]), "column program") == ["p", "q"]
    with pytest.raises(DataError, match="no column 'programs'"):
        block_labels(peaks(["a", "b"], program=["p", "q"]), "column programs")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["chr1", "chr2", "chr10", "chrX", "GL1.1"]), st.integers(0, 99)), min_size=1, max_size=20, unique=True))
def test_blocks_are_a_stable_reordering(found):
    modality = peaks([*(f"{contig}:{start}-{start + 5}" for contig, start in found), "chr3:1-2"])
    (moved,), blocks = in_blocks((modality,), {})
    names = blocks["atac"].names
    assert sum(blocks["atac"].sizes) == len(found) + 1
    assert list(names) == sorted(names, key=natural_order)
    labels = np.repeat(names, blocks["atac"].sizes)
    for label, name in zip(labels, moved.var.index, strict=True):
        assert label == (contig_of(name) if is_chromosome(contig_of(name)) else UNPLACED)
    for label in names:
        own = [name for name, of in zip(moved.var.index, labels, strict=True) if of == label]
        assert own == [name for name in modality.var.index if name in set(own)]
    place = modality.var.index.get_indexer(moved.var.index)
    assert np.array_equal(moved.counts.toarray(), modality.counts.toarray()[:, place])


def test_real_peaks(data_folder):
    study = load(data_folder / "multiome_snareseq_mouse_cortex_9batches.h5mu")
    _, blocks = in_blocks(tuple(study.modalities.values()), {})
    assert blocks["rna"].sizes == (1677,)
    assert blocks["atac"].names[:20] == (*[f"chr{number}" for number in range(1, 20)], "chrX")
    assert sum(blocks["atac"].sizes) == 25734


def test_real_values_are_taken_where_they_are_asked_for(tmp_path):
    data = small()
    data.X = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    data.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(DataError, match="negative values"):
        load(tmp_path / "a.h5ad", accept_non_integer=True)
    study = load(tmp_path / "a.h5ad", real_valued="rna")
    assert np.array_equal(study.modalities["rna"].counts.toarray(), data.X)
    data.X[2, 3] = np.nan
    data.write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(DataError, match="missing or infinite"):
        load(tmp_path / "b.h5ad", real_valued="rna")
    missing = load(tmp_path / "b.h5ad", real_valued="rna", nan_is_missing=True)
    assert not mask_of(missing)[2, 3]
    assert mask_of(missing).sum() == 29
    with pytest.raises(DataError, match=r"data\.real_valued\[1\] names the modality 'clr'"):
        load(tmp_path / "a.h5ad", real_valued=("rna", "clr"))


def test_the_path_of_a_mask_is_made_absolute_and_places_in_files_are_not(tmp_path):
    from cellweave.core.spec.files import load_spec

    (tmp_path / "spec.toml").write_text("[data.masks]\nrna = 'masks/rna.csv'\nadt = 'layers/known'\n")
    assert load_spec(tmp_path / "spec.toml").data.masks == {"rna": str(tmp_path / "masks" / "rna.csv"), "adt": "layers/known"}


def test_one_missing_value_does_not_drop_a_modality_in_silence(tmp_path):
    import mudata

    from cellweave.core.spec import RunSpec
    from cellweave.core.study.checks import Level
    from cellweave.core.study.preflight import preflight

    rna, adt = small(), small(genes=["P1", "P2"], seed=3)
    rna.X[0, 0] = np.nan
    mudata.MuData({"rna": rna, "adt": adt}).write_h5mu(tmp_path / "a.h5mu")
    spec = RunSpec().with_changes({"model.kind": "vaeit", "data.paths": (str(tmp_path / "a.h5mu"),)})
    check = next(one for one in preflight(spec, load_study(spec.data)) if one.id == "modality-left-out")
    assert check.level is Level.FAIL and "data.nan_is_missing" in check.text
    mended = spec.with_changes(check.fixes[0].changes)
    study = load_study(mended.data)
    assert "rna" in study.modalities and not mask_of(study)[0, 0] and mask_of(study)[1:].all()


def test_a_mask_that_hides_a_whole_batch_is_named(tmp_path):
    from cellweave.core.spec import RunSpec
    from cellweave.core.study.checks import Level
    from cellweave.core.study.preflight import preflight

    data = small()
    known = np.ones((6, 5), dtype=np.int8)
    known[(data.obs["batch"] == "y").to_numpy()] = 0
    data.layers["known"] = sparse.csr_matrix(known)
    data.write_h5ad(tmp_path / "a.h5ad")
    spec = RunSpec().with_changes({"data.paths": (str(tmp_path / "a.h5ad"),), "data.masks": {"rna": "layers/known"}})
    check = next(one for one in preflight(spec, load_study(spec.data)) if one.id == "mask-hides-all")
    assert check.level is Level.WARN and "every feature of RNA in 3 cells" in check.text and "data.masks" in check.text


def test_a_mask_of_a_batch_in_which_the_modality_was_not_measured_is_said(tmp_path):
    cells = [f"c{k}" for k in range(8)]
    rna = anndata.AnnData(np.ones((4, 2), np.float32), obs=pd.DataFrame({"batch": ["x", "x", "y", "y"]}, index=cells[:4]), var=pd.DataFrame(index=["a", "b"]))
    adt = anndata.AnnData(np.ones((4, 2), np.float32), obs=pd.DataFrame({"batch": ["y", "y", "z", "z"]}, index=cells[2:6]), var=pd.DataFrame(index=["p", "q"]))
    rna.uns["mask_z"] = np.array([1, 0])
    mudata.MuData({"rna": rna, "adt": adt}).write_h5mu(tmp_path / "one.h5mu")
    study = load_study(DataSpec(paths=(str(tmp_path / "one.h5mu"),)))
    found = [check for check in preflight(RunSpec().with_changes({"model.kind": "midas", "covariates.batch": "batch"}), study) if check.id == "mask-unused"]
    assert [check.level for check in found] == [Level.WARN]
    whole = mudata.MuData({"rna": rna, "adt": adt})  # the batches of all cells are known, and no mask is of one with RNA
    whole.obs["batch"] = ["x", "x", "y", "y", "z", "z"]
    whole.write_h5mu(tmp_path / "whole.h5mu")
    study = load_study(DataSpec(paths=(str(tmp_path / "whole.h5mu"),)))
    assert study.modalities["rna"].feature_mask is None
    (note,) = [each for each in study.notes if "mask" in each]
    assert "a mask of RNA for 'z', in whose cells RNA was not measured" in note
    assert "mask of RNA for z" in found[0].text
    assert study.modalities["rna"].feature_mask is None


def test_a_modality_that_midas_does_not_know_fails_the_check(tmp_path):
    cells = [f"c{k}" for k in range(4)]
    obs = pd.DataFrame({"batch": list("xxyy")}, index=cells)
    parts = {
        name: anndata.AnnData(np.ones((4, 2), np.float32), obs=obs.copy(), var=pd.DataFrame(index=[f"{name}1", f"{name}2"])) for name in ("rna", "strange")
    }  # fmt: skip
    mudata.MuData(parts).write_h5mu(tmp_path / "one.h5mu")
    spec = RunSpec().with_changes({"model.kind": "midas", "covariates.batch": "batch", "data.paths": (str(tmp_path / "one.h5mu"),)})
    study = load_study(spec.data)
    found = {check.id: check for check in preflight(spec, study)}
    assert found["model-data"].level is Level.FAIL
    assert "does not know the modality 'strange'" in found["model-data"].text
    (fix,) = found["model-data"].fixes
    assert fix.label == "Take strange as counts"
    declared = spec.with_changes(fix.changes)
    assert declared.model.distribution == {"strange": "poisson"}
    assert "model-data" not in {check.id for check in preflight(declared, study)}


def test_a_mask_of_the_wrong_length_says_how_long_it_is_and_should_be(tmp_path):
    data = small()
    data.uns["mask_y"] = np.array([1, 1, 0])
    data.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(DataError, match=r"The mask of RNA in uns/mask_y has 3 values, but there are 5 features .*Give it 5 values"):
        load(tmp_path / "a.h5ad")
