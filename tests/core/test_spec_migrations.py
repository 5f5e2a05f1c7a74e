"""Files of older schemas are brought up to date step by step; files of later ones are refused, never half read."""

from __future__ import annotations

import pytest

from cellweave.core.errors import SpecError
from cellweave.core.spec import files, from_toml, to_toml
from cellweave.core.spec.run import SCHEMA_VERSION, RunSpec


@pytest.fixture
def third_schema(monkeypatch):
    """Pretend that today's schema is the third and that two migrations lead to it."""

    def first(tree):
        tree = dict(tree)
        tree["training"] = tree.pop("trainer")
        return tree

    def second(tree):
        training = dict(tree["training"])
        training["max_epochs"] = training.pop("epochs")
        return {**tree, "training": training}

    monkeypatch.setattr(files, "SCHEMA_VERSION", 3)
    monkeypatch.setattr(files, "MIGRATIONS", {1: first, 2: second})


@pytest.mark.usefixtures("third_schema")
def test_migrations_run_in_order_and_leave_the_input_alone() -> None:
    tree = {"schema_version": 1, "trainer": {"epochs": 7}}
    assert files.migrate(tree) == {"schema_version": 3, "training": {"max_epochs": 7}}
    assert tree == {"schema_version": 1, "trainer": {"epochs": 7}}
    assert files.migrate({"schema_version": 2, "training": {"epochs": 9}}) == {"schema_version": 3, "training": {"max_epochs": 9}}


@pytest.mark.usefixtures("third_schema")
def test_a_file_of_today_is_left_as_it_is() -> None:
    tree = {"schema_version": 3, "training": {"max_epochs": 7}}
    assert files.migrate(tree) == tree


def test_a_file_of_a_later_version_is_refused_with_the_number() -> None:
    with pytest.raises(SpecError, match=rf"schema {SCHEMA_VERSION + 1}.*up to {SCHEMA_VERSION}.*Update Cellweave"):
        from_toml(f"schema_version = {SCHEMA_VERSION + 1}\n[training]\nnew_field = 1\n")


@pytest.mark.parametrize("version", ["0", "-1", "'one'", "1.5"])
def test_a_version_that_never_was(version: str) -> None:
    with pytest.raises(SpecError, match="never existed"):
        from_toml(f"schema_version = {version}\n")


def test_there_is_a_migration_from_every_older_schema() -> None:
    assert sorted(files.MIGRATIONS) == list(range(1, SCHEMA_VERSION))


def test_a_file_without_a_version_is_one_of_today() -> None:
    assert from_toml("[training]\nseed = 3\n").training.seed == 3
    assert f"schema_version = {SCHEMA_VERSION}" in to_toml(RunSpec())
