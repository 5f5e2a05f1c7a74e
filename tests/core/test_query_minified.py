"""Minified data: the same answers without counts or encoder, and a refusal where there can be none."""

from __future__ import annotations

import shutil
from functools import partial

import anndata
import numpy as np
import pandas as pd
import pytest
from query_runs import example_folder, example_run

from cellweave.core.errors import DataError
from cellweave.core.query.differential import DifferentialOptions, differential_by_column
from cellweave.core.query.evaluate import cell_terms, discrepancy, elbo, marginal_ll, reconstruction_error
from cellweave.core.query.expression import ExpressionQuestion, normalised_expression
from cellweave.core.query.latent import latent_distribution, latent_library, latent_mean, latent_sample
from cellweave.core.query.minified import open_minified, write_minified
from cellweave.core.query.pseudobulk import pseudobulk
from cellweave.core.query.sampling import likelihood_parameters, posterior_predictive
from cellweave.core.query.trained_run import QueryError


@pytest.fixture(scope="module")
def run():
    return example_run()


@pytest.fixture(scope="module", params=[False, True], ids=["without counts", "with counts"])
def minified(request, run, tmp_path_factory):
    file = write_minified(run, tmp_path_factory.mktemp("minified") / "m.h5ad", counts=request.param)
    return file, open_minified(run.path, file), request.param


def test_what_the_file_holds(minified, run):
    file, _, with_counts = minified
    adata = anndata.read_h5ad(file)
    rows = run.rows()
    assert adata.shape == (1200, 500)
    assert adata.X.nnz == (run.data.modalities[0].counts[rows].nnz if with_counts else 0)
    mean, var = latent_distribution(run)
    np.testing.assert_array_equal(adata.obsm["X_latent_qzm"], mean)
    np.testing.assert_array_equal(adata.obsm["X_latent_qzv"], var)
    np.testing.assert_array_equal(adata.obs["observed_library_size"], np.asarray(run.data.modalities[0].counts[rows].sum(1)).ravel())
    assert list(adata.obs_names) == list(run.cell_names[rows])
    assert adata.uns["cellweave_minified"]["kind"].endswith("with_counts") == with_counts


def test_the_answers_are_the_same(minified, run):
    _, small, _ = minified
    np.testing.assert_allclose(latent_mean(small), latent_mean(run), rtol=1e-6)
    np.testing.assert_allclose(latent_sample(small, seed=2), latent_sample(run, seed=2), rtol=1e-5, atol=1e-6)
    for question in (ExpressionQuestion(), ExpressionQuestion(transform_batch=run.batches, library_size="latent", n_samples=2)):
        np.testing.assert_allclose(normalised_expression(small, None, question), normalised_expression(run, None, question), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(likelihood_parameters(small)["mean"], likelihood_parameters(run)["mean"], rtol=1e-4, atol=1e-5)
    one, two = posterior_predictive(small, seed=1)[0], posterior_predictive(run, seed=1)[0]
    assert abs(one - two).sum() <= 1e-3 * two.sum()
    pd.testing.assert_frame_equal(discrepancy(small).pairs, discrepancy(run).pairs, rtol=1e-4)


def test_differential_expression(minified, run):
    _, small, with_counts = minified
    options = DifferentialOptions(pseudocount=1e-5, n_samples=300, all_stats=False)
    pd.testing.assert_frame_equal(
        differential_by_column(small, "celltype", options=options), differential_by_column(run, "celltype", options=options), rtol=1e-3, atol=1e-4
    )
    if not with_counts:
        with pytest.raises(QueryError, match=r"statistics of raw counts .* needs the counts"):
            differential_by_column(small, "celltype")
        with pytest.raises(QueryError, match=r"pseudocount .* needs the counts"):
            differential_by_column(small, "celltype", options=DifferentialOptions(all_stats=False))


def test_questions_about_counts(minified, run):
    _, small, with_counts = minified
    for ask in (cell_terms, elbo, reconstruction_error, partial(marginal_ll, n_samples=3)):
        if with_counts:
            np.testing.assert_allclose(ask(small, small.rows()[:30]), ask(run, run.rows()[:30]), rtol=1e-5)
        else:
            with pytest.raises(QueryError, match="needs the counts, and these minified data were written without them"):
                ask(small)
    if not with_counts:
        with pytest.raises(QueryError, match="Summing counts over samples needs the counts"):
            pseudobulk(small, "batch")


def test_it_can_be_minified_again_but_gains_no_counts(minified, tmp_path, run):
    _, small, with_counts = minified
    again = open_minified(run.path, write_minified(small, tmp_path / "again.h5ad"))
    np.testing.assert_allclose(latent_mean(again), latent_mean(small))
    np.testing.assert_array_equal(again.cached.library, small.cached.library)
    if not with_counts:
        with pytest.raises(QueryError, match="Keeping the counts needs the counts"):
            write_minified(small, tmp_path / "third.h5ad", counts=True)


def test_a_library_size_that_is_inferred_cannot_be_kept(tmp_path):
    run = example_run(model__use_observed_lib_size=False)
    with pytest.raises(QueryError, match="infers the library size from the counts, so its data cannot be minified"):
        write_minified(run, tmp_path / "m.h5ad")
    with pytest.raises(QueryError, match="infers no library size"):
        latent_library(example_run())


def test_files_that_do_not_fit(minified, run, tmp_path):
    file, _, _ = minified
    other = example_folder(model__latent_distribution="ln")
    with pytest.raises(DataError, match="was minified with another model"):
        open_minified(other, file)
    anndata.AnnData(X=np.ones((3, 2))).write_h5ad(tmp_path / "plain.h5ad")
    with pytest.raises(DataError, match="holds no minified data"):
        open_minified(run.path, tmp_path / "plain.h5ad")
    (tmp_path / "cut.h5ad").write_bytes(file.read_bytes()[:2000])
    with pytest.raises(DataError, match="cannot be read as an h5ad"):
        open_minified(run.path, tmp_path / "cut.h5ad")
    with pytest.raises(DataError, match="There is no file"):
        open_minified(run.path, tmp_path / "absent.h5ad")
    with pytest.raises(QueryError, match=r"does not end in .h5ad"):
        write_minified(run, tmp_path / "m.h5")


def test_the_data_of_the_run_need_not_be_there(minified, run, tmp_path):
    file, small, _ = minified
    copy = shutil.copytree(run.path, tmp_path / "copy")
    spec = copy / "spec.toml"
    spec.write_text(spec.read_text().replace("pbmc_mosaic.h5mu", "gone.h5mu"))
    np.testing.assert_array_equal(latent_mean(open_minified(copy, file)), latent_mean(small))


def test_columns_of_every_kind_survive(run, tmp_path):
    from dataclasses import replace

    obs = run.study.obs.assign(
        text="a", number=1.5, flag=True, mixed=[1 if i % 2 else "one" for i in range(run.n_cells)], gaps=[None if i % 3 else "x" for i in range(run.n_cells)]
    )
    changed = replace(run, study=replace(run.study, obs=obs))
    adata = anndata.read_h5ad(write_minified(changed, tmp_path / "m.h5ad"))
    assert set(adata.obs["mixed"].astype(str)) == {"1", "one"}
    assert adata.obs["gaps"].isna().sum() == obs["gaps"].iloc[run.rows()].isna().sum()
    assert adata.obs["flag"].all()
    assert (adata.obs["number"] == 1.5).all()
