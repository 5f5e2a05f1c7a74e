"""Imputed values of a run, how they are written, and how well they are judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from mosaic_toy import mosaic_study
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import roc_auc_score
from test_midas_training import trainer
from typer.testing import CliRunner

from cellweave.core.analysis.imputation import evaluate
from cellweave.core.analysis.imputation_choice import ImputationError, ImputationQuestion
from cellweave.core.analysis.imputation_scores import Comparison, Evaluation, auroc, correlation, load, save, scores
from cellweave.core.analysis.mask_pattern import mask_pattern
from cellweave.core.cli.application import build
from cellweave.core.example import EXAMPLE_BATCH, example_path
from cellweave.core.query.imputed import ImputedQuestion, imputed_chunks, latent_given, write_imputed
from cellweave.core.query.opened import open_on_files, open_run
from cellweave.core.query.trained_run import QueryError
from cellweave.core.runs.execute import execute
from cellweave.core.spec import RunSpec, presets
from cellweave.core.study import load_study

OFF = ({"column": "batch", "level": "p3_0", "modality": "adt"},)


def spec() -> RunSpec:
    return RunSpec().with_changes({"model.kind": "vaeit"}).with_changes(
        {
            "model.n_latent": 8, "model.hidden": ("32",), "model.block_units": {"rna": "32", "adt": "16"}, "model.mask_units": {"rna": "4", "adt": "4"},
            "model.mask_modality": "uniform", "data.paths": (str(example_path()),), "data.switched_off": OFF, "covariates.batch": EXAMPLE_BATCH,
            "training.max_epochs": 40, "training.batch_size": 128, "training.learning_rate": 5e-3, "training.threads": 1, "training.device": "cpu",
            "training.preview_every": 0, **{f"analysis.{name}": False for name in ("umap", "clusters", "baseline", "scores")},
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("imputation") / "run"
    execute(spec(), folder)
    return folder


@pytest.fixture(scope="module")
def run(folder):
    return open_run(folder)


# ---------------------------------------------------------------------- scores


def test_correlations_and_auroc_are_those_of_the_books():
    rng = np.random.default_rng(0)
    a, b, truth = rng.normal(size=200), rng.normal(size=200), (rng.random(200) < 0.3).astype(float)
    score = np.round(truth + rng.normal(size=200), 1)  # with ties
    assert correlation(a, b) == pytest.approx(pearsonr(a, b).statistic)
    assert auroc(truth, score) == pytest.approx(roc_auc_score(truth, score))
    assert np.isnan(correlation(a, np.ones(200))) and np.isnan(auroc(np.ones(5), np.arange(5)))


def test_scores_of_a_feature_and_of_all_entries():
    rng = np.random.default_rng(1)
    truth, imputed = rng.normal(size=(50, 3)), rng.normal(size=(50, 3))
    truth[:10, 0] = np.nan  # not hidden
    truth[:, 2] = np.nan
    imputed = np.where(np.isnan(truth), np.nan, imputed)
    found = Comparison(np.arange(50), np.array(["a", "b", "c"], object), truth, imputed, np.array([0.5, 0.0, 0.0]), binary=False)
    table, overall = scores(found)
    assert list(table["feature"]) == ["a", "b"] and list(table["n"]) == [40, 50]
    assert table["pearson"][0] == pytest.approx(pearsonr(truth[10:, 0], imputed[10:, 0]).statistic)
    assert table["spearman"][1] == pytest.approx(spearmanr(truth[:, 1], imputed[:, 1]).statistic)
    assert table["mse_baseline"][0] == pytest.approx(((truth[10:, 0] - 0.5) ** 2).mean())
    keep = np.isfinite(truth)
    assert overall["mse"] == pytest.approx(((truth - imputed)[keep] ** 2).mean())
    assert overall["entries"] == 90 and overall["cells"] == 50


# ---------------------------------------------------------------------- kept


def evaluated(feature="NA", names=("rna", "adt"), hide="modality"):
    """An answer of modalities whose first feature has a name that also stands for nothing."""
    rng = np.random.default_rng(2)
    found, tables, overall = {}, [], {}
    for name in names:
        truth = rng.normal(size=(30, 2))
        found[name] = Comparison(np.arange(30), np.array([feature, "b"], object), truth, truth + 0.1, np.zeros(2), binary=False, unit="none")
        table, overall[name] = scores(found[name])
        table.insert(0, "modality", name)
        tables.append(table)
    return Evaluation(ImputationQuestion(hide), pd.concat(tables, ignore_index=True), overall, found, ["A note."])


def test_what_was_judged_comes_back_whole_and_in_its_order(tmp_path):
    before = evaluated()
    save(tmp_path, before)
    found = load(tmp_path)
    assert list(found.comparisons) == list(found.overall) == ["rna", "adt"], "as it was judged, not by the alphabet"
    assert found.by_feature["feature"].tolist() == ["NA", "b", "NA", "b"]
    np.testing.assert_allclose(found.by_feature["mse"], before.by_feature["mse"])
    assert found.comparisons["adt"].scale == "none" and found.comparisons["adt"].features.tolist() == ["NA", "b"]
    assert found.question == before.question and found.notes == ["A note."]


@pytest.mark.parametrize("late", ["imputation.h5", "imputation.csv", "imputation.json"])
def test_files_of_two_answers_are_not_read_as_one(tmp_path, late):
    """Judging anew was interrupted between two files: a table would have no row of the modality that is shown."""
    for part, answer in (("old", evaluated("c", ("adt",), "held-out")), ("new", evaluated("c", ("rna",)))):
        (tmp_path / part).mkdir()
        save(tmp_path / part, answer)
    assert load(tmp_path / "old") is not None
    (tmp_path / "new" / late).replace(tmp_path / "old" / late)
    assert load(tmp_path / "old") is None


def test_features_that_none_of_the_judged_cells_has_are_said(run, monkeypatch):
    from cellweave.core.analysis import imputation

    one = evaluated("c", ("adt",)).comparisons["adt"]
    found = replace(one, truth=np.where(np.arange(2) == 0, np.nan, one.truth))
    monkeypatch.setitem(imputation._COMPARED, "modality", lambda *_: ({"adt": found}, []))
    assert evaluate(run, ImputationQuestion("modality", features=("b",))).by_feature["feature"].tolist() == ["b"]
    with pytest.raises(ImputationError, match="None of these features was measured"):
        evaluate(run, ImputationQuestion("modality", features=("c",)))


# ---------------------------------------------------------------------- judged


def test_what_was_switched_off_is_imputed_better_than_by_the_mean(run):
    found = evaluate(run, ImputationQuestion("held-out"))
    overall, one = found.overall["adt"], found.comparisons["adt"]
    assert set(found.comparisons) == {"adt"} and len(one.rows) == 400
    assert overall["mse"] < overall["mse_baseline"] and overall["pearson"] > overall["pearson_baseline"]
    whole = load_study(run.spec.data.model_copy(update={"switched_off": ()}))
    counts = whole.modalities["adt"].counts[np.flatnonzero((whole.obs["batch"] == "p3_0").to_numpy())].toarray()
    expected = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    np.testing.assert_allclose(one.truth, expected, rtol=1e-5, atol=1e-5)
    assert (found.by_feature["modality"] == "adt").all() and len(found.by_feature) == 224


def test_a_modality_is_hidden_in_held_out_cells_only(run):
    found = evaluate(run, ImputationQuestion("modality", modality="adt"))
    rows = found.comparisons["adt"].rows
    assert set(rows) <= set(run.data.validation) and len(rows) >= 20
    adt = next(modality for modality in run.data.modalities if modality.name == "adt")
    assert adt.measured[rows].all()
    assert any("training did not see" in note for note in found.notes)


def test_single_entries_are_hidden_from_the_model_and_compared(run):
    question = ImputationQuestion("entries", share=0.25, held_out_cells=False, most_cells=300)
    found = evaluate(run, question)
    for modality in run.data.modalities:
        one = found.comparisons[modality.name]
        hidden, measured = np.isfinite(one.truth), modality.measured[one.rows]
        assert 0.24 < hidden[measured].mean() < 0.26 and not hidden[~measured].any()
        assert np.array_equal(hidden, np.isfinite(one.imputed))
    again = evaluate(run, question)
    assert np.array_equal(found.comparisons["rna"].imputed, again.comparisons["rna"].imputed, equal_nan=True)
    other = evaluate(run, ImputationQuestion("entries", share=0.25, held_out_cells=False, most_cells=300, seed=1))
    assert not np.array_equal(found.comparisons["rna"].truth, other.comparisons["rna"].truth, equal_nan=True)


def test_questions_that_cannot_be_answered_have_a_sentence(run, tmp_path):
    named = evaluate(run, ImputationQuestion(hide="modality", modality="adt", given=("rna",)))
    labelled = evaluate(run, ImputationQuestion(hide="modality", modality="ADT", given=("RNA",)))  # as the window writes them
    assert list(labelled.comparisons) == ["adt"] and labelled.overall == named.overall
    with pytest.raises(ImputationError, match="no modality 'atac'"):
        evaluate(run, ImputationQuestion("entries", modality="atac"))
    with pytest.raises(ImputationError, match="share of entries to hide is 1"):
        evaluate(run, ImputationQuestion("entries", share=1.0))
    with pytest.raises(ImputationError, match="cannot be hidden and predicted"):
        evaluate(run, ImputationQuestion("modality", modality="adt", given=("adt",)))
    with pytest.raises(ImputationError, match="Nothing was held out"):
        evaluate(run, ImputationQuestion("held-out", modality="rna"))
    with pytest.raises(QueryError, match="holds one modality"):
        write_imputed(run, tmp_path / "x.csv", None, ImputedQuestion())
    with pytest.raises(QueryError, match="gives no spread"):
        ImputedQuestion(draws=1).check(run)


def test_an_evaluation_is_read_back_as_it_was_written(run, tmp_path):
    found = evaluate(run, ImputationQuestion("entries", modality="adt", most_cells=100, held_out_cells=False))
    save(tmp_path, found)
    again = load(tmp_path)
    assert again.question == found.question and again.notes == found.notes
    pd.testing.assert_frame_equal(again.by_feature, found.by_feature)
    assert again.overall["adt"]["mse"] == found.overall["adt"]["mse"]
    np.testing.assert_allclose(again.comparisons["adt"].imputed, found.comparisons["adt"].imputed, rtol=1e-3, atol=1e-3)
    assert load(tmp_path / "elsewhere") is None


# ---------------------------------------------------------------------- values


def test_blended_values_keep_what_was_measured(run):
    rows = np.arange(0, run.n_cells, 50)
    plain = np.concatenate([means["adt"] for _, means, _ in imputed_chunks(run, rows, ImputedQuestion())])
    blended = np.concatenate([means["adt"] for _, means, _ in imputed_chunks(run, rows, ImputedQuestion(blended=True))])
    adt = next(modality for modality in run.data.modalities if modality.name == "adt")
    measured = adt.measured[rows]
    assert np.array_equal(blended[measured], adt.counts[rows[measured]].toarray())
    assert np.array_equal(blended[~measured], plain[~measured]) and (~measured).any()


def test_files_of_imputed_values_agree(run, tmp_path):
    cells = np.arange(60)
    question = ImputedQuestion(draws=4, modalities=("adt",), seed=3)
    write_imputed(run, tmp_path / "x.h5", cells, question)
    write_imputed(run, tmp_path / "x.h5ad", cells, question)
    write_imputed(run, tmp_path / "x.csv", cells, ImputedQuestion(modalities=("adt",), normalised=True))
    table, adata = pd.read_csv(tmp_path / "x.csv", index_col=0), ad.read_h5ad(tmp_path / "x.h5ad")
    with h5py.File(tmp_path / "x.h5") as file:
        np.testing.assert_allclose(file["adt"]["X"][()], adata.X)
        np.testing.assert_allclose(file["adt"]["sd"][()], adata.layers["sd"])
        assert (file["adt"]["sd"][()] > 0).any()
    assert table.shape == adata.shape == (60, 224) and list(table.index) == list(adata.obs_names)
    assert np.corrcoef(np.log1p(adata.X).ravel(), table.to_numpy().ravel())[0, 1] > 0.8


def test_latents_given_one_modality_differ_and_are_missing_where_it_is(run):
    given, everything = latent_given(run, ["adt"]), latent_given(run, ["rna", "adt"])
    adt = next(modality for modality in run.data.modalities if modality.name == "adt")
    assert np.array_equal(np.isfinite(given).all(1), adt.measured)
    assert not np.allclose(given[adt.measured], everything[adt.measured])


@pytest.mark.filterwarnings("ignore:From 0.4 .update:FutureWarning")
def test_new_cells_are_imputed_with_the_ranges_of_training(run, folder, tmp_path):
    """The same cells as another file: the same values, although that file has a smaller range."""
    few = np.flatnonzero((run.study.obs[EXAMPLE_BATCH] == "p4_0").to_numpy())[:40]
    own = next(iter(imputed_chunks(run, few, ImputedQuestion())))[1]
    import mudata

    whole = mudata.read_h5mu(example_path())
    part = whole[list(run.cell_names[few])].copy()
    part.write_h5mu(tmp_path / "few.h5mu")
    other = open_on_files(folder, [tmp_path / "few.h5mu"])
    new = next(iter(imputed_chunks(other, np.arange(40), ImputedQuestion())))[1]
    for name, value in own.items():
        np.testing.assert_allclose(new[name], value, rtol=1e-4, atol=1e-5)


def test_what_is_judged_can_be_chosen_by_batch_cells_and_features(run, tmp_path):
    """What is hidden stays the same, so the values of what is chosen are those that judging everything gives."""
    batch = run.study.obs[EXAMPLE_BATCH].astype(str).to_numpy()
    every = evaluate(run, ImputationQuestion("modality", held_out_cells=False))
    whole = every.comparisons["adt"]
    some = tuple(map(str, whole.features[[5, 2]]))
    question = ImputationQuestion("modality", held_out_cells=False, batches=("p4_0",), features=some)
    found = evaluate(run, question, np.arange(1500))
    assert list(found.comparisons) == ["adt"] and found.by_feature["modality"].unique().tolist() == ["adt"]
    one = found.comparisons["adt"]
    assert sorted(one.features) == sorted(some) and one.truth.shape == (len(one.rows), 2)
    assert set(batch[one.rows]) == {"p4_0"} and one.rows.max() < 1500
    assert len(one.rows) == int(((batch == "p4_0")[:1500]).sum())
    assert any("1,500 cells that were chosen" in note for note in found.notes)
    places, columns = np.searchsorted(whole.rows, one.rows), [int(np.flatnonzero(whole.features == name)[0]) for name in one.features]
    np.testing.assert_allclose(one.imputed, whole.imputed[np.ix_(places, columns)], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(one.truth, whole.truth[np.ix_(places, columns)])
    save(tmp_path, found)
    assert load(tmp_path).question == question


def test_a_choice_that_cannot_be_judged_is_refused_with_what_there_is(run):
    for question, sentence in (
        (ImputationQuestion("modality", batches=("p4",)), "no batch 'p4' in 'batch'.*Did you mean 'p4_0'"),
        (ImputationQuestion("entries", features=("CD3X",)), "no feature 'CD3X' in what is judged"),
        (ImputationQuestion("modality", batches=("p1_0",)), "None of the chosen cells can be judged so"),
        (ImputationQuestion("held-out", batches=("p1_0",)), "None of the chosen cells can be judged so"),
    ):
        with pytest.raises(ImputationError, match=sentence):
            evaluate(run, question)


# ---------------------------------------------------------------------- pattern, presets, command line


def test_the_pattern_says_what_was_measured_and_what_a_step_hides(run):
    found = mask_pattern(run.spec, load_study(run.spec.data))
    assert found.rows == ("p1_0", "p2_0", "p3_0", "p4_0") and found.columns == ("rna", "adt")
    assert found.measured.tolist() == [[1, 0], [0, 1], [1, 0], [1, 1]]
    chance = 0.5 * run.spec.model.mask_features
    expected = [[chance, 0], [0, chance], [chance, 0], [0.5 + 0.5 * chance] * 2]
    np.testing.assert_allclose(found.hidden, expected)
    assert found.share_measured() == pytest.approx((3 * 500 + 2 * 224) / (4 * 724))
    assert found.as_csv().count("\n") == 9


@pytest.mark.parametrize("name", ["vaeit-adt", "vaeit-rna", "vaeit-rna-adt", "vaeit-rna-atac", "vaeit-rna-adt-atac"])
def test_presets_of_the_tutorials_are_valid(name):
    found = presets()[name].apply(RunSpec())
    assert found.model.kind == "vaeit" and found.training.optimizer == "adamw" and found.training.adam_eps == 1e-7


def test_the_preset_of_rna_and_atac_is_the_third_tutorial_without_its_proteins(tmp_path):
    """The two modalities keep their weights to each other and all of them their sum; a run with it trains and judges peaks by chromosome."""
    whole, own = (presets()[name].apply(RunSpec()) for name in ("vaeit-rna-adt-atac", "vaeit-rna-atac"))
    weights, of_three = own.losses.weights, whole.losses.weights
    assert set(weights) == {f"{kind}_{name}" for kind in ("observed", "hidden") for name in ("rna", "atac")}
    assert sum(weights.values()) == pytest.approx(sum(of_three.values()), abs=1e-5)
    assert all(weights[key] / weights["hidden_rna"] == pytest.approx(of_three[key] / of_three["hidden_rna"], rel=1e-4) for key in weights)
    differing = {key for key in type(own.model).model_fields if getattr(own.model, key) != getattr(whole.model, key)}
    assert differing == {"block_units", "mask_units"} and own.training == whole.training
    study = mosaic_study({("a", ("rna", "atac")): 50, ("b", ("rna",)): 40}, n_features={"rna": 20, "atac": 24})
    study.modalities["atac"].var.index = [f"chr{1 + k % 3}:{100 * k}-{100 * k + 50}" for k in range(24)]
    one = trainer(tmp_path / "run", own.with_changes({"covariates.batch": "batch", "training.max_epochs": 2, "training.batch_size": 32}), study)
    one.fit()
    assert {info.name: len(info.blocks) for info in one.model.infos} == {"rna": 1, "atac": 3}
    assert one.objective.weights["hidden_atac"] == weights["hidden_atac"] and one.at.epoch == 2


def test_the_command_line_judges_and_writes(folder, tmp_path):
    runner = CliRunner()
    done = runner.invoke(build(), ["imputation", str(folder), "--json"])
    assert done.exit_code == 0 and '"pearson_baseline"' in done.stdout
    assert (folder / "results" / "imputation.csv").exists()
    words = ["--hide", "modality", "--modality", "adt", "--batch", "p4_0", "--all-cells", "--feature", "cd39", "--json"]
    chosen = runner.invoke(build(), ["imputation", str(folder), *words])
    assert chosen.exit_code == 0 and pd.read_csv(folder / "results" / "imputation.csv")["feature"].tolist() == ["cd39"]
    out = tmp_path / "z.csv"
    assert runner.invoke(build(), ["impute", str(folder), "--out", str(out), "--latent", "--given", "rna"]).exit_code == 0
    assert pd.read_csv(out, index_col=0).shape == (1600, 8)
    for wrong in (["imputation", str(folder), "--hide", "moality"], ["imputation", str(folder), "--share", "0.2"], ["impute", str(folder), "--out", "x.txt"]):
        result = runner.invoke(build(), wrong)
        assert result.exit_code != 0 and type(result.exception).__name__ == "SpecError"


def test_draws_of_a_cell_do_not_depend_on_the_others_asked_of(run, monkeypatch):
    question = ImputedQuestion(draws=5, modalities=("adt",), seed=3)

    def asked(rows):
        mean, sd = np.zeros((len(rows), 0)), np.zeros((len(rows), 0))
        for where, means, spreads in imputed_chunks(run, rows, question):
            if not mean.shape[1]:
                mean, sd = (np.zeros((len(rows), means["adt"].shape[1])) for _ in range(2))
            mean[where], sd[where] = means["adt"], spreads["adt"]
        return mean, sd

    rows = np.arange(run.data.n_cells)
    mean, sd = asked(rows)
    assert sd.max() > 0
    monkeypatch.setattr("cellweave.core.query.imputed.BATCH", 7)
    for other in (rows, rows[::-1].copy()[: len(rows) // 2]):
        again, spread = asked(other)
        np.testing.assert_allclose(again, mean[other], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(spread, sd[other], rtol=1e-3, atol=1e-5)
