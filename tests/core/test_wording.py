"""One cell, two cells: what is said of one thing is said in the singular."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

import cellweave.app
import cellweave.core
from cellweave.core.wording import agree, counted

FOLDERS = [Path(package.__file__).parent for package in (cellweave.core, cellweave.app)]
THINGS = "cells|features|genes|batches|levels|epochs|samples|draws|markers|dimensions|values|rows|entries|labels|names|counts|terms"
"""What sentences count."""
LEFT: set[str] = set()
@pytest.mark.parametrize(
    ("number", "arguments", "said"),
    [
        (1, ("cell",), "1 cell"), (0, ("cell",), "0 cells"), (1204, ("cell",), "1,204 cells"), (1, ("batch", "batches"), "1 batch"),
        (2, ("batch", "batches"), "2 batches"), (1, ("cell has", "cells have"), "1 cell has"), (np.int64(3), ("cell has", "cells have"), "3 cells have"),
    ],
)  # fmt: skip
def test_what_is_counted_agrees_with_its_number(number, arguments, said):
    assert counted(number, *arguments) == said


def test_words_agree_with_a_number():
    assert [agree(number, "it", "them") for number in (0, 1, 2)] == ["them", "it", "them"]


def plain_plurals(source: str) -> list[str]:
    """Return where a formatted text sets a number beside a plural: a number with a thousands separator, or ``len(...)``, ``int(...)``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.JoinedStr):
            continue
        for before, value, after in zip([ast.Constant(""), *node.values], node.values, node.values[1:], strict=False):
            if not isinstance(value, ast.FormattedValue) or not isinstance(after, ast.Constant):
                continue
            if isinstance(before, ast.Constant) and re.search(r"\b(of|of the|than|all)\s$", str(before.value)):
                continue  # "1 of 240 cells": all that there are, or a bound
            grouped = value.format_spec is not None and "," in ast.unparse(value.format_spec)
            called = isinstance(value.value, ast.Call) and isinstance(value.value.func, ast.Name) and value.value.func.id in {"len", "int"}
            if (grouped or called) and re.match(rf" ({THINGS})\b(?!/)", str(after.value)):
                found.append(f"{ast.unparse(value.value)}{after.value[:20]}")
    return found


def test_the_search_for_plurals_finds_them():
    assert plain_plurals('f"{n:,} cells have"') == ["n cells have"]
    assert plain_plurals('f"{len(rows)} rows"') == ["len(rows) rows"]
    assert plain_plurals('f"{n:,} of {all:,} cells, {speed:,.0f} cells/s"') == []
    assert plain_plurals("f\"{counted(n, 'cell')} and {name} cells\"") == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_no_sentence_sets_a_number_beside_a_bare_plural(folder):
    found = {f"{path.relative_to(folder)}: {said}" for path in sorted(folder.rglob("*.py")) for said in plain_plurals(path.read_text(encoding="utf-8"))}
    assert {said for said in found if said.partition(":")[0] not in LEFT} == set()
