"""Latents and denoised expression against a forward pass in numpy, and their files."""

from __future__ import annotations

import anndata
import h5py
import numpy as np
import pytest
from query_numpy import NumpyVae
from query_runs import example_run, kang_run

from cellweave.core.export.annotate import ROWS
from cellweave.core.query import expression as module
from cellweave.core.query.expression import ExpressionQuestion, normalised_expression
from cellweave.core.query.expression_files import add_expression_layer, write_expression
from cellweave.core.query.latent import latent_distribution, latent_library, latent_mean, latent_sample
from cellweave.core.query.trained_run import QueryError


@pytest.fixture(scope="module")
def run():
    return example_run()


def dense(run, rows):
    return run.data.modalities[0].counts[rows].toarray().astype(np.float64)


# ---------------------------------------------------------------------- latents


def test_distribution_against_numpy(run):
    mean, var = NumpyVae(run).encode(dense(run, run.rows()))
    found = latent_distribution(run)
    np.testing.assert_allclose(found[0], mean, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found[1], var, rtol=1e-3)
    np.testing.assert_array_equal(found[0], latent_mean(run))


def test_samples_are_seeded_and_have_the_posterior_moments(run):
    rows = run.rows()[:40]
    mean, var = latent_distribution(run, rows)
    draws = latent_sample(run, rows, n_samples=2000, seed=3)
    assert draws.shape == (2000, 40, mean.shape[1])
    np.testing.assert_allclose(draws.mean(0), mean, atol=5 * np.sqrt(var.max() / 2000))
    np.testing.assert_allclose(draws.var(0), var, rtol=0.25)
    one = latent_sample(run, rows, seed=3)
    assert one.shape == mean.shape
    np.testing.assert_array_equal(one, latent_sample(run, rows, seed=3))
    assert not np.array_equal(one, latent_sample(run, rows, seed=4))
    with pytest.raises(QueryError, match="0 draws"):
        latent_sample(run, rows, n_samples=0)


def test_logistic_normal_latents_are_shares():
    run = example_run(model__latent_distribution="ln")
    rows = run.rows()[:60]
    mean = latent_mean(run, rows)
    np.testing.assert_allclose(mean.sum(1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(mean, latent_mean(run, rows))
    draws = latent_sample(run, rows, n_samples=4000, seed=0)
    np.testing.assert_allclose(draws.sum(2), 1.0, rtol=1e-5)
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.02)


def test_a_library_size_that_is_observed_is_not_inferred(run):
    with pytest.raises(QueryError, match="infers no library size: it is the total count"):
        latent_library(run)


def test_a_learned_library_size():
    run = example_run(model__use_observed_lib_size=False)
    rows = run.rows()[:300]
    mean, var = (one[:, 0] for one in NumpyVae(run).encode(dense(run, rows), "library_encoder"))
    np.testing.assert_allclose(latent_library(run, rows), np.exp(mean + var / 2), rtol=1e-3)
    draw = latent_library(run, rows, sample=True, seed=1)
    np.testing.assert_array_equal(draw, latent_library(run, rows, sample=True, seed=1))
    z = (np.log(draw) - mean) / np.sqrt(var)
    assert abs(z.mean()) < 0.25
    assert 0.8 < z.std() < 1.2


# ---------------------------------------------------------------------- expression


def test_expression_against_numpy(run):
    rows, vae = run.rows()[::7], NumpyVae(run)
    counts, codes = dense(run, rows), run.data.categorical["batch"][rows]
    mean, _ = vae.encode(counts)
    shares = vae.decode(mean, codes)[0]
    found = normalised_expression(run, rows)
    np.testing.assert_allclose(found, shares, rtol=2e-3, atol=1e-7)
    np.testing.assert_array_equal(found, normalised_expression(run, rows))
    scaled = normalised_expression(run, rows, ExpressionQuestion(library_size=1e4))
    np.testing.assert_allclose(scaled.sum(1), 1e4, rtol=1e-4)
    latent = normalised_expression(run, rows, ExpressionQuestion(library_size="latent"))
    np.testing.assert_allclose(latent, shares * counts.sum(1, keepdims=True), rtol=2e-3, atol=1e-4)


def test_decoding_as_other_batches_against_numpy(run):
    rows, vae = run.rows()[::9], NumpyVae(run)
    mean, _ = vae.encode(dense(run, rows))
    by_batch = np.stack([vae.decode(mean, np.full(len(rows), code))[0] for code in range(4)])
    one = normalised_expression(run, rows, ExpressionQuestion(transform_batch=run.batches[2]))
    np.testing.assert_allclose(one, by_batch[2], rtol=2e-3, atol=1e-7)
    two = normalised_expression(run, rows, ExpressionQuestion(transform_batch=[run.batches[0], run.batches[3]]))
    np.testing.assert_allclose(two, by_batch[[0, 3]].mean(0), rtol=2e-3, atol=1e-7)
    every = normalised_expression(run, rows, ExpressionQuestion(transform_batch=run.batches))
    np.testing.assert_allclose(every, by_batch.mean(0), rtol=2e-3, atol=1e-7)


def test_features_are_columns_of_the_whole(run):
    rows, names = run.rows()[:20], [run.features[9], run.features[2]]
    whole = normalised_expression(run, rows)
    np.testing.assert_array_equal(normalised_expression(run, rows, ExpressionQuestion(features=names)), whole[:, [9, 2]])


def test_draws_of_expression(run):
    rows = run.rows()[:30]
    question = ExpressionQuestion(n_samples=6, seed=2, features=run.features[:40])
    each = normalised_expression(run, rows, question, each_sample=True)
    assert each.shape == (6, 30, 40)
    np.testing.assert_allclose(normalised_expression(run, rows, question), each.mean(0), rtol=1e-4)
    assert not np.allclose(each[0], each[1])
    with pytest.raises(QueryError, match="but not how many"):
        normalised_expression(run, rows, each_sample=True)


def test_correction_moves_the_groups_together_and_keeps_what_differs(data_folder):
    run = kang_run(data_folder)
    own = normalised_expression(run)
    both = normalised_expression(run, None, ExpressionQuestion(transform_batch=run.batches))
    stim = run.data.categorical["batch"][run.rows()] == run.batches.index("stim")
    assert not np.allclose(own, both)

    def distance(values):
        logs = np.log(values.astype(np.float64))
        return np.abs(logs[stim].mean(0) - logs[~stim].mean(0)).mean()

    assert distance(both) < 0.7 * distance(own)


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (ExpressionQuestion(features=["nosuch"]), "does not know 1 of the 1"),
        (ExpressionQuestion(transform_batch="nosuch"), "no batch 'nosuch'"),
        (ExpressionQuestion(library_size=0.0), "library size of 0"),
        (ExpressionQuestion(library_size="median"), "'median' is not known"),  # type: ignore[arg-type]
        (ExpressionQuestion(n_samples=0), "0 draws"),
    ],
)
def test_questions_that_mean_nothing(run, question, words):
    with pytest.raises(QueryError, match=words):
        normalised_expression(run, None, question)


def test_an_answer_larger_than_the_memory_is_refused_before_it_is_computed(run, monkeypatch):
    monkeypatch.setattr(module, "MEMORY_SHARE", 1e-9)
    with pytest.raises(QueryError, match="GB of memory"):
        normalised_expression(run)


def test_without_a_batch_there_is_none_to_decode_as():
    run = example_run(covariates__batch=None)
    assert run.batches == ()
    with pytest.raises(QueryError, match="trained without a batch"):
        normalised_expression(run, None, ExpressionQuestion(transform_batch="p1_0"))


# ---------------------------------------------------------------------- files


def test_h5ad_holds_what_the_array_holds(run, tmp_path):
    question = ExpressionQuestion(transform_batch=run.batches, library_size=1e4, features=run.features[:50])
    adata = anndata.read_h5ad(write_expression(run, tmp_path / "e.h5ad", None, question))
    np.testing.assert_array_equal(adata.X, normalised_expression(run, None, question))
    assert list(adata.obs_names) == list(run.cell_names[run.rows()])
    assert list(adata.var_names) == list(run.features[:50])
    assert list(adata.obs["batch"].astype(str)) == list(run.study.obs["batch"].iloc[run.rows()].astype(str))
    assert adata.uns["cellweave_expression"]["transform_batch"] == ", ".join(run.batches)


def test_h5_is_written_in_chunks_of_few_rows(run, tmp_path):
    path = write_expression(run, tmp_path / "e.h5", run.rows()[:200])
    with h5py.File(path) as file:
        assert file["X"].shape == (200, 500)
        assert file["X"].chunks[0] <= 200
        assert file["features"].asstr()[0] == run.features[0]
        np.testing.assert_array_equal(file["X"][:], normalised_expression(run, run.rows()[:200]))


def test_never_more_than_a_chunk_is_in_memory(run, tmp_path, monkeypatch):
    """The writer works where the whole array would be refused."""
    monkeypatch.setattr(module, "MEMORY_SHARE", 1e-9)
    assert write_expression(run, tmp_path / "e.h5").is_file()


def test_a_layer_of_an_existing_file(run, tmp_path):
    rows = run.rows()
    source = anndata.AnnData(
        X=run.data.modalities[0].counts[rows[::-1]][:, 100:],
        obs=run.study.obs.iloc[rows[::-1]][["batch"]].copy(), var=run.data.modalities[0].var.iloc[100:][[]].copy(),
    )  # fmt: skip
    source = anndata.concat([source, anndata.AnnData(X=np.ones((2, 400)), obs=source.obs.iloc[:2].set_axis(["x", "y"]), var=source.var)])
    source.write_h5ad(tmp_path / "in.h5ad")
    name = add_expression_layer(run, tmp_path / "in.h5ad", tmp_path / "out.h5ad")
    out = anndata.read_h5ad(tmp_path / "out.h5ad")
    found = out.layers[name].toarray()
    assert len(rows) < ROWS
    np.testing.assert_array_equal(found[: len(rows)], normalised_expression(run, rows[::-1])[:, 100:])
    assert not found[len(rows) :].any()
    assert out.obs["cellweave_denoised"].tolist() == [True] * len(rows) + [False] * 2
    assert out.var["cellweave_denoised"].all()
    np.testing.assert_array_equal(out.X.toarray() if hasattr(out.X, "toarray") else out.X, np.asarray(source.X.todense()))


def test_a_layer_of_a_file_with_other_cells_or_no_file(run, tmp_path):
    anndata.AnnData(X=np.ones((3, 2))).write_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(QueryError, match="holds none of the run's features"):
        add_expression_layer(run, tmp_path / "other.h5ad", tmp_path / "out.h5ad")
    assert not (tmp_path / "out.h5ad").exists()
    with pytest.raises(QueryError, match="There is no file"):
        add_expression_layer(run, tmp_path / "absent.h5ad", tmp_path / "out.h5ad")


def test_a_file_of_another_kind_is_refused(run, tmp_path):
    with pytest.raises(QueryError, match=r"neither in .h5ad nor in .h5"):
        write_expression(run, tmp_path / "e.txt")
