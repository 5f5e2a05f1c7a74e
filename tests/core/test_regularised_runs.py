"""The ambient-regularised models on real data, from spec to answers: training, resume, questions."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from query_runs import KANG, train

from cellweave.core.errors import DataError
from cellweave.core.models.registry import families
from cellweave.core.query.differential import DifferentialOptions, differential_by_column
from cellweave.core.query.encode import _refuse_unknown
from cellweave.core.query.evaluate import cell_terms, elbo
from cellweave.core.query.expression import ExpressionQuestion, normalised_expression
from cellweave.core.query.latent import latent_library, latent_mean, latent_sample
from cellweave.core.query.opened import open_run
from cellweave.core.query.sampling import feature_correlation
from cellweave.core.query.trained_run import QueryError, TrainedRun
from cellweave.core.runs.events import EpochDone, FinishReason, StepProgress
from cellweave.core.runs.execute import execute, resume
from cellweave.core.runs.folder import RunFolder
from cellweave.core.spec import RunSpec
from cellweave.core.training.control import RunControl

MULTIOME, CITE, MOSAIC = "multiome_bmmc_neurips_2batches.h5mu", "cite_bmmc_neurips_2batches.h5mu", "mosaic_bmmc_rna_adt_atac_4batches.h5mu"


def file_of(folder: Path, name: str) -> str:
    path = folder / name
    if not path.is_file():
        pytest.skip(f"{name} is not in {folder}")
    return str(path)


@cache
def ambient_folder(folder: Path) -> Path:
    changes = {
        "model.kind": "ambient", "data.paths": file_of(folder, KANG), "covariates.library": "batch", "covariates.decoder": ("donor",),
        "training.max_epochs": 8, "training.batch_size": 64, "training.learning_rate": 4e-3, "model.compute_pearson": True,
    }  # fmt: skip
    return train("ambient", changes)


@cache
def multimodal_folder(folder: Path, name: str = MULTIOME) -> Path:
    changes = {"model.kind": "multimodal", "data.paths": file_of(folder, name), "covariates.batch": "batch"}
    return train(f"multimodal-{name}", {**changes, "training.max_epochs": 4, "training.batch_size": 64})


@pytest.fixture
def ambient(data_folder: Path) -> TrainedRun:
    return open_run(ambient_folder(data_folder))


@pytest.fixture
def multimodal(data_folder: Path) -> TrainedRun:
    return open_run(multimodal_folder(data_folder))


def test_ambient_learns_and_every_term_has_a_curve(data_folder: Path) -> None:
    folder = ambient_folder(data_folder)
    losses = pd.read_csv(folder / "losses.csv")
    for name in ("reconstruction", "kl_z", "kl_l", "library_weight", "dispersion", "dispersion_rate", "feature_scaling", "decoder_l2"):
        assert np.isfinite(losses[f"{name}_train"]).all() and np.isfinite(losses[f"{name}_validation"]).all(), name
    assert losses["elbo_validation"].iloc[-1] < losses["elbo_validation"].iloc[0] - 20
    metrics = pd.read_csv(folder / "epoch_metrics.csv")
    for name in ("n_active_dims", "theta_mean", "z_var", "library_obs_w", "pearson_gene", "pearson_cell"):
        assert np.isfinite(metrics[next(column for column in metrics if column.startswith(name))]).all(), name


def test_a_library_fans_out_and_two_calls_agree(ambient: TrainedRun) -> None:
    columns = ambient.trained.encoding.columns
    assert columns["ambient"] == columns["dispersion"] == columns["library_size"] == ("batch",) and columns["feature_scaling"] == ("donor",)
    assert ambient.batches == ("ctrl", "stim")
    assert np.array_equal(latent_mean(ambient), latent_mean(ambient))
    first = normalised_expression(ambient, [0, 5, 9])
    assert np.array_equal(first, normalised_expression(ambient, [0, 5, 9])) and first.sum(1).mean() == pytest.approx(1, abs=0.3)


def test_counterfactuals_change_what_the_covariate_drives_and_nothing_else(ambient: TrainedRun) -> None:
    rows = np.arange(40)
    own = normalised_expression(ambient, rows)
    # The library drives background, dispersion and depth, not the expression itself.
    as_library = ExpressionQuestion(transform_batch="stim")
    assert np.array_equal(own, normalised_expression(ambient, rows, as_library))
    counts = normalised_expression(ambient, rows, ExpressionQuestion(library_size="latent"))
    moved = normalised_expression(ambient, rows, ExpressionQuestion(library_size="latent", transform_batch="stim"))
    in_stim = (ambient.study.obs["batch"].astype(str).to_numpy() == "stim")[rows]
    assert np.allclose(counts[in_stim], moved[in_stim], rtol=1e-5) and not np.allclose(counts[~in_stim], moved[~in_stim], rtol=1e-3)
    donors = ambient.trained.encoding.levels["donor"]
    decoded = [normalised_expression(ambient, rows, ExpressionQuestion(transform={"donor": donor})) for donor in donors]
    assert not np.allclose(decoded[0], decoded[1], rtol=1e-3)
    mine = ambient.study.obs["donor"].astype(str).to_numpy()[rows]
    for donor, values in zip(donors, decoded, strict=True):
        assert np.allclose(values[mine == donor], own[mine == donor], rtol=1e-5)
    with pytest.raises(QueryError, match="cell_type"):
        normalised_expression(ambient, rows, ExpressionQuestion(transform={"cell_type": "B cells"}))


def test_differential_expression_finds_the_interferon_response(ambient: TrainedRun) -> None:
    table = differential_by_column(ambient, "batch", "stim", "ctrl", options=DifferentialOptions(n_samples=1000))
    assert table.index.is_unique and len(table) == len(ambient.features)
    response = table.loc[table.index.isin(["ISG15", "IFI6", "ISG20", "LY6E", "IFIT3", "IFIT1"])]
    assert len(response) >= 3 and (response["lfc_mean"] > 0.5).all()


def test_library_sizes_are_those_of_the_counts(ambient: TrainedRun) -> None:
    totals = np.asarray(ambient.counts.counts.sum(1)).ravel()
    found = latent_library(ambient)
    assert np.corrcoef(np.log(found), np.log(totals[ambient.rows()]))[0, 1] > 0.9
    assert 0.5 < np.median(found / totals[ambient.rows()]) < 2


@pytest.mark.parametrize("whole", [ambient_folder, multimodal_folder])
def test_resume_is_to_the_bit(data_folder: Path, tmp_path: Path, whole) -> None:
    path = whole(data_folder)
    control, steps = RunControl(), [0]

    def cancel_within_the_third_epoch(event: object) -> None:
        if isinstance(event, EpochDone) and event.epoch == 2:
            steps[0] = 1
        elif steps[0] and isinstance(event, StepProgress):
            control.cancel()

    execute_spec = RunFolder.open(path).spec.with_changes({"data.sha256": ()})
    reason = execute(execute_spec, tmp_path / "run", listener=cancel_within_the_third_epoch, control=control)
    assert reason is FinishReason.CANCELLED
    resume(tmp_path / "run")
    for name in ("losses.csv", "epoch_metrics.csv"):
        first, second = (pd.read_csv(one / name) for one in (path, tmp_path / "run"))
        same = [column for column in first if "seconds" not in column and "memory" not in column]
        pd.testing.assert_frame_equal(first[same], second[same], check_exact=True)


def test_multimodal_learns_and_gives_each_modality(multimodal: TrainedRun, data_folder: Path) -> None:
    losses = pd.read_csv(multimodal.path / "losses.csv")
    for name in ("atac", "rna"):
        assert losses[f"reconstruction_{name}_validation"].iloc[-1] < losses[f"reconstruction_{name}_validation"].iloc[0]
    assert multimodal.model.latent_blocks() == {"atac": slice(0, 10), "rna": slice(10, 20)}
    latent = np.load(multimodal.path / "results" / "latent.npy")
    parts = [np.load(multimodal.path / "results" / f"latent_{name}.npy") for name in ("atac", "rna")]
    assert np.array_equal(latent, np.concatenate(parts, 1)) and np.isfinite(latent).all()
    for name in ("atac", "rna"):
        asked = multimodal.of_modality(name)
        values = normalised_expression(asked, [0, 1, 2])
        assert values.shape == (3, len(multimodal.trained.features[name])) and np.isfinite(values).all()
        sampled = latent_sample(asked, [0, 1], n_samples=2)
        assert sampled.shape == (2, 2, 20) and not np.array_equal(sampled[0], sampled[1])
    group = multimodal.study.obs["cell_type_l1"].iloc[0]
    table = differential_by_column(multimodal.of_modality("atac"), "cell_type_l1", group, options=DifferentialOptions(n_samples=200))
    assert len(table) == 600
    with pytest.raises(QueryError, match="adt"):
        multimodal.of_modality("adt")


def test_a_modality_that_was_not_measured_has_no_latent_and_costs_nothing(data_folder: Path) -> None:
    run = open_run(multimodal_folder(data_folder, MOSAIC))
    assert tuple(run.model.latent_blocks()) == ("adt", "atac", "rna")
    batch = run.loader.minibatch(run.rows()[:200])
    run.model.eval()
    found = run.model.latent(batch)
    for name in ("adt", "atac"):
        measured = batch.measured[name]
        assert (found[f"latent_{name}"][~measured] == 0).all() and (found[f"latent_{name}"][measured] != 0).any(1).all()
    from cellweave.core.models.base import StepContext

    terms = run.model.loss_terms(batch, StepContext(training=False, weights=run.spec.loss_weights(), generator=torch.Generator().manual_seed(0)))
    for name in ("adt", "atac"):
        for term in ("reconstruction", "kl_z", "kl_l"):
            values = terms[f"{term}_{name}"]
            assert (values[~batch.measured[name]] == 0).all() and (values[batch.measured[name]] != 0).all()
    # Decoders see the whole latent, so proteins of cells without any measured are told from their RNA.
    assert np.isfinite(normalised_expression(run.of_modality("adt"), run.rows()[:5])).all()


@pytest.mark.parametrize(
    "options",
    [
        {"latent_mode": "weighted_mean"},
        {"latent_mode": "weighted_mean", "modality_weights": "universal", "learnable_modality_scaling": True},
        {"latent_mode": "weighted_mean", "modality_weights": "cell", "use_ard": True},
        {"latent_mode": "single_encoder", "n_latent": {"rna": 8, "adt": 4}, "hidden_sparsity": True},
        {"latent_scale_prior": "lognormal", "n_active_latent_per_cell": 5.0, "z_sparsity_prior": "gamma", "modality_balanced_init": True},
        {"latent_scale_prior": "gamma", "n_active_latent_per_cell": 5.0, "dispersion": "gene", "residual_library_encoder": False},
        {"latent_scale_prior": "lognormal_mc", "n_active_latent_per_cell": 5.0, "init_decoder_bias": "topN", "dispersion_draws": "group"},
        {"decoder_type": {"rna": "burst_frequency_size", "adt": "expected_RNA"}, "dispersion_init": "data", "compute_pearson": True},
        {"learning_rate_multiplier": {"rna": 2.0, "adt": 1.0}, "weight_decay_on_log_parameters": False, "batch_in_decoder": True},
        {"regularise_dispersion": False, "feature_scaling_combine": "sum", "feature_scaling_modalities": ("adt", "rna"), "bg_init_gene_fraction": 0.0},
        {"dispersion_init": "data", "decoder_init_variance_target_fraction": 0.5, "dispersion_jacobian": True, "var_init_scale": 0.3, "use_batch_norm": "both"},
    ],
    ids=lambda options: "-".join(f"{name}={value}" for name, value in options.items())[:60],
)  # fmt: skip
def test_every_option_trains_and_is_read_back(data_folder: Path, options: dict[str, object]) -> None:
    changes = {f"model.{name}": value for name, value in options.items()}
    base = {"model.kind": "multimodal", "data.paths": file_of(data_folder, CITE), "covariates.batch": "batch"}
    folder = train(f"option-{abs(hash(str(options)))}", {**base, "training.max_epochs": 1, "training.batch_size": 200, **changes})
    losses, spec = pd.read_csv(folder / "losses.csv"), RunFolder.open(folder).spec
    declared = {name for name, weight in spec.loss_weights().items() if weight > 0}
    assert all(np.isfinite(losses[f"{name}_train"]).all() for name in declared)
    run = open_run(folder)
    assert np.allclose(latent_mean(run, [3, 4]), np.load(folder / "results" / "latent.npy")[[3, 4]], atol=1e-5)
    assert np.isfinite(normalised_expression(run, [3, 4])).all()


def test_ambient_burst_decoder_and_moments_on_real_data(data_folder: Path) -> None:
    changes = {
        "model.kind": "ambient", "data.paths": file_of(data_folder, KANG), "covariates.batch": "batch", "training.max_epochs": 2,
        "model.decoder_type": "burst_frequency_size", "model.dispersion_init": "data", "losses.weights.background": 1.0, "analysis.denoised": True,
    }  # fmt: skip
    folder = train("burst", changes)
    losses = pd.read_csv(folder / "losses.csv")
    assert np.isfinite(losses["background_train"]).all() and losses["elbo_validation"].iloc[-1] < losses["elbo_validation"].iloc[0]
    with h5py.File(folder / "results" / "denoised.h5") as file:
        assert np.isfinite(file["rna/X"][0]).all()


def test_conflicting_columns_are_refused_with_a_sentence(data_folder: Path, tmp_path: Path) -> None:
    base = {"model.kind": "ambient", "data.paths": file_of(data_folder, KANG), "covariates.batch": "batch"}
    spec = RunSpec().with_changes({**base, "covariates.ambient": ("donor",)})
    with pytest.raises(DataError, match=r"'batch' is the batch, which fills ambient, dispersion and library size"):
        execute(spec, tmp_path / "conflict")
    spec = RunSpec().with_changes({**base, "covariates.batch": None, "covariates.library": "batch", "covariates.dataset": "donor"})
    with pytest.raises(DataError, match=r"Each library belongs to one data set.*lies in"):
        execute(spec, tmp_path / "library")


@pytest.mark.parametrize("whole", [ambient_folder, multimodal_folder])
def test_evaluation_gives_every_part_of_the_elbo(data_folder: Path, whole) -> None:
    run = open_run(whole(data_folder))
    table = cell_terms(run, np.arange(60), seed=3)
    assert len(table) == 60 and np.isfinite(table.to_numpy()).all()
    declared = [term for term in run.spec.terms() if term.in_elbo and term.name in table]
    assert np.allclose(table["elbo"], -table[[term.name for term in declared]].sum(axis=1))
    assert {"kl_l", "kl_l_rna"} & set(table) and "reconstruction" in table
    # What all cells share is divided by the cells that were trained on.
    shared = next(term.name for term in declared if term.scope == "global" and term.name == "dispersion")
    value = run.model.global_terms({"dispersion": 1.0})["dispersion"].detach()
    assert table[shared].iloc[0] == pytest.approx(float(value) / run.trained.context.n_cells, rel=1e-5) and table[shared].nunique() == 1
    assert elbo(run, np.arange(60), seed=3) == pytest.approx(table["elbo"].mean())
    with pytest.raises(QueryError, match="background"):
        feature_correlation(run, np.arange(20), features=list(run.features[:4]))


def test_a_new_level_is_not_said_to_be_mappable(ambient: TrainedRun) -> None:
    column = pd.Series(["ctrl", "other"])
    with pytest.raises(DataError, match="train anew"):
        _refuse_unknown(ambient.spec, column, np.array([0, -1]), "batch", "batch", ["ctrl", "stim"])
    assert not ambient.spec.family.maps and families()["vae"].maps
