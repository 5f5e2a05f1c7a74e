"""On which scale imputed and measured values are compared and blended: by what they are drawn from, over the features that are judged."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from cellweave.core.analysis.imputation import evaluate
from cellweave.core.analysis.imputation_choice import ImputationQuestion
from cellweave.core.query.imputed import ImputedQuestion, imputed_chunks, value_scale
from cellweave.core.query.opened import open_run
from cellweave.core.query.trained_run import TrainedRun
from cellweave.core.runs.execute import execute
from cellweave.core.spec import RunSpec

QUIET = {
    "covariates.batch": "batch", "training.max_epochs": 3, "training.batch_size": 32, "training.learning_rate": 1e-3, "training.threads": 1,
    "training.preview_every": 0, "training.device": "cpu", **{f"analysis.{name}": False for name in ("umap", "clusters", "baseline", "scores")},
}  # fmt: skip


def mosaic(folder: Path) -> Path:
    """RNA everywhere; peaks with counts above 1, marks and a signal of real numbers in the second batch only."""
    rng, parts = np.random.default_rng(1), {}
    cells, batch = [f"cell{number}" for number in range(120)], np.repeat(["a", "b"], 60)
    for name in ("rna", "atac", "histone", "signal"):
        rows = slice(None) if name == "rna" else slice(60, None)
        n_cells = len(cells[rows])
        values = (rng.normal(-2, 3, (n_cells, 12)) if name == "signal" else rng.poisson(1.2, (n_cells, 24))).astype(np.float32)
        features = [f"chr{1 + k % 3}:{100 * k}-{100 * k + 50}" if name in ("atac", "histone") else f"{name}{k}" for k in range(values.shape[1])]
        parts[name] = anndata.AnnData(sparse.csr_matrix(values), pd.DataFrame({"batch": batch[rows]}, index=cells[rows]), pd.DataFrame(index=features))
    path = folder / "mosaic.h5mu"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        mudata.MuData(parts).write_h5mu(path)
    return path


@pytest.fixture(scope="module")
def midas(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    folder = tmp_path_factory.mktemp("scales")
    spec = RunSpec().with_changes({"model.kind": "midas"}).with_changes({
        **QUIET, "data.paths": (str(mosaic(folder)),), "data.real_valued": ("signal",), "model.shared_encoder": "32, 16", "model.shared_decoder": "16, 32",
        "model.distribution": {"atac": "poisson", "histone": "bernoulli", "signal": "gaussian"}, "model.n_latent": 8,
    })  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        execute(spec, folder / "run")
    return open_run(folder / "run")


@pytest.fixture(scope="module")
def judged(midas: TrainedRun) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # the logarithm of numbers below -1
        return evaluate(midas, ImputationQuestion("modality", held_out_cells=False))


def test_the_scale_follows_the_distribution(midas: TrainedRun) -> None:
    found = {name: value_scale(midas, name) for name in ("rna", "atac", "histone", "signal")}
    assert found == {"rna": "log1p", "atac": "log1p", "histone": "binary", "signal": "none"}


def test_a_declared_modality_of_bernoulli_values_is_judged_as_yes_or_no(judged: Any) -> None:
    one = judged.comparisons["histone"]
    assert one.binary and set(np.unique(one.truth)) == {0.0, 1.0} and 0 <= one.imputed.min() <= one.imputed.max() <= 1
    assert np.isfinite(judged.overall["histone"]["auroc"]) and 0 < one.baseline.min() < one.baseline.max() < 1


def test_real_numbers_are_compared_as_they_are(judged: Any, midas: TrainedRun) -> None:
    one = judged.comparisons["signal"]
    signal = next(modality for modality in midas.data.modalities if modality.name == "signal")
    assert not one.binary and one.truth.min() < -1 and np.isfinite(one.imputed).all()
    assert np.array_equal(one.truth, signal.counts[one.rows].toarray())
    assert np.isfinite(judged.overall["signal"]["mse"]) and one.baseline.mean() < -1


def test_peaks_of_a_poisson_distribution_are_counts(judged: Any) -> None:
    one = judged.comparisons["atac"]
    assert not one.binary and "auroc" not in judged.overall["atac"]
    np.testing.assert_allclose(np.expm1(one.truth).sum(1), 1e4, rtol=1e-3)
    np.testing.assert_allclose(np.expm1(one.imputed).sum(1), 1e4, rtol=1e-3)


def test_blended_probabilities_stay_between_0_and_1(midas: TrainedRun) -> None:
    rows = np.arange(50, 120)
    blended = {name: np.full((70, 24), np.nan, np.float32) for name in ("atac", "histone")}
    for where, means, _ in imputed_chunks(midas, rows, ImputedQuestion(blended=True)):
        for name in blended:
            blended[name][where] = means[name]
    own = {modality.name: modality.counts[rows[10:]].toarray() for modality in midas.data.modalities}
    assert own["histone"].max() > 1
    assert np.array_equal(blended["histone"][10:], own["histone"] > 0)
    assert ((blended["histone"][:10] > 0) & (blended["histone"][:10] < 1)).all()
    assert np.array_equal(blended["atac"][10:], own["atac"])  # drawn from counts, so kept as counts


def test_both_sides_are_scaled_over_the_features_that_are_judged() -> None:
    """A model that knows every rate exactly is right although the mask hides the highest features from the truth."""
    rates = np.array([[1.0, 2.0, 3.0, 40.0], [5.0, 1.0, 2.0, 60.0], [2.0, 2.0, 7.0, 9.0]], dtype=np.float32)
    mask = np.array([[True, True, True, False], [True, True, True, True]])
    group = np.array([0, 0, 1])
    truth = sparse.csr_matrix(np.where(mask[group], rates, 0))
    names = pd.DataFrame(index=list("abcd"))
    rna = SimpleNamespace(name="rna", measured=np.ones(3, bool), feature_mask=mask, counts=truth, n_features=4, var=names)
    adt = SimpleNamespace(name="adt", measured=np.ones(3, bool), feature_mask=None, counts=sparse.csr_matrix(rates), n_features=4, var=names)
    data = SimpleNamespace(modalities=[rna, adt], usable=np.ones(3, bool), train=np.arange(3), validation=np.arange(0), mask_group=group)
    model = SimpleNamespace(impute=lambda batch, given: {"rna": torch.from_numpy(rates[batch])})
    run = SimpleNamespace(
        data=data, model=model, device=torch.device("cpu"), minibatches_by_pattern=lambda rows, size: iter([(np.arange(len(rows)), rows)]),
        spec=RunSpec().with_changes({"model.kind": "midas"}),
    )  # fmt: skip
    one = evaluate(cast(TrainedRun, run), ImputationQuestion("modality", modality="rna", held_out_cells=False)).comparisons["rna"]
    assert np.array_equal(np.isfinite(one.truth), mask[group])
    np.testing.assert_allclose(one.imputed, one.truth, rtol=1e-5)
