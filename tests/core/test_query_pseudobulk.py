"""Sums over samples, and the tests between them."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
from query_runs import kang_run

from cellweave.core.query.pseudobulk import pseudobulk, pseudobulk_differential
from cellweave.core.query.trained_run import QueryError


@pytest.fixture(scope="module")
def run(data_folder):
    return kang_run(data_folder)


@pytest.fixture
def needs_pydeseq2():
    pytest.importorskip("pydeseq2")


def test_sums_against_pandas(run):
    found = pseudobulk(run, "sample", ["batch", "donor"])
    obs = run.study.obs.iloc[run.rows()]
    counts = pd.DataFrame(run.data.modalities[0].counts[run.rows()].toarray(), columns=run.features)
    expected = counts.groupby(obs["sample"].astype(str).to_numpy()).sum()
    pd.testing.assert_frame_equal(found.counts, expected.astype(np.int64), check_names=False)
    assert found.samples["cells"].to_dict() == obs["sample"].astype(str).value_counts().to_dict()
    assert (found.samples["batch"] == [name[:4] for name in found.samples.index]).all()


def test_several_columns_make_a_sample(run):
    found = pseudobulk(run, ["batch", "donor"])
    np.testing.assert_array_equal(np.sort(found.counts.sum(axis=1)), np.sort(pseudobulk(run, "sample").counts.sum(axis=1)))


def test_only_chosen_cells_and_large_samples_count(run):
    of_type = (run.study.obs["cell_type"] == run.study.obs["cell_type"].cat.categories[0]).to_numpy()
    found = pseudobulk(run, "sample", cells=of_type)
    assert found.samples["cells"].sum() == of_type.sum()
    smallest = int(found.samples["cells"].min())
    assert len(pseudobulk(run, "sample", cells=of_type, min_cells=smallest + 1).samples) < len(found.samples)


def test_known_genes_are_found(run, needs_pydeseq2):
    table = pseudobulk_differential(run, "batch", "stim", "ctrl", sample="sample", covariates=["donor"], min_counts=500)
    known = [gene for gene in ("ISG15", "IFI6", "IFIT1", "MX1", "LY6E") if gene in table.index]
    assert len(known) >= 4
    assert (table.loc[known, "lfc"] > 2).all()
    assert table.loc[known, "is_de_fdr_0.05"].all()
    assert table["p_value"].dropna().is_monotonic_increasing
    back = pseudobulk_differential(run, "batch", "ctrl", "stim", sample="sample", covariates=["donor"], min_counts=500).loc[known]
    np.testing.assert_allclose(back["lfc"], -table.loc[known, "lfc"], rtol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "how", "words"),
    [
        (("batch", "stim", "ctrl"), {"sample": "nosuch"}, "no column 'nosuch'"),
        (("cell_type", "B cells", "NK cells"), {"sample": "sample"}, "'cell_type' is not the same in all cells of the sample"),
        (("batch", "stim", "stim"), {"sample": "sample"}, "compared with itself"),
        (("batch", "stim", "ctrl"), {"sample": "batch"}, "'stim' has 1 sample of 10 cells or more"),
        (("batch", "stim", "nosuch"), {"sample": "sample"}, "'nosuch' has 0 samples"),
        (("batch", "stim", "ctrl"), {"sample": "sample", "min_cells": 10_000}, "No sample has 10000 cells"),
        (("batch", "stim", "ctrl"), {"sample": "sample", "covariates": ["sample"]}, "cannot be told from|too few for a model"),
        (("batch", "stim", "ctrl"), {"sample": "sample", "min_counts": 10**9}, "Too few features"),
    ],
)
def test_refusals(run, needs_pydeseq2, arguments, how, words):
    with pytest.raises(QueryError, match=words):
        pseudobulk_differential(run, *arguments, **how)


def test_it_says_how_to_install_what_is_missing(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydeseq2", None)
    for name in [name for name in sys.modules if name.startswith("pydeseq2.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(QueryError, match=r"PyDESeq2, which is not installed. Install it with: pip install 'cellweave\[pseudobulk\]'"):
        pseudobulk_differential(run, "batch", "stim", "ctrl", sample="sample")


def test_in_a_process_of_its_own_it_is_the_same_and_ends_soon_where_it_is_cancelled(run, needs_pydeseq2):
    import time

    from cellweave.core.analysis import deseq
    from cellweave.core.errors import Cancelled

    arguments, how = ("batch", "stim", "ctrl"), {"sample": "sample", "min_counts": 500}
    here = pseudobulk_differential(run, *arguments, **how)
    apart = pseudobulk_differential(run.watched(cancelled=lambda: False), *arguments, **how)
    pd.testing.assert_frame_equal(here, apart, check_exact=True)
    began, asked = time.monotonic(), []

    def cancelled():
        asked.append(time.monotonic())
        return asked[-1] - began > 2.0

    # A fit of minutes, during which PyDESeq2 asks nobody.
    counts = np.random.default_rng(0).poisson(50, (60, 40_000))
    table = pd.DataFrame({"group": ["first", "second"] * 30})
    with pytest.raises(Cancelled):
        deseq.fit_apart(counts, table, "~group", 0.05, cancelled)
    assert time.monotonic() - began < 15, "it ended though the fit was far from over"


def test_the_names_of_samples_do_not_decide(run, needs_pydeseq2):
    """The same sums under names that sort otherwise: the same table to the bit."""
    first = pseudobulk_differential(run, "batch", "stim", "ctrl", sample=("donor", "batch"), min_counts=500)
    second = pseudobulk_differential(run, "batch", "stim", "ctrl", sample=("batch", "donor"), min_counts=500)
    pd.testing.assert_frame_equal(first, second, check_exact=True)
