"""Annotation of cells stays plain pandas and loses nothing."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellweave.core.errors import DataError
from cellweave.core.study.annotation import (
    add_modality_columns,
    combine_columns,
    fill_missing,
    plain_column,
    stack_tables,
)
from cellweave.core.study.columns import (
    MISSING_LEVEL,
    confounded,
    crosstab,
    describe_columns,
    several_parents,
    suggest_roles,
)

COLUMNS = st.sampled_from(
    [
        [1, 2, 3], [1.5, np.nan, 2.0], ["a", None, "b"], [True, False, True], [True, None, False], [None, None, None],
        pd.Categorical(["x", None, "y"]), pd.array([1, None, 2], dtype="Int64"), pd.array(["u", None, "v"], dtype="string"),
    ]
)  # fmt: skip


def text(values):
    return ["" if pd.isna(value) else f"{value:g}" if isinstance(value, float | int) and not isinstance(value, bool) else str(value) for value in values]


@given(first=COLUMNS, second=COLUMNS | st.none())
@settings(max_examples=120, deadline=None)
def test_columns_of_several_files_keep_their_values(first, second):
    tables = [pd.DataFrame({"c": first}, index=["a", "b", "c"])]
    tables.append(pd.DataFrame({"other": [1, 2, 3]} if second is None else {"c": second}, index=["d", "e", "f"]))
    tables = [pd.DataFrame({name: plain_column(table[name]) for name in table}, index=table.index) for table in tables]
    joined = stack_tables(tables, [])
    kinds = joined["c"].dtype
    assert isinstance(kinds, pd.CategoricalDtype) or (isinstance(kinds, np.dtype) and kinds.kind in "biufO")
    expected = text(tables[0]["c"].astype(object)) + (text(tables[1]["c"].astype(object)) if second is not None else [""] * 3)
    assert text(joined["c"].astype(object)) == expected
    assert list(joined.index) == list("abcdef")


def test_categories_of_both_files_come_in_order():
    tables = [pd.DataFrame({"c": pd.Categorical(["b", "a"], categories=["b", "a"])}), pd.DataFrame({"c": pd.Categorical(["c", "a"])})]
    joined = stack_tables(tables, [])
    assert list(joined["c"].cat.categories) == ["b", "a", "c"]
    assert joined["c"].tolist() == ["b", "a", "c", "a"]


def test_numbers_in_one_file_and_text_in_another_become_text_with_a_note():
    notes = []
    joined = stack_tables([pd.DataFrame({"c": [1, 2]}), pd.DataFrame({"c": ["x", "y"]})], notes)
    assert joined["c"].tolist() == ["1", "2", "x", "y"]
    assert "'c' holds numbers in one file and text in another" in notes[0]


def test_columns_of_modalities_fill_agree_or_stand_beside():
    obs = pd.DataFrame({"batch": pd.Categorical(["a", None, "b"]), "n": [1, 2, 3]}, index=["c1", "c2", "c3"])
    own = pd.DataFrame({"batch": ["b", "z"], "n": [3, 9], "new": [0.5, 0.25]}, index=["c3", "c2"])
    add_modality_columns(obs, own, np.array([2, 1]), "adt")
    assert obs["batch"].tolist() == ["a", "z", "b"]
    assert obs["n"].tolist() == [1, 2, 3]
    assert obs["adt:n"].fillna(-1).tolist() == [-1, 9, 3]
    assert obs["new"].fillna(-1).tolist() == [-1, 0.25, 0.5]


def test_missing_values_take_the_level_given():
    obs = pd.DataFrame(
        {"c": pd.Categorical(["a", None]), "t": ["x", None], "n": [1.0, np.nan], "m": [2.0, np.nan], "b": [True, False]}, index=["1", "2"]
    )
    fill_missing(obs, {"c": "none", "t": "none", "n": "none", "m": "7.5", "b": "none"})
    assert obs["c"].tolist() == ["a", "none"]
    assert obs["t"].tolist() == ["x", "none"]
    assert obs["n"].tolist() == ["1", "none"]
    assert obs["m"].tolist() == [2.0, 7.5]
    assert obs["b"].tolist() == [True, False]
    combine_columns(obs, {"ct": ("c", "t")})
    assert obs["ct"].tolist() == ["a_x", "none_none"]
    with pytest.raises(DataError, match="names no columns"):
        combine_columns(obs, {"x": ()})
    with pytest.raises(DataError, match=r"data.combine.x names the column 'tt'.*Did you mean 't'"):
        combine_columns(obs, {"x": ("tt",)})


def frame(n=120):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "batch": pd.Categorical(np.repeat(["b1", "b2", "b3"], n // 3)),
            "condition": np.repeat(["ctrl", "ctrl", "stim"], n // 3),
            "cell_type": rng.choice(["T", "B", "NK"], n),
            "barcode": [f"AAC{row}" for row in range(n)],
            "percent_mito": rng.uniform(size=n),
            "cluster_id": rng.integers(0, 5, n),
            "n_counts": rng.permutation(n) + 1,
            "empty": [None] * n,
            "one": ["same"] * n,
            "gaps": ["x", "y", None] * (n // 3),
            "_scvi_batch": np.repeat([0, 1, 2], n // 3),
        },
        index=[f"cell{row}" for row in range(n)],
    )


def test_describes_what_each_column_is_and_may_serve_as():
    found = {info.name: info for info in describe_columns(frame())}
    assert {name: info.kind for name, info in found.items()} == {
        "batch": "categorical", "condition": "string", "cell_type": "string", "barcode": "string", "percent_mito": "float",
        "cluster_id": "integer", "n_counts": "integer", "empty": "string", "one": "string", "gaps": "string", "_scvi_batch": "integer",
    }  # fmt: skip
    assert found["batch"].levels == (("b1", 40), ("b2", 40), ("b3", 40))
    smallest = frame()["cell_type"].value_counts()
    assert found["cell_type"].smallest == (smallest.index[-1], smallest.iloc[-1])
    assert found["cell_type"].largest == (smallest.index[0], smallest.iloc[0])
    assert found["gaps"].n_missing == 40
    against = {name: info.advice["batch"] for name, info in found.items()}
    assert against["batch"] == against["condition"] == against["cluster_id"] == ""
    assert "level per cell" in against["barcode"]
    assert "measurement" in against["percent_mito"]
    assert "level per cell" in against["n_counts"]
    assert against["one"] == "one level only"
    assert against["empty"] == "no values"
    assert against["gaps"] == "40 cells have no value"
    assert {name for name, info in found.items() if info.suits("continuous")} == {"percent_mito", "cluster_id", "n_counts", "_scvi_batch"}
    assert found["batch"].advice["continuous"] == "not numbers"
    assert {name for name, info in found.items() if info.suits("size_factor")} == {"percent_mito", "n_counts"}


def test_suggests_roles_from_names_and_content():
    from cellweave.core.models.registry import family

    obs = frame()
    assert suggest_roles(obs) == {"batch": "batch", "labels": "cell_type"}
    assert suggest_roles(describe_columns(obs), family("vae")) == {"batch": "batch", "labels": "cell_type"}
    assert suggest_roles(obs.drop(columns="batch"))["batch"] == "condition"  # and never _scvi_batch
    assert "batch" not in suggest_roles(obs.assign(batch="only"))["labels"]
    assert suggest_roles(obs.assign(batch="only")).get("batch") == "condition"
    libraries = obs.assign(library=[f"l{row % 6}" for row in range(len(obs))], study=["s1"] * 60 + ["s2"] * 60)
    assert suggest_roles(libraries) == {"batch": "batch", "library": "library", "dataset": "study", "labels": "cell_type"}
    assert suggest_roles(libraries, family("vae")) == {"batch": "batch", "labels": "cell_type"}


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("rna_ifnb_pbmc_2batches.h5ad", {"batch": "batch", "labels": "cell_type"}),
        ("large_adt_11studies_116k.h5ad", {"batch": "batch", "library": "sample", "labels": "cell_type"}),
        ("awkward/pancreas_dense_noninteger_counts.h5ad", {"batch": "tech", "labels": "celltype"}),
        ("awkward/brain_old_scvi_registry_numeric_names.h5ad", {}),
        ("awkward/paul15_old_dense_integer_index.h5ad", {"labels": "paul15_clusters"}),
        ("awkward/starmap_mpfc_numeric_batch.loom", {"batch": "BatchID", "labels": "Clusters"}),
    ],
)
def test_suggests_roles_on_real_files(data_folder, name, roles):
    from cellweave.core.spec.data import DataSpec
    from cellweave.core.study import load_study

    assert suggest_roles(load_study(DataSpec(paths=(str(data_folder / name),), accept_non_integer=True)).obs) == roles


def test_cross_table_counts_missing_values_too():
    table = crosstab(frame(), "batch", "gaps")
    assert list(table.columns) == ["x", "y", MISSING_LEVEL]
    assert table.to_numpy().sum() == 120
    assert table.loc["b1"].sum() == 40


@given(pairs=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), min_size=1, max_size=12))
@settings(max_examples=200, deadline=None)
def test_confounding_is_what_the_cross_table_shows(pairs):
    obs = pd.DataFrame(pairs, columns=["one", "two"])
    table = crosstab(obs, "one", "two").to_numpy() > 0
    found = confounded(obs, "one", "two")
    nested_one, nested_two = (table.sum(axis=1) == 1).all(), (table.sum(axis=0) == 1).all()
    if min(table.shape) < 2:
        assert found == ""
    elif nested_one and nested_two:
        assert "in the same way" in found
    elif nested_one:
        assert found == "Each level of 'one' lies within one level of 'two'."
    elif nested_two:
        assert found == "Each level of 'two' lies within one level of 'one'."
    else:
        assert found == ""
    assert several_parents(obs, "one", "two") == [level for level, row in zip(sorted(obs["one"].unique()), table, strict=True) if row.sum() > 1]


def test_a_missing_parent_is_not_a_second_one():
    obs = pd.DataFrame({"library": ["l1", "l1", "l2", None, None], "dataset": ["d1", None, "d2", "d1", "d2"]})
    assert several_parents(obs, "library", "dataset") == []
    assert several_parents(obs.assign(dataset=["d1", "d2", "d2", "d1", "d2"]), "library", "dataset") == ["l1"]
