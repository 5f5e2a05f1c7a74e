"""ELBO, marginal likelihood and discrepancy against numpy; draws from the likelihood."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from query_numpy import NumpyVae
from query_runs import example_run, kang_run
from scipy.special import logsumexp
from scipy.stats import norm, rankdata

from cellweave.core.nn.mmd import mmd
from cellweave.core.query import sampling
from cellweave.core.query import trained_run as opened
from cellweave.core.query.evaluate import cell_terms, discrepancy, elbo, marginal_ll, reconstruction_error
from cellweave.core.query.expression import ExpressionQuestion, normalised_expression
from cellweave.core.query.latent import latent_distribution, latent_mean
from cellweave.core.query.sampling import feature_correlation, likelihood_parameters, posterior_predictive
from cellweave.core.query.trained_run import QueryError


@pytest.fixture(scope="module")
def run():
    return example_run()


def dense(run, rows):
    return run.data.modalities[0].counts[rows].toarray().astype(np.float64)


class Reference:
    """Counts, codes and posteriors of some cells in numpy."""

    def __init__(self, run, rows, *, learned=False):
        self.vae, self.rows = NumpyVae(run), rows
        self.counts, self.codes = dense(run, rows), run.data.categorical["batch"][rows]
        self.mean, self.var = self.vae.encode(self.counts)
        self.library = self.vae.encode(self.counts, "library_encoder") if learned else None

    def log_weight(self, z, log_library=None):
        """Return log p(x, z, l) - log q(z, l | x)."""
        size = self.counts.sum(1) if log_library is None else np.exp(log_library)
        shares, zero = self.vae.decode(z, self.codes)
        found = self.vae.log_likelihood(self.counts, shares * size[:, None], zero)
        found += norm.logpdf(z).sum(1) - norm.logpdf(z, self.mean, np.sqrt(self.var)).sum(1)
        if log_library is not None:
            mean, var = (one[:, 0] for one in self.library)
            prior = self.vae.state["library_log_mean"][self.codes], np.sqrt(self.vae.state["library_log_var"][self.codes])
            found += norm.logpdf(log_library, *prior) - norm.logpdf(log_library, mean, np.sqrt(var))
        return found


def test_terms_against_numpy(run):
    rows = run.rows()[:64]
    reference = Reference(run, rows)
    found = cell_terms(run, rows, seed=5)
    z = reference.mean + np.sqrt(reference.var) * torch.randn(reference.mean.shape, generator=torch.Generator().manual_seed(5)).numpy()
    shares, zero = reference.vae.decode(z, reference.codes)
    expected = -reference.vae.log_likelihood(reference.counts, shares * reference.counts.sum(1, keepdims=True), zero)
    np.testing.assert_allclose(found["reconstruction"], expected, rtol=1e-4)
    kl = 0.5 * (reference.var + reference.mean**2 - 1 - np.log(reference.var)).sum(1)
    np.testing.assert_allclose(found["kl_z"], kl, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found["elbo"], -found["reconstruction"] - found["kl_z"], rtol=1e-12)
    assert list(found.index) == list(run.cell_names[rows])
    assert elbo(run, rows, seed=5) == pytest.approx(found["elbo"].mean(), rel=1e-12)
    assert reconstruction_error(run, rows, seed=5) == pytest.approx(found["reconstruction"].mean(), rel=1e-12)


@pytest.mark.parametrize("learned", [False, True])
def test_marginal_likelihood_against_numpy(learned):
    """Sum over exactly the draws that are asked for, divided by their number."""
    run = example_run(model__use_observed_lib_size=False) if learned else example_run()
    rows, n_samples = run.rows()[:50], 7
    reference = Reference(run, rows, learned=learned)
    generator, weights = torch.Generator().manual_seed(11), []
    for _ in range(n_samples):
        z = reference.mean + np.sqrt(reference.var) * torch.randn(reference.mean.shape, generator=generator).numpy()
        log_library = None
        if learned:
            mean, var = (one[:, 0] for one in reference.library)
            log_library = mean + np.sqrt(var) * torch.randn(len(rows), generator=generator).numpy()
        weights.append(reference.log_weight(z, log_library))
    expected = logsumexp(np.stack(weights), axis=0) - np.log(n_samples)
    np.testing.assert_allclose(marginal_ll(run, rows, n_samples=n_samples, seed=11), expected, rtol=1e-4)


def test_marginal_likelihood_of_a_logistic_normal_latent_is_taken_before_the_softmax():
    run = example_run(model__latent_distribution="ln")
    rows = run.rows()[:50]
    reference = Reference(run, rows)
    noise = torch.randn(reference.mean.shape, generator=torch.Generator().manual_seed(2)).numpy()
    raw = reference.mean + np.sqrt(reference.var) * noise
    shares, zero = reference.vae.decode(np.exp(raw) / np.exp(raw).sum(1, keepdims=True), reference.codes)
    likelihood = reference.vae.log_likelihood(reference.counts, shares * reference.counts.sum(1, keepdims=True), zero)
    expected = likelihood + norm.logpdf(raw).sum(1) - norm.logpdf(raw, reference.mean, np.sqrt(reference.var)).sum(1)
    np.testing.assert_allclose(marginal_ll(run, rows, n_samples=1, seed=2), expected, rtol=1e-4)


def test_marginal_likelihood_is_above_the_elbo_and_rises_with_draws(data_folder):
    run = kang_run(data_folder)
    rows = run.rows()[::8]
    few, many = (marginal_ll(run, rows, n_samples=n).mean() for n in (2, 40))
    assert elbo(run, rows, n_samples=8) < few < many


def test_means_weigh_every_cell_alike(run, monkeypatch):
    """scvi-tools averages the means of minibatches, so that the last, smaller one weighs more."""
    rows = run.rows()[:70]
    whole = cell_terms(run, rows)
    monkeypatch.setattr(opened.TrainedRun.minibatches, "__defaults__", (64,))  # the last one has 6 cells
    parts = cell_terms(run, rows)
    np.testing.assert_allclose(parts["kl_z"], whole["kl_z"], rtol=1e-4)
    over_minibatches = (parts["elbo"][:64].mean() + parts["elbo"][64:].mean()) / 2
    assert elbo(run, rows) == pytest.approx(parts["elbo"].mean(), rel=1e-12)
    assert abs(elbo(run, rows) - over_minibatches) > 0.1
    values = marginal_ll(run, rows, n_samples=2)
    assert values.shape == (70,)
    assert np.isfinite(values).all()


# ---------------------------------------------------------------------- discrepancy


def naive_mmd(x, y):
    def kernel(a, b):
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1)).mean()

    return kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)


def test_discrepancy_of_one_minibatch_against_numpy(run):
    found = discrepancy(run, batch_size=2000)
    codes, z = run.data.categorical["batch"][run.rows()], latent_mean(run).astype(np.float64)
    present = [code for code in range(4) if (codes == code).any()]
    assert len(present) == 3
    assert [tuple(row) for row in found.pairs[["batch1", "batch2"]].to_numpy()] == [
        (run.batches[first], run.batches[second]) for first, second in pairwise(present)
    ]
    expected = [naive_mmd(z[codes == first], z[codes == second]) for first, second in pairwise(present)]
    np.testing.assert_allclose(found.pairs["mmd"], expected, atol=1e-5)
    assert found.per_minibatch == pytest.approx(sum(expected), abs=1e-5)
    assert found.per_cell == pytest.approx(found.per_minibatch / 1200, rel=1e-9)


def test_discrepancy_is_shuffled_and_seeded(run):
    ordered = run.rows()[np.argsort(run.data.categorical["batch"][run.rows()], kind="stable")]
    found = discrepancy(run, ordered)
    n_minibatches = -(-1200 // 128)
    assert found.pairs["minibatches"].tolist() == [n_minibatches] * 2
    assert found.pairs["skipped"].tolist() == [0, 0]
    assert found.per_cell == pytest.approx(found.per_minibatch * n_minibatches / 1200, rel=1e-9)
    again = discrepancy(run, ordered)
    pd.testing.assert_frame_equal(found.pairs, again.pairs)
    assert discrepancy(run, ordered, seed=1).per_minibatch != found.per_minibatch
    assert discrepancy(run, ordered, sample=True).per_minibatch != found.per_minibatch


@pytest.mark.parametrize("pairs", ["sequential", "all", "one_vs_rest"])
def test_fast_discrepancy_adds_up_to_that_of_training(pairs):
    run = example_run(model__mmd_mode="fast", model__mmd_pairs=pairs)
    found = discrepancy(run, batch_size=2000, seed=4)
    rows = run.rows()[np.random.default_rng([4, 17]).permutation(1200)]
    z, codes = torch.from_numpy(latent_mean(run, rows)), torch.from_numpy(run.data.categorical["batch"][rows])
    expected = float(mmd(z, codes, 4, mode="fast", pairs=pairs))
    assert found.per_minibatch == pytest.approx(expected, abs=1e-6)
    assert len(found.pairs) == {"sequential": 2, "all": 3, "one_vs_rest": 3}[pairs]


def test_nothing_to_compare_without_batches():
    with pytest.raises(QueryError, match="nothing to compare"):
        discrepancy(example_run(covariates__batch=None))


# ---------------------------------------------------------------------- draws of counts


def test_parameters_of_the_likelihood_against_numpy(run):
    rows = run.rows()[:80]
    reference = Reference(run, rows)
    shares, zero = reference.vae.decode(reference.mean, reference.codes)
    found = likelihood_parameters(run, rows)
    assert set(found) == {"mean", "dispersions", "dropout"}
    np.testing.assert_allclose(found["mean"], shares * reference.counts.sum(1, keepdims=True), rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(found["dispersions"], np.tile(reference.vae.theta, (80, 1)), rtol=1e-5)
    np.testing.assert_allclose(found["dropout"], 1 / (1 + np.exp(-zero)), rtol=2e-3, atol=1e-5)
    names = [run.features[4]]
    np.testing.assert_allclose(likelihood_parameters(run, rows, features=names)["mean"][:, 0], found["mean"][:, 4], rtol=1e-5)
    drawn = likelihood_parameters(run, rows, n_samples=3, seed=1)["mean"]
    np.testing.assert_array_equal(drawn, likelihood_parameters(run, rows, n_samples=3, seed=1)["mean"])
    assert not np.allclose(drawn, found["mean"])


@pytest.mark.parametrize(
    ("likelihood", "dispersion"),
    [("zinb", "gene"), ("nb", "gene-batch"), ("nb", "gene-cell"), ("poisson", "gene"), ("normal", "gene")],
)
def test_posterior_predictive_draws(likelihood, dispersion):
    run = example_run(model__gene_likelihood=likelihood, model__dispersion=dispersion)
    rows = run.rows()[:100]
    draws = posterior_predictive(run, rows, n_samples=30, seed=1)
    assert len(draws) == 30
    assert draws[0].shape == (100, 500)
    again = posterior_predictive(run, rows, n_samples=30, seed=1)
    assert all((one != two).nnz == 0 for one, two in zip(draws, again, strict=True))
    if likelihood != "normal":
        assert draws[0].data.min() >= 1
        assert np.array_equal(draws[0].data, np.rint(draws[0].data))
    found = likelihood_parameters(run, rows, n_samples=30, seed=2)
    keep = 1 - found["dropout"] if "dropout" in found else 1.0
    expected = (found["mean"] * keep).mean()
    spread = np.std([draw.mean() for draw in draws]) / np.sqrt(30)
    assert abs(np.mean([draw.mean() for draw in draws]) - expected) < 6 * spread + 0.01 * expected
    assert ("dispersions" in found) == (likelihood != "poisson")


def test_correlation_against_numpy(run, monkeypatch):
    rows, names = run.rows()[:60], list(run.features[:12])
    monkeypatch.setattr(sampling, "BLOCK", 200)  # several blocks of rows and columns
    kept = {}
    fill = sampling._fill
    monkeypatch.setattr(sampling, "_fill", lambda *a: (fill(*a), kept.update(draws=np.array(a[-1], dtype=np.float64)))[0])
    pearson = feature_correlation(run, rows, features=names, kind="pearson", n_samples=4, seed=3)
    assert kept["draws"].shape == (240, 12)
    np.testing.assert_allclose(pearson, np.corrcoef(kept["draws"], rowvar=False), atol=1e-9)
    spearman = feature_correlation(run, rows, features=names, n_samples=4, seed=3)
    np.testing.assert_allclose(spearman, np.corrcoef(rankdata(kept["draws"], axis=0), rowvar=False), atol=1e-9)
    assert list(spearman.index) == list(spearman.columns) == names
    pd.testing.assert_frame_equal(spearman, feature_correlation(run, rows, features=names, n_samples=4, seed=3))


def test_draws_that_are_correlated_have_the_mean_of_the_expression(run):
    rows = run.rows()[:40]
    kept = np.empty((40 * 200, 500), dtype=np.float32)
    sampling._fill(run, rows, slice(None), 200, 1000.0, None, run.generator(0), kept)
    expected = normalised_expression(run, rows, ExpressionQuestion(library_size=1000.0, n_samples=200, seed=1)).mean(0)
    top = np.argsort(-expected)[:20]
    np.testing.assert_allclose(kept.mean(0)[top], expected[top], rtol=0.2)


def test_correlation_over_batches_is_the_mean(run):
    rows, names = run.rows()[:50], run.features[:6]
    one, two = (run.batches[0], run.batches[3])
    several = feature_correlation(run, rows, features=names, transform_batch=[one, two], n_samples=40)
    each = [feature_correlation(run, rows, features=names, transform_batch=name, n_samples=40) for name in (one, two)]
    np.testing.assert_allclose(several, (each[0] + each[1]) / 2, atol=0.12)


def test_draws_larger_than_memory_go_to_a_file(run, monkeypatch):
    whole = feature_correlation(run, run.rows()[:50], features=run.features[:8], n_samples=3)
    monkeypatch.setattr(sampling, "MEMORY_SHARE", 1e-12)
    made = []
    room = sampling.room_for
    monkeypatch.setattr(sampling, "room_for", lambda shape, path: made.append(room(shape, path)) or made[-1])
    pd.testing.assert_frame_equal(whole, feature_correlation(run, run.rows()[:50], features=run.features[:8], n_samples=3))
    assert isinstance(made[0], np.memmap)


def test_correlations_that_cannot_be(run):
    with pytest.raises(QueryError, match="no correlation 'kendall'"):
        feature_correlation(run, kind="kendall")  # type: ignore[arg-type]
    with pytest.raises(QueryError, match="One cell cannot be correlated"):
        feature_correlation(run, run.rows()[:1], n_samples=1)
    with pytest.raises(QueryError, match="The normal likelihood"):
        feature_correlation(example_run(model__gene_likelihood="normal", model__dispersion="gene"))


def test_posteriors_are_those_of_the_file_order(run):
    rows = run.rows()[[30, 4, 900]]
    mean, _ = latent_distribution(run, rows)
    np.testing.assert_allclose(mean, latent_mean(run)[[30, 4, 900]], rtol=1e-3, atol=1e-5)


def test_the_poisson_likelihood_adds_no_noise_to_what_is_correlated():
    run = example_run(model__gene_likelihood="poisson", model__dispersion="gene")
    rows = run.rows()[:30]
    kept = np.empty((30, 500), dtype=np.float32)
    sampling._fill(run, rows, slice(None), 1, 1000.0, None, run.generator(6), kept)
    expected = normalised_expression(run, rows, ExpressionQuestion(library_size=1000.0, n_samples=1, seed=6))
    np.testing.assert_allclose(kept, expected, rtol=1e-5)


def test_a_linear_decoder_answers_everything():
    run = example_run(model__kind="ldvae")
    rows = run.rows()[:60]
    assert latent_mean(run, rows).shape == (60, 10)
    shares = normalised_expression(run, rows, ExpressionQuestion(transform_batch=run.batches))
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-4)
    assert set(cell_terms(run, rows)) == {"reconstruction", "kl_z", "kl_l", "elbo"}
    assert elbo(run, rows, n_samples=10) < marginal_ll(run, rows, n_samples=20).mean()
    assert set(likelihood_parameters(run, rows)) == {"mean", "dispersions"}
    assert np.isfinite(feature_correlation(run, rows, features=run.features[:5], n_samples=2)).all().all()
