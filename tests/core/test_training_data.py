"""Codes, splits, sources and the disk cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from toy import CPU, toy_spec, toy_study

from cellweave.core.errors import DataError
from cellweave.core.training.cache import cached_counts, open_cache, write_cache
from cellweave.core.training.data import Encoding, encode_column, library_statistics, prepare
from cellweave.core.training.preview import sample_cells
from cellweave.core.training.sources import DeviceSource, HostSource


def test_levels_are_sorted_and_missing_is_minus_one() -> None:
    codes, levels = encode_column(pd.Series(["b", None, "a", "b"]))
    assert levels == ("a", "b") and codes.tolist() == [1, -1, 0, 1]
    codes, levels = encode_column(pd.Series(pd.Categorical(["x", "y"], categories=["y", "unused", "x"])))
    assert levels == ("y", "x") and codes.tolist() == [1, 0]
    codes, levels = encode_column(pd.Series([10, 9, 10]))
    assert levels == ("9", "10") and codes.tolist() == [1, 0, 1]
    assert encode_column(pd.Series([True, False]))[1] == ("False", "True")


def test_the_split_follows_the_seed_and_holds_each_cell_once() -> None:
    first, again = prepare(toy_spec(), toy_study()), prepare(toy_spec(), toy_study())
    other = prepare(toy_spec(training__seed=1), toy_study())
    assert np.array_equal(first.train, again.train) and not np.array_equal(first.train, other.train)
    assert sorted([*first.train, *first.validation]) == list(range(301))
    assert (len(first.train), len(first.validation)) == (271, 30)


def test_cells_without_the_modality_and_tiny_batches_are_left_out_with_the_reason() -> None:
    study = toy_study()
    study.modalities["rna"].measured[:50] = False
    study.obs["batch"] = ["a"] * 300 + ["alone"]
    data = prepare(toy_spec(), study)
    assert data.usable.sum() == 250 and data.reason[0] == "RNA not measured" and data.reason[300] == "batch too small"
    assert not set(data.train) & set(data.reason) and not set(data.validation) & set(data.reason)


def test_a_missing_column_and_missing_values_are_said() -> None:
    with pytest.raises(DataError, match=r"no column 'lane'.*batch"):
        prepare(toy_spec(covariates__batch="lane"), toy_study())
    study = toy_study()
    study.obs.loc[study.obs.index[:7], "batch"] = None
    with pytest.raises(DataError, match=r"no value in 7 cells.*fill_missing"):
        prepare(toy_spec(), study)


def test_continuous_covariates_are_standardised_on_the_training_cells() -> None:
    study = toy_study()
    study.obs["age"] = np.linspace(20, 80, 301)
    data = prepare(toy_spec(covariates__continuous=("age",)), study)
    assert data.continuous is not None
    assert data.continuous[data.train].mean() == pytest.approx(0, abs=1e-6) and data.continuous[data.train].std() == pytest.approx(1, abs=1e-6)
    assert Encoding.from_json(data.encoding.to_json()) == data.encoding
    study.obs.iloc[3, study.obs.columns.get_loc("age")] = np.nan
    with pytest.raises(DataError, match=r"in 1 cell\."):
        prepare(toy_spec(covariates__continuous=("age",)), study)
    study.obs["age"] = 1.0
    with pytest.raises(DataError, match="same value"):
        prepare(toy_spec(covariates__continuous=("age",)), study)


def test_size_factors_must_be_positive() -> None:
    study = toy_study()
    study.obs["sf"] = 1.0
    assert prepare(toy_spec(covariates__size_factor="sf"), study).size_factor is not None
    study.obs.iloc[0, study.obs.columns.get_loc("sf")] = 0.0
    with pytest.raises(DataError, match="0 or less in 1 cell\\."):
        prepare(toy_spec(covariates__size_factor="sf"), study)


def test_library_statistics_follow_their_definition() -> None:
    counts = sparse.csr_matrix(np.array([[1, 2], [0, 0], [5, 5], [7, 0]]))
    mean, var = library_statistics(counts, np.array([0, 0, 1, 1]), 3, np.arange(4))
    assert mean == pytest.approx([np.log(3) / 2, (np.log(10) + np.log(7)) / 2, 0.0])
    assert var == pytest.approx([np.var([np.log(3), 0]), np.var([np.log(10), np.log(7)]), 1.0])


counts_strategy = st.integers(0, 2**32 - 1).map(
    lambda seed: sparse.random(
        17, 9, density=0.4, format="csr", random_state=seed % 2**31, data_rvs=lambda n: np.random.default_rng(seed).integers(1, 300, n)
    )
)


@settings(max_examples=25, deadline=None)
@given(counts=counts_strategy, rows=st.lists(st.integers(0, 16), min_size=1, max_size=20))
def test_all_sources_give_the_same_minibatch(tmp_path_factory: pytest.TempPathFactory, counts: sparse.csr_matrix, rows: list[int]) -> None:
    counts = counts.astype(np.int32)
    wanted = counts[rows].toarray()
    folder = tmp_path_factory.mktemp("cache")
    on_disk = cached_counts(counts, folder / "rna", lambda fraction: None)
    for source in (HostSource(counts, CPU), HostSource(on_disk, CPU), DeviceSource(counts, CPU)):
        batch = source.rows(np.array(rows))
        assert torch.equal(batch.dense, torch.from_numpy(wanted).float())
        assert torch.equal(batch.total.flatten().double(), torch.from_numpy(wanted.sum(1)).double())


def test_negative_whole_numbers_survive_on_the_device() -> None:
    for low in (-3, -200, -40_000):
        counts = sparse.csr_matrix(np.array([[low, 0, 2], [1, -1, 0]], dtype=np.float32))
        for source in (HostSource(counts, CPU), DeviceSource(counts, CPU)):
            assert torch.equal(source.rows(np.array([1, 0])).dense, torch.from_numpy(counts.toarray()[[1, 0]]))


def test_the_cache_widens_when_a_later_block_needs_it(tmp_path: Path) -> None:
    blocks = [sparse.csr_matrix(np.array(rows)) for rows in ([[1, 0], [2, 3]], [[0, 70_000]], [[5, 0]], [[0.5, 0]])]
    write_cache(blocks[:3], (4, 2), tmp_path / "whole", lambda fraction: None)
    assert open_cache(tmp_path / "whole").toarray().tolist() == [[1, 0], [2, 3], [0, 70_000], [5, 0]]
    write_cache(blocks, (5, 2), tmp_path / "real", lambda fraction: None)
    assert open_cache(tmp_path / "real").toarray().tolist() == [[1, 0], [2, 3], [0, 70_000], [5, 0], [0.5, 0]]


def test_an_empty_matrix_can_be_cached(tmp_path: Path) -> None:
    empty = sparse.csr_matrix((3, 4), dtype=np.int32)
    assert cached_counts(empty, tmp_path / "rna", lambda fraction: None).toarray().sum() == 0


def test_the_preview_sample_holds_every_batch() -> None:
    study = toy_study()
    study.obs["batch"] = ["a"] * 296 + ["rare"] * 5
    data = prepare(toy_spec(), study)
    rows = sample_cells(data, 100, seed=0)
    assert len(rows) <= 105 and np.array_equal(rows, np.unique(rows)) and (rows >= 296).sum() >= 1
    assert np.array_equal(sample_cells(data, 1000, seed=0), np.arange(301))
