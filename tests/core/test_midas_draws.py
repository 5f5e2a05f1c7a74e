"""Draws that MIDAS gives belong to the cell: counts, and the spread of imputed values over the posterior."""

from __future__ import annotations

from pathlib import Path

import mudata
import numpy as np
import pytest
import torch

from cellweave.core.cli import main
from cellweave.core.query.imputed import ImputedQuestion, imputed_chunks
from cellweave.core.query.mosaic import MosaicQuestion, mosaic_values
from cellweave.core.query.opened import open_run
from cellweave.core.query.trained_run import TrainedRun
from cellweave.core.runs.execute import execute
from cellweave.core.spec import RunSpec


@pytest.fixture(scope="module")
def trained(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("draws")
    spec = RunSpec().with_changes({
        "model.kind": "midas", "data.paths": (str(data_folder / "mosaic_pbmc_rna_adt_4batches.h5mu"),), "covariates.batch": "batch",
        "training.max_epochs": 4, "training.batch_size": 128, "training.learning_rate": 1e-3, "training.threads": 1, "training.preview_every": 0,
        "training.early_stopping": False, "model.shared_encoder": "64, 32", "model.shared_decoder": "32, 64", "model.n_latent": 8,
        **{f"analysis.{name}": False for name in ("umap", "clusters", "baseline", "scores", "alignment")},
    })  # fmt: skip
    execute(spec, folder / "run")
    return folder


def test_draws_of_counts_belong_to_the_cell_and_the_modality(trained: Path):
    run, asked = open_run(trained / "run"), MosaicQuestion("corrected", sampled=True, seed=4)
    whole = mosaic_values(run, question=asked)
    rows = np.random.default_rng(0).choice(run.rows(None), 40, replace=False)
    one = mosaic_values(run, np.sort(rows), MosaicQuestion("corrected", modalities=("adt",), sampled=True, seed=4))
    place = np.searchsorted(run.rows(None), np.sort(rows))
    # Rates of other minibatches may differ in their last digit, which moves hardly any draw.
    assert (one["adt"] == whole["adt"][place]).mean() > 0.9999
    means = mosaic_values(run, question=MosaicQuestion("corrected"))
    for name, drawn in whole.items():
        # Draws scatter about their means as Poisson numbers do: their squared distance is the mean itself.
        assert drawn.mean() == pytest.approx(means[name].mean(), rel=0.01)
        assert ((drawn - means[name]) ** 2).mean() == pytest.approx(means[name].mean(), rel=0.1)
    # Neither cells nor modalities share their random numbers.
    first, second = (whole["adt"][n] - means["adt"][n] for n in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.3


def test_spread_of_imputed_values_is_that_of_draws_of_the_posterior(trained: Path):
    run = open_run(trained / "run")
    rows = run.rows(None)[390:440]  # cells of RNA alone and of proteins alone
    (mean, sd), batch = _drawn(run, rows, ImputedQuestion(draws=60, seed=3)), run.loader.minibatch(rows)
    model = run.model
    with torch.no_grad():
        posterior = model.see(batch, draw=False, told=model.options.batch_expert).joint
        own = []
        for place, row in enumerate(rows):
            stream = np.random.Generator(np.random.Philox(key=np.array([3, row], np.uint64)))
            noise = torch.from_numpy(stream.standard_normal((60, posterior.mean.shape[1]), np.float32))
            z = posterior.mean[place] + posterior.var[place].sqrt() * noise
            own.append({name: value.double().numpy() for name, value in model.means(z).items()})
    for name in ("rna", "adt"):
        np.testing.assert_allclose(mean[name], np.stack([each[name].mean(0) for each in own]), rtol=2e-4, atol=1e-5)
        np.testing.assert_allclose(sd[name], np.stack([each[name].std(0, ddof=1) for each in own]), rtol=2e-3, atol=1e-5)
    few, few_sd = _drawn(run, rows[7:9], ImputedQuestion(modalities=("adt",), draws=60, seed=3))
    np.testing.assert_allclose(few["adt"], mean["adt"][7:9], rtol=2e-4)
    np.testing.assert_allclose(few_sd["adt"], sd["adt"][7:9], rtol=2e-3)
    given, _ = _drawn(run, rows, ImputedQuestion(given=("rna",), draws=5))
    assert np.isnan(given["adt"][~next(m for m in run.data.modalities if m.name == "rna").measured[rows]]).all()
    kept, spread = _drawn(run, rows, ImputedQuestion(draws=5, blended=True))
    has = next(m for m in run.data.modalities if m.name == "adt").measured[rows]
    np.testing.assert_array_equal(kept["adt"][has], run.study.modalities["adt"].counts[rows[has]].toarray())
    assert not spread["adt"][has].any()
    assert spread["adt"][~has].all()


def _drawn(run: TrainedRun, rows: np.ndarray, question: ImputedQuestion) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return mean and standard deviation of imputed values, in the order of the rows."""
    mean, sd = {}, {}
    for where, means, spreads in imputed_chunks(run, rows, question):
        for found, part in ((mean, means), (sd, spreads)):
            for name, value in part.items():
                found.setdefault(name, np.full((len(rows), value.shape[1]), np.nan, np.float32))[where] = value
    return mean, sd


def test_the_command_line_gives_draws_and_every_translation(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = str(trained / "run")
    assert main(["query", folder, "imputed", "--draws", "6", "--given", "rna", "--seed", "2", "-o", str(tmp_path / "i.h5mu")]) == 0
    run = open_run(folder)
    mean, sd = _drawn(run, run.rows(None), ImputedQuestion(given=("rna",), draws=6, seed=2))
    found = mudata.read_h5mu(tmp_path / "i.h5mu")
    np.testing.assert_allclose(found.mod["adt"].X, mean["adt"], rtol=1e-3)
    np.testing.assert_allclose(found.mod["adt"].layers["sd"], sd["adt"], rtol=1e-2, atol=1e-4)
    assert main(["query", folder, "corrected", "--sampled", "--seed", "2", "--cells", "batch=p2_0", "-o", str(tmp_path / "c.h5mu")]) == 0
    rows = np.flatnonzero((run.study.obs["batch"] == "p2_0").to_numpy())
    values = mosaic_values(run, rows, MosaicQuestion("corrected", sampled=True, seed=2))
    assert (values["rna"] == mudata.read_h5mu(tmp_path / "c.h5mu").mod["rna"].X).mean() > 0.9999
    for given, wanted in (("rna", "adt"), ("adt", "rna")):
        assert main(["query", folder, "translated", "--given", given, "-o", str(tmp_path / f"{given}.h5mu")]) == 0
        assert list(mudata.read_h5mu(tmp_path / f"{given}.h5mu").mod) == [wanted]
    capsys.readouterr()
    assert main(["query", folder, "imputed", "--draws", "6", "--sampled", "-o", str(tmp_path / "x.h5mu")]) == 2
    assert "--draws gives means with their spread" in capsys.readouterr().err
