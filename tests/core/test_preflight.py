"""The checks before a run: each finds what it is for, says it in words, and its fixes mend it."""

import re

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cellweave.core.spec import parse_spec
from cellweave.core.study import load_study, read_header
from cellweave.core.study.checks import Level
from cellweave.core.study.preflight import preflight, preflight_header
from cellweave.core.study.study import Modality, SourceFile, Study

N = 300


def make(counts=None, obs=None, n=N, modalities=None):
    rng = np.random.default_rng(0)
    index = pd.Index([f"cell{row}" for row in range(n)], dtype=object)
    table = {"batch": pd.Categorical(np.arange(n) % 2).rename_categories(["a", "b"]), "cell_type": np.array(["T", "B", "NK"])[rng.integers(0, 3, n)]}
    obs = pd.DataFrame({**table, **(obs or {})}, index=index)
    if modalities is None:
        counts = rng.poisson(1.0, (n, 20)).astype(np.float32) + np.eye(1, 20, 0, dtype=np.float32) if counts is None else counts
        modalities = {"rna": modality("rna", counts)}
    return Study(obs, modalities, (SourceFile(None, "h5ad", n),), np.zeros(n, int), np.arange(n))


def modality(name, counts, measured=None):
    counts = sparse.csr_matrix(np.asarray(counts, dtype=np.float32))
    measured = np.ones(counts.shape[0], bool) if measured is None else measured
    return Modality(name, counts, pd.DataFrame(index=[f"g{column}" for column in range(counts.shape[1])]), measured)


def spec(**changes):
    return parse_spec({}).with_changes({"covariates.batch": "batch", **{key.replace("__", "."): value for key, value in changes.items()}})


def find(checks, name, level=None):
    found = [check for check in checks if check.id == name and (level is None or check.level is level)]
    assert found, f"no {name} among {[(check.id, check.level.value) for check in checks]}"
    return found[0]


def bad(checks):
    return {check.id for check in checks if check.level is not Level.OK}


def test_sound_data_pass():
    study = make()
    checks = preflight(spec(covariates__labels="cell_type"), study)
    assert bad(checks) == set()
    assert {"raw-counts", "empty-cells", "cell-names", "cells", "column", "memory", "disk"} <= {check.id for check in checks}
    for check in checks:
        assert check.title
        assert check.text.endswith((".", "?"))


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_what_counts_cannot_be_blocks_and_is_named(value):
    study = make()
    study.modalities["rna"].counts.data[7] = value
    row = int(np.searchsorted(study.modalities["rna"].counts.indptr, 7, side="right") - 1)
    check = find(preflight(spec(data__accept_non_integer=True), study), "raw-counts", Level.FAIL)
    assert f"cell 'cell{row}'" in check.text


def test_values_that_are_not_whole_block_unless_accepted():
    study = make()
    study.modalities["rna"].counts.data[:] += 0.5
    first = spec(data__layers={"rna": "X"})
    check = find(preflight(first, study), "raw-counts", Level.FAIL)
    assert [dict(fix.changes) for fix in check.fixes] == [{"data.layers.rna": None}, {"data.accept_non_integer": True}]
    assert first.with_changes(check.fixes[0].changes).data.layers == {}
    accepted = first.with_changes(check.fixes[1].changes)
    assert find(preflight(accepted, study), "raw-counts").level is Level.WARN


def write(path, counts, genes=None, **obs):
    index = [f"c{row}" for row in range(len(counts))]
    var = pd.DataFrame(index=genes or [f"g{column}" for column in range(len(counts[0]))])
    anndata.AnnData(np.asarray(counts, dtype=np.float32), obs=pd.DataFrame(obs, index=index), var=var).write_h5ad(path)
    return str(path)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_the_fixes_of_empty_and_repeated_things_mend_them(tmp_path):
    counts = np.random.default_rng(1).poisson(2.0, (300, 6))
    counts[3] = 0
    counts[:, 2] = 0
    path = write(tmp_path / "a.h5ad", counts, ["x", "x", "y", "z", "u", "v"], batch=["a", "b"] * 150)
    here = parse_spec({"data": {"paths": [path]}, "covariates": {"batch": "batch"}})
    checks = preflight(here, load_study(here.data))
    assert bad(checks) == {"empty-cells", "empty-features", "feature-names"}
    for name in bad(checks):
        fix = find(checks, name).fixes[0]
        here = here.with_changes(fix.changes)
    mended = load_study(here.data)
    assert bad(preflight(here, mended)) == set()
    assert mended.modalities["rna"].counts.shape == (299, 5)
    assert "1 cell: no counts" in find(preflight(here, mended), "left-out").text


def test_repeated_cell_names_block():
    study = make()
    study.obs.index = pd.Index(["same", "same", *study.obs.index[2:]])
    check = find(preflight(spec(), study), "cell-names", Level.FAIL)
    assert dict(check.fixes[0].changes) == {"data.make_names_unique": True}


def test_a_column_that_vanished_is_named_with_the_nearest():
    check = find(preflight(spec(covariates__batch="batsch"), make()), "column", Level.FAIL)
    assert "Did you mean 'batch'?" in check.text
    assert [dict(fix.changes) for fix in check.fixes] == [{"covariates.batch": "batch"}, {"covariates.batch": None}]
    check = find(preflight(spec(covariates__decoder=("batch", "donr")), make(obs={"donor": ["d1", "d2", "d3"] * 100})), "column", Level.FAIL)
    assert dict(check.fixes[0].changes) == {"covariates.decoder": ("batch", "donor")}
    # where an option of the model needs the role, taking it away is not offered
    needs = spec(covariates__batch="batsch", model__dispersion="gene-batch")
    assert [dict(fix.changes) for fix in find(preflight(needs, make()), "column", Level.FAIL).fixes] == [{"covariates.batch": "batch"}]


def test_missing_values_block_and_are_filled(data_folder):
    path = str(data_folder / "rna_ifnb_pbmc_2batches.h5ad")
    here = parse_spec({"data": {"paths": [path]}, "covariates": {"batch": "donor", "labels": "cell_type"}})
    checks = preflight(here, load_study(here.data))
    check = find(checks, "missing-values", Level.FAIL)
    assert "29 cells" in check.text
    assert "702 cells" in find(checks, "labels-missing", Level.OK).text
    mended = here.with_changes(check.fixes[0].changes)
    checks = preflight(mended, load_study(mended.data))
    assert not [check for check in checks if check.level is Level.FAIL]
    assert "'missing' (29)" in find(checks, "small-batches", Level.WARN).text


def test_numbers_and_a_level_per_cell_are_no_batches():
    obs = {"score": np.random.default_rng(0).normal(size=N), "barcode": [f"b{row}" for row in range(N)], "lane": np.arange(N) % 40}
    study = make(obs=obs)
    check = find(preflight(spec(covariates__batch="score"), study), "column-kind", Level.FAIL)
    assert "300 different numbers" in check.text
    assert dict(check.fixes[0].changes) == {"covariates.batch": None, "covariates.continuous": ("score",)}
    assert "300 levels for 300 cells" in find(preflight(spec(covariates__batch="barcode"), study), "level-per-cell", Level.FAIL).text
    assert "40 different whole numbers" in find(preflight(spec(covariates__batch="lane"), study), "column-kind", Level.WARN).text
    coded = make(obs={"lane": np.arange(N) % 40 * 1.0})  # whole numbers that a missing value once made floats
    assert "40 different whole numbers" in find(preflight(spec(covariates__batch="lane"), coded), "column-kind", Level.WARN).text
    assert "one level only" in find(preflight(spec(covariates__batch="one"), make(obs={"one": ["x"] * N})), "one-level", Level.WARN).text


def test_small_batches_are_excluded_warned_of_or_block():
    tiny = make(obs={"batch": ["a"] * 150 + ["b"] * 149 + ["c"]})
    check = find(preflight(spec(), tiny), "batch-size", Level.WARN)
    assert "Level 'c' (1)" in check.text
    assert "not trained on" in check.text
    donors = make(obs={"sample": ["s1"] * 150 + ["s2"] * 149 + ["s3"], "donor": ["d1"] * 150 + ["d2"] * 150})
    check = find(preflight(spec(covariates__batch="sample"), donors), "batch-size")
    assert dict(check.fixes[0].changes) == {"covariates.batch": "donor"}
    small = make(obs={"batch": ["a"] * 150 + ["b"] * 99 + ["c"] * 51})
    check = find(preflight(spec(), small), "small-batches", Level.WARN)
    assert "'b' (99), 'c' (51)" in check.text
    excluded = spec().with_changes(check.fixes[0].changes)
    assert excluded.data.min_cells_per_batch == 100
    assert "Levels 'b' (99), 'c' (51)" in find(preflight(excluded, small), "batch-size", Level.WARN).text
    none = find(preflight(spec(data__min_cells_per_batch=200), small), "batch-size", Level.FAIL)
    assert dict(none.fixes[0].changes) == {"data.min_cells_per_batch": 2}
    assert "small-batches" in bad(preflight(spec().with_changes(none.fixes[0].changes), small))
    assert find(preflight(spec(), make(n=40)), "cells", Level.WARN).text.startswith("There are 40 cells")


def test_confounding_is_shown_with_its_table():
    same = make(obs={"condition": np.where(np.arange(N) % 2, "stim", "ctrl")})
    check = find(preflight(spec(), same), "confounded", Level.WARN)
    assert "divide the cells in the same way" in check.text
    assert "a: ctrl 150; b: stim 150" in check.text
    nested = make(obs={"batch": [f"b{row % 4}" for row in range(N)], "condition": np.where(np.arange(N) % 2, "stim", "ctrl")})
    assert "Each level of 'batch' lies within one level of 'condition'" in find(preflight(spec(), nested), "confounded").text
    labels = make(obs={"cell_type": np.where(np.arange(N) % 2, "T", "B")})
    assert find(preflight(spec(covariates__labels="cell_type"), labels), "confounded", Level.WARN)
    assert find(preflight(spec(covariates__labels="batch"), make()), "confounded", Level.FAIL)
    assert "confounded" not in bad(preflight(spec(covariates__labels="cell_type"), make(obs={"condition": ["x", "x", "y"] * 100})))


def test_batches_without_the_modality(data_folder):
    path = str(data_folder / "mosaic_pbmc_rna_adt_4batches.h5mu")
    here = parse_spec({"data": {"paths": [path]}, "covariates": {"batch": "batch"}})
    check = find(preflight(here, load_study(here.data)), "batch-modality", Level.WARN)
    assert re.search(r"RNA was not measured in 1 of 4 batches \('p2_0'\)", check.text)
    # a file that fills what was not measured with zeros
    rna, adt = np.ones((N, 5)), np.ones((N, 3))
    adt[np.arange(N) % 2 == 0] = 0
    study = make(modalities={"rna": modality("rna", rna), "adt": modality("adt", adt)})
    check = find(preflight(spec(data__modality="adt"), study), "batch-hollow", Level.WARN)
    switched = spec(data__modality="adt").with_changes(check.fixes[0].changes).data.switched_off
    assert [(one.column, one.level, one.modality) for one in switched] == [("batch", "a", "adt")]


def test_modalities_that_nothing_links_block(monkeypatch):
    from dataclasses import replace

    from cellweave.core.models import registry

    half = np.arange(N) < 150
    joined = half | (np.arange(N) % 10 == 0)
    apart = make(modalities={"rna": modality("rna", np.ones((N, 2)), half), "adt": modality("adt", np.ones((N, 2)), ~half)})
    linked = make(modalities={"rna": modality("rna", np.ones((N, 2)), joined), "adt": modality("adt", np.ones((N, 2)), ~half)})
    many = {kind: replace(family, modalities="many") for kind, family in registry.families().items()}
    monkeypatch.setattr("cellweave.core.spec.run.families", lambda: many)
    check = find(preflight(spec(), apart), "connected", Level.FAIL)
    assert re.match(r"Two islands that share no modality: .*RNA.*ADT|Two islands that share no modality: .*ADT.*RNA", check.text)
    assert find(preflight(spec(), linked), "connected", Level.OK)


def test_continuous_columns_and_size_factors_are_finite_numbers():
    obs = {
        "age": [*range(N - 1), np.nan], "name": [f"x{row % 3}" for row in range(N)], "flat": [1.0] * N,
        "good": np.linspace(0, 1, N), "sf": [0.0] + [1.0] * (N - 1),
    }  # fmt: skip
    study = make(obs=obs)
    assert "1 cell, the first is 'cell299'" in find(preflight(spec(covariates__continuous=("age",)), study), "not-numbers", Level.FAIL).text
    check = find(preflight(spec(covariates__continuous=("name",)), study), "not-numbers", Level.FAIL)
    assert dict(check.fixes[0].changes) == {"covariates.continuous": (), "covariates.decoder": ("name",)}
    assert find(preflight(spec(covariates__continuous=("flat",)), study), "constant", Level.FAIL)
    assert find(preflight(spec(covariates__continuous=("good",)), study), "numbers", Level.OK)
    assert "0 or less in 1 cell;" in find(preflight(spec(covariates__size_factor="sf"), study), "size-factor", Level.FAIL).text


def test_without_a_batch_the_likely_column_is_offered():
    check = find(preflight(parse_spec({}), make()), "no-batch", Level.OK)
    assert dict(check.fixes[0].changes) == {"covariates.batch": "batch"}


def test_libraries_in_two_data_sets(monkeypatch):
    from dataclasses import replace

    from cellweave.core.models import registry
    from cellweave.core.models.declare import RoleUse

    uses = (RoleUse("batch", ""), RoleUse("library", ""), RoleUse("dataset", "", required=True))
    families = {kind: replace(family, roles=uses) for kind, family in registry.families().items()}
    monkeypatch.setattr("cellweave.core.spec.run.families", lambda: families)
    assert find(preflight(spec(), make()), "dataset-missing", Level.FAIL)
    obs = {"library": [f"l{row % 3}" for row in range(N)], "study": np.repeat(["s1", "s2"], N // 2)}
    here = spec(covariates__library="library", covariates__dataset="study")
    study = make(obs=obs)
    check = find(preflight(here, study), "library-datasets", Level.FAIL)
    assert "3 libraries" in check.text
    mended = here.with_changes(check.fixes[0].changes)
    assert mended.covariates.library == "study_library"
    from cellweave.core.study.annotation import combine_columns

    combine_columns(study.obs, mended.data.combine)
    assert find(preflight(mended, study), "library-datasets", Level.OK)


def test_training_cells_and_minibatches():
    assert "only 0 would be trained on" not in str(preflight(spec(), make()))
    one_left = find(preflight(spec(training__batch_size=269), make()), "minibatches", Level.OK)
    assert "one cell" in one_left.text
    assert find(preflight(spec(data__modality="adt"), make()), "modality", Level.FAIL).fixes[0].changes == {"data.modality": "rna"}


def test_memory_and_disk(monkeypatch, tmp_path):
    import psutil

    study = make()
    plenty = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: plenty._replace(available=60_000))
    check = find(preflight(spec(), study), "memory", Level.FAIL)
    assert "does not fit" in check.text
    for fix in check.fixes:
        spec().with_changes(fix.changes)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    check = find(preflight(spec(), study, folder=tmp_path / "new" / "run"), "disk", Level.FAIL)
    assert f"'{tmp_path}'" in check.text


def test_features_and_open_chromatin():
    study = make()
    assert find(preflight(spec(data__features={"rna": {"mode": "variable", "n": 50}}), study), "feature-count", Level.WARN)
    atac = make(modalities={"atac": modality("atac", np.full((N, 3), 2.0))})
    assert "900 of 900 values are above 1" in find(preflight(spec(), atac), "atac-values", Level.OK).text


def test_a_modality_left_out_is_said(data_folder):
    here = parse_spec({"data": {"paths": [str(data_folder / "awkward" / "keras_style_x_y_no_names.h5")]}})
    check = find(preflight(here, load_study(here.data)), "modality-left-out", Level.OK)
    assert "18,418 negative values" in check.text
    names = ["cite_10x_pbmc1k_5prime.h5mu", "cite_10x_pbmc_5k_protein_v3_200cells.h5mu"]
    here = parse_spec({"data": {"paths": [str(data_folder / name) for name in names]}})
    fix = find(preflight(here, load_study(here.data)), "modality-left-out").fixes[0]
    assert "adt" in load_study(here.with_changes(fix.changes).data).modalities


ROLES = {"batch": 1, "labels": 1, "size_factor": 1, "decoder": 2, "continuous": 2}
COLUMNS = ["batch", "cell_type", "gone", "score", "barcode", "lane", "one", "gaps", "nothing", "flat", "flag", "sf"]


@given(
    roles=st.dictionaries(st.sampled_from(sorted(ROLES)), st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=2, unique=True)),
    dispersion=st.sampled_from(["gene", "gene-batch", "gene-label"]),
    smallest=st.sampled_from([2, 120, 1000]),
    seed=st.integers(0, 3),
)
@settings(max_examples=80, deadline=None)
def test_no_choice_of_columns_breaks_the_checks_and_every_fix_is_a_valid_spec(roles, dispersion, smallest, seed):
    rng = np.random.default_rng(seed)
    obs = {
        "score": rng.normal(size=N), "barcode": [f"b{row}" for row in range(N)], "lane": np.arange(N) % 40, "one": ["x"] * N,
        "gaps": ["x", None, "y"] * (N // 3), "nothing": [None] * N, "flat": [1.0] * N, "flag": rng.random(N) < 0.5, "sf": rng.random(N) - 0.1,
    }  # fmt: skip
    chosen = {role: columns[0] if ROLES[role] == 1 else tuple(columns) for role, columns in roles.items()}
    if {"gene-batch": "batch", "gene-label": "labels"}.get(dispersion, "batch") not in chosen:
        dispersion = "gene"
    here = parse_spec({"covariates": chosen, "model": {"dispersion": dispersion}, "data": {"min_cells_per_batch": smallest}})
    study = make(obs=obs)
    checks = preflight(here, study)
    for check in checks:
        assert check.text
        assert "{" not in check.text
        for fix in check.fixes:
            assert here.with_changes(fix.changes) != here
    failed = any(check.level is Level.FAIL for check in checks)
    assert failed or not {"gone", "nothing"} & set(here.covariates.columns())
    if not failed:  # what the checks let pass can be prepared for training
        from cellweave.core.training.data import prepare

        assert len(prepare(here, study).train) > 0


REAL = [
    "rna_cell_lines_5batches.h5ad", "rna_ifnb_pbmc_2batches.h5ad", "rna_glioblastoma_5patients.h5ad", "cite_reapseq_pbmc_2batches.h5mu",
    "multiome_snareseq_mouse_cortex_9batches.h5mu", "mosaic_bmmc_rna_adt_atac_4batches.h5mu",
]  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_files_may_be_trained_on(data_folder, name):
    here = parse_spec({"data": {"paths": [str(data_folder / name)]}, "covariates": {"batch": "batch"}})
    study = load_study(here.data)
    found = preflight(here, study) + preflight_header(here, [read_header(data_folder / name)])
    assert not [check.text for check in found if check.level is Level.FAIL]
    for check in found:
        for fix in check.fixes:
            here.with_changes(fix.changes)


def test_the_header_alone_tells_what_is_wrong_with_columns_layers_and_features(data_folder):
    path = data_folder / "rna_ifnb_pbmc_2batches.h5ad"
    headers = [read_header(path)]

    def checks(**tree):
        return preflight_header(parse_spec({"data": {"paths": [str(path)]}, **tree}), headers)

    assert bad(checks(covariates={"batch": "batch"})) == set()
    assert "Did you mean 'donor'" in find(checks(covariates={"batch": "donr"}), "column", Level.FAIL).text
    missing = find(checks(covariates={"batch": "donor"}), "missing-values", Level.FAIL)
    assert "29 cells" in missing.text
    assert bad(checks(covariates={"batch": "donor"}, data={"fill_missing": {"donor": "none"}})) == set()
    assert bad(checks(covariates={"batch": "both"}, data={"combine": {"both": ["batch", "donor"]}})) == set()
    assert find(checks(data={"layers": {"rna": "layers/counts"}}), "layer", Level.FAIL).fixes[0].changes == {"data.layers.rna": None}
    assert find(checks(data={"features": {"rna": {"mode": "variable", "n": 10_000}}}), "feature-count", Level.WARN)
    assert "they have rna" in find(checks(data={"modality": "adt"}), "modality", Level.FAIL).text
    assert find(checks(), "memory", Level.OK)
    assert preflight_header(parse_spec({}), []) == []


@pytest.mark.parametrize(("kind", "level"), [("multimodal", Level.WARN), ("midas", Level.WARN), ("vae", Level.FAIL)])
def test_a_cell_without_counts_of_one_modality_blocks_only_where_it_has_no_library(kind, level):
    study = make()
    rna = study.modalities["rna"]
    counts = rna.counts.toarray()
    counts[3] = 0
    rna.counts = sparse.csr_matrix(counts)
    check = find(preflight(spec(model__kind=kind), study), "empty-cells", level)
    assert check.text.startswith("1 of ") and ("not measured" in check.fixes[0].label) == (kind != "vae")
