"""What a trained MIDAS is asked: values, alignment, labels; and new data mapped onto it."""

from __future__ import annotations

import shutil
from pathlib import Path

import anndata
import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from cellweave.core.analysis.alignment import (
    Correlation,
    RocArea,
    foscttm,
    label_transfer,
    modality_mixing,
    transfer_labels,
)
from cellweave.core.analysis.imputation import evaluate
from cellweave.core.analysis.imputation_choice import ImputationError, ImputationQuestion
from cellweave.core.cli import main
from cellweave.core.export.h5ad import export_h5mu
from cellweave.core.models.midas_network import MidasNetwork
from cellweave.core.query.alignment import alignment_table
from cellweave.core.query.mosaic import MosaicQuestion, mosaic_values, translations
from cellweave.core.query.mosaic_files import write_mosaic
from cellweave.core.query.opened import open_on_files, open_run
from cellweave.core.query.surgery import mapping_spec
from cellweave.core.query.trained_run import QueryError
from cellweave.core.query.transfer import UNKNOWN, transfer_table
from cellweave.core.runs.execute import execute
from cellweave.core.runs.folder import RunFolder
from cellweave.core.spec import RunSpec
from cellweave.core.study import load_study
from cellweave.core.study.preflight import preflight

NAME = "mosaic_pbmc_rna_adt_4batches.h5mu"
ONLY = {f"analysis.{name}": False for name in ("umap", "clusters", "baseline", "scores")}


def part(data: mudata.MuData, batches: list[str]) -> mudata.MuData:
    return mudata.MuData({name: own[own.obs["batch"].isin(batches)].copy() for name, own in data.mod.items() if own.obs["batch"].isin(batches).any()})


@pytest.fixture(scope="module")
def trained(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference of three donors: RNA only, ADT only, both."""
    folder = tmp_path_factory.mktemp("midas")
    whole = mudata.read_h5mu(data_folder / NAME)
    part(whole, ["p1_0", "p2_0", "p3_0"]).write(folder / "reference.h5mu")
    part(whole, ["p4_0"]).write(folder / "query.h5mu")
    spec = RunSpec().with_changes({
        "model.kind": "midas", "data.paths": (str(folder / "reference.h5mu"),), "covariates.batch": "batch", "covariates.labels": "cell_type",
        "training.max_epochs": 30, "training.batch_size": 128, "training.learning_rate": 1e-3, "training.threads": 1, "training.preview_every": 0,
        "training.early_stopping": False, "model.shared_encoder": "128, 64", "model.shared_decoder": "64, 128", "model.n_latent": 16, **ONLY,
        "analysis.imputed": True, "analysis.corrected": True, "analysis.translated": True,
    })  # fmt: skip
    execute(spec, folder / "run")
    return folder


def test_values_of_a_run_are_those_of_a_query_and_what_was_measured_is_told_well(trained: Path):
    run = open_run(trained / "run")
    found = mosaic_values(run)
    assert {name: value.shape for name, value in found.items()} == {"rna": (1200, 500), "adt": (1200, 224)}
    with h5py.File(trained / "run" / "results" / "imputed.h5") as file:
        np.testing.assert_allclose(file["adt"]["X"][()], found["adt"], rtol=1e-4)
    measured = run.data.modalities[list(found).index("adt")].measured
    truth = run.study.modalities["adt"].counts[measured].toarray()
    assert np.corrcoef(np.log1p(truth).ravel(), np.log1p(found["adt"][measured]).ravel())[0, 1] > 0.8


def test_corrected_values_have_one_technical_latent_and_draws_are_whole_numbers_that_follow_the_seed(trained: Path):
    run = open_run(trained / "run")
    means, again = (mosaic_values(run, question=MosaicQuestion("corrected")) for _ in range(2))
    drawn, same, other = (mosaic_values(run, question=MosaicQuestion("corrected", sampled=True, seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(means["rna"], again["rna"])
    np.testing.assert_array_equal(drawn["rna"], same["rna"])
    assert not np.array_equal(drawn["rna"], other["rna"])
    assert np.array_equal(drawn["rna"], np.rint(drawn["rna"]))
    assert not np.allclose(means["rna"], mosaic_values(run)["rna"])


def test_translations_are_all_proper_subsets():
    names = [question.name for question in translations(("adt", "atac", "rna"))]
    assert sorted(names) == ["adt_atac_to_rna", "adt_rna_to_atac", "adt_to_atac_rna", "atac_rna_to_adt", "atac_to_adt_rna", "rna_to_adt_atac"]


def test_a_translation_ignores_the_rest_and_cells_without_its_start_have_no_value(trained: Path):
    run = open_run(trained / "run")
    found = mosaic_values(run, question=MosaicQuestion("translated", ("rna",)))
    assert set(found) == {"adt"}
    has_rna = next(m for m in run.data.modalities if m.name == "rna").measured
    assert np.isnan(found["adt"][~has_rna]).all()
    assert np.isfinite(found["adt"][has_rna]).all()
    with h5py.File(trained / "run" / "results" / "translated.h5") as file:
        assert set(file) == {"rna_to_adt", "adt_to_rna"}
        np.testing.assert_allclose(file["rna_to_adt"]["adt"]["X"][()], found["adt"], rtol=1e-4)
    with pytest.raises(QueryError, match="needs the modalities it starts from"):
        mosaic_values(run, question=MosaicQuestion("translated"))
    with pytest.raises(QueryError, match=r"no modality 'atac'.*It has"):
        mosaic_values(run, question=MosaicQuestion("translated", ("atac",)))
    with pytest.raises(QueryError, match="none is left"):
        mosaic_values(run, question=MosaicQuestion("translated", ("rna", "adt")))


@pytest.mark.filterwarnings("error::UserWarning")
def test_files_open_in_mudata_and_anndata(trained: Path, tmp_path: Path):
    run = open_run(trained / "run")
    values = mosaic_values(run)
    whole = mudata.read_h5mu(write_mosaic(run, tmp_path / "imputed.h5mu"))
    assert list(whole.mod) == list(values)
    for name, value in values.items():
        np.testing.assert_array_equal(whole[name].X, value)
        assert list(whole[name].var_names) == list(run.trained.features[name])
        assert list(whole[name].obs_names) == list(run.cell_names)
    assert int(whole["adt"].obs["measured"].sum()) == 800
    assert whole.obs["batch"].nunique() == 3
    one = anndata.read_h5ad(write_mosaic(run, tmp_path / "adt.h5ad", question=MosaicQuestion("translated", ("rna",))))
    assert one.shape == (1200, 224)
    with pytest.raises(QueryError, match="holds one modality"):
        write_mosaic(run, tmp_path / "both.h5ad")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_exported_h5mu_holds_latents_and_values_of_all_cells(trained: Path, tmp_path: Path):
    out = mudata.read_h5mu(export_h5mu(trained / "run", tmp_path / "out.h5mu"))
    assert {"X_latent", "X_u", "X_c_rna", "X_c_adt", "X_imputed_rna", "X_imputed_adt", "X_corrected_rna", "X_corrected_adt"} <= set(out.obsm)
    expected = mosaic_values(open_run(trained / "run"))["adt"]
    order = out.obs_names.get_indexer(open_run(trained / "run").cell_names)
    np.testing.assert_allclose(out.obsm["X_imputed_adt"][order], expected, rtol=1e-4)


def test_alignment_is_told_for_each_pair_with_its_translations(trained: Path):
    table = alignment_table(open_run(trained / "run"))
    assert list(table.index) == [("rna", "adt")] or list(table.index) == [("adt", "rna")]
    row = table.iloc[0]
    assert row["n_cells"] == 400
    assert row["foscttm"] > 0.85
    assert row["transfer"] > 0.7
    assert 0.3 < row["second_from_first"] <= 1


def test_foscttm_transfer_and_areas_equal_their_definitions():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40, 3)), rng.normal(size=(40, 3))
    closer = [np.mean([np.sum((a[i] - b[j]) ** 2) < np.sum((a[i] - b[i]) ** 2) for j in range(40) if j != i]) for i in range(40)]
    assert foscttm(a, b) == pytest.approx(1 - np.mean(closer))
    assert foscttm(a, a) == 1.0
    codes = rng.integers(0, 3, 40)
    expected = KNeighborsClassifier(5, weights="distance").fit(a, codes)
    np.testing.assert_allclose(transfer_labels(a, codes, b, n_levels=3), expected.predict_proba(b))
    np.testing.assert_array_equal(transfer_labels(a, codes, a, n_levels=3).argmax(1), codes)
    assert label_transfer(a, b, codes) == pytest.approx((expected.predict(b) == codes).mean())
    assert modality_mixing(a, a + 100) < 0.1 < 0.9 < modality_mixing(a, a + 1e-9)
    truth, guess, mask = rng.integers(0, 2, (30, 8)), rng.random((30, 8)), rng.random((30, 8)) > 0.3
    area, correlation = RocArea(), Correlation()
    for start in (0, 11):
        stop = 11 if start == 0 else 30
        for measure in (area, correlation):
            measure.add(truth[start:stop], guess[start:stop], mask[start:stop])
    assert area.value == pytest.approx(roc_auc_score(truth[mask], guess[mask]), abs=1e-4)
    assert correlation.value == pytest.approx(np.corrcoef(truth[mask], guess[mask])[0, 1])


def test_new_data_are_mapped_onto_the_reference_and_take_its_labels(trained: Path, tmp_path: Path):
    before = {path.name: path.read_bytes() for path in (trained / "run" / "model").iterdir()}
    changes = {"training.max_epochs": 6, "training.learning_rate": 3e-4, **ONLY}
    execute(mapping_spec(trained / "run", [trained / "query.h5mu"], changes), tmp_path / "mapped")
    assert before == {path.name: path.read_bytes() for path in (trained / "run" / "model").iterdir()}
    run = open_run(tmp_path / "mapped")
    # One new batch, and the reference as a further class.
    assert run.model.n_classes == {"joint": 2, "rna": 2, "adt": 2}
    table = transfer_table(run, "cell_type")
    truth = mudata.read_h5mu(trained / "query.h5mu")["rna"].obs["cell_type"].reindex(table.index)
    assert (table["label"].to_numpy() == truth.to_numpy(dtype=object)).mean() > 0.7
    assert table["share"].between(0, 1).all()
    guarded = transfer_table(run, "cell_type", threshold=0.2)
    assert (guarded.loc[guarded["new_share"] > 0.2, "label"] == UNKNOWN).all()
    assert guarded["new_share"].between(0, 1).all()


def test_plain_transfer_takes_the_weights_and_nothing_of_the_batches(trained: Path, tmp_path: Path):
    changes = {"training.max_epochs": 1, "training.learning_rate": 1e-12, "training.weight_decay": 0.0, "model.reciprocal": False, **ONLY}
    execute(mapping_spec(trained / "run", [trained / "query.h5mu"], changes), tmp_path / "mapped")
    new, old = open_run(tmp_path / "mapped").model.state_dict(), open_run(trained / "run").model.state_dict()
    assert "midas_reference_joint" not in new
    for name, tensor in old.items():
        if name.startswith(("batch_encoder", "batch_decoder", "discriminators")):
            continue
        np.testing.assert_allclose(new[name], tensor, atol=1e-6)
    assert new["batch_encoder.table"].shape[0] == 1


def test_what_cannot_be_asked_is_said(trained: Path, tmp_path: Path):
    with pytest.raises(QueryError, match="already"):
        transfer_table(open_run(trained / "run"), "cell_type")
    with pytest.raises(Exception, match="shared_encoder"):
        execute(mapping_spec(trained / "run", [trained / "query.h5mu"], {"model.shared_encoder": "64, 64"}), tmp_path / "other")


def test_labels_within_a_run_go_to_cells_without_one(trained: Path):
    run = open_run(trained / "run")
    run.study.obs["known"] = run.study.obs["cell_type"].astype(object)
    hidden = np.zeros(1200, dtype=bool)
    hidden[::4] = True
    run.study.obs.loc[hidden, "known"] = np.nan
    table = transfer_table(run, "known")
    assert len(table) == hidden.sum()
    truth = run.study.obs["cell_type"].astype(str)[hidden]
    assert (table["label"].to_numpy() == truth.to_numpy()).mean() > 0.8


def test_commands(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run, out, table = str(trained / "run"), tmp_path / "adt.h5ad", tmp_path / "alignment.csv"
    assert main(["query", run, "translated", "--given", "rna", "--modality", "adt", "--out", str(out)]) == 0
    assert anndata.read_h5ad(out).n_vars == 224
    assert main(["query", run, "alignment", "--out", str(table)]) == 0
    assert {"foscttm", "transfer", "mixing"} <= set(pd.read_csv(table).columns)
    capsys.readouterr()
    assert main(["query", run, "imputed"]) == 2
    assert "is too large to be shown" in capsys.readouterr().err
    assert main(["query", run, "corrected", "--given", "rna", "--out", str(tmp_path / "x.h5mu")]) == 2
    assert "does not take --given" in capsys.readouterr().err


def test_a_run_mapped_from_the_reference_needs_no_data_of_it(trained: Path, tmp_path: Path):
    shutil.copytree(trained / "run", tmp_path / "run")
    moved = open_on_files(tmp_path / "run", [trained / "reference.h5mu"])
    assert RunFolder.open(tmp_path / "run").spec.model.kind == "midas"
    assert mosaic_values(moved)["adt"].shape == (1200, 224)


def test_stored_latents_are_shown_once_a_round_also_where_a_batch_is_mixed(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A query of one batch, whose cells differ in modalities: a round of the sampler is three minibatches, the last of which calls the reference up."""
    query = mudata.read_h5mu(trained / "query.h5mu")
    names = query.obs_names
    mixed = mudata.MuData({"rna": query["rna"][names[:300]].copy(), "adt": query["adt"][names[100:]].copy()})
    mixed.write(tmp_path / "mixed.h5mu")
    steps, shown = [], []
    teach, learn = MidasNetwork._teach, MidasNetwork._learn_reference
    monkeypatch.setattr(MidasNetwork, "_teach", lambda self, batch, seen, context, opt: steps.append(context.step) or teach(self, batch, seen, context, opt))
    monkeypatch.setattr(MidasNetwork, "_learn_reference", lambda self, n, context, opt: shown.append(context.step) or learn(self, n, context, opt))
    changes = {"training.max_epochs": 2, "training.batch_size": 64, "training.validation_share": 0.0, **ONLY}
    execute(mapping_spec(trained / "run", [tmp_path / "mixed.h5mu"], changes), tmp_path / "mapped")
    assert steps == list(range(2 * 4 * 3))  # the largest of the three patterns has 200 cells
    assert shown == list(range(3, len(steps), 3))


def test_a_batch_whose_only_modality_is_off_is_said_before_and_refused_after(trained: Path, tmp_path: Path):
    spec = RunSpec().with_changes({
        "model.kind": "midas", "data.paths": (str(trained / "reference.h5mu"),), "covariates.batch": "batch", "training.max_epochs": 1,
        "training.batch_size": 128, "training.threads": 1, "training.preview_every": 0, "training.early_stopping": False,
        "model.shared_encoder": "32", "model.shared_decoder": "32", "data.switched_off": [{"column": "batch", "level": "p1_0", "modality": "rna"}], **ONLY,
    })  # fmt: skip
    said = [check for check in preflight(spec, load_study(spec.data)) if check.id == "held-out-whole"]
    assert len(said) == 1
    assert "RNA of 'p1_0' was all that was measured" in said[0].text
    execute(spec, tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert run.n_cells == 800
    with pytest.raises(ImputationError, match="RNA of 'p1_0' was all that was measured in these cells"):
        evaluate(run, ImputationQuestion(hide="held-out"))
    assert set(evaluate(run, ImputationQuestion(hide="modality")).overall) == {"rna", "adt"}
