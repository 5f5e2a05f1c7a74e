import contextlib

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from cellweave.core.nn.compiled_call import log1p_rows, without_compiled
from cellweave.core.nn.counts import CountBatch


def _matrix(seed=0, shape=(7, 11), density=0.3):
    rng = np.random.default_rng(seed)
    return sp.csr_matrix(rng.poisson(3, shape) * (rng.random(shape) < density))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64, np.float32, np.float64])
def test_a_csr_slice_gives_its_dense_matrix_totals_and_logarithm(dtype):
    csr = _matrix()
    csr.data = csr.data.astype(dtype)
    batch = CountBatch.from_csr(csr.indptr, csr.indices, csr.data, csr.shape[1])
    expected = csr.toarray().astype(np.float32)
    assert batch.integer
    assert batch.shape == csr.shape
    assert batch.max_count == expected.max()
    assert batch.rows.dtype == batch.cols.dtype == torch.int64
    np.testing.assert_array_equal(batch.dense.numpy(), expected)
    np.testing.assert_array_equal(batch.total.numpy(), expected.sum(1))
    np.testing.assert_allclose(batch.log1p().numpy(), np.log1p(expected), rtol=1e-6)
    assert batch.dense is batch.dense


@pytest.mark.parametrize("compiled", [True, False])
def test_the_logarithm_and_totals_are_the_same_compiled_or_not(compiled):
    csr = sp.vstack([_matrix(6, (9, 200)), sp.csr_matrix((2, 200), dtype=np.int64)]).tocsr()
    with contextlib.nullcontext() if compiled else without_compiled():
        batch = CountBatch.from_csr(csr.indptr, csr.indices, csr.data, 200)
        assert (log1p_rows(batch) is not None) == compiled
        np.testing.assert_allclose(batch.log1p().numpy(), np.log1p(csr.toarray()), rtol=2e-7)
        np.testing.assert_array_equal(batch.total.numpy(), np.asarray(csr.sum(1)).ravel())


def test_tensors_and_arrays_give_the_same_batch():
    csr = _matrix(1)
    a = CountBatch.from_csr(csr.indptr, csr.indices, csr.data, 11)
    tensors = [torch.as_tensor(array) for array in (csr.indptr, csr.indices, csr.data)]
    b = CountBatch.from_csr(*tensors, 11, "cpu")
    for name in ("rows", "cols", "values"):
        assert torch.equal(getattr(a, name), getattr(b, name))


def test_read_only_arrays_are_taken_without_a_warning(recwarn):
    csr = _matrix(2)
    for array in (csr.indptr, csr.indices, csr.data):
        array.flags.writeable = False
    batch = CountBatch.from_csr(csr.indptr, csr.indices, csr.data, 11)
    np.testing.assert_array_equal(batch.dense.numpy(), csr.toarray())
    assert not recwarn.list


def test_real_values_are_not_called_integer():
    csr = _matrix(3).astype(np.float32)
    csr.data = csr.data + 0.25
    batch = CountBatch.from_csr(csr.indptr, csr.indices, csr.data, 11)
    assert not batch.integer
    assert batch.max_count == np.ceil(csr.data.max())
    np.testing.assert_array_equal(batch.dense.numpy(), csr.toarray())


def test_empty_rows_and_an_empty_batch():
    csr = sp.csr_matrix((4, 5), dtype=np.int64)
    batch = CountBatch.from_csr(csr.indptr, csr.indices, csr.data, 5)
    assert batch.nnz == batch.max_count == 0
    assert torch.equal(batch.dense, torch.zeros(4, 5))
    assert torch.equal(batch.total, torch.zeros(4))


def test_padding_with_stored_zeros_changes_nothing():
    csr = _matrix(4)
    padded = CountBatch(
        torch.cat([torch.zeros(3, dtype=torch.int64), torch.as_tensor(np.repeat(np.arange(7), np.diff(csr.indptr)))]),
        torch.cat([torch.zeros(3, dtype=torch.int64), torch.as_tensor(csr.indices).long()]),
        torch.cat([torch.zeros(3), torch.as_tensor(csr.data).float()]),
        (7, 11), integer=True,
    )
    np.testing.assert_array_equal(padded.dense.numpy(), csr.toarray())


def test_gather_scatter_and_sums_agree_with_the_dense_matrix():
    csr = _matrix(5)
    batch = CountBatch.from_csr(csr.indptr, csr.indices, csr.data, 11)
    assert torch.equal(batch.gather(batch.dense), batch.values)
    assert torch.equal(batch.scatter(batch.values), batch.dense)
    assert torch.equal(batch.column_sum(batch.values), batch.dense.sum(0))


def test_a_dense_matrix_is_taken_as_well():
    dense = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    batch = CountBatch.from_dense(dense)
    assert batch.integer
    assert batch.nnz == 2
    assert batch.rows.tolist() == [0, 1]
    assert batch.to("cpu", dtype=torch.float64).values.dtype == torch.float64
