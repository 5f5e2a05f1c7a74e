"""The discrepancy between batches is told under both definitions: per minibatch, and summed over minibatches per cell."""

from __future__ import annotations

import csv

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from cellweave.core.models.registry import family
from cellweave.core.nn.mmd import mmd
from cellweave.core.runs.events import EpochDone
from cellweave.core.runs.execute import execute
from cellweave.core.runs.folder import RunFolder
from cellweave.core.spec import RunSpec
from cellweave.core.training.objective import EpochSums

N_CELLS = 200


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two batches, one behind the other in the file."""
    path = tmp_path_factory.mktemp("mmd") / "cells.h5ad"
    rng = np.random.default_rng(0)
    batch = np.repeat(["a", "b"], N_CELLS // 2)
    counts = sparse.csr_matrix(rng.poisson(np.where(batch == "a", 1.0, 4.0)[:, None], (N_CELLS, 20)).astype(np.float32))
    anndata.AnnData(counts, obs=pd.DataFrame({"batch": batch}, index=[f"c{i}" for i in range(N_CELLS)])).write_h5ad(path)
    return path


def spec_of(data, **changes):
    off = {f"analysis.{name}": False for name in ("umap", "clusters", "baseline", "scores")}
    return RunSpec().with_changes(
        {"data.paths": str(data), "covariates.batch": "batch", "training.max_epochs": 2, "training.batch_size": 32, "training.preview_every": 0,
         "training.threads": 1, "training.validation_share": 0.3, "model.n_hidden": 8, "model.mmd_kernel": "dimension", **off, **changes}
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["vae", "ldvae"])
def test_both_definitions_are_told(data, tmp_path, kind):
    execute(spec_of(data, **{"model.kind": kind, "losses.weights.mmd": 5.0}), tmp_path / "run")
    run = RunFolder.open(tmp_path / "run")
    epochs = run.epochs()
    assert len(epochs) == 2
    for event in epochs:
        # 140 training cells in minibatches of 32: five of them; 60 held-out cells in one
        assert event.metrics["mmd_loss_train"] * 140 == pytest.approx(5 * event.train["mmd"], rel=0.3)
        assert event.metrics["mmd_loss_validation"] * 60 == pytest.approx(event.validation["mmd"], rel=1e-6)
        assert event.validation["mmd"] > 0.01, "held-out minibatches hold both batches, whatever the order of the file"
    rows = list(csv.DictReader(run.epoch_metrics_file.open()))
    assert [float(row["mmd_loss_train"]) for row in rows] == [event.metrics["mmd_loss_train"] for event in epochs]


def test_nothing_is_told_where_it_is_switched_off(data, tmp_path):
    seen = []
    execute(spec_of(data), tmp_path / "run", listener=seen.append)
    assert all(not event.metrics for event in seen if isinstance(event, EpochDone))
    assert not RunFolder.open(tmp_path / "run").epoch_metrics_file.exists()
    assert family("vae").metrics(spec_of(data)) == ()
    assert [metric.name for metric in family("vae").metrics(spec_of(data, **{"losses.weights.mmd": 1.0}))] == ["mmd_loss_train", "mmd_loss_validation"]


def test_sums_over_minibatches_are_exact_and_survive_a_checkpoint(data):
    terms = spec_of(data).terms()
    cpu = torch.device("cpu")
    sums, again = EpochSums(terms, cpu), EpochSums(terms, cpu)
    parts = [(0.5, 32), (0.25, 32), (0.75, 11)]
    for number, (value, n_cells) in enumerate(parts):
        if number == 1:
            again.load({name: tensor.clone() for name, tensor in sums.state().items()})
        sums.add({"mmd": torch.tensor(value)}, torch.tensor(0.0), n_cells)
        if number >= 1:
            again.add({"mmd": torch.tensor(value)}, torch.tensor(0.0), n_cells)
    assert sums.summed("train") == again.summed("train") == {"mmd_loss_train": pytest.approx(1.5 / 75)}
    assert sums.means()["mmd"] == pytest.approx((0.5 * 32 + 0.25 * 32 + 0.75 * 11) / 75)


@pytest.mark.parametrize("n_levels", [2, 3, 5])
def test_fast_one_against_rest_equals_a_loop_over_levels(n_levels):
    torch.manual_seed(0)
    z, codes = torch.randn(37, 3, dtype=torch.float64), torch.randint(0, n_levels, (37,))
    expected = 0.0
    for level in range(n_levels):
        x, y = z[codes == level], z[codes != level]
        half = min(len(x), len(y)) // 2
        for i in range(half):
            a, b, c, d = x[i], x[i + half], y[i], y[i + half]
            kernel = lambda p, q: torch.exp(-((p - q) ** 2).sum())  # noqa: E731
            expected += (kernel(a, b) + kernel(c, d) - kernel(a, d) - kernel(b, c)) / half
    found = mmd(z, codes, n_levels, mode="fast", pairs="one_vs_rest")
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float64))
