"""Mosaic studies: cells joined by name, the grid, islands, what was switched off kept as the truth, and the checks before a run."""

from __future__ import annotations

import anndata
import mosaic_toy
import mudata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mosaic_toy import mosaic_study
from scipy import sparse

from cellweave.core.errors import DataError
from cellweave.core.spec import RunSpec
from cellweave.core.spec.data import DataSpec, FeatureSelection, SwitchedOff
from cellweave.core.study import Level, Mosaic, held_out_truth, load_study
from cellweave.core.study.preflight import preflight


def load(*paths, **fields):
    return load_study(DataSpec(paths=tuple(str(path) for path in paths), **fields))


def table(cells, genes, seed, **obs):
    counts = np.random.default_rng(seed).integers(1, 9, (len(cells), len(genes))).astype(np.float32)
    return anndata.AnnData(counts, obs=pd.DataFrame(obs, index=list(cells)), var=pd.DataFrame(index=genes))


CELLS = [f"c{k}" for k in range(10)]
PROTEINS = ["CD3", "CD4", "CD8"]


@pytest.fixture
def pair(tmp_path):
    """RNA of c0 to c9, proteins of c12 down to c3, in another order."""
    rna = table(CELLS, ["LYZ", "GNLY"], 0, batch=["x"] * 5 + ["y"] * 5)
    adt = table([f"c{k}" for k in (12, 11, 5, 3, 9, 4, 8, 6, 7)], PROTEINS, 1, batch=["z", "z", "y", "x", "y", "x", "y", "y", "y"], lane=list("aabbaabba"))
    adt.var["feature_types"] = "Antibody Capture"
    rna.write_h5ad(tmp_path / "rna.h5ad")
    adt.write_h5ad(tmp_path / "adt.h5ad")
    return tmp_path, rna, adt


def test_two_files_of_the_same_cells_are_joined_by_name(pair):
    folder, rna, adt = pair
    study = load(folder / "rna.h5ad", folder / "adt.h5ad")
    assert list(study.obs.index) == [*CELLS, "c12", "c11"]
    for name, data in (("rna", rna), ("adt", adt)):
        modality = study.modalities[name]
        assert modality.measured.tolist() == [cell in data.obs_names for cell in study.obs.index]
        for cell, row in zip(study.obs.index, modality.counts.toarray(), strict=True):
            assert row.tolist() == (data[cell].X.ravel().tolist() if cell in data.obs_names else [0] * data.n_vars)
    assert study.obs["batch"].tolist() == ["x"] * 5 + ["y"] * 5 + ["z"] * 2
    assert study.obs["lane"].isna().tolist() == [cell not in adt.obs_names for cell in study.obs.index]
    assert study.file_of_cell.tolist() == [0] * 10 + [1] * 2
    assert study.row_in_file.tolist() == [*range(10), 0, 1]
    assert any("7 cells of the same names" in note for note in study.notes)
    apart = load(folder / "rna.h5ad", folder / "adt.h5ad", same_cells="apart")
    assert apart.n_cells == 19
    # What was paired is said before a run begins, also on the command line.
    said = {check.id: check for check in preflight(RunSpec().with_changes({"model.kind": "midas", "covariates.batch": "batch"}), study)}
    assert said["same-cells"].level is Level.OK
    assert "7 cells of the same names" in said["same-cells"].text


def test_files_that_share_few_names_are_kept_apart_and_it_is_said(pair):
    folder, _, adt = pair
    adt[:3].copy().write_h5ad(folder / "other.h5ad")  # c12, c11 and c5
    study = load(folder / "rna.h5ad", folder / "other.h5ad")
    said = {check.id: check for check in preflight(RunSpec().with_changes({"model.kind": "midas", "covariates.batch": "batch"}), study)}
    assert said["same-cells"].level is Level.WARN
    assert "share 1 cell name, too few" in said["same-cells"].text
    assert load(folder / "rna.h5ad", folder / "other.h5ad", same_cells="joined").n_cells == 12


def test_files_are_not_joined_where_names_do_not_say_so(pair):
    folder, rna, adt = pair
    adt[:2].copy().write_h5ad(folder / "other.h5ad")
    assert load(folder / "rna.h5ad", folder / "other.h5ad").n_cells == 12
    with pytest.raises(DataError, match="No two of the files hold different modalities of the same cells"):
        load(folder / "rna.h5ad", folder / "other.h5ad", same_cells="joined")
    rna.write_h5ad(folder / "again.h5ad")
    three = load(folder / "rna.h5ad", folder / "again.h5ad", folder / "adt.h5ad")
    assert three.n_cells == 29
    assert any("so that they are kept apart" in note for note in three.notes)
    with pytest.raises(DataError, match="so that they cannot be joined"):
        load(folder / "rna.h5ad", folder / "again.h5ad", folder / "adt.h5ad", same_cells="joined")


def test_rows_that_are_only_numbered_are_no_names(tmp_path):
    """As anndata calls cells that nobody named; two samples of as many cells would be taken for one."""
    numbers = [str(row) for row in range(8)]
    table(numbers, ["LYZ", "GNLY"], 0).write_h5ad(tmp_path / "rna.h5ad")
    adt = table(numbers, PROTEINS, 1)
    adt.var["feature_types"] = "Antibody Capture"
    adt.write_h5ad(tmp_path / "adt.h5ad")
    study = load(tmp_path / "rna.h5ad", tmp_path / "adt.h5ad")
    assert study.n_cells == 16
    said = {check.id: check for check in preflight(RunSpec().with_changes({"model.kind": "midas"}), study)}
    assert said["same-cells"].level is Level.WARN
    assert "number their cells instead of naming them" in said["same-cells"].text
    assert load(tmp_path / "rna.h5ad", tmp_path / "adt.h5ad", same_cells="joined").n_cells == 8
    adt[::-1].copy().write_h5ad(tmp_path / "adt.h5ad")  # in another order the numbers do name the cells
    assert load(tmp_path / "rna.h5ad", tmp_path / "adt.h5ad").n_cells == 8


def test_modalities_of_a_mudata_are_paired_by_name_whatever_their_order(tmp_path):
    mudata = pytest.importorskip("mudata")
    rna = table(CELLS, ["LYZ", "GNLY"], 0, batch=["x", "y"] * 5)
    adt = table(CELLS[::-1][:8], PROTEINS, 1)
    mudata.MuData({"rna": rna, "adt": adt[np.random.default_rng(0).permutation(8)].copy()}).write(tmp_path / "a.h5mu")
    study = load(tmp_path / "a.h5mu")
    for name, data in (("rna", rna), ("adt", adt)):
        for cell, row in zip(study.obs.index, study.modalities[name].counts.toarray(), strict=True):
            assert row.tolist() == (data[cell].X.ravel().tolist() if cell in data.obs_names else [0, 0, 0])
    assert study.modalities["adt"].measured.sum() == 8


def test_the_grid_says_what_is_connected():
    whole = Mosaic.of(mosaic_study({("a", ("rna",)): 4, ("b", ("adt",)): 5, ("c", ("rna", "adt")): 6, ("c", ("rna",)): 2}), "batch")
    assert whole.counts.tolist() == [[4, 0], [0, 5], [8, 6]]
    assert len(whole.islands()) == 1
    assert whole.sentence() == "All batches are connected through RNA and ADT."
    assert whole.mixed() == [("c", [(("rna", "adt"), 6), (("rna",), 2)])]
    apart = Mosaic.of(mosaic_study({("a", ("rna",)): 4, ("b", ("adt",)): 5, ("d", ("adt",)): 5}), "batch")
    assert [(one.levels, one.modalities) for one in apart.islands()] == [(("b", "d"), ("adt",)), (("a",), ("rna",))]
    assert apart.sentence() == "Two islands that share no modality: b, d (ADT); a (RNA)."
    # a batch with both, but never in one cell, links nothing
    mixed = Mosaic.of(mosaic_study({("a", ("rna",)): 4, ("a", ("adt",)): 5}), "batch")
    assert len(mixed.islands_of_cells()) == 2


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(any), min_size=1, max_size=7))
def test_islands_are_the_connected_components(rows):
    names = ("rna", "adt", "atac")
    sizes = {(f"b{number}", tuple(name for name, known in zip(names, row, strict=True) if known)): 2 for number, row in enumerate(rows)}
    mosaic = Mosaic.of(mosaic_study(sizes, n_features=dict.fromkeys(names, 3)), "batch")
    table = np.array(rows)
    links = (table.astype(int) @ table.T.astype(int)) > 0
    n, label = sparse.csgraph.connected_components(sparse.csr_matrix(links), directed=False)
    found = mosaic.islands()
    assert len(found) == n == len(mosaic.islands_of_cells())
    assert {frozenset(one.levels) for one in found} == {frozenset(f"b{row}" for row in np.flatnonzero(label == part)) for part in range(n)}


def test_what_is_switched_off_is_kept_as_the_truth(pair, monkeypatch):
    folder, _, adt = pair
    off = (SwitchedOff(column="batch", level="y", modality="adt"), SwitchedOff(column="batch", level="z", modality="adt"))
    whole = load(folder / "rna.h5ad", folder / "adt.h5ad")
    study = load(folder / "rna.h5ad", folder / "adt.h5ad", switched_off=off)
    truth = held_out_truth(study)["adt"]
    assert [study.obs.index[row] for row in truth.rows] == ["c5", "c6", "c7", "c8", "c9"]  # c11 and c12 have nothing else and are left out
    for row, counts in zip(truth.rows, truth.counts.toarray(), strict=True):
        assert counts.tolist() == adt[study.obs.index[row]].X.ravel().tolist()
    assert not study.modalities["adt"].measured[truth.rows].any()
    assert study.modalities["adt"].counts[truth.rows].nnz == 0
    assert "rna" not in held_out_truth(study)
    assert held_out_truth(whole) == {}
    mosaic = Mosaic.of(study, "batch")
    assert mosaic.held_out[:, list(mosaic.modalities).index("adt")].tolist() == [0, 5]
    spec = RunSpec().with_changes({"data.paths": [str(folder / "rna.h5ad"), str(folder / "adt.h5ad")], "data.switched_off": [one.model_dump() for one in off]})
    again = held_out_truth(spec)["adt"]
    assert np.array_equal(again.rows, truth.rows)
    assert (again.counts != truth.counts).nnz == 0


def test_the_truth_follows_the_choice_of_features_and_blocks(pair, tmp_path):
    folder, _, adt = pair
    (tmp_path / "list.txt").write_text("CD8\nCD3\n")
    off = (SwitchedOff(column="batch", level="y", modality="adt"),)
    study = load(folder / "rna.h5ad", folder / "adt.h5ad", switched_off=off, features={"adt": FeatureSelection(mode="list", file=str(tmp_path / "list.txt"))})
    truth = held_out_truth(study)["adt"]
    assert list(study.modalities["adt"].var.index) == ["CD3", "CD8"]
    assert truth.counts.toarray().tolist() == adt[list(study.obs.index[truth.rows]), ["CD3", "CD8"]].X.tolist()


@pytest.fixture
def spec(monkeypatch):
    mosaic_toy.register(monkeypatch)
    return RunSpec.model_validate({"model": {"kind": "toy_mosaic"}, "covariates": {"batch": "batch"}, "training": {"max_epochs": 2}})


def checks(spec, study):
    return {check.id: check for check in preflight(spec, study)}


def test_a_disconnected_mosaic_is_refused_with_its_parts_named(spec):
    study = mosaic_study({("a", ("rna",)): 60, ("b", ("adt",)): 50, ("c", ("adt",)): 50})
    found = checks(spec, study)["connected"]
    assert found.level is Level.FAIL
    assert "Two islands that share no modality: b, c (ADT); a (RNA)." in found.text
    mended = spec.with_changes(found.fixes[0].changes)
    assert [(one.level, one.modality) for one in mended.data.switched_off] == [("a", "rna")]
    assert found.fixes[0].label == "Train on b, c (ADT) only"
    linked = mosaic_study({("a", ("rna",)): 60, ("b", ("adt",)): 50, ("c", ("rna", "adt")): 50})
    assert checks(spec, linked)["connected"].text == "All batches are connected through RNA and ADT."


def test_mixed_batches_masks_and_blocks_are_said(spec):
    study = mosaic_study({("a", ("rna", "adt")): 100, ("a", ("rna",)): 3, ("b", ("rna", "adt")): 40})
    mixed = checks(spec, study)["mixed-batches"]
    assert mixed.level is Level.WARN
    assert "'a' (100 cells with RNA and ADT, 3 cells with RNA)" in mixed.text
    assert "has 3 cells" in mixed.text
    mask = np.ones((1, 8), dtype=bool)
    mask[0, 6:] = False
    study.modalities["adt"].feature_mask = mask
    masks = checks(spec, study)["masks"]
    assert masks.level is Level.WARN
    assert masks.text.startswith("75% of the features of ADT")
    assert "2 features were measured in no cell" in masks.text
    atac = mosaic_study({("a", ("atac",)): 40}, n_features={"atac": 3})
    atac.modalities["atac"].var.index = ["chr1:1-2", "MYC", "chr2:4-5"]
    blocks = checks(spec, atac)["blocks"]
    assert blocks.level is Level.FAIL
    assert "'MYC'" in blocks.text
    assert checks(spec.with_changes(blocks.fixes[0].changes), atac).get("blocks") is None


def test_peaks_that_name_no_chromosome_at_all_are_said_to_be_one_block(spec):
    study = mosaic_study({("a", ("atac",)): 40}, n_features={"atac": 3})
    study.modalities["atac"].var.index = ["peak_1", "peak_2", "peak_3"]
    found = checks(spec, study)["blocks"]
    assert found.level is Level.WARN
    assert found.text.startswith("No feature of ATAC names a chromosome ('peak_1'), so all 3 are read in one block.")
    assert checks(spec.with_changes(found.fixes[0].changes), study).get("blocks") is None
    study.modalities["atac"].var.index = ["chr1:1-2", "chr1:3-4", "chr1:5-6"]
    one = checks(spec, study).get("blocks")  # a single chromosome is nothing to warn of
    assert one is None or one.level is Level.OK


@pytest.mark.parametrize(
    ("name", "modalities", "sentence"),
    [
        ("mosaic_pbmc_rna_adt_4batches.h5mu", ["rna", "adt"], "All batches are connected through RNA and ADT."),
        ("mosaic_bmmc_rna_adt_atac_4batches.h5mu", ["rna", "adt", "atac"], "All batches are connected through RNA."),
        ("multiome_bmmc_neurips_2batches.h5mu", ["rna", "atac"], "All batches are connected through RNA and ATAC."),
        ("cite_reapseq_pbmc_2batches.h5mu", ["rna", "adt"], "All batches are connected through RNA and ADT."),
    ],
)
def test_real_mosaics(data_folder, spec, name, modalities, sentence):
    study = load(data_folder / name)
    assert list(study.modalities) == modalities
    assert Mosaic.of(study, "batch").sentence() == sentence
    assert not [check for check in preflight(spec, study) if check.level is Level.FAIL]


def test_a_real_mosaic_without_its_bridges_is_two_islands(data_folder):
    off = tuple(SwitchedOff(column="batch", level=batch, modality="adt") for batch in ("p3_0", "p4_0"))
    study = load(data_folder / "mosaic_pbmc_rna_adt_4batches.h5mu", switched_off=off)
    assert Mosaic.of(study, "batch").sentence() == "Two islands that share no modality: p1_0, p3_0, p4_0 (RNA); p2_0 (ADT)."
    assert len(held_out_truth(study)["adt"].rows) == 800


def test_training_on_one_island_is_a_mend_that_mends(data_folder, tmp_path, spec):
    """A study of two islands is trained on the larger one by the offered change, and the modality that goes with the other is not asked for."""
    whole = mudata.read_h5mu(data_folder / "mosaic_bmmc_rna_adt_atac_4batches.h5mu")
    cite = whole["rna"][whole["rna"].obs["batch"].str.startswith("cite")].copy()
    apart = mudata.MuData({"rna": cite, "adt": whole["adt"].copy(), "atac": whole["atac"].copy()})
    apart.obs["batch"] = whole.obs["batch"]
    apart.write(tmp_path / "apart.h5mu")
    asked = spec.with_changes({"data.paths": (str(tmp_path / "apart.h5mu"),), "data.features": {"atac": {"mode": "variable", "n": 100}}})
    found = checks(asked, load_study(asked.data))["connected"]
    assert found.level is Level.FAIL
    mended = asked.with_changes(found.fixes[0].changes)
    study = load_study(mended.data)
    assert list(study.modalities) == ["rna", "adt"] and study.n_cells == 600
    assert not [check for check in preflight(mended, study) if check.level is Level.FAIL]
    left = checks(mended, study)["modality-left-out"]
    assert left.level is Level.OK and left.text == "ATAC was left out, because every cell that has it is switched off." and not left.fixes


def test_a_modality_that_is_switched_off_everywhere_is_switched_on_again(data_folder, spec):
    off = [{"column": "batch", "level": level, "modality": "adt"} for level in ("p2_0", "p3_0", "p4_0")]
    asked = spec.with_changes({"data.paths": (str(data_folder / "mosaic_pbmc_rna_adt_4batches.h5mu"),), "data.switched_off": off})
    found = [check for check in preflight(asked, load_study(asked.data)) if check.level is Level.FAIL]
    (text,) = [check.text for check in found]
    assert text == "ADT is switched off in every cell that has it, so that nothing of it can be learned. Leave it on in some cells."
    mended = asked.with_changes(found[0].fixes[0].changes)
    assert not mended.data.switched_off
