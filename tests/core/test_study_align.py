"""Matching by name, never by position."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import sparse

from cellweave.core.errors import DataError
from cellweave.core.study.align import align_features, make_unique, move_columns, move_rows, rows_by_name, stack_rows

NAMES = st.lists(st.sampled_from([f"g{number}" for number in range(12)]), min_size=1, max_size=8, unique=True)


def table_of(names, rows, seed):
    matrix = np.random.default_rng(seed).integers(0, 3, (rows, len(names))).astype(np.float32)
    return pd.DataFrame(matrix, columns=names)


@given(sets=st.lists(NAMES, min_size=1, max_size=4), join=st.sampled_from(["intersection", "union"]), seed=st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_aligning_files_gives_what_pandas_gives_by_name(sets, join, seed):
    tables = [table_of(names, rows, seed + rows) for rows, names in enumerate(sets, start=1)]
    shared = set.intersection(*map(set, sets))
    if join == "intersection" and not shared:
        with pytest.raises(DataError, match="share no feature"):
            align_features([np.array(names, dtype=object) for names in sets], join, "rna")
        return
    aligned = align_features([np.array(names, dtype=object) for names in sets], join, "rna")
    blocks = [
        move_columns(sparse.csr_matrix(table.to_numpy()), columns, len(aligned.names))
        for table, columns in zip(tables, aligned.columns, strict=True)
    ]
    result = stack_rows(blocks)
    truth = pd.concat(tables, join="inner" if join == "intersection" else "outer", ignore_index=True).fillna(0)
    assert set(aligned.names) == set(truth.columns)
    assert list(aligned.names[: len(sets[0])]) == [name for name in sets[0] if name in set(aligned.names)]
    assert np.array_equal(result.toarray(), truth[list(aligned.names)].to_numpy())
    assert result.has_sorted_indices
    mask = np.ones((len(sets), len(aligned.names)), bool) if aligned.mask is None else aligned.mask
    assert all(mask[row, column] == (name in sets[row]) for row in range(len(sets)) for column, name in enumerate(aligned.names))


@given(cells=st.lists(st.text("abcd", min_size=1, max_size=3), min_size=1, max_size=10, unique=True), data=st.data())
@settings(max_examples=100, deadline=None)
def test_cells_are_found_by_name_whatever_their_order(cells, data):
    own = data.draw(st.lists(st.sampled_from(cells), unique=True, max_size=len(cells)))
    matrix = sparse.csr_matrix(np.arange(1, 2 * len(own) + 1, dtype=np.float32).reshape(len(own), 2))
    rows = rows_by_name(np.array(cells, dtype=object), np.array(own, dtype=object), "adt", "f.h5mu")
    placed = move_rows(matrix, rows, len(cells)).toarray()
    for row, name in enumerate(cells):
        expected = matrix.toarray()[own.index(name)] if name in own else np.zeros(2)
        assert np.array_equal(placed[row], expected)


def test_repeated_names_are_refused_where_they_must_tell_things_apart():
    with pytest.raises(DataError, match=r"repeat.*'a'.*Make them unique"):
        rows_by_name(np.array(["a", "a"], dtype=object), np.array(["a"], dtype=object), "adt", "f.h5mu")
    with pytest.raises(DataError, match=r"repeat.*'g'.*make_names_unique"):
        align_features([np.array(["g", "g"], dtype=object), np.array(["g"], dtype=object)], "union", "rna")


@given(names=st.lists(st.sampled_from(["a", "b", "a-1", "a-1-1", "c", "b-2"]), min_size=1, max_size=12))
@settings(max_examples=200, deadline=None)
def test_names_become_unique_and_the_first_of_each_stays(names):
    unique = make_unique(np.array(names, dtype=object))
    assert len(set(unique)) == len(names)
    seen = set()
    for old, new in zip(names, unique, strict=True):
        if old not in seen:
            assert new == old
        seen.add(old)
        assert new.startswith(old)


@given(names=NAMES, keep=st.data())
@settings(max_examples=50, deadline=None)
def test_left_out_columns_take_their_values_with_them(names, keep):
    columns = np.array(keep.draw(st.permutations(range(len(names)))))
    dropped = keep.draw(st.sets(st.sampled_from(range(len(names)))))
    assume(len(dropped) < len(names))
    kept = [column for column in range(len(names)) if column not in dropped]
    target = np.full(len(names), -1)
    target[kept] = np.argsort(np.argsort(columns[kept]))
    matrix = sparse.csr_matrix(np.arange(3 * len(names), dtype=np.float32).reshape(3, -1) % 4)
    moved = move_columns(matrix, target, len(kept)).toarray()
    for column in kept:
        assert np.array_equal(moved[:, target[column]], matrix.toarray()[:, column])
