"""Scanning for raw counts: every stored value is looked at, and the first offender is where it is said to be."""

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from cellweave.core.study import counts as counts_module
from cellweave.core.study.counts import find_counts, order_of_places, scan_matrix
from cellweave.core.study.readers.base import StoredDense, Watch, stored, tidy

VALUES = st.sampled_from([0.0, 0.0, 0.0, 1.0, 2.0, 7.0, 250.0, 0.5, -1.0, -2.5, np.nan, np.inf, -np.inf])
MATRICES = hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9), elements=VALUES)
FORMS = {
    "csr_matrix": sparse.csr_matrix,
    "csr_array": sparse.csr_array,
    "csc_matrix": sparse.csc_matrix,
    "coo": sparse.coo_matrix,
    "dense": np.asarray,
}


def expected(matrix):
    """Count the offenders the slow way, one kind for each value."""
    not_finite = ~np.isfinite(matrix)
    negative = ~not_finite & (matrix < 0)
    with np.errstate(invalid="ignore"):
        broken = ~not_finite & ~negative & (matrix != np.floor(matrix))
    return {"not_finite": not_finite, "negative": negative, "non_integer": broken}


@pytest.mark.parametrize("form", FORMS)
@given(matrix=MATRICES, block=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_finds_exactly_the_values_that_counts_cannot_have(form, matrix, block):
    names = [f"cell{row}" for row in range(matrix.shape[0])], [f"gene{column}" for column in range(matrix.shape[1])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counts_module, "BLOCK_VALUES", block)
        report = scan_matrix(FORMS[form](matrix), "X", *names)
    masks = expected(matrix)
    found = {"not_finite": report.n_not_finite, "negative": report.n_negative, "non_integer": report.n_non_integer}
    assert found == {kind: int(mask.sum()) for kind, mask in masks.items()}
    assert report.is_raw == (not any(mask.any() for mask in masks.values()))
    assert {one.kind for one in report.first} == {kind for kind, mask in masks.items() if mask.any()}
    for one in report.first:
        assert masks[one.kind][one.row, one.column]
        assert one.cell == f"cell{one.row}"
        assert one.feature == f"gene{one.column}"
        assert np.array_equal(one.value, matrix[one.row, one.column], equal_nan=True)
        assert one.cell in report.sentence()
    stored_values = matrix[matrix != 0] if form != "dense" else matrix
    finite = stored_values[np.isfinite(stored_values)]
    with_zero = [0.0] if (~np.isfinite(matrix)).any() else []  # what is not finite is set aside as a zero
    assert report.maximum == max([*finite.ravel(), *with_zero], default=0.0)


@given(matrix=MATRICES)
@settings(max_examples=60, deadline=None)
def test_reading_keeps_the_values_and_says_what_scanning_says(matrix):
    csr = sparse.csr_matrix(matrix)
    for source in (stored("X", csr), stored("X", sparse.csc_matrix(matrix)), StoredDense("X", matrix), StoredDense("X", matrix.T, transposed=True)):
        assert source.shape == matrix.shape
        report, kept = source.read(Watch(), keep=True)
        assert np.array_equal(kept.toarray(), matrix.astype(np.float32), equal_nan=True)
        assert kept.has_sorted_indices
        assert (kept.data != 0).all()
        assert report.is_raw == scan_matrix(csr).is_raw
        for one in report.first:
            assert np.array_equal(matrix[one.row, one.column], one.value, equal_nan=True)
        again, dropped = source.read(Watch())
        assert (dropped is None) == (not again.is_raw)


def test_integers_are_never_taken_for_broken_and_negative_ones_are_found():
    assert scan_matrix(np.array([[0, 3], [65535, 1]], dtype=np.uint16)).is_raw
    report = scan_matrix(sparse.csr_matrix(np.array([[0, 3], [-4, 1]], dtype=np.int32)))
    assert (report.n_negative, report.first[0].row, report.first[0].column, report.first[0].value) == (1, 1, 0, -4.0)
    with pytest.raises(TypeError, match="not numbers"):
        scan_matrix(np.array([["a", "b"]]))


def test_counts_too_large_for_float32_are_kept_exactly():
    exact = 2**24 + 1
    _, kept = stored("X", sparse.csr_matrix(np.array([[exact, 0, 3]], dtype=np.int64))).read(Watch())
    assert kept.dtype == np.float64
    assert kept[0, 0] == exact
    _, small = stored("X", sparse.csr_matrix(np.array([[2**24, 0, 3]], dtype=np.int64))).read(Watch())
    assert small.dtype == np.float32
    assert small[0, 0] == 2**24


def test_backed_matrices_are_scanned_on_disk(tmp_path):
    counts = sparse.random(30, 8, 0.3, format="csr", random_state=0, data_rvs=lambda n: np.arange(1, n + 1))
    broken = counts.copy()
    broken.data[20] = 0.25
    for form in (sparse.csr_matrix, sparse.csc_matrix):
        anndata.AnnData(form(broken)).write_h5ad(tmp_path / "a.h5ad")
        backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
        report = scan_matrix(backed.X)
        backed.file.close()
        assert report.n_non_integer == 1
        assert broken[report.first[0].row, report.first[0].column] == 0.25
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["X"] = broken.toarray()
        assert scan_matrix(file["X"]).n_non_integer == 1


def test_places_are_looked_at_in_a_sensible_order():
    assert order_of_places(["layers/logcounts", "layers/scaled", "layers/counts", "raw/X", "X"]) == [
        "X", "raw/X", "layers/counts", "layers/logcounts", "layers/scaled",
    ]  # fmt: skip


def test_the_first_place_with_counts_is_taken_and_binary_copies_are_passed_over():
    counts = np.array([[0, 3], [2, 1]], dtype=np.float32)
    adata = anndata.AnnData(np.log1p(counts), obs=pd.DataFrame(index=["a", "b"]), var=pd.DataFrame(index=["g", "h"]))
    assert find_counts(adata).best is None
    adata.layers["normalised"] = counts / 3
    adata.layers["counts"] = sparse.csr_array(counts)
    search = find_counts(adata)
    assert search.best == "layers/counts"
    assert [report.location for report in search.reports] == ["X", "layers/counts"]
    binary = {"X": (counts > 0).astype(float), "layers/counts": counts}
    assert find_counts(binary).best == "layers/counts"
    assert find_counts({"X": (counts > 0).astype(float)}).best == "X"
    assert find_counts({"X": np.zeros((2, 2))}).best is None


def test_tidy_sums_duplicates_and_sorts():
    messy = sparse.csr_matrix((np.array([1.0, 2.0, 0.0, 4.0]), np.array([2, 2, 0, 1]), np.array([0, 3, 4])), shape=(2, 3))
    clean = tidy(messy)
    assert clean.toarray().tolist() == [[0, 0, 3], [0, 4, 0]]
    assert clean.nnz == 2
