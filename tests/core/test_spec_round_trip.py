"""Any valid spec survives TOML and JSON unchanged; the strategies are built from the fields themselves."""

from __future__ import annotations

import types
import typing
from typing import Annotated, Any, Literal

import annotated_types
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from cellweave.core.errors import SpecError
from cellweave.core.models.registry import families
from cellweave.core.spec import RunSpec, from_toml, load_spec, parse_spec, save_spec, to_toml
from cellweave.core.spec.analysis import AnalysisSpec
from cellweave.core.spec.covariates import LIST_ROLES
from cellweave.core.spec.data import DataSpec, FeatureSelection, SwitchedOff
from cellweave.core.spec.optimisers import OPTIMISERS
from cellweave.core.spec.run import VALUES
from cellweave.core.spec.training import TrainingSpec

# Every character a file name or a column name may hold; TOML is UTF-8, which has no surrogates.
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
WORD = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


def limits(info: FieldInfo) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in info.metadata:
        for kind, name in ((annotated_types.Ge, "ge"), (annotated_types.Gt, "gt"), (annotated_types.Le, "le"), (annotated_types.Lt, "lt")):
            if isinstance(item, kind):
                found[name] = getattr(item, name)
    return found


def values(annotation: Any, bounds: dict[str, Any]) -> st.SearchStrategy[Any]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is Annotated:
        return values(arguments[0], limits(FieldInfo.from_annotation(annotation)))
    if origin in (types.UnionType, typing.Union):
        some = st.one_of(*(values(item, bounds) for item in arguments if item is not type(None)))
        return st.none() | some if type(None) in arguments else some
    if origin is tuple:
        return st.lists(values(arguments[0], {}), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(WORD, values(arguments[1], {}), max_size=3)
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        return st.integers(bounds.get("ge", bounds.get("gt", -(2**31)) + ("gt" in bounds)), bounds.get("le", 2**31 - 1))
    if annotation is float:
        low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
        return st.floats(low, high, exclude_min="gt" in bounds, exclude_max="lt" in bounds, allow_nan=False, allow_infinity=False)
    if annotation is str:
        return TEXT
    return tables(annotation)


def tables(cls: Any, **fixed: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({name: fixed[name] if name in fixed else values(info.annotation, limits(info)) for name, info in cls.model_fields.items()})


def agreeing(training: dict) -> dict:
    """A KL warm-up is given in epochs or in steps, and an optimiser is told nothing that it would ignore; else a spec is refused."""
    has = OPTIMISERS[training["optimizer"]]
    off = {"kl_warmup_epochs": 0} if training.get("kl_warmup_steps") else {}
    off |= {} if has.decay else {"weight_decay": 0.0}
    off |= {} if has.momentum else {"momentum": 0.0}
    return training | off | ({} if has.minds_rate else {"lr_plateau": False, "lr_warmup_steps": 0})


BLOCKS = st.sampled_from(["automatic", "by chromosome", "one block", "column chrom", "20, 10", "7"])


@st.composite
def specs(draw: st.DrawFn) -> RunSpec:
    family = draw(st.sampled_from(list(families().values())))
    roles = {
        use.role: draw(st.lists(WORD, max_size=3).map(tuple) if use.role in LIST_ROLES else st.none() | WORD) for use in family.roles
    }
    tree = {
        "name": draw(TEXT),
        "note": draw(TEXT),
        "data": draw(tables(DataSpec, blocks=st.dictionaries(WORD, BLOCKS, max_size=2))),
        "covariates": roles,
        "model": draw(tables(family.options)),
        "training": draw(tables(TrainingSpec).map(agreeing)),
        "analysis": draw(tables(AnalysisSpec)) | {name: False for name in VALUES if name not in {result.name for result in family.results}},
    }
    try:
        spec = parse_spec(tree)
    except SpecError:
        # A combination that the family refuses: fall back to its default options, which it always takes.
        spec = parse_spec({**tree, "model": {"kind": family.kind}})
    weights = {term.name: draw(st.floats(0, 1e6)) for term in spec.terms() if draw(st.booleans())}
    return parse_spec({**spec.model_dump(mode="python"), "losses": {"weights": weights}})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(specs())
def test_any_spec_survives_toml(spec: RunSpec) -> None:
    again = from_toml(to_toml(spec))
    assert again == spec
    assert to_toml(again) == to_toml(spec)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(specs())
def test_any_spec_survives_json(spec: RunSpec) -> None:
    assert RunSpec.model_validate_json(spec.model_dump_json()) == spec


@settings(max_examples=50, deadline=None)
@given(WORD, TEXT)
def test_names_of_the_users_data_may_hold_anything_in_a_change(name: str, level: str) -> None:
    spec = RunSpec().with_changes({f"data.fill_missing.{name}": level, f"data.features.{name}.n": 7, f"data.layers.{name}": "X"})
    assert spec.data.fill_missing == {name: level}
    assert spec.data.features == {name: FeatureSelection(n=7)}
    assert spec.data.layers == {name: "X"}
    gone = spec.with_changes({f"data.fill_missing.{name}": None, f"data.layers.{name}": None})
    assert gone.data.fill_missing == {}
    assert gone.data.layers == {}


def test_a_spec_file_survives_the_disk_with_paths_made_absolute(tmp_path) -> None:
    spec = RunSpec().with_changes({"data.paths": ("cells.h5ad", str(tmp_path / "more.h5ad")), "covariates.batch": "Größe μ"})
    save_spec(spec, tmp_path / "run.toml")
    again = load_spec(tmp_path / "run.toml")
    assert again.data.paths == (str(tmp_path / "cells.h5ad"), str(tmp_path / "more.h5ad"))
    assert again.covariates == spec.covariates
    assert again.model == spec.model


def test_lists_of_tables_survive() -> None:
    off = (SwitchedOff(column="batch", level="a\tb", modality="adt"), SwitchedOff(column="x", level='"', modality="rna"))
    spec = RunSpec().with_changes({"data.switched_off": off})
    assert from_toml(to_toml(spec)).data.switched_off == off


def test_the_spec_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunSpec().training.seed = 3  # type: ignore[misc]
