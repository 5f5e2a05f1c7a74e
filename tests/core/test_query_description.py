"""Reconstruction loss of every feature and divergence of every latent dimension: they add up to the loss terms, and agree with scipy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from query_runs import example_folder, example_run
from scipy.stats import nbinom
from test_regularised_runs import MOSAIC, ambient_folder, multimodal_folder

from cellweave.core.cli import main
from cellweave.core.query.description import dimension_divergences, feature_losses
from cellweave.core.query.evaluate import cell_terms
from cellweave.core.query.latent import latent_distribution
from cellweave.core.query.opened import open_run
from cellweave.core.query.trained_run import QueryError

LIKELIHOODS = (
    {}, {"model__gene_likelihood": "nb", "model__dispersion": "gene-batch"}, {"model__gene_likelihood": "poisson"}, {"model__gene_likelihood": "normal"},
    {"model__gene_likelihood": "zinb", "model__dispersion": "gene-cell"}, {"model__use_observed_lib_size": False},
)  # fmt: skip


@pytest.mark.parametrize("options", LIKELIHOODS, ids=str)
def test_features_and_dimensions_add_up_to_the_terms_of_the_cells(options):
    run = example_run(**options)
    terms, features = cell_terms(run, n_samples=2, seed=3), feature_losses(run, n_samples=2, seed=3)
    assert features["reconstruction"].sum() == pytest.approx(terms["reconstruction"].mean(), rel=1e-6)
    assert list(features.index) == list(run.features) and features["share"].sum() == pytest.approx(1)
    counts = run.data.modalities[0].counts[run.rows()].toarray()
    np.testing.assert_allclose(features["mean_count"], counts.mean(0), rtol=1e-6)
    np.testing.assert_allclose(features["detected"], (counts > 0).mean(0), rtol=1e-6)
    dimensions = dimension_divergences(run)
    assert dimensions["kl"].sum() == pytest.approx(terms["kl_z"].mean(), rel=1e-5)
    mean, var = latent_distribution(run)
    np.testing.assert_allclose(dimensions["spread"], mean.var(0), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(dimensions["posterior_variance"], var.mean(0), rtol=1e-5)
    each = 0.5 * (var + mean**2 - 1 - np.log(var))
    np.testing.assert_allclose(dimensions["kl"], each.mean(0), rtol=1e-4, atol=1e-6)
    assert ((dimensions["active"] - (each > 0.01).mean(0)).abs() < 5e-3).all()


def test_losses_of_an_ambient_model_against_scipy(data_folder: Path):
    run = open_run(ambient_folder(data_folder))
    rows = run.rows()[:40]
    found = feature_losses(run, rows, seed=7)
    assert found["reconstruction"].sum() == pytest.approx(cell_terms(run, rows, seed=7)["reconstruction"].mean(), rel=1e-5)
    batch = run.loader.minibatch(rows)
    with torch.no_grad():
        ((_, rates, known),) = run.model.drawn_rates(batch, torch.Generator().manual_seed(7))
    assert known is None
    theta = rates.theta.double().numpy()
    theta = theta if rates.group is None else theta[rates.group.numpy()]
    expected = -nbinom.logpmf(batch.counts["rna"].dense.numpy(), theta, theta / (theta + rates.mean.double().numpy()))
    np.testing.assert_allclose(found["reconstruction"], expected.mean(0), rtol=1e-5)


def test_a_feature_counts_in_the_cells_that_measured_it(data_folder: Path):
    """Of a mosaic every modality's losses are over its own cells, and weighed by them add up to the mean of the term."""
    run = open_run(multimodal_folder(data_folder, MOSAIC))
    features, dimensions, terms = feature_losses(run, seed=1), dimension_divergences(run), cell_terms(run, seed=1)
    assert set(features["modality"]) == {"rna", "adt", "atac"}
    for name, own in features.groupby("modality"):
        n_there = own["cells"].max()
        assert n_there < len(terms) or name == "rna"
        whole = (own["reconstruction"] * own["cells"]).sum() / len(terms)
        assert whole == pytest.approx(terms[f"reconstruction_{name}"].mean(), rel=1e-5)
        mine = dimensions[dimensions["encoder"] == name]
        assert mine["cells"].nunique() == 1 and mine["cells"].iloc[0] == n_there
        assert (mine["kl"] * mine["cells"]).sum() / len(terms) == pytest.approx(terms[f"kl_z_{name}"].mean(), rel=1e-5)
    only = feature_losses(run.of_modality("adt"), seed=1)
    pd.testing.assert_frame_equal(only, features[features["modality"] == "adt"], check_exact=False, rtol=1e-9)
    without = np.flatnonzero(~run.data.modalities[[one.name for one in run.data.modalities].index("adt")].measured & run.data.usable)
    with pytest.raises(QueryError, match="None of the chosen cells has a count of adt"):
        feature_losses(run.of_modality("adt"), without[:5])


def test_through_the_command_line(tmp_path: Path, capsys):
    folder = str(example_folder())
    assert main(["query", folder, "features", "--seed", "2", "--out", str(tmp_path / "features.csv")]) == 0
    table = pd.read_csv(tmp_path / "features.csv", index_col="feature")
    assert table["reconstruction"].is_monotonic_decreasing and len(table) == 500
    assert main(["query", folder, "dimensions"]) == 0
    assert "Z_9" in capsys.readouterr().out
    assert main(["query", folder, "dimensions", "--draws", "3"]) != 0
    assert "'dimensions' does not take --draws" in capsys.readouterr().err
